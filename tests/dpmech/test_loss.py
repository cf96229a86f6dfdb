"""Pairs against brute force: masses on a dense line, without inverting the loss anywhere."""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest

from dpmech import (
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
from dpmech.lattice_mixtures import Tulap
from dpmech.loss import AtomicPair, PeakedPair, SubsampledPair, pair_of, staircase_atoms
from dpmech.noise import Floats

RATES = (1.0, 0.1)
SHIFTS = (0.4, 2.5)


def pairs_of(law: Noise, shift: float, rate: float) -> tuple[DominatingPair, ...]:
    mechanism = Mechanism(
        noise=law, sensitivity=Sensitivity(bound=shift), sampling=Sampling(rate=rate)
    )
    return mechanism.pairs()


def kinks(law: Noise) -> Floats:
    """Where the density of the centred law has a kink or a jump."""
    if isinstance(law, Staircase | Tulap):
        gamma = law.gamma if isinstance(law, Staircase) else 0.5
        steps = law.width * (np.arange(400) + gamma)
        steps = np.append(steps[steps < law.support], min(law.support, 1e6))
        return np.concatenate([-steps[::-1], steps])
    ends = [-law.support, law.support] if np.isfinite(law.support) else []
    return np.array([*ends, 0.0])


@dataclass(frozen=True)
class Line:
    """The line cut into small cells: their masses under P and Q, and the loss at both ends."""

    p: Floats
    q: Floats
    least: Floats
    most: Floats

    @classmethod
    def of(cls, law: Noise, shift: float, points: int = 12_000) -> "Line":
        size = np.geomspace(1e-5, float(law.isf(1e-25)), points)
        tails = np.concatenate([-size[::-1], [0.0], size])
        cuts = [tails, tails + shift, kinks(law), kinks(law) + shift, [shift / 2]]
        x = np.unique(np.concatenate(cuts))
        # Cuts that agree to rounding would enclose a cell with neither loss nor mass.
        x = x[np.concatenate([[True], np.diff(x) > 1e-13 * (1 + np.abs(x[1:]))])]
        hair = 1e-7 * np.diff(x)
        with np.errstate(invalid="ignore"):
            ends = [law.logpdf(at - shift) - law.logpdf(at) for at in (x[:-1] + hair, x[1:] - hair)]
        return cls(
            p=_cell_masses(law, x - shift),
            q=_cell_masses(law, x),
            least=np.minimum(*ends),
            most=np.maximum(*ends),
        )

    def subsampled(self, rate: float, add: bool) -> "Line":
        """((1-q)Q + qP, Q), or its reverse."""
        least, most = (
            np.logaddexp(np.log1p(-rate), np.log(rate) + loss) for loss in (self.least, self.most)
        )
        mixed = (1 - rate) * self.q + rate * self.p
        if add:
            return Line(p=self.q, q=mixed, least=-most, most=-least)
        return Line(p=mixed, q=self.q, least=least, most=most)

    def masses(self, levels: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        """(certain P, possible P, certain Q, possible Q) of the cells between the levels."""
        known = ~np.isnan(self.least) & (self.least < np.inf)
        p, q = self.p[known], self.q[known]
        low = np.searchsorted(levels, self.least[known], side="left")
        high = np.searchsorted(levels, self.most[known], side="left")
        sure, cells = low == high, len(levels) + 1
        certain = [np.bincount(low[sure], m[sure], cells) for m in (p, q)]
        maybe = [np.zeros(cells), np.zeros(cells)]
        for a, b, mp, mq in zip(low[~sure], high[~sure], p[~sure], q[~sure], strict=True):
            maybe[0][a : b + 1] += mp
            maybe[1][a : b + 1] += mq
        return certain[0], certain[0] + maybe[0], certain[1], certain[1] + maybe[1]


def _cell_masses(law: Noise, x: Floats) -> Floats:
    right = law.sf(np.maximum(x, 0.0))
    left = law.sf(np.maximum(-x, 0.0))
    return (right[:-1] - right[1:]) + (left[1:] - left[:-1])


def lines_of(law: Noise, shift: float, rate: float) -> tuple[Line, ...]:
    line = Line.of(law, shift)
    if rate == 1:
        return (line,)
    return line.subsampled(rate, add=False), line.subsampled(rate, add=True)


def levels_for(line: Line) -> Floats:
    """Levels off every atom, from below the least loss to above the greatest."""
    worth = (line.p > 1e-18) & np.isfinite(line.least) & np.isfinite(line.most)
    low, high = np.min(line.least[worth]), np.max(line.most[worth])
    spread = np.linspace(low - 0.0137 * (high - low), high + 0.0171 * (high - low), 22)
    fine = np.array([-0.0101, 0.00013, 0.0103]) * (high - low)
    return np.unique(np.concatenate([spread, fine]))


def misses(pair: DominatingPair, line: Line) -> tuple[float, float]:
    """How far the pair's masses lie outside what the line allows, and how wide that is."""
    levels = levels_for(line)
    cells = pair.masses(levels)
    p, q = np.exp(cells.log_p), np.exp(cells.log_q)
    p_low, p_high, q_low, q_high = line.masses(levels)
    outside = [p_low - p, p - p_high, q_low - q, q - q_high]
    return float(np.max(outside)), float(np.max(p_high - p_low))


@pytest.mark.parametrize("rate", RATES)
def test_masses_are_those_of_the_densities(law_with_levels: Noise, rate: float) -> None:
    for shift in SHIFTS:
        if law_with_levels.support <= shift / 2:
            continue
        pairs, lines = (
            pairs_of(law_with_levels, shift, rate),
            lines_of(law_with_levels, shift, rate),
        )
        for pair, line in zip(pairs, lines, strict=True):
            outside, width = misses(pair, line)
            assert outside < 1e-9
            assert width < 0.02


@pytest.mark.parametrize("rate", RATES)
def test_tail_cells_are_right_relatively(rate: float) -> None:
    laws = (Gaussian(sigma=0.5), GeneralizedGaussian(scale=0.7, beta=1.4), LMO_PRESETS["2"])
    for law in laws:
        pairs, lines = pairs_of(law, 1.0, rate), lines_of(law, 1.0, rate)
        for pair, line in zip(pairs, lines, strict=True):
            levels = levels_for(line)
            p_low, p_high, *_ = line.masses(levels)
            p = pair.masses(levels).p
            solid = p_low > 1e-17
            assert p[solid] == pytest.approx((p_low + p_high)[solid] / 2, rel=0.05)


@pytest.mark.parametrize("rate", RATES)
def test_masses_sum_to_one(law_with_levels: Noise, rate: float) -> None:
    for shift in (0.4, 30.0):
        for pair in pairs_of(law_with_levels, shift, rate):
            low, high = pair.loss_range(1e-12)
            levels = np.linspace(low - 0.01, high + 0.01, 57)
            cells = pair.masses(levels)
            assert len(cells.log_p) == len(cells.log_q) == len(cells.error) == len(levels) + 1
            assert cells.p.sum() + pair.infinite_mass == pytest.approx(1.0, abs=1e-11)
            assert np.exp(cells.log_q).sum() == pytest.approx(1.0, abs=1e-11)
            assert np.all(cells.error >= 0)
            assert np.all(cells.error <= 1)


@pytest.mark.parametrize("rate", RATES)
def test_masses_respect_the_levels(law_with_levels: Noise, rate: float) -> None:
    # In a cell of losses (a, b], e^a Q <= P <= e^b Q.
    for pair in pairs_of(law_with_levels, 1.0, rate):
        low, high = pair.loss_range(1e-12)
        levels = np.linspace(low - 0.01, high + 0.01, 57)
        cells = pair.masses(levels)
        p, q = cells.log_p[1:-1], cells.log_q[1:-1]
        full = np.isfinite(p) & np.isfinite(q) & (np.exp(p) > 1e-250)
        ratio, allowed = p[full] - q[full], (2 * cells.error[1:-1] + cells.loss_error + 1e-12)[full]
        assert np.all(ratio >= levels[:-1][full] - allowed)
        assert np.all(ratio <= levels[1:][full] + allowed)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("tail", [1e-3, 1e-9, 1e-40])
def test_loss_range_leaves_out_no_more_than_the_tail(
    law_with_levels: Noise, rate: float, tail: float
) -> None:
    for shift in SHIFTS:
        for pair in pairs_of(law_with_levels, shift, rate):
            low, high = pair.loss_range(tail)
            assert math.isfinite(low)
            assert low <= high < math.inf
            hair = 1e-9 * (1 + abs(low) + abs(high))
            cells = pair.masses(np.array([low - hair, high + hair]))
            assert cells.p[0] <= 2 * tail  # both what Q lacks and what the range cuts
            assert cells.p[-1] <= tail * (1 + 1e-6)


def test_loss_error_is_small(law_with_levels: Noise) -> None:
    for rate in RATES:
        for pair in pairs_of(law_with_levels, 1.0, rate):
            low, high = pair.loss_range(1e-20)
            cells = pair.masses(np.linspace(low, high, 400))
            assert 0 <= cells.loss_error < 1e-11 * (1 + high - low)


def test_loss_error_covers_a_rate_next_to_one() -> None:
    mp = pytest.importorskip("mpmath")
    base = pair_of(Gaussian(sigma=1.0), 1.0)
    for rate in (0.4, 0.6, 0.999, 1 - 1e-6, 1 - 1e-9):
        pair = SubsampledPair(base=base, rate=rate, direction="remove")
        least = math.log1p(-rate)
        levels = least * np.array([1 - 1e-9, 1 - 1e-6, 0.999, 0.9, 0.5, 1e-3, -0.1])
        with mp.workdps(60):
            reached = [
                mp.log(1 + mp.mpf(rate) * mp.expm1(mp.mpf(float(loss))))
                for loss in pair._down(levels)
            ]
            off = [
                abs(float(at - mp.mpf(level))) for at, level in zip(reached, levels, strict=True)
            ]
        assert max(off) <= pair.masses(levels).loss_error


def test_infinite_mass() -> None:
    law = TruncatedLaplace(b=1.0, bound=3.0)
    beyond = float(law.sf(2.0))
    remove, add = pairs_of(law, 1.0, 0.25)
    assert pairs_of(law, 1.0, 1.0)[0].infinite_mass == pytest.approx(beyond)
    assert remove.infinite_mass == pytest.approx(0.25 * beyond)
    assert add.infinite_mass == 0.0
    for other in (Gaussian(sigma=1.0), Staircase.least_mean_abs(1.0), LMO_PRESETS["2"]):
        assert 0 <= pairs_of(other, 1.0, 1.0)[0].infinite_mass <= 1e-290


@pytest.mark.parametrize("bound", [0.3, 0.5])
def test_disjoint_supports(bound: float) -> None:
    law = TruncatedLaplace(b=1.0, bound=bound)
    (pair,) = pairs_of(law, 1.0, 1.0)
    assert pair.infinite_mass == 1.0
    cells = pair.masses(np.array([-1.0, 0.0, 1.0]))
    assert np.all(cells.p == 0)
    assert np.exp(cells.log_q).tolist() == [1.0, 0.0, 0.0, 0.0]
    remove, add = pairs_of(law, 1.0, 0.25)
    # Without the record the loss is ln(3/4) or infinite; with it, -ln(3/4) or minus infinite.
    kept = math.log(0.75)
    cells = remove.masses(np.array([kept - 0.01, kept + 0.01]))
    assert cells.p == pytest.approx([0.0, 0.75, 0.0])
    assert np.exp(cells.log_q) == pytest.approx([0.0, 1.0, 0.0])
    assert remove.infinite_mass == pytest.approx(0.25)
    cells = add.masses(np.array([-kept - 0.01, -kept + 0.01]))
    assert cells.p == pytest.approx([0.0, 1.0, 0.0])
    assert np.exp(cells.log_q) == pytest.approx([0.25, 0.75, 0.0])


def test_laplace_atoms() -> None:
    (pair,) = pairs_of(Laplace(b=0.5), 1.0, 1.0)
    assert pair.atoms() == pytest.approx((-2.0, 2.0))
    cells = pair.masses(np.array([-2.0 - 1e-9, -2.0 + 1e-9, 2.0 - 1e-9, 2.0 + 1e-9]))
    # P(x >= s) = 1/2 at the top; below 0 it is e^{-s/b}/2.
    assert cells.p == pytest.approx([0, math.exp(-2) / 2, 0.5 - math.exp(-2) / 2, 0.5, 0], abs=2e-9)
    remove, add = pairs_of(Laplace(b=0.5), 1.0, 0.1)
    top = math.log1p(0.1 * math.expm1(2.0))
    bottom = math.log1p(0.1 * math.expm1(-2.0))
    assert remove.atoms() == pytest.approx((bottom, top))
    assert add.atoms() == pytest.approx((-top, -bottom))
    assert pairs_of(Gaussian(sigma=1.0), 1.0, 1.0)[0].atoms() == ()
    assert pairs_of(LMO_PRESETS["3"], 1.0, 1.0)[0].atoms() == ()


def test_gaussian_cells_err_by_no_more_than_they_say() -> None:
    mp = pytest.importorskip("mpmath")
    (pair,) = pairs_of(Gaussian(sigma=0.25), 1.0, 1.0)
    levels = np.concatenate([np.linspace(-80.0, 80.0, 17), 61.0 + 1e-3 * np.arange(4)])
    levels = np.sort(levels)
    cells = pair.masses(levels)
    with mp.workdps(200):
        cuts = [mp.mpf(float(level)) / 16 + mp.mpf("0.5") for level in levels]
        for log_masses, shift in ((cells.log_p, 1), (cells.log_q, 0)):
            tails = [mp.erfc((x - shift) * 4 / mp.sqrt(2)) / 2 for x in cuts]
            tails = [mp.mpf(1), *tails, mp.mpf(0)]
            true = [float(mp.log(a - b)) for a, b in itertools.pairwise(tails)]
            # The edges of a cell may be off by the loss error: that moves at most this much mass.
            moved = cells.loss_error * np.abs(levels).max() * 20 + 1e-13
            assert np.all(np.abs(log_masses - true) <= cells.error + moved)


def test_levels_may_be_few(law_with_levels: Noise) -> None:
    for rate in RATES:
        for pair in pairs_of(law_with_levels, 1.0, rate):
            for level in (-50.0, 0.0, 0.3):
                cells = pair.masses(np.array([level]))
                assert cells.p.sum() + pair.infinite_mass == pytest.approx(1.0, abs=1e-12)
                assert np.exp(cells.log_q).sum() == pytest.approx(1.0, abs=1e-12)


def test_staircase_pair_merges_equal_losses_upwards() -> None:
    law = Staircase(epsilon=1.0, width=1.0, gamma=0.4)
    pair = AtomicPair.from_cells(*staircase_atoms(law, 1.0))
    # A shift by one period changes the height by one step at most: losses -1, 0 and 1.
    assert pair.losses == pytest.approx([-1.0, 0.0, 1.0], abs=1e-9)
    assert pair.p.sum() == pytest.approx(1.0, abs=1e-12)
    mixed = AtomicPair.from_cells(np.array([0.3, 0.1, 0.3 + 1e-14]), np.array([0.2, 0.5, 0.3]), 0.0)
    assert mixed.losses.tolist() == [0.1, 0.3 + 1e-14]
    assert mixed.p.tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match=r"epsilon=1e-05.*at least 0\.001"):
        staircase_atoms(Staircase(epsilon=1e-5, width=1.0, gamma=0.4), 1.0)


# Planted bugs: each must be seen by the comparison above.


def test_a_loss_inverted_as_if_monotone_is_noticed() -> None:
    class Monotone(LaplaceMixture):
        def loss_peak(self, shift: float) -> float:
            return np.inf

    law = Monotone(scales=(0.5, 5.0), weights=(0.3, 0.7))
    outside, _ = misses(PeakedPair(noise=law, shift=1.0), Line.of(law, 1.0))
    assert outside > 0.01


def test_directions_exchanged_are_noticed() -> None:
    remove, add = pairs_of(Gaussian(sigma=1.0), 1.0, 0.3)
    lines = lines_of(Gaussian(sigma=1.0), 1.0, 0.3)
    assert misses(remove, lines[1])[0] > 0.01
    assert misses(add, lines[0])[0] > 0.01


def test_a_wrong_rate_or_shift_is_noticed() -> None:
    line = lines_of(Laplace(b=1.0), 1.0, 0.3)[0]
    assert misses(pairs_of(Laplace(b=1.0), 1.0, 0.31)[0], line)[0] > 1e-3
    assert misses(pairs_of(Laplace(b=1.0), 0.98, 0.3)[0], line)[0] > 1e-3


@pytest.mark.parametrize("size", [1e6, 1e14, 1e17, 1e26])
def test_no_mass_is_lost_where_doubles_cannot_tell_the_loss_from_zero(
    law_with_levels: Noise, size: float
) -> None:
    if isinstance(law_with_levels, Staircase | Tulap):
        pytest.skip("a staircase law brings its own pair")
    for rate in RATES:
        for pair in pairs_of(law_with_levels.scaled(size), 1.0, rate):
            cells = pair.masses(np.array([-0.3, -1e-12, 1e-12, 0.3]))
            assert cells.p.sum() + pair.infinite_mass == pytest.approx(1.0, abs=1e-11)
            assert np.exp(cells.log_q).sum() == pytest.approx(1.0, abs=1e-11)
