"""Zero-concentrated and Gaussian DP against the exact Gaussian, Rényi curves and other formulas."""

import math

import mpmath as mp
import numpy as np
import pytest

from accountants import RDP
from accountants.conversions import (
    gdp_delta,
    gdp_epsilon,
    renyi_to_zcdp,
    zcdp_delta,
    zcdp_epsilon,
)
from accountants.rdp import renyi_divergence
from dpmech import (
    LMO_PRESETS,
    Gaussian,
    GeneralizedGaussian,
    Laplace,
    LaplaceMixture,
    Mechanism,
    NoDominatingPair,
    Noise,
    Sampling,
    Sensitivity,
    Staircase,
)

MIXTURE = LaplaceMixture(scales=(0.5, 5.0), weights=(0.3, 0.7))


@pytest.mark.parametrize("mu", [1e-9, 1e-6, 1e-3, 0.3, 2.0, 40.0])
@pytest.mark.parametrize("far", [0.0, 0.5, 3.0, 9.0])
def test_gdp_delta_is_rounded_up(mu: float, far: float) -> None:
    epsilon = far * mu
    with mp.workdps(50):
        m, e = mp.mpf(mu), mp.mpf(epsilon)
        exact = mp.ncdf(m / 2 - e / m) - mp.exp(e) * mp.ncdf(-m / 2 - e / m)
        got = gdp_delta(mu, epsilon)
        assert got >= exact
    if mu >= 1e-3:
        assert got == pytest.approx(float(exact), rel=1e-9)


@pytest.mark.parametrize("mu", [1e-7, 0.01, 1.0, 30.0])
@pytest.mark.parametrize("delta", [0.3, 1e-5, 1e-30])
def test_gdp_epsilon_meets_delta(mu: float, delta: float) -> None:
    epsilon = gdp_epsilon(mu, delta)
    assert gdp_delta(mu, epsilon) <= delta
    assert mu < 1e-6 or epsilon == 0 or gdp_delta(mu, epsilon * (1 - 1e-6)) > delta


@pytest.mark.parametrize("rho", [1e-8, 0.01, 0.5, 30.0])
@pytest.mark.parametrize("delta", [1e-2, 1e-10, 1e-30])
def test_zcdp_epsilon_is_that_of_the_gaussian_by_its_divergences(rho: float, delta: float) -> None:
    gaussian = Mechanism(noise=Gaussian(sigma=math.sqrt(0.5 / rho)))
    assert renyi_to_zcdp(gaussian) == pytest.approx(rho, rel=1e-12)
    epsilon = zcdp_epsilon(rho, delta)
    assert epsilon == pytest.approx(RDP().compose(gaussian).epsilon(delta), rel=1e-6)
    assert gdp_epsilon(math.sqrt(2 * rho), delta) <= epsilon
    assert epsilon <= rho + 2 * math.sqrt(-rho * math.log(delta))
    assert zcdp_delta(rho, epsilon) == pytest.approx(delta, rel=1e-2) or epsilon == 0


@pytest.mark.parametrize(
    "noise",
    [
        Gaussian(sigma=0.7),
        Laplace(b=0.2),
        Laplace(b=5.0),
        Staircase.least_mean_abs(1.0),
        MIXTURE,
        *LMO_PRESETS.values(),
    ],
    ids=str,
)
def test_rho_holds_at_every_order(noise: Noise) -> None:
    release = Mechanism(noise=noise)
    orders = 1 + np.geomspace(1e-3, 1e5, 60)
    assert np.all(renyi_divergence(release, orders) <= renyi_to_zcdp(release) * orders * (1 + 1e-6))


def test_rho_of_vectors() -> None:
    def rho(noise: Noise, norm: str) -> float:
        return renyi_to_zcdp(
            Mechanism(noise=noise, sensitivity=Sensitivity(norm=norm, bound=2.0, dim=9))  # type: ignore[arg-type]
        )

    assert rho(Gaussian(sigma=1.0), "l2") == rho(Gaussian(sigma=1.0), "l1") == 2.0
    assert rho(Gaussian(sigma=1.0), "linf") == pytest.approx(18.0)
    assert rho(Laplace(b=4.0), "l1") == 0.125
    for norm in ("l2", "linf"):
        with pytest.raises(NoDominatingPair, match="dim=9"):
            rho(Laplace(b=4.0), norm)


@pytest.mark.parametrize(
    "release",
    [
        Mechanism(noise=Gaussian(sigma=1.0), sampling=Sampling(rate=0.01)),
        Mechanism(noise=GeneralizedGaussian(scale=1.0, beta=1.5)),
        Mechanism(noise=MIXTURE, sensitivity=Sensitivity(norm="l1", dim=2)),
    ],
)
def test_no_rho_is_made_up(release: Mechanism) -> None:
    with pytest.raises(NoDominatingPair, match="RDP accountant"):
        renyi_to_zcdp(release)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.inf, math.nan])
def test_bad_parameters_are_refused(bad: float) -> None:
    for convert in (gdp_epsilon, gdp_delta, zcdp_epsilon, zcdp_delta):
        with pytest.raises(ValueError, match=str(bad)):
            convert(bad, 0.5)
    with pytest.raises(ValueError, match=r"delta=1\.5"):
        zcdp_epsilon(1.0, 1.5)
