"""The command line: exit codes, what goes where, the JSON, the values, and how fast it starts."""

import json
import os
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from accountants import Ledger
from dpmech import LMO_PRESETS, Gaussian, Laplace, Mechanism, PrivacyPlan, Unattainable, parse_noise
from dpmech.cli import COMMANDS, app
from dpmech.cli._group import exit_code, sentence
from dpmech.cli._output import at_least, at_most, strict
from dpmech.cli.laws import ROWS, Row
from dpmech.parse import DEFAULTS

ENTRY = "import sys; from dpmech.cli import main; sys.exit(main())"


def run(*args: str) -> Any:
    return CliRunner().invoke(app, list(args))


def asked(*args: str) -> dict[str, Any]:
    """The JSON of a command that must succeed; constants such as Infinity are not JSON."""
    ran = run(*args, "--json")
    assert ran.exit_code == 0, ran.stderr

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(ran.stdout, parse_constant=refuse)


def refused(ran: Any, code: int, *said: str) -> None:
    assert ran.exit_code == code, ran.output
    assert ran.stdout == ""
    lines = ran.stderr.strip().splitlines()
    assert len(lines) == 1, ran.stderr
    for text in said:
        assert text in lines[0]


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "plan.json"
    args = ("--epsilon", "2", "--delta", "1e-5", "--steps", "3", "-o", str(path))
    assert run("calibrate", "laplace", *args).exit_code == 0
    return path


# Values


def test_epsilon_of_the_subsampled_gaussian() -> None:
    release = ("--rate", ".01", "--steps", "1000")
    found = asked("epsilon", "gaussian:sigma=1", *release, "--delta", "1e-5")
    assert 1.82823 <= found["epsilon"] <= 1.829
    assert 1.828 <= found["lower_epsilon"] <= found["epsilon"]
    back = asked("delta", "gaussian:sigma=1", *release, "--epsilon", str(found["epsilon"]))
    assert 0.999e-5 <= back["lower_delta"] <= back["delta"] <= 1.001e-5


def test_the_options_reach_the_mechanism() -> None:
    args = ("--rate", ".5", "--sensitivity", "2", "--norm", "l1", "--dim", "3", "--steps", "4")
    found = asked("epsilon", "laplace:b=20", "--delta", "1e-6", *args)
    assert found["mechanism"]["sensitivity"] == {"norm": "l1", "bound": 2.0, "dim": 3}
    assert found["mechanism"]["sampling"] == {"rate": 0.5, "kind": "poisson"}
    assert found["steps"] == 4
    assert found["noise"] == "laplace:b=20.0"
    # four releases of ln(1 + q (e^0.1 - 1)) each, at most
    assert found["epsilon"] <= 4 * np.log1p(0.5 * np.expm1(0.1)) + 1e-6
    keys = {"epsilon", "lower_epsilon", "delta", "accountant", "mechanism", "steps", "seconds"}
    assert keys <= found.keys()


@pytest.mark.parametrize("accountant", ["rdp", "pld"])
def test_the_accountant_that_is_named_is_asked(accountant: str) -> None:
    found = asked("epsilon", "gaussian:sigma=2", "--delta", "1e-5", "--accountant", accountant)
    assert found["accountant"] == accountant
    assert (found["lower_epsilon"] is None) == (accountant == "rdp")


