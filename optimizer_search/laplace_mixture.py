"""The best of all Laplace mixtures: convex programs in the weights of a grid of scales.

A mixture's cost and its cell masses are linear in the weights, so that Phi, the delta of the
composition with the law of the other releases' loss held fixed, is convex in them
(:mod:`optimizer_search._composition`). A convex program is solved by cutting planes, each a linear
program: Phi is homogeneous, so that its gradient at any weights is a cut through 0. For one release
Phi is delta itself and one program decides; for more, the programs are repeated at what they find,
each followed by a line search. The grid is refined around the scales that have weight.

Symbols: ``w`` weights, ``b`` scales, ``u = 1/b``, ``s`` sensitivity, ``eps1`` pure epsilon of one
release.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from dpmech import Laplace, LaplaceMixture
from dpmech.noise import Floats
from optimizer_search._composition import Composed, losses
from optimizer_search._estimate import Estimator
from optimizer_search.cost import Cost
from optimizer_search.problem import SearchProblem

# Programs at most; the spacing of the grid around the scales in use (in ln b), first and last.
_ROUNDS, _SPACING, _FINEST = 24, 0.2, 1e-3
_COARSE = 0.25
_CUTS = 40
# What is kept of the weights, and a gain (relative) that is worth another program.
_KEPT, _GAIN = 1e-9, 1e-7


def laplace_mixture_candidates(problem: SearchProblem) -> Iterator[LaplaceMixture | Laplace]:
    """The Laplace law of the right scale, and the best mixture found, where that is better.

    One release: the best of all mixtures, to the accuracy of a grid refined to 1e-3 in ln b. More:
    a local optimum reached from the Laplace law. Where Laplace is the only law yielded, no mixture
    was found to be better; for one release up to :func:`laplace_threshold` that is a theorem.

    Raises ValueError for vectors and for costs that are not means, Unattainable where no scale of
    the Laplace law meets the problem, ImportError without cvxpy.
    """
    _check(problem)
    return _candidates(problem)


def _candidates(problem: SearchProblem) -> Iterator[LaplaceMixture | Laplace]:
    state = _State.first(Estimator(problem=problem))
    yield Laplace(b=state.law.scales[0])
    spacing, idle = _SPACING, 0
    for _ in range(_ROUNDS):
        better = state.improved(spacing)
        gain = 0.0 if better is None else 1 - better.value / state.value
        state, idle = better or state, 0 if gain > _GAIN else idle + 1
        # The grid costs about the square of its spacing; finer is no use while steps gain more.
        if gain < spacing**2:
            spacing = max(spacing / 3, _FINEST)
        if idle == 2:
            break
    if len(state.law.scales) > 1:
        yield state.law


def _check(problem: SearchProblem) -> None:
    if problem.dim != 1 or not problem.cost.linear or problem.accounting != "exact":
        raise ValueError(
            f"Expected a scalar query, a cost that is a mean and exact accounting for Laplace "
            f"mixtures, got dim={problem.dim}, {problem.cost} and {problem.accounting}."
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class _State:
    """A mixture of the right scale, and what the problem wants least of, for it."""

    estimator: Estimator
    law: LaplaceMixture
    value: float

    @classmethod
    def first(cls, estimator: Estimator) -> _State:
        unit = LaplaceMixture(scales=(estimator.problem.sensitivity,), weights=(1.0,))
        return cls.fitted(estimator, unit)

    @classmethod
    def fitted(cls, estimator: Estimator, law: LaplaceMixture) -> _State:
        law = cast("LaplaceMixture", estimator.fitted(law))
        return cls(estimator=estimator, law=law, value=estimator.value(law))

    def improved(self, spacing: float) -> _State | None:
        """A better law on the way to the solution of the convex program here; None if none is."""
        scales = self._grid(spacing)
        here = np.zeros(len(scales))
        here[np.searchsorted(scales, self.law.scales)] = self.law.weights
        there = _Program.of(self, scales).solved(here)
        for share in (1.0, 0.5, 0.25, 0.1, 0.03):
            mixed = _kept(scales, here + share * (there - here), _costs(self, scales))
            found = _State.fitted(self.estimator, mixed)
            if found.value < self.value * (1 - 1e-9):
                return found
        return None

    def _grid(self, spacing: float) -> Floats:
        """Scales from far below to far above those in use, dense around these."""
        s, own = self.estimator.problem.sensitivity, np.asarray(self.law.scales)
        # At a large eps1 the best mixture is mostly a law of scale s e^(-eps1/2) or so.
        narrow = min(own[0], s / 2 * max(math.exp(-s / (2 * own[-1])), 1e-9)) / 4
        wide = 8 * max(own[-1], s)
        steps = math.ceil(math.log(wide / narrow) / _COARSE)
        near = own[:, None] * np.exp(spacing / 3 * np.arange(-3, 4))
        return np.unique(np.concatenate([np.geomspace(narrow, wide, steps), near.ravel(), own]))


def _costs(state: _State, scales: Floats) -> Floats:
    """Costs of the Laplace laws of these scales, in units of the state's own."""
    cost = state.estimator.problem.cost
    return np.array([cost.of(Laplace(b=float(b))) for b in scales]) / cost.of(state.law)


