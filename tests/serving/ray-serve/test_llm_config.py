"""Our LLMConfigs and our schema of them beside Ray's own; runs with ray[serve] and pyarrow, without vLLM and torch."""

from __future__ import annotations

import copy
import importlib
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("ray", reason="ray is installed for the serving tests alone")

import ray
from ray import serve
from ray.llm._internal.common.utils import cloud_utils
from ray.serve._private.config import DeploymentConfig
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import RayActorOptionsSchema, ServeApplicationSchema, ServeDeploySchema
from ray.util.accelerators import accelerators as ray_accelerators

from llmcompile.packaging.artifact import open_artifact
from llmcompile.packaging.ray_serve import RayServeOptions, convert, plan, schema
from llmcompile.packaging.ray_serve.releases import DATED, accelerators, minor, reads, release_of, schemes
from llmcompile.packaging.ray_serve.rules import findings
from llmcompile.packaging.target import Package, Request, Serving
from llmcompile.packaging.tree import Tree, planned

_MODULES = ("ray.llm._internal.serve.core.configs.llm_config", "ray.llm._internal.serve.configs.server_models")
"""Where LLMConfig is since 2.51, and where it was."""


def _llm_config() -> Any:
    for module in _MODULES:
        try:
            return importlib.import_module(module)
        except ModuleNotFoundError as error:
            if not module.startswith(str(error.name)):
                raise
    raise AssertionError("no LLMConfig")


MODELS = _llm_config()
LLMConfig = MODELS.LLMConfig
RELEASE = release_of(ray.__version__)
assert RELEASE is not None
NOTHING = Tree("", {}, frozenset(), lambda path: b"")
NEWEST = RELEASE == "2.60"


@pytest.fixture(name="model")
def _model(tmp_path: Path) -> Path:
    """A Hugging Face folder of eight heads, 4096 positions and two bytes of weights."""
    folder = tmp_path / "org--tiny"
    folder.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_attention_heads": 8,
        "num_hidden_layers": 4,
        "max_position_embeddings": 4096,
        "torch_dtype": "float16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"00")
    (folder / "tokenizer.json").write_text("{}")
    return folder


def inline(package: Package) -> dict[str, Any]:
    """The LLMConfig of serve.yaml, as `build_openai_app` gets it from a Serve config file."""
    with _quiet():
        parsed = ServeDeploySchema(**yaml.safe_load(package.texts["serve.yaml"]))
    (application,) = parsed.applications
    assert application.import_path == "ray.serve.llm:build_openai_app"
    (found,) = application.args["llm_configs"]
    assert isinstance(found, dict)
    return found


def loaded(config: Mapping[str, Any]) -> Any:
    """The LLMConfig as Ray has it."""
    with _quiet():
        return LLMConfig.model_validate(copy.deepcopy(dict(config)))


def deployed(config: Mapping[str, Any]) -> DeploymentConfig:
    """What Ray Serve makes of deployment_config."""
    with _quiet():
        return DeploymentConfig(**{**config["deployment_config"], "ray_actor_options": None})


def _quiet() -> warnings.catch_warnings:
    """Ray's own warnings, of look_back_period_s and the like."""
    caught = warnings.catch_warnings()
    caught.__enter__()
    warnings.simplefilter("ignore")
    return _Exit(caught)


class _Exit:
    def __init__(self, inner: warnings.catch_warnings) -> None:
        self.inner = inner

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        self.inner.__exit__(*error)


def fields_of(model: type[Any]) -> set[str]:
    """Names of a model's fields; ray 2.49 still has models of pydantic 1."""
    return set(model.model_fields if hasattr(model, "model_fields") else model.__fields__)


def dumped(model: Any) -> dict[str, Any]:
    """A model's values."""
    made: dict[str, Any] = model.model_dump() if hasattr(model, "model_dump") else model.dict()
    return made


def rejects(build: Callable[[], object]) -> bool:
    """Whether Ray raises."""
    try:
        with _quiet():
            build()
    except Exception:
        return True
    return False


# Packages.


