"""The divergence of a law on a lattice from its own shifts, with its derivatives.

Symbols: ``alpha`` order, ``h`` step of the lattice, ``p_i`` mass at point i (and at its mirror
image), ``N`` points listed, ``T = p_N`` mass at or beyond point N on one side, ``k`` shift in
steps, ``m`` the largest, ``rho = a/b`` ratio of the masses that meet at a shift.

F_k = sum psi(p_(i-k), p_i) over the whole line is the moment less 1 (of order 1: the
Kullback-Leibler divergence), with ``psi(a, b) = b (rho^alpha - 1 - alpha (rho - 1)) >= 0`` and
``psi(a, b) = b (rho ln rho - rho + 1)`` at order 1, as masses of 1 shift to masses of 1. psi is
jointly convex and homogeneous of degree 1, so ``psi(a, b) >= psi_a(rho) a + psi_b(rho) b`` at
*every* rho, with equality at a/b: the certificate of :mod:`optimizer_search._renyi_bound` is made
of this.

The tail is either geometric, p_(N+j) = T (1 - r) r^j, and then F_k is the law's own, in closed
form; or its outcomes are merged: those at or beyond N count as one, and those at or before -N + k
as another. Merging outcomes loses divergence at most (data processing), so F_k is then a lower
bound on that of every law with these masses, whatever the shape of its tail.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dpmech.noise import Floats

Integers = NDArray[np.int64]


def log_ratio(a: Floats, b: Floats) -> Floats:
    """ln(a/b), to all digits where a and b are nearly the same."""
    near = np.abs(a - b) <= 0.5 * b
    return np.where(near, np.log1p(np.where(near, a - b, 0.0) / b), np.log(a) - np.log(b))


def slopes(order: float, log_rho: Floats) -> tuple[Floats, Floats]:
    """(psi_a, psi_b), the derivatives of psi at the ratio rho; they rise and fall with it."""
    if order == 1:
        return log_rho, -np.expm1(log_rho)
    rising = order * np.expm1((order - 1) * log_rho)
    return rising, (1 - order) * np.expm1(order * log_rho)


def summed(at: Integers, terms: Floats, size: int) -> Floats:
    """The sums of the terms at each of 0 … ``size`` - 1."""
    return np.asarray(np.bincount(at, terms, size), dtype=np.float64)


def tail_divergence(order: float, decay: float, shifts: int) -> Floats:
    """F_1 … F_m of the points in a geometric tail that stay in it, either way, per unit of T."""
    fallen = decay ** np.arange(1, shifts + 1, dtype=np.float64)
    one = np.ones(shifts)
    return Meeting.of(order, one, fallen).value + Meeting.of(order, fallen, one).value


@dataclass(frozen=True, kw_only=True, eq=False)
class Meeting:
    """Masses a and b that meet at a shift: psi, its derivatives in ln a and ln b, its curvature.

    psi changes to second order by curvature * (d ln a - d ln b)^2 / 2: it is homogeneous.
    """

    value: Floats
    by_a: Floats
    by_b: Floats
    curvature: Floats

    @classmethod
    def of(cls, order: float, a: Floats, b: Floats) -> Meeting:
        log_rho = log_ratio(a, b)
        rising, falling = slopes(order, log_rho)
        moment = a if order == 1 else order * (order - 1) * a * np.exp((order - 1) * log_rho)
        return cls(
            value=a * rising + b * falling, by_a=a * rising, by_b=b * falling, curvature=moment
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Derivatives:
    """F_k, shape (m,); its derivatives in ln p_i, shape (m, N + 1); and a banded Hessian.

    The Hessian is that of the weighted sum of the F_k in p, scaled by p on both sides, its lower
    diagonals in rows (as scipy.linalg takes them), m of them below the main one.
    """

    values: Floats
    gradients: Floats
    hessian: Floats


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs:
    """Points ``a`` and ``b`` that meet ``at`` a shift (counted from 0), as shares of their p."""

    a: Integers
    b: Integers
    at: Integers
    share_a: Floats
    share_b: Floats

    def met(self, order: float, p: Floats) -> Meeting:
        return Meeting.of(order, p[self.a] * self.share_a, p[self.b] * self.share_b)


@dataclass(frozen=True, kw_only=True)
class Lattice:
    """Points 0 … ``size`` - 1 of half a line, and all beyond as one; shifts 1 … ``shifts``.

    ``centred``: 0 is a point; otherwise the points are at h/2, 3h/2, … and the mirror images.
    ``decay``: the factor r of a geometric tail; None where the tail is merged.
    """

    size: int
    shifts: int
    centred: bool
    decay: float | None = None

    @cached_property
    def counts(self) -> Floats:
        """How many points of the line are one of the half line's."""
        counts = np.full(self.size + 1, 2.0)
        counts[0] = 1.0 if self.centred else 2.0
        return counts

    def folded(self, line: Integers) -> Integers:
        """The half line's points for those of the line."""
        return np.abs(line) if self.centred else np.where(line >= 0, line, -1 - line)

    @property
    def first(self) -> int:
        """The first point of the line that is not beyond the listed ones."""
        return -self.size + 1 if self.centred else -self.size

    @cached_property
    def pairs(self) -> Pairs:
        """All pairs of listed points, and those of a listed point with one of a geometric tail."""
        a, b, at = list[Integers](), list[Integers](), list[Integers]()
        for k in range(1, self.shifts + 1):
            end = self.size if self.decay is None else self.size + k
            start = self.first + k if self.decay is None else self.first
            line = np.arange(start, end)
            a.append(self.folded(line - k))
            b.append(self.folded(line))
            at.append(np.full(len(line), k - 1))
        points_a, points_b = np.concatenate(a), np.concatenate(b)
        return Pairs(
            a=np.minimum(points_a, self.size),
            b=np.minimum(points_b, self.size),
            at=np.concatenate(at),
            share_a=self._shares(points_a),
            share_b=self._shares(points_b),
        )

    def _shares(self, points: Integers) -> Floats:
        """1, and beyond the listed points the share of T."""
        if self.decay is None:
            return np.ones(len(points))
        beyond = np.maximum(points - self.size, 0)
        return np.where(points < self.size, 1.0, (1 - self.decay) * self.decay**beyond)

    def lumps(self, p: Floats) -> Floats:
        """Mass at or beyond N - k for k = 1 … m, on one side."""
        return np.cumsum(p[::-1])[1 : self.shifts + 1]

    def derivatives(self, order: float, p: Floats, weights: Floats) -> Derivatives:
        """All there is to know of the masses ``p``, shape (N + 1,)."""
        pairs = self.pairs
        met = pairs.met(order, p)
        shape = (self.shifts, self.size + 1)
        gradients = np.zeros(shape)
        for point, slope in ((pairs.a, met.by_a), (pairs.b, met.by_b)):
            cell = pairs.at * shape[1] + point
            gradients += summed(cell, slope, shape[0] * shape[1]).reshape(shape)
        found = Derivatives(
            values=summed(pairs.at, met.value, self.shifts),
            gradients=gradients,
            hessian=self._banded(met.curvature * weights[pairs.at]),
        )
        if self.decay is None:
            return self._with_lumps(found, order, p, weights)
        inside = tail_divergence(order, self.decay, self.shifts) * p[-1]
        gradients[:, -1] += inside
        return Derivatives(values=found.values + inside, gradients=gradients, hessian=found.hessian)

    def _banded(self, curvature: Floats) -> Floats:
        """The sum of curvature * (x_a - x_b)^2 over the pairs, as lower diagonals."""
        a, b = self.pairs.a, self.pairs.b
        apart, n = a != b, self.size + 1
        low, high = np.minimum(a, b)[apart], np.maximum(a, b)[apart]
        curvature = curvature[apart]
        diagonals = -summed((high - low) * n + low, curvature, (self.shifts + 1) * n)
        diagonals = diagonals.reshape(self.shifts + 1, n)
        diagonals[0] = summed(low, curvature, n) + summed(high, curvature, n)
        return diagonals

    def _with_lumps(
        self, found: Derivatives, order: float, p: Floats, weights: Floats
    ) -> Derivatives:
        """With the outcomes at and beyond either end, which meet as (lump, T) and (T, lump)."""
        m, n = self.shifts, self.size
        lump = self.lumps(p)
        beyond = np.full(m, p[-1])
        right, left = Meeting.of(order, lump, beyond), Meeting.of(order, beyond, lump)
        # Share of each of the last m + 1 entries in the lump of each shift.
        inside = np.arange(m + 1) >= m - np.arange(1, m + 1)[:, None]
        share = np.where(inside, p[n - m :] / lump[:, None], 0.0)
        gradients, hessian = found.gradients.copy(), found.hessian.copy()
        gradients[:, n - m :] += (right.by_a + left.by_b)[:, None] * share
        gradients[:, n] += right.by_b + left.by_a
        share[:, m] -= 1
        curved = share.T @ (share * (weights * (right.curvature + left.curvature))[:, None])
        for row in range(m + 1):
            hessian[row, n - m : n + 1 - row] += np.diagonal(curved, -row)
        return Derivatives(
            values=found.values + right.value + left.value, gradients=gradients, hessian=hessian
        )
