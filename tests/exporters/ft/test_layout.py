"""Which models FasterTransformer can represent, and how an artifact differs from its converter's."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmcompile.architectures import ARCHITECTURES, lookup
from llmcompile.checkpoint.folder import open_checkpoint
from llmcompile.dtypes import BY_NAME, FP32
from llmcompile.errors import Problem
from llmcompile.exporters.ft.layout import FAMILIES, make_layout
from llmcompile.exporters.ft.options import FtOptions
from llmcompile.exporters.options import BuildOptions
from llmcompile.exporters.spec import Layout
from llmcompile.plan import Plan, make_plan
from llmcompile.stream import stream
from llmcompile.writing import WorkDirectory

GOLDEN = Path(__file__).parents[2] / "golden" / "ft"
EXPECTATIONS = sorted(str(path.relative_to(GOLDEN)) for path in GOLDEN.glob("*/expected-*.json"))
VARIANTS = ["bert-a", "bloom-a", "gpt2-a", "gptj-a", "gptneox-a", "llama-a", "opt-a", "t5-a"]
SCALES = GOLDEN / "opt-int8" / "hf" / "act_scales.json"


def hf(variant: str, **changes: Any) -> dict[str, Any]:
    """config.json of a golden variant, with some keys changed."""
    config: dict[str, Any] = json.loads((GOLDEN / variant / "hf" / "config.json").read_bytes())
    return config | changes


def layout_of(config: dict[str, Any], *, source: str = "fp16", label: str = "hf", **options: Any) -> Layout:
    """The FasterTransformer layout of a config.json."""
    architecture = lookup(config)
    asked = FtOptions(build=BuildOptions(model="hf", output=Path("out")), **options)
    return make_layout(architecture, architecture.dims(config), asked, source_dtype=BY_NAME[source], model_label=label)


def plan_of(variant: str, layout: Layout) -> Plan:
    """The plan of a golden variant's checkpoint."""
    checkpoint = open_checkpoint(GOLDEN / variant / "hf")
    architecture = lookup(checkpoint.config)
    return make_plan(
        architecture,
        architecture.dims(checkpoint.config),
        checkpoint.tensors,
        layout.rows,
        ranks=layout.ranks,
        dtype=layout.dtype,
        unused=layout.unused,
    )


def test_every_layout_is_of_an_architecture() -> None:
    """Files are described for the families of FasterTransformer alone, all of which can be read."""
    assert set(FAMILIES) == {"gpt2", "opt", "bloom", "gptj", "gptneox", "llama", "t5", "bert"}
    assert set(FAMILIES) <= {architecture.name for architecture in ARCHITECTURES}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("tp", [1, 2, 4])
def test_a_model_of_the_vendors_own_tests_is_not_refused(variant: str, tp: int) -> None:
    """Each family's golden model is representable with every degree that divides it."""
    layout = layout_of(hf(variant), tp=tp)

    assert layout.refusals == ()
    assert plan_of(variant, layout).problems == ()


def test_the_folder_is_named_by_the_tensor_parallel_degree() -> None:
    """FasterTransformer looks in <tp>-gpu, whatever the pipeline degree."""
    assert layout_of(hf("llama-a"), tp=2, pp=2).folder == "2-gpu/"


def test_the_element_type_is_the_checkpoints_where_none_is_asked() -> None:
    """Without --dtype the source's bits are kept."""
    assert layout_of(hf("llama-a"), source="bf16").dtype == BY_NAME["bf16"]


def test_the_element_type_asked_goes_before_the_checkpoints() -> None:
    """--dtype decides."""
    assert layout_of(hf("llama-a"), source="bf16", dtype="fp32").dtype == FP32


# Degrees that do not divide


