"""Curves: the exact Gaussian is bracketed, what lies between points is covered, mu is honest."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
from scipy.stats import norm

from accountants import PLD, RDP
from accountants._gdp import cell_mu, least_mu
from accountants._tradeoff import Tradeoff, _peak
from accountants.curves import (
    Interval,
    advantage,
    best_gdp_mu,
    delta_curve,
    epsilon_curve,
    false_negative_rate,
    tradeoff_curve,
)
from accountants.exact import gaussian_delta, laplace_delta
from dpmech import Gaussian, Laplace, Mechanism, Sampling, TruncatedLaplace, Unattainable

RATES = np.array([1e-6, 1e-3, 0.01, 0.05, 0.3, 0.5, 0.9, 0.999])
ONE = PLD().compose(Mechanism(noise=Gaussian(sigma=1.0)))
SAMPLED = Mechanism(noise=Gaussian(sigma=1.0), sampling=Sampling(rate=0.01))


@dataclass(frozen=True)
class Known:
    """The exact curve of mu-Gaussian privacy, made loose by a relative gap on both sides."""

    mu: float
    gap: float = 0.0

    def delta_interval(self, epsilon: float) -> tuple[float, float]:
        exact = gaussian_delta(epsilon, 1 / self.mu)
        return exact * (1 - self.gap), exact * (1 + self.gap)


def exact_fnr(fpr: float, mu: float = 1.0) -> float:
    return float(norm.cdf(norm.isf(fpr) - mu))


def test_the_curves_ask_the_accountant() -> None:
    found = delta_curve(ONE, [0.0, 1.0, 3.0])
    for epsilon, low, high in zip(found.x, found.lower, found.upper, strict=True):
        assert low <= gaussian_delta(float(epsilon), 1.0) <= high * (1 + 1e-12)
    back = epsilon_curve(ONE, found.upper)
    assert np.all(back.lower <= found.x + 1e-9)
    assert back.x.tolist() == found.upper.tolist()
    assert epsilon_curve(RDP().compose(SAMPLED), [1e-5]).lower.tolist() == [0.0]


def test_advantage_is_total_variation() -> None:
    found = advantage(ONE)
    assert found.lower <= 2 * norm.cdf(0.5) - 1 <= found.upper <= 0.38293
    loose = advantage(RDP().compose(SAMPLED, 1000))
    assert (loose.lower, loose.upper >= 0.1610) == (0.0, True)


def test_the_sampled_gaussian() -> None:
    """Against the contour quadrature of benchmarks/: delta(0), and 1 - delta - e^eps/100 at .9."""
    accountant = PLD().compose(SAMPLED, 1000)
    at_zero, missed = advantage(accountant), false_negative_rate(accountant, 0.01)
    assert at_zero.lower <= 0.1610176196979 <= at_zero.upper
    assert missed.lower <= 0.9708608472571 <= missed.upper
    for found in (at_zero, missed):
        assert found.upper - found.lower <= 1e-4 * found.upper


@pytest.mark.parametrize("fpr", RATES)
@pytest.mark.parametrize("mu", [0.01, 1.0, 5.0])
def test_the_gaussian_tradeoff_is_bracketed(fpr: float, mu: float) -> None:
    found = Tradeoff(Known(mu)).at(float(fpr))  # type: ignore[arg-type]
    exact = exact_fnr(float(fpr), mu)
    assert found[0] <= exact + 1e-12
    assert exact - 1e-12 <= found[1]
    assert found[1] - found[0] <= 1e-5 * min(exact, 1 - fpr - exact) + 1e-10


@pytest.mark.parametrize("gap", [1e-6, 1e-3, 0.3])
def test_looseness_of_the_accountant_is_carried_through(gap: float) -> None:
    for fpr in (0.001, 0.1, 0.8):
        low, high = Tradeoff(Known(1.0, gap)).at(fpr)  # type: ignore[arg-type]
        assert low <= exact_fnr(fpr) <= high
        assert high - low <= 5 * gap


@pytest.mark.parametrize("seed", range(40))
def test_the_peak_covers_every_curve_within_the_bounds(seed: int) -> None:
    """Few points, wide bounds, the truth at either end of them: the maximum is still covered."""
    rng = np.random.default_rng(seed)
    fpr, mu = float(rng.uniform(0.01, 0.6)), float(rng.uniform(0.5, 3.0))
    gamma = np.sort(np.exp(rng.uniform(-2.0, 3.0, 5)))

    def phi(at: float) -> float:
        h = gaussian_delta(abs(math.log(at)), 1 / mu)
        return 1 - (h if at >= 1 else 1 - at + at * h) - at * fpr

    exact = np.array([phi(float(g)) for g in gamma])
    wide = rng.uniform(0.0, 0.1, 5) * rng.integers(0, 2, 5)
    side = rng.integers(0, 2, 5)
    end = max(1 / fpr, 2 * gamma[-1])
    x = np.concatenate([[0.0], gamma, [end]])
    below = np.concatenate([[0.0], exact - wide * side, [-end * fpr]])
    above = np.concatenate([[0.0], exact + wide * (1 - side), [1 - end * fpr]])
    assert _peak(x, below, above, fpr)[0] >= exact_fnr(fpr, mu) - 1e-12


def test_a_curve_is_its_points_and_falls() -> None:
    accountant = PLD().compose(Mechanism(noise=Laplace(b=1.0)), 3)
    found = tradeoff_curve(accountant, RATES)
    assert np.all(np.diff(found.lower) <= 0)
    assert np.all(found.lower <= found.upper)
    assert np.all(found.upper <= 1 - RATES + 1e-15)
    alone = false_negative_rate(accountant, float(RATES[3]))
    assert found.lower[3] == pytest.approx(alone.lower, abs=1e-5)
    # What any single epsilon promises is below the upper bound.
    for epsilon in np.linspace(0, 3, 40):
        delta = accountant.delta(float(epsilon))
        assert np.all(1 - delta - math.exp(epsilon) * RATES <= found.upper + 1e-4 * delta)
        assert np.all(math.exp(-epsilon) * (1 - delta - RATES) <= found.upper + 1e-4 * delta)


def test_laplace_by_hand() -> None:
    accountant = PLD().compose(Mechanism(noise=Laplace(b=1.0)))
    best = max(
        1 - laplace_delta(float(e), 1.0) - math.exp(e) * 0.05 for e in np.linspace(0, 1, 2001)
    )
    found = false_negative_rate(accountant, 0.05)
    assert found.lower <= best + 1e-6
    assert best <= found.upper + 1e-9


def test_without_a_lower_bound_the_upper_one_is_trivial() -> None:
    found = false_negative_rate(RDP().compose(SAMPLED, 1000), 0.01)
    assert 0.7 < found.lower < 0.9708
    assert found.upper == pytest.approx(0.99, abs=1e-9)
    assert best_gdp_mu(RDP().compose(SAMPLED, 1000), delta_min=1e-3).lower == 0.0


@pytest.mark.parametrize("sigma", [0.5, 2.0])
def test_mu_of_a_gaussian(sigma: float) -> None:
    found = best_gdp_mu(PLD().compose(Mechanism(noise=Gaussian(sigma=sigma))), delta_min=1e-6)
    assert found.lower <= 1 / sigma * (1 + 1e-9)
    assert 1 / sigma <= found.upper * (1 + 1e-9)
    assert found.upper <= 1 / sigma * 1.003


def test_mu_covers_what_lies_between_its_points() -> None:
    accountant = PLD(tolerance=1e-3).compose(SAMPLED, 1000)
    found = best_gdp_mu(accountant, delta_min=1e-8)
    assert found.upper <= found.lower * 1.003
    for epsilon in np.linspace(0, 2.6, 27):
        mine = max(gaussian_delta(float(epsilon), 1 / found.upper), 1e-8)
        assert accountant.lower_delta(float(epsilon)) <= mine
    # Its tail is heavier than a Gaussian's: further down mu grows.
    assert best_gdp_mu(accountant, delta_min=1e-12).lower > found.upper


def test_a_cell_is_covered_by_its_mu_and_a_narrow_one_tightly() -> None:
    for width, loose in ((1.0, 1.3), (0.05, 1.002)):
        ends = [(e, (None, gaussian_delta(e, 1.0))) for e in (2.0, 2.0 + width)]
        mu, middle = cell_mu((ends[0], ends[1]), 1e-30)
        assert 1.0 <= mu <= loose
        assert middle == pytest.approx(2 + width / 2)
    # The truth may stay as high as the chord up to the right end, where it asks for most.
    flat = ((2.0, (None, 0.02)), (3.0, (None, 0.02)))
    assert cell_mu(flat, 1e-30)[0] >= least_mu(3.0, 0.02 * (1 - 1e-12), 0.0)
    assert least_mu(3.0, gaussian_delta(3.0, 1.0), 0.0) == pytest.approx(1.0, rel=1e-8)
    assert least_mu(3.0, 1e-9, 1e-8) == 0.0


def test_mu_needs_a_finite_loss() -> None:
    accountant = PLD().compose(Mechanism(noise=TruncatedLaplace(b=1.0, bound=2.0)))
    with pytest.raises(Unattainable, match=r"delta_min=1e-10"):
        best_gdp_mu(accountant)
    assert best_gdp_mu(PLD()) == Interval(lower=0.0, upper=0.0)


@pytest.mark.parametrize("bad", [0.0, 1.0, -0.1, math.nan])
def test_bad_rates_are_named(bad: float) -> None:
    with pytest.raises(ValueError, match=f"fpr={bad}"):
        false_negative_rate(ONE, bad)
    with pytest.raises(ValueError, match=f"delta={bad}"):
        best_gdp_mu(ONE, delta_min=bad)


def test_no_points_are_refused() -> None:
    for curve in (delta_curve, epsilon_curve, tradeoff_curve):
        with pytest.raises(ValueError, match="list of numbers"):
            curve(ONE, [])
