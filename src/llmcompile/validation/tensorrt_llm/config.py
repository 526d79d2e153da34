"""config.json of a decoder-only checkpoint: every field the network reads, checked, and what it builds from them.

What differs between architectures is the table `_FAMILIES`; what a checkpoint chooses within one is `Config`. Where a
network ignores a field, the field must say what the network does instead, and a part of the model that cannot be told
(the final norm's epsilon of some) is computed as the network does, so a difference shows as wrong numbers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from llmcompile.errors import MismatchError, UnsupportedError
from llmcompile.validation.tensorrt_llm.blocks import ACTIVATIONS, LinearScaling, Llama3Scaling, LongRope, Rotary
from llmcompile.validation.tensorrt_llm.linears import Quantization, is_quantized, read_quantization

_DEFAULT_EPS = 1e-5
"""Of a norm whose network passes none. Source: NVIDIA/TensorRT-LLM@v0.13.0:tensorrt_llm/layers/normalization.py"""

_DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
)
_GROUPWISE = ("W4A16_AWQ", "W4A8_AWQ", "W4A16_GPTQ")
_ZEROING = ("W4A16_AWQ", "W4A8_AWQ")


class Norm(Enum):
    """What normalises the residual stream."""

    RMS = 0
    LAYER = 1
    LAYER_UNBIASED = 2


class Inner(Enum):
    """What the inner layer is made of."""

    PLAIN = 0
    """act(fc) -> proj"""
    GATED = 1
    """act(fc) * gate -> proj"""
    FUSED = 2
    """swiglu(fc), whose rows are [up; gate] -> proj"""


class Wiring(Enum):
    """How attention and inner layer hang on the residual stream."""

    SEQUENTIAL = 0
    """x += attention(norm(x)); x += inner(norm(x))"""
    POST_NORM = 1
    """x = norm(x + attention(x)); x = norm(x + inner(x))"""
    PARALLEL = 2
    """x += attention(norm(x)) + inner(norm(x)), with one norm or two"""
    SANDWICH = 3
    """x += norm(attention(norm(x))); x += norm(inner(norm(x)))"""


class RowBias(Enum):
    """When the bias of a row-parallel linear is added, of which every rank has its own."""

    AFTER_REDUCE = 0
    """By each rank, to the sum: every rank needs all of it."""
    BEFORE_REDUCE = 1
    """By each rank, to its part: the sum holds all ranks' biases."""


@dataclass(frozen=True)
class Flag:
    """A boolean that is config.json's `key`, where it has one, or else `default`."""

    default: bool
    key: str | None = None


_ON, _OFF = Flag(True), Flag(False)


@dataclass(frozen=True, kw_only=True)
class Family:
    """What an architecture's network fixes, whatever config.json says.

    Args:
        norm: Kind of all norms.
        inner: Kind of the inner layer without experts.
        positions: Accepted `position_embedding_type`s.
        default_eps: Norms that ignore `norm_epsilon`: "first", "second", "final", "embedding".
        activation: Of the inner layer where the network ignores `hidden_act`.
        grouped: Whether the network reads `num_key_value_heads`.
        sized_heads: Whether the network reads `head_size`.
        qkv_bias: Bias of qkv.
        dense_bias: Bias of dense.
        inner_bias: Biases of the inner layer.
        head_bias: Bias of lm_head.
        embedding_norm: Whether `ln_embed` follows the embedding.
        root_scaled: Whether the embedding is multiplied by sqrt(hidden_size).
        joint: Whether the parallel wiring's two parts are summed before one all-reduce.
        zeroed: Whether the loader zeroes the row biases of all tensor-parallel ranks but the first.
        second_norm: Name of the inner layer's norm.
        partial_rotary: Whether the network reads `rotary_pct`.
        scaled_rotary: Whether the network reads `rotary_scaling`.
        experts: Whether the network reads `moe`.
        shares: Whether the head is always the embedding table.
        pipeline: Whether the network can be cut into stages.
    """

    norm: Norm
    inner: Inner
    positions: tuple[str, ...]
    default_eps: frozenset[str] = frozenset()
    activation: str | None = None
    grouped: bool = True
    sized_heads: bool = False
    qkv_bias: Flag = _ON
    dense_bias: Flag = _ON
    inner_bias: Flag = _ON
    head_bias: Flag = _OFF
    embedding_norm: bool = False
    root_scaled: bool = False
    joint: bool = False
    zeroed: bool = False
    second_norm: str = "post_layernorm"
    partial_rotary: bool = False
    scaled_rotary: bool = False
    experts: bool = False
    shares: bool = False
    pipeline: bool = True


_ROPE = ("rope_gpt_neox", "rope_gptj")
_ALL_NORMS = frozenset({"first", "second", "final", "embedding"})

_LLAMA = Family(
    norm=Norm.RMS,
    inner=Inner.GATED,
    positions=_ROPE,
    sized_heads=True,
    qkv_bias=Flag(False, "attn_bias"),
    dense_bias=Flag(False, "attn_bias"),
    inner_bias=Flag(False, "mlp_bias"),
    scaled_rotary=True,
    experts=True,
)
"""Source: NVIDIA/TensorRT-LLM@v0.13.0:tensorrt_llm/models/llama/model.py, config.py"""

