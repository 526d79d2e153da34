"""Everything known of a Neuron export before work begins; reads headers and config.json, never torch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

from llmcompile import environment
from llmcompile.checkpoint.folder import Checkpoint, open_checkpoint, read_object
from llmcompile.checkpoint.hub import Located, locate, peek
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
from llmcompile.exporters.neuron import compiler as compilers
from llmcompile.exporters.neuron import flags, optimum, optimum_requests, preflight, tasks
from llmcompile.exporters.neuron.cache import Cache
from llmcompile.exporters.neuron.layout import buckets, cache_bytes
from llmcompile.exporters.neuron.options import ENCODER_TASKS, INSTANCE_TYPES, NeuronOptions
from llmcompile.exporters.neuron.signature import CONTEXT, ENCODER
from llmcompile.exporters.neuron.targets import TARGETS
from llmcompile.pipeline.job import (
    BUDGET_BYTES,
    Job,
    Report,
    Resources,
    check_writable,
    output_errors,
    prepare,
    shortages,
)

Scalar: TypeAlias = bool | int | float | str | None
DECODER_TASK = "text-generation"
_FAMILIES: Mapping[str, str] = MappingProxyType({"trn2u": "trn2"})
"""Instance types that are another's family."""
OWN_LAYOUTS = ("nxd", "sdk-2.16", "lmi-split", "lmi-cache")
"""Layouts our own way makes; the other one is optimum-neuron's."""
_LOWERING_BYTES = 768 << 20
"""What torch, transformers and jax take while a graph is lowered, weights apart."""
_SDK_16 = "transformers-neuronx, whose layout this is, ended with SDK 2.26 (2025); newer runtimes load --layout nxd"


@dataclass(frozen=True, kw_only=True)
class Export:
    """An export that is fully known and has not begun.

    Attributes:
        options: What was asked.
        located: Where the model is.
        config: Its config.json; of a diffusion model, model_index.json.
        checkpoint: Its files and headers; None for a folder that optimum-neuron alone reads.
        task: What the graphs do.
        via: "xla" or "optimum".
        layout: How the artifact is laid out.
        target: Instance family the graphs are for.
        job: The plan of a decoder's weights; None for other models.
        core_bytes: Weights and caches of one core of a decoder; 0 where they are not known yet.
        resources: What it takes.
        compiler: neuronx-cc; None where it is not called.
        sdk: The interpreter that has optimum-neuron; None where it is not used.
        environment_flags: Flags of NEURON_CC_FLAGS that are handed on.
        notes: Sentences worth knowing before deploying.
        errors: What stands in the way, all of it.
    """

    options: NeuronOptions
    located: Located
    config: Mapping[str, Any]
    checkpoint: Checkpoint | None
    task: str
    via: str
    layout: str
    target: str
    job: Job | None
    core_bytes: int
    resources: Resources
    compiler: compilers.Compiler | None
    sdk: optimum.Sdk | None
    environment_flags: tuple[str, ...]
    notes: tuple[str, ...]
    errors: tuple[LlmCompileError, ...]

    @property
    def decoder(self) -> bool:
        """Whether it has a context and a generation graph."""
        return self.task == DECODER_TASK

    @property
    def buckets(self) -> tuple[int, ...]:
        """Lengths of prompts that a decoder has a graph for."""
        return buckets(self.options) if self.decoder else ()

    @property
    def recorded(self) -> Mapping[str, Scalar]:
        """The options that decide the artifact, as resolved, for the manifest."""
        options, build = self.options, self.options.build
        return {
            "task": self.task,
            "via": self.via,
            "layout": self.layout,
            "target": self.target,
            "num_cores": options.num_cores,
            "dtype": self.dtype,
            "torch_dtype": options.torch_dtype,
            **vars(options.shapes),
            "buckets": ",".join(str(bucket) for bucket in self.buckets),
            "dynamic_batch_size": options.dynamic_batch_size,
            "output_hidden_states": options.output_hidden_states,
            "output_attentions": options.output_attentions,
            "auto_cast": options.auto_cast,
            "auto_cast_type": options.auto_cast_type,
            "optlevel": options.optlevel,
            "validate": build.validate,
            "atol": build.atol,
            "rtol": build.rtol,
            "allow_overflow": build.allow_overflow,
            "trust_remote_code": build.trust_remote_code,
        }

    @property
    def dtype(self) -> str:
        """Element type of weights and arithmetic, by our names."""
        if self.job is not None:
            return self.job.layout.dtype.name
        named = {"float16": "fp16", "bfloat16": "bf16"}
        return named.get(str(self.options.torch_dtype), "fp32")

    @property
    def graphs(self) -> tuple[str, ...]:
        """Names of the graphs, in the order they are lowered."""
        if not self.decoder:
            return ("model",)
        return (*(f"context_encoding_{bucket}" for bucket in self.buckets), "token_generation")


