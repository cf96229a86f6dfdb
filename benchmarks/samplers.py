"""What a draw of noise costs: `make bench-samplers`.

Nanoseconds a draw, from seconds of the process on one thread, the least of five taken in turn, with
the peers in the same run. Needs the extras train and opacus; some three minutes.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from opacus.optimizers import optimizer as opacus_optimizer

from dpmech import LMO, Gaussian, GeneralizedGaussian, Laplace, LaplaceMixture, Noise, Staircase
from dpmech.discrete import DiscreteGaussian
from dpmech.drawing import Words, secret_words, seeded_words
from dpmech.files import write_atomically
from dpmech.heavy_tailed import StudentT
from dpmech.lattice import LatticeNoise
from dpmech.quantiles import QuantileTable, table_of
from dpmech.tabulated import Tabulated
from fl_integration.noise_sampler import sampler

TURNS, SLOW = 5, 500  # draws of slow peers are fewer by this factor
LMO_LAW = LMO()
# As a search returns: a density that falls on two thousand cells, with a geometric tail.
TABLE = Tabulated(
    edges=tuple(np.linspace(0.0, 20.0, 2_001).tolist()),
    masses=tuple(np.exp(-(np.linspace(0.0, 12.0, 2_000) ** 1.2)).tolist()),
    decay=0.99,
)
LAWS: tuple[Noise, ...] = (
    LMO_LAW,
    TABLE,
    Gaussian(sigma=1.0),
    Laplace(b=1.0),
    GeneralizedGaussian(scale=1.0, beta=1.4),
    StudentT(scale=1.0, df=3.0),
    LaplaceMixture(scales=(0.5, 5.0), weights=(0.3, 0.7)),
    Staircase(epsilon=1.0, width=1.0, gamma=0.4),
    DiscreteGaussian(sigma=10.0),
)
RNG = np.random.default_rng(0)
NUMPY, TORCH = "numpy normal", "torch.randn fp64"
RECIPE = "LMO as the paper writes it, numpy"


@dataclass(frozen=True, kw_only=True)
class Timed:
    """A way to draw ``count`` numbers."""

    name: str
    draw: Callable[[], object]
    count: int


def literal_recipe(law: LMO, count: int) -> np.ndarray:
    """As the paper writes it: gamma, exponential, uniform, then Laplace of that scale."""
    u = law.a1 * RNG.gamma(law.k, law.theta, count)
    u += law.a3 * RNG.exponential(1 / law.rate, count)
    u += law.a4 * RNG.uniform(law.low, law.high, count)
    return RNG.laplace(0.0, law.size / u)


def opacus_noise(count: int, *, secure: bool) -> torch.Tensor:
    """Opacus's own function, in the two modes that it has."""
    reference = torch.empty(count)
    return opacus_optimizer._generate_noise(1.0, reference, secure_mode=secure)


