"""Calibration: on the safe side of the target, and not further than it has to be."""

import math
from collections.abc import Callable

import pytest
from scipy import optimize

from accountants import accountant_named, calibrate
from accountants.calibrate import smallest_safe
from accountants.exact import gaussian_delta
from dpmech import (
    LMO_PRESETS,
    Gaussian,
    GeneralizedGaussian,
    Laplace,
    LaplaceMixture,
    Mechanism,
    NoDominatingPair,
    Noise,
    PrivacyPlan,
    Sampling,
    Sensitivity,
    Staircase,
    Target,
    TruncatedLaplace,
    Unattainable,
)
from dpmech.loss import pair_of

TARGET = Target(epsilon=1.0, delta=1e-5)
LAWS: tuple[Noise, ...] = (
    Gaussian(sigma=1.0),
    Laplace(b=30.0),
    GeneralizedGaussian(scale=1e-3, beta=1.4),
    TruncatedLaplace.for_target(1.0, 1e-5),
    LMO_PRESETS["2"],
    LaplaceMixture(scales=(0.5, 5.0), weights=(0.3, 0.7)),
)
CASES = [(law, 1, 1.0) for law in LAWS] + [(law, 50, 0.05) for law in (LAWS[0], LAWS[3])]


def epsilon_of(plan: PrivacyPlan, scale: float = 1.0) -> float:
    """The plan's epsilon, proved afresh, with its noise rescaled."""
    m = plan.mechanism
    scaled = Mechanism(noise=m.noise.scaled(scale), sensitivity=m.sensitivity, sampling=m.sampling)
    return accountant_named(plan.accountant).compose(scaled, plan.steps).epsilon(plan.target.delta)


@pytest.mark.parametrize(("law", "steps", "rate"), CASES, ids=lambda x: getattr(x, "name", str(x)))
def test_safe_and_close(law: Noise, steps: int, rate: float) -> None:
    plan = calibrate(law, TARGET, steps=steps, sampling=Sampling(rate=rate))
    assert (plan.target, plan.steps, plan.accountant) == (TARGET, steps, "pld")
    assert type(plan.mechanism.noise) is type(law)
    assert plan.epsilon <= TARGET.epsilon
    assert epsilon_of(plan) == plan.epsilon
    assert plan.lower_epsilon is not None
    assert plan.lower_epsilon <= plan.epsilon
    # The PLD's own gap is up to 1e-4: less noise by a few of it must miss the target.
    assert epsilon_of(plan, 1 - 1e-3) > TARGET.epsilon
    assert epsilon_of(plan, 1.05) < plan.epsilon


def test_gaussian_is_calibrated_tightly() -> None:
    best = optimize.brentq(lambda sigma: gaussian_delta(1.0, sigma) - 1e-5, 1.0, 10.0, xtol=1e-12)
    for start in (1e-4, 1e6):
        noise = calibrate(Gaussian(sigma=start), TARGET).mechanism.noise
        assert isinstance(noise, Gaussian)
        assert best <= noise.sigma <= best * (1 + 1e-4)


def test_laplace_is_calibrated_tightly() -> None:
    # One release: epsilon = 1/b + 2 ln(1 - delta).
    noise = calibrate(Laplace(b=1.0), TARGET).mechanism.noise
    assert isinstance(noise, Laplace)
    best = 1 / (1.0 - 2 * math.log1p(-1e-5))
    assert best <= noise.b <= best * (1 + 1e-4)


def test_staircase_ends_on_the_safe_side() -> None:
    # Scaled, its width no longer is the sensitivity; its epsilon falls in steps, not continuously.
    plan = calibrate(Staircase.least_mean_abs(0.5), TARGET, steps=3)
    assert epsilon_of(plan) == plan.epsilon <= TARGET.epsilon


