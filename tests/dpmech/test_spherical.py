"""Spherical laws: what is sampled is what the atoms say, in any dimension."""

import math

import mpmath as mp
import numpy as np
import pytest
from scipy import special, stats

from dpmech.loss import AtomicPair, pair_of
from dpmech.spherical import SphericalGeneralizedGaussian, meetings

LAWS = [
    SphericalGeneralizedGaussian(scale=1.3, beta=beta, dim=dim, step=0.2)
    for beta, dim in [(2.0, 1), (1.0, 2), (1.4, 3), (2.0, 10), (1.7, 100)]
]


def radial_cdf(law: SphericalGeneralizedGaussian, r: np.ndarray) -> np.ndarray:
    """P(|X| <= r) from the shells."""
    edges, masses, dim = law.shells.edges, law.shells.masses, law.dim
    at = np.clip(np.searchsorted(edges, r, side="right") - 1, 0, len(masses) - 1)
    inner, outer = edges[at], edges[at + 1]
    ratio = (inner / outer) ** dim
    within = ((r / outer) ** dim - ratio) / (1 - ratio)
    return np.append(0.0, np.cumsum(masses))[at] + masses[at] * np.clip(within, 0, 1)


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_shells_are_a_falling_density_near_the_named_one(law: SphericalGeneralizedGaussian) -> None:
    shells = law.shells
    assert float(np.sum(shells.masses)) == pytest.approx(1.0)
    assert np.all(np.diff(shells.log_density) < 0)
    volume = law.dim * np.log(shells.edges[1:])
    with np.errstate(divide="ignore"):
        volume += np.log(-np.expm1(law.dim * (np.log(shells.edges[:-1] / shells.edges[1:]))))
    apart = np.log(shells.masses) - volume - shells.log_density
    seen = shells.masses > 1e-250
    assert np.ptp(apart[seen]) < 1e-9  # the density on a shell is mass / volume
    exact = special.gammainc(law.dim / law.beta, (shells.edges[1:] / law.scale) ** law.beta)
    assert np.max(np.abs(np.cumsum(shells.masses) - exact)) < 0.02


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_samples_follow_the_shells_and_no_other_scale(law: SphericalGeneralizedGaussian) -> None:
    draws = law.sample((4000, int(law.dim)), np.random.default_rng(5))
    radius = np.linalg.norm(draws, axis=1)
    assert stats.kstest(radius, lambda r: radial_cdf(law, r)).pvalue > 1e-3
    for wrong in (2 / 3, 3 / 2):
        assert stats.kstest(radius * wrong, lambda r: radial_cdf(law, r)).pvalue < 1e-9
    # The direction is uniform: the first coordinate of it squared is Beta(1/2, (d-1)/2).
    if law.dim > 1:
        share = (draws[:, 0] / radius) ** 2
        assert stats.kstest(share, stats.beta(0.5, (law.dim - 1) / 2).cdf).pvalue > 1e-3
        assert abs(float(np.mean(draws[:, 0] > 0)) - 0.5) < 0.04
    assert law.mean_square_radius == pytest.approx(float(np.mean(radius**2)), rel=0.1)


