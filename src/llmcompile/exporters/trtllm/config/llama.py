"""config.json of LLaMA and its relatives: Mistral, Mixtral, Qwen, Gemma and Phi.

Sources: NVIDIA/TensorRT-LLM:tensorrt_llm/models/{llama,qwen,gemma,phi,phi3}/{config,model}.py at 0.9.0.dev2024031200,
0.10.0.dev2024043000, 0.11.0.dev2024061100, 0.12.0.dev2024073000, 0.13.0, 0.16.0.dev2024121000 and, for what was added
since (Qwen 3, `rotary_pct` of Phi-3), the newest stored files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from llmcompile.architectures.spec import Dims
from llmcompile.errors import Problem
from llmcompile.exporters.trtllm.config.pretrained import (
    EXPERT_MAPPING,
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

_ROPE = "rope_gpt_neox"
_SEQ_LENGTH = 8192
"""What upstream writes where a Qwen's config.json says nothing; read for log-n attention alone, which 2 and 3 lack."""
_AS_IS, _NORMALIZED = 0, 1
"""MoeConfig.ExpertScaleNormalizationMode: the softmax over all experts as it is, or that over the chosen ones."""
_LONGROPE = ("longrope", "su", "yarn")
"""Names Phi-3's config files gave LongRoPE over time (transformers, configuration_phi3.py)."""
_PHI_EPSILON = 1e-5
"""Compiled into the model class of Phi, which passes none to its norms."""
_QWEN2_MOE, _QWEN3, _GEMMA2, _PHI3 = (0, 12, 0), (0, 20, 0), (0, 12, 0), (0, 11, 0)
_QWEN = (0, 10, 0)
_LLAMA_HEADS, _QWEN_HEADS = (0, 10, 0), (0, 11, 0)
_PARTIAL_PHI3 = (0, 20, 0)
"""Phi-3's model class rotates whole heads in 0.16, reads `rotary_pct` in 1.0; when that came is not recorded."""


def _rope_model(dims: Dims, given: Given, architecture: str, hidden_act: str) -> dict[str, Any]:
    """The common fields of a model whose positions are rotary and whose heads are grouped."""
    return pretrained_config(
        dims,
        given,
        architecture=architecture,
        hidden_act=hidden_act,
        position_embedding_type=_ROPE,
        kv_heads=dims.sizes["kv_heads"],
        positions=dims.sizes["positions"],
    )


def _experts(dims: Dims, given: Given, mode: int) -> dict[str, Any]:
    """How tokens are sent to experts: one dict from 0.11 on, loose keys before."""
    experts, chosen = dims.sizes["experts"], dims.facts["experts_per_token"]
    if given.version < EXPERT_MAPPING:
        return {"moe_num_experts": experts, "moe_top_k": chosen, "moe_normalization_mode": mode}
    return {"moe": {"num_experts": experts, "top_k": chosen, "normalization_mode": mode}}


def llama(dims: Dims, given: Given) -> Mapping[str, Any]:
    """LLaMA, with biases where it has them."""
    return {
        **_rope_model(dims, given, "LlamaForCausalLM", activation(dims, given)),
        "attn_bias": dims.facts["attention_bias"],
        "mlp_bias": dims.facts["mlp_bias"],
        **rotary(dims),
    }


def mistral(dims: Dims, given: Given) -> Mapping[str, Any]:
    """Mistral is LLaMA; its window is an option of the runtime."""
    return {
        **_rope_model(dims, given, "MistralForCausalLM", activation(dims, given)),
        "attn_bias": False,
        "mlp_bias": False,
        **rotary(dims),
    }


def mixtral(dims: Dims, given: Given) -> Mapping[str, Any]:
    """Mixtral: the gate is part of the activation's name."""
    return {
        **_rope_model(dims, given, "MixtralForCausalLM", "swiglu"),
        "attn_bias": False,
        "mlp_bias": False,
        **rotary(dims),
        **_experts(dims, given, _NORMALIZED),
    }


