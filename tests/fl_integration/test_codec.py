"""What is decoded is the nearest level of its block, and what is sent has the size it says."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from fl_integration.codec import SMALLEST, Codec, Encoded

BITS = (1, 1.5, 2, 3, 4, 8)
NORMAL = (2, 3, 4, 8)
PACKED = {1: (1, 8), 1.5: (1, 5), 2: (1, 4), 3: (3, 8), 4: (1, 2), 8: (1, 1)}  # bytes for values
# NF4 (QLoRA, appendix E), rounded as published; levels below and above zero.
_BELOW = (-0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635)
_NEAR = (-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725)
_ABOVE = (0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941)
PUBLISHED = [-1.0, *_BELOW, *_NEAR, *_ABOVE, 0.7229568362236023, 1.0]

every_width = pytest.mark.parametrize("bits", BITS)
finite = st.floats(-(2.0**100), 2.0**100, width=32)
codecs = st.builds(Codec, bits=st.sampled_from(BITS), block=st.integers(1, 70))


@st.composite
def vectors(draw: st.DrawFn) -> Tensor:
    """Normal values at some scale, with zeros and values of any size among them."""
    count = draw(st.integers(0, 150))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    values = 10.0 ** draw(st.integers(-20, 20)) * rng.standard_normal(count)
    values[rng.random(count) < draw(st.sampled_from([0.0, 0.3, 0.95]))] = 0.0
    strange = draw(st.lists(finite, max_size=min(3, count)))
    values[: len(strange)] = strange
    return torch.from_numpy(values)


def normal(count: int, seed: int = 0) -> Tensor:
    """Standard normal values, fp64."""
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_quantiles(bits: int) -> NDArray[np.float64]:
    """The NormalFloat book, term by term."""
    above, below = 2 ** (bits - 1), 2 ** (bits - 1) - 1
    top = 0.9677083
    up = [stats.norm.ppf(top - i * (top - 0.5) / above) for i in range(above)]
    down = [-stats.norm.ppf(top - i * (top - 0.5) / below) for i in range(below)]
    return np.array(sorted([*up, 0.0, *down])) / max(up)


def scale_of(codec: Codec, part: list[float]) -> float:
    """A block's scale: the mean magnitude for signs, otherwise the largest; in fp32."""
    magnitudes = [abs(value) for value in part]
    wide = math.fsum(magnitudes) / len(part) if codec.bits == 1 else max(magnitudes)
    narrow = float(np.float32(wide))
    return narrow if narrow >= 2.0**-126 else 0.0


def nearest(codec: Codec, values: Tensor) -> tuple[list[float], list[int], list[float]]:
    """Scales, codes and decoded values of a codec without a vector operation."""
    levels, flat = codec.levels.tolist(), values.tolist()
    scales: list[float] = []
    codes: list[int] = []
    decoded: list[float] = []
    for first in range(0, len(flat), codec.block):
        part = flat[first : first + codec.block]
        scales.append(scale := scale_of(codec, part))
        for value in part:
            unit = value / scale if scale else 0.0
            code = max(range(len(levels)), key=lambda i: (-abs(levels[i] - unit), i))
            codes.append(code)
            decoded.append(scale * levels[code])
    return scales, codes, decoded


def written(codec: Codec, codes: list[int]) -> bytes:
    """Codes as one long binary number, or as bytes of five trits."""
    if codec.bits == 1.5:
        fives = [codes[i : i + 5] for i in range(0, len(codes), 5)]
        return bytes(sum(trit * 3**i for i, trit in enumerate(five)) for five in fives)
    bits = int(codec.bits)
    number = sum(code << (bits * i) for i, code in enumerate(codes))
    return number.to_bytes(math.ceil(len(codes) * bits / 8), "little")


@pytest.mark.parametrize("bits", NORMAL)
def test_normal_float_levels_are_normal_quantiles(bits: int) -> None:
    np.testing.assert_allclose(Codec(bits).levels.numpy(), by_quantiles(bits), rtol=0, atol=1e-14)


def test_four_bits_are_the_published_levels() -> None:
    np.testing.assert_allclose(Codec(4).levels.numpy(), PUBLISHED, rtol=0, atol=2e-7)


@pytest.mark.parametrize("bits", NORMAL)
def test_normal_float_has_one_level_more_above_zero(bits: int) -> None:
    levels = Codec(bits).levels
    assert int((levels > 0).sum()) == 2 ** (bits - 1)
    assert int((levels < 0).sum()) == 2 ** (bits - 1) - 1
    assert int((levels == 0).sum()) == 1
    assert not torch.equal(levels, -levels.flip(0))


def test_the_smallest_books_are_symmetric() -> None:
    assert Codec(1).levels.tolist() == [-1.0, 1.0]
    assert Codec(1.5).levels.tolist() == [-1.0, 0.0, 1.0]


