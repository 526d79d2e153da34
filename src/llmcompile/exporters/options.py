"""What every build command may be asked, resolved: flag, then environment, then the default written here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llmcompile.errors import OptionsError

_LONGEST_NAME = 220
"""Bytes of OUTPUT's name; file systems allow 255, and ".rejected-2" and the like are appended."""


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """Options common to all build commands.

    Attributes:
        model: Local folder, or hub id like org/name or org/name@revision.
        output: Directory to create.
        revision: Branch, tag or commit of a hub id.
        validate: Whether the artifact is run against the model before it is released.
        atol: Absolute tolerance of the validation; None for one that fits the element type.
        rtol: Relative tolerance; None likewise.
        dry_run: Print the plan and write nothing.
        resume: Continue an interrupted run.
        force: Replace an existing artifact, at the end.
        max_memory: Bytes the process may hold; None for what the plan needs on this machine.
        workers: Threads that rearrange and write; None for one more than the cores, four at most.
        allow_overflow: Accept values that become infinite in the cast.
        trust_remote_code: Let transformers run the checkpoint's own Python code during validation.
        cache_dir: Where models of the hub are kept; None for huggingface_hub's own place.
        package: Servers to package the finished artifact for, each NAME or NAME@VERSION.
        token: Hub token; never stored, printed or logged.
    """

    model: str
    output: Path
    revision: str | None = None
    validate: bool = True
    atol: float | None = None
    rtol: float | None = None
    dry_run: bool = False
    resume: bool = False
    force: bool = False
    max_memory: int | None = None
    workers: int | None = None
    allow_overflow: bool = False
    trust_remote_code: bool = False
    cache_dir: Path | None = None
    package: tuple[str, ...] = ()
    token: str | None = None

    def __post_init__(self) -> None:
        if self.model == "":
            raise OptionsError("--model", "empty", "a local folder or a hub id", "check the variable it comes from")
        if self.output.name in ("", ".."):
            raise OptionsError("OUTPUT", str(self.output), "the name of a new directory", f"{self.output / 'artifact'}")
        if len(self.output.name.encode(errors="replace")) > _LONGEST_NAME:
            raise OptionsError("OUTPUT", f"{len(self.output.name)} characters", f"at most {_LONGEST_NAME} bytes")
        for name, value in (("--atol", self.atol), ("--rtol", self.rtol)):
            if value is not None and not 0 <= value < float("inf"):
                raise OptionsError(name, str(value), "a finite number, zero or more")
        if not self.validate and (self.atol is not None or self.rtol is not None):
            raise OptionsError("--no-validate", "with --atol or --rtol", "one or the other", "drop --no-validate")

    def __repr__(self) -> str:
        return f"BuildOptions(model={self.model!r}, output={str(self.output)!r}, ...)"
