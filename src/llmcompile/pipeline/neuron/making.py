"""Makes a Neuron artifact: lower, check, write weights, execute, compile, lay out, record, publish."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from llmcompile import __version__, environment
from llmcompile.errors import (
    CheckpointError,
    MismatchError,
    OptionsError,
    PlanError,
    Problem,
    UnsupportedError,
    collected,
)
from llmcompile.packaging import manifest as records
from llmcompile.pipeline import making as building
from llmcompile.pipeline import validating
from llmcompile.pipeline.job import Report, View
from llmcompile.pipeline.neuron import compiling, layouts
from llmcompile.pipeline.neuron.lowering import Graph, lowered_graphs
from llmcompile.pipeline.neuron.planning import Export, refuse_export
from llmcompile.writing import MANIFEST, WorkDirectory, hash_file

if TYPE_CHECKING:
    from llmcompile.exporters.neuron.encoders import Encoder
    from llmcompile.exporters.neuron.lowering.program import Lowered

_PACKAGES = ("jax", "jaxlib", "ml_dtypes", "numpy", "safetensors", "tokenizers", "torch", "transformers")
_TORCH_NAMES: Mapping[str, str] = MappingProxyType({"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"})


@dataclass(frozen=True)
class _Encoded:
    """An encoder and its graph."""

    encoder: Encoder
    lowered: Lowered


@dataclass(frozen=True, kw_only=True)
class _Sources:
    """What was read: sha256 of each file of weights, and tensors in which finite values became infinite."""

    sha256: Mapping[str, str]
    overflowed: Mapping[str, int]


def export(made: Export, view: View, report: Report) -> None:
    """Make the artifact and publish it.

    Raises:
        OutputError: OUTPUT cannot be made.
        PlanError: The compiler would reject a graph.
        UnsupportedError: An operator cannot be lowered.
        CheckpointError: The checkpoint changed, lacks weights, or cannot be read.
        MismatchError: A graph disagrees with the model.
        ToolchainError: The compiler failed.
    """
    refuse_export(made)
    if made.via == "optimum":
        from llmcompile.pipeline.neuron.through_optimum import export_through_optimum

        export_through_optimum(made, view, report)
        return
    build = made.options.build
    with WorkDirectory(build.output, job=_identity(made), resume=build.resume, force=build.force) as work:
        try:
            with report.stage("lower"):
                encoded = None if made.decoder else _encoded(made)
                graphs = lowered_graphs(
                    made, _decoded(made) if encoded is None else iter([encoded.lowered]), work, view
                )
        except (PlanError, UnsupportedError, CheckpointError, OptionsError):
            # Nothing of it can be continued.
            work.discard()
            raise
        with report.stage("write"):
            sources = _write_weights(made, encoded, work, view)
            layouts.write_model_files(made, work)
        notes = (*made.notes, *(() if encoded is None else encoded.encoder.notes))
        encoded = None  # its weights are on disk
        validation = None
        if build.validate:
            with report.stage("validate"):
                validation = validating.of_export(made, work.path, view)
        to_compile = [compiling.ToCompile(graph.signature.name, graph.signature.kind) for graph in graphs]
        flags = compiling.write_commands(made.options, made.target, made.environment_flags, to_compile, work)
        manifest = _manifest(made, work, sources, graphs, validation, flags, notes)
        if made.compiler is not None and (validation is None or validation.record.passed):
            with report.stage("compile"), building.resumable(work, "what was lowered"):
                compiled = compiling.compile_all(
                    made.options, made.compiler, made.target, made.environment_flags, to_compile, work, view
                )
                finished = layouts.finish(manifest, compiled, work)
            for name in compiling.COMMANDS:
                work.forget(name)
            manifest = manifest.model_copy(update={"neuron": finished})
        work.sweep()
        files = _files(work)
        manifest = manifest.model_copy(
            update={"files": files, "deviations": layouts.remaining(manifest.deviations, files)}
        )
        work.write_bytes(MANIFEST, records.to_bytes(manifest))
        if validation is not None and not validation.record.passed:
            report.manifest, report.rejected = manifest, work.reject()
            raise collected(MismatchError, _with_lever(building.kept(validation.problems, report.rejected)))
        with report.stage("publish"):
            work.publish()
        report.manifest, report.output = manifest, build.output


def _with_lever(problems: list[Problem]) -> list[Problem]:
    """Say what to change where only the compiler's casts are beyond the user's tolerance."""
    if not all("--auto-cast" in problem.subject for problem in problems):
        return problems
    lever = "raise --atol, cast less (--auto-cast matmul or none), or cast to more bits (--auto-cast-type fp16 or tf32)"
    return [replace(problems[0], hint=f"{lever}; {problems[0].hint}"), *problems[1:]]


def _encoded(made: Export) -> _Encoded:
    """The model with its weights, traced for its task and lowered."""
    from llmcompile.exporters.neuron import encoders

    options = made.options
    assert made.checkpoint is not None
    encoder = encoders.build(
        made.checkpoint.root,
        made.task,
        options.shapes,
        _TORCH_NAMES[made.dtype],
        output_hidden_states=options.output_hidden_states,
        output_attentions=options.output_attentions,
        trust_remote_code=options.build.trust_remote_code,
    )
    return _Encoded(encoder, encoders.export_encoder(encoder))


def _decoded(made: Export) -> Iterator[Lowered]:
    """The graphs of a decoder, each lowered when it is asked for."""
    from llmcompile.exporters.neuron.network import export_graphs

    job = made.job
    assert job is not None
    yield from export_graphs(job.architecture, job.dims, made.options, dtype=job.layout.dtype)


def _write_weights(made: Export, encoded: _Encoded | None, work: WorkDirectory, view: View) -> _Sources:
    """Every rank's file of weights."""
    assert made.checkpoint is not None
    if encoded is not None:
        from llmcompile.exporters.neuron import encoders
        from llmcompile.exporters.neuron.weights import write_weights

        tensors = dict(encoders.weights(encoded.encoder, encoded.lowered))
        write_weights(encoded.lowered.signature.weights, tensors.__getitem__, work)
        files = {file.name: hash_file(file.path).sha256 for file in made.checkpoint.files}
        return _Sources(sha256=files, overflowed={})
    job = made.job
    assert job is not None
    building.check_left_out(job)
    streamed = building.write_tensors(job, work, view)
    building.refuse_overflow(job, streamed)
    if made.layout == "nxd":
        for name, text in job.layout.texts.items():
            work.write_bytes(job.layout.folder + name, text.encode())
    return _Sources(sha256=streamed.source_sha256, overflowed=streamed.overflowed)


