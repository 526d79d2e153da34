"""What the decoder of each family computes, as data; sizes and names of weights are not here.

One record serves all families and `FAMILIES` fills it in. Whether a projection or a norm has a bias, and whether there
are norms of q and k, follows from the roles that the family's checkpoint holds.

Source of each family's arithmetic: huggingface/transformers@v4.57.6:src/transformers/models/*/modeling_*.py; of Qwen 1,
the modeling_qwen.py that its checkpoints carry (huggingface.co/Qwen/Qwen-7B).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from types import MappingProxyType
from typing import Any

from llmcompile.architectures.spec import Dims
from llmcompile.errors import Problem

ACTIVATIONS = ("relu", "silu", "swish", "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "quick_gelu")
"""Those that `network` computes."""
_LONGROPE = ("longrope", "su", "yarn")
"""Names Phi-3's config files gave LongRoPE over time (transformers, configuration_phi3.py)."""
_SCALINGS = ("linear", "dynamic", "llama3", "yarn")
"""Kinds of rotary scaling that every family with a rotary embedding may have."""


class Block(Enum):
    """How a layer's two blocks and its norms follow one another."""

    SEQUENTIAL = "each block reads the normed stream and is added to it"
    PARALLEL = "both read the layer's input, normed, and are added together"
    POST_NORM = "each is added to the stream, which is normed then"
    SANDWICH = "as SEQUENTIAL, and each block's output is normed before it is added"


@dataclass(frozen=True, kw_only=True)
class Rotary:
    """A rotary embedding.

    Attributes:
        dim: Elements of each head that are rotated, from the first.
        base: Of the frequencies.
        interleaved: Whether neighbours make a pair, as in GPT-J; halves of `dim` otherwise.
        kind: "default", "linear", "dynamic", "llama3", "yarn" or "longrope".
        scaling: Numbers of the kind, as config.json has them.
        positions: max_position_embeddings.
        original: Positions before LongRoPE; 0 for other kinds.
    """

    dim: int
    base: float
    interleaved: bool = False
    kind: str = "default"
    scaling: Mapping[str, Any] = field(default_factory=dict)
    positions: int = 0
    original: int = 0


@dataclass(frozen=True, kw_only=True)
class Alibi:
    """Biases of the scores that fall with the distance.

    Attributes:
        largest: MPT's alibi_bias_max, which has slopes of its own; 0 for the slopes of BLOOM and Falcon.
        scaled: Whether they are divided by the root of the head's size, as the scores are, and rounded to bfloat16
            before, as Falcon's code does.
    """

    largest: int = 0
    scaled: bool = False


@dataclass(frozen=True, kw_only=True)
class Experts:
    """A mixture of experts.

    Attributes:
        per_token: Experts each token is sent to.
        normalized: Whether the weights of the chosen ones are made to sum to one.
    """

    per_token: int
    normalized: bool


@dataclass(frozen=True, kw_only=True)
class Network:
    """What a decoder computes.

    Attributes:
        eps: What norms add to the variance.
        rms: Whether norms are by the root mean square; by mean and variance otherwise.
        add_one: Whether norms multiply by one plus their weight.
        activation: One of `ACTIVATIONS`.
        block: Order of a layer's parts.
        residual_after_norm: Whether blocks are added to the normed stream instead of the stream (BLOOM's option).
        rotary: None where positions are not rotary.
        alibi: None likewise.
        score_scale: What scores are multiplied by.
        score_scale_by_layer: Whether they are divided by the layer's number, from 1, besides (GPT-2's option).
        score_cap: Soft cap of the scores.
        logit_cap: Soft cap of the logits.
        clip: Largest magnitude of an element of q, k and v.
        windows: For each layer, how many tokens back a token attends, itself included; None for all.
        embedding_scale: What embeddings are multiplied by.
        experts: None for a plain feed-forward.
    """

    eps: float
    rms: bool = False
    add_one: bool = False
    activation: str
    block: Block = Block.SEQUENTIAL
    residual_after_norm: bool = False
    rotary: Rotary | None = None
    alibi: Alibi | None = None
    score_scale: float
    score_scale_by_layer: bool = False
    score_cap: float | None = None
    logit_cap: float | None = None
    clip: float | None = None
    windows: tuple[int | None, ...]
    embedding_scale: float = 1.0
    experts: Experts | None = None


def _number(dims: Dims, fact: str) -> float:
    return float(str(dims.facts[fact]))


def _optional(dims: Dims, fact: str) -> float | None:
    return None if dims.facts[fact] is None else _number(dims, fact)


