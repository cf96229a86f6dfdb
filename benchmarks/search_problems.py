"""The fixed list of problems that the families are tried on (`search_families.py`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dpmech import Sampling, Target
from optimizer_search import Budget, Cost, SearchProblem

VARIANCE, L1 = Cost(name="variance"), Cost(name="l1")
# Epsilons of the published sets of LMO parameters (arXiv 2405.18776).
PUBLISHED = (0.3, 0.7, 2.0, 3.0)
DIMS_ONCE, DIMS_SAMPLED = (2, 3, 5, 10), (2, 10, 50, 100, 300)


@dataclass(frozen=True, kw_only=True)
class Work:
    """A problem, what it is called, and the families to try; ``quick``: seconds are enough."""

    name: str
    problem: SearchProblem
    families: tuple[str, ...]
    quick: bool = False


def works() -> list[Work]:
    """All of them."""
    return [*_releases(), *_one_release(), *_vectors(), *_published()]


def _releases() -> Iterator[Work]:
    """Several releases of a scalar: the least epsilon at a variance."""
    families = ("closed-form", "composed", "renyi", "laplace-mixture")
    for steps in (10, 20):
        yield Work(
            name=f"T={steps}, variance 25",
            problem=_problem(Budget(cost=25.0, delta=1e-6), steps=steps),
            families=families,
        )
    for variance in (1.0, 0.49):
        yield Work(
            name=f"q=.01, T=1000, variance {variance:g}",
            problem=_sampled(variance),
            families=families,
            quick=variance == 1.0,
        )


def _one_release() -> Iterator[Work]:
    for epsilon, delta, cost in ((1.0, 1e-6, L1), (1.0, 1e-6, VARIANCE), (3.0, 0.3, L1)):
        yield Work(
            name=f"one release at ({epsilon:g}, {delta:g}), {cost}",
            problem=_problem(Target(epsilon=epsilon, delta=delta), cost=cost),
            families=("closed-form", "single-release", "laplace-mixture"),
        )


def _vectors() -> Iterator[Work]:
    families = ("closed-form", "radial")
    for dim in DIMS_ONCE:
        yield Work(
            name=f"one release at (5, 1e-05), d={dim}",
            problem=_problem(Target(epsilon=5.0, delta=1e-5), dim=dim),
            families=families,
            quick=dim == 2,
        )
    for dim in DIMS_SAMPLED:
        yield Work(
            name=f"q=.01, T=1000, variance 1, d={dim}",
            problem=_sampled(1.0, dim=dim),
            families=families,
        )


def _published() -> Iterator[Work]:
    """The paper's problem under the exact accounting: P(|X| > 0.9) at delta 1e-10."""
    for epsilon in PUBLISHED:
        yield Work(
            name=f"one release at ({epsilon:g}, 1e-10), P(|X| > 0.9)",
            problem=_problem(
                Target(epsilon=epsilon, delta=1e-10), cost=Cost(name="usefulness", parameter=0.9)
            ),
            families=("closed-form", "lmo-grid", "lmo", "laplace-mixture", "single-release"),
        )


def _problem(target: Target | Budget, **changes: Any) -> SearchProblem:
    values: dict[str, Any] = {"cost": VARIANCE, **changes}
    return SearchProblem(target=target, **values)


def _sampled(variance: float, **changes: Any) -> SearchProblem:
    budget = Budget(cost=variance, delta=1e-5)
    return _problem(budget, steps=1000, sampling=Sampling(rate=0.01), **changes)
