"""A build that is fully known and has not begun: the model located, its headers read, the plan made."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from llmcompile import environment
from llmcompile.architectures import lookup
from llmcompile.architectures.spec import Architecture, Dims
from llmcompile.checkpoint.folder import Checkpoint, contained, open_checkpoint
from llmcompile.checkpoint.headers import reject_lfs_pointer
from llmcompile.checkpoint.hub import Data, Located, locate, locate_data, peek
from llmcompile.dtypes import BY_NAME, FP16, DType, count
from llmcompile.errors import (
    CheckpointError,
    LlmCompileError,
    OptionsError,
    OutputError,
    PlanError,
    Problem,
    ResourceError,
    ToolchainError,
    UnsupportedError,
    collected,
    combined,
)
from llmcompile.exporters.backends import BACKENDS, Options
from llmcompile.exporters.options import BuildOptions
from llmcompile.exporters.spec import Layout
from llmcompile.exporters.trtllm.options import TrtllmOptions
from llmcompile.packaging import manifest as records
from llmcompile.pipeline import engine
from llmcompile.plan import Plan, make_plan, sharded
from llmcompile.ranges import SEARCHED_TOKENS, STEPS, Ranges
from llmcompile.writing import check_no_leftovers, check_replaceable, work_path

if TYPE_CHECKING:
    from llmcompile.exporters.processes import Line
    from llmcompile.exporters.trtllm.toolchain import Toolchain
    from llmcompile.validation.checks import Finding, Quality

BUDGET_BYTES = 256 << 20
"""Tensor data held at once unless --max-memory says otherwise; a larger tensor passes alone."""
_SLACK_BYTES = 48 << 20
"""What threads, staging buffers and the interpreter take beyond the process as it stands when the plan is made."""
_VALIDATION_BYTES = 768 << 20
"""What torch, transformers and a small model take while validating."""
_CALIBRATED_BYTES = 320 << 20
"""What a process has more of when it has calibrated: torch, transformers, and what of the heap cannot be given back."""
_BLOCK_BYTES = 256 << 20
BATCH_TOKENS = 2048
"""Tokens that go through a layer at once in calibration, more or less: weights are read again for each batch."""
_BUILT_IN_TOKENS = 1024
"""More than the built-in text has with any usual tokenizer."""


class View(Protocol):
    """Shows a person what is going on; the pipeline calls it, the command line implements it."""

    def planned(self, job: Job) -> None:
        """The plan stands."""

    @contextmanager
    def writing(self, total_bytes: int, done_bytes: int) -> Iterator[Callable[[int, str], None]]:
        """Show the progress of writing; yields what to call with each block's bytes and its tensor's name."""
        yield lambda size_bytes, tensor: None

    @contextmanager
    def calibrating(self, total: int, done: int) -> Iterator[Callable[[int], None]]:
        """Show how many layers are calibrated; yields what to call with the number of each that is."""
        yield lambda layer: None

    def validating(self, subject: str, ranks: int) -> None:
        """Validation begins."""

    def checked(self, check: Finding) -> None:
        """One comparison was made, a quantized artifact was scored, or something was left out."""

    def lowering(self, graph: str, number: int, total: int) -> None:
        """A graph is being lowered."""

    def preflighted(self, graph: str, warnings: Sequence[str]) -> None:
        """A graph passed the preflight, with these remarks."""

    def building(self, line: Line) -> None:
        """The vendor's builder said something."""


