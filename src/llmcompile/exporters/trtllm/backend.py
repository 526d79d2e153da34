"""TensorRT-LLM as one of the backends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmcompile.exporters.spec import Layout
from llmcompile.exporters.trtllm.layout import DTYPES, make_layout
from llmcompile.exporters.trtllm.options import TrtllmOptions

__all__ = ["make_layout", "recorded"]


def recorded(options: TrtllmOptions, layout: Layout) -> Mapping[str, Any]:
    """The options that decide the checkpoint's bytes."""
    moe_tp, moe_ep = options.moe
    return {
        "tp": options.tp,
        "pp": options.pp,
        "moe_tp": moe_tp,
        "moe_ep": moe_ep,
        "dtype": next(name for name, dtype in DTYPES.items() if dtype == layout.dtype),
        "quantization": options.quantization,
        "wo_layout": options.wo_layout,
        "group_size": options.group_size,
        "kv_cache": options.kv_cache,
        "use_parallel_embedding": options.use_parallel_embedding,
        "embedding_sharding_dim": options.embedding_sharding_dim,
        "use_embedding_sharing": options.use_embedding_sharing,
        "max_position_embeddings": options.max_position_embeddings,
        "trtllm_version": options.trtllm_version,
    }
