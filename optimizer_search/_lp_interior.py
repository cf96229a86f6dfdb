"""Linear programs over noise laws, by an interior-point method that knows their shape.

    least  c·p   over  p >= 0,  w·p = 1,  sum_r E_rk max(0, (A p)_r) <= limit_k,  (A p)_r <= 0,

the first kind of rows r ("soft": an outcome's excess) before the second ("hard"). Its dual is

    most  lam - limit·mu   over  mu >= 0,  0 <= y,  y <= E mu (soft),  c + A'y >= lam w.

Eliminating the excesses u leaves a system as small as p is long, which is what makes it fast; no
result of it is trusted: laws are proved and bounds certified elsewhere. Method: Mehrotra's
predictor and corrector (1992), with Gondzio's further correctors (1996).

Symbols: ``p`` masses, ``u`` excesses, ``v`` and ``s`` slacks of rows and limits; ``z``, ``y``,
``q``, ``mu`` their duals, in that order paired ``p z``, ``v y``, ``u q``, ``s mu``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy import linalg, sparse
from threadpoolctl import threadpool_limits

from dpmech.noise import Floats
from optimizer_search._lp_factor import Solver, factorised

_MOST_STEPS = 90
_CORRECTORS = 3


@dataclass(frozen=True, kw_only=True, eq=False)
class Program:
    """The program of the module's head; ``rows`` (R, n) and ``shares`` E (soft, K) are sparse.

    ``start``: positive masses (n,) of a law near the solution.
    """

    costs: Floats
    weights: Floats
    rows: Any
    shares: Any
    limits: Floats
    start: Floats

    @cached_property
    def columns(self) -> Any:
        """The rows' transpose."""
        return self.rows.T.tocsr()

    @property
    def soft(self) -> int:
        """How many rows are soft."""
        return int(self.shares.shape[0])

    @cached_property
    def cuts(self) -> list[int]:
        """Where the first three of the four blocks of all variables end."""
        n, rows = len(self.costs), int(self.rows.shape[0])
        return [n, n + rows, n + rows + self.soft]


@dataclass(frozen=True, kw_only=True, eq=False)
class Solution:
    """Masses ``p`` and multipliers, nearly optimal, feasible up to the solver's rounding."""

    p: Floats
    y: Floats
    mu: Floats
    lam: float
    cost: float


@dataclass(frozen=True, kw_only=True, eq=False)
class _Point:
    primal: Floats
    dual: Floats
    lam: float

    @property
    def gap(self) -> float:
        return float(self.primal @ self.dual)


def solve(program: Program, tolerance: float = 1e-4) -> Solution:
    """A solution whose duality gap is ``tolerance`` of its cost, or the best one reached."""
    # The blocks are small: with more threads than one the BLAS takes several times as long.
    with threadpool_limits(limits=1, user_api="blas"):
        point = _reached(program, tolerance)
    p, _, _, _ = np.split(point.primal, program.cuts)
    _, y, _, mu = np.split(point.dual, program.cuts)
    return Solution(p=p, y=y, mu=mu, lam=point.lam, cost=float(program.costs @ p))


def _reached(program: Program, tolerance: float) -> _Point:
    point = _start(program)
    for _ in range(_MOST_STEPS):
        try:
            with np.errstate(all="ignore"):  # what is not finite ends it
                newton = _Newton(program, point)
                if newton.accurate(tolerance):
                    break
                point = newton.step()
        except (linalg.LinAlgError, RuntimeError, ValueError):
            break  # singular to rounding: as far as it gets
    return point


def _start(program: Program) -> _Point:
    """The law to start from, with all rows on the central path that belongs to it."""
    p = program.start / float(program.weights @ program.start)
    moved = program.rows @ p
    least = 1e-3 * (abs(program.rows) @ p) + 1e-300
    slack = np.maximum(-moved, least)
    tau = float(program.costs @ p) / (len(p) + 2 * len(slack))
    mu, u = _centred(program, slack[: program.soft], tau)
    v = slack.copy()
    v[: program.soft] += u
    y = tau / v
    q = np.maximum(program.shares @ mu - y[: program.soft], tau / u * 1e-3)
    s = np.maximum(program.limits - program.shares.T @ u, 0.1 * program.limits)
    return _Point(
        primal=np.concatenate([p, v, u, s]), dual=np.concatenate([tau / p, y, q, mu]), lam=0.0
    )


def _centred(program: Program, slack: Floats, tau: float) -> tuple[Floats, Floats]:
    """mu and u with u q = v y = s mu = tau and the limits met, for rows of these slacks."""
    shares = program.shares
    rows = np.asarray(shares.sum(axis=0)).ravel()
    mu = 4 * (rows + 1) * tau / program.limits
    u = slack
    for _ in range(30):
        top = shares @ mu
        b = top * slack - 2 * tau
        root = np.sqrt(b * b + 4 * top * tau * slack)
        with np.errstate(invalid="ignore", divide="ignore"):
            u = np.where(b > 0, 2 * tau * slack / (b + root), (root - b) / (2 * top))
        mu = mu * (shares.T @ u + tau / mu) / program.limits
    return mu, u


