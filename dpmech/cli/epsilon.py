"""``dpmech epsilon``: what a noise, a ledger or a plan costs."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from dpmech.cli import _release as given
from dpmech.cli._group import subcommand
from dpmech.cli._output import AsJson, bounded, print_json

app = subcommand()


@app.command()
def epsilon(
    noise: given.NoiseText = None,
    *,
    delta: Annotated[
        float | None, typer.Option(help="The delta of the claim.", show_default="the plan's")
    ] = None,
    rate: given.Rate = None,
    steps: given.Steps = None,
    sensitivity: given.Bound = None,
    norm: given.Norm = None,
    dim: given.Dim = None,
    relation: given.Relation = None,
    sampling: given.SamplingKind = None,
    accountant: given.AccountantName = None,
    ledger: given.LedgerFile = None,
    plan: given.PlanFile = None,
    as_json: AsJson = False,
) -> None:
    """Print a proved upper bound on epsilon for a noise, a ledger or a plan.

    Example: dpmech epsilon gaussian:sigma=1 --rate .01 --steps 1000 --delta 1e-5

    With --json an epsilon without a finite bound is the text "inf".
    """
    began = time.perf_counter()
    release = given.Release(
        noise=noise, rate=rate, steps=steps, sensitivity=sensitivity,
        norm=norm, dim=dim, relation=relation, sampling=sampling,
    )  # fmt: skip
    account = given.account(release, accountant=accountant, ledger=ledger, plan=plan)
    if delta is None and account.plan is None:
        raise ValueError("Expected --delta, the delta of the claim, such as --delta 1e-5.")
    at = account.plan.target.delta if delta is None and account.plan else float(delta or 0)
    lower, upper = account.composed().epsilon_interval(at)
    result = {"epsilon": upper, "lower_epsilon": lower, "delta": at, **account.to_dict()}
    if as_json:
        print_json({**result, "seconds": round(time.perf_counter() - began, 3)})
        return
    claim = bounded("epsilon", lower, upper, account.accountant)
    typer.echo("\n".join([claim, f"  delta: {at:g}", *account.claim()]))
