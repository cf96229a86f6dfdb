"""What goes wrong around a run: a full disk, an interrupt, NaN, nobody there."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from accountants import Ledger
from dpmech import Gaussian, Laplace, Mechanism, PrivacyPlan, Sampling, Sensitivity, Target
from dpmech.cli import app
from fl_integration.accounting import ledger_epsilon
from fl_integration.client import Tokens
from fl_integration.config import FederatedConfig, System
from fl_integration.data import Client, FederatedData
from fl_integration.federate import federate
from fl_integration.models import load_model
from fl_integration.queries import AdaptiveClip, ScalarQuery
from fl_integration.report import TrainReport
from fl_integration.run import Run
from fl_integration.run_folder import LOCK_FILE
from fl_integration.scalars import entries_of
from fl_integration.spaces import FlatSpace
from fl_integration.systems import released_dim, space_for

# the function of the same name hides the module as an attribute of the package
federate_module = import_module("fl_integration.federate")
train_module = import_module("fl_integration.train")
ROUNDS, PROBE_ROUNDS = 3, 3
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


PLANS: list[Any] = []


@pytest.fixture
def settings(tmp_path: Path, texts: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A head start and a run of three rounds each, over 24 clients; calibrated once for all."""
    calibrate = train_module.plans_for

    def once(*args: Any, **kwargs: Any) -> Any:
        if not PLANS:
            PLANS.append(calibrate(*args, **kwargs))
        return PLANS[0]

    monkeypatch.setattr(train_module, "plans_for", once)
    path = tmp_path / "run.toml"
    path.write_text(
        f"""
        data = "{texts}"
        model = "tiny"
        max_length = 8
        epsilon = 6.0
        delta = 1e-5
        system = "lora"
        rank = 2
        rounds = {ROUNDS}
        cohort = 6
        clip = 0.5
        eval_every = 99
        head_start = {{ rounds = {PROBE_ROUNDS}, cohort = 10, lr = 2.0 }}
        """,
        encoding="utf-8",
    )
    return path


def asked(settings: Path, *args: str) -> Result:
    out = settings.parent / "out"
    return CliRunner().invoke(app, ("train", "--config", str(settings), "--out", str(out), *args))


def last_words(ran: Result, code: int) -> str:
    """The one line of an ending that was foreseen."""
    assert ran.exit_code == code, (ran.output, ran.exception)
    assert isinstance(ran.exception, SystemExit)
    assert "Traceback" not in ran.output
    return ran.stderr.splitlines()[-1]


