"""What is searched for, and what comes back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self, cast, get_args

from dpmech import Mechanism, Noise, PrivacyPlan, Sampling, Sensitivity, Target
from dpmech.noise import Floats, checked_positive

CostName = Literal["usefulness", "l1", "variance"]
# The grid's accountant: the exact law of the noise, or the bound of arXiv 2405.18776
# (order-checked).
Accounting = Literal["exact", "paper"]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a law costs: 1 - P(|X| <= gamma), E|X| or E X^2; less is better.

    >>> from dpmech import Laplace
    >>> Cost.parse("variance").of(Laplace(b=1.0))
    2.0
    """

    name: CostName = "usefulness"
    gamma: float = 0.9

    def __post_init__(self) -> None:
        if self.name not in get_args(CostName):
            known = "usefulness:GAMMA, l1, variance"
            raise ValueError(f"Unknown cost {self.name!r}; the costs are {known}.")
        checked_positive("gamma", self.gamma)

    @classmethod
    def parse(cls, text: str) -> Self:
        """The cost written ``usefulness[:gamma]``, ``l1`` or ``variance``."""
        name, _, gamma = text.partition(":")
        try:
            value = float(gamma) if gamma else 0.9
        except ValueError:
            raise ValueError(f"Expected a number after {name!r}, got {gamma!r}.") from None
        return cls(name=cast("CostName", name), gamma=value)

    def of(self, noise: Noise) -> float:
        """The cost of a law, in units of the query (squared: variance; none: usefulness)."""
        if self.name == "usefulness":
            return float(2 * noise.sf(self.gamma))
        return noise.mean_abs if self.name == "l1" else noise.variance

    def __str__(self) -> str:
        return f"usefulness:{self.gamma:g}" if self.name == "usefulness" else self.name


@dataclass(frozen=True, kw_only=True)
class SearchProblem:
    """Find the cheapest law whose ``steps`` releases at ``rate`` stay within ``target``.

    The query is a scalar (dimension 1) of the given sensitivity.
    """

    target: Target
    steps: int = 1
    sampling: Sampling = field(default_factory=Sampling)
    sensitivity: float = 1.0
    cost: Cost = field(default_factory=Cost)
    accounting: Accounting = "exact"

    def __post_init__(self) -> None:
        checked_positive("sensitivity", self.sensitivity)
        if not (isinstance(self.steps, int) and self.steps >= 1):
            raise ValueError(f"Expected steps={self.steps} to be a whole number, 1 or above.")
        if self.accounting not in get_args(Accounting):
            raise ValueError(f"Expected accounting={self.accounting!r} to be exact or paper.")
        if self.accounting == "paper" and self.sampling.rate != 1:
            raise ValueError(
                f"The paper's bound is for rate=1, not rate={self.sampling.rate:g}: it has no "
                "subsampled form. Use the exact accounting."
            )

    def mechanism(self, noise: Noise) -> Mechanism:
        """One release of the problem with this noise."""
        return Mechanism(
            noise=noise,
            sensitivity=Sensitivity(bound=self.sensitivity),
            sampling=self.sampling,
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready description; :meth:`from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The problem that :meth:`to_dict` described."""
        parts: dict[str, Any] = {
            "target": Target(**data["target"]),
            "sampling": Sampling(**data["sampling"]),
            "cost": Cost(**data["cost"]),
        }
        return cls(**{**data, **parts})


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A closed-form law rescaled to the problem's target, and what it costs."""

    noise: Noise
    cost: float
    epsilon: float


@dataclass(frozen=True, kw_only=True, eq=False)
class SearchResult:
    """The winner of a search, proved afresh by the PLD accountant.

    ``law`` is the winning grid point as it stands; ``epsilon`` and ``lower_epsilon`` bracket its
    true privacy at the problem's delta; ``claimed_epsilon`` is what the grid's accounting gave it.
    ``epsilons`` and ``costs`` hold the whole grid (in the order of ``grid.grid_law``).
    """

    problem: SearchProblem
    law: Noise
    cost: float
    claimed_epsilon: float
    epsilon: float
    lower_epsilon: float
    epsilons: Floats
    costs: Floats
    seconds: float
    status: str

    def plan(self) -> PrivacyPlan:
        """The winner as a plan for the problem it was found for."""
        return PrivacyPlan(
            target=self.problem.target,
            mechanism=self.problem.mechanism(self.law),
            steps=self.problem.steps,
            accountant="pld",
            epsilon=self.epsilon,
            lower_epsilon=self.lower_epsilon,
        )

    @property
    def feasible(self) -> int:
        """How many grid points met the target under the grid's accounting."""
        within = self.epsilons <= self.problem.target.epsilon
        return int(within.sum()) if math.isfinite(self.problem.target.epsilon) else 0
