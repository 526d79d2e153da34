"""Packages for Ray Serve's LLM module: what is written, what is refused, what the lint finds, what RayLLM becomes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcompile.errors import CheckpointError, LlmCompileError, OptionsError, UnsupportedError
from llmcompile.packaging.artifact import Artifact, open_artifact
from llmcompile.packaging.ray_serve import RULES, TARGET, RayServeOptions, convert, detect, lint, plan
from llmcompile.packaging.ray_serve.documents import parse
from llmcompile.packaging.ray_serve.engine_args import ENGINE, FRONTEND, LOAD_FORMATS
from llmcompile.packaging.ray_serve.releases import RELEASES, VLLM, accelerators, reads, satisfies, schemes
from llmcompile.packaging.ray_serve.schema import LLMConfig, flaws
from llmcompile.packaging.target import KINDS, Finding, Package, Request, Serving, flags
from llmcompile.packaging.tree import Tree, from_folder, planned
from trees import tree_of

NEWEST = "2.60"
NOTHING = Tree("", {}, frozenset(), lambda path: b"")
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "num_hidden_layers": 3,
    "max_position_embeddings": 4096,
    "torch_dtype": "float16",
}
ENTRY = {
    "deployment_config": {
        "autoscaling_config": {
            "min_replicas": 1,
            "initial_replicas": 1,
            "max_replicas": 8,
            "target_num_ongoing_requests_per_replica": 24,
            "metrics_interval_s": 10.0,
            "look_back_period_s": 30.0,
            "smoothing_factor": 0.6,
            "downscale_delay_s": 300.0,
            "upscale_delay_s": 15.0,
        },
        "max_concurrent_queries": 64,
        "ray_actor_options": {"resources": {"accelerator_type_a10": 0.01}},
    },
    "engine_config": {
        "model_id": "meta-llama/Llama-2-7b-chat-hf",
        "hf_model_id": "meta-llama/Llama-2-7b-chat-hf",
        "type": "VLLMEngine",
        "engine_kwargs": {"max_num_batched_tokens": 4096, "max_num_seqs": 64, "gpu_memory_utilization": 0.95},
        "max_total_tokens": 4096,
        "generation": {
            "prompt_format": {
                "system": "<<SYS>>\n{instruction}\n<</SYS>>\n\n",
                "assistant": " {instruction} </s><s>",
                "trailing_assistant": "",
                "user": "[INST] {system}{instruction} [/INST]",
                "system_in_user": True,
                "default_system_message": "",
            },
            "stopping_sequences": ["<unk>"],
        },
    },
    "scaling_config": {
        "num_workers": 2,
        "num_gpus_per_worker": 1,
        "num_cpus_per_worker": 8,
        "placement_strategy": "STRICT_PACK",
        "resources_per_worker": {"accelerator_type_a10": 0.01},
    },
}
"""The facts of an entry of ray-project/ray-llm@891ccd7:models/continuous_batching, on two workers."""


def checkpoint(folder: Path, config: Mapping[str, Any] = CONFIG, **files: str) -> Artifact:
    """A Hugging Face folder whose weights are two bytes."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"00")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 1000000000000000019884624838656}')
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return open_artifact(folder)


@pytest.fixture(name="artifact")
def _artifact(tmp_path: Path) -> Artifact:
    return checkpoint(tmp_path / "org--tiny")


def made(package: Package, of: Tree = NOTHING) -> Tree:
    """The package's files as they would be written."""
    return planned("out", package.texts, package.links, package.folders, of)


def config_of(package: Package) -> dict[str, Any]:
    """The LLMConfig in serve.yaml."""
    content = yaml.safe_load(package.texts["serve.yaml"])
    found: dict[str, Any] = content["applications"][0]["args"]["llm_configs"][0]
    return found


def asked(artifact: Artifact, version: str = NEWEST, **options: Any) -> dict[str, Any]:
    """The LLMConfig of a package with these options."""
    return config_of(plan(artifact, RayServeOptions(**options), Request(version)))


def converted(entry: Mapping[str, Any] = ENTRY, version: str = NEWEST, **options: Any) -> Package:
    """A package of a registry entry."""
    return convert(yaml.safe_dump(entry), "entry.yaml", RayServeOptions(**options), Request(version))


