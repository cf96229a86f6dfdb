"""Is a claim true, and does a sampler draw what it declares? Verdicts that rest on proved bounds.

A claim is refuted by two neighbouring data sets that cost more than it says, and proved by an upper
bound that is no more than it says. What lies between is open. Symbols: ``J`` Fisher information.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from functools import cached_property
from typing import Literal

from accountants._audit_laws import CutOff, RandomDirection
from accountants._audit_looks import SamplerTest
from accountants._audit_neighbours import neighbours
from accountants._audit_proofs import Proof, proved_bounds
from accountants._audit_sampler import SamplerAudit, audit_draws, audit_sampler
from accountants._vectors import is_covered
from accountants.base import Ledger, checked_delta, checked_epsilon
from accountants.calibrate import calibrate_scale
from accountants.pld import PLD
from dpmech import Gaussian, Mechanism, Sensitivity, Target, Unattainable

__all__ = [
    "ClaimAudit",
    "CutOff",
    "RandomDirection",
    "SamplerAudit",
    "SamplerTest",
    "ShownCost",
    "Verdict",
    "audit_claim",
    "audit_draws",
    "audit_sampler",
]

Verdict = Literal["refuted", "proved", "open"]
# A delta below this is not told from 0: claims of pure privacy are refuted where it is exceeded.
_LEAST_DELTA = 1e-100
# An open claim is looked at once more with a gap this much smaller.
_CLOSER = 1e-3


@dataclass(frozen=True, kw_only=True)
class ShownCost:
    """What one pair of neighbours shows: no epsilon at the claim's delta below this one holds.

    ``delta`` is the same at the claim's epsilon; ``neighbour`` says what the data sets differ by.
    """

    neighbour: str
    epsilon: float
    delta: float


@dataclass(frozen=True, kw_only=True)
class ClaimAudit:
    """A claim of (``epsilon``, ``delta``)-privacy for ``ledger``, with what is proved of it.

    ``shown``: the neighbours tried; ``tolerance``: the relative gap of all bounds.

    **Guarantees.** ``refuted`` only where a neighbour's proved lower bound is above the claim,
    ``proved`` only where a proved upper bound is not above it: no true claim is refuted.
    """

    ledger: Ledger
    epsilon: float
    delta: float
    shown: tuple[ShownCost, ...]
    tolerance: float

    @cached_property
    def proof(self) -> Proof:
        """The upper bounds, or the reason why there are none."""
        return proved_bounds(self.ledger, self.epsilon, self.delta, self.tolerance)

    @property
    def verdict(self) -> Verdict:
        """What the bounds say of the claim."""
        if self.violated is not None:
            return "refuted"
        return "proved" if self.proof.covers(self.epsilon, self.delta) else "open"

    @property
    def violated(self) -> ShownCost | None:
        """The neighbour that exceeds the claim by most; None where none does."""
        least = max(self.delta, _LEAST_DELTA)
        above = [c for c in self.shown if c.epsilon > self.epsilon or c.delta > least]
        return max(above, key=lambda cost: (cost.epsilon, cost.delta), default=None)

    @property
    def worst(self) -> ShownCost | None:
        """The neighbour that shows the largest epsilon; None where nothing is known from below."""
        return max(self.shown, key=lambda cost: (cost.epsilon, cost.delta), default=None)

    @property
    def lower_epsilon(self) -> float:
        """No epsilon below this holds at the claim's delta."""
        return max((cost.epsilon for cost in self.shown), default=0.0)

    @property
    def lower_delta(self) -> float:
        """No delta below this holds at the claim's epsilon."""
        return max((cost.delta for cost in self.shown), default=0.0)

    @cached_property
    def gaussian_sigma(self) -> float | None:
        """The standard deviation of Gaussian noise, in its place, that would honour the claim.

        Within 1e-5 of the least that is proved to. None for a ledger of several mechanisms, and
        where no Gaussian does (at delta 0).
        """
        entries = self.ledger.collected().entries
        if len(entries) != 1 or self.delta == 0 or self.epsilon == 0:
            return None
        ((mechanism, count),) = entries
        target = Target(epsilon=self.epsilon, delta=self.delta)
        try:
            plan = calibrate_scale(_as_gaussian(mechanism), target, steps=count)
        except Unattainable:
            return None
        return plan.mechanism.noise.std

    @cached_property
    def estimate_many_coordinates(self) -> float | None:
        """Epsilon of the Gaussian of sigma 1/sqrt(J): the limit of the spread neighbour, no bound.

        By Cramér and Rao sigma is at most the noise's own standard deviation, and it equals it
        only for Gaussian noise: so no independent noise beats the Gaussian of its variance once the
        coordinates are many. None for one coordinate, bounds other than l2, Gaussian noise, noise
        that is not independent, and where J is infinite. Source: mathematics.md §6.5.
        """
        entries = self.ledger.collected().entries
        if len(entries) != 1 or self.delta == 0:
            return None
        ((mechanism, count),) = entries
        if mechanism.sensitivity.dim == 1 or mechanism.sensitivity.norm != "l2":
            return None
        if isinstance(mechanism.noise, Gaussian) or not is_covered(mechanism):
            return None
        if math.isinf(mechanism.noise.fisher_information):
            return None
        limit = Gaussian(sigma=mechanism.noise.fisher_information**-0.5)
        return PLD().compose(replace(mechanism, noise=limit), count).epsilon(self.delta)

    @property
    def sentence(self) -> str:
        """The verdict in one sentence; its bounds are rounded to their safe side."""
        claim = f"({_exact(self.epsilon)}, {_exact(self.delta)})-DP"
        worst, violated = self.worst, self.violated
        if violated is not None:
            cost = f"epsilon >= {_down(violated.epsilon)} at this delta, and"
            if math.isinf(violated.epsilon):
                cost = "more than any epsilon at this delta, and"
            return (
                f"Refuted: the claim is {claim}, but {violated.neighbour} costs {cost} delta >= "
                f"{_down(violated.delta)} at this epsilon."
            )
        if self.verdict == "proved":
            upper = min(self.proof.epsilon, self.epsilon)
            return f"Proved: {claim} holds; epsilon <= {_up(upper)} at this delta."
        below = "nothing is known from below"
        if worst is not None:
            below = f"no neighbour tried shows more than {_down(worst.epsilon)} ({worst.neighbour})"
        above = f"epsilon <= {_up(self.proof.epsilon)} is proved"
        return f"Open: the claim is {claim}; {self.proof.refusal or above}, {below}."


