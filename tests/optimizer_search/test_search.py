"""One way to search: what comes back is proved, is what was asked for, and says what it is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from accountants import PLD
from dpmech import (
    Gaussian,
    GeneralizedGaussian,
    Laplace,
    LaplaceMixture,
    Mechanism,
    NoDominatingPair,
    Noise,
    Sampling,
    Sensitivity,
    Target,
    TruncatedLaplace,
    Unattainable,
)
from dpmech.tabulated import Tabulated
from optimizer_search import (
    FAMILIES,
    Bound,
    Budget,
    Candidate,
    Cost,
    SearchProblem,
    SearchResult,
    baselines,
    certified,
    closed_forms,
    composed,
    search,
)
from optimizer_search.certify import at_budget

# The package's function of this name hides the module.
MODULE = import_module("optimizer_search.search")

VARIANCE = Cost(name="variance")
COSTS = [Cost.parse(text) for text in ("variance", "l1", "usefulness:.9", "quantile:.9", "entropy")]
TABLE = Tabulated(edges=(0.0, 0.5, 1.0, 2.0), masses=(0.3, 0.5, 0.2))


def releases(goal: Target | Budget, **changes: Any) -> SearchProblem:
    """Ten releases of a scalar, at the variance."""
    return SearchProblem(target=goal, **{"steps": 10, "cost": VARIANCE, **changes})


AT_COST = releases(Budget(cost=25.0, delta=1e-6))
SAMPLED = releases(Budget(cost=1.0, delta=1e-5), steps=1000, sampling=Sampling(rate=0.01))


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three families of closed forms rather than twelve: the Gaussian, Laplace and their kin."""
    every = closed_forms.shapes
    monkeypatch.setattr(closed_forms, "shapes", lambda problem: every(problem)[:3])


def solver(monkeypatch: pytest.MonkeyPatch, laws: Callable[[], Iterator[Noise]]) -> None:
    """Let the family composed yield these laws."""
    monkeypatch.setattr(composed, "composed_candidates", lambda problem: laws())


def meets(problem: SearchProblem, found: Candidate | SearchResult) -> bool:
    """Asked anew, of the law alone: is it what is said of it, and what was wanted?"""
    release = Mechanism(
        noise=found.law,
        sensitivity=Sensitivity(bound=problem.sensitivity, dim=problem.dim),
        sampling=problem.sampling,
    )
    accountant = PLD(tolerance=5e-6).compose(release, problem.steps)
    target, epsilon = problem.target, accountant.epsilon(problem.delta)
    wanted = (
        found.cost <= target.cost
        if isinstance(target, Budget)
        else epsilon <= target.epsilon * (1 + 1e-12)
    )
    said = found.lower_epsilon <= epsilon * (1 + 1e-9) and epsilon <= found.epsilon * (1 + 2e-5)
    return wanted and said and found.cost == problem.cost.of(found.law)


# Proofs


@pytest.mark.parametrize("law", [Gaussian(sigma=0.1), Laplace(b=50.0), TABLE], ids=str)
def test_certified_laws_just_meet_the_target(law: Noise) -> None:
    for problem in (
        releases(Target(epsilon=2.0, delta=1e-2)),
        releases(Target(epsilon=0.8, delta=1e-2), sampling=Sampling(rate=0.1), sensitivity=3.0),
    ):
        found = certified(problem, law)
        assert meets(problem, found)
        target = problem.target
        assert isinstance(target, Target)
        assert found.epsilon > target.epsilon * (1 - 1e-3)
        smaller = problem.mechanism(found.law.scaled(1 - 1e-4))
        accountant = PLD(tolerance=1e-6).compose(smaller, problem.steps)
        assert accountant.lower_epsilon(1e-2) > target.epsilon


def test_certified_laws_are_charged_for_all_shifts_and_both_directions() -> None:
    hollow = Tabulated(
        edges=tuple(0.25 * np.arange(17)), masses=(9.0, 1.0, 1.0, 9.0) * 4, decay=0.5
    )
    problem = SearchProblem(target=Budget(cost=hollow.variance, delta=1e-3), cost=VARIANCE)
    found = certified(problem, hollow)
    assert found.law == hollow  # costs the budget as it stands
    # Half a period away it loses ln 9 and more; a whole one away, a multiple of ln 2.
    assert found.epsilon >= math.log(9)
    sampled = dataclasses.replace(problem, sampling=Sampling(rate=0.9), steps=3)
    assert len(sampled.mechanism(hollow).pairs()) == 2
    assert meets(sampled, certified(sampled, hollow))


