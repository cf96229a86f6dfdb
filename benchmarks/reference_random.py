"""Random workloads: what is drawn, and which draws are kept."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from reference import reference_epsilon
from reference_laws import Release, Workload

# Values outside are 0, or of no interest to anybody.
SMALLEST, LARGEST = 1e-5, 1e3
RANDOM = Path(__file__).parents[1] / "tests" / "golden" / "random_workloads.json"
# Kept: WANTED workloads whose value the reference knows to ACCURATE.
SEEDS, WANTED, ACCURATE = (1, 2), 320, 1e-7


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Three digits of a log-uniform number."""
    return float(f"{np.exp(rng.uniform(np.log(low), np.log(high))):.3g}")


def _law(rng: np.random.Generator) -> str:
    kind = rng.choice(["gaussian", "laplace", "gg", "laplace-mixture"], p=[0.5, 0.15, 0.15, 0.2])
    width = _log_uniform(rng, 0.3, 100)
    if kind == "gaussian":
        return f"gaussian:sigma={width}"
    if kind == "laplace":
        return f"laplace:b={width}"
    if kind == "gg":
        return f"gg:scale={width},beta={rng.uniform(1.05, 2.5):.3g}"
    wider, share = width * _log_uniform(rng, 2, 20), rng.uniform(0.1, 0.9)
    return f"laplace-mixture:b={width}/{wider:.3g},w={share:.2f}/{1 - share:.2f}"


def _release(rng: np.random.Generator) -> Release:
    rate = 1.0 if rng.random() < 0.3 else _log_uniform(rng, 1e-4, 0.9)
    return Release(law=_law(rng), rate=rate, count=int(_log_uniform(rng, 1, 1e6)))


def draws(seed: int) -> Iterator[tuple[Workload, float]]:
    """(workload, delta) without end; one in eight is made of two to four different releases."""
    rng = np.random.default_rng(seed)
    while True:
        many = int(rng.integers(2, 5)) if rng.random() < 0.125 else 1
        yield tuple(_release(rng) for _ in range(many)), _log_uniform(rng, 1e-30, 1e-2)


def _row(workload: Workload, delta: float) -> tuple[str, dict[str, object]]:
    """Why the draw is left out ('' if it is not), and its row."""
    found = reference_epsilon(workload, delta, ACCURATE)
    row = {
        "releases": [[r.law, r.rate, r.count] for r in workload],
        "delta": delta,
        "epsilon": float(found.value),
        "error": float(f"{found.error:.1e}"),
    }
    if not SMALLEST < found.value < LARGEST:
        return "range", row
    return ("" if found.error <= ACCURATE else "accuracy"), row


def rows(seed: int, wanted: int) -> tuple[list[dict[str, object]], dict[str, int]]:
    """``wanted`` rows, and how many draws were left out for what reason."""
    kept: list[dict[str, object]] = []
    left_out = {"range": 0, "accuracy": 0}
    for workload, delta in draws(seed):
        why, row = _row(workload, delta)
        if why:
            left_out[why] += 1
            print(f"  left out ({why}): {row}", file=sys.stderr)
        else:
            kept.append(row)
        if len(kept) == wanted:
            break
    return kept, left_out


def write() -> None:
    """Write tests/golden/random_workloads.json, in one process a seed."""
    with ProcessPoolExecutor(len(SEEDS)) as pool:
        parts = list(pool.map(rows, SEEDS, [WANTED // len(SEEDS)] * len(SEEDS)))
    left_out = {why: sum(out[why] for _, out in parts) for why in ("range", "accuracy")}
    lines = ",\n".join(f"  {json.dumps(row)}" for kept, _ in parts for row in kept)
    head = {"seeds": SEEDS, "left_out": left_out, "accuracy": ACCURATE}
    RANDOM.write_text(f'{json.dumps(head)[:-1]}, "workloads": [\n{lines}\n]}}\n')
