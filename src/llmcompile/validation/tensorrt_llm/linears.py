"""Linear layers of a TensorRT-LLM checkpoint: which tensors each recipe stores, and the float32 matrix they stand for.

Shape suffixes: E experts, N output rows of one rank, K input columns of one rank, G groups of input columns.

The table of one linear; square brackets for a third axis of experts:

    recipe                      weight                          beside it
    none                        dtype [E] N K
    W8A16, W4A16 deferred       dtype [E] N K                   (the builder quantizes)
    W8A16, W4A16 written        int8 [E] K N*bits/8             per_channel_scale dtype [E] N
    W4A16_GPTQ                  dtype K N/4                     weights_scaling_factor G N, zero dtype G N
    W4A16_AWQ                   int8 [E] N/2 K                  weights_scaling_factor [E] N G,
                                                                prequant_scaling_factor [E] K, the same for all E
    W4A8_AWQ                    as W4A16_AWQ                    and activation_scaling_factor, weights_scaling_factor_2
    FP8                         fp8 [E] N K                     weights_scaling_factor 1 or E 1,
                                                                activation_scaling_factor 1
    FP8_PER_CHANNEL_PER_TOKEN   fp8 N K                         per_channel_scale float32 N
    W8A8_SQ_PER_CHANNEL         int8 N K                        weights_scaling_factor N, activation_scaling_factor,
                                                                prequant_scaling_factor K
    NVFP4                       uint8 [E] N K/2                 weights_scaling_factor fp8 [E] N K/16,
                                                                weights_scaling_factor_2 1 or E,
                                                                activation_scaling_factor 1

Source: NVIDIA/TensorRT-LLM@v0.13.0:tensorrt_llm/quantization/layers.py, layers/moe.py (parameters of each class);
NVIDIA/TensorRT-LLM@01ea6d79d454:tensorrt_llm/models/modeling_utils.py (preprocess_weights)
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor

from llmcompile.errors import MismatchError, UnsupportedError

Shape = tuple[int, ...]
Rounding = Callable[[Tensor], Tensor]
_Accepted = tuple[tuple[torch.dtype, ...], Shape]
"""Element types the loader takes, the usual one first, and the shape."""

FP8 = torch.float8_e4m3fn
_FP8_MAX = 448.0
_MIN_ROWWISE_SCALE = 1.0 / (_FP8_MAX * 512.0)
"""Lower bound of a row's or token's scale.

Source: NVIDIA/TensorRT-LLM@v0.13.0:cpp/tensorrt_llm/common/quantTypeUtils.cuh (QuantTypeStaticVals)
"""
_ROWWISE_CLAMP = (-1200.0, 1200.0)
"""Source: NVIDIA/TensorRT-LLM@v0.13.0:examples/llama/convert_checkpoint.py (clamp_val)."""

_FP4_MAX, _FP4_BLOCK = 6.0, 16
_FP4_VALUES = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
"""By the three low bits of e2m1; the fourth is the sign."""
_FP4_ALIGNMENT = 32
"""What CUTLASS's FP4 kernels need on both axes. Releases before 1.1 need more, which is for the converter to refuse."""

_BLOCK_ELEMENTS = 1 << 18
"""Elements rounded at a time: 1 MiB in float32, which stays in cache (five times faster than 64 MiB)."""

WEIGHT_ONLY_BITS: Mapping[str, int] = MappingProxyType({"W8A16": 8, "W4A16": 4})
_AWQ = ("W4A16_AWQ", "W4A8_AWQ")
_ROWWISE = "FP8_PER_CHANNEL_PER_TOKEN"
_EXECUTED = (*WEIGHT_ONLY_BITS, "W4A16_GPTQ", *_AWQ, "FP8", _ROWWISE, "W8A8_SQ_PER_CHANNEL", "NVFP4")
_WITH_EXPERTS = (*WEIGHT_ONLY_BITS, "FP8", "W4A16_AWQ", "NVFP4")
_NOT_EXECUTED = (
    "W8A16_GPTQ",
    "W8A8_SQ_PER_TENSOR_PLUGIN",
    "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN",
    "W8A8_SQ_PER_CHANNEL_PER_TENSOR_PLUGIN",
    "W8A8_SQ_PER_TENSOR_PER_TOKEN_PLUGIN",
    "W4A8_QSERVE_PER_GROUP",
    "W4A8_QSERVE_PER_CHANNEL",
    "FP8_BLOCK_SCALES",
    "INT8",
    "W4A8_NVFP4_FP8",
    "W4A8_MXFP4_FP8",
    "W4A8_MXFP4_MXFP8",
    "W4A16_MXFP4",
    "MIXED_PRECISION",
    "NO_QUANT",
)
"""Values of QuantAlgo that upstream knows and this executor does not.

Source: NVIDIA/TensorRT-LLM@v1.0.0:tensorrt_llm/quantization/mode.py (QuantAlgo)
"""

_KEYS: Mapping[str, Any] = MappingProxyType(
    {
        "quant_algo": None,
        "kv_cache_quant_algo": None,
        "group_size": 128,
        "smoothquant_val": 0.5,
        "clamp_val": None,
        "use_meta_recipe": None,
        "has_zero_point": False,
        "pre_quant_scale": False,
        "exclude_modules": None,
        "mamba_ssm_cache_dtype": None,
    }
)
"""Keys of the quantization block and their defaults.

Source: NVIDIA/TensorRT-LLM@01ea6d79d454:tensorrt_llm/models/modeling_utils.py (QuantConfig); later also
mamba_ssm_cache_dtype
"""

