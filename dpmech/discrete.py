"""Laws on the whole numbers, for queries that are whole numbers: what they share, and two of them.

Symbols: ``k`` whole number, ``s`` shift, ``a`` ratio of neighbouring masses of discrete Laplace.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike

from dpmech.cells import EPS
from dpmech.noise import Floats, Noise, Shape, checked_positive

# Masses are listed out to where all that is left is below this; at most so many of them.
_LEFT_OUT = 1e-300
_MOST_ATOMS = 2_000_000
# Where one law has a mass that doubles do not hold, the other may have this much.
_MOST_LOST = 1e-150


def _checked_probabilities(p: ArrayLike) -> Floats:
    p = np.asarray(p, dtype=np.float64)
    if not np.all((p > 0) & (p < 1)):
        raise ValueError(f"Expected probabilities in (0, 1), got {p!r}.")
    return p


class DiscreteNoise(Noise):
    """A law on the whole numbers, symmetric and unimodal about 0; densities are masses.

    **Guarantees.** Only a query that takes whole numbers, by whole steps, may be released with it:
    on any other the loss is infinite, and a sensitivity that is not whole is refused.
    :meth:`scaled` gives the law of the family with the scale times the factor, which for whole
    numbers is not the law of ``factor * X``.
    """

    @property
    @abstractmethod
    def _extent(self) -> int:
        """A k with P(abs(X) > k) <= 1e-300."""

    @abstractmethod
    def _log_masses(self, top: int) -> Floats:
        """ln P(X = k) for k = 0 … ``top``."""

    @cached_property
    def _log_tails(self) -> Floats:
        """ln P(X > k) for k = 0 … extent, summed from the far end."""
        masses = self._log_masses(self._extent + 1)
        return np.logaddexp.accumulate(masses[:0:-1])[::-1]

    def logpdf(self, x: ArrayLike) -> Floats:
        size = np.abs(np.asarray(x, dtype=np.float64))
        whole = (size == np.floor(size)) & (size <= _MOST_ATOMS)
        k = np.where(whole, size, 0.0).astype(np.int64)
        return np.where(whole, self._log_masses(int(np.max(k, initial=0)))[k], -np.inf)

    def logsf(self, x: ArrayLike) -> Floats:
        x = np.asarray(x, dtype=np.float64)
        # P(X > x) for x < 0 is 1 - P(X > k) with k = -1 - floor(x), by symmetry.
        k = np.where(x >= 0, np.floor(x), -1 - np.floor(x))
        inside = k <= self._extent
        tail = self._log_tails[np.where(inside, k, 0.0).astype(np.int64)]
        tail = np.where(inside, tail, -np.inf)
        return np.where(x >= 0, tail, np.log1p(-np.exp(tail)))

    def cdf(self, x: ArrayLike) -> Floats:
        return self.sf(-np.floor(np.asarray(x, dtype=np.float64)) - 1)

    def isf(self, p: ArrayLike) -> Floats:
        """The least whole x with P(X > x) <= p, for p in (0, 1)."""
        p = _checked_probabilities(p)
        upper = np.searchsorted(-self._log_tails, -np.log(p), side="left")
        # Below the median: P(X > x) <= p says that P(X > -1 - x) >= 1 - p.
        lower = -np.searchsorted(-self._log_tails, -np.log1p(-p), side="right")
        return np.where(p < self.sf(0.0), upper, lower).astype(np.float64)

    def score(self, x: ArrayLike) -> Floats:
        raise ValueError(f"Expected a law with a density, got {self}: it has no score at x={x!r}.")

    def _mean(self, function: Floats) -> float:
        """E of ``function``, given at abs(X) = 0, 1, …; it is 0 at 0."""
        return 2 * float(np.sum(function * np.exp(self._log_masses(len(function) - 1))))

    @property
    def variance(self) -> float:
        return self._mean(np.arange(self._extent + 1, dtype=np.float64) ** 2)

    @property
    def mean_abs(self) -> float:
        return self._mean(np.arange(self._extent + 1, dtype=np.float64))

    @property
    def fisher_information(self) -> float:
        return math.inf  # between whole numbers there is no mass

    def atoms(self, shift: float) -> tuple[Floats, Floats, float, float]:
        """(losses, P-masses, mass left out, error of the losses) of X + ``shift`` against X.

        The pair dominates those of smaller whole shifts t: for a >= 1 and each k the term
        (f(k) - a f(k-t))_+ does not fall as t grows. Where k <= 0 or t > k >= 0, k - t is at or
        below 0 and moves away from it, so f(k-t) falls; where 0 < t <= k, f(k-t) >= f(k) and the
        term is 0. For a < 1 exchange the two laws (mathematics.md §3).
        """
        s = self._whole(shift, self._extent + shift)
        log_f = self._log_masses(self._extent + 2 * s)
        k = np.arange(-self._extent, self._extent + s + 1)
        log_p, log_q = log_f[np.abs(k - s)], log_f[np.abs(k)]
        error = 4 * EPS * (len(log_f) + float(np.max(np.abs(log_f))))
        # Q's mass where that of P is no longer a number counts as lost.
        lost = 2 * _LEFT_OUT + self._resolved(log_p, log_q, s)
        return log_p - log_q, np.exp(log_p), lost, error

    def _resolved(self, log_p: Floats, log_q: Floats, shift: int) -> float:
        """The mass of Q where P underflows, if it is little."""
        lost = float(np.sum(np.exp(log_q[np.exp(log_p) == 0])))
        if lost > _MOST_LOST:
            raise ValueError(
                f"Expected {self} to be wider beside sensitivity={shift}: the loss of a single "
                "release is in the hundreds, which is no privacy; use a larger scale."
            )
        return lost

    def _whole(self, shift: float, reach: float) -> int:
        """The shift, if it and the number of atoms are fit for one."""
        if shift != math.floor(shift):
            raise ValueError(
                f"Expected sensitivity={shift} to be a whole number: {self.name} noise is for "
                "queries that are whole numbers; round the query, or use a law with a density."
            )
        if reach > _MOST_ATOMS:
            raise ValueError(
                f"Expected at most {_MOST_ATOMS} values for {self} with sensitivity={shift:g}, got "
                f"{reach:g}; add noise with a density instead, and round the sum."
            )
        return int(shift)


@dataclass(frozen=True)
class DiscreteGaussian(DiscreteNoise):
    """P(X = k) in proportion to exp(-k^2 / (2 ``sigma``^2)); sigma is no exact standard deviation.

    Source: Canonne, Kamath & Steinke (2020).

    >>> round(DiscreteGaussian(sigma=2.0).variance, 9)
    4.0
    """

    sigma: float
    name: ClassVar[str] = "discrete-gaussian"

    def __post_init__(self) -> None:
        checked_positive("sigma", self.sigma)

    @property
    def _extent(self) -> int:
        # 1e-300 = e^(-690.8), and the sum over abs(k) > m is below 3 sigma e^(-m^2/(2 sigma^2)).
        log_left_out = 692 + 2 * math.log1p(2 * self.sigma)
        return math.ceil(self.sigma * math.sqrt(2 * log_left_out)) + 1

    @cached_property
    def _log_total(self) -> float:
        k = np.arange(1, self._extent + 1, dtype=np.float64)
        return math.log1p(2 * float(np.sum(np.exp(-0.5 * (k / self.sigma) ** 2)[::-1])))

    def _log_masses(self, top: int) -> Floats:
        k = np.arange(top + 1, dtype=np.float64)
        return -0.5 * (k / self.sigma) ** 2 - self._log_total

    def sample(self, shape: Shape, rng: np.random.Generator) -> Floats:
        """By rejection from discrete Laplace noise (Canonne et al. 2020, Algorithm 3)."""
        draws = np.full(shape, np.nan)
        near = DiscreteLaplace(b=math.floor(self.sigma) + 1.0)
        while np.any(missing := np.isnan(draws)):
            proposed = near.sample(int(np.sum(missing)), rng)
            miss = (np.abs(proposed) - self.sigma**2 / near.b) ** 2 / (2 * self.sigma**2)
            kept = rng.random(len(proposed)) < np.exp(-miss)
            draws[missing] = np.where(kept, proposed, np.nan)
        return draws

    def scaled(self, factor: float) -> Self:
        return replace(self, sigma=self.sigma * checked_positive("factor", factor))


@dataclass(frozen=True)
class DiscreteLaplace(DiscreteNoise):
    """P(X = k) in proportion to exp(-abs(k)/``b``): the two-sided geometric law.

    **Guarantees.** One release with sensitivity s is (s/b)-DP, exactly. Source: Ghosh, Roughgarden
    & Sundararajan (2012).

    >>> round(DiscreteLaplace(b=2.0).mean_abs, 6)
    1.919035
    """

    b: float
    name: ClassVar[str] = "discrete-laplace"

    def __post_init__(self) -> None:
        checked_positive("b", self.b)

    @property
    def _extent(self) -> int:
        return math.ceil(692 * self.b) + 1

    @property
    def _log_peak(self) -> float:
        """ln of P(X = 0) = (1 - a)/(1 + a), a = e^(-1/b)."""
        return math.log(math.tanh(0.5 / self.b))

    def _log_masses(self, top: int) -> Floats:
        return self._log_peak - np.arange(top + 1, dtype=np.float64) / self.b

    def logpdf(self, x: ArrayLike) -> Floats:
        size = np.abs(np.asarray(x, dtype=np.float64))
        return np.where(size == np.floor(size), self._log_peak - size / self.b, -np.inf)

    def logsf(self, x: ArrayLike) -> Floats:
        x = np.asarray(x, dtype=np.float64)
        k = np.where(x >= 0, np.floor(x), -1 - np.floor(x))
        # P(X > k) = a^(k+1)/(1 + a)
        tail = -(k + 1) / self.b - math.log1p(math.exp(-1 / self.b))
        return np.where(x >= 0, tail, np.log1p(-np.exp(tail)))

    def isf(self, p: ArrayLike) -> Floats:
        p = _checked_probabilities(p)
        # P(X > k) = a^(k+1)/(1 + a); below the median as in the general case.
        steps = -self.b * (np.log(np.minimum(p, 1 - p)) + math.log1p(math.exp(-1 / self.b)))
        upper, lower = np.ceil(steps) - 1, -np.floor(steps)
        return np.where(p < 0.5, np.maximum(upper, 0.0), np.minimum(lower, 0.0))

    @property
    def variance(self) -> float:
        return 2 * math.exp(-1 / self.b) / math.expm1(-1 / self.b) ** 2

    @property
    def mean_abs(self) -> float:
        return -2 * math.exp(-1 / self.b) / math.expm1(-2 / self.b)

    def sample(self, shape: Shape, rng: np.random.Generator) -> Floats:
        """The difference of two geometric numbers."""
        stop = -math.expm1(-1 / self.b)
        return (rng.geometric(stop, shape) - rng.geometric(stop, shape)).astype(np.float64)

    def scaled(self, factor: float) -> Self:
        return replace(self, b=self.b * checked_positive("factor", factor))

    def atoms(self, shift: float) -> tuple[Floats, Floats, float, float]:
        """Beyond 0 and the shift the loss stays at -s/b and s/b, so no mass is left out.

        It dominates smaller shifts as in :meth:`DiscreteNoise.atoms`.
        """
        s = self._whole(shift, shift)
        k = np.arange(s + 1, dtype=np.float64)
        log_p = self.logpdf(k - s)
        log_p[0], log_p[-1] = self.logsf(s - 1.0), self.logsf(-1.0)
        self._resolved(log_p, log_p[::-1], s)
        return (2 * k - s) / self.b, np.exp(log_p), 0.0, 4 * EPS * s / self.b
