"""What a federated run is told: one frozen, checked object.

Symbols: R the adapters' largest rank, b the public rank of a round, N clients, q sampling rate,
C clip.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

from dpmech.noise import checked_positive
from fl_integration.options import (
    Broadcast,
    HeadStart,
    SiloNoise,
    checked_whole,
    one_of,
    option,
)
from fl_integration.queries import AdaptiveClip, ScalarQuery
from fl_integration.scales import Scale

System = Literal["dylora", "lora", "ffa-lora", "rolora", "probe", "full"]
Unit = Literal["user", "example"]
ServerRule = Literal["sgd", "adam"]
ExecutorName = Literal["auto", "loop", "merged", "vmap"]

CLIENT_RANK = (
    "Expected rank_drawn_by={!r} to be 'server': a rank drawn by a client decides which"
    " coordinates it fills, so the support and the per-slice counts show who took part and the"
    " clip no longer bounds what is released. Let the server draw one public rank for the whole"
    " round."
)


@dataclass(frozen=True, kw_only=True)
class FederatedConfig:
    """Everything a federated run needs to know besides its data, its model and its privacy plan.

    **Guarantees**

    * The object is checked when it is built; a bad value never reaches the first round.
    * The rank of a round is drawn by the server, independently of every client's data.

    Arguments:
        system: what a round trains: ``"dylora"`` (one public rank b ~ p a round), ``"lora"``
            (always rank R), ``"ffa-lora"`` (B only), ``"rolora"`` (B and A in turn), ``"probe"``
            (the head only), each with the head, or ``"full"`` (every weight of the model).
        unit: whom the privacy protects, and who is drawn: a ``"user"`` with all its texts, or an
            ``"example"`` (then the data are dealt one text a client: `as_examples`).
        rank: R, the largest adapter rank.
        rank_probabilities: p over 1..R (``None``: uniform); only for ``"dylora"``.
        rank_drawn_by: only ``"server"`` is legal; the field is there to say so.
        scale, alpha: the adapters' scale mode and α (they must be the adapter space's own).
        targets: names of the linear layers that get adapters (empty: the model's own default).
        rounds: T. cohort: the *expected* number of clients in a round, q·N.
        clip: C, l2 bound on one client's whole delta (``None`` only without noise).
        local_lr, head_multiplier: client step for the adapters; the head's is the product.
        local_epochs, batch_size, max_texts: passes, texts per step, texts per client and round.
        server_rule, server_lr, momentum: ``"sgd"`` (FedAvg with momentum) or ``"adam"``.
        average: β of a running mean of the released weights, which is what is evaluated and
            exported (0: the last weights). It is post-processing.
        broadcast: clients receive a quantised copy of the weights (FedLPP).
        silos: noise in every silo's own steps instead of at the server (DP-LoRA).
        adaptive: the clip follows a quantile of the norms, from ``clip`` on.
        scalars: what else is asked of the clients, by name: answers, accuracy or loss.
        head_start: a private probe first, with its share of ε (`train` runs both phases).
        executor: how a cohort is computed; the sum is the same.
        eval_every, eval_texts: rounds between evaluations; test texts used (0: all of them).
        seed: seeds what is public (ranks, order of local data); 0 is a seed.
        noise_seed: **experiments only**; ``None`` takes cohort and noise from secret words.

    Raises:
        ValueError: on a value outside its range, or a rank that a client would draw.

    >>> FederatedConfig(rank=2).probabilities
    (0.5, 0.5)

    Source: federated.md §1 (DP-LoRA at the server, DP-DyLoRA).
    """

    system: System = "dylora"
    unit: Unit = "user"
    rank: int = 8
    rank_probabilities: tuple[float, ...] | None = None
    rank_drawn_by: Literal["server"] = "server"
    scale: Scale = "rs"
    alpha: float = 16.0
    targets: tuple[str, ...] = ()
    rounds: int = 20
    cohort: float = 100.0
    clip: float | None = 1.0
    local_lr: float = 0.1
    head_multiplier: float = 100.0
    local_epochs: int = 1
    batch_size: int = 16
    max_texts: int = 16
    server_rule: ServerRule = "sgd"
    server_lr: float = 4.0
    momentum: float = 0.9
    average: float = 0.0
    broadcast: Broadcast | None = None
    silos: SiloNoise | None = None
    adaptive: AdaptiveClip | None = None
    scalars: tuple[ScalarQuery, ...] = ()
    head_start: HeadStart | None = None
    executor: ExecutorName = "auto"
    eval_every: int = 5
    eval_texts: int = 1000
    seed: int = 0
    noise_seed: int | None = None

    def __post_init__(self) -> None:
        """Refuse every value that the loop could not honour."""
        if self.rank_drawn_by != "server":
            raise ValueError(CLIENT_RANK.format(self.rank_drawn_by))
        self._check_names()
        for name in ("rank", "rounds", "local_epochs", "batch_size", "max_texts", "eval_every"):
            checked_whole(name, getattr(self, name), least=1)
        for name in ("seed", "eval_texts"):
            checked_whole(name, getattr(self, name), least=0)
        for name in ("cohort", "alpha", "local_lr", "head_multiplier", "server_lr"):
            checked_positive(name, getattr(self, name))
        if self.clip is not None:
            checked_positive("clip", self.clip)
        if self.noise_seed is not None:
            checked_whole("noise_seed", self.noise_seed, least=0)
        for name in ("momentum", "average"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"Expected {name}={getattr(self, name)} in [0, 1).")
        self._check_probabilities()
        self._check_unit()

    def _check_names(self) -> None:
        """Every choice by name is one that the loop knows."""
        choices = {"system": System, "unit": Unit, "server_rule": ServerRule}
        for name, kind in (choices | {"executor": ExecutorName}).items():
            one_of(name, getattr(self, name), get_args(kind))

    def _check_unit(self) -> None:
        """What only goes together with one unit of privacy."""
        self._check_head_start()
        if self.silos is not None and self.unit != "example":
            raise ValueError(
                f"Expected unit='example' with {self.silos}, got {self.unit!r}: noise in a silo's"
                " own steps hides an example of the silo, not the silo."
            )
        if self.silos is not None and self.queries:
            raise ValueError(
                f"Expected no {self.queries[0].name!r} with {self.silos}: a scalar is about"
                " clients, and here a client is a silo."
            )
        if self.adaptive is not None and self.clip is None:
            raise ValueError(f"Expected clip=None to be a number to start {self.adaptive} from.")
        if self.unit == "example" and self.silos is None and self.max_texts != 1:
            raise ValueError(
                f"Expected max_texts=1 with unit='example', got {self.max_texts}: an example is"
                " one text."
            )

    def _check_head_start(self) -> None:
        """What a head start, which is noised at the server and sent as it is, does not go with."""
        reasons = {
            "silos": "it is noised at the server",
            "broadcast": "clients would receive its head unrounded in each of its rounds",
        }
        for name, why in reasons.items():
            if self.head_start is not None and getattr(self, name) is not None:
                raise ValueError(
                    f"Expected no head_start with {name}={getattr(self, name)}: {why}; write"
                    " --set head_start=none."
                )

    def _check_probabilities(self) -> None:
        """One probability a rank, summing to one, and none at all for a fixed rank."""
        given = self.rank_probabilities
        if given is None:
            return
        if self.system != "dylora":
            raise ValueError(
                f"Expected rank_probabilities={given} to be None: {self.system!r} always uses"
                f" rank={self.rank}."
            )
        if len(given) != self.rank or min(given) < 0 or not math.isclose(sum(given), 1.0):
            raise ValueError(
                f"Expected rank_probabilities={given} to be {self.rank} numbers >= 0 that sum to 1."
            )

    @property
    def trained_ranks(self) -> tuple[int, ...]:
        """The ranks to show and to export: R, and 1, 2, 4, … where cuts were trained, too."""
        if self.system == "full":  # no adapters
            return (1,)
        cuts = range(self.rank.bit_length()) if self.system == "dylora" else ()
        return tuple(sorted({self.rank, *(2**k for k in cuts)}))

    @property
    def probabilities(self) -> tuple[float, ...]:
        """The law of the public rank over 1..R."""
        if self.system != "dylora":
            return (0.0,) * (self.rank - 1) + (1.0,)
        return self.rank_probabilities or (1.0 / self.rank,) * self.rank

    @property
    def queries(self) -> tuple[ScalarQuery, ...]:
        """What is released beside the vectors, in the order of a plan: first the clip's share."""
        return (*(() if self.adaptive is None else (self.adaptive.query,)), *self.scalars)

    def rate(self, clients: int) -> float:
        """The sampling rate q = cohort/N among ``clients`` clients (ValueError when above 1)."""
        if self.silos is not None:
            return 1.0  # every silo takes part in every round
        if not self.cohort <= clients:
            raise ValueError(
                f"Expected cohort={self.cohort} <= {clients} clients; choose a smaller cohort."
            )
        return self.cohort / clients

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-ready values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """The configuration that `to_dict` wrote (ValueError on an unknown field)."""
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(fields) - known)
        if unknown:
            raise ValueError(f"Expected only known fields of FederatedConfig, got {unknown}.")
        values = dict(fields)
        for name in ("rank_probabilities", "targets"):
            if values.get(name) is not None:
                values[name] = tuple(values[name])
        for name, kind in OPTIONS.items():
            values[name] = option(kind, values.get(name))
        values["scalars"] = tuple(option(ScalarQuery, q) for q in values.get("scalars", ()))
        return cls(**values)


OPTIONS = {
    "broadcast": Broadcast,
    "silos": SiloNoise,
    "adaptive": AdaptiveClip,
    "head_start": HeadStart,
}
