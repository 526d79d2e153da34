"""The whole way of a build: locate, plan, stream, validate, record, publish."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from llmcompile import __version__, environment
from llmcompile.architectures import lookup
from llmcompile.architectures.spec import Architecture, Dims
from llmcompile.checkpoint.folder import Checkpoint, contained, open_checkpoint
from llmcompile.checkpoint.headers import reject_lfs_pointer
from llmcompile.checkpoint.hub import Located, locate, peek
from llmcompile.dtypes import BY_NAME, FP16, DType
from llmcompile.errors import (
    CheckpointError,
    LlmCompileError,
    MismatchError,
    OutputError,
    PlanError,
    Problem,
    ResourceError,
    UnsupportedError,
    collected,
)
from llmcompile.exporters.backends import BACKENDS
from llmcompile.exporters.ft.options import FtOptions
from llmcompile.exporters.options import BuildOptions
from llmcompile.exporters.spec import Layout
from llmcompile.packaging import manifest as records
from llmcompile.plan import Plan, make_plan
from llmcompile.stream import Streamed, stream
from llmcompile.writing import (
    MANIFEST,
    WorkDirectory,
    check_no_leftovers,
    check_replaceable,
    hash_file,
    work_path,
)

if TYPE_CHECKING:
    from llmcompile.validation.ft import Check, Subject

BUDGET_BYTES = 256 << 20
"""Tensor data held at once unless --max-memory says otherwise; a larger tensor passes alone."""
_SLACK_BYTES = 48 << 20
"""What threads, staging buffers and the interpreter take beyond the process as it stands when the plan is made."""
_VALIDATION_BYTES = 768 << 20
"""What torch, transformers and a small model take while validating."""
_BLOCK_BYTES = 256 << 20
_NUMERIC_PACKAGES = ("numpy",)
_VALIDATION_PACKAGES = ("safetensors", "tokenizers", "torch", "transformers")


class View(Protocol):
    """Shows a person what is going on; the pipeline calls it, the command line implements it."""

    def planned(self, job: Job) -> None:
        """The plan stands."""

    @contextmanager
    def writing(self, total_bytes: int, done_bytes: int) -> Iterator[Callable[[int, str], None]]:
        """Show the progress of writing; yields what to call with each block's bytes and its tensor's name."""
        yield lambda size_bytes, tensor: None

    def validating(self, subject: str, ranks: int) -> None:
        """Validation begins."""

    def checked(self, check: Check | str) -> None:
        """One comparison was made, or something was left out."""


@dataclass(frozen=True)
class Resources:
    """What a job needs against what the machine has, all in bytes.

    Attributes:
        memory: Peak of the conversion.
        memory_least: What it would be with one worker.
        memory_validation: Peak of the validation, estimated; 0 without one.
        memory_available: What is free, or --max-memory where that is less.
        budget: Tensor data the conversion may hold at once.
        disk: Still to be written.
        disk_available: Free where OUTPUT will be.
        workers: Threads that rearrange and write.
    """

    memory: int
    memory_least: int
    memory_validation: int
    memory_available: int
    budget: int
    disk: int
    disk_available: int
    workers: int


@dataclass(frozen=True)
class Job:
    """A build that is fully known and has not begun.

    Attributes:
        options: What was asked.
        located: Where the model is.
        checkpoint: Its files and headers.
        architecture: Its family.
        dims: Its sizes and facts.
        layout: The artifact.
        plan: The work.
        resources: What it takes.
        errors: What stands in the way, all of it.
    """

    options: FtOptions
    located: Located
    checkpoint: Checkpoint
    architecture: Architecture
    dims: Dims
    layout: Layout
    plan: Plan
    resources: Resources
    errors: tuple[LlmCompileError, ...]

    @property
    def files(self) -> int:
        """Files the artifact will have, the manifest included."""
        return len(self.plan.files) + len(self.layout.texts) + len(self.checkpoint.auxiliary) + 1


@dataclass
class Report:
    """What a run did; unlike the manifest it knows the time, the place and the machine."""

    started: str
    stages: dict[str, float] = field(default_factory=dict)
    manifest: records.Manifest | None = None
    output: Path | None = None
    rejected: Path | None = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.stages[name] = self.stages.get(name, 0.0) + time.monotonic() - start


def begin() -> Report:
    """An empty report, stamped with the time."""
    return Report(started=datetime.now(timezone.utc).isoformat(timespec="seconds"))


def prepare(options: FtOptions, report: Report) -> Job:
    """Locate the model, read its headers and make the plan; reads no tensor data and writes nothing.

    Raises:
        CheckpointError: The checkpoint is absent, damaged or lies.
        UnsupportedError: No family answers to it.
        NetworkError: The hub failed.
    """
    build = options.build
    with report.stage("locate"):
        located, checkpoint = _open(build)
    with report.stage("plan"):
        architecture = lookup(checkpoint.config)
        dims = architecture.dims(checkpoint.config)
        _refuse_impossible_sizes(dims, checkpoint)
        layout = BACKENDS[options.backend].make_layout(
            architecture, dims, options, source_dtype=prevailing_dtype(checkpoint), model_label=located.label
        )
        plan = make_plan(
            architecture,
            dims,
            checkpoint.tensors,
            layout.rows,
            ranks=layout.ranks,
            dtype=layout.dtype,
            unused=layout.unused,
        )
        resources = _resources(build, checkpoint, plan)
    return Job(
        options=options,
        located=located,
        checkpoint=checkpoint,
        architecture=architecture,
        dims=dims,
        layout=layout,
        plan=plan,
        resources=resources,
        errors=tuple(_obstacles(build, layout, plan, resources)),
    )


def _open(build: BuildOptions) -> tuple[Located, Checkpoint]:
    """The model's headers; for a dry run without downloading its weights, where that is possible."""
    peeked = peek(build.model, revision=build.revision, token=build.token) if build.dry_run else None
    if peeked is not None:
        return peeked
    located = locate(build.model, revision=build.revision, token=build.token)
    checkpoint = open_checkpoint(located.root)
    _reject_auxiliary_pointers(checkpoint)
    return located, checkpoint


