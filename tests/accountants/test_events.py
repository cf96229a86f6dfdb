"""Ledgers as event trees and back, with the conventions of either side."""

import sys
from dataclasses import replace
from typing import Any

import pytest

from accountants import PLD, Ledger
from accountants.events import from_dp_event, neighboring_relation, to_dp_event
from dpmech import (
    Gaussian,
    Laplace,
    LaplaceMixture,
    Mechanism,
    NoDominatingPair,
    Sampling,
    Sensitivity,
)
from dpmech.discrete import DiscreteGaussian, DiscreteLaplace
from dpmech.guarantee import RandomizedResponse

peer = pytest.importorskip("dp_accounting")
kinds = peer.dp_event
TENTH = Sampling(rate=0.1)
LEDGERS = (
    Ledger().add(Mechanism(noise=Gaussian(sigma=2.0))),
    Ledger().add(Mechanism(noise=Gaussian(sigma=1.5), sampling=TENTH), 200),
    Ledger().add(Mechanism(noise=Laplace(b=10.0)), 40),
    Ledger().add(Mechanism(noise=Laplace(b=3.0), sampling=TENTH), 60),
    Ledger().add(
        Mechanism(noise=DiscreteLaplace(b=4.0), sensitivity=Sensitivity(bound=3.0)), 10
    ),
    Ledger()
    .add(Mechanism(noise=Gaussian(sigma=2.0), sampling=TENTH), 30)
    .add(Mechanism(noise=Laplace(b=5.0)), 2)
    .add(Mechanism(noise=Gaussian(sigma=8.0)), 7),
)  # fmt: skip


@pytest.mark.parametrize("ledger", LEDGERS, ids=lambda ledger: str(ledger.entries[0][0].noise))
@pytest.mark.parametrize("relation", ["add-remove", "zero-out"])
def test_round_trips(ledger: Ledger, relation: str) -> None:
    under = Ledger(tuple((replace(m, relation=relation), n) for m, n in ledger.entries))
    assert from_dp_event(to_dp_event(under), relation=relation) == under


@pytest.mark.parametrize("ledger", LEDGERS, ids=lambda ledger: str(ledger.entries[0][0].noise))
def test_both_libraries_agree_on_the_event(ledger: Ledger) -> None:
    from dp_accounting.pld import PLDAccountant

    theirs = PLDAccountant(neighboring_relation("add-remove")).compose(to_dp_event(ledger))
    for delta in (1e-3, 1e-6):
        low, high = PLD().compose_ledger(ledger).epsilon_interval(delta)
        value = theirs.get_epsilon(delta)
        assert low * (1 - 1e-3) <= value <= high * (1 + 1e-3)


def test_multipliers_are_in_units_of_the_contribution() -> None:
    wide = Sensitivity(bound=4.0)
    gaussian = Mechanism(noise=Gaussian(sigma=2.0), sensitivity=wide)
    assert to_dp_event(gaussian) == kinds.GaussianDpEvent(0.5)
    assert to_dp_event(Mechanism(noise=Laplace(b=2.0), sensitivity=wide)) == kinds.LaplaceDpEvent(
        0.5
    )
    # The same under a relation that doubles the change: the multiplier is about a contribution.
    assert to_dp_event(replace(gaussian, relation="replace-one")) == kinds.GaussianDpEvent(0.5)
    vector = Sensitivity(norm="l1", bound=4.0, dim=9)
    assert to_dp_event(Mechanism(noise=Laplace(b=2.0), sensitivity=vector)) == kinds.LaplaceDpEvent(
        0.5
    )


def test_the_shape_of_the_tree() -> None:
    sampled = kinds.PoissonSampledDpEvent(0.1, kinds.GaussianDpEvent(1.5))
    assert to_dp_event(LEDGERS[1]) == kinds.SelfComposedDpEvent(sampled, 200)
    assert isinstance(to_dp_event(LEDGERS[-1]), kinds.ComposedDpEvent)
    assert to_dp_event(Ledger()) == kinds.ComposedDpEvent([])


