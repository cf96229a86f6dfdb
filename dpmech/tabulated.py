"""Laws given by a table: a density that is constant on cells of the line, or on shells of R^d.

Symbols: ``s`` sensitivity, ``t`` shift, ``h`` width of a lattice's cells, ``gamma = e^l``,
``H_t(gamma)`` hockey-stick divergence of the law centred at t from the law centred at 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dpmech.envelope import Curve, envelope
from dpmech.noise import Floats, Noise, Shape, checked_positive
from dpmech.spherical import Shells, Spherical, checked_dim

_EPS = float(np.finfo(np.float64).eps)
# Edges this close to multiples of a common step (relative) are such multiples rounded.
_ON_LATTICE = 8 * _EPS
_MOST_CELLS = 400_000
# Densities that rise by less, relatively, are taken for equal: they come from rounding.
_LEVEL = 1e-12
_NEAR = 1e-12
_ROUNDED = 1e-9


def _checked_table(edges: tuple[float, ...], masses: tuple[float, ...]) -> None:
    if not masses or len(edges) != len(masses) + 1:
        raise ValueError(
            f"Expected one edge more than masses, got {len(edges)} edges and {len(masses)} masses."
        )
    steps = np.diff(edges)
    if edges[0] != 0 or not (np.all(steps > 0) and np.all(np.isfinite(edges))):
        raise ValueError(
            f"Expected edges that rise from 0, got {edges[0]} … {edges[-1]} with a least step of "
            f"{float(np.min(steps))}."
        )
    least = min(masses)
    if not (least >= 0 and math.isfinite(math.fsum(masses)) and max(masses) > 0):
        raise ValueError(f"Expected finite masses of 0 or above, one of them above, got {least}.")


def _normalised(masses: tuple[float, ...], beyond: float) -> tuple[float, ...]:
    """The masses over their total with the mass ``beyond``; unchanged where that is 1 already."""
    total = math.fsum((*masses, beyond))
    # A sum of 1 up to rounding stays as it is: a law read back equals the one written.
    if abs(total - 1) <= 4 * len(masses) * _EPS:
        total = 1.0
    return tuple(float(m) / total for m in masses)


@dataclass(frozen=True)
class Tabulated(Noise):
    """Density constant on the cells edges[i] <= |x| < edges[i+1], with ``masses`` P(|X| in cell).

    Beyond the last edge follow cells of the last one's width whose masses fall by the factor
    ``decay`` each (0: nothing is there). The density need not fall with |x|.

    **Guarantees.** The pair of a shift s dominates *every* shift up to s. A density that falls
    needs s alone (mathematics.md §3). Otherwise all edges must be multiples of one step h: between
    multiples of h, H_t(gamma) is linear in t, for the parts on which f(x) and f(x - t) are constant
    have lengths that are; so the maximum over the multiples below s, and s itself, is the maximum
    over all shifts. Edges that are such multiples up to rounding are taken for them.

    >>> law = Tabulated(edges=(0.0, 1.0, 2.0), masses=(0.75, 0.25))
    >>> law.mean_abs, law.pdf(0.5).item()
    (0.75, 0.375)
    """

    edges: tuple[float, ...]
    masses: tuple[float, ...]
    decay: float = 0.0
    name: ClassVar[str] = "tabulated"

    def __post_init__(self) -> None:
        _checked_table(self.edges, self.masses)
        if not 0 <= self.decay < 1:
            raise ValueError(f"Expected decay={self.decay} in [0, 1).")
        beyond = self.masses[-1] * self.decay / (1 - self.decay)
        object.__setattr__(self, "edges", tuple(float(e) for e in self.edges))
        object.__setattr__(self, "masses", _normalised(self.masses, beyond))

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.edges, self.masses, self.decay))

    def __str__(self) -> str:
        return f"{self.name}: {len(self.masses)} cells to {self.edges[-1]:.6g}"

    @cached_property
    def _table(self) -> tuple[Floats, Floats, Floats]:
        """(edges, masses of the cells, masses of |X| beyond each edge)."""
        masses = np.array(self.masses)
        beyond = np.cumsum(np.append(self._tail, masses[::-1]))[::-1]
        return np.array(self.edges), masses, beyond

    @property
    def _tail(self) -> float:
        """Mass beyond the last edge."""
        return self.masses[-1] * self.decay / (1 - self.decay)

    @property
    def _width(self) -> float:
        """Width of the last cell and of those beyond."""
        return self.edges[-1] - self.edges[-2]

    @cached_property
    def log_density(self) -> Floats:
        """ln f on the cells of the table."""
        edges, masses, _ = self._table
        with np.errstate(divide="ignore"):
            return np.log(masses) - np.log(2 * np.diff(edges))

    @cached_property
    def falling(self) -> bool:
        """Whether the density falls with |x|."""
        return bool(np.all(self.log_density[1:] <= self.log_density[:-1] + _LEVEL))

    @property
    def support(self) -> float:
        return np.inf if self.decay > 0 else self.edges[-1]

    def _place(self, size: Floats) -> tuple[NDArray[np.int64], Floats]:
        """Cell of the table (the last one beyond it) and how many cells beyond it lie."""
        edges = self._table[0]
        beyond = np.where(size >= edges[-1], np.floor((size - edges[-1]) / self._width) + 1, 0.0)
        cell = np.searchsorted(edges, size, side="right") - 1
        return np.minimum(cell, len(self.masses) - 1), beyond

    def logpdf(self, x: ArrayLike) -> Floats:
        cell, beyond = self._place(np.abs(np.asarray(x, dtype=np.float64)))
        with np.errstate(divide="ignore", invalid="ignore"):
            fallen = np.where(beyond > 0, beyond * np.log(self.decay), 0.0)
        return self.log_density[cell] + fallen

    def logsf(self, x: ArrayLike) -> Floats:
        x = np.asarray(x, dtype=np.float64)
        size = np.minimum(np.abs(x), 1e300)
        edges, masses, outside = self._table
        cell, beyond = self._place(size)
        width = np.diff(edges)[cell]
        end = edges[cell + 1] + np.where(beyond > 0, beyond * self._width, 0.0)
        left = np.clip((end - size) / width, 0.0, 1.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            inside = np.log(masses[cell] * left + outside[cell + 1])
            last = math.log(masses[-1]) if masses[-1] > 0 else -np.inf
            far = last + beyond * np.log(self.decay) + np.log(left + self.decay / (1 - self.decay))
            tail = np.where(beyond > 0, far if self.decay > 0 else -np.inf, inside) - math.log(2)
        tail = np.where(np.isinf(x), -np.inf, tail)
        return np.where(x >= 0, tail, np.log1p(-np.exp(tail)))

    def _isf_tail(self, p: Floats) -> Floats:
        edges, masses, outside = self._table
        wanted = 2 * p
        # The last edge beyond which there still is as much.
        cell = np.clip(np.searchsorted(-outside, -wanted, side="right") - 1, 0, len(masses) - 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            share = (outside[cell] - wanted) / masses[cell]
            # Beyond the table each cell keeps the share ``decay`` of what lies beyond its start.
            beyond = np.floor(np.log(wanted / outside[-1]) / np.log(self.decay))
            start = outside[-1] * self.decay**beyond
            far = beyond + np.clip((1 - wanted / start) / (1 - self.decay), 0.0, 1.0)
        inside = edges[cell] + np.clip(share, 0.0, 1.0) * np.diff(edges)[cell]
        if self.decay == 0:
            return inside
        return np.where(wanted >= outside[-1], inside, edges[-1] + self._width * far)

    def sample(self, shape: Shape, rng: np.random.Generator) -> Floats:
        edges, masses, outside = self._table
        u = rng.random(shape) * outside[0]
        cell = np.clip(np.searchsorted(-outside, -u, side="right") - 1, 0, len(masses))
        beyond = np.zeros(np.shape(u))
        if self.decay > 0:
            beyond = np.where(cell == len(masses), rng.geometric(1 - self.decay, np.shape(u)), 0)
        cell = np.minimum(cell, len(masses) - 1)
        place = edges[cell] + np.diff(edges)[cell] * rng.random(np.shape(u))
        signs = rng.integers(0, 2, np.shape(u)) * 2.0 - 1.0
        return (place + beyond * self._width) * signs

    def scaled(self, factor: float) -> Self:
        factor = checked_positive("factor", factor)
        return replace(self, edges=tuple(e * factor for e in self.edges))

    def score(self, x: ArrayLike) -> Floats:
        return np.zeros_like(np.asarray(x, dtype=np.float64))

    @property
    def variance(self) -> float:
        edges, masses, _ = self._table
        a, b = edges[:-1], edges[1:]
        start, width, r = self.edges[-1], self._width, self.decay
        # Place in the geometric tail: start + (N + V) width, N geometric from 0, V uniform.
        mean_n, square_n = r / (1 - r), r * (1 + r) / (1 - r) ** 2
        mean, spread = start * (2 * mean_n + 1), width * (square_n + mean_n + 1 / 3)
        square = start**2 + width * (mean + spread)
        return float(masses @ ((a * a + a * b + b * b) / 3)) + self._tail * square

    @property
    def mean_abs(self) -> float:
        edges, masses, _ = self._table
        mean = self.edges[-1] + self._width * (self.decay / (1 - self.decay) + 0.5)
        return float(masses @ ((edges[1:] + edges[:-1]) / 2)) + self._tail * mean

    @property
    def fisher_information(self) -> float:
        return math.inf  # the density jumps

    @cached_property
    def step(self) -> float | None:
        """The step that all edges are multiples of; None where there is none."""
        edges = self._table[0]
        # The last edge tells the step to more digits than differences do.
        step = float(edges[-1] / np.round(edges[-1] / np.min(np.diff(edges))))
        multiples = edges / step
        on_lattice = np.all(np.abs(multiples - np.round(multiples)) <= _ON_LATTICE * multiples)
        return step if on_lattice and multiples[-1] <= _MOST_CELLS else None

    def atoms(self, shift: float) -> tuple[Floats, Floats, float, Floats]:
        """(losses, P-masses, mass at infinite loss, relative errors) of all shifts up to ``shift``.

        Raises ValueError where the density rises and the edges are not on a lattice.
        """
        if self.step is None:
            if not self.falling:
                raise ValueError(
                    f"Expected edges at multiples of one step, got {self}: its density rises, so "
                    "every shift counts, and off a lattice there are too many to try."
                )
            return self._anywhere(shift).atoms()
        steps = Fraction(shift) / Fraction(self.step)
        k, part = math.floor(steps), float(steps - math.floor(steps))
        # Rounded up where it is not exact: a hair more shift is on the safe side.
        r = min(1.0, part + _NEAR) if part > 0 else 0.0
        if self.falling:
            return self._on_lattice(k, r).atoms()
        whole = [self._on_lattice(j, 0.0) for j in range(1, k + 1)]
        return envelope(whole + ([self._on_lattice(k, r)] if r > 0 else []))

    def _on_lattice(self, k: int, r: float) -> Curve:
        """The loss at a shift by k + ``r`` cells of the lattice, 0 <= r <= 1."""
        step = self.step or 1.0
        parts = [self._moved(k + j, k + 1, w) for j, w in ((0, 1.0 - r), (1, r)) if w > 0]
        return self._with_tail(_joined(parts), (k + r) * step)

    def _moved(self, moved: int, more: int, share: float) -> Curve:
        """The part ``share`` of each cell that a shift moves by ``moved`` whole cells."""
        half = self._lattice_cells(more)
        size, n = len(half), len(half) - more
        line = np.concatenate([half[::-1], half])  # cell j of the line is line[size + j]
        # Cells of the law about the shift, up to where both laws are in their tails.
        cells = np.arange(-n - moved, n)
        length = share * (self.step or 1.0)
        error = 16 * _EPS if share == 1 else min(1.0, 16 * _EPS * (1 + moved) / share)
        return _curve(line[size + cells], line[size + cells + moved], length, error)

    def _lattice_cells(self, more: int) -> Floats:
        """ln f on the lattice's own cells, from 0 to the end of the table and ``more``."""
        step = self.step or 1.0
        count = np.round(np.diff(self._table[0]) / step).astype(np.int64)
        inside = np.repeat(self.log_density, count)
        with np.errstate(divide="ignore"):
            fall = np.log(self.decay)
        periods = np.arange(more) // count[-1] + 1
        return np.append(inside, self.log_density[-1] + periods * fall)

    def _anywhere(self, shift: float) -> Curve:
        """The loss at one shift, by the cells between all edges of both laws."""
        edges, end = self._table[0], self.edges[-1]
        periods = np.arange(1, math.ceil(shift / self._width) + 2)
        with np.errstate(divide="ignore"):
            fallen = self.log_density[-1] + periods * np.log(self.decay)
        half = np.append(edges, end + self._width * periods)
        line = np.concatenate([-half[:0:-1], half])
        density = np.append(self.log_density, fallen)
        density = np.concatenate([density[::-1], density])
        cuts = np.unique(np.concatenate([line, line + shift, [-end, end + shift]]))
        cuts = cuts[(cuts >= -end) & (cuts <= end + shift)]
        log_q = density[np.searchsorted(line, cuts[:-1], side="right") - 1]
        log_p = density[np.searchsorted(line + shift, cuts[:-1], side="right") - 1]
        width = np.diff(cuts)
        error = np.minimum(1.0, 16 * _EPS * (1 + (np.abs(cuts[1:]) + shift) / width))
        return self._with_tail(_curve(log_p, log_q, width, error), shift)

    def _with_tail(self, curve: Curve, shift: float) -> Curve:
        """With the parts on which both laws are in their geometric tails: two losses, and back."""
        if self._tail == 0:
            return curve
        k, r = divmod(shift / self._width, 1.0)
        share = np.array([1 - r, r])
        losses, p = -math.log(self.decay) * np.array([k, k + 1]), self._tail / 2 * share
        error = np.minimum(1.0, 16 * _EPS * (1 + k) / np.maximum(share, _EPS))
        there = p > 0
        losses, p, error = losses[there], p[there], error[there]
        back = Curve(losses=-losses, p=p * np.exp(-losses), lost=0.0, error=error)
        return _joined([curve, Curve(losses=losses, p=p, lost=0.0, error=error), back])


