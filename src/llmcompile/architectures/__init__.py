"""The families llmcompile reads: one table each, looked up by the class name in config.json."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from llmcompile.architectures.bert import BERT
from llmcompile.architectures.bloom import BLOOM
from llmcompile.architectures.gpt2 import GPT2
from llmcompile.architectures.gptj import GPTJ
from llmcompile.architectures.gptneox import GPTNEOX
from llmcompile.architectures.llama import LLAMA
from llmcompile.architectures.opt import OPT
from llmcompile.architectures.spec import Architecture
from llmcompile.architectures.t5 import T5
from llmcompile.errors import UnsupportedError

ARCHITECTURES: tuple[Architecture, ...] = (GPT2, OPT, BLOOM, GPTJ, GPTNEOX, LLAMA, T5, BERT)


def lookup(config: Mapping[str, Any]) -> Architecture:
    """The family of a checkpoint, by `architectures` or, where that is absent, by `model_type`.

    Raises:
        UnsupportedError: No family answers to it; the nearest names are suggested. A quantized checkpoint is refused
            too: its tensors are not the float weights the tables describe.
    """
    if config.get("quantization_config") is not None:
        quantization = config["quantization_config"]
        method = quantization.get("quant_method", "unnamed") if isinstance(quantization, Mapping) else quantization
        raise UnsupportedError(
            "config.json: quantization_config",
            f"a checkpoint quantized with {method}",
            "float weights",
            "start from the unquantized checkpoint",
        )
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
