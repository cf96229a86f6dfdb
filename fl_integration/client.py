"""What happens at one client: its texts of this round, a few plain SGD steps, a flat delta."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fl_integration.batches import pad
from fl_integration.config import FederatedConfig
from fl_integration.data import FederatedData
from fl_integration.encoding import MAX_LENGTH, Ids, Integers, Tokenizer, encode
from fl_integration.rows import Text
from fl_integration.spaces import FlatSpace, LiveSlice
from fl_integration.tasks import TextModel

KEPT = 2**16  # texts whose token ids are kept: some 100 MB at 32 tokens


class Tokens:
    """The token ids and targets of a federation, made when a client is drawn, and kept for a while.

    **Guarantees**

    * Only clients that were drawn are ever made and tokenised, and of those only the last ones are
      kept: neither time nor memory grows with the population.

    Arguments:
        data: the clients and the public test texts. tokenizer: of the model.
        max_length: tokens a text, at least 3. keep: texts that are kept.
    """

    def __init__(
        self,
        data: FederatedData,
        tokenizer: Tokenizer,
        *,
        max_length: int = MAX_LENGTH,
        keep: int = KEPT,
    ) -> None:
        self.data, self.max_length, self.keep = data, max_length, keep
        self._tokenizer = tokenizer
        self._recent: OrderedDict[int, Work] = OrderedDict()  # the last drawn is the last
        self._texts = 0  # in _recent
        self._test: Work | None = None

    def client(self, index: int) -> Ids:
        """The token ids of one client's texts, in its order."""
        return self._work(index).ids

    def targets(self, index: int) -> Integers:
        """The targets of one client's texts: (n,), or (n, max_length) for tasks on tokens."""
        return self._work(index).labels

    def name(self, index: int) -> str:
        """The name of one client."""
        return self._work(index).name

    def test(self) -> Ids:
        """The token ids of the public test texts."""
        return self._tested().ids

    def test_targets(self) -> Integers:
        """The targets of the public test texts: (n,), or (n, max_length) for tasks on tokens."""
        return self._tested().labels

    def _tested(self) -> Work:
        if self._test is None:
            self._test = self._encoded(self.data.test_texts, self.data.test_labels, "test")
        return self._test

    def _work(self, index: int) -> Work:
        """All texts of a client, which become the last to be forgotten."""
        work = self._recent.pop(index, None)
        if work is None:
            client = self.data.clients[index]
            work = self._encoded(client.texts, client.labels, client.name)
            self._texts += len(work.ids)
        self._recent[index] = work
        while self._texts > self.keep and len(self._recent) > 1:
            self._texts -= len(self._recent.popitem(last=False)[1].ids)
        return work

    def _encoded(self, texts: Sequence[Text], labels: Integers, name: str) -> Work:
        ids, targets = encode(
            texts, labels, self._tokenizer, task=self.data.task, max_length=self.max_length
        )
        return Work(name=name, ids=ids, labels=targets)


@dataclass(frozen=True, kw_only=True, eq=False)
class Work:
    """Token ids of n texts of one client, and their targets: (n,), or (n, max_length) by token."""

    name: str
    ids: Ids
    labels: Integers


def local_work(tokens: Tokens, client: int, *, limit: int, rng: np.random.Generator) -> Work:
    """Choose at most ``limit`` of a client's texts, and their order, with the client's own rng."""
    ids, targets = tokens.client(client), tokens.targets(client)
    rows = chosen(len(ids), limit=limit, rng=rng)
    return Work(name=tokens.name(client), ids=[ids[i] for i in rows], labels=targets[rows])


def chosen(texts: int, *, limit: int, rng: np.random.Generator) -> Integers:
    """Which of a client's texts take part in a round, at most ``limit``, and in which order."""
    return rng.permutation(texts)[:limit].astype(np.int64)


def step_sizes(space: FlatSpace, rank: int, config: FederatedConfig) -> Tensor:
    """The client's learning rate of every coordinate (d,): larger on the head.

    Source: federated.md §6 (a head needs a far larger rate than the adapters).
    """
    rates = torch.full((space.dim(rank),), config.local_lr)
    rates[space.head_slice(rank)] *= config.head_multiplier
    return rates


def local_delta(
    classifier: TextModel,
    live: LiveSlice,
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
            moved -= rates * live.gradient(dtype=start.dtype).cpu()
            live.zero_grad()
    return moved


def _backward(model: TextModel, ids: Ids, targets: Integers) -> None:
    """Leave the gradient of the mean loss over some texts in the slice."""
    input_ids, mask = pad(ids, pad_id=model.pad_id)
    tensors = (tensor.to(model.device) for tensor in (input_ids, mask, torch.from_numpy(targets)))
    model.losses(*tensors).mean().backward()
