"""Laws that are a discrete Laplace law on a lattice, blurred: Tulap, multi-Gaussian.

Symbols: ``w`` width of the lattice, ``b = e^-epsilon``, ``t = |x|/w``; for Tulap ``q`` the mass cut
off; for the multi-Gaussian ``z = |x|/sigma``, ``omega = w/sigma``, ``m(x)`` the mean of the lattice
point given x.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from dpmech.families import Staircase, mirrored, signs
from dpmech.noise import Floats, Noise, Shape, checked_positive

# Lattice points this many sigmas from the largest term have less than e^-45 of it.
_REACH = 12.0
_MOST_SIGMAS = 50.0  # beyond, sums over the lattice are long, and nothing of it is seen any more
# Relative gap that the proof of one mode leaves for rounding, and the cells it may be cut into.
_GAP, _MOST_CELLS = 1e-9, 100_000


@dataclass(frozen=True)
class Tulap(Noise):
    """Discrete Laplace plus uniform noise, truncated: a staircase of gamma = 1/2 cut off for delta.

    N = width (G1 - G2 + U) with G1, G2 geometric of ratio b and U uniform on [-1/2, 1/2],
    conditioned on the middle 1 - q of its law, q = 2 delta b/(1 - b + 2 delta b).

    **Guarantees.** One release with sensitivity ``width`` is (epsilon, delta)-DP, and for no
    smaller epsilon or delta. Source: Awan & Slavković (2018), "Differentially private uniformly
    most powerful tests for binomial data", Theorem 2.

    >>> Tulap(epsilon=1.0, width=1.0, delta=0.0).support
    inf
    """

    epsilon: float
    width: float
    delta: float
    name: ClassVar[str] = "tulap"

    def __post_init__(self) -> None:
        checked_positive("epsilon", self.epsilon)
        checked_positive("width", self.width)
        if not 0 <= self.delta < 1:
            raise ValueError(f"Expected delta={self.delta} to be 0 or above, and below 1.")

    @property
    def _whole(self) -> Staircase:
        """The law before it is cut off."""
        return Staircase(epsilon=self.epsilon, width=self.width, gamma=0.5)

    @property
    def _kept(self) -> float:
        """1 - q."""
        gap = -math.expm1(-self.epsilon)
        return gap / (gap + 2 * self.delta * math.exp(-self.epsilon))

    @property
    def _lost(self) -> float:
        """q/2: what each of the tails had."""
        return self._kept * self.delta / math.expm1(self.epsilon)

    @property
    def support(self) -> float:
        return float(self._whole.isf(self._lost)) if self._lost else math.inf

    def logpdf(self, x: ArrayLike) -> Floats:
        inside = np.abs(x) <= self.support
        return np.where(inside, self._whole.logpdf(x) - math.log(self._kept), -np.inf)

    def logsf(self, x: ArrayLike) -> Floats:
        x = np.asarray(x, dtype=np.float64)
        if not self._lost:
            return self._whole.logsf(x)
        size = np.minimum(np.abs(x), self.support)
        steps, past = self._whole.steps_down(size)
        last, reached = self._whole.steps_down(self.support)
        # What is left of this step, the whole steps after it, and a part of the last.
        left = np.where(steps > 0, 1.0, 0.5) - past
        between = np.maximum(last - steps - 1, 0.0)
        whole = -np.expm1(-self.epsilon * between) / math.expm1(self.epsilon)
        after = left + whole + np.exp(-self.epsilon * (last - steps)) * reached
        mass = np.where(steps < last, after, reached - past)
        front = self._whole.logpdf(size) + math.log(self.width / self._kept)
        with np.errstate(divide="ignore"):
            tail = np.where(size < self.support, front + np.log(np.maximum(mass, 0.0)), -np.inf)
        return np.where(x <= -self.support, 0.0, mirrored(x, tail))

    def _isf_tail(self, p: Floats) -> Floats:
        whole = self._whole.isf(np.minimum(self._lost + p * self._kept, 0.5))
        return np.minimum(whole, self.support)

    def sample(self, shape: Shape, rng: np.random.Generator) -> Floats:
        p = (1 - rng.random(shape)) / 2  # in (0, 1/2]
        return self._isf_tail(p) * signs(shape, rng)

    def scaled(self, factor: float) -> Self:
        return replace(self, width=self.width * checked_positive("factor", factor))

    @property
    def variance(self) -> float:
        return (self._whole.variance - self._moment_lost(2)) / self._kept

    @property
    def mean_abs(self) -> float:
        return (self._whole.mean_abs - self._moment_lost(1)) / self._kept

    def _moment_lost(self, order: int) -> float:
        """E[|N|^order; |N| > support]: from its next step on, the law starts afresh."""
        if self._lost == 0:
            return 0.0
        b, end = math.exp(-self.epsilon), self.support / self.width
        step, odds = float(self._whole.steps_down(self.support)[0]) + 0.5, b / (1 - b)
        mass = 2 * self.width * float(self._whole.pdf(self.support))  # of a whole step
        # The way beyond the step is a geometric number plus a uniform one.
        mean, square = odds + 0.5, odds * (1 + b) / (1 - b) + odds + 1 / 3
        beyond = step + mean if order == 1 else step**2 + 2 * step * mean + square
        part = (step ** (order + 1) - end ** (order + 1)) / (order + 1)
        return self.width**order * mass * (part + odds * beyond)

    @property
    def fisher_information(self) -> float:
        return math.inf  # the density jumps


@dataclass(frozen=True)
class MultiGaussian(Noise):
    """Gaussians of standard deviation ``sigma`` on a lattice: sum_k e^(-|k| epsilon) N(k width).

    Source: Liu, Selvi & Wiesemann (2026).

    **Guarantees.** At a shift of j widths, j whole, the loss rises in x, from -j epsilon to
    j epsilon. Argument: with weights c_k = e^(-|k| epsilon) the ratio f(x - j w)/f(x) is the mean
    of c_(k-j)/c_k over the lattice points k given x. That ratio is monotone in k, and the law of k
    given x grows with x in likelihood ratio, as phi(x - k w) is totally positive. At other shifts
    the loss has ripples (:mod:`dpmech.rippled`).

    The density need not be unimodal: :attr:`is_unimodal` says where that is proved. Where it is
    not, a shift smaller than the sensitivity may be worse, and no pair is given.

    >>> [MultiGaussian(sigma=s, width=1.0, epsilon=1.0).is_unimodal for s in (0.2, 0.5)]
    [False, True]
    """

    sigma: float
    width: float
    epsilon: float
    name: ClassVar[str] = "multi-gaussian"

    def __post_init__(self) -> None:
        for name in ("sigma", "width", "epsilon"):
            checked_positive(name, getattr(self, name))
        if self.sigma > _MOST_SIGMAS * self.width * (1 + 1e-9):
            raise ValueError(
                f"Expected sigma={self.sigma} to be {_MOST_SIGMAS:g} times width={self.width} at "
                "most; beyond, laplace or gaussian noise is the same to many digits."
            )

    @property
    def is_unimodal(self) -> bool:
        """Whether the density is proved to fall on x > 0 (False: it is not, or hardly is)."""
        return _falls(self.width / self.sigma, self.epsilon)

    @property
    def _omega(self) -> float:
        return self.width / self.sigma

    @property
    def _half_window(self) -> int:
        return math.ceil(_REACH / self._omega) + 1

    @property
    def _log_weight(self) -> float:  # of the lattice point 0
        return math.log(math.tanh(self.epsilon / 2))

    def _placed(self, x: Floats) -> tuple[Floats, Floats, Floats]:
        """(periods, z, middle): |x| less whole periods, and the lattice point of most weight.

        Where all points that matter are above 0, a period more is a factor e^-epsilon.
        """
        start = self._half_window + 2 + self.epsilon / self._omega**2
        t = np.minimum(np.abs(x) / self.width, 1e300)
        periods = np.maximum(np.floor(t - start), 0.0)
        z = (t - periods) * self._omega
        middle = np.maximum(np.round(z / self._omega - self.epsilon / self._omega**2), 0.0)
        return periods, z, middle

    def _density_terms(self, z: Floats, middle: Floats) -> tuple[Floats, Floats]:
        """The sum over the lattice by the term of ``middle``, and the mean distance from it."""
        total, moment, way = np.zeros_like(z), np.zeros_like(z), z - middle * self._omega
        for j in range(-self._half_window, self._half_window + 1):
            drop = self.epsilon * (np.abs(middle + j) - middle)
            term = np.exp(j * self._omega * (way - j * self._omega / 2) - drop)
            total, moment = total + term, moment + j * term
        return total, moment / total

    def logpdf(self, x: ArrayLike) -> Floats:
        x = np.asarray(x, dtype=np.float64)
        periods, z, middle = self._placed(x)
        total, _ = self._density_terms(z, middle)
        exponent = -((z - middle * self._omega) ** 2) / 2 - self.epsilon * (middle + periods)
        constant = self._log_weight - math.log(self.sigma * math.sqrt(2 * math.pi))
        return np.where(np.isinf(x), -np.inf, exponent + np.log(total) + constant)

    def logsf(self, x: ArrayLike) -> Floats:
        x = np.asarray(x, dtype=np.float64)
        periods, z, middle = self._placed(x)
        top, total = special.log_ndtr(middle * self._omega - z), np.zeros_like(z)
        for j in range(-self._half_window, self._half_window + 2):
            drop = top + self.epsilon * (np.abs(middle + j) - middle)
            term = np.exp(special.log_ndtr((middle + j) * self._omega - z) - drop)
            # The last one stands for all the rest: their Gaussians lie wholly beyond x.
            total += term if j <= self._half_window else term / -math.expm1(-self.epsilon)
        tail = top - self.epsilon * (middle + periods) + np.log(total) + self._log_weight
        return mirrored(x, np.where(np.isinf(x), -np.inf, tail))

    def lattice_mean(self, x: Floats) -> Floats:
        """m(x), in units of the query: odd and rising in x."""
        periods, z, middle = self._placed(x)
        _, moment = self._density_terms(z, middle)
        return np.sign(x) * (periods + middle + moment) * self.width

    def score(self, x: ArrayLike) -> Floats:
        x = np.asarray(x, dtype=np.float64)
        _, z, middle = self._placed(x)
        _, moment = self._density_terms(z, middle)
        return np.sign(x) * ((middle + moment) * self._omega - z) / self.sigma

    def sample(self, shape: Shape, rng: np.random.Generator) -> Floats:
        gap = -math.expm1(-self.epsilon)
        k = rng.geometric(gap, shape) - rng.geometric(gap, shape)
        return self.width * k + self.sigma * rng.standard_normal(shape)

    def scaled(self, factor: float) -> Self:
        factor = checked_positive("factor", factor)
        return replace(self, sigma=self.sigma * factor, width=self.width * factor)

    @property
    def variance(self) -> float:
        return self.sigma**2 + (self.width / math.sinh(self.epsilon / 2)) ** 2 / 2

    @property
    def mean_abs(self) -> float:
        # E|N(mu, 1)| = mu + 2 (phi(mu) - mu P(Z > mu)).
        mu = self._omega * (k := np.arange(1.0 + math.ceil(40 / self._omega)))
        extra = np.exp(-mu * mu / 2) / math.sqrt(2 * math.pi) - mu * special.ndtr(-mu)
        weight = np.where(k > 0, 2.0, 1.0) * np.exp(self._log_weight - self.epsilon * k)
        blurred = 2 * self.sigma * float(np.sum(weight * np.maximum(extra, 0.0)))
        return self.width / math.sinh(self.epsilon) + blurred

    @property
    def fisher_information(self) -> float:
        """By Gauss's rule; the last period stands for all later ones, each e^-epsilon of it."""
        start = math.ceil(self._half_window + 3 + self.epsilon / self._omega**2)
        per_period = math.ceil(2 * self._omega)
        nodes, weights = np.polynomial.legendre.leggauss(16)
        half = self.width / (2 * per_period)
        x = half * (2 * np.arange((start + 1) * per_period)[:, None] + 1 + nodes)
        parts = 2 * half * np.sum(weights * self.score(x) ** 2 * self.pdf(x), axis=1)
        parts[-per_period:] /= -math.expm1(-self.epsilon)
        return float(np.sum(parts))


