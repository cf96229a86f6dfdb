"""Tables of masses in decimal arithmetic, against mpmath and exact fractions."""

from __future__ import annotations

import decimal
from itertools import pairwise

import mpmath as mp
import numpy as np
import pytest
from scipy import stats

from dpmech import Gaussian, Laplace, Noise
from dpmech.drawing import BITS, WholeTable, seeded_words
from dpmech.mixture import LMO
from dpmech.precise import (
    negative_binomial_table,
    poisson_table,
    rounded_table,
)

DIGITS = 70


def weights(table: WholeTable) -> dict[int, int]:
    """W_k as the table draws them, from its sums."""
    sums = [int(h) << 64 | int(w) for h, w in zip(table._high, table._low, strict=True)]
    edges = [0, *sums, 2**BITS]
    return {table.first + i: b - a for i, (a, b) in enumerate(pairwise(edges))}


def distance(table: WholeTable, exact: dict[int, mp.mpf]) -> mp.mpf:
    """Total variation from a law known at ``exact``; what is elsewhere counts in full."""
    drawn = weights(table)
    assert set(drawn) <= set(exact)
    seen = sum(abs(mp.mpf(drawn.get(k, 0)) / 2**BITS - p) for k, p in exact.items())
    return (seen + 1 - sum(exact.values())) / 2


def gaussian_cell(k: int, u: mp.mpf) -> mp.mpf:
    a, b = (u * (abs(k) + e) / mp.sqrt(2) for e in (mp.mpf(-0.5), mp.mpf(0.5)))
    return (mp.erfc(a) - mp.erfc(b)) / 2


def laplace_cell(k: int, u: mp.mpf) -> mp.mpf:
    return 1 - mp.exp(-u / 2) if k == 0 else mp.exp(-u * abs(k)) * mp.sinh(u / 2)


@pytest.mark.parametrize(
    ("law", "step", "cell"),
    [
        (Gaussian(sigma=1.0), 0.0625, gaussian_cell),
        (Gaussian(sigma=3.0), 4.0, gaussian_cell),
        (Gaussian(sigma=0.7), 0.0078125, gaussian_cell),
        (Gaussian(sigma=1.0), 2.0**-9, gaussian_cell),
        (Laplace(b=1.0), 0.25, laplace_cell),
    ],
)
def test_a_rounded_law_is_as_near_as_it_says(law: Noise, step: float, cell: object) -> None:
    with mp.workdps(DIGITS):
        u = mp.mpf(step) / mp.mpf(law.sigma if isinstance(law, Gaussian) else law.b)  # type: ignore[attr-defined]
        found = rounded_table(law, step)
        most = max(weights(found.table)) + 50
        exact = {k: cell(k, u) for k in range(-most, most + 1)}  # type: ignore[operator]
        assert distance(found.table, exact) <= found.distance < 2.0**-110


@pytest.mark.parametrize("mean", [0.003, 0.5, 40.0, 900.0])
def test_poisson(mean: float) -> None:
    with mp.workdps(DIGITS):
        found = poisson_table(mean)
        most = max(weights(found.table)) + 200
        exact, mass = dict[int, mp.mpf](), mp.exp(-mp.mpf(mean))
        for k in range(most):
            exact[k] = mass
            mass *= mp.mpf(mean) / (k + 1)
        assert distance(found.table, exact) <= found.distance < 2.0**-110


def test_negative_binomial_parts_sum_to_a_geometric_number() -> None:
    with mp.workdps(DIGITS):
        parts, b = 3, 2.0
        found, a = weights(negative_binomial_table(b, parts).table), mp.exp(-1 / mp.mpf(b))
        one = [mp.mpf(found.get(k, 0)) / 2**BITS for k in range(25)]
        two = [mp.fsum(one[j] * one[k - j] for j in range(k + 1)) for k in range(25)]
        three = [mp.fsum(one[j] * two[k - j] for j in range(k + 1)) for k in range(25)]
        for k, mass in enumerate(three):
            assert abs(mass - (1 - a) * a**k) < mp.mpf(10) ** -35


def test_draws_are_those_of_the_law() -> None:
    words = seeded_words(np.random.default_rng(1))
    draws = poisson_table(3.0).table.draw(200_000, words)
    expected = stats.poisson(3.0).pmf(np.arange(9)) * len(draws)
    counts = np.bincount(draws, minlength=9)[:9]
    assert np.sum((counts - expected) ** 2 / expected) < stats.chi2(8).isf(1e-6)


def test_the_callers_arithmetic_does_not_matter() -> None:
    rounded_table.cache_clear()
    good = rounded_table(Gaussian(sigma=2.0), 0.5)
    rounded_table.cache_clear()
    with decimal.localcontext(decimal.Context(prec=9)):
        again = rounded_table(Gaussian(sigma=2.0), 0.5)
    assert weights(good.table) == weights(again.table)


def test_masses_that_miss_some_of_1_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from dpmech import precise

    cells = precise._gaussian_cells
    monkeypatch.setattr(
        precise,
        "_gaussian_cells",
        lambda u: (m * decimal.Decimal("1.0000000001") for m in cells(u)),
    )
    with pytest.raises(ArithmeticError, match="sum to 1"):
        precise.rounded_table(Gaussian(sigma=5.0), 0.5)


def test_what_has_no_table_is_refused() -> None:
    with pytest.raises(ValueError, match="only theirs is proved"):
        rounded_table(LMO(), 0.5)
    with pytest.raises(ValueError, match="at most 1000000 masses"):
        rounded_table(Laplace(b=1.0), 2.0**-20)
    with pytest.raises(ValueError, match="finer step"):
        rounded_table(Gaussian(sigma=1e-3), 1.0)


def test_weights_must_sum_to_the_unit() -> None:
    with pytest.raises(ValueError, match="sum to"):
        WholeTable([2**127, 2**126], first=0)
