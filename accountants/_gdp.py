"""The mu of Gaussian differential privacy through points and over cells of a privacy curve."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from dpmech.noise import Floats

_PARTS = 128  # of a cell of epsilon, each looked at by itself

Point = tuple[float, tuple[float | None, float]]  # epsilon, and bounds on delta there


def cells_of(points: dict[float, tuple[float | None, float]]) -> list[tuple[Point, Point]]:
    rising = sorted(points.items())
    return list(pairwise(rising))


def least_mu(epsilon: float, delta: float, delta_min: float) -> float:
    """The mu whose curve passes through a point; 0 below ``delta_min``, where nothing is asked."""
    if delta <= delta_min:
        return 0.0
    return float(_gdp_mu(np.array([epsilon]), np.array([delta]))[0][0])


def cell_mu(cell: tuple[Point, Point], delta_min: float) -> tuple[float, float]:
    """(a mu whose curve is above the mechanism's on a cell of epsilon, the middle of the cell).

    By convexity H is under the chord in gamma. Over a part of the cell the chord is at most its
    value at the left end, and the curve of mu at least its value at the right end.
    """
    (left, (_, at_left)), (right, (_, at_right)) = cell
    edges = np.linspace(left, right, _PARTS + 1)
    # (e^x - e^left)/(e^right - e^left), without overflow
    share = np.exp(edges[:-1] - right) * -np.expm1(left - edges[:-1]) / -math.expm1(left - right)
    chord = at_left + share * (at_right - at_left)
    asks = chord > delta_min
    if not np.any(asks):
        return 0.0, (left + right) / 2
    above = np.minimum(chord[asks] * (1 + 1e-14), 1 - 1e-16)
    return float(np.max(_gdp_mu(edges[1:][asks], above)[1])), (left + right) / 2


def _gdp_mu(epsilon: Floats, delta: Floats) -> tuple[Floats, Floats]:
    """(below, above) the mu with delta_mu(epsilon) = delta, elementwise; delta in (0, 1)."""
    goal = np.log(delta)
    return _bisected(lambda mu: _log_gdp_delta(epsilon, mu) <= goal, goal.shape)


def _bisected(short: Callable[[Floats], NDArray[np.bool_]], shape: tuple[int, ...]) -> Any:
    """The ends of an interval of relative width 1e-11 in which ``short`` turns false."""
    low, high = np.full(shape, -50.0), np.full(shape, 10.0)  # of ln mu
    while np.any(high - low > 1e-11):
        middle = (low + high) / 2
        under = short(np.exp(middle))
        low, high = np.where(under, middle, low), np.where(under, high, middle)
    return np.exp(low) * (1 - 1e-9), np.exp(high) * (1 + 1e-9)  # covers rounding in delta_mu


def _log_gdp_delta(epsilon: Floats, mu: Floats) -> Floats:
    """ln delta_mu(epsilon) = ln(Phi(a) - e^epsilon Phi(a - mu)) with a = mu/2 - epsilon/mu."""
    a = mu / 2 - epsilon / mu
    b = a - mu
    ratio = epsilon + special.log_ndtr(b) - special.log_ndtr(a)
    with np.errstate(divide="ignore", invalid="ignore"):
        plain = special.log_ndtr(a) + np.log(-np.expm1(np.minimum(ratio, 0.0)))
        # phi(a) = e^epsilon phi(b): phi(a) times a difference of Mills ratios does not underflow.
        mills = special.erfcx(-a * math.sqrt(0.5)) - special.erfcx(-b * math.sqrt(0.5))
        tail = -a * a / 2 - math.log(2) + np.log(np.maximum(mills, 0.0))
    return np.where(a > 0, plain, tail)
