"""Every way of storing a matrix names its tensors, gives them the vendor's shapes, and refuses what it cannot hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from llmcompile.dtypes import BF16, BY_NAME, FP16, FP32, INT8, DType
from llmcompile.exporters.trtllm import encodings
from llmcompile.plan import Encoding, TensorSpec
from llmcompile.ranges import Measured

Array = NDArray[Any]
FP8 = BY_NAME["fp8_e4m3"]
INT32 = BY_NAME["int32"]
KINDS = {FP16: np.dtype(np.float16), BF16: np.dtype(ml_dtypes.bfloat16), FP32: np.dtype(np.float32)}
NAME = "mlp.fc.weight"
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Output that lies in each nibble, the lowest first.
Source: casper-hansen/AutoAWQ@v0.2.9:awq/utils/packing_utils.py."""


def encoded(
    encoding: Encoding, matrix: Array, dtype: DType, asides: Sequence[Array] = (), step: int = 0
) -> list[bytes]:
    """The bytes of every tensor a matrix of bits becomes, handed over `step` rows at a time."""
    encoder = encoding.start(dtype, asides)
    step = len(matrix) if step == 0 else step
    main = b"".join(
        encoder.encode(np.ascontiguousarray(matrix[start : start + step]), 0).tobytes()
        for start in range(0, len(matrix), step)
    )
    return [main, *(array.tobytes() for array in encoder.rest())]


def bits(values: Array, dtype: DType) -> Array:
    """Values rounded to a type, as the bits that carry it."""
    return values.astype(KINDS[dtype]).view(dtype.bits)


def random_matrix(rows: int, columns: int, dtype: DType, seed: int = 0) -> Array:
    """Bits of normally distributed values."""
    return bits(np.random.default_rng(seed).normal(size=(rows, columns)), dtype)


def sizes(specs: Sequence[TensorSpec]) -> list[int]:
    """Bytes of each tensor."""
    return [spec.size_bytes for spec in specs]


# Names, types and shapes


@pytest.mark.parametrize(
    ("encoding", "shape", "expected"),
    [
        (
            encodings.weight_only(8),
            (64, 128),
            [("mlp.fc.weight", INT8, (128, 64)), ("mlp.fc.per_channel_scale", FP16, (64,))],
        ),
        (
            encodings.weight_only(4),
            (64, 128),
            [("mlp.fc.weight", INT8, (128, 32)), ("mlp.fc.per_channel_scale", FP16, (64,))],
        ),
        (
            encodings.weight_only(8),
            (4, 64, 128),
            [("mlp.fc.weight", INT8, (4, 128, 64)), ("mlp.fc.per_channel_scale", FP16, (4, 64))],
        ),
        (
            encodings.weight_only(4),
            (4, 64, 128),
            [("mlp.fc.weight", INT8, (4, 128, 32)), ("mlp.fc.per_channel_scale", FP16, (4, 64))],
        ),
        (encodings.gptq(FP16), (64, 16), [("mlp.fc.weight", FP16, (128, 16))]),
        (encodings.gptq(BF16), (64, 16), [("mlp.fc.weight", BF16, (128, 16))]),
        (encodings.awq_integers(BF16), (8, 128), [("mlp.fc.weight", BF16, (128, 16))]),
        (
            encodings.awq(32),
            (64, 128),
            [
                ("mlp.fc.weight", INT8, (32, 128)),
                ("mlp.fc.weights_scaling_factor", FP32, (64, 4)),
                ("mlp.fc.prequant_scaling_factor", FP16, (128,)),
            ],
        ),
        (
            encodings.fp8_rowwise(1200.0),
            (64, 128),
            [("mlp.fc.weight", FP8, (64, 128)), ("mlp.fc.per_channel_scale", FP32, (64,))],
        ),
        (
            encodings.fp8_requantized(),
            (64, 128),
            [("mlp.fc.weight", FP8, (64, 128)), ("mlp.fc.weights_scaling_factor", FP32, (1,))],
        ),
        (
            encodings.fp4_measured(None, 1, (128, 64)),
            (128, 192),
            [
                ("mlp.fc.weight", BY_NAME["uint8"], (128, 96)),
                ("mlp.fc.weights_scaling_factor", FP8, (128, 12)),
                ("mlp.fc.weights_scaling_factor_2", FP32, (1,)),
                ("mlp.fc.activation_scaling_factor", FP32, (1,)),
            ],
        ),
        (
            encodings.fp4_measured(None, 2, (128, 64)),
            (4, 128, 192),
            [
                ("mlp.fc.weight", BY_NAME["uint8"], (4, 128, 96)),
                ("mlp.fc.weights_scaling_factor", FP8, (4, 128, 12)),
                ("mlp.fc.weights_scaling_factor_2", FP32, (4,)),
                ("mlp.fc.activation_scaling_factor", FP32, (1,)),
            ],
        ),
        (encodings.add_one(), (64,), [("mlp.fc.weight", FP16, (64,))]),
    ],
    ids=lambda value: value.name if isinstance(value, Encoding) else None,
)
def test_tensors_have_the_vendors_names_types_and_shapes(
    encoding: Encoding, shape: tuple[int, ...], expected: list[tuple[str, DType, tuple[int, ...]]]
) -> None:
    """What stands beside `weight` is named after it; experts are an axis in front."""
    found = encoding.tensors(NAME, shape, FP16)

    assert [(spec.name, spec.dtype, spec.shape) for spec in found] == expected


