"""Claims against limits: what is refuted, what is accepted, and that nothing true is refuted."""

import math
from dataclasses import replace

import numpy as np
import pytest

from accountants import PLD, RDP, Ledger
from accountants._audit_pairs import line_pair, replaced_pair, shift_pair
from accountants._audit_proofs import deltas, epsilons
from accountants._single import single_delta
from accountants.audit import CutOff, RandomDirection, audit_claim
from accountants.exact import (
    gaussian_delta,
    gaussian_epsilon,
    laplace_delta,
    laplace_epsilon,
)
from dpmech import (
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
    Unattainable,
)
from dpmech.discrete import DiscreteGaussian, DiscreteLaplace
from dpmech.guarantee import ApproximateDP, RandomizedResponse
from dpmech.heavy_tailed import StudentT
from dpmech.lattice_mixtures import MultiGaussian
from dpmech.logconcave import Logistic
from dpmech.mechanism import Norm
from dpmech.noise import Floats
from dpmech.relations import PoissonSubstitutionPair
from dpmech.skellam import Skellam
from dpmech.spherical import SphericalGeneralizedGaussian
from dpmech.tabulated import Tabulated

SST2 = Sampling(rate=2048 / 67_350)  # 192 steps
CLIPPED = Sensitivity(norm="l2", dim=4096)
# One coordinate up, one down: a shift by two cells tells little, a shift by one tells much.
COMB = Tabulated(edges=tuple(map(float, range(9))), masses=(0.3, 0.02) * 4, decay=0.0)


def drawn(name: str) -> Noise:
    """As the published sampler draws: the rate of E is taken for its mean."""
    return replace(LMO_PRESETS[name], rate=1 / LMO_PRESETS[name].rate)


# The published sets: mathematics.md §2, table


@pytest.mark.parametrize(
    ("name", "as_drawn", "pure", "verdict"),
    [
        ("0.3", False, 0.235, "proved"),
        ("0.3", True, 0.882, "refuted"),
        ("0.7", False, 0.624, "proved"),
        ("0.7", True, 1.172, "refuted"),
        ("2", False, 1.722, "proved"),
        ("2", True, 2.184, "refuted"),
        ("3", False, 2.462, "proved"),
        ("3", True, 2.902, "proved"),
    ],
)
def test_one_release_of_a_published_set(
    name: str, as_drawn: bool, pure: float, verdict: str
) -> None:
    release = Mechanism(noise=drawn(name) if as_drawn else LMO_PRESETS[name])
    audit = audit_claim(release, float(name), 1e-10)
    assert audit.verdict == verdict
    assert audit.lower_epsilon == pytest.approx(pure, abs=1e-3)
    assert audit.lower_epsilon <= audit.proof.epsilon
    assert audit_claim(release, pure + 1e-3, 0).verdict == "proved"
    assert audit_claim(release, pure - 2e-3, 0).verdict == "refuted"


def test_the_exact_delta_of_set_03_as_it_is_drawn() -> None:
    audit = audit_claim(Mechanism(noise=drawn("0.3")), 0.3, 1e-10)
    assert 0.156 <= audit.lower_delta <= audit.proof.delta <= 0.157
    assert audit.sentence.startswith("Refuted: the claim is (0.3, 1e-10)-DP")
    assert audit.gaussian_sigma == pytest.approx(18.7308, abs=1e-3)


@pytest.mark.parametrize(("as_drawn", "least"), [(True, 2.6), (False, 0.56)])
def test_set_03_on_a_clipped_gradient(as_drawn: bool, least: float) -> None:
    noise = drawn("0.3") if as_drawn else LMO_PRESETS["0.3"]
    release = Mechanism(noise=noise, sensitivity=CLIPPED, sampling=SST2)
    audit = audit_claim(release, 0.157, 1e-10, count=192)
    assert audit.verdict == "refuted"
    assert least <= audit.lower_epsilon < audit.proof.epsilon
    assert audit.violated is not None
    assert "4096 coordinates" in audit.violated.neighbour
    # Its limit, a Gaussian of 1/sqrt(J) (1.363 and 4.536 in mathematics.md §2).
    assert audit.estimate_many_coordinates == pytest.approx(audit.lower_epsilon, rel=0.02)
    assert noise.fisher_information**-0.5 == pytest.approx(1.363 if as_drawn else 4.536, abs=1e-3)


