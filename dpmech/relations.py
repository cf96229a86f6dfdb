"""What makes two data sets neighbours, and the pairs of a record replaced in a sample.

Symbols: ``P``, ``Q`` the pair before sampling, ``f`` density of the noise, ``q`` sampling rate,
``C`` bound on the norm of a record's contribution, ``H_a`` hockey-stick divergence.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dpmech.cells import EPS, Cells, WithoutGrid, cell_without_q, interval_mass, mixed_loss, or_zero
from dpmech.loss import DominatingPair
from dpmech.noise import Floats, Noise
from dpmech.peaked import NEGLIGIBLE

# A record is added or removed; replaced by another; replaced by one that contributes nothing.
RELATIONS = ("add-remove", "replace-one", "zero-out")
# Intervals that the half-line is first cut into.
_FIRST = 96


@dataclass(frozen=True, kw_only=True)
class SubstitutionPair(WithoutGrid):
    """One record replaced by another, sampled at rate q < 1: without replacement, or Poisson.

    ``base`` is the pair (P, Q) before sampling, of any two records of which one is replaced by the
    other (shift 2C for additive noise); a reflection must exchange P and Q.

    **Guarantees.** At every a >= 1 the curve of this pair is that of ((1-q) Q + q P, Q), and below
    that of (P, (1-q) P + q Q), which is the reverse: the pair is its own reverse, so one direction
    is all there is. It dominates the mechanism, but is not in general attained by it: lower bounds
    are lower bounds for this pair.

    Argument. Let A be the output's law given that the record is not sampled, B and B' given that
    it is, for either of its values. Advanced joint convexity (Balle, Barthe & Gaboardi 2018,
    Theorem 2) with a' = 1 + q (a - 1) and b = a'/a gives H_a'((1-q) A + q B || (1-q) A + q B') =
    q H_a(B || (1-b) A + b B') <= q max(H_a(B || A), H_a(B || B')), for every a >= 1. B and B'
    differ by a contribution replaced, at most 2C. So do B and A without replacement, where another
    record is drawn instead; in a Poisson sample A only lacks it, by at most C, which costs no more
    since the law is unimodal (mathematics.md §3). Hence both are at most H_a(P || Q), and
    q H_a(P || Q) = H_a'((1-q) Q + q P || Q). Below 1, H_a(M || M') = 1 - a + a H_1/a(M' || M).
    The two halves join at a = 1 to a convex curve, because P(P > Q) + Q(P > Q) <= 1: the mass that
    is missing there has loss 0 (Zhu, Dong & Wang 2022, Proposition 8: such a curve has a pair).
    """

    base: DominatingPair
    rate: float

    @property
    def infinite_mass(self) -> float:
        return self.rate * self.base.infinite_mass

    def edges(self, tail: float) -> Floats:
        return self.base.edges(tail)

    def cells(self, edges: Floats) -> Cells:
        base = self.base.cells(edges)
        # No cell straddles 0 by more than rounding; those that are 0 up to rounding join the ties.
        above = base.high > base.high_error
        ties = base.where(~above & (base.low >= -base.low_error))
        upper = base.where(above).mixed(self.rate)
        both = upper.followed_by(upper.reversed())
        return both.followed_by(_balance(both, _reach(ties)))


@dataclass(frozen=True, kw_only=True)
class PoissonSubstitutionPair(WithoutGrid):
    """One record replaced by another in a Poisson sample at rate q < 1, with log-concave noise.

    The pair is ((1-q) f + q f(. - C), (1-q) f + q f(. + C)): contributions C and -C, which are
    possible, so that the pair is attained. y -> -y exchanges its two sides.

    **Guarantees.** It dominates every two contributions of norm at most C: of scalars, and of
    vectors if f is Gaussian and the norm l2.

    Argument (ours). Given the other records of the sample, contributions v and v' have, for a >= 1,
    H_a = int (q f(y-v) - (a-1)(1-q) f(y) - a q f(y-v'))_+ dy. On a sphere about v the first term
    is constant and the other two fall with the angle to 0 and to v', and (c - x)_+ is convex in
    the sum x of the two: by rearrangement the integral is largest where both directions are one.
    On that ray, with 0 at the distance b <= C from v and v' at b' <= 2C, the integrand is positive
    on a half-line {x > t} since f is log-concave, so H_a is the supremum over t of q S(t) -
    (a-1)(1-q) S(t+b) - a q S(t+b') with the survival function S, and grows in b and in b'. Below 1
    exchange v and v'. Random other records only mix such pairs.
    """

    noise: Noise
    bound: float
    rate: float

    @property
    def infinite_mass(self) -> float:
        return min(1.0, self.rate * self._beyond + NEGLIGIBLE)

    @property
    def _beyond(self) -> float:
        """Mass of f(. - C) beyond the support of f, where f(. + C) has none either."""
        end = self.noise.support
        return 0.0 if np.isinf(end) else float(self.noise.sf(end - self.bound))

    def edges(self, tail: float) -> Floats:
        c, width, support = self.bound, float(self.noise.isf(0.25)), self.noise.support
        end = min(support, c + float(self.noise.isf(max(tail, NEGLIGIBLE))))
        # Dense about C, where f(. - C) may bend, and in growing steps from there.
        u = np.linspace(np.arcsinh(-c / width), np.arcsinh((end - c) / width), _FIRST)
        places = np.concatenate([c + width * np.sinh(u[1:-1]), [0.0, c, end, support - c]])
        inside = (places >= 0) & (places < support)
        return np.append(np.unique(places[inside]), support)

    def cells(self, edges: Floats) -> Cells:
        half = self._half(edges)
        if self._beyond > 0:
            half = half.followed_by(cell_without_q(self.rate * self._beyond))
        return half.followed_by(half.reversed())

    def _half(self, edges: Floats) -> Cells:
        loss, edge_error = self._edge_losses(edges)
        p, p_error = self._mixed_mass(edges, -self.bound, loss)
        q, q_error = self._mixed_mass(edges, self.bound, loss)
        error = np.minimum(1.0, np.maximum(p_error, q_error))
        low, high = loss[:-1], np.maximum(loss[:-1], loss[1:])
        return Cells.bounded(p, q, (low, high), error, (edge_error[:-1], edge_error[1:]))

    def _edge_losses(self, edges: Floats) -> tuple[Floats, Floats]:
        """The losses at the edges, from 0 up, and bounds on their errors."""
        loss, error = np.zeros_like(edges), np.zeros_like(edges)
        loss[-1] = np.inf if np.isinf(edges[-1]) else 0.0
        real = (edges > 0) & np.isfinite(edges)
        log_f = self.noise.logpdf(edges[real])
        for way in (-1, 1):
            moved = self.noise.logpdf(edges[real] + way * self.bound)
            rounding = 8 * EPS * (np.abs(log_f) + np.where(np.isneginf(moved), 0.0, np.abs(moved)))
            mixed, mixed_error = mixed_loss(moved - log_f, rounding, self.rate)
            loss[real] -= way * mixed
            error[real] += mixed_error
        # It rises; what falls in doubles is rounding, and is within the errors.
        return np.maximum.accumulate(loss), np.maximum.accumulate(error)

    def _mixed_mass(self, edges: Floats, shift: float, loss: Floats) -> tuple[Floats, Floats]:
        """ln of the masses of (1-q) f + q f(. + shift) between the edges, and relative errors."""
        there, there_error = interval_mass(self.noise, edges[:-1], edges[1:])
        moved, moved_error = interval_mass(self.noise, edges[:-1] + shift, edges[1:] + shift)
        mass = np.logaddexp(np.log1p(-self.rate) + there, np.log(self.rate) + moved)
        with np.errstate(invalid="ignore", over="ignore"):
            # Edges were rounded when they were moved: that shifts this share of a cell's mass.
            steep = 4 * EPS * (np.abs(edges[:-1]) + self.bound) * (1 + np.abs(np.diff(loss)))
            placing = np.where(
                np.isfinite(edges[1:]), steep / np.maximum(np.diff(edges), 1e-300), 0
            )
        error = np.maximum(there_error, moved_error) + or_zero(placing) + 8 * EPS
        return mass, error


def _reach(ties: Cells) -> float:
    """How far from 0 the losses of the ties may be."""
    ends = np.maximum(ties.high + ties.high_error, ties.low_error - ties.low)
    return float(np.max(ends, initial=0.0))


def _balance(cells: Cells, reach: float) -> Cells:
    """The cell of loss 0 with the mass that the others leave of 1, equal under P and Q."""
    mass = np.exp(cells.log_p)
    left = max(0.0, 1.0 - float(np.sum(mass)))
    wrong = float(np.sum(mass * cells.error)) + EPS * len(mass)
    zero, log_left = np.zeros(1), np.log(np.array([left + wrong]))
    return Cells(
        log_p=log_left,
        log_q=log_left,
        loss=zero,
        low=zero,
        high=zero,
        error=np.array([min(1.0, 2 * wrong / (left + wrong))]),
        loss_error=zero + reach,
        low_error=zero + reach,
        high_error=zero + reach,
        interval=np.array([-1]),
    )
