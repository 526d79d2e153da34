"""Compiles what was lowered elsewhere: needs the compiler, and neither torch nor the model."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from llmcompile import __version__, environment
from llmcompile.errors import (
    CheckpointError,
    LlmCompileError,
    MismatchError,
    OptionsError,
    Problem,
    ResourceError,
    collected,
    combined,
)
from llmcompile.exporters.neuron import compiler as compilers
from llmcompile.exporters.neuron.options import NeuronOptions
from llmcompile.packaging import manifest as records
from llmcompile.pipeline import making as building
from llmcompile.pipeline.job import Report, View, output_errors
from llmcompile.pipeline.neuron import compiling, layouts
from llmcompile.pipeline.neuron.planning import environment_flags, find_compiler
from llmcompile.writing import MANIFEST, WorkDirectory, hash_file

ADOPTED = (
    "compiled by compile.sh: the NEFFs are whole, and that they are of these graphs is as sure as who ran that script"
)
"""Note of an artifact whose NEFFs were found beside the graphs."""


@dataclass(frozen=True, kw_only=True)
class Lowering:
    """Lowered graphs to compile.

    Attributes:
        options: What was asked, with what was decided when they were lowered.
        folder: Where they are.
        manifest: Their record.
        compiler: neuronx-cc; None when none was found, or none is needed.
        compiled: Whether compile.sh was run: every graph has a NEFF beside it.
        environment_flags: Flags of NEURON_CC_FLAGS that are handed on.
        errors: What stands in the way, all of it.
    """

    options: NeuronOptions
    folder: Path
    manifest: records.Manifest
    compiler: compilers.Compiler | None
    compiled: bool
    environment_flags: tuple[str, ...]
    errors: tuple[LlmCompileError, ...]

    @property
    def neuron(self) -> records.Neuron:
        """What the graphs are for."""
        assert self.manifest.neuron is not None
        return self.manifest.neuron


def open_lowered(options: NeuronOptions, report: Report) -> Lowering:
    """Read the record of lowered graphs and find the compiler; writes nothing.

    Raises:
        CheckpointError: There is no record, or it is not one of lowered graphs.
    """
    folder = options.from_lowered
    assert folder is not None
    with report.stage("locate"):
        manifest = records.read(folder / MANIFEST)
    neuron = manifest.neuron
    if neuron is None or neuron.status != "lowered":
        found = f"an artifact of {manifest.backend}" if neuron is None else "compiled already"
        hint = "make one: llmcompile export neuron --stop-after lower --model DIR|HUB_ID OUTPUT"
        raise CheckpointError(str(folder), found, "what --stop-after lower made", hint)
    errors: list[LlmCompileError] = [*_contradictions(options, manifest, neuron), *output_errors(options.build)]
    errors += _strangers(folder, manifest, neuron)
    with report.stage("toolchain"):
        compiled = all((folder / compiling.neff_path(graph.name)).is_file() for graph in neuron.graphs)
        compiler, found_errors = (None, []) if compiled else find_compiler(options, folder, lowered=True)
        errors += found_errors
    lowered = _as_lowered(options, manifest)
    given, found_errors = environment_flags(lowered, neuron.task, neuron.target)
    errors += [*found_errors, *_shortages(options, folder, manifest)]
    return Lowering(
        options=lowered,
        folder=folder,
        manifest=manifest,
        compiler=compiler,
        compiled=compiled,
        environment_flags=given,
        errors=tuple(errors),
    )


def refuse_lowered(lowering: Lowering) -> None:
    """Raise everything that stands in the way, if there is anything, as an error of the first kind of it."""
    if len(lowering.errors) > 0:
        raise combined(lowering.errors)


def _as_lowered(options: NeuronOptions, manifest: records.Manifest) -> NeuronOptions:
    """The options, with what decides the compiler's arguments as it was when the graphs were validated."""
    recorded = manifest.options
    level = recorded["optlevel"] if options.optlevel == NeuronOptions.optlevel else options.optlevel
    cast_type = recorded["auto_cast_type"]
    return replace(
        options,
        auto_cast=str(recorded["auto_cast"]),
        auto_cast_type=None if cast_type is None else str(cast_type),
        optlevel=int(str(level)),
    )


def _contradictions(
    options: NeuronOptions, manifest: records.Manifest, neuron: records.Neuron
) -> Iterator[LlmCompileError]:
    """Options that were decided when the graphs were lowered."""
    recorded = manifest.options
    given: tuple[tuple[str, object, object], ...] = (
        ("--task", options.task, neuron.task),
        ("--layout", options.layout, neuron.layout),
        ("--instance-type", options.instance_type, neuron.target),
        ("--torch-dtype", options.torch_dtype, recorded["torch_dtype"]),
        (
            "--auto-cast",
            None if options.auto_cast == NeuronOptions.auto_cast else options.auto_cast,
            recorded["auto_cast"],
        ),
        ("--auto-cast-type", options.auto_cast_type, recorded["auto_cast_type"]),
        ("--num-cores", None if options.num_cores == NeuronOptions.num_cores else options.num_cores, neuron.ranks),
        *((f"--{name.replace('_', '-')}", value, recorded.get(name)) for name, value in options.shapes.given().items()),
    )
    problems = [
        Problem(
            flag, f"{asked}, but the graphs were lowered for {lowered}", str(lowered), f"drop {flag}, or lower again"
        )
        for flag, asked, lowered in given
        if asked is not None and asked != lowered
    ]
    here, there = Path(os.path.realpath(options.build.output)), Path(os.path.realpath(str(options.from_lowered)))
    if here == there or here.is_relative_to(there) or there.is_relative_to(here):
        found = f"{options.build.output} is in the way of {options.from_lowered}"
        problems.append(Problem("OUTPUT", found, "another folder", "choose another OUTPUT"))
    if len(problems) > 0:
        yield collected(OptionsError, problems)
    if manifest.validation is not None and not manifest.validation.passed:
        found = "its manifest says that it disagrees with the model"
        yield MismatchError(str(options.from_lowered), found, "graphs that passed validation", "lower the model again")


