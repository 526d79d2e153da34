"""optimum-neuron, and the only place that runs its package: found, asked, and what it wrote checked.

It is never imported into this process: it pins Python, torch and transformers to what cannot live with ours, and sets
variables when it is imported. A child interpreter answers for it (`optimum_worker.py`).
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from llmcompile.checkpoint.folder import auxiliary_files, contained
from llmcompile.errors import Problem, ToolchainError, collected
from llmcompile.exporters.neuron import diagnosis, optimum_worker
from llmcompile.exporters.neuron.compiler import INDEX
from llmcompile.exporters.neuron.optimum_requests import LAST_READ, Release, Request, carried, dotted
from llmcompile.exporters.processes import Child, Line, OnLine, child_environment, ended, tail

if TYPE_CHECKING:
    from numpy.typing import NDArray

VARIABLE = "LLMCOMPILE_NEURON_PYTHON"
VENVS = Path("/opt")
"""Where AWS's machine images have a virtual environment for each framework."""
_VENV = "aws_neuronx_venv_*/bin/python"
_WORKER = Path(optimum_worker.__file__)
_PROBE_SECONDS = 120.0
_OLDEST: Mapping[str, tuple[int, ...]] = {
    "optimum-neuron": (0, 3),
    "optimum": (1, 24),
    "torch-neuronx": (2,),
    "neuronx-cc": (2,),
    "libneuronxla": (2,),
    "neuronx-distributed": (0, 9),
    "torch": (2,),
    "transformers": (4,),
}
"""The least version of each package. What pypi.org has under AWS's names is older: torch-neuronx 1.0, neuronx-cc 1.0,
libneuronxla 1.0 and neuronx-distributed 0.1 raise ImportError when they are imported."""
_AWS = ("torch-neuronx", "neuronx-cc", "libneuronxla", "neuronx-distributed")
_IMAGES = "763104351884.dkr.ecr.us-west-2.amazonaws.com/huggingface"
_CONTAINERS = (
    f"{_IMAGES}-pytorch-inference-neuronx:2.8.0-transformers4.55.4-neuronx-py310-sdk2.26.0-ubuntu22.04",
    f"{_IMAGES}-vllm-inference-neuronx:0.11.0-optimum0.4.4-neuronx-py310-sdk2.26.1-ubuntu22.04",
)
"""With optimum-neuron 0.4.1, and 0.4.4. Source: huggingface/optimum-neuron@18b2c2f1:docs/source/containers.mdx."""
_MARKS = ("text_encoder", "unet", "transformer", "vae", "controlnet")
"""Words in a model's path that change its compiler flags.

Source: optimum-neuron 0.4.5:optimum/exporters/neuron/convert.py (add_stable_diffusion_compiler_args).
"""
_SECRETS = ("HF_TOKEN",)
_TEMPORARY = ("/tmp", "/var/tmp")  # noqa: S108 - names of folders that tempfile.mkdtemp then makes its own below


@dataclass(frozen=True, kw_only=True)
class Sdk:
    """An interpreter, and what it has of optimum-neuron and the Neuron SDK.

    Attributes:
        python: The interpreter.
        python_version: Its own.
        versions: Of each package it has, placeholders too.
        devices: Neuron devices of this machine.
        missing: What it lacks, and why; empty where all of it is there.
    """

    python: Path
    python_version: str
    versions: Mapping[str, str]
    devices: int
    missing: tuple[Problem, ...]

    @property
    def release(self) -> Release:
        """Of optimum-neuron."""
        numbers = (*_numbers(self.versions["optimum-neuron"]), 0, 0, 0)
        return numbers[0], numbers[1], numbers[2]


