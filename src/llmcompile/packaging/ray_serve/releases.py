"""What each release of Ray Serve's LLM module reads: keys by release, accelerators, buckets, the vLLM it asks for.

Source: the wheels ray 2.44.1, 2.45.0, 2.46.0, 2.47.1, 2.48.0, 2.49.2, 2.50.1, 2.51.2, 2.52.1, 2.53.0, 2.54.1, 2.55.1,
2.56.1, 2.57.1, 2.58.1, 2.59.0 and 2.60.0 of PyPI (ray-project/ray at the tag of the same name):
ray/llm/_internal/serve/configs/server_models.py up to 2.50, ray/llm/_internal/serve/core/configs/llm_config.py since;
ray/llm/_internal/common/utils/cloud_utils.py, ray/util/accelerators/accelerators.py, ray/serve/config.py,
ray/serve/api.py, ray/serve/schema.py, ray/serve/_private/config.py; the extra "llm" of the wheel's METADATA.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

VLLM: Mapping[str, str] = MappingProxyType(
    {
        "2.60": "==0.29.0",
        "2.59": "==0.27.0",
        "2.58": "==0.26.0",
        "2.57": "==0.25.1",
        "2.56": "==0.22.0",
        "2.55": ">=0.18.0",
        "2.54": ">=0.15.0",
        "2.53": ">=0.12.0",
        "2.52": ">=0.11.0",
        "2.51": ">=0.11.0",
        "2.50": ">=0.10.2",
        "2.49": ">=0.10.0",
        "2.48": ">=0.9.2",
        "2.47": ">=0.8.5",
        "2.46": ">=0.8.5",
        "2.45": ">=0.8.2",
        "2.44": ">=0.7.2",
    }
)
"""Release, newest first -> the vLLM that `pip install "ray[llm]"` asks for."""
RELEASES: tuple[str, ...] = tuple(VLLM)

_ACCELERATORS: tuple[tuple[int, tuple[str, ...]], ...] = (
    (44, ("V100", "P100", "T4", "P4", "K80", "A10G", "L4", "L40S", "A100", "A100-40G", "A100-80G", "H100", "H200")),
    (44, ("Intel-GPU-Max-1550", "Intel-GPU-Max-1100", "Intel-GAUDI")),
    (44, ("AMD-Instinct-MI100", "AMD-Instinct-MI250X", "AMD-Instinct-MI250X-MI250", "AMD-Instinct-MI210")),
    (44, ("AMD-Instinct-MI300X-OAM", "AMD-Radeon-R9-200-HD-7900", "AMD-Radeon-HD-7900")),
    (44, ("aws-neuron-core", "TPU-V2", "TPU-V3", "TPU-V4", "TPU-V5P", "TPU-V5LITEPOD", "TPU-V6E")),
    (45, ("H20", "Ascend910B", "Ascend910B4")),
    (48, ("AMD-Instinct-MI300A", "AMD-Instinct-MI300X-HF", "AMD-Instinct-MI308X", "AMD-Instinct-MI325X-OAM")),
    (49, ("B200",)),
    (50, ("AMD-Instinct-MI350X-OAM", "AMD-Instinct-MI355X-OAM")),
    (53, ("MXC500", "MXC550")),
    (54, ("TPU-V7X",)),
    (55, ("B300",)),
    (56, ("FURIOSA_RNGD",)),
    (57, ("RTX-PRO-6000",)),
    (58, ("GB200", "GB300")),
    (58, ("M1", "M1-Pro", "M1-Max", "M1-Ultra", "M2", "M2-Pro", "M2-Max", "M2-Ultra", "M3", "M3-Pro", "M3-Max")),
    (58, ("Apple-Silicon",)),
    (59, ("MOBILINT_ARIES", "MOBILINT_REGULUS")),
)
UNLABELLED: frozenset[str] = frozenset({"A100-40G", "A100-80G"})
"""Accelerators whose label Ray does not put on a node by itself: the comment in ray/util/accelerators."""
ALIASES: Mapping[str, str] = MappingProxyType({"A10": "A10G"})
"""What LLMConfig reads as another accelerator."""

_SCHEMES: tuple[tuple[int, tuple[str, ...]], ...] = (
    (44, ("s3://", "gs://")),
    (50, ("abfss://", "azure://")),
    (53, ("pyarrow-",)),
)
_AZURE: tuple[tuple[str, str], ...] = (
    ("abfss://", r"abfss://[^/@\s]+@[^/@\s]+\.dfs\.core\.windows\.net(?:/\S*)?"),
    ("azure://", r"azure://[^/@\s]+@[^/@\s]+\.(?:blob|dfs)\.core\.windows\.net(?:/\S*)?"),
)
NODES: Mapping[str, tuple[int, str]] = MappingProxyType(
    {"s3://": (53, "boto3"), "abfss://": (50, "adlfs azure-identity"), "azure://": (50, "adlfs azure-identity")}
)
"""Scheme -> since which release its buckets need packages that ray[llm] does not bring, and which."""
IMPORTS_BOTO3 = (53, 55)
"""First and last release that do not start without boto3, which ray[llm] does not bring: s3_filesystem.py."""
STRICT = 49
"""Since 2.49 unknown keys of model_loading_config, its bucket and lora_config are refused; before, ignored."""
URI_AS_SOURCE = 57
"""Since 2.57 a bucket's URI as model_source itself is downloaded; before, it was taken for the id of a hub model."""

