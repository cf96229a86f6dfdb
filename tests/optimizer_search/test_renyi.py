"""Least divergence at a cost: no law beats the bound, the law is what it is said to be."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray

from accountants import RDP
from dpmech import (
    Gaussian,
    GeneralizedGaussian,
    Laplace,
    Mechanism,
    Noise,
    Sampling,
    Staircase,
    Target,
    Unattainable,
)
from dpmech.tabulated import Tabulated
from optimizer_search import Budget, Cost, SearchProblem, certified
from optimizer_search._renyi_bound import lattice_costs, lower_bound
from optimizer_search._renyi_law import WholeLaw, cost_of, worst_divergence
from optimizer_search._renyi_newton import Point, Program, solved
from optimizer_search._renyi_solve import Question, bounding_program
from optimizer_search._renyi_terms import Lattice
from optimizer_search.renyi import (
    RenyiOptimum,
    Table,
    kl_candidates,
    optimal_renyi,
    renyi_candidates,
)

Floats = NDArray[np.float64]
VARIANCE = Cost(name="variance")


def quartic(x: Floats) -> Floats:
    return x**4


def half_density(law: Tabulated, points: Floats) -> Floats:
    """The density, read off the table without the law's own methods."""
    edges, masses = np.array(law.edges), np.array(law.masses)
    height, width = masses / np.diff(edges) / 2, edges[-1] - edges[-2]
    size = np.abs(points)
    beyond = np.maximum(np.floor((size - edges[-1]) / width) + 1, 0)
    cell = np.minimum(np.searchsorted(edges, size, side="right") - 1, len(masses) - 1)
    return height[cell] * law.decay**beyond


def divergence_at(law: Tabulated, order: float, shift: float) -> float:
    """The divergence at one shift, by summing over all cells of both laws."""
    edges = np.array(law.edges)
    width = edges[-1] - edges[-2]
    far = np.concatenate([edges, edges[-1] + width * np.arange(1, 400)])
    line = np.concatenate([-far[:0:-1], far])
    cuts = np.unique(np.concatenate([line, line + shift]))
    cuts = cuts[(cuts > line[0] + shift) & (cuts < line[-1])]
    middle, width_of = (cuts[1:] + cuts[:-1]) / 2, np.diff(cuts)
    wide = width_of > 1e-9  # cuts that agree to rounding enclose nothing
    f, moved = (half_density(law, x[wide]) for x in (middle, middle - shift))
    if order == 1:
        return float(np.sum(width_of[wide] * moved * np.log(moved / f)))
    return math.log(np.sum(width_of[wide] * moved**order * f ** (1 - order))) / (order - 1)


def divergence_of(noise: Noise, order: float, shift: float) -> float:
    """The divergence of a falling density at its worst shift, by a fine Riemann sum."""
    end = float(noise.isf(1e-16)) + shift
    x = np.linspace(-end, end + shift, 2_000_001)
    log_f, log_moved = noise.logpdf(x), noise.logpdf(x - shift)
    step = x[1] - x[0]
    if order == 1:
        return float(np.sum(np.exp(log_moved) * (log_moved - log_f))) * step
    moment = np.sum(np.exp(order * log_moved + (1 - order) * log_f)) * step
    return math.log(moment) / (order - 1)


@pytest.fixture(scope="module")
def kl() -> RenyiOptimum:
    return optimal_renyi(order=1.0, budget=0.25)


@pytest.fixture(scope="module")
def narrow() -> RenyiOptimum:
    return optimal_renyi(order=2.0, budget=0.0625)


# ---- the published figures


@pytest.mark.parametrize("extent", [None, 120.0])
def test_the_published_discrete_example(extent: float | None) -> None:
    table = Table(whole=True, extent=extent)
    found = optimal_renyi(order=2.0, budget=400.0, sensitivity=20.0, table=table)
    assert isinstance(found.law, WholeLaw)
    assert extent is None or 2 * len(found.law.masses) - 1 <= 243
    assert found.divergence <= 0.877789  # published: .877969
    assert 0.8777 < found.lower_bound <= found.divergence
    assert found.gap < 1e-4
    assert found.cost <= 400
    assert found.seconds < 1


def test_the_published_kl_example() -> None:
    found = optimal_renyi(order=1.0, budget=0.495**2)
    assert found.divergence <= 1.754  # Gaussian: 2.0406
    assert found.gap < 0.01


def test_the_kl_gap_is_below_one_percent(kl: RenyiOptimum) -> None:
    assert 0 <= kl.gap < 0.01
    assert kl.seconds < 10


