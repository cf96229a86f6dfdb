"""Cohorts are Poisson, streams are separate, ranks are public, secrets are words of AES."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from scipy import stats

from dpmech import Gaussian, Laplace, Noise
from dpmech.discrete import DiscreteLaplace
from dpmech.drawing import seeded_words
from dpmech.lattice_mixtures import MultiGaussian
from dpmech.quantiles import table_of
from dpmech.spherical import SphericalGeneralizedGaussian
from dpmech.tabulated import Tabulated
from fl_integration import noise_sampler, sampler
from fl_integration.config import FederatedConfig
from fl_integration.sampler import (
    Randomness,
    Rng,
    head_start_seed,
    noise_of,
    poisson_cohort,
    public_rank,
)

SMALL = SphericalGeneralizedGaussian(scale=1.0, beta=1.4, dim=5)
# no table draws these
OWN: tuple[Noise, ...] = (
    MultiGaussian(sigma=5.0, width=1.0, epsilon=0.1),
    DiscreteLaplace(b=1e6),
)
TABLED: tuple[Noise, ...] = (
    Gaussian(sigma=3.0),
    Tabulated(edges=(0.0, 1.0, 2.0), masses=(0.6, 0.3), decay=0.25),
)


@pytest.fixture(params=["seeded", "secret"])
def rng(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Rng:
    """A generator, or none and so the secret words, which here are always the same."""
    if request.param == "seeded":
        return np.random.default_rng(1)
    words_from(monkeypatch, seed=1)
    return None


def words_from(monkeypatch: pytest.MonkeyPatch, *, seed: int) -> None:
    words = seeded_words(np.random.default_rng(seed))
    for module in (sampler, noise_sampler):
        monkeypatch.setattr(module, "secret_words", words)


def test_cohort_has_no_client_twice_and_stays_in_range(rng: Rng) -> None:
    for rate in (0.02, 0.5, 0.98, 1.0):
        drawn = poisson_cohort(500, rate=rate, rng=rng)
        assert len(set(drawn.tolist())) == len(drawn)
        assert drawn.size == 0 or (drawn.min() >= 0 and drawn.max() < 500)


def test_cohort_size_is_binomial_and_every_client_equally_likely(rng: Rng) -> None:
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


def test_two_clients_are_drawn_independently(rng: Rng) -> None:
    both = first = second = 0
    for _ in range(20_000):
        drawn = set(poisson_cohort(4, rate=0.3, rng=rng).tolist())
        first, second, both = first + (0 in drawn), second + (1 in drawn), both + ({0, 1} <= drawn)
    assert both / 20_000 == pytest.approx(first * second / 20_000**2, abs=4 * 0.09 / np.sqrt(2e4))


@pytest.mark.parametrize(("clients", "rate"), [(10**6, 1e-3), (7, 0.9)])
def test_a_large_cohort_has_the_size_of_its_rate(clients: int, rate: float, rng: Rng) -> None:
    sizes = np.array([len(poisson_cohort(clients, rate=rate, rng=rng)) for _ in range(400)])
    spread = np.sqrt(clients * rate * (1 - rate))
    assert abs(sizes.mean() - clients * rate) < 4 * spread / 20
    assert sizes.std() == pytest.approx(spread, rel=0.2)


def test_empty_and_full_cohorts_are_answers(rng: Rng) -> None:
    assert poisson_cohort(10, rate=0.0, rng=rng).shape == (0,)
    assert poisson_cohort(1, rate=1.0, rng=rng).tolist() == [0]
    assert poisson_cohort(3000, rate=1.0, rng=rng).tolist() == list(range(3000))
    assert poisson_cohort(10, rate=1e-300, rng=rng).shape == (0,)


def test_a_million_clients_cost_no_memory(rng: Rng) -> None:
    tracemalloc.start()
    poisson_cohort(10**9, rate=1e-7, rng=rng)
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
        randomness.local(round, "a"),
        randomness.local(round, "b"),
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
    noises = [noise_of(Gaussian(sigma=1.0), 3, none.noise(0)) for _ in range(2)]
    assert not np.isin(*noises).any()
    one, other = (poisson_cohort(99, rate=0.5, rng=none.cohort(0)) for _ in range(2))
    assert one.tolist() != other.tolist()
    assert none.rank(0).normal() == none.rank(0).normal()


@pytest.mark.parametrize("law", [*TABLED, *OWN, SMALL], ids=str)
def test_secret_draws_are_made_of_the_secret_words_and_of_nothing_else(
    law: Noise, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same words the same draws: a generator beside them would seed itself."""
    none = Randomness(seed=0, secret_seed=None)
    found: list[list[float]] = []
    for seed in (4, 4, 5):
        words_from(monkeypatch, seed=seed)
        cohort = poisson_cohort(500, rate=0.1, rng=none.cohort(0))
        found.append([*noise_of(law, 5, none.noise(0)), *cohort])
    assert found[0] == found[1]
    assert found[0] != found[2]


@pytest.mark.parametrize("law", [*TABLED, *OWN], ids=str)
def test_secret_draws_have_the_law_and_no_other_scale(
    law: Noise, monkeypatch: pytest.MonkeyPatch
) -> None:
    words_from(monkeypatch, seed=2)
    assert (table_of(law) is None) == (law in OWN)
    drawn = noise_of(law, 10_000, None)
    assert stats.kstest(drawn, law.cdf).pvalue > 1e-4
    for wrong in (2 / 3, 3 / 2):
        assert stats.kstest(drawn, law.scaled(wrong).cdf).pvalue < 1e-12
    assert abs(np.corrcoef(drawn[1:], drawn[:-1])[0, 1]) < 0.05


def test_a_law_without_a_table_is_drawn_of_the_same_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise_sampler, "table_of", lambda _: None)
    for law in (Laplace(b=2.0), TABLED[1]):
        words_from(monkeypatch, seed=3)
        drawn = noise_of(law, 10_000, None)
        words_from(monkeypatch, seed=3)
        assert np.array_equal(drawn, noise_of(law, 10_000, None))
        assert stats.kstest(drawn, law.cdf).pvalue > 1e-4
        for wrong in (2 / 3, 3 / 2):
            assert stats.kstest(drawn, law.scaled(wrong).cdf).pvalue < 1e-12


def test_a_generator_draws_as_the_law_says() -> None:
    for law in (*TABLED, SMALL):
        wanted = law.sample((5,), np.random.default_rng(3))
        assert noise_of(law, 5, np.random.default_rng(3)).tolist() == wanted.tolist()


@pytest.mark.parametrize("seed", [0, 7])
def test_a_head_start_has_streams_of_its_own(seed: int) -> None:
    before = head_start_seed(seed)
    assert before is not None
    assert before == head_start_seed(seed)
    phases = [Randomness(seed=seed, secret_seed=secret) for secret in (before, seed)]
    one, other = ({*_streams(p, r)[-2:]} | {*_streams(p, r)[-1:]} for p in phases for r in (3,))
    assert not one & other
    assert head_start_seed(None) is None


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
