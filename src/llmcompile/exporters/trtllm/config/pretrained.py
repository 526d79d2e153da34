"""What config.json of a TensorRT-LLM checkpoint holds for every family, and the rules that several families share.

The fields are the portable form: those that PretrainedConfig and the model classes read in every release from 0.9 to
1.2, and none that an older release would refuse. Source: NVIDIA/TensorRT-LLM:tensorrt_llm/models/modeling_utils.py and
mapping.py at 0.9.0.dev2024031200, 0.10.0.dev2024043000, 0.12.0.dev2024073000, 0.13.0, 0.16.0.dev2024121000, 1.0.0rc4.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

from llmcompile.architectures.spec import Dims
from llmcompile.errors import Problem


@dataclass(frozen=True, kw_only=True)
class Given:
    """What the caller asks for, as far as config.json says it.

    Attributes:
        dtype: Element type by TensorRT-LLM's name ("float16").
        tp: Ranks of tensor parallelism.
        pp: Ranks of pipeline parallelism.
        moe_tp: Ranks that share an expert.
        moe_ep: Ranks that share the experts among them; moe_tp * moe_ep is tp.
        quantization: The block of that name.
        use_parallel_embedding: Whether a rank holds a part of the embedding.
        embedding_sharding_dim: The axis it is split on: 0 the vocabulary, 1 the hidden size.
        share_embedding_table: Whether the head reads the embedding and is left out of the files.
        logits_dtype: Element type of the logits.
        version: The release of TensorRT-LLM that reads the checkpoint.
        producer_version: Ours.
    """

    dtype: str
    tp: int
    pp: int
    moe_tp: int
    moe_ep: int
    quantization: Mapping[str, Any]
    use_parallel_embedding: bool
    embedding_sharding_dim: int
    share_embedding_table: bool
    logits_dtype: str
    version: tuple[int, int, int]
    producer_version: str


Config: TypeAlias = Callable[[Dims, Given], Mapping[str, Any]]
Refusals: TypeAlias = Callable[[Dims, Given], Iterator[Problem]]
Notes: TypeAlias = Callable[[Dims, Given], Iterator[str]]

EXPERT_MAPPING = (0, 11, 0)
"""First release whose Mapping takes moe_tp_size and moe_ep_size, and whose configs hold a dict `moe`."""
HUGGING_FACE_NAMES = (0, 12, 0)
"""First release that reads today's rope types, and the class and activation names of Hugging Face."""
_TANH_GELU = "gelu_pytorch_tanh"
_ACTIVATIONS = ("relu", "silu", "gelu", "gelu_new", "gelu_fast", _TANH_GELU)
"""Those that compute what Hugging Face's of that name does; "gelu" is the tanh approximation (functional.py)."""


def pretrained_config(
    dims: Dims,
    given: Given,
    *,
    architecture: str,
    hidden_act: str,
    position_embedding_type: str,
    kv_heads: int,
    positions: int | None,
) -> dict[str, Any]:
    """The fields of every family, in the order of the specification.

    Args:
        dims: Sizes `vocab`, `hidden`, `ffn`, `layers`, `heads`, `head_dim`; fact `norm_eps`.
        given: As in `Given`.
        architecture: The key of TensorRT-LLM's model map.
        hidden_act: As TensorRT-LLM calls it.
        position_embedding_type: One of learned_absolute, rope_gptj, rope_gpt_neox, long_rope, alibi, ...
        kv_heads: Heads of k and v, before any are repeated over ranks.
        positions: max_position_embeddings; None where the family has no such limit.
    """
    return {
        "producer": {"name": "llmcompile", "version": given.producer_version},
        "architecture": architecture,
        "dtype": given.dtype,
        "logits_dtype": given.logits_dtype,
        "vocab_size": dims.sizes["vocab"],
        "hidden_size": dims.sizes["hidden"],
        "intermediate_size": dims.sizes["ffn"],
        "num_hidden_layers": dims.sizes["layers"],
        "num_attention_heads": dims.sizes["heads"],
        "num_key_value_heads": kv_heads,
        "head_size": dims.sizes["head_dim"],
        "hidden_act": hidden_act,
        "norm_epsilon": dims.facts["norm_eps"],
        "position_embedding_type": position_embedding_type,
        **({} if positions is None else {"max_position_embeddings": positions}),
        "mapping": mapping(dims, given),
        "quantization": dict(given.quantization),
        "use_parallel_embedding": given.use_parallel_embedding,
        "embedding_sharding_dim": given.embedding_sharding_dim,
        "share_embedding_table": given.share_embedding_table,
    }


