"""The tensors of a unified checkpoint: those of the family's table, under transformers' names, one row for each.

Linear layers of attention and of feed-forwards, experts' too, lie as the recipe says; all else is cast. Shape suffixes
as everywhere: weights (out, in).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from llmcompile.architectures.spec import Architecture, Dims, Tensor
from llmcompile.dtypes import FP32
from llmcompile.exporters.trtllm.llmapi import encodings
from llmcompile.exporters.trtllm.llmapi.recipes import Recipe
from llmcompile.plan import Combine, Row
from llmcompile.ranges import Measured, Ranges
from llmcompile.transforms import Array

FILE = "model.safetensors"
_PARTS = {"attn": ("q", "k", "v", "o"), **dict.fromkeys(("mlp", "experts", "shared"), ("gate", "up", "down"))}
QUANTIZED = tuple(f"{block}.{part}" for block, parts in _PARTS.items() for part in parts)
"""Roles of the linear layers that recipes are for; heads, tables, routers and switches are left as they are."""
_NORMS = {"attn.norm": "attn.q", "mlp.norm": "mlp.up"}
"""Norm -> a linear layer that reads its output."""
_FOLDED = ("attn.q", "attn.k", "attn.v", "mlp.gate", "mlp.up")
"""Linear layers that read a norm's output, which holds AWQ's factors for them."""


@dataclass(frozen=True, kw_only=True)
class Stored:
    """How matrices and caches are stored.

    Attributes:
        recipe: None for a plain checkpoint.
        group_size: Inputs that share a scale.
        ranges: What calibration found; None where there is none, or not yet.
        cache: Scale of the keys and values of each layer; () for a cache of the model's type.
    """

    recipe: Recipe | None = None
    group_size: int = 128
    ranges: Ranges | None = None
    cache: tuple[float, ...] = ()

    def of(self, layer: int, role: str, expert: int | None = None) -> Measured | None:
        """What calibration found for a linear layer; an expert's weights are its own."""
        if self.ranges is None:
            return None
        found = self.ranges.of(layer, role)
        if expert is None or found.experts is None:
            return found
        return replace(found, weights=float(found.experts[expert]), experts=None)


def rows(architecture: Architecture, dims: Dims, stored: Stored) -> tuple[Row, ...]:
    """Every tensor of the checkpoint."""
    found = [row for tensor in kept(architecture, dims) for row in _of(architecture, tensor, dims, stored)]
    return (*found, *_cache(architecture, dims, stored))


def kept(architecture: Architecture, dims: Dims) -> Iterator[Tensor]:
    """The tensors that are stored: all of the table, without a head that is the embedding."""
    for tensor in architecture.tensors:
        if tensor.exists(dims) and not (tensor.tied_to != "" and dims.facts["tied"] is True):
            yield tensor


def name_of(architecture: Architecture, tensor: Tensor) -> str:
    """What transformers calls it in the class with a head, which alone has no prefix."""
    return tensor.name if tensor.roles[0].startswith("head.") else f"{architecture.prefixes[0]}{tensor.name}"


def is_quantized(tensor: Tensor) -> bool:
    """Whether recipes are for this tensor."""
    return tensor.roles[0].endswith(".weight") and tensor.roles[0].removesuffix(".weight") in QUANTIZED


def _of(architecture: Architecture, tensor: Tensor, dims: Dims, stored: Stored) -> Iterator[Row]:
    name = name_of(architecture, tensor)
    row = Row(FILE, tensor.roles, tensor=name)
    for expert in range(dims.sizes["experts"]) if "{expert}" in name else [None]:
        one = row if expert is None else replace(row, expert=expert, tensor=name.replace("{expert}", str(expert)))
        yield from _encoded(one, tensor, dims, stored)


def _encoded(row: Row, tensor: Tensor, dims: Dims, stored: Stored) -> Iterator[Row]:
    """The row, or one for each layer where what calibration found differs between layers."""
    recipe, role = stored.recipe, tensor.roles[0].rpartition(".")[0]
    norm = recipe is not None and recipe.columns != "" and role in _NORMS
    if recipe is None or not (norm or is_quantized(tensor)):
        yield row
        return
    for layer in range(dims.sizes["layers"]) if recipe.calibrated else [None]:
        if norm:
            found = None if layer is None else stored.of(layer, _NORMS[role])
            yield replace(row, layer=layer, encoding=encodings.scaled(found))
            continue
        found = None if layer is None else stored.of(layer, role, row.expert)
        yield replace(row, layer=layer, encoding=recipe.encode(found, stored.group_size, role not in _FOLDED))


def _cache(architecture: Architecture, dims: Dims, stored: Stored) -> Iterator[Row]:
    """`k_scale` and `v_scale`, under the names of the layers that make keys and values, fused or not.

    Source: nvidia-modelopt 0.47.0: modelopt/torch/export/quant_utils.py (postprocess_state_dict).
    """
    if len(stored.cache) == 0:
        return
    query = next(tensor for tensor in kept(architecture, dims) if tensor.roles[0] == "attn.q.weight")
    attention = name_of(architecture, query).rpartition(".")[0].rpartition(".")[0]
    for layer, step in enumerate(stored.cache):
        for part in ("k", "v"):
            combine = Combine(_constant(step), (("attn.norm.weight",),), scalar=True, axes=0)
            tensor = f"{attention}.{part}_proj.{part}_scale"
            yield Row(FILE, (), tensor=tensor, layer=layer, dtype=FP32, combine=combine)


def _constant(value: float) -> Callable[[Sequence[Array]], Array]:
    return lambda operands: np.array(value, np.float32)
