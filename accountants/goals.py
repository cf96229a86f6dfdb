"""What a mechanism may be calibrated to, beside an (epsilon, delta): what an attack may achieve.

Both goals speak about any attack that decides from the outcome whether a record took part.
"""

from __future__ import annotations

import functools
import math
import sys
from dataclasses import dataclass, replace

from scipy import special

from accountants.base import Accountant, checked_delta
from accountants.curves import best_level
from accountants.pld import PLD
from dpmech import Target

__all__ = [
    "Advantage",
    "DeltaAt",
    "ErrorRates",
    "Goal",
    "excess",
    "met_target",
    "pinned",
    "proved_interval",
]


@dataclass(frozen=True, kw_only=True)
class Advantage:
    """No attack has a true positive rate more than ``bound`` above its false positive rate.

    ``delta``: where the plan states its epsilon.
    """

    bound: float
    delta: float

    def __post_init__(self) -> None:
        if not 0 < self.bound < 1:
            raise ValueError(f"Expected an advantage={self.bound} in (0, 1).")
        if not checked_delta(self.delta) < self.bound:
            raise ValueError(
                f"Expected delta={self.delta} below the advantage {self.bound}: at a delta as "
                "large as that the plan's epsilon would be 0."
            )


@dataclass(frozen=True, kw_only=True)
class ErrorRates:
    """No attack with a false positive rate of ``fpr`` misses less than a share of ``fnr``.

    ``delta``: where the plan states its epsilon.
    """

    fnr: float
    fpr: float
    delta: float

    def __post_init__(self) -> None:
        if not 0 < self.fpr < 1:
            raise ValueError(f"Expected fpr={self.fpr} in (0, 1).")
        if not 0 < self.fnr < 1 - self.fpr:
            raise ValueError(
                f"Expected fnr={self.fnr} in (0, 1 - fpr) = (0, {1 - self.fpr:g}): an attack that "
                "guesses reaches the upper end."
            )
        if not checked_delta(self.delta) < 1 - self.fpr - self.fnr:
            raise ValueError(
                f"Expected delta={self.delta} below 1 - fpr - fnr = {1 - self.fpr - self.fnr:g}: "
                "at a delta as large as that the plan's epsilon would be 0."
            )


@dataclass(frozen=True, kw_only=True)
class DeltaAt:
    """delta(``epsilon``) is at most ``bound``."""

    epsilon: float
    bound: float


Goal = Target | Advantage | ErrorRates


def pinned(goal: Goal, accountant: Accountant | None = None) -> Target | DeltaAt:
    """A goal that costs one question to an accountant, and that implies ``goal``.

    For error rates: one line under the trade-off curve. Any epsilon gives one (the one that is best
    for a Gaussian, or for the accountant where there is one): a share delta(e^epsilon) of at most
    ``1 - fnr - e^epsilon fpr`` is enough, and so is ``1 - fpr - e^epsilon fnr``.
    """
    if isinstance(goal, Target):
        return goal
    if isinstance(goal, Advantage):
        return DeltaAt(epsilon=0.0, bound=goal.bound)
    level = _gaussian_level(goal)
    if accountant is not None:
        level = best_level(accountant, goal.fpr, near=level)
    first, other = (goal.fnr, goal.fpr) if level >= 0 else (goal.fpr, goal.fnr)
    # Where nothing is left, such a line proves nothing; the tangent at level 0 always has some.
    bound = 1 - first - math.exp(abs(level)) * other
    if bound <= 0:
        return DeltaAt(epsilon=0.0, bound=1 - goal.fpr - goal.fnr)
    return DeltaAt(epsilon=abs(level), bound=bound)


def excess(goal: Target | DeltaAt, accountant: Accountant) -> float:
    """ln of (lost / allowed), which falls as privacy grows; at most 0 where the goal is met.

    Of one release delta is asked for: a law in steps keeps its epsilon over a range of scales.
    """
    if isinstance(goal, Target):
        if isinstance(accountant, PLD) and accountant.ledger.runs == 1:
            return _log_ratio(accountant.delta(goal.epsilon), goal.delta)
        return _log_ratio(proved_interval(accountant, goal.delta)[1], goal.epsilon)
    return _log_ratio(_as_fine_as_needed(accountant, goal).delta(goal.epsilon), goal.bound)


def _as_fine_as_needed(accountant: Accountant, goal: DeltaAt) -> Accountant:
    """An accountant whose error in ln delta is no more than its error in ln epsilon would be.

    Above epsilon 0 delta falls several times as fast as epsilon while noise grows.
    """
    if isinstance(accountant, PLD) and goal.epsilon > 0:
        return replace(accountant, tolerance=min(3 * accountant.tolerance, 0.1))
    return accountant


@functools.lru_cache(maxsize=8)  # a search ends where the plan then asks for both bounds
def proved_interval(accountant: Accountant, delta: float) -> tuple[float | None, float]:
    """(lower, upper) bounds on epsilon at ``delta``."""
    return accountant.epsilon_interval(delta)


def met_target(goal: Goal, epsilon: float) -> Target:
    """The (epsilon, delta) that a plan for the goal keeps: the proved one, for other goals."""
    if isinstance(goal, Target):
        return goal
    return Target(epsilon=max(epsilon, sys.float_info.min), delta=goal.delta)


def _gaussian_level(goal: ErrorRates) -> float:
    """ln of minus the slope at fpr of the Gaussian trade-off curve through (fpr, fnr)."""
    above = float(-special.ndtri(goal.fpr))
    mu = above - float(special.ndtri(goal.fnr))
    return mu * above - mu * mu / 2


def _log_ratio(lost: float, allowed: float) -> float:
    """ln(lost/allowed), kept finite so that a search can interpolate."""
    return min(max(math.log(max(lost, 1e-300) / allowed), -50.0), 50.0)
