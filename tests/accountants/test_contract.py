"""What every accountant must satisfy, whichever way it counts."""

import math
from itertools import pairwise

import pytest

from accountants import PLD, PRV, RDP, Ledger, accountant_named
from accountants.base import Accountant
from accountants.exact import gaussian_delta, gaussian_epsilon
from dpmech import (
    LMO_PRESETS,
    Gaussian,
    Laplace,
    LaplaceMixture,
    Mechanism,
    NoDominatingPair,
    Noise,
    Sampling,
    Sensitivity,
)

MIXTURE = LaplaceMixture(scales=(0.5, 5.0), weights=(0.3, 0.7))
LAWS: tuple[Noise, ...] = (Gaussian(sigma=2.0), Laplace(b=2.0), MIXTURE)


@pytest.fixture(params=[PLD(), RDP(), PRV(eps_error=0.05)], ids=["pld", "rdp", "prv"])
def fresh(request: pytest.FixtureRequest) -> Accountant:
    if isinstance(request.param, PRV):
        pytest.importorskip("prv_accountant")
    return request.param


def run(noise: Noise, rate: float = 1.0) -> Mechanism:
    return Mechanism(noise=noise, sampling=Sampling(rate=rate))


def test_nothing_costs_nothing(fresh: Accountant) -> None:
    assert fresh.epsilon(1e-5) == 0.0
    assert fresh.delta(0.0) == 0.0
    assert fresh.ledger.runs == 0


def test_composing_returns_a_new_accountant(fresh: Accountant) -> None:
    once = fresh.compose(run(Gaussian(sigma=2.0)))
    assert (fresh.ledger.runs, once.ledger.runs) == (0, 1)
    assert type(once) is type(fresh)


@pytest.mark.parametrize("noise", LAWS, ids=str)
@pytest.mark.parametrize("rate", [1.0, 0.2])
def test_epsilon_and_delta_fall_with_each_other(
    fresh: Accountant, noise: Noise, rate: float
) -> None:
    accountant = fresh.compose(run(noise, rate), 4)
    epsilons = [accountant.epsilon(d) for d in (1e-8, 1e-6, 1e-4, 1e-2)]
    # The grid of a PRV depends on delta, so its answers are monotone up to its own error only.
    slack = 2 * getattr(fresh, "eps_error", 0.0)
    assert all(b <= a + slack for a, b in pairwise(epsilons))
    assert epsilons[-1] < epsilons[0]
    deltas = [accountant.delta(e) for e in (0.0, 0.1, 0.25, 0.45)]
    assert deltas == sorted(deltas, reverse=True)
    assert 0 <= deltas[-1] < deltas[0] <= 1
    # The two are inverse to each other, up to what each may be loose by.
    assert accountant.delta(epsilons[-1] * 1.001 + 0.05) <= 1e-2


@pytest.mark.parametrize("noise", LAWS, ids=str)
def test_more_runs_more_records_less_noise_cost_more(fresh: Accountant, noise: Noise) -> None:
    def epsilon(factor: float = 1.0, rate: float = 0.2, steps: int = 4) -> float:
        return fresh.compose(run(noise.scaled(factor), rate), steps).epsilon(1e-6)

    middle = epsilon()
    assert epsilon(steps=3) < middle < epsilon(steps=6)
    assert epsilon(rate=0.1) < middle < epsilon(rate=0.4) < epsilon(rate=1.0)
    assert epsilon(factor=1.5) < middle < epsilon(factor=0.7)


@pytest.mark.parametrize("noise", LAWS, ids=str)
def test_twice_is_two(fresh: Accountant, noise: Noise) -> None:
    release = run(noise, 0.3)
    twice, again = fresh.compose(release, 2), fresh.compose(release).compose(release)
    assert twice == again
    assert twice.epsilon(1e-4) == again.epsilon(1e-4)


def test_the_order_of_the_runs_does_not_matter(fresh: Accountant) -> None:
    first, second = run(MIXTURE, 0.3), run(Gaussian(sigma=2.0), 0.5)
    there = fresh.compose(first, 2).compose(second, 3)
    back = fresh.compose(second).compose(first, 2).compose(second, 2)
    assert there.epsilon(1e-4) == pytest.approx(back.epsilon(1e-4), rel=3e-4)
    alone = max(fresh.compose(first, 2).epsilon(1e-4), fresh.compose(second, 3).epsilon(1e-4))
    assert alone < there.epsilon(1e-4)
    assert there.delta(1.0) == pytest.approx(back.delta(1.0), rel=3e-3)


def test_two_halves_of_a_gaussian_are_the_whole(fresh: Accountant) -> None:
    """Heterogeneous composition with a known sum: 1/sigma^2 adds up."""
    sigma = 1 / math.sqrt(1 / 2**2 + 1 / 3**2)
    mixed = fresh.compose(run(Gaussian(sigma=2.0))).compose(run(Gaussian(sigma=3.0)))
    assert mixed.epsilon(1e-5) == pytest.approx(
        fresh.compose(run(Gaussian(sigma=sigma))).epsilon(1e-5), rel=0.01
    )
    assert mixed.epsilon(1e-5) >= gaussian_epsilon(1e-5, sigma) * (1 - 1e-12)


