"""Packed weights equal TensorRT-LLM's own bytes and a second, plain implementation of its layout."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file

from llmcompile import quantization
from llmcompile.dtypes import BF16, FP16, FP32, INT8, DType
from llmcompile.quantization import (
    AddOne,
    Fp8Requant,
    Fp8Rowwise,
    Fp8Tensor,
    Gptq,
    GroupwiseAwq,
    Nvfp4,
    SmoothInt8,
    WeightOnly,
    check,
    from_fp8,
    gptq_zeros,
    to_fp8,
)

GOLDEN = Path(__file__).parent / "golden" / "trtllm_kernels"
FLOATS = {FP16: np.float16, BF16: ml_dtypes.bfloat16, FP32: np.float32}


def golden(name: str) -> NDArray[Any]:
    """The bits of an input tensor; bf16 and fp8 as unsigned integers."""
    tensor = load_file(GOLDEN / "inputs.safetensors")[name]
    carrier = {torch.bfloat16: torch.uint16, torch.float8_e4m3fn: torch.uint8}.get(tensor.dtype, tensor.dtype)
    return tensor.view(carrier).numpy()


def vendor_made(name: str) -> str:
    """The SHA-256 of the vendor's tensor."""
    return str(json.loads((GOLDEN / "sha256.json").read_text())["sha256"][name])


def sha256(*arrays: NDArray[Any]) -> str:
    """The SHA-256 of the arrays' bytes, one after the other."""
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


def in_blocks(encoder: Any, matrix: NDArray[Any], rows: int, part: int = 0) -> NDArray[Any]:
    """`matrix` encoded `rows` rows at a time."""
    blocks = [matrix[start : start + rows] for start in range(0, len(matrix), rows)]
    return np.concatenate([encoder.encode(np.ascontiguousarray(block), part) for block in blocks])


def random_weights(dtype: DType, shape: tuple[int, int], seed: int) -> NDArray[Any]:
    """Normal weights whose rows differ in size by powers of ten, as bits of `dtype`."""
    generator = np.random.default_rng(seed)
    values = generator.standard_normal(shape) * 10.0 ** generator.integers(-4, 2, (shape[0], 1))
    return values.astype(FLOATS[dtype]).view(dtype.bits)


