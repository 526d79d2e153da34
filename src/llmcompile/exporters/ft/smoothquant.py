"""SmoothQuant's int8 set for OPT: quantized weights and scales beside the float files (int8_mode 2).

Source: NVIDIA/FasterTransformer@df4a753:examples/pytorch/gpt/utils/huggingface_opt_convert.py (quantize, save_val).
One deviation: the scale files are always float32, because the loader reads them as float32 whatever the weights are
(src/fastertransformer/models/multi_gpu_gpt/ParallelGptDecoderLayerWeight.cc); the converter writes the weights' type.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmcompile.dtypes import FP16, FP32, INT8, DType
from llmcompile.errors import CheckpointError
from llmcompile.plan import Compute, Row
from llmcompile.transforms import Array

_GROUPS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...], str, str]] = {
    "attention.query_key_value": (
        ("attn.q.weight", "attn.k.weight", "attn.v.weight"),
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "hidden 3 heads head_dim",
        "out",
    ),
    "attention.dense": (("attn.o.weight",), ("self_attn.out_proj",), "heads head_dim hidden", "in"),
    "mlp.dense_h_to_4h": (("mlp.up.weight",), ("fc1",), "hidden ffn", "out"),
    "mlp.dense_4h_to_h": (("mlp.down.weight",), ("fc2",), "ffn hidden", "in"),
}
"""File group -> its roles, the names of their modules under a layer, its elements, the axes divided among ranks."""


@dataclass(frozen=True)
class ActivationRange:
    """Largest absolute activation seen at a module's input and output."""

    input: float
    output: float


def read_scales(path: Path, layers: int) -> Mapping[str, ActivationRange]:
    """Read {module name: {"input": float, "output": float}} from a .json or .pt file.

    Returns:
        "<layer>.<module>", such as "0.self_attn.q_proj" -> its range, for every module the int8 set needs.

    Raises:
        CheckpointError: The file cannot be read, or lacks a module, or a range is not a positive number.
    """
    raw = _load(path)
    found: dict[str, ActivationRange] = {}
    for layer in range(layers):
        for _, modules, _, _ in _GROUPS.values():
            for module in modules:
                found[f"{layer}.{module}"] = _range(raw, f"layers.{layer}.{module}", path)
    return found


def _load(path: Path) -> Mapping[str, Any]:
    try:
        if path.suffix == ".json":
            value: Any = json.loads(path.read_bytes())
        else:
            import torch

            value = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch.load fails in a dozen ways on a damaged file; each means the same to whoever passed it.
        why = next(iter(str(error).splitlines()), type(error).__name__)[:160]
        raise CheckpointError(str(path), why, "module name -> input and output", "check --act-scales") from error
    if not isinstance(value, dict):
        raise CheckpointError(str(path), f"a {type(value).__name__}", "a dict", "check --act-scales")
    return value


def _range(raw: Mapping[str, Any], module: str, path: Path) -> ActivationRange:
    for prefix in ("model.decoder.", "decoder.", ""):
        entry = raw.get(prefix + module)
        if isinstance(entry, Mapping):
            values = [entry.get(side) for side in ("input", "output")]
            numbers = [float(value) for value in values if isinstance(value, int | float)]
            if len(numbers) == 2 and all(0 < number < float("inf") for number in numbers):
                return ActivationRange(*numbers)
            raise CheckpointError(
                f"model.decoder.{module} in {path}", repr(entry)[:80], "positive input and output", "calibrate again"
            )
    raise CheckpointError(
        f"model.decoder.{module} in {path}", "absent", "its input and output range", "calibrate again for this model"
    )


def rows(scales: Mapping[str, ActivationRange], layers: int) -> tuple[Row, ...]:
    """The rows of the int8 set, which FasterTransformer reads with int8_mode 2."""
    return tuple(row for layer in range(layers) for group in _GROUPS for row in _group_rows(group, layer, scales))


