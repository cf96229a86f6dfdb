"""Every closed-form law, tuned to the problem: what a search has to beat, or else returns.

Shapes are compared at one cost, by the epsilon they then have; the best of each family is scaled
to the problem and proved.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dpmech import (
    Gaussian,
    GeneralizedGaussian,
    Laplace,
    NoDominatingPair,
    Noise,
    Staircase,
    Target,
    TruncatedLaplace,
    Unattainable,
)
from dpmech.heavy_tailed import StudentT
from dpmech.lattice_mixtures import MultiGaussian, Tulap
from dpmech.logconcave import FlippedHuber, Logistic, OffsetGaussian
from dpmech.spherical import SphericalGeneralizedGaussian
from optimizer_search.certify import PROOF, at_budget, certified, proved
from optimizer_search.problem import Baseline, Budget, Candidate, SearchProblem

_ROUGH = 3e-3
# Places to look at first, and evaluations from there.
_PLACES, _EVALUATIONS = 6, 9
# ln of what a law in steps may lose a step.
_LEVELS = (math.log(0.05), math.log(20.0))


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A family of laws by their shape x, the logarithm of a parameter between ``low`` and ``high``.

    Most are then scaled to the problem: ``make(x)``. Those in steps of the sensitivity must keep
    their width; ``level(x, e)`` makes the one that loses e a step, and e is fitted instead.
    """

    name: str
    make: Callable[[float], Noise] | None = None
    level: Callable[[float, float], Noise] | None = None
    low: float = 0.0
    high: float = 0.0


def shapes(problem: SearchProblem) -> tuple[Shape, ...]:
    """The families for the problem: of scalars, or of vectors."""
    if problem.dim > 1:
        return _vector_shapes(problem.dim)
    # Of delta, what bounded laws may lose: all but a hair of one release's, half of many.
    part = 1 - 1e-6 if problem.steps == 1 else 0.5
    share = min(part * problem.delta / (problem.steps * problem.sampling.rate), 0.5)
    return (
        Shape(name="gaussian", make=lambda _: Gaussian(sigma=1.0)),
        Shape(name="laplace", make=lambda _: Laplace(b=1.0)),
        _scaled("gg", lambda beta: GeneralizedGaussian(scale=1.0, beta=beta), 0.5, 3.0),
        _scaled("offset-gaussian", lambda m: OffsetGaussian(sigma=1.0, offset=m), 0.02, 20.0),
        _scaled("flipped-huber", lambda a: FlippedHuber(sigma=1.0, alpha=a), 0.05, 20.0),
        Shape(name="logistic", make=lambda _: Logistic(scale=1.0)),
        _scaled("student-t", lambda df: StudentT(scale=1.0, df=df), 2.1, 200.0),
        _scaled("truncated-laplace", lambda a: TruncatedLaplace(b=1.0, bound=a), 0.05, 60.0),
        *_in_steps(problem.sensitivity, problem.cost.name == "variance", share),
    )


def _in_steps(s: float, square: bool, share: float) -> tuple[Shape, ...]:
    """Laws in steps of the sensitivity ``s``; ``share`` of delta for one release."""

    def staircase(_: float, e: float) -> Noise:
        return (Staircase.least_variance if square else Staircase.least_mean_abs)(e, s)

    def multi_gaussian(x: float, e: float) -> Noise:
        return MultiGaussian(sigma=s * math.exp(x), width=s, epsilon=e)

    def truncated(_: float, e: float) -> Noise:
        return TruncatedLaplace.for_target(e, share, s)

    return (
        Shape(name="staircase", level=staircase),
        Shape(name="truncated-laplace (in steps)", level=truncated),
        Shape(name="tulap", level=lambda _, e: Tulap(epsilon=e, width=s, delta=share)),
        Shape(name="multi-gaussian", level=multi_gaussian, low=math.log(0.15), high=math.log(4.0)),
    )


def _vector_shapes(dim: int) -> tuple[Shape, ...]:
    def spherical(beta: float) -> Noise:
        return SphericalGeneralizedGaussian(scale=1.0, beta=beta, dim=dim, step=0.2)

    return (
        Shape(name="gaussian", make=lambda _: Gaussian(sigma=1.0)),
        _scaled("spherical-gg", spherical, 0.5, 2.2),
    )


def _scaled(name: str, make: Callable[[float], Noise], low: float, high: float) -> Shape:
    return Shape(
        name=name, make=lambda x: make(math.exp(x)), low=math.log(low), high=math.log(high)
    )


def closed_form_candidates(problem: SearchProblem) -> Iterator[Noise]:
    """The best law of every family, at the problem's scale."""
    for baseline in baselines(problem):
        yield baseline.law


