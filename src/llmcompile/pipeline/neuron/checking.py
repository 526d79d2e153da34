"""Whether the numbers of a Neuron artifact are the model's, long after it was made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmcompile.architectures import lookup
from llmcompile.checkpoint.folder import Checkpoint
from llmcompile.errors import MismatchError
from llmcompile.packaging import manifest as records
from llmcompile.pipeline import validating
from llmcompile.pipeline.job import View
from llmcompile.pipeline.neuron.layouts import SPLIT, WEIGHTS
from llmcompile.pipeline.neuron.planning import DECODER_TASK


def verify_numbers(
    folder: Path,
    manifest: records.Manifest,
    checkpoint: Checkpoint,
    view: View,
    *,
    atol: float | None,
    rtol: float | None,
) -> validating.Validated:
    """Execute the graphs with the ranks' weights; where a layout has no such weights, compare those it has.

    Args:
        folder: The artifact.
        manifest: Its record.
        checkpoint: The model.
        view: Shown every check.
        atol: As in `BuildOptions`.
        rtol: Likewise.
    """
    neuron, options = manifest.neuron, manifest.options
    assert neuron is not None
    decodes = neuron.task == DECODER_TASK
    split = folder / SPLIT[neuron.layout] if neuron.layout in SPLIT else None
    if not (folder / WEIGHTS).is_dir() and split is not None:
        return _split(split, str(options["dtype"]), checkpoint, view, decodes=decodes)
    from llmcompile.validation import neuron as checks

    subject = checks.Subject(
        folder=folder,
        checkpoint=checkpoint.root,
        weight_files=tuple(file.path for file in checkpoint.files),
        task=neuron.task,
        dtype=options["dtype"],  # type: ignore[arg-type]  # the export has checked the word
        stored_dtype=validating.single_dtype(checkpoint),
        family=lookup(checkpoint.config, checkpoint.tensors).name if decodes else "",
        dynamic_batch_size=options["dynamic_batch_size"] is True,
        output_hidden_states=options["output_hidden_states"] is True,
        output_attentions=options["output_attentions"] is True,
        auto_cast=options["auto_cast"],  # type: ignore[arg-type]  # as above
        auto_cast_type=_cast_type(options["auto_cast_type"]),
        split=split,
    )
    return validating.run(checks, subject, neuron.ranks, view, atol, rtol, False)


def _cast_type(recorded: Any) -> Any:
    return "bf16" if recorded is None else recorded


def _split(split: Path, dtype: str, checkpoint: Checkpoint, view: View, *, decodes: bool) -> validating.Validated:
    """The one file of each tensor, bit for bit; the ranks' weights that the graphs take are not in such a layout."""
    import torch

    from llmcompile.validation.neuron import check_split

    view.validating("split weights", 1)
    note = "the graphs were not executed: this layout has the model's weights, and not the ranks'"
    named = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
    problems = []
    try:
        check_split(
            split,
            checkpoint=checkpoint.root,
            weight_files=tuple(file.path for file in checkpoint.files),
            dtype=named[dtype] if decodes else None,
            with_head=decodes,
            trust_remote_code=False,
        )
    except MismatchError as error:
        problems = list(error.problems)
    view.checked(note)
    record = records.Validation(
        passed=len(problems) == 0, executor="split weights, bit for bit", comparisons=(), notes=(note,), quality=None
    )
    return validating.Validated(record, problems)
