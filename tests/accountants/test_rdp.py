"""Rényi accounting against closed forms, other accountants and what must hold of any curve."""

import math

import mpmath as mp
import numpy as np
import pytest

from accountants import PLD, RDP
from accountants._renyi import lost_mass, renyi_interval
from accountants.exact import (
    gaussian_epsilon,
)
from accountants.rdp import renyi_divergence
from dpmech import (
    LMO_PRESETS,
    Gaussian,
    GeneralizedGaussian,
    Laplace,
    LaplaceMixture,
    Mechanism,
    Noise,
    Sampling,
    Sensitivity,
    Staircase,
    TruncatedLaplace,
)
from dpmech.discrete import DiscreteGaussian
from dpmech.guarantee import ApproximateDP
from dpmech.loss import Direction, DominatingPair
from dpmech.spherical import SphericalGeneralizedGaussian

MIXTURE = LaplaceMixture(scales=(0.5, 5.0), weights=(0.3, 0.7))


LAWS: tuple[Noise, ...] = (
    Gaussian(sigma=1.0),
    Gaussian(sigma=0.05),
    Gaussian(sigma=40.0),
    Laplace(b=2.0),
    GeneralizedGaussian(scale=1.0, beta=0.7),
    GeneralizedGaussian(scale=1.0, beta=1.4),
    GeneralizedGaussian(scale=2.0, beta=4.0),
    Staircase.least_mean_abs(1.0),
    MIXTURE,
    *LMO_PRESETS.values(),
)


ORDERS = np.array([1.001, 1.3, 2.0, 2.5, 7.0, 40.0, 333.3, 1e5])


DIRECTIONS: tuple[Direction, Direction] = ("remove", "add")


def mechanism(noise: Noise, rate: float = 1.0, bound: float = 1.0) -> Mechanism:
    return Mechanism(
        noise=noise, sampling=Sampling(rate=rate), sensitivity=Sensitivity(bound=bound)
    )


def pair(noise: Noise, rate: float = 1.0, direction: Direction = "remove") -> DominatingPair:
    return mechanism(noise, rate).pairs()[DIRECTIONS.index(direction) if rate < 1 else 0]


def test_an_lmo_value_against_mpmath() -> None:
    law, s, q, order = LMO_PRESETS["0.7"], 1, mp.mpf("0.1"), mp.mpf("5.5")
    a1t, a3, a4 = mp.mpf("0.05"), mp.mpf("0.1"), mp.mpf("0.1")

    def transform(y: mp.mpf) -> mp.mpf:
        uniform = (mp.exp(-a4 * y * 5) - mp.exp(-a4 * y * 6)) / (a4 * y) if y else mp.mpf(1)
        return (1 + a1t * y) ** -1 * 5 / (5 + a3 * y) * uniform

    def density(x: mp.mpf) -> mp.mpf:
        return -mp.diff(transform, abs(x)) / 2

    def integrand(x: mp.mpf) -> mp.mpf:
        f0, f1 = density(x), density(x - s)
        return f0 * ((1 - q + q * f1 / f0) ** order - 1 - order * q * (f1 / f0 - 1))

    with mp.workdps(20):
        excess = mp.quad(
            integrand, [-200, -20, -2, mp.mpf("-1e-9"), mp.mpf("1e-9"), 0.999, 1.001, 3, 20, 200]
        )
        want = float(mp.log1p(excess) / (order - 1))
    got = float(renyi_divergence(mechanism(law, 0.1), [5.5])[0])
    assert got == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize("noise", LAWS, ids=str)
@pytest.mark.parametrize("rate", [1.0, 0.3, 1e-3])
def test_divergence_grows_with_the_order_and_removal_is_the_larger(
    noise: Noise, rate: float
) -> None:
    orders = 1 + np.geomspace(1e-3, 1e3, 16)
    run = mechanism(noise, rate)
    remove, add = (renyi_divergence(run, orders, d) for d in DIRECTIONS)
    assert np.all(np.diff(remove) >= -1e-6 * remove[1:])
    assert np.all(np.diff(add) >= -1e-6 * add[1:])
    assert np.all(remove > 0)


def test_larger_sensitivity_is_smaller_noise() -> None:
    wide = renyi_divergence(mechanism(MIXTURE.scaled(3.0), 0.1, bound=3.0), ORDERS)
    np.testing.assert_allclose(wide, renyi_divergence(mechanism(MIXTURE, 0.1), ORDERS), rtol=1e-6)


def test_many_orders_agree_with_one_at_a_time() -> None:
    run = mechanism(GeneralizedGaussian(scale=1.0, beta=1.4), 0.05)
    together = renyi_divergence(run, ORDERS.reshape(2, 4))
    apart = np.array([renyi_divergence(run, [a])[0] for a in ORDERS]).reshape(2, 4)
    np.testing.assert_allclose(together, apart, rtol=1e-5)


