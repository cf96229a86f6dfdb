"""``dpmech statement``: a paragraph that says what is proved, to be quoted."""

from __future__ import annotations

import math
import time
from typing import Annotated, Literal

import typer

from dpmech.cli import _release as given
from dpmech.cli._group import subcommand
from dpmech.cli._options import with_account
from dpmech.cli._output import at_least, at_most, print_json

app = subcommand()

Format = Literal["text", "markdown", "latex", "json"]

_PROVED = {
    "pld": "The bound is proved: it comes from the privacy loss distributions of dominating pairs, "
    "composed with the errors of discretisation, truncation and rounding bounded and added.",
    "rdp": "The bound is proved: the least over all real orders of a Rényi bound (conversion of "
    "Canonne, Kamath and Steinke 2020), with the divergences rounded up.",
    "prv": "The bound is that of the prv-accountant package, which covers discretisation and "
    "truncation but not the rounding of its Fourier transform.",
}
_SCOPE = (
    "It is about the releases that are listed, at parameters fixed beforehand, and assumes that "
    "each contribution is clipped and each sample drawn as stated, with noise of exactly that law."
)
# Text: how an epsilon, a delta, "at most" and a name are written.
_WORDS = {
    "text": ("epsilon", "delta", "<=", "{}"),
    "markdown": ("ε", "δ", "≤", "`{}`"),
    "latex": (r"$\varepsilon$", r"$\delta$", r"$\leq$", r"\texttt{{{}}}"),
}


@app.command()
@with_account
def statement(
    *,
    account: given.Account,
    delta: given.ClaimDelta = None,
    unit: Annotated[str, typer.Option(help="What a record is.")] = "record",
    form: Annotated[Format, typer.Option("--format", help="How it is written.")] = "text",
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
) -> None:
    """Print a paragraph that states the privacy of a noise, a ledger or a plan, with all its terms.

    Example: dpmech statement gaussian:sigma=1 --rate .01 --steps 1000 --delta 1e-5 --unit user
    """
    from dpmech import __version__

    began, at = time.perf_counter(), account.delta(delta)
    lower, upper = account.composed().epsilon_interval(at)
    if math.isinf(upper):
        raise ValueError(
            f"Expected a finite epsilon to state at delta={at:g}, but none holds; take a larger "
            "delta or another noise."
        )
    if form == "json" or as_json:
        said = paragraph(account, at, (lower, upper), unit=unit)
        result = {"epsilon": upper, "lower_epsilon": lower, "delta": at, **account.to_dict()}
        print_json(
            {
                **result,
                "unit": unit,
                "version": __version__,
                "proved": _PROVED[account.accountant],
                "statement": said,
                "seconds": round(time.perf_counter() - began, 3),
            }
        )
        return
    typer.echo(paragraph(account, at, (lower, upper), unit=unit, form=form))


def paragraph(
    account: given.Account,
    delta: float,
    bounds: tuple[float | None, float],
    *,
    unit: str = "record",
    form: str = "text",
) -> str:
    """The statement: what was released, its bound, what neighbours are, who proved it and how."""
    from dpmech import __version__

    epsilon_sign, delta_sign, at_most_sign, name = _WORDS[form]
    lower, upper = bounds
    releases = "; ".join(_written(line, form) for line in account.releases())
    sentences = [
        f"The following is ({epsilon_sign}, {delta_sign})-differentially private with "
        f"{epsilon_sign} {at_most_sign} {at_most(upper)} at {delta_sign} = {delta:g}: {releases}.",
        f"Neighbouring data sets differ by {_neighbours(account, unit)}.",
        f"Accounted with the {name.format(account.accountant)} accountant of "
        f"{name.format('dpmech')} {_written(__version__, form)}.",
        _PROVED[account.accountant],
    ]
    if lower is not None:
        about = "these releases" if account.attained else "the pairs of this proof"
        none = f"No {epsilon_sign} below {at_least(lower)} holds for {about}"
        sentences.append(f"{none} at this {delta_sign}.")
    return " ".join([*sentences, _SCOPE])


def _neighbours(account: given.Account, unit: str) -> str:
    """What neighbours differ by, in the user's word for a record."""
    said = (given.NEIGHBOURS.get(relation, relation) for relation in account.relations)
    return " or ".join(said).replace("one record", f"one {unit}")


def _written(text: str, form: str) -> str:
    """Text as LaTeX and Markdown take it literally."""
    if form == "latex":
        for sign in "_%&#$":
            text = text.replace(sign, f"\\{sign}")
        return text.replace("…", r"\dots{}")
    return text.replace("_", r"\_").replace("*", r"\*") if form == "markdown" else text
