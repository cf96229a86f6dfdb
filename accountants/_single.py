"""One release needs no composition: its hockey-stick curve is read off the pair itself.

delta(eps) = P(A) - e^eps Q(A) with A = {loss > eps}; for any other A it is a lower bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from dpmech import DominatingPair

# Beyond any loss error that is not itself a failure.
_NEAR = 1e-9


def single_delta(pair: DominatingPair, epsilon: float) -> tuple[float, float]:
    """(lower, upper) bounds on delta at ``epsilon`` for one release of the pair."""
    cells = pair.masses(np.array([epsilon - _NEAR, epsilon]))
    p, q = float(cells.log_p[-1]), float(cells.log_q[-1])
    error = float(cells.error[-1])
    inside, outside = math.exp(p), math.exp(min(epsilon + q, 700.0))
    # Points put on the wrong side of A have a loss within loss_error of epsilon: each costs that
    # much, and together they have no more mass than there is above epsilon - _NEAR.
    above = inside + float(cells.p[-2]) if 3 * cells.loss_error < _NEAR else 1.0
    margin = error * (inside + outside) + (2 * cells.loss_error + 4e-16 * (1 + epsilon)) * above
    value = inside - outside
    low = max(0.0, value - margin) + max(0.0, pair.infinite_mass - 2e-300)
    return low, min(1.0, max(0.0, value + margin) + pair.infinite_mass)


def single_epsilon(pair: DominatingPair, delta: float) -> tuple[float, float]:
    """(lower, upper) bounds on epsilon at ``delta`` for one release of the pair."""
    if pair.infinite_mass >= delta:
        return math.inf, math.inf
    # Beyond this loss less than a thousandth of delta is left, finite or not.
    high = max(0.0, pair.loss_range((delta - pair.infinite_mass) * 1e-3)[1]) + 2 * _NEAR
    upper = _last(lambda e: single_delta(pair, e)[1] > delta, high)[1]
    return _last(lambda e: single_delta(pair, e)[0] > delta, high)[0], upper


def _last(exceeds: Callable[[float], bool], high: float) -> tuple[float, float]:
    """(a, b): the predicate, true up to some point of [0, high], holds at a and no longer at b."""
    if not exceeds(0.0):
        return 0.0, 0.0
    if exceeds(high):
        return 0.0, math.inf
    low = 0.0
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if exceeds(middle) else (low, middle)
    return low, high