# ---- the bound


COSTS = (
    (VARIANCE, 0.3),
    (VARIANCE, 4.0),
    (Cost(name="l1"), 0.6),
    (Cost(name="usefulness", parameter=0.9), 0.3),
    (Cost(name="usefulness", parameter=0.37), 0.5),
    (Cost.convex(quartic), 0.5),
)


@pytest.mark.parametrize(("cost", "budget"), COSTS, ids=lambda v: str(v))
@pytest.mark.parametrize("order", [1.0, 1.5, 2.0, 6.0])
def test_no_law_beats_the_bound(cost: Cost, budget: float, order: float) -> None:
    found = optimal_renyi(order=order, budget=budget, cost=cost)
    assert 0 < found.lower_bound <= found.divergence
    assert found.cost <= budget
    assert cost.of(found.law) == pytest.approx(found.cost, rel=2e-3)  # type: ignore[arg-type]
    for law in (Gaussian(sigma=1.0), Laplace(b=1.0), GeneralizedGaussian(scale=1.0, beta=1.5)):
        scaled = law.scaled(cost.factor(law, budget))
        theirs = divergence_of(scaled, order, 1.0)
        assert found.lower_bound < theirs
        assert found.divergence < theirs * 1.002


@pytest.mark.parametrize("order", [1.0, 2.0, 16.0])
def test_bounds_of_coarse_tables_are_below_laws_of_fine_ones(order: float) -> None:
    found = [
        optimal_renyi(order=order, budget=0.25, table=Table(cells=cells)) for cells in (2, 5, 9, 24)
    ]
    for one, other in itertools.product(found, found):
        assert one.lower_bound < other.divergence
    gaps = [one.gap for one in found]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 2e-3


def test_where_the_cost_jumps_at_an_edge_the_law_is_the_best_of_all() -> None:
    cost = Cost(name="usefulness", parameter=0.9)
    assert optimal_renyi(order=2.0, budget=0.1, cost=cost).gap < 1e-5


def test_the_sensitivity_only_sets_the_scale() -> None:
    one = optimal_renyi(order=2.0, budget=0.25)
    three = optimal_renyi(order=2.0, budget=2.25, sensitivity=3.0)
    assert three.divergence == pytest.approx(one.divergence, rel=1e-6)
    assert three.lower_bound == pytest.approx(one.lower_bound, rel=1e-6)


@pytest.mark.parametrize("order", [1.0, 2.0, 8.0])
def test_wide_noise_tends_to_the_gaussian(order: float) -> None:
    found = optimal_renyi(order=order, budget=40.0**2)
    gaussian = order / (2 * 40.0**2)
    assert found.divergence == pytest.approx(gaussian, rel=2e-3)
    assert found.lower_bound == pytest.approx(gaussian, rel=4e-3)
    assert found.lower_bound < gaussian


def test_high_orders_tend_to_the_staircase() -> None:
    found = optimal_renyi(order=64.0, budget=1.0)
    epsilon = next(e for e in np.arange(0.5, 3, 1e-3) if Staircase.least_variance(e).variance <= 1)
    assert 0.97 * epsilon < found.lower_bound <= found.divergence < epsilon


# ---- the certificate, whatever the solver hands it


def a_program(order: float = 2.0, cells: int = 4, size: int = 24) -> Program:
    question = Question(
        order=order, budget=0.5, sensitivity=1.0, cost=VARIANCE, table=Table(cells=cells)
    )
    return bounding_program(question, size)


def a_start(program: Program) -> Floats:
    p = np.exp(-0.4 * np.arange(program.lattice.size + 1.0))
    return p / float(program.lattice.counts @ p)


@pytest.mark.parametrize("order", [1.0, 2.0, 5.0])
def test_any_point_proves_a_bound(order: float) -> None:
    program = a_program(order)
    best = solved(program, a_start(program))
    optimum = optimal_renyi(order=order, budget=0.5, table=Table(cells=32)).divergence
    good = lower_bound(program, best)
    assert 0.9 * optimum < good < optimum
    rng = np.random.default_rng(5)
    for size in (1e-6, 1e-3, 0.1, 1.0):
        for _ in range(30):
            noise = rng.standard_normal((3, len(best.p)))
            point = Point(
                p=best.p * np.exp(size * noise[0]) * 7.0,
                weights=5 * (best.weights + size * noise[1, : len(best.weights)]),
                slack=best.slack,
                worst=best.worst,
                price=best.price * (1 + size * noise[2, 0]),
            )
            assert lower_bound(program, point) <= good * (1 + 1e-9)


