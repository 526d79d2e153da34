"""The two config.json of T5 and BART say what upstream's say, but for BART's epsilon."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from llmcompile.architectures import lookup
from llmcompile.architectures.spec import Dims
from llmcompile.exporters.trtllm.config import encdec
from llmcompile.exporters.trtllm.config.pretrained import Given

GOLDEN = Path(__file__).parents[2] / "golden" / "trtllm"
FAMILIES = {"t5": "t5", "flan_t5_gated_untied": "t5", "bart": "bart"}
VARIANTS = [(case, path.stem) for case in FAMILIES for path in sorted((GOLDEN / case / "expected").glob("*.json"))]
STACKS = {"encoder": encdec.ENCODER_CONFIGS, "decoder": encdec.DECODER_CONFIGS}
MISTAKES: Mapping[str, Mapping[str, Any]] = {"bart": {"norm_epsilon": 1e-5}}
"""Upstream writes false for the epsilon of BART, which is that of torch's LayerNorm."""


def dims_of(case: str, **settings: Any) -> Dims:
    """What the config.json of a golden model says, with other values of some keys."""
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
        "quantization": {"quant_algo": None, "kv_cache_quant_algo": None},
        "use_parallel_embedding": False,
        "embedding_sharding_dim": 0,
        "share_embedding_table": False,
        "logits_dtype": "float32",
        "version": (0, 13, 0),
        "producer_version": "0",
    }
    return Given(**{**plain, **settings})


def subjects(family: str, dims: Dims, wanted: Given) -> list[str]:
    """What the refusals of a family are about."""
    return [problem.subject for problem in encdec.REFUSALS[family](dims, wanted)]


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize(("case", "variant"), VARIANTS, ids=[f"{case}-{variant}" for case, variant in VARIANTS])
def test_config_is_upstreams(case: str, variant: str, stack: str) -> None:
    """Every field that upstream writes is there with its value, or the one of the table of mistakes."""
    configs = json.loads((GOLDEN / case / "expected" / f"{variant}.json").read_text())["configs"]
    expected = configs[f"{stack}/config.json"]
    wanted = given(
        dtype=expected["dtype"],
        tp=expected["mapping"]["tp_size"],
        pp=expected["mapping"]["pp_size"],
        use_parallel_embedding=expected["use_parallel_embedding"],
        embedding_sharding_dim=expected["embedding_sharding_dim"],
    )

    found = STACKS[stack][FAMILIES[case]](dims_of(case), wanted)

    assert {key: found.get(key, "absent") for key in expected} == {**expected, **MISTAKES.get(case, {})}


def test_tables_are_of_the_same_families() -> None:
    """No family lacks a stack, refusals or notes."""
    keys = {frozenset(table) for table in (*STACKS.values(), encdec.REFUSALS, encdec.NOTES)}

    assert keys == {frozenset(FAMILIES.values())}


@pytest.mark.parametrize("case", FAMILIES)
def test_golden_model_is_not_refused(case: str) -> None:
    """What upstream's converter takes is taken."""
    assert subjects(FAMILIES[case], dims_of(case), given()) == []


@pytest.mark.parametrize("case", FAMILIES)
def test_release_without_the_classes_is_refused(case: str) -> None:
    """0.9 has no encoder-decoder in its model map."""
    assert subjects(FAMILIES[case], dims_of(case), given(version=(0, 9, 0))) == ["TensorRT-LLM"]


def test_decoder_has_its_own_layers() -> None:
    """A decoder that is deeper than the encoder says so."""
    dims = dims_of("t5", num_decoder_layers=5)

    found = [table["t5"](dims, given())["num_hidden_layers"] for table in STACKS.values()]

    assert found == [2, 5]


def test_stages_must_divide_both_stacks() -> None:
    """Two stages of five decoder layers are refused, naming the decoder."""
    (problem,) = encdec.REFUSALS["t5"](dims_of("t5", num_decoder_layers=5), given(pp=2))

    assert "5 layers of the decoder / 2 stages" in problem.found


@pytest.mark.parametrize("case", FAMILIES)
def test_stages_are_told_to_need_python(case: str) -> None:
    """An encoder-decoder in stages is only run by the Python runtime, which is told."""
    notes = list(encdec.NOTES[FAMILIES[case]](dims_of(case), given(pp=2)))

    assert any("Python runtime" in note for note in notes)


def test_encoder_alone_is_refused() -> None:
    """A T5 encoder saved by itself has no class in TensorRT-LLM."""
    dims = dims_of("t5", architectures=["T5EncoderModel"])

    assert subjects("t5", dims, given()) == ["config.json: architectures"]


@pytest.mark.parametrize(
    ("kind", "name", "gated"),
    [
        ("relu", "relu", False),
        ("gated-gelu", "gelu_new", True),
        ("gated-silu", "silu", True),
        ("gelu", "gelu", False),
    ],
)
def test_activation_of_t5(kind: str, name: str, gated: bool) -> None:
    """`feed_forward_proj` is read as transformers reads it."""
    found = encdec.t5_encoder(dims_of("t5", feed_forward_proj=kind), given())

    assert (found["hidden_act"], found["gated_act"], found["mlp_type"]) == (name, gated, int(gated))


def test_mbart_is_a_bart_of_pre_norms() -> None:
    """Norms of mBART come before the blocks, and once more after the last."""
    dims = dims_of("bart", model_type="mbart", architectures=["MBartForConditionalGeneration"], scale_embedding=True)

    found = encdec.bart_decoder(dims, given())

    assert (found["layernorm_position"], found["has_model_final_layernorm"], found["model_type"]) == (0, True, "bart")
    assert found["has_embedding_scale"] is True
