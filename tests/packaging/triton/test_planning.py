"""Model repositories for Triton: what is in them, by artifact, option and release, and what is refused."""

from __future__ import annotations

import json
import shlex
import typing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

import triton_repositories as r
from llmcompile.errors import CheckpointError, LlmCompileError, OptionsError, UnsupportedError
from llmcompile.packaging.artifact import Artifact
from llmcompile.packaging.target import KINDS, Kind, Package
from llmcompile.packaging.triton import TARGET
from llmcompile.packaging.triton.generations import GENERATIONS
from llmcompile.packaging.triton.pbtxt import Message, parse

ENGINE = "tensorrt_llm/config.pbtxt"


def config(package: Package, path: str = ENGINE) -> Message:
    """A configuration of a package, as Triton reads it."""
    return parse(package.texts[path])


def parameters(package: Package, path: str = ENGINE) -> dict[str, str]:
    """The parameters of a model."""
    return {key: value["string_value"] for key, value in config(package, path)["parameters"].items()}


@pytest.fixture(scope="module")
def model_py(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Code of the models in Python."""
    return str(r.sources(tmp_path_factory.mktemp("all_models")))


def test_an_engine_alone() -> None:
    """An engine is one model: its files in version 1, and a configuration by what it was built for."""
    package = r.plan(r.engine())

    assert dict(package.links) == {
        "tensorrt_llm/1/config.json": "engine/config.json",
        "tensorrt_llm/1/rank0.engine": "engine/rank0.engine",
        "tensorrt_llm/1/rank1.engine": "engine/rank1.engine",
    }
    assert list(package.texts) == [ENGINE]
    made = config(package)
    assert (made["name"], made["backend"], made["max_batch_size"]) == ("tensorrt_llm", "tensorrtllm", 8)
    assert made["model_transaction_policy"] == {"decoupled": False}
    assert made["instance_group"] == [{"kind": "KIND_CPU", "count": 1}]
    assert made["dynamic_batching"] == {
        "preferred_batch_size": [8],
        "max_queue_delay_microseconds": 0,
        "default_queue_policy": {"max_queue_size": 0},
    }
    assert parameters(package) == {
        "FORCE_CPU_ONLY_INPUT_TENSORS": "no",
        "gpt_model_path": "/models/tensorrt_llm/1",
        "gpt_model_type": "inflight_fused_batching",
        "max_beam_width": "2",
    }


@pytest.mark.parametrize(
    ("version", "inputs", "optional", "outputs"),
    [("0.9.0", 30, 27, 6), ("0.12.0", 38, 35, 7), ("0.17.0", 53, 51, 12), ("0.19.0", 60, 58, 19)],
)
def test_the_tensors_of_a_generation(version: str, inputs: int, optional: int, outputs: int) -> None:
    """A release has as many tensors as its template, counted in that."""
    made = config(r.plan(r.engine(version)))

    assert len(made["input"]) == inputs
    assert sum(tensor.get("optional", False) for tensor in made["input"]) == optional
    assert len(made["output"]) == outputs


def test_names_that_changed() -> None:
    """random_seed and min_length are seed and min_tokens since 0.20."""
    names = {
        version: {t["name"] for t in config(r.plan(r.engine(version)))["input"]} for version in ("0.19.0", "0.20.0")
    }

    assert {"random_seed", "min_length"} == names["0.19.0"] - names["0.20.0"]
    assert {"seed", "min_tokens"} == names["0.20.0"] - names["0.19.0"]


def test_guided_decoding_is_named_since_0_19() -> None:
    """From 0.19 three parameters are read without a default; they are there and empty."""
    guided = {"guided_decoding_backend": "", "tokenizer_dir": "", "xgrammar_tokenizer_info_path": ""}

    assert guided.items() <= parameters(r.plan(r.engine("0.19.0"))).items()
    assert guided.keys().isdisjoint(parameters(r.plan(r.engine("0.18.2"))))


def test_logits_have_the_engines_type() -> None:
    """Since 0.17 logits are declared with the type that the engine gives; before, as float32."""
    outputs = {t["name"]: t for t in config(r.plan(r.engine("0.17.0", logits_dtype="float16")))["output"]}
    before = {t["name"]: t for t in config(r.plan(r.engine("0.16.0", logits_dtype="float16")))["output"]}

    assert outputs["context_logits"]["data_type"] == outputs["generation_logits"]["data_type"] == "TYPE_FP16"
    assert before["context_logits"]["data_type"] == "TYPE_FP32"


def test_an_encoder_and_a_decoder() -> None:
    """Two engines are in two folders of one model, and share the KV cache by halves."""
    package = r.plan(r.engine("0.15.0", parts=("/encoder", "/decoder")))

    assert "tensorrt_llm/1/encoder/rank1.engine" in package.links
    given = parameters(package)
    assert given["gpt_model_path"] == "/models/tensorrt_llm/1/decoder"
    assert given["encoder_model_path"] == "/models/tensorrt_llm/1/encoder"
    assert given["cross_kv_cache_fraction"] == "0.5"


def test_an_encoder_alone() -> None:
    """An encoder has no gpt_model_path."""
    given = parameters(r.plan(r.engine("0.15.0", parts=("/encoder",))))

    assert given["encoder_model_path"] == "/models/tensorrt_llm/1/encoder"
    assert "gpt_model_path" not in given


def test_options_of_an_engine() -> None:
    """Each option is where the backend reads it."""
    package = r.plan(
        r.engine(),
        mount_path="/srv/models/",
        streaming=True,
        max_batch_size=4,
        max_beam_width=1,
        gpu_ids="0,1;2,3",
        kv_cache_free_gpu_mem_fraction=0.8,
        enable_kv_cache_reuse=True,
        batch_scheduler_policy="max_utilization",
        exclude_input_in_output=True,
        max_queue_delay_microseconds=100,
        max_queue_size=64,
    )

    made = config(package)
    assert made["max_batch_size"] == 4
    assert made["model_transaction_policy"] == {"decoupled": True}
    assert made["instance_group"][0]["count"] == 2
    assert made["dynamic_batching"] == {
        "preferred_batch_size": [4],
        "max_queue_delay_microseconds": 100,
        "default_queue_policy": {"max_queue_size": 64},
    }
    assert parameters(package) == {
        "FORCE_CPU_ONLY_INPUT_TENSORS": "no",
        "batch_scheduler_policy": "max_utilization",
        "enable_kv_cache_reuse": "true",
        "exclude_input_in_output": "true",
        "gpt_model_path": "/srv/models/tensorrt_llm/1",
        "gpt_model_type": "inflight_fused_batching",
        "gpu_device_ids": "0,1;2,3",
        "kv_cache_free_gpu_mem_fraction": "0.8",
        "max_beam_width": "1",
    }


def test_reuse_is_off_where_the_engine_cannot() -> None:
    """Since 0.19 KV cache reuse is the default; an engine without paged context attention must say no."""
    assert parameters(r.plan(r.engine("1.0.0", paged=False)))["enable_kv_cache_reuse"] == "false"
    assert "enable_kv_cache_reuse" not in parameters(r.plan(r.engine("1.0.0")))
    assert "enable_kv_cache_reuse" not in parameters(r.plan(r.engine("0.18.0", paged=False)))


def test_an_ensemble(model_py: str) -> None:
    """--ensemble adds the models for the tokenizer and the one that joins them, which has an empty version."""
    package = r.plan(r.engine(), ensemble=True, model_py=model_py)

    assert sorted(path for path in package.texts if path.endswith("config.pbtxt")) == [
        "ensemble/config.pbtxt",
        "postprocessing/config.pbtxt",
        "preprocessing/config.pbtxt",
        ENGINE,
    ]
    assert package.folders == ("ensemble/1",)
    assert package.texts["preprocessing/1/model.py"] == "# preprocessing\n"
    assert package.links["preprocessing/1/tokenizer/tokenizer.json"] == "tokenizer.json"
    steps = config(package, "ensemble/config.pbtxt")["ensemble_scheduling"]["step"]
    assert [(step["model_name"], step["model_version"]) for step in steps] == [
        ("preprocessing", -1),
        ("tensorrt_llm", -1),
        ("postprocessing", -1),
    ]
    assert steps[0]["input_map"] == {
        "QUERY": "text_input",
        "DECODER_QUERY": "decoder_text_input",
        "REQUEST_OUTPUT_LEN": "max_tokens",
        "BAD_WORDS_DICT": "bad_words",
        "STOP_WORDS_DICT": "stop_words",
        "EMBEDDING_BIAS_WORDS": "embedding_bias_words",
        "EMBEDDING_BIAS_WEIGHTS": "embedding_bias_weights",
        "END_ID": "end_id",
        "PAD_ID": "pad_id",
        "PROMPT_TABLE_EXTRA_ID": "prompt_table_extra_id",
    }
    assert steps[2] == {
        "model_name": "postprocessing",
        "model_version": -1,
        "input_map": {"TOKENS_BATCH": "_TOKENS_BATCH", "SEQUENCE_LENGTH": "_SEQUENCE_LENGTH"},
        "output_map": {"OUTPUT": "text_output"},
    }
    assert parameters(package, "preprocessing/config.pbtxt") == {
        "tokenizer_dir": "/models/preprocessing/1/tokenizer",
        "add_special_tokens": "True",
        "gpt_model_path": "/models/tensorrt_llm/1",
        "visual_model_path": "",
    }


def test_bls(model_py: str) -> None:
    """--bls adds the model that calls the others, which streams where they do."""
    package = r.plan(r.engine(), bls=True, streaming=True, model_py=model_py)

    assert "ensemble/config.pbtxt" not in package.texts
    assert config(package, "tensorrt_llm_bls/config.pbtxt")["model_transaction_policy"] == {"decoupled": True}
    assert parameters(package, "tensorrt_llm_bls/config.pbtxt") == {
        "tensorrt_llm_model_name": "tensorrt_llm",
        "accumulate_tokens": "True",
    }
    assert package.texts["tensorrt_llm_bls/1/lib/decode.py"] == "# tensorrt_llm_bls\n"


@pytest.mark.parametrize("generation", GENERATIONS)
def test_every_generation_is_sound(generation: str, model_py: str) -> None:
    """Each generation's repository passes the lint, whose facts are written apart."""
    artifact = r.engine(f"{generation}.0")
    package = r.plan(artifact, ensemble=True, bls=True, model_py=model_py)

    files, folders = r.files_of(package, artifact)

    assert r.failed(r.findings(files, folders, version=generation)) == []


def test_code_is_found_in_a_clone(model_py: str, tmp_path: Any) -> None:
    """--model-py may be a clone of either repository."""
    for home in ("all_models/inflight_batcher_llm", "triton_backend/all_models/inflight_batcher_llm"):
        clone = tmp_path / home.partition("/")[0]
        r.sources(clone / home)

        assert "preprocessing/1/model.py" in r.plan(r.engine(), ensemble=True, model_py=str(clone)).texts


@pytest.mark.parametrize(
    ("model_type", "name"),
    [
        ("gpt2", "GPT"),
        ("opt", "GPT"),
        ("bloom", "GPT"),
        ("gptj", "GPT-J"),
        ("gpt_neox", "GPT-NeoX"),
        ("t5", "T5"),
        ("mt5", "T5"),
        ("bert", "bert"),
        ("llama", "Llama"),
    ],
)
def test_fastertransformer(model_type: str, name: str) -> None:
    """FasterTransformer files are one model, of the backend's name for their family."""
    package = r.plan(r.ft(model_type))

    given = parameters(package, "fastertransformer/config.pbtxt")
    assert given["model_type"] == name
    assert given["model_checkpoint_path"] == "/models/fastertransformer/1/2-gpu/"
    assert (given["tensor_para_size"], given["pipeline_para_size"], given["data_type"]) == ("2", "1", "fp16")
    assert package.links["fastertransformer/1/2-gpu/config.ini"] == "2-gpu/config.ini"
    assert not any(path.endswith("tokenizer.json") for path in package.links)


def test_int8_and_encoders_of_fastertransformer() -> None:
    """SmoothQuant weights want int8_mode 2; T5 without its decoder is T5-Encoder."""
    assert parameters(r.plan(r.ft("opt", act_scales="x")), "fastertransformer/config.pbtxt")["int8_mode"] == "2"
    encoder = r.plan(r.ft("t5", encoder_only=True))
    assert parameters(encoder, "fastertransformer/config.pbtxt")["model_type"] == "T5-Encoder"


def test_a_checkpoint(model_py: str) -> None:
    """A Hugging Face checkpoint is loaded by model.yaml, which has what config.pbtxt leaves out."""
    package = r.plan(r.hf(), model_py=model_py, tensor_parallel=2, streaming=True, max_batch_size=16)

    made = config(package)
    assert made["backend"] == "python"
    assert "max_batch_size" not in made
    assert "model_transaction_policy" not in made
    assert yaml.safe_load(package.texts["tensorrt_llm/1/model.yaml"]) == {
        "model": "/models/tensorrt_llm/1/model",
        "backend": "pytorch",
        "tensor_parallel_size": 2,
        "pipeline_parallel_size": 1,
        "max_batch_size": 16,
        "triton_config": {"max_batch_size": 0, "decoupled": True},
    }
    assert package.links["tensorrt_llm/1/model/model.safetensors"] == "model.safetensors"
    assert package.texts["tensorrt_llm/1/helpers.py"] == "# tensorrt_llm\n"


def test_the_engines_own_release_is_preferred() -> None:
    """Without --target-version an engine is packaged for the version that built it."""
    assert TARGET.choose("trtllm-engine", None, r.engine("0.12.0")) == "0.12"
    assert TARGET.choose("trtllm-engine", None, None) == "1.2"


def test_another_release_with_the_engines_runtime() -> None:
    """Another generation's configuration is written where the server is said to have the engine's version."""
    package = r.plan(r.engine("0.17.0"), "0.18", runtime="0.17.0")

    assert "not of the engine's version" in " ".join(package.notes)


REFUSED: dict[str, tuple[type[LlmCompileError], str, Any]] = {
    "another release": (OptionsError, "0.17: the engine was built by", lambda: r.plan(r.engine(), "0.18")),
    "another runtime": (OptionsError, "--runtime-version", lambda: r.plan(r.engine(), runtime="0.18.0")),
    "an old engine": (UnsupportedError, "an engine of TensorRT-LLM 0.8.0", lambda: r.plan(r.engine("0.8.0"))),
    "a larger batch": (OptionsError, "at most 8, for which", lambda: r.plan(r.engine(), max_batch_size=9)),
    "more beams": (OptionsError, "at most 2, for which", lambda: r.plan(r.engine(), max_beam_width=3)),
    "reuse": (
        OptionsError,
        "use_paged_context_fmha",
        lambda: r.plan(r.engine(paged=False), enable_kv_cache_reuse=True),
    ),
    "a fraction": (OptionsError, "at most 1", lambda: r.plan(r.engine(), kv_cache_free_gpu_mem_fraction=1.5)),
    "a relative mount": (OptionsError, "--mount-path", lambda: r.plan(r.engine(), mount_path="models")),
    "a climbing mount": (OptionsError, "--mount-path", lambda: r.plan(r.engine(), mount_path="/models/../x")),
    "instances without GPUs": (OptionsError, "no --gpu-ids", lambda: r.plan(r.engine(), instances=2)),
    "GPUs that are words": (OptionsError, "numbers like", lambda: r.plan(r.engine(), gpu_ids="a,b")),
    "too few GPUs": (OptionsError, "tp x pp = 2 GPUs", lambda: r.plan(r.engine(), gpu_ids="0;1")),
    "a GPU twice": (OptionsError, "each GPU once", lambda: r.plan(r.engine(), gpu_ids="0,1;1,2")),
    "GPUs for other instances": (OptionsError, "3 groups", lambda: r.plan(r.engine(), gpu_ids="0,1", instances=3)),
    "no code": (OptionsError, "--model-py", lambda: r.plan(r.engine(), ensemble=True)),
    "no code for a checkpoint": (OptionsError, "--model-py", lambda: r.plan(r.hf())),
    "a folder without code": (
        CheckpointError,
        "no preprocessing/1/model.py",
        lambda: r.plan(r.engine(), bls=True, model_py="/"),
    ),
    "an encoder's text": (
        OptionsError,
        "an encoder without its decoder",
        lambda: r.plan(r.engine("0.15.0", parts=("/encoder",)), ensemble=True, model_py="x"),
    ),
    "gathered logits of another type": (
        UnsupportedError,
        "before 0.17",
        lambda: r.plan(r.engine("0.16.0", logits_dtype="float16", gather_context_logits=True)),
    ),
    "GPT-NeoX in bf16": (UnsupportedError, "GPT-NeoX", lambda: r.plan(r.ft("gpt_neox", dtype="bf16"))),
    "a family that the backend does not know": (UnsupportedError, "'falcon'", lambda: r.plan(r.ft("falcon"))),
    "heads that do not divide": (OptionsError, "8 heads / 3", lambda: r.plan(r.hf(), tensor_parallel=3, model_py="x")),
    "an ensemble of FasterTransformer": (OptionsError, "--ensemble", lambda: r.plan(r.ft(), ensemble=True)),
    "beams of a checkpoint": (OptionsError, "--max-beam-width", lambda: r.plan(r.hf(), max_beam_width=2)),
    "a degree of an engine": (OptionsError, "--tensor-parallel", lambda: r.plan(r.engine(), tensor_parallel=2)),
    "a release that is not known": (UnsupportedError, "none of the releases", lambda: r.plan(r.engine(), "0.5")),
    "a release of another kind": (UnsupportedError, "does not serve", lambda: r.plan(r.hf(), "0.17")),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    """What contradicts the artifact, or cannot be served, is refused with what to type."""
    kind, message, act = REFUSED[case]

    with pytest.raises(kind) as caught:
        act()

    assert message in str(caught.value)
    assert caught.value.problems[0].hint != ""


def test_no_code_is_answered_with_a_command() -> None:
    """--model-py says where NVIDIA keeps the code of the engine's release."""
    hints = []
    for artifact, options in [(r.engine(), {"ensemble": True}), (r.engine("1.0.0"), {"bls": True}), (r.hf(), {})]:
        with pytest.raises(OptionsError) as caught:
            r.plan(artifact, **options)
        hints.append(caught.value.problems[0].hint)

    assert hints[0].startswith("git clone --depth 1 --branch v0.17.0 https://github.com/triton-inference-server/")
    assert hints[1].startswith("git clone --depth 1 --branch v1.0.0 https://github.com/NVIDIA/TensorRT-LLM")
    assert hints[2].startswith("git clone --depth 1 --branch v1.3.0 https://github.com/NVIDIA/TensorRT-LLM")
    assert all(len(shlex.split(hint.splitlines()[0])) == 7 for hint in hints)


def test_a_clone_that_is_not_there_is_answered_with_its_command(tmp_path: Path) -> None:
    """--model-py names the folder that git is to make."""
    folder = str(tmp_path / "code")
    with pytest.raises(CheckpointError) as caught:
        r.plan(r.hf(), model_py=folder)

    clone = "git clone --depth 1 --branch v1.3.0 https://github.com/NVIDIA/TensorRT-LLM"
    assert caught.value.problems[0].hint == f"{clone} {folder}"


def without(artifact: Artifact, path: str) -> Artifact:
    """An artifact with a file missing."""
    files = {name: artifact.tree.load(name) for name in artifact.tree.files if name != path}
    known = {field: getattr(artifact, field) for field in artifact.__dataclass_fields__}
    return Artifact(**(known | {"tree": r.tree_of(files)}))


@pytest.mark.parametrize(
    ("artifact", "path"),
    [(r.engine(), "engine/rank1.engine"), (r.ft(), "2-gpu/config.ini")],
    ids=["rank", "config.ini"],
)
def test_files_that_are_missing(artifact: Artifact, path: str) -> None:
    """An artifact without one of its files is refused by the file's name."""
    with pytest.raises(CheckpointError, match=path):
        r.plan(without(artifact, path))


def test_an_ensemble_without_a_tokenizer(model_py: str) -> None:
    """Text needs a tokenizer."""
    artifact = without(without(r.engine(), "tokenizer.json"), "tokenizer_config.json")

    with pytest.raises(CheckpointError, match="no tokenizer among"):
        r.plan(artifact, ensemble=True, model_py=model_py)


@pytest.mark.parametrize("content", [b"[" * 100_000, b"[]", b"{"])
def test_an_engine_whose_config_is_no_object_is_refused(content: bytes) -> None:
    """Nested too deeply, a list, cut off: exit code 3, by the file's name."""
    artifact = r.engine()
    files = {path: artifact.tree.read(path) for path in artifact.tree.files}
    broken = replace(artifact, tree=r.tree_of({**files, "engine/config.json": content}, name="artifact"))

    with pytest.raises(CheckpointError, match=r"engine/config\.json"):
        r.plan(broken)


def test_a_build_config_of_another_shape_says_nothing() -> None:
    """The batch is then what the artifact says of itself."""
    artifact = r.engine()
    files = {path: artifact.tree.read(path) for path in artifact.tree.files}
    config = json.dumps({**artifact.engine, "build_config": [8]}).encode()
    changed = replace(artifact, tree=r.tree_of({**files, "engine/config.json": config}, name="artifact"), batch_size=3)

    assert "max_batch_size: 3" in r.plan(changed).texts["tensorrt_llm/config.pbtxt"]


def test_every_kind_is_served_or_refused() -> None:
    """Each kind of artifact has a release that serves it, or a reason and a way on."""
    for kind in typing.get_args(Kind):
        assert (kind in TARGET.serves) != (kind in TARGET.refusals)


@pytest.mark.parametrize("kind", TARGET.refusals)
def test_kinds_that_are_refused(kind: Kind) -> None:
    """A kind that no release serves is refused by its name, with what to type instead."""
    with pytest.raises(UnsupportedError, match=KINDS[kind]) as caught:
        TARGET.choose(kind, None)

    assert "llmcompile" in caught.value.problems[0].hint


def test_equal_inputs_give_equal_texts(model_py: str) -> None:
    """Two plans of one artifact are the same to the byte."""
    first, second = (r.plan(r.engine(), ensemble=True, bls=True, model_py=model_py) for _ in range(2))

    assert first == second
