"""What one layer's linear layers see and hold: ranges of inputs, of weights, of keys and values, and AWQ's search.

Shape suffixes: T tokens, C input channels, N outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from llmcompile.calibration.layers import Layers
from llmcompile.errors import CheckpointError
from llmcompile.ranges import EXPERTS, SEARCHED_TOKENS, Measured, Measurement, search_columns, smoothing_columns
from llmcompile.transforms import Array
from llmcompile.validation.reference import Weights

_BLOCK_ELEMENTS = 1 << 22
"""Weights that are in float32 at once."""
_CACHED_ELEMENTS = 1 << 20
"""Weights the search works on at once, in place: what the processor's cache holds."""


Place: TypeAlias = tuple[str, int | None]
"""A group, and which of its inputs, where it has several."""


@dataclass
class Seen:
    """The inputs of a group of linear layers.

    Attributes:
        largest_C: Largest magnitude of each channel.
        sums_C: Sum of magnitudes of each channel, float64.
        tokens: How many.
        kept: Some tokens' inputs, each of shape (tokens, C).
    """

    largest_C: Tensor | None = None
    sums_C: Tensor | None = None
    tokens: int = 0
    kept: list[Tensor] = field(default_factory=list)

    def add(self, x: Tensor, *, sums: bool, every: int) -> None:
        """Count inputs of shape (..., C); keep each token whose number is a multiple of `every`, none for 0."""
        flat_TC = x.reshape(-1, x.shape[-1])
        magnitudes = flat_TC.abs()
        largest = magnitudes.amax(0)
        self.largest_C = largest if self.largest_C is None else torch.maximum(self.largest_C, largest)
        if sums:
            total = magnitudes.sum(0, dtype=torch.float64)
            self.sums_C = total if self.sums_C is None else self.sums_C + total
        if every > 0:
            self.kept.append(flat_TC[-self.tokens % every :: every].clone())
        self.tokens += len(flat_TC)


@dataclass(frozen=True, eq=False)
class LayerRanges:
    """What was found in one layer.

    Attributes:
        linears: Its groups of linear layers.
        cache: The largest of its queries, keys and values; None where that was not asked for.
        unreached: Its experts that no token was sent to.
    """

    linears: Mapping[str, Measured]
    cache: float | None
    unreached: tuple[int, ...] = ()


@dataclass(frozen=True)
class Places:
    """Where tensors of the checkpoint belong, by their names in it.

    Attributes:
        groups: Weight of a linear layer -> its group.
        readers: Weight of a group that has several inputs -> which of them it reads: the number of the expert; in cross
            attention 0 for the decoder's states and 1 for what the encoder gave.
        cached: Weights of what gives queries, keys and values as attention is handed them: linear layers, or the norms
            behind them.
    """

    groups: Mapping[str, str]
    readers: Mapping[str, int] = field(default_factory=dict)
    cached: Collection[str] = ()


@dataclass(frozen=True)
class Matrix:
    """A linear layer of a layer.

    Attributes:
        module: Where it runs.
        stored: Its weight's tensor in the checkpoint.
        in_first: Whether that lies (in, out).
        reader: Which of its group's inputs it reads; None for the only one.
    """

    module: nn.Module
    stored: str
    in_first: bool
    reader: int | None