@dataclass(frozen=True, kw_only=True)
class Module:
    """A compiled TorchScript file: its size, the NEFFs found in it, and why it was not loaded, if it was not."""

    size_bytes: int
    neffs: int
    not_loaded: str | None


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What optimum-neuron made, read again.

    Attributes:
        files: Bytes of every file of the artifact, by its path.
        modules: The compiled files among them.
        versions: Of the packages that made them.
        compiler_version: As the artifact itself records it; None where it does not.
        notes: What was not checked, and why.
    """

    files: Mapping[str, int]
    modules: Mapping[str, Module]
    versions: Mapping[str, str]
    compiler_version: str | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """What a traced module answered, float32, by the names of its outputs; or why it could not run."""

    outputs: Mapping[str, NDArray[Any]]
    not_run: str | None = None


# Find


def find(python: Path | None, environ: Mapping[str, str], *, venvs: Path = VENVS, own: bool = True) -> Sdk:
    """Find an interpreter that has optimum-neuron and the SDK; nothing of either is imported.

    Args:
        python: The interpreter; None for LLMCOMPILE_NEURON_PYTHON, else ours, else that of an environment of AWS.
        environ: The process's.
        venvs: Folder of AWS's environments.
        own: Whether our own lowering has the task, which is then one of the ways on.

    Raises:
        ToolchainError: No interpreter has all of it: names each package that is absent or a placeholder, and says the
            ways on.
    """
    named = environ.get(VARIABLE, "")
    if python is not None or named != "":
        return whole(probe(Path(named) if python is None else python), own=own)
    ours = _sdk(Path(sys.executable), optimum_worker.probe({}))
    if ours.missing == ():
        return ours
    found = [ours]
    for path in sorted(venvs.glob(_VENV), reverse=True):
        try:
            found.append(probe(path))
        except ToolchainError:
            continue
        if found[-1].missing == ():
            return found[-1]
    return whole(min(found, key=lambda sdk: len(sdk.missing)), own=own)


def probe(python: Path) -> Sdk:
    """Ask an interpreter for the versions of the packages.

    Raises:
        ToolchainError: It cannot be run.
    """
    if python.is_dir() or not os.access(python, os.X_OK):
        raise ToolchainError("--toolchain-python", f"{python}: not an executable file", "a Python interpreter")
    interpreter = Path(os.path.abspath(python))  # not resolved: a virtual environment's python is a link
    return _sdk(interpreter, _ask(interpreter, {"action": "probe"}, {}, None, _PROBE_SECONDS, _silent))


def whole(sdk: Sdk, *, own: bool = True) -> Sdk:
    """The SDK itself.

    Args:
        sdk: What was found.
        own: As for `find`.

    Raises:
        ToolchainError: It is not whole.
    """
    if sdk.missing == ():
        return sdk
    raise collected(ToolchainError, [*sdk.missing[:-1], replace(sdk.missing[-1], hint=ways_on(own=own))])


def ways_on(*, own: bool = True) -> str:
    """What to do where optimum-neuron is not whole; `own` as for `find`."""
    package = f"optimum-neuron[neuronx,diffusers]=={dotted(LAST_READ)}"
    return (
        "ways on:\n"
        "  1. in an environment of its own, with Python 3.10 or 3.11: python3.11 -m venv neuron && "
        f"neuron/bin/pip install {shlex.quote(package)} --extra-index-url {INDEX} && "
        "apt-get install aws-neuronx-runtime-lib, then `--toolchain-python neuron/bin/python`\n"
        f"  2. in a container of Hugging Face, which has it: {_CONTAINERS[0]}; of decoders {_CONTAINERS[1]}"
        + ("\n  3. without it: `--via xla`" if own else "")
    )


def _sdk(python: Path, answer: Mapping[str, Any]) -> Sdk:
    versions = {str(name): str(version) for name, version in answer["versions"].items()}
    missing = tuple(_missing(python, versions))
    return Sdk(
        python=python,
        python_version=str(answer["python"]),
        versions=MappingProxyType(versions),
        devices=int(answer["devices"]),
        missing=missing,
    )


def _missing(python: Path, versions: Mapping[str, str]) -> Iterator[Problem]:
    for name, oldest in _OLDEST.items():
        expected = f"{'.'.join(str(number) for number in oldest)} or later"
        if name not in versions:
            yield Problem(name, f"not installed for {python}", expected)
        elif _numbers(versions[name]) < oldest:
            what = ", PyPI's placeholder," if name in _AWS else ""
            yield Problem(name, f"{versions[name]}{what} for {python}", expected)


def _numbers(version: str) -> tuple[int, ...]:
    match = re.match(r"\d+(\.\d+)*", version)
    return () if match is None else tuple(int(number) for number in match[0].split("."))


# Export


def export(
    sdk: Sdk,
    request: Request,
    *,
    folder: Path,
    on_line: OnLine,
    timeout_seconds: float | None = None,
) -> Exported:
    """Let optimum-neuron make an artifact, and read what it made.

    Args:
        sdk: What `find` found.
        request: What `optimum_requests.make_request` made.
        folder: Of the job, where the child runs.
        on_line: Given every line of the log as it comes.
        timeout_seconds: After these it is stopped.

    Raises:
        ToolchainError: It failed, with its last lines; it is a release with other arguments; a file is absent, damaged
            or of other options than asked. Whatever ends this function early ends the child's processes too.
    """
    output, model = Path(str(request.content["output"])), Path(str(request.content["model"]))
    with _staged(request.content) as content:
        repeat = _repeat(sdk.python, request.content, request.environment)
        answer = _ask(sdk.python, content, request.environment, folder, timeout_seconds, on_line, repeat)
    if "refused" in answer:
        raise _refused(sdk, answer["refused"])
    _carry(request, model, output)
    return check(sdk, request, folder=folder, on_line=on_line)


def _refused(sdk: Sdk, refused: Mapping[str, Any]) -> ToolchainError:
    return ToolchainError(
        f"optimum-neuron {sdk.versions['optimum-neuron']}",
        f"its {refused['function']} has no argument {refused['argument']}",
        f"what 0.3.0 to {dotted(LAST_READ)} have",
        f"pip install 'optimum-neuron[neuronx]=={dotted(LAST_READ)}' in {sdk.python.parent.parent}, or --via xla",
    )


@contextmanager
def _staged(content: Mapping[str, object]) -> Iterator[Mapping[str, object]]:
    """The request with links in a private folder for paths: what a user's path is called must change no flag."""
    with _neutral_folder() as private:
        links = {}
        for name in ("model", "unet"):
            if content[name] is not None:
                link = private / name
                link.symlink_to(str(content[name]), target_is_directory=True)
                links[name] = str(link)
        yield {**content, **links}
        index = Path(str(content["output"])) / "model_index.json"
        if index.is_file():
            index.write_text(index.read_text().replace(json.dumps(links["model"]), json.dumps(content["model"])))


