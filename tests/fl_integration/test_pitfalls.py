"""What is easily done wrong, system by system (federated.md §3): each test bites when it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from safetensors import safe_open
from scipy import stats
from torch import Tensor

from accountants import Ledger, accountant_named
from dpmech import Gaussian, NoDominatingPair, PrivacyPlan, Sampling
from dpmech.noise import Floats
from fl_integration.client import Tokens
from fl_integration.clipping import ClippedSum
from fl_integration.cohort import Cohort, Executor, Round, loop_sum, merged_sum
from fl_integration.config import FederatedConfig, System
from fl_integration.data import Client, FederatedData, load_data
from fl_integration.dealing import Dealing
from fl_integration.federate import federate
from fl_integration.models import load_model
from fl_integration.options import HeadStart
from fl_integration.probing import ProbeSum
from fl_integration.queries import AdaptiveClip
from fl_integration.rows import Text, held_out
from fl_integration.sampler import Randomness
from fl_integration.spaces import FlatSpace
from fl_integration.systems import released_dim, space_for, trained
from fl_integration.train import TrainRequest, data_for, train
from fl_integration.vmapped import vmap_sum

# the function of the same name hides the module as an attribute of the package
train_module = import_module("fl_integration.train")
PlanMaker = Callable[..., PrivacyPlan]
EXECUTORS: list[Callable[[], Executor]] = [
    lambda: loop_sum,
    lambda: merged_sum,
    lambda: vmap_sum,
    ProbeSum,
]
NAMES = ["loop", "merged", "vmap", "probe"]
POISON = 499  # a token of nobody else's


def made(config: FederatedConfig) -> FlatSpace:
    return space_for(load_model("tiny", labels=3, seed=0)[0], config)


def silenced(data: FederatedData) -> FederatedData:
    """The same federation, nobody having a text."""
    nobody = Client(name="nobody", texts=(), labels=np.zeros(0, dtype=np.int64))
    return replace(data, clients=(nobody,) * len(data.clients))


class Poisoned(Tokens):
    """Client 7 sends a token whose embedding is not of this world."""

    def client(self, index: int) -> list[list[int]]:
        ids = super().client(index)
        return [[POISON] * 20 for _ in ids] if index == 7 else ids


def stored_weights(folder: Path) -> Tensor:
    """The server's weights in fp64, of the last round that was committed."""
    with safe_open(str(folder / "state.safetensors"), framework="pt") as file:
        return file.get_tensor("weights")


# One client, or one text, decides about nothing that another sends


def named_rows(path: Path, *, without: Callable[[int, int], bool]) -> Path:
    """A table of 30 clients of 12 texts each, some left out."""
    texts = [
        f"{word} {n} {k}\t{'ab'[k % 2]}\tc{n:02d}"
        for n in range(30)
        for k, word in enumerate(["red", "old", "new", "big"] * 3)
        if not without(n, k)
    ]
    path.write_text("\n".join(["text\tlabel\tclient", *texts]) + "\n", encoding="utf-8")
    return path


def held(data: FederatedData) -> dict[str, tuple[Text, ...]]:
    return {client.name: client.texts for client in data.clients}


@pytest.mark.parametrize("make", EXECUTORS, ids=NAMES)
def test_a_client_that_leaves_takes_no_more_than_the_clip_along(
    tmp_path: Path, config: FederatedConfig, make: Callable[[], Executor]
) -> None:
    # the first of the list, of clients with more texts than a round takes: by place, all who come
    # after it would train on others of their texts
    probe = replace(config, system="probe", local_lr=10.0, max_texts=3)
    space = made(probe)
    start = space.flatten(4)
    start[space.head_slice(4)] = torch.randn(99, generator=torch.Generator().manual_seed(1))
    mask = trained(space, "probe", rank=4, round=0)

    def summed(gone: str) -> Tensor:
        data = load_data(
            named_rows(tmp_path / "t.tsv", without=lambda n, _: f"c{n:02d}" == gone),
            dealing=Dealing(size=8),
        )
        cohort = Cohort(
            space=space,
            tokens=Tokens(data, load_model("tiny", labels=3)[1]),
            config=probe,
            randomness=Randomness(seed=0, secret_seed=0),
        )
        total = ClippedSum(len(start), 0.05)
        every = np.arange(len(data.clients))
        make()(cohort, Round(index=0, rank=4, clients=every, start=start, trained=mask), total)
        return total.value

    whole, first = summed(""), next(iter(held(load_data(tmp_path / "t.tsv"))))
    assert 0 < (whole - summed(first)).norm().item() <= 0.05 * (1 + 1e-6)


