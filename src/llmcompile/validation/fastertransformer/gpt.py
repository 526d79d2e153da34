"""ParallelGpt, the runtime of GPT-2, OPT and BLOOM: section [gpt].

Source: NVIDIA/FasterTransformer@df4a753:src/fastertransformer/triton_backend/multi_gpu_gpt/ParallelGptTritonModel.cc
(keys and defaults), models/multi_gpu_gpt/ParallelGptWeight.cc and ParallelGptDecoderLayerWeight.cc (files),
ParallelGptContextDecoder.cc and ParallelGpt.cc (wiring).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from llmcompile.validation.fastertransformer.blocks import (
    ACTIVATIONS,
    Activation,
    alibi_bias,
    alibi_slopes,
    all_reduce,
    attend,
    layer_norm,
    project_fused,
    project_to_vocabulary,
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

SECTION = "gpt"
LAYER = "model.layers.{layer}."
_HEAD = "model.lm_head.weight"
_EMBEDDING = "model.wte"
_DEFAULT_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class Config:
    """What the runtime takes from [gpt]; `model_variant` and `tensor_para_size` it does not read."""

    ranks: int
    heads: int
    head_dim: int
    inter: int
    layers: int
    vocabulary: int
    positions: int
    eps: float
    activation: Activation
    post_norm: bool
    learned_positions: bool
    embedding_norm: bool
    final_norm: bool
    alibi: bool
    dtype: Dtype

    @property
    def hidden(self) -> int:
        """Width of the residual stream."""
        return self.heads * self.head_dim

    @property
    def local_heads(self) -> int:
        """Heads of one rank."""
        return self.heads // self.ranks


@dataclass(frozen=True)
class Partials:
    """How one rank computes its share of a layer: with float GEMMs, or with int8 ones.

    Each takes (artifact, config, layer, rank, normed input of shape (batch, sequence, hidden)) and gives the rank's
    summand of the all-reduce, same shape, without the bias that is added once after it.
    """

    attention: Callable[[Artifact, Config, int, int, Tensor], Tensor]
    ffn: Callable[[Artifact, Config, int, int, Tensor], Tensor]


def resolve(ini: Ini, ranks: int, folder: Path) -> Model:
    """The runtime for this config.ini.

    Raises:
        MismatchError: A required key is absent or unusable, or heads or inner size do not divide by `ranks`.
    """
    config = read_config(ini, ranks)
    rows = outer_rows(config, folder) + table(LAYER, config.dtype, layer_entries(config), layers=config.layers)
    return Model(rows=rows, run=partial(run, config, FLOAT))


def read_config(ini: Ini, ranks: int) -> Config:
    """Read [gpt] with the runtime's defaults, refusing what it would abort on or what is not executed here."""
    heads, inter = ini.size(SECTION, "head_num"), ini.size(SECTION, "inter_size")
    split_evenly(ini, SECTION, "head_num", heads, ranks)
    split_evenly(ini, SECTION, "inter_size", inter, ranks)
    for key in ("start_id", "end_id"):
        ini.integer(SECTION, key)
    ini.text(SECTION, "model_name")
    if ini.boolean_or(SECTION, "has_adapters", False):
        raise ini.error(SECTION, "has_adapters", "true", "false: adapters are not executed here")
    learned_positions = ini.boolean_or(SECTION, "has_positional_encoding", True)
    return Config(
        ranks=ranks,
        heads=heads,
        head_dim=ini.size(SECTION, "size_per_head"),
        inter=inter,
        layers=ini.size(SECTION, "num_layer"),
        vocabulary=ini.size(SECTION, "vocab_size"),
        positions=ini.size(SECTION, "max_pos_seq_len") if learned_positions else 0,
        eps=ini.real_or(SECTION, "layernorm_eps", _DEFAULT_EPS),
        activation=_read_activation(ini),
        post_norm=_read_post_norm(ini),
        learned_positions=learned_positions,
        embedding_norm=ini.boolean_or(SECTION, "has_pre_decoder_layernorm", False),
        final_norm=ini.boolean_or(SECTION, "has_post_decoder_layernorm", True),
        alibi=ini.boolean_or(SECTION, "use_attention_linear_bias", False),
        dtype=declared_dtype(ini, SECTION),
    )


