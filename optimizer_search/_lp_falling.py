"""The linear program over laws whose density falls: cells of any width, and one shift.

A density that falls needs the shift s alone (mathematics.md §3). The cells repeat from one
sensitivity to the next, and mirrored within it, so that the shift takes cells to cells; they are
narrow near whole sensitivities, where the best laws have their steps, and wide between. Of
usefulness one ends at the parameter, where what counts as near ends.

Symbols: ``s`` sensitivity, ``p`` masses of the cells on x > 0, ``f`` density.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy import sparse

from dpmech import Staircase
from dpmech.noise import Floats
from dpmech.tabulated import Tabulated
from optimizer_search._lp_certificate import Ints
from optimizer_search._lp_interior import Program, Solution, solve
from optimizer_search._lp_lattice import Constraint, reach
from optimizer_search.cost import Cost

# Narrow cells per expected size of the noise, and how many such sizes they extend from 0.
_PER_SIZE, _SIZES = 20, 3.0
_GROWTH, _WIDEST = 1.3, 0.05
_SPIKE = (1 / 32, 1 / 8, 1 / 2, 1.0)
_LEAST_EPSILON = 1e-3
_SAME = 1e-9


def expected_size(constraint: Constraint, cost: Cost) -> float:
    """About how large the best noise is, in sensitivities: to choose resolutions by."""
    gamma, delta = constraint
    epsilon = max(math.log(gamma), _LEAST_EPSILON)
    if cost.name == "variance":
        size = math.sqrt(Staircase.least_variance(epsilon).variance)
    else:
        size = Staircase.least_mean_abs(epsilon).mean_abs
    # A delta above epsilon allows a window of width 1/delta, and a spike of mass delta at 0.
    return size * (1 - delta) / (1 + 4 * delta * size)


def offsets(fine: float, extent: float) -> Floats:
    """Edges from 0 to 1, ``fine`` cells near both ends and wider ones between, mirrored.

    The first cells are finer still: the best laws of a large delta have a spike at 0.
    """
    if fine >= 0.25:
        return np.linspace(0.0, 1.0, math.ceil(1 / fine) + 1)
    edges, width = [0.0, *(share * fine for share in _SPIKE)], fine
    while edges[-1] < 0.5:
        edges.append(edges[-1] + width)
        width = fine if edges[-1] < extent else min(width * _GROWTH, max(_WIDEST, fine))
    half = np.array(edges) * (0.5 / edges[-1])
    return np.concatenate([half, 1 - half[-2::-1]])


def with_edges_at(place: float, edges: Floats) -> Floats:
    """Edges from 0 to 1 with one at ``place`` (in sensitivities, mod 1) and its mirror image.

    They take the place of edges next to them, which would leave slivers for cells.
    """
    place %= 1.0
    added = np.array([place, 1 - place])
    sliver = 0.1 * float(np.min(np.diff(edges)))
    if min(added) <= sliver:
        return edges if min(added) <= _SAME else np.unique(np.concatenate([edges, added]))
    apart = np.min(np.abs(edges[:, None] - added), axis=1) > sliver
    return np.unique(np.concatenate([edges[apart], added]))


@dataclass(frozen=True, kw_only=True, eq=False)
class Falling:
    """The cheapest falling law on such cells, for one constraint H_gamma <= delta."""

    constraint: Constraint
    cost: Cost
    sensitivity: float
    tolerance: float = 1e-4

    @cached_property
    def _period(self) -> Floats:
        size = expected_size(self.constraint, self.cost)
        edges = offsets(size / _PER_SIZE, _SIZES * size)
        if self.cost.parameter is None:
            return edges
        return with_edges_at(self.cost.parameter / self.sensitivity, edges)

    @cached_property
    def edges(self) -> Floats:
        """Edges of the cells, in sensitivities."""
        periods = np.arange(math.ceil(reach(self.constraint)) + 2)
        return np.append((periods[:, None] + self._period[:-1]).ravel(), periods[-1] + 1.0)

    @cached_property
    def solution(self) -> Solution:
        """The program's solution."""
        widths = np.diff(self.edges)
        n = len(widths)
        costs = self.cost.mean_on(self.sensitivity * self.edges)
        moved, falls = self._moved(n), _falls(widths)
        program = Program(
            costs=2 * costs,
            weights=np.full(n, 2.0),
            rows=sparse.vstack([moved, falls]).tocsr(),
            shares=sparse.csr_array(np.ones((moved.shape[0], 1))),
            limits=np.array([self.constraint[1]]),
            start=self._start(widths),
        )
        return solve(program, self.tolerance)

    def _moved(self, n: int) -> Any:
        """Rows p(source) - gamma p(landing) of the cells that the shift takes away from 0."""
        period = len(self._period) - 1
        landing = np.arange(n + period)
        source: Ints = landing - period
        source = np.where(source < 0, -source - 1, source)
        away = source < landing
        landing, source = landing[away], source[away]
        row, inside = np.arange(len(landing)), landing < n
        values = np.concatenate([np.ones(len(row)), np.full(int(inside.sum()), -self._gamma)])
        where = np.concatenate([row, row[inside]]), np.concatenate([source, landing[inside]])
        return sparse.coo_array((values, where), shape=(len(row), n)).tocsr()

    @property
    def _gamma(self) -> float:
        return self.constraint[0]

    def _start(self, widths: Floats) -> Floats:
        """A law that falls strictly, a little more slowly than the constraint asks for."""
        middle = (self.edges[1:] + self.edges[:-1]) / 2
        least = 1e-3 * min(self.constraint[1], 0.1) * (2 - middle / self.edges[-1])
        return widths * (np.exp(-0.9 * math.log(self._gamma) * middle) + least)

    @cached_property
    def law(self) -> Tabulated:
        """The solution as a law: its density made to fall where it rises by the solver's error."""
        density = np.minimum.accumulate(np.maximum(self.solution.p, 0.0) / np.diff(self.edges))
        # Steps down by less than the rounding of the cells' widths might be taken for rises.
        starts = np.flatnonzero(np.append(True, density[1:] < density[:-1] * (1 - _SAME)))
        masses = np.add.reduceat(density * np.diff(self.edges), starts)
        edges = self.sensitivity * np.append(self.edges[starts], self.edges[-1])
        return Tabulated(edges=tuple(edges), masses=tuple(masses / masses.sum()))

    @property
    def value(self) -> float:
        """The law's cost (which meets the constraint up to the solver's error)."""
        return self.cost.of(self.law)

    @cached_property
    def core(self) -> float:
        """How far from 0, in sensitivities, the density is above that between the steps."""
        density = self.solution.p / np.diff(self.edges)
        inside = self.edges[1:] <= 0.5
        if not np.any(inside):
            return 0.5
        level = density[inside][-1] * math.sqrt(self._gamma)
        above = np.flatnonzero(density[inside] > level)
        return float(self.edges[above[-1] + 1]) if len(above) else 0.5


def _falls(widths: Floats) -> Any:
    """Hard rows f(next) - f(cell) <= 0, in units of the cell's mass."""
    n = len(widths)
    row = np.arange(n - 1)
    values = np.concatenate([widths[:-1] / widths[1:], -np.ones(n - 1)])
    where = np.concatenate([row, row]), np.concatenate([row + 1, row])
    return sparse.coo_array((values, where), shape=(n - 1, n)).tocsr()
