"""The texts of a unified checkpoint: config.json, hf_quant_config.json and model.yaml.

Source: nvidia-modelopt 0.47.0: modelopt/torch/export/convert_hf_config.py (convert_hf_quant_config_format) and
quant_utils.py (process_layer_quant_config); NVIDIA/TensorRT-LLM@fcd3f316:tensorrt_llm/llmapi/llm_args.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmcompile.exporters.trtllm.llmapi.recipes import Recipe

PRODUCER: Mapping[str, str] = {"name": "modelopt", "version": "0.47.0"}
"""Whose format it is. Readers take any other name for another format, so that ours has no place here: it is in
llmcompile.json. Source: NVIDIA/TensorRT-LLM:tensorrt_llm/quantization/modelopt_config.py (is_modelopt_quant_config)."""


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """What a checkpoint says of its quantization.

    Attributes:
        recipe: None for plain weights.
        group_size: Inputs that share a scale; 0 where none do.
        cache: "fp8", or None for a cache of the model's type.
        left: Modules whose weights are plain, by transformers' names, sorted.
    """

    recipe: Recipe | None
    group_size: int
    cache: str | None
    left: Sequence[str]


def hf_quant_config(quantized: Quantized) -> str:
    """hf_quant_config.json."""
    recipe = quantized.recipe
    block: dict[str, Any] = {
        "quant_algo": None if recipe is None else recipe.algorithm,
        "kv_cache_quant_algo": None if quantized.cache is None else quantized.cache.upper(),
    }
    if recipe is not None and quantized.group_size > 0:
        block["group_size"] = quantized.group_size
        if recipe.groups is None:
            block |= {"has_zero_point": False, "pre_quant_scale": True}
    block["exclude_modules"] = list(quantized.left)
    return _json({"producer": dict(PRODUCER), "quantization": block})


def quantization_config(quantized: Quantized) -> Mapping[str, Any]:
    """The same for config.json, in the words of compressed-tensors where it has them."""
    recipe, block = quantized.recipe, dict[str, Any]()
    if recipe is not None and recipe.float_bits > 0:
        of: dict[str, Any] = {"dynamic": False, "num_bits": recipe.float_bits, "type": "float"}
        of |= {"group_size": quantized.group_size} if quantized.group_size > 0 else {}
        block["config_groups"] = {"group_0": {"input_activations": of, "weights": of, "targets": ["Linear"]}}
    block["ignore"] = list(quantized.left)
    block["quant_algo"] = None if recipe is None else recipe.algorithm
    if quantized.cache is not None:
        block["kv_cache_scheme"] = {"dynamic": False, "num_bits": 8, "type": "float"}
    return {**block, "producer": dict(PRODUCER), "quant_method": "modelopt"}


def config_json(config: Mapping[str, Any], *, kind: str, dtype: str, quantized: Quantized | None) -> str:
    """The model's config.json with its element type and its quantization.

    Args:
        config: The model's.
        kind: Class of transformers that has a head: TensorRT-LLM finds its network by this name.
        dtype: float16 or bfloat16.
        quantized: None for a plain checkpoint.
    """
    content = {**config, "architectures": [kind], "torch_dtype": dtype}
    if "dtype" in config:
        content["dtype"] = dtype
    if quantized is not None:
        content["quantization_config"] = quantization_config(quantized)
    return _json(content)


def model_yaml(*, tp: int, pp: int, moe: tuple[int, int] | None, cache: str | None, limits: Mapping[str, int]) -> str:
    """Arguments of tensorrt_llm.LLM, for trtllm-serve --extra_llm_api_options (--config in 1.3) and for LLM(**...).

    Args:
        tp: Ranks each layer is split over.
        pp: Pipeline stages.
        moe: Ranks each expert is split over, and ranks the experts are dealt to; None for a model without.
        cache: "fp8", or None for the cache that the checkpoint asks for.
        limits: Further whole numbers, by their names there.
    """
    import yaml

    content: dict[str, Any] = {"backend": "pytorch", "tensor_parallel_size": tp, "pipeline_parallel_size": pp}
    if moe is not None:
        content |= {"moe_tensor_parallel_size": moe[0], "moe_expert_parallel_size": moe[1]}
    content |= limits
    content["kv_cache_config"] = {"dtype": "auto" if cache is None else cache}
    written: str = yaml.safe_dump(content, sort_keys=False)
    return written


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=4, ensure_ascii=False) + "\n"