def test_laplace_noise_of_variance_one_on_a_clipped_gradient() -> None:
    release = Mechanism(noise=Laplace(b=math.sqrt(0.5)), sensitivity=CLIPPED)
    scalar = audit_claim(replace(release, sensitivity=Sensitivity()), math.sqrt(2), 1e-5)
    assert scalar.verdict == "proved"
    audit = audit_claim(release, math.sqrt(2), 1e-5)
    assert audit.verdict == "refuted"
    assert audit.lower_epsilon >= 6.5
    l1 = Mechanism(noise=release.noise, sensitivity=Sensitivity(norm="l1", dim=4096))
    assert audit_claim(l1, math.sqrt(2) * (1 + 1e-12), 0).verdict == "proved"


# Noise on a random line


def sampled_delta(law: RandomDirection, shift: float, epsilon: float) -> tuple[float, float]:
    """(mean, standard error) of (1 - e^(epsilon - loss))_+ over draws of z, v."""
    d = int(law.dim)
    x = law.sample((60_000, d), np.random.default_rng(5))
    near = np.linalg.norm(x, axis=1)
    x[:, 0] += shift
    far = np.linalg.norm(x, axis=1)
    loss = (d - 1) * np.log(far / near) + law.size.logpdf(near) - law.size.logpdf(far)
    terms = np.maximum(-np.expm1(epsilon - loss), 0.0)
    return float(np.mean(terms)), float(np.std(terms)) / math.sqrt(len(terms))


@pytest.mark.parametrize("dim", [2, 3, 10, 100])
@pytest.mark.parametrize("size", [Gaussian(sigma=1.6), Laplace(b=2.0)], ids=str)
def test_noise_on_a_line_against_draws_of_its_loss(size: Noise, dim: int) -> None:
    law = RandomDirection(size, dim)
    for epsilon in (0.1, 1.0, 4.0):
        lower, _ = single_delta(line_pair(law, 1.0), epsilon)
        mean, error = sampled_delta(law, 1.0, epsilon)
        assert lower <= mean + 5 * error
        assert lower >= 0.95 * mean - 5 * error


def r1smg_sigma(epsilon: float, delta: float, dim: int) -> float:
    """The size in Ji & Li (2024), whose abstract has its square: 2 s^2 / (epsilon psi)."""
    log_ratio = math.lgamma((dim - 1) / 2) - math.lgamma(dim / 2) - math.log(math.pi) / 2
    psi = math.exp(2 / (dim - 2) * (math.log(delta) + log_ratio))
    return math.sqrt(2 / (epsilon * psi))


def test_noise_on_a_random_line_hides_nothing_in_high_dimension() -> None:
    law = RandomDirection(Gaussian(sigma=r1smg_sigma(1.0, 1e-5, 100)), 100)
    release = Mechanism(noise=law, sensitivity=Sensitivity(norm="l2", dim=100))
    audit = audit_claim(release, 1.0, 1e-5)
    assert audit.verdict == "refuted"
    assert audit.lower_delta >= 0.9
    assert audit.proof.refusal.startswith("No pair is proved")
    assert audit.gaussian_sigma == pytest.approx(gaussian_sigma(1.0, 1e-5), rel=1e-4)
    # Sampled and composed it is still seen, and a linf bound allows the same change.
    linf = replace(release, sensitivity=Sensitivity(norm="linf", dim=100), sampling=SST2)
    assert audit_claim(linf, 1.0, 1e-5, count=10).lower_delta > 0.2


