"""The levels of a code book, and codes written to bytes.

Symbols: b bits; L levels of a book; a code is the index of a level, 0..L-1.
Packing: a group of n codes is one number in base L, Σ code_i·L^i, written in m bytes, the lowest
first. Books of 2^b levels waste nothing; five trits a byte (3^5 = 243) cost 1.6 bits a value, where
log2 3 = 1.585 is the least possible.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

import torch
from torch import Tensor

OFFSET = 0.9677083  # the probability whose normal quantile is the outermost level


@dataclass(frozen=True, kw_only=True)
class Book:
    """Levels in increasing order, and how their codes are packed.

    levels: in [-1, 1]. group, width: n codes fill a group of m bytes. l2: whether a block's scale
    is the one of least squared error instead of its largest magnitude.
    """

    levels: tuple[float, ...]
    group: int
    width: int
    l2: bool = False

    @cached_property
    def table(self) -> Tensor:
        """The levels, (L,) fp64."""
        return torch.tensor(self.levels, dtype=torch.float64)

    @cached_property
    def midpoints(self) -> Tensor:
        """Halfway between neighbours, (L-1,) fp64; from one on, the upper level is nearest."""
        return (self.table[1:] + self.table[:-1]) / 2

    @cached_property
    def _powers(self) -> Tensor:
        """L^i, the weight of each code of a group, (n,)."""
        return torch.tensor([len(self.levels) ** i for i in range(self.group)], dtype=torch.int32)

    @cached_property
    def _shifts(self) -> Tensor:
        """Where each byte of a group begins, (m,) bits."""
        return torch.arange(0, 8 * self.width, 8, dtype=torch.int32)

    def size(self, count: int) -> int:
        """How many bytes ``count`` codes take: the last group keeps only the bytes that it needs.

        >>> BOOKS[1.5].size(6), BOOKS[3].size(6), BOOKS[4].size(7)
        (2, 3, 4)
        """
        return -(-count * self.width // self.group)

    def pack(self, codes: Tensor) -> bytes:
        """Write codes (d,), integers in 0..L-1."""
        padded = torch.nn.functional.pad(codes.int(), (0, -len(codes) % self.group))
        words = (padded.view(-1, self.group) * self._powers).sum(1, dtype=torch.int32)
        octets = (words[:, None] >> self._shifts) & 255
        return octets.to(torch.uint8).numpy().tobytes()[: self.size(len(codes))]

    def unpack(self, payload: bytes, count: int) -> Tensor:
        """Read back ``count`` codes, (count,).

        Raises:
            ValueError: when the payload has not ``size(count)`` bytes, or holds a number that no
                group of codes is written as.
        """
        if len(payload) != self.size(count):
            raise ValueError(
                f"Expected {self.size(count)} bytes for {count} values, got {len(payload)}."
            )
        filled = payload + bytes(-len(payload) % self.width)
        octets = torch.frombuffer(bytearray(filled), dtype=torch.uint8) if filled else _nothing()
        words = (octets.view(-1, self.width).int() << self._shifts).sum(1, dtype=torch.int32)
        self._check(words)
        return ((words[:, None] // self._powers) % len(self.levels)).view(-1)[:count]

    def _check(self, words: Tensor) -> None:
        """Refuse a group that is no n digits in base L."""
        limit = len(self.levels) ** self.group
        if len(words) and int(words.max()) >= limit:
            raise ValueError(f"Expected groups below {limit}, got {int(words.max())}.")


def _nothing() -> Tensor:
    """No bytes, which ``torch.frombuffer`` refuses."""
    return torch.empty(0, dtype=torch.uint8)


def normal_float(bits: int) -> tuple[float, ...]:
    """The NormalFloat levels: 2^(b-1) above zero, 2^(b-1) - 1 below, and zero.

    Each side has normal quantiles at evenly spaced probabilities from ``OFFSET`` down to 1/2, and
    reaches 1 in magnitude; the side with more levels is the finer.

    >>> [round(level, 4) for level in normal_float(2)]
    [-1.0, 0.0, 0.3379, 1.0]

    Source: Dettmers et al. (2023), QLoRA, §3 and appendix E.
    """
    half = 2 ** (bits - 1)
    above, below = _quantiles(half), _quantiles(half - 1)
    levels = torch.cat([-below, torch.zeros(1, dtype=torch.float64), above.flip(0)])
    return tuple((levels / levels.max()).tolist())


def _quantiles(count: int) -> Tensor:
    """Normal quantiles at ``count`` even steps from ``OFFSET`` towards, and without, 1/2."""
    return torch.special.ndtri(torch.linspace(OFFSET, 0.5, count + 1, dtype=torch.float64)[:-1])


BOOKS: Mapping[float, Book] = MappingProxyType(
    {
        1: Book(levels=(-1.0, 1.0), group=8, width=1, l2=True),
        1.5: Book(levels=(-1.0, 0.0, 1.0), group=5, width=1),
        2: Book(levels=normal_float(2), group=4, width=1),
        3: Book(levels=normal_float(3), group=8, width=3),
        4: Book(levels=normal_float(4), group=2, width=1),
        8: Book(levels=normal_float(8), group=1, width=1),
    }
)
