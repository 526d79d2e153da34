"""config.json of the GPTs says what upstream's says, but for what upstream leaves out or miswrites."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from llmcompile.architectures import lookup
from llmcompile.architectures.spec import Architecture, Dims
from llmcompile.exporters.trtllm.config import gpt
from llmcompile.exporters.trtllm.config.pretrained import Given

GOLDEN = Path(__file__).parents[2] / "golden" / "trtllm"
FAMILIES = {
    "gpt2": "gpt2",
    "starcoder_bigcode_mqa": "gpt_bigcode",
    "starcoder2": "starcoder2",
    "gptj": "gptj",
    "gptneox": "gptneox",
    "opt": "opt",
    "bloom": "bloom",
    "falcon_7b_mqa": "falcon",
    "falcon_40b_gqa": "falcon",
    "falcon_rw_alibi_bias": "falcon",
    "mpt": "mpt",
}
VARIANTS = [(case, path.stem) for case in FAMILIES for path in sorted((GOLDEN / case / "expected").glob("*.json"))]
RUNTIME_ONLY = {"gpus_per_node", "cp_size", "moe_tp_size", "moe_ep_size"}
"""Keys of `mapping` that are defaults, and that older releases refuse."""
MISTAKES: Mapping[str, Mapping[str, Any]] = {
    "mpt": {"architecture": "MPTForCausalLM"},
}
"""Where ours differs. Upstream's map lacks transformers' MPT class.