@lru_cache(maxsize=256)
def _falls(omega: float, epsilon: float) -> bool:
    """Whether f' < 0 on x > 0 is proved, for lattice points ``omega`` sigmas apart.

    It is enough on (0, w]. For x > 0, f(x) - b f(x - w) is a multiple of the sum over k >= 0 of
    b^k phi(x + k w), which falls; so f'(x) < b f'(x - w), and the sign is handed on from period to
    period. On (0, w], -sigma f'/f = z - m with m the mean lattice point in sigmas. Since m rises,
    it is below z on [z1, z2] if m(z2) < z1. On (0, z1], m <= z sup m', and m' is the variance of
    the lattice point k omega, at most its mean square, which is largest at z1: with weights v_k at
    z = 0, sum (k omega)^2 v_k cosh(k omega z1) / sum v_k.
    """
    first = 1e-6 * min(omega, 1 / omega)
    k = np.arange(1, math.ceil(40 / omega) + 2, dtype=np.float64)
    log_v = -epsilon * k - (k * omega) ** 2 / 2
    square = 2 * np.sum((k * omega) ** 2 * np.exp(log_v + k * omega * first))
    if square >= (1 - _GAP) * (1 + 2 * np.sum(np.exp(log_v))):
        return False
    law = MultiGaussian(sigma=1.0, width=omega, epsilon=epsilon)
    places = np.geomspace(first, omega, 2_000)
    cells = np.stack([places[:-1], places[1:]])
    while cells.size:
        low, high = cells
        mean = law.lattice_mean(high) * (1 + _GAP)
        if np.any(mean >= high) or len(low) > _MOST_CELLS:
            return False
        low, high = cells[:, mean >= low]
        middle = (low + high) / 2
        cells = np.concatenate([np.stack([low, middle]), np.stack([middle, high])], axis=1)
    return True
