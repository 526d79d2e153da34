"""LMI packages: what each artifact becomes for each release, and a lint that sees every way it would not load."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcompile.errors import CheckpointError, LlmCompileError, OptionsError, UnsupportedError
from llmcompile.packaging.artifact import Artifact
from llmcompile.packaging.lmi import TARGET, LmiOptions
from llmcompile.packaging.lmi.keys import KEYS, is_credential, key_of, meant
from llmcompile.packaging.lmi.releases import RELEASES
from llmcompile.packaging.target import KINDS, Finding, Package, Request, Serving
from llmcompile.packaging.tree import from_archive, planned
from trees import encoded, tree_of

Files = Mapping[str, bytes]

TOKENIZER: Files = {"tokenizer_config.json": b"{}", "tokenizer.json": b"{}"}
NEURON = {"batch_size": 4, "sequence_length": 128, "num_cores": 2, "compiler_version": "2.16.372.0+4a9b2326"}


def artifact(kind: str, files: Files, model: Mapping[str, Any], **facts: Any) -> Artifact:
    """An artifact of two ranks in fp16, but for what is given."""
    standard: dict[str, Any] = {
        "path": Path("artifact"),
        "kind": kind,
        "manifest": None,
        "tree": tree_of({"config.json": encoded(model), **TOKENIZER, **files}),
        "sha256": {},
        "config": model,
        "model": "org/model",
        "commit": None,
        "tp": 2,
        "pp": 1,
        "dtype": "fp16",
        "task": "text-generation",
        "batch_size": 4,
        "sequence_length": 128,
        "input_length": None,
        "beam_width": 1,
        "compiler": None,
        "quantization": None,
        "engine": {},
    }
    return Artifact(**{**standard, **facts})


def ft(model_type: str = "gpt_neox", **facts: Any) -> Artifact:
    """FasterTransformer's files of a small GPT-NeoX."""
    section = "llama" if model_type == "llama" else "gptneox"
    files = {
        "2-gpu/config.ini": f"[{section}]\nhead_num = 4\nweight_data_type = fp16\n".encode(),
        "2-gpu/model.wte.bin": b"1234",
        "2-gpu/model.layers.0.attention.dense.weight.0.bin": b"12",
        "2-gpu/model.layers.0.attention.dense.weight.1.bin": b"34",
    }
    limits = {"batch_size": None, "sequence_length": None, "beam_width": None}
    return artifact("ft", files, {"model_type": model_type}, **{**limits, **facts})


def engine_config(version: str) -> dict[str, Any]:
    """The config.json of an engine for two ranks."""
    return {
        "version": version,
        "pretrained_config": {"mapping": {"tp_size": 2, "pp_size": 1}, "logits_dtype": "float32"},
        "build_config": {"max_batch_size": 4, "max_num_tokens": 512, "max_seq_len": 128, "max_input_len": 64},
    }


def engine(version: str = "0.12.0", **facts: Any) -> Artifact:
    """An engine of two ranks."""
    config = engine_config(version)
    files = {
        "engine/config.json": encoded(config),
        "engine/rank0.engine": b"zero",
        "engine/rank1.engine": b"one",
        "model.cache": b"times",
    }
    standard = {"compiler": version, "engine": config, "input_length": 64}
    return artifact("trtllm-engine", files, {"model_type": "llama"}, **{**standard, **facts})


_SPLIT = {"pytorch_model.bin/key_to_filename.json": encoded({"a": "p0.a", "b": "p1.b"})}
_SPLIT |= {"pytorch_model.bin/p0.a": b"a", "pytorch_model.bin/p1.b": b"b", "graphs/g.json": b"{}"}


def split(**facts: Any) -> Artifact:
    """A split Neuron checkpoint with a compiled graph."""
    files = {**_SPLIT, "compiled/0123456789abcdef0123.neff": b"neff"}
    standard = {"compiler": "2.16.372.0+4a9b2326", "dtype": "bf16"}
    return artifact("neuron-lmi-split", files, {"model_type": "llama"}, **{**standard, **facts})


def cache(**facts: Any) -> Artifact:
    """The same with a compile cache."""
    folder = "compiled/neuronxcc-2.16.372.0+4a9b2326/MODULE_1+2"
    files = {**_SPLIT, f"{folder}/model.neff": b"neff", f"{folder}/model.done": b""}
    standard = {"compiler": "2.16.372.0+4a9b2326", "dtype": "bf16"}
    return artifact("neuron-lmi-cache", files, {"model_type": "llama"}, **{**standard, **facts})


def sdk(**facts: Any) -> Artifact:
    """The old layout of optimum-neuron."""
    files = {f"checkpoint/{name}": content for name, content in _SPLIT.items() if name.startswith("pytorch")}
    files |= {"checkpoint/config.json": b"{}", "compiled/0123456789abcdef0123.neff": b"neff"}
    config = {"model_type": "llama", "neuron": {**NEURON, "auto_cast_type": "bf16", "task": "text-generation"}}
    standard = {"compiler": "2.14.227.0+2d4f85be", "dtype": "bf16"}
    return artifact("neuron-sdk-2.16", files, config, **{**standard, **facts})


def hugging_face(**facts: Any) -> Artifact:
    """A checkpoint as save_pretrained writes it."""
    limits = {"batch_size": None, "sequence_length": None, "beam_width": None, "tp": 1, "task": None}
    files = {"model.safetensors": b"weights"}
    return artifact("hf", files, {"model_type": "llama"}, **{**limits, **facts})


def packaged(
    of: Artifact, version: str, runtime: str | None = None, **options: Any
) -> tuple[Package, dict[str, bytes]]:
    """A package and its files, as they would be written."""
    package = TARGET.plan(of, LmiOptions(**options), Request(version, runtime))
    made = planned("package", package.texts, package.links, package.folders, of.tree)
    return package, {name: made.read(name) for name in made.files}


