"""Makes a Neuron artifact by optimum-neuron: ask it, read what it wrote, run that where this machine can, publish."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any

from llmcompile import __version__, environment
from llmcompile.errors import MismatchError, collected
from llmcompile.exporters.neuron import optimum, optimum_requests
from llmcompile.exporters.neuron.options import ENCODER_TASKS
from llmcompile.packaging import manifest as records
from llmcompile.pipeline import making as building
from llmcompile.pipeline import validating
from llmcompile.pipeline.job import Report, View
from llmcompile.pipeline.neuron.planning import Export
from llmcompile.writing import MANIFEST, WorkDirectory, hash_file

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from llmcompile.exporters.neuron.optimum import Sdk
    from llmcompile.exporters.neuron.optimum_requests import Request
    from llmcompile.validation.traced import Answers

_SCRATCH = ".exporting"
"""Where the child runs, and its compiler."""


def export_through_optimum(made: Export, view: View, report: Report) -> None:
    """Make the artifact and publish it.

    optimum-neuron cannot continue what was begun, so a resumed run begins anew.

    Raises:
        ToolchainError: optimum-neuron failed, or wrote what does not load or was not asked for.
        MismatchError: What the module answers is not what the model does.
        OutputError: OUTPUT cannot be made.
    """
    sdk = made.sdk
    assert sdk is not None
    build = made.options.build
    with WorkDirectory(build.output, job=_identity(made, sdk), resume=build.resume, force=build.force) as work:
        scratch = work.path / _SCRATCH
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        target = scratch / "artifact"
        request = optimum_requests.make_request(
            made.options,
            made.task,
            made.located.root,
            target,
            source=source_of(made, sdk),
            release=sdk.release,
            target=made.target,
            folder=scratch,
            environ=os.environ,
        )
        with report.stage("compile"):
            exported = optimum.export(sdk, request, folder=scratch, on_line=view.building)
        validation = None
        if build.validate:
            with report.stage("validate"):
                validation = _validated(made, sdk, request, work, view)
        for path in sorted(path for path in target.rglob("*") if path.is_file()):
            place = work.path / path.relative_to(target)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, place)
            work.record(str(path.relative_to(target)), hash_file(place))
        shutil.rmtree(scratch)
        work.sweep()
        manifest = _manifest(made, exported, work, validation)
        work.write_bytes(MANIFEST, records.to_bytes(manifest))
        if validation is not None and not validation.record.passed:
            report.manifest, report.rejected = manifest, work.reject()
            raise collected(MismatchError, building.kept(validation.problems, report.rejected))
        with report.stage("publish"):
            work.publish()
        report.manifest, report.output = manifest, build.output


def source_of(made: Export, sdk: Sdk) -> optimum_requests.Source:
    """The model, as optimum-neuron will see it."""
    folder = made.located.root / made.options.subfolder
    sentences = (folder / "modules.json").exists() and "sentence-transformers" in sdk.versions
    return optimum_requests.source_of(made.config, made.task, sentence_transformers=sentences)


def _validated(made: Export, sdk: Sdk, request: Request, work: WorkDirectory, view: View) -> validating.Validated:
    """What the traced module answers on this machine against the model; a note where it cannot run here."""
    if made.task not in ENCODER_TASKS:
        return _not_run(view, "nothing was run: only encoders are, and this is none")

    def run(inputs: Mapping[str, NDArray[Any]], outputs: tuple[str, ...]) -> tuple[Answers, str | None]:
        answer = optimum.run_module(
            sdk, request, inputs, outputs=outputs, folder=work.path / _SCRATCH, on_line=view.building
        )
        return answer.outputs, answer.not_run

    return validating.of_traced(made, source_of(made, sdk), run, view)


def _not_run(view: View, reason: str) -> validating.Validated:
    view.checked(reason)
    record = records.Validation(passed=True, executor="none", comparisons=(), notes=(reason,), quality=None)
    return validating.Validated(record, [])


def _identity(made: Export, sdk: Sdk) -> dict[str, Any]:
    return {
        "llmcompile": __version__,
        "backend": "neuron",
        "options": dict(made.recorded),
        "model": str(made.located.root.absolute()),
        "sdk": dict(sdk.versions),
    }


def _manifest(
    made: Export, exported: optimum.Exported, work: WorkDirectory, validation: validating.Validated | None
) -> records.Manifest:
    root = made.located.root
    files = sorted(path for path in root.rglob("*") if path.is_file() and not path.name.startswith("."))
    sources = records.file_records((str(path.relative_to(root)), hash_file(path)) for path in files)
    kind = str(made.config.get("model_type", made.config.get("_class_name", "unknown")))
    return records.Manifest(
        tool=records.Tool(version=__version__),
        backend="neuron",
        source=records.Source(
            model=made.options.build.model,
            revision=made.located.revision,
            commit=made.located.commit,
            format="folder",
            files=sources,
        ),
        model=records.Model(architecture=kind, sizes={}, facts={}),
        options=made.recorded,
        versions={**environment.versions(()), **exported.versions},
        files=records.file_records(item for item in sorted(work.finished.items()) if item[0] != MANIFEST),
        deviations=(),
        ignored=(),
        overflowed={},
        notes=(*made.notes, *exported.notes),
        validation=None if validation is None else validation.record,
        engine=None,
        calibration=None,
        neuron=records.Neuron(
            task=made.task,
            via="optimum",
            layout="optimum",
            status="compiled",
            target=made.target,
            ranks=made.options.num_cores,
            graphs=(),
            compiler=exported.compiler_version,
            flags=(),
            environment_flags=made.environment_flags,
        ),
    )
