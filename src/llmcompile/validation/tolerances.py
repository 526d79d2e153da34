"""How far an artifact's outputs may be from the reference, and why.

The limits are about four times what was measured with `reference.run_reference`, transformers 4.57.6 and
torch 2.13 on CPU, on GPT-2, OPT (pre- and post-norm), BLOOM, GPT-J, GPT-NeoX, LLaMA, BERT, T5 and T5 v1.1 of
2 x 32, 12 x 256, 24 x 512 and 12 x 1024 (layers x hidden) with the default initialisation, and on the trained
all-MiniLM-L6-v2. An error is max |found - expected| / max |expected| of one output, in units of the rounding
step u: 2^-24 for float32, 2^-11 for float16, 2^-8 for bfloat16.

    source of the error               random models             MiniLM      limit
    weights rounded to fp16 or bf16   0.2 - 2.5 u               0.9 - 1.3 u    (8 + sqrt(layers)) u
    arithmetic in fp16 or bf16        0.7 - 6.2 u               1.4 - 1.9 u    7 sqrt(layers) u
    arithmetic in float32             2.4 - 23 u                4.4 - 6.3 u    256 sqrt(layers) u
    GELU by tanh instead of erf       3e-7 - 3e-4               5e-4 - 9e-4    4e-3

Arithmetic is measured against the same rounded weights (MiniLM: together with rounding), and in float32 against
float64; its limit is wider than four times, since another kernel adds in another order and a wrong formula is
still ten times further away. Rounding the weights hardly grows with depth (2 layers 0.4 - 2.5 u, 24 layers
0.2 - 2.5 u); arithmetic grows as its square root (0.2 - 1.8 u per root of a layer).

With weights from N(0, 0.5) a softmax picks one key, and rounding changes which. Already 2 x 32 gives 3 - 23 u
in 16 bits (T5: up to 158 u; in bfloat16 that is 61 % of the largest logit) and 12 - 332 u in float32, which the
limits for float32 still cover. From 12 x 256 on it is 5 - 770 u in 16 bits (T5: up to 2200 u), and float32
differs from float64 by up to 8 % (T5: 63 %): no limit is both met and meaningful. Comparing with a reference
whose weights were rounded as the artifact's are (`reference_rounded`) leaves arithmetic as the only difference,
and works for any weights that float32 itself can be trusted with.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, sqrt
from typing import Final, Literal

Dtype = Literal["fp32", "fp16", "bf16"]

_MANTISSA_BITS: Final[dict[Dtype, int]] = {"fp32": 23, "fp16": 10, "bf16": 7}


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """The limit of one output: |found - expected| <= atol + rtol * |expected|, for each element.

    Attributes:
        atol: In units of the output; at least 0.
        rtol: A fraction; at least 0.
        reason: A sentence for people that says what the limit allows for.
    """

    atol: float
    rtol: float
    reason: str

    def __post_init__(self) -> None:
        """Refuse a limit that is negative or not finite.

        Raises:
            ValueError: It is.
        """
        if not all(isfinite(limit) and limit >= 0 for limit in (self.atol, self.rtol)):
            raise ValueError(f"atol and rtol must be finite and at least 0, got {self.atol} and {self.rtol}")


def tolerance(
    dtype: Dtype,
    *,
    layers: int,
    scale: float,
    approximate: bool,
    arithmetic: Dtype = "fp32",
    reference_rounded: bool = False,
    atol: float | None = None,
    rtol: float | None = None,
) -> Tolerance:
    """Derive the limit for one output of an artifact.

    Args:
        dtype: What the artifact stores its weights in.
        layers: Transformer layers the output has passed through; encoder and decoder layers add up.
        scale: max |expected| over the output's finite elements; at least 0.
        approximate: The runtime computes GELU by its tanh formula where the reference uses erf.
        arithmetic: What the runtime computes in, apart from the weights: fp32 for an emulation on CPU, the
            artifact's own dtype for most kernels on GPU.
        reference_rounded: The reference was run with `rounded_to` this dtype, so rounding is no difference.
        atol: Given by the user; replaces the derived one.
        rtol: Given by the user; replaces the derived one.

    Returns:
        Both limits given: exactly these. One given: this one, and the other as derived.

    Raises:
        ValueError: `layers` is below 1, or `scale` or a given limit is negative or not finite.
    """
    if layers < 1 or not isfinite(scale) or scale < 0:
        raise ValueError(f"layers must be at least 1 and scale finite and at least 0, got {layers} and {scale}")
    given = [flag for flag, limit in (("--atol", atol), ("--rtol", rtol)) if limit is not None]
    if atol is not None and rtol is not None:
        return Tolerance(atol=atol, rtol=rtol, reason="given by --atol and --rtol")

    step = _step(arithmetic)
    relative = (256 if arithmetic == "fp32" else 7) * sqrt(layers) * step
    sources = [f"{arithmetic} arithmetic ({_MANTISSA_BITS[arithmetic]} mantissa bits) through {_count(layers)}"]
    if dtype != "fp32" and not reference_rounded:
        relative += (8 + sqrt(layers)) * _step(dtype)
        step = max(step, _step(dtype))
        sources.append(f"weights rounded to {dtype} ({_MANTISSA_BITS[dtype]} mantissa bits)")
    if approximate:
        relative += 4e-3
        sources.append("GELU by its tanh formula instead of erf")

    derived = f"allows for {', '.join(sources)}, in outputs as large as {scale:.3g}"
    return Tolerance(
        atol=relative * scale if atol is None else atol,
        rtol=2 * step if rtol is None else rtol,
        reason=derived if given == [] else f"given by {given[0]}; the rest {derived}",
    )


def _step(dtype: Dtype) -> float:
    """Give the largest relative error of rounding to nearest: half a unit in the last place."""
    return 2.0 ** -(_MANTISSA_BITS[dtype] + 1)


def _count(layers: int) -> str:
    return "1 layer" if layers == 1 else f"{layers} layers"
