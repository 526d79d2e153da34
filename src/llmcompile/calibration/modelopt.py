"""Calibration by nvidia-modelopt, a layer at a time: its figures, read from the quantizers it puts into the layer.

The one file that imports modelopt. It is given a layer by itself, with parameters in float32, and never the model, so
that no more than a layer is in memory; the checkpoint is written by our own converter. Layers that share an input, one
group, get what modelopt's exporter gives layers it fuses: the mean of their factors, the largest of their ranges.

Source: nvidia-modelopt 0.47.0: modelopt/torch/quantization/model_calib.py (max_calibrate, smoothquant, awq_lite),
modelopt/torch/export/quant_utils.py (preprocess_linear_fusion). Shape suffixes: B samples of a batch, S tokens of each,
H hidden, C input channels.
"""

from __future__ import annotations

import copy
import io
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from importlib import metadata
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from llmcompile.calibration.layers import Layers
from llmcompile.calibration.measuring import (
    LayerRanges,
    Matrix,
    Places,
    Seen,
    find_cached,
    find_matrices,
    input_hook,
    largest_weights,
    output_hook,
    refuse_non_finite,
    rounded,
)
from llmcompile.errors import CheckpointError, LlmCompileError, ToolchainError
from llmcompile.ranges import SMOOTHING, Measured, Measurement, bounded
from llmcompile.validation.reference import Weights

PACKAGE = "nvidia-modelopt"
LEAST = "0.47"
"""The oldest release whose figures were compared with ours."""
INSTALL = "pip install 'llmcompile[trtllm]'"
PRESETS: Mapping[str, str] = MappingProxyType(
    {
        "fp8": "FP8_DEFAULT_CFG",
        "int8_sq": "INT8_SMOOTHQUANT_CFG",
        "int4_awq": "INT4_AWQ_CFG",
        "w4a8_awq": "W4A8_AWQ_BETA_CFG",
        "nvfp4": "NVFP4_DEFAULT_CFG",
    }
)
"""Recipe -> modelopt's configuration of that name."""


def installed_version() -> str:
    """The release of modelopt that is installed; it is not imported.

    Raises:
        ToolchainError: None is, or one that is too old.
    """
    try:
        version = metadata.version(PACKAGE)
    except metadata.PackageNotFoundError as error:
        raise ToolchainError(
            PACKAGE, "not installed", "the extra trtllm, for --calibrator modelopt", INSTALL
        ) from error
    if _numbers(version) < _numbers(LEAST):
        raise ToolchainError(PACKAGE, version, f"{LEAST} or newer", f"pip install --upgrade {PACKAGE}")
    return version


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def measure_layer(
    layers: Layers,
    layer: int,
    batches: Iterable[Tensor],
    *,
    recipe: str | None,
    weights: Weights,
    places: Places,
    measurement: Measurement,
    dtype: torch.dtype,
    samples: int,
    done: Callable[[Tensor], None],
) -> LayerRanges:
    """Let modelopt measure a layer, which cannot be run again afterwards: its parameters are gone.

    AWQ's search runs the layer once more, on as many samples as the first batch has, evenly spaced over all.

    Args:
        layers: The model.
        layer: Its number.
        batches: Hidden states that go in, each of shape (B, S, H).
        recipe: A name in `PRESETS`; None where only the cache is measured.
        weights: The checkpoint.
        places: Where the checkpoint's tensors belong; of each of its groups there must be a linear layer.
        measurement: What is asked for.
        dtype: The artifact's type, to which weights and factors are rounded.
        samples: In all batches.
        done: Given the hidden states that come out of each batch.

    Raises:
        CheckpointError: A weight or an activation is not finite, or a group has no linear layer.
        ToolchainError: modelopt does not import or stopped, or left a linear layer as it is.
    """
    matrices = find_matrices(layers, layer, places)
    _fill(layers, layer, weights)
    with _quietly(), torch.inference_mode():
        try:
            from modelopt.torch import quantization
            from modelopt.torch.quantization.calib import MaxCalibrator
        except Exception as error:  # what it is made of may be absent, or of a release that it does not know
            reason = f"installed, and does not import ({type(error).__name__}: {error})"
            raise ToolchainError(PACKAGE, reason, "one that does", INSTALL) from error

        seen = {group: Seen() for group in matrices}
        cache = MaxCalibrator()
        forward = _Forward(layers, layer, batches, samples=samples, done=done)

        # modelopt stops at what is no number too, but does not say where.
        def on_input(place: tuple[str, int | None], x: Tensor) -> None:
            seen[place[0]].add(x, sums=False, every=0)
            refuse_non_finite(layer, {place: seen[place[0]]}, 0.0)

        def on_output(y: Tensor) -> None:
            refuse_non_finite(layer, {}, float(y.abs().amax()))
            cache.collect(y)

        for group, found in matrices.items():
            forward.hooks.append(found[0].module.register_forward_pre_hook(input_hook(on_input, (group, None))))
        for module in find_cached(layers, layer, places) if measurement.cache else []:
            forward.hooks.append(module.register_forward_hook(output_hook(on_output)))
        if measurement.linears:
            assert recipe is not None
            try:
                config = _config(getattr(quantization, PRESETS[recipe]), recipe, measurement.group_size)
                quantization.quantize(layers.modules[layer], config, forward)
            except (LlmCompileError, OSError, MemoryError):  # of the weights, the disk and the machine
                raise
            except Exception as error:
                reason, hint = f"layer {layer}: {type(error).__name__}: {error}", "--calibrator llmcompile"
                raise ToolchainError(PACKAGE, reason, "a layer that is measured", hint) from error
        else:
            forward(layers.modules[layer])
        linears = {}
        if measurement.linears:
            linears = {
                group: _measured(layer, found, seen[group], weights=weights, measurement=measurement, dtype=dtype)
                for group, found in matrices.items()
            }
    _empty(layers, layer)
    return LayerRanges(linears, float(cache.compute_amax()) if measurement.cache else None)


