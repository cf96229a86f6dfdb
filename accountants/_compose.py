"""Composition of lattices by a tilted FFT, with bounds for everything the FFT leaves out.

Symbols: ``T_j`` counts, ``K(t) = sum_j T_j ln sum_i p_ji e^{t l_ji}`` the log-moment function of
the composed loss S, ``t`` the tilt, ``g(S) = e^{K - t S}(1 - e^{eps - S})_+`` what one unit of
tilted mass at S adds to delta. Method: mathematics.md §4.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import fft, optimize

from accountants._discretise import LARGEST_GRID, Lattice
from dpmech.noise import Floats

_EPS = float(np.finfo(np.float64).eps)
# Tilted mass left outside the window: e^-45 of the total, far below what a double resolves.
_LOG_OUTSIDE = -45.0
# Factor on textbook FFT error bounds (u log2 N per transform), for the constants they carry.
_FFT_CONSTANT = 8.0


def _weighed(part: Lattice) -> Floats:
    """The masses; a part without finite mass (all of it at infinity) is an atom of no weight."""
    return part.p if np.any(part.p > 0) else np.append(1e-300, np.zeros(len(part.p) - 1))


@dataclass(frozen=True, kw_only=True, eq=False)
class Composition:
    """``parts``: lattices with a common step, each with its count."""

    parts: tuple[tuple[Lattice, int], ...]

    @cached_property
    def infinite(self) -> float:
        """P-mass at infinite loss after composition."""
        with np.errstate(divide="ignore"):
            kept = sum(count * np.log1p(-part.infinite) for part, count in self.parts)
        return float(-np.expm1(kept))

    @cached_property
    def slack(self) -> float:
        """How much the losses of the atoms may be off in total."""
        return sum(count * part.slack for part, count in self.parts)

    @cached_property
    def _logs(self) -> list[tuple[Floats, Floats, int]]:
        logs: list[tuple[Floats, Floats, int]] = []
        for part, count in self.parts:
            p = _weighed(part)
            full = p > 0
            logs.append((np.log(p[full]), part.losses[full], count))
        return logs

    @property
    def highest(self) -> float:
        """The largest finite loss of the composition."""
        return sum(count * float(losses[-1]) for _, losses, count in self._logs)

    @property
    def lowest(self) -> float:
        """The smallest loss of the composition."""
        return sum(count * float(losses[0]) for _, losses, count in self._logs)

    def cumulants(self, t: float) -> tuple[float, float, float]:
        """K(t), K'(t), K''(t)."""
        k = k1 = k2 = 0.0
        for log_p, losses, count in self._logs:
            exponent = log_p + t * losses
            top = float(np.max(exponent))
            weight = np.exp(exponent - top)
            total = float(np.sum(weight))
            mean = float(weight @ losses) / total
            k += count * (top + math.log(total))
            k1 += count * mean
            k2 += count * float(weight @ (losses - mean) ** 2) / total
        return k, k1, k2

    @property
    def step(self) -> float:
        """The common grid step."""
        return self.parts[0][0].step

    def _tilt_where(self, limit: float, function: Callable[[float, float, float], float]) -> float:
        """The t in [0, limit] at which ``function(t, K, K')``, falling in t, crosses zero."""

        def at(t: float) -> float:
            k, k1, _ = self.cumulants(t)
            return function(t, k, k1)

        if at(0.0) <= 0:
            return 0.0
        high = min(1.0, limit)
        while at(high) > 0:
            if high >= limit:
                return limit
            high = min(limit, high * 4)
        return float(optimize.brentq(at, 0.0, high, rtol=1e-3))

    def tilt_for_delta(self, delta: float) -> float:
        """The saddle point for the epsilon that belongs to ``delta``.

        Beyond a tilt of 1/h, where there is no saddle point, the highest atoms are all one sees.
        """
        goal = math.log(delta)
        return self._tilt_where(1 / self.step, lambda t, k, k1: k - t * k1 - goal)

    def tilt_for_epsilon(self, epsilon: float) -> float:
        """The saddle point for ``epsilon``; at 80/h all tilted mass sits on the highest atom."""
        return self._tilt_where(80 / self.step, lambda t, k, k1: epsilon - k1)

    def log_tail(self, level: float) -> float:
        """Chernoff: ln P(S > level) <= K(t) - t level for any t >= 0; here near the best t."""
        if level >= self.highest:
            return -math.inf
        t = self.tilt_for_epsilon(level)
        return min(0.0, self.cumulants(t)[0] - t * level)


