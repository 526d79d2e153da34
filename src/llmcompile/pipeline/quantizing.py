"""Recipes side by side: every checkpoint is built and run, one after the other, and what it costs is written down."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

from llmcompile import __version__, environment
from llmcompile.checkpoint.folder import Checkpoint
from llmcompile.checkpoint.hub import Located
from llmcompile.errors import (
    LlmCompileError,
    MismatchError,
    OptionsError,
    PlanError,
    Problem,
    ResourceError,
    UnsupportedError,
    collected,
    combined,
)
from llmcompile.exporters.trtllm import versions, without_engine
from llmcompile.exporters.trtllm.comparison import QuantizeOptions
from llmcompile.exporters.trtllm.options import WEIGHT_ONLY, TrtllmOptions, calibration_flags
from llmcompile.packaging import manifest as records
from llmcompile.packaging import recipe_report as reports
from llmcompile.pipeline import calibrating, making, plotting, validating
from llmcompile.pipeline.job import (
    Job,
    Report,
    View,
    begin,
    open_source,
    output_errors,
    prepare_opened,
)
from llmcompile.ranges import Measurement, Ranges
from llmcompile.writing import MANIFEST, WorkDirectory, Written, hash_file, work_path

REPORT, PAGE = "quantize.json", "quantize.md"
_CHECKPOINTS, _OUTCOMES = "checkpoints/", "outcomes/"
"""Folders in OUTPUT: of checkpoints that are kept, and, while the work lasts, of what came of those that are done."""
_UNQUANTIZED = "unquantized"
_DIGITS = 5
_TYPES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}


class RecipeView(View, Protocol):
    """What shows a person a comparison."""

    def comparing(self, recipe: str, number: int, total: int, *, done: bool) -> None:
        """A recipe's turn has come; `done`: an earlier run measured it."""


@dataclass(frozen=True)
class Candidate:
    """A checkpoint to build.

    Attributes:
        recipe: A name of `versions.RECIPES`; None for the unquantized one.
        job: The build.
        weights_bytes: Of its weights on the GPU.
    """

    recipe: str | None
    job: Job
    weights_bytes: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return _UNQUANTIZED if self.recipe is None else self.recipe

    @property
    def deferred(self) -> bool:
        """Whether trtllm-build quantizes the weights."""
        return isinstance(self.job.options, TrtllmOptions) and _deferred(self.job.options)


@dataclass(frozen=True)
class Comparison:
    """Recipes that are fully known and not built yet.

    Attributes:
        options: What was asked.
        located: Where the model is.
        checkpoint: Its files and headers.
        candidates: What is to be built, the unquantized checkpoint first, where there is one.
        left_out: Recipes that were not asked for by name and that this model cannot have.
        disk: Bytes to be written at most at a time.
        errors: What stands in the way, all of it.
    """

    options: QuantizeOptions
    located: Located
    checkpoint: Checkpoint
    candidates: tuple[Candidate, ...]
    left_out: tuple[reports.LeftOut, ...]
    disk: int
    errors: tuple[LlmCompileError, ...]


@dataclass(frozen=True)
class Compared:
    """What came of a comparison.

    Attributes:
        report: As it is stored.
        seconds: Recipe, or "unquantized", -> what it took; an interrupted one, since it went on.
        problems: Of the recipes that failed.
    """

    report: reports.RecipeReport
    seconds: Mapping[str, float]
    problems: list[Problem] = field(default_factory=list)


