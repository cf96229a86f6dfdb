"""Scalars beside the vectors: what a client can move, from which sample, and what is accounted."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from accountants import PLD, Ledger, calibrate_scale
from dpmech import (
    Gaussian,
    Laplace,
    Mechanism,
    NoDominatingPair,
    Sampling,
    Sensitivity,
    Target,
)
from dpmech.discrete import DiscreteGaussian
from dpmech.guarantee import ApproximateDP
from dpmech.noise import Floats
from dpmech.tabulated import Tabulated
from fl_integration.queries import AdaptiveClip, ScalarQuery
from fl_integration.sampler import Randomness, poisson_cohort
from fl_integration.scalars import (
    Streams,
    check_others,
    contributions,
    entries_of,
    joint,
    noised,
    release_scalar,
    scalar_mechanism,
    split_jointly,
)

N = 400
SHARE = ScalarQuery(name="share", cohort=40)
COUNT = ScalarQuery(name="count", cohort=20, of="sum")
LOSS = ScalarQuery(name="loss", cohort=10, low=0.5, high=4.0, every=5)
QUERIES = (SHARE, COUNT, LOSS)
SEARCHED = Tabulated(edges=(0.0, 1.0, 2.0), masses=(0.6, 0.3), decay=0.25)
HOSTILE = np.array([1e300, -1e300, np.nan, np.inf, -np.inf, 0.0, 0.5, 1.0, 4.0])


class Silent(Gaussian):
    """No noise at all, to see what it would be added to."""

    def sample(self, shape: Any, rng: np.random.Generator) -> Floats:
        return np.zeros(shape)


SILENT = Silent(sigma=1.0)


def _streams(secret: int | None = 5, *, place: int = 0) -> Streams:
    return Streams(randomness=Randomness(seed=0, secret_seed=secret), place=place)


def _half(clients: NDArray[np.int64]) -> Floats:
    return (clients < 0.25 * N).astype(float)


@pytest.mark.parametrize("query", QUERIES, ids=lambda q: q.name)
def test_a_client_moves_the_sum_by_at_most_the_sensitivity(query: ScalarQuery) -> None:
    bound = scalar_mechanism(query, SEARCHED, clients=N).sensitivity.bound
    added = contributions(query, HOSTILE)
    assert np.all(np.abs(added) <= bound)
    assert np.max(np.abs(added)) == pytest.approx(bound, rel=1e-5)  # nor is the bound too large
    assert not added[2:5].any()  # not finite: nothing, rather than the bound
    # In the loop itself, with every client drawn: one client more moves the sum by no more.
    every = replace(query, cohort=9.0)
    scale = every.cohort if query.of == "mean" else 1.0
    for hostile in HOSTILE:
        values = np.append(np.linspace(0, 4, 8), hostile)
        both = noised(every, values, SILENT, rate=1.0, rng=np.random.default_rng(0))
        one = noised(every, values[:-1], SILENT, rate=1.0, rng=np.random.default_rng(0))
        assert abs(both - one) * scale <= bound


def test_the_range_decides_the_sensitivity() -> None:
    assert [q.bound for q in QUERIES] == [0.5, 1.0, 1.75]
    assert ScalarQuery(name="x", cohort=1, low=-3, high=1, of="sum").bound == 3
    assert [scalar_mechanism(q, SEARCHED, clients=N).sampling.rate for q in QUERIES] == [
        0.1,
        0.05,
        0.025,
    ]


@pytest.mark.parametrize("query", [SHARE, replace(COUNT, cohort=40.0)], ids=lambda q: q.name)
def test_the_divisor_is_a_constant_and_the_estimate_unbiased(query: ScalarQuery) -> None:
    sizes: list[int] = []

    def numbers(clients: NDArray[np.int64]) -> Floats:
        sizes.append(len(clients))
        return _half(clients)

    values = np.array(
        [
            release_scalar(query, numbers, SILENT, clients=N, streams=_streams(), round=t)
            for t in range(300)
        ]
    )
    truth = 0.25 if query.of == "mean" else 100.0
    # With the realised size as divisor a mean of bits could not leave [0, 1] by itself; with the
    # constant one the spread is that of a Poisson sample, which the realised one would shrink.
    drawn = 0.1 * 0.9 * (N * 0.25 * (0.5**2 if query.of == "mean" else 1))
    if query.of == "mean":
        drawn += 0.1 * 0.9 * N * 0.75 * 0.5**2
    spread = math.sqrt(drawn) / (40 if query.of == "mean" else 0.1)
    assert values.std() == pytest.approx(spread, rel=0.15)
    assert abs(values.mean() - truth) < 5 * spread / math.sqrt(300)
    assert len(set(sizes)) > 5


def test_the_noise_in_the_loop_follows_its_law() -> None:
    def nothing(clients: NDArray[np.int64]) -> Floats:
        return np.full(len(clients), np.nan)

    streams = _streams(None)
    for law in (Laplace(b=2.0), SEARCHED):
        released = np.array(
            [
                release_scalar(COUNT, nothing, law, clients=N, streams=streams, round=0)
                for _ in range(4000)
            ]
        )
        sums = 0.05 * released
        assert stats.kstest(sums, law.cdf).pvalue > 1e-6
        for wrong in (2 / 3, 3 / 2):
            assert stats.kstest(sums, law.scaled(wrong).cdf).pvalue < 1e-7


def test_an_empty_sample_releases_noise() -> None:
    query = ScalarQuery(name="rare", cohort=1e-9)
    value = release_scalar(
        query, _half, Gaussian(sigma=1.0), clients=N, streams=_streams(), round=0
    )
    assert value != query.centre


def test_the_sample_is_its_own() -> None:
    """A ledger's two entries are two samples: that of a query tells nothing of the cohort."""
    randomness = Randomness(seed=5, secret_seed=5)
    both = np.zeros(3)
    for round in range(200):
        cohort = poisson_cohort(N, rate=0.1, rng=randomness.cohort(round))
        asked: list[NDArray[np.int64]] = []
        for place in (0, 1):
            release_scalar(
                SHARE,
                lambda clients, asked=asked: (asked.append(clients), _half(clients))[1],
                Gaussian(sigma=1.0),
                clients=N,
                streams=Streams(randomness=randomness, place=place),
                round=round,
            )
        pairs = ((cohort, asked[0]), (cohort, asked[1]), (asked[0], asked[1]))
        both += [len(np.intersect1d(a, b)) for a, b in pairs]
    # Independent: 200·N·q² = 800 clients in both; from one sample all 8000 would be.
    assert np.all(np.abs(both - 800) < 5 * math.sqrt(800))


