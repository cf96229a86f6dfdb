"""The clipped sum over a cohort with `torch.func.vmap`: clients that take several steps, stacked.

A stack is a batch of models. It pays where a client's step is so small that the time goes into
starting operations; where a step is large it is slower than one client after the other, because
everybody waits for the client with the most and the longest texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from fl_integration.batches import pad
from fl_integration.client import Work
from fl_integration.clipping import ROWS, ClippedSum
from fl_integration.cohort import Cohort, Round
from fl_integration.config import FederatedConfig
from fl_integration.encoding import IGNORED
from fl_integration.spaces import FlatSpace, LiveSlice
from fl_integration.tasks import TextModel

STACK = 1 << 22  # numbers of weights in memory together, several times over
CLIENTS = 64  # clients a stack at most: more gain little, and wait for more
WINDOW = 1024  # clients whose texts are in memory together

Gradients = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def vmap_sum(cohort: Cohort, round: Round, total: ClippedSum) -> None:
    """Add the clipped deltas of a round's clients, stacks of them at a time.

    **Guarantees**

    * The deltas are those of `loop_sum` up to rounding, for any number of local steps.
    * No client's texts touch another's delta: every client has its own weights and its own lane.
      A lane is filled up with texts that do not count, and a step that a client
      does not take moves it by 0.

    Arguments:
        cohort, round: who trains on what. total: takes the deltas, of dimension dim(rank).

    Raises:
        ValueError: for a model that reads no additive mask; use loop_sum.
    """
    if cohort.space.classifier.mask_form == "plain":
        raise ValueError(
            f"Expected mask_form={cohort.space.classifier.mask_form!r} to be additive or causal:"
            " this model branches on its mask's values, which vmap cannot follow; use loop_sum."
        )
    rates = cohort.rates(round)
    count = max(1, ROWS // len(round.start))
    with cohort.space.use_rank(round.rank) as live:
        gradients = _gradients(cohort.space, live)
        device = live.parameters[0].device
        for works in _stacks(cohort, round):
            stack = _Stack(works, pad_id=cohort.space.classifier.pad_id, device=device)
            moved = _moved(
                stack, round.start.to(device), rates.to(device), gradients, cohort.config
            )
            for rows in moved.split(count):
                total.add_rows(rows)


def _stacks(cohort: Cohort, round: Round) -> Iterator[list[Work]]:
    """The works of a round, clients of like size together."""
    most = max(1, min(CLIENTS, STACK // len(round.start)))
    for first in range(0, len(round.clients), WINDOW):
        window = round.clients[first : first + WINDOW].tolist()
        works = [cohort.work(round, client) for client in window]
        works.sort(key=lambda work: (len(work.ids), max(map(len, work.ids), default=0)))
        for start in range(0, len(works), most):
            yield works[start : start + most]


class _Stack:
    """The texts of some clients as (clients, texts, tokens), filled up to one shape.

    A lane is filled up with its own last text, so that what overflows there overflows in a text of
    its own in that step, whoever it is stacked with; `real` is False there.
    """

    def __init__(self, works: Sequence[Work], *, pad_id: int, device: torch.device) -> None:
        sizes = np.asarray([len(work.ids) for work in works])
        self.texts = int(sizes.max())
        last = [work.ids[-1] if work.ids else [pad_id] for work in works]
        lanes = [
            [*work.ids, *[text] * (self.texts - len(work.ids))]
            for work, text in zip(works, last, strict=True)
        ]
        ids, mask = pad([line for lane in lanes for line in lane], pad_id=pad_id)
        shape = (len(works), self.texts, *works[0].labels.shape[1:])
        targets = np.full(shape, IGNORED, dtype=np.int64)
        for row, work in zip(targets, works, strict=True):
            row[: len(work.labels)] = work.labels
        real = torch.from_numpy(np.arange(self.texts) < sizes[:, None])
        lines = (tensor.reshape(*real.shape, ids.shape[1]) for tensor in (ids, mask))
        parts = (*lines, torch.from_numpy(targets), real)
        self.parts = tuple(part.to(device) for part in parts)

    def step(self, first: int, size: int) -> tuple[Tensor, ...]:
        """Token ids, mask, targets and what is real of the texts of one step."""
        return tuple(part[:, first : first + size] for part in self.parts)


def _moved(
    stack: _Stack, start: Tensor, rates: Tensor, gradients: Gradients, config: FederatedConfig
) -> Tensor:
    """How far each client's own SGD steps lead, (clients, d)."""
    moved = torch.zeros(len(stack.parts[0]), len(start), dtype=start.dtype, device=start.device)
    for _ in range(config.local_epochs):
        for first in range(0, stack.texts, config.batch_size):
            step = stack.step(first, config.batch_size)
            found = gradients(start + moved, *step).to(start.dtype)
            present = step[-1].any(dim=1, keepdim=True)  # who is through stays where it is
            moved -= rates * torch.where(present, found, 0.0)
    return moved


def _gradients(space: FlatSpace, live: LiveSlice) -> Gradients:
    """Every client's gradient of its mean loss at its own weights: (clients, d) -> (clients, d)."""
    losses = _Losses(space.classifier)
    dtypes = [parameter.dtype for parameter in live.parameters]

    def loss(weights: Tensor, ids: Tensor, mask: Tensor, targets: Tensor, real: Tensor) -> Tensor:
        views = space.unflatten(weights, live.rank).items()
        used = {f"model.{n}": v.to(dtype) for (n, v), dtype in zip(views, dtypes, strict=True)}
        each = cast(Tensor, functional_call(losses, used, (ids, mask, targets)))
        # where, not a product: 0 · inf is no 0
        return torch.where(real, each, 0.0).sum() / real.sum().clamp(min=1)

    return cast(Gradients, vmap(grad(loss)))


class _Losses(nn.Module):
    """The losses of a model as a module's forward, which is what `functional_call` calls."""

    def __init__(self, model: TextModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, targets: Tensor) -> Tensor:
        """Each text's loss (n,)."""
        return self.model.losses(input_ids, attention_mask, targets)
