"""The vendor's builder, and the only place that touches its package: found, checked, run and checked again.

tensorrt_llm is never imported into this process: it takes seconds, starts MPI and CUDA, and pins torch and
transformers. A child interpreter answers for it (`worker.py`); engines are built by trtllm-build.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmcompile.errors import Problem, ToolchainError
from llmcompile.exporters.processes import Child, Line, OnLine, Stages, child_environment, ended, stage, tail
from llmcompile.exporters.trtllm import versions
from llmcompile.exporters.trtllm.options import TrtllmOptions

BUILDER = "trtllm-build"
CACHE = "model.cache"
PARTS = ("encoder", "decoder")
"""The two checkpoints, and engines, of an encoder-decoder model."""
_WORKER = Path(__file__).with_name("worker.py")
_PROBE_SECONDS = 120.0
_GPU_FIELDS = "index,name,compute_cap,driver_version,memory.total"


@dataclass(frozen=True)
class Gpu:
    """A visible GPU; `sm` is its compute capability times ten."""

    index: int
    name: str
    sm: int
    driver: str
    memory_bytes: int


@dataclass(frozen=True, kw_only=True)
class Toolchain:
    """An interpreter with tensorrt_llm, and what it can do here.

    Attributes:
        python: The interpreter.
        version: Its tensorrt_llm.
        tensorrt: Its TensorRT, where a distribution says so.
        executable: Its trtllm-build; None from 1.3 on.
        flags: Flags that trtllm-build --help names; empty where it could not be run.
        gpus: What nvidia-smi lists; empty without it.
    """

    python: Path
    version: str
    tensorrt: str | None = None
    executable: Path | None = None
    flags: frozenset[str] = frozenset()
    gpus: tuple[Gpu, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a checkpoint demands of the GPU.

    Attributes:
        dtype: float16, bfloat16 or float32.
        recipe: A name of `versions.RECIPES`, or None.
        wo_layout: "sm80" where weight-only integers are written in that layout, "deferred" otherwise.
        kv_cache: "fp8" or None.
    """

    dtype: str
    recipe: str | None = None
    wo_layout: str = "deferred"
    kv_cache: str | None = None


@dataclass(frozen=True, kw_only=True)
class EngineFacts:
    """What the manifest records of an engine: engines run on exactly these versions and this GPU.

    Attributes:
        trtllm_version: TensorRT-LLM by the engine's own config.json.
        tensorrt_version: TensorRT of the interpreter that built it; None if it does not say.
        ranks: Engine files.
        size_bytes: All of them together.
        gpu: Name of the GPU it was built on; None if nvidia-smi said nothing.
        sm: Its compute capability times ten.
        driver: Its driver.
    """

    trtllm_version: str
    tensorrt_version: str | None
    ranks: int
    size_bytes: int
    gpu: str | None
    sm: int | None
    driver: str | None


# Find


def find(
    python: Path | None,
    executable: Path | None,
    *,
    version: str = versions.DEFAULT_VERSION,
    checkpoint: str = "OUTPUT",
    engine: str = "",
    flags: Sequence[str] = (),
) -> Toolchain:
    """Find tensorrt_llm in an interpreter, and trtllm-build beside it; nothing of either is imported here.

    Args:
        python: The interpreter; None for the one beside `executable`, else ours.
        executable: trtllm-build; None for the one beside `python`.
        version: The TensorRT-LLM asked for, which the message names.
        checkpoint: The folder of the checkpoint, or of the artifact that shall hold it, which the message names.
        engine: Where the engine of a finished checkpoint shall go; "" where there is no checkpoint yet.
        flags: Words for trtllm-build, which the message repeats.

    Raises:
        ToolchainError: The interpreter has no tensorrt_llm, or cannot be run; says the three ways on.
    """
    interpreter = _interpreter(python, executable)
    answer = _ask(interpreter, {"action": "probe"})
    found = answer.get("version")
    if found is None:
        raise missing(interpreter, version, checkpoint, engine, flags)
    builder = _builder(interpreter, python, executable)
    tensorrt = answer.get("tensorrt")
    return Toolchain(
        python=interpreter,
        version=str(found),
        tensorrt=None if tensorrt is None else str(tensorrt),
        executable=builder,
        flags=frozenset() if builder is None else help_flags(builder),
        gpus=visible_gpus(),
    )