@pytest.mark.parametrize("dim", [1, 2, 3, 10, 60])
def test_chances_of_meeting_against_an_integral(dim: int) -> None:
    """P(|y + v| in shell b | y uniform in shell a) by quadrature over the radius of y."""
    edges = np.array([0.0, 0.6, 1.1, 1.7, 2.0, 3.1]) * math.sqrt(dim)
    shift = 0.9
    a, b, chance, error = meetings(edges, shift, dim)
    assert np.all((error < 1e-9) | (chance < 1e-12))  # shells that just touch
    found = np.zeros((5, 5))
    found[a, b] = chance

    def below(r: mp.mpf, other: float) -> mp.mpf:
        """P(|y + v| <= other | |y| = r): the angle's cosine is at most c."""
        c = (other**2 - r**2 - shift**2) / (2 * r * shift)
        if dim == 1:
            return mp.mpf((c >= 1) + (c >= -1)) / 2
        c = max(mp.mpf(-1), min(mp.mpf(1), c))
        half = mp.betainc(
            mp.mpf(dim - 1) / 2, mp.mpf(dim - 1) / 2, 0, (1 + c) / 2, regularized=True
        )
        return half

    for i in range(5):
        low, high = edges[i], edges[i + 1]
        for j in range(5):
            breaks = sorted(
                {float(x) for e in edges[j : j + 2] for x in (e - shift, e + shift, shift - e)}
            )
            inside = [low, *(x for x in breaks if low < x < high), high]

            def weight(r: mp.mpf, j: int = j) -> mp.mpf:
                return dim * r ** (dim - 1) * (below(r, edges[j + 1]) - below(r, edges[j]))

            mass = mp.quad(weight, inside) / (mp.mpf(high) ** dim - mp.mpf(low) ** dim)
            assert found[i, j] == pytest.approx(float(mass), rel=1e-8, abs=1e-12)


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_the_pair_is_a_pair(law: SphericalGeneralizedGaussian) -> None:
    """P has mass 1; so has Q, which by reflection is the mirror image of P."""
    pair = pair_of(law, 0.8)
    assert isinstance(pair, AtomicPair)
    assert float(np.sum(pair.p)) + pair.infinite_mass == pytest.approx(1.0, abs=1e-11)
    q = pair.p * np.exp(-pair.losses)
    assert float(np.sum(q)) == pytest.approx(1.0, abs=1e-9)
    for loss in (0.2, 0.6):
        up = float(np.sum(pair.p[np.abs(pair.losses - loss) < 1e-9]))
        down = float(np.sum(pair.p[np.abs(pair.losses + loss) < 1e-9]))
        assert down == pytest.approx(up * math.exp(-loss), rel=1e-8)


def test_losses_are_those_of_samples() -> None:
    law = LAWS[2]
    pair = pair_of(law, 0.8)
    assert isinstance(pair, AtomicPair)
    x = law.sample((200_000, 3), np.random.default_rng(6))
    edges, density = law.shells.edges, law.shells.log_density

    def log_density(points: np.ndarray) -> np.ndarray:
        shell = np.searchsorted(edges, np.linalg.norm(points, axis=1), side="right") - 1
        return density[np.minimum(shell, len(density) - 1)]

    # P is the law about v: x + v with x drawn.
    moved = x + np.array([0.8, 0.0, 0.0])
    losses = log_density(x) - log_density(moved)
    for level in (-0.5, -0.1, 0.1, 0.5, 0.9):
        expected = float(np.sum(pair.p[pair.losses > level]))
        assert float(np.mean(losses > level)) == pytest.approx(expected, abs=5e-3)


def test_one_dimension_is_the_line() -> None:
    """On the line the chances are lengths of intervals."""
    edges, shift = np.array([0.0, 0.5, 1.25, 2.0]), 0.3
    a, b, chance, _ = meetings(edges, shift, 1)
    for i, j, found in zip(a, b, chance, strict=True):
        total = 0.0
        for low, high in [(edges[i], edges[i + 1]), (-edges[i + 1], -edges[i])]:
            for left, right in [(edges[j], edges[j + 1]), (-edges[j + 1], -edges[j])]:
                total += max(0.0, min(high + shift, right) - max(low + shift, left))
        assert found == pytest.approx(total / (2 * (edges[i + 1] - edges[i])), abs=1e-14)


def test_bad_parameters_are_named() -> None:
    with pytest.raises(ValueError, match=r"dim=2\.5"):
        SphericalGeneralizedGaussian(scale=1.0, beta=2.0, dim=2.5)
    with pytest.raises(ValueError, match="step=0"):
        SphericalGeneralizedGaussian(scale=1.0, beta=2.0, dim=2, step=0)
    with pytest.raises(ValueError, match=r"ends in dim=3, got \(4,\)"):
        LAWS[2].sample(4, np.random.default_rng(0))
    with pytest.raises(ValueError, match="scalar"):
        LAWS[2].logpdf(0.0)
