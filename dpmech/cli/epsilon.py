"""``dpmech epsilon``: what a noise, a ledger or a plan costs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from dpmech.cli import _release as given
from dpmech.cli._group import subcommand
from dpmech.cli._options import with_account
from dpmech.cli._output import AsJson, print_json, talk

app = subcommand()


@app.command()
@with_account
def epsilon(
    *,
    account: given.Account,
    delta: given.ClaimDelta = None,
    save_ledger: Annotated[
        Path | None,
        typer.Option(help="Write what is accounted for here (JSON).", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print a proved upper bound on epsilon for a noise, a ledger or a plan.

    Example: dpmech epsilon gaussian:sigma=1 --rate .01 --steps 1000 --delta 1e-5

    With --json an epsilon without a finite bound is the text "inf".
    """
    began, at = time.perf_counter(), account.delta(delta)
    lower, upper = account.composed().epsilon_interval(at)
    if save_ledger is not None:
        account.ledger.save(save_ledger)
        talk(f"The ledger is in {save_ledger}.")
    result = {"epsilon": upper, "lower_epsilon": lower, "delta": at, **account.to_dict()}
    if as_json:
        print_json({**result, "seconds": round(time.perf_counter() - began, 3)})
        return
    claim = account.bound("epsilon", lower, upper)
    typer.echo("\n".join([claim, f"  delta: {at:g}", *account.claim()]))