def gaussian_sigma(epsilon: float, delta: float) -> float:
    sigma = np.linspace(3.5, 4.0, 5_001)
    deltas = np.array([gaussian_delta(epsilon, float(s)) for s in sigma])
    return float(sigma[np.argmax(deltas <= delta)])


# A generator that stops


def test_a_gaussian_that_ends_at_5768_standard_deviations() -> None:
    law = CutOff(Gaussian(sigma=1.0), math.sqrt(48 * math.log(2)))
    release = Mechanism(noise=law, sampling=Sampling(rate=0.01))
    # Beyond the other's support: an event that has no epsilon.
    once = 0.01 * float(law.sf(law.bound - 1))
    event = -math.expm1(1000 * math.log1p(-once))
    audit = audit_claim(release, 50.0, 9e-6, count=1000)
    assert audit.verdict == "refuted"
    assert event * (1 - 1e-6) <= audit.lower_delta <= event * (1 + 1e-9)
    assert event > 9e-6
    true = PLD().compose(Mechanism(noise=Gaussian(sigma=1.0), sampling=release.sampling), 1000)
    claim = true.epsilon(1e-5)
    assert audit_claim(true.ledger, claim, 1e-5).verdict == "proved"
    assert audit_claim(release, claim, 1e-5, count=1000).verdict == "refuted"


@pytest.mark.parametrize(
    "law", [Gaussian(sigma=1.3), Laplace(b=0.7), StudentT(scale=1.0, df=3.0), LMO_PRESETS["2"]]
)
def test_a_cut_law_is_the_law_given_that_it_is_inside(law: Noise) -> None:
    bound = float(law.isf(1e-4))
    cut = CutOff(law, bound)
    assert cut.isf([0.3, 1e-3, 1e-9]) == pytest.approx(
        law.isf(np.array([0.3, 1e-3, 1e-9]) * (1 - 2e-4) + 1e-4), rel=1e-9
    )
    x = bound * np.array([-0.99999, -0.5, 0.0, 0.2, 0.9, 0.99999])
    kept = 1 - 2 * float(law.sf(bound))
    assert cut.sf(x) == pytest.approx((law.sf(x) - law.sf(bound)) / kept, rel=1e-9, abs=1e-15)
    assert cut.pdf(x) == pytest.approx(law.pdf(x) / kept, rel=1e-12)
    assert np.max(np.abs(cut.sample(50_000, np.random.default_rng(1)))) <= bound
    if not isinstance(law, Laplace):  # the closed form of another module
        return
    same = TruncatedLaplace(b=law.b, bound=bound)
    assert cut.logsf(x) == pytest.approx(same.logsf(x), rel=1e-9)
    release = Mechanism(noise=same, sensitivity=Sensitivity(bound=0.5))
    other = PLD().compose(replace(release, noise=cut), 3).delta_interval(0.5)
    assert other == pytest.approx(PLD().compose(release, 3).delta_interval(0.5), rel=1e-3)


# Accepted


def test_the_gaussian_at_its_true_epsilon() -> None:
    for sigma, count in ((1.0, 1), (3.0, 20)):
        true = gaussian_epsilon(1e-5, sigma, count)
        release = Mechanism(noise=Gaussian(sigma=sigma))
        assert audit_claim(release, true * (1 + 1e-6), 1e-5, count=count).verdict == "proved"
        assert audit_claim(release, true, 1e-5, count=count).verdict != "refuted"
        assert audit_claim(release, true * (1 - 1e-6), 1e-5, count=count).verdict == "refuted"