def changed(entry: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of nested mappings in which one key, given with dots, has another value; absent for None."""
    copy: dict[str, Any] = json.loads(json.dumps(entry))
    *parents, last = path.split(".")
    inner = copy
    for part in parents:
        inner = inner.setdefault(part, {})
    if value is None:
        inner.pop(last, None)
    else:
        inner[last] = value
    return copy


def failing(tree: Tree, version: str | None = NEWEST, runtime: str | None = "0.29.0") -> set[str]:
    """Rules with a failed finding."""
    return {found.rule for found in lint(tree, Serving(version, runtime)) if found.status == "failed"}


def found(tree: Tree, rule: str, version: str | None = NEWEST, runtime: str | None = "0.29.0") -> list[Finding]:
    """A rule's findings."""
    return [finding for finding in lint(tree, Serving(version, runtime)) if finding.rule == rule]


# What is written.


def test_the_app_is_built_by_ray_serves_own_builder(artifact: Artifact) -> None:
    """serve.yaml names ray.serve.llm:build_openai_app, and holds the LLMConfig itself, no path."""
    package = plan(artifact, RayServeOptions(), Request(NEWEST))

    application = yaml.safe_load(package.texts["serve.yaml"])["applications"][0]

    assert application["import_path"] == "ray.serve.llm:build_openai_app"
    assert application["args"]["llm_configs"] == [yaml.safe_load(package.texts["org--tiny.yaml"])]


def test_a_folders_name_is_the_models_id(artifact: Artifact) -> None:
    """org--tiny is served as org/tiny from /models/org--tiny."""
    assert asked(artifact)["model_loading_config"] == {
        "model_id": "org/tiny",
        "model_source": "/models/org--tiny",
    }


def test_a_snapshot_of_the_hubs_cache_has_its_id_and_its_commit(tmp_path: Path) -> None:
    """models--org--tiny/snapshots/<commit> is org/tiny, and the mirror's hash is the commit."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    artifact = checkpoint(tmp_path / "models--org--tiny" / "snapshots" / commit)

    package = plan(artifact, RayServeOptions(bucket_uri="s3://bucket/tiny"), Request(NEWEST))

    assert config_of(package)["model_loading_config"]["model_id"] == "org/tiny"
    assert package.texts["mirror/hash"] == f"{commit}\n"


def test_every_option_has_its_key(artifact: Artifact) -> None:
    """Each option is where ray 2.60's LLMConfig reads it."""
    config = asked(
        artifact,
        model_id="me/it",
        model_source="/data/it",
        accelerator_type="H100",
        tp=4,
        pp=2,
        max_model_len=2048,
        min_replicas=2,
        max_replicas=5,
        target_ongoing_requests=12.5,
        max_ongoing_requests=16,
        dtype="bfloat16",
        load_format="safetensors",
        trust_remote_code=True,
    )

    assert config == {
        "model_loading_config": {"model_id": "me/it", "model_source": "/data/it"},
        "llm_engine": "vLLM",
        "engine_kwargs": {
            "tensor_parallel_size": 4,
            "pipeline_parallel_size": 2,
            "max_model_len": 2048,
            "dtype": "bfloat16",
            "load_format": "safetensors",
            "trust_remote_code": True,
        },
        "accelerator_type": "H100",
        "deployment_config": {
            "autoscaling_config": {"min_replicas": 2, "max_replicas": 5, "target_ongoing_requests": 12.5},
            "max_ongoing_requests": 16,
        },
    }


def test_one_replica_is_one_replica(artifact: Artifact) -> None:
    """Without options there is exactly one; num_replicas is not used, which older builders' own range would outvote."""
    assert asked(artifact)["deployment_config"] == {"autoscaling_config": {"min_replicas": 1, "max_replicas": 1}}


def test_a10_is_a10g(artifact: Artifact) -> None:
    """A10 is written as A10G, as LLMConfig reads it."""
    assert asked(artifact, accelerator_type="A10")["accelerator_type"] == "A10G"


def test_a_mirror_ends_with_its_hash(artifact: Artifact) -> None:
    """For a bucket the files lie in mirror/, the hash is written last and uploaded last."""
    package = plan(artifact, RayServeOptions(bucket_uri="s3://bucket/tiny/"), Request(NEWEST))

    assert config_of(package)["model_loading_config"]["model_source"] == {"bucket_uri": "s3://bucket/tiny"}
    assert package.last == ("mirror/hash",)
    assert package.next[:2] == (
        "aws s3 cp --recursive --exclude hash {output}/mirror s3://bucket/tiny",
        "aws s3 cp {output}/mirror/hash s3://bucket/tiny/hash",
    )
    assert sorted(package.links) == [
        "mirror/config.json",
        "mirror/model.safetensors",
        "mirror/tokenizer.json",
        "mirror/tokenizer_config.json",
    ]


@pytest.mark.parametrize(
    ("uri", "command"),
    [
        ("gs://bucket/tiny", "gcloud storage cp {output}/mirror/hash gs://bucket/tiny/hash"),
        (
            "abfss://box@account.dfs.core.windows.net/tiny",
            "upload {output}/mirror/hash to abfss://box@account.dfs.core.windows.net/tiny/hash",
        ),
        (
            "azure://box@account.blob.core.windows.net/tiny",
            "upload {output}/mirror/hash to azure://box@account.blob.core.windows.net/tiny/hash",
        ),
    ],
)
def test_every_store_has_its_upload(artifact: Artifact, uri: str, command: str) -> None:
    """The hash is the second command, whatever the store."""
    assert plan(artifact, RayServeOptions(bucket_uri=uri), Request(NEWEST)).next[1] == command


def test_what_the_nodes_must_have_is_noted(artifact: Artifact) -> None:
    """Since 2.53 Ray reads S3 by boto3, which ray[llm] does not bring; before, and for GCS, by pyarrow."""
    for uri, version, noted in (
        ("s3://b/x", "2.60", True),
        ("s3://b/x", "2.52", False),
        ("gs://b/x", "2.60", False),
        ("azure://box@account.blob.core.windows.net/x", "2.60", True),
    ):
        notes = plan(artifact, RayServeOptions(bucket_uri=uri), Request(version)).notes

        assert any(note.startswith("The nodes need ") for note in notes) is noted


def test_equal_folders_have_equal_hashes(tmp_path: Path) -> None:
    """Where no commit is known the hash depends on the files alone: 40 digits, others for another config.json."""
    options, request = RayServeOptions(bucket_uri="s3://bucket/tiny", model_id="a/b"), Request(NEWEST)
    first = plan(checkpoint(tmp_path / "one"), options, request).texts["mirror/hash"]
    second = plan(checkpoint(tmp_path / "two"), options, request).texts["mirror/hash"]
    third = plan(checkpoint(tmp_path / "three", {**CONFIG, "vocab_size": 7}), options, request).texts["mirror/hash"]

    assert first == second != third
    assert len(first) == 41
    assert set(first) <= set("0123456789abcdef\n")


def test_only_one_set_of_weights_is_taken(tmp_path: Path) -> None:
    """Of safetensors by an index, pickles and Mistral's own file, the indexed ones are linked."""
    index = json.dumps(
        {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    )
    artifact = checkpoint(
        tmp_path / "org--tiny",
        **{
            "model.safetensors.index.json": index,
            "model-00001-of-00002.safetensors": "1",
            "model-00002-of-00002.safetensors": "2",
            "consolidated.safetensors": "3",
            "pytorch_model.bin": "4",
            "README.md": "5",
        },
    )

    links = plan(artifact, RayServeOptions(), Request(NEWEST)).links

    assert sorted(set(links.values())) == [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_the_runtime_is_the_releases_vllm(artifact: Artifact) -> None:
    """A package for Ray 2.60 is for vLLM 0.29.0, unless another is named."""
    assert plan(artifact, RayServeOptions(), Request("2.60")).runtime == "0.29.0"
    assert plan(artifact, RayServeOptions(), Request("2.49")).runtime == "0.10.0"
    assert plan(artifact, RayServeOptions(), Request("2.49", "0.10.1")).runtime == "0.10.1"


def test_a_float32_model_is_warned_of_float16(tmp_path: Path) -> None:
    """Since vLLM's auto makes float16 of float32, a note says so, unless a dtype is asked for."""
    artifact = checkpoint(tmp_path / "m", {**CONFIG, "torch_dtype": "float32"})

    assert "float16" in " ".join(plan(artifact, RayServeOptions(), Request(NEWEST)).notes)
    assert "float16" not in " ".join(plan(artifact, RayServeOptions(dtype="float32"), Request(NEWEST)).notes)


def test_code_of_the_models_own_is_noted(tmp_path: Path) -> None:
    """auto_map in config.json is named, and runs only when it is asked for."""
    artifact = checkpoint(tmp_path / "m", {**CONFIG, "auto_map": {"AutoModel": "m.M"}})
    package = plan(artifact, RayServeOptions(), Request(NEWEST))

    assert "--trust-remote-code" in " ".join(package.notes)
    assert "trust_remote_code" not in config_of(package)["engine_kwargs"]


def test_old_builders_limit_is_noted(artifact: Artifact) -> None:
    """Up to Ray 2.48 a replica took 20 requests at once unless it was told."""
    assert "20 requests" in " ".join(plan(artifact, RayServeOptions(), Request("2.48")).notes)
    assert "20 requests" not in " ".join(plan(artifact, RayServeOptions(), Request("2.49")).notes)


@pytest.mark.parametrize("version", RELEASES)
def test_every_releases_package_is_clean(artifact: Artifact, version: str) -> None:
    """What is planned for a release has no failed finding in its lint."""
    for options in (
        RayServeOptions(tp=2, accelerator_type="A100", max_model_len=1024, max_replicas=2, target_ongoing_requests=8.0),
        RayServeOptions(bucket_uri="gs://bucket/tiny"),
    ):
        package = plan(artifact, options, Request(version))

        assert failing(made(package, artifact.tree), version, package.runtime) == set()


# What is refused.


@pytest.mark.parametrize(
    ("options", "subject"),
    [
        ({"tp": 3}, "--tp"),
        ({"pp": 4}, "--pp"),
        ({"max_model_len": 4097}, "--max-model-len"),
        ({"min_replicas": 3, "max_replicas": 2}, "--max-replicas"),
        ({"max_replicas": 2}, "--max-replicas"),
        ({"max_replicas": 2, "target_ongoing_requests": 0.0}, "--target-ongoing-requests"),
        ({"max_ongoing_requests": 0}, "--max-ongoing-requests"),
        ({"accelerator_type": "H1000"}, "--accelerator-type"),
        ({"accelerator_type": "aws-neuron-core"}, "--accelerator-type aws-neuron-core"),
        ({"bucket_uri": "https://bucket/tiny"}, "--bucket-uri"),
        ({"bucket_uri": "s3://"}, "--bucket-uri"),
        ({"bucket_uri": "s3://key:secret@bucket/tiny"}, "--bucket-uri"),
        ({"bucket_uri": "abfss://box/tiny"}, "--bucket-uri"),
        ({"bucket_uri": "azure://box@account.example.net/tiny"}, "--bucket-uri"),
        ({"bucket_uri": "s3://bucket/tiny", "model_source": "/x"}, "--bucket-uri and --model-source"),
        ({"model_source": "org/tiny"}, "--model-source"),
        ({"model_source": "/models/../etc"}, "--model-source"),
        ({"model_id": "../x"}, "--model-id"),
        ({"model_id": ""}, "--model-id"),
        ({"load_format": "gguf"}, "--load-format"),
        ({"load_format": "sharded_state"}, "--load-format sharded_state"),
        ({"load_format": "runai_streamer"}, "--load-format runai_streamer"),
    ],
)
def test_options_that_contradict_are_refused(artifact: Artifact, options: dict[str, Any], subject: str) -> None:
    """Each names its flag, and says what to type."""
    if options.get("model_id") == "":
        options = {"model_id": " "}
    with pytest.raises(OptionsError) as raised:
        plan(artifact, RayServeOptions(**options), Request(NEWEST))

    assert raised.value.problems[0].subject == subject
    assert raised.value.problems[0].hint != ""


def test_the_password_of_a_bucket_is_not_repeated(artifact: Artifact) -> None:
    """A URI with credentials is refused without quoting them."""
    with pytest.raises(OptionsError) as raised:
        plan(artifact, RayServeOptions(bucket_uri="s3://key:secret@bucket/tiny"), Request(NEWEST))

    assert "secret" not in str(raised.value)


def test_an_older_release_knows_fewer_buckets_and_accelerators(artifact: Artifact) -> None:
    """Azure came with 2.50, the B200 with 2.49."""
    for options, version in (
        (RayServeOptions(bucket_uri="azure://box@account.blob.core.windows.net/x"), "2.49"),
        (RayServeOptions(accelerator_type="B200"), "2.48"),
    ):
        with pytest.raises(OptionsError):
            plan(artifact, options, Request(version))


def test_a_folder_without_a_class_is_refused(tmp_path: Path) -> None:
    """The model is chosen by config.json's architectures."""
    with pytest.raises(CheckpointError, match="architectures"):
        plan(checkpoint(tmp_path / "m", {"model_type": "llama"}), RayServeOptions(), Request(NEWEST))


def test_missing_shards_are_all_named(tmp_path: Path) -> None:
    """An index that names absent files is refused with every one of them."""
    index = json.dumps({"weight_map": {"a": "x-1.safetensors", "b": "x-2.safetensors"}})
    artifact = checkpoint(tmp_path / "m", **{"model.safetensors.index.json": index})

    with pytest.raises(CheckpointError) as raised:
        plan(artifact, RayServeOptions(), Request(NEWEST))

    assert [problem.subject.rpartition("/")[2] for problem in raised.value.problems] == [
        "x-1.safetensors",
        "x-2.safetensors",
    ]


@pytest.mark.parametrize("index", ["{", "[]", '{"weight_map": 1}', '{"weight_map": {"a": 1}}'])
def test_a_damaged_index_is_refused(tmp_path: Path, index: str) -> None:
    """Only a mapping from tensors to names of files is an index."""
    with pytest.raises(CheckpointError):
        plan(checkpoint(tmp_path / "m", **{"model.safetensors.index.json": index}), RayServeOptions(), Request(NEWEST))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "hf"])
def test_every_other_kind_is_refused_with_a_command(kind: Any) -> None:
    """The engine is vLLM, which reads checkpoints; the refusal says so and what to type."""
    with pytest.raises(UnsupportedError) as raised:
        TARGET.choose(kind, None)

    assert "vLLM" in raised.value.problems[0].found
    assert "llmcompile " in raised.value.problems[0].hint


def test_an_unknown_release_is_refused() -> None:
    """2.43 is none of the releases known."""
    with pytest.raises(UnsupportedError, match=r"2\.43"):
        TARGET.choose("hf", "2.43")


def test_patch_releases_are_of_their_release() -> None:
    """2.60.0 is 2.60."""
    assert TARGET.choose("hf", "2.60.0") == "2.60"


# The length of a model.


@pytest.mark.parametrize(
    ("config", "tokenizer", "longest"),
    [
        ({}, None, 4096),
        ({"max_position_embeddings": 8192, "seq_length": 100}, None, 100),
        ({"model_max_length": 9000}, None, 9000),
        ({}, 512, 512),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, None, 8192),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, None, 4096),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1000}},
            None,
            4000,
        ),
        ({"text_config": {"max_position_embeddings": 77, "num_attention_heads": 8}}, None, 77),
    ],
)
def test_a_models_length_is_what_vllm_derives(
    tmp_path: Path, config: dict[str, Any], tokenizer: int | None, longest: int
) -> None:
    """The least of the lengths said, times the factor of a rotary embedding that is stretched; one more is refused."""
    artifact = checkpoint(tmp_path / "m", {**CONFIG, **config})
    if tokenizer is not None:
        (tmp_path / "m" / "tokenizer_config.json").write_text(json.dumps({"model_max_length": tokenizer}))
        artifact = open_artifact(tmp_path / "m")

    package = plan(artifact, RayServeOptions(max_model_len=longest), Request(NEWEST))
    tree = made(package, artifact.tree)
    longer = {name: text.replace(f"len: {longest}", f"len: {longest + 1}") for name, text in package.texts.items()}

    with pytest.raises(OptionsError):
        plan(artifact, RayServeOptions(max_model_len=longest + 1), Request(NEWEST))
    assert failing(tree) == set()
    assert failing(made(replace(package, texts=longer), artifact.tree)) == {"max-model-len"}