def prepare_export(options: NeuronOptions, report: Report) -> Export:
    """Locate the model, choose the way, and plan; reads no tensor data and writes nothing.

    Raises:
        CheckpointError: The checkpoint is absent, damaged or lies.
        UnsupportedError: No way leads from this model to this task.
        OptionsError: The task cannot be told.
        NetworkError: The hub failed.
    """
    with report.stage("locate"):
        located, config, checkpoint = _located(options)
    task = _task(options, config)
    errors: list[LlmCompileError] = []
    with report.stage("toolchain"):
        via, sdk, found = _way(options, task, config)
        errors += found
        if len(errors) > 0 and via == "xla" and task not in (*ENCODER_TASKS, DECODER_TASK):
            raise combined(errors)
        compiler, found = _compiler(options, via) if len(errors) == 0 else (None, [])
        errors += found
    with report.stage("plan"):
        errors += _contradictions(options, task, via, config)
        target, notes = _target(options)
        given, found = environment_flags(options, task, target) if via == "xla" else ((), [])
        errors += found
        if via == "xla" and task == DECODER_TASK:
            if options.shapes.sequence_length is None or options.shapes.batch_size is None:
                raise combined(errors)
            job = prepare(replace(options, instance_type=target), report)
            needs = _decoder_needs(options, job, target)
            notes += job.layout.notes
        else:
            job = None
            needs = _encoder_needs(options, located.root, checkpoint, via)
        errors += needs.errors
        layout = _layout(options, via)
        if sdk is not None:
            errors += _through_optimum(replace(options, instance_type=target), task, config, located.root, sdk)
        notes += tuple(_notes(options, task, via, layout))
    return Export(
        options=options,
        located=located,
        config=config,
        checkpoint=needs.checkpoint,
        task=task,
        via=via,
        layout=layout,
        target=target,
        job=job,
        core_bytes=needs.core_bytes,
        resources=needs.resources,
        compiler=compiler,
        sdk=sdk,
        environment_flags=given,
        notes=notes,
        errors=tuple(errors),
    )


@dataclass(frozen=True)
class _Needs:
    """What of the plan depends on whether a model decodes; fields as in `Export`."""

    checkpoint: Checkpoint | None
    core_bytes: int
    resources: Resources
    errors: tuple[LlmCompileError, ...]


def _decoder_needs(options: NeuronOptions, job: Job, target: str) -> _Needs:
    core_bytes = _core_bytes(options, job)
    beyond = _beyond_table(options, job)
    errors = [*_too_large(options, job, target, core_bytes), *job.errors]
    if beyond is not None:
        # The layout refuses it too; here it has the compiler's own code.
        about = beyond.problems[0].subject
        errors = [beyond, *(error for error in errors if all(item.subject != about for item in error.problems))]
    return _Needs(job.checkpoint, core_bytes, job.resources, tuple(errors))


def _workdir_problem(options: NeuronOptions) -> Iterator[Problem]:
    if options.compiler_workdir is None:
        return
    try:
        check_writable(options.compiler_workdir / "graph")
    except OutputError as error:
        found = f"{options.compiler_workdir}: {error.problems[0].found}"
        yield Problem("--compiler-workdir", found, "a folder this user may write to", "choose another folder")


def _beyond_table(options: NeuronOptions, job: Job) -> PlanError | None:
    """A sequence beyond a decoder's table of positions; rotary ones have none."""
    table = any("embed.positions.weight" in tensor.roles for tensor in job.architecture.tensors)
    length, positions = options.shapes.sequence_length, job.dims.sizes.get("positions")
    problem = None
    if table and length is not None and positions is not None:
        problem = preflight.positions(length, positions)
    return None if problem is None else PlanError(problem.subject, problem.found, problem.expected, problem.hint)


def _encoder_needs(options: NeuronOptions, root: Path, checkpoint: Checkpoint | None, via: str) -> _Needs:
    if via == "xla" and checkpoint is None:
        checkpoint = open_checkpoint(root)
    resources = _resources(options, root, checkpoint)
    return _Needs(checkpoint, 0, resources, tuple(_obstacles(options, resources)))


