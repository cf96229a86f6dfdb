"""A lower bound on the divergence of every law at a cost: certified, whatever the solver did.

Symbols as in :mod:`optimizer_search._renyi_terms`; ``c`` cost, ``V`` budget, ``l_i`` costs on the
lattice, ``g_i`` coefficients, ``w`` weights of the shifts, ``lam`` price of the cost.

From the line to the lattice. Round X at random to one of the two points of h Z next to it so that
its mean is kept. That commutes with shifts by multiples of h, hence is post-processing for those:
the rounded law's F_k is at most that of X at t = k h. Its cost is E of the chord of l over the
cell, so it is at most V + e wherever l's chords stay at or below c + e: e = h^2/4 for the variance,
0 for E|X|. For P(|X| > gamma) the cell that X is in does as well, and costs 1 if all of it lies
beyond gamma; with gamma a multiple of h nothing is lost, and the best law is constant on cells.

On the lattice, psi(a, b) >= psi_a(rho) a + psi_b(rho) b at every rho. Taking all rho from one set
of masses and weights w of the shifts gives for every law x on the lattice

    max_k F_k(x) >= sum_k w_k F_k(x) >= sum_i g_i x_i >= min_i (g_i + lam (l_i - V - e))

for any lam >= 0, as x has mass 1 and cost V + e at most. All points at or beyond N have the same
g (they are merged), and cost l_N at least. Masses, w and lam may be anything: good ones come from
the solver. Laws need not be symmetric: mirroring one at random leaves the cost and, by convexity,
does not raise the larger of the divergences at k and -k.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from dpmech.noise import Floats
from optimizer_search._renyi_newton import Point, Program
from optimizer_search._renyi_terms import Lattice, log_ratio, slopes, summed
from optimizer_search.cost import Cost

_EPS = float(np.finfo(np.float64).eps)
# Points per cell at which a convex cost is looked at.
_PER_CELL = 16


def lower_bound(program: Program, point: Point) -> float:
    """No law on the lattice at the program's cost has a smaller divergence than this."""
    weights = np.maximum(point.weights, 0.0)
    weights = weights / (float(np.sum(weights)) * (1 + 4 * _EPS * len(weights)))
    price = max(point.price, 0.0)
    with np.errstate(all="ignore"):  # a hopeless point proves nothing, below
        gradient, wrong = _coefficients(program, point.p, weights)
        values = gradient + price * (program.costs - program.budget)
        wrong += 8 * _EPS * price * (np.abs(program.costs) + program.budget)
        least = float(np.min(values - wrong))
    if not (np.all(np.isfinite(values)) and least > 0):
        return 0.0
    divergence = least if program.order == 1 else math.log1p(least) / (program.order - 1)
    return divergence * (1 - 8 * _EPS)


def _coefficients(program: Program, p: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """(g, bounds on their rounding) per point of the line, shape (N + 1,)."""
    lattice, order = program.lattice, program.order
    pairs = lattice.pairs
    lump = log_ratio(lattice.lumps(p), np.full(lattice.shifts, p[-1]))
    log_rho = np.concatenate([log_ratio(p[pairs.a], p[pairs.b]), lump, -lump])
    weight = np.concatenate([weights[pairs.at], weights, weights])
    by_a, by_b = (weight * slope for slope in slopes(order, log_rho))
    rounding = _EPS * (16 + 4 * lattice.shifts) * (1 + order * np.abs(log_rho))
    wrong = _gathered(lattice, np.abs(by_a) * rounding, np.abs(by_b) * rounding)
    return _gathered(lattice, by_a, by_b), wrong


def _gathered(lattice: Lattice, by_a: Floats, by_b: Floats) -> Floats:
    """Sums per point: of all pairs, then of (lump, T) and then of (T, lump) at each shift."""
    n, m = lattice.size, lattice.shifts
    ends = [len(lattice.pairs.at), len(lattice.pairs.at) + m]
    (pair_a, right_lump, left_tail), (pair_b, right_tail, left_lump) = (
        np.split(slope, ends) for slope in (by_a, by_b)
    )
    total = summed(lattice.pairs.a, pair_a, n + 1)
    total += summed(lattice.pairs.b, pair_b, n + 1)
    # Point N - k is in the lumps of shift k and of larger ones; all at or beyond N are in each.
    within = np.cumsum((right_lump + left_lump)[::-1])
    total[n - m : n] += within
    total[n] += within[-1] + float(np.sum(right_tail + left_tail))
    return total / lattice.counts


def decimal(value: float) -> Fraction:
    """The number as it is written: a tenth, not the float next to it."""
    return Fraction(repr(float(value)))


def lattice_costs(
    cost: Cost, lattice: Lattice, step: Fraction, budget: float
) -> tuple[Floats, float]:
    """(l_0 … l_N, V + e): costs on the lattice that the law of any X at the budget must meet.

    l_N is the least cost at or beyond point N.
    """
    h = float(step)
    points = h * np.arange(lattice.size + 1, dtype=np.float64)
    if cost.name == "variance":
        return cost.at(points), (budget + h * h / 4) * (1 + 4 * _EPS)
    if cost.name == "l1":
        return cost.at(points), budget
    if cost.name == "usefulness":
        first = math.ceil(decimal(cost.parameter or 0.0) / step)
        return (np.arange(lattice.size + 1) >= first).astype(np.float64), budget
    return _below_chords(cost, lattice.size, h), budget * (1 + 4 * _EPS)


def _below_chords(cost: Cost, size: int, step: float) -> Floats:
    """Values at the points whose chords stay at or below a convex cost, everywhere.

    The chord of c less c is concave over a cell: on each part of it at most the line through the
    two looked-at points to its left, or to its right. Beyond the last point the line through the
    last two, lowered, stays below c, and rises.
    """
    fine = cost.at(step / _PER_CELL * np.arange(size * _PER_CELL + 1, dtype=np.float64))
    at = fine[::_PER_CELL]
    cells = np.lib.stride_tricks.sliding_window_view(fine, _PER_CELL + 1)[::_PER_CELL]
    share = np.arange(_PER_CELL + 1) / _PER_CELL
    excess = at[:-1, None] * (1 - share) + at[1:, None] * share - cells
    rise = np.maximum(np.diff(excess, axis=1), 0.0)
    fall = np.maximum(-np.diff(excess, axis=1), 0.0)
    from_left = np.full_like(rise, np.inf)
    from_left[:, 1:] = excess[:, 1:-1] + rise[:, :-1]
    from_right = np.full_like(rise, np.inf)
    from_right[:, :-1] = excess[:, 1:-1] + fall[:, 1:]
    most = np.max(np.minimum(from_left, from_right), axis=1)
    return (at - np.maximum(np.append(most, 0.0), np.append(0.0, most))) * (1 - 8 * _EPS)
