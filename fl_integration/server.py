"""The server's half of a round: noise on the sum, a fixed denominator, an optimiser step.

Everything here is fp64 over the full-size vector (rank R); a round of rank b touches the
coordinates of its slice only, so momentum belongs to coordinates and not to ranks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from dpmech import Noise
from fl_integration.adapters import AdapterSpace
from fl_integration.config import FederatedConfig

BETA2 = 0.99  # Adam's memory of squares: about 100 visits of a coordinate
ADAM_FLOOR = 1e-8  # keeps a coordinate that never moved at rest


@dataclass(frozen=True, kw_only=True, eq=False)
class ServerState:
    """The server's weights and optimiser memory, (D,) fp64 each; D = dim(R).

    weights: the model. first, second: running mean of updates and of their squares.
    visits: how often each coordinate was in a round's slice.
    """

    weights: Tensor
    first: Tensor
    second: Tensor
    visits: Tensor

    @classmethod
    def start(cls, weights: Tensor) -> ServerState:
        """A state without memory at some weights."""
        wide = weights.detach().double().cpu()
        zero = torch.zeros_like(wide)
        return cls(weights=wide, first=zero, second=zero.clone(), visits=zero.clone())


def slice_index(space: AdapterSpace, rank: int) -> Tensor:
    """Where the coordinates of the slice at ``rank`` lie in the full-size vector, (dim(rank),)."""
    parts: list[Tensor] = []
    offset = 0
    for full, small in zip(space.shapes(space.rank), space.shapes(rank), strict=True):
        places = torch.arange(offset, offset + full.numel()).view(full)
        parts.append(places[tuple(slice(n) for n in small)].reshape(-1))
        offset += full.numel()
    return torch.cat(parts)


def noisy_mean(
    total: Tensor, *, noise: Noise | None, rng: np.random.Generator, denominator: float
) -> Tensor:
    """Release a clipped sum: add noise to the whole vector at once, divide by a constant.

    **Guarantees**

    * One draw covers every coordinate, in fp64.
    * The denominator is the *expected* cohort: dividing by the realised one would reveal it and
      would break the sensitivity.

    Arguments:
        total: (d,) fp64 clipped sum. noise: the law, in the units of the sum; ``None`` without
        privacy. rng: the noise's own generator. denominator: q·N > 0.

    Raises:
        ValueError: when ``denominator`` is not positive.
    """
    if not (denominator > 0 and math.isfinite(denominator)):
        raise ValueError(f"Expected denominator={denominator} > 0 and finite.")
    if noise is None:
        return total / denominator
    drawn = torch.from_numpy(np.asarray(noise.sample((total.numel(),), rng), dtype=np.float64))
    return (total + drawn) / denominator


def server_step(
    state: ServerState, index: Tensor, mean: Tensor, config: FederatedConfig
) -> ServerState:
    """Move the weights of a slice along its released mean delta.

    Arguments:
        state: before. index: (d,) where the slice lies. mean: (d,) released mean delta.
        config: server_rule, server_lr, momentum (Adam's β1).

    Returns:
        the state after; nothing outside ``index`` changes.
    """
    mean = mean.double()
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
        weights=_put(state.weights, index, state.weights[index] + config.server_lr * step),
        first=_put(state.first, index, first),
        second=_put(state.second, index, second),
        visits=_put(state.visits, index, visits),
    )


def _put(full: Tensor, index: Tensor, values: Tensor) -> Tensor:
    """A copy of ``full`` with new values at ``index``."""
    return full.index_copy(0, index, values)
