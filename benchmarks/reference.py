"""Composed privacy curves by contour quadrature: an independent reference.

    python benchmarks/reference.py --check      against mpmath at 30 digits
    python benchmarks/reference.py --write      the random workloads of tests/golden

With K_j(z) = ln E_P e^{z L_j}, quadrature over the densities, T_j releases and any lam > 0,

    delta(eps) = 1/(2 pi i) ∫ exp(sum_j T_j K_j(z) - z eps) / (z (z + 1)) dz  on Re z = lam,

taken by the trapezoidal rule on the line through the saddle point, where it converges
geometrically. One release is integrated over x instead, Laplace noise without sampling and
randomised response are finite sums. Values are estimates with an error estimate (two resolutions),
not bounds. The worse of the two directions is taken at the end.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

from reference_exact import exact_delta, has_exact_delta
from reference_laws import DIRECTIONS, Direction, Floats, Workload
from reference_line import Effort, Line, cumulants, line
from reference_single import single_delta
from scipy import optimize

# Shares of the saddle point's tilt that are tried.
_SHARES = (1.0, 0.6, 0.3, 0.1)
# What two resolutions may have in common.
_ROUNDING = 1e-12


@dataclass(frozen=True, kw_only=True)
class Value:
    """A reference value and its estimated relative error."""

    value: float
    error: float


@dataclass(frozen=True, kw_only=True)
class Task:
    """delta at ``epsilon``, or epsilon at ``delta`` where that is given, in one direction."""

    workload: Workload
    direction: Direction
    epsilon: float = 0.0
    delta: float | None = None


def _saddle_epsilon(k: Floats, lam: float) -> float:
    """The epsilon whose saddle point is lam."""
    return float(k[1]) - 1 / lam - 1 / (lam + 1)


def _saddle_log_delta(k: Floats, lam: float) -> float:
    """ln delta by the saddle-point approximation."""
    bend = k[2] + lam**-2 + (lam + 1) ** -2
    exponent = k[0] - lam * _saddle_epsilon(k, lam)
    return float(exponent - math.log(lam * (lam + 1)) - 0.5 * math.log(2 * math.pi * bend))


def _tilt(excess: Callable[[float], float]) -> float:
    """The tilt in [1e-6, 1e8] at which ``excess(lam)``, increasing, vanishes; or the nearest."""
    low, high = math.log(1e-6), 0.0
    while high < math.log(1e8) and excess(math.exp(high)) < 0:
        low, high = high, high + 1.5
    while high <= 0 and low < high - 1.6 and excess(math.exp(high - 1.5)) > 0:
        high -= 1.5
    return math.exp(
        optimize.brentq(lambda t: excess(math.exp(t)), low, high, xtol=1e-3)
        if excess(math.exp(low)) < 0 < excess(math.exp(high))
        else high
    )


def _answer(task: Task, lam: float, effort: Effort) -> tuple[Value, float]:
    """The answer from the line at ``lam``, and the share of its error that is the line's end."""
    coarse, fine = (
        line(task.workload, task.direction, lam, e) for e in (effort, effort.finer_still())
    )
    epsilon = task.epsilon if task.delta is None else _solved_on(fine, task.delta)
    delta, cut = fine.delta(epsilon), fine.cut(epsilon)
    error = abs(coarse.delta(epsilon) - delta) / max(abs(delta), 1e-320) + cut + _ROUNDING
    error += _missed(task, delta)
    if task.delta is None:
        return Value(value=delta, error=error), cut / error
    # d ln(delta) / d eps is about -lam.
    return Value(value=epsilon, error=error / (lam * max(abs(epsilon), 1e-300))), cut / error


def _refined(task: Task, lam: float, tolerance: float) -> Value:
    """The answer, with smaller tilts and then more effort until its error is within tolerance."""
    effort, best = Effort(), Value(value=math.nan, error=math.inf)
    # Where a workload is nearly an atom with a far, thin tail, the saddle point jumps from the one
    # to the other; any lam gives the same integral, and one before the jump is well conditioned.
    for tilt in (lam * share for share in _SHARES):
        found, of_cut = _answer(task, tilt, effort)
        if found.error <= best.error:
            best, best_cut, best_tilt = found, of_cut, tilt
        if best.error <= tolerance:
            return best
    while best.error > tolerance and not effort.exhausted():
        wider = replace(effort, terms=4 * effort.terms)
        effort = wider if best_cut > 0.5 else replace(effort, panels=2 * effort.panels)
        best, best_cut = _answer(task, best_tilt, effort)
    return best


def _missed(task: Task, delta: float) -> float:
    """By how much the delta at the answer misses the one asked for: none, were it well solved."""
    return 0.0 if task.delta is None or delta == 0 else abs(math.log(abs(delta) / task.delta))


