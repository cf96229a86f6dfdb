"""The PLD intervals against closed forms, second opinions and recorded numbers."""

import math
import tomllib
from pathlib import Path
from typing import Any

import dp_accounting
import mpmath as mp
import numpy as np
import pytest
from dp_accounting import pld as their_pld
from dp_accounting import rdp as their_rdp

from accountants import PLD, RDP
from accountants._atoms import Composed
from accountants.exact import gaussian_delta, gaussian_epsilon, laplace_delta, laplace_epsilon
from dpmech import (
    Gaussian,
    Laplace,
    LaplaceMixture,
    Mechanism,
    Noise,
    Sampling,
    Staircase,
    TruncatedLaplace,
    Unattainable,
    parse_noise,
)
from dpmech.noise import Floats
from dpmech.peaked import PeakedPair

GOLDEN = tomllib.loads((Path(__file__).parents[1] / "golden" / "pld.toml").read_text())["cases"]
MIXTURE = LaplaceMixture(scales=(0.5, 5.0), weights=(0.3, 0.7))


def composed(noise: Noise, steps: int = 1, rate: float = 1.0) -> PLD:
    return PLD().compose(Mechanism(noise=noise, sampling=Sampling(rate=rate)), steps)


@pytest.mark.parametrize("case", GOLDEN, ids=lambda c: f"{c['noise']}-{c['steps']}-{c['delta']}")
def test_golden(case: dict[str, Any]) -> None:
    noise = parse_noise(case["noise"])
    if "std" in case:
        noise = noise.scaled(case["std"] / noise.std)
    low, high = composed(noise, case["steps"], case["rate"]).epsilon_interval(case["delta"])
    assert low <= case["high"]
    assert high >= case["low"]
    assert high - low <= 1e-4 * high


@pytest.mark.parametrize("delta", [1e-2, 1e-5, 1e-10, 1e-20, 1e-30])
@pytest.mark.parametrize(("sigma", "steps"), [(1.0, 1), (2.0, 10), (50.0, 1000), (0.3, 100)])
def test_gaussian_upper_bound_at_any_delta(delta: float, sigma: float, steps: int) -> None:
    exact = gaussian_epsilon(delta, sigma, steps)
    low, high = composed(Gaussian(sigma=sigma), steps).epsilon_interval(delta)
    # The closed form is itself rounded up, by 5e-13.
    assert low <= exact <= high * (1 + 1e-12) <= exact * (1 + 1e-4)
    if delta >= 1e-10:
        assert low >= exact * (1 - 1e-4)


@pytest.mark.parametrize("sigma", [0.01, 0.1])
def test_hardly_any_noise(sigma: float) -> None:
    exact = gaussian_epsilon(1e-5, sigma)
    low, high = composed(Gaussian(sigma=sigma)).epsilon_interval(1e-5)
    assert exact * (1 - 1e-4) <= low <= exact <= high * (1 + 1e-12) <= exact * (1 + 1e-4)


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 3.0, 10.0])
def test_gaussian_delta(epsilon: float) -> None:
    exact = gaussian_delta(epsilon, 2.0, 10)
    low, high = composed(Gaussian(sigma=2.0), 10).delta_interval(epsilon)
    assert exact * (1 - 1e-3) <= low <= exact * (1 + 1e-10)
    assert exact * (1 - 1e-10) <= high <= exact * (1 + 1e-3)


def test_one_laplace_release() -> None:
    for delta in (1e-2, 1e-6):
        low, high = composed(Laplace(b=0.8)).epsilon_interval(delta)
        assert low <= laplace_epsilon(delta, 0.8) <= high <= low * (1 + 1e-4)
    low, high = composed(Laplace(b=0.8)).delta_interval(0.3)
    assert low <= laplace_delta(0.3, 0.8) <= high <= low * (1 + 1e-3)


