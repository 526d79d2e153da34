"""Ray Serve's LLMConfig, strictly: every key that a release does not read is an error, also where Ray ignores it.

Ray refuses unknown keys of an LLMConfig, and since 2.49 those of its model_loading_config and lora_config. It takes any
key of deployment_config, ignores those of autoscaling_config, and ends in `serve.deployment()` with a TypeError for the
others, when the application is built. `Flaw.effect` says which of these would have happened.

Source: as in `releases`; the effects were tried with ray 2.60.0.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, field_validator

from llmcompile.packaging.ray_serve.releases import DATED, STRICT, SUCCESSORS, minor, reads

Effect = Literal["refused", "ignored", "build", "start"]
"""What Ray Serve does about a flaw: refuses the file, goes on as if the key were not there, fails when it builds the
application, or when the engine starts."""
EFFECTS: Mapping[Effect, str] = MappingProxyType(
    {
        "refused": "Ray Serve refuses the file",
        "ignored": "Ray Serve ignores it without a word",
        "build": "Ray Serve accepts the file and fails when it builds the application",
        "start": "Ray Serve accepts the file and fails when the engine starts",
    }
)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class ExtraFiles(_Strict):
    """Further files that each node downloads."""

    bucket_uri: str
    destination_path: str


class CloudMirrorConfig(_Strict):
    """A bucket that is read instead of the hub."""

    bucket_uri: str | None = None
    extra_files: list[ExtraFiles] = []


def _source_tag(value: object) -> str:
    return "bucket" if isinstance(value, dict) else "text"


class ModelLoadingConfig(_Strict):
    """What the model is called, and where it comes from."""

    model_id: str
    model_source: (
        Annotated[Annotated[str, Tag("text")] | Annotated[CloudMirrorConfig, Tag("bucket")], Discriminator(_source_tag)]
        | None
    ) = None
    tokenizer_source: str | None = None


class LoraConfig(_Strict):
    """Adapters that are loaded on demand."""

    dynamic_lora_loading_path: str | None = None
    max_num_adapters_per_replica: int = Field(16, gt=0)
    download_timeout_s: float | None = None
    max_download_tries: int = 3


class AutoscalingConfig(_Strict):
    """How many replicas there are."""

    min_replicas: int = Field(1, ge=0)
    initial_replicas: int | None = Field(None, ge=0)
    max_replicas: int = Field(1, gt=0)
    target_ongoing_requests: float | None = Field(None, gt=0)
    metrics_interval_s: float = Field(10.0, gt=0)
    look_back_period_s: float = Field(30.0, gt=0)
    smoothing_factor: float = Field(1.0, gt=0)
    upscale_smoothing_factor: float | None = Field(None, gt=0)
    downscale_smoothing_factor: float | None = Field(None, gt=0)
    upscaling_factor: float | None = Field(None, gt=0)
    downscaling_factor: float | None = Field(None, gt=0)
    downscale_delay_s: float = Field(600.0, ge=0)
    downscale_to_zero_delay_s: float | None = Field(None, ge=0)
    upscale_delay_s: float = Field(30.0, ge=0)
    aggregation_function: Literal["mean", "max", "min"] = "mean"
    policy: dict[str, Any] = {}


class RayActorOptions(_Strict):
    """What the actor of a replica needs besides the engine's workers."""

    num_cpus: float | None = Field(None, ge=0)
    num_gpus: float | None = Field(None, ge=0)
    memory: float | None = Field(None, ge=0)
    resources: dict[str, float] = {}
    accelerator_type: str | None = None
    runtime_env: dict[str, Any] = {}
    label_selector: dict[str, str] | None = None
    fallback_strategy: list[dict[str, Any]] | None = None


class BackpressureConfig(_Strict):
    """What a client is answered when the queue is full."""

    status_code: Literal[503, 429] = 503
    retry_after_s: float | None = Field(None, ge=0, allow_inf_nan=False)


class RequestRouterConfig(_Strict):
    """How a replica is chosen for a request."""

    request_router_class: str = ""
    request_router_kwargs: dict[str, Any] = {}
    request_routing_stats_period_s: float = Field(10.0, gt=0)
    request_routing_stats_timeout_s: float = Field(30.0, gt=0)
    initial_backoff_s: float = Field(0.025, gt=0)
    backoff_multiplier: float = Field(2.0, gt=0)
    max_backoff_s: float = Field(0.5, gt=0)


class GangSchedulingConfig(_Strict):
    """Replicas that start and stop together."""

    gang_size: int = Field(ge=1)
    gang_placement_strategy: Literal["PACK", "SPREAD"] = "PACK"
    runtime_failure_policy: Literal["RESTART_GANG"] = "RESTART_GANG"


class DeploymentActorConfig(_Strict):
    """An actor that all replicas share."""

    name: str
    actor_class: str
    init_args: list[Any] = []
    init_kwargs: dict[str, Any] = {}
    actor_options: dict[str, Any] = {}


