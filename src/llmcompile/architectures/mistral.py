"""Mistral: LLaMA with grouped-query attention in a sliding window."""

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


class MistralConfig(LlamaLikeConfig):
    """Source: huggingface/transformers@v4.57.6:src/transformers/models/mistral/configuration_mistral.py."""

    vocab_size: int
    max_position_embeddings: int = 4096 * 32
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = 8
    head_dim: int | None = None
    intermediate_size: int
    hidden_act: str = "silu"
    rms_norm_eps: Epsilon = 1e-6
    sliding_window: int | None = 4096
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = False


def dims(config: Mapping[str, Any]) -> Dims:
    """Sizes and facts of a Mistral config."""
    c = read_config(MistralConfig, config)
    return Dims(
        sizes=sizes(c),
        facts={
            "activation": c.hidden_act,
            "norm_eps": c.rms_norm_eps,
            "sliding_window": c.sliding_window,
            "tied": c.tie_word_embeddings,
            "name_or_path": c.name_or_path,
            **rope(config, base=10000.0),
            **c.start_and_end(),
        },
    )


MISTRAL = Architecture(
    name="mistral",
    classes=("MistralForCausalLM", "MistralModel"),
    model_types=("mistral",),
    prefixes=("model.",),
    tensors=(
        *EMBEDDING,
        *ATTENTION_NORM,
        *attention(),
        *MLP_NORM,
        *gated_mlp(),
        *NORM_AND_HEAD,
    ),
    dims=dims,
    ignored=BUFFERS,
)
