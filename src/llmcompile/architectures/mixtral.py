"""Mixtral: Mistral whose feed-forward is a mixture of experts, the weights of the chosen ones normalised."""

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
    chosen,
    linear,
    norm,
    per_head,
    read_config,
    rope,
)


class MixtralConfig(HFConfig):
    """Source: huggingface/transformers@v4.57.6:src/transformers/models/mixtral/configuration_mixtral.py."""

    vocab_size: int
    max_position_embeddings: int = 4096 * 32
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = 8
    head_dim: int | None = None
    intermediate_size: int
    num_local_experts: int = 8
    num_experts_per_tok: int = 2
    hidden_act: str = "silu"
    rms_norm_eps: Epsilon = 1e-5
    sliding_window: int | None = None
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = False


def dims(config: Mapping[str, Any]) -> Dims:
    """Sizes and facts of a Mixtral config."""
    c = read_config(MixtralConfig, config)
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
            "experts": c.num_local_experts,
        },
        facts={
            "activation": c.hidden_act,
            "norm_eps": c.rms_norm_eps,
            "experts_per_token": chosen(c.num_experts_per_tok, c.num_local_experts),
            "sliding_window": c.sliding_window,
            "tied": c.tie_word_embeddings,
            "name_or_path": c.name_or_path,
            **rope(config, base=1e6),
            **c.start_and_end(),
        },
    )


_LAYER = "layers.{layer}"
_EXPERT = f"{_LAYER}.block_sparse_moe.experts.{{expert}}"

MIXTRAL = Architecture(
    name="mixtral",
    classes=("MixtralForCausalLM", "MixtralModel"),
    model_types=("mixtral",),
    prefixes=("model.",),
    tensors=(
        Tensor(("embed.tokens.weight",), "embed_tokens.weight", "vocab", "hidden"),
        *norm("attn.norm", f"{_LAYER}.input_layernorm", bias=False),
        *linear("attn.q", f"{_LAYER}.self_attn.q_proj", "heads head_dim", "hidden", bias=False),
        *linear("attn.k", f"{_LAYER}.self_attn.k_proj", "kv_heads head_dim", "hidden", bias=False),
        *linear("attn.v", f"{_LAYER}.self_attn.v_proj", "kv_heads head_dim", "hidden", bias=False),
        *linear("attn.o", f"{_LAYER}.self_attn.o_proj", "hidden", "heads head_dim", bias=False),
        *norm("mlp.norm", f"{_LAYER}.post_attention_layernorm", bias=False),
        *linear("router", f"{_LAYER}.block_sparse_moe.gate", "experts", "hidden", bias=False),
        *linear("experts.gate", f"{_EXPERT}.w1", "ffn", "hidden", bias=False),
        *linear("experts.up", f"{_EXPERT}.w3", "ffn", "hidden", bias=False),
        *linear("experts.down", f"{_EXPERT}.w2", "hidden", "ffn", bias=False),
        *norm("norm", "norm", bias=False),
        Tensor(("head.weight",), "lm_head.weight", "vocab", "hidden", tied_to="embed.tokens.weight"),
    ),
    dims=dims,
    ignored=MappingProxyType({"layers.*.self_attn.rotary_emb.inv_freq": "recomputed from rope_theta"}),
)
