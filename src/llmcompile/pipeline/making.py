"""Makes an artifact and publishes it: write, validate, build the engine where there is one, record, rename."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from llmcompile import __version__, environment
from llmcompile.assembly import check_ignored
from llmcompile.checkpoint.folder import contained
from llmcompile.checkpoint.reader import Reader
from llmcompile.errors import MismatchError, Problem, ToolchainError, collected
from llmcompile.exporters.backends import BACKENDS
from llmcompile.exporters.trtllm.options import TrtllmOptions
from llmcompile.packaging import manifest as records
from llmcompile.pipeline import calibrating, engine, validating
from llmcompile.pipeline.job import Job, Report, View, refuse
from llmcompile.ranges import Ranges
from llmcompile.stream import Streamed, stream
from llmcompile.writing import MANIFEST, WorkDirectory, hash_file, work_path

_NUMERIC_PACKAGES = ("numpy",)
_WIDER = {"ft": "--dtype fp32", "trtllm": "--dtype bfloat16 or float32", "neuron": "--torch-dtype bfloat16"}
"""Backend -> the flag that gives a range in which nothing overflows."""
_VALIDATION_PACKAGES = ("safetensors", "tokenizers", "torch", "transformers")


def build(job: Job, view: View, report: Report, *, ranges: Ranges | None = None) -> None:
    """Make the artifact and publish it.

    Args:
        job: What is to be made.
        view: Shown what goes on.
        report: Told what was done.
        ranges: What a job that asks for the same has measured; None to measure.

    Raises:
        OutputError: OUTPUT cannot be made.
        CheckpointError: The checkpoint changed or cannot be read.
        MismatchError: A cast overflowed, or the artifact disagrees with the model.
    """
    refuse(job)
    options = job.options.build
    samples = calibrating.read(job)
    job_identity = {**identity(job), **calibrating.identity(job, samples)}
    with WorkDirectory(options.output, job=job_identity, resume=options.resume, force=options.force) as work:
        calibrated = None
        if samples is not None:
            with report.stage("calibrate"):
                calibrated = calibrating.calibrate(job, samples, work, view, ranges)
            job, report.ranges = calibrated.job, calibrated.ranges
        with report.stage("write"):
            check_left_out(job)
            streamed = write_tensors(job, work, view)
            _write_texts(job, work)
        refuse_overflow(job, streamed)
        overflowed = len(streamed.overflowed) > 0
        validation = None
        if options.validate:
            with report.stage("validate"):
                validation = validating.of_job(job, work.path, view, overflow_accepted=overflowed, samples=samples)
            report.quality = validation.quality
        built = None
        if job.toolchain is not None and (validation is None or validation.record.passed):
            assert isinstance(job.options, TrtllmOptions)
            with report.stage("engine"), resumable(work, "the converted checkpoint"), engine.clean_after(work):
                built = engine.build(job.options, job.toolchain, work, view)
                if validation is not None:
                    subject = validating.job_subject(job, work.path, overflow_accepted=overflowed)
                    validation = validating.of_engine(
                        job.options, job.toolchain, subject, built, work.path, view, validation
                    )
            if validation is None or validation.record.passed:
                engine.leave_out_checkpoint(job.options, work)
        if built is None:
            engine.discard(work)
        calibrating.discard(work)
        work.sweep()
        manifest = _manifest(job, work, streamed, validation, built, None if calibrated is None else calibrated.record)
        work.write_bytes(MANIFEST, records.to_bytes(manifest))
        if validation is not None and not validation.record.passed:
            report.manifest, report.rejected = manifest, work.reject()
            raise collected(MismatchError, kept(validation.problems, report.rejected))
        with report.stage("publish"):
            work.publish()
        report.manifest, report.output = manifest, options.output


@contextmanager
def resumable(work: WorkDirectory, what: str) -> Iterator[None]:
    """Say, when the vendor's program fails, that what was made for it is not lost."""
    try:
        yield
    except ToolchainError as error:
        kept = f"{what} is kept in {work.path}: repeat the command with --resume"
        last = error.problems[-1]
        hint = kept if last.hint == "" else f"{last.hint}\n{kept}"
        raise collected(ToolchainError, [*error.problems[:-1], replace(last, hint=hint)]) from error


def kept(problems: list[Problem], rejected: Path) -> list[Problem]:
    """The problems, the first of which says where the artifact is."""
    first, *rest = problems
    hint = f"the artifact is kept at {rejected} for inspection"
    return [Problem(first.subject, first.found, first.expected, hint), *rest]


def identity(job: Job) -> dict[str, Any]:
    """What makes two runs the same job: equal identities give equal bytes."""
    return {
        "llmcompile": __version__,
        "backend": job.layout.backend,
        "options": dict(_recorded(job)),
        "sources": [[file.name, file.size_bytes, file.modified_ns] for file in job.checkpoint.files],
        "auxiliary": {name: hash_file(job.checkpoint.root / name).sha256 for name in job.checkpoint.auxiliary},
        "texts": {name: hashlib.sha256(text.encode()).hexdigest() for name, text in job.texts.items()},
    }


def _recorded(job: Job) -> Mapping[str, Any]:
    return BACKENDS[job.options.backend].recorded(job.options, job.layout)


