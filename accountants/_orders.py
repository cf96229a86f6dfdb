"""From Rényi divergences to epsilon and delta, at the best real order (mathematics.md §5).

Symbols: ``alpha`` order > 1, ``R`` Rényi divergence. Conversion: Canonne, Kamath & Steinke (2020),
Proposition 12. Every order proves a bound of its own, so how the best one is sought affects how
tight the result is, never whether it holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from dpmech.noise import Floats

# First orders tried, as ln(alpha - 1): while the best is at an end there are more beyond it, up to
# where doubles hold alpha - 1; then the search closes in on the best real order.
_FIRST = np.linspace(math.log(1e-3), math.log(63), 14)
_MORE, _ENDS = 4, math.log(1e14)
_ROUNDS, _PER_ROUND = 3, 9

Curve = Callable[[Floats], Floats]


def least_epsilon(renyi: Curve, delta: float, rough: Curve | None = None) -> float:
    """The least epsilon at ``delta`` that bounds on the divergence prove; inf if all diverge.

    ``rough``: looser bounds that are faster to compute, to find the order with.
    """
    log_delta = math.log(delta)

    def epsilon(orders: Floats, divergence: Floats) -> Floats:
        return divergence + np.log1p(-1 / orders) - (log_delta + np.log(orders)) / (orders - 1)

    return max(0.0, _least(epsilon, renyi, rough))


def least_delta(renyi: Curve, epsilon: float, rough: Curve | None = None) -> float:
    """The least delta at ``epsilon`` that bounds on the divergence prove; ``rough`` likewise."""

    def log_delta(orders: Floats, divergence: Floats) -> Floats:
        spent = divergence - epsilon + np.log1p(-1 / orders)
        return (orders - 1) * spent - np.log(orders)

    return math.exp(min(0.0, _least(log_delta, renyi, rough)))


def _least(cost: Callable[[Floats, Floats], Floats], renyi: Curve, rough: Curve | None) -> float:
    """The least cost found over real orders: sought by the rough curve, told by the other."""

    def objective(orders: Floats) -> Floats:
        return cost(orders, (rough or renyi)(orders))

    t, values = _widened(objective)
    if not np.any(np.isfinite(values)):
        return math.inf
    for _ in range(_ROUNDS):
        centre, step = float(t[np.nanargmin(values)]), float(t[1] - t[0])
        t = np.linspace(centre - step, centre + step, _PER_ROUND)
        values = objective(1 + np.exp(t))
    orders = 1 + np.exp(np.append(_vertex(t, values), t[np.nanargmin(values)]))
    return float(np.nanmin(cost(orders, renyi(orders))))


def _widened(objective: Curve) -> tuple[Floats, Floats]:
    """(ln(alpha - 1), value) on an even grid with the least value inside, if there is one."""
    t, values = _FIRST, objective(1 + np.exp(_FIRST))
    step, more = float(t[1] - t[0]), np.arange(1.0, _MORE + 1)
    while np.any(np.isfinite(values)):
        at = int(np.nanargmin(values))
        if at == len(t) - 1 and t[-1] < _ENDS:
            new = t[-1] + step * more
            t, values = np.append(t, new), np.append(values, objective(1 + np.exp(new)))
        elif at == 0 and t[0] > -_ENDS:
            new = t[0] - step * more[::-1]
            t, values = np.append(new, t), np.append(objective(1 + np.exp(new)), values)
        else:
            break
    return t, values


def _vertex(t: Floats, values: Floats) -> Floats:
    """Minimum of the parabola through the least value and its neighbours; shape (1,)."""
    at = int(np.clip(np.nanargmin(values), 1, len(values) - 2))
    left, middle, right = values[at - 1 : at + 2]
    bend = left - 2 * middle + right
    shift = 0.5 * (left - right) / bend if np.isfinite(bend) and bend > 0 else 0.0
    return t[at : at + 1] + (t[1] - t[0]) * float(np.clip(shift, -1, 1))
