"""Composition of cell masses by one tilted FFT: epsilon, and its derivative. Estimates, no proofs.

Symbols: ``p``, ``v`` masses of the cells under the law at 0 and at s, ``q`` rate, ``T`` steps,
``u = (1 - q) v + q p``, ``l = ln(u/v)``, ``S`` the loss of T - 1 releases, ``F(x) = P(S > x)``,
``G(x) = E[e^-S; S > x]``. With the law of S held fixed,

    Phi(u, v) = sum_i E[(u_i - e^(eps - S) v_i)_+]

is convex and homogeneous of degree 1, equals delta_T at the law that S stems from, and delta_T has
T times its gradient, which is (F(eps - l_i), -e^eps G(eps - l_i)) in cell i (mathematics.md §7.6).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dpmech.noise import Floats
from optimizer_search.problem import SearchProblem

_LATTICE = 4096
# Tilted standard deviations that the lattice of S reaches to either side.
_REACH = 12.0
_NARROWEST = 1e-9
_ROUNDING = 1e-16
# Of the range of ln tilt, which need not be exact.
_HALVINGS = 16
_TINY = 1e-300
# Losses are cut off here, where e^l would overflow.
_MOST = 600.0

Tails = Callable[[Floats], tuple[Floats, Floats]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Composed:
    """The composition of a pair of cell masses: epsilon, and the law of S on a lattice.

    ``tails(x)`` gives (F, G) at x.
    """

    epsilon: float
    tails: Tails

    def gradient(self, loss: Floats) -> tuple[Floats, Floats]:
        """(dPhi/du, dPhi/dv) in cells of these losses."""
        f, g = self.tails(self.epsilon - loss)
        return f, -math.exp(self.epsilon) * g


def losses(u: Floats, v: Floats) -> Floats:
    """ln(u/v), cut off where it is extreme or where there is no mass."""
    return np.clip(np.log(np.maximum(u, _TINY) / np.maximum(v, _TINY)), -_MOST, _MOST)


def composed(p: Floats, v: Floats, problem: SearchProblem) -> Composed:
    """Compose the problem's releases of a law with these cell masses."""
    rate, steps, delta = problem.sampling.rate, problem.steps, problem.delta
    u = (1 - rate) * v + rate * p
    kept = u > _TINY
    u, v = u[kept], v[kept]
    loss = losses(u, v)
    if steps == 1:
        return Composed(epsilon=_one_epsilon(u, v, loss, delta), tails=_at_zero)
    tilt, epsilon = _saddle(u, loss, steps, delta)
    tails = _lattice(u, loss, steps - 1, tilt)
    return Composed(epsilon=_root(u, v, loss, tails, (delta, epsilon)), tails=tails)


def _at_zero(x: Floats) -> tuple[Floats, Floats]:
    below = np.where(x < 0, 1.0, 0.0)
    return below, below


def _one_epsilon(u: Floats, v: Floats, loss: Floats, delta: float) -> float:
    """The epsilon at which sum (u - e^eps v)_+ is delta: piecewise linear in e^eps."""
    order = np.argsort(-loss)
    loss, u, v = loss[order], np.cumsum(u[order]), np.cumsum(v[order])
    # At each loss, delta with all cells above it: it rises as the loss falls.
    above = u - np.exp(loss) * v
    last = int(np.searchsorted(above, delta)) - 1
    if last < 0:
        return float(loss[0])
    return max(0.0, math.log(max((u[last] - delta) / v[last], 1.0)))


def _saddle(u: Floats, loss: Floats, steps: int, delta: float) -> tuple[float, float]:
    """(tilt, epsilon) where the estimate of ln delta is right."""
    log_u, log_delta = np.log(u), math.log(delta)
    low, high = math.log(1e-3), math.log(1e5)
    epsilon = 0.0
    for _ in range(_HALVINGS):
        t = math.exp((low + high) / 2)
        k, mean, var = _cumulants(log_u, loss, t)
        t_epsilon = steps * mean - 1 / t - 1 / (1 + t)
        bend = steps * var + 1 / t**2 + 1 / (1 + t) ** 2
        log_value = steps * k - t * t_epsilon - math.log(t * (1 + t))
        if log_value - math.log(2 * math.pi * bend) / 2 > log_delta:
            low = math.log(t)
        else:
            high = math.log(t)
        epsilon = t_epsilon
    return math.exp((low + high) / 2), epsilon


