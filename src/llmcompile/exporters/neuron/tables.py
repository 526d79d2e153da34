"""Tables a network computes when it is built: rotary frequencies and ALiBi slopes, in float32 as transformers has them.

Source: huggingface/transformers@v4.57.6:src/transformers/modeling_rope_utils.py, models/bloom/modeling_bloom.py,
models/falcon/modeling_falcon.py, models/mpt/modeling_mpt.py (the alibi functions of each).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from llmcompile.exporters.neuron.families import Alibi, Rotary


def frequencies(rotary: Rotary) -> Tensor:
    """Radians per position of each pair.

    Returns:
        Shape (1, dim / 2), float32; of LongRoPE (2, dim / 2), those of short texts first.
    """
    return _FREQUENCIES[rotary.kind](rotary)


def magnitude(rotary: Rotary) -> float:
    """What cosines and sines are multiplied by."""
    given = rotary.scaling.get("attention_factor")
    if rotary.kind not in ("yarn", "longrope") or given is not None:
        return 1.0 if given is None else float(given)
    if rotary.kind == "longrope":
        factor = rotary.positions / rotary.original
        return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(rotary.original))
    factor = float(rotary.scaling["factor"])
    whole, every = _given(rotary, "mscale", 0.0), _given(rotary, "mscale_all_dim", 0.0)
    return _mscale(factor, 1.0) if whole == 0 or every == 0 else _mscale(factor, whole) / _mscale(factor, every)


def _given(rotary: Rotary, key: str, default: float) -> float:
    """A number of the scaling; zero counts as absent, as in transformers."""
    value = rotary.scaling.get(key)
    return default if value is None or value == 0 else float(value)


def _mscale(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def _powers(rotary: Rotary) -> Tensor:
    exponents = torch.arange(0, rotary.dim, 2, dtype=torch.int64).float() / rotary.dim
    return torch.pow(rotary.base, exponents)


def _default(rotary: Rotary) -> Tensor:
    return (1.0 / _powers(rotary))[None]


def _linear(rotary: Rotary) -> Tensor:
    return _default(rotary) / float(rotary.scaling["factor"])


def _llama3(rotary: Rotary) -> Tensor:
    """Long waves stretched by a factor, short ones as they are, and a blend between."""
    numbers = rotary.scaling
    keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    factor, low, high, original = (float(numbers[key]) for key in keys)
    plain = _default(rotary)
    wave = 2 * math.pi / plain
    stretched = torch.where(wave > original / low, plain / factor, plain)
    blend = (original / wave - low) / (high - low)
    blended = (1 - blend) * stretched / factor + blend * stretched
    return torch.where(~(wave < original / high) & ~(wave > original / low), blended, stretched)


def _yarn(rotary: Rotary) -> Tensor:
    """Stretched where a pair turns rarely within the original length, as it is where it turns often."""
    numbers, dim = rotary.scaling, rotary.dim
    original = _given(rotary, "original_max_position_embeddings", rotary.positions)

    def pair_of(turns: float) -> float:
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(rotary.base))

    low, high = pair_of(_given(rotary, "beta_fast", 32)), pair_of(_given(rotary, "beta_slow", 1))
    if numbers.get("truncate", True) is not False:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    span = high - low if high != low else 0.001
    ramp = torch.clamp((torch.arange(dim // 2, dtype=torch.float32) - low) / span, 0, 1)
    powers, kept = _powers(rotary), 1 - ramp
    return (1.0 / (float(numbers["factor"]) * powers) * (1 - kept) + 1.0 / powers * kept)[None]


def _longrope(rotary: Rotary) -> Tensor:
    factors = [rotary.scaling["short_factor"], rotary.scaling["long_factor"]]
    return 1.0 / (torch.tensor(factors, dtype=torch.float32) * _powers(rotary))


_FREQUENCIES: Mapping[str, Callable[[Rotary], Tensor]] = MappingProxyType(
    {
        "default": _default,
        "dynamic": _default,
        "linear": _linear,
        "llama3": _llama3,
        "yarn": _yarn,
        "longrope": _longrope,
    }
)


def alibi_slopes(alibi: Alibi, heads: int) -> Tensor:
    """The slope of each head, shape (heads,), float32."""
    if alibi.largest > 0:
        return _mpt_slopes(heads, alibi.largest)
    nearest = 2 ** math.floor(math.log2(heads))
    slopes = _geometric(nearest, torch.arange(1, 1 + nearest, dtype=torch.int32))
    if nearest == heads:
        return slopes
    others = torch.arange(1, 1 + 2 * (heads - nearest), 2, dtype=torch.int32)
    return torch.cat([slopes, _geometric(2 * nearest, others)])


def _geometric(heads: int, powers: Tensor) -> Tensor:
    base = torch.tensor(2 ** (-(2 ** -(math.log2(heads) - 3))), dtype=torch.float32)
    return torch.pow(base, powers)


def _mpt_slopes(heads: int, largest: int) -> Tensor:
    padded = 2 ** math.ceil(math.log2(heads))
    exponents = torch.arange(1, padded + 1, dtype=torch.int64).float() * (largest / padded)
    slopes = 1.0 / torch.pow(2, exponents)
    return slopes if padded == heads else torch.cat([slopes[1::2], slopes[::2]])[:heads]


def alibi_biases(alibi: Alibi, heads: int, positions: int) -> Tensor:
    """What is added to the scores of each head and key position where `alibi.scaled`, before they are scaled.

    Returns:
        Shape (heads, positions), bfloat16: rounded as Falcon's code rounds it.
    """
    return alibi_slopes(alibi, heads)[:, None].bfloat16() * torch.arange(positions)
