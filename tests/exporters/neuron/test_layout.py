"""Which decoders are written, how neuron_config.json describes them, and why others are refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import models
from llmcompile.architectures import lookup
from llmcompile.checkpoint.folder import open_checkpoint
from llmcompile.dtypes import BF16, FP16, FP32, FP64, DType
from llmcompile.errors import Problem
from llmcompile.exporters.neuron.layout import buckets, cache_bytes, make_layout, recorded, resolve_dtype
from llmcompile.exporters.neuron.network import Decoder
from llmcompile.exporters.neuron.options import NeuronOptions, Shapes
from llmcompile.exporters.options import BuildOptions
from llmcompile.exporters.spec import Layout
from llmcompile.plan import make_plan
from neuron_decoders import options_for

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 11,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
}
GPT2: dict[str, Any] = {
    "architectures": ["GPT2LMHeadModel"],
    "vocab_size": 11,
    "n_positions": 12,
    "n_embd": 24,
    "n_layer": 1,
    "n_head": 4,
}
MOE: dict[str, Any] = {
    **LLAMA,
    "architectures": ["Qwen2MoeForCausalLM"],
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
    "shared_expert_intermediate_size": 9,
}
NEOX: dict[str, Any] = {
    **{key: value for key, value in LLAMA.items() if key != "num_key_value_heads"},
    "architectures": ["GPTNeoXForCausalLM"],
    "rotary_pct": 1.0,
}
MPT: dict[str, Any] = {
    "architectures": ["MptForCausalLM"],
    "vocab_size": 11,
    "d_model": 24,
    "n_layers": 1,
    "n_heads": 4,
}


def layout_of(config: Mapping[str, Any], *, source: DType = FP16, options: NeuronOptions | None = None) -> Layout:
    """The layout of a model of this config."""
    architecture = lookup(dict(config))
    asked = options_for(ranks=2) if options is None else options
    return make_layout(
        architecture, architecture.dims(dict(config)), asked, source_dtype=source, model_label="org/name"
    )


def refusal(config: Mapping[str, Any], **given: Any) -> Problem:
    """The only reason why a model is refused."""
    found = layout_of(config, **given)
    assert found.rows == ()
    assert found.texts == {}
    (problem,) = found.refusals
    return problem


def test_neuron_config_has_the_vendors_keys() -> None:
    """Those of NxDNeuronConfig, as optimum-neuron 0.4.5 writes them."""
    content = json.loads(layout_of(LLAMA).texts["neuron_config.json"])

    assert sorted(content) == sorted(
        [
            *("_serialized_key", "batch_size", "capacity_factor", "checkpoint_id", "checkpoint_revision"),
            *("continuous_batching", "ep_degree", "fused_qkv", "glu_mlp", "local_ranks_size", "max_batch_size"),
            *("max_context_length", "max_topk", "n_active_tokens", "neuronxcc_version", "on_device_sampling"),
            *("optimum_neuron_version", "output_logits", "pp_degree", "sequence_length", "speculation_length"),
            *("start_rank_id", "target", "torch_dtype", "tp_degree"),
        ]
    )


def test_neuron_config_says_what_was_done() -> None:
    """Shapes, cores and type as asked; no sampling, no continuous batching, no version of what did not run."""
    content = json.loads(layout_of(LLAMA, options=options_for(ranks=4, batch=3, slots=20)).texts["neuron_config.json"])

    assert content["batch_size"] == content["max_batch_size"] == 3
    assert content["sequence_length"] == content["max_context_length"] == 20
    assert content["tp_degree"] == content["local_ranks_size"] == 4
    assert content["torch_dtype"] == "float16"
    assert content["checkpoint_id"] == "org/name"
    assert content["fused_qkv"] is True
    assert (content["on_device_sampling"], content["continuous_batching"]) == (False, False)
    assert (content["optimum_neuron_version"], content["neuronxcc_version"]) == (None, None)


@pytest.mark.parametrize(
    ("instance", "target"), [(None, "trn1"), ("inf2", "trn1"), ("trn1n", "trn1"), ("trn2", "trn2")]
)
def test_neuron_config_names_the_code_of_the_instance(instance: str | None, target: str) -> None:
    """Three families run one kind of code."""
    options = options_for(ranks=2, instance_type=instance)

    assert json.loads(layout_of(LLAMA, options=options).texts["neuron_config.json"])["target"] == target


@pytest.mark.parametrize(("family", "fused"), [("llama", True), ("qwen2", False)])
def test_neuron_config_says_whether_q_k_and_v_are_one_matrix(family: str, fused: bool) -> None:
    """As the names of the weights do."""
    config = {**LLAMA, "architectures": [{"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}[family]]}
    found = layout_of(config)

    assert json.loads(found.texts["neuron_config.json"])["fused_qkv"] is fused
    assert any("Wqkv" in row.tensor for row in found.rows) is fused


@pytest.mark.parametrize(
    ("given", "source", "expected"),
    [
        ({}, FP16, FP16),
        ({}, BF16, BF16),
        ({}, FP64, FP32),
        ({"torch_dtype": "bfloat16"}, FP32, BF16),
        ({"auto_cast_type": "bf16"}, FP32, BF16),
        ({"auto_cast_type": "tf32"}, BF16, BF16),
        ({"auto_cast": "matmul", "auto_cast_type": "bf16"}, FP32, FP32),
        ({"torch_dtype": "float32", "auto_cast": "all", "auto_cast_type": "bf16"}, FP16, FP32),
    ],
)
def test_the_type_is_the_one_asked_for_or_the_checkpoints(
    given: dict[str, Any], source: DType, expected: DType
) -> None:
    """--torch-dtype, then the type of a cast that is not left to the compiler, then the checkpoint's own."""
    assert resolve_dtype(options_for(ranks=1, **given), source) == expected