def properties(files: Files) -> list[str]:
    """The lines of serving.properties."""
    return files["serving.properties"].decode().splitlines()


def findings(files: Files, version: str | None, runtime: str | None = None) -> list[Finding]:
    """What the lint says."""
    return list(TARGET.lint(tree_of(files), Serving(version, runtime)))


def failures(files: Files, version: str | None, runtime: str | None = None) -> set[str]:
    """Rules that failed."""
    return {finding.rule for finding in findings(files, version, runtime) if finding.status == "failed"}


def status(files: Files, rule: str, version: str | None) -> set[str]:
    """What one rule says."""
    return {finding.status for finding in findings(files, version) if finding.rule == rule}


GOOD: Mapping[str, tuple[Callable[[], Artifact], str]] = {
    "ft": (ft, "0.24"),
    "repository": (engine, "0.32"),
    "flat": (lambda: engine("0.21.0rc1"), "0.33"),
    "split": (split, "0.34"),
    "cache": (cache, "0.34"),
    "sdk": (sdk, "0.29"),
    "hf": (hugging_face, "0.36"),
}


def good(name: str) -> tuple[dict[str, bytes], str]:
    """The files of a package that is right, with its record, and its release."""
    make, version = GOOD[name]
    of = make()
    _, files = packaged(of, version)
    record = {"package": {"target": "lmi", "version": version, "options": {"mount_path": "/opt/ml/model"}}}
    if of.kind.startswith("neuron"):
        made = {"options": {"batch_size": 4, "sequence_length": 128}, "neuron": {"ranks": 2, "compiler": of.compiler}}
        record["artifact"] = made  # type: ignore[assignment]
    return {**files, "llmcompile.json": encoded(record)}, version


# What is written


def test_an_engine_for_0_32_has_its_folder_and_names_it() -> None:
    """With config.pbtxt, the model's own files above the engine's, and MPI."""
    package, files = packaged(engine(), "0.32")

    assert set(files) == {
        "serving.properties",
        "tensorrt_llm/config.pbtxt",
        "tensorrt_llm/config.json",
        "tensorrt_llm/tokenizer.json",
        "tensorrt_llm/tokenizer_config.json",
        "tensorrt_llm/1/config.json",
        "tensorrt_llm/1/model.cache",
        "tensorrt_llm/1/rank0.engine",
        "tensorrt_llm/1/rank1.engine",
    }
    assert properties(files) == [
        "engine=MPI",
        "option.entryPoint=djl_python.tensorrt_llm",
        "option.max_rolling_batch_size=4",
        "option.model_loading_timeout=1800",
        "option.rolling_batch=trtllm",
        "option.tensor_parallel_degree=2",
    ]
    assert json.loads(files["tensorrt_llm/1/config.json"])["version"] == "0.12.0"
    assert json.loads(files["tensorrt_llm/config.json"]) == {"model_type": "llama"}
    assert package.runtime == "0.12.0"


def test_config_pbtxt_is_of_the_engine_in_the_container() -> None:
    """Streaming, with the batch of the package, at the mount path."""
    _, files = packaged(engine(), "0.32", mount_path="/models/m", max_batch_size=2)

    text = files["tensorrt_llm/config.pbtxt"].decode()

    assert 'string_value: "/models/m/tensorrt_llm/1"' in text
    assert "decoupled: true" in text
    assert "max_batch_size: 2\n" in text
    assert 'backend: "tensorrtllm"' in text