def test_seeded_streams_repeat_by_round_and_others_never() -> None:
    def value(secret: int | None, place: int, round: int) -> float:
        return release_scalar(
            SHARE,
            _half,
            Gaussian(sigma=1.0),
            clients=N,
            streams=_streams(secret, place=place),
            round=round,
        )

    seeded = [value(0, place, round) for place in (0, 1) for round in (0, 1)]
    assert len(set(seeded)) == 4
    assert value(0, 1, 1) == seeded[-1]
    assert value(None, 0, 0) != value(None, 0, 0)
    randomness = Randomness(seed=0, secret_seed=0)
    mine = _streams(0)
    firsts = [g.integers(2**62) for g in (randomness.cohort(0), randomness.noise(0))]
    assert {mine.sample(0).integers(2**62), mine.noise(0).integers(2**62)}.isdisjoint(firsts)


def test_a_wrong_number_of_numbers_is_refused() -> None:
    with pytest.raises(ValueError, match="one a client"):
        release_scalar(SHARE, lambda _: np.zeros(1), SILENT, clients=N, streams=_streams(), round=0)


def test_releases_are_counted_when_they_are_due() -> None:
    for query in (SHARE, LOSS, replace(LOSS, every=7)):
        for rounds in (1, 4, 5, 6, 20, 21):
            assert query.count(rounds) == sum(query.due(t) for t in range(rounds))
    assert LOSS.due(0)


