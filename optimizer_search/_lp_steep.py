"""The lower bound where the best law is far narrower than the sensitivity (large epsilon).

Nearly all mass is then in a core |y| <= J about 0, and what costs is the pedestal that must cover
the core wherever a shift takes it. Events are chosen accordingly: after the full shift, all
landings; after shorter ones, only landings of the core. Between fine points near whole
sensitivities the weights on landings are interpolated between a few nodes, linearly in the *cost*
of the landing, so that what the pedestal has to pay stays level between nodes. A program with so
few unknowns finds the weights; the certificate is taken over all points of the fine lattice.

Symbols: as in ``_lp_lattice``; ``J`` points of the core on either side, ``y`` source in the core,
``k`` node of landings or of shifts, ``T_k`` its hat.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy import sparse

from dpmech.noise import Floats
from optimizer_search._lp_certificate import Events, Ints, certified_bound, lattice_cost
from optimizer_search._lp_interior import Program, Solution, solve
from optimizer_search._lp_lattice import Constraint, reach
from optimizer_search.cost import Cost

_COARSE = 9


@dataclass(frozen=True, kw_only=True, eq=False)
class Steep:
    """The program for one constraint on the lattice of ``m`` points a sensitivity, core ``J``."""

    constraint: Constraint
    cost: Cost
    sensitivity: float
    m: int
    J: int
    tolerance: float = 1e-4

    @cached_property
    def _offsets(self) -> Ints:
        """Nodes from 0 up to the sensitivity: every point near both ends, a few between."""
        near = np.arange(self.J + 1)
        between = np.round(np.linspace(self.J + 1, self.m - self.J - 1, _COARSE)).astype(np.int64)
        return np.unique(np.concatenate([near, between, self.m - near[1:]]))

    @cached_property
    def _nodes(self) -> Ints:
        periods = math.ceil(reach(self.constraint)) + 2
        all_of_them = (np.arange(periods)[:, None] * self.m + self._offsets).ravel()
        return np.append(all_of_them, periods * self.m)

    @property
    def _far(self) -> int:
        return int(self._nodes[-1])

    @cached_property
    def _signed(self) -> Ints:
        return np.concatenate([-self._nodes[:0:-1], self._nodes])

    def _index(self, x: Ints) -> Ints:
        """Which node the point (or its mirror image) is."""
        return np.searchsorted(self._nodes, np.abs(x))

    @cached_property
    def _level(self) -> Floats:
        """The coordinate to interpolate in, at all points 0 … far: the cost, rising strictly."""
        value = lattice_cost(self.cost, self.sensitivity / self.m, self._far + 1)
        return value + 1e-9 * value[-1] * np.linspace(0.0, 1.0, len(value))

    @cached_property
    def _landings(self) -> Ints:
        """Nodes on which all sources land after the full shift."""
        x = self._signed
        return x[(np.abs(x - self.m) <= self._far) & (np.abs(x - self.m) != np.abs(x))]

    @cached_property
    def _inner(self) -> Ints:
        """Nodes strictly between 0 and the sensitivity."""
        return self._offsets[1:]

    @cached_property
    def _hats(self) -> Floats:
        """T_k(x) at x = 1 … m - 1, shape (nodes, m - 1)."""
        at = self._level[1 : self.m]
        units = np.eye(len(self._inner))
        return np.stack([np.interp(at, self._level[self._inner], unit) for unit in units])

    @cached_property
    def _pairs(self) -> tuple[Ints, Ints]:
        """(k, y) of all landings of the core on inner nodes after shifts of 1 … m - 1."""
        k, y = np.meshgrid(np.arange(len(self._inner)), np.arange(-self.J, self.J + 1))
        t = self._inner[k] - y
        kept = (t >= 1) & (t < self.m)
        return k[kept], y[kept]

    @cached_property
    def _program(self) -> Program:
        gamma, delta = self.constraint
        (k, y), n = self._pairs, len(self._nodes)
        whole, short = len(self._landings), len(k)
        size = self._hats.sum(axis=1)
        gain = np.concatenate([np.ones(whole), size[k]])
        source = np.concatenate([self._index(self._landings - self.m), self._index(y)])
        landing = np.concatenate([self._index(self._landings), self._index(self._inner[k])])
        row = np.arange(whole + short)
        values = np.concatenate([gain, np.full(len(row), -gamma)])
        where = np.tile(row, 2), np.concatenate([source, landing])
        weights = np.append(1.0, np.full(n - 1, 2.0))
        return Program(
            costs=weights * self._level[self._nodes],
            weights=weights,
            rows=sparse.coo_array((values, where), shape=(len(row), n)).tocsr(),
            shares=self._shares(whole),
            limits=delta * np.append(1.0, self._rises(np.arange(1, self.m)).sum(axis=0)),
            start=self._start,
        )

    @cached_property
    def _kinks(self) -> Floats:
        """Levels of the shifts at which mu may turn up: 1 and where the wide hats meet."""
        between = self._inner[(self._inner > self.J) & (self._inner < self.m - self.J)]
        return self._level[np.append(1, between)]

    def _rises(self, t: Ints) -> Floats:
        """mu's parts at shifts ``t``, shape (len(t), parts).

        The rise since each kink, on to the end, or to the last kink and from there level or down to
        0. All turn up only at kinks: where weights between two landings are chords of mu, they are
        then within what is paid for, but for the rises that begin at the last kink.
        """
        level, last, end = self._level[t][:, None], self._kinks[-1], self._level[self.m]
        risen = np.maximum(level - self._kinks, 0.0) / end
        capped = np.maximum(np.minimum(level, last) - self._kinks[:-1], 0.0) / end
        down = np.clip((end - level) / (end - last), 0.0, 1.0)
        return np.concatenate([capped, capped * down, down, np.ones_like(level), risen], axis=1)

    def _shares(self, whole: int) -> Any:
        """Rows to what pays for them: the full shift, and the parts of mu at shorter ones."""
        k, y = self._pairs
        x, t, last = self._inner[k], self._inner[k] - y, self.m - self.J - 1
        rises = self._rises(t)
        # A wide hat also reaches shifts below the one its node is for: it must not use the rise
        # that comes after the last wide one.
        rises[(x <= last) & (t > last), -1] = 0.0
        return sparse.block_diag([np.ones((whole, 1)), sparse.csr_array(rises)]).tocsr()

    @property
    def _start(self) -> Floats:
        gamma, delta = self.constraint
        x = self._nodes / self.m
        falling = np.exp(-0.9 * math.log(gamma) * x) + 1e-6 * min(delta, 0.1) / len(x)
        return falling * np.gradient(x)

    @cached_property
    def solution(self) -> Solution:
        """The program's solution."""
        return solve(self._program, self.tolerance)

    @cached_property
    def bound(self) -> float:
        """The certified lower bound on the cost of any law."""
        events = [self._whole_events(), self._short_events()]
        return certified_bound(events, self.cost, self.sensitivity, self.m)

    def _events(self, t: Ints, x: Ints, weight: Floats) -> Events:
        gamma, delta = self.constraint
        return Events(gamma=gamma, delta=delta, t=t, x=x, weight=weight)

    def _whole_events(self) -> Events:
        """Weights after the full shift, at all points of the lattice."""
        value = np.zeros(len(self._signed))
        landed = np.searchsorted(self._signed, self._landings)
        value[landed] = self.solution.y[: len(landed)]
        x = np.arange(self.m - self._far, self._far + 1)
        signed = np.concatenate([-self._level[:0:-1], self._level])
        weight = np.interp(signed[x + self._far], signed[self._signed + self._far], value)
        return self._events(np.full(len(x), self.m), x, weight)

    def _short_events(self) -> Events:
        """The same after shorter shifts: only landings of the core."""
        (k, y), J = self._pairs, self.J
        by_node = np.zeros((2 * J + 1, len(self._inner)))
        by_node[y + J, k] = self.solution.y[len(self._landings) :]
        weight = by_node @ self._hats
        x = np.broadcast_to(np.arange(1, self.m), weight.shape)
        t = x - np.arange(-J, J + 1)[:, None]
        kept = (t >= 1) & (t < self.m)
        return self._events(t[kept], x[kept], weight[kept])
