"""Every recorded truth lies in the intervals of PLD, and these are as narrow as promised.

The values come from the issue that asked for the accountants and from benchmarks/reference.py,
which shares no code with them; each row says which.
"""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from accountants import PLD, RDP, Ledger
from accountants.curves import false_negative_rate
from dpmech import Mechanism, Sampling, parse_noise

TABLE = tomllib.loads((Path(__file__).parents[1] / "golden" / "accountants.toml").read_text())
EPSILONS = [case for case in TABLE["curve"] if "delta" in case]
DELTAS = [case for case in TABLE["curve"] if "epsilon" in case]
GAP = 1e-4


def ledger(case: dict[str, Any]) -> Ledger:
    found = Ledger()
    for release in case.get("releases") or phases(**case["phases"]):
        sampling = Sampling(rate=release["rate"])
        mechanism = Mechanism(noise=parse_noise(release["law"]), sampling=sampling)
        found = found.add(mechanism, release["count"])
    return found


def phases(
    *, law: str, first: float, last: float, number: int, **same: float
) -> list[dict[str, Any]]:
    """As many releases, their widths spaced geometrically."""
    ratio = (last / first) ** (1 / (number - 1))
    return [{"law": law.format(first * ratio**i), **same} for i in range(number)]


def assert_bracketed(low: float, high: float, case: dict[str, Any]) -> None:
    value, tolerance = case["value"], case["tolerance"]
    assert low <= value * (1 + tolerance)
    assert high >= value * (1 - tolerance)
    assert high - low <= GAP * high


def named(case: dict[str, Any]) -> str:
    return case["name"]


@pytest.mark.parametrize("case", EPSILONS, ids=named)
def test_epsilon(case: dict[str, Any]) -> None:
    assert_bracketed(*PLD().compose_ledger(ledger(case)).epsilon_interval(case["delta"]), case)


@pytest.mark.parametrize("case", DELTAS, ids=named)
def test_delta(case: dict[str, Any]) -> None:
    assert_bracketed(*PLD().compose_ledger(ledger(case)).delta_interval(case["epsilon"]), case)


@pytest.mark.parametrize("case", EPSILONS, ids=named)
def test_rdp_is_never_below(case: dict[str, Any]) -> None:
    loose = RDP().compose_ledger(ledger(case)).epsilon(case["delta"])
    assert loose >= case["value"] * (1 - case["tolerance"])
    assert loose >= PLD().compose_ledger(ledger(case)).lower_epsilon(case["delta"])


@pytest.mark.parametrize("case", TABLE["tradeoff"], ids=named)
def test_false_negatives(case: dict[str, Any]) -> None:
    found = false_negative_rate(PLD().compose_ledger(ledger(case)), case["fpr"])
    assert_bracketed(found.lower, found.upper, case)


def test_the_table_covers_what_is_promised() -> None:
    deltas = [case["delta"] for case in EPSILONS]
    assert min(deltas) <= 1e-30 < 1e-2 <= max(deltas)
    values = [case["value"] for case in EPSILONS]
    assert min(values) < 1e-4 < 80 < max(values)
    laws = {r["law"].split(":")[0] for case in TABLE["curve"] for r in case.get("releases", [])}
    assert {"gaussian", "laplace", "gg", "laplace-mixture", "randomized-response"} <= laws
