"""Exact releases: values go to a lattice before the noise, so that no floating point can tell them.

A release ``x + noise`` in floating point has digits that depend on x (Mironov 2012). Here x is
rounded to whole steps, whole noise is added, and the sensitivity in steps is that of the rounded
values: what is drawn is the mechanism that is accounted for.

Symbols: ``h`` step, a power of two; ``s`` bound on the norm; ``d`` dimension; [x] = floor(x + 1/2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from dpmech.discrete import DiscreteNoise
from dpmech.drawing import BITS, Bits, Whole, WholeTable, secret_words
from dpmech.lattice import LatticeNoise
from dpmech.mechanism import Mechanism, Sensitivity
from dpmech.noise import Floats, Noise
from dpmech.precise import extra_delta, rounded_table
from dpmech.sampling import Sampling

_LARGEST = 2.0**52  # steps: halves are still exact
_TABLE = 1 << 17  # masses on a side at most, by default
_UP = 1 + 2.0**-50  # rounds a square root upwards

Rounded = Literal["query", "contributions"]


@dataclass(frozen=True, kw_only=True)
class ExactRelease:
    """A query on a lattice of ``step``, plus noise in whole steps: ``law`` rounded to the lattice.

    ``rounded`` says what goes to the lattice: the ``query``, or each record's ``contributions``,
    whose sum is then exact and costs half as much for a vector.

    **Guarantees**

    * A scalar: :meth:`mechanism` has the very masses that are drawn, whole multiples of 2^-128;
      ``distance`` is 0. Any law that falls away from 0 will do.
    * A vector: rounding gaussian or laplace noise that was added to a value on the lattice is
      post-processing, so the cost is that of ``law`` itself on the rounded query, by any
      accountant. The table drawn from is within ``distance`` of the rounded law in total variation,
      per coordinate: :meth:`extra_delta` is what that adds to delta.
    * With [x + m] = [x] + m for whole m and [] nondecreasing, values t apart are ceil(t/h) steps
      apart at most, which is below t/h + 1: a change by s is one by ceil(s/h) steps in a scalar
      and under linf, by s/h + sqrt(d) in l2, by s/h + d in l1. A contribution moves by half a step
      at most in each coordinate. The bound must hold for the numbers as they are computed.

    Raises:
        ValueError: a step that is no power of two or too fine; a law without a proof.

    >>> from dpmech import Laplace
    >>> count = ExactRelease(law=Laplace(b=2.0), step=0.25)
    >>> count.mechanism().sensitivity.bound
    4.0
    >>> float(count.release(17.3)) % 0.25
    0.0
    """

    law: Noise
    step: float
    sensitivity: Sensitivity = field(default_factory=Sensitivity)
    rounded: Rounded = "query"

    def __post_init__(self) -> None:
        if not (0 < self.step < math.inf and math.frexp(self.step)[0] == 0.5):
            raise ValueError(f"Expected step={self.step} to be a power of two, such as 0.125.")
        if self.rounded not in ("query", "contributions"):
            raise ValueError(f"Expected rounded={self.rounded!r} to be query or contributions.")
        _ = self._table  # what cannot be drawn is refused now

    @classmethod
    def of(
        cls, law: Noise, sensitivity: Sensitivity, *, rounded: Rounded = "query"
    ) -> ExactRelease:
        """With the finest step of a table of 130 000 values on a side (of whole numbers, 1)."""
        return cls(law=law, step=_finest_step(law), sensitivity=sensitivity, rounded=rounded)

    @cached_property
    def _lattice(self) -> LatticeNoise:
        return LatticeNoise.rounded(self.law, self.step)

    @cached_property
    def _table(self) -> WholeTable:
        if self.sensitivity.dim == 1:
            return self._lattice.table
        return rounded_table(self.law, self.step).table

    @property
    def distance(self) -> float:
        """Total variation between what is drawn and what is accounted for, per coordinate."""
        return 0.0 if self.sensitivity.dim == 1 else rounded_table(self.law, self.step).distance

    def extra_delta(self, epsilon: float, releases: int = 1) -> float:
        """What to add to an accountant's delta at ``epsilon``, for all releases together."""
        return extra_delta(releases * self.sensitivity.dim * self.distance, epsilon)

    @property
    def steps(self) -> float:
        """The bound on the norm of the rounded values, in steps."""
        norm, d = self.sensitivity.norm, self.sensitivity.dim
        exact = Fraction(self.sensitivity.bound) / Fraction(self.step)
        if d == 1 or norm == "linf":
            return float(math.ceil(exact))
        moved = Fraction(d) if norm == "l1" else Fraction(math.sqrt(d) * _UP)
        total = exact + (moved / 2 if self.rounded == "contributions" else moved)
        if norm == "l1":
            return float(math.floor(total))
        return math.sqrt(math.floor(total**2)) * _UP  # the squared norm is whole

    def mechanism(
        self, sampling: Sampling | None = None, relation: str = "add-remove"
    ) -> Mechanism:
        """What accountants are given: a scalar in steps, a vector in units of the query."""
        scalar = self.sensitivity.dim == 1
        bound = self.steps if scalar else self.steps * self.step
        return Mechanism(
            noise=self._lattice if scalar else self.law,
            sensitivity=Sensitivity(
                norm=self.sensitivity.norm, bound=bound, dim=self.sensitivity.dim
            ),
            sampling=Sampling() if sampling is None else sampling,
            relation=relation,
        )

    def whole(self, values: ArrayLike) -> Whole:
        """``values`` in whole steps, halves upwards, without any other rounding.

        Raises:
            ValueError: a value that is not finite, or beyond 2^52 steps.
        """
        steps = np.asarray(values, dtype=np.float64) / self.step  # exact: a power of two
        beyond = ~(np.abs(steps) <= _LARGEST)
        if np.any(beyond):
            raise ValueError(
                f"Expected finite values up to 2^52 steps of {self.step}, got"
                f" {np.asarray(values)[beyond].ravel()[0]}."
            )
        low = np.floor(steps)
        return low.astype(np.int64) + (steps - low >= 0.5)

    def release(self, values: ArrayLike, words: Bits = secret_words) -> Floats:
        """``values``, of any shape, rounded, with independent noise: multiples of the step.

        Where contributions were rounded, ``values`` is the sum of their :meth:`whole`.
        """
        total = np.asarray(values) if self.rounded == "contributions" else self.whole(values)
        if not np.issubdtype(total.dtype, np.integer):
            raise ValueError(
                f"Expected the sum of whole contributions, got numbers of type {total.dtype}."
            )
        noisy = total + self._table.draw(total.shape, words)
        return noisy.astype(np.float64) * self.step


def _finest_step(law: Noise) -> float:
    """The least power of two with which a table has at most so many masses on a side."""
    if isinstance(law, DiscreteNoise):
        return 1.0
    reach = min(float(law.isf(2.0**-BITS)), law.support)
    return 2.0 ** math.ceil(math.log2(reach / _TABLE))
