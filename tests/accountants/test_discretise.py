"""One release on a grid: dominated curve <= true curve <= dominating curve, everywhere."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accountants._convex import capped_drops, convexified
from accountants._discretise import Lattice, bracket, fitted_step
from dpmech import (
    LMO,
    LMO_PRESETS,
    DominatingPair,
    Gaussian,
    GeneralizedGaussian,
    Laplace,
    LaplaceMixture,
    Mechanism,
    Noise,
    Sampling,
    Sensitivity,
    Staircase,
    TruncatedLaplace,
)
from dpmech.loss import CellMasses
from dpmech.noise import Floats

LAWS: tuple[Noise, ...] = (
    Gaussian(sigma=0.6),
    Gaussian(sigma=4.0),
    Laplace(b=0.7),
    GeneralizedGaussian(scale=1.0, beta=1.4),
    GeneralizedGaussian(scale=0.8, beta=3.0),
    GeneralizedGaussian(scale=1.3, beta=0.7),
    Staircase.least_mean_abs(1.0),
    Staircase(epsilon=0.6, width=1.9, gamma=0.8),
    TruncatedLaplace(b=1.0, bound=3.0),
    TruncatedLaplace.for_target(1.0, 1e-5),
    LMO_PRESETS["2"],
    LMO(a1=0.3, a3=0.2, a4=0.3, k=2.0, rate=0.4, low=0.0, high=3.0),
    LaplaceMixture(scales=(0.5, 5.0), weights=(0.3, 0.7)),
)
RATES = (1.0, 0.3, 1e-3)


# The truth, by other means than the pairs: where f(x-s) > e^eps f(x) is one interval.


def mass(law: Noise, a: Floats, b: Floats) -> Floats:
    right = law.sf(np.maximum(a, 0.0)) - law.sf(np.maximum(b, 0.0))
    return right + (law.sf(np.maximum(-b, 0.0)) - law.sf(np.maximum(-a, 0.0)))


def bisected(low: Floats, high: Floats, epsilon: Floats, pair: tuple[Noise, float]) -> Floats:
    """Where the loss, at most epsilon at low and above it at high, crosses; by halving."""
    law, shift = pair
    for _ in range(70):
        middle = (low + high) / 2
        above = law.logpdf(middle - shift) - law.logpdf(middle) > epsilon
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return high


def base_curve(law: Noise, shift: float, epsilon: Floats) -> Floats:
    """H at e^epsilon of (f(. - s), f), for any real epsilon."""
    # H(e^eps) = 1 - e^eps + e^eps H(e^-eps), the pair being its own mirror image.
    size = np.abs(epsilon)
    half = staircase_curve(law, shift, size) if isinstance(law, Staircase) else None
    half = interval_curve(law, shift, size) if half is None else half
    return np.where(epsilon < 0, -np.expm1(epsilon) + np.exp(epsilon) * half, half)


def interval_curve(law: Noise, shift: float, epsilon: Floats) -> Floats:
    end = min(law.support, shift + float(law.isf(1e-30)))
    falls = isinstance(law, LMO | LaplaceMixture) or (
        isinstance(law, GeneralizedGaussian) and law.beta < 1
    )
    top = np.full_like(epsilon, shift if falls else end * (1 - 1e-15))
    first = bisected(np.full_like(epsilon, shift / 2), top, epsilon, (law, shift))
    last = np.full_like(epsilon, law.support)
    if falls:
        last = bisected(np.full_like(epsilon, end), top, epsilon, (law, shift))
    reached = law.logpdf(top - shift) - law.logpdf(top) > epsilon
    inside = mass(law, first - shift, last - shift) - np.exp(epsilon) * mass(law, first, last)
    beyond = 0.0 if math.isinf(law.support) else float(law.sf(law.support - shift))
    return np.where(reached, np.maximum(inside, 0.0), 0.0) + beyond


def staircase_curve(law: Staircase, shift: float, epsilon: Floats) -> Floats:
    edges = law.width * (np.arange(200) + law.gamma)
    edges = np.concatenate([-edges[::-1], edges])
    cuts = np.unique(np.concatenate([edges, edges + shift]))
    middle, width = (cuts[1:] + cuts[:-1]) / 2, np.diff(cuts)
    p, q = law.pdf(middle - shift) * width, law.pdf(middle) * width
    return np.sum(np.maximum(p - np.exp(epsilon)[:, None] * q, 0.0), axis=1)


@dataclass(frozen=True)
class Truth:
    """The curve of one direction of the subsampled mechanism, from that of the base pair."""

    law: Noise
    shift: float
    rate: float
    add: bool

    def __call__(self, epsilon: Floats) -> Floats:
        gamma, q = np.exp(epsilon), self.rate
        if q == 1:
            return base_curve(self.law, self.shift, epsilon)
        if self.add:  # (Q - gamma (1-q) Q - gamma q P)_+
            left = 1 - gamma * (1 - q)
            some = left > 0
            level = np.where(some, gamma * q / np.where(some, left, 1.0), 1.0)
            return np.where(some, left * base_curve(self.law, self.shift, np.log(level)), 0.0)
        inner = 1 + (gamma - 1) / q  # q (P - inner Q)_+
        some = inner > 0
        level = np.log(np.where(some, inner, 1.0))
        return np.where(some, q * base_curve(self.law, self.shift, level), 1 - gamma)


def curve(lattice: Lattice, epsilons: Floats) -> Floats:
    """H of a lattice; mass it does not have sits at loss -inf."""
    gain = -np.expm1(np.minimum(epsilons[:, None] - lattice.losses, 0.0))
    return gain @ lattice.p + lattice.infinite


def violations(
    below: Lattice, above: Lattice, truth: Truth, epsilons: Floats
) -> tuple[float, float]:
    """By how much the dominated curve is above the truth, and the dominating one below it."""
    up, down = truth(epsilons + above.slack), truth(epsilons - below.slack)
    # The oracle's own rounding: it subtracts masses of order P(loss > epsilon) <= 1.
    over = curve(below, epsilons) - down
    under = up - curve(above, epsilons)
    return float(np.max(over)), float(np.max(under))


def pairs_of(law: Noise, shift: float, rate: float) -> list[tuple[DominatingPair, Truth]]:
    pairs = Mechanism(
        noise=law, sensitivity=Sensitivity(bound=shift), sampling=Sampling(rate=rate)
    ).pairs()
    return [(p, Truth(law, shift, rate, add)) for p, add in zip(pairs, (False, True), strict=False)]


def places(below: Lattice, count: int) -> Floats:
    """Losses on the levels, between them, close to them and outside."""
    losses, h = below.losses, below.step
    spread = np.linspace(losses[0] - 2 * h, losses[-1] + 2 * h, count)
    some = losses[:: max(1, len(losses) // 40)]
    return np.concatenate([spread, some, some + 0.37 * h, some + 1e-3 * h, [0.0]])


@pytest.mark.parametrize("law", LAWS, ids=lambda law: str(law)[:40])
def test_lattices_bracket_the_true_curve(law: Noise) -> None:
    for rate in RATES:
        for pair, truth in pairs_of(law, 1.0, rate):
            low, high = pair.loss_range(1e-9)
            for cells in (3.3, 40.7):
                step = fitted_step(pair, (high - low) / cells)
                below, above = bracket(pair, step, 1e-9)
                epsilons = places(below, 80)
                assert len(epsilons) >= 80
                over, under = violations(below, above, truth, epsilons)
                assert over < 1e-13
                assert under < 1e-13


@settings(max_examples=25)
@given(
    law=st.sampled_from(LAWS),
    shift=st.floats(0.2, 3.0),
    rate=st.one_of(st.just(1.0), st.floats(1e-4, 0.999)),
    cells=st.floats(1.5, 60.0),
    tail=st.sampled_from([1e-4, 1e-12]),
)
def test_lattices_bracket_for_any_shift_rate_and_step(
    law: Noise, shift: float, rate: float, cells: float, tail: float
) -> None:
    for pair, truth in pairs_of(law, shift, rate):
        low, high = pair.loss_range(tail)
        step = min(5.0, max(high - low, 1e-3) / cells)
        below, above = bracket(pair, step, tail)
        over, under = violations(below, above, truth, places(below, 30))
        assert over < 1e-13
        assert under < 1e-13


@pytest.mark.parametrize("law", LAWS, ids=lambda law: str(law)[:40])
def test_lattices_are_laws(law: Noise) -> None:
    for rate in RATES:
        for pair, _ in pairs_of(law, 1.0, rate):
            low, high = pair.loss_range(1e-12)
            below, above = bracket(pair, (high - low) / 100, 1e-12)
            for lattice in (below, above):
                assert np.all(lattice.p >= 0)
                assert 0 <= lattice.infinite <= 1
                assert len(lattice.losses) == len(lattice.p)
            assert below.p.sum() + below.infinite <= 1 + 1e-10
            # The dominating one loses nothing, and Q has no more than 1.
            assert above.p.sum() + above.infinite == pytest.approx(1.0, abs=1e-9)
            assert float(above.p @ np.exp(-above.losses)) <= 1 + 1e-8
            assert below.slack == above.slack < 1e-9


def test_the_gap_falls_like_the_square_of_the_step() -> None:
    for law in (Gaussian(sigma=1.0), LMO_PRESETS["2"], GeneralizedGaussian(scale=1.0, beta=1.4)):
        for rate in (1.0, 0.1):
            for pair, _ in pairs_of(law, 1.0, rate):
                gaps = []
                for step in (0.02, 0.005):
                    below, above = bracket(pair, step, 1e-14)
                    at = np.linspace(-0.03, 0.05, 401)
                    gaps.append(np.max(curve(above, at) - curve(below, at)))
                assert 0 < gaps[1] < gaps[0] / 10


def test_fitted_step_puts_the_atoms_on_the_grid() -> None:
    (pair,) = Mechanism(noise=Laplace(b=0.7)).pairs()
    step = fitted_step(pair, 0.1)
    assert step <= 0.1
    assert (2 / 0.7 / step) == pytest.approx(round(2 / 0.7 / step), abs=1e-9)
    (smooth,) = Mechanism(noise=Gaussian(sigma=1.0)).pairs()
    assert fitted_step(smooth, 0.1) == 0.1
    below, above = bracket(pair, step, 1e-12)
    # Half of the mass is at the highest loss: both lattices keep it there.
    assert curve(above, np.array([1.4]))[0] - curve(below, np.array([1.4]))[0] < 1e-9 + 0.1**2


# Planted bugs: each must break the bracket by far more than rounding.


@dataclass(frozen=True, kw_only=True)
class Altered:
    """A pair with the errors asked for."""

    pair: DominatingPair
    keep_mirrored: bool = True
    keep_infinite: bool = True

    @property
    def infinite_mass(self) -> float:
        return self.pair.infinite_mass if self.keep_infinite else 0.0

    def loss_range(self, tail: float) -> tuple[float, float]:
        return self.pair.loss_range(tail)

    def atoms(self) -> tuple[float, ...]:
        return self.pair.atoms()

    def masses(self, levels: Floats) -> CellMasses:
        cells = self.pair.masses(levels)
        if self.keep_mirrored:
            return cells
        gone = np.append(levels, np.inf) <= 0
        log_p, log_q = (np.where(gone, -np.inf, m) for m in (cells.log_p, cells.log_q))
        return replace(cells, log_p=log_p, log_q=log_q)


def broken(altered: Altered, truth: Truth) -> tuple[float, float]:
    below, above = bracket(altered, 0.05, 1e-9)
    return violations(below, above, truth, places(below, 80))


def test_a_skipped_half_is_noticed() -> None:
    for law in (Gaussian(sigma=0.6), LMO_PRESETS["2"], Laplace(b=0.7)):
        for pair, truth in pairs_of(law, 1.0, 0.3):
            over, under = broken(Altered(pair=pair), truth)
            assert max(over, under) < 1e-13
            assert broken(Altered(pair=pair, keep_mirrored=False), truth)[1] > 1e-3


def test_infinite_mass_dropped_is_noticed() -> None:
    law = TruncatedLaplace(b=1.0, bound=3.0)
    for rate in (1.0, 0.3):
        pair, truth = pairs_of(law, 1.0, rate)[0]
        assert broken(Altered(pair=pair), truth)[1] < 1e-13
        assert broken(Altered(pair=pair, keep_infinite=False), truth)[1] > 1e-3


def test_a_spread_lattice_given_out_as_dominated_is_noticed() -> None:
    for law in LAWS[:6]:
        for rate in (1.0, 0.3):
            for pair, truth in pairs_of(law, 1.0, rate):
                low, high = pair.loss_range(1e-9)
                below, above = bracket(pair, (high - low) / 20.3, 1e-9)
                assert violations(above, below, truth, places(below, 80))[0] > 1e-6
                assert violations(above, below, truth, places(below, 80))[1] > 1e-6


def test_directions_exchanged_are_noticed() -> None:
    (remove, gone), (add, come) = pairs_of(Gaussian(sigma=0.6), 1.0, 0.3)
    for pair, truth in ((remove, come), (add, gone)):
        assert max(broken(Altered(pair=pair), truth)) > 1e-3


# The two compiled loops, against what they are to do.


@settings(max_examples=40)
@given(
    st.lists(st.floats(-0.2, 1.0), min_size=2, max_size=30),
    st.floats(0.01, 1.0),
)
def test_convexified_is_the_greatest_convex_minorant(values: list[float], step: float) -> None:
    atoms, odds = np.array(values), math.exp(step)
    ratios = odds ** np.arange(len(atoms))
    signed = np.array([np.sum(atoms[i:] * (1 - ratios[i] / ratios[i:])) for i in range(len(atoms))])
    result = convexified(atoms.copy(), odds)
    assert np.all(result >= 0)
    made = np.array([np.sum(result[i:] * (1 - ratios[i] / ratios[i:])) for i in range(len(atoms))])
    # Nowhere above the signed curve, wherever that is a curve of a law at all.
    assert np.all(made <= np.maximum(signed, 0) + 1e-9) or np.min(signed) < 0
    if np.min(atoms) >= 0:
        assert result[1:] == pytest.approx(atoms[1:], abs=1e-12)
        assert result[0] == pytest.approx(atoms[0], abs=1e-9)


@settings(max_examples=40)
@given(st.integers(2, 25), st.integers(0, 10_000))
def test_capped_drops_keep_their_two_promises(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.random(count)
    curve_ = np.append(np.sort(rng.random(count))[::-1], 0.0)
    # d <= (1-w) u_i + w u_{i+1}: else nothing can be promised.
    most = (1 - weight) * curve_[:-1] + weight * curve_[1:]
    excess = most * rng.random(count)
    wanted = np.maximum(np.append(excess, 0.0), np.append(0.0, excess))
    drop = capped_drops(wanted, excess, weight, curve_)
    assert np.all(drop <= curve_ + 1e-15)
    assert np.all((1 - weight) * drop[:-1] + weight * drop[1:] >= excess * (1 - 1e-12) - 1e-15)