def test_a_budget_is_spent_from_below_and_laws_that_cost_it_are_left_alone() -> None:
    law = Laplace(b=0.3)
    assert at_budget(AT_COST, law, Budget(cost=law.variance, delta=1e-6)) is law
    over = at_budget(AT_COST, law, Budget(cost=law.variance * (1 - 1e-12), delta=1e-6))
    assert over.variance <= law.variance * (1 - 1e-12)
    for cost in (1e-6, 3.7, 1e9):
        found = at_budget(AT_COST, law, Budget(cost=cost, delta=1e-6))
        assert cost * (1 - 1e-9) < found.variance <= cost


def test_what_no_scale_meets_says_what_was_reached() -> None:
    problem = SearchProblem(target=Target(epsilon=1e-30, delta=1e-40), dim=2, cost=VARIANCE)
    for family in ("closed-form", "radial"):
        with pytest.raises(Unattainable, match="No scale") as error:
            search(problem, family)
        assert 1e20 < error.value.reached < math.inf


# Closed forms


def test_the_staircase_is_the_best_of_one_release() -> None:
    """Its least E|X| at delta = 0 is e^(eps/2) / (e^eps - 1) (Geng & Viswanath 2015)."""
    problem = SearchProblem(target=Target(epsilon=1.0, delta=1e-12), cost=Cost(name="l1"))
    told: list[str] = []
    rows = baselines(problem, lambda row: told.append(row.family))
    assert sorted(told) == sorted(row.family for row in rows)
    assert len(rows) >= 10
    assert [row.cost for row in rows] == sorted(row.cost for row in rows)
    assert all(meets(problem, row) for row in rows)
    best = {row.family: row.cost for row in rows}
    least = math.exp(0.5) / math.expm1(1.0)
    assert best["staircase"] == pytest.approx(least, rel=1e-4)
    assert best["staircase"] >= least * (1 - 1e-9)
    assert best["laplace"] == pytest.approx(1.0, rel=1e-5)
    assert rows[0].cost < best["laplace"] < best["gaussian"]


def test_every_row_at_a_budget_costs_it_and_none_beats_the_first() -> None:
    rows = baselines(AT_COST)
    assert all(meets(AT_COST, row) for row in rows)
    values = [row.epsilon for row in rows]
    assert values == sorted(values)
    best = {row.family: row for row in rows}
    law = best["gg"].law
    assert isinstance(law, GeneralizedGaussian)
    for beta in (law.beta - 0.1, law.beta + 0.1):  # tuned: its neighbours are worse
        other = certified(AT_COST, GeneralizedGaussian(scale=1.0, beta=beta))
        assert other.epsilon >= best["gg"].epsilon * (1 - 1e-3)
    assert best["gg"].epsilon <= min(best["gaussian"].epsilon, best["laplace"].epsilon)


# Searches


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("cost", COSTS, ids=str)
def test_the_least_cost_and_the_least_epsilon_are_one_question(cost: Cost) -> None:
    problem = releases(Target(epsilon=3.0, delta=1e-6), cost=cost)
    found = search(problem, "closed-form", bound=False)
    assert meets(problem, found)
    back = dataclasses.replace(problem, target=Budget(cost=found.cost, delta=1e-6))
    again = search(back, "closed-form", bound=False)
    assert meets(back, again)
    assert again.epsilon == pytest.approx(found.epsilon, rel=2e-3)
    assert all(meets(back, row) for row in again.baselines)


def test_a_table_for_many_releases_is_found_and_beats_all_closed_forms() -> None:
    told: list[str] = []
    found = search(SAMPLED, "composed", bound=False, report=told.append)
    assert meets(SAMPLED, found)
    assert found.family == "composed"
    assert "family composed" in found.status
    assert found.epsilon < found.baselines[0].epsilon
    assert [row.epsilon for row in found.baselines] == sorted(
        row.epsilon for row in found.baselines
    )
    assert all(meets(SAMPLED, row) for row in found.baselines)
    assert sum(line.startswith("composed: epsilon") for line in told) >= 2
    assert any(line.startswith("gaussian: epsilon 1.828") for line in told)
    assert found.bound is None
    assert found.gap is None
    assert found.seconds > 0
    assert found.plan().epsilon == found.epsilon