class _Done(BaseModel):
    """What a finished recipe leaves for a resumed run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    outcome: reports.Outcome
    source: records.Source
    seconds: float
    calibration: reports.Data | None
    remarks: tuple[str, ...]


def prepare_comparison(options: QuantizeOptions, report: Report) -> Comparison:
    """Locate the model, read its headers and plan every checkpoint; reads no tensor data and writes nothing.

    Raises:
        CheckpointError: The checkpoint is absent, damaged or lies.
        UnsupportedError: No family answers to it.
        NetworkError: The hub failed.
        ToolchainError: matplotlib is absent, and a plot wanted.
    """
    if options.plot:
        plotting.check_installed()
    with report.stage("locate"):
        located, checkpoint = open_source(options.build)
    errors: list[LlmCompileError] = list(output_errors(options.build))
    candidates: list[Candidate] = []
    left_out: list[reports.LeftOut] = []
    refused: list[LlmCompileError] = []
    for recipe in (None, *(versions.RECIPES if len(options.recipes) == 0 else options.recipes)):
        found = _candidate(recipe, options, located, checkpoint, report)
        if isinstance(found, Candidate):
            candidates.append(found)
            errors += found.job.errors
        elif recipe is None:
            # The model itself is refused: every recipe would be, in the same words.
            errors += found
            break
        elif recipe in options.recipes:
            errors += [_in_own_words(error) for error in found]
        else:
            refused += found
            first = found[0].problems[0]
            others = any(name in first.expected for name in versions.RECIPES)  # they are in the table
            expected = "" if first.expected == "" or others else f"; expected {first.expected}"
            left_out.append(
                reports.LeftOut(recipe=recipe, reason=f"{first.found.removeprefix(f'{recipe} ')}{expected}")
            )
    if len(errors) == 0 and not any(candidate.recipe is not None for candidate in candidates):
        errors += refused
    if len(errors) == 0 and all(each.job.layout.measurement is None for each in candidates):
        for flag in calibration_flags(options):
            needless = "given for recipes none of which needs data"
            hint = f"drop {flag}, or add one of {', '.join(versions.CALIBRATED)}"
            errors.append(OptionsError(flag, needless, "a recipe that is calibrated", hint))
    sizes = [candidate.job.resources.disk for candidate in candidates]
    disk = sum(sizes) if options.keep else max(sizes, default=0)
    free = environment.free_disk(options.build.output.absolute().parent)
    if options.keep and disk > free:
        hint = "drop --keep: one checkpoint at a time is on the disk then"
        errors.append(ResourceError("disk", f"{disk} bytes needed, {free} bytes free", hint=hint))
    return Comparison(options, located, checkpoint, tuple(candidates), tuple(left_out), disk, tuple(_unique(errors)))


def refuse_comparison(comparison: Comparison) -> None:
    """Raise everything that stands in the way, if there is anything, as an error of the first kind of it."""
    if len(comparison.errors) > 0:
        raise combined(comparison.errors)


def _in_own_words(error: LlmCompileError) -> LlmCompileError:
    """What a build says of --quantization, said of --recipes."""
    ours = [
        replace(
            problem,
            subject="--recipes" if problem.subject == "--quantization" else problem.subject,
            hint=problem.hint.replace("--quantization", "--recipes"),
        )
        for problem in error.problems
    ]
    return collected(type(error), ours)


def _unique(errors: Sequence[LlmCompileError]) -> Iterator[LlmCompileError]:
    """Each once: what is wrong with the data is wrong with every recipe's."""
    told: set[Problem] = set()
    for error in errors:
        if not told.issuperset(error.problems):
            yield error
        told.update(error.problems)


def _candidate(
    recipe: str | None, options: QuantizeOptions, located: Located, checkpoint: Checkpoint, report: Report
) -> Candidate | list[LlmCompileError]:
    """A recipe's build, or why the model cannot have it."""
    asked = options.build
    output = work_path(asked.output) / _CHECKPOINTS / (_UNQUANTIZED if recipe is None else recipe)
    # What a killed run has published inside the work directory and not noted is built again.
    build = replace(asked, output=output, force=True)
    try:
        made = options.build_options(recipe, build, calibrated=False)
        job = prepare_opened(made, located, checkpoint, report, scored=recipe is None)
        if recipe is not None and job.layout.measurement is not None:
            made = options.build_options(recipe, build, calibrated=True)
            job = prepare_opened(made, located, checkpoint, report)
    except (OptionsError, UnsupportedError) as error:
        return [error]
    against: list[LlmCompileError] = [error for error in job.errors if isinstance(error, UnsupportedError | PlanError)]
    if len(against) == 0 and len(job.plan.unpackable) > 0:
        against.append(collected(PlanError, job.plan.unpackable))
    if len(against) > 0:
        return against
    if recipe is None and str(job.dims.facts.get("quantized", "")) != "":
        found = f"{located.label} comes quantized, with {job.dims.facts['quantized']}"
        return [UnsupportedError("config.json: quantization_config", found, "float weights, to quantize", _FLOATS)]
    return Candidate(recipe, job, _weights_bytes(job, made, report))


