"""Runs the validation that belongs to an artifact: its executor against the Hugging Face model, on CPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from llmcompile.architectures.spec import Architecture, Dims
from llmcompile.checkpoint.folder import Checkpoint
from llmcompile.errors import MismatchError, Problem
from llmcompile.exporters.ft.options import FtOptions
from llmcompile.exporters.trtllm.options import TrtllmOptions
from llmcompile.packaging import manifest as records
from llmcompile.pipeline import engine
from llmcompile.pipeline.job import Job, View

if TYPE_CHECKING:
    from llmcompile.exporters.trtllm.toolchain import Toolchain
    from llmcompile.validation import ft, trtllm
    from llmcompile.validation.checks import Check, Finding, Quality


@dataclass(frozen=True)
class Validated:
    """What came of a validation: the manifest's record, and what disagrees."""

    record: records.Validation
    problems: list[Problem]


class Checks(Protocol):
    """A module of `llmcompile.validation` that validates one kind of artifact."""

    ARTIFACT: str
    EXECUTOR: str

    def validate(
        self, subject: Any, *, atol: float | None, rtol: float | None, trust_remote_code: bool
    ) -> Iterator[Finding]:
        """Compare, one check at a time."""


def ft_subject(
    checkpoint: Checkpoint,
    architecture: Architecture,
    dims: Dims,
    *,
    folder: Path,
    ranks: int,
    dtype: str,
    encoder_only: bool,
    int8: bool,
    overflow_accepted: bool,
) -> ft.Subject:
    """What validation needs to know of a FasterTransformer artifact and its model."""
    from llmcompile.validation.ft import Subject

    activation = dims.facts.get("activation", dims.facts.get("feed_forward_proj"))
    return Subject(
        folder=folder,
        ranks=ranks,
        dtype=dtype,
        stored_dtype=_single_dtype(checkpoint),
        checkpoint=checkpoint.root,
        weight_files=tuple(file.path for file in checkpoint.files),
        family=architecture.name,
        sizes=dims.sizes,
        activation=str(activation),
        norm_eps=float(str(dims.facts["norm_eps"])),
        encoder_only=encoder_only,
        int8=int8,
        overflow_accepted=overflow_accepted,
    )


def _single_dtype(checkpoint: Checkpoint) -> str:
    """The one float type of a checkpoint; "mixed" when it has several."""
    names = {tensor.dtype.name for tensor in checkpoint.tensors.values() if tensor.dtype.is_float}
    return names.pop() if len(names) == 1 else "mixed"


def trtllm_subject(
    checkpoint: Checkpoint,
    architecture: Architecture,
    dims: Dims,
    *,
    folder: Path,
    eval_text: Path | None,
    overflow_accepted: bool,
) -> trtllm.Subject:
    """What validation needs to know of a TensorRT-LLM checkpoint and its model."""
    from llmcompile.validation.trtllm import Subject

    return Subject(
        folder=folder,
        checkpoint=checkpoint.root,
        weight_files=tuple(file.path for file in checkpoint.files),
        family=architecture.name,
        sizes=dims.sizes,
        activation=str(dims.facts.get("activation", dims.facts.get("feed_forward_proj"))),
        norm_eps=float(str(dims.facts["norm_eps"])),
        stored_dtype=_single_dtype(checkpoint),
        source_quantization=str(dims.facts.get("quantized", "")),
        group_size=int(str(dims.facts.get("group_size", 0))),
        eval_text=eval_text,
        overflow_accepted=overflow_accepted,
    )


def job_subject(job: Job, folder: Path, *, overflow_accepted: bool) -> trtllm.Subject:
    """What validation needs to know of the checkpoint a job has written into `folder`."""
    assert isinstance(job.options, TrtllmOptions)
    return trtllm_subject(
        job.checkpoint,
        job.architecture,
        job.dims,
        folder=folder / job.layout.folder,
        eval_text=job.options.eval_text,
        overflow_accepted=overflow_accepted,
    )


