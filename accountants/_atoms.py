"""Atoms that bracket a privacy loss, from cells on which it varies little (mathematics.md §4).

The dominating law splits the P-mass p of a cell with losses in [l1, l2] over atoms at l1 and l2 so
that its Q-mass is kept: the hockey-stick curve then agrees at e^l1 and e^l2, and is a chord between
(connect-the-dots, arXiv 2207.04380). The dominated law puts all of p at ln(p/q): merging outcomes
is post-processing.

Rounding is pushed the same way. Delta is monotone in the losses; and of the masses only their sum,
1, is known better than each of them, so a law with more mass above loss 0 and less below (or the
reverse) is stochastically larger (smaller) than the true one: what the sum lacks goes to 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dpmech.cells import EPS, Cells
from dpmech.noise import Floats

# More pieces of one interval than this are not cut at once.
_MOST_PIECES = 4096.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Atoms:
    """P-masses ``exp(log_p)`` at finite ``losses``, shape (n,), and the mass at infinite loss."""

    losses: Floats
    log_p: Floats
    infinite: float

    @classmethod
    def of(cls, losses: Floats, log_p: Floats, infinite: float) -> Atoms:
        """Without empty atoms, those at equal losses joined."""
        kept = log_p > -np.inf
        losses, log_p = losses[kept], log_p[kept]
        order = np.argsort(losses)
        losses, log_p = losses[order], log_p[order]
        if len(losses):
            starts = np.flatnonzero(np.append(True, np.diff(losses) > 0))
            if len(starts) < len(losses):
                losses, log_p = losses[starts], np.logaddexp.reduceat(log_p, starts)
        return cls(losses=losses, log_p=log_p, infinite=min(1.0, infinite))

    @cached_property
    def highest(self) -> float:
        """The largest finite loss (0 where there is none)."""
        return float(self.losses[-1]) if len(self.losses) else 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Composed:
    """The sum S of independent losses: ``parts`` are atoms, each with how often it occurs."""

    parts: Sequence[tuple[Atoms, int]]

    @cached_property
    def size(self) -> int:
        """The number of atoms."""
        return sum(len(atoms.losses) for atoms, _ in self.parts)

    @cached_property
    def infinite(self) -> float:
        """P-mass at infinite loss."""
        lost = [(atoms.infinite, count) for atoms, count in self.parts if atoms.infinite > 0]
        if any(mass >= 1 for mass, _ in lost):
            return 1.0
        return -math.expm1(math.fsum(count * math.log1p(-mass) for mass, count in lost))

    @cached_property
    def highest(self) -> float:
        """The largest finite loss, rounded up."""
        return sum(count * atoms.highest for atoms, count in self.parts) * (1 + 1e-12)

    @cached_property
    def _flat(self) -> tuple[Floats, Floats, NDArray[np.int64], Floats]:
        """All losses and ln masses in one array each, where the parts start, and their counts."""
        full = [(atoms, count) for atoms, count in self.parts if len(atoms.losses)]
        starts = np.cumsum([0, *(len(atoms.losses) for atoms, _ in full)])[:-1]
        return (
            np.concatenate([atoms.losses for atoms, _ in full]),
            np.concatenate([atoms.log_p for atoms, _ in full]),
            starts,
            np.array([count for _, count in full], dtype=np.float64),
        )

    def log_moment(self, t: float) -> float:
        """K(t) = ln E e^(tS) on finite S."""
        losses, log_p, starts, counts = self._flat
        exponent = log_p + t * losses
        top = np.maximum.reduceat(exponent, starts)
        weight = np.exp(exponent - np.repeat(top, self._lengths))
        return float(counts @ (top + np.log(np.add.reduceat(weight, starts))))

    def cumulants(self, t: float) -> tuple[float, float, float]:
        """K(t), K'(t) and K''(t)."""
        losses, log_p, starts, counts = self._flat
        exponent = log_p + t * losses
        top = np.maximum.reduceat(exponent, starts)
        weight = np.exp(exponent - np.repeat(top, self._lengths))
        total = np.add.reduceat(weight, starts)
        mean = np.add.reduceat(weight * losses, starts) / total
        square = (losses - np.repeat(mean, self._lengths)) ** 2
        variance = np.add.reduceat(weight * square, starts) / total
        return float(counts @ (top + np.log(total))), float(counts @ mean), float(counts @ variance)

    @cached_property
    def _lengths(self) -> NDArray[np.int64]:
        losses, _, starts, _ = self._flat
        return np.diff(np.append(starts, len(losses)))