def list_tasks(
    model: str, *, revision: str | None, token: str | None, cache_dir: Path | None
) -> Mapping[str, tuple[str, ...]]:
    """Tasks a model can be exported for -> the ways: "xla", "optimum" or both.

    Raises:
        CheckpointError: There is no such model.
        NetworkError: The hub failed.
    """
    peeked = peek(model, revision=revision, token=token, cache_dir=cache_dir)
    if peeked is not None:
        config = peeked[1].config
    else:
        config = _config(locate(model, revision=revision, token=token, cache_dir=cache_dir).root)
    found: dict[str, tuple[str, ...]] = {}
    for task, way in tasks.supported_tasks(config):
        if tasks.without_head(task, config):
            continue
        found[task] = (*found.get(task, ()), way)
    return found


def refuse_export(export: Export) -> None:
    """Raise everything that stands in the way, if there is anything, as an error of the first kind of it."""
    if len(export.errors) > 0:
        raise combined(export.errors)


def _located(options: NeuronOptions) -> tuple[Located, Mapping[str, Any], Checkpoint | None]:
    """Where the model is, and its config; for a dry run its headers too, where no weights need be downloaded."""
    build = options.build
    whole = options.task is not None and options.task not in (*ENCODER_TASKS, DECODER_TASK)
    if build.dry_run and not whole:
        peeked = peek(build.model, revision=build.revision, token=build.token, cache_dir=build.cache_dir)
        if peeked is not None:
            return peeked[0], peeked[1].config, peeked[1]
    located = locate(build.model, revision=build.revision, token=build.token, cache_dir=build.cache_dir, whole=whole)
    return located, _config(located.root / options.subfolder), None


def _config(folder: Path) -> Mapping[str, Any]:
    """What says of which kind a model is; of a pipeline of several, model_index.json."""
    names = ("config.json", "model_index.json", "params.json")
    name = next((name for name in names if (folder / name).exists()), names[0])
    return open_checkpoint(folder).config if name == "params.json" else MappingProxyType(read_object(folder, name))


def _task(options: NeuronOptions, config: Mapping[str, Any]) -> str:
    task = options.task if options.task is not None else tasks.infer_task(config)
    if task is None:
        named = config.get("architectures")
        raise OptionsError(
            "--task",
            f"not given, and config.json's architectures, {named}, do not tell",
            "the task to export for",
            f"llmcompile export neuron --list-tasks {options.build.model} lists them",
        )
    return task


def _never(options: NeuronOptions, task: str, config: Mapping[str, Any]) -> list[LlmCompileError]:
    """What no release of optimum-neuron could do either."""
    source = optimum_requests.source_of(config, task)
    found = optimum_requests.obstacles(options, task, source, optimum_requests.LAST_READ, os.environ, devices=0)
    return [error for error in found if isinstance(error, UnsupportedError)]


def _way(
    options: NeuronOptions, task: str, config: Mapping[str, Any]
) -> tuple[str, optimum.Sdk | None, list[LlmCompileError]]:
    """Either "xla" or "optimum", what the latter runs in, and why neither leads there."""
    own = task in (*ENCODER_TASKS, DECODER_TASK)
    ours = options.via == "xla" or options.stop_after is not None or options.layout in OWN_LAYOUTS
    if ours and own:
        return "xla", None, _layout_problem(options)
    if ours:
        asked = next(
            flag
            for flag, given in (
                ("--via xla", options.via == "xla"),
                ("--stop-after lower", options.stop_after is not None),
                (f"--layout {options.layout}", True),
            )
            if given
        )
        hint = f"drop {asked}, where optimum-neuron and its SDK are"
        return (
            "xla",
            None,
            [UnsupportedError("--task", f"{task} with {asked}", f"{', '.join(ENCODER_TASKS)} or {DECODER_TASK}", hint)],
        )
    try:
        sdk = optimum.find(options.toolchain_python, os.environ, own=own)
    except ToolchainError as error:
        if options.via == "optimum" or options.layout == "optimum" or not own or options.toolchain_python is not None:
            return "optimum", None, [*_never(options, task, config), error]
        return "xla", None, []
    return "optimum", sdk, []


def _layout_problem(options: NeuronOptions) -> list[LlmCompileError]:
    if options.layout != "optimum":
        return []
    found = (
        "optimum without optimum-neuron: its model.neuron is a TorchScript file that torch_neuronx.trace alone writes"
    )
    return [
        ToolchainError(
            "--layout", found, f"one of {', '.join(OWN_LAYOUTS)}", "drop --via and --stop-after, or use --layout nxd"
        )
    ]


def _layout(options: NeuronOptions, via: str) -> str:
    if options.layout is not None:
        return options.layout
    return "nxd" if via == "xla" else "optimum"


