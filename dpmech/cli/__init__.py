"""The command line ``dpmech``: results on stdout, talk on stderr, exit code 0, 1 or 2.

Here only the names of the subcommands are known; the module of the one that runs is imported then,
so that ``dpmech --help`` loads neither numpy nor torch.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from dpmech.cli._group import LazyGroup

# Each subcommand lives in dpmech.cli.NAME (with _ for -), in a typer.Typer called app
# (see _group.subcommand).
COMMANDS = {
    "epsilon": "The privacy that a noise costs: a proved upper bound on epsilon.",
    "delta": "The same at a given epsilon: a proved upper bound on delta.",
    "calibrate": "The least noise, or the most sampling or steps, that meets a target.",
    "curve": "Privacy curves: delta, epsilon, trade-off and advantage, with both bounds.",
    "compare": "Several noises and accountants side by side.",
    "statement": "A paragraph that says what is proved, to be quoted.",
    "search": "The best noise for a target, among a family of laws.",
    "audit": "Hold a privacy claim to its limits, or draws to the law they are declared to have.",
    "laws": "The noise laws, their parameters and defaults.",
    "sample": "Draw from a noise.",
    "train": "Federated training of any system under a privacy plan.",
    "compare-systems": "Several federated systems at several epsilons, in one table.",
    "plot": "Privacy curves, densities, noise and accuracy against epsilon.",
    "demo": "The whole way: search, account, train, plot and report.",
}

app = typer.Typer(
    name="dpmech",
    cls=LazyGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    """Print the version and stop."""
    if wanted:
        from dpmech import __version__

        typer.echo(f"dpmech {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", hidden=True, envvar="DPMECH_DEBUG")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Search a noise for differential privacy, account for it, and spend it on fine-tuning.

    Noise is written NAME:key=value,… — as in gaussian:sigma=1 or lmo:preset=0.3.

    Exit code 0: done.

    Exit code 1: a target that cannot be met, or a run that failed.

    Exit code 2: bad input, or a claim that is not proved.
    """
    del debug, version  # read by LazyGroup, and by the callback above


def _later() -> None:
    """Stand in for a subcommand until its module is imported."""


for _name, _help in COMMANDS.items():
    app.command(_name, help=_help)(_later)


def main() -> None:
    """Run the command line."""
    try:
        app()
    except KeyboardInterrupt:  # before or after the subcommand proper
        typer.echo("Interrupted.", err=True)
        sys.exit(130)


__all__ = ["COMMANDS", "app", "main"]
