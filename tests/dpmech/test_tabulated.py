"""Tables: the law is what the table says, and its pair is above the curve of every smaller shift.

Symbols: ``s`` sensitivity, ``t`` shift, ``h`` width of a lattice's cells, ``gamma = e^l``.
"""

import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from accountants import PLD
from dpmech import (
    Mechanism,
    Noise,
    Sampling,
    Sensitivity,
    Staircase,
    noise_from_dict,
    parse_noise,
)
from dpmech.envelope import Curve, envelope
from dpmech.lattice_mixtures import Tulap
from dpmech.loss import AtomicPair, pair_of
from dpmech.noise import Floats
from dpmech.spherical import SphericalGeneralizedGaussian
from dpmech.tabulated import Tabulated, TabulatedSpherical, log_volumes

GAMMAS = np.exp([0.0, 1e-3, 0.05, 0.2, 0.4, 0.7, 1.0, 1.6, 2.5, 4.0])


def on_lattice(seed: int, decay: float, step: float = 0.25) -> Tabulated:
    """A law of several humps, with a hole in it, on cells of one to four steps."""
    rng = np.random.default_rng(seed)
    edges = step * np.append(0, np.cumsum(rng.integers(1, 5, 12)))
    masses = np.diff(edges) * np.exp(rng.normal(0, 1.0, 12) - edges[1:] / 3)
    masses[7] = 0.0
    return Tabulated(edges=tuple(edges), masses=tuple(masses), decay=decay)


FALLING = Tabulated(edges=(0.0, 0.3, 0.7, 1.6, 2.1), masses=(3.0, 3.5, 5.0, 1.0), decay=0.4)
LAWS = [
    *(on_lattice(seed, decay) for seed, decay in [(1, 0.0), (2, 0.5), (3, 0.97)]),
    FALLING,
    Tabulated(edges=(0.0, 1.0, 2.0), masses=(0.0, 1.0)),
    Tabulated(edges=(0.0, 2.0), masses=(1.0,), decay=0.3),
]


def cuts(law: Tabulated) -> Floats:
    """All edges on the line: of the table, and beyond it until next to nothing is left."""
    cells = math.ceil(math.log(1e-17) / math.log(law.decay)) if law.decay else 0
    width = law.edges[-1] - law.edges[-2]
    half = np.append(law.edges, law.edges[-1] + width * np.arange(1, cells + 1))
    return np.concatenate([-half[:0:-1], half])


def integral(law: Tabulated, power: int) -> float:
    """E |X|^power of the density as it is, which Gauss-Legendre gives exactly cell by cell."""
    nodes, weights = np.polynomial.legendre.leggauss(4)
    edges = cuts(law)
    half, middle = np.diff(edges) / 2, (edges[1:] + edges[:-1]) / 2
    x = middle[:, None] + half[:, None] * nodes
    return float(np.sum(half[:, None] * weights * law.pdf(x) * np.abs(x) ** power))


# The law


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_density_and_masses_are_those_of_the_table(law: Tabulated) -> None:
    tail = law.masses[-1] * law.decay / (1 - law.decay)
    assert math.fsum(law.masses) + tail == pytest.approx(1.0, abs=1e-14)
    for a, b, mass in zip(law.edges, law.edges[1:], law.masses, strict=False):
        x = np.array([a, (a + b) / 2, b - 1e-9])
        assert law.pdf(x) == pytest.approx(mass / (2 * (b - a)), rel=1e-13)
        assert float(law.sf(a) - law.sf(b)) == pytest.approx(mass / 2, abs=1e-14)
        assert law.usefulness(b) == pytest.approx(1 - 2 * float(law.sf(b)), abs=1e-14)
    width, last = law.edges[-1] - law.edges[-2], law.pdf(law.edges[-2])
    for j in (1, 2, 7):  # the cells beyond
        assert law.pdf(law.edges[-1] + (j - 0.5) * width) == pytest.approx(last * law.decay**j)
    assert float(law.sf(law.edges[-1])) == pytest.approx(tail / 2, abs=1e-14)
    assert law.support == (math.inf if law.decay else law.edges[-1])


