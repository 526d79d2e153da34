"""Falcon: three layouts of q, k and v, one or two norms per layer, rotary embedding or ALiBi."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from pydantic import Field

from llmcompile.architectures.spec import (
    Architecture,
    Dims,
    Epsilon,
    HFConfig,
    Tensor,
    alias,
    fused,
    linear,
    norm,
    per_head,
    read_config,
    rope,
)
from llmcompile.errors import CheckpointError

_REMOTE = ("RefinedWeb", "RefinedWebModel")
"""Values of `model_type` before the class became part of transformers: Falcon 40B and its kin, Falcon 7B and its kin.
Source: NVIDIA/TensorRT-LLM at 0.16.0.dev2024121000:tensorrt_llm/models/falcon/config.py."""


class FalconConfig(HFConfig):
    """Source: huggingface/transformers@v4.57.6:src/transformers/models/falcon/configuration_falcon.py."""

    model_type: str = "falcon"
    vocab_size: int
    max_position_embeddings: int = 2048
    hidden_size: int = Field(validation_alias=alias("hidden_size", "n_embed"))
    num_hidden_layers: int = Field(validation_alias=alias("num_hidden_layers", "n_layer"))
    num_attention_heads: int = Field(validation_alias=alias("num_attention_heads", "n_head"))
    num_kv_heads: int | None = Field(None, validation_alias=alias("num_kv_heads", "n_head_kv"))
    ffn_hidden_size: int | None = None
    activation: str = "gelu"
    layer_norm_epsilon: Epsilon = 1e-5
    alibi: bool = False
    new_decoder_architecture: bool | None = None
    multi_query: bool | None = None
    parallel_attn: bool | None = None
    num_ln_in_parallel_attn: int | None = None
    bias: bool = False
    bos_token_id: int | None = 11
    eos_token_id: int | list[int] | None = 11
    tie_word_embeddings: bool = True


def dims(config: Mapping[str, Any]) -> Dims:
    """Sizes and facts of a Falcon config; keys that the code before transformers' own left out are false there."""
    c = read_config(FalconConfig, config)
    default = c.model_type not in _REMOTE
    grouped = c.model_type == "RefinedWeb" if c.new_decoder_architecture is None else c.new_decoder_architecture
    multi_query = (default if c.multi_query is None else c.multi_query) and not grouped
    parallel = default if c.parallel_attn is None else c.parallel_attn
    norms = (2 if grouped else 1) if c.num_ln_in_parallel_attn is None else c.num_ln_in_parallel_attn
    heads = c.num_attention_heads
    kv_heads = heads if c.num_kv_heads is None or not grouped else c.num_kv_heads
    return Dims(
        sizes={
            "vocab": c.vocab_size,
            "positions": c.max_position_embeddings,
            "hidden": c.hidden_size,
            "layers": c.num_hidden_layers,
            "heads": heads,
            "kv_heads": 1 if multi_query else kv_heads,
            "group": heads if multi_query else _per_group(heads, kv_heads),
            "head_dim": per_head(c.hidden_size, heads),
            "ffn": 4 * c.hidden_size if c.ffn_hidden_size is None else c.ffn_hidden_size,
        },
        facts={
            "activation": c.activation,
            "norm_eps": c.layer_norm_epsilon,
            "alibi": c.alibi,
            "grouped": grouped,
            "multi_query": multi_query,
            "parallel_attention": parallel,
            "two_norms": parallel and norms == 2,
            "bias": c.bias,
            "tied": c.tie_word_embeddings,
            "name_or_path": c.name_or_path,
            **rope(config, base=10000.0),
            **c.start_and_end(),
        },
    )


def _per_group(heads: int, kv_heads: int) -> int:
    """Query heads per key and value head.

    Raises:
        CheckpointError: `heads` is not a multiple of `kv_heads`.
    """
    if kv_heads < 1 or heads % kv_heads != 0:
        raise CheckpointError(
            "config.json: num_kv_heads",
            f"{heads} heads in {kv_heads} groups",
            "a multiple",
            "check the revision of config.json",
        )
    return heads // kv_heads


_QKV = ("attn.q", "attn.k", "attn.v")
_LAYER = "h.{layer}"
_FUSED = f"{_LAYER}.self_attention.query_key_value"

FALCON = Architecture(
    name="falcon",
    classes=("FalconForCausalLM", "FalconModel", "RWForCausalLM", "RWModel"),
    model_types=("falcon", *_REMOTE),
    prefixes=("transformer.",),
    tensors=(
        Tensor(("embed.tokens.weight",), "word_embeddings.weight", "vocab", "hidden"),
        *norm("attn.norm", f"{_LAYER}.ln_attn", when="two_norms"),
        *norm("attn.norm", f"{_LAYER}.input_layernorm", when="!two_norms"),
        *fused(_QKV, _FUSED, "kv_heads group+1+1 head_dim", "hidden", when="grouped", bias_when="bias"),
        *fused(_QKV, _FUSED, "heads+kv_heads+kv_heads head_dim", "hidden", when="multi_query", bias_when="bias"),
        *fused(_QKV, _FUSED, "heads part head_dim", "hidden", when="!grouped !multi_query", bias_when="bias"),
        *linear("attn.o", f"{_LAYER}.self_attention.dense", "hidden", "heads head_dim", bias_when="bias"),
        *norm("mlp.norm", f"{_LAYER}.ln_mlp", when="two_norms"),
        *norm("mlp.norm", f"{_LAYER}.post_attention_layernorm", when="!parallel_attention"),
        *linear("mlp.up", f"{_LAYER}.mlp.dense_h_to_4h", "ffn", "hidden", bias_when="bias"),
        *linear("mlp.down", f"{_LAYER}.mlp.dense_4h_to_h", "hidden", "ffn", bias_when="bias"),
        *norm("norm", "ln_f"),
        Tensor(("head.weight",), "lm_head.weight", "vocab", "hidden", tied_to="embed.tokens.weight"),
    ),
    dims=dims,
    ignored=MappingProxyType({"h.*.self_attention.rotary_emb.inv_freq": "recomputed from rope_theta"}),
)