@pytest.mark.parametrize(
    ("noise", "pure"),
    [
        (Staircase.least_mean_abs(1.0), 1.0),
        (Staircase(epsilon=0.5, width=0.4, gamma=0.3), 1.5),
        (Laplace(b=2.0), 0.5),
        (Logistic(scale=2.0), 0.5),
        (LaplaceMixture(scales=(0.5, 5.0), weights=(0.3, 0.7)), None),
        # At its peak x = (1 + sqrt 13)/2 the loss is 2 ln((3 + x^2)/(3 + (x-1)^2)).
        (StudentT(scale=1.0, df=3.0), 2 * math.log((math.sqrt(13) + 1) / (math.sqrt(13) - 1))),
        (DiscreteLaplace(b=2.0), 0.5),
        (RandomizedResponse(epsilon=0.7), 0.7),
    ],
    ids=str,
)  # fmt: skip
def test_pure_privacy(noise: Noise, pure: float | None) -> None:
    pure = pure or float(noise.logpdf(0.0) - noise.logpdf(1.0))
    release, hair = Mechanism(noise=noise), 1 + 1e-9
    assert audit_claim(release, pure * hair, 0).verdict == "proved"
    assert audit_claim(release, pure * 0.99, 0).verdict == "refuted"
    if isinstance(noise, Laplace | DiscreteLaplace | RandomizedResponse | Staircase):
        assert audit_claim(release, 3 * pure * hair, 0, count=3).verdict == "proved"
    if isinstance(noise, RandomizedResponse):
        return
    sampled = replace(release, sampling=Sampling(rate=0.2))
    amplified = math.log1p(0.2 * math.expm1(pure))
    audit = audit_claim(sampled, amplified * hair, 0)
    assert audit.verdict == "proved"
    assert amplified <= audit.proof.epsilon <= amplified * hair
    assert audit_claim(sampled, amplified * 0.99, 0).verdict == "refuted"


@pytest.mark.parametrize(("norm", "pure"), [("l1", 0.5), ("l2", 2.0), ("linf", 8.0)])
def test_pure_privacy_of_laplace_vectors_goes_by_their_l1_norm(norm: Norm, pure: float) -> None:
    release = Mechanism(noise=Laplace(b=2.0), sensitivity=Sensitivity(norm=norm, dim=16))
    audit = audit_claim(release, pure, 0)
    assert (audit.verdict, audit.proof.epsilon) == ("proved", pure)
    assert audit_claim(release, pure * 0.99, 0).verdict == "refuted"


def test_gaussian_noise_has_no_pure_privacy() -> None:
    assert audit_claim(Mechanism(noise=Gaussian(sigma=1.0)), 15.0, 0).verdict == "refuted"


def test_a_guarantee_is_no_reason_to_refute() -> None:
    """The release that keeps it may do better."""
    audit = audit_claim(Mechanism(noise=ApproximateDP(epsilon=1.0)), 0.5, 1e-6)
    assert (audit.verdict, audit.shown, audit.lower_epsilon) == ("open", (), 0.0)
    assert audit_claim(Mechanism(noise=ApproximateDP(epsilon=1.0)), 1.0, 0).verdict == "proved"


def test_what_lies_between_the_bounds_is_open() -> None:
    release = Mechanism(noise=Laplace(b=math.sqrt(0.5)), sensitivity=Sensitivity(dim=16))
    audit = audit_claim(release, 5.4, 1e-5)
    assert audit.verdict == "open"
    assert audit.lower_epsilon < 5.4 < audit.proof.epsilon
    assert audit.proof.by == "rdp"
    assert audit.violated is None
    assert audit.sentence.startswith("Open: the claim is (5.4, 1e-05)-DP; epsilon <= 5.4")


# Shifts between 0 and the bound


def test_the_worst_shift_may_be_smaller_than_the_bound() -> None:
    law = MultiGaussian(sigma=0.2, width=1.0, epsilon=1.0)
    audit = audit_claim(Mechanism(noise=law), 1.0, 1e-6)
    assert audit.verdict == "refuted"
    assert audit.violated is not None
    assert audit.violated.epsilon > 2.9
    assert "9/16" in audit.violated.neighbour
    assert audit.shown[-1].epsilon <= 1.0  # the bound itself, which hides it
    comb = audit_claim(Mechanism(noise=COMB, sensitivity=Sensitivity(bound=2.0)), 0.5, 0.5)
    parts = {cost.neighbour: cost.delta for cost in comb.shown}
    assert (
        parts["a change by 16/16 of the bound"] < 0.3 < 0.5 < parts["a change by 8/16 of the bound"]
    )
    assert comb.verdict == "refuted"
    assert comb.lower_delta <= comb.proof.delta


