"""Rényi moments of a dominating pair, bracketed by cells of its loss (mathematics.md §5).

Symbols: ``P``, ``Q`` the pair, ``r = e^l`` likelihood ratio dP/dQ, ``alpha`` order > 1, ``gamma =
alpha - 1``, ``m`` P-mass where Q has none, ``E(x) = e^x - 1 - x >= 0``.

As E_Q[r] = 1 - m, the moment of the finite losses is E_Q[r^alpha] = 1 + E_Q[psi] - alpha m with
``psi = r^alpha - 1 - alpha (r - 1) = e^l (E(gamma l) + gamma E(-l))``: both terms are positive, so
nothing cancels, however near the moment is to 1.

psi is convex in r. On a cell with masses p and q on which r stays between two values, its mean
under Q is therefore least if r is p/q throughout (Jensen), and largest if r takes only those two
values (a chord: arXiv 2207.04380 calls it connecting the dots). Both are bounds at every order,
whatever the cells; the cells are cut until the two agree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from accountants._atoms import cut
from accountants._tails import end_of_cells, is_known, log_tail
from dpmech.cells import EPS, Cells
from dpmech.loss import DominatingPair
from dpmech.noise import Floats

# Relative gap between the bounds on a divergence at which cells are not cut further.
FINE = 1e-6
# A tail of this mass is not cut into cells.
_TAIL = 1e-300
_ROUNDS = 12
# Intervals there may be, and more times tolerance^(-1/2): gaps fall with their square.
_FEW, _CELLS = 6000.0, 30.0
# Orders that share their cells.
_TOGETHER = 16
# Parts that a cell is cut into at once: bounds on wide cells say little of how many are needed.
_PIECES = 16.0
# Where E(x) is a series of so many terms, and where it is e^x to all digits, about to overflow.
_NEAR_0, _SERIES_TERMS, _LARGE = 0.05, 10, 600.0
# For the rounding of the sums, and for cells so narrow that rounding leaves them no mass.
_MARGIN = 1e-12


def renyi_interval(
    pair: DominatingPair, orders: Floats, tolerance: float = FINE
) -> tuple[Floats, Floats]:
    """(lower, upper) bounds on ln E_P[r^gamma; r finite] / gamma at ``orders``, shape (n,).

    Without a :func:`lost_mass` that is the Rényi divergence. ``tolerance``: the relative gap to aim
    at; rounding may leave a larger one, and both bounds hold either way.
    """
    low, high = np.empty_like(orders), np.empty_like(orders)
    # Orders far apart need cells in different places.
    for some in np.array_split(np.argsort(orders), math.ceil(len(orders) / _TOGETHER)):
        low[some], high[some] = _refined(pair, orders[some], tolerance)
    return low, high


def _refined(pair: DominatingPair, orders: Floats, tolerance: float) -> tuple[Floats, Floats]:
    edges = _first_edges(pair, orders)
    most = _FEW + _CELLS * tolerance**-0.5
    best = _Moments.of(pair, edges, orders)
    wanted = np.ones(len(orders), dtype=np.bool_)
    for _ in range(_ROUNDS):
        wanted &= best.gap > tolerance
        pieces = best.pieces(len(edges) - 1, tolerance, wanted)
        pieces = pieces * min(1.0, most / max(float(np.sum(pieces)), 1.0))
        if not np.any(pieces > 1) or len(edges) > most:
            break
        edges = cut(edges, pieces)
        last, best = best, _Moments.of(pair, edges, orders)
        # Where cutting no longer helps, what is left is rounding.
        wanted &= (best.gap <= last.gap / 2) | (last.gap > 1e-2)
    return best.divergences


def renyi_of_pair(pair: DominatingPair, orders: Floats, tolerance: float = FINE) -> Floats:
    """The upper bounds of :func:`renyi_interval`."""
    return renyi_interval(pair, orders, tolerance)[1]


def lost_mass(pair: DominatingPair) -> float:
    """P-mass that :func:`renyi_interval` leaves out: infinite loss, and tails not bounded."""
    cells = pair.cells(_edges(pair))
    infinite = cells.low == np.inf
    if not is_known(pair):
        infinite |= cells.high == np.inf
    return min(1.0, _mass(cells, infinite) * (1 + 1e-12))


@lru_cache(maxsize=8)
def _edges(pair: DominatingPair) -> Floats:
    """Quantiles so far out may take a search."""
    return pair.edges(_TAIL)


def _first_edges(pair: DominatingPair, orders: Floats) -> Floats:
    edges = _edges(pair)
    if len(edges) < 3 or math.isfinite(edges[-1]):
        return edges
    return np.unique(np.concatenate([edges, end_of_cells(pair, orders)]))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Moments:
    """The bounds that one set of cells gives: ``log_low``, ``log_high`` of shape (orders, cells).

    ln of E_Q[psi] on each cell; ``log_beyond`` what bounds the tail beyond all cells.
    """

    gamma: Floats
    interval: NDArray[np.int64]
    log_low: Floats
    log_high: Floats
    log_beyond: Floats
    lost: float

    @classmethod
    def of(cls, pair: DominatingPair, edges: Floats, orders: Floats) -> _Moments:
        cells, gamma = pair.cells(edges), orders[:, None] - 1
        infinite = cells.low == np.inf
        open_top = (cells.high == np.inf) & ~infinite
        log_beyond = np.full(len(orders), -np.inf)
        lost = _mass(cells, infinite)
        if np.any(open_top):
            if is_known(pair):
                log_beyond = log_tail(pair, orders, float(edges[-2]))
            else:  # it counts as infinite loss, and Q's mass has psi(0) = gamma
                lost += _mass(cells, open_top)
                log_q = np.logaddexp.reduce(cells.log_q[open_top])
                log_beyond = np.log(gamma[:, 0]) + log_q + _MARGIN
        kept = cells.where(~infinite & ~open_top)
        low, high = _bounds(kept, gamma)
        return cls(
            gamma=gamma[:, 0],
            interval=kept.interval,
            log_low=low,
            log_high=high,
            log_beyond=log_beyond,
            lost=lost,
        )

    @cached_property
    def _totals(self) -> tuple[Floats, Floats]:
        """ln of the bounds on E_Q[psi]."""
        high = np.logaddexp(_log_sum(self.log_high), self.log_beyond) + _MARGIN
        return _log_sum(self.log_low) - _MARGIN, high

    @cached_property
    def _log_moments(self) -> tuple[Floats, Floats]:
        """ln of the bounds on the moment."""
        low, high = self._totals
        spent = (1 + self.gamma) * self.lost
        return _log_one_plus(low, spent * (1 + _MARGIN)), _log_one_plus(high, spent * (1 - 1e-9))

    @property
    def divergences(self) -> tuple[Floats, Floats]:
        low, high = self._log_moments
        return low / self.gamma - 4 * EPS * np.abs(low), high / self.gamma * (1 + 4 * EPS)

    @cached_property
    def gap(self) -> Floats:
        """Relative, per order."""
        low, high = self._log_moments
        return (high - low) / np.maximum(np.abs(high), 1e-300)

    def pieces(self, intervals: int, tolerance: float, wanted: NDArray[np.bool_]) -> Floats:
        """Into how many parts each interval should be cut for the orders ``wanted``.

        The gap of one cut into n parts falls to 1/n^2, so the fewest parts for a given sum of gaps
        have n ~ (the gap)^(1/3).
        """
        known = self.interval >= 0
        if not np.any(known) or not np.any(wanted):
            return np.ones(max(intervals, 0))
        low, high = self._totals
        log_moment = np.maximum(self._log_moments[0], 1e-300)
        # What of E_Q[psi] may be unknown: d ln(1 + x) = dx/(1 + x).
        allowed = np.log(tolerance * log_moment) + np.logaddexp(0.0, low)
        unit = np.minimum(allowed, high)[wanted, None]
        shares = _exp_gaps(self.log_low[wanted], self.log_high[wanted], unit)
        cubes = np.stack(
            [np.bincount(self.interval[known], row[known], intervals) for row in np.cbrt(shares)]
        )
        scale = np.sqrt(np.sum(cubes, axis=1, keepdims=True))
        return np.minimum(np.max(scale * cubes, axis=0), _PIECES)


def _mass(cells: Cells, which: NDArray[np.bool_]) -> float:
    """P-mass of those cells, rounded up."""
    return float(np.sum(np.exp(cells.log_p[which]) * (1 + cells.error[which])))


def _log_one_plus(log_x: Floats, less: Floats) -> Floats:
    """ln(1 + x - less)."""
    if not np.any(less > 0):
        return np.logaddexp(0.0, log_x)
    with np.errstate(divide="ignore"):
        small = np.log1p(np.maximum(np.exp(np.minimum(log_x, 700.0)) - less, -1.0))
    return np.where(log_x < 700.0, small, log_x)


def _exp_gaps(low: Floats, high: Floats, unit: Floats) -> Floats:
    """(e^high - e^low) / e^unit, at most e^60."""
    with np.errstate(invalid="ignore"):
        inside = np.where(high > low, -np.expm1(np.minimum(low - high, 0.0)), 0.0)
    return np.exp(np.minimum(high - unit, 60.0)) * inside


def _log_sum(values: Floats) -> Floats:
    """ln of the sums of e^values over the last axis."""
    if values.shape[-1] == 0:
        return np.full(len(values), -np.inf)
    top = np.maximum(np.max(values, axis=-1), -1e300)
    with np.errstate(divide="ignore"):
        return top + np.log(np.sum(np.exp(values - top[:, None]), axis=-1))


def _bounds(cells: Cells, gamma: Floats) -> tuple[Floats, Floats]:
    """ln of the bounds on E_Q[psi] on each cell, rounding included; ``gamma`` of shape (n, 1)."""
    bottom, top = cells.low - cells.low_error, cells.high + cells.high_error
    known = np.isfinite(cells.loss_error)
    wrong = np.where(known, cells.loss_error, 0.0) + 8 * EPS * _size(cells.log_p, cells.log_q)
    least = np.where(known, np.clip(cells.loss - wrong, bottom, top), bottom)
    most = np.where(known, np.clip(cells.loss + wrong, bottom, top), top)
    # Where Q's mass is below what doubles hold, P's and the least loss bound it.
    with np.errstate(invalid="ignore"):
        log_q = np.where(np.isneginf(cells.log_q), cells.log_p - bottom, cells.log_q)
    error = cells.error + wrong + 8 * EPS * _size(log_q)
    # Powers are rounded in proportion to their exponents.
    rounding = error + 8 * EPS * (16 + (1 + gamma) * _size(np.where(top > 700, top, bottom), top))
    chord = _chord(gamma, bottom, top, (least, most))
    nearest = np.clip(0.0, least, most)  # psi falls to loss 0 and rises from there
    return log_q + log_psi(gamma, nearest) - rounding, log_q + chord + rounding


def _size(*values: Floats) -> Floats:
    """The sum of the sizes of those that are finite."""
    return sum((np.where(np.isfinite(v), np.abs(v), 0.0) for v in values), np.zeros(1))


def _chord(gamma: Floats, bottom: Floats, top: Floats, means: tuple[Floats, Floats]) -> Floats:
    """ln of the largest mean of psi if losses are in [bottom, top] and ln E r is in ``means``."""
    at_bottom, at_top = log_psi(gamma, bottom), log_psi(gamma, top)
    falls, wide = at_bottom > at_top, bottom < top
    with np.errstate(divide="ignore", invalid="ignore"):
        width = np.expm1(bottom - top)
        lower = [np.log(np.where(wide, np.expm1(m - top) / width, 0.0)) for m in means]
        upper = [_log_share(m, bottom, top, width) for m in means]
        down = np.where(falls, lower[0], lower[1]) + at_bottom
        up = np.where(falls, upper[0], upper[1]) + at_top
    return np.logaddexp(down, up)


def _log_share(mean: Floats, bottom: Floats, top: Floats, width: Floats) -> Floats:
    """ln of the share at the top of the two-point law on e^bottom and e^top with mean e^mean."""
    with np.errstate(divide="ignore", invalid="ignore"):
        inside = np.log(np.expm1(bottom - mean) / width) + np.minimum(mean - top, 0.0)
    return np.where(bottom < top, np.where(mean > bottom, inside, -np.inf), 0.0)


def log_psi(gamma: Floats, loss: Floats) -> Floats:
    """ln psi at losses of shape (n,); shape (orders, n)."""
    finite = np.where(np.isfinite(loss), loss, 0.0)
    large = np.maximum(np.max(gamma, initial=0.0) * finite, -finite) > _LARGE
    values, small = np.empty((len(gamma), len(loss))), finite[~large]
    with np.errstate(divide="ignore"):
        values[:, ~large] = small + np.log(_rest(gamma * small) + gamma * _rest(-small))
    values[:, large] = _log_psi_large(gamma, finite[large])
    return np.where(np.isneginf(loss), np.log(gamma), values)


def _log_psi_large(gamma: Floats, loss: Floats) -> Floats:
    """The same where powers overflow."""
    with np.errstate(divide="ignore"):
        return loss + np.logaddexp(_log_rest(gamma * loss), np.log(gamma) + _log_rest(-loss))


def _log_rest(x: Floats) -> Floats:
    """ln E(x), also where E(x) overflows."""
    return np.where(x > _LARGE, x, np.log(_rest(np.minimum(x, _LARGE))))


def _rest(x: Floats) -> Floats:
    """E(x) = e^x - 1 - x for x <= 600, good to 1e-14."""
    near = np.clip(x, -_NEAR_0, _NEAR_0)
    series = 1 + near / _SERIES_TERMS
    for k in range(_SERIES_TERMS - 1, 2, -1):
        series *= near / k
        series += 1
    return np.where(np.abs(x) < _NEAR_0, x * x / 2 * series, np.expm1(x) - x)
