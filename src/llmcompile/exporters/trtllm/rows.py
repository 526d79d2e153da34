"""The tensors of every TensorRT-LLM checkpoint, as tables over canonical roles.

Weights lie (out, in), as in torch. One skeleton serves all decoder-only families; a `Family` says where one differs.
A row whose roles a family does not have is left out, so that biases and second norms need no mention here.

Source: NVIDIA/TensorRT-LLM@v0.9.0:examples/*/convert_checkpoint.py and tensorrt_llm/models/*/convert.py, and for later
releases the recorded conversions under tests/golden/trtllm; docs/formats/trtllm.md has the details.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from llmcompile import quantization
from llmcompile.dtypes import FP16, FP32, DType
from llmcompile.exporters.trtllm import encodings
from llmcompile.plan import Combine, Encoding, Row
from llmcompile.ranges import Ranges
from llmcompile.transforms import Array, cast

RANK = "rank{rank}.safetensors"
MEASURED = ("fp8_measured", "int8_smooth", "awq_measured", "awq_fp8", "fp4_measured")
"""Kinds of a recipe that need calibration."""
_LAYER = "transformer.layers.{layer}."
_QKV = ("attn.q", "attn.k", "attn.v")


@dataclass(frozen=True)
class Family:
    """Where a decoder-only family differs from the skeleton.

    Attributes:
        mlp_norm: Name of the norm before the feed-forward.
        add_one: Whether norm weights are stored as 1 + w.
        mlp: "gated", "fused" (up and gate in one matrix, up first), "experts", or "" for a plain feed-forward.
        bias_once: Whether biases added behind a sum over ranks are on the first rank only: the network adds them all.
        shared_expert: Where in a layer the tensors of an expert for all tokens are, with a final dot; None for none.
        head: Whether the head is stored; Gemma's is the embedding.
    """

    mlp_norm: str = "post_layernorm"
    add_one: bool = False
    mlp: str = ""
    bias_once: bool = False
    shared_expert: str | None = None
    head: bool = True


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How matrices are stored, and the embeddings split.

    Attributes:
        dtype: The model's element type.
        kind: "plain", "deferred" (plain, for the builder to quantize), "weight_only", "awq", "gptq", "fp8",
            "fp8_rowwise", or one of `MEASURED`, which need calibration.
        bits: Of the integers of "weight_only" and "deferred".
        group_size: Inputs that share a scale.
        fp4_tile: What outputs and inputs are multiples of, as "fp4_measured".
        packed_outputs: Whether the integers of "gptq" are packed along the outputs, as AutoAWQ does.
        clamp: Largest magnitude of a weight of "fp8_rowwise".
        layers: Layers of the model, or of its encoder; "fp8_rowwise" leaves the first and the last plain.
        decoder_layers: Layers of the decoder of a model with two stacks.
        kv_scale: Whether each layer has a scale of its key and value cache.
        kv_steps: That scale, layer by layer; empty for ones.
        ranges: What calibration found; None where there is none, or not yet.
        embedding_split: "" for whole tables, "out" by vocabulary, "in" by hidden size.
        share_embedding: Whether the head is left out because it is the embedding.
    """

    dtype: DType
    kind: str = "plain"
    bits: int = 8
    group_size: int = 128
    fp4_tile: tuple[int, int] = (128, 64)
    packed_outputs: bool = False
    clamp: float = 1200.0
    layers: int = 0
    decoder_layers: int = 0
    kv_scale: bool = False
    kv_steps: tuple[float, ...] = ()
    ranges: Ranges | None = None
    embedding_split: str = ""
    share_embedding: bool = False


def decoder_rows(family: Family, recipe: Recipe) -> tuple[Row, ...]:
    """Every tensor a decoder-only model of the family may have."""
    norm = _norms(family)
    once = family.bias_once or recipe.kind == "gptq"
    mlp = _experts(family, recipe) if family.mlp == "experts" else _mlp(family, recipe)
    rows = (
        _embedding("transformer.vocab_embedding", "embed.tokens", recipe, stage="first"),
        _embedding("transformer.position_embedding", "embed.positions", recipe, stage="first"),
        *norm("transformer.ln_embed", "embed.norm", stage="first"),
        *norm(f"{_LAYER}input_layernorm", "attn.norm"),
        *_linear(recipe, f"{_LAYER}attention.qkv", _QKV, "out", uneven="replicate"),
        *_linear(recipe, f"{_LAYER}attention.dense", ("attn.o",), "in"),
        _whole(f"{_LAYER}attention.q_layernorm.weight", "attn.q_norm.weight"),
        _whole(f"{_LAYER}attention.k_layernorm.weight", "attn.k_norm.weight"),
        *norm(f"{_LAYER}{family.mlp_norm}", "mlp.norm"),
        *norm(f"{_LAYER}post_layernorm", "attn.post_norm"),
        *norm(f"{_LAYER}post_feedforward_layernorm", "mlp.post_norm"),
        *mlp,
        *_kv_scale(recipe),
        *norm("transformer.ln_f", "norm", stage="last"),
        *(_head("lm_head", stage="last") if family.head and not recipe.share_embedding else ()),
    )
    return tuple(replace(row, split="first") if once and row.tensor in _SUMMED else row for row in rows)


