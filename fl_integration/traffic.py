"""How many bytes a run moves between the server and one client.

Symbols: N clients, q sampling rate of a client in a round, T rounds, b public rank of a round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from fl_integration.broadcast import bytes_down, bytes_up
from fl_integration.config import FederatedConfig
from fl_integration.spaces import FlatSpace
from fl_integration.systems import period, trained

NUMBER_BYTES = 8  # of an answer to a query


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Bytes of one client over a whole run, expected: it takes part in a round with probability q.

    down, up: received and sent. full: what every weight of the model would take one way, in fp32
    and as often.
    """

    down: int
    up: int
    full: int


def traffic(
    space: FlatSpace,
    config: FederatedConfig,
    *,
    ranks: Sequence[int],
    clients: int,
    asked: bool = False,
) -> Traffic | None:
    """Return what a client received and sent, or ``None`` where the data are in one place.

    A client that takes part receives every coordinate that some round changes (it may have missed
    the last ones), quantised or not, and sends those that this round trains. What never changes
    follows from the public seed. A silo takes part in every round. A client that a query asks
    receives as much, and sends a number. A head start sends the head both ways.

    Arguments:
        space, config: of the run. ranks: (T,) the public rank of each round. clients: N.
        asked: whether the configuration's queries were asked.
    """
    if config.unit == "example" and config.silos is None:
        return None
    turns = period(config.system)

    @lru_cache
    def sizes(rank: int, turn: int) -> tuple[int, int]:
        masks = [trained(space, config.system, rank=rank, round=r) for r in range(turns)]
        changing = int(torch.stack(masks).any(0).sum())
        return bytes_down(config.broadcast, changing), bytes_up(int(masks[turn].sum()))

    share = config.rate(clients)
    down = up = 0.0
    for t, rank in enumerate(ranks):
        received, sent = sizes(rank, t % turns)
        due = [query.cohort for query in config.queries if query.due(t)] if asked else []
        beside = sum(due) / clients
        down += (share + beside) * received
        up += share * sent + beside * NUMBER_BYTES
    full = share * len(ranks) * bytes_up(_weights(space))
    start = config.head_start
    if start is not None:
        times = start.rounds * (start.cohort or clients) / clients
        head = trained(space, "probe", rank=space.rank, round=0)
        down += times * bytes_down(None, int(head.sum()))
        up += times * bytes_up(int(head.sum()))
        full += times * bytes_up(_weights(space))
    return Traffic(down=round(down), up=round(up), full=round(full))


def _weights(space: FlatSpace) -> int:
    """How many weights a model has without its adapters."""
    named = space.classifier.named_parameters()
    return sum(p.numel() for name, p in named if ".lora_" not in name)