@pytest.mark.parametrize(
    "noise",
    [
        Gaussian(sigma=1.0),
        Laplace(b=0.5),
        LMO_PRESETS["2"],
        StudentT(scale=1.0, df=3.0),
        Staircase.least_mean_abs(1.0),
        TruncatedLaplace(b=1.0, bound=3.0),
        Tabulated(edges=(0.0, 1.0, 2.0, 3.0), masses=(0.5, 0.3, 0.2)),
        Tabulated(edges=(0.0, 1.0, 2.0, 3.0), masses=(0.6, 0.3, 0.1), decay=0.25),
    ],
    ids=lambda noise: str(noise)[:30],
)
def test_one_shift_from_below(noise: Noise) -> None:
    """Of falling laws the pair is known: cells lose little of it, and gain nothing."""
    for shift in (0.3, 1.0, 1.5):
        whole = Mechanism(noise=noise, sensitivity=Sensitivity(bound=shift)).pairs()[0]
        merged = shift_pair(noise, shift)
        total = float(np.sum(merged.p)) + merged.infinite_mass
        assert total == pytest.approx(1.0, abs=1e-8)
        for epsilon in (0.05, 0.3, 1.0):
            truth = single_delta(whole, epsilon)[1]
            assert single_delta(merged, epsilon)[0] <= truth
            assert single_delta(merged, epsilon)[1] >= truth * 0.99 - 1e-6


@pytest.mark.parametrize(
    "noise", [Gaussian(sigma=1.0), Laplace(b=0.5), TruncatedLaplace(b=1.0, bound=2.5)], ids=str
)
def test_a_record_replaced_in_a_sample(noise: Noise) -> None:
    whole = PoissonSubstitutionPair(noise=noise, bound=1.0, rate=0.2)
    merged = replaced_pair(noise, 1.0, 0.2)
    for epsilon in (0.05, 0.3, 1.0):
        truth = single_delta(whole, epsilon)[1]
        assert 0.99 * truth <= single_delta(merged, epsilon)[0] <= truth
    batch = Mechanism(
        noise=noise,
        sampling=Sampling(rate=0.2, kind="without-replacement"),
        relation="replace-one",
    )
    audit = audit_claim(batch, 0.3, 1e-6)
    assert audit.lower_delta == pytest.approx(single_delta(whole, 0.3)[0], rel=1e-2)
    assert audit.lower_delta < audit.proof.delta


@pytest.mark.parametrize("noise", [DiscreteLaplace(b=2.0), DiscreteGaussian(sigma=1.5)], ids=str)
def test_a_whole_number_replaced_in_a_sample(noise: Noise) -> None:
    """Against the sum over all values."""
    k = np.arange(-200.0, 201.0)
    p, q = (0.7 * noise.pdf(k) + 0.3 * noise.pdf(k - c) for c in (2.0, -2.0))
    for epsilon in (0.05, 0.3, 0.8):
        truth = float(np.sum(np.maximum(p - math.exp(epsilon) * q, 0.0)))
        found = single_delta(replaced_pair(noise, 2.0, 0.3), epsilon)[0]
        assert truth * (1 - 1e-6) - 1e-12 <= found <= truth


