"""StarCoder2: rotary embedding, grouped-query attention, LayerNorms and an MLP without gate, all with biases."""

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


class Starcoder2Config(HFConfig):
    """Source: huggingface/transformers@v4.57.6:src/transformers/models/starcoder2/configuration_starcoder2.py."""

    vocab_size: int
    max_position_embeddings: int = 4096
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int = 2
    head_dim: int | None = None
    intermediate_size: int
    hidden_act: str = "gelu_pytorch_tanh"
    norm_epsilon: Epsilon = 1e-5
    use_bias: bool = True
    sliding_window: int | None = None
    bos_token_id: int | None = 50256
    eos_token_id: int | list[int] | None = 50256
    tie_word_embeddings: bool = True


def dims(config: Mapping[str, Any]) -> Dims:
    """Sizes and facts of a StarCoder2 config."""
    c = read_config(Starcoder2Config, config)
    heads = c.num_attention_heads
    return Dims(
        sizes={
            "vocab": c.vocab_size,
            "positions": c.max_position_embeddings,
            "hidden": c.hidden_size,
            "layers": c.num_hidden_layers,
            "heads": heads,
            "kv_heads": c.num_key_value_heads,
            "head_dim": per_head(c.hidden_size, heads) if c.head_dim is None else c.head_dim,
            "ffn": c.intermediate_size,
        },
        facts={
            "activation": c.hidden_act,
            "norm_eps": c.norm_epsilon,
            "bias": c.use_bias,
            "sliding_window": c.sliding_window,
            "tied": c.tie_word_embeddings,
            "name_or_path": c.name_or_path,
            **rope(config, base=10000.0),
            **c.start_and_end(),
        },
    )


_LAYER = "layers.{layer}"
_ATTENTION = f"{_LAYER}.self_attn"

STARCODER2 = Architecture(
    name="starcoder2",
    classes=("Starcoder2ForCausalLM", "Starcoder2Model"),
    model_types=("starcoder2",),
    prefixes=("model.",),
    tensors=(
        Tensor(("embed.tokens.weight",), "embed_tokens.weight", "vocab", "hidden"),
        *norm("attn.norm", f"{_LAYER}.input_layernorm"),
        *linear("attn.q", f"{_ATTENTION}.q_proj", "heads head_dim", "hidden", bias_when="bias"),
        *linear("attn.k", f"{_ATTENTION}.k_proj", "kv_heads head_dim", "hidden", bias_when="bias"),
        *linear("attn.v", f"{_ATTENTION}.v_proj", "kv_heads head_dim", "hidden", bias_when="bias"),
        *linear("attn.o", f"{_ATTENTION}.o_proj", "hidden", "heads head_dim", bias_when="bias"),
        *norm("mlp.norm", f"{_LAYER}.post_attention_layernorm"),
        *linear("mlp.up", f"{_LAYER}.mlp.c_fc", "ffn", "hidden", bias_when="bias"),
        *linear("mlp.down", f"{_LAYER}.mlp.c_proj", "hidden", "ffn", bias_when="bias"),
        *norm("norm", "norm"),
        Tensor(("head.weight",), "lm_head.weight", "vocab", "hidden", tied_to="embed.tokens.weight"),
    ),
    dims=dims,
    ignored=MappingProxyType({"layers.*.self_attn.rotary_emb.inv_freq": "recomputed from rope_theta"}),
)