_SUMMED = (f"{_LAYER}attention.dense.bias", f"{_LAYER}mlp.proj.bias")
"""Biases that follow a product summed over ranks."""


def encoder_decoder_rows(recipe: Recipe, *, gated: bool) -> tuple[Row, ...]:
    """Every tensor an encoder-decoder model may have, for the folders `encoder` and `decoder`."""
    return (
        *_stack(recipe, "encoder", "layers", gated),
        *_stack(recipe, "decoder", "decoder_layers", gated),
        replace(_relative("rel_attn_table", "decoder"), file=f"decoder/{RANK}"),
        *(replace(row, file=f"decoder/{RANK}") for row in _head("lm_head")),
    )


def _stack(recipe: Recipe, stack: str, repeat: str, gated: bool) -> Iterator[Row]:
    layer = f"{stack}_layers.{{layer}}."
    attention = "attention" if stack == "encoder" else "self_attention"
    norm = _norms(Family())
    rows: list[Row] = [
        _embedding("embedding.vocab_embedding", "embed.tokens", recipe),
        _embedding("embedding.position_embedding", f"{stack}.embed.positions", recipe),
        *norm("embedding.embedding_layernorm", f"{stack}.embed.norm"),
        *_attention(recipe, layer, attention, f"{stack}.attn"),
        replace(_relative(f"{layer}{attention}.rel_attn_table", stack), repeat=repeat),
        *(_attention(recipe, layer, "cross_attention", f"{stack}.cross") if stack == "decoder" else ()),
        *norm(f"{layer}mlp_layernorm", f"{stack}.mlp.norm"),
        *_linear(recipe, f"{layer}mlp.fc", (f"{stack}.mlp.gate" if gated else f"{stack}.mlp.up",), "out"),
        *(_linear(recipe, f"{layer}mlp.gate", (f"{stack}.mlp.up",), "out") if gated else ()),
        *_linear(recipe, f"{layer}mlp.proj", (f"{stack}.mlp.down",), "in"),
        *norm("final_layernorm", f"{stack}.norm"),
    ]
    for row in rows:
        yield replace(row, file=f"{stack}/{RANK}")


def _attention(recipe: Recipe, layer: str, name: str, role: str) -> Iterator[Row]:
    yield from _norms(Family())(f"{layer}{name}_layernorm", f"{role}.norm")
    yield from _linear(recipe, f"{layer}{name}.qkv", tuple(f"{role}.{part}" for part in "qkv"), "out")
    yield from _linear(recipe, f"{layer}{name}.dense", (f"{role}.o",), "in")


def _relative(tensor: str, stack: str) -> Row:
    """Relative position biases (heads, buckets), divided by heads."""
    return Row(RANK, (f"{stack}.attn.relative.weight",), split="out", tensor=tensor)


def _whole(tensor: str, role: str, *, stage: str = "") -> Row:
    return Row(RANK, (role,), tensor=tensor, stage=stage)


def _embedding(name: str, role: str, recipe: Recipe, *, stage: str = "") -> Row:
    """A table every rank holds, or each a part of: rows rounded up and padded with zeros, or columns."""
    uneven = "pad" if recipe.embedding_split == "out" else ""
    row = Row(RANK, (f"{role}.weight",), tensor=f"{name}.weight", stage=stage)
    return replace(row, split=recipe.embedding_split, uneven=uneven)


def _head(name: str, *, stage: str = "") -> Iterator[Row]:
    for kind in ("weight", "bias"):
        row = Row(RANK, (f"head.{kind}",), tensor=f"{name}.{kind}", stage=stage)
        yield replace(row, split="out", uneven="pad")


def _norms(family: Family) -> Callable[..., Iterator[Row]]:
    """What makes the rows of a norm of the family."""
    encoding = encodings.add_one() if family.add_one else None

    def norm(name: str, role: str, stage: str = "") -> Iterator[Row]:
        yield replace(_whole(f"{name}.weight", f"{role}.weight", stage=stage), encoding=encoding)
        yield _whole(f"{name}.bias", f"{role}.bias", stage=stage)

    return norm