def _compiler(options: NeuronOptions, via: str) -> tuple[compilers.Compiler | None, list[LlmCompileError]]:
    if via != "xla" or options.stop_after is not None:
        return None, []
    return find_compiler(options, options.build.output, lowered=False)


def find_compiler(
    options: NeuronOptions, output: Path, *, lowered: bool
) -> tuple[compilers.Compiler | None, list[LlmCompileError]]:
    """neuronx-cc, and what is wrong with it or with the compile cache.

    Args:
        options: What was asked.
        output: The artifact.
        lowered: Whether its graphs are lowered already.
    """
    try:
        found = compilers.find(options.compiler, output=str(output), lowered=lowered)
        if options.compile_cache is not None:
            Cache(options.compile_cache, found.version)
    except (ToolchainError, OptionsError) as error:
        return None, [error]
    return found, []


def environment_flags(options: NeuronOptions, task: str, target: str) -> tuple[tuple[str, ...], list[LlmCompileError]]:
    """What NEURON_CC_FLAGS adds, which changes what is compiled without a word, and why it may not.

    Args:
        options: What was asked.
        task: What the graphs do.
        target: Instance family.
    """
    ours = flags.arguments(options, CONTEXT if task == DECODER_TASK else ENCODER, target)
    try:
        given = flags.environment_flags(os.environ, ours)
    except OptionsError as error:
        return (), [error]
    if len(given) > 0 and not options.allow_env_flags:
        found = f"set to {' '.join(given)}, which changes what is compiled"
        return (), [OptionsError("NEURON_CC_FLAGS", found, "unset", "unset it, or add --allow-env-flags")]
    return given, []


def _target(options: NeuronOptions) -> tuple[str, tuple[str, ...]]:
    """The instance family: as asked, this host's, or the first that has so many cores; inf2 and trn1 run one code."""
    if options.instance_type is not None:
        return options.instance_type, ()
    here = environment.neuron_instance_type()
    family = None if here is None else _FAMILIES.get(here, here)
    if family in INSTANCE_TYPES:
        return family, ()
    families = [name for name in INSTANCE_TYPES if len(preflight.topology(options.num_cores, name)) == 0]
    target = families[0] if len(families) > 0 else INSTANCE_TYPES[0]
    same = "" if target == "trn2" else ", whose code is that of inf2, trn1 and trn1n"
    return target, (f"no --instance-type, and no Neuron device here: the graphs are for {target}{same}",)


def _contradictions(
    options: NeuronOptions, task: str, via: str, config: Mapping[str, Any]
) -> Iterator[LlmCompileError]:
    if tasks.without_head(task, config):
        saved = tasks.infer_task(config)
        found = f"{task}, but the checkpoint was saved for {saved} and has no such head"
        yield CheckpointError("--task", found, f"{saved} or feature-extraction", f"--task {saved}")
    missing = tasks.missing_shapes(task, options.shapes, config)
    if len(missing) > 0:
        yield collected(OptionsError, missing)
    if via != "xla":
        return
    problems = [*_workdir_problem(options)]
    if options.unet is not None:
        problems.append(Problem("--unet", f"with --task {task}", "text-to-image", "drop --unet"))
    if options.inline_weights:
        found = "with our own lowering, whose weights are parameters"
        problems.append(Problem("--inline-weights-neff", found, "--via optimum", "drop it, or add --via optimum"))
    if options.subfolder != "":
        problems.append(Problem("--subfolder", options.subfolder, "--via optimum", "pass the folder itself by --model"))
    if task == DECODER_TASK:
        for flag, on in (
            ("--dynamic-batch-size", options.dynamic_batch_size),
            ("--output-hidden-states", options.output_hidden_states),
            ("--output-attentions", options.output_attentions),
        ):
            if on:
                problems.append(Problem(flag, "with a decoder", "an encoder", f"drop {flag}"))
        if options.auto_cast == "none" and options.auto_cast_type == "tf32":
            hint = "add --auto-cast matmul, or use bf16 or fp16"
            problems.append(Problem("--auto-cast-type", "tf32 for a decoder that is not cast", "bf16 or fp16", hint))
    else:
        if options.num_cores > 1:
            found = f"{options.num_cores} with --task {task}: an encoder runs on one core"
            problems.append(Problem("--num-cores", found, "1", "use --num-cores 1, and run one copy on each core"))
        if options.buckets is not None:
            problems.append(Problem("--buckets", f"with --task {task}", DECODER_TASK, "drop --buckets"))
    problems += preflight.topology(options.num_cores, _target(options)[0])
    if len(problems) > 0:
        yield collected(OptionsError, problems)
    # Of a decoder the layout says it, which knows whether positions are a table.
    positions = tasks.positions(config) if task != DECODER_TASK else None
    length = options.shapes.sequence_length
    if positions is not None and length is not None:
        beyond = preflight.positions(length, positions)
        if beyond is not None:
            yield collected(PlanError, [beyond])