# The lint.


@pytest.fixture(name="good")
def _good(artifact: Artifact) -> tuple[Package, Artifact]:
    options = RayServeOptions(
        bucket_uri="s3://bucket/tiny", accelerator_type="A100", tp=2, max_replicas=4, target_ongoing_requests=8.0
    )
    return plan(artifact, options, Request(NEWEST)), artifact


Files = dict[str, bytes]
Breaker = Callable[[Files], None]


def edit(path: str, value: Any) -> Breaker:
    """Set a key of the LLMConfig, in both files; None removes it."""

    def broken(files: Files) -> None:
        content = yaml.safe_load(files["serve.yaml"])
        configs = content["applications"][0]["args"]["llm_configs"]
        configs[0] = changed(configs[0], path, value)
        files["serve.yaml"] = yaml.safe_dump(content).encode()
        files["org--tiny.yaml"] = yaml.safe_dump(configs[0]).encode()

    return broken


def edit_app(key: str, value: Any) -> Breaker:
    """Set a key of the application."""

    def broken(files: Files) -> None:
        content = yaml.safe_load(files["serve.yaml"])
        content["applications"][0][key] = value
        files["serve.yaml"] = yaml.safe_dump(content).encode()

    return broken


def write(path: str, content: bytes) -> Breaker:
    """Replace a file."""
    return lambda files: files.update({path: content})


def remove(path: str) -> Breaker:
    """Remove a file."""
    return lambda files: files.pop(path, None) and None


def differ(files: Files) -> None:
    """Change the LLMConfig's own file alone."""
    files["org--tiny.yaml"] = files["org--tiny.yaml"].replace(b"max_replicas: 4", b"max_replicas: 3")


BROKEN: dict[str, Breaker] = {
    "serve-yaml": edit_app("rout_prefix", "/"),
    "import-path": edit_app("import_path", "rayllm.backend:router_application"),
    "llm-configs": differ,
    "schema": edit("scaling_config", {"num_workers": 2}),
    "deployment": edit("deployment_config.max_concurrent_queries", 64),
    "replicas": edit("deployment_config.autoscaling_config.min_replicas", 5),
    "engine": edit("llm_engine", "TRTLLMEngine"),
    "engine-args": edit("engine_kwargs.max_num_seq", 8),
    "accelerator": edit("accelerator_type", "accelerator_type_a10"),
    "model-source": edit("model_loading_config.model_source.bucket_uri", "http://bucket/tiny"),
    "placement": edit("placement_group_config", {"bundles": [{"GPU": 1}]}),
    "architecture": write("mirror/config.json", json.dumps({**CONFIG, "architectures": ["MptForCausalLM"]}).encode()),
    "parallel": edit("engine_kwargs.tensor_parallel_size", 3),
    "max-model-len": edit("engine_kwargs.max_model_len", 5000),
    "dtype": edit("engine_kwargs.dtype", "fp16"),
    "load-format": edit("engine_kwargs.load_format", "sharded_state"),
    "quantization": edit("engine_kwargs.quantization", "squeezellm"),
    "weights": remove("mirror/model.safetensors"),
    "tokenizer": remove("mirror/tokenizer.json"),
    "hash": write("mirror/hash", b"main\n"),
    "vllm-version": lambda files: None,
}


def files_of(package: Package, artifact: Artifact) -> Files:
    """A package's files in memory."""
    tree = made(package, artifact.tree)
    return {path: tree.read(path) for path in tree.files}


def test_every_rule_can_be_broken() -> None:
    """There is a broken package for each rule."""
    assert BROKEN.keys() == TARGET.rules.keys() == RULES.keys()


