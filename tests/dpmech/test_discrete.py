"""Laws on the whole numbers: one contract, closed forms, and a second library."""

import math

import numpy as np
import pytest
from scipy import stats

from accountants import PLD, RDP
from dpmech import Gaussian, Mechanism, Sampling, Sensitivity, noise_from_dict, parse_noise
from dpmech.discrete import DiscreteGaussian, DiscreteLaplace, DiscreteNoise
from dpmech.loss import AtomicPair, pair_of
from dpmech.skellam import Skellam

LAWS: tuple[DiscreteNoise, ...] = (
    DiscreteGaussian(sigma=0.3),
    DiscreteGaussian(sigma=2.0),
    DiscreteGaussian(sigma=37.5),
    DiscreteLaplace(b=0.3),
    DiscreteLaplace(b=2.0),
    DiscreteLaplace(b=60.0),
    Skellam(mu=0.4),
    Skellam(mu=9.0),
    Skellam(mu=2500.0),
)
every_law = pytest.mark.parametrize("law", LAWS, ids=str)
K = np.arange(-4000.0, 4001.0)
DRAWS = 100_000


@every_law
def test_masses_and_tails_agree(law: DiscreteNoise) -> None:
    masses = law.pdf(K)
    assert np.sum(masses) == pytest.approx(1 - 2 * float(law.sf(4000)), rel=1e-12)
    assert masses == pytest.approx(masses[::-1], rel=1e-14)
    assert np.all(np.diff(law.logpdf(K[4000:4300])) < 0)
    assert law.logpdf([0.5, -1.25, math.inf, -math.inf]).tolist() == [-math.inf] * 4
    # P(X > k) - P(X > k + 1) = P(X = k + 1), on both sides and between whole numbers.
    for x in (-7.0, -1.0, 0.0, 3.0):
        for within in (0.0, 0.7):
            drop = float(law.sf(x + within) - law.sf(x + 1 + within))
            assert drop == pytest.approx(float(law.pdf(x + 1)), rel=1e-9, abs=1e-15)
    assert law.cdf(K) + law.sf(K) == pytest.approx(np.ones(len(K)), rel=1e-14)
    assert law.logsf([-math.inf, math.inf]).tolist() == [0.0, -math.inf]


@every_law
def test_far_tails_are_tails(law: DiscreteNoise) -> None:
    k = law.isf([1e-12, 1e-50, 1e-200])
    ratio = law.logsf(k) - law.logpdf(k + 1)
    assert np.all(ratio >= 0)  # the next mass is part of it
    assert np.all(np.exp(ratio) <= 1 / -np.expm1(law.logpdf(k + 2) - law.logpdf(k + 1)) + 1e-9)


@every_law
def test_isf_is_the_least_that_leaves_no_more(law: DiscreteNoise) -> None:
    p = np.concatenate([np.linspace(0.013, 0.991, 57), [1e-9, 1e-100, 1 - 1e-9]])
    x = law.isf(p)
    assert np.all(x == np.floor(x))
    assert np.all(law.sf(x) <= p * (1 + 1e-12))
    assert np.all(law.sf(x - 1) > p * (1 - 1e-12))
    for bad in (0.0, 1.0, -0.1, math.nan):
        with pytest.raises(ValueError, match="probabilities in"):
            law.isf(bad)


@every_law
def test_moments(law: DiscreteNoise) -> None:
    k = np.arange(-20_000.0, 20_001.0)
    masses = law.pdf(k)
    assert law.variance == pytest.approx(float(np.sum(k**2 * masses)), rel=1e-9)
    assert law.mean_abs == pytest.approx(float(np.sum(np.abs(k) * masses)), rel=1e-9)
    assert law.usefulness(2.5) == pytest.approx(float(np.sum(masses[np.abs(k) <= 2])), rel=1e-9)
    assert law.fisher_information == math.inf
    with pytest.raises(ValueError, match="no score"):
        law.score(0.0)


def frequencies_pvalue(law: DiscreteNoise, draws: np.ndarray) -> float:
    """Chi-squared test of the draws against the masses, rare values joined."""
    reach = max(1, int(law.isf(20 / DRAWS)))
    k = np.arange(-reach, reach + 1)
    seen = np.array([np.sum(draws == value) for value in k])
    expected = law.pdf(k) * len(draws)
    seen, expected = np.append(seen, len(draws) - seen.sum()), np.append(expected, 0.0)
    expected[-1] = max(len(draws) - expected.sum(), 1e-9)
    few = expected < 5
    if np.any(few):
        seen = np.append(seen[~few], seen[few].sum())
        expected = np.append(expected[~few], max(expected[few].sum(), 1e-9))
    if expected[-1] < 1 and seen[-1] == 0:
        seen, expected = seen[:-1], expected[:-1]
    return float(stats.chi2.sf(np.sum((seen - expected) ** 2 / expected), max(len(seen) - 1, 1)))


@every_law
def test_the_sampler_has_the_law_and_no_other_scale(law: DiscreteNoise) -> None:
    draws = law.sample(DRAWS, np.random.default_rng(4))
    assert draws.dtype == np.float64
    assert np.all(draws == np.floor(draws))
    assert frequencies_pvalue(law, draws) > 1e-4
    assert frequencies_pvalue(law.scaled(0.8), draws) < 1e-12
    assert frequencies_pvalue(law.scaled(1.25), draws) < 1e-12
    assert law.sample((2, 3), np.random.default_rng(0)).shape == (2, 3)
    assert law.sample((), np.random.default_rng(0)).shape == ()


