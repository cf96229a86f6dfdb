"""Releases known by their guarantee alone."""

import math

import numpy as np
import pytest
from scipy import stats

from accountants import PLD, RDP, Ledger
from dpmech import (
    Gaussian,
    Laplace,
    Mechanism,
    Sampling,
    Sensitivity,
    noise_from_dict,
    parse_noise,
)
from dpmech.guarantee import ApproximateDP, Guarantee, RandomizedResponse

GUARANTEES: tuple[Guarantee, ...] = (
    ApproximateDP(epsilon=0.5),
    ApproximateDP(epsilon=1.0, delta=1e-4),
    RandomizedResponse(epsilon=0.7),
    RandomizedResponse(epsilon=0.7, values=5),
)


def composed(noise: Guarantee, count: int = 1, rate: float = 1.0) -> PLD:
    return PLD().compose(Mechanism(noise=noise, sampling=Sampling(rate=rate)), count)


def response_delta(epsilon: float, each: float, count: int) -> float:
    """Delta of ``count`` binary responses: a sum over how many of them are true."""
    k = np.arange(count + 1)
    loss = (2 * k - count) * each
    p = stats.binom.pmf(k, count, 1 / (1 + math.exp(-each)))
    return float(np.sum(np.maximum(p * -np.expm1(np.minimum(epsilon - loss, 0.0)), 0.0)))


def test_golden_randomised_response() -> None:
    low, high = composed(RandomizedResponse(epsilon=0.1), 1000).epsilon_interval(1e-6)
    assert low <= 19.3446714 <= high
    assert high - low <= 1e-4 * high
    assert composed(ApproximateDP(epsilon=0.1), 1000).epsilon(1e-6) == high


@pytest.mark.parametrize("count", [1, 7, 200])
@pytest.mark.parametrize("epsilon", [0.0, 0.3, 2.0])
def test_responses_compose_like_coins(count: int, epsilon: float) -> None:
    exact = response_delta(epsilon, 0.25, count)
    low, high = composed(RandomizedResponse(epsilon=0.25), count).delta_interval(epsilon)
    assert low <= exact * (1 + 1e-9) + 1e-15
    assert high >= exact * (1 - 1e-9)
    assert high - low <= 1e-3 * high + 1e-15


def test_what_is_guaranteed_is_what_it_costs() -> None:
    account = composed(ApproximateDP(epsilon=1.0, delta=1e-4))
    assert account.delta_interval(1.0) == pytest.approx((1e-4, 1e-4), rel=1e-9)
    assert account.epsilon(1e-4 * (1 + 1e-9)) <= 1.0 + 1e-9
    assert account.epsilon(0.9e-4) == math.inf
    twice = composed(ApproximateDP(epsilon=1.0, delta=1e-4), 2)
    # Kairouz, Oh & Viswanath: 1 - (1-delta)^2 is lost, and 2 epsilon is spent where both are true.
    lost = 1 - (1 - 1e-4) ** 2
    low, high = twice.delta_interval(2.0)
    assert low <= lost * (1 + 1e-12)
    assert high == pytest.approx(lost, rel=1e-4)
    inner = (1 - 1e-4) ** 2 * (math.e / (1 + math.e)) ** 2 * -math.expm1(0.5 - 2.0)
    assert twice.delta_interval(0.5) == pytest.approx((lost + inner, lost + inner), rel=1e-4)


def test_sampling_amplifies_a_guarantee() -> None:
    """q-sampled epsilon-DP is ln(1 + q (e^epsilon - 1))-DP, and loses q delta."""
    rate, noise = 0.1, ApproximateDP(epsilon=1.0, delta=1e-4)
    account = composed(noise, rate=rate)
    epsilon = math.log1p(rate * math.expm1(1.0))
    low, high = account.delta_interval(epsilon)
    assert low == pytest.approx(rate * 1e-4, rel=1e-6)
    assert high == pytest.approx(rate * 1e-4, rel=1e-6)