@pytest.mark.parametrize("rule", BROKEN)
def test_a_broken_package_fails_its_rule_alone(good: tuple[Package, Artifact], rule: str) -> None:
    """One thing wrong is one rule's failure."""
    files = files_of(*good)
    assert failing(tree_of(files)) == set()

    BROKEN[rule](files)

    assert failing(tree_of(files), runtime="0.28.0" if rule == "vllm-version" else "0.29.0") == {rule}


@pytest.mark.parametrize(
    ("rule", "breaker"),
    [
        ("serve-yaml", write("serve.yaml", b"applications: [ray.serve.llm")),
        ("serve-yaml", write("other.yaml", b"a: &a [*a]\nx: ray.serve.llm")),
        ("serve-yaml", edit_app("runtime_env", {"working_dir": "."})),
        ("serve-yaml", edit_app("runtime_env", {"py_modules": ["s3://bucket/x.zip", "/code"]})),
        ("llm-configs", edit_app("args", {"llm_configs": []})),
        ("llm-configs", edit_app("args", {"llm_configs": ["missing.yaml"]})),
        ("llm-configs", edit_app("args", {"llm_configs": [7]})),
        ("import-path", edit_app("import_path", "ray.serve.llm:build_app")),
        ("schema", edit("model_loading_config.model_id", None)),
        ("schema", edit("resources_per_bundle", {"GPU": 1})),
        ("schema", edit("use_cpu", True)),
        ("schema", edit("experimental_configs", {"num_router_replicas": 2})),
        ("schema", edit("placement_group_config", {"bundle_per_worker": {"GPU": 1}, "strategy": "TIGHT"})),
        ("deployment", edit("deployment_config.autoscaling_config.target_num_ongoing_requests_per_replica", 24)),
        ("deployment", edit("deployment_config.ray_actor_options", {"num_cpu": 1})),
        ("deployment", edit("deployment_config.placement_group_strategy", "PACK")),
        ("deployment", edit("deployment_config.max_ongoing_requests", 0)),
        ("deployment", edit("deployment_config.autoscaling_config.max_replicas", "many")),
        ("replicas", edit("deployment_config.num_replicas", 2)),
        ("replicas", edit("deployment_config.autoscaling_config.initial_replicas", 9)),
        ("replicas", edit("deployment_config.autoscaling_config.target_ongoing_requests", None)),
        ("engine-args", edit("engine_kwargs.model", "org/tiny")),
        ("engine-args", edit("engine_kwargs.served_model_name", "tiny")),
        ("engine-args", edit("engine_kwargs.distributed_executor_backend", "mp")),
        ("engine-args", edit("engine_kwargs.disable_log_stats", True)),
        ("accelerator", edit("placement_group_config", {"bundle_per_worker": {"CPU": 4}})),
        ("model-source", edit("model_loading_config.model_source", "not a path")),
        ("model-source", edit("model_loading_config.model_source", {"bucket_uri": "abfss://box/tiny"})),
        ("model-source", edit("model_loading_config.model_source", {"bucket_uri": None})),
        ("placement", edit("placement_group_config", {"strategy": "PACK"})),
        ("parallel", edit("engine_kwargs.pipeline_parallel_size", 4)),
        ("dtype", edit("engine_kwargs.dtype", 16)),
        ("load-format", edit("engine_kwargs.load_format", "gguf")),
        ("max-model-len", edit("engine_kwargs.max_model_len", "long")),
        ("quantization", write("mirror/config.json", json.dumps({**CONFIG, "n": 1}).encode())),
        ("weights", write("mirror/config.json", b"[]")),
        ("weights", write("mirror/model.safetensors", b"")),
        ("weights", write("mirror/model.safetensors.index.json", b'{"weight_map": {"a": "b.safetensors"}}')),
        ("hash", remove("mirror/hash")),
        ("hash", write("mirror/hash", b"../../../etc/passwd")),
        ("vllm-version", lambda files: None),
    ],
)
def test_other_ways_to_break_it(good: tuple[Package, Artifact], rule: str, breaker: Breaker) -> None:
    """Each is found by the rule that speaks of it."""
    files = files_of(*good)
    if rule == "quantization":
        stored = {**CONFIG, "quantization_config": {"quant_method": "gptq"}}
        breaker = write("mirror/config.json", json.dumps(stored).encode())
        edit("engine_kwargs.quantization", "awq")(files)

    breaker(files)

    assert rule in failing(tree_of(files), runtime="latest" if rule == "vllm-version" else "0.29.0")


@pytest.mark.parametrize(
    ("rule", "breaker"),
    [
        ("deployment", edit("deployment_config.autoscaling_config.smoothing_factor", 0.6)),
        ("accelerator", edit("accelerator_type", "A100-80G")),
        ("model-source", edit("model_loading_config.tokenizer_source", "org/tiny")),
        ("replicas", edit("deployment_config.max_ongoing_requests", 4)),
        ("schema", edit("runtime_env", {"env_vars": {"HF_TOKEN": "hf_x"}})),
        ("import-path", edit_app("import_path", "ray.serve.llm:build_pd_openai_app")),
        ("serve-yaml", write("other.yaml", b"model_loading_config: {model_id: a, model_id: b}")),
    ],
)
def test_what_works_but_deserves_a_look_is_a_note(good: tuple[Package, Artifact], rule: str, breaker: Breaker) -> None:
    """It fails nothing, and is said."""
    files = files_of(*good)

    breaker(files)
    tree = tree_of(files)

    assert "note" in {finding.status for finding in found(tree, rule)}
    assert rule not in failing(tree)


@pytest.mark.parametrize("name", ["T5ForConditionalGeneration", "BartForConditionalGeneration", "MyModel"])
def test_a_class_that_vllm_has_no_code_for_is_noted(good: tuple[Package, Artifact], name: str) -> None:
    """It may be served by Transformers' code or a plug-in, or not; a class that is known is no note."""
    files = files_of(*good)
    assert [finding.status for finding in found(tree_of(files), "architecture")] == ["ok"]

    files["mirror/config.json"] = json.dumps({**CONFIG, "architectures": [name]}).encode()

    assert [finding.status for finding in found(tree_of(files), "architecture")] == ["note"]


def test_a_class_that_is_gone_fails_where_vllm_is_known(good: tuple[Package, Artifact]) -> None:
    """MptForCausalLM was last in vLLM 0.28.0: Ray 2.60 brings 0.29.0, Ray 2.59 one that had it."""
    files = files_of(*good)
    BROKEN["architecture"](files)

    assert failing(tree_of(files), "2.59", "0.27.0") == set()
    assert "0.28.0" in found(tree_of(files), "architecture")[0].found


def test_older_releases_ignore_what_newer_ones_refuse() -> None:
    """Unknown keys of model_loading_config were ignored before 2.49."""
    config = {"model_loading_config": {"model_id": "a", "bogus": 1}}

    assert [flaw.effect for flaw in flaws(config, "2.48")] == ["ignored"]
    assert [flaw.effect for flaw in flaws(config, "2.49")] == ["refused"]


def test_the_install_command_is_complete(artifact: Artifact) -> None:
    """Ray 2.53 to 2.55 do not start without boto3, which ray[llm] does not bring."""
    commands = {
        version: plan(artifact, RayServeOptions(), Request(version)).next[0] for version in ("2.52", "2.53", "2.56")
    }

    assert commands == {
        "2.52": 'pip install "ray[serve,llm]==2.52.*"',
        "2.53": 'pip install "ray[serve,llm]==2.53.*" boto3',
        "2.56": 'pip install "ray[serve,llm]==2.56.*"',
    }


def test_renamed_keys_are_named_with_their_successors(good: tuple[Package, Artifact]) -> None:
    """RayLLM's names say what they are called today, and what Ray would do."""
    files = files_of(*good)
    edit("deployment_config.autoscaling_config.target_num_ongoing_requests_per_replica", 24)(files)
    edit("deployment_config.max_concurrent_queries", 64)(files)

    wrong = {
        finding.subject.rpartition(".")[2]: (finding.expected, finding.hint)
        for finding in found(tree_of(files), "deployment")
        if finding.status == "failed"
    }

    assert wrong == {
        "target_num_ongoing_requests_per_replica": (
            "target_ongoing_requests",
            "Ray Serve ignores it without a word",
        ),
        "max_concurrent_queries": (
            "max_ongoing_requests",
            "Ray Serve accepts the file and fails when it builds the application",
        ),
    }


