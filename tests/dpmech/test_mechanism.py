"""Mechanisms: what has a proved pair, what is refused, and what the refusal offers instead."""

import json
import math
import re
from collections.abc import Callable

import numpy as np
import pytest

from dpmech import (
    Gaussian,
    Laplace,
    Mechanism,
    NoDominatingPair,
    Noise,
    Sampling,
    Sensitivity,
)
from dpmech.loss import SubsampledPair
from dpmech.parse import DEFAULTS

NORMS = ("l1", "l2", "linf")


def proved(noise: Noise, norm: str, dim: int) -> bool:
    """mathematics.md §6.1, §6.2, and every scalar."""
    if dim == 1:
        return True
    return (noise.name, norm) in {("gaussian", "l2"), ("laplace", "l1")}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dim", [1, 2, 3, 1000])
def test_exactly_the_proved_combinations_have_pairs(norm: str, dim: int) -> None:
    for noise in DEFAULTS:
        sensitivity = Sensitivity(norm=norm, bound=0.7, dim=dim)  # type: ignore[arg-type]
        for rate, count in ((1.0, 1), (0.2, 2)):
            mechanism = Mechanism(
                noise=noise, sensitivity=sensitivity, sampling=Sampling(rate=rate)
            )
            if proved(noise, norm, dim):
                assert len(mechanism.pairs()) == count
                continue
            for ask in (mechanism.pairs, mechanism.base_pair):
                with pytest.raises(NoDominatingPair) as caught:
                    ask()
                check_refusal(caught.value, mechanism)


def check_refusal(refusal: NoDominatingPair, refused: Mechanism) -> None:
    """It names what is refused, and every alternative that it names is itself legal and enough."""
    s = refused.sensitivity
    for value in (refused.noise.name, f"dim={s.dim}", s.norm):
        assert value in refusal.reason
    assert str(refusal) == f"{refusal.reason} {refusal.alternative}"
    offered = re.search(r"gaussian noise with an l2 bound of ([0-9.e+-]+),", refusal.alternative)
    assert offered is not None
    bound = float(offered.group(1))
    # The l2 norm that the given bound implies: never above l1, sqrt(dim) times linf.
    implied = s.bound * math.sqrt(s.dim) if s.norm == "linf" else s.bound
    assert implied <= bound <= implied * 1.0001
    gaussian = Sensitivity(norm="l2", bound=bound, dim=s.dim)
    assert Mechanism(noise=Gaussian(sigma=1.0), sensitivity=gaussian).pairs()
    assert "laplace noise with an l1 bound" in refusal.alternative
    laplace = Sensitivity(norm="l1", bound=1.0, dim=s.dim)
    assert Mechanism(noise=Laplace(b=1.0), sensitivity=laplace).pairs()
    assert "a scalar (dim=1)" in refusal.alternative


@pytest.mark.parametrize("kind", ["fixed-size", "shuffle", "balls-and-bins", "Poisson", ""])
def test_other_sampling_is_refused(kind: str) -> None:
    with pytest.raises(NoDominatingPair, match="not Poisson sampling") as caught:
        Sampling(rate=0.1, kind=kind)
    assert repr(kind) in caught.value.reason
    assert "kind='poisson'" in caught.value.alternative
    assert "rate=1" in caught.value.alternative
    Sampling(rate=0.1, kind="poisson")
    Sampling(rate=1)


@pytest.mark.parametrize("relation", ["replace-one", "zero-out", ""])
def test_other_relations_are_refused(relation: str) -> None:
    with pytest.raises(NoDominatingPair) as caught:
        Mechanism(noise=Gaussian(sigma=1.0), relation=relation)
    assert repr(relation) in caught.value.reason
    assert "relation='add-remove'" in caught.value.alternative
    Mechanism(noise=Gaussian(sigma=1.0), relation="add-remove")


