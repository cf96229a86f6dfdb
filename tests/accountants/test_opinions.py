"""Several accountants on one ledger, none of which can spoil the table for the others."""

import sys

import pytest

from accountants import Ledger
from accountants.opinions import Opinion, SecondOpinion, second_opinion
from dpmech import Gaussian, Laplace, LaplaceMixture, Mechanism, Sampling
from dpmech.guarantee import ApproximateDP

pytest.importorskip("dp_accounting")
pytest.importorskip("prv_accountant")
NAMES = ("pld", "rdp", "prv", "dp-accounting pld", "dp-accounting rdp")
MIXED = (
    Ledger()
    .add(Mechanism(noise=Gaussian(sigma=2.0), sampling=Sampling(rate=0.1)), 50)
    .add(Mechanism(noise=Laplace(b=5.0)), 2)
)


def by_name(found: SecondOpinion) -> dict[str, Opinion]:
    assert tuple(o.name for o in found.opinions) == NAMES
    assert all(o.seconds >= 0 and o.note for o in found.opinions)
    return {o.name: o for o in found.opinions}


@pytest.mark.parametrize("relation", ["add-remove", "zero-out"])
def test_all_agree(relation: str) -> None:
    from dataclasses import replace

    ledger = Ledger(tuple((replace(m, relation=relation), n) for m, n in MIXED.entries))
    found = by_name(second_opinion(ledger, 1e-5))
    proved = found["pld"]
    assert proved.lower is not None
    assert proved.upper is not None
    for name in NAMES[1:]:
        opinion = found[name]
        assert opinion.upper is not None, opinion.note
        assert opinion.upper >= proved.lower * (1 - 1e-3)
        assert opinion.upper <= 1.2 * proved.upper
        assert opinion.lower is None or opinion.lower <= proved.upper
    assert [name for name, o in found.items() if "proved" in o.note] == ["pld"]


def test_refusals_are_notes() -> None:
    mixture = LaplaceMixture(scales=(0.5, 5.0), weights=(0.3, 0.7))
    found = by_name(second_opinion(Ledger().add(Mechanism(noise=mixture), 3), 1e-5))
    for name in NAMES[3:]:
        assert found[name].upper is None
        assert "refused: dp-accounting has no event for laplace-mixture" in found[name].note
    small = by_name(second_opinion(MIXED, 1e-14))
    assert small["prv"].upper is None
    assert "1e-14" in small["prv"].note
    assert small["pld"].upper is not None


def test_replaced_records() -> None:
    run = Mechanism(noise=Gaussian(sigma=2.0), relation="replace-one")
    found = by_name(second_opinion(Ledger().add(run, 5), 1e-5))
    values = [found[name].upper for name in NAMES[:4]]
    assert values == pytest.approx([values[0]] * 4, rel=0.1)
    assert "a contribution" in found["dp-accounting rdp"].note
    sampled = Mechanism(
        noise=Gaussian(sigma=2.0), sampling=Sampling(rate=0.1), relation="replace-one"
    )
    found = by_name(second_opinion(Ledger().add(sampled, 5), 1e-5))
    assert found["rdp"].upper is None
    assert found["dp-accounting pld"].upper == pytest.approx(found["pld"].upper, rel=1e-3)


def test_infinite_costs_are_opinions() -> None:
    lost = Ledger().add(Mechanism(noise=ApproximateDP(epsilon=1.0, delta=1e-2)))
    found = by_name(second_opinion(lost, 1e-5))
    assert found["pld"].upper == float("inf")


def test_the_table() -> None:
    lines = str(second_opinion(MIXED, 1e-14)).splitlines()
    assert lines[0].split() == ["accountant", "lower", "upper", "seconds", "note"]
    assert len(lines) == 1 + len(NAMES)
    assert all(line.startswith(name) for line, name in zip(lines[1:], NAMES, strict=True))
    assert "  -  " in lines[3]
    assert "proved" in lines[1]


def test_nothing_costs_nothing() -> None:
    found = by_name(second_opinion(Ledger(), 1e-5))
    assert {o.upper for o in found.values()} == {0.0}


def test_a_bad_delta_is_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match=r"delta=1\.5"):
        second_opinion(MIXED, 1.5)


def test_without_the_packages_the_rest_still_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    monkeypatch.setitem(sys.modules, "prv_accountant", None)
    found = by_name(second_opinion(MIXED, 1e-5))
    assert found["pld"].upper is not None
    for name in NAMES[2:]:
        assert found[name].upper is None
        assert "dpmech[peers]" in found[name].note
