"""The fixed list of workloads, each with its truth from the golden table."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accountants import Ledger
from dpmech import Mechanism, Sampling, parse_noise

GOLDEN = Path(__file__).parents[1] / "tests" / "golden" / "accountants.toml"
# Rows of the golden table, by name.
NAMES = (
    "PSG(1, .01, 1000) at 1e-05",
    "PSG(1, .01, 1000) at 1e-10",
    "PSG(1, .01, 1000) at 1e-20",
    "PSG(1, .01, 1000) at 1e-30",
    "PSG(.8, 256/60000, 14063) at 1e-05",
    "PSG(.8, 256/60000, 14063) at 1e-09",
    "PSG(.8, 256/60000, 14063) at 1e-12",
    "PSG(20, .001, 1000) at 1e-10",
    "tiny epsilon: PSG(100, 1e-4, 1000) at 1e-6",
    "epsilon near 90: PSG(.6, .175, 400) at 1e-5",
    "epsilon near 90: G(1) x 76 at 1e-9",
    "PSG(10, .01, 1e6) at 1e-6",
    "PSG(100, .01, 1e9) at 1e-10",
    "PSG(.3, .01, 100) at 1e-6",
    "G(50) x 1000 at 1e-6",
    "G(.01) at 1e-5",
    "one Gaussian (1, 1e-5)",
    "Laplace(10) x 100 at 1e-6",
    "Laplace(1), q=.01, T=1000 at 1e-6",
    "Laplace mixture x 10 at 1e-6",
    "Laplace mixture x 100 at 1e-6",
    "Laplace mixture, q=.01, T=1000 at 1e-6",
    "gg(20, 1.4) x 1000 at 1e-6",
    "randomised response .1 x 1000 at 1e-6",
    "mixed ledger at 1e-7",
    "200 phases at 1e-6",
)


@dataclass(frozen=True, kw_only=True)
class Release:
    """``count`` releases of ``law`` with parameters ``keys`` at Poisson ``rate``."""

    text: str
    rate: float
    count: int

    @property
    def law(self) -> str:
        return self.text.partition(":")[0]

    @property
    def width(self) -> float:
        """The only parameter of a Gaussian or a Laplace law."""
        return float(self.text.partition("=")[2])


@dataclass(frozen=True, kw_only=True)
class Workload:
    """epsilon at ``delta``; or, where ``target`` is given, the sigma at which that is epsilon."""

    name: str
    releases: tuple[Release, ...]
    delta: float
    truth: float
    target: float | None = None

    def ledger(self) -> Ledger:
        found = Ledger()
        for release in self.releases:
            sampling = Sampling(rate=release.rate)
            mechanism = Mechanism(noise=parse_noise(release.text), sampling=sampling)
            found = found.add(mechanism, release.count)
        return found

    def only(self, *laws: str) -> bool:
        """Whether all releases are of these laws."""
        return all(release.law in laws for release in self.releases)


def _phases(p: dict[str, Any]) -> tuple[Release, ...]:
    """Releases whose widths are spaced geometrically."""
    ratio = (p["last"] / p["first"]) ** (1 / (p["number"] - 1))
    texts = [p["law"].format(p["first"] * ratio**i) for i in range(p["number"])]
    return tuple(Release(text=text, rate=p["rate"], count=p["count"]) for text in texts)


def _releases(case: dict[str, Any]) -> tuple[Release, ...]:
    if "phases" in case:
        return _phases(case["phases"])
    return tuple(Release(text=r["law"], rate=r["rate"], count=r["count"]) for r in case["releases"])


def _calibrations() -> list[Workload]:
    """The sigma of PSG(sigma, .01, 1000) at delta 1e-5 (issue 3)."""
    release = Release(text="gaussian:sigma=1", rate=0.01, count=1000)
    return [
        Workload(
            name=f"calibrate PSG(σ, .01, 1000) to ({epsilon:g}, 1e-5)",
            releases=(release,),
            delta=1e-5,
            truth=sigma,
            target=epsilon,
        )
        for epsilon, sigma in ((0.1, 9.796791), (2.0, 0.959102))
    ]


def workloads() -> list[Workload]:
    """All of them, in the order of the list."""
    rows = {row["name"]: row for row in tomllib.loads(GOLDEN.read_text())["curve"]}
    asked = [
        Workload(
            name=name,
            releases=_releases(rows[name]),
            delta=rows[name]["delta"],
            truth=rows[name]["value"],
        )
        for name in NAMES
    ]
    return asked + _calibrations()
