"""What TensorRT-LLM's PyTorch backend loads: families, recipes, and why the others are not among them.

Source: NVIDIA/TensorRT-LLM@00bbf71e:tensorrt_llm/_torch/modules/linear.py (get_quant_method),
@065ff9e9:tensorrt_llm/_torch/models/_arch_index.py, @008e0af8:tensorrt_llm/_torch/model_config.py;
docs/formats/llmapi.md has the details.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from llmcompile import quantization
from llmcompile.exporters.trtllm.llmapi import encodings
from llmcompile.exporters.trtllm.llmapi.encodings import Encode
from llmcompile.exporters.trtllm.versions import Release
from llmcompile.plan import Encoding
from llmcompile.ranges import Measured


@dataclass(frozen=True)
class Recipe:
    """A quantization that can be loaded.

    Attributes:
        algorithm: `quant_algo`.
        encode: How a linear layer lies.
        calibrated: Whether it needs data.
        columns: How `ranges.Measurement.columns` are found.
        groups: Inputs that share a scale; 0 for no groups, None for --group-size and AWQ's factors of inputs.
        experts: Whether the network's experts can be loaded so.
        float_bits: Of weights and inputs, where both are floats, for the block `config_groups`; 0 otherwise.
        integer_bits: Of weights that the runtime lays out for its kernels; 0 for others.
        first: First release that has it.
    """

    algorithm: str
    encode: Encode
    calibrated: bool = False
    columns: str = ""
    groups: int | None = 0
    experts: bool = False
    float_bits: int = 0
    integer_bits: int = 0
    first: Release = (1, 0)


def _awq(*, activations: bool, searched: bool) -> Encode:
    def encode(found: Measured | None, group_size: int, kept: bool) -> Encoding:
        return encodings.awq(found, group_size, kept=kept, activations=activations, searched=searched)

    return encode


def _simple(make: Callable[[], Encoding]) -> Encode:
    return lambda found, group_size, kept: make()


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "fp8": Recipe(
            "FP8", lambda found, group_size, kept: encodings.fp8(found), calibrated=True, experts=True, float_bits=8
        ),
        "fp8_rowwise": Recipe("FP8_PER_CHANNEL_PER_TOKEN", _simple(encodings.fp8_rowwise)),
        "nvfp4": Recipe(
            "NVFP4",
            lambda found, group_size, kept: encodings.nvfp4(found),
            calibrated=True,
            groups=quantization.NVFP4_BLOCK,
            experts=True,
            float_bits=4,
        ),
        "w8a16": Recipe("W8A16", _simple(encodings.int8), integer_bits=8, first=(1, 1)),
        "w4a16_awq": Recipe("W4A16_AWQ", _awq(activations=False, searched=False), groups=None, integer_bits=4),
        "int4_awq": Recipe(
            "W4A16_AWQ",
            _awq(activations=False, searched=True),
            calibrated=True,
            columns="search",
            groups=None,
            integer_bits=4,
        ),
        "w4a8_awq": Recipe(
            "W4A8_AWQ",
            _awq(activations=True, searched=True),
            calibrated=True,
            columns="search",
            groups=None,
            integer_bits=4,
        ),
    }
)
"""By the names of --quantization."""
UNSERVED: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "int8_sq": ("which has no linear layer for W8A8_SQ_PER_CHANNEL", "--quantization fp8"),
        "w4a16": ("which has no checkpoint of W4A16 without groups", "--quantization w4a16_awq or int4_awq"),
        "w4a16_gptq": ("which has no linear layer for W4A16_GPTQ", "--quantization w4a16_awq or int4_awq"),
    }
)
"""Recipes of engines that it does not load -> why, and what to type."""

FAMILIES: Mapping[str, Release] = MappingProxyType(
    {
        "llama": (1, 0),
        "mistral": (1, 0),
        "mixtral": (1, 0),
        "phi3": (1, 0),
        "qwen2": (1, 0),
        "qwen2_moe": (1, 0),
        "qwen3": (1, 0),
        "qwen3_moe": (1, 0),
        "starcoder2": (1, 2),
    }
)
"""Families with a network of its own -> the first release that has it."""
PLAIN_ONLY: Mapping[str, str] = MappingProxyType(
    {"phi3": "whose network takes q, k and v, and gate and up, out of one tensor and leaves their scales behind"}
)
"""Families that are loaded unquantized alone -> why. Source: NVIDIA/TensorRT-LLM@000a01de:
tensorrt_llm/_torch/models/modeling_phi3.py (load_weights)."""
