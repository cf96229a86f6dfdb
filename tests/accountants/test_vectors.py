"""Rényi bounds for vectors of independent noise, between brute force and concrete neighbours."""

import itertools
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from scipy import special

from accountants import PLD, RDP
from accountants._majorant import Profile, curvature, joint_log_moments, log_moments
from accountants._renyi import renyi_interval
from accountants._vectors import vector_log_moments
from accountants.exact import gaussian_renyi, subsampled_gaussian_renyi
from accountants.limits import (
    lower_epsilon_vector,
    one_coordinate_neighbour,
    spread_neighbour,
)
from accountants.rdp import renyi_divergence
from dpmech import (
    LMO,
    LMO_PRESETS,
    Gaussian,
    GeneralizedGaussian,
    Laplace,
    LaplaceMixture,
    Mechanism,
    NoDominatingPair,
    Noise,
    Sampling,
    Sensitivity,
    Staircase,
    TruncatedLaplace,
)
from dpmech.discrete import DiscreteGaussian, DiscreteLaplace, DiscreteNoise
from dpmech.lattice import LatticeNoise
from dpmech.logconcave import FlippedHuber, Logistic, OffsetGaussian
from dpmech.loss import SubsampledPair, pair_of
from dpmech.mechanism import Norm
from dpmech.skellam import Skellam
from dpmech.spherical import SphericalGeneralizedGaussian

LAPLACE = Laplace(b=math.sqrt(0.5))  # variance 1
MIXTURE = LaplaceMixture(scales=(0.5, 5.0), weights=(0.3, 0.7))
NORMAL = GeneralizedGaussian(scale=math.sqrt(2), beta=2.0)  # N(0, 1), by cells
LAWS: tuple[Noise, ...] = (
    LAPLACE,
    MIXTURE,
    LMO_PRESETS["0.3"],
    LMO_PRESETS["3"],
    GeneralizedGaussian(scale=1.0, beta=1.4),
    GeneralizedGaussian(scale=1.0, beta=3.0),
    GeneralizedGaussian(scale=1.0, beta=0.7),
    Staircase.least_mean_abs(1.0),
    OffsetGaussian(sigma=1.5, offset=0.5),
    FlippedHuber(sigma=0.8, alpha=1.0),
    Logistic(scale=0.6),
)
ORDERS = np.array([1.01, 1.5, 2.0, 5.0, 20.0, 64.0])
DIMS = (1, 4, 16, 256, 4096)
POWERS: dict[Norm, float] = {"l1": 1.0, "l2": 2.0, "linf": math.inf}


def vector(noise: Noise, dim: int, rate: float = 1.0, norm: Norm = "l2") -> Mechanism:
    return Mechanism(
        noise=noise,
        sensitivity=Sensitivity(norm=norm, dim=dim),
        sampling=Sampling(rate=rate),
    )


# Between RDP and the neighbours -------------------------------------------------------------------


@pytest.mark.parametrize("noise", [LAPLACE, LMO_PRESETS["0.3"], LMO_PRESETS["3"]], ids=str)
@pytest.mark.parametrize(("rate", "steps"), [(1.0, 1), (0.01, 1000)])
@pytest.mark.parametrize("dim", DIMS)
def test_above_both_neighbours(noise: Noise, rate: float, steps: int, dim: int) -> None:
    release = vector(noise, dim, rate)
    epsilon = RDP().compose(release, steps).epsilon(1e-5)
    one = PLD().compose(one_coordinate_neighbour(release), steps).lower_epsilon(1e-5)
    spread = PLD().compose_ledger(spread_neighbour(release, steps)).lower_epsilon(1e-5)
    assert lower_epsilon_vector(release, steps, 1e-5) == pytest.approx(max(one, spread), rel=1e-3)
    assert max(one, spread) <= epsilon
    # Of these laws the spread neighbour is the worst: what RDP is loose by is its conversion.
    assert rate < 1 or epsilon <= 1.12 * max(one, spread)


def test_what_adding_sampled_coordinates_would_claim_is_false() -> None:
    """The mutation that these bounds stand against: it is below a neighbour that exists."""
    release = vector(LAPLACE, 4096, rate=0.01)
    coordinate = Mechanism(
        noise=LAPLACE, sensitivity=Sensitivity(bound=1 / 64), sampling=Sampling(rate=0.01)
    )
    added = RDP().compose(coordinate, 4096 * 1000).epsilon(1e-5)
    assert added < 0.5 * lower_epsilon_vector(release, 1000, 1e-5)


