"""How TensorRT-LLM stores matrices that are not plain elements: which tensors, of which shape, made by which kernel.

Shapes are those of one rank, without or with a leading axis of experts. Source of every layout:
NVIDIA/TensorRT-LLM@v0.9.0:tensorrt_llm/models/convert_utils.py, tensorrt_llm/quantization/layers.py and
cpp/tensorrt_llm/kernels/cutlass_kernels/cutlass_preprocessors.cpp; docs/formats/trtllm.md has the details.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from llmcompile import quantization
from llmcompile.dtypes import BY_NAME, FP32, INT8, DType, Shape
from llmcompile.plan import Encoder, Encoding, Misfit, TensorSpec
from llmcompile.ranges import Measured
from llmcompile.transforms import Array, from_float32

FP8 = BY_NAME["fp8_e4m3"]
INT32 = BY_NAME["int32"]
UINT8 = BY_NAME["uint8"]


def beside(name: str, ending: str) -> str:
    """The name of a tensor that stands beside the weight called `name`."""
    return name.removesuffix("weight") + ending


def weight_only(bits: int) -> Encoding:
    """Integers of `bits` bits and one scale per output row, in the byte layout of SM75 to SM89.

    `weight` is int8 (..., in, out x bits / 8), `per_channel_scale` (..., out) in the model's type.
    """

    def tensors(name: str, shape: Shape, dtype: DType) -> tuple[TensorSpec, ...]:
        *experts, out, inp = shape
        return (
            TensorSpec(name, INT8, (*experts, inp, out * bits // 8)),
            TensorSpec(beside(name, "per_channel_scale"), dtype, (*experts, out)),
        )

    return Encoding(
        name=f"int{bits} weight-only",
        rows=quantization.WeightOnly.ROWS,
        start=lambda dtype, asides: quantization.WeightOnly(dtype, bits),
        tensors=tensors,
        check=lambda shape: packable(shape, bits),
    )


def packable(shape: Shape, bits: int) -> Misfit | None:
    """Why one rank's matrix (..., out, in) of float weights cannot be laid out in integers of `bits`; None if it can.

    Wherever that is done: the builder lays deferred weights out under the same limits.
    """
    return _misfit(quantization.check(shape[-2], shape[-1], bits), "drop --quantization")


def _misfit(reason: str | None, hint: str) -> Misfit | None:
    return None if reason is None else Misfit(reason, hint)


_FLOATS = "start from the unquantized checkpoint"
"""What helps where the shape of a matrix that comes quantized is in the way."""


def gptq(dtype: DType) -> Encoding:
    """AutoGPTQ's integers in the int4 layout of SM75 to SM89, seen as elements of the model's type: (in, out / 4).

    The blocks are int32 (out, in / 8), eight inputs in each.
    """

    def tensors(name: str, shape: Shape, _: DType) -> tuple[TensorSpec, ...]:
        out, packed = shape
        return (TensorSpec(name, dtype, (packed * 8, out * 4 // 8 // dtype.size_bytes)),)

    return Encoding(
        name="int4 GPTQ",
        rows=quantization.Gptq.ROWS,
        start=lambda _, asides: quantization.Gptq(),
        tensors=tensors,
        check=lambda shape: _misfit(quantization.check(shape[0], shape[1] * 8, 4), _FLOATS),
    )


_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Which nibble of an int32 holds each of eight neighbouring outputs.
Source: casper-hansen/AutoAWQ@v0.2.9:awq/modules/linear/gemm.py (order_map 0 2 4 6 1 3 5 7)."""


def _awq_nibbles(packed: Array) -> Array:
    """The eight outputs of each int32, on a last axis of their own: uint8."""
    words = packed.view(np.uint32)
    return np.stack([(words >> np.uint32(4 * nibble) & np.uint32(15)).astype(np.uint8) for nibble in _AWQ_ORDER], -1)


class _AwqIntegers:
    """AutoAWQ's integers, eight outputs in each int32, brought to AutoGPTQ's order: eight inputs in each."""

    def __init__(self) -> None:
        self._kernel = quantization.Gptq()

    def encode(self, block: Array, part: int) -> Array:
        values = _awq_nibbles(block).transpose(0, 2, 1).reshape(-1, block.shape[1])
        packed = values[:, 0::2] | values[:, 1::2] << 4
        return self._kernel.encode(np.ascontiguousarray(packed).view(np.int32), part)

    def rest(self) -> Sequence[Array]:
        return ()


