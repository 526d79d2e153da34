"""BART and mBART: encoder and decoder with learned positions, two unused rows before them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from llmcompile.architectures.spec import (
    Architecture,
    Assumed,
    Dims,
    HFConfig,
    Tensor,
    linear,
    norm,
    per_head,
    read_config,
)
from llmcompile.errors import UnsupportedError


class BartConfig(HFConfig):
    """Source: huggingface/transformers@v4.57.6:src/transformers/models/bart/configuration_bart.py and mbart/..."""

    model_type: str = "bart"
    vocab_size: int
    max_position_embeddings: int = 1024
    d_model: int
    encoder_layers: int
    encoder_ffn_dim: int
    encoder_attention_heads: int
    decoder_layers: int
    decoder_ffn_dim: int
    decoder_attention_heads: int
    activation_function: str = "gelu"
    scale_embedding: bool = False
    pad_token_id: int | None = 1
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 2
    decoder_start_token_id: int | None = None
    tie_word_embeddings: bool = True


def dims(config: Mapping[str, Any]) -> Dims:
    """Sizes and facts of a BART or mBART config.

    Raises:
        UnsupportedError: The stacks differ in heads or in the width of their MLPs.
    """
    c = read_config(BartConfig, config)
    for key, encoder, decoder in (
        ("attention_heads", c.encoder_attention_heads, c.decoder_attention_heads),
        ("ffn_dim", c.encoder_ffn_dim, c.decoder_ffn_dim),
    ):
        if encoder != decoder:
            raise UnsupportedError(
                f"config.json: decoder_{key}",
                f"{decoder}, with encoder_{key} {encoder}",
                "the same in both stacks",
                "no release has stacks of different widths: check config.json",
            )
    is_mbart = c.model_type == "mbart"
    start = 2 if c.decoder_start_token_id is None and not is_mbart else c.decoder_start_token_id
    return Dims(
        sizes={
            "vocab": c.vocab_size,
            "positions": c.max_position_embeddings,
            "hidden": c.d_model,
            "layers": c.encoder_layers,
            "decoder_layers": c.decoder_layers,
            "heads": c.encoder_attention_heads,
            "head_dim": per_head(c.d_model, c.encoder_attention_heads),
            "ffn": c.encoder_ffn_dim,
        },
        facts={
            "model_type": c.model_type,
            "activation": c.activation_function,
            "norm_eps": 1e-5,
            "pre_norm": is_mbart,
            "final_norm": is_mbart,
            "scale_embedding": c.scale_embedding,
            "tied": c.tie_word_embeddings,
            "pad_id": c.pad_token_id,
            "decoder_start_id": start,
            "name_or_path": c.name_or_path,
            **c.start_and_end(),
        },
    )


def _attention(role: str, name: str, repeat: str) -> tuple[Tensor, ...]:
    return (
        *linear(f"{role}.q", f"{name}.q_proj", "heads head_dim", "hidden", repeat=repeat),
        *linear(f"{role}.k", f"{name}.k_proj", "heads head_dim", "hidden", repeat=repeat),
        *linear(f"{role}.v", f"{name}.v_proj", "heads head_dim", "hidden", repeat=repeat),
        *linear(f"{role}.o", f"{name}.out_proj", "hidden", "heads head_dim", repeat=repeat),
    )


def _stack(stack: str, repeat: str) -> tuple[Tensor, ...]:
    """Positions, self-attention and feed-forward of one stack."""
    layer = f"{stack}.layers.{{layer}}"
    return (
        Tensor(
            (f"{stack}.embed.positions.weight",),
            f"{stack}.embed_positions.weight",
            "positions",
            "hidden",
            skip_rows=2,
        ),
        *norm(f"{stack}.embed.norm", f"{stack}.layernorm_embedding"),
        *norm(f"{stack}.attn.norm", f"{layer}.self_attn_layer_norm", repeat=repeat),
        *_attention(f"{stack}.attn", f"{layer}.self_attn", repeat),
        *norm(f"{stack}.mlp.norm", f"{layer}.final_layer_norm", repeat=repeat),
        *linear(f"{stack}.mlp.up", f"{layer}.fc1", "ffn", "hidden", repeat=repeat),
        *linear(f"{stack}.mlp.down", f"{layer}.fc2", "hidden", "ffn", repeat=repeat),
        *norm(f"{stack}.norm", f"{stack}.layer_norm", when="final_norm"),
    )


_CROSS = "decoder.layers.{layer}.encoder_attn"

BART = Architecture(
    name="bart",
    classes=("BartForConditionalGeneration", "BartModel", "MBartForConditionalGeneration", "MBartModel"),
    model_types=("bart", "mbart"),
    prefixes=("model.",),
    tensors=(
        Tensor(
            ("embed.tokens.weight",),
            "shared.weight",
            "vocab",
            "hidden",
            legacy=("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"),
        ),
        *_stack("encoder", "layers"),
        *_stack("decoder", "decoder_layers"),
        *norm("decoder.cross.norm", f"{_CROSS}_layer_norm", repeat="decoder_layers"),
        *_attention("decoder.cross", _CROSS, "decoder_layers"),
        Tensor(("head.weight",), "lm_head.weight", "vocab", "hidden", tied_to="embed.tokens.weight"),
    ),
    dims=dims,
    ignored=MappingProxyType(
        {
            "encoder.embed_tokens.weight": "the shared embedding once more",
            "decoder.embed_tokens.weight": "the shared embedding once more",
            "encoder.version": "a marker of the training framework",
            "decoder.version": "a marker of the training framework",
            "final_logits_bias": "zeros, a buffer: no release trained it",
        }
    ),
    assumed=(
        Assumed(
            "final_logits_bias",
            "zeros, since the artifact has no bias behind the head",
            "this model trained it, and cannot be represented without it",
        ),
    ),
)