BAD: list[tuple[Callable[[], object], str]] = [
    (lambda: Sampling(rate=0.0), "rate=0.0"),
    (lambda: Sampling(rate=1.1), "rate=1.1"),
    (lambda: Sampling(rate=math.nan), "rate=nan"),
    (lambda: Sensitivity(bound=0.0), "sensitivity=0.0"),
    (lambda: Sensitivity(bound=math.inf), "sensitivity=inf"),
    (lambda: Sensitivity(dim=0), "dim=0"),
    (lambda: Sensitivity(dim=2.0), "dim=2.0"),  # type: ignore[arg-type]
    (lambda: Sensitivity(norm="l3"), "norm='l3'"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("build", "value"), BAD, ids=[value for _, value in BAD])
def test_bad_values_are_refused_with_the_value(build: Callable[[], object], value: str) -> None:
    with pytest.raises(ValueError, match="Expected") as caught:
        build()
    assert value in str(caught.value)


def test_directions_are_remove_then_add() -> None:
    pairs = Mechanism(noise=Gaussian(sigma=1.0), sampling=Sampling(rate=0.2)).pairs()
    assert [pair.direction for pair in pairs if isinstance(pair, SubsampledPair)] == [
        "remove",
        "add",
    ]
    # The loss of a removal is at least ln(1 - q), that of an addition at most -ln(1 - q).
    assert pairs[0].loss_range(1e-12)[0] >= math.log(0.8) - 1e-12
    assert pairs[1].loss_range(1e-12)[1] <= -math.log(0.8) + 1e-12


def test_only_the_ratio_of_noise_to_sensitivity_counts(every_law: Noise) -> None:
    levels = np.array([-0.4137, -0.0531, 0.0531, 0.2113])
    for rate in (1.0, 0.2):
        small, large = (
            Mechanism(
                noise=every_law.scaled(c),
                sensitivity=Sensitivity(bound=0.6 * c),
                sampling=Sampling(rate=rate),
            ).pairs()
            for c in (1.0, 50.0)
        )
        for one, other in zip(small, large, strict=True):
            assert one.masses(levels).p == pytest.approx(other.masses(levels).p, abs=1e-9)


def test_json_round_trip(every_law: Noise) -> None:
    mechanism = Mechanism(
        noise=every_law,
        sensitivity=Sensitivity(norm="l1", bound=0.1, dim=3),
        sampling=Sampling(rate=1 / 3),
    )
    again = Mechanism.from_dict(json.loads(json.dumps(mechanism.to_dict())))
    assert again == mechanism
    assert hash(again) == hash(mechanism)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("noise",), None),
        (("noise",), []),
        (("noise", "name"), "cauchy"),
        (("noise", "sigma"), "1"),
        (("noise", "sigma"), [1.0]),
        (("sensitivity",), 3),
        (("sensitivity", "bound"), -1.0),
        (("sensitivity", "bound"), "1"),
        (("sensitivity", "dim"), 1.5),
        (("sensitivity", "size"), 1.0),
        (("sampling", "rate"), 0),
        (("sampling", "rate"), "0.1"),
        (("sampling", "q"), 0.1),
    ],
    ids=str,
)
def test_edited_descriptions_are_refused(path: tuple[str, ...], value: object) -> None:
    data = json.loads(json.dumps(Mechanism(noise=Gaussian(sigma=1.0)).to_dict()))
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    if path == ("noise", "sigma") and value == "1":
        assert Mechanism.from_dict(data).noise == Gaussian(sigma=1.0)  # numbers may be text
        return
    with pytest.raises(ValueError, match=r"Expected|Unknown|Not the description"):
        Mechanism.from_dict(data)


@pytest.mark.parametrize("key", ["noise", "sensitivity", "sampling", "relation"])
def test_missing_parts_are_refused(key: str) -> None:
    data = Mechanism(noise=Gaussian(sigma=1.0)).to_dict()
    del data[key]
    with pytest.raises(ValueError, match=key):
        Mechanism.from_dict(data)


def test_edited_sampling_is_refused_as_unproved() -> None:
    data = json.loads(json.dumps(Mechanism(noise=Gaussian(sigma=1.0)).to_dict()))
    data["sampling"]["kind"] = "shuffle"
    with pytest.raises(NoDominatingPair, match="shuffle"):
        Mechanism.from_dict(data)
