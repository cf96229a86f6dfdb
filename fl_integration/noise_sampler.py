"""A noise law as torch tensors: the law that is accounted for, on the device that needs it.

Symbols as in :mod:`dpmech.quantiles`: words of 64 random bits, and the tables that read them. On
the processor the tables do it themselves; on a device the same operations run there, so that
nothing but a key goes to it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dpmech.cell_tables import Cells, CellTable
from dpmech.discrete import DiscreteLaplace
from dpmech.drawing import Bits, secret_words
from dpmech.families import Gaussian
from dpmech.lattice import LatticeNoise
from dpmech.lattice_mixtures import MultiGaussian
from dpmech.noise import Floats, Noise
from dpmech.quantiles import LOWEST, QuantileTable, table_of
from dpmech.spherical import Spherical
from dpmech.words import LOW, SHORT, Index, Table, units, with_signs

_NORMAL = Gaussian(sigma=1.0)
_SIGN = -(2**63)  # the first bit of a word, as a signed number
_DIGITS = 2**53 - 1


class NoiseSampler:
    """Draws of one law.

    **Guarantees.** The law drawn is the law accounted for, as closely as its table says
    (:class:`dpmech.quantiles.QuantileTable`, :class:`dpmech.cell_tables.CellTable`). All is
    computed in fp64, and rounded at the end to the type that is asked for. Laws of vectors keep
    their coordinates together.

    Without a generator nobody can replay the draws. Torch's own knows 2^32 streams at most on the
    processor; these words come from AES-256 in counter mode (:func:`dpmech.drawing.secret_words`),
    and on a CUDA device from Philox with 64 bits of them as the key of the call. Philox is no
    cryptographic generator: where whoever sees the noise of some coordinates might compute with
    that, draw on the processor. On a device tails end where P(abs(X) > x) is below 2^-64; on the
    processor they reach 1e-300. Laws that no table draws come from the same words.

    >>> from dpmech import Laplace
    >>> NoiseSampler(Laplace(b=1.0)).sample((2, 3), dtype=torch.float32).shape
    torch.Size([2, 3])
    """

    def __init__(self, law: Noise) -> None:
        self.law = law

    def sample(
        self,
        shape: int | Sequence[int],
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> Tensor:
        """Draws of this shape, in the units of the query.

        Arguments:
            shape: of laws of vectors the last axis is the vector, of length dim.
            generator: makes the draws repeatable, for experiments; they are made on its device.
            device: where they go; by default that of the generator, or the processor.

        Raises:
            ValueError: a type that is not one of real numbers; a shape that ends in another dim.
        """
        if not dtype.is_floating_point:
            raise ValueError(f"Expected dtype={dtype} to be a type of real numbers.")
        size = (shape,) if isinstance(shape, int) else tuple(shape)
        drawn_on = generator.device if generator else torch.device(device or "cpu")
        source = _source(self.law, generator, drawn_on)
        if isinstance(self.law, Spherical):
            drawn = _spherical(self.law, size, source)
        else:
            drawn = source.draws(self.law, math.prod(size)).reshape(size)
        return drawn.to(dtype).to(drawn_on if device is None else device)

    def like(
        self, tensors: Sequence[Tensor], *, generator: torch.Generator | None = None
    ) -> list[Tensor]:
        """One draw for a whole list of tensors, split in order, with their shapes and types.

        Raises:
            ValueError: a law of vectors whose dim is not the number of all coordinates.
        """
        sizes = [t.numel() for t in tensors]
        if isinstance(self.law, Spherical) and sum(sizes) != self.law.dim:
            raise ValueError(
                f"Expected tensors of {self.law.dim:g} coordinates together for {self.law}, got "
                f"{sum(sizes)}: the list is one vector, and its law is that of its norm."
            )
        devices = {t.device for t in tensors}
        device = devices.pop() if len(devices) == 1 else torch.device("cpu")
        parts = self.sample(sum(sizes), generator=generator, device=device).split(sizes)
        return [
            part.reshape(t.shape).to(t.dtype).to(t.device)
            for part, t in zip(parts, tensors, strict=True)
        ]


def sampler(law: Noise) -> NoiseSampler:
    """The sampler of a law for torch.

    >>> from dpmech import LMO
    >>> noise = sampler(LMO()).like([torch.zeros(2, 2), torch.zeros(3, dtype=torch.bfloat16)])
    >>> [tuple(n.shape) for n in noise], noise[1].dtype
    ([(2, 2), (3,)], torch.bfloat16)
    """
    return NoiseSampler(law)


class _Source(Protocol):
    """Where random numbers come from; all of them are fp64 tensors of one axis."""

    def draws(self, law: Noise, count: int) -> Tensor: ...
    def read(self, table: Table, count: int) -> Tensor: ...
    def units(self, count: int) -> Tensor: ...


def _source(law: Noise, generator: torch.Generator | None, device: torch.device) -> _Source:
    if device.type == "cuda" and _fits_a_device(law):
        return DeviceSource(generator or _keyed(device))
    return HostSource(words_of(generator))


def _fits_a_device(law: Noise) -> bool:
    """Whether all of a law can be drawn by its table alone."""
    table = table_of(law)
    whole = isinstance(table, CellTable) or (
        isinstance(table, QuantileTable) and not np.any(table.rough)
    )
    return whole or isinstance(law, Spherical)


def _keyed(device: torch.device) -> torch.Generator:
    return torch.Generator(device=device).manual_seed(int(secret_words(1)[0]))


def words_of(generator: torch.Generator | None) -> Bits:
    """Uniform 64-bit words of a generator, or secret ones."""
    if generator is None:
        return secret_words
    return lambda count: _random(generator, (count,)).cpu().numpy().view(np.uint64)


def _random(generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    """Uniform 64-bit words as signed numbers."""
    words = torch.empty(shape, dtype=torch.int64, device=generator.device)
    return words.random_(_SIGN, None, generator=generator)


class HostSource:
    """Words on the processor, read by the tables themselves."""

    def __init__(self, words: Bits) -> None:
        self._words = words

    def draws(self, law: Noise, count: int) -> Tensor:
        if table := table_of(law):
            return self.read(table, count)
        if isinstance(law, LatticeNoise):
            return torch.from_numpy(law.draw(count, self._words).astype(np.float64))
        if isinstance(law, MultiGaussian):  # its two parts
            places = self.draws(DiscreteLaplace(b=1 / law.epsilon), count)
            return law.width * places + law.sigma * self.draws(_NORMAL, count)
        size = law.isf(units(count, self._words) / 2)
        return torch.from_numpy(with_signs(size, self._words(count)))

    def read(self, table: Table, count: int) -> Tensor:
        return torch.from_numpy(table.draw(count, self._words))

    def units(self, count: int) -> Tensor:
        return torch.from_numpy(units(count, self._words))


class DeviceSource:
    """Words of a generator, read on its device: no number comes back from it.

    **Guarantees.** The map from words to draws is that of the tables, to the tails beyond 2^-64.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def draws(self, law: Noise, count: int) -> Tensor:
        table = table_of(law)
        if table is None:
            raise ValueError(f"Expected a law that a table draws on a device, got {law}.")
        return self.read(table, count)

    def read(self, table: Table, count: int) -> Tensor:
        if isinstance(table, QuantileTable):
            return quantiles(table, _random(self._generator, (2, count)))
        if isinstance(table, CellTable):
            return places(table, _random(self._generator, (5, count)))
        raise ValueError(f"Expected a table that a device reads, got {type(table).__name__}.")

    def units(self, count: int) -> Tensor:
        return _units(_random(self._generator, (2, count)))


