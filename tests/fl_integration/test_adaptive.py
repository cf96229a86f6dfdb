"""The clip follows released shares alone, and the mechanism is the same whatever the clip is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from dpmech import Gaussian, PrivacyPlan
from fl_integration.adaptive import (
    LARGEST,
    SMALLEST,
    ClipBits,
    next_clip,
)
from fl_integration.client import Tokens
from fl_integration.clipping import ClippedSum
from fl_integration.cohort import Cohort, Round, loop_sum, merged_sum
from fl_integration.config import FederatedConfig
from fl_integration.federate import released
from fl_integration.queries import AdaptiveClip
from fl_integration.run import Run
from fl_integration.sampler import Randomness
from fl_integration.scalars import Streams, contributions, release_scalar

ADAPTIVE = AdaptiveClip(quantile=0.5, rate=0.2, cohort=30.0)


def test_the_clip_moves_as_in_the_paper() -> None:
    for share in (-0.3, 0.0, 0.5, 0.8, 1.0):
        wanted = 0.7 * math.exp(-0.2 * (share - 0.5))
        assert next_clip(ADAPTIVE, 0.7, share, initial=0.5) == pytest.approx(wanted, rel=1e-12)
    sharp = AdaptiveClip(quantile=0.9, rate=2.0)
    assert next_clip(sharp, 1.0, 0.9, initial=1.0) == 1.0
    assert next_clip(sharp, 1.0, 0.0, initial=1.0) == pytest.approx(math.exp(1.8))


@given(st.floats(1e-3, 1e3), st.floats(allow_nan=False, allow_infinity=False), st.floats(1e-6, 1e6))
def test_the_clip_stays_in_its_range(relative: float, share: float, initial: float) -> None:
    clip = next_clip(ADAPTIVE, initial * relative, share, initial=initial)
    assert SMALLEST * initial <= clip <= LARGEST * initial


def test_the_clip_finds_the_quantile_through_the_noise() -> None:
    norms = np.random.default_rng(0).lognormal(mean=1.0, sigma=1.0, size=2000)
    for quantile in (0.2, 0.5, 0.8):
        adaptive = AdaptiveClip(quantile=quantile, rate=0.2, cohort=100.0)
        clip, later = 0.1, []
        for round in range(200):
            share = release_scalar(
                adaptive.query,
                lambda clients, clip=clip: (norms[clients] <= clip).astype(float),
                Gaussian(sigma=4.0),
                clients=2000,
                streams=Streams(randomness=Randomness(seed=0, secret_seed=0), place=0),
                round=round,
            )
            clip = next_clip(adaptive, clip, share, initial=0.1)
            later.append(clip)
        reached = float(np.mean(norms <= np.median(later[100:])))
        assert reached == pytest.approx(quantile, abs=0.05)


@pytest.fixture
def moved(
    make_space: Callable[..., Any],
    tokens: Tokens,
    config: FederatedConfig,
    make_plan: Callable[..., PrivacyPlan],
) -> Callable[..., Tensor]:
    """The sum that the loop releases at a clip for some clients, always with the same noise."""
    config = replace(config, system="lora", local_lr=1.0)
    space = make_space()
    run = Run.prepare(space, tokens, config, make_plan(config, dim=space.dim(4)))

    def sum_of(clip: float, clients: Sequence[int]) -> Tensor:
        drawn = np.asarray(clients, dtype=np.int64)
        round = Round(index=0, rank=4, clients=drawn, start=space.flatten(4))
        return config.cohort * released(run, round, clip, lambda: None)[0]

    return sum_of


@pytest.mark.parametrize("relative", [1e-3, 0.1, 1.0, 5.0])
def test_in_units_of_the_clip_the_mechanism_is_the_planned_one(
    moved: Callable[..., Tensor], config: FederatedConfig, relative: float
) -> None:
    initial = config.clip
    clip = relative * initial
    with_all = moved(clip, range(30))
    for client in (3, 17):
        without = moved(clip, [i for i in range(30) if i != client])
        weight = (with_all - without).norm().item() / relative
        assert weight <= initial * (1 + 1e-9)
        assert weight == pytest.approx(initial, rel=1e-5)  # all are clipped: nothing is wasted
    law = Gaussian(sigma=initial)  # that of make_plan
    drawn = moved(clip, []).numpy() / relative
    assert stats.kstest(drawn, law.cdf).pvalue > 1e-6
    for wrong in (2 / 3, 3 / 2):
        assert stats.kstest(drawn, law.scaled(wrong).cdf).pvalue < 1e-4


@pytest.fixture
def bits(
    make_space: Callable[..., Any], tokens: Tokens, config: FederatedConfig
) -> Callable[..., ClipBits]:
    def make(clip: float, executor: Any = merged_sum) -> ClipBits:
        space = make_space()
        cohort = Cohort(
            space=space, tokens=tokens, config=config, randomness=Randomness(seed=0, secret_seed=0)
        )
        nobody = np.zeros(0, dtype=np.int64)
        round = Round(index=0, rank=4, clients=nobody, start=space.flatten(4))
        return ClipBits(cohort=cohort, round=round, clip=clip, executor=executor)

    return make


@pytest.mark.parametrize("executor", [merged_sum, loop_sum])
def test_bits_are_those_of_the_norms_before_the_clip(
    bits: Callable[..., ClipBits], executor: Any
) -> None:
    clients = np.arange(20)
    asked = bits(1.0, executor)
    total = ClippedSum(len(asked.round.start), None, keep_norms=True)
    merged_sum(asked.cohort, replace(asked.round, clients=clients), total)
    middle = float(np.median(total.norms))
    found = bits(middle, executor)(clients)
    assert found.shape == (20,)  # a bit for each client, and one only
    assert found.sum() == np.sum(np.asarray(total.norms) <= middle)
    assert 5 < found.sum() < 15
    assert bits(1e9)(clients).tolist() == [1.0] * 20
    assert bits(1e-9)(clients).tolist() == [0.0] * 20
    assert bits(1.0)(clients[:0]).shape == (0,)


def crowded(cohort: Cohort, round: Round, total: ClippedSum) -> None:
    """The loop, with a rounding that depends on how many take part."""
    for client in round.clients.tolist():
        one = ClippedSum(len(round.start), None)
        loop_sum(cohort, replace(round, clients=np.asarray([client])), one)
        total.add(one.value * (1 + 1e-6 * len(round.clients)))


@pytest.mark.parametrize("executor", [crowded, merged_sum])
def test_a_bit_depends_on_no_other_client(bits: Callable[..., ClipBits], executor: Any) -> None:
    """One client more moves the count by its own bit, though another is right at the clip."""
    clients = np.arange(8)
    for client in (0, 3, 7):
        alone = ClippedSum(len(bits(1.0).round.start), None, keep_norms=True)
        asked = bits(1.0)
        loop_sum(asked.cohort, replace(asked.round, clients=np.asarray([client])), alone)
        asked = bits(alone.norms[0], executor)  # the least clip that it is within
        own = [asked(np.asarray([i]))[0] for i in clients]
        assert own[client] == 1.0
        for company in ([client, 5, 6], clients):
            assert asked(np.asarray(company)).sum() == sum(own[i] for i in company)


def test_clients_that_do_not_answer_add_nothing(bits: Callable[..., ClipBits]) -> None:
    class Deaf:
        alone = True

        def __call__(self, cohort: Cohort, round: Round, total: ClippedSum) -> None:
            loop_sum(cohort, replace(round, clients=round.clients[1::2]), total)

    found = bits(1e9, Deaf())(np.arange(7))
    assert found.shape == (7,)
    assert np.nansum(found) == 3
    assert np.isnan(found).sum() == 4
    assert contributions(ADAPTIVE.query, found).sum() == pytest.approx(1.5, rel=1e-8)
    assert np.isnan(bits(1e9, Deaf())(np.arange(1))).tolist() == [True]


def test_a_client_whose_training_diverges_says_nothing(bits: Callable[..., ClipBits]) -> None:
    asked = bits(1.0)
    embedding = asked.cohort.space.classifier.encoder.get_input_embeddings()
    embedding.weight.data[:] = float("nan")
    found = asked(np.arange(5))
    assert np.isnan(found).all()
    assert not contributions(ADAPTIVE.query, found).any()