@every_width
def test_levels_increase_from_minus_one_to_one(bits: float) -> None:
    levels = Codec(bits).levels
    assert levels.dtype == torch.float64
    assert (levels[0], levels[-1]) == (-1.0, 1.0)
    assert bool((levels.diff() > 0).all())


@every_width
def test_levels_handed_out_are_a_copy(bits: float) -> None:
    Codec(bits).levels.zero_()
    assert Codec(bits).levels[-1] == 1.0


@given(codecs, vectors())
def test_it_is_the_codec_written_out_by_hand(codec: Codec, values: Tensor) -> None:
    scales, codes, decoded = nearest(codec, values)
    encoded = codec.encode(values)
    assert encoded.scales.tolist() == scales
    assert encoded.payload == written(codec, codes)
    assert codec.decode(encoded).tolist() == decoded


@given(codecs, vectors())
def test_a_second_round_trip_changes_nothing(codec: Codec, values: Tensor) -> None:
    once = codec.round_trip(values)
    assert torch.equal(codec.round_trip(once), once)


@given(codecs, vectors())
def test_the_error_is_at_most_half_the_largest_gap(codec: Codec, values: Tensor) -> None:
    moved = (codec.round_trip(values) - values).abs()
    assert moved.shape == values.shape
    half = float(codec.levels.diff().max()) / 2
    for block, error in zip(values.split(codec.block), moved.split(codec.block), strict=True):
        largest = float(block.abs().max()) if len(block) else 0.0
        assert bool((error <= half * largest * (1 + 1e-6) + SMALLEST).all())


@given(codecs, vectors(), st.integers(-20, 20))
def test_powers_of_two_pass_through(codec: Codec, values: Tensor, power: int) -> None:
    kept = torch.where(values.abs() > 1e-25, values, 0.0)  # no scale may leave fp32's range
    once = codec.round_trip(kept)
    assert torch.equal(codec.round_trip(2.0**power * kept), 2.0**power * once)


@pytest.mark.parametrize("factor", [0.3, 7.1, 1e-6])
@every_width
def test_other_multiples_pass_through_up_to_rounding(bits: float, factor: float) -> None:
    codec, values = Codec(bits), normal(4000)
    expected = factor * codec.round_trip(values)
    torch.testing.assert_close(codec.round_trip(factor * values), expected, rtol=2e-7, atol=0)


@pytest.mark.parametrize("bits", [1, 1.5])
def test_symmetric_books_turn_with_the_sign(bits: float) -> None:
    codec, values = Codec(bits), normal(4000)
    assert torch.equal(codec.round_trip(-values), -codec.round_trip(values))


@pytest.mark.parametrize("bits", NORMAL)
def test_asymmetric_books_do_not(bits: int) -> None:
    codec, values = Codec(bits), normal(4000)
    assert not torch.equal(codec.round_trip(-values), -codec.round_trip(values))


@every_width
def test_values_on_the_levels_are_kept(bits: float) -> None:
    codec = Codec(bits, block=256)
    values = 0.375 * codec.levels
    assert torch.equal(codec.round_trip(values), values)


@every_width
def test_halfway_takes_the_upper_level(bits: float) -> None:
    codec = Codec(bits, block=1024)
    levels = codec.levels
    halves = (levels[1:] + levels[:-1]) / 2
    frame = torch.tensor([1.0, -1.0] * 300, dtype=torch.float64)  # keeps the largest magnitude at 1
    seen = codec.encode(torch.cat([frame, halves]))
    scale = float(seen.scales[0])
    expected = levels[1:] * scale
    assert torch.equal(codec.decode(seen)[600:], expected)


def test_signs_travel_with_the_mean_magnitude_of_their_own_block() -> None:
    seen = Codec(1, block=4).round_trip(torch.tensor([1.0, -2.0, 3.0, 0.0, -5.0]))
    assert seen.tolist() == [1.5, -1.5, 1.5, 1.5, -5.0]


def test_blocks_do_not_see_each_other() -> None:
    values = torch.tensor([1e-6, -5e-7, 1e6, 5e5])
    small, large = Codec(4, block=2).round_trip(values).split(2)
    assert torch.equal(small, Codec(4, block=2).round_trip(values[:2]))
    assert torch.equal(large, Codec(4, block=2).round_trip(values[2:]))
    assert small[0] == values[0].double()


@pytest.mark.parametrize("count", [0, 1, 4, 5, 6, 7, 8, 9, 63, 64, 65, 127, 1000])
@every_width
def test_what_is_sent_has_the_size_it_says(bits: float, count: int) -> None:
    codec, (width, group) = Codec(bits), PACKED[bits]
    encoded = codec.encode(normal(count))
    assert len(encoded.payload) == math.ceil(count * width / group)
    assert encoded.scales.dtype == torch.float32
    assert encoded.scales.shape == (math.ceil(count / 64),)
    sent = encoded.payload + encoded.scales.numpy().tobytes()
    assert encoded.nbytes == len(sent) == codec.size(count)


