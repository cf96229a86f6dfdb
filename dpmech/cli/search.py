"""``dpmech search``: the published LMO grid, and the closed-form laws it has to beat."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dpmech.cli._group import subcommand
from dpmech.cli._output import AsJson, bounded, print_json, print_table, talk

if TYPE_CHECKING:
    from optimizer_search import Baseline, SearchResult

app = subcommand()


@app.command()
def search(
    *,
    epsilon: Annotated[float, typer.Option(help="Target epsilon.", show_default=False)],
    delta: Annotated[float, typer.Option(help="Target delta.", show_default=False)],
    family: Annotated[str, typer.Option(help="Family of laws: lmo-grid.")] = "lmo-grid",
    cost: Annotated[
        str, typer.Option(help="What a law costs: usefulness[:GAMMA], l1 or variance.")
    ] = "usefulness:0.9",
    accounting: Annotated[
        str, typer.Option(help="Accounting of the grid: exact, or the published bound (paper).")
    ] = "exact",
    rate: Annotated[float, typer.Option(help="Poisson sampling rate q.")] = 1.0,
    steps: Annotated[int, typer.Option(help="Number of releases T.")] = 1,
    sensitivity: Annotated[float, typer.Option(help="Sensitivity of the scalar query.")] = 1.0,
    dim: Annotated[int, typer.Option(help="Coordinates of the query; only 1 is proved.")] = 1,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Write the result here (.npz).", show_default=False),
    ] = None,
    compare: Annotated[
        bool, typer.Option(help="Rescale the closed-form laws to the same target and compare.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Find the cheapest noise of a family that meets a target on a scalar query.

    Example: dpmech search --epsilon 1 --delta 1e-6 --cost l1 -o law.npz

    The law is then written file:law.npz wherever a noise is.
    """
    from dpmech import LMO, Mechanism, Sampling, Sensitivity, Target
    from optimizer_search import (
        Cost,
        SearchProblem,
        baselines,
        rescaled,
        save_result,
        search_lmo_grid,
    )

    if family != "lmo-grid":
        raise ValueError(f"Unknown family {family!r}; the families are lmo-grid.")
    if dim != 1:  # refuses, with the reason
        Mechanism(noise=LMO(), sensitivity=Sensitivity(bound=sensitivity, dim=dim)).pairs()
    problem = SearchProblem(
        target=Target(epsilon=epsilon, delta=delta),
        steps=steps,
        sampling=Sampling(rate=rate),
        sensitivity=sensitivity,
        cost=Cost.parse(cost),
        accounting=accounting,  # type: ignore[arg-type]  # checked there
    )
    talk("Searching the 40 824 points of the LMO grid …")
    result = search_lmo_grid(problem)
    if output is not None:
        talk(f"The result is in {save_result(result, output)}.")
    others: tuple[Baseline, ...] = ()
    if compare:
        talk("Calibrating the closed-form laws to the same target …")
        others = (*baselines(problem), rescaled(problem, result.law))
    if as_json:
        print_json(to_dict(result, others))
        return
    typer.echo(str(result.law))
    typer.echo(f"  {problem.cost} cost: {result.cost:.6g}")
    typer.echo(f"  {bounded('epsilon', result.lower_epsilon, result.epsilon, 'pld')}")
    typer.echo(f"  the grid's {problem.accounting} accounting: {result.claimed_epsilon:.6g}")
    typer.echo(f"  {result.status}")
    if others:
        typer.echo(f"At equal privacy, epsilon {epsilon:g} and delta {delta:g}:")
        rows = [(f"{o.cost:.5g}", f"{o.noise.std:.5g}", str(o.noise)) for o in others]
        names = [o.noise.name for o in others[:-1]] + ["lmo, rescaled"]
        header = ("law", f"{problem.cost} cost", "std", "parameters")
        print_table(header, [(name, *row) for name, row in zip(names, rows, strict=True)])


def to_dict(result: SearchResult, others: tuple[Baseline, ...]) -> dict[str, object]:
    """The result for JSON; ``baselines`` ends with the winner rescaled to the target."""
    return {
        "noise": str(result.law),
        "family": "lmo-grid",
        "cost": result.cost,
        "epsilon": result.epsilon,
        "lower_epsilon": result.lower_epsilon,
        "claimed_epsilon": result.claimed_epsilon,
        "delta": result.problem.target.delta,
        "problem": result.problem.to_dict(),
        "baselines": [
            {"noise": str(o.noise), "cost": o.cost, "epsilon": o.epsilon, "std": o.noise.std}
            for o in others
        ],
        "status": result.status,
        "seconds": round(result.seconds, 3),
    }
