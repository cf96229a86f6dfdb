"""A run that is killed at any moment ends with the same ledger, and repeats nothing."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from accountants import PLD, Ledger, calibrate
from dpmech import Gaussian, Laplace, Sampling, Sensitivity, Target
from fl_integration import zo_state
from fl_integration.adapters import AdapterSpace
from fl_integration.batches import pad
from fl_integration.client import Tokens
from fl_integration.data import FederatedData
from fl_integration.models import load_model
from fl_integration.run_folder import LOCK_FILE
from fl_integration.zeroth_order import (
    BoundedLosses,
    ZerothOrderConfig,
    ZerothOrderRun,
    replayed,
    train_zeroth_order,
    zeroth_order_mechanism,
)
from fl_integration.zo_adapter import adapter_losses
from fl_integration.zo_head import HeadOptions, LinearHead
from fl_integration.zo_report import ZerothOrderReport
from fl_integration.zo_state import ReleaseLog, Releases
from fl_integration.zo_train import ZerothOrderRequest, resumed, train_zo

CONFIG = ZerothOrderConfig(rate=0.3, steps=23, clip=0.5, lr=0.1, batch=64)
LAW = Gaussian(sigma=2.0)
DELTA = 1e-5


@BoundedLosses
def slopes(theta: Tensor, rows: NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(rows.astype(np.float64)) * 0.01 * theta.sum()


def run_of(config: ZerothOrderConfig = CONFIG, law: Gaussian | None = LAW) -> ZerothOrderRun:
    start = torch.zeros(3, dtype=torch.float64)
    return ZerothOrderRun.checked(slopes, start, 20, config, (law, DELTA))


def log_in(folder: Path) -> ReleaseLog:
    return ReleaseLog(folder, {"run": 1})


class Killed(Exception):
    """Stands for the end of a process."""


class Killer:
    """Ends the run at one of the moments at which something is about to happen or has happened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
        self.left, self.released = at, list[int]()
        write, release = zo_state.write_atomically, ZerothOrderRun._release

        def writing(path: Path, content: str | bytes) -> None:
            self.moment()
            write(path, content)
            self.moment()

        def releasing(run: ZerothOrderRun, here: Tensor, z: Tensor, step: int) -> float:
            self.moment()
            self.released.append(step)  # from here on its noise may have been seen
            found = release(run, here, z, step)
            self.moment()
            return found

        monkeypatch.setattr(zo_state, "write_atomically", writing)
        monkeypatch.setattr(ZerothOrderRun, "_release", releasing)

    def moment(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed


def finish(folder: Path, config: ZerothOrderConfig, killer: Killer, again: list[int]) -> Releases:
    """Start the run anew, as a new process would, until it ends."""
    while True:
        try:
            return resumed(run_of(config), log_in(folder), keep_every=5)
        except Killed:
            killer.left = again.pop() if again else -1


@pytest.mark.parametrize("at", range(1, 68, 3))
def test_no_step_is_taken_twice_wherever_the_run_is_killed(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = np.random.default_rng(at).integers(1, 25, 3).tolist()
    killer = Killer(monkeypatch, at)
    releases = finish(tmp_path, CONFIG, killer, again)
    assert len(releases) == CONFIG.steps
    assert len(set(killer.released)) == len(killer.released)
    burnt = {step for first, last in releases.burnt for step in range(first, last)}
    assert set(killer.released) | burnt == set(range(CONFIG.steps))
    assert all(releases.values[step] == 0.0 for step in burnt)
    result = run_of().result(torch.zeros(3), releases.values)
    assert result.ledger == Ledger().add(zeroth_order_mechanism(CONFIG, LAW), CONFIG.steps)


@pytest.mark.parametrize("at", range(2, 68, 13))
def test_a_seeded_run_is_repeated_to_the_bit(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeded = replace(CONFIG, noise_seed=4)
    whole = train_zeroth_order(slopes, torch.zeros(3), 20, seeded, LAW, delta=DELTA)
    releases = finish(tmp_path, seeded, Killer(monkeypatch, at), [7, 3])
    assert np.array_equal(releases.values, whole.releases)
    assert releases.burnt == ()
    theta = replayed(torch.zeros(3), seeded, releases.values, records=20)
    assert torch.equal(theta, whole.theta)


def test_a_process_that_is_killed_for_good_is_continued(tmp_path: Path) -> None:
    config = replace(CONFIG, steps=400)
    rng, kills = np.random.default_rng(0), 0
    for _ in range(20):
        child = os.fork()
        if child == 0:
            resumed(run_of(config), log_in(tmp_path), keep_every=20)
            os._exit(0)
        time.sleep(float(rng.uniform(0.01, 0.1)))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        kills += os.WIFSIGNALED(status)
        done = len(log_in(tmp_path).restore())
        if done == config.steps:
            break
    assert kills >= 1
    releases = resumed(run_of(config), log_in(tmp_path), keep_every=20)
    assert len(releases) == config.steps
    burnt = sum(last - first for first, last in releases.burnt)
    assert np.count_nonzero(releases.values == 0.0) == burnt


def test_a_finished_run_releases_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = resumed(run_of(), log_in(tmp_path), keep_every=7)
    killer = Killer(monkeypatch, -1)
    told = list[tuple[int, int]]()
    again = resumed(run_of(), log_in(tmp_path), keep_every=7, progress=lambda *at: told.append(at))
    assert np.array_equal(first.values, again.values)
    assert (killer.released, told) == ([], [])


def test_progress_is_told_after_a_state_is_on_disk(tmp_path: Path) -> None:
    told = list[tuple[int, int, int]]()

    def progress(done: int, of: int) -> None:
        told.append((done, of, len(log_in(tmp_path).restore())))

    resumed(run_of(), log_in(tmp_path), keep_every=10, progress=progress)
    assert told == [(10, 23, 10), (20, 23, 20), (23, 23, 23)]


def test_a_full_disk_stops_the_run_before_anything_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: str | bytes) -> None:
        raise ValueError(f"Cannot write {str(path)!r}: No space left on device.")

    told = list[int]()
    monkeypatch.setattr(zo_state, "write_atomically", full)
    with pytest.raises(ValueError, match="No space left"):
        resumed(run_of(), log_in(tmp_path), keep_every=10, progress=lambda *at: told.append(at[0]))
    assert told == []


def test_states_that_do_not_belong_here_are_refused(tmp_path: Path) -> None:
    resumed(run_of(), log_in(tmp_path), keep_every=10)
    with pytest.raises(ValueError, match=r"\['run'\] differ; choose an empty folder"):
        ReleaseLog(tmp_path, {"run": 2}).restore()
    state = tmp_path / zo_state.STATE_FILE
    whole = state.read_bytes()
    state.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cannot read it"):
        log_in(tmp_path).restore()
    state.unlink()  # an older backup of the folder, with the newest intent
    with pytest.raises(ValueError, match=r"intent of step 0 at most .* got 20"):
        resumed(run_of(), log_in(tmp_path), keep_every=10)
    (tmp_path / zo_state.INTENT_FILE).write_text("{")
    with pytest.raises(ValueError, match="Expected an intent in"):
        resumed(run_of(), log_in(tmp_path), keep_every=10)


def mine(folder: Path, users: int = 12) -> Path:
    rows = [
        {"text": f"{word} {n} {k}", "label": label, "client": f"user-{n}"}
        for n in range(users)
        for k in range(3)
        for label, word in (("alpha", "alpha alpha"), ("beta", "beta beta"))
    ]
    path = folder / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def request(tmp_path: Path, **fields: Any) -> ZerothOrderRequest:
    config = replace(CONFIG, rate=0.5, steps=30)
    given: dict[str, Any] = {"config": config, "data": str(mine(tmp_path)), "model": "tiny"}
    return ZerothOrderRequest(**({"out": tmp_path / "run", "keep_every": 10} | given | fields))


def records_of(report: ZerothOrderReport) -> int:
    return int(report.request["records"])


@pytest.mark.parametrize("unit", ["user", "example"])
def test_a_request_ends_in_a_folder_and_a_report_that_proves_itself(
    unit: str, tmp_path: Path
) -> None:
    asked = request(tmp_path, unit=unit, epsilon=4.0, delta=1e-3, noise=Laplace(b=1.0))
    report = train_zo(asked)
    out = tmp_path / "run"
    read = ZerothOrderReport.from_json((out / "report.json").read_text())
    assert read.to_json() == report.to_json()
    flat = json.loads(report.to_json())
    assert (flat["unit"], flat["relation"], flat["sampling"]) == (unit, "add-remove", "poisson")
    assert flat["trusted"].startswith("server")
    assert flat["why_not_private"] is None
    ledger = Ledger.load(out / "ledger.json")
    assert (ledger, ledger.runs) == (report.ledger, 30)
    assert PLD().compose_ledger(ledger).epsilon(1e-3) == pytest.approx(report.epsilon, rel=1e-3)
    assert 3.9 < float(report.epsilon or math.inf) <= 4.0 * (1 + 1e-6)
    assert (records_of(report) > 30) == (unit == "example")
    assert report.bytes_up == 8 * 0.5 * 30
    assert report.bytes_down == 8 * 31
    head = LinearHead.load(out / "head.safetensors")
    assert head.labels == ("alpha", "beta")
    assert head.matrix.size == report.dim
    again = train_zo(asked)
    assert replace(again, seconds=0.0).to_json() == replace(report, seconds=0.0).to_json()


def test_a_run_learns_without_noise_and_says_that_it_is_not_private(tmp_path: Path) -> None:
    config = replace(CONFIG, rate=0.9, steps=300, lr=3.0, clip=2.0)
    report = train_zo(request(tmp_path, config=config, head=HeadOptions(dim=1)))
    assert report.accuracy > 0.9 > (report.majority_share or 1.0) + 0.2
    assert (report.epsilon, report.ledger) == (None, None)
    assert report.why_not_private == "no noise was added"


def test_a_seeded_or_endless_run_is_not_called_private(tmp_path: Path) -> None:
    seeded = replace(CONFIG, rate=0.5, steps=3, noise_seed=1)
    report = train_zo(request(tmp_path, config=seeded, epsilon=4.0))
    assert "noise_seed=1" in (report.why_not_private or "")
    assert "inf" in (
        replace(report, config=CONFIG.to_dict(), epsilon=math.inf).why_not_private or ""
    )


def test_an_interrupted_request_keeps_its_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = request(tmp_path, epsilon=4.0)
    Killer(monkeypatch, 20)
    with pytest.raises(Killed):
        train_zo(asked)
    monkeypatch.undo()
    report = train_zo(asked)
    assert report.burnt == ((0, 10),)
    assert report.ledger is not None
    assert report.ledger.runs == 30
    with pytest.raises(ValueError, match=r"\['max_texts'\] differ"):
        train_zo(replace(asked, max_texts=2))


def test_a_refused_request_changes_nothing_in_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: Callable[[Path], dict[str, bytes]]
) -> None:
    asked = request(tmp_path, epsilon=8.0)
    train_zo(asked)
    before = files(asked.out)
    killer = Killer(monkeypatch, -1)
    with pytest.raises(ValueError, match=r"\['plan'\] differ"):
        train_zo(replace(asked, epsilon=1.0))
    assert files(asked.out) == before
    (asked.out / "checkpoint").rename(asked.out / "away")
    with pytest.raises(ValueError, match=r"checkpoint' beside plan\.json, but it is missing"):
        train_zo(asked)
    assert not (asked.out / "checkpoint").exists()
    assert killer.released == []


def test_the_plan_is_there_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = request(tmp_path, epsilon=4.0)
    killer = Killer(monkeypatch, 5)  # after the empty state and the intent
    with pytest.raises(Killed):
        train_zo(asked)
    assert (killer.released, (asked.out / "plan.json").exists()) == ([], True)


def test_a_folder_is_for_one_process_at_a_time(
    tmp_path: Path,
    rival: Callable[[Path], subprocess.Popen[str]],
    is_free: Callable[[Path], bool],
    files: Callable[[Path], dict[str, bytes]],
) -> None:
    asked, found = request(tmp_path, epsilon=4.0), list[bool]()
    other = rival(asked.out)
    with pytest.raises(ValueError, match="run' to be free, but another run is using it"):
        train_zo(asked)
    assert files(asked.out) == {LOCK_FILE: b""}
    other.kill()
    other.wait()
    train_zo(asked, progress=lambda *_: found.append(is_free(asked.out)))
    assert found == [False, False, False]
    assert is_free(asked.out)


def test_a_finished_plan_is_spent_and_another_is_refused(tmp_path: Path) -> None:
    plan = calibrate(
        LAW,
        Target(epsilon=3.0, delta=1e-3),
        steps=30,
        sampling=Sampling(rate=0.5),
        sensitivity=Sensitivity(bound=0.5),
    )
    report = train_zo(request(tmp_path, plan=plan))
    assert report.ledger == Ledger().add(plan.mechanism, 30)
    assert report.delta == 1e-3
    with pytest.raises(ValueError, match="steps to be 31, got 30"):
        train_zo(request(tmp_path, plan=plan, config=replace(CONFIG, rate=0.5, steps=31)))


def test_requests_that_contradict_themselves_are_refused(tmp_path: Path) -> None:
    plan = calibrate(LAW, Target(epsilon=3.0, delta=1e-3))
    for fields, message in (
        ({"plan": plan, "epsilon": 1.0}, "a plan or epsilon=1.0"),
        ({"layers": "adapter"}, "batch=64 to be 1 with layers='adapter'"),
        ({"unit": "silo"}, "unit='silo'"),
        ({"keep_every": 0}, "keep_every=0"),
    ):
        with pytest.raises(ValueError, match=message):
            request(tmp_path, **fields)


def test_adapters_are_trained_one_record_at_a_time(tmp_path: Path) -> None:
    config = replace(CONFIG, rate=0.4, steps=6, batch=1)
    report = train_zo(request(tmp_path, config=config, layers="adapter", rank=2, epsilon=4.0))
    assert report.request["layers"] == "adapter"
    assert report.ledger is not None
    assert report.ledger.runs == 6
    assert (tmp_path / "run" / "adapters" / "rank-2" / "adapter_model.safetensors").exists()


def test_the_losses_of_an_adapter_are_those_of_the_model(
    federated_data: FederatedData,
) -> None:
    model, tokenizer = load_model("tiny", labels=3)
    space = AdapterSpace(model, rank=2, generator=torch.Generator().manual_seed(0))
    tokens = Tokens(federated_data, tokenizer)
    theta = space.flatten(2, dtype=torch.float64)
    theta = theta + 0.1 * torch.randn(
        len(theta), generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    with adapter_losses(space, tokens, max_texts=3) as losses:
        found, moved = losses(theta, np.array([4, 0])), losses(theta * 2, np.array([4, 0]))
    assert not torch.equal(found, moved)
    space.assign(theta.float(), 2)
    for row, value in zip((4, 0), found, strict=True):
        ids = tokens.client(row)[:3]
        labels = torch.from_numpy(federated_data.clients[row].labels[:3])
        with torch.no_grad():
            wanted = functional.cross_entropy(model(*pad(ids, pad_id=model.pad_id)), labels)
        assert value.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_half_precision_and_no_texts_are_refused(federated_data: FederatedData) -> None:
    model, tokenizer = load_model("tiny", labels=3, dtype="bfloat16")
    space = AdapterSpace(model, rank=1, generator=torch.Generator().manual_seed(0))
    tokens = Tokens(federated_data, tokenizer)
    with (
        pytest.raises(ValueError, match=r"float32, got torch\.bfloat16"),
        adapter_losses(space, tokens, max_texts=3),
    ):
        pass
    model.encoder.float()
    with pytest.raises(ValueError, match="max_texts=0"), adapter_losses(space, tokens, max_texts=0):
        pass