def dominating(cells: Cells) -> Atoms:
    """Atoms whose hockey-stick curve is nowhere below that of the cells."""
    bottom, top = cells.low + cells.low_error, cells.high + cells.high_error
    top = np.maximum(bottom, top)
    log_p, spare, up = _leaning(cells, +1)
    # A bottom that is raised above true losses cuts off up to its error of the curve; a ratio p/q
    # that is raised by more than that makes up for it.
    lifted = cells.loss + cells.loss_error + 2 * cells.low_error
    loss = np.minimum(np.maximum(lifted, bottom), top)
    flat, open_top, infinite = bottom == top, np.isinf(top), bottom == np.inf
    with np.errstate(invalid="ignore", divide="ignore"):
        down = np.exp(bottom - loss)
        # Shares of p at the bottom and at the top; an infinite top takes what the bottom leaves.
        at_top = np.expm1(bottom - loss) / np.expm1(bottom - top)
        at_bottom = np.where(open_top, down, down * np.expm1(loss - top) / np.expm1(bottom - top))
        at_top = np.where(np.isneginf(bottom) | flat, 1.0, at_top)
        at_bottom = np.where(np.isneginf(bottom) | flat, 0.0, at_bottom)
        upper = log_p + np.log(np.clip(at_top, 0.0, 1.0))
        lower = log_p + np.log(np.clip(at_bottom, 0.0, 1.0))
    lost = float(np.sum(np.exp(upper[open_top]))) if np.any(open_top) else 0.0
    keep_top, keep_bottom = ~open_top, ~infinite & ~np.isneginf(bottom)
    return Atoms.of(
        np.concatenate([bottom[keep_bottom], top[keep_top], [np.max(top[~up], initial=0.0)]]),
        np.concatenate([lower[keep_bottom], upper[keep_top], [spare]]),
        lost * (1 + 16 * EPS),
    )


def dominated(cells: Cells) -> Atoms:
    """Atoms whose hockey-stick curve is nowhere above that of the cells."""
    log_p, spare, up = _leaning(cells, -1)
    with np.errstate(invalid="ignore"):
        loss = np.maximum(cells.loss - cells.loss_error, cells.low - cells.low_error)
    infinite = cells.low == np.inf
    # Open tails are dropped: however little mass they have, a tilt would show them above all.
    finite = np.isfinite(loss) & ~np.isinf(cells.high)
    lost = float(np.sum(np.exp(log_p[infinite]))) if np.any(infinite) else 0.0
    return Atoms.of(
        np.append(loss[finite], np.min(loss[up & finite], initial=0.0)),
        np.append(log_p[finite], spare),
        lost * (1 - 16 * EPS),
    )


