"""Uniform 64-bit words, what is made of them, and what the tables that draw laws have in common.

Symbols: ``V`` uniform real in (0, 2^62] whose leading digits are known however near to 0 it lies.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import cache
from importlib import import_module
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from dpmech.drawing import Bits, Words, secret_words, seeded_words
from dpmech.noise import Floats, Noise, Shape

SIGN, HALF = np.uint64(1 << 63), np.uint64(62)
LOW = np.uint64((1 << 62) - 1)
# Below this, the 62 bits of V tell fewer than the 53 digits that doubles have.
SHORT = np.uint64(1 << 52)
_TOP = 2.0**62
_LEAST = 4e-300  # of its range, V is not drawn below it: tails end at P(X > x) = 1e-300
_BLOCK = 1 << 14  # draws at a time: they stay in the cache
_WORTH_COMPILING = 1 << 18  # draws; loading numba takes half a second
Index = NDArray[np.int64]


def lengthened(short: Words, words: Bits) -> Floats:
    """V by its 62 bits ``short``, and by as many words more as it takes to know 53 digits."""
    value, weight = short.astype(np.float64), 1.0
    open_ = np.flatnonzero(short < SHORT)
    while len(open_) and weight > _LEAST:
        weight *= 2.0**-64
        value[open_] += words(len(open_)).astype(np.float64) * weight
        open_ = open_[value[open_] < float(SHORT) * weight]
    return np.maximum(value, _TOP * _LEAST)


def units(count: int, words: Bits) -> Floats:
    """Uniform reals in (0, 1], with 53 digits however small they are."""
    return lengthened(words(count) & LOW, words) / _TOP


def with_signs(size: Floats, words: Words) -> Floats:
    """``size``, negative where the first bit of the word is set; changed in place."""
    bits = size.view(np.uint64)
    bits |= words & SIGN
    return size


@cache
def _has_kernels() -> bool:
    """Whether numba is there, and finds a place for what it compiles."""
    try:
        import_module("dpmech._quantile_kernels")
    except (ImportError, RuntimeError):
        return False
    return True


class Table(ABC):
    """Draws of one law from uniform words.

    **Guarantees.** What is drawn depends on the words alone, and not on whether numba is installed.
    """

    law: Noise
    words_a_draw: ClassVar[int]

    @abstractmethod
    def most(self, words: Words, *, compiled: bool) -> tuple[Floats, Index, Words]:
        """Draws, the rows of those that need more words, and the words that those have.

        Arguments:
            words: shape (words_a_draw * n,). compiled: by numba, which must be there.
        """

    @abstractmethod
    def rest(self, words: Words, more: Bits) -> Floats:
        """The draws that need more words, of which ``more`` returns as many as it is asked for."""

    def draw(self, shape: Shape, words: Bits = secret_words) -> Floats:
        """Independent draws in the units of the query, by default from words that are secret."""
        size = math.prod((shape,) if isinstance(shape, int) else shape)
        compiled = size >= _WORTH_COMPILING and _has_kernels()
        drawn, kept = np.empty(size), list[tuple[Index, Words]]()
        for start in range(0, size, _BLOCK):
            part = drawn[start : start + _BLOCK]
            asked = words(self.words_a_draw * len(part))
            part[:], rows, first = self.most(asked, compiled=compiled)
            kept.append((rows + start, first))
        if kept:
            rows, first = (np.concatenate(parts) for parts in zip(*kept, strict=True))
            drawn[rows] = self.rest(first, words)
        return drawn.reshape(shape)

    def sample(self, shape: Shape, rng: np.random.Generator) -> Floats:
        """Independent draws that the generator decides: for experiments."""
        return self.draw(shape, seeded_words(rng))
