"""All 40 824 points of the published LMO grid at once (arXiv 2405.18776; mathematics.md §2).

The transform of U factorises into its Gamma, Exponential and Uniform parts, so everything about a
point is a sum over three small tables: 63 Gamma, 36 Exponential and 18 Uniform parts.

Symbols: ``M(t) = E e^{tU}``, ``kappa1 = (ln M)'``, ``s`` sensitivity, ``q`` rate, ``T`` steps.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

from dpmech import LMO
from dpmech.mixture import log_uniform_transform, uniform_tilted_mean
from dpmech.noise import Floats

_A = tuple(round(0.1 * i, 1) for i in range(1, 10))
_GAMMA = tuple(product(_A, ((1, 2), (2, 2), (3, 2), (5, 1), (9, 0.5), (7.5, 1), (0.5, 1))))
_EXPONENTIAL = tuple(product(_A, (0.1, 0.5, 1.0, 5.0)))
_UNIFORM = tuple(product(_A, ((0.0, 1.0), (1.0, 2.0))))
GRID_SHAPE = (len(_GAMMA), len(_EXPONENTIAL), len(_UNIFORM))
GRID_SIZE = int(np.prod(GRID_SHAPE))

PAPER_ORDERS = np.arange(2, 129)


def grid_law(index: int) -> LMO:
    """The law at a flat index of the grid."""
    g, e, u = (int(i) for i in np.unravel_index(index, GRID_SHAPE))
    (a1, (theta, k)), (a3, rate), (a4, (low, high)) = _GAMMA[g], _EXPONENTIAL[e], _UNIFORM[u]
    return LMO(a1=a1, a3=a3, a4=a4, theta=theta, k=k, rate=rate, low=low, high=high)


def _columns(rows: tuple[tuple[float, tuple[float, float] | float], ...]) -> list[Floats]:
    flat = [(a, *(rest if isinstance(rest, tuple) else (rest,))) for a, rest in rows]
    return [np.array(column, dtype=np.float64)[:, None] for column in zip(*flat, strict=True)]


def _outer(gamma: Floats, exponential: Floats, uniform: Floats) -> Floats:
    """Sum of the three parts' tables, shapes (63|36|18, n) to (40824, n)."""
    total = gamma[:, None, None] + exponential[None, :, None] + uniform[None, None, :]
    return total.reshape(GRID_SIZE, -1)


def log_transform(t: Floats) -> Floats:
    """ln M(t) of every point at each t, shape (40824, n); inf past the poles of M."""
    a1, theta, k = _columns(_GAMMA)
    a3, rate = _columns(_EXPONENTIAL)
    a4, low, high = _columns(_UNIFORM)
    with np.errstate(divide="ignore", invalid="ignore"):
        gamma = np.where(a1 * theta * t < 1, -k * np.log1p(-a1 * theta * t), np.inf)
        exponential = np.where(a3 * t < rate, -np.log1p(-a3 * t / rate), np.inf)
    # ln of the uniform part, written from the end at which it is largest so that it never
    # overflows.
    z = np.abs(a4 * t * (high - low))
    uniform = a4 * t * np.where(t > 0, high, low) + log_uniform_transform(z)
    return _outer(gamma, exponential, uniform)


def _kappa1(y: Floats) -> Floats:
    """Mean of U under the tilt e^{-yU} at each y >= 0, shape (40824, n)."""
    a1, theta, k = _columns(_GAMMA)
    a3, rate = _columns(_EXPONENTIAL)
    a4, low, high = _columns(_UNIFORM)
    gamma = k * a1 * theta / (1 + a1 * theta * y)
    uniform = a4 * (low + (high - low) * uniform_tilted_mean(a4 * y * (high - low)))
    return _outer(gamma, a3 / (rate + a3 * y), uniform)


def log_density(x: Floats) -> Floats:
    """ln f at each x of every point, shape (40824, n)."""
    y = np.abs(x)
    return log_transform(-y) + np.log(_kappa1(y) / 2)


def usefulness(gamma: float) -> Floats:
    """P(|X| <= gamma) of every point."""
    return -np.expm1(log_transform(np.array([-gamma]))[:, 0])


@lru_cache(maxsize=1)
def moments() -> tuple[Floats, Floats]:
    """(E|X|, E X^2) of every point: integrals of M(-x) and 2 x M(-x), by the trapezoid in ln x."""
    u = np.linspace(np.log(1e-8), np.log(1e6), 1_200)
    x = np.exp(u)
    weight = x * (u[1] - u[0])
    first, second = np.zeros(GRID_SIZE), np.zeros(GRID_SIZE)
    for part in np.array_split(np.arange(len(x)), 8):
        transform = np.exp(log_transform(-x[part]))
        first += transform @ weight[part]
        second += transform @ (2 * x[part] * weight[part])
    return first, second