def test_noise_scales_with_the_sensitivity() -> None:
    one, ten = (
        calibrate(Gaussian(sigma=1.0), TARGET, sensitivity=Sensitivity(bound=bound, dim=50))
        for bound in (1.0, 10.0)
    )
    assert ten.mechanism.noise.std == pytest.approx(10 * one.mechanism.noise.std, rel=1e-5)


def test_more_steps_tighter_targets_and_higher_rates_need_more_noise() -> None:
    def sigma(epsilon: float, delta: float, steps: int, rate: float) -> float:
        target = Target(epsilon=epsilon, delta=delta)
        plan = calibrate(Gaussian(sigma=1.0), target, steps=steps, sampling=Sampling(rate=rate))
        return plan.mechanism.noise.std

    base = sigma(1.0, 1e-5, 10, 0.1)
    assert sigma(1.0, 1e-5, 40, 0.1) > base * 1.01
    assert sigma(1.0, 1e-5, 10, 0.2) > base * 1.01
    assert sigma(1.0, 1e-8, 10, 0.1) > base * 1.01
    assert sigma(0.5, 1e-5, 10, 0.1) > base * 1.01


def test_what_is_unproved_is_refused() -> None:
    with pytest.raises(NoDominatingPair):
        calibrate(LMO_PRESETS["2"], TARGET, sensitivity=Sensitivity(dim=2))


def test_an_unknown_accountant_is_refused() -> None:
    with pytest.raises(ValueError, match="Unknown accountant 'moments'; use pld, rdp, prv"):
        calibrate(Gaussian(sigma=1.0), TARGET, accountant="moments")


@pytest.mark.parametrize("delta", [1e-3, 1e-9])
def test_truncated_laplace_is_scaled_until_its_infinite_mass_fits(delta: float) -> None:
    # As it stands P(loss = inf) is far above delta; wider, its end carries less mass.
    law = TruncatedLaplace(b=1.0, bound=25.0)
    target = Target(epsilon=1.0, delta=delta)
    plan = calibrate(law, target)
    assert epsilon_of(plan) <= 1.0
    assert float(pair_of(plan.mechanism.noise, 1.0).infinite_mass) <= delta


SHAPES: list[tuple[str, Callable[[float], float], float]] = [
    ("smooth", lambda x: 3.0 - x, 3.0),
    ("steep", lambda x: math.exp(5 * (1.7 - x)) - 1, 1.7),
    ("flat", lambda x: math.atan(40.0 - x), 40.0),
    ("jump", lambda x: 1.0 if x < -2.5 else -1.0, -2.5),
    ("infinite", lambda x: math.inf if x < 8.0 else 9.0 - x, 9.0),
    ("infinite then met", lambda x: math.inf if x < 8.0 else -1.0, 8.0),
]


@pytest.mark.parametrize(("name", "excess", "root"), SHAPES, ids=[s[0] for s in SHAPES])
def test_smallest_safe_ends_a_hair_on_the_safe_side(
    name: str, excess: Callable[[float], float], root: float
) -> None:
    calls = 0

    def counted(x: float) -> float:
        nonlocal calls
        calls += 1
        return excess(x)

    for start in (-20.0, 0.0, 30.0):
        calls = 0
        x = smallest_safe(counted, start, within=1e-6)
        assert excess(x) <= 0
        assert root - 1e-12 <= x <= root + 1.5e-6
        assert calls < 60


def test_unattainable_says_what_was_reached() -> None:
    with pytest.raises(Unattainable, match="No scale up to") as caught:
        smallest_safe(lambda _: math.log(2.0), 0.0, within=1e-6)
    assert "2 times" in str(caught.value)
    assert caught.value.reached == pytest.approx(2.0)


def test_a_target_below_any_noise_is_unattainable() -> None:
    with pytest.raises(Unattainable):
        calibrate(Laplace(b=1.0), Target(epsilon=1e-40, delta=1e-60))


def test_a_target_that_needs_no_noise_ends() -> None:
    assert math.isfinite(smallest_safe(lambda _: -1.0, 0.0, within=1e-6))
