"""What the pictures of ``dpmech plot`` share: options, files, laws scaled to targets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dpmech.cli import _release as given
from dpmech.cli._output import print_json, talk

if TYPE_CHECKING:
    from dpmech.noise import Noise
    from dpmech.plotting import Axes, NoiseSeries

Noises = Annotated[
    list[str],
    typer.Argument(metavar="NOISE…", help="NAME:key=value,…, several.", show_default=False),
]
Output = Annotated[
    list[Path] | None,
    typer.Option(
        "-o",
        "--output",
        help="A .png or .svg file to write; may be repeated.",
        show_default="the plot's name.png",
    ),
]


def checked_files(output: Sequence[Path] | None, name: str) -> list[Path]:
    """The files to write, checked before anything is computed."""
    from dpmech.plotting import checked_format, require_matplotlib

    require_matplotlib()
    return [checked_format(path) for path in output or [Path(f"{name}.png")]]


def write_plot(ax: Axes, files: Iterable[Path]) -> None:
    """The picture in all its files."""
    from dpmech.plotting import save_figure

    for path in files:
        save_figure(ax, path)


def tell_files(files: Sequence[Path], data: Mapping[str, object], as_json: bool) -> None:
    """The names of the files on stdout, or all that was drawn as JSON."""
    if as_json:
        print_json({"files": [str(path) for path in files], **data})
    else:
        typer.echo("\n".join(map(str, files)))


def watched(texts: Sequence[str], unit: str) -> Iterable[str]:
    """The noises, all read before the first is computed, with a progress bar on a terminal."""
    from tqdm import tqdm

    for text in texts:
        given.noise_from(text)
    return tqdm(texts, unit=unit, disable=None, leave=False)


def numbers(text: str) -> list[float]:
    """Rising epsilons from a text with commas; a target checks each of them."""
    try:
        return sorted({float(part) for part in text.split(",")})
    except ValueError:
        raise ValueError(f"Expected numbers with commas as epsilons, got {text!r}.") from None


def scaled_series(
    text: str,
    release: given.Release,
    claim: tuple[float, str],
    targets: Sequence[float],
    cost: Callable[[Noise], float],
) -> NoiseSeries:
    """What one law costs, scaled to each target; those that it cannot meet are left out, aloud."""
    import numpy as np

    from accountants import calibrate
    from dpmech import Target, Unattainable
    from dpmech.plotting import NoiseSeries

    (delta, accountant), law = claim, given.noise_from(text)
    mechanism = release.mechanism(law)
    met: list[tuple[float, float]] = []
    for epsilon in targets:
        try:
            plan = calibrate(
                law,
                Target(epsilon=epsilon, delta=delta),
                steps=release.count,
                sampling=mechanism.sampling,
                sensitivity=mechanism.sensitivity,
                accountant=accountant,
            )
            met.append((epsilon, cost(plan.mechanism.noise)))
        except Unattainable as error:
            talk(f"Left out {text} at epsilon {epsilon:g}: {error}")
    if not met:
        raise Unattainable(f"{text} meets none of the targets {targets}.", reached=float("inf"))
    return NoiseSeries(
        label=text, epsilon=np.array([m[0] for m in met]), value=np.array([m[1] for m in met])
    )
