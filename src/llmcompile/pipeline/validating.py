"""Runs the validation that belongs to an artifact: its executor against the Hugging Face model, on CPU."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from llmcompile.architectures.spec import Architecture, Dims
from llmcompile.checkpoint.folder import Checkpoint, open_checkpoint
from llmcompile.errors import MismatchError, Problem
from llmcompile.exporters.ft.options import FtOptions
from llmcompile.exporters.trtllm import versions
from llmcompile.exporters.trtllm.options import TrtllmOptions
from llmcompile.packaging import manifest as records
from llmcompile.pipeline import engine
from llmcompile.pipeline.job import Job, View

if TYPE_CHECKING:
    from llmcompile.calibration.data import Samples
    from llmcompile.exporters.neuron.optimum_requests import Source
    from llmcompile.exporters.trtllm.toolchain import Toolchain
    from llmcompile.pipeline.neuron.planning import Export
    from llmcompile.pipeline.rtx.planning import Build
    from llmcompile.validation import ft, llmapi, neuron, rtx, traced, trtllm
    from llmcompile.validation.calibrated import Calibration
    from llmcompile.validation.checks import Check, Finding, Quality
    from llmcompile.validation.tolerances import Dtype


@dataclass(frozen=True)
class Validated:
    """What came of a validation: the manifest's record, what disagrees, and what a text says, with all digits."""

    record: records.Validation
    problems: list[Problem]
    quality: Quality | None = None


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
        stored_dtype=single_dtype(checkpoint),
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


def single_dtype(checkpoint: Checkpoint) -> str:
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
    calibration: Calibration | None = None,
    scored: bool = False,
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
        stored_dtype=single_dtype(checkpoint),
        source_quantization=str(dims.facts.get("quantized", "")),
        group_size=int(str(dims.facts.get("group_size", 0))),
        eval_text=eval_text,
        overflow_accepted=overflow_accepted,
        calibration=calibration,
        scored=scored,
    )


def llmapi_subject(
    checkpoint: Checkpoint,
    dims: Dims,
    *,
    folder: Path,
    eval_text: Path | None,
    overflow_accepted: bool,
    calibration: Calibration | None = None,
    scored: bool = False,
) -> llmapi.Subject:
    """What validation needs to know of a checkpoint for the LLM API and its model."""
    from llmcompile.validation.llmapi import Subject

    return Subject(
        folder=folder,
        checkpoint=checkpoint.root,
        weight_files=tuple(file.path for file in checkpoint.files),
        sizes=dims.sizes,
        stored_dtype=single_dtype(checkpoint),
        eval_text=eval_text,
        overflow_accepted=overflow_accepted,
        calibration=calibration,
        scored=scored,
    )


def of_export(made: Export, folder: Path, view: View) -> Validated:
    """Execute the graphs that an export has lowered, with the weights it has written, beside the model.

    Args:
        made: The export.
        folder: What holds graphs/ and weights/.
        view: Shown every check.
    """
    from llmcompile.validation import neuron

    build = made.options.build
    subject = neuron_subject(made, folder)
    ranks = made.options.num_cores
    return run(neuron, subject, ranks, view, build.atol, build.rtol, build.trust_remote_code)


def of_onnx(made: Build, folder: Path, quantized: Sequence[str], float32: Sequence[str], view: View) -> Validated:
    """Run the ONNX model that a build for TensorRT for RTX has written, beside the model.

    Args:
        made: The build.
        folder: What holds onnx/.
        quantized: Weights that are quantized, by the model's names.
        float32: Weights that are kept in float32.
        view: Shown every check.
    """
    from llmcompile.validation import rtx

    build, subject = made.options.build, onnx_subject(made, folder, quantized, float32)
    return run(rtx, subject, 1, view, build.atol, build.rtol, build.trust_remote_code)


def onnx_subject(made: Build, folder: Path, quantized: Sequence[str], float32: Sequence[str]) -> rtx.Subject:
    """What validation needs to know of an ONNX model; the arguments are those of `of_onnx`."""
    from llmcompile.validation import rtx

    checkpoint = made.checkpoint
    return rtx.Subject(
        graphs={name: folder / f"onnx/{name}.onnx" for name in made.profiles},
        checkpoint=checkpoint.root,
        weight_files=tuple(file.path for file in checkpoint.files),
        task=made.task,
        dtype=made.dtype,  # type: ignore[arg-type]  # the options have checked the word
        stored_dtype=single_dtype(checkpoint),
        quantization=made.options.quantization,
        quantized=frozenset(quantized),
        float32=frozenset(float32),
        longest=made.longest,
        choices=made.options.num_choices,
    )


def neuron_subject(made: Export, folder: Path) -> neuron.Subject:
    """What validation needs to know of an export and its model."""
    from llmcompile.validation.neuron import Subject

    options, checkpoint = made.options, made.checkpoint
    assert checkpoint is not None
    split = {"sdk-2.16": folder / "checkpoint", "lmi-split": folder, "lmi-cache": folder}
    return Subject(
        folder=folder,
        checkpoint=checkpoint.root,
        weight_files=tuple(file.path for file in checkpoint.files),
        task=made.task,
        dtype=made.dtype,  # type: ignore[arg-type]  # the options have checked the word
        stored_dtype=single_dtype(checkpoint),
        family="" if made.job is None else made.job.architecture.name,
        dynamic_batch_size=options.dynamic_batch_size,
        output_hidden_states=options.output_hidden_states,
        output_attentions=options.output_attentions,
        auto_cast=options.auto_cast,  # type: ignore[arg-type]  # as above
        auto_cast_type=options.cast_type,  # type: ignore[arg-type]  # as above
        split=split.get(made.layout),
    )


