"""All executors return the same clipped sum, and no client can hurt another's part of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from fl_integration.adapters import AdapterSpace
from fl_integration.batches import pad
from fl_integration.client import Tokens, local_delta, local_work, step_sizes
from fl_integration.clipping import ClippedSum
from fl_integration.cohort import Cohort, Round, loop_sum, merged_sum
from fl_integration.config import FederatedConfig
from fl_integration.data import Client, FederatedData
from fl_integration.models import load_model
from fl_integration.sampler import Randomness
from fl_integration.vmapped import vmap_sum

SpaceMaker = Callable[..., AdapterSpace]


def _cohort(space: AdapterSpace, tokens: Tokens, config: FederatedConfig) -> Cohort:
    return Cohort(
        space=space, tokens=tokens, config=config, randomness=Randomness(seed=0, secret_seed=0)
    )


def _round(space: AdapterSpace, rank: int, clients: list[int]) -> Round:
    start = space.flatten(rank)
    start += 0.2 * torch.randn(start.shape, generator=torch.Generator().manual_seed(3))
    return Round(index=0, rank=rank, clients=np.asarray(clients, dtype=np.int64), start=start)


def _sum(run: Any, cohort: Cohort, round: Round, *, bound: float | None = None) -> ClippedSum:
    total = ClippedSum(cohort.space.dim(round.rank), bound, keep_norms=True)
    run(cohort, round, total)
    return total


@pytest.mark.parametrize("rank", [1, 3, 4])
@pytest.mark.parametrize("bound", [None, 0.05])
def test_merged_equals_the_loop(
    make_space: SpaceMaker, tokens: Tokens, config: FederatedConfig, rank: int, bound: float | None
) -> None:
    space = make_space()
    cohort, round = _cohort(space, tokens, config), _round(space, rank, list(range(50)))
    loop, merged = (_sum(f, cohort, round, bound=bound) for f in (loop_sum, merged_sum))
    torch.testing.assert_close(merged.value, loop.value, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(sorted(merged.norms), sorted(loop.norms), rtol=1e-4)
    assert np.ptp(loop.norms) > 0


def test_one_local_step_is_the_gradient_of_the_mean_loss(
    make_space: SpaceMaker, tokens: Tokens, config: FederatedConfig
) -> None:
    space = make_space()
    round = _round(space, 2, [5])
    work = local_work(tokens, 5, limit=16, rng=np.random.default_rng(0))
    views = space.unflatten(round.start.clone(), 2)
    views = {name: view.clone().requires_grad_() for name, view in views.items()}
    with space.use_rank(2):
        logits = torch.func.functional_call(space.classifier, views, pad(work.ids))
    functional.cross_entropy(logits, torch.from_numpy(work.labels)).backward()
    gradient = torch.cat([view.grad.reshape(-1) for view in views.values()])
    rates = torch.full_like(gradient, config.local_lr)
    rates[-99:] = config.local_lr * config.head_multiplier  # the head: 3 × 32 weights, 3 biases
    delta = _sum(loop_sum, _cohort(space, tokens, config), round).value
    torch.testing.assert_close(delta.float(), -rates * gradient, rtol=1e-4, atol=1e-6)


def test_several_steps_follow_the_moving_weights(
    make_space: SpaceMaker, tokens: Tokens, config: FederatedConfig
) -> None:
    space, short = make_space(), replace(config, local_epochs=2, batch_size=2)
    client = int(np.argmax([len(c) for c in tokens.data.clients]))
    round = _round(space, 4, [client])
    rates = step_sizes(space, 4, short)
    work = local_work(tokens, client, limit=16, rng=np.random.default_rng(0))
    with space.use_rank(4) as live:
        delta = local_delta(space.classifier, live, round.start, work, rates=rates, config=short)
        one = torch.zeros_like(delta)
        for _ in range(2):
            for first in range(0, len(work.ids), 2):
                part = replace(work, ids=work.ids[first : first + 2])
                part = replace(part, labels=work.labels[first : first + 2])
                step = local_delta(
                    space.classifier,
                    live,
                    round.start + one,
                    part,
                    rates=rates,
                    config=replace(short, local_epochs=1),
                )
                one = one + step
    torch.testing.assert_close(delta, one, rtol=1e-5, atol=1e-7)


def test_merged_refuses_several_steps(
    make_space: SpaceMaker, tokens: Tokens, config: FederatedConfig
) -> None:
    two, space = replace(config, local_epochs=2), make_space()
    with pytest.raises(ValueError, match="local_epochs=2"):
        _sum(merged_sum, _cohort(space, tokens, two), _round(space, 1, [0]))


class _Poisoned(Tokens):
    """A client whose texts are as its attacker likes them."""

    def client(self, index: int) -> list[list[int]]:
        ids = super().client(index)
        return [[499] * 20 for _ in ids] if index == 7 else ids


@pytest.mark.parametrize("run", [loop_sum, merged_sum, vmap_sum])
@pytest.mark.parametrize("attack", [1e9, float("nan"), float("inf")])
def test_an_adversarial_client_moves_the_sum_by_at_most_the_clip(
    make_space: SpaceMaker,
    federated_data: FederatedData,
    config: FederatedConfig,
    run: Any,
    attack: float,
) -> None:
    space = make_space()
    space.classifier.encoder.get_input_embeddings().weight.data[499] = attack
    poisoned = _Poisoned(federated_data, load_model("tiny", labels=3)[1])
    cohort, bound = _cohort(space, poisoned, config), 0.05
    honest = [i for i in range(40) if i != 7]
    without = _sum(run, cohort, _round(space, 4, honest), bound=bound).value
    beside = _sum(run, cohort, _round(space, 4, list(range(40))), bound=bound).value
    assert torch.isfinite(beside).all()
    assert (beside - without).norm().item() <= bound * (1 + 1e-6)
    assert without.norm() > bound


def test_the_clip_is_one_for_adapters_and_head(
    make_space: SpaceMaker, tokens: Tokens, config: FederatedConfig
) -> None:
    space = make_space()
    cohort, round = _cohort(space, tokens, config), _round(space, 4, [3])
    free = _sum(loop_sum, cohort, round).value
    bound = 0.5 * free.norm().item()
    clipped = _sum(loop_sum, cohort, round, bound=bound).value
    # A, B and head shrink together
    torch.testing.assert_close(clipped, 0.5 * free, rtol=1e-5, atol=0)
    assert clipped.norm().item() == pytest.approx(bound, rel=1e-5)


def test_clients_without_texts_add_zero(
    make_space: SpaceMaker, federated_data: FederatedData, config: FederatedConfig
) -> None:
    empty = Client(name="empty", texts=(), labels=np.zeros(0, dtype=np.int64))
    data = replace(federated_data, clients=(empty, *federated_data.clients[1:]))
    tokens = Tokens(data, load_model("tiny", labels=3)[1])
    space = make_space()
    for run in (loop_sum, merged_sum, vmap_sum):
        cohort = _cohort(space, tokens, config)
        alone = _sum(run, cohort, _round(space, 2, [0]))
        assert alone.norms == (0.0,)
        assert _sum(run, cohort, _round(space, 2, [])).norms == ()
        pair = _sum(run, cohort, _round(space, 2, [0, 1])).value
        one = _sum(run, cohort, _round(space, 2, [1])).value
        torch.testing.assert_close(pair, one, rtol=1e-5, atol=1e-5)  # fp32, other batches


def test_only_drawn_clients_are_tokenised(tokens: Tokens) -> None:
    calls: list[int] = []
    inner = tokens._tokenizer
    tokens._tokenizer = lambda text, **kw: (calls.append(len(text)), inner(text, **kw))[1]
    tokens.client(3)
    tokens.client(3)
    assert calls == [len(tokens.data.clients[3])]


def test_local_work_is_a_capped_random_choice(tokens: Tokens) -> None:
    client = int(np.argmax([len(c) for c in tokens.data.clients]))
    full = local_work(tokens, client, limit=99, rng=np.random.default_rng(0))
    assert sorted(full.ids) == sorted(tokens.client(client))
    two = local_work(tokens, client, limit=2, rng=np.random.default_rng(0))
    assert two.ids == full.ids[:2]
    assert two.labels.tolist() == full.labels[:2].tolist()
    of = {
        tuple(i): int(v)
        for i, v in zip(tokens.client(client), tokens.data.clients[client].labels, strict=True)
    }
    assert [of[tuple(i)] for i in full.ids] == full.labels.tolist()
