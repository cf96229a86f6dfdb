"""Calibration: on the safe side of the target, and not further than it has to be."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from scipy import optimize
from scipy.stats import norm

from accountants import PLD, RDP, Ledger, accountant_named, calibrate
from accountants._search import SLOPE, Safe, safe_point, smallest_safe
from accountants.calibrate import calibrate_rate, calibrate_scale, calibrate_steps
from accountants.curves import advantage, false_negative_rate
from accountants.exact import gaussian_delta
from accountants.goals import Advantage, DeltaAt, ErrorRates, excess, pinned
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
    # Less noise by 1e-5 must miss the target, were it not for the accountant's own gap of 5e-6.
    assert epsilon_of(plan, 1 - 2e-5) > TARGET.epsilon
    assert epsilon_of(plan, 1.05) < plan.epsilon


def test_gaussian_is_calibrated_tightly() -> None:
    best = optimize.brentq(lambda sigma: gaussian_delta(1.0, sigma) - 1e-5, 1.0, 10.0, xtol=1e-12)
    for start in (1e-4, 1e6):
        noise = calibrate(Gaussian(sigma=start), TARGET).mechanism.noise
        assert isinstance(noise, Gaussian)
        assert best <= noise.sigma <= best * (1 + 1e-5)


def test_laplace_is_calibrated_tightly() -> None:
    # One release: epsilon = 1/b + 2 ln(1 - delta).
    noise = calibrate(Laplace(b=1.0), TARGET).mechanism.noise
    assert isinstance(noise, Laplace)
    best = 1 / (1.0 - 2 * math.log1p(-1e-5))
    assert best <= noise.b <= best * (1 + 1e-5)


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


# Goldens of the issue; those of the attacks are solved from the exact Gaussian curve.


@pytest.mark.parametrize(
    ("epsilon", "rate", "steps", "sigma"),
    [(1.0, 1.0, 1, 3.7306316), (0.1, 0.01, 1000, 9.796791), (2.0, 0.01, 1000, 0.959102)],
)
def test_goldens(epsilon: float, rate: float, steps: int, sigma: float) -> None:
    target = Target(epsilon=epsilon, delta=1e-5)
    plan = calibrate(Gaussian(sigma=1.0), target, steps=steps, sampling=Sampling(rate=rate))
    assert sigma * (1 - 6e-7) <= plan.mechanism.noise.std <= sigma * (1 + 1e-5)


SAMPLED = Mechanism(noise=Gaussian(sigma=0.959102), sampling=Sampling(rate=0.01))


def test_the_rate_is_the_inverse_of_the_scale() -> None:
    target = Target(epsilon=2.0, delta=1e-5)
    plan = calibrate_rate(SAMPLED, target, steps=1000)
    assert plan.mechanism.sampling.rate == pytest.approx(0.01, rel=1e-5)
    assert plan.epsilon <= 2.0
    assert plan.mechanism.noise == SAMPLED.noise
    everyone = calibrate_rate(Mechanism(noise=Gaussian(sigma=50.0)), target)
    assert everyone.mechanism.sampling.rate == 1.0


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_the_steps_are_the_most_that_are_proved(accountant: str) -> None:
    target = Target(epsilon=2.0, delta=1e-5)
    plan = calibrate_steps(SAMPLED, target, accountant=accountant)
    assert plan.steps <= 1000
    assert accountant == "rdp" or plan.steps >= 999
    more = accountant_named(accountant).compose(SAMPLED, plan.steps + 1)
    assert plan.epsilon <= 2.0 < more.epsilon(1e-5)


def test_what_is_given_cannot_be_found_where_it_does_not_exist() -> None:
    loud = Mechanism(noise=Gaussian(sigma=0.01))
    with pytest.raises(Unattainable, match="single release") as caught:
        calibrate_steps(loud, TARGET)
    assert caught.value.reached > 100
    with pytest.raises(Unattainable, match="No sampling rate meets"):
        safe_point(lambda _: 1.0, Safe(0.0, SLOPE), within=1e-5, nowhere="No sampling rate")


@pytest.mark.parametrize("bound", [0.01, 0.3])
def test_an_advantage_is_met_tightly(bound: float) -> None:
    plan = calibrate(Gaussian(sigma=1.0), Advantage(bound=bound, delta=1e-5))
    best = 1 / (2 * norm.ppf((1 + bound) / 2))  # total variation is 2 Phi(1/(2 sigma)) - 1
    assert best * (1 - 1e-9) <= plan.mechanism.noise.std <= best * (1 + 1e-5)
    done = accountant_named("pld").compose(plan.mechanism)
    assert advantage(done).upper <= bound
    assert plan.target == Target(epsilon=plan.epsilon, delta=1e-5)


@pytest.mark.parametrize(("fnr", "fpr"), [(0.9, 0.01), (0.3, 0.5), (0.01, 0.9), (0.98, 1e-4)])
def test_error_rates_are_met_tightly(fnr: float, fpr: float) -> None:
    plan = calibrate(Gaussian(sigma=1.0), ErrorRates(fnr=fnr, fpr=fpr, delta=1e-6))
    best = 1 / (norm.isf(fpr) - norm.ppf(fnr))
    assert best * (1 - 1e-9) <= plan.mechanism.noise.std <= best * (1 + 1.2e-5)
    done = PLD(tolerance=1e-6).compose(plan.mechanism)
    assert false_negative_rate(done, fpr).lower >= fnr * (1 - 1e-6)


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_error_rates_of_another_law(accountant: str) -> None:
    goal = ErrorRates(fnr=0.9, fpr=0.02, delta=1e-6)
    release = Mechanism(noise=Laplace(b=1.0))
    plan = calibrate_scale(release, goal, steps=5, accountant=accountant)
    done = accountant_named(accountant)
    assert false_negative_rate(done.compose(plan.mechanism, 5), 0.02).lower >= 0.9 * (1 - 1e-6)
    less = replace(release, noise=plan.mechanism.noise.scaled(0.999))
    assert false_negative_rate(done.compose(less, 5), 0.02).lower < 0.9


def test_a_pinned_goal_implies_the_goal() -> None:
    goal = ErrorRates(fnr=0.5, fpr=0.1, delta=1e-6)
    accountant = PLD().compose(Mechanism(noise=Gaussian(sigma=1.2)))
    for met in (pinned(goal), pinned(goal, accountant), pinned(goal, RDP().compose(SAMPLED))):
        assert isinstance(met, DeltaAt)
        promised = max(
            1 - met.bound - math.exp(met.epsilon) * 0.1, math.exp(-met.epsilon) * (0.9 - met.bound)
        )
        assert promised == pytest.approx(0.5)
    assert pinned(TARGET) == TARGET
    assert excess(TARGET, accountant_named("pld").compose(Mechanism(noise=Gaussian(sigma=4.0)))) < 0


@pytest.mark.parametrize(
    ("goal", "values", "said"),
    [
        (Advantage, {"bound": 1.0, "delta": 1e-5}, "advantage=1.0"),
        (Advantage, {"bound": 0.1, "delta": 0.2}, "delta=0.2"),
        (ErrorRates, {"fnr": 0.95, "fpr": 0.1, "delta": 1e-5}, "fnr=0.95"),
        (ErrorRates, {"fnr": 0.5, "fpr": 0.0, "delta": 1e-5}, "fpr=0.0"),
        (ErrorRates, {"fnr": 0.5, "fpr": 0.1, "delta": 0.5}, "delta=0.5"),
    ],
)
def test_goals_that_say_nothing_are_refused(
    goal: Callable[..., object], values: dict[str, float], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        goal(**values)


def test_few_questions_are_asked_at_the_finest(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    real = PLD.epsilon_interval

    def counted(self: PLD, delta: float) -> tuple[float, float]:
        asked.append(self.tolerance)
        return real(self, delta)

    monkeypatch.setattr(PLD, "epsilon_interval", counted)
    calibrate(Gaussian(sigma=1.0), TARGET, steps=100, sampling=Sampling(rate=0.01))
    assert asked.count(min(asked)) <= 4
    assert len(asked) <= 14


@pytest.mark.parametrize(("name", "fall", "root"), SHAPES[:3], ids=lambda x: str(x)[:8])
def test_a_start_near_the_root_ends_soon(
    name: str, fall: Callable[[float], float], root: float
) -> None:
    calls = 0

    def counted(x: float) -> float:
        nonlocal calls
        calls += 1
        return fall(x)

    slope = (fall(root - 1e-6) - fall(root + 1e-6)) / 2e-6
    for start in (root - 1e-3, root + 1e-3):
        calls = 0
        found = safe_point(counted, Safe(start, slope), within=1e-5, nowhere=name)
        assert root - 1e-12 <= found.x <= root + 1e-5
        assert found.slope == pytest.approx(slope, rel=0.1)
        assert calls <= 4
    assert SLOPE > 0


SHARE = Mechanism(
    noise=Laplace(b=12.0), sensitivity=Sensitivity(bound=0.5), sampling=Sampling(rate=0.2)
)
COUNT = replace(SHARE, noise=Gaussian(sigma=2.0), sampling=Sampling(rate=0.02))
OTHERS = ((SHARE, 25), (COUNT, 7))
STEP = Mechanism(
    noise=Gaussian(sigma=1.0),
    sensitivity=Sensitivity(bound=0.2, dim=9),
    sampling=Sampling(rate=0.1),
)


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_others_are_composed_with_the_main_release(accountant: str) -> None:
    target = Target(epsilon=1.5, delta=1e-6)
    alone = calibrate_scale(STEP, target, steps=50, accountant=accountant)
    plan = calibrate_scale(STEP, target, steps=50, accountant=accountant, others=OTHERS)
    assert plan.entries == ((plan.mechanism, 50), *OTHERS)

    def epsilon(noise: Noise) -> float:
        ledger = Ledger(((replace(STEP, noise=noise), 50), *OTHERS))
        return accountant_named(accountant).compose_ledger(ledger).epsilon(target.delta)

    assert epsilon(plan.mechanism.noise) <= target.epsilon * (1 + 1e-9)
    assert epsilon(plan.mechanism.noise) == pytest.approx(plan.epsilon, rel=1e-9)
    assert epsilon(plan.mechanism.noise.scaled(1 - 5e-5)) > target.epsilon
    # What no plan that forgot the others would keep; the gap is far above any search's.
    assert epsilon(alone.mechanism.noise) > target.epsilon * 1.005
    assert plan.mechanism.noise.std > alone.mechanism.noise.std * 1.005


def test_others_of_one_main_release_and_of_another_goal() -> None:
    for goal in (
        TARGET,
        Advantage(bound=0.1, delta=1e-5),
        ErrorRates(fnr=0.7, fpr=0.1, delta=1e-5),
    ):
        plan = calibrate_scale(replace(STEP, sampling=Sampling()), goal, others=((SHARE, 3),))
        done = PLD(tolerance=1e-5).compose_ledger(Ledger(plan.entries))
        assert done.epsilon(1e-5) == pytest.approx(plan.epsilon, rel=3e-5)
        if isinstance(goal, Advantage):
            assert advantage(done).upper <= goal.bound * (1 + 1e-4)


def test_no_others_is_the_plan_there_always_was() -> None:
    plan = calibrate_scale(STEP, TARGET, steps=50)
    assert calibrate_scale(STEP, TARGET, steps=50, others=()) == plan
    assert plan.others == ()
    nothing = ((replace(SHARE, noise=Laplace(b=1e7)), 1),)
    beside = calibrate_scale(STEP, TARGET, steps=50, others=nothing)
    assert beside.mechanism.noise.std == pytest.approx(plan.mechanism.noise.std, rel=2e-5)


def test_equal_others_stay_apart_in_the_plan() -> None:
    twice = ((SHARE, 2), (SHARE, 3))
    plan = calibrate_scale(STEP, TARGET, steps=50, others=twice)
    assert plan.others == twice
    once = calibrate_scale(STEP, TARGET, steps=50, others=((SHARE, 5),))
    assert once.mechanism == plan.mechanism


def test_others_that_exceed_the_goal_alone_are_named() -> None:
    costs = PLD(tolerance=1e-6).compose(SHARE, 5000).epsilon(TARGET.delta)
    with pytest.raises(Unattainable, match="The other releases alone cost epsilon=") as caught:
        calibrate_scale(STEP, TARGET, steps=50, others=((SHARE, 5000),))
    assert caught.value.reached == pytest.approx(costs / TARGET.epsilon, rel=1e-4)
    assert f"epsilon={costs:.3f}"[:-1] in str(caught.value)


def test_others_under_another_relation_are_refused() -> None:
    with pytest.raises(ValueError, match="do not add up"):
        calibrate_scale(STEP, TARGET, others=((replace(SHARE, relation="replace-one"), 1),))


@pytest.mark.parametrize("left", [3e-3, 3e-5])
def test_what_others_leave_is_used_however_little(left: float) -> None:
    most = calibrate_scale(SHARE, TARGET, steps=40).mechanism
    others = ((replace(most, noise=most.noise.scaled(1 + left)), 40),)
    plan = calibrate_scale(STEP, TARGET, steps=50, others=others)
    done = PLD(tolerance=1e-6).compose_ledger(Ledger(plan.entries))
    assert done.epsilon(TARGET.delta) == pytest.approx(TARGET.epsilon, rel=2e-5)