def _cumulants(log_u: Floats, loss: Floats, t: float) -> tuple[float, float, float]:
    """ln E e^(t l), and mean and variance of l under that tilt."""
    exponent = log_u + t * loss
    top = float(np.max(exponent))
    weight = np.exp(exponent - top)
    total = float(np.sum(weight))
    mean = float(weight @ loss) / total
    return top + math.log(total), mean, float(weight @ (loss - mean) ** 2) / total


def _lattice(u: Floats, loss: Floats, count: int, tilt: float) -> Tails:
    """Tails of the sum of ``count`` losses, from an FFT of the tilted atoms."""
    k, mean, var = _cumulants(np.log(u), loss, tilt)
    near = np.exp(np.log(u) + tilt * loss - k) > 1e-18
    reach = float(np.max(np.abs(loss[near] - mean)))
    width = 2 * (_REACH * math.sqrt(count * var) + min(count, 2) * reach)
    # The tilt may leave a single atom.
    step = max(width / _LATTICE, _NARROWEST)
    atoms = _spread(np.exp(np.log(u) + tilt * loss - k), (loss - mean) / step)
    tilted = np.fft.irfft(np.fft.rfft(atoms) ** count, _LATTICE)
    at = np.arange(-_LATTICE / 2, _LATTICE / 2) * step + count * mean
    log_back = count * k - tilt * at
    # What is below the FFT's rounding would be blown up by the tilt's inverse.
    tilted = np.where(tilted > _ROUNDING * np.max(tilted), tilted, 0.0)
    tilted = np.fft.fftshift(tilted)
    mass, shrunk = (tilted * np.exp(np.minimum(log, _MOST)) for log in (log_back, log_back - at))
    return _tails(at, mass, shrunk)


def _spread(mass: Floats, place: Floats) -> Floats:
    """Masses shared among the three lattice points around their place: mean and variance are kept.

    Some of the shares are negative.
    """
    nearest = np.rint(place)
    x, index = place - nearest, nearest.astype(np.int64)
    atoms = np.zeros(_LATTICE)
    for move, share in ((-1, x * (x - 1) / 2), (0, 1 - x * x), (1, x * (x + 1) / 2)):
        np.add.at(atoms, (index + move) % _LATTICE, mass * share)
    return atoms


def _tails(at: Floats, mass: Floats, shrunk: Floats) -> Tails:
    """Interpolated sums of both masses above x."""
    step = at[1] - at[0]
    above, shrunk_above = (np.append(np.cumsum(m[::-1])[::-1], 0.0) for m in (mass, shrunk))
    edges = np.append(at - step / 2, at[-1] + step / 2)

    def tails(x: Floats) -> tuple[Floats, Floats]:
        return np.interp(x, edges, above), np.interp(x, edges, shrunk_above)

    return tails


def _root(
    u: Floats,
    v: Floats,
    loss: Floats,
    tails: Tails,
    near: tuple[float, float],
) -> float:
    """The epsilon of a delta, by Newton's method in ln delta inside a bracket."""
    delta, epsilon = near
    low, high = 0.0, math.inf
    for _ in range(60):
        f, g = tails(epsilon - loss)
        slope = math.exp(epsilon) * float(v @ g)
        value = float(u @ f) - slope
        low, high = (epsilon, high) if value > delta else (low, epsilon)
        if value > 0 and slope > 0:
            ahead = epsilon + math.log(value / delta) * value / slope
        else:
            ahead = math.nan
        if not low < ahead < high:
            ahead = (low + high) / 2 if math.isfinite(high) else 2 * epsilon + 1
        if abs(ahead - epsilon) < 1e-11 * (1 + epsilon):
            return ahead
        epsilon = ahead
    return epsilon