class Draws:
    """Counts the draws of a run's noise, and interrupts it after one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, last: int = 0) -> None:
        self.count, self._last = 0, last
        self._honest = federate_module.noisy_mean
        monkeypatch.setattr(federate_module, "noisy_mean", self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.count += 1
        drawn = self._honest(*args, **kwargs)
        if self.count == self._last:
            raise KeyboardInterrupt
        return drawn


def all_is_paid_once(settings: Path, draws: Draws, *, burnt: int) -> None:
    """The folder is that of a whole run: every draw in the ledger, none of them taken twice."""
    out = settings.parent / "out"
    ledger, plan = Ledger.load(out / "ledger.json"), PrivacyPlan.load(out / "plan.json")
    first = PrivacyPlan.load(out / "head-start" / "plan.json")
    assert plan.others == first.entries == ((first.mechanism, PROBE_ROUNDS),)
    assert dict(ledger.collected().entries) == dict((*plan.others, (plan.mechanism, ROUNDS)))
    # a round that is burnt may have been drawn, and is never drawn again
    assert PROBE_ROUNDS + ROUNDS - burnt <= draws.count <= PROBE_ROUNDS + ROUNDS
    report = TrainReport.from_json((out / "report.json").read_text(encoding="utf-8"))
    cost = ledger_epsilon(ledger, accountant="pld", delta=1e-5)
    assert report.epsilon == pytest.approx(cost, rel=1e-9)
    assert cost <= 6.0 * (1 + 1e-6)
    claim = json.loads((out / "adapters" / "rank-2" / "privacy.json").read_text(encoding="utf-8"))
    assert (claim["private"], claim["epsilon"]) == (True, report.epsilon)


# An interrupt, in either phase


@pytest.mark.parametrize("last", [2, PROBE_ROUNDS, PROBE_ROUNDS + 1])
def test_an_interrupt_in_either_phase_is_one_line_and_is_resumed(
    settings: Path, monkeypatch: pytest.MonkeyPatch, last: int
) -> None:
    draws = Draws(monkeypatch, last=last)
    assert last_words(asked(settings), 130) == "Interrupted."
    assert not (settings.parent / "out" / "report.json").exists()
    assert "--resume" in last_words(asked(settings), 2)  # never by mistake a second time
    assert draws.count == last
    ran = asked(settings, "--resume")
    assert ran.exit_code == 0, ran.output
    all_is_paid_once(settings, draws, burnt=0)


def test_an_interrupt_between_the_phases_keeps_the_head_start(
    settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws, prepare, runs = Draws(monkeypatch), Run.prepare, [0]

    def prepared(*args: Any) -> Run:
        runs[0] += 1
        if runs[0] == 2:
            raise KeyboardInterrupt
        return prepare(*args)

    monkeypatch.setattr(Run, "prepare", prepared)
    assert last_words(asked(settings), 130) == "Interrupted."
    assert draws.count == PROBE_ROUNDS
    ran = asked(settings, "--resume")
    assert ran.exit_code == 0, ran.output
    all_is_paid_once(settings, draws, burnt=0)
    assert draws.count == PROBE_ROUNDS + ROUNDS


# A folder in use, and one that lost a part of its run


def test_a_folder_in_use_is_one_line_and_keeps_its_settings(
    settings: Path, monkeypatch: pytest.MonkeyPatch, rival: Callable[[Path], subprocess.Popen[str]]
) -> None:
    draws, out = Draws(monkeypatch), settings.parent / "out"
    other = rival(out)
    assert "to be free, but another run is using it; wait for it" in last_words(asked(settings), 2)
    assert [path.name for path in out.iterdir()] == [LOCK_FILE]
    other.kill()
    other.wait()
    ran = asked(settings)
    assert ran.exit_code == 0, ran.output
    all_is_paid_once(settings, draws, burnt=0)
    other = rival(out)
    assert "another run is using it" in last_words(asked(settings, "--resume"), 2)
    assert draws.count == PROBE_ROUNDS + ROUNDS


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("head-start", "Expected all 3 rounds of the head start"),
        ("head-start/checkpoint", "beside plan.json, but it is missing"),
        ("head-start/checkpoint/state.safetensors", "older than its last release"),
        ("checkpoint", "beside plan.json, but it is missing"),
        ("checkpoint/state.safetensors", "older than its last release"),
    ],
)
def test_a_folder_that_lost_a_part_of_its_run_releases_nothing_until_that_is_back(
    settings: Path, monkeypatch: pytest.MonkeyPatch, lost: str, said: str
) -> None:
    draws, out = Draws(monkeypatch, last=PROBE_ROUNDS + 2), settings.parent / "out"
    assert last_words(asked(settings), 130) == "Interrupted."
    (out / lost).rename(settings.parent / "away")
    left = sorted(out.rglob("*"))
    assert said in last_words(asked(settings, "--resume"), 2)
    assert draws.count == PROBE_ROUNDS + 2
    assert sorted(out.rglob("*")) == left
    (settings.parent / "away").rename(out / lost)
    ran = asked(settings, "--resume")
    assert ran.exit_code == 0, ran.output
    all_is_paid_once(settings, draws, burnt=0)


def test_an_older_copy_of_the_head_start_is_not_continued_below_what_began_from_it(
    settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, copy = settings.parent / "out", settings.parent / "copy"
    Draws(monkeypatch, last=2)
    assert last_words(asked(settings), 130) == "Interrupted."
    shutil.copytree(out / "head-start", copy)
    draws = Draws(monkeypatch, last=2)  # the last of the head start, the first of the rest
    assert last_words(asked(settings, "--resume"), 130) == "Interrupted."
    shutil.rmtree(out / "head-start")
    shutil.copytree(copy, out / "head-start")
    assert "which 'out/checkpoint' began from, got 1" in last_words(
        asked(settings, "--resume"), 2
    ).replace(f"{settings.parent}/", "")
    assert draws.count == 2


# A full disk


@pytest.mark.parametrize(
    ("name", "time", "burnt", "made"),
    [
        ("config.toml", 1, 0, False),
        ("plan.json", 2, 0, True),
        ("intent.json", 2, 0, False),
        ("intent.json", 5, 0, True),
        ("state.safetensors", 1, 0, True),
        ("state.safetensors", 3, 1, True),
        ("state.safetensors", 8, 1, False),
        ("adapter_model.safetensors", 1, 0, True),
        ("privacy.json", 1, 0, True),
        ("report.json", 1, 0, False),
        ("ledger.json", 1, 0, True),
    ],
)
def test_a_full_disk_is_one_line_and_is_resumed(
    settings: Path, monkeypatch: pytest.MonkeyPatch, name: str, time: int, burnt: int, made: bool
) -> None:
    draws, seen = Draws(monkeypatch), [0]
    replaced, opened = os.replace, tempfile.mkstemp

    def full(file: str) -> None:
        seen[0] += file == name
        if file == name and seen[0] == time:
            raise FULL

    def replacing(source: Any, target: Any) -> None:
        full(Path(target).name)
        replaced(source, target)

    def opening(**how: Any) -> Any:
        full(str(how["prefix"]).strip("."))
        return opened(**how)

    monkeypatch.setattr(os, "replace", replacing) if made else monkeypatch.setattr(
        tempfile, "mkstemp", opening
    )
    said = last_words(asked(settings), 1 if made else 2)
    assert os.strerror(errno.ENOSPC) in said
    out = settings.parent / "out"
    assert {path.name for path in out.rglob(".*")} <= {LOCK_FILE}  # no half of a file
    begun = any(out.rglob("checkpoint"))
    ran = asked(settings, *(("--resume",) if begun else ()))
    assert ran.exit_code == 0, ran.output
    all_is_paid_once(settings, draws, burnt=burnt)


# NaN, and nobody


def made_space(config: FederatedConfig) -> FlatSpace:
    return space_for(load_model("tiny", labels=3, seed=0)[0], config)


def planned(config: FederatedConfig, space: FlatSpace) -> PrivacyPlan:
    noises = [Laplace(b=4.0), Gaussian(sigma=20.0), Laplace(b=9.0)][: len(config.queries)]
    release = Mechanism(
        noise=Gaussian(sigma=2.0),
        sensitivity=Sensitivity(
            norm="l2", bound=config.clip, dim=released_dim(space, config.system)
        ),
        sampling=Sampling(rate=config.cohort / 60),
    )
    others = entries_of(config.queries, noises, clients=60, rounds=config.rounds)
    entries = ((release, config.rounds), *others)
    epsilon = ledger_epsilon(Ledger(entries), accountant="pld", delta=1e-5)
    return PrivacyPlan(
        target=Target(epsilon=epsilon, delta=1e-5),
        mechanism=release,
        steps=config.rounds,
        accountant="pld",
        epsilon=epsilon,
        others=others,
    )


@pytest.fixture
def asking(config: FederatedConfig) -> Callable[[System], FederatedConfig]:
    """A run that asks all there is to ask."""
    scalars = (ScalarQuery(name="loss", cohort=20, low=0.0, high=4.0),)
    scalars = (*scalars, ScalarQuery(name="accuracy", cohort=20))
    adaptive = AdaptiveClip(quantile=0.5, rate=0.5, cohort=20)
    return lambda system: replace(
        config, system=system, rounds=3, adaptive=adaptive, scalars=scalars, noise_seed=3
    )


def told(report: TrainReport, plan: PrivacyPlan) -> list[float]:
    """Every scalar of a report that is as it should be."""
    counts = dict(report.ledger.collected().entries)
    assert counts == dict(((plan.mechanism, plan.steps), *plan.others))
    text = report.to_json()
    json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    answers = [m.scalars for m in report.rounds]
    assert all(len(given) == 3 for given in answers)
    return [value for given in answers for value in given.values()] + [
        m.clip for m in report.rounds
    ]


@pytest.mark.parametrize("system", ["probe", "lora"])
def test_a_run_of_nan_losses_ends_as_planned(
    asking: Callable[[System], FederatedConfig], tokens: Tokens, system: System
) -> None:
    wild = replace(asking(system), server_lr=1e300)
    space = made_space(wild)
    plan = planned(wild, space)
    report = federate(space, tokens, wild, plan)
    assert all(math.isfinite(value) for value in told(report, plan))
    assert 0 <= report.final_accuracy <= 1


@pytest.mark.parametrize("system", ["probe", "lora"])
@pytest.mark.parametrize("who", ["empty", "nobody"])
def test_clients_without_texts_and_empty_samples_are_answered_with_noise(
    asking: Callable[[System], FederatedConfig],
    federated_data: FederatedData,
    system: System,
    who: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = asking(system)
    data = federated_data
    if who == "empty":  # half of them have no text
        empty = Client(name="nobody", texts=(), labels=np.zeros(0, dtype=np.int64))
        data = replace(data, clients=(empty,) * 30 + data.clients[30:])
    else:
        nobody = np.zeros(0, dtype=np.int64)
        for place in ("run", "scalars"):
            monkeypatch.setattr(f"fl_integration.{place}.poisson_cohort", lambda *_, **__: nobody)
    space = made_space(config)
    before = space.flatten(space.rank)
    plan = planned(config, space)
    report = federate(space, Tokens(data, load_model("tiny", labels=3)[1]), config, plan)
    values = told(report, plan)
    assert all(math.isfinite(value) for value in values)
    assert len(set(values[:9])) == 9  # noise, each its own
    assert int((space.flatten(space.rank) != before).sum()) == released_dim(space, system)