SPLIT_SIZES: dict[str, tuple[tuple[str, int], ...]] = {
    "bert-a": (("heads", 4), ("ffn", 64)),
    "bloom-a": (("heads", 4), ("ffn", 128)),
    "gpt2-a": (("heads", 4), ("ffn", 128)),
    "gptj-a": (("heads", 4), ("ffn", 128)),
    "gptneox-a": (("heads", 4), ("ffn", 128)),
    "llama-a": (("heads", 4), ("kv_heads", 4), ("ffn", 88)),
    "llama-gqa-a": (("heads", 8), ("kv_heads", 4), ("ffn", 64)),
    "opt-a": (("heads", 4), ("ffn", 96)),
    "opt-b": (("heads", 8), ("ffn", 64)),
    "t5-a": (("heads", 4), ("ffn", 64)),
    "t5-b": (("heads", 6), ("ffn", 80)),
}
"""Axes divided among ranks, by each variant's config.json."""
UNEVEN = [
    (variant, tp, axis, size)
    for variant, axes in SPLIT_SIZES.items()
    for tp in (2, 3, 4, 5, 6, 7, 8, 16)
    for axis, size in axes
    if size % tp != 0
]


@pytest.mark.parametrize(("variant", "tp", "axis", "size"), UNEVEN)
def test_a_degree_that_does_not_divide_is_refused_with_the_degrees_that_do(
    variant: str, tp: int, axis: str, size: int
) -> None:
    """The message has the division, and the hint every degree that divides all split axes of the model."""
    shared = math.gcd(*(axis_size for _, axis_size in SPLIT_SIZES[variant]))
    degrees = ", ".join(str(degree) for degree in range(1, shared + 1) if shared % degree == 0)

    plan = plan_of(variant, layout_of(hf(variant), tp=tp))

    (problem,) = [problem for problem in plan.problems if f" {axis} /" in problem.found]
    assert str(problem).startswith(f"--tp {tp}: {size} {axis} / {tp} ranks = {size / tp:.2f}; expected")
    assert problem.hint == f"degrees that divide this model: {degrees}"


@pytest.mark.parametrize("variant", SPLIT_SIZES)
@pytest.mark.parametrize("tp", [1, 2, 4, 8])
def test_a_degree_that_divides_every_split_axis_is_taken(variant: str, tp: int) -> None:
    """No problem is made up where all axes divide, and every axis that does not is one."""
    uneven = [axis for axis, size in SPLIT_SIZES[variant] if size % tp != 0]

    plan = plan_of(variant, layout_of(hf(variant), tp=tp))

    assert len(plan.problems) == len(uneven)


# Models that cannot be represented


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
REFUSED: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("gpt2-a", {"activation_function": "silu"}, {}, "activation silu"),
    ("gpt2-a", {"bos_token_id": None}, {}, "bos_token_id: null"),
    ("gpt2-a", {"eos_token_id": None}, {}, "eos_token_id: null"),
    ("gpt2-a", {"scale_attn_weights": False}, {}, "scale_attn_weights false"),
    ("gpt2-a", {"scale_attn_by_inverse_layer_idx": True}, {}, "scale_attn_by_inverse_layer_idx true"),
    ("opt-a", {"activation_function": "tanh"}, {}, "activation tanh"),
    ("opt-a", {"bos_token_id": None}, {}, "bos_token_id: null"),
    ("opt-a", {"eos_token_id": []}, {}, "eos_token_id: null"),
    ("opt-a", {"enable_bias": False}, {}, "enable_bias false"),
    ("opt-a", {"layer_norm_elementwise_affine": False}, {}, "layer_norm_elementwise_affine false"),
    ("bloom-a", {"bos_token_id": None}, {}, "bos_token_id: null"),
    ("bloom-a", {"eos_token_id": None}, {}, "eos_token_id: null"),
    ("gptj-a", {"activation_function": "relu"}, {}, "activation relu"),
    ("gptj-a", {"bos_token_id": None}, {}, "bos_token_id: null"),
    ("gptj-a", {"eos_token_id": None}, {}, "eos_token_id: null"),
    ("gptneox-a", {"hidden_act": "relu"}, {}, "activation relu"),
    ("gptneox-a", {"bos_token_id": None}, {}, "bos_token_id: null"),
    ("gptneox-a", {"eos_token_id": None}, {}, "eos_token_id: null"),
    ("gptneox-a", {"rope_theta": 25000, "rotary_emb_base": 25000}, {}, "rope_theta 25000"),
    ("gptneox-a", {"rope_scaling": {"type": "linear", "factor": 2.0}}, {}, "rope_scaling linear"),
    ("gptneox-a", {"attention_bias": False}, {}, "attention_bias false"),
    ("gptneox-a", {}, {"dtype": "bf16"}, "FasterTransformer's gptneox loader has no bf16"),
    ("llama-a", {"hidden_act": "gelu"}, {}, "activation gelu"),
    ("llama-a", {"bos_token_id": None}, {}, "bos_token_id: null"),
    ("llama-a", {"eos_token_id": None}, {}, "eos_token_id: null"),
    ("llama-a", {"rope_theta": 500000.0}, {}, "rope_theta 500000"),
    ("llama-a", {"rope_scaling": LLAMA3}, {}, "rope_scaling llama3"),
    ("llama-a", {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}, {}, "rope_theta 1e+06"),
    ("llama-a", {"attention_bias": True}, {}, "attention_bias true"),
    ("llama-a", {"mlp_bias": True}, {}, "mlp_bias true"),
    ("llama-a", {"head_dim": 16}, {}, "head_dim 16 x 4 heads = 64; expected the hidden size, 32"),
    ("bert-a", {"hidden_act": "gelu_new"}, {}, "activation gelu_new"),
    ("bert-a", {"position_embedding_type": "relative_key"}, {}, "position_embedding_type relative_key"),
    ("bert-a", {"is_decoder": True}, {}, "is_decoder true"),
    ("t5-a", {"feed_forward_proj": "gelu_new"}, {}, "feed_forward_proj gelu_new"),
    ("t5-a", {"relative_attention_max_distance": 256}, {}, "relative_attention_max_distance 256"),
    ("t5-a", {"eos_token_id": None}, {}, "eos_token_id: null"),
    ("t5-a", {"decoder_start_token_id": None, "pad_token_id": None}, {}, "decoder_start_token_id: null"),
    ("llama-a", {}, {"pp": 3}, "--pp: 3 stages for 2 layers; expected at most 2"),
    ("llama-a", {}, {"encoder_only": True}, "--encoder-only: a llama model; expected a T5 model"),
    ("bloom-a", {}, {"act_scales": SCALES}, "--act-scales: a bloom model; expected an OPT model"),
    ("opt-int8", {}, {"act_scales": SCALES, "dtype": "bf16"}, "--act-scales: --dtype bf16; expected fp32 or fp16"),
]


