"""One release at (epsilon, delta): the noise of least cost, and a proof of what any must cost.

The laws come from linear programs, over falling laws under the full shift and over lattice laws
under every shift; the bounds from the programs' multipliers, whatever those are.

Sampling at rate q is no new problem. The remove direction's delta at gamma = e^epsilon is q times
the release's own at gamma0 = 1 + (gamma - 1)/q, exactly. The add direction's is a times the one at
q gamma/a, where a = 1 - (1 - q) gamma (0 where a <= 0); as a <= q and q gamma/a >= gamma0, it is
never larger.

Source: mathematics.md §3 and §7.4. Symbols: ``gamma = e^epsilon``, ``q`` sampling rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from dpmech import Noise
from optimizer_search._lp_lattice import Constraint
from optimizer_search._lp_release import Release, release
from optimizer_search.cost import Cost
from optimizer_search.problem import Bound, Budget, SearchProblem

_METHOD = "dual of the linear program over all laws"
# Between these epsilons a budget's is looked for, to this accuracy, in so many programs.
_LEAST, _MOST = 1e-4, 14.0
_CLOSE, _TRIES = 1e-4, 12
# Laws aim so far below the budget, to be scaled up to it (many a law that is scaled down a little
# has twice the epsilon), and bounds so far above it.
_ASIDE = 2e-4
# Log-steps at most.
_STRIDE = 1.5
# Values are taken to fall at least so fast with epsilon, in logarithms.
_FLATTEST = -0.05


def single_release_candidates(problem: SearchProblem) -> Iterator[Noise]:
    """The best laws for one release of a scalar: falling ones, then any.

    Raises ValueError for more releases, for vectors, for costs that are not means, and where delta
    is not below the sampling rate.
    """
    reason = _reason(problem)
    if reason is not None:
        raise ValueError(reason)
    return _laws(problem)


def _laws(problem: SearchProblem) -> Iterator[Noise]:
    yield from _release(problem, _epsilon(problem)).laws


def single_release_bound(problem: SearchProblem) -> Bound | None:
    """What any law must cost at the target, or the epsilon any has at the budget; None if unknown.

    **Guarantees.** Proved for every law, whatever the linear programs' accuracy: with weights on
    events that make up a certificate (mathematics.md §7.4).
    """
    if _reason(problem) is not None:
        return None
    if not isinstance(problem.target, Budget):
        bound = _release(problem, _epsilon(problem)).bound
        return Bound(value=bound, on="cost", method=_METHOD) if bound > 0 else None
    value = _least_epsilon(problem, problem.target.cost)
    return None if value is None else Bound(value=value, on="epsilon", method=_METHOD)


def least_cost_under(constraints: Sequence[Constraint], cost: Cost, sensitivity: float) -> float:
    """What any law must cost that keeps H_gamma(X + t || X) <= delta at all |t| <= sensitivity.

    ``constraints``: pairs (gamma, delta) to keep, with gamma >= 1 and delta in (0, 1).

    **Guarantees.** A proved lower bound on E c(|X|), whatever the linear programs' accuracy.

    Raises ValueError for other constraints, or none, and for costs that are not means.

    >>> round(least_cost_under([(1.0, 0.1)], Cost(name="l1"), 1.0), 2)  # uniform noise: 1/(4 delta)
    2.5
    """
    if not constraints or not cost.linear:
        raise ValueError(f"Expected constraints and a cost that is a mean, got {cost}.")
    for gamma, delta in constraints:
        if not (1 <= gamma < math.inf and 0 < delta < 1):
            raise ValueError(f"Expected gamma={gamma} at 1 or above and delta={delta} in (0, 1).")
    return release(tuple(constraints), cost, sensitivity).bound


def _reason(problem: SearchProblem) -> str | None:
    """Why the problem is not one of this module's."""
    if problem.steps != 1 or problem.dim != 1:
        return f"Expected one release of a scalar, got {problem.steps} of dim={problem.dim}."
    if not problem.cost.linear:
        return f"Expected a cost that is a mean, got {problem.cost}."
    if problem.delta >= problem.sampling.rate:
        return f"Expected delta={problem.delta} below the sampling rate={problem.sampling.rate}."
    return None


def _release(problem: SearchProblem, epsilon: float) -> Release:
    """The release without sampling whose laws are those of the problem at ``epsilon``."""
    rate = problem.sampling.rate
    constraint = 1 + math.expm1(epsilon) / rate, problem.delta / rate
    return release((constraint,), problem.cost, problem.sensitivity, problem.cells)


def _epsilon(problem: SearchProblem) -> float:
    """The target's epsilon, or the one at which the best law costs the budget."""
    if not isinstance(problem.target, Budget):
        return problem.target.epsilon
    budget = problem.target.cost

    def value(epsilon: float) -> float:
        return problem.cost.of(_release(problem, epsilon).laws[-1])

    tried = _solved(value, budget * (1 - _ASIDE), _guess(problem, budget))
    within = [epsilon for epsilon, cost in tried.items() if cost <= budget]
    return min(within, default=max(tried))


def _guess(problem: SearchProblem, cost: float) -> float:
    """The epsilon of Laplace noise of this size."""
    size = math.sqrt(cost / 2) if problem.cost.name == "variance" else cost
    return min(max(problem.sensitivity / size, 10 * _LEAST), _MOST / 2)


def _least_epsilon(problem: SearchProblem, budget: float) -> float | None:
    """The largest epsilon met at which every law is proved to cost more than the budget."""

    def value(epsilon: float) -> float:
        return _release(problem, epsilon).bound

    tried = _solved(value, budget * (1 + _ASIDE), _epsilon(problem))
    return max((epsilon for epsilon, cost in tried.items() if cost > budget), default=None)


def _solved(value: Callable[[float], float], goal: float, start: float) -> dict[float, float]:
    """What a secant search met for where a value that falls is the goal: epsilons and values."""
    tried: dict[float, float] = {}
    x, slope, last = math.log(start), -1.0, None
    for _ in range(_TRIES):
        here = math.exp(x)
        tried[here] = value(here)
        off = math.log(max(tried[here], 1e-300) / goal)
        if last is not None and x != last[0]:
            slope = min((off - last[1]) / (x - last[0]), _FLATTEST)
        step = min(max(-off / slope, -_STRIDE), _STRIDE)
        last, x = (x, off), min(max(x + step, math.log(_LEAST)), math.log(_MOST))
        if abs(off) <= _CLOSE or x == last[0]:
            break
    return tried
