"""The clipped sum over a cohort: a reference loop, and a fast path for one local step.

Both return the same `ClippedSum`; only fp32 rounding inside the model differs.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from fl_integration.adapters import AdapterSlice, AdapterSpace
from fl_integration.client import Tokens, Work, local_delta, local_work, step_sizes
from fl_integration.clipping import ClippedSum
from fl_integration.config import FederatedConfig
from fl_integration.models import length_sorted_batches
from fl_integration.sampler import Randomness

CHUNK = 32  # clients whose gradients are in memory together: bounded, whatever the cohort


@dataclass(frozen=True, kw_only=True, eq=False)
class Round:
    """One round before any noise: who takes part, at which public rank, from which weights."""

    index: int
    rank: int
    clients: NDArray[np.int64]
    start: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Cohort:
    """The clients' side of a federation: adapters, texts, configuration, random streams."""

    space: AdapterSpace
    tokens: Tokens
    config: FederatedConfig
    randomness: Randomness

    def work(self, round: Round, client: int) -> Work:
        """The texts that one client trains on in a round."""
        rng = self.randomness.local(round.index, client)
        return local_work(self.tokens, client, limit=self.config.max_texts, rng=rng)


Executor = Callable[[Cohort, Round, ClippedSum], None]


def executor_for(config: FederatedConfig) -> Executor:
    """The merged executor where each client takes exactly one step, else the loop."""
    one_step = config.local_epochs == 1 and config.batch_size >= config.max_texts
    return merged_sum if one_step else loop_sum


def loop_sum(cohort: Cohort, round: Round, total: ClippedSum) -> None:
    """Add the clipped deltas of a round's clients, one client after the other (the reference).

    Arguments:
        cohort, round: who trains on what. total: takes the deltas, of dimension dim(rank).
    """
    rates = step_sizes(cohort.space, round.rank, cohort.config)
    with cohort.space.use_rank(round.rank) as live:
        for client in round.clients.tolist():
            delta = local_delta(
                cohort.space.classifier,
                live,
                round.start,
                cohort.work(round, client),
                rates=rates,
                config=cohort.config,
            )
            total.add(delta)


def merged_sum(cohort: Cohort, round: Round, total: ClippedSum) -> None:
    """Add the clipped deltas of a round's clients, their texts batched together by length.

    **Guarantees**

    * The deltas are those of `loop_sum` up to rounding, for one local step a client.
    * No client's texts touch another's delta: each example's gradient goes to its owner's row.

    Arguments:
        cohort, round: who trains on what; ``local_epochs`` must be 1 and a batch must hold all
            of a client's texts. total: takes the deltas.

    Raises:
        ValueError: when a client would take more than one step.
    """
    config = cohort.config
    if config.local_epochs != 1 or config.batch_size < config.max_texts:
        raise ValueError(
            f"Expected local_epochs={config.local_epochs} == 1 and batch_size={config.batch_size}"
            f" >= max_texts={config.max_texts}; use loop_sum."
        )
    rates = step_sizes(cohort.space, round.rank, config)
    with cohort.space.use_rank(round.rank) as live:
        live.load(round.start)
        for first in range(0, len(round.clients), CHUNK):
            chunk = round.clients[first : first + CHUNK].tolist()
            works = [cohort.work(round, client) for client in chunk]
            for gradient in _client_gradients(cohort.space, live, works):
                total.add(-rates * gradient)


def _client_gradients(space: AdapterSpace, live: AdapterSlice, works: Sequence[Work]) -> Tensor:
    """Each client's gradient of its own mean loss, (clients, d)."""
    device = space.classifier.head.weight.device
    gradients = torch.zeros(len(works), space.dim(live.rank), device=device)
    sizes = np.asarray([len(work.ids) for work in works])
    owners = np.repeat(np.arange(len(works)), sizes)
    ids = [line for work in works for line in work.ids]
    labels = np.concatenate([work.labels for work in works]).astype(np.int64)
    with _taps(space, space.unflatten(gradients, live.rank)) as taps:
        for batch in length_sorted_batches(ids, pad_id=space.classifier.pad_id):
            owner = owners[batch.rows]
            taps.owner = torch.from_numpy(owner).to(device)
            logits = space.classifier(batch.input_ids.to(device), batch.attention_mask.to(device))
            target = torch.from_numpy(labels[batch.rows]).to(device)
            losses = functional.cross_entropy(logits, target, reduction="none")
            (losses / torch.from_numpy(sizes[owner]).to(losses)).sum().backward()
            live.zero_grad()
    return gradients.cpu()


class _Taps:
    """Adds every example's gradient of the tapped linear layers to its owner's row."""

    def __init__(self, rows: dict[str, Tensor]) -> None:
        self.rows = rows  # name of a parameter -> (clients, *shape), views of one matrix
        self.owner = torch.empty(0, dtype=torch.int64)

    def hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        """A forward hook for the linear layer ``name``."""

        def forward(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            x, owner = inputs[0].detach(), self.owner
            output.register_hook(lambda grad: self.add(name, x, grad, owner))

        return forward

    def add(self, name: str, x: Tensor, grad: Tensor, owner: Tensor) -> None:
        """Outer products summed over tokens: (n, L, out), (n, L, in) -> (n, out, in)."""
        x, grad = (t.float().reshape(len(owner), -1, t.shape[-1]) for t in (x, grad))
        self.rows[f"{name}.weight"].index_add_(0, owner, torch.bmm(grad.transpose(1, 2), x))
        if f"{name}.bias" in self.rows:
            self.rows[f"{name}.bias"].index_add_(0, owner, grad.sum(1))


@contextmanager
def _taps(space: AdapterSpace, rows: dict[str, Tensor]) -> Generator[_Taps]:
    """Tap the linear layers that hold the slice, and untap them on leaving."""
    taps = _Taps(rows)
    layers = sorted({name.rpartition(".")[0] for name in rows})
    handles = [
        space.classifier.get_submodule(n).register_forward_hook(taps.hook(n)) for n in layers
    ]
    try:
        yield taps
    finally:
        for handle in handles:
            handle.remove()
