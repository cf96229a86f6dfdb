"""Every executor gives the loop's sum in fp64, and the one that is slower is not chosen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fl_integration import cohort as cohort_module
from fl_integration import executors, federate, vmapped
from fl_integration.adapters import AdapterSpace
from fl_integration.client import Tokens
from fl_integration.clipping import ClippedSum
from fl_integration.cohort import Cohort, Executor, Round, loop_sum, merged_sum
from fl_integration.config import FederatedConfig
from fl_integration.data import Client, FederatedData, LazyClients
from fl_integration.executors import Fastest, executor_for
from fl_integration.models import default_targets, load_model
from fl_integration.options import SiloNoise
from fl_integration.sampler import Randomness
from fl_integration.systems import trained
from fl_integration.vmapped import vmap_sum

SpaceMaker = Callable[..., AdapterSpace]


@pytest.fixture
def short(config: FederatedConfig) -> FederatedConfig:
    return replace(config, local_epochs=2, batch_size=3, max_texts=7)


def _in_fp64(space: AdapterSpace, data: FederatedData, config: FederatedConfig) -> Cohort:
    """A federation in fp64, one of whose clients has no text."""
    empty = Client(name="empty", texts=(), labels=np.zeros(0, dtype=np.int64))
    data = replace(data, clients=(*data.clients[:9], empty, *data.clients[10:]))
    space.classifier.double()
    tokens = Tokens(data, load_model("tiny", labels=3)[1])
    randomness = Randomness(seed=0, secret_seed=0)
    return Cohort(space=space, tokens=tokens, config=config, randomness=randomness)


def _round(space: AdapterSpace, rank: int, **more: Any) -> Round:
    start = space.flatten(rank, dtype=torch.float64)
    start += 0.2 * torch.randn(start.shape, generator=torch.Generator().manual_seed(3)).double()
    return Round(index=0, rank=rank, clients=np.arange(40), start=start, **more)


def _sum(run: Executor, cohort: Cohort, round: Round, bound: float | None = None) -> ClippedSum:
    total = ClippedSum(len(round.start), bound, keep_norms=True)
    run(cohort, round, total)
    return total


def _same(one: ClippedSum, other: ClippedSum) -> None:
    torch.testing.assert_close(one.value, other.value, rtol=0, atol=1e-10)
    np.testing.assert_allclose(sorted(one.norms), sorted(other.norms), rtol=0, atol=1e-10)


@pytest.mark.parametrize(("rank", "bound"), [(1, None), (4, 0.05)])
def test_stacked_equals_the_loop_over_several_steps(
    make_space: SpaceMaker,
    federated_data: FederatedData,
    short: FederatedConfig,
    monkeypatch: pytest.MonkeyPatch,
    rank: int,
    bound: float | None,
) -> None:
    monkeypatch.setattr(vmapped, "CLIENTS", 7)  # several stacks, the last one not full
    monkeypatch.setattr(vmapped, "WINDOW", 30)
    space = make_space()
    cohort = _in_fp64(space, federated_data, short)
    round = _round(space, rank)
    loop, stacked = (_sum(run, cohort, round, bound) for run in (loop_sum, vmap_sum))
    _same(stacked, loop)
    assert min(loop.norms) == 0.0
    assert len(set(loop.norms)) > 30


@pytest.mark.parametrize("bound", [None, 0.05])
def test_merged_equals_the_loop_in_fp64(
    make_space: SpaceMaker,
    federated_data: FederatedData,
    config: FederatedConfig,
    monkeypatch: pytest.MonkeyPatch,
    bound: float | None,
) -> None:
    monkeypatch.setattr(cohort_module, "TEXTS", 40)  # several chunks
    monkeypatch.setattr(cohort_module, "WINDOW", 30)
    monkeypatch.setattr(cohort_module, "ROWS", 3 * make_space().dim(4))
    space = make_space()
    cohort, round = _in_fp64(space, federated_data, config), _round(space, 4)
    _same(_sum(merged_sum, cohort, round, bound), _sum(loop_sum, cohort, round, bound))


def test_the_order_of_the_clients_does_not_matter(
    make_space: SpaceMaker, federated_data: FederatedData, config: FederatedConfig
) -> None:
    space = make_space()
    cohort, round = _in_fp64(space, federated_data, config), _round(space, 4)
    turned = replace(round, clients=round.clients[::-1].copy())
    _same(_sum(merged_sum, cohort, turned, 0.05), _sum(merged_sum, cohort, round, 0.05))


@pytest.mark.parametrize("system", ["ffa-lora", "rolora", "probe"])
@pytest.mark.parametrize("index", [0, 1])
def test_what_a_round_does_not_train_stays(
    make_space: SpaceMaker,
    federated_data: FederatedData,
    config: FederatedConfig,
    system: Any,
    index: int,
) -> None:
    space = make_space()
    cohort = _in_fp64(space, federated_data, config)
    moves = trained(space, system, rank=2, round=index)
    round = replace(_round(space, 2), trained=moves)
    loop = _sum(loop_sum, cohort, round, 0.5)
    for run in (merged_sum, vmap_sum):
        _same(_sum(run, cohort, round, 0.5), loop)
    assert not loop.value[~moves].any()
    assert loop.value[moves].all()


def test_merged_keeps_no_more_in_memory_than_a_chunk(
    make_space: SpaceMaker, tokens: Tokens, config: FederatedConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = make_space()
    monkeypatch.setattr(cohort_module, "CHUNK", 5 * space.dim(4))
    cohort = Cohort(
        space=space, tokens=tokens, config=config, randomness=Randomness(seed=0, secret_seed=0)
    )
    round = replace(_round(space, 4), start=space.flatten(4))
    chunks = list(cohort_module._chunks(cohort, round))
    assert max(map(len, chunks)) == 5
    works = [work for chunk in chunks for work in chunk]
    longest = [max(map(len, work.ids)) for work in works]
    assert len(works) == 40
    assert longest == sorted(longest)


def test_clients_of_one_text_come_in_full_batches(
    make_space: SpaceMaker, tokens: Tokens, config: FederatedConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cohort_module, "TOKENS", 64)
    space, one = make_space(), replace(config, max_texts=1)
    randomness = Randomness(seed=0, secret_seed=0)
    cohort = Cohort(space=space, tokens=tokens, config=one, randomness=randomness)
    round = replace(_round(space, 4), start=space.flatten(4))
    chunks = list(cohort_module._chunks(cohort, round))
    sizes = [len(chunk) for chunk in chunks]
    assert sum(sizes) == 40
    longest = [max(len(work.ids[0]) for work in chunk) for chunk in chunks]
    padded = [size * length for size, length in zip(sizes, longest, strict=True)]
    assert max(padded) <= 64
    following = [len(chunk[0].ids[0]) for chunk in chunks[1:]]
    for size, length in zip(sizes, following, strict=False):
        assert (size + 1) * length > 64  # the next would not have fitted
    loop = _sum(loop_sum, cohort, round, 0.05)
    torch.testing.assert_close(
        _sum(merged_sum, cohort, round, 0.05).value, loop.value, rtol=1e-4, atol=1e-6
    )


def test_a_model_that_branches_on_its_mask_is_not_stacked(
    make_space: SpaceMaker,
    federated_data: FederatedData,
    short: FederatedConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    space = make_space()
    cohort, round = _in_fp64(space, federated_data, short), _round(space, 1)
    space.classifier.mask_form = "plain"
    with pytest.raises(ValueError, match="mask_form='plain'"):
        vmap_sum(cohort, round, ClippedSum(len(round.start), 1.0))
    monkeypatch.setattr(executors, "CHUNK", 4)
    fastest = Fastest()
    fastest(cohort, replace(round, clients=round.clients[:5]), ClippedSum(len(round.start), 1.0))
    assert fastest.chosen is loop_sum


class _Clock:
    """Tells what it was told: the machine's own time is anybody's guess."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def around(self, run: Executor, seconds: float, calls: list[int]) -> Executor:
        def timed(cohort: Cohort, round: Round, total: ClippedSum) -> None:
            calls.append(len(round.clients))
            self.now += seconds
            run(cohort, round, total)

        return timed


