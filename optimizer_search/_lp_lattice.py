"""The linear program over laws on a lattice's points, or cells, with all shifts by its steps.

Landings beyond the last point are left out, which only helps the law: a relaxation. Its solution,
each point's mass spread over its cell, is a law that keeps the constraint at *every* shift, because
H is linear in t between multiples of the cell; its multipliers are the weights of a certificate.

Symbols: ``h`` lattice step, ``m = s/h``, ``p`` masses of 0 and of each of ±h, ±2h, …, ``t`` shift
in steps, ``x`` landing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy import sparse

from dpmech.noise import Floats
from optimizer_search._lp_certificate import (
    Events,
    Ints,
    cell_cost,
    certified_bound,
    counts,
    folded,
    lattice_cost,
)
from optimizer_search._lp_interior import Program, Solution, solve
from optimizer_search.cost import Cost

# Excess over delta (relative) up to which a law is within a constraint.
_WITHIN = 1e-4
# H_gamma <= delta, gamma >= 1
Constraint = tuple[float, float]


def reach(constraint: Constraint) -> float:
    """How far, in sensitivities, the truncated Laplace law of the constraint extends.

    Geng et al. (2018): A = ln(1 + (gamma - 1)/(2 delta))/ln gamma, and 1/(2 delta) at gamma = 1.
    """
    gamma, delta = constraint
    if gamma - 1 < 1e-12:
        return 1 / (2 * delta)
    return float(np.log1p((gamma - 1) / (2 * delta)) / np.log(gamma))


def extent(constraints: Sequence[Constraint]) -> float:
    """How far, in sensitivities, the program goes."""
    return max(reach(c) + _beyond(c) for c in constraints)


def _beyond(constraint: Constraint) -> float:
    """How far the program has to look beyond the reach, for all weights to have fallen to 0.

    On landings at distance x the best weights fall by about 2 (x - reach) a sensitivity, from the
    price of delta, 2 reach/(gamma - 1) or, towards gamma = 1, reach².
    """
    far = reach(constraint)
    return 2 + min(far, float(np.sqrt(2 * far / max(constraint[0] - 1, 1e-12))))


@dataclass(frozen=True, kw_only=True, eq=False)
class Lattice:
    """The program of a cost under ``constraints`` at all shifts up to ``sensitivity``.

    ``centred``: 0 is a point; otherwise the points are the cells between them (of usefulness only).
    ``extra``: sensitivities that it goes farther than usual.
    ``inward``: whether with the events that land nearer to 0 than they come from, which hardly ever
    exceed, as the best laws nearly fall.
    """

    constraints: Sequence[Constraint]
    cost: Cost
    sensitivity: float
    m: int
    centred: bool = True
    extra: float = 0.0
    inward: bool = True
    tolerance: float = 2e-4

    @property
    def step(self) -> float:
        """h."""
        return self.sensitivity / self.m

    @cached_property
    def points(self) -> int:
        """How many points or cells: so many that what ends there costs more than it saves."""
        return int(np.ceil((extent(self.constraints) + self.extra) * self.m)) + 1

    @cached_property
    def events(self) -> tuple[Ints, Ints]:
        """(shifts, landings) of the rows of one constraint.

        Sources that land as far from 0 as they were cannot exceed, and are left out.
        """
        far = self.points - 1
        x = np.tile(np.arange(-far - (not self.centred), far + 1), (self.m, 1))
        t = np.broadcast_to(np.arange(1, self.m + 1)[:, None], x.shape)
        source, landing = self._folded(x - t), self._folded(x)
        moved = source != landing if self.inward else source < landing
        kept = (source <= far) & moved
        return t[kept], x[kept]

    def _folded(self, x: Ints) -> Ints:
        return folded(x, centred=self.centred)

    @property
    def counts(self) -> Floats:
        """How many points of the line the masses of the half line are of."""
        return counts(self.points, centred=self.centred)

    @property
    def _costs(self) -> Floats:
        if self.centred:
            return lattice_cost(self.cost, self.step, self.points)
        return cell_cost(self.cost, self.sensitivity, self.m, self.points)

    @cached_property
    def solution(self) -> Solution:
        """The program's solution."""
        t, x = self.events
        program = lattice_program(
            [gamma for gamma, _ in self.constraints],
            np.repeat([delta for _, delta in self.constraints], self.m),
            (t, self._folded(x - t), self._folded(x)),
            costs=self._costs,
            counts=self.counts,
            start=self._start,
        )
        return solve(program, self.tolerance)

    @property
    def within(self) -> bool:
        """Whether the solution is within the constraints, with all events."""
        return self.excess <= _WITHIN

    @cached_property
    def excess(self) -> float:
        """By what share of delta the solution is beyond its worst constraint, with all events."""
        p = self.solution.p
        p = np.concatenate([p[: 0 if self.centred else None : -1], p, np.zeros(self.m)])
        return max(
            float(np.sum(np.maximum(p[: len(p) - t] - gamma * p[t:], 0.0))) / delta - 1
            for gamma, delta in self.constraints
            for t in range(1, self.m + 1)
        )

    @property
    def _start(self) -> Floats:
        """A geometric law, falling a little more slowly than the constraints ask for."""
        gamma, delta = self.constraints[0]
        x = np.arange(self.points) / self.m
        return np.exp(-0.9 * np.log(gamma) * x) + 1e-3 * min(delta, 0.1) / len(x)

    @cached_property
    def bound(self) -> float:
        """The certified lower bound on the cost of any law."""
        t, x = self.events
        weights = np.split(self.solution.y, len(self.constraints))
        pairs = zip(self.constraints, weights, strict=True)
        events = [Events(gamma=g, delta=d, t=t, x=x, weight=w) for (g, d), w in pairs]
        return certified_bound(events, self.cost, self.sensitivity, self.m, centred=self.centred)


def lattice_program(
    gammas: Sequence[float],
    limits: Floats,
    events: tuple[Ints, Ints, Ints],
    *,
    costs: Floats,
    counts: Floats,
    start: Floats,
) -> Program:
    """The program over masses on half a lattice: ``costs``, ``counts`` and ``start`` of its points.

    ``events``: (shifts, sources, landings) of the rows of each gamma; ``limits`` of each gamma at
    all shifts 1 … m, shape (gammas times m,).
    """
    t, source, landing = events
    shares = _picked(t - 1, len(limits) // len(gammas))
    come, gone = _picked(source, len(costs)), _picked(landing, len(costs))
    return Program(
        costs=counts * costs,
        weights=counts,
        rows=sparse.vstack([come - gamma * gone for gamma in gammas]).tocsr(),
        shares=sparse.block_diag([shares] * len(gammas)).tocsr(),
        limits=limits,
        start=start,
    )


def _picked(column: Ints, n: int) -> Any:
    """The matrix whose row r is 1 in the column given for it."""
    row = np.arange(len(column))
    return sparse.csr_array((np.ones(len(column)), (row, column)), shape=(len(column), n))
