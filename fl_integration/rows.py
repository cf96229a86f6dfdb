"""Labelled rows of text, before they are dealt to clients; and the stable split of names."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

HELD_OUT = 0.15


def stable_share(name: str) -> float:
    """Map a name to [0, 1), uniformly over names and the same on every machine and in every run."""
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big") / 2.0**64


def held_out(names: Sequence[str]) -> NDArray[np.bool_]:
    """Mark the names that belong to the test set: about 15 %, all equal names together."""
    side = {name: stable_share(name) < HELD_OUT for name in set(names)}
    return np.array([side[name] for name in names], dtype=np.bool_)


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """Parallel columns: text, label name, client name (no clients at all: empty) and test mark."""

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    clients: tuple[str, ...]
    test: NDArray[np.bool_]

    def __post_init__(self) -> None:
        n = len(self.texts)
        if len(self.labels) != n or len(self.test) != n or len(self.clients) not in (0, n):
            raise ValueError(
                f"Expected columns of {n} rows, got {len(self.labels)} labels, "
                f"{len(self.clients)} clients, {len(self.test)} test marks."
            )