def test_calibrate_writes_the_plan_it_prints(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "plan.json"
    args = ("--epsilon", "1", "--delta", "1e-5", "--steps", "2", "-o", str(path))
    found = asked("calibrate", "laplace:b=3", *args)
    saved = PrivacyPlan.load(path)
    noise = saved.mechanism.noise
    assert isinstance(noise, Laplace)
    assert found["plan"] == json.loads(path.read_text())
    assert found["noise"] == str(noise)
    assert found["parameters"] == {"b": noise.b}
    assert found["scale"] == pytest.approx(noise.b / 3)
    assert found["epsilon"] == saved.epsilon <= 1
    assert saved.steps == 2
    assert found["scale"] == pytest.approx(2 / 3, rel=0.01)  # two pure releases of b = 2


@pytest.mark.parametrize("law", ["laplace-mixture", "gg:beta=1.4", "lmo:preset=2", "gaussian"])
def test_the_scale_is_the_ratio_of_the_laws(law: str) -> None:
    from dpmech.cli.calibrate import scale

    noise = parse_noise(law)
    assert scale(noise, noise.scaled(2.5)) == pytest.approx(2.5, rel=1e-12)
    assert scale(noise, noise) == 1.0


def test_a_plan_and_a_ledger_stand_for_a_noise(plan: Path, tmp_path: Path) -> None:
    saved = PrivacyPlan.load(plan)
    found = asked("epsilon", "--plan", str(plan))
    assert (found["delta"], found["steps"]) == (1e-5, 3)
    assert found["epsilon"] == pytest.approx(saved.epsilon, rel=1e-6)
    ledger = tmp_path / "ledger.json"
    Ledger().add(saved.mechanism, 2).add(saved.mechanism, 1).save(ledger)
    same = asked("epsilon", "--ledger", str(ledger), "--delta", "1e-5")
    assert same["epsilon"] == pytest.approx(saved.epsilon, rel=1e-6)
    Ledger().add(saved.mechanism, 3).add(Mechanism(noise=Gaussian(sigma=3.0))).save(ledger)
    more = asked("epsilon", "--ledger", str(ledger), "--delta", "1e-5")
    assert more["epsilon"] > saved.epsilon
    assert more["mechanism"] is None
    assert len(more["ledger"]["entries"]) == 2
    assert more["steps"] == 4


def test_an_infinite_epsilon_is_valid_json_and_is_said() -> None:
    law = "truncated-laplace:b=1,bound=2"
    found = asked("epsilon", law, "--delta", "1e-5")
    assert found["epsilon"] == "inf"
    ran = run("epsilon", law, "--delta", "1e-5")
    assert ran.stdout.startswith("epsilon = inf")
    assert strict({"a": [float("-inf"), 1.0]}) == {"a": ["-inf", 1.0]}


def test_what_is_claimed_is_said() -> None:
    ran = run("epsilon", "gaussian:sigma=1", "--delta", "1e-5", "--accountant", "rdp")
    first = ran.stdout.splitlines()[0]
    assert "(proved upper bound)" in first  # and it has no lower one
    assert "truth" not in first
    assert "proved upper bound; truth" in run("epsilon", "gaussian", "--delta", "1e-5").stdout
    for text in ("one record", "rdp", "l2 sensitivity 1", "Poisson rate 1", "gaussian:sigma=1.0"):
        assert text in ran.stdout


@pytest.mark.parametrize("value", [1.82821, 0.99999999, 123456.7, 3.3333e-9, 1.0, 0.0])
def test_bounds_are_rounded_to_their_safe_side(value: float) -> None:
    assert float(at_least(value)) <= value <= float(at_most(value))
    assert float(at_most(value)) <= value * (1 + 1e-4)


# Curves, comparisons, statements

SAMPLED = ("gaussian:sigma=1", "--rate", ".01", "--steps", "1000")


@pytest.mark.parametrize(
    ("args", "key", "value"),
    [
        (("--advantage", ".1", "--solve", "scale"), "scale", 3.978948),
        (("--fnr", ".5", "--fpr", ".1", "--solve", "scale"), "scale", 0.780304),
        (("--epsilon", "1", "--solve", "steps"), "steps", 1),
    ],
)
def test_calibrate_solves_for_what_is_asked(args: tuple[str, ...], key: str, value: float) -> None:
    found = asked("calibrate", "gaussian:sigma=1" if key == "scale" else "gaussian:sigma=4",
                  *args, "--delta", "1e-5")  # fmt: skip
    assert found[key] == pytest.approx(value, rel=1.2e-5)
    assert found["epsilon"] >= found["lower_epsilon"]


def test_calibrate_solves_for_the_rate() -> None:
    args = ("--steps", "1000", "--epsilon", "2", "--delta", "1e-5", "--solve", "rate")
    found = asked("calibrate", "gaussian:sigma=.959102", *args)
    assert found["rate"] == pytest.approx(0.01, rel=1e-5)
    said = run("calibrate", "gaussian:sigma=.959102", *args).stdout.splitlines()[0]
    assert said.startswith("rate 0.0099")


def test_curves_are_those_of_the_accountant(tmp_path: Path) -> None:
    table, whole = tmp_path / "c.csv", tmp_path / "c.json"
    found = asked("curve", *SAMPLED, "--points", "4", "-o", str(table))
    assert found["epsilon"][0] == 0.0
    assert found["lower_delta"][0] <= 0.1610176197 <= found["upper_delta"][0]
    head, *rows = table.read_text().splitlines()
    assert head == "epsilon,lower_delta,upper_delta"
    columns = zip(found["epsilon"], found["lower_delta"], found["upper_delta"], strict=True)
    assert [tuple(map(float, row.split(","))) for row in rows] == list(columns)
    args = ("--of", "tradeoff", "--from", ".01", "--to", ".5", "--points", "2")
    rates = asked("curve", *SAMPLED, *args, "-o", str(whole))
    assert rates["lower_fnr"][0] <= 0.97086085 <= rates["upper_fnr"][0]
    assert json.loads(whole.read_text())["lower_fnr"] == rates["lower_fnr"]
    args = ("--of", "advantage", "--from", ".01", "--to", ".5", "--points", "2")
    gained = asked("curve", *SAMPLED, *args)
    assert gained["upper_advantage"][0] == pytest.approx(0.99 - rates["lower_fnr"][0])
    back = asked("curve", *SAMPLED, "--of", "epsilon", "--from", "1e-5", "--points", "2")
    assert back["lower_epsilon"][0] <= 1.82823667 <= back["upper_epsilon"][0]


@pytest.mark.parametrize("of", ["delta", "epsilon", "tradeoff", "advantage"])
def test_every_curve_is_drawn_and_said(tmp_path: Path, of: str) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "curve.png"
    ran = run("curve", "gaussian:sigma=2", "--of", of, "--points", "3", "--plot", str(path))
    assert ran.exit_code == 0, ran.stderr
    assert path.read_bytes().startswith(b"\x89PNG")
    assert len(ran.stdout.splitlines()) == 2 + 3 + 2
    assert "one record" in ran.stdout


def test_compare_shows_laws_and_accountants_side_by_side() -> None:
    args = ("laplace:b=2", "gaussian:sigma=2", "--steps", "3", "--delta", "1e-6")
    rows = asked("compare", *args, "--accountants", "pld,rdp")["rows"]
    names = [(row["noise"], row["accountant"]) for row in rows]
    assert names == [
        (law, by) for law in ("laplace:b=2.0", "gaussian:sigma=2.0") for by in ("pld", "rdp")
    ]
    alone = asked("epsilon", "laplace:b=2", "--steps", "3", "--delta", "1e-6")
    assert rows[0]["epsilon"] == alone["epsilon"]
    assert rows[2]["epsilon"] < rows[3]["epsilon"]
    assert rows[1]["lower_epsilon"] is None
    assert rows[2]["std"] == 2.0
    table = run("compare", *args).stdout
    assert table.splitlines()[0].split()[:3] == ["noise", "epsilon", ">="]


def test_what_cannot_be_compared_is_said_and_left_out() -> None:
    args = ("--dim", "5", "--delta", "1e-6")
    ran = run("compare", "gaussian", "laplace", *args, "--json")
    assert [row["noise"] for row in json.loads(ran.stdout)["rows"]] == ["gaussian:sigma=1.0"]
    assert "Left out laplace:b=1.0 by pld: No pair is proved" in ran.stderr
    assert run("compare", "laplace", *args).exit_code == 2


@pytest.mark.parametrize("form", ["text", "markdown", "latex", "json"])
def test_a_statement_says_all_terms(form: str) -> None:
    from dpmech import __version__

    args = ("--delta", "1e-5", "--unit", "user", "--format", form)
    said = run("statement", *SAMPLED, *args).stdout
    terms = ("1.8283", "1e-05", "1000 releases", "gaussian:sigma=1.0", "Poisson rate 0.01", "pld")
    for term in (*terms, "one user added or removed", __version__, "is proved", "1.8282"):
        assert term in said
    assert said.count("\n") == 1 or form == "json"


def test_a_statement_claims_no_more_than_is_known() -> None:
    said = run("statement", *SAMPLED, "--delta", "1e-5", "--accountant", "rdp").stdout
    assert "below" not in said  # Renyi divergences prove no lower bound
    said = run("statement", *SAMPLED, "--delta", "1e-5", "--accountant", "prv").stdout
    assert "is proved" not in said
    replaced = run("statement", *SAMPLED, "--delta", "1e-5", "--relation", "replace-one").stdout
    assert "one record replaced by another" in replaced
    assert "the pairs of this proof" in replaced  # the pair is not known to be attained
    rate = run("statement", "gaussian", "--rate", ".0123456789", "--delta", "1e-5").stdout
    assert "0.0123456789" in rate


def test_a_ledger_goes_out_and_in(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    first = asked("epsilon", *SAMPLED, "--delta", "1e-5", "--save-ledger", str(path))
    assert Ledger.load(path).runs == 1000
    assert asked("epsilon", "--ledger", str(path), "--delta", "1e-5")["epsilon"] == first["epsilon"]


def test_every_subcommand_of_the_accountants_shows_an_example_that_runs(tmp_path: Path) -> None:
    for name in ("epsilon", "delta", "calibrate", "curve", "compare", "statement"):
        words = import_module(f"dpmech.cli.{name}").app.registered_commands[0].callback.__doc__
        examples = [line.split("dpmech ")[1] for line in words.splitlines() if "Example" in line]
        assert examples
        for example in examples:
            written = example.replace("plan.json", str(tmp_path / "p.json"))
            ran = run(*written.replace("curve.png", str(tmp_path / "c.png")).split())
            assert ran.exit_code == 0, ran.stderr


# Other subcommands


def test_samples_are_those_of_the_law_and_the_seed(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    args = ("sample", "gaussian:sigma=2", "--size", "5", "--seed", "3")
    lines = [float(line) for line in run(*args).stdout.split()]
    assert lines == asked(*args)["draws"]
    assert lines == (2 * np.random.default_rng(3).standard_normal(5)).tolist()
    written = run(*args, "-o", str(path))
    assert written.stdout == ""
    assert np.load(path).tolist() == lines
    assert run("sample", "gaussian").stdout != run("sample", "gaussian").stdout
    exact = run(*args, "--step", "0.125").stdout
    assert exact == run(*args, "--step", "0.125").stdout != run(*args).stdout
    assert all(float(line) % 0.125 == 0 for line in exact.split())
    fresh = ("sample", "gaussian:sigma=2", "--step", "0.125", "--size", "5")
    assert run(*fresh).stdout != run(*fresh).stdout


def test_the_listed_laws_are_the_laws() -> None:
    presets = {f"lmo:preset={key}": law for key, law in LMO_PRESETS.items()}
    listed = {**{law.name: law for law in DEFAULTS if law.name != "lmo"}, **presets}
    assert sorted(listed) == sorted(row.write for row in ROWS)
    for row in ROWS:
        real = Row.of(listed[row.write], row.write)
        assert row.noise == real.noise == str(parse_noise(row.write))
        for figure in ("usefulness", "std", "mean_abs"):
            assert getattr(row, figure) == pytest.approx(getattr(real, figure), rel=1e-9)


def test_laws_lists_and_describes() -> None:
    table = run("laws").stdout
    assert all(law.name in table for law in DEFAULTS)
    assert max(map(len, table.splitlines())) > 80  # in a pipe nothing is folded
    (row,) = asked("laws", "laplace-mixture:b=1/2,w=.5/.5")["laws"]
    assert row["parameters"] == {"scales": [1.0, 2.0], "weights": [0.5, 0.5]}
    assert row["mean_abs"] == 1.5


@pytest.mark.parametrize("name", COMMANDS)
def test_every_subcommand_has_help_and_json(name: str) -> None:
    ran = run(name, "--help")
    assert ran.exit_code == 0, ran.output
    assert "--json" in ran.stdout or name == "plot"
    assert "--install-completion" not in ran.stdout


def test_the_shown_defaults_of_train_are_the_real_ones() -> None:
    pytest.importorskip("torch")
    import inspect

    from dpmech.cli.train import train
    from fl_integration import FederatedConfig, TrainRequest

    real = {**vars(FederatedConfig()), **vars(TrainRequest(out=Path()))}
    checked = 0
    for name, parameter in inspect.signature(train, eval_str=True).parameters.items():
        shown = parameter.annotation.__metadata__[0].show_default
        if name in real and isinstance(shown, str) and name not in ("delta", "population_cohort"):
            value = real[name].name if name == "noise" else real[name]
            assert shown == str(value), name
            checked += 1
    assert checked >= 18


# Refusals

DELTA = ("--delta", "1e-5")
RATED = ("--epsilon", "1", *DELTA)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("epsilon", "gaussian:sigma=-1", *DELTA), "sigma=-1"),
        (("epsilon", "gaussian", "--rate", "2", *DELTA), "rate=2"),
        (("epsilon", "gaussian", "--rate", "nan", *DELTA), "rate=nan"),
        (("epsilon", "gaussian", "--steps", "0", *DELTA), "steps=0"),
        (("epsilon", "gaussian", "--sensitivity", "inf", *DELTA), "sensitivity=inf"),
        (("epsilon", "gaussian", "--norm", "l3", *DELTA), "l3"),
        (("epsilon", "gaussian", "--dim", "0", *DELTA), "dim=0"),
        (("epsilon", "gaussian", "--accountant", "best", *DELTA), "best"),
        (("epsilon", "gaussian", "--delta", "0"), "delta=0"),
        (("epsilon", "gaussian", "--delta", "nan"), "delta=nan"),
        (("epsilon", "gaussian"), "--delta"),
        (("epsilon", *DELTA), "gaussian:sigma=1"),
        (("delta", "gaussian", "--epsilon", "nan"), "epsilon=nan"),
        (("delta", "gaussian", "--epsilon", "-1"), "epsilon=-1"),
        (("calibrate", "gaussian", "--epsilon", "nan", *DELTA), "epsilon=nan"),
        (("calibrate", "gaussian", "--epsilon", "1", "--delta", "0"), "delta=0"),
        (("epsilon", "cauchy", *DELTA), "cauchy"),
        (("epsilon", "gaussian:sigma", *DELTA), "key=value"),
        (("epsilon", "file:absent.json", *DELTA), "absent.json"),
        (("epsilon", "--plan", "absent.json"), "absent.json"),
        (("epsilon", "--ledger", "absent.json", *DELTA), "absent.json"),
        (("epsilon", "--ledger", "a", "--plan", "b", *DELTA), "not both"),
        (("calibrate", "gaussian", *DELTA), "--advantage"),
        (("calibrate", "gaussian", "--epsilon", "1", "--advantage", ".1", *DELTA), "one target"),
        (("calibrate", "gaussian", "--fnr", ".9", *DELTA), "fpr=None"),
        (("calibrate", "gaussian", "--advantage", "2", *DELTA), "advantage=2"),
        (("calibrate", "gaussian", "--fnr", ".95", "--fpr", ".1", *DELTA), "fnr=0.95"),
        (("calibrate", "gaussian", *RATED, "--solve", "rate", "--rate", ".1"), "--rate 0.1"),
        (("calibrate", "gaussian", *RATED, "--solve", "steps", "--steps", "9"), "--steps 9"),
        (("curve", "gaussian", "--points", "1"), "points=1"),
        (("curve", "gaussian", "--from", "3", "--to", "2"), "--from 3 --to 2"),
        (("curve", "gaussian", "--of", "tradeoff", "--to", "1.5"), "--to 1.5"),
        (("curve", "gaussian", "--of", "epsilon", "--from", "0"), "--from 0"),
        (("curve", "gaussian", "-o", "x.txt"), ".csv or .json"),
        (("curve", "gaussian", "--plot", "x.pdf"), ".png or .svg"),
        (("curve", *DELTA[:0]), "gaussian:sigma=1"),
        (("compare", "gaussian", "--accountants", "pld,best", *DELTA), "best"),
        (("compare", "gaussian", "cauchy", *DELTA), "cauchy"),
        (("statement", "gaussian"), "--delta"),
        (("statement", "truncated-laplace:b=1,bound=2", *DELTA), "finite epsilon"),
        (("sample", "gaussian", "--size", "0"), "size=0"),
        (("sample", "gaussian", "--seed", "-1"), "seed=-1"),
        (("sample", "gaussian", "--step", "0.3"), "step=0.3"),
        (("sample", "gaussian", "-o", "x.csv"), ".npy"),
        (("laws", "cauchy"), "cauchy"),
        (("plot", "densities", "gaussian", "-o", "x.pdf"), ".png or .svg"),
        (("plot", "curve", "gaussian", "--delta-min", "0"), "delta-min=0"),
        (("plot", "curve", "gaussian", "--points", "1"), "points=1"),
        (("plot", "noise", "gaussian", *DELTA, "--epsilons", "1,x"), "1,x"),
        (("plot", "accuracy", "absent.json"), "absent.json"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_nonsense_gets_one_sentence(args: tuple[str, ...], said: str) -> None:
    refused(run(*args), 2, said)


def test_broken_plans_are_refused(plan: Path) -> None:
    whole = plan.read_text()
    for text in (whole[: len(whole) // 2], whole.replace("laplace", "cauchy"), "[]", ""):
        plan.write_text(text)
        refused(run("epsilon", "--plan", str(plan)), 2, "plan.json")


def test_a_file_is_not_overruled_by_options(plan: Path) -> None:
    refused(run("epsilon", "--plan", str(plan), "--rate", ".1"), 2, "rate", "plan.json")
    refused(run("epsilon", "gaussian", "--plan", str(plan)), 2, "noise")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--norm", "l2", "--dim", "5"), "laplace"),
        (("--relation", "replace"), "replace"),
        (("--sampling", "shuffle"), "shuffle"),
    ],
)
def test_an_unproved_claim_is_refused_with_a_way_out(args: tuple[str, ...], said: str) -> None:
    refused(run("epsilon", "laplace", *DELTA, *args), 2, said, "Use" if said != "shuffle" else "S")
    refused(run("calibrate", "laplace", "--epsilon", "1", *DELTA, *args), 2, said)


def test_an_unattainable_target_is_exit_code_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise Unattainable("No scale\n meets the target.", reached=3.0)

    monkeypatch.setattr(import_module("accountants.calibrate"), "calibrate_scale", never)
    args = ("calibrate", "gaussian", "--epsilon", "1", *DELTA)
    refused(run(*args), 1, "Error: No scale meets the target.")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RuntimeError("out of memory"), 1),
        (OSError(28, "No space left"), 1),
        (ZeroDivisionError("division by zero"), 1),
        (ImportError("run: pip install 'dpmech[train]'"), 2),
        (ImportError("a defect"), None),
        (KeyError("a defect"), None),
        (KeyboardInterrupt(), 130),
    ],
)
def test_what_an_exception_stands_for(error: BaseException, code: int | None) -> None:
    assert exit_code(error) == code
    assert "\n" not in sentence(error)


