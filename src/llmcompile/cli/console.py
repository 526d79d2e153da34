"""The only file that prints: results on stdout, for people or as one JSON report; everything else on stderr."""

from __future__ import annotations

import contextlib
import io
import json as jsonlib
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console as RichConsole
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from llmcompile import __version__
from llmcompile.cli.stopping import SIGINT_CODE, SIGTERM_CODE, TerminatedError
from llmcompile.errors import LlmCompileError, MismatchError, OptionsError, Problem, collected

if TYPE_CHECKING:
    from llmcompile.exporters.ft.options import FtOptions
    from llmcompile.packaging.manifest import Manifest, Validation
    from llmcompile.pipeline import Job, Report
    from llmcompile.validation.ft import Check

REPORT_SCHEMA_VERSION = 1
_SHOWN_PROBLEMS = 20
_LINE_SECONDS = 5.0


class Console:
    """One command's conversation with the person, or the program, that ran it.

    A context manager: leaving it with one of our errors, an interrupt or a SIGTERM prints what to do next and ends the
    process with the right exit code. Anything else is our bug and passes through with its traceback.
    """

    def __init__(self, *, command: str, json: bool, quiet: bool, log_format: str) -> None:
        from llmcompile import pipeline

        self.command = command
        self.json = json
        self.quiet = quiet
        self.log_json = log_format == "json"
        self.report: Report = pipeline.begin()
        self.job: Job | None = None
        self._dry_run = False
        self._resumable: Path | None = None
        self._verified: dict[str, Any] | None = None
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                # A check mark or an odd file name must not end a run on a terminal that cannot show it.
                stream.reconfigure(errors="backslashreplace")
        self._out = RichConsole(highlight=False, soft_wrap=True)
        self._err = RichConsole(stderr=True, highlight=False, soft_wrap=True)

    def __enter__(self) -> Console:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, LlmCompileError):
            self._fail(error)
            raise typer.Exit(error.exit_code) from error
        if isinstance(error, KeyboardInterrupt | TerminatedError):
            code = SIGINT_CODE if isinstance(error, KeyboardInterrupt) else SIGTERM_CODE
            self._interrupted(code)
            raise typer.Exit(code) from error

    # What a command does

    def run(self, options: FtOptions) -> None:
        """Plan and, unless this is a dry run, build."""
        from llmcompile import pipeline
        from llmcompile.writing import work_path

        self._dry_run = options.build.dry_run
        self.job = pipeline.prepare(options, self.report)
        if options.build.dry_run:
            self._show_plan(self.job)
            pipeline.refuse(self.job)
            return
        pipeline.refuse(self.job)
        self.planned(self.job)
        self._resumable = work_path(options.build.output)
        pipeline.build(self.job, self, self.report)
        self._show_summary(self.job)

    def verify(
        self,
        artifact: Path,
        *,
        deep: bool,
        model: str | None,
        revision: str | None,
        token: str | None,
        atol: float | None,
        rtol: float | None,
    ) -> None:
        """Check an artifact's bytes and, with `deep`, its numbers."""
        from llmcompile import pipeline
        from llmcompile.writing import MANIFEST

        manifest: Manifest | None = None
        problems: list[Problem] = []
        if not deep or (artifact / MANIFEST).exists():
            with self.report.stage("bytes"):
                manifest, problems = pipeline.verify(artifact)
            self.say("bytes", _bytes_line(manifest, problems), {"problems": len(problems)})
        self._verified = {"artifact": str(artifact), "bytes": None if manifest is None else len(problems) == 0}
        if deep:
            source, commit = (model, revision) if model is not None or manifest is None else _source(manifest)
            if source is None:
                raise OptionsError("--deep", "no manifest in the artifact", "--model", "add --model DIR|HUB_ID")
            with self.report.stage("numbers"):
                validated = pipeline.verify_numbers(
                    artifact, source, self, revision=commit, token=token, atol=atol, rtol=rtol
                )
            problems = [*problems, *validated.problems]
            self._verified["numbers"] = validated.record.model_dump(mode="json")
        if len(problems) > 0:
            raise collected(MismatchError, problems)
        said = "is what its manifest says" if manifest is not None else ""
        agrees = f"agrees with {source}" if deep else ""
        words = " and ".join(word for word in (said, agrees) if word != "")
        self._result(f"[green]✓[/] {escape(str(artifact))} {escape(words)}")

    # What the pipeline shows

    def planned(self, job: Job) -> None:
        """Say in a few lines what is about to happen."""
        for line in _plan_lines(job)[:4]:
            self.say("plan", line)

    @contextmanager
    def writing(self, total_bytes: int, done_bytes: int) -> Iterator[Callable[[int, str], None]]:
        """Progress of writing: a bar on a terminal, now and then a line elsewhere."""
        if done_bytes > 0:
            self.say("resume", f"resuming: {_size(done_bytes)} of {_size(total_bytes)} verified and kept")
        if self._err.is_terminal and not self.quiet and not self.log_json:
            with _bar(self._err, total_bytes, done_bytes) as advance:
                yield advance
            return
        yield _Lines(self, total_bytes, done_bytes).advance

    def validating(self, subject: str, ranks: int) -> None:
        """Announce the validation."""
        self.say("validate", f"Validating {subject} ({ranks} rank{'' if ranks == 1 else 's'})...")

    def checked(self, check: Check | str) -> None:
        """Show one comparison as it is made."""
        if isinstance(check, str):
            self.say("skipped", f" -[-] {check}")
            return
        from llmcompile.validation.compare import lines

        self.say("check", f" {check.input}, against {check.reference}:")
        for line in lines(check.comparison):
            self.say("check", f" {line}", {"passed": check.comparison.passed})

    def say(self, event: str, text: str, fields: Mapping[str, Any] | None = None) -> None:
        """A message on stderr."""
        if self.quiet:
            return
        # Whoever read stderr may be gone; that is no reason to stop.
        with contextlib.suppress(BrokenPipeError):
            if self.log_json:
                self._log("info", event, text, fields)
            else:
                self._err.print(_marked(text))

    def _log(self, level: str, event: str, text: str, fields: Mapping[str, Any] | None = None) -> None:
        stamp = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        record = {"ts": stamp, "level": level, "event": event, "message": text, **({} if fields is None else fields)}
        self._err.print(jsonlib.dumps(record, ensure_ascii=True), markup=False)

    # How a command ends

    def _fail(self, error: LlmCompileError) -> None:
        for problem in error.problems[:_SHOWN_PROBLEMS]:
            if self.log_json:
                self._log("error", error.category, str(problem), _fields(problem))
            else:
                self._err.print(f"[bold red]error:[/] {escape(_indented(str(problem)))}")
        rest = len(error.problems) - _SHOWN_PROBLEMS
        if rest > 0 and not self.log_json:
            self._err.print(f"       and {rest} more; --json lists all")
        if not self.log_json:
            for hint in dict.fromkeys(problem.hint for problem in error.problems if problem.hint != ""):
                self._err.print(f"[bold]hint:[/]  {escape(_indented(hint))}")
        self._print_json(error.exit_code, error.category, error.problems)

    def _interrupted(self, code: int) -> None:
        if self._resumable is not None and self._resumable.exists():
            text = f"stopped; what is finished is kept in {self._resumable}"
            hint = f"continue with: {_again(sys.argv)}"
        else:
            text, hint = "stopped; nothing was written", "run the same command again"
        if self.log_json:
            self._log("error", "interrupted", text, {"hint": hint})
        else:
            self._err.print(f"\n[bold]{escape(text)}[/]\n[bold]hint:[/]  {escape(hint)}")
        self._print_json(code, "interrupted", [Problem("run", text, "", hint)])

    def _print_json(self, code: int, category: str, problems: Sequence[Problem]) -> None:
        if self.json:
            document = self._document(code) | {
                "error": {"category": category, "problems": [_fields(problem) for problem in problems]}
            }
            self._out.print(jsonlib.dumps(document, ensure_ascii=True), markup=False)

    def _document(self, code: int) -> dict[str, Any]:
        from llmcompile import environment

        report = self.report
        manifest = report.manifest
        return {
            "schema_version": REPORT_SCHEMA_VERSION,
            "llmcompile": __version__,
            "command": self.command,
            "exit_code": code,
            "started": report.started,
            "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "stages": [{"name": name, "seconds": round(seconds, 3)} for name, seconds in report.stages.items()],
            "peak_memory_bytes": environment.peak_memory(),
            "output": None if report.output is None else str(report.output),
            "rejected": None if report.rejected is None else str(report.rejected),
            "plan": None if self.job is None else _plan_json(self.job),
            "manifest": None if manifest is None else manifest.model_dump(mode="json"),
            "verified": self._verified,
        }

    def _result(self, text: str) -> None:
        if self.json:
            self._out.print(jsonlib.dumps(self._document(0), ensure_ascii=True), markup=False)
        elif not self.quiet:
            self._out.print(text)

    # What a person sees

    def _show_plan(self, job: Job) -> None:
        if self.json:
            if len(job.errors) == 0:
                self._out.print(jsonlib.dumps(self._document(0), ensure_ascii=True), markup=False)
            return
        if self.quiet:
            return
        for line in _plan_lines(job):
            self._out.print(_marked(line))
        self._out.print(_facts_table(job))
        for reason, count in _ignored_counts(job).items():
            self._out.print(f"  not read: {count} tensor{'' if count == 1 else 's'} ({escape(reason)})")
        for note in job.layout.notes:
            self._out.print(f"  note: {escape(note)}")
        for pattern, reason in job.layout.deviations.items():
            self._out.print(f"  differs from the vendor's converter: {escape(pattern)}: {escape(reason)}")

    def _show_summary(self, job: Job) -> None:
        manifest = self.report.manifest
        assert manifest is not None
        if self.json:
            self._out.print(jsonlib.dumps(self._document(0), ensure_ascii=True), markup=False)
            return
        if self.quiet:
            return
        from llmcompile import environment

        stages = self.report.stages
        total = sum(record.bytes for record in manifest.files)
        write, rate = stages.get("write", 0.0), job.plan.output_bytes / max(stages.get("write", 0.0), 1e-9)
        output = str(job.options.build.output)
        rows = {
            "model": f"{job.located.label} · {_shape(job)}",
            "artifact": f"{job.layout.folder} · tp {job.layout.ranks} · {job.layout.dtype.name} · "
            f"{len(manifest.files) + 1} files, {_size(total)}",
            "validated": _validated_line(manifest.validation),
            "differs": _deviation_line(len(manifest.deviations)),
            "took": f"{sum(stages.values()):.1f} s (writing {write:.1f} s at {_size(rate)}/s"
            + (f", validating {stages['validate']:.1f} s" if "validate" in stages else "")
            + f"), peak memory {_size(environment.peak_memory())}",
            "next": f"llmcompile verify {shlex.quote(output)}",
        }
        self._out.print(f"\n[bold green]✓[/] [bold]{escape(output)}[/] is ready for FasterTransformer")
        for name, text in rows.items():
            if text != "":
                self._out.print(f"  [dim]{name:<9}[/] {escape(text)}")
        for note in manifest.notes:
            self._out.print(f"  [dim]{'note':<9}[/] {escape(note)}")


