"""GPT-2: Conv1D weights stored (in, out), fused q, k, v."""

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


class GPT2Config(HFConfig):
    """Source: huggingface/transformers@v4.57.6:src/transformers/models/gpt2/configuration_gpt2.py."""

    vocab_size: int
    n_positions: int = Field(validation_alias=alias("n_positions", "max_position_embeddings"))
    n_embd: int = Field(validation_alias=alias("n_embd", "hidden_size"))
    n_layer: int = Field(validation_alias=alias("n_layer", "num_hidden_layers"))
    n_head: int = Field(validation_alias=alias("n_head", "num_attention_heads"))
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    layer_norm_epsilon: Epsilon = 1e-5
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    bos_token_id: int | None = 50256
    eos_token_id: int | list[int] | None = 50256
    tie_word_embeddings: bool = True


def dims(config: Mapping[str, Any]) -> Dims:
    """Sizes and facts of a GPT-2 config."""
    c = read_config(GPT2Config, config)
    return Dims(
        sizes={
            "vocab": c.vocab_size,
            "positions": c.n_positions,
            "hidden": c.n_embd,
            "layers": c.n_layer,
            "heads": c.n_head,
            "head_dim": per_head(c.n_embd, c.n_head),
            "ffn": 4 * c.n_embd if c.n_inner is None else c.n_inner,
        },
        facts={
            "activation": c.activation_function,
            "norm_eps": c.layer_norm_epsilon,
            "tied": c.tie_word_embeddings,
            "scale_attn_weights": c.scale_attn_weights,
            "scale_attn_by_inverse_layer_idx": c.scale_attn_by_inverse_layer_idx,
            "name_or_path": c.name_or_path,
            **c.start_and_end(),
        },
    )


GPT2 = Architecture(
    name="gpt2",
    classes=("GPT2LMHeadModel", "GPT2Model"),
    model_types=("gpt2",),
    prefixes=("transformer.",),
    tensors=(
        Tensor(("embed.tokens.weight",), "wte.weight", "vocab", "hidden"),
        Tensor(("embed.positions.weight",), "wpe.weight", "positions", "hidden"),
        *norm("attn.norm", "h.{layer}.ln_1"),
        *fused(("attn.q", "attn.k", "attn.v"), "h.{layer}.attn.c_attn", "part heads head_dim", "hidden", in_first=True),
        *linear("attn.o", "h.{layer}.attn.c_proj", "hidden", "heads head_dim", in_first=True),
        *norm("mlp.norm", "h.{layer}.ln_2"),
        *linear("mlp.up", "h.{layer}.mlp.c_fc", "ffn", "hidden", in_first=True),
        *linear("mlp.down", "h.{layer}.mlp.c_proj", "hidden", "ffn", in_first=True),
        *norm("norm", "ln_f"),
        Tensor(("head.weight",), "lm_head.weight", "vocab", "hidden", tied_to="embed.tokens.weight"),
    ),
    dims=dims,
    ignored=MappingProxyType(
        {
            "h.*.attn.bias": "causal mask, a buffer",
            "h.*.attn.masked_bias": "mask value, a buffer",
        }
    ),
)
