"""The closed forms against 50-digit arithmetic."""

import math

import mpmath as mp
import numpy as np
import pytest

from accountants.exact import (
    gaussian_delta,
    gaussian_epsilon,
    gaussian_log_delta,
    gaussian_renyi,
    laplace_delta,
    laplace_epsilon,
    laplace_pure_epsilon,
    laplace_renyi,
    staircase_pure_epsilon,
    subsampled_gaussian_renyi,
)
from dpmech import Staircase


@pytest.fixture(autouse=True)
def _digits():
    with mp.workdps(60):
        yield


def gaussian(epsilon: float, sigma: float, count: int) -> mp.mpf:
    mu, epsilon = mp.sqrt(count) / mp.mpf(sigma), mp.mpf(epsilon)
    upper, lower = mu / 2 - epsilon / mu, -mu / 2 - epsilon / mu

    def cdf(x: mp.mpf) -> mp.mpf:  # mp.ncdf loses the far left tail
        return mp.erfc(-x / mp.sqrt(2)) / 2

    return cdf(upper) - mp.exp(epsilon) * cdf(lower)


@pytest.mark.parametrize(
    ("epsilon", "sigma", "count"),
    [
        (0.0, 1.0, 1),
        (1.0, 1.0, 1),
        (1.0, 100.0, 1),
        (0.3, 20.0, 1),
        (5.0, 2.0, 10),
        (60.0, 1.0, 1),
        (5000.0, 0.01, 1),
        (5600.0, 0.01, 1),
        (0.01, 0.01, 1),
        (3.0, 0.5, 1000),
        (8.0, 50.0, 10_000),
    ],
)
def test_gaussian_delta_is_exact_in_both_tails(epsilon: float, sigma: float, count: int) -> None:
    exact = gaussian(epsilon, sigma, count)
    assert gaussian_log_delta(epsilon, sigma, count) == pytest.approx(
        float(mp.log(exact)), rel=1e-10, abs=1e-11
    )
    assert gaussian_delta(epsilon, sigma, count) == pytest.approx(float(exact), rel=1e-8)


@pytest.mark.parametrize("delta", [0.5, 1e-2, 1e-10, 1e-30, 1e-200])
@pytest.mark.parametrize(("sigma", "count"), [(1.0, 1), (0.05, 1), (40.0, 1000)])
def test_gaussian_epsilon_inverts_from_the_safe_side(
    delta: float, sigma: float, count: int
) -> None:
    epsilon = gaussian_epsilon(delta, sigma, count)
    if epsilon == 0:
        assert gaussian(0.0, sigma, count) <= delta
        return
    assert gaussian(epsilon, sigma, count) <= delta
    assert gaussian(epsilon * (1 - 1e-9), sigma, count) > delta


def test_laplace_closed_forms() -> None:
    b = 0.7
    for epsilon in (0.0, 0.4, 1.0, 1.4):
        cut = (1 + epsilon * b) / 2  # the loss (2x - 1)/b is epsilon here
        if epsilon < 1 / b:
            above = mp.mpf(1) - mp.exp((mp.mpf(cut) - 1) / b) / 2 - mp.exp(epsilon - cut / b) / 2
            assert laplace_delta(epsilon, b) == pytest.approx(float(above), rel=1e-12)
    assert laplace_delta(1 / b, b) == 0.0 == laplace_delta(9.0, b)
    assert laplace_epsilon(laplace_delta(0.4, b), b) == pytest.approx(0.4, rel=1e-12)
    assert laplace_epsilon(0.9, b) == 0.0
    assert laplace_pure_epsilon(b, 3) == pytest.approx(3 / b)


def test_staircase_pure_epsilon_counts_steps_crossed() -> None:
    law = Staircase.least_mean_abs(0.6, width=2.0)
    x = np.linspace(-30, 30, 60_001) + 1e-4
    for sensitivity in (0.5, 2.0, 2.5, 6.0):
        measured = float(np.max(law.logpdf(x - sensitivity) - law.logpdf(x)))
        assert staircase_pure_epsilon(law, sensitivity) == pytest.approx(measured, rel=1e-9)


def test_renyi_closed_forms_against_quadrature() -> None:
    for alpha in (1.25, 2.0, 17.0):
        sigma, b = mp.mpf("0.8"), mp.mpf("1.3")
        normal = mp.quad(
            lambda x, a=alpha: (
                mp.npdf(x, 1, sigma) ** a * mp.npdf(x, 0, sigma) ** (1 - a)  # noqa: B023
            ),
            mp.linspace(-20, 40, 31),
        )
        laplace = mp.quad(
            lambda x, a=alpha: (
                mp.exp(-a * abs(x - 1) / b - (1 - a) * abs(x) / b) / (2 * b)  # noqa: B023
            ),
            [-200, -20, 0, 1, 20, 200],
        )
        orders = np.array([alpha])
        assert gaussian_renyi(orders, 0.8)[0] == pytest.approx(float(mp.log(normal) / (alpha - 1)))
        got, want = laplace_renyi(orders, 1.3)[0], float(mp.log(laplace) / (alpha - 1))
        assert got == pytest.approx(want, rel=1e-12)
        assert got >= want * (1 - 1e-15)


@pytest.mark.parametrize(
    ("order", "sigma", "rate"), [(2, 1.0, 0.01), (7, 30.0, 1e-4), (64, 2, 0.3)]
)
def test_the_binomial_sum(order: int, sigma: float, rate: float) -> None:
    q, s = mp.mpf(rate), mp.mpf(sigma)
    total = mp.fsum(
        mp.binomial(order, k) * (1 - q) ** (order - k) * q**k * mp.exp(k * (k - 1) / (2 * s**2))
        for k in range(order + 1)
    )
    want = float(mp.log(total) / (order - 1))
    got = subsampled_gaussian_renyi(order, sigma, rate)
    assert want <= got <= want * (1 + 1e-10)


def test_whole_orders_only() -> None:
    with pytest.raises(ValueError, match=r"order=2\.5"):
        subsampled_gaussian_renyi(2.5, 1.0, 0.1)  # type: ignore[arg-type]
    assert subsampled_gaussian_renyi(3, 2.0, 1.0) == 3 / 8


@pytest.mark.parametrize("bad", [0.0, 1.0, -1.0, math.nan])
def test_bad_delta_is_named(bad: float) -> None:
    with pytest.raises(ValueError, match="delta"):
        gaussian_epsilon(bad, 1.0)
