"""Linear layers of a unified checkpoint: which tensors make one, what they stand for, how inputs are rounded.

Shape suffixes: N outputs, C inputs, G groups of inputs.

Source: NVIDIA/TensorRT-LLM@00bbf71e:tensorrt_llm/_torch/modules/linear.py: FP8QDQLinearMethod, FP8RowwiseLinearMethod,
WeightOnlyQuantLinearMethod, W4A16_AWQ_LinearMethod, W4A8_AWQ_LinearMethod.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

import torch
from torch import Tensor

from llmcompile.errors import MismatchError, Problem
from llmcompile.validation.checks import StoredWeights
from llmcompile.validation.unified.folder import AGAIN, Folder

Rounding: TypeAlias = Callable[[Tensor], Tensor]
_FP8_MAX = 448.0
_LEAST = 1 / (_FP8_MAX * 512)
"""Least scale of a row of 8-bit floats."""
_BLOCK_ELEMENTS = 1 << 22
_BLOCK = 16
"""Inputs that share a scale in NVFP4."""
_FP4 = torch.tensor([*(0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0), *(-0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)])
"""Values of float4_e2m1 by their bits."""


@dataclass(frozen=True)
class Kept:
    """A tensor beside a linear layer's weight.

    Attributes:
        ending: Its name, behind the layer's.
        shape: In the letters N, C and G; "" for a scalar.
        dtype: Its type; None for the model's.
        optional: Whether it may be missing, a norm doing what it does.
    """

    ending: str
    shape: str
    dtype: torch.dtype | None = torch.float32
    optional: bool = False


@dataclass(frozen=True)
class Form:
    """How a recipe stores a linear layer.

    Attributes:
        dtype: Type of `weight`.
        outputs: Outputs in an element of `weight`.
        inputs: Inputs in an element of it.
        beside: The tensors beside it.
        why: How coarse it is, for people.
    """

    dtype: torch.dtype
    outputs: int
    beside: tuple[Kept, ...]
    why: str
    inputs: int = 1


_FACTORS = Kept("pre_quant_scale", "C", None, optional=True)
FORMS: Mapping[str, Form] = MappingProxyType(
    {
        "FP8": Form(
            torch.float8_e4m3fn, 1, (Kept("weight_scale", ""), Kept("input_scale", "")), "8-bit floats, one scale"
        ),
        "FP8_PER_CHANNEL_PER_TOKEN": Form(
            torch.float8_e4m3fn, 1, (Kept("weight_scale", "N"),), "8-bit floats, a scale for each row and token"
        ),
        "NVFP4": Form(
            torch.uint8,
            1,
            (Kept("weight_scale", "NG", torch.float8_e4m3fn), Kept("weight_scale_2", ""), Kept("input_scale", "")),
            "4-bit floats in blocks of 16, for inputs too",
            inputs=2,
        ),
        "W8A16": Form(torch.int8, 1, (Kept("weight_scale", "N"),), "8-bit weights, a scale for each output"),
        "W4A16_AWQ": Form(
            torch.uint8, 2, (Kept("weight_scale", "NG"), _FACTORS), "4-bit weights, a scale for each group of inputs"
        ),
        "W4A8_AWQ": Form(
            torch.uint8,
            2,
            (Kept("weight_scale", "NG"), _FACTORS, Kept("input_scale", ""), Kept("weight_scale_2", "")),
            "4-bit weights in groups and 8-bit floats of one scale for inputs",
        ),
    }
)
"""`quant_algo` -> how it is stored."""


@dataclass(frozen=True)
class Layer:
    """A quantized linear layer of a folder.

    Attributes:
        name: Its path, as in transformers' model.
        form: How it is stored.
        outputs: N.
        inputs: C.
    """

    folder: Folder
    name: str
    form: Form
    outputs: int
    inputs: int

    @property
    def group_size(self) -> int:
        """Inputs that share a scale."""
        found = self.folder.quantization.group_size
        return self.inputs if found is None else found

    def shape(self, letters: str) -> tuple[int, ...]:
        """The sizes that letters stand for."""
        sizes = {"N": self.outputs, "C": self.inputs, "G": self.inputs // self.group_size}
        return tuple(sizes[letter] for letter in letters)

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...], torch.dtype, bool]]:
        """Name, shape and type of each of its tensors, and whether it may be missing."""
        shape = (self.outputs // self.form.outputs, self.inputs // self.form.inputs)
        yield f"{self.name}.weight", shape, self.form.dtype, False
        for kept in self.form.beside:
            dtype = getattr(torch, self.folder.dtype) if kept.dtype is None else kept.dtype
            yield f"{self.name}.{kept.ending}", self.shape(kept.shape), dtype, kept.optional

    def has(self, ending: str) -> bool:
        """Whether there is a tensor of this name beside the weight."""
        return f"{self.name}.{ending}" in self.folder.weights.names()

    def beside(self, ending: str) -> Tensor:
        """A tensor beside the weight, in float32."""
        return self.folder.weights.read(f"{self.name}.{ending}").float()

    def factors(self) -> Tensor | None:
        """What inputs are multiplied by, shape (C,); None where nothing is said here."""
        return self.beside("pre_quant_scale") if self.has("pre_quant_scale") else None

    def blocks(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Some rows at a time: which, what `weight` holds there in float32, and the scale that broadcasts to it."""
        weight, scale = self.folder.weights.read(f"{self.name}.weight"), self._scale()
        for rows in row_blocks(self.outputs, self.inputs, self.form.outputs):
            part = weight[rows.start // self.form.outputs : rows.stop // self.form.outputs]
            if self.form.outputs == 2:
                pairs = torch.stack((part & 15, part >> 4), 1).flatten(0, 1).to(torch.int8)
                part = torch.where(pairs > 7, pairs - 16, pairs)
            elif self.form.inputs == 2:
                part = _FP4[torch.stack((part & 15, part >> 4), -1).flatten(1).long()]
            steps = scale if scale.dim() == 0 else scale[rows]
            if scale.dim() == 2:
                steps = steps.repeat_interleave(self.group_size, 1)
            yield rows, part.float(), steps[:, None] if scale.dim() == 1 else steps

    def _scale(self) -> Tensor:
        """What elements are multiplied by: a scalar, or one for each row, or for each row and group."""
        scale = self.beside("weight_scale")
        return scale * self.beside("weight_scale_2") if self.form.inputs == 2 else scale

    def weight(self) -> Tensor:
        """What stands for the weight in a product with inputs as they are: shape (N, C), float32."""
        factors, whole = self.factors(), torch.empty(self.outputs, self.inputs)
        for rows, values, steps in self.blocks():
            whole[rows] = values * steps if factors is None else values * steps * factors
        return whole

    def rounded(self, weight: Tensor) -> Tensor:
        """What a weight of the checkpoint's type, shape (N, C), is by the recipe, with the scales that are stored."""
        factors, whole = self.factors(), torch.empty(self.outputs, self.inputs)
        scale = self._scale()
        for rows in row_blocks(self.outputs, self.inputs):
            floats = weight[rows].float()
            values, steps = _rounded(floats if factors is None else floats / factors, scale, self)
            whole[rows] = values * steps if factors is None else values * steps * factors
        return whole

    def rounding(self) -> Rounding | None:
        """What the kernel does to the inputs; None where it takes them as they are."""
        if self.folder.quantization.algorithm == "NVFP4":
            second = self.beside("input_scale")
            return lambda x: _round_blocks(x, second)
        if self.has("input_scale"):
            step, factors = self.beside("input_scale"), self.factors()
            if factors is None:
                return lambda x: _to_fp8(x / step) * step
            return lambda x: _to_fp8(x * factors / step) * step / factors
        if self.folder.quantization.algorithm == "FP8_PER_CHANNEL_PER_TOKEN":
            return _round_tokens
        return None


def _to_fp8(x: Tensor) -> Tensor:
    return x.clamp(-_FP8_MAX, _FP8_MAX).to(torch.float8_e4m3fn).float()


def _to_fp4(x: Tensor) -> Tensor:
    """The nearest of float4_e2m1's values, ties to even, no larger than 6."""
    magnitude = x.abs().clamp_max(6.0)
    step = torch.where(magnitude < 2, 0.5, torch.where(magnitude < 4, 1.0, 2.0))
    return torch.copysign((magnitude / step).round() * step, x)


def _block_steps(x: Tensor, second: Tensor) -> Tensor:
    """The scale of each block of 16: its largest magnitude / 6, in float8 of the second scale; shaped like x."""
    blocks = x.reshape(*x.shape[:-1], -1, _BLOCK).abs().amax(-1)
    first = (blocks / (6.0 * second)).clamp(2.0**-9, _FP8_MAX)
    first = torch.where(blocks == 0, 1.0, first).to(torch.float8_e4m3fn).float()
    return (first * second).repeat_interleave(_BLOCK, -1)


def _round_blocks(x: Tensor, second: Tensor) -> Tensor:
    """What NVFP4 makes of inputs: elements in float4, blocks' scales in float8."""
    steps = _block_steps(x, second)
    return _to_fp4(x / steps) * steps


def _round_tokens(x: Tensor) -> Tensor:
    """A scale for each token: its largest magnitude becomes 448."""
    step = x.abs().amax(-1, keepdim=True) / _FP8_MAX
    step = torch.where(step == 0, 1.0, step)
    return _to_fp8(x / step) * step


def misfits(layer: Layer, weights: StoredWeights) -> Iterator[Problem]:
    """Tensors of a layer that are missing, or of another shape or type than the recipe's."""
    if layer.inputs % layer.group_size != 0 or layer.outputs % layer.form.outputs != 0:
        sizes = f"{layer.outputs} x {layer.inputs}, groups of {layer.group_size}"
        yield Problem(f"{layer.name}.weight", sizes, "whole groups and pairs", AGAIN)
        return
    for name, shape, dtype, optional in layer.tensors():
        if name not in weights.names():
            if not optional:
                yield Problem(name, "missing", f"{_short(dtype)} of shape {shape}", AGAIN)
            continue
        yield from misfit(name, weights.read(name), shape, dtype)


def misfit(name: str, found: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[Problem]:
    """Why a tensor is not of the shape and type it should be."""
    if tuple(found.shape) != shape or found.dtype != dtype:
        wanted = f"{_short(dtype)} of shape {shape}"
        yield Problem(name, f"{_short(found.dtype)} of shape {tuple(found.shape)}", wanted, AGAIN)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def form_of(algorithm: str) -> Form:
    """How a recipe stores linear layers.

    Raises:
        MismatchError: It is none that the PyTorch backend loads.
    """
    if algorithm not in FORMS:
        raise MismatchError("hf_quant_config.json: quant_algo", algorithm, " or ".join(FORMS), AGAIN)
    return FORMS[algorithm]


def row_blocks(outputs: int, inputs: int, unit: int = 1) -> Iterator[slice]:
    """Whole units of rows, about `_BLOCK_ELEMENTS` elements each."""
    step = max(1, _BLOCK_ELEMENTS // max(1, inputs) // unit) * unit
    for start in range(0, outputs, step):
        yield slice(start, min(start + step, outputs))


# What the model's weight should be stored as


def difference(weight: Tensor, layer: Layer, dtype: torch.dtype) -> str:
    """Why a layer is not the model's weight, rounded by its recipe; "" if it is.

    Args:
        weight: Shape (N, C), as the model has it.
        layer: What is stored; a scalar scale and the factors of inputs are taken from there and judged elsewhere.
        dtype: The checkpoint's type, to which weights are rounded first.
    """
    factors, worst, wrong = layer.factors(), 0.0, False
    for rows, values, steps in layer.blocks():
        floats = weight[rows].to(dtype).float()
        wanted, wanted_steps = _rounded(floats if factors is None else floats / factors, steps, layer)
        wrong |= not (torch.equal(values, wanted) and torch.equal(steps, wanted_steps))
        worst = max(worst, float((values * steps - wanted * wanted_steps).abs().max()))
    return f"off by up to {worst:.3g}" if wrong else ""


def _rounded(floats: Tensor, stored: Tensor, layer: Layer) -> tuple[Tensor, Tensor]:
    """Rounded elements and the scale that broadcasts to them; `stored` is the scale of a recipe that has only one."""
    algorithm = layer.folder.quantization.algorithm
    if algorithm == "FP8":
        return _to_fp8(floats / stored), stored
    if algorithm == "NVFP4":
        steps = _block_steps(floats, layer.beside("weight_scale_2"))
        return _to_fp4(floats / steps), steps
    if algorithm == "FP8_PER_CHANNEL_PER_TOKEN":
        steps = (floats.abs().amax(1, keepdim=True) / _FP8_MAX).clamp_min(_LEAST)
        return _to_fp8(floats / steps), steps
    if algorithm == "W8A16":
        steps = _above_zero(floats.abs().amax(1, keepdim=True) / 127.0)
        return (floats / steps).round().clamp_(-128, 127), steps
    groups = floats.view(len(floats), -1, layer.group_size)
    steps = _above_zero(groups.abs().amax(2) / 7.0).repeat_interleave(layer.group_size, 1)
    return (floats / steps).round().clamp_(-8, 7), steps


def _above_zero(steps: Tensor) -> Tensor:
    """One for what has nothing but zeros."""
    return torch.where(steps == 0, 1.0, steps)


def folded_difference(weight: Tensor, layer: Layer, dtype: torch.dtype, factors: Tensor, margin: float) -> str:
    """Why integers are not the model's weight divided by factors that are known to within `margin`; "" if they are.

    Args:
        weight: Shape (N, C), as the model has it.
        layer: What is stored.
        dtype: As for `difference`.
        factors: Shape (C,): about what a norm multiplies the inputs by; 0 for a channel that is always 0.
        margin: Relative.
    """
    live = factors != 0
    whole_G = live.view(-1, layer.group_size).all(1)
    for rows, values, steps in layer.blocks():
        floats = weight[rows].to(dtype).float()
        divided = torch.where(live, floats / torch.where(live, factors, 1.0), 0.0)
        largest = divided.abs().view(len(divided), -1, layer.group_size).amax(2) / 7.0
        ratio = steps[:, :: layer.group_size] / _above_zero(largest)
        if not bool(((ratio - 1).abs() <= 2 * margin)[:, whole_G].all()):
            return f"scales off by up to {float((ratio - 1).abs()[:, whole_G].max()):.2g} of themselves"
        # Beside a dead channel, whose factor nobody knows, the scale may be its: then it has the largest integer.
        most = values.abs().view(*largest.shape, -1).amax(2)
        open_scale = (ratio >= 1 - 2 * margin) & (most == 7)
        if not bool((open_scale | (most == 0) & (largest == 0))[:, ~whole_G].all()):
            return "scales that no weight of their groups decides"
        off = (values * steps - divided).abs() - divided.abs() * 2 * margin
        if not bool(((off <= steps * (0.5 + 16 * margin)) | ~live).all()):
            return f"off by up to {float((off / steps)[:, live].max()):.3g} steps, of which rounding is 0.5"
    return ""
