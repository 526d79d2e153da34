"""ATen operators that reduce or scan an axis, and the normalisations made of them; sums are kept in float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from llmcompile.exporters.neuron.lowering.aten_elementwise import Rule
from llmcompile.exporters.neuron.lowering.aten_shapes import axes_of, axis_of
from llmcompile.exporters.neuron.lowering.elements import Scalar, floating, highest, lowest, wide

Dims: TypeAlias = int | Sequence[int] | None
MOST_ROUNDS = 256
"""Largest k of a top-k, which takes one round over the axis for each element it finds."""


def _accumulated(x: jax.Array) -> jax.Array:
    return wide(x) if floating(x.dtype) else x.astype(jnp.int32)


def _sum(x: jax.Array, dims: Dims = None, keepdim: bool = False) -> jax.Array:
    return jnp.sum(_accumulated(x), axes_of(x, dims), keepdims=keepdim)


def _mean(x: jax.Array, dims: Dims = None, keepdim: bool = False) -> jax.Array:
    return jnp.mean(wide(x), axes_of(x, dims), keepdims=keepdim)


def _prod(x: jax.Array, dims: Dims = None, keepdim: bool = False) -> jax.Array:
    return jnp.prod(_accumulated(x), axes_of(x, dims), keepdims=keepdim)


def _variance(x: jax.Array, dims: Dims = None, correction: Scalar | None = None, keepdim: bool = False) -> jax.Array:
    axes = axes_of(x, dims)
    y = wide(x)
    centred = y - jnp.mean(y, axes, keepdims=True)
    count = int(np.prod([x.shape[axis] for axis in axes]))
    return jnp.sum(centred * centred, axes, keepdims=keepdim) / (count - (1 if correction is None else correction))


def _variance_mean(
    x: jax.Array, dims: Dims = None, correction: Scalar | None = None, keepdim: bool = False
) -> tuple[jax.Array, jax.Array]:
    return _variance(x, dims, correction, keepdim), _mean(x, dims, keepdim)


def _largest(x: jax.Array, dims: Dims = None, keepdim: bool = False) -> jax.Array:
    return jnp.max(x, axes_of(x, dims), keepdims=keepdim)


def _smallest(x: jax.Array, dims: Dims = None, keepdim: bool = False) -> jax.Array:
    return jnp.min(x, axes_of(x, dims), keepdims=keepdim)


def _any(x: jax.Array, dims: Dims = None, keepdim: bool = False) -> jax.Array:
    return jnp.any(x.astype(jnp.bool_), axes_of(x, dims), keepdims=keepdim)


def _all(x: jax.Array, dims: Dims = None, keepdim: bool = False) -> jax.Array:
    return jnp.all(x.astype(jnp.bool_), axes_of(x, dims), keepdims=keepdim)


def _position(x: jax.Array, best: jax.Array, axis: int) -> jax.Array:
    """Index of the first element equal to `best`, kept as an axis of 1: neuronx-cc reduces one tensor at a time."""
    positions = lax.broadcasted_iota(jnp.int32, x.shape, axis)
    found = x == best if not floating(x.dtype) else (x == best) | (x != x)
    last = jnp.int32(x.shape[axis] - 1)
    return jnp.min(jnp.where(found, positions, last), axis, keepdims=True)


def _argument(extreme: Callable[..., jax.Array]) -> Rule:
    def rule(x: jax.Array, dim: int | None = None, keepdim: bool = False) -> jax.Array:
        if dim is None:
            flat = x.reshape(-1)
            index = _position(flat, extreme(flat, 0, True), 0)
            return index.reshape((1,) * x.ndim if keepdim else ())
        return _with_position(extreme)(x, dim, keepdim)[1]

    return rule


def _with_position(extreme: Callable[..., jax.Array]) -> Callable[..., tuple[jax.Array, jax.Array]]:
    def rule(x: jax.Array, dim: int, keepdim: bool = False) -> tuple[jax.Array, jax.Array]:
        if x.ndim == 0:
            return x, jnp.int32(0)
        axis = axis_of(x, dim)
        best = extreme(x, axis, True)
        index = _position(x, best, axis)
        return (best, index) if keepdim else (lax.squeeze(best, (axis,)), lax.squeeze(index, (axis,)))

    return rule


def _topk(
    x: jax.Array, k: int, dim: int = -1, largest: bool = True, ordered: bool = True
) -> tuple[jax.Array, jax.Array]:
    if k > MOST_ROUNDS:
        raise NotImplementedError(f"k = {k}; at most {MOST_ROUNDS}, since Neuron has no sort")
    axis = axis_of(x, dim)
    extreme = _largest if largest else _smallest
    out = lowest(x.dtype) if largest else highest(x.dtype)
    positions = lax.broadcasted_iota(jnp.int32, x.shape, axis)
    last = jnp.int32(x.shape[axis] - 1)
    taken = jnp.zeros(x.shape, jnp.bool_)
    values, indices = [], []
    for _ in range(k):
        best = extreme(jnp.where(taken, jnp.asarray(out, x.dtype), x), axis, True)
        index = jnp.min(jnp.where((x == best) & ~taken, positions, last), axis, keepdims=True)
        taken = taken | (positions == index)
        values.append(best)
        indices.append(index)
    return lax.concatenate(values, axis), lax.concatenate(indices, axis)


def _scan(combine: Callable[[jax.Array, jax.Array], jax.Array], neutral: Scalar) -> Rule:
    """An inclusive scan in log2(n) rounds of shift and combine."""

    def rule(x: jax.Array, dim: int) -> jax.Array:
        y = _accumulated(x)
        if y.ndim == 0:
            return y
        axis, shift = axis_of(y, dim), 1
        while shift < y.shape[axis]:
            sides = [(0, 0, 0)] * y.ndim
            sides[axis] = (shift, -shift, 0)
            y = combine(y, lax.pad(y, jnp.asarray(neutral, y.dtype), sides))
            shift *= 2
        return y

    return rule


def _vector_norm(x: jax.Array, order: Scalar = 2, dims: Dims = None, keepdim: bool = False) -> jax.Array:
    y, axes = jnp.abs(wide(x)), axes_of(x, dims)
    if order == float("inf"):
        return jnp.max(y, axes, keepdims=keepdim)
    if order == 1:
        return jnp.sum(y, axes, keepdims=keepdim)
    if order == 2:
        return jnp.sqrt(jnp.sum(y * y, axes, keepdims=keepdim))
    raise NotImplementedError(f"a vector norm of order {order}; 1, 2 and infinity are supported")


def softmax(x: jax.Array, axis: int) -> jax.Array:
    """exp(x) / sum(exp(x)) along `axis`, in float32."""
    y = wide(x)
    raised = jnp.exp(y - jnp.max(y, axis, keepdims=True))
    return raised / jnp.sum(raised, axis, keepdims=True)


def _safe_softmax(x: jax.Array, dim: int) -> jax.Array:
    y = wide(x)
    top = jnp.max(y, dim, keepdims=True)
    raised = jnp.exp(y - jnp.where(top == -jnp.inf, 0, top))
    total = jnp.sum(raised, dim, keepdims=True)
    return raised / jnp.where(total == 0, 1, total)


def _log_softmax(x: jax.Array, dim: int, half_to_float: bool) -> jax.Array:
    y = wide(x)
    shifted = y - jnp.max(y, dim, keepdims=True)
    return shifted - jnp.log(jnp.sum(jnp.exp(shifted), dim, keepdims=True))


def _logsumexp(x: jax.Array, dims: Dims, keepdim: bool = False) -> jax.Array:
    y, axes = wide(x), axes_of(x, dims)
    top = jnp.max(y, axes, keepdims=True)
    total = jnp.log(jnp.sum(jnp.exp(y - top), axes, keepdims=True)) + top
    return total if keepdim else lax.squeeze(total, axes)


def _affine(x: jax.Array, weight: jax.Array | None, bias: jax.Array | None) -> jax.Array:
    if weight is not None:
        x = x * wide(weight)
    return x if bias is None else x + wide(bias)


def _layer_norm_parts(
    x: jax.Array, shape: Sequence[int], weight: jax.Array | None, bias: jax.Array | None, eps: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    axes = tuple(range(x.ndim - len(shape), x.ndim))
    y = wide(x)
    mean = jnp.mean(y, axes, keepdims=True)
    centred = y - mean
    scale = lax.rsqrt(jnp.mean(centred * centred, axes, keepdims=True) + eps)
    return _affine(centred * scale, weight, bias), mean, scale


def _layer_norm(
    x: jax.Array,
    shape: Sequence[int],
    weight: jax.Array | None = None,
    bias: jax.Array | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> jax.Array:
    return _layer_norm_parts(x, shape, weight, bias, eps)[0]


def _rms_norm_parts(
    x: jax.Array, shape: Sequence[int], weight: jax.Array | None = None, eps: float | None = None
) -> tuple[jax.Array, jax.Array]:
    axes = tuple(range(x.ndim - len(shape), x.ndim))
    y = wide(x)
    # torch adds the epsilon of the type the square is in, which it keeps in float32 for the narrow ones.
    small = float(np.finfo(np.float32).eps) if eps is None else eps
    scale = lax.rsqrt(jnp.mean(y * y, axes, keepdims=True) + small)
    return _affine(y * scale, weight, None), scale


def _rms_norm(
    x: jax.Array, shape: Sequence[int], weight: jax.Array | None = None, eps: float | None = None
) -> jax.Array:
    return _rms_norm_parts(x, shape, weight, eps)[0]


def _by_channel(x: jax.Array, values: jax.Array) -> jax.Array:
    return values.reshape((1, -1) + (1,) * (x.ndim - 2))


def _affine_by_channel(x: jax.Array, weight: jax.Array | None, bias: jax.Array | None) -> jax.Array:
    if weight is not None:
        x = x * _by_channel(x, wide(weight))
    return x if bias is None else x + _by_channel(x, wide(bias))


def _group_norm(
    x: jax.Array,
    weight: jax.Array | None,
    bias: jax.Array | None,
    batch: int,
    channels: int,
    positions: int,
    groups: int,
    eps: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    grouped = wide(x).reshape(batch, groups, -1)
    mean = jnp.mean(grouped, -1, keepdims=True)
    centred = grouped - mean
    scale = lax.rsqrt(jnp.mean(centred * centred, -1, keepdims=True) + eps)
    normed = (centred * scale).reshape(x.shape)
    return _affine_by_channel(normed, weight, bias), mean[..., 0], scale[..., 0]


def _batch_norm(
    x: jax.Array,
    weight: jax.Array | None,
    bias: jax.Array | None,
    mean: jax.Array,
    variance: jax.Array,
    momentum: float,
    eps: float,
) -> tuple[jax.Array, None, None]:
    scale = lax.rsqrt(wide(variance) + eps)
    normed = wide(x) * _by_channel(x, scale) + _by_channel(x, -wide(mean) * scale)
    return _affine_by_channel(normed, weight, bias), None, None


REDUCTIONS: Mapping[str, Rule] = MappingProxyType(
    {
        "aten._fused_rms_norm.default": _rms_norm_parts,
        "aten._log_softmax.default": _log_softmax,
        "aten._native_batch_norm_legit_no_training.default": _batch_norm,
        "aten._safe_softmax.default": _safe_softmax,
        "aten._softmax.default": lambda x, dim, half_to_float: softmax(x, dim),
        "aten.all.default": _all,
        "aten.all.dim": _all,
        "aten.all.dims": _all,
        "aten.amax.default": _largest,
        "aten.amin.default": _smallest,
        "aten.any.default": _any,
        "aten.any.dim": _any,
        "aten.any.dims": _any,
        "aten.argmax.default": _argument(_largest),
        "aten.argmin.default": _argument(_smallest),
        "aten.cumprod.default": _scan(jnp.multiply, 1),
        "aten.cumsum.default": _scan(jnp.add, 0),
        "aten.layer_norm.default": _layer_norm,
        "aten.linalg_vector_norm.default": _vector_norm,
        "aten.logsumexp.default": _logsumexp,
        "aten.max.default": _largest,
        "aten.max.dim": _with_position(_largest),
        "aten.mean.default": _mean,
        "aten.mean.dim": _mean,
        "aten.min.default": _smallest,
        "aten.min.dim": _with_position(_smallest),
        "aten.native_group_norm.default": _group_norm,
        "aten.native_layer_norm.default": _layer_norm_parts,
        "aten.prod.default": _prod,
        "aten.prod.dim_int": _prod,
        "aten.rms_norm.default": _rms_norm,
        "aten.sum.default": _sum,
        "aten.sum.dim_IntList": _sum,
        "aten.topk.default": _topk,
        "aten.var.correction": _variance,
        "aten.var_mean.correction": _variance_mean,
    }
)
"""ATen overload -> function of JAX arrays and numbers; the interpreter casts what it returns to torch's type."""