def _qwen_model(
    dims: Dims, given: Given, architecture: str, kind: str, *, bias: bool, hidden_act: str = "silu"
) -> dict[str, Any]:
    """The fields of every Qwen; before 0.12 there was one class name for all.

    `seq_length` is read without a default from 0.16 on, though upstream's own checkpoints of 0.13 lack it.
    """
    name = architecture if given.version >= HUGGING_FACE_NAMES else "QWenForCausalLM"
    return {
        **_rope_model(dims, given, name, hidden_act),
        "qwen_type": kind,
        "attn_bias": bias,
        "mlp_bias": False,
        **rotary(dims),
        "seq_length": _SEQ_LENGTH,
        "use_logn_attn": False,
        "moe_intermediate_size": 0,
        "moe_shared_expert_intermediate_size": 0,
    }


def qwen(dims: Dims, given: Given) -> Mapping[str, Any]:
    """Qwen 1, whose intermediate_size is that of both halves."""
    return {
        **_qwen_model(dims, given, "QWenLMHeadModel", "qwen", bias=True),
        "intermediate_size": 2 * dims.sizes["ffn"],
        "seq_length": dims.facts["seq_length"],
        "use_logn_attn": dims.facts["logn_attention"],
    }


def qwen2(dims: Dims, given: Given) -> Mapping[str, Any]:
    """Qwen 1.5, 2 and 2.5."""
    return _qwen_model(dims, given, "Qwen2ForCausalLM", "qwen2", bias=True, hidden_act=activation(dims, given))


def _qwen_moe(dims: Dims, given: Given, architecture: str, kind: str, *, bias: bool) -> dict[str, Any]:
    """Qwens with experts; the experts' weights are normalised where config.json says so, which upstream ignores."""
    mode = _NORMALIZED if dims.facts["normalized_experts"] is True else _AS_IS
    return {
        **_qwen_model(dims, given, architecture, kind, bias=bias, hidden_act="swiglu"),
        "moe_intermediate_size": dims.sizes["moe_ffn"],
        **_experts(dims, given, mode),
    }


def qwen2_moe(dims: Dims, given: Given) -> Mapping[str, Any]:
    """Qwen 1.5 and 2 with experts."""
    return {
        **_qwen_moe(dims, given, "Qwen2MoeForCausalLM", "qwen2_moe", bias=dims.facts["attention_bias"] is True),
        "moe_shared_expert_intermediate_size": dims.sizes["shared_ffn"],
    }


def qwen3(dims: Dims, given: Given) -> Mapping[str, Any]:
    """Qwen 3."""
    fields = _qwen_model(dims, given, "Qwen3ForCausalLM", "qwen3", bias=False, hidden_act=activation(dims, given))
    return {**fields, "qk_layernorm": True}


def qwen3_moe(dims: Dims, given: Given) -> Mapping[str, Any]:
    """Qwen 3 with experts."""
    return {**_qwen_moe(dims, given, "Qwen3MoeForCausalLM", "qwen3_moe", bias=False), "qk_layernorm": True}


def _gemma_model(dims: Dims, given: Given, architecture: str) -> dict[str, Any]:
    """Both Gemmas, which always share the embedding with the head and split it when they are split."""
    return {
        **_rope_model(dims, given, architecture, activation(dims, given)),
        "use_parallel_embedding": given.tp > 1,
        "embedding_sharding_dim": 0,
        "share_embedding_table": True,
        "attn_bias": dims.facts["attention_bias"],
        "mlp_bias": False,
        **rotary(dims),
    }


def gemma(dims: Dims, given: Given) -> Mapping[str, Any]:
    """Gemma 1."""
    return {**_gemma_model(dims, given, "GemmaForCausalLM"), "inter_layernorms": False}


def gemma2(dims: Dims, given: Given) -> Mapping[str, Any]:
    """Gemma 2."""
    return {
        **_gemma_model(dims, given, "Gemma2ForCausalLM"),
        "inter_layernorms": True,
        "query_pre_attn_scalar": dims.facts["query_pre_attn_scalar"],
        "final_logit_softcapping": dims.facts["final_logit_softcapping"],
        "attn_logit_softcapping": dims.facts["attn_logit_softcapping"],
    }