_EXCLUDED_MODULES = (
    "*lm_head",
    "*router",
    "*vocab_embedding",
    "*position_embedding",
    "*block_embedding",
    "*shared_expert_gate",
)
"""Modules that stay in floats where `exclude_modules` is null or empty.

Source: NVIDIA/TensorRT-LLM@06148676829d:tensorrt_llm/quantization/quantize.py (quantize_layers)
"""
_EXCLUDED_WEIGHTS = ("*shared_expert_gate.weight",)
_QUANTIZED_WEIGHTS = ("qkv.weight", "dense.weight", "fc.weight", "proj.weight", "gate.weight")
"""What the builder quantizes of a deferred checkpoint, by name.

Source: NVIDIA/TensorRT-LLM@03961722f652:tensorrt_llm/models/convert_utils.py (weight_only_quantize_dict)
"""


class TensorFile(Protocol):
    """One rank file, as the loaders here read it."""

    @property
    def path(self) -> Path:
        """Where it is."""

    def has(self, name: str) -> bool:
        """Whether a tensor of that name is stored."""

    def read(self, name: str) -> Tensor:
        """The tensor, as stored."""

    def info(self, name: str) -> tuple[torch.dtype, Shape]:
        """Element type and shape, from the header."""


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """The quantization block of config.json.

    Args:
        algo: Recipe of the linears; None for floats.
        kv_cache_algo: Recipe of the KV cache.
        group_size: Input columns that share a scale (GPTQ, AWQ).
        has_zero_point: Whether the linears have `zero` (GPTQ).
        pre_quant_scale: Whether the linears have `prequant_scaling_factor` (AWQ).
        exclude_modules: fnmatch patterns of module names that stay in floats; None for upstream's own list.
        clamp_val: Bounds of an activation before it becomes fp8 (FP8_PER_CHANNEL_PER_TOKEN).
        use_meta_recipe: Whether FP8_PER_CHANNEL_PER_TOKEN leaves attention, first and last layer in floats. None where
            the key is absent: versions 0.12 to 0.14 have no such key and always do.
    """

    algo: str | None = None
    kv_cache_algo: str | None = None
    group_size: int = 128
    has_zero_point: bool = False
    pre_quant_scale: bool = False
    exclude_modules: tuple[str, ...] | None = None
    clamp_val: tuple[float, float] | None = None
    use_meta_recipe: bool | None = None


def read_quantization(config: Mapping[str, Any]) -> Quantization:
    """The quantization block of a whole config.json; an absent or null block means no quantization.

    Raises:
        MismatchError: A key or a recipe no version of TensorRT-LLM knows (a TypeError there), a value of the wrong
            type, or flags the recipe contradicts.
        UnsupportedError: A recipe TensorRT-LLM knows and this executor does not.
    """
    block = config.get("quantization")
    if block is None:
        return Quantization()
    if not isinstance(block, Mapping):
        raise MismatchError("config.json: quantization", repr(block), "an object or null")
    unknown = sorted(block.keys() - _KEYS.keys())
    if unknown != []:
        raise MismatchError(
            f"config.json: quantization.{unknown[0]}",
            "a key that TensorRT-LLM refuses",
            f"some of {', '.join(_KEYS)}",
            "remove it; keys of our own belong outside the quantization block",
        )
    values = {**_KEYS, **block}
    quantization = Quantization(
        algo=_optional(values, "quant_algo", str),
        kv_cache_algo=_optional(values, "kv_cache_quant_algo", str),
        group_size=_typed(values, "group_size", int),
        has_zero_point=_typed(values, "has_zero_point", bool),
        pre_quant_scale=_typed(values, "pre_quant_scale", bool),
        exclude_modules=_patterns(values),
        clamp_val=_bounds(values),
        use_meta_recipe=_optional(values, "use_meta_recipe", bool),
    )
    _check_recipe(quantization)
    return quantization


def _optional(values: Mapping[str, Any], key: str, kind: type) -> Any:
    return None if values[key] is None else _typed(values, key, kind)


def _typed(values: Mapping[str, Any], key: str, kind: type) -> Any:
    value = values[key]
    if not isinstance(value, kind) or (kind is int and (value is True or int(values[key]) < 1)):
        raise MismatchError(f"config.json: quantization.{key}", repr(value), _KINDS[kind])
    return value


_KINDS: Mapping[type, str] = MappingProxyType({str: "a string or null", int: "a whole number >= 1", bool: "a boolean"})


def _patterns(values: Mapping[str, Any]) -> tuple[str, ...] | None:
    found = values["exclude_modules"]
    if found is None:
        return None
    if not isinstance(found, list) or not all(isinstance(pattern, str) for pattern in found):
        raise MismatchError("config.json: quantization.exclude_modules", repr(found), "a list of patterns or null")
    return tuple(found)


def _bounds(values: Mapping[str, Any]) -> tuple[float, float] | None:
    found = values["clamp_val"]
    if found is None or found == []:
        return None
    numbers = isinstance(found, list) and all(isinstance(value, int | float) for value in found)
    if not numbers or len(found) != 2:
        raise MismatchError("config.json: quantization.clamp_val", repr(found), "two numbers or null")
    return float(found[0]), float(found[1])


