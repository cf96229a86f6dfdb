"""The joint loss of many equally shifted coordinates, merged from below (mathematics.md §6.5).

Symbols: ``P``, ``Q`` one coordinate with and without its shift, ``l`` its loss, ``h`` lattice step.

One coordinate's outcomes are merged into 2J + 1 symbols whose losses are exactly multiples of h:
cells are taken from the largest loss down until their joint loss ln(P/Q) has come down to J h, then
the next until (J-1) h, and so on; a cell may be split at random. The reflection that exchanges P
and Q gives the negative symbols, what remains in the middle has loss 0. Where cells run out before
the loss is down, a symbol and its mirror image are exchanged at random. All of it is
post-processing. Sums of such losses stay on the lattice, so m coordinates are an m-fold
convolution, of positive numbers: no cancellation. Tails |sum| > w are merged into loss 0, which
their joint loss is by symmetry.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

from dpmech.cells import interval_mass
from dpmech.discrete import DiscreteNoise
from dpmech.loss import AtomicPair
from dpmech.noise import Floats, Noise

_LEVELS = 16  # J: what merging costs falls with its square, and is below 0.2 % of epsilon here
_NEAR, _FAR = 50, 300  # cells on [s/2, s] and beyond
_TOP = 1e-3  # share of the P-mass that sets the largest symbol's loss
_CUT = 1e-30
_EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, kw_only=True, eq=False)
class SpreadPair:
    """A pair dominated by the joint one; its masses are right to a factor e^(±``rounding``)."""

    pair: AtomicPair
    rounding: float


@functools.lru_cache(maxsize=32)
def spread_pair(noise: Noise, shift: float, coordinates: int) -> SpreadPair:
    """The merged joint loss of ``coordinates`` with a density, each shifted by ``shift``."""
    if isinstance(noise, DiscreteNoise):
        raise ValueError(f"Expected a law with a density, got {noise} at shift={shift}.")
    step, masses, rounding = merged_coordinate(noise, shift)
    total, sum_rounding = _power(masses, coordinates)
    reach = len(total) // 2
    losses: Floats = step * np.arange(-reach, reach + 1.0)
    full = total > 0
    pair = AtomicPair(losses=losses[full], p=total[full], loss_error=8 * _EPS * losses[-1])
    return SpreadPair(pair=pair, rounding=coordinates * rounding + sum_rounding)


def merged_coordinate(noise: Noise, shift: float) -> tuple[float, Floats, float]:
    """(h, P-masses of the symbols -J … J, relative error of their masses under P and Q)."""
    cells = _cells(noise, shift)
    step = _top_loss(cells) / _LEVELS
    start, left, upper, error = 0, 1.0, np.zeros(_LEVELS), 0.0
    for level in range(_LEVELS, 0, -1):
        taken, start, left = _next_symbol(cells, start, left, level * step)
        upper[level - 1], wrong = _exact_symbol(cells, taken, level * step)
        error = max(error, wrong)
    rest = np.zeros(len(cells.p))
    rest[start:] = np.append(left, np.ones(len(rest)))[: len(rest) - start]
    middle = float((cells.p + cells.q) @ rest)
    wrong = cells.error_of((cells.p + cells.q) * rest)
    lower = upper * np.exp(-step * np.arange(1, _LEVELS + 1))
    return step, np.concatenate([lower[::-1], [middle], upper]), max(error, wrong)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Cells:
    """Masses under P and Q of cells beyond s/2, from the largest loss down; relative errors."""

    p: Floats
    q: Floats
    error: Floats

    def error_of(self, parts: Floats) -> float:
        """Relative error of the sum of ``parts`` of the cells' masses."""
        total = float(np.sum(parts))
        return float(parts @ self.error) / total + 64 * _EPS if total > 0 else 0.0