def measure_layer(
    layers: Layers,
    layer: int,
    batches: Iterable[Tensor],
    *,
    weights: Weights,
    places: Places,
    measurement: Measurement,
    dtype: torch.dtype,
    total_tokens: int,
    done: Callable[[Tensor], None],
) -> LayerRanges:
    """Run a layer on all samples and measure it.

    Args:
        layers: The model.
        layer: Its number.
        batches: Hidden states that go in, each of shape (samples, tokens, hidden).
        weights: The checkpoint.
        places: Where the checkpoint's tensors belong; of each of its groups there must be a linear layer.
        measurement: What is asked for.
        dtype: The artifact's type, to which weights and factors are rounded.
        total_tokens: Of all batches.
        done: Given the hidden states that come out of each batch.

    Raises:
        CheckpointError: An activation or a weight of the artifact's type is not finite, or a group has no linear layer.
    """
    matrices = find_matrices(layers, layer, places)
    readers = {(group, matrix.reader): matrix.module for group, found in matrices.items() for matrix in found[::-1]}
    seen = {place: Seen() for place in readers}
    largest = {"cache": 0.0}
    searched = measurement.columns == "search"
    every = max(1, total_tokens // SEARCHED_TOKENS) if searched else 0

    def on_input(place: Place, x: Tensor) -> None:
        if x.numel() > 0:
            seen[place].add(x, sums=searched, every=every)

    def on_output(y: Tensor) -> None:
        largest["cache"] = max(largest["cache"], float(y.abs().amax()))

    hooks = []
    if measurement.linears:
        hooks += [module.register_forward_pre_hook(input_hook(on_input, place)) for place, module in readers.items()]
    if measurement.cache:
        hooks += [module.register_forward_hook(output_hook(on_output)) for module in find_cached(layers, layer, places)]
    try:
        for hidden in batches:
            done(layers.run(layer, hidden))
    finally:
        for hook in hooks:
            hook.remove()
    refuse_non_finite(layer, seen, largest["cache"])
    linears = {}
    if measurement.linears:
        linears = {
            group: _measured(
                found,
                {reader: inputs for (of, reader), inputs in seen.items() if of == group and inputs.tokens > 0},
                own=group in EXPERTS,
                weights=weights,
                measurement=measurement,
                dtype=dtype,
            )
            for group, found in matrices.items()
        }
    unreached = {
        reader
        for (group, reader), inputs in seen.items()
        if group in EXPERTS and reader is not None and inputs.tokens == 0
    }
    return LayerRanges(
        linears,
        largest["cache"] if measurement.cache else None,
        tuple(sorted(unreached)) if measurement.linears else (),
    )


def input_hook(
    function: Callable[[Place, Tensor], None], place: Place
) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    """A hook before a linear layer that hands over its inputs and their place."""
    return lambda module, arguments: function(place, arguments[0])


def output_hook(function: Callable[[Tensor], None]) -> Callable[[nn.Module, object, Tensor], None]:
    """A hook behind a module that hands over its outputs."""
    return lambda module, arguments, output: function(output)


def refuse_non_finite(layer: int, seen: Mapping[Place, Seen], cache: float) -> None:
    """Stop where an input, or the largest of what is cached, is no number.

    Raises:
        CheckpointError: It is.
    """
    wrong = {
        group: None
        for (group, _), found in seen.items()
        if found.largest_C is not None and not found.largest_C.isfinite().all()
    }
    if len(wrong) > 0 or not np.isfinite(cache):
        subject = f"layer {layer}: {', '.join(wrong) if len(wrong) > 0 else 'keys and values'}"
        raise CheckpointError(
            subject, "an activation that is NaN or infinite", "finite numbers", "look for NaN in the checkpoint"
        )


def find_cached(layers: Layers, layer: int, places: Places) -> Iterable[nn.Module]:
    """What gives the layer's queries, keys and values."""
    for path, module in layers.modules[layer].named_modules():
        if layers.stored.get(layers.name(layer, f"{path}.weight")) in places.cached:
            yield module


def find_matrices(layers: Layers, layer: int, places: Places) -> dict[str, list[Matrix]]:
    """The linear layers of each group, in the model's order.

    Raises:
        CheckpointError: A group has none.
    """
    found: dict[str, list[Matrix]] = {}
    for path, module in layers.modules[layer].named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor) or weight.dim() != 2 or isinstance(module, nn.Embedding):
            continue
        stored = layers.stored[layers.name(layer, f"{path}.weight")]
        group = places.groups.get(stored)
        if group is not None:
            matrix = Matrix(module, stored, type(module).__name__ == "Conv1D", places.readers.get(stored))
            found.setdefault(group, []).append(matrix)
    missing = [group for group in dict.fromkeys(places.groups.values()) if group not in found]
    if len(missing) > 0:
        raise CheckpointError(f"layer {layer}", f"no linear layer of {', '.join(missing)}", "one of each group")
    return found


