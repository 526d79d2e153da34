"""What RayLLM's images can load: facts about them that both the plan and the lint go by.

RayLLM 0.5.0 asks for vllm>=0.2.0,<0.2.6 and its image is of Ray 2.9.0; 0.4.0 asks for vllm>=0.2.0 and is of 2023-10-27.
Neither image has TensorRT-LLM, and the module of it that RayLLM imports, tensorrt_llm.libs.trt_llm_engine_py, is in no
release of TensorRT-LLM that we know of.

Source: ray-project/ray-llm, tags v0.5.0 and v0.4.0: requirements-backend.txt, Dockerfile, rayllm/backend/llm/**; vLLM's
are those of the wheels 0.2.5 and 0.2.1 from pypi.org: vllm/model_executor/models/__init__.py (in 0.2.1
model_loader.py), vllm/config.py, vllm/model_executor/layers/attention.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from llmcompile.packaging.documents import whole

RELEASES = ("0.5.0", "0.4.0")
VLLM: Mapping[str, str] = MappingProxyType({"0.5.0": "0.2.5", "0.4.0": "0.2.1"})
"""Release -> the newest vLLM it takes."""
_VLLM_021 = frozenset(
    {
        "AquilaForCausalLM",
        "AquilaModel",
        "BaiChuanForCausalLM",
        "BaichuanForCausalLM",
        "BloomForCausalLM",
        "FalconForCausalLM",
        "GPT2LMHeadModel",
        "GPTBigCodeForCausalLM",
        "GPTJForCausalLM",
        "GPTNeoXForCausalLM",
        "InternLMForCausalLM",
        "LLaMAForCausalLM",
        "LlamaForCausalLM",
        "MPTForCausalLM",
        "MistralForCausalLM",
        "OPTForCausalLM",
        "QWenLMHeadModel",
        "RWForCausalLM",
    }
)
ARCHITECTURES: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "0.2.1": _VLLM_021,
        "0.2.5": _VLLM_021
        | {
            "ChatGLMForConditionalGeneration",
            "ChatGLMModel",
            "MixtralForCausalLM",
            "MptForCausalLM",
            "PhiForCausalLM",
            "YiForCausalLM",
        },
    }
)
"""vLLM -> the architectures it loads."""
HEAD_SIZES = (64, 80, 96, 112, 128, 256)
"""Elements of a head that vLLM's paged attention has a kernel for."""
QUANTIZATIONS = ("awq", "squeezellm")
EMBEDDING_HIDDEN = 1024
"""Elements of a hidden state that the averaging of EmbeddingEngine asserts."""
LENGTHS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
)
"""Keys of config.json that vLLM takes the context's length from, the least of them."""


def context_length(config: Mapping[str, Any]) -> int | None:
    """Tokens that vLLM grants a sequence of a model at most; None where config.json sets no limit."""
    lengths = [length for key in LENGTHS if (length := whole(config.get(key))) is not None]
    if len(lengths) == 0:
        return None
    least: float = min(lengths)
    scaling = config.get("rope_scaling")
    if isinstance(scaling, dict):
        original = whole(scaling.get("original_max_position_embeddings"))
        if scaling.get("type") == "yarn" and original is not None:
            least = original
        factor = scaling.get("factor")
        if isinstance(factor, (int, float)) and 0 < factor < math.inf:
            least *= factor
    return int(least)


def head_size(config: Mapping[str, Any]) -> int | None:
    """Elements of a head; None where config.json does not say it in the usual words."""
    # The models of that time divide, and know no head_dim of its own.
    hidden, heads = (
        next((size for key in keys if (size := whole(config.get(key))) is not None), None)
        for keys in (("hidden_size", "n_embd"), ("num_attention_heads", "n_head"))
    )
    return None if hidden is None or heads is None or heads < 1 else hidden // heads


def decodes(config: Mapping[str, Any]) -> bool:
    """Whether config.json is of a model that generates text."""
    named = config.get("architectures")
    architectures = [str(name) for name in named] if isinstance(named, list) else []
    return any(
        name.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")) or name in ARCHITECTURES["0.2.5"]
        for name in architectures
    )
