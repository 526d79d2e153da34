"""Whether the numbers of an artifact for TensorRT for RTX are the model's, long after it was made."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from llmcompile.checkpoint.folder import Checkpoint
from llmcompile.errors import CheckpointError
from llmcompile.exporters.rtx import builder, execution
from llmcompile.packaging import manifest as records
from llmcompile.pipeline import validating
from llmcompile.pipeline.job import View
from llmcompile.pipeline.rtx import running


def verify_numbers(
    folder: Path,
    manifest: records.Manifest,
    checkpoint: Checkpoint,
    view: View,
    *,
    atol: float | None,
    rtol: float | None,
) -> validating.Validated:
    """Run the ONNX model that was kept beside the model it was made from, and the engines where a GPU is for them.

    Args:
        folder: The artifact.
        manifest: Its record.
        checkpoint: The model.
        view: Shown every check.
        atol: As in `BuildOptions`.
        rtol: Likewise.

    Raises:
        CheckpointError: It has engines alone, which only a GPU runs.
        ToolchainError: A package of the extra `rtx` is not installed, or an engine does not run.
    """
    builder.check_packages(builder=False)
    rtx = manifest.rtx
    assert rtx is not None
    graphs = {graph.name: folder / graph.onnx for graph in rtx.graphs if graph.onnx is not None}
    if len(graphs) < len(rtx.graphs):
        found = "engines without their ONNX model, which only a GPU runs"
        raise CheckpointError(
            str(folder), found, "an artifact built with --keep-onnx", "drop --deep, or build it again"
        )
    from llmcompile.validation import rtx as checks

    options = manifest.options
    subject = checks.Subject(
        graphs=graphs,
        checkpoint=checkpoint.root,
        weight_files=tuple(file.path for file in checkpoint.files),
        task=rtx.task,
        dtype=rtx.dtype,  # type: ignore[arg-type]  # the build has checked the word
        stored_dtype=validating.single_dtype(checkpoint),
        quantization=rtx.quantization,
        quantized=frozenset(rtx.quantized),
        float32=frozenset(rtx.float32),
        longest=int(str(options["longest"])),
        choices=int(str(options["num_choices"])) if options["num_choices"] is not None else 1,
    )
    trusted = options["trust_remote_code"] is True
    before = validating.run(checks, subject, 1, view, atol, rtol, trusted)
    if rtx.status != "built" or not before.record.passed:
        return before
    machine = execution.machine(folder)
    gpu = machine.fitting(rtx.compute_capabilities)
    reason = machine.why_not(rtx.compute_capabilities) if gpu is None else _release(str(rtx.tensorrt_rtx))
    if gpu is None or reason is not None:
        note = f"the engine was not run: {reason}"
        view.checked(note)
        return replace(before, record=before.record.model_copy(update={"notes": (*before.record.notes, note)}))
    validated, _ = running.of_engines(
        rtx,
        folder,
        Path(tempfile.gettempdir()),
        subject,
        gpu,
        machine,
        view,
        before,
        atol=atol,
        rtol=rtol,
        trust_remote_code=trusted,
    )
    return validated


def _release(version: str) -> str | None:
    """Why the TensorRT for RTX that is installed does not run an engine of `version`."""
    if len(builder.missing_packages(builder=True)) > 0:
        return f"TensorRT for RTX is not installed; {builder.INSTALL}"
    found = builder.find().version
    return None if found == version else f"TensorRT for RTX {found} is installed, and {version} alone runs it"
