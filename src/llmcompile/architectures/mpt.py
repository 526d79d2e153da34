"""MPT: ALiBi, norms without biases, q, k, v one after the other; transformers' class and MosaicML's own."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from llmcompile.architectures.spec import (
    Architecture,
    Dims,
    Epsilon,
    HFConfig,
    Tensor,
    alias,
    fused,
    linear,
    norm,
    per_head,
    read_config,
)


class MptAttentionConfig(BaseModel):
    """Key `attn_config`. Source: as `MptConfig`; `kv_n_heads`, `rope` and `attn_type`'s third value are MosaicML's."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    attn_type: str = "multihead_attention"
    kv_n_heads: int | None = None
    clip_qkv: float | None = None
    softmax_scale: float | None = None
    prefix_lm: bool = False
    qk_ln: bool = False
    alibi: bool | None = None
    alibi_bias_max: int = 8
    rope: bool = False


class MptConfig(HFConfig):
    """Source: huggingface/transformers@v4.57.6:src/transformers/models/mpt/configuration_mpt.py.

    For the class MPTForCausalLM: mosaicml/llm-foundry@v0.6.0:llmfoundry/models/mpt/configuration_mpt.py.
    """

    vocab_size: int
    max_seq_len: int = 2048
    d_model: int = Field(validation_alias=alias("d_model", "hidden_size"))
    n_layers: int = Field(validation_alias=alias("n_layers", "num_hidden_layers"))
    n_heads: int = Field(validation_alias=alias("n_heads", "num_attention_heads"))
    expansion_ratio: float = Field(4, gt=0, le=2**20)
    attn_config: MptAttentionConfig | None = None
    layer_norm_epsilon: Epsilon = 1e-5
    norm_type: str = "low_precision_layernorm"
    logit_scale: float | str | None = None
    no_bias: bool | None = None
    tie_word_embeddings: bool = True


def dims(config: Mapping[str, Any]) -> Dims:
    """Sizes and facts of an MPT config.

    Transformers' class ignores expansion_ratio (the MLP is four times as wide), no_bias (there are none), alibi (it
    always applies) and alibi_bias_max (8); MosaicML's, MPTForCausalLM, follows them.
    Source: huggingface/transformers@v4.57.6:src/transformers/models/mpt/modeling_mpt.py.
    """
    c = read_config(MptConfig, config)
    attention = MptAttentionConfig() if c.attn_config is None else c.attn_config
    names = config.get("architectures")
    mosaic = isinstance(names, list) and len(names) > 0 and str(names[0]).startswith("MPT")
    kv_heads = 1 if mosaic and attention.attn_type == "multiquery_attention" else c.n_heads
    return Dims(
        sizes={
            "vocab": c.vocab_size,
            "positions": c.max_seq_len,
            "hidden": c.d_model,
            "layers": c.n_layers,
            "heads": c.n_heads,
            "kv_heads": kv_heads if attention.kv_n_heads is None else attention.kv_n_heads,
            "head_dim": per_head(c.d_model, c.n_heads),
            "ffn": int(c.expansion_ratio * c.d_model) if mosaic else 4 * c.d_model,
        },
        facts={
            "activation": "gelu",
            "norm_eps": c.layer_norm_epsilon,
            "norm_type": c.norm_type if mosaic else "layernorm",
            "bias": mosaic and c.no_bias is not True,
            "clip_qkv": attention.clip_qkv,
            "softmax_scale": attention.softmax_scale,
            "prefix_lm": mosaic and attention.prefix_lm,
            "qk_ln": mosaic and attention.qk_ln,
            "alibi": attention.alibi is True if mosaic else True,
            "alibi_bias_max": attention.alibi_bias_max if mosaic else 8,
            "rope": mosaic and attention.rope,
            "logit_scale": c.logit_scale,
            "tied": c.tie_word_embeddings,
            "name_or_path": c.name_or_path,
            **c.start_and_end(),
        },
    )


_LAYER = "blocks.{layer}"


def _norm(role: str, name: str) -> tuple[Tensor, ...]:
    return (
        *norm(role, name, bias=False),
        Tensor((f"{role}.bias",), f"{name}.bias", "hidden", when="bias"),
    )


MPT = Architecture(
    name="mpt",
    classes=("MptForCausalLM", "MptModel", "MPTForCausalLM"),
    model_types=("mpt",),
    prefixes=("transformer.",),
    tensors=(
        Tensor(("embed.tokens.weight",), "wte.weight", "vocab", "hidden"),
        *_norm("attn.norm", f"{_LAYER}.norm_1"),
        *fused(
            ("attn.q", "attn.k", "attn.v"),
            f"{_LAYER}.attn.Wqkv",
            "heads+kv_heads+kv_heads head_dim",
            "hidden",
            bias_when="bias",
        ),
        *linear("attn.o", f"{_LAYER}.attn.out_proj", "hidden", "heads head_dim", bias_when="bias"),
        *_norm("mlp.norm", f"{_LAYER}.norm_2"),
        *linear("mlp.up", f"{_LAYER}.ffn.up_proj", "ffn", "hidden", bias_when="bias"),
        *linear("mlp.down", f"{_LAYER}.ffn.down_proj", "hidden", "ffn", bias_when="bias"),
        *_norm("norm", "norm_f"),
        Tensor(("head.weight",), "lm_head.weight", "vocab", "hidden", tied_to="embed.tokens.weight"),
    ),
    dims=dims,
    ignored=MappingProxyType({}),
)
