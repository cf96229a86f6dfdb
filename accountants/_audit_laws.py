"""Noise as software draws it that is not the noise of the proof: cut off, or on a random line.

Symbols: ``B`` where it is cut off, ``d`` dimension, ``z`` scalar size, ``v`` unit vector.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike

from dpmech import LMO, Gaussian, GeneralizedGaussian, Laplace, LaplaceMixture, NoDominatingPair
from dpmech.families import mirrored
from dpmech.heavy_tailed import StudentT
from dpmech.logconcave import Logistic, OffsetGaussian
from dpmech.noise import Floats, Noise, Shape, checked_positive
from dpmech.spherical import Shells, Spherical, checked_dim

# Densities that are smooth and fall on x > 0, and whose loss rises to one peak and falls after it.
_FALLING = (
    Gaussian,
    Laplace,
    GeneralizedGaussian,
    LMO,
    LaplaceMixture,
    Logistic,
    OffsetGaussian,
    StudentT,
)
# Masses below this share of what lies beyond the cut are integrals, by this rule.
_NEAR = 0.1
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(10)


def _checked_falling(law: Noise) -> None:
    if not isinstance(law, _FALLING):
        raise ValueError(
            f"Expected one of {', '.join(kind.name for kind in _FALLING)}, got {law}: only for "
            "these it is proved what this changes."
        )


@dataclass(frozen=True)
class CutOff(Noise):
    """``law`` conditioned on |x| <= ``bound``: noise whose generator never goes beyond.

    **Guarantees.** Inside, the density is that of the law times a constant, so it falls, and its
    loss rises and falls as the law's does: the pair of a shift dominates all smaller ones.

    A Box-Muller transform of 24-bit uniform numbers, which is how single-precision normal numbers
    are commonly made, ends at sqrt(48 ln 2) = 5.768 standard deviations.

    >>> law = CutOff(Gaussian(sigma=1.0), 5.768)
    >>> float(law.sf(5.768)), law.support
    (0.0, 5.768)
    """

    law: Noise
    bound: float
    name: ClassVar[str] = "cut-off"

    def __post_init__(self) -> None:
        _checked_falling(self.law)
        checked_positive("bound", self.bound)

    def __str__(self) -> str:
        return f"{self.law} cut off at {self.bound:g}"

    @property
    def support(self) -> float:
        return self.bound

    @property
    def _log_kept(self) -> float:
        """ln P(|X| <= B) of the whole law."""
        return math.log1p(-2 * float(self.law.sf(self.bound)))

    def loss_peak(self, shift: float) -> float:
        return self.law.loss_peak(shift)

    def logpdf(self, x: ArrayLike) -> Floats:
        inside = np.abs(np.asarray(x, dtype=np.float64)) <= self.bound
        return np.where(inside, self.law.logpdf(x) - self._log_kept, -np.inf)

    def logsf(self, x: ArrayLike) -> Floats:
        x = np.asarray(x, dtype=np.float64)
        size = np.minimum(np.abs(x), self.bound)
        return np.where(x <= -self.bound, 0.0, mirrored(x, self._log_left(size) - self._log_kept))

    def _log_left(self, size: Floats) -> Floats:
        """ln of the mass of (size, B] in the whole law; near B a difference would cancel."""
        whole, beyond = self.law.logsf(size), self.law.logsf(self.bound)
        half = (self.bound - size) / 2
        with np.errstate(divide="ignore"):
            far = whole + np.log(-np.expm1(np.minimum(beyond - whole, 0.0)))
            inside = self.law.pdf(size[..., None] + half[..., None] * (1 + _NODES))
            near = np.log(half * (inside @ _WEIGHTS))
        return np.where(whole - beyond < _NEAR, near, far)

    def _isf_tail(self, p: Floats) -> Floats:
        beyond = float(self.law.sf(self.bound))
        return np.minimum(self.law.isf(p * (1 - 2 * beyond) + beyond), self.bound)

    def sample(self, shape: Shape, rng: np.random.Generator) -> Floats:
        draws = self.law.sample(shape, rng)
        while np.any(far := np.abs(draws) > self.bound):
            draws = np.where(far, self.law.sample(shape, rng), draws)
        return draws

    def scaled(self, factor: float) -> Self:
        return replace(self, law=self.law.scaled(factor), bound=self.bound * factor)

    def score(self, x: ArrayLike) -> Floats:
        return self.law.score(x)

    @property
    def fisher_information(self) -> float:
        return math.inf  # the density jumps at the end

    def to_dict(self) -> dict[str, object]:
        return {"name": self.name, "law": self.law.to_dict(), "bound": self.bound}


@dataclass(frozen=True)
class RandomDirection(Spherical):
    """z v in R^dim: one draw z of ``size`` times a unit vector v, uniform and secret.

    The noise of the R1SMG mechanism (Ji & Li 2024, size Gaussian). Its density at distance r is
    that of |z| over the area of the sphere of radius r, and falls. No pair is proved for it here:
    :func:`accountants.audit.audit_claim` proves from below what it costs.

    >>> law = RandomDirection(Gaussian(sigma=2.0), 100)
    >>> law.mean_square_radius
    4.0
    """

    size: Noise
    dim: float
    name: ClassVar[str] = "random-direction"

    def __post_init__(self) -> None:
        _checked_falling(self.size)
        checked_dim(self.dim)
        if self.dim < 2:
            raise ValueError(f"Expected dim={self.dim:g} of a random direction to be 2 or above.")

    def __str__(self) -> str:
        return f"{self.size} on a random line of R^{self.dim:g}"

    @cached_property
    def shells(self) -> Shells:
        raise NoDominatingPair(
            f"No pair is proved for {self}: given the outcome, the line through it and the true "
            "answer is known but for a small angle.",
            "Use gaussian or spherical-gg noise.",
        )

    @property
    def mean_square_radius(self) -> float:
        return self.size.variance

    def sample(self, shape: Shape, rng: np.random.Generator) -> Floats:
        shape = (shape,) if isinstance(shape, int) else shape
        if not shape or shape[-1] != self.dim:
            raise ValueError(f"Expected a shape that ends in dim={self.dim:g}, got {shape}.")
        way = rng.standard_normal(shape)
        way /= np.linalg.norm(way, axis=-1, keepdims=True)
        return way * self.size.sample(shape[:-1], rng)[..., None]

    def scaled(self, factor: float) -> Self:
        return replace(self, size=self.size.scaled(factor))

    def to_dict(self) -> dict[str, object]:
        return {"name": self.name, "size": self.size.to_dict(), "dim": self.dim}
