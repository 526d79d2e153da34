"""What worker.py and runner.py are asked, and what they answer: one question a process."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmcompile.exporters.processes import Child, Line, OnLine, Stages, stage

_ERROR = re.compile(r"\[TRT\] \[E\] (?:\[[^\]]*\])?\s*(.*)|^(the (?:parser|builder) .*)")


@dataclass(frozen=True)
class Answer:
    """How a process ended.

    Attributes:
        code: Its exit code, or less than zero the signal that ended it.
        event: Its last event: "result", or "failed" in its own words; None where it came to neither.
        reasons: What TensorRT said was wrong, each once.
        last: The last lines of its log.
    """

    code: int
    event: Mapping[str, Any] | None
    reasons: tuple[str, ...]
    last: tuple[str, ...]

    @property
    def result(self) -> Mapping[str, Any] | None:
        """What was asked for; None where it failed."""
        return self.event if self.code == 0 and self.event is not None and self.event["event"] == "result" else None


def ask(
    program: Path,
    request: Mapping[str, Any],
    folder: Path,
    on_line: OnLine,
    *,
    timeout_seconds: float | None,
    stages: Stages = (),
) -> Answer:
    """Run a program with a request as its argument.

    Raises:
        TimeoutError: It did not end in time.
        ToolchainError: It cannot be started.
    """
    last_event: dict[str, Any] | None = None
    said: list[str] = []
    with Child([sys.executable, str(program), json.dumps(request)], folder) as child:
        for text in child.lines(timeout_seconds):
            event = _event(text)
            if event is not None and event["event"] in ("result", "failed"):
                last_event = event
                continue
            match = _ERROR.search(text)
            if match is not None:
                said.append(next(group for group in match.groups() if group is not None).strip())
            on_line(Line(text if event is None else str(event.get("text", "")), stage(stages, text)))
        code = child.ending()
        last = tuple(child.last)
    return Answer(code, last_event, tuple(dict.fromkeys(text for text in said if text != "")), last)


def _event(text: str) -> dict[str, Any] | None:
    if not text.startswith('{"event":'):
        return None
    try:
        found: dict[str, Any] = json.loads(text)
    except ValueError:
        return None
    return found
