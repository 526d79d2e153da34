"""The scales of activations and caches that a decoder-only checkpoint holds, by layer, from the ranks' files.

Shape suffixes: C input channels of the whole linear layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from llmcompile.errors import MismatchError
from llmcompile.validation.tensorrt_llm.decoder import Checkpoint, open_checkpoint
from llmcompile.validation.tensorrt_llm.rank_files import RankFile

MODULES = {
    "attn.qkv": ("attention.qkv",),
    "attn.o": ("attention.dense",),
    "mlp.in": ("mlp.fc", "mlp.gate"),
    "mlp.down": ("mlp.proj",),
    "experts.in": ("mlp.fc",),
    "experts.down": ("mlp.proj",),
    "shared.in": ("mlp.shared_expert.fc", "shared_expert.fc"),
    "shared.down": ("mlp.shared_expert.proj", "shared_expert.proj"),
}
"""Linear layers that read one input, by their names in TensorRT-LLM; not every network has them all."""
_DIVIDED_INPUTS = ("attention.dense", "mlp.proj", "mlp.shared_expert.proj", "shared_expert.proj")
_AGAIN = "convert the model again"


@dataclass(frozen=True)
class Single:
    """One value of one rank."""

    name: str
    file: str
    value: float


class Scales:
    """The scales of an opened checkpoint, by layer of the whole model."""

    def __init__(self, folder: Path) -> None:
        """Read headers.

        Raises:
            MismatchError, UnsupportedError: As `open_checkpoint`.
        """
        self._checkpoint: Checkpoint = open_checkpoint(folder)
        config = self._checkpoint.config
        self._places = {
            layer: (stage, local)
            for stage in range(config.parallel.stages)
            for local, layer in enumerate(config.stage_layers(stage))
        }

    def _files(self, layer: int) -> Iterator[tuple[RankFile, str]]:
        """Every rank's file that has the layer, and the beginning of the layer's names there."""
        stage, local = self._places[layer]
        for rank in range(self._checkpoint.config.parallel.tensor):
            yield self._checkpoint.file(stage, rank), f"transformer.layers.{local}."

    def columns(self, layer: int, group: str) -> Tensor | None:
        """What each input channel is multiplied by, shape (C,), float32; None for a recipe without such factors.

        Raises:
            MismatchError: Ranks, or modules of the group, that see the same channels have other factors.
        """
        found: list[Tensor] = []
        for module in MODULES[group]:
            name = f"{module}.prequant_scaling_factor"
            parts = [file.read(prefix + name).float() for file, prefix in self._files(layer) if file.has(prefix + name)]
            if len(parts) == 0:
                continue
            # Ranks of one share of the inputs: all, or those of a group of experts; of experts the first is read.
            groups = self._checkpoint.config.parallel.moe_experts if group.startswith("experts.") else 1
            parts = [part[0] if part.dim() == 2 else part for part in parts]
            divided = module in _DIVIDED_INPUTS
            shares = [torch.cat(parts[first::groups]) if divided else parts[first] for first in range(groups)]
            whole = shares[0]
            same = all(torch.equal(part, whole) for part in (shares if divided else parts))
            if not same or (len(found) > 0 and not torch.equal(found[0], whole)):
                raise MismatchError(
                    f"layer {layer}: {name}", "not the same wherever the same input is read", "the same", _AGAIN
                )
            found.append(whole)
        return found[0] if len(found) > 0 else None

    def activations(self, layer: int, group: str) -> Iterator[Single]:
        """The scale of the inputs on every rank, of every module of the group."""
        for module in MODULES[group]:
            yield from self._singles(layer, f"{module}.activation_scaling_factor")

    def cache(self, layer: int) -> Iterator[Single]:
        """The scale of keys and values on every rank."""
        yield from self._singles(layer, "attention.kv_cache_scaling_factor")

    def _singles(self, layer: int, ending: str) -> Iterator[Single]:
        for file, prefix in self._files(layer):
            if file.has(prefix + ending):
                value = float(file.read(prefix + ending).float().reshape(()))
                yield Single(prefix + ending, file.path.name, value)
