"""OPT: two padding rows before the positions, embeddings of another width in OPT-350m."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from pydantic import Field

from llmcompile.architectures.spec import (
    Architecture,
    Dims,
    HFConfig,
    Tensor,
    linear,
    norm,
    per_head,
    read_config,
)


class OPTConfig(HFConfig):
    """Source: huggingface/transformers@v4.57.6:src/transformers/models/opt/configuration_opt.py."""

    vocab_size: int
    max_position_embeddings: int
    hidden_size: int
    word_embed_proj_dim: int | None = None
    num_hidden_layers: int
    num_attention_heads: int
    ffn_dim: int
    activation_function: str = "relu"
    do_layer_norm_before: bool = True
    remove_final_layer_norm: bool = Field(False, validation_alias="_remove_final_layer_norm")
    enable_bias: bool = True
    layer_norm_elementwise_affine: bool = True
    bos_token_id: int | None = 2
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = True


def dims(config: Mapping[str, Any]) -> Dims:
    """Sizes and facts of an OPT config."""
    c = read_config(OPTConfig, config)
    width = c.hidden_size if c.word_embed_proj_dim is None else c.word_embed_proj_dim
    return Dims(
        sizes={
            "vocab": c.vocab_size,
            "positions": c.max_position_embeddings,
            "width": width,
            "hidden": c.hidden_size,
            "layers": c.num_hidden_layers,
            "heads": c.num_attention_heads,
            "head_dim": per_head(c.hidden_size, c.num_attention_heads),
            "ffn": c.ffn_dim,
        },
        facts={
            "activation": c.activation_function,
            "norm_eps": 1e-5,
            "pre_norm": c.do_layer_norm_before,
            "final_norm": c.do_layer_norm_before and not c.remove_final_layer_norm,
            "projected": width != c.hidden_size,
            "bias": c.enable_bias,
            "affine_norms": c.layer_norm_elementwise_affine,
            "tied": c.tie_word_embeddings,
            "name_or_path": c.name_or_path,
            **c.start_and_end(),
        },
    )


_LAYER = "layers.{layer}"

OPT = Architecture(
    name="opt",
    classes=("OPTForCausalLM", "OPTModel"),
    model_types=("opt",),
    prefixes=("model.decoder.", "decoder.", "model."),
    tensors=(
        Tensor(("embed.tokens.weight",), "embed_tokens.weight", "vocab", "width"),
        Tensor(("embed.positions.weight",), "embed_positions.weight", "positions", "hidden", skip_rows=2),
        *linear("embed.project_in", "project_in", "hidden", "width", bias=False, when="projected"),
        *linear("embed.project_out", "project_out", "width", "hidden", bias=False, when="projected"),
        *norm("attn.norm", f"{_LAYER}.self_attn_layer_norm", when="affine_norms"),
        *linear("attn.q", f"{_LAYER}.self_attn.q_proj", "heads head_dim", "hidden"),
        *linear("attn.k", f"{_LAYER}.self_attn.k_proj", "heads head_dim", "hidden"),
        *linear("attn.v", f"{_LAYER}.self_attn.v_proj", "heads head_dim", "hidden"),
        *linear("attn.o", f"{_LAYER}.self_attn.out_proj", "hidden", "heads head_dim"),
        *norm("mlp.norm", f"{_LAYER}.final_layer_norm", when="affine_norms"),
        *linear("mlp.up", f"{_LAYER}.fc1", "ffn", "hidden"),
        *linear("mlp.down", f"{_LAYER}.fc2", "hidden", "ffn"),
        *norm("norm", "final_layer_norm", when="final_norm"),
        Tensor(("head.weight",), "lm_head.weight", "vocab", "width", tied_to="embed.tokens.weight"),
    ),
    dims=dims,
    ignored=MappingProxyType({"version": "a marker of the training framework"}),
)
