"""What optimum-neuron is asked: which option reaches which of its arguments, and which it would ignore or refuse."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from llmcompile.errors import LlmCompileError, OptionsError, Problem, UnsupportedError, collected
from llmcompile.exporters.neuron.optimum_registry import (
    DECODERS,
    DIFFUSERS,
    ENCODER_DECODERS,
    FIRST_RELEASE,
    SENTENCE_TRANSFORMERS,
    SHAPES,
    TRANSFORMERS,
    optimum_tasks,
)
from llmcompile.exporters.neuron.options import NeuronOptions

Release: TypeAlias = tuple[int, int, int]
"""Major, minor and patch of optimum-neuron."""

GENERATIONS: tuple[Release, ...] = ((0, 3, 0), (0, 4, 0), (0, 4, 1))
"""First releases of each way to ask; 0.3.0 knows no instance type, 0.4.1 takes a decoder's dtype from its config."""
LAST_READ: Release = (0, 4, 5)
"""The newest release whose wheel was read; a newer one is asked as this one, after its signatures were looked at."""
TARGETS: Mapping[str, str] = {"inf2": "trn1", "trn1": "trn1", "trn1n": "trn1", "trn2": "trn2"}
"""The instruction set of each instance type. Source: optimum-neuron 0.4.5:optimum/neuron/utils/instance.py."""
_TORCH_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
_PARTS = ("text_encoder", "text_encoder_2", "unet", "transformer", "image_encoder")
_T5 = "T5EncoderModel"
_SHARDED = (_T5, "FluxTransformer2DModel")
"""Parts of a pipeline that neuronx-distributed's ModelBuilder traces, whatever the cores, from `_SHARDED_FROM` on."""
_SHARDED_FROM: Release = (0, 4, 3)
_OFFLINE = ("1", "ON", "YES", "TRUE")
"""Values of HF_HUB_OFFLINE. Source: huggingface_hub@v0.36.2:src/huggingface_hub/constants.py."""
_CODE = ".py"


