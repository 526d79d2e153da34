"""What LLaMA and its descendants share: sizes from config.json, and the tensors that all of them name alike.

Each descendant's own file says how it differs. A bias is None where there is none, otherwise its condition, as in
`Tensor.when`: "" for always.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from llmcompile.architectures.spec import HFConfig, Tensor, linear, norm, per_head

LAYER = "layers.{layer}"
EMBEDDING = (Tensor(("embed.tokens.weight",), "embed_tokens.weight", "vocab", "hidden"),)
ATTENTION_NORM = norm("attn.norm", f"{LAYER}.input_layernorm", bias=False)
QK_NORMS = tuple(
    Tensor((f"attn.{part}_norm.weight",), f"{LAYER}.self_attn.{part}_norm.weight", "head_dim") for part in ("q", "k")
)
"""Norms over each head of q and k."""
MLP_NORM = norm("mlp.norm", f"{LAYER}.post_attention_layernorm", bias=False)
NORM_AND_HEAD = (
    *norm("norm", "norm", bias=False),
    Tensor(("head.weight",), "lm_head.weight", "vocab", "hidden", tied_to="embed.tokens.weight"),
)
BUFFERS: Mapping[str, str] = MappingProxyType({"layers.*.self_attn.rotary_emb.inv_freq": "recomputed from rope_theta"})
"""Tensors of older checkpoints that no backend needs."""


class LlamaLikeConfig(HFConfig):
    """The sizes of every descendant, which gives them the defaults of its own configuration class."""

    vocab_size: int
    max_position_embeddings: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None
    head_dim: int | None
    intermediate_size: int


def sizes(c: LlamaLikeConfig) -> dict[str, int]:
    """Sizes of a descendant; where config.json is silent every query head has its own key and value head.

    Raises:
        CheckpointError: hidden_size is not a multiple of num_attention_heads, and there is no head_dim.
    """
    heads = c.num_attention_heads
    return {
        "vocab": c.vocab_size,
        "positions": c.max_position_embeddings,
        "hidden": c.hidden_size,
        "layers": c.num_hidden_layers,
        "heads": heads,
        "kv_heads": heads if c.num_key_value_heads is None else c.num_key_value_heads,
        "head_dim": per_head(c.hidden_size, heads) if c.head_dim is None else c.head_dim,
        "ffn": c.intermediate_size,
    }


def attention(*, qkv_bias: str | None = None, o_bias: str | None = None) -> tuple[Tensor, ...]:
    """The four linear layers of attention."""
    name = f"{LAYER}.self_attn"
    return (
        *_linear("attn.q", f"{name}.q_proj", "heads head_dim", "hidden", qkv_bias),
        *_linear("attn.k", f"{name}.k_proj", "kv_heads head_dim", "hidden", qkv_bias),
        *_linear("attn.v", f"{name}.v_proj", "kv_heads head_dim", "hidden", qkv_bias),
        *_linear("attn.o", f"{name}.o_proj", "hidden", "heads head_dim", o_bias),
    )


def gated_mlp(
    role: str = "mlp", name: str = f"{LAYER}.mlp", ffn: str = "ffn", *, bias: str | None = None
) -> tuple[Tensor, ...]:
    """Gate, up and down: of the layer, or of an expert by its `role`, `name` and width."""
    return (
        *_linear(f"{role}.gate", f"{name}.gate_proj", ffn, "hidden", bias),
        *_linear(f"{role}.up", f"{name}.up_proj", ffn, "hidden", bias),
        *_linear(f"{role}.down", f"{name}.down_proj", "hidden", ffn, bias),
    )


def _linear(role: str, name: str, out: str, inp: str, bias: str | None) -> tuple[Tensor, ...]:
    return linear(role, name, out, inp, bias=bias is not None, bias_when="" if bias is None else bias)
