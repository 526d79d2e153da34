"""Which TensorRT-LLM checkpoint a model becomes, and which models and options it refuses, with the way on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmcompile.architectures import lookup
from llmcompile.dtypes import BF16, FP16, FP32, DType
from llmcompile.exporters.options import BuildOptions
from llmcompile.exporters.spec import Layout
from llmcompile.exporters.trtllm.backend import recorded
from llmcompile.exporters.trtllm.layout import make_layout, recipes
from llmcompile.exporters.trtllm.options import TrtllmOptions

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 64,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
}
TIED = {**LLAMA, "tie_word_embeddings": True}
MIXTRAL: dict[str, Any] = {
    **LLAMA,
    "architectures": ["MixtralForCausalLM"],
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}
QWEN2 = {**LLAMA, "architectures": ["Qwen2ForCausalLM"]}
GEMMA = {**LLAMA, "architectures": ["GemmaForCausalLM"], "head_dim": 32}
FALCON: dict[str, Any] = {
    "architectures": ["FalconForCausalLM"],
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "parallel_attn": True,
    "bias": True,
}
T5: dict[str, Any] = {
    "architectures": ["T5ForConditionalGeneration"],
    "vocab_size": 64,
    "d_model": 16,
    "d_kv": 4,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
}
BERT: dict[str, Any] = {
    "architectures": ["BertForMaskedLM"],
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 36,
    "max_position_embeddings": 20,
}
META: dict[str, Any] = {
    "architectures": ["MetaLlama"],
    "dim": 64,
    "n_layers": 2,
    "n_heads": 4,
    "vocab_size": 64,
    "hidden_dim": 96,
    "norm_eps": 1e-5,
}
GPTQ = {**LLAMA, "quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": False}}
AWQ_CONFIG = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
AWQ = {**LLAMA, "quantization_config": AWQ_CONFIG}
FP8 = {**LLAMA, "quantization_config": {"quant_method": "fp8", "activation_scheme": "static"}}


def asked(**given: Any) -> TrtllmOptions:
    """Options that end with the checkpoint, for TensorRT-LLM 0.13 unless told otherwise."""
    build = BuildOptions(model="m", output=Path("out"))
    return TrtllmOptions(build=build, **{"trtllm_version": "0.13.0", "stop_after": "checkpoint", **given})


def layout(config: dict[str, Any], source_dtype: DType = FP16, **given: Any) -> Layout:
    """The layout of a model of a config."""
    architecture = lookup(config)
    return make_layout(
        architecture, architecture.dims(config), asked(**given), source_dtype=source_dtype, model_label="m"
    )


def config_json(made: Layout) -> dict[str, Any]:
    """The checkpoint's config.json."""
    content: dict[str, Any] = json.loads(made.texts["config.json"])
    return content


# Refusals


