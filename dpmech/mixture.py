"""Laplace noise of random scale: the LMO family (arXiv 2405.18776) and finite mixtures.

Symbols, as in mathematics.md §2: ``U`` inverse scale, ``M(t) = E e^{tU}``, ``y = |x|``;
``kappa1 = (ln M)'(-y)`` and ``kappa2 = (ln M)''(-y)``: mean and variance of U under the tilt
e^{-yU}. Every such law is log-convex in |x|, so its privacy loss peaks at the shift and falls after
it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import logsumexp

from dpmech.noise import Floats, Noise, Shape, checked_positive

_LN2 = math.log(2)
# Below this z the closed forms of the uniform part cancel; their Taylor series are exact to 1e-14.
_SMALL = 1e-2


def log_uniform_transform(z: Floats) -> Floats:
    """ln((1 - e^-z)/z): the Laplace transform of V on [0, 1]; z >= 0."""
    safe, small = np.maximum(z, _SMALL), np.minimum(z, _SMALL)
    series = -small / 2 + small**2 / 24 - small**4 / 2880 + small**6 / 181440
    return np.where(z < _SMALL, series, np.log(-np.expm1(-safe)) - np.log(safe))


def uniform_tilted_mean(z: Floats) -> Floats:
    """Mean of the uniform law on [0, 1] tilted by e^{-zv}: 1/z - 1/(e^z - 1)."""
    safe = np.maximum(z, _SMALL)
    with np.errstate(over="ignore"):
        direct = 1 / safe - 1 / np.expm1(safe)
    z_small = np.minimum(z, _SMALL)
    series = 0.5 - z_small / 12 + z_small**3 / 720 - z_small**5 / 30240
    return np.where(z < _SMALL, series, direct)


def uniform_tilted_variance(z: Floats) -> Floats:
    """Variance of the same tilted law: 1/z^2 - 1/(4 sinh^2(z/2))."""
    safe = np.maximum(z, 10 * _SMALL)
    with np.errstate(over="ignore"):
        direct = 1 / safe**2 - 1 / (4 * np.sinh(safe / 2) ** 2)
    square = np.minimum(z, 10 * _SMALL) ** 2
    series = 1 / 12 - square / 240 + square**2 / 6048 - square**3 / 172800
    return np.where(z < 10 * _SMALL, series, direct)


@dataclass(frozen=True)
class LMO(Noise):
    """X = size * Laplace(1/U), U = a1*G + a3*E + a4*V (Gamma, Exponential and Uniform parts).

    G has shape ``k`` and **scale** ``theta``; E has **rate** ``rate`` (mean 1/rate, not rate); V is
    uniform on [``low``, ``high``]. ``size`` rescales the noise to the units of the query.

    **Guarantees.** The sampler and the transform M share this parameterisation.
    Source: arXiv 2405.18776 and 2009.09451; mathematics.md §2.

    >>> round(LMO_PRESETS["0.3"].pure_epsilon(1.0), 3)
    0.235
    """

    a1: float = 0.1
    a3: float = 0.1
    a4: float = 0.1
    k: float = 1.0
    theta: float = 0.5
    rate: float = 5.0
    low: float = 1.0
    high: float = 2.0
    size: float = 1.0
    name: ClassVar[str] = "lmo"

    def __post_init__(self) -> None:
        for name in ("k", "theta", "rate", "high", "size"):
            checked_positive(name, getattr(self, name))
        for name in ("a1", "a3", "a4", "low"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"Expected {name}={value} to be a finite number, 0 or above.")
        if not self.a1 + self.a3 + self.a4 > 0:
            raise ValueError("Expected at least one of a1, a3, a4 above 0, got a1=a3=a4=0.")
        if self.a4 > 0 and not self.high > self.low:
            raise ValueError(f"Expected low={self.low} below high={self.high}.")

    def loss_peak(self, shift: float) -> float:
        return shift

    def _y(self, x: ArrayLike) -> Floats:
        # Finite, so that parts with coefficient 0 stay 0 at infinity; the callers put the limits.
        return np.minimum(np.abs(np.asarray(x, dtype=np.float64)) / self.size, 1e300)

    def log_transform(self, y: Floats) -> Floats:
        """ln M(-y) = ln E e^{-yU} for y >= 0."""
        total = -self.k * np.log1p(self.a1 * self.theta * y) - np.log1p(self.a3 * y / self.rate)
        width = self.high - self.low
        return total - self.a4 * y * self.low + log_uniform_transform(self.a4 * y * width)

    def log_moment_generating(self, t: ArrayLike) -> Floats:
        """ln M(t) = ln E e^{tU} at any real ``t``; +inf where the expectation diverges."""
        t = np.asarray(t, dtype=np.float64)
        above = np.maximum(t, 0.0)
        gamma, exponential = 1 - self.a1 * self.theta * above, 1 - self.a3 * above / self.rate
        finite = (gamma > 0) & (exponential > 0)
        up = -self.k * np.log(np.where(finite, gamma, 1)) - np.log(np.where(finite, exponential, 1))
        # e^{tV} is e^{t high} times the Laplace transform of high - V, uniform as well.
        z = self.a4 * above * (self.high - self.low)
        up = up + self.a4 * above * self.high + log_uniform_transform(z)
        return np.where(
            finite, np.where(t > 0, up, self.log_transform(np.maximum(-t, 0.0))), np.inf
        )

    def kappa1(self, y: Floats) -> Floats:
        """Mean of U under the tilt e^{-yU}."""
        z = self.a4 * y * (self.high - self.low)
        gamma = self.k * self.a1 * self.theta / (1 + self.a1 * self.theta * y)
        uniform = self.a4 * (self.low + (self.high - self.low) * uniform_tilted_mean(z))
        return gamma + self.a3 / (self.rate + self.a3 * y) + uniform

    def kappa2(self, y: Floats) -> Floats:
        """Variance of U under the tilt e^{-yU}."""
        width = self.a4 * (self.high - self.low)
        gamma = self.k * (self.a1 * self.theta / (1 + self.a1 * self.theta * y)) ** 2
        exponential = (self.a3 / (self.rate + self.a3 * y)) ** 2
        return gamma + exponential + width**2 * uniform_tilted_variance(width * y)

    def logpdf(self, x: ArrayLike) -> Floats:
        y = self._y(x)
        inside = self.log_transform(y) + np.log(self.kappa1(y)) - math.log(2 * self.size)
        return np.where(np.isinf(x), -np.inf, inside)

    def logsf(self, x: ArrayLike) -> Floats:
        tail = np.where(np.isinf(x), -np.inf, self.log_transform(self._y(x)) - _LN2)
        return np.where(np.asarray(x) >= 0, tail, np.log1p(-np.exp(tail)))

    def score(self, x: ArrayLike) -> Floats:
        y = self._y(x)
        first = self.kappa1(y)
        return -np.sign(np.asarray(x)) * (first + self.kappa2(y) / first) / self.size

    def sample_inverse_scale(self, shape: Shape, rng: np.random.Generator) -> Floats:
        """Draws of U; numpy's exponential takes the mean, which is 1/rate."""
        return (
            self.a1 * rng.gamma(self.k, self.theta, shape)
            + self.a3 * rng.exponential(1 / self.rate, shape)
            + self.a4 * rng.uniform(self.low, self.high, shape)
        )

    def sample(self, shape: Shape, rng: np.random.Generator) -> Floats:
        return self.size * rng.laplace(0.0, 1.0, shape) / self.sample_inverse_scale(shape, rng)

    def scaled(self, factor: float) -> Self:
        return replace(self, size=self.size * checked_positive("factor", factor))

    def pure_epsilon(self, shift: float) -> float:
        """The exact pure-DP epsilon of one scalar release: ln f(0)/f(shift) (mathematics.md §2)."""
        return float(self.logpdf(0.0) - self.logpdf(shift))

    @property
    def _density_order(self) -> float:
        """U has density like u^(order-1) at 0, so E U^-m is finite exactly for m < order."""
        if self.a4 > 0 and self.low > 0:
            return math.inf
        return self.k * (self.a1 > 0) + 1.0 * (self.a3 > 0) + 1.0 * (self.a4 > 0)

    @property
    def variance(self) -> float:
        return super().variance if self._density_order > 2 else math.inf

    @property
    def mean_abs(self) -> float:
        return super().mean_abs if self._density_order > 1 else math.inf