def test_a_client_that_leaves_changes_no_other_client_s_texts(tmp_path: Path) -> None:
    path, dealing = tmp_path / "t.tsv", Dealing(size=5, max_test=9)
    before = load_data(named_rows(path, without=lambda n, _: False), dealing=dealing)
    first = before.clients[0].name
    after = load_data(named_rows(path, without=lambda n, _: f"c{n:02d}" == first), dealing=dealing)
    assert held(before) == {first: before.clients[0].texts, **held(after)}
    assert (after.labels, after.test_texts) == (before.labels, before.test_texts)


def test_at_example_level_a_text_that_leaves_is_the_only_one(tmp_path: Path) -> None:
    config = FederatedConfig(unit="example", max_texts=1)

    def texts(path: Path) -> set[str]:
        request = TrainRequest(
            config=config, data=str(path), out=tmp_path / "run", dealing=Dealing(size=5)
        )
        return {str(text) for client in data_for(request).clients for text in client.texts}

    whole = texts(named_rows(tmp_path / "t.tsv", without=lambda n, k: False))
    less = texts(named_rows(tmp_path / "t.tsv", without=lambda n, k: (n, k) == (3, 2)))
    assert whole - less == {"new 3 2"}
    assert not less - whole


def test_a_class_that_only_a_training_client_has_is_not_told(tmp_path: Path) -> None:
    rows = "".join(f"text {i}\t{i % 2}\n" for i in range(80))
    path = tmp_path / "t.tsv"
    path.write_text(f"text\tlabel\n{rows}one of a kind\trare\n", encoding="utf-8")
    assert not held_out(["one of a kind"])[0]
    assert load_data(path).labels == ("0", "1")
    declared = load_data(path, dealing=Dealing(labels=("0", "1", "rare")))
    assert declared.labels == ("0", "1", "rare")
    assert declared.examples == load_data(path).examples + 1
    with pytest.raises(ValueError, match=r"labels=\('0', 'rare'\) to have the class '1'"):
        load_data(path, dealing=Dealing(labels=("0", "rare")))


# An adversarial client


@pytest.mark.parametrize("make", EXECUTORS, ids=NAMES)
@pytest.mark.parametrize("texts", [1, 16])  # of one text, a probe's gradients are products
@pytest.mark.parametrize("attack", [1e9, float("nan")])
def test_an_adversary_moves_no_executor_s_sum_by_more_than_the_clip(
    federated_data: FederatedData,
    config: FederatedConfig,
    make: Callable[[], Executor],
    attack: float,
    texts: int,
) -> None:
    probe = replace(config, system="probe", local_lr=10.0, max_texts=texts)
    space = made(probe)
    weight = space.classifier.encoder.get_input_embeddings().weight
    weight.data[POISON] = attack
    tokens = Poisoned(federated_data, load_model("tiny", labels=3)[1])
    cohort = Cohort(
        space=space, tokens=tokens, config=probe, randomness=Randomness(seed=0, secret_seed=0)
    )
    start = space.flatten(4)
    start[space.head_slice(4)] = 1e3 * torch.randn(99, generator=torch.Generator().manual_seed(1))
    mask = trained(space, "probe", rank=4, round=0)

    def summed(clients: list[int]) -> Tensor:
        total = ClippedSum(len(start), 0.05)
        round = Round(index=0, rank=4, clients=np.asarray(clients), start=start, trained=mask)
        make()(cohort, round, total)
        return total.value

    without = summed([i for i in range(20) if i != 7])
    beside = summed(list(range(20)))
    assert bool(torch.isfinite(beside).all())
    assert (beside - without).norm().item() <= 0.05 * (1 + 1e-6)
    assert without.norm().item() > 0.05  # many are clipped, and add up


# What is released has the same support and size whatever the data