def cases() -> Iterator[tuple[Encoding, Array, DType, tuple[int, ...], tuple[Array, ...]]]:
    """An encoding, what it is given, the type of that, and the shape and asides of the plain tensor."""
    integers = np.random.default_rng(1).integers(-(2**31), 2**31, (64, 16), np.int32)
    packed = np.random.default_rng(1).integers(-(2**31), 2**31, (8, 128), np.int32)
    bytes_ = np.random.default_rng(1).normal(size=(64, 128)).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    for dtype in (FP16, BF16):
        matrix = random_matrix(64, 128, dtype)
        for plain in (encodings.weight_only(8), encodings.weight_only(4), encodings.awq(32)):
            yield plain, matrix, dtype, (64, 128), ()
        yield encodings.fp8_rowwise(1200.0), matrix, dtype, (64, 128), ()
        yield encodings.fp4_measured(Measured(3.0, 4.0), 1, (128, 64)), matrix, dtype, (64, 128), ()
        yield encodings.add_one(), matrix[:1], dtype, (128,), ()
        yield encodings.gptq(dtype), integers, INT32, (64, 16), ()
        yield encodings.awq_integers(dtype), packed, INT32, (8, 128), ()
    yield encodings.fp8_requantized(), bytes_, FP8, (64, 128), (np.array([0.5], np.float32),)


CASES = [pytest.param(*case, id=f"{case[0].name}-{case[2].name}-{number}") for number, case in enumerate(cases())]


@pytest.mark.parametrize(("encoding", "matrix", "dtype", "shape", "asides"), CASES)
def test_the_bytes_are_those_the_shapes_promise(
    encoding: Encoding, matrix: Array, dtype: DType, shape: tuple[int, ...], asides: tuple[Array, ...]
) -> None:
    """The header is written before the data, so the kernel must make exactly what `tensors` says."""
    stored = BF16 if dtype == BF16 else FP16

    found = encoded(encoding, matrix, dtype, asides)

    assert [len(content) for content in found] == sizes(encoding.tensors(NAME, shape, stored))


@pytest.mark.parametrize(("encoding", "matrix", "dtype", "shape", "asides"), CASES)
def test_the_bytes_do_not_depend_on_the_blocks(
    encoding: Encoding, matrix: Array, dtype: DType, shape: tuple[int, ...], asides: tuple[Array, ...]
) -> None:
    """As few rows as the encoding takes, or all of them at once: the same bytes."""
    whole = encoded(encoding, matrix, dtype, asides)

    assert encoded(encoding, matrix, dtype, asides, step=encoding.rows) == whole
    assert encoded(encoding, matrix, dtype, asides, step=3 * encoding.rows) == whole


# What cannot be held


