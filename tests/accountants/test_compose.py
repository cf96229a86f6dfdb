"""The tilted FFT against direct convolution, closed forms and high precision."""

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accountants import _compose
from accountants._compose import Composition, Window, tilted_window
from accountants._discretise import Lattice, bracket
from accountants.exact import gaussian_log_delta
from accountants.pld import PLD
from dpmech import Gaussian, Mechanism, Sampling, TruncatedLaplace
from dpmech.noise import Floats

STEP = 0.05
TILTS = (0.0, 0.7, 3.0, 12.0)


def lattice(p: Floats, start: int, offset: float = 0.0, infinite: float = 0.0) -> Lattice:
    return Lattice(
        p=p * (1 - infinite) / np.sum(p),
        start=start,
        step=STEP,
        offset=offset,
        infinite=infinite,
        slack=0.0,
    )


def random_lattice(seed: int, size: int = 23) -> Lattice:
    rng = np.random.default_rng(seed)
    p = rng.random(size) ** 3 * np.exp(-0.3 * np.arange(size))
    return lattice(p, start=-8, offset=0.013)


def convolved(composition: Composition) -> tuple[Floats, Floats]:
    """(losses, masses) of the composition by direct convolution."""
    total, low = np.ones(1), 0.0
    for part, count in composition.parts:
        for _ in range(count):
            total = np.convolve(total, part.p)
            low += float(part.losses[0])
    return low + composition.step * np.arange(len(total)), total


def direct_delta(composition: Composition, epsilon: float) -> float:
    losses, p = convolved(composition)
    return float(np.sum(p * -np.expm1(np.minimum(epsilon - losses, 0.0))))


def compositions() -> Iterator[Composition]:
    for count in (1, 2, 7, 50):
        yield Composition(parts=((random_lattice(1), count),))
    yield Composition(parts=((random_lattice(1), 3), (random_lattice(2, 40), 11)))
    yield Composition(parts=((random_lattice(3, 5), 20), (lattice(np.ones(1), 2), 4)))


@pytest.mark.parametrize(
    "composition", list(compositions()), ids=lambda c: str([n for _, n in c.parts])
)
def test_delta_is_that_of_the_convolution(composition: Composition) -> None:
    losses, _ = convolved(composition)
    for tilt in TILTS:
        window = tilted_window(composition, tilt)
        mean = composition.cumulants(tilt)[1]
        for epsilon in mean + STEP * np.array([-3.3, -1.0, 0.0, 0.4, 2.5]):
            true = direct_delta(composition, float(epsilon))
            lower, upper = window.lower_delta(float(epsilon)), window.upper_delta(float(epsilon))
            assert lower <= true * (1 + 1e-12) + 1e-300
            assert true <= upper * (1 + 1e-12)
            if true > 0 and epsilon < losses[-1] - STEP:
                assert upper - lower <= 1e-8 * true


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    tilt=st.floats(0.0, 15.0),
    place=st.floats(-0.1, 1.1),
)
def test_bounds_hold_at_any_tilt_and_level(
    seed: int, counts: list[int], tilt: float, place: float
) -> None:
    composition = Composition(
        parts=tuple((random_lattice(seed + i, 9 + i), n) for i, n in enumerate(counts))
    )
    window = tilted_window(composition, tilt)
    epsilon = composition.lowest + place * (composition.highest - composition.lowest)
    true = direct_delta(composition, epsilon)
    assert window.lower_delta(epsilon) <= true * (1 + 1e-11) + 1e-300
    assert true <= window.upper_delta(epsilon) * (1 + 1e-11) + 1e-300


def test_the_window_holds_the_tilted_law() -> None:
    for composition in compositions():
        losses, p = convolved(composition)
        for tilt in TILTS:
            window = tilted_window(composition, tilt)
            log_moment, mean, variance = composition.cumulants(tilt)
            tilted = p * np.exp(tilt * losses - log_moment)
            assert np.sum(tilted) == pytest.approx(1.0, rel=1e-10)
            assert np.sum(window.mass) == pytest.approx(1.0, rel=1e-10)
            assert float(tilted @ losses) == pytest.approx(mean, abs=1e-9)
            assert float(tilted @ (losses - mean) ** 2) == pytest.approx(variance, abs=1e-9)
            inside = (window.losses > losses[0] - STEP / 2) & (
                window.losses < losses[-1] + STEP / 2
            )
            found = np.interp(window.losses[inside], losses, tilted)
            assert window.mass[inside] == pytest.approx(found, abs=1e-12 + window.error)


def test_chernoff_tail_is_above_the_true_tail() -> None:
    for composition in compositions():
        losses, p = convolved(composition)
        for level in np.linspace(losses[0], losses[-1] + STEP, 30):
            tail = float(np.sum(p[losses > level]))
            bound = math.exp(composition.log_tail(float(level)))
            assert tail <= bound * (1 + 1e-9)


# Wrap-around: cells that a window is too small for come in again at its other end.


def wrapping(bound: float, composition: Composition) -> tuple[Window, float, float]:
    window = tilted_window(composition, 3.0)
    epsilon = composition.cumulants(3.0)[1] + 0.3 * STEP
    assert window.log_outside == pytest.approx(bound, abs=2.0)
    return window, float(epsilon), direct_delta(composition, float(epsilon))