_QWEN = Family(
    norm=Norm.RMS,
    inner=Inner.GATED,
    positions=_ROPE,
    sized_heads=True,
    qkv_bias=Flag(True, "attn_bias"),
    dense_bias=_OFF,
    inner_bias=Flag(False, "mlp_bias"),
    scaled_rotary=True,
    experts=True,
)
"""Source: NVIDIA/TensorRT-LLM@v0.13.0, v1.0.0:tensorrt_llm/models/qwen/model.py, config.py"""

_GPT = Family(
    norm=Norm.LAYER,
    inner=Inner.PLAIN,
    positions=("learned_absolute", *_ROPE),
    sized_heads=True,
    qkv_bias=Flag(True, "bias"),
    dense_bias=Flag(True, "bias"),
    inner_bias=Flag(True, "bias"),
    partial_rotary=True,
    scaled_rotary=True,
)
"""Source: NVIDIA/TensorRT-LLM@v0.13.0:tensorrt_llm/models/gpt/model.py, config.py"""

_GPTJ = Family(
    norm=Norm.LAYER,
    inner=Inner.PLAIN,
    positions=("rope_gptj",),
    default_eps=frozenset({"final"}),
    grouped=False,
    qkv_bias=_OFF,
    dense_bias=_OFF,
    head_bias=_ON,
    joint=True,
    zeroed=True,
)
"""Source: NVIDIA/TensorRT-LLM@1628a1c:tensorrt_llm/models/gptj/model.py; v0.13.0:tensorrt_llm/models/modeling_utils.py
(preprocess_weights)"""

_NEOX = Family(
    norm=Norm.LAYER,
    inner=Inner.PLAIN,
    positions=("rope_gpt_neox",),
    default_eps=_ALL_NORMS,
    grouped=False,
    second_norm="post_attention_layernorm",
    partial_rotary=True,
    pipeline=False,
)
"""Source: NVIDIA/TensorRT-LLM@v0.13.0:tensorrt_llm/models/gptneox/model.py"""

_OPT = Family(
    norm=Norm.LAYER,
    inner=Inner.PLAIN,
    positions=("learned_absolute",),
    default_eps=_ALL_NORMS,
    grouped=False,
    pipeline=False,
)
"""Source: NVIDIA/TensorRT-LLM@d5b2235:tensorrt_llm/models/opt/model.py"""

_BLOOM = Family(
    norm=Norm.LAYER,
    inner=Inner.PLAIN,
    positions=("alibi",),
    default_eps=_ALL_NORMS,
    activation="gelu",
    embedding_norm=True,
    pipeline=False,
)
"""Source: NVIDIA/TensorRT-LLM@5955b8a:tensorrt_llm/models/bloom/model.py"""

_FALCON = Family(
    norm=Norm.LAYER,
    inner=Inner.PLAIN,
    positions=("rope_gpt_neox", "alibi", "alibi_with_scale"),
    default_eps=frozenset({"second", "final"}),
    qkv_bias=Flag(True, "bias"),
    dense_bias=Flag(True, "bias"),
    inner_bias=Flag(True, "bias"),
    joint=True,
)
"""`mlp_layernorm` does read `norm_epsilon`; `post_layernorm` does not.

Source: NVIDIA/TensorRT-LLM@585c756:tensorrt_llm/models/falcon/model.py"""

_MPT = Family(
    norm=Norm.LAYER_UNBIASED,
    inner=Inner.PLAIN,
    positions=("alibi",),
    default_eps=frozenset({"final"}),
    qkv_bias=Flag(False, "bias"),
    dense_bias=Flag(False, "bias"),
    inner_bias=Flag(False, "bias"),
    head_bias=Flag(False, "bias"),
)
"""Source: NVIDIA/TensorRT-LLM@7ed07f0:tensorrt_llm/models/mpt/model.py"""

_PHI = Family(
    norm=Norm.LAYER,
    inner=Inner.PLAIN,
    positions=_ROPE,
    default_eps=_ALL_NORMS,
    grouped=False,
    head_bias=_ON,
    partial_rotary=True,
    pipeline=False,
)
"""Source: NVIDIA/TensorRT-LLM@03dd9bb:tensorrt_llm/models/phi/model.py"""

_PHI3 = Family(
    norm=Norm.RMS,
    inner=Inner.FUSED,
    positions=("rope_gpt_neox", "long_rope"),
    qkv_bias=_OFF,
    dense_bias=_OFF,
    inner_bias=_OFF,
    partial_rotary=True,
    pipeline=False,
)
"""Source: NVIDIA/TensorRT-LLM@c4dc529:tensorrt_llm/models/phi3/model.py"""

_GEMMA = Family(
    norm=Norm.RMS,
    inner=Inner.GATED,
    positions=("rope_gpt_neox",),
    sized_heads=True,
    qkv_bias=Flag(False, "attn_bias"),
    dense_bias=Flag(False, "attn_bias"),
    inner_bias=Flag(False, "mlp_bias"),
    root_scaled=True,
    scaled_rotary=True,
    shares=True,
    pipeline=False,
)
"""Source: NVIDIA/TensorRT-LLM@5dedf53:tensorrt_llm/models/gemma/model.py, config.py"""

_FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        **dict.fromkeys(("LlamaForCausalLM", "LLaMAForCausalLM", "MistralForCausalLM", "MixtralForCausalLM"), _LLAMA),
        **dict.fromkeys(("QWenLMHeadModel", "QWenForCausalLM", "Qwen2ForCausalLM", "Qwen2MoeForCausalLM"), _QWEN),
        **dict.fromkeys(("Qwen3ForCausalLM", "Qwen3MoeForCausalLM"), _QWEN),
        **dict.fromkeys(("GPTForCausalLM", "GPT2LMHeadModel", "GPTBigCodeForCausalLM", "Starcoder2ForCausalLM"), _GPT),
        "GPTJForCausalLM": _GPTJ,
        "GPTNeoXForCausalLM": _NEOX,
        "OPTForCausalLM": _OPT,
        "BloomForCausalLM": _BLOOM,
        "FalconForCausalLM": _FALCON,
        "MPTForCausalLM": _MPT,
        "PhiForCausalLM": _PHI,
        "Phi3ForCausalLM": _PHI3,
        "GemmaForCausalLM": _GEMMA,
        "Gemma2ForCausalLM": _GEMMA,
    }
)
"""Source: NVIDIA/TensorRT-LLM@v0.13.0:tensorrt_llm/models/__init__.py (MODEL_MAP)"""

_INERT: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "apply_query_key_layer_scaling": (False,),
        "attention_multiplier": (1.0,),
        "disable_weight_only_quant_plugin": (False,),
        "embedding_multiplier": (1.0,),
        "fc_after_embed": (False,),
        "has_partial_lora_mask": (False,),
        "inner_layernorm": (False,),
        "is_pruned": (False,),
        "layer_idx_offset": (0,),
        "num_labels": (1,),
        "output_multiplier_scale": (1.0,),
        "remove_duplicated_kv_heads": (False,),
        "residual_mlp": (False,),
        "residual_multiplier": (1.0,),
        "use_input_layernorm_in_first_layer": (True,),
        "use_last_layernorm": (True,),
        "use_logn_attn": (False,),
    }
)
"""Fields that change the network in ways that are not executed here, with the values that do not."""

_UNREAD = frozenset(
    {
        "attention_chunk_size",
        "gpt_variant",
        "logits_dtype",
        "norm_before_bmm1",
        "partial_rotary_factor",
        "producer",
        "runtime_defaults",
        "seq_length",
        "sliding_window",
        "tie_word_embeddings",
    }
)
"""Fields without effect on what is computed; `norm_before_bmm1` only moves a division for the sake of fp16's range."""

_READ = frozenset(
    {
        "alibi_bias_max",
        "architecture",
        "attn_bias",
        "attn_logit_softcapping",
        "bias",
        "clip_qkv",
        "do_layer_norm_before",
        "dtype",
        "embedding_scale",
        "embedding_sharding_dim",
        "final_logit_softcapping",
        "head_size",
        "hidden_act",
        "hidden_size",
        "inter_layernorms",
        "intermediate_size",
        "longrope_scaling_long_factors",
        "longrope_scaling_short_factors",
        "mapping",
        "max_position_embeddings",
        "mlp_bias",
        "moe",
        "moe_intermediate_size",
        "moe_normalization_mode",
        "moe_num_experts",
        "moe_shared_expert_intermediate_size",
        "moe_top_k",
        "new_decoder_architecture",
        "norm_epsilon",
        "num_attention_heads",
        "num_hidden_layers",
        "num_key_value_heads",
        "num_ln_in_parallel_attn",
        "original_max_position_embeddings",
        "parallel_attention",
        "position_embedding_type",
        "q_scaling",
        "qk_layernorm",
        "quantization",
        "query_pre_attn_scalar",
        "qwen_type",
        "rotary_base",
        "rotary_dim",
        "rotary_emb_base",
        "rotary_pct",
        "rotary_scaling",
        "share_embedding_table",
        "use_parallel_embedding",
        "vocab_size",
    }
)
_MAPPING_KEYS = frozenset(
    {"world_size", "tp_size", "pp_size", "cp_size", "moe_tp_size", "moe_ep_size", "gpus_per_node"}
)
_MOE_KEYS = frozenset(
    {
        "num_experts",
        "top_k",
        "normalization_mode",
        "sparse_mixer_epsilon",
        "tp_mode",
        "shared_expert_intermediate_size",
        "device_limited_n_group",
        "device_limited_topk_group",
        "device_limited_routed_scaling_factor",
    }
)


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """How ranks share the work: rank = stage * tensor + tensor rank.

    Args:
        tensor: Tensor-parallel ranks of one stage.
        stages: Pipeline stages.
        moe_tensor: Ranks that share one expert.
        moe_experts: Groups of ranks that hold different experts.
    """

    tensor: int
    stages: int
    moe_tensor: int
    moe_experts: int

    @property
    def ranks(self) -> int:
        """All ranks, one file each."""
        return self.tensor * self.stages