def mapping(dims: Dims, given: Given) -> dict[str, int]:
    """Ranks by kind; those of experts only where there are experts, and a release that takes the keys."""
    ranks = {"world_size": given.tp * given.pp, "tp_size": given.tp, "pp_size": given.pp}
    if given.moe_ep > 1 or ("experts" in dims.sizes and given.version >= EXPERT_MAPPING):
        ranks |= {"moe_tp_size": given.moe_tp, "moe_ep_size": given.moe_ep}
    return ranks


def rotary(dims: Dims) -> dict[str, Any]:
    """`rotary_base` and `rotary_scaling`: the checkpoint's own, with its kind under both names.

    Up to 0.11 the kind is read from `type`, from 0.12 on from `type` or else `rope_type` (layers/attention.py).
    """
    text, kind = dims.facts["rope_config"], dims.facts["rope_scaling"]
    scaling = None if text is None else {**json.loads(str(text)), "type": kind}
    return {"rotary_base": dims.facts["rotary_base"], "rotary_scaling": scaling}


_ROPE_HINTS: Mapping[str | None, str] = MappingProxyType(
    {
        "dynamic": "for texts within max_position_embeddings, where it changes nothing, set rope_scaling to null in a "
        "copy of config.json"
    }
)
"""Kind of scaling -> what to do about it.

Source: huggingface/transformers@v4.57.6:src/transformers/modeling_rope_utils.py (_compute_dynamic_ntk_parameters).
"""


def rope_refusals(dims: Dims, given: Given) -> Iterator[Problem]:
    """Kinds of scaling that the release does not compute for position_embedding_type rope_gpt_neox or rope_gptj.

    "dynamic" is a name that all of them take, for tables that are made once and do not grow with the text.
    Later releases know the names yarn, longrope and mrope too, but compute them for other embedding types only.
    Source: create_sinusoidal_positions_for_attention_plugin in functional.py at 0.16.0.dev2024121000.
    """
    kind = None if dims.facts["rope_scaling"] is None else str(dims.facts["rope_scaling"])
    known = (None, "linear", *(("llama3",) if given.version >= HUGGING_FACE_NAMES else ()))
    if kind not in known:
        later = kind == "llama3"
        yield Problem(
            "config.json: rope_scaling",
            f"type {kind}",
            " or ".join(str(name) for name in known if name is not None),
            "target TensorRT-LLM 0.12 or later" if later else _ROPE_HINTS.get(kind, "no release computes it here"),
        )


def activation(dims: Dims, given: Given) -> str:
    """The activation's name in the target release; older ones lack a name for the function they call "gelu"."""
    name = str(dims.facts["activation"])
    return "gelu" if name == _TANH_GELU and given.version < HUGGING_FACE_NAMES else name


def activation_refusals(dims: Dims, _given: Given) -> Iterator[Problem]:
    """An activation that TensorRT-LLM does not have."""
    if dims.facts["activation"] not in _ACTIVATIONS:
        yield Problem(
            "config.json: activation",
            str(dims.facts["activation"]),
            " or ".join(_ACTIVATIONS),
            "TensorRT-LLM has no such activation",
        )


def activation_notes(dims: Dims, _given: Given) -> Iterator[str]:
    """TensorRT-LLM has one GELU, the approximation."""
    if dims.facts["activation"] == "gelu":
        yield "TensorRT-LLM computes gelu by its tanh approximation; transformers uses the error function here"


def no_pipeline(dims: Dims, given: Given, family: str) -> Iterator[Problem]:
    """A model class that has no pipeline stages."""
    if given.pp > 1:
        yield Problem(
            "--pp",
            f"{given.pp}, of {dims.sizes['layers']} layers",
            "1",
            f"TensorRT-LLM's {family} has no pipeline parallelism; use --tp",
        )


def at_least(given: Given, first: tuple[int, int, int], what: str) -> Iterator[Problem]:
    """A target release older than the first that has `what`."""
    if given.version < first:
        found, needed = (".".join(str(part) for part in version) for version in (given.version, first))
        yield Problem("TensorRT-LLM", found, f"{needed} or later", f"older releases do not have {what}")
