"""Laws as text and as JSON: what is written is read back, and nonsense is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpmech import (
    LMO,
    LMO_PRESETS,
    Gaussian,
    Laplace,
    LaplaceMixture,
    Mechanism,
    Noise,
    PrivacyPlan,
    Staircase,
    Target,
    noise_from_dict,
    parse_noise,
)
from dpmech.parse import DEFAULTS, law_names

POSITIVE = st.floats(1e-6, 1e6)


def test_text_round_trip(every_law: Noise) -> None:
    assert parse_noise(str(every_law)) == every_law


def test_json_round_trip(every_law: Noise) -> None:
    assert noise_from_dict(json.loads(json.dumps(every_law.to_dict()))) == every_law


@given(st.lists(st.tuples(POSITIVE, POSITIVE), min_size=1, max_size=6))
def test_mixtures_survive_the_round_trip_to_the_last_bit(parts: list[tuple[float, float]]) -> None:
    scales, weights = zip(*parts, strict=True)
    law = LaplaceMixture(scales=scales, weights=weights)
    assert parse_noise(str(law)) == law
    assert noise_from_dict(json.loads(json.dumps(law.to_dict()))) == law
    assert sum(law.weights) == pytest.approx(1.0, rel=1e-14)


def test_keys_left_out_keep_their_defaults() -> None:
    for law in DEFAULTS:
        assert parse_noise(law.name) == law
        assert noise_from_dict({"name": law.name}) == law
    assert parse_noise("gaussian:sigma=2") == Gaussian(sigma=2.0)
    assert parse_noise(" staircase:epsilon=2 ") == Staircase(
        epsilon=2.0, width=1.0, gamma=Staircase.least_mean_abs(1.0).gamma
    )
    assert parse_noise("lmo:rate=2,size=3") == LMO(rate=2.0, size=3.0)
    assert law_names() == tuple(law.name for law in DEFAULTS)


def test_presets() -> None:
    for name, law in LMO_PRESETS.items():
        assert parse_noise(f"lmo:preset={name}") == law
    assert parse_noise("lmo:preset=2.0,size=4") == LMO_PRESETS["2"].scaled(4.0)


def test_short_keys_of_the_mixture() -> None:
    law = LaplaceMixture(scales=(0.5, 5.0, 9.0), weights=(0.3, 0.6, 0.1))
    assert parse_noise("laplace-mixture:b=.5/5/9,w=3/6/1") == law
    # Only the mixture: b is Laplace's own parameter.
    assert parse_noise("laplace:b=3") == Laplace(b=3.0)


REFUSED = [
    ("", "Unknown law ''"),
    ("gauss", "Unknown law 'gauss'; the laws are gaussian"),
    ("gaussian:mu=1", "Unknown parameter 'mu' of gaussian; it has sigma"),
    ("gaussian:sigma", "Expected key=value, got 'sigma'"),
    ("gaussian:sigma=wide", "Expected numbers"),
    ("gaussian:sigma=1/2", "Expected numbers"),
    ("gaussian:sigma=", "Expected numbers"),
    ("gaussian:sigma=-1", "sigma=-1.0"),
    ("gaussian:sigma=nan", "sigma=nan"),
    ("gaussian:sigma=1e999", "sigma=inf"),
    ("gaussian:w=1", "Unknown parameter 'w'"),
    ("gaussian:name=laplace", "numbers|Unknown"),
    ("laplace-mixture:b=1/2/3", "2 weights and 3 scales"),
    ("lmo:preset=5", "Unknown preset '5' of lmo; the presets are 0.3, 0.7, 2, 3"),
    ("lmo:a1=0,a3=0,a4=0", "a1=a3=a4=0"),
    ("gaussian:preset=2", "Unknown parameter 'preset'"),
    ("file:/nowhere/law.json", "No such file: '/nowhere/law.json'"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED, ids=[text or "empty" for text, _ in REFUSED])
def test_nonsense_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse_noise(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"name": "gaussian", "sigma": [1.0]},
        {"name": "gaussian", "sigma": None},
        {"name": "gaussian", "sigma": "wide"},
        {"name": "gaussian", "sigma": {}},
        {"name": "laplace-mixture", "scales": 1.0, "weights": [1.0]},
        {"name": "laplace-mixture", "scales": [1.0], "weights": 1.0},
        {"name": "laplace-mixture", "scales": ["x", 1.0]},
        {"name": ["gaussian"]},
        {"name": "gaussian", "Sigma": 1.0},
    ],
    ids=str,
)
def test_broken_dictionaries_are_refused(data: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"Expected|Unknown"):
        noise_from_dict(data)


@given(st.text(max_size=30))
def test_any_text_is_a_law_or_a_value_error(text: str) -> None:
    for written in (text, "lmo:" + text, "laplace-mixture:" + text):
        if written.startswith("file:"):
            continue
        try:
            assert isinstance(parse_noise(written), Noise)
        except ValueError:
            continue  # anything else than a refusal fails the test


def test_laws_from_files(tmp_path: Path) -> None:
    law = LaplaceMixture(scales=(0.5, 5.0), weights=(0.3, 0.7))
    plan = PrivacyPlan(
        target=Target(epsilon=1.0, delta=1e-5),
        mechanism=Mechanism(noise=law),
        steps=3,
        accountant="pld",
        epsilon=0.9,
    )
    plain, planned, stored = tmp_path / "law.json", tmp_path / "plan.json", tmp_path / "law.npz"
    plain.write_text(json.dumps(law.to_dict()))
    plan.save(planned)
    np.savez(stored, law=np.array(json.dumps(law.to_dict())))
    for path in (plain, planned, stored):
        assert parse_noise(f"file:{path}") == law


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cut.json", '{"name": "gaussian", "sig'),
        ("list.json", "[1, 2]"),
        ("number.json", "3"),
        ("binary.json", "\x00\x01"),
        ("empty.json", ""),
        ("empty.npz", ""),
        ("text.npz", "no archive"),
        ("noiseless.json", '{"mechanism": {"noise": 3}}'),
        ("other.json", '{"mechanism": 3}'),
        ("nameless.json", "{}"),
    ],
)
def test_files_that_hold_no_law(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ValueError, match=r"does not hold a law|Unknown law|Expected the desc"):
        parse_noise(f"file:{path}")


def test_npz_without_a_law(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, other=np.zeros(3))
    with pytest.raises(ValueError, match="does not hold a law"):
        parse_noise(f"file:{path}")
    pickled = tmp_path / "pickled.npz"
    np.savez(pickled, law=np.array([{"name": "gaussian"}], dtype=object))
    with pytest.raises(ValueError, match="does not hold a law"):
        parse_noise(f"file:{pickled}")
