"""LLaMA, with multi-head or grouped-query attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmcompile.architectures.llama_like import (
    ATTENTION_NORM,
    BUFFERS,
    EMBEDDING,
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
    read_config,
    rope,
)


class LlamaConfig(LlamaLikeConfig):
    """Source: huggingface/transformers@v4.57.6:src/transformers/models/llama/configuration_llama.py."""

    vocab_size: int
    max_position_embeddings: int = 2048
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    intermediate_size: int
    hidden_act: str = "silu"
    rms_norm_eps: Epsilon = 1e-6
    attention_bias: bool = False
    mlp_bias: bool = False
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = False


def dims(config: Mapping[str, Any]) -> Dims:
    """Sizes and facts of a LLaMA config."""
    c = read_config(LlamaConfig, config)
    return Dims(
        sizes=sizes(c),
        facts={
            "activation": c.hidden_act,
            "norm_eps": c.rms_norm_eps,
            "attention_bias": c.attention_bias,
            "mlp_bias": c.mlp_bias,
            "tied": c.tie_word_embeddings,
            "name_or_path": c.name_or_path,
            **rope(config, base=10000.0),
            **c.start_and_end(),
        },
    )


LLAMA = Architecture(
    name="llama",
    classes=("LlamaForCausalLM", "LlamaModel"),
    model_types=("llama",),
    prefixes=("model.",),
    tensors=(
        *EMBEDDING,
        *ATTENTION_NORM,
        *attention(qkv_bias="attention_bias", o_bias="attention_bias"),
        *MLP_NORM,
        *gated_mlp(bias="mlp_bias"),
        *NORM_AND_HEAD,
    ),
    dims=dims,
    ignored=BUFFERS,
)
