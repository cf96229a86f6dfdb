"""The atoms on either side of a loss: hockey-stick curves never on the wrong side of the truth."""

import math
from collections.abc import Callable
from dataclasses import replace

import mpmath as mp
import numpy as np
import pytest

from accountants import _atoms
from accountants._atoms import Atoms, Composed, Emphasis, cut, dominated, dominating, roughness
from dpmech import (
    Gaussian,
    GeneralizedGaussian,
    Laplace,
    LaplaceMixture,
    Noise,
    Staircase,
    TruncatedLaplace,
)
from dpmech.cells import Cells
from dpmech.loss import DominatingPair, SubsampledPair, pair_of
from dpmech.noise import Floats

LAWS: list[Noise] = [
    Gaussian(sigma=1.0),
    Gaussian(sigma=0.2),
    Gaussian(sigma=200.0),
    Laplace(b=0.7),
    LaplaceMixture(scales=(0.5, 5.0), weights=(0.3, 0.7)),
    GeneralizedGaussian(scale=1.0, beta=0.5),
    GeneralizedGaussian(scale=1.0, beta=3.0),
    TruncatedLaplace(b=1.0, bound=4.0),
    Staircase(epsilon=1.0, width=1.0, gamma=0.4),
]
PAIRS: list[tuple[Noise, float, str]] = [
    (law, rate, way)
    for law in LAWS
    for rate, way in [(1.0, "remove"), (0.01, "remove"), (0.01, "add"), (0.999, "add")]
]


def sampled(noise: Noise, rate: float, way: str) -> DominatingPair:
    base = pair_of(noise, 1.0)
    return base if rate == 1 else SubsampledPair(base=base, rate=rate, direction=way)  # type: ignore[arg-type]


def curve(atoms: Atoms, gammas: Floats) -> Floats:
    """H_gamma of the atoms, infinite mass included."""
    excess = np.maximum(0.0, 1 - gammas[:, None] * np.exp(-atoms.losses))
    return excess @ np.exp(atoms.log_p) + atoms.infinite


@pytest.mark.parametrize(("noise", "rate", "way"), PAIRS, ids=str)
def test_coarse_curves_enclose_fine_ones(noise: Noise, rate: float, way: str) -> None:
    """Cells ten times finer lie between: more detail may only sharpen, from either side."""
    pair = sampled(noise, rate, way)
    coarse = pair.edges(1e-12)
    fine = cut(coarse, np.full(max(len(coarse) - 1, 0), 10.0))
    cells, finer = pair.cells(coarse), pair.cells(fine)
    losses = dominating(cells).losses
    gammas = np.exp(np.unique(np.concatenate([losses, (losses[1:] + losses[:-1]) / 2])))
    gammas = gammas[gammas < 1e200]
    low, high = curve(dominated(cells), gammas), curve(dominating(cells), gammas)
    lower, upper = curve(dominated(finer), gammas), curve(dominating(finer), gammas)
    slack = 1e-10 * (1 + np.max(losses)) * lower + 1e-11 * (1 + gammas)  # rounding, here and there
    assert np.all(low <= lower + slack)
    assert np.all(lower <= upper + slack)
    assert np.all(upper <= high + slack)


@pytest.mark.parametrize("noise", [Gaussian(sigma=0.9), Laplace(b=1.3)], ids=str)
@pytest.mark.parametrize("rate", [1.0, 0.05])
def test_curves_enclose_the_truth(noise: Noise, rate: float) -> None:
    """Against the exact curve of the base pair, from survival functions at 30 digits."""
    pair = sampled(noise, rate, "remove")
    cells = pair.cells(pair.edges(1e-15))
    low, high = dominated(cells), dominating(cells)
    for epsilon in (-0.01, 0.0, 0.02, 0.3, 0.6):
        gamma = math.exp(epsilon)
        base_gamma = 1 + (gamma - 1) / rate
        if base_gamma <= 0:
            continue
        truth = rate * exact(noise, math.log(base_gamma))
        assert curve(low, np.array([gamma]))[0] <= truth * (1 + 1e-12)
        assert curve(high, np.array([gamma]))[0] >= truth * (1 - 1e-12)
        assert curve(high, np.array([gamma]))[0] <= truth * 1.05 + 1e-6


def exact(noise: Noise, epsilon: float) -> float:
    """H_{e^epsilon} of one release with sensitivity 1."""
    with mp.workdps(30):
        e = mp.mpf(epsilon)
        if isinstance(noise, Gaussian):
            s = mp.mpf(noise.sigma)
            return float(mp.ncdf(1 / (2 * s) - e * s) - mp.exp(e) * mp.ncdf(-1 / (2 * s) - e * s))
        assert isinstance(noise, Laplace)
        b = mp.mpf(noise.b)
        if e >= 1 / b:
            return 0.0
        if e >= -1 / b:
            x = (e * b + 1) / 2  # the loss (2x - 1)/b rises to 1/b at x = 1
            p = 1 - mp.exp((x - 1) / b) / 2
            return float(p - mp.exp(e) * mp.exp(-x / b) / 2)
        return float(1 - mp.exp(e))


@pytest.mark.parametrize("noise", LAWS, ids=str)
def test_masses_keep_their_sum(noise: Noise) -> None:
    """Whatever rounding errors are claimed, the laws compared have mass 1: none grows with T."""
    pair = sampled(noise, 0.3, "remove")
    cells = pair.cells(pair.edges(1e-15))
    for errors in (cells, replace(cells, error=cells.error + 1e-4)):
        for atoms in (dominated(errors), dominating(errors)):
            total = float(np.sum(np.exp(atoms.log_p))) + atoms.infinite
            assert total == pytest.approx(1.0, abs=1e-11)


