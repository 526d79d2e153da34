"""The rules of a model repository for Triton: each fails for what it is about, and for nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import triton_repositories as r
from llmcompile.errors import LlmCompileError
from llmcompile.packaging.target import Serving
from llmcompile.packaging.triton import TARGET

ENGINE = "tensorrt_llm/config.pbtxt"
ENSEMBLE = "ensemble/config.pbtxt"
FT = "fastertransformer/config.pbtxt"
YAML = "tensorrt_llm/1/model.yaml"
ALIASES = b"a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + b"".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n".encode() for n in range(1, 9)
)
"""A few hundred bytes that are 387 million words once the aliases are followed."""
Broken = tuple[str, Callable[[r.Files], None]]

BROKEN: dict[str, Broken] = {
    "config": ("engine", r.edit(ENGINE, "max_batch_size", "max_bach_size")),
    "placeholder": ("engine", r.edit(ENGINE, '"inflight_fused_batching"', '"${batching_strategy}"')),
    "name": ("engine", r.edit(ENGINE, 'name: "tensorrt_llm"', 'name: "llm"')),
    "version-folder": ("ensemble", lambda files: None),
    "instance-group": ("engine", r.edit(ENGINE, "KIND_CPU", "KIND_GPU")),
    "backend": ("ensemble", r.edit(ENSEMBLE, 'platform: "ensemble"', 'platform: "python"')),
    "gpt-model-type": ("engine", r.edit(ENGINE, "inflight_fused_batching", "inflight")),
    "engine-path": ("engine", r.edit(ENGINE, "/models/tensorrt_llm/1", "/models/tensorrt_llm/2")),
    "mount-path": ("ensemble", r.edit(ENGINE, "/models/tensorrt_llm/1", "/opt/ml/model/tensorrt_llm/1")),
    "rank-files": ("engine", r.remove("tensorrt_llm/1/rank1.engine")),
    "batch": ("engine", r.edit(ENGINE, "max_batch_size: 8", "max_batch_size: 9")),
    "beam": ("engine", r.parameter(ENGINE, "max_beam_width", "2", "3")),
    "logits": ("engine", r.typed(ENGINE, "context_logits", "TYPE_FP32", "TYPE_FP16")),
    "tensors": ("engine", r.typed(ENGINE, "input_lengths", "TYPE_INT32", "TYPE_INT64")),
    "keys": ("newest", r.edit(ENGINE, '"guided_decoding_backend"', '"guided_decoding"')),
    "parameters": ("unpaged", r.parameter(ENGINE, "enable_kv_cache_reuse", "false", "true")),
    "decoupled": ("bls", r.edit("tensorrt_llm_bls/config.pbtxt", "decoupled: false", "decoupled: true")),
    "gpus": ("gpus", r.edit(ENGINE, "0,1;2,3", "0,1;2,1")),
    "ensemble": ("ensemble", r.edit(ENSEMBLE, 'key: "QUERY"', 'key: "QUESTION"')),
    "model-py": ("ensemble", lambda files: files.update({"postprocessing/1/model.py": b""})),
    "tokenizer": ("ensemble", r.edit("postprocessing/config.pbtxt", "/1/tokenizer", "/1/tokens")),
    "runtime": ("engine", r.edit("tensorrt_llm/1/config.json", '"0.17.0"', '"0.16.0"')),
    "fastertransformer": ("ft", r.parameter(FT, "tensor_para_size", "2", "4")),
    "model-yaml": ("llmapi", r.edit(YAML, "tensor_parallel_size: 2", "tensor_parallel_size: two")),
}
MORE: dict[str, tuple[str, str, Callable[[r.Files], None]]] = {
    "no configuration": ("config", "engine", r.remove(ENGINE)),
    "two schedulers": (
        "config",
        "engine",
        r.edit(ENGINE, "dynamic_batching {", "ensemble_scheduling { }\ndynamic_batching {"),
    ),
    "an unfilled number": ("config", "engine", r.edit(ENGINE, "max_batch_size: 8", "max_batch_size: ${size}")),
    "no path": ("engine-path", "engine", r.edit(ENGINE, '"gpt_model_path"', '"model_path"')),
    "no config of the engine": ("engine-path", "engine", r.edit("tensorrt_llm/1/config.json", "{", "[")),
    "an empty rank": ("rank-files", "engine", lambda files: files.update({"tensorrt_llm/1/rank0.engine": b""})),
    "no batch": ("batch", "engine", r.edit(ENGINE, "max_batch_size: 8", "max_batch_size: 0")),
    "a preferred batch too large": (
        "batch",
        "engine",
        r.edit(ENGINE, "preferred_batch_size: [8]", "preferred_batch_size: [16]"),
    ),
    "an ensemble with more than its steps": (
        "batch",
        "ensemble",
        r.edit("preprocessing/config.pbtxt", "max_batch_size: 8", "max_batch_size: 4"),
    ),
    "no group": ("instance-group", "engine", r.edit(ENGINE, "{ kind: KIND_CPU count: 1 }", "")),
    "GPUs of a group on the CPU": ("instance-group", "engine", r.edit(ENGINE, "count: 1", "count: 1 gpus: [0]")),
    "a tensor with two makers": (
        "ensemble",
        "ensemble",
        r.edit(ENSEMBLE, 'key: "INPUT_ID" value: "_INPUT_ID"', 'key: "INPUT_ID" value: "_STOP_WORDS_IDS"'),
    ),
    "a cache of streams": (
        "decoupled",
        "engine",
        r.edit(ENGINE, "decoupled: false }", "decoupled: true } response_cache { enable: true }"),
    ),
    "no backend": ("backend", "engine", r.edit(ENGINE, 'backend: "tensorrtllm"', "")),
    "no tensor": ("tensors", "engine", r.edit(ENGINE, '"request_output_len"', '"max_tokens"')),
    "a policy that there is not": ("parameters", "policy", r.edit(ENGINE, '"max_utilization"', '"MAX_UTILIZATION"')),
    "a fraction above one": ("parameters", "policy", r.edit(ENGINE, '"0.8"', '"80"')),
    "no share for the encoder": ("parameters", "two", r.edit(ENGINE, "cross_kv_cache_fraction", "cross_fraction")),
    "instances without GPUs": ("gpus", "llmapi-gpus", r.edit(ENGINE, '"gpu_device_ids"', '"gpus"')),
    "too few GPUs": ("gpus", "gpus", r.edit(ENGINE, "0,1;2,3", "0,1;2")),
    "GPUs that are words": ("gpus", "gpus", r.edit(ENGINE, "0,1;2,3", "0,1;a,b")),
    "a step that is not there": (
        "ensemble",
        "ensemble",
        r.edit(ENSEMBLE, 'model_name: "postprocessing"', 'model_name: "detokenizer"'),
    ),
    "a tensor of another type": ("ensemble", "ensemble", r.typed(ENSEMBLE, "max_tokens", "TYPE_INT32", "TYPE_INT64")),
    "a tensor of another shape": (
        "ensemble",
        "ensemble",
        r.edit(
            ENSEMBLE,
            'name: "bad_words" data_type: TYPE_STRING dims: [-1]',
            'name: "bad_words" data_type: TYPE_STRING dims: [1, 1]',
        ),
    ),
    "a tensor from nowhere": (
        "ensemble",
        "ensemble",
        r.edit(ENSEMBLE, '"INPUT_ID" value: "_INPUT_ID"', '"INPUT_ID" value: "_IDS"'),
    ),
    "an output that nobody makes": ("ensemble", "ensemble", r.edit(ENSEMBLE, 'value: "text_output"', 'value: "text"')),
    "no key for a picture": (
        "keys",
        "ensemble",
        r.edit("preprocessing/config.pbtxt", '"visual_model_path"', '"visual"'),
    ),
    "no tokenizer": ("tokenizer", "ensemble", r.edit("preprocessing/config.pbtxt", '"tokenizer_dir"', '"tokenizer"')),
    "no library of BLS": ("model-py", "bls", r.remove("tensorrt_llm_bls/1/lib/decode.py")),
    "no helpers": ("model-py", "llmapi", r.remove("tensorrt_llm/1/helpers.py")),
    "weights that are not there": ("fastertransformer", "ft", r.edit(FT, "/1/2-gpu/", "/1/4-gpu/")),
    "a type of FasterTransformer that there is not": ("fastertransformer", "ft", r.edit(FT, '"GPT"', '"gpt2"')),
    "numbers that FasterTransformer does not compute in": (
        "fastertransformer",
        "ft",
        r.edit(FT, '"fp16"', '"float16"'),
    ),
    "a path of BERT without its slash": ("fastertransformer", "bert", r.edit(FT, '2-gpu/"', '2-gpu"')),
    "batches that the backend does not make": (
        "model-yaml",
        "llmapi",
        r.edit(YAML, "max_batch_size: 0", "max_batch_size: 8"),
    ),
    "a shard that is not there": (
        "model-yaml",
        "llmapi",
        lambda files: files.update(
            {"tensorrt_llm/1/model/model.safetensors.index.json": b'{"weight_map": {"a": "model-2.safetensors"}}'}
        ),
    ),
    "a model.yaml of aliases": (
        "model-yaml",
        "llmapi",
        lambda files: files.update({YAML: ALIASES + b"triton_config: {decoupled: false, max_batch_size: *a8}"}),
    ),
    "a rank of one tensor": (
        "fastertransformer",
        "ft",
        lambda files: files.update({"fastertransformer/1/2-gpu/model.layers.1.dense.weight.0.bin": b"zero"}),
    ),
    "no decoupled": ("model-yaml", "llmapi", r.edit(YAML, "decoupled", "decoupling")),
    "no checkpoint": ("model-yaml", "llmapi", r.remove("tensorrt_llm/1/model/model.safetensors")),
    "a batch size that hides model.yaml's": (
        "model-yaml",
        "llmapi",
        r.edit("tensorrt_llm/config.pbtxt", 'backend: "python"', 'backend: "python" max_batch_size: 4'),
    ),
    "a model.yaml that is none": ("model-yaml", "llmapi", r.edit(YAML, "model:", "- model:")),
}


@pytest.fixture(scope="module")
def model_py(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Code of the models in Python."""
    return str(r.sources(tmp_path_factory.mktemp("all_models")))


