"""What a server that protects its model broadcasts: every block rounded to a few levels.

A block of B neighbouring values becomes one fp32 scale s and a code for each value, the nearest
level of v/s; the receiver gets s·level. Neither side draws anything: a codec is a deterministic
function of what it is given, so applied to a private model it costs no budget.

| bits | levels | bits a value as packed | and scales, B = 64 | l2 error of normal values |
|---|---|---|---|---|
| 1 | -1, 1 | 1 | 1.5 | 60 % |
| 1.5 | -1, 0, 1 | 1.6: five a byte | 2.1 | 72 % |
| 2, 3, 4, 8 | 2^b NormalFloat, uneven about 0 | b | b + 0.5 | 56, 20, 9, 0.5 % |

The scale is the block's largest magnitude, but in 1 bit: without a level at 0 that would send
*every* value to ±max|v|, an error of 194 %. There s is the mean magnitude, the scale of least
squared error for signs; hence the order of the first two errors. The ternary book is named 1.5 for
its information, log2 3 = 1.585 bits; 1 bit is kept for what fits in one.

Symbols: v values, s scale, B block, d how many values.
Source: Zhu et al. (2024), FedLPP; Dettmers et al. (2023), QLoRA, §3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fl_integration._codebooks import BOOKS, Book

SCALE_BYTES = 4  # fp32: fp16 has no room for adapters that have just left zero (below 6e-8)
# A smaller scale is flushed: subnormal scales have too few digits for a second round trip to agree
# with the first, and some processors drop them.
SMALLEST = torch.finfo(torch.float32).tiny


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoded:
    """What is sent: packed codes and a scale for each block.

    payload: codes as bytes. scales: (⌈d/B⌉,) fp32. count: d, which the receiver knows already.
    """

    payload: bytes
    scales: Tensor
    count: int

    @property
    def nbytes(self) -> int:
        """The bytes broadcast, scales included; d and the codec are agreed on beforehand."""
        return len(self.payload) + SCALE_BYTES * self.scales.numel()


@dataclass(frozen=True)
class Codec:
    """A block-wise quantiser of flat vectors.

    **Guarantees**

    * No coordinate moves by more than half the book's largest gap times the largest magnitude of
      its block (up to fp32 rounding of the scale). Zero stays zero, but in 1 bit.
    * A round trip of a round trip changes nothing; 2^k·v gives 2^k times the result, within the
      range of fp32.
    * Blocks do not see each other. A value halfway between two levels takes the upper one.
    * A block of scale below 2^-126, fp32's smallest normal number, becomes zero.

    Arguments:
        bits: 1, 1.5, 2, 3, 4 or 8: the code book. block: B >= 1 values that share a scale.

    Raises:
        ValueError: for another number of bits, or a block that is no whole number >= 1.

    >>> codec = Codec(bits=2, block=4)
    >>> codec.round_trip(torch.tensor([-4.0, 0.5, 1.0, 3.0]))
    tensor([-4.0000,  0.0000,  1.3517,  4.0000], dtype=torch.float64)
    >>> codec.encode(torch.zeros(1000)).nbytes, codec.size(1000)
    (1250, 1250)

    Source: see the module.
    """

    bits: float = 4
    block: int = 64

    def __post_init__(self) -> None:
        if isinstance(self.bits, bool) or self.bits not in BOOKS:
            raise ValueError(f"Expected bits={self.bits!r} to be one of {tuple(BOOKS)}.")
        if isinstance(self.block, bool) or not isinstance(self.block, int) or self.block < 1:
            raise ValueError(f"Expected block={self.block!r} to be a whole number of at least 1.")

    @property
    def levels(self) -> Tensor:
        """The code book, increasing in [-1, 1], (L,) fp64."""
        return self._book.table.clone()

    def size(self, count: int) -> int:
        """How many bytes ``count`` values take as sent, scales included."""
        return self._book.size(count) + SCALE_BYTES * self._blocks(count)

    def encode(self, values: Tensor) -> Encoded:
        """Round every value to the nearest level of its block, and pack.

        Arguments:
            values: (d,) floating point.

        Raises:
            ValueError: when ``values`` is not one floating-point vector, is not finite, or has a
                block whose scale is beyond fp32.
        """
        flat = _checked(values)
        rows = torch.nn.functional.pad(flat, (0, -len(flat) % self.block)).view(-1, self.block)
        scales = self._scales(rows, len(flat))
        units = torch.where(scales > 0, rows / scales, 0.0).view(-1)[: len(flat)]
        codes = torch.bucketize(units, self._book.midpoints, right=True, out_int32=True)
        payload = self._book.pack(codes)
        return Encoded(payload=payload, scales=scales.view(-1).float(), count=len(flat))

    def decode(self, encoded: Encoded) -> Tensor:
        """Return the values that a receiver sees, (d,) fp64.

        Raises:
            ValueError: when the message was not written by this codec.
        """
        self._check(encoded)
        codes = self._book.unpack(encoded.payload, encoded.count)
        levels = torch.nn.functional.pad(self._book.table[codes], (0, -encoded.count % self.block))
        rows = levels.view(-1, self.block) * encoded.scales.double().view(-1, 1)
        return rows.view(-1)[: encoded.count]

    def round_trip(self, values: Tensor) -> Tensor:
        """Return what a receiver of ``values`` sees, (d,) fp64; raises what ``encode`` raises."""
        return self.decode(self.encode(values))

    @property
    def _book(self) -> Book:
        return BOOKS[self.bits]

    def _blocks(self, count: int) -> int:
        """How many blocks ``count`` values make, a short last one included."""
        return -(-count // self.block)

    def _scales(self, rows: Tensor, count: int) -> Tensor:
        """The scale of every block, (⌈d/B⌉, 1): fp32 numbers, held in fp64."""
        if self._book.l2:
            lengths = (count - self.block * torch.arange(len(rows))).clamp(max=self.block)
            wide = rows.abs().sum(1) / lengths
        else:
            wide = rows.abs().amax(1)
        scales = wide.float().double()
        if bool(torch.isinf(scales).any()):
            raise ValueError(f"Expected blocks of scale within fp32, got {float(wide.max()):g}.")
        return torch.where(scales < SMALLEST, 0.0, scales)[:, None]

    def _check(self, encoded: Encoded) -> None:
        """Refuse scales that this codec does not write."""
        shape, blocks = tuple(encoded.scales.shape), self._blocks(encoded.count)
        if shape != (blocks,):
            raise ValueError(f"Expected {blocks} scales for {encoded.count} values, got {shape}.")
        good = torch.isfinite(encoded.scales) & (encoded.scales >= 0)
        if not bool(good.all()):
            raise ValueError(f"Expected finite scales >= 0, got {encoded.scales[~good][0]:g}.")


def _checked(values: Tensor) -> Tensor:
    """The values in fp64 on the CPU, if they are one finite floating-point vector."""
    if values.ndim != 1 or not values.is_floating_point():
        shape = tuple(values.shape)
        raise ValueError(f"Expected one flat float vector, got {values.dtype} of shape {shape}.")
    wide = values.detach().double().cpu()
    strange = int((~torch.isfinite(wide)).sum())
    if strange:
        raise ValueError(f"Expected finite values, got {strange} of {len(wide)} NaN or infinite.")
    return wide