def _measured(
    matrices: list[Matrix],
    seen: Mapping[int | None, Seen],
    *,
    own: bool,
    weights: Weights,
    measurement: Measurement,
    dtype: torch.dtype,
) -> Measured:
    """What becomes of a group.

    Args:
        matrices: Its linear layers.
        seen: Each of its inputs; of experts, of those that some token was sent to.
        own: Whether weights have a range for each reader.
        weights: The checkpoint.
        measurement: What is asked for.
        dtype: The artifact's type.
    """
    found = [one.largest_C for one in seen.values() if one.largest_C is not None]
    inputs_C: Array = torch.stack(found).amax(0).numpy()
    weights_EC = {matrix.reader: np.zeros_like(inputs_C) for matrix in matrices}
    for matrix in matrices:
        largest = weights_EC[matrix.reader]
        np.maximum(largest, largest_weights(matrix, weights, dtype), out=largest)
    weights_C = np.maximum.reduce([*weights_EC.values()])
    columns: Array | None = None
    if measurement.columns == "smooth":
        columns = rounded(smoothing_columns(inputs_C, weights_C), dtype)
    elif measurement.columns == "search":
        sums = [one.sums_C for one in seen.values() if one.sums_C is not None]
        means_C = (torch.stack(sums).sum(0) / sum(one.tokens for one in seen.values())).float().numpy()
        tried = [rounded(factors, dtype) for factors in search_columns(means_C)]
        kept = {reader: torch.cat(one.kept) for reader, one in seen.items()}
        columns = _best(tried, matrices, kept, weights, dtype, measurement.group_size)
    factors_C = np.ones_like(inputs_C) if columns is None else columns
    experts = {
        reader: float((largest / factors_C).max())
        for reader, largest in weights_EC.items()
        if own and reader is not None
    }
    return Measured(
        float((inputs_C * factors_C).max()),
        float((weights_C / factors_C).max()),
        columns,
        np.array([experts[expert] for expert in sorted(experts)], np.float32) if len(experts) > 0 else None,
    )


def rounded(columns_C: Array, dtype: torch.dtype) -> Array:
    """Factors of values that `dtype` holds, in float32."""
    values: Array = torch.from_numpy(columns_C).to(dtype).float().numpy()
    return values


def largest_weights(matrix: Matrix, weights: Weights, dtype: torch.dtype) -> Array:
    """Largest magnitude of each input channel's weights as the artifact has them: shape (C,), float32.

    Raises:
        CheckpointError: One is no finite number of that type.
    """
    largest_C: Array = torch.stack([rows.abs().amax(0) for rows in row_blocks(matrix, weights, dtype)]).amax(0).numpy()
    if not np.isfinite(largest_C).all():
        name = str(dtype).removeprefix("torch.")
        hint = "--dtype bfloat16" if dtype == torch.float16 else "look for NaN in the checkpoint"
        raise CheckpointError(matrix.stored, f"a weight that is NaN or infinite in {name}", "finite numbers", hint)
    return largest_C


def row_blocks(matrix: Matrix, weights: Weights, dtype: torch.dtype) -> Iterable[Tensor]:
    """Rows of the matrix (N, C) as the artifact has them, in float32."""
    whole = weights.read(matrix.stored)
    whole = whole.T if matrix.in_first else whole
    step = max(1, _BLOCK_ELEMENTS // whole.shape[1])
    for start in range(0, whole.shape[0], step):
        yield whole[start : start + step].to(dtype).float()


def _best(
    tried: list[Array],
    matrices: list[Matrix],
    kept: Mapping[int | None, Tensor],
    weights: Weights,
    dtype: torch.dtype,
    group_size: int,
) -> Array:
    """The factors with which rounding moves the outputs on the kept tokens least; the first of equals.

    A matrix is run on what it reads: an expert's on the tokens that were sent to it, and one without any has no say.

    Source: Lin et al. 2023, AWQ, equation 4.
    """
    factors = [torch.from_numpy(columns) for columns in tried]
    losses = [0.0] * len(tried)
    for matrix in matrices:
        if matrix.reader not in kept:
            continue
        kept_TC = kept[matrix.reader]
        for block in row_blocks(matrix, weights, dtype):
            for rows in torch.split(block, max(1, _CACHED_ELEMENTS // block.shape[1])):
                error, moved = torch.empty_like(rows), rows.new_empty(len(rows), len(kept_TC))
                for index, columns in enumerate(factors):
                    _round_groups_(torch.div(rows, columns, out=error), group_size).mul_(columns).sub_(rows)
                    losses[index] += float(torch.mm(error, kept_TC.T, out=moved).square_().sum())
    return tried[int(np.argmin(losses))]


def _round_groups_(rows: Tensor, group_size: int) -> Tensor:
    """Put in a matrix's place what is left of it in 4 bits, a scale of max / 7 for each row and group.

    As quantization.GroupwiseAwq.
    """
    groups = rows.view(len(rows), -1, group_size)
    scale = groups.abs().amax(2, keepdim=True) / 7.0
    scale[scale == 0] = 1.0
    groups.div_(scale).round_().clamp_(-8, 7).mul_(scale)
    return rows
