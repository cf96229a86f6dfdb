"""Result files: what is loaded is proved anew, and a file whose law says otherwise is refused."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from accountants import PLD
from dpmech import Gaussian, GeneralizedGaussian, Mechanism, PrivacyPlan, Sampling, parse_noise
from dpmech.tabulated import Tabulated
from optimizer_search import (
    Baseline,
    Bound,
    Budget,
    Cost,
    SearchProblem,
    SearchResult,
    certified,
    load_result,
    reproved,
    save_result,
)
from optimizer_search.composed import grown

SAMPLED = SearchProblem(
    target=Budget(cost=1.0, delta=1e-5),
    steps=1000,
    sampling=Sampling(rate=0.01),
    cost=Cost(name="variance"),
)


@pytest.fixture(scope="module")
def result() -> SearchResult:
    """A table of a generalised Gaussian, with one row beside it."""
    gg = GeneralizedGaussian(scale=1.1, beta=1.4)
    edges = grown(0.25, even=5.0, end=20.0)
    table = Tabulated(edges=tuple(edges), masses=tuple(-2 * np.diff(gg.sf(edges))))
    found, row = certified(SAMPLED, table), certified(SAMPLED, gg)
    return SearchResult(
        problem=SAMPLED,
        family="composed",
        status="Made by hand.",
        seconds=1.5,
        bound=Bound(value=1.2, on="epsilon", method="by hand"),
        baselines=(Baseline(family="gg", **vars(row)),),
        tables={"some": np.arange(3.0)},
        **vars(found),
    )


def test_a_result_survives_the_disk(result: SearchResult, tmp_path: Path) -> None:
    path = save_result(result, tmp_path / "law")
    assert path == tmp_path / "law.npz"
    loaded = load_result(path)
    for name in ("problem", "family", "law", "cost", "status", "seconds", "bound", "baselines"):
        assert getattr(loaded, name) == getattr(result, name), name
    assert loaded.epsilon == pytest.approx(result.epsilon, rel=1e-9)
    assert loaded.lower_epsilon <= loaded.epsilon
    assert loaded.gap == pytest.approx(1 - 1.2 / result.epsilon)
    assert np.array_equal(loaded.tables["some"], result.tables["some"])


def test_a_file_is_a_noise_and_costs_the_same(result: SearchResult, tmp_path: Path) -> None:
    path = save_result(result, tmp_path / "law.npz")
    law = parse_noise(f"file:{path}")
    assert law == result.law
    release = Mechanism(noise=law, sampling=SAMPLED.sampling)
    low, high = PLD(tolerance=1e-5).compose(release, SAMPLED.steps).epsilon_interval(1e-5)
    assert low <= result.epsilon <= high * (1 + 1e-9)
    assert high <= result.epsilon * (1 + 1e-9)
    draws = (noise.sample(5, np.random.default_rng(1)) for noise in (law, result.law))
    assert np.array_equal(next(draws), next(draws))
    plan = load_result(path).plan()
    plan.save(tmp_path / "plan.json")
    assert PrivacyPlan.load(tmp_path / "plan.json") == plan
    assert parse_noise(f"file:{tmp_path / 'plan.json'}") == law


def edited(result: SearchResult, path: Path, part: str, change: Callable[[Any], Any]) -> Path:
    """The result's file with one of its parts changed."""
    with np.load(save_result(result, path), allow_pickle=False) as stored:
        parts = dict(stored)
    value = change(json.loads(str(parts[part])))
    np.savez(path, **{**parts, part: json.dumps(value)})
    return path


def heavier(law: dict[str, Any]) -> dict[str, Any]:
    """Mass moved from the third cell to the first: the variance hardly moves, epsilon does."""
    masses = list(law["masses"])
    moved = 0.05 * masses[2]
    masses[0], masses[2] = masses[0] + moved, masses[2] - moved
    return {**law, "masses": masses}


EDITS: list[tuple[str, Callable[[Any], Any]]] = [
    ("law", lambda law: {**law, "edges": [0.99 * e for e in law["edges"]]}),
    ("law", lambda law: {**law, "edges": [1.01 * e for e in law["edges"]]}),
    ("law", heavier),
    ("law", lambda law: Gaussian(sigma=1.0).to_dict()),
    ("numbers", lambda said: {**said, "epsilon": said["epsilon"] * 0.999}),
    ("numbers", lambda said: {**said, "epsilon": math.nan}),
    ("numbers", lambda said: {**said, "cost": said["cost"] * 0.999}),
    ("problem", lambda asked: {**asked, "steps": 900}),
    ("problem", lambda asked: {**asked, "sampling": {**asked["sampling"], "rate": 0.009}}),
    ("problem", lambda asked: {**asked, "sensitivity": 0.9}),
    ("problem", lambda asked: {**asked, "cost": {"name": "l1", "parameter": None}}),
]


@pytest.mark.parametrize("place", range(len(EDITS)))
def test_a_file_whose_law_does_not_keep_what_it_says_is_refused(
    result: SearchResult, tmp_path: Path, place: int
) -> None:
    path = edited(result, tmp_path / "law.npz", *EDITS[place])
    with pytest.raises(ValueError, match=r"claims epsilon=.* but its law has .* search again"):
        load_result(path)


def test_numbers_are_computed_and_not_read(result: SearchResult, tmp_path: Path) -> None:
    """A hair less than the truth passes for rounding, but is not what comes back."""

    def less(said: dict[str, Any]) -> dict[str, Any]:
        return {**said, **{n: said[n] * (1 - 5e-5) for n in ("epsilon", "cost", "lower_epsilon")}}

    loaded = load_result(edited(result, tmp_path / "law.npz", "numbers", less))
    assert loaded.epsilon >= result.epsilon * (1 - 1e-9)
    assert loaded.cost == result.cost
    lie = dataclasses.replace(result, epsilon=0.1, lower_epsilon=0.1, cost=0.1)
    assert reproved(lie).epsilon == pytest.approx(result.epsilon, rel=1e-9)


BROKEN: list[tuple[str, Callable[[Any], Any], str]] = [
    ("law", lambda law: {**law, "name": "magic"}, "Unknown law 'magic'"),
    ("law", lambda law: {**law, "masses": [-1.0] * len(law["masses"])}, "finite masses"),
    ("law", lambda law: [1, 2], "description of a law"),
    ("problem", lambda asked: {**asked, "steps": 0}, "steps=0"),
    ("problem", lambda asked: {**asked, "target": {}}, "not a search result"),
    ("numbers", lambda said: {}, "not a search result"),
    ("numbers", lambda said: {**said, "epsilon": "low"}, "not a search result"),
    ("bound", lambda bound: {"value": 1.0}, "not a search result"),
    ("baselines", lambda rows: [{"law": None}], "not a search result"),
    ("format", lambda number: 1, "its format is 1, expected 2"),
]


@pytest.mark.parametrize("place", range(len(BROKEN)))
def test_a_broken_file_is_refused(result: SearchResult, tmp_path: Path, place: int) -> None:
    part, change, said = BROKEN[place]
    path = edited(result, tmp_path / "law.npz", part, change)
    with pytest.raises(ValueError, match=said) as error:
        load_result(path)
    assert str(path) in str(error.value)


def test_what_is_no_file_of_ours_is_refused(result: SearchResult, tmp_path: Path) -> None:
    path = save_result(result, tmp_path / "law")
    whole = path.read_bytes()
    for content in (b"", b"no", whole[: len(whole) // 2], whole[:-30]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is not a search result"):
            load_result(path)
    with pytest.raises(ValueError, match="No such file"):
        load_result(tmp_path / "other.npz")