class _Lines:
    """Progress as plain lines, at most one every few seconds."""

    def __init__(self, console: Console, total_bytes: int, done_bytes: int) -> None:
        self._console = console
        self._total = total_bytes
        self._start_bytes = self._done = done_bytes
        self._started = self._last = time.monotonic()
        self._lock = threading.Lock()

    def advance(self, size_bytes: int, tensor: str) -> None:
        """Count a block, and say so when the last line is old."""
        with self._lock:
            self._done += size_bytes
            now = time.monotonic()
            if now - self._last < _LINE_SECONDS and self._done < self._total:
                return
            self._last = now
            rate = (self._done - self._start_bytes) / max(now - self._started, 1e-9)
            left = (self._total - self._done) / max(rate, 1e-9)
            share = self._done / max(self._total, 1)
            text = (
                f"written {_size(self._done)} of {_size(self._total)} ({share:.0%}), {_size(rate)}/s, {left:.0f} s left"
            )
            fields = {"done_bytes": self._done, "total_bytes": self._total, "tensor": tensor}
            self._console.say("write", text if self._done >= self._total else f"{text}, at {tensor}", fields)


@contextmanager
def _bar(console: RichConsole, total_bytes: int, done_bytes: int) -> Iterator[Callable[[int, str], None]]:
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("writing"),
        BarColumn(bar_width=24),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[tensor]}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("writing", total=total_bytes, completed=done_bytes, tensor="")

        def advance(size_bytes: int, tensor: str) -> None:
            progress.update(task, advance=size_bytes, tensor=tensor)

        yield advance