@dataclass(frozen=True)
class Source:
    """A model as optimum-neuron sees it.

    Attributes:
        model_type: `model_type` of config.json; of a pipeline, `_class_name` of model_index.json.
        library: "transformers", "diffusers" or "sentence_transformers".
        config: The file itself.
    """

    model_type: str
    library: str
    config: Mapping[str, Any]

    @property
    def decoder(self) -> bool:
        """Whether optimum-neuron has a network of its own for it, which neuronx-distributed traces."""
        return self.library == TRANSFORMERS and self.model_type in DECODERS

    @property
    def parts(self) -> tuple[str, ...]:
        """Folders that the artifact has a compiled module in; "" for the artifact's own."""
        if self.library == DIFFUSERS:
            return (*(part for part in _PARTS if self._class(part) is not None), "vae_encoder", "vae_decoder")
        return ("encoder", "decoder") if self.model_type in ENCODER_DECODERS else ("",)

    @property
    def sharded(self) -> tuple[str, ...]:
        """Those of `parts` whose weights are files of their own, one for each rank."""
        return tuple(part for part in self.parts if self._class(part) in _SHARDED)

    @property
    def t5(self) -> str | None:
        """The part of a pipeline that is a T5 encoder."""
        return next((part for part in self.parts if self._class(part) == _T5), None)

    def _class(self, part: str) -> str | None:
        entry = self.config.get(part)
        return str(entry[1]) if isinstance(entry, list) and len(entry) == 2 and entry[1] is not None else None


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the worker is asked, and what must be there when it is done.

    Attributes:
        content: JSON for `optimum_worker`; `model` and `unet` are paths that `optimum.export` stages.
        environment: Variables that the child sees before it imports anything.
        modules: TorchScript files the artifact must have; one for each rank in a folder of that name, where the vendor
            has it so.
        shards: Files of weights it must have, one for each rank.
        files: Others it must have.
        recorded: What the compiled parts' config.json, or neuron_config.json, must say.
        decoder: Whether neuronx-distributed traces it.
        code: Whether the checkpoint's Python code may run, and is carried along.
        notes: What optimum-neuron does otherwise than asked.
    """

    content: Mapping[str, object]
    environment: Mapping[str, str]
    modules: tuple[str, ...]
    shards: tuple[str, ...]
    files: tuple[str, ...]
    recorded: Mapping[str, object]
    decoder: bool
    code: bool
    notes: tuple[str, ...]


def source_of(config: Mapping[str, Any], task: str, *, sentence_transformers: bool = False) -> Source:
    """What a model is.

    Args:
        config: config.json; of a pipeline, model_index.json.
        task: Of the decoder inside a model of texts and images, the text's part is exported.
        sentence_transformers: Whether the folder has modules.json and the interpreter the package to read it.
    """
    if "_class_name" in config and "_diffusers_version" in config:
        return Source(str(config["_class_name"]), DIFFUSERS, config)
    inner = config.get("text_config")
    if task == "text-generation" and isinstance(inner, Mapping) and "model_type" in inner:
        config = inner
    library = SENTENCE_TRANSFORMERS if sentence_transformers and task == "feature-extraction" else TRANSFORMERS
    return Source(str(config.get("model_type")), library, config)


def generation_of(release: Release) -> Release:
    """The way a release is asked; the newest for releases that were not read."""
    return max((first for first in GENERATIONS if first <= release), default=GENERATIONS[0])


def dotted(release: Release) -> str:
    """A release as it is written."""
    return ".".join(str(number) for number in release)


# Refuse


def obstacles(
    options: NeuronOptions, task: str, source: Source, release: Release, environ: Mapping[str, str], *, devices: int
) -> list[LlmCompileError]:
    """Everything in the options that optimum-neuron would refuse an hour later, or pass over in silence.

    Whether all shapes were given is not looked at: `make_request` refuses what is left.

    Args:
        options: What is asked.
        task: Of `options.TASKS`.
        source: The model.
        release: Of optimum-neuron.
        environ: The process's.
        devices: Neuron devices of this machine.
    """
    errors = list(_unsupported(task, source, release)) if release <= LAST_READ else []
    problems = [
        *_model_problems(options, source),
        *(_decoder_problems(options, source, release) if source.decoder else ()),
        *_pipeline_problems(options, source, release),
        *_release_problems(options, release, devices),
        *_foreign_problems(options, environ),
    ]
    return errors if problems == [] else [*errors, collected(OptionsError, problems)]


def _unsupported(task: str, source: Source, release: Release) -> Iterator[LlmCompileError]:
    kind, version = source.model_type, dotted(release)
    named = optimum_tasks(kind, source.library)
    has = [name for name in named if FIRST_RELEASE.get((kind, name), release) <= release]
    if task in has:
        return
    subject, found = f"{kind}, {task}", f"not in optimum-neuron {version}"
    if task in named:
        yield UnsupportedError(subject, found, f"optimum-neuron {dotted(FIRST_RELEASE[kind, task])} or later")
    elif has != []:
        yield UnsupportedError(subject, found, f"--task {' or '.join(has)}")
    else:
        known = sorted({name for name, _ in SHAPES})
        near = difflib.get_close_matches(kind, known, n=3)
        hint = "--via xla, for encoders and decoders of its tables"
        yield UnsupportedError(subject, found, f"one of {', '.join(near if near != [] else known)}", hint)


def _model_problems(options: NeuronOptions, source: Source) -> Iterator[Problem]:
    kind = source.model_type
    if options.num_cores > 1 and not (source.decoder or kind in ("t5", "FluxPipeline")):
        found = f"{options.num_cores} for {kind}, which optimum-neuron compiles for one core"
        yield Problem("--num-cores", found, "1", "use --num-cores 1, and run one copy on each core")
    pair, pipeline = kind in ENCODER_DECODERS, source.library == DIFFUSERS
    for flag, asked, takes in (
        ("--output-attentions", options.output_attentions, pair),
        ("--output-hidden-states", options.output_hidden_states, pair or pipeline),
    ):
        if asked and not takes:
            hint = f"drop {flag}" if source.decoder or pipeline else f"--via xla, or drop {flag}"
            yield Problem(flag, f"with {kind}, for which optimum-neuron does not have it", "t5 or whisper", hint)
    if options.buckets is not None:
        hint = "drop --buckets, or --via xla"
        yield Problem("--buckets", "with optimum-neuron, which has one graph for prompts", "none", hint)


def _decoder_problems(options: NeuronOptions, source: Source, release: Release) -> Iterator[Problem]:
    kind = source.model_type
    if options.dynamic_batch_size:
        yield Problem("--dynamic-batch-size", f"with {kind}, a decoder", "an encoder", "drop --dynamic-batch-size")
    if options.auto_cast_type == "tf32":
        found = f"tf32 for {kind}: of a decoder it is the element type"
        yield Problem("--auto-cast-type", found, "bf16 or fp16", "--via xla --auto-cast matmul casts to tf32")
    if options.subfolder != "":
        found = f"{options.subfolder}: a decoder's weights are read from the folder itself"
        yield Problem("--subfolder", found, "none", "pass the folder itself by --model")
    heads = source.config.get("num_key_value_heads", source.config.get("num_attention_heads"))
    cores = options.num_cores
    # split_with_sizes in gqa.py of 0.4.5 and older; mended after it.
    if release <= LAST_READ and isinstance(heads, int) and heads > 0 and heads % cores != 0 and cores % heads != 0:
        fits = [str(count) for count in range(1, 65) if heads % count == 0 or count % heads == 0]
        found = f"{cores} with {heads} key and value heads, which optimum-neuron {dotted(release)} fails to split"
        yield Problem("--num-cores", found, f"one of {', '.join(fits[:8])}", "--via xla places such heads")


def _pipeline_problems(options: NeuronOptions, source: Source, release: Release) -> Iterator[Problem]:
    kind = source.model_type
    if options.unet is not None and "unet" not in source.parts:
        yield Problem("--unet", f"with {kind}, which has none", "a Stable Diffusion pipeline", "drop --unet")
    if source.t5 is not None and options.instance_type == "trn2" and _SHARDED_FROM <= release <= LAST_READ:
        found = f"trn2 with {kind}, on whose {source.t5} optimum-neuron {dotted(release)} fails (get_compiler_args)"
        yield Problem("--instance-type", found, "trn1, trn1n or inf2", "--instance-type trn1")


def _release_problems(options: NeuronOptions, release: Release, devices: int) -> Iterator[Problem]:
    if generation_of(release) != GENERATIONS[0]:
        return
    hint = f"pip install 'optimum-neuron[neuronx]=={dotted(LAST_READ)}', or --via xla"
    if devices == 0:
        found = f"{dotted(release)}, which compiles on Neuron devices only, and there is none"
        yield Problem("optimum-neuron", found, "0.4.0 or later", hint)
    elif options.instance_type is not None:
        found = f"{options.instance_type} with optimum-neuron {dotted(release)}, which compiles for this host"
        yield Problem("--instance-type", found, "none", f"drop --instance-type, or {hint}")


def _foreign_problems(options: NeuronOptions, environ: Mapping[str, str]) -> Iterator[Problem]:
    for flag, given in (("--neuronx-cc", options.compiler), ("--compile-workers", options.compile_workers)):
        if given is not None:
            yield Problem(flag, f"{given} with optimum-neuron, which calls the compiler itself", "none", f"drop {flag}")
    flags = environ.get("NEURON_CC_FLAGS", "")
    if flags != "" and not options.allow_env_flags:
        found = f"set to {flags}, which changes what is compiled"
        yield Problem("NEURON_CC_FLAGS", found, "unset", "unset it, or add --allow-env-flags")


# Ask


@dataclass(frozen=True, kw_only=True)
class _Order:
    options: NeuronOptions
    task: str
    source: Source
    release: Release
    target: str
    root: Path
    output: Path
    work: Path
    offline: bool

    @property
    def knows_targets(self) -> bool:
        return generation_of(self.release) != GENERATIONS[0]


def make_request(
    options: NeuronOptions,
    task: str,
    root: Path,
    output: Path,
    *,
    source: Source,
    release: Release,
    target: str,
    folder: Path,
    environ: Mapping[str, str],
) -> Request:
    """What the worker is asked; a pure function of options that `obstacles` let pass.

    Args:
        options: What is asked.
        task: Of `options.TASKS`.
        root: The model's folder; all of it is on this machine.
        output: Folder to write the artifact to.
        source: The model.
        release: Of optimum-neuron.
        target: Instance type the graphs are for.
        folder: Of the job, for the compiler's files; vendors delete what is there.
        environ: The process's.

    Raises:
        OptionsError: A shape was not given.
    """
    given = options.shapes.given()
    absent = [name for name in needed_shapes(source, task) if name not in given]
    if absent != []:
        about = f"not given for {source.model_type}, {task}"
        raise collected(OptionsError, [Problem(f"--{name.replace('_', '-')}", about, "a size") for name in absent])
    order = _Order(
        options=options,
        task=task,
        source=source,
        release=release,
        target=target,
        root=root.absolute(),
        output=output.absolute(),
        work=(folder if options.compiler_workdir is None else options.compiler_workdir).absolute(),
        offline=options.disable_neuron_cache or environ.get("HF_HUB_OFFLINE", "").upper() in _OFFLINE,
    )
    made = _decoder_request(order) if source.decoder else _export_request(order)
    notes = (*made.notes, *_environment_notes(order, environ))
    return replace(made, environment=dict(_environment(order)), notes=notes)


def needed_shapes(source: Source, task: str) -> tuple[str, ...]:
    """Names of the shapes that must be given; tokens' for a model that is not in the table."""
    tokens = ("batch_size", "sequence_length")
    if source.library == SENTENCE_TRANSFORMERS:
        return tokens
    unknown = ("batch_size", "height", "width") if source.library == DIFFUSERS else tokens
    return SHAPES.get((source.model_type, task), unknown)


