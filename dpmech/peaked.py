"""The pair of an additive symmetric noise, by places on the line (mathematics.md §3, §4).

Symbols: ``P`` the law centred at the shift s, ``Q`` the law centred at 0, ``l`` privacy loss
ln dP/dQ = ln f(x-s)/f(x). It is odd about s/2: the reflection x -> s - x exchanges P and Q, so only
x >= s/2 is ever computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dpmech.cells import EPS, CellMasses, Cells, LogMasses, cell_without_q, interval_mass, or_zero
from dpmech.families import Laplace
from dpmech.noise import Floats, Noise

# Probability below which a tail is not resolved but counted as lost (added to the infinite mass).
NEGLIGIBLE = 1e-300
_NEWTON_STEPS = 40
# Intervals that the half-line is first cut into.
_FIRST = 96
# Places in [0, 1] at which a branch of the loss is tabulated: dense at both ends, where it may
# bend.
_ENDS = np.geomspace(1e-12, 0.5, 600)
_TABLE = np.unique(np.concatenate([[0.0, 1.0], _ENDS, 1 - _ENDS, np.linspace(0, 1, 1200)]))


@dataclass(frozen=True, kw_only=True)
class PeakedPair:
    """The pair of a law whose loss rises on [s/2, peak] and falls after (if peak < inf)."""

    noise: Noise
    shift: float

    @property
    def infinite_mass(self) -> float:
        end = self.noise.support
        lost = 0.0 if np.isinf(end) else float(np.exp(self.noise.logsf(end - self.shift)))
        return min(1.0, lost + NEGLIGIBLE)

    @property
    def _disjoint(self) -> bool:
        return self.noise.support <= self.shift / 2

    def edges(self, tail: float) -> Floats:
        if self._disjoint:
            return np.array([self.shift / 2])
        s, width = self.shift, float(self.noise.isf(0.25))
        start = np.asarray(s / 2)
        end = min(self.noise.support, s + float(self.noise.isf(max(tail, NEGLIGIBLE))))
        # Dense about the shift, where the density may bend, and in steps that grow with the way
        # from there: tails may be heavy.
        u = np.linspace(np.arcsinh((start - s) / width), np.arcsinh((end - s) / width), _FIRST)
        inner = s + width * np.sinh(u[1:-1])
        special = [s / 2, s, end, self.noise.loss_peak(s)]
        places = np.concatenate([inner, special])
        inside = (places >= s / 2) & (places < self.noise.support)
        return np.append(np.unique(places[inside]), self.noise.support)

    def cells(self, edges: Floats) -> Cells:
        half = self._half(edges)
        return half.followed_by(half.reversed())

    def _half(self, edges: Floats) -> Cells:
        """The cells beyond s/2, and the one on which Q has no mass where there is such."""
        if self._disjoint:
            return cell_without_q(1.0)
        inside = self._inside(edges)
        if np.isinf(self.noise.support):
            return inside
        beyond = float(self.noise.sf(self.noise.support - self.shift))
        return inside.followed_by(cell_without_q(beyond))

    def _edge_losses(self, edges: Floats) -> tuple[Floats, Floats]:
        """The losses at the edges, and bounds on their errors."""
        loss, error = np.zeros_like(edges), np.zeros_like(edges)
        # 0 in the middle. At infinity: no bound if it rises for ever, else what is left of it.
        loss[-1] = np.inf if np.isinf(self.noise.loss_peak(self.shift)) else 0.0
        real = (edges > self.shift / 2) & np.isfinite(edges)
        log_p = self.noise.logpdf(edges[real] - self.shift)
        log_q = self.noise.logpdf(edges[real])
        loss[real] = log_p - log_q
        error[real] = 8 * EPS * (np.abs(log_p) + np.abs(log_q))
        if isinstance(self.noise, Laplace) and edges[-2] >= self.shift:  # it is flat from s on
            loss[-1], error[-1] = loss[-2], error[-2]
        return loss, error

    def _inside(self, edges: Floats) -> Cells:
        loss, edge_error = self._edge_losses(edges)
        p, p_error = _masses(self.noise, edges - self.shift)
        q, q_error = _masses(self.noise, edges)
        with np.errstate(invalid="ignore", over="ignore"):
            width = np.maximum(np.diff(edges), 1e-300)
            # x - s was rounded: an edge off by that moves this share of a cell's mass.
            steep = 1 + np.abs(np.diff(loss))
            placing = np.where(
                np.isfinite(width), 4 * EPS * (np.abs(edges[:-1]) + self.shift) * steep / width, 0.0
            )
        error = np.minimum(1.0, np.maximum(p_error, q_error) + or_zero(placing))
        low, high = np.minimum(loss[:-1], loss[1:]), np.maximum(loss[:-1], loss[1:])
        rising = loss[1:] >= loss[:-1]
        errors = (
            np.where(rising, edge_error[:-1], edge_error[1:]),
            np.where(rising, edge_error[1:], edge_error[:-1]),
        )
        return Cells.bounded(p, q, (low, high), error, errors)

    def loss(self, x: Floats) -> Floats:
        """ln f(x-s)/f(x) at points inside both supports."""
        return self.noise.logpdf(x - self.shift) - self.noise.logpdf(x)

    @cached_property
    def _end(self) -> float:
        """Beyond it P has no mass worth resolving, or Q none at all."""
        return min(self.noise.support, self.shift + float(self.noise.isf(NEGLIGIBLE)))

    @property
    def _peak(self) -> float:
        return min(self.noise.loss_peak(self.shift), self._end)

    def loss_range(self, tail: float) -> tuple[float, float]:
        if self._disjoint:
            return 0.0, 0.0
        reach = float(self.noise.isf(min(max(tail, NEGLIGIBLE), 0.25)))
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
        turned = LogMasses(p=half.q[::-1], q=half.p[::-1].copy(), error=half.error[::-1])
        # Loss -inf: what P lacks at one end, Q lacks at the other.
        turned.q[0] = np.logaddexp(turned.q[0], np.log(self.infinite_mass))
        bounds = np.concatenate([-fine[:0:-1], fine])
        starts = np.concatenate([[0], np.searchsorted(bounds, levels, side="left") + 1])
        cells = turned.followed_by(half).collected(starts)
        slack = max(self._miss(rise, fine), self._miss(fall, fine))
        return CellMasses(log_p=cells.p, log_q=cells.q, error=cells.error, loss_error=slack)

    def _positive_cells(self, rise: Floats, fall: Floats) -> LogMasses:
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
            rounding = 2 * EPS * (1 + np.abs(log_p) + np.abs(log_q))
            done = (np.abs(miss) <= rounding) | (np.abs(move) <= 4 * EPS * np.abs(at))
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
        least = 4 * EPS * (1 + 2 * abs(float(self.noise.logpdf(self.shift / 2))))
        if not np.any(real):
            return least
        got, want = self.loss(x[real]), levels[real]
        scale = np.abs(self.noise.logpdf(x[real])) + np.abs(self.noise.logpdf(x[real] - self.shift))
        return max(least, float(np.max(np.abs(got - want)) + 4 * EPS * (1 + np.max(scale))))

    def _between(self, a: Floats, b: Floats) -> LogMasses:
        """P- and Q-mass of each (a, b], inside Q's support only."""
        end = self.noise.support
        a, b = np.minimum(a, end), np.minimum(b, end)
        p, p_error = interval_mass(self.noise, a - self.shift, b - self.shift)
        q, q_error = interval_mass(self.noise, a, b)
        # inf - inf: an empty cell at infinity; an overflow is capped at 1 below.
        with np.errstate(invalid="ignore", over="ignore"):
            width = np.maximum(b - a, 1e-300)
            placing = np.where(np.isfinite(b), 4 * EPS * (np.abs(a) + self.shift) / width, 0.0)
        error = np.minimum(1.0, np.maximum(p_error, q_error) + placing)
        return LogMasses(p=p, q=q, error=np.where(np.isneginf(np.maximum(p, q)), 0.0, error))


def _masses(noise: Noise, edges: Floats) -> tuple[Floats, Floats]:
    """ln of the mass between neighbouring edges (0 is one, or outside) and its relative error."""
    log_tail = noise.logsf(np.abs(edges))
    right = edges[:-1] >= 0
    near = np.where(right, log_tail[:-1], log_tail[1:])
    far = np.where(right, log_tail[1:], log_tail[:-1])
    with np.errstate(invalid="ignore", divide="ignore"):
        drop = or_zero(np.minimum(far - near, 0.0))
        mass = near + np.log(-np.expm1(drop))
        error = 8 * EPS * (1 + np.abs(near)) / np.minimum(np.abs(drop), 1.0)
    return mass, np.where(drop < 0, np.minimum(or_zero(error), 1.0), 0.0)
