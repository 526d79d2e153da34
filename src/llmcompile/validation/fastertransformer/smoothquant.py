"""int8_mode=2 of ParallelGpt: GEMMs on the `*.weight.int8.*` files with static scales (SmoothQuant, OPT).

Of each projection, `scale` quantises its input (127 / input range), `scale_inter` turns its int32 accumulator into
int8 output units, and `scale_out` turns int8 output units into floats.

Source: NVIDIA/FasterTransformer@df4a753:src/fastertransformer/layers/DenseWeight.h:24-28
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

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
