"""The report of ``dpmech demo``: what was measured, and what it does not say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dpmech.cli._output import at_least, at_most
from dpmech.files import write_atomically

if TYPE_CHECKING:
    from dpmech import Noise
    from fl_integration import TrainReport
    from optimizer_search import SearchProblem, SearchResult


@dataclass(frozen=True, kw_only=True)
class ScalarLaw:
    """One law at the scalar target, and what may be said of it as noise on the LoRA vector."""

    label: str
    noise: Noise
    epsilon: float
    vector: str


def write_report(
    path: Path,
    problem: SearchProblem,
    result: SearchResult,
    laws: list[ScalarLaw],
    reports: dict[str, TrainReport],
    seconds: float,
) -> None:
    """Write the report as Markdown."""
    lines = [
        "# dpmech demo",
        "",
        f"One run of {seconds:.0f} seconds. Every ε called proved is an upper bound; everything",
        "else says what it is.",
        "",
        *_search(problem, result),
        *_table(problem, laws),
        *_training(reports),
        *_limits(reports),
    ]
    write_atomically(path, "\n".join(lines) + "\n")


def _search(problem: SearchProblem, result: SearchResult) -> list[str]:
    return [
        "## 1. The noise that the published search finds (scalar query)",
        "",
        f"Target: {problem.target}; one release, sensitivity {problem.sensitivity:g}; cost E|X|.",
        "",
        f"- {result.status}",
        f"- Winner: `{result.law}`",
        f"- E|X| = {result.cost:.4f}; proved ε in [{at_least(result.lower_epsilon)}, "
        f"{at_most(result.epsilon)}].",
        f"- The whole grid of {len(result.tables['costs'])} laws took {result.seconds:.1f} s "
        "(`lmo.npz`; use it as `file:demo/lmo.npz`).",
        "",
    ]


def _table(problem: SearchProblem, laws: list[ScalarLaw]) -> list[str]:
    rows = [
        f"| {law.label} | {law.noise.mean_abs:.4f} | {law.noise.std:.4f} | "
        f"{law.noise.usefulness(0.9):.4f} | {at_most(law.epsilon)} | {law.vector} |"
        for law in laws
    ]
    best = min(laws, key=lambda law: law.noise.mean_abs)
    return [
        "## 2. At equal privacy",
        "",
        "All laws rescaled to the same target. Right: the same noise on every coordinate of a LoRA",
        "update of 80 000 coordinates, clipped to l2 norm 1, one release.",
        "",
        "| law | E\\|X\\| | std | P(\\|X\\| ≤ 0.9) | ε, scalar, proved | on the LoRA vector |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
        f"Least E|X| on the scalar query: {best.label}. On the vector only the Gaussian has a",
        "proof, so the training below uses it. Densities: `densities.png`.",
        "",
    ]


def _training(reports: dict[str, TrainReport]) -> list[str]:
    first, private = reports["non-private"], reports["private"].config
    rows = [_row(name, report) for name, report in reports.items()]
    return [
        "## 3. Federated training on real text",
        "",
        f"Data: {first.data}, {first.clients} users (a user is a module); model as configured; "
        f"{len(first.rounds)} rounds; one seed, so differences of a few points mean nothing.",
        f"Always answering the largest class: {first.majority_share:.3f}.",
        "",
        "| run | test accuracy | ε this run cost its own users, proved | forecast |",
        "|---|---|---|---|",
        *rows,
        "",
        f"The private run trains the head alone: all {first.clients} users in each of "
        f"{private['rounds']} rounds.",
        "The others start so, too, and then train adapters of ranks 1 to "
        f"{first.config['rank']}, {first.config['cohort']:g} users a round.",
        "How, was chosen looking at this very data: for it, that choice is not covered by ε.",
        "",
        "A forecast adds the noise that a larger population would need. It says what accuracy to",
        "expect there; it protects nobody here, as its own ε shows. Plot: `accuracy.png`.",
        "",
        "`plan.json`, `ledger.json` and `adapters/` are those of the private run.",
        "",
    ]


def _row(name: str, report: TrainReport) -> str:
    accuracy = "not measured" if report.final_accuracy is None else f"{report.final_accuracy:.3f}"
    if report.epsilon is None:
        return f"| {name} | {accuracy} | none: no noise | |"
    cost = f"{at_most(report.epsilon)} (δ = {report.delta:.2g})"
    forecast = report.hypothetical
    if forecast is None:
        return f"| {name} | {accuracy} | {cost} | |"
    told = (
        f"hypothetical ε ≤ {at_most(forecast.epsilon)} (δ = {forecast.delta:.2g}) for "
        f"{forecast.population} users, {forecast.cohort:.0f} a round"
    )
    return f"| {name} | {accuracy} | {cost} | {told} |"


def _limits(reports: dict[str, TrainReport]) -> list[str]:
    private = reports["private"]
    return [
        "## 4. What this does not say",
        "",
        f"- {private.selection}",
        f"- Trusted: {private.trusted}.",
        "- The data are docstrings of the libraries installed here: accuracy compares only within",
        "  one environment.",
        "",
        "Reproduce with `make demo`.",
    ]
