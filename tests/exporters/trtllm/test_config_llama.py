"""config.json of LLaMA and its relatives says what TensorRT-LLM's own converter says, and what every release reads."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import transformers

import models
from llmcompile.architectures import lookup
from llmcompile.architectures.spec import Dims
from llmcompile.exporters.trtllm.config import CONFIGS, ENCODER_DECODER, NOTES, REFUSALS, Given
from llmcompile.exporters.trtllm.config import llama as families

GOLDEN = Path(__file__).parents[2] / "golden" / "trtllm"
FAMILY = {
    "llama_gqa": "llama",
    "llama_attnbias_ropelinear": "llama",
    "llama_mqa_tied_bf16": "llama",
    "llama_gqa_kvdup": "llama",
    "mistral_sw": "mistral",
    "mixtral": "mixtral",
    "qwen2_gqa": "qwen2",
    "qwen2_tied": "qwen2",
    "qwen2_moe": "qwen2_moe",
    "gemma_mqa": "gemma",
    "gemma2": "gemma2",
    "phi2": "phi",
    "phi3": "phi3",
}
CASES = [(case, path.stem) for case in FAMILY for path in sorted((GOLDEN / case / "expected").glob("*.json"))]
DEFAULTS: Mapping[str, object] = {
    "disable_weight_only_quant_plugin": False,
    "qk_layernorm": False,
    "remove_duplicated_kv_heads": False,
    "residual_mlp": False,
}
"""Keys the converter writes and we leave out, with what the classes take where they are absent."""
OURS_ALONE = {
    "producer": "kept as an attribute and not read",
    "seq_length": "read without a default by Qwen's model class since 0.16",
    "use_logn_attn": "stated beside seq_length",
    "rotary_pct": "read without a default by Phi-3's model class since 1.0",
}
MISTAKES = {
    ("phi", "partial_rotary_factor"): "the converter takes rotary_pct from the checkpoint and leaves this at 0.4",
}
"""Keys of a family where the converter is wrong, and why."""
GIVEN = Given(
    dtype="float16",
    tp=1,
    pp=1,
    moe_tp=1,
    moe_ep=1,
    quantization={"quant_algo": None},
    use_parallel_embedding=False,
    embedding_sharding_dim=0,
    share_embedding_table=False,
    logits_dtype="float32",
    version=(1, 2, 1),
    producer_version="0.0",
)


def golden(case: str, variant: str) -> tuple[Dims, Given, Mapping[str, Any]]:
    """What the checkpoint says, what the recorded run was asked for, and the config.json it wrote."""
    config = json.loads((GOLDEN / case / "hf" / "config.json").read_text())
    recorded = json.loads((GOLDEN / case / "expected" / f"{variant}.json").read_text())["configs"]["config.json"]
    given = dataclasses.replace(
        GIVEN,
        dtype=recorded["dtype"],
        tp=recorded["mapping"]["tp_size"],
        pp=recorded["mapping"]["pp_size"],
        moe_tp=recorded["mapping"]["moe_tp_size"],
        moe_ep=recorded["mapping"]["moe_ep_size"],
        use_parallel_embedding=recorded["use_parallel_embedding"],
        embedding_sharding_dim=recorded["embedding_sharding_dim"],
        share_embedding_table=recorded["share_embedding_table"],
        version=(0, 13, 0),
    )
    return lookup(config).dims(config), given, recorded


def tiny(family: str, **settings: Any) -> Dims:
    """The dims of a model of tests/models.py, with some config keys set."""
    made = models.FAMILIES[family]
    config = getattr(transformers, made.config_class)(**made.config).to_dict()
    return lookup({"model_type": config["model_type"]}).dims({**config, **settings})


QWEN1 = {
    "model_type": "qwen",
    "vocab_size": 44,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "kv_channels": 8,
    "intermediate_size": 72,
    "seq_length": 30,
}


def qwen1(**settings: Any) -> Dims:
    """The dims of a tiny Qwen 1, which transformers does not have."""
    return lookup(QWEN1).dims({**QWEN1, **settings})


def all_dims(family: str) -> Dims:
    """The dims of a tiny model of any family of this file."""
    return qwen1() if family == "qwen" else tiny(family, num_key_value_heads=4) if family == "phi" else tiny(family)


@pytest.mark.parametrize(("case", "variant"), CASES)
def test_what_we_say_is_what_the_converter_says(case: str, variant: str) -> None:
    """Every key is equal to the vendor's, unless it is listed as ours alone or as a mistake of the vendor's."""
    family = FAMILY[case]
    dims, given, recorded = golden(case, variant)

    ours = CONFIGS[family](dims, given)

    compared = {key: value for key, value in ours.items() if (family, key) not in MISTAKES and key not in OURS_ALONE}
    nested = {key: compared.pop(key) for key in ("mapping", "quantization", "moe") if key in compared}
    assert compared == {key: recorded.get(key, "absent") for key in compared}
    for key, block in nested.items():
        assert block == {inner: recorded[key].get(inner, "absent") for inner in block}


@pytest.mark.parametrize(("case", "variant"), CASES)
def test_what_we_leave_out_is_the_default(case: str, variant: str) -> None:
    """Every key of the vendor's that we do not write says what the classes take without it."""
    dims, given, recorded = golden(case, variant)
    ours = CONFIGS[FAMILY[case]](dims, given)

    left_out = {key: value for key, value in recorded.items() if key not in ours}
    moe = left_out.pop("moe", {"num_experts": 0, "top_k": 0})

    assert left_out == {key: DEFAULTS.get(key, "no default") for key in left_out}
    assert (moe["num_experts"], moe["top_k"]) == (0, 0)


