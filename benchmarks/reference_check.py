"""The reference against mpmath (the same integral, adaptive, 30 digits) and the golden table."""

from __future__ import annotations

import itertools
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mpmath as mp
from mpmath.calculus.quadrature import GaussLegendre
from reference import Value, reference_delta, reference_epsilon
from reference_laws import Release, Workload

GOLDEN = Path(__file__).parents[1] / "tests" / "golden" / "accountants.toml"
# Two ways of evaluating one integral must agree to this, relatively.
_AGREEMENT = 1e-9


@dataclass(frozen=True, kw_only=True)
class Spot:
    """A workload whose removals mpmath evaluates, too; the removals are its worse direction."""

    law: str
    width: float
    rate: float
    count: int
    epsilon: float

    def workload(self) -> Workload:
        key = "sigma" if self.law == "gaussian" else "b"
        return (Release(law=f"{self.law}:{key}={self.width!r}", rate=self.rate, count=self.count),)


SPOTS = (
    Spot(law="gaussian", width=1.0, rate=0.01, count=1000, epsilon=4.0),
    Spot(law="gaussian", width=0.8, rate=256 / 60000, count=14063, epsilon=8.18501),
    Spot(law="laplace", width=1.0, rate=0.01, count=1000, epsilon=1.2864074),
    Spot(law="gaussian", width=2.0, rate=0.3, count=20, epsilon=5.0),
)


def releases_of(case: Mapping[str, Any]) -> Workload:
    """The workload of a golden row: its releases, or its phases spaced geometrically."""
    if "phases" not in case:
        return tuple(Release(**release) for release in case["releases"])
    p = case["phases"]
    ratio = (p["last"] / p["first"]) ** (1 / (p["number"] - 1))
    widths = [p["first"] * ratio**i for i in range(p["number"])]
    return tuple(Release(law=p["law"].format(w), rate=p["rate"], count=p["count"]) for w in widths)


def _golden(case: Mapping[str, Any]) -> Value:
    workload = releases_of(case)
    if "epsilon" in case:
        return reference_delta(workload, case["epsilon"])
    return reference_epsilon(workload, case["delta"])


def _mp_gauss(edges: Sequence[mp.mpf]) -> list[tuple[mp.mpf, mp.mpf]]:
    """mpmath's own Gauss-Legendre nodes, 96 to a panel."""
    basis = GaussLegendre(mp.mp).calc_nodes(6, mp.mp.prec)
    return [
        ((a + b) / 2 + (b - a) / 2 * x, (b - a) / 2 * w)
        for a, b in itertools.pairwise(edges)
        for x, w in basis
    ]


def _mp_parts(spot: Spot, lam: mp.mpf) -> list[tuple[mp.mpf, mp.mpf]]:
    """(loss of a removal, weight times density of P), over all of P and of its tilt."""
    s, q, gaussian = mp.mpf(spot.width), mp.mpf(spot.rate), spot.law == "gaussian"

    def log_density(x: mp.mpf) -> mp.mpf:
        if gaussian:
            return -((x / s) ** 2) / 2 - mp.log(s * mp.sqrt(2 * mp.pi))
        return -abs(x) / s - mp.log(2 * s)

    low, high = (-12 * s, lam + 1 + 12 * s) if gaussian else (-50 * s, 1 + 50 * s)
    panels = int((high - low) / (4 * s)) + 1
    edges = sorted(
        {mp.mpf(0), mp.mpf(1), *(low + (high - low) * i / panels for i in range(panels + 1))}
    )
    parts: list[tuple[mp.mpf, mp.mpf]] = []
    for x, w in _mp_gauss(edges):
        loss = mp.log(1 - q + q * mp.exp(log_density(x - 1) - log_density(x)))
        parts.append((loss, w * mp.exp(log_density(x) + loss)))
    return parts


def mp_delta(spot: Spot) -> mp.mpf:
    """delta of removals by mpmath, on a line that nothing was tuned for."""
    with mp.workdps(30):
        lam, epsilon = mp.mpf(2) + mp.mpf(spot.epsilon) / 4, mp.mpf(spot.epsilon)
        parts = _mp_parts(spot, lam)
        total = mp.mpf(0)
        for y, w in _mp_gauss([0, 2, 4, 8, 16, 32]):
            z = mp.mpc(lam, y)
            moment = mp.fsum(p * mp.exp(z * loss) for loss, p in parts)
            total += w * mp.re(mp.exp(spot.count * mp.log(moment) - z * epsilon) / (z * (z + 1)))
        return total / mp.pi


def _compare(label: str, ours: float, theirs: float, agreement: float) -> bool:
    difference = abs(ours / theirs - 1)
    good = difference <= agreement
    print(f"{'ok  ' if good else 'FAIL'} {label}: {ours:.12g}, {theirs:.12g}, {difference:.1e}")
    return good


def check() -> int:
    """Print every comparison; 1 if one fails."""
    good = True
    for spot in SPOTS:
        ours = reference_delta(spot.workload(), spot.epsilon).value
        good &= _compare(f"mpmath, {spot}", ours, float(mp_delta(spot)), _AGREEMENT)
    for case in tomllib.loads(GOLDEN.read_text())["curve"]:
        found = _golden(case).value
        good &= _compare(case["name"], found, case["value"], case["tolerance"])
    print("All agree." if good else "Some differ.", file=sys.stderr)
    return 0 if good else 1