def test_masses_are_shares_whatever_their_sum() -> None:
    law = Tabulated(edges=(0.0, 1.0, 3.0), masses=(2.0, 3.0), decay=0.5)
    assert law.masses == (0.25, 0.375)  # and 0.375 beyond
    assert float(law.pdf(4.0)) == pytest.approx(0.375 / 8)


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_the_density_has_the_moments_that_are_stated(law: Tabulated) -> None:
    assert integral(law, 0) == pytest.approx(1.0, rel=1e-12)
    assert law.mean_abs == pytest.approx(integral(law, 1), rel=1e-12)
    assert law.variance == pytest.approx(integral(law, 2), rel=1e-12)
    assert law.fisher_information == math.inf


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_survival_is_the_integral_of_the_density(law: Tabulated) -> None:
    edges = cuts(law)
    inside = np.append(0.0, np.cumsum(np.diff(edges) * law.pdf((edges[1:] + edges[:-1]) / 2)))
    assert law.cdf(edges) == pytest.approx(inside, abs=1e-12)
    middle = (edges[1:] + edges[:-1]) / 2  # straight within a cell
    assert law.sf(middle) == pytest.approx((law.sf(edges[1:]) + law.sf(edges[:-1])) / 2, abs=1e-15)
    x = np.array([0.1, 0.9, 2.3, 30.0, 200.0])
    assert law.sf(-x) + law.sf(x) == pytest.approx(1.0, abs=1e-15)
    assert np.array_equal(law.logpdf(-x), law.logpdf(x))
    with np.errstate(divide="ignore"):
        assert np.exp(law.logsf(x)) == pytest.approx(law.sf(x), rel=1e-13)
    assert law.logpdf(np.zeros((2, 3))).shape == law.score(np.zeros((2, 3))).shape == (2, 3)


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_limits_at_infinity(law: Tabulated) -> None:
    ends = np.array([-np.inf, np.inf])
    assert law.logpdf(ends).tolist() == [-np.inf, -np.inf]
    assert law.logsf(ends).tolist() == [0.0, -np.inf]


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_isf_inverts_the_survival(law: Tabulated) -> None:
    p = np.array([0.499, 0.4, 0.2, 0.03, 1e-3, 1e-7, 1e-30, 1e-200])
    x = law.isf(p)
    assert np.all(np.diff(x) >= 0)
    hair = 1e-12 * (1 + x)
    assert np.all(law.sf(x - hair) >= p * (1 - 1e-11))
    assert np.all(law.sf(x + hair) <= p * (1 + 1e-11))
    assert law.isf(1 - p[:4]) == pytest.approx(-x[:4])
    with pytest.raises(ValueError, match="probabilities in"):
        law.isf(0.0)


def ks(law: Tabulated, draws: Floats) -> float:
    return float(stats.kstest(draws, law.cdf, method="asymp").pvalue)


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_samples_are_of_the_table_and_of_no_other(law: Tabulated) -> None:
    draws = law.sample(100_000, np.random.default_rng(4))
    assert ks(law, draws) > 1e-3
    for factor in (2 / 3, 3 / 2):
        assert ks(law.scaled(factor), draws) < 1e-12
    assert np.all(law.pdf(draws) > 0)
    assert law.sample((3, 2), np.random.default_rng(0)).shape == (3, 2)


