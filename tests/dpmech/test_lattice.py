"""Laws on a lattice: what is drawn is, to the last unit of 2^-128, what is accounted for."""

from __future__ import annotations

import itertools
import json
import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from accountants import PLD
from dpmech import (
    Gaussian,
    Laplace,
    Mechanism,
    Noise,
    Sampling,
    Sensitivity,
    Staircase,
    noise_from_dict,
)
from dpmech.discrete import DiscreteGaussian, DiscreteLaplace
from dpmech.drawing import BITS, Words, secret_words
from dpmech.lattice import LatticeNoise
from dpmech.mixture import LMO
from dpmech.tabulated import Tabulated

LAWS: tuple[tuple[Noise, float], ...] = (
    (Gaussian(sigma=3.0), 0.25),
    (Laplace(b=2.0), 0.5),
    (Staircase.least_mean_abs(1.0), 0.125),
    (LMO(), 0.125),
    (DiscreteGaussian(sigma=4.0), 1.0),
    (DiscreteLaplace(b=3.0), 1.0),
    (Tabulated(edges=(0.0, 1.0, 2.0), masses=(0.6, 0.3), decay=0.25), 0.25),
)


def epsilon(noise: Noise, bound: float, *, steps: int = 1, rate: float = 1.0) -> float:
    mechanism = Mechanism(
        noise=noise,
        sensitivity=Sensitivity(norm="l2", bound=bound),
        sampling=Sampling(rate=rate),
    )
    return PLD().compose(mechanism, steps).epsilon(1e-6)


@pytest.mark.parametrize(("law", "step"), LAWS, ids=lambda v: getattr(v, "name", v))
def test_the_masses_are_the_laws_own_and_sum_to_one(law: Noise, step: float) -> None:
    found = LatticeNoise.rounded(law, step)
    assert found.weights[0] + 2 * sum(found.weights[1:]) == 2**BITS
    k = np.arange(6)
    if step == 1.0:
        expected = np.exp(law.logpdf(k))
    else:
        expected = law.sf(step * (k - 0.5)) - law.sf(step * (k + 0.5))
    np.testing.assert_allclose(np.exp(found.logpdf(k)), expected, rtol=1e-10)
    assert found.masses[-1] < 2.0**-100  # the support goes far beyond any delta