@pytest.mark.parametrize("stack_is_slower", [True, False])
def test_the_faster_one_is_chosen_once(
    make_space: SpaceMaker,
    federated_data: FederatedData,
    short: FederatedConfig,
    monkeypatch: pytest.MonkeyPatch,
    stack_is_slower: bool,
) -> None:
    space = make_space()
    cohort, round = _in_fp64(space, federated_data, short), _round(space, 1)
    round = replace(round, clients=round.clients[:20])
    wanted = _sum(loop_sum, cohort, round, 0.05)
    monkeypatch.setattr(executors, "CHUNK", 4)
    loop_calls: list[int] = []
    stack_calls: list[int] = []
    clock = _Clock()
    loop = clock.around(loop_sum, 1.0, loop_calls)
    stack = clock.around(vmap_sum, 0.95 if stack_is_slower else 0.85, stack_calls)
    monkeypatch.setattr(executors, "time", clock)
    monkeypatch.setattr(executors, "loop_sum", loop)
    monkeypatch.setattr(executors, "vmap_sum", stack)
    monkeypatch.setattr(executors, "TRIALS", 1)
    fastest = Fastest()
    _ = _sum(fastest, cohort, replace(round, clients=round.clients[:3]), 0.05)
    assert fastest.chosen is None  # too few to tell
    _same(_sum(fastest, cohort, round, 0.05), wanted)
    assert fastest.chosen is (loop if stack_is_slower else stack)
    calls, other = (loop_calls, stack_calls) if stack_is_slower else (stack_calls, loop_calls)
    assert calls[-2:] == [4, 20]
    assert other[-1] == 4
    _ = _sum(fastest, cohort, round, 0.05)
    assert calls[-2:] == [20, 20]