def test_samples_without_the_tail_or_of_exchanged_masses_are_noticed() -> None:
    for law in (LAWS[1], FALLING):
        # As if the tail were cut off, or the masses of two cells exchanged.
        bare = Tabulated(edges=law.edges, masses=law.masses)
        a, b, *rest = law.masses
        other = Tabulated(edges=law.edges, masses=(b, a, *rest), decay=law.decay)
        for wrong in (bare, other):
            assert ks(law, wrong.sample(400_000, np.random.default_rng(4))) < 1e-9


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_scaled_and_written_laws_are_the_same_law(law: Tabulated) -> None:
    wide, x = law.scaled(3.7), np.array([-0.4, 0.0, 0.6, 2.6, 9.1])
    assert wide.logpdf(3.7 * x) == pytest.approx(law.logpdf(x) - math.log(3.7))
    assert wide.variance == pytest.approx(3.7**2 * law.variance)
    assert wide.masses == law.masses
    again = noise_from_dict(json.loads(json.dumps(law.to_dict())))
    assert again == law
    assert hash(again) == hash(law)
    assert again.atoms(0.8)[1] == pytest.approx(law.atoms(0.8)[1])  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"factor=-1"):
        law.scaled(-1.0)


def test_a_table_may_be_written_as_text() -> None:
    law = parse_noise("tabulated:edges=0/1/2,masses=.75/.25")
    assert law == Tabulated(edges=(0.0, 1.0, 2.0), masses=(0.75, 0.25), decay=0.25)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"edges": (0.0, 1.0), "masses": ()}, "2 edges and 0 masses"),
    ({"edges": (0.0, 1.0), "masses": (0.5, 0.5)}, "2 edges and 2 masses"),
    ({"edges": (0.5, 1.0), "masses": (1.0,)}, r"rise from 0, got 0\.5"),
    ({"edges": (0.0, 1.0, 1.0), "masses": (1.0, 1.0)}, r"least step of 0\.0"),
    ({"edges": (0.0, math.inf), "masses": (1.0,)}, "rise from 0"),
    ({"edges": (0.0, math.nan), "masses": (1.0,)}, "rise from 0"),
    ({"edges": (0.0, 1.0, 2.0), "masses": (1.0, -1e-9)}, "got -1e-09"),
    ({"edges": (0.0, 1.0, 2.0), "masses": (0.0, 0.0)}, "one of them above"),
    ({"edges": (0.0, 1.0, 2.0), "masses": (1.0, math.nan)}, "finite masses"),
    ({"edges": (0.0, 1.0, 2.0), "masses": (math.nan, 1.0)}, "finite masses"),
]


@pytest.mark.parametrize(("values", "said"), BAD)
def test_tables_that_are_none_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Tabulated(**values)
    with pytest.raises(ValueError, match=said):
        TabulatedSpherical(**values, dim=2)


@pytest.mark.parametrize("decay", [-0.1, 1.0, math.nan])
def test_decays_that_are_none_are_refused(decay: float) -> None:
    with pytest.raises(ValueError, match=r"decay=.* in \[0, 1\)"):
        Tabulated(edges=(0.0, 1.0), masses=(1.0,), decay=decay)


# The pair


def cells_of(law: Tabulated, shift: float) -> tuple[Floats, Floats]:
    """Masses of the law about ``shift`` and about 0 on the cells between all edges of both."""
    edges = cuts(law)
    both = np.unique(np.concatenate([edges, edges + shift]))
    both = both[np.append(True, np.diff(both) > 1e-12)]
    width, middle = np.diff(both), (both[1:] + both[:-1]) / 2
    return width * law.pdf(middle - shift), width * law.pdf(middle)


def brute(law: Tabulated, shift: float, gammas: Floats = GAMMAS) -> Floats:
    """H_gamma of the law about ``shift`` from the law about 0."""
    p, q = cells_of(law, shift)
    return np.array([np.sum(np.maximum(p - gamma * q, 0.0)) for gamma in gammas])


def curve(pair: AtomicPair, gammas: Floats = GAMMAS) -> Floats:
    """H_gamma of a pair of atoms."""
    q = pair.p * np.exp(-pair.losses)
    over = [np.sum(np.maximum(pair.p - gamma * q, 0.0)) for gamma in gammas]
    return np.array(over) + pair.infinite_mass