def audit_claim(
    release: Mechanism | Ledger,
    epsilon: float,
    delta: float,
    *,
    count: int = 1,
    tolerance: float = 1e-4,
) -> ClaimAudit:
    """Hold the claim that ``count`` runs of ``release`` are (epsilon, delta)-private to its limits.

    **Guarantees.** Those of :class:`ClaimAudit`. The neighbours tried are a change as large as the
    bound, a change of one coordinate, one that is spread evenly, every sixteenth of the bound where
    a density may rise, and for :class:`RandomDirection` noise a change across its line.

    ``tolerance``: the relative gap of the bounds; where it leaves a claim open, they are taken a
    thousand times closer. At delta 0 the claim is of pure privacy.

    Raises ValueError for what is no claim, or no mechanism that can run.

    >>> from dpmech import Laplace
    >>> clipped = Sensitivity(norm="l2", dim=100)
    >>> audit = audit_claim(Mechanism(noise=Laplace(b=1.0), sensitivity=clipped), 1.0, 1e-6)
    >>> audit.verdict, audit.lower_epsilon > 4
    ('refuted', True)
    """
    checked_epsilon(epsilon)
    if delta != 0:
        checked_delta(delta)
    ledger = release if isinstance(release, Ledger) else Ledger().add(release, count)
    audit = _audited(ledger, epsilon, delta, tolerance)
    if audit.verdict == "open" and _is_close(audit, 10 * tolerance):
        audit = _audited(ledger, epsilon, delta, tolerance * _CLOSER)
    return audit


def _is_close(audit: ClaimAudit, share: float) -> bool:
    """Whether closer bounds may settle an open claim."""
    upper = audit.proof.epsilon if audit.proof.by == "pld" else math.inf
    return (
        audit.lower_epsilon >= audit.epsilon * (1 - share) or upper * (1 - share) <= audit.epsilon
    )


def _audited(ledger: Ledger, epsilon: float, delta: float, tolerance: float) -> ClaimAudit:
    at = max(delta, _LEAST_DELTA)
    shown = tuple(
        ShownCost(
            neighbour=neighbour.words,
            epsilon=neighbour.lower_epsilon(at, tolerance),
            delta=neighbour.lower_delta(epsilon, at, tolerance),
        )
        for neighbour in neighbours(ledger)
    )
    return ClaimAudit(ledger=ledger, epsilon=epsilon, delta=delta, shown=shown, tolerance=tolerance)


def _as_gaussian(mechanism: Mechanism) -> Mechanism:
    """The release with Gaussian noise and the l2 norm that its changes have."""
    dim, bound = mechanism.sensitivity.dim, mechanism.sensitivity.bound
    if mechanism.sensitivity.norm == "linf":
        bound *= math.sqrt(dim) * (1 + 1e-15)
    sensitivity = Sensitivity(norm="l2", bound=bound, dim=dim)
    return replace(mechanism, noise=Gaussian(sigma=1.0), sensitivity=sensitivity)


def _exact(value: float) -> str:
    """A claim as it was made."""
    return repr(float(value)).removesuffix(".0")


def _down(value: float) -> str:
    return _rounded(value, ROUND_FLOOR)


def _up(value: float) -> str:
    return _rounded(value, ROUND_CEILING)


def _rounded(value: float, rounding: str) -> str:
    """Four significant digits, rounded to the safe side."""
    if not math.isfinite(value):
        return str(value)
    return f"{float(Context(prec=4, rounding=rounding).create_decimal(Decimal(value))):.4g}"
