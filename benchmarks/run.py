"""Our PLD accountant against two well-kept peers, and the time of the LMO grid.

    python benchmarks/run.py            prints Markdown tables
    python benchmarks/run.py --write    and writes them to benchmarks/results.md

One process; every call is warmed up once and then timed REPEATS times; times are medians. A ratio
below 1 says that ours is faster. A peer that is not installed is named and left out.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import math
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from accountants import PLD, PRV
from dpmech import (
    Gaussian,
    Laplace,
    LaplaceMixture,
    Mechanism,
    Noise,
    Sampling,
    Target,
)
from optimizer_search import SearchProblem, search_lmo_grid
from optimizer_search.problem import Accounting

REPEATS = 3
RESULTS = Path(__file__).with_name("results.md")
# What prv-accountant is asked for: half the width of its interval, as a share of our epsilon; at
# least PRV_LEAST, since its grid and its time grow like the inverse.
PRV_SHARE, PRV_LEAST = 0.01, 2e-3


@dataclass(frozen=True, kw_only=True)
class Workload:
    """``steps`` releases of ``noise`` (sensitivity 1, Poisson ``rate``); epsilon at ``delta``."""

    name: str
    noise: Noise
    steps: int
    delta: float
    rate: float = 1.0

    def mechanism(self) -> Mechanism:
        return Mechanism(noise=self.noise, sampling=Sampling(rate=self.rate))

    def __str__(self) -> str:
        sampled = f", q={self.rate:.4g}" if self.rate < 1 else ""
        return f"{self.name}{sampled}, T={self.steps}, δ={self.delta:g}"


WORKLOADS = (
    Workload(name="Gaussian σ=1", noise=Gaussian(sigma=1.0), rate=0.01, steps=1000, delta=1e-5),
    Workload(
        name="Gaussian σ=4.2",
        noise=Gaussian(sigma=4.2),
        rate=1000 / 67349,
        steps=202,
        delta=1e-10,
    ),
    Workload(name="Gaussian σ=20", noise=Gaussian(sigma=20.0), rate=0.001, steps=1000, delta=1e-10),
    Workload(name="Gaussian σ=5", noise=Gaussian(sigma=5.0), steps=10, delta=1e-6),
    Workload(name="Laplace b=10", noise=Laplace(b=10.0), steps=100, delta=1e-6),
    Workload(
        name=".3·Laplace(.5) + .7·Laplace(5)",
        noise=LaplaceMixture(scales=(0.5, 5.0), weights=(0.3, 0.7)),
        rate=0.01,
        steps=1000,
        delta=1e-6,
    ),
)


@dataclass(frozen=True, kw_only=True)
class Timed:
    """What a call answered, (lower or None, upper), and its median time in seconds."""

    lower: float | None
    upper: float
    seconds: float


def timed(call: Callable[[], tuple[float | None, float]]) -> Timed:
    """Call once to warm up, then REPEATS times."""
    lower, upper = call()
    seconds: list[float] = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return Timed(lower=lower, upper=upper, seconds=statistics.median(seconds))


def ours(work: Workload) -> tuple[float, float]:
    """Our certified interval."""
    return PLD().compose(work.mechanism(), work.steps).epsilon_interval(work.delta)


def google(work: Workload) -> tuple[None, float] | None:
    """dp-accounting's pessimistic PLD at its default discretisation; None where it has no law."""
    from dp_accounting.pld import privacy_loss_distribution as pld

    if isinstance(work.noise, Gaussian):
        one = pld.from_gaussian_mechanism(work.noise.sigma, sampling_prob=work.rate)
    elif isinstance(work.noise, Laplace):
        one = pld.from_laplace_mechanism(work.noise.b, sampling_prob=work.rate)
    else:
        return None
    return None, float(one.self_compose(work.steps).get_epsilon_for_delta(work.delta))


def microsoft(work: Workload, epsilon: float) -> tuple[float, float]:
    """prv-accountant's interval; laws it does not have come through our adapter."""
    import prv_accountant as prv

    error = max(PRV_SHARE * epsilon, PRV_LEAST)
    if isinstance(work.noise, Gaussian) and work.rate < 1:
        law = prv.PoissonSubsampledGaussianMechanism(
            sampling_probability=work.rate, noise_multiplier=work.noise.sigma
        )
    elif isinstance(work.noise, Gaussian):
        law = prv.GaussianMechanism(noise_multiplier=work.noise.sigma)
    elif isinstance(work.noise, Laplace):
        law = prv.LaplaceMechanism(mu=1 / work.noise.b)
    else:
        composed = PRV(eps_error=error).compose(work.mechanism(), work.steps)
        return composed.epsilon_interval(work.delta)
    accountant = prv.PRVAccountant(
        prvs=[law],
        max_self_compositions=[work.steps],
        eps_error=error,
        delta_error=work.delta / 1000,
    )
    lower, _, upper = accountant.compute_epsilon(work.delta, [work.steps])
    return max(0.0, float(lower)), float(upper)


