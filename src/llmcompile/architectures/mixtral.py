"""Mixtral: Mistral whose feed-forward is a mixture of experts, the weights of the chosen ones normalised."""

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
    LlamaLikeConfig,
    attention,
    sizes,
)
from llmcompile.architectures.spec import (
    Architecture,
    Dims,
    Epsilon,
    chosen,
    linear,
    read_config,
    rope,
)


class MixtralConfig(LlamaLikeConfig):
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
    return Dims(
        sizes={
            **sizes(c),
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


_EXPERT = f"{LAYER}.block_sparse_moe.experts.{{expert}}"

MIXTRAL = Architecture(
    name="mixtral",
    classes=("MixtralForCausalLM", "MixtralModel"),
    model_types=("mixtral",),
    prefixes=("model.",),
    tensors=(
        *EMBEDDING,
        *ATTENTION_NORM,
        *attention(),
        *MLP_NORM,
        *linear("router", f"{LAYER}.block_sparse_moe.gate", "experts", "hidden", bias=False),
        *linear("experts.gate", f"{_EXPERT}.w1", "ffn", "hidden", bias=False),
        *linear("experts.up", f"{_EXPERT}.w3", "ffn", "hidden", bias=False),
        *linear("experts.down", f"{_EXPERT}.w2", "hidden", "ffn", bias=False),
        *NORM_AND_HEAD,
    ),
    dims=dims,
    ignored=BUFFERS,
)
