"""Runs engines where there is a GPU for them, and compares them with the ONNX model they were built of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llmcompile.exporters.rtx import execution
from llmcompile.exporters.rtx.execution import Gpu, Machine
from llmcompile.packaging import manifest as records
from llmcompile.pipeline import validating
from llmcompile.pipeline.job import View

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from llmcompile.validation.rtx import Subject
    from llmcompile.validation.rtx_engine import Step

NOT_EXECUTED = "built, not executed"
EXECUTED = "built and executed"


def not_run(reason: str) -> records.RtxExecution:
    """The record of engines that were not run."""
    return records.RtxExecution(gpu=None, compute_capability=None, cuda=None, reason=reason)


def of_engines(
    rtx: records.Rtx,
    folder: Path,
    scratch: Path,
    subject: Subject,
    gpu: Gpu,
    machine: Machine,
    view: View,
    before: validating.Validated,
    *,
    atol: float | None,
    rtol: float | None,
    trust_remote_code: bool,
) -> tuple[validating.Validated, records.RtxExecution]:
    """Run the engines of an artifact, and add what came of it to the validation of its ONNX model.

    Args:
        rtx: What they take and give, and their profiles.
        folder: The artifact.
        scratch: Where tensors may lie on their way.
        subject: Its ONNX model, and the model that was made of.
        gpu: What runs them.
        machine: Where it is.
        view: Shown every check.
        before: What is known of the ONNX model.
        atol: As in `BuildOptions`.
        rtol: Likewise.
        trust_remote_code: Likewise.

    Raises:
        ToolchainError: An engine does not load, or does not run.
    """
    from llmcompile.validation import rtx_engine

    kinds = {graph.name: {each.name: each.dtype for each in (*graph.inputs, *graph.outputs)} for graph in rtx.graphs}

    files = _files(rtx, folder)

    def run(steps: Sequence[Step]) -> list[Mapping[str, Tensor]]:
        calls = [_call(step, kinds[step.graph]) for step in steps]
        found = execution.run(
            gpu, str(rtx.tensorrt_rtx), files, calls, folder=scratch, timeout_seconds=None, on_line=view.building
        )
        return [
            {name: _tensor(each, kinds[step.graph][name]) for name, each in kept.items()}
            for step, kept in zip(steps, found, strict=True)
        ]

    profiles = {graph.name: [profile.shapes for profile in graph.profiles] for graph in rtx.graphs}
    checks = rtx_engine.checks(
        subject, profiles, run, gpu=str(gpu), atol=atol, rtol=rtol, trust_remote_code=trust_remote_code
    )
    added = validating.with_checks(before, checks, view)
    record = records.RtxExecution(gpu=gpu.name, compute_capability=gpu.capability, cuda=machine.cuda, reason=None)
    return added, record


def executed(rtx: records.Rtx, execution: records.RtxExecution) -> records.Rtx:
    """The record of an artifact, with what became of its engines."""
    words = NOT_EXECUTED if execution.reason is not None else EXECUTED
    return rtx.model_copy(update={"executed": words, "execution": execution})


def _files(rtx: records.Rtx, folder: Path) -> dict[str, execution.EngineFile]:
    return {
        graph.name: execution.EngineFile(
            folder / graph.engine,
            {each.name: each.dtype for each in graph.inputs},
            {each.name: each.dtype for each in graph.outputs},
        )
        for graph in rtx.graphs
        if graph.engine is not None
    }


def _call(step: Step, kinds: Mapping[str, str]) -> execution.Call:
    given = {
        name: execution.Bytes(tuple(values.shape), _bytes(values, kinds[name])) for name, values in step.given.items()
    }
    return execution.Call(step.graph, step.profile, given, step.carried, step.kept, step.first)


def _bytes(values: Tensor, kind: str) -> bytes:
    import torch

    cast = values.to(_torch(kind)).contiguous()
    return b"" if cast.numel() == 0 else cast.reshape(-1).view(torch.uint8).numpy().tobytes()


def _tensor(found: execution.Bytes, kind: str) -> Tensor:
    import torch

    if len(found.content) == 0:
        return torch.zeros(found.shape)
    return torch.frombuffer(bytearray(found.content), dtype=_torch(kind)).reshape(found.shape).float()


def _torch(kind: str) -> torch.dtype:
    import torch

    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int64": torch.int64}[kind]