def _plain(dims: Dims) -> Network:
    """What GPT-2 computes: layer norms, one block after the other, no positions but those of the embedding."""
    return Network(
        eps=_number(dims, "norm_eps"),
        activation=str(dims.facts["activation"]),
        score_scale=dims.sizes["head_dim"] ** -0.5,
        windows=(None,) * dims.sizes["layers"],
    )


def _rotary(dims: Dims, dim: int | None = None) -> Rotary:
    """The rotary embedding of config.json, of whole heads unless told otherwise."""
    kind, text = dims.facts["rope_scaling"], dims.facts["rope_config"]
    return Rotary(
        dim=dims.sizes["head_dim"] if dim is None else dim,
        base=_number(dims, "rotary_base"),
        kind="default" if kind is None else str(kind),
        scaling=MappingProxyType({} if text is None else json.loads(str(text))),
        positions=dims.sizes["positions"],
    )


def _part(dims: Dims) -> int:
    """Elements of a head that are rotated, where config.json gives a part."""
    return int(dims.sizes["head_dim"] * _number(dims, "rotary_pct"))


def _window(dims: Dims) -> int | None:
    window = dims.facts["sliding_window"]
    return window if isinstance(window, int) else None


def _everywhere(dims: Dims) -> tuple[int | None, ...]:
    """The window in every layer."""
    return (_window(dims),) * dims.sizes["layers"]


def _from_a_layer_on(dims: Dims) -> tuple[int | None, ...]:
    """The window from one layer on, as Qwen 2 and 3 have it."""
    first = int(str(dims.facts["max_window_layers"]))
    return tuple(_window(dims) if layer >= first else None for layer in range(dims.sizes["layers"]))


def _llama(dims: Dims) -> Network:
    return replace(_plain(dims), rms=True, rotary=_rotary(dims))


def _mistral(dims: Dims) -> Network:
    return replace(_llama(dims), windows=_everywhere(dims))


def _experts(dims: Dims, *, normalized: bool) -> Experts:
    return Experts(per_token=int(str(dims.facts["experts_per_token"])), normalized=normalized)


def _mixtral(dims: Dims) -> Network:
    return replace(_mistral(dims), experts=_experts(dims, normalized=True))


def _qwen(dims: Dims) -> Network:
    return replace(_llama(dims), rotary=_rotary(dims, _part(dims)))


def _qwen2(dims: Dims) -> Network:
    return replace(_llama(dims), windows=_from_a_layer_on(dims))


def _qwen_moe(dims: Dims) -> Network:
    experts = _experts(dims, normalized=dims.facts["normalized_experts"] is True)
    return replace(_mistral(dims), experts=experts)


def _gemma(dims: Dims) -> Network:
    return replace(_llama(dims), add_one=True, embedding_scale=dims.sizes["hidden"] ** 0.5)


def _gemma2(dims: Dims) -> Network:
    """Every other layer, from the first, has the window."""
    return replace(
        _gemma(dims),
        block=Block.SANDWICH,
        score_scale=_number(dims, "query_pre_attn_scalar") ** -0.5,
        score_cap=_optional(dims, "attn_logit_softcapping"),
        logit_cap=_optional(dims, "final_logit_softcapping"),
        windows=tuple(_window(dims) if layer % 2 == 0 else None for layer in range(dims.sizes["layers"])),
    )


def _phi(dims: Dims) -> Network:
    return replace(_plain(dims), block=Block.PARALLEL, rotary=_rotary(dims, _part(dims)))


def _phi3(dims: Dims) -> Network:
    rotary = _rotary(dims, _part(dims))
    if rotary.kind in _LONGROPE:
        rotary = replace(rotary, kind="longrope", original=int(str(dims.facts["original_positions"])))
    return replace(_llama(dims), rotary=rotary, windows=_everywhere(dims))


def _gpt2(dims: Dims) -> Network:
    scale = dims.sizes["head_dim"] ** -0.5 if dims.facts["scale_attn_weights"] is True else 1.0
    by_layer = dims.facts["scale_attn_by_inverse_layer_idx"] is True
    return replace(_plain(dims), score_scale=scale, score_scale_by_layer=by_layer)


def _gpt_bigcode(dims: Dims) -> Network:
    scale = dims.sizes["head_dim"] ** -0.5 if dims.facts["scale_attn_weights"] is True else 1.0
    return replace(_plain(dims), score_scale=scale)


def _starcoder2(dims: Dims) -> Network:
    return replace(_plain(dims), rotary=_rotary(dims), windows=_everywhere(dims))


def _gptj(dims: Dims) -> Network:
    rotary = Rotary(
        dim=int(str(dims.facts["rotary_dim"])),
        base=_number(dims, "rotary_base"),
        interleaved=True,
        positions=dims.sizes["positions"],
    )
    return replace(_plain(dims), block=Block.PARALLEL, rotary=rotary)