def test_infinite_loss_is_seen_by_the_removal_only() -> None:
    law = TruncatedLaplace(b=1.0, bound=5.0)
    assert np.all(np.isinf(renyi_divergence(mechanism(law), [2.0, 9.0])))
    run = mechanism(law, 0.25)
    assert np.isinf(renyi_divergence(run, [2.0])[0])
    got = renyi_divergence(run, [2.5], "add")[0]
    x = np.linspace(-5, 5, 2_000_001)
    x = (x[1:] + x[:-1]) / 2
    f0, f1 = law.pdf(x), law.pdf(x - 1)
    moment = np.sum(f0 * (0.75 + 0.25 * f1 / f0) ** -1.5) * (x[1] - x[0])
    assert got == pytest.approx(np.log(moment) / 1.5, rel=1e-5)
    # What is left of the removal is the moment of the finite losses, a sub-probability's.
    finite = np.sum(f0[x <= 5] * (0.75 + 0.25 * f1 / f0) ** 2.5) * (x[1] - x[0])
    low, high = renyi_interval(run.pairs()[0], np.array([2.5]))
    assert low[0] <= np.log(finite) / 1.5 * (1 + 1e-5)
    assert high[0] == pytest.approx(np.log(finite) / 1.5, rel=1e-5)
    assert lost_mass(run.pairs()[0]) == pytest.approx(0.25 * law.sf(4.0), rel=1e-9)
    # Supports that do not even meet: the sampled record may still be absent.
    apart = mechanism(TruncatedLaplace(b=1.0, bound=0.25), 0.25)
    assert renyi_divergence(apart, [3.0], "add")[0] == pytest.approx(-np.log(0.75), rel=1e-6)


INFINITE = (
    mechanism(TruncatedLaplace(b=1.0, bound=30.0)),
    mechanism(TruncatedLaplace(b=1.0, bound=30.0), 0.05),
    mechanism(ApproximateDP(epsilon=0.3, delta=1e-9)),
    mechanism(ApproximateDP(epsilon=1.0, delta=1e-8), 0.1),
    mechanism(DiscreteGaussian(sigma=3.0), 0.1),
)


@pytest.mark.parametrize("run", INFINITE, ids=str)
@pytest.mark.parametrize("count", [1, 30])
def test_infinite_mass_is_charged_to_delta(run: Mechanism, count: int) -> None:
    renyi, truth = RDP().compose(run, count), PLD().compose(run, count)
    for delta in (1e-4, 1e-6):
        epsilon = renyi.epsilon(delta)
        assert truth.lower_epsilon(delta) <= epsilon < math.inf
        assert truth.lower_delta(epsilon) <= delta
        assert truth.lower_delta(0.7 * epsilon) <= renyi.delta(0.7 * epsilon) <= 1


def test_infinite_mass_is_the_least_delta() -> None:
    run = mechanism(ApproximateDP(epsilon=0.3, delta=1e-6), 0.5)
    renyi = RDP().compose(run, 20)
    lost = -math.expm1(20 * math.log1p(-0.5e-6))
    assert renyi.epsilon(lost) == math.inf
    assert renyi.epsilon(1.01 * lost) < math.inf
    assert lost <= renyi.delta(100.0) <= lost * (1 + 1e-6)
    assert np.all(np.isinf(renyi.renyi(ORDERS)))
    apart = mechanism(TruncatedLaplace(b=1.0, bound=0.25))
    assert RDP().compose(apart).epsilon(0.5) == math.inf
    assert RDP().compose(apart).delta(3.0) == 1.0


@pytest.mark.parametrize("dim", [1, 10, 100])
@pytest.mark.parametrize("rate", [1.0, 0.01])
def test_spherical_noise_like_a_gaussian_costs_the_same(dim: int, rate: float) -> None:
    law = SphericalGeneralizedGaussian(scale=math.sqrt(2), beta=2.0, dim=dim, step=0.05)
    law = law.scaled(1 / law.variance**0.5)
    steps = 1 if rate == 1 else 1000
    got, want = (
        RDP()
        .compose(
            Mechanism(noise=noise, sensitivity=Sensitivity(dim=dim), sampling=Sampling(rate=rate)),
            steps,
        )
        .epsilon(1e-5)
        for noise in (law, Gaussian(sigma=1.0))
    )
    assert got == pytest.approx(want, rel=0.01)


@pytest.mark.parametrize(
    "noise", [MIXTURE, Gaussian(sigma=1.0), GeneralizedGaussian(scale=1.0, beta=0.7)], ids=str
)
def test_a_record_replaced_in_a_sample(noise: Noise) -> None:
    run = Mechanism(noise=noise, relation="replace-one", sampling=Sampling(rate=0.1))
    low, high = PLD().compose(run, 50).epsilon_interval(1e-6)
    assert low <= RDP().compose(run, 50).epsilon(1e-6) <= 1.25 * high


