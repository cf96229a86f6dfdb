"""What a zeroth-order run is told, and the mechanism and the plan that go with it.

Symbols: θ parameters, z public direction, ρ length of the probe, C clip, q sampling rate, T steps,
η step size.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from accountants import Ledger
from accountants.base import checked_delta
from dpmech import Mechanism, Noise, PrivacyPlan, Sampling
from dpmech.noise import checked_positive
from fl_integration.accounting import (
    RELATION,
    SLACK,
    check_same,
    ledger_epsilon,
    scalar_release,
)
from fl_integration.options import checked_whole

ACCOUNTANT = "pld"
_SCHEDULES = ("constant", "linear")


@dataclass(frozen=True, kw_only=True)
class ZerothOrderConfig:
    """Everything a zeroth-order run is told besides its data, its model and its privacy.

    Arguments:
        rate: q in (0, 1], the probability of each record in each step. steps: T.
        clip: C > 0, bound on one record's difference quotient, in units of loss per unit of z.
        rho: ρ > 0, how far θ is probed along z. lr: η >= 0.
        schedule: ``"constant"``, or ``"linear"``: η(1 − t/T) at step t.
        seed: gives the directions, which are public; 0 is a seed.
        noise_seed: **experiments only**; ``None`` takes cohort and noise from secret words.
        batch: records a call of the losses; above 1 only losses that say how far company can
            move them are taken, see `fl_integration.zo_quotients.CompanyBound`.

    Raises:
        ValueError: on a value outside its range.

    Source: mathematics.md §8.
    """

    rate: float
    steps: int
    clip: float
    lr: float
    rho: float = 1e-3
    schedule: Literal["constant", "linear"] = "constant"
    seed: int = 0
    noise_seed: int | None = None
    batch: int = 1

    def __post_init__(self) -> None:
        """Refuse every value that the loop could not honour."""
        Sampling(rate=self.rate)  # refuses a rate outside its range
        for name in ("clip", "rho"):
            checked_positive(name, getattr(self, name))
        if not (math.isfinite(self.lr) and self.lr >= 0):
            raise ValueError(f"Expected lr={self.lr} to be a finite number, 0 or above.")
        if self.schedule not in _SCHEDULES:
            raise ValueError(f"Expected schedule={self.schedule!r} to be one of {_SCHEDULES}.")
        for name, least in (("steps", 1), ("batch", 1), ("seed", 0)):
            checked_whole(name, getattr(self, name), least=least)
        if self.noise_seed is not None:
            checked_whole("noise_seed", self.noise_seed, least=0)

    def step_size(self, step: int) -> float:
        """η of a step, counted from 0."""
        return self.lr if self.schedule == "constant" else self.lr * (1 - step / self.steps)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-ready values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """The configuration that `to_dict` wrote (ValueError on an unknown field)."""
        unknown = sorted(set(fields) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(f"Expected only known fields of ZerothOrderConfig, got {unknown}.")
        return cls(**fields)


def zeroth_order_mechanism(config: ZerothOrderConfig, noise: Noise) -> Mechanism:
    """The mechanism that one step of a configuration runs: a scalar sum of clipped numbers.

    **Guarantees**: the sensitivity is the clip and the rate the configuration's; only a law with a
    proved pair for a real-valued scalar comes back.

    Arguments:
        config: clip and rate. noise: the law of the noise on the *sum*, in the sum's units.

    Raises:
        NoDominatingPair: from a law without a pair, and from one on the whole numbers.
        ValueError: for a guarantee in the place of a noise.

    >>> from dpmech import Laplace
    >>> config = ZerothOrderConfig(rate=0.01, steps=100, clip=2.0, lr=0.1)
    >>> zeroth_order_mechanism(config, Laplace(b=4.0)).sensitivity.bound
    2.0
    """
    return scalar_release(noise, bound=config.clip, rate=config.rate)


def agreed(
    privacy: PrivacyPlan | Noise, config: ZerothOrderConfig, delta: float | None
) -> tuple[Mechanism, float]:
    """The mechanism of a step, and the δ of the report: the plan's own, or the one given.

    Raises:
        ValueError: a plan that was made for another run, a law without a δ. NoDominatingPair.
    """
    if not isinstance(privacy, PrivacyPlan):
        if delta is None:
            raise ValueError("Expected delta=None to be a number in (0, 1) beside a noise.")
        return zeroth_order_mechanism(config, privacy), checked_delta(delta)
    if delta not in (None, privacy.target.delta):
        raise ValueError(f"Expected delta={delta} to be the plan's, {privacy.target.delta}.")
    _check_plan(privacy, config)
    return zeroth_order_mechanism(config, privacy.mechanism.noise), privacy.target.delta


def _check_plan(plan: PrivacyPlan, config: ZerothOrderConfig) -> None:
    """Refuse a plan that was made for another run, or whose noise does not keep its ε."""
    planned = plan.mechanism
    for name, got, wanted in (
        ("norm", planned.sensitivity.norm, "l2"),
        ("dim", planned.sensitivity.dim, 1),
        ("sensitivity bound", planned.sensitivity.bound, config.clip),
        ("sampling", planned.sampling, Sampling(rate=config.rate)),
        ("relation", planned.relation, RELATION),
        ("steps", plan.steps, config.steps),
        ("number of other releases", len(plan.others), 0),
    ):
        check_same(name, got, wanted)
    ledger = Ledger().add(zeroth_order_mechanism(config, planned.noise), plan.steps)
    found = ledger_epsilon(ledger, accountant=ACCOUNTANT, delta=plan.target.delta)
    if not found <= plan.target.epsilon * (1 + SLACK):
        raise ValueError(
            f"Expected {planned.noise} to keep {plan.target}, got epsilon={found}; make another."
        )