def phi(dims: Dims, given: Given) -> Mapping[str, Any]:
    """Phi 1, 1.5 and 2; the share of rotated elements is `partial_rotary_factor` in 0.9, `rotary_pct` later."""
    return {
        **_rope_model(dims, given, "PhiForCausalLM", activation(dims, given)),
        **rotary(dims),
        "rotary_pct": dims.facts["rotary_pct"],
        "partial_rotary_factor": dims.facts["rotary_pct"],
    }


def phi3(dims: Dims, given: Given) -> Mapping[str, Any]:
    """Phi 3, 3.5 and 4, with LongRoPE by the lists of the checkpoint."""
    fields = {
        **_rope_model(dims, given, "Phi3ForCausalLM", "swiglu"),
        "rotary_base": dims.facts["rotary_base"],
        "rotary_scaling": None,
        "rotary_pct": dims.facts["rotary_pct"],
    }
    if dims.facts["rope_config"] is None:
        return fields
    scaling = json.loads(str(dims.facts["rope_config"]))
    return {
        **fields,
        "position_embedding_type": "long_rope",
        "original_max_position_embeddings": dims.facts["original_positions"],
        "longrope_scaling_short_factors": scaling["short_factor"],
        "longrope_scaling_long_factors": scaling["long_factor"],
    }


def _head_refusals(dims: Dims, given: Given, first: tuple[int, int, int]) -> Iterator[Problem]:
    """A head size that is not hidden/heads, for releases before `first`, whose attention is not told of it."""
    if dims.sizes["head_dim"] * dims.sizes["heads"] != dims.sizes["hidden"]:
        yield from at_least(given, first, f"a head size ({dims.sizes['head_dim']}) of its own for this architecture")


def _plain_refusals(dims: Dims, given: Given) -> Iterator[Problem]:
    yield from activation_refusals(dims, given)
    yield from rope_refusals(dims, given)


def _llama_refusals(dims: Dims, given: Given) -> Iterator[Problem]:
    yield from _plain_refusals(dims, given)
    yield from _head_refusals(dims, given, _LLAMA_HEADS)


def _silu_refusals(dims: Dims, _given: Given) -> Iterator[Problem]:
    """A gated activation whose only name in TensorRT-LLM is swiglu."""
    if dims.facts["activation"] != "silu":
        yield Problem(
            "config.json: hidden_act",
            str(dims.facts["activation"]),
            "silu",
            "TensorRT-LLM has the gate of this family as swiglu only",
        )


def _expert_refusals(dims: Dims, given: Given) -> Iterator[Problem]:
    yield from _silu_refusals(dims, given)
    yield from rope_refusals(dims, given)
    if given.moe_ep > 1:
        yield from at_least(given, EXPERT_MAPPING, "expert parallelism by moe_ep_size")


def _mixtral_refusals(dims: Dims, given: Given) -> Iterator[Problem]:
    yield from _expert_refusals(dims, given)
    yield from _head_refusals(dims, given, _LLAMA_HEADS)


def _qwen_refusals(dims: Dims, given: Given) -> Iterator[Problem]:
    yield from at_least(given, _QWEN, "checkpoints of Qwen")
    yield from _head_refusals(dims, given, _QWEN_HEADS)
    yield from rope_refusals(dims, given)
    if dims.facts["bias"] is True:
        yield Problem("config.json: no_bias", "false", "true", "TensorRT-LLM's Qwen has a bias on q, k and v alone")
    if dims.facts["rotary_pct"] != 1.0:
        yield Problem(
            "config.json: rotary_pct", str(dims.facts["rotary_pct"]), "1.0", "TensorRT-LLM's Qwen rotates whole heads"
        )


def _qwen2_refusals(dims: Dims, given: Given) -> Iterator[Problem]:
    yield from at_least(given, _QWEN, "checkpoints of Qwen")
    yield from _head_refusals(dims, given, _QWEN_HEADS)
    yield from _plain_refusals(dims, given)


