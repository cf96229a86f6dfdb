"""Spherical noise: a direction chosen uniformly and a radius, in R^d (mathematics.md §6.4).

Symbols: ``d`` dimension, ``s`` l2 sensitivity, ``r`` radius, shell a = {r_a <= |x| < r_(a+1)}. The
density is constant on every shell and falls from one to the next. So of a release and its
neighbour, whose centres are s apart, the loss is constant wherever a shell about one centre meets a
shell about the other, and what both have there is a volume: the pair is a finite list of atoms,
exactly, in any dimension.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, NoReturn, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from dpmech.noise import Floats, Noise, Shape, checked_positive

_EPS = float(np.finfo(np.float64).eps)
# The tails of the radius that are left out, at either end.
_TAIL = 1e-60
_LARGEST_DIM = 10_000


def checked_dim(dim: float) -> None:
    """ValueError where ``dim`` is no dimension that spherical laws are computed in."""
    if not (dim == int(dim) and 1 <= dim <= _LARGEST_DIM):
        raise ValueError(f"Expected dim={dim} to be a whole number from 1 to {_LARGEST_DIM}.")


@dataclass(frozen=True, kw_only=True, eq=False)
class Shells:
    """A law by radii ``edges`` 0 = r_0 < … < r_n, shape (n + 1,), and its shells, shape (n,).

    ``masses`` sum to 1; ``log_density`` is that of the shells up to a constant, and falls.
    """

    edges: Floats
    masses: Floats
    log_density: Floats


class Spherical(Noise):
    """A vector of dimension ``dim`` whose law depends on its l2 norm alone.

    **Guarantees.** What is sampled is the law on :attr:`shells`, which is the law accounted for.
    Densities fall with the radius, so that the pair at the sensitivity s dominates every smaller
    change: f(x) > gamma f(x - tu) with gamma >= 1 needs |x - tu| > |x|, and there |x - tu| grows
    with t (the argument of mathematics.md §3 along a line). Source: mathematics.md §6.4.
    """

    dim: float

    @cached_property
    @abstractmethod
    def shells(self) -> Shells:
        """The shells and their masses."""

    def sample(self, shape: Shape, rng: np.random.Generator) -> Floats:
        """Draws whose last axis is the vector: of length ``dim``."""
        shape = (shape,) if isinstance(shape, int) else shape
        if not shape or shape[-1] != self.dim:
            raise ValueError(f"Expected a shape that ends in dim={self.dim:g}, got {shape}.")
        shells, draws = self.shells, shape[:-1]
        which = rng.choice(len(shells.masses), draws, p=shells.masses)
        inner, outer = shells.edges[which], shells.edges[which + 1]
        # Uniform in a shell: the share of the ball of radius r is uniform.
        ratio = (inner / outer) ** self.dim
        radius = outer * (ratio + (1 - ratio) * rng.random(draws)) ** (1 / self.dim)
        direction = rng.standard_normal(shape)
        norm = np.linalg.norm(direction, axis=-1, keepdims=True)
        return direction / norm * radius[..., None]

    @property
    def mean_square_radius(self) -> float:
        """E |X|^2: dim times the variance of a coordinate."""
        r, d = self.shells.edges, self.dim
        with np.errstate(divide="ignore"):
            ratio = r[:-1] / r[1:]
        mean = r[1:] ** 2 * d / (d + 2) * (1 - ratio ** (d + 2)) / (1 - ratio**d)
        return float(self.shells.masses @ mean)

    @property
    def variance(self) -> float:
        """E X_i^2 of one coordinate."""
        return self.mean_square_radius / self.dim

    def logpdf(self, x: ArrayLike) -> Floats:
        self._refused("scalar density")

    def logsf(self, x: ArrayLike) -> Floats:
        self._refused("scalar tail")

    def _isf_tail(self, p: Floats) -> Floats:
        self._refused("scalar tail")

    def _refused(self, what: str) -> NoReturn:
        raise ValueError(
            f"Expected a scalar law to ask for its {what}, got {self} on vectors of "
            f"dim={self.dim:g}; ask for its shells."
        )

    def atoms(self, shift: float) -> tuple[Floats, Floats, float, Floats]:
        """(losses, P-masses, mass at infinite loss, relative errors) at centres ``shift`` apart."""
        shells = self.shells
        p_shell, q_shell, chance, error = meetings(shells.edges, shift, int(self.dim))
        p = shells.masses[p_shell] * chance
        losses = shells.log_density[p_shell] - shells.log_density[q_shell]
        # From the shells about P, out of all shells about Q.
        outside = beyond(shells.edges, shift, int(self.dim))
        lost = float(shells.masses @ outside)
        return losses, p, lost, error


@dataclass(frozen=True)
class SphericalGeneralizedGaussian(Spherical):
    """Density proportional to exp(-v) in R^dim, v = (|x|/scale)^beta rounded to steps of ``step``.

    Near the Gaussian at beta 2 (scale = sigma sqrt(2)), near exp(-|x|/scale) at beta 1. The smaller
    the step, the nearer, and the more shells: losses are multiples of the step.

    >>> law = SphericalGeneralizedGaussian(scale=2.0**0.5, beta=2.0, dim=10)
    >>> round(law.variance, 2)
    1.0
    """

    scale: float
    beta: float
    dim: float
    step: float = 0.1
    name: ClassVar[str] = "spherical-gg"

    def __post_init__(self) -> None:
        checked_positive("scale", self.scale)
        checked_positive("beta", self.beta)
        checked_dim(self.dim)
        if not 1e-3 <= self.step <= 1:
            raise ValueError(f"Expected step={self.step} from 0.001 to 1.")

    @cached_property
    def shells(self) -> Shells:
        shape = self.dim / self.beta
        low, high = special.gammaincinv(shape, _TAIL), special.gammainccinv(shape, _TAIL)
        # All below the first step that matters is one ball.
        steps = np.arange(math.floor(low / self.step) + 1, math.ceil(high / self.step) + 2)
        radii = (self.step * steps) ** (1 / self.beta)
        log_ball = self.dim * np.log(radii)
        inner = np.append(-np.inf, log_ball[:-1])
        log_density = -self.step * (steps - 0.5)
        log_mass = log_density + log_ball + np.log(-np.expm1(inner - log_ball))
        masses = np.exp(log_mass - np.max(log_mass))
        return Shells(
            edges=self.scale * np.append(0.0, radii),
            masses=masses / float(np.sum(masses)),
            log_density=log_density,
        )

    def scaled(self, factor: float) -> Self:
        return replace(self, scale=self.scale * checked_positive("factor", factor))


def meetings(
    edges: Floats, shift: float, dim: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats, Floats]:
    """All shells a, b that meet if their centres are ``shift`` apart, flat, and two things more.

    The chance that a point uniform in shell a lies in shell b, and a bound on its relative error.
    """
    first = np.searchsorted(edges[1:], np.maximum(edges[:-1] - shift, shift - edges[1:]), "right")
    last = np.searchsorted(edges[:-1], edges[1:] + shift, "left")
    count = np.maximum(last - first, 0)
    a = np.repeat(np.arange(len(count)), count)
    b = np.arange(len(a)) - np.repeat(np.cumsum(count) - count, count) + first[a]
    ratio = ((edges[:-1] / edges[1:]) ** dim)[a]
    shares = _Shares.of(edges, shift, dim)
    outer = shares.at(a + 1, b + 1) - shares.at(a + 1, b)
    inner = shares.at(a, b + 1) - shares.at(a, b)
    chance = (outer - ratio * inner) / (1 - ratio)
    # The shares are good to some ulps of themselves; the differences lose what they cancel.
    size = (shares.at(a + 1, b + 1) + ratio * shares.at(a, b + 1)) / (1 - ratio)
    met = chance > 0
    error = np.minimum(1.0, 64 * _EPS * size[met] / chance[met] + 16 * _EPS)
    return a[met], b[met], chance[met], error


def beyond(edges: Floats, shift: float, dim: int) -> Floats:
    """The chance that a point uniform in each shell lies ``shift`` away beyond all of them."""
    r, ratio = edges[1:], (edges[:-1] / edges[1:]) ** dim
    outer = _beyond_ball(r, edges[-1], shift, dim)
    inner = np.where(ratio > 0, _beyond_ball(edges[:-1], edges[-1], shift, dim), 0.0)
    # What rounding hides is counted as lost, where there is any.
    rounding = 64 * _EPS * outer
    return np.minimum(1.0, np.maximum(0.0, outer - ratio * inner + rounding) / (1 - ratio))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Shares:
    """The share of ball i that ball j, ``shift`` away, holds, for all that cross each other."""

    edges: Floats
    shift: float
    dim: int
    first: NDArray[np.int64]
    start: NDArray[np.int64]
    values: Floats

    @classmethod
    def of(cls, edges: Floats, shift: float, dim: int) -> Self:
        first = np.searchsorted(edges, np.abs(edges - shift), "left")
        last = np.searchsorted(edges, edges + shift, "right")
        count = last - first
        start = np.cumsum(count) - count
        i = np.repeat(np.arange(len(edges)), count)
        j = np.arange(len(i)) - start[i] + first[i]
        values = _share(edges[i], edges[j], shift, dim)
        return cls(edges=edges, shift=shift, dim=dim, first=first, start=start, values=values)

    def at(self, i: NDArray[np.int64], j: NDArray[np.int64]) -> Floats:
        r, other = self.edges[i], self.edges[j]
        crossing = (other >= np.abs(r - self.shift)) & (other <= r + self.shift) & (r > 0)
        crossing &= j >= self.first[i]
        found = np.minimum(self.start[i] + j - self.first[i], len(self.values) - 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            whole = np.where(other > r, 1.0, np.minimum(1.0, (other / r) ** self.dim))
        whole = np.where((r == 0) & (other < self.shift), 0.0, whole)
        whole = np.where(r + other <= self.shift, 0.0, whole)
        return np.where(crossing, self.values[np.maximum(found, 0)], whole)


def _share(r: Floats, other: Floats, shift: float, dim: int) -> Floats:
    """The share of balls of radius ``r`` that balls of radius ``other``, ``shift`` away, hold.

    Two balls that cross meet in a cap of each, beyond the plane through their common sphere.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        size = np.exp(np.minimum(dim * (np.log(other) - np.log(r)), 700.0))
        place = (shift**2 + (r - other) * (r + other)) / (2 * shift)
        other_cap = _cap(other, shift - place, dim)
        return _cap(r, place, dim) + np.where(other_cap > 0, size * other_cap, 0.0)


def _beyond_ball(r: Floats, other: float, shift: float, dim: int) -> Floats:
    """The share of balls of radius ``r`` outside the ball of radius ``other``, ``shift`` away."""
    with np.errstate(divide="ignore", invalid="ignore"):
        place = (shift**2 + (r - other) * (r + other)) / (2 * shift)
        out = _cap(r, -place, dim)
        size = np.exp(np.minimum(dim * (np.log(other) - np.log(r)), 700.0))
        out = out - size * _cap(np.full_like(r, other), shift - place, dim)
    return np.where(r + shift <= other, 0.0, np.clip(np.nan_to_num(out, nan=1.0), 0.0, 1.0))


def _cap(r: Floats, distance: Floats, dim: int) -> Floats:
    """The share of a ball beyond a plane at the signed distance from its centre."""
    u = np.clip(distance / r, -1.0, 1.0)
    half = (dim + 1) / 2
    # Near the centre and near the rim the other form would round what matters.
    near = np.sign(u) * special.betainc(0.5, half, u * u) / 2
    rim = special.betainc(half, 0.5, (1 - u) * (1 + u)) / 2
    return np.where(u * u < 0.5, 0.5 - near, np.where(u > 0, rim, 1 - rim))