def test_weights_are_made_to_be_weights() -> None:
    program = a_program(cells=8, size=40)
    point = solved(program, a_start(program))
    good = lower_bound(program, point)
    dearer = replace(point, weights=5 * point.weights, price=5 * point.price)
    assert lower_bound(program, dearer) <= good
    # A difference of divergences, made large, may be above all of them.
    weights = point.weights.copy()
    weights[0] -= 0.5
    assert lower_bound(program, replace(point, weights=weights, price=2 * point.price)) <= good


def test_the_tail_counts() -> None:
    # A tail that seems dear makes every law seem worse than it is.
    program = a_program(size=9)
    costs = program.costs.copy()
    costs[-1] *= 1e4
    dear = replace(program, costs=costs)
    point = solved(dear, a_start(program))
    honest = lower_bound(program, solved(program, a_start(program)))
    assert lower_bound(dear, point) > 1.1 * honest
    assert lower_bound(program, point) <= honest


def test_a_price_below_zero_proves_nothing() -> None:
    program = a_program(size=9)
    rich = replace(program, budget=10 * float(np.max(program.costs)))
    point = solved(program, a_start(program))
    assert lower_bound(rich, replace(point, price=-5.0)) == 0


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf])
def test_a_broken_point_proves_nothing(bad: float) -> None:
    program = a_program(size=9)
    point = solved(program, a_start(program))
    p = point.p.copy()
    p[3] = bad
    assert lower_bound(program, replace(point, p=p)) == 0


@pytest.mark.parametrize(
    "cost", [VARIANCE, Cost(name="l1"), Cost.convex(quartic), Cost.convex(lambda x: np.cosh(x) - 1)]
)
def test_rounding_to_the_lattice_costs_no_more_than_is_allowed(cost: Cost) -> None:
    step, size = Fraction(1, 3), 12
    lattice = Lattice(size=size, shifts=3, centred=True)
    costs, budget = lattice_costs(cost, lattice, step, 1.0)
    x = np.linspace(0.0, float(step) * size, 50_001)
    chord = np.interp(x, float(step) * np.arange(size + 1), costs)
    assert np.all(chord <= cost.at(x) + (budget - 1.0) + 1e-12)
    further = float(step) * size + np.linspace(0.0, 5.0, 501)
    assert np.all(costs[-1] <= cost.at(further) + 1e-12)
    # And not much less: the excess is of the order of the square of the step.
    assert np.max(cost.at(x) + (budget - 1.0) - chord) < 0.4 * float(
        np.max(np.diff(cost.at(x)[::4_000]))
    )


def test_cells_cost_no_more_than_what_is_in_them() -> None:
    cost = Cost(name="usefulness", parameter=0.95)
    lattice = Lattice(size=12, shifts=3, centred=False)
    costs, budget = lattice_costs(cost, lattice, Fraction(1, 10), 0.2)
    assert budget == 0.2
    cells = np.arange(12)
    assert np.all(costs[:-1] <= cost.at((cells + 1e-9) / 10))
    assert costs.sum() == 3  # the cells from 1.0 on, and the tail


def test_merging_the_tail_only_loses_divergence() -> None:
    rng = np.random.default_rng(3)
    for order, centred in itertools.product((1.0, 2.0, 7.0), (True, False)):
        p = rng.random(13) + 0.05
        merged = Lattice(size=12, shifts=5, centred=centred)
        for decay in (0.3, 0.7):
            whole = replace(merged, decay=decay)
            values = [x.derivatives(order, p, np.ones(5)).values for x in (merged, whole)]
            assert np.all(values[0] < values[1])


@pytest.mark.parametrize("decay", [None, 0.6])
@pytest.mark.parametrize("centred", [True, False])
def test_the_derivatives_are_those_of_the_values(centred: bool, decay: float | None) -> None:
    lattice = Lattice(size=8, shifts=3, centred=centred, decay=decay)
    p, weights = np.random.default_rng(1).random(9) + 0.1, np.array([0.2, 0.5, 0.3])
    for order in (1.0, 2.5):
        at = lattice.derivatives(order, p, weights)
        dense = np.zeros((9, 9))
        for row, diagonal in enumerate(at.hessian):
            dense += np.diag(diagonal[: 9 - row], -row) + (row > 0) * np.diag(
                diagonal[: 9 - row], row
            )
        for i in range(9):
            step = np.zeros(9)
            step[i] = 1e-5 * p[i]
            high, low = (lattice.derivatives(order, p + s, weights) for s in (step, -step))
            slope = (high.values - low.values) / 2e-5
            np.testing.assert_allclose(at.gradients[:, i], slope, rtol=1e-6, atol=1e-7)
            # In p, scaled: the derivatives in ln p over p, changed.
            curve = weights @ (high.gradients / (p + step) - low.gradients / (p - step)) * p / 2e-5
            np.testing.assert_allclose(dense[:, i], curve, rtol=1e-5, atol=1e-6)