def _environment(order: _Order) -> Iterator[tuple[str, str]]:
    options = order.options
    if order.knows_targets:
        # Before any import: on a host without a device optimum.neuron sets it to trn1, and then refuses trn2.
        yield "NEURON_PLATFORM_TARGET_OVERRIDE", TARGETS[order.target]
    # Below a folder of ours, and ended by a slash as its default is: it is deleted and made again for every trace.
    yield "BASE_COMPILE_WORK_DIR", f"{order.work / 'nxd'}/"
    if options.compile_cache is not None:
        yield "NEURON_COMPILE_CACHE_URL", str(options.compile_cache.absolute())
    if order.offline:
        yield "HF_HUB_OFFLINE", "1"
    elif options.build.token is not None:
        yield "HF_TOKEN", options.build.token


def _environment_notes(order: _Order, environ: Mapping[str, str]) -> Iterator[str]:
    if order.offline and not order.options.disable_neuron_cache:
        yield "HF_HUB_OFFLINE is set: the hub's cache of NEFFs is left alone"
    flags = environ.get("NEURON_CC_FLAGS", "")
    if flags != "":
        yield f"NEURON_CC_FLAGS is set and adds to every compilation: {flags}"


def _export_request(order: _Order) -> Request:
    options, source = order.options, order.source
    casts, inline = options.auto_cast != "none", options.inline_weights or options.dynamic_batch_size
    compiler: dict[str, object] = {
        "auto_cast": options.auto_cast if casts else None,
        "auto_cast_type": options.cast_type if casts else None,
        **({"instance_type": order.target} if order.knows_targets else {}),
    }
    cache_dir = options.build.cache_dir
    # ModelBuilder deletes its folder, and has one for the whole machine where it is told none.
    traced_in_sight = options.compiler_workdir is not None or source.sharded != ()
    dtype = "float32" if options.torch_dtype is None else options.torch_dtype
    arguments: dict[str, object] = {
        "compiler_kwargs": compiler,
        "torch_dtype": dtype,
        "tensor_parallel_size": options.num_cores,
        "task": order.task,
        "dynamic_batch_size": options.dynamic_batch_size,
        "cache_dir": None if cache_dir is None else str(cache_dir.absolute()),
        "disable_neuron_cache": order.offline,
        "compiler_workdir": str(order.work / "trace") if traced_in_sight else None,
        "inline_weights_to_neff": inline,
        "optlevel": str(options.optlevel),
        "trust_remote_code": options.build.trust_remote_code,
        "subfolder": options.subfolder,
        "local_files_only": True,
        "do_validation": False,  # it only warns; ours decides
        "output_attentions": options.output_attentions,
        "output_hidden_states": options.output_hidden_states,
        "library_name": source.library,
    }
    shapes = _shapes(order)
    content = {
        "action": "export",
        "model": str(order.root),
        "unet": None if options.unet is None else str(options.unet.absolute()),
        "output": str(order.output),
        "arguments": arguments,
        "shapes": shapes,
        "normalize": source.library == DIFFUSERS,
    }
    recorded = {**compiler, "optlevel": str(options.optlevel), "dynamic_batch_size": options.dynamic_batch_size}
    files: tuple[str, ...] = ("config.json",)
    if source.library == DIFFUSERS:  # each part has a task and shapes of its own
        files = ("model_index.json", "scheduler/scheduler_config.json")
    else:
        recorded |= {"task": order.task, "inline_weights_to_neff": inline, "torch_dtype": dtype}
        recorded |= {f"static_{name}": size for name, size in shapes.items()}
    if source.parts != ("",):
        files = (*files, *(f"{part}/config.json" for part in source.parts))
    if source.model_type in ENCODER_DECODERS:
        files = (*files, "generation_config.json")
    return Request(
        content=content,
        environment={},
        modules=tuple("model.neuron" if part == "" else f"{part}/model.neuron" for part in source.parts),
        shards=_shards(source.sharded if order.release >= _SHARDED_FROM else (), options.num_cores),
        files=files,
        recorded=recorded,
        decoder=False,
        code=options.build.trust_remote_code,
        notes=tuple(_export_notes(options, source, shapes)),
    )


