"""Tables draw the law that they are of: in the middle, in every tail, from any words."""

import math
import os
import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from dpmech import LMO, LMO_PRESETS, Gaussian, Laplace, Noise, Staircase
from dpmech.cell_tables import Cells, CellTable
from dpmech.discrete import DiscreteGaussian, DiscreteLaplace, DiscreteNoise
from dpmech.drawing import secret_words, seeded_words
from dpmech.heavy_tailed import StudentT
from dpmech.lattice import LatticeNoise
from dpmech.lattice_mixtures import MultiGaussian
from dpmech.logconcave import FlippedHuber
from dpmech.noise import Floats
from dpmech.quantiles import TOLERANCE, Grid, QuantileTable, table_of
from dpmech.skellam import Skellam
from dpmech.spherical import SphericalGeneralizedGaussian
from dpmech.tabulated import Tabulated
from dpmech.words import Table, _has_kernels, lengthened, units

DRAWS = 200_000
Words = NDArray[np.uint64]
TABULATED = (
    Tabulated(edges=(0.0, 1.0, 2.0), masses=(0.6, 0.3), decay=0.25),
    Tabulated(edges=(0.0, 0.5, 2.0, 9.0), masses=(0.2, 0.79, 1e-12)),
    Tabulated(edges=(0.0, 1.0, 3.0, 4.0), masses=(0.5, 0.0, 0.5)),
    Tabulated(
        edges=tuple(np.linspace(0.0, 9.0, 2_001).tolist()),
        masses=tuple(np.exp(-np.linspace(0.0, 60.0, 2_000)).tolist()),
    ),
)
DISCRETE = (DiscreteGaussian(sigma=3.0), DiscreteLaplace(b=40.0), Skellam(mu=9.0))


def table(law: Noise) -> Table:
    found = table_of(law)
    assert found is not None
    return found


def ks_pvalue(law: Noise, draws: Floats) -> float:
    return float(stats.kstest(draws, law.cdf, method="asymp").pvalue)


def checked_scale(law: Noise, draws: Floats) -> None:
    assert ks_pvalue(law, draws) > 1e-4
    assert ks_pvalue(law.scaled(2 / 3), draws) < 1e-12
    assert ks_pvalue(law.scaled(3 / 2), draws) < 1e-12
    assert float(np.max(np.abs(draws))) <= law.support


def test_draws_have_the_law_and_no_other_scale(every_law: Noise) -> None:
    checked_scale(every_law, table(every_law).sample(DRAWS, np.random.default_rng(21)))


@pytest.mark.parametrize("law", TABULATED, ids=str)
def test_tabulated_draws_have_the_law_and_no_other_scale(law: Noise) -> None:
    checked_scale(law, table(law).sample(DRAWS, np.random.default_rng(22)))


@pytest.mark.parametrize("law", DISCRETE, ids=str)
def test_whole_numbers_have_their_masses(law: DiscreteNoise) -> None:
    draws = table(law).sample(DRAWS, np.random.default_rng(23))
    assert chi_squared(law, draws) > 1e-4
    assert chi_squared(law.scaled(2 / 3), draws) < 1e-12
    assert chi_squared(law.scaled(3 / 2), draws) < 1e-12


def chi_squared(law: DiscreteNoise, draws: Floats) -> float:
    edge = int(law.isf(1e-3))
    k = np.arange(-edge, edge + 1)
    seen = np.array([np.sum(draws == i) for i in k])
    masses = law.pdf(k)
    seen, masses = np.append(seen, DRAWS - np.sum(seen)), np.append(masses, 1 - np.sum(masses))
    return float(stats.chisquare(seen, DRAWS * masses).pvalue)


# Every word


def word(near: int, *, inner: bool = False, negative: bool = False) -> int:
    return (negative << 63) | (inner << 62) | near


def scripted(*words: int) -> Callable[[int], Words]:
    """Words that are asked for one by one."""
    left = iter(words)

    def more(count: int) -> Words:
        return np.array([next(left) for _ in range(count)], dtype=np.uint64)

    return more


def smooth(law: Noise) -> QuantileTable | None:
    found = table_of(law)
    return found if isinstance(found, QuantileTable) else None


