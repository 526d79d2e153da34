"""Every failure a user can meet: one class per cause, one exit code each.

    LlmCompileError
    ├── OptionsError        2   flags contradict each other
    ├── CheckpointError     3   the source is absent, truncated or inconsistent
    ├── UnsupportedError    4   no such architecture, or not on this backend
    ├── PlanError           5   checkpoint and layout do not cover each other
    ├── ToolchainError      6   a vendor tool or library is absent, too old, or failed
    ├── MismatchError       7   the artifact disagrees with the reference
    ├── OutputError         8   the target exists, the disk is full, a rename failed
    ├── BatchError          9   some jobs of a batch failed
    ├── ResourceError      10   the plan needs more memory or disk than there is
    └── NetworkError       11   a hub or store failed; worth retrying

0 is success, 1 our own bug (traceback shown), 130 an interrupt, 143 a SIGTERM.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: what it is about, what was found and expected, what to type next."""

    subject: str
    found: str
    expected: str = ""
    hint: str = ""

    def __str__(self) -> str:
        text = f"{self.subject}: {self.found}"
        return f"{text}; expected {self.expected}" if self.expected != "" else text


class LlmCompileError(Exception):
    """Base of all failures that are not our bug; `exit_code` is what the process ends with.

    Args:
        subject: The file, tensor, flag or tool the message is about, by name.
        found: What was there.
        expected: What should have been there, with the arithmetic.
        hint: What to type or change next.
    """

    exit_code: ClassVar[int]
    category: ClassVar[str]

    def __init__(self, subject: str, found: str, expected: str = "", hint: str = "") -> None:
        self.problems: tuple[Problem, ...] = (Problem(subject, found, expected, hint),)
        super().__init__(subject, found, expected, hint)

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


class OptionsError(LlmCompileError):
    """Flags contradict each other."""

    exit_code = 2
    category = "options"


class CheckpointError(LlmCompileError):
    """The source is absent, truncated or inconsistent."""

    exit_code = 3
    category = "checkpoint"


class UnsupportedError(LlmCompileError):
    """No such architecture, or not on this backend."""

    exit_code = 4
    category = "unsupported"


class PlanError(LlmCompileError):
    """Checkpoint and layout do not cover each other; carries every problem found."""

    exit_code = 5
    category = "plan"


class ToolchainError(LlmCompileError):
    """A vendor tool or library is absent, too old, or failed."""

    exit_code = 6
    category = "toolchain"


class MismatchError(LlmCompileError):
    """The artifact disagrees with the reference."""

    exit_code = 7
    category = "mismatch"


class OutputError(LlmCompileError):
    """The target exists, the disk is full, or a rename failed."""

    exit_code = 8
    category = "output"


class BatchError(LlmCompileError):
    """Some jobs of a batch failed."""

    exit_code = 9
    category = "batch"


class ResourceError(LlmCompileError):
    """The plan needs more memory or disk than there is."""

    exit_code = 10
    category = "resources"


class NetworkError(LlmCompileError):
    """A hub or store failed; worth retrying."""

    exit_code = 11
    category = "network"


ERRORS: tuple[type[LlmCompileError], ...] = (
    OptionsError,
    CheckpointError,
    UnsupportedError,
    PlanError,
    ToolchainError,
    MismatchError,
    OutputError,
    BatchError,
    ResourceError,
    NetworkError,
)


def collected(kind: type[LlmCompileError], problems: Sequence[Problem]) -> LlmCompileError:
    """An error of `kind` that carries all of `problems`, in order; at least one."""
    first = problems[0]
    error = kind(first.subject, first.found, first.expected, first.hint)
    error.problems = tuple(problems)
    return error


def combined(errors: Sequence[LlmCompileError]) -> LlmCompileError:
    """An error of the first one's kind that carries the problems of all; at least one."""
    return collected(type(errors[0]), [problem for error in errors for problem in error.problems])
