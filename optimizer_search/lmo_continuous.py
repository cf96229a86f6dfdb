"""The LMO family without its grid: the eight parameters, continuously (arXiv 2405.18776).

The eight are five and no more: U = a1 G + a3 E + a4 V is a Gamma variable of scale a1 theta and
shape k, an Exponential one of mean a3/rate, and a Uniform one on [a4 low, a4 high]. One of the five
is the scale of the noise, which the problem fixes. Searched are ln k and the logarithms of the
shares of E[U] that come from the Gamma variable, the Exponential one, the Uniform one's spread and
its lower end. Shares go down to 1e-8, where a part is as good as absent; with all in the last the
law is plain Laplace, which is one of the starts.

Symbols: ``s`` sensitivity, ``R`` Rényi divergence of order ``alpha``, ``eps1`` pure epsilon of one
release.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from accountants.rdp import lmo_bound
from dpmech import LMO, LMO_PRESETS, Target, Unattainable
from dpmech.noise import Floats
from optimizer_search import grid
from optimizer_search._estimate import Estimator, falling_root
from optimizer_search.lmo import search_lmo_grid
from optimizer_search.problem import Budget, SearchProblem

_LEAST_SHARE = 1e-8
# ln k, and the logarithms of the four shares (whose sum is made 1).
_BOUNDS = ((-5.0, 6.0), *[(math.log(_LEAST_SHARE), 0.0)] * 4)
_LAPLACE = np.array([0.0, *[math.log(_LEAST_SHARE)] * 3, 0.0])
# One release at a delta (over the rate) so small is searched as if it were 0.
_TINY_DELTA = 1e-7
# Starts from the grid: its best, or every so manieth; searches from the best starts.
_FROM_GRID, _EVERY, _SEARCHES, _STEPS = 4, 1021, 2, 40
# Step of differences; a part of U whose loss costs no more (relatively) is left out.
_STEP, _LOSS = 1e-3, 1e-8
# Nodes of moments, evenly in ln y.
_POWERS, _NODE_STEP = {"l1": 1, "variance": 2}, 0.05
_NODES = np.exp(np.arange(-20.0, 20.0, _NODE_STEP))
# The scale is a hair above the one that meets a target; stands for infinity in a logarithm.
_SAFE, _LARGE = 1 + 1e-9, 50.0


def lmo_candidates(problem: SearchProblem) -> Iterator[LMO]:
    """The plain Laplace law of the family and the best law found, at the problem's scale.

    Local searches from the best of several starts: grid points, the published sets, Laplace.
    Under the ``paper`` accounting the scale is the one that the paper's bound allows (orders 2 to
    128 where they are valid), hence private by more than the target asks.

    Raises ValueError for vectors, Unattainable where no scale meets the problem.
    """
    if problem.dim != 1:
        raise ValueError(f"Expected a scalar query for the LMO family, got dim={problem.dim}.")
    return _candidates(_Objective(problem=problem))


def _candidates(objective: _Objective) -> Iterator[LMO]:
    yield objective.fitted(_law(_LAPLACE))
    starts = sorted(_starts(objective.problem), key=objective)[:_SEARCHES]
    found = min((_descended(objective, start) for start in starts), key=objective)
    yield objective.fitted(_law(_simplest(objective, found)))


def paper_epsilon(problem: SearchProblem, law: LMO) -> float:
    """What the paper's Rényi bound claims of the problem's releases, orders 2 to 128 where valid.

    >>> from dpmech import Target
    >>> problem = SearchProblem(target=Target(epsilon=0.3, delta=1e-10))
    >>> round(paper_epsilon(problem, LMO_PRESETS["0.3"]), 3)
    1.308
    """
    alpha = grid.PAPER_ORDERS.astype(np.float64)
    renyi = problem.steps * lmo_bound(law, alpha, problem.sensitivity)
    moved = np.log1p(-1 / alpha) - (math.log(problem.delta) + np.log(alpha)) / (alpha - 1)
    return max(0.0, float(np.min(renyi + moved)))


@dataclass(frozen=True, kw_only=True)
class _Objective:
    """What the problem wants least of, of the law at a point, at the scale it asks for."""

    problem: SearchProblem

    def __call__(self, at: Floats) -> float:
        """Its logarithm (an entropy: itself); large where no scale meets the problem."""
        try:
            return self._goal_and_limit(self.fitted(_law(at)))[0]
        except Unattainable:
            return _LARGE

    def with_slope(self, at: Floats) -> tuple[float, Floats]:
        """The same and its gradient: as the law moves, its scale moves so as to keep the limit."""
        try:
            fitted = self.fitted(_law(at))
        except Unattainable:
            return _LARGE, np.zeros(len(at))
        here = self._goal_and_limit(fitted)
        by_scale = self._goal_and_limit(fitted.scaled(math.exp(_STEP))) - here
        moved = [_law(at + step).scaled(fitted.size) for step in _STEP * np.eye(len(at))]
        by_part = np.array([self._goal_and_limit(law) - here for law in moved])
        # What is infinite has no slope.
        with np.errstate(invalid="ignore", divide="ignore"):
            slope = by_part[:, 0] - by_part[:, 1] * by_scale[0] / by_scale[1]
        return float(here[0]), np.where(np.isfinite(slope), slope / _STEP, 0.0)

    def _goal_and_limit(self, law: LMO) -> Floats:
        """Logarithms of what is wanted least and of what is given."""
        problem = self.problem
        cost, log_epsilon = self._cost(law), math.log(max(self.epsilon(law), 1e-300))
        if problem.cost.name != "entropy":  # which may be negative
            cost = min(math.log(max(cost, 1e-300)), _LARGE)
        return np.array([cost, log_epsilon] if problem.least_cost else [log_epsilon, cost])

    def _cost(self, law: LMO) -> float:
        """The cost; moments by a quick rule: E|X|^p is the integral of p y^(p-1) M(-y)."""
        if self.problem.cost.name not in _POWERS:
            return self.problem.cost.of(law)
        power = _POWERS[self.problem.cost.name]
        integrand = power * _NODES**power * np.exp(law.log_transform(_NODES))
        return float(np.sum(integrand)) * _NODE_STEP * law.size**power

    def fitted(self, law: LMO) -> LMO:
        """The law at the scale that the problem asks for; Unattainable where there is none."""
        target = self.problem.target
        if isinstance(target, Budget):
            power = _POWERS.get(self.problem.cost.name)
            if power:
                return law.scaled((target.cost / self._cost(law)) ** (1 / power))
            return law.scaled(self.problem.cost.factor(law, target.cost))

        def excess(log_factor: float) -> float:
            epsilon = self.epsilon(law.scaled(math.exp(log_factor)))
            return math.log(min(max(epsilon, 1e-9), 1e9) / target.epsilon)

        return law.scaled(math.exp(falling_root(excess)) * _SAFE)

    def epsilon(self, law: LMO) -> float:
        """By the paper's bound, by the closed form, or by the estimator."""
        problem, rate = self.problem, self.problem.sampling.rate
        if problem.accounting == "paper":
            return paper_epsilon(problem, law)
        if problem.steps == 1 and problem.delta <= _TINY_DELTA * rate:
            eps1 = law.pure_epsilon(problem.sensitivity)
            return math.log1p(rate * math.expm1(min(eps1, 700.0)))
        return self.estimator.composed(law).epsilon

    @cached_property
    def estimator(self) -> Estimator:
        return Estimator(problem=self.problem)


