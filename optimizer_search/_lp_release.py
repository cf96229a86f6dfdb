"""Which linear program for which release: its laws, and its bound.

Falling laws come first: their cells are narrow where it matters, and they are proved in no time.
Where a large delta makes a law that need not fall clearly better, the lattice's law follows. The
bound is the lattice's too, except where the noise is so much narrower than the sensitivity that no
lattice of all shifts is fine enough: there a program over the core is.

Of usefulness, P(|X| <= b), the lattice is one of cells, and the coarsest of which one ends at b is
as good as any: its value is what the best law of all costs, and its law, spread, costs no more.

Symbols: ``m`` lattice points a sensitivity, ``J`` points of the core on either side of 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np

from dpmech.tabulated import Tabulated
from optimizer_search._lp_falling import Falling, expected_size
from optimizer_search._lp_lattice import Constraint, Lattice, extent
from optimizer_search._lp_steep import Steep
from optimizer_search._renyi_bound import decimal
from optimizer_search.cost import Cost

# Lattice points per expected size of the noise: of a variance the bound loses h²/4, of others less.
_PER_SIZE, _STEEP_PER_SIZE = {"variance": 10.0}, {"variance": 17.0}
_USUAL = 12.0
# The finest lattice under all shifts, and how many times finer it should be where it is of no use.
_FINEST, _COARSEST = 112, 2.3
# The gamma above which the density falls so much from step to step that there is a core.
_STEEPEST = 100.0
# Points of a lattice times shifts times constraints, at most.
_EVENTS = 60_000
# Finer lattices are tried with half of the events first.
_SMALL = 50
_FINEST_STEEP = 20_000
# The core is taken by this factor wider than where the density is above that between steps.
_CORE, _WIDEST_CORE = 1.35, 100
# Lattices go farther where their laws exceed delta by more than this share, by so many points.
_TINY, _WIDEST = 1e-7, 4000
# Laws are made for a gamma (and ten times that, a delta) smaller by so much (relative), for the
# rounding of solver and proof.
_SAFE = 1e-7
# Gaps at which no better law is looked for, and accuracies of the lattice's programs.
_ENOUGH, _USUAL_GAP = {"usefulness": 1e-6}, 0.004
_TOLERANCE, _USUAL_TOLERANCE = {"usefulness": 1e-6}, 2e-4


@dataclass(frozen=True, kw_only=True, eq=False)
class Release:
    """One release of sensitivity ``sensitivity`` under the constraints.

    ``cells``: m, where the lattice is not to be chosen from the problem.
    """

    constraints: tuple[Constraint, ...]
    cost: Cost
    sensitivity: float
    cells: int | None = None

    @cached_property
    def _size(self) -> float:
        return max(expected_size(c, self.cost) for c in self.constraints)

    @property
    def _wanted(self) -> int:
        return self.cells or math.ceil(_PER_SIZE.get(self.cost.name, _USUAL) / self._size)

    @property
    def _is_steep(self) -> bool:
        """Whether there is a core, and no lattice is as fine as it should be."""
        steepest = min(gamma for gamma, _ in self.constraints) > _STEEPEST
        points = self.cells is None and self._centred
        return points and self._wanted > _FINEST and steepest

    @property
    def _on_lattice(self) -> bool:
        """Whether the lattice is fine enough to be of use."""
        return not self._is_steep or self._wanted <= _COARSEST * _FINEST

    @property
    def _centred(self) -> bool:
        return self.cost.name != "usefulness"

    @property
    def _m(self) -> int:
        area = len(self.constraints) * extent(self.constraints)
        finest = min(_FINEST, math.ceil(math.sqrt(_EVENTS / area)))
        if self._centred:
            return min(finest, self._wanted)
        # The first m whose cells end at the parameter, or next beyond it.
        periods = decimal(self.cost.parameter or 0.0) / decimal(self.sensitivity)
        return min(range(1, finest + 1), key=lambda m: math.ceil(m * periods) / m)

    @cached_property
    def lattice(self) -> Lattice:
        """The program under all shifts."""
        lattice = Lattice(
            constraints=self.constraints,
            cost=self.cost,
            sensitivity=self.sensitivity,
            m=self.cells or self._m,
            centred=self._centred,
            tolerance=_TOLERANCE.get(self.cost.name, _USUAL_TOLERANCE),
        )
        fewer = replace(lattice, inward=False)
        lattice = fewer if lattice.m > _SMALL and fewer.within else lattice
        return lattice if self._centred else wide_enough(lattice)

    @property
    def _safe_lattice(self) -> Lattice:
        return replace(self.lattice, constraints=tuple(_safe(c) for c in self.constraints))

    @property
    def _enough(self) -> float:
        return _ENOUGH.get(self.cost.name, _USUAL_GAP)

    def _falling(self, constraint: Constraint) -> Falling:
        return Falling(constraint=constraint, cost=self.cost, sensitivity=self.sensitivity)

    @cached_property
    def laws(self) -> tuple[Tabulated, ...]:
        """Laws within the first constraint, each of less cost than the one before."""
        falling = self._falling(_safe(self.constraints[0])).law
        value = self.cost.of(falling)
        if not self._on_lattice or value <= (1 + self._enough) * self.bound:
            return (falling,)
        law = spread(self.lattice if self._centred else self._safe_lattice)
        return (falling, law) if self.cost.of(law) < value else (falling,)

    @cached_property
    def bound(self) -> float:
        """What any law must cost, proved."""
        found = [self._steep_bound(c) for c in self.constraints] if self._is_steep else []
        return max([*found, self.lattice.bound] if self._on_lattice else found)

    def _steep_bound(self, constraint: Constraint) -> float:
        size = expected_size(constraint, self.cost)
        m = math.ceil(_STEEP_PER_SIZE.get(self.cost.name, _USUAL) / size)
        m = min(m, _FINEST_STEEP)
        core = math.ceil(_CORE * self._falling(constraint).core * m) + 2
        core = min(core, _WIDEST_CORE, m // 2 - 2)
        steep = Steep(
            constraint=constraint, cost=self.cost, sensitivity=self.sensitivity, m=m, J=core
        )
        return steep.bound


@lru_cache(maxsize=16)
def release(
    constraints: tuple[Constraint, ...], cost: Cost, sensitivity: float, cells: int | None = None
) -> Release:
    """The release, with whatever of it has been solved before."""
    return Release(constraints=constraints, cost=cost, sensitivity=sensitivity, cells=cells)


def _safe(constraint: Constraint) -> Constraint:
    gamma, delta = constraint
    return max(1.0, gamma * (1 - _SAFE)), delta * (1 - 10 * _SAFE)


def wide_enough(lattice: Lattice) -> Lattice:
    """The lattice, or one that goes as much farther as its law needs to be within the constraints.

    Where a cost does not rise to make them end, the best laws go on for ever: they fall by gamma a
    sensitivity.
    """
    if lattice.excess <= _TINY:
        return lattice
    fall = max(math.log(min(gamma for gamma, _ in lattice.constraints)), _TINY)
    most = min(_WIDEST / lattice.m, _EVENTS / lattice.m**2)
    return replace(lattice, extra=min(1 + math.log(lattice.excess / (0.1 * _TINY)) / fall, most))


def spread(lattice: Lattice) -> Tabulated:
    """The lattice program's law, each point's mass spread over its cell."""
    p = np.maximum(lattice.solution.p, 0.0)
    masses = lattice.counts * p
    ends = np.arange(1.0, len(p) + 1) - (0.5 if lattice.centred else 0.0)
    edges = lattice.step * np.append(0.0, ends)
    return Tabulated(edges=tuple(edges), masses=tuple(masses / masses.sum()))
