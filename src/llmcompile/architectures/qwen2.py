"""Qwen 1.5, 2 and 2.5: LLaMA with biases on q, k and v."""

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
    per_head,
    read_config,
    rope,
)


class Qwen2Config(HFConfig):
    """Source: huggingface/transformers@v4.57.6:src/transformers/models/qwen2/configuration_qwen2.py."""

    vocab_size: int
    max_position_embeddings: int = 32768
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = 32
    head_dim: int | None = None
    intermediate_size: int
    hidden_act: str = "silu"
    rms_norm_eps: Epsilon = 1e-6
    use_sliding_window: bool = False
    sliding_window: int | None = 4096
    max_window_layers: int = 28
    tie_word_embeddings: bool = False


def dims(config: Mapping[str, Any]) -> Dims:
    """Sizes and facts of a Qwen2 config."""
    c = read_config(Qwen2Config, config)
    heads = c.num_attention_heads
    return Dims(
        sizes={
            "vocab": c.vocab_size,
            "positions": c.max_position_embeddings,
            "hidden": c.hidden_size,
            "layers": c.num_hidden_layers,
            "heads": heads,
            "kv_heads": heads if c.num_key_value_heads is None else c.num_key_value_heads,
            "head_dim": per_head(c.hidden_size, heads) if c.head_dim is None else c.head_dim,
            "ffn": c.intermediate_size,
        },
        facts={
            "activation": c.hidden_act,
            "norm_eps": c.rms_norm_eps,
            "sliding_window": c.sliding_window if c.use_sliding_window else None,
            "max_window_layers": c.max_window_layers,
            "tied": c.tie_word_embeddings,
            "name_or_path": c.name_or_path,
            **rope(config, base=10000.0),
            **c.start_and_end(),
        },
    )


_LAYER = "layers.{layer}"

QWEN2 = Architecture(
    name="qwen2",
    classes=("Qwen2ForCausalLM", "Qwen2Model"),
    model_types=("qwen2",),
    prefixes=("model.",),
    tensors=(
        Tensor(("embed.tokens.weight",), "embed_tokens.weight", "vocab", "hidden"),
        *norm("attn.norm", f"{_LAYER}.input_layernorm", bias=False),
        *linear("attn.q", f"{_LAYER}.self_attn.q_proj", "heads head_dim", "hidden"),
        *linear("attn.k", f"{_LAYER}.self_attn.k_proj", "kv_heads head_dim", "hidden"),
        *linear("attn.v", f"{_LAYER}.self_attn.v_proj", "kv_heads head_dim", "hidden"),
        *linear("attn.o", f"{_LAYER}.self_attn.o_proj", "hidden", "heads head_dim", bias=False),
        *norm("mlp.norm", f"{_LAYER}.post_attention_layernorm", bias=False),
        *linear("mlp.gate", f"{_LAYER}.mlp.gate_proj", "ffn", "hidden", bias=False),
        *linear("mlp.up", f"{_LAYER}.mlp.up_proj", "ffn", "hidden", bias=False),
        *linear("mlp.down", f"{_LAYER}.mlp.down_proj", "hidden", "ffn", bias=False),
        *norm("norm", "norm", bias=False),
        Tensor(("head.weight",), "lm_head.weight", "vocab", "hidden", tied_to="embed.tokens.weight"),
    ),
    dims=dims,
    ignored=MappingProxyType({"layers.*.self_attn.rotary_emb.inv_freq": "recomputed from rope_theta"}),
)