@pytest.mark.parametrize(("family", "key"), MISTAKES)
def test_mistake_is_one(family: str, key: str) -> None:
    """A key listed as the vendor's mistake differs from it, and is what the checkpoint says."""
    dims, given, recorded = golden("phi2", "fp16_tp1")

    assert CONFIGS[family](dims, given)[key] == 0.5 != recorded[key]


@pytest.mark.parametrize(("case", "variant"), CASES)
def test_golden_models_are_not_refused(case: str, variant: str) -> None:
    """What the vendor's converter took is taken."""
    dims, given, _ = golden(case, variant)

    assert list(REFUSALS[FAMILY[case]](dims, given)) == []


@pytest.mark.parametrize("family", families.CONFIGS)
def test_every_family_has_a_config_refusals_and_notes(family: str) -> None:
    """The newest release takes a usual model of each, and its config.json is JSON."""
    dims = all_dims(family)

    assert list(REFUSALS[family](dims, GIVEN)) == []
    assert [note for note in NOTES[family](dims, GIVEN) if note.endswith(".")] == []
    assert json.loads(json.dumps(CONFIGS[family](dims, GIVEN)))["producer"]["name"] == "llmcompile"


def test_every_family_of_the_package_has_refusals_and_notes() -> None:
    """No family is written without a look at what it cannot say, and none has two kinds of checkpoint."""
    assert REFUSALS.keys() == NOTES.keys() == {*CONFIGS, *ENCODER_DECODER}
    assert CONFIGS.keys().isdisjoint(ENCODER_DECODER)


@pytest.mark.parametrize("family", ENCODER_DECODER)
def test_encoder_and_decoder_are_told_apart(family: str) -> None:
    """Either folder's config.json is under the folder's name."""
    found = ENCODER_DECODER[family](tiny(family), GIVEN)

    assert {name: fields["architecture"] for name, fields in found.items()} == {
        "encoder": "EncoderModel",
        "decoder": "DecoderModel",
    }


def test_order_of_the_fields_is_that_of_the_specification() -> None:
    """Fields that all families have come first, those of a family behind."""
    keys = list(CONFIGS["llama"](tiny("llama_gqa"), GIVEN))

    assert keys == [
        *("producer", "architecture", "dtype", "logits_dtype", "vocab_size", "hidden_size", "intermediate_size"),
        *("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_size", "hidden_act"),
        *("norm_epsilon", "position_embedding_type", "max_position_embeddings", "mapping", "quantization"),
        *("use_parallel_embedding", "embedding_sharding_dim", "share_embedding_table"),
        *("attn_bias", "mlp_bias", "rotary_base", "rotary_scaling"),
    ]