@pytest.mark.parametrize(("variant", "changes", "options", "expected"), REFUSED)
def test_a_model_that_cannot_be_represented_is_refused(
    variant: str, changes: dict[str, Any], options: dict[str, Any], expected: str
) -> None:
    """One refusal, which names what config.json or the command line says and what is expected."""
    layout = layout_of(hf(variant, **changes), **options)

    (refusal,) = layout.refusals
    assert expected in str(refusal)


@pytest.mark.parametrize(("variant", "changes", "options", "expected"), REFUSED)
def test_every_refusal_says_what_to_do(
    variant: str, changes: dict[str, Any], options: dict[str, Any], expected: str
) -> None:
    """A hint is given, or it is said that the model cannot be represented."""
    layout = layout_of(hf(variant, **changes), **options)

    assert all(refusal.hint != "" and refusal.expected != "" for refusal in layout.refusals)


def test_all_refusals_are_told_at_once() -> None:
    """A model with three unrepresentable facts gets three refusals."""
    config = hf("llama-a", hidden_act="gelu", mlp_bias=True, rope_theta=5e5)

    layout = layout_of(config, pp=3)

    assert len(layout.refusals) == 4


def test_an_encoder_needs_no_start_token() -> None:
    """With --encoder-only nothing is decoded, so decoder_start_token_id may be null."""
    config = hf("t5-a", decoder_start_token_id=None, pad_token_id=None)

    assert layout_of(config, encoder_only=True).refusals == ()


@pytest.mark.parametrize("activation", ["gelu_new", "gelu", "gelu_pytorch_tanh", "gelu_fast"])
def test_every_spelling_of_gelu_is_representable(activation: str) -> None:
    """FasterTransformer has one GELU, whose formulas differ less than its arithmetic."""
    assert layout_of(hf("gpt2-a", activation_function=activation)).refusals == ()


def test_an_explicit_default_rope_is_representable() -> None:
    """rope_parameters that say what is compiled in are no obstacle."""
    config = hf("llama-a", rope_parameters={"rope_theta": 10000.0, "rope_type": "default"})

    assert layout_of(config).refusals == ()


