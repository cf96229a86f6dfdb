"""Bounds on Rényi moments by cells: both sides, at every tolerance, with their tails."""

import math

import mpmath as mp
import numpy as np
import pytest
from scipy import integrate

from accountants._renyi import _Moments, log_psi, lost_mass, renyi_interval
from accountants._tails import log_tail
from accountants.exact import (
    gaussian_renyi,
    laplace_renyi,
    subsampled_gaussian_renyi,
)
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
)
from dpmech.logconcave import FlippedHuber, Logistic, OffsetGaussian
from dpmech.loss import Direction, DominatingPair

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


def convex_bracket(
    noise: Noise, order: float, rate: float, direction: Direction
) -> tuple[float, float]:
    """Jensen below and chords above on small cells: bounds without any quadrature."""
    # Cells in x; the ratio is monotone between the breakpoints 0 and s (and within each cell).
    scale = float(noise.isf(0.25))
    away = scale * np.concatenate([np.linspace(0, 30, 60_001), np.geomspace(30, 1e9, 20_001)[1:]])
    x = np.unique(np.concatenate([-away, away + 1, np.linspace(0, 1, 8_001)]))
    beta = order if direction == "remove" else 1 - order

    def mass(shift: float) -> np.ndarray:
        edges = np.concatenate([[-np.inf], x - shift, [np.inf]])
        left, right = edges[:-1], edges[1:]
        positive = left >= 0
        return np.where(
            positive, noise.sf(left) - noise.sf(right), noise.cdf(right) - noise.cdf(left)
        )

    q_mass, p_mass = mass(0.0)[1:-1], mass(1.0)[1:-1]
    ratio = np.exp(np.minimum(noise.logpdf(x - 1.0) - noise.logpdf(x), 700.0))
    low, high = np.minimum(ratio[1:], ratio[:-1]), np.maximum(ratio[1:], ratio[:-1])
    used = q_mass > 1e-280
    mean = np.clip(p_mass[used] / q_mass[used], low[used], high[used])

    def phi(r: np.ndarray) -> np.ndarray:
        return (1 + rate * (r - 1)) ** beta

    width = high[used] - low[used]
    share = np.where(width > 0, (mean - low[used]) / np.where(width > 0, width, 1), 0.0)
    chords = (1 - share) * phi(low[used]) + share * phi(high[used])
    below, above = np.sum(q_mass[used] * phi(mean)), np.sum(q_mass[used] * chords)
    return np.log(below) / (order - 1), np.log(above) / (order - 1)


@pytest.mark.parametrize(
    "noise", [Gaussian(sigma=1.0), Laplace(b=2.0), MIXTURE, LMO_PRESETS["2"]], ids=str
)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_bounds_agree_with_convexity_in_places(noise: Noise, direction: Direction) -> None:
    for order, rate in ((1.5, 1.0), (3.0, 0.2), (12.5, 0.2)):
        low, high = convex_bracket(noise, order, rate, direction)
        found = renyi_interval(pair(noise, rate, direction), np.array([order]))
        assert low * (1 - 1e-6) - 1e-9 <= found[1][0]
        assert found[0][0] <= high * (1 + 1e-6) + 1e-9
        assert found[1][0] - found[0][0] <= 1e-6 * found[1][0]
        assert high - low <= 3e-5 * high  # else the test would say nothing


def test_bounds_meet_the_closed_forms_from_both_sides() -> None:
    orders = np.concatenate([ORDERS, np.geomspace(1.01, 1e4, 8)])
    for law, exact in (
        (Gaussian(sigma=0.3), gaussian_renyi(orders, 0.3)),
        (Gaussian(sigma=50.0), gaussian_renyi(orders, 50.0)),
        (GeneralizedGaussian(scale=math.sqrt(2), beta=2.0), gaussian_renyi(orders, 1.0)),
        (Laplace(b=0.2), laplace_renyi(orders, 0.2)),
        (Laplace(b=3.0), laplace_renyi(orders, 3.0)),
    ):
        low, high = renyi_interval(pair(law), orders)
        assert np.all(low <= exact)
        assert np.all(exact <= high)
        np.testing.assert_allclose(high, exact, rtol=3e-5)


@pytest.mark.parametrize("rate", [1e-6, 0.01, 0.5])
@pytest.mark.parametrize("sigma", [0.3, 1.0, 30.0])
def test_bounds_meet_the_binomial_sum_from_both_sides(sigma: float, rate: float) -> None:
    orders = np.array([2.0, 3.0, 16.0, 100.0, 500.0])
    low, high = renyi_interval(pair(Gaussian(sigma=sigma), rate), orders)
    sums = np.array([subsampled_gaussian_renyi(int(a), sigma, rate) for a in orders])
    assert np.all(low <= sums)
    assert np.all(sums * (1 - 1e-11) <= high)
    np.testing.assert_allclose(high[:-1], sums[:-1], rtol=1e-5)


