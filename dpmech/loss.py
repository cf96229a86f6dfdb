"""Dominating pairs: what an accountant needs to know of a mechanism (mathematics.md §3, §4).

Symbols: ``P`` the law centred at the shift s, ``Q`` the law centred at 0, ``l`` privacy loss
ln dP/dQ. Of an additive symmetric noise, l(x) = ln f(x-s)/f(x) is odd about s/2, so only its
non-negative half, on x >= s/2, is ever inverted; the other half follows by exchanging P and Q.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from dpmech.families import Staircase
from dpmech.noise import Floats, Noise

_EPS = float(np.finfo(np.float64).eps)
_LN2 = float(np.log(2))
# Probability below which a tail is not resolved but counted as lost (added to the infinite mass).
_NEGLIGIBLE = 1e-300
_NEWTON_STEPS = 40
# Places in [0, 1] at which a branch of the loss is tabulated: dense at both ends, where it may
# bend.
_ENDS = np.geomspace(1e-12, 0.5, 600)
_TABLE = np.unique(np.concatenate([[0.0, 1.0], _ENDS, 1 - _ENDS, np.linspace(0, 1, 1200)]))

Direction = Literal["remove", "add"]


@dataclass(frozen=True, kw_only=True, eq=False)
class CellMasses:
    """Masses of the cells (-inf, l0], (l0, l1], …, (ln, inf) of the privacy loss.

    ``log_p`` and ``log_q`` are their logarithms under P and Q (the first cell's q includes Q-mass
    where P has none, loss -inf; the last cell's p excludes the infinite mass), ``error`` bounds the
    relative rounding error of the masses, and ``loss_error`` how far true losses may lie outside
    the levels.
    """

    log_p: Floats
    log_q: Floats
    error: Floats
    loss_error: float

    @property
    def p(self) -> Floats:
        """The masses under P."""
        return np.exp(self.log_p)


class DominatingPair(Protocol):
    """A pair (P, Q) whose hockey-stick curve is never below the mechanism's."""

    @property
    def infinite_mass(self) -> float:
        """P-mass on which Q has none."""
        ...

    def loss_range(self, tail: float) -> tuple[float, float]:
        """(low, high) with P(loss < low) <= tail and P(high < loss < inf) <= tail."""
        ...

    def masses(self, levels: Floats) -> CellMasses:
        """Cell masses between increasing loss ``levels``, shape (n,) to n + 1 cells."""
        ...

    def atoms(self) -> tuple[float, ...]:
        """Losses that carry positive mass, where they are known (a hint for placing grids)."""
        ...


@dataclass(frozen=True, kw_only=True)
class PeakedPair:
    """The pair of a law whose loss rises on [s/2, peak] and falls after (if peak < inf)."""

    noise: Noise
    shift: float

    @property
    def infinite_mass(self) -> float:
        end = self.noise.support
        lost = 0.0 if np.isinf(end) else float(np.exp(self.noise.logsf(end - self.shift)))
        return min(1.0, lost + _NEGLIGIBLE)

    @property
    def _disjoint(self) -> bool:
        return self.noise.support <= self.shift / 2

    def loss(self, x: Floats) -> Floats:
        """ln f(x-s)/f(x) at points inside both supports."""
        return self.noise.logpdf(x - self.shift) - self.noise.logpdf(x)

    @cached_property
    def _end(self) -> float:
        """Beyond it P has no mass worth resolving, or Q none at all."""
        return min(self.noise.support, self.shift + float(self.noise.isf(_NEGLIGIBLE)))

    @property
    def _peak(self) -> float:
        return min(self.noise.loss_peak(self.shift), self._end)

    def loss_range(self, tail: float) -> tuple[float, float]:
        if self._disjoint:
            return 0.0, 0.0
        reach = float(self.noise.isf(min(max(tail, _NEGLIGIBLE), 0.25)))
        right = max(self.shift / 2, min(self._peak, self.shift + reach))
        # P's left tail lies before s - reach. If that is past s/2, a loss that never falls is at
        # least what it is there; otherwise it is at least minus that of the mirrored point.
        left = self.shift - reach
        if left > self.shift / 2 and np.isinf(self._top):
            low, high = self.loss(np.asarray([left, right]))
        else:
            mirrored = max(self.shift / 2, min(self._peak, reach))
            low, high = self.loss(np.asarray([mirrored, right])) * (-1, 1)
        return min(float(low), float(high)), max(float(low), float(high))

    def atoms(self) -> tuple[float, ...]:
        near, far = self.shift, self._peak
        if near >= far or self._disjoint:
            return ()
        at_shift, at_end = self.loss(np.asarray([near, far]))
        # A log-concave law whose loss no longer rises beyond the shift (Laplace) is flat there.
        flat = abs(at_end - at_shift) <= 1e-12 * abs(at_shift)
        return (-float(at_shift), float(at_shift)) if flat else ()

    def masses(self, levels: Floats) -> CellMasses:
        if self._disjoint:
            nothing = np.full(len(levels) + 1, -np.inf)
            first = np.append(0.0, nothing[1:])
            return CellMasses(
                log_p=nothing, log_q=first, error=np.zeros(len(first)), loss_error=0.0
            )
        fine = np.unique(np.concatenate([[0.0], np.abs(levels)]))
        rise, fall = self._rise(fine), self._fall(fine)
        # The loss is above 0 on all of x > s/2, also where doubles cannot tell it from 0.
        rise[0], fall[0] = self.shift / 2, np.inf
        half = self._positive_cells(rise, fall)
        # Mirrored cells first, from -inf up: exchanging P and Q turns the loss over.
        turned = _LogMasses(p=half.q[::-1], q=half.p[::-1].copy(), error=half.error[::-1])
        # Loss -inf: what P lacks at one end, Q lacks at the other.
        turned.q[0] = np.logaddexp(turned.q[0], np.log(self.infinite_mass))
        bounds = np.concatenate([-fine[:0:-1], fine])
        starts = np.concatenate([[0], np.searchsorted(bounds, levels, side="left") + 1])
        cells = turned.followed_by(half).collected(starts)
        slack = max(self._miss(rise, fine), self._miss(fall, fine))
        return CellMasses(log_p=cells.p, log_q=cells.q, error=cells.error, loss_error=slack)

    def _positive_cells(self, rise: Floats, fall: Floats) -> _LogMasses:
        """Masses of (l0, l1], …, (ln, inf) for the places where the loss meets these levels."""
        top = self._top
        rising = self._between(rise, np.append(rise[1:], top))
        if np.isinf(top):
            return rising
        return rising.plus(self._between(np.append(fall[1:], top), fall))

    @property
    def _top(self) -> float:
        """Where the loss is highest, if it falls again after."""
        return self._peak if self._peak < self._end else np.inf

    def _rise(self, levels: Floats) -> Floats:
        """First x >= s/2 at which the loss reaches each level; the peak where it never does."""
        return self._cross(levels, self._rising)

    def _fall(self, levels: Floats) -> Floats:
        """Last x at which the loss is at least each level."""
        if self._peak >= self._end:
            return np.full_like(levels, np.inf)
        fallen = self._cross(levels, self._falling)
        # Levels that the loss still exceeds where Q ends are never crossed again.
        never = levels < float(self.loss(np.asarray(self._end)))
        return np.where(never, np.inf, fallen)

    @cached_property
    def _rising(self) -> tuple[Floats, Floats]:
        return self._tabulated(self.shift / 2, self._peak)

    @cached_property
    def _falling(self) -> tuple[Floats, Floats]:
        return self._tabulated(self._end, self._peak)

    def _tabulated(self, start: float, peak: float) -> tuple[Floats, Floats]:
        """Places from ``start`` (loss low) to ``peak`` (loss high), and the losses there."""
        if start < peak:
            table = start + (peak - start) * _TABLE
        else:  # heavy tails end 1e70 shifts away: what falls is tabulated by its way from the peak
            near = 1e-14 * min(self.shift, start - peak)
            table = peak + np.geomspace(start - peak, near, len(_TABLE))
        table[-1] = peak  # the sum may round past the end of a support
        return table, np.maximum.accumulate(self.loss(table))

    def _cross(self, levels: Floats, branch: tuple[Floats, Floats]) -> Floats:
        """x on the branch at which the loss equals each level."""
        table, losses = branch
        inside = (levels > losses[0]) & (levels < losses[-1])
        # A law without a peak is above every level it reaches from some x on, for ever.
        beyond = np.inf if self._peak >= self._end else table[-1]
        x = np.where(levels >= losses[-1], beyond, table[0])
        x[inside] = self._inverted(levels[inside], table, losses)
        return x

    def _inverted(self, levels: Floats, table: Floats, losses: Floats) -> Floats:
        """x with the given losses, by Newton's method kept inside brackets from a table.

        How close it came is measured by :meth:`_miss`, so that nothing rests on its convergence.
        """
        cell = np.clip(np.searchsorted(losses, levels), 1, len(table) - 1)
        low, high = table[cell - 1], table[cell]  # by loss: low may lie right of high
        with np.errstate(invalid="ignore", divide="ignore"):
            x = low + (high - low) * (levels - losses[cell - 1]) / (losses[cell] - losses[cell - 1])
        left = np.arange(len(levels))  # those not yet at their level
        for _ in range(_NEWTON_STEPS):
            if not len(left):
                break
            a, b, at = low[left], high[left], x[left]
            at = np.where((at - a) * (at - b) <= 0, at, (a + b) / 2)
            log_p, log_q = self.noise.logpdf(at - self.shift), self.noise.logpdf(at)
            miss = log_p - log_q - levels[left]
            low[left], high[left] = np.where(miss <= 0, at, a), np.where(miss > 0, at, b)
            slope = self.noise.score(at - self.shift) - self.noise.score(at)
            with np.errstate(invalid="ignore", divide="ignore"):
                move = miss / slope
            rounding = 2 * _EPS * (1 + np.abs(log_p) + np.abs(log_q))
            done = (np.abs(miss) <= rounding) | (np.abs(move) <= 4 * _EPS * np.abs(at))
            x[left] = np.where(done, at, at - move)
            left = left[~done]
        # A last step may have left its bracket, even for infinity, where `_miss` would not see it.
        x = np.where((x - low) * (x - high) <= 0, x, (low + high) / 2)
        # Rounding may unsort neighbours, but cells need sorted edges.
        order = np.maximum if table[0] < table[-1] else np.minimum
        return order.accumulate(x)

    def _miss(self, x: Floats, levels: Floats) -> float:
        """How far the loss at the cuts is from the levels they stand for, plus rounding."""
        real = np.isfinite(x) & (x > self.shift / 2) & (x != self._top)
        least = 4 * _EPS * (1 + 2 * abs(float(self.noise.logpdf(self.shift / 2))))
        if not np.any(real):
            return least
        got, want = self.loss(x[real]), levels[real]
        scale = np.abs(self.noise.logpdf(x[real])) + np.abs(self.noise.logpdf(x[real] - self.shift))
        return max(least, float(np.max(np.abs(got - want)) + 4 * _EPS * (1 + np.max(scale))))

    def _between(self, a: Floats, b: Floats) -> _LogMasses:
        """P- and Q-mass of each (a, b], inside Q's support only."""
        end = self.noise.support
        a, b = np.minimum(a, end), np.minimum(b, end)
        p, p_error = _interval(self.noise, a - self.shift, b - self.shift)
        q, q_error = _interval(self.noise, a, b)
        # inf - inf: an empty cell at infinity; an overflow is capped at 1 below.
        with np.errstate(invalid="ignore", over="ignore"):
            width = np.maximum(b - a, 1e-300)
            placing = np.where(np.isfinite(b), 4 * _EPS * (np.abs(a) + self.shift) / width, 0.0)
        error = np.minimum(1.0, np.maximum(p_error, q_error) + placing)
        return _LogMasses(p=p, q=q, error=np.where(np.isneginf(np.maximum(p, q)), 0.0, error))


@dataclass(frozen=True, kw_only=True, eq=False)
class _LogMasses:
    """ln of cell masses under P and Q, and their relative errors."""

    p: Floats
    q: Floats
    error: Floats

    def followed_by(self, other: _LogMasses) -> _LogMasses:
        return _LogMasses(
            p=np.concatenate([self.p, other.p]),
            q=np.concatenate([self.q, other.q]),
            error=np.concatenate([self.error, other.error]),
        )

    def plus(self, other: _LogMasses) -> _LogMasses:
        """The union of cells pairwise."""
        pairs = (np.stack([getattr(self, n), getattr(other, n)], 1).ravel() for n in "pq")
        error = np.stack([self.error, other.error], 1).ravel()
        p, q = pairs
        both = _LogMasses(p=p, q=q, error=error)
        return both.collected(np.arange(0, len(p), 2))

    def collected(self, starts: NDArray[np.int64]) -> _LogMasses:
        """Runs of cells joined; an error counts by the mass it belongs to."""
        p, q = np.logaddexp.reduceat(self.p, starts), np.logaddexp.reduceat(self.q, starts)
        run = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(self.p))))
        with np.errstate(invalid="ignore"):  # -inf - -inf: empty cells err by nothing
            p_error = np.add.reduceat(_or_zero(self.error * np.exp(self.p - p[run])), starts)
            q_error = np.add.reduceat(_or_zero(self.error * np.exp(self.q - q[run])), starts)
        return _LogMasses(p=p, q=q, error=np.minimum(1.0, np.maximum(p_error, q_error)))


