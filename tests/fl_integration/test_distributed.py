"""Two processes give the loop's sum, the same weights and one ledger, also if one dies."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors import safe_open

from accountants import Ledger
from fl_integration.checkpoint import INTENT_FILE, STATE_FILE
from fl_integration.clipping import ClippedSum
from fl_integration.cohort import loop_sum
from fl_integration.distributed import Alone, joined, spread

SCRIPT = Path(__file__).with_name("two_processes.py")
pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available() and hasattr(os, "fork")),
    reason="needs torch with gloo, and fork",
)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("two_processes", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the groups of two have written what they found."""
    folder = tmp_path_factory.mktemp("groups")
    setting = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[2])}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder)],
        env=setting,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def _found(folder: Path) -> list[Any]:
    """What each of two processes returned, both having ended well."""
    errors = [path.read_text() for path in folder.glob("*.err")]
    assert json.loads((folder / "codes.json").read_text()) == [0, 0], errors
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_two_processes_give_the_sum_of_one(script: ModuleType, ran: Path) -> None:
    (value, norms), other = _found(ran / "sums")
    wanted, wanted_norms = script.summed(script.cohort(), None)
    np.testing.assert_allclose(value, wanted, rtol=0, atol=1e-12)
    np.testing.assert_allclose(norms, wanted_norms, rtol=1e-12)
    assert len(norms) == script.CLIENTS + 1
    assert other == "done"


def test_two_processes_train_one_model_and_keep_one_ledger(script: ModuleType, ran: Path) -> None:
    (weights, report), other = _found(ran / "train")
    assert other == [weights, report]
    assert weights != script.cohort().space.flatten(2).tolist()
    assert sum(entry["count"] for entry in json.loads(report)["ledger"]["entries"]) == 3
    assert len(list((ran / "train" / "checkpoint").glob("state*"))) == 1


def test_a_process_that_dies_leaves_the_ledger_of_what_was_released(ran: Path) -> None:
    assert 0 not in json.loads((ran / "die" / "codes.json").read_text())
    assert "RuntimeError" in (ran / "die" / "0.err").read_text()
    folder = ran / "die" / "checkpoint"
    with safe_open(folder / STATE_FILE, framework="pt") as file:
        header = json.loads(file.metadata()["state"])
    assert header["round"] == 1
    ledger = Ledger.from_json(json.dumps(header["ledger"]))
    assert [count for _, count in ledger.entries] == [1]
    # round 1 was neither released nor intended: the run goes on with it
    assert json.loads((folder / INTENT_FILE).read_text())["round"] == 0


def test_a_refusal_of_the_first_process_is_that_of_all(ran: Path) -> None:
    folder = ran / "refuse"
    assert json.loads((folder / "codes.json").read_text()) == [1, 1]
    for rank in range(2):
        said = (folder / f"{rank}.err").read_text().splitlines()[-1]
        assert said.startswith("ValueError: Expected")
        assert "another run is using it" in said
        assert not (folder / f"{rank}.json").exists()


def test_alone_nothing_is_shared() -> None:
    with joined() as group:
        assert group == Alone()
        assert spread(loop_sum, group) is loop_sum
    part = torch.ones(3)
    assert group.total(part) is part
    assert group.share(5) == 5
    assert group.gathered((1.0,)) == (1.0,)


def test_a_partial_sum_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="3 numbers"):
        ClippedSum(3, 1.0).absorb(torch.ones(1))


def test_torchrun_trains_as_one_process_does(tmp_path: Path) -> None:
    lines = ["text\tlabel\tclient"]
    lines += [f"{('hot', 'cold')[c % 2]} {k}\t{c % 2}\tc{c}" for c in range(40) for k in range(3)]
    (tmp_path / "t.tsv").write_text("\n".join(lines), encoding="utf-8")
    options = {"data": "t.tsv", "model": "tiny", "rank": 1, "rounds": 2, "cohort": 9, "epsilon": 9}
    options |= {"noise-seed": 1, "set": "head_start.rounds=2"}
    run = ["dpmech", "train", *(f"--{name}={value}" for name, value in options.items())]
    scripts = Path(sys.executable).parent
    two = [str(scripts / "torchrun"), "--nproc-per-node=2", "--no-python", str(scripts / run[0])]
    for command in (
        [*two, *run[1:], "--out", "two"],
        [str(scripts / run[0]), *run[1:], "--out", "one"],
    ):
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("this run, ") == 1
    one, both = (json.loads((tmp_path / o / "report.json").read_text()) for o in ("one", "two"))
    assert one.pop("seconds") >= 0 <= both.pop("seconds")
    assert one == both
    assert len(one["ledger"]["entries"]) == 2