def _law(at: Floats) -> LMO:
    """The law with E[U] = 1 at a point of the search."""
    # On the lower bound a part is left out, but for the spread: the family has none of 0.
    shares = np.where(at[1:] > _BOUNDS[1][0], np.exp(at[1:]), [0.0, 0.0, _LEAST_SHARE, 0.0])
    k = math.exp(at[0])
    gamma, exponential, spread, low = (shares / np.sum(shares)).tolist()
    ends = {"low": low, "high": low + 2 * spread}
    return LMO(a1=gamma / k, theta=1.0, k=k, a3=exponential, rate=1.0, a4=1.0, **ends)


def _point(law: LMO) -> Floats:
    """The point of the search whose law this is, but for its scale."""
    spread, low = law.a4 * (law.high - law.low) / 2, law.a4 * law.low
    shares = np.array([law.k * law.a1 * law.theta, law.a3 / law.rate, spread, low])
    logs = np.log(np.maximum(shares / np.sum(shares), _LEAST_SHARE))
    return np.array([math.log(law.k), *logs])


def _starts(problem: SearchProblem) -> Iterator[Floats]:
    yield _LAPLACE
    yield from (_point(law) for law in LMO_PRESETS.values())
    yield from (_point(grid.grid_law(index)) for index in _grid_starts(problem))


def _grid_starts(problem: SearchProblem) -> list[int]:
    """The grid's best points where that is quick, else some from all over it."""
    named = problem.cost.name in ("usefulness", "l1", "variance")
    everywhere = list(range(0, grid.GRID_SIZE, _EVERY))
    if problem.steps > 1 or not named or not isinstance(problem.target, Target):
        return everywhere
    try:
        tables = search_lmo_grid(problem).tables
    except Unattainable:
        return everywhere
    within = np.flatnonzero(tables["epsilons"] <= problem.target.epsilon)
    best = within[np.argsort(tables["costs"][within], kind="stable")]
    return [int(i) for i in best[:_FROM_GRID]]


def _descended(objective: _Objective, start: Floats) -> Floats:
    """A local optimum, or at least nothing worse than the start."""
    from scipy.optimize import minimize  # takes long to import

    options = {"maxiter": _STEPS, "ftol": 1e-10}
    found = minimize(
        objective.with_slope, start, jac=True, method="L-BFGS-B", bounds=_BOUNDS, options=options
    )
    end = np.asarray(found.x, dtype=np.float64)
    return end if objective(end) < objective(start) else start


def _simplest(objective: _Objective, at: Floats) -> Floats:
    """The point without the parts of U that do not matter."""
    best = objective(at)
    for part in range(1, 4):
        less = at.copy()
        less[part] = math.log(_LEAST_SHARE)
        if objective(less) <= best + _LOSS:
            at = less
    return at