@contextmanager
def _neutral_folder() -> Iterator[Path]:
    for base in (tempfile.gettempdir(), *_TEMPORARY):
        if not is_neutral(base) or not os.access(base, os.W_OK):
            continue
        while True:
            made = tempfile.mkdtemp(prefix="llmcompile-", dir=base)
            try:
                if is_neutral(made):
                    yield Path(made)
                    return
            finally:
                shutil.rmtree(made, ignore_errors=True)
    found = f"{tempfile.gettempdir()}: optimum-neuron takes a model below it for a part of a diffusion model"
    raise ToolchainError("TMPDIR", found, f"a path without {', '.join(_MARKS)}", "TMPDIR=/tmp")


def is_neutral(path: str) -> bool:
    """Whether optimum-neuron compiles a model at this path with the flags of its kind."""
    return not any(mark in path.lower() for mark in _MARKS)


def _carry(request: Request, model: Path, output: Path) -> None:
    there = [path.name for path in output.iterdir()] if output.is_dir() else []
    arguments = request.content.get("arguments")
    source = model / str(arguments["subfolder"]) if isinstance(arguments, Mapping) else model
    names = auxiliary_files(sorted(path.name for path in source.iterdir() if path.is_file()))
    for name in carried(names, there, decoder=request.decoder, code=request.code):
        shutil.copyfile(contained(source, name), output / name)


