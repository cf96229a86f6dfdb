"""Exact draws of a whole number with whole weights, from uniform 64-bit words.

Symbols: ``W_k`` = 2^128 P(X = k), whole numbers that sum to 2^128.
"""

from __future__ import annotations

import math
import ssl
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from dpmech.noise import Shape

BITS = 128  # of a draw: the far tail of 2^-128 is beyond any delta
WORD = 64
_GUIDE = 16  # leading bits that tell most draws
_BLOCK = 1 << 16  # draws at a time: they stay in the cache
Whole = NDArray[np.int64]
Words = NDArray[np.uint64]
Bits = Callable[[int], Words]


def secret_words(count: int) -> Words:
    """Uniform 64-bit words that nobody can replay.

    **Guarantees.** They come from OpenSSL's generator, AES-256 in counter mode, seeded from the
    entropy of the operating system and again after every fork. Whoever foretells the next words
    from those seen breaks AES; there is no seed to log.
    """
    return np.frombuffer(ssl.RAND_bytes(8 * count), dtype=np.uint64)


def seeded_words(rng: np.random.Generator) -> Bits:
    """Words from a generator that can be seeded: for tests and experiments, not for secrets."""

    def words(count: int) -> Words:
        return rng.integers(0, 2**WORD, count, dtype=np.uint64)

    return words


class WholeTable:
    """Draws ``first`` + i with probability ``weights[i]`` / 2^128.

    **Guarantees.** Exact, as long as the words it is given are uniform and independent: whole
    numbers are compared and nothing else. How many words are asked for depends on them alone.

    Arguments:
        weights: whole numbers above 0 that sum to 2^128. first: the value of the first.

    >>> WholeTable([2**127, 2**127], first=-1).draw(3, lambda n: np.zeros(n, np.uint64)).tolist()
    [-1, -1, -1]
    """

    def __init__(self, weights: Sequence[int], first: int) -> None:
        total, high, low = 0, list[int](), list[int]()
        for weight in weights[:-1]:
            total += weight
            high.append(total >> WORD)
            low.append(total & (2**WORD - 1))
        if total + weights[-1] != 2**BITS:
            raise ValueError(
                f"Expected weights that sum to 2^{BITS}, got {total + weights[-1]} of {2**BITS}."
            )
        self.first = first
        self._high, self._low = np.array(high, np.uint64), np.array(low, np.uint64)
        # For the leading bits of a draw: how many sums lie below, and whether none lies inside.
        starts = np.arange(2**_GUIDE, dtype=np.uint64) << np.uint64(WORD - _GUIDE)
        ends = starts + np.uint64(2 ** (WORD - _GUIDE) - 1)
        below = np.searchsorted(self._high, starts, side="left")
        self._below = below.astype(np.int32)
        self._clear = below == np.searchsorted(self._high, ends, side="right")

    def draw(self, shape: Shape, words: Bits = secret_words) -> Whole:
        """Independent draws from words, by default from words that are secret."""
        size = math.prod((shape,) if isinstance(shape, int) else shape)
        drawn = np.empty(size, dtype=np.int64)
        for start in range(0, size, _BLOCK):
            part = drawn[start : start + _BLOCK]
            part[:] = self._places(words(len(part)), words)
        return drawn.reshape(shape)

    def _places(self, word: Words, words: Bits) -> Whole:
        """The value in whose part of [0, 2^128) a draw lies; a second word decides ties."""
        leading = word >> np.uint64(WORD - _GUIDE)
        place = self._below[leading].astype(np.int64)
        open_ = np.flatnonzero(~self._clear[leading])
        left = np.searchsorted(self._high, word[open_], side="left")
        right = np.searchsorted(self._high, word[open_], side="right")
        place[open_] = left
        tied = np.flatnonzero(left < right)
        for row, second in zip(tied.tolist(), words(len(tied)), strict=True):
            inside = self._low[left[row] : right[row]]
            place[open_[row]] += int(np.searchsorted(inside, second, side="right"))
        return place + self.first
