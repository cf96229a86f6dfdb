"""Audit the training loop itself: its own rounds, run with and without a canary.

The auditor sees what leaves every round, knows all clients but the canary, and knows what the
canary would send: the adversary that the proof is about. Nothing is evaluated and nothing written.

Symbols: C the clip, u what the canary alone would move, d coordinates of a round.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from accountants.empirical import FEWEST, EmpiricalBound, audit_one_run, bound_from_outputs
from dpmech.noise import Floats
from fl_integration.accounting import Spending
from fl_integration.checkpoint import Checkpoint, TrainState
from fl_integration.clipping import ClippedSum
from fl_integration.cohort import Cohort, Executor, Round
from fl_integration.config import FederatedConfig
from fl_integration.federate import advance
from fl_integration.options import checked_whole
from fl_integration.run import Run
from fl_integration.sampler import Randomness
from fl_integration.server import ServerState

LOUD = 1e3  # how many clips long a canary is: the clip always cuts it
KEPT = 64  # sums of cohorts that are kept


@dataclass(frozen=True, kw_only=True)
class TrainingAudit:
    """What a loop was shown to lose, beside what its ledger says that it loses at most."""

    bound: EmpiricalBound
    epsilon: float

    @property
    def refuted(self) -> bool:
        """Whether the ledger's epsilon is wrong, at the bound's confidence."""
        return self.bound.refutes(self.epsilon)


def audit_training(
    run: Run, *, client: int, runs: int, confidence: float = 0.95, seed: int
) -> TrainingAudit:
    """Train a run ``runs`` times with a client and ``runs`` times without, and tell them apart.

    The attack learns a linear score of three figures: how far the releases lie along u, how long
    they are, and which share of them is exactly 0.

    **Guarantees**: those of `accountants.empirical.bound_from_outputs`, at the plan's delta; a
    correct loop is refuted with probability 1 - confidence at most.

    Arguments:
        run: `Run.prepare(...)`, of one or a few rounds. It should have an executor whose sum
            depends on the cohort and the weights alone (they all do): sums are remembered.
        client: the canary; its own texts, or with `canary_sum` a delta as loud as can be.
        runs: of each; a round takes about a millisecond where its sum is remembered.
        seed: of cohorts and noise, whatever the run's own noise_seed.

    Raises:
        ValueError: for a run without a plan, with noise in the silos, or of no such client.

    Source: the adversary of Nasr et al. (2021) that sees every release and plants a gradient.
    """
    _checked(run, [client])
    checked_whole("runs", runs, least=FEWEST)
    seeds = np.random.default_rng(seed).integers(2**62, size=(2, runs))
    watched = replace(run, executor=_Remembered(run.executor))
    outputs = [
        [_figures(_Watched.of(watched, absent, one), client) for one in row]
        for absent, row in zip(((client,), ()), seeds.tolist(), strict=True)
    ]
    delta = _spending(run).plan.target.delta
    bound = bound_from_outputs(*outputs, delta=delta, confidence=confidence, seed=seed)
    return _audited(watched, bound)


def audit_training_once(
    run: Run, *, clients: Sequence[int], guesses: int, confidence: float = 0.95, seed: int
) -> TrainingAudit:
    """Train a run once, each of many canaries in it or not by a fair coin, and guess which were.

    **Guarantees**: those of `accountants.empirical.audit_one_run`, at the plan's delta.

    Arguments:
        run: as for `audit_training`. clients: the canaries; with `canary_sum` each has coordinates
            of its own. guesses: how many of them are guessed, the surest on both sides.

    Raises:
        ValueError: as `audit_training`, and for more guesses than canaries.

    Source: Steinke, Nasr & Jagielski (2023), §6, with the gradient canaries of Nasr et al. (2023).
    """
    _checked(run, clients)
    watched = replace(run, executor=_Remembered(run.executor))

    def scores(included: NDArray[np.bool_], rng: np.random.Generator) -> Floats:
        absent = [client for client, was in zip(clients, included, strict=True) if not was]
        steps = _Watched.of(watched, absent, int(rng.integers(2**62))).steps()
        return np.sum([[step.along(client) for client in clients] for step in steps], axis=0)

    delta = _spending(run).plan.target.delta
    bound = audit_one_run(
        scores,
        canaries=len(clients),
        guesses=guesses,
        delta=delta,
        confidence=confidence,
        seed=seed,
    )
    return _audited(watched, bound)


def canary_sum(executor: Executor, clients: Sequence[int]) -> Executor:
    """An executor in which some clients send a canary instead of what their texts would move.

    A canary has the same norm in every tensor that a round trains, `LOUD` clips in all; of several,
    each has coordinates of its own. It passes through the clip of the sum like any delta.

    Arguments:
        executor: for the other clients. clients: the canaries, the more the fewer coordinates each.
    """
    places = {client: place for place, client in enumerate(clients)}

    def run(cohort: Cohort, round: Round, total: ClippedSum) -> None:
        sent = [client for client in round.clients.tolist() if client in places]
        others = round.clients[~np.isin(round.clients, list(places))]
        executor(cohort, replace(round, clients=others), total)
        for client in sent:
            total.add(_canary(cohort, round, places[client], len(places)))

    return run


def _canary(cohort: Cohort, round: Round, place: int, places: int) -> Tensor:
    """Every so many-th coordinate that the round trains, the same norm in every tensor."""
    delta = torch.zeros(len(round.start), dtype=torch.float64)
    kept = torch.arange(len(delta)) if round.trained is None else round.trained.nonzero().flatten()
    if len(kept) < places:
        raise ValueError(f"Expected at most {len(kept)} canaries, the coordinates, got {places}.")
    delta[kept[place::places]] = 1.0
    parts = delta.split([shape.numel() for shape in cohort.space.shapes(round.rank)])
    even = torch.cat([part / part.norm().clamp(min=1.0) for part in parts])
    return even * (LOUD * (cohort.config.clip or 1.0) / even.norm())


@dataclass(frozen=True, kw_only=True, eq=False)
class _Step:
    """One round that was taken: what left it, of the coordinates that it trains; the state after.

    clip: of the round. released: (d,).
    """

    run: Run
    round: Round
    clip: float | None
    released: Tensor
    after: TrainState

    def along(self, client: int) -> float:
        """How far the release lies along what a client alone would move."""
        total = ClippedSum(len(self.round.start), self.clip)
        alone = replace(self.round, clients=np.asarray([client], dtype=np.int64))
        self.run.executor(self.run.cohort, alone, total)
        u = total.value[self.round.kept]
        length = float(torch.linalg.vector_norm(u))
        return float(u @ self.released) / length if length else 0.0

    def figures(self, client: int) -> Floats:
        """Along u, ln of the length, share of zeros."""
        length = float(torch.linalg.vector_norm(self.released))
        zeros = float((self.released == 0).double().mean())
        return np.asarray([self.along(client), math.log(length) if length else 0.0, zeros])


@dataclass(frozen=True, kw_only=True, eq=False)
class _Watched(Run):
    """A run without some of its clients; ``taken`` is the last round that was drawn."""

    absent: tuple[int, ...]
    taken: list[tuple[Round, Tensor]] = field(default_factory=list[tuple[Round, Tensor]])

    @classmethod
    def of(cls, run: Run, absent: Sequence[int], seed: int) -> _Watched:
        """The run with cohorts and noise of a seed."""
        known = {item.name: getattr(run, item.name) for item in fields(Run)}
        randomness = Randomness(seed=run.config.seed, secret_seed=seed)
        known["cohort"] = replace(run.cohort, randomness=randomness)
        return cls(**known, absent=tuple(absent))

    def drawn(self, state: TrainState) -> tuple[Round, Tensor]:
        """As in the run: a Poisson sample less some clients is one of the others."""
        round, index = super().drawn(state)
        present = ~np.isin(round.clients, self.absent)
        round = replace(round, clients=round.clients[present])
        self.taken[:] = [(round, index)]
        return round, index

    def steps(self) -> Iterator[_Step]:
        """All rounds of the run, each by the loop's own `advance`."""
        space, checkpoint = self.cohort.space, Checkpoint(None, {})
        server = ServerState.start(space.flatten(space.rank))
        before = _spending(self).before
        state = TrainState(round=0, server=server, ledger=before, clip=self.config.clip)
        while state.round < self.config.rounds:
            after = advance(self, state, checkpoint)
            ((round, index),) = self.taken
            mean = _mean(state.server, after.server, self.config)[index][round.kept]
            yield _Step(run=self, round=round, clip=state.clip, released=mean, after=after)
            state = after