@pytest.mark.parametrize("tolerance", [1.0, 0.1, 1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize("noise", LAWS, ids=str)
def test_bounds_hold_on_any_cells(noise: Noise, tolerance: float) -> None:
    """A sharper bracket lies within a looser one, but for where both are rounding."""
    orders = np.array([1.01, 2.0, 7.3, 40.0])
    for direction in DIRECTIONS:
        low, high = renyi_interval(pair(noise, 0.1, direction), orders, tolerance)
        inner = renyi_interval(pair(noise, 0.1, direction), orders)
        assert np.all(low <= inner[1])
        assert np.all(inner[0] <= high)
        assert np.all(high - low <= tolerance * high + 1e-9)


@pytest.mark.parametrize("rate", [1.0, 0.05])
@pytest.mark.parametrize(
    "noise",
    [
        Gaussian(sigma=0.7),
        GeneralizedGaussian(scale=1.0, beta=1.4),
        Laplace(b=0.5),
        Logistic(scale=0.4),
        OffsetGaussian(sigma=0.9, offset=0.5),
        FlippedHuber(sigma=0.8, alpha=1.0),
    ],
    ids=str,
)
def test_the_tail_is_bounded_and_closely(noise: Noise, rate: float) -> None:
    def integrand(x: float) -> float:
        ratio = 1 - rate + rate * np.exp(noise.logpdf(x - 1) - noise.logpdf(x))
        return float(noise.pdf(x) * ratio**order)

    for order, start in ((1.5, 4.0), (3.0, 6.0), (6.0, 9.0)):
        want = np.log(integrate.quad(integrand, start, start + 30, epsabs=0, epsrel=1e-9)[0])
        got = log_tail(pair(noise, rate), np.array([order]), start)[0]
        assert want <= got <= want + 0.3


def test_a_flipped_huber_tail_is_known_beyond_its_bend_only() -> None:
    """In the middle the shifted density is Laplace's, and H falls there before it rises again."""
    run, orders = pair(FlippedHuber(sigma=1.0, alpha=3.0)), np.array([1.5, 3.0])
    assert np.all(np.isinf(log_tail(run, orders, 3.9)))
    assert np.all(np.isfinite(log_tail(run, orders, 4.1)))


def test_the_tail_beyond_the_cells_counts() -> None:
    """Cells that end where a hundredth of P is left: the bounds hold, but are loose."""
    run, orders = pair(Gaussian(sigma=1.0)), np.array([1.5, 2.0])
    low, high = _Moments.of(run, run.edges(1e-2), orders).divergences
    assert np.all(low <= gaussian_renyi(orders, 1.0))
    assert np.all(gaussian_renyi(orders, 1.0) <= high)
    assert np.all(high <= 1.1 * gaussian_renyi(orders, 1.0))


@pytest.mark.parametrize("noise", LAWS, ids=str)
@pytest.mark.parametrize("rate", [0.3, 1e-3])
def test_nothing_shows_an_addition_dearer_than_the_removal(noise: Noise, rate: float) -> None:
    """Of the proved bounds below and above, as the accountant computes the removal alone."""
    orders = 1 + np.geomspace(1e-2, 100, 12)
    above = renyi_interval(pair(noise, rate, "remove"), orders)[1]
    assert np.all(renyi_interval(pair(noise, rate, "add"), orders)[0] <= above)


def test_a_tail_without_a_bound_is_charged_to_delta() -> None:
    """Scalars in a sample, one replaced: the tail of that loss is not known in closed form."""
    run = Mechanism(noise=Gaussian(sigma=1.0), relation="replace-one", sampling=Sampling(rate=0.1))
    assert 0 < lost_mass(run.pairs()[0]) < 1e-290
    assert lost_mass(pair(Gaussian(sigma=1.0), 0.1)) == 0


def test_psi_keeps_its_digits_everywhere() -> None:
    losses = [-700.0, -3.0, -0.06, -0.04, -1e-3, -1e-9, 1e-12, 1e-4, 0.03, 0.7, 4, 90, 800]
    with mp.workdps(60):
        for gamma in (1e-3, 0.3, 1.0, 2.7, 89.0):
            got = log_psi(np.array([[gamma]]), np.array(losses))[0]
            for loss, value in zip(losses, got, strict=True):
                x = mp.mpf(float(loss))
                ratio, order = mp.exp(x), 1 + mp.mpf(gamma)
                want = mp.log(ratio**order - 1 - order * (ratio - 1))
                assert value == pytest.approx(float(want), rel=1e-13, abs=3e-14), (gamma, loss)
    ends = log_psi(np.array([[2.5]]), np.array([-np.inf, 0.0]))
    assert ends.tolist() == [[math.log(2.5), -np.inf]]
