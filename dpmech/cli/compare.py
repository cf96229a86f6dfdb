"""``dpmech compare``: several noises and accountants side by side."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import typer

from dpmech.cli import _release as given
from dpmech.cli._group import subcommand
from dpmech.cli._options import with_release
from dpmech.cli._output import AsJson, at_least, at_most, print_json, print_table, talk

if TYPE_CHECKING:
    from dpmech import Noise
    from optimizer_search import Cost

app = subcommand()


@dataclass(frozen=True, kw_only=True)
class Row:
    """One noise by one accountant."""

    noise: str
    accountant: str
    cost: float | None
    epsilon: float
    lower_epsilon: float | None
    advantage: float
    std: float | None
    seconds: float

    def cells(self) -> tuple[str, ...]:
        """The row as text."""
        lower = "" if self.lower_epsilon is None else at_least(self.lower_epsilon)
        spent = ("" if value is None else f"{value:.4g}" for value in (self.std, self.cost))
        bounds = (lower, at_most(self.epsilon), at_most(self.advantage), *spent)
        return (self.noise, *bounds, f"{1e3 * self.seconds:.0f}", self.accountant)


@dataclass(frozen=True, kw_only=True)
class Equal:
    """What the noises are made equal in, if in anything."""

    cost: Cost
    at_cost: float | None
    epsilon: float | None
    delta: float

    def scaled(self, account: given.Account) -> given.Account:
        """The same with the noise at the scale at which it is equal to the others."""
        from accountants import Ledger, calibrate_scale
        from dpmech import Target

        ((release, steps),) = account.ledger.entries
        if self.epsilon is not None:
            target = Target(epsilon=self.epsilon, delta=self.delta)
            plan = calibrate_scale(release, target, steps=steps, accountant=account.accountant)
            release = plan.mechanism
        if self.at_cost is not None:
            factor = self.cost.factor(release.noise, self.at_cost)
            release = replace(release, noise=release.noise.scaled(factor))
        return replace(account, ledger=Ledger().add(release, steps))


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
    epsilon: Annotated[
        float | None,
        typer.Option(help="Scale every noise to this epsilon first.", show_default=False),
    ] = None,
    at_cost: Annotated[
        float | None,
        typer.Option(help="Scale every noise to this cost first.", show_default=False),
    ] = None,
    cost: Annotated[
        str,
        typer.Option(help="variance, l1, usefulness[:GAMMA], quantile[:P] or entropy."),
    ] = "variance",
    accountants: Annotated[str, typer.Option(help="Accountants, with commas.")] = "pld",
    as_json: AsJson = False,
) -> None:
    """Compare what several noises cost, by one or several accountants.

    As they are, or at equal privacy (--epsilon), or at equal cost (--at-cost). What an accountant
    refuses is said on stderr and left out.

    Example: dpmech compare gaussian:sigma=1 laplace:b=.7 --rate .01 --steps 1000 --delta 1e-5

    Example: dpmech compare gaussian laplace logistic --at-cost 1 --steps 10 --delta 1e-6
    """
    from optimizer_search import Cost

    if epsilon is not None and at_cost is not None:
        raise ValueError(f"Expected --epsilon {epsilon} or --at-cost {at_cost}, not both.")
    equal = Equal(cost=Cost.parse(cost), at_cost=at_cost, epsilon=epsilon, delta=delta)
    rows: list[Row] = []
    refusals: list[Exception] = []
    for account in _accounts(noises, release, accountants):
        try:
            rows.append(_row(equal.scaled(account), equal))
        except _refusals() as error:
            refusals.append(error)
            talk(f"Left out {account.label} by {account.accountant}: {error}")
    if not rows:
        raise refusals[0]
    if as_json:
        print_json({"delta": delta, "rows": [vars(row) for row in rows]})
        return
    bounds = ("epsilon >=", "epsilon <=", "advantage <=", "std", str(equal.cost))
    header = ("noise", *bounds, "ms", "accountant")
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


def _row(account: given.Account, equal: Equal) -> Row:
    began = time.perf_counter()
    composed = account.composed()
    lower, upper = composed.epsilon_interval(equal.delta)
    seconds = time.perf_counter() - began
    return Row(
        noise=account.label,
        accountant=account.accountant,
        epsilon=upper,
        lower_epsilon=lower,
        advantage=composed.delta(0.0),
        std=_measured(account, lambda noise: noise.std),
        cost=_measured(account, equal.cost.of),
        seconds=round(seconds, 4),
    )


def _measured(account: given.Account, measure: Callable[[Noise], float]) -> float | None:
    """A measure of the noise; None of a guarantee, which has no noise."""
    ((mechanism, _),) = account.ledger.entries
    try:
        return measure(mechanism.noise)
    except ValueError:
        return None
