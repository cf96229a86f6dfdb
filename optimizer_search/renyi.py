"""The noise of least Rényi or Kullback-Leibler divergence at a cost, with a certified gap.

Symbols: ``alpha`` order, ``s`` sensitivity, ``t`` shift, ``h = s/m`` step of the lattice, ``V``
budget. Minimised, over symmetric laws f with E c(|X|) <= V, is the largest divergence of f(. - t)
from f over *all* 0 < t <= s. The moment is jointly convex and homogeneous in (f(. - t), f), so on a
lattice this is a convex program (:mod:`optimizer_search._renyi_newton`), whose solution spread
evenly over the lattice's cells is a law (:mod:`optimizer_search._renyi_law`), and whose prices
prove a bound for every law (:mod:`optimizer_search._renyi_bound`).

Sources: Alghamdi et al. (2022) for order 1 (cactus mechanisms), Gilani et al. (2025) for orders
above; mathematics.md §7.5.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np

from accountants import RDP
from dpmech import GeneralizedGaussian, Noise
from dpmech.tabulated import Tabulated
from optimizer_search._renyi_law import WholeLaw, cost_of, worst_divergence
from optimizer_search._renyi_solve import Question, Table, best_law, proved_below
from optimizer_search.certify import certified
from optimizer_search.cost import Cost
from optimizer_search.problem import Candidate, SearchProblem

__all__ = [
    "RenyiOptimum",
    "Table",
    "WholeLaw",
    "kl_candidates",
    "optimal_renyi",
    "renyi_candidates",
]

# Orders tried in converting; shares of the best one, and small orders, that laws are made for.
_ORDERS = 1 + np.geomspace(0.1, 63.0, 20)
_PARTS, _LOW_ORDERS = (0.25, 0.5, 0.75, 1.0), (1.5, 2.0, 3.0)
_CLOSED = (1.0, 1.2, 1.4, 2.0)


@dataclass(frozen=True, kw_only=True, eq=False)
class RenyiOptimum:
    """A law of least divergence at a budget, and how far from the best it may be.

    **Guarantees.** ``divergence`` is an upper bound for ``law``, at every shift up to the
    sensitivity (every whole shift of a :class:`WholeLaw`). No law of that cost (no law on the whole
    numbers) has a smaller one than ``lower_bound``. Both are computed afresh, with their rounding;
    neither trusts the solver. The law costs ``cost``, which is the budget at most.
    """

    law: Tabulated | WholeLaw
    order: float
    cost: float
    divergence: float
    lower_bound: float
    seconds: float

    @property
    def gap(self) -> float:
        """By how much the divergence may be above the best possible, as a share of it."""
        return (self.divergence - self.lower_bound) / self.divergence


def optimal_renyi(
    *,
    order: float,
    budget: float,
    sensitivity: float = 1.0,
    cost: Cost | None = None,
    table: Table | None = None,
) -> RenyiOptimum:
    """The law of least divergence of ``order`` (1: Kullback-Leibler) with E c(|X|) <= ``budget``.

    ``cost`` is the variance unless given, and must be a mean. The gap falls with the square of the
    cells' width. ``seconds`` are of the processor.

    Raises ValueError for costs that are no mean, and where no closed-form law has a finite moment
    to start from; Unattainable where the table asked for is too small for the budget.

    >>> found = optimal_renyi(order=1.0, budget=0.25)
    >>> found.divergence < 1.73, found.gap < 0.01  # 2 is the Gaussian's
    (True, True)
    """
    began = time.process_time()
    question = Question(
        order=float(order),
        budget=float(budget),
        sensitivity=float(sensitivity),
        cost=cost or Cost(name="variance"),
        table=table or Table(),
    )
    law = best_law(question)
    return RenyiOptimum(
        law=law,
        order=question.order,
        cost=cost_of(question.cost, law),
        divergence=worst_divergence(law, question.order, question.sensitivity, question.shifts),
        lower_bound=proved_below(question, len(law.masses)),
        seconds=time.process_time() - began,
    )


def renyi_candidates(problem: SearchProblem) -> Iterator[Noise]:
    """Laws of least Rényi divergence at the cost of the best closed form, for (epsilon, delta).

    Their orders are fractions of the one at which the closed form's divergence converts best, and
    small ones, which matter where sampling is sparse. They are proposals: what they are worth for
    the problem is for :func:`optimizer_search.certified` to prove.

    Raises ValueError for vectors, and for costs that are no mean.
    """
    _check(problem)
    return _renyi_laws(problem)


def _renyi_laws(problem: SearchProblem) -> Iterator[Noise]:
    closed = _best_closed_form(problem)
    best = _converting_order(problem, closed.law)
    orders = {order for order in _LOW_ORDERS if order < best} | {max(best * f, 1.0) for f in _PARTS}
    for order in sorted(orders):
        yield _law_for(problem, order, closed.cost)


def kl_candidates(problem: SearchProblem) -> Iterator[Noise]:
    """The law of least Kullback-Leibler divergence at the cost of the best closed form.

    What many releases cost tends to it (Alghamdi et al. 2022); otherwise as
    :func:`renyi_candidates`.
    """
    _check(problem)
    return _kl_laws(problem)


def _kl_laws(problem: SearchProblem) -> Iterator[Noise]:
    yield _law_for(problem, 1.0, _best_closed_form(problem).cost)


def _check(problem: SearchProblem) -> None:
    if problem.dim != 1:
        raise ValueError(f"Expected dim=1, got dim={problem.dim}: these laws are for scalars.")
    if not problem.cost.linear:
        raise ValueError(f"Expected a cost that is the mean of some c(|X|), got {problem.cost}.")


def _best_closed_form(problem: SearchProblem) -> Candidate:
    laws = [GeneralizedGaussian(scale=1.0, beta=beta) for beta in _CLOSED]
    return min((certified(problem, law) for law in laws), key=lambda found: found.value(problem))


def _converting_order(problem: SearchProblem, law: Noise) -> float:
    """The order at which the divergence of the problem's releases converts best to epsilon."""
    spent = RDP().compose(problem.mechanism(law), problem.steps).renyi(_ORDERS)
    log_delta = math.log(problem.delta)
    epsilon = spent + np.log1p(-1 / _ORDERS) - (log_delta + np.log(_ORDERS)) / (_ORDERS - 1)
    return float(_ORDERS[np.argmin(epsilon)])


def _law_for(problem: SearchProblem, order: float, cost: float) -> Noise:
    law = best_law(
        Question(
            order=order,
            budget=cost,
            sensitivity=problem.sensitivity,
            cost=problem.cost,
            table=Table(cells=problem.cells),
        )
    )
    return cast("Tabulated", law)  # not one on the whole numbers: they were not asked for