def test_a_relative_path_is_noted(good: tuple[Package, Artifact]) -> None:
    """A path in llm_configs is read, and said to be resolved elsewhere."""
    files = files_of(*good)
    edit_app("args", {"llm_configs": ["./org--tiny.yaml"]})(files)
    tree = tree_of(files)

    assert failing(tree) == set()
    assert [finding.status for finding in found(tree, "llm-configs")] == ["note", "ok"]


def test_a_bucket_as_text_is_a_hub_id_before_2_57(good: tuple[Package, Artifact]) -> None:
    """s3://... as model_source itself is downloaded since 2.57, and taken for a model's id before."""
    files = files_of(*good)
    edit("model_loading_config.model_source", "s3://bucket/tiny")(files)
    tree = tree_of(files)

    assert failing(tree, "2.57", "0.25.1") == set()
    assert failing(tree, "2.56", "0.22.0") == {"model-source"}


def test_unknown_engine_arguments_fail_only_where_vllm_is_known(good: tuple[Package, Artifact]) -> None:
    """Ray 2.60 brings vLLM 0.29.0, whose arguments are known; for another release it is a note."""
    files = files_of(*good)
    edit("engine_kwargs.max_num_seq", 8)(files)
    tree = tree_of(files)

    (new,) = found(tree, "engine-args")
    (old,) = found(tree, "engine-args", "2.55")

    assert (new.status, new.expected) == ("failed", "max_num_seqs")
    assert (old.status, old.expected) == ("note", "max_num_seqs")


def test_metrics_are_off_by_default_before_2_51(good: tuple[Package, Artifact]) -> None:
    """disable_log_stats alone is refused since 2.51, where the engine's metrics are on."""
    files = files_of(*good)
    edit("engine_kwargs.disable_log_stats", True)(files)

    assert failing(tree_of(files), "2.51", "0.11.0") == {"engine-args"}
    assert failing(tree_of(files), "2.50", "0.11.0") == set()


def test_without_a_release_what_depends_on_it_is_skipped(good: tuple[Package, Artifact]) -> None:
    """The rules that need the release say how to name it; the others run."""
    tree = tree_of(files_of(*good))

    skipped = {finding.rule for finding in lint(tree, Serving()) if finding.status == "skipped"}

    assert skipped == {"schema", "deployment", "accelerator", "model-source", "vllm-version"}
    assert failing(tree, None, None) == set()


def test_the_release_is_read_from_the_record(good: tuple[Package, Artifact]) -> None:
    """llmcompile.json says which release and which vLLM the package is for."""
    files = files_of(*good)
    files["llmcompile.json"] = json.dumps({"package": {"version": "2.60", "runtime": "0.29.0"}}).encode()

    assert {finding.status for finding in lint(tree_of(files), Serving())} == {"ok"}


@pytest.mark.parametrize("record", [b"{", b"[]", b'{"package": 7}', b'{"package": {"version": 2.6}}'])
def test_a_damaged_record_is_no_record(good: tuple[Package, Artifact], record: bytes) -> None:
    """Where llmcompile.json cannot be read the release is unknown."""
    files = {**files_of(*good), "llmcompile.json": record}

    assert found(tree_of(files), "schema", None, None)[0].status == "skipped"


def test_a_lost_model_folder_is_missed(good: tuple[Package, Artifact]) -> None:
    """A package of ours without its model's files fails; somebody's own YAML without them does not."""
    files = {path: content for path, content in files_of(*good).items() if "/" not in path}

    assert failing(tree_of(files)) == set()

    files["llmcompile.json"] = json.dumps({"package": {"version": "2.60", "kind": "hf"}}).encode()

    assert failing(tree_of(files)) == {"weights"}


def test_llm_configs_alone_are_linted(good: tuple[Package, Artifact]) -> None:
    """A folder without serve.yaml is known by its LLMConfig."""
    files = files_of(*good)
    del files["serve.yaml"]
    tree = tree_of(files)

    assert detect(tree)
    assert failing(tree) == set()
    assert found(tree, "parallel")[0].status == "ok"


def test_a_serve_config_is_known_by_what_it_holds(good: tuple[Package, Artifact]) -> None:
    """Ray's own examples call it config.yaml; findings speak of the file that is there."""
    files = files_of(*good)
    files["config.yaml"] = files.pop("serve.yaml")
    del files["org--tiny.yaml"]
    tree = tree_of(files)

    assert failing(tree) == set()
    assert [(one.status, one.subject) for one in found(tree, "import-path")] == [
        ("ok", "config.yaml: applications.0.import_path")
    ]
    assert [(one.status, one.subject) for one in found(tree, "serve-yaml")] == [("ok", "config.yaml")]


@pytest.mark.parametrize("rule", ["serve-yaml", "import-path", "llm-configs"])
def test_a_serve_config_of_another_name_is_not_passed_over(good: tuple[Package, Artifact], rule: str) -> None:
    """What fails in serve.yaml fails under another name."""
    files = files_of(*good)
    BROKEN[rule](files)
    files["config.yaml"] = files.pop("serve.yaml")

    assert failing(tree_of(files)) == {rule}


def test_a_serve_config_may_name_the_files_of_its_llm_configs(good: tuple[Package, Artifact]) -> None:
    """As Ray's documentation has it: config.yaml with llm_configs: [./model.yaml]."""
    files = files_of(*good)
    edit_app("args", {"llm_configs": ["./org--tiny.yaml"]})(files)
    files["config.yaml"] = files.pop("serve.yaml")
    tree = tree_of(files)

    assert failing(tree) == set()
    assert [one.status for one in found(tree, "import-path")] == ["ok"]
    assert [one.status for one in found(tree, "serve-yaml")] == ["ok"]
    assert not any("no such file" in one.found for one in lint(tree, Serving(NEWEST)))


def test_a_second_serve_config_is_mentioned(good: tuple[Package, Artifact]) -> None:
    """serve.yaml is looked at, and the other is said not to have been."""
    files = files_of(*good)
    files["config.yaml"] = files["serve.yaml"]

    assert [(one.status, one.subject) for one in found(tree_of(files), "serve-yaml")] == [
        ("note", "config.yaml"),
        ("ok", "serve.yaml"),
    ]


def test_a_quantized_model_agrees_with_its_relatives(good: tuple[Package, Artifact]) -> None:
    """awq_marlin reads an awq checkpoint: vLLM picks the kernel."""
    files = files_of(*good)
    stored = {**CONFIG, "quantization_config": {"quant_method": "awq"}}
    files["mirror/config.json"] = json.dumps(stored).encode()
    edit("engine_kwargs.quantization", "awq_marlin")(files)

    assert failing(tree_of(files)) == set()