def _mlp(family: Family, recipe: Recipe) -> Iterator[Row]:
    rows: list[Row] = []
    if family.mlp == "fused":
        rows += _linear(recipe, f"{_LAYER}mlp.fc", ("mlp.up", "mlp.gate"), "out")
    elif family.mlp == "gated":
        # `fc` is the half that is activated.
        rows += _linear(recipe, f"{_LAYER}mlp.fc", ("mlp.gate",), "out")
        rows += _linear(recipe, f"{_LAYER}mlp.gate", ("mlp.up",), "out")
    else:
        rows += _linear(recipe, f"{_LAYER}mlp.fc", ("mlp.up",), "out")
    rows += _linear(recipe, f"{_LAYER}mlp.proj", ("mlp.down",), "in")
    for row in rows:
        yield from _inner_layers(row, recipe)


def _experts(family: Family, recipe: Recipe) -> Iterator[Row]:
    """Stacked experts, up before gate; the router in float32 on every rank; an expert for all tokens beside them."""
    yield replace(_whole(f"{_LAYER}mlp.router.weight", "router.weight"), dtype=FP32)
    rows = [
        *_linear(recipe, f"{_LAYER}mlp.fc", ("experts.up", "experts.gate"), "out"),
        *_linear(recipe, f"{_LAYER}mlp.proj", ("experts.down",), "in"),
    ]
    for row in rows:
        yield from _inner_layers(replace(row, experts=True), recipe)
    if family.shared_expert is not None:
        name = f"{_LAYER}{family.shared_expert}"
        yield from _linear(recipe, f"{name}shared_expert.fc", ("shared.up", "shared.gate"), "out")
        yield from _linear(recipe, f"{name}shared_expert.proj", ("shared.down",), "in")
        yield _whole(f"{name}shared_expert_gate.weight", "shared.switch.weight")


def _inner_layers(row: Row, recipe: Recipe) -> Iterator[Row]:
    """The row as it is, or, for float8 per row, plain in the first and the last layer."""
    if recipe.kind != "fp8_rowwise" or not row.tensor.endswith(".weight"):
        yield row
        return
    for layer in range(recipe.layers):
        inner = 0 < layer < recipe.layers - 1
        yield replace(row, layer=layer, encoding=encodings.fp8_rowwise(recipe.clamp) if inner else None)


def _linear(recipe: Recipe, name: str, roles: Sequence[str], split: str, *, uneven: str = "") -> Iterator[Row]:
    """The weight of a linear layer as the recipe stores it, and its bias: divided like its outputs, or on all ranks."""
    yield from _WEIGHTS[recipe.kind](recipe, name, tuple(roles), split, uneven)
    bias = Row(RANK, tuple(f"{role}.bias" for role in roles), tensor=f"{name}.bias")
    yield replace(bias, split=split, uneven=uneven) if split == "out" else bias


def _plain(recipe: Recipe, name: str, roles: tuple[str, ...], split: str, uneven: str) -> Iterator[Row]:
    weights = tuple(f"{role}.weight" for role in roles)
    row = Row(RANK, weights, tensor=f"{name}.weight", split=split, uneven=uneven, encoding=_integers(recipe))
    yield replace(row, later=lambda shape: encodings.packable(shape, recipe.bits)) if recipe.kind == "deferred" else row


def _integers(recipe: Recipe) -> Encoding | None:
    if recipe.kind == "weight_only":
        return encodings.weight_only(recipe.bits)
    return encodings.awq(recipe.group_size) if recipe.kind == "awq" else None


def _gptq(recipe: Recipe, name: str, roles: tuple[str, ...], split: str, uneven: str) -> Iterator[Row]:
    """Integers in the builder's layout; scales as they are and zeros as offsets, both (in / group, out)."""
    yield Row(
        RANK,
        tuple(f"{role}.qweight" for role in roles),
        tensor=f"{name}.weight",
        split=split,
        uneven=uneven,
        dtype=encodings.INT32,
        encoding=encodings.awq_integers(recipe.dtype) if recipe.packed_outputs else encodings.gptq(recipe.dtype),
    )
    scales = tuple(f"{role}.scales" for role in roles)
    zeros = tuple(f"{role}.qzeros" for role in roles)
    yield Row(
        RANK,
        scales,
        tensor=f"{name}.weights_scaling_factor",
        split=split,
        uneven=uneven,
        in_first=True,
        dtype=FP16,
    )

    def offsets(operands: Sequence[Array]) -> Array:
        """From the scales as they are stored beside: (q - 8) x scale + zero is then 0 where q is the zero point."""
        zeros = encodings.awq_zeros if recipe.packed_outputs else quantization.gptq_zeros
        # A scale that overflows is counted where it is stored; times nothing it is no number.
        with np.errstate(invalid="ignore"):
            return zeros(operands[1], cast(cast(operands[0], FP32, FP16), FP16, FP32), recipe.dtype)

    combine = Combine(offsets, (scales, zeros))
    yield Row(RANK, (), tensor=f"{name}.zero", split=split, uneven=uneven, in_first=True, combine=combine)