@pytest.mark.parametrize("log_outside", [-1.0, -3.0, -8.0])
def test_a_window_cut_too_small_is_covered_by_the_bounds(
    monkeypatch: pytest.MonkeyPatch, log_outside: float
) -> None:
    composition = Composition(parts=((random_lattice(4, 60), 30),))
    monkeypatch.setattr(_compose, "_LOG_OUTSIDE", log_outside)
    window, epsilon, true = wrapping(log_outside, composition)
    assert len(window.mass) < len(convolved(composition)[1])
    assert window.lower_delta(epsilon) <= true <= window.upper_delta(epsilon)


def test_the_bounds_are_what_covers_it(monkeypatch: pytest.MonkeyPatch) -> None:
    composition = Composition(parts=((random_lattice(4, 60), 30),))
    monkeypatch.setattr(_compose, "_LOG_OUTSIDE", -1.0)
    window, epsilon, true = wrapping(-1.0, composition)
    # The same window without its allowance claims more than there is.
    assert replace(window, log_outside=-math.inf).lower_delta(epsilon) > true * 1.01


def test_a_lost_upper_tail_is_covered(monkeypatch: pytest.MonkeyPatch) -> None:
    composition = Composition(parts=((random_lattice(4, 60), 30),))
    monkeypatch.setattr(_compose, "_LOG_OUTSIDE", -1.0)
    window = tilted_window(composition, 0.0)
    epsilon = float(window.losses[-1]) + STEP
    assert direct_delta(composition, epsilon) > 0
    assert window.upper_delta(epsilon) >= direct_delta(composition, epsilon)


def test_infinite_masses_compose() -> None:
    parts = ((lattice(np.ones(3), 0, infinite=0.1), 2), (lattice(np.ones(3), 0, infinite=1e-20), 3))
    assert Composition(parts=parts).infinite == pytest.approx(1 - 0.81, rel=1e-12)
    assert Composition(parts=parts[1:]).infinite == pytest.approx(3e-20, rel=1e-9)


def test_parts_without_finite_mass() -> None:
    gone = Lattice(p=np.zeros(3), start=0, step=STEP, offset=0.0, infinite=1.0, slack=0.0)
    composition = Composition(parts=((gone, 1), (random_lattice(1), 2)))
    assert composition.infinite == 1.0
    assert tilted_window(composition, 1.0).upper_delta(0.5) < 1e-250


def test_disjoint_supports_cost_everything() -> None:
    disjoint = TruncatedLaplace(b=1.0, bound=0.4)
    alone = PLD().compose(Mechanism(noise=disjoint))
    assert alone.epsilon(0.5) == math.inf
    assert alone.delta_interval(1.0) == (1.0, 1.0)
    with_more = alone.compose(Mechanism(noise=Gaussian(sigma=1.0)))
    assert with_more.delta_interval(1.0) == (1.0, 1.0)
    # Sampled three times at 1/10: seen with probability 1 - .9^3, and nothing is lost otherwise.
    sampled = PLD().compose(Mechanism(noise=disjoint, sampling=Sampling(rate=0.1)), 3)
    low, high = sampled.delta_interval(1.0)
    assert (low, high) == (pytest.approx(0.271, abs=1e-7), pytest.approx(0.271, abs=1e-7))
    assert sampled.epsilon(0.2) == math.inf


@pytest.mark.parametrize("count", [1, 1000])
@pytest.mark.parametrize("log10_delta", [-1, -8, -30])
def test_gaussians_compose_exactly_down_to_tiny_delta(count: int, log10_delta: int) -> None:
    mp = pytest.importorskip("mpmath")
    sigma = 0.9 * math.sqrt(count)
    delta = 10.0**log10_delta
    low, high = PLD().compose(Mechanism(noise=Gaussian(sigma=sigma)), count).epsilon_interval(delta)
    mu = mp.mpf(1) / mp.mpf(0.9)

    def true_delta(epsilon: float) -> object:
        e = mp.mpf(epsilon)
        return mp.ncdf(mu / 2 - e / mu) - mp.exp(e) * mp.ncdf(-mu / 2 - e / mu)

    with mp.workdps(60):
        assert true_delta(high) <= delta
        assert low == 0.0 or true_delta(low) >= delta
    assert high - low <= 2e-4 * high
    assert gaussian_log_delta(high, 0.9) <= math.log(delta) + 1e-9


def test_heterogeneous_composition_needs_no_order() -> None:
    pair = Mechanism(noise=Gaussian(sigma=1.0)).pairs()[0]
    other = Mechanism(noise=Gaussian(sigma=2.0), sampling=Sampling(rate=0.2)).pairs()[0]
    parts = [(bracket(p, 0.02, 1e-20)[1], n) for p, n in ((pair, 2), (other, 30))]
    deltas = [
        tilted_window(Composition(parts=order), 5.0).upper_delta(4.0)
        for order in (tuple(parts), tuple(parts[::-1]))
    ]
    assert deltas[0] == pytest.approx(deltas[1], rel=1e-9)
    split = Composition(parts=(parts[0], (parts[1][0], 13), (parts[1][0], 17)))
    assert tilted_window(split, 5.0).upper_delta(4.0) == pytest.approx(deltas[0], rel=1e-9)
