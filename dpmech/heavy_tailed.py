"""Student's t: polynomial tails, and a privacy loss that is bounded and vanishes far out.

Symbols: ``nu`` degrees of freedom, ``t = x/scale``, ``a = nu/2``, ``w = nu/(nu + t^2)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from dpmech.families import mirrored
from dpmech.noise import Floats, Noise, Shape, checked_positive

_LN2 = math.log(2)
_EPS = float(np.finfo(np.float64).eps)
_NEWTON_STEPS = 100
# Up to here the tail is known to a few units of its last place.
_MOST_DF = 1e5
# Below this survival, scipy's Student function nears the end of doubles.
_FAR = 1e-280
# Levels of the continued fraction of the tail; twenty reach 1e-16 wherever it is used.
_LEVELS = 60
# From this a on, the first four terms of Stirling's series of the ratio of gammas reach 1e-17.
_STIRLING = 50.0


def log_gamma_step(a: float) -> float:
    """ln(gamma(a + 1/2)/gamma(a)), which lgamma loses to cancellation for large ``a``."""
    if a < _STIRLING:
        return math.log(math.gamma(a + 0.5) / math.gamma(a))
    series = -1 / 8 + (1 / 192 + (-1 / 640 + 17 / (14336 * a * a)) / (a * a)) / (a * a)
    return math.log(a) / 2 + series / a


@dataclass(frozen=True)
class StudentT(Noise):
    """Student's t with ``df`` >= 1 degrees of freedom, times ``scale``: Cauchy at df = 1.

    **Guarantees.** The loss at shift s is largest at x = (s + sqrt(s^2 + 4 df scale^2))/2, so that
    every release is pure DP and all Rényi divergences are finite. Argument: with K = df scale^2,
    dl/dx = (df + 1) (x/(K + x^2) - (x - s)/(K + (x - s)^2)), and the sign of the difference is that
    of K - x (x - s), which falls on x >= s/2 and vanishes there once.

    >>> StudentT(scale=1.0, df=4.0).loss_peak(3.0)
    4.0
    """

    scale: float
    df: float
    name: ClassVar[str] = "student-t"

    def __post_init__(self) -> None:
        checked_positive("scale", self.scale)
        if not 1 <= checked_positive("df", self.df) <= _MOST_DF:
            raise ValueError(
                f"Expected df={self.df} between 1 and {_MOST_DF:g}: below, the tails leave the "
                "range of doubles; above, use gaussian noise."
            )

    def loss_peak(self, shift: float) -> float:
        return (shift + math.hypot(shift, 2 * self.scale * math.sqrt(self.df))) / 2

    @property
    def _log_top(self) -> float:
        """ln of the density of t at 0."""
        return log_gamma_step(self.df / 2) - math.log(self.df * math.pi) / 2

    def _log_w(self, t: Floats) -> Floats:
        """ln w, also where t^2 leaves the range of doubles."""
        root = math.sqrt(self.df)
        ratio = t / root
        far = np.maximum(ratio, 1e100)
        near = -np.log1p(np.minimum(ratio, 1e100) ** 2)
        return np.where(ratio > 1e100, -2 * np.log(far), near)

    def _log_density(self, t: Floats) -> Floats:
        """ln of the density of t, at t >= 0."""
        return self._log_top + (self.df + 1) / 2 * self._log_w(t)

    def _log_tail(self, t: Floats) -> Floats:
        """ln of the survival function of t, at t >= 0."""
        if self.df == 1:  # where scipy's loses digits near 0
            with np.errstate(divide="ignore"):
                return np.log(np.arctan2(1.0, t) / math.pi)
        direct = special.stdtr(self.df, -t)
        tail = np.log(np.maximum(direct, _FAR))
        if not np.any(direct < _FAR):
            return tail
        far = self._log_far_tail(np.where(direct < _FAR, t, np.inf))
        return np.where(direct < _FAR, far, tail)

    def logpdf(self, x: ArrayLike) -> Floats:
        t = np.abs(np.asarray(x, dtype=np.float64)) / self.scale
        return self._log_density(t) - math.log(self.scale)

    def logsf(self, x: ArrayLike) -> Floats:
        x = np.asarray(x, dtype=np.float64)
        return mirrored(x, self._log_tail(np.abs(x) / self.scale))

    def _log_far_tail(self, t: Floats) -> Floats:
        """ln of half the incomplete beta function I_w(a, 1/2), by its continued fraction.

        w^a (1-w)^(1/2) / (2 a B(a, 1/2)) over the fraction (DLMF 8.17.22), from the back.
        """
        a, log_w = self.df / 2, self._log_w(t)
        w, fraction = np.exp(log_w), np.ones_like(t)
        for m in range(_LEVELS, -1, -1):
            if m:
                even = m * (0.5 - m) * w / ((a + 2 * m - 1) * (a + 2 * m))
                odd = -(a + m) * (a + 0.5 + m) * w / ((a + 2 * m) * (a + 2 * m + 1))
                fraction = 1 + even / (1 + odd / fraction)
            else:
                fraction = 1 - (a + 0.5) * w / (a + 1) / fraction
        log_beta = math.log(math.pi) / 2 - log_gamma_step(a)
        front = a * log_w + np.log1p(-w) / 2 - math.log(2 * a) - log_beta
        return front - np.log(fraction)

    def _isf_tail(self, p: Floats) -> Floats:
        near = self._near(np.maximum(p, 0.25))
        return self.scale * np.where(p > 0.25, near, self._deep(np.log(np.minimum(p, 0.25))))

    def _near(self, p: Floats) -> Floats:
        """t with survival ``p`` near 1/2: Newton's method on a convex function, from 0."""
        t = np.zeros_like(p)
        for _ in range(_NEWTON_STEPS):
            move = (np.exp(self._log_tail(t)) - p) / np.exp(self._log_density(t))
            t = np.maximum(t + move, 0.0)
            if np.all(np.abs(move) <= 2 * _EPS * t):
                break
        return t

    def _deep(self, target: Floats) -> Floats:
        """t with the given ln survival, at most ln 1/4: Newton's method in ln t.

        It starts beyond the root, where the power law that f(t) <= f(0) (t^2/nu)^(-(nu+1)/2) gives
        has this survival.
        """
        nu = self.df
        log_t = (self._log_top + (nu - 1) / 2 * math.log(nu) - target) / nu
        for _ in range(_NEWTON_STEPS):
            log_tail = self._log_tail(np.exp(log_t))
            slope = np.exp(log_t + self._log_density(np.exp(log_t)) - log_tail)
            move = (log_tail - target) / slope
            log_t = log_t + move
            if np.all(np.abs(move) <= 2 * _EPS * (1 + np.abs(log_t))):
                break
        return np.exp(log_t)

    def sample(self, shape: Shape, rng: np.random.Generator) -> Floats:
        return self.scale * rng.standard_t(self.df, shape)

    def scaled(self, factor: float) -> Self:
        return replace(self, scale=self.scale * checked_positive("factor", factor))

    def score(self, x: ArrayLike) -> Floats:
        t = np.asarray(x, dtype=np.float64) / self.scale
        with np.errstate(divide="ignore"):  # at 0, where the score is 0
            return -(self.df + 1) / self.scale / (t + self.df / t)

    @property
    def variance(self) -> float:
        return self.scale**2 * self.df / (self.df - 2) if self.df > 2 else math.inf

    @property
    def mean_abs(self) -> float:
        if self.df <= 1:
            return math.inf
        return 2 * self.scale * math.exp(self._log_top) * self.df / (self.df - 1)

    @property
    def fisher_information(self) -> float:
        return (self.df + 1) / (self.df + 3) / self.scale**2