@dataclass(frozen=True)
class Resources:
    """What a job needs against what the machine has, all in bytes.

    Attributes:
        memory: Peak of the conversion.
        memory_least: What it would be with one worker.
        memory_validation: Peak of the validation, estimated; 0 without one.
        memory_calibration: Peak of the calibration, likewise.
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
    memory_calibration: int = 0


@dataclass(frozen=True)
class Calibration:
    """What calibration takes, at most: a short text gives fewer samples.

    Attributes:
        samples: Pieces of text.
        tokens: Of each.
        layers: Layers they go through.
        memory: Peak, in bytes, estimated.
        disk: Bytes of hidden states, before and behind a layer.
        operations: Multiplications and additions of the matrices.
    """

    samples: int
    tokens: int
    layers: int
    memory: int
    disk: int
    operations: int


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
        toolchain: What builds the engine; None when none is asked for, or none was found.
        calibration: What calibration takes; None for a job without.
        data: What it is calibrated on; None for the built-in text, or for nothing.
        scored: Whether a checkpoint that is not quantized is scored on a text as well.
    """

    options: Options
    located: Located
    checkpoint: Checkpoint
    architecture: Architecture
    dims: Dims
    layout: Layout
    plan: Plan
    resources: Resources
    errors: tuple[LlmCompileError, ...]
    toolchain: Toolchain | None = None
    calibration: Calibration | None = None
    data: Data | None = None
    scored: bool = False

    @property
    def files(self) -> int:
        """Files the artifact will have, the manifest included."""
        return len(self.plan.files) + len({*self.texts, *self.checkpoint.auxiliary}) + 1

    @property
    def texts(self) -> Mapping[str, str]:
        """The small text files, by path in the artifact."""
        found = texts(self.checkpoint, self.layout, self.plan)
        return {self.layout.folder + name: text for name, text in found.items()}


@dataclass
class Report:
    """What a run did; unlike the manifest it knows the time, the place and the machine, and all digits."""

    started: str
    stages: dict[str, float] = field(default_factory=dict)
    manifest: records.Manifest | None = None
    output: Path | None = None
    rejected: Path | None = None
    quality: Quality | None = None
    ranges: Ranges | None = None

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


def prepare(options: Options, report: Report) -> Job:
    """Locate the model, read its headers and make the plan; reads no tensor data and writes nothing.

    Raises:
        CheckpointError: The checkpoint is absent, damaged or lies.
        UnsupportedError: No family answers to it.
        NetworkError: The hub failed.
    """
    with report.stage("locate"):
        located, checkpoint = open_source(options.build)
    return prepare_opened(options, located, checkpoint, report)


def prepare_opened(
    options: Options, located: Located, checkpoint: Checkpoint, report: Report, *, scored: bool = False
) -> Job:
    """The same for a model that is located and whose headers are read; `scored` as in `Job`."""
    build = options.build
    with report.stage("plan"):
        architecture = lookup(checkpoint.config, checkpoint.tensors)
        dims = architecture.dims(checkpoint.config)
        _refuse_impossible_sizes(dims, checkpoint)
        layout = BACKENDS[options.backend].make_layout(
            architecture, dims, options, source_dtype=prevailing_dtype(checkpoint), model_label=located.label
        )
        plan = planned(checkpoint, architecture, dims, layout)
        layout, later = _with_what_comes_later(options, layout, plan)
        # All ranks of a Neuron artifact are held at once: XLA runs them side by side.
        held = plan.output_bytes if options.backend == "neuron" else _unpacked_bytes(options, checkpoint)
        calibration = _calibration(options, layout, checkpoint, dims)
        further = engine.disk_bytes(options, plan.output_bytes) + (0 if calibration is None else calibration.disk)
        resources = _resources(build, checkpoint, plan, further, held, calibration)
    errors = list(_obstacles(build, layout, plan, resources))
    with report.stage("locate"):
        data, wrong = _data(options, layout)
    errors += [*later, *_text_errors(options, layout, scored), *wrong, *_calibrator_errors(options, layout)]
    toolchain = None
    if len(layout.refusals) == 0:
        with report.stage("toolchain"):
            try:
                toolchain = engine.find(options, layout)
            except ToolchainError as error:
                errors.append(error)
    return Job(
        options=options,
        located=located,
        checkpoint=checkpoint,
        architecture=architecture,
        dims=dims,
        layout=layout,
        plan=plan,
        resources=resources,
        errors=tuple(errors),
        toolchain=toolchain,
        calibration=calibration,
        data=data,
        scored=scored,
    )


