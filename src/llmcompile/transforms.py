"""Pure array functions that move and convert tensor elements; what a backend computes beside is in its own rows."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llmcompile.dtypes import BF16, FP16, FP32, FP64, DType

Array: TypeAlias = NDArray[Any]

_TILE = 256
"""Rows and columns moved at once by a transposing copy: 256 x 256 two-byte elements (128 KiB) stay in a core's L2."""
_PAD_BYTES = 64
"""Bytes added to each scratch row, so that its columns do not all fall into one cache set when a row is 4 KiB long."""


def copy_strided(target: Array, source: Array) -> None:
    """Copy `source` into `target` element by element, tile by tile when the memory orders differ.

    NumPy's own copy reads one element per cache line when source and target disagree about the contiguous axis, at
    0.3 GB/s where rows are a power of two long; going through a padded scratch tile keeps it at 2 to 5 GB/s.

    Args:
        target: Any shape, last axis contiguous; overwritten.
        source: Same shape and element size; any strides; not modified.
    """
    target, source = _merged(target, source)
    inner = _contiguous_axis(source)
    if source.ndim < 2 or inner is None or inner == source.ndim - 1:
        np.copyto(target, source, casting="no")
        return
    if source.ndim > 2:
        outer = next(axis for axis in range(source.ndim) if axis not in (inner, source.ndim - 1))
        for index in range(source.shape[outer]):
            at = (slice(None),) * outer + (index,)
            copy_strided(target[at], source[at])
        return
    _copy_transposed(target, source)


def _merged(target: Array, source: Array) -> tuple[Array, Array]:
    """Both arrays with neighbouring axes made one wherever that needs no copy in either."""
    shape: list[int] = []
    steps: list[tuple[int, int]] = []
    for size, *step in zip(target.shape, target.strides, source.strides, strict=True):
        if size == 1:
            continue
        if len(shape) > 0 and all(old == size * new for old, new in zip(steps[-1], step, strict=True)):
            shape[-1] *= size
            steps[-1] = (step[0], step[1])
        else:
            shape.append(size)
            steps.append((step[0], step[1]))
    merged_target = np.lib.stride_tricks.as_strided(target, shape, [step[0] for step in steps])
    return merged_target, np.lib.stride_tricks.as_strided(source, shape, [step[1] for step in steps])


def _contiguous_axis(array: Array) -> int | None:
    axes = [axis for axis in range(array.ndim) if array.strides[axis] == array.itemsize]
    return axes[-1] if len(axes) > 0 else None


def _copy_transposed(target: Array, source: Array) -> None:
    """Copy a 2-D `source` whose first axis is the contiguous one, through a padded tile."""
    columns, rows = source.shape
    pad = _PAD_BYTES // source.itemsize
    scratch = np.empty((_TILE, _TILE + pad), source.dtype)
    for row in range(0, rows, _TILE):
        for column in range(0, columns, _TILE):
            tile = source[column : column + _TILE, row : row + _TILE].T
            staged = scratch[: tile.shape[0], : tile.shape[1]]
            staged[...] = tile
            target[column : column + _TILE, row : row + _TILE] = staged.T


def cast(bits: Array, source: DType, target: DType) -> Array:
    """Convert floats: source type -> float32 -> target type, rounding to nearest even; overflow becomes infinity.

    Args:
        bits: Any shape, of `source.bits`; not modified.
        source: fp64, fp32, fp16 or bf16.
        target: fp32, fp16 or bf16.

    Returns:
        The same shape in `target.bits`; `bits` itself when the types are equal. fp16 subnormals are produced and
        -0.0 is kept, as NumPy's `astype` does in FasterTransformer's converters.
    """
    if source == target:
        return bits
    return from_float32(to_float32(bits, source), target)


def to_float32(bits: Array, source: DType) -> Array:
    """`bits` of type `source` as float32, exact except from fp64 (rounded to nearest even)."""
    if source == BF16:
        return (bits.astype(np.uint32) << 16).view(np.float32)
    if source not in (FP64, FP32, FP16):
        raise ValueError(f"{source.name} is not a float type")
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(bits.astype(np.float32, copy=False))


def from_float32(values: Array, target: DType) -> Array:
    """Float32 `values` in the bits of `target` (fp32, fp16 or bf16), rounded to nearest even."""
    if target == FP32:
        return values
    if target == FP16:
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            return np.asarray(values.astype(np.float16))
    if target != BF16:
        raise ValueError(f"{target.name} is not a float type an artifact is written in")
    wide = np.ascontiguousarray(values).view(np.uint32)
    rounded: Array = ((wide + (np.uint32(0x7FFF) + ((wide >> 16) & np.uint32(1)))) >> 16).astype(np.uint16)
    # Rounding up could turn a NaN's payload into infinity: keep its sign and make it quiet instead.
    nan = np.isnan(values)
    if nan.any():
        rounded[nan] = ((wide[nan] >> 16) | np.uint32(0x40)).astype(np.uint16)
    return rounded.reshape(values.shape)


def overflows(before: Array, source: DType, after: Array, target: DType) -> int:
    """Elements that were finite in `before` and are infinite in `after`; 0 at once where the cast cannot overflow."""
    if source == target or (target == FP32 and source != FP64) or (source, target) == (FP16, BF16):
        return 0
    infinite = _infinite(after, target)
    if not infinite.any():
        return 0
    return int(np.count_nonzero(infinite & ~_infinite_or_nan(before, source)))


def _infinite(bits: Array, dtype: DType) -> Array:
    if dtype == BF16:
        return np.asarray((bits & np.uint16(0x7FFF)) == np.uint16(0x7F80))
    return np.isinf(bits)


def _infinite_or_nan(bits: Array, dtype: DType) -> Array:
    if dtype == BF16:
        return np.asarray((bits & np.uint16(0x7F80)) == np.uint16(0x7F80))
    return ~np.isfinite(bits)


def project(embedding: Array, projection: Array) -> Array:
    """Token embeddings (vocab, width) through a projection (width, hidden): (vocab, hidden), all float32."""
    return np.asarray(embedding @ projection)


def divide_rounded(bits: Array, ranks: int, dtype: DType) -> Array:
    """Divide by `ranks` in float32 and round to `dtype`; unchanged for one rank."""
    if ranks == 1:
        return bits
    return from_float32(to_float32(bits, dtype) / np.float32(ranks), dtype)
