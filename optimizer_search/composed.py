"""The best law for many releases of a scalar, the accountant in the loop (mathematics.md §7.6).

Symbols: ``s`` sensitivity, ``h = s/m`` width of the lattice's cells, ``T`` steps, ``q`` rate.

First among densities that fall, for which the shift s is the worst; then, from there, among all
densities on a lattice of s, against every shift. Both are local, and start from the best
generalised Gaussian, or from the staircase law where that is better (next to pure privacy).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from dpmech import GeneralizedGaussian, NoDominatingPair, Noise, Staircase, Target, Unattainable
from dpmech.noise import Floats
from dpmech.tabulated import Tabulated
from optimizer_search._newton import Descent, descend
from optimizer_search._shells import Shells
from optimizer_search.certify import proved
from optimizer_search.closed_forms import best_of, best_shape
from optimizer_search.problem import SearchProblem

_BETAS = (1.0, 1.2, 1.35, 1.5, 1.75, 2.0)
# Cells per sensitivity, and per standard deviation where that is smaller.
_CELLS, _LEAST_CELLS, _MOST_CELLS, _WIDE = 16, 4, 32, 5.0
# The table is even while more than this share of delta/T is beyond, and its cells grow from there.
_EVEN, _GROWTH = 1e-2, 1.05
# It ends where the widest law has this share of delta/T left.
_LEFT_OUT = 1e-10
# Rounds of: best shape at a cost, then the cost at which it meets the target, less a spare part.
_ROUNDS = 4
# Edges nearer to those of a staircase law, in cells, are left out.
_APART = 1e-3
# Further below the largest ln f is as good as nothing.
_NOTHING = 400.0
_SPARE, _FAR = 5e-5, 0.5


def composed_candidates(problem: SearchProblem) -> Iterator[Noise]:
    """Ever better laws for the problem: the best start, then the falling table, then any table.

    Raises ValueError for vectors, for a single release and for costs that are no mean.
    """
    if problem.dim != 1 or problem.steps == 1 or not problem.cost.linear:
        raise ValueError(
            "Expected several releases of a scalar and a cost that is a mean for the family "
            f"composed, got steps={problem.steps}, dim={problem.dim} and the cost {problem.cost}."
        )
    return _candidates(problem)


def _candidates(problem: SearchProblem) -> Iterator[Noise]:
    law = _start(problem)
    yield law
    for falling in (True, False):
        for table in _tables(problem, law, falling=falling):
            yield table
            law = table


def _tables(problem: SearchProblem, law: Noise, *, falling: bool) -> Iterator[Noise]:
    """The best tables near ``law``: at the budget, or at costs ever nearer to meeting the target.

    The cost is what varies, as the scale cannot: at another scale a lattice is not one of s.
    """
    seen, budget = list[tuple[float, float]](), problem.cost.of(law)
    for _ in range(_ROUNDS):
        law = _best_table(problem, law, Descent(budget=budget, falling=falling))
        yield law
        if not isinstance(problem.target, Target):
            return
        aim = (1 - _SPARE) * problem.target.epsilon
        excess = math.log(proved(problem, law).epsilon / aim)
        if -_SPARE <= excess <= _SPARE:
            return
        seen.append((excess, math.log(budget)))
        wider = law.scaled(math.exp(min(max(excess, -_FAR), _FAR)))
        budget = math.exp(_root(seen, math.log(problem.cost.of(wider))))


def _root(seen: list[tuple[float, float]], guess: float) -> float:
    """Where the excess vanishes, by the last two points seen; the guess where they do not tell."""
    if len(seen) < 2 or seen[-1][0] == seen[-2][0]:
        return guess
    (x, y), (last_x, last_y) = seen[-2:]
    slope = (last_y - y) / (last_x - x)
    return last_y - last_x * slope if slope < 0 else guess


def _start(problem: SearchProblem) -> Noise:
    """The best generalised Gaussian or staircase law, scaled to the problem."""
    laws = [GeneralizedGaussian(scale=1.0, beta=beta) for beta in _BETAS]
    found = proved(problem, best_shape(problem, laws))
    try:
        stairs = best_of(problem, "staircase")
    except (NoDominatingPair, Unattainable):
        return found.law
    return min(found, stairs, key=lambda candidate: candidate.value(problem)).law


def _best_table(problem: SearchProblem, law: Noise, how: Descent) -> Tabulated:
    """The table that the descent reaches from ``law``."""
    s, m = problem.sensitivity, _cells(problem, law)
    edges, shifts = _edges(problem, law, s / m), [s * j / m for j in range(1, m + 1)]
    if how.falling:
        edges, shifts = _with_steps(edges, law), [s]
    costs = problem.cost.mean_on(edges)
    shells = Shells(edges=edges, dim=1, shifts=shifts, problem=problem, costs=costs)
    state = descend(shells, log_densities(law, shells.edges), how)
    return Tabulated(edges=tuple(shells.edges), masses=tuple(state.masses))


def _cells(problem: SearchProblem, law: Noise) -> int:
    """m."""
    ratio = problem.sensitivity / law.std
    usual = math.ceil(_CELLS * max(ratio, min(1.0, (_WIDE * ratio) ** 2)))
    return problem.cells or min(max(_LEAST_CELLS, usual), _MOST_CELLS)


def _edges(problem: SearchProblem, law: Noise, step: float) -> Floats:
    """Of cells on the lattice for tables near ``law``."""
    share = problem.delta / problem.steps
    end = float(_widest(problem, law).isf(_LEFT_OUT * share))
    return grown(step, even=float(law.isf(_EVEN * share)), end=end)


def _with_steps(edges: Floats, law: Noise) -> Floats:
    """The edges and those of a law in steps: densities that fall may have them anywhere."""
    if isinstance(law, Tabulated) and law.step is None:
        return np.array(law.edges)
    if not isinstance(law, Staircase):
        return edges
    steps = law.width * (np.arange(math.ceil(edges[-1] / law.width)) + law.gamma)
    apart = np.min(np.abs(edges[:, None] - steps), axis=1) > _APART * float(edges[1])
    apart[0] = True
    return np.sort(np.asarray(np.append(edges[apart], steps), dtype=np.float64))


def _widest(problem: SearchProblem, law: Noise) -> Noise:
    """Laplace noise of the cost of ``law``: no table of interest has longer tails."""
    laplace = GeneralizedGaussian(scale=1.0, beta=1.0)
    return laplace.scaled(problem.cost.factor(laplace, problem.cost.of(law)))


def grown(step: float, *, even: float, end: float) -> Floats:
    """Edges at multiples of ``step``: all of them up to ``even``, then in growing cells."""
    places, width = list(range(math.ceil(even / step) + 1)), 1.0
    while places[-1] * step < end:
        width *= _GROWTH
        places.append(places[-1] + math.floor(width))
    return step * np.array(places, dtype=np.float64)


def log_densities(law: Noise, edges: Floats) -> Floats:
    """ln of the mean density of a scalar law on each cell."""
    log_tail = law.logsf(edges)
    # Where a bounded law has nothing, the descent starts from next to nothing.
    log_tail = np.maximum(log_tail, -_NOTHING * np.arange(1.0, len(edges) + 1))
    drop = np.minimum(np.diff(log_tail), -1e-300)
    theta = log_tail[:-1] + np.log(-np.expm1(drop)) - np.log(np.diff(edges))
    return np.maximum(theta, np.max(theta) - _NOTHING)