@pytest.mark.parametrize(
    ("longest", "given", "expected"),
    [
        (2048, None, (128, 256, 512, 1024, 2048)),
        (1500, None, (128, 256, 512, 1024, 1500)),
        (128, None, (128,)),
        (100, None, (100,)),
        (1, None, (1,)),
        (512, (100, 300), (100, 300, 512)),
        (512, (300, 100, 512, 1), (100, 300, 512)),
    ],
)
def test_buckets_end_with_the_sequence_length(
    longest: int, given: tuple[int, ...] | None, expected: tuple[int, ...]
) -> None:
    """Powers of two from 128 on, or those asked for."""
    assert buckets(options_for(ranks=1, slots=longest, buckets=given)) == expected


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
def test_the_caches_bytes_are_those_of_the_network(ranks: int) -> None:
    """Repeated and padded heads among them."""
    architecture = lookup(LLAMA)
    dims = architecture.dims(LLAMA)
    options = options_for(ranks=ranks, batch=3, slots=20)
    import torch

    decoder = Decoder(architecture, dims, batch=3, sequence_length=20, ranks=ranks, dtype=torch.bfloat16)

    expected = sum(decoder.get_buffer(name).nbytes for name in decoder.states)
    assert cache_bytes(architecture, dims, options, BF16) == expected


def test_a_family_without_a_network_has_no_caches() -> None:
    """BERT's bytes are none, as it is refused elsewhere."""
    config = {"architectures": ["BertForMaskedLM"], **dict.fromkeys(("vocab_size", "hidden_size"), 8)}
    config |= dict.fromkeys(("num_hidden_layers", "num_attention_heads", "intermediate_size"), 2)
    config |= {"max_position_embeddings": 8}
    architecture = lookup(config)

    assert cache_bytes(architecture, architecture.dims(config), options_for(ranks=1), FP16) == 0
    assert refusal(config).found == "a bert model, which is no decoder of ours"


def test_what_is_recorded_decides_the_bytes() -> None:
    """Cores, type and shapes."""
    options = options_for(ranks=2, slots=300)

    assert recorded(options, layout_of(LLAMA, options=options)) == {
        "num_cores": 2,
        "dtype": "fp16",
        "batch_size": 2,
        "sequence_length": 300,
        "buckets": [128, 256, 300],
    }


@pytest.mark.parametrize(
    ("shapes", "flag", "hint"),
    [
        (Shapes(batch_size=1), "--sequence-length", "--sequence-length 64"),
        (Shapes(sequence_length=16), "--batch-size", "--batch-size 1"),
    ],
)
def test_a_missing_shape_is_refused_with_a_value(shapes: Shapes, flag: str, hint: str) -> None:
    """Graphs are static."""
    options = NeuronOptions(build=BuildOptions(model="m", output=Path("out")), shapes=shapes, num_cores=1)

    problem = refusal(LLAMA, options=options)

    assert (problem.subject, problem.hint) == (flag, hint)