def check_left_out(job: Job) -> None:
    """Read what is left out because of what it is assumed to hold, such as biases of zeros.

    Raises:
        CheckpointError: It holds something else.
    """
    with Reader(job.checkpoint.files) as reader:
        check_ignored(job.architecture, {name: job.checkpoint.tensors[name] for name in job.plan.ignored}, reader)


def write_tensors(job: Job, work: WorkDirectory, view: View) -> Streamed:
    """Carry the plan out into the work directory, showing how far it is."""
    headers = {job.layout.folder + file: len(header) for file, header in job.plan.headers.items()}
    planned = {job.layout.folder + file for file in job.plan.files}
    there = {file: written.size_bytes for file, written in work.finished.items() if file in planned}
    there |= {file: kept.size_bytes for file, kept in work.kept.items()}
    done = sum(size - headers.get(file, 0) for file, size in there.items())
    with view.writing(job.plan.output_bytes - sum(headers.values()), done) as advance:
        return stream(
            job.plan,
            job.checkpoint.files,
            work,
            prefix=job.layout.folder,
            budget_bytes=job.resources.budget,
            workers=job.resources.workers,
            advance=advance,
        )


def _write_texts(job: Job, work: WorkDirectory) -> None:
    for name, text in job.texts.items():
        work.write_bytes(name, text.encode())
    for name in job.checkpoint.auxiliary:
        if name not in job.texts:
            work.write_bytes(name, contained(job.checkpoint.root, name).read_bytes())


def refuse_overflow(job: Job, streamed: Streamed) -> None:
    """Stop where finite values became infinite, unless that was accepted.

    Raises:
        MismatchError: They did.
    """
    if len(streamed.overflowed) == 0 or job.options.build.allow_overflow:
        return
    dtype = job.layout.dtype.name
    work = work_path(job.options.build.output)
    hint = (
        f"use {_WIDER[job.options.backend]}; or accept it: repeat with --resume --allow-overflow (the work is kept in "
        f"{work})"
    )
    raise collected(
        MismatchError,
        [
            Problem(tensor, f"{elements} finite elements overflow to infinity in {dtype}", "none", hint)
            for tensor, elements in streamed.overflowed.items()
        ],
    )


def _manifest(
    job: Job,
    work: WorkDirectory,
    streamed: Streamed,
    validation: validating.Validated | None,
    built: records.Engine | None,
    calibration: records.Calibration | None,
) -> records.Manifest:
    checkpoint, build = job.checkpoint, job.options.build
    packages = list(_NUMERIC_PACKAGES)
    if validation is not None or calibration is not None:
        packages += _VALIDATION_PACKAGES
        if calibration is not None and calibration.calibrator == "modelopt":
            packages.append("nvidia-modelopt")
    elif checkpoint.format == "pickle":
        packages.append("torch")
    weights = [
        records.FileRecord(path=file.name, bytes=file.size_bytes, sha256=streamed.source_sha256[file.name])
        for file in checkpoint.files
    ]
    auxiliary = records.file_records(
        (name, hash_file(contained(checkpoint.root, name)) if name in job.texts else work.finished[name])
        for name in checkpoint.auxiliary
    )
    return records.Manifest(
        tool=records.Tool(version=__version__),
        backend=job.options.backend,
        source=records.Source(
            model=build.model,
            revision=job.located.revision,
            commit=job.located.commit,
            format="safetensors" if checkpoint.format == "safetensors" else "pickle",
            files=tuple(sorted([*weights, *auxiliary], key=lambda record: record.path)),
        ),
        model=records.Model(architecture=job.architecture.name, sizes=job.dims.sizes, facts=job.dims.facts),
        options={
            **_recorded(job),
            "validate": build.validate,
            "atol": build.atol,
            "rtol": build.rtol,
            "allow_overflow": build.allow_overflow,
            "trust_remote_code": build.trust_remote_code,
        },
        versions=environment.versions(packages),
        files=records.file_records(item for item in sorted(work.finished.items()) if item[0] != MANIFEST),
        deviations=tuple(deviations(job)),
        ignored=tuple(ignored(job.plan.ignored)),
        overflowed=streamed.overflowed,
        notes=job.layout.notes,
        validation=None if validation is None else validation.record,
        engine=built,
        neuron=None,
        calibration=calibration,
    )


def deviations(job: Job) -> Iterator[records.Deviation]:
    """One record per file; a pattern without one is about a file left out, for tensors the checkpoint repeats."""
    files = [*job.plan.files, *(name.removeprefix(job.layout.folder) for name in job.texts)]
    repeated = any(reason.startswith("tied") for reason in job.plan.ignored.values())
    for pattern, reason in job.layout.deviations.items():
        matching = [file for file in files if fnmatchcase(file, pattern)]
        for file in matching if len(matching) > 0 or not repeated else [pattern]:
            yield records.Deviation(path=job.layout.folder + file, reason=reason)


def ignored(reasons: Mapping[str, str]) -> Iterator[records.Ignored]:
    """One record per reason, of tensors and why they were not read."""
    for reason in sorted(set(reasons.values())):
        yield records.Ignored(reason=reason, tensors=tuple(sorted(name for name in reasons if reasons[name] == reason)))