def planned(checkpoint: Checkpoint, architecture: Architecture, dims: Dims, layout: Layout) -> Plan:
    """The work of making an artifact."""
    plan = make_plan(
        architecture,
        dims,
        checkpoint.tensors,
        layout.rows,
        ranks=layout.ranks,
        dtype=layout.dtype,
        unused=layout.unused,
        pp=layout.pp,
        moe_ep=layout.moe_ep,
    )
    return plan if layout.shard_bytes is None else sharded(plan, layout.shard_bytes)


def texts(checkpoint: Checkpoint, layout: Layout, plan: Plan) -> Mapping[str, str]:
    """The small text files of an artifact, relative to the layout's folder: name -> content."""
    config = {} if layout.config is None else {"config.json": layout.config(checkpoint.config)}
    return {**layout.texts, **config, **plan.texts}


def _with_what_comes_later(options: Options, layout: Layout, plan: Plan) -> tuple[Layout, tuple[LlmCompileError, ...]]:
    """What stops the builder stops a command that calls it, and is noted by one that ends before."""
    if len(plan.unpackable) == 0:
        return layout, ()
    if engine.wanted(options):
        return layout, (collected(PlanError, plan.unpackable),)
    first, *rest = plan.unpackable
    more = f" (and {len(rest)} more)" if len(rest) > 0 else ""
    note = f"trtllm-build will not take {first}{more}; {first.hint}"
    return replace(layout, notes=(*layout.notes, note)), ()


def _text_errors(options: Options, layout: Layout, scored: bool) -> Iterator[LlmCompileError]:
    """Why --eval-text cannot be scored: said before any work."""
    if not isinstance(options, TrtllmOptions) or options.eval_text is None or len(layout.refusals) > 0:
        return
    if _unquantized(options, layout) and not scored:
        found = "given for a checkpoint that is not quantized, which is compared number by number"
        yield OptionsError("--eval-text", found, "--quantization", "drop --eval-text")
    try:
        if options.eval_text.read_text(encoding="utf-8").strip() == "":
            yield OptionsError("--eval-text", f"{options.eval_text} is empty", "a text", "choose another file")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        yield OptionsError("--eval-text", f"{options.eval_text}: {reason}", "a text in UTF-8", "choose another file")


def _unquantized(options: TrtllmOptions, layout: Layout) -> bool:
    if options.target == "llmapi":
        return options.quantization is None
    return engine.contents(layout).recipe is None


def _calibrator_errors(options: Options, layout: Layout) -> Iterator[LlmCompileError]:
    """Why --calibrator cannot be used: said before any work."""
    if layout.measurement is None or not isinstance(options, TrtllmOptions) or options.calibrator != "modelopt":
        return
    from llmcompile.calibration.modelopt import installed_version

    try:
        installed_version()
    except ToolchainError as error:
        yield error


def _data(options: Options, layout: Layout) -> tuple[Data | None, tuple[LlmCompileError, ...]]:
    """The file of --calib-dataset, and why it cannot be used: said before any work."""
    if layout.measurement is None or not isinstance(options, TrtllmOptions) or options.calib_dataset is None:
        return None, ()
    if len(layout.refusals) > 0:
        return None, ()  # nothing is downloaded for what is refused anyhow
    from llmcompile.calibration.data import check_dataset

    build = options.build
    try:
        data = locate_data(
            options.calib_dataset, token=build.token, cache_dir=build.cache_dir, download=not build.dry_run
        )
        if data.path is not None:
            check_dataset(data.path, options.calib_column)
    except LlmCompileError as error:
        return None, (error,)
    return data, ()


def open_source(build: BuildOptions) -> tuple[Located, Checkpoint]:
    """The model's headers; for a dry run without downloading its weights, where that is possible."""
    peeked = (
        peek(build.model, revision=build.revision, token=build.token, cache_dir=build.cache_dir)
        if build.dry_run
        else None
    )
    if peeked is not None:
        return peeked
    located = locate(build.model, revision=build.revision, token=build.token, cache_dir=build.cache_dir)
    checkpoint = open_checkpoint(located.root)
    _reject_auxiliary_pointers(checkpoint)
    return located, checkpoint


