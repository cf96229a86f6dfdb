"""Draws of laws whose density is constant on cells, or that have atoms: a cell, a place in it.

Symbols: ``W_i`` = 2^64 P(|X| in cell i), whole numbers that sum to 2^64; ``C`` columns of equal
weight, each shared by two cells at most (Walker 1977, Vose 1991).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from dpmech.discrete import DiscreteNoise
from dpmech.drawing import Bits, Words
from dpmech.families import Staircase
from dpmech.lattice_mixtures import Tulap
from dpmech.noise import Floats, Noise
from dpmech.tabulated import Tabulated
from dpmech.words import Index, Table, units, with_signs

_WORD = 64
# Below this mass, multiples of 2^-64 would tell a cell's to fewer than twelve digits.
_SMALL = 2.0**-24
_FAR = 2.0**-66  # the tail from where cells are not listed any more
_MOST_CELLS = 1 << 19
_PLACE_SHIFT, _PLACE_UNIT = np.uint64(10), 2.0**-53
_PLACE = np.uint64((1 << 63) - 1)


def has_cells(law: Noise) -> bool:
    """Whether a law has a density that is constant on cells, or atoms."""
    return isinstance(law, Tabulated | Staircase | Tulap | DiscreteNoise)


@dataclass(frozen=True, kw_only=True, eq=False)
class Cells:
    """Where abs(X) lies: ``starts``, ``widths`` (0 for atoms) and ``masses``, and beyond them."""

    starts: Floats
    widths: Floats
    masses: Floats
    beyond: float
    """P(X > x) at the end of the last cell."""

    @classmethod
    def of(cls, law: Noise) -> Self:
        """Those of a law, to where its tail is below 2^-66.

        Raises:
            ValueError: a law that has no cells, or too many.
        """
        if isinstance(law, DiscreteNoise):
            return cls._atoms(law)
        edges = _edges(law)
        if np.isfinite(law.support):
            edges = np.append(edges[edges < law.support], law.support)
        middles = (edges[1:] + edges[:-1]) / 2
        widths = np.diff(edges)
        # A place rounds to the end of its cell at most.
        widths = np.where(edges[:-1] + widths > edges[1:], np.nextafter(widths, 0.0), widths)
        masses = 2 * np.diff(edges) * law.pdf(middles)
        beyond = float(law.sf(edges[-1])) if np.isinf(law.support) else 0.0
        return cls(starts=edges[:-1], widths=widths, masses=masses, beyond=beyond)

    @classmethod
    def _atoms(cls, law: DiscreteNoise) -> Self:
        last = _counted(law, min(float(law.isf(_FAR)), law.support))
        k = np.arange(last + 1, dtype=np.float64)
        masses = np.exp(law.logpdf(k)) * np.where(k > 0, 2.0, 1.0)
        beyond = 0.0 if last >= law.support else float(law.sf(float(last)))
        return cls(starts=k, widths=np.zeros_like(k), masses=masses, beyond=beyond)


def _edges(law: Noise) -> Floats:
    """Where the density may jump, from 0 to where little is left."""
    if isinstance(law, Tabulated):
        edges = np.array(law.edges)
        width = edges[-1] - edges[-2]
        more = _counted(law, max(0.0, float(law.isf(_FAR)) - edges[-1]) / width) if law.decay else 0
        return np.append(edges, edges[-1] + width * np.arange(1, more + 1))
    if isinstance(law, Staircase | Tulap):
        gamma = law.gamma if isinstance(law, Staircase) else 0.5
        count = _counted(law, min(float(law.isf(_FAR)), law.support) / law.width)
        return law.width * np.append(0.0, gamma + np.arange(count + 2))
    raise ValueError(f"Expected a law with cells or atoms, got {law}.")


def _counted(law: Noise, cells: float) -> int:
    if not cells < _MOST_CELLS:
        raise ValueError(
            f"Expected at most {_MOST_CELLS} cells for {law}, got {cells:.3g}; draw it by its own"
            " sample()."
        )
    return math.ceil(cells)


@dataclass(frozen=True, kw_only=True, eq=False)
class CellTable(Table):
    """A law with cells or atoms: a word for the cell, one for the sign and the place in it.

    **Guarantees.** Every cell is drawn with its probability in the law, to within 2^-38 of it, and
    the place in it is uniform; so a release of d coordinates costs at most 2 d 2^-38 more in
    epsilon, at e^(d 2^-38) times the delta. Cells below 2^-24 share one row of the table, and one
    of them is found with the digits that doubles have; so is the tail beyond 2^-66, down to 1e-300.

    >>> from dpmech import Staircase
    >>> table = CellTable.of(Staircase(epsilon=1.0, width=1.0, gamma=0.4))
    >>> table.draw(3).shape
    (3,)
    """

    law: Noise
    cells: Cells
    columns: int
    """log2 of C."""
    own: Index
    """What of a column is its own cell's, shape (C,); the rest is ``other``'s."""
    other: Index
    starts: Floats
    steps: Floats
    """2^-53 of the widths of the cells; the last cell stands for all that are small."""
    small: Index
    """The cells that share the last row, from the lightest on; -1 is the tail beyond all."""
    sums: Floats
    """The running sums of their masses."""
    kept: float
    """The share of the last row's draws that are of them; the others are of the heaviest cell."""
    words_a_draw: ClassVar[int] = 2

    @classmethod
    def of(cls, law: Noise) -> Self:
        """The table of a law with cells or atoms.

        Raises:
            ValueError: a law that has none, or more than 500 000.
        """
        return cls.on(law, Cells.of(law))

    @classmethod
    def on(cls, law: Noise, cells: Cells) -> Self:
        """The table of these cells."""
        masses = cells.masses / math.fsum((*cells.masses, 2 * cells.beyond))
        light = np.flatnonzero((masses < _SMALL) & (masses > 0))
        candidates = np.append(light, -1) if cells.beyond > 0 else light
        tail = np.append(masses, 2 * cells.beyond)[candidates]
        order = np.argsort(tail)
        small, sums = candidates[order], np.cumsum(tail[order])
        together = float(sums[-1]) if len(sums) else 0.0
        weight = math.ceil(math.ldexp(together, _WORD))
        large = np.where(masses < _SMALL, 0.0, masses)
        own, other = _alias([*_whole(large, 2**_WORD - weight), weight])
        return cls(
            law=law,
            cells=cells,
            columns=len(own).bit_length() - 1,
            own=own,
            other=other,
            starts=np.append(cells.starts, 0.0),
            steps=np.append(cells.widths, 0.0) * _PLACE_UNIT,
            small=small,
            sums=sums,
            kept=math.ldexp(together, _WORD) / weight if weight else 1.0,
        )

    @property
    def heaviest(self) -> int:
        """The cell with the largest mass."""
        return int(np.argmax(self.cells.masses))

    def most(self, words: Words, *, compiled: bool) -> tuple[Floats, Index, Words]:
        column, second = words[: len(words) // 2], words[len(words) // 2 :]
        x, cell = self._compiled(column, second) if compiled else self._plain(column, second)
        rows = np.flatnonzero(cell == len(self.cells.starts))
        return x, rows, second[rows]

    def rest(self, words: Words, more: Bits) -> Floats:
        return with_signs(self._of_small(len(words), more), words)

    def _compiled(self, column: Words, second: Words) -> tuple[Floats, NDArray[np.int32]]:
        from dpmech._quantile_kernels import places

        x, cell = np.empty(len(column)), np.empty(len(column), dtype=np.int32)
        table = (self.own, self.other, self.starts, self.steps)
        places((column, second), self.columns, table, (x, cell))
        return x, cell

    def _plain(self, column: Words, second: Words) -> tuple[Floats, Index]:
        rest = np.uint64(_WORD - self.columns)
        which = (column >> rest).astype(np.int64)
        low = (column & np.uint64((1 << int(rest)) - 1)).view(np.int64)
        cell = np.where(low < self.own.take(which), which, self.other.take(which))
        x = ((second & _PLACE) >> _PLACE_SHIFT).astype(np.float64)
        x *= self.steps.take(cell)
        x += self.starts.take(cell)
        return with_signs(x, second), cell

    def _of_small(self, count: int, words: Bits) -> Floats:
        """Sizes of draws among the cells of the last row."""
        if not count:
            return np.empty(0)
        wanted = units(count, words) * self.sums[-1]
        cell = self.small[np.minimum(np.searchsorted(self.sums, wanted), len(self.small) - 1)]
        cell = np.where(units(count, words) <= self.kept, cell, self.heaviest)
        place = units(count, words)
        x = self.cells.starts[cell] + self.cells.widths[cell] * place
        far = np.flatnonzero(cell < 0)
        if len(far):
            x[far] = self.law.isf(np.maximum(place[far] * self.cells.beyond, 1e-300))
        return x


def _whole(masses: Floats, total: int) -> list[int]:
    """Whole numbers in proportion to ``masses``, off by less than 2, that sum to ``total``."""
    scaled = [int(math.ldexp(m, _WORD)) for m in masses.tolist()]
    together = sum(scaled)
    weights = [w * total // together for w in scaled]
    # What rounding down has left is less than one for each cell that has any mass.
    for cell in np.argsort(-masses, kind="stable").tolist()[: total - sum(weights)]:
        weights[cell] += 1
    return weights


def _alias(weights: list[int]) -> tuple[Index, Index]:
    """(own, other) of columns that hold these weights exactly; the weights sum to 2^64."""
    columns = max(2, (len(weights) - 1).bit_length())
    full = 1 << (_WORD - columns)
    left = weights + [0] * ((1 << columns) - len(weights))
    own, other = np.full(1 << columns, full), np.arange(1 << columns)
    short = [i for i, w in enumerate(left) if w < full]
    long = [i for i, w in enumerate(left) if w >= full]
    while short:
        i, j = short.pop(), long[-1]
        own[i], other[i] = left[i], j
        left[j] -= full - left[i]
        if left[j] < full:
            short.append(long.pop())
    return own, other