@dataclass(frozen=True, kw_only=True)
class Experts:
    """A mixture of experts.

    Args:
        experts: All experts.
        top_k: Experts per token.
        renormalized: Whether the weights of the chosen ones are made to sum to 1.
        inner: Inner size of one expert.
        shared_inner: Inner size of the expert that sees every token, 0 for none.
        shared_name: Module of that expert, relative to the layer; its gate is that plus "_gate".
    """

    experts: int
    top_k: int
    renormalized: bool
    inner: int
    shared_inner: int
    shared_name: str


@dataclass(frozen=True, kw_only=True)
class Config:
    """The network config.json describes, all sizes of the whole model.

    Args:
        family: What the architecture fixes.
        architecture: Its name.
        dtype: Element type of what is not quantized.
        vocabulary: Rows of the token table, without padding.
        hidden: Width of the residual stream.
        layers: Layers of all stages.
        heads: Query heads.
        key_heads: Key and value heads.
        head_size: Channels of one head.
        inner: Inner size; for FUSED half of what fc puts out.
        activation: Name of the inner layer's function.
        wiring: How a layer is wired.
        second_norm: The inner layer's norm, None where it shares the first.
        eps: Per norm.
        qkv_bias: Whether qkv has a bias.
        dense_bias: Whether dense has one.
        inner_bias: Whether the inner layer has them.
        head_bias: Whether lm_head has one.
        qk_norm: Whether heads of queries and keys are normalised (RMS, epsilon 1e-5).
        positions: Rows of the table of learned positions; None for another kind of position.
        max_positions: Longest sequence the position tables serve, None where there are none.
        rotary: Rotary embedding, None for another kind of position.
        alibi_max: ALiBi's bias maximum, None for another kind of position.
        alibi_scaled: Whether the bias is scaled like the products.
        score_scale: Factor of the products of queries and keys.
        score_cap: Their soft cap, None for none.
        logit_cap: Soft cap of the logits, None for none.
        clip: Bound of the qkv projection, None for none.
        embedding_scale: Factor of the token embedding.
        final_norm: Whether `ln_f` follows the last layer.
        experts: None for a dense model.
        parallel: The ranks.
        sharded: Axis the embedding tables are cut along, None for whole tables on every rank.
        shared: Whether the token table is the head, and `lm_head.weight` is not stored.
        quantization: Recipe of the linears.
    """

    family: Family
    architecture: str
    dtype: torch.dtype
    vocabulary: int
    hidden: int
    layers: int
    heads: int
    key_heads: int
    head_size: int
    inner: int
    activation: str
    wiring: Wiring
    second_norm: str | None
    eps: Mapping[str, float]
    qkv_bias: bool
    dense_bias: bool
    inner_bias: bool
    head_bias: bool
    qk_norm: bool
    positions: int | None
    max_positions: int | None
    rotary: Rotary | None
    alibi_max: float | None
    alibi_scaled: bool
    score_scale: float
    score_cap: float | None
    logit_cap: float | None
    clip: float | None
    embedding_scale: float
    final_norm: bool
    experts: Experts | None
    parallel: Parallel
    sharded: int | None
    shared: bool
    quantization: Quantization

    @property
    def local_heads(self) -> int:
        """Query heads of one rank."""
        return self.heads // self.parallel.tensor

    @property
    def local_key_heads(self) -> int:
        """Key heads of one rank; with fewer key heads than ranks, several ranks hold the same one."""
        return max(1, self.key_heads // self.parallel.tensor)

    def stage_layers(self, stage: int) -> range:
        """The layers of one stage, counted through the model; the first stages have one more if they do not divide.

        Releases before 1.0 drop what does not divide. Source: NVIDIA/TensorRT-LLM@v1.0.0:tensorrt_llm/mapping.py
        (pp_layers)
        """
        each, extra = divmod(self.layers, self.parallel.stages)
        start = stage * each + min(stage, extra)
        return range(start, start + each + (stage < extra))

    @property
    def vocabulary_rows(self) -> int:
        """Rows of the head on one rank, padding included.

        Source: NVIDIA/TensorRT-LLM@v0.13.0:tensorrt_llm/_utils.py (pad_vocab_size)
        """
        return math.ceil(self.vocabulary / self.parallel.tensor)

    @property
    def joint(self) -> bool:
        """Whether attention and inner layer share one all-reduce."""
        return self.wiring is Wiring.PARALLEL and self.family.joint

    def row_bias(self, name: str) -> RowBias:
        """When the bias of the row-parallel linear `name` is added.

        Before the reduce where two linears share it, and inside the group-wise quantized product.

        Source: NVIDIA/TensorRT-LLM@v0.13.0:tensorrt_llm/layers/linear.py (RowLinear.multiply_collect),
        tensorrt_llm/quantization/layers.py (WeightOnlyGroupwiseQuantRowLinear.forward)
        """
        groupwise = self.quantization.algo in _GROUPWISE and is_quantized(name, self.quantization)
        return RowBias.BEFORE_REDUCE if self.joint or groupwise else RowBias.AFTER_REDUCE

    def zeroes_row_bias(self, tensor_rank: int) -> bool:
        """Whether the loader replaces this rank's row biases by zeros.

        Source: NVIDIA/TensorRT-LLM@v0.13.0:tensorrt_llm/models/modeling_utils.py (preprocess_weights)
        """
        return tensor_rank > 0 and (self.family.zeroed or self.quantization.algo in _ZEROING)


class Fields:
    """The values of one JSON object, checked as they are read; an absent or null key is its default.

    Args:
        subject: What an error is about, the file and the path inside it.
        values: The object.
    """

    def __init__(self, subject: str, values: Mapping[str, Any]) -> None:
        self.subject = subject
        self.values = values

    def error(self, key: str, expected: str, hint: str = "") -> MismatchError:
        """An error about `key` that shows its value."""
        found = repr(self.values[key]) if key in self.values else "absent"
        return MismatchError(f"{self.subject}: {key}", found, expected, hint)

    def has(self, key: str) -> bool:
        """Whether `key` is there and not null."""
        return self.values.get(key) is not None

    def refuse_others(self, known: frozenset[str]) -> None:
        """Raise a MismatchError for the first key that is not in `known`."""
        for key in sorted(self.values.keys() - known):
            raise self.error(key, "no such field", "see docs/formats; a misspelt field is ignored by TensorRT-LLM")

    def integer(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        """A whole number of at least `least`."""
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise self.error(key, f"a whole number >= {least}")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        """A finite positive number."""
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
            raise self.error(key, "a positive number")
        return float(value)

    def real_or_none(self, key: str) -> float | None:
        """A finite positive number, or None."""
        return self.real(key) if self.has(key) else None

    def boolean(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(key, "true or false")
        return value

    def flag(self, flag: Flag) -> bool:
        """What `flag` says."""
        return flag.default if flag.key is None else self.boolean(flag.key, flag.default)

    def text(self, key: str, default: str | None = None) -> str:
        """A string."""
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise self.error(key, "a string")
        return value

    def choice(self, key: str, choices: tuple[str, ...], default: str | None = None) -> str:
        """One of `choices`."""
        value = self.text(key, default)
        if value not in choices:
            raise self.error(key, " or ".join(choices))
        return value

    def reals(self, key: str) -> tuple[float, ...]:
        """A list of positive numbers."""
        values = self.values.get(key)
        if not isinstance(values, list) or not all(isinstance(v, int | float) and 0 < v < math.inf for v in values):
            raise self.error(key, "a list of positive numbers")
        return tuple(float(value) for value in values)

    def inside(self, key: str) -> Fields:
        """The object under `key`; empty where it is absent or null."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.error(key, "an object")
        return Fields(f"{self.subject}: {key}", {} if value is None else value)


def read_config(folder: Path) -> Config:
    """Read `folder`/config.json as the network of its architecture does.

    Raises:
        MismatchError: The file is unreadable, a field is unknown, absent, or has a value the network cannot be built
            from, or the ranks do not divide what they share.
        UnsupportedError: The architecture, or a variant a field asks for, is not executed here.
    """
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise MismatchError(str(path), f"unreadable: {error}", "a JSON object", "build the checkpoint again") from error
    if not isinstance(values, dict):
        raise MismatchError(str(path), type(values).__name__, "a JSON object", "build the checkpoint again")
    fields = Fields(str(path), values)
    architecture = fields.text("architecture")
    if architecture not in _FAMILIES:
        raise UnsupportedError(f"{path}: architecture", architecture, f"one of {', '.join(_FAMILIES)}")
    fields.refuse_others(_READ | _UNREAD | _INERT.keys())
    _refuse_variants(fields)
    config = _config(fields, architecture, _FAMILIES[architecture])
    _check_divisible(fields, config)
    _check_quantization(fields, config)
    return config


def _refuse_variants(fields: Fields) -> None:
    for key, harmless in _INERT.items():
        if fields.has(key) and fields.values[key] not in harmless:
            raise UnsupportedError(f"{fields.subject}: {key}", repr(fields.values[key]), f"{harmless[0]!r}")


def _config(fields: Fields, architecture: str, family: Family) -> Config:
    hidden, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    head_size = _head_size(fields, family, hidden, heads)
    kind = fields.choice("position_embedding_type", family.positions, "learned_absolute")
    experts = _experts(fields, family)
    parallel = _parallel(fields)
    wiring, second_norm = _wiring(fields, family, architecture)
    gemma2 = architecture == "Gemma2ForCausalLM"
    alibi = kind.startswith("alibi")
    score_scale = 1.0 / (math.sqrt(head_size) * _query_scaling(fields, family, head_size, gemma2))
    learned = kind == "learned_absolute"
    return Config(
        family=family,
        architecture=architecture,
        dtype=_DTYPES[fields.choice("dtype", tuple(_DTYPES))],
        vocabulary=fields.integer("vocab_size"),
        hidden=hidden,
        layers=fields.integer("num_hidden_layers"),
        heads=heads,
        key_heads=_key_heads(fields, family, heads),
        head_size=head_size,
        inner=_inner_size(fields, hidden),
        activation=_activation(fields, family, experts),
        wiring=wiring,
        second_norm=second_norm,
        eps=_eps(fields, family, second_norm),
        qkv_bias=fields.flag(family.qkv_bias),
        dense_bias=fields.flag(family.dense_bias),
        inner_bias=fields.flag(family.inner_bias),
        head_bias=fields.flag(family.head_bias),
        qk_norm=_qk_norm(fields, family),
        positions=fields.integer("max_position_embeddings") if learned else None,
        max_positions=None if alibi else fields.integer("max_position_embeddings"),
        rotary=_rotary(fields, family, kind, head_size) if not learned and not alibi else None,
        alibi_max=_alibi_max(fields, family) if alibi else None,
        alibi_scaled=kind == "alibi_with_scale",
        score_scale=score_scale,
        score_cap=fields.real_or_none("attn_logit_softcapping") if gemma2 else None,
        logit_cap=fields.real_or_none("final_logit_softcapping") if gemma2 else None,
        clip=fields.real_or_none("clip_qkv") if family is _MPT else None,
        embedding_scale=_embedding_scale(fields, family, hidden),
        final_norm=wiring is not Wiring.POST_NORM,
        experts=experts,
        parallel=parallel,
        sharded=_sharded(fields, parallel),
        shared=_shared(fields, family, parallel),
        quantization=read_quantization(fields.values),
    )


def _head_size(fields: Fields, family: Family, hidden: int, heads: int) -> int:
    """The field, or hidden_size / num_attention_heads where the network does not read it.

    The rotary tables always follow the field, so a network that does not read it needs both to agree.
    """
    if hidden % heads != 0 and not (family.sized_heads and fields.has("head_size")):
        raise fields.error("num_attention_heads", f"a divisor of hidden_size {hidden}")
    size = fields.integer("head_size", hidden // heads)
    if not family.sized_heads and size != hidden // heads:
        raise fields.error("head_size", f"{hidden} / {heads} = {hidden // heads}: this network reads no other")
    return size


def _inner_size(fields: Fields, hidden: int) -> int:
    """The field's, though the networks of GPT-J, GPT-NeoX and MPT are built with 4 * hidden and load no other."""
    size = fields.integer("intermediate_size", 4 * hidden)
    if fields.values.get("qwen_type") == "qwen":
        return size // 2  # the first Qwen counts both halves
    return size


def _key_heads(fields: Fields, family: Family, heads: int) -> int:
    found = fields.integer("num_key_value_heads", heads)
    if found != heads and not family.grouped:
        raise fields.error("num_key_value_heads", f"{heads}, all heads: this network is built with no other")
    return found


def _activation(fields: Fields, family: Family, experts: Experts | None) -> str:
    if family.activation is not None:
        return fields.choice("hidden_act", (family.activation,), family.activation)
    choices = ("swiglu",) if family.inner is Inner.FUSED or experts is not None else tuple(ACTIVATIONS)
    return fields.choice("hidden_act", choices, "gelu")


def _wiring(fields: Fields, family: Family, architecture: str) -> tuple[Wiring, str | None]:
    """The wiring of a layer and the name of the inner layer's norm, None where it shares the first."""
    if family is _FALCON:
        return _falcon_wiring(fields)
    if family is _NEOX:
        return Wiring.PARALLEL, family.second_norm
    if family is _GPTJ or family is _PHI:
        return Wiring.PARALLEL, None
    if family is _OPT and not fields.boolean("do_layer_norm_before", False):
        return Wiring.POST_NORM, family.second_norm
    if family is _GEMMA and fields.boolean("inter_layernorms", False):
        return Wiring.SANDWICH, "pre_feedforward_layernorm"
    return Wiring.SEQUENTIAL, family.second_norm


def _falcon_wiring(fields: Fields) -> tuple[Wiring, str | None]:
    if fields.boolean("new_decoder_architecture", False):
        norms = fields.integer("num_ln_in_parallel_attn", 2)
        return Wiring.PARALLEL, "mlp_layernorm" if norms == 2 else None
    if fields.boolean("parallel_attention", False):
        return Wiring.PARALLEL, None
    return Wiring.SEQUENTIAL, "post_layernorm"


def _eps(fields: Fields, family: Family, second_norm: str | None) -> Mapping[str, float]:
    read = fields.real("norm_epsilon", _DEFAULT_EPS)
    if family.default_eps == _ALL_NORMS and read != _DEFAULT_EPS:
        raise fields.error("norm_epsilon", f"{_DEFAULT_EPS}: this network is built with no other")
    eps = {norm: _DEFAULT_EPS if norm in family.default_eps else read for norm in sorted(_ALL_NORMS)}
    if second_norm == "mlp_layernorm":
        eps["second"] = read
    return MappingProxyType(eps)


def _qk_norm(fields: Fields, family: Family) -> bool:
    """Whether heads are normalised: Qwen's network asks `qwen_type`, and no other has it here."""
    normalised = family is _QWEN and _qwen_type(fields) in ("qwen3", "qwen3_moe")
    if fields.boolean("qk_layernorm", normalised) != normalised:
        raise fields.error("qk_layernorm", f"{normalised}".lower(), "of the networks executed here only Qwen3's has it")
    return normalised


def _qwen_type(fields: Fields) -> str:
    return fields.choice("qwen_type", ("qwen", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe"))


def _query_scaling(fields: Fields, family: Family, head_size: int, gemma2: bool) -> float:
    if gemma2:
        for key in ("query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping"):
            if key not in fields.values:
                raise fields.error(key, "a number or null: Gemma 2's network needs it")
        return math.sqrt(fields.real("query_pre_attn_scalar")) / math.sqrt(head_size)
    return fields.real("q_scaling", 1.0) if family is _GPT else 1.0


def _embedding_scale(fields: Fields, family: Family, hidden: int) -> float:
    if family.root_scaled:
        return math.sqrt(hidden)
    return fields.real("embedding_scale", 1.0) if family is _GPT else 1.0


def _alibi_max(fields: Fields, family: Family) -> float:
    return fields.real("alibi_bias_max", 8.0) if family is _MPT else 8.0


def _rotary(fields: Fields, family: Family, kind: str, head_size: int) -> Rotary:
    """The rotary embedding, from the fields its tables are made of.

    Source: NVIDIA/TensorRT-LLM@v0.13.0:tensorrt_llm/layers/attention.py (Attention.create_attention_const_params)
    """
    base = fields.real("rotary_base", 10000.0)
    if family is _NEOX and fields.real("rotary_emb_base") != base:
        raise fields.error("rotary_emb_base", f"rotary_base, {base}: the tables are made from that", "write both")
    share = fields.real("rotary_pct", 1.0)
    if fields.real("partial_rotary_factor", share) != share:
        raise fields.error("partial_rotary_factor", f"rotary_pct, {share}: versions differ in which they read")
    if share != 1.0 and not family.partial_rotary:
        raise fields.error("rotary_pct", "1.0: this network rotates whole heads, its tables would not")
    channels = fields.integer("rotary_dim") if family is _GPTJ else int(head_size * share)
    if family is not _GPTJ and fields.has("rotary_dim") and fields.integer("rotary_dim") != channels:
        raise fields.error("rotary_dim", f"{channels}, from rotary_pct: the tables would follow rotary_dim")
    if channels % 2 != 0 or not 0 < channels <= head_size:
        raise fields.error("rotary_dim" if family is _GPTJ else "rotary_pct", f"an even count up to {head_size}")
    return Rotary(
        channels=channels,
        base=base,
        interleaved=kind == "rope_gptj",
        scaling=_long_rope(fields, channels) if kind == "long_rope" else _scaling(fields, family),
    )


def _scaling(fields: Fields, family: Family) -> LinearScaling | Llama3Scaling | None:
    """What `rotary_scaling` asks for; "dynamic" is refused, since the vendor's tables multiply by its factor."""
    if any(fields.has(f"longrope_scaling_{kind}_factors") for kind in ("short", "long")):
        raise fields.error("position_embedding_type", "long_rope with longrope_scaling_*_factors")
    if not fields.has("rotary_scaling"):
        return None
    scaling = fields.inside("rotary_scaling")
    kind = scaling.text("type") if scaling.has("type") else scaling.text("rope_type")
    if scaling.has("type") and scaling.has("rope_type") and scaling.text("rope_type") != kind:
        raise scaling.error("rope_type", f"{kind}, as in type: versions differ in which they read")
    subject = f"{fields.subject}: rotary_scaling"
    if not family.scaled_rotary:
        raise UnsupportedError(subject, kind, "null: this architecture's attention is not given it")
    if kind == "linear":
        return LinearScaling(scaling.real("factor", 1.0))
    if kind != "llama3":
        raise UnsupportedError(subject, kind, "linear or llama3")
    return Llama3Scaling(
        factor=scaling.real("factor", 8.0),
        low=scaling.real("low_freq_factor", 1.0),
        high=scaling.real("high_freq_factor", 4.0),
        original_positions=scaling.integer("original_max_position_embeddings", 8192),
    )


def _long_rope(fields: Fields, channels: int) -> LongRope:
    short, long = (fields.reals(f"longrope_scaling_{kind}_factors") for kind in ("short", "long"))
    for kind, factors in (("short", short), ("long", long)):
        if len(factors) != channels // 2:
            raise fields.error(f"longrope_scaling_{kind}_factors", f"{channels // 2} numbers, not {len(factors)}")
    return LongRope(
        short=short,
        long=long,
        positions=fields.integer("max_position_embeddings"),
        original_positions=fields.integer("original_max_position_embeddings", least=2),
    )


def _experts(fields: Fields, family: Family) -> Experts | None:
    """The mixture of experts, from `moe` or, as before 0.11, from three fields of their own.

    Source: NVIDIA/TensorRT-LLM@v0.13.0:tensorrt_llm/layers/moe.py (MoeConfig), models/llama/config.py
    """
    if fields.has("moe"):
        moe = fields.inside("moe")
        moe.refuse_others(_MOE_KEYS)
        experts, top_k, mode = "num_experts", "top_k", "normalization_mode"
    else:
        moe, experts, top_k, mode = fields, "moe_num_experts", "moe_top_k", "moe_normalization_mode"
    total = moe.integer(experts, 0, least=0)
    if total <= 1:
        return None
    if not family.experts:
        raise UnsupportedError(f"{moe.subject}: {experts}", str(total), "0: no experts in this architecture here")
    if moe.integer(top_k) > total:
        raise moe.error(top_k, f"at most {total} experts")
    normalization = moe.integer(mode, 1, least=0)
    if normalization not in (0, 1):
        raise UnsupportedError(f"{moe.subject}: {mode}", str(normalization), "0 (none) or 1 (renormalize)")
    qwen = _qwen_type(fields) if family is _QWEN else ""
    nested = moe.has("shared_expert_intermediate_size")
    shared = moe.integer("shared_expert_intermediate_size", 0, least=0) if nested else 0
    if qwen == "qwen2_moe" and not nested:
        shared = fields.integer("moe_shared_expert_intermediate_size")
    return Experts(
        experts=total,
        top_k=moe.integer(top_k),
        renormalized=normalization == 1,
        inner=fields.integer("moe_intermediate_size" if qwen.endswith("_moe") else "intermediate_size"),
        shared_inner=shared if qwen == "qwen2_moe" else 0,
        # since 0.15 the size is a key of `moe` and the module a child of mlp; older loaders refuse that key
        shared_name="mlp.shared_expert" if nested else "shared_expert",
    )


def _parallel(fields: Fields) -> Parallel:
    """The ranks; an absent count is 1, and MoE ranks default to tensor parallelism inside each expert.

    Source: NVIDIA/TensorRT-LLM@v0.13.0:tensorrt_llm/mapping.py (Mapping.__init__)
    """
    mapping = fields.inside("mapping")
    mapping.refuse_others(_MAPPING_KEYS)
    tensor, stages, context = (mapping.integer(key, 1) for key in ("tp_size", "pp_size", "cp_size"))
    if context != 1:
        raise UnsupportedError(f"{mapping.subject}: cp_size", str(context), "1: context parallelism is not executed")
    if mapping.integer("world_size", 1) != tensor * stages:
        raise mapping.error("world_size", f"tp_size * pp_size = {tensor} * {stages} = {tensor * stages}")
    moe_experts = mapping.integer("moe_ep_size", 1)
    if tensor % moe_experts != 0:
        raise mapping.error("moe_ep_size", f"a divisor of tp_size {tensor}")
    if mapping.integer("moe_tp_size", tensor // moe_experts) != tensor // moe_experts:
        raise mapping.error("moe_tp_size", f"tp_size / moe_ep_size = {tensor // moe_experts}")
    return Parallel(tensor=tensor, stages=stages, moe_tensor=tensor // moe_experts, moe_experts=moe_experts)


def _sharded(fields: Fields, parallel: Parallel) -> int | None:
    axis = fields.integer("embedding_sharding_dim", 0, least=0)
    if axis not in (0, 1):
        raise fields.error("embedding_sharding_dim", "0 or 1")
    return axis if fields.boolean("use_parallel_embedding", False) and parallel.tensor > 1 else None


def _shared(fields: Fields, family: Family, parallel: Parallel) -> bool:
    """Whether the token table is the head; its rows must then be cut like the head's.

    Source: NVIDIA/TensorRT-LLM@v0.13.0:tensorrt_llm/models/modeling_utils.py (share_embedding)
    """
    if not (family.shares or fields.boolean("share_embedding_table", False)):
        return False
    if parallel.stages > 1:
        raise fields.error("share_embedding_table", "false with pp_size > 1: the last stage has no token table")
    if parallel.tensor > 1 and _sharded(fields, parallel) != 0:
        raise fields.error(
            "use_parallel_embedding", "true with embedding_sharding_dim 0: the head is the token table, cut by rows"
        )
    return True


def _check_divisible(fields: Fields, config: Config) -> None:
    """What ranks share must divide; a remainder the vendor drops, pads or splits inside a head."""
    tensor, stages = config.parallel.tensor, config.parallel.stages
    if stages > 1 and not config.family.pipeline:
        raise UnsupportedError(f"{fields.subject}: pp_size", str(stages), "1: this network cannot be cut into stages")
    if config.layers < stages:
        raise fields.error("num_hidden_layers", f"at least pp_size {stages}")
    if config.heads % tensor != 0:
        raise fields.error("num_attention_heads", f"a multiple of tp_size {tensor}")
    if config.heads % config.key_heads != 0:
        raise fields.error("num_key_value_heads", f"a divisor of num_attention_heads {config.heads}")
    if config.key_heads % tensor != 0 and tensor % config.key_heads != 0:
        raise fields.error("num_key_value_heads", f"a multiple or a divisor of tp_size {tensor}")
    if config.sharded == 1 and config.hidden % tensor != 0:
        raise fields.error("hidden_size", f"a multiple of tp_size {tensor}")
    experts = config.experts
    if experts is None:
        if config.inner % tensor != 0:
            raise fields.error("intermediate_size", f"a multiple of tp_size {tensor}")
        return
    if experts.experts % config.parallel.moe_experts != 0:
        raise fields.error("moe", f"a multiple of moe_ep_size {config.parallel.moe_experts} experts")
    if experts.inner % config.parallel.moe_tensor != 0 or experts.shared_inner % tensor != 0:
        raise fields.error(
            "moe_intermediate_size", f"a multiple of the {config.parallel.moe_tensor} ranks of an expert"
        )


def _check_quantization(fields: Fields, config: Config) -> None:
    router = ("transformer.layers.0.mlp.router",) if config.experts is not None else ()
    for name in ("lm_head", *router):
        if is_quantized(name, config.quantization):
            raise UnsupportedError(
                f"{fields.subject}: quantization.exclude_modules",
                f"does not exclude {name}",
                "a pattern that does: a quantized one is not executed",
            )
