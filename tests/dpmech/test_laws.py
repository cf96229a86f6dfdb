"""One contract for every law: each method is checked against the others, then against numbers."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from scipy import stats

from dpmech import (
    LMO,
    LMO_PRESETS,
    Gaussian,
    GeneralizedGaussian,
    Laplace,
    LaplaceMixture,
    Noise,
    Staircase,
    TruncatedLaplace,
)
from dpmech.families import log_upper_gamma
from dpmech.heavy_tailed import StudentT
from dpmech.lattice_mixtures import MultiGaussian, Tulap
from dpmech.logconcave import FlippedHuber, Logistic, OffsetGaussian
from dpmech.mixture import (
    log_uniform_transform,
    uniform_tilted_mean,
    uniform_tilted_variance,
)
from dpmech.noise import Floats

NODES, WEIGHTS = np.polynomial.legendre.leggauss(16)
# Points of the right half, by the survival there; none is on an edge of a staircase of the list.
TAILS = np.array([0.49, 0.4, 0.2501, 0.1, 3e-2, 1e-3, 1e-6, 1e-10])
DRAWS = 200_000


def edges(law: Noise) -> Floats:
    """Where the density jumps or bends sharply, on x > 0."""
    if isinstance(law, Staircase | Tulap):
        gamma = law.gamma if isinstance(law, Staircase) else 0.5
        return law.width * (np.arange(400) + gamma)
    if isinstance(law, FlippedHuber):
        return np.array([law.alpha])
    return np.array([])


def inner_points(law: Noise) -> Floats:
    """Points of the right half, clear of the end of the support."""
    x = law.isf(TAILS)
    return x[x < 0.999 * law.support]


def integral(law: Noise, function: Callable[[Floats], Floats], end: float = math.inf) -> float:
    """2 * int_0^end by Gauss-Legendre on geometric panels, cut where the density jumps."""
    end = min(end, law.support, float(law.isf(1e-60)))
    panels = np.concatenate([[0.0], np.geomspace(1e-40, end, 1_500), edges(law)])
    panels = np.unique(panels[panels <= end])
    half, middle = np.diff(panels) / 2, (panels[1:] + panels[:-1]) / 2
    x = middle[:, None] + half[:, None] * NODES
    return 2 * float(np.sum(half[:, None] * WEIGHTS * function(x)))


def peaks_reached(law: Noise, shift: float) -> tuple[Floats, Floats]:
    """Loss increments before and after the announced peak, on a grid of [shift/2, end of both]."""
    end = min(float(law.isf(1e-12)), law.support)
    peak = min(law.loss_peak(shift), end)
    before = np.linspace(shift / 2, peak, 2_001)
    after = np.geomspace(peak, end, 2_001) if end > peak else np.array([peak])

    def steps(x: Floats) -> Floats:
        return np.diff(law.logpdf(x - shift) - law.logpdf(x))

    return steps(before), steps(after)


def derivative(function: Callable[[Floats], Floats], x: Floats) -> Floats:
    step = 1e-5 * np.abs(x)
    return (function(x + step) - function(x - step)) / (2 * step)


def test_density_is_minus_the_derivative_of_the_survival(every_law: Noise) -> None:
    x = inner_points(every_law)
    x = np.concatenate([x, -x[:4]])
    assert -derivative(every_law.sf, x) == pytest.approx(every_law.pdf(x), rel=1e-5)


def test_logs_are_logs(every_law: Noise) -> None:
    x = np.concatenate([[0.0], every_law.isf(TAILS), -every_law.isf(TAILS)])
    assert np.exp(every_law.logpdf(x)) == pytest.approx(every_law.pdf(x), rel=1e-12)
    assert np.exp(every_law.logsf(x)) == pytest.approx(every_law.sf(x), rel=1e-12)
    assert float(every_law.sf(0.0)) == pytest.approx(0.5, rel=1e-12)


def test_isf_inverts_the_survival_far_into_the_tail(every_law: Noise) -> None:
    p = np.array([0.5, 0.49, 0.3, 1e-2, 1e-5, 1e-12, 1e-40, 1e-100, 1e-300])
    x = every_law.isf(p)
    # Half the mass is at 0; elsewhere p lies between the survivals a hair to either side of x.
    assert x[0] == pytest.approx(0.0, abs=1e-12)
    hair = 1e-11 * np.log(p) * every_law.logsf(0.0)
    inside = every_law.logsf(x * (1 - 1e-12)) + hair
    with np.errstate(divide="ignore"):
        outside = every_law.logsf(x * (1 + 1e-12)) - hair
    assert np.all(inside >= np.log(p))
    assert np.all(outside <= np.log(p))
    assert every_law.isf(np.array([0.75, 0.9])) == pytest.approx(-every_law.isf([0.25, 0.1]))


def test_isf_refuses_what_is_no_probability(every_law: Noise) -> None:
    for p in (0.0, 1.0, -0.1, math.nan):
        with pytest.raises(ValueError, match="probabilities in"):
            every_law.isf(p)


def test_mass_is_one(every_law: Noise) -> None:
    assert integral(every_law, every_law.pdf) == pytest.approx(1.0, rel=1e-9)


def test_symmetry(every_law: Noise) -> None:
    x = every_law.isf(TAILS)
    assert every_law.logpdf(-x) == pytest.approx(every_law.logpdf(x), rel=1e-14)
    assert every_law.cdf(-x) == pytest.approx(every_law.sf(x), rel=1e-14)
    assert every_law.sf(x) + every_law.sf(-x) == pytest.approx(1.0, rel=1e-14)


def test_limits_at_infinity(every_law: Noise) -> None:
    ends = np.array([-np.inf, np.inf])
    assert every_law.logsf(ends).tolist() == [0.0, -np.inf]
    assert every_law.logpdf(ends).tolist() == [-np.inf, -np.inf]


def test_shapes_are_kept(every_law: Noise) -> None:
    x = np.array([[0.1, 0.2, 0.3], [-1.0, 0.0, 1.0]])
    for method in (
        every_law.logpdf,
        every_law.logsf,
        every_law.pdf,
        every_law.cdf,
        every_law.score,
    ):
        assert method(x).shape == x.shape
    assert every_law.isf(x[:1]).shape == (1, 3)
    assert every_law.sample((2, 5), np.random.default_rng(0)).shape == (2, 5)


def test_moments(every_law: Noise) -> None:
    variance = integral(every_law, lambda x: x * x * every_law.pdf(x))
    mean_abs = integral(every_law, lambda x: x * every_law.pdf(x))
    assert every_law.variance == pytest.approx(variance, rel=1e-7)
    assert every_law.std == pytest.approx(math.sqrt(variance), rel=1e-7)
    assert every_law.mean_abs == pytest.approx(mean_abs, rel=1e-7)


def test_usefulness(every_law: Noise) -> None:
    for gamma in (0.03, 0.9, 4.0):
        inside = integral(every_law, every_law.pdf, end=gamma)
        assert every_law.usefulness(gamma) == pytest.approx(inside, rel=1e-9)


def test_score_is_the_derivative_of_the_log_density(every_law: Noise) -> None:
    x = inner_points(every_law)
    x = np.concatenate([x, -x])
    expected = derivative(every_law.logpdf, x)
    assert every_law.score(x) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_fisher_information(every_law: Noise) -> None:
    jumps = isinstance(every_law, Staircase | TruncatedLaplace | Tulap)
    if jumps:
        assert every_law.fisher_information == math.inf
        return
    squares = integral(every_law, lambda x: every_law.score(x) ** 2 * every_law.pdf(x))
    assert every_law.fisher_information == pytest.approx(squares, rel=1e-8)
    assert every_law.fisher_information * every_law.variance >= 1 - 1e-12  # Cramér-Rao


def test_scaled(every_law: Noise) -> None:
    c, x = 3.7, np.append(inner_points(every_law), [-0.4, 0.0])
    wide = every_law.scaled(c)
    assert type(wide) is type(every_law)
    assert wide.logpdf(c * x) == pytest.approx(every_law.logpdf(x) - math.log(c), rel=1e-9)
    assert wide.logsf(c * x) == pytest.approx(every_law.logsf(x), rel=1e-9)
    assert wide.variance == pytest.approx(c * c * every_law.variance, rel=1e-9)
    draws = (law.sample(9, np.random.default_rng(5)) for law in (wide, every_law))
    assert next(draws) == pytest.approx(c * next(draws), rel=1e-12)
    for factor in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="Expected factor="):
            every_law.scaled(factor)


def test_unimodal(every_law: Noise) -> None:
    # The proof that the pair dominates all smaller shifts rests on this (mathematics.md §3).
    x = np.concatenate([[0.0], np.geomspace(1e-9, float(every_law.isf(1e-12)), 5_000)])
    assert np.all(np.diff(every_law.logpdf(x)) <= 1e-14)


@pytest.mark.parametrize("shift", [0.3, 1.0, 4.0])
def test_loss_rises_to_its_peak_and_falls_after(every_law: Noise, shift: float) -> None:
    if isinstance(every_law, Staircase | Tulap):
        pytest.skip("a staircase law brings its own pair")
    if isinstance(every_law, MultiGaussian):
        shift = every_law.width * math.ceil(shift / every_law.width)  # elsewhere, another pair
    if every_law.support <= shift:
        pytest.skip("nothing lies between the shift and the end of the support")
    rises, falls = peaks_reached(every_law, shift)
    rounding = 1e-13 * (1 + abs(float(every_law.logpdf(shift))))
    assert np.min(rises) >= -rounding
    assert np.max(falls, initial=0.0) <= rounding


def test_a_peak_put_elsewhere_is_noticed() -> None:
    class Wrong(GeneralizedGaussian):
        def loss_peak(self, shift: float) -> float:
            return np.inf

    rises, _ = peaks_reached(Wrong(scale=1.0, beta=0.7), 1.0)
    assert np.min(rises) < -1e-6


def ks_pvalue(law: Noise, draws: Floats) -> float:
    return float(stats.kstest(draws, law.cdf, method="asymp").pvalue)


def test_sampler_has_the_law_and_no_other_scale(every_law: Noise) -> None:
    draws = every_law.sample(DRAWS, np.random.default_rng(20))
    assert ks_pvalue(every_law, draws) > 1e-3
    assert ks_pvalue(every_law.scaled(2 / 3), draws) < 1e-12
    assert ks_pvalue(every_law.scaled(3 / 2), draws) < 1e-12
    assert float(np.max(np.abs(draws))) <= every_law.support


@pytest.mark.parametrize("beta", [20.0, 300.0, 3000.0])
def test_a_law_all_but_uniform_is_drawn_as_it_is_accounted(beta: float) -> None:
    # |x|^beta underflows near the middle, where nearly all of such a law is
    law = GeneralizedGaussian(scale=2.0, beta=beta)
    draws = law.sample(DRAWS, np.random.default_rng(0))
    assert ks_pvalue(law, draws) > 1e-3
    assert np.count_nonzero(draws) == len(draws)
    p = np.array([0.5 - 1e-9, 0.499, 0.45, 0.3, 0.01, 1e-9])
    np.testing.assert_allclose(np.exp(law.logsf(law.isf(p))), p, rtol=1e-11)
    x = np.array([1e-6, 0.05, 0.18, 0.2, 0.5, 1.0])
    np.testing.assert_allclose(0.5 - np.exp(law.logsf(x)), x * float(law.pdf(0.0)), rtol=1e-6)


def test_samples_follow_the_generator(every_law: Noise) -> None:
    first, again, other = (every_law.sample(4, np.random.default_rng(s)) for s in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


LMOS = (
    LMO(),
    LMO_PRESETS["3"],
    LMO(a1=0.3, a3=0.2, a4=0.3, k=2.0, rate=0.4, low=0.0, high=3.0, size=7.0),
)


def transform_misses(law: LMO) -> Floats:
    """Standard errors between the sampler's E e^{-yU} and the accountant's, at ten y."""
    u = law.sample_inverse_scale(DRAWS, np.random.default_rng(3))
    y = np.geomspace(0.05, 20.0, 10)
    values = np.exp(-y[:, None] * u)
    error = values.std(axis=1) / math.sqrt(DRAWS)
    return (values.mean(axis=1) - np.exp(law.log_transform(y))) / error


@pytest.mark.parametrize("law", LMOS, ids=str)
def test_lmo_draws_the_transform_it_is_accounted_with(law: LMO) -> None:
    assert np.max(np.abs(transform_misses(law))) < 5


@pytest.mark.parametrize("law", LMOS, ids=str)
def test_lmo_rate_taken_for_the_mean_is_noticed(law: LMO) -> None:
    @dataclass(frozen=True)
    class Published(LMO):
        def sample_inverse_scale(
            self, shape: int | tuple[int, ...], rng: np.random.Generator
        ) -> Floats:
            return (
                self.a1 * rng.gamma(self.k, self.theta, shape)
                + self.a3 * rng.exponential(self.rate, shape)
                + self.a4 * rng.uniform(self.low, self.high, shape)
            )

    assert np.max(np.abs(transform_misses(Published(**law.parameters())))) > 50  # type: ignore[arg-type]


def test_lmo_tilted_moments_are_derivatives_of_the_transform() -> None:
    y = np.array([1e-6, 0.003, 0.02, 0.1, 1.0, 30.0])
    for law in LMOS:
        step = 1e-4 * np.maximum(y, 0.1)
        up, down = law.log_transform(y + step), law.log_transform(np.abs(y - step))
        ordinary = y > step
        slope = (up - down) / (2 * step)
        assert law.kappa1(y)[ordinary] == pytest.approx(-slope[ordinary], rel=1e-6)
        bend = (law.kappa1(y + step) - law.kappa1(np.abs(y - step))) / (2 * step)
        assert law.kappa2(y)[ordinary] == pytest.approx(-bend[ordinary], rel=1e-5)


def test_uniform_parts_agree_with_high_precision_on_both_sides_of_the_series() -> None:
    mp = pytest.importorskip("mpmath")
    with mp.workdps(60):
        for z in (0.0, 1e-12, 1e-3, 0.0099999, 0.0100001, 0.09999, 0.10001, 2.0, 800.0):
            got = [float(f(np.array(z))) for f in FORMS]
            if z == 0.0:
                want = [0.0, 0.5, 1 / 12]
            else:
                m = mp.mpf(z)
                want = [
                    float(mp.log(-mp.expm1(-m) / m)),
                    float(1 / m - 1 / mp.expm1(m)),
                    float(1 / m**2 - 1 / (4 * mp.sinh(m / 2) ** 2)),
                ]
            assert got == pytest.approx(want, rel=2e-12, abs=1e-18)


FORMS = (log_uniform_transform, uniform_tilted_mean, uniform_tilted_variance)


def test_lmo_published_table() -> None:
    # mathematics.md §2: exact pure epsilon and 1/sqrt(J), E sampled with mean 1/rate.
    table = {"0.3": (0.235, 4.536), "0.7": (0.624, 1.613), "2": (1.722, 0.581), "3": (2.462, 0.405)}
    for name, (pure, sigma) in table.items():
        law = LMO_PRESETS[name]
        assert law.pure_epsilon(1.0) == pytest.approx(pure, abs=6e-4)
        assert 1 / math.sqrt(law.fisher_information) == pytest.approx(sigma, abs=6e-4)


def test_infinite_moments_are_reported() -> None:
    heavy = LMO(a1=0.1, a3=0.0, a4=0.0, k=1.5)
    assert heavy.variance == math.inf
    assert heavy.std == math.inf
    assert math.isfinite(heavy.mean_abs)
    heavier = LMO(a1=0.1, a3=0.0, a4=0.0, k=0.9)
    assert heavier.mean_abs == math.inf
    assert math.isfinite(LMO(a1=0.1, a3=0.1, a4=0.0, k=1.5).variance)
    assert math.isfinite(LMO(a1=0.1, a3=0.0, a4=0.1, k=1.5, low=1.0).variance)
    assert math.isinf(LMO(a1=0.0, a3=0.1, a4=0.1, low=0.0).variance)
    assert math.isinf(GeneralizedGaussian(scale=1.0, beta=0.5).fisher_information)
    assert math.isinf(StudentT(scale=1.0, df=2.0).variance)
    assert math.isfinite(StudentT(scale=1.0, df=2.0).mean_abs)
    assert math.isinf(StudentT(scale=1.0, df=1.0).mean_abs)
    assert StudentT(scale=1.0, df=1.0).fisher_information == 0.5


def test_special_cases_coincide() -> None:
    x = np.array([-40.0, -1.0, 0.0, 0.2, 3.0, 50.0])
    pairs: list[tuple[Noise, Noise]] = [
        (GeneralizedGaussian(scale=2.0, beta=1.0), Laplace(b=2.0)),
        (GeneralizedGaussian(scale=math.sqrt(2.0), beta=2.0), Gaussian(sigma=1.0)),
        (LaplaceMixture(scales=(2.0,), weights=(0.4,)), Laplace(b=2.0)),
        (TruncatedLaplace(b=2.0, bound=1_000.0), Laplace(b=2.0)),
        (OffsetGaussian(sigma=1.5, offset=0.0), Gaussian(sigma=1.5)),
        (FlippedHuber(sigma=1.5, alpha=1e-160), Gaussian(sigma=1.5)),
        (Tulap(epsilon=0.7, width=2.0, delta=0.0), Staircase(epsilon=0.7, width=2.0, gamma=0.5)),
        (MultiGaussian(sigma=1.5, width=7.0, epsilon=200.0), Gaussian(sigma=1.5)),
    ]
    for one, two in pairs:
        assert one.logpdf(x) == pytest.approx(two.logpdf(x), rel=1e-12)
        assert one.logsf(x) == pytest.approx(two.logsf(x), rel=1e-11)
        assert one.variance == pytest.approx(two.variance, rel=1e-12)
        assert one.isf(1e-9) == pytest.approx(two.isf(1e-9), rel=1e-10)


def test_gamma_tail_in_high_precision() -> None:
    mp = pytest.importorskip("mpmath")
    for a in (0.2, 1 / 1.4, 1.0, 10 / 7):
        for z in (1e-8, 3.0, 499.0, 501.0, 5e4):
            want = mp.log(mp.gammainc(a, z) / mp.gamma(a))
            assert float(log_upper_gamma(a, np.array(z))) == pytest.approx(float(want), rel=1e-12)


def test_staircase_is_pure_and_has_the_least_mean_abs() -> None:
    best = Staircase.least_mean_abs(1.3, width=2.0)
    x = np.linspace(-30.0, 30.0, 20_001)
    loss = best.logpdf(x - 2.0) - best.logpdf(x)
    assert np.max(np.abs(loss)) <= 1.3 * (1 + 1e-12)
    for gamma in (best.gamma - 0.02, best.gamma + 0.02):
        other = Staircase(epsilon=1.3, width=2.0, gamma=gamma)
        assert other.mean_abs > best.mean_abs
    # Geng & Viswanath (2014), Theorem 3: the least E|X| is width e^(eps/2)/(e^eps - 1).
    assert best.mean_abs == pytest.approx(2 * math.exp(0.65) / math.expm1(1.3), rel=1e-12)


def test_staircase_of_least_variance() -> None:
    for epsilon in (1e-6, 0.1, 1.3, 6.0, 40.0):
        best = Staircase.least_variance(epsilon, width=2.0)
        for gamma in (best.gamma * 0.97, best.gamma + 0.03 * (1 - best.gamma)):
            other = Staircase(epsilon=epsilon, width=2.0, gamma=gamma)
            assert other.variance >= best.variance * (1 - 1e-12)
    # Geng & Viswanath (2014), Theorem 5, as it is printed there.
    b = math.exp(-1.3)
    root = ((b - 2 * b**2 + 2 * b**4 - b**5) / 2) ** (1 / 3)
    want = -b / (1 - b) + root / (1 - b) ** 2
    assert Staircase.least_variance(1.3).gamma == pytest.approx(want, rel=1e-12)
    with pytest.raises(ValueError, match="epsilon=0"):
        Staircase.least_variance(0.0)


def test_truncated_laplace_meets_its_target() -> None:
    law = TruncatedLaplace.for_target(0.7, 1e-4, sensitivity=2.0)
    # What lies beyond the other's support is all of delta (Geng et al. 2018).
    assert float(law.sf(law.bound - 2.0)) == pytest.approx(1e-4, rel=1e-9)
    assert law.b == pytest.approx(2.0 / 0.7)


BAD: list[tuple[Callable[[], Noise], str]] = [
    (lambda: Gaussian(sigma=0.0), "sigma=0.0"),
    (lambda: Laplace(b=-1.0), "b=-1.0"),
    (lambda: Laplace(b=math.nan), "b=nan"),
    (lambda: GeneralizedGaussian(scale=1.0, beta=0.0), "beta=0.0"),
    (lambda: TruncatedLaplace(b=1.0, bound=math.inf), "bound=inf"),
    (lambda: Staircase(epsilon=1.0, width=1.0, gamma=1.0), "gamma=1.0"),
    (lambda: Staircase(epsilon=0.0, width=1.0, gamma=0.5), "epsilon=0.0"),
    (lambda: LMO(a1=-0.1), "a1=-0.1"),
    (lambda: LMO(a1=0.0, a3=0.0, a4=0.0), "a1=a3=a4=0"),
    (lambda: LMO(low=2.0, high=2.0), "low=2.0"),
    (lambda: LMO(rate=0.0), "rate=0.0"),
    (lambda: LaplaceMixture(scales=(), weights=()), "0 weights"),
    (lambda: LaplaceMixture(scales=(1.0, 2.0), weights=(1.0,)), "1 weights and 2 scales"),
    (lambda: LaplaceMixture(scales=(1.0, 2.0), weights=(1.0, 0.0)), "weight=0.0"),
    (lambda: OffsetGaussian(sigma=0.0, offset=1.0), "sigma=0.0"),
    (lambda: OffsetGaussian(sigma=1.0, offset=-0.1), "offset=-0.1"),
    (lambda: OffsetGaussian(sigma=1.0, offset=math.nan), "offset=nan"),
    (lambda: FlippedHuber(sigma=1.0, alpha=0.0), "alpha=0.0"),
    (lambda: Logistic(scale=-1.0), "scale=-1.0"),
    (lambda: StudentT(scale=1.0, df=0.9), "df=0.9"),
    (lambda: StudentT(scale=1.0, df=1e6), "df=1000000.0"),
    (lambda: StudentT(scale=math.inf, df=3.0), "scale=inf"),
    (lambda: Tulap(epsilon=1.0, width=1.0, delta=1.0), "delta=1.0"),
    (lambda: Tulap(epsilon=1.0, width=1.0, delta=-1e-9), "delta=-1e-09"),
    (lambda: Tulap(epsilon=0.0, width=1.0, delta=0.0), "epsilon=0.0"),
    (lambda: MultiGaussian(sigma=1.0, width=0.0, epsilon=1.0), "width=0.0"),
    (lambda: MultiGaussian(sigma=51.0, width=1.0, epsilon=1.0), "sigma=51.0"),
]


@pytest.mark.parametrize(("build", "value"), BAD, ids=[value for _, value in BAD])
def test_bad_parameters_are_refused_with_the_value(build: Callable[[], Noise], value: str) -> None:
    with pytest.raises(ValueError, match="Expected") as caught:
        build()
    assert value in str(caught.value)
