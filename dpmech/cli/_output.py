"""What is printed and how: strict JSON, bounds rounded to their safe side, tables."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from typing import Annotated, cast

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]

_DIGITS = 5
_UNFOLDED = 1000  # columns


def strict(value: object) -> object:
    """The value with infinite numbers as the texts "inf" and "-inf": JSON has no other way."""
    if isinstance(value, Mapping):
        return {str(k): strict(v) for k, v in cast("Mapping[object, object]", value).items()}
    if isinstance(value, list | tuple):
        return [strict(v) for v in cast("Sequence[object]", value)]
    if isinstance(value, float) and math.isinf(value):
        return str(value)
    return value


def print_json(value: Mapping[str, object]) -> None:
    """Print one JSON object on stdout."""
    typer.echo(json.dumps(strict(value), indent=2, allow_nan=False, ensure_ascii=False))


def talk(text: str) -> None:
    """Say something on stderr."""
    typer.echo(text, err=True)


def at_most(value: float) -> str:
    """An upper bound in five digits, rounded up.

    >>> at_most(1.82821)
    '1.8283'
    """
    return _rounded(value, ROUND_CEILING)


def at_least(value: float) -> str:
    """A lower bound in five digits, rounded down."""
    return _rounded(value, ROUND_FLOOR)


# What prv-accountant certifies is its own claim, and leaves out the rounding of its FFT.
KINDS = {
    "pld": "proved upper bound",
    "prv": "upper bound of prv-accountant",
    "rdp": "proved upper bound",
}


def bounded(
    name: str, lower: float | None, upper: float, accountant: str, *, attained: bool = True
) -> str:
    """A bound as the user reads it; rounding never makes it stronger, nor does the wording.

    ``attained``: the lower bound is about the mechanism itself, not about a pair that dominates it.

    >>> bounded("epsilon", None, 1.82821, "rdp")
    'epsilon <= 1.8283 (proved upper bound)'
    """
    if math.isinf(upper):
        return f"{name} = inf (no finite bound holds)"
    known = "truth" if attained else "of this proof's pairs"
    truth = "" if lower is None else f"; {known} >= {at_least(lower)}"
    return f"{name} <= {at_most(upper)} ({KINDS[accountant]}{truth})"


def _rounded(value: float, rounding: str) -> str:
    """Five significant digits, from the exact value of the float."""
    if not math.isfinite(value):
        return str(value)
    short = Context(prec=_DIGITS, rounding=rounding).create_decimal(Decimal(value))
    return f"{float(short):.{_DIGITS}g}"


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on stdout: names left, figures right, the last column left again."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for place, title in enumerate(header):
        middle = 0 < place < len(header) - 1
        table.add_column(title, justify="right" if middle else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    # A file or a pipe has no width of its own: nothing is folded for it.
    width = None if sys.stdout.isatty() else _UNFOLDED
    console = Console(highlight=False, markup=False, width=width)
    with console.capture() as printed:
        console.print(table)
    typer.echo("\n".join(line.rstrip() for line in printed.get().splitlines()))
