"""config.json of the GPTs: GPT-2, BigCode, StarCoder2, GPT-J, GPT-NeoX, OPT, BLOOM, Falcon and MPT.

Sources: NVIDIA/TensorRT-LLM:tensorrt_llm/models/{gpt,gptj,gptneox,opt,bloom,falcon,mpt}/{config,model}.py and
examples/*/convert_checkpoint.py at v0.9.0, 0.10.0.dev2024043000, 0.12.0.dev2024073000, 0.13.0, 0.15.0.dev2024111200 and
0.16.0.dev2024121000. Where upstream writes less than its model classes read, the fields are those that are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from llmcompile.architectures.spec import Dims
from llmcompile.errors import Problem
from llmcompile.exporters.trtllm.config.pretrained import (
    HUGGING_FACE_NAMES,
    Config,
    Given,
    Notes,
    Refusals,
    activation,
    activation_notes,
    activation_refusals,
    at_least,
    no_pipeline,
    pretrained_config,
    rope_refusals,
    rotary,
)

_LEARNED, _NEOX, _GPTJ = "learned_absolute", "rope_gpt_neox", "rope_gptj"
_EPSILON = 1e-5
"""Default of LayerNorm in layers/normalization.py, which several model classes do not change."""
_BASE = 10000.0
_FALCON_KEYS = (0, 15, 0)
"""First release seen whose Falcon reads num_ln_in_parallel_attn and rotary_base; 0.13 lacks them."""


def _gpt(dims: Dims, given: Given, architecture: str, variant: str, *, kv_heads: int, bias: bool) -> dict[str, Any]:
    """The fields of upstream's class GPTForCausalLM, which was also the only name of it before 0.12."""
    return {
        **pretrained_config(
            dims,
            given,
            architecture=architecture if given.version >= HUGGING_FACE_NAMES else "GPTForCausalLM",
            hidden_act=activation(dims, given),
            position_embedding_type=_LEARNED,
            kv_heads=kv_heads,
            positions=dims.sizes["positions"],
        ),
        "gpt_variant": variant,
        "bias": bias,
        "rotary_pct": 1.0,
        "rotary_base": _BASE,
        "rotary_scaling": None,
        "q_scaling": 1.0,
        "apply_query_key_layer_scaling": False,
        "embedding_scale": None,
        "inner_layernorm": False,
        "norm_before_bmm1": False,
        "qk_layernorm": False,
    }


def gpt2(dims: Dims, given: Given) -> Mapping[str, Any]:
    """GPT-2."""
    return _gpt(dims, given, "GPT2LMHeadModel", "gpt2", kv_heads=dims.sizes["heads"], bias=True)


def gpt_bigcode(dims: Dims, given: Given) -> Mapping[str, Any]:
    """SantaCoder and StarCoder, which the model class does not tell apart."""
    return _gpt(dims, given, "GPTBigCodeForCausalLM", "starcoder", kv_heads=dims.sizes["kv_heads"], bias=True)


def starcoder2(dims: Dims, given: Given) -> Mapping[str, Any]:
    """StarCoder2, whose window is an option of the runtime."""
    bias = dims.facts["bias"] is True
    fields = _gpt(dims, given, "Starcoder2ForCausalLM", "starcoder2", kv_heads=dims.sizes["kv_heads"], bias=bias)
    act = _one_gelu(dims, given)
    return {**fields, "hidden_act": act, "position_embedding_type": _NEOX, **rotary(dims)}


def gptj(dims: Dims, given: Given) -> Mapping[str, Any]:
    """GPT-J."""
    return {
        **pretrained_config(
            dims,
            given,
            architecture="GPTJForCausalLM",
            hidden_act=_one_gelu(dims, given),
            position_embedding_type=_GPTJ,
            kv_heads=dims.sizes["heads"],
            positions=dims.sizes["positions"],
        ),
        "rotary_dim": dims.facts["rotary_dim"],
    }


def gptneox(dims: Dims, given: Given) -> Mapping[str, Any]:
    """GPT-NeoX."""
    return {
        **pretrained_config(
            dims,
            given,
            architecture="GPTNeoXForCausalLM",
            hidden_act=activation(dims, given),
            position_embedding_type=_NEOX,
            kv_heads=dims.sizes["heads"],
            positions=dims.sizes["positions"],
        ),
        "rotary_emb_base": dims.facts["rotary_base"],
        "rotary_pct": dims.facts["rotary_pct"],
    }


def opt(dims: Dims, given: Given) -> Mapping[str, Any]:
    """OPT."""
    return {
        **pretrained_config(
            dims,
            given,
            architecture="OPTForCausalLM",
            hidden_act=activation(dims, given),
            position_embedding_type=_LEARNED,
            kv_heads=dims.sizes["heads"],
            positions=dims.sizes["positions"],
        ),
        "do_layer_norm_before": dims.facts["pre_norm"],
    }