@pytest.mark.parametrize("noise", [Gaussian(sigma=1.0), Laplace(b=1.0)], ids=str)
@pytest.mark.parametrize("rate", [0.01, 0.3, 0.9])
def test_one_sampled_release_in_both_directions(noise: Noise, rate: float) -> None:
    """delta of one release from the survival functions at the two cuts."""

    def base(odds: float) -> float:  # H_odds(P||Q) of the unsampled release, at any odds >= 0
        if odds <= 0:
            return 1.0 - odds
        epsilon = math.log(odds)
        closed = (
            (lambda e: gaussian_delta(e, 1.0))
            if isinstance(noise, Gaussian)
            else (lambda e: laplace_delta(e, 1.0))
        )
        # H_g(P||Q) = 1 - g + g H_{1/g}(Q||P), and P, Q may be exchanged.
        return closed(epsilon) if epsilon >= 0 else 1 - odds + odds * closed(-epsilon)

    for epsilon in (0.01, 0.1, 0.5):
        g = math.exp(epsilon)
        remove = rate * base(1 + (g - 1) / rate)
        # H_g(Q || (1-q)Q + qP) = (1 - g(1-q)) H_{g q/(1 - g(1-q))}(Q||P) where that is positive.
        left = 1 - g * (1 - rate)
        add = left * base(g * rate / left) if left > 0 else 0.0
        truth = max(remove, add)
        low, high = composed(noise, rate=rate).delta_interval(epsilon)
        assert low <= truth * (1 + 1e-12)
        assert truth <= high <= truth * (1 + 1e-3) + 1e-15


def test_a_skipped_direction_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plants the bug: with additions alone the claim falls below one removal's exact delta."""
    truth = 0.3 * laplace_delta(math.log1p(math.expm1(0.2) / 0.3), 1.0)
    right = Mechanism.pairs
    assert composed(Laplace(b=1.0), rate=0.3).delta(0.2) >= truth
    monkeypatch.setattr(Mechanism, "pairs", lambda self: right(self)[1:] * 2)
    assert composed(Laplace(b=1.0), rate=0.3).delta(0.2) < 0.9 * truth


def test_the_mixture_beyond_its_peak() -> None:
    """A loss that falls again: {loss > epsilon} is an interval, and delta its closed form."""
    w, b = (mp.mpf("0.3"), mp.mpf("0.7")), (mp.mpf("0.5"), mp.mpf(5))

    def density(x: mp.mpf) -> mp.mpf:
        return sum(p / (2 * c) * mp.exp(-abs(x) / c) for p, c in zip(w, b, strict=True))

    def survival(x: mp.mpf) -> mp.mpf:
        tail = sum(p / 2 * mp.exp(-abs(x) / c) for p, c in zip(w, b, strict=True))
        return tail if x >= 0 else 1 - tail

    with mp.workdps(40):
        for epsilon in (0.25, 0.9, 1.3):

            def excess(x: mp.mpf) -> mp.mpf:
                return mp.log(density(x - 1) / density(x)) - epsilon  # noqa: B023 - used here only

            left = mp.findroot(excess, (0.5, 1), solver="bisect", verify=False)
            right = mp.findroot(excess, (1, 20), solver="bisect", verify=False)
            exact = survival(left - 1) - survival(right - 1)
            exact -= mp.exp(epsilon) * (survival(left) - survival(right))
            low, high = composed(MIXTURE).delta_interval(epsilon)
            assert low <= float(exact) * (1 + 1e-12)
            assert float(exact) <= high <= low * (1 + 2e-3)


