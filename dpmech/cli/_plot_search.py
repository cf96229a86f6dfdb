"""``dpmech plot cost`` and ``dpmech plot gain``: what laws cost, and what searching them saves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from dpmech.cli import _release as given
from dpmech.cli._output import AsJson, talk
from dpmech.cli._plots import (
    Noises,
    Output,
    checked_files,
    numbers,
    scaled_series,
    tell_files,
    watched,
    write_plot,
)

if TYPE_CHECKING:
    from optimizer_search import Cost, SearchProblem, SearchResult

ClaimDelta = Annotated[float, typer.Option(help="The delta of all targets.", show_default=False)]


def cost(
    noises: Noises,
    *,
    delta: ClaimDelta,
    epsilons: Annotated[str, typer.Option(help="Target epsilons, with commas.")] = ".3,1,3,10",
    cost: Annotated[
        str,
        typer.Option(help="variance, l1, usefulness[:GAMMA], quantile[:P] or entropy."),
    ] = "variance",
    rate: given.Rate = None,
    steps: given.Steps = None,
    sensitivity: given.Bound = None,
    norm: given.Norm = None,
    dim: given.Dim = None,
    accountant: given.AccountantName = None,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Plot what each noise costs against epsilon, each scaled to every target.

    Example: dpmech plot cost gaussian laplace file:law.npz --delta 1e-6 --cost l1
    """
    files = checked_files(output, "cost")
    from dpmech import plotting
    from optimizer_search import Cost

    wanted, targets = Cost.parse(cost), numbers(epsilons)
    release = given.Release(rate=rate, steps=steps, sensitivity=sensitivity, norm=norm, dim=dim)
    series = [
        scaled_series(text, release, (delta, accountant or "pld"), targets, wanted.of)
        for text in watched(noises, "calibrations")
    ]
    ax = plotting.plot_cost(series, plotting.blank_axes(), cost=_with_unit(wanted))
    write_plot(ax, files)
    data = [
        {"noise": s.label, "epsilon": s.epsilon.tolist(), "cost": s.value.tolist()} for s in series
    ]
    tell_files(files, {"delta": delta, "cost": str(wanted), "series": data}, as_json)


def _with_unit(cost: Cost) -> str:
    """What the axis says of a cost."""
    return {
        "variance": "variance (query units²)",
        "l1": "E|X| (query units)",
        "usefulness": f"P(|X| > {cost.parameter}) (probability)",
        "quantile": f"{cost.parameter} quantile of |X| (query units)",
        "entropy": "entropy (nats)",
    }[cost.name]


def gain(
    *,
    delta: ClaimDelta,
    sigma: Annotated[
        float, typer.Option(help="Standard deviation of a coordinate, of all the laws.")
    ] = 1.0,
    dims: Annotated[str, typer.Option(help="Dimensions, with commas.")] = "1,2,5,10",
    rate: Annotated[float, typer.Option(help="Sampling rate q.")] = 1.0,
    steps: Annotated[int, typer.Option(help="Number of releases T.")] = 1,
    sensitivity: Annotated[float, typer.Option(help="l2 sensitivity of the query.")] = 1.0,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Plot how much of the Gaussian's epsilon the best law of its variance saves, by dimension.

    Example: dpmech plot gain --delta 1e-5 --rate .01 --steps 1000 --dims 1,2,10

    Every dimension is a search: seconds to minutes. Ctrl-C keeps the best so far of the dimension
    at hand, and goes on to the next.
    """
    files = checked_files(output, "gain")
    from tqdm import tqdm

    from dpmech import Sampling, plotting
    from optimizer_search import Budget, Cost, SearchProblem

    problems = [
        SearchProblem(
            target=Budget(cost=sigma**2, delta=delta),
            steps=steps,
            sampling=Sampling(rate=rate),
            sensitivity=sensitivity,
            dim=dim,
            cost=Cost(name="variance"),
        )
        for dim in _dims(dims)
    ]
    rows = [_gained(problem) for problem in tqdm(problems, unit="dims", disable=None, leave=False)]
    shares = [row["gain"] for row in rows]
    ax = plotting.plot_gain([problem.dim for problem in problems], shares, plotting.blank_axes())
    write_plot(ax, files)
    tell_files(files, {"delta": delta, "sigma": sigma, "dims": rows}, as_json)


def _dims(text: str) -> list[int]:
    """Rising dimensions from a text with commas."""
    try:
        return sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise ValueError(
            f"Expected whole numbers with commas as dimensions, got {text!r}."
        ) from None


def _gained(problem: SearchProblem) -> dict[str, float]:
    """The epsilons of the best law and of the Gaussian, and the share that is saved."""
    from optimizer_search import search

    found = search(problem, bound=False)
    gaussian = _gaussian(found)
    talk(
        f"dim={problem.dim}: epsilon {found.epsilon:.6g} ({found.family}), Gaussian {gaussian:.6g}"
    )
    return {
        "dim": problem.dim,
        "epsilon": found.epsilon,
        "gaussian": gaussian,
        "gain": 1 - found.epsilon / gaussian if gaussian > 0 else 0.0,
    }


def _gaussian(found: SearchResult) -> float:
    """The epsilon of Gaussian noise that costs as much."""
    return next(row.epsilon for row in found.baselines if row.family == "gaussian")
