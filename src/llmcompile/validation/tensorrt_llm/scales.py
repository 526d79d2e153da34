"""The scales of activations and caches that a checkpoint holds, by layer, from the ranks' files.

Shape suffixes: C input channels of the whole linear layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from llmcompile.errors import MismatchError
from llmcompile.validation.tensorrt_llm.decoder import Checkpoint, open_checkpoint
from llmcompile.validation.tensorrt_llm.encdec import opened_stacks
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
STACK_MODULES = {
    "encoder.attn.qkv": ("attention.qkv",),
    "encoder.attn.o": ("attention.dense",),
    "encoder.mlp.in": ("mlp.fc", "mlp.gate"),
    "encoder.mlp.down": ("mlp.proj",),
    "decoder.attn.qkv": ("self_attention.qkv",),
    "decoder.attn.o": ("self_attention.dense",),
    "decoder.cross.qkv": ("cross_attention.qkv",),
    "decoder.cross.o": ("cross_attention.dense",),
    "decoder.mlp.in": ("mlp.fc", "mlp.gate"),
    "decoder.mlp.down": ("mlp.proj",),
}
"""The same for the folders encoder and decoder."""
_DIVIDED_INPUTS = (".dense", ".proj")
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
        self._places: dict[tuple[str, int], list[tuple[RankFile, str]]] = {}
        self._expert_groups = 1
        two_stacks = (folder / "encoder").is_dir()
        self.modules = STACK_MODULES if two_stacks else MODULES
        if two_stacks:
            self._read_stacks(folder)
        else:
            self._read(open_checkpoint(folder))

    def _read(self, checkpoint: Checkpoint) -> None:
        config = checkpoint.config
        self._expert_groups = config.parallel.moe_experts
        for stage in range(config.parallel.stages):
            files = [checkpoint.file(stage, rank) for rank in range(config.parallel.tensor)]
            for local, layer in enumerate(config.stage_layers(stage)):
                self._places["", layer] = [(file, f"transformer.layers.{local}.") for file in files]

    def _read_stacks(self, folder: Path) -> None:
        for stack, files in opened_stacks(folder):
            for layer in range(stack.layers):
                stage, local = divmod(layer, stack.stage_layers)
                own = files[stage * stack.tensor : (stage + 1) * stack.tensor]
                name = "decoder." if stack.decoder else "encoder."
                self._places[name, layer] = [(file, stack.layer(local)) for file in own]

    @property
    def places(self) -> Iterator[tuple[int, str]]:
        """Every layer and group; not each has linear layers in every network."""
        for stack, layer in self._places:
            for group in self.modules:
                if group.startswith(stack):
                    yield layer, group

    def _files(self, layer: int, group: str) -> Sequence[tuple[RankFile, str]]:
        """Every rank's file that has the layer, and the beginning of the layer's names there."""
        stack = next(stack for stack, _ in self._places if group.startswith(stack))
        return self._places[stack, layer]

    def columns(self, layer: int, group: str) -> Tensor | None:
        """What each input channel is multiplied by, shape (C,), float32; None for a recipe without such factors.

        Raises:
            MismatchError: Ranks, or modules of the group, that see the same channels have other factors.
        """
        found: list[Tensor] = []
        for module in self.modules[group]:
            name = f"{module}.prequant_scaling_factor"
            files = self._files(layer, group)
            parts = [file.read(prefix + name).float() for file, prefix in files if file.has(prefix + name)]
            if len(parts) == 0:
                continue
            # Ranks of one share of the inputs: all, or those of a group of experts; of experts the first is read.
            groups = self._expert_groups if group.startswith("experts.") else 1
            parts = [part[0] if part.dim() == 2 else part for part in parts]
            divided = module.endswith(_DIVIDED_INPUTS)
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
        for module in self.modules[group]:
            yield from self._singles(layer, group, f"{module}.activation_scaling_factor")

    def cache(self, layer: int) -> Iterator[Single]:
        """The scale of keys and values on every rank."""
        yield from self._singles(layer, "attn.qkv", "attention.kv_cache_scaling_factor")

    def _singles(self, layer: int, group: str, ending: str) -> Iterator[Single]:
        for file, prefix in self._files(layer, group):
            if file.has(prefix + ending):
                value = float(file.read(prefix + ending).float().reshape(()))
                folder = f"{file.path.parent.name}/" if self.modules is STACK_MODULES else ""
                yield Single(prefix + ending, f"{folder}{file.path.name}", value)
