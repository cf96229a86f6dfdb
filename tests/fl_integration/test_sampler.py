"""Cohorts are Poisson, streams are separate, ranks are public."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from scipy import stats

from fl_integration.config import FederatedConfig
from fl_integration.sampler import Randomness, poisson_cohort, public_rank


def test_cohort_has_no_client_twice_and_stays_in_range() -> None:
    rng = np.random.default_rng(0)
    for rate in (0.02, 0.5, 0.98, 1.0):
        drawn = poisson_cohort(500, rate=rate, rng=rng)
        assert len(set(drawn.tolist())) == len(drawn)
        assert drawn.size == 0 or (drawn.min() >= 0 and drawn.max() < 500)


def test_cohort_size_is_binomial_and_every_client_equally_likely() -> None:
    rng = np.random.default_rng(1)
    draws = [poisson_cohort(40, rate=0.25, rng=rng) for _ in range(4000)]
    sizes = np.bincount([len(d) for d in draws], minlength=41)
    expected = 4000 * stats.binom.pmf(np.arange(41), 40, 0.25)
    kept = expected > 5
    assert (
        stats.chisquare(
            np.append(sizes[kept], sizes[~kept].sum()),
            np.append(expected[kept], expected[~kept].sum()),
        ).pvalue
        > 1e-3
    )  # a fixed-size cohort of 10 fails this by far
    hits = np.bincount(np.concatenate(draws), minlength=40)
    assert abs(hits - 1000).max() < 5 * np.sqrt(4000 * 0.25 * 0.75)


def test_two_clients_are_drawn_independently() -> None:
    rng = np.random.default_rng(2)
    both = first = second = 0
    for _ in range(20_000):
        drawn = set(poisson_cohort(4, rate=0.3, rng=rng).tolist())
        first, second, both = first + (0 in drawn), second + (1 in drawn), both + ({0, 1} <= drawn)
    assert both / 20_000 == pytest.approx(first * second / 20_000**2, abs=4 * 0.09 / np.sqrt(2e4))


def test_empty_cohort_is_an_answer() -> None:
    assert poisson_cohort(10, rate=0.0, rng=np.random.default_rng(0)).shape == (0,)


def test_a_million_clients_cost_no_memory() -> None:
    tracemalloc.start()
    poisson_cohort(10**9, rate=1e-7, rng=np.random.default_rng(0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10**6


@pytest.mark.parametrize(("clients", "rate"), [(0, 0.5), (5, -0.1), (5, 1.1), (5, float("nan"))])
def test_bad_sampling_is_refused_with_its_value(clients: int, rate: float) -> None:
    with pytest.raises(ValueError, match=r"Expected (clients|rate)="):
        poisson_cohort(clients, rate=rate, rng=np.random.default_rng(0))


def _streams(randomness: Randomness, round: int) -> list[tuple[int, ...]]:
    generators = (
        randomness.rank(round),
        randomness.local(round, 0),
        randomness.local(round, 1),
        randomness.cohort(round),
        randomness.noise(round),
    )
    return [tuple(g.integers(0, 2**62, 4).tolist()) for g in generators]


@pytest.mark.parametrize("seed", [0, 5])
def test_streams_are_separate_repeatable_and_change_with_the_round(seed: int) -> None:
    randomness = Randomness(seed=seed, secret_seed=seed)  # even with equal seeds
    one = _streams(randomness, 3)
    assert len(set(one)) == 5
    assert one == _streams(randomness, 3)
    assert not set(one) & set(_streams(randomness, 4))


def test_seed_zero_is_a_seed_and_none_is_not() -> None:
    zero = Randomness(seed=0, secret_seed=0)
    assert zero.noise(0).normal() == zero.noise(0).normal()
    none = Randomness(seed=0, secret_seed=None)
    assert none.noise(0).normal() != none.noise(0).normal()
    assert none.cohort(0).normal() != none.cohort(0).normal()
    assert none.rank(0).normal() == none.rank(0).normal()


def test_public_rank_follows_its_law() -> None:
    law = (0.5, 0.2, 0.3)
    rng = np.random.default_rng(0)
    counts = np.bincount([public_rank(law, rng=rng) for _ in range(5000)], minlength=4)[1:]
    assert stats.chisquare(counts, 5000 * np.asarray(law)).pvalue > 1e-3


def test_a_rank_drawn_by_the_client_is_refused() -> None:
    with pytest.raises(ValueError, match="rank drawn by a client"):
        FederatedConfig(rank_drawn_by="client")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "fields",
    [
        {"clip": 0.0},
        {"clip": float("inf")},
        {"rank": 0},
        {"rounds": True},
        {"cohort": -1.0},
        {"momentum": 1.0},
        {"rank": 2, "rank_probabilities": (0.5, 0.4)},
        {"rank": 2, "rank_probabilities": (1.0,)},
        {"system": "lora", "rank": 1, "rank_probabilities": (1.0,)},
        {"system": "fedavg"},
        {"server_rule": "lion"},
        {"noise_seed": -1},
    ],
)
def test_bad_configurations_are_refused_with_the_value(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="Expected"):
        FederatedConfig(**fields)  # type: ignore[arg-type]


def test_configuration_survives_its_dictionary() -> None:
    config = FederatedConfig(rank=2, rank_probabilities=(0.25, 0.75), noise_seed=0)
    assert FederatedConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match="sigma"):
        FederatedConfig.from_dict({"sigma": 1.0})


def test_lora_always_uses_the_whole_rank() -> None:
    config = FederatedConfig(system="lora", rank=5)
    draws = {public_rank(config.probabilities, rng=np.random.default_rng(i)) for i in range(50)}
    assert draws == {5}
