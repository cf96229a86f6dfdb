"""The two loops of the dominated lattice that cannot be vectorised (see ``_discretise``).

Compiled by numba on first use; imported only there, so that nobody else pays for it.
Masses are P-masses on levels l_i = l_0 + i h; ``odds`` = e^h. ``G_i`` = sum_{j>i} p_j e^{-l_j} is
minus the slope of the hockey-stick curve on (e^{l_i}, e^{l_{i+1}}).
"""

from __future__ import annotations

import numba
import numpy as np

from dpmech.noise import Floats


@numba.njit(cache=True)
def capped_drops(drop: Floats, excess: Floats, weight: Floats, curve: Floats) -> Floats:
    """Drops C <= u with (1 - w_i) C_i + w_i C_{i+1} >= d_i in every cell, from the top down.

    ``drop`` is what is wanted, ``excess`` d and ``weight`` w per cell, ``curve`` u per level. With
    C = u throughout the condition holds, so capping at u never leaves the next level without a way.
    """
    result = np.minimum(drop, curve)
    for i in range(len(excess) - 1, -1, -1):
        owed = excess[i] - weight[i] * result[i + 1]
        if owed > 0.0:
            needed = owed / (1.0 - weight[i]) if weight[i] < 1.0 else curve[i]
            if needed > result[i]:
                result[i] = min(curve[i], needed)
    return result


@numba.njit(cache=True)
def convexified(atoms: Floats, odds: float) -> Floats:
    """Masses of the greatest convex minorant of the curve with signed masses ``atoms``.

    Pool-adjacent-violators on the slopes G_i, weighted by the widths e^{l_{i+1}} - e^{l_i}. Each
    block's slope is kept in units of its own first level, so nothing over- or underflows.
    """
    n = len(atoms)
    slope = np.zeros(n)  # G_i e^{l_i}; the last level has nothing above it
    for i in range(n - 2, -1, -1):
        slope[i] = (slope[i + 1] + atoms[i + 1]) / odds
    step = np.log(odds)
    start = np.zeros(n, dtype=np.int64)
    value = np.zeros(n)
    blocks = 0
    for i in range(n):
        first, current = i, slope[i]
        end = i + 1
        while blocks > 0:
            length = first - start[blocks - 1]
            if value[blocks - 1] >= current * np.exp(-step * length):
                break
            blocks -= 1
            left, right = np.expm1(step * length), np.expm1(step * (end - first))
            whole = np.expm1(step * (end - start[blocks]))
            current = (left * value[blocks] + right * current) / whole
            first = start[blocks]
        start[blocks], value[blocks] = first, current
        blocks += 1
    result = np.zeros(n)
    # Levels between two untouched unit blocks keep their mass as it is, without any cancellation.
    total = atoms[0] + slope[0]
    clipped = False
    for b in range(blocks):
        first = start[b]
        # Left of the first level the slope is given by the total Q-mass; none may be steeper.
        ceiling = total * np.exp(step * first)
        clipped_before, clipped = clipped, value[b] > ceiling
        value[b] = min(value[b], ceiling)
        if b == 0:
            result[first] = max(0.0, total - value[b])
            continue
        before = start[b - 1]
        untouched = (
            not (clipped or clipped_before)
            and first - before == 1
            and (n if b + 1 == blocks else start[b + 1]) - first == 1
        )
        if untouched:
            result[first] = max(0.0, atoms[first])
        else:
            result[first] = max(0.0, value[b - 1] * np.exp(step * (first - before)) - value[b])
    return result
