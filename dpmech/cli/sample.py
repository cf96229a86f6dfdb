"""``dpmech sample``: draws from a noise."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Annotated

import typer

from dpmech.cli import _release as given
from dpmech.cli._group import subcommand
from dpmech.cli._output import AsJson, print_json, talk

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
    draws = law.sample(size, np.random.default_rng(seed))
    described = {"noise": str(law), "size": size, "seed": seed}
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
