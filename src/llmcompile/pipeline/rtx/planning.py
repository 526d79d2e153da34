"""Everything known of a build before work begins; reads headers and config.json, never torch or onnx."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from llmcompile import environment
from llmcompile.checkpoint.folder import Checkpoint, open_checkpoint
from llmcompile.checkpoint.hub import Located, locate, peek
from llmcompile.errors import (
    LlmCompileError,
    OptionsError,
    PlanError,
    Problem,
    ResourceError,
    ToolchainError,
    UnsupportedError,
    collected,
    combined,
)
from llmcompile.exporters.rtx import builder, capabilities, execution, profiles, tasks
from llmcompile.exporters.rtx.execution import Machine
from llmcompile.exporters.rtx.options import DECODER_TASK, ENCODER_TASKS, SEQ2SEQ_TASK, TASKS, Range, RtxOptions
from llmcompile.exporters.rtx.profiles import Profile
from llmcompile.pipeline.job import BUDGET_BYTES, Report, Resources, output_errors, prevailing_dtype, shortages

Scalar: TypeAlias = bool | int | float | str | None
_EXPORT_BYTES = 768 << 20
"""What torch, transformers and torch.onnx take while a graph is exported, weights apart."""
_BUILDER_FACTOR = 3.6
"""Memory of the builder, in units of the weights: a model of 494 M weights in fp16, 988 MB, took 3555 MB."""
_BUILDER_BYTES = 400 << 20
"""What the builder takes of a model without weights, about."""
_ENGINE_FACTOR = 1.1
"""Bytes of an engine in units of its ONNX model's; measured 1.03 to 1.1, where an embedding is not there twice."""
_LABELS: Mapping[str, int] = {"fp32": 4, "fp16": 2, "bf16": 2}


@dataclass(frozen=True, kw_only=True)
class Build:
    """A build that is fully known and has not begun.

    Attributes:
        options: What was asked.
        located: Where the model is.
        checkpoint: Its files and headers.
        task: What the graphs do.
        dtype: Element type of weights and arithmetic.
        profiles: Name of each graph -> how it is used.
        longest: Most tokens of a sequence; of a decoder, prompt and answer together.
        capabilities: Compute capabilities the engine is for; () for an ONNX model alone.
        builder: TensorRT for RTX; None where it is not called, or not found.
        machine: GPUs that could run the engine; None where none is built.
        onnx_bytes: About what the weights of the ONNX model take.
        builder_bytes: About what the builder takes in memory; 0 without one.
        resources: What it takes.
        notes: Sentences worth knowing before deploying.
        errors: What stands in the way, all of it.
    """

    options: RtxOptions
    located: Located
    checkpoint: Checkpoint
    task: str
    dtype: str
    profiles: Mapping[str, tuple[Profile, ...]]
    longest: int
    capabilities: tuple[int, ...]
    builder: builder.Builder | None
    machine: Machine | None
    onnx_bytes: int
    builder_bytes: int
    resources: Resources
    notes: tuple[str, ...]
    errors: tuple[LlmCompileError, ...]

    @property
    def config(self) -> Mapping[str, Any]:
        """config.json."""
        return self.checkpoint.config

    @property
    def onnx_options(self) -> Mapping[str, Scalar]:
        """The options that decide the ONNX model, as resolved."""
        options, build = self.options, self.options.build
        return {
            "task": self.task,
            "dtype": self.dtype,
            "quantization": options.quantization,
            "all_logits": options.all_logits,
            "opset": options.opset,
            "num_choices": options.num_choices if self.task == "multiple-choice" else None,
            "trust_remote_code": build.trust_remote_code,
            "allow_overflow": build.allow_overflow,
        }

    @property
    def recorded(self) -> Mapping[str, Scalar]:
        """The options that decide the artifact, as resolved, for the manifest."""
        options, build = self.options, self.options.build
        return {
            **self.onnx_options,
            "batch_size": str(options.batch_size),
            "longest": self.longest,
            "compute_capability": ",".join(str(each) for each in self.capabilities),
            "weight_streaming": options.weight_streaming,
            "stop_after": options.stop_after,
            "keep_onnx": options.keep_onnx,
            "atol": build.atol,
            "rtol": build.rtol,
        }


