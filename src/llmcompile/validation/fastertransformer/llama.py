"""LLaMA: section [llama], of the de-facto fork and its grouped-query branch.

Source: void-main/FasterTransformer@e770ddf:src/fastertransformer/triton_backend/llama/LlamaTritonModel.cc (keys),
models/llama/LlamaWeight.cc and LlamaDecoderLayerWeight.cc (files), LlamaContextDecoder.cc and Llama.cc (wiring);
sfc-gh-zhwang/FasterTransformer@a4b6dd9 (zhwang/llama-gqa), same paths, for `kv_head_num`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from llmcompile.validation.fastertransformer.blocks import (
    all_reduce,
    attend,
    project_to_vocabulary,
    rms_norm,
    rotate_halves,
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

_SECTION = "llama"
_LAYER = "model.layers.{layer}."


@dataclass(frozen=True, kw_only=True)
class Config:
    """What the runtime takes from [llama]; `kv_head_num` only the grouped-query branch reads."""

    ranks: int
    heads: int
    kv_heads: int
    head_dim: int
    inter: int
    layers: int
    vocabulary: int
    rotary: int
    eps: float
    dtype: Dtype

    @property
    def hidden(self) -> int:
        """Width of the residual stream."""
        return self.heads * self.head_dim


def resolve(ini: Ini, ranks: int, folder: Path) -> Model:
    """The runtime for this config.ini.

    Raises:
        MismatchError: A required key is absent or unusable, or heads, key-value heads or inner size do not divide by
            `ranks`, or heads by key-value heads.
    """
    config = _read_config(ini, ranks)
    return Model(rows=_rows(config), run=partial(_run, config))


def _read_config(ini: Ini, ranks: int) -> Config:
    heads, inter = ini.size(_SECTION, "head_num"), ini.size(_SECTION, "inter_size")
    kv_heads = ini.size(_SECTION, "kv_head_num") if ini.has(_SECTION, "kv_head_num") else heads
    for key, size in (("head_num", heads), ("kv_head_num", kv_heads), ("inter_size", inter)):
        split_evenly(ini, _SECTION, key, size, ranks)
    if heads % kv_heads != 0:
        raise ini.error(_SECTION, "kv_head_num", str(kv_heads), f"a divisor of head_num {heads}")
    for key in ("start_id", "end_id"):
        ini.integer(_SECTION, key)
    ini.text(_SECTION, "model_name")
    return Config(
        ranks=ranks,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=ini.size(_SECTION, "size_per_head"),
        inter=inter,
        layers=ini.size(_SECTION, "num_layer"),
        vocabulary=ini.size(_SECTION, "vocab_size"),
        rotary=ini.rotary(_SECTION),
        eps=ini.real(_SECTION, "layernorm_eps"),
        dtype=declared_dtype(ini, _SECTION),
    )


def _rows(config: Config) -> tuple[Row, ...]:
    hidden, local, inner = config.hidden, config.hidden // config.ranks, config.inter // config.ranks
    fused = local + 2 * config.kv_heads // config.ranks * config.head_dim
    once = (
        ("model.wte.weight", (config.vocabulary, hidden), Stored.ONCE),
        ("model.final_layernorm.weight", (hidden,), Stored.ONCE),
        ("model.lm_head.weight", (config.vocabulary, hidden), Stored.ONCE),
    )
    layer = (
        ("input_layernorm.weight", (hidden,), Stored.ONCE),
        ("post_attention_layernorm.weight", (hidden,), Stored.ONCE),
        ("attention.query_key_value.weight", (hidden, fused), Stored.PER_RANK),
        ("attention.dense.weight", (local, hidden), Stored.PER_RANK),
        ("mlp.gate_proj.weight", (hidden, inner), Stored.PER_RANK),
        ("mlp.up_proj.weight", (hidden, inner), Stored.PER_RANK),
        ("mlp.down_proj.weight", (inner, hidden), Stored.PER_RANK),
    )
    return table("", config.dtype, once) + table(_LAYER, config.dtype, layer, layers=config.layers)


def _run(config: Config, artifact: Artifact, inputs: Inputs) -> Outputs:
    x = artifact.lookup("model.wte.weight", inputs.tokens)
    for layer in range(config.layers):
        x = _layer(artifact, config, layer, x)
    x = rms_norm(x, artifact.read("model.final_layernorm.weight"), config.eps)
    return {"logits": project_to_vocabulary(artifact, "model.lm_head.weight", x)}


def _layer(artifact: Artifact, config: Config, layer: int, x: Tensor) -> Tensor:
    normed = rms_norm(x, artifact.read(f"{_LAYER}input_layernorm.weight", layer=layer), config.eps)
    x = x + all_reduce(_attention(artifact, config, layer, rank, normed) for rank in range(config.ranks))
    normed = rms_norm(x, artifact.read(f"{_LAYER}post_attention_layernorm.weight", layer=layer), config.eps)
    return x + all_reduce(_ffn(artifact, layer, rank, normed) for rank in range(config.ranks))


def _attention(artifact: Artifact, config: Config, layer: int, rank: int, x: Tensor) -> Tensor:
    """Columns are q, k, v of this rank; each key-value head serves heads / kv_heads consecutive query heads.

    Source: sfc-gh-zhwang/FasterTransformer@a4b6dd9:src/fastertransformer/kernels/repeat_kv_kernels.cu:33-52
    """
    heads, kv_heads = config.heads // config.ranks, config.kv_heads // config.ranks
    weight = artifact.read(f"{_LAYER}attention.query_key_value.weight", layer=layer, rank=rank)
    columns = [count * config.head_dim for count in (heads, kv_heads, kv_heads)]
    q, k, v = torch.split(torch.matmul(x, weight), columns, -1)
    q, k = rotate_halves(split_heads(q, heads), config.rotary), rotate_halves(split_heads(k, kv_heads), config.rotary)
    k, v = (part.repeat_interleave(heads // kv_heads, 1) for part in (k, split_heads(v, kv_heads)))
    context = attend(q, k, v, scale=config.head_dim**-0.5, causal=True)
    return torch.matmul(context, artifact.read(f"{_LAYER}attention.dense.weight", layer=layer, rank=rank))


def _ffn(artifact: Artifact, layer: int, rank: int, x: Tensor) -> Tensor:
    gate, up, down = (
        artifact.read(f"{_LAYER}mlp.{name}_proj.weight", layer=layer, rank=rank) for name in ("gate", "up", "down")
    )
    return torch.matmul(functional.silu(torch.matmul(x, gate)) * torch.matmul(x, up), down)
