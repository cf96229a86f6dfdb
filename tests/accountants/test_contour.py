"""Composition by the contour integral against sums over all outcomes, and far off the saddle."""

import itertools
import math
from dataclasses import replace

import mpmath as mp
import numpy as np
import pytest

from accountants import _contour
from accountants._atoms import Atoms, Composed
from accountants._contour import Contour, Line, characteristic, cut_off, log_peak
from accountants._saddle import Saddle, line_through, saddle_for_delta, saddle_for_epsilon

RNG = np.random.default_rng(20261121)


def law(*atoms: tuple[float, float]) -> Atoms:
    losses, p = zip(*atoms, strict=True)
    return Atoms.of(np.array(losses), np.log(p), 0.0)


def binomial_delta(low: float, high: float, p: float, count: int, epsilon: float) -> float:
    """E (1 - e^(epsilon - S))_+ of a sum of ``count`` two-valued losses, at 50 digits."""
    with mp.workdps(50):
        total = mp.mpf(0)
        for k in range(count + 1):
            loss = mp.mpf(low) * (count - k) + mp.mpf(high) * k
            if loss > epsilon:
                mass = mp.binomial(count, k) * mp.mpf(p) ** k * (1 - mp.mpf(p)) ** (count - k)
                total += mass * (1 - mp.exp(epsilon - loss))
        return float(total)


def bounds(composed: Composed, epsilon: float, gap: float = 1e-4) -> tuple[float, float]:
    saddle = saddle_for_epsilon(composed, epsilon, 1e6)
    line = line_through(saddle, composed, gap)
    low = Contour(composed=composed, line=line, above=False).log_delta(epsilon)
    high = Contour(composed=composed, line=line, above=True).log_delta(epsilon)
    return math.exp(low), math.exp(high)


@pytest.mark.parametrize("count", [1, 2, 7, 100, 1000])
@pytest.mark.parametrize("deviations", [0.5, 3.0, 8.0])
def test_two_valued_losses(count: int, deviations: float) -> None:
    """Randomised response: S is on a lattice, whose characteristic function never decays."""
    low, high, p = -0.1, 0.1, math.exp(0.1) / (1 + math.exp(0.1))
    mean, std = count * (p * high + (1 - p) * low), 0.2 * math.sqrt(count * p * (1 - p))
    epsilon = min(mean + deviations * std, 0.93 * 0.1 * count)
    truth = binomial_delta(low, high, p, count, epsilon)
    found = bounds(Composed(parts=[(law((low, 1 - p), (high, p)), count)]), epsilon)
    assert found[0] <= truth <= found[1]
    assert found[1] - found[0] <= 1e-3 * truth


@pytest.mark.parametrize("trial", range(12))
def test_unequal_parts_against_enumeration(trial: int) -> None:
    """Three different laws of three atoms, twice each: 729 outcomes."""
    parts = []
    for _ in range(3):
        losses, p = RNG.normal(0.2, 1.0, 3), RNG.dirichlet(np.ones(3))
        parts.append((Atoms.of(losses, np.log(p), 0.0), 2))
    composed = Composed(parts=parts)
    top = composed.highest
    epsilon = float(RNG.uniform(0.0, 0.9)) * top if top > 0 else 0.1
    laws = [atoms for atoms, _ in parts for _ in range(2)]
    truth = 0.0
    for outcome in itertools.product(*(range(len(a.losses)) for a in laws)):
        loss = sum(a.losses[i] for a, i in zip(laws, outcome, strict=True))
        mass = math.exp(sum(a.log_p[i] for a, i in zip(laws, outcome, strict=True)))
        truth += mass * max(0.0, -math.expm1(epsilon - loss))
    low, high = bounds(composed, epsilon)
    assert low <= truth * (1 + 1e-12)
    assert high >= truth * (1 - 1e-12)
    assert high - low <= 2e-3 * truth
    assert trial >= 0


@pytest.mark.parametrize("tilt", [0.05, 0.5, 30.0, 400.0])
@pytest.mark.parametrize("smoothing", [0.5, 0.1, 1e-3])
@pytest.mark.parametrize("period", [3.0, 40.0])
def test_any_line_gives_bounds(tilt: float, smoothing: float, period: float) -> None:
    """Far from the saddle, smoothed too much, with images near: useless perhaps, never wrong."""
    p = math.exp(0.3) / (1 + math.exp(0.3))
    composed = Composed(parts=[(law((-0.3, 1 - p), (0.3, p)), 50)])
    step, a = 2 * math.pi / period, min(smoothing, 10 / tilt)
    for count in (5, 200, 5000):
        line = Line(tilt=tilt, step=step, count=count, smoothing=a, up=0.7, down=min(tilt, 0.4))
        for epsilon in (0.5, 3.0, 9.0, 14.0):
            truth = binomial_delta(-0.3, 0.3, p, 50, epsilon)
            low = Contour(composed=composed, line=line, above=False).log_delta(epsilon)
            high = Contour(composed=composed, line=line, above=True).log_delta(epsilon)
            assert low <= math.log(truth) + 1e-12
            assert high >= math.log(truth) - 1e-12