@pytest.mark.parametrize("system", get_args(System))
def test_support_and_size_of_a_release_do_not_depend_on_the_data(
    system: System,
    federated_data: FederatedData,
    config: FederatedConfig,
    make_plan: PlanMaker,
    tmp_path: Path,
) -> None:
    single = replace(config, system=system, rounds=1, momentum=0.0, local_lr=1e3, executor="loop")
    one_rank = made(single)  # rank-1 support: what a client sends has zeros beyond, in A and in B
    whole = torch.zeros(one_rank.dim(one_rank.rank), dtype=torch.bool)
    whole[one_rank.index(1)] = True
    supports: list[Tensor] = []
    sizes: list[tuple[int, ...]] = []
    for kind in ("texts", "silent", "poisoned", "rank 1"):
        space = made(single)
        if kind == "poisoned":
            space.classifier.encoder.get_input_embeddings().weight.data[POISON] = 1e9
        if kind == "rank 1":
            space.assign(space.flatten(space.rank) * whole, space.rank)
        data = silenced(federated_data) if kind == "silent" else federated_data
        tokens = (Poisoned if kind == "poisoned" else Tokens)(data, load_model("tiny", labels=3)[1])
        before = space.flatten(space.rank).double()
        plan = make_plan(single, dim=released_dim(space, system))
        folder = tmp_path / kind.replace(" ", "-")
        report = federate(space, tokens, single, plan, checkpoint_dir=folder)
        supports.append(stored_weights(folder) != before)
        sizes.append(tuple(m.sensitivity.dim for m, _ in report.ledger.entries))
    rank = report.rounds[0].rank
    wanted = torch.zeros_like(whole)
    wanted[space.index(rank)[trained(space, system, rank=rank, round=0)]] = True
    assert all(torch.equal(support, wanted) for support in supports)
    assert set(sizes) == {(int(supports[0].sum()),)}


def test_a_slice_of_a_random_rank_has_its_noise_and_nothing_else(
    federated_data: FederatedData,
    config: FederatedConfig,
    make_plan: PlanMaker,
    tmp_path: Path,
) -> None:
    tokens = Tokens(silenced(federated_data), load_model("tiny", labels=3)[1])
    for rank in (1, 3):
        law = tuple(float(b == rank) for b in range(1, 5))
        one = replace(config, rounds=1, momentum=0.0, rank_probabilities=law)
        space = made(one)
        before = space.flatten(4).double()
        folder = tmp_path / str(rank)
        federate(space, tokens, one, make_plan(one, dim=space.dim(4)), checkpoint_dir=folder)
        moved = (stored_weights(folder) - before) / one.server_lr * one.cohort / one.clip
        inside = moved[space.index(rank)]
        assert int((moved != 0).sum()) == len(inside) == space.dim(rank)
        assert stats.kstest(inside.numpy(), "norm").pvalue > 1e-3
        for wrong in (2 / 3, 3 / 2):
            assert stats.kstest(inside.numpy() * wrong, "norm").pvalue < 1e-4


# Noise: as small as it may be, in every phase


def test_noise_far_below_half_precision_reaches_a_bf16_model(
    federated_data: FederatedData,
    config: FederatedConfig,
    make_plan: PlanMaker,
    tmp_path: Path,
) -> None:
    tiny = replace(config, system="lora", rounds=1, momentum=0.0, clip=1e-3, server_lr=1.0)
    model = load_model("tiny", labels=3, seed=0)[0]
    model.encoder.to(torch.bfloat16)
    space = space_for(model, tiny)
    space.assign(torch.ones(space.dim(4)), 4)  # beside 1, bf16 has nothing smaller than 4e-3
    silent = Tokens(silenced(federated_data), load_model("tiny", labels=3)[1])
    federate(space, silent, tiny, make_plan(tiny, dim=space.dim(4)), checkpoint_dir=tmp_path)
    for weights in (stored_weights(tmp_path), space.flatten(4).double()):
        noise = (weights - 1.0) * tiny.cohort / tiny.clip
        assert stats.kstest(noise.numpy(), "norm").pvalue > 1e-3