def _units(words: Tensor) -> Tensor:
    """Reals in (0, 1), shape (2, n) to (n,), to about 2^-64."""
    return _lengthened(words) * 2.0**-62


def _lengthened(words: Tensor) -> Tensor:
    """V by the 62 bits of the first word and, where these are few, by the second."""
    short = words[0] & int(LOW)
    more = (((words[1] >> 11) & _DIGITS).double() + 0.5) * 2.0**-53
    return torch.where(short < int(SHORT), short.double() + more, short.double())


def _signed(size: Tensor, words: Tensor) -> Tensor:
    return (size.view(torch.int64) | (words & _SIGN)).view(torch.float64)


def quantiles(table: QuantileTable, words: Tensor) -> Tensor:
    """Draws of a law by its tail: words of shape (2, n) to (n,), on their device."""
    grid = table.grid
    (rows,) = _arrays(table, words.device)
    bits = _lengthened(words).clamp(min=2.0**LOWEST).view(torch.int64)
    place = (bits & ((1 << grid.shift) - 1)) | (1023 << 52)
    t = place.view(torch.float64) - (1 + grid.half_width)
    cell = (bits >> grid.shift) - grid.first + ((words[0] >> 62) & 1) * grid.side
    x = rows[-1][cell]
    for row in rows[:-1].flip(0):
        x = x * t + row[cell]
    return _signed(x, words[0])


