"""``dpmech delta``: the delta of a noise, a ledger or a plan at an epsilon."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from dpmech.cli import _release as given
from dpmech.cli._group import subcommand
from dpmech.cli._output import AsJson, bounded, print_json

app = subcommand()


@app.command()
def delta(
    noise: given.NoiseText = None,
    *,
    epsilon: Annotated[
        float | None, typer.Option(help="The epsilon of the claim.", show_default="the plan's")
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
    """Print a proved upper bound on delta for a noise, a ledger or a plan.

    Example: dpmech delta laplace:b=2 --steps 10 --epsilon 3
    """
    began = time.perf_counter()
    release = given.Release(
        noise=noise, rate=rate, steps=steps, sensitivity=sensitivity,
        norm=norm, dim=dim, relation=relation, sampling=sampling,
    )  # fmt: skip
    account = given.account(release, accountant=accountant, ledger=ledger, plan=plan)
    if epsilon is None and account.plan is None:
        raise ValueError("Expected --epsilon, the epsilon of the claim, such as --epsilon 1.")
    at = account.plan.target.epsilon if epsilon is None and account.plan else float(epsilon or 0)
    lower, upper = account.composed().delta_interval(at)
    result = {"delta": upper, "lower_delta": lower, "epsilon": at, **account.to_dict()}
    if as_json:
        print_json({**result, "seconds": round(time.perf_counter() - began, 3)})
        return
    claim = bounded("delta", lower, upper, account.accountant)
    typer.echo("\n".join([claim, f"  epsilon: {at:g}", *account.claim()]))