def test_polynomials_are_the_law_between_the_points_where_they_were_checked(
    every_law: Noise,
) -> None:
    drawn = smooth(every_law)
    if drawn is None:
        pytest.skip("a law with cells")
    rng = np.random.default_rng(24)
    near = np.exp(rng.uniform(np.log(2.0**53), np.log(2.0**62), 20_000)).astype(np.uint64)
    for inner in (False, True):
        words = near | np.uint64(inner << 62)
        x, rows, _ = drawn.most(words, compiled=False)
        clear = ~np.isin(np.arange(len(near)), rows)
        x, p = x[clear], near[clear].astype(np.float64) * 2.0**-64
        p = 0.5 - p if inner else p
        assert np.mean(clear) > (0.5 if every_law.support < np.inf else 0.99)
        assert np.max(np.abs(every_law.logsf(x) - np.log(p))) <= TOLERANCE
        assert density_error(drawn, words[clear]) < 1e-5


@pytest.mark.parametrize(
    "law",
    [Gaussian(sigma=1.0), LMO(), StudentT(scale=1.0, df=3.0), FlippedHuber(sigma=0.7, alpha=0.2)],
    ids=str,
)
def test_the_errors_it_tells_hold_between_the_points(law: Noise) -> None:
    drawn = smooth(law)
    assert drawn is not None
    side, h = drawn.grid.side - 1, drawn.grid.half_width
    places = np.random.default_rng(27).uniform(-1, 1, 60)
    value = drawn.grid.at(places)
    scale = 2.0 ** np.floor(np.log2(drawn.grid.at(np.array([0.0]))))  # the binade of the cell
    for inner in (False, True):
        start = inner * drawn.grid.side
        rows = drawn.coefficients[:, start : start + side, None]
        clear = ~drawn.rough[start : start + side]
        x = sum(row * (places * h) ** k for k, row in enumerate(rows))
        slope = sum(k * row * (places * h) ** (k - 1) for k, row in enumerate(rows) if k) / scale
        p = 0.5 - value * 2.0**-64 if inner else value * 2.0**-64
        density = law.logpdf(x) + np.log(np.abs(slope) * 2.0**64)
        assert np.max(np.abs(law.logsf(x) - np.log(p))[clear]) <= drawn.tail_error
        assert np.max(np.abs(density)[clear]) <= drawn.density_error


LOW = np.uint64((1 << 62) - 1)


def density_error(drawn: QuantileTable, words: Words) -> float:
    """Of the log-density, by differences of the draws within their cells."""
    step = (words & LOW) >> np.uint64(20)
    low, high = (drawn.most(w, compiled=False)[0] for w in (words, words + step))
    cells = [drawn.grid.split((w & LOW).astype(np.float64))[0] for w in (words, words + step)]
    keeps = (cells[0] == cells[1]) & (np.abs(high - low) > 1e-9 * np.abs(low))
    density = (step * 2.0**-64)[keeps] / np.abs(high - low)[keeps]
    middle = ((high + low) / 2)[keeps]
    return float(np.max(np.abs(np.log(density) - drawn.law.logpdf(middle))))


def test_signs_and_halves_are_where_words_say(every_law: Noise) -> None:
    if (drawn := smooth(every_law)) is None:
        pytest.skip("a law with cells")
    told = [word(1 << 61), word(1 << 61, negative=True), word((1 << 62) - 1)]
    words = np.array([*told, word(1 << 55, inner=True)], dtype=np.uint64)
    x, _, _ = drawn.most(words, compiled=False)
    want = every_law.isf([1 / 8, 1 / 8, 1 / 4, 0.5 - 2.0**-9])
    assert x == pytest.approx(want * [1, -1, 1, 1], rel=1e-8)


@pytest.mark.parametrize("zeros", [12, 40, 61, 62 + 30, 62 + 64 + 5, 62 + 3 * 64, 62 + 14 * 64 + 3])
def test_words_with_many_leading_zeros_are_the_far_tail(every_law: Noise, zeros: int) -> None:
    if (drawn := smooth(every_law)) is None:
        pytest.skip("a law with cells")
    # 1011 after the zeros of the 62 bits and of the words that follow.
    whole = 0b1011 << (62 + 15 * 64 - zeros - 4)
    first, later = whole >> (15 * 64), whole & (2 ** (15 * 64) - 1)
    words = [(later >> (64 * (14 - i))) & (2**64 - 1) for i in range(15)]
    x = drawn.rest(np.array([word(first, negative=True)], dtype=np.uint64), scripted(*words))
    p = 0b1011 / 2.0 ** (zeros + 4) / 4
    assert x == pytest.approx(-every_law.isf(p), rel=1e-8)


