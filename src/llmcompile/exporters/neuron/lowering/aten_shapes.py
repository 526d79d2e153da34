"""ATen operators that move elements or make new tensors, and compute nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from llmcompile.exporters.neuron.lowering.aten_elementwise import Rule
from llmcompile.exporters.neuron.lowering.elements import Operand, Scalar, floating

_TABULATED = 16384
"""Most elements of a float range written into the module as numbers; a longer one is computed."""


def axis_of(x: jax.Array, dim: int) -> int:
    """`dim` counted from the front; 0 for a scalar."""
    return dim % x.ndim if x.ndim > 0 else 0


def axes_of(x: jax.Array, dims: int | Sequence[int] | None) -> tuple[int, ...]:
    """Axes counted from the front; all of them for None and for an empty list, as ATen's reductions take it."""
    if dims is None or (not isinstance(dims, int) and len(dims) == 0):
        return tuple(range(x.ndim))
    return tuple(sorted({axis_of(x, dim) for dim in ([dims] if isinstance(dims, int) else dims)} if x.ndim > 0 else ()))


def _reshape(x: jax.Array, shape: Sequence[int]) -> jax.Array:
    return jnp.reshape(x, tuple(shape))


def _permute(x: jax.Array, dims: Sequence[int]) -> jax.Array:
    return lax.transpose(x, tuple(axis_of(x, dim) for dim in dims))


def _transpose(x: jax.Array, first: int, second: int) -> jax.Array:
    return jnp.swapaxes(x, first, second) if x.ndim > 0 else x


def _unsqueeze(x: jax.Array, dim: int) -> jax.Array:
    return jnp.expand_dims(x, dim if dim >= 0 else dim + x.ndim + 1)


def _squeeze(x: jax.Array, dims: int | Sequence[int] | None = None) -> jax.Array:
    return lax.squeeze(x, tuple(axis for axis in axes_of(x, dims) if x.shape[axis] == 1))


def _expand(x: jax.Array, sizes: Sequence[int], implicit: bool = False) -> jax.Array:
    new = len(sizes) - x.ndim
    shape = [x.shape[axis - new] if size == -1 else size for axis, size in enumerate(sizes)]
    return jnp.broadcast_to(x, shape)


def _cat(parts: Sequence[jax.Array], dim: int = 0) -> jax.Array:
    # torch leaves out tensors of shape (0,), whatever the others' shapes are.
    real = [part for part in parts if part.shape != (0,)]
    if len(real) == 0:
        return parts[0]
    dtype = jnp.result_type(*real)
    return lax.concatenate([part.astype(dtype) for part in real], axis_of(real[0], dim))


def _stack(parts: Sequence[jax.Array], dim: int = 0) -> jax.Array:
    return _cat([_unsqueeze(part, dim) for part in parts], dim if dim >= 0 else dim + parts[0].ndim + 1)


def _split_sizes(x: jax.Array, sizes: Sequence[int], dim: int = 0) -> list[jax.Array]:
    axis = axis_of(x, dim)
    ends = np.cumsum(sizes).tolist()
    return [lax.slice_in_dim(x, end - size, end, 1, axis) for size, end in zip(sizes, ends, strict=True)]


def _split(x: jax.Array, size: int, dim: int = 0) -> list[jax.Array]:
    total = x.shape[axis_of(x, dim)]
    if total == 0:
        return [x]
    return _split_sizes(x, [min(size, total - start) for start in range(0, total, size)], dim)


def _unbind(x: jax.Array, dim: int = 0) -> list[jax.Array]:
    return [_select(x, dim, index) for index in range(x.shape[axis_of(x, dim)])]


def slice_of(x: jax.Array, dim: int, start: int | None, end: int | None, step: int) -> tuple[int, int, int]:
    """Axis, start and end of a slice with torch's rules: ends beyond the tensor are cut, negative ones wrap once."""
    axis = axis_of(x, dim)
    first, last, _ = slice(start, end, step).indices(x.shape[axis])
    return axis, first, max(first, last)


