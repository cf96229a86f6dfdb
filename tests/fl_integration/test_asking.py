"""Scalars and an adaptive clip inside a run: asked, noised, and in the same ledger."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch

from accountants.calibrate import calibrate_scale
from dpmech import Gaussian, Laplace, Mechanism, PrivacyPlan, Sampling, Sensitivity, Target
from fl_integration.adapters import AdapterSpace
from fl_integration.client import Tokens
from fl_integration.config import FederatedConfig
from fl_integration.extrapolate import extrapolate
from fl_integration.federate import federate
from fl_integration.queries import AdaptiveClip, ScalarQuery
from fl_integration.scalars import entries_of

# the function of the same name hides the module as an attribute of the package
federate_module = import_module("fl_integration.federate")
SpaceMaker = Callable[..., AdapterSpace]
CLIENTS = 60


@pytest.fixture
def asking(config: FederatedConfig) -> FederatedConfig:
    return replace(
        config,
        system="lora",
        adaptive=AdaptiveClip(quantile=0.3, rate=0.5, cohort=12),
        scalars=(ScalarQuery(name="answers", cohort=30, of="sum", every=3),),
    )


def planned(config: FederatedConfig, *, dim: int, spent: Any = ()) -> PrivacyPlan:
    noises = [Laplace(b=0.5), Gaussian(sigma=3.0)][: len(config.queries)]
    others = (*spent, *entries_of(config.queries, noises, clients=CLIENTS, rounds=config.rounds))
    release = Mechanism(
        noise=Gaussian(sigma=1.0),
        sensitivity=Sensitivity(norm="l2", bound=config.clip, dim=dim),
        sampling=Sampling(rate=config.cohort / CLIENTS),
    )
    target = Target(epsilon=40.0, delta=1e-5)
    return calibrate_scale(release, target, steps=config.rounds, others=others)


def test_every_release_of_a_run_is_in_its_ledger(
    make_space: SpaceMaker, tokens: Tokens, asking: FederatedConfig
) -> None:
    space = make_space()
    plan = planned(asking, dim=space.dim(4))
    report = federate(space, tokens, asking, plan)
    counts = dict(report.ledger.collected().entries)
    assert counts == {plan.mechanism: 6, plan.others[0][0]: 6, plan.others[1][0]: 2}
    assert report.epsilon <= 40.0
    asked = [metrics.scalars for metrics in report.rounds]
    assert [set(answers) for answers in asked] == [
        {"share within the clip", "answers"} if i % 3 == 0 else {"share within the clip"}
        for i in range(6)
    ]
    # 60 clients, give or take a Poisson sample of half of them (sd 7.7) and noise (sd 6)
    assert abs(asked[0]["answers"] - CLIENTS) < 50


def test_the_clip_follows_what_was_released_and_nothing_else(
    make_space: SpaceMaker, tokens: Tokens, asking: FederatedConfig
) -> None:
    space = make_space()
    report = federate(space, tokens, asking, planned(asking, dim=space.dim(4)))
    clip = asking.clip
    for metrics in report.rounds:
        assert metrics.clip == pytest.approx(clip)
        clip *= np.exp(-0.5 * (metrics.scalars["share within the clip"] - 0.3))
    assert len({metrics.clip for metrics in report.rounds}) == 6


def test_without_privacy_the_clip_reaches_its_quantile(
    make_space: SpaceMaker, tokens: Tokens, asking: FederatedConfig
) -> None:
    longer = replace(asking, rounds=40, cohort=60, local_lr=0.01, clip=5.0, server_lr=1e-9)
    report = federate(make_space(), tokens, replace(longer, noise_seed=None), None)
    last = [metrics.clipped for metrics in report.rounds[-10:]]
    assert np.mean(last) == pytest.approx(0.7, abs=0.1)


def test_the_noise_grows_and_shrinks_with_the_clip(
    make_space: SpaceMaker,
    tokens: Tokens,
    asking: FederatedConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    still = replace(asking, local_lr=1e-30, server_lr=1.0, momentum=0.0, rounds=2, scalars=())
    monkeypatch.setattr(federate_module, "next_clip", lambda *_, **__: 8 * still.clip)
    moves: list[torch.Tensor] = []
    space = make_space()
    weights = [space.flatten(4).double()]
    for rounds in (1, 2):
        run = replace(still, rounds=rounds)
        space = make_space()
        federate(space, tokens, run, planned(run, dim=space.dim(4)))
        weights.append(space.flatten(4).double())
        sigma = planned(run, dim=space.dim(4)).mechanism.noise.sigma
        moves.append((weights[-1] - weights[0]) * run.cohort / sigma)
    first, both = (float(move.std()) for move in moves)
    assert first == pytest.approx(1.0, rel=0.1)
    assert both == pytest.approx(np.sqrt(1 + 8**2), rel=0.1)


def test_what_was_spent_before_opens_the_ledger(
    make_space: SpaceMaker, tokens: Tokens, config: FederatedConfig
) -> None:
    space = make_space()
    probe = Mechanism(noise=Gaussian(sigma=2.0), sampling=Sampling(rate=0.5))
    plan = planned(config, dim=space.dim(4), spent=((probe, 5),))
    report = federate(space, tokens, config, plan)
    assert report.ledger.entries[0] == (probe, 5)
    assert sum(count for _, count in report.ledger.entries) == 5 + config.rounds
    without = replace(plan, others=())
    assert report.epsilon > federate(make_space(), tokens, config, without).epsilon


def test_plans_and_configurations_that_ask_differently_are_refused(
    make_space: SpaceMaker, tokens: Tokens, asking: FederatedConfig
) -> None:
    space = make_space()
    plan = planned(asking, dim=space.dim(4))
    fewer = replace(asking, scalars=())
    with pytest.raises(ValueError, match=r"number of other releases|share within the clip"):
        federate(space, tokens, fewer, plan)
    with pytest.raises(ValueError, match="number of other releases to be 2, got 1"):
        federate(space, tokens, asking, planned(fewer, dim=space.dim(4)))
    odd = replace(asking, scalars=(ScalarQuery(name="shoe size", cohort=9),))
    with pytest.raises(ValueError, match="'shoe size' to be one of"):
        federate(space, tokens, odd, planned(odd, dim=space.dim(4)))
    forecast = extrapolate(
        plan, population=600, simulated_clients=CLIENTS, simulated_cohort=asking.cohort
    )
    with pytest.raises(ValueError, match="a forecast of vectors alone, got 2 queries"):
        federate(space, tokens, asking, forecast)
    with pytest.raises(ValueError, match="clip=None to be a number to start"):
        replace(asking, clip=None)


@pytest.mark.parametrize("kill", [0, 3])
def test_a_killed_round_counts_its_scalars_too(
    make_space: SpaceMaker,
    tokens: Tokens,
    asking: FederatedConfig,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Any,
    kill: int,
) -> None:
    secret = replace(asking, noise_seed=None)
    space = make_space()
    plan = planned(secret, dim=space.dim(4))

    def die(*_: Any) -> Any:
        raise KeyboardInterrupt

    honest = federate_module.asked
    rounds: list[int] = []

    def once(run: Any, round: Any, state: Any) -> Any:
        rounds.append(round.index)
        return (
            die() if round.index == kill and len(rounds) == kill + 1 else honest(run, round, state)
        )

    monkeypatch.setattr(federate_module, "asked", once)
    with pytest.raises(KeyboardInterrupt):
        federate(space, tokens, secret, plan, checkpoint_dir=tmp_path)
    report = federate(make_space(), tokens, secret, plan, checkpoint_dir=tmp_path)
    counts = dict(report.ledger.collected().entries)
    assert counts == {plan.mechanism: 6, plan.others[0][0]: 6, plan.others[1][0]: 2}
    assert [metrics.round for metrics in report.rounds if metrics.burnt] == [kill]


def test_scalars_survive_json(asking: FederatedConfig) -> None:
    assert FederatedConfig.from_dict(json.loads(json.dumps(asking.to_dict()))) == asking
