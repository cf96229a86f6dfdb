"""What the server shows its clients: its weights, or a coarse copy that protects the model.

The server keeps weights s in full precision; clients only ever see q = dequantise(Q(s)) and train
from there. What they send back is their move from q, as in any other run: the clip, the noise and
the ledger see no difference, and s, hence q, is a function of what was released before. A broadcast
is therefore post-processing and costs no budget.

Symbols: s the server's weights, q what clients receive, w_k a client's weights after training, d
coordinates of a slice.
Source: Zhu et al. (2024), arXiv 2406.10976; federated.md §1.
"""

from __future__ import annotations

from torch import Tensor

from fl_integration.codec import Codec
from fl_integration.config import FederatedConfig
from fl_integration.options import Broadcast
from fl_integration.server import ServerState, server_step

VALUE_BYTES = 4  # of a coordinate that is not quantised


def codec_of(broadcast: Broadcast) -> Codec:
    """The codec of a broadcast (ValueError for bits or a block that there are not)."""
    return Codec(bits=broadcast.bits, block=broadcast.block)


def received(broadcast: Broadcast | None, weights: Tensor) -> Tensor:
    """What clients train from, and all that they ever see of the server's weights.

    **Guarantees**: a deterministic function of ``weights`` alone, so that a broadcast of released
    weights is free; without a broadcast, the weights themselves.

    Arguments:
        weights: (d,) s, of a slice, finite.

    Returns:
        (d,) fp64 q.

    >>> import torch
    >>> received(Broadcast(bits=1, block=2), torch.tensor([1.0, -3.0, 0.0, 5.0]))
    tensor([ 2.0000, -2.0000,  2.5000,  2.5000], dtype=torch.float64)
    """
    if broadcast is None:
        return weights.double()
    return codec_of(broadcast).round_trip(weights)


def broadcast_step(
    state: ServerState,
    index: Tensor,
    mean: Tensor,
    config: FederatedConfig,
    *,
    broadcast: Broadcast | None,
    received: Tensor,
) -> ServerState:
    """Move the server by the clients' released mean move, from where the rule says.

    With rule ``"delta"`` s moves by it: what the copy lost stays with the server. With
    ``"replace"`` q does, which with server_lr=1 and momentum=0 makes s the mean of the w_k.

    Arguments:
        state: before. index: (d,) where the slice lies. mean: (d,) released mean of w_k - q.
        config: the server's rule and rates. received: (d,) q.
    """
    replaced = broadcast is not None and broadcast.rule == "replace"
    return server_step(state, index, mean, config, begin=received if replaced else None)


def bytes_down(broadcast: Broadcast | None, dim: int) -> int:
    """The bytes that a client receives in a round, scales of the blocks included."""
    return VALUE_BYTES * dim if broadcast is None else codec_of(broadcast).size(dim)


def bytes_up(dim: int) -> int:
    """The bytes that a client sends in a round: its move in fp32, whatever it received."""
    return VALUE_BYTES * dim
