"""Engines from a checkpoint that is finished already: ours, made where there is no GPU, or anybody's."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcompile import __version__, environment
from llmcompile.architectures import lookup
from llmcompile.checkpoint.folder import Checkpoint, auxiliary_files, contained, open_checkpoint
from llmcompile.checkpoint.hub import locate
from llmcompile.errors import (
    CheckpointError,
    LlmCompileError,
    MismatchError,
    OptionsError,
    ResourceError,
    ToolchainError,
    UnsupportedError,
    collected,
    combined,
)
from llmcompile.exporters.trtllm import toolchain, versions
from llmcompile.exporters.trtllm.layout import FOLDER
from llmcompile.exporters.trtllm.options import TrtllmOptions
from llmcompile.packaging import manifest as records
from llmcompile.pipeline import checking, engine, validating
from llmcompile.pipeline.job import Report, View, output_errors
from llmcompile.writing import MANIFEST, WorkDirectory, hash_file

if TYPE_CHECKING:
    from llmcompile.exporters.trtllm.toolchain import Toolchain
    from llmcompile.validation import trtllm


@dataclass(frozen=True)
class Start:
    """A checkpoint to build an engine from.

    Attributes:
        options: What was asked.
        checkpoint: Folder of config.json and rank files, or of encoder/ and decoder/.
        config: config.json; the decoder's where there are two.
        label: Short name for people.
        ranks: Rank files.
        manifest: The record of the artifact it lies in, where it is one of ours.
        model: The Hugging Face model to validate against, where one was given.
        auxiliary: Tokenizer and configuration files to carry along: name -> path.
        toolchain: What builds the engine; None when none was found.
        errors: What stands in the way, all of it.
    """

    options: TrtllmOptions
    checkpoint: Path
    config: Mapping[str, Any]
    label: str
    ranks: int
    manifest: records.Manifest | None
    model: Checkpoint | None
    auxiliary: Mapping[str, Path]
    toolchain: Toolchain | None
    errors: tuple[LlmCompileError, ...]


def open_start(options: TrtllmOptions, report: Report) -> Start:
    """Find the checkpoint, its manifest, the model and the builder; reads no tensor data and writes nothing.

    Raises:
        CheckpointError: There is no checkpoint, a rank file is missing, or the model's own troubles.
        NetworkError: The hub failed.
    """
    assert options.from_checkpoint is not None
    build = options.build
    with report.stage("locate"):
        checkpoint = _folder(options.from_checkpoint)
        config = _config(checkpoint)
        manifest = _manifest_of(checkpoint)
        model = None
        if build.model != str(options.from_checkpoint):
            located = locate(build.model, revision=build.revision, token=build.token, cache_dir=build.cache_dir)
            model = open_checkpoint(located.root)
    errors: list[LlmCompileError] = []
    found = None
    with report.stage("toolchain"):
        try:
            found = engine.find_for(options, checkpoint, config)
        except ToolchainError as error:
            errors.append(error)
    errors += output_errors(build)
    errors += _contradictions(options, checkpoint, config, manifest, model)
    shortage = _disk_shortage(options, checkpoint)
    if shortage is not None:
        errors.append(shortage)
    return Start(
        options=options,
        checkpoint=checkpoint,
        config=config,
        label=_label(checkpoint.absolute()),
        ranks=toolchain.ranks_of(config),
        manifest=manifest,
        model=model,
        auxiliary=_auxiliary(checkpoint, manifest, model),
        toolchain=found,
        errors=tuple(errors),
    )


def _label(checkpoint: Path) -> str:
    """Its own name, or that of the artifact it lies in."""
    return checkpoint.name if checkpoint.name != FOLDER.strip("/") else checkpoint.parent.name


def _contradictions(
    options: TrtllmOptions,
    checkpoint: Path,
    config: Mapping[str, Any],
    manifest: records.Manifest | None,
    model: Checkpoint | None,
) -> Iterator[LlmCompileError]:
    """Options that the checkpoint contradicts, and what is not known of it."""
    root = checkpoint if manifest is None else checkpoint.parent
    here, there = Path(os.path.realpath(options.build.output)), Path(os.path.realpath(root))
    if here == there or here.is_relative_to(there) or there.is_relative_to(here):
        yield OptionsError(
            "OUTPUT", f"{options.build.output} is in the way of {root}", "another folder", "choose another OUTPUT"
        )
    mapping = config.get("mapping")
    for flag, asked, key in (("--tp", options.tp, "tp_size"), ("--pp", options.pp, "pp_size")):
        degree = mapping.get(key, 1) if isinstance(mapping, Mapping) else 1
        if asked not in (1, degree):
            yield OptionsError(flag, f"{asked} for a checkpoint of {degree}", str(degree), f"drop {flag}")
    has = toolchain.contents_of(config, integers=False)
    # Two recipes may be stored alike: one calibrated, one not.
    alike = has.recipe is not None and options.algorithm == versions.RECIPES[has.recipe].algorithm
    wanted = (
        ("--dtype", options.dtype, has.dtype),
        ("--quantization", has.recipe if alike else options.quantization, has.recipe),
        ("--kv-cache", options.kv_cache, has.kv_cache),
    )
    for flag, asked_for, found in wanted:
        if asked_for is not None and asked_for != found:
            text = f"{asked_for} for a checkpoint of {'none' if found is None else found}"
            yield OptionsError(flag, text, "what the checkpoint has", f"drop {flag}")
    validation = None if manifest is None else manifest.validation
    if validation is not None and not validation.passed:
        yield MismatchError(
            str(checkpoint.parent),
            "its manifest says that it disagrees with the model",
            "a checkpoint that passed validation",
            "convert the model again",
        )
    if options.build.validate and model is None and validation is None:
        found = "no manifest" if manifest is None else "a manifest without validation"
        yield OptionsError(
            "--from-checkpoint",
            f"{checkpoint} has {found}, and no --model was given to validate it against",
            "one of them",
            "add --model DIR|HUB_ID, or --no-validate",
        )
    against = (("--eval-text", options.eval_text), ("--atol", options.build.atol), ("--rtol", options.build.rtol))
    for name, value in against:
        if value is not None and model is None:
            yield OptionsError(name, "without a model to compare with", "--model", "add --model DIR|HUB_ID, or drop it")
    made_for = None if manifest is None else manifest.options.get("trtllm_version")
    algorithm = None if has.recipe is None else versions.RECIPES[has.recipe].algorithm
    if isinstance(made_for, str):
        problem = versions.check_portable(str(config.get("architecture")), algorithm, made_for, options.trtllm_version)
        if problem is not None:
            yield collected(UnsupportedError, [problem])


def _disk_shortage(options: TrtllmOptions, checkpoint: Path) -> ResourceError | None:
    """Why the disk will not do: an engine takes about what its weights take."""
    needed = sum(path.stat().st_size for path in checkpoint.rglob("*.safetensors"))
    free = environment.free_disk(options.build.output.absolute().parent)
    if needed <= free:
        return None
    return ResourceError(
        "disk", f"about {needed} bytes needed, {free} bytes free", "", "make room, or choose an OUTPUT on another disk"
    )


def _folder(given: Path) -> Path:
    # As it was given, so that messages can be typed; but "." has no name and no parent.
    given = given.absolute() if given.name in ("", "..") else given
    for folder in (given, given / FOLDER):
        if (folder / "config.json").is_file() and (folder / "rank0.safetensors").is_file():
            return folder
        if all((folder / part / "config.json").is_file() for part in toolchain.PARTS):
            return folder
    if (given / MANIFEST).is_file() and (given / "model.yaml").is_file():
        typed = shlex.quote(str(given))
        raise CheckpointError(
            str(given),
            "a folder for the LLM API, which has no engine",
            "a TensorRT-LLM checkpoint, or an OUTPUT that holds one",
            f"serve it with trtllm-serve {typed}, and the options in {typed}/model.yaml",
        )
    raise CheckpointError(
        str(given),
        "no config.json beside rank0.safetensors",
        "a TensorRT-LLM checkpoint, or an OUTPUT that holds one",
        "make one: llmcompile build trtllm --stop-after checkpoint --model DIR|HUB_ID OUTPUT",
    )


def _config(checkpoint: Path) -> Mapping[str, Any]:
    config: Mapping[str, Any] = {}
    for part in toolchain.parts_of(checkpoint):
        config = toolchain.read_config(part / "config.json")
        missing = [
            rank for rank in range(toolchain.ranks_of(config)) if not (part / f"rank{rank}.safetensors").is_file()
        ]
        if len(missing) > 0:
            names = ", ".join(f"rank{rank}.safetensors" for rank in missing)
            raise CheckpointError(str(part), f"no {names}", "a file for each rank of config.json", "copy it again")
    return config


def _manifest_of(checkpoint: Path) -> records.Manifest | None:
    path = checkpoint.parent / MANIFEST
    inside = checkpoint.absolute().name == FOLDER.strip("/")
    return records.read(path) if inside and path.is_file() else None


def _auxiliary(checkpoint: Path, manifest: records.Manifest | None, model: Checkpoint | None) -> Mapping[str, Path]:
    """Files a server needs beside the engine: the model's, or those the artifact carries already."""
    if model is not None:
        return {name: contained(model.root, name) for name in model.auxiliary}
    if manifest is None:
        return {}
    root = checkpoint.parent
    return {
        name: root / name
        for name in auxiliary_files([record.path for record in manifest.files if "/" not in record.path])
    }


