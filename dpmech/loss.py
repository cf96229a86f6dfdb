"""Dominating pairs: what an accountant needs to know of a mechanism (mathematics.md §3, §4).

Symbols: ``P``, ``Q`` the pair, ``l`` privacy loss ln dP/dQ, ``q`` sampling rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol, Self

import numpy as np

from dpmech.cells import EPS, CellMasses, Cells, cell_without_q, interval_mass
from dpmech.discrete import DiscreteNoise
from dpmech.errors import NoDominatingPair
from dpmech.families import Staircase
from dpmech.guarantee import Guarantee
from dpmech.lattice_mixtures import MultiGaussian, Tulap
from dpmech.noise import Floats, Noise
from dpmech.peaked import PeakedPair
from dpmech.rippled import RippledPair
from dpmech.spherical import Spherical
from dpmech.tabulated import Tabulated

__all__ = [
    "AtomicPair",
    "CellMasses",
    "Cells",
    "Direction",
    "DominatingPair",
    "PeakedPair",
    "SubsampledPair",
    "pair_of",
]

Direction = Literal["remove", "add"]


class DominatingPair(Protocol):
    """A pair (P, Q) whose hockey-stick curve is never below the mechanism's."""

    @property
    def infinite_mass(self) -> float:
        """P-mass on which Q has none."""
        ...

    def edges(self, tail: float) -> Floats:
        """Edges of first intervals of the outcomes, beyond which P and Q have ``tail`` at most."""
        ...

    def cells(self, edges: Floats) -> Cells:
        """The cells of the loss between ``edges``: those of :meth:`edges`, or some cut finer."""
        ...

    def loss_range(self, tail: float) -> tuple[float, float]:
        """(low, high) with P(loss < low) <= tail and P(high < loss < inf) <= tail."""
        ...

    def masses(self, levels: Floats) -> CellMasses:
        """Cell masses between increasing loss ``levels``, shape (n,) to n + 1 cells."""
        ...

    def atoms(self) -> tuple[float, ...]:
        """Losses that carry positive mass, where they are known (a hint for placing grids)."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class AtomicPair:
    """The pair of a symmetric law whose loss takes few values: ``p`` on increasing ``losses``.

    By symmetry Q has as much mass where P has none as P has where Q has none: ``infinite_mass``.
    """

    losses: Floats
    p: Floats
    infinite_mass: float = 0.0
    loss_error: float = 1e-12
    error: float | Floats = 8 * EPS

    @classmethod
    def from_cells(
        cls, losses: Floats, p: Floats, infinite_mass: float, error: Floats | None = None
    ) -> Self:
        """Collect cells with equal losses (to rounding) into atoms, each at its highest loss.

        ``error`` bounds the relative errors of ``p``.
        """
        if not len(losses):  # laws that do not overlap
            return cls(losses=np.zeros(1), p=np.zeros(1), infinite_mass=infinite_mass)
        order = np.argsort(losses, kind="stable")
        losses, p = losses[order], p[order]
        apart = np.diff(losses) > 1e-12 * (1 + np.abs(losses[1:]))
        starts = np.concatenate([[0], np.flatnonzero(apart) + 1])
        collected = np.add.reduceat(p, starts)
        wrong = 0.0 if error is None else np.add.reduceat(p * error[order], starts) / collected
        return cls(
            losses=np.maximum.reduceat(losses, starts),
            p=collected,
            infinite_mass=infinite_mass,
            error=wrong + 64 * EPS,
        )

    def edges(self, tail: float) -> Floats:
        del tail
        return np.zeros(1)  # atoms cannot be cut

    def cells(self, edges: Floats) -> Cells:
        del edges
        with np.errstate(divide="ignore"):
            log_p = np.log(self.p)
        n, zero = len(log_p), np.zeros(len(log_p))
        finite = Cells(
            log_p=log_p,
            log_q=log_p - self.losses,
            loss=self.losses,
            low=self.losses,
            high=self.losses,
            error=zero + self.error,
            loss_error=zero + self.loss_error,
            low_error=zero + self.loss_error,
            high_error=zero + self.loss_error,
            interval=np.full(n, -1),
        )
        if self.infinite_mass == 0:
            return finite
        missing = cell_without_q(self.infinite_mass)
        return finite.followed_by(missing).followed_by(missing.reversed())

    def loss_range(self, tail: float) -> tuple[float, float]:
        del tail  # all of it is cheap to keep
        return float(self.losses[0]), float(self.losses[-1])

    def atoms(self) -> tuple[float, ...]:
        return tuple(float(x) for x in self.losses)

    def masses(self, levels: Floats) -> CellMasses:
        cell = np.searchsorted(levels, self.losses, side="left")
        n = len(levels) + 1
        log_p, log_q = np.full(n, -np.inf), np.full(n, -np.inf)
        with np.errstate(divide="ignore"):
            np.logaddexp.at(log_p, cell, np.log(self.p))
            np.logaddexp.at(log_q, cell, np.log(self.p) - self.losses)
            # Not 1 minus the rest: its rounding would pass for mass at infinity of the reverse
            # pair.
            log_q[0] = np.logaddexp(log_q[0], np.log(self.infinite_mass))
        reach = 8 * EPS * (1 + float(np.max(np.abs(self.losses))))
        error = np.full(n, float(np.max(self.error)) + reach)
        return CellMasses(log_p=log_p, log_q=log_q, error=error, loss_error=self.loss_error)


def staircase_atoms(law: Staircase | Tulap, shift: float) -> tuple[Floats, Floats, float, Floats]:
    """The cells on which both densities are constant: losses, P-masses, infinite mass, errors.

    The errors are relative, of the P-masses.
    """
    cuts, rounding = _staircase_cuts(law, shift)
    # A shift too small to be told from rounding: a larger one dominates it.
    if shift < 1e3 * rounding:
        return staircase_atoms(law, 1e3 * rounding)
    middle = (cuts[1:] + cuts[:-1]) / 2
    with np.errstate(invalid="ignore"):  # outside both supports
        losses = law.logpdf(middle - shift) - law.logpdf(middle)
    log_p, error = interval_mass(law, cuts[:-1] - shift, cuts[1:] - shift)
    error = np.minimum(1.0, error + 2 * rounding / np.diff(cuts))
    # Beyond Q's support, or what the cuts leave out.
    ends = (law.support, -np.inf) if np.isfinite(law.support) else (cuts[-1], cuts[0])
    outside = float(law.sf(ends[0] - shift) + law.sf(shift - ends[1]))
    both = np.isfinite(losses)
    return losses[both], np.exp(log_p[both]), outside, error[both]


def _staircase_cuts(law: Staircase | Tulap, shift: float) -> tuple[Floats, float]:
    """Where the density of either law jumps, and how far such places are off by rounding."""
    steps = int(np.ceil(700 / law.epsilon)) + 1
    if steps > 2_000_000:
        raise ValueError(
            f"Expected epsilon={law.epsilon} of a {law.name} law to be at least 0.001."
        )
    gamma = law.gamma if isinstance(law, Staircase) else 0.5
    edges = law.width * (np.arange(steps, dtype=np.float64) + gamma)
    if np.isfinite(law.support):
        edges = np.append(edges[edges < law.support], law.support)
    edges = np.concatenate([-edges[::-1], edges])
    cuts = np.unique(np.concatenate([edges, edges + shift]))
    # Cuts that agree to rounding enclose no mass; the cells between them would have a random loss.
    rounding = 1e-12 * law.width * (1 + steps * 1e-3)
    return cuts[np.concatenate([[True], np.diff(cuts) > rounding])], rounding


def pair_of(noise: Noise, shift: float) -> DominatingPair:
    """P = the law centred at ``shift`` against Q = the law centred at 0.

    The pair dominates every smaller shift, because the laws here are unimodal (mathematics.md §3).
    Raises NoDominatingPair for a multi-Gaussian law that is not proved to be.
    """
    if isinstance(noise, Guarantee):
        losses, p, infinite_mass = noise.atoms()
        return AtomicPair(losses=losses, p=p, infinite_mass=infinite_mass)
    if isinstance(noise, DiscreteNoise):
        losses, p, lost, error = noise.atoms(shift)
        return AtomicPair(losses=losses, p=p, infinite_mass=lost, loss_error=error)
    if isinstance(noise, Spherical | Tabulated):
        return _listed_pair(noise, shift)
    # Laws that do not overlap have no atoms of finite loss.
    if isinstance(noise, Staircase | Tulap) and noise.support > shift / 2:
        return AtomicPair.from_cells(*staircase_atoms(noise, shift))
    if isinstance(noise, MultiGaussian):
        return _multi_gaussian_pair(noise, shift)
    return PeakedPair(noise=noise, shift=shift)


def _multi_gaussian_pair(noise: MultiGaussian, shift: float) -> PeakedPair | RippledPair:
    if not noise.is_unimodal:
        raise NoDominatingPair(
            f"No pair is proved for {noise}: its density is not proved to fall away from 0, so a "
            f"shift below {shift:g} may cost more.",
            "Use a larger sigma (half the width is enough for epsilon of 0.1 or above), tulap or "
            "staircase noise.",
        )
    periods = shift / noise.width
    aligned = periods == round(periods)
    return (PeakedPair if aligned else RippledPair)(noise=noise, shift=shift)


@lru_cache(maxsize=32)  # a second of work for thousands of cells
def _listed_pair(noise: Spherical | Tabulated, shift: float) -> AtomicPair:
    return AtomicPair.from_cells(*noise.atoms(shift))


@dataclass(frozen=True, kw_only=True)
class SubsampledPair:
    """Poisson subsampling at ``rate`` (Zhu, Dong, Wang 2022): ((1-q)Q + qP, Q) or its reverse."""

    base: DominatingPair
    rate: float
    direction: Direction

    @property
    def infinite_mass(self) -> float:
        return self.rate * self.base.infinite_mass if self.direction == "remove" else 0.0

    def _up(self, base_loss: float) -> float:
        """Loss of the mixture against Q where the base loss is ``base_loss``."""
        if base_loss > 700.0:  # expm1 would overflow; the mixture is then q e^l to all digits
            return base_loss + float(np.log(self.rate))
        return float(np.log1p(self.rate * np.expm1(base_loss)))

    def _down(self, levels: Floats) -> Floats:
        """Base losses at which the mixture's loss against Q reaches the levels (-inf: always)."""
        with np.errstate(divide="ignore", over="ignore"):
            ratio = np.expm1(levels) / self.rate
            direct = np.log1p(np.maximum(ratio, -1.0))
            if self.rate > 0.5:  # towards rate 1 the ratio cancels below 0, and this form does not
                least = np.log1p(-self.rate)
                odds = np.maximum(np.expm1(np.minimum(levels - least, 700.0)), 0.0)
                direct = np.where(levels < 0, np.log(odds) + least - np.log(self.rate), direct)
        return np.where(levels > 700.0, levels - np.log(self.rate), direct)

    def edges(self, tail: float) -> Floats:
        return self.base.edges(tail)

    def cells(self, edges: Floats) -> Cells:
        mixed = self.base.cells(edges).mixed(self.rate)
        return mixed if self.direction == "remove" else mixed.reversed()

    def loss_range(self, tail: float) -> tuple[float, float]:
        low, high = self.base.loss_range(tail)
        # Q's tails are P's turned over, so one symmetric range serves both directions.
        low, high = min(low, -high), max(high, -low)
        if (
            self.base.infinite_mass > tail
        ):  # Q has mass where P has none: the mixture is (1-q)Q there
            low = -np.inf
        low, high = self._up(low), self._up(high)
        return (low, high) if self.direction == "remove" else (-high, -low)

    def atoms(self) -> tuple[float, ...]:
        sign = 1.0 if self.direction == "remove" else -1.0
        return tuple(sorted(sign * self._up(a) for a in self.base.atoms()))

    def masses(self, levels: Floats) -> CellMasses:
        remove = self.direction == "remove"
        wanted = levels if remove else -levels[::-1]
        inside = wanted > np.log1p(-self.rate)
        base = self.base.masses(self._down(wanted[inside]))
        mixed = np.logaddexp(np.log1p(-self.rate) + base.log_q, np.log(self.rate) + base.log_p)
        missing = int(np.sum(~inside))  # cells below the least loss the mixture has
        empty = np.full(missing, -np.inf)
        p, q = np.concatenate([empty, mixed]), np.concatenate([empty, base.log_q])
        error = np.concatenate([np.zeros(missing), base.error])
        if not remove:
            p, q, error = q[::-1], p[::-1].copy(), error[::-1]
            with np.errstate(divide="ignore"):  # where only the record's own law has mass
                q[0] = np.logaddexp(q[0], np.log(self.rate * self.base.infinite_mass))
        extent = float(np.max(np.abs(levels), initial=0.0))
        slack = base.loss_error + 4 * EPS * extent
        return CellMasses(log_p=p, log_q=q, error=error, loss_error=slack)
