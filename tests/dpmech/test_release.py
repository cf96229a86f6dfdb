"""Exact releases: what is drawn, what the rounding costs, and that the digits tell nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from accountants import PLD, RDP
from dpmech import Gaussian, Laplace, Mechanism, Noise, Sampling, Sensitivity, Staircase
from dpmech.discrete import DiscreteGaussian
from dpmech.drawing import secret_words, seeded_words
from dpmech.mixture import LMO
from dpmech.release import ExactRelease, Rounded

SCALAR = Sensitivity(bound=1.0)


def nothing(count: int) -> np.ndarray:
    """Words of the middle of [0, 2^64): the noise is 0."""
    return np.full(count, 2**63, dtype=np.uint64)


def test_values_go_to_the_nearest_step_and_halves_up() -> None:
    release = ExactRelease(law=Gaussian(sigma=1.0), step=0.25)
    below = math.nextafter(0.125, 0)  # adding a half in floating point would round this one up
    values = [0.125, below, -0.125, -0.126, 7.0]
    assert release.whole(values).tolist() == [1, 0, 0, -1, 28]
    assert release.release([0.3, 7.0], nothing).tolist() == [0.25, 7.0]


@given(
    x=st.floats(-1e6, 1e6),
    move=st.floats(-3.0, 3.0),
    step=st.sampled_from([2.0**-k for k in range(-2, 12)]),
)
def test_no_scalar_moves_further_than_the_bound(x: float, move: float, step: float) -> None:
    y = x + move
    apart = Sensitivity(bound=max(abs(y - x), 1e-300))
    release = ExactRelease(law=Gaussian(sigma=64 * step), step=step, sensitivity=apart)
    first, second = release.whole([x, y])
    assert abs(first - second) <= release.steps


@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
@pytest.mark.parametrize("rounded", ["query", "contributions"])
def test_no_vector_moves_further_than_the_bound(norm: str, rounded: Rounded) -> None:
    rng, order = np.random.default_rng(0), {"l1": 1, "l2": 2, "linf": np.inf}[norm]
    worst = 0.0
    for dim in (2, 7, 300):
        bound = Sensitivity(norm=norm, bound=1.0, dim=dim)  # type: ignore[arg-type]
        law = Laplace(b=1.0) if norm == "l1" else Gaussian(sigma=1.0)
        release = ExactRelease(law=law, step=0.25, sensitivity=bound, rounded=rounded)
        for _ in range(200):
            x = rng.normal(size=dim) * (rng.random(dim) < rng.random())
            change = rng.choice([x, np.full(dim, 0.125 + 1e-12), np.sign(x)])
            change = change / max(1.0, float(np.linalg.norm(change, order)))
            base = np.zeros(dim) if rounded == "contributions" else rng.normal(size=dim)
            moved = release.whole(base + change) - release.whole(base)
            share = float(np.linalg.norm(moved, order)) / release.steps
            worst = max(worst, share)
            assert share <= 1
    assert worst > 0.5  # the bound is not idle


def test_a_scalar_has_the_masses_that_are_accounted_for() -> None:
    laws: tuple[Noise, ...] = (LMO(), Staircase.least_mean_abs(1.0), DiscreteGaussian(sigma=4.0))
    for law in laws:
        release = ExactRelease.of(law, SCALAR)
        assert release.distance == 0 == release.extra_delta(1.0, 1000)
        drawn = release.release(np.zeros(50_000), seeded_words(np.random.default_rng(3)))
        noise = release.mechanism().noise
        assert release.mechanism().sensitivity.bound == 1.0 / release.step
        assert np.all(drawn == np.round(drawn / release.step) * release.step)
        assert np.mean(drawn != 0) == pytest.approx(1 - noise.pdf(0.0), abs=0.01)
        # P(|X| > q) at the quartile, in steps
        quartile = float(noise.isf(0.25))
        share = np.mean(np.abs(drawn) > quartile * release.step)
        assert share == pytest.approx(2 * float(noise.sf(quartile)), abs=0.01)


def test_the_cost_of_a_scalar_is_that_of_the_law() -> None:
    release = ExactRelease.of(Gaussian(sigma=2.0), SCALAR)
    exact = PLD().compose(release.mechanism(), 10).epsilon(1e-6)
    plain = PLD().compose(Mechanism(noise=Gaussian(sigma=2.0)), 10).epsilon(1e-6)
    assert plain <= exact < plain * (1 + 1e-3)


def test_a_vector_costs_the_law_on_the_rounded_query() -> None:
    bound = Sensitivity(norm="l2", bound=1.0, dim=40_000)
    release = ExactRelease.of(Gaussian(sigma=1.0), bound, rounded="contributions")
    widened = 1 + math.sqrt(40_000) / 2 * release.step
    mechanism = release.mechanism(Sampling(rate=0.01))
    assert mechanism.sensitivity.bound == pytest.approx(widened, rel=1e-6)
    assert mechanism.sensitivity.bound <= 1.02
    assert mechanism.noise == Gaussian(sigma=1.0)
    assert PLD().compose(mechanism, 100).epsilon(1e-5) < 1.05 * PLD().compose(
        Mechanism(noise=Gaussian(sigma=1.0), sampling=Sampling(rate=0.01)), 100
    ).epsilon(1e-5)
    assert 0 < release.extra_delta(2.0, 1000) < 1e-24


def test_the_noise_of_a_vector_is_the_law_rounded() -> None:
    bound = Sensitivity(norm="l2", bound=1.0, dim=2)
    release = ExactRelease(law=Gaussian(sigma=1.5), step=0.5, sensitivity=bound)
    drawn = release.release(np.zeros((100_000, 2)), seeded_words(np.random.default_rng(5)))
    edges = 0.5 * (np.arange(-9, 9) - 0.5)
    expected = np.diff(stats.norm(scale=1.5).cdf(edges)) * drawn.size
    counts = np.histogram(drawn, edges)[0]
    chi2 = float(np.sum((counts - expected) ** 2 / expected))
    assert chi2 < stats.chi2(len(expected)).isf(1e-6)
    wrong = np.diff(stats.norm(scale=1.45).cdf(edges)) * drawn.size
    assert np.sum((counts - wrong) ** 2 / wrong) > stats.chi2(len(wrong)).isf(1e-6)


def test_the_digits_identify_nothing() -> None:
    """Whatever the query, outputs are multiples of the step, and no finer nor coarser ones."""
    release = ExactRelease.of(Laplace(b=1.0), SCALAR)
    for query in (0.0, 1.0, 1 / 3, 2.0**-24, 2.0**-53):
        drawn = release.release(np.full(20_000, query)) / release.step
        assert np.all(drawn == np.floor(drawn))
        assert np.mean(drawn % 2 == 0) == pytest.approx(0.5, abs=0.02)
    plain = 1 / 3 + np.random.default_rng(0).laplace(size=20_000)
    assert not np.all(plain / release.step == np.floor(plain / release.step))


def test_the_system_is_asked_by_default() -> None:
    release = ExactRelease.of(Gaussian(sigma=1.0), SCALAR)
    np.random.seed(0)  # noqa: NPY002 - what a user may have seeded must not matter
    first = release.release(np.zeros(20))
    np.random.seed(0)  # noqa: NPY002
    assert np.any(first != release.release(np.zeros(20)))
    assert secret_words(4).dtype == np.uint64


def test_a_sum_of_contributions_must_be_whole() -> None:
    bound = Sensitivity(norm="l2", bound=1.0, dim=3)
    release = ExactRelease.of(Gaussian(sigma=1.0), bound, rounded="contributions")
    total = release.whole([0.1, 0.2, 0.3]) + release.whole([0.5, 0.0, 0.0])
    assert release.release(total, nothing).tolist() == (total * release.step).tolist()
    with pytest.raises(ValueError, match="sum of whole contributions, got numbers of type float64"):
        release.release([0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"step": 0.3}, "power of two"),
        ({"step": 0.0}, "power of two"),
        ({"step": 2.0**-60}, "at least for"),
        ({"step": 0.5, "rounded": "all"}, "query or contributions"),
        (
            {"step": 0.5, "law": LMO(), "sensitivity": Sensitivity(dim=2)},
            "only theirs is proved",
        ),
    ],
)
def test_bad_input_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExactRelease(**{"law": Gaussian(sigma=1.0), **arguments})  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [math.nan, math.inf, -1e300])
def test_a_value_off_the_lattice_is_refused(value: float) -> None:
    release = ExactRelease.of(Gaussian(sigma=1.0), SCALAR)
    with pytest.raises(ValueError, match="up to 2\\^52 steps"):
        release.release([0.0, value])


def test_an_independent_law_on_a_vector_is_no_pair_but_has_renyi_bounds() -> None:
    bound = Sensitivity(norm="l2", bound=1.0, dim=10)
    release = ExactRelease.of(Laplace(b=1.0), bound)
    assert RDP().compose(release.mechanism()).epsilon(1e-5) < math.inf
