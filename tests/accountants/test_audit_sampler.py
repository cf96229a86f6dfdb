"""Draws against their law: faithful ones pass, wrong ones fail, and the power figures are true."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from accountants._audit_looks import _laplace_transform, looks_for
from accountants.audit import CutOff, SamplerTest, audit_draws, audit_sampler
from dpmech import LMO_PRESETS, Gaussian, Laplace, LaplaceMixture, Noise, Staircase
from dpmech.discrete import DiscreteGaussian, DiscreteLaplace
from dpmech.guarantee import ApproximateDP
from dpmech.lattice import LatticeNoise
from dpmech.noise import Floats
from dpmech.parse import DEFAULTS
from dpmech.skellam import Skellam
from dpmech.tabulated import Tabulated

LAWS: tuple[Noise, ...] = (
    *DEFAULTS,
    *LMO_PRESETS.values(),
    DiscreteGaussian(sigma=2.0),
    DiscreteLaplace(b=1.5),
    Skellam(mu=3.0),
    Tabulated(edges=(0.0, 1.0, 2.0, 3.0), masses=(0.2, 0.5, 0.3)),
    CutOff(Gaussian(sigma=1.0), 2.0),
)
GAUSSIAN = Gaussian(sigma=1.0)


def label(law: Noise) -> str:
    return str(law)[:40]


@pytest.mark.parametrize("law", LAWS, ids=label)
def test_faithful_draws_pass_and_others_do_not(law: Noise) -> None:
    rng = np.random.default_rng(11)
    assert audit_draws(law, law.sample(20_000, rng), level=1e-6).verdict == "consistent"
    for factor in (2 / 3, 3 / 2):
        wrong = audit_draws(law, law.scaled(factor).sample(20_000, rng))
        assert wrong.verdict == "refuted"
        assert wrong.sentence.startswith("Refuted: the 20000 draws are not")


@pytest.mark.parametrize("name", LMO_PRESETS)
def test_a_mean_taken_for_a_rate_is_caught(name: str) -> None:
    """The published sampler hands E's rate to a function that takes the mean."""
    law = LMO_PRESETS[name]
    wrong = replace(law, rate=1 / law.rate)
    rng = np.random.default_rng(2)
    audit = audit_sampler(law, lambda n: wrong.sample(n, rng))
    assert audit.verdict == "refuted"
    assert {"distribution", "transform", "tails"} <= {test.name for test in audit.rejected}
    assert audit_sampler(wrong, lambda n: wrong.sample(n, rng)).verdict == "consistent"


@pytest.mark.parametrize(
    "law", [LaplaceMixture((0.5, 5.0), (0.3, 0.7)), Skellam(mu=50.0)], ids=label
)
def test_the_power_is_what_it_says(law: Noise) -> None:
    """Each test that promises to catch an error of scale does, nineteen times in twenty."""
    rng = np.random.default_rng(4)
    promised = {t.name: t.power for t in audit_draws(law, law.sample(4_000, rng)).tests if t.power}
    assert promised.keys() == {"distribution", "transform", "tails", "cells"}
    for name, power in promised.items():
        for factor in (1 + power, 1 / (1 + power)):
            wrong = law.scaled(factor)
            audits = [audit_draws(law, wrong.sample(4_000, rng)) for _ in range(4)]
            caught = sum(name in {test.name for test in audit.rejected} for audit in audits)
            assert caught >= 3, (name, factor, caught)
        # And it is no gross understatement.
        assert power < (0.2 if name in ("transform", "tails") else 1.5)


def test_more_draws_catch_less() -> None:
    rng = np.random.default_rng(4)
    few, many = (audit_draws(GAUSSIAN, GAUSSIAN.sample(n, rng)).power for n in (5_000, 500_000))
    assert few is not None
    assert many is not None
    assert many < few / 5
    assert many < 0.01


@pytest.mark.parametrize(
    "law", [GAUSSIAN, Staircase.least_mean_abs(1.0), DiscreteLaplace(b=1.5)], ids=label
)
def test_p_values_are_those_of_a_faithful_sampler(law: Noise) -> None:
    """P(p <= x) is x at most, of each test: bounds may be above, never below."""
    rng = np.random.default_rng(6)
    looks = looks_for(law, doubles=True)
    found = [[look(law, law.sample(2_000, rng), 0.01).p_value for look in looks] for _ in range(40)]
    for column in np.array(found).T:
        for x in (0.05, 0.2, 0.5):
            allowed = x + 4 * np.sqrt(x * (1 - x) / len(column))
            assert np.mean(column <= x) <= allowed


