"""One run on several processes: each trains its share of every cohort, rank 0 does all the rest.

Rank 0 is the server: it alone draws the cohort and the noise, keeps the ledger, writes the files
and reports. A round costs one message to everybody (who trains, from which weights) and one
all-reduce of a clipped fp64 sum. The other processes answer until they are told that it is over.

A process that dies breaks the round at the all-reduce, which comes before the spend is written and
the noise is drawn: nothing was released, and the ledger is as long as it has to be.

Start with ``torchrun --nproc-per-node=K``; every process reads the same data and configuration,
joins the group with `joined` and calls `together`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Literal, Protocol, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from fl_integration.clipping import ClippedSum
from fl_integration.cohort import Cohort, Executor, Round
from fl_integration.executors import executor_for

T = TypeVar("T")
R = TypeVar("R")
PATIENCE = timedelta(minutes=30)  # how long a message is waited for


class Group(Protocol):
    """The processes of a run. Every process makes the same calls in the same order."""

    @property
    def rank(self) -> int:
        """Which process this is; 0 is the server."""
        ...

    @property
    def size(self) -> int:
        """How many processes there are."""
        ...

    def share(self, value: T | None) -> T:
        """What rank 0 passed, on every process; the others pass ``None``."""
        ...

    def total(self, part: Tensor) -> Tensor:
        """The sum of everybody's tensor, on every process, in its own dtype."""
        ...

    def gathered(self, part: tuple[float, ...]) -> tuple[float, ...]:
        """Everybody's numbers, one after the other, on every process."""
        ...


@dataclass(frozen=True)
class Alone:
    """The group of one process, which has nobody to talk to."""

    rank: int = 0
    size: int = 1

    def share(self, value: T | None) -> T:
        """The value itself."""
        return cast(T, value)

    def total(self, part: Tensor) -> Tensor:
        """The tensor itself."""
        return part

    def gathered(self, part: tuple[float, ...]) -> tuple[float, ...]:
        """The numbers themselves."""
        return part


class Processes:
    """The processes that torchrun started, over `torch.distributed`.

    Arguments:
        backend: ``"nccl"`` needs a CUDA device a process; ``"gloo"`` goes over the CPU.
        patience: how long a message is waited for before a process gives up.
    """

    def __init__(self, backend: Literal["gloo", "nccl"], *, patience: timedelta = PATIENCE) -> None:
        self.device = torch.device("cpu")
        if backend == "nccl":
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(self.device)
        dist.init_process_group(backend, timeout=patience)
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def share(self, value: T | None) -> T:
        """What rank 0 passed."""
        box: list[Any] = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def total(self, part: Tensor) -> Tensor:
        """One all-reduce."""
        whole = part.to(self.device, copy=True)
        dist.all_reduce(whole)
        return whole.to(part.device)

    def gathered(self, part: tuple[float, ...]) -> tuple[float, ...]:
        """One all-gather of objects."""
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, part)
        return tuple(number for numbers in parts for number in numbers)

    def close(self) -> None:
        """Leave the group."""
        dist.destroy_process_group()


@contextmanager
def joined(backend: Literal["gloo", "nccl"] | None = None) -> Generator[Group]:
    """The group that torchrun has started this process in, left on leaving; else `Alone`.

    Arguments:
        backend: ``None`` takes nccl where every process of this machine has a device of its own.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Alone()
        return
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    enough = devices >= int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    group = Processes(backend or ("nccl" if enough else "gloo"))
    try:
        yield group
    finally:
        group.close()


@contextmanager
def by_first(block: AbstractContextManager[object], group: Group) -> Generator[None]:
    """A context that rank 0 alone enters: where it is refused, every process raises that refusal.

    Arguments:
        block: what rank 0 enters. group: every process is here.
    """
    with ExitStack() as entered:
        refusal: Exception | None = None
        if group.rank == 0:
            try:
                entered.enter_context(block)
            except Exception as error:
                refusal = error
        refusal = cast("Exception | None", group.share(refusal))
        if refusal is not None:
            raise refusal
        yield


@dataclass(frozen=True, kw_only=True, eq=False)
class _Order:
    """What rank 0 asks of everybody: a round, the clip of its sum, and whether norms are kept."""

    round: Round
    bound: float | None
    keep_norms: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class _Over:
    """The last message: what the run gave, ``None`` if it broke off."""

    result: Any


def spread(executor: Executor, group: Group) -> Executor:
    """An executor for rank 0 that shares the clients out among the processes of a group.

    **Guarantees**

    * The sum is that of ``executor`` up to fp64 rounding: each client is added on one process.
    * Nothing is added where a process is missing: the sum is whole, or there is an exception.

    Only federations are shared out: a silo's own steps stay on rank 0.

    Arguments:
        executor: what a process runs on its own share. group: all are in `serve`, but this one.
    """
    if group.size == 1:
        return executor

    def shared(cohort: Cohort, round: Round, total: ClippedSum) -> None:
        if type(cohort) is not Cohort:  # a silo, whose examples only this process knows
            return executor(cohort, round, total)
        order = _Order(round=round, bound=total.bound, keep_norms=total.keeps_norms)
        total.absorb(*_share_of(cohort, executor, group.share(order), group))

    return shared


def serve(cohort: Cohort, executor: Executor, group: Group) -> Any:
    """Answer rank 0 until the run is over; for all other processes.

    Arguments:
        cohort: of the same data, configuration and model as rank 0's. executor: as there.

    Returns:
        what rank 0 gave to `leading`.

    Raises:
        RuntimeError: where rank 0 broke off.
    """
    while True:
        order = cast("_Order | _Over", group.share(None))
        if isinstance(order, _Over):
            if order.result is None:
                raise RuntimeError(f"Rank 0 broke off; process {group.rank} has nothing to return.")
            return order.result
        _ = _share_of(cohort, executor, order, group)


@contextmanager
def leading(group: Group) -> Generator[Callable[[Any], None]]:
    """Rank 0's half of `serve`: let the others go when the block ends, however it ends.

    Yields:
        what takes the result of the run, for the others to return.
    """
    results: list[Any] = []
    try:
        yield results.append
    finally:
        if group.size > 1:
            _ = group.share(_Over(result=results[-1] if results else None))


def together(train: Callable[[Executor], R], cohort: Cohort, group: Group) -> R:
    """Train on rank 0, help on the others; all return the same, and hold the same weights.

    **Guarantees**: ``train`` runs on rank 0 alone, so there is one cohort, one noise, one ledger.

    Arguments:
        train: runs `federate` with the executor that it is given. cohort: of this process's own
            copy of model, texts and configuration. group: of `joined`.

    Raises:
        RuntimeError: on the others where rank 0 broke off, and where a process is gone.
    """
    executor, space = executor_for(cohort.config), cohort.space
    if group.rank:
        result, weights = cast("tuple[R, Tensor]", serve(cohort, executor, group))
        space.assign(weights, space.rank)
        return result
    with leading(group) as finish:
        result = train(spread(executor, group))
        finish((result, space.flatten(space.rank)))
        return result


def _share_of(
    cohort: Cohort, executor: Executor, order: _Order, group: Group
) -> tuple[Tensor, tuple[float, ...]]:
    """Train this process's clients of a round; the sum and the norms of all processes' clients."""
    mine = order.round.clients[group.rank :: group.size]
    part = ClippedSum(len(order.round.start), order.bound, keep_norms=order.keep_norms)
    executor(cohort, replace(order.round, clients=mine), part)
    norms = group.gathered(part.norms) if order.keep_norms else ()
    return group.total(part.value), norms