def test_staircase_is_a_finite_sum() -> None:
    law = Staircase.least_mean_abs(1.0)
    g, e = law.gamma, np.exp(-1.0)
    # With shift = width the loss is -1, 0 or 1; the mass at 0 is where both lie on equal steps.
    orders = np.array([1.5, 4.0, 50.0])
    x = np.linspace(-60, 61, 1_210_001)
    x = (x[1:] + x[:-1]) / 2
    f0, loss = law.pdf(x), np.round(law.logpdf(x - 1) - law.logpdf(x))
    weights = np.array([np.sum(f0[loss == k]) for k in (-1, 0, 1)]) * (x[1] - x[0])
    ratios = (0.7 + 0.3 * np.exp([-1.0, 0.0, 1.0]))[:, None]
    want = np.log(weights @ ratios**orders) / (orders - 1)
    assert 0 < g < 0.5 < e + g
    np.testing.assert_allclose(renyi_divergence(mechanism(law, 0.3), orders), want, rtol=2e-3)


def test_the_order_grid_is_no_floor() -> None:
    # A grid of orders up to 128 cannot answer below ln(1/delta)/127 = 0.18 here.
    run = mechanism(Gaussian(sigma=1e3))
    exact = gaussian_epsilon(1e-10, 1e3)
    assert exact <= RDP().compose(run).epsilon(1e-10) <= 1.1 * exact < 0.01


def test_the_best_real_order_is_found() -> None:
    accountant = RDP().compose(mechanism(Gaussian(sigma=2.0)), 7)
    orders = 1 + np.geomspace(0.1, 100, 200_001)
    spent = 7 * orders / 8 + np.log1p(-1 / orders) - (np.log(1e-6) + np.log(orders)) / (orders - 1)
    assert accountant.epsilon(1e-6) == pytest.approx(np.min(spent), rel=1e-6)
    epsilon = accountant.epsilon(1e-6)
    assert accountant.delta(epsilon) == pytest.approx(1e-6, rel=1e-4)


def test_runs_add_up() -> None:
    first, second = mechanism(Gaussian(sigma=2.0), 0.1), mechanism(MIXTURE)
    both = RDP().compose(first, 3).compose(second).compose(first)
    want = 4 * renyi_divergence(first, ORDERS) + renyi_divergence(second, ORDERS)
    np.testing.assert_allclose(both.renyi(ORDERS), want, rtol=1e-12)
    assert both.lower_epsilon(1e-5) is None


def test_bad_orders_and_unproved_claims_are_refused() -> None:
    with pytest.raises(ValueError, match="orders above 1"):
        renyi_divergence(mechanism(MIXTURE), [2.0, 1.0])


def test_a_record_replaced_is_twice_the_change() -> None:
    replaced = Mechanism(noise=MIXTURE, relation="replace-one")
    np.testing.assert_array_equal(
        renyi_divergence(replaced, ORDERS), renyi_divergence(mechanism(MIXTURE, bound=2.0), ORDERS)
    )
    assert RDP().compose(replaced).epsilon(1e-5) > RDP().compose(mechanism(MIXTURE)).epsilon(1e-5)


@pytest.mark.parametrize(
    ("sigma", "rate", "steps", "delta", "truth"),
    [
        (1.0, 0.01, 1000, 1e-20, 6.36170020),
        (0.8, 256 / 60000, 14063, 1e-12, 8.18501),
        (20.0, 0.001, 1000, 1e-10, 0.00789440545),
        (10.0, 0.01, 10**6, 1e-6, 4.90142814),
    ],
)
def test_no_grid_of_orders_limits_the_answer(
    sigma: float, rate: float, steps: int, delta: float, truth: float
) -> None:
    accountant = RDP().compose(mechanism(Gaussian(sigma=sigma), rate), steps)
    assert truth <= accountant.epsilon(delta) <= 1.08 * truth


@pytest.mark.parametrize(
    ("sigma", "steps", "delta"), [(1e6, 1, 1e-10), (1e8, 1, 1e-30), (0.01, 10**6, 1e-6)]
)
def test_the_best_order_is_found_wherever_it_is(sigma: float, steps: int, delta: float) -> None:
    """It is 4e6, 2e8 and 1 + 5e-5 here."""
    truth = gaussian_epsilon(delta, sigma, steps)
    got = RDP().compose(mechanism(Gaussian(sigma=sigma)), steps).epsilon(delta)
    assert truth <= got <= 1.12 * truth
    # Given the best order alone, the divergence alpha T/(2 sigma^2) is all there is.
    rho = steps / (2 * sigma**2)
    assert got <= rho + 2 * np.sqrt(-rho * np.log(delta))