def _or_zero(values: Floats) -> Floats:
    return np.where(np.isnan(values), 0.0, values)


def _interval(noise: Noise, a: Floats, b: Floats) -> tuple[Floats, Floats]:
    """ln of the mass of (a, b] and a bound on its relative error, from log-survival differences."""
    right, right_error = _tail_difference(noise, np.maximum(a, 0.0), np.maximum(b, 0.0))
    left, left_error = _tail_difference(noise, np.maximum(-b, 0.0), np.maximum(-a, 0.0))
    mass = np.logaddexp(right, left)
    with np.errstate(invalid="ignore"):
        error = right_error * np.exp(right - mass) + left_error * np.exp(left - mass)
    return mass, _or_zero(error)


def _tail_difference(noise: Noise, a: Floats, b: Floats) -> tuple[Floats, Floats]:
    """ln P(a < X <= b) for 0 <= a <= b, and the relative error of that difference."""
    upper = noise.logsf(a)
    with np.errstate(invalid="ignore", divide="ignore"):
        drop = np.where(b > a, np.minimum(noise.logsf(b) - upper, 0.0), 0.0)
        drop = _or_zero(drop)
        mass = upper + np.log(-np.expm1(drop))
        error = 8 * _EPS * (1 + np.abs(upper)) / np.abs(drop)
    return mass, np.where(drop < 0, np.minimum(_or_zero(error), 1.0), 0.0)