@pytest.mark.parametrize(
    ("encoding", "shape", "expected"),
    [
        (encodings.weight_only(8), (32, 64), ""),
        (encodings.weight_only(8), (40, 64), "40 outputs / 32"),
        (encodings.weight_only(8), (32, 96), "96 inputs / 64"),
        (encodings.weight_only(8), (4, 32, 96), "96 inputs / 64"),
        (encodings.weight_only(4), (64, 64), ""),
        (encodings.weight_only(4), (32, 64), "32 outputs / 64"),
        (encodings.gptq(FP16), (64, 8), ""),
        (encodings.gptq(FP16), (64, 12), "96 inputs / 64"),
        (encodings.gptq(FP16), (96, 8), "96 outputs / 64"),
        (encodings.awq_integers(FP16), (8, 64), ""),
        (encodings.awq_integers(FP16), (4, 64), "32 outputs / 64"),
        (encodings.awq(128), (64, 256), ""),
        (encodings.awq(128), (64, 192), "192 inputs / 128 = 1.50"),
        (encodings.awq(128), (32, 256), "32 outputs / 64"),
        (encodings.awq(32), (64, 96), "96 inputs / 64"),
        (encodings.fp8_rowwise(1200.0), (3, 5), ""),
        (encodings.fp8_requantized(), (3, 5), ""),
        (encodings.fp4_measured(None, 1, (128, 64)), (128, 64), ""),
        (encodings.fp4_measured(None, 1, (128, 64)), (192, 64), "192 outputs / 128 = 1.50"),
        (encodings.fp4_measured(None, 1, (128, 64)), (128, 96), "96 inputs / 64 = 1.50"),
        (encodings.fp4_measured(None, 1, (32, 32)), (4, 96, 96), ""),
        (encodings.fp4_measured(None, 1, (32, 32)), (96, 80), "80 inputs / 32 = 2.50"),
        (encodings.add_one(), (5,), ""),
    ],
)
def test_shapes_that_do_not_fit_are_refused_with_the_reason(
    encoding: Encoding, shape: tuple[int, ...], expected: str
) -> None:
    """Nothing where the shape fits; else the axis, its size, and what it has to be a multiple of."""
    found = encoding.check(shape)

    assert (found is None) == (expected == "")
    assert found is None or expected in found.reason


# Values


def pack_awq(values: Array) -> Array:
    """(rows, out) integers from 0 to 15 -> (rows, out / 8) int32, as AutoAWQ packs them."""
    grouped = values.reshape(values.shape[0], -1, 8)[..., list(AWQ_ORDER)].astype(np.uint32)
    return np.bitwise_or.reduce(grouped << np.arange(0, 32, 4, dtype=np.uint32), axis=-1).view(np.int32)


def pack_gptq(values: Array) -> Array:
    """(in, out) integers from 0 to 15 -> (in / 8, out) int32, as AutoGPTQ packs them."""
    grouped = values.reshape(-1, 8, values.shape[1]).transpose(0, 2, 1).astype(np.uint32)
    return np.bitwise_or.reduce(grouped << np.arange(0, 32, 4, dtype=np.uint32), axis=-1).view(np.int32)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), inputs=st.sampled_from([64, 128]), outputs=st.sampled_from([64, 128]))
def test_equal_integers_are_laid_out_alike_whoever_packed_them(seed: int, inputs: int, outputs: int) -> None:
    """A matrix of nibbles packed by AutoAWQ's rule and by AutoGPTQ's becomes the same bytes."""
    values = np.random.default_rng(seed).integers(0, 16, (inputs, outputs))

    by_awq = encoded(encodings.awq_integers(FP16), pack_awq(values).T, INT32)
    by_gptq = encoded(encodings.gptq(FP16), pack_gptq(values).T, INT32)

    assert by_awq == by_gptq