def test_the_values_of_a_package_are_those_asked_for(model: Path) -> None:
    """Each option arrives in Ray's own objects, under the name that Ray reads."""
    options = RayServeOptions(
        model_id="me/it",
        model_source="/data/it",
        accelerator_type="A10",
        tp=2,
        pp=2,
        max_model_len=1024,
        min_replicas=2,
        max_replicas=6,
        target_ongoing_requests=24.0,
        max_ongoing_requests=48,
        dtype="bfloat16",
    )

    config = inline(plan(open_artifact(model), options, Request(RELEASE)))
    real = loaded(config)
    deployment = deployed(config)

    assert real.model_loading_config.model_id == "me/it"
    assert real.model_loading_config.model_source == "/data/it"
    assert real.llm_engine == "vLLM"
    assert real.accelerator_type == "A10G"
    assert real.engine_kwargs == {
        "tensor_parallel_size": 2,
        "pipeline_parallel_size": 2,
        "max_model_len": 1024,
        "dtype": "bfloat16",
    }
    assert real.max_request_context_length == 1024
    assert deployment.max_ongoing_requests == 48
    assert deployment.autoscaling_config is not None
    assert deployment.autoscaling_config.min_replicas == 2
    assert deployment.autoscaling_config.max_replicas == 6
    assert deployment.autoscaling_config.target_ongoing_requests == 24.0


def test_without_options_there_is_one_replica(model: Path) -> None:
    """min_replicas and max_replicas are 1, whatever the builder's own range is."""
    config = inline(plan(open_artifact(model), RayServeOptions(), Request(RELEASE)))
    scaling = deployed(config).autoscaling_config

    assert loaded(config).model_id == "org/tiny"
    assert scaling is not None
    assert (scaling.min_replicas, scaling.max_replicas) == (1, 1)


def test_the_file_of_its_own_is_read_by_from_file(model: Path, tmp_path: Path) -> None:
    """LLMConfig.parse_yaml reads <org>--<name>.yaml as the same LLMConfig."""
    package = plan(open_artifact(model), RayServeOptions(tp=2), Request(RELEASE))
    path = tmp_path / "config.yaml"
    path.write_text(package.texts["org--tiny.yaml"])

    with path.open() as stream:
        alone = LLMConfig.parse_yaml(stream)

    assert alone.model_dump(exclude={"callback_config"}) == loaded(inline(package)).model_dump(
        exclude={"callback_config"}
    )


def test_a_bucket_is_a_mirror_config(model: Path) -> None:
    """bucket_uri arrives in Ray's CloudMirrorConfig."""
    package = plan(open_artifact(model), RayServeOptions(bucket_uri="s3://bucket/tiny"), Request(RELEASE))
    source = loaded(inline(package)).model_loading_config.model_source

    assert isinstance(source, cloud_utils.CloudMirrorConfig)
    assert (source.bucket_uri, source.storage_type) == ("s3://bucket/tiny", "s3")


