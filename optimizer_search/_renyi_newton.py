"""The law of least divergence on a lattice: an interior-point method for the worst of all shifts.

Symbols: ``p`` masses, ``n`` their counts, ``c`` costs, ``V`` budget, ``F_k`` divergence at shift k
(:mod:`optimizer_search._renyi_terms`), ``t`` the largest of them, ``s_k = t - F_k`` slack, ``w_k``
weight of a shift, ``lam`` price of the cost, ``mu`` of the total mass, ``tau`` barrier.

Minimise t subject to F_k + s_k = t, sum n p = 1, sum n c p = V, all w_k s_k = tau -> 0. Newton's
steps are for ln p, with the Hessian that the Lagrangian has in p, scaled: it is a graph's
Laplacian, positive, and a band of m diagonals on half the line; everything else borders it. What
comes out is a proposal: its divergence and the lower bound are computed from it afresh.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import cho_solve_banded, cholesky_banded

from dpmech.noise import Floats
from optimizer_search._renyi_terms import Derivatives, Lattice

_ITERATIONS = 200
# Slack times weights, and the derivatives of the Lagrangian, at which it is solved; in units of t.
_SOLVED, _FLAT = 1e-9, 1e-7
# Share of tau kept from step to step, and of the way to a bound that a step may go.
_CENTRED, _INSIDE = 0.1, 0.95
# No ln p moves by more in one step.
_LONGEST = 2.0
# Added to the scaled Hessian, which is flat where a law is multiplied by a constant.
_RIDGE = 1e-9
# The order up to which any start will do.
_FIRST_ORDER = 6.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Program:
    """Least worst divergence of ``order`` on ``lattice`` at the mean cost ``budget``.

    ``costs`` of the points 0 … N - 1 and of all beyond, shape (N + 1,). ``evenness``: to t is added
    this share of F_1, in units in which it is as large as t at the start. Of wide laws the points
    i, i + m, i + 2 m, … may weigh more than others at next to no loss: a ripple that a share of F_1
    smooths out.
    """

    lattice: Lattice
    order: float
    costs: Floats
    budget: float
    evenness: float = 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Point:
    """Where the method stands: masses, weights and slacks of the shifts, t and the prices."""

    p: Floats
    weights: Floats
    slack: Floats
    worst: float
    price: float = 0.0
    price_of_mass: float = 0.0

    def in_units(self, unit: float, per_price: float) -> Point:
        """With divergences in this unit, and prices ``per_price`` times what they are."""
        return replace(
            self,
            slack=self.slack / unit,
            worst=self.worst / unit,
            price=self.price * per_price,
            price_of_mass=self.price_of_mass / unit,
        )


def solved(program: Program, p: Floats) -> Point:
    """The best masses found from ``p``, shape (N + 1,), with the prices that prove them.

    High orders are approached by doubling: moments far from the best are powers of ten above it.
    """
    order = _FIRST_ORDER
    while order < program.order:
        p = _solved(replace(program, order=order), p).p
        order *= 2
    return _solved(program, p)


def _solved(program: Program, p: Floats) -> Point:
    m = program.lattice.shifts
    weights = np.full(m, 1 / m)
    values = program.lattice.derivatives(program.order, p, weights).values
    worst = float(np.max(values))
    point = Point(p=p, weights=weights, slack=1.1 * worst - values, worst=1.1 * worst)
    fixed = program.evenness * worst / float(values[0]) * (np.arange(m) == 0)
    for _ in range(_ITERATIONS):
        state = _State.of(program, point, fixed)
        if state.is_solved:
            break
        try:
            point = state.moved(state.step())
        except np.linalg.LinAlgError:  # too ill-conditioned to go on: what there is is a proposal
            break
    return point


@dataclass(frozen=True, kw_only=True, eq=False)
class _Step:
    log_p: Floats
    weights: Floats
    slack: Floats
    worst: float
    price: float
    price_of_mass: float


@dataclass(frozen=True, kw_only=True, eq=False)
class _State:
    """A point, and what it leaves of each equation; divergences in units of the worst.

    ``mass`` and ``cost`` of the points, in units of their totals; ``uneven`` derivatives of the
    Lagrangian in ln p, ``unmet`` F + s - t, ``missing`` of the totals of cost and mass.
    """

    program: Program
    point: Point
    unit: float
    found: Derivatives
    mass: Floats
    cost: Floats
    uneven: Floats
    unmet: Floats
    missing: Floats

    @classmethod
    def of(cls, program: Program, point: Point, fixed: Floats) -> _State:
        """At a point; ``fixed`` weights are added to its own."""
        weights = point.weights + fixed
        found = program.lattice.derivatives(program.order, point.p, weights)
        # The worst divergence may fall by many powers of ten: it is the unit afresh at each step.
        unit = float(np.max(found.values))
        found = Derivatives(**{name: values / unit for name, values in vars(found).items()})
        point = point.in_units(unit, program.budget / unit)
        mass = program.lattice.counts * point.p
        cost = mass * program.costs / program.budget
        uneven = found.gradients.T @ weights
        uneven += point.price * cost - point.price_of_mass * mass
        return cls(
            program=program,
            point=point,
            unit=unit,
            found=found,
            mass=mass,
            cost=cost,
            uneven=uneven,
            unmet=found.values + point.slack - point.worst,
            missing=1 - np.array([np.sum(cost), np.sum(mass)]),
        )

    @property
    def is_solved(self) -> bool:
        gap = float(self.point.weights @ self.point.slack)
        flat = float(np.max(np.abs(self.uneven) / self.mass)) <= _FLAT
        met = max(float(np.max(np.abs(self.unmet))), float(np.max(np.abs(self.missing)))) <= _SOLVED
        return gap <= _SOLVED and flat and met

    def step(self) -> _Step:
        """Newton's step, by the Schur complement of the banded block."""
        point, m = self.point, len(self.point.weights)
        scale = 1 / np.sqrt(np.maximum(self.found.hessian[0], self.mass))
        border = np.column_stack([self.found.gradients.T, self.cost, -self.mass])
        border *= scale[:, None]
        factor = (cholesky_banded(self._scaled_hessian(scale), lower=True), True)
        inverse = cho_solve_banded(
            factor, np.column_stack([border, -self.uneven * scale]), check_finite=False
        )
        # Kept off 0: shifts without weight leave the points of one residue apart from the others.
        tau = max(_CENTRED * float(point.weights @ point.slack), _SOLVED / 4) / m
        rest = np.concatenate(
            [
                -(tau / point.weights - point.slack + self.unmet),
                [self.missing[0], -self.missing[1], np.sum(point.weights) - 1],
            ]
        )
        rest[:-1] -= border.T @ inverse[:, -1]
        found = np.linalg.solve(self._complement(border.T @ inverse[:, :-1]), rest)
        prices = np.asarray(found, dtype=np.float64)
        log_p = scale * (inverse[:, -1] - inverse[:, :-1] @ prices[:-1])
        rise = float(prices[-1])
        return _Step(
            log_p=log_p,
            weights=prices[:m],
            slack=rise - self.unmet - self.found.gradients @ log_p,
            worst=rise,
            price=float(prices[m]),
            price_of_mass=float(prices[m + 1]),
        )

    def _scaled_hessian(self, scale: Floats) -> Floats:
        hessian, n = self.found.hessian.copy(), len(scale)
        for row in range(len(hessian)):
            hessian[row, : n - row] *= scale[row:] * scale[: n - row]
        hessian[0] += _RIDGE
        return hessian

    def _complement(self, inner: Floats) -> Floats:
        """What is left for (weights, price, price of mass, t) once ln p is eliminated."""
        m = len(self.point.weights)
        result = np.zeros((m + 3, m + 3))
        result[:m, :m] = -np.diag(self.point.slack / self.point.weights)
        result[:m, m + 2] = result[m + 2, :m] = -1
        result[: m + 2, : m + 2] -= inner
        return result

    def _apart(self, log_p: Floats) -> float:
        """The most by which the log-ratio of two masses that meet would change."""
        pairs = self.program.lattice.pairs
        return float(np.max(np.abs(log_p[pairs.a] - log_p[pairs.b])))

    def moved(self, step: _Step) -> Point:
        """The point after the step, cut where slack or a weight would vanish."""
        point = self.point
        reach = float(np.max(np.abs(step.log_p))), self.program.order * self._apart(step.log_p)
        longest = _LONGEST / max(*reach, _LONGEST)
        primal = min(longest, _room(point.slack, step.slack))
        dual = _room(point.weights, step.weights)
        moved = Point(
            p=point.p * np.exp(primal * step.log_p),
            weights=point.weights + dual * step.weights,
            slack=point.slack + primal * step.slack,
            worst=point.worst + primal * step.worst,
            price=point.price + dual * step.price,
            price_of_mass=point.price_of_mass + dual * step.price_of_mass,
        )
        return moved.in_units(1 / self.unit, self.unit / self.program.budget)


def _room(values: Floats, step: Floats) -> float:
    """The share of the step, 1 at most, that leaves all values above 0."""
    falls = step < 0
    return min(1.0, _INSIDE * float(np.min(-values[falls] / step[falls], initial=np.inf)))
