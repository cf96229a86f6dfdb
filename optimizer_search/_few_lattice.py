"""The linear program over lattice laws with one set of limits at the full shift, one at all others.

Like ``_lp_lattice``, whose certificate it uses; it need not be solved well to be right.

Symbols: as in ``_lp_certificate``; ``n`` points 0, h, 2h, … of the lattice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dpmech.noise import Floats
from optimizer_search._lp_certificate import Events, Ints, certified_bound, counts, lattice_cost
from optimizer_search._lp_interior import Solution, solve
from optimizer_search._lp_lattice import lattice_program
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
        n, (t, x) = self._points, self._events
        limits = np.repeat(self.short, self.m)
        limits[self.m - 1 :: self.m] = self.full
        program = lattice_program(
            self.gammas,
            limits,
            (t, np.abs(x - t), np.abs(x)),
            costs=lattice_cost(self.cost, self.sensitivity / self.m, n),
            counts=counts(n, centred=True),
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