@pytest.mark.parametrize(
    ("config", "changed", "subject"),
    [
        (LLAMA, {"hidden_act": "mish"}, "config.json: activation"),
        (
            LLAMA,
            {"num_attention_heads": 6, "num_key_value_heads": 4, "head_dim": 4},
            "config.json: key and value heads",
        ),
        (LLAMA, {"rope_scaling": {"rope_type": "mrope", "factor": 2.0}}, "config.json: rope_scaling"),
        (LLAMA, {"rope_scaling": {"rope_type": "yarn"}}, "config.json: rope_scaling.factor"),
        (
            LLAMA,
            {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}, "max_position_embeddings": 15},
            "--sequence-length",
        ),
        (GPT2, {}, "--sequence-length"),
        (LLAMA, {"head_dim": 5}, "config.json: rotary embedding"),
        (MOE, {"decoder_sparse_step": 2}, "config.json: decoder_sparse_step, mlp_only_layers: layers without experts"),
        (MOE, {"use_sliding_window": True, "sliding_window": 8}, "--sequence-length"),
        (MPT, {"attn_config": {"clip_qkv": 0.0}}, "config.json: clip_qkv"),
        (
            LLAMA,
            {"architectures": ["Gemma2ForCausalLM"], "query_pre_attn_scalar": 0, "head_dim": 4},
            "config.json: query_pre_attn_scalar",
        ),
        (LLAMA, {"architectures": ["MistralForCausalLM"], "sliding_window": 0}, "config.json: sliding_window"),
        (NEOX, {"attention_bias": False}, "config.json: attention_bias"),
        (MPT, {"logit_scale": 0.5}, "config.json: logit_scale"),
        (MPT, {"architectures": ["MPTForCausalLM"], "norm_type": "rmsnorm"}, "config.json: norm_type"),
    ],
)
def test_what_the_network_does_not_compute_is_refused_by_its_key(
    config: dict[str, Any], changed: dict[str, Any], subject: str
) -> None:
    """Nothing is written that would compute something else."""
    made = {**config, **changed}
    if subject == "config.json: norm_type":
        made["attn_config"] = {"alibi": True}

    assert refusal(made).subject == subject


def test_phi3_needs_factors_for_every_pair() -> None:
    """LongRoPE without its lists."""
    config = {
        **{key: value for key, value in LLAMA.items() if key != "num_key_value_heads"},
        "architectures": ["Phi3ForCausalLM"],
        "rope_scaling": {"type": "longrope", "short_factor": [1.0]},
    }
    subjects = [problem.subject for problem in layout_of(config).refusals]

    assert subjects == ["config.json: rope_scaling.short_factor", "config.json: rope_scaling.long_factor"]


def test_integer_weights_are_refused() -> None:
    """There is no type to compute in."""
    assert refusal(LLAMA, source=DType("int8", "I8", 1, "|i1", False)).subject == "--torch-dtype"


def test_experts_that_do_not_divide_are_refused_with_the_degrees_that_do() -> None:
    """The vendor pads everything but them."""
    architecture = lookup(MOE)
    dims = architecture.dims(MOE)
    stored = {}
    from llmcompile.checkpoint.headers import Stored

    for tensor, layer, expert in architecture.expected(dims):
        name = tensor.name_at(layer, expert)
        stored[name] = Stored(name, "model.safetensors", FP16, tensor.stored_shape(dims), 0)
    rows = layout_of(MOE, options=options_for(ranks=5)).rows

    plan = make_plan(architecture, dims, stored, rows, ranks=5, dtype=FP16, unused={})

    (problem,) = plan.problems
    assert problem.found == "12 moe_ffn / 5 ranks = 2.40"
    assert problem.hint == "degrees that divide this model: 1, 2, 3, 4, 6, 12"


@pytest.mark.parametrize(
    ("config", "ranks", "words"),
    [
        (LLAMA, 16, "8 of 16 attention heads are zeros"),
        (LLAMA, 4, "2 key and value heads are stored as 4"),
        (MOE, 2, "prompts go through all experts"),
        ({**LLAMA, "max_position_embeddings": 8}, 2, "16 tokens are more than the 8 positions"),
    ],
)
def test_notes_say_what_costs_more(config: dict[str, Any], ranks: int, words: str) -> None:
    """Zeros, copies, and arithmetic that is thrown away."""
    notes = layout_of(config, options=options_for(ranks=ranks)).notes

    assert any(words in note for note in notes)


def test_a_plain_model_has_no_notes() -> None:
    """Nothing is padded or repeated."""
    assert layout_of(LLAMA, options=options_for(ranks=2)).notes == ()


def test_names_of_ours_are_a_deviation() -> None:
    """Families that optimum-neuron lacks say so; those it has do not."""
    assert "weights/*.safetensors" not in layout_of(LLAMA).deviations
    assert "no gpt2" in layout_of(GPT2, options=options_for(ranks=1, slots=8)).deviations["weights/*.safetensors"]


@pytest.mark.parametrize(
    "family", [name for name in models.FAMILIES if name not in ("bert", "bart", "t5", "t5_v11", "mt5")]
)
def test_every_decoder_is_planned(family: str, tmp_path: Path) -> None:
    """Rows and table cover each other."""
    checkpoint = open_checkpoint(models.save(family, tmp_path))
    architecture = lookup(checkpoint.config, checkpoint.tensors)
    dims = architecture.dims(checkpoint.config)
    found = make_layout(architecture, dims, options_for(ranks=2), source_dtype=FP32, model_label="m")

    plan = make_plan(
        architecture, dims, checkpoint.tensors, found.rows, ranks=2, dtype=found.dtype, unused=found.unused
    )

    assert (found.refusals, plan.problems) == ((), ())
    assert set(plan.files) == {f"weights/tp{rank}_sharded_checkpoint.safetensors" for rank in (0, 1)}