def of_traced(made: Export, source: Source, run_module: traced.Run, view: View) -> Validated:
    """Compare what a module of optimum-neuron's answers with the model.

    Args:
        made: The export.
        source: The model, as optimum-neuron sees it.
        run_module: Runs the module, or says why it cannot.
        view: Shown every check.
    """
    import torch

    from llmcompile.exporters.neuron.optimum_registry import traced_inputs, traced_outputs
    from llmcompile.validation import traced

    build, shapes = made.options.build, made.options.shapes
    checkpoint = open_checkpoint(made.located.root / made.options.subfolder)
    assert shapes.batch_size is not None
    assert shapes.sequence_length is not None
    choices = (shapes.num_choices,) if made.task == "multiple-choice" and shapes.num_choices is not None else ()
    subject = traced.Subject(
        checkpoint=checkpoint.root,
        weight_files=tuple(file.path for file in checkpoint.files),
        task=made.task,
        shape=(shapes.batch_size, *choices, shapes.sequence_length),
        inputs=traced_inputs(source.model_type, made.config, source.library),
        outputs=traced_outputs(source.model_type, made.task, source.library),
        dtype={"fp16": torch.float16, "bf16": torch.bfloat16}.get(made.dtype, torch.float32),
        arithmetic=_arithmetic(made),
        layers=max(1, _int(made.config.get("num_hidden_layers", made.config.get("n_layers")))),
        run=run_module,
    )
    return run(traced, subject, 1, view, build.atol, build.rtol, build.trust_remote_code)


def _arithmetic(made: Export) -> Dtype:
    """What optimum-neuron's compiler computes in; tf32 has as many bits of mantissa as fp16."""
    if made.options.auto_cast == "none":
        return "fp16" if made.dtype == "fp16" else "bf16" if made.dtype == "bf16" else "fp32"
    return "bf16" if made.options.cast_type == "bf16" else "fp16"


def _int(value: object) -> int:
    return value if isinstance(value, int) else 1


def job_subject(job: Job, folder: Path, *, overflow_accepted: bool, samples: Samples | None = None) -> trtllm.Subject:
    """What validation needs to know of the checkpoint a job has written into `folder`, calibrated on `samples`."""
    from llmcompile.validation.calibrated import Calibration

    assert isinstance(job.options, TrtllmOptions)
    measured = job.options.release >= versions.KV_MEASURED
    calibration = None if samples is None else Calibration(tokens=samples.tokens, cache_measured=measured)
    return trtllm_subject(
        job.checkpoint,
        job.architecture,
        job.dims,
        folder=folder / job.layout.folder,
        eval_text=job.options.eval_text,
        overflow_accepted=overflow_accepted,
        calibration=calibration,
        scored=job.scored,
    )


def of_job(job: Job, folder: Path, view: View, *, overflow_accepted: bool, samples: Samples | None = None) -> Validated:
    """Validate what a job has written, with scales that were measured on `samples`."""
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
    if isinstance(options, TrtllmOptions) and options.target == "llmapi":
        from llmcompile.validation import llmapi
        from llmcompile.validation.calibrated import Calibration

        unified = llmapi_subject(
            job.checkpoint,
            job.dims,
            folder=folder,
            eval_text=options.eval_text,
            overflow_accepted=overflow_accepted,
            calibration=None if samples is None else Calibration(tokens=samples.tokens, cache_measured=True),
            scored=job.scored,
        )
        return run(llmapi, unified, 1, view, build.atol, build.rtol, build.trust_remote_code)
    from llmcompile.validation import trtllm

    checkpoint = job_subject(job, folder, overflow_accepted=overflow_accepted, samples=samples)
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
        quality=None if quality is None else quality_record(quality, digits=3),
    )
    return Validated(record, problems, quality)


def quality_record(found: Quality, *, digits: int) -> records.Quality:
    """What a manifest says of it, in so many significant digits; perplexities, which are compared, in six."""

    def rounded(value: float, digits: int = digits) -> float:
        return float(f"{value:.{digits}g}")

    return records.Quality(
        text=found.text,
        recipe=found.recipe,
        tokens=found.tokens,
        perplexity_model=rounded(found.perplexity_model, 6),
        perplexity=rounded(found.perplexity, 6),
        kl=rounded(found.kl),
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

    prompts = trtllm.engine_prompts(subject)
    files = engine.run(found, work, prompts, trtllm.end_token(subject), view)
    return with_checks(before, trtllm.engine_checks(subject, prompts, files, options.build.trust_remote_code), view)


def with_checks(before: Validated, checks: Iterable[Check], view: View) -> Validated:
    """A validation and further checks, of what was made since.

    Args:
        before: The validation.
        checks: What is added.
        view: Shown every check, as it is made.
    """
    from llmcompile.validation.checks import problems_of

    made = []
    for check in checks:
        view.checked(check)
        made.append(check)
    problems = [*before.problems, *problems_of(made)]
    comparisons = (*before.record.comparisons, *(item for check in made for item in _comparisons(check)))
    record = before.record.model_copy(update={"passed": len(problems) == 0, "comparisons": comparisons})
    return Validated(record, problems, before.quality)