def peers(count: int) -> Iterator[Timed]:
    """Those that our goals are set against, and other libraries where they can be imported."""
    timed = partial(Timed, count=count)
    yield timed(name=NUMPY, draw=lambda: RNG.standard_normal(count))
    yield timed(name=TORCH, draw=lambda: torch.randn(count, dtype=torch.float64))
    yield timed(name="torch.randn, fp32", draw=lambda: torch.randn(count))
    yield timed(name=RECIPE, draw=lambda: literal_recipe(LMO_LAW, count))
    for secure in (False, True):
        mode = "secure mode's formula" if secure else "plain"
        yield timed(name=f"Opacus, {mode}, fp32", draw=partial(opacus_noise, count, secure=secure))
    few = max(1, count // SLOW)
    yield from opendp(few)
    yield from diffprivlib(few)


def imported(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def opendp(count: int) -> Iterator[Timed]:
    """OpenDP's Gaussian on a vector of zeros."""
    if imported("opendp.prelude"):
        import opendp.prelude as dp

        dp.enable_features("contrib")
        domain = dp.vector_domain(dp.atom_domain(T=float, nan=False))
        mechanism = dp.m.make_gaussian(domain, dp.l2_distance(T=float), 1.0)
        zeros = [0.0] * count
        yield Timed(name="OpenDP, Gaussian", draw=lambda: mechanism(zeros), count=count)


def diffprivlib(count: int) -> Iterator[Timed]:
    """diffprivlib's Gaussian, which takes one number at a time."""
    if imported("diffprivlib.mechanisms"):
        from diffprivlib.mechanisms import GaussianAnalytic

        mechanism = GaussianAnalytic(epsilon=1.0, delta=1e-5, sensitivity=1.0)
        yield Timed(
            name="diffprivlib, Gaussian",
            draw=lambda: [mechanism.randomise(0.0) for _ in range(count)],
            count=count,
        )


def ours(law: Noise, count: int) -> Iterator[Timed]:
    """A law by its table: in torch and numpy, with and without compiled kernels."""
    found, timed = table_of(law), partial(Timed, count=count)
    if found is None:
        raise ValueError(f"Expected a law that a table draws, got {law}.")
    noise = sampler(law)
    yield timed(name="torch, secret", draw=lambda: noise.sample(count))
    yield timed(name="torch fp32, secret", draw=lambda: noise.sample(count, dtype=torch.float32))
    generator = torch.Generator().manual_seed(0)
    yield timed(name="torch, generator", draw=lambda: noise.sample(count, generator=generator))
    yield timed(name="numpy, generator", draw=lambda: found.sample(count, RNG))

    def plain() -> object:
        with patch("dpmech.words._has_kernels", lambda: False):
            return found.draw(count)

    yield timed(name="without numba, secret", draw=plain)
    few = count // 10
    yield Timed(name="the law's own sample()", draw=lambda: law.sample(few, RNG), count=few)


def system_words(count: int) -> Words:
    """Uniform words as the kernel gives them."""
    return np.frombuffer(os.urandom(8 * count), dtype=np.uint64)


def exact(count: int) -> Iterator[Timed]:
    """The lattice: whole numbers with the very masses that are accounted for."""
    law = LatticeNoise.rounded(Gaussian(sigma=1.0), 0.01)
    few = count // 10
    for name, words in (
        ("AES-256, secret", secret_words),
        ("the operating system's", system_words),
        ("PCG64, a generator's", seeded_words(RNG)),
    ):
        yield Timed(
            name=f"Gaussian in steps of 0.01 sigma, words of {name}",
            draw=partial(law.draw, few, words),
            count=few,
        )


def in_turn(runs: list[Timed]) -> dict[str, float]:
    """Nanoseconds a draw of each; once before, to build tables and compile."""
    best = dict.fromkeys([run.name for run in runs], float("inf"))
    for run in runs:
        run.draw()
    for _ in range(TURNS):
        for run in runs:
            began = time.process_time()
            run.draw()
            spent = time.process_time() - began
            best[run.name] = min(best[run.name], spent / run.count * 1e9)
    return best


def table(rows: list[list[str]]) -> list[str]:
    """A table in Markdown; the first row is its head."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:], ""]


def against(times: dict[str, float], base: dict[str, float]) -> list[str]:
    """A table of times with the ratios to numpy's normal and to torch.randn."""
    rows = [["draws", "ns", f"× {NUMPY}", f"× {TORCH}"]]
    for name, ns in times.items():
        rows.append([name, f"{ns:.1f}", f"{ns / base[NUMPY]:.2f}", f"{ns / base[TORCH]:.2f}"])
    return table(rows)


def report(count: int) -> str:
    """The page."""
    base = in_turn(list(peers(count)))
    by_law = {law: in_turn(list(ours(law, count))) for law in LAWS}
    modes = list(by_law[LMO_LAW])
    rows = [["law", *modes, f"first × {TORCH}", "agrees with the law to"]]
    for law, times in by_law.items():
        ratio = f"{times[modes[0]] / base[TORCH]:.2f}"
        rows.append([str(law)[:40], *(f"{ns:.1f}" for ns in times.values()), ratio, fidelity(law)])
    return "\n".join(
        [
            *heading(count),
            *("## Peers", "", *against(base, base), *absent(base), ""),
            *("## Ours, in nanoseconds", "", *table(rows), *goals(base, by_law), ""),
            *("## Exactly, on a lattice", "", *against(in_turn(list(exact(count))), base)),
        ]
    )


def absent(base: dict[str, float]) -> list[str]:
    """Peers that could not be measured."""
    names = ("OpenDP", "diffprivlib")
    return [f"{n}: {missing(n)}." for n in names if not any(known.startswith(n) for known in base)]


def heading(count: int) -> list[str]:
    libraries = ", ".join(f"{n} {version(n)}" for n in ("numpy", "torch", "opacus"))
    numba = f"numba {version('numba')}" if find_spec("numba") else "no numba"
    return [
        "# Samplers, measured",
        "",
        f"Made by `make bench-samplers`: nanoseconds a draw, {count:,} draws a call, seconds of the"
        f" process on one thread, the least of {TURNS}. Python {platform.python_version()},"
        f" {libraries}, {numba}. Secret words are AES-256 in counter mode.",
        "",
    ]


def missing(name: str) -> str:
    try:
        return f"{version(name)} is here, and does not import"
    except PackageNotFoundError:
        return "not installed"


def goals(base: dict[str, float], by_law: dict[Noise, dict[str, float]]) -> Iterator[str]:
    """The two that were set, for the laws that they were set for."""
    yield "Goals: at most 2 times torch.randn in fp64, and 5 times as fast as the recipe at least."
    for law in (LMO_LAW, TABLE):
        ns = by_law[law]["torch, secret"]
        yield f"{law.name}: {ns / base[TORCH]:.2f} times torch.randn, {base[RECIPE] / ns:.1f} times"
        yield "as fast as the recipe."


def fidelity(law: Noise) -> str:
    """How close the draws are to the law, relatively."""
    found = table_of(law)
    if isinstance(found, QuantileTable):
        return f"density {found.density_error:.0e}, tails {found.tail_error:.0e}"
    return "cells 2^-38"


def main() -> None:
    """Print the page, or write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, help="write here instead")
    parser.add_argument("-n", "--draws", type=int, default=10**7, help="draws a call")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    text = report(asked.draws)
    if asked.output:
        write_atomically(asked.output, text.encode())
    else:
        print(text)


if __name__ == "__main__":
    main()