def of_job(job: Job, folder: Path, view: View, *, overflow_accepted: bool) -> Validated:
    """Validate what a job has written."""
    options, build = job.options, job.options.build
    if isinstance(options, FtOptions):
        from llmcompile.validation import ft

        subject = ft_subject(
            job.checkpoint,
            job.architecture,
            job.dims,
            folder=folder / job.layout.folder,
            ranks=job.layout.ranks,
            dtype=job.layout.dtype.name,
            encoder_only=options.encoder_only,
            int8=options.act_scales is not None,
            overflow_accepted=overflow_accepted,
        )
        return run(ft, subject, job.layout.ranks, view, build.atol, build.rtol, build.trust_remote_code)
    from llmcompile.validation import trtllm

    checkpoint = job_subject(job, folder, overflow_accepted=overflow_accepted)
    ranks = job.layout.ranks * job.layout.pp
    return run(trtllm, checkpoint, ranks, view, build.atol, build.rtol, build.trust_remote_code)


def run(
    checks: Checks,
    subject: Any,
    ranks: int,
    view: View,
    atol: float | None,
    rtol: float | None,
    trust_remote_code: bool,
) -> Validated:
    """Run every check of an artifact, showing each as it is made; what disagrees is in the result, not raised."""
    from llmcompile.validation import checks as kinds

    view.validating(checks.ARTIFACT, ranks)
    made: list[Check] = []
    notes: list[str] = []
    differences: list[Problem] = []
    quality: Quality | None = None
    try:
        for item in checks.validate(subject, atol=atol, rtol=rtol, trust_remote_code=trust_remote_code):
            view.checked(item)
            if isinstance(item, str):
                notes.append(item)
            elif isinstance(item, kinds.Quality):
                quality = item
            else:
                assert isinstance(item, kinds.Check)
                made.append(item)
    except MismatchError as error:
        differences.extend(error.problems)
    problems = [*differences, *kinds.problems_of(made)]
    comparisons = tuple(comparison for check in made for comparison in _comparisons(check))
    record = records.Validation(
        passed=len(problems) == 0,
        executor=checks.EXECUTOR,
        comparisons=comparisons,
        notes=tuple(notes),
        quality=None if quality is None else _quality(quality),
    )
    return Validated(record, problems)


def _quality(found: Quality) -> records.Quality:
    def rounded(value: float) -> float:
        return float(f"{value:.3g}")

    return records.Quality(
        text=found.text,
        recipe=found.recipe,
        tokens=found.tokens,
        perplexity_model=rounded(found.perplexity_model),
        perplexity=rounded(found.perplexity),
        top1=rounded(found.top1),
        largest_error=rounded(found.largest_error),
        largest_logit=rounded(found.largest_logit),
    )


def _comparisons(check: Check) -> Iterator[records.Comparison]:
    for verdict in check.comparison.verdicts:
        yield records.Comparison(
            input=check.input,
            reference=check.reference,
            output=verdict.name,
            passed=verdict.passed,
            details=verdict.to_json(),
        )


def of_engine(
    options: TrtllmOptions,
    found: Toolchain,
    subject: trtllm.Subject,
    built: records.Engine,
    work: Path,
    view: View,
    before: Validated,
) -> Validated:
    """Run the engine on this machine's GPU, and add what came of it to the validation of its checkpoint.

    Args:
        options: What was asked.
        found: What built the engine.
        subject: Its checkpoint, and the model.
        built: The engine.
        work: The work directory it is in.
        view: Shown every check.
        before: What is known of the checkpoint.
    """
    reason = engine.why_not_run(options, found, built, work)
    if reason is not None:
        note = f"the engine was not run: {reason}"
        view.checked(note)
        return replace(before, record=before.record.model_copy(update={"notes": (*before.record.notes, note)}))
    from llmcompile.validation import trtllm
    from llmcompile.validation.checks import problems_of

    prompts = trtllm.engine_prompts(subject)
    files = engine.run(found, work, prompts, trtllm.end_token(subject), view)
    checks = tuple(trtllm.engine_checks(subject, prompts, files, options.build.trust_remote_code))
    for check in checks:
        view.checked(check)
    problems = [*before.problems, *problems_of(checks)]
    comparisons = (*before.record.comparisons, *(item for check in checks for item in _comparisons(check)))
    record = before.record.model_copy(update={"passed": len(problems) == 0, "comparisons": comparisons})
    return Validated(record, problems)
