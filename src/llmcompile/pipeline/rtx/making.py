"""Makes an artifact for TensorRT for RTX: export, rewrite, check, validate, build, record, publish."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmcompile import __version__, environment
from llmcompile.checkpoint.folder import contained
from llmcompile.errors import (
    CheckpointError,
    MismatchError,
    PlanError,
    Problem,
    ToolchainError,
    UnsupportedError,
    collected,
)
from llmcompile.exporters.rtx import builder as builders
from llmcompile.packaging import manifest as records
from llmcompile.pipeline import making as building
from llmcompile.pipeline import validating
from llmcompile.pipeline.job import Report, View
from llmcompile.pipeline.rtx import running
from llmcompile.pipeline.rtx.planning import Build, refuse_build
from llmcompile.writing import MANIFEST, WorkDirectory, hash_file, output_errors, work_path

_PACKAGES = (
    "ml_dtypes",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "safetensors",
    "tensorrt_rtx_cu12_bindings",
    "tokenizers",
    "torch",
    "transformers",
)
_EXPORTERS = ("onnx", "onnxscript", "torch", "transformers")
FACTS = "onnx/facts.json"
"""What is known of an exported model beside its graphs; in the artifact as part of the manifest alone."""
_CODE = ".py"


@dataclass(frozen=True)
class _Exported:
    """What the graphs are, and what became of the weights."""

    graphs: tuple[str, ...]
    quantized: tuple[str, ...]
    float32: tuple[str, ...]
    overflowed: Mapping[str, int]


def make(made: Build, view: View, report: Report) -> None:
    """Make the artifact and publish it.

    Raises:
        OutputError: OUTPUT cannot be made.
        UnsupportedError: The model cannot be exported.
        CheckpointError: The checkpoint lacks weights, or cannot be read.
        MismatchError: The ONNX model disagrees with the model.
        ToolchainError: The builder failed.
    """
    refuse_build(made)
    build = made.options.build
    with WorkDirectory(build.output, job=_identity(made), resume=build.resume, force=build.force) as work:
        try:
            with report.stage("export"):
                exported = _finished(work)
                if exported is None:
                    exported = _export(made, work, view)
                _refuse_overflow(made, exported)
        except (PlanError, UnsupportedError, CheckpointError):
            # Nothing of it can be continued.
            work.discard()
            raise
        _write_model_files(made, work)
        with report.stage("validate"):
            validation = validating.of_onnx(made, work.path, exported.quantized, exported.float32, view)
        engines: dict[str, builders.Engine] = {}
        if made.options.stop_after is None and validation.record.passed:
            with report.stage("build"), building.resumable(work, "the validated ONNX model"):
                for name in exported.graphs:
                    engines[name] = _build(made, name, work, view)
        rtx = _record(made, exported, engines, work)
        if len(engines) > 0:
            with building.resumable(work, "the validated ONNX model"):
                rtx, validation = _run(made, exported, rtx, work, validation, view, report)
        work.forget(FACTS)
        if not made.options.keep_onnx and len(engines) > 0:
            for name in exported.graphs:
                for file in (_onnx(name), f"{_onnx(name)}.data"):
                    work.forget(file)
        work.sweep()
        manifest = _manifest(made, work, exported, rtx, validation)
        work.write_bytes(MANIFEST, records.to_bytes(manifest))
        if not validation.record.passed:
            report.manifest, report.rejected = manifest, work.reject()
            raise collected(MismatchError, building.kept(validation.problems, report.rejected))
        with report.stage("publish"):
            work.publish()
        report.manifest, report.output = manifest, build.output


def _onnx(name: str) -> str:
    return f"onnx/{name}.onnx"


def _engine(name: str) -> str:
    return f"engine/{name}.engine"


def _finished(work: WorkDirectory) -> _Exported | None:
    """What an interrupted run has exported, if it came to the end of it; its files' hashes were checked again."""
    from llmcompile.checkpoint.headers import strict_json

    if FACTS not in work.finished:
        return None
    found = strict_json((work.path / FACTS).read_bytes(), FACTS)
    graphs = tuple(found["graphs"])
    data = set(found["files"])
    if not data <= work.finished.keys():
        return None
    return _Exported(graphs, tuple(found["quantized"]), tuple(found["float32"]), dict(found["overflowed"]))