def _check_recipe(quantization: Quantization) -> None:
    algo, subject = quantization.algo, "config.json: quantization"
    if algo is None:
        return
    if algo in _NOT_EXECUTED:
        raise UnsupportedError(f"{subject}.quant_algo", algo, f"one of {', '.join(_EXECUTED)}: others are not executed")
    if algo not in _EXECUTED:
        raise MismatchError(f"{subject}.quant_algo", repr(algo), f"one of {', '.join(_EXECUTED)}")
    if algo == "W4A8_AWQ" and not quantization.pre_quant_scale:
        raise MismatchError(f"{subject}.pre_quant_scale", "false with W4A8_AWQ", "true: the loader divides that scale")
    if algo in _AWQ and quantization.has_zero_point:
        raise UnsupportedError(
            f"{subject}.has_zero_point", f"true with {algo}", "false: AutoAWQ's form is not executed"
        )
    if algo == "W4A16_GPTQ" and quantization.pre_quant_scale:
        raise UnsupportedError(f"{subject}.pre_quant_scale", f"true with {algo}", "false")


@dataclass(frozen=True, kw_only=True, eq=False)
class Linear:
    """A linear as the runtime computes it.

    Args:
        weight: Shape (out, in), float32: what the stored bytes stand for, AWQ's and SmoothQuant's scaling of the input
            columns folded in.
        bias: Shape (out,), float32. Not added by a call: in a row-parallel linear it follows the all-reduce.
        round_input: What the runtime's quantization of the activations leaves of them; None for nothing.
    """

    weight: Tensor
    bias: Tensor | None = None
    round_input: Rounding | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Project `x` of shape (..., in), float32, to shape (..., out), without the bias."""
        rounded = x if self.round_input is None else self.round_input(x)
        return torch.matmul(rounded, self.weight.T)


def is_quantized(name: str, quantization: Quantization, *, experts: bool = False, edge_layer: bool = False) -> bool:
    """Whether the runtime builds a quantized module for the linear `name`.

    Args:
        name: Module name, such as "transformer.layers.0.mlp.fc".
        quantization: The recipe.
        experts: Whether it is one of the two 3-D linears of a MoE, which is excluded by the MoE module's name.
        edge_layer: Whether it lies in the first layer of the first pipeline rank or in the last of the last.

    Source: NVIDIA/TensorRT-LLM@06148676829d:tensorrt_llm/quantization/quantize.py
    """
    if quantization.algo is None:
        return False
    if quantization.algo == _ROWWISE:
        return _is_rowwise(name, quantization, edge_layer)
    patterns = quantization.exclude_modules
    if patterns is None or patterns == ():
        patterns = _EXCLUDED_MODULES
    module = _parent(name) if experts else name
    return not _matches(module, patterns)


def _is_rowwise(name: str, quantization: Quantization, edge_layer: bool) -> bool:
    """Whole MLPs, and by versions from 0.15 on without Meta's recipe whole attentions too."""
    patterns = quantization.exclude_modules
    if patterns is not None and _matches(_parent(name), patterns):
        return False
    if _parent(name).endswith("mlp"):
        return quantization.use_meta_recipe is False or not edge_layer
    return quantization.use_meta_recipe is False and _parent(name).endswith("attention")


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def linear_tensors(
    name: str,
    *,
    out: int,
    inp: int,
    dtype: torch.dtype,
    quantization: Quantization,
    bias: bool,
    experts: int | None = None,
    edge_layer: bool = False,
    file: TensorFile | None = None,
) -> dict[str, tuple[torch.dtype, Shape]]:
    """Every tensor the loader requires for one linear: full name -> element type and shape.

    Args:
        name: Module name, such as "transformer.layers.0.attention.qkv".
        out: Output rows of one rank.
        inp: Input columns of one rank.
        dtype: The `dtype` of config.json.
        quantization: The recipe.
        bias: Whether the linear has one.
        experts: Experts of one rank for a MoE's 3-D linear; None for an ordinary one.
        edge_layer: As in `is_quantized`.
        file: Where the choice is the checkpoint's (W8A16 and W4A16 deferred or written, fp8 as int8 bytes), the file
            that decides it by the element types stored; without one, deferred and fp8.

    Raises:
        UnsupportedError: The recipe is not executed for experts.
    """
    lead: Shape = () if experts is None else (experts,)
    accepted: dict[str, _Accepted] = {"weight": ((dtype,), (*lead, out, inp))}
    if is_quantized(name, quantization, experts=experts is not None, edge_layer=edge_layer):
        accepted = _accepted(name, out, inp, dtype, quantization, lead, file)
    if bias:
        accepted["bias"] = ((dtype,), (*lead, out))
    return {f"{name}.{part}": (_chosen(f"{name}.{part}", types, file), s) for part, (types, s) in accepted.items()}


def _chosen(name: str, types: tuple[torch.dtype, ...], file: TensorFile | None) -> torch.dtype:
    stored = _stored_dtype(name, file)
    return stored if stored in types else types[0]


def _stored_dtype(name: str, file: TensorFile | None) -> torch.dtype | None:
    return file.info(name)[0] if file is not None and file.has(name) else None


