"""Spherical tables: the issue's reference points, falling densities, the gain over dimension."""

from __future__ import annotations

import numpy as np
import pytest

from accountants import PLD
from dpmech import Gaussian, Mechanism, Sampling, Sensitivity, Target, Unattainable
from dpmech.spherical import SphericalGeneralizedGaussian
from dpmech.tabulated import TabulatedSpherical
from optimizer_search import Budget, Candidate, Cost, SearchProblem, certified
from optimizer_search._radial_program import RadialProgram
from optimizer_search.radial import mean_squares, radial_candidates

VARIANCE = Cost(name="variance")


def best(wanted: SearchProblem) -> Candidate:
    found = [certified(wanted, law) for law in radial_candidates(wanted)]
    return min(found, key=lambda candidate: candidate.value(wanted))


@pytest.mark.parametrize(("dim", "goal"), [(2, 0.073), (3, 0.120), (5, 0.215)])
def test_one_release_at_all_shifts(dim: int, goal: float) -> None:
    wanted = SearchProblem(target=Target(epsilon=5.0, delta=1e-5), dim=dim, cost=VARIANCE)
    found = best(wanted)
    assert found.cost <= goal
    assert isinstance(found.law, TabulatedSpherical)
    # Smaller shifts, asked for one by one, have no larger delta.
    for shift in (0.03, 0.25, 0.5, 0.71, 0.9, 0.99, 1.0):
        sensitivity = Sensitivity(bound=shift, dim=dim)
        release = Mechanism(noise=found.law, sensitivity=sensitivity)
        assert PLD().compose(release).delta(5.0) <= 1e-5 * (1 + 1e-9)


def test_shells_whose_volume_the_program_cannot_see_do_not_empty_the_law() -> None:
    wanted = SearchProblem(
        target=Target(epsilon=3.0, delta=1e-5),
        sampling=Sampling(rate=0.25),
        sensitivity=0.5,
        dim=99,
        cost=VARIANCE,
        cells=16,
    )
    tables = [law for law in radial_candidates(wanted) if isinstance(law, TabulatedSpherical)]
    assert tables  # the inner of 99 dimensions hold less than 1e-300 of the ball
    for law in tables:
        assert certified(wanted, law).epsilon <= 3.0


def test_many_releases_in_ten_dimensions() -> None:
    wanted = SearchProblem(
        target=Budget(cost=1.0, delta=1e-5),
        steps=1000,
        sampling=Sampling(rate=0.01),
        dim=10,
        cost=VARIANCE,
    )
    found = best(wanted)
    assert found.epsilon <= 1.675
    assert found.cost <= 1.0
    draws = found.law.sample((20_000, 10), np.random.default_rng(1))
    assert np.mean(draws**2) == pytest.approx(1.0, rel=0.02)


def test_the_gain_over_the_gaussian_falls_with_the_dimension() -> None:
    gains = [_gain(dim) for dim in (2, 6, 20)]
    assert gains[0] > gains[1] > gains[2] > 0


def _gain(dim: int) -> float:
    """Share of epsilon saved, at equal variance, on shells a little coarser than usual."""
    wanted = SearchProblem(
        target=Budget(cost=4.0, delta=1e-5), steps=20, dim=dim, cost=VARIANCE, cells=24
    )
    gaussian = Mechanism(noise=Gaussian(sigma=2.0), sensitivity=Sensitivity(dim=dim))
    plain = PLD().compose(gaussian, 20).epsilon(1e-5)
    return 1 - best(wanted).epsilon / plain


def test_the_program_is_tight_and_its_law_falls() -> None:
    edges = np.arange(0, 81) / 16
    program = RadialProgram(edges=edges, s=1.0, dim=2, costs=mean_squares(edges, 2) / 2)
    law = program.solved(5.0, 1e-5)
    density = np.array(law.masses) / np.diff(np.array(law.edges) ** 2)
    assert np.all(np.diff(density) <= 1e-9 * density[:-1])
    found = PLD().compose(Mechanism(noise=law, sensitivity=Sensitivity(dim=2)))
    assert found.delta(5.0) == pytest.approx(1e-5, rel=1e-4)
    # A looser delta is cheaper, a smaller epsilon dearer.
    assert program.solved(5.0, 1e-4).variance < law.variance < program.solved(4.0, 1e-5).variance


def test_shells_that_end_too_soon_are_unattainable() -> None:
    edges = np.arange(0, 20) / 16
    program = RadialProgram(edges=edges, s=1.0, dim=3, costs=mean_squares(edges, 3) / 3)
    with pytest.raises(Unattainable, match="No falling law on 19 shells"):
        program.solved(1.0, 1e-9)


def test_mean_squares_are_those_of_uniform_draws() -> None:
    edges, dim = np.array([0.0, 0.5, 1.0]), 3
    points = np.random.default_rng(2).uniform(-1, 1, (400_000, dim))
    radius = np.linalg.norm(points, axis=1)
    inner, outer = radius < 0.5, (radius >= 0.5) & (radius < 1)
    measured = [np.mean(radius[part] ** 2) for part in (inner, outer)]
    assert mean_squares(edges, dim) == pytest.approx(measured, rel=5e-3)


def test_a_density_that_rises_is_refused() -> None:
    with pytest.raises(ValueError, match="Expected densities above 0 that fall"):
        TabulatedSpherical(edges=(0.0, 1.0, 1.1), masses=(0.1, 0.9), dim=2)
    fine = SphericalGeneralizedGaussian(scale=1.0, beta=1.4, dim=2).shells
    table = TabulatedSpherical(edges=tuple(fine.edges), masses=tuple(fine.masses), dim=2)
    assert table.scaled(2.0).variance == pytest.approx(4 * table.variance)


def test_scalars_and_other_costs_are_refused() -> None:
    scalar = SearchProblem(target=Target(epsilon=1.0, delta=1e-5), cost=VARIANCE)
    with pytest.raises(ValueError, match="Expected a vector"):
        next(radial_candidates(scalar))
    with pytest.raises(ValueError, match="cost variance for dim=2"):
        SearchProblem(target=Target(epsilon=1.0, delta=1e-5), dim=2, cost=Cost(name="l1"))