# Check


def check(sdk: Sdk, request: Request, *, folder: Path, on_line: OnLine) -> Exported:
    """Hold what was written against what was asked; every byte is read, and loaded where there are devices.

    Raises:
        ToolchainError: A file is absent, damaged, cannot be loaded, or says that it was made with other options.
    """
    output = Path(str(request.content["output"]))
    modules = _present_modules(request, output)
    content = {"action": "check", "output": str(output), "modules": modules, "shards": list(request.shards)}
    absent = [name for name in (*request.files, *modules, *request.shards) if not (output / name).is_file()]
    if absent != []:
        raise collected(ToolchainError, [_absent(output, name) for name in absent])
    answer = _ask(sdk.python, content, request.environment, folder, None, on_line)
    recorded = _recorded(request, output)
    problems = [
        *_damaged(output, {**answer["modules"], **answer["shards"]}),
        *_unequal_ranks(output, answer["shards"]),
        *_other_options(request, recorded),
    ]
    if problems != []:
        raise collected(ToolchainError, problems)
    found = {
        name: Module(size_bytes=facts["bytes"], neffs=facts["neffs"], not_loaded=facts.get("not_loaded"))
        for name, facts in answer["modules"].items()
    }
    return Exported(
        files=MappingProxyType(answer["files"]),
        modules=MappingProxyType(found),
        versions=sdk.versions,
        compiler_version=_compiler_version(recorded),
        notes=(*request.notes, *_check_notes(found)),
    )


def _present_modules(request: Request, output: Path) -> list[str]:
    """The compiled files: a folder of that name holds one for each rank (neuronx_distributed.trace)."""
    names: list[str] = []
    for name in request.modules:
        if (output / name).is_dir():
            names += [f"{name}/tp_{rank}.pt" for rank in range(_ranks(request))]
        else:
            names.append(name)
    return names


def _ranks(request: Request) -> int:
    arguments = request.content.get("arguments")
    value = arguments["tensor_parallel_size"] if isinstance(arguments, Mapping) else 1
    return value if isinstance(value, int) else 1


def _absent(output: Path, name: str) -> Problem:
    return Problem(str(output / name), "not written", "a file", "see the log of optimum-neuron above")


def _damaged(output: Path, facts: Mapping[str, Mapping[str, Any]]) -> Iterator[Problem]:
    for name, about in facts.items():
        if "problem" in about:
            yield Problem(str(output / name), str(about["problem"]), "a file that loads", "is the disk full?")


def _unequal_ranks(output: Path, shards: Mapping[str, Mapping[str, Any]]) -> Iterator[Problem]:
    """Every rank runs the same graph, so its file has the same tensors of the same shapes."""
    firsts: dict[str, Any] = {}
    for name, about in shards.items():
        first = firsts.setdefault(name.rpartition("/")[0], about.get("tensors"))
        if about.get("tensors") != first:
            yield Problem(str(output / name), "tensors of other names or shapes", "those of rank 0")


def _recorded(request: Request, output: Path) -> Mapping[str, Mapping[str, Any]]:
    """What each compiled part says of its compilation, by the file that says it."""
    if request.decoder:
        return {"neuron_config.json": _object(output / "neuron_config.json")}
    found = {}
    for name in request.modules:
        path = str(Path(name).with_name("config.json"))
        config = _object(output / path)
        section = config.get("neuron")
        # transformers 4.56 renamed torch_dtype; the parts of a pipeline do not say it
        dtype = config.get("dtype", config.get("torch_dtype"))
        found[path] = {"torch_dtype": dtype, **(section if isinstance(section, dict) else {})}
    return found


