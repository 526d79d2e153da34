"""Checkpoints that come quantized: what their tensors are, told from the table of the float family.

GPTQ (AutoGPTQ) packs eight values along the input axis into an int32, AWQ (AutoAWQ) eight along the output axis; both
keep one scale and one zero per group of inputs and output. FP8 keeps float8_e4m3 weights, and one scale per tensor
for the weight and one for its input.

Sources: AutoGPTQ/AutoGPTQ@v0.7.1:auto_gptq/nn_modules/qlinear/qlinear_cuda_old.py,
casper-hansen/AutoAWQ@v0.2.9:awq/modules/linear/gemm.py and
vllm-project/compressed-tensors@0.9.0:src/compressed_tensors/quantization/quant_args.py.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from llmcompile.architectures.spec import Architecture, Assumed, Dims, Fact, Tensor, axis_size
from llmcompile.errors import UnsupportedError

PACKED = 8
"""Values of 4 bits in an int32."""
_QUANTIZED = re.compile(
    r"(encoder\.|decoder\.)?(attn\.[qkvo]|cross\.[qkvo]|(mlp|experts|shared)\.(up|gate|down))\.weight"
)
"""Roles of the linear layers that every quantizer converts; routers, switches, embeddings and the head stay float."""
_SUBJECT = "config.json: quantization_config"
_HINT = "start from the unquantized checkpoint"


@dataclass(frozen=True)
class Scheme:
    """How a checkpoint is quantized.

    Attributes:
        method: "gptq", "awq" or "fp8".
        group: Inputs that share a scale; 0 for fp8.
    """

    method: str
    group: int = 0


def read_scheme(quantization: object) -> Scheme:
    """The scheme of config.json's `quantization_config`.

    Raises:
        UnsupportedError: It is none of the three, or a variant whose tensors mean something else.
    """
    if not isinstance(quantization, Mapping):
        raise _refused(quantization, "")
    method = str(quantization.get("quant_method", "unnamed"))
    reader = _READERS.get(method)
    if reader is None:
        raise _refused(method, "")
    return reader(quantization)


def scheme_of(config: Mapping[str, Any], names: Collection[str]) -> Scheme | None:
    """The scheme of a checkpoint, from config.json or, where that is silent, from its tensors' names; None for floats.

    Raises:
        UnsupportedError: As for `read_scheme`, or the tensors are quantized in a way that only a config could tell.
    """
    if config.get("quantization_config") is not None:
        return read_scheme(config["quantization_config"])
    ends = {name.rpartition(".")[2] for name in names}
    if "qweight" in ends:
        raise UnsupportedError(
            "config.json: quantization_config",
            "absent, though the checkpoint holds packed integers (.qweight)",
            "how they were made",
            "add the content of quantize_config.json or quant_config.json under this key, with its quant_method",
        )
    if "input_scale" in ends and "weight_scale_2" not in ends:
        return Scheme("fp8")
    return None


def quantized(architecture: Architecture, dims: Dims, scheme: Scheme) -> Architecture:
    """The table of the quantized checkpoint of a model.

    Raises:
        UnsupportedError: The model's sizes do not divide by the scheme's.
    """
    if scheme.method == "fp8":
        return fp8(architecture)
    return {"gptq": gptq, "awq": awq}[scheme.method](architecture, dims, scheme.group)


def gptq(architecture: Architecture, dims: Dims, group: int) -> Architecture:
    """The table of AutoGPTQ's checkpoint of a model: qweight (in/8, out), qzeros (in/group, out/8), scales.

    Args:
        architecture: The float family.
        dims: The model's sizes: groups may span several heads.
        group: Inputs that share a scale.

    Raises:
        UnsupportedError: A size does not divide by 8 or by `group`.
    """

    def packed(tensor: Tensor) -> tuple[str, str]:
        return _divided(tensor, tensor.inp, PACKED, dims), tensor.out

    return _int4(architecture, dims, Scheme("gptq", group), packed)


def awq(architecture: Architecture, dims: Dims, group: int) -> Architecture:
    """The table of AutoAWQ's checkpoint of a model: qweight (in, out/8), qzeros (in/group, out/8), scales.

    Args:
        architecture: As for `gptq`, like `dims` and `group`.
        dims: As for `gptq`.
        group: As for `gptq`.

    Raises:
        UnsupportedError: As for `gptq`.
    """

    def packed(tensor: Tensor) -> tuple[str, str]:
        return tensor.inp, _divided(tensor, tensor.out, PACKED, dims)

    return _int4(architecture, dims, Scheme("awq", group), packed)


def fp8(architecture: Architecture) -> Architecture:
    """The table of a per-tensor FP8 checkpoint: e4m3 weights, a weight scale and an input scale for each.

    Raises:
        UnsupportedError: The family fuses several roles in one tensor, whose scale would be shared.
    """
    tensors: list[Tensor] = []
    for tensor in architecture.tensors:
        if not _is_quantized(tensor):
            tensors.append(tensor)
            continue
        if len(tensor.roles) > 1:
            raise UnsupportedError(
                _SUBJECT,
                f"an FP8 checkpoint of {architecture.name}, which fuses {', '.join(tensor.roles)}",
                "a family with one tensor for each",
                _HINT,
            )
        tensors.append(dataclasses.replace(tensor, kind="fp8_e4m3", legacy=()))
        tensors += [_beside(tensor, ending, out="1") for ending in ("weight_scale", "input_scale")]
    cache = "scale of an FP8 key and value cache, which is the target's to choose"
    ignored = dict.fromkeys(("*.k_scale", "*.v_scale", "*.kv_scale", "*.output_scale"), cache)
    return _changed(architecture, tuple(tensors), ignored, Scheme("fp8"))


def _int4(
    architecture: Architecture, dims: Dims, scheme: Scheme, packed: Callable[[Tensor], tuple[str, str]]
) -> Architecture:
    tensors: list[Tensor] = []
    stored = {tensor.name for tensor in architecture.tensors if tensor.exists(dims)}
    ignored = {"*.g_idx": "the group of each input, in order without desc_act"}
    order = f"input i is in group i // {scheme.group}, as without desc_act"
    assumed = [Assumed("*.g_idx", order, "quantize the model again with desc_act false", scheme.group)]
    for tensor in architecture.tensors:
        if not _is_quantized(tensor):
            tensors.append(tensor)
            continue
        if tensor.exists(dims):
            groups = _divided(tensor, tensor.inp, scheme.group, dims)
            inp, out = packed(tensor)
            zeros = _divided(tensor, tensor.out, PACKED, dims)
            tensors += [
                _beside(tensor, "qweight", out=out, inp=inp, kind="int32"),
                _beside(tensor, "qzeros", out=zeros, inp=groups, kind="int32"),
                _beside(tensor, "scales", out=tensor.out, inp=groups),
            ]
        bias = _renamed(tensor.name, "bias")
        if bias not in stored:
            pattern, added = _starred(bias), "zeros that the quantizer adds to a layer without bias"
            ignored[pattern] = added
            assumed.append(Assumed(pattern, added, "the quantizer trained a bias, which this family has no place for"))
    return _changed(architecture, tuple(tensors), ignored, scheme, tuple(assumed))


def _starred(name: str) -> str:
    """The name with a star for each number: a pattern, and what messages show."""
    return re.sub(r"\{\w+\}", "*", name)


def _is_quantized(tensor: Tensor) -> bool:
    return tensor.inp != "" and all(_QUANTIZED.fullmatch(role) is not None for role in tensor.roles)


def _beside(tensor: Tensor, ending: str, *, out: str, inp: str = "", kind: str = "") -> Tensor:
    """A tensor of the same layer, called `ending` instead of `weight`; (in, out) where it is a matrix."""
    return dataclasses.replace(
        tensor,
        roles=tuple(_renamed(role, ending) for role in tensor.roles),
        name=_renamed(tensor.name, ending),
        out=out,
        inp=inp,
        in_first=inp != "",
        kind=kind,
        legacy=(),
    )


def _renamed(name: str, ending: str) -> str:
    """`x.weight` as `x.ending`."""
    return f"{name.removesuffix('.weight')}.{ending}"


def _divided(tensor: Tensor, axes: str, divisor: int, dims: Dims) -> str:
    """`axes` with `divisor` elements made one: `heads head_dim/8`, or `heads/2` where a head is half of it.

    Raises:
        UnsupportedError: The elements do not fall on whole heads.
    """
    names, rest = axes.split(), divisor
    while rest > 1 and len(names) > 0:
        last = names.pop()
        addends = [1] if last == "part" else [axis_size(addend, dims) for addend in last.split("+")]
        if last != "part" and all(size % rest == 0 for size in addends):
            return " ".join([*names, "+".join(f"{addend}/{rest}" for addend in last.split("+"))])
        if last == "part" or len(addends) > 1 or rest % addends[0] != 0:
            break
        rest //= addends[0]
    if rest == 1 and len(names) > 0:
        return " ".join(names)
    spelt = " x ".join(f"{axis} {tensor.size(axis, dims)}" for axis in axes.split())
    raise UnsupportedError(
        f"{_starred(tensor.name)}: {spelt}",
        f"not a multiple of {divisor} that keeps heads whole",
        f"{divisor} x n",
        _HINT,
    )


def _changed(
    architecture: Architecture,
    tensors: tuple[Tensor, ...],
    ignored: Mapping[str, str],
    scheme: Scheme,
    assumed: tuple[Assumed, ...] = (),
) -> Architecture:
    facts: dict[str, Fact] = {"quantized": scheme.method, "group_size": scheme.group}

    def dims(config: Mapping[str, Any]) -> Dims:
        plain = architecture.dims(config)
        return Dims(plain.sizes, {**plain.facts, **facts})

    return dataclasses.replace(
        architecture,
        tensors=tensors,
        dims=dims,
        ignored=MappingProxyType({**architecture.ignored, **ignored}),
        assumed=(*architecture.assumed, *assumed),
    )


def _refused(method: object, why: str) -> UnsupportedError:
    return UnsupportedError(
        _SUBJECT,
        f"a checkpoint quantized with {method}{'' if why == '' else f', {why}'}",
        "float weights, GPTQ or AWQ of 4 bits, or FP8 with one scale per tensor",
        _HINT,
    )


def _demand(method: str, quantization: Mapping[str, Any], wanted: Mapping[str, tuple[object, ...]]) -> None:
    """Refuse a key whose value is not one of those named; an absent key is None."""
    for key, values in wanted.items():
        found = quantization.get(key)
        if not any(found is value or (type(found) is type(value) and found == value) for value in values):
            raise _refused(method, f"{key} {found!r}")


def _group(method: str, quantization: Mapping[str, Any]) -> int:
    group = quantization.get("group_size")
    if type(group) is not int or group < 1:
        raise _refused(method, f"group_size {group!r}")
    return group


def _read_gptq(quantization: Mapping[str, Any]) -> Scheme:
    wanted = {"bits": (4,), "desc_act": (False, None), "checkpoint_format": ("gptq", None), "lm_head": (False, None)}
    _demand("gptq", quantization, wanted)
    return Scheme("gptq", _group("gptq", quantization))


def _read_awq(quantization: Mapping[str, Any]) -> Scheme:
    wanted = {"bits": (4,), "version": ("gemm", "GEMM", None), "zero_point": (True,)}
    _demand("awq", quantization, wanted)
    return Scheme("awq", _group("awq", quantization))


def _read_fp8(quantization: Mapping[str, Any]) -> Scheme:
    _demand("fp8", quantization, {"activation_scheme": ("static",), "weight_block_size": (None,)})
    return Scheme("fp8")


def _read_modelopt(quantization: Mapping[str, Any]) -> Scheme:
    _demand("modelopt", quantization, {"quant_algo": ("FP8",)})
    return Scheme("fp8")


def _read_compressed(quantization: Mapping[str, Any]) -> Scheme:
    method = "compressed-tensors"
    groups = quantization.get("config_groups")
    if not isinstance(groups, Mapping) or len(groups) == 0:
        raise _refused(method, f"config_groups {groups!r}")
    _demand(method, quantization, {"format": ("float-quantized", "naive-quantized", None)})
    for group in groups.values():
        for side in ("weights", "input_activations"):
            settings = group.get(side) if isinstance(group, Mapping) else None
            if not isinstance(settings, Mapping):
                raise _refused(method, f"{side} {settings!r}")
            wanted = {"num_bits": (8,), "type": ("float",), "strategy": ("tensor",), "dynamic": (False, None)}
            _demand(method, settings, wanted)
    return Scheme("fp8")


_READERS: Mapping[str, Callable[[Mapping[str, Any]], Scheme]] = MappingProxyType(
    {
        "gptq": _read_gptq,
        "awq": _read_awq,
        "fp8": _read_fp8,
        "modelopt": _read_modelopt,
        "compressed-tensors": _read_compressed,
    }
)
