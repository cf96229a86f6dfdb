"""What is asked of a composition: epsilon at a delta, or delta at an epsilon."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from accountants._bracket import Bracket
from accountants._contour import Contour, Line
from accountants._saddle import Saddle, saddle_for_delta, saddle_for_epsilon


class Goal(Protocol):
    """What is asked of a composition: epsilon at a delta, or delta at an epsilon."""

    tolerance: float

    def trivial(self, bracket: Bracket) -> tuple[float, float]:
        """Bounds that need no integral."""
        ...

    def saddle(self, bracket: Bracket, near: float = 1.0) -> Saddle:
        """The saddle to integrate through; its tilt is thought to be ``near``."""
        ...

    def gap(self, saddle: Saddle) -> float:
        """The gap in ln delta that gives the tolerance."""
        ...

    def bounds(self, bracket: Bracket, line: Line, saddle: Saddle) -> tuple[float, float]:
        """(lower, upper) bounds from integrals along a line through the saddle."""
        ...

    def moved(self, bracket: Bracket, saddle: Saddle, high: float) -> Saddle:
        """The same saddle, or a better one in the light of the upper bound found."""
        ...


@dataclass(kw_only=True)
class EpsilonGoal:
    delta: float
    tolerance: float

    def trivial(self, bracket: Bracket) -> tuple[float, float]:
        if bracket.below.infinite >= self.delta:
            return math.inf, math.inf
        if bracket.above.infinite >= self.delta:
            return 0.0, math.inf
        # Whatever delta is, epsilon is no more than the largest loss.
        return 0.0, max(0.0, bracket.above.highest)

    def saddle(self, bracket: Bracket, near: float = 1.0) -> Saddle:
        steepest = 30 / self.tolerance
        saddle = saddle_for_delta(bracket.above, self._log_left(bracket), steepest, near)
        if saddle.tilt * saddle.epsilon >= steepest / 2:
            return saddle  # epsilon is the largest loss, well enough, and delta far less there
        if saddle.epsilon <= 0:
            saddle = saddle_for_epsilon(bracket.above, 0.0, steepest, near)
        return saddle.known(self._log_left(bracket))

    def _log_left(self, bracket: Bracket) -> float:
        """ln of what the infinite mass leaves of delta."""
        return math.log(max(self.delta - bracket.above.infinite, self.delta / 10))

    def gap(self, saddle: Saddle) -> float:
        return self.tolerance * max(saddle.epsilon, 0.0) * saddle.tilt

    def bounds(self, bracket: Bracket, line: Line, saddle: Saddle) -> tuple[float, float]:
        low, high = 0.0, math.inf
        left = self.delta - bracket.above.infinite
        if left > 0:
            above = Contour(composed=bracket.above, line=line, above=True)
            high = _crossing(above.log_delta, math.log(left), saddle)[1]
        left = self.delta - bracket.below.infinite
        if left > 0:
            below = Contour(composed=bracket.below, line=line, above=False)
            low = _crossing(below.log_delta, math.log(left), saddle)[0]
        return low, high

    def moved(self, bracket: Bracket, saddle: Saddle, high: float) -> Saddle:
        if not math.isfinite(high) or abs(high - saddle.epsilon) * saddle.tilt < 1:
            return saddle
        saddle = saddle_for_epsilon(bracket.above, high, 30 / self.tolerance, saddle.tilt)
        return saddle.known(self._log_left(bracket))


@dataclass(kw_only=True)
class DeltaGoal:
    epsilon: float
    tolerance: float

    def trivial(self, bracket: Bracket) -> tuple[float, float]:
        lost = bracket.above.infinite
        if bracket.above.highest <= self.epsilon:
            return bracket.below.infinite, lost
        return 0.0, 1.0

    def saddle(self, bracket: Bracket, near: float = 1.0) -> Saddle:
        return saddle_for_epsilon(bracket.above, self.epsilon, 30 / self.tolerance, near)

    def gap(self, saddle: Saddle) -> float:
        del saddle
        return self.tolerance

    def bounds(self, bracket: Bracket, line: Line, saddle: Saddle) -> tuple[float, float]:
        above = Contour(composed=bracket.above, line=line, above=True).log_delta(self.epsilon)
        below = Contour(composed=bracket.below, line=line, above=False).log_delta(self.epsilon)
        high = math.exp(min(above, 0.0)) + bracket.above.infinite
        return math.exp(min(below, 0.0)) + bracket.below.infinite, min(1.0, high)

    def moved(self, bracket: Bracket, saddle: Saddle, high: float) -> Saddle:
        left = high - bracket.below.infinite
        if left <= 0 or abs(math.log(left) - saddle.log_delta) < 1:
            return saddle
        return saddle.known(math.log(left))


def _crossing(
    log_delta: Callable[[float], float], goal: float, saddle: Saddle
) -> tuple[float, float]:
    """Epsilons >= 0 at which a falling ``log_delta`` is above and at most ``goal``, close together.

    (0, 0) where it is at most the goal already at 0. Far from the saddle bounds become useless, and
    the pair may then be wide: (0, ...) or (..., inf).
    """

    def excess(epsilon: float) -> float:
        return min(max(log_delta(epsilon) - goal, -60.0), 60.0)

    here = max(saddle.epsilon, 0.0)
    value = excess(here)
    if here == 0 and value <= 0:
        return 0.0, 0.0
    sign, step = (1.0, -1.0)[value <= 0], max(abs(value) / saddle.tilt, 1e-9 * here) * 1.5
    there = here
    for _ in range(60):
        before, there = there, max(0.0, here + sign * step)
        moved = excess(there)
        if (moved > 0) != (value > 0):
            return _narrowed(excess, *sorted((before, there)))
        if there == 0:
            return 0.0, 0.0
        step *= 2
    return (here, math.inf) if value > 0 else (0.0, here)


def _narrowed(excess: Callable[[float], float], low: float, high: float) -> tuple[float, float]:
    """excess(low) > 0 >= excess(high), as close to each other as matters."""
    close = max(1e-9 * high, 1e-300)
    from scipy.optimize import brentq  # takes long to import

    root = float(brentq(excess, low, high, xtol=close / 4, rtol=1e-14))
    left, right, step = root, root, close / 2
    while excess(left) <= 0:
        left, step = max(low, left - step), 2 * step
    step = close / 2
    while excess(right) > 0:
        right, step = min(high, right + step), 2 * step
    return left, right