def _strangers(folder: Path, manifest: records.Manifest, neuron: records.Neuron) -> Iterator[LlmCompileError]:
    """A record that leads out of its folder, or whose graphs have names that are no names of files."""
    problems = [
        Problem(record.path, "leads out of the folder", "a path inside it", _RESTORE)
        for record in manifest.files
        if PurePosixPath(record.path).is_absolute() or ".." in PurePosixPath(record.path).parts
    ]
    problems += [
        Problem(f"graph {graph.name!a}", "not a name of ours", "letters, digits, - and _", _RESTORE)
        for graph in neuron.graphs
        if re.fullmatch(r"\w[\w-]*", graph.name, flags=re.ASCII) is None or graph.hlo != f"graphs/{graph.name}.hlo.pb"
    ]
    if len(problems) > 0:
        yield collected(CheckpointError, problems)


def _shortages(options: NeuronOptions, folder: Path, manifest: records.Manifest) -> Iterator[LlmCompileError]:
    """Weights are linked where they can be, and copied elsewhere."""
    target = options.build.output.absolute().parent
    while not target.exists():
        target = target.parent
    needed = sum(record.bytes for record in manifest.files)
    free = environment.free_disk(target)
    if folder.exists() and target.stat().st_dev != folder.stat().st_dev and needed > free:
        hint = "make room, or choose an OUTPUT on another disk"
        yield ResourceError("disk", f"{needed} bytes needed, {free} bytes free", "", hint)


def finish(lowering: Lowering, view: View, report: Report) -> None:
    """Compile the graphs, lay the artifact out and publish it.

    Raises:
        LlmCompileError: What `lowering.errors` holds.
        MismatchError: A file is not what the record says.
        ToolchainError: The compiler failed.
        OutputError: OUTPUT cannot be made.
    """
    refuse_lowered(lowering)
    options, neuron = lowering.options, lowering.neuron
    build = options.build
    with WorkDirectory(build.output, job=_identity(lowering), resume=build.resume, force=build.force) as work:
        try:
            with report.stage("verify"):
                _take_over(lowering, work)
        except (MismatchError, CheckpointError):
            work.discard()
            raise
        with report.stage("compile"), building.resumable(work, "what was compiled"):
            graphs = [compiling.ToCompile(graph.name, graph.kind) for graph in neuron.graphs]
            if lowering.compiler is None:
                compiled = compiling.adopt(lowering.folder, neuron.flags, graphs, work)
            else:
                compiled = compiling.compile_all(
                    options, lowering.compiler, neuron.target, lowering.environment_flags, graphs, work, view
                )
            finished = layouts.finish(lowering.manifest, compiled, work)
        work.sweep()
        files = records.file_records(item for item in sorted(work.finished.items()) if item[0] != MANIFEST)
        manifest = lowering.manifest.model_copy(
            update={
                "tool": records.Tool(version=__version__),
                "options": {**lowering.manifest.options, "optlevel": options.optlevel},
                "neuron": finished,
                "files": files,
                "notes": (*lowering.manifest.notes, *((ADOPTED,) if lowering.compiler is None else ())),
                "deviations": layouts.remaining(lowering.manifest.deviations, files),
            }
        )
        work.write_bytes(MANIFEST, records.to_bytes(manifest))
        with report.stage("publish"):
            work.publish()
        report.manifest, report.output = manifest, build.output


def _take_over(lowering: Lowering, work: WorkDirectory) -> None:
    """Every file but the commands, as a link where the disk is the same; each is checked against the record."""
    problems = []
    for record in lowering.manifest.files:
        if record.path in compiling.COMMANDS or record.path in work.finished:
            continue
        source, target = lowering.folder / record.path, work.path / record.path
        if not source.is_file():
            problems.append(Problem(record.path, "missing", f"{record.bytes} bytes", _RESTORE))
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        try:
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)
        written = hash_file(target)
        if (written.size_bytes, written.sha256) != (record.bytes, record.sha256):
            problems.append(Problem(record.path, f"sha256 {written.sha256}", record.sha256, _RESTORE))
            continue
        work.record(record.path, written)
    if len(problems) > 0:
        raise collected(MismatchError, problems)


_RESTORE = "copy the lowered graphs again from where they were made"


def _identity(lowering: Lowering) -> dict[str, Any]:
    """What makes two runs the same job."""
    return {
        "llmcompile": __version__,
        "backend": "neuron",
        "lowered": hash_file(lowering.folder / MANIFEST).sha256,
    }