@dataclass(frozen=True, kw_only=True, eq=False)
class Window:
    """The tilted law of the composed loss on a window: ``mass[i]`` at loss ``low + i * step``."""

    composition: Composition
    tilt: float
    log_moment: float
    low: float
    step: float
    mass: Floats
    error: float
    log_outside: float

    @property
    def losses(self) -> Floats:
        return self.low + self.step * np.arange(len(self.mass), dtype=np.float64)

    def _kernel(self, epsilon: float) -> tuple[Floats, Floats]:
        """g at the losses above epsilon, and the mass there."""
        first = max(0, math.floor((epsilon - self.low) / self.step))
        losses = self.losses[first:]
        g = -np.expm1(np.minimum(epsilon - losses, 0.0))
        g = g * np.exp(np.minimum(self.log_moment - self.tilt * losses, 700.0))
        return g, self.mass[first:]

    @cached_property
    def _log_above(self) -> float:
        """ln of the P-mass above the window (and so of all it can add to any delta)."""
        return self.composition.log_tail(self.low + self.step * (len(self.mass) - 1))

    @cached_property
    def _relative_error(self) -> float:
        """Rounding of the tilted weights, raised to the power of the composition."""
        return math.expm1(
            min(
                1.0,
                sum(
                    count * 4 * _EPS * (4 + self.tilt * float(np.max(np.abs(part.losses))))
                    for part, count in self.composition.parts
                ),
            )
        )

    def upper_delta(self, epsilon: float) -> float:
        """delta of the finite losses at most, everything left out added."""
        if epsilon < self.low and self.composition.lowest < self.low:
            return 1.0  # losses between epsilon and the window are not seen here
        g, mass = self._kernel(epsilon)
        inside = float(np.sum(g * (np.maximum(mass, 0.0) + self.error)))
        return min(1.0, inside * (1 + self._relative_error) + math.exp(self._log_above))

    def lower_delta(self, epsilon: float) -> float:
        """delta of the finite losses at least, everything that may be too much taken away."""
        epsilon = max(epsilon, self.low)  # delta falls with epsilon, and is best resolved in here
        g, mass = self._kernel(epsilon)
        inside = float(np.sum(g * np.maximum(mass - self.error, 0.0)))
        t = self.tilt
        # The largest g: at S = epsilon + ln((1+t)/t); for t = 0 it is below 1.
        log_peak = self.log_moment - t * epsilon + (t * math.log(t / (1 + t)) if t else 0.0)
        wrapped = math.exp(min(700.0, log_peak - math.log1p(t) + self.log_outside))
        return max(0.0, inside * (1 - self._relative_error) - wrapped)


def tilted_window(composition: Composition, tilt: float) -> Window:
    """The law of the composed loss under the tilt, by one FFT per part."""
    log_moment = composition.cumulants(tilt)[0]
    step = composition.step
    high, high_rest = _edge(composition, tilt, +1)
    low, low_rest = _edge(composition, tilt, -1)
    size = fft.next_fast_len(int(min((high - low) / step, 1e12)) + 4, real=True)
    if size > LARGEST_GRID:
        raise MemoryError(f"a window of {size} cells, above {LARGEST_GRID}")
    power, error, centre = _transformed(composition, tilt, size)
    # Index 0 of the circular result stands for loss `centre`; unroll so that it starts at `first`.
    first = math.floor((low - centre) / step) - 1
    mass = np.roll(fft.irfft(power, size), -(first % size))
    return Window(
        composition=composition,
        tilt=tilt,
        log_moment=log_moment,
        low=centre + first * step,
        step=step,
        mass=mass,
        error=error,
        log_outside=float(np.logaddexp(high_rest, low_rest)),
    )


def _edge(composition: Composition, tilt: float, side: int) -> tuple[float, float]:
    """A loss beyond which at most e^-45 of the tilted mass lies on this side, and its ln."""
    log_moment, _, variance = composition.cumulants(tilt)
    extreme = composition.highest if side > 0 else composition.lowest

    def log_outside(m: float) -> tuple[float, float]:
        """Chernoff's bound from the saddle at tilt + side * m, and its place."""
        k, place, _ = composition.cumulants(tilt + side * m)
        return k - log_moment - side * m * place, place

    limit = 80.0 / composition.step
    if log_outside(limit)[0] > _LOG_OUTSIDE:
        return extreme, -math.inf
    # rest falls from 0 with m; a guess by the variance, then brackets by doubling and halving.
    high = min(limit, math.sqrt(-2 * _LOG_OUTSIDE / max(variance, 1e-300)))
    while log_outside(high)[0] > _LOG_OUTSIDE:
        high *= 2
    low = high / 2
    while low > 1e-12 and log_outside(low)[0] <= 1.2 * _LOG_OUTSIDE:
        low, high = low / 2, low
    while log_outside(high)[0] < 1.2 * _LOG_OUTSIDE:
        middle = (low + high) / 2
        if log_outside(middle)[0] > _LOG_OUTSIDE:
            low = middle
        else:
            high = middle
        if high - low <= 1e-6 * high:
            break
    rest, place = log_outside(high)
    return place, rest


def _transformed(
    composition: Composition, tilt: float, size: int
) -> tuple[np.ndarray, float, float]:
    """FFT of the composed tilted law on ``size`` circular cells, its error a cell, its origin."""
    log_power = np.zeros(size // 2 + 1, dtype=np.complex128)
    sensitivity = np.zeros(size // 2 + 1)
    origin = 0.0
    for part, count in composition.parts:
        with np.errstate(divide="ignore"):
            exponent = np.log(_weighed(part)) + tilt * part.losses
        weight = np.exp(exponent - np.max(exponent))
        weight /= np.sum(weight)
        # Centring each part at its mean keeps the phases small, and so exact, under large powers.
        middle = round(float(weight @ np.arange(len(weight))))
        folded = np.bincount(
            np.mod(np.arange(len(weight)) - middle, size), weights=weight, minlength=size
        )
        transform = fft.rfft(folded)
        with np.errstate(divide="ignore"):
            log_power += count * np.log(transform)
            sensitivity += count / np.maximum(np.abs(transform), 1e-300)
        origin += count * (part.offset + part.step * (part.start + middle))
    power = np.exp(log_power)
    size_of = np.abs(power)
    unit = _FFT_CONSTANT * _EPS * math.log2(size + 1)
    # |d prod phi_j^T_j| <= |prod| sum T_j |d phi_j / phi_j|, each |d phi_j| <= unit; plus the
    # inverse. (rfft keeps half of the frequencies: the other half doubles the mean.)
    with np.errstate(invalid="ignore", over="ignore"):
        spread = np.where(size_of > 0, size_of * (1 + sensitivity), 0.0)
    error = unit * 2 * float(np.sum(np.minimum(spread, 1e300))) / size
    return power, error, origin
