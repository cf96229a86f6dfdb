"""Forecasts for a population that is not there: named as such, and never exported as private.

A cohort of c clients is simulated with the noise that a cohort of c' = q'·N' would put on the
*average*: the sum over c takes the plan's law times c/c'.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from decimal import ROUND_CEILING, Context, Decimal
from typing import Any, Self

from dpmech import Noise, PrivacyPlan
from dpmech.plan import Entries


@dataclass(frozen=True, kw_only=True)
class HypotheticalEpsilon:
    """The ε that a run *would* have in a larger population; not a number, and not this run's ε.

    **Guarantees**

    * It cannot be used as a float, and its text always shows the simulated run's actual ε.

    Arguments:
        epsilon, delta: the forecast's guarantee. population, cohort: N' and c' = q'·N'.
        rounds: T. simulated_clients, simulated_cohort: N and c of the run that took place.
        actual_epsilon: what that run costs its own clients (may be inf).
    """

    epsilon: float
    delta: float
    population: int
    cohort: float
    rounds: int
    simulated_clients: int
    simulated_cohort: float
    actual_epsilon: float

    def __str__(self) -> str:
        """The forecast and the truth in one sentence."""
        return (
            f"hypothetical epsilon {rounded_up(self.epsilon)} (delta {rounded_up(self.delta)})"
            f" if {self.rounds} rounds of {self.cohort:g} clients were drawn from"
            f" {self.population}; the simulated run drew {self.simulated_cohort:g} from"
            f" {self.simulated_clients} and has epsilon {rounded_up(self.actual_epsilon)}"
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-ready values; an infinite ε is the text "inf"."""
        fields = asdict(self)
        fields["actual_epsilon"] = finite_or_text(self.actual_epsilon)
        return fields

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """The forecast that `to_dict` wrote."""
        values = dict(fields)
        values["actual_epsilon"] = float(values["actual_epsilon"])
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class Extrapolation:
    """A plan for a large population, simulated with few clients (build it with `extrapolate`).

    earlier: what the simulation really released before this run, from the same clients; in the
    population it is what ``plan.others`` holds.
    """

    plan: PrivacyPlan
    population: int
    simulated_clients: int
    simulated_cohort: float
    earlier: Entries = ()

    @property
    def cohort(self) -> float:
        """c' = q'·N', the expected cohort in the population."""
        return self.plan.mechanism.sampling.rate * self.population

    @property
    def noise(self) -> Noise:
        """The law to add to the simulated sum: the plan's, times c/c'."""
        return self.plan.mechanism.noise.scaled(self.simulated_cohort / self.cohort)

    @property
    def simulated(self) -> Entries:
        """What the simulation releases: its own noise, at its own rate."""
        rate = self.simulated_cohort / self.simulated_clients
        sampling = replace(self.plan.mechanism.sampling, rate=rate)
        mechanism = replace(self.plan.mechanism, noise=self.noise, sampling=sampling)
        return ((mechanism, self.plan.steps),)

    def check(self, *, clients: int, cohort: float) -> None:
        """Refuse to be used for another simulation than it was made for."""
        if clients != self.simulated_clients or not math.isclose(cohort, self.simulated_cohort):
            raise ValueError(
                f"Expected a run of {self.simulated_cohort} among {self.simulated_clients} clients,"
                f" got {cohort} among {clients}; extrapolate again for this run."
            )

    def hypothetical(self, actual_epsilon: float) -> HypotheticalEpsilon:
        """The forecast, together with what the simulated run really costs."""
        return HypotheticalEpsilon(
            epsilon=self.plan.epsilon,
            delta=self.plan.target.delta,
            population=self.population,
            cohort=self.cohort,
            rounds=self.plan.steps,
            simulated_clients=self.simulated_clients,
            simulated_cohort=self.simulated_cohort,
            actual_epsilon=actual_epsilon,
        )


def extrapolate(
    plan: PrivacyPlan,
    *,
    population: int,
    simulated_clients: int,
    simulated_cohort: float,
    earlier: Entries = (),
) -> Extrapolation:
    """Prepare the forecast of a plan for ``population`` users from a small simulation.

    **Guarantees**

    * The noise on the *average* update has the law it would have in the population.
    * The ledger of such a run holds the noise that was really added, at the rate really used.

    Arguments:
        plan: made for ``population`` users; its sampling rate is q'. population: N' >= 1.
        simulated_clients, simulated_cohort: N and c = q·N of the run.
        earlier: what the simulation released before, beside the ``others`` of the plan.

    Raises:
        ValueError: when a size is out of range.

    Source: federated.md §3 (cohort extrapolation).
    """
    if population < 1 or simulated_clients < 1:
        raise ValueError(
            f"Expected population={population} and simulated_clients={simulated_clients} >= 1."
        )
    if not 0 < simulated_cohort <= simulated_clients:
        raise ValueError(
            f"Expected simulated_cohort={simulated_cohort} in (0, {simulated_clients}]."
        )
    return Extrapolation(
        plan=plan,
        population=population,
        simulated_clients=simulated_clients,
        simulated_cohort=simulated_cohort,
        earlier=earlier,
    )


def rounded_up(bound: float) -> str:
    """An upper bound in five digits, never below it.

    >>> rounded_up(1.82821), rounded_up(1e-5), rounded_up(math.inf)
    ('1.8283', '1e-05', 'inf')
    """
    if math.isinf(bound):
        return "inf"
    # by its shortest text: 1e-5 is a little more than its decimal, and no sixth digit is
    exact = Decimal(repr(float(bound)))
    return f"{float(Context(prec=5, rounding=ROUND_CEILING).create_decimal(exact)):g}"


def finite_or_text(value: float) -> float | str:
    """A float that strict JSON can hold, or its name ("inf", "nan") as text."""
    return value if math.isfinite(value) else str(value)
