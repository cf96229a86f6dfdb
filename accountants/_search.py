"""Searches that end on the safe side, in few evaluations: an accountant is asked at each.

An *excess* is a number that is at most 0 exactly where a goal is met.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

from dpmech import Unattainable

__all__ = ["LARGEST_COUNT", "SLOPE", "Safe", "largest_count", "safe_point", "smallest_safe"]

# Scales beyond e^±60 times the law given are no noise anybody means.
_LOG_LIMIT = 60.0
# Numbers of runs above this are not told apart.
LARGEST_COUNT = 10**12
# Evaluations that may each cut less than half before one is spent on cutting half.
_PATIENCE = 3
# How fast ln(epsilon) falls in ln(scale), until it is known; and where it seems not to fall.
SLOPE, _FLAT = 0.85, 1e-12
# An excess as large as this stands for an infinite loss, or one far off.
_STEEPEST = 10.0


class Safe(NamedTuple):
    """A safe point, and how fast the excess falls there."""

    x: float
    slope: float


def smallest_safe(
    excess: Callable[[float], float],
    start: float,
    *,
    within: float,
    nowhere: str = f"No scale up to e^{_LOG_LIMIT:.0f} times the law given",
) -> float:
    """The ``x`` of :func:`safe_point` without any knowledge of the slope."""
    return safe_point(excess, Safe(start, SLOPE), within=within, nowhere=nowhere).x


def safe_point(
    excess: Callable[[float], float], start: Safe, *, within: float, nowhere: str
) -> Safe:
    """An x with ``excess(x) <= 0``, ``within`` of the smallest, for an excess that falls in x.

    ``within`` counts on the slope between the points next to the root, where it ends there.

    Raises Unattainable, in words that begin with ``nowhere``, where no x up to 60 above the start
    has it; its ``reached`` is e^excess.
    """
    known = functools.cache(excess)
    low, high = _bracket(known, start, within)
    if known(low) <= 0:
        return Safe(low, start.slope)  # near enough, or (almost) no noise already meets the goal
    if known(high) > 0:
        ratio = math.exp(known(high))
        raise Unattainable(
            f"{nowhere} meets the target; the loss is still {ratio:.6g} times it there. Allow a "
            "larger delta or epsilon.",
            reached=ratio,
        )
    return _closed(known, low, high, within)


def _bracket(excess: Callable[[float], float], start: Safe, within: float) -> tuple[float, float]:
    """(unsafe, safe), as near as the slope tells; twice the same safe one where it is near enough.

    Both have the same sign where there is none of the other for 60 either way.
    """
    first, slope = excess(start.x), start.slope
    if first <= 0 and _near(first, slope, within):
        return start.x, start.x
    way = 1 if first > 0 else -1
    here, step = start.x, min(max(abs(first) / slope + way * within / 3, within / 3), 0.7)
    while abs(here - start.x) < _LOG_LIMIT:
        there = here + way * step
        if (excess(there) > 0) != (first > 0):
            return (here, there) if way > 0 else (there, here)
        if way < 0 and excess(there) > excess(here) and _near(excess(there), slope, within):
            return there, there
        here, step = there, step * 1.6
    return (start.x, here) if way > 0 else (here, start.x)


def _near(value: float, slope: float, within: float) -> bool:
    """Whether a safe point is within reach of the root, at that slope."""
    return -value <= slope * within / 2


def _closed(excess: Callable[[float], float], low: float, high: float, within: float) -> Safe:
    """The safe end of [low, high] (unsafe, safe), once it is near to the root or to the other."""
    tried, aside, slow = [low, high], within / 3, 0
    while True:
        slope = _slope(excess, tried)
        if high - low <= within or _near(excess(high), slope, within):
            return Safe(high, slope)
        width = high - low
        edge = min(within, width) / 4
        flat = slow >= _PATIENCE or slope == _FLAT
        x = (low + high) / 2 if flat else tried[-1] + excess(tried[-1]) / slope + aside
        x = min(max(x, low + edge), high - edge)
        tried.append(x)
        # Next time aim a little to the other side of the root, so that both ends close in on it.
        if excess(x) <= 0:
            high, aside = x, -within / 3
        else:
            low, aside = x, within / 3
        slow = slow + 1 if high - low > width / 2 else 0


def _slope(excess: Callable[[float], float], tried: list[float]) -> float:
    """How fast the excess falls between the two points nearest to 0, moved to the list's end."""
    tried.sort(key=lambda x: -abs(excess(x)))  # stable: of equals the latest stay last
    a, b = tried[-2:]
    if max(abs(excess(a)), abs(excess(b))) > _STEEPEST:  # across a jump: no slope at all
        return _FLAT
    return max((excess(a) - excess(b)) / (b - a), _FLAT)


def largest_count(excess: Callable[[int], float], start: int = 1) -> int:
    """The largest whole n with ``excess(n) <= 0``, for an excess that rises in n.

    0 where not even 1 has it; :data:`LARGEST_COUNT` where that many have it.
    """
    known = functools.cache(excess)
    low, high = _counts_around(known, min(max(start, 1), LARGEST_COUNT))
    side, slow = 0, 0
    while high - low > 1:
        width = high - low
        n = _middle(low, high) if slow >= _PATIENCE or low == 0 else _aimed(known, low, high) + side
        n = min(max(n, low + 1), high - 1)
        if known(n) <= 0:
            low, side = n, 1
        else:
            high, side = n, 0
        slow = slow + 1 if high - low > width / 2 else 0
    return low


def _counts_around(excess: Callable[[int], float], start: int) -> tuple[int, int]:
    """(a count that is safe, or 0; one that is not, or one beyond the largest)."""
    n, step = start, 2.4 * abs(excess(start)) + 2 / start
    if excess(start) <= 0:
        while excess(n) <= 0:
            if n == LARGEST_COUNT:
                return n, n + 1
            low, n = n, _times(n, step, +1)
            step *= 2
        return low, n  # type: ignore[possibly-undefined]  # the loop ran: start is safe
    while excess(n) > 0:
        if n == 1:
            return 0, 1
        high, n = n, _times(n, step, -1)
        step *= 2
    return n, high  # type: ignore[possibly-undefined]  # the loop ran: start is not safe


def _times(n: int, step: float, way: int) -> int:
    """``n`` times e^±step, at least one away, between 1 and the largest count."""
    there = int(n * math.exp(way * min(step, 7.0))) + (way > 0)
    return min(max(there, 1), LARGEST_COUNT)


def _aimed(excess: Callable[[int], float], low: int, high: int) -> int:
    """Where the excess, a line in ln n between the ends, is 0."""
    share = excess(low) / (excess(low) - excess(high))
    return int(low * (high / low) ** share)


def _middle(low: int, high: int) -> int:
    return math.isqrt(max(low, 1) * high) if high > 4 * max(low, 1) else (low + high) // 2