def _shards(parts: Sequence[str], ranks: int) -> tuple[str, ...]:
    return tuple(f"{part}/weights/tp{rank}_sharded_checkpoint.safetensors" for part in parts for rank in range(ranks))


def _shapes(order: _Order) -> dict[str, int | None]:
    given = order.options.shapes.given()
    needed: dict[str, int | None] = {name: given[name] for name in needed_shapes(order.source, order.task)}
    if order.source.library != DIFFUSERS:
        return needed
    images, tokens = given.get("num_images_per_prompt", 1), given.get("sequence_length")
    return {**needed, "num_images_per_prompt": images, "sequence_length": tokens}


def _export_notes(options: NeuronOptions, source: Source, used: Mapping[str, object]) -> Iterator[str]:
    if options.dynamic_batch_size and not options.inline_weights:
        yield "--dynamic-batch-size puts the weights into the NEFF: optimum-neuron cannot keep them apart then"
    if "XL" in source.model_type and source.library == DIFFUSERS and not options.inline_weights:
        yield "the weights of SDXL's UNet go into the NEFF: optimum-neuron does not keep them apart since SDK 2.18"
    if source.sharded != () and (options.auto_cast != "none" or options.optlevel != 2):
        parts = " and ".join(source.sharded)
        yield f"{parts}: compiled with -O1 --auto-cast none whatever was asked, as optimum-neuron has it"
    yield from _unused_shapes(options, source, used)