def _marked(text: str) -> Text:
    """The text, with its check marks coloured."""
    marked = Text(text)
    marked.highlight_regex(r"\[✓\]", "green")
    marked.highlight_regex(r"\[x\]", "bold red")
    return marked


def _indented(text: str) -> str:
    """Further lines under the first; control characters, which a name may hold, spelt out."""
    lines = text.split("\n")
    shown = ["".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line) for line in lines]
    return "\n       ".join(shown)


def _fields(problem: Problem) -> dict[str, str]:
    return {
        "subject": problem.subject,
        "found": problem.found,
        "expected": problem.expected,
        "hint": problem.hint,
    }


def _again(arguments: Sequence[str]) -> str:
    """The command line with --resume and without a token."""
    kept: list[str] = []
    skip = False
    for argument in arguments[1:]:
        if skip or argument.startswith("--token="):
            skip = False
        elif argument == "--token":
            skip = True
        elif argument != "--resume":
            kept.append(argument)
    return shlex.join([Path(arguments[0]).name.replace("__main__.py", "llmcompile"), *kept, "--resume"])


def _size(size_bytes: float) -> str:
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError


def _shape(job: Job) -> str:
    sizes = job.dims.sizes
    layers = f"{sizes['layers']} layers" + (f" + {sizes['decoder_layers']}" if "decoder_layers" in sizes else "")
    heads = f"{sizes['heads']} heads" + (
        f" ({sizes['kv_heads']} KV)" if sizes.get("kv_heads", sizes["heads"]) != sizes["heads"] else ""
    )
    return f"{job.architecture.name} · {layers} · hidden {sizes['hidden']} · {heads}"


