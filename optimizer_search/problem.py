"""What is searched for, and what comes back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self, get_args

from dpmech import Mechanism, Noise, PrivacyPlan, Sampling, Sensitivity, Target
from dpmech.noise import Floats, checked_positive
from dpmech.spherical import checked_dim
from optimizer_search.cost import Cost

# The grid's accountant: the exact law of the noise, or the bound of arXiv 2405.18776
# (order-checked).
Accounting = Literal["exact", "paper"]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """A cost to spend, for the least epsilon at ``delta``."""

    cost: float
    delta: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.cost):
            raise ValueError(f"Expected cost={self.cost} to be a finite number.")
        if not 0 < self.delta < 1:
            raise ValueError(f"Expected delta={self.delta} in (0, 1).")

    def __str__(self) -> str:
        return f"cost={self.cost:g} at delta={self.delta:g}"


@dataclass(frozen=True, kw_only=True)
class SearchProblem:
    """Find the best law for ``steps`` releases at ``sampling``: one of two questions.

    With a :class:`dpmech.Target`: the law of least cost that stays within it. With a
    :class:`Budget`: the law of least epsilon that costs no more.

    The query has ``dim`` coordinates and the l2 ``sensitivity``. ``cells``: cells of the table to
    be found per unit of sensitivity (chosen from the problem where None).
    """

    target: Target | Budget
    steps: int = 1
    sampling: Sampling = field(default_factory=Sampling)
    sensitivity: float = 1.0
    dim: int = 1
    cost: Cost = field(default_factory=Cost)
    cells: int | None = None
    accounting: Accounting = "exact"

    def __post_init__(self) -> None:
        checked_positive("sensitivity", self.sensitivity)
        checked_dim(self.dim)
        if not (isinstance(self.steps, int) and self.steps >= 1):
            raise ValueError(f"Expected steps={self.steps} to be a whole number, 1 or above.")
        if self.cells is not None and not (isinstance(self.cells, int) and self.cells >= 1):
            raise ValueError(f"Expected cells={self.cells} to be a whole number, 1 or above.")
        self._check_cost()
        self._check_accounting()

    def _check_cost(self) -> None:
        if self.dim > 1 and self.cost.name != "variance":
            raise ValueError(
                f"Expected the cost variance for dim={self.dim} (per coordinate), got {self.cost}."
            )
        if isinstance(self.target, Budget) and self.cost.name != "entropy":
            checked_positive("cost", self.target.cost)

    def _check_accounting(self) -> None:
        if self.accounting not in get_args(Accounting):
            raise ValueError(f"Expected accounting={self.accounting!r} to be exact or paper.")
        if self.accounting == "paper" and (self.sampling.rate != 1 or self.dim != 1):
            raise ValueError(
                f"The paper's bound is for rate=1 and scalars, not rate={self.sampling.rate:g} "
                f"and dim={self.dim}: it has no other form. Use the exact accounting."
            )

    @property
    def delta(self) -> float:
        """The delta at which epsilon is stated."""
        return self.target.delta

    @property
    def least_cost(self) -> bool:
        """Whether the cost is sought at a target, rather than epsilon at a budget."""
        return isinstance(self.target, Target)

    def mechanism(self, noise: Noise) -> Mechanism:
        """One release of the problem with this noise."""
        return Mechanism(
            noise=noise,
            sensitivity=Sensitivity(bound=self.sensitivity, dim=self.dim),
            sampling=self.sampling,
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready description; :meth:`from_dict` reads it back."""
        return {
            **{name: getattr(self, name) for name in _PLAIN},
            "target": asdict(self.target),
            "sampling": asdict(self.sampling),
            "cost": self.cost.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The problem that :meth:`to_dict` described."""
        target = data["target"]
        parts: dict[str, Any] = {
            "target": Target(**target) if "epsilon" in target else Budget(**target),
            "sampling": Sampling(**data["sampling"]),
            "cost": Cost(**data["cost"]),
        }
        return cls(**{**data, **parts})


_PLAIN = ("steps", "sensitivity", "dim", "cells", "accounting")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A law scaled to the problem and proved for it: epsilon is at most ``epsilon``.

    ``lower_epsilon`` bounds the epsilon of its dominating pair from below.
    """

    law: Noise
    cost: float
    epsilon: float
    lower_epsilon: float

    def value(self, problem: SearchProblem) -> float:
        """What the problem wants least of."""
        return self.cost if problem.least_cost else self.epsilon


@dataclass(frozen=True, kw_only=True)
class Baseline(Candidate):
    """The best of one closed-form family for the problem."""

    family: str


@dataclass(frozen=True, kw_only=True)
class Bound:
    """A proved lower bound: no law whatever has a smaller ``on`` for the problem.

    ``method`` says in a few words how it is proved.
    """

    value: float
    on: Literal["cost", "epsilon"]
    method: str


@dataclass(frozen=True, kw_only=True, eq=False)
class SearchResult:
    """The best law found, proved, with what it is compared to.

    **Guarantees.** ``epsilon`` is an upper bound for ``problem.steps`` releases of ``law``, over
    all shifts and in both directions, by the PLD accountant; ``bound`` is a lower bound on what
    any law can do, where one is known. ``claimed_epsilon`` is what the family's own accounting
    says, where it has one. ``tables`` holds what the family tabulated (the grid's costs and
    epsilons).
    """

    problem: SearchProblem
    family: str
    law: Noise
    cost: float
    epsilon: float
    lower_epsilon: float
    status: str
    seconds: float
    bound: Bound | None = None
    baselines: tuple[Baseline, ...] = ()
    claimed_epsilon: float | None = None
    tables: Mapping[str, Floats] = field(default_factory=dict)

    @property
    def gap(self) -> float | None:
        """How far the result may be from the best possible, as a share of it; None if unknown."""
        if self.bound is None:
            return None
        found = self.cost if self.bound.on == "cost" else self.epsilon
        return (found - self.bound.value) / found if found else 0.0

    def plan(self) -> PrivacyPlan:
        """The law as a plan for the problem it was found for."""
        target = self.problem.target
        if isinstance(target, Budget):
            target = Target(epsilon=max(self.epsilon, 1e-300), delta=target.delta)
        return PrivacyPlan(
            target=target,
            mechanism=self.problem.mechanism(self.law),
            steps=self.problem.steps,
            accountant="pld",
            epsilon=self.epsilon,
            lower_epsilon=self.lower_epsilon,
        )
