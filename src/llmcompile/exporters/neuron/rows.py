"""The tensors of a rank's file of weights, as tables over canonical roles.

The names are those of neuronx-distributed's pre-sharded checkpoints, as optimum-neuron writes and loads them, for the
families it has (`VENDORS`). The others follow the same pattern, and have names of ours for what it lacks:

    embed_positions.weight            learned positions (GPT-2, BigCode, OPT without its two padding rows), whole
    embed_norm.*                      the norm of the embedding (BLOOM)
    project_in.weight, project_out.*  OPT-350m's projections, whole
    <norm>.bias, <linear>.bias        as the weight is called; a bias of o_proj or down_proj is whole on every rank
    layers.N.mlp.{up,down}_proj.*     a feed-forward without gate
    layers.N.mlp.shared_experts.*     {gate,up,down}_proj of the expert that all tokens pass (Qwen2-MoE)
    layers.N.mlp.shared_expert_gate.weight    what it is weighted by, whole
    layers.N.{pre,post}_feedforward_layernorm.weight    Gemma 2's, as in its own checkpoint

Weights lie (out, in), but for stacked experts, (experts, in, out). A row whose roles a family does not have is left
out, so that biases and second norms need no mention here.

Source: huggingface/optimum-neuron@v0.4.5:optimum/neuron/models/inference/{llama,qwen2,qwen3,qwen3_moe,mixtral,phi3} and
backend/modules; aws-neuron/neuronx-distributed@fbac349:src/neuronx_distributed/parallel_layers/layers.py (padding),
modules/moe/moe_parallel_layers.py, modules/moe/shared_experts.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from llmcompile.dtypes import BY_NAME
from llmcompile.exporters.neuron.heads import Heads
from llmcompile.plan import Combine, Row
from llmcompile.transforms import Array

FILE = "weights/tp{rank}_sharded_checkpoint.safetensors"
"""One rank's weights. Source: neuronx-distributed, trace/model_builder.py (shard_weights_with_cache)."""
RANK = "rank_util.rank"
"""Tensor that holds the number of the rank."""
LAYER = "layers.{layer}."
_OUTPUT = f"{LAYER}self_attn.o_proj.o_proj"
_EXPERTS = f"{LAYER}mlp.expert_mlps.mlp_op"
_SHARED = f"{LAYER}mlp.shared_experts"
_INT32 = BY_NAME["int32"]


@dataclass(frozen=True)
class Family:
    """Where a decoder-only family differs from the skeleton.

    Attributes:
        fused_qkv: Whether q, k and v are one matrix on each rank.
        mlp_norm: Name of the norm before the feed-forward, or after it where the family has its norms there.
        ranks: Which tensors say what the rank is: "all" for one of the model and one of each layer, "model" for the
            former alone, "" for none.
    """

    fused_qkv: bool = True
    mlp_norm: str = "post_attention_layernorm"
    ranks: str = "all"


def decoder_rows(family: Family, heads: Heads) -> tuple[Row, ...]:
    """Every tensor a decoder-only model of the family may have."""
    return (
        Row(FILE, ("embed.tokens.weight",), tensor="embed_tokens.weight", split="in", uneven="pad"),
        _whole("embed_positions.weight", "embed.positions.weight"),
        *_norm("embed_norm", "embed.norm"),
        _whole("project_in.weight", "embed.project_in.weight"),
        *_norm(f"{LAYER}input_layernorm", "attn.norm"),
        *_qkv(family, heads),
        Row(FILE, ("attn.o.weight",), tensor=f"{_OUTPUT}.weight", split="in", slots=heads.slots),
        _whole(f"{_OUTPUT}.bias", "attn.o.bias"),
        _whole(f"{LAYER}self_attn.q_layernorm.weight", "attn.q_norm.weight"),
        _whole(f"{LAYER}self_attn.k_layernorm.weight", "attn.k_norm.weight"),
        *_norm(f"{LAYER}post_attention_layernorm", "attn.post_norm"),
        *_norm(f"{LAYER}{family.mlp_norm}", "mlp.norm"),
        *_norm(f"{LAYER}post_feedforward_layernorm", "mlp.post_norm"),
        *_column(f"{LAYER}mlp.gate_proj", "mlp.gate"),
        *_column(f"{LAYER}mlp.up_proj", "mlp.up"),
        *_row(f"{LAYER}mlp.down_proj", "mlp.down"),
        *_experts(),
        *_norm("norm", "norm"),
        _whole("project_out.weight", "embed.project_out.weight"),
        *_column("lm_head", "head"),
        *_ranks(family),
    )


