"""Every rank's file has the vendor's names and bits, whatever sizes and degrees: against NumPy and recordings of it."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_tensors

import models
import neuron_decoders
from llmcompile.architectures import ARCHITECTURES, lookup
from llmcompile.exporters.neuron.families import FAMILIES as NETWORKS
from llmcompile.exporters.neuron.rows import FAMILIES, VENDORS

Array = NDArray[Any]
Weights = dict[str, Array]
GOLDEN = Path(__file__).parents[2] / "golden" / "neuron" / "nxd" / "shards.json"
QUICK = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
LAYER = "layers.0."
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 11,
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "intermediate_size": 40,
    "attention_bias": True,
    "mlp_bias": True,
}


def random_weights(config: Mapping[str, Any]) -> Weights:
    """Normally distributed tensors by the names and shapes of the family's table."""
    architecture = lookup(dict(config))
    dims = architecture.dims(dict(config))
    numbers = np.random.default_rng(0)
    return {
        tensor.name_at(layer, expert): numbers.normal(size=tensor.stored_shape(dims)).astype(np.float32)
        for tensor, layer, expert in architecture.expected(dims)
        if tensor.tied_to == "" or dims.facts["tied"] is not True
    }


def ranks_of(config: Mapping[str, Any], weights: Weights, ranks: int) -> list[Weights]:
    """The tensors of every rank, as llmcompile writes them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "hf").mkdir()
        (folder / "hf" / "config.json").write_text(json.dumps(config))
        save_file(weights, folder / "hf" / "model.safetensors")
        written = neuron_decoders.write(folder / "hf", folder / "out", neuron_decoders.options_for(ranks=ranks))
        return [{name: tensor.numpy() for name, tensor in rank.items()} for rank in written.ranks]


def padded(array: Array, length: int, axis: int) -> Array:
    """Zeros behind an axis up to a length."""
    width = [(0, 0)] * array.ndim
    width[axis] = (0, length - array.shape[axis])
    return np.pad(array, width)


def shared(array: Array, ranks: int, axis: int) -> list[Array]:
    """Equal shares along an axis, filled up with zeros."""
    return np.split(padded(array, -(-array.shape[axis] // ranks) * ranks, axis), ranks, axis)


def grown(array: Array, heads: int, kv: int, ranks: int, kind: str, axis: int = 0) -> Array:
    """A projection with the heads that the ranks need, by the vendor's rule, from one with `heads` or `kv` heads."""
    count = kv if kind in ("k", "v") else heads
    total = -(-heads // ranks) * ranks
    split = np.moveaxis(array, axis, 0).reshape(count, -1, *np.delete(array.shape, axis))
    if kind in ("k", "v"):
        if kv % ranks != 0:
            split = split.repeat(ranks // kv if ranks % kv == 0 else heads // kv, 0)
            split = split if ranks % kv == 0 else padded(split, total, 0)
    elif ranks % kv == 0:
        split = padded(split.reshape(kv, heads // kv, *split.shape[1:]), total // kv, 1)
        split = split.reshape(total, *split.shape[2:])
    else:
        split = padded(split, total, 0)
    return np.moveaxis(split.reshape(-1, *split.shape[2:]), 0, axis)


def attention(weights: Weights, prefix: str, heads: int, kv: int, ranks: int) -> list[Weights]:
    """Every rank's q, k, v and o, weights and biases, of a model that has a matrix for each."""
    found: list[Weights] = [{} for _ in range(ranks)]
    for kind in ("weight", "bias"):
        parts = {
            part: shared(grown(weights[f"{prefix}.{part}_proj.{kind}"], heads, kv, ranks, part), ranks, 0)
            for part in "qkv"
        }
        for rank in range(ranks):
            found[rank][f"Wqkv.{kind}"] = np.concatenate([parts[part][rank] for part in "qkv"])
    columns = shared(grown(weights[f"{prefix}.o_proj.weight"], heads, kv, ranks, "o", 1), ranks, 1)
    for rank in range(ranks):
        found[rank]["o_proj.weight"] = columns[rank]
        found[rank]["o_proj.bias"] = weights[f"{prefix}.o_proj.bias"]
    return found


def same(found: Array, expected: Array) -> None:
    """Equal types, shapes and bits."""
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert found.tobytes() == np.ascontiguousarray(expected).tobytes()


@QUICK
@given(
    kv=st.integers(1, 4),
    group=st.integers(1, 4),
    ranks=st.integers(1, 9),
    hidden=st.integers(1, 14),
    vocab=st.integers(1, 20),
    ffn=st.integers(1, 20),
)
def test_every_rank_of_a_llama_has_what_the_rule_says(
    kv: int, group: int, ranks: int, hidden: int, vocab: int, ffn: int
) -> None:
    """Heads, vocabulary, hidden size and MLP of any size on any number of ranks, biases among them."""
    heads = kv * group
    config = {
        **LLAMA,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "hidden_size": hidden,
        "vocab_size": vocab,
        "intermediate_size": ffn,
    }
    weights = random_weights(config)

    found = ranks_of(config, weights, ranks)

    prefix = f"{LAYER}self_attn"
    expected = attention(weights, prefix, heads, kv, ranks)
    axes = {"embed_tokens.weight": 1, "lm_head.weight": 0, f"{LAYER}mlp.down_proj.weight": 1}
    axes |= {f"{LAYER}mlp.{part}_proj.{kind}": 0 for part in ("gate", "up") for kind in ("weight", "bias")}
    whole = (f"{LAYER}mlp.down_proj.bias", f"{LAYER}input_layernorm.weight", "norm.weight")
    for rank in range(ranks):
        for kind in ("weight", "bias"):
            same(found[rank][f"{prefix}.qkv_proj.Wqkv.{kind}"], expected[rank][f"Wqkv.{kind}"])
            same(found[rank][f"{prefix}.o_proj.o_proj.{kind}"], expected[rank][f"o_proj.{kind}"])
        for name, axis in axes.items():
            same(found[rank][name], shared(weights[name], ranks, axis)[rank])
        for name in whole:
            same(found[rank][name], weights[name])
        same(found[rank]["rank_util.rank"], np.int32([rank]))
        same(found[rank][f"{prefix}.rank_util.rank"], np.int32([rank]))


@QUICK
@given(kv=st.integers(1, 4), group=st.integers(1, 3), ranks=st.integers(1, 6), hidden=st.integers(1, 12))
def test_all_ranks_together_compute_what_the_model_does(kv: int, group: int, ranks: int, hidden: int) -> None:
    """The sum over ranks of what queries, keys, values and outputs make is that of the unsplit matrices."""
    heads = kv * group
    config = {**LLAMA, "num_attention_heads": heads, "num_key_value_heads": kv, "hidden_size": hidden}
    weights = {name: value.astype(np.float32) for name, value in random_weights(config).items()}
    prefix = f"{LAYER}self_attn"
    x = np.random.default_rng(1).normal(size=hidden).astype(np.float32)
    q, k, v, o = (weights[f"{prefix}.{part}_proj.weight"].astype(np.float64) for part in "qkvo")
    scores = np.einsum("kgd,kd->kg", (q @ x).reshape(kv, group, 4), (k @ x).reshape(kv, 4))
    wanted = o @ (scores[..., None] * (v @ x).reshape(kv, 1, 4)).reshape(-1)

    total = np.zeros(hidden)
    for found in ranks_of(config, weights, ranks):
        fused = found[f"{prefix}.qkv_proj.Wqkv.weight"].astype(np.float64)
        out = found[f"{prefix}.o_proj.o_proj.weight"].astype(np.float64)
        queries = out.shape[1] // 4
        keys = (fused.shape[0] // 4 - queries) // 2
        parts = np.split((fused @ x).reshape(-1, 4), [queries, queries + keys])
        rows = parts[0].reshape(keys, -1, 4)
        weighted = np.einsum("kgd,kd->kg", rows, parts[1])[..., None] * parts[2][:, None]
        total += out @ weighted.reshape(-1)

    np.testing.assert_allclose(total, wanted, rtol=1e-6, atol=1e-6)


FUSED: Mapping[str, tuple[dict[str, Any], str]] = {
    "gpt2": (
        {"architectures": ["GPT2LMHeadModel"], "n_positions": 20, "n_embd": 12, "n_layer": 1, "n_head": 6},
        "h.0.attn.c_attn",
    ),
    "neox": (
        {
            "architectures": ["GPTNeoXForCausalLM"],
            "max_position_embeddings": 5,
            "hidden_size": 12,
            "num_hidden_layers": 1,
            "num_attention_heads": 6,
            "intermediate_size": 8,
            "rotary_pct": 1.0,
        },
        "layers.0.attention.query_key_value",
    ),
    "falcon": (
        {
            "architectures": ["FalconForCausalLM"],
            "hidden_size": 12,
            "num_hidden_layers": 1,
            "num_attention_heads": 6,
            "num_kv_heads": 2,
            "new_decoder_architecture": True,
            "bias": True,
        },
        "h.0.self_attention.query_key_value",
    ),
}


def opened(family: str, fused: Array) -> tuple[Array, Array, Array]:
    """q, k and v of a fused tensor whose first axis is the output."""
    rest = fused.shape[1:]
    if family == "gpt2":
        q, k, v = np.split(fused, 3)
        return q, k, v
    groups = fused.reshape(6, 3, 2, *rest) if family == "neox" else fused.reshape(2, 5, 2, *rest)
    queries = groups[:, :-2].reshape(-1, *rest)
    return queries, groups[:, -2].reshape(-1, *rest), groups[:, -1].reshape(-1, *rest)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("family", FUSED)
def test_a_fused_tensor_is_opened_whatever_its_order(family: str, ranks: int) -> None:
    """GPT-2 has (in, 3 x heads), GPT-NeoX q, k, v of each head together, Falcon k and v behind a group of queries."""
    config, name = FUSED[family]
    config = {"vocab_size": 11, **config}
    weights = random_weights(config)
    stored = {kind: weights[f"{name}.{kind}"] for kind in ("weight", "bias")}
    if family == "gpt2":
        stored["weight"] = stored["weight"].T
    kv = 2 if family == "falcon" else 6

    found = ranks_of(config, weights, ranks)

    for kind, tensor in stored.items():
        parts = [
            shared(grown(part, 6, kv, ranks, role), ranks, 0)
            for role, part in zip("qkv", opened(family, tensor), strict=True)
        ]
        for rank in range(ranks):
            expected = np.concatenate([part[rank] for part in parts])
            same(found[rank][f"{LAYER}self_attn.qkv_proj.Wqkv.{kind}"], expected)


MOE: dict[str, Any] = {
    **{key: value for key, value in LLAMA.items() if not key.endswith("_bias")},
    "architectures": ["Qwen2MoeForCausalLM"],
    "num_key_value_heads": 8,
    "num_experts": 3,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
    "shared_expert_intermediate_size": 9,
}


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_experts_are_stacked_inputs_first_gate_beside_up(ranks: int) -> None:
    """Each rank has a part of both halves; the router and the shared expert's switch are whole."""
    weights = random_weights(MOE)

    found = ranks_of(MOE, weights, ranks)

    def stacked(part: str) -> Array:
        return np.stack([weights[f"{LAYER}mlp.experts.{expert}.{part}_proj.weight"] for expert in range(3)])

    gate, up, down = (np.split(stacked(part), ranks, 2 if part == "down" else 1) for part in ("gate", "up", "down"))
    for rank in range(ranks):
        both = np.concatenate([gate[rank], up[rank]], 1).transpose(0, 2, 1)
        same(found[rank][f"{LAYER}mlp.expert_mlps.mlp_op.gate_up_proj.weight"], both)
        same(found[rank][f"{LAYER}mlp.expert_mlps.mlp_op.down_proj.weight"], down[rank].transpose(0, 2, 1))
        same(found[rank][f"{LAYER}mlp.router.linear_router.weight"], weights[f"{LAYER}mlp.gate.weight"])
        same(found[rank][f"{LAYER}mlp.shared_expert_gate.weight"], weights[f"{LAYER}mlp.shared_expert_gate.weight"])
        shared_up = shared(weights[f"{LAYER}mlp.shared_expert.up_proj.weight"], ranks, 0)[rank]
        same(found[rank][f"{LAYER}mlp.shared_experts.up_proj.weight"], shared_up)


def test_a_tied_head_is_written_from_the_embedding() -> None:
    """Divided by vocabulary, where the embedding is divided by hidden size."""
    config = {**LLAMA, "tie_word_embeddings": True}
    weights = random_weights(config)

    found = ranks_of(config, weights, 4)

    assert "lm_head.weight" not in weights
    for rank in range(4):
        same(found[rank]["lm_head.weight"], shared(weights["embed_tokens.weight"], 4, 0)[rank])


def test_families_have_both_names_and_a_network() -> None:
    """Every decoder-only family of ours, and no other."""
    names = {architecture.name for architecture in ARCHITECTURES} - {"bert", "bart", "t5"}

    assert set(FAMILIES) == set(NETWORKS) == names
    assert set(VENDORS) <= names


# The vendor's own sharder


def counting(folder: Path, family: str, config: Mapping[str, Any]) -> Path:
    """The model of a recording: of tensor i by name, element n is (37 n + 11 i) mod 251, in bfloat16."""
    model = models.build(family, dtype="bfloat16", config=config)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    state = {
        name: (torch.arange(tensor.numel()) * 37 + number * 11).remainder(251).reshape(tensor.shape).bfloat16()
        for number, (name, tensor) in enumerate(sorted(model.state_dict().items()))
    }
    if config.get("tie_word_embeddings") is True:
        del state["lm_head.weight"]
    save_tensors(state, folder / "model.safetensors")
    return folder


def digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """As tests/golden/neuron/nxd/README.md says."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        kind = str(tensor.dtype).removeprefix("torch.")
        found.update(f"{name} {kind} {list(tensor.shape)}\n".encode())
        bits = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
        found.update(bits.contiguous().numpy().tobytes())
    return found.hexdigest()


RECORDED = json.loads(GOLDEN.read_text())


@pytest.mark.parametrize(
    "case", RECORDED, ids=[f"{case['family']}-{number}-tp{case['ranks']}" for number, case in enumerate(RECORDED)]
)
def test_files_are_the_vendors_to_the_bit(case: dict[str, Any], tmp_path: Path) -> None:
    """What optimum-neuron and neuronx-distributed made of the same model: names, types, shapes and elements."""
    folder = counting(tmp_path / "hf", case["family"], case["config"])

    written = neuron_decoders.write(folder, tmp_path / "out", neuron_decoders.options_for(ranks=case["ranks"]))

    shapes = {
        name: f"{str(tensor.dtype).removeprefix('torch.')} {'x'.join(str(side) for side in tensor.shape)}"
        for name, tensor in written.ranks[0].items()
    }
    assert shapes == case["tensors"]
    assert [digest(rank) for rank in written.ranks] == case["sha256"]