def test_debug_shows_where(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = run("--debug", "epsilon", "gaussian:sigma=-1", *DELTA)
    assert ran.exit_code == 2
    assert "Traceback" in ran.stderr
    monkeypatch.setenv("DPMECH_DEBUG", "1")
    assert "Traceback" in run("epsilon", "gaussian:sigma=-1", *DELTA).stderr


def test_train_says_what_it_may_cost_before_it_runs(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    out = ("--model", "tiny", "--out", str(tmp_path))
    ran = run("train", *out)
    assert ran.exit_code == 2
    assert "--non-private" in ran.stderr
    assert run("train", *out, "--epsilon", "1", "--non-private").exit_code == 2
    assert "rank=0" in run("train", *out, "--non-private", "--rank", "0").stderr
    resumed = run("train", *out, "--non-private", "--resume")
    assert resumed.exit_code == 2
    assert "--resume" in resumed.stderr


def test_train_trains_once_and_resumes(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    rows = [f"{('hot', 'cold')[i % 2]} {rng.integers(9)}\t{i % 2}\tc{i // 4}" for i in range(80)]
    (tmp_path / "t.tsv").write_text("\n".join(["text\tlabel\tclient", *rows]), encoding="utf-8")
    out = tmp_path / "run"
    args = (
        "train",
        "--model",
        "tiny",
        "--data",
        str(tmp_path / "t.tsv"),
        "--rank",
        "2",
        "--rounds",
    )
    args = (
        *args,
        "2",
        "--cohort",
        "4",
        "--epsilon",
        "4",
        "--population",
        "1000",
        "--out",
        str(out),
    )
    ran = run(*args)
    assert ran.exit_code == 0, ran.stderr
    assert "hypothetical epsilon" in ran.stdout
    assert "accuracy" in ran.stdout
    assert {"report.json", "plan.json", "ledger.json", "adapters"} <= {
        p.name for p in out.iterdir()
    }
    again = run(*args)
    assert again.exit_code == 2
    assert "--resume" in again.stderr
    ledger = (out / "ledger.json").read_text()
    assert asked(*args, "--resume")["report"]["hypothetical"]["population"] == 1000
    assert (out / "ledger.json").read_text() == ledger


# As a process


def started(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", ENTRY, *args]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("args", ["--help", "laws", "epsilon --help", "search --help"])
def test_help_loads_no_numbers(args: str) -> None:
    """Which is why it is there at once."""
    code = f"import atexit, sys; atexit.register(lambda: print(*sys.modules)); {ENTRY}"
    ran = subprocess.run(
        [sys.executable, "-c", code, *args.split()], capture_output=True, text=True
    )
    assert ran.returncode == 0
    heavy = {"numpy", "scipy", "numba", "torch", "threadpoolctl", "optimizer_search"}
    assert not heavy & set(ran.stdout.splitlines()[-1].split())


def test_exit_codes_of_the_process(plan: Path) -> None:
    plan.write_text(plan.read_text()[:40])
    for args in (("epsilon", "--plan", str(plan)), ("epsilon", "gaussian:sigma=-1", *DELTA)):
        ran = started(*args)
        assert (ran.returncode, ran.stdout) == (2, "")
        assert "Traceback" not in ran.stderr
    assert started("epsilno").returncode == 2
    assert started("epsilon", "gaussian", "--steps", "many", *DELTA).returncode == 2


# A shell starts background jobs with interrupts ignored, and their children inherit that; so the
# handler is set as it is in a terminal.
SLOW = """
import signal, sys, time, accountants

signal.signal(signal.SIGINT, signal.default_int_handler)

def slow(*args, **options):
    print("calibrating", file=sys.stderr, flush=True)
    time.sleep(60)

sys.modules["accountants.calibrate"].calibrate_scale = slow
"""


def test_an_interrupt_is_one_line() -> None:
    job = ("calibrate", "gaussian", "--epsilon", "1", *DELTA)
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW + ENTRY, *job],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ},
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "calibrating\n"  # now it is inside the subcommand
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (out, err.strip()) == ("", "Interrupted.")
