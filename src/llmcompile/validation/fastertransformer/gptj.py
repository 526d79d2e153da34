"""GPT-J: section [gptj].

Source: NVIDIA/FasterTransformer@df4a753:src/fastertransformer/triton_backend/gptj/GptJTritonModel.cc (keys),
models/gptj/GptJWeight.cc and GptJDecoderLayerWeight.cc (files), GptJContextDecoder.cc and GptJ.cc (wiring).
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
    rotate_interleaved,
    split_heads,
)
from llmcompile.validation.fastertransformer.ini import Ini
from llmcompile.validation.fastertransformer.model import Inputs, Model, Outputs
from llmcompile.validation.fastertransformer.rank_files import (
    Artifact,
    Dtype,
    Row,
    Stored,
    declared_dtype,
    split_evenly,
    table,
)

_SECTION = "gptj"
_LAYER = "model.layers.{layer}."
_EPS = 1e-6
"""Hard-coded. Source: NVIDIA/FasterTransformer@df4a753:src/fastertransformer/models/gptj/GptJ.h:42"""


@dataclass(frozen=True, kw_only=True)
class Config:
    """What the runtime takes from [gptj]."""

    ranks: int
    heads: int
    head_dim: int
    inter: int
    layers: int
    vocabulary: int
    rotary: int
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
    return Model(rows=_rows(config), run=partial(_run, config))


def _read_config(ini: Ini, ranks: int) -> Config:
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
        dtype=declared_dtype(ini, _SECTION),
    )


def _rows(config: Config) -> tuple[Row, ...]:
    hidden, local, inner = config.hidden, config.hidden // config.ranks, config.inter // config.ranks
    once = (
        ("model.wte", (config.vocabulary, hidden), Stored.ONCE),
        ("model.final_layernorm.weight", (hidden,), Stored.ONCE),
        ("model.final_layernorm.bias", (hidden,), Stored.ONCE),
        ("model.lm_head.weight", (config.vocabulary, hidden), Stored.ONCE),
        ("model.lm_head.bias", (config.vocabulary,), Stored.ONCE),
    )
    layer = (
        ("input_layernorm.weight", (hidden,), Stored.ONCE),
        ("input_layernorm.bias", (hidden,), Stored.ONCE),
        ("attention.query_key_value.weight", (hidden, 3, local), Stored.PER_RANK),
        ("attention.dense.weight", (local, hidden), Stored.PER_RANK),
        ("mlp.dense_h_to_4h.weight", (hidden, inner), Stored.PER_RANK),
        ("mlp.dense_h_to_4h.bias", (inner,), Stored.PER_RANK),
        ("mlp.dense_4h_to_h.weight", (inner, hidden), Stored.PER_RANK),
        ("mlp.dense_4h_to_h.bias", (hidden,), Stored.ONCE),
    )
    return table("", config.dtype, once) + table(_LAYER, config.dtype, layer, layers=config.layers)


def _run(config: Config, artifact: Artifact, inputs: Inputs) -> Outputs:
    x = artifact.lookup("model.wte", inputs.tokens)
    for layer in range(config.layers):
        x = _layer(artifact, config, layer, x)
    x = _normalise(artifact, "model.final_layernorm", 0, x)
    bias = artifact.read("model.lm_head.bias")
    return {"logits": project_to_vocabulary(artifact, "model.lm_head.weight", x, bias_V=bias)}


def _normalise(artifact: Artifact, name: str, layer: int, x: Tensor) -> Tensor:
    gamma, beta = (artifact.read(f"{name}.{kind}", layer=layer) for kind in ("weight", "bias"))
    return layer_norm(x, gamma, beta, _EPS)


def _layer(artifact: Artifact, config: Config, layer: int, x: Tensor) -> Tensor:
    """Attention and inner layer side by side, both from one norm, each all-reduced; the bias once after.

    Source: NVIDIA/FasterTransformer@df4a753:src/fastertransformer/models/gptj/GptJContextDecoder.cc:398-419
    """
    normed = _normalise(artifact, f"{_LAYER}input_layernorm", layer, x)
    attention = all_reduce(_attention(artifact, config, layer, rank, normed) for rank in range(config.ranks))
    inner = all_reduce(_ffn(artifact, layer, rank, normed) for rank in range(config.ranks))
    return inner + attention + artifact.read(f"{_LAYER}mlp.dense_4h_to_h.bias", layer=layer) + x


def _attention(artifact: Artifact, config: Config, layer: int, rank: int, x: Tensor) -> Tensor:
    weight = artifact.read(f"{_LAYER}attention.query_key_value.weight", layer=layer, rank=rank)
    q, k, v = (split_heads(part, config.heads // config.ranks) for part in project_fused(x, weight).unbind(2))
    q, k = rotate_interleaved(q, config.rotary), rotate_interleaved(k, config.rotary)
    context = attend(q, k, v, scale=config.head_dim**-0.5, causal=True)
    return torch.matmul(context, artifact.read(f"{_LAYER}attention.dense.weight", layer=layer, rank=rank))


def _ffn(artifact: Artifact, layer: int, rank: int, x: Tensor) -> Tensor:
    weight, bias = (
        artifact.read(f"{_LAYER}mlp.dense_h_to_4h.{kind}", layer=layer, rank=rank) for kind in ("weight", "bias")
    )
    inner = gelu_tanh(torch.matmul(x, weight) + bias)
    return torch.matmul(inner, artifact.read(f"{_LAYER}mlp.dense_4h_to_h.weight", layer=layer, rank=rank))