DATED: Mapping[str, tuple[int, int | None]] = MappingProxyType(
    {
        "resources_per_bundle": (45, 50),
        "experimental_configs": (46, None),
        "log_engine_metrics": (47, None),
        "placement_group_config": (51, None),
        "callback_config": (51, None),
        "use_cpu": (54, 55),
        "server_cls": (54, None),
        "accelerator_config": (56, None),
        "placement_group_config.bundle_per_worker": (55, None),
        "experimental_configs.num_router_replicas": (46, 49),
        "experimental_configs.num_ingress_replicas": (50, None),
        "deployment_config.request_router_class": (47, 47),
        "deployment_config.request_router_config": (48, None),
        "deployment_config.max_constructor_retry_count": (50, None),
        "deployment_config.placement_group_bundle_label_selector": (54, None),
        "deployment_config.gang_scheduling_config": (55, None),
        "deployment_config.deployment_actors": (55, None),
        "deployment_config.rolling_update_percentage": (56, None),
        "deployment_config.backpressure_config": (58, None),
        "deployment_config.max_surge_percent": (60, None),
        "deployment_config.autoscaling_config.downscale_to_zero_delay_s": (50, None),
        "deployment_config.autoscaling_config.policy": (50, None),
        "deployment_config.autoscaling_config.aggregation_function": (51, None),
        "deployment_config.ray_actor_options.label_selector": (54, None),
        "deployment_config.ray_actor_options.fallback_strategy": (54, None),
    }
)
"""Key of an LLMConfig -> first minor release that reads it and the last, None for the newest; others are in all."""

SUCCESSORS: Mapping[str, str] = MappingProxyType(
    {
        "deployment_config.max_concurrent_queries": "max_ongoing_requests",
        "deployment_config.autoscaling_config.target_num_ongoing_requests_per_replica": "target_ongoing_requests",
        "deployment_config.placement_group_bundles": "placement_group_config.bundles of the LLMConfig",
        "deployment_config.placement_group_strategy": "placement_group_config.strategy of the LLMConfig",
        "deployment_config.request_router_class": "request_router_config.request_router_class",
        "resources_per_bundle": "placement_group_config.bundle_per_worker",
        "use_cpu": "accelerator_config: {kind: cpu}",
        "experimental_configs.num_router_replicas": "num_ingress_replicas",
        "engine_config": "the keys that `llmcompile package ray-serve --from-rayllm FILE OUTPUT` writes",
        "scaling_config": "engine_kwargs.tensor_parallel_size and placement_group_config",
        "multiplex_config": "lora_config",
        "generation": "the tokenizer's chat template",
        "max_total_tokens": "engine_kwargs.max_model_len",
        "tensor_parallel_size": "engine_kwargs.tensor_parallel_size",
        "max_model_len": "engine_kwargs.max_model_len",
        "model_id": "model_loading_config.model_id",
        "model_source": "model_loading_config.model_source",
    }
)
"""Name that Ray Serve no longer reads, or never did -> what it reads."""
DEPRECATED: Mapping[str, str] = MappingProxyType(
    {
        "smoothing_factor": "upscaling_factor and downscaling_factor",
        "upscale_smoothing_factor": "upscaling_factor",
        "downscale_smoothing_factor": "downscaling_factor",
    }
)
"""Key of autoscaling_config that still works -> what replaces it."""


def minor(release: str) -> int:
    """The number after "2."."""
    return int(release.split(".")[1])


def release_of(version: str | None) -> str | None:
    """The release that a version is of; None for one that is not known."""
    if version is None:
        return None
    return next((release for release in RELEASES if version == release or version.startswith(f"{release}.")), None)


def accelerators(release: str) -> tuple[str, ...]:
    """Values of accelerator_type."""
    return tuple(name for since, names in _ACCELERATORS if since <= minor(release) for name in names)


def schemes(release: str) -> tuple[str, ...]:
    """How a bucket's URI may begin."""
    return tuple(name for since, names in _SCHEMES if since <= minor(release) for name in names)


def azure_form(uri: str) -> str | None:
    """What the URI of an Azure container looks like, where this one does not; None for a good one and other stores."""
    for scheme, pattern in _AZURE:
        if uri.startswith(scheme) and re.fullmatch(pattern, uri) is None:
            kind = "dfs" if scheme == "abfss://" else "blob"
            return f"{scheme}CONTAINER@ACCOUNT.{kind}.core.windows.net/FOLDER"
    return None


def reads(key: str, release: str) -> bool:
    """Whether a release reads a key of LLMConfig; the key is one of those of any release."""
    first, last = DATED.get(key, (0, None))
    return first <= minor(release) and (last is None or minor(release) <= last)


def satisfies(version: str, requirement: str) -> bool | None:
    """Whether a version of vLLM is what "==x" or ">=x" asks for; None where it cannot be told."""
    found, wanted = _numbers(version), _numbers(requirement[2:])
    if found is None or wanted is None:
        return None
    return found == wanted if requirement.startswith("==") else found >= wanted


def _numbers(version: str) -> list[int] | None:
    match = re.match(r"\d+(?:\.\d+)*", version)
    if match is None:
        return None
    numbers = [int(part[:9]) for part in match.group().split(".")]
    while len(numbers) > 1 and numbers[-1] == 0:
        numbers.pop()
    return numbers
