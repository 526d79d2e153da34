"""Requests to SageMaker with botocore's own model of the API: our copy of its limits, and every package's requests."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("botocore", reason="botocore is installed for the serving tests alone")

import botocore
import botocore.session
from botocore.model import ServiceModel, Shape
from botocore.serialize import create_serializer
from botocore.validate import ParamValidator

from llmcompile.packaging.sagemaker import api, hosts

OPERATIONS = {
    "create_model.json": "CreateModel",
    "create_endpoint_config.json": "CreateEndpointConfig",
    "create_endpoint.json": "CreateEndpoint",
    "create_optimization_job.json": "CreateOptimizationJob",
}
PACKAGES = sorted(Path(os.environ.get("SERVING_PACKAGES", "nowhere")).glob("*"))
INSTANCE_TYPES = ("ProductionVariantInstanceType", "OptimizationJobDeploymentInstanceType")
"""Our copy has a pattern for these long lists."""


@pytest.fixture(scope="module")
def service() -> ServiceModel:
    """The API, as botocore knows it."""
    return botocore.session.get_session().get_service_model("sagemaker")


def shape_of(service: ServiceModel, file: str) -> Shape:
    """What the request in a file must be."""
    shape = service.operation_model(OPERATIONS[file]).input_shape
    assert shape is not None
    return shape


def strict(value: Any, shape: Any, path: str = "") -> Iterator[str]:
    """What AWS would refuse by the model; botocore itself leaves patterns, choices and upper limits to AWS."""
    limits = shape.metadata
    if shape.type_name == "structure":
        for name, inner in value.items():
            yield from strict(inner, shape.members[name], f"{path}.{name}")
    elif shape.type_name == "list":
        for number, inner in enumerate(value):
            yield from strict(inner, shape.member, f"{path}[{number}]")
    elif shape.type_name == "map":
        for name, inner in value.items():
            yield from strict(name, shape.key, f"{path}.{name}")
            yield from strict(inner, shape.value, f"{path}.{name}")
    elif shape.type_name == "string":
        if "pattern" in limits and re.fullmatch(limits["pattern"], value) is None:
            yield f"{path}: {value}: {limits['pattern']}"
        if shape.enum != [] and value not in shape.enum:
            yield f"{path}: {value} is none of the choices"
    size = value if shape.type_name in ("integer", "float") else None if isinstance(value, bool) else len(value)
    if size is not None and not limits.get("min", size) <= size <= limits.get("max", size):
        yield f"{path}: {size} is not within {limits}"


def test_the_version_is_the_one_our_copy_is_of() -> None:
    """The limits were read there."""
    assert botocore.__version__ == "1.44.5"
    assert f"botocore {botocore.__version__}" in str(api.__doc__)


@pytest.mark.parametrize("name", [name for name in api.SHAPES if name not in INSTANCE_TYPES])
def test_our_copy_of_a_shape_is_botocores(name: str, service: ServiceModel) -> None:
    """Types, members, required ones, limits, patterns and choices."""
    ours, theirs = api.SHAPES[name], service.shape_for(name)
    raw = service._service_description["shapes"][name]

    assert ours.kind == raw["type"]
    assert {**ours.members, **dict.fromkeys(ours.others.split())}.keys() == raw.get("members", {}).keys()
    assert {member: raw["members"][member]["shape"] for member in ours.members} == dict(ours.members)
    assert ours.required == tuple(raw.get("required", ()))
    assert ours.least == (raw.get("min") or None)
    assert ours.most == raw.get("max")
    assert ours.pattern == raw.get("pattern")
    assert ours.choices == tuple(raw.get("enum", ()))
    assert theirs.type_name == ours.kind


@pytest.mark.parametrize("name", INSTANCE_TYPES)
def test_our_pattern_of_an_instance_type_fits_every_one(name: str, service: ServiceModel) -> None:
    """And the types that we know are among those that an endpoint may have."""
    choices = service.shape_for(name).enum

    assert all(re.fullmatch(str(api.SHAPES[name].pattern), choice) for choice in choices)
    if name == INSTANCE_TYPES[0]:
        assert hosts.INSTANCES.keys() <= set(choices)


@pytest.mark.skipif(PACKAGES == [], reason="SERVING_PACKAGES names no folder with packages: make test-serving")
@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_every_request_of_a_package_is_one_that_botocore_sends(package: Path, service: ServiceModel) -> None:
    """Validated, serialized, and within every limit of the model."""
    found = [file for file in OPERATIONS if (package / file).exists()]

    for file in found:
        content = json.loads((package / file).read_text())
        shape = shape_of(service, file)
        report = ParamValidator().validate(content, shape)
        assert not report.has_errors(), report.generate_report()
        assert list(strict(content, shape)) == []
        create_serializer("json").serialize_to_request(content, service.operation_model(OPERATIONS[file]))
    assert {"create_model.json", "create_endpoint_config.json", "create_endpoint.json"} <= set(found)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("create_model.json", {"ModelName": "a_b"}),
        ("create_model.json", {"ModelName": "a" * 64}),
        ("create_model.json", {"ModelName": "a", "ExecutionRoleArn": "arn:aws:iam::1:role/x"}),
        ("create_model.json", {"ModelName": "a", "PrimaryContainer": {"Environment": {"1": "x"}}}),
        ("create_model.json", {"ModelName": "a", "PrimaryContainer": {"Environment": {"A": "x" * 1025}}}),
        (
            "create_model.json",
            {"ModelName": "a", "PrimaryContainer": {"Environment": {f"A{number}": "" for number in range(101)}}},
        ),
        ("create_endpoint.json", {"EndpointName": "a-", "EndpointConfigName": "a"}),
        ("create_endpoint_config.json", {"EndpointConfigName": "a", "ProductionVariants": []}),
        (
            "create_endpoint_config.json",
            {
                "EndpointConfigName": "a",
                "ProductionVariants": [{"VariantName": "a", "ModelDataDownloadTimeoutInSeconds": 59}],
            },
        ),
    ],
)
def test_what_botocores_model_refuses_we_refuse(file: str, content: dict[str, Any], service: ServiceModel) -> None:
    """By either of its checks."""
    shape = shape_of(service, file)
    theirs = ParamValidator().validate(content, shape).has_errors() or list(strict(content, shape)) != []

    assert theirs
    assert list(api.check(content, api.REQUESTS[file])) != []