@dataclass(frozen=True, kw_only=True, eq=False)
class AtomicPair:
    """The pair of a symmetric law whose loss takes few values: ``p`` on increasing ``losses``.

    By symmetry Q has as much mass where P has none as P has where Q has none: ``infinite_mass``.
    """

    losses: Floats
    p: Floats
    infinite_mass: float = 0.0

    @classmethod
    def from_cells(cls, losses: Floats, p: Floats, infinite_mass: float) -> Self:
        """Collect cells with equal losses (to rounding) into atoms, each at its highest loss."""
        order = np.argsort(losses, kind="stable")
        losses, p = losses[order], p[order]
        apart = np.diff(losses) > 1e-12 * (1 + np.abs(losses[1:]))
        starts = np.concatenate([[0], np.flatnonzero(apart) + 1])
        collected = np.add.reduceat(p, starts)
        return cls(
            losses=np.maximum.reduceat(losses, starts), p=collected, infinite_mass=infinite_mass
        )

    def loss_range(self, tail: float) -> tuple[float, float]:
        del tail  # all of it is cheap to keep
        return float(self.losses[0]), float(self.losses[-1])

    def atoms(self) -> tuple[float, ...]:
        return tuple(float(x) for x in self.losses)

    def masses(self, levels: Floats) -> CellMasses:
        cell = np.searchsorted(levels, self.losses, side="left")
        n = len(levels) + 1
        log_p, log_q = np.full(n, -np.inf), np.full(n, -np.inf)
        with np.errstate(divide="ignore"):
            np.logaddexp.at(log_p, cell, np.log(self.p))
            np.logaddexp.at(log_q, cell, np.log(self.p) - self.losses)
            # Not 1 minus the rest: its rounding would pass for mass at infinity of the reverse
            # pair.
            log_q[0] = np.logaddexp(log_q[0], np.log(self.infinite_mass))
        error = np.full(n, 8 * _EPS * (1 + float(np.max(np.abs(self.losses)))))
        return CellMasses(log_p=log_p, log_q=log_q, error=error, loss_error=1e-12)