def pair(law: Tabulated | TabulatedSpherical, shift: float) -> AtomicPair:
    found = pair_of(law, shift)
    assert isinstance(found, AtomicPair)
    return found


def shifts_to(s: float) -> Floats:
    """Shifts up to s: even ones, irrational ones, and those a hair from either end."""
    golden = (math.sqrt(5) - 1) / 2
    return s * np.concatenate([np.linspace(0.02, 1, 50), np.arange(1, 40) * golden % 1, [1e-6]])


# Whole numbers of cells, and not; smaller than a cell; beyond the table's end.
SENSITIVITIES = (0.75, 1.0, math.sqrt(2), 0.1, 2.3333, 11.3)


@pytest.mark.parametrize("s", SENSITIVITIES)
@pytest.mark.parametrize("law", LAWS, ids=str)
def test_the_pair_is_above_the_curve_of_every_shift(law: Tabulated, s: float) -> None:
    if law is FALLING:
        s *= 0.3  # off its lattice, too
    worst = np.max([brute(law, t) for t in shifts_to(s)], axis=0)
    assert np.all(curve(pair(law, s)) >= worst - 1e-13)


@pytest.mark.parametrize("s", SENSITIVITIES)
@pytest.mark.parametrize("law", LAWS[:3], ids=str)
def test_the_pair_is_no_higher_than_the_worst_shift_where_it_bends(
    law: Tabulated, s: float
) -> None:
    assert law.step == pytest.approx(0.25)
    found = pair(law, s)
    gammas = np.exp(found.losses[found.losses > 1e-9])
    whole = np.append(np.arange(0.25, s, 0.25), s)
    worst = np.max([brute(law, t, gammas) for t in whole], axis=0)
    assert curve(found, gammas) == pytest.approx(worst, rel=1e-8, abs=1e-13)


@pytest.mark.parametrize("s", SENSITIVITIES)
@pytest.mark.parametrize("law", LAWS, ids=str)
def test_both_laws_of_the_pair_have_mass_1(law: Tabulated, s: float) -> None:
    found = pair(law, s)
    q = found.p * np.exp(-found.losses)
    for mass in (found.p, q):
        assert float(np.sum(mass)) + found.infinite_mass == pytest.approx(1.0, abs=1e-9)


HOLLOW = Tabulated(edges=tuple(0.25 * np.arange(17)), masses=(0.9, 0.1, 0.1, 0.9) * 4, decay=0.5)


def test_a_law_of_the_sensitivitys_period_is_charged_for_the_shifts_between() -> None:
    """Taking s alone, as for densities that fall, would tell a third of the loss."""
    alone, every = np.array([brute(HOLLOW, t, GAMMAS) for t in (1.0, 0.5)])
    assert every[4] > 5 * alone[4]
    found = PLD().compose(Mechanism(noise=HOLLOW))
    assert found.delta(0.4) >= every[4]
    p, q = cells_of(HOLLOW, 1.0)
    cheating = AtomicPair(losses=np.log(p / q), p=p)
    assert np.all(curve(cheating)[3:7] < 0.4 * curve(pair(HOLLOW, 1.0))[3:7])


@pytest.mark.parametrize("rate", [1.0, 0.2])
def test_two_sampled_releases_at_shifts_of_the_opponents_choice(rate: float) -> None:
    """Against the accountant's interval, in both directions, by exact composition."""
    release = Mechanism(noise=HOLLOW, sampling=Sampling(rate=rate))
    accountant = PLD().compose(release, 2)
    for epsilon in (0.1, 0.6):
        worst = 0.0
        for first, second in itertools.product((0.4, 0.5, 1.0), repeat=2):
            for way in (1, -1):
                sides = [
                    ((1 - rate) * q + rate * p, q)[::way]
                    for p, q in (cells_of(HOLLOW, first), cells_of(HOLLOW, second))
                ]
                p, q = (np.outer(a, b) for a, b in zip(*sides, strict=True))
                worst = max(worst, float(np.sum(np.maximum(p - math.exp(epsilon) * q, 0.0))))
        assert 0.9 * accountant.delta(epsilon) < worst <= accountant.delta(epsilon)