def _dense_refusals(dims: Dims) -> Iterator[Problem]:
    """Layers without experts among layers with them."""
    if dims.facts["dense_layers"] != 0:
        yield Problem(
            "config.json: decoder_sparse_step, mlp_only_layers",
            f"{dims.facts['dense_layers']} of {dims.sizes['layers']} layers without experts",
            "experts in every layer",
            "a checkpoint of TensorRT-LLM up to 0.21 has one kind of feed-forward",
        )


def _qwen2_moe_refusals(dims: Dims, given: Given) -> Iterator[Problem]:
    yield from at_least(given, _QWEN2_MOE, "Qwen2-MoE")
    yield from _expert_refusals(dims, given)
    yield from _dense_refusals(dims)


def _bias_refusals(dims: Dims) -> Iterator[Problem]:
    """Biases that Qwen 3 may have by its config class, and no release has."""
    if dims.facts["attention_bias"] is True:
        yield Problem("config.json: attention_bias", "true", "false", "TensorRT-LLM's Qwen 3 has no attention bias")


def _qwen3_refusals(dims: Dims, given: Given) -> Iterator[Problem]:
    yield from at_least(given, _QWEN3, "Qwen 3")
    yield from _plain_refusals(dims, given)
    yield from _bias_refusals(dims)


def _qwen3_moe_refusals(dims: Dims, given: Given) -> Iterator[Problem]:
    yield from at_least(given, _QWEN3, "Qwen 3")
    yield from _expert_refusals(dims, given)
    yield from _bias_refusals(dims)
    yield from _dense_refusals(dims)


def _gemma_refusals(dims: Dims, given: Given) -> Iterator[Problem]:
    yield from _plain_refusals(dims, given)
    if given.pp > 1:
        yield Problem(
            "--pp", str(given.pp), "1", "Gemma's head is the embedding, which only the first stage holds; use --tp"
        )
    if dims.facts["tied"] is not True:
        yield Problem(
            "config.json: tie_word_embeddings", "false", "true", "TensorRT-LLM's Gemma always shares the embedding"
        )


def _gemma2_refusals(dims: Dims, given: Given) -> Iterator[Problem]:
    yield from at_least(given, _GEMMA2, "Gemma 2")
    yield from _gemma_refusals(dims, given)


def _phi_refusals(dims: Dims, given: Given) -> Iterator[Problem]:
    yield from activation_refusals(dims, given)
    yield from no_pipeline(dims, given, "Phi")
    if dims.facts["rope_scaling"] is not None:
        yield Problem(
            "config.json: rope_scaling", f"type {dims.facts['rope_scaling']}", "none", "TensorRT-LLM's Phi ignores it"
        )
    if dims.facts["norm_eps"] != _PHI_EPSILON:
        yield Problem(
            "config.json: layer_norm_eps",
            str(dims.facts["norm_eps"]),
            str(_PHI_EPSILON),
            "it is compiled into TensorRT-LLM's Phi",
        )
    if dims.sizes["kv_heads"] != dims.sizes["heads"]:
        yield Problem(
            "config.json: num_key_value_heads",
            str(dims.sizes["kv_heads"]),
            str(dims.sizes["heads"]),
            "TensorRT-LLM's Phi has as many heads of k and v as of q",
        )
    if dims.facts["qk_norm"] is True:
        yield Problem("config.json: qk_layernorm", "true", "false", "TensorRT-LLM's Phi has no such norms")


def _phi3_refusals(dims: Dims, given: Given) -> Iterator[Problem]:
    yield from at_least(given, _PHI3, "Phi-3")
    yield from _silu_refusals(dims, given)
    yield from no_pipeline(dims, given, "Phi-3")
    if dims.facts["rope_config"] is not None:
        yield from _longrope_refusals(dims)
    if dims.facts["rotary_pct"] != 1.0:
        yield from at_least(given, _PARTIAL_PHI3, "a partial rotary embedding of Phi-3 and 4")