def staircase_atoms(law: Staircase, shift: float) -> tuple[Floats, Floats, float]:
    """(losses, P-masses, infinite mass) of the cells on which both densities are constant."""
    steps = int(np.ceil(700 / law.epsilon)) + 1
    if steps > 2_000_000:
        raise ValueError(f"Expected epsilon={law.epsilon} of a staircase law to be at least 0.001.")
    edges = law.width * (np.arange(steps, dtype=np.float64) + law.gamma)
    edges = np.concatenate([-edges[::-1], edges])
    cuts = np.unique(np.concatenate([edges, edges + shift]))
    # Cuts that agree to rounding enclose no mass; the cells between them would have a random loss.
    cuts = cuts[np.concatenate([[True], np.diff(cuts) > 1e-12 * law.width * (1 + steps * 1e-3)])]
    middle = (cuts[1:] + cuts[:-1]) / 2
    losses = law.logpdf(middle - shift) - law.logpdf(middle)
    log_p, _ = _interval(law, cuts[:-1] - shift, cuts[1:] - shift)
    outside = float(law.sf(cuts[-1] - shift) + law.sf(shift - cuts[0]))
    return losses, np.exp(log_p), outside


def pair_of(noise: Noise, shift: float) -> DominatingPair:
    """P = the law centred at ``shift`` against Q = the law centred at 0.

    The pair dominates every smaller shift, because the laws here are unimodal (mathematics.md §3).
    """
    if isinstance(noise, Staircase):
        return AtomicPair.from_cells(*staircase_atoms(noise, shift))
    return PeakedPair(noise=noise, shift=shift)


