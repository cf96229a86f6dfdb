"""Cells of all pairs of one direction, with the atoms that bracket their losses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from accountants._atoms import Atoms, Composed, cut, dominated, dominating, roughness
from accountants._saddle import CELLS, Saddle
from dpmech import DominatingPair
from dpmech.cells import Cells
from dpmech.noise import Floats

# Beyond as many atoms cells are not cut.
_MOST_ATOMS = 2e5
# Pairs whose cells are remembered.
_FEW = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class Bracket:
    """The pairs with the edges between which their losses are seen as one cell."""

    pairs: Sequence[tuple[DominatingPair, int]]
    edges: Sequence[Floats]

    def _cells(self) -> Iterable[Cells]:
        """The cells of each pair, one after the other: those of a long ledger would fill memory."""
        if len(self.pairs) <= _FEW:
            return self._kept
        return (pair.cells(edges) for (pair, _), edges in zip(self.pairs, self.edges, strict=True))

    @cached_property
    def _kept(self) -> list[Cells]:
        return [pair.cells(edges) for (pair, _), edges in zip(self.pairs, self.edges, strict=True)]

    def _composed(self, of: Callable[[Cells], Atoms]) -> Composed:
        counts = (count for _, count in self.pairs)
        return Composed(parts=tuple(zip(map(of, self._cells()), counts, strict=True)))

    @cached_property
    def below(self) -> Composed:
        """The dominated composition."""
        return self._composed(dominated)

    @cached_property
    def above(self) -> Composed:
        """The dominating composition."""
        return self._composed(dominating)

    def refined(self, saddle: Saddle, gap: float) -> Bracket:
        """Cells cut so that the bounds on ln delta are ``gap`` apart near the saddle.

        A cell of width h and tilted mass p adds T t (t+1) p h^2/8 to the gap; with n pieces it is
        1/n^2 of it, and the fewest pieces for a given sum have n ~ (T p h^2)^(1/3).
        """
        rough = [
            count * roughness(cells, edges, saddle.emphasis)
            for cells, edges, (_, count) in zip(self._cells(), self.edges, self.pairs, strict=True)
        ]
        cubes = [np.cbrt(r) for r in rough]
        total = sum(float(np.sum(c)) for c in cubes)
        scale = math.sqrt(saddle.tilt * (saddle.tilt + 1) * total / (8 * CELLS * gap))
        scale = min(scale, _MOST_ATOMS / max(total, 1e-300))
        edges = [cut(e, scale * c) for e, c in zip(self.edges, cubes, strict=True)]
        return Bracket(pairs=self.pairs, edges=edges)
