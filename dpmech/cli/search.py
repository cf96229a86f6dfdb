"""``dpmech search``: the best noise for a problem, proved, with how far it may be from the best."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpmech.cli._group import subcommand
from dpmech.cli._output import AsJson, at_least, at_most, bounded, print_json, print_table, talk

if TYPE_CHECKING:
    from dpmech import Target
    from optimizer_search import Baseline, Budget, SearchResult

app = subcommand()

_GOAL, _RELEASE = "What is wanted (one of epsilon, at-cost)", "What is released"


@app.command()
def search(
    *,
    delta: Annotated[
        float,
        typer.Option(help="Delta of the guarantee.", show_default=False, rich_help_panel=_GOAL),
    ],
    epsilon: Annotated[
        float | None,
        typer.Option(
            help="Target epsilon: find the least cost.", show_default=False, rich_help_panel=_GOAL
        ),
    ] = None,
    at_cost: Annotated[
        float | None,
        typer.Option(
            help="Cost to spend: find the least epsilon.", show_default=False, rich_help_panel=_GOAL
        ),
    ] = None,
    cost: Annotated[
        str,
        typer.Option(
            help="What a law costs: variance, l1, usefulness[:GAMMA], quantile[:P] or entropy.",
            rich_help_panel=_GOAL,
        ),
    ] = "variance",
    family: Annotated[
        str,
        typer.Option(
            help="auto, closed-form, single-release, composed, radial, renyi, kl, lmo, lmo-grid or "
            "laplace-mixture."
        ),
    ] = "auto",
    accounting: Annotated[
        str, typer.Option(help="Accounting of the LMO families: exact, or as published (paper).")
    ] = "exact",
    rate: Annotated[float, typer.Option(help="Sampling rate q.", rich_help_panel=_RELEASE)] = 1.0,
    steps: Annotated[int, typer.Option(help="Number of releases T.", rich_help_panel=_RELEASE)] = 1,
    sensitivity: Annotated[
        float, typer.Option(help="l2 sensitivity of the query.", rich_help_panel=_RELEASE)
    ] = 1.0,
    dim: Annotated[
        int, typer.Option(help="Coordinates of the query.", rich_help_panel=_RELEASE)
    ] = 1,
    cells: Annotated[
        int | None,
        typer.Option(help="Cells of the table per sensitivity.", show_default="chosen"),
    ] = None,
    bound: Annotated[bool, typer.Option(help="Prove a lower bound on what is possible.")] = True,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Write the result here (.npz).", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find the noise of least cost at an epsilon, or of least epsilon at a cost, and prove it.

    Example: dpmech search --epsilon 1 --delta 1e-6 --cost l1 -o law.npz

    Example: dpmech search --at-cost 1 --delta 1e-5 --rate .01 --steps 1000

    The law is then written file:law.npz wherever a noise is. Ctrl-C keeps the best so far.
    """
    from dpmech import Sampling
    from optimizer_search import Cost, SearchProblem, save_result
    from optimizer_search import search as searched

    problem = SearchProblem(
        target=_goal(epsilon, at_cost, delta),
        steps=steps,
        sampling=Sampling(rate=rate),
        sensitivity=sensitivity,
        dim=dim,
        cost=Cost.parse(cost),
        cells=cells,
        accounting=accounting,  # type: ignore[arg-type]  # checked there
    )
    if output is not None and not output.parent.is_dir():
        raise ValueError(f"No such folder: {str(output.parent)!r}; make it first.")
    with _progress() as report:
        result = searched(problem, family, bound=bound, report=report)
    if output is not None:
        talk(f"The result is in {save_result(result, output)}.")
    if as_json:
        print_json(to_dict(result))
    else:
        _print(result)


def _goal(epsilon: float | None, at_cost: float | None, delta: float) -> Target | Budget:
    from dpmech import Target
    from optimizer_search import Budget

    if (epsilon is None) == (at_cost is None):
        raise ValueError(
            "Expected one of --epsilon (for the least cost) and --at-cost (for the least epsilon), "
            f"got epsilon={epsilon} and at-cost={at_cost}."
        )
    if epsilon is not None:
        return Target(epsilon=epsilon, delta=delta)
    return Budget(cost=float(at_cost or 0.0), delta=delta)


@contextmanager
def _progress() -> Generator[Any]:
    """A line on stderr that says what was found last; nothing of it stays."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False, markup=False)
    with console.status("Searching … (Ctrl-C keeps the best so far)") as status:
        yield lambda text: status.update(f"Searching … {text}")


def _print(result: SearchResult) -> None:
    problem = result.problem
    typer.echo(str(result.law))
    typer.echo(f"  {problem.cost}: {at_most(result.cost)}")
    attained = not _rises(result)
    typer.echo(
        "  "
        + bounded("epsilon", result.lower_epsilon, result.epsilon, "pld", attained=attained)
        + f" at delta {problem.delta:g}"
    )
    if result.claimed_epsilon is not None:
        typer.echo(f"  its family's own accounting: {result.claimed_epsilon:.6g}")
    typer.echo(f"  {_gap(result)}")
    typer.echo(f"  {result.status}")
    if result.baselines:
        typer.echo("Closed forms, tuned to the same problem:")
        print_table(
            ("law", str(problem.cost), "epsilon <=", "worse by", "parameters"), _rows(result)
        )


def _rises(result: SearchResult) -> bool:
    from dpmech.tabulated import Tabulated

    return isinstance(result.law, Tabulated) and not result.law.falling


def _gap(result: SearchResult) -> str:
    if result.bound is None:
        return "no lower bound was asked for, or none is known: the best possible may be far away"
    bound = result.bound
    found = str(result.problem.cost) if bound.on == "cost" else "epsilon"
    return (
        f"no law has {found} below {at_least(bound.value)} ({bound.method}); this one is within "
        f"{100 * (result.gap or 0.0):.2g} % of what is possible"
    )


def _rows(result: SearchResult) -> list[tuple[str, ...]]:
    least = result.cost if result.problem.least_cost else result.epsilon
    return [
        (
            row.family,
            f"{row.cost:.5g}",
            at_most(row.epsilon),
            f"{100 * (row.value(result.problem) / least - 1):.1f} %" if least > 0 else "",
            str(row.law),
        )
        for row in result.baselines
    ]


def to_dict(result: SearchResult) -> dict[str, object]:
    """The result for JSON."""
    bound = result.bound
    return {
        "noise": str(result.law),
        "law": result.law.to_dict(),
        "family": result.family,
        "cost": result.cost,
        "epsilon": result.epsilon,
        "lower_epsilon": result.lower_epsilon,
        "delta": result.problem.delta,
        "claimed_epsilon": result.claimed_epsilon,
        "lower_bound": None if bound is None else bound.value,
        "lower_bound_on": None if bound is None else bound.on,
        "lower_bound_method": None if bound is None else bound.method,
        "gap": result.gap,
        "problem": result.problem.to_dict(),
        "baselines": [_baseline(row) for row in result.baselines],
        "status": result.status,
        "seconds": round(result.seconds, 3),
    }


def _baseline(row: Baseline) -> dict[str, object]:
    return {
        "family": row.family,
        "noise": str(row.law),
        "cost": row.cost,
        "epsilon": row.epsilon,
        "lower_epsilon": row.lower_epsilon,
        "std": row.law.std,
    }