def _through_optimum(
    options: NeuronOptions, task: str, config: Mapping[str, Any], root: Path, sdk: optimum.Sdk
) -> list[LlmCompileError]:
    """Everything that optimum-neuron would refuse an hour later, or pass over in silence."""
    sentences = (root / options.subfolder / "modules.json").exists() and "sentence-transformers" in sdk.versions
    source = optimum_requests.source_of(config, task, sentence_transformers=sentences)
    return optimum_requests.obstacles(options, task, source, sdk.release, os.environ, devices=sdk.devices)


def _core_bytes(options: NeuronOptions, job: Job) -> int:
    """Weights of the fullest rank, and its key and value caches."""
    return max(job.plan.files.values(), default=0) + cache_bytes(job.architecture, job.dims, options, job.layout.dtype)


def _too_large(options: NeuronOptions, job: Job, target: str, core_bytes: int) -> Iterator[LlmCompileError]:
    """Why weights and caches do not fit a core, with the first number of cores on which they would."""
    problem = preflight.memory_problem(core_bytes, target, options.num_cores)
    if problem is None:
        return
    weights = max(job.plan.files.values(), default=0) * options.num_cores
    hint = "lower --batch-size or --sequence-length, or use --torch-dtype bfloat16"
    for cores in TARGETS[target].degrees:
        caches = cache_bytes(job.architecture, job.dims, replace(options, num_cores=cores), job.layout.dtype)
        fits = preflight.memory_problem(weights // cores + caches, target, cores) is None
        if cores > options.num_cores and fits:
            hint = f"use --num-cores {cores}, or {hint}"
            break
    yield collected(PlanError, [replace(problem, hint=hint)])


def _resources(options: NeuronOptions, root: Path, checkpoint: Checkpoint | None) -> Resources:
    """What an encoder takes: its weights once in memory and once on disk, twice for a layout that has them twice."""
    build = options.build
    if checkpoint is None:
        weights = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
        largest = 0
    else:
        size = {"float16": 2, "bfloat16": 2}.get(str(options.torch_dtype), 4)
        elements = [tensor.size_bytes // tensor.dtype.size_bytes for tensor in checkpoint.tensors.values()]
        weights, largest = size * sum(elements), 4 * max(elements, default=0)
    base = environment.resident_memory()
    available = environment.available_memory() + base
    return Resources(
        memory=base + _LOWERING_BYTES + weights,
        memory_least=base + _LOWERING_BYTES + weights,
        memory_validation=base + _LOWERING_BYTES + weights + 3 * largest if build.validate else 0,
        memory_available=available if build.max_memory is None else min(available, build.max_memory),
        budget=BUDGET_BYTES,
        disk=weights * (1 if options.layout in (None, "nxd", "optimum") else 2),
        disk_available=environment.free_disk(build.output.absolute().parent),
        workers=1,
    )


def _obstacles(options: NeuronOptions, resources: Resources) -> Iterator[LlmCompileError]:
    short = list(shortages(options.build, resources))
    if len(short) > 0:
        yield collected(ResourceError, short)
    yield from output_errors(options.build)


def _notes(options: NeuronOptions, task: str, via: str, layout: str) -> Iterator[str]:
    if via == "xla":
        needed = ("batch_size", "sequence_length", *(("num_choices",) if task == "multiple-choice" else ()))
        foreign = [f"--{name.replace('_', '-')}" for name in options.shapes.given() if name not in needed]
        if len(foreign) > 0:
            yield f"without effect for {task}: {', '.join(foreign)}"
    if layout in ("sdk-2.16", "lmi-split", "lmi-cache"):
        yield _SDK_16
        yield (
            "it finds a NEFF by the hash of the HLO that it makes itself: where that is not ours, it compiles again, or"
            " stops if it is told to load this one"
        )
        if task != DECODER_TASK:
            yield f"no runtime of AWS loads an encoder from --layout {layout}; --layout nxd keeps weights and graph"
    if options.dynamic_batch_size and via == "xla":
        yield "the graph takes one batch: feed a batch at a time, as torch_neuronx.dynamic_batch does"
