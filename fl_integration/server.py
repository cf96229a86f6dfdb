"""The server's half of a round: noise on the sum, a fixed denominator, an optimiser step.

Everything here is fp64 over the full-size vector (rank R); a round of rank b touches the
coordinates of its slice only, so momentum belongs to coordinates and not to ranks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dpmech import Noise
from dpmech.noise import checked_positive
from dpmech.spherical import Spherical
from fl_integration.config import FederatedConfig
from fl_integration.sampler import Rng, noise_of

BETA2 = 0.99  # Adam's memory of squares: about 100 visits of a coordinate
ADAM_FLOOR = 1e-8  # keeps a coordinate that never moved at rest


@dataclass(frozen=True, kw_only=True, eq=False)
class ServerState:
    """The server's weights and optimiser memory, (D,) fp64 each; D = dim(R).

    weights: the model. first, second: running mean of updates and of their squares.
    visits: how often each coordinate was in a round's slice. averaged: running mean of the
    weights, a function of what was released and so free of charge.
    """

    weights: Tensor
    first: Tensor
    second: Tensor
    visits: Tensor
    averaged: Tensor

    @classmethod
    def start(cls, weights: Tensor) -> ServerState:
        """A state without memory at some weights."""
        wide = weights.detach().double().cpu()
        zero = torch.zeros_like(wide)
        return cls(
            weights=wide,
            first=zero,
            second=zero.clone(),
            visits=zero.clone(),
            averaged=wide.clone(),
        )

    def shown(self, config: FederatedConfig) -> Tensor:
        """The weights that are evaluated and exported: the averaged ones where there are any."""
        return self.averaged if config.average else self.weights

    def averaging(self, config: FederatedConfig, *, rounds: int) -> ServerState:
        """The state with its weights, after ``rounds`` rounds, in the running mean.

        A plain mean at first, which forgets at the rate 1 - β once it is 1/(1 - β) rounds long.
        """
        keep = min(config.average, (rounds - 1) / rounds)
        return replace(self, averaged=keep * self.averaged + (1 - keep) * self.weights)


def noisy_mean(total: Tensor, *, noise: Noise | None, rng: Rng, denominator: float) -> Tensor:
    """Release a clipped sum: add noise to the whole vector at once, divide by a constant.

    **Guarantees**

    * One draw covers every coordinate, in fp64.
    * The denominator is the *expected* cohort: dividing by the realised one would reveal it and
      would break the sensitivity.

    Arguments:
        total: (d,) fp64 clipped sum. noise: the law, in the units of the sum; ``None`` without
        privacy. rng: the noise's own generator, ``None`` for secret words. denominator: q·N > 0.

    Raises:
        ValueError: when ``denominator`` is not positive, or a spherical law too short.
    """
    checked_positive("denominator", denominator)
    if noise is None:
        return total / denominator
    length = int(noise.dim) if isinstance(noise, Spherical) else total.numel()
    if length < total.numel():
        raise ValueError(f"Expected {noise} to have dim >= {total.numel()} coordinates.")
    drawn = noise_of(noise, length, rng)
    # The coordinates of a slice are those that the whole vector's noise begins with: a spherical
    # law is the same in every direction.
    return (total + torch.from_numpy(drawn[: total.numel()])) / denominator


def server_step(
    state: ServerState,
    index: Tensor,
    mean: Tensor,
    config: FederatedConfig,
    *,
    begin: Tensor | None = None,
) -> ServerState:
    """Move the weights of a slice along its released mean delta.

    Arguments:
        state: before. index: (d,) where the slice lies. mean: (d,) released mean delta.
        config: server_rule, server_lr, momentum (Adam's β1).
        begin: (d,) where the step starts from instead of the server's own weights.

    Returns:
        the state after; nothing outside ``index`` changes.
    """
    mean = mean.double()
    begin = state.weights[index] if begin is None else begin.double()
    visits = state.visits[index] + 1
    if config.server_rule == "adam":
        first = config.momentum * state.first[index] + (1 - config.momentum) * mean
        second = BETA2 * state.second[index] + (1 - BETA2) * mean.square()
        root = (second / (1 - BETA2**visits)).sqrt() + ADAM_FLOOR
        step = first / (1 - config.momentum**visits) / root
    else:
        first = config.momentum * state.first[index] + mean
        second = state.second[index]
        step = first
    return replace(
        state,
        weights=_put(state.weights, index, begin + config.server_lr * step),
        first=_put(state.first, index, first),
        second=_put(state.second, index, second),
        visits=_put(state.visits, index, visits),
    )


def _put(full: Tensor, index: Tensor, values: Tensor) -> Tensor:
    """A copy of ``full`` with new values at ``index``."""
    return full.index_copy(0, index, values)
