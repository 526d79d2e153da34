"""Qwen 1.5, 2 and 2.5: LLaMA with biases on q, k and v."""

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


class Qwen2Config(LlamaLikeConfig):
    """Source: huggingface/transformers@v4.57.6:src/transformers/models/qwen2/configuration_qwen2.py."""

    vocab_size: int
    max_position_embeddings: int = 32768
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = 32
    head_dim: int | None = None
    intermediate_size: int
    hidden_act: str = "silu"
    rms_norm_eps: Epsilon = 1e-6
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    max_window_layers: int = 28
    tie_word_embeddings: bool = False


def dims(config: Mapping[str, Any]) -> Dims:
    """Sizes and facts of a Qwen2 config."""
    c = read_config(Qwen2Config, config)
    return Dims(
        sizes=sizes(c),
        facts={
            "activation": c.hidden_act,
            "norm_eps": c.rms_norm_eps,
            "sliding_window": c.sliding_window if c.use_sliding_window else None,
            "max_window_layers": c.max_window_layers,
            "tied": c.tie_word_embeddings,
            "name_or_path": c.name_or_path,
            **rope(config, base=10000.0),
            **c.start_and_end(),
        },
    )


QWEN2 = Architecture(
    name="qwen2",
    classes=("Qwen2ForCausalLM", "Qwen2Model"),
    model_types=("qwen2",),
    prefixes=("model.",),
    tensors=(
        *EMBEDDING,
        *ATTENTION_NORM,
        *attention(qkv_bias=""),
        *MLP_NORM,
        *gated_mlp(),
        *NORM_AND_HEAD,
    ),
    dims=dims,
    ignored=BUFFERS,
)
