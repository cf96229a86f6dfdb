"""Each system trains what it says, releases only that, and runs in the one loop."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy import stats

from dpmech import Gaussian, PrivacyPlan, Target
from fl_integration.batches import pad
from fl_integration.client import Tokens
from fl_integration.codec import Codec
from fl_integration.config import FederatedConfig, System
from fl_integration.data import Client, FederatedData
from fl_integration.federate import federate
from fl_integration.models import load_model
from fl_integration.options import Broadcast, SiloNoise
from fl_integration.plans import plan_for
from fl_integration.report import TrainReport
from fl_integration.spaces import HEAD_FILE, FlatSpace, FullSpace
from fl_integration.systems import check_space, head_space_for, released_dim, space_for, trained

HEAD = 3 * 32 + 3  # of the tiny model with three classes
PAIR = 4 * 4 * 32  # A, or B, of the four adapted layers at rank 4
SILOS = FederatedConfig(
    system="lora",
    unit="example",
    rank=2,
    rounds=4,
    cohort=3,
    clip=0.5,
    server_lr=1.0,
    momentum=0.0,
    silos=SiloNoise(steps=2, rate=0.2, sizes=(50, 30, 20)),
    noise_seed=3,
)


def make(config: FederatedConfig) -> FlatSpace:
    return space_for(load_model("tiny", labels=3, seed=0)[0], config)


def private(config: FederatedConfig, space: FlatSpace, *, rate: float) -> PrivacyPlan:
    target = Target(epsilon=3.0, delta=1e-5)
    dim = released_dim(space, config.system)
    return plan_for(
        config, Gaussian(sigma=1.0), target, clients=round(config.cohort / rate), dim=dim
    )


@pytest.mark.parametrize(
    ("system", "turns"),
    [
        ("lora", [2 * PAIR + HEAD]),
        ("dylora", [2 * PAIR + HEAD]),
        ("ffa-lora", [PAIR + HEAD]),
        ("rolora", [PAIR + HEAD, PAIR + HEAD]),
        ("probe", [HEAD]),
    ],
)
def test_a_round_trains_the_coordinates_of_its_system(system: System, turns: list[int]) -> None:
    space = make(FederatedConfig(system=system, rank=4))
    masks = [trained(space, system, rank=4, round=r) for r in range(len(turns))]
    assert [int(mask.sum()) for mask in masks] == turns
    assert all(bool(mask[space.head_slice(4)].all()) for mask in masks)
    assert released_dim(space, system) == max(turns)
    if system == "rolora":  # between them, A and B once each
        assert not bool((masks[0] & masks[1])[:-HEAD].any())
        assert bool((masks[0] | masks[1]).all())


def test_rolora_begins_with_b_because_a_has_no_gradient_yet() -> None:
    space = make(FederatedConfig(system="rolora", rank=2))
    first = space.unflatten(trained(space, "rolora", rank=2, round=0).float(), 2)
    assert all(bool(part.all()) == (".lora_A." not in name) for name, part in first.items())


@pytest.mark.parametrize("system", [s for s in get_args(System) if s != "dylora"])
def test_noise_reaches_what_a_round_trains_and_nothing_else(
    system: System, tokens: Tokens, config: FederatedConfig
) -> None:
    still = replace(config, system=system, local_lr=1e-30, rounds=1, server_rule="sgd", momentum=0)
    space = make(still)
    before = space.flatten(space.rank).double()
    plan = private(still, space, rate=still.cohort / 60)
    report = federate(space, tokens, still, plan)
    moved = (space.flatten(space.rank).double() - before) / still.server_lr * still.cohort
    mask = trained(space, system, rank=space.rank, round=0)
    assert not bool(moved[~mask].any())
    sigma = plan.mechanism.noise.sigma
    assert stats.kstest(moved[mask].numpy() / sigma, "norm").pvalue > 1e-4
    assert stats.kstest(moved[mask].numpy() / sigma * 3, "norm").pvalue < 1e-4
    ((ran, count),) = report.ledger.entries
    assert (ran.sensitivity.dim, count) == (int(mask.sum()), 1)


@pytest.mark.parametrize("system", get_args(System))
def test_every_system_learns_without_noise(
    system: System, tokens: Tokens, config: FederatedConfig
) -> None:
    longer = replace(
        config, system=system, clip=None, rounds=12, cohort=60, noise_seed=None, head_multiplier=20
    )
    if system == "full":
        longer = replace(longer, local_lr=0.01, head_multiplier=100, server_lr=1.0)
    report = federate(make(longer), tokens, longer, None)
    assert report.final_accuracy > 0.6 > report.majority_share


def test_full_fine_tuning_moves_every_weight_and_exports_them_by_name(
    tokens: Tokens, config: FederatedConfig, tmp_path: Path
) -> None:
    # in its first round the encoder has no gradient yet, because the head starts at zero
    twice = replace(config, system="full", rounds=2, cohort=60, clip=None)
    space = make(twice)
    before = space.flatten(1)
    federate(space, tokens, twice, None)
    parts = space.unflatten((space.flatten(1) != before), 1)
    still = {name for name, part in parts.items() if not bool(part.any())}
    assert still <= {n for n in parts if "pooler" in n or "key.bias" in n or "token_type" in n}
    space.export(tmp_path / "model", 1)
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert {name: tuple(part.shape) for name, part in stored.items()} == {
        name: tuple(part.shape) for name, part in parts.items()
    }
    assert torch.equal(torch.cat([stored[n].reshape(-1) for n in space.names]), space.flatten(1))


def test_the_full_space_runs_on_a_copy() -> None:
    space = make(FederatedConfig(system="full"))
    assert isinstance(space, FullSpace)
    stored = space.flatten(1)
    with space.use_rank(1) as live:
        live.load(torch.zeros_like(stored))
        assert not bool(live.read().any())
        assert live.scale == 1.0
    assert torch.equal(space.flatten(1), stored)
    with torch.no_grad():
        assert bool(torch.isfinite(space.classifier(*pad([[1, 20, 2]]))).all())
    with pytest.raises(ValueError, match=r"rank=2 in 1\.\.1"):
        space.flatten(2)


def test_the_space_of_a_head_start_is_the_head_alone(tmp_path: Path) -> None:
    config = FederatedConfig(system="lora")
    whole = make(config)
    head = head_space_for(whole.classifier, config)
    where = whole.head_slice(8)
    assert head.dim(8) == where.stop - where.start < whole.dim(8)
    check_space(head, replace(config, system="probe"))
    with pytest.raises(ValueError, match="space of system='lora', got a HeadSpace"):
        check_space(head, config)
    head.assign(torch.arange(head.dim(8)) / 10, 8)
    assert torch.equal(whole.flatten(8)[where], head.flatten(8))
    head.export(tmp_path, 8)
    whole.export(tmp_path / "whole", 8)
    assert (tmp_path / HEAD_FILE).read_bytes() == (tmp_path / "whole" / HEAD_FILE).read_bytes()
    with pytest.raises(ValueError, match=r"rank=9 in 1\.\.8"):
        head.export(tmp_path, 9)


def test_a_space_of_another_system_is_refused() -> None:
    lora, full = FederatedConfig(system="lora"), FederatedConfig(system="full")
    with pytest.raises(ValueError, match="space of system='full', got a AdapterSpace"):
        check_space(make(lora), full)
    with pytest.raises(ValueError, match="space of system='lora', got a FullSpace"):
        check_space(make(full), lora)
    with pytest.raises(ValueError, match="rank=8 to be the configuration's 4"):
        check_space(make(lora), replace(lora, rank=4))


@pytest.mark.parametrize("rule", ["delta", "replace"])
def test_clients_train_from_the_broadcast_and_never_see_the_weights(
    rule: Any, tokens: Tokens, config: FederatedConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantised = replace(
        config, system="lora", broadcast=Broadcast(bits=2, rule=rule), clip=None, rounds=3
    )
    seen: list[torch.Tensor] = []

    def look(cohort: Any, round: Any, total: Any) -> None:
        seen.append(round.start)
        total.add(torch.full_like(round.start, 0.01 * len(seen)).double())

    monkeypatch.setattr("fl_integration.run.executor_for", lambda _: look)
    space = make(quantised)
    start = space.flatten(4).double()
    federate(space, tokens, quantised, None)
    codec = Codec(bits=2)
    assert torch.equal(seen[0], codec.round_trip(start).float())
    step = quantised.server_lr * 0.01 / quantised.cohort  # one client answered
    begin = start if rule == "delta" else codec.round_trip(start)
    torch.testing.assert_close(seen[1], codec.round_trip(begin + step).float())


def test_a_broadcast_s_three_measures_are_in_the_report(
    tokens: Tokens, config: FederatedConfig
) -> None:
    coarse = replace(
        config, system="lora", broadcast=Broadcast(bits=1), clip=None, rounds=4, noise_seed=None
    )
    found = federate(make(coarse), tokens, coarse, None)
    measured = found.model_privacy
    assert (measured.server, measured.last) == (found.final_accuracy, 5)
    assert set(measured.gaps) == {"received", "trained", "averaged"}
    assert TrainReport.from_json(found.to_json()).model_privacy == measured
    fine = replace(coarse, broadcast=Broadcast(bits=8))
    close = federate(make(fine), tokens, fine, None).model_privacy
    assert abs(close.gaps["received"]) <= 1 / 60  # one text of the test set
    assert federate(make(config), tokens, config, None).model_privacy is None


def test_a_private_run_tells_nothing_of_its_clients_training(
    tokens: Tokens, config: FederatedConfig
) -> None:
    coarse = replace(config, system="lora", broadcast=Broadcast(bits=4), rounds=2)
    space = make(coarse)
    report = federate(space, tokens, coarse, private(coarse, space, rate=coarse.cohort / 60))
    assert set(report.model_privacy.gaps) == {"received", "averaged"}


def silo_tokens(sizes: tuple[int, ...]) -> Tokens:
    rng = np.random.default_rng(1)
    words = np.array(["red", "green", "blue", "one", "two"])

    def silo(k: int, size: int) -> Client:
        labels = rng.integers(0, 3, size)
        texts = tuple(f"{words[label]} {words[3 + i % 2]}" for i, label in enumerate(labels))
        return Client(name=f"silo-{k}", texts=texts, labels=labels)

    silos = tuple(silo(k, size) for k, size in enumerate(sizes))
    test = silo(99, 60)
    data = FederatedData(
        name="silos",
        labels=("red", "green", "blue"),
        clients=silos,
        test_texts=test.texts,
        test_labels=test.labels,
    )
    return Tokens(data, load_model("tiny", labels=3)[1])


def test_silos_spend_every_step_of_every_round_and_trust_no_server() -> None:
    config = SILOS
    sizes = config.silos.sizes
    space = make(config)
    plan = private(config, space, rate=0.2)
    assert plan.steps == 8
    report = federate(space, silo_tokens(sizes), config, plan)
    ((mechanism, count),) = report.ledger.entries
    assert (mechanism.sampling.rate, count, report.unit) == (0.2, 8, "example")
    assert report.epsilon <= 3.0
    assert "not the server" in report.trusted
    with pytest.raises(ValueError, match="steps to be 12, got 8"):
        federate(make(config), silo_tokens(sizes), replace(config, rounds=6), plan)


def test_silos_move_by_the_mean_of_noised_steps() -> None:
    config = replace(SILOS, rounds=1, local_lr=1e-30)
    sizes = config.silos.sizes
    space = make(config)
    plan = private(config, space, rate=0.2)
    before = space.flatten(2).double()
    federate(space, silo_tokens(sizes), config, plan)
    moved = (space.flatten(2).double() - before).numpy()
    # silo k moves by two noises of sigma/(q·n_k), and counts n_k/Σn: n_k cancels
    sigma = plan.mechanism.noise.sigma / 0.2 / 100 * np.sqrt(2 * 3)
    assert stats.kstest(moved / sigma, "norm").pvalue > 1e-4
    assert stats.kstest(moved / sigma * 1.5, "norm").pvalue < 1e-4


def test_the_averaged_weights_are_a_mean_that_forgets(
    tokens: Tokens, config: FederatedConfig
) -> None:
    plain = replace(config, system="lora", clip=None, rounds=3, noise_seed=None)
    weights: list[torch.Tensor] = []
    for rounds in (1, 2, 3):
        space = make(plain)
        federate(space, tokens, replace(plain, rounds=rounds), None)
        weights.append(space.flatten(4).double())
    space = make(plain)
    federate(space, tokens, replace(plain, average=0.6), None)
    expected = 0.6 * (weights[0] + weights[1]) / 2 + 0.4 * weights[2]
    torch.testing.assert_close(space.flatten(4).double(), expected, rtol=0, atol=1e-6)


def test_the_space_holds_what_was_trained_with_and_without_a_test_set(
    tokens: Tokens, config: FederatedConfig
) -> None:
    coarse = replace(config, system="lora", rounds=2, clip=None, broadcast=Broadcast(bits=2))
    data = tokens.data
    blind = replace(data, test_texts=(), test_labels=data.test_labels[:0])
    tokenizer = load_model("tiny", labels=3)[1]
    seen, unseen = make(coarse), make(coarse)
    untrained = seen.flatten(4)
    federate(seen, tokens, coarse, None)
    federate(unseen, Tokens(blind, tokenizer), coarse, None)
    assert not torch.equal(seen.flatten(4), untrained)
    assert torch.equal(unseen.flatten(4), seen.flatten(4))


def test_units_and_options_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ValueError, match="unit='example' with SiloNoise"):
        FederatedConfig(silos=SiloNoise())
    with pytest.raises(ValueError, match="max_texts=1 with unit='example', got 16"):
        FederatedConfig(unit="example")
    with pytest.raises(ValueError, match="rank_probabilities"):
        FederatedConfig(system="ffa-lora", rank=1, rank_probabilities=(1.0,))
    with pytest.raises(ValueError, match="system='lara' to be one of"):
        FederatedConfig(system="lara")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="clips='batch' to be 'example'"):
        SiloNoise(clips="batch")  # type: ignore[arg-type]


def test_options_survive_json() -> None:
    config = FederatedConfig(
        unit="example", silos=SiloNoise(sizes=(3, 4)), broadcast=Broadcast(bits=1.5), targets=("q",)
    )
    assert FederatedConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
