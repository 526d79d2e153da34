"""What a person, or a program, is told of a package: text and JSON, made of data alone."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from types import MappingProxyType
from typing import TYPE_CHECKING

from llmcompile.packaging.target import runtime_of

if TYPE_CHECKING:
    from llmcompile.packaging.target import Finding
    from llmcompile.pipeline.packaging import Packaging, Packed

Size = Callable[[float], str]
"""Bytes in words."""
_MARKS = MappingProxyType({"ok": "✓", "failed": "x", "note": "!", "skipped": "-"})


def kind(planned: Packaging) -> str:
    """What was made, in a few words."""
    runtime = runtime_of(planned.package, planned.request)
    behind = "" if runtime is None else f" (runtime {runtime})"
    return f"a package for {planned.target.title} {planned.request.version}{behind}"


def plan_lines(planned: Packaging, size: Size) -> list[str]:
    """What would be written, and what the lint says of it."""
    package = planned.package
    source = "a conversion" if planned.artifact is None else planned.artifact.kind
    return [
        f"{source} as {kind(planned)}",
        *(f"write  {path}" for path in sorted(package.texts)),
        *_taken(planned, size),
        *([f"pack   all of it into {package.archive}"] if package.archive is not None else []),
        *(f"note   {note}" for note in package.notes),
        *finding_lines(planned.findings, shown=("ok", "failed", "note", "skipped")),
    ]


def _taken(planned: Packaging, size: Size) -> Iterator[str]:
    links = planned.package.links
    if len(links) > 0:
        how = "copy  " if planned.options.copy else "share "
        yield f"{how} {len(links)} file{'' if len(links) == 1 else 's'} of the artifact, {size(planned.taken_bytes)}"


def finding_lines(findings: Sequence[Finding], *, shown: Sequence[str]) -> list[str]:
    """A line for each finding whose status is to be shown."""
    width = max((len(finding.rule) for finding in findings), default=0)
    lines = []
    for finding in findings:
        if finding.status not in shown:
            continue
        text = f" -[{_MARKS[finding.status]}] {finding.rule:<{width}}  {finding.subject}: {finding.found}"
        if finding.status != "ok" and finding.expected != "":
            text += f"; expected {finding.expected}"
        if finding.status in ("note", "skipped") and finding.hint != "":
            text += f" ({finding.hint})"
        lines.append(_printable(text))
    return lines


def _printable(text: str) -> str:
    """The text in one line, with control characters, which a foreign file may hold, spelt out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def finding_json(finding: Finding) -> dict[str, str]:
    """A finding for a program."""
    return asdict(finding)


def rows(planned: Packaging, packed: Packed, size: Size) -> Iterator[tuple[str, str]]:
    """The summary of what was written."""
    package, output = planned.package, str(planned.options.output)
    names = sorted(package.texts)
    listed = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    yield "written", listed
    if len(package.links) > 0:
        how = ", ".join(f"{count} {word}" for word, count in sorted(packed.taken.items()))
        yield "taken", f"{len(package.links)} files, {size(planned.taken_bytes)}: {how if how != '' else 'kept'}"
    if package.archive is not None:
        yield "archive", f"{package.archive}, {size(packed.manifest.files[0].bytes)}"
    outcomes = [finding.status for finding in planned.findings]
    counted = ", ".join(f"{outcomes.count(status)} {status}" for status in _MARKS if status in outcomes)
    yield "lint", f"{len({finding.rule for finding in planned.findings})} rules: {counted}"
    for note in package.notes:
        yield "note", note
    for command in (*package.next, f"llmcompile lint {shlex.quote(output)}"):
        yield "next", command.replace("{output}", shlex.quote(output))
