"""The published LMO search: every grid point, one accounting, both selection rules, one proof."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from accountants import PLD, calibrate
from dpmech import Gaussian, GeneralizedGaussian, Laplace, Noise, Unattainable
from dpmech.noise import Floats
from optimizer_search import grid
from optimizer_search.problem import Baseline, Cost, SearchProblem, SearchResult

# The proof of a candidate is tighter than the ranking; only this many near misses are tried.
_PROOFS = 12
_PROOF_TOLERANCE = 1e-3
_BETAS = (1.1, 1.25, 1.4, 1.6, 1.8)


def search_lmo_grid(problem: SearchProblem) -> SearchResult:
    """Evaluate all 40 824 published points and return the cheapest that meets the target.

    **Guarantees.** Under ``exact`` accounting the winner's epsilon is proved by the PLD accountant
    and is at most the target's. Under ``paper`` accounting the winner is what the paper's rule
    picks with its Renyi bound confined to valid orders, and ``epsilon`` is again what the PLD
    accountant proves.

    Raises Unattainable where no point of the grid meets the target.
    """
    began = time.perf_counter()
    costs, epsilons = _costs(problem.cost), grid_epsilons(problem)
    for index in _candidates(problem, costs, epsilons):
        law = grid.grid_law(index)
        low, high = proved(problem, law)
        if high <= problem.target.epsilon or problem.accounting == "paper":
            return SearchResult(
                problem=problem,
                law=law,
                cost=float(costs[index]),
                claimed_epsilon=float(epsilons[index]),
                epsilon=high,
                lower_epsilon=low,
                epsilons=epsilons,
                costs=costs,
                seconds=time.perf_counter() - began,
                status=_status(problem, epsilons),
            )
    raise Unattainable(
        f"None of the {grid.GRID_SIZE} grid points meets epsilon={problem.target.epsilon:g}; the "
        f"most private has {np.min(epsilons):.6g}. Raise epsilon, or rescale a law (calibrate).",
        reached=float(np.min(epsilons)),
    )


def _status(problem: SearchProblem, epsilons: Floats) -> str:
    within = int(np.sum(epsilons <= problem.target.epsilon))
    return (
        f"Best of {within} grid points within the target (of {grid.GRID_SIZE}) under the "
        f"{problem.accounting} accounting; its epsilon is proved by the PLD accountant."
    )


def grid_epsilons(problem: SearchProblem) -> Floats:
    """Epsilon of all 40 824 points under the problem's accounting, shape (40824,)."""
    s, delta = problem.sensitivity, problem.target.delta
    if problem.accounting == "paper":
        return grid.paper_epsilon(s, delta, problem.steps)
    return grid.composed_epsilon(s, delta, problem.steps, problem.sampling.rate)


def _costs(cost: Cost) -> Floats:
    if cost.name == "usefulness":
        return 1 - grid.usefulness(cost.gamma)
    return grid.moments()[0 if cost.name == "l1" else 1]


def _candidates(problem: SearchProblem, costs: Floats, epsilons: Floats) -> Iterator[int]:
    """Indices to prove, cheapest first: near misses that a proof may save, then the safe ones.

    The ranking epsilon is an upper bound (up to its quadrature), so the first safe point nearly
    always passes, and how far its proof lies below its ranking tells how far beyond the target to
    look.
    """
    target = problem.target.epsilon
    safe = np.flatnonzero(epsilons <= target)
    if len(safe):
        safe = safe[np.argsort(costs[safe], kind="stable")]
    if problem.accounting == "exact" and problem.steps > 1 and len(safe):
        first = int(safe[0])
        margin = epsilons[first] / proved(problem, grid.grid_law(first))[0]
        near = np.flatnonzero(
            (epsilons > target) & (epsilons <= target * margin) & (costs < costs[first])
        )
        yield from (int(i) for i in near[np.argsort(costs[near], kind="stable")][:_PROOFS])
    yield from (int(i) for i in safe[:_PROOFS])


def proved(problem: SearchProblem, law: Noise) -> tuple[float, float]:
    """(lower, upper) epsilon of a law for the problem, by the PLD accountant."""
    accountant = PLD(tolerance=_PROOF_TOLERANCE).compose(problem.mechanism(law), problem.steps)
    return accountant.epsilon_interval(problem.target.delta)


def baselines(problem: SearchProblem) -> tuple[Baseline, ...]:
    """Gaussian, Laplace and the best generalised Gaussian, each rescaled to meet the target."""
    generalised = [rescaled(problem, GeneralizedGaussian(scale=1.0, beta=b)) for b in _BETAS]
    return (
        rescaled(problem, Gaussian(sigma=1.0)),
        rescaled(problem, Laplace(b=1.0)),
        min(generalised, key=lambda baseline: baseline.cost),
    )


def rescaled(problem: SearchProblem, noise: Noise) -> Baseline:
    """``noise`` rescaled to meet the target, proved, and what it then costs."""
    release = problem.mechanism(noise)
    plan = calibrate(
        noise,
        problem.target,
        steps=problem.steps,
        sampling=release.sampling,
        sensitivity=release.sensitivity,
    )
    law = plan.mechanism.noise
    return Baseline(noise=law, cost=problem.cost.of(law), epsilon=plan.epsilon)


def reproved(result: SearchResult) -> SearchResult:
    """The result with epsilon and cost derived afresh from its law, trusting nothing it says."""
    low, high = proved(result.problem, result.law)
    cost = result.problem.cost.of(result.law)
    return replace(result, epsilon=high, lower_epsilon=low, cost=cost)