@pytest.mark.skipif(not NEWEST, reason="the file system of an older release has another shape")
def test_a_mirror_is_cached_under_its_hash(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own download of our mirror has refs/main and snapshots/<hash>/ with every file."""
    from pyarrow import fs
    from ray.llm._internal.common.utils.cloud_filesystem import PyArrowFileSystem

    def local(object_uri: str) -> tuple[fs.FileSystem, str]:
        return fs.LocalFileSystem(), object_uri.replace("s3://bucket", str(tmp_path / "bucket"))

    monkeypatch.setattr(PyArrowFileSystem, "get_fs_and_path", staticmethod(local))
    monkeypatch.setattr(cloud_utils.CloudFileSystem, "_get_provider_fs", staticmethod(lambda uri: PyArrowFileSystem))
    artifact = open_artifact(model)
    package = plan(artifact, RayServeOptions(bucket_uri="s3://bucket/tiny"), Request(RELEASE))
    tree = planned("out", package.texts, package.links, package.folders, artifact.tree).under("mirror")
    (tmp_path / "bucket" / "tiny").mkdir(parents=True)
    for path in tree.files:
        (tmp_path / "bucket" / "tiny" / path).write_bytes(tree.read(path))

    cloud_utils.CloudFileSystem.download_model(str(tmp_path / "cache"), "s3://bucket/tiny", tokenizer_only=False)

    digits = package.texts["mirror/hash"].strip()
    assert (tmp_path / "cache" / "refs" / "main").read_text() == digits
    snapshot = tmp_path / "cache" / "snapshots" / digits
    assert {path.name for path in snapshot.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert (snapshot / "model.safetensors").read_bytes() == b"00"


ENTRY = {
    "deployment_config": {
        "autoscaling_config": {
            "min_replicas": 1,
            "initial_replicas": 2,
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
        "type": "VLLMEngine",
        "s3_mirror_config": {"bucket_uri": "s3://bucket/llama"},
        "engine_kwargs": {"max_num_seqs": 64},
        "max_total_tokens": 4096,
        "generation": {"prompt_format": None, "generate_kwargs": {"temperature": 0.4}},
    },
    "scaling_config": {
        "num_workers": 2,
        "num_cpus_per_worker": 8,
        "placement_strategy": "STRICT_PACK",
        "resources_per_worker": {"accelerator_type_a10": 0.01},
    },
}


def test_the_values_of_a_converted_entry_are_rayllms() -> None:
    """Every number of the old entry is what Ray's own objects hold, none of them a default in its place."""
    config = inline(convert(yaml.safe_dump(ENTRY), "entry.yaml", RayServeOptions(), Request(RELEASE)))
    real = loaded(config)
    deployment = deployed(config)
    scaling = deployment.autoscaling_config

    assert real.model_id == "meta-llama/Llama-2-7b-chat-hf"
    assert real.model_loading_config.model_source.bucket_uri == "s3://bucket/llama"
    assert real.accelerator_type == "A10G"
    assert real.engine_kwargs == {
        "tensor_parallel_size": 2,
        "max_model_len": 4096,
        "max_num_seqs": 64,
        "override_generation_config": {"temperature": 0.4},
    }
    assert deployment.max_ongoing_requests == 64
    assert scaling is not None
    assert (scaling.min_replicas, scaling.initial_replicas, scaling.max_replicas) == (1, 2, 8)
    assert scaling.target_ongoing_requests == 24.0
    assert (scaling.get_upscaling_factor(), scaling.get_downscaling_factor()) == (0.6, 0.6)
    assert (scaling.upscale_delay_s, scaling.downscale_delay_s, scaling.look_back_period_s) == (15.0, 300.0, 30.0)


def test_the_placement_of_a_converted_entry_is_accepted() -> None:
    """The bundles pass Ray's own check, in the shape of the release."""
    config = inline(convert(yaml.safe_dump(ENTRY), "entry.yaml", RayServeOptions(), Request(RELEASE)))
    if not reads("placement_group_config", RELEASE):
        expected = {"CPU": 8.0, "GPU": 1.0} if reads("resources_per_bundle", RELEASE) else None
        assert getattr(loaded(config), "resources_per_bundle", None) == expected
        return
    if not reads("placement_group_config.bundle_per_worker", RELEASE):
        assert loaded(config).placement_group_config == {
            "bundles": [{"CPU": 8, "GPU": 1}] * 2,
            "strategy": "STRICT_PACK",
        }
        return
    real = _placement()(**config["placement_group_config"])

    assert real.strategy == "STRICT_PACK"
    assert (real.bundle_per_worker.CPU, real.bundle_per_worker.GPU) == (8.0, 1.0)


def _placement() -> Any:
    return importlib.import_module("ray.llm._internal.common.placement").PlacementGroupConfig


@pytest.mark.parametrize("path", sorted(Path(os.environ.get("SERVING_PACKAGES", "/none")).glob("*")))
def test_packages_of_the_command_load(path: Path) -> None:
    """What `llmcompile package ray-serve` wrote for this release loads, with the values of its own file."""
    if f"-{RELEASE}" not in path.name:
        pytest.skip("for another release")
    content = yaml.safe_load((path / "serve.yaml").read_text())
    with _quiet():
        ServeDeploySchema(**content)
    config = content["applications"][0]["args"]["llm_configs"][0]

    assert loaded(config).model_id == config["model_loading_config"]["model_id"]
    assert deployed(config).autoscaling_config is not None


# The schema.

GOOD: dict[str, Any] = {
    "model_loading_config": {"model_id": "a/b", "model_source": {"bucket_uri": "s3://b/c"}},
    "engine_kwargs": {"tensor_parallel_size": 1},
    "accelerator_type": "L4",
    "deployment_config": {
        "autoscaling_config": {"min_replicas": 1, "max_replicas": 2, "target_ongoing_requests": 8},
        "max_ongoing_requests": 16,
    },
}
EDITS: tuple[tuple[str, Any], ...] = (
    ("bogus", 1),
    ("engine_config", {}),
    ("scaling_config", {"num_workers": 1}),
    ("model_id", "a"),
    ("model_loading_config.bogus", 1),
    ("model_loading_config.model_id", None),
    ("model_loading_config.model_id", 7),
    ("model_loading_config.model_source", 7),
    ("model_loading_config.model_source", "/a/path"),
    ("model_loading_config.model_source", "org/name"),
    ("model_loading_config.model_source", {"bucket_uri": "http://b"}),
    ("model_loading_config.model_source", {"bucket_uri": "abfss://c@a.dfs.core.windows.net/x"}),
    ("model_loading_config.model_source", {"bucket_uri": "s3://b", "s3_sync_args": []}),
    ("model_loading_config.model_source", {"bucket_uri": "s3://b", "extra_files": [{"bucket_uri": "s3://x"}]}),
    ("model_loading_config.tokenizer_source", "org/name"),
    ("llm_engine", "TRTLLMEngine"),
    ("llm_engine", "VLLMEngine"),
    ("accelerator_type", "A10"),
    ("accelerator_type", "a10"),
    ("accelerator_type", "H100-80G"),
    ("accelerator_type", "B200"),
    ("accelerator_type", "GB300"),
    ("engine_kwargs", [1]),
    ("runtime_env", {"env_vars": {"A": "1"}}),
    ("runtime_env", "x"),
    ("resources_per_bundle", {"GPU": 1}),
    ("resources_per_bundle", {"GPU": "many"}),
    ("use_cpu", True),
    ("log_engine_metrics", False),
    ("log_engine_metrics", "maybe"),
    ("experimental_configs", {"stream_batching_interval_ms": 50}),
    ("experimental_configs", {"num_router_replicas": 2}),
    ("accelerator_config", {"kind": "gpu"}),
    ("accelerator_config", {"kind": "quantum"}),
    ("accelerator_config", {"kind": "tpu"}),
    ("lora_config", {"dynamic_lora_loading_path": "s3://b/lora"}),
    ("lora_config", {"max_num_adapters_per_replica": 0}),
    ("lora_config", {"bogus": 0}),
    ("callback_config", {"bogus": 0}),
    ("callback_config", {"raise_error_on_callback": False}),
    ("deployment_config.max_concurrent_queries", 64),
    ("deployment_config.bogus", 64),
    ("deployment_config.max_ongoing_requests", 0),
    ("deployment_config.max_ongoing_requests", "16"),
    ("deployment_config.max_ongoing_requests", "many"),
    ("deployment_config.max_queued_requests", 0),
    ("deployment_config.max_queued_requests", -1),
    ("deployment_config.num_replicas", -1),
    ("deployment_config.health_check_period_s", 0),
    ("deployment_config.graceful_shutdown_timeout_s", -1),
    ("deployment_config.user_config", {"a": [1]}),
    ("deployment_config.placement_group_strategy", "PACK"),
    ("deployment_config.request_router_config", {}),
    ("deployment_config.rolling_update_percentage", 2),
    ("deployment_config.max_surge_percent", 10),
    ("deployment_config.backpressure_config", {"status_code": 429}),
    ("deployment_config.autoscaling_config.target_num_ongoing_requests_per_replica", 24),
    ("deployment_config.autoscaling_config.bogus", 24),
    ("deployment_config.autoscaling_config.smoothing_factor", 0.6),
    ("deployment_config.autoscaling_config.smoothing_factor", 0),
    ("deployment_config.autoscaling_config.max_replicas", 0),
    ("deployment_config.autoscaling_config.min_replicas", 0),
    ("deployment_config.autoscaling_config.initial_replicas", -1),
    ("deployment_config.autoscaling_config.target_ongoing_requests", 0),
    ("deployment_config.autoscaling_config.aggregation_function", "max"),
    ("deployment_config.autoscaling_config.downscale_to_zero_delay_s", 5),
    ("deployment_config.autoscaling_config.upscale_delay_s", -1),
    ("deployment_config.ray_actor_options", {"num_cpu": 1}),
    ("deployment_config.ray_actor_options", {"num_cpus": 1, "resources": {"disk": 1}}),
)


def edited(path: str, value: Any) -> dict[str, Any]:
    """A good LLMConfig with one key changed; absent for None."""
    content = copy.deepcopy(GOOD)
    *parents, last = path.split(".")
    inner = content
    for part in parents:
        inner = inner.setdefault(part, {})
    if value is None:
        inner.pop(last)
    else:
        inner[last] = value
    return content


def _failed(config: Mapping[str, Any]) -> dict[str, set[str]]:
    """Rule -> hints of its failures, for an LLMConfig in a file of its own."""
    text = yaml.safe_dump(dict(config))
    tree = Tree("", {"a.yaml": len(text)}, frozenset(), lambda path: text.encode())
    failed: dict[str, set[str]] = {}
    for finding in findings(tree, Serving(RELEASE)):
        if finding.status == "failed":
            failed.setdefault(finding.rule, set()).add(finding.hint)
    return failed


@pytest.mark.parametrize(("path", "value"), EDITS)
def test_what_ray_refuses_fails_our_lint(path: str, value: Any) -> None:
    """Ray's LLMConfig raises exactly where a finding says that Ray refuses the file, or has another reason."""
    config = edited(path, value)
    failed = _failed(config)
    refused = {flaw.key for flaw in schema.flaws(config, RELEASE) if flaw.effect == "refused"}

    if rejects(lambda: loaded(config)):
        assert failed != {}
    else:
        assert refused == set()


@pytest.mark.parametrize(("path", "value"), EDITS)
def test_what_ray_ignores_is_said_to_be_ignored(path: str, value: Any) -> None:
    """A key that is said to be ignored changes nothing in Ray's objects; one said to fail fails in serve.deployment."""
    config = edited(path, value)
    effects = {flaw.effect for flaw in schema.flaws(config, RELEASE) if flaw.key.startswith("deployment_config")}

    if effects == {"ignored"}:
        assert dumped(deployed(config)) == dumped(deployed(GOOD))
    elif effects == {"build"} and not rejects(lambda: loaded(config)):
        options = config["deployment_config"]
        # LLMServer.get_deployment_options refuses these two itself; everything else goes to serve.deployment.
        assert path.endswith("placement_group_strategy") or rejects(
            lambda: serve.deployment(type("A", (), {}), **options)
        )


def test_rayllms_names_are_ignored_or_fail_late() -> None:
    """The old name of the target is lost without a word; the old limit of requests ends the build."""
    lost = edited("deployment_config.autoscaling_config.target_num_ongoing_requests_per_replica", 99)
    lost["deployment_config"]["autoscaling_config"].pop("target_ongoing_requests")
    scaling = deployed(lost).autoscaling_config

    assert scaling is not None
    assert scaling.target_ongoing_requests == 2
    assert rejects(lambda: serve.deployment(type("A", (), {}), max_concurrent_queries=64))
    assert not rejects(lambda: loaded(edited("deployment_config.max_concurrent_queries", 64)))


_SMALL = (
    st.none() | st.booleans() | st.integers(-2, 70) | st.floats(-1, 2) | st.sampled_from(["", "a", "L4", "s3://b", "8"])
)
_KEYS = sorted(
    {path for path, _ in EDITS} | {"deployment_config.autoscaling_config", "deployment_config", "engine_kwargs"}
)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(_KEYS), _SMALL | st.lists(_SMALL, max_size=2) | st.dictionaries(st.just("bogus"), _SMALL))
def test_nothing_that_ray_refuses_passes(path: str, value: Any) -> None:
    """Whatever value stands under whatever key: where Ray raises, a rule of ours has failed."""
    content = copy.deepcopy(GOOD)
    *parents, last = path.split(".")
    inner = content
    for part in parents:
        inner = inner.setdefault(part, {})
    inner[last] = value

    if rejects(lambda: loaded(content)):
        assert _failed(content) != {}


