"""Qwen 3 with experts."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from pydantic import Field

from llmcompile.architectures.qwen2_moe import dense_layers
from llmcompile.architectures.spec import (
    Architecture,
    Dims,
    Epsilon,
    HFConfig,
    Tensor,
    chosen,
    linear,
    norm,
    per_head,
    read_config,
    rope,
)


class Qwen3MoeConfig(HFConfig):
    """Source: huggingface/transformers@v4.57.6:src/transformers/models/qwen3_moe/configuration_qwen3_moe.py."""

    vocab_size: int
    max_position_embeddings: int = 32768
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int = 4
    head_dim: int | None = None
    intermediate_size: int = 6144
    moe_intermediate_size: int = 768
    num_experts: int = 128
    num_experts_per_tok: int = 8
    norm_topk_prob: bool = False
    decoder_sparse_step: int = Field(1, ge=1)
    mlp_only_layers: list[int] | None = None
    hidden_act: str = "silu"
    rms_norm_eps: Epsilon = 1e-6
    attention_bias: bool = False
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    tie_word_embeddings: bool = False


def dims(config: Mapping[str, Any]) -> Dims:
    """Sizes and facts of a Qwen3-MoE config."""
    c = read_config(Qwen3MoeConfig, config)
    heads = c.num_attention_heads
    dense = dense_layers(c.num_hidden_layers, c.decoder_sparse_step, c.mlp_only_layers)
    return Dims(
        sizes={
            "vocab": c.vocab_size,
            "positions": c.max_position_embeddings,
            "hidden": c.hidden_size,
            "layers": c.num_hidden_layers,
            "heads": heads,
            "kv_heads": c.num_key_value_heads,
            "head_dim": per_head(c.hidden_size, heads) if c.head_dim is None else c.head_dim,
            "ffn": c.intermediate_size,
            "moe_ffn": c.moe_intermediate_size,
            "experts": c.num_experts,
        },
        facts={
            "activation": c.hidden_act,
            "norm_eps": c.rms_norm_eps,
            "attention_bias": c.attention_bias,
            "experts_per_token": chosen(c.num_experts_per_tok, c.num_experts),
            "normalized_experts": c.norm_topk_prob,
            "dense_layers": dense,
            "sliding_window": c.sliding_window if c.use_sliding_window else None,
            "tied": c.tie_word_embeddings,
            "name_or_path": c.name_or_path,
            **rope(config, base=10000.0),
            **c.start_and_end(),
        },
    )


_LAYER = "layers.{layer}"
_EXPERT = f"{_LAYER}.mlp.experts.{{expert}}"

QWEN3_MOE = Architecture(
    name="qwen3_moe",
    classes=("Qwen3MoeForCausalLM", "Qwen3MoeModel"),
    model_types=("qwen3_moe",),
    prefixes=("model.",),
    tensors=(
        Tensor(("embed.tokens.weight",), "embed_tokens.weight", "vocab", "hidden"),
        *norm("attn.norm", f"{_LAYER}.input_layernorm", bias=False),
        *linear("attn.q", f"{_LAYER}.self_attn.q_proj", "heads head_dim", "hidden", bias_when="attention_bias"),
        *linear("attn.k", f"{_LAYER}.self_attn.k_proj", "kv_heads head_dim", "hidden", bias_when="attention_bias"),
        *linear("attn.v", f"{_LAYER}.self_attn.v_proj", "kv_heads head_dim", "hidden", bias_when="attention_bias"),
        *linear("attn.o", f"{_LAYER}.self_attn.o_proj", "hidden", "heads head_dim", bias_when="attention_bias"),
        Tensor(("attn.q_norm.weight",), f"{_LAYER}.self_attn.q_norm.weight", "head_dim"),
        Tensor(("attn.k_norm.weight",), f"{_LAYER}.self_attn.k_norm.weight", "head_dim"),
        *norm("mlp.norm", f"{_LAYER}.post_attention_layernorm", bias=False),
        *linear("router", f"{_LAYER}.mlp.gate", "experts", "hidden", bias=False),
        *linear("experts.gate", f"{_EXPERT}.gate_proj", "moe_ffn", "hidden", bias=False),
        *linear("experts.up", f"{_EXPERT}.up_proj", "moe_ffn", "hidden", bias=False),
        *linear("experts.down", f"{_EXPERT}.down_proj", "hidden", "moe_ffn", bias=False),
        *norm("norm", "norm", bias=False),
        Tensor(("head.weight",), "lm_head.weight", "vocab", "hidden", tied_to="embed.tokens.weight"),
    ),
    dims=dims,
    ignored=MappingProxyType({"layers.*.self_attn.rotary_emb.inv_freq": "recomputed from rope_theta"}),
)
