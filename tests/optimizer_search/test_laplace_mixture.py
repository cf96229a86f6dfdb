"""The best Laplace mixture: against brute force, its dual, closed forms and the PLD accountant."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import numpy as np
import pytest

from accountants import PLD
from dpmech import (
    LMO_PRESETS,
    GeneralizedGaussian,
    Laplace,
    LaplaceMixture,
    Mechanism,
    Noise,
    Sampling,
    Staircase,
    Target,
)
from optimizer_search import Budget, Candidate, Cost, SearchProblem, certified
from optimizer_search._composition import losses
from optimizer_search._estimate import Estimator
from optimizer_search.laplace_mixture import laplace_mixture_candidates, laplace_threshold


def problem(goal: Target | Budget, cost: str, steps: int = 1, rate: float = 1.0) -> SearchProblem:
    return SearchProblem(
        target=goal, cost=Cost.parse(cost), steps=steps, sampling=Sampling(rate=rate)
    )


def pure(epsilon: float, cost: str) -> SearchProblem:
    return problem(Target(epsilon=epsilon, delta=1e-10), cost)


def best(asked: SearchProblem) -> tuple[Candidate, Candidate]:
    """The Laplace law and the last candidate, proved."""
    found = [certified(asked, law) for law in laplace_mixture_candidates(asked)]
    return found[0], found[-1]


# Cost of a Laplace law of inverse scale u, by the name of the cost.
COSTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "l1": lambda u: 1 / u,
    "variance": lambda u: 2 / u**2,
    "usefulness:0.9": lambda u: np.exp(-0.9 * u),
    "usefulness:0.5": lambda u: np.exp(-0.5 * u),
    "usefulness:1.5": lambda u: np.exp(-1.5 * u),
}


def best_of_two(epsilon: float, cost: str) -> float:
    """Least cost of two atoms that are exactly epsilon-DP together, by brute force."""
    u = epsilon * np.exp(np.concatenate([np.linspace(-4, 6, 801), np.linspace(-0.1, 0.1, 801)]))
    slack = u * np.expm1(epsilon - u)  # f(0) <= e^epsilon f(1): its mean is to be 0 or more
    low, high = u[slack >= 0], u[slack < 0]
    a, b = slack[slack >= 0][:, None], slack[slack < 0]
    weight = a / (a - b)  # of the high one
    of = COSTS[cost]
    return float(np.min((1 - weight) * of(low)[:, None] + weight * of(high)))


@pytest.mark.parametrize("cost", ["l1", "variance", "usefulness:0.9", "usefulness:0.5"])
def test_laplace_is_best_up_to_the_threshold_and_not_beyond(cost: str) -> None:
    at = laplace_threshold(Cost.parse(cost))
    for epsilon, beaten in ((0.2, False), (at / 2, False), (at * 0.99, False), (at * 1.01, True)):
        plain = float(COSTS[cost](np.array(epsilon)))
        assert (best_of_two(epsilon, cost) < plain * (1 - 1e-9)) == beaten


def test_the_threshold_in_other_units_and_where_there_is_none() -> None:
    assert laplace_threshold(Cost(name="l1"), 7.0) == pytest.approx(3.8395, abs=1e-4)
    scaled = laplace_threshold(Cost.parse("usefulness:1.8"), 2.0)
    assert scaled == pytest.approx(laplace_threshold(Cost()))
    assert laplace_threshold(Cost.parse("usefulness:1")) == math.inf
    for epsilon in (3.0, 10.0, 25.0):
        assert best_of_two(epsilon, "usefulness:1.5") >= math.exp(-1.5 * epsilon) * (1 - 1e-9)
    with pytest.raises(ValueError, match="l1, variance or usefulness"):
        laplace_threshold(Cost(name="entropy"))


@pytest.mark.parametrize("epsilon", [0.3, 0.7, 2.0, 3.0])
def test_at_the_papers_problem_the_best_mixture_is_laplace(epsilon: float) -> None:
    (law,) = laplace_mixture_candidates(pure(epsilon, "usefulness:0.9"))
    assert isinstance(law, Laplace)
    assert law.b == pytest.approx(1 / epsilon, rel=1e-6)


@pytest.mark.parametrize(
    ("epsilon", "cost"), [(5.0, "l1"), (10.0, "l1"), (7.0, "variance"), (18.0, "usefulness:0.9")]
)
def test_beyond_the_threshold_two_atoms_are_found(epsilon: float, cost: str) -> None:
    laplace, found = best(pure(epsilon, cost))
    assert found.epsilon <= epsilon
    assert found.cost < 0.96 * laplace.cost
    assert found.cost == pytest.approx(best_of_two(epsilon, cost), rel=1e-3)


def test_the_optimum_lies_between_the_staircase_and_laplace() -> None:
    laplace, found = best(pure(10.0, "l1"))
    staircase = Staircase.least_mean_abs(10.0).mean_abs  # the best of all laws at delta = 0
    assert staircase < found.cost < laplace.cost / 5


@pytest.mark.parametrize("epsilon", [5.0, 9.0])
def test_the_optimum_has_a_dual(epsilon: float) -> None:
    """cost + multiplier * constraint touches its least value exactly at the atoms."""
    *_, law = laplace_mixture_candidates(pure(epsilon, "l1"))
    assert isinstance(law, LaplaceMixture)
    u = np.exp(np.linspace(-4, 9, 4_001))

    def constraint(u: np.ndarray) -> np.ndarray:
        return -u * np.expm1(epsilon - u)

    first, last = 1 / law.scales[0], 1 / law.scales[-1]
    multiplier = (1 / last - 1 / first) / (constraint(np.array(first)) - constraint(np.array(last)))
    reduced = 1 / u + multiplier * constraint(u)
    assert multiplier > 0
    value = 1 / first + multiplier * constraint(np.array(first))
    assert np.min(reduced) == pytest.approx(float(value), rel=1e-3)


@pytest.mark.parametrize(
    ("goal", "cost", "steps", "rate", "share"),
    [
        (Target(epsilon=2.0, delta=1e-8), "variance", 100, 1e-3, 0.73),
        (Target(epsilon=5.0, delta=1e-8), "l1", 100, 1e-3, 0.40),
        (Target(epsilon=2.0, delta=1e-6), "usefulness:0.5", 20, 0.05, 0.99),
        (Target(epsilon=3.0, delta=0.3), "l1", 1, 1.0, 0.86),
    ],
)
def test_sampled_and_composed_mixtures_beat_laplace(
    goal: Target, cost: str, steps: int, rate: float, share: float
) -> None:
    asked = problem(goal, cost, steps, rate)
    laplace, found = best(asked)
    assert found.epsilon <= goal.epsilon
    assert found.cost < share * laplace.cost
    # An accountant of its own: the law is what its numbers say.
    again = PLD(tolerance=1e-3).compose(asked.mechanism(found.law), steps)
    assert again.lower_epsilon(goal.delta) <= found.epsilon * (1 + 1e-6)
    assert found.lower_epsilon >= goal.epsilon * (1 - 1e-3)


def test_many_small_losses_leave_laplace_alone() -> None:
    asked = problem(Target(epsilon=1.6889, delta=1e-5), "variance", 1000, 0.01)
    laplace, found = best(asked)
    assert found.cost == laplace.cost == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize("cost", ["variance", "l1"])
def test_a_budget_is_the_target_read_the_other_way(cost: str) -> None:
    _, cheap = best(problem(Target(epsilon=2.0, delta=1e-8), cost, 100, 1e-3))
    _, private = best(problem(Budget(cost=cheap.cost, delta=1e-8), cost, 100, 1e-3))
    assert private.cost <= cheap.cost
    assert private.epsilon == pytest.approx(2.0, rel=1e-3)


def test_units_do_not_matter() -> None:
    (_, one), (_, seven) = (
        best(
            SearchProblem(
                target=Target(epsilon=6.0, delta=1e-10),
                cost=Cost(name="l1"),
                sensitivity=s,
            )
        )
        for s in (1.0, 7.0)
    )
    assert seven.cost == pytest.approx(7 * one.cost, rel=1e-6)


LAWS: list[Noise] = [
    Laplace(b=0.4),
    LMO_PRESETS["3"],
    LaplaceMixture(scales=(0.02, 0.5), weights=(0.95, 0.05)),
    GeneralizedGaussian(scale=0.5, beta=0.8),
]


@pytest.mark.parametrize("law", LAWS, ids=str)
@pytest.mark.parametrize(
    ("steps", "rate", "delta"),
    [(1, 0.1, 1e-6), (3, 1.0, 1e-9), (100, 0.01, 1e-5), (5000, 1e-3, 1e-8)],
)
def test_estimates_agree_with_the_accountant(
    law: Noise, steps: int, rate: float, delta: float
) -> None:
    asked = problem(Target(epsilon=1.0, delta=delta), "l1", steps, rate)
    low, high = PLD().compose(asked.mechanism(law), steps).epsilon_interval(delta)
    estimate = Estimator(problem=asked).composed(law).epsilon
    assert low * (1 - 2e-4) <= estimate <= high * (1 + 2e-4)


@pytest.mark.parametrize(("steps", "rate"), [(1, 1.0), (8, 1.0), (200, 0.02)])
def test_the_gradient_is_that_of_delta(steps: int, rate: float) -> None:
    asked = problem(Target(epsilon=1.0, delta=1e-4), "l1", steps, rate)
    estimator, scales = Estimator(problem=asked), np.array([0.3, 0.8])
    weights, move = np.array([0.4, 0.6]), np.array([1e-3, -1e-3])

    def composed(w: np.ndarray):
        return estimator.composed(LaplaceMixture(scales=tuple(scales), weights=tuple(w)))

    p, v = estimator.tables(scales)
    u, here = rate * p + (1 - rate) * v, composed(weights)
    by_u, by_v = here.gradient(losses(u @ weights, v @ weights))
    cut = by_u @ u + by_v @ v
    assert cut @ weights == pytest.approx(1e-4, rel=1e-6)  # Phi is delta, and homogeneous
    slope = -by_v @ (v @ weights)  # of delta in epsilon
    seen = composed(weights + move).epsilon - composed(weights - move).epsilon
    assert seen == pytest.approx(2 * steps * float(cut @ move) / slope, rel=2e-2)


def test_what_the_estimator_believes_does_not_reach_the_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Planted: estimates at half the truth. The proof scales the laws back."""
    honest = best(pure(6.0, "l1"))[1]
    plain = Estimator.masses

    def kind(self: Estimator, law: Noise) -> tuple[np.ndarray, np.ndarray]:
        p, v = plain(self, law)
        return np.sqrt(p * v), v

    monkeypatch.setattr(Estimator, "masses", kind)
    fooled = best(pure(6.0, "l1"))[1]
    assert fooled.epsilon <= 6.0
    assert fooled.cost >= honest.cost * (1 - 1e-4)
    release = Mechanism(noise=fooled.law)
    assert PLD().compose(release).delta(6.0) <= 1.0001e-10


def test_what_it_is_not_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for changes in (
        {"cost": Cost(name="entropy")},
        {"cost": Cost(name="variance"), "dim": 3},
        {"accounting": "paper"},
    ):
        asked = SearchProblem(target=Target(epsilon=1.0, delta=1e-6), **changes)
        with pytest.raises(ValueError, match="Laplace mixtures"):
            next(laplace_mixture_candidates(asked))
    monkeypatch.setitem(sys.modules, "cvxpy", None)
    with pytest.raises(ImportError, match=r"dpmech\[search\]"):
        list(laplace_mixture_candidates(pure(5.0, "l1")))
