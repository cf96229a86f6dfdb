"""The options that say what is released, shared by the subcommands that account for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpmech.cli._output import bounded

if TYPE_CHECKING:
    from accountants import Accountant, Ledger
    from dpmech import Mechanism, Noise, PrivacyPlan, Sampling, Sensitivity

_RELEASE, _ACCOUNTING = "What is released", "Accounting"

NEIGHBOURS = {
    "add-remove": "one record added or removed",
    "replace-one": "one record replaced by another",
    "zero-out": "one record replaced by one that contributes nothing",
}

NoiseText = Annotated[
    str | None,
    typer.Argument(
        metavar="NOISE",
        help="NAME:key=value,… as in dpmech laws, or file:PATH.",
        show_default=False,
    ),
]
Rate = Annotated[
    float | None,
    typer.Option(help="Sampling rate q.", show_default="1", rich_help_panel=_RELEASE),
]
Steps = Annotated[
    int | None,
    typer.Option(help="Number of releases T.", show_default="1", rich_help_panel=_RELEASE),
]
Bound = Annotated[
    float | None,
    typer.Option(
        "--sensitivity",
        help="Largest contribution of one record to the query, in its own units.",
        show_default="1",
        rich_help_panel=_RELEASE,
    ),
]
Norm = Annotated[
    str | None,
    typer.Option(
        help="Norm of the sensitivity: l2, l1 or linf.",
        show_default="l2",
        rich_help_panel=_RELEASE,
    ),
]
Dim = Annotated[
    int | None,
    typer.Option(help="Coordinates of the query.", show_default="1", rich_help_panel=_RELEASE),
]
Relation = Annotated[
    str | None,
    typer.Option(
        help="What neighbouring data sets differ by: add-remove, replace-one or zero-out.",
        show_default="add-remove",
        rich_help_panel=_RELEASE,
    ),
]
SamplingKind = Annotated[
    str | None,
    typer.Option(
        "--sampling",
        help="How records are sampled: poisson or without-replacement.",
        show_default="poisson",
        rich_help_panel=_RELEASE,
    ),
]
AccountantName = Annotated[
    str | None,
    typer.Option(
        "--accountant", help="pld, rdp or prv.", show_default="pld", rich_help_panel=_ACCOUNTING
    ),
]
ClaimDelta = Annotated[
    float | None, typer.Option(help="The delta of the claim.", show_default="the plan's")
]
LedgerFile = Annotated[
    Path | None,
    typer.Option(
        "--ledger", help="Account for this ledger instead of a noise.", show_default=False
    ),
]
PlanFile = Annotated[
    Path | None,
    typer.Option("--plan", help="Account for this plan instead of a noise.", show_default=False),
]


def noise_from(text: str | None) -> Noise:
    """The noise that was written, which must be."""
    from dpmech import parse_noise

    if text is None:
        raise ValueError("Expected a noise such as gaussian:sigma=1; dpmech laws lists them.")
    return parse_noise(text)


@dataclass(frozen=True, kw_only=True)
class Release:
    """What the user said about the release; None where nothing was said."""

    noise: str | None = None
    rate: float | None = None
    steps: int | None = None
    sensitivity: float | None = None
    norm: str | None = None
    dim: int | None = None
    relation: str | None = None
    sampling: str | None = None

    @property
    def count(self) -> int:
        """The number of releases."""
        steps = 1 if self.steps is None else self.steps
        if steps < 1:
            raise ValueError(f"Expected steps={steps} to be a whole number, 1 or above.")
        return steps

    def bound(self) -> Sensitivity:
        """The sensitivity, with its defaults."""
        from dpmech import Sensitivity

        given = {"norm": self.norm, "bound": self.sensitivity, "dim": self.dim}
        return Sensitivity(**{k: v for k, v in given.items() if v is not None})  # type: ignore[arg-type]  # checked there

    def sampled(self) -> Sampling:
        """The sampling, with its defaults."""
        from dpmech import Sampling

        given = {"rate": self.rate, "kind": self.sampling}
        return Sampling(**{k: v for k, v in given.items() if v is not None})  # type: ignore[arg-type]  # checked there

    def mechanism(self, noise: Noise | None = None) -> Mechanism:
        """The mechanism of one release (of ``noise``, where it is not the one written)."""
        from dpmech import Mechanism

        return Mechanism(
            noise=noise_from(self.noise) if noise is None else noise,
            sensitivity=self.bound(),
            sampling=self.sampled(),
            relation=self.relation or "add-remove",
        )

    def written(self) -> list[str]:
        """The options that were written."""
        return [name for name, value in vars(self).items() if value is not None]


@dataclass(frozen=True, kw_only=True)
class Account:
    """What is accounted for, and by whom."""

    ledger: Ledger
    accountant: str
    plan: PrivacyPlan | None = None

    def composed(self, tolerance: float | None = None) -> Accountant:
        """The accountant with everything in it, of a PLD with ``tolerance`` where one is given."""
        from accountants import PLD, accountant_named

        fresh = accountant_named(self.accountant)
        if tolerance is not None and self.accountant == "pld":
            fresh = PLD(tolerance=tolerance)
        return fresh.compose_ledger(self.ledger)

    def delta(self, written: float | None) -> float:
        """The delta of the claim: as written, or the plan's."""
        if written is not None:
            return written
        if self.plan is None:
            raise ValueError("Expected --delta, the delta of the claim, such as --delta 1e-5.")
        return self.plan.target.delta

    def epsilon(self, written: float | None) -> float:
        """The epsilon of the claim: as written, or the plan's."""
        if written is not None:
            return written
        if self.plan is None:
            raise ValueError("Expected --epsilon, the epsilon of the claim, such as --epsilon 1.")
        return self.plan.target.epsilon

    @property
    def label(self) -> str:
        """A short name: the noise, or that there are several."""
        noises = {str(m.noise) for m, _ in self.ledger.entries}
        return noises.pop() if len(noises) == 1 else f"ledger of {self.ledger.runs} releases"

    @property
    def relations(self) -> list[str]:
        """What neighbours differ by, each relation once."""
        return sorted({m.relation for m, _ in self.ledger.entries})

    @property
    def attained(self) -> bool:
        """Whether the pairs are known to be attained, so that lower bounds are about the truth."""
        from dpmech.tabulated import Tabulated

        return not any(
            (m.relation == "replace-one" and m.sampling.rate < 1)
            # No one shift is the worst at every loss.
            or (isinstance(m.noise, Tabulated) and not m.noise.falling)
            for m, _ in self.ledger.entries
        )

    def bound(self, name: str, lower: float | None, upper: float) -> str:
        """A bound as the user reads it."""
        return bounded(name, lower, upper, self.accountant, attained=self.attained)

    def releases(self) -> list[str]:
        """The releases in words, at most four lines of them."""
        entries = [
            f"{count} release{'s' * (count > 1)} of {described(m)}"
            for m, count in self.ledger.collected().entries
        ]
        return entries if len(entries) <= 4 else [*entries[:3], f"… {len(entries) - 3} more"]

    def claim(self) -> list[str]:
        """What the bound is about, in words."""
        unit = " or ".join(NEIGHBOURS.get(relation, relation) for relation in self.relations)
        return [
            *(f"  {entry}" for entry in self.releases()),
            f"  unit: {unit}; accountant: {self.accountant}",
        ]

    def to_dict(self) -> dict[str, object]:
        """The same for JSON; ``mechanism`` is null for a ledger of several."""
        import json

        kinds = self.ledger.collected().entries
        single = kinds[0][0] if len(kinds) == 1 else None
        return {
            "accountant": self.accountant,
            "noise": None if single is None else str(single.noise),
            "mechanism": None if single is None else single.to_dict(),
            "steps": self.ledger.runs,
            "unit": "record",
            "relation": ", ".join(self.relations),
            "sampling": ", ".join(sorted({m.sampling.kind for m, _ in self.ledger.entries})),
            "ledger": json.loads(self.ledger.to_json()) if single is None else None,
        }


