"""``dpmech sample``: draws from a noise."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dpmech.cli import _release as given
from dpmech.cli._group import subcommand
from dpmech.cli._output import AsJson, print_json, talk

if TYPE_CHECKING:
    from dpmech.noise import Floats, Noise

app = subcommand()


@app.command()
def sample(
    noise: given.NoiseText = None,
    *,
    size: Annotated[int, typer.Option(help="How many draws.")] = 1,
    seed: Annotated[
        int | None,
        typer.Option(help="Seed of the draws.", show_default="the operating system's entropy"),
    ] = None,
    step: Annotated[
        float | None,
        typer.Option(
            help="Exact draws of the law on this lattice, a power of two, from whole weights.",
            show_default="draws in floating point",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Write a .npy file instead.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print independent draws from a noise, one on a line.

    The draws are for looking at the law: what is printed with its seed protects nobody.
    """
    import numpy as np

    from dpmech.files import write_atomically

    if size < 1:
        raise ValueError(f"Expected size={size} to be a whole number, 1 or above.")
    if seed is not None and seed < 0:
        raise ValueError(f"Expected seed={seed} to be a whole number, 0 or above.")
    if output is not None and output.suffix != ".npy":
        raise ValueError(f"Expected a file that ends in .npy, got {str(output)!r}.")
    law = given.noise_from(noise)
    draws = _draws(law, size, seed=seed, step=step)
    described = {"noise": str(law), "size": size, "seed": seed, "step": step}
    if output is not None:
        content = io.BytesIO()
        np.save(content, draws)
        write_atomically(output, content.getvalue())
        talk(f"{size} draws from {law} are in {output}.")
        if as_json:
            print_json({**described, "file": str(output)})
    elif as_json:
        print_json({**described, "draws": draws.tolist()})
    else:
        typer.echo("\n".join(map(repr, draws.tolist())))


def _draws(law: Noise, size: int, *, seed: int | None, step: float | None) -> Floats:
    """In floating point, or exactly: then from secret words unless there is a seed."""
    import numpy as np

    rng = np.random.default_rng(seed)
    if step is None:
        return law.sample(size, rng)
    from dpmech.drawing import secret_words, seeded_words
    from dpmech.release import ExactRelease

    words = secret_words if seed is None else seeded_words(rng)
    return ExactRelease(law=law, step=step).release(np.zeros(size), words)