# The tables.


def test_accelerators_are_rays_own() -> None:
    """The list of the release is that of ray.util.accelerators."""
    own = {value for name, value in vars(ray_accelerators).items() if name.isupper() or name[:3] in ("AMD", "NVI")}

    assert set(accelerators(RELEASE)) == {value for value in own if isinstance(value, str)}


def test_schemes_are_rays_own() -> None:
    """Ray's is_remote_path agrees for every scheme of any release, and for one of none."""
    remote = getattr(cloud_utils, "is_remote_path", None)
    if remote is None:
        pytest.skip("the release has no such function")
    for scheme in (*schemes("2.60"), "http://"):
        assert remote(f"{scheme}x") is (scheme in schemes(RELEASE))


def _fields(model: type[Any], prefix: str) -> Iterator[str]:
    """Fields of a mirrored class that the release reads."""
    return (name for name in fields_of(model) if reads(f"{prefix}{name}", RELEASE))


def test_keys_of_llm_config_are_rays_own() -> None:
    """No key of the release is missing in our schema, and none is too many."""
    assert set(_fields(schema.LLMConfig, "")) == fields_of(LLMConfig)
    assert set(schema.ModelLoadingConfig.model_fields) == fields_of(MODELS.ModelLoadingConfig)
    assert set(schema.LoraConfig.model_fields) == fields_of(MODELS.LoraConfig)
    assert set(schema.CloudMirrorConfig.model_fields) == fields_of(cloud_utils.CloudMirrorConfig)


