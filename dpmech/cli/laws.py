"""``dpmech laws``: the laws that can be written on the command line."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Self

import typer

from dpmech.cli._group import subcommand
from dpmech.cli._output import AsJson, print_json, print_table

if TYPE_CHECKING:
    from dpmech import Noise

app = subcommand()

GAMMA = 0.9  # usefulness is P(|X| <= GAMMA), as R2DP quotes it


@dataclass(frozen=True, kw_only=True)
class Row:
    """A law as it is listed: what to write, all its parameters, and how wide it is."""

    write: str
    noise: str
    usefulness: float
    std: float
    mean_abs: float

    @classmethod
    def of(cls, law: Noise, write: str) -> Self:
        """The row of a law."""
        return cls(
            write=write,
            noise=str(law),
            usefulness=law.usefulness(GAMMA),
            std=law.std,
            mean_abs=law.mean_abs,
        )

    def cells(self) -> tuple[str, str, str, str, str]:
        """The row as text."""
        _, _, parameters = self.noise.partition(":")
        figures = (f"{x:.4g}" for x in (self.usefulness, self.std, self.mean_abs))
        return (self.write, *figures, parameters.replace(",", " "))  # type: ignore[return-value]


def _row(write: str, parameters: str, figures: tuple[float, float, float]) -> Row:
    usefulness, std, mean_abs = figures
    noise = f"{write.partition(':')[0]}:{parameters}"
    return Row(write=write, noise=noise, usefulness=usefulness, std=std, mean_abs=mean_abs)


# The defaults of dpmech.parse and their figures, written out so that the list needs no numpy
# (half a second); tests/dpmech/test_cli.py compares every one of them with the laws.
ROWS = (
    _row("gaussian", "sigma=1.0", (0.6318797493064809, 1.0, 0.7978845608028654)),
    _row("laplace", "b=1.0", (0.5934303402594009, 1.4142135623730951, 1.0)),
    _row("gg", "scale=1.0,beta=1.4", (0.7118698597869771, 0.9153333484878128, 0.6944212700103791)),
    _row(
        "staircase",
        "epsilon=1.0,width=1.0,gamma=0.3775406687981454",
        (0.5937805088721373, 1.3855258060207503, 0.9595173756674719),
    ),
    _row(
        "truncated-laplace",
        "b=1.0,bound=11.361114778489599",
        (0.5934372475121046, 1.413588749173854, 0.999867761916697),
    ),
    _row(
        "lmo:preset=0.3",
        "a1=0.1,a3=0.1,a4=0.1,k=1.0,theta=0.5,rate=5.0,low=1.0,high=2.0,size=1.0",
        (0.17841454708436683, 7.123862465556438, 4.874147971447783),
    ),
    _row(
        "lmo:preset=0.7",
        "a1=0.1,a3=0.1,a4=0.1,k=1.0,theta=0.5,rate=5.0,low=5.0,high=6.0,size=1.0",
        (0.42679927965641706, 2.311167196453721, 1.6274286218313614),
    ),
    _row(
        "lmo:preset=2",
        "a1=0.1,a3=0.1,a4=0.2,k=2.0,theta=1.0,rate=5.0,low=7.0,high=8.0,size=1.0",
        (0.785371290208852, 0.8312811730387027, 0.5857525905179048),
    ),
    _row(
        "lmo:preset=3",
        "a1=0.1,a3=0.1,a4=0.9,k=2.0,theta=1.0,rate=5.0,low=2.0,high=3.0,size=1.0",
        (0.8878598376664275, 0.5851914335107811, 0.4107825086758112),
    ),
    _row(
        "laplace-mixture",
        "scales=0.5/5.0,weights=0.3/0.7",
        (0.3657211855456337, 5.928743543112655, 3.65),
    ),
    _row(
        "offset-gaussian",
        "sigma=1.0,offset=1.0",
        (0.8190002593396115, 0.6891042909742214, 0.5251352761610537),
    ),
    _row(
        "flipped-huber",
        "sigma=1.0,alpha=1.0",
        (0.6795017518700827, 0.9387917372910816, 0.7238036176737193),
    ),
    _row("logistic", "scale=1.0", (0.42189900525000795, 1.8137993642342178, 1.3862943611198906)),
    _row(
        "student-t",
        "scale=1.0,df=3.0",
        (0.5655489675819629, 1.7320508075688772, 1.1026577908435842),
    ),
    _row(
        "tulap",
        "epsilon=1.0,width=1.0,delta=1e-05",
        (0.5981268403515925, 1.3866959743270697, 0.9663153202691859),
    ),
    _row(
        "multi-gaussian",
        "sigma=0.5,width=1.0,epsilon=1.0",
        (0.5736787636624044, 1.4461490892766156, 1.0381639911693217),
    ),
)


@app.command()
def laws(
    noises: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NOISE", help="Describe these instead of the defaults.", show_default=False
        ),
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """List the laws, their parameters and defaults, and how wide they are.

    P(|X| <= 0.9) is the usefulness at 0.9; std and E|X| are in the units of the query.
    """
    rows = ROWS
    if noises:
        from dpmech import parse_noise

        rows = tuple(Row.of(parse_noise(text), text) for text in noises)
    if as_json:
        print_json({"gamma": GAMMA, "laws": [to_dict(row) for row in rows]})
        return
    header = ("law", f"P(|X|<={GAMMA})", "std", "E|X|", "parameters and their defaults")
    print_table(header, [row.cells() for row in rows])


def to_dict(row: Row) -> dict[str, object]:
    """A row for JSON."""
    name, _, rest = row.noise.partition(":")
    pairs = (part.partition("=") for part in rest.split(","))
    parameters = {key: _numbers(value) for key, _, value in pairs}
    return {"name": name, "parameters": parameters, **asdict(row)}


def _numbers(text: str) -> float | list[float]:
    """A parameter as it is written: one number, or several with slashes."""
    numbers = [float(part) for part in text.split("/")]
    return numbers[0] if len(numbers) == 1 else numbers
