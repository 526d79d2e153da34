"""ATen operators made of matrix products, attention among them; products of 16-bit tensors accumulate in float32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from llmcompile.exporters.neuron.lowering.aten_elementwise import Rule
from llmcompile.exporters.neuron.lowering.aten_reductions import softmax
from llmcompile.exporters.neuron.lowering.elements import Scalar, floating, wide

DotDimensions: TypeAlias = tuple[tuple[Sequence[int], Sequence[int]], tuple[Sequence[int], Sequence[int]]]
_MASKED = float(np.finfo(np.float32).min) / 2
"""Score of a position that is masked: exp of it is 0 beside any other, and sums of it stay finite."""


def dot(a: jax.Array, b: jax.Array, dimensions: DotDimensions) -> jax.Array:
    """Contract two tensors of one type; floats accumulate, and are returned, in float32.

    Raises:
        NotImplementedError: The tensors hold integers, whose products neuronx-cc refuses.
    """
    if not floating(a.dtype):
        raise NotImplementedError(f"a matrix product of {a.dtype}; Neuron multiplies matrices of floats")
    return lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)


def matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    """torch.matmul, in float32: vectors are matrices of one row or column, leading axes are broadcast."""
    if a.ndim == 1:
        return lax.squeeze(product := matmul(a[None], b), (product.ndim - 2 if b.ndim > 1 else 0,))
    if b.ndim <= 2:
        return dot(a, b, (((a.ndim - 1,), (0,)), ((), ())))
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    left, right = (x if x.shape[:-2] == batch else jnp.broadcast_to(x, batch + x.shape[-2:]) for x in (a, b))
    axes = tuple(range(len(batch)))
    return dot(left, right, (((left.ndim - 1,), (left.ndim - 2,)), (axes, axes)))


def _linear(x: jax.Array, weight: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    product = dot(x, weight, (((x.ndim - 1,), (weight.ndim - 1,)), ((), ())))
    return product if bias is None else product + wide(bias)


def _addmm(x: jax.Array, a: jax.Array, b: jax.Array, beta: Scalar = 1, alpha: Scalar = 1) -> jax.Array:
    product = matmul(a, b)
    product = product if alpha == 1 else product * alpha
    return product if beta == 0 else product + (wide(x) if beta == 1 else wide(x) * beta)


def _masked(scores: jax.Array, mask: jax.Array) -> jax.Array:
    if mask.dtype == jnp.bool_:
        return jnp.where(mask, scores, jnp.float32(_MASKED))
    return scores + jnp.maximum(wide(mask), jnp.float32(_MASKED))


def _causal(rows: int, columns: int) -> jax.Array:
    shape = (rows, columns)
    return lax.broadcasted_iota(jnp.int32, shape, 1) <= lax.broadcasted_iota(jnp.int32, shape, 0)


def _attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    attn_mask: jax.Array | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> jax.Array:
    """softmax(q k^T scale + mask) v; a row whose mask has no true element is 0, as torch computes it.

    Grouped queries stay grouped: those of one key head are rows of one product, and no key is repeated.
    """
    if dropout_p != 0.0:
        raise NotImplementedError("dropout in attention; export a model in eval mode")
    rows, columns = q.shape[-2], k.shape[-2]
    groups = q.shape[-3] // k.shape[-3] if enable_gqa else 1
    if groups > 1:
        q = q.reshape(*q.shape[:-3], k.shape[-3], groups * rows, q.shape[-1])
    batch = np.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
    q, k, v = (x if x.shape[:-2] == batch else jnp.broadcast_to(x, batch + x.shape[-2:]) for x in (q, k, v))
    axes = tuple(range(len(batch)))
    scores = dot(q, k, (((q.ndim - 1,), (k.ndim - 1,)), (axes, axes)))
    scores = scores * jnp.float32(q.shape[-1] ** -0.5 if scale is None else scale)
    heads = (*batch[:-1], batch[-1] * groups) if groups > 1 else batch
    mask = _causal(rows, columns) if is_causal else attn_mask
    weights = scores.reshape(*heads, rows, columns)
    weights = softmax(weights if mask is None else _masked(weights, mask), -1).astype(v.dtype)
    mixed = matmul(weights.reshape(scores.shape), v).reshape(*heads, rows, v.shape[-1])
    if mask is None or mask.dtype != jnp.bool_ or is_causal:
        return mixed
    return jnp.where(jnp.any(mask, -1, keepdims=True), mixed, jnp.float32(0))


LINEAR: Mapping[str, Rule] = MappingProxyType(
    {
        "aten.addmm.default": _addmm,
        "aten.baddbmm.default": _addmm,
        "aten.bmm.default": matmul,
        "aten.dot.default": matmul,
        "aten.linear.default": _linear,
        "aten.matmul.default": matmul,
        "aten.mm.default": matmul,
        "aten.mv.default": matmul,
        "aten.scaled_dot_product_attention.default": _attention,
    }
)
"""ATen overload -> function of JAX arrays and numbers; the interpreter casts what it returns to torch's type."""
