"""The time of the published LMO search under both accountings (`make bench`).

Prints a Markdown table: medians of three runs after one warm-up, in one process.
"""

from __future__ import annotations

import platform
import statistics
from importlib.metadata import version

from dpmech import Sampling, Target
from optimizer_search import SearchProblem, SearchResult, search_lmo_grid
from optimizer_search.problem import Accounting

REPEATS = 3
CASES: tuple[tuple[Accounting, int, float], ...] = (
    ("exact", 1, 1.0),
    ("exact", 10, 0.1),
    ("paper", 1, 1.0),
)


def searched(accounting: Accounting, steps: int, rate: float) -> SearchResult:
    """One search of all 40 824 points, the winner's proof included."""
    problem = SearchProblem(
        target=Target(epsilon=3.0, delta=1e-10),
        accounting=accounting,
        steps=steps,
        sampling=Sampling(rate=rate),
    )
    return search_lmo_grid(problem)


def feasible(result: SearchResult) -> int:
    """How many points are within the target under the grid's accounting."""
    return int((result.tables["epsilons"] <= 3.0).sum())


def main() -> None:
    """Print the table."""
    print("LMO grid, 40 824 points, ε = 3, δ = 1e-10, the winner's proof included\n")
    print("| accounting | releases | seconds | points within the target |\n|---|---|---|---|")
    for accounting, steps, rate in CASES:
        found = [searched(accounting, steps, rate) for _ in range(REPEATS + 1)][1:]
        seconds = statistics.median(result.seconds for result in found)
        print(f"| {accounting} | {steps} at q={rate:g} | {seconds:.2f} | {feasible(found[0])} |")
    print(f"\nPython {platform.python_version()}, numpy {version('numpy')}; median of {REPEATS}.")


if __name__ == "__main__":
    main()