def _fp8(recipe: Recipe, name: str, roles: tuple[str, ...], split: str, uneven: str) -> Iterator[Row]:
    """Weights of one scale per tensor; parts of a fused one are brought to the largest of theirs."""
    weights, scales = (tuple(f"{role}.{kind}" for role in roles) for kind in ("weight", "weight_scale"))
    inputs = tuple(f"{role}.input_scale" for role in roles)
    row = Row(RANK, weights, tensor=f"{name}.weight", split=split, uneven=uneven, dtype=encodings.FP8)
    if len(roles) > 1:
        yield replace(row, encoding=encodings.fp8_requantized(), asides=scales)
    else:
        yield row
        yield _scale(f"{name}.weights_scaling_factor", scales)
    yield _scale(f"{name}.activation_scaling_factor", inputs)


def _measured(recipe: Recipe, name: str, roles: tuple[str, ...], split: str, uneven: str) -> Iterator[Row]:
    """Weights with the scales that calibration found for their layer."""
    weights = tuple(f"{role}.weight" for role in roles)
    for layer in range(recipe.decoder_layers if roles[0].startswith("decoder.") else recipe.layers):
        found = None if recipe.ranges is None else recipe.ranges.of(layer, roles[0])
        if recipe.kind == "fp8_measured":
            encoding = encodings.fp8_measured(found, len(roles))
        elif recipe.kind == "int8_smooth":
            encoding = encodings.int8_smooth(found)
        elif recipe.kind == "fp4_measured":
            encoding = encodings.fp4_measured(found, len(roles), recipe.fp4_tile)
        else:
            encoding = encodings.awq_measured(found, recipe.group_size, activations=recipe.kind == "awq_fp8")
        yield Row(RANK, weights, tensor=f"{name}.weight", layer=layer, split=split, uneven=uneven, encoding=encoding)


def _scale(tensor: str, roles: tuple[str, ...]) -> Row:
    """The largest of some scales, in float32."""
    largest = Combine(_largest, tuple((role,) for role in roles), scalar=True, fault=encodings.scale_fault)
    return Row(RANK, (), tensor=tensor, dtype=FP32, combine=largest)


def _largest(operands: Sequence[Array]) -> Array:
    return np.asarray(np.concatenate([operand.reshape(-1) for operand in operands]).max(keepdims=True))


def _kv_scale(recipe: Recipe) -> Iterator[Row]:
    """A scale for each layer, of one where none was measured; the operand only says which layers there are."""
    if not recipe.kv_scale:
        return
    name = f"{_LAYER}attention.kv_cache_scaling_factor"
    row = Row(RANK, (), tensor=name, dtype=FP32, combine=Combine(_constant(1.0), (("attn.norm.weight",),), scalar=True))
    if len(recipe.kv_steps) == 0:
        yield row
    for layer, step in enumerate(recipe.kv_steps):
        yield replace(row, layer=layer, combine=Combine(_constant(step), (("attn.norm.weight",),), scalar=True))


def _constant(value: float) -> Callable[[Sequence[Array]], Array]:
    return lambda operands: np.array([value], np.float32)


_WEIGHTS: Mapping[str, Callable[[Recipe, str, tuple[str, ...], str, str], Iterator[Row]]] = {
    "plain": _plain,
    "deferred": _plain,
    "weight_only": _plain,
    "awq": _plain,
    "fp8_rowwise": _plain,
    "gptq": _gptq,
    "fp8": _fp8,
    **dict.fromkeys(MEASURED, _measured),
}

_GEMMA = Family(mlp="gated", add_one=True, head=False)

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "llama": Family(mlp="gated"),
        "meta_llama": Family(mlp="gated"),
        "mistral": Family(mlp="gated"),
        "mixtral": Family(mlp="experts"),
        "qwen": Family(mlp="gated"),
        "qwen2": Family(mlp="gated"),
        "qwen2_moe": Family(mlp="experts", shared_expert="mlp."),
        "qwen3": Family(mlp="gated"),
        "qwen3_moe": Family(mlp="experts"),
        "gpt2": Family(),
        "gpt_bigcode": Family(),
        "starcoder2": Family(),
        "gptj": Family(bias_once=True),
        "gptneox": Family(mlp_norm="post_attention_layernorm"),
        "opt": Family(),
        "bloom": Family(),
        "falcon": Family(),
        "mpt": Family(),
        "phi": Family(),
        "phi3": Family(mlp="fused"),
        "gemma": _GEMMA,
        "gemma2": replace(_GEMMA, mlp_norm="pre_feedforward_layernorm"),
    }
)
"""Decoder-only families by the name of their architecture."""
ENCODER_DECODER = ("t5", "bart")
"""Families with both stacks."""