def _refuse_impossible_sizes(dims: Dims, checkpoint: Checkpoint) -> None:
    """A size below one, or more layers than there are tensors, is refused before anything loops over it."""
    tensors = len(checkpoint.tensors)
    problems = [
        Problem(f"config.json: {axis}", str(size), f"1 to {most}", "check that config.json belongs to these weights")
        for axis, size in dims.sizes.items()
        if not 1 <= size <= (most := tensors if axis in ("layers", "decoder_layers") else 2**40)
    ]
    if len(problems) > 0:
        raise collected(CheckpointError, problems)


def _reject_auxiliary_pointers(checkpoint: Checkpoint) -> None:
    for name in checkpoint.auxiliary:
        with contained(checkpoint.root, name).open("rb") as file:
            reject_lfs_pointer(file.read(64), name)


def prevailing_dtype(checkpoint: Checkpoint) -> DType:
    """The float type most of a checkpoint's bytes have; fp16 for one without floats."""
    sizes: dict[str, int] = {}
    for tensor in checkpoint.tensors.values():
        if tensor.dtype.is_float:
            sizes[tensor.dtype.name] = sizes.get(tensor.dtype.name, 0) + tensor.size_bytes
    name = max(sizes, key=lambda key: sizes[key], default=FP16.name)
    return BY_NAME["fp32" if name == "fp64" else name]


