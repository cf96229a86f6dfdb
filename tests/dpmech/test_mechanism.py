"""Mechanisms: what has a proved pair, what is refused, and what the refusal offers instead."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from accountants.pld import PLD
from dpmech import (
    Gaussian,
    Laplace,
    Mechanism,
    NoDominatingPair,
    Noise,
    Sampling,
    Sensitivity,
)
from dpmech.guarantee import Guarantee
from dpmech.loss import SubsampledPair
from dpmech.parse import DEFAULTS, OTHERS
from dpmech.relations import RELATIONS
from dpmech.spherical import Spherical, SphericalGeneralizedGaussian

NORMS = ("l1", "l2", "linf")


def test_spherical_noise_is_for_vectors_of_its_dimension() -> None:
    law = SphericalGeneralizedGaussian(scale=1.0, beta=1.4, dim=2)
    assert Mechanism(noise=law, sensitivity=Sensitivity(dim=2)).pairs()
    with pytest.raises(ValueError, match="dim=1 of the query and dim=2"):
        Mechanism(noise=law).pairs()
    for norm in ("l1", "linf"):
        with pytest.raises(NoDominatingPair, match=norm):
            Mechanism(noise=law, sensitivity=Sensitivity(norm=norm, dim=2)).pairs()  # type: ignore[arg-type]


@pytest.mark.parametrize("noise", [n for n in OTHERS if not isinstance(n, Spherical)], ids=str)
def test_laws_without_a_density_are_for_scalars(noise: Noise) -> None:
    assert Mechanism(noise=noise).pairs()
    if isinstance(noise, Guarantee):
        return  # refuses every sensitivity of its own
    with pytest.raises(NoDominatingPair, match="vector"):
        Mechanism(noise=noise, sensitivity=Sensitivity(norm="l1", bound=1.0, dim=2)).pairs()


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


REFUSED_KINDS = {
    "fixed-size": "amplifies nothing",
    "fixed-cohort": "amplifies nothing",
    "shuffle": "Chua et al. 2024",
    "balls-and-bins": "do not compose one by one",
    "balls-in-bins": "do not compose one by one",
    "random-allocation": "do not compose one by one",
    "with-replacement": "several contributions",
    "Poisson": "none of poisson and without-replacement",
    "": "none of poisson and without-replacement",
}


@pytest.mark.parametrize(("kind", "reason"), REFUSED_KINDS.items())
def test_other_sampling_is_refused_with_its_own_reason(kind: str, reason: str) -> None:
    with pytest.raises(NoDominatingPair, match="not Poisson sampling") as caught:
        Sampling(rate=0.1, kind=kind)
    assert repr(kind) in caught.value.reason
    assert reason in caught.value.reason
    assert caught.value.reason.replace("et al. ", "").count(". ") == 0  # one sentence
    check_sampling_alternative(caught.value.alternative)


def check_sampling_alternative(alternative: str) -> None:
    """Every alternative that is named is itself legal."""
    assert "kind='poisson'" in alternative
    assert Sampling(rate=0.1, kind="poisson").rate == 0.1
    gaussian = Gaussian(sigma=1.0)
    if "rate=1 with relation='zero-out'" in alternative:
        assert Mechanism(noise=gaussian, relation="zero-out").pairs()
    if "kind='without-replacement' with relation='replace-one'" in alternative:
        sampling = Sampling(rate=0.1, kind="without-replacement")
        assert Mechanism(noise=gaussian, sampling=sampling, relation="replace-one").pairs()


@pytest.mark.parametrize("relation", ["replace", "user", ""])
def test_other_relations_are_refused(relation: str) -> None:
    with pytest.raises(NoDominatingPair) as caught:
        Mechanism(noise=Gaussian(sigma=1.0), relation=relation)
    assert repr(relation) in caught.value.reason
    for name in RELATIONS:
        assert f"relation={name!r}" in caught.value.alternative
        Mechanism(noise=Gaussian(sigma=1.0), relation=name)


@pytest.mark.parametrize("relation", ["add-remove", "zero-out"])
@pytest.mark.parametrize("rate", [0.1, 1.0])
def test_without_replacement_is_for_replaced_records_only(relation: str, rate: float) -> None:
    sampling = Sampling(rate=rate, kind="without-replacement")
    with pytest.raises(NoDominatingPair, match="another record takes the place") as caught:
        Mechanism(noise=Gaussian(sigma=1.0), sampling=sampling, relation=relation)
    assert repr(relation) in caught.value.reason
    Mechanism(noise=Gaussian(sigma=1.0), sampling=sampling, relation="replace-one")


def test_accountants_of_an_addition_get_no_replaced_record() -> None:
    replaced = Mechanism(noise=Gaussian(sigma=1.0), relation="replace-one")
    with pytest.raises(NoDominatingPair, match="replace-one"):
        replaced.base_pair()
    assert replaced.as_add_remove() == Mechanism(
        noise=Gaussian(sigma=1.0), sensitivity=Sensitivity(bound=2.0)
    )
    sampled = Mechanism(
        noise=Gaussian(sigma=1.0), sampling=Sampling(rate=0.5), relation="replace-one"
    )
    with pytest.raises(NoDominatingPair, match=r"rate=0\.5"):
        sampled.as_add_remove()
    zeroed = Mechanism(noise=Laplace(b=1.0), sampling=Sampling(rate=0.5), relation="zero-out")
    assert zeroed.as_add_remove() == Mechanism(noise=Laplace(b=1.0), sampling=Sampling(rate=0.5))


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


def test_only_the_ratio_of_noise_to_sensitivity_counts(law_with_levels: Noise) -> None:
    levels = np.array([-0.4137, -0.0531, 0.0531, 0.2113])
    for rate in (1.0, 0.2):
        small, large = (
            Mechanism(
                noise=law_with_levels.scaled(c),
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


@pytest.mark.parametrize("noise", OTHERS, ids=str)
@pytest.mark.parametrize("relation", RELATIONS)
def test_json_round_trip_of_the_rest(noise: Noise, relation: str) -> None:
    kind = "without-replacement" if relation == "replace-one" else "poisson"
    sampling = Sampling(rate=0.25, kind=kind)
    mechanism = Mechanism(noise=noise, sampling=sampling, relation=relation)
    assert Mechanism.from_dict(json.loads(json.dumps(mechanism.to_dict()))) == mechanism


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


def test_releases_from_one_sample_are_one_gaussian() -> None:
    """mu^2 adds before sampling: at rate 1 that is composition, below it costs more."""
    at = Sampling(rate=0.05)
    step = Mechanism(
        noise=Gaussian(sigma=1.2), sensitivity=Sensitivity(dim=9, bound=1.5), sampling=at
    )
    share = Mechanism(noise=Gaussian(sigma=2.0), sensitivity=Sensitivity(bound=0.5), sampling=at)
    joint = step.jointly(share)
    assert joint.sensitivity.bound == pytest.approx(math.hypot(1.5 / 1.2, 0.5 / 2.0))
    assert (joint.sensitivity.dim, joint.sampling, joint.noise) == (10, at, Gaussian(sigma=1.0))
    whole = replace(step, sampling=Sampling()).jointly(replace(share, sampling=Sampling()))
    apart = (
        PLD()
        .compose(replace(step, sampling=Sampling()))
        .compose(replace(share, sampling=Sampling()))
    )
    assert PLD().compose(whole).epsilon(1e-6) == pytest.approx(apart.epsilon(1e-6), rel=1e-9)
    # From two samples it is less: a record must be in both to lose both at once.
    twice = PLD().compose(step, 100).compose(share, 100).epsilon(1e-6)
    assert PLD().compose(joint, 100).lower_epsilon(1e-6) > twice * (1 + 1e-3)


def test_what_is_not_one_gaussian_release_is_not_joined() -> None:
    step = Mechanism(noise=Gaussian(sigma=1.2), sampling=Sampling(rate=0.05))
    with pytest.raises(NoDominatingPair, match=r"laplace:b=1\.0 released jointly"):
        step.jointly(Mechanism(noise=Laplace(b=1.0), sampling=Sampling(rate=0.05)))
    with pytest.raises(NoDominatingPair, match="jointly"):
        step.jointly(replace(step, sensitivity=Sensitivity(norm="linf", dim=3)))
    with pytest.raises(ValueError, match=r"rate=0\.1"):
        step.jointly(replace(step, sampling=Sampling(rate=0.1)))
