"""Plans: read back as written, refused when broken, and written whole or not at all."""

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpmech import (
    Gaussian,
    Mechanism,
    NoDominatingPair,
    Noise,
    PrivacyPlan,
    Sampling,
    Sensitivity,
    Target,
    Unattainable,
)
from dpmech.files import write_atomically

PLAN = PrivacyPlan(
    target=Target(epsilon=1.0, delta=1e-5),
    mechanism=Mechanism(
        noise=Gaussian(sigma=1.1),
        sensitivity=Sensitivity(bound=0.3, dim=7),
        sampling=Sampling(rate=0.01),
    ),
    steps=100,
    accountant="pld",
    epsilon=0.99,
    lower_epsilon=0.98,
)
TEXT = PLAN.to_json()


def test_round_trip(every_law: Noise, tmp_path: Path) -> None:
    plan = PrivacyPlan(
        target=Target(epsilon=1 / 3, delta=1e-30),
        mechanism=Mechanism(noise=every_law, sampling=Sampling(rate=0.1)),
        steps=1,
        accountant="rdp",
        epsilon=0.1 + 0.2,
    )
    assert PrivacyPlan.from_json(plan.to_json()) == plan
    plan.save(tmp_path / "deep" / "plan.json")
    assert PrivacyPlan.load(tmp_path / "deep" / "plan.json") == plan


@given(st.integers(0, len(TEXT) - 1))
def test_truncated_plans_are_refused(length: int) -> None:
    with pytest.raises(ValueError, match="Not a readable privacy plan") as caught:
        PrivacyPlan.from_json(TEXT[:length])
    assert one_sentence(str(caught.value))


def one_sentence(message: str) -> bool:
    return "\n" not in message and message.endswith(".") and not message.endswith("..")


EDITS: list[tuple[str, Any]] = [
    ("format", 2),
    ("format", None),
    ("target", {}),
    ("target", [1.0, 1e-5]),
    ("target", {"epsilon": -1.0, "delta": 1e-5}),
    ("target", {"epsilon": 1.0, "delta": 0.0}),
    ("target", {"epsilon": 1.0, "delta": 1.0}),
    ("target", {"epsilon": "1", "delta": 1e-5}),
    ("target", {"epsilon": 0.5, "delta": 1e-5}),  # below the epsilon that was proved
    ("mechanism", {}),
    ("mechanism", "gaussian"),
    ("mechanism", None),
    ("steps", 0),
    ("steps", -3),
    ("steps", 1.5),
    ("steps", "100"),
    ("steps", None),
    ("epsilon", 1.01),
    ("epsilon", -0.5),
    ("epsilon", math.nan),
    ("epsilon", math.inf),
    ("epsilon", "0.9"),
    ("epsilon", None),
]


@pytest.mark.parametrize(("key", "value"), EDITS, ids=[f"{k}={v}" for k, v in EDITS])
def test_edited_plans_are_refused(key: str, value: object) -> None:
    data = json.loads(TEXT)
    data[key] = value
    with pytest.raises(ValueError, match="Not a readable privacy plan") as caught:
        PrivacyPlan.from_json(json.dumps(data))
    assert one_sentence(str(caught.value))


@pytest.mark.parametrize("key", list(json.loads(TEXT)))
def test_plans_with_a_part_missing_are_refused(key: str) -> None:
    data = json.loads(TEXT)
    del data[key]
    with pytest.raises(ValueError, match=key):
        PrivacyPlan.from_json(json.dumps(data))


@pytest.mark.parametrize("text", ["", "null", "[]", "3", '"plan"', "{}", "\x00", "NaN"])
def test_what_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="Not a readable privacy plan"):
        PrivacyPlan.from_json(text)


def test_sampling_without_proof_stays_refused_in_a_plan() -> None:
    with pytest.raises(NoDominatingPair, match="shuffle"):
        PrivacyPlan.from_json(TEXT.replace('"poisson"', '"shuffle"'))


def test_load_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Cannot read the plan '.*absent\.json': No such file"):
        PrivacyPlan.load(tmp_path / "absent.json")
    with pytest.raises(ValueError, match="Cannot read the plan"):
        PrivacyPlan.load(tmp_path)
    broken = tmp_path / "broken.json"
    broken.write_bytes(b"\xff\xfe{")
    with pytest.raises(ValueError, match=r"broken\.json"):
        PrivacyPlan.load(broken)


def test_targets() -> None:
    for epsilon, delta in ((0.0, 0.1), (-1.0, 0.1), (math.inf, 0.1), (math.nan, 0.1)):
        with pytest.raises(ValueError, match="Expected epsilon="):
            Target(epsilon=epsilon, delta=delta)
    for delta in (0.0, 1.0, -1e-9, math.nan):
        with pytest.raises(ValueError, match="Expected delta="):
            Target(epsilon=1.0, delta=delta)


def test_atomic_write_replaces_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "a" / "file.txt"
    write_atomically(path, "old")
    write_atomically(path, b"new")
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("step", ["fsync", "replace", "chmod"])
def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "file.txt"
    write_atomically(path, "old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.txt"
    write_atomically(path, "old")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_a_value_error(tmp_path: Path) -> None:
    blocking = tmp_path / "file"
    blocking.write_text("")
    with pytest.raises(ValueError, match="Cannot write"):
        write_atomically(blocking / "plan.json", "x")


def test_unattainable_carries_what_was_reached() -> None:
    refusal = Unattainable("No scale meets the target.", reached=2.5)
    assert refusal.reached == 2.5
    assert str(refusal) == "No scale meets the target."


SHARE = Mechanism(
    noise=Gaussian(sigma=9.0), sensitivity=Sensitivity(bound=0.5), sampling=Sampling(rate=0.02)
)


def test_other_releases_are_kept_and_read_back(every_law: Noise) -> None:
    others = ((SHARE, 20), (Mechanism(noise=every_law), 1), (SHARE, 3))
    plan = replace(PLAN, others=others)
    assert PrivacyPlan.from_json(plan.to_json()) == plan
    assert plan.entries == ((PLAN.mechanism, PLAN.steps), *others)
    assert "others" not in json.loads(TEXT)  # what was written before there were any reads as ever
    assert PrivacyPlan.from_json(TEXT).entries == ((PLAN.mechanism, PLAN.steps),)


@pytest.mark.parametrize("count", [0, -1, 1.5, "3", None, True])
def test_other_releases_without_a_count_are_refused(count: Any) -> None:
    with pytest.raises(ValueError, match="Expected count="):
        replace(PLAN, others=((SHARE, count),))
    data = json.loads(replace(PLAN, others=((SHARE, 2),)).to_json())
    data["others"][0]["count"] = count
    with pytest.raises(ValueError, match="Not a readable privacy plan"):
        PrivacyPlan.from_json(json.dumps(data))


def test_other_releases_under_another_relation_are_refused() -> None:
    with pytest.raises(ValueError, match="do not add up"):
        replace(PLAN, others=((replace(SHARE, relation="zero-out"), 1),))


@pytest.mark.parametrize("others", [3, "x", [3], [{}], [{"mechanism": {}}], {"count": 1}])
def test_broken_other_releases_are_refused(others: object) -> None:
    data = {**json.loads(TEXT), "others": others}
    with pytest.raises(ValueError, match="Not a readable privacy plan"):
        PrivacyPlan.from_json(json.dumps(data))
