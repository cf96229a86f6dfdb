"""What clients receive, how the server moves from it, and what of its model they can have."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fl_integration.broadcast import broadcast_step, bytes_down, bytes_up, codec_of, received
from fl_integration.client import Tokens
from fl_integration.clipping import ClippedSum
from fl_integration.codec import Codec
from fl_integration.cohort import Cohort, Round, merged_sum
from fl_integration.config import FederatedConfig
from fl_integration.model_privacy import LAST, Overheard, locally_trained, model_privacy
from fl_integration.options import Broadcast
from fl_integration.sampler import Randomness
from fl_integration.server import ServerState, server_step

D = 1000
PLAIN = FederatedConfig(server_lr=1.0, momentum=0.0)


def _weights(seed: int = 0) -> Tensor:
    return torch.randn(D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _step(config: FederatedConfig, broadcast: Broadcast | None, mean: Tensor) -> Tensor:
    """The weights after one round whose clients all moved by ``mean``; every second coordinate."""
    state, index = ServerState.start(_weights()), torch.arange(0, D, 2)
    q = received(broadcast, state.weights[index])
    after = broadcast_step(state, index, mean, config, broadcast=broadcast, received=q)
    assert torch.equal(after.weights[1::2], state.weights[1::2])
    return after.weights[index]


@pytest.mark.parametrize("bits", [1, 1.5, 2, 3, 4, 8])
def test_clients_receive_the_round_trip_of_the_codec_and_nothing_else(bits: float) -> None:
    broadcast, weights = Broadcast(bits=bits, block=32), _weights()
    q = received(broadcast, weights)
    assert torch.equal(q, Codec(bits=bits, block=32).round_trip(weights))
    assert torch.equal(q, received(broadcast, weights))  # nothing is drawn
    assert 0 < (q - weights).norm() < weights.norm()
    assert len(torch.unique(q[:32])) <= math.ceil(2**bits)
    assert torch.equal(received(None, weights), weights)


def test_delta_keeps_what_the_copy_lost_and_replace_gives_it_up() -> None:
    mean, start = 0.01 * _weights(1)[::2], _weights()[::2]
    for bits in (1, 4):
        q = received(Broadcast(bits=bits), start)
        delta = _step(PLAIN, Broadcast(bits=bits, rule="delta"), mean)
        replaced = _step(PLAIN, Broadcast(bits=bits, rule="replace"), mean)
        torch.testing.assert_close(delta, start + mean)
        torch.testing.assert_close(replaced, q + mean)  # the mean of the clients' own weights
        assert (delta - replaced).norm() > 0.05 * start.norm()


def test_without_a_broadcast_or_with_delta_it_is_the_plain_server_step() -> None:
    config = FederatedConfig(server_lr=3.0, momentum=0.9, server_rule="adam")
    mean, state = 0.01 * _weights(1), ServerState.start(_weights())
    index = torch.arange(D)
    plain = server_step(state, index, mean, config).weights
    for broadcast in (None, Broadcast(bits=2)):
        q = received(broadcast, state.weights)
        after = broadcast_step(state, index, mean, config, broadcast=broadcast, received=q)
        assert torch.equal(after.weights, plain)


@pytest.mark.parametrize("bits", [1, 1.5, 2, 3, 4, 8])
def test_bytes_are_those_of_the_message(bits: float) -> None:
    broadcast = Broadcast(bits=bits, block=48)
    message = codec_of(broadcast).encode(_weights())
    assert bytes_down(broadcast, D) == message.nbytes
    assert bytes_down(broadcast, D) < bytes_up(D) == bytes_down(None, D) == 4 * D


def test_a_bad_broadcast_is_refused() -> None:
    with pytest.raises(ValueError, match="bits=5"):
        received(Broadcast(bits=5), _weights())
    with pytest.raises(ValueError, match="rule='mean'"):
        Broadcast(rule="mean")  # type: ignore[arg-type]


def test_overheard_keeps_the_last_k_and_averages_what_each_showed() -> None:
    heard = Overheard(last=3)
    values = [_weights(seed) for seed in range(5)]
    for value in values:
        heard = heard.hear(torch.arange(D), value)
    torch.testing.assert_close(heard.average(torch.zeros(D)), sum(values[2:]) / 3)
    # Slices of different ranks: each coordinate has the mean of the broadcasts that showed it.
    heard = Overheard().hear(torch.tensor([0, 1]), torch.tensor([1.0, 2.0]))
    heard = heard.hear(torch.tensor([0]), torch.tensor([5.0]))
    assert heard.average(torch.tensor([9.0, 9.0, 7.0])).tolist() == [3.0, 2.0, 7.0]
    assert (Overheard().last, LAST) == (10, 10)
    for last in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="last="):
            Overheard(last=last)  # type: ignore[arg-type]


def test_what_was_overheard_does_not_change_with_the_tensor() -> None:
    value = torch.zeros(2)
    heard = Overheard().hear(torch.arange(2), value)
    value += 1
    assert heard.average(torch.ones(2)).tolist() == [0.0, 0.0]


def test_the_average_of_broadcasts_is_nearer_to_moving_weights_than_any_one() -> None:
    """Why the third measure is there: each round's rounding errs in another way."""
    broadcast, weights, heard = Broadcast(bits=2, block=64), _weights(), Overheard()
    errors: list[float] = []
    for seed in range(LAST):
        weights = weights + 0.1 * _weights(100 + seed)
        q = received(broadcast, weights)
        heard = heard.hear(torch.arange(D), q)
        errors.append(float((q - weights).norm()))
    averaged = float((heard.average(q) - weights).norm())
    assert averaged < 0.95 * min(errors)