# Deviations


def difference(name: str) -> tuple[set[str], set[str], set[str]]:
    """Files that differ from an expectation's, all files of either, and our patterns for those that differ."""
    golden = json.loads((GOLDEN / name).read_bytes())
    variant, tp = name.split("/")[0], golden["tensor_parallel"]
    folder = GOLDEN / variant / "hf"
    scales = folder / "act_scales.json" if "-act_scale" in golden["command"] else None
    layout = layout_of(hf(variant), tp=tp, dtype=golden["weight_data_type"], act_scales=scales)
    checkpoint = open_checkpoint(folder)
    with (
        tempfile.TemporaryDirectory() as place,
        WorkDirectory(Path(place) / "out", job={}, resume=False, force=False) as work,
    ):
        stream(
            plan_of(variant, layout),
            checkpoint.files,
            work,
            prefix="",
            budget_bytes=1 << 30,
            workers=1,
            advance=lambda size_bytes, tensor: None,
        )
        found = {file: written.sha256 for file, written in work.finished.items()}
    found["config.ini"] = hashlib.sha256(layout.texts["config.ini"].encode()).hexdigest()
    vendors = {file: entry["sha256"] for file, entry in golden["files"].items()}
    vendors["config.ini"] = golden["config_ini_sha256"]
    everything = set(found) | set(vendors)
    return {file for file in everything if found.get(file) != vendors.get(file)}, everything, set(layout.deviations)


@pytest.mark.parametrize("name", EXPECTATIONS)
def test_deviations_name_exactly_the_files_that_differ(name: str) -> None:
    """Every file that differs from the vendor's has a reason, and no file that is equal has one."""
    differing, everything, patterns = difference(name)

    explained = {file for file in everything if any(fnmatch.fnmatchcase(file, pattern) for pattern in patterns)}
    assert explained == differing


DEVIATIONS: list[tuple[str, dict[str, Any], dict[str, Any], str, str]] = [
    ("gpt2-a", {"n_inner": 96}, {}, "config.ini", "inter_size"),
    ("gpt2-a", {}, {"dtype": "bf16"}, "config.ini", "bf16"),
    ("gpt2-a", {"activation_function": "relu"}, {}, "config.ini", "activation_type"),
    ("gpt2-a", {"tie_word_embeddings": False}, {}, "model.lm_head.weight.bin", "the converter drops it"),
    ("opt-a", {}, {"dtype": "bf16"}, "config.ini", "bf16"),
    ("opt-a", {"activation_function": "gelu"}, {}, "config.ini", "activation_type"),
    ("opt-a", {"tie_word_embeddings": False}, {}, "model.lm_head.weight.bin", "the model's own head"),
    ("opt-int8", {}, {"act_scales": SCALES, "dtype": "fp16"}, "*.scale.bin", "float32"),
    ("opt-int8", {}, {"act_scales": SCALES, "dtype": "fp16"}, "*.scale_out.bin", "float32"),
    ("opt-int8", {}, {"act_scales": SCALES, "dtype": "fp16"}, "*.scale_inter.bin", "float32"),
    ("bloom-a", {}, {"dtype": "bf16"}, "config.ini", "bf16"),
    ("bloom-a", {"tie_word_embeddings": False}, {}, "model.lm_head.weight.bin", "(vocab, hidden)"),
    ("gptj-a", {"n_inner": 96}, {}, "config.ini", "inter_size"),
    ("gptj-a", {}, {"dtype": "fp16"}, "config.ini", "weight_data_type fp16"),
    ("gptneox-b", {}, {"tp": 2}, "model.layers.*.attention.dense.bias.bin", "after the all-reduce"),
    ("gptneox-b", {}, {"tp": 2}, "model.layers.*.mlp.dense_4h_to_h.bias.bin", "after the all-reduce"),
    ("llama-a", {"tie_word_embeddings": True}, {}, "model.lm_head.weight.bin", "written from the embedding"),
    ("bert-a", {}, {"dtype": "bf16"}, "config.ini", "bf16"),
    ("t5-a", {}, {"dtype": "bf16"}, "config.ini", "bf16"),
]


