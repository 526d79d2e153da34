"""What the layers of TensorRT-LLM's networks share, in float32: norms, positions, attention, activations, routing.

Shape suffixes: B batch, S query positions, T key positions, N heads of one rank, D head size, H hidden, R rotary / 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional

Activation = Callable[[Tensor], Tensor]


def layer_norm(x: Tensor, gamma_H: Tensor, beta_H: Tensor | None, eps: float) -> Tensor:
    """Normalise the last axis with mean and biased variance; `beta_H` is None where the network has no bias.

    Source: NVIDIA/TensorRT-LLM@v0.13.0:tensorrt_llm/layers/normalization.py (LayerNorm)
    """
    return functional.layer_norm(x, gamma_H.shape, gamma_H, beta_H, eps)


def rms_norm(x: Tensor, gamma_H: Tensor, eps: float) -> Tensor:
    """Scale the last axis by its root mean square; the weight multiplies as it is stored, without adding 1.

    Source: NVIDIA/TensorRT-LLM@v0.13.0:tensorrt_llm/layers/normalization.py (RmsNorm)
    """
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * gamma_H


def gelu(x: Tensor) -> Tensor:
    """GELU in its tanh approximation: what every spelling of it means to the vendor.

    Source: NVIDIA/TensorRT-LLM@v0.13.0:tensorrt_llm/functional.py (gelu, ACT2FN)
    """
    return functional.gelu(x, approximate="tanh")


def swiglu(x: Tensor) -> Tensor:
    """Split the last axis in halves [value; gate] and return value * silu(gate).

    Source: NVIDIA/TensorRT-LLM@v0.13.0:tensorrt_llm/functional.py (swiglu)
    """
    value, gate = x.chunk(2, -1)
    return functional.silu(gate) * value


ACTIVATIONS: Mapping[str, Activation] = MappingProxyType(
    {
        **dict.fromkeys(("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh"), gelu),
        "relu": functional.relu,
        "silu": functional.silu,
    }
)
"""`hidden_act` -> function of an inner layer that is not fused; a fused one has "swiglu".

Source: NVIDIA/TensorRT-LLM@v0.13.0:tensorrt_llm/functional.py (ACT2FN)
"""


def soft_cap(x: Tensor, cap: float) -> Tensor:
    """Squeeze into (-cap, cap) by tanh."""
    return torch.tanh(x / cap) * cap


@dataclass(frozen=True)
class LinearScaling:
    """Positions divided by `factor`."""

    factor: float


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Long wavelengths divided by `factor`, short ones kept, a ramp between.

    Source: NVIDIA/TensorRT-LLM@v0.13.0:tensorrt_llm/functional.py (RopeEmbeddingUtils.apply_llama3_scaling)
    """

    factor: float
    low: float
    high: float
    original_positions: int


@dataclass(frozen=True, kw_only=True)
class LongRope:
    """A divisor per frequency, of one set up to `original_positions` tokens and of another beyond; sin and cos scaled.

    Source: NVIDIA/TensorRT-LLM@v0.13.0:tensorrt_llm/functional.py
    (RopeEmbeddingUtils.create_sinusoidal_positions_long_rope)
    """

    short: tuple[float, ...]
    long: tuple[float, ...]
    positions: int
    original_positions: int

    @property
    def magnitude(self) -> float:
        """Factor of sin and cos; the same for both sets."""
        extension = self.positions / self.original_positions
        return 1.0 if extension <= 1.0 else math.sqrt(1.0 + math.log(extension) / math.log(self.original_positions))


@dataclass(frozen=True, kw_only=True)
class Rotary:
    """A rotary embedding.

    Args:
        channels: Leading channels of each head that are rotated, even.
        base: Base of the wavelengths.
        interleaved: Whether pairs are (2i, 2i + 1), as in GPT-J; otherwise (i, i + channels / 2), as in GPT-NeoX.
        scaling: How wavelengths are stretched, None for not at all.
    """

    channels: int
    base: float
    interleaved: bool
    scaling: LinearScaling | Llama3Scaling | LongRope | None