def test_an_engine_for_0_33_lies_flat_with_its_own_configuration() -> None:
    """The engine's config.json takes the place of the model's: by build_config the server knows it."""
    _, files = packaged(engine("0.21.0rc1"), "0.33")

    assert set(files) == {
        "serving.properties",
        "config.json",
        "model.cache",
        "rank0.engine",
        "rank1.engine",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert "build_config" in json.loads(files["config.json"])
    assert properties(files) == [
        "engine=Python",
        "option.async_mode=true",
        "option.entryPoint=djl_python.lmi_trtllm.trtllm_async_service",
        "option.max_rolling_batch_size=4",
        "option.model_loading_timeout=1800",
        "option.rolling_batch=disable",
        "option.tensor_parallel_degree=2",
    ]


def test_stages_of_a_flat_engine_are_said_to_java_and_to_tensorrt_llm() -> None:
    """One key counts devices, the other reaches LLM()."""
    config = engine_config("0.21.0rc1")
    config["pretrained_config"]["mapping"]["pp_size"] = 2
    files = {f"engine/rank{rank}.engine": b"" for rank in range(4)} | {"engine/config.json": encoded(config)}
    of = artifact("trtllm-engine", files, {}, pp=2, compiler="0.21.0rc1", engine=config)

    _, made = packaged(of, "0.33")

    assert "option.pipeline_parallel_degree=2" in properties(made)
    assert "option.pipeline_parallel_size=2" in properties(made)
    assert failures(made, "0.33") == set()


def test_fastertransformer_files_get_verify_without_a_newline() -> None:
    """The loader compares that line, unstripped, with itself, stripped."""
    package, files = packaged(ft(), "0.24")

    assert files["2-gpu/verify"] == b"/opt/ml/model-fp16-2-1"
    assert properties(files) == [
        "engine=FasterTransformer",
        "option.dtype=fp16",
        "option.entryPoint=djl_python.fastertransformer",
        "option.pipeline_parallel_degree=1",
        "option.tensor_parallel_degree=2",
    ]
    assert {"config.json", "tokenizer.json", "2-gpu/config.ini", "2-gpu/model.wte.bin"} <= files.keys()
    assert package.runtime is None


def test_gpt_j_and_llama_are_served_through_triton() -> None:
    """LMI's loader refuses to run them in Python alone, and asks Triton for engine=Python."""
    _, gptj = packaged(ft("gptj"), "0.23")
    _, llama = packaged(ft("llama"), "0.24")

    assert properties(gptj)[0] == "engine=Python"
    assert properties(llama)[0] == "engine=Python"


def test_a_split_checkpoint_leaves_its_graphs_behind() -> None:
    """The runtime takes a graph by the hash of its own HLO, and stops where it was promised one."""
    package, files = packaged(split(), "0.34")

    assert not any(name.startswith(("compiled", "graphs")) for name in files)
    assert properties(files) == [
        "engine=Python",
        "option.dtype=bf16",
        "option.entryPoint=djl_python.transformers_neuronx",
        "option.load_split_model=true",
        "option.max_rolling_batch_size=4",
        "option.model_loader=tnx",
        "option.model_loading_timeout=3600",
        "option.n_positions=128",
        "option.rolling_batch=tnx",
        "option.tensor_parallel_degree=2",
    ]
    assert "--load-compiled" in package.notes[0]


def test_compiled_graphs_are_taken_along_when_asked_for() -> None:
    """Their folder is an absolute path, as the handler resolves another in its own."""
    _, files = packaged(split(), "0.34", load_compiled=True)

    assert "compiled/0123456789abcdef0123.neff" in files
    assert "option.compiled_graph_path=/opt/ml/model/compiled" in properties(files)
    assert status(files, "compiled-graphs", "0.34") == {"note"}


def test_a_compile_cache_is_named_in_the_workers_environment() -> None:
    """compiled_graph_path would have the runtime look for <hash>.neff in that folder, and stop."""
    _, files = packaged(cache(), "0.34")

    assert "option.env=NEURON_COMPILE_CACHE_URL=/opt/ml/model/compiled" in properties(files)
    assert not any("compiled_graph_path" in line for line in properties(files))
    assert "compiled/neuronxcc-2.16.372.0+4a9b2326/MODULE_1+2/model.neff" in files


def test_old_neuron_releases_know_neither_loader_nor_tnx() -> None:
    """0.26 has one loader, and up to 0.27 the rolling batch is auto."""
    _, files = packaged(split(), "0.26")

    assert "option.rolling_batch=auto" in properties(files)
    assert not any("model_loader=" in line for line in properties(files))


def test_optimum_neurons_old_layout_goes_to_its_loader() -> None:
    """0.28 and 0.29 read checkpoint/, and compile where compiled/ is not there."""
    _, files = packaged(sdk(), "0.29")

    assert "checkpoint/pytorch_model.bin/p0.a" in files
    assert not any(name.startswith("compiled/") for name in files)
    assert not any("load_split_model" in line for line in properties(files))


def test_a_hugging_face_checkpoint_is_for_vllm() -> None:
    """All devices there are, unless a number is given."""
    _, files = packaged(hugging_face(), "0.36")
    _, asked = packaged(hugging_face(), "0.33", tensor_parallel_degree=4, max_batch_size=16)

    assert properties(files) == [
        "engine=Python",
        "option.async_mode=true",
        "option.entryPoint=djl_python.lmi_vllm.vllm_async_service",
        "option.rolling_batch=disable",
        "option.tensor_parallel_degree=max",
    ]
    assert "model.safetensors" in files
    assert "option.tensor_parallel_degree=4" in properties(asked)
    assert "option.max_rolling_batch_size=16" in properties(asked)


def test_code_of_the_models_own_is_not_run_unasked() -> None:
    """It is said how to."""
    package, files = packaged(hugging_face(config={"auto_map": {}}), "0.36")

    assert "option.trust_remote_code=true" in package.notes[0]
    assert not any("trust_remote_code" in line for line in properties(files))


def test_a_model_elsewhere_leaves_only_the_properties() -> None:
    """Weights beside a file that points away would be opened by nobody."""
    package, files = packaged(engine(), "0.32", model_id="s3://bucket/model/")

    assert set(files) == {"serving.properties"}
    assert "option.model_id=s3://bucket/model/" in properties(files)
    assert any("s3://bucket/model/" in note for note in package.notes)
    assert failures(files, "0.32") == set()


def test_an_archive_is_named_as_sagemaker_names_it() -> None:
    """Everything goes into model.tar.gz."""
    package, _ = packaged(hugging_face(), "0.36", tar=True)

    assert package.archive == "model.tar.gz"
    assert any("lint {output}/model.tar.gz" in command for command in package.next)


def test_further_entries_are_added_in_order() -> None:
    """They are checked for their spelling, and sorted with the others."""
    _, files = packaged(hugging_face(), "0.36", option=("option.max_model_len=4096", "job_queue_size=10"))

    assert properties(files)[:2] == ["engine=Python", "job_queue_size=10"]
    assert "option.max_model_len=4096" in properties(files)


def test_equal_artifacts_give_equal_packages() -> None:
    """Nothing of the time, the machine or the order of files is in it."""
    assert packaged(engine(), "0.32") == packaged(engine(), "0.32")


# Which release


def test_an_engine_is_packaged_for_the_release_that_has_its_version() -> None:
    """The newest whose image is known: 0.34 has 0.12.0 again, and no image."""
    assert TARGET.choose("trtllm-engine", None, engine("0.12.0")) == "0.32"
    assert TARGET.choose("trtllm-engine", None, engine("1.0.0")) == "0.36"
    assert TARGET.choose("trtllm-engine", None, engine("0.9.0")) == "0.28"
    assert TARGET.choose("trtllm-engine", None, engine("0.21.0rc1")) == "0.33"


def test_an_engine_that_no_release_has_goes_to_the_newest_that_starts() -> None:
    """With --runtime-version, that is the one a user's own image would be made of."""
    version = TARGET.choose("trtllm-engine", None, engine("1.2.1"))

    _, files = packaged(engine("1.2.1"), version, runtime="1.2.1")

    assert version == "0.33"
    assert failures(files, "0.33", "1.2.1") == set()


def test_a_neuron_export_is_packaged_for_the_release_of_its_compiler() -> None:
    """Or for the newest whose image is known."""
    assert TARGET.choose("neuron-lmi-split", None, split(compiler="2.14.227.0+2d4f85be")) == "0.29"
    assert TARGET.choose("neuron-lmi-split", None, split(compiler="2.16.372.0+4a9b2326")) == "0.34"
    assert TARGET.choose("neuron-lmi-split", None, split(compiler="2.21.1")) == "0.30"


def test_a_patch_release_is_its_release() -> None:
    """0.36.0-lmi27 is a build of 0.36."""
    assert TARGET.choose("hf", "0.36.0-lmi27") == "0.36"


# What is refused


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_is_served_or_refused_with_a_command(kind: Any) -> None:
    """Never both."""
    served = TARGET.serves.get(kind, ())

    assert (served == ()) == (kind in TARGET.refusals)
    assert all(release in TARGET.releases for release in served)
    if served == ():
        assert "llmcompile" in TARGET.refusals[kind][1]


REFUSED: Mapping[str, tuple[Callable[[], Artifact], str, dict[str, Any], type[LlmCompileError], str]] = {
    "engine of another version": (engine, "0.33", {}, UnsupportedError, "0.21.0rc1"),
    "handler that cannot start": (lambda: engine("1.0.0"), "0.36", {}, UnsupportedError, "TypeError"),
    "engine without build_config": (
        lambda: engine("0.21.0rc1", engine={"builder_config": {}}),
        "0.33",
        {},
        UnsupportedError,
        "build_config",
    ),
    "engine with a rank missing": (
        lambda: engine(tp=4),
        "0.32",
        {},
        CheckpointError,
        "2 of 4 ranks",
    ),
    "encoder and decoder": (
        lambda: artifact(
            "trtllm-engine",
            {"engine/encoder/config.json": b"{}", "engine/decoder/config.json": b"{}"},
            {},
            compiler="0.12.0",
        ),
        "0.32",
        {},
        UnsupportedError,
        "engine/decoder",
    ),
    "stages before 0.29": (lambda: engine("0.9.0", pp=2), "0.28", {}, UnsupportedError, "pipeline"),
    "no tokenizer": (
        lambda: replace(engine(), tree=tree_of({"engine/config.json": b"{}"})),
        "0.32",
        {},
        CheckpointError,
        "tokenizer_config.json",
    ),
    "larger batch": (engine, "0.32", {"max_batch_size": 8}, OptionsError, "at most 4"),
    "another degree": (engine, "0.32", {"tensor_parallel_degree": 4}, OptionsError, "2, as it was built"),
    "relative model_id": (engine, "0.32", {"model_id": "model"}, OptionsError, "hub"),
    "relative mount path": (engine, "0.32", {"mount_path": "model/"}, OptionsError, "absolute"),
    "smaller batch of a graph": (split, "0.34", {"max_batch_size": 2}, OptionsError, "4"),
    "compiled graphs of an engine": (engine, "0.32", {"load_compiled": True}, OptionsError, "lmi-split"),
    "compiled graphs of another compiler": (
        lambda: split(compiler="2.21.1"),
        "0.34",
        {"load_compiled": True},
        UnsupportedError,
        "2.16.372.0",
    ),
    "an encoder for Neuron": (lambda: split(task="fill-mask"), "0.34", {}, UnsupportedError, "fill-mask"),
    "a decoder transformers-neuronx lacks": (
        lambda: split(config={"model_type": "phi"}),
        "0.34",
        {},
        UnsupportedError,
        "phi",
    ),
    "BERT for FasterTransformer": (lambda: ft("bert"), "0.24", {}, UnsupportedError, "bert"),
    "GPT-J before Triton": (lambda: ft("gptj"), "0.22", {}, UnsupportedError, "0.24, 0.23"),
    "stages of FasterTransformer": (lambda: ft(pp=2), "0.24", {}, UnsupportedError, "--pp 1"),
    "bf16 files of FasterTransformer": (lambda: ft(dtype="bf16"), "0.24", {}, UnsupportedError, "fp16 or fp32"),
    "misspelled entry": (hugging_face, "0.36", {"option": ("option.max_modellen=1",)}, OptionsError, "max_model_len"),
    "entry without a sign": (hugging_face, "0.36", {"option": ("job_queue_size",)}, OptionsError, "KEY=VALUE"),
    "entry that is decided": (
        hugging_face,
        "0.36",
        {"option": ("option.tensor_parallel_degree=2",)},
        OptionsError,
        "decided already",
    ),
    "entry with a flag of its own": (hugging_face, "0.36", {"option": ("option.model_id=x",)}, OptionsError, "decided"),
    "a token": (hugging_face, "0.36", {"option": ("option.hf_token=abc",)}, OptionsError, "credential"),
    "a token by its form": (
        hugging_face,
        "0.36",
        {"option": (f"option.env=X=hf_{'a' * 30}",)},
        OptionsError,
        "credential",
    ),
    "entry Java would read otherwise": (
        hugging_face,
        "0.36",
        {"option": ("option.chat_template=a\\b",)},
        OptionsError,
        "backslash",
    ),
}


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_what_would_not_load_is_refused_with_what_to_type(case: str) -> None:
    """With the right class, what was found, and a hint."""
    make, version, options, kind, word = REFUSED[case]

    with pytest.raises(kind) as caught:
        packaged(make(), version, **options)

    said = " ".join(f"{problem} {problem.hint}" for problem in caught.value.problems)
    assert word in said
    assert all(problem.hint != "" for problem in caught.value.problems)


def test_llama_with_shared_heads_is_refused() -> None:
    """The FasterTransformer in the image would read every rank's heads at the wrong place."""
    of = ft("llama")
    files = {
        "2-gpu/config.ini": b"[llama]\nhead_num = 4\nkv_head_num = 2\n",
        "2-gpu/a.0.bin": b"",
        "2-gpu/a.1.bin": b"",
    }
    grouped = replace(of, tree=tree_of({"config.json": b"{}", **TOKENIZER, **files}))

    with pytest.raises(UnsupportedError, match="kv_head_num = 2"):
        packaged(grouped, "0.24")


def test_half_a_t5_is_refused() -> None:
    """LMI's loader reads the section of the decoder."""
    of = ft("t5")
    files = {"2-gpu/config.ini": b"[encoder]\nnum_layers = 2\nweight_data_type = fp16\n[decoder]\n"}
    half = replace(of, tree=tree_of({"config.json": b"{}", **TOKENIZER, **files}))

    with pytest.raises(UnsupportedError, match="an encoder alone"):
        packaged(half, "0.24")


def test_a_configuration_that_cannot_be_read_is_the_artifacts_fault() -> None:
    """It is named."""
    broken = replace(ft(), tree=tree_of({"config.json": b"{}", **TOKENIZER, "2-gpu/config.ini": b"x"}))

    with pytest.raises(CheckpointError, match=r"config\.ini"):
        packaged(broken, "0.24")


def test_fp32_files_may_be_computed_with_in_bf16() -> None:
    """By an entry of one's own; not GPT-NeoX's."""
    section = {"2-gpu/config.ini": b"[gpt]\nweight_data_type = fp32\n", "2-gpu/a.0.bin": b"", "2-gpu/a.1.bin": b""}
    files = {"config.json": b'{"model_type": "opt"}', **TOKENIZER, **section}
    of = replace(ft("opt", dtype="fp32"), tree=tree_of(files))

    _, made = packaged(of, "0.24", option=("option.dtype=bf16",))
    wrong = {**made, "config.json": b'{"model_type": "gpt_neox"}'}

    assert failures(made, "0.24") == set()
    assert failures(wrong, "0.24") == {"dtype"}


def test_a_handler_of_ones_own_makes_0_36_serve_engines() -> None:
    """The layout is the flat one; only the shipped handler is at fault."""
    _, files = packaged(engine("1.0.0"), "0.36", option=("option.entryPoint=my_handlers.trtllm",))

    assert "rank1.engine" in files
    assert "option.entryPoint=my_handlers.trtllm" in properties(files)
    assert failures(files, "0.36") == set()


# The lint


@pytest.mark.parametrize("name", sorted(GOOD))
def test_a_package_lints_clean(name: str) -> None:
    """Nothing failed, and every rule has something to say."""
    files, version = good(name)

    said = findings(files, version)

    assert [finding for finding in said if finding.status == "failed"] == []
    assert {finding.rule for finding in said} == TARGET.rules.keys()
    assert all(finding.found != "" and finding.subject != "" for finding in said)


@pytest.mark.parametrize("name", sorted(GOOD))
def test_the_record_says_which_release_it_is_for(name: str) -> None:
    """So that nobody has to repeat it."""
    files, _ = good(name)

    asking = [finding for finding in findings(files, None) if "--target-version" in finding.hint]

    assert asking == []


def test_without_a_release_rules_that_need_one_are_skipped() -> None:
    """And say what to add."""
    files, _ = good("repository")
    del files["llmcompile.json"]

    said = {finding.rule: finding for finding in findings(files, None)}

    assert {said[rule].status for rule in ("engine", "entry-point", "layout", "runtime-version")} == {"skipped"}
    assert "--target-version" in said["layout"].hint


Breaker = Callable[[dict[str, bytes]], dict[str, bytes]]


def _without(path: str) -> Breaker:
    return lambda files: {name: content for name, content in files.items() if name != path}


def _with(path: str, content: bytes) -> Breaker:
    return lambda files: {**files, path: content}


def _replacing(path: str, old: str, new: str) -> Breaker:
    def breaker(files: dict[str, bytes]) -> dict[str, bytes]:
        assert old.encode() in files[path]
        return {**files, path: files[path].replace(old.encode(), new.encode())}

    return breaker


def _line(text: str) -> Breaker:
    return lambda files: {**files, "serving.properties": files["serving.properties"] + text.encode() + b"\n"}


def _set(key: str, value: str) -> Breaker:
    def breaker(files: dict[str, bytes]) -> dict[str, bytes]:
        lines = [line for line in properties(files) if not line.startswith(f"{key}=")]
        assert len(lines) < len(properties(files))
        return {**files, "serving.properties": "\n".join([*lines, f"{key}={value}", ""]).encode()}

    return breaker


def _below(folder: str) -> Breaker:
    return lambda files: {f"{folder}/{name}": content for name, content in files.items()}


def _removed(key: str) -> Breaker:
    def breaker(files: dict[str, bytes]) -> dict[str, bytes]:
        lines = [line for line in properties(files) if not line.startswith(f"{key}=")]
        return {**files, "serving.properties": "\n".join([*lines, ""]).encode()}

    return breaker


CONFIG = "tensorrt_llm/config.pbtxt"
BROKEN: Mapping[str, tuple[str, Breaker]] = {
    "archive-root": ("hf", _below("model")),
    "properties-dialect": ("hf", _line("option.task : text-generation")),
    "known-keys": ("hf", _line("option.max_roling_batch_size=4")),
    "credentials": ("hf", _line("option.env=HF_TOKEN=secret")),
    "engine": ("hf", _set("engine", "DeepSpeed")),
    "entry-point": ("hf", _set("option.entryPoint", "djl_python.deepspeed")),
    "handler-mode": ("repository", _set("engine", "Python")),
    "dynamic-batch": ("split", _line("batch_size=8")),
    "model-id": ("hf", _line("option.model_id=./model")),
    "s3url": ("ft", lambda files: _line("option.s3url=s3://b/p/")(_line("option.model_id=/opt/ml/model")(files))),
    "environment": ("repository", _with(".env", b"OPTION_TENSOR_PARALLEL_DEGREE=8\n")),
    "layout": ("repository", _without(CONFIG)),
    "build-config": ("flat", _replacing("config.json", '"build_config"', '"built"')),
    "model-files": ("split", _without("tokenizer_config.json")),
    "rank-files": ("repository", _without("tensorrt_llm/1/rank1.engine")),
    "split-weights": ("split", _without("pytorch_model.bin/p1.b")),
    "tensor-parallel": ("repository", _set("option.tensor_parallel_degree", "4")),
    "batch-size": ("flat", _set("option.max_rolling_batch_size", "8")),
    "sequence-length": ("split", _set("option.n_positions", "256")),
    "dtype": ("split", _set("option.dtype", "bfloat16")),
    "gpt-model-path": ("repository", _replacing(CONFIG, "/opt/ml/model/tensorrt_llm/1", "/models/tensorrt_llm/1")),
    "decoupled": ("repository", _replacing(CONFIG, "decoupled: true", "decoupled: false")),
    "verify-file": ("ft", _with("2-gpu/verify", b"/opt/ml/model-fp16-2-1\n")),
    "runtime-version": ("repository", _replacing("tensorrt_llm/1/config.json", "0.12.0", "0.16.0")),
    "compiled-graphs": ("cache", _removed("option.env")),
}


def test_every_rule_has_a_way_to_fail() -> None:
    """A rule never seen failing is not a rule."""
    assert BROKEN.keys() == TARGET.rules.keys()


@pytest.mark.parametrize("rule", sorted(BROKEN))
def test_breaking_a_package_in_one_way_fails_one_rule(rule: str) -> None:
    """That one, with what is expected and what to change."""
    name, breaker = BROKEN[rule]
    files, version = good(name)

    said = [finding for finding in findings(breaker(files), version) if finding.status == "failed"]

    assert {finding.rule for finding in said} == {rule}
    assert all(finding.expected != "" and finding.hint != "" for finding in said)


FURTHER: Mapping[str, tuple[str, str, Breaker]] = {
    "a key with dashes": ("known-keys", "hf", _line("option.max-model-len=4")),
    "a key of the handler without its prefix": ("known-keys", "hf", _line("max_rolling_batch_size=4")),
    "a key in another case": ("known-keys", "hf", _line("option.entrypoint=model.py")),
    "a handler that cannot start": ("entry-point", "flat", _set("option.entryPoint", "djl_python.tensorrt_llm")),
    "a handler that is not there": ("entry-point", "hf", _set("option.entryPoint", "model.py")),
    "a synchronous vLLM": ("handler-mode", "hf", _removed("option.async_mode")),
    "a rolling batch beside it": ("handler-mode", "hf", _set("option.rolling_batch", "auto")),
    "weights that model_id hides": ("model-id", "hf", _line("option.model_id=s3://bucket/model/")),
    "a model of a web site": ("model-id", "hf", _line("option.model_id=https://host/model")),
    "an alias in a JSON environment": (
        "environment",
        "repository",
        _with("env.json", b'{"TENSOR_PARALLEL_DEGREE": "max", "HF_TOKEN": "x"}'),
    ),
    "no degree": ("tensor-parallel", "split", _removed("option.tensor_parallel_degree")),
    "all devices for an engine": ("tensor-parallel", "flat", _set("option.tensor_parallel_degree", "max")),
    "the server's own batch": ("batch-size", "repository", _removed("option.max_rolling_batch_size")),
    "a smaller batch of a graph": ("batch-size", "split", _set("option.max_rolling_batch_size", "2")),
    "Triton's batch": ("batch-size", "repository", _replacing(CONFIG, "max_batch_size: 4", "max_batch_size: 8")),
    "more tokens than built": ("sequence-length", "flat", _line("option.max_num_tokens=16384")),
    "no positions": ("sequence-length", "split", _removed("option.n_positions")),
    "FasterTransformer's default type": ("dtype", "ft", _removed("option.dtype")),
    "another type than compiled": ("dtype", "sdk", _set("option.dtype", "fp16")),
    "a placeholder left over": (
        "gpt-model-path",
        "repository",
        _replacing(CONFIG, '"inflight_fused_batching"', "${x}"),
    ),
    "an empty verify": ("verify-file", "ft", _with("2-gpu/verify", b"")),
    "a verify of another split": ("verify-file", "ft", _with("2-gpu/verify", b"/opt/ml/model-fp16-4-1")),
    "no verify": ("verify-file", "ft", _without("2-gpu/verify")),
    "a torn tensor": ("rank-files", "ft", _without("2-gpu/model.layers.0.attention.dense.weight.1.bin")),
    "no table": ("split-weights", "split", _with("pytorch_model.bin/key_to_filename.json", b"[")),
    "no weights": ("model-files", "hf", _without("model.safetensors")),
    "no tokenizer for an engine": ("model-files", "repository", _without("tensorrt_llm/tokenizer_config.json")),
    "a relative folder of graphs": (
        "compiled-graphs",
        "split",
        lambda files: _line("option.compiled_graph_path=compiled")(_with("compiled/a.neff", b"")(files)),
    ),
    "a cache given as graphs": ("compiled-graphs", "cache", _line("option.compiled_graph_path=/opt/ml/model/compiled")),
    "a template as s3url": ("s3url", "ft", _line("option.s3url={{ s3url }}")),
    "a template as another value": ("properties-dialect", "hf", _line("option.max_model_len={{max_model_len}}")),
    "a value to be filled in": ("properties-dialect", "hf", _line("option.revision=<revision>")),
    "a template's statement": ("properties-dialect", "hf", _line("option.revision={% if x %}main{% endif %}")),
    "s3url in a newer release": (
        "s3url",
        "hf",
        lambda files: {**_line("option.s3url=s3://b/p/")(files)},
    ),
}


def test_entries_that_cannot_be_read_are_not_called_right() -> None:
    """A token behind an escape that Java refuses: the rules that look for it say that they could not."""
    files, version = good("hf")
    broken = _line("option.x=\\u12\nHF_TOKEN=hf_aaaaaaaaaaaaaaaaaaaaaaaa")(files)

    assert failures(broken, version) == {"properties-dialect"}
    assert set().union(*(status(broken, rule, version) for rule in ("credentials", "known-keys", "s3url"))) == {
        "skipped"
    }


def test_of_very_many_unknown_keys_the_most_are_counted() -> None:
    """Each comparison with all known ones takes a millisecond, and each finding a line."""
    files, version = good("hf")
    many = _line("".join(f"option.of_my_own_{number}=1\n" for number in range(10_000)))(files)
    said = [finding for finding in findings(many, version) if finding.rule == "known-keys"]

    assert len(said) == 101
    assert said[-1].found == "9900 further keys that are not known here"


def test_a_degree_beyond_any_machine_is_a_finding() -> None:
    """It is compared with the ranks that there are, and no list of it is made."""
    files, version = good("flat")
    engine_of = json.loads(files["config.json"])
    engine_of["pretrained_config"]["mapping"]["tp_size"] = 1 << 60

    assert "rank-files" in failures({**files, "config.json": encoded(engine_of)}, version)


@pytest.mark.parametrize(
    "line",
    [
        "option.chat_template={% for m in messages %}{{ m.content }}{% endfor %}",
        'option.hf_overrides={"a": {"b": {}}}',
        "option.decoding_strategy=</s> and <eos>",
    ],
)
def test_what_only_looks_like_a_template_is_a_value(line: str) -> None:
    """A chat template is one for the server, JSON ends in two braces, and tokens have angle brackets."""
    files, version = good("hf")

    assert failures(_line(line)(files), version) == set()


@pytest.mark.parametrize("place", ["{{s3url}}", "s3://${BUCKET}/model/", "s3://<your bucket>/model/", "<model>"])
def test_a_place_that_was_not_filled_in_fails(place: str) -> None:
    """LMI would take each for the id of a model on the hub, or for a bucket's name."""
    files = {"serving.properties": good("hf")[0]["serving.properties"]}

    assert status(_line(f"option.model_id={place}")(files), "model-id", "0.36") == {"failed"}


def test_what_was_not_filled_in_is_named_with_its_key_alone() -> None:
    """The rest of the value may be a credential."""
    files, version = good("hf")
    broken = _line("option.env=A=hf_aaaaaaaaaaaaaaaaaaaaaaaa,B=${B}")(files)
    said = [one for one in findings(broken, version) if (one.rule, one.status) == ("properties-dialect", "failed")]

    assert [one.subject for one in said] == ["serving.properties: option.env"]
    assert "'${B}'" in said[0].found
    assert "hf_a" not in said[0].found


def _archived(path: Path, mode: Literal["w", "w:gz"], *further: str) -> set[tuple[str, str]]:
    """What archive-root says of a good package in an archive, with further members: status and subject."""
    files, version = good("hf")
    with tarfile.open(path, mode) as made:
        for name, content in [*files.items(), *((name, files["serving.properties"]) for name in further)]:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            made.addfile(member, io.BytesIO(content))
    said = TARGET.lint(from_archive(path), Serving(version, None))
    return {(one.status, one.subject) for one in said if one.rule == "archive-root"}


def test_a_good_archive_is_good(tmp_path: Path) -> None:
    """Compressed, with its members at the root."""
    assert _archived(tmp_path / "model.tar.gz", "w:gz") == {("ok", "serving.properties")}


def test_an_archive_that_is_not_compressed_fails_by_its_name(tmp_path: Path) -> None:
    """SageMaker unpacks model.tar.gz with gzip; one that is called model.tar says what it is."""
    assert _archived(tmp_path / "model.tar.gz", "w") == {("failed", "model.tar.gz")}
    assert _archived(tmp_path / "model.tar", "w") == {("ok", "serving.properties")}


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x", "a/.."])
def test_members_that_lead_out_of_an_archive_fail(tmp_path: Path, name: str) -> None:
    """What unpacks it refuses them, or writes over files that are not the package's."""
    assert _archived(tmp_path / "model.tar.gz", "w:gz", name) == {("failed", "model.tar.gz")}


@pytest.mark.parametrize("name", ["serving.properties", "./serving.properties", "model/serving.properties"])
def test_two_files_of_properties_in_an_archive_fail(tmp_path: Path, name: str) -> None:
    """One of them is never read."""
    assert _archived(tmp_path / "model.tar.gz", "w:gz", name) == {("failed", "serving.properties")}


@pytest.mark.parametrize("case", sorted(FURTHER))
def test_rules_fail_in_further_ways(case: str) -> None:
    """The rule named is among those that failed."""
    rule, name, breaker = FURTHER[case]
    files, version = good(name)

    assert rule in failures(breaker(files), version)


@pytest.mark.parametrize(
    ("name", "other", "rules"),
    [
        ("repository", "0.33", {"layout", "entry-point", "runtime-version"}),
        ("flat", "0.32", {"layout", "entry-point", "runtime-version"}),
        ("ft", "0.30", {"layout", "engine", "entry-point"}),
        ("split", "0.36", {"layout", "entry-point"}),
        ("hf", "0.32", {"entry-point"}),
    ],
)
def test_a_package_of_one_release_fails_in_another(name: str, other: str, rules: set[str]) -> None:
    """By the rules that a release decides."""
    files, _ = good(name)

    assert failures(files, other) == rules


def test_a_mount_path_can_be_said() -> None:
    """Instead of the record's."""
    files, version = good("repository")

    said = TARGET.lint(tree_of(files), Serving(version, None, "/somewhere"))

    assert {finding.rule for finding in said if finding.status == "failed"} == {"gpt-model-path"}


def test_another_compilers_cache_is_a_note() -> None:
    """It is not looked into; the server compiles."""
    files, _ = good("cache")

    said = {finding.rule: finding.status for finding in findings(files, "0.31")}

    assert said["compiled-graphs"] == "note"
    assert said["runtime-version"] == "note"


def test_what_is_no_package_is_not_recognised() -> None:
    """A folder without serving.properties is somebody else's."""
    assert not TARGET.detect(tree_of({"config.json": b"{}"}))
    assert TARGET.detect(tree_of({"model/serving.properties": b""}))


_NAMES = st.sampled_from(
    [
        "serving.properties",
        "config.json",
        "tensorrt_llm/config.pbtxt",
        "tensorrt_llm/1/config.json",
        "tensorrt_llm/1/rank0.engine",
        "rank0.engine",
        "2-gpu/verify",
        "2-gpu/config.ini",
        "2-gpu/a.0.bin",
        "pytorch_model.bin/key_to_filename.json",
        "compiled/neuronxcc-1/model.neff",
        ".env",
        "env.json",
        "llmcompile.json",
        "a/serving.properties",
    ]
)
_CONTENTS = st.one_of(
    st.binary(max_size=60),
    st.sampled_from(
        [
            b'{"neuron": 1, "build_config": [], "package": {"version": 3}, "pretrained_config": {"mapping": 0}}',
            b"engine=FasterTransformer\noption.dtype=fp64\noption.tensor_parallel_degree=99999999999\n",
            b"option.entryPoint=djl_python.transformers_neuronx\noption.env=a,b=c\n",
            b"[a]\n[a]\nx\n",
            b"[" * 5000,
            b"{" * 5000,
            b"\\u00zz=1",
            "option.model_id=\u00e9".encode("latin-1"),
        ]
    ),
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(_NAMES, _CONTENTS, max_size=8), st.sampled_from([None, "0.36", "0.33", "0.32", "0.24", "x"]))
def test_whatever_is_in_a_folder_every_rule_answers(files: dict[str, bytes], version: str | None) -> None:
    """Never a traceback."""
    said = findings(files, version)

    assert {finding.rule for finding in said} == TARGET.rules.keys()


# What is written about it


def test_the_page_has_the_versions_of_the_table() -> None:
    """docs/formats/lmi.md says of each release what `releases.py` says."""
    page = Path(__file__).parents[2].joinpath("docs", "formats", "lmi.md").read_text()
    rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in page.splitlines() if line.startswith("| 0.")]
    versions = {row[0]: row for row in rows}
    row = versions.pop("0.23, 0.22")
    versions |= {"0.23": row, "0.22": row}

    assert versions.keys() == RELEASES.keys()
    for name, release in RELEASES.items():
        _, layout, engines, neuron, vllm, files = versions[name]
        assert layout == {"flat": "flat", "repository": "in a folder", None: ""}[release.engine_layout]
        assert engines.startswith(_shown(release.tensorrt_llm, release.engine_image))
        assert neuron == _shown(release.neuronx_cc, release.neuron_image)
        assert (vllm == "") == (release.vllm is None)
        assert (files == "yes") == ("FasterTransformer" in release.engines)
        assert release.commit in page


