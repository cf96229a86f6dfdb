"""How much of the server's model a client can have: three measures of what a broadcast protects.

FedLPP shows clients a coarse copy q of the server's weights s. What that is worth is the accuracy
that s has and a client cannot reach,

* as **received**: with q itself;
* as **trained**: with q after its own local training, which undoes part of the rounding;
* as **averaged**: with the mean of its last k copies. Each round's rounding errs in another way
  while the weights hardly move, so the mean of ten copies can be better than any one of them, and
  at few bits better than the server itself (federated.md §1). A negative gap says just that.

These measure a protection of the model, not of the data: they are no privacy guarantee. The second
is a function of clients' own texts that nothing noised, so a private run does not report it.

Symbols: s the server's weights (D,), q a broadcast, k how many a client remembers.
Source: Zhu et al. (2024), arXiv 2406.10976; federated.md §1 for the third.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fl_integration.clipping import ClippedSum
from fl_integration.cohort import Cohort, Executor, Round

LAST = 10  # broadcasts that the averaging client keeps

Evaluate = Callable[[Tensor], float]


@dataclass(frozen=True, kw_only=True, eq=False)
class Overheard:
    """What a client remembers of the broadcasts: the last ``last`` slices that it received.

    Arguments:
        last: k >= 1. slices: (index, values) of each, oldest first.

    Raises:
        ValueError: when ``last`` is no whole number >= 1.

    >>> heard = Overheard(last=2)
    >>> for value in (9.0, 1.0, 3.0):
    ...     heard = heard.hear(torch.tensor([1]), torch.tensor([value]))
    >>> heard.average(torch.zeros(2))
    tensor([0., 2.], dtype=torch.float64)
    """

    last: int = LAST
    slices: tuple[tuple[Tensor, Tensor], ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.last, bool) or not isinstance(self.last, int) or self.last < 1:
            raise ValueError(f"Expected last={self.last!r} to be a whole number >= 1.")

    def hear(self, index: Tensor, values: Tensor) -> Overheard:
        """One broadcast more: (d,) where its coordinates lie, (d,) what was received."""
        heard = (*self.slices, (index, values.detach().double().clone()))
        return replace(self, slices=heard[-self.last :])

    def average(self, public: Tensor) -> Tensor:
        """Every coordinate's mean over the broadcasts that showed it, (D,) fp64.

        Arguments:
            public: (D,) what stands where none of them showed anything, such as the public start.
        """
        total, count = torch.zeros_like(public.double()), torch.zeros_like(public.double())
        for index, values in self.slices:
            total[index] += values
            count[index] += 1
        return torch.where(count > 0, total / count.clamp(min=1), public.double())


@dataclass(frozen=True, kw_only=True)
class ModelPrivacy:
    """Accuracies of the server's model and of what clients can make of its broadcasts.

    server: of s. received, averaged: of the client's copy and of the mean of its last ``last``.
    trained: mean over clients of the accuracy after local training; ``None`` where none trained.
    """

    server: float
    received: float
    trained: float | None
    averaged: float
    last: int

    @property
    def gaps(self) -> dict[str, float]:
        """By measure, the accuracy that stays with the server (negative: the client has more)."""
        found = {"received": self.received, "trained": self.trained, "averaged": self.averaged}
        return {name: self.server - value for name, value in found.items() if value is not None}


def model_privacy(
    evaluate: Evaluate,
    *,
    server: Tensor,
    received: Tensor,
    trained: Iterable[Tensor],
    overheard: Overheard,
) -> ModelPrivacy:
    """Measure what a client can have of the server's model.

    Arguments:
        evaluate: accuracy of weights (D,), on one public test set for all.
        server: (D,) s. received: (D,) the last broadcast, laid over what the client had before.
        trained: (D,) each, ``received`` after the local training of a client; read one at a time.
        overheard: the broadcasts that the client remembers.
    """
    after = [evaluate(weights) for weights in trained]
    return ModelPrivacy(
        server=evaluate(server),
        received=evaluate(received),
        trained=sum(after) / len(after) if after else None,
        averaged=evaluate(overheard.average(received)),
        last=len(overheard.slices),
    )


def locally_trained(
    cohort: Cohort, round: Round, *, index: Tensor, known: Tensor, executor: Executor
) -> Iterator[Tensor]:
    """The weights of each client of a round after its own training, (D,) fp64, one at a time.

    Arguments:
        cohort, round: who trains, from which broadcast. index: (d,) where its slice lies.
        known: (D,) what a client has outside the slice. executor: trains; nothing is clipped.
    """
    for client in round.clients:
        total = ClippedSum(len(round.start), None)
        executor(cohort, replace(round, clients=client[None]), total)
        yield known.double().index_copy(0, index, round.start.double() + total.value)
