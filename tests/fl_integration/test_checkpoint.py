"""A run survives a kill at any moment without losing or doubling a release."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from fl_integration.checkpoint import INTENT_FILE, Checkpoint
from fl_integration.client import Tokens
from fl_integration.federate import federate
from fl_integration.report import RoundMetrics
from fl_integration.run_folder import LOCK_FILE

# the function of the same name hides the module as an attribute of the package
federate_module = import_module("fl_integration.federate")


class Killed(BaseException):
    """A kill: nothing in the package may catch it."""


KILLS = ("before intend", "in intend", "before noise", "after noise", "before commit", "in commit")


class Killer:
    """Ends a run at one point of one round, and counts the draws of noise."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.draws, self.armed = 0, ("", -1)
        self._intend, self._commit = Checkpoint.intend, Checkpoint.commit
        self._noisy, self._replace = federate_module.noisy_mean, os.replace
        self.round = 0
        monkeypatch.setattr(Checkpoint, "intend", lambda *a: self.intend(*a))
        monkeypatch.setattr(Checkpoint, "commit", lambda *a: self.commit(*a))
        monkeypatch.setattr(federate_module, "noisy_mean", self.noisy)
        monkeypatch.setattr(os, "replace", self.move)

    def at(self, point: str) -> None:
        if self.armed == (point, self.round):
            self.armed = ("", -1)
            raise Killed

    def intend(self, checkpoint: Checkpoint, round: int, mechanism: Any) -> None:
        self.round = round
        self.at("before intend")
        self._intend(checkpoint, round, mechanism)

    def noisy(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.at("before noise")
        self.draws += 1
        mean = self._noisy(*args, **kwargs)
        self.at("after noise")
        return mean

    def commit(self, checkpoint: Checkpoint, state: Any) -> None:
        if state.round > self.round:  # not the very first, empty state
            self.at("before commit")
        self._commit(checkpoint, state)

    def move(self, source: Any, target: Any) -> None:
        if Path(target).name == INTENT_FILE:
            self.at("in intend")
        elif self.draws:
            self.at("in commit")
        self._replace(source, target)


@pytest.mark.parametrize("seeded", [False, True])
@pytest.mark.parametrize("kill", [(point, round) for point in KILLS for round in (0, 3)])
def test_a_kill_at_any_point_neither_loses_nor_doubles_a_release(
    lab: Any, tokens: Tokens, monkeypatch: pytest.MonkeyPatch, kill: tuple[str, int], seeded: bool
) -> None:
    config = replace(lab.config, cohort=3, noise_seed=7 if seeded else None, eval_every=99)
    whole = lab.make_space()
    plan = lab.make_plan(config, dim=whole.dim(4))
    uninterrupted = federate(whole, tokens, config, plan)
    killer = Killer(monkeypatch)
    point, round = killer.armed = kill
    with pytest.raises(Killed):
        federate(lab.make_space(), tokens, config, plan, checkpoint_dir=lab.folder)
    assert killer.draws <= round + 1
    space = lab.make_space()
    report = federate(space, tokens, config, plan, checkpoint_dir=lab.folder)
    assert report.ledger == uninterrupted.ledger  # same entries, so the plan is kept
    assert [m.round for m in report.rounds] == list(range(config.rounds))
    burnt = [metrics.round for metrics in report.rounds if metrics.burnt]
    if seeded:
        assert not burnt
        assert torch.equal(space.flatten(4), whole.flatten(4))
    else:
        assert burnt == ([] if point in KILLS[:2] else [round])
        assert killer.draws <= report.ledger.runs  # no draw is unpaid


def test_control_c_between_rounds_continues_to_the_same_weights(lab: Any, tokens: Tokens) -> None:
    config, folder = replace(lab.config, momentum=0.9, eval_every=2), lab.folder
    whole = lab.make_space()
    plan = lab.make_plan(config, dim=whole.dim(4))
    uninterrupted = federate(whole, tokens, config, plan)

    def interrupt(metrics: RoundMetrics) -> None:
        if metrics.round == 2:
            raise KeyboardInterrupt

    space = lab.make_space()
    with pytest.raises(KeyboardInterrupt):
        federate(space, tokens, config, plan, checkpoint_dir=folder, progress=interrupt)
    space = lab.make_space()
    report = federate(space, tokens, config, plan, checkpoint_dir=folder)
    assert report.ledger == uninterrupted.ledger
    assert report.rounds == uninterrupted.rounds
    assert torch.equal(space.flatten(4), whole.flatten(4))
    again = federate(lab.make_space(), tokens, config, plan, checkpoint_dir=folder)
    assert replace(again, seconds=0) == replace(report, seconds=0)


def test_progress_sees_a_round_only_after_it_is_on_disk(lab: Any, tokens: Tokens) -> None:
    space = lab.make_space()
    plan = lab.make_plan(lab.config, dim=space.dim(4))
    seen: list[tuple[int, int]] = []

    def look(metrics: RoundMetrics) -> None:
        with safe_open(lab.folder / "state.safetensors", framework="pt") as file:
            seen.append((metrics.round, json.loads(file.metadata()["state"])["round"]))

    federate(space, tokens, lab.config, plan, checkpoint_dir=lab.folder, progress=look)
    assert seen == [(round, round + 1) for round in range(lab.config.rounds)]


def test_a_private_checkpoint_holds_no_generator_state_and_no_cohort(
    lab: Any, tokens: Tokens
) -> None:
    space, config = lab.make_space(), replace(lab.config, noise_seed=None)
    plan = lab.make_plan(config, dim=space.dim(4))
    federate(space, tokens, config, plan, checkpoint_dir=lab.folder)
    stored = b"".join(path.read_bytes() for path in lab.folder.iterdir())
    for word in (b"PCG64", b"bit_generator", b"cohort_size", b"delta_norm"):
        assert word not in stored


def test_a_folder_that_another_process_uses_is_refused_until_that_is_killed(
    lab: Any, tokens: Tokens, rival: Callable[[Path], subprocess.Popen[str]]
) -> None:
    plan = lab.make_plan(lab.config, dim=lab.make_space().dim(4))
    other = rival(lab.folder)
    with pytest.raises(ValueError, match=r"to be free, but another run is using it; wait"):
        federate(lab.make_space(), tokens, lab.config, plan, checkpoint_dir=lab.folder)
    assert [path.name for path in lab.folder.iterdir()] == [LOCK_FILE]
    other.kill()
    other.wait()
    report = federate(lab.make_space(), tokens, lab.config, plan, checkpoint_dir=lab.folder)
    assert report.ledger.runs == lab.config.rounds


def test_a_folder_is_held_as_long_as_its_run_lasts(
    lab: Any, tokens: Tokens, is_free: Callable[[Path], bool]
) -> None:
    plan, found = lab.make_plan(lab.config, dim=lab.make_space().dim(4)), list[bool]()

    def look(metrics: RoundMetrics) -> None:
        found.append(is_free(lab.folder))
        if metrics.round == 2 and len(found) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        federate(
            lab.make_space(), tokens, lab.config, plan, checkpoint_dir=lab.folder, progress=look
        )
    assert is_free(lab.folder)
    federate(lab.make_space(), tokens, lab.config, plan, checkpoint_dir=lab.folder, progress=look)
    assert is_free(lab.folder)
    assert found == [False] * (lab.config.rounds + 1)  # the third round is told twice


def test_the_state_of_another_run_or_a_damaged_one_is_refused(lab: Any, tokens: Tokens) -> None:
    space = lab.make_space()
    plan = lab.make_plan(lab.config, dim=space.dim(4))
    federate(space, tokens, lab.config, plan, checkpoint_dir=lab.folder)
    with pytest.raises(ValueError, match="config"):
        federate(
            lab.make_space(), tokens, replace(lab.config, seed=9), plan, checkpoint_dir=lab.folder
        )
    state = lab.folder / "state.safetensors"
    state.write_bytes(state.read_bytes()[:500])
    with pytest.raises(ValueError, match="Expected a checkpoint"):
        federate(lab.make_space(), tokens, lab.config, plan, checkpoint_dir=lab.folder)
    state.unlink()  # the intent of the last round is still there: do not start at zero
    with pytest.raises(ValueError, match="older than its last release"):
        federate(lab.make_space(), tokens, lab.config, plan, checkpoint_dir=lab.folder)