def test_a_loss_taken_for_monotone_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plants the bug: a loss that keeps its peak value puts both bounds above the truth."""
    truth = {1: 1.3276952, 10: 10.4007241, 100: 50.3020205}  # tests/golden
    for steps, epsilon in truth.items():
        low, high = composed(MIXTURE, steps).epsilon_interval(1e-6)
        assert low <= epsilon * (1 + 1e-7)
        assert high >= epsilon * (1 - 1e-7)
    right = PeakedPair._edge_losses

    def risen(self: PeakedPair, edges: Floats) -> tuple[Floats, Floats]:
        loss, error = right(self, edges)
        return np.maximum.accumulate(loss), error

    monkeypatch.setattr(PeakedPair, "_edge_losses", risen)
    assert all(composed(MIXTURE, n).lower_epsilon(1e-6) > e * 1.0001 for n, e in truth.items())


def test_dropped_infinite_mass_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plants the bug: without it, twice a truncated Laplace release seems to cost nothing above."""
    law = TruncatedLaplace(b=1.3, bound=6.0)
    lost = float(law.sf(5.0))
    truth = 1 - (1 - lost) ** 2
    assert composed(law, 2).delta(2.0) >= truth * (1 - 1e-12)
    monkeypatch.setattr(Composed, "infinite", 0.0)
    assert composed(law, 2).delta(2.0) < truth / 2


def test_truncated_laplace_against_its_closed_form() -> None:
    b, bound = 1.3, 6.0
    kept = 1 - mp.exp(-mp.mpf(bound) / b)

    def survival(x: float) -> mp.mpf:
        tail = (mp.exp(-abs(mp.mpf(x)) / b) - mp.exp(-mp.mpf(bound) / b)) / (2 * kept)
        return tail if x >= 0 else 1 - tail

    for epsilon in (0.1, 0.5, 0.76, 2.0):
        cut = min((1 + epsilon * b) / 2, 1.0)  # beyond s the loss stays at s/b, then is infinite
        if epsilon >= 1 / b:
            exact = survival(bound - 1)
        else:
            exact = survival(cut - 1) - mp.exp(epsilon) * survival(cut)
        low, high = composed(TruncatedLaplace(b=b, bound=bound)).delta_interval(epsilon)
        assert low <= float(exact) * (1 + 1e-12)
        assert float(exact) * (1 - 1e-12) <= high <= low * (1 + 1e-3)
    lost = float(survival(bound - 1))
    twice = composed(TruncatedLaplace(b=b, bound=bound), 2)
    assert twice.epsilon(0.9 * (1 - (1 - lost) ** 2)) == math.inf
    assert twice.epsilon(1.1 * (1 - (1 - lost) ** 2)) < 2 / b * (1 + 1e-6)


def test_staircase_tends_to_its_pure_epsilon() -> None:
    law = Staircase.least_mean_abs(1.0)
    for delta in (1e-3, 1e-9, 1e-15):
        low, high = composed(law).epsilon_interval(delta)
        assert low <= 1.0
        assert high <= 1 + 2e-4
    assert low >= 1 - 1e-4
    pure = math.log1p(0.2 * math.expm1(1.0))
    low, high = composed(law, rate=0.2).epsilon_interval(1e-9)
    assert pure * (1 - 1e-4) <= low <= pure * (1 + 1e-9)
    assert high <= pure * (1 + 3e-4)


@pytest.mark.parametrize("noise", [Gaussian(sigma=1.0), Laplace(b=2.0)], ids=str)
@pytest.mark.parametrize(("rate", "steps"), [(1.0, 5), (0.01, 1000)])
def test_second_opinions(noise: Noise, rate: float, steps: int) -> None:
    make = their_pld.privacy_loss_distribution
    one = (
        make.from_gaussian_mechanism(noise.sigma, sampling_prob=rate)
        if isinstance(noise, Gaussian)
        else make.from_laplace_mechanism(noise.b, sampling_prob=rate)  # type: ignore[attr-defined]
    )
    theirs = one.self_compose(steps).get_epsilon_for_delta(1e-5)
    low, high = composed(noise, steps, rate).epsilon_interval(1e-5)
    assert low <= theirs
    assert high == pytest.approx(theirs, rel=3e-4)