def rounded_away(weights: NDArray[Any], bits: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Per row of float32 `weights`: integers rounded half away from zero, exactly, and float32 scales."""
    scale = np.abs(weights).max(axis=1) * np.float32(2.0 ** (1 - bits))
    divisor = np.where(scale == 0, np.float32(np.inf), scale)[:, None]
    ratio = (weights / divisor).astype(np.float64)
    nearest = np.sign(ratio) * np.floor(np.abs(ratio) + 0.5)
    return np.clip(nearest, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1).astype(np.int64), scale


def sm80(integers: NDArray[np.int64], bits: int) -> bytes:
    """Integers (out, in) laid out step by step as the vendor does: permute, transpose, interleave, bias, reorder."""
    eight = [0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15]
    four = [8 * c + 2 * a + odd for a in range(4) for c in range(4) for odd in (0, 1)]
    order, word, columns = (eight, [0, 2, 1, 3], 2) if bits == 8 else (four, [0, 2, 4, 6, 1, 3, 5, 7], 4)
    rows = integers.T.reshape(-1, len(order), len(integers))[:, order].reshape(integers.shape[1], -1)
    tiles = rows.T.reshape(len(integers) // columns, columns, -1, 64).transpose(0, 2, 1, 3)
    unsigned = (tiles.reshape(-1, len(word)) + 2 ** (bits - 1))[:, word].reshape(-1).astype(np.uint8)
    return (unsigned if bits == 8 else unsigned[0::2] | unsigned[1::2] << 4).tobytes()


def unpacked(packed: bytes, outputs: int, bits: int) -> NDArray[np.int64]:
    """The integers (out, in) that an SM80 layout holds, found by laying out their positions."""
    size = len(packed) * 8 // bits
    positions = np.zeros(size, np.int64)
    for digit in range(0, size.bit_length(), bits):
        field = (np.arange(size) >> digit) % 2**bits - 2 ** (bits - 1)
        laid = values(sm80(field.reshape(outputs, -1), bits), bits)
        positions |= laid << digit
    integers = np.empty(size, np.int64)
    integers[positions] = values(packed, bits) - 2 ** (bits - 1)
    return integers.reshape(outputs, -1)


def values(packed: bytes, bits: int) -> NDArray[np.int64]:
    """Unsigned integers of 8 or 4 bits in memory order, the low nibble first."""
    octets = np.frombuffer(packed, np.uint8).astype(np.int64)
    return octets if bits == 8 else np.stack((octets & 15, octets >> 4), axis=1).reshape(-1)


@pytest.mark.parametrize("bits", [8, 4])
def test_weight_only_vendor(bits: int) -> None:
    """Weight-only bytes and scales are those of TensorRT-LLM 0.13, in blocks of any number of groups."""
    for rows in (4, 24, 64):
        encoder = WeightOnly(FP16, bits)

        packed = in_blocks(encoder, golden("weight_only"), rows)

        assert packed.dtype == np.int8
        assert sha256(packed) == vendor_made(f"w{bits}.weight")
        assert sha256(*encoder.rest()) == vendor_made(f"w{bits}.per_channel_scale")


@settings(deadline=None, max_examples=60)
@given(
    dtype=st.sampled_from([FP16, BF16, FP32]),
    bits=st.sampled_from([4, 8]),
    groups=st.integers(1, 9),
    tiles=st.integers(1, 5),
    block=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
)
def test_weight_only_unpacks(dtype: DType, bits: int, groups: int, tiles: int, block: int, seed: int) -> None:
    """What is unpacked are the integers that a float32 division rounds to, whatever the dtype, shape and blocks."""
    weights = random_weights(dtype, (4 * groups, 64 * tiles), seed)
    encoder = WeightOnly(dtype, bits)

    packed = in_blocks(encoder, weights, 4 * block)

    expected, scale = rounded_away(weights.view(FLOATS[dtype]).astype(np.float32), bits)
    assert np.array_equal(unpacked(packed.tobytes(), 4 * groups, bits), expected)
    assert encoder.rest()[0].tobytes() == scale.astype(FLOATS[dtype]).tobytes()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", [FP16, BF16])
def test_weight_only_ties(dtype: DType, bits: int) -> None:
    """Every finite weight at most as large as its row's maximum rounds as the division does, ties included."""
    significands = 1024 if dtype == FP16 else 128
    one = int(FLOATS[dtype](1).view(np.uint16))
    for maximum in range(one, one + significands, significands // 64):
        below = np.arange(0, maximum + 1, dtype=np.uint16)[-16384:]
        row = np.resize(np.concatenate((below[::-1], below[::-1] | 0x8000)), (4, 8192 * 2))
        row[:, 0] = maximum

        packed = WeightOnly(dtype, bits).encode(row.view(dtype.bits), 0)

        expected, _ = rounded_away(row.view(FLOATS[dtype]).astype(np.float32), bits)
        assert packed.tobytes() == sm80(expected, bits)


@pytest.mark.parametrize("bits", [8, 4])
def test_weight_only_float32_ties(bits: int) -> None:
    """A float32 weight just below a tie rounds toward zero, and the tie itself away from it."""
    half = 2 ** (bits - 1)
    ties = np.arange(-half, half, dtype=np.float32) + np.float32(0.5)
    row = np.concatenate(
        [ties, np.nextafter(ties, np.float32(0)), [np.float32(half), np.nextafter(np.float32(0.5), 0)]]
    )
    weights = np.resize(row.astype(np.float32), (4, 1024))

    packed = WeightOnly(FP32, bits).encode(weights, 0)

    expected, _ = rounded_away(weights, bits)
    assert packed.tobytes() == sm80(expected, bits)


@pytest.mark.parametrize("dtype", [BF16, FP32])
def test_weight_only_tiny(dtype: DType) -> None:
    """A row whose scale is subnormal is clamped, one whose scale underflows is zeros, and so is a row of zeros."""
    weights = np.zeros((4, 64), np.float32)
    weights[0] = np.linspace(-191, 191, 64) * 2.0**-133
    weights[1] = np.linspace(-60, 60, 64) * 2.0**-149
    weights[3] = np.linspace(-1, 1, 64)
    weights = weights.astype(FLOATS[dtype])
    encoder = WeightOnly(dtype, 8)

    packed = encoder.encode(weights.view(dtype.bits), 0)

    expected, scale = rounded_away(weights.astype(np.float32), 8)
    assert packed.tobytes() == sm80(expected, 8)
    assert encoder.rest()[0].tobytes() == scale.astype(FLOATS[dtype]).tobytes()


def test_weight_only_largest_is_clamped() -> None:
    """The largest weight of a row would be 128 and becomes 127; its negative is -128."""
    weights = np.zeros((4, 64), np.float16)
    weights[:, 0], weights[:, 1] = 3, -3

    packed = WeightOnly(FP16, 8).encode(weights, 0)

    assert unpacked(packed.tobytes(), 4, 8)[:, :3].tolist() == [[127, -128, 0]] * 4


@pytest.mark.parametrize("steps", [1, 3])
def test_weight_only_many_steps(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of rows worked on at once does not show in the bytes."""
    weights = random_weights(BF16, (24, 128), 7)
    whole = WeightOnly(BF16, 4).encode(weights, 0)
    monkeypatch.setattr(quantization, "_STEP", 128 * 4 * steps)

    packed = WeightOnly(BF16, 4).encode(weights, 0)

    assert packed.tobytes() == whole.tobytes()


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize(
    "make", [lambda: WeightOnly(FP16, 8), lambda: GroupwiseAwq(FP16, 64), lambda: Fp8Rowwise(FP16)]
)
def test_not_finite(make: Any, bad: float) -> None:
    """A weight that is infinite or not a number is an error, not a row of wrong integers."""
    weights = np.ones((4, 64), np.float16)
    weights[2, 5] = bad

    with pytest.raises(ValueError, match="infinite or not a number"):
        make().encode(weights, 0)


def test_odd_rows() -> None:
    """A block that ends inside a group of columns is an error."""
    with pytest.raises(ValueError, match=r"6 rows / 4 = 1.50"):
        WeightOnly(FP16, 8).encode(np.ones((6, 64), np.float16), 0)


def test_weight_only_bits() -> None:
    """Only 4 and 8 bits have a layout."""
    with pytest.raises(ValueError, match="2 bits; expected 4 or 8"):
        WeightOnly(FP16, 2)


def test_integers_are_not_weights() -> None:
    """A dtype that is no float is an error."""
    with pytest.raises(ValueError, match="int8 is not a float type"):
        WeightOnly(INT8, 8).encode(np.ones((4, 64), np.uint16).view(np.int16), 0)


def test_gptq_vendor() -> None:
    """GPTQ's integers and zeros are those of TensorRT-LLM 0.13."""
    words = np.ascontiguousarray(golden("gptq.qweight").T)

    packed = in_blocks(Gptq(), words, 12)
    zero = gptq_zeros(golden("gptq.qzeros"), golden("gptq.scales"), FP16)

    assert sha256(packed) == vendor_made("gptq.weight")
    assert sha256(zero) == vendor_made("gptq.zero")
    assert Gptq().rest() == ()


def test_gptq_zeros_bf16() -> None:
    """GPTQ zeros of a bf16 model are rounded to float16 first; rank 0 of 2 of a row-parallel linear has half."""
    zero = gptq_zeros(golden("gptq.qzeros")[:1], golden("gptq.scales")[:1], BF16)

    assert sha256(zero) == vendor_made("gptq.zero_bf16_rank0")


@settings(deadline=None, max_examples=30)
@given(groups=st.integers(1, 6), tiles=st.integers(1, 4), seed=st.integers(0, 2**32 - 1))
def test_gptq_unpacks(groups: int, tiles: int, seed: int) -> None:
    """What is unpacked are AutoGPTQ's nibbles minus 8, lowest nibble first along K."""
    nibbles = np.random.default_rng(seed).integers(0, 16, (4 * groups, 64 * tiles))
    words = (nibbles.reshape(4 * groups, -1, 8) << np.arange(0, 32, 4)).sum(axis=2).astype(np.uint32)

    packed = Gptq().encode(words.view(np.int32), 0)

    assert np.array_equal(unpacked(packed.tobytes(), 4 * groups, 4), nibbles - 8)


@settings(deadline=None, max_examples=30)
@given(
    dtype=st.sampled_from([FP16, BF16, FP32]),
    group=st.sampled_from([32, 64, 128]),
    pairs=st.integers(1, 8),
    groups=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
)
def test_awq_as_modelopt(dtype: DType, group: int, pairs: int, groups: int, seed: int) -> None:
    """Scales are max|W| / 7 per group and rows are packed in pairs, low nibble first, as PyTorch computes them."""
    weights = random_weights(dtype, (2 * pairs, group * groups), seed)
    weights[0, :group] = 0
    encoder = GroupwiseAwq(dtype, group)

    packed = in_blocks(encoder, weights, 2)

    exact = torch.from_numpy(weights.view(FLOATS[dtype]).astype(np.float32)).reshape(2 * pairs, groups, group)
    scale = exact.abs().amax(dim=2) / 7
    scale[scale == 0] = 1
    integers = (exact / scale[..., None]).round().clamp(-8, 7).to(torch.int8).reshape(2 * pairs, -1)
    expected = (integers[0::2] & 15) | (integers[1::2] << 4)
    assert packed.tobytes() == expected.numpy().tobytes()
    assert encoder.rest()[0].tobytes() == scale.numpy().tobytes()


def test_awq_subnormal() -> None:
    """A group whose scale is subnormal, so rounded by half of itself, is clamped instead of overflowing its nibble."""
    weights = np.zeros((2, 64), np.float32)
    weights[:, 0], weights[:, 1] = 10 * 2.0**-149, -10 * 2.0**-149

    packed = GroupwiseAwq(FP32, 64).encode(weights, 0)

    assert packed.view(np.uint8)[0, :3].tolist() == [0x77, 0x88, 0x00]


def test_fp8_rowwise_vendor() -> None:
    """Row-wise float8 bytes and scales are those of TensorRT-LLM 0.13."""
    encoder = Fp8Rowwise(BF16)

    packed = in_blocks(encoder, golden("fp8_rowwise"), 7)

    assert sha256(packed) == vendor_made("fp8_rowwise.weight")
    assert sha256(*encoder.rest()) == vendor_made("fp8_rowwise.per_channel_scale")


@settings(deadline=None, max_examples=30)
@given(dtype=st.sampled_from([FP16, BF16, FP32]), seed=st.integers(0, 2**32 - 1), size=st.integers(-6, 4))
def test_fp8_rowwise_as_torch(dtype: DType, seed: int, size: int) -> None:
    """Weights are clamped to 1200 and scales kept above 1 / (448 * 512), as PyTorch computes them."""
    drawn = np.random.default_rng(seed).standard_normal((5, 96)) * 10.0**size
    weights = np.clip(drawn, -6e4, 6e4).astype(FLOATS[dtype])
    weights[1] = 0
    encoder = Fp8Rowwise(dtype)

    packed = encoder.encode(weights.view(dtype.bits), 0)

    clamped = torch.from_numpy(weights.astype(np.float32)).clamp(-1200, 1200)
    scale = (clamped.abs().max(dim=1).values / 448.0).clamp(min=1.0 / (448.0 * 512.0))
    expected = (clamped / scale[:, None]).clamp(-448, 448).to(torch.float8_e4m3fn)
    assert packed.tobytes() == expected.view(torch.uint8).numpy().tobytes()
    assert encoder.rest()[0].tobytes() == scale.numpy().tobytes()


def test_fp8_requant_vendor() -> None:
    """The fused qkv of a float8 checkpoint has the bytes and the one scale of TensorRT-LLM 0.13."""
    encoder = Fp8Requant([golden(f"fp8.{part}_scale")[0] for part in "qkv"])

    packed = [in_blocks(encoder, golden(f"fp8.{name}"), 9, part) for part, name in enumerate("qkv")]

    assert sha256(*packed) == vendor_made("fp8.weight")
    assert sha256(*encoder.rest()) == vendor_made("fp8.weights_scaling_factor")


@given(scale=st.floats(2.0**-20, 2.0**10, width=32), other=st.floats(2.0**-20, 2.0**10, width=32))
def test_fp8_requant_largest(scale: float, other: float) -> None:
    """The part with the largest scale keeps every byte, NaN too; another's bytes are PyTorch's q * s / s_max."""
    low, high = sorted((scale, other))
    codes = np.arange(256, dtype=np.uint8).reshape(2, 128)
    encoder = Fp8Requant([low, high])

    kept, scaled = encoder.encode(codes, 1), encoder.encode(codes, 0)

    exact = torch.from_numpy(codes).view(torch.float8_e4m3fn).float()
    expected = (exact * torch.tensor(low) / torch.tensor(high)).to(torch.float8_e4m3fn)
    assert kept.tobytes() == codes.tobytes()
    assert scaled.tobytes() == expected.view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("bad", [0.0, -1.0, np.inf, np.nan])
def test_fp8_requant_scale(bad: float) -> None:
    """A weight scale that is zero, negative or not finite is an error."""
    with pytest.raises(ValueError, match="expected finite ones above 0"):
        Fp8Requant([1.0, bad])


@pytest.mark.parametrize("low", [0x0000, 0x0001, 0x7FFF, 0x8000, 0x8001, 0xFFFF, 0x3A5C])
def test_to_fp8(low: int) -> None:
    """Every float32 with these low bits rounds as in ml_dtypes, and to 464 as in PyTorch; a NaN stays one."""
    floats = ((np.arange(65536, dtype=np.uint32) << 16) | np.uint32(low)).view(np.float32)

    codes = to_fp8(floats)

    nan = np.isnan(floats)
    with np.errstate(invalid="ignore", over="ignore"):
        assert np.array_equal(codes[~nan], floats[~nan].astype(ml_dtypes.float8_e4m3fn).view(np.uint8))
    assert np.all(codes[nan] & 0x7F == 0x7F)
    small = np.abs(floats) <= 464
    expected = torch.from_numpy(floats[small]).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    assert np.array_equal(codes[small], expected)


def test_to_fp8_keeps_its_argument() -> None:
    """Values of any shape and strides are rounded without being changed."""
    floats = np.random.default_rng(0).standard_normal((6, 10, 4)).astype(np.float32)
    before = floats.copy()

    codes = to_fp8(floats.transpose(2, 0, 1)[:, ::2])

    assert np.array_equal(codes, floats.transpose(2, 0, 1)[:, ::2].astype(ml_dtypes.float8_e4m3fn).view(np.uint8))
    assert np.array_equal(floats, before)


def test_from_fp8() -> None:
    """Each of the 256 codes is the number that PyTorch reads, and rounds back to itself."""
    codes = np.arange(256, dtype=np.uint8)

    floats = from_fp8(codes)

    expected = torch.from_numpy(codes).view(torch.float8_e4m3fn).float().numpy()
    assert np.array_equal(floats, expected, equal_nan=True)
    assert np.array_equal(to_fp8(floats), codes)


def test_add_one_vendor() -> None:
    """A Gemma norm of bf16 is TensorRT-LLM 0.13's 1 + w."""
    assert sha256(AddOne(BF16).encode(golden("gemma_norm"), 0)) == vendor_made("gemma_norm")
    assert AddOne(BF16).rest() == ()


@pytest.mark.parametrize("dtype", [FP16, BF16])
def test_add_one_as_torch(dtype: DType) -> None:
    """1 + w is what PyTorch computes in the same dtype, for every w that is a number."""
    bits = np.arange(65536, dtype=np.uint16)
    bits = bits[~np.isnan(bits.view(FLOATS[dtype]).astype(np.float32))]
    kind = torch.float16 if dtype == FP16 else torch.bfloat16

    added = AddOne(dtype).encode(bits.view(dtype.bits), 0)

    expected = 1 + torch.from_numpy(bits.view(np.int16)).view(kind)
    assert added.tobytes() == expected.view(torch.int16).numpy().tobytes()


@pytest.mark.parametrize(
    ("out", "inp", "bits", "reason"),
    [
        (64, 64, 8, None),
        (32, 64, 8, None),
        (64, 128, 4, None),
        (16, 64, 8, "16 outputs / 32 = 0.50"),
        (32, 64, 4, "32 outputs / 64 = 0.50"),
        (64, 96, 8, "96 inputs / 64 = 1.50"),
        (64, 96, 4, "96 inputs / 64 = 1.50"),
    ],
)
def test_check(out: int, inp: int, bits: int, reason: str | None) -> None:
    """Both axes are whole multiples of 32 bytes, and inputs of 64 elements."""
    found = check(out, inp, bits)

    assert found is None if reason is None else found is not None and found.startswith(reason)


def test_scratch_is_given_back() -> None:
    """An encoder whose matrix is complete holds no scratch arrays."""
    for encoder in (WeightOnly(FP16, 8), GroupwiseAwq(FP16, 64), Fp8Rowwise(FP16), Nvfp4(FP16, 1.0)):
        encoder.encode(np.ones((4, 64), np.float16), 0)

        encoder.rest()

        assert encoder._scratch._buffers == {}


# Scales and factors that come from calibration


@pytest.mark.parametrize("dtype", [FP16, BF16, FP32])
def test_fp8_of_one_scale_is_the_quotient_rounded(dtype: DType) -> None:
    """Each weight divided by the given scale, to the nearest of ml_dtypes' float8_e4m3fn, and clipped at 448."""
    weights = random_weights(dtype, (6, 32), 3)
    floats = weights.view(FLOATS[dtype]).astype(np.float32)
    scale = np.float32(np.abs(floats).max() / np.float32(300))
    encoder = Fp8Tensor(dtype, float(scale))

    packed = in_blocks(encoder, weights, 2)

    expected = np.clip(floats / scale, -448, 448).astype(ml_dtypes.float8_e4m3fn)
    assert packed.tobytes() == expected.tobytes()
    assert [array.tolist() for array in encoder.rest()] == [[scale]]


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan")])
def test_fp8_of_an_impossible_scale_is_refused(scale: float) -> None:
    """Nothing can be divided by it."""
    with pytest.raises(ValueError, match="a weight scale of"):
        Fp8Tensor(FP16, scale)


@pytest.mark.parametrize("dtype", [FP16, BF16, FP32])
def test_smoothquant_divides_by_the_factors_first(dtype: DType) -> None:
    """V = W / columns; a scale max / 127 for each row, 1 for one of zeros; halves to even."""
    weights = random_weights(dtype, (6, 32), 4)
    weights[2] = 0
    columns = np.exp(np.random.default_rng(5).normal(size=32)).astype(np.float32)
    encoder = SmoothInt8(dtype, columns)

    packed = in_blocks(encoder, weights, 2)

    divided = weights.view(FLOATS[dtype]).astype(np.float32) / columns
    scale = np.abs(divided).max(axis=1) / np.float32(127)
    scale[scale == 0] = 1
    assert packed.tobytes() == np.rint(divided / scale[:, None]).astype(np.int8).tobytes()
    (found,) = encoder.rest()
    assert found.tobytes() == scale.tobytes()


def test_awq_divides_by_the_factors_first() -> None:
    """V = W / columns, and everything after it as without factors."""
    weights = random_weights(FP16, (4, 64), 6)
    columns = np.exp(np.random.default_rng(7).normal(size=64)).astype(np.float32)
    divided = weights.view(np.float16).astype(np.float32) / columns
    encoder, plain = GroupwiseAwq(FP16, 32, columns), GroupwiseAwq(FP32, 32)

    packed, expected = in_blocks(encoder, weights, 2), in_blocks(plain, divided, 2)

    assert packed.tobytes() == expected.tobytes()
    assert encoder.rest()[0].tobytes() == plain.rest()[0].tobytes()


@pytest.mark.parametrize("encoder", [Fp8Tensor(FP16, 1.0), Nvfp4(FP16, 1.0), SmoothInt8(FP16, np.ones(16, np.float32))])
def test_a_weight_that_is_no_number_is_refused(encoder: Any) -> None:
    """As by the encoders that need no data."""
    weights = np.full((2, 16), np.nan, np.float16).view(FP16.bits)

    with pytest.raises(ValueError, match="infinite or not a number"):
        encoder.encode(weights, 0)


# NVFP4

NVFP4 = Path(__file__).parent / "golden" / "calibration" / "nvfp4.safetensors"
NVFP4_LINEARS = ("attention.qkv", "attention.dense", "mlp.fc", "mlp.gate", "mlp.proj", "round", "odd")


def nvfp4_by_definition(floats: NDArray[Any], scale: float) -> tuple[NDArray[Any], NDArray[Any]]:
    """Packed weights and block scales of float32 `floats` by ml_dtypes' own types, block by block."""
    second = np.float32(scale)
    blocks = floats.reshape(-1, 16)
    steps = np.abs(blocks).max(axis=1) / (np.float32(6) * second)
    steps[steps == 0] = 1
    stored = np.clip(steps, 2.0**-9, 448).astype(ml_dtypes.float8_e4m3fn)
    quotients = np.clip(blocks / (stored.astype(np.float32) * second)[:, None], -6, 6)
    codes = quotients.astype(ml_dtypes.float4_e2m1fn).view(np.uint8) & 15
    codes[quotients == 0] = 0
    packed = codes[:, 0::2] | codes[:, 1::2] << 4
    return packed.reshape(len(floats), -1), stored.view(np.uint8).reshape(len(floats), -1)


@pytest.mark.parametrize("name", NVFP4_LINEARS)
def test_nvfp4_is_what_modelopt_writes(name: str) -> None:
    """Bytes of nibbles and block scales of a checkpoint that modelopt exported, and of a matrix of rare values."""
    stored = load_file(NVFP4)
    weights = stored[f"{name}.source"].view(torch.int16).numpy().view(BF16.bits)
    encoder = Nvfp4(BF16, float(stored[f"{name}.weights_scaling_factor_2"]))

    packed = in_blocks(encoder, weights, 2)

    scales, second = encoder.rest()
    assert packed.tobytes() == stored[f"{name}.weight"].numpy().tobytes()
    assert scales.tobytes() == stored[f"{name}.weights_scaling_factor"].view(torch.uint8).numpy().tobytes()
    assert (scales.shape, second.tolist()) == (
        tuple(stored[f"{name}.weights_scaling_factor"].shape),
        [float(stored[f"{name}.weights_scaling_factor_2"])],
    )


@pytest.mark.parametrize("name", NVFP4_LINEARS[:5])
def test_nvfp4_of_modelopt_has_the_scale_of_the_largest_weight(name: str) -> None:
    """max|W| / (6 * 448) of all that is joined: q, k and v; gate and up."""
    stored = load_file(NVFP4)
    joined = ("mlp.fc", "mlp.gate") if name in ("mlp.fc", "mlp.gate") else (name,)
    largest = max(float(stored[f"{part}.source"].abs().max()) for part in joined)

    found = float(stored[f"{name}.weights_scaling_factor_2"])

    assert found == np.float32(largest) / np.float32(6 * 448)


@pytest.mark.parametrize("dtype", [FP16, BF16, FP32])
@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_nvfp4_is_the_nearest_of_ml_dtypes(dtype: DType, data: st.DataObject) -> None:
    """Any finite weights, any scale: float4_e2m1fn of w / (fp8 * scale), to nearest even, as by definition."""
    rows, inputs = data.draw(st.sampled_from([(1, 16), (3, 48), (2, 64)]))
    finite = st.floats(-1000, 1000, width=16 if dtype == FP16 else 32)
    values = data.draw(st.lists(finite, min_size=rows * inputs, max_size=rows * inputs))
    weights = np.array(values, FLOATS[dtype]).reshape(rows, inputs)
    scale = data.draw(st.sampled_from([1.0, 0.37, 1e-3, 1e-6, 0.5**12]))
    encoder = Nvfp4(dtype, scale)

    packed = in_blocks(encoder, weights.view(dtype.bits), 1)

    expected, scales = nvfp4_by_definition(weights.astype(np.float32), scale)
    assert packed.tobytes() == expected.tobytes()
    assert encoder.rest()[0].tobytes() == scales.tobytes()


@pytest.mark.parametrize("dtype", [FP16, BF16, FP32])
def test_nvfp4_does_not_depend_on_the_blocks_rows(dtype: DType) -> None:
    """More rows than are worked on at once give the same bytes as one row at a time."""
    weights = random_weights(dtype, (40, 8192), 8)
    whole, single = Nvfp4(dtype, 1e-3), Nvfp4(dtype, 1e-3)

    at_once, one_by_one = whole.encode(weights, 0), in_blocks(single, weights, 1)

    assert at_once.tobytes() == one_by_one.tobytes()
    assert [array.tobytes() for array in whole.rest()] == [array.tobytes() for array in single.rest()]


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan")])
def test_nvfp4_of_an_impossible_scale_is_refused(scale: float) -> None:
    """Nothing can be divided by it."""
    with pytest.raises(ValueError, match="a weight scale of"):
        Nvfp4(FP16, scale)


def test_nvfp4_of_a_broken_block_is_refused() -> None:
    """A row is whole blocks of 16."""
    with pytest.raises(ValueError, match=r"24 inputs / 16 = 1\.50"):
        Nvfp4(FP16, 1.0).encode(np.ones((2, 24), np.float16).view(FP16.bits), 0)
