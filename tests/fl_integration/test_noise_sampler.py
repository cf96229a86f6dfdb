"""Noise as tensors: every law, on the processor and by the operations of a device."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from dpmech import LMO, LMO_PRESETS, Gaussian, Laplace, Noise, Staircase
from dpmech.cell_tables import CellTable
from dpmech.discrete import DiscreteGaussian, DiscreteLaplace, DiscreteNoise
from dpmech.lattice import LatticeNoise
from dpmech.logconcave import FlippedHuber
from dpmech.parse import DEFAULTS, OTHERS
from dpmech.quantiles import QuantileTable, table_of
from dpmech.skellam import Skellam
from dpmech.spherical import SphericalGeneralizedGaussian
from dpmech.tabulated import Tabulated, TabulatedSpherical
from dpmech.words import lengthened
from fl_integration.noise_sampler import DeviceSource, places, quantiles, sampler

DRAWS = 150_000
LIGHT = Tabulated(edges=(0.0, 1.0, 2.0, 3.0), masses=(0.7, 0.3, 3e-11))
SCALARS: tuple[Noise, ...] = (*DEFAULTS, *LMO_PRESETS.values(), LIGHT, OTHERS[7])
WHOLE: tuple[DiscreteNoise, ...] = (
    DiscreteGaussian(sigma=3.0),
    DiscreteLaplace(b=2.0),
    Skellam(mu=5.0),
    LatticeNoise.rounded(Laplace(b=1.0), 0.3),
)
VECTORS = (
    SphericalGeneralizedGaussian(scale=1.3, beta=1.4, dim=1),
    SphericalGeneralizedGaussian(scale=1.3, beta=1.4, dim=10),
    TabulatedSpherical(edges=(0.0, 1.0, 2.0), masses=(0.6, 0.4), dim=3),
)
# All that a device can draw alone.
FITTING = [law for law in SCALARS if not isinstance(law, FlippedHuber | type(DEFAULTS[4]))]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ks_pvalue(law: Noise, draws: Tensor) -> float:
    return float(stats.kstest(draws.numpy(), law.cdf, method="asymp").pvalue)


def checked_scale(law: Noise, draws: Tensor) -> None:
    assert ks_pvalue(law, draws) > 1e-4
    assert ks_pvalue(law.scaled(2 / 3), draws) < 1e-12
    assert ks_pvalue(law.scaled(3 / 2), draws) < 1e-12
    assert float(draws.abs().max()) <= law.support


@pytest.mark.parametrize("law", SCALARS, ids=str)
def test_draws_have_the_law_and_no_other_scale(law: Noise) -> None:
    checked_scale(law, sampler(law).sample(DRAWS, generator=seeded(1)))


@pytest.mark.parametrize("law", FITTING, ids=str)
def test_a_device_draws_the_law_and_no_other_scale(law: Noise) -> None:
    checked_scale(law, DeviceSource(seeded(2)).draws(law, DRAWS))


@pytest.mark.parametrize("law", WHOLE, ids=str)
@pytest.mark.parametrize("device", [False, True])
def test_whole_numbers_have_their_masses(law: DiscreteNoise, device: bool) -> None:
    if device and table_of(law) is None:
        pytest.skip("drawn exactly, on the processor")
    if device:
        drawn = DeviceSource(seeded(3)).draws(law, DRAWS).numpy()
    else:
        drawn = sampler(law).sample(DRAWS, generator=seeded(3)).numpy()
    edge = int(law.isf(1e-3))
    k = np.arange(-edge, edge + 1)
    seen, masses = np.array([np.sum(drawn == i) for i in k]), law.pdf(k)
    seen, masses = np.append(seen, DRAWS - np.sum(seen)), np.append(masses, 1 - np.sum(masses))
    assert stats.chisquare(seen, DRAWS * masses).pvalue > 1e-5
    assert math.sqrt(np.mean(drawn**2)) == pytest.approx(law.std, rel=0.02)


def words(count: int, rows: int) -> Tensor:
    """Random words, some of which say how far out a draw is by many leading zeros."""
    rng = np.random.default_rng(4)
    drawn = rng.integers(0, 2**64, (rows, count), dtype=np.uint64)
    drawn[0, : count // 4] >>= rng.integers(0, 64, count // 4, dtype=np.uint64)
    return torch.from_numpy(drawn.view(np.int64))


@pytest.mark.parametrize("law", FITTING, ids=str)
def test_a_device_reads_words_as_the_table_does(law: Noise) -> None:
    table = table_of(law)
    assert table is not None
    if isinstance(table, QuantileTable):
        given = words(20_000, 2)
        got = quantiles(table, given).numpy()
        plain = given.numpy().view(np.uint64)
        want, rare, first = table.most(plain[0], compiled=False)
        sure = np.delete(np.arange(len(want)), rare)
        assert np.array_equal(got[sure], want[sure])
        # Where V has few digits the second word gives the next ones.
        seconds = iter([plain[1][rare]])
        deep = lengthened(first & np.uint64(2**62 - 1), lambda _: next(seconds)) >= 2.0
        seconds = iter([plain[1][rare]])
        far = table.rest(first, lambda _: next(seconds))
        assert np.sum(deep) > 500
        assert got[rare][deep] == pytest.approx(far[deep], rel=1e-9)
    else:
        given = words(20_000, 5)
        got = places(table, given).numpy()
        want, rare, _ = table.most(given[:2].numpy().view(np.uint64).ravel(), compiled=False)
        sure = np.delete(np.arange(len(want)), rare)
        assert np.array_equal(got[sure], want[sure])


def test_a_device_draws_light_cells_in_proportion() -> None:
    # Together they are 0.74 of 2^-64: the columns give them 2^-64, and 0.26 of it goes back.
    table = table_of(Tabulated(edges=(0.0, 1.0, 2.0, 3.0), masses=(1.0, 3e-20, 1e-20)))
    assert isinstance(table, CellTable)
    assert table.kept == pytest.approx(4e-20 * 2.0**64)
    given = words(60_000, 5)
    given[0] = -(2**62)  # the start of the fourth column, the light cells' own
    counts = np.bincount(places(table, given).abs().numpy().astype(int), minlength=3)
    expected = table.kept * np.array([0.75, 0.25])
    assert counts[1:] / 60_000 == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("law", VECTORS, ids=str)
@pytest.mark.parametrize("device", [False, True])
def test_vectors_have_their_norm_and_any_direction(
    law: SphericalGeneralizedGaussian, device: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device:
        monkeypatch.setattr(
            "fl_integration.noise_sampler._source", lambda *_: DeviceSource(seeded(5))
        )
    dim = int(law.dim)
    drawn = sampler(law).sample((20_000, dim), generator=seeded(11)).numpy()
    radius = np.linalg.norm(drawn, axis=1)
    assert stats.kstest(radius, lambda r: radial_cdf(law, r)).pvalue > 1e-4
    for wrong in (2 / 3, 3 / 2):
        assert stats.kstest(radius * wrong, lambda r: radial_cdf(law, r)).pvalue < 1e-9
    assert abs(np.mean(drawn[:, 0] > 0) - 0.5) < 0.02
    if dim > 1:
        share = (drawn[:, -1] / radius) ** 2
        assert stats.kstest(share, stats.beta(0.5, (dim - 1) / 2).cdf).pvalue > 1e-4


def radial_cdf(law: SphericalGeneralizedGaussian, r: np.ndarray) -> np.ndarray:
    """P(|X| <= r) from the shells."""
    edges, masses, dim = law.shells.edges, law.shells.masses, law.dim
    at = np.clip(np.searchsorted(edges, r, side="right") - 1, 0, len(masses) - 1)
    inner, outer = edges[at], edges[at + 1]
    ratio = (inner / outer) ** dim
    within = ((r / outer) ** dim - ratio) / (1 - ratio)
    return np.append(0.0, np.cumsum(masses))[at] + masses[at] * np.clip(within, 0, 1)


def test_a_list_is_one_vector_of_a_law_of_vectors() -> None:
    law = TabulatedSpherical(edges=(0.0, 1.0), masses=(1.0,), dim=12)  # uniform in the ball
    tensors = [torch.zeros(2, 3), torch.zeros(5, dtype=torch.float64), torch.zeros(1)]
    generator = seeded(12)
    lists = [sampler(law).like(tensors, generator=generator) for _ in range(2_000)]
    norms = [math.sqrt(sum(float(p.double().square().sum()) for p in parts)) for parts in lists]
    assert stats.kstest(np.array(norms) ** 12, "uniform").pvalue > 1e-4
    with pytest.raises(ValueError, match=r"12 coordinates together.*got 11"):
        sampler(law).like(tensors[:2])
    with pytest.raises(ValueError, match="ends in dim=12"):
        sampler(law).sample((3, 11))


def test_a_list_keeps_shapes_and_types_and_splits_one_draw() -> None:
    kinds = (torch.float32, torch.bfloat16, torch.float64, torch.float16)
    tensors = [torch.empty(3, i + 1, dtype=d) for i, d in enumerate(kinds)]
    parts = sampler(LMO()).like(tensors, generator=seeded(6))
    whole = sampler(LMO()).sample(30, generator=seeded(6))
    assert [(p.shape, p.dtype) for p in parts] == [(t.shape, t.dtype) for t in tensors]
    pieces = whole.split([t.numel() for t in tensors])
    for part, piece in zip(parts, pieces, strict=True):
        assert torch.equal(part.flatten(), piece.to(part.dtype))  # fp64 inside, whatever comes out
    assert len(torch.cat([p.flatten().double() for p in parts]).unique()) > 25
    assert sampler(LMO()).like([]) == []


def test_tails_reach_beyond_what_floats_can_draw() -> None:
    # A float32 uniform has 24 bits: Gaussians made of it end at 5.77 sigma.
    noise = sampler(Gaussian(sigma=1.0))
    drawn = noise.sample(1 << 20, generator=seeded(13), dtype=torch.float32)
    assert len(drawn.unique()) > 0.9 * len(drawn)
    assert stats.kstest(drawn.double().numpy(), "norm").pvalue > 1e-4
    given = torch.tensor([[1 << 20], [0]])  # u = 2^-43
    table = table_of(Gaussian(sigma=1.0))
    assert isinstance(table, QuantileTable)
    assert float(quantiles(table, given)) == pytest.approx(float(stats.norm.isf(2.0**-44)))


def test_secret_draws_cannot_be_replayed() -> None:
    for law in (LMO(), Staircase(epsilon=1.0, width=1.0, gamma=0.4), VECTORS[1], WHOLE[3]):
        draws: list[Tensor] = []
        for _ in range(2):
            torch.manual_seed(0)
            np.random.seed(0)  # noqa: NPY002 - as a training script may do
            draws.append(sampler(law).sample(10))
        assert not torch.equal(*draws)


def test_secret_draws_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    sampler(LMO()).sample(10)
    assert torch.equal(before, torch.get_rng_state())


def test_a_generator_makes_draws_repeatable() -> None:
    for law in (LMO(), LIGHT, FlippedHuber(sigma=1.0, alpha=1.0), VECTORS[1], WHOLE[3]):
        one, again, other = (sampler(law).sample(10, generator=seeded(s)) for s in (7, 7, 8))
        assert torch.equal(one, again)
        assert not torch.equal(one, other)


def test_a_law_that_no_table_draws_is_drawn_by_itself() -> None:
    law = DiscreteLaplace(b=1e6)
    assert table_of(law) is None
    one, again = (sampler(law).sample(2_000, generator=seeded(9)) for _ in range(2))
    assert torch.equal(one, again)
    assert float(one.abs().mean()) == pytest.approx(law.mean_abs, rel=0.2)
    with pytest.raises(ValueError, match="a table draws on a device"):
        DeviceSource(seeded()).draws(law, 3)


def test_shapes_and_types() -> None:
    assert sampler(LMO()).sample((2, 0, 3)).shape == (2, 0, 3)
    assert sampler(LMO()).sample(()).shape == ()
    assert sampler(LMO()).sample(4, dtype=torch.bfloat16).dtype == torch.bfloat16
    drawn = sampler(LMO()).sample(1_000)
    assert int((drawn.float().double() != drawn).sum()) > 990  # all digits of fp64
    with pytest.raises(ValueError, match=r"dtype=torch\.int64"):
        sampler(LMO()).sample(4, dtype=torch.int64)


def test_units_of_a_device_are_uniform() -> None:
    u = DeviceSource(seeded(10)).units(DRAWS).numpy()
    assert stats.kstest(u, "uniform").pvalue > 1e-3
    assert u.min() > 0
    assert u.max() <= 1


@pytest.mark.gpu
@pytest.mark.parametrize("law", SCALARS, ids=str)
def test_draws_on_cuda(law: Noise) -> None:
    drawn = sampler(law).sample(DRAWS, device="cuda")
    assert drawn.device.type == "cuda"
    checked_scale(law, drawn.cpu())


@pytest.mark.gpu
def test_lists_on_cuda() -> None:
    tensors = [torch.zeros(5, device="cuda"), torch.zeros(5, device="cuda", dtype=torch.bfloat16)]
    for law in (LMO(), VECTORS[1]):
        parts = sampler(law).like(tensors)
        assert [(p.device, p.dtype) for p in parts] == [(t.device, t.dtype) for t in tensors]
        torch.cuda.manual_seed(0)
        again = sampler(law).like(tensors)
        torch.cuda.manual_seed(0)
        assert not torch.equal(sampler(law).like(tensors)[0], again[0])


@pytest.mark.gpu
def test_nothing_comes_back_from_cuda() -> None:
    sampler(LMO()).sample(10, device="cuda")  # its table goes there once
    torch.cuda.set_sync_debug_mode("error")
    try:
        sampler(LMO()).sample(1000, device="cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")
