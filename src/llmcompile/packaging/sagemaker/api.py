"""Requests of SageMaker's API as data: what CreateModel and its neighbours accept, checked before AWS is asked.

Source: botocore 1.44.5, data/sagemaker/2017-07-24/service-2.json; members that this project neither writes nor checks
are listed by name alone. The total length of an environment is in the documentation of ContainerDefinition there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal


@dataclass(frozen=True)
class Shape:
    """What a value must be.

    Attributes:
        kind: Its type.
        members: Of a structure: name -> name of its shape.
        others: Of a structure: names of members that are not checked, separated by blanks.
        required: Of a structure: members that must be there.
        item: Of a list or map: shape of its values.
        key: Of a map: shape of its keys.
        least: Smallest number, or number of entries or characters.
        most: Largest number, or number of entries or characters.
        pattern: That a whole text must match.
        choices: The only values; empty where there is no such list.
    """

    kind: Literal["structure", "list", "map", "string", "integer", "float", "boolean"]
    members: Mapping[str, str] = field(default_factory=dict)
    others: str = ""
    required: tuple[str, ...] = ()
    item: str = ""
    key: str = ""
    least: int | None = None
    most: int | None = None
    pattern: str | None = None
    choices: tuple[str, ...] = ()


_HEALTH = "ProductionVariantContainerStartupHealthCheckTimeoutInSeconds"
SHAPES: Mapping[str, Shape] = MappingProxyType(
    {
        "Boolean": Shape("boolean"),
        "ContainerDefinition": Shape(
            "structure",
            members={
                "ContainerHostname": "ContainerHostname",
                "Image": "ContainerImage",
                "Mode": "ContainerMode",
                "ModelDataUrl": "Url",
                "ModelDataSource": "ModelDataSource",
                "Environment": "EnvironmentMap",
            },
            others=(
                "ImageConfig AdditionalModelDataSources ModelPackageName InferenceSpecificationName "
                "MultiModelConfig ContainerMetricsConfig"
            ),
        ),
        "ContainerDefinitionList": Shape("list", item="ContainerDefinition", most=15),
        "ContainerHostname": Shape("string", most=63, pattern=r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}"),
        "ContainerImage": Shape("string", most=255, pattern=r"[\S]+"),
        "ContainerMode": Shape("string", choices=("SingleModel", "MultiModel")),
        "CreateEndpointConfigInput": Shape(
            "structure",
            members={"EndpointConfigName": "EndpointConfigName", "ProductionVariants": "ProductionVariantList"},
            others=(
                "DataCaptureConfig Tags KmsKeyId AsyncInferenceConfig ExplainerConfig "
                "ShadowProductionVariants ExecutionRoleArn VpcConfig EnableNetworkIsolation MetricsConfig "
                "CrossRegionTrafficConfig"
            ),
            required=("EndpointConfigName", "ProductionVariants"),
        ),
        "CreateEndpointInput": Shape(
            "structure",
            members={"EndpointName": "EndpointName", "EndpointConfigName": "EndpointConfigName"},
            others="DeploymentConfig Tags",
            required=("EndpointName", "EndpointConfigName"),
        ),
        "CreateModelInput": Shape(
            "structure",
            members={
                "ModelName": "ModelName",
                "PrimaryContainer": "ContainerDefinition",
                "Containers": "ContainerDefinitionList",
                "ExecutionRoleArn": "RoleArn",
                "EnableNetworkIsolation": "Boolean",
            },
            others="InferenceExecutionConfig Tags VpcConfig",
            required=("ModelName",),
        ),
        "CreateOptimizationJobRequest": Shape(
            "structure",
            members={
                "OptimizationJobName": "EntityName",
                "RoleArn": "RoleArn",
                "ModelSource": "OptimizationJobModelSource",
                "DeploymentInstanceType": "OptimizationJobDeploymentInstanceType",
                "MaxInstanceCount": "OptimizationJobMaxInstanceCount",
                "OptimizationEnvironment": "OptimizationJobEnvironmentVariables",
                "OptimizationConfigs": "OptimizationConfigs",
                "OutputConfig": "OptimizationJobOutputConfig",
                "StoppingCondition": "StoppingCondition",
            },
            others="Tags VpcConfig TrainingPlanArns",
            required=(
                "OptimizationJobName",
                "RoleArn",
                "ModelSource",
                "DeploymentInstanceType",
                "OptimizationConfigs",
                "OutputConfig",
                "StoppingCondition",
            ),
        ),
        "EndpointConfigName": Shape("string", most=63, pattern=r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}"),
        "EndpointName": Shape("string", most=63, pattern=r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}"),
        "EntityName": Shape("string", least=1, most=63, pattern=r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}"),
        "EnvironmentKey": Shape("string", most=1024, pattern=r"[a-zA-Z_][a-zA-Z0-9_]*"),
        "EnvironmentMap": Shape("map", key="EnvironmentKey", item="EnvironmentValue", most=100),
        "EnvironmentValue": Shape("string", most=1024, pattern=r"[\S\s]*"),
        "InitialTaskCount": Shape("integer", least=1),
        "KmsKeyId": Shape("string", most=2048, pattern=r"[a-zA-Z0-9:/_-]*"),
        "MaxPendingTimeInSeconds": Shape("integer", least=1800, most=2419200),
        "MaxRuntimeInSeconds": Shape("integer", least=1),
        "MaxWaitTimeInSeconds": Shape("integer", least=1),
        "ModelCompilationConfig": Shape(
            "structure",
            members={
                "Image": "OptimizationContainerImage",
                "OverrideEnvironment": "OptimizationJobEnvironmentVariables",
            },
        ),
        "ModelCompressionType": Shape("string", choices=("None", "Gzip")),
        "ModelDataSource": Shape("structure", members={"S3DataSource": "S3ModelDataSource"}),
        "ModelName": Shape("string", most=63, pattern=r"[a-zA-Z0-9]([\-a-zA-Z0-9]*[a-zA-Z0-9])?"),
        "ModelQuantizationConfig": Shape(
            "structure",
            members={
                "Image": "OptimizationContainerImage",
                "OverrideEnvironment": "OptimizationJobEnvironmentVariables",
            },
        ),
        "ModelShardingConfig": Shape(
            "structure",
            members={
                "Image": "OptimizationContainerImage",
                "OverrideEnvironment": "OptimizationJobEnvironmentVariables",
            },
        ),
        "NonEmptyString256": Shape("string", most=256, pattern=r"(?!\s*$).+"),
        "OptimizationConfig": Shape(
            "structure",
            members={
                "ModelQuantizationConfig": "ModelQuantizationConfig",
                "ModelCompilationConfig": "ModelCompilationConfig",
                "ModelShardingConfig": "ModelShardingConfig",
            },
            others="ModelSpeculativeDecodingConfig",
        ),
        "OptimizationConfigs": Shape("list", item="OptimizationConfig", most=10),
        "OptimizationContainerImage": Shape("string", most=255, pattern=r"[\S]+"),
        "OptimizationJobDeploymentInstanceType": Shape("string", pattern=r"ml\.[a-z0-9\-]+\.[a-z0-9]+"),
        "OptimizationJobEnvironmentVariables": Shape("map", key="NonEmptyString256", item="String256", most=25),
        "OptimizationJobMaxInstanceCount": Shape("integer", least=1),
        "OptimizationJobModelSource": Shape(
            "structure", members={"S3": "OptimizationJobModelSourceS3", "SageMakerModel": "OptimizationSageMakerModel"}
        ),
        "OptimizationJobModelSourceS3": Shape(
            "structure", members={"S3Uri": "S3Uri", "ModelAccessConfig": "OptimizationModelAccessConfig"}
        ),
        "OptimizationJobOutputConfig": Shape(
            "structure",
            members={"KmsKeyId": "KmsKeyId", "S3OutputLocation": "S3Uri"},
            others="SageMakerModel",
            required=("S3OutputLocation",),
        ),
        "OptimizationModelAcceptEula": Shape("boolean"),
        "OptimizationModelAccessConfig": Shape(
            "structure", members={"AcceptEula": "OptimizationModelAcceptEula"}, required=("AcceptEula",)
        ),
        "OptimizationSageMakerModel": Shape("structure", members={"ModelName": "ModelName"}),
        "ProductionVariant": Shape(
            "structure",
            members={
                "VariantName": "VariantName",
                "ModelName": "ModelName",
                "InitialInstanceCount": "InitialTaskCount",
                "InstanceType": "ProductionVariantInstanceType",
                "InitialVariantWeight": "VariantWeight",
                "VolumeSizeInGB": "ProductionVariantVolumeSizeInGB",
                "ModelDataDownloadTimeoutInSeconds": "ProductionVariantModelDataDownloadTimeoutInSeconds",
                "ContainerStartupHealthCheckTimeoutInSeconds": _HEALTH,
                "EnableSSMAccess": "ProductionVariantSSMAccess",
                "InferenceAmiVersion": "ProductionVariantInferenceAmiVersion",
            },
            others=(
                "InstancePools VariantInstanceProvisionTimeoutInSeconds AcceleratorType CoreDumpConfig "
                "ServerlessConfig ManagedInstanceScaling RoutingConfig CapacityReservationConfig "
                "AcceleratorPartitionLayouts"
            ),
            required=("VariantName",),
        ),
        _HEALTH: Shape("integer", least=60, most=3600),
        "ProductionVariantInferenceAmiVersion": Shape(
            "string",
            choices=(
                "al2-ami-sagemaker-inference-gpu-2",
                "al2-ami-sagemaker-inference-gpu-2-1",
                "al2-ami-sagemaker-inference-gpu-3-1",
                "al2-ami-sagemaker-inference-neuron-2",
                "al2023-ami-sagemaker-inference-gpu-4-1",
            ),
        ),
        "ProductionVariantInstanceType": Shape("string", pattern=r"ml\.[a-z0-9\-]+\.[a-z0-9]+"),
        "ProductionVariantList": Shape("list", item="ProductionVariant", least=1, most=10),
        "ProductionVariantModelDataDownloadTimeoutInSeconds": Shape("integer", least=60, most=3600),
        "ProductionVariantSSMAccess": Shape("boolean"),
        "ProductionVariantVolumeSizeInGB": Shape("integer", least=1, most=512),
        "RoleArn": Shape(
            "string", least=20, most=2048, pattern=r"arn:aws[a-z\-]*:iam::\d{12}:role/?[a-zA-Z_0-9+=,.@\-_/]+"
        ),
        "S3ModelDataSource": Shape(
            "structure",
            members={"S3Uri": "S3ModelUri", "S3DataType": "S3ModelDataType", "CompressionType": "ModelCompressionType"},
            others="ModelAccessConfig HubAccessConfig ManifestS3Uri ETag ManifestEtag",
            required=("S3Uri", "S3DataType", "CompressionType"),
        ),
        "S3ModelDataType": Shape("string", choices=("S3Prefix", "S3Object")),
        "S3ModelUri": Shape("string", most=1024, pattern=r"(https|s3)://([^/]+)/?(.*)"),
        "S3Uri": Shape("string", most=1024, pattern=r"(https|s3)://([^/]+)/?(.*)"),
        "StoppingCondition": Shape(
            "structure",
            members={
                "MaxRuntimeInSeconds": "MaxRuntimeInSeconds",
                "MaxWaitTimeInSeconds": "MaxWaitTimeInSeconds",
                "MaxPendingTimeInSeconds": "MaxPendingTimeInSeconds",
            },
        ),
        "String256": Shape("string", most=256),
        "Url": Shape("string", most=1024, pattern=r"(https|s3)://([^/]+)/?(.*)"),
        "VariantName": Shape("string", most=63, pattern=r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}"),
        "VariantWeight": Shape("float"),
    }
)
REQUESTS: Mapping[str, str] = MappingProxyType(
    {
        "create_model.json": "CreateModelInput",
        "create_endpoint_config.json": "CreateEndpointConfigInput",
        "create_endpoint.json": "CreateEndpointInput",
        "create_optimization_job.json": "CreateOptimizationJobRequest",
    }
)
"""File of a package -> shape of the request in it."""
ENVIRONMENT_BYTES = 32 << 10
"""Names and values of a container's environment together."""
_TYPES: Mapping[str, tuple[type, ...]] = MappingProxyType(
    {
        "structure": (dict,),
        "map": (dict,),
        "list": (list,),
        "string": (str,),
        "integer": (int,),
        "float": (int, float),
        "boolean": (bool,),
    }
)


