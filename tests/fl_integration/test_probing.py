"""The head's gradients on cached features are those of the merged executor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from fl_integration import probing
from fl_integration.adapters import AdapterSpace
from fl_integration.client import Tokens
from fl_integration.clipping import ClippedSum
from fl_integration.cohort import Cohort, Round, merged_sum
from fl_integration.config import FederatedConfig
from fl_integration.data import as_examples
from fl_integration.executors import executor_for
from fl_integration.federate import federate
from fl_integration.models import load_model
from fl_integration.probing import ProbeSum
from fl_integration.sampler import Randomness
from fl_integration.systems import trained

SpaceMaker = Callable[..., AdapterSpace]


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "_MEMORIES", {})


def rounds(space: AdapterSpace, clients: list[int], *, index: int = 0) -> Round:
    start = space.flatten(4)
    start[space.head_slice(4)] = torch.randn(99, generator=torch.Generator().manual_seed(index))
    mask = trained(space, "probe", rank=4, round=0)
    return Round(index=index, rank=4, clients=np.asarray(clients), start=start, trained=mask)


def sums(
    run: object, cohort: Cohort, round: Round, bound: float | None
) -> tuple[torch.Tensor, tuple[float, ...]]:
    total = ClippedSum(len(round.start), bound, keep_norms=True)
    run(cohort, round, total)  # type: ignore[operator]
    return total.value, total.norms


@pytest.mark.parametrize("bound", [None, 0.3])
@pytest.mark.parametrize("unit", ["user", "capped", "example"])
def test_the_sum_is_that_of_the_merged_executor(
    make_space: SpaceMaker,
    tokens: Tokens,
    config: FederatedConfig,
    unit: str,
    bound: float | None,
) -> None:
    space, probe = make_space(), replace(config, system="probe")
    if unit == "example":
        tokens = Tokens(as_examples(tokens.data), load_model("tiny", labels=3)[1])
        probe = replace(probe, unit="example", max_texts=1)
    if unit == "capped":
        probe = replace(probe, max_texts=3)
    cohort = Cohort(
        space=space, tokens=tokens, config=probe, randomness=Randomness(seed=0, secret_seed=0)
    )
    cached = ProbeSum()
    for index, clients in enumerate(([0, 3, 7, 20, 41], [3, 5, 7, 8], [])):  # some seen before
        round = rounds(space, clients, index=index)
        ours, norms = sums(cached, cohort, round, bound)
        theirs, expected = sums(merged_sum, cohort, round, bound)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(np.sort(norms), np.sort(expected), rtol=1e-4)
        assert not bool(ours[: space.head_slice(4).start].any())


def test_a_linear_layer_s_deltas_are_clipped_as_rows_are() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(50, n, generator=generator).double() for n in (3, 7))
    left[4] = 0.0
    left[9, 1], right[11, 2] = float("nan"), float("inf")
    rows = torch.cat([(left[:, :, None] * right[:, None, :]).flatten(1), left], dim=1)
    by_rows, by_products = ClippedSum(26, 0.7), ClippedSum(26, 0.7)
    by_rows.add_rows(torch.cat([torch.zeros(50, 2), rows], dim=1))
    by_products.add_linear(left, right, slice(2, 26))
    torch.testing.assert_close(by_products.value, by_rows.value, rtol=1e-9, atol=1e-12)


def test_no_row_moves_the_sum_of_products_by_more_than_the_clip() -> None:
    generator = torch.Generator().manual_seed(1)
    left, right = (torch.randn(40, n, generator=generator).double() for n in (3, 7))
    for attack in (1e9, 1e-300, float("nan"), float("inf"), 1e200):
        before, after = ClippedSum(24, 0.5), ClippedSum(24, 0.5)
        before.add_linear(left[1:], right[1:], slice(0, 24))
        after.add_linear(torch.cat([left[:1] * attack, left[1:]]), right, slice(0, 24))
        moved = (after.value - before.value).norm()
        assert bool(moved <= 0.5)


def test_features_are_computed_once_and_the_room_is_bounded(
    make_space: SpaceMaker, tokens: Tokens, config: FederatedConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    space, probe = make_space(), replace(config, system="probe")
    cohort = Cohort(
        space=space, tokens=tokens, config=probe, randomness=Randomness(seed=0, secret_seed=0)
    )
    seen: list[int] = []
    pool = space.classifier.pool
    monkeypatch.setattr(
        space.classifier, "pool", lambda ids, mask: (seen.append(len(ids)), pool(ids, mask))[1]
    )
    monkeypatch.setattr("fl_integration.probing.KEPT", len(tokens.client(0)))
    cached = ProbeSum()
    for _ in range(3):
        sums(cached, cohort, rounds(space, [0]), 1.0)
    assert sum(seen) == len(tokens.client(0))
    for _ in range(3):  # no room: computed again
        sums(cached, cohort, rounds(space, [1]), 1.0)
    assert sum(seen) == len(tokens.client(0)) + 3 * len(tokens.client(1))


@pytest.mark.parametrize("changed", ["nothing", "adapters", "weights", "layers"])
def test_features_outlive_a_run_as_long_as_the_encoder_is_the_same(
    make_space: SpaceMaker,
    tokens: Tokens,
    config: FederatedConfig,
    monkeypatch: pytest.MonkeyPatch,
    changed: str,
) -> None:
    randomness = Randomness(seed=0, secret_seed=0)
    probe = replace(config, system="probe")
    first = Cohort(space=make_space(), tokens=tokens, config=probe, randomness=randomness)
    sums(ProbeSum(), first, rounds(first.space, [0, 1, 2]), 1.0)
    (memory,) = probing._MEMORIES.values()
    assert memory
    for row in memory.values():  # none keeps alive what it was computed with
        assert row.untyped_storage().nbytes() == row.numel() * row.element_size()

    model, _ = load_model("tiny", labels=3, seed=1 if changed == "weights" else 0, pooled=1)
    if changed == "layers":
        monkeypatch.setattr(model, "pooled", 2)
        monkeypatch.setattr(model, "head", torch.nn.Linear(64, 3))
    space = AdapterSpace(model, rank=4, alpha=16.0, generator=torch.Generator().manual_seed(7))
    if changed == "adapters":
        space.assign(torch.randn(space.dim(4)), 4)
    seen: list[int] = []
    pool = model.pool
    monkeypatch.setattr(
        model, "pool", lambda ids, mask: (seen.append(len(ids)), pool(ids, mask))[1]
    )
    again = Cohort(space=space, tokens=tokens, config=probe, randomness=randomness)
    start = space.flatten(4)
    mask = trained(space, "probe", rank=4, round=0)
    round = Round(index=0, rank=4, clients=np.arange(3), start=start, trained=mask)
    ours, _ = sums(ProbeSum(), again, round, None)
    # nothing is computed again for another A: B is 0, and so A says nothing
    assert sum(seen) == (
        0 if changed == "nothing" else sum(len(tokens.client(c)) for c in range(3))
    )
    theirs, _ = sums(merged_sum, again, round, None)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_a_probe_runs_on_cached_features_unless_told_otherwise(
    make_space: SpaceMaker, tokens: Tokens, config: FederatedConfig
) -> None:
    probe = replace(config, system="probe", clip=None, noise_seed=None)
    assert isinstance(executor_for(probe), ProbeSum)
    assert executor_for(replace(probe, executor="merged")) is merged_sum
    fast, slow = make_space(), make_space()
    federate(fast, tokens, probe, None)
    federate(slow, tokens, replace(probe, executor="merged"), None)
    torch.testing.assert_close(fast.flatten(4), slow.flatten(4), rtol=1e-3, atol=1e-4)
