"""The proof that ends every search: the law's own epsilon, over all shifts, in both directions.

Whatever a solver believed of its law is forgotten: it is scaled until it meets the target from the
safe side, or costs the budget, and then accounted for like any other.
"""

from __future__ import annotations

from functools import lru_cache

from accountants import PLD, calibrate_scale
from dpmech import Noise, Target
from optimizer_search.problem import Budget, Candidate, SearchProblem

# Relative gap between the two epsilons of a proof.
PROOF = 1e-5


@lru_cache(maxsize=32)  # solvers ask for the proof of a law that the driver asks for again
def certified(problem: SearchProblem, law: Noise) -> Candidate:
    """The law scaled to the problem, and proved.

    **Guarantees.** With a target, its epsilon is at most the target's and its scale within 1e-5 of
    the least with which that is proved; or it is left as it stands, where it meets the target for
    less (laws in steps of the sensitivity do). With a budget, its cost is at most the budget.

    Raises Unattainable where no scale meets the target, NoDominatingPair where nothing is proved.
    """
    if isinstance(problem.target, Budget):
        return proved(problem, at_budget(problem, law, problem.target))
    return _at_target(problem, law, problem.target)


def at_budget(problem: SearchProblem, law: Noise, budget: Budget) -> Noise:
    """The law at the scale at which it costs the budget (a hair below rather than above)."""
    factor = problem.cost.factor(law, budget.cost)
    # Left as it is where that is within rounding: a law on a lattice of the sensitivity stays so.
    close = abs(factor - 1) <= 1e-9 and problem.cost.of(law) <= budget.cost
    scaled = law if close else law.scaled(factor)
    while problem.cost.of(scaled) > budget.cost:
        factor *= 1 - 1e-12
        scaled = law.scaled(factor)
    return scaled


def _at_target(problem: SearchProblem, law: Noise, target: Target) -> Candidate:
    standing = proved(problem, law)
    if (1 - PROOF) * target.epsilon <= standing.epsilon <= target.epsilon:
        return standing
    plan = calibrate_scale(problem.mechanism(law), target, steps=problem.steps)
    law, lower = plan.mechanism.noise, plan.lower_epsilon or 0.0
    cost = problem.cost.of(law)
    if standing.epsilon <= target.epsilon and standing.cost < cost:
        return standing
    return Candidate(law=law, cost=cost, epsilon=plan.epsilon, lower_epsilon=lower)


@lru_cache(maxsize=32)
def proved(problem: SearchProblem, law: Noise, tolerance: float = PROOF) -> Candidate:
    """The law as it stands, proved with this relative gap."""
    accountant = PLD(tolerance=tolerance).compose(problem.mechanism(law), problem.steps)
    lower, upper = accountant.epsilon_interval(problem.delta)
    return Candidate(law=law, cost=problem.cost.of(law), epsilon=upper, lower_epsilon=lower)
