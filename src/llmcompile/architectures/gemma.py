"""Gemma 1: norms that multiply by one plus their weight, an embedding scaled by the root of its size."""

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


class GemmaConfig(LlamaLikeConfig):
    """Source: huggingface/transformers@v4.57.6:src/transformers/models/gemma/configuration_gemma.py."""

    vocab_size: int
    max_position_embeddings: int = 8192
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int = 16
    head_dim: int = 256
    intermediate_size: int
    hidden_act: str = "gelu_pytorch_tanh"
    hidden_activation: str | None = None
    rms_norm_eps: Epsilon = 1e-6
    attention_bias: bool = False
    bos_token_id: int | None = 2
    eos_token_id: int | list[int] | None = 1
    tie_word_embeddings: bool = True


def dims(config: Mapping[str, Any]) -> Dims:
    """Sizes and facts of a Gemma config."""
    c = read_config(GemmaConfig, config)
    return Dims(
        sizes=sizes(c),
        facts={
            "activation": _activation(c),
            "norm_eps": c.rms_norm_eps,
            "attention_bias": c.attention_bias,
            "tied": c.tie_word_embeddings,
            "name_or_path": c.name_or_path,
            **rope(config, base=10000.0),
            **c.start_and_end(),
        },
    )


def _activation(c: GemmaConfig) -> str:
    """The activation the weights were trained with: the first releases say "gelu", and mean its tanh approximation.

    Source: huggingface/transformers#29402.
    """
    if c.hidden_activation is not None:
        return c.hidden_activation
    return "gelu_pytorch_tanh" if c.hidden_act == "gelu" else c.hidden_act


GEMMA = Architecture(
    name="gemma",
    classes=("GemmaForCausalLM", "GemmaModel"),
    model_types=("gemma",),
    prefixes=("model.",),
    tensors=(
        *EMBEDDING,
        *ATTENTION_NORM,
        *attention(qkv_bias="attention_bias", o_bias="attention_bias"),
        *MLP_NORM,
        *gated_mlp(),
        *NORM_AND_HEAD,
    ),
    dims=dims,
    ignored=BUFFERS,
)