def missing(python: Path, version: str, checkpoint: str, engine: str, flags: Sequence[str]) -> ToolchainError:
    """Say that an interpreter has no tensorrt_llm, and the three ways on; arguments as for `find`."""
    words = shlex.join(flags)
    given = "" if words == "" else f" {words}"
    if engine != "":
        first = f"copy {checkpoint} to a GPU host that has TensorRT-LLM, and run the same command there"
        folder, target = checkpoint, engine
    else:
        first = f"add `--stop-after checkpoint` here; on the GPU host `--from-checkpoint {checkpoint}`"
        folder, target = f"{checkpoint}/checkpoint", f"{checkpoint}-engine"
    hint = (
        "three ways on:\n"
        f"  1. {first}\n"
        f"  2. {'' if engine != '' else 'after the first half of 1, '}in a container: "
        f'docker run --rm --gpus all -v "$PWD:/work" -w /work {versions.image_of(version)} '
        f"trtllm-build --checkpoint_dir {folder} --output_dir {target}{given}\n"
        f"  3. in an environment of its own: pip install tensorrt_llm=={version} "
        "--extra-index-url https://pypi.nvidia.com, then `--toolchain-python` its python"
    )
    return ToolchainError("tensorrt_llm", f"not installed for {python}", f"TensorRT-LLM {version}", hint)


def _interpreter(python: Path | None, executable: Path | None) -> Path:
    if python is not None:
        if not os.access(python, os.X_OK) or python.is_dir():
            raise ToolchainError("--toolchain-python", f"{python}: not an executable file", "a Python interpreter")
        return Path(os.path.abspath(python))  # not resolved: a virtual environment's python is a link
    beside = () if executable is None else (executable.parent / "python3", executable.parent / "python")
    return next((path for path in beside if os.access(path, os.X_OK)), Path(sys.executable))


def _builder(interpreter: Path, python: Path | None, executable: Path | None) -> Path | None:
    if executable is not None:
        if not os.access(executable, os.X_OK) or executable.is_dir():
            raise ToolchainError("--trtllm-build", f"{executable}: not an executable file", "the path of trtllm-build")
        return Path(os.path.abspath(executable))
    beside = interpreter.parent / BUILDER
    if os.access(beside, os.X_OK):
        return beside
    on_path = shutil.which(BUILDER) if python is None else None
    return None if on_path is None else Path(on_path)


def help_flags(executable: Path) -> frozenset[str]:
    """Every flag that `trtllm-build --help` lists.

    Raises:
        ToolchainError: It fails, which it does where CUDA's libraries are absent.
    """
    lines: list[str] = []
    _run([str(executable), "--help"], None, _PROBE_SECONDS, lambda line: lines.append(line.text))
    return parse_help("\n".join(lines))


def parse_help(text: str) -> frozenset[str]:
    """Flags of an argparse help text: those its option lines begin with, not those its sentences mention."""
    found: set[str] = set()
    for line in text.splitlines():
        if re.match(r" {2,4}-", line) is not None:
            names = re.split(r" {2,}", line.strip())[0]
            found.update(re.findall(r"(?:^|, )(--[A-Za-z0-9_-]+)", names))
    return frozenset(found - {"--help"})


def visible_gpus() -> tuple[Gpu, ...]:
    """The GPUs nvidia-smi lists that CUDA_VISIBLE_DEVICES lets through; none where there is no driver."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    command = [tool, f"--query-gpu={_GPU_FIELDS}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, timeout=_PROBE_SECONDS, check=False, env=child_environment()
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    gpus = () if done.returncode != 0 else tuple(_gpu(line) for line in done.stdout.splitlines())
    return _let_through(tuple(gpu for gpu in gpus if gpu is not None))


def _gpu(line: str) -> Gpu | None:
    fields = [field.strip() for field in line.split(",")]
    try:
        index, name, capability, driver, mebibytes = fields
        major, minor = capability.split(".")
        return Gpu(int(index), name, 10 * int(major) + int(minor), driver, int(mebibytes) << 20)
    except ValueError:
        return None  # "[N/A]", or a line of an error


def _let_through(gpus: tuple[Gpu, ...]) -> tuple[Gpu, ...]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None or not re.fullmatch(r"(-?\d+(,-?\d+)*)?", visible):
        return gpus  # names of GPUs (UUIDs) are not looked up: at worst too many are counted
    indices = [] if visible == "" else [int(index) for index in visible.split(",")]
    kept = indices[: indices.index(-1)] if -1 in indices else indices
    return tuple(gpu for gpu in gpus if gpu.index in kept)


# Check


def parts_of(checkpoint: Path) -> tuple[Path, ...]:
    """Folders of config.json and rank files: the checkpoint's own, or those of `PARTS`."""
    if (checkpoint / "config.json").is_file():
        return (checkpoint,)
    return tuple(checkpoint / part for part in PARTS)