def test_trits_cost_what_five_in_a_byte_cost() -> None:
    assert 8 * Codec(1.5, block=1000).size(1000) == 1600 + 32


@every_width
def test_zero_blocks_stay_zero(bits: float) -> None:
    values = torch.cat([torch.zeros(64), normal(64).float(), torch.zeros(3)])
    seen = Codec(bits).round_trip(values)
    assert torch.equal(seen[:64], torch.zeros(64, dtype=torch.float64))
    assert torch.equal(seen[128:], torch.zeros(3, dtype=torch.float64))
    assert bool(seen[64:128].any())


@every_width
def test_what_is_too_small_for_a_scale_becomes_zero(bits: float) -> None:
    codec = Codec(bits)
    assert not codec.round_trip(torch.full((5,), SMALLEST / 2, dtype=torch.float64)).any()
    assert codec.round_trip(torch.full((5,), SMALLEST, dtype=torch.float64))[0] == SMALLEST


@every_width
def test_single_and_double_precision_agree(bits: float) -> None:
    codec, values = Codec(bits), normal(500).float()
    single, double = codec.encode(values), codec.encode(values.double())
    assert single.payload == double.payload
    assert torch.equal(single.scales, double.scales)
    assert codec.decode(single).dtype == torch.float64


def test_finer_books_err_less_on_normal_values() -> None:
    values = normal(30_000)
    errors = [float((Codec(b).round_trip(values) - values).norm() / values.norm()) for b in NORMAL]
    assert errors == sorted(errors, reverse=True)
    assert errors == pytest.approx([0.564, 0.202, 0.092, 0.005], abs=0.01)


@pytest.mark.parametrize("bits", [0, -1, 1.58, 5, 16, math.nan, True, "4", None])
def test_refuses_other_widths(bits: object) -> None:
    with pytest.raises(ValueError, match="Expected bits="):
        Codec(bits)  # type: ignore[arg-type]


@pytest.mark.parametrize("block", [0, -64, 2.0, True, "64"])
def test_refuses_other_blocks(block: object) -> None:
    with pytest.raises(ValueError, match="Expected block="):
        Codec(4, block)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@every_width
def test_refuses_what_is_not_finite(bits: float, bad: float) -> None:
    values = normal(100)
    values[99] = bad
    with pytest.raises(ValueError, match="got 1 of 100 NaN or infinite"):
        Codec(bits).encode(values)


@every_width
def test_refuses_scales_beyond_single_precision(bits: float) -> None:
    with pytest.raises(ValueError, match=r"within fp32, got 1e\+39"):
        Codec(bits).encode(torch.full((3,), 1e39, dtype=torch.float64))


@pytest.mark.parametrize("values", [torch.zeros(2, 2), torch.tensor(1.0), torch.arange(4)])
def test_refuses_what_is_no_flat_float_vector(values: Tensor) -> None:
    with pytest.raises(ValueError, match="Expected one flat float vector"):
        Codec().encode(values)


@every_width
def test_refuses_a_message_of_another_size(bits: float) -> None:
    codec = Codec(bits)
    good = codec.encode(normal(100))
    short = Encoded(payload=good.payload[:-1], scales=good.scales, count=100)
    few = Encoded(payload=good.payload, scales=good.scales[:1], count=100)
    with pytest.raises(ValueError, match="bytes for 100 values"):
        codec.decode(short)
    with pytest.raises(ValueError, match="Expected 2 scales"):
        codec.decode(few)


@pytest.mark.parametrize("scale", [math.nan, math.inf, -1.0])
def test_refuses_scales_that_no_codec_writes(scale: float) -> None:
    message = Encoded(payload=b"\x00", scales=torch.tensor([scale]), count=2)
    with pytest.raises(ValueError, match="Expected finite scales >= 0"):
        Codec().decode(message)


def test_refuses_a_byte_that_is_no_five_trits() -> None:
    codec, scales = Codec(1.5), torch.ones(1)
    top = codec.decode(Encoded(payload=bytes([242]), scales=scales, count=5))
    assert top.tolist() == [1.0] * 5
    with pytest.raises(ValueError, match="below 243, got 243"):
        codec.decode(Encoded(payload=bytes([243]), scales=scales, count=5))


@settings(max_examples=30)
@given(st.sampled_from([1, *NORMAL]), st.binary(max_size=40))
def test_every_payload_has_values_of_its_own(bits: int, payload: bytes) -> None:
    codec, (width, group) = Codec(bits), PACKED[bits]
    whole = payload[: len(payload) // width * width]
    count = len(whole) // width * group
    blocks = math.ceil(count / codec.block)
    codes = Encoded(payload=whole, scales=torch.ones(blocks), count=count)
    levels = codec.levels.tolist()
    assert written(codec, [levels.index(v) for v in codec.decode(codes).tolist()]) == whole