# The Gaussian -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [1, 4, 256])
def test_a_gaussian_law_by_cells_is_the_gaussian(dim: int) -> None:
    release = vector(NORMAL, dim)
    ratio = renyi_divergence(release, ORDERS) / gaussian_renyi(ORDERS, 1.0)
    assert np.all(ratio >= 1)
    assert np.all(ratio <= 1 + 3e-3)


@pytest.mark.parametrize("rate", [0.5, 0.01])
def test_a_sampled_gaussian_law_is_the_sampled_gaussian(rate: float) -> None:
    got = renyi_divergence(vector(NORMAL, 16, rate), [2.0, 3.0, 8.0, 40.0])
    want = [subsampled_gaussian_renyi(a, 1.0, rate) for a in (2, 3, 8, 40)]
    assert np.all(got >= want)
    np.testing.assert_allclose(got, want, rtol=1e-2)


def test_a_sampled_gaussian_law_costs_what_the_gaussian_does() -> None:
    got = RDP().compose(vector(NORMAL, 16, 0.01), 1000).epsilon(1e-5)
    want = RDP().compose(vector(Gaussian(sigma=1.0), 16, 0.01), 1000).epsilon(1e-5)
    assert want <= got <= 1.004 * want


@pytest.mark.parametrize("order", [1.05, 1.5, 2.5, 7.3, 40.9])
@pytest.mark.parametrize("rate", [0.7, 0.1, 1e-3])
@pytest.mark.parametrize("sigma", [0.3, 1.0, 10.0])
def test_orders_between_the_whole_ones_are_bounds(order: float, rate: float, sigma: float) -> None:
    """On an l1 ball the series and its remainder meet the exact scalar value."""
    release = vector(Gaussian(sigma=sigma), 2, rate, "l1")
    got = vector_log_moments(release, np.array([order]))[0] / (order - 1)
    base = pair_of(Gaussian(sigma=sigma), 1.0)
    pair = SubsampledPair(base=base, rate=rate, direction="remove")
    low, high = renyi_interval(pair, np.array([order, order + 1]))
    assert low[0] <= got <= max(high[1], 1.3 * high[0])


@pytest.mark.parametrize("dim", [2, 100])
def test_closed_forms_of_other_balls(dim: int) -> None:
    corner = renyi_divergence(vector(Gaussian(sigma=3.0), dim, norm="linf"), ORDERS)
    np.testing.assert_allclose(corner, dim * gaussian_renyi(ORDERS, 3.0), rtol=1e-9)
    edge = renyi_divergence(vector(Gaussian(sigma=3.0), dim, norm="l1"), ORDERS)
    np.testing.assert_allclose(edge, gaussian_renyi(ORDERS, 3.0), rtol=1e-9)
    law = GeneralizedGaussian(scale=1.0, beta=1.0)
    laplace = renyi_divergence(Mechanism(noise=Laplace(b=1.0)), ORDERS)
    np.testing.assert_allclose(
        renyi_divergence(vector(law, dim, norm="l1"), ORDERS), laplace, rtol=5e-4
    )


# Brute force --------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", LAWS, ids=str)
@pytest.mark.parametrize("norm", POWERS)
def test_no_shift_that_is_allowed_costs_more(noise: Noise, norm: Norm) -> None:
    rng = np.random.default_rng(5)
    dim, power = 6, POWERS[norm]
    bound = joint_log_moments(noise, Sensitivity(norm=norm, dim=dim), ORDERS)
    for used in (1, 2, 3, 6, 6, 6):
        v = np.zeros(dim)
        v[:used] = 1.0 if used > 3 and rng.random() < 0.3 else rng.random(used) + 1e-3
        v /= np.linalg.norm(v, power)
        joint = sum(log_moments(noise, ORDERS, float(x)) for x in v[:used])
        assert np.all(joint <= bound * (1 + 1e-8)), v


@pytest.mark.parametrize("noise", [LAPLACE, LMO_PRESETS["3"], MIXTURE], ids=str)
@pytest.mark.parametrize("order", [1.4, 2.0, 3.5, 6.0])
def test_a_sampled_plane_by_brute_force(noise: Noise, order: float) -> None:
    """Both directions of E[(1-q+q r)^alpha] over a grid of the plane, at three shifts."""
    rate = 0.2
    reach = float(noise.isf(1e-9))
    u = np.linspace(-np.arcsinh(reach * 20), np.arcsinh(reach * 20), 1201)
    x = np.sinh(u) / 20
    weight = np.gradient(x)
    bound = vector_log_moments(vector(noise, 2, rate), np.array([order]))[0]
    for v in ((1.0, 0.0), (math.sqrt(0.5), math.sqrt(0.5)), (0.9, math.sqrt(0.19))):
        base = [noise.pdf(x) * weight for _ in v]
        ratio = [np.exp(noise.logpdf(x - shift) - noise.logpdf(x)) for shift in v]
        q_mass, mixed = np.outer(*base), 1 - rate + rate * np.outer(*ratio)
        total = np.sum(q_mass)
        remove = math.log(np.sum(q_mass * mixed**order) / total)
        add = math.log(np.sum(q_mass * mixed ** (1 - order)) / total)
        assert add <= remove * (1 + 1e-3)
        assert remove <= bound * (1 + 1e-3)
        assert bound <= 3 * remove