def test_off_the_lattice_only_falling_densities_are_proved() -> None:
    edges = (0.0, 0.3, 0.3 + math.sqrt(0.2), 1.9)
    falling = Tabulated(edges=edges, masses=(3.0, 3.0, 2.0), decay=0.3)
    assert falling.step is None
    assert falling.falling
    for s in (0.25, 1.1, 7.0):
        worst = np.max([brute(falling, t) for t in shifts_to(s)], axis=0)
        assert curve(pair(falling, s)) == pytest.approx(worst, rel=1e-9, abs=1e-13)
    rising = Tabulated(edges=edges, masses=(1.0, 3.0, 2.0), decay=0.3)
    with pytest.raises(ValueError, match="its density rises"):
        rising.atoms(1.0)


def test_edges_are_on_a_lattice_up_to_rounding() -> None:
    for step in (0.1, 1 / 3, 1e-5, 7e4):
        law = Tabulated(edges=tuple(step * np.arange(30)), masses=tuple(2 + np.arange(29) % 2))
        assert law.step == pytest.approx(step)
        assert not law.falling
        # A sensitivity that is a whole number of cells but for rounding is no more than a hair
        # larger: nearly no mass has a new loss.
        for k in (1, 3, 10):
            near, off = (curve(pair(law, step * k * (1 + e))) for e in (0.0, 1e-7))
            assert near[0] <= off[0] * (1 + 1e-12)
            assert np.sum(pair(law, step * k).infinite_mass) == pytest.approx(
                float(law.sf(law.support - step * k)), rel=1e-9
            )


def test_scaling_again_and_again_leaves_a_law_on_its_lattice() -> None:
    law, rng = on_lattice(1, 0.5, step=1 / 7), np.random.default_rng(0)
    for _ in range(20):
        law = law.scaled(float(np.exp(rng.normal())))
        assert law.step is not None
    assert law.edges[-1] / law.step == pytest.approx(32)


def test_edges_next_to_a_lattice_are_not_on_it() -> None:
    """Some 1e-10 of the mass passes a cell that on the lattice no shift up to s passes whole."""
    fall = math.exp(-1.0)
    law = Tabulated(edges=(0.0, 1.0, 3.0 - 8e-10), masses=(1.0, 2 * fall), decay=fall)
    edges = cuts(law)
    both = np.unique(np.concatenate([edges, edges + 2.0]))  # even the thinnest cells count here
    width, middle = np.diff(both), (both[1:] + both[:-1]) / 2
    p, q = width * law.pdf(middle - 2.0), width * law.pdf(middle)
    for epsilon in (1.0000001, 1.5):
        want = float(np.sum(np.maximum(p - math.exp(epsilon) * q, 0.0)))
        assert want > 1e-10
        assert released(law, 2.0).delta(epsilon) >= 0.999 * want


def test_laws_that_do_not_overlap_have_no_finite_loss() -> None:
    law = Tabulated(edges=(0.0, 1.0, 2.0), masses=(0.4, 0.6))
    found = pair(law, 4.0)
    assert found.infinite_mass == pytest.approx(1.0)
    assert curve(found).tolist() == pytest.approx([1.0] * len(GAMMAS))