def _resources(build: BuildOptions, checkpoint: Checkpoint, plan: Plan) -> Resources:
    workers = min(4, environment.cores() + 1) if build.workers is None else build.workers
    base = environment.resident_memory() + _SLACK_BYTES
    largest = plan.memory_bytes(1)
    budget = max(largest, BUDGET_BYTES) if build.max_memory is None else max(0, build.max_memory - base)
    available = environment.available_memory() + environment.resident_memory()
    done = _allocated(work_path(build.output)) if build.resume else 0
    return Resources(
        memory=base + max(largest, min(budget, plan.memory_bytes(workers))),
        memory_least=base + largest,
        memory_validation=_validation_memory(checkpoint) if build.validate else 0,
        memory_available=available if build.max_memory is None else min(available, build.max_memory),
        budget=budget,
        disk=max(0, plan.output_bytes - done),
        disk_available=environment.free_disk(build.output.absolute().parent),
        workers=workers,
    )


def _allocated(folder: Path) -> int:
    """Bytes of disk the files of a folder take."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def _validation_memory(checkpoint: Checkpoint) -> int:
    """One module in float32 with its working copies, and the largest tensor as stored."""
    elements = max((tensor.size_bytes // tensor.dtype.size_bytes for tensor in checkpoint.tensors.values()), default=0)
    stored = max((tensor.size_bytes for tensor in checkpoint.tensors.values()), default=0)
    return _VALIDATION_BYTES + stored + 3 * min(4 * elements, _BLOCK_BYTES)


def _obstacles(build: BuildOptions, layout: Layout, plan: Plan, resources: Resources) -> Iterator[LlmCompileError]:
    """Everything that stands in the way, worst first."""
    if len(layout.refusals) > 0:
        yield collected(UnsupportedError, layout.refusals)
    if len(plan.problems) > 0:
        yield collected(PlanError, plan.problems)
    shortages = list(_shortages(build, resources))
    if len(shortages) > 0:
        yield collected(ResourceError, shortages)
    try:
        check_replaceable(build.output, force=build.force)
        check_no_leftovers(build.output, resume=build.resume)
        if not build.dry_run:
            _check_writable(build.output)
    except OutputError as error:
        yield error


def _check_writable(output: Path) -> None:
    parent = output.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise OutputError(str(parent), "not a folder", "a folder to make OUTPUT in", "choose another OUTPUT")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(str(parent), "not writable", "a folder this user may write to", "choose another OUTPUT")


def _shortages(build: BuildOptions, resources: Resources) -> Iterator[Problem]:
    have = resources.memory_available
    source = "--max-memory" if build.max_memory is not None and have == build.max_memory else "free memory"
    if resources.memory > have:
        yield Problem(
            "memory",
            f"{resources.memory} bytes needed to convert, {have} bytes of {source}",
            hint=f"at least --max-memory {resources.memory_least} is needed, with --workers 1",
        )
    if resources.memory_validation > have:
        yield Problem(
            "memory",
            f"about {resources.memory_validation} bytes needed to validate, {have} bytes of {source}",
            hint="validate on a larger machine: add --no-validate here and run llmcompile verify --deep there",
        )
    if resources.disk > resources.disk_available:
        yield Problem(
            "disk",
            f"{resources.disk} bytes needed, {resources.disk_available} bytes free",
            hint="make room, or choose an OUTPUT on another disk",
        )


def refuse(job: Job) -> None:
    """Raise everything that stands in the way, if there is anything, as an error of the first kind of it."""
    if len(job.errors) > 0:
        raise collected(type(job.errors[0]), [problem for error in job.errors for problem in error.problems])


def build(job: Job, view: View, report: Report) -> None:
    """Make the artifact and publish it.

    Raises:
        OutputError: OUTPUT cannot be made.
        CheckpointError: The checkpoint changed or cannot be read.
        MismatchError: A cast overflowed, or the artifact disagrees with the model.
    """
    refuse(job)
    options = job.options.build
    with WorkDirectory(options.output, job=_identity(job), resume=options.resume, force=options.force) as work:
        with report.stage("write"):
            streamed = _write(job, work, view)
        _refuse_overflow(job, streamed)
        validation = None
        if options.validate:
            with report.stage("validate"):
                validation = _validate(job, work.path, streamed, view)
        manifest = _manifest(job, work, streamed, validation)
        if validation is not None and not validation.record.passed:
            work.write_bytes(MANIFEST, records.to_bytes(manifest))
            report.manifest, report.rejected = manifest, work.reject()
            raise collected(MismatchError, _kept(validation.problems, report.rejected))
        with report.stage("publish"):
            work.write_bytes(MANIFEST, records.to_bytes(manifest))
            work.publish()
        report.manifest, report.output = manifest, options.output


def _kept(problems: list[Problem], rejected: Path) -> list[Problem]:
    first, *rest = problems
    hint = f"the artifact is kept at {rejected} for inspection"
    return [Problem(first.subject, first.found, first.expected, hint), *rest]


def _identity(job: Job) -> dict[str, Any]:
    """What makes two runs the same job: equal identities give equal bytes."""
    return {
        "llmcompile": __version__,
        "backend": job.layout.backend,
        "options": dict(_recorded(job)),
        "sources": [[file.name, file.size_bytes, file.modified_ns] for file in job.checkpoint.files],
        "auxiliary": {name: hash_file(job.checkpoint.root / name).sha256 for name in job.checkpoint.auxiliary},
        "texts": {name: hashlib.sha256(text.encode()).hexdigest() for name, text in job.layout.texts.items()},
    }


def _recorded(job: Job) -> Mapping[str, Any]:
    return BACKENDS[job.options.backend].recorded(job.options, job.layout)


def _write(job: Job, work: WorkDirectory, view: View) -> Streamed:
    done = sum(written.size_bytes for file, written in work.finished.items() if file.startswith(job.layout.folder))
    with view.writing(job.plan.output_bytes, done) as advance:
        streamed = stream(
            job.plan,
            job.checkpoint.files,
            work,
            prefix=job.layout.folder,
            budget_bytes=job.resources.budget,
            workers=job.resources.workers,
            advance=advance,
        )
    for name, text in job.layout.texts.items():
        work.write_bytes(job.layout.folder + name, text.encode())
    for name in job.checkpoint.auxiliary:
        work.write_bytes(name, contained(job.checkpoint.root, name).read_bytes())
    return streamed


def _refuse_overflow(job: Job, streamed: Streamed) -> None:
    if len(streamed.overflowed) == 0 or job.options.build.allow_overflow:
        return
    dtype = job.layout.dtype.name
    raise collected(
        MismatchError,
        [
            Problem(
                tensor,
                f"{elements} finite elements overflow to infinity in {dtype}",
                "none",
                f"use --dtype fp32; or accept it: repeat with --resume --allow-overflow (the work is kept in "
                f"{work_path(job.options.build.output)})",
            )
            for tensor, elements in streamed.overflowed.items()
        ],
    )


@dataclass(frozen=True)
class _Validated:
    record: records.Validation
    problems: list[Problem]


def subject_of(
    checkpoint: Checkpoint,
    architecture: Architecture,
    dims: Dims,
    *,
    folder: Path,
    ranks: int,
    dtype: str,
    encoder_only: bool,
    int8: bool,
    overflow_accepted: bool,
) -> Subject:
    """What validation needs to know of an artifact and its model."""
    from llmcompile.validation.ft import Subject

    activation = dims.facts.get("activation", dims.facts.get("feed_forward_proj"))
    return Subject(
        folder=folder,
        ranks=ranks,
        dtype=dtype,
        stored_dtype=_single_dtype(checkpoint),
        checkpoint=checkpoint.root,
        weight_files=tuple(file.path for file in checkpoint.files),
        family=architecture.name,
        sizes=dims.sizes,
        activation=str(activation),
        norm_eps=float(str(dims.facts["norm_eps"])),
        encoder_only=encoder_only,
        int8=int8,
        overflow_accepted=overflow_accepted,
    )


def _single_dtype(checkpoint: Checkpoint) -> str:
    """The one float type of a checkpoint; "mixed" when it has several."""
    names = {tensor.dtype.name for tensor in checkpoint.tensors.values() if tensor.dtype.is_float}
    return names.pop() if len(names) == 1 else "mixed"


def _validate(job: Job, folder: Path, streamed: Streamed, view: View) -> _Validated:
    subject = subject_of(
        job.checkpoint,
        job.architecture,
        job.dims,
        folder=folder / job.layout.folder,
        ranks=job.layout.ranks,
        dtype=job.layout.dtype.name,
        encoder_only=job.options.encoder_only,
        int8=job.options.act_scales is not None,
        overflow_accepted=len(streamed.overflowed) > 0,
    )
    options = job.options.build
    return validate(subject, view, atol=options.atol, rtol=options.rtol, trust_remote_code=options.trust_remote_code)


def validate(
    subject: Subject, view: View, *, atol: float | None, rtol: float | None, trust_remote_code: bool
) -> _Validated:
    """Run every check of an artifact, showing each as it is made; what disagrees is in the result, not raised."""
    from llmcompile.validation import ft

    view.validating("FasterTransformer artifact", subject.ranks)
    checks: list[ft.Check] = []
    notes: list[str] = []
    differences: list[Problem] = []
    try:
        for item in ft.validate(subject, atol=atol, rtol=rtol, trust_remote_code=trust_remote_code):
            view.checked(item)
            if isinstance(item, str):
                notes.append(item)
            else:
                checks.append(item)
    except MismatchError as error:
        differences.extend(error.problems)
    comparisons = tuple(
        records.Comparison(
            input=check.input,
            reference=check.reference,
            output=verdict.name,
            passed=verdict.passed,
            details=verdict.to_json(),
        )
        for check in checks
        for verdict in check.comparison.verdicts
    )
    problems = [*differences, *ft.problems_of(checks)]
    passed = len(problems) == 0
    record = records.Validation(passed=passed, executor=ft.EXECUTOR, comparisons=comparisons, notes=tuple(notes))
    return _Validated(record, problems)


def _manifest(job: Job, work: WorkDirectory, streamed: Streamed, validation: _Validated | None) -> records.Manifest:
    checkpoint, build = job.checkpoint, job.options.build
    packages = list(_NUMERIC_PACKAGES)
    if validation is not None:
        packages += _VALIDATION_PACKAGES
    elif checkpoint.format == "pickle":
        packages.append("torch")
    weights = [
        records.FileRecord(path=file.name, bytes=file.size_bytes, sha256=streamed.source_sha256[file.name])
        for file in checkpoint.files
    ]
    auxiliary = [
        records.FileRecord(path=name, bytes=work.finished[name].size_bytes, sha256=work.finished[name].sha256)
        for name in checkpoint.auxiliary
    ]
    return records.Manifest(
        tool=records.Tool(version=__version__),
        backend="ft",
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
        files=tuple(
            records.FileRecord(path=path, bytes=written.size_bytes, sha256=written.sha256)
            for path, written in sorted(work.finished.items())
            if path != MANIFEST
        ),
        deviations=tuple(_deviations(job)),
        ignored=tuple(_ignored(job.plan.ignored)),
        overflowed=streamed.overflowed,
        notes=job.layout.notes,
        validation=None if validation is None else validation.record,
    )


def _deviations(job: Job) -> Iterator[records.Deviation]:
    """One record per file; a pattern without one is about a file left out, for tensors the checkpoint repeats."""
    files = [*job.plan.files, *job.layout.texts]
    repeated = any(reason.startswith("tied") for reason in job.plan.ignored.values())
    for pattern, reason in job.layout.deviations.items():
        matching = [file for file in files if fnmatchcase(file, pattern)]
        for file in matching if len(matching) > 0 or not repeated else [pattern]:
            yield records.Deviation(path=job.layout.folder + file, reason=reason)


def _ignored(ignored: Mapping[str, str]) -> Iterator[records.Ignored]:
    for reason in sorted(set(ignored.values())):
        yield records.Ignored(reason=reason, tensors=tuple(sorted(name for name in ignored if ignored[name] == reason)))


_RESTORE = "copy the artifact again from where it was built, or rebuild it"


def verify(artifact: Path) -> tuple[records.Manifest, list[Problem]]:
    """Compare an artifact's files with its manifest, byte for byte.

    Returns:
        The manifest and every difference.

    Raises:
        CheckpointError: There is no manifest, or it is not one of ours.
    """
    manifest = records.read(artifact / MANIFEST)
    listed = {record.path: record for record in manifest.files}
    present = {str(path.relative_to(artifact)) for path in artifact.rglob("*") if not path.is_dir()}
    problems = [
        Problem(path, "not in the manifest", "no such file", "move it away")
        for path in sorted(present - {*listed, MANIFEST})
    ]
    for path, record in listed.items():
        if path not in present:
            problems.append(Problem(path, "missing", f"{record.bytes} bytes", _RESTORE))
            continue
        size = (artifact / path).stat().st_size
        if size != record.bytes:
            problems.append(Problem(path, f"{size} bytes", f"{record.bytes} bytes", _RESTORE))
        elif (digest := hash_file(artifact / path).sha256) != record.sha256:
            problems.append(Problem(path, f"sha256 {digest}", record.sha256, _RESTORE))
    return manifest, problems


def verify_numbers(
    artifact: Path,
    model: str,
    view: View,
    *,
    revision: str | None,
    token: str | None,
    atol: float | None,
    rtol: float | None,
) -> _Validated:
    """Run the numeric validation of a FasterTransformer folder, ours or anybody's.

    Args:
        artifact: An artifact, or its `<ranks>-gpu` folder.
        model: Folder or hub id of the model it was made from.
        view: Shown every check.
        revision: Revision of a hub id.
        token: Hub token.
        atol: As in `BuildOptions`.
        rtol: As in `BuildOptions`.

    Raises:
        CheckpointError: No such folder, or the model's own troubles.
    """
    folder = _gpu_folder(artifact)
    ranks = int(folder.name.removesuffix("-gpu"))
    located = locate(model, revision=revision, token=token)
    checkpoint = open_checkpoint(located.root)
    architecture = lookup(checkpoint.config)
    dims = architecture.dims(checkpoint.config)
    settings = _ini(folder / "config.ini")
    subject = subject_of(
        checkpoint,
        architecture,
        dims,
        folder=folder,
        ranks=ranks,
        dtype=settings.get("weight_data_type", "fp32"),
        encoder_only=architecture.name == "t5" and "decoder_start_token_id" not in settings,
        int8=settings.get("int8", "").lower() == "true",
        overflow_accepted=False,
    )
    return validate(subject, view, atol=atol, rtol=rtol, trust_remote_code=False)


def _gpu_folder(artifact: Path) -> Path:
    candidates = [artifact, *sorted(artifact.glob("*-gpu"))]
    for folder in candidates:
        if folder.name.removesuffix("-gpu").isdigit() and (folder / "config.ini").is_file():
            return folder.absolute()
    raise CheckpointError(
        str(artifact), "no <ranks>-gpu folder with a config.ini", "a FasterTransformer artifact", "check the path"
    )


def _ini(path: Path) -> dict[str, str]:
    """The keys of all sections of a config.ini, lower-cased; only to tell which kind of artifact it is."""
    pairs = (line.split("=", 1) for line in path.read_text(errors="replace").splitlines() if "=" in line)
    return {key.strip().lower(): value.strip() for key, value in pairs}