@pytest.mark.parametrize(
    ("config", "given", "found", "hint"),
    [
        (
            BERT,
            {},
            "config.json: architectures: a bert model, which TensorRT-LLM",
            "llmcompile build tensorrt-rtx --model m out; for Inferentia and Trainium: llmcompile export neuron",
        ),
        (
            GPTQ,
            {"quantization": "w8a16"},
            "--quantization: w8a16 for a checkpoint that comes quantized with gptq",
            "--quantization w4a16_gptq, or the unquantized model",
        ),
        (
            GPTQ,
            {"quantization": "w4a16_awq"},
            "--quantization: w4a16_awq for a checkpoint that comes quantized with gptq",
            "--quantization w4a16_gptq, or the unquantized model",
        ),
        (
            AWQ,
            {"quantization": "fp8"},
            "--quantization: fp8 for a checkpoint that comes quantized with awq",
            "--quantization w4a16_gptq, or the unquantized model",
        ),
        (
            FP8,
            {"quantization": "w4a16_awq"},
            "--quantization: w4a16_awq for a checkpoint that comes quantized with fp8",
            "--quantization fp8, or the unquantized model",
        ),
        (
            LLAMA,
            {"quantization": "w4a16_gptq"},
            "--quantization: w4a16_gptq for float weights; expected a checkpoint quantized with GPTQ or AWQ",
            "use w8a16, w4a16, w4a16_awq or fp8_rowwise, which need no data",
        ),
        (
            LLAMA,
            {"quantization": "w4a16_gptq"},
            "--quantization: w4a16_gptq for float weights; expected a checkpoint quantized with GPTQ or AWQ",
            "w4a16_awq or fp8_rowwise, which need no data, or int4_awq, which is calibrated",
        ),
        (
            LLAMA,
            {"quantization": "w8a16", "calib_dataset": Path("text.txt")},
            "--calib-dataset: given for --quantization w8a16, which needs no data; expected a recipe that is",
            "drop --calib-dataset, or choose one of fp8, int8_sq, int4_awq, w4a8_awq, nvfp4",
        ),
        (
            FP8,
            {"kv_cache": "int8"},
            "--kv-cache: int8 for a checkpoint that comes quantized with fp8",
            "--kv-cache fp8",
        ),
        (
            MIXTRAL,
            {"quantization": "int8_sq"},
            "--quantization: int8_sq with experts: the plugin of experts takes int8 for weights of its own layout",
            "--quantization fp8, or none",
        ),
        (
            MIXTRAL,
            {"quantization": "w4a8_awq"},
            "--quantization: w4a8_awq with experts: the loader divides scales (experts, groups, out) by one of",
            "--quantization fp8, or none",
        ),
        (
            MIXTRAL,
            {"quantization": "int4_awq", "trtllm_version": "0.18.0"},
            "--quantization: int4_awq with experts for 0.18.0; expected w8a16 or w4a16 or fp8",
            "0.19 is the first that loads it",
        ),
        (
            MIXTRAL,
            {"quantization": "fp8", "trtllm_version": "0.9.0"},
            "--quantization: fp8 with experts for 0.9.0; expected w8a16 or w4a16",
            "0.10 is the first that loads it",
        ),
        (
            MIXTRAL,
            {"quantization": "nvfp4", "trtllm_version": "1.2.1"},
            "--quantization: nvfp4 with experts for 1.2.1; expected w8a16 or w4a16 or fp8 or int4_awq",
            "--trtllm-version 0.20.0, the last that is known to load it, or --quantization fp8",
        ),
        (
            T5,
            {"quantization": "nvfp4", "trtllm_version": "1.2.1"},
            "--quantization: nvfp4 with t5",
            "--quantization w8a16",
        ),
        (
            MIXTRAL,
            {"quantization": "w4a16_awq"},
            "--quantization: w4a16_awq with experts; expected w8a16 or w4a16 or fp8",
            "--quantization fp8, or none",
        ),
        (FP8, {"dtype": "float32"}, "--dtype: float32 with fp8; expected float16 or bfloat16", "--dtype float16"),
        (
            QWEN2,
            {"quantization": "fp8_rowwise"},
            "--quantization: fp8_rowwise with qwen2; expected llama or meta_llama or mistral",
            "--quantization w8a16",
        ),
        (T5, {"kv_cache": "fp8"}, "--kv-cache: fp8 with t5", "drop --kv-cache"),
        (T5, {"pp": 2}, "--pp: 2 with t5; expected 1", "use --tp"),
        (T5, {"tp": 3}, "--tp: vocab 64 / 3 ranks = 21.33", "degrees that divide it: 1, 2, 4, 8, 16, 32, 64"),
        (T5, {"use_embedding_sharing": True}, "--use-embedding-sharing: with t5", "drop --use-embedding-sharing"),
        (LLAMA, {"pp": 3}, "--pp: 4 layers / 3 stages = 1.33; expected a whole number", "a --pp that divides 4"),
        (LLAMA, {"pp": 5, "trtllm_version": "1.0.0"}, "--pp: 4 layers / 5 stages = 0.80", "--pp 4 at most"),
        (
            LLAMA,
            {"max_position_embeddings": 4096},
            "--max-position-embeddings: given for llama, whose config.json has its own; expected a Meta checkpoint",
            "drop --max-position-embeddings",
        ),
        (LLAMA, {"tp": 2, "moe_ep": 2}, "--moe-ep, --moe-tp: given for a model without experts", "drop them"),
        (LLAMA, {"tp": 2, "moe_tp": 1}, "--moe-ep, --moe-tp: given for a model without experts", "drop them"),
        (
            {**MIXTRAL, "num_local_experts": 6},
            {"tp": 4, "moe_ep": 4},
            "--moe-ep: 6 experts / 4 ranks = 1.50; expected a whole number",
            "give a --moe-ep that divides 6",
        ),
        (
            LLAMA,
            {"use_embedding_sharing": True},
            "--use-embedding-sharing: a model whose head is its own",
            "drop --use-embedding-sharing",
        ),
        (
            GEMMA,
            {"tp": 2, "use_parallel_embedding": True, "embedding_sharding_dim": 1},
            "--embedding-sharding-dim: 1 with gemma; expected 0",
            "--embedding-sharding-dim 0",
        ),
    ],
)
def test_a_refusal_says_what_was_found_and_what_to_do(
    config: dict[str, Any], given: dict[str, Any], found: str, hint: str
) -> None:
    """One problem, with the flag first and the way on as its hint; nothing is laid out."""
    made = layout(config, **given)

    (problem,) = made.refusals
    assert found in str(problem)
    assert hint in problem.hint
    assert (made.rows, made.texts, made.notes) == ((), {}, ())


