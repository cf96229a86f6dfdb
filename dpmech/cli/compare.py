"""``dpmech compare``: several noises and accountants side by side."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Annotated

import typer

from dpmech.cli import _release as given
from dpmech.cli._group import subcommand
from dpmech.cli._options import with_release
from dpmech.cli._output import AsJson, at_least, at_most, print_json, print_table, talk

app = subcommand()


@dataclass(frozen=True, kw_only=True)
class Row:
    """One noise by one accountant."""

    noise: str
    accountant: str
    epsilon: float
    lower_epsilon: float | None
    advantage: float
    std: float | None
    seconds: float

    def cells(self) -> tuple[str, ...]:
        """The row as text."""
        lower = "" if self.lower_epsilon is None else at_least(self.lower_epsilon)
        std = "" if self.std is None else f"{self.std:.4g}"
        bounds = (lower, at_most(self.epsilon), at_most(self.advantage), std)
        return (self.noise, *bounds, f"{1e3 * self.seconds:.0f}", self.accountant)


@app.command()
@with_release
def compare(
    noises: Annotated[
        list[str],
        typer.Argument(metavar="NOISE…", help="NAME:key=value,…, several.", show_default=False),
    ],
    *,
    release: given.Release,
    delta: Annotated[
        float, typer.Option(help="The delta at which they are compared.", show_default=False)
    ],
    accountants: Annotated[str, typer.Option(help="Accountants, with commas.")] = "pld",
    as_json: AsJson = False,
) -> None:
    """Compare what several noises cost, by one or several accountants.

    What an accountant refuses is said on stderr and left out.

    Example: dpmech compare gaussian:sigma=1 laplace:b=.7 --rate .01 --steps 1000 --delta 1e-5
    """
    rows: list[Row] = []
    refusals: list[Exception] = []
    for account in _accounts(noises, release, accountants):
        try:
            rows.append(_row(account, delta))
        except _refusals() as error:
            refusals.append(error)
            talk(f"Left out {account.label} by {account.accountant}: {error}")
    if not rows:
        raise refusals[0]
    if as_json:
        print_json({"delta": delta, "rows": [vars(row) for row in rows]})
        return
    header = ("noise", "epsilon >=", "epsilon <=", "advantage <=", "std", "ms", "accountant")
    print_table(header, [row.cells() for row in rows])


def _accounts(noises: list[str], release: given.Release, accountants: str) -> list[given.Account]:
    """Every noise by every accountant, all read before the first is computed."""
    from accountants import accountant_named

    names = [name.strip() for name in accountants.split(",")]
    for name in names:
        accountant_named(name)
    return [
        given.account(**vars(replace(release, noise=noise)), accountant=name)
        for noise in noises
        for name in names
    ]


def _refusals() -> tuple[type[Exception], ...]:
    from dpmech import NoDominatingPair, Unattainable

    return (NoDominatingPair, Unattainable, ValueError)


def _row(account: given.Account, delta: float) -> Row:
    began = time.perf_counter()
    composed = account.composed()
    lower, upper = composed.epsilon_interval(delta)
    seconds = time.perf_counter() - began
    return Row(
        noise=account.label,
        accountant=account.accountant,
        epsilon=upper,
        lower_epsilon=lower,
        advantage=composed.delta(0.0),
        std=_std(account),
        seconds=round(seconds, 4),
    )


def _std(account: given.Account) -> float | None:
    """The standard deviation of the noise; None of a guarantee, which has no noise."""
    ((mechanism, _),) = account.ledger.entries
    try:
        return mechanism.noise.std
    except ValueError:
        return None
