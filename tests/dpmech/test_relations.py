"""A record replaced by another: the pairs against quadrature, closed forms and a second library."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from accountants import PLD, RDP, Ledger
from accountants.exact import gaussian_delta
from dpmech import (
    LMO,
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
from dpmech.cells import Cells
from dpmech.discrete import DiscreteGaussian
from dpmech.guarantee import ApproximateDP, RandomizedResponse
from dpmech.noise import Floats
from dpmech.relations import PoissonSubstitutionPair, SubstitutionPair

C, Q = 0.8, 0.15
EPSILONS = (0.0, 0.05, 0.3, 1.0, 2.5)
CONCAVE: tuple[Noise, ...] = (
    Gaussian(sigma=1.0),
    Laplace(b=1.1),
    GeneralizedGaussian(scale=1.2, beta=1.4),
    GeneralizedGaussian(scale=1.2, beta=3.0),
    TruncatedLaplace(b=1.0, bound=2.5),
)
OTHERS: tuple[Noise, ...] = (
    GeneralizedGaussian(scale=0.8, beta=0.7),
    LaplaceMixture(scales=(0.5, 5.0), weights=(0.3, 0.7)),
    LMO(),
    Staircase(epsilon=1.5, width=0.7, gamma=0.3),
)


def replaced(noise: Noise, *, kind: str = "poisson", rate: float = Q) -> Mechanism:
    return Mechanism(
        noise=noise,
        sensitivity=Sensitivity(bound=C),
        sampling=Sampling(rate=rate, kind=kind),
        relation="replace-one",
    )


def delta_of(mechanism: Mechanism, epsilon: float) -> tuple[float, float]:
    return PLD().compose(mechanism).delta_interval(epsilon)


def divergence(p: Callable[[Floats], Floats], q: Callable[[Floats], Floats], ratio: float) -> float:
    """int (p - ratio q)_+ by the midpoint rule, without the tails."""
    edges = np.linspace(-15.0, 15.0, 100_001)
    x = (edges[1:] + edges[:-1]) / 2
    return float(np.sum(np.maximum(p(x) - ratio * q(x), 0.0)) * (edges[1] - edges[0]))


def mixture(noise: Noise, absent: float, present: float) -> Callable[[Floats], Floats]:
    return lambda x: (1 - Q) * noise.pdf(x - absent) + Q * noise.pdf(x - present)


@pytest.mark.parametrize("noise", CONCAVE, ids=str)
def test_the_poisson_pair_is_that_of_opposite_contributions(noise: Noise) -> None:
    assert isinstance(replaced(noise).pairs()[0], PoissonSubstitutionPair)
    for epsilon in EPSILONS:
        worst = divergence(mixture(noise, 0, C), mixture(noise, 0, -C), math.exp(epsilon))
        low, high = delta_of(replaced(noise), epsilon)
        assert low - 1e-4 <= worst <= high + 1e-4
        assert high - low <= 1e-6


def test_the_pair_of_opposite_contributions_is_for_proved_laws_only() -> None:
    """Its proof needs a log-concave density, and of vectors one that no rotation changes."""
    for noise in (*OTHERS, DiscreteGaussian(sigma=1.0)):
        mechanism = replace(replaced(noise), sensitivity=Sensitivity(bound=1.0))
        assert isinstance(mechanism.pairs()[0], SubstitutionPair)
    vector = Sensitivity(norm="l1", bound=C, dim=3)
    laplace = replace(replaced(Laplace(b=1.1)), sensitivity=vector)
    assert isinstance(laplace.pairs()[0], SubstitutionPair)
    gaussian = replace(replaced(Gaussian(sigma=1.0)), sensitivity=replace(vector, norm="l2"))
    assert isinstance(gaussian.pairs()[0], PoissonSubstitutionPair)


@pytest.mark.parametrize("noise", [*CONCAVE, *OTHERS], ids=str)
@pytest.mark.parametrize("kind", ["poisson", "without-replacement"])
def test_no_two_records_exceed_the_pair(noise: Noise, kind: str) -> None:
    rng = np.random.default_rng(11)
    for v, w, u in rng.uniform(-C, C, (6, 3)).tolist():
        # Without replacement some other record, of contribution u, is drawn instead.
        absent = u if kind == "without-replacement" else 0.0
        for epsilon in (-0.2, 0.02, 0.4):
            p, q = mixture(noise, absent, v), mixture(noise, absent, w)
            size = divergence(p, q, math.exp(epsilon))
            at = abs(epsilon)
            high = delta_of(replaced(noise, kind=kind), at)[1]
            if epsilon < 0:  # the curve below 1, by its reverse
                high = 1 - math.exp(-at) + math.exp(-at) * high
            assert size <= high + 1e-4


def test_no_two_vectors_exceed_the_gaussian_pair() -> None:
    noise, rng = Gaussian(sigma=1.0), np.random.default_rng(12)
    x = np.linspace(-7, 7, 501)
    grid = np.stack(np.meshgrid(x, x))

    def density(v: Floats) -> Floats:
        return np.exp(-((grid[0] - v[0]) ** 2 + (grid[1] - v[1]) ** 2) / 2) / (2 * np.pi)

    at_zero = density(np.zeros(2))
    for _ in range(20):
        v, w = (C * u / max(1.0, float(np.linalg.norm(u))) for u in rng.normal(size=(2, 2)))
        p, q = ((1 - Q) * at_zero + Q * density(u) for u in (v, w))
        for epsilon in (0.02, 0.2):
            size = float(np.sum(np.maximum(p - math.exp(epsilon) * q, 0.0))) * (x[1] - x[0]) ** 2
            assert size <= delta_of(replaced(noise), epsilon)[1] + 1e-5
    vector = replace(replaced(noise), sensitivity=Sensitivity(bound=C, dim=100))
    assert vector.pairs() == replaced(noise).pairs()


@pytest.mark.parametrize("rate", [0.01, 0.3, 0.95])
def test_without_replacement_is_the_rate_times_the_curve_at_twice_the_bound(rate: float) -> None:
    mechanism = replaced(Gaussian(sigma=1.0), kind="without-replacement", rate=rate)
    for epsilon in EPSILONS:
        base = math.log1p(math.expm1(epsilon) / rate)
        exact = rate * gaussian_delta(base, 1 / (2 * C))
        low, high = delta_of(mechanism, epsilon)
        assert low <= exact * (1 + 1e-12)
        assert high >= exact * (1 - 1e-12)
        assert high - low <= 1e-9


def fine_cells(pair: SubstitutionPair | PoissonSubstitutionPair) -> Cells:
    edges = pair.edges(1e-12)
    for _ in range(5):
        middles = (edges[1:] + edges[:-1]) / 2
        edges = np.unique(np.concatenate([edges, middles[np.isfinite(middles)]]))
    return pair.cells(edges)


ALL = [(law, "without-replacement") for law in (*CONCAVE, *OTHERS)] + [
    (law, "poisson") for law in CONCAVE
]
ATOMIC = [
    (ApproximateDP(epsilon=0.7, delta=1e-3), "without-replacement"),
    (RandomizedResponse(epsilon=0.7, values=5), "without-replacement"),
]


def without_replacement_or(noise: Noise, kind: str) -> Mechanism:
    sampling = Sampling(rate=Q, kind=kind)
    return Mechanism(noise=noise, sampling=sampling, relation="replace-one")


@pytest.mark.parametrize(("noise", "kind"), ALL + ATOMIC, ids=str)
def test_the_pair_is_a_pair_and_its_own_reverse(noise: Noise, kind: str) -> None:
    (pair,) = without_replacement_or(noise, kind).pairs()
    assert isinstance(pair, SubstitutionPair | PoissonSubstitutionPair)
    cells = fine_cells(pair)
    p, q = np.exp(cells.log_p), np.exp(cells.log_q)
    assert np.sum(p) == pytest.approx(1.0, abs=1e-9)
    assert np.sum(q) == pytest.approx(1.0, abs=1e-9)
    for ratio in (0.3, 0.9, 1.0, 1.1, 3.0):
        there = np.sum(np.maximum(p - ratio * q, 0.0))
        assert np.sum(np.maximum(q - ratio * p, 0.0)) == pytest.approx(there, abs=1e-9)
    straddling = (cells.low < -1e-9) & (cells.high > 1e-9)
    assert not np.any(straddling)
    full = cells.log_p > -np.inf
    assert np.all((cells.low <= cells.loss + 1e-12)[full])
    assert np.all((cells.loss <= cells.high + 1e-12)[full])


def test_lost_mass_is_kept() -> None:
    guarantee = without_replacement_or(ApproximateDP(epsilon=0.7, delta=1e-3), ALL[0][1])
    assert guarantee.pairs()[0].infinite_mass == pytest.approx(Q * 1e-3)
    assert PLD().compose(guarantee).epsilon(0.99 * Q * 1e-3) == math.inf
    truncated = replaced(TruncatedLaplace(b=1.0, bound=2.5))
    beyond = Q * float(truncated.noise.sf(2.5 - C))
    low, high = delta_of(truncated, 50.0)
    assert low == pytest.approx(beyond, rel=1e-9)
    assert high == pytest.approx(beyond, rel=1e-9)


def test_supports_that_do_not_meet() -> None:
    apart = replaced(TruncatedLaplace(b=1.0, bound=0.3))
    for epsilon in (0.0, 5.0):
        assert delta_of(apart, epsilon) == pytest.approx((Q, Q), rel=1e-9)


def test_unsampled_replacement_doubles_the_sensitivity() -> None:
    for noise in (*CONCAVE, *OTHERS):
        mechanism = replaced(noise, rate=1.0)
        doubled = Mechanism(noise=noise, sensitivity=Sensitivity(bound=2 * C))
        assert delta_of(mechanism, 0.4) == delta_of(doubled, 0.4)


@pytest.mark.parametrize("rate", [0.2, 1.0])
def test_zeroing_out_costs_what_removal_does(rate: float) -> None:
    for noise in (CONCAVE[0], OTHERS[0], DiscreteGaussian(sigma=2.0)):
        runs = [
            Mechanism(noise=noise, sampling=Sampling(rate=rate), relation=relation)
            for relation in ("add-remove", "zero-out")
        ]
        first, second = (PLD().compose(run, 5).epsilon_interval(1e-5) for run in runs)
        assert first == second


def test_a_guarantee_about_replacement_says_nothing_of_a_poisson_sample() -> None:
    with pytest.raises(NoDominatingPair, match="lack it altogether"):
        without_replacement_or(ApproximateDP(epsilon=0.5), "poisson").pairs()
    whole = Mechanism(noise=ApproximateDP(epsilon=0.5), relation="replace-one")
    assert whole.pairs()[0].atoms() == (-0.5, 0.5)  # not doubled: it is about replacement already


def test_replacement_costs_more_than_removal_and_less_than_two() -> None:
    for noise in (CONCAVE[0], CONCAVE[1]):
        added = replace(replaced(noise), relation="add-remove")
        twice = replace(added, sensitivity=Sensitivity(bound=2 * C))
        poisson, exchanged = replaced(noise), replaced(noise, kind="without-replacement")
        costs = [PLD().compose(m, 20).epsilon(1e-6) for m in (added, poisson, exchanged)]
        assert costs == sorted(costs)
        assert costs[0] < costs[1] < costs[2]
        assert PLD().compose(twice, 20).lower_epsilon(1e-6) <= costs[2]


@pytest.mark.parametrize("relation", ["add-remove", "replace-one", "zero-out"])
@pytest.mark.parametrize("kind", ["poisson", "without-replacement"])
@pytest.mark.parametrize("rate", [0.2, 1.0])
def test_renyi_bounds_are_never_below_the_pair(relation: str, kind: str, rate: float) -> None:
    """Whoever does not know a relation must refuse it."""
    for noise in (Gaussian(sigma=1.5), Laplace(b=2.0), OTHERS[0], DiscreteGaussian(sigma=2.0)):
        try:
            sampling = Sampling(rate=rate, kind=kind)
            mechanism = Mechanism(noise=noise, sampling=sampling, relation=relation)
            renyi = RDP().compose(mechanism, 10).epsilon(1e-6)
        except NoDominatingPair:
            continue
        assert renyi >= PLD().compose(mechanism, 10).lower_epsilon(1e-6)


@pytest.mark.parametrize("dim", [1, 4])
def test_renyi_bounds_of_vectors_know_the_relation(dim: int) -> None:
    for noise in (Gaussian(sigma=1.5), Laplace(b=2.0)):
        sensitivity = Sensitivity(norm="l2", bound=1.0, dim=dim)
        mechanism = Mechanism(noise=noise, sensitivity=sensitivity, relation="replace-one")
        doubled = Mechanism(noise=noise, sensitivity=replace(sensitivity, bound=2.0))
        try:
            renyi = RDP().compose(mechanism, 3).epsilon(1e-6)
        except NoDominatingPair:
            continue
        assert renyi == pytest.approx(RDP().compose(doubled, 3).epsilon(1e-6), rel=1e-9)


def test_a_ledger_has_one_relation() -> None:
    added = Mechanism(noise=Gaussian(sigma=1.0))
    with pytest.raises(ValueError, match="Expected one relation in a ledger, got add-remove, zero"):
        Ledger().add(added).add(replace(added, relation="zero-out"))
    with pytest.raises(ValueError, match="replace-one"):
        Ledger(((added, 1), (replace(added, relation="replace-one"), 2)))
    one = Ledger().add(replaced(Gaussian(sigma=1.0)), 7)
    assert Ledger.from_json(one.to_json()) == one


@pytest.mark.parametrize(
    ("sigma", "rate", "steps"), [(1.0, 0.1, 100), (2.0, 1.0, 5), (0.5, 0.3, 3)]
)
def test_the_second_library_agrees_on_replaced_records(
    sigma: float, rate: float, steps: int
) -> None:
    peer = pytest.importorskip("dp_accounting.pld.privacy_loss_distribution")
    relation = pytest.importorskip("dp_accounting").NeighboringRelation.REPLACE_ONE
    theirs = peer.from_gaussian_mechanism(
        sigma, sampling_prob=rate, neighboring_relation=relation
    ).self_compose(steps)
    mechanism = Mechanism(
        noise=Gaussian(sigma=sigma), sampling=Sampling(rate=rate), relation="replace-one"
    )
    low, high = PLD().compose(mechanism, steps).epsilon_interval(1e-6)
    value = theirs.get_epsilon_for_delta(1e-6)
    assert low * (1 - 1e-4) <= value <= high * (1 + 1e-3)


@pytest.mark.parametrize(("sigma", "rate", "steps"), [(1.0, 0.1, 100), (4.0, 0.01, 1000)])
def test_never_looser_than_renyi_bounds_without_replacement(
    sigma: float, rate: float, steps: int
) -> None:
    peer = pytest.importorskip("dp_accounting")
    rdp = pytest.importorskip("dp_accounting.rdp")
    accountant = rdp.RdpAccountant(neighboring_relation=peer.NeighboringRelation.REPLACE_ONE)
    # Its noise multiplier is in units of the change of the query, twice the contribution.
    event = peer.GaussianDpEvent(sigma / 2)
    batch = peer.SampledWithoutReplacementDpEvent(100_000, round(100_000 * rate), event)
    accountant.compose(batch, steps)
    sampling = Sampling(rate=rate, kind="without-replacement")
    mechanism = Mechanism(noise=Gaussian(sigma=sigma), sampling=sampling, relation="replace-one")
    ours = PLD().compose(mechanism, steps).epsilon(1e-6)
    assert ours <= accountant.get_epsilon(1e-6) * 1.0001
