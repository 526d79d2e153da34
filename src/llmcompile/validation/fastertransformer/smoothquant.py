"""int8_mode=2 of ParallelGpt: GEMMs on the `*.weight.int8.*` files with static scales (SmoothQuant, OPT).

Of each projection, `scale` quantises its input (127 / input range), `scale_inter` turns its int32 accumulator into
int8 output units, and `scale_out` turns int8 output units into floats.

Source: NVIDIA/FasterTransformer@df4a753:src/fastertransformer/layers/DenseWeight.h:24-28
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from llmcompile.errors import Problem
from llmcompile.validation.fastertransformer.gpt import (
    LAYER,
    SECTION,
    Config,
    Partials,
    attend_fused,
    layer_entries,
    outer_rows,
    read_config,
    run,
)
from llmcompile.validation.fastertransformer.ini import Ini
from llmcompile.validation.fastertransformer.model import Model
from llmcompile.validation.fastertransformer.rank_files import FP32, INT8, Artifact, Entry, Row, Stored, table

_FUSED = "attention.query_key_value"
_PROJECTIONS = (_FUSED, "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
_WEIGHTS = frozenset(f"{name}.weight" for name in _PROJECTIONS)


def resolve(ini: Ini, ranks: int, folder: Path) -> Model:
    """The runtime in int8_mode=2: the float files but the four GEMM weights, which are int8, and their scales.

    Raises:
        MismatchError: As for the float runtime, or `int8` is not true (no such files), or the model is post-norm:
            there the runtime quantises no GEMM input, and would read floats as int8.
    """
    config = read_config(ini, ranks)
    if not ini.boolean_or(SECTION, "int8", False):
        raise ini.error(SECTION, "int8", ini.text_or(SECTION, "int8", "absent"), "True, with *.weight.int8.* files")
    if config.post_norm:
        raise ini.error(SECTION, "layernorm_type", "post_layernorm with int8", "pre_layernorm for int8_mode=2")
    rows = outer_rows(config, folder) + _float_rows(config) + _int8_rows(config)
    return Model(rows=rows, run=partial(run, config, INT8_PARTIALS))


def _float_rows(config: Config) -> tuple[Row, ...]:
    kept = [entry for entry in layer_entries(config) if entry[0] not in _WEIGHTS]
    return table(LAYER, config.dtype, kept, layers=config.layers)


def _int8_rows(config: Config) -> tuple[Row, ...]:
    """The int8 weights, shaped as the float ones, and the scales, float32 whatever `weight_data_type` says.

    Source: NVIDIA/FasterTransformer@df4a753:src/fastertransformer/models/multi_gpu_gpt/
    ParallelGptDecoderLayerWeight.cc:430-462
    """
    shapes = {name: shape for name, shape, _ in layer_entries(config)}
    weights = [(f"{name}.weight.int8", shapes[f"{name}.weight"], Stored.PER_RANK) for name in _PROJECTIONS]
    scales = [entry for name in _PROJECTIONS for entry in _scale_entries(config, name)]
    return table(LAYER, INT8, weights, layers=config.layers) + table(LAYER, FP32, scales, layers=config.layers)


def _scale_entries(config: Config, projection: str) -> tuple[Entry, ...]:
    """query_key_value has one scale each for q, k and v; its `scale_inter` repeats them over one rank's columns."""
    single: tuple[int, ...] = (3,) if projection == _FUSED else (1,)
    inter = (3, config.hidden // config.ranks) if projection == _FUSED else (1,)
    return (
        (f"{projection}.scale", single, Stored.ONCE),
        (f"{projection}.scale_inter", inter, Stored.ONCE),
        (f"{projection}.scale_out", single, Stored.ONCE),
    )


def disagreements(ini: Ini, ranks: int, folder: Path) -> Iterator[Problem]:
    """Where the int8 files are not the float files quantised per tensor, or the scales contradict each other.

    An int8 run is too noisy to show one wrong file among hundreds. But each int8 weight must lie within half a step of
    the float weight beside it, a step being max|W| / 127 of its tensor (of q, k and v apart), and of the three scales
    two give the third: scale_inter = 1 / (scale_out * scale * 127 / max|W|).

    Args:
        ini: The artifact's config.ini, with `int8` true.
        ranks: Tensor-parallel ranks.
        folder: The `<ranks>-gpu` folder, its files known to have the right sizes.

    Source: NVIDIA/FasterTransformer@df4a753:examples/pytorch/gpt/utils/huggingface_opt_convert.py (quantize)
    """
    config = read_config(ini, ranks)
    rows = (*_int8_rows(config), *table(LAYER, config.dtype, layer_entries(config), layers=config.layers))
    artifact = Artifact(folder, ranks, {row.name: row for row in rows})
    for layer in range(config.layers):
        for projection in _PROJECTIONS:
            yield from _disagreements(artifact, projection, layer)


def _disagreements(artifact: Artifact, projection: str, layer: int) -> Iterator[Problem]:
    name = f"{LAYER}{projection}"
    weights = [artifact.read(f"{name}.weight", layer=layer, rank=rank) for rank in range(artifact.ranks)]
    apart = (0, 2) if projection == _FUSED else (0, 1)
    largest = torch.stack([weight.abs().amax(apart, keepdim=True) for weight in weights]).amax(0).clamp_min(1e-8)
    step = largest / 127
    for rank, weight in enumerate(weights):
        row = artifact.rows[f"{name}.weight.int8"]
        error = ((artifact.read(row.name, layer=layer, rank=rank) * step - weight).abs() / step).max().item()
        if not error <= _HALF_STEP:
            file = str(artifact.folder / row.file(layer, rank))
            yield Problem(file, f"up to {error:.3g} steps from the float weight", "at most half a step", _REQUANTISE)
    scale, inter, out = (artifact.read(f"{name}.{kind}", layer=layer) for kind in ("scale", "scale_inter", "scale_out"))
    implied = step.flatten() / (scale * out)
    if inter.ndim == 2:
        implied = implied[:, None].expand_as(inter)
    if not torch.allclose(inter, implied, rtol=_SCALE_RTOL, atol=0.0):
        file = str(artifact.folder / artifact.rows[f"{name}.scale_inter"].file(layer, 0))
        found, expected = inter.flatten()[0].item(), implied.flatten()[0].item()
        yield Problem(file, f"{found:.6g}", f"{expected:.6g}, from scale, scale_out and the weights", _REQUANTISE)


_HALF_STEP = 0.5 + 0.08
"""Half a step, and what the converter's arithmetic in fp16 adds: 127 x 2^-11 of a step."""
_SCALE_RTOL = 2e-3
_REQUANTISE = "partition the model again with the same --act-scales"


def _quantise(x: Tensor, scale: Tensor) -> Tensor:
    """round_half_even(x * scale), saturated to -128..127, int8.

    Source: NVIDIA/FasterTransformer@df4a753:src/fastertransformer/utils/cuda_type_utils.cuh:258-262
    """
    return torch.round(x * scale).clamp_(-128, 127).to(torch.int8)


def _accumulate(x: Tensor, weight: Tensor) -> Tensor:
    """The int32 accumulator of an int8 GEMM, as float32; float64 holds every partial sum exactly."""
    return torch.matmul(x.double(), weight.double()).float()


def _attention(artifact: Artifact, config: Config, layer: int, rank: int, x: Tensor) -> Tensor:
    """The query_key_value GEMM gives int8 (one scale per column); q, k, v are floats from there to the context.

    The loader reads only the first of the three query_key_value `scale` values.

    Source: NVIDIA/FasterTransformer@df4a753:src/fastertransformer/layers/attention_layers/GptContextAttentionLayer.cc
    :116-128,367-380; kernels/unfused_attention_kernels.cu:1247-1302; utils/cublasMMWrapper.cc:970-1087
    """
    name = f"{LAYER}attention.query_key_value"
    scale, inter, out = (artifact.read(f"{name}.{kind}", layer=layer) for kind in ("scale", "scale_inter", "scale_out"))
    weight = artifact.read(f"{name}.weight.int8", layer=layer, rank=rank)
    accumulated = _accumulate(_quantise(x, scale[0]), weight.flatten(1)).view(*x.shape[:2], *inter.shape)
    bias = artifact.read(f"{name}.bias", layer=layer, rank=rank)
    qkv = _quantise(accumulated, inter).float() * out[:, None] + bias
    return _project(artifact, "attention.dense", layer, rank, attend_fused(config, rank, qkv))


def _ffn(artifact: Artifact, config: Config, layer: int, rank: int, x: Tensor) -> Tensor:
    """The first GEMM gives int8; bias and activation are float; the second GEMM gives floats.

    Source: NVIDIA/FasterTransformer@df4a753:src/fastertransformer/layers/FfnLayer.cc:251-263,293-310,345-357;
    kernels/activation_kernels.cu:168-235
    """
    name = f"{LAYER}mlp.dense_h_to_4h"
    scale, inter, out = (artifact.read(f"{name}.{kind}", layer=layer) for kind in ("scale", "scale_inter", "scale_out"))
    weight = artifact.read(f"{name}.weight.int8", layer=layer, rank=rank)
    integers = _quantise(_accumulate(_quantise(x, scale), weight), inter)
    bias = artifact.read(f"{name}.bias", layer=layer, rank=rank)
    activated = config.activation.apply(integers.float() * out + bias)
    return _project(artifact, "mlp.dense_4h_to_h", layer, rank, activated)


def _project(artifact: Artifact, projection: str, layer: int, rank: int, x: Tensor) -> Tensor:
    """An output projection: int8 in, accumulator times (scale_inter * scale_out) out, no int8 in between.

    Source: NVIDIA/FasterTransformer@df4a753:src/fastertransformer/cutlass_extensions/include/cutlass_extensions/
    epilogue/threadblock/epilogue_per_row_per_col_scale.h:283-286,373-385
    """
    name = f"{LAYER}{projection}"
    scale, inter, out = (artifact.read(f"{name}.{kind}", layer=layer) for kind in ("scale", "scale_inter", "scale_out"))
    weight = artifact.read(f"{name}.weight.int8", layer=layer, rank=rank)
    return _accumulate(_quantise(x, scale), weight) * (inter * out)


INT8_PARTIALS = Partials(_attention, _ffn)
