"""The linear program over lattice laws with one set of limits at the full shift, one at all others.

Like ``_lp_lattice``, whose certificate it uses; it need not be solved well to be right.

Symbols: as in ``_lp_certificate``; ``n`` points 0, h, 2h, … of the lattice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy import sparse

from dpmech.noise import Floats
from optimizer_search._lp_certificate import Events, Ints, certified_bound, lattice_cost
from optimizer_search._lp_interior import Program, Solution, solve
from optimizer_search.cost import Cost

_TOLERANCE = 1e-3


@dataclass(frozen=True, kw_only=True, eq=False)
class TwoLimits:
    """Least cost of a law with H_gamma <= ``full`` at the shift s, <= ``short`` at shorter ones.

    One of each limit a gamma; ``m`` lattice points a sensitivity, ``extent`` sensitivities of them.
    """

    gammas: Sequence[float]
    full: Sequence[float]
    short: Sequence[float]
    cost: Cost
    sensitivity: float
    m: int
    extent: float

    @property
    def _points(self) -> int:
        return int(np.ceil(self.extent * self.m)) + 1

    @cached_property
    def _events(self) -> tuple[Ints, Ints]:
        """(shifts, landings) of all events of which the source is nearer to 0 than the landing."""
        far = self._points - 1
        x = np.tile(np.arange(-far, far + 1), (self.m, 1))
        t = np.broadcast_to(np.arange(1, self.m + 1)[:, None], x.shape)
        kept = np.abs(x - t) < np.abs(x)
        return t[kept], x[kept]

    @cached_property
    def solution(self) -> Solution:
        """The program's solution."""
        n, (t, x), j = self._points, self._events, len(self.gammas)
        source, landing = _picked(np.abs(x - t), n), _picked(np.abs(x), n)
        limits = np.repeat(self.short, self.m)
        limits[self.m - 1 :: self.m] = self.full
        weights = np.append(1.0, np.full(n - 1, 2.0))
        program = Program(
            costs=weights * lattice_cost(self.cost, self.sensitivity / self.m, n),
            weights=weights,
            rows=sparse.vstack([source - gamma * landing for gamma in self.gammas]).tocsr(),
            shares=sparse.block_diag([_picked(t - 1, self.m)] * j).tocsr(),
            limits=limits,
            start=self._start,
        )
        return solve(program, _TOLERANCE)

    @property
    def _start(self) -> Floats:
        x = np.linspace(0.0, 1.0, self._points)
        return np.exp(-3 * x) - np.exp(-3.5)

    @cached_property
    def bound(self) -> float:
        """The certified lower bound on the cost of any law."""
        t, x = self._events
        parts = np.split(self.solution.y, len(self.gammas))
        events = list[Events]()
        for gamma, full, short, y in zip(self.gammas, self.full, self.short, parts, strict=True):
            for delta, chosen in ((full, t == self.m), (short, t < self.m)):
                if np.any(chosen):
                    part = (t[chosen], x[chosen], y[chosen])
                    events.append(_events_of(gamma, delta, part))
        return certified_bound(events, self.cost, self.sensitivity, self.m)


def _events_of(gamma: float, delta: float, part: tuple[Ints, Ints, Floats]) -> Events:
    t, x, weight = part
    return Events(gamma=gamma, delta=delta, t=t, x=x, weight=weight)


def _picked(column: Ints, n: int) -> Any:
    """The matrix whose row r is 1 in the column given for it."""
    row = np.arange(len(column))
    return sparse.csr_array((np.ones(len(column)), (row, column)), shape=(len(column), n))
