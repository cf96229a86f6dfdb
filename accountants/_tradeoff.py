"""Bounds on a trade-off curve between the epsilons at which an accountant was asked.

Symbols and the three facts about ``H`` as in :mod:`accountants.curves`.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from accountants.base import Accountant
from dpmech.noise import Floats

# Evaluations of delta spent on one point of a curve; levels nearer than this,
# relatively, are one.
_CUTS, _SAME_LEVEL = 30, 2e-4
_ROUNDING = 1e-12  # covers the rounding of sums of terms of size 1
# A point is good when this close, relative to the errors that it speaks of.
_ACCURACY = 1e-6


class Tradeoff:
    """Cutting planes on phi(gamma) = 1 - H(gamma) - gamma fpr, which is concave in gamma.

    Its maximum is the false negative rate. H is asked where the planes so far allow the most, were
    its upper bounds exact; what was asked for one fpr serves the next.
    """

    def __init__(self, accountant: Accountant, *near: float) -> None:
        self._delta = functools.cache(accountant.delta_interval)
        self._epsilons = sorted({0.0, *(abs(epsilon) for epsilon in near)})

    def at(self, fpr: float) -> tuple[float, float]:
        """Bounds on the false negative rate at ``fpr``."""
        if not 0 < fpr < 1:
            raise ValueError(f"Expected fpr={fpr} in (0, 1).")
        for _ in range(_CUTS):
            epsilon = self._promising(fpr)
            if epsilon is None:
                break
            self._epsilons.append(epsilon)
        gamma, below, above = self._points(fpr)
        lower = max(0.0, float(np.max(below)) - _ROUNDING)
        upper = _peak(gamma, below, above, fpr)[0] + _ROUNDING
        return lower, max(min(upper, 1 - fpr), lower)

    def best_level(self, fpr: float) -> float:
        """The epsilon, below 0 for gamma < 1, that proves the most at ``fpr``."""
        self.at(fpr)
        gamma, below, _ = self._points(fpr)
        return math.log(gamma[1 + np.argmax(below[1:-1])])

    def _promising(self, fpr: float) -> float | None:
        """The epsilon at which phi may be largest, or None where that would be no gain."""
        gamma, below, above = self._points(fpr)
        found = float(np.max(below))
        value, where = _peak(gamma, below, np.append(below[:-1], above[-1:]), fpr)
        if value - found <= 2 * _ROUNDING + _ACCURACY * min(found, 1 - fpr - found):
            return None
        epsilon = abs(math.log(where))
        nearest = min(abs(epsilon - e) for e in self._epsilons)
        return None if nearest <= _SAME_LEVEL * epsilon else epsilon

    def _points(self, fpr: float) -> tuple[Floats, Floats, Floats]:
        """Rising gammas with bounds on phi, from phi(0) = 0 to where phi is surely negative."""
        epsilon = np.sort(self._epsilons)
        asked = [self._delta(float(e)) for e in epsilon]
        low = np.array([one[0] or 0.0 for one in asked])
        high = np.array([one[1] for one in asked])
        gamma = np.exp(epsilon)
        mirrored = 1 / gamma[:0:-1]  # the reflection; gamma = 1 is its own
        levels = np.concatenate([mirrored, gamma])
        h_low = np.concatenate([1 - mirrored * (1 - low[:0:-1]), low])
        h_high = np.concatenate([1 - mirrored * (1 - high[:0:-1]), high])
        end = max(1 / fpr, 2 * float(gamma[-1]))
        return (
            np.concatenate([[0.0], levels, [end]]),
            np.concatenate([[0.0], 1 - h_high - levels * fpr, [-end * fpr]]),
            np.concatenate([[0.0], 1 - h_low - levels * fpr, [1 - end * fpr]]),
        )


def _peak(gamma: Floats, below: Floats, above: Floats, fpr: float) -> tuple[float, float]:
    """(an upper bound on the maximum of a concave phi, where it is attained).

    On each cell phi is under the chords of the cells beside it, prolonged (from their far end's
    lower bound through their near end's upper bound), and under gamma (1 - fpr) and 1 - gamma fpr.
    """
    chord = np.diff(gamma)
    rise = (above[1:] - below[:-1]) / chord  # of a chord prolonged to the right
    fall = (below[1:] - above[:-1]) / chord  # to the left
    slopes = np.stack(
        [
            np.concatenate([[1 - fpr], rise[:-1]]),
            np.concatenate([fall[1:], [-fpr]]),
            np.full(len(chord), 1 - fpr),
            np.full(len(chord), -fpr),
        ]
    )
    bases = np.stack(
        [
            np.concatenate([[0.0], above[1:-1] - rise[:-1] * gamma[1:-1]]),
            np.concatenate([above[1:-1] - fall[1:] * gamma[1:-1], [1.0]]),
            np.zeros(len(chord)),
            np.ones(len(chord)),
        ]
    )
    corners = [gamma[:-1], gamma[1:]]
    for i, j in ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)):
        with np.errstate(divide="ignore", invalid="ignore"):
            cross = (bases[j] - bases[i]) / (slopes[i] - slopes[j])
        corners.append(np.clip(np.nan_to_num(cross, nan=0.0), gamma[:-1], gamma[1:]))
    x = np.stack(corners)
    value = np.min(bases[:, None] + slopes[:, None] * x, axis=0)
    at = np.unravel_index(int(np.argmax(value)), value.shape)
    return float(value[at]), float(x[at])