def test_a_vector_is_searched_by_its_own_family() -> None:
    problem = SearchProblem(
        target=Budget(cost=1.0, delta=1e-5), steps=10, dim=3, cost=VARIANCE, cells=12
    )
    found = search(problem, bound=False)
    assert found.family == "radial"
    assert meets(problem, found)
    assert found.epsilon < found.baselines[0].epsilon


@pytest.mark.usefixtures("few")
def test_a_family_that_is_no_better_than_a_closed_form_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    solver(
        monkeypatch, lambda: iter([Laplace(b=3.0), LaplaceMixture(scales=(1, 9), weights=(1, 1))])
    )
    found = search(AT_COST, "composed", bound=False)
    assert found.family == "gg"
    assert isinstance(found.law, GeneralizedGaussian)
    assert "No law of composed was better" in found.status
    assert "The best of composed, laplace:b=3.53" in found.status  # scaled to the budget
    assert found.epsilon == found.baselines[0].epsilon


@pytest.mark.usefixtures("few")
def test_whatever_a_solver_believes_only_its_proof_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Laws without a proof are left out; the scale that a law comes at does not matter."""
    told: list[str] = []
    shape = GeneralizedGaussian(scale=1e-3, beta=1.35)
    uneven = Tabulated(edges=(0.0, 1.0, 1.0 + 2**-0.5), masses=(1.0, 2.0))
    unproved = Target(epsilon=3.0, delta=1e-6)
    solver(monkeypatch, lambda: iter([TruncatedLaplace(b=1.0, bound=3.0), shape, Laplace(b=1.0)]))
    problem = releases(unproved)
    found = search(problem, "composed", bound=False, report=told.append)
    assert meets(problem, found)

    def refused(problem: SearchProblem, law: Noise) -> Candidate:
        if law is uneven:
            raise NoDominatingPair("nothing is proved", "use another")
        return certified(problem, law)

    monkeypatch.setattr(MODULE, "certified", refused)
    solver(monkeypatch, lambda: iter([uneven, shape]))
    found = search(AT_COST, "composed", bound=False, report=told.append)
    assert meets(AT_COST, found)
    assert any(f"left out {uneven}" in line for line in told)


@pytest.mark.usefixtures("few")
def test_the_bound_is_said_beside_what_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    bound = Bound(value=2.5, on="epsilon", method="by hand")
    monkeypatch.setattr(MODULE, "best_bound", lambda problem: bound)
    found = search(AT_COST, "closed-form")
    assert found.bound is bound
    assert found.gap == pytest.approx(1 - 2.5 / found.epsilon)
    assert search(AT_COST, "closed-form", bound=False).bound is None


def test_families_and_problems_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="Unknown family 'best'; the families are auto, lmo-grid"):
        search(AT_COST, "best")
    assert len(set(FAMILIES)) == len(FAMILIES) >= 9
    vector = SearchProblem(target=Budget(cost=1.0, delta=1e-5), dim=2, cost=VARIANCE)
    for family in ("composed", "lmo-grid"):
        with pytest.raises(ValueError, match="dim=2"):
            search(vector, family)


@pytest.mark.usefixtures("few")
def test_auto_asks_the_family_that_fits_the_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def noting(name: str) -> Callable[[SearchProblem], Iterator[Noise]]:
        def laws(problem: SearchProblem) -> Iterator[Noise]:
            asked.append(f"{name} {problem.cost}")
            yield from ()

        return laws

    for name in ("composed", "single_release", "radial"):
        module = import_module(f"optimizer_search.{name}")
        monkeypatch.setattr(module, f"{name}_candidates", noting(name))
    for problem in (
        AT_COST,
        dataclasses.replace(AT_COST, steps=1),
        dataclasses.replace(AT_COST, dim=2),
        dataclasses.replace(AT_COST, cost=Cost(name="entropy")),
    ):
        assert meets(problem, search(problem, bound=False))
    # The entropy is no mean: laws for the means are tried at it.
    ways = ["composed variance", "single_release variance", "radial variance"]
    assert asked == [*ways, "composed variance", "composed l1"]


# Interrupts


def caught(problem: SearchProblem, family: str, **options: Any) -> SearchResult:
    """What a search returns that is interrupted; one that raises would end the whole test run."""
    try:
        return search(problem, family, **options)
    except KeyboardInterrupt:
        pytest.fail("Expected the best so far, got KeyboardInterrupt.")


def interrupted_at(place: int) -> Callable[[str], None]:
    """A report during whose n-th line the user presses Ctrl-C."""
    lines: list[str] = []

    def report(line: str) -> None:
        lines.append(line)
        if len(lines) == place:
            raise KeyboardInterrupt

    return report


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("place", [1, 2])
def test_an_interrupt_among_the_closed_forms_returns_the_best_of_those_seen(place: int) -> None:
    found = caught(AT_COST, "closed-form", report=interrupted_at(place))
    assert len(found.baselines) == place
    assert meets(AT_COST, found)
    assert found.epsilon == min(row.epsilon for row in found.baselines)
    assert found.status.endswith("Interrupted: the best until then.")


def test_an_interrupt_of_a_solver_returns_the_best_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    every = closed_forms.shapes
    monkeypatch.setattr(closed_forms, "shapes", lambda problem: every(problem)[:2])
    better = GeneralizedGaussian(scale=1.0, beta=1.4)

    def laws() -> Iterator[Noise]:
        yield better
        raise KeyboardInterrupt

    solver(monkeypatch, laws)
    found = caught(SAMPLED, "composed")
    assert found.family == "composed"
    assert isinstance(found.law, GeneralizedGaussian)
    assert meets(SAMPLED, found)
    assert "Interrupted" in found.status
    assert found.bound is None


@pytest.mark.usefixtures("few")
def test_an_interrupt_of_the_bound_keeps_what_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(problem: SearchProblem) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(MODULE, "best_bound", endless)
    found = caught(AT_COST, "closed-form")
    assert found.bound is None
    assert meets(AT_COST, found)


def test_an_interrupt_before_anything_was_found_ends_the_search(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def pressed(problem: SearchProblem, seen: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(MODULE, "baselines", pressed)
    with pytest.raises(KeyboardInterrupt):
        search(AT_COST, "closed-form")


# The benchmark


def benchmark() -> ModuleType:
    """The script, which is no part of any package."""
    folder = Path(__file__).parents[2] / "benchmarks"
    if not folder.is_dir():  # as in an installed copy
        pytest.skip("the benchmarks are not here")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        return import_module("search_families")


@pytest.mark.usefixtures("few")
def test_the_benchmark_shows_each_familys_own_best(monkeypatch: pytest.MonkeyPatch) -> None:
    script = benchmark()
    everything = script.works()
    assert len({work.name for work in everything}) == len(everything)
    assert {family for work in everything for family in work.families} <= set(FAMILIES)
    assert 0 < sum(work.quick for work in everything) < 4
    solver(
        monkeypatch, lambda: iter([Laplace(b=1.0), LaplaceMixture(scales=(1, 9), weights=(1, 1))])
    )
    bound = Bound(value=2.5, on="epsilon", method="by hand")
    monkeypatch.setattr(script, "best_bound", lambda problem: bound)
    families = ("closed-form", "composed", "radial")
    work = dataclasses.replace(everything[0], name="a|b", problem=AT_COST, families=families)
    lines = [line for line in script.report([work]).splitlines() if line.startswith("| a")]
    best = search(AT_COST, "closed-form", bound=False)
    own = certified(AT_COST, Laplace(b=1.0)).epsilon
    closed, other, missing, proved = (line.split(" | ") for line in lines)
    assert closed[0] == "| a\\|b"
    assert closed[2] == f"**{best.epsilon:.6g}**"
    assert float(other[2]) == pytest.approx(own, rel=1e-5)  # not that of the closed form
    assert other[3] == f"{100 * (1 - 2.5 / own):.2g} %"
    gaussian = next(row.epsilon for row in best.baselines if row.family == "gaussian")
    assert other[4] == f"{100 * (1 - own / gaussian):.1f} %"
    assert missing[2] == "—"
    assert "Expected a vector" in missing[-1]
    assert proved[1:3] == ["lower bound", "≥ 2.5 (epsilon)"]