@pytest.mark.parametrize(("sigma", "steps"), [(2.0, 1), (2.0, 10), (20.0, 100)])
@pytest.mark.parametrize("delta", [1e-3, 1e-9])
def test_above_the_exact_gaussian(
    fresh: Accountant, sigma: float, steps: int, delta: float
) -> None:
    accountant = fresh.compose(run(Gaussian(sigma=sigma)), steps)
    exact = gaussian_epsilon(delta, sigma, steps)
    lower = accountant.lower_epsilon(delta)
    assert lower is None or lower <= exact
    # The closed form is itself rounded up, by 5e-13.
    assert exact * (1 - 1e-12) <= accountant.epsilon(delta) <= 1.35 * exact + 0.05
    assert accountant.delta(1.0) >= gaussian_delta(1.0, sigma, steps) * (1 - 1e-10)


def test_units_cancel(fresh: Accountant) -> None:
    law = LMO_PRESETS["2"]
    scaled = Mechanism(
        noise=law.scaled(7.0), sensitivity=Sensitivity(bound=7.0), sampling=Sampling(rate=0.2)
    )
    want = fresh.compose(run(law, 0.2), 3).epsilon(1e-6)
    assert fresh.compose(scaled, 3).epsilon(1e-6) == pytest.approx(want, rel=2e-4)


def test_vectors_without_a_proof_are_refused_and_with_one_are_scalars(fresh: Accountant) -> None:
    mixed = Mechanism(noise=MIXTURE, sensitivity=Sensitivity(dim=3))
    if not isinstance(fresh, RDP):  # which has a bound for every vector of independent noise
        with pytest.raises(NoDominatingPair):
            fresh.compose(mixed)
    sampled = Sampling(rate=0.1, kind="without-replacement")
    with pytest.raises(NoDominatingPair):
        fresh.compose(Mechanism(noise=MIXTURE, sampling=sampled))
    vector = Mechanism(noise=Gaussian(sigma=2.0), sensitivity=Sensitivity(dim=1000))
    scalar = run(Gaussian(sigma=2.0))
    assert fresh.compose(vector).epsilon(1e-5) == fresh.compose(scalar).epsilon(1e-5)


@pytest.mark.parametrize("bad", [0.0, 1.0, -0.5, math.nan])
def test_bad_delta_is_named(fresh: Accountant, bad: float) -> None:
    with pytest.raises(ValueError, match=f"delta={bad}"):
        fresh.compose(run(MIXTURE)).epsilon(bad)


@pytest.mark.parametrize("bad", [-1.0, math.inf, math.nan])
def test_bad_epsilon_is_named(fresh: Accountant, bad: float) -> None:
    with pytest.raises(ValueError, match=f"epsilon={bad}"):
        fresh.compose(run(MIXTURE)).delta(bad)


@pytest.mark.parametrize("bad", [0, -1, 1.5])
def test_bad_counts_are_named(fresh: Accountant, bad: int) -> None:
    with pytest.raises(ValueError, match=f"count={bad}"):
        fresh.compose(run(MIXTURE), bad)


@pytest.mark.parametrize("noise", LAWS, ids=str)
@pytest.mark.parametrize(("rate", "steps"), [(1.0, 3), (0.05, 100)])
def test_lower_below_pld_below_renyi(noise: Noise, rate: float, steps: int) -> None:
    release = run(noise, rate)
    low, high = PLD().compose(release, steps).epsilon_interval(1e-6)
    renyi = RDP().compose(release, steps).epsilon(1e-6)
    assert low <= renyi
    assert low <= high <= renyi * (1 + PLD().tolerance)


def test_the_ledger_survives_json(fresh: Accountant) -> None:
    ledger = (
        fresh.compose(run(MIXTURE, 0.3), 2).compose(run(LMO_PRESETS["0.3"])).compose(run(MIXTURE))
    ).ledger
    assert Ledger.from_json(ledger.to_json()) == ledger
    name = type(fresh).__name__.lower()
    assert type(accountant_named(name)) is type(fresh)


def test_a_ledger_is_composed_as_its_runs(fresh: Accountant) -> None:
    whole = fresh.compose(run(MIXTURE, 0.3), 2).compose(run(Laplace(b=2.0)))
    again = fresh.compose_ledger(whole.ledger)  # type: ignore[attr-defined]
    assert again == whole
    assert fresh.compose_ledger(Ledger()) == fresh  # type: ignore[attr-defined]


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format": 2, "entries": []}', '{"format": 1}'])
def test_a_broken_ledger_is_one_sentence(text: str) -> None:
    with pytest.raises(ValueError, match="Not a readable ledger"):
        Ledger.from_json(text)