@pytest.mark.parametrize("seed", [0, 1])
def test_every_sum_of_weights_is_a_bound_to_the_last_unit(seed: int) -> None:
    rng = np.random.default_rng(seed)
    whole = np.sort(rng.integers(1, 2**40, 8))[::-1].astype(float)
    masses = np.concatenate([np.ldexp(whole, -44), np.ldexp([7.0, 7.0, 2.0, 1.0, 1.0], -BITS)])
    law = LatticeNoise(masses=tuple(masses))
    values = list(range(-len(masses), len(masses) + 1))
    bounds = list(itertools.accumulate(law.weights[abs(k)] for k in values))
    for k, bound in zip(values, bounds, strict=True):
        first = bound - law.weights[abs(k)]
        for draw in (first, bound - 1, first + law.weights[abs(k)] // 2):
            high, low = draw >> 64, draw & (2**64 - 1)
            given = iter([high, low])

            def words(count: int, given: object = given) -> Words:
                return np.array([next(given) for _ in range(count)], dtype=np.uint64)  # type: ignore[call-overload]

            assert law.draw(1, words).tolist() == [k], (k, draw - first)


@pytest.mark.parametrize(("law", "step"), LAWS, ids=lambda v: getattr(v, "name", v))
def test_draws_follow_the_masses_and_not_those_of_another_scale(law: Noise, step: float) -> None:
    found = LatticeNoise.rounded(law, step)
    drawn = found.draw(200_000, lambda n: RNG.integers(0, 2**64, n, dtype=np.uint64))
    assert drawn.dtype == np.int64
    assert chi_square(found, drawn) > 1e-6
    for factor in (2 / 3, 3 / 2):
        if step != 1.0:
            other = LatticeNoise.rounded(law.scaled(factor), step)
            assert chi_square(other, drawn) < 1e-12


RNG = np.random.default_rng(5)


def chi_square(law: LatticeNoise, drawn: np.ndarray) -> float:
    """The p-value of draws, values with few draws expected put together."""
    masses = np.exp(law.logpdf(np.arange(len(law.masses) + 1)))
    reach = int(np.sum(masses * len(drawn) > 20)) - 1
    inside = np.arange(-reach, reach + 1)
    expected = len(drawn) * np.exp(law.logpdf(inside))
    observed = np.array([np.sum(drawn == k) for k in inside])
    rest = len(drawn) - observed.sum(), len(drawn) - expected.sum()
    if rest[1] > 5:
        observed, expected = np.append(observed, rest[0]), np.append(expected, rest[1])
    return float(stats.chi2.sf(np.sum((observed - expected) ** 2 / expected), len(expected) - 1))


def test_the_cost_is_that_of_the_law_it_was_rounded_from() -> None:
    for law, step in ((Gaussian(sigma=3.0), 1 / 16), (Laplace(b=2.0), 1 / 16)):
        found = LatticeNoise.rounded(law, step)
        for steps, rate in ((1, 1.0), (20, 1.0), (50, 0.1)):
            ours = epsilon(found, 1 / step, steps=steps, rate=rate)
            theirs = epsilon(law, 1.0, steps=steps, rate=rate)
            assert ours == pytest.approx(theirs, rel=2e-3)


def test_what_only_one_law_has_is_lost_in_full() -> None:
    law = LatticeNoise(masses=(0.125, 0.125, 0.0625))
    losses, p, lost, _ = law.atoms(2)
    assert lost == pytest.approx(0.0625 + 0.125, rel=1e-12)  # k = 4, 5 of the law centred at 2
    assert float(np.sum(p)) == pytest.approx(1 - lost)
    assert np.all(np.isfinite(losses))
    assert law.atoms(9)[2] >= 1.0
    exact = (
        sum(
            (Fraction(max(law.weights[abs(k - 2)], 0)) if abs(k - 2) <= 3 else Fraction(0))
            for k in (4, 5)
        )
        / 2**BITS
    )
    assert lost >= exact
    mechanism = Mechanism(noise=law, sensitivity=Sensitivity(norm="l2", bound=2.0))
    assert PLD().compose(mechanism).delta(50.0) >= float(exact)


def test_a_law_read_back_is_the_same_to_the_last_unit() -> None:
    law = LatticeNoise.rounded(Gaussian(sigma=2.0), 0.25)
    again = noise_from_dict(json.loads(json.dumps(law.to_dict())))
    assert isinstance(again, LatticeNoise)
    assert again.weights == law.weights
    assert hash(again) == hash(law)


def test_words_of_the_system_are_not_repeated() -> None:
    words = np.concatenate([secret_words(1000), secret_words(1000)])
    assert len(np.unique(words)) == 2000
    law = LatticeNoise.rounded(Gaussian(sigma=2.0), 0.5)
    assert law.draw((3, 5)).shape == (3, 5)
    assert law.sample(4, np.random.default_rng(0)).dtype == np.float64


def test_laws_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match=r"whole multiples of 2\^-128"):
        LatticeNoise(masses=(0.1 * 2.0**-100,))
    with pytest.raises(ValueError, match="fall away from 0"):
        LatticeNoise(masses=(0.125, 0.25))
    with pytest.raises(ValueError, match="fall away from 0"):
        LatticeNoise(masses=(0.375,))
    with pytest.raises(ValueError, match="got 0"):
        LatticeNoise(masses=())
    with pytest.raises(ValueError, match=r"step=0\.5 to be 1"):
        LatticeNoise.rounded(DiscreteLaplace(b=1.0), 0.5)
    with pytest.raises(ValueError, match="at least for gaussian"):
        LatticeNoise.rounded(Gaussian(sigma=1.0), 1e-9)
    with pytest.raises(ValueError, match="scale by 2"):
        LatticeNoise(masses=(0.125,)).scaled(2.0)
    with pytest.raises(ValueError, match="whole number"):
        epsilon(LatticeNoise(masses=(0.125,)), 0.5)
    assert math.isclose(LatticeNoise(masses=(0.25,)).variance, 0.5)
