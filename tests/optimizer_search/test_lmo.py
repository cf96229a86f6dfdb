"""The published search: the grid is the laws', winners are proved, files cannot lie."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from accountants import PLD, RDP
from dpmech import Laplace, Mechanism, Sampling, Sensitivity, Target, Unattainable, parse_noise
from optimizer_search import (
    Cost,
    SearchProblem,
    SearchResult,
    baselines,
    certified,
    grid,
    grid_epsilons,
    lmo,
    load_result,
    reproved,
    save_result,
    search_lmo_grid,
)

SOME = (0, 77, 12_345, 20_001, 33_333, 40_823)


def problem(epsilon: float = 1.0, **changes: object) -> SearchProblem:
    return SearchProblem(target=Target(epsilon=epsilon, delta=1e-10), **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def result() -> SearchResult:
    return search_lmo_grid(problem(cost=Cost(name="l1")))


def test_the_grid_has_the_published_points() -> None:
    assert grid.GRID_SIZE == 40_824
    laws = {grid.grid_law(i) for i in range(0, grid.GRID_SIZE, 101)}
    assert len(laws) == len(range(0, grid.GRID_SIZE, 101))
    assert {law.k for law in laws} == {0.5, 1, 2}
    assert {(law.low, law.high) for law in laws} == {(0, 1), (1, 2)}


@pytest.mark.parametrize("index", SOME)
def test_the_tables_agree_with_the_laws(index: int) -> None:
    law = grid.grid_law(index)
    x = np.array([0.0, 0.3, 1.0, 7.0])
    assert grid.log_density(x)[index] == pytest.approx(law.logpdf(x), rel=1e-12)
    assert grid.usefulness(0.9)[index] == pytest.approx(law.usefulness(0.9), rel=1e-12)
    assert grid.moments()[0][index] == pytest.approx(law.mean_abs, rel=1e-6)
    assert grid.moments()[1][index] == pytest.approx(law.variance, rel=1e-6)
    assert grid.pure_epsilon(1.0)[index] == pytest.approx(law.pure_epsilon(1.0), rel=1e-9)


def test_the_paper_bound_is_infinite_past_the_poles() -> None:
    t = np.array([0.5, 3.0, 30.0, 127.0])
    transform = grid.log_transform(t)
    for index in SOME:
        law = grid.grid_law(index)
        outside = (law.a1 * law.theta * t >= 1) | (law.a3 * t >= law.rate)
        assert np.array_equal(np.isinf(transform[index]), outside)


@pytest.mark.parametrize("steps", [1, 10])
def test_the_paper_bound_is_never_below_the_exact_epsilon(steps: int) -> None:
    paper = grid.paper_epsilon(1.0, 1e-10, steps)
    for index in SOME:
        release = Mechanism(noise=grid.grid_law(index))
        exact = PLD(tolerance=1e-2).compose(release, steps).lower_epsilon(1e-10)
        assert paper[index] >= exact


def test_the_ranking_by_renyi_divergence_agrees_with_the_accountant() -> None:
    rate, steps = 0.03, 200
    ranked = grid.composed_epsilon(1.0, 1e-6, steps, rate)
    for index in (77, 20_001):
        release = Mechanism(noise=grid.grid_law(index), sampling=Sampling(rate=rate))
        exact = RDP().compose(release, steps).epsilon(1e-6)
        assert exact * 0.999 <= ranked[index] <= exact * 1.03  # its orders are a coarse grid


def test_the_cheapest_feasible_point_wins_under_both_rules(result: SearchResult) -> None:
    within = result.tables["epsilons"] <= 1.0
    assert result.cost == pytest.approx(result.tables["costs"][within].min())
    useful = search_lmo_grid(problem(cost=Cost(name="usefulness", parameter=0.9)))
    assert 1 - useful.cost == pytest.approx(
        grid.usefulness(0.9)[useful.tables["epsilons"] <= 1.0].max()
    )


def test_the_winner_is_proved_independently(result: SearchResult) -> None:
    release = Mechanism(noise=result.law)
    assert PLD().compose(release).epsilon(1e-10) <= 1.0
    assert PLD().compose(release).delta(result.epsilon) <= 1.01e-10
    claimed = result.claimed_epsilon or 0.0
    assert result.lower_epsilon <= result.epsilon <= claimed * (1 + 1e-9)
    assert result.plan().mechanism.noise == result.law


def test_both_accountings_choose_and_the_papers_is_the_dearer() -> None:
    exact, paper = (
        search_lmo_grid(problem(2.0, accounting=accounting)) for accounting in ("exact", "paper")
    )
    assert paper.cost > exact.cost  # a looser accounting must add more noise
    assert paper.epsilon < (paper.claimed_epsilon or 0.0)


def test_composition_at_a_rate_ends_proved() -> None:
    composed = problem(2.0, steps=20, sampling=Sampling(rate=0.05), cost=Cost(name="variance"))
    found = search_lmo_grid(composed)
    assert found.epsilon <= 2.0
    cheaper = np.flatnonzero(found.tables["costs"] < found.cost * 0.9)
    ranked = grid_epsilons(composed)
    assert np.all(ranked[cheaper] > 2.0)  # nothing clearly cheaper was safe


def test_a_planted_wrong_density_fails_the_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the grid's accounting were too kind, the proof must reject what it offers."""
    monkeypatch.setattr(lmo.grid, "pure_epsilon", lambda s: grid.usefulness(1.0) * 0 + 0.5)
    with pytest.raises(Unattainable):
        search_lmo_grid(problem(0.6, cost=Cost(name="l1")))


