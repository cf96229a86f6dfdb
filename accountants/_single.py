"""One release needs no composition: its hockey-stick curve is read off ever finer cells.

Cells wholly above or below epsilon tell delta to rounding, so only those around it are cut.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from accountants._atoms import Atoms, cut, dominated, dominating
from accountants.exact import gaussian_delta_interval, gaussian_epsilon_interval
from dpmech import DominatingPair, Gaussian
from dpmech.cells import Cells
from dpmech.loss import PeakedPair
from dpmech.noise import Floats

_ROUNDS = 16
# Parts that an interval is cut into, and how many there should be in all.
_PIECES, _NEW_EDGES = 32.0, 1000
# Relative gaps: one that is as good as none, and one that will do where rounding ends progress.
_CLOSE, _NEARLY = 1e-11, 1e-6


def single_delta(pair: DominatingPair, epsilon: float) -> tuple[float, float]:
    """(lower, upper) bounds on delta at ``epsilon`` for one release of the pair."""
    if isinstance(pair, PeakedPair) and isinstance(pair.noise, Gaussian):
        return gaussian_delta_interval(epsilon, pair.shift / pair.noise.sigma)

    def at(cells: Cells) -> tuple[float, float]:
        return delta_of(dominated(cells), epsilon), delta_of(dominating(cells), epsilon)

    return _sharpened(pair, 1e-300, at, lambda low, high: (epsilon, epsilon))


def single_epsilon(pair: DominatingPair, delta: float) -> tuple[float, float]:
    """(lower, upper) bounds on epsilon at ``delta`` for one release of the pair."""
    if isinstance(pair, PeakedPair) and isinstance(pair.noise, Gaussian):
        return gaussian_epsilon_interval(delta, pair.shift / pair.noise.sigma)

    def at(cells: Cells) -> tuple[float, float]:
        return epsilon_of(dominated(cells), delta)[0], epsilon_of(dominating(cells), delta)[1]

    return _sharpened(pair, delta * 1e-9, at, lambda low, high: (low, high))


def _sharpened(
    pair: DominatingPair,
    tail: float,
    bounds: Callable[[Cells], tuple[float, float]],
    unsettled: Callable[[float, float], tuple[float, float]],
) -> tuple[float, float]:
    """The best bounds on cells cut where their losses are in the ``unsettled`` range."""
    edges = pair.edges(tail)
    low, high = 0.0, math.inf
    for _ in range(_ROUNDS):
        cells, gap = pair.cells(edges), high - low
        found = bounds(cells)
        low, high = max(low, found[0]), min(high, found[1])
        stuck = high - low > gap / 2 and high <= low * (1 + _NEARLY)
        if high <= low * (1 + _CLOSE) or stuck:
            break
        around = _around(cells, len(edges) - 1, *unsettled(low, high))
        pieces = min(_PIECES, max(2.0, _NEW_EDGES / max(1, int(np.sum(around)))))
        edges = cut(edges, np.where(around, pieces, 1.0))
    return low, high


def _around(cells: Cells, intervals: int, low: float, high: float) -> NDArray[np.bool_]:
    """Which intervals have a cell with losses around [low, high]."""
    touched = (cells.interval >= 0) & (cells.low <= high) & (cells.high >= low)
    with np.errstate(invalid="ignore"):  # inf - inf, where the loss is infinite on all of the cell
        touched &= cells.high - cells.low > 2 * (cells.low_error + cells.high_error)
    result = np.zeros(max(intervals, 0), dtype=np.bool_)
    result[cells.interval[touched]] = True
    return result


def delta_of(atoms: Atoms, epsilon: float) -> float:
    """delta of the atoms themselves at ``epsilon``; their masses have room for its rounding."""
    return min(1.0, float(np.sum(_excess(atoms, epsilon))) + atoms.infinite)


def _excess(atoms: Atoms, epsilon: float) -> Floats:
    first = int(np.searchsorted(atoms.losses, epsilon))
    return np.exp(atoms.log_p[first:]) * -np.expm1(epsilon - atoms.losses[first:])


def epsilon_of(atoms: Atoms, delta: float) -> tuple[float, float]:
    """Neighbouring numbers between which delta of the atoms themselves falls to ``delta``."""
    if atoms.infinite >= delta:
        return math.inf, math.inf
    low, high = 0.0, max(0.0, atoms.highest)
    if delta_of(atoms, 0.0) <= delta:
        return 0.0, 0.0
    while high - low > 1e-15 * high:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if delta_of(atoms, middle) > delta else (low, middle)
    return low, high
