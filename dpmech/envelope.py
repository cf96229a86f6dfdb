"""The largest of several hockey-stick curves, as the curve of one pair (mathematics.md §3).

Symbols: ``gamma = e^l``, ``H(gamma) = sup_A P(A) - gamma Q(A)``, ``l`` privacy loss ln dP/dQ.

The maximum of convex, falling curves is convex and falls, so it is the curve of a pair (Zhu, Dong &
Wang 2022, Proposition 8). All pairs here are turned over by exchanging P and Q, so gamma >= 1 is
enough: the other half is its mirror image, and what mass is left has loss 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dpmech.noise import Floats

# Losses at which chords meet: the heaviest there are, and evenly spread ones.
_HEAVIEST, _EVEN = 3_000, 3_000
# Curves are raised by this share before their hull is taken: far more than rounding moves them.
_RAISED = 1e-11
_SAME = 1e-11


@dataclass(frozen=True, kw_only=True, eq=False)
class Curve:
    """A pair of finitely many losses: ``p`` its P-masses, ``lost`` that where Q has none."""

    losses: Floats
    p: Floats
    lost: float
    error: Floats

    def atoms(self) -> tuple[Floats, Floats, float, Floats]:
        """(losses, P-masses, mass at infinite loss, relative errors of the masses)."""
        return self.losses, self.p, self.lost, self.error

    def at(self, levels: Floats) -> Floats:
        """H at the rising losses ``levels`` >= 0: sums of positive terms, so nothing cancels."""
        above = self.losses > levels[0]
        order = np.argsort(-self.losses[above], kind="stable")
        losses = self.losses[above][order]
        q = np.cumsum(self.p[above][order] * np.exp(-losses))
        # From one kink down to the next, H rises by the Q-mass above times the fall of gamma.
        rise = q[:-1] * np.exp(losses[:-1]) * -np.expm1(np.diff(losses))
        height = self.lost + np.concatenate([[0.0], np.cumsum(rise)])[: len(losses)]
        last = np.searchsorted(-losses, -levels, side="left") - 1  # the last kink above the level
        inside = last >= 0
        k = np.maximum(last, 0)
        if not len(losses):
            return np.full_like(levels, self.lost)
        gap = np.exp(losses[k]) * -np.expm1(levels - losses[k])
        return np.where(inside, height[k] + q[k] * gap, self.lost)


def envelope(curves: Sequence[Curve]) -> tuple[Floats, Floats, float, Floats]:
    """(losses, P-masses, mass at infinite loss, errors) of a pair above all ``curves``.

    **Guarantees.** Its curve is nowhere below theirs: it is the convex hull from below of their
    maximum at some losses, raised by 1e-11 of itself, and chords of a convex curve are above it.
    """
    levels = _levels(curves)
    height = np.max([curve.at(levels) for curve in curves], axis=0) * (1 + _RAISED)
    lost = float(max(curve.lost for curve in curves)) * (1 + _RAISED)
    height[-1] = lost  # at and above the largest loss
    levels, height = _hull(levels, height)
    q = _kinks(levels, height)
    upper = levels > 0
    losses, q = levels[upper], q[upper]
    p = q * np.exp(losses)
    rest = max(0.0, 1.0 - float(np.sum(p)) - float(np.sum(q)) - lost)
    both = np.concatenate([-losses[::-1], [0.0], losses])
    masses = np.concatenate([q[::-1], [rest], p])
    kept = masses > 0
    return both[kept], masses[kept], lost, np.full(int(np.sum(kept)), 4 * _RAISED)


def _levels(curves: Sequence[Curve]) -> Floats:
    """Losses from 0 to the largest at which the curves are compared."""
    losses = np.concatenate([curve.losses for curve in curves])
    p = np.concatenate([curve.p for curve in curves])
    losses, p = losses[losses > 0], p[losses > 0]
    if not len(losses):
        return np.zeros(1)
    order = np.argsort(losses)
    losses, p = losses[order], p[order]
    starts = np.flatnonzero(np.append(True, np.diff(losses) > _SAME * (1 + losses[1:])))
    heights, weights = np.maximum.reduceat(losses, starts), np.add.reduceat(p, starts)
    if len(heights) > _HEAVIEST:
        heaviest = heights[np.argpartition(-weights, _HEAVIEST)[:_HEAVIEST]]
        heights = np.append(heaviest, np.linspace(0.0, losses[-1], _EVEN))
    return np.unique(np.concatenate([[0.0], heights, [losses[-1]]]))


def _hull(levels: Floats, height: Floats) -> tuple[Floats, Floats]:
    """The points of the convex hull from below, over gamma."""
    kept: list[int] = []
    gamma = np.exp(levels)
    for i in range(len(levels)):
        while len(kept) > 1:
            a, b = kept[-2], kept[-1]
            across = (gamma[b] - gamma[a]) * (height[i] - height[a])
            if across > (gamma[i] - gamma[a]) * (height[b] - height[a]):
                break
            kept.pop()
        kept.append(i)
    return levels[kept], height[kept]


def _kinks(levels: Floats, height: Floats) -> Floats:
    """The Q-masses at the levels: by how much the slope over gamma rises there."""
    if len(levels) == 1:
        return np.zeros(1)
    falls = (height[:-1] - height[1:]) / (np.exp(levels[:-1]) * np.expm1(np.diff(levels)))
    return np.maximum(np.append(1.0, falls) - np.append(falls, 0.0), 0.0)
