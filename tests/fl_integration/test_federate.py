"""The loop adds the noise it accounts for, pays for every round, and survives being killed."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from dpmech import Gaussian, Laplace, NoDominatingPair, PrivacyPlan
from dpmech.drawing import seeded_words
from fl_integration import noise_sampler, sampler
from fl_integration.accounting import mechanism_for
from fl_integration.adapters import AdapterSpace
from fl_integration.client import Tokens
from fl_integration.config import FederatedConfig
from fl_integration.data import Client, FederatedData
from fl_integration.extrapolate import extrapolate
from fl_integration.federate import federate
from fl_integration.models import load_model
from fl_integration.options import HeadStart
from fl_integration.sampler import Randomness
from fl_integration.server import noisy_mean
from fl_integration.train import TrainRequest, train

# the function of the same name hides the module as an attribute of the package
federate_module = import_module("fl_integration.federate")
checkpoint_module = import_module("fl_integration.checkpoint")
SpaceMaker = Callable[..., AdapterSpace]
PlanMaker = Callable[..., PrivacyPlan]


@pytest.fixture
def silent(federated_data: FederatedData) -> Tokens:
    """Sixty clients without a text: their sum is zero, so a round releases pure noise."""
    nobody = Client(name="nobody", texts=(), labels=np.zeros(0, dtype=np.int64))
    data = replace(federated_data, clients=(nobody,) * 60)
    return Tokens(data, load_model("tiny", labels=3)[1])


def _released(space: AdapterSpace, before: torch.Tensor, config: FederatedConfig) -> np.ndarray:
    """What the server released in a run of one round: update × denominator."""
    moved = (space.flatten(space.rank).double() - before) / config.server_lr
    return (moved * config.cohort).numpy()


@pytest.mark.parametrize("forecast", [False, True])
def test_the_noise_of_the_loop_follows_the_law_of_the_ledger(
    make_space: SpaceMaker,
    silent: Tokens,
    config: FederatedConfig,
    make_plan: PlanMaker,
    forecast: bool,
) -> None:
    space = make_space()
    before = space.flatten(4).double()
    config = replace(config, system="lora", rounds=1, momentum=0.0, server_lr=0.7)
    if forecast:  # c' = 150 of 600 against c = 15 of 60: a tenth of the noise
        plan = make_plan(replace(config, cohort=150), dim=space.dim(4), clients=600)
        privacy: Any = extrapolate(plan, population=600, simulated_clients=60, simulated_cohort=15)
        sigma = 0.1 * config.clip
    else:
        privacy, sigma = make_plan(config, dim=space.dim(4)), config.clip
    report = federate(space, silent, config, privacy)
    released = _released(space, before, config)
    ((mechanism, count),) = report.ledger.entries
    law = mechanism.noise
    assert count == 1
    assert mechanism == mechanism_for(config, law, clients=60, dim=space.dim(4))
    assert math.sqrt(law.variance) == pytest.approx(sigma)
    assert stats.kstest(released, law.cdf).pvalue > 1e-3
    for wrong in (2 / 3, 3 / 2):  # the test has the power to see a wrong scale
        assert stats.kstest(released, law.scaled(wrong).cdf).pvalue < 1e-6


def test_an_empty_cohort_releases_noise_and_is_paid_for(
    make_space: SpaceMaker,
    tokens: Tokens,
    config: FederatedConfig,
    make_plan: PlanMaker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nobody = np.zeros(0, dtype=np.int64)
    monkeypatch.setattr("fl_integration.run.poisson_cohort", lambda *_, **__: nobody)
    space = make_space()
    before = space.flatten(4)
    report = federate(space, tokens, config, make_plan(config, dim=space.dim(4)))
    assert report.ledger.runs == config.rounds
    assert (space.flatten(4) - before).abs().max() > 0


def test_the_ledger_is_what_ran_and_keeps_the_plan(
    make_space: SpaceMaker, tokens: Tokens, config: FederatedConfig, make_plan: PlanMaker
) -> None:
    space = make_space()
    plan = make_plan(config, dim=space.dim(4))
    report = federate(space, tokens, config, plan)
    ranks = [metrics.rank for metrics in report.rounds]
    ran = [m.sensitivity.dim for m, count in report.ledger.entries for _ in range(count)]
    assert ran == [space.dim(rank) for rank in ranks]
    assert len(set(ranks)) > 1
    assert report.epsilon <= plan.epsilon * (1 + 1e-6)
    assert report.epsilon > 0.9 * plan.epsilon
    assert (report.unit, report.relation, report.sampling) == ("user", "add-remove", "poisson")


def test_training_learns_without_and_with_noise(
    make_space: SpaceMaker, tokens: Tokens, config: FederatedConfig, make_plan: PlanMaker
) -> None:
    config = replace(config, rounds=15, cohort=30, eval_every=15, server_lr=3.0)
    space = make_space()
    free = federate(space, tokens, config)
    assert free.final_accuracy > free.majority_share + 0.15
    assert free.epsilon is None
    assert free.rounds[0].cohort_size > 0
    space = make_space()
    noise = Gaussian(sigma=0.5 * config.clip)
    held = federate(space, tokens, config, make_plan(config, dim=space.dim(4), noise=noise))
    assert held.final_accuracy > held.majority_share + 0.15
    assert held.accuracy_by_rank.keys() == {1, 2, 4}
    one_rank = federate(make_space(), tokens, replace(config, system="lora", rounds=1))
    assert one_rank.accuracy_by_rank.keys() == {4}  # no other was trained


def test_the_rank_does_not_depend_on_data_or_cohort(
    make_space: SpaceMaker, tokens: Tokens, silent: Tokens, config: FederatedConfig
) -> None:
    config = replace(config, rounds=20, eval_every=20)

    def ranks(texts: Tokens, config: FederatedConfig) -> list[int]:
        return [metrics.rank for metrics in federate(make_space(), texts, config).rounds]

    drawn = ranks(tokens, config)
    assert len(set(drawn)) == 4
    assert ranks(silent, replace(config, noise_seed=1, cohort=3)) == drawn
    assert ranks(silent, replace(config, seed=1)) != drawn


def test_a_private_report_does_not_tell_what_clients_did(
    make_space: SpaceMaker, tokens: Tokens, config: FederatedConfig, make_plan: PlanMaker
) -> None:
    space = make_space()
    report = federate(space, tokens, config, make_plan(config, dim=space.dim(4)))
    for metrics in report.rounds:
        assert metrics.cohort_size is metrics.delta_norm is metrics.clipped is None
        assert metrics.expected_cohort == config.cohort
    assert "cohort_size" not in report.to_json()


def test_private_noise_and_cohort_are_not_reproducible_unless_asked(
    make_space: SpaceMaker,
    tokens: Tokens,
    silent: Tokens,
    config: FederatedConfig,
    make_plan: PlanMaker,
) -> None:
    def weights(texts: Tokens, config: FederatedConfig) -> torch.Tensor:
        space = make_space()
        federate(space, texts, config, make_plan(config, dim=space.dim(4)))
        return space.flatten(4)

    assert torch.equal(weights(tokens, config), weights(tokens, config))
    secret = replace(config, noise_seed=None)
    assert not torch.equal(weights(silent, secret), weights(silent, secret))


def test_a_secret_run_draws_from_the_secret_words_and_from_nothing_else(
    make_space: SpaceMaker,
    tokens: Tokens,
    config: FederatedConfig,
    make_plan: PlanMaker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the same words the same run; a generator that seeds itself would give another."""
    secret = replace(config, noise_seed=None, rounds=2)
    plan = make_plan(secret, dim=make_space().dim(4))

    def weights(seed: int) -> torch.Tensor:
        words = seeded_words(np.random.default_rng(seed))
        for module in (sampler, noise_sampler):
            monkeypatch.setattr(module, "secret_words", words)
        space = make_space()
        federate(space, tokens, secret, plan)
        return space.flatten(4)

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