# The certificate between the shifts ---------------------------------------------------------------


@pytest.mark.parametrize("noise", [*LAWS, LMO(a1=0, a4=0), LMO(a3=0, low=0)], ids=str)
def test_no_log_density_bends_up_more_than_is_claimed(noise: Noise) -> None:
    bend = curvature(noise)
    x = np.geomspace(1e-3, float(noise.isf(1e-12)), 400)
    step = 0.02 * x
    second = (noise.logpdf(x + step) - 2 * noise.logpdf(x) + noise.logpdf(x - step)) / step**2
    assert np.max(second) <= bend * (1 + 1e-6) + 1e-3
    assert math.isinf(bend) or bend <= 20 * max(np.max(second), 1e-3)  # and it says something


@pytest.mark.parametrize("noise", LAWS, ids=str)
def test_bounds_between_the_shifts_hold(noise: Noise) -> None:
    rng = np.random.default_rng(3)
    orders = np.array([1.2, 2.0, 9.0])
    profile = Profile.start(noise, orders, curvature(noise), (1.0, 64, 2))
    slope = np.array([0.0, 0.0, 0.0])
    highest = profile._above(slope)
    c0, c1, c2 = profile._chords
    for cell, (low, high) in enumerate(zip(profile.tau[:-1], profile.tau[1:], strict=True)):
        for tau in low + (high - low) * rng.uniform(0.02, 0.98, 3):
            psi = log_moments(noise, orders, tau)
            assert np.all(psi <= (c0[cell] + tau * (c1[cell] + tau * c2[cell])) * (1 + 1e-8))
            assert np.all(psi <= highest[cell] * (1 + 1e-8))


@pytest.mark.parametrize("noise", LAWS, ids=str)
@pytest.mark.parametrize("power", [1, 2])
def test_fewer_shifts_only_loosen(noise: Noise, power: int) -> None:
    orders = np.array([1.2, 2.0, 9.0, 40.0])
    coarse = Profile.start(noise, orders, curvature(noise), (1.0, 50, power))
    assert np.all(coarse.joint(50) >= coarse.refined().joint(50) * (1 - 1e-9))


@pytest.mark.parametrize("noise", [LMO_PRESETS["3"], MIXTURE], ids=str)
def test_a_chord_without_the_bend_would_be_no_bound(noise: Noise) -> None:
    """psi is concave in places, so that convexity alone is not what holds the bound up."""
    orders = np.array([1.2, 2.0, 9.0])
    tau = np.array([0.5, 1.0, 2.0]) * 3
    low, middle, high = (log_moments(noise, orders, float(t)) for t in tau)
    chord = low + (high - low) / 3
    assert np.any(middle > chord)


# What must hold of any such curve -----------------------------------------------------------------


@pytest.mark.parametrize("noise", LAWS, ids=str)
@pytest.mark.parametrize("rate", [1.0, 0.05])
def test_grows_with_order_and_rate(noise: Noise, rate: float) -> None:
    orders = np.array([1.05, 1.3, 2.0, 2.7, 3.0, 8.0, 33.0, 50.5, 120.0])
    curve = renyi_divergence(vector(noise, 9, rate), orders)
    # Bounds may be loose by different amounts: of monotone laws by 5 %, of the rest by 0.5 %.
    slack = 0.06 if math.isinf(curvature(noise)) else 6e-3
    assert np.all(np.diff(curve) >= -slack * curve[1:])
    assert np.all(curve > 0)
    assert np.all(curve <= renyi_divergence(vector(noise, 9), orders) * (1 + slack))


def test_never_below_the_scalar_and_grows_with_the_dimension() -> None:
    noise = LMO_PRESETS["0.7"]
    curves = [renyi_divergence(vector(noise, d, 0.1), ORDERS) for d in (1, 2, 8, 512)]
    for fewer, more in pairwise(curves):
        assert np.all(more >= fewer * (1 - 1e-6))


def test_moments_that_diverge_are_infinite() -> None:
    law = TruncatedLaplace(b=1.0, bound=5.0)
    for rate in (1.0, 0.25):
        release = vector(law, 3, rate)
        assert np.all(np.isinf(renyi_divergence(release, [1.5, 2.0, 9.5, 100.0])))
        assert RDP().compose(release).epsilon(1e-5) == math.inf
        assert RDP().compose(release).delta(1.0) == 1.0


