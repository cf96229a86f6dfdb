"""Draws of a law by its tail: one 64-bit word says how much of the law lies further out.

Symbols: ``u`` = P(|X| > |x|), uniform in (0, 1); the outer half of the law is u < 1/2, the inner
one u > 1/2; ``V`` = 2^63 min(u, 1 - u), in (0, 2^62]: how near the tail, or the middle, x is;
``t`` place in a cell, in [-h, h).

A word is a sign, a bit for the half, and 62 bits of V. As a double, V is its binade, a cell of the
binade and a place in the cell, and abs(x) is a polynomial of the place.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from dpmech.cell_tables import CellTable, has_cells
from dpmech.drawing import Bits, Words
from dpmech.guarantee import Guarantee
from dpmech.lattice import LatticeNoise
from dpmech.lattice_mixtures import MultiGaussian
from dpmech.noise import Floats, Noise
from dpmech.spherical import Spherical
from dpmech.words import HALF, LOW, SHORT, Index, Table, lengthened, with_signs

DEGREE = 5
# Cells of a binade, as a power of two: for smooth laws, and for those that bend somewhere.
_SMOOTH, _BENT = 6, 8
LOWEST, _HIGHEST = -2, 62  # binades of V that have cells: u from 2^-65
_UNIT = 2.0**-64  # P(X > x) is V times this in the outer half, 1/2 less it in the inner one
# Each cell is checked at 13 points. Between them, a polynomial of degree 6 is not above the largest
# of these values times sqrt(2) (Ehlich & Zeller 1964).
_CHECKS, _BETWEEN = 12, 2.0**0.5
TOLERANCE = 1e-9
_MOST_ROUGH = 0.02
_LONG_SUM = 4.0  # widths of the lattice
# The middle is integrated on panels between x and 2^(1/4) x, down to where the density is f(0).
_PANELS_AN_OCTAVE, _OCTAVES = 4, 68
_ISF_FROM = 2.0**-6
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(10)
_FITTED = np.cos((2 * np.arange(DEGREE + 1) + 1) * np.pi / (2 * DEGREE + 2))
_INVERSE = np.linalg.inv(np.vander(_FITTED, increasing=True))
_CHECKED = np.cos(np.arange(_CHECKS + 1) * np.pi / _CHECKS)


@dataclass(frozen=True)
class Grid:
    """The cells of V: 2^``bits`` of each binade."""

    bits: int

    @property
    def half_width(self) -> float:
        """h, in units of the binade's start."""
        return 2.0 ** -(self.bits + 1)

    @property
    def side(self) -> int:
        """Cells of each half; the last is V = 2^62 alone."""
        return ((_HIGHEST - LOWEST) << self.bits) + 1

    @property
    def shift(self) -> int:
        """The bits of a double that tell the place in a cell."""
        return 52 - self.bits

    @property
    def first(self) -> int:
        """The other bits of the lowest V that has a cell."""
        return (1023 + LOWEST) << self.bits

    def binades(self) -> Floats:
        """2^e of the cells of a half, shape (cells, 1)."""
        return np.ldexp(1.0, (np.arange(self.side - 1) >> self.bits) + LOWEST)[:, None]

    def at(self, places: Floats) -> Floats:
        """V at these places in [-1, 1] of the cells of a half, shape (cells, places)."""
        cell = (np.arange(self.side - 1) % (1 << self.bits))[:, None]
        return self.binades() * (1 + (2 * cell + 1 + places) * self.half_width)

    def split(self, value: Floats) -> tuple[Index, Floats]:
        """Cell and place of V; below the lowest cell, the number of the cell is negative."""
        bits = value.view(np.int64)
        place = ((bits & ((1 << self.shift) - 1)) | (1023 << 52)).view(np.float64)
        place -= 1 + self.half_width
        return (bits >> self.shift) - self.first, place


