"""GPTBigCode (SantaCoder, StarCoder): one key and value head for all, or q, k, v interleaved per head."""

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


class GPTBigCodeConfig(HFConfig):
    """Source: huggingface/transformers@v4.57.6:src/transformers/models/gpt_bigcode/configuration_gpt_bigcode.py."""

    vocab_size: int
    n_positions: int = Field(validation_alias=alias("n_positions", "max_position_embeddings"))
    n_embd: int = Field(validation_alias=alias("n_embd", "hidden_size"))
    n_layer: int = Field(validation_alias=alias("n_layer", "num_hidden_layers"))
    n_head: int = Field(validation_alias=alias("n_head", "num_attention_heads"))
    n_inner: int | None = None
    activation_function: str = "gelu_pytorch_tanh"
    layer_norm_epsilon: Epsilon = 1e-5
    scale_attn_weights: bool = True
    multi_query: bool = True
    bos_token_id: int | None = 50256
    eos_token_id: int | list[int] | None = 50256
    tie_word_embeddings: bool = True


def dims(config: Mapping[str, Any]) -> Dims:
    """Sizes and facts of a GPTBigCode config."""
    c = read_config(GPTBigCodeConfig, config)
    return Dims(
        sizes={
            "vocab": c.vocab_size,
            "positions": c.n_positions,
            "hidden": c.n_embd,
            "layers": c.n_layer,
            "heads": c.n_head,
            "kv_heads": 1 if c.multi_query else c.n_head,
            "head_dim": per_head(c.n_embd, c.n_head),
            "ffn": 4 * c.n_embd if c.n_inner is None else c.n_inner,
        },
        facts={
            "activation": c.activation_function,
            "norm_eps": c.layer_norm_epsilon,
            "multi_query": c.multi_query,
            "scale_attn_weights": c.scale_attn_weights,
            "tied": c.tie_word_embeddings,
            "name_or_path": c.name_or_path,
            **c.start_and_end(),
        },
    )


_QKV = ("attn.q", "attn.k", "attn.v")
_LAYER = "h.{layer}"

GPT_BIGCODE = Architecture(
    name="gpt_bigcode",
    classes=("GPTBigCodeForCausalLM", "GPTBigCodeModel"),
    model_types=("gpt_bigcode",),
    prefixes=("transformer.",),
    tensors=(
        Tensor(("embed.tokens.weight",), "wte.weight", "vocab", "hidden"),
        Tensor(("embed.positions.weight",), "wpe.weight", "positions", "hidden"),
        *norm("attn.norm", f"{_LAYER}.ln_1"),
        *fused(_QKV, f"{_LAYER}.attn.c_attn", "heads+kv_heads+kv_heads head_dim", "hidden", when="multi_query"),
        *fused(_QKV, f"{_LAYER}.attn.c_attn", "heads part head_dim", "hidden", when="!multi_query"),
        *linear("attn.o", f"{_LAYER}.attn.c_proj", "hidden", "heads head_dim"),
        *norm("mlp.norm", f"{_LAYER}.ln_2"),
        *linear("mlp.up", f"{_LAYER}.mlp.c_fc", "ffn", "hidden"),
        *linear("mlp.down", f"{_LAYER}.mlp.c_proj", "hidden", "ffn"),
        *norm("norm", "ln_f"),
        Tensor(("head.weight",), "lm_head.weight", "vocab", "hidden", tied_to="embed.tokens.weight"),
    ),
    dims=dims,
    ignored=MappingProxyType(
        {
            "bias": "causal mask, a buffer",
            "h.*.attn.bias": "causal mask, a buffer",
            "h.*.attn.masked_bias": "mask value, a buffer",
        }
    ),
)