@pytest.fixture
def packed(model_py: str) -> Callable[[str], tuple[r.Files, tuple[str, ...], str]]:
    """A sound repository of some sort: files, empty folders, and the release it is for."""

    def pack(sort: str) -> tuple[r.Files, tuple[str, ...], str]:
        artifacts = {
            "newest": r.engine("1.2.1"),
            "unpaged": r.engine("1.2.1", paged=False),
            "two": r.engine("0.15.0", parts=("/encoder", "/decoder")),
            "ft": r.ft(),
            "bert": r.ft("bert"),
            "llmapi": r.hf(),
            "llmapi-gpus": r.hf(),
        }
        options = {
            "ensemble": {"ensemble": True, "model_py": model_py},
            "bls": {"bls": True, "model_py": model_py},
            "gpus": {"gpu_ids": "0,1;2,3"},
            "policy": {"batch_scheduler_policy": "max_utilization", "kv_cache_free_gpu_mem_fraction": 0.8},
            "llmapi": {"model_py": model_py, "tensor_parallel": 2},
            "llmapi-gpus": {"model_py": model_py, "gpu_ids": "0;1"},
        }
        artifact = artifacts.get(sort, r.engine())
        files, folders = r.files_of(r.plan(artifact, **options.get(sort, {})), artifact)
        return files, folders, TARGET.choose(artifact.kind, None, artifact)

    return pack


