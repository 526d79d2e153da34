"""A RayLLM registry entry, strictly: every unknown key is an error, every word is one of those its engine knows.

RayLLM's own models are looser: they ignore unknown keys outside engine_config and prompt_format, and take any word for
scheduler_policy, logger_level and model_type, which then end the engine when it starts. `Flaw.effect` says which of
these would have happened.

Source: ray-project/ray-llm@891ccd7 (release 0.5.0): rayllm/backend/server/models.py, rayllm/common/models.py,
rayllm/backend/llm/{vllm/vllm_models,trtllm/trtllm_models,embedding/embedding_models}.py; AutoscalingConfig is that of
ray 2.9.3, ray/serve/config.py.
"""

from __future__ import annotations

import reprlib
import string
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from llmcompile.errors import CheckpointError, Problem, collected
from llmcompile.packaging.documents import yaml_value

Effect = Literal["refused", "ignored", "start", "request", "guessed"]
"""What RayLLM does about a flaw: it refuses the entry, goes on as if the key were not there, fails when the model
starts, fails at every chat, or supplies what is missing by the list that the entry is in."""
_START = frozenset({"scheduler_policy", "logger_level", "placement_strategy"})


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class AutoscalingConfig(_Strict):
    """How many replicas there are."""

    min_replicas: int = Field(1, ge=0)
    initial_replicas: int | None = Field(None, ge=0)
    max_replicas: int = Field(1, ge=1)
    target_num_ongoing_requests_per_replica: float = Field(1, gt=0)
    metrics_interval_s: float = Field(10.0, gt=0)
    look_back_period_s: float = Field(30.0, gt=0)
    smoothing_factor: float = Field(1.0, gt=0)
    upscale_smoothing_factor: float | None = Field(None, gt=0)
    downscale_smoothing_factor: float | None = Field(None, gt=0)
    downscale_delay_s: float = Field(600.0, ge=0)
    upscale_delay_s: float = Field(30.0, ge=0)

    @model_validator(mode="after")
    def _ordered(self) -> AutoscalingConfig:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas {self.max_replicas} is less than min_replicas {self.min_replicas}")
        first = self.initial_replicas
        if first is not None and not self.min_replicas <= first <= self.max_replicas:
            raise ValueError(f"initial_replicas {first} is not in {self.min_replicas} to {self.max_replicas}")
        return self


class DeploymentConfig(_Strict):
    """The Ray Serve deployment of one model."""

    autoscaling_config: AutoscalingConfig | None = None
    max_concurrent_queries: int | None = Field(None, ge=1)
    ray_actor_options: dict[str, Any] | None = None


class ScalingConfig(_Strict):
    """The workers of one replica."""

    num_workers: int = Field(ge=1)
    num_gpus_per_worker: float = Field(1, ge=0, le=1)
    num_cpus_per_worker: float = Field(1, ge=0)
    placement_strategy: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    resources_per_worker: dict[str, float] | None = None
    pg_timeout_s: float = Field(600, ge=0)


class MultiplexConfig(_Strict):
    """How many models share a replica."""

    max_num_models_per_replica: int


class Credentials(_Strict):
    """Where a node gets credentials for the bucket from; never the credentials themselves."""

    create_aws_credentials_url: str
    auth_token_env_variable: str | None = None


class ExtraFiles(_Strict):
    """Further files that each node downloads."""

    bucket_uri: str
    destination_path: str


