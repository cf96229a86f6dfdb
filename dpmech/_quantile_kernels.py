"""The inner loops of the tables, compiled: the operations of numpy in the same order."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from dpmech.drawing import Words
from dpmech.noise import Floats
from dpmech.words import HALF, LOW, SIGN, Index

_ONE = np.int64(1023 << 52)  # the bits of 1.0


@numba.njit(cache=True, error_model="numpy")
def quantiles(words: Words, rows: Floats, shift: int, first: int, x: Floats) -> None:
    """x by the polynomials of the cells; where V has few digits, x is to be drawn again."""
    side, half = rows.shape[1] // 2, 2.0 ** (shift - 53)
    mask = np.int64((1 << shift) - 1)
    for i in range(len(words)):
        word = words[i]
        bits = np.float64(np.int64(word & LOW)).view(np.int64)
        t = np.int64((bits & mask) | _ONE).view(np.float64) - (1.0 + half)
        cell = max((bits >> shift) - first, 0) + side * np.int64((word >> HALF) & np.uint64(1))
        value = rows[5, cell]
        value = value * t + rows[4, cell]
        value = value * t + rows[3, cell]
        value = value * t + rows[2, cell]
        value = value * t + rows[1, cell]
        value = value * t + rows[0, cell]
        signed = np.uint64(np.float64(value).view(np.uint64) | (word & SIGN))
        x[i] = signed.view(np.float64)


@numba.njit(cache=True, error_model="numpy")
def places(
    words: tuple[Words, Words],
    columns: int,
    table: tuple[Index, Index, Floats, Floats],
    drawn: tuple[Floats, NDArray[np.int32]],
) -> None:
    """x and its cell, by the columns that cells share."""
    first, second = words
    own, other, starts, steps = table
    x, cells = drawn
    rest = np.uint64(64 - columns)
    mask = (np.uint64(1) << rest) - np.uint64(1)
    for i in range(len(x)):
        column = np.int64(first[i] >> rest)
        low = np.int64(first[i] & mask)
        cell = column if low < own[column] else other[column]
        place = np.float64(np.int64((second[i] & ~SIGN) >> np.uint64(10)))
        value = place * steps[cell] + starts[cell]
        signed = np.uint64(np.float64(value).view(np.uint64) | (second[i] & SIGN))
        x[i] = signed.view(np.float64)
        cells[i] = cell
