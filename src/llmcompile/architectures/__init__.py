"""The families llmcompile reads: one table each, looked up by the class name in config.json."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any

from llmcompile.architectures.bart import BART
from llmcompile.architectures.bert import BERT
from llmcompile.architectures.bloom import BLOOM
from llmcompile.architectures.falcon import FALCON
from llmcompile.architectures.gemma import GEMMA
from llmcompile.architectures.gemma2 import GEMMA2
from llmcompile.architectures.gpt2 import GPT2
from llmcompile.architectures.gpt_bigcode import GPT_BIGCODE
from llmcompile.architectures.gptj import GPTJ
from llmcompile.architectures.gptneox import GPTNEOX
from llmcompile.architectures.llama import LLAMA
from llmcompile.architectures.meta_llama import META_LLAMA
from llmcompile.architectures.mistral import MISTRAL
from llmcompile.architectures.mixtral import MIXTRAL
from llmcompile.architectures.mpt import MPT
from llmcompile.architectures.opt import OPT
from llmcompile.architectures.phi import PHI
from llmcompile.architectures.phi3 import PHI3
from llmcompile.architectures.quantized import quantized, scheme_of
from llmcompile.architectures.qwen import QWEN
from llmcompile.architectures.qwen2 import QWEN2
from llmcompile.architectures.qwen2_moe import QWEN2_MOE
from llmcompile.architectures.qwen3 import QWEN3
from llmcompile.architectures.qwen3_moe import QWEN3_MOE
from llmcompile.architectures.spec import Architecture
from llmcompile.architectures.starcoder2 import STARCODER2
from llmcompile.architectures.t5 import T5
from llmcompile.errors import UnsupportedError

ARCHITECTURES: tuple[Architecture, ...] = (
    GPT2,
    OPT,
    BLOOM,
    GPTJ,
    GPTNEOX,
    LLAMA,
    T5,
    BERT,
    MISTRAL,
    MIXTRAL,
    QWEN,
    QWEN2,
    QWEN2_MOE,
    QWEN3,
    QWEN3_MOE,
    GEMMA,
    GEMMA2,
    PHI,
    PHI3,
    GPT_BIGCODE,
    STARCODER2,
    FALCON,
    MPT,
    BART,
    META_LLAMA,
)


def lookup(config: Mapping[str, Any], tensors: Collection[str] = ()) -> Architecture:
    """The family of a checkpoint, by `architectures` or, where that is absent, by `model_type`.

    Args:
        config: config.json.
        tensors: Names of the checkpoint's tensors, which tell an FP8 checkpoint whose config.json does not.

    Returns:
        The family; that of its quantized checkpoints, with the fact `quantized`, where this is one.

    Raises:
        UnsupportedError: No family answers to it; the nearest names are suggested. Or it is quantized in a way that
            has no table.
    """
    scheme = scheme_of(config, tensors)
    architecture = _family(config)
    return architecture if scheme is None else quantized(architecture, architecture.dims(config), scheme)


def _family(config: Mapping[str, Any]) -> Architecture:
    names = config.get("architectures")
    if isinstance(names, list) and len(names) > 0:
        by_class = {name: architecture for architecture in ARCHITECTURES for name in architecture.classes}
        return _find(str(names[0]), by_class, "architectures")
    by_type = {name: architecture for architecture in ARCHITECTURES for name in architecture.model_types}
    return _find(str(config.get("model_type")), by_type, "model_type")


def _find(name: str, known: Mapping[str, Architecture], key: str) -> Architecture:
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    raise UnsupportedError(
        f"config.json: {key}",
        name,
        f"a model of the families {', '.join(architecture.name for architecture in ARCHITECTURES)}",
        f"nearest: {', '.join(near)}" if len(near) > 0 else "see the table of families in README.md",
    )
