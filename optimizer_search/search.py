"""One way to search: the closed forms, then a family's solver, then the proof and the bound."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from importlib import import_module

from dpmech import NoDominatingPair, Noise, Unattainable
from optimizer_search.certify import certified
from optimizer_search.closed_forms import baselines
from optimizer_search.cost import Cost
from optimizer_search.lmo import search_lmo_grid
from optimizer_search.lower_bounds import best_bound
from optimizer_search.problem import (
    Baseline,
    Bound,
    Budget,
    Candidate,
    SearchProblem,
    SearchResult,
)

# family: the module of its solver, imported when it runs (some are slow to import)
_SOLVERS = {
    "lmo": "lmo_continuous.lmo_candidates",
    "laplace-mixture": "laplace_mixture.laplace_mixture_candidates",
    "single-release": "single_release.single_release_candidates",
    "renyi": "renyi.renyi_candidates",
    "kl": "renyi.kl_candidates",
    "composed": "composed.composed_candidates",
    "radial": "radial.radial_candidates",
}
FAMILIES = ("auto", "lmo-grid", "closed-form", *_SOLVERS)

Report = Callable[[str], None]
Solver = Callable[[SearchProblem], Iterator[Noise]]


def search(
    problem: SearchProblem,
    family: str = "auto",
    *,
    bound: bool = True,
    report: Report | None = None,
) -> SearchResult:
    """Search a family (by default all that fit the problem) for the best law.

    **Guarantees.** The law returned is proved over all shifts and in both directions, meets the
    target or costs no more than the budget, and is never worse than the best closed-form law: where
    the family has nothing better, that law is returned and ``status`` says so. Only the
    ``lmo-grid`` returns its point as it stands, as published.

    ``report`` is told of the progress, a line at a time. An interrupt (Ctrl-C) ends the search with
    the best so far. ``bound=False`` leaves out the lower bound.

    Raises ValueError for an unknown family or one that is not for the problem, Unattainable where
    nothing meets the target.
    """
    began = time.perf_counter()
    if family not in FAMILIES:
        raise ValueError(f"Unknown family {family!r}; the families are {', '.join(FAMILIES)}.")
    state = _Search(problem=problem, family=family, tell=report or _silent)
    try:
        state.run(bound=bound)
    except KeyboardInterrupt:
        if state.best is None:
            raise
        state.notes.append("Interrupted: the best until then.")
    return replace(state.result(), seconds=time.perf_counter() - began)


@dataclass(kw_only=True)
class _Search:
    """A search as far as it has come: an interrupt leaves what was found."""

    problem: SearchProblem
    family: str
    tell: Report
    rows: list[Baseline] = field(default_factory=list[Baseline])
    found: Candidate | None = None
    finder: str = ""
    grid: SearchResult | None = None
    bound: Bound | None = None
    notes: list[str] = field(default_factory=list[str])

    def run(self, *, bound: bool) -> None:
        """The closed forms, then the solvers, then the bound."""
        solvers = {name: _solver(name) for name in _names(self.problem, self.family)}
        if self.problem.cost.linear:
            for solver in solvers.values():
                solver(self.problem)  # refuses now what it is not for
        if self.family == "lmo-grid":
            self.grid = search_lmo_grid(self.problem)
        baselines(self.problem, self._seen)
        for name, solver in solvers.items():
            self._improve(name, solver)
        if bound:
            self.tell("proving what is possible at best")
            self.bound = best_bound(self.problem)

    @property
    def best(self) -> Candidate | SearchResult | None:
        """The best law so far."""
        return self.grid or self.found

    def _seen(self, row: Baseline) -> None:
        self.rows.append(row)
        self._compare(row, row.family)

    def _compare(self, candidate: Candidate, finder: str) -> None:
        """Take the candidate where it is better, and tell of it."""
        problem = self.problem
        if self.found is None or candidate.value(problem) < self.found.value(problem):
            self.found, self.finder = candidate, finder
        self.tell(f"{finder}: {_text(problem, candidate)}")

    def _improve(self, name: str, solver: Solver) -> None:
        """Prove the laws of a solver, and note the best where another's is better."""
        own = list[Candidate]()
        for law in self._laws(solver):
            try:
                own.append(certified(self.problem, law))
            except (NoDominatingPair, Unattainable) as error:
                self.tell(f"{name}: left out {law}: {error}")
                continue
            self._compare(own[-1], name)
        if own and self.finder != name:
            least = min(own, key=lambda candidate: candidate.value(self.problem))
            self.notes.append(f"The best of {name}, {least.law}, has {_text(self.problem, least)}.")

    def _laws(self, solver: Solver) -> Iterator[Noise]:
        """The laws of a solver; of costs that are no mean, those for costs that are."""
        problem, found = self.problem, self.found
        if problem.cost.linear or found is None:
            yield from solver(problem)
            return
        for cost in (Cost(name="variance"), Cost(name="l1")):
            target = problem.target
            if isinstance(target, Budget):
                target = Budget(cost=cost.of(found.law), delta=target.delta)
            yield from solver(replace(problem, cost=cost, target=target))

    def result(self) -> SearchResult:
        """What there is."""
        result = self.grid or self._of_best()
        return replace(
            result,
            baselines=tuple(sorted(self.rows, key=lambda row: row.value(self.problem))),
            bound=self.bound,
            status=" ".join((result.status, *self.notes)),
        )

    def _of_best(self) -> SearchResult:
        best = self.found
        if best is None:
            raise RuntimeError("No law was found, and no reason given.")
        proof = "proved over all shifts and in both directions"
        status = f"The best law found is {best.law} (family {self.finder}); it is {proof}."
        if self.family not in ("auto", "closed-form", self.finder):
            status = (
                f"No law of {self.family} was better than this closed form, {best.law}; it is "
                f"{proof}."
            )
        return SearchResult(
            problem=self.problem,
            family=self.finder,
            law=best.law,
            cost=best.cost,
            epsilon=best.epsilon,
            lower_epsilon=best.lower_epsilon,
            status=status,
            seconds=0.0,
        )


def _silent(_: str) -> None:
    """Nobody listens."""


def _text(problem: SearchProblem, candidate: Candidate) -> str:
    if problem.least_cost:
        return f"{problem.cost} {candidate.cost:.6g}"
    return f"epsilon {candidate.epsilon:.6g}"


def _names(problem: SearchProblem, family: str) -> tuple[str, ...]:
    """The solvers to run for a family."""
    if family in ("closed-form", "lmo-grid"):
        return ()
    if family != "auto":
        return (family,)
    if problem.dim > 1:
        return ("radial",)
    return ("single-release",) if problem.steps == 1 else ("composed",)


def _solver(name: str) -> Solver:
    module, function = _SOLVERS[name].split(".")
    return getattr(import_module(f"optimizer_search.{module}"), function)