def _plan_lines(job: Job) -> list[str]:
    plan, needs = job.plan, job.resources
    source = sum(file.size_bytes for file in job.checkpoint.files)
    lines = [
        f"{job.located.label}: {_shape(job)}",
        f"read   {len(plan.tensors_read)} of {len(job.checkpoint.tensors)} tensors, {_size(source)} of "
        f"{job.checkpoint.format} in {len(job.checkpoint.files)} file{'' if len(job.checkpoint.files) == 1 else 's'}",
        f"write  {job.layout.folder}: {len(plan.files)} tensor files, {_size(plan.output_bytes)} of "
        f"{job.layout.dtype.name} for {job.layout.ranks} rank{'' if job.layout.ranks == 1 else 's'}; "
        f"{job.files} files in all",
        f"memory {_size(needs.memory)} to convert with {needs.workers} workers"
        + (f", about {_size(needs.memory_validation)} to validate" if needs.memory_validation > 0 else "")
        + f", of {_size(needs.memory_available)}; disk {_size(needs.disk)} of {_size(needs.disk_available)} free",
    ]
    return lines


def _facts_table(job: Job) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    facts = {**job.dims.sizes, **job.dims.facts}
    cells = [f"[dim]{escape(name)}[/] {escape(str(value))}" for name, value in facts.items()]
    for start in range(0, len(cells), 4):
        row = cells[start : start + 4]
        table.add_row("  ", *row, *[""] * (4 - len(row)))
    return table


def _ignored_counts(job: Job) -> dict[str, int]:
    counts: dict[str, int] = {}
    for reason in job.plan.ignored.values():
        counts[reason] = counts.get(reason, 0) + 1
    return counts


def _plan_json(job: Job) -> dict[str, Any]:
    needs = job.resources
    return {
        "model": job.located.label,
        "architecture": job.architecture.name,
        "sizes": dict(job.dims.sizes),
        "facts": dict(job.dims.facts),
        "dtype": job.layout.dtype.name,
        "ranks": job.layout.ranks,
        "tensors_read": len(job.plan.tensors_read),
        "ignored": dict(job.plan.ignored),
        "files": {job.layout.folder + file: size for file, size in job.plan.files.items()},
        "output_bytes": job.plan.output_bytes,
        "memory_bytes": needs.memory,
        "memory_validation_bytes": needs.memory_validation,
        "memory_available_bytes": needs.memory_available,
        "disk_bytes": needs.disk,
        "disk_available_bytes": needs.disk_available,
        "workers": needs.workers,
        "deviations": dict(job.layout.deviations),
        "notes": list(job.layout.notes),
        "problems": [
            {"category": error.category, **_fields(problem)} for error in job.errors for problem in error.problems
        ],
    }


def _validated_line(validation: Validation | None) -> str:
    """The worst error of each output against the model as stored, and how far that is from the model itself."""
    if validation is None:
        return "no (--no-validate)"
    inputs = " and ".join(dict.fromkeys(comparison.input for comparison in validation.comparisons))
    texts = []
    for output in dict.fromkeys(comparison.output for comparison in validation.comparisons):
        of_model = [c for c in validation.comparisons if c.output == output and c.reference.startswith("the model")]
        exact = [c for c in of_model if c.reference != "the model in float32"]
        decisive = max(exact if len(exact) > 0 else of_model, key=lambda c: c.details["max_abs"])
        texts.append(f"{output} max abs {decisive.details['max_abs']:.1e} (atol {decisive.details['atol']:.1e})")
        if len(exact) > 0:
            moved = max(c.details["max_abs"] for c in of_model if c.reference == "the model in float32")
            texts[-1] += f", {moved:.1e} from float32"
    return f"{'; '.join(texts)}, on {inputs}"


def _deviation_line(count: int) -> str:
    if count == 0:
        return ""
    return f"{count} file{'' if count == 1 else 's'} from the vendor's converter, with reasons in llmcompile.json"


def _source(manifest: Manifest) -> tuple[str, str | None]:
    """The model an artifact was made from, at the very commit."""
    source = manifest.source
    return source.model.partition("@")[0] if source.commit is not None else source.model, source.commit


def _bytes_line(manifest: Manifest, problems: Sequence[Problem]) -> str:
    total = sum(record.bytes for record in manifest.files)
    mark = "✓" if len(problems) == 0 else "x"
    return f" -[{mark}] {len(manifest.files)} files, {_size(total)}, against the manifest's sha256"