def _solved_on(curve: Line, delta: float) -> float:
    middle, width = curve.centre - 1 / curve.lam - 1 / (curve.lam + 1), 1 / curve.lam
    return _solved(curve.delta, delta, middle - width, middle + width)


def _finite(task: Task, panels: int) -> Callable[[float], float] | None:
    """delta(eps) where it needs no contour: finite sums, and one release."""
    if len(task.workload) != 1:
        return None
    (release,) = task.workload
    if has_exact_delta(release):
        return lambda epsilon: exact_delta(release, task.direction, epsilon)
    if release.count == 1:
        return lambda epsilon: single_delta(release, task.direction, epsilon, panels)
    return None


def _saddle(task: Task) -> float:
    """The tilt whose saddle point answers the task, by the saddle-point approximation."""

    def excess(lam: float) -> float:
        k = cumulants(task.workload, task.direction, lam)
        if task.delta is None:
            return _saddle_epsilon(k, lam) - task.epsilon
        return math.log(task.delta) - _saddle_log_delta(k, lam)

    return _tilt(excess)


def _answered(task: Task, tolerance: float) -> Value:
    coarse, fine = _finite(task, 48), _finite(task, 128)
    if coarse is None or fine is None:
        return _refined(task, _saddle(task), tolerance)
    if task.delta is not None:
        epsilon = _solved(fine, task.delta, 0.0, 1.0)
        return Value(value=epsilon, error=_straddling((coarse, fine), task.delta, epsilon))
    delta = fine(task.epsilon)
    error = abs(coarse(task.epsilon) - delta) / max(delta, 1e-320)
    return Value(value=delta, error=error + _ROUNDING)


def _straddling(
    curves: tuple[Callable[[float], float], ...], delta: float, epsilon: float
) -> float:
    """The least power of ten by which eps, moved down and up, gets every curve past ``delta``."""
    for power in range(-12, 0):
        lower, upper = epsilon * (1 - 10.0**power), epsilon * (1 + 10.0**power)
        if all(curve(lower) >= delta >= curve(upper) for curve in curves):
            return 10.0**power
    return math.inf


def _solved(curve: Callable[[float], float], delta: float, low: float, high: float) -> float:
    """The eps >= 0 at which ``curve``, falling, is ``delta``."""
    while curve(high) > delta:
        low, high = high, 3 * high - 2 * low
    while low > 0 and curve(low) < delta:
        low, high = 3 * low - 2 * high, low
    low = max(low, 0.0)
    if curve(low) <= delta:
        return low

    def excess(epsilon: float) -> float:
        return math.log(max(curve(epsilon), 1e-320) / delta)

    return float(optimize.brentq(excess, low, high, xtol=1e-300, rtol=4e-14))


def _worse(workload: Workload, tolerance: float, **asked: float) -> Value:
    """The larger answer of the two directions, which coincide without sampling."""
    ways = DIRECTIONS if any(r.rate < 1 for r in workload) else DIRECTIONS[:1]
    tasks = [Task(workload=workload, direction=way, **asked) for way in ways]
    return max((_answered(task, tolerance) for task in tasks), key=lambda v: v.value)


def reference_delta(workload: Workload, epsilon: float, tolerance: float = 1e-10) -> Value:
    """delta at ``epsilon``, the worse of both directions."""
    return _worse(workload, tolerance, epsilon=epsilon)


def reference_epsilon(workload: Workload, delta: float, tolerance: float = 1e-10) -> Value:
    """epsilon at ``delta``, the worse of both directions."""
    return _worse(workload, tolerance, delta=delta)


def reference_false_negatives(workload: Workload, fpr: float) -> float:
    """The least false-negative rate of a test with false-positive rate ``fpr``.

    The trade-off curve is the highest of the lines that the privacy curve allows (Dong, Roth & Su
    2022, Proposition 2.12); here those of removal at eps >= 0, which are the binding ones where
    ``fpr`` is small.
    """

    def missed(epsilon: float) -> float:
        delta = reference_delta(workload, epsilon).value
        return -max(1 - delta - math.exp(epsilon) * fpr, math.exp(-epsilon) * (1 - delta - fpr))

    found = optimize.minimize_scalar(missed, bounds=(0, 20), method="bounded")
    return -float(found.fun)


def main() -> None:
    """Check the reference against mpmath, or write the random workloads."""
    from reference_check import check
    from reference_random import RANDOM, write

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="against mpmath and the golden table")
    parser.add_argument("--write", action="store_true", help=f"write {RANDOM.name} (an hour)")
    arguments = parser.parse_args()
    if arguments.check:
        sys.exit(check())
    if arguments.write:
        write()
    else:
        parser.print_help()


if __name__ == "__main__":
    main()