def contents_of(config: Mapping[str, object], *, integers: bool) -> Contents:
    """What a checkpoint demands, by its config.json.

    Args:
        config: config.json of the checkpoint.
        integers: Whether its weight-only integers are written, and not left to the builder.
    """
    quantization = _mapping(config, "quantization")
    algorithm, kv_cache = quantization.get("quant_algo"), quantization.get("kv_cache_quant_algo")
    return Contents(
        dtype=str(config.get("dtype")),
        recipe=None if algorithm is None else versions.recipe_of(str(algorithm)),
        wo_layout="sm80" if integers else "deferred",
        kv_cache=None if kv_cache is None else str(kv_cache).lower(),
    )


def check(toolchain: Toolchain, options: TrtllmOptions, contents: Contents) -> list[Problem]:
    """Everything that would stop a build on this machine; seconds, where the build takes minutes.

    Args:
        toolchain: What `find` found.
        options: What is asked.
        contents: What the checkpoint demands.
    """
    problems = [*_version_problems(toolchain, options), *_gpu_problems(toolchain, options, contents)]
    if toolchain.flags != frozenset() and options.builder == "cli":
        for name, _ in options.engine:
            if name not in toolchain.flags:
                found = f"{toolchain.executable} --help does not list it"
                rows = versions.history(name)
                hint = rows[-1].instead if rows != () else ""
                problems.append(Problem(name, found, f"a flag of TensorRT-LLM {toolchain.version}", hint))
    return problems


def _version_problems(toolchain: Toolchain, options: TrtllmOptions) -> Iterator[Problem]:
    found, flag = versions.release_of(toolchain.version), "--trtllm-version"
    if found is None:
        yield Problem("tensorrt_llm", f"version {toolchain.version!r}", "a version like 1.2.1")
        return
    if found > versions.LAST_SUPPORTED:
        if toolchain.executable is None:
            yield Problem(
                "tensorrt_llm",
                f"{toolchain.version} in {toolchain.python}: it has no {BUILDER}, engines were removed in July 2026",
                f"{versions.LAST_VERSION}, the last version that builds, or older",
                f"pip install tensorrt_llm=={versions.LAST_VERSION} in another environment, or the image "
                f"{versions.image_of(versions.LAST_VERSION)}; `--target llmapi` comes in a later release of llmcompile",
            )
        elif options.release != versions.LAST_SUPPORTED:  # early candidates of 1.3 still build, with 1.2's flags
            yield Problem(flag, f"{options.trtllm_version}, and {toolchain.version} is installed", "1.2 for it")
        return
    if found != options.release:
        yield Problem(
            flag,
            f"{options.trtllm_version}, and {toolchain.version} is in {toolchain.python}",
            "the same release: an engine runs only on the one that built it",
            f"{flag} {toolchain.version}, or `--toolchain-python` of an environment with {options.trtllm_version}",
        )
    if toolchain.executable is None and options.builder == "cli":
        yield Problem(BUILDER, f"not beside {toolchain.python}", "the program", "--trtllm-build PATH, or --builder api")


def _gpu_problems(toolchain: Toolchain, options: TrtllmOptions, contents: Contents) -> Iterator[Problem]:
    if toolchain.gpus == ():
        yield Problem(
            "GPU",
            "none visible to nvidia-smi; kernels are timed on the GPU the engine is for",
            "one",
            "--stop-after checkpoint here, --from-checkpoint on the GPU host",
        )
        return
    kinds = sorted({gpu.sm for gpu in toolchain.gpus})
    if len(kinds) > 1:
        found = ", ".join(f"{gpu.index}: {gpu.name}" for gpu in toolchain.gpus)
        yield Problem("GPU", f"different kinds ({found})", "one kind", "CUDA_VISIBLE_DEVICES=0, or those of one kind")
    if options.build_workers > len(toolchain.gpus):
        found = f"{options.build_workers}, and {len(toolchain.gpus)} GPU visible"
        yield Problem("--build-workers", found, "a GPU for each", f"--build-workers {len(toolchain.gpus)}")
    for sm in kinds:
        yield from versions.check_gpu(
            sm,
            options.trtllm_version,
            recipe=contents.recipe,
            dtype=contents.dtype,
            wo_layout=contents.wo_layout,
            kv_cache=contents.kv_cache,
        )
    oldest, driver = versions.driver_of(options.release), toolchain.gpus[0].driver
    branch = re.match(r"\d+", driver)
    if branch is not None and int(branch[0]) < oldest:
        yield Problem("driver", driver, f"{oldest} or later for TensorRT-LLM {options.trtllm_version}")


