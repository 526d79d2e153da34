"""BLOOM: ALiBi, a LayerNorm after the embedding, q, k, v interleaved per head."""

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
)


class BloomConfig(HFConfig):
    """Source: huggingface/transformers@v4.57.6:src/transformers/models/bloom/configuration_bloom.py."""

    vocab_size: int
    hidden_size: int = Field(validation_alias=alias("hidden_size", "n_embed"))
    n_layer: int = Field(validation_alias=alias("n_layer", "num_hidden_layers"))
    n_head: int = Field(validation_alias=alias("n_head", "num_attention_heads"))
    layer_norm_epsilon: Epsilon = 1e-5
    apply_residual_connection_post_layernorm: bool = False
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = True


def dims(config: Mapping[str, Any]) -> Dims:
    """Sizes and facts of a BLOOM config."""
    c = read_config(BloomConfig, config)
    return Dims(
        sizes={
            "vocab": c.vocab_size,
            "hidden": c.hidden_size,
            "layers": c.n_layer,
            "heads": c.n_head,
            "head_dim": per_head(c.hidden_size, c.n_head),
            "ffn": 4 * c.hidden_size,
        },
        facts={
            "activation": "gelu_new",
            "norm_eps": c.layer_norm_epsilon,
            "residual_after_norm": c.apply_residual_connection_post_layernorm,
            "tied": c.tie_word_embeddings,
            "name_or_path": c.name_or_path,
            **c.start_and_end(),
        },
    )


BLOOM = Architecture(
    name="bloom",
    classes=("BloomForCausalLM", "BloomModel"),
    model_types=("bloom",),
    prefixes=("transformer.",),
    tensors=(
        Tensor(("embed.tokens.weight",), "word_embeddings.weight", "vocab", "hidden"),
        *norm("embed.norm", "word_embeddings_layernorm"),
        *norm("attn.norm", "h.{layer}.input_layernorm"),
        *fused(
            ("attn.q", "attn.k", "attn.v"),
            "h.{layer}.self_attention.query_key_value",
            "heads part head_dim",
            "hidden",
        ),
        *linear("attn.o", "h.{layer}.self_attention.dense", "hidden", "heads head_dim"),
        *norm("mlp.norm", "h.{layer}.post_attention_layernorm"),
        *linear("mlp.up", "h.{layer}.mlp.dense_h_to_4h", "ffn", "hidden"),
        *linear("mlp.down", "h.{layer}.mlp.dense_4h_to_h", "hidden", "ffn"),
        *norm("norm", "ln_f"),
        Tensor(("head.weight",), "lm_head.weight", "vocab", "hidden", tied_to="embed.tokens.weight"),
    ),
    dims=dims,
    ignored=MappingProxyType({}),
)
