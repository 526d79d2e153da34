"""ATen operators that read or write at computed positions: gathers, scatters and updates of a slice.

Every gather clamps its positions, so that a wrong id reads a wrong row and never memory that is not the tensor's.
Gathers and scatters list all their coordinates: an older reader would lose the batching dimensions of newer XLA.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import jax
import jax.numpy as jnp
from jax import lax

from llmcompile.exporters.neuron.lowering.aten_elementwise import Rule
from llmcompile.exporters.neuron.lowering.aten_shapes import axis_of, slice_of
from llmcompile.exporters.neuron.lowering.elements import Operand, Scalar, floating

_NO_MASKS = "an index of booleans, whose result has no static shape"
_INTEGER_SUM = "scattered sums of integers, which Neuron computes for floats only (NCC_EVRF016)"


def _rows(x: jax.Array, dim: int, index: jax.Array) -> jax.Array:
    """x[..., index, ...] along `dim`; `index` of any shape, not negative."""
    axis = axis_of(x, dim)
    offsets = tuple(range(axis)) + tuple(range(axis + index.ndim, x.ndim + index.ndim - 1))
    numbers = lax.GatherDimensionNumbers(offset_dims=offsets, collapsed_slice_dims=(axis,), start_index_map=(axis,))
    sizes = [1 if at == axis else size for at, size in enumerate(x.shape)]
    return lax.gather(x, index[..., None], numbers, tuple(sizes), mode=lax.GatherScatterMode.CLIP)


def _embedding(
    weight: jax.Array,
    ids: jax.Array,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> jax.Array:
    return _rows(weight, 0, ids)


def _index_select(x: jax.Array, dim: int, index: jax.Array) -> jax.Array:
    return _rows(x, dim, index.reshape(-1)) if x.ndim > 0 else x


def _coordinates(dim: int, index: jax.Array) -> jax.Array:
    """Where each element of `index` points: its own position on every axis, but its value on `dim`."""
    own = [lax.broadcasted_iota(jnp.int32, index.shape, axis) for axis in range(index.ndim)]
    own[dim] = index.astype(jnp.int32)
    return jnp.stack(own, -1)


def _gather(x: jax.Array, dim: int, index: jax.Array, sparse_grad: bool = False) -> jax.Array:
    if x.ndim == 0:
        return jnp.broadcast_to(x, index.shape)
    every = tuple(range(x.ndim))
    numbers = lax.GatherDimensionNumbers(offset_dims=(), collapsed_slice_dims=every, start_index_map=every)
    coordinates = _coordinates(axis_of(x, dim), index)
    return lax.gather(x, coordinates, numbers, (1,) * x.ndim, mode=lax.GatherScatterMode.CLIP)


def _scattering(write: Callable[..., jax.Array]) -> Rule:
    def rule(x: jax.Array, dim: int, index: jax.Array, source: Operand) -> jax.Array:
        if x.ndim == 0:
            x, index = x[None], index.reshape(-1)
            return rule(x, 0, index, source).reshape(())
        every = tuple(range(x.ndim))
        numbers = lax.ScatterDimensionNumbers(
            update_window_dims=(), inserted_window_dims=every, scatter_dims_to_operand_dims=every
        )
        updates = jnp.broadcast_to(jnp.asarray(source).astype(x.dtype), index.shape) if _is_number(source) else source
        kept = lax.slice(updates, (0,) * x.ndim, index.shape)
        coordinates = _coordinates(axis_of(x, dim), index)
        return write(x, coordinates, kept.astype(x.dtype), numbers, mode=lax.GatherScatterMode.PROMISE_IN_BOUNDS)

    return rule


def _is_number(source: Operand) -> bool:
    return not isinstance(source, jax.Array) or source.ndim == 0


def _add_at(
    x: jax.Array,
    coordinates: jax.Array,
    updates: jax.Array,
    numbers: lax.ScatterDimensionNumbers,
    mode: lax.GatherScatterMode,
) -> jax.Array:
    if not floating(x.dtype):
        raise NotImplementedError(_INTEGER_SUM)
    return lax.scatter_add(x, coordinates, updates, numbers, mode=mode)


_WRITE, _ADD = _scattering(lax.scatter), _scattering(_add_at)


def _scatter_reduce(
    x: jax.Array, dim: int, index: jax.Array, source: jax.Array, reduce: str, include_self: bool = True
) -> jax.Array:
    if reduce != "sum" or not include_self:
        raise NotImplementedError(
            f"scatter_reduce by {reduce}, include_self={include_self}; sums onto self are supported"
        )
    added: jax.Array = _ADD(x, dim, index, source)
    return added


def _positions(indices: Sequence[jax.Array | None]) -> tuple[jax.Array | slice, ...]:
    if any(index is not None and index.dtype == jnp.bool_ for index in indices):
        raise NotImplementedError(_NO_MASKS)
    return tuple(slice(None) if index is None else index.astype(jnp.int32) for index in indices)


def _index(x: jax.Array, indices: Sequence[jax.Array | None]) -> jax.Array:
    return x.at[_positions(indices)].get(mode="clip")


def _index_put(
    x: jax.Array, indices: Sequence[jax.Array | None], values: jax.Array, accumulate: bool = False
) -> jax.Array:
    if len(indices) == 1 and indices[0] is not None and indices[0].dtype == jnp.bool_ and values.size == 1:
        mask = indices[0].reshape(indices[0].shape + (1,) * (x.ndim - indices[0].ndim))
        value = values.reshape(()).astype(x.dtype)
        return jnp.where(mask, x + value if accumulate else value, x)
    given = [(axis, index) for axis, index in enumerate(indices) if index is not None]
    if len(given) == 1 and given[0][1].size == 1 and given[0][1].dtype != jnp.bool_ and not accumulate:
        return _index_put_once(x, *given[0], values)
    place = x.at[_positions(indices)]
    if not accumulate:
        return place.set(values.astype(x.dtype), mode="promise_in_bounds")
    if not floating(x.dtype):
        raise NotImplementedError(_INTEGER_SUM)
    return place.add(values.astype(x.dtype), mode="promise_in_bounds")


def _index_put_once(x: jax.Array, axis: int, index: jax.Array, values: jax.Array) -> jax.Array:
    """One slice along `axis` replaced, at an index that may count from the end."""
    place = index.reshape(()).astype(jnp.int32)
    shape = (*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])
    source = jnp.broadcast_to(values, shape).reshape(*x.shape[:axis], 1, *x.shape[axis + 1 :])
    return _written(x, source, {axis: jnp.where(place < 0, place + x.shape[axis], place)})


def _written(x: jax.Array, source: jax.Array, starts: dict[int, Operand]) -> jax.Array:
    """`x` with `source` at `starts` (axis -> first index; 0 elsewhere): in place where `x` is donated."""
    positions = [jnp.asarray(starts.get(axis, 0), jnp.int32) for axis in range(x.ndim)]
    return lax.dynamic_update_slice(x, source.astype(x.dtype), positions)


def _index_copy(x: jax.Array, dim: int, index: jax.Array, source: jax.Array) -> jax.Array:
    axis = axis_of(x, dim)
    if index.size == 1:
        return _written(x, source, {axis: index.reshape(())})
    return x.at[(slice(None),) * axis + (index,)].set(source.astype(x.dtype), mode="promise_in_bounds")


def _index_add(x: jax.Array, dim: int, index: jax.Array, source: jax.Array, alpha: Scalar = 1) -> jax.Array:
    if not floating(x.dtype):
        raise NotImplementedError(_INTEGER_SUM)
    axis = axis_of(x, dim)
    added = source if alpha == 1 else source * alpha
    return x.at[(slice(None),) * axis + (index,)].add(added.astype(x.dtype), mode="promise_in_bounds")


def _slice_scatter(
    x: jax.Array, source: jax.Array, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> jax.Array:
    axis, first, last = slice_of(x, dim, start, end, step)
    if first == last:
        return x
    if step == 1:
        return _written(x, source, {axis: first})
    return x.at[(slice(None),) * axis + (slice(first, last, step),)].set(source.astype(x.dtype))


def _select_scatter(x: jax.Array, source: jax.Array, dim: int, index: int) -> jax.Array:
    axis = axis_of(x, dim)
    return _written(x, jnp.expand_dims(source, axis), {axis: index % x.shape[axis]})


INDEXING: Mapping[str, Rule] = MappingProxyType(
    {
        "aten.embedding.default": _embedding,
        "aten.gather.default": _gather,
        "aten.index.Tensor": _index,
        "aten.index_add.default": _index_add,
        "aten.index_copy.default": _index_copy,
        "aten.index_put.default": _index_put,
        "aten.index_select.default": _index_select,
        "aten.scatter.src": _WRITE,
        "aten.scatter.value": _WRITE,
        "aten.scatter_add.default": _ADD,
        "aten.scatter_reduce.two": _scatter_reduce,
        "aten.select_scatter.default": _select_scatter,
        "aten.slice_scatter.default": _slice_scatter,
    }
)
"""ATen overload -> function of JAX arrays and numbers; the interpreter casts what it returns to torch's type."""