def test_keys_of_deployment_config_are_those_of_serve_deployment() -> None:
    """serve.deployment's parameters, without those the LLM builder sets or refuses and those that are removed."""
    parameters = set(signature(serve.deployment).parameters)
    others = {"_func_or_class", "version", "route_prefix", "max_replicas_per_node"}
    others |= {"placement_group_bundles", "placement_group_strategy"}

    assert set(_fields(schema.DeploymentConfig, "deployment_config.")) == parameters - others


def test_keys_of_autoscaling_config_are_rays_own() -> None:
    """All that AutoscalingConfig of the release has."""
    own = {name for name in fields_of(AutoscalingConfig) if not name.startswith("_")}

    assert set(_fields(schema.AutoscalingConfig, "deployment_config.autoscaling_config.")) == own


def test_keys_of_the_actors_options_are_rays_own() -> None:
    """All that RayActorOptionsSchema of the release has."""
    own = fields_of(RayActorOptionsSchema)

    assert set(_fields(schema.RayActorOptions, "deployment_config.ray_actor_options.")) == own


def test_keys_of_the_serve_file_are_known() -> None:
    """Our schema of serve.yaml has every key of the release's; ours are those of the newest."""
    assert fields_of(ServeDeploySchema) <= set(schema.ServeFile.model_fields)
    assert fields_of(ServeApplicationSchema) <= set(schema.Application.model_fields)
    if NEWEST:
        assert fields_of(ServeDeploySchema) == set(schema.ServeFile.model_fields)
        assert fields_of(ServeApplicationSchema) == set(schema.Application.model_fields)