def pure_epsilon(s: float) -> Floats:
    """ln f(0)/f(s) of every point: the exact pure-DP epsilon of one scalar release."""
    at = log_density(np.array([0.0, s]))
    return at[:, 0] - at[:, 1]


def paper_epsilon(s: float, delta: float, steps: int) -> Floats:
    """Epsilon of every point by the paper's Renyi bound, orders 2 to 128, poles respected.

    R_a = ln[(a M((a-1)s) + (a-1) M(-as))/(2a-1)]/(a-1), infinite past the poles; added over the
    steps and converted by Canonne, Kamath & Steinke (2020).
    """
    order = PAPER_ORDERS.astype(np.float64)
    best = np.full(GRID_SIZE, np.inf)
    for a in np.array_split(order, 4):
        up, down = log_transform((a - 1) * s), log_transform(-a * s)
        inside = np.logaddexp(np.log(a) + up, np.log(a - 1) + down) - np.log(2 * a - 1)
        best = np.minimum(best, np.min(_converted(steps * inside / (a - 1), a, delta), axis=1))
    return best


def _converted(renyi: Floats, order: Floats, delta: float) -> Floats:
    """(epsilon, delta) from Renyi divergence (Canonne, Kamath & Steinke 2020, Proposition 12)."""
    return np.maximum(
        0.0, renyi + np.log1p(-1 / order) - (np.log(delta) + np.log(order)) / (order - 1)
    )


# Orders for ranking compositions: winners are proved by the PLD accountant, which needs none.
_RANKING_ORDERS = np.geomspace(1.3, 400.0, 22)


def composed_epsilon(s: float, delta: float, steps: int, rate: float) -> Floats:
    """Epsilon of every point for ``steps`` releases at ``rate``, from the exact law of the noise.

    The smaller of T times the (amplified) pure epsilon and the converted exact Renyi divergence.
    The divergence is a quadrature: good to about 1e-4, so it ranks; proofs come afterwards.
    """
    amplified = np.log1p(rate * np.expm1(pure_epsilon(s)))
    best = steps * amplified
    if steps == 1:
        return best
    for part in np.array_split(np.arange(GRID_SIZE), 8):
        renyi = _renyi(part, s, rate)
        converted = _converted(steps * renyi, _RANKING_ORDERS, delta)
        best[part] = np.minimum(best[part], np.min(converted, axis=1))
    return best


def _nodes(s: float) -> tuple[Floats, Floats]:
    """Nodes and weights for integrals over x > s/2: logistic up to s, exponential after."""
    u = np.linspace(0.0, 24.0, 33)
    near = s / (1 + np.exp(-u))
    near_weight = near * (1 - near / s) * (u[1] - u[0])
    near_weight[0] /= 2
    v = np.linspace(np.log(1e-7 * s), np.log(3e3 * max(1.0, s)), 90)
    far = np.exp(v)
    return np.append(near, s + far), np.append(near_weight, far * (v[1] - v[0]))


def _renyi(rows: NDArray[np.int64], s: float, q: float) -> Floats:
    """Exact Renyi divergences at the ranking orders, the larger direction, shape (rows, orders)."""
    x, weight = _nodes(s)
    log_q, log_p = _log_density_rows(rows, x), _log_density_rows(rows, x - s)
    loss = log_p - log_q
    result = np.zeros((len(rows), len(_RANKING_ORDERS)))
    mass, other = log_q + np.log(weight), log_p + np.log(weight)
    # On x < s/2 the two laws change places, so each node serves twice.
    up, down = np.log1p(q * np.expm1(loss)), np.log1p(q * np.expm1(-loss))
    for i, a in enumerate(_RANKING_ORDERS):
        remove = _integral(mass + a * up, other + a * down)
        add = _integral(mass + (1 - a) * up, other + (1 - a) * down)
        result[:, i] = np.log(np.maximum(np.maximum(remove, add), 1.0)) / (a - 1)
    return result


def _integral(first: Floats, second: Floats) -> Floats:
    """Sums of e^first + e^second per row; where they overflow the order is useless: inf."""
    with np.errstate(over="ignore"):
        return np.sum(np.exp(first) + np.exp(second), axis=1)


def _log_density_rows(rows: NDArray[np.int64], x: Floats) -> Floats:
    """ln f of some points only."""
    g, e, u = np.unravel_index(rows, GRID_SHAPE)
    a1, theta, k = (c[g] for c in _columns(_GAMMA))
    a3, rate = (c[e] for c in _columns(_EXPONENTIAL))
    a4, low, high = (c[u] for c in _columns(_UNIFORM))
    y = np.abs(x)
    width = high - low
    z = a4 * y * width
    log_m = -k * np.log1p(a1 * theta * y) - np.log1p(a3 * y / rate)
    log_m = log_m - a4 * y * low + log_uniform_transform(z)
    mean = k * a1 * theta / (1 + a1 * theta * y) + a3 / (rate + a3 * y)
    return log_m + np.log((mean + a4 * (low + width * uniform_tilted_mean(z))) / 2)