def awq_integers(dtype: DType) -> Encoding:
    """AutoAWQ's integers in the layout of `gptq`; the blocks are int32 (out / 8, in), eight outputs in each."""

    def tensors(name: str, shape: Shape, _: DType) -> tuple[TensorSpec, ...]:
        packed, inp = shape
        return (TensorSpec(name, dtype, (inp, packed * 8 * 4 // 8 // dtype.size_bytes)),)

    return Encoding(
        name="int4 AWQ with zero points",
        rows=1,
        start=lambda _, asides: _AwqIntegers(),
        tensors=tensors,
        check=lambda shape: _misfit(quantization.check(shape[0] * 8, shape[1], 4), _FLOATS),
    )


def awq_zeros(qzeros: Array, scales: Array, dtype: DType) -> Array:
    """(8 - z) * scale: what is added to (q - 8) * scale, in the bits of `dtype`.

    Args:
        qzeros: int32 (groups, out / 8), as AutoAWQ packs them: the zero itself, not one less.
        scales: float32 (groups, out), of values that float16 holds.
        dtype: fp16 or bf16.
    """
    zeros = _awq_nibbles(qzeros).reshape(qzeros.shape[0], -1).astype(np.float32)
    return from_float32((8 - zeros) * scales, dtype)


_GROUPS = (64, 128)
"""Usual sizes of a group, which messages suggest."""


class _Awq:
    """Groupwise integers, their scales, and a pre-quantization scale of one for every input."""

    def __init__(self, dtype: DType, group_size: int) -> None:
        self._kernel = quantization.GroupwiseAwq(dtype, group_size)
        self._dtype = dtype
        self._inputs = 0

    def encode(self, block: Array, part: int) -> Array:
        self._inputs = block.shape[1]
        return self._kernel.encode(block, part)

    def rest(self) -> Sequence[Array]:
        ones = from_float32(np.ones(self._inputs, np.float32), self._dtype)
        return (*self._kernel.rest(), ones)


def awq(group_size: int) -> Encoding:
    """Rounded to the nearest of 16 values in groups of inputs, in the form that the builder lays out for its own GPU.

    `weight` is int8 (out / 2, in), `weights_scaling_factor` float32 (out, in / group), `prequant_scaling_factor` ones
    (in) in the model's type. Source: NVIDIA/TensorRT-Model-Optimizer, the checkpoints its exporter writes.
    """

    def tensors(name: str, shape: Shape, dtype: DType) -> tuple[TensorSpec, ...]:
        *experts, out, inp = shape
        return (
            TensorSpec(name, INT8, (*experts, out // 2, inp)),
            TensorSpec(beside(name, "weights_scaling_factor"), FP32, (*experts, out, inp // group_size)),
            TensorSpec(beside(name, "prequant_scaling_factor"), dtype, (*experts, inp)),
        )

    def check(shape: Shape) -> Misfit | None:
        found, inp = packable(shape, 4), shape[-1]
        if found is not None or inp % group_size == 0:
            return found
        reason = f"{inp} inputs / {group_size} = {inp / group_size:.2f}; a whole number of groups is needed"
        sizes = " or ".join(str(size) for size in _GROUPS if inp % size == 0)
        return Misfit(reason, f"give --group-size {sizes} (now {group_size})")

    return Encoding(
        name="int4 groupwise",
        rows=quantization.GroupwiseAwq.ROWS,
        start=lambda dtype, asides: _Awq(dtype, group_size),
        tensors=tensors,
        check=check,
    )


def fp8_rowwise(clamp: float) -> Encoding:
    """float8_e4m3 (out, in), clamped first, and one float32 `per_channel_scale` for each output row."""

    def tensors(name: str, shape: Shape, dtype: DType) -> tuple[TensorSpec, ...]:
        return (
            TensorSpec(name, FP8, shape),
            TensorSpec(beside(name, "per_channel_scale"), FP32, shape[:-1]),
        )

    return Encoding(
        name="float8 per row",
        rows=1,
        start=lambda dtype, asides: quantization.Fp8Rowwise(dtype, clamp),
        tensors=tensors,
    )


@dataclass(frozen=True)
class Beside:
    """An encoder and tensors of its linear layer that do not depend on the weights' values."""

    kernel: Encoder
    more: Sequence[Array]

    def encode(self, block: Array, part: int) -> Array:
        """As the kernel does."""
        return self.kernel.encode(block, part)

    def rest(self) -> Sequence[Array]:
        """The kernel's, and then `more`."""
        return (*self.kernel.rest(), *self.more)


def _single(value: float) -> Array:
    return np.array([value], np.float32)


def step_of(largest: float, steps: int) -> float:
    """The scale at which `largest` becomes `steps`, of a value float32 holds; 1 for nothing but zeros."""
    return float(np.float32(largest) / np.float32(steps)) if largest > 0 else 1.0


FP8_STEPS, INT8_STEPS = 448, 127
"""Largest float8_e4m3 and, symmetric, int8."""


def fp8_measured(found: Measured | None, joined: int) -> Encoding:
    """float8_e4m3 (out, in); float32 `weights_scaling_factor` and `activation_scaling_factor`, one of each.

    Of experts (experts, out, in), with a `weights_scaling_factor` for each: (experts, 1).

    Args:
        found: The group's figures; None where only the shapes are asked for.
        joined: Matrices of an expert that lie in one tensor.
    """

    def start(dtype: DType, asides: Sequence[Array]) -> Encoder:
        assert found is not None, "started before calibration"
        inputs = _single(step_of(found.inputs, FP8_STEPS))
        if found.experts is None:
            return Beside(quantization.Fp8Tensor(dtype, step_of(found.weights, FP8_STEPS)), (inputs,))
        steps = (step_of(float(largest), FP8_STEPS) for largest in asides[0])
        return Beside(_Experts((quantization.Fp8Tensor(dtype, step) for step in steps), joined), (inputs,))

    def tensors(name: str, shape: Shape, dtype: DType) -> tuple[TensorSpec, ...]:
        return (
            TensorSpec(name, FP8, shape),
            TensorSpec(beside(name, "weights_scaling_factor"), FP32, (*shape[:-2], 1)),
            TensorSpec(beside(name, "activation_scaling_factor"), FP32, (1,)),
        )

    experts = None if found is None else found.experts
    return Encoding(name="calibrated float8", rows=1, start=start, tensors=tensors, experts=experts)


class _Experts:
    """The matrices of experts, one expert after the other, each with an encoder of its own."""

    def __init__(self, encoders: Iterator[Encoder], joined: int) -> None:
        self._encoders, self._joined = encoders, joined
        self._current: tuple[int, Encoder] | None = None
        self._rests: list[Sequence[Array]] = []

    def encode(self, block: Array, part: int) -> Array:
        expert = part // self._joined
        if self._current is None or self._current[0] != expert:
            self._finish()
            self._current = (expert, next(self._encoders))
        return self._current[1].encode(block, part)

    def _finish(self) -> None:
        """Let go of an encoder's scratch arrays: there may be hundreds."""
        if self._current is not None:
            self._rests.append(self._current[1].rest())

    def rest(self) -> Sequence[Array]:
        self._finish()
        return [np.concatenate(arrays) for arrays in zip(*self._rests, strict=True)]


def int8_smooth(found: Measured | None) -> Encoding:
    """SmoothQuant: int8 (out, in); `weights_scaling_factor` (out), `activation_scaling_factor` (1), both float32.

    `prequant_scaling_factor` (in), in the model's type, is what each input is multiplied by before it is quantized.
    """

    def start(dtype: DType, asides: Sequence[Array]) -> Encoder:
        assert found is not None, "started before calibration"
        (columns,) = asides
        more = (_single(step_of(found.inputs, INT8_STEPS)), from_float32(columns, dtype))
        return Beside(quantization.SmoothInt8(dtype, columns), more)

    def tensors(name: str, shape: Shape, dtype: DType) -> tuple[TensorSpec, ...]:
        out, inp = shape
        return (
            TensorSpec(name, INT8, shape),
            TensorSpec(beside(name, "weights_scaling_factor"), FP32, (out,)),
            TensorSpec(beside(name, "activation_scaling_factor"), FP32, (1,)),
            TensorSpec(beside(name, "prequant_scaling_factor"), dtype, (inp,)),
        )

    columns = None if found is None else found.columns
    return Encoding(name="int8 SmoothQuant", rows=1, start=start, tensors=tensors, columns=columns)


def awq_measured(found: Measured | None, group_size: int, *, activations: bool) -> Encoding:
    """As `awq`, with the factors that the search found; beside them two float32 scales of W4A8 where `activations`.

    `activation_scaling_factor` and `weights_scaling_factor_2` are what brings inputs and dequantized weights into the
    range of float8_e4m3. Experts share the factors, which are stored for each: (experts, in).
    """
    plain = awq(group_size)

    def start(dtype: DType, asides: Sequence[Array]) -> Encoder:
        assert found is not None, "started before calibration"
        columns, *experts = asides
        more = [np.tile(from_float32(columns, dtype), 1 if len(experts) == 0 else len(experts[0]))]
        if activations:
            more += [_single(step_of(found.inputs, FP8_STEPS)), _single(step_of(found.weights, FP8_STEPS))]
        return Beside(quantization.GroupwiseAwq(dtype, group_size, columns), more)

    def tensors(name: str, shape: Shape, dtype: DType) -> tuple[TensorSpec, ...]:
        more = ("activation_scaling_factor", "weights_scaling_factor_2") if activations else ()
        scalars = (TensorSpec(beside(name, ending), FP32, (1,)) for ending in more)
        return (*plain.tensors(name, shape, dtype), *scalars)

    if found is None:
        return replace(plain, name="int4 AWQ", start=start, tensors=tensors)
    return replace(plain, name="int4 AWQ", start=start, tensors=tensors, columns=found.columns, experts=found.experts)


FP4_STEPS = 6 * FP8_STEPS
"""Largest float4_e2m1 times the largest scale of a block."""


def fp4_measured(found: Measured | None, joined: int, tile: tuple[int, int]) -> Encoding:
    """NVFP4: uint8 (out, in / 2), two inputs in each; `weights_scaling_factor` float8_e4m3 (out, in / 16).

    float32 `weights_scaling_factor_2` and `activation_scaling_factor`, one of each, are what blocks' scales are
    multiplied by, those of weights and those that the runtime finds for the inputs. Of experts the weights' have one
    axis more, and each expert has a second scale: (experts,).

    Args:
        found: The group's figures; None where only the shapes are asked for.
        joined: Matrices of an expert that lie in one tensor.
        tile: What outputs and inputs must be multiples of.

    Source: NVIDIA/TensorRT-LLM@01ea6d79d454:tensorrt_llm/models/modeling_utils.py (preprocess_perlayer_weights);
    nvidia-modelopt 0.47.0: modelopt/torch/export/layer_utils.py (build_stacked_experts).
    """

    def start(dtype: DType, asides: Sequence[Array]) -> Encoder:
        assert found is not None, "started before calibration"
        inputs = _single(step_of(found.inputs, FP4_STEPS))
        if found.experts is None:
            return Beside(quantization.Nvfp4(dtype, step_of(found.weights, FP4_STEPS)), (inputs,))
        steps = (step_of(float(largest), FP4_STEPS) for largest in asides[0])
        return Beside(_Experts((quantization.Nvfp4(dtype, step) for step in steps), joined), (inputs,))

    def tensors(name: str, shape: Shape, dtype: DType) -> tuple[TensorSpec, ...]:
        *experts, out, inp = shape
        blocks = inp // quantization.NVFP4_BLOCK
        return (
            TensorSpec(name, UINT8, (*experts, out, inp // 2)),
            TensorSpec(beside(name, "weights_scaling_factor"), FP8, (*experts, out, blocks)),
            TensorSpec(beside(name, "weights_scaling_factor_2"), FP32, (1,) if len(experts) == 0 else tuple(experts)),
            TensorSpec(beside(name, "activation_scaling_factor"), FP32, (1,)),
        )

    def check(shape: Shape) -> Misfit | None:
        for name, size, unit in (("outputs", shape[-2], tile[0]), ("inputs", shape[-1], tile[1])):
            if size % unit != 0:
                reason = f"{size} {name} / {unit} = {size / unit:.2f}; NVFP4 needs a whole number"
                return Misfit(reason, "--quantization fp8")
        return None

    experts = None if found is None else found.experts
    return Encoding(name="NVFP4", rows=1, start=start, tensors=tensors, check=check, experts=experts)


def fp8_requantized() -> Encoding:
    """float8_e4m3 parts, each with a scale among the row's asides, brought to the largest: `weights_scaling_factor`."""

    def start(dtype: DType, asides: Sequence[Array]) -> Encoder:
        return quantization.Fp8Requant([float(scale.reshape(-1)[0]) for scale in asides])

    def tensors(name: str, shape: Shape, dtype: DType) -> tuple[TensorSpec, ...]:
        return (TensorSpec(name, FP8, shape), TensorSpec(beside(name, "weights_scaling_factor"), FP32, (1,)))

    return Encoding(name="float8 of one scale", rows=1, start=start, tensors=tensors, fault=scale_fault)


def scale_fault(values: Array) -> str:
    """What is wrong with a scale of float8: it must be finite and above 0; "" for nothing."""
    wrong = values[~((values > 0) & np.isfinite(values))]
    return "" if wrong.size == 0 else f"a scale of {float(wrong.flat[0])}"


def add_one() -> Encoding:
    """1 + w in the type it is stored in, as Gemma's norms apply it."""

    def tensors(name: str, shape: Shape, dtype: DType) -> tuple[TensorSpec, ...]:
        return (TensorSpec(name, dtype, shape),)

    return Encoding(name="one added", rows=1, start=lambda dtype, asides: quantization.AddOne(dtype), tensors=tensors)