@every_law
def test_text_and_json_round_trips(law: DiscreteNoise) -> None:
    assert parse_noise(str(law)) == law
    assert noise_from_dict(law.to_dict()) == law


@every_law
@pytest.mark.parametrize("shift", [1, 3])
def test_the_atoms_are_the_two_laws(law: DiscreteNoise, shift: int) -> None:
    pair = pair_of(law, float(shift))
    assert isinstance(pair, AtomicPair)
    assert np.all(np.diff(pair.losses) > 0)
    assert np.sum(pair.p) + pair.infinite_mass == pytest.approx(1.0, rel=1e-13)
    with np.errstate(divide="ignore"):
        q = np.exp(np.log(pair.p) - pair.losses)
    assert q == pytest.approx(pair.p[::-1], rel=1e-9, abs=pair.infinite_mass + 1e-290)
    p0, q0 = law.pdf(K - shift), law.pdf(K)
    for ratio in (0.2, 1.0, 1.7, 20.0):
        direct = float(np.sum(np.maximum(p0 - ratio * q0, 0.0)))
        ours = float(np.sum(np.maximum(pair.p - ratio * q, 0.0)))
        assert ours == pytest.approx(direct, rel=1e-9, abs=1e-15)


@every_law
def test_smaller_shifts_are_dominated(law: DiscreteNoise) -> None:
    for ratio in (0.3, 1.0, 1.2, 3.0):
        curve = [
            float(np.sum(np.maximum(law.pdf(K - s) - ratio * law.pdf(K), 0.0))) for s in range(5)
        ]
        assert np.all(np.diff(curve) >= -1e-15)


def test_discrete_laplace_is_pure() -> None:
    for b, s in ((2.0, 1.0), (2.0, 5.0), (0.5, 3.0)):
        mechanism = Mechanism(noise=DiscreteLaplace(b=b), sensitivity=Sensitivity(bound=s))
        assert mechanism.pairs()[0].infinite_mass == 0.0
        account = PLD().compose(mechanism)
        assert account.epsilon(1e-250) == pytest.approx(s / b, rel=1e-9)
        assert account.delta(s / b * (1 + 1e-9)) <= 1e-30


def test_wide_laws_cost_what_their_limits_do() -> None:
    sampling = Sampling(rate=0.1)
    smooth = PLD().compose(Mechanism(noise=Gaussian(sigma=20.0), sampling=sampling), 50)
    for law in (DiscreteGaussian(sigma=20.0), Skellam(mu=400.0)):
        rough = PLD().compose(Mechanism(noise=law, sampling=sampling), 50).epsilon(1e-6)
        assert rough == pytest.approx(smooth.epsilon(1e-6), rel=2e-3)


@every_law
def test_renyi_is_above(law: DiscreteNoise) -> None:
    mechanism = Mechanism(noise=law, sampling=Sampling(rate=0.2))
    renyi = RDP().compose(mechanism, 5).epsilon(1e-6)
    assert renyi >= PLD().compose(mechanism, 5).lower_epsilon(1e-6)


@pytest.mark.parametrize("shift", [0.5, 1.5, 2.0000001])
def test_sensitivities_that_are_not_whole_are_refused(shift: float) -> None:
    for law in LAWS:
        with pytest.raises(ValueError, match="whole number") as caught:
            Mechanism(noise=law, sensitivity=Sensitivity(bound=shift)).pairs()
        assert f"sensitivity={shift}" in str(caught.value)


def test_laws_too_narrow_are_refused() -> None:
    for law in (DiscreteGaussian(sigma=0.05), DiscreteLaplace(b=0.003), Skellam(mu=1e-5)):
        with pytest.raises(ValueError, match="use a larger scale"):
            Mechanism(noise=law, sensitivity=Sensitivity(bound=120.0)).pairs()


def test_laws_too_wide_are_refused_with_a_way_out() -> None:
    with pytest.raises(ValueError, match="round the sum"):
        Mechanism(noise=DiscreteGaussian(sigma=1e6)).pairs()
    with pytest.raises(ValueError, match=r"mu=1000000000\.0"):
        Skellam(mu=1e9)
    assert Mechanism(noise=DiscreteLaplace(b=1e6)).pairs()  # two atoms, whatever the width


@pytest.mark.parametrize("name", ["discrete-gaussian:sigma", "discrete-laplace:b", "skellam:mu"])
@pytest.mark.parametrize("value", ["0", "-1", "inf", "nan"])
def test_bad_values_are_refused_with_the_value(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"{name.partition(':')[2]}="):
        parse_noise(f"{name}={value}")


def test_skellam_masses_are_those_of_scipy() -> None:
    for mu in (0.4, 9.0, 300.0):
        k = np.arange(-30, 31)
        want = stats.skellam.logpmf(k, mu / 2, mu / 2)
        assert Skellam(mu=mu).logpdf(k) == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize(("sigma", "shift", "steps"), [(2.0, 1, 10), (5.0, 3, 4)])
def test_the_second_library_agrees_on_the_discrete_gaussian(
    sigma: float, shift: int, steps: int
) -> None:
    peer = pytest.importorskip("dp_accounting.pld.privacy_loss_distribution")
    theirs = peer.from_discrete_gaussian_mechanism(sigma, sensitivity=shift).self_compose(steps)
    mechanism = Mechanism(
        noise=DiscreteGaussian(sigma=sigma), sensitivity=Sensitivity(bound=float(shift))
    )
    low, high = PLD().compose(mechanism, steps).epsilon_interval(1e-6)
    value = theirs.get_epsilon_for_delta(1e-6)
    assert low * (1 - 1e-4) <= value <= high * (1 + 1e-3)