# ---- the law


@pytest.mark.parametrize("which", ["kl", "narrow"])
def test_the_divergence_is_the_largest_over_all_shifts(
    which: str, request: pytest.FixtureRequest
) -> None:
    found: RenyiOptimum = request.getfixturevalue(which)
    assert isinstance(found.law, Tabulated)
    shifts = np.concatenate([np.random.default_rng(2).random(40), [1.0]])
    theirs = [divergence_at(found.law, found.order, float(t)) for t in shifts]
    assert max(theirs) <= found.divergence
    assert max(theirs) == pytest.approx(found.divergence, rel=1e-6)


@pytest.mark.parametrize("order", [1.5, 2.0, 8.0])
def test_the_rdp_accountant_agrees(order: float) -> None:
    found = optimal_renyi(order=order, budget=1.0)
    assert isinstance(found.law, Tabulated)
    accountant = RDP().compose(Mechanism(noise=found.law))
    theirs = float(accountant.renyi([order])[0])
    # Its pair is above the curves of all shifts at once, whose moment is a little above theirs.
    assert found.divergence * (1 - 1e-9) <= theirs < found.divergence * 1.05


def test_a_law_that_cheats_between_shifts_is_caught() -> None:
    # Narrow peaks at multiples of s, best for the shift s alone.
    whole = optimal_renyi(order=2.0, budget=0.24, table=Table(whole=True))
    assert isinstance(whole.law, WholeLaw)
    peaks, m = np.array(whole.law.masses), 16
    masses = np.full(m * len(peaks), 1e-9)
    masses[0] = peaks[0]
    for i, mass in enumerate(peaks[1:], start=1):
        masses[i * m - 1 : i * m + 1] = mass / 2
    edges = np.arange(len(masses) + 1) / m * (1 + 1e-12)
    law = Tabulated(edges=tuple(edges), masses=tuple(masses), decay=whole.law.decay ** (1 / m))
    bound = optimal_renyi(order=2.0, budget=law.variance)
    assert law.variance < 0.25
    assert divergence_at(law, 2.0, 1.0) < 0.99 * bound.lower_bound
    assert worst_divergence(law, 2.0, 1.0, m) > 2 * bound.divergence
    assert float(RDP().compose(Mechanism(noise=law)).renyi([2.0])[0]) > 2 * bound.divergence


def test_all_shifts_of_a_law_on_whole_numbers() -> None:
    law = WholeLaw(masses=(0.3, 0.3, 0.05, 0.2), decay=0.5)
    k = np.arange(-300, 301)
    half = np.array([*law.masses, *(0.2 * 0.5 ** np.arange(1, 300))])
    f = half[np.abs(k)] / np.where(k == 0, 1, 2)
    f = f / f.sum()
    for order in (1.0, 2.0, 4.0):
        values: list[float] = []
        for t in (1, 2, 3):
            p, q = f[:-t], f[t:]
            moment = (
                np.sum(p * np.log(p / q)) if order == 1 else np.sum(p**order * q ** (1 - order))
            )
            values.append(moment if order == 1 else math.log(moment) / (order - 1))
        scaled = replace(law, masses=tuple(f[300:304] * np.array([1, 2, 2, 2])))
        assert worst_divergence(scaled, order, 3.0, 3) == pytest.approx(max(values), rel=1e-9)


def test_the_cost_is_the_law_s_own_tail_included() -> None:
    law = Tabulated(edges=(0.0, 0.5, 1.0, 1.5), masses=(0.3, 0.5, 0.1), decay=0.8)
    assert cost_of(VARIANCE, law) == pytest.approx(law.variance, rel=1e-12)
    assert cost_of(Cost(name="l1"), law) == pytest.approx(law.mean_abs, rel=1e-12)
    assert cost_of(Cost(name="usefulness"), law) == pytest.approx(2 * law.sf(0.9), rel=1e-12)
    k = np.arange(500)
    masses = np.append([0.5, 0.3], 0.1 * 0.8 ** np.arange(498))
    theirs = float(masses @ k**2) / float(np.sum(masses))
    assert cost_of(VARIANCE, WholeLaw(masses=(0.5, 0.3, 0.1), decay=0.8)) == pytest.approx(theirs)


