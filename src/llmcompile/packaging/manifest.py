"""llmcompile.json, the record inside every artifact: what it was made of, how, by which versions, and what was proved.

It holds no time stamps, no output path and nothing that depends on how fast the work was done, so that the same
checkpoint, given the same way, and options give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llmcompile.errors import CheckpointError, Problem, collected
from llmcompile.writing import Written

SCHEMA_VERSION = 1
_SCHEMA_ID = "urn:llmcompile:manifest:1"
_PACKAGE_SCHEMA_ID = "urn:llmcompile:package:1"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileRecord(_Strict):
    """A file by its path, with forward slashes, and its content."""

    path: str
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Tool(_Strict):
    """The program that wrote the artifact."""

    name: Literal["llmcompile"] = "llmcompile"
    version: str


class Source(_Strict):
    """The checkpoint: where it came from and every file of it that was read."""

    model: str = Field(description="Hub id, or the local folder as it was given.")
    revision: str | None = Field(description="Revision as it was given; null for a local folder.")
    commit: str | None = Field(description="Commit the hub resolved it to; null for a local folder.")
    format: Literal["safetensors", "pickle", "trtllm", "folder"] = Field(
        description="trtllm: a finished checkpoint, given by --from-checkpoint; folder: read by optimum-neuron alone."
    )
    files: tuple[FileRecord, ...]


class Model(_Strict):
    """The model's family and everything that was taken from config.json."""

    architecture: str
    sizes: Mapping[str, int]
    facts: Mapping[str, bool | int | float | str | None]


class Deviation(_Strict):
    """A file that differs from what the vendor's converter writes, and why."""

    path: str
    reason: str


class Ignored(_Strict):
    """Tensors of the checkpoint that are not in the artifact, and why not."""

    reason: str
    tensors: tuple[str, ...]


class Comparison(_Strict):
    """One output of the artifact against the model's; floats are rounded to three significant digits."""

    input: str = Field(description="What was fed: fixed tokens, or a prompt through the tokenizer.")
    reference: str = Field(
        description="What it was compared with: the model as it is, or rounded to the artifact's dtype."
    )
    output: str
    passed: bool
    details: Mapping[str, Any]


class Quality(_Strict):
    """What a quantized artifact costs on a text, beside the float32 model.

    Perplexities have six significant digits, other figures three.
    """

    text: str
    recipe: str
    tokens: int
    perplexity_model: float
    perplexity: float
    top1: float = Field(description="Share of positions at which both prefer the same token.")
    largest_error: float = Field(description="Largest difference of a logit.")
    largest_logit: float
    kl: float | None = Field(None, description="Kullback-Leibler divergence from the model, nats per token.")


class Validation(_Strict):
    """What was proved about the numbers."""

    passed: bool
    executor: str
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...]
    quality: Quality | None = Field(None, description="Null for an artifact that is not quantized.")


class Columns(_Strict):
    """What a group's input channels are multiplied by before they are quantized."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="Of the factors, as little-endian float32.")
    smallest: float
    largest: float


class Calibration(_Strict):
    """What the scales of a calibrated recipe were measured on, and what was measured."""

    data: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="Of the file, or of the built-in text.")
    column: str = Field("text", description="Key or column of each record's text, where the data are records of texts.")
    calibrator: Literal["llmcompile", "modelopt"] = Field("llmcompile", description="Whose arithmetic measured.")
    calibrator_version: str | None = Field(None, description="Release of nvidia-modelopt; null for our own.")
    samples: int
    tokens: int = Field(description="Of each sample.")
    inputs: Mapping[str, float] = Field(
        description="Layer and group of linear layers -> largest magnitude of an input, after its channel's factor."
    )
    weights: Mapping[str, float] = Field(description="Likewise of a weight, divided by its channel's factor.")
    columns: Mapping[str, Columns] = Field(
        default_factory=dict, description="Layer and group -> its channels' factors; without AWQ and SmoothQuant, none."
    )
    experts: Mapping[str, tuple[float, ...]] = Field(
        default_factory=dict, description="Layer and group of experts -> of each expert, what weights has of all."
    )
    cache: Mapping[str, float] = Field(description="Layer -> largest magnitude of a query, key or value.")


class Engine(_Strict):
    """What an engine was built by and on; it runs on exactly these."""

    tensorrt_llm: str
    tensorrt: str | None
    gpu: str | None
    compute_capability: str | None
    driver: str | None
    ranks: int
    bytes: int
    flags: tuple[str, ...] = Field(description="Flags of trtllm-build, as they were given.")


class GraphValue(_Strict):
    """A tensor at the border of a graph."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class Graph(_Strict):
    """A static graph for one NeuronCore of a group, and what became of it."""

    name: str
    kind: Literal["encoder", "context_encoding", "token_generation"]
    hlo: str = Field(description="Path of the HloModuleProto in the artifact.")
    hlo_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    inputs: tuple[GraphValue, ...]
    outputs: tuple[GraphValue, ...]
    core_bytes: int = Field(description="Weights, caches, inputs and outputs of one core.")
    warnings: tuple[str, ...] = Field(description="What the preflight found and the compiler will take.")
    neff: str | None = Field(None, description="Path of the compiled graph; null for one that is not compiled yet.")
    neff_sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    cached: bool | None = Field(None, description="Whether the NEFF came from a compile cache.")


