"""T5, T5 v1.1, FLAN-T5, UL2 and mT5: encoder and decoder with relative position biases."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from llmcompile.architectures.spec import Architecture, Dims, Epsilon, HFConfig, Tensor, linear, norm, read_config


class T5Config(HFConfig):
    """Source: huggingface/transformers@v4.57.6:src/transformers/models/t5/configuration_t5.py and mt5/..."""

    model_type: str = "t5"
    vocab_size: int
    n_positions: int = 512
    d_model: int
    d_kv: int = 64
    d_ff: int
    num_layers: int
    num_decoder_layers: int | None = None
    num_heads: int
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: Epsilon = 1e-6
    feed_forward_proj: str | None = None
    pad_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 1
    decoder_start_token_id: int | None = None
    tie_word_embeddings: bool | None = None


def dims(config: Mapping[str, Any]) -> Dims:
    """Sizes and facts of a T5 or mT5 config."""
    c = read_config(T5Config, config)
    is_mt5 = c.model_type == "mt5"
    feed_forward = ("gated-gelu" if is_mt5 else "relu") if c.feed_forward_proj is None else c.feed_forward_proj
    start = 0 if is_mt5 and c.decoder_start_token_id is None else c.decoder_start_token_id
    names = config.get("architectures")
    encoder_class = isinstance(names, list) and len(names) > 0 and str(names[0]).endswith("EncoderModel")
    return Dims(
        sizes={
            "vocab": c.vocab_size,
            "positions": c.n_positions,
            "hidden": c.d_model,
            "layers": c.num_layers,
            "decoder_layers": c.num_layers if c.num_decoder_layers is None else c.num_decoder_layers,
            "heads": c.num_heads,
            "head_dim": c.d_kv,
            "ffn": c.d_ff,
            "buckets": c.relative_attention_num_buckets,
        },
        facts={
            "feed_forward_proj": feed_forward,
            "gated": feed_forward.startswith("gated-"),
            "norm_eps": c.layer_norm_epsilon,
            "max_distance": c.relative_attention_max_distance,
            "tied": (not is_mt5) if c.tie_word_embeddings is None else c.tie_word_embeddings,
            "has_decoder": not encoder_class,
            "pad_id": c.pad_token_id,
            **c.start_and_end(),
            "decoder_start_id": c.pad_token_id if start is None else start,
            "name_or_path": c.name_or_path,
        },
    )


def _block(stack: str, repeat: str, mlp: int) -> tuple[Tensor, ...]:
    """Self-attention and feed-forward of one stack; `mlp` is the feed-forward's number among the block's layers."""
    block = f"{stack}.block.{{layer}}.layer"
    attention, dense = f"{block}.0.SelfAttention", f"{block}.{mlp}.DenseReluDense"
    return (
        *norm(f"{stack}.attn.norm", f"{block}.0.layer_norm", bias=False, repeat=repeat),
        *_attention(f"{stack}.attn", attention, repeat),
        Tensor(
            (f"{stack}.attn.relative.weight",),
            f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            "heads",
            "buckets",
            in_first=True,
        ),
        *norm(f"{stack}.mlp.norm", f"{block}.{mlp}.layer_norm", bias=False, repeat=repeat),
        *linear(f"{stack}.mlp.up", f"{dense}.wi", "ffn", "hidden", bias=False, repeat=repeat, when="!gated"),
        *linear(f"{stack}.mlp.gate", f"{dense}.wi_0", "ffn", "hidden", bias=False, repeat=repeat, when="gated"),
        *linear(f"{stack}.mlp.up", f"{dense}.wi_1", "ffn", "hidden", bias=False, repeat=repeat, when="gated"),
        *linear(f"{stack}.mlp.down", f"{dense}.wo", "hidden", "ffn", bias=False, repeat=repeat),
        *norm(f"{stack}.norm", f"{stack}.final_layer_norm", bias=False),
    )


def _attention(role: str, name: str, repeat: str) -> tuple[Tensor, ...]:
    return (
        *linear(f"{role}.q", f"{name}.q", "heads head_dim", "hidden", bias=False, repeat=repeat),
        *linear(f"{role}.k", f"{name}.k", "heads head_dim", "hidden", bias=False, repeat=repeat),
        *linear(f"{role}.v", f"{name}.v", "heads head_dim", "hidden", bias=False, repeat=repeat),
        *linear(f"{role}.o", f"{name}.o", "hidden", "heads head_dim", bias=False, repeat=repeat),
    )


_CROSS = "decoder.block.{layer}.layer.1"

T5 = Architecture(
    name="t5",
    classes=(
        "T5ForConditionalGeneration",
        "T5WithLMHeadModel",
        "T5EncoderModel",
        "T5Model",
        "MT5ForConditionalGeneration",
        "MT5EncoderModel",
        "MT5Model",
    ),
    model_types=("t5", "mt5"),
    prefixes=(),
    tensors=(
        Tensor(
            ("embed.tokens.weight",),
            "shared.weight",
            "vocab",
            "hidden",
            legacy=("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"),
        ),
        *_block("encoder", "layers", mlp=1),
        *_block("decoder", "decoder_layers", mlp=2),
        *norm("decoder.cross.norm", f"{_CROSS}.layer_norm", bias=False, repeat="decoder_layers"),
        *_attention("decoder.cross", f"{_CROSS}.EncDecAttention", "decoder_layers"),
        Tensor(("head.weight",), "lm_head.weight", "vocab", "hidden", tied_to="embed.tokens.weight"),
    ),
    dims=dims,
    ignored=MappingProxyType(
        {
            "encoder.embed_tokens.weight": "the shared embedding once more",
            "decoder.embed_tokens.weight": "the shared embedding once more",
            "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": "unused by every T5 release",
        }
    ),
)