def rotation(rotary: Rotary, length: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of positions 0 to `length` - 1, each of shape (length, channels / 2).

    Source: NVIDIA/TensorRT-LLM@v0.13.0:tensorrt_llm/functional.py
    (RopeEmbeddingUtils.create_sinusoidal_positions_for_attention_plugin)
    """
    exponents = torch.arange(0, rotary.channels, 2, dtype=torch.float64) / rotary.channels
    frequencies_R = (1.0 / torch.pow(torch.tensor(rotary.base, dtype=torch.float64), exponents)).to(torch.float32)
    frequencies_R = _stretch(frequencies_R, rotary.scaling, length)
    angles_SR = torch.arange(length, dtype=torch.float32)[:, None] * frequencies_R
    magnitude = rotary.scaling.magnitude if isinstance(rotary.scaling, LongRope) else 1.0
    return angles_SR.cos() * magnitude, angles_SR.sin() * magnitude


def _stretch(frequencies_R: Tensor, scaling: LinearScaling | Llama3Scaling | LongRope | None, length: int) -> Tensor:
    if scaling is None:
        return frequencies_R
    if isinstance(scaling, LinearScaling):
        return frequencies_R / scaling.factor
    if isinstance(scaling, Llama3Scaling):
        return _stretch_llama3(frequencies_R, scaling)
    return frequencies_R / torch.tensor(scaling.short if length <= scaling.original_positions else scaling.long)


def _stretch_llama3(frequencies_R: Tensor, scaling: Llama3Scaling) -> Tensor:
    turns = scaling.original_positions * frequencies_R / (2 * math.pi)
    kept = ((turns - scaling.low) / (scaling.high - scaling.low)).clamp(0.0, 1.0)
    return (1.0 - kept) * frequencies_R / scaling.factor + kept * frequencies_R


def rotate(x_BNSD: Tensor, rotary: Rotary, cos_SR: Tensor, sin_SR: Tensor) -> Tensor:
    """Rotate the leading channels of each head; the others pass.

    Source: NVIDIA/TensorRT-LLM@v0.13.0:tensorrt_llm/functional.py (RopeEmbeddingUtils.apply_rotary_pos_emb)
    """
    turned, passed = x_BNSD[..., : rotary.channels], x_BNSD[..., rotary.channels :]
    if rotary.interleaved:
        first, second = turned[..., 0::2], turned[..., 1::2]
    else:
        first, second = turned.chunk(2, -1)
    pair = (first * cos_SR - second * sin_SR, second * cos_SR + first * sin_SR)
    joined = torch.stack(pair, -1).flatten(-2) if rotary.interleaved else torch.cat(pair, -1)
    return torch.cat((joined, passed), -1)


def alibi_slopes(heads: int, *, bias_max: float) -> Tensor:
    """Slopes of all `heads`; a rank uses its block of them.

    Below the largest power of two p <= heads: 2 ** (-bias_max (h + 1) / p). Above it, the odd slopes of 2p heads.

    Returns:
        Shape (heads,), float32.

    Source: NVIDIA/TensorRT-LLM@v0.13.0:tensorrt_llm/functional.py (generate_alibi_slopes)
    """
    power = 1 << (heads.bit_length() - 1)
    below = [2.0 ** (-bias_max * (head + 1) / power) for head in range(power)]
    above = [2.0 ** (-bias_max * (2 * head + 1) / (2 * power)) for head in range(heads - power)]
    return torch.tensor(below + above)


def alibi_bias(slopes_N: Tensor, length: int) -> Tensor:
    """Slope times (key position - query position), shape (heads, length, length)."""
    positions = torch.arange(length, dtype=torch.float32)
    return slopes_N[:, None, None] * (positions[None, :] - positions[:, None])


def split_heads(x_BSW: Tensor, head_size: int) -> Tensor:
    """Shape (batch, sequence, heads * size) -> (batch, heads, sequence, size)."""
    return x_BSW.view(*x_BSW.shape[:2], -1, head_size).transpose(1, 2)


def attend(
    q_BNSD: Tensor, k_BNTD: Tensor, v_BNTD: Tensor, *, scale: float, cap: float | None, bias_NST: Tensor | None
) -> Tensor:
    """Causal softmax attention; keys and values may have fewer heads, each then serves a run of query heads.

    Args:
        q_BNSD: Shape (batch, heads, sequence, head size).
        k_BNTD: Shape (batch, key heads, sequence, head size).
        v_BNTD: As `k_BNTD`.
        scale: Factor of the products.
        cap: Soft cap of the scaled products, None for none.
        bias_NST: Added after that, shape (heads, sequence, sequence).

    Returns:
        Shape (batch, sequence, heads * head size).

    Source: NVIDIA/TensorRT-LLM@v0.13.0:tensorrt_llm/layers/attention.py (Attention.forward)
    """
    group = q_BNSD.shape[1] // k_BNTD.shape[1]
    k_BNTD, v_BNTD = (x.repeat_interleave(group, 1) for x in (k_BNTD, v_BNTD))
    scores = torch.matmul(q_BNSD, k_BNTD.transpose(-1, -2)) * scale
    if cap is not None:
        scores = soft_cap(scores, cap)
    if bias_NST is not None:
        scores = scores + bias_NST
    scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -math.inf)
    return torch.matmul(torch.softmax(scores, -1), v_BNTD).transpose(1, 2).flatten(2)


def route(x_TH: Tensor, router_EH: Tensor, *, top_k: int, renormalized: bool) -> tuple[Tensor, Tensor]:
    """Experts of each token and their weights: the largest of a softmax over all experts.

    Args:
        x_TH: Shape (tokens, hidden).
        router_EH: Shape (experts, hidden), float32.
        top_k: Experts per token.
        renormalized: Whether the chosen weights are divided by their sum (RENORMALIZE), or are left (NONE).

    Returns:
        Weights and indices, both of shape (tokens, top_k).

    Source: NVIDIA/TensorRT-LLM@v0.13.0:tensorrt_llm/layers/moe.py (MOE.forward, MoeConfig)
    """
    weights, experts = torch.softmax(x_TH @ router_EH.T, -1).topk(top_k, -1)
    return (weights / weights.sum(-1, keepdim=True) if renormalized else weights), experts


def all_reduce(partials: Sequence[Tensor]) -> Tensor:
    """Sum of the ranks' tensors, in rank order."""
    total = partials[0]
    for partial in partials[1:]:
        total = total + partial
    return total