@dataclass(frozen=True)
class Fault:
    """Where a request is not what the API takes: the path of a value, what it is, and what it must be."""

    path: str
    found: str
    expected: str


def check(request: object, shape: str, path: str = "") -> Iterator[Fault]:
    """Every fault of a request, or of a part of one."""
    wanted = SHAPES[shape]
    right = isinstance(request, _TYPES[wanted.kind]) and isinstance(request, bool) == (wanted.kind == "boolean")
    if not right:
        yield Fault(path, f"{type(request).__name__} {request!r}"[:80], wanted.kind)
        return
    if isinstance(request, dict) and wanted.kind == "structure":
        yield from _structure(request, wanted, path)
    elif isinstance(request, dict):
        for name, value in request.items():
            shown = f"{path}.{name if name.isprintable() else repr(name):.40}".lstrip(".")
            yield from check(name, wanted.key, f"{shown} (name)")
            yield from check(value, wanted.item, shown)
    elif isinstance(request, list):
        for number, value in enumerate(request):
            yield from check(value, wanted.item, f"{path}[{number}]")
    elif isinstance(request, str):
        if wanted.pattern is not None and re.fullmatch(wanted.pattern, request) is None:
            yield Fault(path, repr(request)[:80], f"text like {wanted.pattern}")
        if wanted.choices != () and request not in wanted.choices:
            yield Fault(path, repr(request)[:80], f"one of {', '.join(wanted.choices)}")
    yield from _size(request, wanted, path)


def _structure(request: Mapping[str, object], wanted: Shape, path: str) -> Iterator[Fault]:
    for name in wanted.required:
        if name not in request:
            yield Fault(f"{path}.{name}".lstrip("."), "missing", "a value")
    for name, value in request.items():
        below = f"{path}.{name}".lstrip(".")
        if name in wanted.members:
            yield from check(value, wanted.members[name], below)
        elif name not in wanted.others.split():
            yield Fault(below, "not a member of the request", ", ".join(wanted.members))


def _size(request: object, wanted: Shape, path: str) -> Iterator[Fault]:
    if isinstance(request, str):
        size, unit = len(request.encode("utf-8", errors="replace")), "bytes"
    elif isinstance(request, dict | list):
        size, unit = len(request), "entries"
    elif isinstance(request, int) and not isinstance(request, bool):
        size, unit = request, ""
    else:
        return
    if wanted.least is not None and size < wanted.least:
        yield Fault(path, f"{size} {unit}".strip(), f"at least {wanted.least}")
    if wanted.most is not None and size > wanted.most:
        yield Fault(path, f"{size} {unit}".strip(), f"at most {wanted.most}")