def _export(made: Build, work: WorkDirectory, view: View) -> _Exported:
    """Every graph of the model, through a folder that is not part of the artifact."""
    import json

    from llmcompile.exporters.rtx import networks, rewrite, source
    from llmcompile.exporters.rtx.export import export

    options = made.options
    loaded = source.load(made.checkpoint.root, made.task, made.dtype, trust_remote_code=options.build.trust_remote_code)
    graphs, quantized = [], set()
    total = len(made.profiles)
    with output_errors(work.path, made.onnx_bytes), tempfile.TemporaryDirectory(dir=work.path) as folder:
        for number, network in enumerate(networks.networks(loaded, made.task, all_logits=options.all_logits), 1):
            view.lowering(network.name, number, total)
            path = Path(folder) / f"{network.name}.onnx"
            export(network, path, opset=options.opset)
            written = rewrite.write(path, network, loaded.linear, options.quantization, work)
            graphs.append(network.name)
            quantized |= set(written.quantized)
    exported = _Exported(tuple(graphs), tuple(sorted(quantized)), loaded.float32, dict(loaded.overflowed))
    facts = {**vars(exported), "files": sorted(work.finished)}
    work.write_bytes(FACTS, json.dumps(facts, indent=2).encode())
    return exported


def _refuse_overflow(made: Build, exported: _Exported) -> None:
    """Stop where finite values became infinite, unless that was accepted.

    Raises:
        MismatchError: They did.
    """
    if len(exported.overflowed) == 0 or made.options.build.allow_overflow:
        return
    hint = (
        f"use --dtype bf16 or fp32; or accept it: --allow-overflow, after rm -r {work_path(made.options.build.output)}"
    )
    problems = [
        Problem(name, f"{count} elements are infinite in {made.dtype}", "none", hint)
        for name, count in exported.overflowed.items()
    ]
    raise collected(MismatchError, problems)


def _write_model_files(made: Build, work: WorkDirectory) -> None:
    """Configuration and tokenizer, which a runtime needs beside graphs; the checkpoint's code only where it may run."""
    checkpoint = made.checkpoint
    for name in checkpoint.auxiliary:
        if not name.endswith(_CODE) or made.options.build.trust_remote_code:
            work.write_bytes(name, contained(checkpoint.root, name).read_bytes())


def _build(made: Build, name: str, work: WorkDirectory, view: View) -> builders.Engine:
    """Build the engine of one graph, and hold what the builder's network takes and gives against the graph."""
    from llmcompile import onnx_model

    file, path = _engine(name), work.path / _onnx(name)
    graph = onnx_model.load(path)
    work.forget(file)
    part = work.path / f"{file}.part"
    built = builders.build(
        path,
        part,
        inputs={value.name: value.shape for value in onnx_model.inputs(graph)},
        profiles=made.profiles[name],
        capabilities=made.capabilities,
        weight_streaming=made.options.weight_streaming,
        timeout_seconds=made.options.build_timeout_seconds,
        on_line=view.building,
    )
    wanted = [
        {value.name: value.dtype for value in side} for side in (onnx_model.inputs(graph), onnx_model.outputs(graph))
    ]
    if [dict(built.inputs), dict(built.outputs)] != wanted:
        raise ToolchainError("tensorrt_rtx", f"another border than {path.name}", "the graph's own", "please report it")
    with output_errors(work.path / file, part.stat().st_size):
        with part.open("rb") as stream:
            os.fsync(stream.fileno())
        os.rename(part, work.path / file)
    work.record(file, hash_file(work.path / file))
    return built


