"""Real clients over Flower: the same loop, its executor sends messages instead of training.

`federate` stays what it is: it draws the public rank and the Poisson cohort from the *registered*
nodes, adds the noise, divides by the expected cohort, keeps ledger and checkpoints. `FlowerClients`
is its executor: it asks the nodes of a cohort, and clips whatever arrives, for a client may run any
code. On a node `trained_reply` trains as the simulation does, with the clip on the client;
`clip_mod` puts that clip behind a training function of one's own.

    # server_app.py                                  # client_app.py
    @app.main()                                      @app.train(mods=[clip_mod])
    def main(grid, context):                         def train(message, context):
        federate(space, tokens, config, plan,            return trained_reply(message, space, mine)
                 executor=FlowerClients(grid, nodes))

What a message holds: the weights of the round's slice ("arrays": start, trained), and the round,
rank, clip and configuration ("config"). A reply holds the clipped move ("arrays": delta), fp32.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fl_integration.client import Tokens
from fl_integration.clipping import ClippedSum, clip_flat
from fl_integration.cohort import Cohort, Round, loop_sum
from fl_integration.config import FederatedConfig
from fl_integration.sampler import Randomness
from fl_integration.spaces import FlatSpace

ARRAYS, CONFIG, DELTA, START, TRAINED = "arrays", "config", "delta", "start", "trained"
TRAIN = "train"
Message = Any  # flwr.app.Message; flwr has an extra of its own, and is imported when it is used


def _flower() -> Any:
    """The messages of Flower, or why there are none."""
    try:
        return import_module("flwr.app")
    except ImportError as error:
        raise ValueError(
            "Flower is not installed; run: pip install 'dpmech[flower]' in an environment of its"
            " own (docs/how-to/use-flower.md)."
        ) from error


class FlowerClients:
    """An executor whose clients are Flower nodes: pass it to `federate`.

    **Guarantees**

    * A node moves the sum by at most the clip, whatever it sends and however often: its first
      reply is clipped here again, and one that is late, broken or not asked for adds nothing.
    * Which node is asked is the loop's Poisson sample of ``nodes``; whether it answers changes
      neither the denominator nor what is paid for.

    The unit of privacy is the node: one user a node.

    alone: a node trains by itself, on its own texts, so what it sends depends on no other.

    Arguments:
        grid: of Flower's ServerApp. nodes: ids of all *registered* nodes, in a fixed order; client
            i of the federation is nodes[i], connected or not.
        timeout: seconds that a round waits for replies.

    Raises:
        ValueError: when a node is registered twice, for it would be drawn twice as often.
    """

    alone: ClassVar[bool] = True

    def __init__(self, grid: Any, nodes: Sequence[int], *, timeout: float = 3600.0) -> None:
        self.grid, self.nodes, self.timeout = grid, tuple(nodes), timeout
        if len(set(self.nodes)) != len(self.nodes):
            raise ValueError(f"Expected {len(self.nodes)} different nodes, got a node twice.")

    def __call__(self, cohort: Cohort, round: Round, total: ClippedSum) -> None:
        """Ask the nodes of a round, and add what arrives."""
        if type(cohort) is not Cohort:
            raise ValueError(
                f"Expected silos=None over Flower, got {cohort.config.silos}: a silo adds its noise"
                " itself, in steps that its node would have to run."
            )
        if len(cohort.tokens.data.clients) != len(self.nodes):
            raise ValueError(
                f"Expected {len(cohort.tokens.data.clients)} clients to be as many registered"
                f" nodes, got {len(self.nodes)}."
            )
        asked = [self.nodes[client] for client in round.clients.tolist()]
        messages = [_request(node, round, total.bound, cohort.config) for node in asked]
        replies = self.grid.send_and_receive(messages, timeout=self.timeout)
        for delta in _deltas(replies, asked, dim=len(round.start)):
            total.add(delta)


def trained_reply(message: Message, space: FlatSpace, tokens: Tokens) -> Message:
    """Train on a node's own texts as a message asks, and reply with the clipped move.

    **Guarantees**: the reply holds one vector of norm at most the clip (up to its rounding to fp32,
    which the server's own clip takes off), and nothing else: no loss, no number of texts.

    Arguments:
        message: of `FlowerClients`. space: of the same model and configuration as the server's.
        tokens: a federation of one client, whose texts are this node's.
    """
    settings = message.content[CONFIG]
    round = _round_of(message)
    config = FederatedConfig.from_dict(json.loads(settings["config"]))
    randomness = Randomness(seed=config.seed, secret_seed=None)
    cohort = Cohort(space=space, tokens=tokens, config=config, randomness=randomness)
    total = ClippedSum(len(round.start), settings.get("clip"))
    loop_sum(cohort, round, total)
    return _reply(message, total.value)


def clip_mod(message: Message, context: Any, call_next: Callable[..., Message]) -> Message:
    """A mod for Flower's ClientApp: what the app sends as its ``delta`` leaves the node clipped.

    **Guarantees**: the reply's only record is the delta, one flat vector of norm at most the
    round's clip, up to its rounding to fp32; what is not finite becomes zero. Metrics that the app
    adds are taken out.

    Arguments:
        message: of `FlowerClients`. context, call_next: Flower's.
    """
    reply = call_next(message, context)
    if reply.has_error() or message.metadata.message_type.partition(".")[0] != TRAIN:
        return reply
    delta = _vector(reply.content[ARRAYS][DELTA])
    return _reply(message, clip_flat(delta, message.content[CONFIG].get("clip")))


def _request(node: int, round: Round, clip: float | None, config: FederatedConfig) -> Message:
    """What a node is asked."""
    app = _flower()
    settings: dict[str, Any] = {"round": round.index, "rank": round.rank}
    settings["config"] = json.dumps(config.to_dict())
    arrays = {START: app.Array(round.start.numpy())}
    if clip is not None:
        settings["clip"] = float(clip)
    if round.trained is not None:
        arrays[TRAINED] = app.Array(round.trained.numpy())
    records = {ARRAYS: app.ArrayRecord(arrays), CONFIG: app.ConfigRecord(settings)}
    return app.Message(app.RecordDict(records), dst_node_id=node, message_type=TRAIN)


def _round_of(message: Message) -> Round:
    """The round that a node is asked to train in, as its only client."""
    arrays, settings = message.content[ARRAYS], message.content[CONFIG]
    trained = torch.from_numpy(arrays[TRAINED].numpy().copy()) if TRAINED in arrays else None
    return Round(
        index=settings["round"],
        rank=settings["rank"],
        clients=np.zeros(1, dtype=np.int64),
        start=_vector(arrays[START]),
        trained=trained,
    )


def _reply(message: Message, delta: Tensor) -> Message:
    """A reply with one vector."""
    app = _flower()
    record = app.ArrayRecord({DELTA: app.Array(delta.float().numpy())})
    return app.Message(app.RecordDict({ARRAYS: record}), reply_to=message)


def _deltas(replies: Iterable[Message], asked: Sequence[int], *, dim: int) -> Iterable[Tensor]:
    """The moves of the nodes that were asked, one each; what cannot be read is left out."""
    waiting = set(asked)
    for reply in replies:
        node = reply.metadata.src_node_id
        if node not in waiting:  # not asked, or heard already
            continue
        waiting.remove(node)
        delta = None if reply.has_error() else _readable(reply, dim)
        if delta is not None:
            yield delta


def _readable(reply: Message, dim: int) -> Tensor | None:
    """The vector of a reply, if there is one of the right length."""
    try:
        delta = _vector(reply.content[ARRAYS][DELTA])
    except Exception:  # a client may send anything, and nothing that it sends ends the run
        return None
    return delta if delta.shape == (dim,) else None


def _vector(array: Any) -> Tensor:
    """An array of Flower as a vector of numbers; anything else is no vector."""
    values: NDArray[Any] = array.numpy()
    if values.dtype.kind != "f":
        raise ValueError(f"Expected an array of floats, got dtype={values.dtype}.")
    return torch.from_numpy(np.ascontiguousarray(values)).reshape(-1).clone()
