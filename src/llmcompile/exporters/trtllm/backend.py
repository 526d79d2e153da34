"""TensorRT-LLM as one of the backends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmcompile.architectures.spec import Architecture, Dims
from llmcompile.dtypes import DType
from llmcompile.exporters.spec import Layout
from llmcompile.exporters.trtllm import layout as engine
from llmcompile.exporters.trtllm.layout import DTYPES
from llmcompile.exporters.trtllm.llmapi import layout as llmapi
from llmcompile.exporters.trtllm.options import TrtllmOptions
from llmcompile.ranges import Ranges

__all__ = ["make_layout", "recorded"]


def make_layout(
    architecture: Architecture,
    dims: Dims,
    options: TrtllmOptions,
    *,
    source_dtype: DType,
    model_label: str,
    ranges: Ranges | None = None,
) -> Layout:
    """The checkpoint of one model, for engines or for the LLM API; `ranges` is what calibration found."""
    make = llmapi.make_layout if options.target == "llmapi" else engine.make_layout
    return make(architecture, dims, options, source_dtype=source_dtype, model_label=model_label, ranges=ranges)


def recorded(options: TrtllmOptions, layout: Layout) -> Mapping[str, Any]:
    """The options that decide the checkpoint's bytes."""
    if options.target == "llmapi":
        return llmapi.recorded(options, layout)
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
