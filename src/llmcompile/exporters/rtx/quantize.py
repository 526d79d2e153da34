"""Weights as few bits and scales, the nearest value each: symmetric, and a scale for every output or block of inputs.

    int8   round(w / scale), scale = max |w| of an output / 127
    int4   round(w / scale), scale = max |w| of 128 inputs of an output / 7
    fp8    w / scale as float8_e4m3fn, scale = max |w| of an output / 448

Scales are rounded to the graph's own type first, so that what is divided by is what is multiplied with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
BLOCK = 128
"""Inputs that share a scale in int4. Source: what TensorRT's kernels take besides 64; ONNX's DequantizeLinear-21."""
_LARGEST: Mapping[str, float] = MappingProxyType({"int8": 127.0, "int4": 7.0, "fp8": 448.0})


@dataclass(frozen=True)
class Quantized:
    """A weight as a graph stores it.

    Attributes:
        stored: Its bytes: one an element, or two elements in one, the first of which is the low half.
        scales: Shape (outputs,), or (blocks, outputs) for int4, in the graph's type; axes swapped where the weight's
            are.
    """

    stored: bytes
    scales: Array


def quantizable(shape: tuple[int, ...], recipe: str, inputs_axis: int) -> bool:
    """Whether a weight can be stored so: for int4 its inputs must be whole blocks."""
    return len(shape) == 2 and (recipe != "int4" or shape[inputs_axis] % BLOCK == 0)


def scale_shape(shape: tuple[int, ...], recipe: str, inputs_axis: int) -> tuple[int, ...]:
    """Shape of the scales of a weight."""
    outputs = shape[1 - inputs_axis]
    if recipe != "int4":
        return (outputs,)
    blocks = shape[inputs_axis] // BLOCK
    return (blocks, outputs) if inputs_axis == 0 else (outputs, blocks)


def quantize(weight: Array, recipe: str, inputs_axis: int) -> Quantized:
    """Quantize a weight.

    Args:
        weight: Shape (inputs, outputs), or with the axes swapped; any float type; not modified.
        recipe: "int8", "int4" or "fp8".
        inputs_axis: Which axis is that of the inputs, 0 or 1.
    """
    exact = np.asarray(weight, dtype=np.float32)
    size = BLOCK if recipe == "int4" else exact.shape[inputs_axis]
    # With the axis of the inputs split: (blocks, size, outputs) or (outputs, blocks, size).
    split = list(exact.shape)
    split[inputs_axis : inputs_axis + 1] = [exact.shape[inputs_axis] // size, size]
    blocked = exact.reshape(split)
    largest = np.abs(blocked).max(axis=inputs_axis + 1, keepdims=True)
    scales = np.where(largest > 0, largest / _LARGEST[recipe], 1.0).astype(weight.dtype)
    # A scale too small for the type would be 0.
    scales = np.where(scales == 0, np.asarray(np.finfo(np.float16).smallest_subnormal, scales.dtype), scales)
    ratio = (blocked / scales.astype(np.float32)).reshape(exact.shape)
    return Quantized(_encoded(ratio, recipe), scales.reshape(scale_shape(exact.shape, recipe, inputs_axis)))


def _encoded(ratio: Array, recipe: str) -> bytes:
    most = _LARGEST[recipe]
    if recipe == "fp8":
        return np.clip(ratio, -most, most).astype(ml_dtypes.float8_e4m3fn).tobytes()
    whole = np.clip(np.rint(ratio), -most, most).astype(np.int8)
    if recipe == "int8":
        return whole.tobytes()
    nibbles = whole.reshape(-1).view(np.uint8) & 0x0F
    if nibbles.size % 2 == 1:
        nibbles = np.append(nibbles, np.uint8(0))
    return bytes(nibbles[0::2] | (nibbles[1::2] << 4))