_FLOATS = "start from the unquantized checkpoint; of this one build trtllm says the accuracy"


def _deferred(options: TrtllmOptions) -> bool:
    return options.target == "engine" and options.quantization in WEIGHT_ONLY and options.wo_layout == "deferred"


def _weights_bytes(job: Job, options: TrtllmOptions, report: Report) -> int:
    """Bytes of the weights on the GPU: of a checkpoint that trtllm-build quantizes, those of one that is quantized."""
    if not _deferred(options):
        return job.plan.output_bytes
    laid_out = prepare_opened(replace(options, wo_layout="sm80"), job.located, job.checkpoint, report)
    return laid_out.plan.output_bytes


def compare_recipes(comparison: Comparison, view: RecipeView, report: Report) -> Compared:
    """Build and run every checkpoint, and publish what came of it.

    A recipe that fails its validation is in the result, not raised.

    Raises:
        OutputError: OUTPUT cannot be made.
        CheckpointError: The checkpoint changed or cannot be read.
    """
    refuse_comparison(comparison)
    options = comparison.options
    build = options.build
    done: dict[str, _Done] = {}
    measured: dict[Measurement, Ranges] = {}
    with report.stage("import"):
        # Else the first recipe's time would be that of importing torch.
        from llmcompile.validation import trtllm  # noqa: F401
    with WorkDirectory(build.output, job=_identity(comparison), resume=build.resume, force=build.force) as work:
        for number, candidate in enumerate(comparison.candidates, start=1):
            file = f"{_OUTCOMES}{candidate.name}.json"
            finished = file in work.finished
            view.comparing(candidate.name, number, len(comparison.candidates), done=finished)
            if not finished:
                found = _made(candidate, view, work, measured, keep=options.keep)
                work.write_bytes(file, found.model_dump_json().encode())
                # What one recipe's run has let go of, some of it in cycles, shall not add to the next one's.
                gc.collect()
                environment.trim_memory()
            done[candidate.name] = _Done.model_validate_json((work.path / file).read_bytes())
        recipes = _report(comparison, done)
        work.write_bytes(REPORT, reports.to_bytes(recipes))
        with report.stage("plot"):
            drawn = plotting.draw(recipes) if options.plot else {}
        for file, content in drawn.items():
            work.write_bytes(file, content)
        page = reports.markdown(recipes, plotting.FILES[0] if len(drawn) > 0 else None)
        work.write_bytes(PAGE, page.encode())
        for name in done:
            work.forget(f"{_OUTCOMES}{name}.json")
        work.sweep()
        manifest = _manifest(comparison, work, done, recipes)
        work.write_bytes(MANIFEST, records.to_bytes(manifest))
        with report.stage("publish"):
            work.publish()
    report.output = build.output
    seconds = {name: each.seconds for name, each in done.items()}
    for name, spent in seconds.items():
        report.stages[name] = spent
    return Compared(recipes, seconds, list(_failures(recipes, options)))


def _failures(recipes: reports.RecipeReport, options: QuantizeOptions) -> Iterator[Problem]:
    for outcome in recipes.outcomes:
        if outcome.passed:
            continue
        name = reports.name_of(outcome, recipes)
        quantized = "" if outcome.recipe is None else f" --quantization {outcome.recipe}"
        way = "--target llmapi" if options.target == "llmapi" else "--stop-after checkpoint"
        again = f"llmcompile build trtllm --model {options.build.model}{quantized} {way} OUT"
        hint = f"the other recipes are in {options.build.output / PAGE}; for the checkpoint itself: {again}"
        if outcome.checkpoint is not None:
            hint = f"the checkpoint is kept at {options.build.output / outcome.checkpoint} for inspection"
        yield Problem(f"{name}: validation", outcome.problems[0], "what the recipe says", hint)


