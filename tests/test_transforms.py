"""Moves equal NumPy's own copy and casts equal ml_dtypes and NumPy, bit for bit."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from llmcompile.dtypes import BF16, FP16, FP32, FP64, INT8, DType
from llmcompile.transforms import (
    cast,
    copy_strided,
    divide_rounded,
    from_float32,
    overflows,
    project,
    to_float32,
)

EDGES_FP32 = np.array(
    [
        *(0x00000000, 0x80000000, 0x00000001, 0x807FFFFF, 0x00800000, 0x7F7FFFFF, 0xFF7FFFFF, 0x7F800000, 0xFF800000),
        *(0x7FC00000, 0xFFC00000, 0x7F800001, 0x7F80FFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0xFF800001),
        *(0x3F808000, 0x3F818000, 0x3F807FFF, 0x3F808001, 0x7F7F7FFF, 0x7F7F8000, 0x3F802000, 0x3F806000),
        *(0x477FE000, 0x477FEFFF, 0x477FF000, 0xC77FF000, 0x33800000, 0x33000000, 0x33000001, 0x387FC000, 0xB3C00000),
    ],
    np.uint32,
).view(np.float32)
"""Zeros, subnormals, infinities, NaNs with low and full payloads, ties of bf16 and fp16, values around both maxima."""


def numpy_float(bits: NDArray[Any], dtype: DType) -> NDArray[Any]:
    """Our carrier of `dtype` as the float type NumPy or ml_dtypes computes in."""
    return bits.view(ml_dtypes.bfloat16) if dtype == BF16 else bits


def expected_cast(bits: NDArray[Any], source: DType, target: DType) -> NDArray[Any]:
    """`bits` cast by NumPy and ml_dtypes through float32."""
    kinds = {FP16: np.float16, BF16: ml_dtypes.bfloat16, FP32: np.float32}
    with np.errstate(all="ignore"):
        return numpy_float(bits, source).astype(np.float32).astype(kinds[target])


def random_bits(dtype: DType, elements: int, seed: int) -> NDArray[Any]:
    """Elements of `dtype` whose every bit is random: one in 256 or so is a NaN or an infinity."""
    raw = np.random.default_rng(seed).integers(0, 256, elements * dtype.size_bytes, np.uint8)
    return raw.view(dtype.bits)


def assert_same_floats(found: NDArray[Any], expected: NDArray[Any], dtype: DType) -> None:
    """Equal bits wherever `expected` is a number, and a NaN of either payload wherever it is a NaN."""
    found = numpy_float(found, dtype)
    nan = np.isnan(expected)
    assert found.shape == expected.shape
    assert np.array_equal(np.isnan(found), nan)
    assert found[~nan].tobytes() == expected[~nan].tobytes()


@st.composite
def strided_arrays(draw: st.DrawFn) -> NDArray[Any]:
    """An array of distinct bytes seen through a random permutation, random slices and random steps, some negative."""
    shape = draw(st.lists(st.integers(1, 9), min_size=1, max_size=5))
    kind = draw(st.sampled_from(["u1", "u2", "u4", "u8", "<f2", "<f4", "<f8"]))
    base = random_bits(FP64, int(np.prod(shape)), draw(st.integers(0, 99))).view(np.uint8)
    array = base[: int(np.prod(shape)) * np.dtype(kind).itemsize].view(kind).reshape(shape)
    array = array.transpose(draw(st.permutations(range(len(shape)))))
    for axis, size in enumerate(array.shape):
        first, last = sorted((draw(st.integers(0, size)), draw(st.integers(0, size))))
        step = draw(st.sampled_from([1, 1, 1, 2, 3, -1, -2]))
        array = array[(slice(None),) * axis + (slice(first, last),)]
        array = array[(slice(None),) * axis + (slice(None, None, step),)]
    return array


@settings(deadline=None)
@given(strided_arrays())
def test_copy_of_any_view_into_contiguous_memory_equals_numpys_copy(source: NDArray[Any]) -> None:
    """Whatever the source's shape, order, steps and element size, the copy holds the same bytes as NumPy's."""
    target = np.zeros(source.shape, source.dtype)

    copy_strided(target, source)

    assert target.tobytes() == source.tobytes()


@settings(deadline=None)
@given(strided_arrays(), st.integers(0, 3), st.integers(0, 3))
def test_copy_into_columns_of_a_wider_block_leaves_the_other_columns_alone(
    source: NDArray[Any], left: int, right: int
) -> None:
    """Copying into a slice of the last axis writes that slice and nothing beside it."""
    *outer, last = source.shape
    block = np.full((*outer, left + last + right), 7, source.dtype)
    expected = block.copy()
    expected[..., left : left + last] = source

    copy_strided(block[..., left : left + last], source)

    assert block.tobytes() == expected.tobytes()


@pytest.mark.parametrize("kind", ["u1", "u2", "u4", "u8"])
@pytest.mark.parametrize("shape", [(255, 257), (256, 512), (1, 700), (700, 1), (513, 300)])
def test_transposing_copy_is_right_around_the_edges_of_its_tiles(shape: tuple[int, int], kind: str) -> None:
    """Matrices a row short of, at and a row past a multiple of the 256-element tile are transposed whole."""
    source = np.arange(shape[0] * shape[1]).astype(kind).reshape(shape).T
    target = np.zeros(source.shape, kind)

    copy_strided(target, source)

    assert np.array_equal(target, source)


def test_transposing_copy_of_more_than_two_axes_equals_numpys_copy() -> None:
    """A fused (head, part, element, input) tensor is turned to (input, part, head, element) as NumPy turns it."""
    source = np.arange(6 * 3 * 17 * 300, dtype=np.uint16).reshape(6, 3, 17, 300).transpose(3, 1, 0, 2)
    target = np.zeros(source.shape, np.uint16)

    copy_strided(target, source)

    assert np.array_equal(target, source)


def test_copy_leaves_its_source_as_it_was() -> None:
    """The source's bytes are the same before and after the copy."""
    source = np.arange(600, dtype=np.uint16).reshape(20, 30)
    before = source.tobytes()

    copy_strided(np.zeros((30, 20), np.uint16), source.T)

    assert source.tobytes() == before


