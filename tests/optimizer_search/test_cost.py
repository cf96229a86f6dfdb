"""Costs against laws that are known, tables by hand, and the budgets that laws are scaled to."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from dpmech import Gaussian, Laplace, Noise, Staircase
from dpmech.tabulated import Tabulated
from optimizer_search import Budget, Cost, SearchProblem
from optimizer_search.certify import at_budget

VARIANCE = Cost(name="variance")
COSTS = [Cost.parse(text) for text in ("variance", "l1", "usefulness:.9", "quantile:.9", "entropy")]
TABLE = Tabulated(edges=(0.0, 0.5, 1.0, 2.0), masses=(0.3, 0.5, 0.2))
STAIRS = Staircase(epsilon=1.0, width=1.0, gamma=0.4)
STAIRS_TABLE = Tabulated(edges=(0.0, 0.4, 1.4), masses=(0.4, math.exp(-1)), decay=math.exp(-1))


@pytest.mark.parametrize("b", [0.5, 3.0])
def test_costs_of_laws_that_are_known(b: float) -> None:
    known = {
        "variance": (2 * b * b, b * b),
        "l1": (b, b * math.sqrt(2 / math.pi)),
        "usefulness:.9": (math.exp(-0.9 / b), math.erfc(0.9 / b / math.sqrt(2))),
        "quantile:.9": (b * math.log(10), b * 1.6448536269514722),
        "entropy": (1 + math.log(2 * b), math.log(2 * math.pi * math.e * b * b) / 2),
    }
    for text, values in known.items():
        laws = (Laplace(b=b), Gaussian(sigma=b))
        found = tuple(Cost.parse(text).of(law) for law in laws)
        assert found == pytest.approx(values, rel=1e-4), text


def test_costs_of_a_table_by_hand() -> None:
    """Densities 0.3, 0.5 and 0.1 on both sides together are 0.6, 1 and 0.2 a unit."""
    assert VARIANCE.of(TABLE) == pytest.approx((0.6 * 0.125 + 0.875 + 0.2 * 7) / 3)
    assert Cost.parse("l1").of(TABLE) == pytest.approx(0.3 * 0.25 + 0.5 * 0.75 + 0.2 * 1.5)
    assert Cost.parse("usefulness:.9").of(TABLE) == pytest.approx(0.2 + 0.5 * 0.2)
    assert Cost.parse("quantile:.9").of(TABLE) == pytest.approx(1.5)
    entropy = -(0.3 * math.log(0.3) + 0.5 * math.log(0.5) + 0.2 * math.log(0.1))
    assert Cost.parse("entropy").of(TABLE) == pytest.approx(entropy)


def test_costs_of_steps_are_those_of_their_table() -> None:
    fall = math.exp(-1)
    masses = np.append(0.4, fall ** np.arange(1, 60))
    masses /= masses.sum()
    density = masses / np.append(0.8, np.full(59, 2.0))
    entropy = -float(masses @ np.log(density))
    for law in (STAIRS, STAIRS_TABLE):
        assert VARIANCE.of(law) == pytest.approx(STAIRS.variance)
        assert Cost.parse("entropy").of(law) == pytest.approx(entropy, rel=1e-4)


@pytest.mark.parametrize("law", [Laplace(b=0.7), STAIRS, STAIRS_TABLE, TABLE], ids=str)
def test_a_convex_cost_is_the_mean_of_its_function(law: Noise) -> None:
    square = Cost.convex(lambda x: x**2)
    assert square.of(law) == pytest.approx(law.variance, rel=2e-4)
    beyond = Cost.convex(lambda x: np.maximum(x - 1, 0.0))
    x = np.linspace(1.0, 60.0, 1_000_001)
    assert beyond.of(law) == pytest.approx(2 * np.trapezoid(law.sf(x), x), rel=1e-3)
    assert square.linear
    assert square.is_convex


@pytest.mark.parametrize("cost", [*COSTS[:3], Cost.convex(lambda x: x**3)], ids=str)
def test_means_on_cells_are_those_of_the_pointwise_cost(cost: Cost) -> None:
    assert cost.linear
    edges = np.array([0.0, 0.3, 0.8, 1.7, 4.0])
    nodes = (np.arange(200_000) + 0.5) / 200_000
    means = [np.mean(cost.at(a + (b - a) * nodes)) for a, b in itertools.pairwise(edges)]
    assert cost.mean_on(edges) == pytest.approx(means, rel=1e-5)
    law = Tabulated(edges=tuple(edges), masses=(0.4, 0.3, 0.2, 0.1))
    assert cost.of(law) == pytest.approx(np.array(law.masses) @ cost.mean_on(edges))


@pytest.mark.parametrize("law", [Laplace(b=0.7), STAIRS_TABLE, TABLE], ids=str)
@pytest.mark.parametrize("cost", [*COSTS, Cost.convex(lambda x: x**3)], ids=str)
def test_a_law_scaled_to_a_budget_costs_it_and_no_more(law: Noise, cost: Cost) -> None:
    budget = 0.37
    problem = SearchProblem(target=Budget(cost=budget, delta=1e-5), cost=cost)
    scaled = at_budget(problem, law, Budget(cost=budget, delta=1e-5))
    assert cost.of(scaled) == pytest.approx(budget, rel=1e-6)
    assert cost.of(scaled) <= budget
    assert law.scaled(cost.factor(law, budget)).isf(0.2) == pytest.approx(scaled.isf(0.2))


def test_costs_are_written_and_read() -> None:
    for cost in COSTS:
        assert Cost.parse(str(cost)) == cost
        assert Cost(**cost.to_dict()) == cost
    assert Cost.parse("usefulness").parameter == 0.9
    with pytest.raises(ValueError, match="not saved"):
        Cost.convex(lambda x: x).to_dict()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("convex", "Unknown cost 'convex'"),
        ("mean", "Unknown cost 'mean'"),
        ("variance:2", r"no parameter=2\.0"),
        ("quantile:1.5", r"P=1\.5 in \(0, 1\)"),
        ("quantile:x", "got 'x'"),
        ("usefulness:-1", r"parameter=-1\.0"),
    ],
)
def test_costs_that_are_none_are_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Cost.parse(text)


@pytest.mark.parametrize("function", [lambda x: x + 1, np.sqrt, lambda x: -x, np.sin])
def test_functions_that_are_not_convex_and_rising_are_refused(function: Any) -> None:
    with pytest.raises(ValueError, match="convex function that rises"):
        Cost.convex(function)
