"""GPT-NeoX: partial rotary embedding, q, k, v interleaved per head, parallel or sequential residual."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from llmcompile.architectures.spec import (
    Architecture,
    Dims,
    Epsilon,
    Fraction,
    HFConfig,
    Tensor,
    fraction,
    fused,
    linear,
    norm,
    per_head,
    read_config,
    rope,
)


class GPTNeoXConfig(HFConfig):
    """Source: huggingface/transformers@v4.57.6:src/transformers/models/gpt_neox/configuration_gpt_neox.py."""

    vocab_size: int
    max_position_embeddings: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    hidden_act: str = "gelu"
    rotary_pct: Fraction | None = None
    partial_rotary_factor: Fraction | None = None
    layer_norm_eps: Epsilon = 1e-5
    use_parallel_residual: bool = True
    attention_bias: bool = True
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = False


def dims(config: Mapping[str, Any]) -> Dims:
    """Sizes and facts of a GPT-NeoX config."""
    c = read_config(GPTNeoXConfig, config)
    head_dim = per_head(c.hidden_size, c.num_attention_heads)
    return Dims(
        sizes={
            "vocab": c.vocab_size,
            "positions": c.max_position_embeddings,
            "hidden": c.hidden_size,
            "layers": c.num_hidden_layers,
            "heads": c.num_attention_heads,
            "head_dim": head_dim,
            "ffn": c.intermediate_size,
        },
        facts={
            "activation": c.hidden_act,
            "norm_eps": c.layer_norm_eps,
            "rotary_dim": int(head_dim * _rotary_fraction(c, config)),
            "rotary_pct": _rotary_fraction(c, config),
            "parallel_residual": c.use_parallel_residual,
            "bias": c.attention_bias,
            "tied": c.tie_word_embeddings,
            "name_or_path": c.name_or_path,
            **rope(config, base=10000.0),
            **c.start_and_end(),
        },
    )


def _rotary_fraction(c: GPTNeoXConfig, config: Mapping[str, Any]) -> float:
    """Part of each head that is rotated; transformers 5 keeps it in rope_parameters."""
    if c.rotary_pct is not None:
        return c.rotary_pct
    parameters = config.get("rope_parameters")
    if isinstance(parameters, Mapping) and "partial_rotary_factor" in parameters:
        return fraction("rope_parameters.partial_rotary_factor", parameters["partial_rotary_factor"])
    return 0.25 if c.partial_rotary_factor is None else c.partial_rotary_factor


_LAYER = "layers.{layer}"

GPTNEOX = Architecture(
    name="gptneox",
    classes=("GPTNeoXForCausalLM",),
    model_types=("gpt_neox",),
    prefixes=("gpt_neox.",),
    tensors=(
        Tensor(("embed.tokens.weight",), "embed_in.weight", "vocab", "hidden"),
        *norm("attn.norm", f"{_LAYER}.input_layernorm"),
        *fused(("attn.q", "attn.k", "attn.v"), f"{_LAYER}.attention.query_key_value", "heads part head_dim", "hidden"),
        *linear("attn.o", f"{_LAYER}.attention.dense", "hidden", "heads head_dim"),
        *norm("mlp.norm", f"{_LAYER}.post_attention_layernorm"),
        *linear("mlp.up", f"{_LAYER}.mlp.dense_h_to_4h", "ffn", "hidden"),
        *linear("mlp.down", f"{_LAYER}.mlp.dense_4h_to_h", "hidden", "ffn"),
        *norm("norm", "final_layer_norm"),
        Tensor(("head.weight",), "embed_out.weight", "vocab", "hidden", tied_to="embed.tokens.weight"),
    ),
    dims=dims,
    ignored=MappingProxyType(
        {
            "layers.*.attention.bias": "causal mask, a buffer",
            "layers.*.attention.masked_bias": "mask value, a buffer",
            "layers.*.attention.rotary_emb.inv_freq": "recomputed from rotary_emb_base",
            "rotary_emb.inv_freq": "recomputed from rotary_emb_base",
        }
    ),
)
