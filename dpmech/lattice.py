"""Any law on a lattice with whole weights, drawn exactly: the law drawn is the law accounted for.

A law with a density cannot be drawn on a computer: what comes out are floating-point numbers whose
pattern may tell what they were added to (Mironov 2012). Here the query is rounded to a lattice
first, the noise is a whole number of steps, and its masses are whole multiples of 2^-128: drawing
needs comparisons of whole numbers and nothing else, and no probability is approximated.

Symbols: ``k`` whole number, ``h`` step of the lattice, ``W_k`` = 2^128 P(X = k), ``s`` shift.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NoReturn

import numpy as np

from dpmech.cells import EPS
from dpmech.discrete import DiscreteNoise
from dpmech.drawing import BITS, Bits, Whole, WholeTable, secret_words, seeded_words
from dpmech.noise import Floats, Noise, Shape, checked_positive

_MOST = 1_000_000  # values on a side
_HAIR = 2.0**-40  # of all other masses, given to 0: by rounding alone it would lie below them


@dataclass(frozen=True)
class LatticeNoise(DiscreteNoise):
    """``masses`` are P(X = k) for k = 1 … K, whole multiples of 2^-128; P(X = 0) is the rest of 1.

    **Guarantees.** :meth:`draw` returns k with probability P(X = k) exactly, as long as the words
    it is given are uniform and independent. The pair is that of these very masses: beyond K there
    is nothing, and what the shift moves there counts as an infinite loss.

    >>> law = LatticeNoise(masses=(0.125, 0.0625))
    >>> law.weights[0] == 2**128 * 5 // 8
    True
    """

    masses: tuple[float, ...]
    name: ClassVar[str] = "lattice"

    def __post_init__(self) -> None:
        object.__setattr__(self, "masses", tuple(float(m) for m in self.masses))
        if not 1 <= len(self.masses) <= _MOST:
            raise ValueError(f"Expected 1 to {_MOST} masses, got {len(self.masses)}.")
        if not all(0 < m < 1 and math.ldexp(m, BITS).is_integer() for m in self.masses):
            raise ValueError(
                f"Expected masses that are whole multiples of 2^-{BITS} in (0, 1), got"
                f" {min(self.masses)} … {max(self.masses)}."
            )
        falls = all(a >= b for a, b in zip(self.masses, self.masses[1:], strict=False))
        if not falls or self.weights[0] < self.weights[1]:
            raise ValueError(
                f"Expected masses that fall away from 0, got P(0) = {self.weights[0] / 2**BITS}"
                f" and then {self.masses[:3]} …: one shift's pair would not cover smaller ones."
            )

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash(self.masses)

    def __str__(self) -> str:
        return f"{self.name}: whole numbers to {len(self.masses)}"

    @cached_property
    def weights(self) -> tuple[int, ...]:
        """W_0, W_1, …, W_K; W_0 + 2 (W_1 + … + W_K) is 2^128."""
        sides = [int(math.ldexp(m, BITS)) for m in self.masses]
        return (2**BITS - 2 * sum(sides), *sides)

    @classmethod
    def rounded(cls, law: Noise, step: float) -> LatticeNoise:
        """A law rounded to multiples of ``step``, in steps; its masses rounded down to 2^-128.

        What rounding takes away goes to 0. The result is a law of its own, accounted for as it is;
        whoever needs its cost calibrates ``law`` a hair wider.

        Raises:
            ValueError: a law that does not fall away from 0, or that is too wide for its step.
        """
        checked_positive("step", step)
        if isinstance(law, DiscreteNoise) and step != 1:
            raise ValueError(f"Expected step={step} to be 1 for {law}: it is on a lattice already.")
        return cls(masses=tuple(_rounded_masses(law, step).tolist()))

    @property
    def _extent(self) -> int:
        return len(self.masses)

    @property
    def support(self) -> float:
        return float(self._extent)

    @cached_property
    def _logs(self) -> Floats:
        """ln P(X = k) for k = 0 … K."""
        return np.array([math.log(w) for w in self.weights]) - BITS * math.log(2)

    def _log_masses(self, top: int) -> Floats:
        return np.append(self._logs, np.full(max(0, top - self._extent), -np.inf))[: top + 1]

    def atoms(self, shift: float) -> tuple[Floats, Floats, float, float]:
        """As of :meth:`DiscreteNoise.atoms`, with the mass that only one of the laws has lost."""
        s = self._whole(shift, self._extent + shift)
        k = np.arange(s - self._extent, self._extent + 1)
        logs = self._log_masses(self._extent + s)
        log_p, log_q = logs[np.abs(k - s)], logs[np.abs(k)]
        # P is the law centred at s: above K there is no Q.
        alone = self.weights[max(0, self._extent + 1 - s) :]
        lost = sum(alone) / 2**BITS if s <= self._extent else 1.0
        error = 4 * EPS * (1 + float(np.max(np.abs(self._logs))))
        return log_p - log_q, np.exp(log_p), lost * (1 + 2 * EPS), error

    @cached_property
    def table(self) -> WholeTable:
        """What draws are taken from."""
        sides = self.weights[1:]
        return WholeTable((*reversed(sides), self.weights[0], *sides), first=-self._extent)

    def draw(self, shape: Shape, words: Bits = secret_words) -> Whole:
        """Independent draws, exact whole numbers, from uniform 64-bit words.

        Arguments:
            words: returns as many words as it is asked for; by default they are secret. Only
                whole numbers are compared, and how many words are asked for depends on nothing but
                the words.
        """
        return self.table.draw(shape, words)

    def sample(self, shape: Shape, rng: np.random.Generator) -> Floats:
        return self.draw(shape, seeded_words(rng)).astype(np.float64)

    def scaled(self, factor: float) -> NoReturn:
        raise ValueError(
            f"Expected another law to scale by {factor}: {self} is as wide as it is; scale the law"
            " that it was rounded from, and round again."
        )


def _rounded_masses(law: Noise, step: float) -> Floats:
    """P(X = k) for k = 1 … K in whole multiples of 2^-128, falling."""
    if isinstance(law, DiscreteNoise):
        edge = np.arange(1, int(law.isf(2.0 ** -(BITS + 1))) + 2, dtype=np.float64)
        masses = np.exp(law.logpdf(edge))
    else:
        far = min(float(law.isf(2.0 ** -(BITS + 1))), law.support) / step
        if far > _MOST:
            raise ValueError(
                f"Expected step={step} of {far * step / _MOST:.3g} at least for {law}: there would"
                f" be more than {_MOST} values on a side."
            )
        edge = step * (np.arange(1, math.ceil(far) + 3) - 0.5)
        tails = law.logsf(edge)
        with np.errstate(invalid="ignore"):  # beyond the support
            masses = np.exp(tails[:-1]) * -np.expm1(tails[1:] - tails[:-1])
    if np.any(np.diff(masses) > 1e-9 * masses[:-1]):
        raise ValueError(f"Expected a law that falls away from 0, got {law}.")
    masses = np.nan_to_num(masses) * (1 - _HAIR)
    whole = np.minimum.accumulate(np.floor(np.ldexp(masses, BITS)))
    kept = whole[whole >= 1]
    if not len(kept):
        raise ValueError(f"Expected a smaller step than {step} for {law}: it is 0 on the lattice.")
    return np.ldexp(kept, -BITS)
