"""Who takes part, at which rank, and where every random number comes from.

No generator state is ever stored: each round's stream is a function of (seed, stream, round), or
secret words of AES where an observer must not be able to replay it: whoever sees a noised sum and
knows the sum sees most bits of every draw, and a generator that is not cryptographic can be
computed from so many. ``None`` in the place of a generator stands for those words.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from dpmech import Noise
from dpmech.drawing import secret_words
from dpmech.noise import Floats
from dpmech.words import units
from fl_integration.noise_sampler import NoiseSampler
from fl_integration.rows import stable_number

Rng = np.random.Generator | None  # None: secret words
_BELOW_ONE = 1.0 - 2.0**-53


class _Stream(IntEnum):
    RANK = 0
    LOCAL = 1
    COHORT = 2
    NOISE = 3
    HEAD_START = 4  # 5 and 6 are those of scalars


@dataclass(frozen=True, kw_only=True)
class Randomness:
    """The four separate random streams of a run: public rank, local order, cohort, noise.

    **Guarantees**

    * The streams never share a number, whatever the seeds (0 is a seed like any other).
    * With ``secret_seed=None`` cohort and noise come from `dpmech.drawing.secret_words`, so no
      logged seed and no checkpoint can reproduce them, and no noise that is seen tells of the rest:
      subtracting the noise would undo the privacy, and amplification by sampling needs a secret
      cohort too.
    * Otherwise a round's streams depend on (seed, round) only, so a resumed run repeats them.

    Arguments:
        seed: seeds ranks and local order, which are public.
        secret_seed: seeds cohort and noise, or ``None`` for secret words.
    """

    seed: int
    secret_seed: int | None

    def rank(self, round: int) -> np.random.Generator:
        """The public generator of a round's rank: it sees no data and no cohort."""
        return _seeded(self.seed, _Stream.RANK, round)

    def local(self, round: int, client: str) -> np.random.Generator:
        """The order of the texts of the client of a name: no executor can change it.

        By name, not by place: who comes or goes must not change what the others train on.
        """
        return _seeded(self.seed, _Stream.LOCAL, round, stable_number(client))

    def cohort(self, round: int) -> Rng:
        """The generator that draws who takes part; ``None``: secret words, see `poisson_cohort`."""
        return self._secret(_Stream.COHORT, round)

    def noise(self, round: int) -> Rng:
        """The generator of the released noise; ``None``: secret words, see `noise_of`."""
        return self._secret(_Stream.NOISE, round)

    def _secret(self, stream: _Stream, round: int) -> Rng:
        """Seeded for experiments, else nothing that could be replayed."""
        return None if self.secret_seed is None else _seeded(self.secret_seed, stream, round)


def _seeded(seed: int, *key: int) -> np.random.Generator:
    """A generator that only (seed, key) decides."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=tuple(map(int, key))))


def head_start_seed(secret_seed: int | None) -> int | None:
    """The seed of the cohorts and the noise of the phase before a run's own, from the run's.

    **Guarantees**: its streams are none of the run's. The two phases number their rounds alike, and
    noise that is added twice does not protect as often as it is paid for.

    >>> head_start_seed(None) is None
    True
    """
    if secret_seed is None:
        return None
    return int(_seeded(secret_seed, _Stream.HEAD_START).integers(2**63))


def noise_of(law: Noise, length: int, rng: Rng) -> Floats:
    """Noise for a vector: by the generator, which makes it repeatable, or from secret words.

    **Guarantees**: without a generator, those of `fl_integration.noise_sampler.NoiseSampler`.

    Arguments:
        law: in the units of the query. length: of the vector; of a law of vectors, its dim.

    >>> from dpmech import LMO
    >>> noise_of(LMO(), 3, None).shape
    (3,)
    """
    if rng is not None:
        return np.asarray(law.sample((length,), rng), dtype=np.float64)
    return NoiseSampler(law).sample(length).numpy()


def poisson_cohort(clients: int, *, rate: float, rng: Rng) -> NDArray[np.int64]:
    """Draw each of ``clients`` clients independently with probability ``rate``.

    **Guarantees**

    * No client appears twice; an empty cohort is possible and is returned as such.
    * The cost grows with the cohort, not with the population.

    Arguments:
        clients: N >= 1. rate: q in [0, 1]. rng: the cohort's own generator, or ``None`` for secret
            words.

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
    if rng is None:
        return _secret_cohort(clients, rate)
    size = int(rng.binomial(clients, rate))
    return np.sort(rng.choice(clients, size=size, replace=False, shuffle=False)).astype(np.int64)


def _secret_cohort(clients: int, rate: float) -> NDArray[np.int64]:
    """A Poisson cohort of secret words, by the clients between two that are drawn.

    How many are passed over is geometric: at least k of them where 1 - U <= (1 - q)^k. U is small
    where few are, and small numbers have all their digits (`dpmech.words.units`).
    """
    found, last = [np.zeros(0)], -1.0
    while rate > 0 and last < clients:
        # as many as are left to draw, and in most cases a few more
        left = rate * (clients - last)
        count = int(left + 4 * math.sqrt(left)) + 8
        u = np.minimum(units(count, secret_words), _BELOW_ONE)
        with np.errstate(divide="ignore"):  # at q = 1 nobody is passed over
            passed = np.floor(np.log1p(-u) / np.log1p(-rate))
        found.append(last + np.cumsum(passed + 1))
        last = float(found[-1][-1])
    places = np.concatenate(found)
    return places[places < clients].astype(np.int64)


def public_rank(probabilities: Sequence[float], *, rng: np.random.Generator) -> int:
    """Draw one rank of 1..R for a whole round from a public law.

    Arguments:
        probabilities: one a rank, summing to 1. rng: the public generator of the round.

    >>> public_rank((0.0, 1.0), rng=np.random.default_rng(0))
    2

    Source: federated.md §1 (DP-DyLoRA).
    """
    return 1 + int(rng.choice(len(probabilities), p=np.asarray(probabilities)))
