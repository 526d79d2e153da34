"""LLaMA as Meta publishes it: params.json, and rows of q and k in the order of an interleaved rotary embedding."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from pydantic import Field

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
)
from llmcompile.errors import CheckpointError

DEFAULT_NORM_EPS = 1e-5
"""What Meta's code adds to the variance where params.json does not say.

Source: meta-llama/llama@main:llama/model.py, and `MetaParams`' own: ModelArgs.norm_eps.
"""


class MetaParams(HFConfig):
    """params.json, with what `checkpoint.meta` adds: vocab_size and hidden_dim as the tensors have them.

    Source: meta-llama/llama-models@v0.0.45:models/llama3/reference_impl/model.py (ModelArgs).
    """

    dim: int = Field(ge=1)
    n_layers: int = Field(ge=1)
    n_heads: int = Field(ge=1)
    n_kv_heads: int | None = Field(None, ge=1)
    head_dim: int | None = Field(None, ge=2, multiple_of=2)
    vocab_size: int = Field(ge=1)
    hidden_dim: int | None = Field(None, ge=1)
    multiple_of: int | None = Field(None, ge=1)
    ffn_dim_multiplier: float | None = Field(None, gt=0, le=2**20)
    norm_eps: Epsilon = DEFAULT_NORM_EPS
    rope_theta: float = Field(10000.0, gt=0)
    use_scaled_rope: bool = False
    rope_scaling_factor: float = Field(8.0, gt=0)
    max_seq_len: int = Field(2048, ge=1)


def dims(config: Mapping[str, Any]) -> Dims:
    """Sizes and facts of Meta's params.json.

    Raises:
        CheckpointError: A key is absent, or the MLP's width is not what its formula gives.
    """
    c = read_config(MetaParams, config, file="params.json")
    head_dim = per_head(c.dim, c.n_heads) if c.head_dim is None else c.head_dim
    return Dims(
        sizes={
            "vocab": c.vocab_size,
            "positions": c.max_seq_len,
            "hidden": c.dim,
            "layers": c.n_layers,
            "heads": c.n_heads,
            "kv_heads": c.n_heads if c.n_kv_heads is None else c.n_kv_heads,
            "head_dim": head_dim,
            "pair": 2,
            "half": head_dim // 2,
            "ffn": _ffn(c),
        },
        facts={
            "activation": "silu",
            "norm_eps": c.norm_eps,
            "attention_bias": False,
            "mlp_bias": False,
            "tied": False,
            "name_or_path": c.name_or_path,
            "rotary_base": c.rope_theta,
            "rope_scaling": "llama3" if c.use_scaled_rope else None,
            "rope_config": _scaling(c) if c.use_scaled_rope else None,
            **c.start_and_end(),
        },
    )


def _scaling(c: MetaParams) -> str:
    """The constants of Meta's scaled rotary embedding, spelt as transformers does."""
    return json.dumps(
        {
            "rope_type": "llama3",
            "factor": c.rope_scaling_factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
    )


def _ffn(c: MetaParams) -> int:
    if c.multiple_of is None:
        if c.hidden_dim is None:
            raise CheckpointError("params.json", "neither hidden_dim nor multiple_of", "the MLP's width")
        return c.hidden_dim
    plain = int(2 * 4 * c.dim / 3)
    wanted = plain if c.ffn_dim_multiplier is None else int(c.ffn_dim_multiplier * plain)
    width = c.multiple_of * math.ceil(wanted / c.multiple_of)
    if c.hidden_dim is not None and c.hidden_dim != width:
        raise CheckpointError(
            "params.json: multiple_of, ffn_dim_multiplier",
            f"an MLP {width} wide",
            f"{c.hidden_dim}, as w1 is stored",
            "check that params.json belongs to these weights",
        )
    return width


_LAYER = "layers.{layer}"


def _rotated(role: str, name: str, heads: str) -> Tensor:
    return Tensor((f"{role}.weight",), f"{name}.weight", f"{heads} half pair", "hidden", order=f"{heads} pair half")


META_LLAMA = Architecture(
    name="meta_llama",
    classes=("MetaLlama",),
    model_types=(),
    prefixes=(),
    tensors=(
        Tensor(("embed.tokens.weight",), "tok_embeddings.weight", "vocab", "hidden"),
        *norm("attn.norm", f"{_LAYER}.attention_norm", bias=False),
        _rotated("attn.q", f"{_LAYER}.attention.wq", "heads"),
        _rotated("attn.k", f"{_LAYER}.attention.wk", "kv_heads"),
        *linear("attn.v", f"{_LAYER}.attention.wv", "kv_heads head_dim", "hidden", bias=False),
        *linear("attn.o", f"{_LAYER}.attention.wo", "hidden", "heads head_dim", bias=False),
        *norm("mlp.norm", f"{_LAYER}.ffn_norm", bias=False),
        *linear("mlp.gate", f"{_LAYER}.feed_forward.w1", "ffn", "hidden", bias=False),
        *linear("mlp.up", f"{_LAYER}.feed_forward.w3", "ffn", "hidden", bias=False),
        *linear("mlp.down", f"{_LAYER}.feed_forward.w2", "hidden", "ffn", bias=False),
        *norm("norm", "norm", bias=False),
        Tensor(("head.weight",), "output.weight", "vocab", "hidden", tied_to="embed.tokens.weight"),
    ),
    dims=dims,
    ignored=MappingProxyType(
        {
            "rope.freqs": "recomputed from rope_theta",
            "layers.*.attention.inner_attention.rope.freqs": "recomputed from rope_theta",
        }
    ),
)
