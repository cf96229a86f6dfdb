"""Our PLD accountant and the peers on one list of workloads (`make bench-accountants`).

    python benchmarks/compare_accountants.py                 Markdown on stdout, progress on stderr
    python benchmarks/compare_accountants.py -o FILE         to a file
    python benchmarks/compare_accountants.py -k Laplace      only workloads with this in their name

Every call runs in its own fork of one process, with the threads that OMP_NUM_THREADS allows (make
says 1): see measure.py. Errors are relative
to the independent reference (reference.py, or issue 3, through tests/golden/accountants.toml).
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import math
import os
import platform
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

from measure import LIMIT, MEMORY, Measured, measured
from peers import PEERS, PRV_LEAST, PRV_SHARE, Ask, Unknown, installed, ours
from workloads import Workload, workloads

OURS = "ours"
# A value this little below the truth is rounding of the truth, not an unsound bound.
_SLACK = 3e-6
_PACKAGES = ("numpy", "scipy", "dp-accounting", "prv-accountant", "opacus")

Cell = Measured | str
Row = dict[str, Cell]


def asked(name: str, ask: Ask, work: Workload) -> Cell:
    """One accountant's answer to one workload."""

    def call() -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ask(work)

    found = measured(call)
    if isinstance(found, str) and found.startswith(Unknown.__name__):
        return "—"
    if isinstance(found, Measured) and not math.isfinite(found.value):
        return "no finite bound"
    shown = f"{found.value:.6g}, {found.seconds:.3f} s" if isinstance(found, Measured) else found
    print(f"    {name}: {shown}", file=sys.stderr)
    return found


def all_rows(works: list[Workload]) -> dict[str, Row]:
    """Workload name -> accountant -> cell; what is not installed is left out."""
    accountants = {OURS: ours, **{n: ask for n, (needs, ask) in PEERS.items() if installed(needs)}}
    ours(works[0])  # imports what is imported late
    rows: dict[str, Row] = {}
    for work in works:
        print(f"  {work.name}", file=sys.stderr)
        rows[work.name] = {n: asked(n, ask, work) for n, ask in accountants.items()}
    return rows


def error_text(cell: Cell, truth: float) -> str:
    """Value and relative error; bold where an upper bound lies below the truth."""
    if isinstance(cell, str):
        return short(cell)
    error = cell.value / truth - 1
    text = f"{cell.value:.6g} ({100 * error:+.2g} %)"
    return f"**{text}**" if error < -_SLACK else text


def time_text(cell: Cell, mine: Cell) -> str:
    """Milliseconds, the ratio to ours, MiB."""
    if isinstance(cell, str):
        return short(cell)
    text = f"{1000 * cell.seconds:.3g} ms, {cell.memory:.0f} MiB"
    if cell is mine or isinstance(mine, str):
        return text
    return f"{text}, ×{cell.seconds / mine.seconds:.3g}"


def short(reason: str) -> str:
    """A failure in a cell."""
    line = reason.splitlines()[0].replace("|", "/")
    return line if len(line) <= 60 else f"{line[:57]}…"


def table(rows: dict[str, Row], header: list[str], cells: list[list[str]]) -> list[str]:
    """Markdown lines."""
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    return lines + [
        f"| {' | '.join([name, *row])} |" for name, row in zip(rows, cells, strict=True)
    ]


def values_table(works: list[Workload], rows: dict[str, Row]) -> list[str]:
    names = list(next(iter(rows.values())))
    cells = [
        [f"{w.truth:.9g}", *(error_text(rows[w.name][n], w.truth) for n in names)] for w in works
    ]
    return table(rows, ["workload", "truth", *names], cells)


def times_table(rows: dict[str, Row]) -> list[str]:
    names = list(next(iter(rows.values())))
    cells = [[time_text(row[n], row[OURS]) for n in names] for row in rows.values()]
    return table(rows, ["workload", *names], cells)


def summary(rows: dict[str, Row]) -> list[str]:
    """Geometric means of the time ratios, over the workloads that both can do."""
    lines: list[str] = []
    for name, (needs, _) in PEERS.items():
        pairs = [(row[OURS], row.get(name, "not installed")) for row in rows.values()]
        ratios = [
            theirs.seconds / mine.seconds
            for mine, theirs in pairs
            if isinstance(mine, Measured) and isinstance(theirs, Measured)
        ]
        if not ratios:
            why = "nothing in common" if find_spec(needs) else f"{needs} is not installed"
            lines.append(f"* **{name}**: no figures ({why}).")
            continue
        mean = math.exp(math.fsum(map(math.log, ratios)) / len(ratios))
        lines.append(
            f"* **{name}**: {mean:.3g} times our time (geometric mean of {len(ratios)} workloads, "
            f"{min(ratios):.3g} to {max(ratios):.3g})."
        )
    return lines


def setting() -> str:
    """What the figures were measured with."""
    found: list[str] = []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} not installed")
    return (
        f"{datetime.date.today()}; {_processor()}, {os.cpu_count()} cores, "
        f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'unset')}, "
        f"load {os.getloadavg()[0]:.1f} at the end; {platform.system()}, Python "
        f"{platform.python_version()}, {', '.join(found)}."
    )


def _processor() -> str:
    """The processor's name, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def report(works: list[Workload], rows: dict[str, Row]) -> str:
    """The whole page."""
    return "\n".join(
        [
            "# Our accountant and its peers, measured",
            "",
            "Made by `make bench-accountants`; how and why: `benchmarks/README.md`.",
            "",
            "## Summary",
            "",
            *summary(rows),
            "",
            "## Values",
            "",
            "Upper bounds on ε (σ, where a workload is to be calibrated), and their error relative "
            "to the truth. Bold: below the truth. —: the accountant does not have the law or task.",
            "",
            *values_table(works, rows),
            "",
            "## Times and memory",
            "",
            "Median time, peak memory beyond the imports, and the time as a multiple of ours. "
            f"Limits: {LIMIT:.0f} s and {MEMORY >> 30} GiB. Ours proves both bounds, 0.01 % apart; "
            f"prv-accountant was asked for {PRV_SHARE:.0%} of ε, at least {PRV_LEAST:g}.",
            "",
            *times_table(rows),
            "",
            setting(),
            "",
        ]
    )


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, help="write here instead of stdout")
    parser.add_argument("-k", default="", help="only workloads whose name contains this")
    arguments = parser.parse_args()
    works = [work for work in workloads() if arguments.k in work.name]
    if not works:
        parser.error(f"no workload's name contains {arguments.k!r}")
    text = report(works, all_rows(works))
    if arguments.output:
        arguments.output.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