def bloom(dims: Dims, given: Given) -> Mapping[str, Any]:
    """BLOOM, which has no limit of positions."""
    return pretrained_config(
        dims,
        given,
        architecture="BloomForCausalLM",
        hidden_act=_one_gelu(dims, given),
        position_embedding_type="alibi",
        kv_heads=dims.sizes["heads"],
        positions=None,
    )


def falcon(dims: Dims, given: Given) -> Mapping[str, Any]:
    """Falcon."""
    return {
        **pretrained_config(
            dims,
            given,
            architecture="FalconForCausalLM",
            hidden_act=activation(dims, given),
            position_embedding_type="alibi_with_scale" if dims.facts["alibi"] is True else _NEOX,
            kv_heads=dims.sizes["kv_heads"],
            positions=dims.sizes["positions"],
        ),
        "bias": dims.facts["bias"],
        "parallel_attention": dims.facts["parallel_attention"],
        "new_decoder_architecture": dims.facts["grouped"],
        "num_ln_in_parallel_attn": 2 if dims.facts["two_norms"] is True else 1,
        "rotary_base": dims.facts["rotary_base"],
    }


def mpt(dims: Dims, given: Given) -> Mapping[str, Any]:
    """MPT, by the class name that upstream's model map has."""
    return {
        **pretrained_config(
            dims,
            given,
            architecture="MPTForCausalLM",
            hidden_act=activation(dims, given),
            position_embedding_type="alibi",
            kv_heads=dims.sizes["kv_heads"],
            positions=dims.sizes["positions"],
        ),
        "bias": False,
        "clip_qkv": dims.facts["clip_qkv"],
        "alibi_bias_max": dims.facts["alibi_bias_max"],
    }


def _wanted(dims: Dims, family: str, wanted: Mapping[str, tuple[str, object]]) -> Iterator[Problem]:
    """Keys of config.json, by fact, that upstream's model class assumes to have one value."""
    for fact, (key, value) in wanted.items():
        found = dims.facts[fact]
        if found != value:
            yield Problem(
                f"config.json: {key}", _said(found), _said(value), f"TensorRT-LLM's {family} computes nothing else"
            )