def test_shifts_that_a_pair_rounds_up_are_not_what_refutes() -> None:
    table = Tabulated(edges=(0.0, 1.0, 2.0, 3.0), masses=(0.5, 0.3, 0.2))
    for bound in (0.5, 1.0, 1.3):
        release = Mechanism(noise=table, sensitivity=Sensitivity(bound=bound))
        audit = audit_claim(release, 0.1, 1e-6)
        # H is linear in the shift between the edges; the losses are 0, ln(5/3), ln(3/2), inf …
        density, moved = [0.1, 0.15, 0.25, 0.25, 0.15, 0.1], [(math.floor(bound), 1 - bound % 1)]
        moved.append((math.floor(bound) + 1, bound % 1))
        truth = sum(
            share * max(p - math.exp(0.1) * q, 0.0)
            for shift, share in moved
            for p, q in zip([0.0] * shift + density, density + [0.0] * shift, strict=True)
        )
        assert truth * (1 - 1e-9) <= audit.lower_delta <= truth * (1 + 1e-15)
    tiny = Sensitivity(bound=1e-6)
    assert (
        audit_claim(
            Mechanism(noise=Staircase.least_mean_abs(1.0), sensitivity=tiny), 0.0, 1e-12
        ).shown
        == ()
    )


# Ledgers


def test_a_ledger_of_several() -> None:
    vector = Mechanism(noise=Laplace(b=3.0), sensitivity=Sensitivity(dim=50))
    scalar = Mechanism(noise=Gaussian(sigma=2.0), sampling=Sampling(rate=0.3))
    both = audit_claim(Ledger().add(vector, 2).add(scalar, 5), 3.0, 1e-6)
    alone = [audit_claim(vector, 3.0, 1e-6, count=2), audit_claim(scalar, 3.0, 1e-6, count=5)]
    assert both.lower_epsilon > max(audit.lower_epsilon for audit in alone)
    assert both.lower_epsilon <= RDP().compose(vector, 2).compose(scalar, 5).epsilon(1e-6)
    scalars = Ledger().add(scalar, 5).add(Mechanism(noise=Laplace(b=5.0)), 2)
    low, high = PLD().compose_ledger(scalars).epsilon_interval(1e-6)
    audit = audit_claim(scalars, high, 1e-6)
    assert (audit.lower_epsilon, audit.proof.epsilon, audit.verdict) == (low, high, "proved")
    assert audit_claim(Ledger(), 0.0, 0).verdict == "proved"


# Nothing true is refuted


def random_laws(rng: np.random.Generator) -> Noise:
    scale = float(np.exp(rng.uniform(-0.7, 1.5)))
    table = rng.uniform(0.1, 1.0, 3)
    if rng.random() < 0.8:  # a density that falls takes one shift
        table = np.sort(table)[::-1]
    laws: tuple[Noise, ...] = (
        Gaussian(sigma=scale),
        Laplace(b=scale),
        GeneralizedGaussian(scale=scale, beta=float(rng.uniform(0.6, 3.0))),
        Staircase(epsilon=1 / scale, width=1.0, gamma=float(rng.uniform(0.1, 0.9))),
        LMO_PRESETS[str(rng.choice(["0.3", "0.7", "2", "3"]))].scaled(scale),
        LaplaceMixture(scales=(scale, 4 * scale), weights=(0.4, 0.6)),
        StudentT(scale=scale, df=float(rng.uniform(1.0, 10.0))),
        CutOff(Gaussian(sigma=scale), 6 * scale),
        DiscreteLaplace(b=scale),
        DiscreteGaussian(sigma=scale),
        Tabulated(edges=(0.0, 0.5, 1.0, 1.5), masses=tuple(table), decay=0.3),
    )
    return laws[int(rng.integers(len(laws)))]


def random_release(rng: np.random.Generator) -> Mechanism:
    noise = random_laws(rng)
    bound = (
        1.0
        if isinstance(noise, DiscreteLaplace | DiscreteGaussian)
        else float(rng.choice([0.5, 1.0]))
    )
    relation = str(rng.choice(["add-remove", "replace-one", "zero-out"], p=[0.7, 0.2, 0.1]))
    rate = float(rng.choice([1.0, rng.uniform(0.01, 0.5)]))
    fixed = relation == "replace-one" and rng.random() < 0.5
    return Mechanism(
        noise=noise,
        sensitivity=Sensitivity(bound=bound),
        sampling=Sampling(rate=rate, kind="without-replacement" if fixed else "poisson"),
        relation=relation,
    )


