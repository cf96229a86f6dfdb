"""Rows of text, before they are dealt to clients; and the stable split of names."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal

import numpy as np
from numpy.typing import NDArray

HELD_OUT = 0.15
Task = Literal["sequence-classification", "token-classification", "next-token"]
Text = str | tuple[str, ...]  # as it stands, or cut into words that have a label each
Label = str | tuple[str, ...]


def stable_share(name: str) -> float:
    """Map a name to [0, 1), uniformly over names and the same on every machine and in every run."""
    return stable_number(name) / 2.0**64


def stable_number(name: str) -> int:
    """Map a name to 0..2^64 - 1, the same on every machine and in every run."""
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big")


def held_out(names: Sequence[Text]) -> NDArray[np.bool_]:
    """Mark the names that belong to the test set: about 15 %, all equal names together."""
    side = {name: stable_share(_joined(name)) < HELD_OUT for name in set(names)}
    return np.array([side[name] for name in names], dtype=np.bool_)


def _joined(name: Text) -> str:
    """A name or a text as one string."""
    return name if isinstance(name, str) else " ".join(name)


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """Parallel columns: text, label (maybe none), client name (maybe none) and test mark."""

    texts: tuple[Text, ...]
    labels: tuple[Label, ...]
    clients: tuple[str, ...]
    test: NDArray[np.bool_]

    def __post_init__(self) -> None:
        n = len(self.texts)
        columns = len(self.labels), len(self.clients)
        if len(self.test) != n or not set(columns) <= {0, n}:
            raise ValueError(
                f"Expected columns of {n} rows, got {len(self.labels)} labels, "
                f"{len(self.clients)} clients, {len(self.test)} test marks."
            )