@dataclass(frozen=True, kw_only=True)
class SubsampledPair:
    """Poisson subsampling at ``rate`` (Zhu, Dong, Wang 2022): ((1-q)Q + qP, Q) or its reverse."""

    base: DominatingPair
    rate: float
    direction: Direction

    @property
    def infinite_mass(self) -> float:
        return self.rate * self.base.infinite_mass if self.direction == "remove" else 0.0

    def _up(self, base_loss: float) -> float:
        """Loss of the mixture against Q where the base loss is ``base_loss``."""
        if base_loss > 700.0:  # expm1 would overflow; the mixture is then q e^l to all digits
            return base_loss + float(np.log(self.rate))
        return float(np.log1p(self.rate * np.expm1(base_loss)))

    def _down(self, levels: Floats) -> Floats:
        """Base losses at which the mixture's loss against Q reaches the levels (-inf: always)."""
        with np.errstate(divide="ignore", over="ignore"):
            ratio = np.expm1(levels) / self.rate
            direct = np.log1p(np.maximum(ratio, -1.0))
            if self.rate > 0.5:  # towards rate 1 the ratio cancels below 0, and this form does not
                least = np.log1p(-self.rate)
                odds = np.maximum(np.expm1(np.minimum(levels - least, 700.0)), 0.0)
                direct = np.where(levels < 0, np.log(odds) + least - np.log(self.rate), direct)
        return np.where(levels > 700.0, levels - np.log(self.rate), direct)

    def loss_range(self, tail: float) -> tuple[float, float]:
        low, high = self.base.loss_range(tail)
        # Q's tails are P's turned over, so one symmetric range serves both directions.
        low, high = min(low, -high), max(high, -low)
        if (
            self.base.infinite_mass > tail
        ):  # Q has mass where P has none: the mixture is (1-q)Q there
            low = -np.inf
        low, high = self._up(low), self._up(high)
        return (low, high) if self.direction == "remove" else (-high, -low)

    def atoms(self) -> tuple[float, ...]:
        sign = 1.0 if self.direction == "remove" else -1.0
        return tuple(sorted(sign * self._up(a) for a in self.base.atoms()))

    def masses(self, levels: Floats) -> CellMasses:
        remove = self.direction == "remove"
        wanted = levels if remove else -levels[::-1]
        inside = wanted > np.log1p(-self.rate)
        base = self.base.masses(self._down(wanted[inside]))
        mixed = np.logaddexp(np.log1p(-self.rate) + base.log_q, np.log(self.rate) + base.log_p)
        missing = int(np.sum(~inside))  # cells below the least loss the mixture has
        empty = np.full(missing, -np.inf)
        p, q = np.concatenate([empty, mixed]), np.concatenate([empty, base.log_q])
        error = np.concatenate([np.zeros(missing), base.error])
        if not remove:
            p, q, error = q[::-1], p[::-1].copy(), error[::-1]
            with np.errstate(divide="ignore"):  # where only the record's own law has mass
                q[0] = np.logaddexp(q[0], np.log(self.rate * self.base.infinite_mass))
        extent = float(np.max(np.abs(levels), initial=0.0))
        slack = base.loss_error + 4 * _EPS * extent
        return CellMasses(log_p=p, log_q=q, error=error, loss_error=slack)