def random_vector(rng: np.random.Generator) -> Mechanism:
    vectors = (
        (Laplace(b=2.0), Sensitivity(norm="l1", dim=20)),
        (Gaussian(sigma=2.0), Sensitivity(norm="l2", dim=20)),
        (Laplace(b=2.0), Sensitivity(norm="l2", dim=3)),
        (GeneralizedGaussian(scale=2.0, beta=1.5), Sensitivity(norm="l2", dim=4)),
        (SphericalGeneralizedGaussian(scale=2.0, beta=1.4, dim=3), Sensitivity(norm="l2", dim=3)),
    )
    noise, sensitivity = vectors[int(rng.integers(len(vectors)))]
    return Mechanism(noise=noise, sensitivity=sensitivity)


def proved(release: Mechanism, count: int, delta: float) -> float:
    """An upper bound on epsilon by an accountant of another kind or another grid."""
    try:
        return PLD(tolerance=3e-3).compose(release, count).epsilon(delta)
    except NoDominatingPair:
        return RDP().compose(release, count).epsilon(delta)


@pytest.mark.parametrize("noise", [DiscreteGaussian(sigma=30.0), Skellam(mu=900.0)], ids=str)
@pytest.mark.parametrize("rate", [1.0, 0.05])
def test_whole_number_noise_on_vectors_takes_whole_shifts(noise: Noise, rate: float) -> None:
    release = Mechanism(
        noise=noise,
        sensitivity=Sensitivity(norm="l2", bound=50.0, dim=100),
        sampling=Sampling(rate=rate),
    )
    proved = RDP().compose(release, 3).epsilon(1e-5)
    assert audit_claim(release, proved, 1e-5, count=3).verdict == "proved"
    below = audit_claim(release, 0.7 * proved, 1e-5, count=3)
    assert below.violated is None or below.lower_epsilon <= proved
    assert below.lower_epsilon > 0.1 * proved


@pytest.mark.parametrize("seed", range(8))
def test_no_true_claim_is_refuted(seed: int) -> None:
    """At upper bounds that are close to the truth; with the exact ones below a thousand claims."""
    rng = np.random.default_rng(seed)
    for trial in range(45):
        release = random_vector(rng) if trial % 35 == 0 else random_release(rng)
        count, delta = int(rng.choice([1, 1, 1, 1, 2, 6])), float(10 ** rng.uniform(-9, -2))
        claim = proved(release, count, delta)
        if math.isinf(claim):
            continue
        audit = audit_claim(release, claim, delta, count=count)
        assert audit.verdict != "refuted", (release, count, delta, audit.sentence)