@pytest.mark.parametrize(
    "text",
    [
        "a: ray.serve.llm\n" + "b: &b [" + "1, " * 50 + "]\nc: [*b, *b]",
        "applications: {}\n# ray.serve.llm",
        "applications: [7, {args: 7}, {args: {llm_configs: 7}}]\n# ray.serve.llm",
        "model_loading_config: 7",
        "model_loading_config: {model_source: {bucket_uri: [s3]}}\nengine_kwargs: 7\naccelerator_type: [A100]",
        "model_loading_config: {model_source: [/x]}\nplacement_group_config: {bundles: 7, bundle_per_worker: 8}",
        "model_loading_config: {}\ndeployment_config: {autoscaling_config: {min_replicas: no, max_replicas: 2020-1-1}}",
        "model_loading_config: {}\nengine_kwargs: {1: 2, tensor_parallel_size: 0, max_model_len: -5, dtype: {}}",
        "? [1, 2]\n: model_loading_config",
        "!!python/object/apply:os.system [ray.serve.llm]",
        "!!timestamp ray.serve.llm",
        "[" * 3000 + "ray.serve.llm",
        "".join(
            [
                "a0: &a0 [x, x]\n",
                *(f"a{number}: &a{number} [*a{number - 1}, *a{number - 1}]\n" for number in range(1, 40)),
                "model_loading_config: *a39",
            ]
        ),
    ],
)
def test_hostile_yaml_is_a_finding(text: str) -> None:
    """Whatever a YAML file holds, every rule says something, and nothing is raised."""
    for name in ("serve.yaml", "x.yaml"):
        tree = tree_of({name: text.encode()})

        assert detect(tree)
        assert [finding.rule for finding in lint(tree, Serving(NEWEST))] != []
        assert {finding.rule for finding in lint(tree, Serving(NEWEST))} == RULES.keys()


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=400))
def test_arbitrary_bytes_never_raise(content: bytes) -> None:
    """Any bytes as YAML, configuration, index, tokenizer or hash are findings."""
    files = {
        "serve.yaml": content,
        "org--tiny.yaml": b"model_loading_config: {model_id: a, model_source: {bucket_uri: s3://b}}\n" + content,
        "llmcompile.json": content,
        "mirror/config.json": content,
        "mirror/tokenizer_config.json": content,
        "mirror/model.safetensors.index.json": content,
        "mirror/hash": content,
    }
    tree = tree_of(files)
    detect(tree)

    assert {finding.rule for finding in lint(tree, Serving(NEWEST))} == RULES.keys()


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted(LLMConfig.model_fields)), inner),
    max_leaves=12,
)
_KEYS = (
    *LLMConfig.model_fields,
    "engine_kwargs.dtype",
    "deployment_config.autoscaling_config",
    "engine_kwargs.max_model_len",
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(_KEYS), _VALUES, max_size=4))
def test_arbitrary_values_never_raise(values: dict[str, Any]) -> None:
    """Any value under any key of an LLMConfig is a finding, with config.json beside it or not."""
    content: dict[str, Any] = {"model_loading_config": {"model_id": "a", "model_source": "/a"}}
    for key, value in values.items():
        *parents, last = key.split(".")
        inner = content
        for part in parents:
            inner = inner.setdefault(part, {}) if isinstance(inner, dict) else {}
        if isinstance(inner, dict):
            inner[last] = value
    files = {"a.yaml": yaml.safe_dump(content).encode(), "model/config.json": json.dumps(CONFIG).encode()}

    for version in ("2.60", "2.44", None):
        assert {finding.rule for finding in lint(tree_of(files), Serving(version))} == RULES.keys()


def test_a_folder_of_something_else_is_not_ours(tmp_path: Path) -> None:
    """A config.json and somebody's compose file are no package for Ray Serve."""
    (tmp_path / "compose.yaml").write_text("services: {}")
    (tmp_path / "config.json").write_text("{}")

    assert not detect(from_folder(tmp_path))


# From RayLLM.


def test_an_entry_becomes_an_llm_config() -> None:
    """Every key of the archived entry is under today's name, with its value."""
    assert config_of(converted()) == {
        "model_loading_config": {
            "model_id": "meta-llama/Llama-2-7b-chat-hf",
            "model_source": "meta-llama/Llama-2-7b-chat-hf",
        },
        "llm_engine": "vLLM",
        "engine_kwargs": {
            "tensor_parallel_size": 2,
            "max_model_len": 4096,
            "max_num_batched_tokens": 4096,
            "max_num_seqs": 64,
            "gpu_memory_utilization": 0.95,
        },
        "accelerator_type": "A10G",
        "placement_group_config": {"bundle_per_worker": {"CPU": 8, "GPU": 1}, "strategy": "STRICT_PACK"},
        "deployment_config": {
            "autoscaling_config": {
                "min_replicas": 1,
                "max_replicas": 8,
                "target_ongoing_requests": 24,
                "initial_replicas": 1,
                "look_back_period_s": 30,
                "metrics_interval_s": 10,
                "downscale_delay_s": 300,
                "upscale_delay_s": 15,
                "upscaling_factor": 0.6,
                "downscaling_factor": 0.6,
            },
            "max_ongoing_requests": 64,
        },
    }


_AWQ = {"quantization": "awq"}
_SMALL_BATCH = {"max_num_batched_tokens": 4096, "max_num_seqs": 64, "gpu_memory_utilization": 0.95}
_CODE = {"trust_remote_code": True}
ARCHIVED: tuple[tuple[str, str, str, int, int, int, int, int, dict[str, Any]], ...] = (
    (
        "OpenAssistant/falcon-40b-sft-top1-560",
        "a100_40g",
        "A100-40G",
        1,
        100,
        3000,
        4,
        2048,
        {**_CODE, "max_num_batched_tokens": 2048, "max_num_seqs": 32},
    ),
    ("OpenAssistant/falcon-7b-sft-top1-696", "a10", "A10G", 1, 200, 3000, 1, 2048, {**_CODE, **_SMALL_BATCH}),
    ("amazon/LightGPT", "a10", "A10G", 8, 24, 64, 1, 2048, {**_CODE, **_SMALL_BATCH}),
    (
        "codellama/CodeLlama-34b-Instruct-hf",
        "a100_80g",
        "A100-80G",
        2,
        32,
        128,
        2,
        16384,
        {**_CODE, "max_num_batched_tokens": 65536, "max_num_seqs": 128, "gpu_memory_utilization": 0.95},
    ),
    (
        "meta-llama/Llama-2-13b-chat-hf",
        "a100_40g",
        "A100-40G",
        8,
        16,
        48,
        1,
        4096,
        {"max_num_batched_tokens": 12288, "max_num_seqs": 48},
    ),
    (
        "meta-llama/Llama-2-70b-chat-hf",
        "a100_80g",
        "A100-80G",
        2,
        100,
        256,
        4,
        4096,
        {"max_num_batched_tokens": 65536, "max_num_seqs": 256},
    ),
    ("meta-llama/Llama-2-7b-chat-hf", "a10", "A10G", 8, 24, 64, 1, 4096, {**_CODE, **_SMALL_BATCH}),
    (
        "mistralai/Mixtral-8x7B-Instruct-v0.1",
        "a100_80g_aws",
        "A100-80G",
        100,
        20,
        192,
        8,
        32768,
        {**_CODE, "max_num_batched_tokens": 32768, "max_num_seqs": 192, "gpu_memory_utilization": 0.78},
    ),
    (
        "TheBloke/Llama-2-13B-chat-AWQ",
        "a100_40g",
        "A100-40G",
        8,
        16,
        48,
        1,
        4096,
        {**_AWQ, "max_num_batched_tokens": 12288, "max_num_seqs": 48},
    ),
    (
        "TheBloke/Llama-2-70B-chat-AWQ",
        "a100_80g",
        "A100-80G",
        2,
        100,
        256,
        1,
        4096,
        {**_AWQ, "max_num_batched_tokens": 65536, "max_num_seqs": 256},
    ),
    (
        "TheBloke/Llama-2-7B-chat-AWQ",
        "a10",
        "A10G",
        8,
        24,
        64,
        1,
        4096,
        {**_AWQ, **_CODE, **_SMALL_BATCH, "gpu_memory_utilization": 0.9},
    ),
)
"""Facts of ray-project/ray-llm@891ccd7:models/continuous_batching: model, resource, today's accelerator, replicas,
target, limit, workers, tokens, arguments. The four others are of squeezellm and of TensorRT-LLM, and refused."""