def _object(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ToolchainError(str(path), f"not readable as JSON: {error}", "what optimum-neuron writes") from error
    return content if isinstance(content, dict) else {}


def _other_options(request: Request, recorded: Mapping[str, Mapping[str, Any]]) -> Iterator[Problem]:
    for path, section in recorded.items():
        for key, asked in request.recorded.items():
            if section.get(key) != asked:
                yield Problem(f"{path}: {key}", f"{section.get(key)}", f"{asked}, as asked")


def _compiler_version(recorded: Mapping[str, Mapping[str, Any]]) -> str | None:
    for section in recorded.values():
        for key in ("compiler_version", "neuronxcc_version"):
            if key in section:
                return str(section[key])
    return None


def _check_notes(modules: Mapping[str, Module]) -> Iterator[str]:
    reasons = {module.not_loaded for module in modules.values() if module.not_loaded is not None}
    for reason in sorted(reasons):
        yield f"every byte of the compiled files was read, and none was loaded: {reason}"


# Run


def run_module(
    sdk: Sdk,
    request: Request,
    inputs: Mapping[str, NDArray[Any]],
    *,
    outputs: Sequence[str] = (),
    folder: Path,
    on_line: OnLine,
) -> Answer:
    """Run a traced encoder where this machine can, for us to compare what it answers.

    Args:
        sdk: What `find` found.
        request: What made the artifact.
        inputs: In the order the module takes them; int64 ids and masks, as they were traced.
        outputs: Names of its results, for a module that has none of its own.
        folder: Of the job.
        on_line: Given every line of the log.

    Returns:
        The outputs; or why there are none: no device, an encoder-decoder, a pipeline or a decoder.

    Raises:
        ToolchainError: The interpreter failed.
    """
    if request.modules != ("model.neuron",):
        return Answer({}, "it is compiled in parts, which only optimum-neuron's own classes run together")
    import numpy

    with tempfile.TemporaryDirectory(prefix="llmcompile-") as scratch:
        paths = [os.path.join(scratch, f"input-{index}.npy") for index in range(len(inputs))]
        for path, values in zip(paths, inputs.values(), strict=True):
            numpy.save(path, values)
        content = {
            "action": "validate",
            "module": str(Path(str(request.content["output"])) / request.modules[0]),
            "inputs": paths,
            "outputs": list(outputs),
            "folder": scratch,
        }
        answer = _ask(sdk.python, content, request.environment, folder, None, on_line)
        if "not_run" in answer:
            return Answer({}, str(answer["not_run"]))
        return Answer({name: numpy.load(path) for name, path in answer["outputs"].items()})


def _silent(line: Line) -> None:
    return


_STAGES: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\*{5} Compiling (.+) \*{5}"), "compiling {0}"),
    (re.compile(r"\[Compilation Time\] ([\d.]+) seconds"), "compiled in {0} s"),
    (re.compile(r"\[Total compilation Time\] ([\d.]+) seconds"), "all compiled in {0} s"),
    (re.compile(r"Generating HLO: (\w+)"), "tracing {0}"),
    (re.compile(r"Sharding Weights for ranks: (.+)"), "splitting the weights of ranks {0}"),
)
"""Lines of optimum/exporters/neuron/convert.py (0.4.5) and neuronx_distributed/trace/model_builder.py (0.15)."""


def progress(text: str) -> str | None:
    """What a line of the log says of how far it is; None for most."""
    for pattern, words in _STAGES:
        match = pattern.search(text)
        if match is not None:
            return words.format(*match.groups())
    return diagnosis.progress(text)


_CAUSES: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        re.compile(r"libnrt\.so|libneuron\w*\.so"),
        "the runtime's library is needed even to compile: apt-get install aws-neuronx-runtime-lib",
    ),
    (re.compile(r"WRONG PACKAGE"), f"a package is PyPI's placeholder: pip install --extra-index-url {INDEX}"),
    (
        re.compile(r"supply compiler argument target|No neuron device|NRT_FAILURE|nrt_init"),
        "it looked for a Neuron device: --instance-type inf2 compiles without, from optimum-neuron 0.4.0 on",
    ),
    (re.compile(r"No space left on device"), "the disk is full: --compiler-workdir on another"),
    (
        re.compile(r"trust_remote_code"),
        "the model brings code of its own: read it, then add --trust-remote-code",
    ),
)
"""What a line of a failure means; the compiler's own are in `diagnosis`."""