def _accepted(
    name: str,
    out: int,
    inp: int,
    dtype: torch.dtype,
    quantization: Quantization,
    lead: Shape,
    file: TensorFile | None,
) -> dict[str, _Accepted]:
    """What a quantized module's parameters are filled from, before the loader's own transformations."""
    algo, groups = quantization.algo, inp // quantization.group_size
    single: _Accepted = ((torch.float32,), (1,))
    columns: _Accepted = ((dtype,), (inp,))
    if lead != () and algo not in _WITH_EXPERTS:
        raise UnsupportedError(name, f"{algo} with experts", f"one of {', '.join(_WITH_EXPERTS)} for a MoE")
    if algo is not None and algo in WEIGHT_ONLY_BITS:
        if _stored_dtype(f"{name}.weight", file) != torch.int8:
            return {"weight": ((dtype,), (*lead, out, inp))}
        return {
            "weight": ((torch.int8,), (*lead, inp, out * WEIGHT_ONLY_BITS[algo] // 8)),
            "per_channel_scale": ((dtype,), (*lead, out)),
        }
    if algo == "W4A16_GPTQ":
        zero: dict[str, _Accepted] = {"zero": ((dtype,), (groups, out))} if quantization.has_zero_point else {}
        scale: _Accepted = ((dtype, torch.float16), (groups, out))
        return {"weight": ((dtype,), (inp, out // 4)), "weights_scaling_factor": scale, **zero}
    if algo in _AWQ:
        awq: dict[str, _Accepted] = {
            "weight": ((torch.int8,), (*lead, out // 2, inp)),
            "weights_scaling_factor": ((torch.float32, dtype), (*lead, out, groups)),
        }
        if quantization.pre_quant_scale:
            awq["prequant_scaling_factor"] = ((dtype,), (*lead, inp))
        if algo == "W4A8_AWQ":
            awq |= {"activation_scaling_factor": single, "weights_scaling_factor_2": single}
        return awq
    if algo == "FP8":
        per_expert: _Accepted = ((torch.float32,), (*lead, 1))
        weight: _Accepted = ((FP8, torch.int8), (*lead, out, inp))
        return {"weight": weight, "weights_scaling_factor": per_expert, "activation_scaling_factor": single}
    if algo == _ROWWISE:
        return {"weight": ((FP8, torch.int8), (out, inp)), "per_channel_scale": ((torch.float32,), (out,))}
    if algo == "NVFP4":
        return {
            "weight": ((torch.uint8, torch.int8), (*lead, out, inp // 2)),
            "weights_scaling_factor": ((FP8,), (*lead, out, inp // _FP4_BLOCK)),
            "weights_scaling_factor_2": single if lead == () else ((torch.float32,), lead),
            "activation_scaling_factor": single,
        }
    return {
        "weight": ((torch.int8,), (out, inp)),
        "weights_scaling_factor": ((torch.float32,), (out,)),
        "activation_scaling_factor": single,
        "prequant_scaling_factor": columns,
    }


def load_linear(
    file: TensorFile,
    name: str,
    *,
    out: int,
    inp: int,
    dtype: torch.dtype,
    quantization: Quantization,
    bias: bool,
    activations: bool,
    quantize: bool,
    edge_layer: bool = False,
) -> Linear:
    """Load one linear of one rank.

    Args:
        file: The rank file.
        name: Module name, such as "transformer.layers.0.attention.qkv".
        out: Output rows of this rank.
        inp: Input columns of this rank.
        dtype: The `dtype` of config.json.
        quantization: The recipe.
        bias: Whether the linear has one.
        activations: Whether a call quantizes its input as the runtime does (FP8, W4A8, W8A8, NVFP4).
        quantize: Whether deferred W8A16 and W4A16 weights are quantized, as the builder will; else used as stored.
        edge_layer: As in `is_quantized`.

    Raises:
        MismatchError: A tensor is missing, of another shape or element type, of a size the builder cannot lay out, or
            excluded on one side of the loader only.
        UnsupportedError: The recipe is not executed here.
    """
    table = linear_tensors(
        name, out=out, inp=inp, dtype=dtype, quantization=quantization, bias=bias, edge_layer=edge_layer, file=file
    )
    tensors = {full.removeprefix(f"{name}."): _read(file, full, *expected) for full, expected in table.items()}
    offset = tensors["bias"].float() if bias else None
    quantized = is_quantized(name, quantization, edge_layer=edge_layer)
    if quantization.algo in WEIGHT_ONLY_BITS:
        _check_exclusions(name, quantization, quantized)
    if not quantized:
        return Linear(weight=tensors["weight"].float(), bias=offset)
    _check_size(name, out, inp, quantization, tensors)
    weight = _dequantized(tensors, out, inp, dtype, quantization, quantize)
    columns = _columns(file, name, tensors)
    if columns is not None:
        weight = weight.mul_(columns)
    rounding = _rounding(tensors, columns, quantization) if activations else None
    return Linear(weight=weight, bias=offset, round_input=rounding)


def _columns(file: TensorFile, name: str, tensors: Mapping[str, Tensor]) -> Tensor | None:
    """What the runtime multiplies each input by, shape (in,), float32; of experts it reads the first's alone.

    Source: NVIDIA/TensorRT-LLM@v1.0.0:tensorrt_llm/models/modeling_utils.py (preprocess_perlayer_weights)
    """
    if "prequant_scaling_factor" not in tensors:
        return None
    columns = tensors["prequant_scaling_factor"].float()
    subject = f"{file.path}: {name}.prequant_scaling_factor"
    if not bool((columns > 0).all()):
        raise MismatchError(subject, "a value <= 0", "positive values")
    if columns.dim() == 2 and not bool((columns == columns[0]).all()):
        raise MismatchError(subject, "experts with other factors than the first", "one row for all experts")
    return columns[0] if columns.dim() == 2 else columns


def load_experts(
    file: TensorFile,
    name: str,
    *,
    experts: int,
    out: int,
    inp: int,
    dtype: torch.dtype,
    quantization: Quantization,
    activations: bool,
    quantize: bool,
) -> tuple[Linear, ...]:
    """Load one of the two 3-D linears of a MoE, one `Linear` per expert of this rank, in their order.

    Args:
        file: The rank file.
        name: Module name, such as "transformer.layers.0.mlp.fc".
        experts: Experts of this rank.
        out: Output rows of one expert on this rank.
        inp: Input columns of one expert on this rank.
        dtype: The `dtype` of config.json.
        quantization: The recipe.
        activations: As in `load_linear`.
        quantize: As in `load_linear`.

    Raises:
        MismatchError: As in `load_linear`.
        UnsupportedError: The recipe is not executed for experts.
    """
    table = linear_tensors(
        name, out=out, inp=inp, dtype=dtype, quantization=quantization, bias=False, experts=experts, file=file
    )
    tensors = {full.removeprefix(f"{name}."): _read(file, full, *expected) for full, expected in table.items()}
    quantized = is_quantized(name, quantization, experts=True)
    if quantization.algo in WEIGHT_ONLY_BITS:
        _check_exclusions(name, quantization, quantized)
    if not quantized:
        return tuple(Linear(weight=weight.float()) for weight in tensors["weight"])
    _check_size(name, out, inp, quantization, tensors)
    shared = ("activation_scaling_factor",)
    columns = _columns(file, name, tensors)
    loaded = []
    for expert in range(experts):
        own = {part: tensor if part in shared else tensor[expert] for part, tensor in tensors.items()}
        weight = _dequantized(own, out, inp, dtype, quantization, quantize)
        weight = weight if columns is None else weight.mul_(columns)
        rounding = _rounding(own, None, quantization) if activations else None
        loaded.append(Linear(weight=weight, round_input=rounding))
    return tuple(loaded)


def _read(file: TensorFile, name: str, dtype: torch.dtype, shape: Shape) -> Tensor:
    expected = f"{_short(dtype)} {list(shape)}"
    if not file.has(name):
        raise MismatchError(f"{file.path}: {name}", "missing", expected, "TensorRT-LLM would not load this checkpoint")
    found_dtype, found_shape = file.info(name)
    if (found_dtype, tuple(found_shape)) != (dtype, shape):
        found = f"{_short(found_dtype)} {list(found_shape)}"
        raise MismatchError(f"{file.path}: {name}", found, expected, "check mapping, dtype and quantization")
    return file.read(name)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check_exclusions(name: str, quantization: Quantization, quantized: bool) -> None:
    """Refuse a linear that the builder quantizes and the runtime wants in floats, or the reverse.

    `exclude_modules` is matched against module names by one and against tensor names by the other, and the builder
    quantizes by a list of its own (no lm_head).
    """
    skipped = _EXCLUDED_WEIGHTS if quantization.exclude_modules is None else quantization.exclude_modules
    weight = f"{name}.weight"
    by_builder = any(part in weight for part in _QUANTIZED_WEIGHTS) and not _matches(weight, skipped)
    if by_builder != quantized:
        raise MismatchError(
            f"config.json: quantization.exclude_modules {list(quantization.exclude_modules or ())}",
            f"{name} {'is' if by_builder else 'is not'} quantized by the builder, and its module "
            f"{'is' if quantized else 'is not'}",
            "both or neither",
            "write null, or patterns that end in * and include *lm_head, *router, *vocab_embedding",
        )


def _check_size(name: str, out: int, inp: int, quantization: Quantization, tensors: Mapping[str, Tensor]) -> None:
    """Sizes the CUTLASS layout needs, per rank: K a multiple of 64, 32 bytes of packed outputs, whole groups; or NVFP4.

    Weights that are left to the builder have no layout yet; whether it will take them is not for their numbers to say.

    Source: NVIDIA/TensorRT-LLM@v0.13.0:cpp/tensorrt_llm/kernels/cutlass_kernels/cutlass_preprocessors.cpp
    """
    algo = quantization.algo
    if algo is not None and algo in WEIGHT_ONLY_BITS:
        if tensors["weight"].is_floating_point():
            return
        outputs, inputs = 256 // WEIGHT_ONLY_BITS[algo], 64
    elif algo == "W4A16_GPTQ" or algo in _AWQ:
        outputs, inputs = 64, max(64, quantization.group_size)
    elif algo == "NVFP4":
        outputs = inputs = _FP4_ALIGNMENT
    else:
        return
    if out % outputs != 0 or inp % inputs != 0:
        found = f"{out} outputs and {inp} inputs on one rank"
        expected = f"multiples of {outputs} and {inputs} for {algo}"
        raise MismatchError(name, found, expected, "use fewer tensor-parallel ranks or another recipe")


def _dequantized(
    tensors: Mapping[str, Tensor], out: int, inp: int, dtype: torch.dtype, quantization: Quantization, quantize: bool
) -> Tensor:
    """The matrix that one linear's tensors stand for, before `prequant_scaling_factor`; shape (out, in), float32."""
    algo, weight = quantization.algo, tensors["weight"]
    if algo is not None and algo in WEIGHT_ONLY_BITS:
        bits = WEIGHT_ONLY_BITS[algo]
        if weight.dtype == torch.int8:
            return _unpacked(weight, out, inp, bits).float().mul_(tensors["per_channel_scale"].float()[:, None])
        return _by_rows(lambda rows: _round_rows(rows, bits), weight) if quantize else weight.float()
    if algo == "W4A16_GPTQ":
        integers = _unpacked(weight.contiguous().view(torch.int8), out, inp, 4)
        return _grouped(integers, tensors["weights_scaling_factor"].T, _zeros(tensors))
    if algo in _AWQ:
        return _grouped(_nibbles(weight), _awq_scales(tensors, dtype), None)
    if algo == "W8A8_SQ_PER_CHANNEL":
        return weight.float().mul_(tensors["weights_scaling_factor"][:, None])
    if algo == "NVFP4":
        scales = tensors["weights_scaling_factor"].float() * tensors["weights_scaling_factor_2"]
        return _fp4_matrix(weight.view(torch.uint8), scales)
    floats = weight.view(FP8).float()
    return floats.mul_(tensors["per_channel_scale"][:, None] if algo == _ROWWISE else tensors["weights_scaling_factor"])


def _zeros(tensors: Mapping[str, Tensor]) -> Tensor | None:
    return tensors["zero"].T.float() if "zero" in tensors else None


def _awq_scales(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    """Scales of shape (out, groups), rounded as the loader does; for W4A8 through the second scale, and back.

    Source: NVIDIA/TensorRT-LLM@01ea6d79d454:tensorrt_llm/models/modeling_utils.py (preprocess_perlayer_weights)
    """
    scales = tensors["weights_scaling_factor"].to(dtype)
    if "weights_scaling_factor_2" not in tensors:
        return scales.float()
    second = tensors["weights_scaling_factor_2"]
    return (scales.float() / second).to(dtype).to(torch.float16).float() * second


def _grouped(integers: Tensor, scales_NG: Tensor, zeros_NG: Tensor | None) -> Tensor:
    """Multiply by the scale, and add the zero, of each row and group of columns."""
    out, inp = integers.shape
    groups = integers.float().view(out, scales_NG.shape[1], -1)
    groups.mul_(scales_NG.float()[:, :, None])
    if zeros_NG is not None:
        groups.add_(zeros_NG[:, :, None])
    return groups.view(out, inp)


def _unpacked(packed: Tensor, out: int, inp: int, bits: int) -> Tensor:
    """Undo the layout CUTLASS wants on SM 75 to 89 for fp16 and bf16 activations.

    Outermost first, the bytes are: groups of 16 / bits output columns; tiles of 64 inputs; the columns of the group;
    blocks of 128 / bits inputs; the four 32-bit words a of a block; the values of a word. Input 8c + 2a + r of a block
    is in word a, where c counts to 2 for int8 and to 4 for int4 and r to 2: an int8 word's four bytes go by (r, c), an
    int4 word's eight nibbles, low nibble first, too. Values are offset by 2 ** (bits - 1).

    Args:
        packed: int8, `out * inp * bits / 8` bytes in any shape.
        out: Columns of the layout, a multiple of 16 / bits.
        inp: Rows of the layout, a multiple of 64.
        bits: 8 or 4.

    Returns:
        Shape (out, inp), int8.

    Source: NVIDIA/TensorRT-LLM@v0.13.0:cpp/tensorrt_llm/kernels/cutlass_kernels/cutlass_preprocessors.cpp
    """
    columns, tiles = 16 // bits, inp // 64
    stored = packed.contiguous().view(torch.uint8)
    if bits == 8:
        words = stored.view(out // columns, tiles, columns, 4, 4, 2, 2)
        ordered = words.permute(0, 2, 1, 3, 6, 4, 5).reshape(out, inp)
        return ordered.bitwise_xor_(0x80).view(torch.int8)
    pairs = stored.view(out // columns, tiles, columns, 2, 4, 2, 2).permute(0, 2, 1, 3, 6, 4, 5)
    ordered = torch.empty(out // columns, columns, tiles, 2, 2, 2, 4, 2, dtype=torch.int8)
    torch.sub(pairs.bitwise_and(0xF).view(torch.int8), 8, out=ordered[:, :, :, :, :, 0])
    torch.sub(pairs.bitwise_right_shift(4).view(torch.int8), 8, out=ordered[:, :, :, :, :, 1])
    return ordered.view(out, inp)


def _nibbles(packed: Tensor) -> Tensor:
    """Shape (out / 2, in) -> (out, in): row 2j in the low nibble of row j, row 2j + 1 in the high, two's complement.

    Source: NVIDIA/TensorRT-Model-Optimizer@0.17.0:modelopt/torch/export/quant_utils.py (pack_int4_in_uint8)
    """
    low = packed.bitwise_left_shift(4).bitwise_right_shift_(4)
    return torch.stack((low, packed.bitwise_right_shift(4)), 1).flatten(0, 1)


def _rounding(tensors: Mapping[str, Tensor], columns: Tensor | None, quantization: Quantization) -> Rounding | None:
    """What quantizing the activations does to them; seen before `columns`, which is folded into the weight."""
    if quantization.algo == _ROWWISE:
        bounds = quantization.clamp_val
        return lambda x: _round_tokens(x, bounds)
    if "activation_scaling_factor" not in tensors:
        return None
    scale = tensors["activation_scaling_factor"].float()
    if quantization.algo == "NVFP4":
        return lambda x: _round_fp4_blocks(x, scale)
    rounded = _to_int8 if quantization.algo == "W8A8_SQ_PER_CHANNEL" else _to_fp8
    if columns is None:
        return lambda x: rounded(x / scale) * scale
    return lambda x: rounded(x * columns / scale) * scale / columns


def _round_tokens(x: Tensor, bounds: tuple[float, float] | None) -> Tensor:
    """A scale for each token, from its largest element.

    Source: NVIDIA/TensorRT-LLM@0193dbd41892:cpp/tensorrt_llm/kernels/quantization.cuh (perTokenQuantization)
    """
    clamped = x if bounds is None else x.clamp(*bounds)
    return _round_rowwise(clamped)


def _round_rowwise(x: Tensor) -> Tensor:
    scale = (x.abs().amax(-1, keepdim=True) / _FP8_MAX).clamp_min(_MIN_ROWWISE_SCALE)
    return _to_fp8(x / scale) * scale


def _to_fp8(x: Tensor) -> Tensor:
    """Round to e4m3 and saturate, as float32."""
    return x.clamp(-_FP8_MAX, _FP8_MAX).to(FP8).float()


def _to_fp4(x: Tensor) -> Tensor:
    """Round to e2m1, halves to even, and saturate, as float32: steps of 1/2 below 2, of 1 below 4, of 2 above.

    Source: PTX ISA, cvt.rn.satfinite.e2m1x2.f32
    """
    magnitude = x.abs()
    step = torch.where(magnitude < 2, 0.5, torch.where(magnitude < 4, 1.0, 2.0))
    return (x / step).round().mul_(step).clamp_(-_FP4_MAX, _FP4_MAX)


def _fp4_matrix(packed: Tensor, scales_NG: Tensor) -> Tensor:
    """Values of e2m1, two in each byte, the first in the low nibble, times their blocks' scales: (N, K), float32."""
    out, half = packed.shape
    result = torch.empty(out, 2 * half)
    step = max(1, _BLOCK_ELEMENTS // max(1, half))
    for start in range(0, out, step):
        rows = packed[start : start + step]
        nibbles = torch.stack((rows & 0xF, rows >> 4), -1).view(len(rows), -1, _FP4_BLOCK)
        values = _FP4_VALUES[(nibbles & 7).long()] * scales_NG[start : start + step, :, None]
        result[start : start + step] = torch.where(nibbles > 7, -values, values).flatten(1)
    return result


def _round_fp4_blocks(x: Tensor, scale: Tensor) -> Tensor:
    """Activations in blocks of 16, each with a scale in e4m3 that is a multiple of the stored one.

    A block's scale is max / 6 in units of `scale`, rounded and saturated; a block for which that is 0 becomes zeros.

    Source: NVIDIA/TensorRT-LLM@2a0ce833a998:cpp/tensorrt_llm/kernels/quantization.cuh (cvt_warp_fp16_to_fp4),
    whose reciprocals are approximate
    """
    blocks = x.reshape(*x.shape[:-1], -1, _FP4_BLOCK)
    steps = _to_fp8(blocks.abs().amax(-1, keepdim=True) / _FP4_MAX / scale) * scale
    rounded = _to_fp4(blocks / torch.where(steps == 0, 1.0, steps)) * steps
    return rounded.flatten(-2)


def _to_int8(x: Tensor) -> Tensor:
    """Round half to even and saturate, as float32."""
    return x.round().clamp_(-128, 127)


def fake_quantized(
    weight: Tensor,
    quantization_algo: str,
    *,
    group_size: int,
    column_parts: int,
    columns: Tensor | None = None,
    largest: float | None = None,
) -> Tensor:
    """What a weight becomes by one of the recipes, computed without any packing.

    Args:
        weight: Shape (out, in), of the checkpoint's `dtype`, to which W8A16, W4A16 and AWQ scales are rounded.
        quantization_algo: "W8A16", "W4A16", "W4A16_AWQ", "FP8_PER_CHANNEL_PER_TOKEN", or with data "FP8", "W4A8_AWQ",
            "W8A8_SQ_PER_CHANNEL" and "NVFP4".
        group_size: Input columns that share a scale; for AWQ.
        column_parts: Tensor-parallel ranks a row-parallel linear is split over before it is quantized; 1 for others.
        columns: Shape (in,), float32: what the runtime multiplies each input by, and the weight is divided by; None for
            ones.
        largest: Largest magnitude of all weights that share the second or only scale, after `columns`; for FP8,
            W4A8_AWQ and NVFP4.

    Returns:
        Shape (out, in), float32, what stands for the weight in a product with inputs as they are.

    Raises:
        ValueError: The recipe is not one of these or lacks what it needs, or `in` does not divide by parts and groups.
    """
    if weight.shape[1] % column_parts != 0:
        raise ValueError(f"weight must have in divisible by {column_parts} parts, got in={weight.shape[1]}")
    factors = torch.ones(weight.shape[1]) if columns is None else columns
    quantized = []
    for part, factor in zip(weight.chunk(column_parts, 1), factors.chunk(column_parts), strict=True):
        rounding = _rounding_of_weights(quantization_algo, group_size, factor, largest, scaled=columns is not None)
        quantized.append(_by_rows(rounding, part))
    return torch.cat(quantized, 1) if column_parts > 1 else quantized[0]


def _rounding_of_weights(
    algo: str, group_size: int, columns: Tensor, largest: float | None, *, scaled: bool
) -> Rounding:
    if algo in WEIGHT_ONLY_BITS:
        bits = WEIGHT_ONLY_BITS[algo]
        return lambda rows: _round_rows(rows, bits)
    if algo == "W4A16_AWQ" and not scaled:
        return lambda rows: _round_groups(rows, group_size)
    if algo == "W4A16_AWQ":
        return lambda rows: _round_scaled_groups(rows, group_size, columns, None)
    if algo == _ROWWISE:
        return lambda rows: _round_rowwise(rows.float().clamp(*_ROWWISE_CLAMP))
    if algo == "W8A8_SQ_PER_CHANNEL":
        return lambda rows: _round_int8(rows, columns)
    if largest is None or algo not in ("FP8", "W4A8_AWQ", "NVFP4"):
        raise ValueError(f"quantization_algo must be known, with what it needs, got {algo!r}")
    if algo == "NVFP4":
        second = torch.tensor(largest) / (_FP4_MAX * _FP8_MAX) if largest > 0 else torch.tensor(1.0)
        return lambda rows: _round_fp4_weights(rows, second)
    scale = torch.tensor(largest) / _FP8_MAX if largest > 0 else torch.tensor(1.0)
    if algo == "FP8":
        return lambda rows: _to_fp8(rows.float() / scale) * scale
    return lambda rows: _round_scaled_groups(rows, group_size, columns, scale)


def _round_fp4_weights(rows: Tensor, second: Tensor) -> Tensor:
    """Weights in blocks of 16; a block's scale is no less than e4m3's smallest, and 1 where all are zero.

    Source: NVIDIA/TensorRT-Model-Optimizer@0.47.0:modelopt/torch/quantization/qtensor/nvfp4_tensor.py
    """
    blocks = rows.float().reshape(len(rows), -1, _FP4_BLOCK)
    scale = blocks.abs().amax(-1, keepdim=True) / (_FP4_MAX * second)
    steps = _to_fp8(torch.where(scale == 0, 1.0, scale).clamp_min(2.0**-9)) * second
    return (_to_fp4(blocks / steps) * steps).flatten(-2)


def _round_int8(rows: Tensor, columns: Tensor) -> Tensor:
    """A scale max / 127 for each row of the divided matrix; 1 for a row of zeros.

    Source: NVIDIA/TensorRT-LLM@v0.13.0:tensorrt_llm/quantization/layers.py (Int8SmoothQuantLinear)
    """
    divided = rows.float() / columns
    scale = divided.abs().amax(1, keepdim=True) / 127.0
    scale = torch.where(scale == 0, 1.0, scale)
    return _to_int8(divided / scale) * scale * columns


def _round_scaled_groups(rows: Tensor, group_size: int, columns: Tensor, second: Tensor | None) -> Tensor:
    """As `_round_groups`, of the divided matrix; with a second scale, group scales pass through float16 divided by it.

    Source: NVIDIA/TensorRT-LLM@01ea6d79d454:tensorrt_llm/models/modeling_utils.py (preprocess_perlayer_weights)
    """
    groups = (rows.float() / columns).view(len(rows), -1, group_size)
    scale = groups.abs().amax(2, keepdim=True) / 7.0
    scale = torch.where(scale == 0, 1.0, scale)
    kept = scale.to(rows.dtype).float()
    if second is not None:
        kept = (kept / second).to(rows.dtype).to(torch.float16).float() * second
    return ((groups / scale).round().clamp_(-8, 7) * kept).view(rows.shape) * columns


def _by_rows(function: Rounding, weight: Tensor) -> Tensor:
    """`function` of blocks of rows, so that its temporaries stay small."""
    out, inp = weight.shape
    result = torch.empty(out, inp)
    step = max(1, _BLOCK_ELEMENTS // max(1, inp))
    for start in range(0, out, step):
        result[start : start + step] = function(weight[start : start + step])
    return result


def _round_rows(rows: Tensor, bits: int) -> Tensor:
    """Symmetric rounding with a scale for each row.

    The integers come from the float32 scale, halves away from zero; the scale is stored in the weight's type.

    Source: NVIDIA/TensorRT-LLM@v0.13.0:cpp/tensorrt_llm/kernels/cutlass_kernels/cutlass_preprocessors.cpp
    (symmetric_quantize)
    """
    bound = 2.0 ** (bits - 1)
    floats = rows.float()
    scale = floats.abs().amax(1, keepdim=True) / bound
    steps = floats / torch.where(scale == 0, 1.0, scale)
    whole = steps.trunc()
    whole += torch.where((steps - whole).abs() >= 0.5, steps.sign(), 0.0)
    return whole.clamp_(-bound, bound - 1) * scale.to(rows.dtype).float()


def _round_groups(rows: Tensor, group_size: int) -> Tensor:
    """Symmetric 4-bit rounding with a scale max / 7 for each row and group; 1 where all are zero.

    Source: NVIDIA/TensorRT-Model-Optimizer@0.17.0:modelopt/torch/export/quant_utils.py
    (get_scaling_factor_from_weight, pack_int4_in_uint8)
    """
    out, inp = rows.shape
    if inp % group_size != 0:
        raise ValueError(f"weight must have in divisible by groups of {group_size}, got in={inp} in one part")
    floats = rows.float().view(out, -1, group_size)
    scale = floats.abs().amax(2, keepdim=True) / 7.0
    scale = torch.where(scale == 0, 1.0, scale)
    return ((floats / scale).round().clamp_(-8, 7) * scale.to(rows.dtype).float()).view(out, inp)