def test_the_three_gaps() -> None:
    points = {name: torch.full((2,), float(i)) for i, name in enumerate(("s", "q", "a", "b"))}
    scores = {0.0: 0.9, 1.0: 0.5, 2.0: 0.6, 3.0: 0.7, 1.5: 0.95}
    heard = Overheard().hear(torch.arange(2), points["q"]).hear(torch.arange(2), points["a"])
    found = model_privacy(
        lambda weights: scores[weights[0].item()],
        server=points["s"],
        received=points["q"],
        trained=iter([points["a"], points["b"]]),
        overheard=heard,
    )
    assert found.gaps == pytest.approx({"received": 0.4, "trained": 0.25, "averaged": -0.05})
    assert found.last == 2
    nobody = model_privacy(
        lambda weights: scores[weights[0].item()],
        server=points["s"],
        received=points["q"],
        trained=(),
        overheard=Overheard(),
    )
    assert nobody.gaps == pytest.approx({"received": 0.4, "averaged": 0.4})


def test_local_training_starts_from_the_broadcast(
    make_space: Callable[..., Any], tokens: Tokens, config: FederatedConfig
) -> None:
    space = make_space()
    cohort = Cohort(
        space=space, tokens=tokens, config=config, randomness=Randomness(seed=0, secret_seed=0)
    )
    known = space.flatten(4).double() + 0.1
    index = space.index(2)
    start = received(Broadcast(bits=2), known[index]).float()
    round = Round(index=0, rank=2, clients=np.array([3, 8]), start=start)
    after = list(locally_trained(cohort, round, index=index, known=known, executor=merged_sum))
    assert len(after) == 2
    for client, weights in zip((3, 8), after, strict=True):
        alone = ClippedSum(len(start), None)
        one = Round(index=0, rank=2, clients=np.array([client]), start=start)
        merged_sum(cohort, one, alone)
        torch.testing.assert_close(weights[index], start.double() + alone.value)
        assert alone.value.norm() > config.clip  # a thief does not clip
        outside = torch.ones(len(known), dtype=torch.bool).index_fill(0, index, False)
        assert torch.equal(weights[outside], known[outside])
