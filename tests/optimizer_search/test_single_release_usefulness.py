"""One release of the largest usefulness: cells in place of points, of which nothing is lost."""

from __future__ import annotations

import math
from itertools import pairwise, product

import numpy as np
import pytest

from dpmech import Laplace, Noise, Staircase, Target, TruncatedLaplace
from dpmech.tabulated import Tabulated
from optimizer_search import Cost, SearchProblem
from optimizer_search._lp_certificate import Events, cell_cost, certified_bound, folded
from optimizer_search._lp_falling import Falling, offsets, with_edges_at
from optimizer_search._lp_lattice import Lattice
from optimizer_search._lp_release import release, spread
from optimizer_search.certify import certified
from optimizer_search.single_release import least_cost_under, single_release_candidates


def beyond(parameter: float) -> Cost:
    return Cost(name="usefulness", parameter=parameter)


def bound_of(epsilon: float, delta: float, parameter: float, sensitivity: float = 1.0) -> float:
    return least_cost_under([(math.exp(epsilon), delta)], beyond(parameter), sensitivity)


def lattice(epsilon: float, delta: float, parameter: float, m: int) -> Lattice:
    return Lattice(
        constraints=((math.exp(epsilon), delta),),
        cost=beyond(parameter),
        sensitivity=1.0,
        m=m,
        centred=False,
        tolerance=1e-6,
    )


def best(epsilon: float, delta: float, parameter: float, sensitivity: float = 1.0) -> Noise:
    """The best law found, proved to be within the target."""
    asked = SearchProblem(
        target=Target(epsilon=epsilon, delta=delta), cost=beyond(parameter), sensitivity=sensitivity
    )
    found = [certified(asked, law) for law in single_release_candidates(asked)]
    assert all(candidate.epsilon <= epsilon for candidate in found)
    return min(found, key=lambda candidate: candidate.cost).law


REGIMES = [(0.3, 1e-10), (2.0, 1e-10), (3.0, 1e-10), (1.0, 1e-6), (1.0, 0.1), (3.0, 0.3)]
PARAMETERS = [(0.25, 1.0), (0.9, 1.0), (1.0, 1.0), (0.9, 0.5)]


@pytest.mark.parametrize(
    ("regime", "asked"), [*product(REGIMES[:5], PARAMETERS), ((3.0, 0.3), (0.9, 1.0))]
)
def test_the_law_found_is_the_best_of_all(
    regime: tuple[float, float], asked: tuple[float, float]
) -> None:
    found, bound = beyond(asked[0]).of(best(*regime, *asked)), bound_of(*regime, *asked)
    assert bound <= found <= bound * (1 + 4e-6)


@pytest.mark.parametrize("epsilon", [0.3, 2.0, 7.0])
@pytest.mark.parametrize("parameter", [0.5, 0.9])
def test_without_delta_the_best_law_is_a_staircase(epsilon: float, parameter: float) -> None:
    shares = np.append(np.linspace(0.01, 0.99, 99), parameter)
    stairs = [Staircase(epsilon=epsilon, width=1.0, gamma=float(g)) for g in shares]
    least = min(beyond(parameter).of(law) for law in stairs)
    assert (1 - 1e-5) * least <= bound_of(epsilon, 1e-13, parameter) <= least


@pytest.mark.parametrize(("parameter", "ms"), [(0.5, (2, 4, 10)), (0.9, (10, 20)), (2.0, (1, 3))])
@pytest.mark.parametrize("regime", [(1.0, 1e-6), (3.0, 0.3)])
def test_finer_cells_say_nothing_new(
    regime: tuple[float, float], parameter: float, ms: tuple[int, ...]
) -> None:
    lattices = [lattice(*regime, parameter, m) for m in ms]
    solved = [one.solution.cost for one in lattices]
    bounds = [one.bound for one in lattices]
    assert bounds == pytest.approx(solved, rel=1e-5, abs=1e-9)
    # How far they go differs by a cell.
    assert bounds == pytest.approx([bounds[0]] * len(ms), rel=1e-3, abs=1e-9)


def test_what_is_mirrored_is_counted_twice_from_the_first_cell_on() -> None:
    one = lattice(0.7, 1e-3, 0.5, 2)
    law, p = spread(one), one.solution.p
    assert 2 * p.sum() == pytest.approx(1.0, rel=1e-6)
    assert law.edges[:3] == (0.0, 0.5, 1.0)
    assert law.masses[:2] == pytest.approx(2 * p[:2], rel=1e-6)
    assert beyond(0.5).of(law) == pytest.approx(one.solution.cost, rel=1e-6)
    assert folded(np.array([-3, -2, -1, 0, 1, 2]), centred=False).tolist() == [2, 1, 0, 0, 1, 2]


