"""Phi 1, 1.5 and 2: one norm before attention and feed-forward side by side, partial rotary embedding."""

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
    linear,
    norm,
    per_head,
    read_config,
    rope,
)


class PhiConfig(HFConfig):
    """Source: huggingface/transformers@v4.57.6:src/transformers/models/phi/configuration_phi.py."""

    vocab_size: int
    max_position_embeddings: int = 2048
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    intermediate_size: int
    hidden_act: str = "gelu_new"
    layer_norm_eps: Epsilon = 1e-5
    partial_rotary_factor: Fraction = 0.5
    qk_layernorm: bool = False
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = False


def dims(config: Mapping[str, Any]) -> Dims:
    """Sizes and facts of a Phi config."""
    c = read_config(PhiConfig, config)
    heads = c.num_attention_heads
    return Dims(
        sizes={
            "vocab": c.vocab_size,
            "positions": c.max_position_embeddings,
            "hidden": c.hidden_size,
            "layers": c.num_hidden_layers,
            "heads": heads,
            "kv_heads": heads if c.num_key_value_heads is None else c.num_key_value_heads,
            "head_dim": per_head(c.hidden_size, heads),
            "ffn": c.intermediate_size,
        },
        facts={
            "activation": c.hidden_act,
            "norm_eps": c.layer_norm_eps,
            "rotary_pct": rotary_fraction(c.partial_rotary_factor, config),
            "qk_norm": c.qk_layernorm,
            "tied": c.tie_word_embeddings,
            "name_or_path": c.name_or_path,
            **rope(config, base=10000.0),
            **c.start_and_end(),
        },
    )


def rotary_fraction(given: float, config: Mapping[str, Any]) -> float:
    """Part of each head that is rotated; transformers 5 keeps it in rope_parameters.

    Raises:
        CheckpointError: It is not a number.
    """
    parameters = config.get("rope_parameters")
    if isinstance(parameters, Mapping) and "partial_rotary_factor" in parameters:
        return fraction("rope_parameters.partial_rotary_factor", parameters["partial_rotary_factor"])
    return given


_LAYER = "layers.{layer}"

PHI = Architecture(
    name="phi",
    classes=("PhiForCausalLM", "PhiModel"),
    model_types=("phi",),
    prefixes=("model.",),
    tensors=(
        Tensor(("embed.tokens.weight",), "embed_tokens.weight", "vocab", "hidden"),
        *norm("attn.norm", f"{_LAYER}.input_layernorm"),
        *linear("attn.q", f"{_LAYER}.self_attn.q_proj", "heads head_dim", "hidden"),
        *linear("attn.k", f"{_LAYER}.self_attn.k_proj", "kv_heads head_dim", "hidden"),
        *linear("attn.v", f"{_LAYER}.self_attn.v_proj", "kv_heads head_dim", "hidden"),
        *linear("attn.o", f"{_LAYER}.self_attn.dense", "hidden", "heads head_dim"),
        *linear("mlp.up", f"{_LAYER}.mlp.fc1", "ffn", "hidden"),
        *linear("mlp.down", f"{_LAYER}.mlp.fc2", "hidden", "ffn"),
        *norm("norm", "final_layernorm"),
        Tensor(("head.weight",), "lm_head.weight", "vocab", "hidden", tied_to="embed.tokens.weight"),
        Tensor(("head.bias",), "lm_head.bias", "vocab"),
    ),
    dims=dims,
    ignored=MappingProxyType({"layers.*.self_attn.rotary_emb.inv_freq": "recomputed from rope_theta"}),
)
