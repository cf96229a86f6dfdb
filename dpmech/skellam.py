"""The Skellam law: the difference of two Poisson numbers.

Symbols: ``v`` variance, ``I_k`` modified Bessel function of the first kind, ``r_k`` = I_(k+1)/I_k.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar, Self

import numpy as np
from scipy import special

from dpmech.discrete import DiscreteNoise
from dpmech.noise import Floats, Shape, checked_positive


@dataclass(frozen=True)
class Skellam(DiscreteNoise):
    """The difference of two Poisson numbers; ``mu`` is its variance. Sums stay in the family.

    Source: Agarwal, Kairouz & Liu (2021).

    >>> round(Skellam(mu=3.0).variance, 9)
    3.0
    """

    mu: float
    name: ClassVar[str] = "skellam"

    def __post_init__(self) -> None:
        if checked_positive("mu", self.mu) > 1e8:
            raise ValueError(f"Expected mu={self.mu} of 1e8 at most: use gaussian noise.")

    @property
    def _extent(self) -> int:
        # Chernoff: ln P(X > k) <= sqrt(k^2 + v^2) - v - k asinh(k/v), v the variance.
        k, v = 8.0, self.mu
        while math.hypot(k, v) - v - k * math.asinh(k / v) > -692:
            k *= 1.05
        return math.ceil(k)

    def _log_masses(self, top: int) -> Floats:
        reach = max(top, self._extent)
        return skellam_log_masses(self.mu, reach)[: top + 1]

    @property
    def variance(self) -> float:
        return self.mu

    def sample(self, shape: Shape, rng: np.random.Generator) -> Floats:
        up, down = (rng.poisson(self.mu / 2, shape) for _ in range(2))
        return (up - down).astype(np.float64)

    def scaled(self, factor: float) -> Self:
        return replace(self, mu=self.mu * checked_positive("factor", factor) ** 2)


@lru_cache(maxsize=8)
def skellam_log_masses(mu: float, top: int) -> Floats:
    """ln e^(-v) I_k(v) for k = 0 … ``top``, v = ``mu``.

    Ratios r_k = I_(k+1)/I_k follow backwards from 1/r_k = 2 (k+1)/v + r_(k+1): every term is
    positive, and what is wrong at the start is forgotten (Gautschi 1967).
    """
    start = top + 60 + math.ceil(8 * math.sqrt(mu))
    ratio, log_ratios = 0.0, np.empty(top)
    for k in range(start, -1, -1):
        ratio = 1 / (2 * (k + 1) / mu + ratio)
        if k < top:
            log_ratios[k] = math.log(ratio)
    masses = math.log(special.ive(0, mu)) + np.append(0.0, np.cumsum(log_ratios))
    masses.flags.writeable = False  # it is handed out again
    return masses