def _curve(log_p: Floats, log_q: Floats, length: float | Floats, error: float | Floats) -> Curve:
    """Cells of the line by the densities of both laws on them, and the errors of their lengths."""
    mass = np.exp(log_p) * length
    missing = np.isneginf(log_q)
    there = (mass > 0) & ~missing
    return Curve(
        losses=(log_p[there] - log_q[there]),
        p=mass[there],
        lost=float(np.sum(mass[missing])),
        error=np.broadcast_to(error, mass.shape)[there],
    )


def _joined(parts: list[Curve]) -> Curve:
    """All the parts as one."""
    return Curve(
        losses=np.concatenate([part.losses for part in parts]),
        p=np.concatenate([part.p for part in parts]),
        lost=math.fsum(part.lost for part in parts),
        error=np.concatenate([part.error for part in parts]),
    )


@dataclass(frozen=True)
class TabulatedSpherical(Spherical):
    """Density constant on the shells edges[i] <= |x| < edges[i+1] of R^dim, and falling.

    ``masses`` are P(|X| in the shell), in the l2 norm; densities that rise from one shell to the
    next by rounding (1e-9 of themselves) are made equal.

    >>> TabulatedSpherical(edges=(0.0, 1.0, 2.0), masses=(0.6, 0.4), dim=3).variance
    0.4096...
    """

    edges: tuple[float, ...]
    masses: tuple[float, ...]
    dim: float
    name: ClassVar[str] = "tabulated-spherical"

    def __post_init__(self) -> None:
        _checked_table(self.edges, self.masses)
        checked_dim(self.dim)
        object.__setattr__(self, "edges", tuple(float(e) for e in self.edges))
        object.__setattr__(self, "masses", _normalised(self.masses, 0.0))
        rise = float(np.max(np.diff(self._log_density), initial=0.0))
        if rise > _ROUNDED or min(self.masses) == 0:
            raise ValueError(
                f"Expected densities above 0 that fall with the radius, but one is {rise:.3g} "
                "(relative) above the one before: only falling ones are proved."
            )

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((self.edges, self.masses, self.dim))

    def __str__(self) -> str:
        return f"{self.name}: {len(self.masses)} shells to {self.edges[-1]:.6g} in R^{self.dim:g}"

    @property
    def _log_density(self) -> Floats:
        """ln of the masses over the volumes of the shells, up to a constant."""
        with np.errstate(divide="ignore"):
            return np.log(self.masses) - log_volumes(np.array(self.edges), int(self.dim))

    @cached_property
    def shells(self) -> Shells:
        edges = np.array(self.edges)
        log_density = np.minimum.accumulate(self._log_density)
        log_mass = log_density + log_volumes(edges, int(self.dim))
        masses = np.exp(log_mass - np.max(log_mass))
        return Shells(edges=edges, masses=masses / float(np.sum(masses)), log_density=log_density)

    def scaled(self, factor: float) -> Self:
        factor = checked_positive("factor", factor)
        return replace(self, edges=tuple(e * factor for e in self.edges))


def log_volumes(edges: Floats, dim: int) -> Floats:
    """ln of the volumes between the radii ``edges``, up to a constant; shape (n + 1,) to (n,)."""
    if dim == 1:
        return np.log(np.diff(edges))
    with np.errstate(divide="ignore"):
        log_ball = dim * (np.log(edges) - np.log(edges[-1]))
    return log_ball[1:] + np.log(-np.expm1(log_ball[:-1] - log_ball[1:]))