def _leaning(cells: Cells, way: int) -> tuple[Floats, float, NDArray[np.bool_]]:
    """ln of the P-masses with their errors towards high (+1) or low losses (-1), and of the rest.

    What the sum lacks to 1 is the rest, for loss 0; what it has too much the other side gives. Also
    which cells are on the upper side.
    """
    # A logarithm is rounded in proportion to its size, and it is added to.
    size = np.abs(np.maximum(cells.log_p, -750.0))
    error = np.minimum(cells.error + EPS * (16 + 4 * size), 1.0)
    up = cells.low >= 0
    with np.errstate(divide="ignore"):
        more, less = cells.log_p + np.log1p(error), cells.log_p + np.log1p(-error)
        if not np.all(up | (cells.high <= 0)):  # a cell across 0 is on neither side
            return (more if way > 0 else less), -np.inf, up
        gains = up if way > 0 else ~up
        log_p = np.where(gains, more, less)
        gained = float(np.sum(np.exp(log_p[gains]))) * (1 + 16 * EPS)
        kept = float(np.sum(np.exp(log_p[~gains]))) * (1 + 16 * EPS)
        if kept > 0 and gained + kept > 1:
            log_p = np.where(gains, log_p, log_p + np.log(max(0.0, 1 - gained) / kept))
        return log_p, float(np.log(max(0.0, 1 - gained - kept))), up


@dataclass(frozen=True, kw_only=True)
class Emphasis:
    """Which losses l of one release matter to delta: those with much mass tilted by e^(tilt l).

    Losses above ``far`` are tilted as that only: their shape matters no more. If all but e^-hidden
    of the tilted mass cancels, it counts the more, but not beyond e^(steep l) times the own mass: a
    small loss cannot move delta by more.
    """

    tilt: float
    far: float = np.inf
    hidden: float = 0.0
    steep: float = np.inf


def roughness(cells: Cells, edges: Floats, emphasis: Emphasis) -> Floats:
    """How far apart the tilted masses of both atoms are, per interval between ``edges``.

    In units of tilt^2/8 and of the tilted mass of all: of a narrow cell, the tilted mass times the
    squared width at most.
    """
    tilt = emphasis.tilt
    bounded = np.isfinite(cells.low) & np.isfinite(cells.high) & (cells.log_p > -np.inf)
    log_p, loss = cells.log_p[bounded], cells.loss[bounded]
    low, high, interval = cells.low[bounded], cells.high[bounded], cells.interval[bounded]
    if not len(loss):
        return np.zeros(max(len(edges) - 1, 0))
    above, below = np.maximum(high - loss, 0.0), np.maximum(loss - low, 0.0)
    share = below / np.maximum(above + below, 1e-300)
    reach = np.max(log_p + tilt * np.where(share > 0, high, loss))

    def tilted(level: Floats) -> Floats:
        return np.exp(log_p + tilt * level - reach)

    split = share * tilted(high) + (1 - share) * tilted(low)
    narrow = tilted(loss) * tilt**2 * above * below / 2  # without the cancellation
    rough = np.where(tilt * (above + below) < 1e-3, narrow, split - tilted(loss))
    log_total = reach + float(np.log(np.sum(split)))
    with np.errstate(invalid="ignore"):  # inf * 0, where nothing is too steep
        own = np.where(loss > 0, emphasis.steep * loss, 0.0) - (tilt * loss - log_total)
    beyond = tilt * np.maximum(loss - emphasis.far, 0.0)
    weight = np.exp(np.minimum(emphasis.hidden, own) - beyond + (reach - log_total))
    rough = np.maximum(rough, narrow) * weight * 8 / tilt**2
    kept = interval >= 0
    found = np.bincount(interval[kept], weights=rough[kept], minlength=max(len(edges) - 1, 0))
    return found.astype(np.float64)


def cut(edges: Floats, pieces: Floats) -> Floats:
    """The edges with interval i cut into ``pieces[i]`` equal parts (at least one)."""
    if len(edges) < 2:
        return edges
    count = np.ceil(np.clip(pieces, 1.0, _MOST_PIECES)).astype(np.int64)
    count = np.where(np.isfinite(edges[1:]), count, 1)
    which = np.repeat(np.arange(len(count)), count)
    within = np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count)
    with np.errstate(invalid="ignore"):
        gap = np.where(within > 0, np.diff(edges)[which] * (within / count[which]), 0.0)
    return np.unique(np.append(edges[which] + gap, edges[-1]))
