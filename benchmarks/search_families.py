"""The search's families on one list of problems (`make bench-search`).

    python benchmarks/search_families.py                 Markdown on stdout, progress on stderr
    python benchmarks/search_families.py -o FILE         to a file
    python benchmarks/search_families.py --quick         two problems, less than a minute
    python benchmarks/search_families.py -k d=2          only problems with this in their name

Seconds are processor time, of one thread with OMP_NUM_THREADS=1 (make says so).
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import os
import platform
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from search_problems import Work, works

from dpmech import NoDominatingPair, Unattainable
from dpmech.files import write_atomically
from optimizer_search import Bound, SearchProblem, SearchResult, search
from optimizer_search.lower_bounds import best_bound

_PACKAGES = ("numpy", "scipy", "cvxpy")
_LONGEST = 90  # characters of a law
_HEADER = ("problem", "family", "value", "gap", "less than the Gaussian", "seconds", "law")


@dataclass(frozen=True, kw_only=True)
class Row:
    """What a family found: its own best law's proved value, the Gaussian's, and its seconds.

    ``law`` says why there is no value, where there is none.
    """

    family: str
    value: float | None
    gaussian: float | None
    seconds: float
    law: str


@dataclass(frozen=True, eq=False)
class Watch:
    """The lines that a search reports, and the processor time at each."""

    began: float = field(default_factory=time.process_time)
    lines: list[tuple[float, str]] = field(default_factory=list)

    def __call__(self, line: str) -> None:
        """Take a line."""
        self.lines.append((time.process_time() - self.began, line))

    def of_solver(self, family: str, closed_forms: int) -> list[tuple[float, float]]:
        """(seconds, value) of the laws of a family, after the rows of the closed forms."""
        later = self.lines[closed_forms:]
        return [
            (at, float(line.rpartition(" ")[2]))
            for at, line in later
            if line.startswith(f"{family}: ") and "left out" not in line
        ]


def row_of(work: Work, family: str) -> Row:
    """One search, or why it found nothing."""
    watch = Watch()
    try:
        result = search(work.problem, family, bound=False, report=watch)
    except (ImportError, NoDominatingPair, Unattainable, ValueError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        return Row(
            family=family,
            value=None,
            gaussian=None,
            seconds=time.process_time() - watch.began,
            law=reason,
        )
    seconds = time.process_time() - watch.began
    gaussian = next(
        (r.value(work.problem) for r in result.baselines if r.family == "gaussian"), None
    )
    value, seconds, law = _own(work.problem, family, result, watch, seconds)
    return Row(family=family, value=value, gaussian=gaussian, seconds=seconds, law=law)


def _own(
    problem: SearchProblem, family: str, result: SearchResult, watch: Watch, seconds: float
) -> tuple[float | None, float, str]:
    """Value, seconds and law of the family's own best, without the closed forms before it."""
    found = result.cost if problem.least_cost else result.epsilon
    if family == "closed-form":
        return found, seconds, str(result.law)
    rows = len(result.baselines)
    if family == "lmo-grid":  # its closed forms come after it, the Gaussian's in a moment
        return found, watch.lines[0][0], str(result.law)
    alone = seconds - watch.lines[rows - 1][0]
    if result.family == family:
        return found, alone, str(result.law)
    values = [value for _, value in watch.of_solver(family, rows)]
    return min(values, default=None), alone, "no better than the closed forms"


def measured(work: Work) -> tuple[list[Row], Bound | None, float]:
    """The rows of a problem, its lower bound and the seconds that it took."""
    rows: list[Row] = []
    for family in work.families:
        rows.append(row_of(work, family))
        shown = "none" if rows[-1].value is None else f"{rows[-1].value:.6g}"
        print(f"    {family}: {shown}, {rows[-1].seconds:.1f} s", file=sys.stderr)
    began = time.process_time()
    bound = best_bound(work.problem)
    return rows, bound, time.process_time() - began


def lines_of(work: Work) -> Iterator[str]:
    """The lines of the table for one problem."""
    print(f"  {work.name}", file=sys.stderr)
    rows, bound, seconds = measured(work)
    least = min((row.value for row in rows if row.value is not None), default=None)
    for row in rows:
        yield _line(work.name, row.family, *_figures(row, least, bound), _short(row.law))
    if bound is not None:
        figures = (f"≥ {bound.value:.6g} ({bound.on})", "", "", f"{seconds:.1f}")
        yield _line(work.name, "lower bound", *figures, bound.method)


def _figures(row: Row, least: float | None, bound: Bound | None) -> tuple[str, str, str, str]:
    """Value (bold where it is the least), gap, gain and seconds."""
    if row.value is None:
        return "—", "", "", f"{row.seconds:.1f}"
    value = f"{row.value:.6g}"
    if row.value == least:
        value = f"**{value}**"
    gap = "" if bound is None or row.value <= 0 else f"{100 * (1 - bound.value / row.value):.2g} %"
    gain = "" if row.gaussian is None else f"{100 * (1 - row.value / row.gaussian):.1f} %"
    return value, gap, gain, f"{row.seconds:.1f}"


def _line(*cells: str) -> str:
    """A row; the bars of P(|X| > x) would end a cell."""
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _short(law: str) -> str:
    """The text of a law with four digits of its numbers, or of a long reason the beginning."""
    text = re.sub(r"\d+\.\d+(e[+-]?\d+)?", lambda found: f"{float(found[0]):.4g}", law)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def report(wanted: list[Work]) -> str:
    """The whole page."""
    least_epsilon = [work for work in wanted if not work.problem.least_cost]
    least_cost = [work for work in wanted if work.problem.least_cost]
    parts = [
        "# The searches, measured",
        "",
        "Made by `make bench-search`; how and why: `benchmarks/README.md`. Every value is proved "
        "by the PLD accountant, over all shifts and in both directions. Gap: how far it is at most "
        "above the best possible, as a share of it, where a lower bound is proved.",
    ]
    for title, those in (
        ("The least ε at a variance", least_epsilon),
        ("The least cost at (ε, δ)", least_cost),
    ):
        if those:
            parts += ["", f"## {title}", "", *_table(those)]
    return "\n".join([*parts, "", _setting(), ""])


def _table(those: list[Work]) -> list[str]:
    lines = [_line(*_HEADER), "|---" * len(_HEADER) + "|"]
    for work in those:
        lines += lines_of(work)
    return lines


def _setting() -> str:
    """What the figures were measured with."""
    found = [f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES]
    return (
        f"{datetime.date.today()}; {os.cpu_count()} cores, "
        f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')}, "
        f"load {os.getloadavg()[0]:.1f} at the end; {platform.system()} {platform.machine()}, "
        f"Python {platform.python_version()}, {', '.join(found)}."
    )


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, help="write here instead of stdout")
    parser.add_argument("-k", default="", help="only problems whose name contains this")
    parser.add_argument("--quick", action="store_true", help="the quick problems only")
    asked = parser.parse_args()
    wanted = [w for w in works() if asked.k in w.name and (w.quick or not asked.quick)]
    if not wanted:
        parser.error(f"no problem's name contains {asked.k!r}")
    text = report(wanted)
    if asked.output:
        write_atomically(asked.output, text)
    else:
        print(text)


if __name__ == "__main__":
    main()