def peer(call: Callable[[], tuple[float | None, float] | None]) -> Timed | str:
    """A peer's answer, or why there is none."""
    try:
        if call() is None:
            return "does not have this law"
        return timed(call)  # type: ignore[arg-type]  # not None, as just seen
    except ImportError as error:
        return f"not installed ({error.name})"
    except (RuntimeError, ValueError, MemoryError) as error:
        return f"failed: {error}"


def rounded(value: float, up: bool) -> str:
    """Six digits, towards the safe side of a bound."""
    if not (math.isfinite(value) and value > 0):
        return f"{value:g}"
    unit = 10.0 ** (math.floor(math.log10(value)) - 5)
    return f"{(math.ceil if up else math.floor)(value / unit) * unit:.6g}"


def interval(found: Timed | str) -> str:
    """An interval, or an upper bound alone, or the reason why there is neither."""
    if isinstance(found, str):
        return found
    upper = rounded(found.upper, up=True)
    return f"≤ {upper}" if found.lower is None else f"[{rounded(found.lower, up=False)}, {upper}]"


def ratio(mine: Timed, other: Timed | str) -> str:
    """Our time over theirs."""
    return "" if isinstance(other, str) else f"{mine.seconds / other.seconds:.2g}"


def accountants_table() -> list[str]:
    """One row a workload."""
    lines = [
        "| workload | ours: [lower, upper] | seconds | dp-accounting | ours/theirs, time "
        "| prv-accountant | ours/theirs, time |",
        "|---|---|---|---|---|---|---|",
    ]
    for work in WORKLOADS:
        print(f"  {work}", file=sys.stderr)
        mine = timed(lambda work=work: ours(work))
        first = peer(lambda work=work: google(work))
        second = peer(lambda work=work, mine=mine: microsoft(work, mine.upper))
        lines.append(
            f"| {work} | {interval(mine)} | {mine.seconds:.3f} | {interval(first)} "
            f"| {ratio(mine, first)} | {interval(second)} | {ratio(mine, second)} |"
        )
    return lines


def grid_table() -> list[str]:
    """The LMO search under both accountings, proof of the winner included."""
    lines = ["| accounting | releases | seconds | points within the target |", "|---|---|---|---|"]
    cases: tuple[tuple[Accounting, int, float], ...] = (
        ("exact", 1, 1.0),
        ("exact", 10, 0.1),
        ("paper", 1, 1.0),
    )
    for accounting, steps, rate in cases:
        problem = SearchProblem(
            target=Target(epsilon=3.0, delta=1e-10),
            accounting=accounting,
            steps=steps,
            sampling=Sampling(rate=rate),
        )
        print(f"  LMO grid, {accounting}, T={steps}", file=sys.stderr)
        result = search_lmo_grid(problem)
        releases = f"{steps} at q={rate:g}"
        lines.append(f"| {accounting} | {releases} | {result.seconds:.2f} | {result.feasible} |")
    return lines


def setting() -> str:
    """What the figures were measured with."""
    names = ("numpy", "scipy", "numba", "dp-accounting", "prv-accountant")
    found: list[str] = []
    for name in names:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} absent")
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return (
        f"Python {platform.python_version()}, {', '.join(found)}; {os.cpu_count()} cores{load}; "
        f"median of {REPEATS} after one warm-up."
    )


def report() -> str:
    """All tables as Markdown."""
    return "\n".join(
        [
            "## Accountants",
            "",
            *accountants_table(),
            "",
            "dp-accounting: upper bound at its default step (1e-4). prv-accountant: asked",
            f"for an error of {PRV_SHARE:.0%} of ε, at least {PRV_LEAST:g}; ours aims at 0.01 %.",
            "",
            "## LMO grid, 40 824 points, ε = 3, δ = 1e-10, the winner's proof included",
            "",
            *grid_table(),
            "",
            setting(),
        ]
    )


def main() -> None:
    """Print the tables; with --write keep them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"also write {RESULTS.name}")
    arguments = parser.parse_args()
    # The peers' own warnings are not the reader's business.
    warnings.simplefilter("ignore")
    text = report()
    print(text)
    if arguments.write:
        title = "# Results of `python benchmarks/run.py --write`"
        RESULTS.write_text(f"{title}\n\n{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
