"""Every preset runs, and its report says whom it protects, from whom, and how they are drawn."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dpmech.cli._requests import request_of
from dpmech.cli._settings import described, layered, presets, read
from fl_integration.report import TRUSTED_SERVER, TrainReport
from fl_integration.silos import TRUSTED as TRUSTED_SILOS
from fl_integration.train import train
from fl_integration.zo_report import TRUSTED as TRUSTED_ZEROTH_ORDER
from fl_integration.zo_train import train_zo


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What the report of a preset must say; ``sampled``: the rate in its ledger.

    started: rounds of everybody before its own, in the same ledger.
    """

    system: str
    unit: str = "user"
    trusted: str = TRUSTED_SERVER
    private: bool = True
    sampled: float = 0.25
    releases: int = 2
    sent: bool = True
    started: int = 0


TERMS = {
    "dp-dylora": Terms(system="dylora", started=60),
    "dp-lora-central": Terms(system="lora", started=60),
    "dp-lora": Terms(system="lora", unit="example", trusted=TRUSTED_SILOS, sampled=0.1, releases=8),
    "fedlpp": Terms(system="lora", private=False),
    "fedlpp-dp": Terms(system="lora"),
    "ffa-lora": Terms(system="ffa-lora", started=60),
    "rolora": Terms(system="rolora", started=60),
    "dp-sgd-lora": Terms(system="lora", unit="example", sampled=0.1, sent=False, started=30),
    "probe": Terms(system="probe"),
    "full": Terms(system="full"),
    "non-private": Terms(system="lora", private=False),
}
ZEROTH_ORDER = {"dp-zo": "example", "federated-zo": "user"}  # by their unit
# What a small file needs that a preset does not know.
FITTED: dict[str, dict[str, Any]] = {
    "dp-lora": {"silos": {"sizes": [40, 40]}},
    "dp-sgd-lora": {"cohort": 8.0},
}


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 clients with 4 texts, and 8 test texts in a file of their own."""
    folder = tmp_path_factory.mktemp("texts")
    rows = [f"{('hot', 'cold')[i % 2]} word {i % 7}\t{i % 2}\tc{i // 4}" for i in range(88)]
    for name, part in (("train.tsv", rows[:80]), ("test.tsv", rows[80:])):
        (folder / name).write_text("\n".join(["text\tlabel\tclient", *part]), encoding="utf-8")
    return folder


def ran(name: str, texts: Path, out: Path) -> TrainReport:
    small = {
        "data": str(texts / "train.tsv"),
        "test_path": str(texts / "test.tsv"),
        "model": "tiny",
        "rank": 2,
        "rounds": 2,
        "cohort": 5.0,
        "max_length": 8,
    }
    settings = layered(layered(read(name), small), FITTED.get(name, {}))
    if TERMS[name].private:
        settings = layered(settings, {"epsilon": 8.0, "delta": 1e-3})
    return train(request_of(settings, out))


def test_the_presets_are_those_that_are_promised() -> None:
    assert set(presets()) == {*TERMS, *ZEROTH_ORDER}


@pytest.mark.parametrize("name", TERMS)
def test_a_preset_runs_and_says_what_it_protects(name: str, texts: Path, tmp_path: Path) -> None:
    report, terms = ran(name, texts, tmp_path), TERMS[name]
    assert report.config["system"] == terms.system
    assert (report.unit, report.trusted) == (terms.unit, terms.trusted)
    assert (report.relation, report.sampling) == ("add-remove", "poisson")
    assert (report.why_not_private is None) == terms.private
    assert (report.bytes_down is not None) == terms.sent
    assert len(report.rounds) == 2
    if terms.private:
        rates: dict[float, int] = {}
        for mechanism, count in report.ledger.collected().entries:
            rate = round(mechanism.sampling.rate, 9)
            rates[rate] = rates.get(rate, 0) + count
        started = {1.0: terms.started} if terms.started else {}
        assert rates == {terms.sampled: terms.releases, **started}
        assert 0 < report.epsilon <= 8.0 * (1 + 1e-6)
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert ("**Private**" in page) == terms.private
    assert (terms.trusted in page) == terms.private
    kept = (tmp_path / "report.json").read_text(encoding="utf-8")
    assert kept == report.to_json() == TrainReport.from_json(kept).to_json()
    claims = [json.loads(path.read_text()) for path in tmp_path.rglob("privacy.json")]
    assert claims
    assert {claim["private"] for claim in claims} == {terms.private}


@pytest.mark.parametrize(("name", "unit"), ZEROTH_ORDER.items())
def test_a_zeroth_order_preset_runs_and_says_what_it_protects(
    name: str, unit: str, texts: Path, tmp_path: Path
) -> None:
    small = {"data": str(texts / "train.tsv"), "model": "tiny", "steps": 20, "rate": 0.2}
    settings = layered(layered(read(name), small), {"epsilon": 8.0, "delta": 1e-3})
    report = train_zo(request_of(settings, tmp_path))
    assert (report.unit, report.trusted) == (unit, TRUSTED_ZEROTH_ORDER)
    assert (report.relation, report.sampling) == ("add-remove", "poisson")
    assert report.why_not_private is None
    (entry,) = report.ledger.entries
    assert (entry[0].sampling.rate, entry[0].sensitivity.dim, entry[1]) == (0.2, 1, 20)
    assert 0 < report.epsilon <= 8.0 * (1 + 1e-6)


@pytest.mark.parametrize("name", [*TERMS, *ZEROTH_ORDER])
def test_a_preset_explains_itself(name: str) -> None:
    lines = presets()[name].read_text(encoding="utf-8").splitlines()
    comment = "\n".join(line for line in lines if line.startswith("#"))
    assert "Protects:" in comment
    assert max(map(len, lines)) <= 100
    assert len(described()[name]) > 20
    for term in ("From:", "Paper:") if name not in ("non-private", "probe", "full") else ():
        assert term in comment
