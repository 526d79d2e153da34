"""The kernels the runtimes share, in float32: norms, attention, positions, activations, the all-reduce.

Shape suffixes: B batch, S query positions, T key positions, N heads of one rank, D head size, H hidden, F inner.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional

from llmcompile.validation.fastertransformer.rank_files import Artifact

_MASKED = -10000.0
_SOFTMAX_EPS = 1e-6
_ROTARY_BASE = 10000.0


def all_reduce(partials: Iterable[Tensor]) -> Tensor:
    """Sum of the ranks' tensors, in rank order; a generator keeps one rank's weights in memory at a time."""
    return reduce(torch.add, partials)


def layer_norm(x: Tensor, gamma_H: Tensor, beta_H: Tensor, eps: float) -> Tensor:
    """Normalise the last axis with mean and biased variance.

    Source: NVIDIA/FasterTransformer@df4a753:src/fastertransformer/kernels/layernorm_kernels.cu:1566-1650
    """
    return functional.layer_norm(x, gamma_H.shape, gamma_H, beta_H, eps)


def rms_norm(x: Tensor, gamma_H: Tensor, eps: float) -> Tensor:
    """Scale the last axis by its root mean square; neither mean nor bias ("T5 layernorm").

    Source: NVIDIA/FasterTransformer@df4a753:src/fastertransformer/kernels/layernorm_kernels.cu:1414-1447
    """
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * gamma_H


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU in its tanh approximation, the only GELU the vendor has.

    Source: NVIDIA/FasterTransformer@df4a753:src/fastertransformer/kernels/activation_kernels.cu:48-57
    """
    return functional.gelu(x, approximate="tanh")


@dataclass(frozen=True)
class Activation:
    """An inner activation.

    Args:
        apply: The elementwise function.
        gated: Whether its result multiplies a second projection, where the runtime has loaded one.
    """

    apply: Callable[[Tensor], Tensor]
    gated: bool = False


_GELU = Activation(gelu_tanh)
_RELU = Activation(functional.relu)
_SILU = Activation(functional.silu)
_GEGLU = Activation(gelu_tanh, gated=True)
_REGLU = Activation(functional.relu, gated=True)
_SIGLU = Activation(functional.silu, gated=True)

ACTIVATIONS: Mapping[str, Activation] = MappingProxyType(
    {
        **dict.fromkeys(("Gelu", "gelu"), _GELU),
        **dict.fromkeys(("Relu", "relu"), _RELU),
        **dict.fromkeys(("Silu", "silu"), _SILU),
        **dict.fromkeys(("GeGLU", "geglu", "gated-gelu"), _GEGLU),
        **dict.fromkeys(("ReGLU", "reglu", "gated-relu"), _REGLU),
        **dict.fromkeys(("SiGLU", "gated-silu"), _SIGLU),
    }
)
"""Spellings config.ini may use; the vendor aborts on any other.

Source: NVIDIA/FasterTransformer@df4a753:src/fastertransformer/utils/activation_types.h:34-57
"""


def project_fused(x_BSH: Tensor, weight_H3L: Tensor) -> Tensor:
    """Queries, keys and values of one rank from one GEMM; result of shape (batch, sequence, 3, hidden / ranks)."""
    return torch.matmul(x_BSH, weight_H3L.flatten(1)).view(*x_BSH.shape[:2], *weight_H3L.shape[1:])