def _identity(made: Export) -> dict[str, Any]:
    """What makes two runs the same job: equal identities give equal bytes."""
    checkpoint, job = made.checkpoint, made.job
    assert checkpoint is not None
    texts = {} if job is None else job.layout.texts
    return {
        "llmcompile": __version__,
        "backend": "neuron",
        # How it is compiled changes none of what comes before, and NEFFs are kept by their flags.
        "options": {key: value for key, value in made.recorded.items() if key != "optlevel"},
        "sources": [[file.name, file.size_bytes, file.modified_ns] for file in checkpoint.files],
        "auxiliary": {name: hash_file(checkpoint.root / name).sha256 for name in checkpoint.auxiliary},
        "texts": {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()},
        "versions": environment.versions(("jax", "jaxlib", "torch", "transformers")),
    }


def _files(work: WorkDirectory) -> tuple[records.FileRecord, ...]:
    return records.file_records(item for item in sorted(work.finished.items()) if item[0] != MANIFEST)


def _manifest(
    made: Export,
    work: WorkDirectory,
    sources: _Sources,
    graphs: Sequence[Graph],
    validation: validating.Validated | None,
    flags: tuple[str, ...],
    notes: tuple[str, ...],
) -> records.Manifest:
    checkpoint, job = made.checkpoint, made.job
    assert checkpoint is not None
    weights = [
        records.FileRecord(path=file.name, bytes=file.size_bytes, sha256=sources.sha256[file.name])
        for file in checkpoint.files
    ]
    auxiliary = records.file_records(
        (name, work.finished[name]) for name in checkpoint.auxiliary if name in work.finished
    )
    return records.Manifest(
        tool=records.Tool(version=__version__),
        backend="neuron",
        source=records.Source(
            model=made.options.build.model,
            revision=made.located.revision,
            commit=made.located.commit,
            format="safetensors" if checkpoint.format == "safetensors" else "pickle",
            files=tuple(sorted([*weights, *auxiliary], key=lambda record: record.path)),
        ),
        model=_model(made),
        options=made.recorded,
        versions=environment.versions(_PACKAGES),
        files=_files(work),
        deviations=() if job is None else tuple(building.deviations(job)),
        ignored=() if job is None else tuple(building.ignored(job.plan.ignored)),
        overflowed=sources.overflowed,
        notes=notes,
        validation=None if validation is None else validation.record,
        engine=None,
        calibration=None,
        neuron=records.Neuron(
            task=made.task,
            via="xla",
            layout=made.layout,
            status="lowered",
            target=made.target,
            ranks=made.options.num_cores,
            graphs=tuple(graph.record() for graph in graphs),
            compiler=None,
            flags=flags,
            environment_flags=made.environment_flags,
        ),
    )


def _model(made: Export) -> records.Model:
    if made.job is not None:
        dims = made.job.dims
        return records.Model(architecture=made.job.architecture.name, sizes=dims.sizes, facts=dims.facts)
    named = {"vocab_size": "vocab", "hidden_size": "hidden", "num_hidden_layers": "layers", "dim": "hidden"}
    sizes = {axis: made.config[key] for key, axis in named.items() if isinstance(made.config.get(key), int)}
    return records.Model(architecture=str(made.config.get("model_type", "unknown")), sizes=sizes, facts={})
