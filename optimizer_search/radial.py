"""The best spherical law for a vector with an l2 sensitivity (mathematics.md §6.4, §7.7).

Symbols: ``d`` dimension, ``s`` sensitivity, ``f_a`` density on shell a, ``V_ab`` volume of the
points that lie in shell a about one centre and in shell b about the other.

Only falling densities are looked at: for them the shift s is the worst (mathematics.md §3), so
what is found holds for all shifts. One release is a linear program; more are a descent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import cast

import numpy as np

from dpmech import Noise, Target, Unattainable
from dpmech.noise import Floats
from dpmech.spherical import Spherical, SphericalGeneralizedGaussian
from dpmech.tabulated import TabulatedSpherical
from optimizer_search._newton import Descent, descend
from optimizer_search._radial_program import RadialProgram
from optimizer_search._shells import Shells
from optimizer_search.certify import certified
from optimizer_search.closed_forms import best_shape
from optimizer_search.problem import SearchProblem

_BETAS = (0.7, 1.0, 1.4, 1.7, 1.85, 2.0)
# What ln f falls by from one shell to the next, and how many there are at least and at most.
_FALL, _FEWEST, _MOST_SHELLS = 0.05, 1_000, 2_400
# Of the radius: what may lie further in or out, as a share of delta/T.
_LEFT_OUT = 1e-9
_ROUNDS, _GAIN = 3, 1e-5
# One release: shells per sensitivity, and how near epsilon must come to its budget's least.
_LP_SHELLS, _LP_MOST, _NEAR = 32, 700, 3e-4


def radial_candidates(problem: SearchProblem) -> Iterator[Noise]:
    """Ever better spherical laws: the best generalised Gaussian, then tables.

    Raises ValueError for scalars and for costs other than the variance of a coordinate.
    """
    if problem.dim == 1 or problem.cost.name != "variance":
        raise ValueError(
            f"Expected a vector and the cost variance for the family radial, got dim={problem.dim} "
            f"and the cost {problem.cost}."
        )
    return _candidates(problem)


def _candidates(problem: SearchProblem) -> Iterator[Noise]:
    law, value = _start(problem), math.inf
    yield law
    # The program of one release is solved once and for all; a descent at a target starts anew.
    for _ in range(_ROUNDS if problem.least_cost and problem.steps > 1 else 1):
        law = _one_release(problem, law) if problem.steps == 1 else _releases(problem, law)
        yield law
        found = certified(problem, law)
        law, before = cast("Spherical", found.law), value
        value = min(value, found.value(problem))
        if value > (1 - _GAIN) * before:
            break


def _start(problem: SearchProblem) -> Spherical:
    """The best spherical generalised Gaussian, scaled to the problem."""
    laws = [
        SphericalGeneralizedGaussian(scale=1.0, beta=beta, dim=problem.dim, step=_step(problem))
        for beta in _BETAS
    ]
    return cast("Spherical", best_shape(problem, laws))


def _step(problem: SearchProblem) -> float:
    """The start need not be fine, and one release is slow to calibrate by many shells."""
    return 0.5 if problem.steps == 1 else 0.1


def _releases(problem: SearchProblem, law: Spherical) -> Spherical:
    """The table that the descent reaches from ``law``."""
    edges = _shells_near(problem, law)
    shells = Shells(
        edges=edges,
        dim=problem.dim,
        shifts=(problem.sensitivity,),
        problem=problem,
        costs=mean_squares(edges, problem.dim) / problem.dim,
    )
    how = Descent(budget=problem.cost.of(law), falling=True)
    state = descend(shells, log_densities(law, edges), how)
    return TabulatedSpherical(edges=tuple(edges), masses=tuple(state.masses), dim=problem.dim)


def _shells_near(problem: SearchProblem, law: Spherical) -> Floats:
    """Radii where ``law`` has its mass: even in its ln f, or ``cells`` per sensitivity."""
    if isinstance(law, TabulatedSpherical):
        return np.array(law.edges)
    low, high = _reach(law, _LEFT_OUT * problem.delta / problem.steps)
    if problem.cells is not None:
        width = problem.sensitivity / problem.cells
        return np.append(0.0, width * np.arange(max(1, low // width), math.ceil(high / width) + 1))
    beta = law.beta if isinstance(law, SphericalGeneralizedGaussian) else 1.0
    first, last = max(low, 1e-3 * high) ** beta, high**beta
    inside = (law.shells.edges[1:] > low) & (law.shells.edges[1:] < high)
    fall = float(np.ptp(law.shells.log_density[inside]))
    count = int(np.clip(fall / _FALL, _FEWEST, _MOST_SHELLS))
    return np.append(0.0, np.linspace(first, last, count) ** (1 / beta))


def _reach(law: Spherical, tail: float) -> tuple[float, float]:
    """Radii that all but ``tail`` of a spherical law lies between; more than twice the outer."""
    shells = law.shells
    inside = np.cumsum(shells.masses)
    outside = np.cumsum(shells.masses[::-1])[::-1]
    low = float(shells.edges[int(np.searchsorted(inside, tail))])
    return low, float(shells.edges[min(int(np.sum(outside > tail)), len(inside))])


def log_densities(law: Spherical, edges: Floats) -> Floats:
    """ln of the density of a spherical law on each of the shells, up to a constant.

    A law's own steps are smoothed: its density is read off between the middles of its shells.
    """
    shells, dim = law.shells, int(law.dim)
    middle, at = _middle(shells.edges, dim), _middle(edges, dim)
    slope = (shells.log_density[-1] - shells.log_density[-2]) / (middle[-1] - middle[-2])
    beyond = np.maximum(at - middle[-1], 0.0)
    return np.interp(at, middle, shells.log_density) + slope * beyond


def _middle(edges: Floats, dim: int) -> Floats:
    """The radii that halve the volumes of the shells."""
    with np.errstate(divide="ignore"):
        ratio = (edges[:-1] / edges[1:]) ** dim
    return edges[1:] * ((1 + ratio) / 2) ** (1 / dim)


def mean_squares(edges: Floats, dim: int) -> Floats:
    """The mean of |x|^2 on each shell."""
    with np.errstate(divide="ignore"):
        ratio = edges[:-1] / edges[1:]
    return edges[1:] ** 2 * dim / (dim + 2) * (1 - ratio ** (dim + 2)) / (1 - ratio**dim)


def _one_release(problem: SearchProblem, law: Spherical) -> Spherical:
    """The falling table of least cost at an epsilon; that epsilon is sought for a budget."""
    program = _program(problem, law)
    if isinstance(problem.target, Target):
        return program.solved(*before_sampling(problem, problem.target.epsilon))
    # The least cost falls as epsilon grows: the epsilon at which it is the budget, by bisection.
    high = certified(problem, law).epsilon
    low, best = high / 2, law
    while high - low > _NEAR * high:
        middle = (low + high) / 2
        try:
            found = program.solved(*before_sampling(problem, middle))
        except Unattainable:
            low = middle
            continue
        if problem.cost.of(found) <= problem.target.cost:
            high, best = middle, found
        else:
            low = middle
    return best


def _program(problem: SearchProblem, law: Spherical) -> RadialProgram:
    _, high = _reach(law, 1e-2 * problem.delta)
    m = problem.cells or _LP_SHELLS
    end = high + problem.sensitivity
    m = max(1, min(m, math.floor(_LP_MOST * problem.sensitivity / end)))
    edges = problem.sensitivity / m * np.arange(math.ceil(end * m / problem.sensitivity) + 1.0)
    return RadialProgram(
        edges=edges,
        s=problem.sensitivity,
        dim=problem.dim,
        costs=mean_squares(edges, problem.dim) / problem.dim,
    )


def before_sampling(problem: SearchProblem, epsilon: float) -> tuple[float, float]:
    """The (epsilon, delta) of an unsampled release that give those wanted of a sampled one.

    H of ((1-q) Q + q P, Q) at 1 + q (gamma - 1) is q times that of (P, Q) at gamma; additions cost
    less (Zhu, Dong & Wang 2022).
    """
    q = problem.sampling.rate
    return math.log1p(math.expm1(epsilon) / q), problem.delta / q