class Neuron(_Strict):
    """What a Neuron export is for, and what it was made by."""

    task: str
    via: Literal["xla", "optimum"]
    layout: str
    status: Literal["lowered", "compiled"]
    target: str = Field(description="Instance family the graphs are for.")
    ranks: int
    graphs: tuple[Graph, ...]
    compiler: str | None = Field(description="Version of neuronx-cc; null for graphs that are not compiled yet.")
    flags: tuple[str, ...] = Field(description="Arguments of neuronx-cc that decide what it makes.")
    environment_flags: tuple[str, ...] = Field(description="Those that came from NEURON_CC_FLAGS.")


class RtxValue(_Strict):
    """A tensor at the border of an ONNX graph; an axis is a number, or the name of a size known at run time."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class RtxProfile(_Strict):
    """One way a graph is used: of every input the least, the best and the most shape."""

    name: str
    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]


class RtxGraph(_Strict):
    """An ONNX graph, and the engine that was built of it: an engine cannot be asked where there is no GPU."""

    name: str
    onnx: str | None = Field(description="Path of the graph in the artifact; null where it was not kept.")
    onnx_sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="Of the file the engine was built of.")
    weights_sha256: str | None = Field(description="Of the file of weights beside it; null where there is none.")
    inputs: tuple[RtxValue, ...]
    outputs: tuple[RtxValue, ...]
    profiles: tuple[RtxProfile, ...]
    engine: str | None = Field(description="Path of the engine; null for an ONNX model alone.")
    engine_sha256: str | None = Field(pattern=r"^[0-9a-f]{64}$")


class RtxExecution(_Strict):
    """Whether engines were run where they were built, and on what."""

    gpu: str | None = Field(description="Name of the GPU; null where none ran them.")
    compute_capability: int | None
    cuda: str | None = Field(description="Release of CUDA its driver knows.")
    reason: str | None = Field(description="Why they were not run; null where they were.")


class Rtx(_Strict):
    """What an artifact for TensorRT for RTX is for, and what it was made by."""

    task: str
    status: Literal["onnx", "built"]
    executed: Literal["built, not executed", "built and executed"] | None = Field(
        description="Whether the engine was run; null for an ONNX model alone, which was."
    )
    execution: RtxExecution | None = Field(default=None, description="Null for an ONNX model alone.")
    dtype: str
    quantization: str | None
    quantized: tuple[str, ...] = Field(description="Weights that are quantized, by the model's names.")
    float32: tuple[str, ...] = Field(description="Weights that transformers keeps in float32 whatever the dtype.")
    opset: int
    graphs: tuple[RtxGraph, ...]
    compute_capabilities: tuple[int, ...] = Field(description="GPUs the engine is for; empty without one.")
    tensorrt_rtx: str | None = Field(description="Release that built the engine, and alone runs it.")
    weight_streaming: bool


class Manifest(_Strict):
    """The record of one artifact."""

    schema_version: Literal[1] = 1
    tool: Tool
    backend: Literal["ft", "trtllm", "neuron", "tensorrt-rtx"]
    source: Source
    model: Model
    options: Mapping[str, bool | int | float | str | None]
    versions: Mapping[str, str] = Field(description="Python and every library that touched numbers.")
    files: tuple[FileRecord, ...] = Field(description="Every file of the artifact but this one.")
    deviations: tuple[Deviation, ...]
    ignored: tuple[Ignored, ...]
    overflowed: Mapping[str, int] = Field(description="Tensor -> finite elements that became infinite in the cast.")
    notes: tuple[str, ...]
    validation: Validation | None = Field(description="Null when the artifact was built without validation.")
    engine: Engine | None = Field(None, description="Null for an artifact without an engine.")
    neuron: Neuron | None = Field(None, description="Null for an artifact of another backend.")
    calibration: Calibration | None = Field(None, description="Null for an artifact that needed no data.")
    rtx: Rtx | None = Field(default=None, description="Null for an artifact of another backend.")


class Packaged(_Strict):
    """What an artifact was packaged for, and how."""

    target: str
    version: str = Field(description="Release of the serving system.")
    runtime: str | None = Field(description="Vendor's runtime it is for; null where there is none to match.")
    kind: str = Field(description="What was packaged.")
    options: Mapping[str, bool | int | float | str | tuple[str, ...] | None]
    rules: Mapping[str, str] = Field(description="Rule of the lint -> its outcome at package time.")


class PackageManifest(_Strict):
    """The record of a package: what it was made from, for which server, and every file of it."""

    schema_version: Literal[1] = 1
    tool: Tool
    package: Packaged
    artifact: Manifest | None = Field(description="Manifest of the artifact; null for a Hugging Face folder.")
    files: tuple[FileRecord, ...] = Field(description="Every file of the package but this one.")
    notes: tuple[str, ...]


class ReportManifest(_Strict):
    """The record of what a command found out about a model, where that is not an artifact."""

    schema_version: Literal[1] = 1
    tool: Tool
    report: Literal["quantize"]
    source: Source
    model: Model
    options: Mapping[str, bool | int | float | str | None]
    versions: Mapping[str, str] = Field(description="Python and every library that touched numbers.")
    files: tuple[FileRecord, ...] = Field(description="Every file beside this one.")
    notes: tuple[str, ...]


def file_records(files: Iterable[tuple[str, Written]]) -> tuple[FileRecord, ...]:
    """Paths and finished files, in the order they come."""
    return tuple(FileRecord(path=path, bytes=written.size_bytes, sha256=written.sha256) for path, written in files)


def to_bytes(manifest: Manifest | PackageManifest | ReportManifest) -> bytes:
    """The manifest as it is stored: indented JSON with a final newline."""
    return (json.dumps(manifest.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n").encode()


def read(path: Path) -> Manifest:
    """Read and check an artifact's manifest.

    Raises:
        CheckpointError: It is not there, is that of a package or of a report, or does not follow the schema.
    """
    manifest = read_any(path)
    if isinstance(manifest, ReportManifest):
        found = f"the manifest of what llmcompile {manifest.report} found out"
        raise CheckpointError(str(path), found, "an artifact's", "pass an artifact, as build trtllm makes it")
    if isinstance(manifest, PackageManifest):
        found = f"the manifest of a package for {manifest.package.target}"
        raise CheckpointError(str(path), found, "an artifact's", "pass the artifact the package was made from")
    return manifest


def read_any(path: Path) -> Manifest | PackageManifest | ReportManifest:
    """Read and check a manifest, an artifact's, a package's or a report's.

    Raises:
        CheckpointError: It is not there or does not follow the schema.
    """
    try:
        content = path.read_bytes()
        return _kind_of(content).model_validate_json(content)
    except OSError as error:
        raise CheckpointError(
            str(path), str(error.strerror), "a manifest written by llmcompile", "pass the artifact's folder"
        ) from error
    except ValidationError as error:
        raise collected(
            CheckpointError,
            [
                Problem(
                    f"{path}: {'.'.join(str(part) for part in item['loc'])}",
                    item["msg"],
                    f"manifest schema {SCHEMA_VERSION}",
                    "the file was edited, or written by another version of llmcompile",
                )
                for item in error.errors()
            ],
        ) from error


def _kind_of(content: bytes) -> type[Manifest] | type[PackageManifest] | type[ReportManifest]:
    """Whose manifest it is; what is no JSON object is left to the schema to refuse."""
    try:
        record = json.loads(content)
    except (ValueError, RecursionError):
        return Manifest
    if not isinstance(record, dict):
        return Manifest
    return PackageManifest if "package" in record else ReportManifest if "report" in record else Manifest


def schema() -> dict[str, Any]:
    """The JSON Schema of the manifest, as published in docs/manifest.schema.json."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": _SCHEMA_ID,
        **Manifest.model_json_schema(),
    }


def package_schema() -> dict[str, Any]:
    """The JSON Schema of a package's manifest, as published in docs/package.schema.json."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": _PACKAGE_SCHEMA_ID,
        **PackageManifest.model_json_schema(),
    }
