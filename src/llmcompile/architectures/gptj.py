"""GPT-J: parallel attention and MLP after one LayerNorm, interleaved rotary embedding, a head with bias."""

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
    linear,
    norm,
    per_head,
    read_config,
)


class GPTJConfig(HFConfig):
    """Source: huggingface/transformers@v4.57.6:src/transformers/models/gptj/configuration_gptj.py."""

    vocab_size: int
    n_positions: int = Field(validation_alias=alias("n_positions", "max_position_embeddings"))
    n_embd: int = Field(validation_alias=alias("n_embd", "hidden_size"))
    n_layer: int = Field(validation_alias=alias("n_layer", "num_hidden_layers"))
    n_head: int = Field(validation_alias=alias("n_head", "num_attention_heads"))
    n_inner: int | None = None
    rotary_dim: int | None = 64
    activation_function: str = "gelu_new"
    layer_norm_epsilon: Epsilon = 1e-5
    bos_token_id: int | None = 50256
    eos_token_id: int | list[int] | None = 50256
    tie_word_embeddings: bool = False


def dims(config: Mapping[str, Any]) -> Dims:
    """Sizes and facts of a GPT-J config."""
    c = read_config(GPTJConfig, config)
    head_dim = per_head(c.n_embd, c.n_head)
    return Dims(
        sizes={
            "vocab": c.vocab_size,
            "positions": c.n_positions,
            "hidden": c.n_embd,
            "layers": c.n_layer,
            "heads": c.n_head,
            "head_dim": head_dim,
            "ffn": 4 * c.n_embd if c.n_inner is None else c.n_inner,
        },
        facts={
            "activation": c.activation_function,
            "norm_eps": c.layer_norm_epsilon,
            "rotary_dim": head_dim if c.rotary_dim is None else c.rotary_dim,
            "rotary_dim_given": c.rotary_dim is not None,
            "rotary_base": 10000.0,
            "tied": c.tie_word_embeddings,
            "name_or_path": c.name_or_path,
            **c.start_and_end(),
        },
    )


GPTJ = Architecture(
    name="gptj",
    classes=("GPTJForCausalLM",),
    model_types=("gptj",),
    prefixes=("transformer.",),
    tensors=(
        Tensor(("embed.tokens.weight",), "wte.weight", "vocab", "hidden"),
        *norm("attn.norm", "h.{layer}.ln_1"),
        *linear("attn.q", "h.{layer}.attn.q_proj", "heads head_dim", "hidden", bias=False),
        *linear("attn.k", "h.{layer}.attn.k_proj", "heads head_dim", "hidden", bias=False),
        *linear("attn.v", "h.{layer}.attn.v_proj", "heads head_dim", "hidden", bias=False),
        *linear("attn.o", "h.{layer}.attn.out_proj", "hidden", "heads head_dim", bias=False),
        *linear("mlp.up", "h.{layer}.mlp.fc_in", "ffn", "hidden"),
        *linear("mlp.down", "h.{layer}.mlp.fc_out", "hidden", "ffn"),
        *norm("norm", "ln_f"),
        Tensor(("head.weight",), "lm_head.weight", "vocab", "hidden", tied_to="embed.tokens.weight"),
        Tensor(("head.bias",), "lm_head.bias", "vocab"),
    ),
    dims=dims,
    ignored=MappingProxyType(
        {
            "h.*.attn.bias": "causal mask, a buffer",
            "h.*.attn.masked_bias": "mask value, a buffer",
            "h.*.attn.embed_positions": "rotary table, recomputed",
        }
    ),
)