def _kept(scales: Floats, weights: Floats, costs: Floats) -> LaplaceMixture:
    """The mixture without the scales that have next to no weight and no part in the cost."""
    kept = weights * np.maximum(costs, 1.0) > _KEPT
    return LaplaceMixture(
        scales=tuple(scales[kept].tolist()), weights=tuple(weights[kept].tolist())
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Program:
    """Least cost of weights w >= 0, sum 1, with Phi(w) <= delta: Phi that of ``composed``.

    ``u``, ``v``: cell masses of the grid's Laplace laws, one a column; ``costs``: theirs.
    """

    u: Floats
    v: Floats
    costs: Floats
    composed: Composed
    delta: float

    @classmethod
    def of(cls, state: _State, scales: Floats) -> _Program:
        problem = state.estimator.problem
        p, v = state.estimator.tables(scales)
        rate = problem.sampling.rate
        return cls(
            u=(1 - rate) * v + rate * p,
            v=v,
            costs=_costs(state, scales),
            composed=state.estimator.composed(state.law),
            delta=problem.delta,
        )

    def solved(self, weights: Floats) -> Floats:
        """The best weights, by cutting planes; the first cut is at ``weights``."""
        cuts: list[Floats] = []
        for _ in range(_CUTS):
            cut = self._cut(weights)
            spent = float(cut @ weights)
            # Where all is within rounding of the terms of the cut, they decide.
            slack = 1e-6 * self.delta + 1e-9 * float(np.max(np.abs(cut * weights)))
            if cuts and spent <= self.delta + slack:
                break
            cuts.append(cut)
            weights = self._least_cost(np.array(cuts))
        return weights

    def _cut(self, weights: Floats) -> Floats:
        """The gradient of Phi at the weights."""
        by_u, by_v = self.composed.gradient(losses(self.u @ weights, self.v @ weights))
        return by_u @ self.u + by_v @ self.v

    def _least_cost(self, cuts: Floats) -> Floats:
        cp = _cvxpy()
        # Variables and rows scaled so that a solver's tolerances are relative: a wide law may have
        # next to no weight and half of the cost.
        unit = np.maximum(self.costs, 1.0)
        rows = cuts / unit
        sizes = np.max(np.abs(rows), axis=1)
        share: Any = cp.Variable(len(unit), nonneg=True)
        within = [
            (1 / unit) @ share == 1,
            (rows / sizes[:, None]) @ share <= self.delta / sizes,
        ]
        program: Any = cp.Problem(cp.Minimize((self.costs / unit) @ share), within)
        program.solve(solver=cp.HIGHS)
        found = np.maximum(np.asarray(share.value, dtype=np.float64), 0.0) / unit
        return found / np.sum(found)


def _cvxpy() -> Any:
    try:
        import cvxpy  # takes long to import
    except ImportError as error:
        raise ImportError(
            "The search over Laplace mixtures needs cvxpy; run: pip install 'dpmech[search]'.",
            name="cvxpy",
        ) from error
    return cvxpy


def laplace_threshold(cost: Cost, sensitivity: float = 1.0) -> float:
    """The largest pure epsilon of one release up to which no Laplace mixture beats Laplace.

    **Guarantees.** Below it no mixture whatever, discrete or not, is both as private (one scalar
    release, pure epsilon) and cheaper than the Laplace law; above it some mixture is. Known for
    E|X|, the variance and the usefulness. Raises ValueError for other costs.

    The proof. A mixture is pure epsilon-DP iff f(0) <= e^epsilon f(s), that is E[g(U)] <= 0 with
    g(u) = u (1 - e^(epsilon - s u)). With u0 = epsilon/s, the Laplace law's, and the multiplier
    lambda = -c'(u0)/epsilon, the Laplace law is best if c(u) + lambda g(u) >= c(u0) for all u > 0;
    and only if, since g'(u0) = epsilon determines lambda. Divided by lambda, it reads for E|X|^p,
    with t = u/u0,

        (1 - t^-p)/(p t) <= (1 - e^(-epsilon (t - 1)))/epsilon   for all t > 0,

    and for P(|X| > gamma), with x = s (u - u0) and r = gamma/s,

        1 - e^(-r x) <= r (1 + x/epsilon) (1 - e^-x)             for all x >= -epsilon.

    Both right sides fall as epsilon grows, hence one threshold. Near t = 1 they ask for epsilon at
    most p + 3, near x = 0 for at most 2/(1 - r); for r >= 1 there is no threshold (Bernoulli's
    inequality). Source: docs/explanation/lmo.md.

    >>> round(laplace_threshold(Cost(name="l1")), 3), round(laplace_threshold(Cost()), 2)
    (3.839, 15.19)
    """
    if cost.name == "usefulness":
        ratio = cast("float", cost.parameter) / sensitivity
        return (
            math.inf if ratio >= 1 else _root(lambda e: _usefulness_gap(e, ratio), 2 / (1 - ratio))
        )
    if cost.name not in ("l1", "variance"):
        raise ValueError(f"Expected the cost l1, variance or usefulness, got {cost}.")
    power = 1 if cost.name == "l1" else 2
    return _root(lambda e: _power_gap(e, power), power + 3.0)


# Where the inequalities are looked at: not at the tangency itself, which the largest epsilon
# (that of the second derivatives) settles.
_AWAY = np.geomspace(1e-2, 1e3, 20_000)


def _root(gap: Callable[[float], float], largest: float) -> float:
    """Where a gap that falls with epsilon becomes negative, ``largest`` if it does not before."""
    from scipy.optimize import brentq  # takes long to import

    return largest if gap(largest) >= 0 else float(brentq(gap, 1e-2, largest, xtol=1e-9))


def _power_gap(epsilon: float, p: float) -> float:
    """The least of right minus left side of the first inequality, over (t - 1)^2."""
    t = 1 + np.concatenate([-np.linspace(1e-2, 1 - 1e-4, 10_000), _AWAY])
    right = -np.expm1(np.minimum(-epsilon * (t - 1), 700.0)) / epsilon
    return float(np.min((right - (1 - t**-p) / (p * t)) / (t - 1) ** 2))


def _usefulness_gap(epsilon: float, r: float) -> float:
    """The same of the second inequality, over x^2."""
    x = np.concatenate([-epsilon * np.linspace(1e-3, 1.0, 10_000), _AWAY])
    right = r * (1 + x / epsilon) * -np.expm1(-x)
    return float(np.min((right + np.expm1(-r * x)) / x**2))