@pytest.mark.parametrize(
    ("family", "version", "moe_ep", "mapping"),
    [
        ("llama", (1, 2, 1), 1, {"world_size": 8, "tp_size": 4, "pp_size": 2}),
        ("mixtral", (0, 10, 0), 1, {"world_size": 8, "tp_size": 4, "pp_size": 2}),
        (
            "mixtral",
            (0, 11, 0),
            1,
            {"world_size": 8, "tp_size": 4, "pp_size": 2, "moe_tp_size": 4, "moe_ep_size": 1},
        ),
        (
            "qwen3_moe",
            (1, 2, 1),
            2,
            {"world_size": 8, "tp_size": 4, "pp_size": 2, "moe_tp_size": 2, "moe_ep_size": 2},
        ),
    ],
)
def test_mapping_has_expert_ranks_where_they_are_read(
    family: str, version: tuple[int, int, int], moe_ep: int, mapping: Mapping[str, int]
) -> None:
    """Older releases refuse a mapping with keys they do not know."""
    given = dataclasses.replace(GIVEN, tp=4, pp=2, moe_tp=4 // moe_ep, moe_ep=moe_ep, version=version)

    assert CONFIGS[family](tiny(family), given)["mapping"] == mapping


def test_experts_before_0_11_are_loose_keys() -> None:
    """0.9 and 0.10 read moe_num_experts and its siblings; later ones a dict."""
    old, new = (
        CONFIGS["mixtral"](tiny("mixtral"), dataclasses.replace(GIVEN, version=version))
        for version in ((0, 10, 0), (0, 11, 0))
    )

    assert {key: value for key, value in old.items() if "moe" in key} == {
        "moe_num_experts": 4,
        "moe_top_k": 2,
        "moe_normalization_mode": 1,
    }
    assert new["moe"] == {"num_experts": 4, "top_k": 2, "normalization_mode": 1}


@pytest.mark.parametrize(("normalized", "mode"), [(False, 0), (True, 1)])
@pytest.mark.parametrize("family", ["qwen2_moe", "qwen3_moe"])
def test_experts_of_qwen_are_normalized_if_the_checkpoint_says_so(family: str, normalized: bool, mode: int) -> None:
    """norm_topk_prob decides, which upstream's converter ignores."""
    found = CONFIGS[family](tiny(family, norm_topk_prob=normalized), GIVEN)

    assert found["moe"]["normalization_mode"] == mode


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize(
    ("scaling", "written"),
    [
        (None, None),
        ({"rope_type": "default"}, None),
        ({"type": "linear", "factor": 2.0}, {"type": "linear", "factor": 2.0}),
        (
            LLAMA3,
            {**LLAMA3, "type": "llama3"},
        ),
    ],
)
def test_scaling_has_its_kind_under_both_names(scaling: object, written: object) -> None:
    """The checkpoint's dict is kept, and `type` added for releases that read that alone."""
    assert CONFIGS["llama"](tiny("llama", rope_scaling=scaling), GIVEN)["rotary_scaling"] == written


def test_scaling_of_transformers_5_is_the_same() -> None:
    """rope_parameters says what rope_theta and rope_scaling said."""
    dims = tiny("llama", rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 7.0})

    found = CONFIGS["llama"](dims, GIVEN)

    assert found["rotary_base"] == 7.0
    assert found["rotary_scaling"] == {"rope_type": "linear", "factor": 2.0, "type": "linear"}


LONG = {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}


@pytest.mark.parametrize("kind", ["longrope", "su", "yarn"])
def test_longrope_of_phi3_is_its_lists(kind: str) -> None:
    """LongRoPE, under any name Phi-3's files gave it, is an embedding type of its own with two lists."""
    dims = tiny("phi3", rope_scaling={**LONG, "type": kind}, original_max_position_embeddings=10)

    found = CONFIGS["phi3"](dims, GIVEN)

    assert list(REFUSALS["phi3"](dims, GIVEN)) == []
    assert found["position_embedding_type"] == "long_rope"
    assert found["original_max_position_embeddings"] == 10
    assert found["longrope_scaling_short_factors"] == [1.0] * 4
    assert found["longrope_scaling_long_factors"] == [2.0] * 4
    assert found["rotary_scaling"] is None


@pytest.mark.parametrize(
    ("version", "name", "activation"),
    [((0, 11, 0), "QWenForCausalLM", "gelu"), ((0, 12, 0), "Qwen2ForCausalLM", "gelu_pytorch_tanh")],
)
def test_names_of_older_releases(version: tuple[int, int, int], name: str, activation: str) -> None:
    """Before 0.12 one class answered to every Qwen, and the approximated GELU was called gelu alone."""
    given = dataclasses.replace(GIVEN, version=version)

    assert CONFIGS["qwen2"](tiny("qwen2"), given)["architecture"] == name
    assert CONFIGS["gemma"](tiny("gemma"), given)["hidden_act"] == activation


@pytest.mark.parametrize(
    ("family", "key", "field"),
    [
        ("llama", "attention_bias", "attn_bias"),
        ("llama", "mlp_bias", "mlp_bias"),
        ("gemma", "attention_bias", "attn_bias"),
        ("gemma2", "attention_bias", "attn_bias"),
        ("qwen2_moe", "qkv_bias", "attn_bias"),
    ],
)
@pytest.mark.parametrize("biased", [False, True])
def test_biases_are_those_of_the_checkpoint(family: str, key: str, field: str, biased: bool) -> None:
    """Where a family leaves the choice to config.json."""
    assert CONFIGS[family](tiny(family, **{key: biased}), GIVEN)[field] is biased