def test_the_tail_ends_where_doubles_nearly_do() -> None:
    drawn = table(Laplace(b=1.0))
    x = drawn.rest(np.array([0, 0], dtype=np.uint64), lambda n: np.zeros(n, dtype=np.uint64))
    assert x == pytest.approx(Laplace(b=1.0).isf(1e-300), rel=1e-12)


def test_next_to_the_middle_the_density_is_that_at_0() -> None:
    drawn = table(Gaussian(sigma=1.0))
    for shift, first, second in ((40, 1 << 22, 0), (0, 0, 1 << 30)):
        x = drawn.rest(
            np.array([word(first, inner=True)], dtype=np.uint64), scripted(second, 0, 0, 0)
        )
        want = (first + second / 2.0**64) * 2.0**-64 / Gaussian(sigma=1.0).pdf(0.0)
        assert x == pytest.approx(want, rel=1e-9), shift


def test_units_have_all_their_digits() -> None:
    rng = np.random.default_rng(1)
    assert stats.kstest(units(DRAWS, seeded_words(rng)), "uniform").pvalue > 1e-3
    short = np.array([0, 5], dtype=np.uint64)
    got = lengthened(short, scripted(1 << 63, 1 << 62))
    assert got == pytest.approx([0.5, 5.25], rel=0)
    assert lengthened(np.array([0], dtype=np.uint64), scripted(0, 3, 0)) == 3 * 2.0**-128


def test_no_word_leaves_the_table() -> None:
    most = np.array([word((1 << 62) - 1, inner=i) for i in (False, True)], dtype=np.uint64)
    for law in (Gaussian(sigma=1.0), StudentT(scale=1.0, df=1.0)):
        x, _, _ = table(law).most(most, compiled=False)
        assert x == pytest.approx([law.isf(0.25)] * 2, rel=1e-9)  # V = 2^62 ends either half


# What a table refuses


def test_a_law_that_jumps_everywhere_is_refused() -> None:
    with pytest.raises(ValueError, match="smooth density"):
        QuantileTable.of(TABULATED[-1])
    assert isinstance(table_of(TABULATED[-1]), CellTable)


def test_where_a_law_jumps_its_table_is_rough() -> None:
    law = Staircase(epsilon=1.5, width=0.7, gamma=0.3)
    drawn = QuantileTable.of(law)
    assert drawn.rough_share > 1e-3
    checked_scale(law, drawn.sample(DRAWS, np.random.default_rng(26)))


def test_where_a_law_bends_its_table_is_rough() -> None:
    law = FlippedHuber(sigma=1.0, alpha=1.0)
    drawn = smooth(law)
    assert drawn is not None
    assert 0 < drawn.rough_share < 2e-3
    cell, _ = drawn.grid.split(law.sf(np.array([1.0])) * 2.0**64)
    assert drawn.rough[cell]


def test_the_errors_of_another_law_are_seen() -> None:
    class Wider(Gaussian):
        def isf(self, p: object) -> Floats:
            return super().isf(p) * (1 + 1e-8)  # type: ignore[arg-type]

    with pytest.raises(ValueError, match="smooth density"):
        QuantileTable.of(Wider(sigma=1.0))


def test_laws_that_no_table_draws() -> None:
    assert table_of(SphericalGeneralizedGaussian(scale=1.0, beta=2.0, dim=3)) is None
    assert table_of(LatticeNoise(masses=(0.25,))) is None  # its own draws are exact
    assert table_of(DiscreteLaplace(b=1e6)) is None
    assert table_of(MultiGaussian(sigma=40.0, width=1.0, epsilon=1.0)) is None
    with pytest.raises(ValueError, match="cells or atoms"):
        CellTable.of(Gaussian(sigma=1.0))


# Cells


def drawn_weights(drawn: CellTable) -> Floats:
    """The probabilities of the rows, from the columns, in whole numbers."""
    full = 2 ** (64 - drawn.columns)
    weights = [0] * (2**drawn.columns)
    columns = zip(drawn.own.tolist(), drawn.other.tolist(), strict=True)
    for column, (own, other) in enumerate(columns):
        weights[column] += own
        weights[other] += full - own
    assert sum(weights) == 2**64
    return np.array([w / 2.0**64 for w in weights])


