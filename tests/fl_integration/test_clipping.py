"""One client moves the sum by at most C, whatever it sends."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch

from fl_integration.clipping import SUM_MARGIN, ClippedSum, clip_flat


def exact_norm(vector: torch.Tensor) -> float:
    """The l2 norm with one rounding, by an exact sum of squares."""
    return math.sqrt(sum(Fraction(x) ** 2 for x in vector.tolist()))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e9, 1e30])
@pytest.mark.parametrize("bound", [1e-6, 0.3, 7.0])
def test_the_exact_norm_never_exceeds_the_bound(scale: float, bound: float) -> None:
    delta = scale * torch.randn(500, generator=torch.Generator().manual_seed(0))
    assert exact_norm(clip_flat(delta, bound)) <= bound


def test_vectors_near_the_bound_stay_within_it() -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(300):  # plain min(1, C/norm) exceeds the bound for about half of these
        delta = torch.randn(64, generator=generator, dtype=torch.float64)
        delta *= (1 + 1e-15 * torch.randn(1, generator=generator).item()) / exact_norm(delta)
        assert exact_norm(clip_flat(delta, 1.0)) <= 1.0


def test_short_deltas_are_untouched_and_zero_does_not_divide() -> None:
    delta = torch.tensor([0.1, -0.2, 0.0])
    assert torch.equal(clip_flat(delta, 1.0), delta.double())
    assert torch.equal(clip_flat(torch.zeros(4), 1.0), torch.zeros(4, dtype=torch.float64))


def test_direction_is_kept() -> None:
    delta = torch.tensor([3e20, -4e20])  # squares overflow fp32
    torch.testing.assert_close(
        clip_flat(delta, 1.0), torch.tensor([0.6, -0.8], dtype=torch.float64)
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_non_finite_coordinate_makes_the_delta_zero(bad: float) -> None:
    delta = torch.ones(5)
    delta[3] = bad
    assert clip_flat(delta, 1.0).abs().sum() == 0
    assert clip_flat(delta, None).abs().sum() == 0


def test_huge_doubles_do_not_overflow() -> None:
    clipped = clip_flat(torch.full((9,), 1e300, dtype=torch.float64), 3.0)
    assert clipped.norm().item() == pytest.approx(3.0)


def test_sum_is_a_running_fp64_sum_of_clipped_deltas() -> None:
    total = ClippedSum(3, 1.0)
    for delta in ([10.0, 0, 0], [0, 0.25, 0], [math.nan, 1, 1]):
        total.add(torch.tensor(delta))
    assert total.value.dtype == torch.float64
    torch.testing.assert_close(
        total.value, torch.tensor([1 - SUM_MARGIN, 0.25, 0.0], dtype=torch.float64)
    )
    assert total.norms == ()


def test_small_contributions_survive_a_large_sum() -> None:
    total = ClippedSum(1, 1.0)
    for _ in range(1000):
        total.add(torch.ones(1))
        total.add(torch.full((1,), 1e-9))  # vanishes against 1000 in fp32
    assert total.value.item() == pytest.approx(1000 * (1 - SUM_MARGIN) + 1e-6, abs=1e-10)


@pytest.mark.parametrize("bound", [0.0, -1.0, math.nan, math.inf])
def test_a_bound_that_does_not_bound_is_refused(bound: float) -> None:
    with pytest.raises(ValueError, match="Expected bound="):
        clip_flat(torch.ones(2), bound)


def test_a_delta_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="3 numbers"):
        ClippedSum(3, 1.0).add(torch.ones(4))
    with pytest.raises(ValueError, match="flat"):
        clip_flat(torch.ones(2, 2), 1.0)


def test_rows_are_clipped_as_if_they_came_one_by_one() -> None:
    rows = torch.randn(9, 50, generator=torch.Generator().manual_seed(2)).double()
    rows[1] *= 1e-3
    rows[2, 7] = math.nan
    rows[3, 0], rows[3, 1] = math.inf, -math.inf
    rows[4] = 0
    rows[5] *= 1e300  # the squares overflow
    rows[6] *= 1e-300  # the squares vanish
    for bound in (None, 1.0, 1e9):
        small = [row for row in rows if row.abs().max() < 1e200]
        wanted = torch.stack([clip_flat(row, bound, margin=SUM_MARGIN) for row in small])
        huge = clip_flat(rows[5], bound, margin=SUM_MARGIN)
        total = ClippedSum(50, bound, keep_norms=True)
        total.add_rows(rows)
        torch.testing.assert_close(total.value, wanted.sum(0) + huge, rtol=1e-12, atol=1e-12)
        assert len(total.norms) == 9


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e9, 1e30])
def test_a_row_adds_at_most_the_bound_exactly(scale: float) -> None:
    for seed in range(50):
        row = scale * torch.randn(1, 64, generator=torch.Generator().manual_seed(seed))
        total = ClippedSum(64, 0.7)
        total.add_rows(row)
        assert exact_norm(total.value) <= 0.7


def test_a_row_that_is_no_number_leaves_the_others() -> None:
    rows = torch.ones(3, 4)
    rows[1] = math.nan
    total = ClippedSum(4, 1.0)
    total.add_rows(rows)
    torch.testing.assert_close(total.value, (1 - SUM_MARGIN) * torch.ones(4).double())


def test_rows_of_another_length_are_refused() -> None:
    for bad in (torch.ones(2, 4), torch.ones(3), torch.ones(1, 1, 3)):
        with pytest.raises(ValueError, match="3 numbers"):
            ClippedSum(3, 1.0).add_rows(bad)
