"""``dpmech audit``: verdicts, exit codes, what is printed, what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from dpmech import LMO_PRESETS, Gaussian, parse_noise
from dpmech.cli import app

DRAWN = "lmo:preset=0.3,rate=.2"  # as the published sampler draws


def run(*args: str) -> Any:
    return CliRunner().invoke(app, ["audit", *args])


def asked(code: int, *args: str) -> dict[str, Any]:
    ran = run(*args, "--json")
    assert ran.exit_code == code, ran.output
    return json.loads(ran.stdout)


def test_a_false_claim_is_refuted_in_one_sentence_and_exit_code_1() -> None:
    ran = run(DRAWN, "--epsilon", ".3", "--delta", "1e-10")
    assert ran.exit_code == 1
    first = ran.stdout.splitlines()[0]
    assert first.startswith("Refuted: the claim is (0.3, 1e-10)-DP, but a change as large as")
    assert "delta >= 0.156" in first
    assert "upper bound" in ran.stdout
    assert "sigma 18.73" in ran.stdout
    assert "unit: one record added or removed" in ran.stdout
    assert ran.stderr == ""


def test_a_true_claim_is_proved() -> None:
    found = asked(
        0,
        "gaussian:sigma=1",
        "--rate",
        ".01",
        "--steps",
        "1000",
        "--epsilon",
        "1.8284",
        "--delta",
        "1e-5",
    )
    assert found["verdict"] == "proved"
    assert 1.828 <= found["lower_epsilon"] <= found["upper_epsilon"] <= 1.8284
    assert found["proved_by"] == "pld"
    assert found["violated"] is None
    assert found["gaussian_sigma"] == pytest.approx(1.0, abs=1e-3)
    assert asked(0, "staircase", "--epsilon", "1", "--delta", "0")["gaussian_sigma"] is None


def test_an_open_claim_has_exit_code_2_and_a_result() -> None:
    found = asked(2, "laplace:b=.7071", "--dim", "16", "--epsilon", "5.4", "--delta", "1e-5")
    assert found["verdict"] == "open"
    assert found["lower_epsilon"] < 5.4 < found["upper_epsilon"]
    assert found["proved_by"] == "rdp"
    assert [row["neighbour"] for row in found["neighbours"]][-1].endswith("16 coordinates")
    assert found["estimate_many_coordinates"] == pytest.approx(6.57, abs=0.01)


def test_how_the_noise_is_drawn() -> None:
    line = ("gaussian:sigma=1.632", "--dim", "100", "--epsilon", "1", "--delta", "1e-5")
    assert asked(0, *line[:-3], "10", "--delta", "1e-2")["verdict"] == "proved"
    found = asked(1, *line, "--random-direction")
    assert found["lower_delta"] >= 0.9
    assert found["upper_epsilon"] is None
    assert found["refusal"].startswith("No pair is proved")
    assert found["mechanism"]["noise"]["name"] == "random-direction"
    ended = ("gaussian", "--rate", ".01", "--steps", "1000", "--epsilon", "3", "--delta", "9e-6")
    assert asked(0, *ended)["verdict"] == "proved"
    cut = asked(1, *ended, "--cut-off", "5.768")
    assert cut["lower_epsilon"] == "inf"  # at this delta; so it is at every epsilon
    assert cut["mechanism"]["noise"]["bound"] == 5.768


def test_a_plan_is_a_claim(tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    args = ["calibrate", "gaussian", "--epsilon", "1", "--delta", "1e-5", "-o", str(plan)]
    assert CliRunner().invoke(app, args).exit_code == 0
    assert asked(0, "--plan", str(plan))["epsilon"] == 1.0
    assert asked(1, "--plan", str(plan), "--epsilon", ".99")["delta"] == 1e-5


@pytest.fixture
def draws(tmp_path: Path) -> Path:
    path = tmp_path / "draws.npy"
    np.save(path, parse_noise(DRAWN).sample(20_000, np.random.default_rng(1)))
    return path


def test_draws_against_their_law(draws: Path) -> None:
    found = asked(1, "lmo:preset=0.3", "--draws", str(draws))
    assert found["verdict"] == "refuted"
    assert found["law"] == str(LMO_PRESETS["0.3"])
    assert {test["name"] for test in found["tests"]} >= {"distribution", "transform", "tails"}
    ran = run(DRAWN, "--draws", str(draws))
    assert ran.exit_code == 0
    lines = ran.stdout.splitlines()
    assert lines[0].startswith("Consistent: nothing speaks against the 20000 draws")
    assert lines[0].endswith("is caught 19 times in 20.")
    assert lines[-1] == "  draws of the law itself are rejected with probability 0.0001 at most"
    assert asked(0, DRAWN, "--draws", str(draws), "--level", ".01")["level"] == 0.01


def test_draws_of_a_cut_law(tmp_path: Path) -> None:
    path, x = tmp_path / "draws.npy", Gaussian(sigma=1.0).sample(50_000, np.random.default_rng(1))
    np.save(path, x[np.abs(x) < 1.5])
    assert run("gaussian", "--draws", str(path)).exit_code == 1
    assert run("gaussian", "--draws", str(path), "--cut-off", "1.5").exit_code == 0


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("gaussian", "--epsilon", "1"), "Expected --delta"),
        (("gaussian", "--delta", "1e-5"), "Expected --epsilon"),
        (("--epsilon", "1", "--delta", "1e-5"), "Expected a noise"),
        (("gaussian", "--epsilon", "-1", "--delta", "1e-5"), "Expected epsilon=-1.0"),
        (("gaussian", "--epsilon", "1", "--delta", "1"), "Expected delta=1.0 in (0, 1)"),
        (("gaussian", "--draws", "nothing.npy"), "Cannot read draws from 'nothing.npy'"),
        (("gaussian", "--draws", "x.npy", "--epsilon", "1"), "epsilon is given too"),
        (("gaussian", "--draws", "x.npy", "--random-direction"), "random-direction is given too"),
        (("gaussian", "--epsilon", "1", "--delta", "1e-5", "--level", ".1"), "no level"),
        (("staircase", "--cut-off", "3", "--epsilon", "1", "--delta", "1e-5"), "Expected one of"),
        (("gaussian", "--random-direction", "--epsilon", "1", "--delta", "1e-5"), "2 or above"),
        (("gaussian", "--sampling", "shuffle", "--epsilon", "1", "--delta", "1e-5"), "No pair"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence_and_exit_code_2(args: tuple[str, ...], said: str) -> None:
    ran = run(*args)
    assert ran.exit_code == 2, ran.output
    assert ran.stdout == ""
    assert len(ran.stderr.strip().splitlines()) == 1
    assert said in ran.stderr
