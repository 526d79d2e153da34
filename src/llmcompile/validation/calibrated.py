"""The ranges that calibration should have found: measured again, by the whole model at once and by names of its own.

Written apart from the code that calibrates. It runs transformers' model in one piece and looks at what goes into its
linear layers, on as many of the samples as can be afforded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from llmcompile.errors import Problem
from llmcompile.validation.tensorrt_llm.scales import Single

_GROUPS = (
    ("experts.in", re.compile(r"\.experts\.\d+\.(w1|w3|gate_proj|up_proj)$")),
    ("experts.down", re.compile(r"\.experts\.\d+\.(w2|down_proj)$")),
    ("shared.in", re.compile(r"\.shared_expert\.(gate_proj|up_proj)$")),
    ("shared.down", re.compile(r"\.shared_expert\.down_proj$")),
    ("cross.qkv", re.compile(r"\.(EncDecAttention\.[qkv]|encoder_attn\.[qkv]_proj)$")),
    ("cross.o", re.compile(r"\.(EncDecAttention\.o|encoder_attn\.out_proj)$")),
    ("attn.qkv", re.compile(r"\.(q_proj|k_proj|v_proj|qkv_proj|c_attn|query_key_value|Wqkv|SelfAttention\.[qkv])$")),
    ("mlp.in", re.compile(r"\.(gate_proj|up_proj|gate_up_proj|fc1|fc_in|c_fc|dense_h_to_4h|w1|w2|wi|wi_0|wi_1)$")),
    ("mlp.down", re.compile(r"(\.(down_proj|fc2|fc_out|dense_4h_to_h|wo)|mlp\.c_proj)$")),
    ("attn.o", re.compile(r"(\.(o_proj|out_proj|dense|SelfAttention\.o)|attn\.c_proj)$")),
)
"""Where linear layers are in transformers' models, by the end of their path; the first that fits."""
_NUMBER = re.compile(r"\.(\d+)\.")
_NORM = re.compile(r"\.(\d+)\.self_attn\.[qk]_norm$")
"""Norms of queries and keys: what attention is handed, and the cache holds, is theirs."""
_SIBLINGS = (
    ("q_proj", "k_proj", "v_proj"),
    ("q", "k", "v"),
    ("gate_proj", "up_proj"),
    ("w1", "w2"),
    ("wi_0", "wi_1"),
)
_STACK = re.compile(r"(?:^|\.)(encoder|decoder)\.")
_EXPERT_SIBLINGS = (("gate_proj", "up_proj"), ("w1", "w3"))
"""Layers that TensorRT-LLM joins, so that they have one scale."""
_STEPS: Mapping[str, float] = {"FP8": 448.0, "W4A8_AWQ": 448.0, "W8A8_SQ_PER_CHANNEL": 127.0, "NVFP4": 6 * 448.0}
_CACHE_STEPS: Mapping[str, float] = {"INT8": 127.0, "FP8": 448.0}
_SLACK = 2e-3
"""Relative; float32 adds in another order when the model runs in other batches."""
_CALIBRATE = "convert the model again, with the data it was calibrated on"
BATCH_TOKENS = 2048
"""Tokens that are run at once, more or less: that bounds what the run takes, however many samples there are."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """What the scales were measured on.

    Attributes:
        tokens: Shape (samples, length), int64.
        cache_measured: Whether the scale of an FP8 cache is measured too, and not one.
    """

    tokens: Tensor
    cache_measured: bool


def batches(tokens: Tensor) -> Iterator[Tensor]:
    """Samples, shape (samples, length), some at a time: about `BATCH_TOKENS` tokens, or one sample."""
    yield from torch.split(tokens, max(1, BATCH_TOKENS // tokens.shape[1]))


@dataclass
class Seen:
    """What went through a model: (layer, group) -> largest magnitude of each input channel; layer -> of q, k and v.

    Attributes:
        two_stacks: Whether the model has an encoder and a decoder; groups then begin with the stack.
    """

    two_stacks: bool = False
    inputs: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    cache: dict[int, float] = field(default_factory=dict)

    def watch(self, model: nn.Module) -> None:
        """Look at every linear layer of a model when it runs, and at norms between projections and attention."""
        paths = {path for path, _ in model.named_modules()}
        for path, module in model.named_modules():
            normed = _NORM.search(path)
            if normed is not None:
                module.register_forward_hook(self._output(int(normed[1])))
            place = place_of(path, two_stacks=self.two_stacks)
            if place is None or isinstance(module, nn.Embedding) or not hasattr(module, "weight"):
                continue
            module.register_forward_pre_hook(self._input(place))
            if place[1] == "attn.qkv" and path.replace("_proj", "_norm") not in paths:
                module.register_forward_hook(self._output(place[0]))

    def _input(self, place: tuple[int, str]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def look(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            if arguments[0].numel() == 0:
                return
            largest = arguments[0].abs().flatten(0, -2).amax(0)
            before = self.inputs.get(place)
            self.inputs[place] = largest if before is None else torch.maximum(before, largest)

        return look

    def _output(self, layer: int) -> Callable[[nn.Module, object, Tensor], None]:
        def look(module: nn.Module, arguments: object, output: Tensor) -> None:
            self.cache[layer] = max(self.cache.get(layer, 0.0), float(output.abs().amax()))

        return look


def place_of(path: str, *, two_stacks: bool = False) -> tuple[int, str] | None:
    """Layer and group of a linear layer by its path in transformers' model; None for anything else.

    Args:
        path: Without ".weight".
        two_stacks: Whether the group is to begin with the stack; some models of one call that a decoder.
    """
    number, stack = _NUMBER.search(path), _STACK.search(path)
    group = next((name for name, ending in _GROUPS if ending.search(path) is not None), None)
    if number is None or group is None or (two_stacks and stack is None):
        return None
    return int(number[1]), f"{stack[1]}.{group}" if two_stacks and stack is not None else group


def siblings(name: str) -> tuple[str, ...]:
    """The parameters that share a scale with the one called `name`, itself among them."""
    for parts in _EXPERT_SIBLINGS if ".experts." in name else _SIBLINGS:
        for part in parts:
            if name.endswith(f".{part}.weight"):
                return tuple(name.replace(f".{part}.weight", f".{other}.weight") for other in parts)
    return (name,)


class Scales(Protocol):
    """The scales of a checkpoint, by layer of the whole model."""

    def columns(self, layer: int, group: str) -> Tensor | None:
        """What each input channel is multiplied by, shape (C,), float32; None for a recipe without such factors."""

    def activations(self, layer: int, group: str) -> Iterator[Single]:
        """The scale of the inputs of every module of the group."""

    def cache(self, layer: int) -> Iterator[Single]:
        """The scale of keys and values."""


@dataclass(frozen=True)
class Span:
    """What a scale may be, as a multiple of the one that follows from what was seen."""

    least: float
    most: float


ALL = Span(1, 1)
"""All that a scale was measured on was seen."""
PART = Span(1, 16)
"""Some of that was: there may be more in the rest, but not of another order of magnitude."""
OTHER = Span(1 / 32, 32)
"""Another text was. Scales that were measured on one and held against another were 0.3 to 1.8 times what that needs,
with random models of every family and recipes without factors of channels; of trained ones the outliers are in few
tokens, and differ more from text to text. A mistake of units is off by far more. With factors the larger ones magnify
what one text alone has (0.009 was seen), so that the least is a multiple of what the median channel needs.
"""


def scale_differences(
    scales: Scales,
    seen: Seen,
    *,
    algorithm: str | None,
    cache: str | None,
    cache_measured: bool,
    span: Span,
    slack: float = _SLACK,
) -> Iterator[Problem]:
    """Scales of activations and caches that are not those of what was seen.

    Args:
        scales: The checkpoint's.
        seen: What went through the model.
        algorithm: Recipe of the linear layers.
        cache: Recipe of the cache.
        cache_measured: As in `Calibration`; where it is not known, True.
        span: `ALL`, `PART` or `OTHER`.
        slack: How far a scale may be off besides, relatively.
    """
    for (layer, group), inputs_C in sorted(seen.inputs.items()):
        if algorithm is None or algorithm not in _STEPS:
            continue
        columns, own = scales.columns(layer, group), span
        products_C = inputs_C if columns is None else inputs_C * columns
        largest = float(products_C.amax())
        if columns is not None and span.least < 1 and largest > 0:
            # Factors are large where little came in: a channel that only this text wakes says nothing of the others.
            own = Span(span.least * float(products_C.median()) / largest, span.most)
        yield from _unlike(scales.activations(layer, group), largest / _STEPS[algorithm], own, slack)
    for layer, largest in sorted(seen.cache.items()):
        if cache is None:
            continue
        wanted, own = largest / _CACHE_STEPS[cache], span
        if cache == "FP8":
            wanted = max(1.0, wanted) if cache_measured else 1.0
            own = ALL if not cache_measured else Span(1 / wanted, span.most) if span.least < 1 else span
        yield from _unlike(scales.cache(layer), wanted, own, slack)


def _unlike(found: Iterator[Single], wanted: float, span: Span, slack: float) -> Iterator[Problem]:
    if wanted == 0 and span != ALL:
        return
    wanted = wanted if wanted > 0 else 1.0
    low, high = wanted * span.least * (1 - slack), wanted * span.most * (1 + slack)
    for single in found:
        if not (low <= single.value <= high and single.value < math.inf):
            expected = f"{wanted:.6g}, as the model's activations are"
            if span != ALL:
                expected = f"{low:.3g} to {high:.3g}: on what was run, the model's activations need {wanted:.3g}"
            yield Problem(f"{single.name} in {single.file}", f"{single.value:.6g}", expected, _CALIBRATE)