@pytest.mark.parametrize("family", ["phi", "phi3"])
def test_rotated_share_is_that_of_the_checkpoint(family: str) -> None:
    """Of a head of 8 elements Phi rotates as many as it says."""
    assert CONFIGS[family](tiny(family, partial_rotary_factor=0.75), GIVEN)["rotary_pct"] == 0.75


def test_qwen_1_states_both_halves() -> None:
    """The model class halves intermediate_size; log-n attention and its length are the checkpoint's."""
    found = CONFIGS["qwen"](qwen1(), GIVEN)

    assert (found["intermediate_size"], found["seq_length"], found["use_logn_attn"]) == (72, 30, True)
    assert (found["qwen_type"], found["attn_bias"]) == ("qwen", True)


@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe"])
def test_qwen_3_normalises_its_heads(family: str) -> None:
    """Queries and keys have norms and no biases, and the head size is the checkpoint's."""
    found = CONFIGS[family](tiny(family), GIVEN)

    assert (found["qk_layernorm"], found["attn_bias"], found["head_size"]) == (True, False, 10)


@pytest.mark.parametrize("family", ["gemma", "gemma2"])
@pytest.mark.parametrize("tp", [1, 2])
def test_gemma_shares_and_splits_its_embedding(family: str, tp: int) -> None:
    """Whatever was asked for, since its class ignores the keys."""
    found = CONFIGS[family](tiny(family), dataclasses.replace(GIVEN, tp=tp, embedding_sharding_dim=1))

    assert found["share_embedding_table"] is True
    assert (found["use_parallel_embedding"], found["embedding_sharding_dim"]) == (tp > 1, 0)


@pytest.mark.parametrize(
    ("family", "settings", "asked", "subject"),
    [
        ("llama", {"hidden_act": "mish"}, {}, "config.json: activation"),
        ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, {}, "config.json: rope_scaling"),
        ("llama", {"rope_scaling": LONG}, {}, "config.json: rope_scaling"),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, {}, "config.json: rope_scaling"),
        ("phi3", {"rope_scaling": {**LONG, "short_factor": ["x"] * 4}}, {}, "config.json: rope_scaling"),
        ("llama", {"rope_scaling": LLAMA3}, {"version": (0, 11, 0)}, "config.json: rope_scaling"),
        ("llama", {"head_dim": 10}, {"version": (0, 9, 0)}, "TensorRT-LLM"),
        ("mistral", {"head_dim": 10}, {"version": (0, 9, 0)}, "TensorRT-LLM"),
        ("mixtral", {"hidden_act": "gelu"}, {}, "config.json: hidden_act"),
        ("mixtral", {"rope_scaling": {"rope_type": "yarn"}}, {}, "config.json: rope_scaling"),
        ("mixtral", {"head_dim": 10}, {"version": (0, 9, 0)}, "TensorRT-LLM"),
        ("mixtral", {}, {"version": (0, 10, 0), "tp": 2, "moe_ep": 2}, "TensorRT-LLM"),
        ("qwen2", {}, {"version": (0, 9, 0)}, "TensorRT-LLM"),
        ("qwen2", {"head_dim": 10}, {"version": (0, 10, 0)}, "TensorRT-LLM"),
        ("qwen2", {"rope_scaling": {"type": "yarn"}}, {}, "config.json: rope_scaling"),
        ("qwen2_moe", {}, {"version": (0, 11, 0)}, "TensorRT-LLM"),
        ("qwen2_moe", {"hidden_act": "gelu"}, {}, "config.json: hidden_act"),
        ("qwen2_moe", {"decoder_sparse_step": 2}, {}, "config.json: decoder_sparse_step, mlp_only_layers"),
        ("qwen2_moe", {"mlp_only_layers": [0]}, {}, "config.json: decoder_sparse_step, mlp_only_layers"),
        ("qwen3", {}, {"version": (0, 19, 0)}, "TensorRT-LLM"),
        ("qwen3", {"attention_bias": True}, {}, "config.json: attention_bias"),
        ("qwen3_moe", {}, {"version": (0, 19, 0)}, "TensorRT-LLM"),
        ("qwen3_moe", {"attention_bias": True}, {}, "config.json: attention_bias"),
        ("qwen3_moe", {"mlp_only_layers": [0]}, {}, "config.json: decoder_sparse_step, mlp_only_layers"),
        ("gemma", {}, {"pp": 2}, "--pp"),
        ("gemma", {"tie_word_embeddings": False}, {}, "config.json: tie_word_embeddings"),
        ("gemma2", {}, {"version": (0, 11, 0)}, "TensorRT-LLM"),
        ("gemma2", {}, {"pp": 2}, "--pp"),
        ("phi", {}, {"pp": 2}, "--pp"),
        ("phi", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, {}, "config.json: rope_scaling"),
        ("phi", {"layer_norm_eps": 1e-6}, {}, "config.json: layer_norm_eps"),
        ("phi", {"num_key_value_heads": 2}, {}, "config.json: num_key_value_heads"),
        ("phi", {"qk_layernorm": True}, {}, "config.json: qk_layernorm"),
        ("phi3", {}, {"version": (0, 10, 0)}, "TensorRT-LLM"),
        ("phi3", {}, {"pp": 2}, "--pp"),
        ("phi3", {"hidden_act": "gelu"}, {}, "config.json: hidden_act"),
        ("phi3", {"rope_scaling": {"type": "linear", "factor": 2.0}}, {}, "config.json: rope_scaling"),
        ("phi3", {"rope_scaling": {"type": "longrope"}}, {}, "config.json: rope_scaling"),
        ("phi3", {"partial_rotary_factor": 0.75}, {"version": (0, 16, 0)}, "TensorRT-LLM"),
    ],
)
def test_what_cannot_be_said_is_refused(
    family: str, settings: dict[str, Any], asked: dict[str, Any], subject: str
) -> None:
    """One problem, which names the key or the flag."""
    usual = {"num_key_value_heads": 4} if family == "phi" else {}
    dims = tiny(family, **{**usual, **settings})

    found = [problem.subject for problem in REFUSALS[family](dims, dataclasses.replace(GIVEN, **asked))]

    assert found == [subject]