@pytest.mark.parametrize("law", [HOLLOW, FALLING], ids=str)
def test_tiny_shifts_cost_what_the_jumps_do(law: Tabulated) -> None:
    edges, hair = cuts(law), 1e-6
    before, after = law.pdf(edges - hair), law.pdf(edges + hair)
    # A part as long as the shift passes each of the jumps.
    a_unit = np.array([np.sum(np.maximum(before - gamma * after, 0.0)) for gamma in GAMMAS])
    for shift in (1e-14, 1e-9, 1e-4):
        low, high = np.transpose([released(law, shift).delta_interval(e) for e in np.log(GAMMAS)])
        assert np.all(high >= shift * a_unit * (1 - 1e-6))
        assert np.all(low <= shift * a_unit * (1 + 1e-6) + 1e-11)  # shifts are rounded up
        assert np.all(high <= shift * a_unit * 1.001 + 1e-9)


# Laws that have a form of their own, too


def released(noise: Noise, s: float, rate: float = 1.0, steps: int = 1) -> PLD:
    sensitivity = Sensitivity(bound=s)
    release = Mechanism(noise=noise, sensitivity=sensitivity, sampling=Sampling(rate=rate))
    return PLD().compose(release, steps)


ASKED = [(1.0, 1.0, 1), (1.5, 0.2, 10), (0.3, 1.0, 20)]


@pytest.mark.parametrize(("epsilon", "gamma"), [(1.0, 0.5), (0.4, 0.3)])
def test_a_staircase_is_a_table(epsilon: float, gamma: float) -> None:
    stairs, fall = Staircase(epsilon=epsilon, width=1.0, gamma=gamma), math.exp(-epsilon)
    law = Tabulated(edges=(0.0, gamma, 1.0 + gamma), masses=(gamma, fall), decay=fall)
    x = np.array([0.01, gamma - 0.01, gamma + 0.01, 1.3, 7.7, 40.1])
    assert law.pdf(x) == pytest.approx(stairs.pdf(x), rel=1e-12)
    assert law.logsf(x) == pytest.approx(stairs.logsf(x), rel=1e-12)
    for s, rate, steps in ASKED:
        (low, high), theirs = (
            released(noise, s, rate, steps).epsilon_interval(1e-4) for noise in (law, stairs)
        )
        assert low <= theirs[1]
        assert theirs[0] <= high
        assert high == pytest.approx(theirs[1], rel=2e-4)


def test_a_tulap_law_is_a_table_that_ends_off_the_lattice() -> None:
    tulap = Tulap(epsilon=0.7, width=1.0, delta=1e-3)
    edges = np.append(0.0, np.arange(0.5, tulap.support))
    edges = np.append(edges, tulap.support)
    law = Tabulated(edges=tuple(edges), masses=tuple(-np.diff(tulap.sf(edges))))
    assert law.step is None
    x = np.array([0.2, 0.6, 3.3, tulap.support - 1e-6, tulap.support + 1e-6])
    assert law.pdf(x) == pytest.approx(tulap.pdf(x), rel=1e-9)
    for s, rate, steps in ASKED:
        ours, theirs = (
            released(noise, s, rate, steps).epsilon_interval(0.05) for noise in (law, tulap)
        )
        assert ours == pytest.approx(theirs, rel=2e-4)


# The envelope of several curves


def pairs_at_random(seed: int, atoms: int) -> Curve:
    """A pair that a reflection turns over: what P has at l > 0, Q has at -l."""
    rng = np.random.default_rng(seed)
    losses = rng.exponential(1.0, atoms)
    p = rng.exponential(1.0, atoms)
    p *= rng.uniform(0.2, 0.9) / np.sum(p * (1 + np.exp(-losses)))
    lost = float(rng.choice([0.0, 0.05]))
    return Curve(
        losses=np.concatenate([losses, -losses]),
        p=np.concatenate([p, p * np.exp(-losses)]),
        lost=lost,
        error=np.zeros(2 * atoms),
    )


def heights(found: Curve, levels: Floats) -> Floats:
    """H at every level, one by one."""
    return found.lost + np.array(
        [np.sum(np.maximum(found.p * -np.expm1(level - found.losses), 0.0)) for level in levels]
    )