@dataclass(frozen=True, kw_only=True, eq=False)
class QuantileTable(Table):
    """A law with a density, by polynomials of degree 5 for its inverse survival function.

    **Guarantees.** Outside :attr:`rough` cells the law of the draws agrees with the law to within
    1e-9, relative, in two ways: in P(X > x) and in P(X < -x) at every x (:attr:`tail_error`), and
    in the density at every x (:attr:`density_error`). So a release of d coordinates costs at most
    2 d density_error more in epsilon, at e^(d density_error) times the delta. Both are measured,
    against the law's own logsf and logpdf, at 13 points of every cell, times sqrt(2): a bound
    between the points if the error is a polynomial of degree 6 (Ehlich & Zeller 1964), and terms
    beyond are below rounding in cells this narrow. Rough cells, and tails beyond 2^-66, are drawn
    by the law's own isf, down to 1e-300.

    Draws are doubles: rounding is not in this, and the last digits of a sum may tell what noise was
    added to (Mironov 2012). Exact draws are those of :mod:`dpmech.lattice`.

    >>> from dpmech import Laplace
    >>> table = QuantileTable.of(Laplace(b=2.0))
    >>> table.draw(3).shape, table.density_error < 1e-9
    ((3,), True)
    """

    law: Noise
    grid: Grid
    coefficients: Floats
    """Shape (degree + 1, cells): those of the outer half, then those of the inner half."""
    rough: NDArray[np.bool_]
    tail_error: float
    density_error: float
    words_a_draw: ClassVar[int] = 1

    @classmethod
    def of(cls, law: Noise) -> Self:
        """The table of a law.

        Raises:
            ValueError: a law of which polynomials do not tell more than 2 %.
        """
        table = cls._on(law, Grid(_SMOOTH))
        if np.any(table.rough):
            table = cls._on(law, Grid(_BENT))
        if table.rough_share > _MOST_ROUGH:
            raise ValueError(
                f"Expected a law with a smooth density, got {law}: polynomials do not tell "
                f"{table.rough_share:.2g} of it; use its own sample()."
            )
        return table

    @classmethod
    def _on(cls, law: Noise, grid: Grid) -> Self:
        halves = _fitted(_outer(law, grid), grid), _fitted(_inner(law, grid), grid)
        errors = [_errors(law, grid, half, inner=i > 0) for i, half in enumerate(halves)]
        tail, density = (np.concatenate(parts) for parts in zip(*errors, strict=True))
        rough = np.maximum(tail, density) > TOLERANCE
        return cls(
            law=law,
            grid=grid,
            coefficients=np.concatenate(halves, axis=1),
            rough=rough,
            tail_error=float(np.max(tail, where=~rough, initial=0.0)),
            density_error=float(np.max(density, where=~rough, initial=0.0)),
        )

    @property
    def rough_share(self) -> float:
        """The chance of a draw by the law's own isf, but for the far tail."""
        ends = self.grid.at(np.array([-1.0, 1.0]))
        chances = np.append((ends[:, 1] - ends[:, 0]) / 2.0**63, 0.0)
        return float(np.sum(np.concatenate([chances, chances])[self.rough]))

    def most(self, words: Words, *, compiled: bool) -> tuple[Floats, Index, Words]:
        x = self._compiled(words) if compiled else self._plain(words)
        rare = (words & LOW) < SHORT
        if self._has_rough:
            cell, _ = self._split(words, (words & LOW).astype(np.float64))
            rare |= self.rough.take(cell, mode="clip")
        rows = np.flatnonzero(rare)
        return x, rows, words[rows]

    @cached_property
    def _has_rough(self) -> bool:
        return bool(np.any(self.rough))

    def _compiled(self, words: Words) -> Floats:
        from dpmech._quantile_kernels import quantiles

        x = np.empty(len(words))
        quantiles(words, self.coefficients, self.grid.shift, self.grid.first, x)
        return x

    def _plain(self, words: Words) -> Floats:
        cell, place = self._split(words, (words & LOW).astype(np.float64))
        return with_signs(self._polynomial(cell, place), words)

    def _split(self, words: Words, value: Floats) -> tuple[Index, Floats]:
        """Cells of both halves, and places in them."""
        cell, place = self.grid.split(value)
        inner = ((words >> HALF) & np.uint64(1)).astype(np.int64)
        return np.maximum(cell, 0) + inner * self.grid.side, place

    def _polynomial(self, cell: Index, place: Floats) -> Floats:
        x = self.coefficients[-1].take(cell, mode="clip")
        for row in self.coefficients[-2::-1]:
            x *= place
            x += row.take(cell, mode="clip")
        return x

    def rest(self, words: Words, more: Bits) -> Floats:
        value = lengthened(words & LOW, more)
        cell, place = self._split(words, value)
        x = self._polynomial(cell, place)
        by_law = np.flatnonzero((value < 2.0**LOWEST) | self.rough[cell])
        if len(by_law):
            x[by_law] = self._by_law(value[by_law], cell[by_law] >= self.grid.side)
        return with_signs(x, words)

    def _by_law(self, value: Floats, inner: NDArray[np.bool_]) -> Floats:
        near = value * _UNIT
        # Next to the middle 1/2 - near is 1/2, and the density is f(0).
        middle = inner & (value < 2.0**LOWEST)
        outside = self.law.isf(np.where(inner, 0.5 - near, near))
        return np.where(middle, near / self.law.pdf(0.0), outside)


