"""Each block against transformers' own function, or a formula written out."""

from __future__ import annotations

import math

import pytest
import torch
import transformers
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb
from transformers.models.t5.modeling_t5 import T5Attention

from llmcompile.validation.tensorrt_llm import blocks, encdec

LENGTH, HEADS, SIZE = 12, 4, 8


def states() -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys (1, heads, length, size)."""
    numbers = torch.Generator().manual_seed(1)
    return torch.randn(1, HEADS, LENGTH, SIZE, generator=numbers), torch.randn(
        1, HEADS, LENGTH, SIZE, generator=numbers
    )


LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("scaling", "ours"),
    [
        (None, None),
        ({"rope_type": "linear", "factor": 3.0}, blocks.LinearScaling(3.0)),
        (
            {**LLAMA3, "original_max_position_embeddings": 6},
            blocks.Llama3Scaling(factor=4.0, low=1.0, high=4.0, original_positions=6),
        ),
    ],
)
def test_rotary_is_llamas(scaling: dict[str, object] | None, ours: blocks.LinearScaling | None) -> None:
    """Halves of heads are rotated as transformers does, plain, by linear scaling and by LLaMA 3.1's."""
    config = transformers.LlamaConfig(
        hidden_size=HEADS * SIZE, num_attention_heads=HEADS, rope_theta=500.0, rope_scaling=scaling
    )
    q, k = states()
    cos, sin = LlamaRotaryEmbedding(config)(q, torch.arange(LENGTH)[None])
    expected, _ = apply_rotary_pos_emb(q, k, cos, sin)

    rotary = blocks.Rotary(channels=SIZE, base=500.0, interleaved=False, scaling=ours)
    found = blocks.rotate(q, rotary, *blocks.rotation(rotary, LENGTH))

    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_interleaved_pairs_are_neighbours() -> None:
    """Channels 2 i and 2 i + 1 of the first four turn by position / base ** (i / 2); the others pass."""
    q, _ = states()
    rotary = blocks.Rotary(channels=4, base=100.0, interleaved=True, scaling=None)

    found = blocks.rotate(q, rotary, *blocks.rotation(rotary, LENGTH))

    for position in (0, 5, 11):
        for pair in (0, 1):
            angle = position / 100.0 ** (pair / 2)
            x, y = q[0, 1, position, 2 * pair], q[0, 1, position, 2 * pair + 1]
            turned = torch.stack([x * math.cos(angle) - y * math.sin(angle), y * math.cos(angle) + x * math.sin(angle)])
            torch.testing.assert_close(found[0, 1, position, 2 * pair : 2 * pair + 2], turned, rtol=1e-5, atol=1e-5)
    assert torch.equal(found[..., 4:], q[..., 4:])


@pytest.mark.parametrize("heads", [4, 6, 8, 12])
def test_alibi_is_blooms(heads: int) -> None:
    """Slopes of any number of heads; a bias differs from BLOOM's by a constant for each query."""
    expected = build_alibi_tensor(torch.ones(1, LENGTH), heads, torch.float32).view(heads, LENGTH)

    found = blocks.alibi_bias(blocks.alibi_slopes(heads, bias_max=8.0), LENGTH)

    torch.testing.assert_close(found[:, 0], expected)


def test_norms_are_torchs() -> None:
    """LayerNorm with and without a bias, and RMSNorm."""
    x, gamma, beta = torch.randn(3, 8), torch.randn(8), torch.randn(8)
    centred = (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, unbiased=False, keepdim=True) + 1e-3)

    torch.testing.assert_close(blocks.layer_norm(x, gamma, beta, 1e-3), centred * gamma + beta)
    torch.testing.assert_close(blocks.layer_norm(x, gamma, None, 1e-3), centred * gamma)
    expected = x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-3) * gamma
    torch.testing.assert_close(blocks.rms_norm(x, gamma, 1e-3), expected)


def test_shared_heads_serve_runs_of_queries() -> None:
    """Of four query heads and two of keys, the first two use the first; later keys are not seen."""
    q, k = states()
    found = blocks.attend(q, k[:, :2], k[:, 2:], scale=0.3, cap=None, bias_NST=None).view(LENGTH, HEADS, SIZE)

    for head in range(HEADS):
        for at in (0, 7):
            scores = torch.softmax(0.3 * k[0, head // 2, : at + 1] @ q[0, head, at], 0)
            torch.testing.assert_close(found[at, head], scores @ k[0, 2 + head // 2, : at + 1])


def test_router_takes_the_largest() -> None:
    """Two of three experts by a softmax over all, as they are or made to sum to one."""
    x, router = torch.eye(2), torch.tensor([[1.0, 0.0], [3.0, 0.0], [2.0, 1.0]])
    chances = torch.softmax(torch.tensor([1.0, 3.0, 2.0]), 0)

    weights, experts = blocks.route(x, router, top_k=2, renormalized=False)
    one, _ = blocks.route(x, router, top_k=2, renormalized=True)

    assert experts[0].tolist() == [1, 2]
    torch.testing.assert_close(weights[0], chances[[1, 2]])
    torch.testing.assert_close(one.sum(-1), torch.ones(2))


@pytest.mark.parametrize("bidirectional", [True, False])
def test_buckets_are_t5s(bidirectional: bool) -> None:
    """Of distances up to 40, both ways."""
    expected = T5Attention._relative_position_bucket(
        torch.arange(40)[None] - torch.arange(40)[:, None], bidirectional, num_buckets=12, max_distance=30
    )

    assert torch.equal(encdec._buckets(40, 12, 30, bidirectional=bidirectional), expected)