QUANTIZED = {
    "fp8": {"quant_method": "fp8", "activation_scheme": "static"},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False},
    "awq": AWQ_CONFIG,
}
OPT = {
    "architectures": ["OPTForCausalLM"],
    "vocab_size": 64,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "ffn_dim": 128,
    "max_position_embeddings": 64,
}
GPT2 = {
    "architectures": ["GPT2LMHeadModel"],
    "vocab_size": 64,
    "n_positions": 64,
    "n_embd": 128,
    "n_layer": 2,
    "n_head": 4,
}


@pytest.mark.parametrize(("config", "method"), [(OPT, "fp8"), (MIXTRAL, "fp8"), (GPT2, "gptq"), (GPT2, "awq")])
def test_quantized_checkpoints_that_nothing_reads_back_are_refused(config: dict[str, Any], method: str) -> None:
    """Where the result could not be held against the model, the family is named."""
    made = layout({**config, "quantization_config": QUANTIZED[method]})

    (problem,) = made.refusals
    assert problem.subject == "config.json: quantization_config"
    assert problem.found == f"{'fp8' if method == 'fp8' else 'w4a16_gptq'} with {lookup(config).name}"
    assert problem.hint == "start from the unquantized checkpoint"


@pytest.mark.parametrize("name", ["Llama", "Mistral", "Qwen2", "Qwen3", "Gemma", "Gemma2"])
def test_float8_checkpoints_that_are_read_back_are_not_refused(name: str) -> None:
    """Families with one tensor for each of q, k, v, o, gate, up and down."""
    config = {**LLAMA, "architectures": [f"{name}ForCausalLM"], "head_dim": 32, "quantization_config": QUANTIZED["fp8"]}

    assert layout(config, trtllm_version="1.0.0").refusals == ()
    assert "fp8" in recipes(lookup(config).name)


@pytest.mark.parametrize(
    ("family", "left_out"),
    [("gpt2", {"w4a16_gptq"}), ("mixtral", {"w4a16_gptq"}), ("meta_llama", set()), ("llama", set())],
)
def test_recipes_of_a_family_are_those_that_are_not_refused(family: str, left_out: set[str]) -> None:
    """What README.md lists for a family leaves out what its layout refuses by name."""
    assert {"fp8", "w4a16_gptq"} - set(recipes(family)) == left_out


def test_all_refusals_are_said_at_once() -> None:
    """A recipe, a number of stages and a flag that do not suit the model are three problems."""
    made = layout(LLAMA, quantization="w4a16_gptq", pp=3, max_position_embeddings=9)

    assert [problem.subject for problem in made.refusals] == ["--quantization", "--pp", "--max-position-embeddings"]


@pytest.mark.parametrize(
    ("config", "given"),
    [
        (GPTQ, {"quantization": "w4a16_gptq", "group_size": 64}),
        (AWQ, {"quantization": "w4a16_gptq"}),
        (AWQ, {"quantization": "w4a16_awq"}),
        (FP8, {"quantization": "fp8"}),
        (LLAMA, {"quantization": "fp8_rowwise"}),
        (LLAMA, {"quantization": "fp8"}),
        (LLAMA, {"quantization": "int8_sq", "kv_cache": "int8"}),
        (LLAMA, {"quantization": "nvfp4", "kv_cache": "fp8", "trtllm_version": "0.17.0"}),
        (MIXTRAL, {"quantization": "nvfp4", "trtllm_version": "0.20.0"}),
        (LLAMA, {"quantization": "w8a16", "kv_cache": "int8", "calib_dataset": Path("text.txt")}),
        (LLAMA, {"pp": 3, "trtllm_version": "1.0.0"}),
        (MIXTRAL, {"quantization": "w4a16", "wo_layout": "sm80", "tp": 4, "moe_ep": 2}),
        (META, {"max_position_embeddings": 4096}),
        (TIED, {"use_embedding_sharing": True}),
        (GEMMA, {"tp": 2}),
        (T5, {"quantization": "w8a16"}),
        (T5, {"quantization": "fp8"}),
        (T5, {"quantization": "w4a16_awq", "group_size": 64}),
    ],
)
def test_what_fits_is_not_refused(config: dict[str, Any], given: dict[str, Any]) -> None:
    """Each option is accepted where it has a meaning."""
    made = layout(config, **given)

    assert made.refusals == ()
    assert len(made.rows) > 0


