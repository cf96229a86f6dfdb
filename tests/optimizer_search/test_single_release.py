"""One release: laws and bounds that meet, closed forms at the edges, certificates that hold."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from scipy import optimize, sparse
from scipy.stats import norm

from dpmech import Gaussian, Laplace, Noise, Sampling, Staircase, Target, TruncatedLaplace
from dpmech.noise import Floats
from dpmech.tabulated import Tabulated
from optimizer_search import Budget, Cost, SearchProblem
from optimizer_search._lp_certificate import Events, certified_bound, chord_gaps, lattice_cost
from optimizer_search._lp_falling import Falling
from optimizer_search._lp_interior import Program, solve
from optimizer_search._lp_lattice import Lattice
from optimizer_search._lp_release import spread
from optimizer_search.certify import certified, proved
from optimizer_search.single_release import (
    least_cost_under,
    single_release_bound,
    single_release_candidates,
)

L1, VARIANCE = Cost(name="l1"), Cost(name="variance")


def problem(epsilon: float, delta: float, cost: Cost = L1, **more: Any) -> SearchProblem:
    return SearchProblem(target=Target(epsilon=epsilon, delta=delta), cost=cost, **more)


def best(asked: SearchProblem) -> tuple[float, float]:
    """(cost of the last law as it stands, proved to be within the target; the bound)."""
    law = list(single_release_candidates(asked))[-1]
    candidate, bound = proved(asked, law), single_release_bound(asked)
    assert isinstance(asked.target, Target)
    assert candidate.epsilon <= asked.target.epsilon
    assert bound is not None
    assert bound.on == "cost"
    return candidate.cost, bound.value


CELLS = [*product((0.005, 1.0, 4.3), (1e-9, 1e-3, 0.3)), (10.0, 1e-9), (10.0, 0.3)]


@pytest.mark.parametrize(("epsilon", "delta"), CELLS)
@pytest.mark.parametrize("cost", [L1, VARIANCE], ids=str)
def test_the_law_found_costs_the_least_possible_to_half_a_percent(
    epsilon: float, delta: float, cost: Cost
) -> None:
    found, bound = best(problem(epsilon, delta, cost))
    assert bound <= found <= bound * 1.005


def test_the_law_beats_the_published_figure() -> None:
    found, bound = best(problem(3.0, 0.3))
    assert 0.162 < bound <= found <= 0.1645


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 8.0])
def test_without_delta_the_best_law_is_the_staircase(epsilon: float) -> None:
    for cost, least in (
        (L1, Staircase.least_mean_abs(epsilon).mean_abs),
        (VARIANCE, Staircase.least_variance(epsilon).variance),
    ):
        found, bound = best(problem(epsilon, 1e-12, cost))
        assert 0.995 * least <= bound <= least <= found * 1.00001 <= 1.005 * least


@pytest.mark.parametrize("delta", [0.02, 0.1, 0.25])
def test_without_epsilon_the_best_law_is_uniform(delta: float) -> None:
    assert 0.998 <= least_cost_under([(1.0, delta)], L1, 1.0) * 4 * delta <= 1
    # Of a variance it is not: atoms at a few multiples of the sensitivity help.
    assert 0.97 <= least_cost_under([(1.0, delta)], VARIANCE, 1.0) * 12 * delta**2 <= 1


def laws(epsilon: float, delta: float) -> list[Noise]:
    """Laws that are not the best ones, at the scale that the problem asks for."""
    asked = problem(epsilon, delta)
    known = (Gaussian(sigma=1.0), Laplace(b=1.0), TruncatedLaplace.for_target(epsilon, delta))
    return [certified(asked, law).law for law in known]


def test_no_law_costs_less_than_the_bound() -> None:
    rng = np.random.default_rng(5)
    for _ in range(4):
        epsilon, delta = math.exp(rng.uniform(-3, 1.3)), math.exp(rng.uniform(-15, -1.5))
        for cost in (L1, VARIANCE, Cost(name="usefulness", parameter=1.0)):
            bound = single_release_bound(problem(epsilon, delta, cost))
            least = min(cost.of(law) for law in laws(epsilon, delta))
            assert bound is None or bound.value <= least


@pytest.mark.parametrize("cost", [L1, VARIANCE, Cost.convex(lambda x: x**1.5)], ids=str)
def test_sensitivity_only_scales(cost: Cost) -> None:
    power = {"l1": 1.0, "variance": 2.0, "convex": 1.5}[cost.name]
    one, three = (best(problem(1.5, 0.01, cost, sensitivity=s)) for s in (1.0, 3.0))
    assert three == pytest.approx(np.array(one) * 3.0**power, rel=1e-4)
    assert one[1] <= one[0] <= 1.006 * one[1]


@pytest.mark.parametrize("rate", [0.5, 0.01])
def test_sampling_is_another_epsilon_and_delta(rate: float) -> None:
    asked = problem(1.0, 1e-4, sampling=Sampling(rate=rate))
    found, bound = best(asked)
    plain = problem(math.log1p(math.expm1(1.0) / rate), 1e-4 / rate)
    assert (found, bound) == pytest.approx(best(plain), rel=1e-6)


BUDGETS = [(L1, 1.0, 1e-6), (VARIANCE, 0.2, 0.01), (L1, 0.3, 0.2)]


@pytest.mark.parametrize(("cost", "spend", "delta"), BUDGETS)
def test_a_budget_buys_the_least_epsilon(cost: Cost, spend: float, delta: float) -> None:
    asked = SearchProblem(target=Budget(cost=spend, delta=delta), cost=cost)
    candidate = [certified(asked, law) for law in single_release_candidates(asked)][-1]
    bound = single_release_bound(asked)
    assert bound is not None
    assert bound.on == "epsilon"
    assert candidate.cost <= spend
    assert bound.value <= candidate.epsilon <= 1.005 * bound.value


def test_a_law_made_for_the_full_shift_alone_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    every = Lattice(constraints=((math.exp(1.0), 1e-3),), cost=L1, sensitivity=1.0, m=10)
    honest = spread(every)
    t, x = every.events
    monkeypatch.setattr(Lattice, "events", (t[t == 10], x[t == 10]))
    cheat = spread(replace(every))
    asked = problem(1.0, 1e-3)
    assert L1.of(cheat) < 0.9 * L1.of(honest)
    assert proved(asked, honest).epsilon < 1.001
    assert proved(asked, cheat).epsilon > 1.5


def hockey_stick(law: Tabulated, shift: float, epsilon: float) -> float:
    """H by the masses between all edges of the law and of the law moved."""
    edges = np.array(law.edges)
    line = np.concatenate([-edges[::-1], edges])
    cuts = np.unique(np.concatenate([line, line + shift]))
    middle, width = (cuts[1:] + cuts[:-1]) / 2, np.diff(cuts)
    p, q = (np.where(abs(x) < edges[-1], law.pdf(x), 0.0) for x in (middle - shift, middle))
    return float(np.sum(np.maximum(p - math.exp(epsilon) * q, 0.0) * width))


@pytest.mark.parametrize("shift", [1.0, 0.77, 0.5, 0.123])
def test_the_lattice_s_law_keeps_the_constraint_at_shifts_between_its_points(shift: float) -> None:
    lattice = Lattice(constraints=((math.e, 0.1),), cost=VARIANCE, sensitivity=1.0, m=7)
    assert lattice.within
    assert hockey_stick(spread(lattice), shift, 1.0) <= 0.1 * (1 + 1e-5)


def random_events(rng: np.random.Generator, gamma: float, delta: float, m: int) -> Events:
    """Any weights at all, some below 0, some of the same event."""
    n = int(rng.integers(1, 400))
    t, x = rng.integers(1, m + 1, n), rng.integers(-4 * m, 5 * m, n)
    weight = rng.normal(0.3, 1.0, n) * math.exp(rng.uniform(-6, 2))
    return Events(gamma=gamma, delta=delta, t=t, x=x, weight=weight)


def test_whatever_the_weights_the_bound_is_one() -> None:
    rng = np.random.default_rng(8)
    epsilon, delta = 0.7, 0.15
    known = [*laws(epsilon, delta), *single_release_candidates(problem(epsilon, delta))]
    for cost in (L1, VARIANCE, Cost.convex(lambda x: np.exp(x) - 1)):
        least = min(cost.of(law) for law in known)
        for m in rng.integers(1, 9, 60):
            events = [random_events(rng, math.exp(epsilon), delta, int(m)) for _ in range(2)]
            assert certified_bound(events, cost, 1.0, int(m)) <= least


def test_good_weights_tampered_with_still_bound() -> None:
    lattice = Lattice(constraints=((math.e, 0.1),), cost=L1, sensitivity=1.0, m=6)
    t, x = lattice.events
    least = L1.of(spread(lattice))
    rng = np.random.default_rng(3)
    for _ in range(50):
        weight = lattice.solution.y * np.exp(rng.normal(0, 0.1)) + rng.normal(0, 0.01, len(t))
        weight -= abs(rng.normal(0, 0.1)) * (np.abs(x) < 20)  # negative ones are no weights
        events = Events(gamma=math.e, delta=0.1, t=t, x=x, weight=weight)
        assert certified_bound([events], L1, 1.0, 6) <= least


def test_shifts_beyond_the_sensitivity_are_no_events() -> None:
    one = np.ones(1, dtype=np.int64)
    events = Events(gamma=2.0, delta=0.1, t=5 * one, x=one, weight=np.ones(1))
    with pytest.raises(ValueError, match="Expected shifts of 1 to m=4"):
        certified_bound([events], L1, 1.0, 4)


def curve(x: Floats) -> Floats:
    return x**1.5 + np.maximum(x - 0.93, 0.0)


@pytest.mark.parametrize("cost", [VARIANCE, L1, Cost.convex(curve)], ids=str)
def test_the_chord_gap_is_no_smaller_than_it_is(cost: Cost) -> None:
    step, points = 0.3, 12
    x = np.linspace(0.0, step * (points - 1), 5_003)
    at = np.minimum((x / step).astype(int), points - 2)
    chord = np.interp(x, step * np.arange(points), lattice_cost(cost, step, points))
    assert np.all(chord - cost.at(x) <= chord_gaps(cost, step, points)[at] + 1e-14)


def test_a_cost_that_only_rises_is_nowhere_below_its_values_on_the_lattice() -> None:
    cost = Cost(name="usefulness", parameter=0.95)
    x = np.linspace(0.0, 2.9, 1_001)
    assert np.all(np.interp(x, 0.3 * np.arange(12), lattice_cost(cost, 0.3, 12)) <= cost.at(x))


def highs(program: Program) -> float:
    """The program's value by scipy's solver."""
    n, k = len(program.costs), len(program.limits)
    rows, soft = program.rows, program.soft
    excess = sparse.vstack([-sparse.eye(soft), sparse.csr_array((rows.shape[0] - soft, soft))])
    upper = sparse.block_array([[rows, excess], [sparse.csr_array((k, n)), program.shares.T]])
    answer = optimize.linprog(
        np.concatenate([program.costs, np.zeros(soft)]),
        A_ub=upper.tocsr(),
        b_ub=np.concatenate([np.zeros(rows.shape[0]), program.limits]),
        A_eq=np.concatenate([program.weights, np.zeros(soft)])[None, :],
        b_eq=[1.0],
    )
    return float(answer.fun)


def programs(monkeypatch: pytest.MonkeyPatch) -> list[Program]:
    """Programs of all kinds: all soft rows, hard ones too, several constraints."""
    caught: list[Program] = []

    def keep(program: Program, tolerance: float) -> Any:
        caught.append(program)
        return solve(program, tolerance)

    monkeypatch.setattr("optimizer_search._lp_lattice.solve", keep)
    monkeypatch.setattr("optimizer_search._lp_falling.solve", keep)
    pairs = ((math.e, 0.05), (1.5, 0.2))
    _ = Lattice(constraints=pairs, cost=L1, sensitivity=1.0, m=5).solution
    _ = Lattice(constraints=pairs[:1], cost=VARIANCE, sensitivity=1.0, m=8).solution
    _ = Falling(constraint=pairs[0], cost=VARIANCE, sensitivity=1.0).solution
    return caught


def test_the_interior_point_method_finds_what_another_solver_finds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for program in programs(monkeypatch):
        assert solve(program, 1e-6).cost == pytest.approx(highs(program), rel=1e-5)


def test_a_large_program_is_solved_like_a_small_one(monkeypatch: pytest.MonkeyPatch) -> None:
    program = programs(monkeypatch)[0]
    small = solve(program, 1e-6)
    monkeypatch.setattr("optimizer_search._lp_factor._DENSE", 0)
    large = solve(program, 1e-6)
    assert large.cost == pytest.approx(small.cost, rel=1e-6)
    assert large.lam == pytest.approx(small.lam, rel=1e-4)


def gaussian_constraint(sigma: float, loss: float) -> tuple[float, float]:
    low, high = (norm.sf(sigma * loss + side / (2 * sigma)) for side in (-1, 1))
    return math.exp(loss), float(low - math.exp(loss) * high)


def test_more_constraints_bound_more_and_never_beyond_a_law_that_meets_them() -> None:
    sigma = 2.0
    pairs = [gaussian_constraint(sigma, j / sigma) for j in range(5)]
    bounds = [least_cost_under(pairs[:n], VARIANCE, 1.0) for n in (1, 2, 5)]
    assert bounds[0] < 0.9 * bounds[1] < 0.9 * bounds[2] < 0.9 * sigma**2
    assert bounds[2] > 0.9 * sigma**2


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (problem(1.0, 1e-5, steps=2), "one release of a scalar"),
        (problem(1.0, 1e-5, VARIANCE, dim=3), "one release of a scalar"),
        (problem(1.0, 1e-5, Cost(name="entropy")), "a cost that is a mean"),
        (problem(1.0, 0.1, sampling=Sampling(rate=0.05)), "below the sampling rate=0.05"),
    ],
)
def test_other_problems_are_refused(asked: SearchProblem, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        next(iter(single_release_candidates(asked)))
    assert single_release_bound(asked) is None


@pytest.mark.parametrize("pairs", [[], [(0.5, 0.1)], [(2.0, 0.0)], [(2.0, 1.0)]])
def test_impossible_constraints_are_refused(pairs: list[tuple[float, float]]) -> None:
    with pytest.raises(ValueError, match="Expected"):
        least_cost_under(pairs, L1, 1.0)
