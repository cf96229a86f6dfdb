"""One release on a grid: the loss pushed up (dominating) or pulled down (dominated).

Symbols: ``h`` grid step; atom i of a :class:`Lattice` has loss ``offset + (start + i) h``.
Method and proofs: mathematics.md §4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import signal

from dpmech import DominatingPair
from dpmech.loss import CellMasses
from dpmech.noise import Floats

# Grids longer than this are refused rather than built: 2^22 cells take about 200 MB in passing.
LARGEST_GRID = 1 << 22


@dataclass(frozen=True, kw_only=True, eq=False)
class Lattice:
    """A privacy loss on a grid: ``p[i]`` is the P-mass at loss ``offset + (start + i) * step``.

    ``infinite`` is P-mass at infinite loss. True losses exceed (or for a lower bound fall short of)
    those of the atoms by at most ``slack``.
    """

    p: Floats
    start: int
    step: float
    offset: float
    infinite: float
    slack: float

    @property
    def losses(self) -> Floats:
        return self.offset + self.step * (self.start + np.arange(len(self.p), dtype=np.float64))


def fitted_step(pair: DominatingPair, step: float) -> float:
    """The largest step up to ``step`` that puts the pair's outermost atoms on one grid."""
    atoms = pair.atoms()
    width = max(atoms, default=0.0) - min(atoms, default=0.0)
    # Atoms closer than losses are told apart in doubles may as well be off the grid.
    return width / math.ceil(width / step) if width > 1e-12 else step


def bracket(pair: DominatingPair, step: float, tail: float) -> tuple[Lattice, Lattice]:
    """(dominated, dominating) lattices of one pair.

    Loss tails beyond ``tail`` mass go up for the dominating one (the lower tail to the lowest
    level, the upper one to infinity), down for the dominated one. So do rounding errors of the
    masses.
    """
    low, high = pair.loss_range(tail)
    # Known atoms lie a hair above a level, so that moving them down to it costs nothing.
    atoms = pair.atoms()
    offset = min(atoms) - 1e-9 * step if atoms else 0.0
    start = math.floor((low - offset) / step)
    count = math.ceil((high - offset) / step) + 2 - start
    levels = offset + step * (start + np.arange(count, dtype=np.float64))
    cells = pair.masses(levels)
    rounding = cells.loss_error + 4e-16 * float(np.max(np.abs(levels)))
    dominating = Lattice(
        p=_spread(cells, levels, step),
        start=start,
        step=step,
        offset=offset,
        infinite=float(min(1.0, pair.infinite_mass + cells.p[-1])),
        slack=rounding,
    )
    dominated = Lattice(
        p=_contracted(cells, levels, step),
        start=start,
        step=step,
        offset=offset,
        infinite=max(0.0, pair.infinite_mass - 2e-300),
        slack=rounding,
    )
    return dominated, dominating


def _ratio_in_cell(cells: CellMasses, levels: Floats) -> Floats:
    """Mean likelihood ratio of each inner cell over the ratio at its lower level: 1 to e^h."""
    with np.errstate(invalid="ignore", over="ignore"):
        ratio = np.exp(cells.log_p[1:-1] - cells.log_q[1:-1] - levels[:-1])
    return np.where(np.isfinite(ratio), ratio, 1.0)


def _shares(cells: CellMasses, levels: Floats, step: float) -> tuple[Floats, Floats]:
    """Share of each inner cell's P-mass that goes to its upper level, and its rounding error.

    P-mass m with Q-mass q at losses in [l, l + h] is kept, both, by the share
    (1 - q e^l/m)/(1 - e^-h).
    """
    unit = -math.expm1(-step)
    # ln p - ln q - l carries the rounding of its terms, however small the cell is.
    size = np.abs(cells.log_p[1:-1]) + np.abs(cells.log_q[1:-1]) + np.abs(levels[:-1])
    rounding = 4e-16 * np.where(np.isfinite(size), size, 0.0)
    error = 2 * (cells.error[1:-1] + rounding) / unit
    return (1 - 1 / _ratio_in_cell(cells, levels)) / unit, error


def _split(inner: Floats, share: Floats) -> Floats:
    share = np.clip(share, 0.0, 1.0)
    return np.append(inner * (1 - share), 0.0) + np.append(0.0, inner * share)


def _spread(cells: CellMasses, levels: Floats, step: float) -> Floats:
    """Each cell's mass split between its ends: P- and Q-mass kept, so the curve nowhere falls."""
    share, error = _shares(cells, levels, step)
    # A cell whose Q-mass was rounded away has no ratio to go by: all of it moves up.
    known = np.isfinite(cells.log_q[1:-1])
    atoms = _split(cells.p[1:-1], np.where(known, share + error, 1.0))
    atoms[0] += cells.p[0]
    return atoms


def _contracted(cells: CellMasses, levels: Floats, step: float) -> Floats:
    """Masses on the same levels whose hockey-stick curve v is nowhere above the true curve u.

    Splitting gives u at the levels and chords between. Inside a cell u stays above the tangents at
    its ends, so the chord is too high by at most d = m (r-1)(e^h - r)/(r (e^h - 1)), m the cell's
    P-mass and r its mean ratio, at the place r. Lowering u by drops C at the levels so that every
    cell's chord falls by d there puts v below u; the masses follow as second differences, and where
    one would be negative the greatest convex minorant is taken. So the bias is O(h^2), as for the
    split. v <= u at every ratio is all that composition needs: integrate over the other
    coordinates.
    """
    from accountants._convex import capped_drops, convexified

    odds = math.exp(step)
    share, error = _shares(cells, levels, step)
    inner, relative = cells.p[1:-1], cells.error[1:-1]
    ratio = np.clip(_ratio_in_cell(cells, levels), 1.0, odds)
    excess = inner / ratio * (ratio - 1) * (odds - ratio) / (odds - 1)
    excess = excess * (1 + 1e-9) + 2 * inner * relative
    atoms = _split(inner, share - error)
    curve = _curve(atoms, odds) * (1 - 1e-12)
    wanted = np.maximum(np.append(excess, 0.0), np.append(0.0, excess))
    drop = capped_drops(wanted, excess, (ratio - 1) / (odds - 1), curve)
    rise = np.diff(drop)
    # At the lowest level the curve may drop as a whole: that mass is lost, which is below the
    # truth.
    atoms -= np.append(rise, 0.0) / (odds - 1) - np.append(0.0, rise) / (1 - 1 / odds)
    # Where all of u is dropped nothing may be left above, not even the rounding of what was there;
    # below, mass moved down to there counts the same as above it.
    end = int(np.argmax(drop >= curve))
    atoms[end] += np.sum(atoms[end + 1 :])
    atoms[end + 1 :] = 0.0
    # Powers of e^h accumulate a rounding each level; less mass is a valid lower bound.
    return convexified(atoms, odds) * (1 - 4e-16 * len(atoms))


def _curve(atoms: Floats, odds: float) -> Floats:
    """The hockey-stick curve of ``atoms`` at their levels: u_i = u_{i+1} + (odds - 1) G_i e^{l_i}.

    G_i e^{l_i} = sum_{j>i} p_j e^{l_i - l_j}; sums of positive terms only.
    """
    # Discounted suffix sums as a linear filter run from the top.
    above = signal.lfilter([1.0], [1.0, -1.0 / odds], atoms[::-1])[::-1] - atoms
    return np.append(np.cumsum((odds - 1) * above[-2::-1])[::-1], 0.0)
