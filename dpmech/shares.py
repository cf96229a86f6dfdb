"""Noise in shares: integers that parties add to their own vectors, whose sum has the law accounted.

For secure aggregation nobody adds noise to the sum, since nobody sees it: every party adds a share.
Of the laws here sums stay in the family: Skellam noise of variance mu is the sum of n of variance
mu/n, and discrete Laplace noise, a difference of two geometric numbers, is the sum of differences
of negative binomial ones (Agarwal, Kairouz & Liu 2021; Goryczka & Xiong 2017).

Symbols: ``n`` parties, ``m`` honest shares that are sure to be in the sum, ``D`` total variation.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dpmech.discrete import DiscreteLaplace
from dpmech.drawing import Bits, Whole, secret_words
from dpmech.noise import Shape
from dpmech.precise import PreciseTable, extra_delta, negative_binomial_table, poisson_table
from dpmech.skellam import Skellam

_BITS = (2, 62)


@dataclass(frozen=True, kw_only=True)
class SharedNoise:
    """``law`` as the sum of ``honest`` shares; more shares only add noise.

    **Guarantees.** The sum of ``honest`` shares has ``law`` up to :meth:`distance` in total
    variation, which :meth:`extra_delta` charges. A sum of more shares is that sum plus independent
    noise: post-processing, which costs nothing. So with n parties of whom up to t drop out and up
    to c tell others their shares, ``honest = n - t - c`` is enough; a round with more dropouts must
    not be opened (:meth:`opened` refuses). Sums are taken modulo 2^bits: post-processing again.

    >>> noise = SharedNoise(law=Skellam(mu=100.0), honest=80)
    >>> noise.share((3,)).shape
    (3,)
    """

    law: Skellam | DiscreteLaplace
    honest: int

    def __post_init__(self) -> None:
        if not isinstance(self.law, Skellam | DiscreteLaplace):
            raise ValueError(
                f"Expected skellam or discrete-laplace noise, got {self.law}: sums of other laws"
                " here do not stay in the family."
            )
        if not (isinstance(self.honest, int) and self.honest >= 1):
            raise ValueError(f"Expected honest={self.honest} to be a whole number, 1 or above.")

    @cached_property
    def _half(self) -> PreciseTable:
        """A share is the difference of two draws from this."""
        if isinstance(self.law, Skellam):
            return poisson_table(self.law.mu / (2 * self.honest))
        return negative_binomial_table(self.law.b, self.honest)

    def share(self, shape: Shape, words: Bits = secret_words) -> Whole:
        """One party's share, whole numbers; drawn exactly from its table."""
        up, down = (self._half.table.draw(shape, words) for _ in range(2))
        return up - down

    @property
    def distance(self) -> float:
        """D between the sum of ``honest`` shares as drawn and ``law``, per coordinate."""
        return 2 * self.honest * self._half.distance

    def extra_delta(self, epsilon: float, *, coordinates: int = 1, releases: int = 1) -> float:
        """What the tables add to an accountant's delta at ``epsilon``, for all releases."""
        return extra_delta(coordinates * releases * self.distance, epsilon)

    def masked(self, values: Whole, *, bits: int, words: Bits = secret_words) -> Whole:
        """One party's whole values with its share, modulo 2^``bits``: what it sends."""
        if not np.issubdtype(np.asarray(values).dtype, np.integer):
            raise ValueError(
                f"Expected whole values, got type {np.asarray(values).dtype}: round them first."
            )
        return np.mod(values + self.share(np.shape(values), words), _modulus(bits))

    def opened(self, sent: Iterable[Whole], *, bits: int, dishonest: int = 0) -> Whole:
        """The sum of what the parties sent, as numbers from -2^(bits-1) up; never from too few.

        Arguments:
            sent: one array a surviving party. dishonest: how many of them may know their shares.

        Raises:
            ValueError: fewer honest survivors than the noise was dealt for.
        """
        total, modulus, count = None, _modulus(bits), 0
        for values in sent:
            total = values if total is None else np.mod(total + values, modulus)
            count += 1
        if total is None or count - dishonest < self.honest:
            raise ValueError(
                f"Expected at least {self.honest + dishonest} parties, got {count}: with fewer the"
                " noise is less than what is accounted for; do not open this round."
            )
        return np.where(total >= modulus // 2, total - modulus, total)


def _modulus(bits: int) -> int:
    low, high = _BITS
    if not low <= bits <= high:
        raise ValueError(f"Expected bits={bits} between {low} and {high}.")
    return 1 << bits