Fields that upstream leaves out (intermediate_size and norm_epsilon of GPT-NeoX and OPT, MPT's norm_epsilon) are added:
what upstream writes is compared, and what it does not is compared with config.json below.
"""


def case_of(case: str) -> tuple[Architecture, Dims]:
    """The family of a golden model, and what its config.json says."""
    config = json.loads((GOLDEN / case / "hf" / "config.json").read_text())
    architecture = lookup(config)
    return architecture, architecture.dims(config)


def changed(case: str, **settings: Any) -> Dims:
    """What the config.json of a golden model says with other values of some keys."""
    config = json.loads((GOLDEN / case / "hf" / "config.json").read_text())
    return lookup(config).dims({**config, **settings})


def given(**settings: Any) -> Given:
    """A plain checkpoint for one rank of 0.13, but for `settings`."""
    plain: dict[str, Any] = {
        "dtype": "float16",
        "tp": 1,
        "pp": 1,
        "moe_tp": settings.get("tp", 1),
        "moe_ep": 1,
        "quantization": {"quant_algo": None},
        "use_parallel_embedding": False,
        "embedding_sharding_dim": 0,
        "share_embedding_table": False,
        "logits_dtype": "float32",
        "version": (0, 13, 0),
        "producer_version": "0",
    }
    return Given(**{**plain, **settings})


def asked(expected: Mapping[str, Any]) -> Given:
    """What a golden conversion was asked for."""
    mapping = expected["mapping"]
    return given(
        dtype=expected["dtype"],
        tp=mapping["tp_size"],
        pp=mapping["pp_size"],
        quantization=expected["quantization"],
        use_parallel_embedding=expected["use_parallel_embedding"],
        embedding_sharding_dim=expected["embedding_sharding_dim"],
        share_embedding_table=expected["share_embedding_table"],
    )


def subjects(family: str, dims: Dims, wanted: Given) -> list[str]:
    """What the refusals of a family are about."""
    return [problem.subject for problem in gpt.REFUSALS[family](dims, wanted)]


@pytest.mark.parametrize(("case", "variant"), VARIANTS, ids=[f"{case}-{variant}" for case, variant in VARIANTS])
def test_config_is_upstreams(case: str, variant: str) -> None:
    """Every field that upstream writes has upstream's value, or the one of the table of mistakes."""
    expected = json.loads((GOLDEN / case / "expected" / f"{variant}.json").read_text())["configs"]["config.json"]
    architecture, dims = case_of(case)

    found = gpt.CONFIGS[architecture.name](dims, asked(expected))

    expected["mapping"] = {key: value for key, value in expected["mapping"].items() if key not in RUNTIME_ONLY}
    wanted = {**expected, **MISTAKES.get(case, {})}
    wanted = {key: value for key, value in wanted.items() if key in found}
    assert {key: found[key] for key in wanted} == wanted


@pytest.mark.parametrize("case", FAMILIES)
def test_no_field_of_upstream_is_left_out(case: str) -> None:
    """All fields are there but those that say that there are no experts and no norms of q and k."""
    path = min((GOLDEN / case / "expected").glob("*.json"))
    expected = json.loads(path.read_text())["configs"]["config.json"]
    architecture, dims = case_of(case)

    found = gpt.CONFIGS[architecture.name](dims, asked(expected))

    absent = {key: value for key, value in expected.items() if key not in found}
    assert absent.keys() <= {"moe", "qk_layernorm"}
    assert absent.get("moe", {}).get("num_experts", 0) == 0
    assert absent.get("qk_layernorm", False) is False


@pytest.mark.parametrize(("case", "family"), FAMILIES.items())
def test_golden_model_is_of_its_family_and_is_not_refused(case: str, family: str) -> None:
    """What upstream can convert and load is taken."""
    architecture, dims = case_of(case)

    assert architecture.name == family
    assert subjects(family, dims, given()) == []


def test_tables_are_of_the_same_families() -> None:
    """No family lacks refusals or notes."""
    assert gpt.CONFIGS.keys() == gpt.REFUSALS.keys() == gpt.NOTES.keys() == set(FAMILIES.values())


@pytest.mark.parametrize("case", ["gptneox", "opt"])
def test_fields_that_upstream_forgets_are_written(case: str) -> None:
    """GPT-NeoX and OPT get the width of their MLP and the epsilon of their norms."""
    architecture, dims = case_of(case)

    found = gpt.CONFIGS[architecture.name](dims, given())

    assert (found["intermediate_size"], found["norm_epsilon"]) == (dims.sizes["ffn"], 1e-5)
    assert (found["num_key_value_heads"], found["head_size"]) == (dims.sizes["heads"], dims.sizes["head_dim"])


@pytest.mark.parametrize("case", ["gpt2", "starcoder_bigcode_mqa", "starcoder2"])
@pytest.mark.parametrize(("version", "one_name"), [((0, 11, 0), True), ((0, 12, 0), False), ((1, 2, 1), False)])
def test_gpts_had_one_name_before_0_12(case: str, version: tuple[int, int, int], one_name: bool) -> None:
    """Up to 0.11 the model map knows GPTForCausalLM alone."""
    architecture, dims = case_of(case)

    found = gpt.CONFIGS[architecture.name](dims, given(version=version))["architecture"]

    assert (found == "GPTForCausalLM") is one_name


@pytest.mark.parametrize("case", ["gptneox", "opt", "bloom", "mpt"])
def test_family_without_stages_refuses_them(case: str) -> None:
    """Models whose class has no pipeline stages are refused with two."""
    architecture, dims = case_of(case)

    assert subjects(architecture.name, dims, given(pp=2)) == ["--pp"]


@pytest.mark.parametrize("case", ["gpt2", "starcoder_bigcode_mqa", "starcoder2", "gptj", "falcon_7b_mqa"])
def test_family_with_stages_takes_them(case: str) -> None:
    """Models whose class has pipeline stages are not refused with two."""
    architecture, dims = case_of(case)

    assert subjects(architecture.name, dims, given(pp=2)) == []


@pytest.mark.parametrize(
    ("case", "settings", "subject"),
    [
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("gpt2", {"activation_function": "quick_gelu"}, "activation"),
        ("starcoder_bigcode_mqa", {"scale_attn_weights": False}, "scale_attn_weights"),
        ("starcoder2", {"rope_scaling": {"type": "yarn"}}, "rope_scaling"),
        ("gptj", {"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon"),
        ("gptneox", {"use_parallel_residual": False}, "use_parallel_residual"),
        ("gptneox", {"attention_bias": False}, "attention_bias"),
        ("gptneox", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling"),
        ("gptneox", {"layer_norm_eps": 1e-6}, "layer_norm_epsilon"),
        ("opt", {"word_embed_proj_dim": 12}, "word_embed_proj_dim"),
        ("opt", {"enable_bias": False}, "enable_bias"),
        ("opt", {"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine"),
        ("opt", {"_remove_final_layer_norm": True}, "_remove_final_layer_norm"),
        ("bloom", {"apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm"),
        ("bloom", {"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon"),
        ("falcon_7b_mqa", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling"),
        ("falcon_7b_mqa", {"num_ln_in_parallel_attn": 2}, "num_ln_in_parallel_attn"),
        ("falcon_40b_gqa", {"parallel_attn": False}, "parallel_attn"),
        ("mpt", {"attn_config": {"softmax_scale": 0.5}}, "attn_config.softmax_scale"),
        ("mpt", {"logit_scale": 0.5}, "logit_scale"),
    ],
)
def test_model_that_would_answer_wrongly_is_refused(case: str, settings: dict[str, Any], subject: str) -> None:
    """A model that upstream's class would load, and compute something else with, is refused by its key."""
    dims = changed(case, **settings)

    assert f"config.json: {subject}" in subjects(FAMILIES[case], dims, given())


MOSAIC = {"architectures": ["MPTForCausalLM"], "expansion_ratio": 4, "no_bias": True}


@pytest.mark.parametrize(
    ("settings", "attention", "found"),
    [
        ({}, {"alibi": True}, []),
        ({"no_bias": False}, {"alibi": True}, ["config.json: no_bias, inverted"]),
        ({}, {}, ["config.json: attn_config.alibi"]),
        ({}, {"rope": True}, ["config.json: attn_config.alibi", "config.json: attn_config.rope"]),
        ({}, {"alibi": True, "qk_ln": True}, ["config.json: attn_config.qk_ln"]),
        ({}, {"alibi": True, "prefix_lm": True}, ["config.json: attn_config.prefix_lm"]),
        ({"norm_type": "rmsnorm"}, {"alibi": True}, ["config.json: norm_type"]),
    ],
)
def test_mosaics_own_class_follows_its_config(
    settings: dict[str, Any], attention: dict[str, Any], found: list[str]
) -> None:
    """An MPT of MosaicML's class is refused where its config asks for what upstream's class lacks."""
    dims = changed("mpt", **{**MOSAIC, **settings, "attn_config": attention})

    assert subjects("mpt", dims, given()) == found


@pytest.mark.parametrize(
    ("settings", "version", "refused"),
    [
        ({"num_ln_in_parallel_attn": 1}, (0, 13, 0), True),
        ({"num_ln_in_parallel_attn": 1}, (0, 15, 0), False),
        ({"rope_theta": 500042.0}, (0, 13, 0), True),
        ({"rope_theta": 500042.0}, (1, 2, 1), False),
    ],
)
def test_falcon_2_needs_a_release_that_knows_it(
    settings: dict[str, Any], version: tuple[int, int, int], refused: bool
) -> None:
    """One norm with grouped heads, and another rotary base, came after 0.13."""
    dims = changed("falcon_40b_gqa", **settings)

    assert subjects("falcon", dims, given(version=version)) == (["TensorRT-LLM"] if refused else [])


def test_window_of_starcoder2_is_the_runtimes() -> None:
    """A window that is shorter than the context is told, since the checkpoint cannot hold it."""
    dims = changed("starcoder2", sliding_window=16)

    (note,) = gpt.NOTES["starcoder2"](dims, given())

    assert "max_attention_window [16]" in note


@pytest.mark.parametrize(("case", "notes"), [("falcon_7b_mqa", 1), ("mpt", 1), ("gpt2", 0), ("bloom", 0)])
def test_exact_gelu_is_told(case: str, notes: int) -> None:
    """Models of the error function's GELU get the approximation, and a line that says so."""
    architecture, dims = case_of(case)

    assert len(list(gpt.NOTES[architecture.name](dims, given()))) == notes


def test_rotary_scaling_of_starcoder2_is_kept() -> None:
    """The scaling of the checkpoint is passed on, under the name that every release reads."""
    dims = changed("starcoder2", rope_scaling={"rope_type": "linear", "factor": 2.0}, rope_theta=1e6)

    found = gpt.starcoder2(dims, given())

    assert (found["rotary_base"], found["rotary_scaling"]["type"], found["rotary_scaling"]["factor"]) == (
        1e6,
        "linear",
        2.0,
    )
