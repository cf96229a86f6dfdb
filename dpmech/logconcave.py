"""Log-concave laws with closed tails: offset Gaussian, flipped Huber, logistic.

Symbols: ``z = |x|/sigma``, ``a`` the offset or the bend in units of sigma, ``g(t)`` Mills' ratio of
the normal law, P(Z > t)/phi(t) = sqrt(pi/2) erfcx(t/sqrt 2).

The privacy loss of a log-concave law rises for ever, so all of them have the default ``loss_peak``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from dpmech.families import mirrored, signs
from dpmech.noise import Floats, Noise, Shape, checked_positive

_LN2 = math.log(2)
_EPS = float(np.finfo(np.float64).eps)
_NEWTON_STEPS = 100
# Bends nearer to 0 than this are none to any digit of anything; powers of them underflow.
_LEAST_BEND = 1e-100


def _mills(t: ArrayLike) -> Floats:
    return math.sqrt(math.pi / 2) * special.erfcx(np.asarray(t, dtype=np.float64) / math.sqrt(2))


def _log(values: Floats) -> Floats:
    with np.errstate(divide="ignore"):  # at infinity
        return np.log(values)


class _Inverted(Noise):
    """A log-concave law whose survival function is inverted numerically, also to draw from it."""

    def _isf_tail(self, p: Floats) -> Floats:
        """Newton's method on ln sf, which is concave: from beyond the root it never overshoots."""
        target = np.log(p)
        x = np.zeros_like(target)  # the first step goes beyond
        for _ in range(_NEWTON_STEPS):
            log_tail = self.logsf(x)
            move = (log_tail - target) * np.exp(log_tail - self.logpdf(x))
            x = np.maximum(x + move, 0.0)
            if np.all(np.abs(move) <= 2 * _EPS * x):
                break
        return np.where(p >= 0.5, 0.0, x)

    def sample(self, shape: Shape, rng: np.random.Generator) -> Floats:
        p = (1 - rng.random(shape)) / 2  # in (0, 1/2]
        return self._isf_tail(p) * signs(shape, rng)


@dataclass(frozen=True)
class OffsetGaussian(_Inverted):
    """Density proportional to exp(-(|x| + offset)^2 / (2 sigma^2)): a Gaussian without its middle.

    Gaussian at offset 0; as the offset grows, Laplace of scale sigma^2/offset.

    >>> float(OffsetGaussian(sigma=2.0, offset=0.0).logsf(3.0)) == float(
    ...     OffsetGaussian(sigma=1.0, offset=0.0).logsf(1.5)
    ... )
    True
    """

    sigma: float
    offset: float
    name: ClassVar[str] = "offset-gaussian"

    def __post_init__(self) -> None:
        checked_positive("sigma", self.sigma)
        if not (math.isfinite(self.offset) and self.offset >= 0):
            raise ValueError(f"Expected offset={self.offset} to be a finite number, 0 or above.")

    @property
    def _start(self) -> float:
        return self.offset / self.sigma

    def _exponent(self, z: Floats) -> Floats:
        """ln f(x)/f(0): the squares' difference without its cancellation."""
        return -z * (z / 2 + self._start)

    def logpdf(self, x: ArrayLike) -> Floats:
        z = np.abs(np.asarray(x, dtype=np.float64)) / self.sigma
        return self._exponent(z) - math.log(2 * self.sigma * float(_mills(self._start)))

    def logsf(self, x: ArrayLike) -> Floats:
        x = np.asarray(x, dtype=np.float64)
        z = np.abs(x) / self.sigma
        ratio = _mills(self._start + z) / _mills(self._start)
        return mirrored(x, self._exponent(z) + _log(ratio) - _LN2)

    def scaled(self, factor: float) -> Self:
        factor = checked_positive("factor", factor)
        return replace(self, sigma=self.sigma * factor, offset=self.offset * factor)

    def score(self, x: ArrayLike) -> Floats:
        x = np.asarray(x, dtype=np.float64)
        return -(x / self.sigma + np.sign(x) * self._start) / self.sigma

    @property
    def fisher_information(self) -> float:
        a = self._start
        return (1 + a / float(_mills(a))) / self.sigma**2