@pytest.mark.parametrize("row", ARCHIVED, ids=[row[0] for row in ARCHIVED])
def test_the_archived_entries_keep_their_numbers(row: tuple[Any, ...]) -> None:
    """Each entry of the archived registry becomes an LLMConfig with its own values, and lints clean."""
    model, resource, accelerator, most, target, limit, workers, tokens, arguments = row
    entry = ENTRY
    for path, value in (
        ("engine_config.model_id", model),
        ("engine_config.hf_model_id", model),
        ("engine_config.engine_kwargs", arguments),
        ("engine_config.max_total_tokens", tokens),
        ("scaling_config.num_workers", workers),
        ("scaling_config.resources_per_worker", {f"accelerator_type_{resource}": 0.01}),
        ("deployment_config.ray_actor_options", {"resources": {f"accelerator_type_{resource}": 0.01}}),
        ("deployment_config.autoscaling_config.max_replicas", most),
        ("deployment_config.autoscaling_config.target_num_ongoing_requests_per_replica", target),
        ("deployment_config.max_concurrent_queries", limit),
    ):
        entry = changed(entry, path, value)

    package = converted(entry)
    config = config_of(package)

    assert config["model_loading_config"] == {"model_id": model, "model_source": model}
    assert config["accelerator_type"] == accelerator
    assert config["engine_kwargs"] == {"tensor_parallel_size": workers, "max_model_len": tokens, **arguments}
    assert config["deployment_config"]["max_ongoing_requests"] == limit
    assert config["deployment_config"]["autoscaling_config"]["max_replicas"] == most
    assert config["deployment_config"]["autoscaling_config"]["target_ongoing_requests"] == target
    assert failing(made(package)) == set()


def test_what_has_no_successor_is_noted() -> None:
    """prompt_format, stop words and the actor's custom resource are named with the reason."""
    notes = converted().notes

    assert [note.split(":")[0] for note in notes] == [
        "ray_actor_options.resources.accelerator_type_a10",
        "prompt_format",
        "stopping_sequences <unk>",
    ]


@pytest.mark.parametrize(
    ("version", "placed"),
    [
        ("2.54", {"placement_group_config": {"bundles": [{"CPU": 8, "GPU": 1}] * 2, "strategy": "STRICT_PACK"}}),
        ("2.51", {"placement_group_config": {"bundles": [{"CPU": 8, "GPU": 1}] * 2, "strategy": "STRICT_PACK"}}),
        ("2.50", {"resources_per_bundle": {"CPU": 8, "GPU": 1}}),
        ("2.45", {"resources_per_bundle": {"CPU": 8, "GPU": 1}}),
        ("2.44", {}),
    ],
)
def test_older_releases_place_workers_by_other_keys(version: str, placed: dict[str, Any]) -> None:
    """A bundle per worker is 2.55's; bundles, resources_per_bundle and nothing came before."""
    config = config_of(converted(version=version))

    assert {key: config[key] for key in ("placement_group_config", "resources_per_bundle") if key in config} == placed


def test_a_strategy_that_a_release_does_not_take_is_noted() -> None:
    """Up to 2.50 the strategy was Ray's own."""
    entry = changed(ENTRY, "scaling_config.placement_strategy", "SPREAD")

    assert "placement_strategy SPREAD: dropped; Ray 2.50 takes STRICT_PACK." in converted(entry, "2.50").notes


@pytest.mark.parametrize("version", RELEASES)
def test_a_converted_entry_is_clean_for_every_release(version: str) -> None:
    """The lint finds nothing wrong in what a conversion writes."""
    package = converted(version=version)

    assert failing(made(package), version, package.runtime) == set()


@pytest.mark.parametrize(
    ("path", "value", "where", "expected"),
    [
        ("engine_config.max_total_tokens", None, "engine_kwargs.max_model_len", 2048),
        ("engine_config.tokenizer_id", "org/tok", "engine_kwargs.tokenizer", "org/tok"),
        ("engine_config.hf_model_id", None, "model_loading_config.model_source", None),
        (
            "engine_config.s3_mirror_config",
            {"bucket_uri": "s3://b/m/"},
            "model_loading_config.model_source",
            {"bucket_uri": "s3://b/m"},
        ),
        (
            "engine_config.gcs_mirror_config",
            {"bucket_uri": "gs://b/m", "extra_files": [{"bucket_uri": "gs://b/x", "destination_path": "/x"}]},
            "model_loading_config.model_source",
            {"bucket_uri": "gs://b/m", "extra_files": [{"bucket_uri": "gs://b/x", "destination_path": "/x"}]},
        ),
        ("engine_config.runtime_env", {"env_vars": {"A": "1"}}, "runtime_env", {"env_vars": {"A": "1"}}),
        (
            "engine_config.runtime_env",
            {"env_vars": {"HF_TOKEN": "hf_x", "A": "1"}},
            "runtime_env",
            {"env_vars": {"A": "1"}},
        ),
        (
            "engine_config.generation.generate_kwargs",
            {"temperature": 0.4, "top_p": 0.9, "do_sample": True},
            "engine_kwargs.override_generation_config",
            {"temperature": 0.4, "top_p": 0.9},
        ),
        ("engine_config.engine_kwargs.disable_log_stats", True, "log_engine_metrics", False),
        ("engine_config.engine_kwargs.worker_use_ray", True, "engine_kwargs.worker_use_ray", None),
        ("engine_config.engine_kwargs.model", "x", "engine_kwargs.model", None),
        ("engine_config.engine_kwargs.quantization", "awq", "engine_kwargs.quantization", "awq"),
        (
            "deployment_config.autoscaling_config.upscale_smoothing_factor",
            0.3,
            "deployment_config.autoscaling_config.upscaling_factor",
            0.3,
        ),
        (
            "deployment_config.ray_actor_options",
            {"num_cpus": 2, "resources": {"disk": 1, "accelerator_type_a10": 0.01}},
            "deployment_config.ray_actor_options",
            {"num_cpus": 2, "resources": {"disk": 1}},
        ),
        (
            "deployment_config",
            None,
            "deployment_config",
            {"autoscaling_config": {"min_replicas": 1, "max_replicas": 1}},
        ),
        ("scaling_config.resources_per_worker", {"accelerator_type_a100_80g_aws": 0.1}, "accelerator_type", "A100-80G"),
        (
            "scaling_config.resources_per_worker",
            {"disk": 1.0},
            "placement_group_config.bundle_per_worker",
            {"CPU": 8, "GPU": 1, "disk": 1},
        ),
    ],
)
def test_each_old_key_has_its_place(path: str, value: Any, where: str, expected: Any) -> None:
    """The table of old and new names, row by row."""
    config: Any = config_of(converted(changed(ENTRY, path, value)))
    for part in where.split("."):
        config = config.get(part)

    assert config == expected


@pytest.mark.parametrize(
    ("path", "value", "note"),
    [
        ("enabled", False, "enabled"),
        ("multiplex_config", {"max_num_models_per_replica": 4}, "multiplex_config"),
        ("scaling_config.pg_timeout_s", 60, "pg_timeout_s"),
        ("engine_config.env_vars_to_propogate", ["A", "HF_TOKEN"], "env_vars_to_propogate"),
        ("engine_config.model_url", "https://x", "model_url"),
        ("engine_config.engine_kwargs.worker_use_ray", True, "engine_kwargs.worker_use_ray"),
        ("engine_config.engine_kwargs.trust_remote_code", True, "engine_kwargs.trust_remote_code"),
        ("engine_config.runtime_env", {"env_vars": {"AWS_SECRET_ACCESS_KEY": "x"}}, "runtime_env.env_vars"),
        ("engine_config.generation.generate_kwargs", {"do_sample": True}, "generate_kwargs do_sample"),
        ("deployment_config.autoscaling_config.metrics_interval_s", 5.0, "metrics_interval_s"),
        (
            "engine_config.s3_mirror_config",
            {"bucket_uri": "s3://b/m", "s3_sync_args": ["--quiet"]},
            "s3_sync_args",
        ),
        (
            "engine_config.s3_mirror_config",
            {"bucket_uri": "s3://b/m", "s3_aws_credentials": {"create_aws_credentials_url": "https://x"}},
            "s3_aws_credentials",
        ),
        (
            "scaling_config.resources_per_worker",
            {"accelerator_type_a100_80g_aws": 0.1},
            "accelerator_type_a100_80g_aws",
        ),
        ("scaling_config.resources_per_worker", {"accelerator_type_a100_40g": 0.1}, "Ray labels a node A100"),
    ],
)
def test_each_lost_key_has_its_note(path: str, value: Any, note: str) -> None:
    """A key without a successor is named, never lost in silence."""
    assert any(line.startswith(note) for line in converted(changed(ENTRY, path, value)).notes)