def build_from(start: Start, view: View, report: Report) -> None:
    """Check the checkpoint, build its engine and publish it.

    Raises:
        LlmCompileError: What `start.errors` holds.
        MismatchError: The checkpoint is not what its manifest says, or disagrees with the model.
        ToolchainError: The builder failed.
        OutputError: OUTPUT cannot be made.
    """
    if len(start.errors) > 0:
        raise combined(start.errors)
    assert start.toolchain is not None
    options = start.options
    with report.stage("validate"):
        subject = _subject(start)
        validated = _validated(start, subject, view)
    with WorkDirectory(
        options.build.output, job=_identity(start), resume=options.build.resume, force=options.build.force
    ) as work:
        with report.stage("engine"), engine.clean_after(work):
            built = engine.build(options, start.toolchain, work, view, checkpoint=start.checkpoint)
            if subject is not None and validated is not None:
                validated = validating.of_engine(options, start.toolchain, subject, built, work.path, view, validated)
        for name, path in start.auxiliary.items():
            work.write_bytes(name, path.read_bytes())
        work.sweep()
        manifest = _manifest(start, work, None if validated is None else validated.record, built)
        work.write_bytes(MANIFEST, records.to_bytes(manifest))
        report.manifest = manifest
        if validated is not None and len(validated.problems) > 0:
            report.rejected = work.reject()
            raise collected(MismatchError, validated.problems)
        with report.stage("publish"):
            work.publish()
        report.output = options.build.output


