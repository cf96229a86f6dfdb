"""From a question to a law and a bound: starts, how wide a table, how fine a lattice.

Symbols as in :mod:`optimizer_search._renyi_terms`; ``s`` sensitivity, ``V`` budget.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction

import numpy as np

from dpmech import GeneralizedGaussian, Laplace, Noise, Staircase, Unattainable
from dpmech.noise import Floats, checked_positive
from dpmech.tabulated import Tabulated
from optimizer_search._renyi_bound import decimal, lattice_costs, lower_bound
from optimizer_search._renyi_law import WholeLaw, cost_of, law_of, point_costs, widened
from optimizer_search._renyi_newton import Program, solved
from optimizer_search._renyi_terms import Lattice
from optimizer_search.cost import Cost

# Cells per scale of the Laplace law at the budget; their number per sensitivity, unless asked for.
_CELLS_PER_SCALE, _MOST_CELLS = 16.0, 64
# Mass beyond the table: that of the start, and the most of mass or cost that may be in the end.
_START_TAIL, _END_TAIL = 1e-9, 1e-7
_GROWTH, _MOST_POINTS = 1.5, 200_000
# The table is solved for this share less than the budget: what rounding and tail may add.
_SPARE = (1e-8, 1e-6, 1e-4, 1e-2)
# What smoothness may cost, as a share of the divergence.
_EVENNESS = 1e-5
_BETAS = (1.0, 1.5, 2.0)
# Least and largest epsilon of the staircase laws among the starts.
_STAIRS = (1e-2, 60.0)
# Starts have this much mass everywhere: ratios of masses must be numbers.
_LEAST = 1e-200


@dataclass(frozen=True, kw_only=True)
class Table:
    """How fine and how wide the table is; what is None is chosen from the problem.

    ``cells`` per sensitivity; ``extent`` of the table, in units of the query (beyond is a geometric
    tail); ``whole``: a law on the whole numbers, for queries that are whole numbers.
    """

    cells: int | None = None
    extent: float | None = None
    whole: bool = False

    def __post_init__(self) -> None:
        if self.cells is not None and not (self.cells >= 1 and self.cells == int(self.cells)):
            raise ValueError(f"Expected cells={self.cells} to be a whole number, 1 or above.")
        if self.whole and self.cells is not None:
            raise ValueError(
                f"Expected no cells={self.cells} of a law on the whole numbers: its step is 1."
            )
        if self.extent is not None:
            checked_positive("extent", self.extent)


@dataclass(frozen=True, kw_only=True)
class Question:
    """Least divergence of ``order`` at the ``budget`` of a linear ``cost``, all checked."""

    order: float
    budget: float
    sensitivity: float
    cost: Cost
    table: Table = field(default_factory=Table)

    def __post_init__(self) -> None:
        checked_positive("budget", self.budget)
        checked_positive("sensitivity", self.sensitivity)
        if not (self.order >= 1 and math.isfinite(self.order)):
            raise ValueError(f"Expected order={self.order} to be 1 (KL) or a finite number above.")
        if not self.cost.linear:
            raise ValueError(f"Expected a cost that is the mean of some c(|X|), got {self.cost}.")
        if self.table.whole and self.sensitivity != int(self.sensitivity):
            raise ValueError(
                f"Expected sensitivity={self.sensitivity} to be a whole number for whole noise."
            )

    @property
    def shifts(self) -> int:
        """m, the largest shift in steps."""
        if self.table.whole:
            return int(self.sensitivity)
        if self.table.cells is not None:
            return self.table.cells
        scale = self.cost.factor(Laplace(b=1.0), self.budget)
        usual = min(math.ceil(_CELLS_PER_SCALE * self.sensitivity / scale), _MOST_CELLS)
        if self.cost.name != "usefulness":
            return usual
        # Fewer cells will do where one of them ends at the parameter: then nothing is lost.
        cells = decimal(self.cost.parameter or 0.0) / decimal(self.sensitivity)
        return min(range(usual, 2 * usual), key=lambda m: math.ceil(m * cells) / m)

    @property
    def step(self) -> float:
        """h."""
        return float(self.exact_step)

    def law_step(self, size: int) -> float:
        """The step of a law with a table of this size."""
        return self.step if self.table.whole else widened(self.step, size)

    @property
    def exact_step(self) -> Fraction:
        """h, before it is rounded to a float."""
        return decimal(self.sensitivity) / self.shifts

    def lattice(self, size: int, *, centred: bool) -> Lattice:
        """The one with so many points, wide enough for a shift."""
        if size > _MOST_POINTS:
            raise ValueError(
                f"Expected a table of at most {_MOST_POINTS} points for budget={self.budget} and "
                f"sensitivity={self.sensitivity}, got {size}: ask for fewer cells or less extent."
            )
        return Lattice(size=max(size, self.shifts + 1), shifts=self.shifts, centred=centred)


def best_law(question: Question) -> Tabulated | WholeLaw:
    """The law of least divergence found that is within the budget."""
    merged, p = _wide_enough(question)
    # Per step over the last sensitivity, which the merged tail tells best.
    decay = float(p[-1] / np.sum(p[-1 - merged.shifts :])) ** (1 / merged.shifts)
    lattice, law_cost = replace(merged, decay=decay), math.inf
    for spare in _SPARE:
        p = _masses_on(question, lattice, p, spare)
        law = law_of(lattice, p, question.law_step(lattice.size))
        law_cost = cost_of(question.cost, law)
        if law_cost <= question.budget:
            return law
    raise Unattainable(
        f"No table of {lattice.size} points costs budget={question.budget} or less; the last one "
        f"costs {law_cost}. Ask for more cells, or for a larger extent.",
        reached=law_cost,
    )


def _wide_enough(question: Question) -> tuple[Lattice, Floats]:
    """A lattice that leaves little mass and cost to its tail, merged, and the best masses on it."""
    start = _start(question)
    lattice = question.lattice(_first_size(question, start), centred=question.table.whole)
    while True:
        p = _masses_on(question, lattice, _masses(start, lattice, question.step), _SPARE[0])
        tail_cost = float(point_costs(question.cost, lattice, question.step)[-1])
        tail = 2 * float(p[-1]) * max(1.0, tail_cost / question.budget)
        if tail <= _END_TAIL or question.table.extent is not None:
            return lattice, p
        size = math.ceil(_GROWTH * lattice.size)
        lattice = question.lattice(size, centred=lattice.centred)


def _masses_on(question: Question, lattice: Lattice, p: Floats, spare: float) -> Floats:
    """The solver's masses for this share less than the budget, from the masses ``p``."""
    program = Program(
        lattice=lattice,
        order=question.order,
        costs=point_costs(question.cost, lattice, question.step),
        budget=question.budget * (1 - spare),
        evenness=_EVENNESS,
    )
    return solved(program, p).p