def _made(
    candidate: Candidate, view: RecipeView, work: WorkDirectory, measured: dict[Measurement, Ranges], *, keep: bool
) -> _Done:
    """Build one checkpoint, note what it is, and take it away again.

    Args:
        candidate: What is built.
        view: Shown what goes on.
        work: The work directory of the comparison.
        measured: What recipes before have measured, for those that ask for the same; this one's is added.
        keep: Leave the checkpoint.
    """
    job, made = candidate.job, begin()
    problems: tuple[Problem, ...] = ()
    # nvidia-modelopt measures by the recipe.
    shared = isinstance(job.options, TrtllmOptions) and job.options.calibrator == TrtllmOptions.calibrator
    asked = job.layout.measurement if shared else None
    try:
        making.build(job, view, made, ranges=None if asked is None else measured.get(asked))
    except MismatchError as error:
        problems = error.problems
    if asked is not None and made.ranges is not None:
        measured[asked] = made.ranges
    folder = made.output if made.output is not None else made.rejected
    manifest, kept = made.manifest, None
    if folder is not None and keep:
        assert manifest is not None
        kept = str(folder.relative_to(work.path))
        for record in manifest.files:
            work.record(f"{kept}/{record.path}", Written(record.bytes, record.sha256))
        work.record(f"{kept}/{MANIFEST}", hash_file(folder / MANIFEST))
    elif folder is not None:
        shutil.rmtree(folder)
    else:
        shutil.rmtree(work_path(job.options.build.output))
    files = [] if manifest is None else [record for record in manifest.files if record.path.endswith(".safetensors")]
    recipe = None if candidate.recipe is None else versions.RECIPES[candidate.recipe]
    outcome = reports.Outcome(
        recipe=candidate.recipe,
        algorithm=None if recipe is None else recipe.algorithm,
        passed=len(problems) == 0,
        problems=tuple(str(problem) for problem in problems),
        checkpoint_bytes=sum(record.bytes for record in files) if len(files) > 0 else job.plan.output_bytes,
        weights_bytes=candidate.weights_bytes,
        share=None,
        calibrated=job.layout.measurement is not None,
        oldest_gpu=_oldest_gpu(job),
        first_release=versions.text_of(_first_release(job, candidate.recipe)),
        quality=None if made.quality is None else validating.quality_record(made.quality, digits=_DIGITS),
        checkpoint=kept,
        notes=job.layout.notes,
    )
    seconds = round(sum(made.stages.values()), 3)
    source = _source(job) if manifest is None else manifest.source
    remarks = () if manifest is None or manifest.validation is None else manifest.validation.notes
    return _Done(outcome=outcome, source=source, seconds=seconds, calibration=_data(manifest), remarks=remarks)


def _first_release(job: Job, recipe: str | None) -> versions.Release:
    """Of TensorRT-LLM, that loads this model by this recipe."""
    assert isinstance(job.options, TrtllmOptions)
    if job.options.target == "llmapi":
        return versions.FIRST_LLMAPI if recipe is None else without_engine.first_release(recipe)
    if recipe is None:
        return versions.FIRST_SUPPORTED
    return versions.EXPERTS[recipe] if "experts" in job.dims.sizes else versions.RECIPES[recipe].first


def _oldest_gpu(job: Job) -> int:
    """The first that the release, the recipe, its cache and the type of the rest can all run on."""
    options = job.options
    assert isinstance(options, TrtllmOptions)
    return next(
        sm
        for sm in versions.CAPABILITIES
        if len(
            versions.check_gpu(
                sm,
                options.trtllm_version,
                recipe=options.quantization,
                dtype=_TYPES[job.layout.dtype.name],
                wo_layout=options.wo_layout,
                kv_cache=options.kv_cache,
            )
        )
        == 0
    )


def _data(manifest: records.Manifest | None) -> reports.Data | None:
    if manifest is None or manifest.calibration is None:
        return None
    found = manifest.calibration
    return reports.Data(data=found.data, sha256=found.sha256, samples=found.samples, tokens=found.tokens)


def _source(job: Job) -> records.Source:
    """The model, where nothing of it was read to its end."""
    return records.Source(
        model=job.options.build.model,
        revision=job.located.revision,
        commit=job.located.commit,
        format="safetensors" if job.checkpoint.format == "safetensors" else "pickle",
        files=(),
    )