@pytest.mark.parametrize(("variant", "changes", "options", "pattern", "reason"), DEVIATIONS)
def test_a_deviation_has_its_reason(
    variant: str, changes: dict[str, Any], options: dict[str, Any], pattern: str, reason: str
) -> None:
    """What is corrected, or what the converter cannot write, is said by file."""
    layout = layout_of(hf(variant, **changes), **{"dtype": "fp32", **options})

    assert reason in layout.deviations[pattern]


@pytest.mark.parametrize(
    ("variant", "options"),
    [
        ("gptneox-b", {"tp": 1}),
        ("gptneox-a", {"tp": 2}),
        ("llama-a", {"dtype": "bf16"}),
        ("bert-a", {}),
        ("opt-a", {}),
        ("gptj-a", {"dtype": "fp32"}),
    ],
)
def test_an_artifact_like_the_vendors_has_no_deviations(variant: str, options: dict[str, Any]) -> None:
    """Nothing is claimed where every byte is the converter's."""
    assert dict(layout_of(hf(variant), **options).deviations) == {}


# Notes and roles that are not stored


def test_a_head_size_the_decoding_kernel_lacks_is_noted() -> None:
    """The files are right, but the vendor's runtime would refuse to decode."""
    assert any("size_per_head 8" in note for note in layout_of(hf("llama-a")).notes)


def test_a_head_size_the_decoding_kernel_has_is_not_noted() -> None:
    """Sixty-four elements per head are compiled in."""
    config = hf("llama-a", hidden_size=256, head_dim=64)

    assert layout_of(config).notes == ()


def test_bert_has_notes_about_its_path_and_embeddings() -> None:
    """The two surprises of serving BERT are told, and nothing about decoding, which it does not do."""
    notes = layout_of(hf("bert-a")).notes

    assert len(notes) == 2
    assert any("slash" in note for note in notes)
    assert any("embeddings are not stored" in note for note in notes)


@pytest.mark.parametrize(("dtype", "noted"), [("fp16", True), ("bf16", False), ("fp32", False)])
def test_t5_in_fp16_is_noted(dtype: str, noted: bool) -> None:
    """Activations of larger T5 models overflow fp16."""
    notes = layout_of(hf("t5-a"), dtype=dtype).notes

    assert any("overflow fp16" in note for note in notes) is noted


def test_berts_embeddings_are_ignored_with_a_reason() -> None:
    """Embedding tensors are in the checkpoint and not in the artifact, which the plan accounts for."""
    plan = plan_of("bert-a", layout_of(hf("bert-a")))

    embeddings = {name: reason for name, reason in plan.ignored.items() if name.startswith("embeddings.")}
    assert len(embeddings) == 5
    assert all("starts from hidden states" in reason for reason in embeddings.values())


def test_the_decoder_is_ignored_with_encoder_only() -> None:
    """Every decoder tensor and the head are accounted for by the flag."""
    plan = plan_of("t5-b", layout_of(hf("t5-b"), encoder_only=True))

    decoder = {name for name in plan.ignored if plan.ignored[name] == "--encoder-only"}
    assert plan.problems == ()
    assert decoder == {
        name
        for name in open_checkpoint(GOLDEN / "t5-b" / "hf").tensors
        if name.startswith(("decoder.", "lm_head.")) and "embed_tokens" not in name
    }


def test_int8_rows_are_added_with_scales() -> None:
    """The float files stay, and each of a layer's four matrices gets an int8 file per rank and three scales."""
    plain = plan_of("opt-int8", layout_of(hf("opt-int8"), tp=2)).files

    files = plan_of("opt-int8", layout_of(hf("opt-int8"), tp=2, act_scales=SCALES)).files

    assert set(plain) < set(files)
    assert len(set(files) - set(plain)) == 4 * (2 + 3)


def problems_of(layout: Layout, check: Callable[[Problem], bool]) -> list[Problem]:
    """Refusals of a layout that pass a check."""
    return [problem for problem in layout.refusals if check(problem)]


def test_a_refused_type_hints_at_one_that_is_compiled_in() -> None:
    """GPT-NeoX in bf16 is told to use fp16."""
    (problem,) = problems_of(layout_of(hf("gptneox-a"), dtype="bf16"), lambda problem: "dtype" in problem.subject)

    assert (problem.expected, problem.hint) == ("fp32, fp16", "add --dtype fp16")