@pytest.mark.parametrize("forgotten", ["rounding", "cut-off", "images", "smoothing below"])
def test_every_bound_is_needed(forgotten: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plants the bug: with one of the terms left out, some bound is on the wrong side."""
    wrong, checked = 0, 0
    for attempt in range(2):
        if attempt:
            if forgotten == "rounding":
                monkeypatch.setattr(_contour, "_U", 0.0)
            elif forgotten == "cut-off":
                monkeypatch.setattr(_contour, "cut_off", lambda *a, **k: 0.0)
            elif forgotten == "images":
                monkeypatch.setattr(Contour, "_log_images", lambda self, epsilon: -math.inf)
            else:
                plain = property(
                    lambda self: np.exp((z := self.line.tilt + 1j * self.line.frequencies) ** 2
                                        * self.line.smoothing**2 / 2) / (z * (z + 1))
                )  # fmt: skip
                monkeypatch.setattr(Contour, "_kernel", plain)
        wrong = 0
        for tilt, smoothing, period, count in [
            (1.0, 1e-3, 60.0, 60_000),
            (6.0, 0.3, 30.0, 40),
            (0.3, 0.3, 6.0, 400),
            (5.0, 0.4, 60.0, 4000),
        ]:
            p = math.exp(0.3) / (1 + math.exp(0.3))
            composed = Composed(parts=[(law((-0.3, 1 - p), (0.3, p)), 50)])
            line = Line(
                tilt=tilt, step=2 * math.pi / period, count=count, smoothing=smoothing,
                up=1.0, down=min(tilt, 0.5),
            )  # fmt: skip
            for epsilon in np.linspace(0.1, 14.9, 75):
                truth = math.log(binomial_delta(-0.3, 0.3, p, 50, float(epsilon)))
                low = Contour(composed=composed, line=line, above=False).log_delta(float(epsilon))
                high = Contour(composed=composed, line=line, above=True).log_delta(float(epsilon))
                wrong += low > truth + 1e-13 or high < truth - 1e-13
                checked += 1
        if not attempt:
            assert wrong == 0
    assert checked == 600
    assert wrong > 0


def test_the_characteristic_function_is_the_sum() -> None:
    weight, losses = RNG.dirichlet(np.ones(700)), RNG.normal(0, 0.3, 700)
    for count in (1, 2, 3, 100, 1025):
        block = 1 << max(1, math.ceil(math.log2(count) / 2))
        t = 0.37 * np.arange(count)
        direct = np.exp(1j * np.outer(t, losses)) @ weight
        assert characteristic(weight, losses, 0.37, (count, block), chunk=100) == pytest.approx(
            direct, abs=1e-13
        )


def test_the_rest_beyond_the_last_frequency() -> None:
    """Against the integral of the kernel's modulus."""
    for tilt, a, last in [(0.5, 0.1, 20.0), (20.0, 0.05, 60.0)]:
        for above in (True, False):
            lift = tilt * (tilt + 1) if above else tilt**2

            def kernel(t: float, a: float = a, lift: float = lift, above: bool = above) -> float:
                extra = 0 if above else (1 + 2 * a) * a * a
                return math.exp(a * a * (lift - t * t) / 2) * (1 / (t * t) + extra)

            truth = float(mp.quad(kernel, [last, last + 5 / a, last + 40 / a])) / math.pi
            assert truth <= cut_off(tilt, a, last, above=above) <= 3 * truth


def test_the_peak_of_the_tilted_kernel() -> None:
    y = np.linspace(1e-4, 50, 500_000)
    for t in (0.0, 0.1, 1.0, 30.0):
        best = float(np.max(np.log(-np.expm1(-y)) - t * y))
        assert best <= log_peak(t) + 1e-12
        assert log_peak(t) == pytest.approx(best, abs=1e-3)


def test_the_saddle_estimates_delta() -> None:
    p = math.exp(0.1) / (1 + math.exp(0.1))
    composed = Composed(parts=[(law((-0.1, 1 - p), (0.1, p)), 2000)])
    saddle = saddle_for_delta(composed, math.log(1e-9), 1e6)
    truth = binomial_delta(-0.1, 0.1, p, 2000, saddle.epsilon)
    assert saddle.log_delta == pytest.approx(math.log(truth), abs=0.1)
    assert saddle.log_delta == pytest.approx(math.log(1e-9), abs=0.3)
    known = saddle.known(saddle.log_delta - 2)
    assert (known.hidden, known.log_share) == pytest.approx((2.0, saddle.log_share - 2))
    assert replace(known, hidden=0.0).tilt == saddle.tilt


def test_a_steeper_tilt_than_asked_for_is_not_sought() -> None:
    """Where the highest atom outweighs delta there is no saddle."""
    composed = Composed(parts=[(law((-1.0, 0.4), (1.0, 0.6)), 2)])
    saddle = saddle_for_delta(composed, math.log(1e-12), 1e3)
    assert isinstance(saddle, Saddle)
    assert 1e3 <= saddle.tilt * saddle.epsilon <= 1e4