def test_defaults_of_scaling_are_rays_own() -> None:
    """Where a key is absent our rules think what Ray thinks."""
    ours, own = schema.AutoscalingConfig(), AutoscalingConfig()

    assert (ours.min_replicas, ours.max_replicas) == (own.min_replicas, own.max_replicas)
    assert ours.metrics_interval_s == own.metrics_interval_s


def test_every_dated_key_is_a_key() -> None:
    """A typing error in the table of dates would go unnoticed otherwise."""
    models = {
        "": schema.LLMConfig,
        "placement_group_config": schema.PlacementGroupConfig,
        "deployment_config": schema.DeploymentConfig,
        "deployment_config.autoscaling_config": schema.AutoscalingConfig,
        "deployment_config.ray_actor_options": schema.RayActorOptions,
    }
    for key, (first, last) in DATED.items():
        parent, _, name = key.rpartition(".")
        if parent != "experimental_configs":
            assert name in models[parent].model_fields
        assert 44 < first <= minor("2.60")
        assert last is None or last >= first


@pytest.mark.skipif(not reads("placement_group_config.bundle_per_worker", RELEASE), reason="of 2.55 and later")
@pytest.mark.parametrize(
    "placement",
    [
        {"bundle_per_worker": {"GPU": 1}},
        {"bundles": [{"GPU": 1}], "strategy": "SPREAD"},
        {"bundle_per_worker": {"GPU": 1}, "bundles": [{"GPU": 1}]},
        {"strategy": "PACK"},
        {"bundles": [{"GPU": -1}]},
        {"bundles": [{"GPU": 1, "disk": -1}]},
        {"bundles": [{"GPU": 1, "disk": "much"}]},
        {"bundles": [{"GPU": 1}], "strategy": "TIGHT"},
        {"bundles": [{"GPU": 1}], "resources": {}},
    ],
)
def test_placement_agrees_with_ray(placement: dict[str, Any]) -> None:
    """What Ray's PlacementGroupConfig raises for fails our lint, and the rest does not."""
    own = rejects(lambda: _placement()(**placement))
    failed = _failed({**GOOD, "placement_group_config": placement})

    assert (failed != {}) is own