def prepare_build(options: RtxOptions, report: Report) -> Build:
    """Check the packages, locate the model, read its headers and plan; reads no tensor data and writes nothing.

    Raises:
        ToolchainError: A package of the extra `rtx` is not installed.
        CheckpointError: The checkpoint is absent, damaged or lies.
        OptionsError: The task cannot be told.
        NetworkError: The hub failed.
    """
    wanted = options.stop_after is None
    errors: list[LlmCompileError] = []
    found = machine = None
    with report.stage("toolchain"):
        builder.check_packages(builder=wanted)
        if wanted:
            try:
                found = builder.find()
            except ToolchainError as error:
                errors.append(error)
            machine = execution.machine(Path.cwd())
    with report.stage("locate"):
        located, checkpoint = _located(options)
    with report.stage("plan"):
        config = checkpoint.config
        task = _task(options, config)
        dtype = prevailing_dtype(checkpoint).name if options.dtype is None else options.dtype
        chosen = capabilities.chosen(options.compute_capabilities, dtype, options.quantization) if wanted else ()
        sequence, target, problems = _lengths(options, config, task)
        errors += [collected(PlanError, problems)] if len(problems) > 0 else []
        errors += _refusals(options, config, task, dtype, chosen, wanted)
        errors += _not_built_for(found, chosen)
        size = _onnx_bytes(checkpoint, dtype, options.quantization)
        resources = _resources(options, checkpoint, dtype, size)
        builder_bytes = _BUILDER_BYTES + int(_BUILDER_FACTOR * size) if wanted else 0
        errors += _obstacles(options, resources, builder_bytes)
    return Build(
        options=options,
        located=located,
        checkpoint=checkpoint,
        task=task,
        dtype=dtype,
        profiles=_profiles(options, task, sequence, target),
        longest=target.most if task == SEQ2SEQ_TASK else sequence.most,
        capabilities=chosen,
        builder=found,
        machine=machine,
        onnx_bytes=size,
        builder_bytes=builder_bytes,
        resources=resources,
        notes=tuple(_notes(options, config, task, machine, chosen)),
        errors=tuple(errors),
    )


def refuse_build(build: Build) -> None:
    """Raise everything that stands in the way, if there is anything, as an error of the first kind of it."""
    if len(build.errors) > 0:
        raise combined(build.errors)


def _located(options: RtxOptions) -> tuple[Located, Checkpoint]:
    """The model's headers; for a dry run without downloading its weights, where that is possible."""
    build = options.build
    if build.dry_run:
        peeked = peek(build.model, revision=build.revision, token=build.token, cache_dir=build.cache_dir)
        if peeked is not None:
            return peeked
    located = locate(build.model, revision=build.revision, token=build.token, cache_dir=build.cache_dir)
    return located, open_checkpoint(located.root)


def _task(options: RtxOptions, config: Mapping[str, Any]) -> str:
    task = options.task if options.task is not None else tasks.infer_task(config)
    if task is None:
        found = f"not given, and config.json's architectures, {config.get('architectures')}, do not tell"
        raise OptionsError("--task", found, f"one of {', '.join(TASKS)}", "--task feature-extraction")
    return task


def _lengths(options: RtxOptions, config: Mapping[str, Any], task: str) -> tuple[Range, Range, list[Problem]]:
    """Lengths of sequences, of answers of an encoder-decoder, and those the model has no positions for."""
    limit = tasks.positions(config)
    most = tasks.LONGEST.get(task, 512)
    most = most if limit is None else max(1, min(limit, most))
    usual = Range(1, min(128, most), most)
    sequence = usual if options.sequence_length is None else options.sequence_length
    target = sequence if options.target_length is None else options.target_length
    problems = [
        Problem(flag, f"at most {asked.most}", f"at most {limit}, the model's positions", f"{flag} {limit}")
        for flag, asked in (("--sequence-length", sequence), ("--target-length", target))
        if limit is not None and asked.most > limit and (flag == "--sequence-length" or task == SEQ2SEQ_TASK)
    ]
    if task == DECODER_TASK and sequence.most < 2:
        problems.append(Problem("--sequence-length", "1", "2 or more: a prompt and an answer", "--sequence-length 128"))
    if options.target_length is not None and task != SEQ2SEQ_TASK:
        found = f"given for {task}"
        problems.append(Problem("--target-length", found, f"--task {SEQ2SEQ_TASK}", "drop --target-length"))
    return sequence, target, problems


def _profiles(options: RtxOptions, task: str, sequence: Range, target: Range) -> dict[str, tuple[Profile, ...]]:
    batch = options.batch_size
    if task == DECODER_TASK:
        return {"model": profiles.of_decoder(batch, sequence)}
    encoder = profiles.of_encoder(batch, sequence, options.num_choices)
    if task == SEQ2SEQ_TASK:
        return {"encoder": encoder, "decoder": profiles.of_decoder(batch, target, sequence)}
    return {"model": encoder}


