"""BERT encoder layers, from hidden states to hidden states: section [bert].

Source: NVIDIA/FasterTransformer@df4a753:src/fastertransformer/triton_backend/bert/BertTritonModel.cc (keys),
models/bert/BertLayerWeight.cc (files), Bert.cc (wiring).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from llmcompile.validation.fastertransformer.blocks import (
    ACTIVATIONS,
    Activation,
    all_reduce,
    attend,
    layer_norm,
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

_SECTION = "bert"
_LAYER = "model.encoder.layer.{layer}."
_EPS = 1e-6
"""Hard-coded; `layer_norm_eps` is not read.

Source: NVIDIA/FasterTransformer@df4a753:src/fastertransformer/models/bert/Bert.h:42
"""


@dataclass(frozen=True, kw_only=True)
class Config:
    """What the runtime takes from [bert]; `position_embedding_type` and `layer_norm_eps` it does not read."""

    ranks: int
    heads: int
    head_dim: int
    inter: int
    layers: int
    activation: Activation
    q_scaling: float
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
    ini.text(_SECTION, "model_name")
    activation = ini.text_or(_SECTION, "activation_type", "Gelu")
    if activation not in ("Gelu", "gelu", "Relu", "relu"):
        raise ini.error(_SECTION, "activation_type", activation, "gelu or relu: the runtime has no other inner layer")
    return Config(
        ranks=ranks,
        heads=heads,
        head_dim=ini.size(_SECTION, "size_per_head"),
        inter=inter,
        layers=ini.size(_SECTION, "num_layer"),
        activation=ACTIVATIONS[activation],
        q_scaling=ini.real_or(_SECTION, "q_scaling", 1.0),
        dtype=declared_dtype(ini, _SECTION),
    )


def _rows(config: Config) -> tuple[Row, ...]:
    hidden, local, inner = config.hidden, config.hidden // config.ranks, config.inter // config.ranks
    layer = (
        *((f"attention.self.{part}.weight", (hidden, local), Stored.PER_RANK) for part in ("query", "key", "value")),
        *((f"attention.self.{part}.bias", (local,), Stored.PER_RANK) for part in ("query", "key", "value")),
        ("attention.output.dense.weight", (local, hidden), Stored.PER_RANK),
        ("attention.output.dense.bias", (hidden,), Stored.ONCE),
        ("attention.output.LayerNorm.weight", (hidden,), Stored.ONCE),
        ("attention.output.LayerNorm.bias", (hidden,), Stored.ONCE),
        ("intermediate.dense.weight", (hidden, inner), Stored.PER_RANK),
        ("intermediate.dense.bias", (inner,), Stored.PER_RANK),
        ("output.dense.weight", (inner, hidden), Stored.PER_RANK),
        ("output.dense.bias", (hidden,), Stored.ONCE),
        ("output.LayerNorm.weight", (hidden,), Stored.ONCE),
        ("output.LayerNorm.bias", (hidden,), Stored.ONCE),
    )
    return table(_LAYER, config.dtype, layer, layers=config.layers)


def _run(config: Config, artifact: Artifact, inputs: Inputs) -> Outputs:
    x = inputs.hidden
    if x is None or x.ndim != 3 or x.shape[-1] != config.hidden:
        shape = None if x is None else tuple(x.shape)
        raise ValueError(f"hidden must have shape (batch, sequence, hidden)=(?, ?, {config.hidden}), got {shape}")
    x = x.float()
    for layer in range(config.layers):
        x = _layer(artifact, config, layer, x)
    return {"last_hidden_state": x}


def _layer(artifact: Artifact, config: Config, layer: int, x: Tensor) -> Tensor:
    """Post-norm; each bias is added once after its all-reduce.

    Source: NVIDIA/FasterTransformer@df4a753:src/fastertransformer/models/bert/Bert.cc:500-612
    """
    attention = all_reduce(_attention(artifact, config, layer, rank, x) for rank in range(config.ranks))
    x = _add_normalise(artifact, "attention.output", layer, attention, x)
    inner = all_reduce(_ffn(artifact, config, layer, rank, x) for rank in range(config.ranks))
    return _add_normalise(artifact, "output", layer, inner, x)


def _add_normalise(artifact: Artifact, block: str, layer: int, reduced: Tensor, residual: Tensor) -> Tensor:
    names = ("dense.bias", "LayerNorm.weight", "LayerNorm.bias")
    bias, gamma, beta = (artifact.read(f"{_LAYER}{block}.{name}", layer=layer) for name in names)
    return layer_norm(reduced + residual + bias, gamma, beta, _EPS)


def _attention(artifact: Artifact, config: Config, layer: int, rank: int, x: Tensor) -> Tensor:
    q, k, v = (
        split_heads(
            torch.matmul(x, artifact.read(f"{_LAYER}attention.self.{part}.weight", layer=layer, rank=rank))
            + artifact.read(f"{_LAYER}attention.self.{part}.bias", layer=layer, rank=rank),
            config.heads // config.ranks,
        )
        for part in ("query", "key", "value")
    )
    context = attend(q, k, v, scale=1.0 / (config.head_dim**0.5 * config.q_scaling), causal=False)
    return torch.matmul(context, artifact.read(f"{_LAYER}attention.output.dense.weight", layer=layer, rank=rank))


def _ffn(artifact: Artifact, config: Config, layer: int, rank: int, x: Tensor) -> Tensor:
    weight, bias = (
        artifact.read(f"{_LAYER}intermediate.dense.{kind}", layer=layer, rank=rank) for kind in ("weight", "bias")
    )
    inner = config.activation.apply(torch.matmul(x, weight) + bias)
    return torch.matmul(inner, artifact.read(f"{_LAYER}output.dense.weight", layer=layer, rank=rank))
