"""``dpmech delta``: the delta of a noise, a ledger or a plan at an epsilon."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from dpmech.cli import _release as given
from dpmech.cli._group import subcommand
from dpmech.cli._options import with_account
from dpmech.cli._output import AsJson, print_json

app = subcommand()


@app.command()
@with_account
def delta(
    *,
    account: given.Account,
    epsilon: Annotated[
        float | None, typer.Option(help="The epsilon of the claim.", show_default="the plan's")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print a proved upper bound on delta for a noise, a ledger or a plan.

    Example: dpmech delta laplace:b=2 --steps 10 --epsilon 3
    """
    began, at = time.perf_counter(), account.epsilon(epsilon)
    lower, upper = account.composed().delta_interval(at)
    result = {"delta": upper, "lower_delta": lower, "epsilon": at, **account.to_dict()}
    if as_json:
        print_json({**result, "seconds": round(time.perf_counter() - began, 3)})
        return
    claim = account.bound("delta", lower, upper)
    typer.echo("\n".join([claim, f"  epsilon: {at:g}", *account.claim()]))