class S3MirrorConfig(_Strict):
    """A bucket of S3 that is read instead of the hub."""

    bucket_uri: str | None = None
    s3_sync_args: tuple[str, ...] | None = None
    s3_aws_credentials: Credentials | None = None
    extra_files: tuple[ExtraFiles, ...] = ()

    @field_validator("bucket_uri")
    @classmethod
    def _of_s3(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith("s3://"):
            raise PydanticCustomError("start", "a URI that begins with s3://")
        return value


class GCSMirrorConfig(_Strict):
    """A bucket of Google Cloud Storage that is read instead of the hub."""

    bucket_uri: str = Field(pattern=r"^gs://")
    extra_files: tuple[ExtraFiles, ...] = ()


class PromptFormat(_Strict):
    """How messages become a prompt; see `llmcompile.packaging.prompt_format`."""

    system: str
    assistant: str
    trailing_assistant: str
    user: str
    default_system_message: str = ""
    system_in_user: bool = False
    add_system_tags_even_if_message_is_empty: bool = False
    strip_whitespace: bool = True

    @field_validator("system", "assistant", "user")
    @classmethod
    def _formats(cls, value: str, info: ValidationInfo) -> str:
        known = {"instruction", "system"} if info.field_name == "user" else {"instruction"}
        if "{instruction}" not in value:
            raise ValueError("holds no {instruction}")
        try:
            named = placeholders(value)
        except ValueError as error:
            raise PydanticCustomError("request", str(error)) from error
        if "instruction" not in named:
            raise PydanticCustomError("request", "holds {{instruction}}, where the message's text is not filled in")
        if len(named - known) > 0:
            found = f"holds {{{min(named - known)}}}, which RayLLM does not fill; write {{{{ and }}}} for braces"
            raise PydanticCustomError("request", found)
        return value

    @model_validator(mode="after")
    def _system_has_one_place(self) -> PromptFormat:
        placed = "system" in placeholders(self.user)
        if self.system_in_user and not placed:
            raise ValueError("system_in_user is true, and user holds no {system}")
        if placed and not self.system_in_user:
            raise PydanticCustomError("request", "user holds {system}, filled only where system_in_user is true")
        return self


class GenerationConfig(_Strict):
    """What a request gets where it says nothing.

    `prompt_format` must be written, if only as null, which means no chat: where the key is absent RayLLM 0.5.0 fails
    at every request.
    """

    prompt_format: PromptFormat | None
    generate_kwargs: dict[str, Any] = {}
    stopping_sequences: tuple[str | int | tuple[str | int, ...], ...] | None = None

    @field_validator("prompt_format", mode="before")
    @classmethod
    def _nothing_is_null(cls, value: object) -> object:
        return None if value == {} else value


class _EngineConfig(_Strict):
    model_id: str = Field(min_length=1)
    hf_model_id: str | None = None
    tokenizer_id: str | None = None
    s3_mirror_config: S3MirrorConfig | None = None
    gcs_mirror_config: GCSMirrorConfig | None = None
    engine_kwargs: dict[str, Any] = {}
    runtime_env: dict[str, Any] | None = None
    env_vars_to_propogate: tuple[str, ...] = ("HUGGING_FACE_HUB_TOKEN", "ENDPOINTS_ENABLE_SECRET_LOADING")

    @model_validator(mode="after")
    def _one_mirror(self) -> _EngineConfig:
        if self.s3_mirror_config is not None and self.gcs_mirror_config is not None:
            raise ValueError("s3_mirror_config and gcs_mirror_config are both there; RayLLM takes one")
        return self


class VLLMEngine(_EngineConfig):
    """A Hugging Face checkpoint, served by vLLM."""

    type: Literal["VLLMEngine"]
    model_type: Literal["text-generation", "text-generation-finetuned", "embedding"] = "text-generation"
    model_url: str | None = None
    model_description: str | None = None
    generation: GenerationConfig
    max_total_tokens: int = Field(2048, ge=1)


class TRTLLMEngine(_EngineConfig):
    """A TensorRT-LLM engine."""

    type: Literal["TRTLLMEngine"]
    model_type: Literal["InflightFusedBatching", "InflightBatching"] = "InflightFusedBatching"
    model_local_path: str | None = None
    generation: GenerationConfig
    max_total_tokens: int = Field(2048, ge=1)
    scheduler_policy: Literal["MAX_UTILIZATION", "GUARANTEED_NO_EVICT"] = "MAX_UTILIZATION"
    logger_level: Literal["INFO", "VERBOSE", "WARNING", "ERROR", "INTERNAL_ERROR"] = "INFO"
    max_num_sequences: int | None = Field(None, ge=1)
    max_tokens_in_paged_kv_cache: int | None = Field(None, ge=1)
    kv_cache_free_gpu_mem_fraction: float | None = Field(None, gt=0, le=1)
    enable_trt_overlap: bool = True


class EmbeddingEngine(_EngineConfig):
    """An encoder, whose last hidden states are averaged."""

    type: Literal["EmbeddingEngine"]
    model_type: Literal["text-generation", "text-generation-finetuned", "embedding"] = "embedding"
    model_url: str | None = None
    model_description: str | None = None
    optimize: Literal["onnx"] | None = None
    max_total_tokens: int = Field(512, ge=1)
    max_batch_size: int = Field(1, ge=1)
    batch_wait_timeout_s: float = Field(0.1, ge=0)


ENGINES: Mapping[str, str] = MappingProxyType(
    {
        "VLLMEngine": "models",
        "TRTLLMEngine": "trtllm_models",
        "EmbeddingEngine": "embedding_models",
    }
)
"""Engine -> the argument of rayllm.backend:router_application that entries of it go into."""


class LLMApp(_Strict):
    """A registry entry: one model, how it is served, and on what."""

    engine_config: Annotated[VLLMEngine | TRTLLMEngine | EmbeddingEngine, Field(discriminator="type")]
    scaling_config: ScalingConfig
    deployment_config: DeploymentConfig | None = None
    multiplex_config: MultiplexConfig | None = None
    enabled: bool = True


@dataclass(frozen=True)
class Flaw:
    """Something wrong in an entry.

    Attributes:
        key: Where, with dots; empty for the whole entry.
        found: What is there.
        expected: What should be.
        effect: What RayLLM itself does about it.
    """

    key: str
    found: str
    expected: str
    effect: Effect


def placeholders(text: str) -> frozenset[str]:
    """Names that `str.format` would fill in a text.

    Raises:
        ValueError: `str.format` would fail: a lone brace, a field without a name, an index or an attribute.
    """
    names = set()
    for _, name, spec, conversion in string.Formatter().parse(text):
        if name is None:
            continue
        if not name.isidentifier() or spec != "" or conversion is not None:
            raise ValueError(f"holds {{{name}}}, which is no placeholder; write {{{{ and }}}} for braces")
        names.add(name)
    return frozenset(names)


def parse(text: str, name: str) -> object:
    """The content of a YAML or JSON file, as RayLLM's safe loader has it.

    Raises:
        CheckpointError: It cannot be parsed, or is larger than `documents.yaml_value` takes.
    """
    try:
        return yaml_value(text)
    except ValueError as error:
        raise CheckpointError(name, str(error), "a RayLLM registry entry", "correct the file") from error


def flaws(content: object) -> tuple[Flaw, ...]:
    """Everything that is wrong with an entry, in the order of its keys; empty for a good one."""
    try:
        LLMApp.model_validate(content)
    except ValidationError as error:
        return tuple(_flaw(item) for item in error.errors(include_url=False, include_context=False))
    return ()


def read_entry(text: str, name: str) -> LLMApp:
    """Read a registry entry.

    Args:
        text: YAML or JSON.
        name: How messages call it.

    Raises:
        CheckpointError: It cannot be parsed, or has flaws; carries every one of them.
    """
    content = parse(text, name)
    found = flaws(content)
    if len(found) > 0:
        hint = "correct the entry; docs/formats/rayllm.md lists every key"
        raise collected(
            CheckpointError,
            [Problem(f"{name}: {flaw.key or 'entry'}", flaw.found, flaw.expected, hint) for flaw in found],
        )
    return LLMApp.model_validate(content)


def _flaw(item: Any) -> Flaw:
    # The engine's name is part of the location of whatever is wrong in engine_config.
    location = [str(part) for part in item["loc"] if part not in ENGINES]
    key = ".".join(location)
    if item["type"] == "extra_forbidden":
        refused = location[:-1] in (["engine_config"], ["engine_config", "generation", "prompt_format"])
        return Flaw(key, "unknown key", "a key that RayLLM reads", "refused" if refused else "ignored")
    if item["type"] == "union_tag_not_found":
        return Flaw(f"{key}.type", "missing", f"one of {', '.join(ENGINES)}", "guessed")
    if item["type"] == "missing":
        absent_format = location[-2:] == ["generation", "prompt_format"]
        return Flaw(key, "missing", "a value", "request" if absent_format else "refused")
    expected = str(item["msg"]).removeprefix("Value error, ")
    return Flaw(key, reprlib.repr(item["input"]), expected, _effect(item, location[-1:]))


def _effect(item: Any, last: list[str]) -> Effect:
    if item["type"] in ("start", "request"):
        effect: Effect = item["type"]
        return effect
    # TRTLLMEngine's model_type is looked up when it starts; the others' is an enumeration.
    late = last == ["model_type"] and "TRTLLMEngine" in item["loc"]
    return "start" if late or (last != [] and last[0] in _START) else "refused"