def _slice(x: jax.Array, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> jax.Array:
    axis, first, last = slice_of(x, dim, start, end, step)
    return lax.slice_in_dim(x, first, last, step, axis)


def _select(x: jax.Array, dim: int, index: int) -> jax.Array:
    axis = axis_of(x, dim)
    return lax.index_in_dim(x, index % x.shape[axis], axis, keepdims=False)


def _unfold(x: jax.Array, dim: int, size: int, step: int) -> jax.Array:
    if x.ndim == 0:
        return x.reshape((1,))
    axis = axis_of(x, dim)
    starts = range(0, x.shape[axis] - size + 1, step)
    windows = [lax.slice_in_dim(x, start, start + size, 1, axis) for start in starts]
    return jnp.moveaxis(_stack(windows, axis), axis + 1, -1)


def _flip(x: jax.Array, dims: Sequence[int]) -> jax.Array:
    return lax.rev(x, axes_of(x, dims) if len(dims) > 0 else ())


def _roll(x: jax.Array, shifts: int | Sequence[int], dims: int | Sequence[int] = ()) -> jax.Array:
    amounts = [shifts] if isinstance(shifts, int) else shifts
    axes = [dims] if isinstance(dims, int) else dims
    if len(axes) == 0:
        return _roll(x.reshape(-1), amounts[0], 0).reshape(x.shape)
    for shift, dim in zip(amounts, axes, strict=True):
        axis = axis_of(x, dim)
        cut = -shift % x.shape[axis] if x.shape[axis] > 0 else 0
        x = _cat([_slice(x, axis, cut), _slice(x, axis, 0, cut)], axis)
    return x


def _repeat(x: jax.Array, repeats: Sequence[int]) -> jax.Array:
    shape = (1,) * (len(repeats) - x.ndim) + x.shape
    widened = [size for pair in zip(repeats, shape, strict=True) for size in pair]
    source = [size for part in shape for size in (1, part)]
    return jnp.broadcast_to(x.reshape(source), widened).reshape(
        [n * size for n, size in zip(repeats, shape, strict=True)]
    )


def _pad(x: jax.Array, amounts: Sequence[int], value: Scalar = 0) -> jax.Array:
    sides = [(0, 0, 0)] * x.ndim
    for pair in range(len(amounts) // 2):
        sides[x.ndim - 1 - pair] = (amounts[2 * pair], amounts[2 * pair + 1], 0)
    return lax.pad(x, jnp.asarray(value, x.dtype), sides)


def _triangle(x: jax.Array, diagonal: int, *, lower: bool) -> jax.Array:
    rows = lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 2)
    columns = lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
    kept = columns <= rows + diagonal if lower else columns >= rows + diagonal
    return jnp.where(kept, x, jnp.zeros((), x.dtype))


def _diagonal(x: jax.Array, offset: int = 0, first: int = 0, second: int = 1) -> jax.Array:
    part: jax.Array = jnp.diagonal(x, offset, axis_of(x, first), axis_of(x, second))
    return part


def _bits(x: jax.Array, dtype: np.dtype[Any]) -> jax.Array:
    if x.dtype.itemsize != dtype.itemsize:
        raise NotImplementedError(f"the bits of {x.dtype} seen as {dtype}; types of one width are supported")
    return lax.bitcast_convert_type(x, dtype)


def _filled(shape: Sequence[int], value: Scalar, dtype: np.dtype[Any]) -> jax.Array:
    return jnp.full(tuple(shape), jnp.asarray(value, dtype))


def _range(*bounds: Scalar, dtype: np.dtype[Any]) -> jax.Array:
    start, end, step = {1: (0, *bounds, 1), 2: (*bounds, 1), 3: bounds}[len(bounds)]
    length = max(0, int(np.ceil((end - start) / step)))
    if not floating(dtype):
        numbers: jax.Array = lax.iota(jnp.int32, length) * int(step) + int(start)
        return numbers
    if length <= _TABULATED:
        return jnp.asarray((start + step * np.arange(length, dtype=np.float64)).astype(dtype))
    values: jax.Array = lax.iota(jnp.float32, length) * jnp.float32(step) + jnp.float32(start)
    return values


def _linspace(start: Scalar, end: Scalar, steps: int, dtype: np.dtype[Any]) -> jax.Array:
    return jnp.asarray(np.linspace(start, end, steps).astype(dtype))


def _eye(rows: int, columns: int | None = None, *, dtype: np.dtype[Any]) -> jax.Array:
    shape = (rows, rows if columns is None else columns)
    return (lax.broadcasted_iota(jnp.int32, shape, 0) == lax.broadcasted_iota(jnp.int32, shape, 1)).astype(dtype)


def _copy(x: jax.Array, source: Operand, non_blocking: bool = False) -> jax.Array:
    return jnp.broadcast_to(jnp.asarray(source).astype(x.dtype), x.shape)


SHAPES: Mapping[str, Rule] = MappingProxyType(
    {
        "aten._reshape_alias.default": lambda x, shape, stride: _reshape(x, shape),
        "aten._unsafe_view.default": _reshape,
        "aten.cat.default": _cat,
        "aten.constant_pad_nd.default": _pad,
        "aten.copy.default": _copy,
        "aten.diagonal.default": _diagonal,
        "aten.diagonal_copy.default": _diagonal,
        "aten.expand.default": _expand,
        "aten.expand_copy.default": _expand,
        "aten.flip.default": _flip,
        "aten.permute.default": _permute,
        "aten.permute_copy.default": _permute,
        "aten.repeat.default": _repeat,
        "aten.reshape.default": _reshape,
        "aten.roll.default": _roll,
        "aten.select.int": _select,
        "aten.select_copy.int": _select,
        "aten.slice.Tensor": _slice,
        "aten.slice_copy.Tensor": _slice,
        "aten.split.Tensor": _split,
        "aten.split_with_sizes.default": _split_sizes,
        "aten.split_with_sizes_copy.default": _split_sizes,
        "aten.squeeze.default": _squeeze,
        "aten.squeeze.dim": _squeeze,
        "aten.squeeze.dims": _squeeze,
        "aten.squeeze_copy.dims": _squeeze,
        "aten.stack.default": _stack,
        "aten.t.default": lambda x: x.T,
        "aten.transpose.int": _transpose,
        "aten.tril.default": lambda x, diagonal=0: _triangle(x, diagonal, lower=True),
        "aten.triu.default": lambda x, diagonal=0: _triangle(x, diagonal, lower=False),
        "aten.unbind.int": _unbind,
        "aten.unfold.default": _unfold,
        "aten.unsqueeze.default": _unsqueeze,
        "aten.unsqueeze_copy.default": _unsqueeze,
        "aten.view.default": _reshape,
        "aten.view_copy.default": _reshape,
    }
)
FACTORIES: Mapping[str, Rule] = MappingProxyType(
    {
        "aten.arange.default": _range,
        "aten.arange.start": _range,
        "aten.arange.start_step": _range,
        "aten.empty.memory_format": lambda shape, dtype: _filled(shape, 0, dtype),
        "aten.empty_like.default": lambda x, dtype: _filled(x.shape, 0, dtype),
        "aten.empty_strided.default": lambda shape, stride, dtype: _filled(shape, 0, dtype),
        "aten.eye.default": _eye,
        "aten.eye.m": _eye,
        "aten.fill.Scalar": lambda x, value, dtype: _filled(x.shape, value, dtype),
        "aten.full.default": _filled,
        "aten.full_like.default": lambda x, value, dtype: _filled(x.shape, value, dtype),
        "aten.linspace.default": _linspace,
        "aten.new_empty.default": lambda x, shape, dtype: _filled(shape, 0, dtype),
        "aten.new_full.default": lambda x, shape, value, dtype: _filled(shape, value, dtype),
        "aten.new_ones.default": lambda x, shape, dtype: _filled(shape, 1, dtype),
        "aten.new_zeros.default": lambda x, shape, dtype: _filled(shape, 0, dtype),
        "aten.ones.default": lambda shape, dtype: _filled(shape, 1, dtype),
        "aten.ones_like.default": lambda x, dtype: _filled(x.shape, 1, dtype),
        "aten.scalar_tensor.default": lambda value, dtype: _filled((), value, dtype),
        "aten.tril_indices.default": lambda rows, columns, offset=0, *, dtype: jnp.asarray(
            np.stack(np.tril_indices(rows, offset, columns)).astype(dtype)
        ),
        "aten.view.dtype": lambda x, target, dtype: _bits(x, dtype),
        "aten.zeros.default": lambda shape, dtype: _filled(shape, 0, dtype),
        "aten.zeros_like.default": lambda x, dtype: _filled(x.shape, 0, dtype),
    }
)
"""As the other tables, for operators whose rule must know the type of the result: it takes `dtype` as a keyword."""