def _subject(start: Start) -> trtllm.Subject | None:
    """What to compare the checkpoint with; None without a model, or where it is not to be compared."""
    if start.model is None or not start.options.build.validate:
        return None
    architecture = lookup(start.model.config, start.model.tensors)
    return validating.trtllm_subject(
        start.model,
        architecture,
        architecture.dims(start.model.config),
        folder=start.checkpoint,
        eval_text=start.options.eval_text,
        overflow_accepted=False,
    )


def _validated(start: Start, subject: trtllm.Subject | None, view: View) -> validating.Validated | None:
    """What is known of the checkpoint's numbers: its bytes against the manifest, and its outputs against the model.

    Raises:
        MismatchError: Either differs.
    """
    before = None
    if start.manifest is not None:
        _, problems = checking.verify(start.checkpoint.parent)
        if len(problems) > 0:
            raise collected(MismatchError, problems)
        if start.manifest.validation is not None:
            before = validating.Validated(start.manifest.validation, [])
    if subject is None:
        return before
    from llmcompile.validation import trtllm

    build = start.options.build
    validated = validating.run(trtllm, subject, start.ranks, view, build.atol, build.rtol, build.trust_remote_code)
    if len(validated.problems) > 0:
        raise collected(MismatchError, validated.problems)
    return validated


def _files(start: Start) -> tuple[records.FileRecord, ...]:
    names = ["config.json", *(f"rank{rank}.safetensors" for rank in range(start.ranks))]
    paths = [part / name for part in toolchain.parts_of(start.checkpoint) for name in names]
    return records.file_records((str(path.relative_to(start.checkpoint)), hash_file(path)) for path in paths)


def _identity(start: Start) -> dict[str, Any]:
    """What makes two runs the same job."""
    files = [path for part in toolchain.parts_of(start.checkpoint) for path in sorted(part.iterdir()) if path.is_file()]
    return {
        "llmcompile": __version__,
        "backend": "trtllm",
        "options": _recorded(start),
        "sources": [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in files],
    }


def _recorded(start: Start) -> dict[str, Any]:
    options = start.options
    return {
        "from_checkpoint": str(options.from_checkpoint),
        "builder": options.builder,
        "trtllm_version": options.trtllm_version,
        "engine": json.dumps([list(setting) for setting in options.engine]),
    }


def _manifest(
    start: Start, work: WorkDirectory, validation: records.Validation | None, built: records.Engine
) -> records.Manifest:
    before = start.manifest
    sizes = {
        axis: int(start.config[key])
        for axis, key in (("vocab", "vocab_size"), ("hidden", "hidden_size"), ("layers", "num_hidden_layers"))
        if isinstance(start.config.get(key), int)
    }
    unknown = records.Model(architecture=str(start.config.get("architecture")), sizes=sizes, facts={})
    return records.Manifest(
        tool=records.Tool(version=__version__),
        backend="trtllm",
        source=records.Source(
            model=start.label if before is None else before.source.model,
            revision=None if before is None else before.source.revision,
            commit=None if before is None else before.source.commit,
            format="trtllm",
            files=_files(start),
        ),
        model=unknown if before is None else before.model,
        options={**({} if before is None else before.options), **_recorded(start)},
        versions=environment.versions(["numpy"]),
        files=records.file_records(item for item in sorted(work.finished.items()) if item[0] != MANIFEST),
        deviations=(),
        ignored=(),
        overflowed={} if before is None else before.overflowed,
        notes=() if before is None else before.notes,
        validation=validation,
        engine=built,
        neuron=None,
        calibration=None if before is None else before.calibration,
    )