# As published for one scalar release with sensitivity 1 at the named epsilon and delta = 1e-10;
# what they are truly worth is in docs/explanation/lmo.md (mathematics.md §2, table).
LMO_PRESETS: dict[str, LMO] = {
    "0.3": LMO(a1=0.1, a3=0.1, a4=0.1, theta=0.5, k=1, rate=5, high=2, low=1),
    "0.7": LMO(a1=0.1, a3=0.1, a4=0.1, theta=0.5, k=1, rate=5, high=6, low=5),
    "2": LMO(a1=0.1, a3=0.1, a4=0.2, theta=1, k=2, rate=5, high=8, low=7),
    "3": LMO(a1=0.1, a3=0.1, a4=0.9, theta=1, k=2, rate=5, high=3, low=2),
}


@dataclass(frozen=True)
class LaplaceMixture(Noise):
    """A finite mixture of Laplace laws, ``weights[j]`` on ``scales[j]`` (mathematics.md §2, §7.3).

    Weights are normalised to sum to 1.

    >>> round(LaplaceMixture(scales=(0.5, 5.0), weights=(0.3, 0.7)).variance, 12)
    35.15
    """

    scales: tuple[float, ...]
    weights: tuple[float, ...]
    name: ClassVar[str] = "laplace-mixture"

    def __post_init__(self) -> None:
        if not self.scales or len(self.scales) != len(self.weights):
            raise ValueError(
                f"Expected as many weights as scales, at least one, "
                f"got {len(self.weights)} weights and {len(self.scales)} scales."
            )
        for scale, weight in zip(self.scales, self.weights, strict=True):
            checked_positive("scale", scale)
            checked_positive("weight", weight)
        total = math.fsum(self.weights)
        # A sum of 1 up to rounding stays as it is: a law read back equals the one written.
        if abs(total - 1) <= len(self.weights) * np.finfo(np.float64).eps:
            total = 1.0
        object.__setattr__(self, "scales", tuple(float(b) for b in self.scales))
        object.__setattr__(self, "weights", tuple(float(w) / total for w in self.weights))

    def loss_peak(self, shift: float) -> float:
        return shift if len(self.scales) > 1 else np.inf

    def _logsum(self, x: ArrayLike, log_coefficients: Floats) -> Floats:
        y = np.abs(np.asarray(x, dtype=np.float64))[..., None]
        return np.asarray(logsumexp(log_coefficients - y / np.asarray(self.scales), axis=-1))

    def logpdf(self, x: ArrayLike) -> Floats:
        return self._logsum(x, np.log(self.weights) - np.log(2 * np.asarray(self.scales)))

    def logsf(self, x: ArrayLike) -> Floats:
        tail = self._logsum(x, np.log(self.weights) - _LN2)
        # At 0 rounding may put the tail a hair above 1/2; log1p stays finite either way.
        return np.where(np.asarray(x) >= 0, tail, np.log1p(-np.exp(tail)))

    def score(self, x: ArrayLike) -> Floats:
        b = np.asarray(self.scales)
        steeper = self._logsum(x, np.log(self.weights) - np.log(2 * b * b))
        return -np.sign(np.asarray(x)) * np.exp(steeper - self.logpdf(x))

    def sample(self, shape: Shape, rng: np.random.Generator) -> Floats:
        return rng.choice(self.scales, shape, p=self.weights) * rng.laplace(0.0, 1.0, shape)

    def scaled(self, factor: float) -> Self:
        factor = checked_positive("factor", factor)
        return replace(self, scales=tuple(b * factor for b in self.scales))

    @property
    def variance(self) -> float:
        return 2 * math.fsum(w * b * b for w, b in zip(self.weights, self.scales, strict=True))

    @property
    def mean_abs(self) -> float:
        return math.fsum(w * b for w, b in zip(self.weights, self.scales, strict=True))