def test_a_head_start_adds_other_noise_than_its_run(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both phases count their rounds from 0, and are paid for as independent releases."""
    firsts: list[list[float]] = []

    def recorded(total: torch.Tensor, *, rng: np.random.Generator, **how: Any) -> torch.Tensor:
        firsts.append(copy.deepcopy(rng).normal(size=3).tolist())
        return noisy_mean(total, rng=rng, **how)

    monkeypatch.setattr(federate_module, "noisy_mean", recorded)
    config = FederatedConfig(
        system="lora",
        rank=2,
        rounds=3,
        cohort=6,
        clip=0.5,
        head_start=HeadStart(rounds=3, cohort=6),
        noise_seed=5,
    )
    request = TrainRequest(data=texts, config=config, out=tmp_path / "out", model="tiny", epsilon=9)
    train(request)
    assert len(firsts) == len({tuple(first) for first in firsts}) == 6
    # without a head start, a seed gives the streams that it always gave
    wanted = [Randomness(seed=0, secret_seed=5).noise(t).normal(size=3).tolist() for t in range(3)]
    assert firsts[3:] == wanted


def _other(plan: PrivacyPlan, **changes: Any) -> PrivacyPlan:
    """A plan whose mechanism differs in one thing."""
    mechanism = plan.mechanism
    if "rate" in changes:
        mechanism = replace(mechanism, sampling=replace(mechanism.sampling, **changes))
    elif changes.keys() & {"norm", "bound", "dim"}:
        mechanism = replace(mechanism, sensitivity=replace(mechanism.sensitivity, **changes))
    elif "noise" in changes:
        mechanism = replace(mechanism, **changes)
    else:
        return replace(plan, **changes)
    return replace(plan, mechanism=mechanism)


class _Never(Tokens):
    """Clients that must not be asked."""

    def client(self, index: int) -> list[list[int]]:
        raise AssertionError(f"client {index} was asked")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"norm": "l1"}, "norm"),
        ({"bound": 0.25}, "0.25"),
        ({"dim": 7}, "dim to be .*, got 7"),
        ({"rate": 0.1}, "sampling rate to be 0.25, got 0.1"),
        ({"steps": 5}, "steps to be 6, got 5"),
        ({"noise": Gaussian(sigma=0.2)}, "costs"),
        ({"accountant": "magic"}, "magic"),
    ],
)
def test_a_plan_for_another_run_is_refused_before_any_client_is_asked(
    lab: Any, changes: dict[str, Any], said: str
) -> None:
    space = lab.make_space()
    plan = _other(lab.make_plan(lab.config, dim=space.dim(4)), **changes)
    tokens = _Never(lab.data, load_model("tiny", labels=3)[1])
    with pytest.raises(ValueError, match=said):
        federate(space, tokens, lab.config, plan, checkpoint_dir=lab.folder)
    assert not list(lab.folder.iterdir())


def test_a_law_without_a_proof_is_refused_before_any_client_is_asked(
    make_space: SpaceMaker,
    federated_data: FederatedData,
    config: FederatedConfig,
    make_plan: PlanMaker,
) -> None:
    space = make_space()
    plan = _other(make_plan(config, dim=space.dim(4)), noise=Laplace(b=1.0))
    with pytest.raises(NoDominatingPair, match="laplace"):
        federate(space, _Never(federated_data, load_model("tiny", labels=3)[1]), config, plan)


def test_other_mismatches_are_refused(
    make_space: SpaceMaker, tokens: Tokens, config: FederatedConfig, make_plan: PlanMaker
) -> None:
    space = make_space()
    plan = make_plan(config, dim=space.dim(4))
    with pytest.raises(ValueError, match="clip=None"):
        federate(space, tokens, replace(config, clip=None), plan)
    with pytest.raises(ValueError, match=r"cohort=61 <= 60"):
        federate(space, tokens, replace(config, cohort=61))
    with pytest.raises(ValueError, match="rank=4"):
        federate(space, tokens, replace(config, rank=3))
    with pytest.raises(ValueError, match="scale='rs'"):
        federate(space, tokens, replace(config, scale="fixed"))


def test_a_diverged_model_is_wrong_and_not_an_error(
    make_space: SpaceMaker, tokens: Tokens, config: FederatedConfig
) -> None:
    wild = replace(config, server_lr=1e30, clip=None, rounds=3, eval_every=1)
    report = federate(make_space(), tokens, wild)
    assert 0 <= report.final_accuracy <= 1


@pytest.mark.parametrize("size", [1, 3, 40])
def test_the_denominator_is_the_expected_cohort_whoever_came(
    make_space: SpaceMaker,
    tokens: Tokens,
    config: FederatedConfig,
    monkeypatch: pytest.MonkeyPatch,
    size: int,
) -> None:
    sums: list[torch.Tensor] = []

    def fixed(cohort: Any, round: Any, total: Any) -> None:
        total.add(torch.ones(cohort.space.dim(round.rank)))
        sums.append(total.value)

    came = np.arange(size)
    monkeypatch.setattr("fl_integration.run.poisson_cohort", lambda *_, **__: came)
    monkeypatch.setattr("fl_integration.run.executor_for", lambda _: fixed)
    space = make_space()
    before = space.flatten(4)
    config = replace(config, system="lora", rounds=1, momentum=0.0, server_lr=1.0)
    federate(space, tokens, config)
    moved = space.flatten(4) - before
    torch.testing.assert_close(moved, (sums[0] / config.cohort).float(), rtol=1e-3, atol=1e-7)