def _said(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else "none" if value is None else str(value)


def _one_gelu(dims: Dims, given: Given) -> str:
    """The activation as the converter of the family writes it: "gelu" for every spelling of the tanh formula."""
    name = activation(dims, given)
    return "gelu" if name.startswith("gelu") else name


def _epsilon(dims: Dims, family: str) -> Iterator[Problem]:
    """An epsilon other than the one that some or all norms of a model class have compiled in."""
    if dims.facts["norm_eps"] != _EPSILON:
        yield Problem(
            "config.json: layer_norm_epsilon",
            str(dims.facts["norm_eps"]),
            str(_EPSILON),
            f"it is compiled into norms of TensorRT-LLM's {family}",
        )


def _four_times(family: str) -> Refusals:
    """A width of the MLP other than the one compiled into a model class, which ignores intermediate_size."""

    def problems(dims: Dims, _given: Given) -> Iterator[Problem]:
        ffn, hidden = dims.sizes["ffn"], dims.sizes["hidden"]
        if ffn != 4 * hidden:
            yield Problem(
                "config.json: the MLP's width",
                str(ffn),
                f"4 x hidden {hidden} = {4 * hidden}, compiled into TensorRT-LLM's {family}",
                "add --stop-after checkpoint for a network of your own; trtllm-build cannot load it",
            )

    return problems


def _gpt2_refusals(dims: Dims, given: Given) -> Iterator[Problem]:
    yield from activation_refusals(dims, given)
    yield from _wanted(
        dims,
        "GPT-2",
        {
            "scale_attn_weights": ("scale_attn_weights", True),
            "scale_attn_by_inverse_layer_idx": ("scale_attn_by_inverse_layer_idx", False),
        },
    )


def _bigcode_refusals(dims: Dims, given: Given) -> Iterator[Problem]:
    yield from activation_refusals(dims, given)
    yield from _wanted(dims, "BigCode", {"scale_attn_weights": ("scale_attn_weights", True)})


def _starcoder2_refusals(dims: Dims, given: Given) -> Iterator[Problem]:
    yield from activation_refusals(dims, given)
    yield from rope_refusals(dims, given)


def _gptj_refusals(dims: Dims, given: Given) -> Iterator[Problem]:
    yield from activation_refusals(dims, given)
    yield from _epsilon(dims, "GPT-J")


def _gptneox_refusals(dims: Dims, given: Given) -> Iterator[Problem]:
    yield from activation_refusals(dims, given)
    yield from no_pipeline(dims, given, "GPT-NeoX")
    yield from _epsilon(dims, "GPT-NeoX")
    yield from _wanted(
        dims,
        "GPT-NeoX",
        {
            "parallel_residual": ("use_parallel_residual", True),
            "bias": ("attention_bias", True),
            "rope_scaling": ("rope_scaling", None),
        },
    )


def _opt_refusals(dims: Dims, given: Given) -> Iterator[Problem]:
    yield from activation_refusals(dims, given)
    yield from no_pipeline(dims, given, "OPT")
    if dims.facts["projected"] is True:
        yield Problem(
            "config.json: word_embed_proj_dim",
            str(dims.sizes["width"]),
            f"hidden_size, {dims.sizes['hidden']}",
            "TensorRT-LLM's OPT has no projections, which OPT-350m alone needs",
        )
    yield from _wanted(
        dims,
        "OPT",
        {"bias": ("enable_bias", True), "affine_norms": ("layer_norm_elementwise_affine", True)},
    )
    if dims.facts["final_norm"] is not dims.facts["pre_norm"]:
        yield Problem(
            "config.json: _remove_final_layer_norm", "true", "false", "TensorRT-LLM's OPT has the norm with pre-norms"
        )


def _bloom_refusals(dims: Dims, given: Given) -> Iterator[Problem]:
    yield from no_pipeline(dims, given, "BLOOM")
    yield from _epsilon(dims, "BLOOM")
    yield from _wanted(dims, "BLOOM", {"residual_after_norm": ("apply_residual_connection_post_layernorm", False)})


def _falcon_refusals(dims: Dims, given: Given) -> Iterator[Problem]:
    yield from activation_refusals(dims, given)
    yield from _epsilon(dims, "Falcon")
    if dims.facts["alibi"] is not True:
        yield from _wanted(dims, "Falcon", {"rope_scaling": ("rope_scaling", None)})
        if dims.facts["rotary_base"] != _BASE:
            yield from at_least(given, _FALCON_KEYS, f"a rotary base of Falcon other than {_BASE:g}")
    if dims.facts["grouped"] is True:
        yield from _wanted(dims, "Falcon", {"parallel_attention": ("parallel_attn", True)})
        if dims.facts["parallel_attention"] is True and dims.facts["two_norms"] is not True:
            yield from at_least(given, _FALCON_KEYS, "one norm for attention and MLP, as in Falcon2-11B")
    elif dims.facts["two_norms"] is True:
        yield Problem("config.json: num_ln_in_parallel_attn", "2", "1 without new_decoder_architecture")


def _mpt_refusals(dims: Dims, given: Given) -> Iterator[Problem]:
    yield from no_pipeline(dims, given, "MPT")
    yield from _epsilon(dims, "MPT")
    yield from _wanted(
        dims,
        "MPT",
        {
            "bias": ("no_bias, inverted", False),
            "alibi": ("attn_config.alibi", True),
            "rope": ("attn_config.rope", False),
            "qk_ln": ("attn_config.qk_ln", False),
            "prefix_lm": ("attn_config.prefix_lm", False),
            "softmax_scale": ("attn_config.softmax_scale", None),
            "logit_scale": ("logit_scale", None),
        },
    )
    if dims.facts["norm_type"] not in ("layernorm", "low_precision_layernorm"):
        yield Problem(
            "config.json: norm_type", str(dims.facts["norm_type"]), "layernorm", "TensorRT-LLM's MPT has no other"
        )


def _starcoder2_notes(dims: Dims, given: Given) -> Iterator[str]:
    yield from activation_notes(dims, given)
    window = dims.facts["sliding_window"]
    if isinstance(window, int) and window < dims.sizes["positions"]:
        yield f"attention reaches {window} tokens back; give the runtime max_attention_window [{window}]"


CONFIGS: Mapping[str, Config] = MappingProxyType(
    {
        "gpt2": gpt2,
        "gpt_bigcode": gpt_bigcode,
        "starcoder2": starcoder2,
        "gptj": gptj,
        "gptneox": gptneox,
        "opt": opt,
        "bloom": bloom,
        "falcon": falcon,
        "mpt": mpt,
    }
)
REFUSALS: Mapping[str, Refusals] = MappingProxyType(
    {
        "gpt2": _gpt2_refusals,
        "gpt_bigcode": _bigcode_refusals,
        "starcoder2": _starcoder2_refusals,
        "gptj": _gptj_refusals,
        "gptneox": _gptneox_refusals,
        "opt": _opt_refusals,
        "bloom": _bloom_refusals,
        "falcon": _falcon_refusals,
        "mpt": _mpt_refusals,
    }
)
NOTES: Mapping[str, Notes] = MappingProxyType(
    {
        **dict.fromkeys(CONFIGS, activation_notes),
        "starcoder2": _starcoder2_notes,
    }
)
UNBUILDABLE: Mapping[str, Refusals] = MappingProxyType(
    {"gptj": _four_times("GPT-J"), "gptneox": _four_times("GPT-NeoX"), "mpt": _four_times("MPT")}
)
"""Family -> why a checkpoint that can be written cannot be built: the vendor's converter writes it all the same."""