@pytest.mark.parametrize(
    ("settings", "version", "subject"),
    [
        ({}, (0, 9, 0), "TensorRT-LLM"),
        ({"no_bias": False}, (1, 2, 1), "config.json: no_bias"),
        ({"rotary_pct": 0.5}, (1, 2, 1), "config.json: rotary_pct"),
        ({"kv_channels": 10}, (0, 10, 0), "TensorRT-LLM"),
    ],
)
def test_what_cannot_be_said_of_qwen_1_is_refused(
    settings: dict[str, Any], version: tuple[int, int, int], subject: str
) -> None:
    """Qwen 1 has options in its config class that no published model uses and no release has."""
    found = REFUSALS["qwen"](qwen1(**settings), dataclasses.replace(GIVEN, version=version))

    assert [problem.subject for problem in found] == [subject]


@pytest.mark.parametrize(
    ("family", "settings", "words"),
    [
        ("llama", {"hidden_act": "gelu"}, "tanh approximation"),
        ("mistral", {}, "max_attention_window [16]"),
        ("gemma2", {}, "max_attention_window [16, 20]"),
        (
            "qwen2",
            {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
            "1 times 20, then 1 times 8",
        ),
        ("qwen3_moe", {"use_sliding_window": True, "sliding_window": 8}, "max_attention_window [8]"),
        ("phi3", {"sliding_window": 8}, "max_attention_window [8]"),
    ],
)
def test_note_says_what_to_tell_the_runtime(family: str, settings: dict[str, Any], words: str) -> None:
    """A window or an approximation is one sentence, not a refusal."""
    dims = tiny(family, **settings)

    (note,) = NOTES[family](dims, GIVEN)

    assert words in note
    assert list(REFUSALS[family](dims, GIVEN)) == []


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", {}),
        ("mistral", {"sliding_window": None}),
        ("mistral", {"sliding_window": 20}),
        ("qwen2", {"sliding_window": 8}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}),
        ("gemma2", {"sliding_window": 20}),
    ],
)
def test_no_note_where_nothing_differs(family: str, settings: dict[str, Any]) -> None:
    """A window as long as the context, or of no layer, needs no word."""
    assert list(NOTES[family](tiny(family, **settings), GIVEN)) == []


@pytest.mark.parametrize(("dynamic", "notes"), [(True, 1), (False, 0)])
def test_note_on_qwen_1_beyond_its_length(dynamic: bool, notes: int) -> None:
    """Its own code rescales the rotary base there."""
    assert len(list(NOTES["qwen"](qwen1(use_dynamic_ntk=dynamic), GIVEN))) == notes
