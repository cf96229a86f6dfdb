"""How near to the best possible one release gets: a grid of targets, two costs (`make bench`).

Prints a Markdown table of gaps (the cost of the law, as proved by the PLD accountant, above the
certified lower bound), and the worst gap and time. A cell's time covers the law, its proof and the
bound, with nothing kept from other cells.
"""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np

from dpmech import Target
from optimizer_search import Cost, SearchProblem
from optimizer_search._lp_release import release
from optimizer_search.certify import proved
from optimizer_search.single_release import single_release_bound, single_release_candidates

EPSILONS = [float(x) for x in np.geomspace(0.005, 10.0, 10)]
DELTAS = [float(x) for x in np.geomspace(1e-9, 0.5, 10)]
COSTS = ("l1", "variance")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One target's result."""

    cost: float
    bound: float
    seconds: float

    @property
    def gap(self) -> float:
        """How far the law's cost may be above the least, as a share of it."""
        return 1 - self.bound / self.cost


def searched(cost: str, epsilon: float, delta: float) -> Cell:
    """The best law that is within the target as it stands, and the bound."""
    release.cache_clear()
    target = Target(epsilon=epsilon, delta=delta)
    problem = SearchProblem(target=target, cost=Cost.parse(cost))
    start = time.process_time()
    found = [proved(problem, law) for law in single_release_candidates(problem)]
    bound = single_release_bound(problem)
    seconds = time.process_time() - start
    least = min((c.cost for c in found if c.epsilon <= epsilon), default=float("inf"))
    return Cell(cost=least, bound=bound.value if bound else 0.0, seconds=seconds)


def main() -> None:
    """Print the tables."""
    for cost in COSTS:
        print(f"{cost}: gap in % of the least cost\n")
        print("| ε \\ δ | " + " | ".join(f"{delta:.2g}" for delta in DELTAS) + " |")
        print("|---" * (len(DELTAS) + 1) + "|")
        cells: list[Cell] = []
        for epsilon in EPSILONS:
            row = [searched(cost, epsilon, delta) for delta in DELTAS]
            cells += row
            gaps = " | ".join(f"{100 * cell.gap:.2f}" for cell in row)
            print(f"| {epsilon:.3g} | {gaps} |", flush=True)
        worst, slowest = max(c.gap for c in cells), max(c.seconds for c in cells)
        mean = sum(c.seconds for c in cells) / len(cells)
        print(
            f"\nworst gap {100 * worst:.2f} %; {slowest:.1f} s at most, {mean:.2f} s on average\n"
        )
    print(f"Python {platform.python_version()}, numpy {version('numpy')}, scipy {version('scipy')}")


if __name__ == "__main__":
    main()