def test_errors_claimed_are_pushed_outwards() -> None:
    pair = sampled(Gaussian(sigma=1.0), 0.3, "remove")
    cells = pair.cells(pair.edges(1e-15))
    worse = replace(cells, error=cells.error + 1e-3, loss_error=cells.loss_error + 1e-3)
    gammas = np.exp(np.linspace(-0.3, 3, 50))
    assert np.all(curve(dominating(worse), gammas) >= curve(dominating(cells), gammas) - 1e-12)
    assert np.all(curve(dominated(worse), gammas) <= curve(dominated(cells), gammas) + 1e-12)
    assert np.max(curve(dominating(worse), gammas) - curve(dominating(cells), gammas)) > 1e-4


def cells_of(low: list[float], high: list[float], p: list[float], loss: list[float]) -> Cells:
    n, zero = len(p), np.zeros(len(p))
    with np.errstate(divide="ignore"):
        log_p = np.log(np.array(p))
    return Cells(
        log_p=log_p, log_q=log_p - np.array(loss), loss=np.array(loss), low=np.array(low),
        high=np.array(high), error=zero, loss_error=zero, low_error=zero, high_error=zero,
        interval=np.arange(n),
    )  # fmt: skip


def test_a_split_keeps_both_masses() -> None:
    cells = cells_of([0.2], [0.6], [1.0], [0.5])
    atoms = dominating(cells)
    p = np.exp(atoms.log_p)
    assert atoms.losses.tolist() == [0.2, 0.6]
    assert float(np.sum(p)) == pytest.approx(1.0)
    assert float(np.sum(p * np.exp(-atoms.losses))) == pytest.approx(math.exp(-0.5))


def test_an_open_tail_goes_to_infinity_as_far_as_it_must() -> None:
    cells = cells_of([-1.0, 2.0], [1.0, math.inf], [0.9, 0.1], [0.0, 3.0])
    atoms = dominating(cells)
    assert atoms.infinite == pytest.approx(0.1 * (1 - math.exp(-1.0)))
    assert dominated(cells).infinite == 0.0
    assert float(np.max(dominated(cells).losses)) < 2.0  # dropped: no claim rests on it


@pytest.mark.parametrize(
    "bug",
    [
        lambda cells: replace(cells, loss=cells.loss - 0.01),  # mass moved down
        lambda cells: replace(cells, high=cells.high - 0.01),  # the upper edge too low
        lambda cells: replace(cells, log_p=cells.log_p - 0.01),  # mass lost
    ],
)
def test_planted_bugs_are_caught(bug: Callable[[Cells], Cells]) -> None:
    """The comparison with finer cells does bite."""
    pair = pair_of(Gaussian(sigma=1.0), 1.0)
    coarse = pair.edges(1e-12)
    fine = pair.cells(cut(coarse, np.full(len(coarse) - 1, 10.0)))
    gammas = np.exp(np.linspace(-3, 3, 200))
    truth = curve(dominated(fine), gammas)
    assert np.all(curve(dominating(pair.cells(coarse)), gammas) >= truth - 1e-13)
    assert np.any(curve(dominating(bug(pair.cells(coarse))), gammas) < truth - 1e-13)


def test_cutting_keeps_edges_and_infinite_intervals() -> None:
    edges = np.array([0.5, 1.0, 3.0, np.inf])
    finer = cut(edges, np.array([1.0, 4.0, 7.0]))
    assert finer.tolist() == [0.5, 1.0, 1.5, 2.0, 2.5, 3.0, np.inf]


def test_roughness_is_tilted_mass_times_squared_width() -> None:
    cells = cells_of([0.0, 0.01], [0.01, 0.03], [0.5, 0.5], [0.005, 0.02])
    tilt = 2.0
    weight = np.exp(tilt * cells.loss) / np.sum(np.exp(tilt * cells.loss))
    rough = roughness(cells, np.arange(3.0), Emphasis(tilt=tilt))
    assert rough == pytest.approx(weight * np.array([0.01, 0.02]) ** 2, rel=1e-2)
    # Of a wide cell, the mass that the split puts at its end counts, not that of its middle.
    wide = cells_of([0.0, 1.0], [1.0, 1.001], [0.5, 0.5], [0.5, 1.0005])
    first, second = roughness(wide, np.arange(3.0), Emphasis(tilt=100.0))
    assert first > second > 0


def test_cumulants_of_a_sum() -> None:
    one = Atoms.of(np.array([-1.0, 2.0]), np.log([0.25, 0.75]), 0.0)
    two = Atoms.of(np.array([0.5]), np.log([0.9]), 0.1)
    both = Composed(parts=[(one, 3), (two, 2)])
    t = 0.7
    moments = [np.log(0.25 * np.exp(-t) + 0.75 * np.exp(2 * t)), np.log(0.9) + 0.5 * t]
    k, k1, k2 = both.cumulants(t)
    assert k == pytest.approx(3 * moments[0] + 2 * moments[1])
    assert both.log_moment(t) == pytest.approx(k)
    step = 1e-4
    ups, downs = both.log_moment(t + step), both.log_moment(t - step)
    assert k1 == pytest.approx((ups - downs) / (2 * step), rel=1e-6)
    assert k2 == pytest.approx((ups - 2 * k + downs) / step**2, rel=1e-4)
    assert both.infinite == pytest.approx(1 - 0.9**2)
    assert both.highest == pytest.approx(3 * 2.0 + 2 * 0.5)


def test_atoms_at_one_loss_are_joined() -> None:
    atoms = _atoms.Atoms.of(np.array([1.0, 0.0, 1.0]), np.log([0.2, 0.3, 0.5]), 0.0)
    assert atoms.losses.tolist() == [0.0, 1.0]
    assert np.exp(atoms.log_p) == pytest.approx([0.3, 0.7])