def test_every_rule_has_a_breaker() -> None:
    """Each rule is seen failing below."""
    assert BROKEN.keys() == TARGET.rules.keys()


@pytest.mark.parametrize(
    "sort", ["llmapi-gpus", "engine", "newest", "unpaged", "two", "ensemble", "bls", "gpus", "policy", "ft", "llmapi"]
)
def test_what_is_sound(sort: str, packed: Callable[[str], tuple[r.Files, tuple[str, ...], str]]) -> None:
    """Nothing fails in a repository of ours, and every rule says something."""
    files, folders, version = packed(sort)

    found = r.findings(files, folders, version=version)

    assert r.failed(found) == []
    assert {finding.rule for finding in found} == TARGET.rules.keys()


@pytest.mark.parametrize("rule", BROKEN)
def test_broken(rule: str, packed: Callable[[str], tuple[r.Files, tuple[str, ...], str]]) -> None:
    """A repository that is broken in one way fails one rule."""
    sort, change = BROKEN[rule]
    files, folders, version = packed(sort)

    change(files)

    kept = () if rule == "version-folder" else folders
    assert r.failed(r.findings(files, kept, version=version)) == [rule]


@pytest.mark.parametrize("case", MORE)
def test_broken_in_another_way(case: str, packed: Callable[[str], tuple[r.Files, tuple[str, ...], str]]) -> None:
    """The other ways to break it fail the rule that they belong to."""
    rule, sort, change = MORE[case]
    files, folders, version = packed(sort)

    change(files)

    assert rule in r.failed(r.findings(files, folders, version=version))