def check_run(toolchain: Toolchain, ranks: int) -> Problem | None:
    """Why an engine of `ranks` ranks cannot be run here, though it can be built; None where it can."""
    if ranks > len(toolchain.gpus):
        found = f"{ranks} ranks, and {len(toolchain.gpus)} GPU visible"
        return Problem("engine", found, "a GPU for each rank", "only its checkpoint is validated")
    if ranks > 1 and shutil.which("mpirun") is None:
        return Problem("mpirun", "not on PATH", f"MPI for {ranks} ranks", "only its checkpoint is validated")
    return None


# Build


def command(
    toolchain: Toolchain, options: TrtllmOptions, *, checkpoint: Path, output: Path, folder: Path, part: str = ""
) -> tuple[str, ...]:
    """The words that build one checkpoint; `part` is "encoder", "decoder" or "" for a model that has no parts."""
    assert toolchain.executable is not None
    settings = part_settings(options.engine, part)
    source, target = options.input_timing_cache, options.output_timing_cache
    if source is None and (folder / CACHE).exists():
        source = folder / CACHE
    caches = () if source is None else ("--input_timing_cache", str(source.absolute()))
    return (
        str(toolchain.executable),
        "--checkpoint_dir",
        str((checkpoint / part).absolute()),
        "--output_dir",
        str((output / part).absolute()),
        "--workers",
        str(options.build_workers),
        *caches,
        "--output_timing_cache",
        str((folder / CACHE if target is None else target).absolute()),
        *versions.arguments(settings, options.trtllm_version),
    )


def part_settings(settings: Sequence[versions.Setting], part: str) -> tuple[versions.Setting, ...]:
    """The flags one part of an encoder-decoder model takes.

    The encoder has an input and no output; the decoder begins with one token, and needs the encoder's longest input.
    Source: NVIDIA/TensorRT-LLM@aaacc9bd:examples/enc_dec/README.md.
    """
    if part == "":
        return tuple(settings)
    given = dict(settings)
    longest = given.get("--max_encoder_input_len", given.get("--max_input_len"))
    lengths = ("--max_encoder_input_len", "--max_input_len")
    if part == "encoder":
        dropped = {*lengths, "--max_seq_len", "--max_decoder_seq_len", "--paged_kv_cache", "--kv_cache_type"}
        own = [("--paged_kv_cache", "disable")] + ([("--max_input_len", longest)] if longest is not None else [])
    else:
        dropped = {*lengths}
        begin = given.get("--max_input_len", "1") if "--max_encoder_input_len" in given else "1"
        own = [("--max_input_len", begin)]
        own += [("--max_encoder_input_len", longest)] if longest is not None else []
    return (*own, *((name, value) for name, value in settings if name not in dropped))


def build_engine(
    toolchain: Toolchain, options: TrtllmOptions, *, checkpoint: Path, output: Path, folder: Path, on_line: OnLine
) -> None:
    """Build every rank of a checkpoint into `output`; an encoder-decoder model is two builds.

    Args:
        toolchain: What `find` found and `check` let pass.
        options: Flags, workers, timeout, builder.
        checkpoint: Folder of config.json and rank files, or of encoder/ and decoder/.
        output: Folder to write config.json and rank{r}.engine to.
        folder: Work folder, where the timing cache stays.
        on_line: Given every line of the log as it comes.

    Raises:
        ToolchainError: The builder failed, with its last lines, or took longer than the timeout. Whatever ends this
            function early, an interrupt included, ends the builder's processes too.
    """
    limit = options.build_timeout_seconds
    deadline = None if limit is None else time.monotonic() + limit
    parts = PARTS if (checkpoint / PARTS[0] / "config.json").exists() else ("",)
    for part in parts:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        (output / part).mkdir(parents=True, exist_ok=True)
        if options.builder == "cli":
            words = command(toolchain, options, checkpoint=checkpoint, output=output, folder=folder, part=part)
            _run(words, folder, left, on_line)
        else:
            source, target = checkpoint / part, output / part
            request = _build_request(options, checkpoint=source, output=target, folder=folder, part=part)
            _ask(toolchain.python, request, folder=folder, timeout_seconds=left, on_line=on_line)