class _Forward:
    """Runs a layer on all samples; and when it is called again, for a search, on as many as its first batch has.

    Attributes:
        hooks: What looks on the first time, and is taken away then.
    """

    def __init__(
        self,
        layers: Layers,
        layer: int,
        batches: Iterable[Tensor],
        *,
        samples: int,
        done: Callable[[Tensor], None],
    ) -> None:
        """Run nothing yet; `samples` are in all of the batches."""
        self._layers, self._layer, self._batches, self._samples, self._done = layers, layer, batches, samples, done
        self._kept: list[Tensor] = []
        self._number = 0
        self.hooks: list[RemovableHandle] = []

    def __call__(self, module: nn.Module) -> None:
        if self._number > 0:
            self._layers.run(self._layer, torch.cat(self._kept))
            return
        wanted = 0
        for hidden_BSH in self._batches:
            wanted = len(hidden_BSH) if wanted == 0 else wanted
            every = max(1, self._samples // wanted)
            left = wanted - sum(map(len, self._kept))
            self._kept.append(hidden_BSH[-self._number % every :: every][:left].clone())
            self._number += len(hidden_BSH)
            self._done(self._layers.run(self._layer, hidden_BSH))
        for hook in self.hooks:
            hook.remove()


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep what modelopt prints from our standard output, and its warnings from the user."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _fill(layers: Layers, layer: int, weights: Weights) -> None:
    """Make a layer whose modules read their parameters when they run a plain one, which holds them in float32."""
    for path, module in layers.modules[layer].named_modules():
        module.__dict__.pop("forward", None)
        module._forward_pre_hooks.clear()
        module._forward_hooks.clear()
        for name, empty in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            stored = layers.stored[layers.name(layer, name if path == "" else f"{path}.{name}")]
            values = weights.read(stored)
            if values.shape != empty.shape:
                found, expected = f"shape {tuple(values.shape)}", f"{tuple(empty.shape)} by config.json"
                raise CheckpointError(stored, found, expected)
            if not values.isfinite().all():
                hint = "look for NaN in the checkpoint"
                raise CheckpointError(stored, "a weight that is NaN or infinite", "finite numbers", hint)
            module.register_parameter(name, nn.Parameter(values.to(torch.float32, copy=True), requires_grad=False))


def _empty(layers: Layers, layer: int) -> None:
    """Let go of a layer's numbers now: its modules refer to one another, and may stay until they are collected."""
    for module in layers.modules[layer].modules():
        module._parameters.clear()
        module._buffers.clear()
    layers.modules[layer] = nn.Identity()


def _config(preset: Mapping[str, Any], recipe: str, group_size: int) -> dict[str, Any]:
    """Modelopt's own configuration of a recipe, with our group size and SmoothQuant's exponent."""
    config: dict[str, Any] = copy.deepcopy(dict(preset))
    if recipe == "int8_sq":
        config["algorithm"] = {"method": "smoothquant", "alpha": SMOOTHING}
    for entry in config["quant_cfg"]:
        attributes = entry.get("cfg")
        for each in attributes if isinstance(attributes, list) else [attributes]:
            if each is not None and each.get("block_sizes", {}).get("type") == "static":
                each["block_sizes"][-1] = group_size
    return config


def _measured(
    layer: int,
    matrices: list[Matrix],
    seen: Seen,
    *,
    weights: Weights,
    measurement: Measurement,
    dtype: torch.dtype,
) -> Measured:
    """What modelopt found in a group, as its exporter evens it out for layers it fuses."""
    modules: list[Any] = [matrix.module for matrix in matrices]
    for matrix, module in zip(matrices, modules, strict=True):
        if not hasattr(module, "weight_quantizer") or not module.weight_quantizer.is_enabled:
            found = f"layer {layer}: {matrix.stored} left as it is"
            raise ToolchainError(PACKAGE, found, "every linear layer quantized", "--calibrator llmcompile")
    weights_C = np.maximum.reduce([largest_weights(matrix, weights, dtype) for matrix in matrices])
    if measurement.columns == "":
        # The largest of what was rounded is what was largest, rounded.
        largest = torch.stack([module.weight_quantizer.amax.reshape(()) for module in modules]).amax()
        return Measured(max(float(module.input_quantizer.amax) for module in modules), float(largest.to(dtype).float()))
    factors = torch.stack([module.input_quantizer.pre_quant_scale.float().reshape(-1) for module in modules])
    columns = rounded(bounded(factors.mean(0).numpy()), dtype)
    # int4_awq leaves inputs as they are, so modelopt has no range of them.
    inputs = [module.input_quantizer._amax_for_smoothing.reshape(-1) for module in modules if _smoothed(module)]
    assert seen.largest_C is not None
    inputs_C = (torch.stack(inputs).amax(0) if len(inputs) > 0 else seen.largest_C).numpy()
    return Measured(float((inputs_C * columns).max()), float((weights_C / columns).max()), columns)


def _smoothed(module: Any) -> bool:
    return hasattr(module.input_quantizer, "_amax_for_smoothing")
