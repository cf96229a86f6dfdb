"""``dpmech plot``: pictures of what the other subcommands compute."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dpmech.cli import _release as given
from dpmech.cli._group import subcommand
from dpmech.cli._output import AsJson, talk
from dpmech.cli._plot_search import cost, gain
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
    from dpmech.noise import Noise
    from dpmech.plotting import Curve

app = subcommand()

# Looser than an accountant's own: a hundredth of a line's width is enough for a picture.
_TOLERANCE = 1e-3


@app.callback()
def plot() -> None:
    """Plot privacy curves, densities, noise, cost or accuracy against epsilon, gains."""


app.command()(cost)
app.command()(gain)


@app.command()
def curve(
    noises: Noises,
    *,
    rate: given.Rate = None,
    steps: given.Steps = None,
    sensitivity: given.Bound = None,
    norm: given.Norm = None,
    dim: given.Dim = None,
    accountant: given.AccountantName = None,
    delta_min: Annotated[float, typer.Option(help="Smallest delta to draw.")] = 1e-10,
    delta_max: Annotated[float, typer.Option(help="Largest delta to draw.")] = 0.1,
    points: Annotated[int, typer.Option(help="Points on a curve.")] = 12,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Plot delta against epsilon for several noises at the same steps and rate.

    Example: dpmech plot curve gaussian:sigma=2 laplace:b=1.5 --steps 10 -o curve.svg
    """
    files = checked_files(output, "curve")
    from dpmech import plotting

    if not (0 < delta_min < delta_max < 1):
        raise ValueError(
            f"Expected 0 < delta-min={delta_min} < delta-max={delta_max} < 1 for the curve."
        )
    if points < 2:
        raise ValueError(f"Expected points={points} to be a whole number, 2 or above.")
    release = given.Release(rate=rate, steps=steps, sensitivity=sensitivity, norm=norm, dim=dim)
    deltas = _logspaced(delta_min, delta_max, points)
    curves = [
        _curve(text, release, accountant or "pld", deltas) for text in watched(noises, "curves")
    ]
    write_plot(plotting.plot_curve(curves, plotting.blank_axes()), files)
    data = [
        {
            "noise": c.label,
            "delta": c.delta.tolist(),
            "epsilon": c.epsilon.tolist(),
            "lower_epsilon": None if c.lower_epsilon is None else c.lower_epsilon.tolist(),
        }
        for c in curves
    ]
    tell_files(files, {"accountant": accountant or "pld", "curves": data}, as_json)


@app.command()
def densities(
    noises: Noises,
    *,
    log: Annotated[bool, typer.Option("--log", help="Logarithmic density: shows tails.")] = False,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Plot the densities of several noises.

    Example: dpmech plot densities gaussian laplace:b=.7 lmo:preset=2 --log
    """
    files = checked_files(output, "densities")
    from dpmech import plotting

    laws = [given.noise_from(text) for text in noises]
    ax = plotting.plot_densities(laws, plotting.blank_axes(), labels=noises, log=log)
    write_plot(ax, files)
    tell_files(files, {"noises": [str(law) for law in laws]}, as_json)


@app.command()
def noise(
    noises: Noises,
    *,
    delta: Annotated[float, typer.Option(help="The delta of all targets.", show_default=False)],
    epsilons: Annotated[str, typer.Option(help="Target epsilons, with commas.")] = ".3,1,3,10",
    measure: Annotated[
        Literal["std", "mean-abs"], typer.Option(help="std or mean-abs (E|X|).")
    ] = "std",
    rate: given.Rate = None,
    steps: given.Steps = None,
    sensitivity: given.Bound = None,
    norm: given.Norm = None,
    dim: given.Dim = None,
    accountant: given.AccountantName = None,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Plot how much of each noise a target epsilon needs, each calibrated to it.

    Example: dpmech plot noise gaussian laplace gg:beta=1.4 --delta 1e-6 --steps 10
    """
    files = checked_files(output, "noise")
    from dpmech import plotting

    release = given.Release(rate=rate, steps=steps, sensitivity=sensitivity, norm=norm, dim=dim)
    targets = numbers(epsilons)
    width: Callable[[Noise], float] = (
        (lambda law: law.std) if measure == "std" else (lambda law: law.mean_abs)
    )
    series = [
        scaled_series(text, release, (delta, accountant or "pld"), targets, width)
        for text in watched(noises, "calibrations")
    ]
    title = "standard deviation" if measure == "std" else "mean absolute value"
    ax = plotting.plot_noise_against_epsilon(series, plotting.blank_axes(), measure=title)
    write_plot(ax, files)
    data = [
        {"noise": s.label, "epsilon": s.epsilon.tolist(), measure: s.value.tolist()} for s in series
    ]
    tell_files(files, {"delta": delta, "measure": measure, "series": data}, as_json)


@app.command()
def accuracy(
    reports: Annotated[
        list[Path],
        typer.Argument(
            metavar="REPORT…", help="report.json files, or folders of runs.", show_default=False
        ),
    ],
    *,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Plot accuracy against epsilon from the reports of training runs, with seed intervals.

    Example: dpmech plot accuracy runs/ -o accuracy.png -o accuracy.svg
    """
    files = checked_files(output, "accuracy")
    from dpmech import plotting
    from dpmech.cli._reports import Summary

    found = Summary.read(reports)
    for line in found.left_out:
        talk(line)
    ax = plotting.plot_accuracy_against_epsilon(
        found.points,
        plotting.blank_axes(),
        majority=found.majority,
        non_private=found.non_private,
    )
    write_plot(ax, files)
    tell_files(files, found.to_dict(), as_json)


def _logspaced(low: float, high: float, points: int) -> list[float]:
    return [low * (high / low) ** (i / (points - 1)) for i in range(points)]


def _curve(text: str, release: given.Release, accountant: str, deltas: Sequence[float]) -> Curve:
    """Certified points of one law, delta by delta: no guess at the range of epsilon is needed."""
    import numpy as np

    from accountants import PLD, accountant_named
    from dpmech.plotting import Curve

    fresh = PLD(tolerance=_TOLERANCE) if accountant == "pld" else accountant_named(accountant)
    composed = fresh.compose(release.mechanism(given.noise_from(text)), release.count)
    found = [composed.epsilon_interval(delta) for delta in deltas]
    lower = [low for low, _ in found if low is not None]
    return Curve(
        label=text,
        epsilon=np.array([high for _, high in found]),
        delta=np.array(deltas),
        lower_epsilon=np.array(lower) if len(lower) == len(found) else None,
    )