def described(mechanism: Mechanism) -> str:
    """A mechanism in words."""
    sensitivity, sampling = mechanism.sensitivity, mechanism.sampling
    way = {"poisson": "Poisson rate", "without-replacement": "drawn without replacement, rate"}
    return (
        f"{mechanism.noise} ({sensitivity.norm} sensitivity {_exact(sensitivity.bound)}, dim "
        f"{sensitivity.dim}, {way.get(sampling.kind, sampling.kind)} {_exact(sampling.rate)})"
    )


def _exact(value: float) -> str:
    """A number as it is, without a rounding that could make a claim stronger."""
    return repr(float(value)).removesuffix(".0")


def account(
    *,
    accountant: str | None = None,
    ledger: Path | None = None,
    plan: Path | None = None,
    **released: Any,
) -> Account:
    """The account of a noise with its options, a ledger or a plan, whichever was given."""
    from accountants import Ledger
    from dpmech import PrivacyPlan

    release = Release(**released)
    if ledger is None and plan is None:
        entries = Ledger().add(release.mechanism(), release.count)
        return Account(ledger=entries, accountant=accountant or "pld")
    if ledger is not None and plan is not None:
        raise ValueError(f"Expected --ledger {ledger} or --plan {plan}, not both.")
    if release.written():
        raise ValueError(
            f"Expected {ledger or plan} alone, but {', '.join(release.written())} is given too; "
            "the file says it all."
        )
    if ledger is not None:
        return Account(ledger=Ledger.load(ledger), accountant=accountant or "pld")
    loaded = PrivacyPlan.load(Path(plan or ""))
    entries = Ledger().add(loaded.mechanism, loaded.steps)
    return Account(ledger=entries, accountant=accountant or loaded.accountant, plan=loaded)
