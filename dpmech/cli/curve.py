"""``dpmech curve``: delta, epsilon, trade-off and advantage as functions, with both bounds."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dpmech.cli import _release as given
from dpmech.cli._group import subcommand
from dpmech.cli._options import with_account
from dpmech.cli._output import AsJson, at_least, at_most, print_json, print_table, strict, talk

if TYPE_CHECKING:
    from accountants import Accountant
    from accountants.curves import Band

app = subcommand()

Kind = Literal["delta", "epsilon", "tradeoff", "advantage"]
# A gap that no plot shows, and no fourth digit.
_TOLERANCE = 1e-4
_STARTS = {"delta": 0.0, "epsilon": 1e-10, "tradeoff": 1e-4, "advantage": 1e-4}
_ENDS = {"epsilon": 0.1, "tradeoff": 0.99, "advantage": 0.5}
_NAMES = {
    "delta": ("epsilon", "delta"),
    "epsilon": ("delta", "epsilon"),
    "tradeoff": ("fpr", "fnr"),
    "advantage": ("fpr", "advantage"),
}


@app.command()
@with_account
def curve(
    *,
    account: given.Account,
    of: Annotated[Kind, typer.Option(help="Which curve.")] = "delta",
    low: Annotated[
        float | None,
        typer.Option("--from", help="Where it starts.", show_default="0, 1e-10, 1e-4, 1e-4"),
    ] = None,
    high: Annotated[
        float | None,
        typer.Option(
            "--to", help="Where it ends.", show_default="epsilon at delta 1e-10, .1, .99, .5"
        ),
    ] = None,
    points: Annotated[int, typer.Option(help="Points on the curve.")] = 13,
    plot: Annotated[
        Path | None, typer.Option(help="Draw it here (.png or .svg).", show_default=False)
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Write it here (.csv or .json).", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print a privacy curve, with an upper and a lower bound at each point.

    delta at each epsilon, epsilon at each delta, or, at each false positive rate of an attack, its
    false negative rate (tradeoff) or its true positive rate less the false one (advantage).

    Example: dpmech curve gaussian:sigma=1 --rate .01 --steps 1000 --of tradeoff --plot curve.png
    """
    began = time.perf_counter()
    _check_files(output, plot)
    accountant = account.composed(_TOLERANCE)
    x = _grid(of, accountant, (low, high), points)
    found = _computed(of, accountant, x)
    data = {**_to_dict(of, found), **account.to_dict()}
    if output is not None:
        _write(output, of, found, data)
        talk(f"The curve is in {output}.")
    if plot is not None:
        _draw(of, account.label, found, plot)
        talk(f"The plot is in {plot}.")
    if as_json:
        print_json({**data, "seconds": round(time.perf_counter() - began, 3)})
        return
    name, value = _NAMES[of]
    rows = zip(found.x, found.lower, found.upper, strict=True)
    cells = [(f"{at:.6g}", at_least(float(a)), at_most(float(b))) for at, a, b in rows]
    print_table((name, f"{value} >=", f"{value} <="), cells)
    typer.echo("\n".join(account.claim()))


def _check_files(output: Path | None, plot: Path | None) -> None:
    """Refuse endings that cannot be written, before anything is computed."""
    if output is not None and output.suffix not in (".csv", ".json"):
        raise ValueError(f"Expected a file that ends in .csv or .json, got {str(output)!r}.")
    if plot is not None:
        from dpmech.plotting import checked_format, require_matplotlib

        require_matplotlib()
        checked_format(plot)


def _grid(
    of: Kind, accountant: Accountant, ends: tuple[float | None, float | None], points: int
) -> list[float]:
    """Rising points: evenly spaced for epsilon and the trade-off, evenly in logs for the others."""
    if points < 2:
        raise ValueError(f"Expected points={points} to be a whole number, 2 or above.")
    low = _STARTS[of] if ends[0] is None else ends[0]
    high = ends[1]
    if high is None:
        high = _reach(accountant) if of == "delta" else _ENDS[of]
    least, end = (0.0, math.inf) if of == "delta" else (sys.float_info.min, 1.0)
    if not (least <= low < high < end):
        raise ValueError(
            f"Expected a range that rises, from {least:g} or more to below {end:g}, got "
            f"--from {low:g} --to {high:g}."
        )
    if of in ("delta", "tradeoff"):
        return [low + (high - low) * i / (points - 1) for i in range(points)]
    return [low * (high / low) ** (i / (points - 1)) for i in range(points)]


def _reach(accountant: Accountant) -> float:
    """An epsilon beyond which there is little to see."""
    for delta in (1e-10, 1e-5, 1e-2):
        epsilon = accountant.epsilon(delta)
        if 0 < epsilon < math.inf:
            return epsilon
    raise ValueError(f"Expected --to: epsilon is {epsilon} at delta=0.01, which says no range.")


def _computed(of: Kind, accountant: Accountant, x: list[float]) -> Band:
    """The curve at the points."""
    from accountants.curves import Band, delta_curve, epsilon_curve, tradeoff_curve

    of_points: dict[str, Callable[[Accountant, list[float]], Band]] = {
        "delta": delta_curve,
        "epsilon": epsilon_curve,
    }
    found = of_points.get(of, tradeoff_curve)(accountant, x)
    if of != "advantage":
        return found
    return Band(x=found.x, lower=1 - found.x - found.upper, upper=1 - found.x - found.lower)


def _to_dict(of: Kind, found: Band) -> dict[str, object]:
    name, value = _NAMES[of]
    return {
        "curve": of,
        name: found.x.tolist(),
        f"lower_{value}": found.lower.tolist(),
        f"upper_{value}": found.upper.tolist(),
    }


def _write(output: Path, of: Kind, found: Band, data: dict[str, object]) -> None:
    """The curve as a file: a table of its three columns, or all that JSON says."""
    from dpmech.files import write_atomically

    if output.suffix == ".json":
        write_atomically(output, json.dumps(strict(data), indent=2, allow_nan=False) + "\n")
        return
    name, value = _NAMES[of]
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow([name, f"lower_{value}", f"upper_{value}"])
    columns = (found.x.tolist(), found.lower.tolist(), found.upper.tolist())
    rows.writerows(zip(*columns, strict=True))
    write_atomically(output, text.getvalue())


def _draw(of: Kind, label: str, found: Band, path: Path) -> None:
    """The plot of the curve."""
    from dpmech import plotting

    ax = plotting.blank_axes()
    if of == "delta":
        drawn = plotting.Curve(
            label=label, epsilon=found.x, delta=found.upper, lower_delta=found.lower
        )
        plotting.plot_curve([drawn], ax)
    elif of == "epsilon":
        drawn = plotting.Curve(
            label=label, epsilon=found.upper, delta=found.x, lower_epsilon=found.lower
        )
        plotting.plot_curve([drawn], ax)
    elif of == "tradeoff":
        rates = plotting.Tradeoff(label=label, fpr=found.x, lower=found.lower, upper=found.upper)
        plotting.plot_tradeoff([rates], ax)
    else:
        chance = 1 - found.x
        rates = plotting.Tradeoff(
            label=label, fpr=found.x, lower=chance - found.upper, upper=chance - found.lower
        )
        plotting.plot_advantage([rates], ax)
    plotting.save_figure(ax, path)
