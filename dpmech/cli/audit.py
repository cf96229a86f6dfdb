"""``dpmech audit``: is a claim true, and are draws from the law that they are declared to have?"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer

from dpmech.cli import _release as given
from dpmech.cli._group import FAILED, REFUSED, subcommand
from dpmech.cli._options import with_release
from dpmech.cli._output import AsJson, at_least, at_most, print_json, print_table

if TYPE_CHECKING:
    from accountants.audit import ClaimAudit, SamplerAudit
    from dpmech import Noise

app = subcommand()

_DRAWN = "How the noise is drawn"
_CODES = {"proved": 0, "consistent": 0, "refuted": FAILED, "open": REFUSED}
_LEVEL = 1e-4


@dataclass(frozen=True, kw_only=True)
class Report:
    """What is printed: a sentence, a table, and lines below; or ``result`` as JSON."""

    verdict: str
    sentence: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    below: list[str]
    result: dict[str, object]

    @classmethod
    def of_claim(cls, found: ClaimAudit, account: given.Account) -> Self:
        """The report on a claim."""
        proof, sigma = found.proof, found.gaussian_sigma
        shown = [(c.neighbour, at_least(c.epsilon), at_least(c.delta), ">=") for c in found.shown]
        proved = ("upper bound", at_most(proof.epsilon), at_most(proof.delta), f"<= by {proof.by}")
        units = " or ".join(given.NEIGHBOURS.get(name, name) for name in account.relations)
        below = [*(f"  {line}" for line in account.releases()), f"  unit: {units}"]
        if sigma is not None:
            below.append(f"  Gaussian noise that honours the claim: sigma {at_most(sigma)}")
        if found.estimate_many_coordinates is not None:
            many = f"{found.estimate_many_coordinates:.4g} (a limit, not a bound)"
            below.append(f"  as the coordinates become many, epsilon tends to {many}")
        return cls(
            verdict=found.verdict,
            sentence=found.sentence,
            header=("", "epsilon at this delta", "delta at this epsilon", ""),
            rows=[*shown, *([proved] if proof.by else [])],
            below=below,
            result=_claim_json(found, account),
        )

    @classmethod
    def of_draws(cls, found: SamplerAudit) -> Self:
        """The report on a sampler's draws."""
        rows = [
            (test.name, f"{test.p_value:.2g}", _percent(test.power), test.found)
            for test in found.tests
        ]
        note = f"  draws of the law itself are rejected with probability {found.level:g} at most"
        return cls(
            verdict=found.verdict,
            sentence=found.sentence,
            header=("test", "p <=", "catches a scale off by", "found"),
            rows=rows,
            below=[note],
            result={
                "law": found.law,
                "draws": found.draws,
                "level": found.level,
                "power": found.power,
                "tests": [vars(test) for test in found.tests],
            },
        )

    def show(self, *, as_json: bool, seconds: float) -> None:
        """Print it, and leave with the verdict's exit code."""
        if as_json:
            head = {"verdict": self.verdict, "sentence": self.sentence}
            print_json({**head, **self.result, "seconds": round(seconds, 3)})
        else:
            typer.echo(self.sentence)
            print_table(self.header, self.rows)
            typer.echo("\n".join(self.below))
        raise typer.Exit(_CODES[self.verdict])


