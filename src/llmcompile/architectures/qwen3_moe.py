"""Qwen 3 with experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from llmcompile.architectures.llama_like import (
    ATTENTION_NORM,
    BUFFERS,
    EMBEDDING,
    LAYER,
    MLP_NORM,
    NORM_AND_HEAD,
    QK_NORMS,
    LlamaLikeConfig,
    attention,
    gated_mlp,
    sizes,
)
from llmcompile.architectures.qwen2_moe import dense_layers
from llmcompile.architectures.spec import (
    Architecture,
    Dims,
    Epsilon,
    chosen,
    linear,
    read_config,
    rope,
)


class Qwen3MoeConfig(LlamaLikeConfig):
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
    dense = dense_layers(c.num_hidden_layers, c.decoder_sparse_step, c.mlp_only_layers)
    return Dims(
        sizes={
            **sizes(c),
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


_EXPERT = f"{LAYER}.mlp.experts.{{expert}}"

QWEN3_MOE = Architecture(
    name="qwen3_moe",
    classes=("Qwen3MoeForCausalLM", "Qwen3MoeModel"),
    model_types=("qwen3_moe",),
    prefixes=("model.",),
    tensors=(
        *EMBEDDING,
        *ATTENTION_NORM,
        *attention(qkv_bias="attention_bias", o_bias="attention_bias"),
        *QK_NORMS,
        *MLP_NORM,
        *linear("router", f"{LAYER}.mlp.gate", "experts", "hidden", bias=False),
        *gated_mlp("experts", _EXPERT, "moe_ffn"),
        *NORM_AND_HEAD,
    ),
    dims=dims,
    ignored=BUFFERS,
)