def test_copy_reads_a_source_that_may_not_be_written() -> None:
    """A read-only source, such as the view of a bytes object, is copied without a warning or an error."""
    source = np.frombuffer(bytes(range(24)), np.uint8).reshape(4, 6).T
    target = np.zeros((6, 4), np.uint8)

    copy_strided(target, source)

    assert np.array_equal(target, source)


def test_copy_refuses_arrays_of_different_types() -> None:
    """A target of another element type is a mistake of ours and raises instead of converting silently."""
    with pytest.raises(TypeError):
        copy_strided(np.zeros(4, np.float16), np.zeros(4, np.float32))


def test_copy_of_a_single_element_equals_it() -> None:
    """Arrays whose axes all have one element, which merge to no axis at all, are copied."""
    target = np.zeros((1, 1, 1), np.float32)

    copy_strided(target, np.full((1, 1, 1), 5, np.float32))

    assert target.item() == 5


PAIRS = [
    (source, target) for source in (FP64, FP32, FP16, BF16) for target in (FP32, FP16, BF16) if source is not target
]


@pytest.mark.parametrize(("source", "target"), PAIRS, ids=lambda dtype: dtype.name)
def test_cast_of_random_bit_patterns_equals_numpy_and_ml_dtypes(source: DType, target: DType) -> None:
    """Half a million random patterns, NaNs and subnormals among them, become what NumPy and ml_dtypes make of them."""
    bits = random_bits(source, 500_000, seed=1)

    found = cast(bits, source, target)

    assert_same_floats(found, expected_cast(bits, source, target), target)


@pytest.mark.parametrize("target", [FP32, FP16])
def test_cast_of_every_bf16_equals_ml_dtypes(target: DType) -> None:
    """All 65536 bf16 patterns are cast as ml_dtypes casts them."""
    bits = np.arange(1 << 16, dtype=np.uint16)

    found = cast(bits, BF16, target)

    assert_same_floats(found, expected_cast(bits, BF16, target), target)


@pytest.mark.parametrize("target", [FP32, BF16])
def test_cast_of_every_fp16_equals_numpy_and_ml_dtypes(target: DType) -> None:
    """All 65536 fp16 patterns are cast as NumPy and ml_dtypes cast them."""
    bits = np.arange(1 << 16, dtype=np.uint16).view(np.float16)

    found = cast(bits, FP16, target)

    assert_same_floats(found, expected_cast(bits, FP16, target), target)


@pytest.mark.parametrize("target", [FP16, BF16])
def test_cast_of_edge_values_equals_numpy_and_ml_dtypes(target: DType) -> None:
    """Ties, subnormals, signed zeros, infinities, NaNs and the values around the target's maximum are cast right."""
    found = cast(EDGES_FP32, FP32, target)

    assert_same_floats(found, expected_cast(EDGES_FP32, FP32, target), target)


@settings(deadline=None)
@given(st.lists(st.floats(width=32), min_size=1, max_size=50), st.sampled_from([FP16, BF16]))
def test_cast_of_any_floats_equals_numpy_and_ml_dtypes(values: list[float], target: DType) -> None:
    """Whatever float32 values there are, their cast is the one of NumPy and ml_dtypes."""
    bits = np.array(values, np.float32)

    found = cast(bits, FP32, target)

    assert_same_floats(found, expected_cast(bits, FP32, target), target)


def test_fp64_is_rounded_to_fp32_before_it_is_rounded_to_fp16() -> None:
    """1 + 2^-11 + 2^-40 goes to the tie in float32 and from there to the even 1.0, as the vendor's converter does."""
    bits = np.array([1 + 2.0**-11 + 2.0**-40])

    found = cast(bits, FP64, FP16)

    assert found.tolist() == [1.0]