def _outer(law: Noise, grid: Grid) -> Floats:
    """abs(x) at the nodes of the cells of the outer half."""
    return law.isf(grid.at(_FITTED) * _UNIT)


def _inner(law: Noise, grid: Grid) -> Floats:
    """abs(x) at the nodes of the cells of the inner half: V/2^64 is P(0 < X < x)."""
    wanted = (grid.at(_FITTED) * _UNIT).ravel()
    octaves = np.arange(-_OCTAVES * _PANELS_AN_OCTAVE, 2) / _PANELS_AN_OCTAVE
    edges = float(law.isf(0.25)) * 2.0**octaves
    start = float(law.pdf(0.0)) * edges[0]
    within = start + np.append(0.0, np.cumsum(_mass(law, edges[:-1], edges[1:])))
    panel = np.clip(np.searchsorted(within, wanted) - 1, 0, len(edges) - 2)
    x = edges[panel] * np.minimum(wanted / start, 1.0)
    for _ in range(6):  # Newton's method; the density is all but constant on a panel
        missing = wanted - within[panel] - _mass(law, edges[panel], x)
        x = np.maximum(x + missing / law.pdf(x), 0.0)
    # A bend of the density spoils its panel, and with it all further out: there isf is as good.
    outside = wanted > _ISF_FROM
    x[outside] = law.isf(0.5 - wanted[outside])
    return x.reshape(-1, DEGREE + 1)


def _mass(law: Noise, low: Floats, high: Floats) -> Floats:
    """P(low < X < high), by Gauss's rule."""
    half = (high - low) / 2
    x = ((high + low) / 2)[:, None] + half[:, None] * _NODES
    return half * (law.pdf(np.maximum(x, 0.0)) @ _WEIGHTS)


def _fitted(x: Floats, grid: Grid) -> Floats:
    """Coefficients of the polynomials through the nodes, and of the one point at the end."""
    rows = x @ _INVERSE.T
    end = np.zeros((1, DEGREE + 1))
    end[0, 0] = np.sum(rows[-1])
    powers = grid.half_width ** -np.arange(DEGREE + 1)
    return np.ascontiguousarray((np.concatenate([rows, end]) * powers).T)


def _errors(law: Noise, grid: Grid, half: Floats, *, inner: bool) -> tuple[Floats, Floats]:
    """Errors of the log-survival and of the log-density on each cell; inf where one is none."""
    value, t = grid.at(_CHECKED), _CHECKED * grid.half_width
    x, slope = (np.zeros_like(value) for _ in range(2))
    for row in half[::-1, :-1, None]:
        slope = slope * t + x
        x = x * t + row
    slope = slope / grid.binades() * (1 if inner else -1)
    p = 0.5 - value * _UNIT if inner else value * _UNIT
    with np.errstate(invalid="ignore", divide="ignore"):
        tail = law.logsf(x) - np.log(p)
        density = law.logpdf(x) + np.log(slope) - np.log(_UNIT)
    return _worst(tail), _worst(density)


def _worst(errors: Floats) -> Floats:
    """The largest on each cell, and none at the end of the half."""
    largest = _BETWEEN * np.max(np.minimum(np.abs(np.nan_to_num(errors, nan=np.inf)), 1.0), axis=1)
    return np.append(largest, 0.0)


@lru_cache(maxsize=64)
def table_of(law: Noise) -> Table | None:
    """The table that draws a law fastest, or None where its own methods draw it.

    Those are guarantees and laws of vectors, laws on a lattice, which have an exact ``draw``, laws
    that bend in too many places, and those whose density is a long sum while a draw is a short one.

    >>> from dpmech import Staircase
    >>> type(table_of(Staircase(epsilon=1.0, width=1.0, gamma=0.4))).__name__
    'CellTable'
    """
    if isinstance(law, Guarantee | Spherical | LatticeNoise):
        return None
    if isinstance(law, MultiGaussian) and law.sigma > _LONG_SUM * law.width:
        return None
    try:
        return CellTable.of(law) if has_cells(law) else QuantileTable.of(law)
    except ValueError:
        return None
