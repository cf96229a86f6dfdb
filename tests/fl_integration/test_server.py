"""The server's step touches the slice only; the mean has a constant denominator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from dpmech import Gaussian
from fl_integration.adapters import AdapterSpace
from fl_integration.config import FederatedConfig
from fl_integration.server import ServerState, noisy_mean, server_step


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_slice_index_points_at_the_slice(
    make_space: Callable[..., AdapterSpace], rank: int
) -> None:
    space = make_space()
    full = torch.randn(space.dim(4), generator=torch.Generator().manual_seed(0))
    space.assign(full, 4)
    assert torch.equal(full[space.index(rank)], space.flatten(rank))


def test_denominator_is_the_expected_cohort_and_noise_covers_every_coordinate() -> None:
    total = torch.arange(1000, dtype=torch.float64)
    plain = noisy_mean(total, noise=None, rng=np.random.default_rng(0), denominator=40.0)
    torch.testing.assert_close(plain, total / 40)
    law = Gaussian(sigma=3.0)
    noisy = noisy_mean(total, noise=law, rng=np.random.default_rng(0), denominator=40.0)
    added = noisy * 40 - total
    expected = torch.from_numpy(law.sample((1000,), np.random.default_rng(0)))
    torch.testing.assert_close(added, expected)
    assert noisy.dtype == torch.float64
    with pytest.raises(ValueError, match=r"denominator=0\.0"):
        noisy_mean(total, noise=law, rng=np.random.default_rng(0), denominator=0.0)


def test_small_noise_survives_on_large_sums() -> None:
    rng = np.random.default_rng(0)
    total = torch.full((100,), 1e4, dtype=torch.float64)
    noisy = noisy_mean(total, noise=Gaussian(sigma=1e-6), rng=rng, denominator=1.0)
    assert (noisy - total).std().item() == pytest.approx(1e-6, rel=0.3)  # 0 in fp32


def _run(config: FederatedConfig, steps: list[tuple[list[int], float]]) -> ServerState:
    state = ServerState.start(torch.zeros(4))
    for places, value in steps:
        mean = torch.full((len(places),), value)
        state = server_step(state, torch.tensor(places), mean, config)
    return state


def test_fedavg_adds_the_mean_and_momentum_belongs_to_coordinates() -> None:
    config = FederatedConfig(server_lr=0.5, momentum=0.0)
    assert _run(config, [([0, 2], 1.0)]).weights.tolist() == [0.5, 0, 0.5, 0]
    heavy = replace(config, momentum=0.5)
    state = _run(heavy, [([0, 1], 1.0), ([1, 2], 1.0), ([0], 0.0)])
    # coordinate 1: m = 1, 1.5; coordinate 0: m = 1, then (skipped a round) 0.5
    assert state.weights.tolist() == pytest.approx([0.5 + 0.25, 0.5 + 0.75, 0.5, 0.0])


def test_adam_is_scale_free_and_corrects_its_bias_by_visits() -> None:
    config = FederatedConfig(server_rule="adam", server_lr=0.1, momentum=0.9)
    for size in (1e-3, 1e3):
        state = _run(config, [([0, 1], size), ([1], size), ([2], -size)])
        assert state.weights.tolist() == pytest.approx([0.1, 0.2, -0.1, 0.0], rel=1e-3)


def test_a_step_does_not_change_the_state_before_it() -> None:
    state = ServerState.start(torch.zeros(2))
    server_step(state, torch.tensor([0]), torch.ones(1), FederatedConfig())
    assert state.weights.tolist() == [0.0, 0.0]
    assert state.first.tolist() == [0.0, 0.0]