def _refuse_impossible_sizes(dims: Dims, checkpoint: Checkpoint) -> None:
    """A size below one, or more layers or experts than there are tensors, is refused before anything loops over it."""
    tensors = len(checkpoint.tensors)
    most = dict.fromkeys(dims.sizes, 2**40)
    most |= {axis: tensors for axis in ("layers", "decoder_layers") if axis in most}
    if "experts" in most:
        most["experts"] = max(1, tensors // max(1, dims.sizes["layers"]))
    problems = [
        Problem(
            f"config.json: {axis}", str(size), f"1 to {most[axis]}", "check that config.json belongs to these weights"
        )
        for axis, size in dims.sizes.items()
        if not 1 <= size <= most[axis]
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


def _calibration(options: Options, layout: Layout, checkpoint: Checkpoint, dims: Dims) -> Calibration | None:
    """What calibration takes: linear layers one at a time in float32, a batch's activations, hidden states on disk."""
    if layout.measurement is None or not isinstance(options, TrtllmOptions):
        return None
    sizes = dims.sizes
    length = min(options.calib_seq_len, sizes.get("positions", options.calib_seq_len))
    batch = max(1, BATCH_TOKENS // length) * length
    samples = (
        min(options.calib_size, _BUILT_IN_TOKENS // length + 1) if options.calib_dataset is None else options.calib_size
    )
    hidden, inner = sizes["hidden"], _inner(dims)
    widest = max(hidden, *(width for width, _ in inner))
    scores = 3 * batch * length * sizes["heads"]
    kept = 0
    if layout.measurement.columns == "search":
        kept = SEARCHED_TOKENS * (2 * hidden + sum(matrices * (hidden + width) for width, matrices in inner))
    elements = [count(tensor.shape) for tensor in checkpoint.tensors.values() if len(tensor.shape) == 2]
    tables = sizes["vocab"] * hidden
    # A linear layer as it is stored and in float32, the inner activations of a gated feed-forward, the attention's.
    floats = max(elements, default=0) + batch * (4 * hidden + 4 * widest) + scores + kept
    if options.calibrator == "modelopt":
        # The whole layer, and what becomes of its largest matrix step by step.
        floats += sum(size for size in elements if size != tables) // sizes["layers"] + 3 * max(elements, default=0)
    multiplied = sum(size for size in elements if size != tables) - _idle(dims)
    # What goes into a layer, and what comes out; what an encoder gave stays beside.
    files = 3 if "decoder_layers" in sizes else 2
    if layout.measurement.columns == "search":
        multiplied += STEPS * multiplied * SEARCHED_TOKENS // max(1, samples * length)
    return Calibration(
        samples=samples,
        tokens=length,
        layers=sizes["layers"] + sizes.get("decoder_layers", 0),
        memory=environment.resident_memory() + _VALIDATION_BYTES + 4 * floats + 2 * max(elements, default=0),
        disk=files * samples * length * hidden * 4,
        operations=2 * multiplied * samples * length,
    )


def _inner(dims: Dims) -> list[tuple[int, int]]:
    """Width of each feed-forward of a layer, and how many of that kind a token goes through."""
    sizes = dims.sizes
    if "experts" not in sizes:
        return [(sizes.get("ffn", 0), 1)]
    routed = sizes.get("moe_ffn", sizes["ffn"])
    shared = [(sizes["shared_ffn"], 1)] if "shared_ffn" in sizes else []
    return [(routed, int(str(dims.facts["experts_per_token"]))), *shared]


def _idle(dims: Dims) -> int:
    """Elements of experts that a token is not sent to, in all layers."""
    if "experts" not in dims.sizes:
        return 0
    width, reached = _inner(dims)[0]
    return 3 * dims.sizes["hidden"] * width * (dims.sizes["experts"] - reached) * dims.sizes["layers"]


def _resources(
    build: BuildOptions,
    checkpoint: Checkpoint,
    plan: Plan,
    engine_bytes: int,
    held_bytes: int,
    calibration: Calibration | None,
) -> Resources:
    workers = min(4, environment.cores() + 1) if build.workers is None else build.workers
    libraries = 0 if calibration is None or "torch" in sys.modules else _CALIBRATED_BYTES
    base = environment.resident_memory() + libraries + _SLACK_BYTES
    largest = plan.memory_bytes(1)
    budget = max(largest, BUDGET_BYTES) if build.max_memory is None else max(0, build.max_memory - base)
    available = environment.available_memory() + environment.resident_memory()
    done = _allocated(work_path(build.output)) if build.resume else 0
    return Resources(
        memory=base + max(largest, min(budget, plan.memory_bytes(workers))),
        memory_least=base + largest,
        memory_validation=held_bytes + _validation_memory(checkpoint) if build.validate else 0,
        memory_available=available if build.max_memory is None else min(available, build.max_memory),
        budget=budget,
        disk=max(0, plan.output_bytes + engine_bytes - done),
        disk_available=environment.free_disk(build.output.absolute().parent),
        workers=workers,
        memory_calibration=0 if calibration is None else calibration.memory,
    )


def after_calibration(build: BuildOptions, resources: Resources) -> Resources:
    """What writing may hold at once where --max-memory bounds it, with what calibration left in memory."""
    environment.trim_memory()
    if build.max_memory is None:
        return resources
    return replace(resources, budget=max(0, build.max_memory - environment.resident_memory() - _SLACK_BYTES))


def _allocated(folder: Path) -> int:
    """Bytes of disk the files of a folder take."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def _unpacked_bytes(options: Options, checkpoint: Checkpoint) -> int:
    """The largest matrix in float32, where the artifact's own are unpacked one by one for transformers to run."""
    if not isinstance(options, TrtllmOptions) or options.target != "llmapi" or options.quantization is None:
        return 0
    return 4 * max((count(tensor.shape) for tensor in checkpoint.tensors.values()), default=0)


def _validation_memory(checkpoint: Checkpoint) -> int:
    """One module in float32 with its working copies, and the largest tensor as stored."""
    elements = max((tensor.size_bytes // tensor.dtype.size_bytes for tensor in checkpoint.tensors.values()), default=0)
    stored = max((tensor.size_bytes for tensor in checkpoint.tensors.values()), default=0)
    return _VALIDATION_BYTES + stored + 3 * min(4 * elements, _BLOCK_BYTES)


def _obstacles(build: BuildOptions, layout: Layout, plan: Plan, resources: Resources) -> Iterator[LlmCompileError]:
    """Everything that stands in the way, worst first."""
    if len(layout.refusals) > 0:
        yield collected(UnsupportedError, layout.refusals)
    if len(plan.problems) > 0 and len(layout.rows) > 0:
        yield collected(PlanError, plan.problems)
    short = list(shortages(build, resources))
    if len(short) > 0:
        yield collected(ResourceError, short)
    yield from output_errors(build)


def output_errors(build: BuildOptions) -> Iterator[OutputError]:
    """Why OUTPUT cannot be made, if so."""
    try:
        check_replaceable(build.output, force=build.force)
        check_no_leftovers(build.output, resume=build.resume)
        if not build.dry_run:
            check_writable(build.output)
    except OutputError as error:
        yield error


def check_writable(output: Path) -> None:
    """Refuse an output whose folder cannot be written to.

    Raises:
        OutputError: It is no folder, or not writable for this user.
    """
    parent = output.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise OutputError(str(parent), "not a folder", "a folder to make OUTPUT in", "choose another OUTPUT")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(str(parent), "not writable", "a folder this user may write to", "choose another OUTPUT")


def shortages(build: BuildOptions, resources: Resources) -> Iterator[Problem]:
    """What there is too little of."""
    have = resources.memory_available
    source = "--max-memory" if build.max_memory is not None and have == build.max_memory else "free memory"
    if resources.memory > have:
        yield Problem(
            "memory",
            f"{resources.memory} bytes needed to convert, {have} bytes of {source}",
            hint=f"at least --max-memory {resources.memory_least} is needed, with --workers 1",
        )
    if resources.memory_calibration > have:
        yield Problem(
            "memory",
            f"about {resources.memory_calibration} bytes needed to calibrate, {have} bytes of {source}",
            hint="give a shorter --calib-seq-len, or choose a recipe that needs no data, such as w8a16",
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
        raise combined(job.errors)