@pytest.mark.parametrize(
    ("noise", "event"),
    [
        (Gaussian(sigma=1.0), dp_accounting.GaussianDpEvent(1.0)),
        (Laplace(b=2.0), dp_accounting.LaplaceDpEvent(2.0)),
    ],
    ids=str,
)
@pytest.mark.parametrize(("rate", "steps"), [(1.0, 5), (0.01, 1000)])
def test_second_opinions_on_renyi(noise: Noise, event: Any, rate: float, steps: int) -> None:
    if rate < 1:
        event = dp_accounting.PoissonSampledDpEvent(rate, event)
        if isinstance(noise, Laplace):
            pytest.skip("the library composes no subsampled Laplace event")
    theirs = their_rdp.RdpAccountant().compose(event, steps).get_epsilon(1e-5)
    ours = RDP().compose(Mechanism(noise=noise, sampling=Sampling(rate=rate)), steps).epsilon(1e-5)
    # Theirs is limited to its orders; ours may only be the smaller for it.
    assert 0.97 * theirs <= ours <= theirs * (1 + 1e-6)


REFINED = [
    ("gaussian:sigma=1", 0.01, 1000, 1e-5),
    ("gaussian:sigma=1", 0.001, 10, 1e-9),
    ("laplace:b=2", 0.2, 7, 1e-20),
    ("laplace-mixture:b=.5/5,w=.3/.7", 0.3, 2, 1e-6),
    ("discrete-gaussian:sigma=3", 0.1, 50, 1e-8),
    ("approximate-dp:epsilon=.3,delta=1e-9", 0.05, 40, 1e-6),
    ("randomized-response:epsilon=1,values=4", 1.0, 12, 1e-6),
]


@pytest.mark.parametrize(("law", "rate", "steps", "delta"), REFINED)
def test_refining_never_crosses_a_bound(law: str, rate: float, steps: int, delta: float) -> None:
    release = Mechanism(noise=parse_noise(law), sampling=Sampling(rate=rate))
    bounds = []
    for tolerance in (0.1, 1e-2, 1e-3, 1e-4, 1e-5):
        low, high = PLD(tolerance=tolerance).compose(release, steps).epsilon_interval(delta)
        assert high - low <= tolerance * high
        bounds.append((low, high))
    assert max(low for low, _ in bounds) <= min(high for _, high in bounds)


@pytest.mark.parametrize(("law", "rate", "steps", "delta"), REFINED)
def test_every_event_composes_to_its_count(law: str, rate: float, steps: int, delta: float) -> None:
    release = Mechanism(noise=parse_noise(law), sampling=Sampling(rate=rate))
    one_by_one = PLD()
    for _ in range(min(steps, 12)):
        one_by_one = one_by_one.compose(release)
    at_once = PLD().compose(release, min(steps, 12))
    assert one_by_one.epsilon_interval(delta) == at_once.epsilon_interval(delta)
    assert one_by_one.delta_interval(0.01) == at_once.delta_interval(0.01)


def test_epsilon_and_delta_are_inverse() -> None:
    """delta at the bounds on epsilon encloses the delta that was asked for."""
    for law, rate, steps, delta in REFINED[:5]:
        release = Mechanism(noise=parse_noise(law), sampling=Sampling(rate=rate))
        account = PLD().compose(release, steps)
        low, high = account.epsilon_interval(delta)
        assert account.lower_delta(high) <= delta <= account.delta(low)


def test_no_certificate_is_a_refusal_that_says_what_to_do() -> None:
    release = Mechanism(noise=Gaussian(sigma=0.01), sampling=Sampling(rate=0.5))
    with pytest.raises(Unattainable, match=r"frequencies.*accountant='rdp'") as refused:
        PLD().compose(release, 1_000_000).epsilon(1e-6)
    assert refused.value.reached > 1e9


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"delta=0\.0"):
        PLD().epsilon(0.0)
    with pytest.raises(ValueError, match="epsilon=-1"):
        PLD().delta(-1.0)
    with pytest.raises(ValueError, match="tolerance=2"):
        PLD(tolerance=2.0)
    assert np.isinf(composed(TruncatedLaplace(b=1.0, bound=0.4)).epsilon(0.5))