def test_cast_to_bf16_keeps_a_nan_whose_payload_would_round_to_infinity() -> None:
    """The NaN 0x7f800001, whose upper half is infinity's, stays a NaN."""
    bits = np.array([0x7F800001], np.uint32).view(np.float32)

    found = cast(bits, FP32, BF16)

    assert np.isnan(found.view(ml_dtypes.bfloat16)).all()


def test_cast_to_bf16_keeps_the_sign_of_a_nan_with_all_bits_set() -> None:
    """The NaN 0xffffffff, which rounding would carry over to zero, stays a negative NaN."""
    bits = np.array([0xFFFFFFFF], np.uint32).view(np.float32)

    found = cast(bits, FP32, BF16)

    assert found.tolist() == [0xFFFF]


def test_cast_to_bf16_of_a_transposed_matrix_keeps_its_order() -> None:
    """A matrix that is not C-contiguous is cast element by element, NaNs included."""
    bits = EDGES_FP32[:32].reshape(4, 8).T

    found = cast(bits, FP32, BF16)

    assert_same_floats(np.ascontiguousarray(found), np.ascontiguousarray(expected_cast(bits, FP32, BF16)), BF16)


def test_cast_between_equal_types_returns_its_argument() -> None:
    """No copy is made when the types are equal, so the bits, NaN payloads included, are untouched."""
    bits = random_bits(BF16, 16, seed=2)

    assert cast(bits, BF16, BF16) is bits


@pytest.mark.parametrize(("source", "target"), PAIRS, ids=lambda dtype: dtype.name)
def test_cast_leaves_its_argument_as_it_was(source: DType, target: DType) -> None:
    """The source's bytes are the same before and after a cast."""
    bits = random_bits(source, 1000, seed=3)
    before = bits.tobytes()

    cast(bits, source, target)

    assert bits.tobytes() == before


def test_cast_from_an_integer_type_is_refused() -> None:
    """int8 has no meaning as a weight and raises ValueError."""
    with pytest.raises(ValueError, match="int8 is not a float type"):
        to_float32(np.zeros(2, np.int8), INT8)


def test_cast_to_a_type_no_artifact_has_is_refused() -> None:
    """fp64 is never written and raises ValueError."""
    with pytest.raises(ValueError, match="fp64 is not a float type an artifact is written in"):
        from_float32(np.zeros(2, np.float32), FP64)


@pytest.mark.parametrize(("source", "target"), PAIRS, ids=lambda dtype: dtype.name)
def test_overflows_of_random_patterns_are_the_finite_values_that_became_infinite(source: DType, target: DType) -> None:
    """The count equals NumPy's: finite before, infinite after; NaNs and infinities of the source do not count."""
    bits = random_bits(source, 300_000, seed=4)
    expected = expected_cast(bits, source, target)
    with np.errstate(invalid="ignore"):
        wanted = int(np.sum(np.isfinite(numpy_float(bits, source)) & np.isinf(expected)))

    found = overflows(bits, source, cast(bits, source, target), target)

    assert found == wanted


def test_the_largest_value_that_rounds_into_fp16_is_no_overflow() -> None:
    """65519.996 rounds down to fp16's maximum, 65504, and 65520 is the first to become infinite."""
    bits = np.array([65519.996, 65520.0, -65520.0, np.inf, np.nan], np.float32)

    found = overflows(bits, FP32, cast(bits, FP32, FP16), FP16)

    assert found == 2


def test_a_cast_to_the_same_type_never_overflows() -> None:
    """Infinities that were there before are not counted."""
    bits = np.array([np.inf, -np.inf], np.float16)

    assert overflows(bits, FP16, bits, FP16) == 0


def test_projection_of_embeddings_is_the_matrix_product() -> None:
    """Small whole numbers, whose sums are exact in float32, are multiplied as integers are."""
    embedding, projection = np.arange(12).reshape(4, 3), np.arange(15).reshape(3, 5)

    found = project(embedding.astype(np.float32), projection.astype(np.float32))

    assert found.dtype == np.float32
    assert found.tolist() == (embedding @ projection).tolist()


def test_division_by_one_rank_returns_its_argument() -> None:
    """A single rank's share is the whole, bit for bit."""
    bits = np.array([0.1, np.nan], np.float32)

    assert divide_rounded(bits, 1, FP32) is bits


@pytest.mark.parametrize("dtype", [FP32, FP16, BF16])
def test_division_among_three_ranks_is_rounded_once(dtype: DType) -> None:
    """A third of each value is the float32 quotient rounded to the type."""
    bits = cast(np.array([1, 2, -5, 0.1, 1e-7], np.float32), FP32, dtype)
    expected = from_numpy(numpy_float(bits, dtype).astype(np.float32) / np.float32(3), dtype)

    found = divide_rounded(bits, 3, dtype)

    assert found.tobytes() == expected.tobytes()


def from_numpy(values: NDArray[Any], dtype: DType) -> NDArray[Any]:
    """Float32 `values` in NumPy's or ml_dtypes' own type."""
    return values.astype({FP32: np.float32, FP16: np.float16, BF16: ml_dtypes.bfloat16}[dtype])