# The last has more losses than are compared one by one.
@pytest.mark.parametrize(("curves", "atoms"), [(1, 3), (2, 8), (5, 40), (3, 3_000)])
def test_the_envelope_is_above_all_its_curves_and_near_them(curves: int, atoms: int) -> None:
    given = [pairs_at_random(seed, atoms) for seed in range(curves)]
    levels = np.concatenate([np.linspace(0.0, 8.0, 900), *(c.losses[:50] for c in given)])
    levels = np.sort(levels[levels >= 0])
    most = np.max([heights(c, levels) for c in given], axis=0)
    assert np.max([c.at(levels) for c in given], axis=0) == pytest.approx(most, rel=1e-12)
    losses, p, lost, error = envelope(given)
    found = Curve(losses=losses, p=p, lost=lost, error=error)
    assert np.all(heights(found, levels) >= most * (1 - 1e-13))
    assert np.all(error < 1e-9)
    bends = np.concatenate([c.losses[c.losses > 0] for c in given])[:500]
    worst = np.max([heights(c, bends) for c in given], axis=0)
    near = 1e-9 if atoms < 100 else 1e-2
    assert heights(found, bends) == pytest.approx(worst, rel=near)


def test_the_envelope_of_nothing_lost_but_a_common_half_is_that() -> None:
    flat = Curve(losses=np.zeros(1), p=np.array([0.6]), lost=0.4, error=np.zeros(1))
    losses, p, lost, _ = envelope([flat])
    assert losses.tolist() == [0.0]
    assert (p[0], lost) == pytest.approx((0.6, 0.4))


# Spherical tables

SPHERES = [
    TabulatedSpherical(edges=(0.0, 0.5, 1.1, 2.0), masses=(1.0, 1.0, 0.9), dim=1),
    TabulatedSpherical(edges=(0.0, 0.5, 1.1, 2.0), masses=(0.1, 0.3, 0.5), dim=2),
    TabulatedSpherical(edges=(0.0, 0.5, 1.1, 2.0), masses=(0.1, 0.3, 0.5), dim=3),
    TabulatedSpherical(edges=(0.0, 3.0, 3.3), masses=(1.0, 1.0), dim=20),
]


def radial_cdf(law: TabulatedSpherical, r: Floats) -> Floats:
    """P(|X| <= r): straight in r^dim on every shell."""
    volumes, inside = np.array(law.edges) ** law.dim, np.append(0.0, np.cumsum(law.masses))
    return np.interp(r**law.dim, volumes, inside)


@pytest.mark.parametrize("law", SPHERES, ids=str)
def test_spherical_samples_are_of_the_table_and_of_no_other(law: TabulatedSpherical) -> None:
    dim = int(law.dim)
    draws = law.sample((20_000, dim), np.random.default_rng(3))
    radius = np.linalg.norm(draws, axis=1)
    assert stats.kstest(radius, lambda r: radial_cdf(law, r)).pvalue > 1e-3
    for factor in (2 / 3, 3 / 2):
        assert stats.kstest(radius * factor, lambda r: radial_cdf(law, r)).pvalue < 1e-12
    assert law.variance == pytest.approx(float(np.mean(draws**2)), rel=0.03)
    assert np.mean(draws, axis=0) == pytest.approx(np.zeros(dim), abs=0.05)
    nodes, weights = np.polynomial.legendre.leggauss(40)
    edges = np.array(law.edges)
    half, middle = np.diff(edges)[:, None] / 2, (edges[1:] + edges[:-1])[:, None] / 2
    r = middle + half * nodes
    density = dim * r ** (dim - 1) / (edges[1:] ** dim - edges[:-1] ** dim)[:, None]
    squares = np.array(law.masses) @ np.sum(half * weights * density * r * r, axis=1)
    assert law.variance * dim == pytest.approx(squares, rel=1e-12)