def _read_activation(ini: Ini) -> Activation:
    """GELU or ReLU; their gated spellings are accepted and, without a second projection, compute the same."""
    name = ini.text_or(SECTION, "activation_type", "Gelu")
    if name not in ACTIVATIONS or name in ("Silu", "silu", "SiGLU", "gated-silu"):
        raise ini.error(SECTION, "activation_type", name, "Gelu or Relu: the runtime has no other inner layer")
    return ACTIVATIONS[name]


def _read_post_norm(ini: Ini) -> bool:
    name = ini.text_or(SECTION, "layernorm_type", "pre_layernorm")
    if name not in ("pre_layernorm", "post_layernorm"):
        raise ini.error(SECTION, "layernorm_type", name, "pre_layernorm or post_layernorm")
    return name == "post_layernorm"


def outer_rows(config: Config, folder: Path) -> tuple[Row, ...]:
    """Files outside the layers; without an lm_head file the runtime reads the embedding in its place."""
    hidden, matrix = config.hidden, (config.vocabulary, config.hidden)
    once: list[Entry] = [(_EMBEDDING, matrix, Stored.ONCE)]
    if config.learned_positions:
        once.append(("model.wpe", (config.positions, hidden), Stored.ONCE))
    if config.embedding_norm:
        once += _norm("model.pre_decoder_layernorm", hidden)
    if config.final_norm:
        once += _norm("model.final_layernorm", hidden)
    if (folder / f"{_HEAD}.bin").exists():
        once.append((_HEAD, matrix, Stored.ONCE))
    return table("", config.dtype, once)


def _norm(name: str, hidden: int) -> list[Entry]:
    return [(f"{name}.weight", (hidden,), Stored.ONCE), (f"{name}.bias", (hidden,), Stored.ONCE)]


def layer_entries(config: Config) -> list[Entry]:
    """Files of one layer."""
    hidden, local, inner = config.hidden, config.hidden // config.ranks, config.inter // config.ranks
    return [
        *_norm("input_layernorm", hidden),
        ("attention.query_key_value.weight", (hidden, 3, local), Stored.PER_RANK),
        ("attention.query_key_value.bias", (3, local), Stored.PER_RANK),
        ("attention.dense.weight", (local, hidden), Stored.PER_RANK),
        ("attention.dense.bias", (hidden,), Stored.ONCE),
        *_norm("post_attention_layernorm", hidden),
        ("mlp.dense_h_to_4h.weight", (hidden, inner), Stored.PER_RANK),
        ("mlp.dense_h_to_4h.bias", (inner,), Stored.PER_RANK),
        ("mlp.dense_4h_to_h.weight", (inner, hidden), Stored.PER_RANK),
        ("mlp.dense_4h_to_h.bias", (hidden,), Stored.ONCE),
    ]


def run(config: Config, partials: Partials, artifact: Artifact, inputs: Inputs) -> Outputs:
    """Logits of every position, shape (batch, sequence, vocabulary)."""
    x = _embed(artifact, config, inputs.tokens)
    for layer in range(config.layers):
        x = (_post_norm_layer if config.post_norm else _pre_norm_layer)(artifact, config, partials, layer, x)
    if config.final_norm:
        x = _normalise(artifact, config, "model.final_layernorm", 0, x)
    head = _HEAD if _HEAD in artifact.rows else _EMBEDDING
    return {"logits": project_to_vocabulary(artifact, head, x)}