def test_what_vmap_cannot_follow_runs_one_by_one(
    make_space: SpaceMaker,
    federated_data: FederatedData,
    short: FederatedConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def cannot(*_: Any) -> None:
        raise RuntimeError("vmap: no rule for this")

    space = make_space()
    cohort, round = _in_fp64(space, federated_data, short), _round(space, 1)
    monkeypatch.setattr(executors, "vmap_sum", cannot)
    monkeypatch.setattr(executors, "CHUNK", 4)
    round = replace(round, clients=round.clients[:5])
    fastest = Fastest()
    fastest(cohort, round, ClippedSum(len(round.start), 1.0))
    assert fastest.chosen is loop_sum


def test_the_configuration_names_the_executor(config: FederatedConfig) -> None:
    two = replace(config, local_epochs=2)
    assert executor_for(config) is merged_sum
    assert executor_for(replace(config, executor="merged")) is merged_sum
    assert isinstance(executor_for(two), Fastest)
    silos = replace(two, unit="example", silos=SiloNoise(sizes=(5,)))
    assert executor_for(silos) is merged_sum
    assert isinstance(executor_for(replace(config, batch_size=4)), Fastest)
    assert isinstance(executor_for(replace(config, system="full")), Fastest)
    assert executor_for(replace(two, executor="loop")) is loop_sum
    assert executor_for(replace(two, executor="vmap")) is vmap_sum
    with pytest.raises(ValueError, match="local_epochs=2"):
        executor_for(replace(two, executor="merged"))


@pytest.mark.parametrize("steps", [1, 2])
def test_a_run_makes_only_the_clients_that_it_draws(
    make_space: SpaceMaker, federated_data: FederatedData, config: FederatedConfig, steps: int
) -> None:
    made: list[int] = []

    def make(index: int) -> Client:
        made.append(index)
        texts = tuple(f"red {index % 7}" for _ in range(3))
        return Client(name=str(index), texts=texts, labels=np.zeros(3, dtype=np.int64))

    data = replace(federated_data, clients=LazyClients(10**6, make))
    tokens = Tokens(data, load_model("tiny", labels=3)[1])
    short = replace(config, rounds=3, cohort=8, local_epochs=steps)
    report = federate(make_space(), tokens, short)
    assert sum(metrics.cohort_size or 0 for metrics in report.rounds) == len(made)
    assert 3 <= len(made) == len(set(made)) <= 60


@pytest.mark.parametrize("task", ["token-classification", "next-token"])
def test_every_task_has_the_sum_of_the_loop(
    federated_data: FederatedData, config: FederatedConfig, task: Any
) -> None:
    tagged = task == "token-classification"
    made = (_lines(client, tagged) for client in federated_data.clients[:20])
    labels = federated_data.labels if tagged else ()
    data = FederatedData(
        name="lines",
        task=task,
        labels=labels,
        clients=tuple(made),
        test_texts=(),
        test_labels=np.zeros(0, dtype=np.int64),
    )
    model, tokenizer = load_model("tiny", task=task, labels=len(labels))
    targets = default_targets(model.encoder)
    generator = torch.Generator().manual_seed(0)
    space = AdapterSpace(model, rank=4, targets=targets, generator=generator)
    model.double()
    cohort = Cohort(
        space=space,
        tokens=Tokens(data, tokenizer),
        config=config,
        randomness=Randomness(seed=0, secret_seed=0),
    )
    round = replace(_round(space, 3), clients=np.arange(20))
    loop = _sum(loop_sum, cohort, round, 0.05)
    assert min(loop.norms) > 0
    for run in (merged_sum, vmap_sum):
        _same(_sum(run, cohort, round, 0.05), loop)


def _lines(client: Client, tagged: bool) -> Client:
    """The same texts, their words labelled, or without a label."""
    if not tagged:
        return replace(client, labels=np.zeros(0, dtype=np.int64))
    words = tuple(tuple(text.split()) for text in client.texts)
    labels = np.arange(sum(map(len, words))) % 3
    return replace(client, texts=words, labels=labels)