def test_a_plan_with_the_scalars_pays_for_them() -> None:
    noises = (SEARCHED.scaled(5.0), Laplace(b=9.0), Gaussian(sigma=12.0))
    others = entries_of(QUERIES, noises, clients=N, rounds=30)
    assert [count for _, count in others] == [30, 30, 6]
    main = Mechanism(
        noise=Gaussian(sigma=1.0),
        sensitivity=Sensitivity(bound=0.3, dim=50),
        sampling=Sampling(rate=0.1),
    )
    target = Target(epsilon=2.0, delta=1e-5)
    plan = calibrate_scale(main, target, steps=30, others=others)
    done = PLD().compose_ledger(Ledger(plan.entries))
    assert done.epsilon(1e-5) <= 2.0 * (1 + 1e-3)
    assert plan.mechanism.noise.std > calibrate_scale(main, target, steps=30).mechanism.noise.std
    check_others(plan.others, QUERIES, clients=N, rounds=30)
    for queries, clients, rounds in (
        (QUERIES[:2], N, 30),
        ((), N, 30),
        ((COUNT, SHARE, LOSS), N, 30),
        ((replace(SHARE, high=2.0), COUNT, LOSS), N, 30),
        ((replace(SHARE, of="sum"), COUNT, LOSS), N, 30),
        ((replace(SHARE, cohort=41), COUNT, LOSS), N, 30),
        ((SHARE, COUNT, replace(LOSS, every=6)), N, 30),
        (QUERIES, N + 1, 30),
        (QUERIES, N, 31),
    ):
        with pytest.raises(ValueError, match="made for another"):
            check_others(plan.others, queries, clients=clients, rounds=rounds)


def test_what_has_no_pair_for_a_scalar_sum_is_refused() -> None:
    with pytest.raises(NoDominatingPair, match="whole numbers"):
        scalar_mechanism(SHARE, DiscreteGaussian(sigma=3.0), clients=N)
    with pytest.raises(ValueError, match="name a law"):
        scalar_mechanism(SHARE, ApproximateDP(epsilon=1.0), clients=N)
    with pytest.raises(ValueError, match="cohort=40"):
        scalar_mechanism(SHARE, SEARCHED, clients=39)
    for bad in ({"cohort": 0.0}, {"low": 1.0}, {"high": math.inf}, {"of": "max"}, {"every": 0}):
        with pytest.raises(ValueError, match="Expected"):
            replace(SHARE, **bad)


def test_a_joint_release_costs_what_the_vectors_alone_did() -> None:
    planned = Mechanism(
        noise=Gaussian(sigma=0.4),
        sensitivity=Sensitivity(bound=0.3, dim=50),
        sampling=Sampling(rate=0.1),
    )
    noise = Gaussian(sigma=3.0)
    split = split_jointly(planned, SHARE, noise)
    together = joint(split, SHARE, noise)
    assert replace(split, noise=planned.noise) == planned
    assert together.sampling == planned.sampling
    assert together.sensitivity.dim == 51
    ratio = together.sensitivity.bound / together.noise.std
    assert ratio <= 0.3 / 0.4
    assert ratio == pytest.approx(0.75, rel=1e-10)
    assert split.noise.std == pytest.approx(0.3 / math.sqrt(0.75**2 - (0.5 / 3) ** 2))
    costs = [PLD().compose(m, 40).epsilon(1e-5) for m in (planned, together, split)]
    assert costs[1] == pytest.approx(costs[0], rel=1e-6)
    assert costs[2] < 0.98 * costs[0]  # had the scalar been forgotten
    # The two of one sample as two samples: what a ledger must not say.
    apart = Mechanism(noise=noise, sensitivity=Sensitivity(bound=0.5), sampling=planned.sampling)
    assert PLD().compose(split, 40).compose(apart, 40).epsilon(1e-5) < costs[0]


def test_only_gaussian_releases_are_joint() -> None:
    planned = Mechanism(noise=Gaussian(sigma=1.0), sampling=Sampling(rate=0.1))
    with pytest.raises(NoDominatingPair, match="sample of its own"):
        split_jointly(planned, SHARE, Laplace(b=3.0))
    with pytest.raises(NoDominatingPair, match="sample of its own"):
        split_jointly(replace(planned, noise=Laplace(b=1.0)), SHARE, Gaussian(sigma=9.0))
    with pytest.raises(ValueError, match="give the query more noise"):
        split_jointly(planned, SHARE, Gaussian(sigma=0.5))


def test_the_clip_asks_for_a_share() -> None:
    query = AdaptiveClip(cohort=7.0).query
    assert (query.cohort, query.bound, query.centre, query.every) == (7.0, 0.5, 0.5, 1)
    for bad in ({"quantile": 0.0}, {"quantile": 1.0}, {"rate": 0.0}, {"cohort": -1.0}):
        with pytest.raises(ValueError, match="Expected"):
            AdaptiveClip(**bad)