@dataclass(frozen=True)
class FlippedHuber(_Inverted):
    """Laplace in the middle, Gaussian beyond: -ln f is Huber's loss with its two parts exchanged.

    Up to a constant, -sigma^2 ln f is alpha |x| for |x| <= alpha and (x^2 + alpha^2)/2 beyond: it
    is convex and has one derivative. Source: Muthukrishnan & Kalyani (2023).
    """

    sigma: float
    alpha: float
    name: ClassVar[str] = "flipped-huber"

    def __post_init__(self) -> None:
        checked_positive("sigma", self.sigma)
        checked_positive("alpha", self.alpha)

    @property
    def _bend(self) -> float:
        return max(self.alpha / self.sigma, _LEAST_BEND)

    @property
    def _parts(self) -> tuple[float, float]:
        """Half the mass within the bend and beyond it, in units of f(0) sigma."""
        a = self._bend
        return -math.expm1(-a * a) / a, math.exp(-a * a) * float(_mills(a))

    def _exponent(self, z: Floats) -> Floats:
        """ln f(x)/f(0)."""
        a = self._bend
        return np.where(z < a, -a * np.minimum(z, a), -(z * z + a * a) / 2)

    def logpdf(self, x: ArrayLike) -> Floats:
        z = np.abs(np.asarray(x, dtype=np.float64)) / self.sigma
        return self._exponent(z) - math.log(2 * self.sigma * sum(self._parts))

    def logsf(self, x: ArrayLike) -> Floats:
        x, a = np.asarray(x, dtype=np.float64), self._bend
        z = np.abs(x) / self.sigma
        # What is left of the middle, and of it the part that the tail is, in units of f(x) sigma.
        way = a * np.maximum(a - z, 0.0)
        left = -np.expm1(-way) / a + np.exp(-way) * _mills(np.maximum(z, a))
        return mirrored(x, self._exponent(z) + _log(left) - math.log(2 * sum(self._parts)))

    def scaled(self, factor: float) -> Self:
        factor = checked_positive("factor", factor)
        return replace(self, sigma=self.sigma * factor, alpha=self.alpha * factor)

    def score(self, x: ArrayLike) -> Floats:
        x = np.asarray(x, dtype=np.float64)
        return -np.sign(x) * np.maximum(self._bend, np.abs(x) / self.sigma) / self.sigma

    @property
    def variance(self) -> float:
        a, (near, far) = self._bend, self._parts
        inner = 2 * float(special.gammainc(3, a * a)) / a**3
        return self.sigma**2 * (inner + a * math.exp(-a * a) + far) / (near + far)

    @property
    def mean_abs(self) -> float:
        a = self._bend
        inner = float(special.gammainc(2, a * a)) / a**2
        return self.sigma * (inner + math.exp(-a * a)) / sum(self._parts)

    @property
    def fisher_information(self) -> float:
        a, (near, far) = self._bend, self._parts
        squares = a * a * near + a * math.exp(-a * a) + far
        return squares / (near + far) / self.sigma**2


@dataclass(frozen=True)
class Logistic(Noise):
    """Density proportional to 1/cosh^2(x/(2 scale)): smooth, with the tails of Laplace noise.

    **Guarantees.** The loss at shift s is nowhere above s/scale, which it tends to.

    >>> round(Logistic(scale=1.0).std, 6)
    1.813799
    """

    scale: float
    name: ClassVar[str] = "logistic"

    def __post_init__(self) -> None:
        checked_positive("scale", self.scale)

    def logpdf(self, x: ArrayLike) -> Floats:
        z = np.abs(np.asarray(x, dtype=np.float64)) / self.scale
        return -z - 2 * np.log1p(np.exp(-z)) - math.log(self.scale)

    def logsf(self, x: ArrayLike) -> Floats:
        return special.log_expit(-np.asarray(x, dtype=np.float64) / self.scale)

    def _isf_tail(self, p: Floats) -> Floats:
        # ln((1 - p)/p), which cancels near 1/2.
        near = 2 * np.arctanh(1 - 2 * np.maximum(p, 0.25))
        return self.scale * np.where(p > 0.25, near, np.log1p(-p) - np.log(p))

    def sample(self, shape: Shape, rng: np.random.Generator) -> Floats:
        return rng.logistic(0.0, self.scale, shape)

    def scaled(self, factor: float) -> Self:
        return replace(self, scale=self.scale * checked_positive("factor", factor))

    def score(self, x: ArrayLike) -> Floats:
        return -np.tanh(np.asarray(x, dtype=np.float64) / (2 * self.scale)) / self.scale

    @property
    def variance(self) -> float:
        return (math.pi * self.scale) ** 2 / 3

    @property
    def mean_abs(self) -> float:
        return 2 * _LN2 * self.scale

    @property
    def fisher_information(self) -> float:
        return 1 / (3 * self.scale**2)