def opposite(rng: np.random.Generator, count: int) -> Floats:
    return np.repeat(rng.standard_normal(count // 2), 2) * np.tile([1.0, -1.0], count // 2)


def single(rng: np.random.Generator, count: int) -> Floats:
    return rng.standard_normal(count, dtype=np.float32).astype(np.float64)


# What may be wrong: the test that is to see it, and a sampler of the Gaussian with it.
FAULTS: dict[str, tuple[str, Callable[[np.random.Generator, int], Floats]]] = {
    "a fixed seed": ("independence", lambda _, n: np.random.default_rng(1).standard_normal(n)),
    "pairs of opposite sign": ("independence", opposite),
    "single precision": ("repeats", single),
    "a positive bias": ("symmetry", lambda rng, n: rng.standard_normal(n) + 0.03),
    "cut tails": ("tails", lambda rng, n: np.clip(rng.standard_normal(n), -3, 3)),
    "a hole": ("cells", lambda rng, n: _without(rng.standard_normal(n), 0.5, 0.55)),
}


def _without(x: Floats, low: float, high: float) -> Floats:
    return np.where((x > low) & (x < high), -x, x)


@pytest.mark.parametrize("fault", FAULTS)
def test_other_faults(fault: str) -> None:
    (name, sampler), rng = FAULTS[fault], np.random.default_rng(3)
    audit = audit_sampler(GAUSSIAN, lambda n: sampler(rng, n))
    assert name in {test.name for test in audit.rejected}


def test_whole_numbers_are_counted_one_by_one() -> None:
    """Even numbers twice as likely as they should be, odd ones missing: same shape from afar."""
    law, rng = DiscreteGaussian(sigma=30.0), np.random.default_rng(8)
    even = 2 * np.floor((law.sample(100_000, rng) + rng.integers(0, 2, 100_000)) / 2)
    failed = {test.name: test.p_value for test in audit_draws(law, even).rejected}
    assert "cells" in failed
    assert failed["cells"] < 1e-100


@pytest.mark.parametrize(
    "law",
    [Laplace(b=2.0), LMO_PRESETS["0.7"], Staircase.least_mean_abs(1.0), DiscreteLaplace(b=1.5)],
    ids=label,
)
def test_the_transform(law: Noise) -> None:
    t = np.array([0.05, 0.3, 1.0, 4.0])
    got = _laplace_transform(law, t)
    if isinstance(law, Laplace):
        assert got == pytest.approx(1 / (1 + 2 * t), abs=1e-6)
    draws = np.abs(law.sample(400_000, np.random.default_rng(9)))
    assert got == pytest.approx([np.mean(np.exp(-x * draws)) for x in t], abs=4e-3)


def test_a_law_without_a_scale_has_no_power_figure() -> None:
    law, rng = LatticeNoise(masses=(0.125, 0.0625)), np.random.default_rng(1)
    audit = audit_draws(
        law, rng.choice([0, -1, 1, -2, 2], 5_000, p=[0.625, 0.125, 0.125, 0.0625, 0.0625])
    )
    assert (audit.verdict, audit.power) == ("consistent", None)
    assert audit.sentence.endswith("whole numbers to 2.")
    assert audit_draws(law, rng.integers(-2, 3, 5_000)).verdict == "refuted"


@pytest.mark.parametrize(
    ("draws", "said"),
    [
        (np.zeros(10), "Expected 1000 draws or more, got 10"),
        (np.full(2_000, np.nan), "Expected finite draws, got 2000"),
    ],
)
def test_draws_that_cannot_be_tested(draws: Floats, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        audit_draws(GAUSSIAN, draws)


def test_a_guarantee_cannot_be_drawn() -> None:
    with pytest.raises(ValueError, match="a guarantee has none"):
        audit_draws(ApproximateDP(epsilon=1.0), np.linspace(-1, 1, 2_000))
    with pytest.raises(ValueError, match="level=2"):
        audit_draws(GAUSSIAN, np.linspace(-1, 1, 2_000), level=2)
    assert isinstance(audit_draws(GAUSSIAN, np.linspace(-1, 1, 2_000)).tests[0], SamplerTest)