def test_nested_compositions_are_unrolled() -> None:
    gaussian, laplace = kinds.GaussianDpEvent(2.0), kinds.LaplaceDpEvent(3.0)
    once = kinds.ComposedDpEvent([gaussian, kinds.NoOpDpEvent(), laplace])
    tree = kinds.SelfComposedDpEvent(kinds.SelfComposedDpEvent(once, 2), 5)
    counts = {str(m.noise): n for m, n in from_dp_event(tree).collected().entries}
    assert counts == {"gaussian:sigma=2.0": 10, "laplace:b=3.0": 10}
    assert from_dp_event(kinds.NoOpDpEvent()) == Ledger()
    twice = kinds.PoissonSampledDpEvent(0.5, kinds.PoissonSampledDpEvent(0.2, gaussian))
    assert from_dp_event(twice).entries[0][0].sampling == Sampling(rate=0.1)


G = kinds.GaussianDpEvent(1.0)
REFUSED: tuple[Any, ...] = (
    kinds.NonPrivateDpEvent(),
    kinds.UnsupportedDpEvent(),
    kinds.SampledWithoutReplacementDpEvent(100, 10, G),
    kinds.SampledWithReplacementDpEvent(100, 10, G),
    kinds.SingleEpochTreeAggregationDpEvent(1.0, 10),
    kinds.RepeatAndSelectDpEvent(G, 3.0, 1.0),
    kinds.ZCDpEvent(0.1),
    kinds.MixtureOfGaussiansDpEvent(1.0, [1.0], [1.0]),
)


@pytest.mark.parametrize("event", REFUSED, ids=lambda event: type(event).__name__)
def test_other_events_are_refused_by_name(event: Any) -> None:
    for tree in (event, kinds.ComposedDpEvent([G, event])):
        with pytest.raises(NoDominatingPair, match=type(event).__name__):
            from_dp_event(tree)


def test_one_sample_for_several_releases_is_refused() -> None:
    shared = kinds.PoissonSampledDpEvent(0.1, kinds.SelfComposedDpEvent(G, 3))
    with pytest.raises(NoDominatingPair, match="3 releases of one sample"):
        from_dp_event(shared)


def test_what_has_no_event_is_refused() -> None:
    mixture = LaplaceMixture(scales=(0.5, 5.0), weights=(0.3, 0.7))
    for noise in (mixture, DiscreteGaussian(sigma=2.0), RandomizedResponse(epsilon=1.0)):
        with pytest.raises(NoDominatingPair, match=noise.name):
            to_dp_event(Mechanism(noise=noise))
    drawn = Sampling(rate=0.1, kind="without-replacement")
    with pytest.raises(NoDominatingPair, match="without-replacement"):
        to_dp_event(Mechanism(noise=Gaussian(sigma=1.0), sampling=drawn, relation="replace-one"))
    unproved = Mechanism(noise=Laplace(b=1.0), sensitivity=Sensitivity(norm="l2", dim=5))
    with pytest.raises(NoDominatingPair, match="vector"):
        to_dp_event(unproved)
    with pytest.raises(ValueError, match="relation='user'"):
        from_dp_event(G, relation="user")
    with pytest.raises(ValueError, match=r"sigma=0\.0"):
        from_dp_event(kinds.GaussianDpEvent(0.0))


@pytest.mark.parametrize("values", [2, 3, 10])
def test_randomised_responses_agree(values: int) -> None:
    from dp_accounting.pld import PLDAccountant

    response = Mechanism(
        noise=RandomizedResponse(epsilon=0.6, values=values), relation="replace-one"
    )
    event = to_dp_event(response)
    assert event.num_buckets == values
    relation = neighboring_relation("replace-one")
    theirs = PLDAccountant(relation).compose(kinds.ComposedDpEvent([event] * 8))
    low, high = PLD().compose(response, 8).delta_interval(1.0)
    assert low * (1 - 1e-3) <= theirs.get_delta(1.0) <= high * (1 + 1e-3)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    for ask in (lambda: to_dp_event(LEDGERS[0]), lambda: from_dp_event(G)):
        with pytest.raises(ValueError, match=r"pip install 'dpmech\[peers\]'"):
            ask()