def _ask(
    python: Path,
    request: Mapping[str, object],
    environment: Mapping[str, str],
    folder: Path | None,
    timeout_seconds: float | None,
    on_line: OnLine,
    repeat: str = "",
) -> Mapping[str, Any]:
    """The worker's answer to a request.

    Args:
        python: Whose worker.
        request: What it is asked; in the command itself, so that the command can be repeated.
        environment: Added to ours; a token is here, and in no command.
        folder: Where it runs; None for a folder that is removed afterwards.
        timeout_seconds: After these it is stopped.
        on_line: Given every line as it comes.
        repeat: The command, for the message of a failure; "" for the one that was run.
    """
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="llmcompile-") as scratch:
            return _ask(python, request, environment, Path(scratch), timeout_seconds, on_line, repeat)
    results: list[Mapping[str, Any]] = []
    telling: list[str] = []
    words = (str(python), str(_WORKER), json.dumps(request))
    with Child(words, folder, _environment(python, environment)) as child:
        try:
            for text in child.lines(timeout_seconds):
                event = _event(text)
                if event is None:
                    telling += [text] if diagnosis.has_code(text) else []
                    on_line(Line(text, progress(text)))
                elif event["event"] == "result":
                    results.append(event)
                else:
                    on_line(Line(str(event.get("text", "")), str(event.get("text", ""))))
        except TimeoutError as error:
            found = f"still running after {timeout_seconds:.0f} s; stopped"
            raise ToolchainError(str(python), found, "an end", tail(child.last)) from error
        code = child.ending()
        last = [text for text in child.last if _event(text) is None]
    if code != 0:
        again = repeat if repeat != "" else _repeat(python, request, environment)
        raise _failure(python, code, telling, last, again)
    if results == []:
        raise ToolchainError(str(python), "answered nothing", "a result of optimum_worker.py", "is it Python 3?")
    return results[-1]


def _repeat(python: Path, request: Mapping[str, object], environment: Mapping[str, str]) -> str:
    variables = [f"{name}={value}" for name, value in environment.items() if name not in _SECRETS]
    return f"to repeat it: env {shlex.join([*variables, str(python), str(_WORKER), json.dumps(request)])}"


def _environment(python: Path, environment: Mapping[str, str]) -> dict[str, str]:
    inherited = child_environment()
    # torch_neuronx calls neuronx-cc by its name, and an environment that is not activated is not on PATH.
    path = os.pathsep.join((str(python.parent), inherited.get("PATH", os.defpath)))
    return {**inherited, "PATH": path, **environment}


def _event(text: str) -> Mapping[str, Any] | None:
    if not text.startswith('{"event"'):
        return None
    try:
        event = json.loads(text)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "event" in event else None


def _failure(python: Path, code: int, telling: Sequence[str], last: Sequence[str], repeat: str) -> ToolchainError:
    """A failed child: the exception it ended with, and what to do about it."""
    raised = next((text for text in reversed(last) if re.match(r"[\w.]*(Error|Exception|Interrupt)\b", text)), "")
    advice = next((text for pattern, text in _CAUSES if any(pattern.search(line) for line in last)), None)
    if advice is None and (telling != [] or code in (-9, 137)):
        said, advice = diagnosis.explain(code, [*telling, *last])
        raised = said if said != "" else raised
    hint = [*([advice] if advice is not None else []), repeat, tail(last)]
    found = ended(code) if raised == "" else f"{ended(code)}: {raised}"
    return ToolchainError(f"optimum-neuron in {python}", found, "exit code 0", "\n".join(hint))