def test_no_secret_reaches_a_file() -> None:
    """Tokens and keys of a runtime environment are in neither file nor note."""
    secrets = {"HF_TOKEN": "hf_abc", "AWS_SECRET_ACCESS_KEY": "wJal", "MY_PASSWORD": "pw123"}
    package = converted(changed(ENTRY, "engine_config.runtime_env", {"env_vars": secrets}))

    text = "".join([*package.texts.values(), *package.notes])

    assert [value for value in secrets.values() if value in text] == []


EMBEDDING = {
    "engine_config": {
        "model_id": "thenlper/gte-large",
        "type": "EmbeddingEngine",
        "optimize": "onnx",
        "max_total_tokens": 512,
        "max_batch_size": 32,
    },
    "scaling_config": {"num_workers": 1, "num_cpus_per_worker": 2},
}


def test_an_embedding_entry_is_served_by_vllms_pooling() -> None:
    """EmbeddingEngine becomes runner: pooling; ONNX and batch sizes are noted."""
    package = converted(EMBEDDING)

    assert config_of(package)["engine_kwargs"] == {
        "tensor_parallel_size": 1,
        "max_model_len": 512,
        "runner": "pooling",
    }
    assert any(note.startswith("optimize, max_batch_size: dropped") for note in package.notes)
    assert failing(made(package)) == set()


@pytest.mark.parametrize(
    ("entry", "version", "found"),
    [
        (changed(ENTRY, "engine_config.type", "TRTLLMEngine"), NEWEST, "TRTLLMEngine"),
        (EMBEDDING, "2.49", "EmbeddingEngine"),
        (changed(ENTRY, "engine_config.engine_kwargs.quantization", "squeezellm"), NEWEST, "squeezellm"),
        (changed(ENTRY, "engine_config.engine_kwargs.quantization", "squeezellm"), "2.44", "squeezellm"),
        (changed(ENTRY, "engine_config.engine_kwargs.quantization", "rotten"), NEWEST, "rotten"),
        (changed(ENTRY, "scaling_config.num_gpus_per_worker", 0), NEWEST, "CPUs"),
    ],
)
def test_what_ray_serve_cannot_do_is_refused(entry: dict[str, Any], version: str, found: str) -> None:
    """The refusal names what was found and what to do."""
    with pytest.raises(UnsupportedError) as raised:
        converted(entry, version)

    assert found in raised.value.problems[0].found
    assert raised.value.problems[0].hint != ""


def test_options_beside_an_entry_replace_what_it_says() -> None:
    """--accelerator-type, --tp, --model-source and replicas are the user's last word."""
    config = config_of(
        converted(accelerator_type="L4", tp=4, model_source="/m", max_replicas=2, max_model_len=100, dtype="half")
    )

    assert config["accelerator_type"] == "L4"
    assert config["model_loading_config"]["model_source"] == "/m"
    assert config["engine_kwargs"]["tensor_parallel_size"] == 4
    assert config["engine_kwargs"]["max_model_len"] == 100
    assert config["engine_kwargs"]["dtype"] == "half"
    assert config["deployment_config"]["autoscaling_config"]["max_replicas"] == 2


@pytest.mark.parametrize("text", ["", "[]", "engine_config: {}", "a: [", "\x00"])
def test_a_damaged_entry_is_refused(text: str) -> None:
    """What is no registry entry ends in our error, with the file's name."""
    with pytest.raises(CheckpointError, match="entry"):
        convert(text, "entry.yaml", RayServeOptions(), Request(NEWEST))


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=200) | _VALUES.map(lambda value: yaml.safe_dump({**ENTRY, "engine_config": value})))
def test_arbitrary_entries_raise_only_our_errors(text: str) -> None:
    """Whatever the file holds, it is converted or refused."""
    try:
        convert(text, "entry.yaml", RayServeOptions(), Request(NEWEST))
    except LlmCompileError:
        pass


# Tables.


def test_the_target_is_whole() -> None:
    """Every kind is served or refused, every option has a flag, releases come newest first."""
    assert set(TARGET.serves) | set(TARGET.refusals) == set(KINDS)
    assert len(flags(RayServeOptions)) == 14
    assert list(RELEASES) == sorted(RELEASES, key=lambda name: int(name[2:]), reverse=True)


def test_releases_read_their_own_keys() -> None:
    """resources_per_bundle is of 2.45 to 2.50, placement_group_config of what followed."""
    assert [reads("resources_per_bundle", version) for version in ("2.44", "2.45", "2.50", "2.51")] == [
        False,
        True,
        True,
        False,
    ]
    assert [reads("placement_group_config", version) for version in ("2.50", "2.51", "2.60")] == [False, True, True]


def test_tables_hold_what_the_wheels_say() -> None:
    """A few values, as read in the wheels of ray and vllm."""
    assert VLLM["2.56"] == "==0.22.0"
    assert VLLM["2.44"] == ">=0.7.2"
    assert schemes("2.49") == ("s3://", "gs://")
    assert schemes("2.60") == ("s3://", "gs://", "abfss://", "azure://", "pyarrow-")
    assert len(accelerators("2.44")) == 30
    assert len(accelerators("2.60")) == 62
    assert {"max_model_len", "override_generation_config", "runner", "enable_log_requests"} <= ENGINE
    assert {"chat_template", "enable_auto_tool_choice"} <= FRONTEND
    assert "gguf" not in LOAD_FORMATS


@pytest.mark.parametrize(
    ("version", "requirement", "fits"),
    [
        ("0.29.0", "==0.29.0", True),
        ("0.29", "==0.29.0", True),
        ("0.29.1", "==0.29.0", False),
        ("0.18.0+cu129", ">=0.18.0", True),
        ("0.9.2", ">=0.10.0", False),
        ("0.10.1", ">=0.10.0", True),
        ("latest", ">=0.10.0", None),
    ],
)
def test_versions_of_vllm_are_compared_by_numbers(version: str, requirement: str, fits: bool | None) -> None:
    """0.9 is older than 0.10; a word is no version."""
    assert satisfies(version, requirement) is fits


def test_keys_that_stand_twice_are_known() -> None:
    """The last of two counts, as in PyYAML, and both are named."""
    document = parse("a: {b: 1, b: 2}")

    assert (document.content, document.repeated) == ({"a": {"b": 2}}, ("b",))


def test_very_many_keys_are_counted_once() -> None:
    """Comparing each of them with every other took longer than reading them by far."""
    text = "".join(f"k{number}: 1\n" for number in range(20_000))
    began = time.process_time()
    parse(text)
    once = time.process_time()
    yaml.safe_load(text)

    assert once - began < 3 * (time.process_time() - once)


def test_what_yaml_makes_of_a_text_it_cannot_is_a_problem() -> None:
    """Each of these ends PyYAML in an exception of another kind."""
    for text in ("!!int ''", "!!timestamp x", "!!bool x", "[" * 3000, "a: [", "a" * ((1 << 20) + 1)):
        assert parse(text).problem != "", text


def test_a_good_llm_config_has_no_flaws() -> None:
    """All fields at once, for the newest release."""
    config = {
        "runtime_env": {"env_vars": {}},
        "model_loading_config": {"model_id": "a", "model_source": {"bucket_uri": "s3://b", "extra_files": []}},
        "llm_engine": "vLLM",
        "engine_kwargs": {},
        "accelerator_type": "TPU-V6E",
        "accelerator_config": {"kind": "tpu", "topology": "2x2"},
        "placement_group_config": {"bundle_per_worker": {"TPU": 4, "CPU": 1}, "strategy": "PACK"},
        "lora_config": {"dynamic_lora_loading_path": "s3://b/lora", "max_num_adapters_per_replica": 4},
        "deployment_config": {"num_replicas": "auto", "ray_actor_options": {"num_cpus": 1}, "max_queued_requests": -1},
        "experimental_configs": {"num_ingress_replicas": 2},
        "log_engine_metrics": True,
        "callback_config": {"callback_class": "a.B", "raise_error_on_callback": False},
    }

    assert flaws(config, NEWEST) == ()
    assert {flaw.key for flaw in flaws(config, "2.50")} == {
        "accelerator_config",
        "placement_group_config",
        "placement_group_config.bundle_per_worker",
        "callback_config",
    }