def test_every_failure_says_what_to_do(packed: Callable[[str], tuple[r.Files, tuple[str, ...], str]]) -> None:
    """A failed finding has what was found, what was expected, and a hint."""
    for sort, change in [*BROKEN.values(), *(case[1:] for case in MORE.values())]:
        files, folders, version = packed(sort)
        change(files)

        for finding in r.findings(files, folders, version=version):
            if finding.status == "failed":
                assert "" not in (finding.subject, finding.found, finding.expected, finding.hint), finding


def test_worker_path_is_noted(packed: Callable[[str], tuple[r.Files, tuple[str, ...], str]]) -> None:
    """worker_path is read no longer: the backend's own refusal of it is caught by itself."""
    files, _, version = packed("engine")
    r.edit(ENGINE, '"max_beam_width"', '"worker_path"')(files)

    found = [finding for finding in r.findings(files, version=version) if finding.rule == "keys"]

    assert [finding.status for finding in found] == ["note", "ok"]


def test_a_placeholder_that_means_the_default_is_noted(
    packed: Callable[[str], tuple[r.Files, tuple[str, ...], str]],
) -> None:
    """Parameters that are not filled in are taken for their defaults, as the templates' own readme relies on."""
    files, _, version = packed("policy")
    r.edit(ENGINE, '"max_utilization"', '"${batch_scheduler_policy}"')(files)

    found = r.findings(files, version=version)

    assert r.failed(found) == []
    assert [finding.status for finding in found if finding.rule == "placeholder"] == ["note"]


def test_without_a_release_what_needs_it_is_skipped(
    packed: Callable[[str], tuple[r.Files, tuple[str, ...], str]],
) -> None:
    """Rules that depend on the release say so where it is not known."""
    files, _, _ = packed("engine")

    found = {finding.rule: finding for finding in r.findings(files)}

    assert {rule for rule in ("keys", "runtime") if found[rule].status == "skipped"} == {"keys", "runtime"}
    assert "--target-version" in found["keys"].hint


def test_the_release_is_taken_from_the_record(packed: Callable[[str], tuple[r.Files, tuple[str, ...], str]]) -> None:
    """llmcompile.json says which release a package is for."""
    files, _, _ = packed("engine")
    files["llmcompile.json"] = json.dumps({"package": {"target": "triton", "version": "0.16"}}).encode()

    assert r.failed(r.findings(files)) == ["runtime"]


