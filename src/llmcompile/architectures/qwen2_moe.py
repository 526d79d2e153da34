"""Qwen 1.5 and 2 with experts: many small ones, and one that every token passes."""

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
    LlamaLikeConfig,
    attention,
    gated_mlp,
    sizes,
)
from llmcompile.architectures.spec import (
    Architecture,
    Dims,
    Epsilon,
    chosen,
    linear,
    read_config,
    rope,
)


class Qwen2MoeConfig(LlamaLikeConfig):
    """Source: huggingface/transformers@v4.57.6:src/transformers/models/qwen2_moe/configuration_qwen2_moe.py."""

    vocab_size: int
    max_position_embeddings: int = 32768
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int = 16
    head_dim: int | None = None
    intermediate_size: int = 5632
    moe_intermediate_size: int = 1408
    shared_expert_intermediate_size: int = 5632
    num_experts: int = 60
    num_experts_per_tok: int = 4
    norm_topk_prob: bool = False
    decoder_sparse_step: int = Field(1, ge=1)
    mlp_only_layers: list[int] | None = None
    qkv_bias: bool = True
    hidden_act: str = "silu"
    rms_norm_eps: Epsilon = 1e-6
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    max_window_layers: int = 28
    tie_word_embeddings: bool = False


def dims(config: Mapping[str, Any]) -> Dims:
    """Sizes and facts of a Qwen2-MoE config."""
    c = read_config(Qwen2MoeConfig, config)
    dense = dense_layers(c.num_hidden_layers, c.decoder_sparse_step, c.mlp_only_layers)
    return Dims(
        sizes={
            **sizes(c),
            "moe_ffn": c.moe_intermediate_size,
            "shared_ffn": c.shared_expert_intermediate_size,
            "experts": c.num_experts,
        },
        facts={
            "activation": c.hidden_act,
            "norm_eps": c.rms_norm_eps,
            "attention_bias": c.qkv_bias,
            "experts_per_token": chosen(c.num_experts_per_tok, c.num_experts),
            "normalized_experts": c.norm_topk_prob,
            "dense_layers": dense,
            "sliding_window": c.sliding_window if c.use_sliding_window else None,
            "max_window_layers": c.max_window_layers,
            "tied": c.tie_word_embeddings,
            "name_or_path": c.name_or_path,
            **rope(config, base=10000.0),
            **c.start_and_end(),
        },
    )


def dense_layers(layers: int, sparse_step: int, mlp_only: list[int] | None) -> int:
    """How many layers have a plain feed-forward instead of experts; the table describes models with none.

    Source: huggingface/transformers@v4.57.6:src/transformers/models/qwen2_moe/modeling_qwen2_moe.py, the decoder layer.
    """
    named = set() if mlp_only is None else {layer for layer in mlp_only if 0 <= layer < layers}
    sparse = layers // sparse_step
    return layers - sparse + sum((layer + 1) % sparse_step == 0 for layer in named)


_EXPERT = f"{LAYER}.mlp.experts.{{expert}}"

QWEN2_MOE = Architecture(
    name="qwen2_moe",
    classes=("Qwen2MoeForCausalLM", "Qwen2MoeModel"),
    model_types=("qwen2_moe",),
    prefixes=("model.",),
    tensors=(
        *EMBEDDING,
        *ATTENTION_NORM,
        *attention(qkv_bias="attention_bias"),
        *MLP_NORM,
        *linear("router", f"{LAYER}.mlp.gate", "experts", "hidden", bias=False),
        *gated_mlp("experts", _EXPERT, "moe_ffn"),
        *gated_mlp("shared", f"{LAYER}.mlp.shared_expert", "shared_ffn"),
        *linear("shared.switch", f"{LAYER}.mlp.shared_expert_gate", "1", "hidden", bias=False),
        *NORM_AND_HEAD,
    ),
    dims=dims,
    ignored=BUFFERS,
)
