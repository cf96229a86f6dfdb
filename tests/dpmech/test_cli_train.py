"""``dpmech train`` from files and presets, and ``dpmech compare-systems``."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from dpmech.cli import app
from dpmech.cli._settings import assigned, layered, presets, written
from dpmech.cli._systems_table import Row

pytest.importorskip("torch")


def run(*args: str) -> Result:
    return CliRunner().invoke(app, args)


def refused(*args: str) -> str:
    ran = run(*args)
    assert ran.exit_code == 2, ran.output
    assert ran.stdout == ""
    said = [line for line in ran.stderr.splitlines() if line.startswith("Error: ")]
    assert len(said) == 1, ran.stderr
    return said[0]


@pytest.fixture
def small(tmp_path: Path) -> tuple[str, ...]:
    """Options for 20 clients with 4 texts and the tiny model."""
    rows = [f"{('hot', 'cold')[i % 2]} word {i % 7}\t{i % 2}\tc{i // 4}" for i in range(96)]
    path = tmp_path / "mine.tsv"
    path.write_text("\n".join(["text\tlabel\tclient", *rows]), encoding="utf-8")
    model = ("--data", str(path), "--model", "tiny", "--rounds", "2", "--cohort", "5")
    return (*model, "--set", "max_length=8", "--set", "rank=2")


def kept(out: Path) -> dict[str, Any]:
    return tomllib.loads((out / "config.toml").read_text(encoding="utf-8"))


# Settings in layers


def test_options_win_over_set_and_set_over_the_file(tmp_path: Path, small: tuple[str, ...]) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        'preset = "fedlpp"\nlocal_lr = 0.3\nmomentum = 0.5\nmax_texts = 3\nbroadcast.block = 32\n'
    )
    out = tmp_path / "run"
    said = ("--set", "momentum=0.25", "--set", "max_texts=2", "--max-texts", "1", "--bits", "2")
    ran = run("train", "--config", str(file), *small, *said, "--out", str(out))
    assert ran.exit_code == 0, ran.output
    found = kept(out)
    assert (found["local_lr"], found["momentum"], found["max_texts"]) == (0.3, 0.25, 1)
    assert found["broadcast"] == {"bits": 2.0, "block": 32, "rule": "delta"}
    assert found["non_private"] is True
    config = json.loads((out / "report.json").read_text())["config"]
    assert (config["system"], config["max_texts"], config["rank"]) == ("lora", 1, 2)


@pytest.mark.parametrize(
    ("below", "above", "left"),
    [
        ({"non_private": True}, {"epsilon": 2.0}, {"epsilon": 2.0}),
        ({"epsilon": 1.0, "delta": 1e-6}, {"epsilon": 2.0}, {"epsilon": 2.0, "delta": 1e-6}),
        ({"epsilon": 1.0, "population": 9}, {"non_private": True}, {"non_private": True}),
        ({"plan": "p.json"}, {"rounds": 3}, {"plan": "p.json", "rounds": 3}),
    ],
)
def test_the_uppermost_layer_says_what_a_run_may_cost(
    below: dict[str, Any], above: dict[str, Any], left: dict[str, Any]
) -> None:
    assert layered(below, above) == left


@pytest.mark.parametrize(
    "settings",
    [
        {"data": 'a "b"\\c\tü\x7f.tsv', "clip": 1e-7, "rounds": 10**6, "non_private": True},
        {"targets": [], "rank_probabilities": [0.5, 0.5], "dealing": {"size": 4, "alpha": 0.1}},
        {"scalars": [{"name": "x", "cohort": 5.0}], "silos": {"sizes": [1, 2], "rate": 1.0}},
    ],
)
def test_what_is_written_is_read(settings: dict[str, Any]) -> None:
    assert tomllib.loads(written(settings, comment="two\nlines")) == settings


def test_presets_are_listed() -> None:
    ran = run("train", "--list-presets")
    assert ran.exit_code == 0
    assert all(name in ran.stdout for name in presets())
    listed = json.loads(run("train", "--list-presets", "--json").stdout)["presets"]
    assert set(listed) == set(presets())
    assert "silo" in listed["dp-lora"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rouns = 3", "'rouns'; did you mean 'rounds'?"),
        ("[broadcast]\nbit = 3", "'bit' in [broadcast]; did you mean 'bits'?"),
        ("rounds = 'five'", "rounds='five' to be a whole number"),
        ("clip = true", "clip=True to be a number"),
        ("silos = 5", "silos=5 to be a table"),
        ("[silos]\nsizes = 5", "silos.sizes=5 to be a list"),
        ("[silos]\nsizes = [5.5]", "silos.sizes=5.5 to be a whole number"),
        ("system = 'lorra'", "system='lorra' to be one of"),
        ("out = 'x'", "Unknown setting 'out'"),
        ("preset = 'dp-dylorra'", "did you mean 'dp-dylora'?"),
        ("rounds = = 3", "Cannot read the settings"),
        ("epsilon = 1.0\nplan = 'p.json'", "--epsilon or --plan, not both"),
        ("rounds = 3", "--epsilon, --plan or --non-private"),
    ],
)
def test_a_wrong_file_is_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    cost = () if "epsilon" in text or text == "rounds = 3" else ("--epsilon", "1")
    out = ("--model", "tiny", "--out", str(tmp_path / "out"))
    assert said in refused("train", "--config", str(file), *cost, *out)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--config", "dp-dylorra"), "did you mean 'dp-dylora'?"),
        (("--config", "nowhere.toml"), "'nowhere.toml'"),
        (("--set", "rounds"), "NAME=VALUE, got 'rounds'"),
        (("--set", "a b=3"), "NAME=VALUE, got 'a b=3'"),
        (("--silo-sizes", "5x"), "got '5x'"),
        (("--config", "dp-lora"), "--silo-sizes"),
        (("--epsilon", "0"), "epsilon=0.0"),
        (("--delta", "2"), "delta=2.0"),
        (("--population", "0"), "population=0"),
        (("--set", "ranks=[3]"), "rank=3 in 1..2"),
        (("--bits", "5"), "bits=5.0"),
        (("--config", "dp-dylora", "--bits", "4"), "write --set head_start=none"),
        (("--resume",), "Expected a run to resume"),
    ],
)
def test_wrong_options_are_one_sentence(
    tmp_path: Path, small: tuple[str, ...], args: tuple[str, ...], said: str
) -> None:
    assert said in refused("train", "--epsilon", "1", *small, *args, "--out", str(tmp_path / "out"))


def test_a_file_of_settings_is_not_replaced_by_those_of_the_run(
    tmp_path: Path, small: tuple[str, ...]
) -> None:
    mine = tmp_path / "config.toml"
    mine.write_text('preset = "probe"  # mine\n')
    said = ("--epsilon", "1", *small, "--config", str(mine), "--out", str(tmp_path))
    assert "Expected another --out" in refused("train", *said)
    assert mine.read_text() == 'preset = "probe"  # mine\n'


def test_a_run_takes_the_plan_of_another(tmp_path: Path, small: tuple[str, ...]) -> None:
    first, second = (tmp_path / name for name in ("first", "second"))
    of = ("train", "--config", "probe", *small)
    assert run(*of, "--epsilon", "5", "--out", str(first)).exit_code == 0
    plan = ("--plan", str(first / "plan.json"))
    ran = run(*of, *plan, "--out", str(second))
    assert ran.exit_code == 0, ran.output
    assert (first / "ledger.json").read_text() == (second / "ledger.json").read_text()
    assert run("train", "--resume", "--out", str(second)).exit_code == 0


def test_a_zero_is_said(tmp_path: Path, small: tuple[str, ...]) -> None:
    zeros = ("--noise-seed", "0", "--seed", "0", "--momentum", "0")
    out = ("--out", str(tmp_path / "run"))
    ran = run("train", "--config", "probe", "--epsilon", "9", *small, *zeros, *out)
    assert ran.exit_code == 0, ran.output
    assert "noise_seed=0" in ran.stdout
    found = kept(tmp_path / "run")
    assert (found["noise_seed"], found["seed"], found["momentum"]) == (0, 0, 0.0)
    assert "rank=0" in refused("train", "--non-private", *small, "--rank", "0", *out)


def test_a_word_needs_no_quotes() -> None:
    found = assigned(["server_rule=adam", "broadcast.rule=replace", "broadcast.bits=1.5"])
    assert found == {"server_rule": "adam", "broadcast": {"rule": "replace", "bits": 1.5}}


# The folder of a run


def test_the_kept_settings_make_the_same_run_again(tmp_path: Path, small: tuple[str, ...]) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    said = ("--config", "fedlpp-dp", "--epsilon", "5", "--noise-seed", "3", "--clip", ".5")
    assert run("train", *said, *small, "--out", str(first)).exit_code == 0
    again = run("train", "--config", str(first / "config.toml"), "--out", str(second))
    assert again.exit_code == 0, again.output
    one, two = (json.loads((f / "report.json").read_text()) for f in (first, second))
    assert {**one, "seconds": 0} == {**two, "seconds": 0}
    assert kept(first) == kept(second)
    assert (first / "ledger.json").read_text() == (second / "ledger.json").read_text()


def test_a_run_is_resumed_with_its_own_settings_alone(
    tmp_path: Path, small: tuple[str, ...]
) -> None:
    out = ("--out", str(tmp_path / "run"))
    assert run("train", "--config", "probe", "--epsilon", "5", *small, *out).exit_code == 0
    ledger = (tmp_path / "run" / "ledger.json").read_text()
    assert run("train", "--resume", *out).exit_code == 0
    assert (
        run("train", "--config", "probe", "--epsilon", "5", *small, "--resume", *out).exit_code == 0
    )
    assert (tmp_path / "run" / "ledger.json").read_text() == ledger
    assert "local_lr, rounds differ" in refused(
        "train", "--rounds", "3", "--local-lr", ".2", "--resume", *out
    )
    assert "epsilon, non_private differ" in refused("train", "--non-private", "--resume", *out)
    assert kept(tmp_path / "run")["rounds"] == 2


def test_zeroth_order_steps_are_a_system_too(tmp_path: Path, small: tuple[str, ...]) -> None:
    said = ("train", "--config", "federated-zo", "--epsilon", "9", *small[:4])
    out = ("--out", str(tmp_path / "zo"))
    ran = run(*said, "--set", "steps=10", "--set", "rate=.3", *out)
    assert ran.exit_code == 0, ran.output
    assert " users: epsilon <= " in ran.stdout
    found = kept(tmp_path / "zo")
    assert (found["system"], found["rate"], found["head"]["start_scale"]) == (
        "zeroth-order",
        0.3,
        0.0,
    )
    again = json.loads(run("train", "--resume", *out, "--json").stdout)["report"]
    assert again["ledger"]["entries"][0]["count"] == 10
    assert "'rounds'" in refused(*said, "--rounds", "3", *out)
    bare = ("train", "--system", "zeroth-order", "--epsilon", "9", "--model", "tiny")
    assert "rate, steps, clip, lr" in refused(*bare, "--out", str(tmp_path / "bare"))
    ladder = ("compare-systems", "--config", "dp-zo", "--out", str(tmp_path / "ladder"))
    assert "'dp-zo'" in refused(*ladder)


def test_the_summary_says_who_is_protected(tmp_path: Path, small: tuple[str, ...]) -> None:
    one = ("--epsilon", "9", *small, "--out")
    said = run("train", "--config", "dp-sgd-lora", *one, str(tmp_path / "a")).stdout
    assert " examples: epsilon <= " in said
    silos = ("--config", "dp-lora", "--silo-sizes", "2x40", "--delta", "1e-3")
    ran = run("train", *silos, *one, str(tmp_path / "b"))
    assert "an example of 2 silos: epsilon <= " in ran.stdout, ran.output
    assert kept(tmp_path / "b")["silos"]["sizes"] == [40, 40]


# compare-systems


@pytest.fixture
def ladder(tmp_path: Path, small: tuple[str, ...]) -> tuple[str, ...]:
    silos = tmp_path / "silos.toml"
    silos.write_text('preset = "dp-lora"\nsilos.sizes = [40, 40]\nsilos.rate = 0.3\n')
    systems = ("--config", f"dp-dylora,fedlpp,{silos}", "--epsilon", "8", "--seeds", "2")
    out = ("--out", str(tmp_path / "systems"), "--processes", "1")
    return ("compare-systems", *systems, *small, "--population", "1000", "--delta", "1e-3", *out)


def test_systems_are_compared_and_finished_runs_are_kept(
    tmp_path: Path, ladder: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = run(*ladder, "--json")
    assert ran.exit_code == 0, ran.output
    assert "silos: a silo's noise does not shrink" in ran.stderr
    found = json.loads(ran.stdout)
    rows = {(row["system"], row["target"]): row for row in found["rows"]}
    assert list(rows) == [
        ("dp-dylora", None), ("dp-dylora", 8.0), ("fedlpp", None), ("silos", None), ("silos", 8.0),
    ]  # fmt: skip
    forecast, silos, bare = rows["dp-dylora", 8.0], rows["silos", 8.0], rows["dp-dylora", None]
    assert (forecast["kind"], silos["kind"], bare["kind"]) == (
        "hypothetical", "proved", "without noise",
    )  # fmt: skip
    assert forecast["epsilon"] <= 8.0 < forecast["actual"]
    assert silos["epsilon"] == silos["actual"] <= 8.0 * (1 + 1e-6)
    assert bare["epsilon"] is None
    assert len(forecast["accuracies"]) == 2
    coarse, fine = rows["fedlpp", None], rows["silos", None]
    assert coarse["bytes_down"] < coarse["bytes_up"] < fine["bytes_up"] == fine["bytes_down"]
    out = tmp_path / "systems"
    page = (out / "table.md").read_text(encoding="utf-8")
    assert "| not private |" in page
    assert "t-interval" in page
    assert {"table.json", "accuracy.png", "accuracy.svg"} <= {p.name for p in out.iterdir()}

    monkeypatch.setattr("fl_integration.ladder.train", lambda _: pytest.fail("run again"))
    again = run(*ladder, "--json")
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["rows"] == found["rows"]
    assert "other settings" in refused(*ladder, "--rounds", "3")


def test_one_failure_costs_one_row(tmp_path: Path, small: tuple[str, ...]) -> None:
    out = ("--out", str(tmp_path / "systems"), "--processes", "1", "--seeds", "1")
    ran = run("compare-systems", "--config", "dp-lora,probe", *small, *out)
    assert ran.exit_code == 1
    assert "probe" in ran.stdout
    assert "failed: dp-lora/non-private/seed-0: ValueError: " in ran.stderr
    assert "## Failed" in (tmp_path / "systems" / "table.md").read_text()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--config", "prob"), "did you mean 'probe'?"),
        (("--config", "probe", "--epsilon", "1;2"), "got '1;2'"),
        (("--config", "probe", "--seeds", "0"), "seeds=0"),
        (("--config", "probe", "--processes", "0"), "processes=0"),
        (("--config", "probe,probe"), "twice"),
        (("--config", "probe", "--set", "rouns=3"), "did you mean 'rounds'?"),
        (("--config", "probe", "--no-reference"), "nothing to run"),
        (("--config", "probe", "--epsilon", "2", "--delta", "2"), "delta=2.0"),
        (("--config", "probe", "--epsilon", "-1"), "epsilon=-1.0"),
    ],
)
def test_a_comparison_that_makes_no_sense_is_refused(
    tmp_path: Path, small: tuple[str, ...], args: tuple[str, ...], said: str
) -> None:
    assert said in refused("compare-systems", *args, *small, "--out", str(tmp_path / "systems"))
    assert not (tmp_path / "systems").exists()


def test_the_interval_is_student_s(tmp_path: Path) -> None:
    """Three accuracies of mean 0.8 and standard deviation 0.1: t(0.975, 2) = 4.30265."""
    row = Row(
        system="x", target=None, kind="without noise", epsilon=None, actual=None, delta=None,
        accuracies=(0.7, 0.8, 0.9), seconds=1.0, bytes_down=None, bytes_up=None,
    )  # fmt: skip
    assert row.mean == pytest.approx(0.8)
    assert row.half == pytest.approx(4.30265 * 0.1 / 3**0.5, rel=1e-5)
    assert row.cells()[1:5] == ("none", "without noise", "0.8000 ± 0.2484", "not private")
