"""config.json of a TensorRT-LLM checkpoint, by family: what it says, what it cannot say, what a user should know."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from llmcompile.architectures.spec import Dims
from llmcompile.exporters.trtllm.config import encdec, gpt, llama
from llmcompile.exporters.trtllm.config.pretrained import Config, Given, Notes, Refusals

__all__ = ["CONFIGS", "ENCODER_DECODER", "NOTES", "REFUSALS", "UNBUILDABLE", "Given"]


def _both(family: str) -> Config:
    """The config.json of either folder of an encoder-decoder family, by the folder's name."""

    def configs(dims: Dims, given: Given) -> Mapping[str, Any]:
        encoder, decoder = encdec.ENCODER_CONFIGS[family], encdec.DECODER_CONFIGS[family]
        return {"encoder": encoder(dims, given), "decoder": decoder(dims, given)}

    return configs


CONFIGS: Mapping[str, Config] = MappingProxyType({**llama.CONFIGS, **gpt.CONFIGS, "meta_llama": llama.CONFIGS["llama"]})
"""Family -> the one config.json."""
ENCODER_DECODER: Mapping[str, Config] = MappingProxyType({family: _both(family) for family in encdec.ENCODER_CONFIGS})
"""Family -> {"encoder": ..., "decoder": ...}, the config.json of either folder."""
REFUSALS: Mapping[str, Refusals] = MappingProxyType(
    {**llama.REFUSALS, **gpt.REFUSALS, **encdec.REFUSALS, "meta_llama": llama.REFUSALS["llama"]}
)
"""Family -> why a model of it cannot be represented; every family of the two tables above has an entry."""
NOTES: Mapping[str, Notes] = MappingProxyType(
    {**llama.NOTES, **gpt.NOTES, **encdec.NOTES, "meta_llama": llama.NOTES["llama"]}
)
"""Family -> sentences on what differs from transformers, or what the runtime must be told."""
UNBUILDABLE: Mapping[str, Refusals] = gpt.UNBUILDABLE
"""Family -> why a checkpoint of it can be written and checked, but not built."""
