"""The builder of TensorRT for RTX: found in seconds before any work, and run in a process of its own."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

from llmcompile.errors import ToolchainError
from llmcompile.exporters.processes import OnLine, Stages, ended, tail
from llmcompile.exporters.rtx.child import Answer, ask
from llmcompile.exporters.rtx.profiles import Profile

INSTALL = "pip install 'llmcompile[rtx]'"
NEEDED: Mapping[str, str] = MappingProxyType({"onnx": "1.17", "onnxscript": "0.3", "onnxruntime": "1.20"})
"""Packages an ONNX model needs -> the oldest release; these have 4-bit weights in blocks, and torch.onnx on export."""
BUILDER = ("tensorrt_rtx_cu12_libs", "tensorrt_rtx_cu12_bindings")
_MODULES = ("tensorrt_rtx_bindings", "tensorrt_rtx")
_WORKER = Path(__file__).with_name("worker.py")
_PROBE_SECONDS = 120.0
_STAGES: Stages = (
    (re.compile(r'^{"event": "progress", "text": "(\w+)"'), "{0}"),
    (re.compile(r"Compiler backend is used during engine build"), "compiling"),
    (re.compile(r"Engine generation completed in ([\d.]+) seconds"), "compiled in {0} s"),
)


@dataclass(frozen=True)
class Builder:
    """TensorRT for RTX as it is installed: its release, and the compute capabilities it builds for."""

    version: str
    capabilities: tuple[int, ...]


@dataclass(frozen=True)
class Engine:
    """A finished engine.

    Attributes:
        version: TensorRT for RTX that built it, and the only release that runs it.
        inputs: Element type of each, by name, as the builder's network has them.
        outputs: Likewise.
        layers: Of the network.
    """

    version: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    layers: int


def missing_packages(*, builder: bool) -> list[str]:
    """What is not installed, of what the ONNX model needs and, with `builder`, the engine."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if builder and all(find_spec(name) is None for name in _MODULES):
        missing += [name.replace("_", "-") for name in BUILDER]
    return missing


def check_packages(*, builder: bool) -> None:
    """Refuse to begin where something is not installed, or is too old.

    Raises:
        ToolchainError: It is.
    """
    missing = missing_packages(builder=builder)
    if len(missing) > 0:
        raise ToolchainError(
            missing[0],
            "not installed" if len(missing) == 1 else f"not installed, like {', '.join(missing[1:])}",
            "the extra rtx",
            INSTALL,
        )
    for name, least in NEEDED.items():
        found = metadata.version(name)
        if _numbers(found) < _numbers(least):
            raise ToolchainError(name, found, f"{least} or newer", f"pip install --upgrade {name}")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def find() -> Builder:
    """Ask the builder which release it is.

    Raises:
        ToolchainError: It cannot be imported: a library is absent, or of another machine.
    """
    answer = _run({"action": "probe"}, Path.cwd(), lambda line: None, _PROBE_SECONDS)
    return Builder(str(answer["version"]), tuple(int(each) for each in answer["capabilities"]))


def build(
    onnx: Path,
    engine: Path,
    *,
    inputs: Mapping[str, Sequence[int | str]],
    profiles: Sequence[Profile],
    capabilities: Sequence[int],
    weight_streaming: bool,
    timeout_seconds: float | None,
    on_line: OnLine,
) -> Engine:
    """Build an engine of an ONNX file.

    Args:
        onnx: The graph; its weights lie beside it.
        engine: Where the engine goes.
        inputs: Axes of what the graph takes.
        profiles: How it is used.
        capabilities: GPUs it is for.
        weight_streaming: Whether weights may stay in host memory at run time.
        timeout_seconds: Longest time; None for no limit.
        on_line: Shown every line of the builder's log.

    Raises:
        ToolchainError: The builder refused the graph, was killed, or took too long.
    """
    request = {
        "action": "build",
        "onnx": str(onnx.absolute()),
        "engine": str(engine.absolute()),
        "capabilities": list(capabilities),
        "weight_streaming": weight_streaming,
        "profiles": [{name: profile.shapes(axes) for name, axes in inputs.items()} for profile in profiles],
    }
    engine.parent.mkdir(parents=True, exist_ok=True)
    answer = _run(request, engine.parent, on_line, timeout_seconds)
    return Engine(
        version=str(answer["version"]),
        inputs={str(each["name"]): str(each["dtype"]) for each in answer["inputs"]},
        outputs={str(each["name"]): str(each["dtype"]) for each in answer["outputs"]},
        layers=int(answer["layers"]),
    )


def _run(request: Mapping[str, Any], folder: Path, on_line: OnLine, timeout_seconds: float | None) -> Mapping[str, Any]:
    """What the worker answers.

    Raises:
        ToolchainError: It fails.
    """
    try:
        answer = ask(_WORKER, request, folder, on_line, timeout_seconds=timeout_seconds, stages=_STAGES)
    except TimeoutError as error:
        found = f"did not end in {timeout_seconds:g} s"
        raise ToolchainError("tensorrt_rtx", found, "an engine", "give it longer with --build-timeout") from error
    if answer.result is None:
        raise _failure(answer, os.path.basename(str(request.get("onnx", ""))))
    return answer.result


def _failure(answer: Answer, about: str) -> ToolchainError:
    """What the builder said was wrong; where it said nothing, the end of its log."""
    subject = "tensorrt_rtx" if about == "" else f"tensorrt_rtx, {about}"
    if answer.code == -9:
        hint = "the machine ran out of memory, or somebody ended it: the builder takes about 3.6 times the weights"
        return ToolchainError(subject, ended(answer.code), "an engine", hint)
    if len(answer.reasons) > 0:
        return ToolchainError(subject, "; ".join(answer.reasons[:3]), "an engine", tail(answer.last))
    return ToolchainError(subject, f"{ended(answer.code)}; {tail(answer.last)}", "an engine")