@pytest.mark.parametrize("seed", range(4))
def test_exact_truths_are_not_refuted(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(50):
        scale, epsilon = float(np.exp(rng.uniform(-1, 2))), float(rng.uniform(0, 2))
        for noise, delta, truth in (
            (Gaussian(sigma=scale), gaussian_delta, gaussian_epsilon),
            (Laplace(b=scale), laplace_delta, laplace_epsilon),
        ):
            release, exact = Mechanism(noise=noise), delta(epsilon, scale)
            if 1e-50 < exact < 1:
                assert audit_claim(release, epsilon, exact).verdict != "refuted"
                assert audit_claim(release, epsilon, exact * 0.999).verdict == "refuted"
                assert audit_claim(release, epsilon, exact * 1.001).verdict == "proved"
                assert truth(exact, scale) == pytest.approx(epsilon, abs=1e-6)


@pytest.mark.parametrize("seed", range(2))
def test_false_claims_are_refuted(seed: int) -> None:
    rng = np.random.default_rng(100 + seed)
    for _ in range(25):
        release = replace(random_release(rng), relation="add-remove", sampling=Sampling(rate=0.3))
        if isinstance(release.noise, Tabulated) and not release.noise.falling:
            continue
        low = PLD().compose(release, 2).lower_epsilon(1e-5)
        if math.isfinite(low) and low > 0.01:
            assert audit_claim(release, 0.99 * low, 1e-5, count=2).verdict == "refuted"


class Silent(PLD):
    """An accountant that finds no certificate."""

    def epsilon_interval(self, delta: float) -> tuple[float, float]:
        raise Unattainable(f"none at {delta}", reached=1.0)

    def delta_interval(self, epsilon: float) -> tuple[float, float]:
        raise Unattainable(f"none at {epsilon}", reached=1.0)


def test_where_an_accountant_gives_up_nothing_is_claimed() -> None:
    silent = Silent(ledger=Ledger().add(Mechanism(noise=Gaussian(sigma=1.0))))
    assert epsilons(silent, 1e-5) == (0.0, math.inf)
    assert deltas(silent, 1.0, 1e-5) == (0.0, 1.0)


def test_a_claim_far_above_the_truth_takes_no_long_tails() -> None:
    """Its delta is said to be 1e-40 at most, which is true from the epsilon of 1e-40 on."""
    release = Mechanism(noise=Gaussian(sigma=3.0))
    audit = audit_claim(release, 50.0, 1e-6)
    assert audit.verdict == "proved"
    assert gaussian_delta(50.0, sigma=3.0) <= audit.proof.delta == 1e-40
    assert audit_claim(release, 3.0, 1e-6).proof.delta == pytest.approx(
        gaussian_delta(3.0, sigma=3.0), rel=1e-6
    )


# What is said


def test_sentences_are_rounded_to_their_safe_side() -> None:
    release = Mechanism(noise=Gaussian(sigma=1.0))
    said = audit_claim(release, 4.0, 1e-5).sentence
    assert "epsilon >= 4.377 at" in said  # 4.37718
    assert "epsilon <= 4.378 at" in audit_claim(release, 4.5, 1e-5).sentence


def test_the_gaussian_that_honours_a_claim() -> None:
    release = Mechanism(
        noise=Laplace(b=1.0),
        sensitivity=Sensitivity(norm="linf", bound=0.5, dim=9),
        sampling=Sampling(rate=0.1),
    )
    sigma = audit_claim(release, 1.0, 1e-5, count=10).gaussian_sigma
    assert sigma is not None
    l2 = replace(release, noise=Gaussian(sigma=sigma), sensitivity=Sensitivity(bound=1.5, dim=9))
    low, high = PLD(tolerance=1e-6).compose(l2, 10).epsilon_interval(1e-5)
    assert 1 - 1e-4 <= low <= high <= 1 + 1e-6
    assert audit_claim(release, 1.0, 0).gaussian_sigma is None


@pytest.mark.parametrize(
    ("epsilon", "delta"), [(-1.0, 1e-5), (math.inf, 1e-5), (1.0, 1.0), (1.0, -1e-9)]
)
def test_what_is_no_claim_is_refused(epsilon: float, delta: float) -> None:
    with pytest.raises(ValueError, match=r"Expected (epsilon|delta)="):
        audit_claim(Mechanism(noise=Gaussian(sigma=1.0)), epsilon, delta)


def test_what_is_no_law_of_these_is_refused() -> None:
    with pytest.raises(ValueError, match="Expected one of gaussian"):
        CutOff(Staircase.least_mean_abs(1.0), 3.0)
    with pytest.raises(ValueError, match="dim=1 of a random direction"):
        RandomDirection(Gaussian(sigma=1.0), 1)


def test_a_random_line_has_the_moments_of_its_size() -> None:
    law = RandomDirection(Laplace(b=2.0), 5)
    draws: Floats = law.sample((40_000, 5), np.random.default_rng(2))
    assert np.mean(draws**2) == pytest.approx(law.variance, rel=0.05)
    assert law.variance == pytest.approx(8.0 / 5)
    with pytest.raises(ValueError, match="ends in dim=5"):
        law.sample(3, np.random.default_rng(2))