def split_heads(x_BSND: Tensor, heads: int) -> Tensor:
    """Shape (batch, sequence, heads * size) -> (batch, heads, sequence, size)."""
    batch, sequence, width = x_BSND.shape
    return x_BSND.view(batch, sequence, heads, width // heads).transpose(1, 2)


def attend(
    q_BNSD: Tensor, k_BNTD: Tensor, v_BNTD: Tensor, *, scale: float, causal: bool, bias_NST: Tensor | None = None
) -> Tensor:
    """Softmax attention as the unfused context kernels compute it.

    A masked score gets -10000 added, and the softmax divides by its sum plus 1e-6.

    Returns:
        Shape (batch, query positions, heads * head size).

    Source: NVIDIA/FasterTransformer@df4a753:src/fastertransformer/kernels/unfused_attention_kernels.cu:255-332
    """
    scores = torch.matmul(q_BNSD, k_BNTD.transpose(-1, -2)) * scale
    if bias_NST is not None:
        scores = scores + bias_NST
    if causal:
        scores = scores + torch.full(scores.shape[-2:], _MASKED).triu(1)
    weights = torch.exp(scores - scores.amax(-1, keepdim=True))
    weights = weights / (weights.sum(-1, keepdim=True) + _SOFTMAX_EPS)
    return torch.matmul(weights, v_BNTD).transpose(1, 2).flatten(2)


def rotate_interleaved(x_BNSD: Tensor, rotary: int) -> Tensor:
    """Rotary embedding of the first `rotary` channels, pairs (2i, 2i + 1), positions from 0 (GPT-J).

    Source: NVIDIA/FasterTransformer@df4a753:src/fastertransformer/kernels/
    decoder_masked_multihead_attention_utils.h:1325-1382
    """
    even, odd = x_BNSD[..., 0:rotary:2], x_BNSD[..., 1:rotary:2]
    turned = torch.stack(_turn(even, odd, rotary), -1).flatten(-2)
    return torch.cat((turned, x_BNSD[..., rotary:]), -1)


def rotate_halves(x_BNSD: Tensor, rotary: int) -> Tensor:
    """Rotary embedding of the first `rotary` channels, pairs (i, i + rotary / 2), positions from 0 (NeoX, LLaMA).

    Source: NVIDIA/FasterTransformer@df4a753:src/fastertransformer/kernels/unfused_attention_kernels.cu:1426-1465
    """
    low, high = x_BNSD[..., : rotary // 2], x_BNSD[..., rotary // 2 : rotary]
    return torch.cat((*_turn(low, high, rotary), x_BNSD[..., rotary:]), -1)


def _turn(first: Tensor, second: Tensor, rotary: int) -> tuple[Tensor, Tensor]:
    """Rotate each pair by position / 10000 ** (2i / rotary); both of shape (..., sequence, rotary / 2)."""
    positions = torch.arange(first.shape[-2], dtype=torch.float32)[:, None]
    exponents = torch.arange(0, rotary, 2, dtype=torch.float32) / rotary
    angles = positions / torch.pow(torch.tensor(_ROTARY_BASE), exponents)
    cos, sin = angles.cos(), angles.sin()
    return cos * first - sin * second, cos * second + sin * first


def alibi_slopes(heads: int) -> Tensor:
    """Slopes of all `heads`; a rank uses its block of them.

    Below the largest power of two p <= heads: 2 ** (-8 (h + 1) / p). Above it, the odd slopes of 2p heads.

    Returns:
        Shape (heads,), float32.

    Source: NVIDIA/FasterTransformer@df4a753:src/fastertransformer/kernels/gen_relative_pos_bias.cu:211-228
    """
    power = 1 << (heads.bit_length() - 1)
    base, base_above = 2.0 ** (-8.0 / power), 2.0 ** (-8.0 / (2 * power))
    below = [base ** (head + 1) for head in range(power)]
    above = [base_above ** (2 * head + 1) for head in range(heads - power)]
    return torch.tensor(below + above)


def alibi_bias(slopes_N: Tensor, length: int) -> Tensor:
    """Slope times (key position - query position), shape (heads, length, length).

    Source: NVIDIA/FasterTransformer@df4a753:src/fastertransformer/kernels/unfused_attention_kernels.cu:293-298
    """
    positions = torch.arange(length, dtype=torch.float32)
    return slopes_N[:, None, None] * (positions[None, :] - positions[:, None])


def relative_bias(table_NB: Tensor, length: int, *, bidirectional: bool, max_distance: int) -> Tensor:
    """T5 position bias, shape (heads, length, length), from a table of shape (heads, buckets).

    Source: NVIDIA/FasterTransformer@df4a753:src/fastertransformer/kernels/bert_preprocess_kernels.cu:290-337
    """
    positions = torch.arange(length)
    relative = positions[None, :] - positions[:, None]
    distance = relative.abs()
    buckets, above = table_NB.shape[1], torch.zeros_like(distance)
    if bidirectional:
        buckets //= 2
        above = (relative > 0) * buckets
    exact = buckets // 2
    logs = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    far = (exact + (logs * (buckets - exact)).long()).clamp(max=buckets - 1)
    return table_NB[:, above + torch.where(distance < exact, distance, far)]


def project_to_vocabulary(
    artifact: Artifact, name: str, x_BSH: Tensor, *, bias_V: Tensor | None = None, scale: float = 1.0
) -> Tensor:
    """Logits from a (vocabulary, hidden) file, read in blocks of rows.

    Each rank multiplies its block of the padded vocabulary of the same file and the blocks are gathered, so the number
    of ranks does not show here.

    Returns:
        Shape (batch, sequence, vocabulary), float32.

    Source: NVIDIA/FasterTransformer@df4a753:src/fastertransformer/models/multi_gpu_gpt/ParallelGpt.cc:1370-1432
    """
    logits = torch.empty(*x_BSH.shape[:-1], artifact.rows[name].shape[0])
    start = 0
    for block in artifact.row_blocks(name):
        torch.matmul(x_BSH, block.T, out=logits[..., start : start + block.shape[0]])
        start += block.shape[0]
    logits *= scale
    return logits if bias_V is None else logits.add_(bias_V)