def places(table: CellTable, words: Tensor) -> Tensor:
    """Draws of a law with cells: words of shape (5, n) to (n,), on their device."""
    own, other, starts, steps, _, _ = _arrays(table, words.device)
    rest = 64 - table.columns
    column = (words[0] >> rest) & ((1 << table.columns) - 1)
    cell = torch.where((words[0] & ((1 << rest) - 1)) < own[column], column, other[column])
    if len(table.small):
        cell = torch.where(cell == len(starts) - 1, _small(table, words), cell)
    place = ((words[1] >> 10) & _DIGITS).double()
    return _signed(starts[cell] + steps[cell] * place, words[1])


def _small(table: CellTable, words: Tensor) -> Tensor:
    """A cell among those of the table's last row; the end of the last stands for the tail."""
    *_, sums, small = _arrays(table, words.device)
    wanted = _units(words[2:4]) * table.sums[-1]
    cell = small[torch.searchsorted(sums, wanted).clamp(max=len(sums) - 1)]
    cell = torch.where(cell < 0, len(table.cells.starts) - 1, cell)
    kept = ((words[4] >> 11) & _DIGITS).double() * 2.0**-53 < table.kept
    return torch.where(kept, cell, table.heaviest)


@lru_cache(maxsize=64)
def _arrays(table: Table, device: torch.device) -> tuple[Tensor, ...]:
    """The numbers of a table on a device: once, for tables are kept."""
    arrays: tuple[Floats | Index, ...] = ()
    if isinstance(table, QuantileTable):
        arrays = (table.coefficients,)
    if isinstance(table, CellTable):
        arrays = (table.own, table.other, table.starts, table.steps, table.sums, table.small)
    return tuple(torch.from_numpy(array).to(device) for array in arrays)


def _spherical(law: Spherical, shape: tuple[int, ...], source: _Source) -> Tensor:
    """Uniform directions times radii: a shell, and a place in it by its share of the ball."""
    if not shape or shape[-1] != law.dim:
        raise ValueError(f"Expected a shape that ends in dim={law.dim:g}, got {shape}.")
    direction = source.draws(_NORMAL, math.prod(shape)).reshape(shape)
    direction = direction / torch.linalg.vector_norm(direction, dim=-1, keepdim=True)
    count = math.prod(shape[:-1])
    edges = _edges(law, direction.device)
    which = source.read(_shell_table(law), count).abs().long()
    inner, outer = edges[which], edges[which + 1]
    ratio = (inner / outer) ** law.dim
    radius = outer * (ratio + (1 - ratio) * source.units(count)) ** (1 / law.dim)
    return direction * radius.reshape(*shape[:-1], 1)


@lru_cache(maxsize=16)
def _edges(law: Spherical, device: torch.device) -> Tensor:
    return torch.from_numpy(law.shells.edges).to(device)


@lru_cache(maxsize=16)
def _shell_table(law: Spherical) -> CellTable:
    """Which shell: a law of whole numbers from 0."""
    masses = law.shells.masses
    numbers = np.arange(len(masses), dtype=np.float64)
    cells = Cells(starts=numbers, widths=np.zeros_like(numbers), masses=masses, beyond=0.0)
    return CellTable.on(law, cells)
