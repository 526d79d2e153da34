"""Gemma 2: Gemma with norms before and after each block, soft-capped logits, every other layer in a window."""

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


class Gemma2Config(HFConfig):
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


_LAYER = "layers.{layer}"

GEMMA2 = Architecture(
    name="gemma2",
    classes=("Gemma2ForCausalLM", "Gemma2Model"),
    model_types=("gemma2",),
    prefixes=("model.",),
    tensors=(
        Tensor(("embed.tokens.weight",), "embed_tokens.weight", "vocab", "hidden"),
        *norm("attn.norm", f"{_LAYER}.input_layernorm", bias=False),
        *linear("attn.q", f"{_LAYER}.self_attn.q_proj", "heads head_dim", "hidden", bias_when="attention_bias"),
        *linear("attn.k", f"{_LAYER}.self_attn.k_proj", "kv_heads head_dim", "hidden", bias_when="attention_bias"),
        *linear("attn.v", f"{_LAYER}.self_attn.v_proj", "kv_heads head_dim", "hidden", bias_when="attention_bias"),
        *linear("attn.o", f"{_LAYER}.self_attn.o_proj", "hidden", "heads head_dim", bias_when="attention_bias"),
        *norm("attn.post_norm", f"{_LAYER}.post_attention_layernorm", bias=False),
        *norm("mlp.norm", f"{_LAYER}.pre_feedforward_layernorm", bias=False),
        *linear("mlp.gate", f"{_LAYER}.mlp.gate_proj", "ffn", "hidden", bias=False),
        *linear("mlp.up", f"{_LAYER}.mlp.up_proj", "ffn", "hidden", bias=False),
        *linear("mlp.down", f"{_LAYER}.mlp.down_proj", "hidden", "ffn", bias=False),
        *norm("mlp.post_norm", f"{_LAYER}.post_feedforward_layernorm", bias=False),
        *norm("norm", "norm", bias=False),
        Tensor(("head.weight",), "lm_head.weight", "vocab", "hidden", tied_to="embed.tokens.weight"),
    ),
    dims=dims,
    ignored=MappingProxyType({"layers.*.self_attn.rotary_emb.inv_freq": "recomputed from rope_theta"}),
)