# Types


@pytest.mark.parametrize(
    ("source", "given", "expected"),
    [
        (FP16, None, FP16),
        (BF16, None, BF16),
        (FP32, None, FP16),
        (FP32, "float32", FP32),
        (BF16, "float16", FP16),
        (FP16, "bfloat16", BF16),
    ],
)
def test_the_type_is_the_checkpoints_unless_asked_for(source: DType, given: str | None, expected: DType) -> None:
    """float32 becomes float16 where nothing is asked, as in the vendor's converter."""
    made = layout(LLAMA, source_dtype=source, dtype=given)

    name = {FP16: "float16", BF16: "bfloat16", FP32: "float32"}[expected]
    assert (made.dtype, config_json(made)["dtype"]) == (expected, name)


# The block `quantization`


@pytest.mark.parametrize(
    ("config", "given", "expected"),
    [
        (LLAMA, {}, {"quant_algo": None}),
        (LLAMA, {"quantization": "w8a16"}, {"quant_algo": "W8A16"}),
        (LLAMA, {"quantization": "w4a16", "wo_layout": "sm80"}, {"quant_algo": "W4A16"}),
        (LLAMA, {"kv_cache": "fp8"}, {"quant_algo": None, "kv_cache_quant_algo": "FP8"}),
        (
            LLAMA,
            {"quantization": "w4a16_awq", "group_size": 64},
            {
                "quant_algo": "W4A16_AWQ",
                "group_size": 64,
                "has_zero_point": False,
                "pre_quant_scale": True,
                "exclude_modules": ["lm_head"],
            },
        ),
        (
            GPTQ,
            {},
            {"quant_algo": "W4A16_GPTQ", "group_size": 64, "has_zero_point": True, "pre_quant_scale": False},
        ),
        (
            AWQ,
            {},
            {"quant_algo": "W4A16_GPTQ", "group_size": 32, "has_zero_point": True, "pre_quant_scale": False},
        ),
        (
            AWQ,
            {"quantization": "w4a16_awq"},
            {"quant_algo": "W4A16_GPTQ", "group_size": 32, "has_zero_point": True, "pre_quant_scale": False},
        ),
        (
            LLAMA,
            {"quantization": "fp8_rowwise"},
            {"quant_algo": "FP8_PER_CHANNEL_PER_TOKEN", "clamp_val": [-1200.0, 1200.0]},
        ),
        (
            LLAMA,
            {"quantization": "fp8_rowwise", "trtllm_version": "0.15.0"},
            {"quant_algo": "FP8_PER_CHANNEL_PER_TOKEN", "clamp_val": [-1200.0, 1200.0], "use_meta_recipe": True},
        ),
        (
            LLAMA,
            {"quantization": "fp8_rowwise", "trtllm_version": "1.2.1", "kv_cache": "fp8"},
            {
                "quant_algo": "FP8_PER_CHANNEL_PER_TOKEN",
                "kv_cache_quant_algo": "FP8",
                "clamp_val": [-1200.0, 1200.0],
                "use_meta_recipe": True,
            },
        ),
    ],
)
def test_the_quantization_block_has_only_keys_that_are_needed(
    config: dict[str, Any], given: dict[str, Any], expected: dict[str, Any]
) -> None:
    """A release refuses keys it does not know, so none is written without need."""
    assert config_json(layout(config, **given))["quantization"] == expected


@pytest.mark.parametrize("version", ["0.9.0", "0.12.0", "0.13.0", "0.21.0", "1.2.1"])
@pytest.mark.parametrize("recipe", [None, "w8a16", "w4a16", "w4a16_awq"])
def test_the_quantization_block_does_not_depend_on_the_release(recipe: str | None, version: str) -> None:
    """What needs no data is described in the same words from 0.9 to 1.2."""
    block = config_json(layout(LLAMA, quantization=recipe, trtllm_version=version))["quantization"]

    assert block == config_json(layout(LLAMA, quantization=recipe))["quantization"]


def test_fp8_sources_are_described_as_such() -> None:
    """quant_algo FP8, whether asked for or found."""
    found, given = config_json(layout(FP8)), config_json(layout(FP8, quantization="fp8"))

    assert found["quantization"]["quant_algo"] == "FP8"
    assert found == given