class _Newton:
    """The Newton system of one point, factorised once for several right-hand sides."""

    def __init__(self, program: Program, point: _Point) -> None:
        self.program, self.point = program, point
        self.p, self.v, self.u, self.s = np.split(point.primal, program.cuts)
        self.z, self.y, self.q, self.mu = np.split(point.dual, program.cuts)
        self.ratio = self.u / self.q
        self.theta = 1 / (self.v / self.y + self._padded(self.ratio))
        self._residuals()

    def _padded(self, soft: Floats) -> Floats:
        """Values of the soft rows with zeros for the hard ones."""
        return np.concatenate([soft, np.zeros(len(self.v) - len(soft))])

    def _residuals(self) -> None:
        it, soft = self.program, self.program.soft
        self.off_dual = it.costs + it.columns @ self.y - self.point.lam * it.weights - self.z
        self.off_rows = it.rows @ self.p + self.v - self._padded(self.u)
        self.off_limits = it.limits - it.shares.T @ self.u - self.s
        self.off_mass = 1 - float(it.weights @ self.p)
        self.off_top = it.shares @ self.mu - self.y[:soft] - self.q

    def accurate(self, tolerance: float) -> bool:
        """Whether the point is good enough."""
        it, scale = self.program, np.abs(self.point.lam) * self.program.weights
        off = float(np.max(np.abs(self.off_dual) / (np.abs(it.costs) + scale + 1e-300)))
        return self.point.gap < tolerance * float(it.costs @ self.p) and off < 1e-2 * tolerance

    @cached_property
    def _solver(self) -> Solver:
        it, soft = self.program, self.program.soft
        inner = self.ratio * self.theta[:soft]
        scaled = sparse.diags_array(self.theta) @ it.rows
        square = it.columns @ scaled + sparse.diags_array(self.z / self.p)
        self.coupling = it.rows[:soft].T @ (sparse.diags_array(inner) @ it.shares)
        own = sparse.diags_array(self.ratio - inner * self.ratio) @ it.shares
        block = it.shares.T @ own + sparse.diags_array(self.s / self.mu)
        return factorised(square, self.coupling, block, it.weights)

    def _direction(self, target: Floats) -> tuple[Floats, Floats, float]:
        """Changes that make the products ``target`` and all residuals 0, to first order."""
        it, soft = self.program, self.program.soft
        to_p, to_v, to_u, to_s = np.split(target, it.cuts)
        # The residual of q = E mu - y is carried by u, whose dual q is.
        e = to_u / self.q - self.u - self.ratio * self.off_top
        g = self.off_rows + to_v / self.y - self.v - self._padded(e)
        slack = to_s / self.mu - self.s
        solver = self._solver
        b_mu = self.off_limits - slack
        b_mu = b_mu - it.shares.T @ (e + self.ratio * self.theta[:soft] * g[:soft])
        b_p = to_p / self.p - self.z - self.off_dual - it.columns @ (self.theta * g)
        dp, dmu, dlam = solver(b_p, b_mu, self.off_mass)
        risen = it.shares @ dmu
        dy = self.theta * (it.rows @ dp + g + self._padded(self.ratio * risen))
        dq = risen - dy[:soft] + self.off_top
        dz = (to_p - self.z * dp) / self.p - self.z
        dual = np.concatenate([dz, dy, dq, dmu])
        primal = (target - self.point.primal * dual) / self.point.dual - self.point.primal
        primal[: len(dp)] = dp
        return primal, dual, dlam

    def step(self) -> _Point:
        """The next point: predictor, corrector, and more correctors while they lengthen it."""
        target = np.zeros_like(self.point.primal)
        move = self._direction(target)
        x, z = self._lengths(move)
        left = (self.point.primal + x * move[0]) @ (self.point.dual + z * move[1])
        mean = self.point.gap / len(target)
        aim = max(float(left / self.point.gap) ** 3, 1e-4) * mean
        target = aim - move[0] * move[1]
        return self._moved(*self._corrected(target, aim))

    def _corrected(
        self, target: Floats, aim: float
    ) -> tuple[tuple[Floats, Floats, float], float, float]:
        move = self._direction(target)
        x, z = self._lengths(move)
        for _ in range(_CORRECTORS):
            if min(x, z) > 0.9:
                break
            target = target + self._outliers(move, (x, z), aim)
            other = self._direction(target)
            lengths = self._lengths(other)
            if sum(lengths) <= 1.02 * (x + z):
                break
            move, (x, z) = other, lengths
        return move, x, z

    def _outliers(
        self, move: tuple[Floats, Floats, float], lengths: tuple[float, float], aim: float
    ) -> Floats:
        """What products lack to lie within a factor 10 of the aim after a longer step."""
        x, z = (min(1.0, 1.5 * length + 0.1) for length in lengths)
        products = (self.point.primal + x * move[0]) * (self.point.dual + z * move[1])
        return np.maximum(np.clip(products, 0.1 * aim, 10 * aim) - products, -10 * aim)

    def _lengths(self, move: tuple[Floats, Floats, float]) -> tuple[float, float]:
        return _length(self.point.primal, move[0]), _length(self.point.dual, move[1])

    def _moved(self, move: tuple[Floats, Floats, float], x: float, z: float) -> _Point:
        x, z = (1.0 if length == 1 else 0.99 * length for length in (x, z))
        return _Point(
            primal=self.point.primal + x * move[0],
            dual=self.point.dual + z * move[1],
            lam=self.point.lam + z * move[2],
        )


def _length(values: Floats, change: Floats) -> float:
    """The longest step, up to 1, that keeps the values positive."""
    worst = float(np.min(change / values))
    if not np.isfinite(worst):
        raise ValueError(f"Expected a finite step, got {worst}.")
    return 1.0 if worst >= -1 else -1 / worst
