"""Gemma 2: Gemma with norms before and after each block, soft-capped logits, every other layer in a window."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmcompile.architectures.llama_like import (
    ATTENTION_NORM,
    BUFFERS,
    EMBEDDING,
    LAYER,
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
    norm,
    read_config,
    rope,
)


class Gemma2Config(LlamaLikeConfig):
    """Source: huggingface/transformers@v4.57.6:src/transformers/models/gemma2/configuration_gemma2.py."""

    vocab_size: int
    max_position_embeddings: int = 8192
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int = 4
    head_dim: int = 256
    intermediate_size: int
    hidden_activation: str = "gelu_pytorch_tanh"
    rms_norm_eps: Epsilon = 1e-6
    attention_bias: bool = False
    query_pre_attn_scalar: int | float = 256
    final_logit_softcapping: float | None = 30.0
    attn_logit_softcapping: float | None = 50.0
    sliding_window: int | None = 4096
    bos_token_id: int | None = 2
    eos_token_id: int | list[int] | None = 1
    tie_word_embeddings: bool = True


def dims(config: Mapping[str, Any]) -> Dims:
    """Sizes and facts of a Gemma 2 config."""
    c = read_config(Gemma2Config, config)
    return Dims(
        sizes=sizes(c),
        facts={
            "activation": c.hidden_activation,
            "norm_eps": c.rms_norm_eps,
            "attention_bias": c.attention_bias,
            "query_pre_attn_scalar": c.query_pre_attn_scalar,
            "final_logit_softcapping": c.final_logit_softcapping,
            "attn_logit_softcapping": c.attn_logit_softcapping,
            "sliding_window": c.sliding_window,
            "tied": c.tie_word_embeddings,
            "name_or_path": c.name_or_path,
            **rope(config, base=10000.0),
            **c.start_and_end(),
        },
    )


GEMMA2 = Architecture(
    name="gemma2",
    classes=("Gemma2ForCausalLM", "Gemma2Model"),
    model_types=("gemma2",),
    prefixes=("model.",),
    tensors=(
        *EMBEDDING,
        *ATTENTION_NORM,
        *attention(qkv_bias="attention_bias", o_bias="attention_bias"),
        *norm("attn.post_norm", f"{LAYER}.post_attention_layernorm", bias=False),
        *norm("mlp.norm", f"{LAYER}.pre_feedforward_layernorm", bias=False),
        *gated_mlp(),
        *norm("mlp.post_norm", f"{LAYER}.post_feedforward_layernorm", bias=False),
        *NORM_AND_HEAD,
    ),
    dims=dims,
    ignored=BUFFERS,
)