def _refusals(
    options: RtxOptions, config: Mapping[str, Any], task: str, dtype: str, chosen: tuple[int, ...], wanted: bool
) -> Iterator[LlmCompileError]:
    problems = list(tasks.refusals(config, task))
    if len(problems) > 0:
        yield collected(UnsupportedError, problems)
    problems = list(capabilities.refusals(chosen, dtype, options.quantization))
    if wanted and len(chosen) == 0:
        found = f"no default has both {dtype} and {options.quantization}"
        problems.append(Problem("--compute-capability", found, "one that has", "--compute-capability 89"))
    if len(problems) > 0:
        yield collected(UnsupportedError, problems)


def _not_built_for(found: builder.Builder | None, chosen: tuple[int, ...]) -> Iterator[LlmCompileError]:
    """Compute capabilities that the builder, as it is installed, lacks: an older or a newer release."""
    lacking = [] if found is None else [each for each in chosen if each not in found.capabilities]
    if found is not None and len(lacking) > 0:
        yield ToolchainError(
            f"tensorrt_rtx {found.version}",
            f"does not build for {', '.join(f'sm{each}' for each in lacking)}",
            f"one that does; it has {', '.join(f'sm{each}' for each in found.capabilities)}",
            "pip install --upgrade 'llmcompile[rtx]', or name others with --compute-capability",
        )


def _onnx_bytes(checkpoint: Checkpoint, dtype: str, quantization: str | None) -> int:
    """About what the weights take: matrices quantized but for embeddings, which are told by their name."""
    bits = {None: 8 * _LABELS[dtype], "int8": 8.1, "fp8": 8.1, "int4": 4.13}[quantization]
    total = 0.0
    for name, tensor in checkpoint.tensors.items():
        elements = tensor.size_bytes // tensor.dtype.size_bytes
        matrix = len(tensor.shape) == 2 and "emb" not in name and "head" not in name
        total += elements * (bits / 8 if matrix else _LABELS[dtype])
    return int(total)


def _resources(options: RtxOptions, checkpoint: Checkpoint, dtype: str, onnx_bytes: int) -> Resources:
    """In memory the model, on the disk what torch.onnx writes, what the artifact keeps of it, and an engine."""
    build = options.build
    elements = [tensor.size_bytes // tensor.dtype.size_bytes for tensor in checkpoint.tensors.values()]
    loaded = _LABELS[dtype] * sum(elements)
    base = environment.resident_memory()
    available = environment.available_memory() + base
    exported = base + _EXPORT_BYTES + loaded + loaded // 4
    # ONNX Runtime holds the graph's weights, of 16 bits a second time in float32; transformers one module.
    validated = (
        base + _EXPORT_BYTES + 4 * sum(elements) + (0 if dtype == "fp32" else loaded) + 12 * max(elements, default=0)
    )
    engine = int(_ENGINE_FACTOR * onnx_bytes) if options.stop_after is None else 0
    return Resources(
        memory=exported,
        memory_least=exported,
        memory_validation=validated,
        memory_available=available if build.max_memory is None else min(available, build.max_memory),
        budget=BUDGET_BYTES,
        disk=loaded + onnx_bytes + engine,
        disk_available=environment.free_disk(build.output.absolute().parent),
        workers=1,
    )


def _obstacles(options: RtxOptions, resources: Resources, builder_bytes: int) -> Iterator[LlmCompileError]:
    short = list(shortages(options.build, replace(resources, memory_validation=0)))
    if resources.memory_validation > resources.memory_available:
        short.append(
            Problem(
                "memory",
                f"about {resources.memory_validation} bytes needed to validate, {resources.memory_available} available",
                hint="use a larger machine: an ONNX model is never released unvalidated",
            )
        )
    if builder_bytes > resources.memory_available:
        short.append(
            Problem(
                "memory",
                f"about {builder_bytes} bytes needed by the builder, {resources.memory_available} bytes available",
                hint="add --quantization int8, or --stop-after onnx here and build on a larger machine",
            )
        )
    if len(short) > 0:
        yield collected(ResourceError, short)
    yield from output_errors(options.build)


def _notes(
    options: RtxOptions, config: Mapping[str, Any], task: str, machine: Machine | None, chosen: tuple[int, ...]
) -> Iterator[str]:
    kind = str(config.get("model_type", "unknown"))
    if not tasks.tried(kind, task):
        known = tasks.DECODERS if task == DECODER_TASK else tasks.ENCODER_DECODERS
        yield f"{kind} is not among the model types this was tried on: {', '.join(sorted(known))}"
    if options.all_logits and task in ENCODER_TASKS:
        yield f"without effect for {task}: --all-logits"
    if options.quantization == "int4":
        yield "int4 weights are rounded to nearest, without calibration: small models lose much by it, see validated"
    if machine is not None and len(chosen) > 0 and machine.fitting(chosen) is None:
        yield f"built, not executed: {machine.why_not(chosen)}; what runs is the ONNX model it is built of"