def _unused_shapes(options: NeuronOptions, source: Source, used: Mapping[str, object]) -> Iterator[str]:
    for name in options.shapes.given():
        if name not in used:
            flag = f"--{name.replace('_', '-')}"
            yield f"{flag} is not used: {source.model_type} has no such shape, or has it in its config"


def _decoder_request(order: _Order) -> Request:
    options, dtype = order.options, decoder_dtype(order.options)
    sizes = {name: getattr(options.shapes, name) for name in ("batch_size", "sequence_length")}
    content = {
        "action": "decoder",
        "generation": dotted(generation_of(order.release)),
        "model": str(order.root),
        "unet": None,
        "output": str(order.output),
        "task": order.task,
        **sizes,
        "tensor_parallel_size": options.num_cores,
        "instance_type": order.target,
        "dtype": dtype,
        "trust_remote_code": options.build.trust_remote_code,
    }
    recorded = {
        **sizes,
        "tp_degree": options.num_cores,
        **({} if dtype is None else {"torch_dtype": dtype}),
        **({"target": TARGETS[order.target]} if order.knows_targets else {}),
    }
    return Request(
        content=content,
        environment={},
        modules=("model.pt",),
        shards=_shards(("checkpoint",), options.num_cores),
        files=("config.json", "neuron_config.json"),
        recorded=recorded,
        decoder=True,
        code=options.build.trust_remote_code,
        notes=tuple(_decoder_notes(options, order.source, sizes)),
    )


def decoder_dtype(options: NeuronOptions) -> str | None:
    """The element type of a decoder, as torch calls it; None for the checkpoint's own.

    optimum-neuron casts nothing in a decoder, so a type that was to be cast to becomes the element type.
    """
    asked = options.weights_dtype
    if asked is None and options.auto_cast != "none":
        asked = options.auto_cast_type
    return None if asked is None else _TORCH_DTYPES[asked]


def _decoder_notes(options: NeuronOptions, source: Source, used: Mapping[str, object]) -> Iterator[str]:
    if options.optlevel != 2:
        yield f"-O{options.optlevel} is not used: optimum-neuron compiles decoders with -O2; --via xla passes it on"
    if options.auto_cast != "none":
        dtype = decoder_dtype(options)
        instead = "keep the checkpoint's type" if dtype is None else f"are {dtype}"
        yield (
            f"--auto-cast {options.auto_cast} is not used: optimum-neuron compiles decoders with --auto-cast none; "
            f"weights and arithmetic {instead}"
        )
    if options.inline_weights:
        yield "--inline-weights-neff is not used: the weights of a decoder are files of their own"
    yield from _unused_shapes(options, source, used)


def carried(names: Sequence[str], there: Sequence[str], *, decoder: bool, code: bool) -> tuple[str, ...]:
    """Which of the checkpoint's files an artifact takes along as they are.

    Args:
        names: Auxiliary files of the checkpoint.
        there: Files of the artifact.
        decoder: Whether it lacks tokenizer and generation_config.json, as what is made of decoders does.
        code: Whether the checkpoint's Python code may run.
    """
    wanted = [name for name in names if (code if name.endswith(_CODE) else decoder)]
    return tuple(name for name in wanted if name not in there)