def baselines(
    problem: SearchProblem, seen: Callable[[Baseline], None] | None = None
) -> tuple[Baseline, ...]:
    """The best of each closed-form family, proved for the problem, best first.

    ``seen`` is told of each as it is found. Families that cannot meet the problem are left out.
    """
    found, budget = list[Baseline](), _common_budget(problem)
    for shape in shapes(problem):
        try:
            candidate = _best(problem, shape, budget)
        except (NoDominatingPair, Unattainable):
            continue
        found.append(Baseline(family=shape.name, **vars(candidate)))
        if seen is not None:
            seen(found[-1])
    if not found:
        raise Unattainable(
            f"No closed-form law meets {problem.target}: not even wide Gaussian noise does.",
            reached=math.inf,
        )
    return tuple(sorted(found, key=lambda baseline: baseline.value(problem)))


def _common_budget(problem: SearchProblem) -> Budget:
    """The cost at which shapes are compared."""
    if isinstance(problem.target, Budget):
        return problem.target
    shape = next(shape for shape in shapes(problem) if shape.name in ("gg", "spherical-gg"))
    cost = certified(problem, _made(shape, math.log(1.4))).cost
    return Budget(cost=cost, delta=problem.delta)


def best_of(problem: SearchProblem, family: str) -> Candidate:
    """The best law of one family, proved.

    Raises Unattainable or NoDominatingPair where none of it meets the problem.
    """
    shape = next(shape for shape in shapes(problem) if shape.name == family)
    return _best(problem, shape, _common_budget(problem))


def _best(problem: SearchProblem, shape: Shape, budget: Budget) -> Candidate:
    """The best law of the family, proved; NoDominatingPair where none of it is."""
    if shape.level is None:
        x = _least(lambda x: rough_epsilon(problem, _made(shape, x), budget), shape)
        return certified(problem, _made(shape, x))
    x = _least(lambda x: _fitted_value(problem, shape, x), shape)
    return proved(problem, _fitted(problem, shape, x, PROOF), PROOF)


def _made(shape: Shape, x: float) -> Noise:
    if shape.make is None:
        raise ValueError(f"Expected a family that is scaled, got {shape.name}.")
    return shape.make(x)


def _least(value: Callable[[float], float], shape: Shape) -> float:
    """Where a value is least between the ends of the family's range."""
    from scipy import optimize

    if shape.low == shape.high:
        return shape.low
    places = np.linspace(shape.low, shape.high, _PLACES)
    values = [value(x) for x in places]
    best = int(np.argmin(values))
    around = (places[max(best - 1, 0)], places[min(best + 1, len(places) - 1)])
    found = optimize.minimize_scalar(
        lambda x: min(value(x), 1e300),
        bounds=around,
        method="bounded",
        options={"xatol": 0.01, "maxiter": _EVALUATIONS},
    )
    return float(found.x) if found.fun < values[best] else float(places[best])


def _fitted_value(problem: SearchProblem, shape: Shape, x: float) -> float:
    try:
        law = _fitted(problem, shape, x)
        return proved(problem, law, _ROUGH).value(problem)
    except (NoDominatingPair, Unattainable):
        return math.inf


def _fitted(problem: SearchProblem, shape: Shape, x: float, tolerance: float = _ROUGH) -> Noise:
    """The law in steps that just meets the target, or costs the budget."""
    level, target = shape.level, problem.target
    if level is None:
        raise ValueError(f"Expected a family in steps, got {shape.name}.")

    def excess(log_e: float) -> float:
        law = level(x, math.exp(log_e))
        if isinstance(target, Target):
            return math.log(max(proved(problem, law, tolerance).epsilon, 1e-300) / target.epsilon)
        return math.log(target.cost / max(problem.cost.of(law), 1e-300))

    low, high = _LEVELS
    if excess(low) > 0 or (excess(high) < 0 and not problem.least_cost):
        raise Unattainable(
            f"No {shape.name} law that loses {math.exp(low):g} to {math.exp(high):g} a step meets "
            f"{target}.",
            reached=math.exp(excess(low)),
        )
    while high - low > (tolerance if problem.least_cost else 1e-12):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) <= 0 else (low, middle)
    return level(x, math.exp(low if problem.least_cost else high))


def rough_epsilon(problem: SearchProblem, law: Noise, budget: Budget) -> float:
    """The law's epsilon at the budget, to a part in 300; inf where it has none."""
    cost = problem.cost.of(law)
    if not math.isfinite(cost):
        return math.inf
    try:
        return proved(problem, at_budget(problem, law, budget), _ROUGH).epsilon
    except (NoDominatingPair, Unattainable):
        return math.inf


def best_shape(problem: SearchProblem, laws: Sequence[Noise]) -> Noise:
    """The one of the laws that is best for the problem, scaled to it."""
    budget = problem.target
    if isinstance(budget, Target):
        # Compared at one cost, that of a law in between at the target.
        middle = certified(problem, laws[len(laws) // 2])
        budget = Budget(cost=middle.cost, delta=problem.delta)
    best = min(laws, key=lambda law: rough_epsilon(problem, law, budget))
    return certified(problem, best).law
