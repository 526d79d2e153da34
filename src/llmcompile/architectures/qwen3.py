"""Qwen 3: LLaMA whose heads of q and k are normalised, with a head size of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmcompile.architectures.llama_like import (
    ATTENTION_NORM,
    BUFFERS,
    EMBEDDING,
    MLP_NORM,
    NORM_AND_HEAD,
    QK_NORMS,
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


class Qwen3Config(LlamaLikeConfig):
    """Source: huggingface/transformers@v4.57.6:src/transformers/models/qwen3/configuration_qwen3.py."""

    vocab_size: int
    max_position_embeddings: int = 32768
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = 32
    head_dim: int = 128
    intermediate_size: int
    hidden_act: str = "silu"
    rms_norm_eps: Epsilon = 1e-6
    attention_bias: bool = False
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    max_window_layers: int = 28
    tie_word_embeddings: bool = False


def dims(config: Mapping[str, Any]) -> Dims:
    """Sizes and facts of a Qwen3 config."""
    c = read_config(Qwen3Config, config)
    return Dims(
        sizes=sizes(c),
        facts={
            "activation": c.hidden_act,
            "norm_eps": c.rms_norm_eps,
            "attention_bias": c.attention_bias,
            "sliding_window": c.sliding_window if c.use_sliding_window else None,
            "max_window_layers": c.max_window_layers,
            "tied": c.tie_word_embeddings,
            "name_or_path": c.name_or_path,
            **rope(config, base=10000.0),
            **c.start_and_end(),
        },
    )


QWEN3 = Architecture(
    name="qwen3",
    classes=("Qwen3ForCausalLM", "Qwen3Model"),
    model_types=("qwen3",),
    prefixes=("model.",),
    tensors=(
        *EMBEDDING,
        *ATTENTION_NORM,
        *attention(qkv_bias="attention_bias", o_bias="attention_bias"),
        *QK_NORMS,
        *MLP_NORM,
        *gated_mlp(),
        *NORM_AND_HEAD,
    ),
    dims=dims,
    ignored=BUFFERS,
)
