"""A RayLLM registry entry as an LLMConfig: each key under today's name, or named in a note with the reason.

Source of what the old keys did: ray-project/ray-llm@891ccd7; of what the new ones do: as in `releases`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from llmcompile.errors import OptionsError, UnsupportedError
from llmcompile.packaging.ray_serve import RayServeOptions
from llmcompile.packaging.ray_serve import config as configs
from llmcompile.packaging.ray_serve.engine_args import ENGINE, FRONTEND, QUANTIZATIONS, RESERVED
from llmcompile.packaging.ray_serve.engine_args import VERSION as KNOWN_VLLM
from llmcompile.packaging.ray_serve.releases import VLLM, minor, reads
from llmcompile.packaging.rayllm.schema import EmbeddingEngine, LLMApp, S3MirrorConfig, TRTLLMEngine, VLLMEngine
from llmcompile.packaging.rayllm.schema import read_entry as read_rayllm
from llmcompile.packaging.target import Package, Request

ACCELERATORS: Mapping[str, str] = MappingProxyType(
    {
        "a10": "A10G",
        "a10g": "A10G",
        "a100": "A100",
        "a100_40g": "A100-40G",
        "a100_80g": "A100-80G",
        "h100": "H100",
        "l4": "L4",
        "l40s": "L40S",
        "t4": "T4",
        "v100": "V100",
    }
)
"""Custom resource of RayLLM's clusters, without "accelerator_type_" -> Ray's own accelerator_type."""
_RESOURCE = re.compile(r"accelerator_type_(?P<name>[a-z0-9_]+?)(?P<cloud>_(?:aws|gcp|azure))?")
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_new_tokens", "max_tokens")
_PROPAGATED = frozenset({"HUGGING_FACE_HUB_TOKEN", "HF_TOKEN"})
_SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|CREDENTIAL|ACCESS_KEY|API_KEY", re.IGNORECASE)
EMBEDDINGS = 50
"""Since 2.50 the vLLM that Ray asks for, 0.10.2, takes runner: pooling."""


def package(text: str, name: str, options: RayServeOptions, request: Request) -> Package:
    """The files and what to say about them; see `llmcompile.packaging.ray_serve.convert`."""
    app = read_rayllm(text, name)
    release = request.version
    _refuse(app, name, release)
    notes: list[str] = []
    config = dict(_config(app, name, options, release, notes))
    bucket = config["model_loading_config"].get("model_source")
    if isinstance(bucket, dict):
        uri = bucket["bucket_uri"]
        notes.append(f"Every file under {uri} is downloaded; a file hash there names the snapshot, as with RayLLM.")
        notes += configs.bucket_notes(uri, release)
    return Package(
        texts=configs.files(config, release),
        runtime=request.runtime_version or VLLM[release][2:],
        notes=(
            *notes,
            *configs.accelerator_notes(config.get("accelerator_type")),
            *configs.request_notes(config, release),
        ),
        next=configs.commands(release, None),
    )


def _refuse(app: LLMApp, name: str, release: str) -> None:
    engine = app.engine_config
    if isinstance(engine, TRTLLMEngine):
        hint = "package the engine with llmcompile package triton ARTIFACT OUTPUT, or write an entry with VLLMEngine"
        found = "TRTLLMEngine, which has no successor: Ray Serve's LLM module runs vLLM"
        raise UnsupportedError(f"{name}: engine_config.type", found, "VLLMEngine or EmbeddingEngine", hint)
    if isinstance(engine, EmbeddingEngine) and minor(release) < EMBEDDINGS:
        expected = f"Ray 2.{EMBEDDINGS} or later, whose vLLM has runner: pooling"
        found = f"EmbeddingEngine for Ray {release}"
        raise UnsupportedError(f"{name}: engine_config.type", found, expected, "leave --ray-version out")
    quantization = engine.engine_kwargs.get("quantization")
    if quantization == "squeezellm" or (_exact(release) and quantization not in (None, *QUANTIZATIONS)):
        expected = "a method vLLM has: awq, gptq, compressed-tensors, fp8, ..."
        found = f"{quantization}, which vLLM no longer has"
        hint = "serve another quantization of the model"
        raise UnsupportedError(f"{name}: engine_config.engine_kwargs.quantization", found, expected, hint)
    if app.scaling_config.num_gpus_per_worker == 0:
        expected = "a GPU for each worker"
        hint = "write accelerator_config: {kind: cpu} into an LLMConfig by hand"
        raise UnsupportedError(f"{name}: scaling_config.num_gpus_per_worker", "0, workers on CPUs", expected, hint)


def _config(
    app: LLMApp, name: str, options: RayServeOptions, release: str, notes: list[str]
) -> Iterator[tuple[str, Any]]:
    """The LLMConfig, key by key; what cannot be said goes into `notes`."""
    engine = app.engine_config
    yield "model_loading_config", _loading(app, name, options, release, notes)
    yield "llm_engine", "vLLM"
    tp = app.scaling_config.num_workers if options.tp is None else options.tp
    pp = 1 if options.pp is None else options.pp
    kwargs = _engine_kwargs(app, tp, pp, options, release, notes)
    yield "engine_kwargs", kwargs
    accelerator, resources = _accelerator(app, options, release, notes)
    if accelerator is not None:
        yield "accelerator_type", accelerator
    yield from _placement(app, resources, tp * pp, pp, release, notes)
    if engine.runtime_env is not None:
        yield "runtime_env", _runtime_env(engine.runtime_env, notes)
    yield "deployment_config", _deployment(app, options, release, notes)
    if kwargs.get("disable_log_stats") is True and reads("log_engine_metrics", release):
        # LLMConfig refuses disable_log_stats beside engine metrics, which are on by default.
        yield "log_engine_metrics", False
    _gone(app, notes)


def _loading(app: LLMApp, name: str, options: RayServeOptions, release: str, notes: list[str]) -> dict[str, Any]:
    engine = app.engine_config
    configs.check_sources(options)
    made: dict[str, Any] = {
        "model_id": configs.check_model_id(options.model_id or engine.model_id, f"{name}: engine_config.model_id")
    }
    mirror = engine.s3_mirror_config if engine.gcs_mirror_config is None else engine.gcs_mirror_config
    uri = None if mirror is None else mirror.bucket_uri
    if options.bucket_uri is not None:
        made["model_source"] = {"bucket_uri": configs.checked_bucket(options.bucket_uri, release)}
    elif options.model_source is not None:
        made["model_source"] = configs.checked_path(options.model_source)
    elif uri is not None:
        made["model_source"] = {"bucket_uri": configs.checked_bucket(uri, release)}
    elif engine.hf_model_id is not None:
        made["model_source"] = engine.hf_model_id
    if mirror is None:
        return made
    if isinstance(made.get("model_source"), dict) and len(mirror.extra_files) > 0:
        made["model_source"]["extra_files"] = [file.model_dump() for file in mirror.extra_files]
    if isinstance(mirror, S3MirrorConfig):
        if mirror.s3_sync_args is not None:
            notes.append("s3_sync_args: dropped; Ray Serve downloads without the aws command.")
        if mirror.s3_aws_credentials is not None:
            notes.append("s3_aws_credentials: dropped; give the nodes a role, or AWS_* variables.")
    if engine.hf_model_id is not None and engine.hf_model_id != made["model_id"]:
        notes.append(f"hf_model_id {engine.hf_model_id}: dropped; a bucket's model is cached under its model_id.")
    return made


def _engine_kwargs(
    app: LLMApp, tp: int, pp: int, options: RayServeOptions, release: str, notes: list[str]
) -> dict[str, Any]:
    engine = app.engine_config
    made: dict[str, Any] = {"tensor_parallel_size": tp}
    if pp > 1:
        made["pipeline_parallel_size"] = pp
    length = engine.max_total_tokens if options.max_model_len is None else options.max_model_len
    made["max_model_len"] = length
    if isinstance(engine, EmbeddingEngine):
        made["runner"] = "pooling"
        notes.append("EmbeddingEngine: vLLM pools and normalizes as the model's own files say; RayLLM averaged.")
    if engine.tokenizer_id is not None:
        made["tokenizer"] = engine.tokenizer_id
    for key, value in engine.engine_kwargs.items():
        reason = _dropped(key, value, made, release)
        if reason is None:
            made[key] = value
        else:
            notes.append(f"engine_kwargs.{key}: dropped; {reason}.")
    if options.dtype is not None:
        made["dtype"] = options.dtype
    if options.load_format is not None:
        made["load_format"] = options.load_format
    if options.trust_remote_code:
        made["trust_remote_code"] = True
    elif made.get("trust_remote_code") is True:
        notes.append("engine_kwargs.trust_remote_code: kept; vLLM runs code that lies with the model.")
    if isinstance(engine, VLLMEngine):
        defaults = {key: value for key, value in engine.generation.generate_kwargs.items() if key in _SAMPLING}
        if "max_tokens" in defaults:
            defaults["max_new_tokens"] = defaults.pop("max_tokens")
        if len(defaults) > 0:
            made["override_generation_config"] = defaults
    return made


def _dropped(key: str, value: object, made: Mapping[str, Any], release: str) -> str | None:
    """Why a key of the old engine_kwargs has no place in the new; None where it has."""
    if key in RESERVED:
        return f"{RESERVED[key]} says it"
    if key in made:
        return f"it is {made[key]} already"
    if key == "distributed_executor_backend" and value != "ray":
        return "Ray Serve runs the workers by ray alone"
    if _exact(release) and key not in ENGINE | FRONTEND:
        return f"vLLM {KNOWN_VLLM} has no such argument"
    return None


def _exact(release: str) -> bool:
    return VLLM[release] == f"=={KNOWN_VLLM}"


def _accelerator(
    app: LLMApp, options: RayServeOptions, release: str, notes: list[str]
) -> tuple[str | None, dict[str, float]]:
    """accelerator_type, and the custom resources of a worker that are left."""
    found = None
    left = {}
    for resource, amount in (app.scaling_config.resources_per_worker or {}).items():
        known = _known_accelerator(resource, notes)
        if known is None:
            left[resource] = amount
        else:
            found = known
    if options.accelerator_type is not None:
        found = options.accelerator_type
    if found is not None:
        found = configs.checked_accelerator(found, release)
    return found, left


def _known_accelerator(resource: str, notes: list[str]) -> str | None:
    match = _RESOURCE.fullmatch(resource)
    if match is None or match["name"] not in ACCELERATORS:
        return None
    if match["cloud"] is not None:
        found = ACCELERATORS[match["name"]]
        notes.append(f"{resource}: read as {found}; Ray has no label for a cloud's own nodes.")
    return ACCELERATORS[match["name"]]


def _placement(
    app: LLMApp, resources: Mapping[str, float], workers: int, pp: int, release: str, notes: list[str]
) -> Iterator[tuple[str, Any]]:
    scaling = app.scaling_config
    bundle = {"CPU": scaling.num_cpus_per_worker, "GPU": scaling.num_gpus_per_worker, **resources}
    bundle = {name: configs.whole(amount) for name, amount in bundle.items() if amount > 0}
    strategy = scaling.placement_strategy
    if reads("placement_group_config.bundle_per_worker", release):
        yield "placement_group_config", {"bundle_per_worker": bundle, "strategy": strategy}
    elif reads("placement_group_config", release):
        yield "placement_group_config", {"bundles": [dict(bundle) for _ in range(workers)], "strategy": strategy}
    else:
        own = "STRICT_PACK" if pp == 1 else "PACK"
        if strategy != own:
            notes.append(f"placement_strategy {strategy}: dropped; Ray {release} takes {own}.")
        if reads("resources_per_bundle", release):
            yield "resources_per_bundle", bundle
        else:
            notes.append(f"num_cpus_per_worker, resources_per_worker: dropped; Ray {release} gives a worker one GPU.")


def _runtime_env(environment: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """The runtime environment without secrets: a package is no place for them."""
    variables = environment.get("env_vars")
    if not isinstance(variables, dict):
        return dict(environment)
    secret = [name for name in variables if _SECRET.search(str(name)) is not None]
    for name in secret:
        instead = "set it where Ray is started" if name in _PROPAGATED else "set it on the nodes"
        notes.append(f"runtime_env.env_vars.{name}: dropped, so that no file holds it; {instead}.")
    return {**environment, "env_vars": {name: value for name, value in variables.items() if name not in secret}}


def _deployment(app: LLMApp, options: RayServeOptions, release: str, notes: list[str]) -> dict[str, Any]:
    old = app.deployment_config
    scale = None if old is None else old.autoscaling_config
    fewest, most, target = (1, 1, None)
    if scale is not None:
        fewest, most = scale.min_replicas, scale.max_replicas
        target = scale.target_num_ongoing_requests_per_replica
    made: dict[str, Any] = {"autoscaling_config": configs.replicas(options, fewest, most, release, target)}
    if scale is not None:
        made["autoscaling_config"] |= _pace(scale.model_dump(exclude_unset=True), made["autoscaling_config"], notes)
    limit = None if old is None else old.max_concurrent_queries
    if options.max_ongoing_requests is not None:
        limit = options.max_ongoing_requests
    if limit is not None:
        made["max_ongoing_requests"] = limit
    actor = {} if old is None or old.ray_actor_options is None else dict(old.ray_actor_options)
    resources = actor.pop("resources", None) or {}
    if not isinstance(resources, dict):
        raise OptionsError(
            "ray_actor_options.resources", repr(resources)[:60], "resource -> amount", "correct the entry"
        )
    # The engine's bundles ask for the accelerator; the actor itself needs none.
    kept = {name: amount for name, amount in resources.items() if _RESOURCE.fullmatch(str(name)) is None}
    if len(kept) > 0:
        actor["resources"] = kept
    if len(kept) < len(resources):
        names = ", ".join(sorted(set(resources) - set(kept)))
        notes.append(f"ray_actor_options.resources.{names}: dropped; accelerator_type places the replica.")
    if len(actor) > 0:
        made["ray_actor_options"] = actor
    return made


def _pace(old: Mapping[str, Any], made: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """The rest of autoscaling_config, of the keys that the entry writes."""
    pace: dict[str, Any] = {}
    first = old.get("initial_replicas")
    if first is not None:
        if made["min_replicas"] <= first <= made["max_replicas"]:
            pace["initial_replicas"] = first
        else:
            notes.append(f"initial_replicas {first}: dropped; it is outside of the replicas asked for.")
    for key in ("look_back_period_s", "metrics_interval_s", "downscale_delay_s", "upscale_delay_s"):
        if key in old:
            pace[key] = configs.whole(old[key])
    if old.get("metrics_interval_s", 10) != 10:
        notes.append("metrics_interval_s: kept; deprecated for RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S.")
    both = old.get("smoothing_factor")
    for new, former in (
        ("upscaling_factor", old.get("upscale_smoothing_factor")),
        ("downscaling_factor", old.get("downscale_smoothing_factor")),
    ):
        factor = both if former is None else former
        if factor is not None:
            pace[new] = configs.whole(factor)
    return pace


def _gone(app: LLMApp, notes: list[str]) -> None:
    """Keys without a successor, each with its reason."""
    engine = app.engine_config
    if not app.enabled:
        notes.append("enabled: false, so RayLLM skipped this entry; the package serves it.")
    if app.multiplex_config is not None:
        notes.append("multiplex_config: dropped; adapters are served by lora_config.dynamic_lora_loading_path.")
    if "pg_timeout_s" in app.scaling_config.model_fields_set:
        notes.append("pg_timeout_s: dropped; Ray Serve waits for its placement groups itself.")
    if "env_vars_to_propogate" in engine.model_fields_set:
        other = sorted(set(engine.env_vars_to_propogate) - _PROPAGATED)
        if len(other) > 0:
            notes.append(f"env_vars_to_propogate: {', '.join(other)} are not passed on; name them in runtime_env.")
    if not isinstance(engine, TRTLLMEngine):
        described = [key for key in ("model_type", "model_url", "model_description") if key in engine.model_fields_set]
        if len(described) > 0:
            notes.append(f"{', '.join(described)}: dropped; the models' list of the API holds no such text.")
    if isinstance(engine, EmbeddingEngine):
        batching = [
            key for key in ("optimize", "max_batch_size", "batch_wait_timeout_s") if key in engine.model_fields_set
        ]
        if len(batching) > 0:
            notes.append(f"{', '.join(batching)}: dropped; vLLM batches by itself, and runs no ONNX.")
    if isinstance(engine, VLLMEngine):
        _generation(engine, notes)


def _generation(engine: VLLMEngine, notes: list[str]) -> None:
    generation = engine.generation
    if generation.prompt_format is not None:
        notes.append(
            "prompt_format: dropped; the chat template of the tokenizer decides. Compare a prompt, or set"
            " engine_kwargs.chat_template."
        )
    other = sorted(set(generation.generate_kwargs) - set(_SAMPLING))
    if len(other) > 0:
        notes.append(f"generate_kwargs {', '.join(other)}: dropped; a request says it.")
    if generation.stopping_sequences is not None and len(generation.stopping_sequences) > 0:
        words = ", ".join(str(word) for word in generation.stopping_sequences)
        notes.append(f"stopping_sequences {words}: dropped; a request says stop.")