def test_a_cell_that_holds_the_parameter_costs_nothing() -> None:
    assert cell_cost(beyond(0.9), 1.0, 10, 12).tolist() == [0] * 9 + [1] * 3
    assert cell_cost(beyond(0.9), 1.0, 7, 9).tolist() == [0] * 7 + [1] * 2
    # In floats 50 * 0.14 is above 7: the numbers are taken as they are written.
    assert cell_cost(beyond(0.14), 1.0, 50, 9).tolist() == [0] * 7 + [1] * 2
    assert release(((2.0, 0.1),), beyond(0.9), 0.3).lattice.m == 1


@pytest.mark.parametrize("m", [3, 7, 8])
def test_cells_that_do_not_end_at_the_parameter_bound_less(m: int) -> None:
    exact, coarse = bound_of(1.0, 0.01, 0.9), lattice(1.0, 0.01, 0.9, m).bound
    farther = bound_of(1.0, 0.01, math.ceil(0.9 * m) / m)
    assert coarse == pytest.approx(farther, rel=2e-3)
    assert coarse < 0.99 * exact


def hockey_stick(law: Tabulated, shift: float, gamma: float) -> float:
    edges = np.array(law.edges)
    line = np.concatenate([-edges[::-1], edges])
    cuts = np.unique(np.concatenate([line, line + shift]))
    middle, width = (cuts[1:] + cuts[:-1]) / 2, np.diff(cuts)
    p, q = (np.where(abs(x) < edges[-1], law.pdf(x), 0.0) for x in (middle - shift, middle))
    return float(np.sum(np.maximum(p - gamma * q, 0.0) * width))


def with_spike(law: Tabulated, place: float, mass: float) -> Tabulated:
    """The law, less ``mass``, which is put next to ±place, on the side of 0."""
    edges = np.unique(np.append(law.edges, [place - 1e-7, place]))
    tails = 2 * law.sf(edges)
    masses = (1 - mass) * (tails[:-1] - tails[1:])
    masses[np.searchsorted(edges, place) - 1] += mass
    return Tabulated(edges=tuple(edges), masses=tuple(masses))


def test_laws_are_made_for_a_little_less_than_delta() -> None:
    law = release(((math.e, 0.1),), beyond(0.9), 1.0).laws[-1]
    worst = max(hockey_stick(law, t, math.e) for t in np.arange(1, 11) / 10)
    assert 0.1 * (1 - 3e-6) < worst < 0.1 * (1 - 5e-7)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
@pytest.mark.parametrize("parameter", [0.5, 0.9])
def test_what_is_all_but_an_atom_at_the_parameter_does_not_beat_the_bound(
    share: float, parameter: float
) -> None:
    delta = 0.1
    mass = share * delta
    law = best(1.0, (delta - mass) / (1 - mass), parameter)
    assert isinstance(law, Tabulated)
    spiked = with_spike(law, parameter, mass)
    worst = max(hockey_stick(spiked, t, math.e) for t in (1.0, 0.9, 0.5, 0.123))
    assert worst <= delta * (1 + 1e-6)
    assert beyond(parameter).of(spiked) >= bound_of(1.0, delta, parameter)


def test_whatever_the_weights_the_bound_is_one() -> None:
    rng = np.random.default_rng(9)
    for parameter in (0.9, 0.5):
        known = [best(1.0, 0.1, parameter), Laplace(b=1.0), TruncatedLaplace.for_target(1.0, 0.1)]
        least = min(beyond(parameter).of(law) for law in known)
        for m in (1, 2, 7, 10):
            one = lattice(1.0, 0.1, parameter, m)
            t, x = one.events
            noise = np.exp(rng.normal(0, 0.2, len(t))) + rng.normal(0, 0.05, len(t))
            for weight in (one.solution.y, one.solution.y * noise, rng.normal(0, 0.2, len(t))):
                events = Events(gamma=math.e, delta=0.1, t=t, x=x, weight=weight)
                cost = beyond(parameter)
                assert certified_bound([events], cost, 1.0, m, centred=False) <= least


def test_cells_are_of_usefulness_only() -> None:
    one = np.ones(1, dtype=np.int64)
    events = Events(gamma=2.0, delta=0.1, t=one, x=one, weight=np.ones(1))
    with pytest.raises(ValueError, match="Expected the cost usefulness on cells, got l1"):
        certified_bound([events], Cost(name="l1"), 1.0, 4, centred=False)


@pytest.mark.parametrize("place", [0.9, 0.25, 2.5, 1.0, 0.1234567, 3.0 - 1e-4, 1e-12])
def test_a_cell_of_falling_laws_ends_at_the_parameter(place: float) -> None:
    edges = Falling(constraint=(math.e, 1e-3), cost=beyond(place), sensitivity=1.0).edges
    assert np.min(np.abs(edges - place)) <= 1e-11
    period = with_edges_at(place, offsets(0.03, 0.5))
    assert (period[0], period[-1]) == (0.0, 1.0)
    assert period + period[::-1] == pytest.approx(np.ones(len(period)), abs=1e-15)
    assert min(b - a for a, b in pairwise(period)) > 0
