"""GPUs of this machine, and engines run on one of them: each in a process of its own."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmcompile.errors import ToolchainError
from llmcompile.exporters.processes import LAST_LINES, OnLine, Stages, ended, tail
from llmcompile.exporters.rtx.child import Answer, ask

_RUNNER = Path(__file__).with_name("runner.py")
_ASK_SECONDS = 60.0
_STAGES: Stages = ((re.compile(r'^{"event": "progress", "text": "([^"]+)"'), "{0}"),)
NO_GPU = "there is no NVIDIA GPU here"


@dataclass(frozen=True)
class Gpu:
    """A GPU: its place among those the driver sees, its name and its compute capability."""

    index: int
    name: str
    capability: int

    def __str__(self) -> str:
        return f"{self.name} (sm{self.capability})"


@dataclass(frozen=True)
class Machine:
    """What NVIDIA's driver says of this machine.

    Attributes:
        gpus: Those it sees.
        cuda: The release of CUDA it knows; None without one that works.
        broken: Why it does not work, where it is installed and does not; "" otherwise.
    """

    gpus: tuple[Gpu, ...]
    cuda: str | None
    broken: str

    def fitting(self, capabilities: Collection[int]) -> Gpu | None:
        """The first GPU that engines for `capabilities` run on."""
        return next((gpu for gpu in self.gpus if gpu.capability in capabilities), None)

    def why_not(self, capabilities: Collection[int]) -> str:
        """Why no GPU here runs an engine for `capabilities`."""
        if self.broken != "":
            return self.broken
        if len(self.gpus) == 0:
            return NO_GPU
        here = list(dict.fromkeys(f"sm{gpu.capability}" for gpu in self.gpus))
        subject = "this machine's GPU is" if len(here) == 1 else "this machine's GPUs are"
        return f"{subject} {_listed(here)}, the engine is for {_listed([f'sm{each}' for each in capabilities])}"


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


@dataclass(frozen=True)
class EngineFile:
    """An engine, and the element types of what it takes and gives, as the manifest has them."""

    file: Path
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


@dataclass(frozen=True)
class Bytes:
    """A tensor as it lies in memory."""

    shape: tuple[int, ...]
    content: bytes


@dataclass(frozen=True)
class Call:
    """One call of an engine.

    Attributes:
        engine: Its name.
        profile: Index of the optimization profile that its shapes fit.
        given: Inputs that are sent to the GPU.
        carried: Input -> the output of an earlier call that it is, and that never leaves the GPU.
        kept: Outputs that come back.
        first: Whether what is on the GPU is let go before.
    """

    engine: str
    profile: int
    given: Mapping[str, Bytes]
    carried: Mapping[str, str]
    kept: tuple[str, ...]
    first: bool


def machine(folder: Path) -> Machine:
    """Ask NVIDIA's driver which GPUs are here; one that crashes is one that does not work.

    Args:
        folder: Where the process runs.
    """
    try:
        answer = ask(_RUNNER, {"action": "gpus"}, folder, lambda line: None, timeout_seconds=_ASK_SECONDS)
    except TimeoutError:
        return Machine((), None, f"NVIDIA's driver did not answer in {_ASK_SECONDS:g} s")
    found = answer.result
    if found is None:
        return Machine((), None, f"NVIDIA's driver does not work: {ended(answer.code)}")
    gpus = tuple(Gpu(int(each["index"]), str(each["name"]), int(each["capability"])) for each in found["gpus"])
    return Machine(gpus, None if found["cuda"] is None else str(found["cuda"]), str(found["reason"]))


def run(
    gpu: Gpu,
    version: str,
    engines: Mapping[str, EngineFile],
    calls: Sequence[Call],
    *,
    folder: Path,
    timeout_seconds: float | None,
    on_line: OnLine,
) -> list[dict[str, Bytes]]:
    """Run calls of engines, one after the other, on a GPU.

    Args:
        gpu: Where.
        version: The release of TensorRT for RTX that built the engines.
        engines: By name.
        calls: In order.
        folder: Where tensors lie on their way, below a folder that is removed.
        timeout_seconds: Longest time for all of it; None for no limit.
        on_line: Shown every line of the runtime's log.

    Returns:
        For each call what was kept.

    Raises:
        ToolchainError: An engine does not load, or does not run.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix=".running-") as name:
        scratch = Path(name)
        script = {
            "index": gpu.index,
            "version": version,
            "engines": {name: {**asdict(each), "file": str(each.file.absolute())} for name, each in engines.items()},
            "steps": [_step(call, number, scratch) for number, call in enumerate(calls)],
        }
        path = scratch / "script.json"
        path.write_text(json.dumps(script), encoding="utf-8")
        request = {"action": "run", "script": str(path)}
        try:
            answer = ask(_RUNNER, request, scratch, on_line, timeout_seconds=timeout_seconds, stages=_STAGES)
        except TimeoutError as error:
            found = f"did not end in {timeout_seconds:g} s on {gpu}"
            raise ToolchainError("tensorrt_rtx", found, "an engine that runs", _HIDE) from error
        if answer.result is None:
            raise _failure(answer, gpu)
        return [
            {
                output: Bytes(tuple(int(size) for size in shape), (scratch / _kept(number, output)).read_bytes())
                for output, shape in kept.items()
            }
            for number, kept in enumerate(answer.result["shapes"])
        ]


_HIDE = "hide the GPU, and the engine is not run: CUDA_VISIBLE_DEVICES="


def _kept(number: int, output: str) -> str:
    return f"{number}.{output}.out"


def _step(call: Call, number: int, scratch: Path) -> dict[str, Any]:
    given = {}
    for name, tensor in call.given.items():
        path = scratch / f"{number}.{name}.in"
        path.write_bytes(tensor.content)
        given[name] = {"shape": list(tensor.shape), "file": str(path)}
    return {
        "engine": call.engine,
        "profile": call.profile,
        "given": given,
        "carried": dict(call.carried),
        "kept": {name: str(scratch / _kept(number, name)) for name in call.kept},
        "first": call.first,
    }


def _failure(answer: Answer, gpu: Gpu) -> ToolchainError:
    """What the runner said was wrong; where it said nothing, what TensorRT said, or the end of its log."""
    subject, expected = f"tensorrt_rtx on {gpu}", "an engine that runs"
    said = "; ".join(answer.reasons[:3])
    if answer.event is not None:
        found = str(answer.event["found"])
        return ToolchainError(subject, found if said == "" else f"{found}: {said}", expected, str(answer.event["hint"]))
    found = said if said != "" else f"{ended(answer.code)}; {tail(answer.last[-LAST_LINES:])}"
    return ToolchainError(subject, found, expected, f"update NVIDIA's driver; or {_HIDE}")
