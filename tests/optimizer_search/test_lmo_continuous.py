"""The LMO family without its grid: no worse than the grid, by the same accounting, and proved."""

from __future__ import annotations

import numpy as np
import pytest

from accountants import PLD
from dpmech import LMO, LMO_PRESETS, Mechanism, Sampling, Target, Unattainable
from optimizer_search import Budget, Cost, SearchProblem, certified, grid, search_lmo_grid
from optimizer_search.laplace_mixture import laplace_mixture_candidates
from optimizer_search.lmo_continuous import (
    _BOUNDS,
    _law,
    _Objective,
    _point,
    lmo_candidates,
    paper_epsilon,
)


def papers(
    epsilon: float, accounting: str = "exact", cost: str = "usefulness:0.9"
) -> SearchProblem:
    """The paper's own problem: one scalar release at delta = 1e-10."""
    return SearchProblem(
        target=Target(epsilon=epsilon, delta=1e-10),
        cost=Cost.parse(cost),
        accounting=accounting,  # type: ignore[arg-type]
    )


def last(problem: SearchProblem) -> LMO:
    *_, law = lmo_candidates(problem)
    return law


@pytest.mark.parametrize("epsilon", [0.3, 0.7, 2.0, 3.0])
def test_no_worse_than_the_grid_under_exact_accounting(epsilon: float) -> None:
    found = certified(papers(epsilon), last(papers(epsilon)))
    assert found.epsilon <= epsilon
    assert found.cost < search_lmo_grid(papers(epsilon)).cost
    # The family's best is plain Laplace there, as the theorem on all mixtures says.
    assert found.cost == pytest.approx(np.exp(-0.9 * epsilon), rel=1e-5)


@pytest.mark.parametrize("epsilon", [0.3, 0.7, 2.0, 3.0])
def test_no_worse_than_the_grid_under_the_papers_bound(epsilon: float) -> None:
    problem = papers(epsilon, "paper")
    law = last(problem)
    assert epsilon * (1 - 1e-6) <= paper_epsilon(problem, law) <= epsilon
    assert PLD().compose(problem.mechanism(law)).epsilon(1e-10) <= epsilon
    if epsilon < 1:  # with valid orders only, no point of the grid meets these
        with pytest.raises(Unattainable):
            search_lmo_grid(problem)
    else:
        assert problem.cost.of(law) < search_lmo_grid(problem).cost


def test_under_the_papers_bound_no_published_set_beats_laplace() -> None:
    """Jensen: at equal E[U] Laplace is better in privacy and in usefulness."""
    problem = papers(1.5, "paper")
    objective = _Objective(problem=problem)
    laplace, _ = lmo_candidates(problem)
    for law in LMO_PRESETS.values():
        fitted = objective.fitted(law)
        assert paper_epsilon(problem, fitted) <= 1.5
        assert problem.cost.of(fitted) > problem.cost.of(laplace)


def test_the_papers_epsilon_is_the_grids_and_never_below_the_truth() -> None:
    problem = papers(2.0, "paper")
    epsilons = grid.paper_epsilon(1.0, 1e-10, 1)
    for index in (0, 77, 12_345, 40_823):
        law = grid.grid_law(index)
        claimed = paper_epsilon(problem, law)
        assert claimed == pytest.approx(epsilons[index], rel=1e-9)
        assert claimed >= PLD().compose(Mechanism(noise=law)).epsilon(1e-10)


@pytest.mark.parametrize("index", [0, 77, 20_001, 40_823])
def test_five_numbers_are_the_whole_family(index: int) -> None:
    law = grid.grid_law(index)
    again = _law(_point(law))
    # The same law but for its scale: E[U] is 1, which at 0 is twice the density.
    again = again.scaled(float(again.pdf(0.0) / law.pdf(0.0)))
    x = np.array([0.0, 0.1, 1.0, 10.0, 1e3])
    assert again.logpdf(x) == pytest.approx(law.logpdf(x), rel=1e-6)
    assert 2 * _law(_point(law)).pdf(0.0) == pytest.approx(1.0)


def test_the_slope_is_that_of_the_value() -> None:
    problem = papers(8.0, cost="l1")
    objective = _Objective(problem=problem)
    at = np.array([0.5, -1.0, -2.0, -3.0, -1.5])
    value, slope = objective.with_slope(at)
    assert value == pytest.approx(objective(at), rel=1e-12)
    seen = [(objective(at + step) - objective(at - step)) / 2e-3 for step in 1e-3 * np.eye(len(at))]
    assert slope == pytest.approx(seen, abs=2e-3)


@pytest.mark.parametrize("epsilon", [5.0, 10.0])
def test_between_laplace_and_the_best_of_all_mixtures(epsilon: float) -> None:
    """Every LMO law is a Laplace mixture: a search that found better would be wrong."""
    problem = papers(epsilon, cost="l1")
    found = certified(problem, last(problem))
    *_, mixture = laplace_mixture_candidates(problem)
    assert certified(problem, mixture).cost * (1 - 1e-4) <= found.cost < 0.96 / epsilon


@pytest.mark.parametrize("goal", [Target(epsilon=2.0, delta=1e-8), Budget(cost=0.0432, delta=1e-8)])
def test_sampled_releases_are_proved_and_beat_laplace(goal: Target | Budget) -> None:
    problem = SearchProblem(
        target=goal, steps=100, sampling=Sampling(rate=1e-3), cost=Cost(name="variance")
    )
    laplace, found = (certified(problem, law) for law in lmo_candidates(problem))
    assert found.epsilon <= 2.02
    assert found.cost <= 0.0432 * (1 + 1e-3)
    assert found.value(problem) < 0.85 * laplace.value(problem)


def test_sampling_one_release_enlarges_its_epsilon() -> None:
    problem = SearchProblem(
        target=Target(epsilon=1.0, delta=1e-12), sampling=Sampling(rate=0.01), cost=Cost(name="l1")
    )
    found = certified(problem, last(problem))
    assert found.epsilon <= 1.0
    # One release alone may then lose ln(1 + (e - 1)/q) = 5.15: beyond the threshold.
    assert found.cost < 0.96 * certified(problem, next(lmo_candidates(problem))).cost


def test_other_costs_are_taken() -> None:
    for cost in ("quantile:0.9", "variance"):
        problem = papers(6.0, cost=cost)
        laplace, found = (certified(problem, law) for law in lmo_candidates(problem))
        assert found.epsilon <= 6.0
        assert found.cost <= laplace.cost


def test_parts_at_their_least_share_are_left_out() -> None:
    at = np.array([0.0, *[_BOUNDS[1][0]] * 3, 0.0])
    law = _law(at)
    assert (law.a1, law.a3) == (0.0, 0.0)
    assert law.pure_epsilon(1.0) == pytest.approx(1.0, rel=1e-9)


def test_what_it_is_not_for_is_refused() -> None:
    vector = SearchProblem(
        target=Target(epsilon=1.0, delta=1e-6), cost=Cost(name="variance"), dim=2
    )
    with pytest.raises(ValueError, match="scalar"):
        next(lmo_candidates(vector))
    # Orders up to 128 have a floor of .135 at this delta, whatever the noise.
    with pytest.raises(Unattainable, match="No scale"):
        next(lmo_candidates(papers(0.1, "paper")))
