"""How linear layers lie in a unified Hugging Face checkpoint: the integers and floats that TensorRT-LLM loads.

A linear layer called `name` has `name.weight` and its scales beside it, under modelopt's names. Scalars have no axes.

Source: nvidia-modelopt 0.47.0: modelopt/torch/export/unified_export_hf.py (_export_quantized_weight);
NVIDIA/TensorRT-LLM@00bbf71e:tensorrt_llm/_torch/modules/linear.py (load_weights_vanilla and its neighbours).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from llmcompile import quantization
from llmcompile.dtypes import FP32, INT8, DType, Shape
from llmcompile.exporters.trtllm.encodings import FP4_STEPS, FP8, FP8_STEPS, UINT8, Beside, beside, step_of
from llmcompile.plan import Encoder, Encoding, Misfit, TensorSpec
from llmcompile.ranges import Measured
from llmcompile.transforms import Array, from_float32, to_float32


def _scalar(value: float) -> Array:
    return np.array(value, np.float32)


def fp8(found: Measured | None) -> Encoding:
    """float8_e4m3 (out, in) with float32 `weight_scale` and `input_scale`, one of each.

    Args:
        found: The figures of the layers that TensorRT-LLM fuses; None where only the shapes are asked for.
    """

    def start(dtype: DType, asides: Sequence[Array]) -> Encoder:
        assert found is not None, "started before calibration"
        kernel = quantization.Fp8Tensor(dtype, step_of(found.weights, FP8_STEPS))
        return Beside(kernel, (_scalar(step_of(found.inputs, FP8_STEPS)),))

    def tensors(name: str, shape: Shape, dtype: DType) -> tuple[TensorSpec, ...]:
        scales = (TensorSpec(beside(name, ending), FP32, ()) for ending in ("weight_scale", "input_scale"))
        return (TensorSpec(name, FP8, shape), *scales)

    return Encoding(name="float8", rows=1, start=start, tensors=tensors)


def fp8_rowwise() -> Encoding:
    """float8_e4m3 (out, in) with float32 `weight_scale` (out); inputs get a scale for each token when it runs."""

    def tensors(name: str, shape: Shape, dtype: DType) -> tuple[TensorSpec, ...]:
        return (TensorSpec(name, FP8, shape), TensorSpec(beside(name, "weight_scale"), FP32, shape[:1]))

    return Encoding(
        name="float8 per row",
        rows=1,
        start=lambda dtype, asides: quantization.Fp8Rowwise(dtype, np.inf),
        tensors=tensors,
    )


def int8() -> Encoding:
    """Int8 (out, in) with float32 `weight_scale` (out); inputs stay as they are."""

    def tensors(name: str, shape: Shape, dtype: DType) -> tuple[TensorSpec, ...]:
        return (TensorSpec(name, INT8, shape), TensorSpec(beside(name, "weight_scale"), FP32, shape[:1]))

    return Encoding(
        name="int8 per row",
        rows=1,
        start=lambda dtype, asides: quantization.SmoothInt8(dtype, np.ones(1, np.float32)),
        tensors=tensors,
    )


def nvfp4(found: Measured | None) -> Encoding:
    """float4_e2m1 in blocks of 16 inputs: uint8 `weight` (out, in / 2), two inputs in a byte.

    Beside it float8_e4m3 `weight_scale` (out, in / 16), and two float32 scalars: `weight_scale_2`, a 6 * 448th of the
    largest weight, and `input_scale`, likewise of the inputs.
    """

    def start(dtype: DType, asides: Sequence[Array]) -> Encoder:
        assert found is not None, "started before calibration"
        kernel = quantization.Nvfp4(dtype, step_of(found.weights, FP4_STEPS))
        return Beside(kernel, (_scalar(step_of(found.inputs, FP4_STEPS)),))

    def tensors(name: str, shape: Shape, dtype: DType) -> tuple[TensorSpec, ...]:
        out, inp = shape
        return (
            TensorSpec(name, UINT8, (out, inp // 2)),
            TensorSpec(beside(name, "weight_scale"), FP8, (out, inp // quantization.NVFP4_BLOCK)),
            *(TensorSpec(beside(name, ending), FP32, ()) for ending in ("weight_scale_2", "input_scale")),
        )

    def check(shape: Shape) -> Misfit | None:
        if shape[-1] % quantization.NVFP4_BLOCK == 0:
            return None
        whole = f"{shape[-1]} inputs / {quantization.NVFP4_BLOCK} = {shape[-1] / quantization.NVFP4_BLOCK:.2f}"
        return Misfit(f"{whole}; a whole number of blocks is needed", "choose fp8, which has no blocks")

    return Encoding(name="float4 in blocks", rows=1, start=start, tensors=tensors, check=check)


class _Factors:
    """GroupwiseAwq and, where the layer keeps them, the factors of its inputs: ones where there are none."""

    def __init__(self, dtype: DType, group_size: int, columns: Array | None, kept: bool, more: Sequence[Array]) -> None:
        self._kernel = quantization.GroupwiseAwq(dtype, group_size, columns)
        self._dtype, self._columns, self._kept, self._more = dtype, columns, kept, more
        self._inputs = 0

    def encode(self, block: Array, part: int) -> Array:
        self._inputs = block.shape[1]
        return self._kernel.encode(block, part)

    def rest(self) -> Sequence[Array]:
        columns = np.ones(self._inputs, np.float32) if self._columns is None else self._columns
        kept = (from_float32(columns, self._dtype),) if self._kept else ()
        return (*self._kernel.rest(), *kept, *self._more)


def awq(found: Measured | None, group_size: int, *, kept: bool, activations: bool, searched: bool) -> Encoding:
    """Int4 in groups of inputs: uint8 `weight` (out / 2, in), two outputs in a byte; float32 `weight_scale`.

    Args:
        found: The group's figures; None where only the shapes are asked for.
        group_size: Inputs that share a scale.
        kept: Whether the layer has `pre_quant_scale` (in), in the model's type, instead of the norm before it.
        activations: Whether it has the two scalars of W4A8 as well: `input_scale` and `weight_scale_2`.
        searched: Whether factors come from calibration.
    """

    def start(dtype: DType, asides: Sequence[Array]) -> Encoder:
        assert found is not None or not searched, "started before calibration"
        columns = asides[0] if len(asides) > 0 else None
        more: tuple[Array, ...] = ()
        if activations:
            assert found is not None
            more = (_scalar(step_of(found.inputs, FP8_STEPS)), _scalar(step_of(found.weights, FP8_STEPS)))
        return _Factors(dtype, group_size, columns, kept, more)

    def tensors(name: str, shape: Shape, dtype: DType) -> tuple[TensorSpec, ...]:
        out, inp = shape
        factors = (TensorSpec(beside(name, "pre_quant_scale"), dtype, (inp,)),) if kept else ()
        scalars = ("input_scale", "weight_scale_2") if activations else ()
        return (
            TensorSpec(name, UINT8, (out // 2, inp)),
            TensorSpec(beside(name, "weight_scale"), FP32, (out, inp // group_size)),
            *factors,
            *(TensorSpec(beside(name, ending), FP32, ()) for ending in scalars),
        )

    return Encoding(
        name="int4 AWQ",
        rows=quantization.GroupwiseAwq.ROWS,
        start=start,
        tensors=tensors,
        check=lambda shape: _groups(shape, group_size),
        columns=None if found is None else found.columns,
    )


_GROUP_SIZES = (128, 64)


def _groups(shape: Shape, group_size: int) -> Misfit | None:
    """Why a matrix cannot be divided into whole groups, or its outputs not be paired."""
    out, inp = shape
    if out % 2 != 0:
        return Misfit(f"{out} outputs / 2 = {out / 2:.1f}; a byte holds two of them", "drop --quantization")
    if inp % group_size == 0:
        return None
    sizes = " or ".join(str(size) for size in _GROUP_SIZES if inp % size == 0)
    hint = f"give --group-size {sizes} (now {group_size})" if sizes != "" else "choose fp8, which has no groups"
    return Misfit(f"{inp} inputs / {group_size} = {inp / group_size:.2f}; a whole number of groups is needed", hint)


class _Scaled:
    """A vector times the factors of its channels, some elements at a time."""

    def __init__(self, dtype: DType, columns: Array) -> None:
        self._dtype, self._columns = dtype, columns
        self._done = 0

    def encode(self, block: Array, part: int) -> Array:
        values = to_float32(block.reshape(-1), self._dtype)
        factors = self._columns[self._done : self._done + values.size]
        self._done += values.size
        return from_float32(values * factors, self._dtype)

    def rest(self) -> Sequence[Array]:
        return ()


def scaled(found: Measured | None) -> Encoding:
    """A norm that does what `pre_quant_scale` would: its output, channel by channel, times the factors of AWQ.

    Source: nvidia-modelopt 0.47.0: modelopt/torch/export/quant_utils.py (fuse_prequant_layernorm).
    """

    def start(dtype: DType, asides: Sequence[Array]) -> Encoder:
        assert found is not None, "started before calibration"
        assert found.columns is not None
        return _Scaled(dtype, found.columns)

    return Encoding(name="scaled for AWQ", rows=1, start=start, tensors=_as_it_is)


def _as_it_is(name: str, shape: Shape, dtype: DType) -> tuple[TensorSpec, ...]:
    return (TensorSpec(name, dtype, shape),)


Encode = Callable[[Measured | None, int, bool], Encoding]
"""(figures of the group, group size, whether factors stay with the layer) -> how its weight lies."""
