"""Who takes part, at which rank, and where every random number comes from.

No generator state is ever stored: each round's stream is a function of (seed, stream, round), or
fresh operating-system entropy where an observer must not be able to replay it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class _Stream(IntEnum):
    RANK = 0
    LOCAL = 1
    COHORT = 2
    NOISE = 3


@dataclass(frozen=True, kw_only=True)
class Randomness:
    """The four separate random streams of a run: public rank, local order, cohort, noise.

    **Guarantees**

    * The streams never share a number, whatever the seeds (0 is a seed like any other).
    * With ``secret_seed=None`` cohort and noise come from fresh operating-system entropy each time
      they are asked for, so no logged seed and no checkpoint can reproduce them: subtracting the
      noise would undo the privacy, and amplification by sampling needs a secret cohort too.
    * Otherwise a round's streams depend on (seed, round) only, so a resumed run repeats them.

    Arguments:
        seed: seeds ranks and local order, which are public.
        secret_seed: seeds cohort and noise, or ``None`` for operating-system entropy.
    """

    seed: int
    secret_seed: int | None

    def rank(self, round: int) -> np.random.Generator:
        """The public generator of a round's rank: it sees no data and no cohort."""
        return _seeded(self.seed, _Stream.RANK, round)

    def local(self, round: int, client: int) -> np.random.Generator:
        """The order of one client's texts; per client, so no executor can change it."""
        return _seeded(self.seed, _Stream.LOCAL, round, client)

    def cohort(self, round: int) -> np.random.Generator:
        """The generator that draws who takes part."""
        return self._secret(_Stream.COHORT, round)

    def noise(self, round: int) -> np.random.Generator:
        """The generator of the released noise."""
        return self._secret(_Stream.NOISE, round)

    def _secret(self, stream: _Stream, round: int) -> np.random.Generator:
        """Seeded for experiments, else fresh entropy that nobody keeps."""
        if self.secret_seed is None:
            return np.random.default_rng()
        return _seeded(self.secret_seed, stream, round)


def _seeded(seed: int, *key: int) -> np.random.Generator:
    """A generator that only (seed, key) decides."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=tuple(map(int, key))))


def poisson_cohort(clients: int, *, rate: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw each of ``clients`` clients independently with probability ``rate``.

    **Guarantees**

    * No client appears twice; an empty cohort is possible and is returned as such.
    * The cost grows with the cohort, not with the population (binomial size, distinct indices).

    Arguments:
        clients: N >= 1. rate: q in [0, 1]. rng: the cohort's own generator.

    Returns:
        sorted distinct indices in [0, N).

    Raises:
        ValueError: when ``clients`` or ``rate`` is out of range.

    >>> poisson_cohort(10, rate=1.0, rng=np.random.default_rng(0)).tolist()
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """
    if clients < 1:
        raise ValueError(f"Expected clients={clients} >= 1.")
    if not 0 <= rate <= 1:
        raise ValueError(f"Expected rate={rate} in [0, 1].")
    size = int(rng.binomial(clients, rate))
    return np.sort(rng.choice(clients, size=size, replace=False, shuffle=False)).astype(np.int64)


def public_rank(probabilities: Sequence[float], *, rng: np.random.Generator) -> int:
    """Draw one rank of 1..R for a whole round from a public law.

    Arguments:
        probabilities: one a rank, summing to 1. rng: the public generator of the round.

    >>> public_rank((0.0, 1.0), rng=np.random.default_rng(0))
    2

    Source: federated.md §1 (DP-DyLoRA).
    """
    return 1 + int(rng.choice(len(probabilities), p=np.asarray(probabilities)))