def _cells(noise: Noise, shift: float) -> _Cells:
    width = float(noise.isf(0.25))
    inner = np.linspace(shift / 2, shift, _NEAR + 1)
    reach = min(float(noise.isf(1e-60)), noise.support) / width
    outer = shift + width * np.geomspace(min(1e-2, reach / 2), reach, _FAR)
    edges = np.unique(
        np.concatenate([inner, outer, [noise.support, noise.loss_peak(shift), np.inf]])
    )
    edges = edges[edges >= shift / 2]
    log_p, p_error = interval_mass(noise, edges[:-1] - shift, edges[1:] - shift)
    log_q, q_error = interval_mass(noise, edges[:-1], edges[1:])
    with np.errstate(invalid="ignore"):
        order = np.argsort(np.nan_to_num(log_q - log_p, nan=np.inf), kind="stable")
    error = np.maximum(p_error, q_error)
    return _Cells(p=np.exp(log_p)[order], q=np.exp(log_q)[order], error=error[order])


def _top_loss(cells: _Cells) -> float:
    """The joint loss of the cells of largest loss that make up a small share of P."""
    p, q = np.cumsum(cells.p), np.cumsum(cells.q)
    top = max(int(np.searchsorted(p, _TOP * p[-1])), int(np.searchsorted(q, 1e-300)))
    # Ties in the loss are told apart by rounding only: it must not raise the level they are put to.
    wrong = cells.error_of(np.where(np.arange(len(p)) <= top, cells.p + cells.q, 0.0))
    return math.log(p[top] / q[top]) - 4 * wrong


def _exact_symbol(cells: _Cells, taken: Floats, loss: float) -> tuple[float, float]:
    """(P-mass, relative error) of the cells ``taken``, exchanged with their mirror image to fit."""
    p, q, ratio = float(cells.p @ taken), float(cells.q @ taken), math.exp(loss)
    if p == 0:
        return 0.0, 0.0
    excess = p - ratio * q
    exchanged = max(0.0, excess) / ((1 + ratio) * (p - q))
    wrong = max(cells.error_of(cells.p * taken), cells.error_of(cells.q * taken))
    return p - exchanged * (p - q), wrong + max(0.0, -excess) / p


def _next_symbol(cells: _Cells, start: int, left: float, loss: float) -> tuple[Floats, int, float]:
    """(share of each cell taken, first cell not used up, share of it left) for a joint ``loss``.

    Cells count from ``start``, of which the share ``left`` is still there.
    """
    there = np.append(left, np.ones(len(cells.p)))[: len(cells.p) - start]
    p, q = cells.p[start:] * there, math.exp(loss) * cells.q[start:] * there
    excess = np.cumsum(p - q)  # falls once the cells' losses are below
    rounding = np.cumsum((p + q) * (cells.error[start:] + 4 * _EPS))
    whole = int(np.max(np.flatnonzero(excess >= -rounding) + 1, initial=0))
    taken = np.zeros(len(cells.p))
    taken[start : start + whole] = there[:whole]
    if whole == len(there):
        return taken, len(cells.p), 1.0
    before = max(float(excess[whole - 1]), 0.0) if whole else 0.0
    share = before / float(q[whole] - p[whole]) * there[whole]
    taken[start + whole] = share
    return taken, start + whole, float(there[whole]) - share


def _power(masses: Floats, count: int) -> tuple[Floats, float]:
    """The masses of the sum of ``count`` such losses, and the relative error of adding them up."""
    result, error = np.ones(1), 0.0
    square, square_error = masses, 0.0
    while True:
        if count & 1:
            error += square_error + _EPS * (len(square) + len(result))
            result = _trimmed(np.convolve(result, square))
        count >>= 1
        if not count:
            return result, error
        square_error = 2 * square_error + 2 * _EPS * len(square)
        square = _trimmed(np.convolve(square, square))


def _trimmed(masses: Floats) -> Floats:
    """Without the ends of next to no mass, which goes to loss 0."""
    ends = np.cumsum(masses + masses[::-1])[: len(masses) // 2]
    cut = int(np.searchsorted(ends, _CUT))
    if cut == 0:
        return masses
    inner = masses[cut:-cut].copy()
    inner[len(inner) // 2] += ends[cut - 1]
    return inner
