"""The published LMO search: every grid point, one accounting, both selection rules, one proof."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import cast

import numpy as np

from dpmech import Target, Unattainable
from dpmech.noise import Floats
from optimizer_search import grid
from optimizer_search.certify import proved
from optimizer_search.cost import Cost
from optimizer_search.problem import Candidate, SearchProblem, SearchResult

# The proof of a candidate is tighter than the ranking; only this many near misses are tried.
_PROOFS = 12
_TOLERANCE = 1e-3


def search_lmo_grid(problem: SearchProblem) -> SearchResult:
    """Evaluate all 40 824 published points and return the cheapest that meets the target.

    **Guarantees.** Under ``exact`` accounting the winner's epsilon is proved by the PLD accountant
    and is at most the target's. Under ``paper`` accounting the winner is what the paper's rule
    picks with its Renyi bound confined to valid orders, and ``epsilon`` is again what the PLD
    accountant proves.

    Raises Unattainable where no point of the grid meets the target.
    """
    began, target = time.perf_counter(), _checked_target(problem)
    costs, epsilons = _costs(problem.cost), grid_epsilons(problem)
    for index in _candidates(problem, costs, epsilons):
        law = grid.grid_law(index)
        found = proved(problem, law)
        if found.epsilon <= target.epsilon or problem.accounting == "paper":
            return SearchResult(
                problem=problem,
                family="lmo-grid",
                law=law,
                cost=float(costs[index]),
                claimed_epsilon=float(epsilons[index]),
                epsilon=found.epsilon,
                lower_epsilon=found.lower_epsilon,
                tables={"epsilons": epsilons, "costs": costs},
                seconds=time.perf_counter() - began,
                status=_status(problem, epsilons, target),
            )
    raise Unattainable(
        f"None of the {grid.GRID_SIZE} grid points meets epsilon={target.epsilon:g}; the "
        f"most private has {np.min(epsilons):.6g}. Raise epsilon, or use another family.",
        reached=float(np.min(epsilons)),
    )


def _checked_target(problem: SearchProblem) -> Target:
    if not isinstance(problem.target, Target) or problem.dim != 1:
        raise ValueError(
            "Expected a target (epsilon) and a scalar query for the lmo-grid: its points are not "
            f"rescaled to a budget; got {problem.target} and dim={problem.dim}."
        )
    return problem.target


def _status(problem: SearchProblem, epsilons: Floats, target: Target) -> str:
    within = int(np.sum(epsilons <= target.epsilon))
    return (
        f"Best of {within} grid points within the target (of {grid.GRID_SIZE}) under the "
        f"{problem.accounting} accounting; its epsilon is proved by the PLD accountant."
    )


def grid_epsilons(problem: SearchProblem) -> Floats:
    """Epsilon of all 40 824 points under the problem's accounting, shape (40824,)."""
    s, delta = problem.sensitivity, problem.delta
    if problem.accounting == "paper":
        return grid.paper_epsilon(s, delta, problem.steps)
    return grid.composed_epsilon(s, delta, problem.steps, problem.sampling.rate)


def _costs(cost: Cost) -> Floats:
    if cost.name not in ("usefulness", "l1", "variance"):
        raise ValueError(f"Expected the cost usefulness, l1 or variance of the grid, got {cost}.")
    if cost.name == "usefulness":
        return 1 - grid.usefulness(cast("float", cost.parameter))
    return grid.moments()[0 if cost.name == "l1" else 1]


def _candidates(problem: SearchProblem, costs: Floats, epsilons: Floats) -> Iterator[int]:
    """Indices to prove, cheapest first: near misses that a proof may save, then the safe ones.

    The ranking epsilon is an upper bound (up to its quadrature), so the first safe point nearly
    always passes, and how far its proof lies below its ranking tells how far beyond the target to
    look.
    """
    target = _checked_target(problem).epsilon
    safe = np.flatnonzero(epsilons <= target)
    if len(safe):
        safe = safe[np.argsort(costs[safe], kind="stable")]
    if problem.accounting == "exact" and problem.steps > 1 and len(safe):
        first = int(safe[0])
        margin = epsilons[first] / _lower(problem, first)
        near = np.flatnonzero(
            (epsilons > target) & (epsilons <= target * margin) & (costs < costs[first])
        )
        yield from (int(i) for i in near[np.argsort(costs[near], kind="stable")][:_PROOFS])
    yield from (int(i) for i in safe[:_PROOFS])


def _lower(problem: SearchProblem, index: int) -> float:
    found: Candidate = proved(problem, grid.grid_law(index), _TOLERANCE)
    return found.lower_epsilon