def test_tables_that_miss_the_shift_are_refused() -> None:
    found = optimal_renyi(order=2.0, budget=1.0)
    assert isinstance(found.law, Tabulated)
    m = round(1 / (found.law.edges[1] - found.law.edges[0]))
    assert math.isfinite(worst_divergence(found.law, 2.0, 1.0, m))
    assert worst_divergence(found.law.scaled(1 - 1e-9), 2.0, 1.0, m) == math.inf
    assert worst_divergence(replace(found.law, decay=0.0), 2.0, 1.0, m) == math.inf


# ---- for (epsilon, delta)


def test_candidates_are_worth_certifying() -> None:
    problem = SearchProblem(
        target=Budget(cost=0.49, delta=1e-5),
        steps=1000,
        sampling=Sampling(rate=0.01),
        cost=VARIANCE,
    )
    gaussian = certified(problem, Gaussian(sigma=1.0)).epsilon
    found = [certified(problem, law) for law in renyi_candidates(problem)]
    assert 3 <= len(found) <= 8
    assert min(one.epsilon for one in found) < 0.58 * gaussian
    assert all(one.cost <= 0.49 for one in found)
    assert len(list(kl_candidates(problem))) == 1


def test_candidates_for_a_target_gain() -> None:
    problem = SearchProblem(target=Target(epsilon=2.0, delta=1e-2), sensitivity=2.0, cost=VARIANCE)
    closed = min(
        certified(problem, GeneralizedGaussian(scale=1.0, beta=beta)).cost
        for beta in (1.0, 1.4, 2.0)
    )
    laws = list(renyi_candidates(problem))
    assert all(law.variance == pytest.approx(closed, rel=1e-6) for law in laws)
    assert min(certified(problem, law).cost for law in laws) < 0.975 * closed


def test_candidates_are_for_the_problem_s_own_cost() -> None:
    problem = SearchProblem(
        target=Budget(cost=0.05, delta=1e-6), cost=Cost(name="usefulness", parameter=0.9)
    )
    assert all(
        2 * law.sf(0.9) == pytest.approx(0.05, rel=1e-6) for law in renyi_candidates(problem)
    )


# ---- refusals


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({"order": 0.5, "budget": 1.0}, "order=0.5"),
        ({"order": math.inf, "budget": 1.0}, "order=inf"),
        ({"order": 2.0, "budget": -1.0}, r"budget=-1\.0"),
        ({"order": 2.0, "budget": 1.0, "sensitivity": 0.0}, r"sensitivity=0\.0"),
        ({"order": 2.0, "budget": 1.0, "cost": Cost(name="entropy")}, "entropy"),
        ({"order": 1e5, "budget": 1.0}, "order=100000"),
        ({"order": 2.0, "budget": 1e14}, "table of at most"),
    ],
)
def test_what_cannot_be_answered_is_refused(question: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        optimal_renyi(**question)  # type: ignore[arg-type]


def test_budgets_below_what_a_cell_costs_are_refused() -> None:
    with pytest.raises(Unattainable, match="more cells") as refusal:
        optimal_renyi(order=2.0, budget=1e-6, table=Table(cells=8))
    assert refusal.value.reached > 1e-3


def test_tables_are_checked() -> None:
    with pytest.raises(ValueError, match="cells=0"):
        Table(cells=0)
    with pytest.raises(ValueError, match="cells=4"):
        Table(cells=4, whole=True)
    with pytest.raises(ValueError, match="extent=-1"):
        Table(extent=-1.0)
    with pytest.raises(ValueError, match=r"sensitivity=1\.5"):
        optimal_renyi(order=2.0, budget=1.0, sensitivity=1.5, table=Table(whole=True))


def test_candidates_are_for_scalars_and_means() -> None:
    target = Target(epsilon=1.0, delta=1e-5)
    with pytest.raises(ValueError, match="dim=3"):
        next(renyi_candidates(SearchProblem(target=target, dim=3, cost=VARIANCE)))
    with pytest.raises(ValueError, match="quantile"):
        next(kl_candidates(SearchProblem(target=target, cost=Cost(name="quantile"))))
