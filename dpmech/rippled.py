"""The pair of a multi-Gaussian law at any shift: a loss with ripples, bounded cell by cell.

Symbols: ``P`` the law centred at the shift s, ``Q`` the law centred at 0, ``l`` privacy loss
ln f(x-s)/f(x), ``m(x)`` mean of the lattice point given x, ``w`` width of the lattice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from dpmech.cells import EPS, Cells, WithoutGrid, interval_mass, or_zero
from dpmech.errors import NoDominatingPair
from dpmech.lattice_mixtures import MultiGaussian
from dpmech.noise import Floats
from dpmech.peaked import PeakedPair


@dataclass(frozen=True, kw_only=True)
class RippledPair(WithoutGrid):
    """The pair of a unimodal multi-Gaussian law at a shift that is no multiple of its width.

    **Guarantees.** On every cell the loss lies between the bounds given. Argument: f'/f is
    (m(x) - x)/sigma^2, so dl/dx = (s + m(x-s) - m(x))/sigma^2, and m rises: on [a, b] the slope
    is between (s + m(a-s) - m(b))/sigma^2 and (s + m(b-s) - m(a))/sigma^2. Lines of these slopes
    through both ends enclose the loss. So does s times the range of -f'/f on [a-s, b], which is the
    closer one where s is small. As f is unimodal, the loss is 0 or above on x >= s/2; and beyond j
    widths, j >= s/w whole, f(x-s) <= f(x-jw) <= e^(j epsilon) f(x).

    Only accountants that cut outcomes by place take it: what lies between two levels of the loss
    is not known.
    """

    noise: MultiGaussian
    shift: float

    @property
    def infinite_mass(self) -> float:
        return 0.0

    @property
    def _periods(self) -> int:
        return math.ceil(self.shift / self.noise.width)

    def edges(self, tail: float) -> Floats:
        plain = PeakedPair(noise=self.noise, shift=self.shift).edges(tail)
        far = self._periods * self.noise.width * (1 + 4 * EPS)
        return np.unique(np.append(plain, far))

    def cells(self, edges: Floats) -> Cells:
        half = self._half(edges)
        return half.followed_by(half.reversed())

    def _half(self, edges: Floats) -> Cells:
        p, p_error = interval_mass(self.noise, edges[:-1] - self.shift, edges[1:] - self.shift)
        q, q_error = interval_mass(self.noise, edges[:-1], edges[1:])
        low, high, wrong = self._bounds(edges)
        with np.errstate(invalid="ignore", over="ignore"):
            # x - s was rounded: an edge off by that moves this share of a cell's mass.
            placing = 4 * EPS * (edges[:-1] + self.shift) * (1 + high) / np.diff(edges)
        error = np.minimum(1.0, np.maximum(p_error, q_error) + or_zero(placing))
        return Cells.bounded(p, q, (low, high), error, (wrong, wrong))

    def _bounds(self, edges: Floats) -> tuple[Floats, Floats, Floats]:
        """Bounds of the loss on the cells, and on their rounding."""
        real = edges[:-1]
        log_p, log_q = self.noise.logpdf(real - self.shift), self.noise.logpdf(real)
        loss = np.where(real > self.shift / 2, log_p - log_q, 0.0)
        rounding = 16 * EPS * (1 + np.abs(log_p) + np.abs(log_q))
        low, high = self._enclosed(real, loss)
        beyond = real[-1] >= self._periods * self.noise.width
        top = self._periods * self.noise.epsilon if beyond else np.inf
        low, high = np.append(np.maximum(low, 0.0), 0.0), np.append(high, top)
        wrong = np.append(np.maximum(rounding[:-1], rounding[1:]), 16 * EPS * min(top, 1e300))
        return low, high, wrong

    def _enclosed(self, x: Floats, loss: Floats) -> tuple[Floats, Floats]:
        """The least and the most that the slopes allow between neighbouring places."""
        here, moved = self.noise.lattice_mean(x), self.noise.lattice_mean(x - self.shift)
        size = self.shift + np.abs(here[1:]) + np.abs(moved[1:])
        wrong, square = 64 * EPS * size, self.noise.sigma**2
        least = (self.shift + moved[:-1] - here[1:] - wrong) / square
        most = (self.shift + moved[1:] - here[:-1] + wrong) / square
        up, down = np.maximum(most, 0.0), np.maximum(-least, 0.0)
        way, rise = np.diff(x), np.diff(loss)
        # The lines of slope ``up`` from the left end and ``-down`` to the right one meet at the top
        with np.errstate(invalid="ignore", divide="ignore"):
            top = or_zero((down * way + rise) / (up + down))
            bottom = or_zero((up * way - rise) / (up + down))
        above = loss[:-1] + up * np.clip(top, 0.0, way)
        below = loss[:-1] - down * np.clip(bottom, 0.0, way)
        near = self.shift * (x[1:] - moved[:-1] + wrong) / square
        far = self.shift * (x[:-1] - self.shift - here[1:] - wrong) / square
        low, high = np.minimum(loss[:-1], loss[1:]), np.maximum(loss[:-1], loss[1:])
        low = np.minimum(low, np.maximum(below, far))
        return low, np.maximum(high, np.minimum(above, near))

    def _refused(self) -> NoReturn:
        raise NoDominatingPair(
            f"{self.noise} has no masses between given levels of the loss at a shift of "
            f"{self.shift:g}, which is no multiple of width={self.noise.width:g}.",
            "Use accountant='pld' or 'rdp', or a width that divides the sensitivity.",
        )
