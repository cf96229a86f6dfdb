"""The plug points of a run that are off unless a configuration names them; each one checked.

Kept apart from the code that honours them, because a configuration needs only what they say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from dpmech.noise import checked_positive
from fl_integration.codec import Codec

BroadcastRule = Literal["delta", "replace"]

BATCH_CLIP = (
    "Expected clips={!r} to be 'example': clipping the mean gradient of a batch bounds what the"
    " batch contributes, not what one example does, so the noise would hide no example."
)


@dataclass(frozen=True, kw_only=True)
class Broadcast:
    """What clients receive instead of the server's weights: a quantised copy (FedLPP).

    Arguments:
        bits: 1, 1.5, 2, 3, 4 or 8 bits a value. block: values that share a scale.
        rule: the server adds the clients' mean move to its own weights (``"delta"``), or takes
            over their mean (``"replace"``).

    Source: federated.md §1 (FedLPP).
    """

    bits: float = 4
    block: int = 64
    rule: BroadcastRule = "delta"

    def __post_init__(self) -> None:
        one_of("rule", self.rule, get_args(BroadcastRule))
        Codec(bits=self.bits, block=self.block)  # refuses other numbers


@dataclass(frozen=True, kw_only=True)
class SiloNoise:
    """Noise inside the silos' own steps: every silo takes part in every round (DP-LoRA).

    Arguments:
        steps: local steps a round. rate: q, each example's probability of being in a step.
        sizes: the declared, public number of examples of every silo. It divides the noised sums, so
            it is never counted from the data. clips: only ``"example"`` is legal; it says so.

    Source: federated.md §1 (DP-LoRA).
    """

    steps: int = 1
    rate: float = 0.1
    sizes: tuple[int, ...] = ()
    clips: Literal["example"] = "example"

    def __post_init__(self) -> None:
        checked_whole("steps", self.steps, least=1)
        if not 0 < self.rate <= 1:
            raise ValueError(f"Expected rate={self.rate} in (0, 1].")
        if self.clips != "example":
            raise ValueError(BATCH_CLIP.format(self.clips))
        object.__setattr__(self, "sizes", tuple(self.sizes))  # JSON has lists only
        for size in self.sizes:
            checked_whole("silos.sizes", size, least=1)


@dataclass(frozen=True, kw_only=True)
class HeadStart:
    """A private probe before the adapters: first the head alone, then everything, in one ledger.

    The head has a hundredth of the coordinates, so its noise is small and its features never
    change: it learns fast for little, and the adapters start where their gradients mean something.

    Arguments:
        share: of ε, what the probe alone would cost; the adapters get what composition leaves.
        rounds, cohort, clip, lr, momentum, average: the probe's own; ``clip`` bounds a client's
            gradient (at most √2 for one text), ``lr`` is the server's step along their mean,
            ``cohort`` 0 is everybody (no sampling).

    Raises:
        ValueError: on a value outside its range.
    """

    share: float = 0.5
    rounds: int = 50
    cohort: float = 0.0
    clip: float = 0.2
    lr: float = 50.0
    momentum: float = 0.9
    average: float = 0.9

    def __post_init__(self) -> None:
        checked_whole("head_start.rounds", self.rounds, least=1)
        for name in ("clip", "lr"):
            checked_positive(f"head_start.{name}", getattr(self, name))
        if not 0 < self.share < 1:
            raise ValueError(f"Expected head_start.share={self.share} in (0, 1).")
        if not (math.isfinite(self.cohort) and self.cohort >= 0):
            raise ValueError(f"Expected head_start.cohort={self.cohort} >= 0 and finite.")
        for name in ("momentum", "average"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"Expected head_start.{name}={getattr(self, name)} in [0, 1).")


def one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """ValueError where the value is none of those allowed."""
    if value not in allowed:
        raise ValueError(f"Expected {name}={value!r} to be one of {allowed}.")


def checked_whole(name: str, value: object, *, least: int) -> None:
    """ValueError where the value is no whole number of at least ``least``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"Expected {name}={value!r} to be a whole number >= {least}.")


def option(kind: type[Any], value: object) -> Any:
    """An option as it stands, or from the mapping that JSON or TOML made of it."""
    return kind(**value) if isinstance(value, Mapping) else value