class LoggingConfig(_Strict):
    """What is logged, and how."""

    encoding: Literal["TEXT", "JSON"] = "TEXT"
    log_level: str | int = "INFO"
    logs_dir: str | None = None
    enable_access_log: bool = True
    additional_log_standard_attrs: list[str] = []


class DeploymentConfig(_Strict):
    """Options of `serve.deployment` that an LLMConfig may set."""

    name: str = ""
    num_replicas: int | Literal["auto"] | None = None
    ray_actor_options: RayActorOptions | None = None
    user_config: Any = None
    max_ongoing_requests: int = Field(5, gt=0)
    max_queued_requests: int = -1
    backpressure_config: BackpressureConfig = Field(default_factory=lambda: BackpressureConfig.model_validate({}))
    autoscaling_config: AutoscalingConfig | None = None
    graceful_shutdown_wait_loop_s: float = Field(2.0, ge=0)
    graceful_shutdown_timeout_s: float = Field(20.0, ge=0)
    health_check_period_s: float = Field(10.0, gt=0)
    health_check_timeout_s: float = Field(30.0, gt=0)
    logging_config: LoggingConfig | None = None
    request_router_class: str = ""
    request_router_config: RequestRouterConfig = Field(default_factory=lambda: RequestRouterConfig.model_validate({}))
    max_constructor_retry_count: int = Field(20, gt=0)
    placement_group_bundle_label_selector: list[dict[str, str]] | None = None
    gang_scheduling_config: GangSchedulingConfig | None = None
    deployment_actors: list[DeploymentActorConfig] | None = None
    rolling_update_percentage: float = Field(0.2, gt=0, le=1)
    max_surge_percent: int = Field(0, ge=0, le=100)

    @field_validator("max_queued_requests")
    @classmethod
    def _limit(cls, value: int) -> int:
        if value < 1 and value != -1:
            raise ValueError("must be -1, for no limit, or at least 1")
        return value


class Bundle(BaseModel):
    """Resources of one worker; names of custom resources are free."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, Annotated[float, Field(ge=0)]] = Field(init=False)

    CPU: float = Field(0.0, ge=0)
    GPU: float = Field(0.0, ge=0)


class PlacementGroupConfig(_Strict):
    """Where the engine's workers go."""

    bundle_per_worker: Bundle | None = None
    bundles: list[Bundle] | None = None
    strategy: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"


class AcceleratorConfig(_Strict):
    """What kind of device the workers run on."""

    kind: Literal["cpu", "gpu", "tpu"]
    topology: str | None = None


class CallbackConfig(_Strict):
    """Code to run while the engine starts."""

    callback_class: str = ""
    callback_kwargs: dict[str, Any] = {}
    raise_error_on_callback: bool = True


class LLMConfig(_Strict):
    """One model: where it comes from, its engine, what it runs on, how many replicas."""

    runtime_env: dict[str, Any] | None = None
    model_loading_config: ModelLoadingConfig
    llm_engine: str = "vLLM"
    engine_kwargs: dict[str, Any] = {}
    resources_per_bundle: dict[str, float] | None = None
    accelerator_type: str | None = None
    use_cpu: bool | None = None
    accelerator_config: AcceleratorConfig | None = None
    placement_group_config: PlacementGroupConfig | None = None
    lora_config: LoraConfig | None = None
    deployment_config: DeploymentConfig = Field(default_factory=lambda: DeploymentConfig.model_validate({}))
    server_cls: str | None = None
    experimental_configs: dict[str, Any] = {}
    log_engine_metrics: bool | None = True
    callback_config: CallbackConfig = CallbackConfig()


class Application(_Strict):
    """One application of a Serve config file."""

    name: str = "default"
    route_prefix: str | None = "/"
    import_path: str
    runtime_env: dict[str, Any] = {}
    host: str = "0.0.0.0"  # noqa: S104  # the default that is read, nothing is bound
    port: int = 8000
    deployments: list[dict[str, Any]] = []
    args: dict[str, Any] = {}
    logging_config: dict[str, Any] | None = None
    autoscaling_policy: dict[str, Any] | None = None
    external_scaler_enabled: bool = False


class ServeFile(_Strict):
    """A Serve config file, as `serve run` reads it."""

    applications: list[Application]
    proxy_location: Literal["Disabled", "HeadOnly", "EveryNode"] = "EveryNode"
    http_options: dict[str, Any] = {}
    grpc_options: dict[str, Any] = {}
    logging_config: dict[str, Any] | None = None
    target_capacity: float | None = Field(None, ge=0, le=100)
    controller_options: dict[str, Any] | None = None
    tracing_config: dict[str, Any] | None = None


@dataclass(frozen=True)
class Flaw:
    """Something wrong in an LLMConfig.

    Attributes:
        key: Where, with dots.
        found: What is there.
        expected: What should be.
        effect: What Ray Serve does about it.
    """

    key: str
    found: str
    expected: str
    effect: Effect