def _group_rows(group: str, layer: int, scales: Mapping[str, ActivationRange]) -> tuple[Row, ...]:
    roles, modules, elements, split = _GROUPS[group]
    ranges = [scales[f"{layer}.{module}"] for module in modules]
    inputs, outputs = tuple(r.input for r in ranges), tuple(r.output for r in ranges)
    fused = len(roles) > 1
    name = f"model.layers.{layer}.{group}"
    count = str(len(roles))

    def scale(kind: str, function: Any, size: str, divided: str = "") -> Row:
        compute = Compute(function, size, constants=(*inputs, *outputs))
        return Row(f"{name}.{kind}.bin", roles, compute=compute, dtype=FP32, layer=layer, split=divided)

    return (
        Row(
            f"{name}.weight.int8.{{rank}}.bin",
            roles,
            compute=Compute(_int8_columns if split == "out" else _int8_rows, elements),
            dtype=INT8,
            layer=layer,
            split=split,
        ),
        scale("scale", _scale_in, count),
        scale("scale_out", _scale_out, count),
        scale("scale_inter", _scale_inter, "3 heads head_dim" if fused else count, "out" if fused else ""),
    )


def _weight_scale(weight: Array) -> Any:
    """127 / max |W| in the weight's own type; NumPy 2 keeps the scalar there."""
    return weight.dtype.type(127.0) / np.abs(weight).clip(1e-8, None).max()


def _quantized(weight: Array) -> Array:
    return np.asarray((weight * _weight_scale(weight)).round().astype(np.int8))


def _int8_columns(inputs: Sequence[Array], dtype: DType, ranks: int, constants: tuple[float, ...]) -> list[Array]:
    """Weights (out, in) quantized each on its own, to (in, parts, out / ranks) per rank."""
    parts = np.stack([_quantized(weight.reshape(-1, weight.shape[-1]).T) for weight in _plain(inputs, dtype)], axis=1)
    return list(np.split(parts, ranks, axis=-1))


def _int8_rows(inputs: Sequence[Array], dtype: DType, ranks: int, constants: tuple[float, ...]) -> list[Array]:
    """A weight (out, in) quantized, to (in / ranks, out) per rank."""
    (weight,) = _plain(inputs, dtype)
    return list(np.split(_quantized(weight.reshape(weight.shape[0], -1).T), ranks, axis=0))


def _plain(inputs: Sequence[Array], dtype: DType) -> list[Array]:
    """The weights as NumPy floats; bf16, which has none, is not offered with int8."""
    if dtype not in (FP32, FP16):
        raise AssertionError(f"int8 needs fp32 or fp16 weights, not {dtype.name}")
    return list(inputs)


def _ranges(constants: tuple[float, ...]) -> tuple[Array, Array]:
    """127 / input range and 127 / output range; the three of a fused group pass through float32 in the converter."""
    half = len(constants) // 2
    kind = np.float32 if half > 1 else np.float64
    values = np.array(constants, dtype=kind)
    return 127.0 / values[:half], 127.0 / values[half:]


def _scale_in(inputs: Sequence[Array], dtype: DType, ranks: int, constants: tuple[float, ...]) -> list[Array]:
    return [_ranges(constants)[0].astype(np.float32)]


def _scale_out(inputs: Sequence[Array], dtype: DType, ranks: int, constants: tuple[float, ...]) -> list[Array]:
    return [(1.0 / _ranges(constants)[1]).astype(np.float32)]


def _scale_inter(inputs: Sequence[Array], dtype: DType, ranks: int, constants: tuple[float, ...]) -> list[Array]:
    scale_in, scale_post = _ranges(constants)
    weight_scales = np.array([_weight_scale(weight) for weight in _plain(inputs, dtype)])
    if len(inputs) == 1:
        return [(scale_post / (scale_in * weight_scales.astype(np.float64))).astype(np.float32)]
    columns = inputs[0].shape[0] * inputs[0].shape[1] // ranks
    spread = weight_scales[:, None] * np.ones((len(inputs), columns))
    return [(scale_post[:, None] / (scale_in[:, None] * spread)).astype(np.float32)]