def test_light_tails_have_huge_moments_but_no_garbage() -> None:
    law = GeneralizedGaussian(scale=1.0, beta=4.0)
    curve = renyi_divergence(vector(law, 4, 0.1), [2.0, 8.0, 64.0, 300.0])
    assert np.all(np.diff(curve) > 0)
    assert np.all(curve < 1.01 * renyi_divergence(vector(law, 4), [2.0, 8.0, 64.0, 300.0]))


def test_only_independent_noise_is_covered() -> None:
    assert RDP().compose(vector(MIXTURE, 8), 2).ledger.runs == 2
    with pytest.raises(NoDominatingPair):
        PLD().compose(vector(MIXTURE, 8))
    whole = vector(LatticeNoise(masses=(0.25, 0.125)), 8)
    sphere = vector(SphericalGeneralizedGaussian(scale=2.0, beta=1.0, dim=8), 8, norm="linf")
    for release in (whole, sphere):
        with pytest.raises(NoDominatingPair):
            RDP().compose(release)
        with pytest.raises(NoDominatingPair, match=release.noise.name):
            lower_epsilon_vector(release, 1, 1e-5)


WHOLE = (DiscreteGaussian(sigma=3.0), DiscreteLaplace(b=2.0), Skellam(mu=7.0), Skellam(mu=400.0))


@pytest.mark.parametrize("noise", WHOLE, ids=str)
@pytest.mark.parametrize(("norm", "bound"), [("l1", 5.0), ("l2", math.sqrt(12)), ("linf", 2.5)])
def test_no_whole_shift_costs_more(noise: DiscreteNoise, norm: Norm, bound: float) -> None:
    dim, power = 3, POWERS[norm]
    got = joint_log_moments(noise, Sensitivity(norm=norm, bound=bound, dim=dim), ORDERS)
    reach = np.arange(math.floor(bound) + 1)
    moments = np.stack([_brute_force(noise, int(j)) for j in reach])
    worst = np.zeros(len(ORDERS))
    for v in itertools.product(reach, repeat=dim):
        if np.linalg.norm(v, power) <= bound * (1 + 1e-12):
            worst = np.maximum(worst, sum(moments[j] for j in v))
    assert np.all(worst <= got * (1 + 1e-6) + 1e-12)
    # A line over the points of a convex psi is lowest through its ends: some slack in l2.
    assert np.all(got <= worst * (1.02 if norm != "l2" else 1.2) + 1e-12)


def _brute_force(noise: DiscreteNoise, shift: int) -> np.ndarray:
    """ln E_f[(f(x - shift)/f(x))^alpha] by summing all there is."""
    x = np.arange(-4000, 4001)
    f, moved = noise.logpdf(x), noise.logpdf(x - shift)
    return np.array([special.logsumexp(a * moved - (a - 1) * f) for a in ORDERS])


def test_whole_noise_on_a_vector_costs_little_more_than_a_gaussian() -> None:
    """Sampled and composed; the discrete Gaussian's closed form, Skellam's from its masses."""
    for noise, dim in itertools.product(
        (DiscreteGaussian(sigma=40.0), Skellam(mu=1600.0)), (2, 900)
    ):
        run = Mechanism(
            noise=noise,
            sensitivity=Sensitivity(norm="l2", bound=50.0, dim=dim),
            sampling=Sampling(rate=0.02),
        )
        gaussian = replace(run, noise=Gaussian(sigma=40.0))
        mine = RDP().compose(run, 300).epsilon(1e-6)
        assert 1.0 <= mine / RDP().compose(gaussian, 300).epsilon(1e-6) < 1.02
        assert np.all(np.isfinite(renyi_divergence(replace(run, sampling=Sampling()), ORDERS)))


def test_less_than_a_whole_step_is_no_shift() -> None:
    with pytest.raises(ValueError, match=r"sensitivity=0.5 of 1 at least"):
        RDP().compose(
            Mechanism(noise=Skellam(mu=5.0), sensitivity=Sensitivity(norm="l2", bound=0.5, dim=3))
        ).epsilon(1e-5)


def test_a_record_replaced_in_a_vector_is_twice_the_change() -> None:
    replaced = replace(vector(MIXTURE, 8), relation="replace-one")
    double = replace(replaced, relation="add-remove", sensitivity=Sensitivity(bound=2.0, dim=8))
    assert RDP().compose(replaced).epsilon(1e-5) == RDP().compose(double).epsilon(1e-5)
    assert lower_epsilon_vector(replaced, 2, 1e-5) == lower_epsilon_vector(double, 2, 1e-5)