def test_more_values_tell_less() -> None:
    deltas = [
        composed(RandomizedResponse(epsilon=0.7, values=k), 10).delta(1.0) for k in (2, 3, 10, 100)
    ]
    assert deltas == sorted(deltas, reverse=True)
    # p - e^0 p' of the two answers that differ
    total = math.exp(0.7) + 4
    low, high = composed(RandomizedResponse(epsilon=0.7, values=5)).delta_interval(0.0)
    assert low == pytest.approx(math.expm1(0.7) / total, rel=1e-9)
    assert high == pytest.approx(math.expm1(0.7) / total, rel=1e-9)


@pytest.mark.parametrize("noise", GUARANTEES, ids=str)
def test_masses_are_masses(noise: Guarantee) -> None:
    losses, p, lost = noise.atoms()
    assert np.sum(p) + lost == pytest.approx(1.0, rel=1e-14)
    assert np.sum(p * np.exp(-losses)) + lost == pytest.approx(1.0, rel=1e-14)


@pytest.mark.parametrize("noise", GUARANTEES, ids=str)
def test_ledgers_hold_guarantees(noise: Guarantee) -> None:
    ledger = Ledger().add(Mechanism(noise=noise, sampling=Sampling(rate=0.2)), 3)
    ledger = ledger.add(Mechanism(noise=Gaussian(sigma=2.0)))
    assert Ledger.from_json(ledger.to_json()) == ledger
    assert parse_noise(str(noise)) == noise
    assert noise_from_dict(noise.to_dict()) == noise
    together = PLD().compose_ledger(ledger).epsilon(1e-3)
    alone = PLD().compose(Mechanism(noise=Gaussian(sigma=2.0))).epsilon(1e-3)
    assert together > alone


@pytest.mark.parametrize("rate", [0.2, 1.0])
@pytest.mark.parametrize("noise", [g for g in GUARANTEES if g.atoms()[2] == 0], ids=str)
def test_renyi_bounds_of_a_guarantee(noise: Guarantee, rate: float) -> None:
    mechanism = Mechanism(noise=noise, sampling=Sampling(rate=rate))
    renyi = RDP().compose(mechanism, 20).epsilon(1e-6)
    low = PLD().compose(mechanism, 20).lower_epsilon(1e-6)
    assert low <= renyi <= 1.5 * low


@pytest.mark.parametrize("noise", GUARANTEES, ids=str)
def test_a_guarantee_has_no_density_and_no_sensitivity(noise: Guarantee) -> None:
    for ask in (noise.logpdf, noise.logsf, noise.isf, noise.scaled):
        with pytest.raises(ValueError, match="a guarantee has none") as caught:
            ask(0.5)
        assert str(noise) in str(caught.value)
    with pytest.raises(ValueError, match="samples"):
        noise.sample(3, np.random.default_rng(0))
    for sensitivity in (Sensitivity(bound=2.0), Sensitivity(dim=3)):
        with pytest.raises(ValueError, match="whole release"):
            Mechanism(noise=noise, sensitivity=sensitivity)
    assert Mechanism(noise=Laplace(b=1.0), sensitivity=Sensitivity(bound=2.0)).pairs()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("approximate-dp:epsilon=0", "epsilon=0"),
        ("approximate-dp:epsilon=-1", "epsilon=-1"),
        ("approximate-dp:epsilon=inf", "epsilon=inf"),
        ("approximate-dp:epsilon=800", "epsilon=800"),
        ("approximate-dp:epsilon=1,delta=1", "delta=1"),
        ("approximate-dp:epsilon=1,delta=-0.1", "delta=-0.1"),
        ("approximate-dp:epsilon=1,delta=nan", "delta=nan"),
        ("randomized-response:epsilon=1,values=1", "values=1"),
        ("randomized-response:epsilon=1,values=2.5", "values=2.5"),
        ("randomized-response:epsilon=1,values=nan", "values=nan"),
    ],
)
def test_bad_values_are_refused_with_the_value(text: str, value: str) -> None:
    with pytest.raises(ValueError, match="Expected") as caught:
        parse_noise(text)
    assert value in str(caught.value)