def test_both_stacks_have_a_config() -> None:
    """encoder/config.json and decoder/config.json, each with its algorithm."""
    made = layout(T5, quantization="w8a16")

    assert sorted(made.texts) == ["decoder/config.json", "encoder/config.json"]
    assert {json.loads(text)["quantization"]["quant_algo"] for text in made.texts.values()} == {"W8A16"}


# Notes and deviations


@pytest.mark.parametrize(
    ("config", "given", "note"),
    [
        (AWQ, {}, "AutoAWQ's integers and zero points are stored by W4A16_GPTQ"),
        (GPTQ, {}, "weights lie in the byte layout of SM75 to SM89"),
        (LLAMA, {"quantization": "w8a16", "wo_layout": "sm80"}, "weights lie in the byte layout of SM75 to SM89"),
        (LLAMA, {"quantization": "w4a16"}, "weights are stored in full, and quantized by trtllm-build"),
        (LLAMA, {"quantization": "w4a16_awq"}, "rounded to the nearest without calibration"),
        (
            {**LLAMA, "num_hidden_layers": 2},
            {"quantization": "fp8_rowwise"},
            "fp8_rowwise leaves the first and the last layer as they are: nothing of this model is quantized",
        ),
        (LLAMA, {"kv_cache": "fp8"}, "the scale of the FP8 key and value cache is 1"),
    ],
)
def test_what_is_worth_knowing_is_noted(config: dict[str, Any], given: dict[str, Any], note: str) -> None:
    """The sentence is among the notes, and not among those of a plain LLaMA."""
    found = layout(config, **given).notes

    assert any(sentence.startswith(note) for sentence in found)
    assert not any(sentence.startswith(note) for sentence in layout(LLAMA).notes)


def test_deferred_weights_are_not_bound_to_a_gpu() -> None:
    """The note about SM75 to SM89 is for weights laid out here."""
    assert not any("SM75" in note for note in layout(LLAMA, quantization="w8a16").notes)


def test_what_differs_from_the_vendor_is_recorded() -> None:
    """config.json is minimal, and the buffers are left out, for every model."""
    made = layout(LLAMA)

    assert set(made.deviations) == {"*config.json", "*rank*.safetensors"}
    assert "buffers" in made.deviations["*rank*.safetensors"]


@pytest.mark.parametrize(("tp", "recorded_"), [(2, False), (4, True)])
def test_shared_heads_are_recorded_as_a_deviation(tp: int, recorded_: bool) -> None:
    """Where 2 key and value heads are on 4 ranks, the converter of 0.13 does otherwise by default."""
    found = " ".join(layout(LLAMA, tp=tp).deviations.values())

    assert ("each of 2 key and value heads is on 2 ranks" in found) is recorded_


@pytest.mark.parametrize(("parallel", "recorded_"), [(True, True), (False, False)])
def test_biases_of_a_parallel_falcon_are_recorded_as_a_deviation(parallel: bool, recorded_: bool) -> None:
    """They are on the first rank, where the converter has them on all."""
    found = " ".join(layout({**FALCON, "parallel_attn": parallel}).deviations.values())

    assert ("biases of attention.dense and mlp.proj are on the first rank" in found) is recorded_


# What the manifest records


def test_every_option_that_decides_the_bytes_is_recorded() -> None:
    """Degrees, type, recipe, embedding and release; how the engine is built is not among them."""
    options = asked(tp=4, moe_ep=2, quantization="w8a16", build_workers=3, eval_text=Path("text"))
    architecture = lookup(MIXTRAL)
    made = make_layout(architecture, architecture.dims(MIXTRAL), options, source_dtype=BF16, model_label="m")

    found = recorded(options, made)

    expected = {"tp": 4, "pp": 1, "moe_tp": 2, "moe_ep": 2, "dtype": "bfloat16", "quantization": "w8a16"}
    assert {key: found[key] for key in expected} == expected
    assert {"wo_layout", "group_size", "kv_cache", "trtllm_version", "max_position_embeddings"} <= set(found)
    assert {"build_workers", "eval_text"}.isdisjoint(found)


def test_the_degrees_reach_the_plan() -> None:
    """The layout carries stages and expert ranks as well as tensor ranks."""
    made = layout(MIXTRAL, tp=4, pp=2, moe_ep=2)

    assert (made.folder, made.ranks, made.pp, made.moe_ep) == ("checkpoint/", 4, 2, 2)


def test_metas_positions_are_2048_unless_given() -> None:
    """params.json does not say; the option replaces the vendor's default."""
    assert config_json(layout(META))["max_position_embeddings"] == 2048
    assert config_json(layout(META, max_position_embeddings=4096))["max_position_embeddings"] == 4096