def _record(
    made: Build, exported: _Exported, engines: Mapping[str, builders.Engine], work: WorkDirectory
) -> records.Rtx:
    from llmcompile import onnx_model

    graphs = []
    opset = made.options.opset
    for name in exported.graphs:
        graph = onnx_model.load(work.path / _onnx(name))
        opset = onnx_model.opset(graph)
        given = onnx_model.inputs(graph)
        weights = work.finished.get(f"{_onnx(name)}.data")
        engine = work.finished[_engine(name)] if name in engines else None
        graphs.append(
            records.RtxGraph(
                name=name,
                onnx=_onnx(name) if made.options.keep_onnx else None,
                onnx_sha256=work.finished[_onnx(name)].sha256,
                weights_sha256=None if weights is None else weights.sha256,
                inputs=_values(given),
                outputs=_values(onnx_model.outputs(graph)),
                profiles=tuple(
                    records.RtxProfile(
                        name=profile.name, shapes={value.name: profile.shapes(value.shape) for value in given}
                    )
                    for profile in made.profiles[name]
                ),
                engine=None if engine is None else _engine(name),
                engine_sha256=None if engine is None else engine.sha256,
            )
        )
    built = len(engines) > 0
    return records.Rtx(
        task=made.task,
        status="built" if built else "onnx",
        executed=None,
        dtype=made.dtype,
        quantization=made.options.quantization,
        quantized=exported.quantized,
        float32=exported.float32,
        opset=opset,
        graphs=tuple(graphs),
        compute_capabilities=made.capabilities if built else (),
        tensorrt_rtx=next((engine.version for engine in engines.values()), None),
        weight_streaming=made.options.weight_streaming and built,
    )


def _run(
    made: Build,
    exported: _Exported,
    rtx: records.Rtx,
    work: WorkDirectory,
    validation: validating.Validated,
    view: View,
    report: Report,
) -> tuple[records.Rtx, validating.Validated]:
    """Run the engines, where this machine has a GPU for them, beside the ONNX model."""
    machine = made.machine
    assert machine is not None  # asked where an engine is wanted
    gpu = machine.fitting(made.capabilities)
    if gpu is None:
        return running.executed(rtx, running.not_run(machine.why_not(made.capabilities))), validation
    build = made.options.build
    with report.stage("run"):
        validation, execution = running.of_engines(
            rtx,
            work.path,
            work.path,
            validating.onnx_subject(made, work.path, exported.quantized, exported.float32),
            gpu,
            machine,
            view,
            validation,
            atol=build.atol,
            rtol=build.rtol,
            trust_remote_code=build.trust_remote_code,
        )
    return running.executed(rtx, execution), validation


def _values(values: Any) -> tuple[records.RtxValue, ...]:
    return tuple(records.RtxValue(name=value.name, dtype=value.dtype, shape=value.shape) for value in values)


def _identity(made: Build) -> dict[str, Any]:
    """What makes two runs the same job: equal identities give equal ONNX models, which is what a resumed run keeps."""
    checkpoint = made.checkpoint
    return {
        "llmcompile": __version__,
        "backend": made.options.backend,
        "options": dict(made.onnx_options),
        "sources": [[file.name, file.size_bytes, file.modified_ns] for file in checkpoint.files],
        "auxiliary": {name: hash_file(checkpoint.root / name).sha256 for name in checkpoint.auxiliary},
        "versions": environment.versions(_EXPORTERS),
    }


def _manifest(
    made: Build,
    work: WorkDirectory,
    exported: _Exported,
    rtx: records.Rtx,
    validation: validating.Validated,
) -> records.Manifest:
    checkpoint = made.checkpoint
    weights = [
        records.FileRecord(path=file.name, bytes=file.size_bytes, sha256=hash_file(file.path).sha256)
        for file in checkpoint.files
    ]
    auxiliary = records.file_records(
        (name, work.finished[name]) for name in checkpoint.auxiliary if name in work.finished
    )
    named = {"vocab_size": "vocab", "hidden_size": "hidden", "num_hidden_layers": "layers"}
    sizes = {axis: made.config[key] for key, axis in named.items() if isinstance(made.config.get(key), int)}
    return records.Manifest(
        tool=records.Tool(version=__version__),
        backend="tensorrt-rtx",
        source=records.Source(
            model=made.options.build.model,
            revision=made.located.revision,
            commit=made.located.commit,
            format="safetensors" if checkpoint.format == "safetensors" else "pickle",
            files=tuple(sorted([*weights, *auxiliary], key=lambda record: record.path)),
        ),
        model=records.Model(architecture=str(made.config.get("model_type", "unknown")), sizes=sizes, facts={}),
        options=made.recorded,
        versions=environment.versions(_PACKAGES),
        files=records.file_records(item for item in sorted(work.finished.items()) if item[0] != MANIFEST),
        deviations=(),
        ignored=(),
        overflowed=exported.overflowed,
        notes=made.notes,
        validation=validation.record,
        engine=None,
        neuron=None,
        calibration=None,
        rtx=rtx,
    )