def _build_request(
    options: TrtllmOptions, *, checkpoint: Path, output: Path, folder: Path, part: str
) -> Mapping[str, object]:
    flags: dict[str, object] = {}
    known = versions.flags_of(options.release)
    for name, values in versions.grouped(part_settings(options.engine, part)).items():
        kind, value = known[name].kind, values[-1]
        if kind == versions.SWITCH:
            flags[name[2:]] = value != "disable"
        elif kind == versions.INTEGER:
            flags[name[2:]] = int(value)
        else:
            flags[name[2:]] = value if value != "" else "enable"
    source, target = options.input_timing_cache, options.output_timing_cache
    if source is None and (folder / CACHE).exists():
        source = folder / CACHE
    return {
        "action": "build",
        "checkpoint": str(checkpoint.absolute()),
        "output": str(output.absolute()),
        "ranks": ranks_of(read_config(checkpoint / "config.json")),
        "workers": options.build_workers,
        "flags": flags,
        # trtllm-build's own defaults; BuildConfig's were others before 0.15.
        "defaults": {
            "max_input_len": 1024,
            "max_batch_size": 2048 if options.release >= (0, 14) else 256,
            "max_beam_width": 1,
            "max_num_tokens": 8192,
        },
        "input_timing_cache": None if source is None else str(source.absolute()),
        "output_timing_cache": str((folder / CACHE if target is None else target).absolute()),
    }


def run_engine(
    toolchain: Toolchain,
    *,
    engine: Path,
    prompts: Sequence[Sequence[int]],
    end_id: int,
    logits: Path,
    folder: Path,
    timeout_seconds: float | None,
    on_line: OnLine,
) -> tuple[Path, ...]:
    """Run an engine on prompts of token ids; one .npy of shape (tokens, vocabulary), float32, for each.

    The engine was built with --gather_context_logits; `check_run` said that it can be run.

    Raises:
        ToolchainError: The runtime failed, with its last lines.
    """
    logits.mkdir(parents=True, exist_ok=True)
    request = {
        "action": "run",
        "engine": str(engine.absolute()),
        "prompts": [list(prompt) for prompt in prompts],
        "end_id": end_id,
        "logits": str(logits.absolute()),
    }
    ranks = ranks_of(_mapping(read_config(engine / "config.json"), "pretrained_config"))
    before = () if ranks == 1 else ("mpirun", "-n", str(ranks))
    _ask(
        toolchain.python,
        request,
        folder=folder,
        timeout_seconds=timeout_seconds,
        on_line=on_line,
        before=before,
    )
    return tuple(logits / f"{index}.npy" for index in range(len(prompts)))


# Check the result


def check_engine_dir(folder: Path, checkpoint: Mapping[str, object], toolchain: Toolchain) -> EngineFacts:
    """Hold an engine folder against the checkpoint it was built from; an encoder-decoder model has two of each.

    Args:
        folder: Holds config.json and rank{r}.engine.
        checkpoint: The checkpoint's config.json.
        toolchain: What built it.

    Raises:
        ToolchainError: A file is absent or empty, or the engine is of another mapping.
    """
    config = read_config(folder / "config.json")
    for key in ("version", "pretrained_config", "build_config"):
        if key not in config:
            raise ToolchainError(f"{folder / 'config.json'}", f"no {key}", "version, pretrained_config, build_config")
    wanted, found = _degrees(checkpoint), _degrees(_mapping(config, "pretrained_config"))
    if wanted != found:
        raise ToolchainError(f"{folder / 'config.json'}", f"ranks, tp, pp = {found}", f"{wanted}, the checkpoint's")
    sizes = []
    for rank in range(wanted[0]):
        path = folder / f"rank{rank}.engine"
        size = path.stat().st_size if path.is_file() else 0
        if size == 0:
            state = "empty" if path.exists() else "absent"
            raise ToolchainError(str(path), state, f"an engine for each of {wanted[0]} ranks", "see the builder's log")
        sizes.append(size)
    gpu = toolchain.gpus[0] if toolchain.gpus != () else None
    return EngineFacts(
        trtllm_version=str(config["version"]),
        tensorrt_version=toolchain.tensorrt,
        ranks=len(sizes),
        size_bytes=sum(sizes),
        gpu=None if gpu is None else gpu.name,
        sm=None if gpu is None else gpu.sm,
        driver=None if gpu is None else gpu.driver,
    )