def _gptneox(dims: Dims) -> Network:
    block = Block.PARALLEL if dims.facts["parallel_residual"] is True else Block.SEQUENTIAL
    return replace(_plain(dims), block=block, rotary=_rotary(dims, int(str(dims.facts["rotary_dim"]))))


def _opt(dims: Dims) -> Network:
    return replace(_plain(dims), block=Block.SEQUENTIAL if dims.facts["pre_norm"] is True else Block.POST_NORM)


def _bloom(dims: Dims) -> Network:
    after = dims.facts["residual_after_norm"] is True
    return replace(_plain(dims), alibi=Alibi(), residual_after_norm=after)


def _falcon(dims: Dims) -> Network:
    positions = (None, Alibi(scaled=True)) if dims.facts["alibi"] is True else (_rotary(dims), None)
    block = Block.PARALLEL if dims.facts["parallel_attention"] is True else Block.SEQUENTIAL
    return replace(_plain(dims), block=block, rotary=positions[0], alibi=positions[1])


def _mpt(dims: Dims) -> Network:
    scale = _optional(dims, "softmax_scale")
    return replace(
        _plain(dims),
        alibi=Alibi(largest=int(str(dims.facts["alibi_bias_max"]))),
        score_scale=dims.sizes["head_dim"] ** -0.5 if scale is None else scale,
        clip=_optional(dims, "clip_qkv"),
    )


FAMILIES: Mapping[str, Callable[[Dims], Network]] = MappingProxyType(
    {
        "llama": _llama,
        "meta_llama": _llama,
        "mistral": _mistral,
        "mixtral": _mixtral,
        "phi3": _phi3,
        "qwen": _qwen,
        "qwen2": _qwen2,
        "qwen2_moe": _qwen_moe,
        "qwen3": _qwen2,
        "qwen3_moe": _qwen_moe,
        "gemma": _gemma,
        "gemma2": _gemma2,
        "gpt2": _gpt2,
        "gpt_bigcode": _gpt_bigcode,
        "starcoder2": _starcoder2,
        "gptj": _gptj,
        "gptneox": _gptneox,
        "opt": _opt,
        "bloom": _bloom,
        "falcon": _falcon,
        "mpt": _mpt,
        "phi": _phi,
    }
)
"""Decoder-only families by the name of their architecture."""


def refusals(family: str, dims: Dims, sequence_length: int) -> Iterator[Problem]:
    """What a model of a family of `FAMILIES` asks for, and its network or a static graph of it cannot do.

    Args:
        family: Name of the architecture.
        dims: Of the model.
        sequence_length: Tokens of prompt and answer.
    """
    wrong = [fact for fact in _POSITIVE if not _above_zero(dims.facts.get(fact, 1)) and dims.facts[fact] is not None]
    for fact in wrong:
        yield Problem(f"config.json: {fact}", str(dims.facts[fact]), "a number above 0", _CHECK)
    if len(wrong) > 0:
        return
    if dims.facts["activation"] not in ACTIVATIONS:
        yield Problem("config.json: activation", str(dims.facts["activation"]), f"one of {', '.join(ACTIVATIONS)}")
    heads, kv_heads = dims.sizes["heads"], dims.sizes.get("kv_heads", dims.sizes["heads"])
    if kv_heads < 1 or heads % kv_heads != 0:
        yield Problem("config.json: key and value heads", f"{kv_heads} for {heads} heads", "a divisor of them", _CHECK)
    if "rope_scaling" in dims.facts:
        yield from _scaling_refusals(family, dims, sequence_length)
    rotary = FAMILIES[family](dims).rotary
    if rotary is not None and (rotary.dim < 2 or rotary.dim % 2 != 0 or rotary.dim > dims.sizes["head_dim"]):
        found = f"{rotary.dim} of each head's {dims.sizes['head_dim']} elements are rotated"
        yield Problem("config.json: rotary embedding", found, "an even number of them, 2 or more", _CHECK)
    for fact, (key, value) in _ONLY.get(family, {}).items():
        if dims.facts[fact] != value:
            yield Problem(f"config.json: {key}", _said(dims.facts[fact]), _said(value), _NOTHING_ELSE)
    yield from _SPECIAL.get(family, _none)(dims, sequence_length)
    if family in _LEARNED and sequence_length > dims.sizes["positions"]:
        yield _too_long(sequence_length, dims.sizes["positions"], "positions, which the model has a table of")