def _longrope_refusals(dims: Dims) -> Iterator[Problem]:
    """A scaling that is not LongRoPE, or lacks its lists."""
    kind, scaling = dims.facts["rope_scaling"], json.loads(str(dims.facts["rope_config"]))
    missing = [key for key in ("short_factor", "long_factor") if not _numbers(scaling.get(key))]
    if kind not in _LONGROPE or len(missing) > 0:
        yield Problem(
            "config.json: rope_scaling",
            f"type {kind} with {', '.join(sorted(scaling))}",
            "longrope with short_factor and long_factor",
            "TensorRT-LLM's Phi-3 computes no other scaling",
        )


def _numbers(value: object) -> bool:
    """Whether it is a list of numbers."""
    return isinstance(value, list) and all(type(item) in (int, float) for item in value)


def _window_notes(dims: Dims, given: Given) -> Iterator[str]:
    yield from activation_notes(dims, given)
    window = dims.facts["sliding_window"]
    if isinstance(window, int) and window < dims.sizes["positions"]:
        yield f"attention reaches {window} tokens back; give the runtime max_attention_window [{window}]"


def _qwen_window_notes(dims: Dims, given: Given) -> Iterator[str]:
    """Qwen2 and Qwen3 use the window from one layer on."""
    yield from activation_notes(dims, given)
    window, first = dims.facts["sliding_window"], dims.facts["max_window_layers"]
    layers, positions = dims.sizes["layers"], dims.sizes["positions"]
    if isinstance(window, int) and isinstance(first, int) and window < positions and first < layers:
        windows = f"{first} times {positions}, then {layers - first} times {window}"
        yield f"layers from {first} on attend {window} tokens back; give the runtime max_attention_window: {windows}"


def _gemma2_notes(dims: Dims, given: Given) -> Iterator[str]:
    yield from activation_notes(dims, given)
    window, positions = dims.facts["sliding_window"], dims.sizes["positions"]
    if isinstance(window, int) and window < positions:
        pair = f"[{window}, {positions}], repeated over the layers"
        yield f"every other layer attends {window} tokens back; give the runtime max_attention_window {pair}"


def _qwen_notes(dims: Dims, _given: Given) -> Iterator[str]:
    if dims.facts["dynamic_ntk"] is True:
        yield (
            f"beyond {dims.facts['seq_length']} tokens the checkpoint's own code rescales the rotary base "
            "(use_dynamic_ntk), which TensorRT-LLM does not"
        )


CONFIGS: Mapping[str, Config] = MappingProxyType(
    {
        "llama": llama,
        "mistral": mistral,
        "mixtral": mixtral,
        "qwen": qwen,
        "qwen2": qwen2,
        "qwen2_moe": qwen2_moe,
        "qwen3": qwen3,
        "qwen3_moe": qwen3_moe,
        "gemma": gemma,
        "gemma2": gemma2,
        "phi": phi,
        "phi3": phi3,
    }
)
REFUSALS: Mapping[str, Refusals] = MappingProxyType(
    {
        "llama": _llama_refusals,
        "mistral": _llama_refusals,
        "mixtral": _mixtral_refusals,
        "qwen": _qwen_refusals,
        "qwen2": _qwen2_refusals,
        "qwen2_moe": _qwen2_moe_refusals,
        "qwen3": _qwen3_refusals,
        "qwen3_moe": _qwen3_moe_refusals,
        "gemma": _gemma_refusals,
        "gemma2": _gemma2_refusals,
        "phi": _phi_refusals,
        "phi3": _phi3_refusals,
    }
)
NOTES: Mapping[str, Notes] = MappingProxyType(
    {
        "llama": activation_notes,
        "mistral": _window_notes,
        "mixtral": _window_notes,
        "qwen": _qwen_notes,
        "qwen2": _qwen_window_notes,
        "qwen2_moe": _qwen_window_notes,
        "qwen3": _qwen_window_notes,
        "qwen3_moe": _window_notes,
        "gemma": activation_notes,
        "gemma2": _gemma2_notes,
        "phi": activation_notes,
        "phi3": _window_notes,
    }
)
