"""Gemma 1: norms that multiply by one plus their weight, an embedding scaled by the root of its size."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from llmcompile.architectures.spec import (
    Architecture,
    Dims,
    Epsilon,
    HFConfig,
    Tensor,
    linear,
    norm,
    read_config,
    rope,
)


class GemmaConfig(HFConfig):
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
        sizes={
            "vocab": c.vocab_size,
            "positions": c.max_position_embeddings,
            "hidden": c.hidden_size,
            "layers": c.num_hidden_layers,
            "heads": c.num_attention_heads,
            "kv_heads": c.num_key_value_heads,
            "head_dim": c.head_dim,
            "ffn": c.intermediate_size,
        },
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


_LAYER = "layers.{layer}"

GEMMA = Architecture(
    name="gemma",
    classes=("GemmaForCausalLM", "GemmaModel"),
    model_types=("gemma",),
    prefixes=("model.",),
    tensors=(
        Tensor(("embed.tokens.weight",), "embed_tokens.weight", "vocab", "hidden"),
        *norm("attn.norm", f"{_LAYER}.input_layernorm", bias=False),
        *linear("attn.q", f"{_LAYER}.self_attn.q_proj", "heads head_dim", "hidden", bias_when="attention_bias"),
        *linear("attn.k", f"{_LAYER}.self_attn.k_proj", "kv_heads head_dim", "hidden", bias_when="attention_bias"),
        *linear("attn.v", f"{_LAYER}.self_attn.v_proj", "kv_heads head_dim", "hidden", bias_when="attention_bias"),
        *linear("attn.o", f"{_LAYER}.self_attn.o_proj", "hidden", "heads head_dim", bias_when="attention_bias"),
        *norm("mlp.norm", f"{_LAYER}.post_attention_layernorm", bias=False),
        *linear("mlp.gate", f"{_LAYER}.mlp.gate_proj", "ffn", "hidden", bias=False),
        *linear("mlp.up", f"{_LAYER}.mlp.up_proj", "ffn", "hidden", bias=False),
        *linear("mlp.down", f"{_LAYER}.mlp.down_proj", "hidden", "ffn", bias=False),
        *norm("norm", "norm", bias=False),
        Tensor(("head.weight",), "lm_head.weight", "vocab", "hidden", tied_to="embed.tokens.weight"),
    ),
    dims=dims,
    ignored=MappingProxyType({"layers.*.self_attn.rotary_emb.inv_freq": "recomputed from rope_theta"}),
)
