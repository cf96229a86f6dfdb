"""Closed-form laws: Gaussian, Laplace, generalised Gaussian, truncated Laplace, staircase."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from dpmech.noise import Floats, Noise, Shape, checked_positive

_LN2 = math.log(2)
_FLAT = 1e-290  # a power |x/scale|^beta below it has lost digits, and the density is still f(0)


def signs(shape: Shape, rng: np.random.Generator) -> Floats:
    """Fair draws of -1 and 1."""
    return rng.integers(0, 2, shape).astype(np.float64) * 2.0 - 1.0


def mirrored(x: Floats, log_tail: Floats) -> Floats:
    """The logsf at ``x`` from ``log_tail``, that at abs(x): for x < 0 it is ln(1 - tail)."""
    return np.where(x >= 0, log_tail, np.log1p(-np.exp(log_tail)))


@dataclass(frozen=True)
class Gaussian(Noise):
    """Normal noise of standard deviation ``sigma``.

    >>> float(Gaussian(sigma=2.0).variance)
    4.0
    """

    sigma: float
    name: ClassVar[str] = "gaussian"

    def __post_init__(self) -> None:
        checked_positive("sigma", self.sigma)

    def logpdf(self, x: ArrayLike) -> Floats:
        z = np.asarray(x, dtype=np.float64) / self.sigma
        return -0.5 * z * z - math.log(self.sigma * math.sqrt(2 * math.pi))

    def logsf(self, x: ArrayLike) -> Floats:
        return special.log_ndtr(-np.asarray(x, dtype=np.float64) / self.sigma)

    def _isf_tail(self, p: Floats) -> Floats:
        return -self.sigma * special.ndtri_exp(np.log(p))

    def sample(self, shape: Shape, rng: np.random.Generator) -> Floats:
        return self.sigma * rng.standard_normal(shape)

    def scaled(self, factor: float) -> Self:
        return replace(self, sigma=self.sigma * checked_positive("factor", factor))

    def score(self, x: ArrayLike) -> Floats:
        return -np.asarray(x, dtype=np.float64) / self.sigma**2

    @property
    def variance(self) -> float:
        return self.sigma**2

    @property
    def mean_abs(self) -> float:
        return self.sigma * math.sqrt(2 / math.pi)

    @property
    def fisher_information(self) -> float:
        return 1 / self.sigma**2


@dataclass(frozen=True)
class Laplace(Noise):
    """Two-sided exponential noise of scale ``b`` (variance 2 b^2)."""

    b: float
    name: ClassVar[str] = "laplace"

    def __post_init__(self) -> None:
        checked_positive("b", self.b)

    def logpdf(self, x: ArrayLike) -> Floats:
        return -np.abs(np.asarray(x, dtype=np.float64)) / self.b - math.log(2 * self.b)

    def logsf(self, x: ArrayLike) -> Floats:
        x = np.asarray(x, dtype=np.float64)
        return mirrored(x, -_LN2 - np.abs(x) / self.b)

    def _isf_tail(self, p: Floats) -> Floats:
        return -self.b * np.log(2 * p)

    def sample(self, shape: Shape, rng: np.random.Generator) -> Floats:
        return rng.laplace(0.0, self.b, shape)

    def scaled(self, factor: float) -> Self:
        return replace(self, b=self.b * checked_positive("factor", factor))

    def score(self, x: ArrayLike) -> Floats:
        return -np.sign(np.asarray(x, dtype=np.float64)) / self.b

    @property
    def variance(self) -> float:
        return 2 * self.b**2

    @property
    def mean_abs(self) -> float:
        return self.b

    @property
    def fisher_information(self) -> float:
        return 1 / self.b**2


@dataclass(frozen=True)
class GeneralizedGaussian(Noise):
    """Density proportional to exp(-|x/scale|^beta): Laplace at 1, Gaussian at 2 (Subbotin 1923)."""

    scale: float
    beta: float
    name: ClassVar[str] = "gg"

    def __post_init__(self) -> None:
        checked_positive("scale", self.scale)
        checked_positive("beta", self.beta)

    @property
    def _shape(self) -> float:
        return 1 / self.beta

    def _power(self, x: ArrayLike) -> Floats:
        return (np.abs(np.asarray(x, dtype=np.float64)) / self.scale) ** self.beta

    def logpdf(self, x: ArrayLike) -> Floats:
        constant = math.log(self.beta / (2 * self.scale)) - math.lgamma(self._shape)
        return constant - self._power(x)

    def logsf(self, x: ArrayLike) -> Floats:
        x, power = np.asarray(x, dtype=np.float64), self._power(x)
        near = np.log1p(-np.minimum(np.abs(x) / self._width, 1 - 2.0**-53))
        outer = np.where(power < _FLAT, near, log_upper_gamma(self._shape, power))
        return mirrored(x, outer - _LN2)

    @property
    def _width(self) -> float:
        """2 P(0 < X < x) is x over this where the density is still f(0), to the last digit."""
        return self.scale * math.exp(min(math.lgamma(1 + self._shape), 700.0))

    def _isf_tail(self, p: Floats) -> Floats:
        power = special.gammainccinv(self._shape, 2 * p)
        direct = np.where(power < _FLAT, self._width * (1 - 2 * p), self.scale * power**self._shape)
        # gammainccinv loses accuracy below the smallest normal numbers; the bracketing never does.
        return direct if np.all(p > 1e-280) else super()._isf_tail(p)

    def loss_peak(self, shift: float) -> float:
        return np.inf if self.beta >= 1 else shift

    def sample(self, shape: Shape, rng: np.random.Generator) -> Floats:
        # A gamma variable of shape a is one of shape a + 1 times U^(1/a): with a large beta the
        # smaller one itself would be 0 too often (9 % of draws at beta = 300).
        power = rng.standard_gamma(self._shape + 1, shape) ** self._shape
        return self.scale * power * rng.random(shape) * signs(shape, rng)

    def scaled(self, factor: float) -> Self:
        return replace(self, scale=self.scale * checked_positive("factor", factor))

    def score(self, x: ArrayLike) -> Floats:
        x = np.asarray(x, dtype=np.float64)
        with np.errstate(
            divide="ignore"
        ):  # below beta 1 the cusp at 0 has no slope; 0 stands for it
            magnitude = self.beta / self.scale * (np.abs(x) / self.scale) ** (self.beta - 1)
        return np.where(x == 0, 0.0, -np.sign(x) * np.minimum(magnitude, 1e300))

    @property
    def variance(self) -> float:
        return self.scale**2 * math.exp(math.lgamma(3 * self._shape) - math.lgamma(self._shape))

    @property
    def mean_abs(self) -> float:
        return self.scale * math.exp(math.lgamma(2 * self._shape) - math.lgamma(self._shape))

    @property
    def fisher_information(self) -> float:
        if self.beta <= 0.5:  # the score is not square-integrable at the cusp
            return math.inf
        ratio = math.exp(math.lgamma(2 - self._shape) - math.lgamma(self._shape))
        return (self.beta / self.scale) ** 2 * ratio


def log_upper_gamma(a: float, z: Floats) -> Floats:
    """ln of the regularised upper incomplete gamma function, also where it underflows."""
    with np.errstate(divide="ignore"):
        direct = np.log(special.gammaincc(a, z))
    far = z > 500.0
    if not np.any(far):
        return direct
    zf = np.where(far, np.minimum(z, 1e300), 500.0)
    # Lentz-free tail: Legendre's continued fraction, evaluated from the back; at z > 500 sixty
    # terms are far more than double precision needs for the a in (0, 10] used here.
    fraction = np.zeros_like(zf)
    for n in range(60, 0, -1):
        fraction = n * (n - a) / (zf + 2 * n + 1 - a - fraction)
    tail = (a - 1) * np.log(zf) - zf - math.lgamma(a) + np.log(zf / (zf + 1 - a - fraction))
    return np.where(np.isinf(z), -np.inf, np.where(far, tail, direct))


@dataclass(frozen=True)
class TruncatedLaplace(Noise):
    """Laplace noise of scale ``b`` conditioned on |x| <= ``bound`` (Geng et al. 2018)."""

    b: float
    bound: float
    name: ClassVar[str] = "truncated-laplace"

    def __post_init__(self) -> None:
        checked_positive("b", self.b)
        checked_positive("bound", self.bound)

    @classmethod
    def for_target(cls, epsilon: float, delta: float, sensitivity: float = 1.0) -> Self:
        """The law of Geng et al. (2018), (epsilon, delta)-DP for one release."""
        b = checked_positive("sensitivity", sensitivity) / checked_positive("epsilon", epsilon)
        return cls(b=b, bound=b * math.log1p(math.expm1(epsilon) / (2 * delta)))

    @property
    def support(self) -> float:
        return self.bound

    @property
    def _log_mass(self) -> float:
        """ln of the mass that the untruncated law has on |x| <= bound."""
        return math.log(-math.expm1(-self.bound / self.b))

    def logpdf(self, x: ArrayLike) -> Floats:
        size = np.abs(np.asarray(x, dtype=np.float64))
        inside = -size / self.b - math.log(2 * self.b) - self._log_mass
        return np.where(size <= self.bound, inside, -np.inf)

    def logsf(self, x: ArrayLike) -> Floats:
        x = np.asarray(x, dtype=np.float64)
        left = np.maximum(self.bound - np.abs(x), 0.0) / self.b
        with np.errstate(divide="ignore"):
            tail = -np.abs(x) / self.b + np.log(-np.expm1(-left)) - _LN2 - self._log_mass
        tail = np.where(left > 0, tail, -np.inf)
        return np.where(x <= -self.bound, 0.0, mirrored(x, tail))

    def _isf_tail(self, p: Floats) -> Floats:
        kept = -math.expm1(-self.bound / self.b)
        return -self.b * np.log(2 * p * kept + math.exp(-self.bound / self.b))

    def sample(self, shape: Shape, rng: np.random.Generator) -> Floats:
        kept = -math.expm1(-self.bound / self.b)
        size = -self.b * np.log1p(-kept * rng.random(shape))
        return size * signs(shape, rng)

    def scaled(self, factor: float) -> Self:
        factor = checked_positive("factor", factor)
        return replace(self, b=self.b * factor, bound=self.bound * factor)

    @property
    def variance(self) -> float:
        a = self.bound / self.b
        return self.b**2 * (2 - a * (a + 2) * math.exp(-a) / -math.expm1(-a))

    @property
    def mean_abs(self) -> float:
        a = self.bound / self.b
        return self.b * (1 - a * math.exp(-a) / -math.expm1(-a))

    @property
    def fisher_information(self) -> float:
        return math.inf  # the density jumps at the ends of the support


@dataclass(frozen=True)
class Staircase(Noise):
    """Geometric steps of period ``width``, falling by e^-epsilon at |x| = (k + gamma) width.

    **Guarantees.** One release with sensitivity ``width`` is epsilon-DP; among all epsilon-DP
    noises gamma = 1/(1+e^(epsilon/2)) has the least E|X|. Source: Geng & Viswanath (2014);
    mathematics.md §1.
    """

    epsilon: float
    width: float
    gamma: float
    name: ClassVar[str] = "staircase"

    def __post_init__(self) -> None:
        checked_positive("epsilon", self.epsilon)
        checked_positive("width", self.width)
        if not 0 < self.gamma < 1:
            raise ValueError(f"Expected gamma={self.gamma} in (0, 1).")

    @classmethod
    def least_mean_abs(cls, epsilon: float, width: float = 1.0) -> Self:
        """The epsilon-DP law with the least E|X| for sensitivity ``width``."""
        return cls(epsilon=epsilon, width=width, gamma=1 / (1 + math.exp(epsilon / 2)))

    @classmethod
    def least_variance(cls, epsilon: float, width: float = 1.0) -> Self:
        """The epsilon-DP law with the least variance for sensitivity ``width``.

        With b = e^-epsilon and u^3 = b (1 + b)/2, gamma = (u - b)/(1 - b), here without its
        cancellation. Source: Geng & Viswanath (2014), Theorem 5.
        """
        b = math.exp(-checked_positive("epsilon", epsilon))
        u = (b * (1 + b) / 2) ** (1 / 3)
        gamma = b * (1 + 2 * b) / (2 * (u * u + u * b + b * b))
        return cls(epsilon=epsilon, width=width, gamma=gamma)

    @property
    def _height(self) -> float:
        """Density on the first step."""
        ratio = math.exp(-self.epsilon)
        mean_step = self.gamma + ratio * (1 - self.gamma)
        return -math.expm1(-self.epsilon) / (2 * self.width * mean_step)

    def steps_down(self, x: ArrayLike) -> tuple[Floats, Floats]:
        """How many steps lie before abs(x), and the way from the last of them, in widths."""
        t = np.abs(np.asarray(x, dtype=np.float64)) / self.width
        steps = np.maximum(np.floor(t - self.gamma) + 1, 0.0)
        start = np.where(steps > 0, np.minimum(steps, 1e300) - 1 + self.gamma, 0.0)
        return steps, np.minimum(t, 1e300) - start  # finite at infinity, where all is 0 anyway

    def logpdf(self, x: ArrayLike) -> Floats:
        steps, _ = self.steps_down(x)
        return math.log(self._height) - self.epsilon * steps

    def logsf(self, x: ArrayLike) -> Floats:
        x = np.asarray(x, dtype=np.float64)
        steps, past = self.steps_down(x)
        length = np.where(steps > 0, 1.0, self.gamma)
        beyond = 1 / math.expm1(self.epsilon)  # all later steps, in units of this one's height
        tail = math.log(self._height * self.width) - self.epsilon * steps
        return mirrored(x, tail + np.log(length - past + beyond))

    def _isf_tail(self, p: Floats) -> Floats:
        unit = self._height * self.width
        beyond = 1 / math.expm1(self.epsilon)
        # sf at the start of step n >= 1 is unit * e^(-n eps) (1 + beyond); find the step, then go
        # linearly.
        n = np.ceil((np.log(unit * (1 + beyond)) - np.log(p)) / self.epsilon) - 1
        n = np.maximum(n, 0.0)
        length = np.where(n > 0, 1.0, self.gamma)
        past = length + beyond - p / unit * np.exp(n * self.epsilon)
        past = np.clip(past, 0.0, length)
        return self.width * (np.where(n > 0, n - 1 + self.gamma, 0.0) + past)

    def sample(self, shape: Shape, rng: np.random.Generator) -> Floats:
        ratio = math.exp(-self.epsilon)
        period = rng.geometric(-math.expm1(-self.epsilon), shape) - 1.0
        first = rng.random(shape) < self.gamma / (self.gamma + ratio * (1 - self.gamma))
        u = rng.random(shape)
        place = np.where(first, self.gamma * u, self.gamma + (1 - self.gamma) * u)
        return self.width * (period + place) * signs(shape, rng)

    def scaled(self, factor: float) -> Self:
        return replace(self, width=self.width * checked_positive("factor", factor))

    @property
    def variance(self) -> float:
        return self._moment(2)

    @property
    def mean_abs(self) -> float:
        return self._moment(1)

    def _moment(self, order: Literal[1, 2]) -> float:
        """E|X|^order: the first step's part plus power sums of the geometric series."""
        ratio, gap, g = math.exp(-self.epsilon), -math.expm1(-self.epsilon), self.gamma
        s0, s1, s2 = ratio / gap, ratio / gap**2, ratio * (1 + ratio) / gap**3
        if order == 1:
            total = g**2 / 2 + s1 + (g - 0.5) * s0
        else:
            total = g**3 / 3 + s2 + (2 * g - 1) * s1 + (g * g - g + 1 / 3) * s0
        return 2 * self._height * self.width ** (order + 1) * total

    @property
    def fisher_information(self) -> float:
        return math.inf  # the density jumps