_CHECK = "check that config.json belongs to these weights"
_POSITIVE = (
    *("query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping", "sliding_window"),
    *("clip_qkv", "softmax_scale", "alibi_bias_max"),
)
"""Facts that are divided by, or that leave nothing where they are zero."""
_NOTHING_ELSE = "our network of this family computes nothing else; try --via optimum"
_LEARNED = ("gpt2", "gpt_bigcode", "opt")
"""Families with a table of positions, which a gather must not leave (NCC_EVRF056)."""
_ONLY: Mapping[str, Mapping[str, tuple[str, object]]] = MappingProxyType(
    {
        "phi": {"qk_norm": ("qk_layernorm", False)},
        "gptj": {"rotary_dim_given": ("rotary_dim, present", True)},
        "gptneox": {"bias": ("attention_bias", True)},
        "opt": {"bias": ("enable_bias", True), "affine_norms": ("layer_norm_elementwise_affine", True)},
        "qwen2_moe": {"dense_layers": ("decoder_sparse_step, mlp_only_layers: layers without experts", 0)},
        "qwen3_moe": {"dense_layers": ("decoder_sparse_step, mlp_only_layers: layers without experts", 0)},
        "mpt": {
            "alibi": ("attn_config.alibi", True),
            "rope": ("attn_config.rope", False),
            "qk_ln": ("attn_config.qk_ln", False),
            "prefix_lm": ("attn_config.prefix_lm", False),
            "logit_scale": ("logit_scale", None),
        },
    }
)
"""Family -> facts that must have one value, with their key in config.json."""


def _said(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else "none" if value is None else str(value)


def _too_long(sequence_length: int, most: int, what: str) -> Problem:
    return Problem("--sequence-length", str(sequence_length), f"at most {most} {what}", f"--sequence-length {most}")


def _none(dims: Dims, sequence_length: int) -> Iterator[Problem]:
    yield from ()


def _scaling_refusals(family: str, dims: Dims, sequence_length: int) -> Iterator[Problem]:
    """Kinds of rotary scaling that have no rule here, or that change with the text."""
    kind = dims.facts["rope_scaling"]
    known = (*_SCALINGS, *_LONGROPE) if family == "phi3" else _SCALINGS
    if kind is not None and kind not in known:
        yield Problem("config.json: rope_scaling", f"type {kind}", f"one of {', '.join(known)}", "try --via optimum")
    if kind == "dynamic" and sequence_length > dims.sizes["positions"]:
        what = "positions: beyond, its dynamic rotary embedding changes with the length of each text"
        yield _too_long(sequence_length, dims.sizes["positions"], what)
    if kind in known and kind is not None:
        scaling = json.loads(str(dims.facts["rope_config"]))
        lists = ("short_factor", "long_factor") if family == "phi3" and kind in _LONGROPE else ()
        half = _part(dims) // 2 if len(lists) > 0 else 0
        for key in lists:
            if not _numbers(scaling.get(key), half):
                yield Problem(f"config.json: rope_scaling.{key}", "absent or another length", f"{half} numbers", _CHECK)
        if kind == "yarn" and len(lists) == 0 and not _above_zero(scaling.get("factor")):
            yield Problem("config.json: rope_scaling.factor", str(scaling.get("factor")), "a number above 0", _CHECK)


def _numbers(value: object, length: int) -> bool:
    return isinstance(value, list) and len(value) == length and all(type(item) in (int, float) for item in value)


def _above_zero(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _qwen_refusals(dims: Dims, sequence_length: int) -> Iterator[Problem]:
    """Beyond seq_length its code rescales the base by the text's length, and queries by their position's logarithm."""
    most = int(str(dims.facts["seq_length"]))
    if sequence_length > most and (dims.facts["dynamic_ntk"] is True or dims.facts["logn_attention"] is True):
        yield _too_long(sequence_length, most, "tokens: beyond, use_dynamic_ntk and use_logn_attn change the network")


def _qwen2_moe_refusals(dims: Dims, sequence_length: int) -> Iterator[Problem]:
    """Which layers have the window, transformers' own kinds of attention do not agree about."""
    window = _window(dims)
    if window is not None and window < sequence_length:
        yield _too_long(sequence_length, window, "tokens, the sliding window, whose layers transformers leaves open")


def _mpt_refusals(dims: Dims, sequence_length: int) -> Iterator[Problem]:
    if dims.facts["norm_type"] not in ("layernorm", "low_precision_layernorm"):
        yield Problem("config.json: norm_type", str(dims.facts["norm_type"]), "layernorm", _NOTHING_ELSE)


_SPECIAL: Mapping[str, Callable[[Dims, int], Iterator[Problem]]] = MappingProxyType(
    {"qwen": _qwen_refusals, "qwen2_moe": _qwen2_moe_refusals, "mpt": _mpt_refusals}
)
