"""Element types on the way from torch to HLO: 64-bit integers become 32-bit ones, float64 becomes float32.

neuronx-cc has no fp64 and runs int64 as 32 bits without saying so; here the narrowing is done in the open, and an
integer that does not fit is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmcompile.errors import UnsupportedError

Scalar: TypeAlias = bool | int | float
Operand: TypeAlias = jax.Array | Scalar

ArrayType: Callable[..., Any] = jax.ShapeDtypeStruct
"""ArrayType(shape, dtype): an array of which no values are known."""

_NUMPY: Mapping[torch.dtype, np.dtype[Any]] = MappingProxyType(
    {
        torch.float64: np.dtype(np.float32),
        torch.float32: np.dtype(np.float32),
        torch.float16: np.dtype(np.float16),
        torch.bfloat16: np.dtype(ml_dtypes.bfloat16),
        torch.int64: np.dtype(np.int32),
        torch.int32: np.dtype(np.int32),
        torch.int16: np.dtype(np.int16),
        torch.int8: np.dtype(np.int8),
        torch.uint8: np.dtype(np.uint8),
        torch.bool: np.dtype(np.bool_),
    }
)
_TORCH: Mapping[np.dtype[Any], torch.dtype] = MappingProxyType(
    {numpy: dtype for dtype, numpy in _NUMPY.items() if dtype not in (torch.float64, torch.int64)}
)
_XLA: Mapping[np.dtype[Any], str] = MappingProxyType(
    {
        np.dtype(np.float32): "f32",
        np.dtype(np.float16): "f16",
        np.dtype(ml_dtypes.bfloat16): "bf16",
        np.dtype(np.int32): "s32",
        np.dtype(np.int16): "s16",
        np.dtype(np.int8): "s8",
        np.dtype(np.uint8): "u8",
        np.dtype(np.bool_): "pred",
    }
)


def element_type(dtype: torch.dtype, subject: str = "the graph") -> np.dtype[Any]:
    """The type that stands for `dtype` in HLO.

    Raises:
        UnsupportedError: There is none, as for complex numbers; `subject` is what the message is about.
    """
    if dtype not in _NUMPY:
        raise UnsupportedError(
            subject, f"element type {str(dtype).removeprefix('torch.')}", "a real type of at most 32 bits"
        )
    return _NUMPY[dtype]


def xla_name(dtype: np.dtype[Any]) -> str:
    """XLA's name of an element type that `element_type` returned: "f32", "s32", "pred", ..."""
    return _XLA[dtype]


def to_numpy(tensor: Tensor, name: str) -> NDArray[Any]:
    """The values of a tensor in the type that stands for its own.

    Args:
        tensor: With values: neither meta nor fake.
        name: What to call it in an error.

    Raises:
        UnsupportedError: An integer needs more than 32 bits.
    """
    plain = tensor.detach().cpu().contiguous()
    if plain.dtype == torch.int64 and plain.numel() > 0:
        low, high = int(plain.min()), int(plain.max())
        if low < -(2**31) or high >= 2**31:
            raise UnsupportedError(name, f"integers from {low} to {high}", "at most 32 bits, as Neuron computes")
    if plain.dtype == torch.bfloat16:
        return plain.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return plain.numpy().astype(element_type(plain.dtype, name), copy=False)


@lru_cache(maxsize=256)
def _stand_in(dtype: np.dtype[Any], scalar: bool) -> Tensor:
    return torch.empty(() if scalar else (1,), dtype=_TORCH[dtype], device="meta")


def promoted(first: Operand, second: Operand) -> np.dtype[Any]:
    """The type torch computes two operands in: tensors before zero-dimensional tensors before Python's numbers."""
    left, right = (
        _stand_in(item.dtype, item.ndim == 0) if isinstance(item, jax.Array) else item for item in (first, second)
    )
    return element_type(torch.result_type(left, right))


def exact(value: Scalar, dtype: np.dtype[Any]) -> bool:
    """Whether `dtype` holds `value` without rounding."""
    with np.errstate(over="ignore"):
        return float(np.asarray(value).astype(dtype)) == value


def floating(dtype: np.dtype[Any]) -> bool:
    """Whether `dtype` is one of float32, float16 and bfloat16."""
    return bool(jnp.issubdtype(dtype, jnp.floating))


def lowest(dtype: np.dtype[Any]) -> float | int:
    """What every value of `dtype` is at least: minus infinity, or the smallest integer."""
    return -np.inf if floating(dtype) else int(np.iinfo(dtype).min)


def highest(dtype: np.dtype[Any]) -> float | int:
    """What every value of `dtype` is at most: infinity, or the largest integer."""
    return np.inf if floating(dtype) else int(np.iinfo(dtype).max)


def wide(x: jax.Array) -> jax.Array:
    """`x` in float32, where statistics and transcendental functions are computed."""
    return x.astype(jnp.float32)
