"""Qwen 1: q, k and v in one matrix with a bias, half of intermediate_size in each half of the feed-forward."""

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
    fused,
    linear,
    norm,
    read_config,
    rope,
)


class QwenConfig(HFConfig):
    """Source: the configuration_qwen.py that the checkpoints carry (huggingface.co/Qwen/Qwen-7B)."""

    vocab_size: int
    max_position_embeddings: int = 8192
    seq_length: int = 8192
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    kv_channels: int = 128
    intermediate_size: int
    layer_norm_epsilon: Epsilon = 1e-6
    rotary_pct: float = 1.0
    use_dynamic_ntk: bool = True
    use_logn_attn: bool = True
    no_bias: bool = True
    eos_token_id: int | list[int] | None = 151643
    tie_word_embeddings: bool = False


def dims(config: Mapping[str, Any]) -> Dims:
    """Sizes and facts of a Qwen 1 config."""
    c = read_config(QwenConfig, config)
    return Dims(
        sizes={
            "vocab": c.vocab_size,
            "positions": c.max_position_embeddings,
            "hidden": c.hidden_size,
            "layers": c.num_hidden_layers,
            "heads": c.num_attention_heads,
            "kv_heads": c.num_attention_heads,
            "head_dim": c.kv_channels,
            "ffn": c.intermediate_size // 2,
        },
        facts={
            "activation": "silu",
            "norm_eps": c.layer_norm_epsilon,
            "bias": not c.no_bias,
            "rotary_pct": c.rotary_pct,
            "seq_length": c.seq_length,
            "dynamic_ntk": c.use_dynamic_ntk,
            "logn_attention": c.use_logn_attn,
            "tied": c.tie_word_embeddings,
            "name_or_path": c.name_or_path,
            **rope(config, base=10000.0),
            **c.start_and_end(),
        },
    )


_LAYER = "h.{layer}"

QWEN = Architecture(
    name="qwen",
    classes=("QWenLMHeadModel",),
    model_types=("qwen",),
    prefixes=("transformer.",),
    tensors=(
        Tensor(("embed.tokens.weight",), "wte.weight", "vocab", "hidden"),
        *norm("attn.norm", f"{_LAYER}.ln_1", bias=False),
        *fused(("attn.q", "attn.k", "attn.v"), f"{_LAYER}.attn.c_attn", "part heads head_dim", "hidden"),
        *linear("attn.o", f"{_LAYER}.attn.c_proj", "hidden", "heads head_dim", bias_when="bias"),
        *norm("mlp.norm", f"{_LAYER}.ln_2", bias=False),
        *linear("mlp.up", f"{_LAYER}.mlp.w1", "ffn", "hidden", bias_when="bias"),
        *linear("mlp.gate", f"{_LAYER}.mlp.w2", "ffn", "hidden", bias_when="bias"),
        *linear("mlp.down", f"{_LAYER}.mlp.c_proj", "hidden", "ffn", bias_when="bias"),
        *norm("norm", "ln_f", bias=False),
        Tensor(("head.weight",), "lm_head.weight", "vocab", "hidden", tied_to="embed.tokens.weight"),
    ),
    dims=dims,
    ignored=MappingProxyType(
        {
            "rotary_emb.inv_freq": "recomputed from rotary_emb_base",
            "h.*.attn.rotary_emb.inv_freq": "recomputed from rotary_emb_base",
            "h.*.attn.masked_bias": "mask value, a buffer",
        }
    ),
)