def test_the_server_may_have_another_runtime(packed: Callable[[str], tuple[r.Files, tuple[str, ...], str]]) -> None:
    """--runtime-version is what the engine is compared with, where it is given."""
    files, _, version = packed("engine")

    assert r.failed(r.findings(files, version=version, runtime_version="0.18.0")) == ["runtime"]
    assert r.failed(r.findings(files, version="0.18", runtime_version="0.17.0")) == []


def test_the_mount_path_may_be_told(packed: Callable[[str], tuple[r.Files, tuple[str, ...], str]]) -> None:
    """--mount-path is what all paths must begin with, where it is given."""
    files, _, version = packed("engine")

    assert r.failed(r.findings(files, version=version, mount_path="/models/")) == []
    assert r.failed(r.findings(files, version=version, mount_path="/repository")) == ["mount-path"]


def test_float16_logits_before_0_17_are_refused() -> None:
    """Before 0.17 the backend reads logits as float32, whatever they are."""
    artifact = r.engine("0.16.0")
    files, _ = r.files_of(r.plan(artifact), artifact)
    built = r.engine_config("0.16.0", logits_dtype="float16", gather_context_logits=True)
    files["tensorrt_llm/1/config.json"] = json.dumps(built).encode()

    assert r.failed(r.findings(files, version="0.16")) == ["logits"]


def test_only_folders_with_configurations_are_recognised() -> None:
    """A model repository has folders with config.pbtxt, and no serving.properties."""
    assert TARGET.detect(r.tree_of({"llm/config.pbtxt": b""}))
    assert not TARGET.detect(r.tree_of({"llm/config.pbtxt": b"", "serving.properties": b""}))
    assert not TARGET.detect(r.tree_of({"config.pbtxt": b""}))
    assert not TARGET.detect(r.tree_of({"a/b/config.pbtxt": b""}))


HOSTILE = st.one_of(
    st.binary(max_size=200),
    st.sampled_from(
        [
            b"[" * 20_000,
            b'{"pretrained_config": {"mapping": {"tp_size": 1e999, "pp_size": true}}, "build_config": []}',
            b'{"version": 17, "build_config": {"max_batch_size": -1, "plugin_config": 3}}',
            b'{"pretrained_config": {"mapping": {"tp_size": 100000000000, "pp_size": 100000000000}}}',
            b"a: &a [*a]",
            b"{[1]: 2}",
            b"2026-99-99",
            b'parameters { key: "gpt_model_path" value { string_value: "../../../etc" } }',
            b'backend: "tensorrtllm" parameters { key: "gpu_device_ids" value { string_value: ";;," } }',
            b'platform: "ensemble" ensemble_scheduling { step { input_map { key: "a" value: "b" } } }',
            b'backend: "fastertransformer" parameters { key: "tensor_para_size" value { string_value: "nan" } }',
            b'backend: "tensorrtllm" parameters { key: "max_beam_width" value { string_value: "inf" } }',
        ]
    ),
)


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(
            [ENGINE, ENSEMBLE, FT, YAML, "tensorrt_llm/1/config.json", "llmcompile.json", "fastertransformer/1/x"]
        ),
        HOSTILE,
    ),
    st.booleans(),
)
def test_hostile_folders(files: r.Files, over: bool) -> None:
    """Whatever the files hold, every rule says something and nothing else happens."""
    artifact = r.engine()
    base = r.files_of(r.plan(artifact), artifact)[0] if over else {}

    try:
        found = r.findings(base | files, version="0.19")
    except LlmCompileError as error:  # pragma: no cover
        raise AssertionError(str(error)) from error

    assert {finding.rule for finding in found} == TARGET.rules.keys()


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """A configuration that is a folder is a finding, not a failure of ours."""
    (tmp_path / "llm" / "config.pbtxt").mkdir(parents=True)
    from llmcompile.packaging.tree import from_folder

    found = list(TARGET.lint(from_folder(tmp_path), Serving()))

    assert r.failed(found) == ["config"]