def _whole(tensor: str, role: str) -> Row:
    return Row(FILE, (role,), tensor=tensor)


def _norm(name: str, role: str) -> Iterator[Row]:
    for kind in ("weight", "bias"):
        yield _whole(f"{name}.{kind}", f"{role}.{kind}")


def _qkv(family: Family, heads: Heads) -> Iterator[Row]:
    name = f"{LAYER}self_attn.qkv_proj"
    parts: Mapping[str, tuple[str, ...]] = {part: (f"attn.{part}",) for part in "qkv"}
    if family.fused_qkv:
        parts = {"Wqkv": tuple(role for roles in parts.values() for role in roles)}
    for part, roles in parts.items():
        for kind in ("weight", "bias"):
            tensor = f"{name}.{part}.{kind}" if family.fused_qkv else f"{name}.{part}_proj.{kind}"
            each = tuple(f"{role}.{kind}" for role in roles)
            yield Row(FILE, each, tensor=tensor, split="out", slots=heads.slots)


def _column(name: str, role: str) -> Iterator[Row]:
    """A linear layer divided by outputs, padded with zeros where they do not divide."""
    for kind in ("weight", "bias"):
        yield Row(FILE, (f"{role}.{kind}",), tensor=f"{name}.{kind}", split="out", uneven="pad")


def _row(name: str, role: str) -> Iterator[Row]:
    """A linear layer divided by inputs, padded with zeros; its bias is added behind the sum, so every rank has it."""
    yield Row(FILE, (f"{role}.weight",), tensor=f"{name}.weight", split="in", uneven="pad")
    yield _whole(f"{name}.bias", f"{role}.bias")


def _experts() -> Iterator[Row]:
    """The router, every expert's share on every rank, gate before up, and the experts that all tokens pass."""
    yield _whole(f"{LAYER}mlp.router.linear_router.weight", "router.weight")
    stacked = (
        ("gate_up_proj", ("experts.gate.weight", "experts.up.weight"), "out"),
        ("down_proj", ("experts.down.weight",), "in"),
    )
    for name, roles, split in stacked:
        yield Row(FILE, roles, tensor=f"{_EXPERTS}.{name}.weight", split=split, in_first=True, experts=True)
    yield from _column(f"{_SHARED}.gate_proj", "shared.gate")
    yield from _column(f"{_SHARED}.up_proj", "shared.up")
    yield from _row(f"{_SHARED}.down_proj", "shared.down")
    yield _whole(f"{LAYER}mlp.shared_expert_gate.weight", "shared.switch.weight")


def _ranks(family: Family) -> Iterator[Row]:
    """The number of the rank; the operand, a norm that every layer has, only says which layers there are."""
    number = Combine(_number, (("attn.norm.weight",),), scalar=True, rank=True)
    if family.ranks != "":
        yield Row(FILE, (), tensor=RANK, dtype=_INT32, combine=number, layer=0)
    if family.ranks == "all":
        yield Row(FILE, (), tensor=f"{LAYER}self_attn.{RANK}", dtype=_INT32, combine=number)


def _number(operands: Sequence[Array]) -> Array:
    return operands[-1]


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "llama": Family(),
        "meta_llama": Family(),
        "mistral": Family(),
        "mixtral": Family(fused_qkv=False, ranks=""),
        "phi3": Family(),
        "qwen": Family(),
        "qwen2": Family(fused_qkv=False),
        "qwen2_moe": Family(fused_qkv=False, ranks="model"),
        "qwen3": Family(),
        "qwen3_moe": Family(fused_qkv=False, ranks="model"),
        "gemma": Family(),
        "gemma2": Family(mlp_norm="pre_feedforward_layernorm"),
        "gpt2": Family(),
        "gpt_bigcode": Family(),
        "starcoder2": Family(),
        "gptj": Family(),
        "gptneox": Family(),
        "opt": Family(),
        "bloom": Family(),
        "falcon": Family(),
        "mpt": Family(),
        "phi": Family(),
    }
)
"""Decoder-only families by the name of their architecture."""
VENDORS = ("llama", "mixtral", "phi3", "qwen2", "qwen3", "qwen3_moe")
"""Families optimum-neuron has, whose names are exactly its own; those of the others are ours where it has none."""
