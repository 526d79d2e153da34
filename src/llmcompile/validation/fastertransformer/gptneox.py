"""GPT-NeoX: section [gptneox].

Source: NVIDIA/FasterTransformer@df4a753:src/fastertransformer/triton_backend/gptneox/GptNeoXTritonModel.cc (keys),
models/gptneox/GptNeoXWeight.cc and GptNeoXDecoderLayerWeight.cc (files), GptNeoXContextDecoder.cc (wiring).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from llmcompile.validation.fastertransformer.blocks import (
    all_reduce,
    attend,
    gelu_tanh,
    layer_norm,
    project_fused,
    project_to_vocabulary,
    rotate_halves,
    split_heads,
)
from llmcompile.validation.fastertransformer.ini import Ini
from llmcompile.validation.fastertransformer.model import Inputs, Model, Outputs
from llmcompile.validation.fastertransformer.rank_files import (
    Artifact,
    Dtype,
    Entry,
    Row,
    Stored,
    declared_dtype,
    split_evenly,
    table,
)

_SECTION = "gptneox"
_LAYER = "model.layers.{layer}."
_EPS = 1e-5
"""Hard-coded. Source: NVIDIA/FasterTransformer@df4a753:src/fastertransformer/models/gptneox/GptNeoX.h:43"""


@dataclass(frozen=True, kw_only=True)
class Config:
    """What the runtime takes from [gptneox]; no epsilon and no activation are among it."""

    ranks: int
    heads: int
    head_dim: int
    inter: int
    layers: int
    vocabulary: int
    rotary: int
    parallel: bool
    dtype: Dtype

    @property
    def hidden(self) -> int:
        """Width of the residual stream."""
        return self.heads * self.head_dim


def resolve(ini: Ini, ranks: int, folder: Path) -> Model:
    """The runtime for this config.ini.

    Raises:
        MismatchError: A required key is absent or unusable, or heads or inner size do not divide by `ranks`.
    """
    config = _read_config(ini, ranks)
    return Model(rows=_rows(config), dead=_dead_rows(config), run=partial(_run, config))


def _read_config(ini: Ini, ranks: int) -> Config:
    """`use_gptj_residual` is an integer with default 1: the words "True" and "False" both leave it at 1."""
    heads, inter = ini.size(_SECTION, "head_num"), ini.size(_SECTION, "inter_size")
    split_evenly(ini, _SECTION, "head_num", heads, ranks)
    split_evenly(ini, _SECTION, "inter_size", inter, ranks)
    for key in ("start_id", "end_id"):
        ini.integer(_SECTION, key)
    ini.text(_SECTION, "model_name")
    return Config(
        ranks=ranks,
        heads=heads,
        head_dim=ini.size(_SECTION, "size_per_head"),
        inter=inter,
        layers=ini.size(_SECTION, "num_layer"),
        vocabulary=ini.size(_SECTION, "vocab_size"),
        rotary=ini.rotary(_SECTION),
        parallel=ini.integer_or(_SECTION, "use_gptj_residual", 1) != 0,
        dtype=declared_dtype(ini, _SECTION),
    )


def _rows(config: Config) -> tuple[Row, ...]:
    hidden, local, inner = config.hidden, config.hidden // config.ranks, config.inter // config.ranks
    once: list[Entry] = [
        ("model.wte", (config.vocabulary, hidden), Stored.ONCE),
        *_norm("model.final_layernorm", hidden),
        ("model.lm_head.weight", (config.vocabulary, hidden), Stored.ONCE),
    ]
    summed: list[Entry] = [("mlp.attention.bias.sum", (hidden,), Stored.ONCE)]
    layer: list[Entry] = [
        *_norm("input_layernorm", hidden),
        *_norm("post_attention_layernorm", hidden),
        ("attention.query_key_value.weight", (hidden, 3, local), Stored.PER_RANK),
        ("attention.query_key_value.bias", (3, local), Stored.PER_RANK),
        ("attention.dense.weight", (local, hidden), Stored.PER_RANK),
        ("mlp.dense_h_to_4h.weight", (hidden, inner), Stored.PER_RANK),
        ("mlp.dense_h_to_4h.bias", (inner,), Stored.PER_RANK),
        ("mlp.dense_4h_to_h.weight", (inner, hidden), Stored.PER_RANK),
        *(summed if config.parallel else _output_biases(hidden)),
    ]
    return table("", config.dtype, once) + table(_LAYER, config.dtype, layer, layers=config.layers)


def _norm(name: str, hidden: int) -> list[Entry]:
    return [(f"{name}.weight", (hidden,), Stored.ONCE), (f"{name}.bias", (hidden,), Stored.ONCE)]


def _output_biases(hidden: int) -> list[Entry]:
    return [(f"{name}.bias", (hidden,), Stored.ONCE) for name in ("attention.dense", "mlp.dense_4h_to_h")]


def _dead_rows(config: Config) -> tuple[Row, ...]:
    """The parallel layer reads the sum of the two output biases, and not the biases.

    Source: NVIDIA/FasterTransformer@df4a753:src/fastertransformer/models/gptneox/GptNeoXDecoderLayerWeight.cc:146-170
    """
    unread = _output_biases(config.hidden) if config.parallel else []
    return table(_LAYER, config.dtype, unread, layers=config.layers)


def _run(config: Config, artifact: Artifact, inputs: Inputs) -> Outputs:
    x = artifact.lookup("model.wte", inputs.tokens)
    for layer in range(config.layers):
        x = (_parallel_layer if config.parallel else _sequential_layer)(artifact, config, layer, x)
    x = _normalise(artifact, "model.final_layernorm", 0, x)
    return {"logits": project_to_vocabulary(artifact, "model.lm_head.weight", x)}


def _normalise(artifact: Artifact, name: str, layer: int, x: Tensor) -> Tensor:
    gamma, beta = (artifact.read(f"{name}.{kind}", layer=layer) for kind in ("weight", "bias"))
    return layer_norm(x, gamma, beta, _EPS)


def _parallel_layer(artifact: Artifact, config: Config, layer: int, x: Tensor) -> Tensor:
    """One all-reduce over attention, inner layer, the summed bias and the residual / ranks.

    Every rank adds the bias file before the reduce, so the file must hold the bias divided by the number of ranks.

    Source: NVIDIA/FasterTransformer@df4a753:src/fastertransformer/models/gptneox/GptNeoXContextDecoder.cc:399-463
    """
    first = _normalise(artifact, f"{_LAYER}input_layernorm", layer, x)
    second = _normalise(artifact, f"{_LAYER}post_attention_layernorm", layer, x)
    bias = artifact.read(f"{_LAYER}mlp.attention.bias.sum", layer=layer)
    return all_reduce(
        _ffn(artifact, layer, rank, second) + _attention(artifact, config, layer, rank, first) + bias + x / config.ranks
        for rank in range(config.ranks)
    )


def _sequential_layer(artifact: Artifact, config: Config, layer: int, x: Tensor) -> Tensor:
    """Two all-reduces; each whole bias is added once after its reduce.

    Source: NVIDIA/FasterTransformer@df4a753:src/fastertransformer/models/gptneox/GptNeoXContextDecoder.cc:411-471
    """
    normed = _normalise(artifact, f"{_LAYER}input_layernorm", layer, x)
    attention = all_reduce(_attention(artifact, config, layer, rank, normed) for rank in range(config.ranks))
    x = x + attention + artifact.read(f"{_LAYER}attention.dense.bias", layer=layer)
    normed = _normalise(artifact, f"{_LAYER}post_attention_layernorm", layer, x)
    inner = all_reduce(_ffn(artifact, layer, rank, normed) for rank in range(config.ranks))
    return x + inner + artifact.read(f"{_LAYER}mlp.dense_4h_to_h.bias", layer=layer)


def _attention(artifact: Artifact, config: Config, layer: int, rank: int, x: Tensor) -> Tensor:
    weight, bias = (
        artifact.read(f"{_LAYER}attention.query_key_value.{kind}", layer=layer, rank=rank)
        for kind in ("weight", "bias")
    )
    qkv = project_fused(x, weight) + bias
    q, k, v = (split_heads(part, config.heads // config.ranks) for part in qkv.unbind(2))
    q, k = rotate_halves(q, config.rotary), rotate_halves(k, config.rotary)
    context = attend(q, k, v, scale=config.head_dim**-0.5, causal=True)
    return torch.matmul(context, artifact.read(f"{_LAYER}attention.dense.weight", layer=layer, rank=rank))


def _ffn(artifact: Artifact, layer: int, rank: int, x: Tensor) -> Tensor:
    weight, bias = (
        artifact.read(f"{_LAYER}mlp.dense_h_to_4h.{kind}", layer=layer, rank=rank) for kind in ("weight", "bias")
    )
    inner = gelu_tanh(torch.matmul(x, weight) + bias)
    return torch.matmul(inner, artifact.read(f"{_LAYER}mlp.dense_4h_to_h.weight", layer=layer, rank=rank))
