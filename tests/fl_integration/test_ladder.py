"""Many runs: each once, failures told, an interrupt loses nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from accountants import Ledger
from fl_integration.config import FederatedConfig
from fl_integration.ladder import Failure, Outcome, Rung, climb
from fl_integration.report import TrainReport
from fl_integration.train import TrainRequest

ROUNDS = 25
# What a user's script does; the ladder's own processes import it again, and must do nothing.
SCRIPT = """
import sys
import time
from pathlib import Path
from tests_ladder import rungs
from fl_integration.ladder import climb

def tell(name, outcome):
    print(name, flush=True)
    time.sleep(60)  # until the interrupt: however busy the machine, it comes before the end

if __name__ == "__main__":
    climb(rungs(Path(sys.argv[1])), processes=2, progress=tell)
"""
RUNGS = f"""
from fl_integration import FederatedConfig, TrainRequest
from fl_integration.ladder import Rung

def rungs(folder):
    config = FederatedConfig(system="probe", rounds={ROUNDS}, cohort=5, eval_every={ROUNDS})
    data = str(folder / "mine.tsv")
    return [
        Rung(
            name=f"seed-{{seed}}",
            request=TrainRequest(
                out=folder / f"seed-{{seed}}", data=data, model="tiny", epsilon=5.0, config=config
            ),
            settings=f"seed {{seed}}",
        )
        for seed in range(5)
    ]
"""


def rung(texts: Path, name: str, **changed: object) -> Rung:
    config = FederatedConfig(**{"system": "probe", "rounds": 2, "cohort": 5, **changed})  # type: ignore[arg-type]
    out = texts.parent / name
    request = TrainRequest(out=out, data=str(texts), model="tiny", epsilon=5.0, config=config)
    return Rung(name=name, request=request, settings=str(changed))


def test_outcomes_come_in_the_order_asked_for_and_failures_are_told(texts: Path) -> None:
    told: list[tuple[str, Outcome]] = []
    asked = [rung(texts, "a"), rung(texts, "b", cohort=1000), rung(texts, "c", seed=1)]
    found = climb(asked, progress=lambda name, outcome: told.append((name, outcome)))
    assert list(found) == ["a", "b", "c"]
    assert told == list(found.items())
    failure = found["b"]
    assert isinstance(failure, Failure)
    assert "cohort=1000" in failure.reason
    assert isinstance(found["a"], TrainReport)
    assert found["a"].epsilon <= 5.0 * (1 + 1e-6)


def test_a_finished_run_is_read_and_a_failed_one_tried_again(
    texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [rung(texts, "a"), rung(texts, "b", cohort=1000)]
    first = climb(asked)
    tried: list[TrainRequest] = []

    def train(request: TrainRequest) -> TrainReport:
        tried.append(request)
        raise OSError("disk full")

    monkeypatch.setattr("fl_integration.ladder.train", train)
    again = climb(asked)
    assert tried == [asked[1].request]
    assert again["b"] == Failure(reason="OSError: disk full")
    assert again["a"].to_json() == first["a"].to_json()  # type: ignore[union-attr]


def test_runs_are_not_mixed(texts: Path) -> None:
    one = rung(texts, "a")
    with pytest.raises(ValueError, match=r"names.*'a'"):
        climb([one, one])
    with pytest.raises(ValueError, match="folders"):
        climb([one, replace(one, name="b")])
    climb([one])
    with pytest.raises(ValueError, match="other settings"):
        climb([rung(texts, "b"), replace(one, settings="other")])
    assert not (texts.parent / "b").exists()
    with pytest.raises(ValueError, match="processes=0"):
        climb([one], processes=0)


def test_an_interrupt_starts_nothing_and_loses_nothing(texts: Path) -> None:
    """Ctrl-C in the middle of five runs, two at a time; then all are asked for again, here."""
    folder = texts.parent
    (folder / "script.py").write_text(SCRIPT)
    (folder / "tests_ladder.py").write_text(RUNGS)
    started = subprocess.Popen(
        [sys.executable, "script.py", str(folder)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,  # a group of its own, which a terminal would interrupt as a whole
        # where the tests run in the background of a shell, interrupts are ignored, and inherited so
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert started.stdout is not None
    started.stdout.readline()  # one has ended, others are under way or wait
    os.killpg(started.pid, signal.SIGINT)
    assert started.wait(timeout=60) != 0
    reports = {path: path.read_bytes() for path in folder.glob("seed-*/report.json")}
    begun = {path.parent.name for path in folder.glob("seed-*/checkpoint")}
    assert 1 <= len(reports) <= len(begun) <= 4

    names: dict[str, object] = {}
    exec(RUNGS, names)
    found = climb(names["rungs"](folder))  # type: ignore[operator]
    assert len(found) == 5
    assert all(path.read_bytes() == kept for path, kept in reports.items())
    for name, outcome in found.items():
        assert isinstance(outcome, TrainReport)
        assert outcome.epsilon <= 5.0 * (1 + 1e-6)
        assert Ledger.load(folder / name / "ledger.json").runs == len(outcome.rounds) == ROUNDS
        assert sum(metrics.burnt for metrics in outcome.rounds) <= (name in begun)
