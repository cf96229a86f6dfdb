"""What happens at one client: its texts of this round, a few plain SGD steps, a flat delta."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from fl_integration.adapters import AdapterSlice, AdapterSpace
from fl_integration.config import FederatedConfig
from fl_integration.data import FederatedData, Tokenizer, tokenise
from fl_integration.models import Classifier, pad

Ids = list[list[int]]


class Tokens:
    """The token ids of a federation, made when a client is first drawn and kept.

    **Guarantees**

    * Only clients that were drawn are ever tokenised: the cost does not grow with the population.

    Arguments:
        data: the clients and the public test texts. tokenizer: of the model.
        max_length: tokens a text, at least 3.
    """

    def __init__(self, data: FederatedData, tokenizer: Tokenizer, *, max_length: int = 32) -> None:
        self.data, self.max_length = data, max_length
        self._tokenizer = tokenizer
        self._clients: dict[int, Ids] = {}
        self._test: Ids | None = None

    def client(self, index: int) -> Ids:
        """The token ids of one client's texts, in its order."""
        if index not in self._clients:
            texts = self.data.clients[index].texts
            self._clients[index] = self._ids(texts)
        return self._clients[index]

    def test(self) -> Ids:
        """The token ids of the public test texts."""
        if self._test is None:
            self._test = self._ids(self.data.test_texts)
        return self._test

    def _ids(self, texts: Sequence[str]) -> Ids:
        return tokenise(texts, self._tokenizer, max_length=self.max_length) if texts else []


@dataclass(frozen=True, kw_only=True, eq=False)
class Work:
    """One client's token ids and labels of one round, at most ``max_texts``, in random order."""

    ids: Ids
    labels: NDArray[np.int64]


def local_work(tokens: Tokens, client: int, *, limit: int, rng: np.random.Generator) -> Work:
    """Choose at most ``limit`` of a client's texts, and their order, with the client's own rng."""
    ids, labels = tokens.client(client), tokens.data.clients[client].labels
    chosen = rng.permutation(len(ids))[:limit]
    return Work(ids=[ids[i] for i in chosen], labels=labels[chosen])


def step_sizes(space: AdapterSpace, rank: int, config: FederatedConfig) -> Tensor:
    """The client's learning rate of every coordinate (d,): larger on the head.

    Source: federated.md §6 (a head needs a far larger rate than the adapters).
    """
    rates = torch.full((space.dim(rank),), config.local_lr)
    rates[space.head_slice(rank)] *= config.head_multiplier
    return rates


def local_delta(
    classifier: Classifier,
    live: AdapterSlice,
    start: Tensor,
    work: Work,
    *,
    rates: Tensor,
    config: FederatedConfig,
) -> Tensor:
    """Train a slice on one client's texts with plain SGD and return how far it moved.

    **Guarantees**

    * The result depends on this client's texts and on ``start`` only; nothing is kept between
      clients. It is *not* clipped yet and may be non-finite when training diverged.

    Arguments:
        classifier, live: the model with a slice in use. start: (d,) the broadcast slice.
        work: the client's texts. rates: (d,) learning rate of each coordinate.
        config: epochs and texts per step.

    Returns:
        (d,) delta, zero for a client without texts.
    """
    moved = torch.zeros_like(start)
    for _ in range(config.local_epochs):
        for first in range(0, len(work.ids), config.batch_size):
            live.load(start + moved)
            part = slice(first, first + config.batch_size)
            _backward(classifier, work.ids[part], work.labels[part])
            moved -= rates * live.gradient().cpu()
            live.zero_grad()
    return moved


def _backward(classifier: Classifier, ids: Ids, labels: NDArray[np.int64]) -> None:
    """Leave the gradient of the mean loss over some texts in the slice."""
    device = classifier.head.weight.device
    input_ids, mask = pad(ids, pad_id=classifier.pad_id)
    logits = classifier(input_ids.to(device), mask.to(device))
    functional.cross_entropy(logits, torch.from_numpy(labels).to(device)).backward()