def test_an_infeasible_target_says_what_was_reached() -> None:
    with pytest.raises(Unattainable, match="most private has") as caught:
        search_lmo_grid(problem(1e-3))
    assert caught.value.reached == pytest.approx(grid.pure_epsilon(1.0).min())


def test_laplace_beats_the_grid_at_equal_privacy(result: SearchResult) -> None:
    laplace = next(row for row in baselines(result.problem) if row.family == "laplace")
    # By Jensen no mixture beats the Laplace law of equal pure epsilon in E|X|.
    assert certified(result.problem, result.law).cost >= laplace.cost


def test_a_result_survives_the_disk_and_is_a_noise(result: SearchResult, tmp_path: Path) -> None:
    path = save_result(result, tmp_path / "law")
    loaded = load_result(path)
    assert loaded.law == result.law == parse_noise(f"file:{path}")
    assert loaded.problem == result.problem
    assert loaded.epsilon == pytest.approx(result.epsilon, rel=1e-3)
    assert np.array_equal(loaded.tables["epsilons"], result.tables["epsilons"])


def test_an_edited_result_is_refused(result: SearchResult, tmp_path: Path) -> None:
    forged = dataclasses.replace(result, law=Laplace(b=0.2))
    with pytest.raises(ValueError, match="search again"):
        load_result(save_result(forged, tmp_path / "forged.npz"))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 broken", json.dumps({}).encode()])
def test_a_broken_file_is_refused_in_one_sentence(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "law.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not a search result"):
        load_result(path)
    with pytest.raises(ValueError, match="No such file"):
        load_result(tmp_path / "absent.npz")


def test_reproving_trusts_nothing_that_is_written(result: SearchResult) -> None:
    lying = dataclasses.replace(result, epsilon=0.1, cost=0.1)
    honest = reproved(lying)
    assert honest.epsilon == pytest.approx(result.epsilon, rel=1e-3)
    assert honest.cost == pytest.approx(result.cost, rel=1e-6)


def test_the_problem_round_trips_and_refuses_nonsense() -> None:
    written = problem(2.0, steps=3, cost=Cost.parse("usefulness:0.5"))
    assert SearchProblem.from_dict(json.loads(json.dumps(written.to_dict()))) == written
    assert written.mechanism(Laplace(b=1.0)).sensitivity == Sensitivity(bound=1.0)
    with pytest.raises(ValueError, match="Unknown cost"):
        Cost.parse("beauty")
    with pytest.raises(ValueError, match="number after"):
        Cost.parse("usefulness:high")
    with pytest.raises(ValueError, match="rate=1"):
        problem(accounting="paper", sampling=Sampling(rate=0.5))
    with pytest.raises(ValueError, match="steps"):
        problem(steps=0)