@pytest.mark.parametrize("dtype", [FP16, BF16], ids=lambda dtype: dtype.name)
def test_zeros_are_eight_less_the_zero_times_the_scale(dtype: DType) -> None:
    """(8 - z) * scale, rounded once to the artifact's type; AutoAWQ stores z itself."""
    numbers = np.random.default_rng(3)
    zeros = numbers.integers(0, 16, (4, 16))
    scales = numbers.uniform(0.001, 0.1, (4, 16)).astype(np.float16)

    found = encodings.awq_zeros(pack_awq(zeros), scales, dtype)

    expected = ((8 - zeros) * scales.astype(np.float64)).astype(np.float32).astype(KINDS[dtype])
    assert found.tobytes() == expected.tobytes()


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), dtype=st.sampled_from([FP16, BF16]))
def test_groups_are_rounded_to_the_nearest_of_their_steps(seed: int, dtype: DType) -> None:
    """No weight is further from its integer times the scale than half the scale, and the largest is 7 scales."""
    matrix = random_matrix(6, 64, dtype, seed)
    values = matrix.view(KINDS[dtype]).astype(np.float64)

    main, scales, ones = encoded(encodings.awq(32), matrix, dtype)

    packed = np.frombuffer(main, np.uint8).reshape(3, 64)
    integers = np.stack([packed & 15, packed >> 4], axis=1).reshape(6, 64).astype(np.int64)
    integers = np.where(integers > 7, integers - 16, integers)
    steps = np.frombuffer(scales, np.float32).reshape(6, 2)
    np.testing.assert_allclose(steps, np.abs(values.reshape(6, 2, 32)).max(axis=-1) / 7, rtol=1e-6)
    errors = np.abs(integers * np.repeat(steps, 32, axis=1) - values)
    assert (errors <= 0.500001 * np.repeat(steps, 32, axis=1)).all()
    assert np.frombuffer(ones, KINDS[dtype]).tolist() == [1.0] * 64


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), dtype=st.sampled_from([FP16, BF16, FP32]))
def test_one_is_added_in_the_type_of_the_artifact(seed: int, dtype: DType) -> None:
    """The sum of the rounded weight and one, rounded again."""
    matrix = random_matrix(1, 33, dtype, seed)

    (found,) = encoded(encodings.add_one(), matrix, dtype)

    values = matrix.view(KINDS[dtype]).astype(np.float32)
    assert found == (values + np.float32(1)).astype(KINDS[dtype]).tobytes()


def test_weights_beyond_the_clamp_are_cut() -> None:
    """A weight of 3000 counts as 1200: the row's scale is 1200 / 448, and both are stored as 448."""
    matrix = bits(np.array([[3000.0, -1200.0, 600.0, 0.0]]), FP16)

    main, scale = encoded(encodings.fp8_rowwise(1200.0), matrix, FP16)

    assert np.frombuffer(scale, np.float32) == np.float32(1200) / np.float32(448)
    assert np.frombuffer(main, ml_dtypes.float8_e4m3fn).astype(np.float32).tolist() == [448.0, -448.0, 224.0, 0.0]


def test_parts_of_one_scale_keep_their_bytes() -> None:
    """Requantizing by a ratio of one changes nothing."""
    values = np.arange(256, dtype=np.uint8).reshape(2, 128)
    finite = np.where(values & 0x7F == 0x7F, 0, values).astype(np.uint8)

    main, scale = encoded(encodings.fp8_requantized(), finite, FP8, [np.float32([0.25]), np.float32([0.25])])

    assert main == finite.tobytes()
    assert np.frombuffer(scale, np.float32).tolist() == [0.25]


def test_a_smaller_scale_makes_its_part_smaller() -> None:
    """A part of half the largest scale is halved, exactly where float8 can."""
    values = np.array([[1.0, -2.0, 448.0, 0.0]]).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)

    main, scale = encoded(encodings.fp8_requantized(), values, FP8, [np.float32([0.25]), np.float32([0.5])])

    assert np.frombuffer(main, ml_dtypes.float8_e4m3fn).astype(np.float32).tolist() == [0.5, -1.0, 224.0, 0.0]
    assert np.frombuffer(scale, np.float32).tolist() == [0.5]


def test_nvfp4_has_the_scales_of_what_was_measured() -> None:
    """The largest input and weight over 6 x 448, the ends of float4 and of a block's scale; 1 of nothing but zeros."""
    matrix = random_matrix(2, 64, BF16)

    found = encoded(encodings.fp4_measured(Measured(3.0, 5.0), 1, (128, 64)), matrix, BF16)
    zeros = encoded(encodings.fp4_measured(Measured(0.0, 0.0), 1, (128, 64)), np.zeros_like(matrix), BF16)

    assert np.frombuffer(b"".join(found[2:]), np.float32).tolist() == [np.float32(5) / 2688, np.float32(3) / 2688]
    assert np.frombuffer(b"".join(zeros[2:]), np.float32).tolist() == [1.0, 1.0]