_TAGS = frozenset({"text", "bucket", "int", "str", "literal['auto']"})
_MODELS: Mapping[str, type[BaseModel]] = MappingProxyType(
    {
        "": LLMConfig,
        "model_loading_config": ModelLoadingConfig,
        "model_loading_config.model_source": CloudMirrorConfig,
        "lora_config": LoraConfig,
        "deployment_config": DeploymentConfig,
        "deployment_config.autoscaling_config": AutoscalingConfig,
        "deployment_config.ray_actor_options": RayActorOptions,
        "placement_group_config": PlacementGroupConfig,
        "accelerator_config": AcceleratorConfig,
        "callback_config": CallbackConfig,
    }
)


def flaws(config: object, release: str) -> tuple[Flaw, ...]:
    """Everything that is wrong with an LLMConfig for a release; empty for a good one."""
    undated = tuple(_undated(config, release))
    try:
        LLMConfig.model_validate(config)
    except ValidationError as error:
        found = [_flaw(item, release) for item in error.errors(include_url=False, include_context=False)]
        # A release that does not read a key does not read what is under it either.
        other = tuple(f"{flaw.key}." for flaw in undated)
        return *(flaw for flaw in found if not f"{flaw.key}.".startswith(other)), *undated
    return undated


def file_flaws(content: object) -> tuple[Flaw, ...]:
    """Everything that is wrong with a Serve config file around its LLMConfigs; Ray Serve ignores unknown keys of it."""
    try:
        ServeFile.model_validate(content)
    except ValidationError as error:
        return tuple(_file_flaw(item) for item in error.errors(include_url=False, include_context=False))
    return ()


def _flaw(item: Any, release: str) -> Flaw:
    location = [str(part) for part in item["loc"]]
    location = [part for number, part in enumerate(location) if number == 0 or part not in _TAGS]
    key, parent = ".".join(location), ".".join(location[:-1])
    if item["type"] == "extra_forbidden":
        return Flaw(key, "unknown key", _instead(key, parent, release), _unknown_effect(parent, release))
    if item["type"] == "missing":
        return Flaw(key, "missing", "a value", "refused")
    effect: Effect = "start" if location[0] == "placement_group_config" else "refused"
    if parent == "deployment_config.ray_actor_options":
        effect = "build"
    return Flaw(key, reprlib.repr(item["input"]), str(item["msg"]).removeprefix("Value error, "), effect)


def _file_flaw(item: Any) -> Flaw:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        known = Application if "applications" in item["loc"] else ServeFile
        return Flaw(key, "unknown key", _nearest(str(item["loc"][-1]), list(known.model_fields)), "ignored")
    found = "missing" if item["type"] == "missing" else reprlib.repr(item["input"])
    return Flaw(key or "serve.yaml", found, str(item["msg"]).removeprefix("Value error, "), "refused")


def _undated(config: object, release: str) -> Iterator[Flaw]:
    """Keys of other releases."""
    for key, (first, last) in DATED.items():
        value = config
        for part in key.split("."):
            value = value.get(part, _ABSENT) if isinstance(value, dict) else _ABSENT
        if value is _ABSENT or reads(key, release):
            continue
        parent = key.rpartition(".")[0]
        span = f"2.{first} and later" if last is None else f"2.{first} to 2.{last}"
        newer = SUCCESSORS.get(key)
        instead = "" if newer is None or minor(release) < first else f"; {newer}"
        effect = _unknown_effect(parent, release)
        if parent == "experimental_configs":
            effect = "refused" if key.endswith("num_router_replicas") else "ignored"
        yield Flaw(key, f"a key of {span}", f"a key of {release}{instead}", effect)


_ABSENT = object()


def _unknown_effect(parent: str, release: str) -> Effect:
    if parent.startswith("deployment_config.autoscaling_config") or parent == "experimental_configs":
        return "ignored"
    if parent in ("deployment_config", "deployment_config.ray_actor_options"):
        return "build"
    if parent.startswith(("model_loading_config", "lora_config")) and minor(release) < STRICT:
        return "ignored"
    if parent.startswith("placement_group_config"):
        return "start"
    return "ignored" if parent == "accelerator_config" else "refused"


def _instead(key: str, parent: str, release: str) -> str:
    newer = SUCCESSORS.get(key)
    if newer is not None:
        return newer
    model = _MODELS.get(parent)
    prefix = "" if parent == "" else f"{parent}."
    known = [] if model is None else [name for name in model.model_fields if reads(f"{prefix}{name}", release)]
    return _nearest(key.rpartition(".")[2], known)


def _nearest(name: str, known: list[str]) -> str:
    near = get_close_matches(name, known, 1)
    return near[0] if len(near) > 0 else f"one of {', '.join(known)}"