@pytest.fixture
def warm(tmp_path: Path, federated_data: FederatedData, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A request with a head start, from clients who have no texts."""
    silent = silenced(federated_data)
    monkeypatch.setattr(train_module, "data_for", lambda _: silent)
    config = FederatedConfig(
        system="lora",
        rank=2,
        rounds=1,
        cohort=15,
        clip=0.5,
        momentum=0.0,
        server_lr=1.0,
        noise_seed=3,
        head_start=HeadStart(share=0.5, rounds=1, cohort=30, lr=2.0, momentum=0.0),
    )
    return TrainRequest(out=tmp_path / "out", data="none", model="tiny", config=config, epsilon=3.0)


def is_normal(draws: Floats) -> bool:
    """Whether draws may be standard normal, by their form and by their squares."""
    squares = stats.chi2.cdf(np.sum(draws**2), len(draws))
    return bool(stats.kstest(draws, "norm").pvalue > 1e-3 and 5e-4 < squares < 1 - 5e-4)


def test_the_noise_of_a_head_start_follows_its_law_and_is_in_the_ledger(warm: TrainRequest) -> None:
    report = train(warm)
    first = PrivacyPlan.load(warm.out / "head-start" / "plan.json")
    main = PrivacyPlan.load(warm.out / "plan.json")
    begun = stored_weights(warm.out / "head-start" / "checkpoint")[-99:]
    released = (begun / 2.0 * 30 / first.mechanism.noise.sigma).numpy()  # the head starts at 0
    assert is_normal(released)
    assert not is_normal(released * 1.5)
    ended = stored_weights(warm.out / "checkpoint")[-99:]
    moved = ((ended - begun) * 15 / main.mechanism.noise.sigma).numpy()
    assert is_normal(moved)
    assert not is_normal(moved * 1.5)
    assert report.ledger == Ledger((*first.entries, *Ledger().add(main.mechanism).entries))
    pld = accountant_named("pld")
    both = pld.compose_ledger(report.ledger).epsilon(report.delta)
    alone = pld.compose_ledger(Ledger(((main.mechanism, 1),))).epsilon(report.delta)
    assert alone * 1.05 < both
    assert both == pytest.approx(report.epsilon, rel=1e-9)
    assert report.epsilon <= 3.0 * (1 + 1e-6)


# Clients are drawn independently


@pytest.mark.parametrize("secret", [None, 0])
def test_every_round_draws_a_cohort_of_its_own_without_repeats(
    federated_data: FederatedData,
    config: FederatedConfig,
    make_plan: PlanMaker,
    secret: int | None,
) -> None:
    many = replace(config, system="probe", rounds=150, cohort=30, noise_seed=secret, eval_every=999)
    space = made(many)
    drawn: list[list[int]] = []

    def look(cohort: Cohort, round: Round, total: ClippedSum) -> None:
        del cohort, total
        drawn.append(round.clients.tolist())

    tokens = Tokens(federated_data, load_model("tiny", labels=3)[1])
    plan = make_plan(many, dim=99, noise=Gaussian(sigma=5.0))
    federate(space, tokens, many, plan, executor=look)
    assert all(len(set(clients)) == len(clients) for clients in drawn)
    assert len({tuple(clients) for clients in drawn}) == many.rounds
    sizes = np.asarray([len(clients) for clients in drawn])
    # Binomial(60, 1/2): the variance is 15, that of a cohort of fixed size is 0
    assert abs(sizes.mean() - 30) < 5 * np.sqrt(15 / 150)
    assert 15 * 0.55 < sizes.var() < 15 * 1.6
    times = np.bincount(np.concatenate(drawn), minlength=60)
    assert abs(times - 75).max() < 5 * np.sqrt(150 / 4)


@pytest.mark.parametrize("kind", ["shuffle", "with-replacement", "fixed-size"])
def test_batches_that_are_no_poisson_sample_are_refused(
    lab: Any, tokens: Tokens, kind: str
) -> None:
    with pytest.raises(NoDominatingPair, match=kind):
        Sampling(rate=0.25, kind=kind)
    space = lab.make_space()
    plan = lab.make_plan(lab.config, dim=space.dim(4))
    with pytest.raises(NoDominatingPair, match=kind):
        PrivacyPlan.from_json(plan.to_json().replace('"poisson"', f'"{kind}"'))
    other = replace(
        plan.mechanism,
        sampling=Sampling(rate=0.25, kind="without-replacement"),
        relation="replace-one",
    )
    with pytest.raises(ValueError, match="relation to be add-remove"):
        federate(space, tokens, lab.config, replace(plan, mechanism=other))


# A client without texts


@pytest.mark.parametrize("system", ["probe", "lora"])
def test_clients_without_texts_are_counted_among_the_clip_s_shares(
    system: System, federated_data: FederatedData, config: FederatedConfig
) -> None:
    empty = silenced(federated_data).clients[0]
    some = replace(federated_data, clients=(empty, *federated_data.clients[1:]))
    moving = replace(
        config,
        system=system,
        cohort=60,
        rounds=1,
        clip=1e-4,
        adaptive=AdaptiveClip(quantile=0.5, rate=1.0, cohort=60),
    )
    tokens = Tokens(some, load_model("tiny", labels=3)[1])
    report = federate(made(moving), tokens, moving, None)
    assert report.rounds[0].cohort_size == 60
    assert report.rounds[0].clipped == pytest.approx(59 / 60)


@pytest.mark.parametrize("make", EXECUTORS, ids=NAMES)
def test_nobody_and_clients_without_texts_have_a_norm_of_zero(
    federated_data: FederatedData, config: FederatedConfig, make: Callable[[], Executor]
) -> None:
    probe = replace(config, system="probe")
    space = made(probe)
    tokens = Tokens(silenced(federated_data), load_model("tiny", labels=3)[1])
    cohort = Cohort(
        space=space, tokens=tokens, config=probe, randomness=Randomness(seed=0, secret_seed=0)
    )
    mask = trained(space, "probe", rank=4, round=0)
    for clients in ([], [0], [3, 5, 8]):
        total = ClippedSum(space.dim(4), 0.1, keep_norms=True)
        made_of = np.asarray(clients, dtype=np.int64)
        start = space.flatten(4)
        make()(cohort, Round(index=0, rank=4, clients=made_of, start=start, trained=mask), total)
        assert total.norms == (0.0,) * len(clients)
        assert not bool(total.value.any())


# The mean of products is the product of means only where one factor is everybody's


@pytest.mark.parametrize("system", ["ffa-lora", "rolora", "lora"])
def test_averaging_is_exact_where_one_factor_is_frozen_and_biased_where_both_move(
    system: System, federated_data: FederatedData, config: FederatedConfig
) -> None:
    plain = replace(
        config, system=system, rounds=1, cohort=2, clip=None, momentum=0.0, server_lr=1.0
    )
    space = made(plain)
    start = space.flatten(4).double()
    mask = trained(space, system, rank=4, round=0)
    generator = torch.Generator().manual_seed(0)
    deltas = [torch.randn(len(start), generator=generator).double() * mask for _ in range(2)]

    def given(cohort: Cohort, round: Round, total: ClippedSum) -> None:
        del cohort, round
        for delta in deltas:
            total.add(delta)

    def products(flat: Tensor) -> Tensor:
        parts = space.unflatten(flat.double(), 4)
        names = [name for name in parts if ".lora_A." in name]
        return torch.cat(
            [(parts[n.replace(".lora_A.", ".lora_B.")] @ parts[n]).flatten() for n in names]
        )

    tokens = Tokens(federated_data, load_model("tiny", labels=3)[1])
    federate(space, tokens, plain, None, executor=given)
    wanted = sum(products(start + delta) for delta in deltas) / 2
    error = (products(space.flatten(4)) - wanted).norm() / wanted.norm()
    if system == "lora":
        assert error > 0.1
    else:
        assert error < 1e-5


# Whom a client is stacked with is none of its business


def test_no_number_of_a_filled_up_lane_reaches_a_client(
    federated_data: FederatedData, config: FederatedConfig
) -> None:
    def client(size: int) -> Client:
        labels = np.arange(size, dtype=np.int64) % 3
        texts = tuple(f"{('red', 'green', 'blue')[k]} one two" for k in labels)
        return Client(name=str(size), texts=texts, labels=labels)

    data = replace(federated_data, clients=tuple(client(size) for size in (1, 2, 3, 5, 8)))
    steps = replace(config, system="lora", batch_size=2, local_epochs=2)
    space = made(steps)
    tokens = Tokens(data, load_model("tiny", labels=3)[1])
    pad = space.classifier.pad_id  # texts of one length have no padding of their own
    space.classifier.encoder.get_input_embeddings().weight.data[pad] = float("nan")
    cohort = Cohort(
        space=space, tokens=tokens, config=steps, randomness=Randomness(seed=0, secret_seed=0)
    )
    round = Round(index=0, rank=4, clients=np.arange(5), start=space.flatten(4))
    sums: list[Tensor] = []
    for run in (loop_sum, vmap_sum):
        total = ClippedSum(space.dim(4), 0.5)
        run(cohort, round, total)
        sums.append(total.value)
    assert sums[0].norm() > 0.5
    torch.testing.assert_close(sums[1], sums[0], rtol=1e-4, atol=1e-6)
