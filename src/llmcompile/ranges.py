"""What calibration measures: how large the inputs and weights of linear layers are, and what that makes of a matrix.

Linear layers that the vendor's runtime fuses, or that read the same input, are one group and share what was measured.
Shape suffixes: C input channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from llmcompile.transforms import Array

STACKS = ("encoder.", "decoder.")
"""What the groups of a model with two stacks begin with; layers of each are counted from 0."""
_BLOCKS: Mapping[str, tuple[str, ...]] = {
    "attn.qkv": ("attn.q", "attn.k", "attn.v"),
    "attn.o": ("attn.o",),
    "cross.qkv": ("cross.q", "cross.k", "cross.v"),
    "cross.o": ("cross.o",),
    "mlp.in": ("mlp.gate", "mlp.up"),
    "mlp.down": ("mlp.down",),
    "experts.in": ("experts.gate", "experts.up"),
    "experts.down": ("experts.down",),
    "shared.in": ("shared.gate", "shared.up"),
    "shared.down": ("shared.down",),
}
GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        f"{stack}{group}": tuple(f"{stack}{role}" for role in roles)
        for stack in ("", *STACKS)
        for group, roles in _BLOCKS.items()
    }
)
"""Group -> roles of its linear layers, which have one range of inputs: all experts of a layer are one group.

Cross attention reads two things, the decoder's states and what the encoder gives, through one fused layer.
"""
EXPERTS = ("experts.in", "experts.down")
"""Groups whose weights have a range for each expert."""
GROUP_OF: Mapping[str, str] = MappingProxyType({role: group for group, roles in GROUPS.items() for role in roles})
CROSS: Mapping[str, int] = MappingProxyType({"decoder.cross.q": 0, "decoder.cross.k": 1, "decoder.cross.v": 1})
"""Role of cross attention -> which of the group's two inputs it reads."""
CACHED: Mapping[str, str] = MappingProxyType(
    {"attn.q": "", "attn.k": "", "attn.v": "", "attn.q_norm": "attn.q", "attn.k_norm": "attn.k"}
)
"""Role of what gives a query, key or value -> the one whose output it replaces; "" for a linear layer."""

SMOOTHING = 0.5
"""Exponent of SmoothQuant: how much of the inputs' range the weights take over.
Source: Xiao et al. 2022, SmoothQuant, section 4.2; NVIDIA/TensorRT-LLM@v0.13.0:examples/llama/convert_checkpoint.py."""
SEARCHED_TOKENS = 512
"""Tokens whose inputs AWQ's search looks at, evenly spaced over all samples."""
STEPS = 11
"""Exponents that AWQ's search tries, from 0 to 1.
Source: nvidia-modelopt 0.47.0: modelopt/torch/quantization/model_calib.py (awq_lite, alpha_step 0.1)."""
_SMALLEST = 2.0**-12
"""Least and, inverted, largest factor of a channel: float16 holds both with its full precision."""


@dataclass(frozen=True)
class Measurement:
    """What the rows of an artifact need to know before they can be made.

    Attributes:
        columns: How a factor of each input channel is found: "" for none, "smooth" or "search".
        group_size: Inputs that share a scale, for "search".
        linears: Whether inputs and weights of linear layers are measured.
        cache: Whether queries, keys and values are measured.
    """

    columns: str = ""
    group_size: int = 128
    linears: bool = True
    cache: bool = False


@dataclass(frozen=True, eq=False)
class Measured:
    """A group of linear layers of one layer.

    Attributes:
        inputs: Largest magnitude of an input, after its channel's factor.
        weights: Largest magnitude of a weight of the artifact's type, divided by its channel's factor.
        columns: Shape (C,), float32: what each input channel is multiplied by before it is quantized, of values that
            the artifact's type holds; None where channels are left as they are.
        experts: `weights` of each expert, float32 of shape (experts,); None for a group of other layers.
    """

    inputs: float
    weights: float
    columns: Array | None = None
    experts: Array | None = None


@dataclass(frozen=True, eq=False)
class Ranges:
    """What calibration found in a model.

    Attributes:
        linears: (layer, group) -> its figures.
        cache: Layer -> largest magnitude of a query, key or value.
        unreached: Layer -> experts that no token was sent to; layers without any are left out.
    """

    linears: Mapping[tuple[int, str], Measured]
    cache: Mapping[int, float]
    unreached: Mapping[int, tuple[int, ...]] = field(default_factory=dict)

    def of(self, layer: int, role: str) -> Measured:
        """The figures of the group that a linear layer belongs to."""
        return self.linears[layer, GROUP_OF[role]]


def smoothing_columns(inputs_C: Array, weights_C: Array, alpha: float = SMOOTHING) -> Array:
    """Factors that even out channels: weights_C ** (1 - alpha) / inputs_C ** alpha; 1 where either is 0.

    Args:
        inputs_C: Largest magnitude of each input channel, float32.
        weights_C: Largest magnitude of the weights of each input channel, float32.
        alpha: Between 0 and 1.

    Returns:
        Shape (C,), float32.

    Source: Xiao et al. 2022, SmoothQuant, equation 4, whose s is the inverse.
    """
    live = (inputs_C > 0) & (weights_C > 0)
    columns = np.ones(inputs_C.shape, np.float64)
    columns[live] = weights_C[live].astype(np.float64) ** (1 - alpha) / inputs_C[live].astype(np.float64) ** alpha
    return bounded(columns)


def search_columns(means_C: Array) -> Sequence[Array]:
    """Factors that AWQ's search tries: means_C ** -a for `STEPS` exponents a, the first of which leaves all as it is.

    Args:
        means_C: Mean magnitude of each input channel, float32.

    Returns:
        `STEPS` arrays of shape (C,), float32, each balanced so that its largest times its smallest is 1.

    Source: Lin et al. 2023, AWQ, section 3.2; mit-han-lab/llm-awq@main:awq/quantize/auto_scale.py
    (_search_module_scale).
    """
    live = np.where(means_C > 0, means_C.astype(np.float64), 1.0)
    tried = []
    for step in range(STEPS):
        scales = np.maximum(live ** (step / (STEPS - 1)), 1e-4)
        scales = np.where(means_C > 0, scales / np.sqrt(scales.max() * scales.min()), 1.0)
        tried.append(bounded(1 / scales))
    return tried


def bounded(columns_C: Array) -> Array:
    """Factors that float16 holds with its full precision, as float32."""
    columns: Array = np.clip(columns_C, _SMALLEST, 1 / _SMALLEST).astype(np.float32)
    return columns