CELLS = (*TABULATED, *DISCRETE, Staircase(epsilon=0.1, width=2.0, gamma=0.3))


@pytest.mark.parametrize("law", CELLS, ids=str)
def test_every_cell_has_its_probability(law: Noise) -> None:
    drawn = table(law)
    assert isinstance(drawn, CellTable)
    got, want = drawn_weights(drawn), drawn.cells.masses
    large = want >= 2.0**-24
    assert got[: len(want)][large] == pytest.approx(want[large], rel=2.0**-38)
    assert not np.any(got[: len(want)][~large])
    assert np.sum(want) + 2 * drawn.cells.beyond == pytest.approx(1.0, rel=1e-12)
    if len(drawn.small):
        row = len(want)
        assert got[row] * drawn.kept == pytest.approx(drawn.sums[-1], rel=1e-12)
        assert drawn.sums[-1] == pytest.approx(np.sum(want[~large]) + 2 * drawn.cells.beyond)


def test_cells_below_the_columns_resolution_are_drawn_in_proportion() -> None:
    law = Tabulated(edges=(0.0, 1.0, 2.0, 3.0, 4.0), masses=(1.0, 3e-25, 6e-25, 1e-24))
    drawn = table(law)
    assert isinstance(drawn, CellTable)
    assert drawn.kept == pytest.approx(1.9e-24 * 2.0**64, rel=1e-9)
    always = replace(drawn, kept=1.0)
    words = np.zeros(60_000, dtype=np.uint64)
    x = always.rest(words, seeded_words(np.random.default_rng(3)))
    counts = np.bincount(np.floor(x).astype(int), minlength=4)
    assert stats.chisquare(counts[1:], 60_000 * np.array([3, 6, 10]) / 19).pvalue > 1e-3
    assert stats.kstest(x % 1, "uniform").pvalue > 1e-3
    never = replace(drawn, kept=0.0).rest(words, seeded_words(np.random.default_rng(4)))
    assert np.max(never) < 1  # the heaviest cell has the others' share


@pytest.mark.parametrize("law", [TABULATED[0], CELLS[-1], DISCRETE[1]], ids=str)
def test_beyond_the_cells_is_the_law_itself(law: Noise) -> None:
    drawn = table(law)
    assert isinstance(drawn, CellTable)
    assert 0 < drawn.cells.beyond <= 2.0**-65
    assert -1 in drawn.small
    far = replace(drawn, kept=1.0, small=np.array([-1]), sums=np.array([2 * drawn.cells.beyond]))
    x = far.rest(np.zeros(20_000, dtype=np.uint64), seeded_words(np.random.default_rng(5)))
    end = drawn.cells.starts[-1] + drawn.cells.widths[-1]
    assert np.min(x) >= end
    median = law.isf(drawn.cells.beyond / 2)
    share = float(law.sf(median)) / drawn.cells.beyond
    assert abs(np.mean(x > median) - share) < 5 * 0.5 / math.sqrt(20_000)


def test_too_many_cells_are_refused() -> None:
    with pytest.raises(ValueError, match="cells for staircase"):
        Cells.of(Staircase(epsilon=1e-5, width=1.0, gamma=0.4))


# The words


def test_secret_words_are_new_each_time_and_in_every_process() -> None:
    assert len(secret_words(0)) == 0
    ours = secret_words(4)
    assert not np.array_equal(ours, secret_words(4))
    read, write = os.pipe()
    if os.fork() == 0:
        os.write(write, secret_words(4).tobytes())
        os._exit(0)
    theirs = os.read(read, 32)
    assert len(theirs) == 32
    assert theirs != secret_words(4).tobytes()


def test_secret_words_are_uniform() -> None:
    bits = np.unpackbits(secret_words(100_000).view(np.uint8)).reshape(-1, 64).mean(axis=0)
    assert np.max(np.abs(bits - 0.5)) < 6 * 0.5 / math.sqrt(100_000)


def test_draws_follow_the_words_and_their_number_only() -> None:
    for law in (LMO(), TABULATED[1], FlippedHuber(sigma=1.0, alpha=1.0)):
        first, again, other = (
            table(law).sample((3, 7_000), np.random.default_rng(s)) for s in (1, 1, 2)
        )
        assert np.array_equal(first, again)
        assert not np.array_equal(first, other)
        assert table(law).draw(0).shape == (0,)
        assert not np.array_equal(table(law).draw(9), table(law).draw(9))


