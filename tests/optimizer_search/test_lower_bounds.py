"""Bounds on what any noise must cost: below all that we can make, and not far."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from accountants import PLD
from dpmech import Gaussian, GeneralizedGaussian, Laplace, Mechanism, Noise, Sampling, Target
from dpmech.noise import Floats
from optimizer_search import Budget, Cost, SearchProblem, certified, lower_bounds
from optimizer_search._few_lattice import TwoLimits
from optimizer_search._few_symbols import Curve, FewSymbols, pair
from optimizer_search.lower_bounds import best_bound, composed_bound

VARIANCE = Cost(name="variance")
# steps, rate, epsilon, delta, and the variance of the best law known
KNOWN = [(10, 1.0, 2.6628, 1e-6, 25.0), (1000, 0.01, 1.504, 1e-5, 1.0)]


def wanted(steps: int, rate: float, epsilon: float, delta: float) -> SearchProblem:
    target = Target(epsilon=epsilon, delta=delta)
    return SearchProblem(target=target, steps=steps, sampling=Sampling(rate=rate), cost=VARIANCE)


def hockey_stick(law: Noise, gamma: float, shift: float) -> float:
    x = np.linspace(-40 * law.std, 40 * law.std + shift, 400_001)
    excess = np.exp(law.logpdf(x - shift)) - gamma * np.exp(law.logpdf(x))
    return float(np.sum(np.maximum(excess, 0.0)) * (x[1] - x[0]))


def delta_of(p: Floats, steps: int, rate: float, epsilon: float) -> float:
    """Of four symbols, over all outcomes one by one."""
    q = p[::-1]
    u = (1 - rate) * q + rate * p
    n = np.arange(steps + 1)
    grid = np.stack(np.meshgrid(n, n, n, indexing="ij")).reshape(3, -1)
    counts = np.vstack([grid, steps - grid.sum(axis=0)]).T
    counts = counts[counts[:, 3] >= 0]
    up, down = (stats.multinomial.pmf(counts, steps, mass) for mass in (u, q))
    return float(np.sum(np.maximum(up - math.exp(epsilon) * down, 0.0)))


@pytest.mark.parametrize(("steps", "rate"), [(1, 1.0), (4, 1.0), (12, 0.3), (25, 1.0)])
def test_four_symbols_exceed_only_what_they_do_exceed(steps: int, rate: float) -> None:
    rng = np.random.default_rng(steps)
    epsilon, close = 0.4 * math.sqrt(steps) * rate, 0
    for _ in range(30):
        b, x = float(rng.uniform(0.01, 0.3)), float(rng.uniform(0, 0.3))
        a = b + float(rng.uniform(0.01, 0.3))
        p = pair(np.array([a]), np.array([b]), x)
        delta = delta_of(p[:, 0] / p.sum(), steps, rate, epsilon)
        for share, more in ((1 + 1e-6, False), (0.8, True)):
            few = FewSymbols(steps=steps, rate=rate, epsilon=epsilon, delta=share * delta)
            exceeded = bool(few.exceeded(np.array([a]), np.array([b]), x)[0])
            assert more or not exceeded
            close += more and exceeded
    assert close >= 25


def test_tiny_deltas_are_told_apart() -> None:
    # Randomised response at loss l, T times: all T outcomes agree with probability p^T.
    loss, steps = 0.7, 12
    p = 1 / (1 + math.exp(-loss))
    epsilon = (steps - 0.5) * loss
    delta = p**steps * -math.expm1(epsilon - steps * loss)
    edge = np.array([1 - p])
    for share, exceeded in ((1 + 1e-6, False), (1 - 1e-6, True)):
        few = FewSymbols(steps=steps, rate=1.0, epsilon=epsilon, delta=share * delta)
        assert few.exceeded(1 - edge, edge, 2 * p - 1)[0] == exceeded


@pytest.mark.parametrize("law", [Gaussian(sigma=1.0), Laplace(b=1.0)], ids=["gauss", "laplace"])
@pytest.mark.parametrize(("steps", "rate", "epsilon"), [(10, 1.0, 2.0), (400, 0.02, 1.0)])
def test_limits_hold_for_laws_within_the_target(
    law: Noise, steps: int, rate: float, epsilon: float
) -> None:
    found = certified(wanted(steps, rate, epsilon, 1e-6), law)
    few = FewSymbols(steps=steps, rate=rate, epsilon=epsilon, delta=1e-6)
    y = hockey_stick(found.law, 1.0, 1.0)
    assert 0.5 * few.most_variation < y < few.most_variation
    every = few.curve(0.0)
    near = few.curve(0.98 * y, every)
    for loss in (0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.0):
        true = hockey_stick(found.law, math.exp(loss), 1.0)
        tight = near.excess(math.exp(loss), 1.02 * y)
        assert true <= tight * (1 + 1e-6) + 1e-15
        assert tight <= every.excess(math.exp(loss), few.most_variation) * (1 + 1e-9)


def test_limits_reach_laws_of_three_and_four_losses() -> None:
    """Laws for which nothing is lost meet the limits with equality, so no limit may be lower."""
    few = FewSymbols(steps=15, rate=1.0, epsilon=2.5, delta=1e-5)
    every = few.curve(0.0)
    for x in (0.0, 0.5 * few.most_variation, 0.8 * few.most_variation):
        curve = few.curve(x, every)
        for b in (0.02, 0.1, 0.2, 0.3):
            a = _most_allowed(few, b, x)
            y = max(x, a - b)
            for gamma in (1.0, 1.05, 1.2, 1.5, 2.5):
                assert curve.excess(gamma, y * (1 + 1e-9)) >= (a - gamma * b) * (1 - 1e-9)


def _most_allowed(few: FewSymbols, b: float, x: float) -> float:
    """A mass a with which the releases are within delta, from the outcomes one by one."""
    low, high = b, b + few.most_variation
    for _ in range(25):
        a = (low + high) / 2
        p = pair(np.array([a]), np.array([b]), x)[:, 0]
        within = delta_of(p / p.sum(), few.steps, few.rate, few.epsilon) <= few.delta
        low, high = (a, high) if within else (low, a)
    return low


def test_a_curve_bounds_between_its_places() -> None:
    # The power curve of Gaussian noise, known at a few places.
    def r(b: Floats) -> Floats:
        return stats.norm.cdf(stats.norm.ppf(b) + 0.6)

    y = float(2 * stats.norm.cdf(0.3) - 1)
    fine = np.linspace(1e-6, (1 - y) / 2, 200_001)
    b = np.append(np.linspace(0.02, 0.35, 4), (1 - 0.9 * y) / 2)
    curve = Curve(x=0.9 * y, b=b, a=r(b))
    for gamma in (1.0, 1.1, 1.3, 1.7, 2.5, 6.0):
        true = float(np.max(r(fine) - gamma * fine))
        assert true * (1 - 1e-12) <= curve.excess(gamma, y) <= y
    assert curve.excess(1.3, y) < 1.2 * float(np.max(r(fine) - 1.3 * fine))


@pytest.mark.parametrize("cost", ["variance", "l1"])
def test_the_program_is_below_a_law_within_its_limits(cost: str) -> None:
    law = GeneralizedGaussian(scale=2.0, beta=1.4)
    gammas = [math.exp(loss) for loss in (0.0, 0.2, 0.4, 0.8)]
    full = [hockey_stick(law, gamma, 1.0) for gamma in gammas]
    program = TwoLimits(
        gammas=gammas, full=full, short=full, cost=Cost.parse(cost), sensitivity=1.0, m=3, extent=9
    )
    assert 0.8 < program.bound / Cost.parse(cost).of(law) < 1
    # Looser limits at short shifts are for laws whose density need not fall.
    loose = replace(program, short=[1.0] * 4)
    assert loose.bound <= program.bound * (1 + 2e-3)


@pytest.mark.parametrize("share", [0.3, 0.6, 1.0])
def test_the_program_is_as_good_as_its_own_law(share: float) -> None:
    gammas, full = [math.exp(1.0), math.exp(1.9)], [0.5, 0.06]
    short = [share * delta for delta in full]
    program = TwoLimits(
        gammas=gammas, full=full, short=short, cost=Cost(name="l1"), sensitivity=3.0, m=4, extent=8
    )
    assert 0.99 < program.bound / program.solution.cost < 1 + 1e-3


def test_the_parts_are_the_whole_range() -> None:
    every = lower_bounds.Parts(wanted(5, 1.0, 1.0, 1e-4), 1.0)
    parts = sorted(every.parts(6), key=lambda part: part.left.x)
    assert len(parts) == 6
    assert parts[0].left.x == 0
    assert parts[-1].right == every.symbols.most_variation
    for part, after in pairwise(parts):
        assert part.right == after.left.x


@pytest.mark.parametrize(("steps", "rate", "epsilon", "delta", "variance"), KNOWN)
def test_the_bound_is_near_the_best_law_known(
    steps: int, rate: float, epsilon: float, delta: float, variance: float
) -> None:
    bound = composed_bound(wanted(steps, rate, epsilon, delta))
    assert bound is not None
    assert bound.on == "cost"
    assert 0.75 * variance < bound.value < variance


PROBLEMS = [
    (2, 1.0, 1.0, 1e-4, 0.3, "l1"),
    (300, 0.05, 0.7, 1e-6, 7.0, "l1"),
    (971, 1.0, 0.6, 1e-7, 0.3, "variance"),
]


@pytest.mark.parametrize(("steps", "rate", "epsilon", "delta", "s", "cost"), PROBLEMS)
def test_no_law_that_we_can_make_costs_less(
    steps: int, rate: float, epsilon: float, delta: float, s: float, cost: str
) -> None:
    problem = replace(wanted(steps, rate, epsilon, delta), sensitivity=s, cost=Cost.parse(cost))
    laws = [GeneralizedGaussian(scale=s, beta=beta) for beta in (1.0, 1.3, 1.6, 2.0, 3.0)]
    best = min(certified(problem, law).cost for law in laws)
    bound = composed_bound(problem)
    assert bound is not None
    assert 0.6 * best < bound.value < best


def test_an_epsilon_at_a_budget_is_below_that_of_laws_that_cost_as_much(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lower_bounds, "_ROUGH_PARTS", 4)
    target = Budget(cost=25.0, delta=1e-6)
    problem = SearchProblem(target=target, steps=10, cost=VARIANCE)
    bound = composed_bound(problem)
    assert bound is not None
    assert bound.on == "epsilon"
    assert 0.8 * 2.6628 < bound.value < 2.6628


def test_a_coordinate_of_a_vector_is_a_scalar(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = wanted(20, 1.0, 2.0, 1e-5)
    asked = list[SearchProblem]()
    monkeypatch.setattr(lower_bounds, "composed_bound", asked.append)
    best_bound(replace(problem, dim=3))
    assert asked == [problem]


def test_the_sum_of_the_releases_bounds_at_a_large_delta() -> None:
    bound = composed_bound(wanted(2, 1.0, 0.5, 0.2))
    assert bound is not None
    assert bound.method.startswith("the sum")
    sigma = math.sqrt(bound.value)
    assert PLD().compose(Mechanism(noise=Gaussian(sigma=sigma)), 2).delta(0.5) > 0.2


def test_where_nothing_is_known_nothing_is_said() -> None:
    problem = wanted(20, 0.1, 2.0, 1e-5)
    assert composed_bound(replace(problem, cost=Cost(name="entropy"))) is None
    other = Sampling(rate=0.1, kind="without-replacement")
    assert composed_bound(replace(problem, sampling=other)) is None