def proved_below(question: Question, size: int) -> float:
    """A lower bound on the divergence of every law, from a lattice of ``size`` points."""
    program, start = bounding_program(question, size), _start(question)
    return lower_bound(program, solved(program, _masses(start, program.lattice, question.step)))


def bounding_program(question: Question, size: int) -> Program:
    """The program on the lattice that every law is rounded to."""
    lattice = question.lattice(size, centred=question.cost.name != "usefulness")
    if question.table.whole:
        lattice = question.lattice(size, centred=True)
        costs, budget = point_costs(question.cost, lattice, question.step), question.budget
    else:
        costs, budget = lattice_costs(question.cost, lattice, question.exact_step, question.budget)
    return Program(lattice=lattice, order=question.order, costs=costs, budget=budget)


def _first_size(question: Question, start: Noise) -> int:
    extent = question.table.extent
    if extent is not None:
        return math.floor(extent / question.step) + (1 if question.table.whole else 0)
    return math.ceil((float(start.isf(_START_TAIL)) + 2 * question.sensitivity) / question.step)


def _start(question: Question) -> Noise:
    """The closed-form law at the budget of least divergence."""
    laws = list(_starts(question))
    worst = [_rough_divergence(question, law) for law in laws]
    least = min(worst)
    if not least < math.inf:
        raise ValueError(
            f"Expected order={question.order} to be lower, or budget={question.budget} larger: the "
            "moments of all laws to start from are beyond what doubles hold."
        )
    return laws[worst.index(least)]


def _starts(question: Question) -> Iterator[Noise]:
    cost, budget = question.cost, question.budget
    for beta in _BETAS:
        law = GeneralizedGaussian(scale=1.0, beta=beta)
        yield law.scaled(cost.factor(law, budget))
    from scipy import optimize

    def excess(log_epsilon: float) -> float:
        law = Staircase.least_variance(math.exp(log_epsilon), question.sensitivity)
        return cost.of(law) - budget

    low, high = (math.log(epsilon) for epsilon in _STAIRS)
    if excess(low) > 0 > excess(high):
        found = math.exp(float(optimize.brentq(excess, low, high)))
        yield Staircase.least_variance(found, question.sensitivity)


def _rough_divergence(question: Question, law: Noise) -> float:
    lattice = question.lattice(_first_size(question, law), centred=question.table.whole)
    p = _masses(law, lattice, question.step)
    with np.errstate(over="ignore", invalid="ignore"):
        values = lattice.derivatives(question.order, p, np.ones(lattice.shifts)).values
    worst = float(np.max(values))
    return worst if math.isfinite(worst) else math.inf


def _masses(law: Noise, lattice: Lattice, step: float) -> Floats:
    """The law's masses on the cells of the lattice and beyond, shape (N + 1,)."""
    places = np.arange(lattice.size + 1) - (0.5 if lattice.centred else 0.0)
    beyond = law.sf(step * np.maximum(places, 0.0))
    p = np.append(beyond[:-1] - beyond[1:], beyond[-1])
    p = np.maximum(p * (2 / lattice.counts), _LEAST)
    return p / float(lattice.counts @ p)