@app.command()
@with_release
def audit(
    noise: given.NoiseText = None,
    *,
    release: given.Release,
    epsilon: Annotated[
        float | None, typer.Option(help="The epsilon claimed.", show_default="the plan's")
    ] = None,
    delta: Annotated[
        float | None,
        typer.Option(help="The delta claimed, 0 for pure privacy.", show_default="the plan's"),
    ] = None,
    cut_off: Annotated[
        float | None,
        typer.Option(
            help="The generator never goes beyond this |x|.",
            show_default=False,
            rich_help_panel=_DRAWN,
        ),
    ] = None,
    random_direction: Annotated[
        bool,
        typer.Option(
            "--random-direction",
            help="One draw times a random unit vector, not one draw for each coordinate.",
            rich_help_panel=_DRAWN,
        ),
    ] = False,
    draws: Annotated[
        Path | None,
        typer.Option(help="Test the draws in this .npy file instead.", show_default=False),
    ] = None,
    level: Annotated[
        float | None,
        typer.Option(
            help="With --draws: how often draws of the law itself may be rejected.",
            show_default=f"{_LEVEL:g}",
        ),
    ] = None,
    ledger: given.LedgerFile = None,
    plan: given.PlanFile = None,
    as_json: AsJson = False,
) -> None:
    """Say whether a claim of privacy is proved, refuted or open; or whether draws fit their law.

    Exit code 0: the claim is proved, or nothing speaks against the draws. 1: refuted. 2: the claim
    is open, or the input is bad.

    Example: dpmech audit lmo:preset=0.3,rate=.2 --epsilon .3 --delta 1e-10

    Example: dpmech audit gaussian:sigma=1 --draws draws.npy
    """
    from accountants.audit import audit_claim, audit_draws

    began = time.perf_counter()
    if draws is not None:
        beside = {"epsilon": epsilon, "delta": delta, "ledger": ledger, "plan": plan}
        _refuse_beside(draws, {**beside, **vars(release)}, random_direction=random_direction)
        law = _cut(given.noise_from(noise), cut_off)
        at = _LEVEL if level is None else level
        report = Report.of_draws(audit_draws(law, _read(draws), level=at))
    else:
        if level is not None:
            raise ValueError(f"Expected --level {level} with --draws: a claim has no level.")
        account = given.account(ledger=ledger, plan=plan, **vars(replace(release, noise=noise)))
        account = _as_drawn(account, cut_off, random_direction)
        claim = account.epsilon(epsilon), account.delta(delta)
        report = Report.of_claim(audit_claim(account.ledger, *claim), account)
    report.show(as_json=as_json, seconds=time.perf_counter() - began)


def _refuse_beside(draws: Path, said: dict[str, Any], *, random_direction: bool) -> None:
    """ValueError for options about a claim, or about vectors, beside a file of draws."""
    written = [name for name, value in said.items() if value is not None]
    written += ["random-direction"] if random_direction else []
    if written:
        raise ValueError(
            f"Expected --draws {draws} with a noise alone, but {', '.join(written)} is given too: "
            "draws are held to a law, not to a claim."
        )


def _read(path: Path) -> Any:
    import numpy as np

    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"Cannot read draws from {str(path)!r}: {error}") from None


def _cut(law: Noise, bound: float | None) -> Noise:
    from accountants.audit import CutOff

    return law if bound is None else CutOff(law, bound)


def _as_drawn(
    account: given.Account, cut_off: float | None, random_direction: bool
) -> given.Account:
    """The account of the noise as the generator draws it."""
    from accountants import Ledger
    from accountants.audit import RandomDirection

    if cut_off is None and not random_direction:
        return account
    ledger = Ledger()
    for mechanism, count in account.ledger.entries:
        law = _cut(mechanism.noise, cut_off)
        if random_direction:
            law = RandomDirection(law, mechanism.sensitivity.dim)
        ledger = ledger.add(replace(mechanism, noise=law), count)
    return replace(account, ledger=ledger)


def _claim_json(found: ClaimAudit, account: given.Account) -> dict[str, object]:
    proof, released = found.proof, account.to_dict()
    del released["accountant"]  # proved_by says it
    return {
        "epsilon": found.epsilon,
        "delta": found.delta,
        "lower_epsilon": found.lower_epsilon,
        "lower_delta": found.lower_delta,
        "upper_epsilon": proof.epsilon if proof.by else None,
        "upper_delta": proof.delta if proof.by else None,
        "proved_by": proof.by or None,
        "refusal": proof.refusal or None,
        "violated": None if found.violated is None else found.violated.neighbour,
        "neighbours": [vars(cost) for cost in found.shown],
        "gaussian_sigma": found.gaussian_sigma,
        "estimate_many_coordinates": found.estimate_many_coordinates,
        **released,
    }


def _percent(power: float | None) -> str:
    return "" if power is None else f"{100 * power:.2g} %"
