"""The laws that the search is compared with: numbers to 50 digits, and the pairs at every shift."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from accountants import PLD, RDP
from dpmech import Mechanism, NoDominatingPair, Noise, Sampling, Sensitivity, Staircase
from dpmech.heavy_tailed import StudentT, log_gamma_step
from dpmech.lattice_mixtures import MultiGaussian, Tulap
from dpmech.logconcave import FlippedHuber, Logistic, OffsetGaussian
from dpmech.loss import AtomicPair, PeakedPair, pair_of
from dpmech.noise import Floats
from dpmech.rippled import RippledPair

EPS = float(np.finfo(np.float64).eps)
TAILS = np.array([0.499, 0.4, 0.1, 1e-3, 1e-20, 1e-100, 1e-299])
SHIFTS = (1e-3, 0.03, 0.4, 1.0, 2.5, 7.0, 40.0)
OFFSETS = ((1.0, 0.0), (2.5, 0.3), (1.0, 1.0), (0.7, 1e-3), (1.0, 1e3))
HUBERS = ((1.0, 1.0), (2.5, 0.3), (0.7, 1e-3), (1.0, 3.0), (1.0, 30.0))
STUDENTS = ((1.0, 1.0), (2.0, 1.5), (1.0, 3.0), (1.0, 30.0), (0.5, 99.0), (0.5, 101.0))
MULTIS = ((0.5, 1.0, 1.0), (0.2, 1.0, 3.0), (1.0, 0.7, 0.1), (0.05, 1.0, 2.0), (3.0, 1.0, 8.0))
TULAPS = ((1.0, 1.0, 1e-5), (0.5, 2.0, 0.1), (2.0, 0.7, 0.9), (0.01, 1.0, 1e-3), (5.0, 1.0, 0.0))
UNIMODAL = tuple(
    MultiGaussian(sigma=s, width=w, epsilon=e)
    for s, w, e in ((0.5, 1.0, 1.0), (0.36, 1.0, 1.0), (0.8, 1.5, 0.1), (2.0, 1.0, 0.5))
)


# Against high precision


def misses(
    law: Noise, log_pdf: Callable[[float], object], log_sf: Callable[[float], object], x: Floats
) -> tuple[float, float]:
    """Largest errors of logpdf and logsf, in units of eps (1 + their size)."""

    def worst(got: Floats, want: list[float]) -> float:
        return float(np.max(np.abs(got - want) / (EPS * (1 + np.abs(want)))))

    return (
        worst(law.logpdf(x), [float(log_pdf(v)) for v in x]),  # type: ignore[arg-type]
        worst(law.logsf(x), [float(log_sf(v)) for v in x]),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(("sigma", "offset"), OFFSETS)
def test_offset_gaussian_in_high_precision(sigma: float, offset: float) -> None:
    mp = pytest.importorskip("mpmath")
    law = OffsetGaussian(sigma=sigma, offset=offset)
    with mp.workdps(40):
        s, m, root = mp.mpf(sigma), mp.mpf(offset), mp.sqrt(2)
        whole = 2 * mp.erfc(m / s / root)
        pdf, sf = misses(
            law,
            lambda x: mp.log(2 * mp.npdf(x + m, 0, s) / whole),
            lambda x: mp.log(mp.erfc((x + m) / s / root) / whole),
            np.append(law.isf(TAILS), 1e4 * sigma),
        )
    assert pdf < 5
    assert sf < 4


@pytest.mark.parametrize(("sigma", "alpha"), HUBERS)
def test_flipped_huber_in_high_precision(sigma: float, alpha: float) -> None:
    mp = pytest.importorskip("mpmath")
    law = FlippedHuber(sigma=sigma, alpha=alpha)
    with mp.workdps(40):
        s, a = mp.mpf(sigma), mp.mpf(alpha)

        def exponent(x: float) -> object:
            return -(a * x if x <= a else (x * x + a * a) / 2) / s**2

        def beyond(x: float) -> object:
            middle = s**2 / a * (mp.exp(-a * x / s**2) - mp.exp(-(a**2) / s**2)) if x < a else 0
            outer = s * mp.sqrt(mp.pi / 2) * mp.erfc(max(x, a) / s / mp.sqrt(2))
            return middle + mp.exp(-(a**2) / s**2 / 2) * outer

        whole = 2 * beyond(0)  # type: ignore[operator]
        pdf, sf = misses(
            law,
            lambda x: exponent(x) - mp.log(whole),
            lambda x: mp.log(beyond(x) / whole),
            np.append(law.isf(TAILS), [alpha, alpha * (1 + 1e-9), 1e4 * sigma]),
        )
    assert pdf < 4
    assert sf < 4


@pytest.mark.parametrize(("scale", "df"), STUDENTS)
def test_student_in_high_precision(scale: float, df: float) -> None:
    mp = pytest.importorskip("mpmath")
    law = StudentT(scale=scale, df=df)
    with mp.workdps(40):
        s, n = mp.mpf(scale), mp.mpf(df)
        top = mp.loggamma((n + 1) / 2) - mp.loggamma(n / 2) - mp.log(n * mp.pi) / 2 - mp.log(s)

        def log_sf(x: float) -> object:
            w = n / (n + (x / s) ** 2)
            return mp.log(mp.betainc(n / 2, 0.5, 0, w, regularized=True) / 2)

        x = law.isf(TAILS)
        x = np.concatenate([x, [1e-3 * scale, scale]])
        pdf, sf = misses(law, lambda x: top - (n + 1) / 2 * mp.log1p((x / s) ** 2 / n), log_sf, x)
    assert pdf < 4
    assert sf < 4


def test_student_at_the_ends_of_doubles() -> None:
    cauchy = StudentT(scale=1.0, df=1.0)
    assert cauchy.isf(1e-300) == pytest.approx(1e300 / math.pi, rel=1e-12)
    assert cauchy.logsf(1e300) == pytest.approx(-math.log(math.pi) - 300 * math.log(10), rel=1e-14)
    assert cauchy.logpdf(1e200) == pytest.approx(-math.log(math.pi) - 400 * math.log(10), rel=1e-14)
    assert cauchy.score(1e250) == pytest.approx(-2e-250, rel=1e-14)
    near_gaussian = StudentT(scale=1.0, df=1e5)
    assert np.all(np.diff(near_gaussian.logsf(np.linspace(0.0, 60.0, 10_000))) < 0)


def test_gamma_ratio_in_high_precision() -> None:
    mp = pytest.importorskip("mpmath")
    with mp.workdps(40):
        for a in (0.5, 1.7, 20.0, 49.9, 50.0, 51.3, 170.0, 1e4, 5e4):
            want = mp.loggamma(mp.mpf(a) + 0.5) - mp.loggamma(mp.mpf(a))
            assert log_gamma_step(a) == pytest.approx(float(want), rel=1e-15, abs=1e-15)


@pytest.mark.parametrize(("sigma", "width", "epsilon"), MULTIS)
def test_multi_gaussian_in_high_precision(sigma: float, width: float, epsilon: float) -> None:
    mp = pytest.importorskip("mpmath")
    law = MultiGaussian(sigma=sigma, width=width, epsilon=epsilon)
    with mp.workdps(40):
        s, w, b = mp.mpf(sigma), mp.mpf(width), mp.exp(-mp.mpf(epsilon))
        reach = 20 * sigma / width + 3

        def over_lattice(x: float, part: Callable[[object], object]) -> tuple[object, int]:
            low = min(-reach, x / width - epsilon * (sigma / width) ** 2 - reach)
            low, high = int(max(low, -reach)), int(x / width + reach)
            return mp.fsum(b ** abs(k) * part(k * w) for k in range(low, high)), high

        def log_sf(x: float) -> object:
            explicit, high = over_lattice(x, lambda at: mp.erfc((x - at) / s / mp.sqrt(2)) / 2)
            return mp.log(mp.tanh(epsilon / mp.mpf(2)) * (explicit + b**high / (1 - b)))

        def log_pdf(x: float) -> object:
            explicit, _ = over_lattice(x, lambda at: mp.npdf(x - at, 0, s))
            return mp.log(mp.tanh(epsilon / mp.mpf(2)) * explicit)

        pdf, sf = misses(law, log_pdf, log_sf, law.isf(TAILS))
    assert pdf < 4
    assert sf < 4


@pytest.mark.parametrize(("epsilon", "width", "delta"), TULAPS)
def test_tulap_in_high_precision(epsilon: float, width: float, delta: float) -> None:
    mp = pytest.importorskip("mpmath")
    law = Tulap(epsilon=epsilon, width=width, delta=delta)
    with mp.workdps(40):
        b = mp.exp(-mp.mpf(epsilon))
        q = 2 * delta * b / (1 - b + 2 * delta * b)  # Awan & Slavković

        def whole_sf(x: float) -> object:
            t = mp.mpf(x) / width
            step = int(mp.floor(t + 0.5))
            return b**step * ((1 - b) * (step + 0.5 - t) + b) / (1 + b)

        for p in (0.499, 0.3, 0.1, 1e-3):
            x = float(law.isf(p))
            want = (whole_sf(x) - q / 2) / (1 - q)  # type: ignore[operator]
            assert float(law.sf(x)) == pytest.approx(float(want), rel=1e-11)
            assert float(law.sf(x)) == pytest.approx(p, rel=1e-11)
        if delta > 0:
            assert float(whole_sf(law.support) / q) == pytest.approx(0.5, rel=1e-12)  # type: ignore[operator]


def test_tulap_where_rounding_puts_a_place_on_an_edge() -> None:
    law = Tulap(epsilon=0.8, width=1.1, delta=0.2).scaled(50.0)
    for step in (0.5, 1.5):
        places = [law.width * step * (1 - 8 * EPS)]
        for _ in range(40):  # no double near the edge is left out
            places.append(float(np.nextafter(places[-1], np.inf)))
        assert np.ptp(law.sf(places)) < 1e-13


def test_numeric_moments_of_the_offset_gaussian() -> None:
    mp = pytest.importorskip("mpmath")
    for sigma, offset in OFFSETS:
        law = OffsetGaussian(sigma=sigma, offset=offset)
        with mp.workdps(40):
            a = mp.mpf(offset) / sigma
            mills = mp.sqrt(2 / mp.pi) * mp.exp(-a * a / 2) / mp.erfc(a / mp.sqrt(2))
            assert law.mean_abs == pytest.approx(float(sigma * (mills - a)), rel=1e-11)
            want = sigma**2 * (1 - a * (mills - a))
            assert law.variance == pytest.approx(float(want), rel=1e-11)
            assert law.fisher_information * sigma**2 == pytest.approx(float(1 + a * mills))


# The shape of the loss


PEAKED: tuple[Noise, ...] = (
    *(OffsetGaussian(sigma=s, offset=o) for s, o in OFFSETS),
    *(FlippedHuber(sigma=s, alpha=a) for s, a in HUBERS),
    Logistic(scale=1.3),
    *(StudentT(scale=s, df=n) for s, n in STUDENTS),
)


def turns(law: Noise, shift: float, peak: float) -> float:
    """How far the loss falls on [s/2, peak], or rises beyond, less what rounding may be."""
    end = max(float(law.isf(1e-30)) + shift, 2 * peak if peak < math.inf else 0.0)
    places = [
        np.linspace(shift / 2, 2 * shift, 800),
        np.geomspace(shift / 2, end, 3_000),
        [min(peak, end)],
    ]
    x = np.unique(np.concatenate(places))
    log_p, log_q = law.logpdf(x - shift), law.logpdf(x)
    steps = np.diff(log_p - log_q) * np.where(x[1:] <= peak, 1, -1)
    rounding = 16 * EPS * (1 + np.abs(log_p) + np.abs(log_q))
    return float(np.max(-steps - rounding[1:] - rounding[:-1]))


@pytest.mark.parametrize("law", PEAKED, ids=str)
def test_the_loss_rises_to_its_peak_and_falls_after(law: Noise) -> None:
    for shift in SHIFTS:
        assert turns(law, shift, law.loss_peak(shift)) <= 0


def test_a_peak_put_at_the_shift_is_noticed() -> None:
    assert turns(StudentT(scale=1.0, df=3.0), 1.0, 1.0) > 1e-6
    assert turns(StudentT(scale=1.0, df=3.0), 1.0, math.inf) > 1e-6


@pytest.mark.parametrize(
    "law", [*UNIMODAL, MultiGaussian(sigma=0.2, width=1.0, epsilon=2.0)], ids=str
)
def test_multi_gaussian_loss_rises_at_whole_widths_only(law: MultiGaussian) -> None:
    for j in (1, 2, 5):
        shift = j * law.width
        assert turns(law, shift, math.inf) <= 0
        x = np.linspace(-30 * law.width, 30 * law.width, 5_001)
        loss = law.logpdf(x - shift) - law.logpdf(x)
        assert np.max(np.abs(loss)) <= j * law.epsilon * (1 + 1e-12) + 1e-12
    if law.sigma < law.width / 2:
        assert turns(law, 0.4 * law.width, math.inf) > 1e-9


# Pairs


def released(law: Noise, shift: float = 1.0, rate: float = 1.0) -> Mechanism:
    return Mechanism(noise=law, sensitivity=Sensitivity(bound=shift), sampling=Sampling(rate=rate))


@pytest.mark.parametrize(
    ("epsilon", "width", "delta"),
    [(1.0, 1.0, 1e-5), (0.5, 2.0, 0.1), (2.0, 0.7, 0.9), (0.1, 3.0, 1e-12), (5.0, 1.0, 1e-3)],
)
def test_tulap_is_exactly_private(epsilon: float, width: float, delta: float) -> None:
    accountant = PLD().compose(released(Tulap(epsilon=epsilon, width=width, delta=delta), width))
    for at in (epsilon, epsilon * (1 + 1e-9), 2 * epsilon):  # all of it is mass at infinity
        low, high = accountant.delta_interval(at)
        assert low * (1 - 1e-10) <= delta <= high * (1 + 1e-14)
        assert high == pytest.approx(delta, rel=1e-8)
    assert accountant.lower_delta(0.99 * epsilon) > delta * (1 + 1e-6)
    low, high = accountant.epsilon_interval(delta * 1.001)
    assert low <= high <= epsilon * (1 + 1e-9)
    assert accountant.lower_epsilon(delta * (1 - 1e-6)) == math.inf


def test_tulap_without_delta_is_a_staircase() -> None:
    tulap = PLD().compose(released(Tulap(epsilon=1.0, width=1.0, delta=0.0), 1.5, 0.2), 10)
    stairs = Staircase(epsilon=1.0, width=1.0, gamma=0.5)
    assert tulap.epsilon_interval(1e-7) == pytest.approx(
        PLD().compose(released(stairs, 1.5, 0.2), 10).epsilon_interval(1e-7), rel=1e-12
    )


def test_tulap_pairs_at_the_extremes_of_the_shift() -> None:
    law = Tulap(epsilon=1.0, width=1.0, delta=0.1)
    apart = pair_of(law, 2.1 * law.support)
    assert isinstance(apart, PeakedPair)
    assert apart.infinite_mass == 1.0
    for shift in (1e-15, 1e-12, 1e-6, 0.3, law.width, 1.99 * law.support):
        pair = pair_of(law, shift)
        assert isinstance(pair, AtomicPair)
        assert pair.p.sum() + pair.infinite_mass == pytest.approx(1.0, abs=1e-9)
        # The mass beyond Q's support is no less than that of the shift asked for.
        assert pair.infinite_mass >= float(law.sf(law.support - shift)) * (1 - 1e-12)


@pytest.mark.parametrize("shift", [1e-17, 1e-13, 1e-10, 1e-6])
def test_no_step_is_lost_at_tiny_shifts(shift: float) -> None:
    epsilon, width = 1.0, 3.0
    for law in (
        Tulap(epsilon=epsilon, width=width, delta=0.0),
        Staircase(epsilon=epsilon, width=width, gamma=0.5),
    ):
        pair = pair_of(law, shift)
        assert isinstance(pair, AtomicPair)
        # Beyond each step P is a factor e^epsilon above Q, on a way as long as the shift.
        want = shift / width / (1 + math.exp(-epsilon))
        got = float(np.sum(pair.p[pair.losses > epsilon / 2] * (1 + np.max(pair.error))))
        assert got >= want * (1 - 1e-12)
        assert got <= max(1.01 * want, 1e-8)


def shares(law: Noise, shift: float, gamma: Floats) -> Floats:
    """H_gamma of the shifted law and the law, by the trapezoidal rule: analytic but for kinks."""
    end = float(law.isf(1e-18)) + shift
    x = np.linspace(-end, end, 400_001)
    p, q = law.pdf(x - shift), law.pdf(x)
    return np.array([np.sum(np.maximum(p - g * q, 0.0)) * (x[1] - x[0]) for g in gamma])


@pytest.mark.parametrize("law", UNIMODAL, ids=str)
def test_multi_gaussian_pairs_contain_the_curve(law: MultiGaussian) -> None:
    epsilons = (0.0, 0.2, 0.5)
    for shift in (0.13, 0.5, 1.0, 1.7):
        accountant = PLD().compose(released(law, shift))
        want = shares(law, shift, np.exp(epsilons))
        for epsilon, share in zip(epsilons, want, strict=True):
            low, high = accountant.delta_interval(epsilon)
            # Kinks of the integrand leave the rule some 1e-9.
            assert low - 1e-8 <= share <= high + 1e-8
            assert high - low <= 1e-4 * high + 1e-9


@pytest.mark.parametrize("law", UNIMODAL, ids=str)
def test_cells_of_rippled_losses_are_bounded(law: MultiGaussian) -> None:
    for shift in (0.13, 0.5, 1.3, 4.1):
        pair = RippledPair(noise=law, shift=shift)
        edges = pair.edges(1e-9)
        half = pair.cells(edges).where(np.arange(2 * len(edges) - 2) < len(edges) - 1)
        # Inside each cell, and far beyond the last edge.
        end = edges[-2] + np.linspace(0.0, 10 * law.width, 50)
        ends = np.append(edges[1:-1], end[-1])
        x = edges[:-1, None] + (ends - edges[:-1])[:, None] * np.linspace(0.0, 1.0, 41)
        loss = law.logpdf(x - shift) - law.logpdf(x)
        slack = 1e-13 + half.low_error[:, None]
        assert np.all(loss >= half.low[:, None] - slack)
        assert np.all(loss <= half.high[:, None] + slack)
        assert np.all(half.high < np.inf)
        both = pair.cells(edges)
        assert np.exp(both.log_p).sum() == pytest.approx(1.0, abs=1e-12)
        assert np.exp(both.log_q).sum() == pytest.approx(1.0, abs=1e-12)


def test_ends_of_a_ripple_do_not_bound_it() -> None:
    law, shift = MultiGaussian(sigma=0.36, width=1.0, epsilon=1.0), 0.5
    x = np.linspace(5.0, 8.0, 4)  # a period apart: the loss is all but the same
    loss = law.logpdf(x - shift) - law.logpdf(x)
    inner = np.linspace(5.0, 6.0, 99)
    inside = law.logpdf(inner - shift) - law.logpdf(inner)
    assert np.ptp(loss) < 0.01 < 0.1 < np.ptp(inside)
    pair = RippledPair(noise=law, shift=shift)
    cells = pair.cells(np.concatenate([[0.25], x, [np.inf]]))
    assert np.all(cells.low[1:4] <= np.min(inside))
    assert np.all(cells.high[1:4] >= np.max(inside))


def test_a_lone_edge_proves_no_bound_beyond() -> None:
    pair = RippledPair(noise=UNIMODAL[0], shift=1.5)
    assert pair.cells(np.array([0.75, 1.0, np.inf])).high[1] == np.inf
    assert pair.cells(np.array([0.75, 2.0, np.inf])).high[1] == 2 * UNIMODAL[0].epsilon


@pytest.mark.parametrize("size", [1e6, 1e14, 1e26])
def test_no_mass_of_a_rippled_pair_is_lost_at_tiny_shifts(size: float) -> None:
    pair = pair_of(UNIMODAL[0].scaled(size), 1.0)
    cells = pair.cells(pair.edges(1e-9))
    for log_mass in (cells.log_p, cells.log_q):
        assert np.exp(log_mass).sum() == pytest.approx(1.0, abs=1e-11)
    half = len(cells.high) // 2
    assert np.all(cells.high[: half - 1] < 10 / size + 1e-14)  # beyond the last edge it is epsilon


def test_units_of_the_multi_gaussian_cancel() -> None:
    for shift in (0.6, 2.0):
        one, other = (
            PLD().compose(released(UNIMODAL[0].scaled(c), c * shift, 0.2), 5).epsilon(1e-6)
            for c in (1.0, 37.0)
        )
        assert one == pytest.approx(other, rel=2e-4)


def test_rippled_pairs_under_every_accountant_that_takes_them() -> None:
    for relation in ("add-remove", "replace-one"):
        release = Mechanism(
            noise=UNIMODAL[1],
            sensitivity=Sensitivity(bound=0.6),
            sampling=Sampling(rate=0.1),
            relation=relation,
        )
        low, high = PLD().compose(release, 20).epsilon_interval(1e-6)
        assert high * (1 - 2e-4) <= low <= high
        if relation == "add-remove":
            assert low <= RDP().compose(release, 20).epsilon(1e-6) <= 1.2 * high
    pair = pair_of(UNIMODAL[0], 0.6)
    for refused in (lambda: pair.loss_range(1e-9), lambda: pair.masses(np.zeros(1))):
        with pytest.raises(NoDominatingPair, match=r"0\.6, which is no multiple of width=1"):
            refused()
    assert pair.atoms() == ()


def falls_on_a_grid(law: MultiGaussian) -> bool:
    x = np.concatenate([np.geomspace(1e-6, 1e-2, 500), np.linspace(1e-2, 3.0, 20_000)]) * law.width
    return bool(np.all(law.score(x) < 0))


def test_one_mode_is_claimed_where_it_is_there() -> None:
    claimed, refused = 0, 0
    for sigma in np.geomspace(0.15, 3.0, 25):
        for epsilon in (0.003, 0.05, 0.3, 1.0, 3.0, 9.0):
            law = MultiGaussian(sigma=float(sigma), width=1.0, epsilon=epsilon)
            there = falls_on_a_grid(law)
            # Never where it is not; and wherever it is by more than half a percent of sigma.
            assert there or not law.is_unimodal
            narrower = MultiGaussian(sigma=0.995 * float(sigma), width=1.0, epsilon=epsilon)
            assert law.is_unimodal or not falls_on_a_grid(narrower)
            claimed, refused = claimed + law.is_unimodal, refused + (not law.is_unimodal)
    assert claimed > 50
    assert refused > 30


def test_where_a_smaller_shift_is_worse_there_is_no_pair() -> None:
    law = MultiGaussian(sigma=0.1, width=1.0, epsilon=1.0)
    half, whole = shares(law, 0.5, np.exp([0.5])), shares(law, 1.0, np.exp([0.5]))
    assert half > 1.5 * whole  # so the pair at the sensitivity would not do
    for shift in (1.0, 0.4):
        with pytest.raises(NoDominatingPair, match=r"sigma=0\.1.*not proved to fall"):
            released(law, shift).pairs()
        with pytest.raises(NoDominatingPair, match="larger sigma"):
            PLD().compose(released(law, shift, 0.1))


@pytest.mark.parametrize(
    ("law", "bound"),
    [
        (Logistic(scale=2.0), 0.5),
        (StudentT(scale=1.0, df=3.0), None),
        (MultiGaussian(sigma=0.5, width=1.0, epsilon=1.0), 1.0),
        (Tulap(epsilon=1.3, width=1.0, delta=0.0), 1.3),
    ],
    ids=str,
)
def test_bounded_losses_are_pure(law: Noise, bound: float | None) -> None:
    if bound is None:
        x = law.loss_peak(1.0)
        bound = float(law.logpdf(x - 1.0) - law.logpdf(x))
    low, high = PLD().compose(released(law)).epsilon_interval(1e-200)
    assert low <= bound * (1 + 1e-12)
    assert high == pytest.approx(bound, rel=1e-9)


@pytest.mark.parametrize(
    "law",
    [
        OffsetGaussian(sigma=1.0, offset=0.5),
        FlippedHuber(sigma=1.0, alpha=1.0),
        Logistic(scale=1.0),
    ],
    ids=str,
)
def test_log_concave_laws_have_the_tighter_pair_of_a_replaced_record(law: Noise) -> None:
    poisson = Mechanism(noise=law, sampling=Sampling(rate=0.1), relation="replace-one")
    (pair,) = poisson.pairs()
    assert type(pair).__name__ == "PoissonSubstitutionPair"
    fixed = Mechanism(
        noise=law,
        sampling=Sampling(rate=0.1, kind="without-replacement"),
        relation="replace-one",
    )
    tight, loose = (PLD().compose(m).epsilon(1e-5) for m in (poisson, fixed))
    assert tight < loose


def test_log_concave_laws_are(every_law: Noise) -> None:
    scored = isinstance(every_law, OffsetGaussian | FlippedHuber | Logistic)
    x = np.geomspace(1e-6, float(every_law.isf(1e-40)), 4_000)
    if scored:
        assert np.all(np.diff(every_law.score(x)) <= 1e-12)


HEAVY = (
    StudentT(scale=1.0, df=3.0),
    MultiGaussian(sigma=0.5, width=1.0, epsilon=1.0),
    Tulap(epsilon=1.0, width=1.0, delta=0.0),
)


@pytest.mark.parametrize("law", HEAVY, ids=str)
def test_other_laws_do_not_have_that_pair(law: Noise) -> None:
    release = Mechanism(noise=law, sampling=Sampling(rate=0.1), relation="replace-one")
    assert type(release.pairs()[0]).__name__ == "SubstitutionPair"