def read_config(path: Path) -> Mapping[str, object]:
    """A config.json that must be an object.

    Raises:
        ToolchainError: It is absent or is none.
    """
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ToolchainError(str(path), f"not readable as JSON: {error}", "what the builder writes") from error
    if not isinstance(config, dict):
        raise ToolchainError(str(path), f"a JSON {type(config).__name__}", "an object")
    return config


def _mapping(config: Mapping[str, object], key: str) -> Mapping[str, object]:
    value = config.get(key)
    return value if isinstance(value, dict) else {}


def _degrees(config: Mapping[str, object]) -> tuple[int, int, int]:
    mapping = _mapping(config, "mapping")

    def of(name: str, default: int) -> int:
        value = mapping.get(name, default)
        return value if isinstance(value, int) else default

    tp, pp = of("tp_size", 1), of("pp_size", 1)
    return of("world_size", tp * pp * of("cp_size", 1)), tp, pp


def ranks_of(config: Mapping[str, object]) -> int:
    """Ranks of a checkpoint, by its config.json."""
    return _degrees(config)[0]


# Run


_STAGES: Stages = (
    (re.compile(r"Build TensorRT engine (.+)"), "building {0}"),
    (re.compile(r"Total time of building (?!all)(.+): (\d+:\d+:\d+)"), "built {0} in {1}"),
    (re.compile(r"Serializing engine to .*?(?:rank(\d+)\.engine|managed_weights.*)\.\.\."), "writing rank {0}"),
    (re.compile(r"Engine serialized\. Total time: (\d+:\d+:\d+)"), "written in {0}"),
    (re.compile(r"Total time of building all (?:\d+ )?engines: (\d+:\d+:\d+)"), "all engines built in {0}"),
)
"""Lines of builder.py and commands/build.py (0.8 to 1.2) that tell how far a build is."""


def progress(text: str) -> str | None:
    """What a line of the builder's log says of how far it is; None for most."""
    return stage(_STAGES, text)


def _ask(
    python: Path,
    request: Mapping[str, object],
    *,
    folder: Path | None = None,
    timeout_seconds: float | None = _PROBE_SECONDS,
    on_line: OnLine | None = None,
    before: Sequence[str] = (),
) -> Mapping[str, object]:
    results: list[Mapping[str, object]] = []

    def sort(line: Line) -> None:
        event = _event(line.text)
        if event is not None and event["event"] == "result":
            results.append(event)
        elif on_line is not None:
            on_line(line if event is None else Line(str(event.get("text", "")), str(event.get("text", ""))))

    # In the command itself, not in a file, so that the command can be repeated.
    _run([*before, str(python), str(_WORKER), json.dumps(request)], folder, timeout_seconds, sort)
    if results == []:
        raise ToolchainError(str(python), "answered nothing", "a result of worker.py", "is it Python 3.8 or later?")
    return results[-1]


def _event(text: str) -> Mapping[str, object] | None:
    if not text.startswith('{"event"'):
        return None
    try:
        event = json.loads(text)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "event" in event else None


def _run(words: Sequence[str], folder: Path | None, timeout_seconds: float | None, on_line: OnLine) -> None:
    """Run a program in a session of its own, its two streams as one; whatever ends us ends all its processes.

    Args:
        words: The program and its arguments.
        folder: Where it runs; None for a folder that is removed afterwards.
        timeout_seconds: After these it is stopped.
        on_line: Given every line as it comes.
    """
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="llmcompile-") as scratch:
            _run_in(Path(scratch), words, timeout_seconds, on_line, f"to repeat it: {shlex.join(words)}")
    else:
        repeat = f"to repeat it: cd {shlex.quote(str(folder))} && {shlex.join(words)}"
        _run_in(folder, words, timeout_seconds, on_line, repeat)


def _run_in(folder: Path, words: Sequence[str], timeout_seconds: float | None, on_line: OnLine, repeat: str) -> None:
    with Child(words, folder) as child:
        try:
            for text in child.lines(timeout_seconds):
                on_line(Line(text, progress(text)))
        except TimeoutError as error:
            raise ToolchainError(
                _name(words),
                f"still running after {timeout_seconds:.0f} s; stopped",
                "an end within --build-timeout",
                "a longer --build-timeout\n" + tail(child.last),
            ) from error
        code = child.ending()
    if code != 0:
        raise ToolchainError(_name(words), ended(code), "exit code 0", f"{repeat}\n{tail(child.last)}")


def _name(words: Sequence[str]) -> str:
    return next((Path(word).name for word in words if word.endswith((".py", BUILDER))), Path(words[0]).name)
