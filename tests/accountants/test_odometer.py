"""What is left of a budget: the largest number that fits, and filters that never run over."""

import math

import pytest

from accountants import PLD, RDP, Ledger
from accountants._search import LARGEST_COUNT, largest_count
from accountants.exact import gaussian_delta, gaussian_epsilon
from accountants.odometer import GaussianFilter, RenyiFilter, remaining, would_exceed
from dpmech import (
    Gaussian,
    Laplace,
    Mechanism,
    NoDominatingPair,
    Sampling,
    Sensitivity,
    Target,
    Unattainable,
)

TARGET = Target(epsilon=2.0, delta=1e-6)
STEP = Mechanism(noise=Gaussian(sigma=1.0), sampling=Sampling(rate=0.01))
PLAIN = Mechanism(noise=Gaussian(sigma=30.0))


@pytest.mark.parametrize("fresh", [PLD(), RDP()], ids=["pld", "rdp"])
@pytest.mark.parametrize("release", [STEP, PLAIN, Mechanism(noise=Laplace(b=9.0))], ids=str)
def test_the_largest_number_that_fits(fresh: PLD | RDP, release: Mechanism) -> None:
    left = remaining(fresh, release, TARGET)
    assert fresh.compose(release, left).epsilon(TARGET.delta) <= TARGET.epsilon
    assert fresh.compose(release, left + 1).epsilon(TARGET.delta) > TARGET.epsilon
    assert not would_exceed(fresh, release, TARGET, count=left)
    assert would_exceed(fresh, release, TARGET, count=left + 1)


def test_the_exact_gaussian() -> None:
    left = remaining(Ledger(), PLAIN, TARGET)
    assert gaussian_epsilon(TARGET.delta, 30.0, left) <= TARGET.epsilon
    assert gaussian_epsilon(TARGET.delta, 30.0, left + 1) > TARGET.epsilon * (1 - 1e-4)


def test_what_was_spent_counts() -> None:
    spent = Ledger().add(PLAIN, 50)
    assert remaining(spent, PLAIN, TARGET) == remaining(Ledger(), PLAIN, TARGET) - 50
    assert remaining(spent, PLAIN, TARGET) > remaining(spent.add(STEP, 100), PLAIN, TARGET)
    too_much = Ledger().add(Mechanism(noise=Gaussian(sigma=0.1)))
    assert remaining(too_much, STEP, TARGET) == 0
    assert would_exceed(too_much, STEP, TARGET)


@pytest.mark.parametrize("most", [0, 1, 2, 7, 999, 123_456_789])
@pytest.mark.parametrize("start", [1, 5, 10**6])
@pytest.mark.parametrize("power", [0.5, 1.0, 4.0])
def test_the_search_over_counts_is_exact_and_short(most: int, start: int, power: float) -> None:
    calls = 0

    def excess(n: int) -> float:
        nonlocal calls
        calls += 1
        return power * math.log(n / (most + 0.5))

    assert largest_count(excess, start) == most
    assert calls <= 30


def test_jumps_and_no_end() -> None:
    assert largest_count(lambda n: 1.0 if n > 1000 else -1.0) == 1000
    assert largest_count(lambda _: -1.0) == LARGEST_COUNT


def test_the_renyi_filter_keeps_its_promise() -> None:
    """Runs of changing size, each allowed only if it fits: together they stay within the target."""
    private = RenyiFilter.suited_to(TARGET, PLAIN)
    sigma = 40.0
    while not private.would_exceed(Mechanism(noise=Gaussian(sigma=sigma))):
        private = private.spend(Mechanism(noise=Gaussian(sigma=sigma)))
        sigma *= 0.97
    assert private.ledger.runs > 20
    assert 0 <= private.left < private.budget
    assert RDP().compose_ledger(private.ledger).epsilon(TARGET.delta) <= TARGET.epsilon
    with pytest.raises(Unattainable, match="are left"):
        private.spend(Mechanism(noise=Gaussian(sigma=sigma)))
    assert not private.would_exceed(Mechanism(noise=Gaussian(sigma=1e4)))


def test_the_order_suited_to_a_mechanism_wastes_little() -> None:
    best = RenyiFilter.suited_to(TARGET, STEP).remaining(STEP)
    assert best <= remaining(RDP(), STEP, TARGET) <= best * 1.05
    assert RenyiFilter(target=TARGET, order=9.0).remaining(STEP) < best


def test_an_order_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"order=2\.0"):
        RenyiFilter(target=TARGET, order=2.0)
    with pytest.raises(ValueError, match=r"order=1\.0 above 1"):
        RenyiFilter(target=TARGET, order=1.0)


def test_the_gaussian_filter_is_exact() -> None:
    private = GaussianFilter(target=TARGET)
    assert gaussian_delta(TARGET.epsilon, 1 / math.sqrt(private.budget)) <= TARGET.delta
    assert gaussian_delta(TARGET.epsilon, 1 / math.sqrt(private.budget * 1.0001)) > TARGET.delta
    left = private.remaining(PLAIN)
    assert left >= remaining(PLD(), PLAIN, TARGET)
    assert not private.would_exceed(PLAIN, left)
    assert private.would_exceed(PLAIN, left + 1)
    mixed = private.spend(PLAIN, 10).spend(Mechanism(noise=Gaussian(sigma=4.0)))
    assert mixed.spent == pytest.approx(10 / 900 + 1 / 16)
    assert mixed.ledger.runs == 11
    with pytest.raises(Unattainable, match="are left"):
        mixed.spend(PLAIN, 10**6)


def test_the_gaussian_filter_counts_the_sensitivity() -> None:
    private = GaussianFilter(target=TARGET)
    wide = Mechanism(noise=Gaussian(sigma=30.0), sensitivity=Sensitivity(bound=3.0, dim=7))
    assert private.spend(wide).spent == pytest.approx(9 / 900)


@pytest.mark.parametrize("release", [STEP, Mechanism(noise=Laplace(b=9.0))], ids=str)
def test_the_gaussian_filter_refuses_what_is_not_proved(release: Mechanism) -> None:
    with pytest.raises(NoDominatingPair, match="RenyiFilter"):
        GaussianFilter(target=TARGET).would_exceed(release)
