"""Lower bounds by concrete neighbours, against the exact product of scalar releases."""

import math

import numpy as np
import pytest

from accountants import PLD
from accountants._spread import merged_coordinate, spread_pair
from accountants.exact import gaussian_epsilon
from accountants.limits import lower_epsilon_vector, spread_neighbour
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
from dpmech.mechanism import Norm

LAPLACE = Laplace(b=math.sqrt(0.5))  # variance 1
MIXTURE = LaplaceMixture(scales=(0.5, 5.0), weights=(0.3, 0.7))
LAWS: tuple[Noise, ...] = (
    LAPLACE,
    MIXTURE,
    LMO_PRESETS["0.3"],
    LMO_PRESETS["3"],
    GeneralizedGaussian(scale=1.0, beta=1.4),
    GeneralizedGaussian(scale=1.0, beta=3.0),
    GeneralizedGaussian(scale=1.0, beta=0.7),
    Staircase.least_mean_abs(1.0),
)


def vector(noise: Noise, dim: int, rate: float = 1.0, norm: Norm = "l2") -> Mechanism:
    return Mechanism(
        noise=noise,
        sensitivity=Sensitivity(norm=norm, dim=dim),
        sampling=Sampling(rate=rate),
    )


def test_laplace_on_a_clipped_gradient_costs_more_than_the_gaussian() -> None:
    lower = lower_epsilon_vector(vector(LAPLACE, 4096), 1, 1e-5)
    assert lower >= 6.5 > gaussian_epsilon(1e-5, sigma=1.0) == pytest.approx(4.377, abs=1e-3)


@pytest.mark.parametrize("noise", [*LAWS, Gaussian(sigma=1.0)], ids=str)
@pytest.mark.parametrize("dim", [1, 7, 400])
def test_the_merged_pair_is_a_pair_below_the_product(noise: Noise, dim: int) -> None:
    release = vector(noise, dim)
    product = spread_neighbour(release)
    shift = product.entries[0][0].sensitivity.bound
    merged = spread_pair(noise, shift, dim)
    p, losses = merged.pair.p, merged.pair.losses
    assert np.sum(p) == pytest.approx(1, abs=1e-9)
    assert np.sum(p * np.exp(-losses)) == pytest.approx(1, abs=1e-9)
    assert merged.rounding < 1e-6
    # Its hockey-stick curve against that of the product, which PLD brackets.
    whole = PLD().compose_ledger(product)
    for epsilon in (0.1, 1.0, 3.0):
        delta = float(np.sum(p * np.maximum(-np.expm1(epsilon - losses), 0.0)))
        low, high = whole.delta_interval(epsilon)
        assert delta <= high * (1 + 1e-9)
        # Unless the loss takes few values, of which merging needs to hit none.
        assert delta >= 0.9 * low - 1e-3 or dim == 1


def test_symbols_of_one_coordinate_lie_on_the_lattice() -> None:
    step, masses, error = merged_coordinate(MIXTURE, 0.25)
    assert len(masses) == 33
    assert math.fsum(masses) == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(masses[::-1], masses * np.exp(-step * np.arange(-16, 17)), rtol=1e-9)
    assert error < 1e-9


def test_the_spread_goes_over_the_coordinates_asked_for() -> None:
    release = vector(LAPLACE, 100, norm="l1")
    ledger = spread_neighbour(release, 3, coordinates=25)
    ((scalar, count),) = ledger.entries
    assert count == 75
    assert 25 * scalar.sensitivity.bound <= 1
    assert scalar.sensitivity.bound == pytest.approx(1 / 25)
    corner = spread_neighbour(vector(LAPLACE, 100, norm="linf")).entries[0][0]
    assert corner.sensitivity.bound == pytest.approx(1.0)
    with pytest.raises(ValueError, match="coordinates=101"):
        spread_neighbour(release, coordinates=101)


def test_a_vector_of_one_is_a_scalar() -> None:
    scalar = vector(MIXTURE, 1, 0.1)
    want = PLD().compose(scalar, 10).lower_epsilon(1e-6)
    assert lower_epsilon_vector(scalar, 10, 1e-6) == want