def _mean(before: ServerState, after: ServerState, config: FederatedConfig) -> Tensor:
    """The released mean of a round (D,), out of the server's memory of means."""
    weight = 1 - config.momentum if config.server_rule == "adam" else 1.0
    return (after.first - config.momentum * before.first) / weight


def _figures(run: _Watched, client: int) -> Floats:
    """The figures of a run, summed over its rounds."""
    return np.sum([step.figures(client) for step in run.steps()], axis=0)


class _Remembered:
    """An executor that keeps the sums of the last cohorts."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._sums: dict[tuple[object, ...], Tensor] = {}

    def __call__(self, cohort: Cohort, round: Round, total: ClippedSum) -> None:
        """Add the sum of a round's clients."""
        start = hash(round.start.numpy().tobytes())
        key = (round.index, round.rank, round.clients.tobytes(), start, total.bound)
        if key not in self._sums:
            fresh = ClippedSum(len(round.start), total.bound)
            self._executor(cohort, round, fresh)
            if len(self._sums) >= KEPT:
                self._sums.pop(next(iter(self._sums)))
            self._sums[key] = fresh.value
        total.absorb(self._sums[key])


def _checked(run: Run, clients: Sequence[int]) -> None:
    """Refuse what has no claim to audit, or another adversary."""
    _spending(run)
    if run.config.silos is not None:
        raise ValueError(f"Expected noise at the server to audit, got {run.config.silos}.")
    strangers = sorted(c for c in clients if not 0 <= c < run.clients)
    if strangers or len(set(clients)) < len(clients):
        raise ValueError(
            f"Expected different canaries among the clients 0..{run.clients - 1}, got {clients}."
        )


def _spending(run: Run) -> Spending:
    if run.spending is None:
        raise ValueError("Expected a run with a privacy plan: without one there is no claim.")
    return run.spending


def _audited(run: Run, bound: EmpiricalBound) -> TrainingAudit:
    """The bound beside what the ledger of a finished run costs."""
    *_, last = _Watched.of(run, (), 0).steps()
    return TrainingAudit(bound=bound, epsilon=_spending(run).epsilon(last.after.ledger))