@pytest.mark.parametrize("s", [0.2, 0.7, 1.9, 5.0])
def test_a_sphere_of_one_dimension_is_a_table_of_the_line(s: float) -> None:
    sphere = SPHERES[0]
    line = Tabulated(edges=sphere.edges, masses=sphere.masses)
    assert curve(pair(sphere, s)) == pytest.approx(curve(pair(line, s)), rel=1e-9, abs=1e-13)


@pytest.mark.parametrize("law", SPHERES, ids=str)
def test_spherical_pairs_rise_with_the_shift(law: TabulatedSpherical) -> None:
    s = 0.9 * math.sqrt(law.dim)
    smaller = np.max([curve(pair(law, t)) for t in shifts_to(s)[::7]], axis=0)
    assert np.all(smaller <= curve(pair(law, s)) + 1e-12)


def test_a_disc_by_numbers() -> None:
    """The pair in the plane against a sum over a fine grid of points."""
    law, s, n = SPHERES[1], 0.8, 2_000
    x = np.linspace(-3.0, 3.0, n + 1)[:-1] + 3.0 / n
    density = np.array(law.masses) / (np.pi * np.diff(np.array(law.edges) ** 2))
    steps = np.append(density, 0.0)

    def at(centre: float) -> Floats:
        radius = np.hypot(x[:, None] - centre, x[None, :])
        return steps[np.minimum(np.searchsorted(law.edges, radius, side="right") - 1, 3)]

    p, q, area = at(s), at(0.0), (6.0 / n) ** 2
    want = np.array([area * np.sum(np.maximum(p - gamma * q, 0.0)) for gamma in GAMMAS])
    assert curve(pair(law, s)) == pytest.approx(want, abs=2e-3)


def test_a_tables_shells_are_those_of_the_law_it_was_taken_from() -> None:
    law = SphericalGeneralizedGaussian(scale=1.3, beta=1.4, dim=3, step=0.2)
    table = TabulatedSpherical(
        edges=tuple(law.shells.edges), masses=tuple(law.shells.masses), dim=3
    )
    assert table.variance == pytest.approx(law.variance)
    assert curve(pair(table, 0.8)) == pytest.approx(curve(pair(law, 0.8)), rel=1e-7)


def test_spherical_tables_fall_up_to_rounding() -> None:
    edges = (0.0, 1.0, 2.0, 3.0)
    level = np.exp(log_volumes(np.array(edges), 3))
    assert level == pytest.approx(np.array([1, 7, 19]) / 27)
    for rise, fits in [(0.0, True), (5e-10, True), (2e-9, False)]:
        masses = level * [1.0, 1.0 + rise, 1.0]
        if fits:
            found = TabulatedSpherical(edges=edges, masses=tuple(masses), dim=3)
            assert np.all(np.diff(found.shells.log_density) <= 0)
            assert float(np.sum(found.shells.masses)) == pytest.approx(1.0)
        else:
            with pytest.raises(ValueError, match="only falling ones are proved"):
                TabulatedSpherical(edges=edges, masses=tuple(masses), dim=3)
    with pytest.raises(ValueError, match="densities above 0"):
        TabulatedSpherical(edges=edges, masses=(1.0, 1.0, 0.0), dim=3)


@pytest.mark.parametrize("law", SPHERES, ids=str)
def test_scaled_and_written_spheres_are_the_same_law(law: TabulatedSpherical) -> None:
    assert law.scaled(2.5).variance == pytest.approx(6.25 * law.variance)
    assert curve(pair(law.scaled(2.5), 2.0)) == pytest.approx(curve(pair(law, 0.8)), rel=1e-9)
    again = noise_from_dict(json.loads(json.dumps(law.to_dict())))
    assert again == law
    assert hash(again) == hash(law)
    with pytest.raises(ValueError, match=r"dim=2\.5"):
        TabulatedSpherical(edges=law.edges, masses=law.masses, dim=2.5)
