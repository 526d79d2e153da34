"""Phi 3, 3.5 and 4: LLaMA with q, k, v in one matrix, gate and up in another, and LongRoPE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmcompile.architectures.llama_like import (
    ATTENTION_NORM,
    BUFFERS,
    EMBEDDING,
    LAYER,
    MLP_NORM,
    NORM_AND_HEAD,
)
from llmcompile.architectures.phi import rotary_fraction
from llmcompile.architectures.spec import (
    Architecture,
    Dims,
    Epsilon,
    Fraction,
    HFConfig,
    fused,
    linear,
    per_head,
    read_config,
    rope,
)


class Phi3Config(HFConfig):
    """Source: huggingface/transformers@v4.57.6:src/transformers/models/phi3/configuration_phi3.py."""

    vocab_size: int
    max_position_embeddings: int = 4096
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    intermediate_size: int
    original_max_position_embeddings: int = 4096
    hidden_act: str = "silu"
    rms_norm_eps: Epsilon = 1e-5
    partial_rotary_factor: Fraction = 1.0
    sliding_window: int | None = None
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 32000
    tie_word_embeddings: bool = False


def dims(config: Mapping[str, Any]) -> Dims:
    """Sizes and facts of a Phi-3 config."""
    c = read_config(Phi3Config, config)
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
            "norm_eps": c.rms_norm_eps,
            "rotary_pct": rotary_fraction(c.partial_rotary_factor, config),
            "original_positions": c.original_max_position_embeddings,
            "sliding_window": c.sliding_window,
            "tied": c.tie_word_embeddings,
            "name_or_path": c.name_or_path,
            **rope(config, base=10000.0),
            **c.start_and_end(),
        },
    )


PHI3 = Architecture(
    name="phi3",
    classes=("Phi3ForCausalLM", "Phi3Model"),
    model_types=("phi3",),
    prefixes=("model.",),
    tensors=(
        *EMBEDDING,
        *ATTENTION_NORM,
        *fused(
            ("attn.q", "attn.k", "attn.v"),
            f"{LAYER}.self_attn.qkv_proj",
            "heads+kv_heads+kv_heads head_dim",
            "hidden",
            bias=False,
        ),
        *linear("attn.o", f"{LAYER}.self_attn.o_proj", "hidden", "heads head_dim", bias=False),
        *MLP_NORM,
        *fused(("mlp.gate", "mlp.up"), f"{LAYER}.mlp.gate_up_proj", "part ffn", "hidden", bias=False),
        *linear("mlp.down", f"{LAYER}.mlp.down_proj", "hidden", "ffn", bias=False),
        *NORM_AND_HEAD,
    ),
    dims=dims,
    ignored=BUFFERS,
)