def _shown(version: str | None, image: str | None) -> str:
    return "" if version is None else version if image is not None else f"*{version}*"


def test_the_page_names_every_rule() -> None:
    """In its table."""
    page = Path(__file__).parents[2].joinpath("docs", "formats", "lmi.md").read_text()
    named = page[page.index("## The lint") : page.index("## Not verified")]

    assert [rule for rule in TARGET.rules if rule not in named] == []


# Keys


def test_keys_and_their_variables_are_told_apart() -> None:
    """As LMI lowers and renames them."""
    assert key_of("OPTION_ENTRYPOINT") == "option.entryPoint"
    assert key_of("OPTION_ENGINE") == "engine"
    assert key_of("OPTION_DTYPE") == "option.dtype"
    assert key_of("MAX_BATCH_SIZE") == "option.max_rolling_batch_size"
    assert key_of("HF_TOKEN") is None


def test_keys_that_speak_of_tokens_are_no_credentials() -> None:
    """max_num_tokens is a number, tokenizer a name."""
    assert [key for key in KEYS if is_credential(key, "16")] == []
    assert not is_credential("option.env", "NEURON_COMPILE_CACHE_URL=/opt/ml/model/compiled,X=1")
    assert not is_credential("option.max_batched_tokens", "2048")
    assert not is_credential("option.eos_token", "</s>")
    assert is_credential("option.env", "A=1,HF_TOKEN=x")
    assert is_credential("option.aws_secret_access_key", "x")
    assert is_credential("option.model_id", "https://user:password@host/model")


def test_a_credential_is_not_repeated() -> None:
    """Neither by the lint nor by the error."""
    secret = f"hf_{'q' * 30}"
    files, version = good("hf")
    with pytest.raises(OptionsError) as caught:
        packaged(hugging_face(), "0.36", option=(f"option.env=X={secret}",))

    said = [str(finding) for finding in findings(_line(f"option.env=X={secret}")(files), version)]

    assert secret not in "".join(said)
    assert secret not in str(caught.value)


def test_a_known_key_is_never_taken_for_another() -> None:
    """Nor is a key that resembles none."""
    assert [key for key in KEYS if meant(key) is not None] == []
    assert meant("option.num_scheduler_steps") is None
    assert meant("option.max_rolling_batchsize") == "option.max_rolling_batch_size"


def test_every_release_that_can_be_asked_for_is_known() -> None:
    """In the same order, newest first."""
    assert TARGET.releases == tuple(RELEASES)
