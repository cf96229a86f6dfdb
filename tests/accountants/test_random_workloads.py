"""Hundreds of random workloads, bracketed against benchmarks/reference.py.

The reference's values are stored (`python benchmarks/reference.py --write`); what was drawn, and
how many draws were left out because they are uninteresting or too hard for the reference, is
written in benchmarks/reference_random.py and at the head of the stored file.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from accountants import PLD, Ledger
from dpmech import Mechanism, Sampling, parse_noise

STORED = json.loads(
    (Path(__file__).parents[1] / "golden" / "random_workloads.json").read_text(encoding="utf-8")
)
WORKLOADS: list[dict[str, Any]] = STORED["workloads"]
GAP = 1e-4
# What the reference is trusted to; its own estimates ("error") are mostly far smaller.
SLACK: float = STORED["accuracy"]


def named(work: dict[str, Any]) -> str:
    releases = "+".join(f"{law}@{rate:g}x{count}" for law, rate, count in work["releases"])
    return f"{releases}-{work['delta']:g}"


def composed(work: dict[str, Any]) -> PLD:
    ledger = Ledger()
    for law, rate, count in work["releases"]:
        mechanism = Mechanism(noise=parse_noise(law), sampling=Sampling(rate=rate))
        ledger = ledger.add(mechanism, count)
    return PLD().compose_ledger(ledger)


@pytest.mark.parametrize("work", WORKLOADS, ids=named)
def test_bracketed(work: dict[str, Any]) -> None:
    low, high = composed(work).epsilon_interval(work["delta"])
    assert low <= work["epsilon"] * (1 + SLACK)
    assert high >= work["epsilon"] * (1 - SLACK)
    assert high - low <= GAP * high


def test_enough_of_them_and_of_every_kind() -> None:
    assert len(WORKLOADS) >= 300
    assert STORED["left_out"]["accuracy"] <= 0.15 * len(WORKLOADS)
    laws = [law.split(":")[0] for work in WORKLOADS for law, _, _ in work["releases"]]
    for law in ("gaussian", "laplace", "gg", "laplace-mixture"):
        assert laws.count(law) >= 30
    assert sum(len(work["releases"]) > 1 for work in WORKLOADS) >= 20
    assert min(work["delta"] for work in WORKLOADS) < 1e-28
    assert max(count for work in WORKLOADS for _, _, count in work["releases"]) > 5e5