def _recorded(comparison: Comparison) -> dict[str, bool | int | float | str | None]:
    """The options that decide what is in OUTPUT."""
    options = comparison.options
    return {
        "recipes": ",".join(candidate.name for candidate in comparison.candidates),
        "dtype": _dtype(comparison),
        "kv_cache": options.kv_cache,
        "group_size": options.group_size,
        "calib_column": options.calib_column,
        "calibrator": options.calibrator,
        "calib_size": options.calib_size,
        "calib_seq_len": options.calib_seq_len,
        "target": options.target,
        "trtllm_version": options.trtllm_version,
        "keep": options.keep,
        "plot": options.plot,
        "allow_overflow": options.build.allow_overflow,
        "trust_remote_code": options.build.trust_remote_code,
    }


def _dtype(comparison: Comparison) -> str:
    return _TYPES[comparison.candidates[0].job.layout.dtype.name]


def _identity(comparison: Comparison) -> dict[str, Any]:
    """What makes two runs the same comparison."""
    options = comparison.options
    of_model = making.identity(comparison.candidates[0].job)
    used = [candidate.job.data for candidate in comparison.candidates]
    calibrated = [candidate.job for candidate in comparison.candidates if candidate.job.layout.measurement is not None]
    return {
        "llmcompile": __version__,
        "backend": "quantize",
        "options": _recorded(comparison),
        "sources": of_model["sources"],
        "auxiliary": of_model["auxiliary"],
        "calibrator_version": next((calibrating.calibrator(job)[1] for job in calibrated), None),
        "calib_dataset": next((_digest(data.path) for data in used if data is not None), None),
        "eval_text": _digest(options.eval_text),
    }


def _digest(path: Path | None) -> str | None:
    return None if path is None else hash_file(path).sha256


def _report(comparison: Comparison, done: Mapping[str, _Done]) -> reports.RecipeReport:
    job = comparison.candidates[0].job
    whole = next((each.outcome.weights_bytes for each in done.values() if each.outcome.recipe is None), None)
    outcomes = [
        each.outcome.model_copy(
            update={"share": None if whole is None else float(f"{each.outcome.weights_bytes / whole:.4g}")}
        )
        for each in done.values()
    ]
    quality = next((outcome.quality for outcome in outcomes if outcome.quality is not None), None)
    data = next((each.calibration for each in done.values() if each.calibration is not None), None)
    options = comparison.options
    remarks = [remark for each in list(done.values())[:1] for remark in each.remarks]
    if quality is not None:
        remarks += reports.remarks(
            quality,
            vocabulary=job.dims.sizes["vocab"],
            calibrated=any(outcome.calibrated for outcome in outcomes),
            built_in=options.calib_dataset is None and options.eval_text is None,
            dtype=_dtype(comparison),
            kv_cache=options.kv_cache,
            deferred=[candidate.name for candidate in comparison.candidates if candidate.deferred],
        )
    return reports.RecipeReport(
        tool=records.Tool(version=__version__),
        model=comparison.located.label,
        architecture=job.architecture.name,
        dtype=_dtype(comparison),
        kv_cache=options.kv_cache,
        group_size=options.group_size,
        target=options.target,
        trtllm_version=options.trtllm_version,
        vocabulary=job.dims.sizes["vocab"],
        text=None if quality is None else quality.text,
        tokens=0 if quality is None else quality.tokens,
        perplexity=None if quality is None else quality.perplexity_model,
        calibration=data,
        outcomes=tuple(outcomes),
        left_out=comparison.left_out,
        standing=reports.standing(outcomes),
        remarks=tuple(remarks),
    )


def _manifest(
    comparison: Comparison, work: WorkDirectory, done: Mapping[str, _Done], recipes: reports.RecipeReport
) -> records.ReportManifest:
    job = comparison.candidates[0].job
    packages = ["numpy", "safetensors", "tokenizers", "torch", "transformers"]
    return records.ReportManifest(
        tool=records.Tool(version=__version__),
        report="quantize",
        source=max((each.source for each in done.values()), key=lambda source: len(source.files)),
        model=records.Model(architecture=job.architecture.name, sizes=job.dims.sizes, facts=job.dims.facts),
        options=_recorded(comparison),
        versions=environment.versions([*packages, *(["matplotlib"] if comparison.options.plot else [])]),
        files=records.file_records(item for item in sorted(work.finished.items()) if item[0] != MANIFEST),
        notes=recipes.remarks,
    )
