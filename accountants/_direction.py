"""Bounds on epsilon and delta for the composition of the pairs of one direction."""

from __future__ import annotations

import math
from dataclasses import dataclass

from accountants._asked import DeltaGoal, EpsilonGoal, Goal
from accountants._bracket import Bracket
from accountants._saddle import line_through
from accountants._single import single_delta, single_epsilon
from dpmech import DominatingPair, Unattainable

# Share of the tolerated gap that tails not cut into cells may take.
_TAIL_SHARE = 1e-2
# The gap in ln delta for which cells are first made.
_FIRST_GAP = 0.5
_ROUNDS = 5
# Frequencies, a hundred bytes each, and their product with atoms, ten seconds of work.
_MOST_FREQUENCIES, _MOST_WORK = 1 << 19, 1.5e10
# A bound this small is as good as 0, and ln delta known this well is known.
_NOTHING, _EXACT = 1e-280, 1e-6


@dataclass(frozen=True)
class Direction:
    """Composition of the pairs of one direction."""

    pairs: tuple[tuple[DominatingPair, int], ...]

    @property
    def _runs(self) -> int:
        return sum(count for _, count in self.pairs)

    def epsilon_interval(
        self, delta: float, tolerance: float, *, enough: float = 0.0
    ) -> tuple[float, float]:
        """(lower, upper) bounds on epsilon; an upper bound not above ``enough`` needs no more."""
        if self._runs == 1:
            return single_epsilon(self.pairs[0][0], delta)
        return self._refined(EpsilonGoal(delta=delta, tolerance=tolerance), delta, enough)

    def delta_interval(
        self, epsilon: float, tolerance: float, *, enough: float = 0.0
    ) -> tuple[float, float]:
        """(lower, upper) bounds on delta at ``epsilon``."""
        if self._runs == 1:
            return single_delta(self.pairs[0][0], epsilon)
        goal = DeltaGoal(epsilon=epsilon, tolerance=tolerance)
        saddle = goal.saddle(self._bracket(1e-200, tolerance))
        return self._refined(goal, math.exp(max(saddle.log_delta, -600.0)), enough)

    def _bracket(self, delta: float, tolerance: float) -> Bracket:
        """First cells, with tails cut that do not matter to a delta of this size."""
        tail = max(delta * tolerance * _TAIL_SHARE / self._runs, 1e-300)
        return Bracket(pairs=self.pairs, edges=[pair.edges(tail) for pair, _ in self.pairs])

    def _refined(self, goal: Goal, delta: float, enough: float) -> tuple[float, float]:
        """Refine until the gap is within tolerance; keep the best of all bounds."""
        bracket = self._bracket(delta, goal.tolerance)
        low, high = goal.trivial(bracket)
        if high <= low * (1 + goal.tolerance):
            return low, high
        saddle = goal.saddle(bracket)
        for gap in (_FIRST_GAP, _FIRST_GAP / 10):
            bracket = bracket.refined(saddle, gap)
            saddle = goal.saddle(bracket, saddle.tilt)
        # The coarse first look may show that this direction does not matter, or that the saddle's
        # estimate of delta was far off (a loss of several humps) and the place is another.
        gap = _FIRST_GAP / 10
        for done in range(_ROUNDS):
            line = line_through(saddle, bracket.above, gap)
            work = line.count * bracket.above.size
            if line.count > _MOST_FREQUENCIES or work > _MOST_WORK:
                if done == 0:
                    raise _too_much(line.count, high)
                break
            found = goal.bounds(bracket, line, saddle)
            low, high = max(low, found[0]), min(high, found[1])
            if high <= max(enough, low + goal.tolerance * high, _NOTHING) or gap < _EXACT:
                break
            moved = goal.moved(bracket, saddle, high)
            if done == 0 or moved is not saddle:
                saddle, gap = moved, min(_FIRST_GAP / 10, max(goal.gap(moved), _EXACT))
            else:
                gap *= _shrinkage(low, high, goal.tolerance)
            bracket = bracket.refined(saddle, gap)
        return low, high


def _too_much(count: int, high: float) -> Unattainable:
    return Unattainable(
        f"No certificate: it would take {count:.3g} frequencies, and {_MOST_FREQUENCIES} are the "
        f"most, because single losses or epsilon are so large; all that is known is the trivial "
        f"bound {high:.6g}. Use accountant='rdp' for an upper bound, or ask with more noise, fewer "
        "steps or a larger delta.",
        reached=high,
    )


def _shrinkage(low: float, high: float, tolerance: float) -> float:
    if not (math.isfinite(high) and high > 0):
        return 0.25
    return min(0.5, max(1 / 64, 0.8 * tolerance * high / max(high - low, 1e-300)))