@pytest.mark.parametrize("law", [LMO(), FlippedHuber(sigma=1.0, alpha=1.0), *TABULATED], ids=str)
def test_compiled_draws_are_the_same(law: Noise) -> None:
    pytest.importorskip("numba")
    words = seeded_words(np.random.default_rng(5))(30_000)
    plain, rows, kept = table(law).most(words, compiled=False)
    fast, same_rows, same_kept = table(law).most(words, compiled=True)
    sure = np.delete(np.arange(len(plain)), rows)
    assert np.array_equal(plain[sure], fast[sure])
    assert np.array_equal(rows, same_rows)
    assert np.array_equal(kept, same_kept)


def test_large_draws_are_those_without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    size = 1 << 18
    fast = table(LMO()).sample(size, np.random.default_rng(1))
    monkeypatch.setattr("dpmech.words._has_kernels", lambda: False)
    assert np.array_equal(fast, table(LMO()).sample(size, np.random.default_rng(1)))


def test_a_broken_numba_is_no_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dpmech._quantile_kernels", None)
    monkeypatch.setattr("dpmech.words._has_kernels", _has_kernels.__wrapped__)
    assert table(Laplace(b=1.0)).draw(1 << 18).shape == (1 << 18,)


# The transform that LMO is accounted by

SHARES = np.geomspace(0.45, 5e-5, 10)


def transform_misses(law: LMO, draws: Floats, of: Callable[[Floats, float], Floats]) -> Floats:
    """How far means that are the accountant's M are from it, at ten times, in standard errors."""
    times = law.isf(SHARES) / law.size
    m, twice = (np.exp(law.log_transform(t)) for t in (times, 2 * times))
    variance = m - m * m if of is outside else twice - m * m
    means = np.array([np.mean(of(draws, t)) for t in times.tolist()])
    return np.abs(means - m) / np.sqrt(variance / len(draws))


def laplace(u: Floats, t: float) -> Floats:
    return np.exp(-t * u)


def outside(x: Floats, t: float) -> Floats:
    return (np.abs(x) > t).astype(np.float64)


@pytest.mark.parametrize("law", LMO_PRESETS.values(), ids=LMO_PRESETS)
def test_the_transform_of_lmo_is_the_one_accounted_for(law: LMO) -> None:
    u = law.sample_inverse_scale(DRAWS, np.random.default_rng(6))
    assert np.max(transform_misses(law, u, laplace)) < 5
    wide = law.scaled(3.0)
    x = table(wide).sample(DRAWS, np.random.default_rng(7))
    assert np.max(transform_misses(wide, x / wide.size, outside)) < 5


def test_an_exponential_of_mean_lambda_is_caught() -> None:
    class AsPublished(LMO):
        def sample_inverse_scale(self, shape: object, rng: np.random.Generator) -> Floats:
            u = self.a1 * rng.gamma(self.k, self.theta, shape)  # type: ignore[arg-type]
            u += self.a3 * rng.exponential(self.rate, shape)  # type: ignore[arg-type]
            return u + self.a4 * rng.uniform(self.low, self.high, shape)  # type: ignore[arg-type]

    law = AsPublished()
    u = law.sample_inverse_scale(DRAWS, np.random.default_rng(8))
    assert np.max(transform_misses(law, u, laplace)) > 100
    x = law.sample(DRAWS, np.random.default_rng(9))
    assert np.max(transform_misses(law, x, outside)) > 50
    assert ks_pvalue(law, x) < 1e-12


def test_the_cells_of_v_cover_it() -> None:
    grid = Grid(6)
    ends = grid.at(np.array([-1.0, 1.0]))
    assert np.array_equal(ends[1:, 0], ends[:-1, 1])
    assert ends[0, 0] == 0.25
    assert ends[-1, 1] == 2.0**62
    cell, place = grid.split(grid.at(np.array([-1.0, 0.0])).ravel())
    assert np.array_equal(cell, np.repeat(np.arange(grid.side - 1), 2))
    assert np.array_equal(place, np.tile([-grid.half_width, 0.0], grid.side - 1))
    assert grid.split(np.array([2.0**62]))[0][0] == grid.side - 1