def _embed(artifact: Artifact, config: Config, tokens: Tensor) -> Tensor:
    x = artifact.lookup(_EMBEDDING, tokens)
    if config.learned_positions:
        x = x + artifact.lookup("model.wpe", torch.arange(tokens.shape[1]))
    return _normalise(artifact, config, "model.pre_decoder_layernorm", 0, x) if config.embedding_norm else x


def _normalise(artifact: Artifact, config: Config, name: str, layer: int, x: Tensor) -> Tensor:
    gamma, beta = (artifact.read(f"{name}.{kind}", layer=layer) for kind in ("weight", "bias"))
    return layer_norm(x, gamma, beta, config.eps)


def _pre_norm_layer(artifact: Artifact, config: Config, partials: Partials, layer: int, x: Tensor) -> Tensor:
    normed = _normalise(artifact, config, f"{LAYER}input_layernorm", layer, x)
    x = x + _reduced(artifact, config, partials.attention, "attention.dense", layer, normed)
    normed = _normalise(artifact, config, f"{LAYER}post_attention_layernorm", layer, x)
    return x + _reduced(artifact, config, partials.ffn, "mlp.dense_4h_to_h", layer, normed)


def _post_norm_layer(artifact: Artifact, config: Config, partials: Partials, layer: int, x: Tensor) -> Tensor:
    x = x + _reduced(artifact, config, partials.attention, "attention.dense", layer, x)
    x = _normalise(artifact, config, f"{LAYER}input_layernorm", layer, x)
    x = x + _reduced(artifact, config, partials.ffn, "mlp.dense_4h_to_h", layer, x)
    return _normalise(artifact, config, f"{LAYER}post_attention_layernorm", layer, x)


def _reduced(
    artifact: Artifact,
    config: Config,
    compute: Callable[[Artifact, Config, int, int, Tensor], Tensor],
    output: str,
    layer: int,
    x: Tensor,
) -> Tensor:
    """All-reduce of the ranks' parts, then the whole output bias, added once.

    Source: NVIDIA/FasterTransformer@df4a753:src/fastertransformer/models/multi_gpu_gpt/
    ParallelGptContextDecoder.cc:600-632,722-750
    """
    total = all_reduce(compute(artifact, config, layer, rank, x) for rank in range(config.ranks))
    return total + artifact.read(f"{LAYER}{output}.bias", layer=layer)


def attend_fused(config: Config, rank: int, qkv_BS3L: Tensor) -> Tensor:
    """One rank's causal attention; input shape (batch, sequence, 3, hidden / ranks), output without the 3."""
    q, k, v = (split_heads(part, config.local_heads) for part in qkv_BS3L.unbind(2))
    bias = None
    if config.alibi:
        local = slice(rank * config.local_heads, (rank + 1) * config.local_heads)
        bias = alibi_bias(alibi_slopes(config.heads)[local], q.shape[2])
    return attend(q, k, v, scale=config.head_dim**-0.5, causal=True, bias_NST=bias)


def _float_attention(artifact: Artifact, config: Config, layer: int, rank: int, x: Tensor) -> Tensor:
    weight, bias = (
        artifact.read(f"{LAYER}attention.query_key_value.{kind}", layer=layer, rank=rank) for kind in ("weight", "bias")
    )
    qkv = project_fused(x, weight) + bias
    output = artifact.read(f"{LAYER}attention.dense.weight", layer=layer, rank=rank)
    return torch.matmul(attend_fused(config, rank, qkv), output)


def _float_ffn(artifact: Artifact, config: Config, layer: int, rank: int, x: Tensor) -> Tensor:
    weight, bias = (
        artifact.read(f"{LAYER}mlp.dense_h_to_4h.{kind}", layer=layer, rank=rank) for kind in ("weight", "bias")
    )
    inner = config.activation.apply(torch.matmul(x, weight) + bias)
    return torch.matmul(inner, artifact.read(f"{LAYER}mlp.dense_4h_to_h.weight", layer=layer, rank=rank))


FLOAT = Partials(_float_attention, _float_ffn)
