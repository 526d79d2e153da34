"""The engine stage: find the vendor's builder before any work, run it on a finished checkpoint, record what it made."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

from llmcompile.checkpoint.headers import safetensors_header
from llmcompile.errors import ToolchainError, collected
from llmcompile.exporters.backends import Options
from llmcompile.exporters.spec import Layout
from llmcompile.exporters.trtllm import toolchain, versions
from llmcompile.exporters.trtllm.layout import FOLDER
from llmcompile.exporters.trtllm.options import TrtllmOptions
from llmcompile.packaging import manifest as records
from llmcompile.writing import WorkDirectory, hash_file

if TYPE_CHECKING:
    from llmcompile.exporters.trtllm.toolchain import Contents, Toolchain
    from llmcompile.pipeline.job import View

ENGINE = "engine"
_SCRATCH = ".building"
"""Where the builder runs, and leaves what it likes."""


def wanted(options: Options) -> TypeGuard[TrtllmOptions]:
    """Whether an engine is asked for."""
    return isinstance(options, TrtllmOptions) and options.target == "engine" and options.stop_after is None


def find(options: Options, layout: Layout) -> Toolchain | None:
    """What will build the engine; None when none is asked for.

    Raises:
        ToolchainError: There is no TensorRT-LLM, or it or the GPU does not suit; every reason.
    """
    if not wanted(options):
        return None
    return _found(options, replace(contents(layout), wo_layout=options.wo_layout), None)


def contents(layout: Layout) -> Contents:
    """What a checkpoint that is not written yet will demand."""
    text = next(text for name, text in layout.texts.items() if name in ("config.json", "decoder/config.json"))
    return toolchain.contents_of(json.loads(text), integers=False)


def _found(options: TrtllmOptions, contents: Contents, checkpoint: Path | None) -> Toolchain:
    found = toolchain.find(
        options.toolchain_python,
        options.trtllm_build,
        version=options.trtllm_version,
        checkpoint=str(options.build.output) if checkpoint is None else str(checkpoint),
        engine="" if checkpoint is None else str(options.build.output / ENGINE),
        flags=versions.arguments(options.engine, options.trtllm_version),
    )
    problems = toolchain.check(found, options, contents)
    if len(problems) > 0:
        raise collected(ToolchainError, problems)
    return found


def disk_bytes(options: Options, checkpoint_bytes: int) -> int:
    """Disk an engine takes, about: its weights are those of the checkpoint."""
    return checkpoint_bytes if wanted(options) else 0


def find_for(options: TrtllmOptions, checkpoint: Path, config: Mapping[str, object]) -> Toolchain:
    """What will build the engine of a finished checkpoint, by its config.json and the header of its first rank.

    Raises:
        ToolchainError: As for `find`.
        CheckpointError: The rank file is damaged.
    """
    first = toolchain.parts_of(checkpoint)[-1] / "rank0.safetensors"
    stored = safetensors_header(first, first.name)
    integers = any(tensor.name.endswith(".per_channel_scale") for tensor in stored)
    return _found(options, toolchain.contents_of(config, integers=integers), checkpoint)


def build(
    options: TrtllmOptions,
    found: Toolchain,
    work: WorkDirectory,
    view: View,
    *,
    checkpoint: Path | None = None,
) -> records.Engine:
    """Build the engine of a checkpoint into the work directory and note its files.

    Args:
        options: What was asked.
        found: What `find` gave.
        work: Where the artifact is made.
        view: Shown every line of the builder's log.
        checkpoint: The checkpoint; None for the one in the work directory.

    Raises:
        ToolchainError: The builder failed or did not make what it should.
    """
    source = work.path / FOLDER if checkpoint is None else checkpoint
    target, scratch = work.path / ENGINE, work.path / _SCRATCH
    discard(work)
    target.mkdir()
    scratch.mkdir(exist_ok=True)
    toolchain.build_engine(found, options, checkpoint=source, output=target, folder=scratch, on_line=view.building)
    facts = [
        toolchain.check_engine_dir(
            target / part.relative_to(source), toolchain.read_config(part / "config.json"), found
        )
        for part in toolchain.parts_of(source)
    ]
    if (scratch / toolchain.CACHE).exists():
        # Kernel timings: the next build for this GPU may begin with them.
        os.replace(scratch / toolchain.CACHE, work.path / toolchain.CACHE)
        work.record(toolchain.CACHE, hash_file(work.path / toolchain.CACHE))
    for path in sorted(path for path in target.rglob("*") if path.is_file()):
        work.record(str(path.relative_to(work.path)), hash_file(path))
    first = facts[0]
    return records.Engine(
        tensorrt_llm=first.trtllm_version,
        tensorrt=first.tensorrt_version,
        gpu=first.gpu,
        compute_capability=None if first.sm is None else f"{first.sm // 10}.{first.sm % 10}",
        driver=first.driver,
        ranks=first.ranks,
        bytes=sum(fact.size_bytes for fact in facts),
        flags=tuple(f"{name} {value}".strip() for name, value in options.engine),
    )


def discard(work: WorkDirectory) -> None:
    """Remove the engine that an earlier run began in our own work directory: engines are not resumed.

    The builder's folder stays, since the next attempt begins with its timing cache.
    """
    if (work.path / ENGINE).exists():
        shutil.rmtree(work.path / ENGINE)
    for file in [file for file in work.finished if file == toolchain.CACHE or file.startswith(f"{ENGINE}/")]:
        work.forget(file)


@contextmanager
def clean_after(work: WorkDirectory) -> Iterator[None]:
    """Remove what the builder and the runtime left in the folder they ran in, when they succeeded.

    After a failure it stays in the work directory: the next attempt begins with its timing cache.
    """
    yield
    if (work.path / _SCRATCH).exists():
        shutil.rmtree(work.path / _SCRATCH)


def leave_out_checkpoint(options: TrtllmOptions, work: WorkDirectory) -> None:
    """Remove the checkpoint from the work directory, once the engine is there, unless it is to be kept."""
    if options.keep_checkpoint:
        return
    folder = work.path / FOLDER
    if folder.exists():
        shutil.rmtree(folder)
    for file in [file for file in work.finished if file.startswith(FOLDER)]:
        work.forget(file)


def why_not_run(options: TrtllmOptions, found: Toolchain, built: records.Engine, work: Path) -> str | None:
    """Why the engine cannot be run here to compare its logits; None when it can."""
    if (work / ENGINE / toolchain.PARTS[0]).exists():
        return "encoder and decoder engines are not run"
    gathering = ("--gather_context_logits", "--gather_all_token_logits")
    if not any(name in gathering and value != "disable" for name, value in options.engine):
        return "it was built without --gather-context-logits"
    problem = toolchain.check_run(found, built.ranks)
    return None if problem is None else f"{problem}; {problem.hint}"


def run(found: Toolchain, work: Path, prompts: Sequence[Sequence[int]], end_id: int, view: View) -> tuple[Path, ...]:
    """Run the engine on prompts; one .npy of logits (tokens, vocabulary) for each, in the folder `clean_after` removes.

    Raises:
        ToolchainError: The runtime failed.
    """
    return toolchain.run_engine(
        found,
        engine=work / ENGINE,
        prompts=prompts,
        end_id=end_id,
        logits=work / _SCRATCH / "logits",
        folder=work / _SCRATCH,
        timeout_seconds=None,
        on_line=view.building,
    )
