"""The only file that prints: results on stdout, for people or as one JSON report; everything else on stderr."""

from __future__ import annotations

import contextlib
import io
import json as jsonlib
import os
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
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
from llmcompile.cli import neuron_lines, quantize_lines, rtx_lines, serving_lines
from llmcompile.cli.stopping import SIGINT_CODE, SIGTERM_CODE, TerminatedError
from llmcompile.errors import LlmCompileError, MismatchError, OptionsError, Problem, collected, combined
from llmcompile.packaging.target import Foreseen

if TYPE_CHECKING:
    from rich.status import Status

    from llmcompile.exporters.backends import Options
    from llmcompile.exporters.neuron.options import NeuronOptions
    from llmcompile.exporters.options import BuildOptions
    from llmcompile.exporters.processes import Line
    from llmcompile.exporters.rtx.options import RtxOptions
    from llmcompile.exporters.trtllm.comparison import QuantizeOptions
    from llmcompile.exporters.trtllm.options import TrtllmOptions
    from llmcompile.exporters.trtllm.toolchain import Toolchain
    from llmcompile.packaging.manifest import Engine, Manifest, PackageManifest, ReportManifest, Validation
    from llmcompile.packaging.target import Kind
    from llmcompile.pipeline import Job, Report, Start
    from llmcompile.pipeline.neuron import Export, Lowering
    from llmcompile.pipeline.packaging import PackageOptions, Packaging, Packed, Shortcut
    from llmcompile.pipeline.quantizing import Compared, Comparison
    from llmcompile.pipeline.rtx import Build
    from llmcompile.validation.checks import Finding

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
        self.start: Start | None = None
        self.export_plan: Export | None = None
        self.lowering_plan: Lowering | None = None
        self.rtx_plan: Build | None = None
        self.comparison: Comparison | None = None
        self.compared: Compared | None = None
        self._live: Status | None = None
        self._progress: str | None = None
        self._dry_run = False
        self._resumable: Path | None = None
        self._verified: dict[str, Any] | None = None
        self._tasks: dict[str, list[str]] | None = None
        self._linted: list[dict[str, str]] | None = None
        self._packages: list[PackageManifest] = []
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
        self._settle()
        if isinstance(error, LlmCompileError):
            self._fail(error)
            raise typer.Exit(error.exit_code) from error
        if isinstance(error, KeyboardInterrupt | TerminatedError):
            code = SIGINT_CODE if isinstance(error, KeyboardInterrupt) else SIGTERM_CODE
            self._interrupted(code)
            raise typer.Exit(code) from error

    # What a command does

    def run(self, options: Options) -> None:
        """Plan and, unless this is a dry run, build."""
        from llmcompile import pipeline
        from llmcompile.exporters.trtllm.options import TrtllmOptions
        from llmcompile.writing import work_path

        self._dry_run = options.build.dry_run
        if isinstance(options, TrtllmOptions) and options.from_checkpoint is not None:
            self._refuse_packages(options.build, Foreseen("trtllm-engine", options.trtllm_version))
            self._run_from(options)
            return
        self._refuse_packages(options.build, _foreseen(options))
        self.job = pipeline.prepare(options, self.report)
        if options.build.dry_run:
            self._show_plan(self.job)
            pipeline.refuse(self.job)
            return
        pipeline.refuse(self.job)
        self.planned(self.job)
        self._resumable = work_path(options.build.output)
        pipeline.build(self.job, self, self.report)
        self._settle()
        self._finish(_job_rows(self.job, self.report), _job_kind(self.job), options.build)

    def _run_from(self, options: TrtllmOptions) -> None:
        """The same for a finished checkpoint."""
        from llmcompile import pipeline
        from llmcompile.writing import work_path

        start = self.start = pipeline.open_start(options, self.report)
        if options.build.dry_run:
            self._show_lines(_start_lines(start), failed=start.errors != ())
        if start.errors != ():
            raise combined(start.errors)
        if options.build.dry_run:
            return
        for line in _start_lines(start):
            self.say("plan", line)
        self._resumable = work_path(options.build.output)
        pipeline.build_from(start, self, self.report)
        self._settle()
        kind = f"ready for TensorRT-LLM {options.trtllm_version}"
        self._finish(_start_rows(start, self.report), kind, options.build)

    def export(self, options: NeuronOptions) -> None:
        """Plan and, unless this is a dry run, lower, validate and compile for Neuron."""
        from llmcompile.pipeline import neuron
        from llmcompile.writing import work_path

        self._dry_run = options.build.dry_run
        if options.from_lowered is not None:
            self._finish_lowered(options)
            return
        plan = self.export_plan = neuron.prepare_export(options, self.report)
        self._refuse_packages(
            options.build, Foreseen("neuron-lowered" if options.stop_after is not None else _layout(plan.layout))
        )
        lines = neuron_lines.plan_lines(plan, _size)
        if options.build.dry_run:
            self._show_lines(lines, failed=plan.errors != ())
            neuron.refuse_export(plan)
            return
        neuron.refuse_export(plan)
        for line in lines:
            self.say("plan", line)
        self._resumable = work_path(options.build.output)
        neuron.export(plan, self, self.report)
        self._settle()
        self._show_neuron(options)

    def _finish_lowered(self, options: NeuronOptions) -> None:
        """The same for graphs that are lowered."""
        from llmcompile.pipeline import neuron
        from llmcompile.writing import work_path

        plan = self.lowering_plan = neuron.open_lowered(options, self.report)
        assert plan.manifest.neuron is not None
        self._refuse_packages(options.build, Foreseen(_layout(plan.manifest.neuron.layout)))
        lines = neuron_lines.lowering_lines(plan, _size)
        if options.build.dry_run:
            self._show_lines(lines, failed=plan.errors != ())
            neuron.refuse_lowered(plan)
            return
        neuron.refuse_lowered(plan)
        for line in lines:
            self.say("plan", line)
        self._resumable = work_path(options.build.output)
        neuron.finish(plan, self, self.report)
        self._settle()
        self._show_neuron(options)

    def _show_neuron(self, options: NeuronOptions) -> None:
        manifest = self.report.manifest
        assert manifest is not None
        assert manifest.neuron is not None
        rows = neuron_lines.rows(manifest, self.report, _took(self.report), _size)
        self._finish(rows, neuron_lines.kind(manifest.neuron), options.build)

    def build_rtx(self, options: RtxOptions) -> None:
        """Plan and, unless this is a dry run, export, validate and build for TensorRT for RTX."""
        from llmcompile.pipeline import rtx
        from llmcompile.writing import work_path

        self._dry_run = options.build.dry_run
        plan = self.rtx_plan = rtx.prepare_build(options, self.report)
        lines = rtx_lines.plan_lines(plan, _size)
        if options.build.dry_run:
            self._show_lines(lines, failed=plan.errors != ())
            rtx.refuse_build(plan)
            return
        rtx.refuse_build(plan)
        for line in lines:
            self.say("plan", line)
        self._resumable = work_path(options.build.output)
        rtx.make(plan, self, self.report)
        self._settle()
        manifest = self.report.manifest
        assert manifest is not None
        assert manifest.rtx is not None
        rows = rtx_lines.rows(manifest, self.report, _took(self.report), _size)
        self._finish(rows, rtx_lines.kind(manifest.rtx), options.build)

    def compare_recipes(self, options: QuantizeOptions) -> None:
        """Plan and, unless this is a dry run, build and run every recipe."""
        from llmcompile.pipeline import quantizing
        from llmcompile.writing import work_path

        self._dry_run = options.build.dry_run
        plan = self.comparison = quantizing.prepare_comparison(options, self.report)
        lines = quantize_lines.plan_lines(plan, _size)
        if options.build.dry_run:
            self._show_lines(lines, failed=plan.errors != ())
            quantizing.refuse_comparison(plan)
            return
        quantizing.refuse_comparison(plan)
        for line in lines:
            self.say("plan", line)
        self._resumable = work_path(options.build.output)
        compared = self.compared = quantizing.compare_recipes(plan, self, self.report)
        self._settle()
        self._show_recipes(compared, options)
        if compared.problems != []:
            raise collected(MismatchError, compared.problems)
        if self.json:
            self._out.print(jsonlib.dumps(self._document(0), ensure_ascii=True), markup=False)

    def _show_recipes(self, compared: Compared, options: QuantizeOptions) -> None:
        if self.json or self.quiet:
            return
        self._out.print()
        for number, line in enumerate(quantize_lines.table_lines(compared)):
            self._out.print(Text(line, style="bold" if number < 2 else ""))
        output = str(self.report.output)
        mark = "[bold green]✓[/]" if compared.problems == [] else "[bold yellow]![/]"
        recipes = sum(outcome.recipe is not None for outcome in compared.report.outcomes)
        what = f"{recipes} recipe{'' if recipes == 1 else 's'} of {compared.report.model}, side by side"
        self._out.print(f"\n{mark} [bold]{escape(output)}[/] has {escape(what)}")
        for name, text in quantize_lines.rows(compared.report, options):
            self._out.print(f"  [dim]{name:<9}[/] {escape(text)}")

    def list_tasks(self, model: str, *, revision: str | None, token: str | None, cache_dir: Path | None) -> None:
        """Print what a model can be exported for, and by which way."""
        from llmcompile.pipeline import neuron

        found = neuron.list_tasks(model, revision=revision, token=token, cache_dir=cache_dir)
        self._tasks = {task: list(ways) for task, ways in found.items()}
        if self.json:
            self._out.print(jsonlib.dumps(self._document(0), ensure_ascii=True), markup=False)
            return
        for line in neuron_lines.task_lines(model, found):
            self._out.print(line, markup=False)

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
        from llmcompile.packaging import manifest as records
        from llmcompile.writing import MANIFEST

        for flag, value in (("--model", model), ("--atol", atol), ("--rtol", rtol)):
            if value is not None and not deep:
                raise OptionsError(
                    flag, "without --deep, which compares numbers", "both", f"add --deep, or drop {flag}"
                )
        manifest: Manifest | None = None
        problems: list[Problem] = []
        if not deep or (artifact / MANIFEST).exists():
            with self.report.stage("bytes"):
                record, problems = pipeline.verify(artifact)
            self.say("bytes", _bytes_line(record, problems), {"problems": len(problems)})
            if isinstance(record, records.ReportManifest):
                self._verified_report(artifact, record, problems, deep=deep)
                return
            if isinstance(record, records.PackageManifest):
                self._verified_package(artifact, record, problems, deep=deep)
                return
            manifest = record
            self.say("artifact", _artifact_line(manifest))
        self._verified = {"artifact": str(artifact), "bytes": None if manifest is None else len(problems) == 0}
        if deep:
            source, commit = (model, revision) if model is not None or manifest is None else _source(manifest)
            if source is None:
                raise OptionsError("--deep", "no manifest in the artifact", "--model", "add --model DIR|HUB_ID")
            if model is None and manifest is not None and commit is None and not Path(source).exists():
                found = f"made from {source}, a local folder that is not here"
                raise OptionsError("--deep", found, "the model", "add --model DIR|HUB_ID")
            with self.report.stage("numbers"):
                validated = pipeline.verify_numbers(
                    artifact, source, self, revision=commit, token=token, atol=atol, rtol=rtol
                )
            numbers = validated.problems
            if model is not None and manifest is not None and len(numbers) > 0 and numbers[0].hint == "":
                hint = f"check --model: the manifest says that the artifact was made from {manifest.source.model}"
                numbers = [replace(numbers[0], hint=hint), *numbers[1:]]
            problems = [*problems, *numbers]
            self._verified["numbers"] = validated.record.model_dump(mode="json")
        if len(problems) > 0:
            raise collected(MismatchError, problems)
        said = "is what its manifest says" if manifest is not None else ""
        agrees = f"agrees with {source}" if deep else ""
        if deep and validated.record.comparisons == ():
            agrees = f"has the weights of {source}; its graphs were not executed"
        words = " and ".join(word for word in (said, agrees) if word != "")
        unproved = manifest is not None and manifest.validation is None and not deep
        if unproved:
            words += "; its numbers were never validated (add --deep)"
        self._result(f"[green]✓[/] {escape(str(artifact))} {escape(words)}")

    def _verified_package(
        self, path: Path, manifest: PackageManifest, problems: Sequence[Problem], *, deep: bool
    ) -> None:
        """The end of `verify` for a package, whose bytes are all there is to check."""
        if deep:
            found = f"a package for {manifest.package.target}"
            raise OptionsError("--deep", found, "an artifact", f"verify its files: llmcompile verify {path}")
        self._verified = {"artifact": str(path), "bytes": len(problems) == 0}
        words = [f"package for {manifest.package.target} {manifest.package.version}", manifest.package.kind]
        self.say("artifact", f"     {' · '.join(words)}")
        if manifest.artifact is not None:
            self.say("artifact", _artifact_line(manifest.artifact))
        if len(problems) > 0:
            raise collected(MismatchError, problems)
        self._result(f"[green]✓[/] {escape(str(path))} is what its manifest says")

    def _verified_report(
        self, path: Path, manifest: ReportManifest, problems: Sequence[Problem], *, deep: bool
    ) -> None:
        """The end of `verify` for what a command found out, whose bytes are all there is to check."""
        if deep:
            found = f"what llmcompile {manifest.report} found out"
            raise OptionsError("--deep", found, "an artifact", f"verify its files: llmcompile verify {path}")
        self._verified = {"artifact": str(path), "bytes": len(problems) == 0}
        self.say("artifact", f"     llmcompile {manifest.report} · {manifest.source.model}")
        if len(problems) > 0:
            raise collected(MismatchError, problems)
        self._result(f"[green]✓[/] {escape(str(path))} is what its manifest says")

    def package(
        self,
        target: str,
        artifact: Path | None,
        output: Path,
        settings: Any,
        *,
        convert: tuple[str, Path] | None,
        target_version: str | None,
        runtime_version: str | None,
        copy: bool,
        force: bool,
        resume: bool,
        dry_run: bool,
    ) -> None:
        """Plan a package, lint it and, unless this is a dry run, write it."""
        from llmcompile.pipeline import packaging

        self._dry_run = dry_run
        options = packaging.PackageOptions(
            target=target,
            artifact=artifact,
            output=output,
            settings=settings,
            convert=convert,
            target_version=target_version,
            runtime_version=runtime_version,
            copy=copy,
            force=force,
            resume=resume,
        )
        self._pack(options)
        if self.json and not dry_run:
            self._out.print(jsonlib.dumps(self._document(0), ensure_ascii=True), markup=False)

    def _refuse_packages(self, build: BuildOptions, foreseen: Foreseen) -> None:
        """Stop before the work, where a package asked for with it cannot be."""
        from llmcompile.pipeline import packaging

        errors = packaging.shortcut_errors(_shortcuts(build), foreseen, build.output, force=build.force)
        if len(errors) > 0:
            raise combined(errors)

    def _packages_of(self, build: BuildOptions) -> None:
        """Package what was built, as --package asks."""
        from llmcompile.pipeline import packaging

        for asked in _shortcuts(build):
            output = self.report.output
            try:
                self._pack(packaging.shortcut_options(asked, build.output, force=build.force))
            except LlmCompileError as error:
                last = error.problems[-1]
                hint = f"{build.output} is finished; package it by hand: {packaging.by_hand(asked, build.output)}"
                hints = "\n".join(part for part in (last.hint, hint) if part != "")
                raise collected(type(error), [*error.problems[:-1], replace(last, hint=hints)]) from error
            self.report.output = output

    def _pack(self, options: PackageOptions) -> None:
        from llmcompile.pipeline import packaging
        from llmcompile.writing import work_path

        planned = packaging.prepare_package(options, self.report)
        self._linted = [serving_lines.finding_json(finding) for finding in planned.findings]
        lines = serving_lines.plan_lines(planned, _size)
        if self._dry_run:
            self._show_lines(lines, failed=planned.errors != ())
            packaging.refuse_package(planned)
            return
        for line in serving_lines.finding_lines(planned.findings, shown=("failed", "note")):
            self.say("lint", line)
        packaging.refuse_package(planned)
        self._resumable = work_path(options.output)
        packed = packaging.make_package(planned, self, self.report)
        self._packages.append(packed.manifest)
        self._settle()
        self._show_package(planned, packed)

    def _show_package(self, planned: Packaging, packed: Packed) -> None:
        if self.json or self.quiet:
            return
        output = str(planned.options.output)
        self._out.print(f"\n[bold green]✓[/] [bold]{escape(output)}[/] is {escape(serving_lines.kind(planned))}")
        for name, text in serving_lines.rows(planned, packed, _size):
            self._out.print(f"  [dim]{name:<9}[/] {escape(text)}")

    def lint(
        self,
        package: Path,
        *,
        target: str | None,
        target_version: str | None,
        runtime_version: str | None,
        mount_path: str | None,
    ) -> None:
        """Say, rule by rule, whether a package will load."""
        from llmcompile.packaging.target import Serving
        from llmcompile.pipeline import packaging

        with self.report.stage("lint"):
            known, findings = packaging.lint(package, Serving(target_version, runtime_version, mount_path), target)
        self._linted = [serving_lines.finding_json(finding) for finding in findings]
        titles = " and ".join(found.title for found in known)
        if not self.json and not self.quiet:
            self._out.print(f"[bold]{escape(str(package))}[/] is a package for {escape(titles)}")
            for line in serving_lines.finding_lines(findings, shown=("ok", "failed", "note", "skipped")):
                self._out.print(_marked(line))
        failed = packaging.failures(findings)
        if len(failed) > 0:
            raise collected(MismatchError, failed)
        skipped = len({finding.rule for finding in findings if finding.status == "skipped"})
        words = "will load, as far as its files tell"
        if skipped > 0:
            words += f"; {skipped} rule{'' if skipped == 1 else 's'} had nothing to look at, or could not be told"
        self._result(f"[green]✓[/] {escape(str(package))} {words}")

    # What the pipeline shows

    def planned(self, job: Job) -> None:
        """Say in a few lines what is about to happen."""
        for line in _plan_lines(job):
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

    @contextmanager
    def calibrating(self, total: int, done: int) -> Iterator[Callable[[int], None]]:
        """Say how many layers are calibrated and how long the rest will take, layer by layer."""
        kept = f"; {done} are kept from the run before" if done > 0 else ""
        self.say("calibrate", f"Calibrating {total} layers{kept}...", {"layers": total, "done": done})
        started = time.monotonic()

        def advance(layer: int) -> None:
            spent = time.monotonic() - started
            left = spent / (layer + 1 - done) * (total - layer - 1)
            text = f"calibrated {layer + 1} of {total} layers, {left:.0f} s left"
            self.say("calibrate", text, {"layer": layer, "layers": total, "seconds_left": round(left, 1)})

        yield advance

    def comparing(self, recipe: str, number: int, total: int, *, done: bool) -> None:
        """Announce a recipe."""
        self._settle()
        kept = ", kept from the run before" if done else ""
        self.say("recipe", f"{recipe} ({number} of {total}){kept}", {"recipe": recipe, "done": done})

    def validating(self, subject: str, ranks: int) -> None:
        """Announce the validation."""
        self._settle()
        self.say("validate", f"Validating {subject} ({ranks} rank{'' if ranks == 1 else 's'})...")

    def checked(self, check: Finding) -> None:
        """Show one comparison as it is made."""
        if isinstance(check, str):
            self.say("skipped", f" -[-] {check}")
            return
        from llmcompile.validation.checks import Quality
        from llmcompile.validation.compare import lines

        if isinstance(check, Quality):
            self.say("quality", f" {check}")
            return
        self.say("check", f" {check.input}, against {check.reference}:")
        for line in lines(check.comparison):
            self.say("check", f" {line}", {"passed": check.comparison.passed})

    def lowering(self, graph: str, number: int, total: int) -> None:
        """Say which graph is lowered now."""
        self.say("lower", f"Lowering {graph} ({number} of {total})...", {"graph": graph})

    def preflighted(self, graph: str, warnings: Sequence[str]) -> None:
        """Show what the compiler will make of a graph."""
        self.say("preflight", f" -[✓] {graph}: neuronx-cc takes it, by its documented rules")
        for warning in warnings:
            self.say("preflight", f"     {warning}")

    def building(self, line: Line) -> None:
        """Show what the builder says: one live line on a terminal, its log and what that means elsewhere."""
        if self.quiet:
            return
        if self.log_json:
            self.say("build", line.text, {"progress": line.progress})
            return
        moved = line.progress is not None and line.progress != self._progress
        self._progress = self._progress if line.progress is None else line.progress
        if not self._err.is_terminal:
            self.say("build", f"  {_indented(line.text)}")
            if moved and line.progress is not None and line.progress not in line.text:
                self.say("build", f"build: {line.progress}")
        elif moved or self._live is None:
            text = escape(_indented("the builder starts" if self._progress is None else self._progress))
            if self._live is None:
                self._live = self._err.status(text)
                self._live.start()
            else:
                self._live.update(text)

    def _settle(self) -> None:
        """Take the live line away."""
        if self._live is not None:
            self._live.stop()
        self._live = self._progress = None

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
            "plan": self._plan(),
            "manifest": None if manifest is None else manifest.model_dump(mode="json"),
            "recipes": None if self.compared is None else quantize_lines.result_json(self.compared),
            "verified": self._verified,
            "tasks": self._tasks,
            "lint": self._linted,
            "packages": [package.model_dump(mode="json") for package in self._packages],
        }

    def _plan(self) -> dict[str, Any] | None:
        if self.start is not None:
            return _start_json(self.start)
        if self.export_plan is not None:
            return neuron_lines.plan_json(self.export_plan)
        if self.rtx_plan is not None:
            return rtx_lines.plan_json(self.rtx_plan)
        if self.comparison is not None:
            return quantize_lines.plan_json(self.comparison, _problems_json(self.comparison.errors))
        return None if self.job is None else _plan_json(self.job)

    def _result(self, text: str) -> None:
        if self.json:
            self._out.print(jsonlib.dumps(self._document(0), ensure_ascii=True), markup=False)
        elif not self.quiet:
            self._out.print(text)

    # What a person sees

    def _show_plan(self, job: Job) -> None:
        if not self._show_lines(_plan_lines(job), failed=job.errors != ()):
            return
        self._out.print(_facts_table(job))
        for reason, count in _ignored_counts(job).items():
            self._out.print(f"  not read: {count} tensor{'' if count == 1 else 's'} ({escape(reason)})")
        for note in job.layout.notes:
            self._out.print(f"  note: {escape(note)}")
        for pattern, reason in job.layout.deviations.items():
            self._out.print(f"  differs from the vendor's converter: {escape(pattern)}: {escape(reason)}")

    def _show_lines(self, lines: Sequence[str], *, failed: bool) -> bool:
        """A plan on stdout, where a failure prints its own document; whether there is a person to tell more."""
        if self.json:
            if not failed:
                self._out.print(jsonlib.dumps(self._document(0), ensure_ascii=True), markup=False)
            return False
        if self.quiet:
            return False
        for line in lines:
            self._out.print(_marked(line))
        return True

    def _finish(self, rows: Sequence[tuple[str, str]], kind: str, build: BuildOptions) -> None:
        """Say what was made, and make the packages that were asked for with it."""
        if not self.json:
            self._show_summary(rows, kind)
        self._packages_of(build)
        if self.json:
            self._out.print(jsonlib.dumps(self._document(0), ensure_ascii=True), markup=False)

    def _show_summary(self, rows: Sequence[tuple[str, str]], kind: str) -> None:
        manifest = self.report.manifest
        assert manifest is not None
        if self.quiet:
            return
        self._out.print(f"\n[bold green]✓[/] [bold]{escape(str(self.report.output))}[/] is {kind}")
        notes = () if manifest.validation is None else manifest.validation.notes
        for name, text in [*rows, *(("note", note) for note in dict.fromkeys((*manifest.notes, *notes)))]:
            if text != "":
                self._out.print(f"  [dim]{name:<9}[/] {escape(text)}")


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
    marked.highlight_regex(r"\[!\]", "yellow")
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
    ranks = job.layout.ranks * job.layout.pp
    return [
        f"{job.located.label}: {_shape(job)}",
        f"read   {len(plan.tensors_read)} of {len(job.checkpoint.tensors)} tensors, {_size(source)} of "
        f"{job.checkpoint.format} in {len(job.checkpoint.files)} file{'' if len(job.checkpoint.files) == 1 else 's'}",
        f"write  {job.layout.folder.rjust(1, '.')}: {len(plan.files)} tensor files, {_size(plan.output_bytes)} of "
        f"{_elements(job)} for {ranks} rank{'' if ranks == 1 else 's'}{_mapping(job)}; {job.files} files in all",
        *_calibration_line(job),
        *_build_line(job.options, job.toolchain),
        f"memory {_size(needs.memory)} to convert with {needs.workers} workers"
        + (f", about {_size(needs.memory_validation)} to validate" if needs.memory_validation > 0 else "")
        + f", of {_size(needs.memory_available)}; disk {_size(needs.disk)} of {_size(needs.disk_available)} free",
    ]


def _calibration_line(job: Job) -> Iterator[str]:
    found = job.calibration
    if found is not None:
        by = " by nvidia-modelopt" if getattr(job.options, "calibrator", "") == "modelopt" else ""
        yield (
            f"calibrate{by} on at most {found.samples} samples of {found.tokens} tokens, layer by layer: "
            f"{found.layers} layers, about {found.operations / 1e12:.3g} x 10^12 operations, {_size(found.memory)} of "
            f"memory, {_size(found.disk)} of disk for hidden states"
        )


def _mapping(job: Job) -> str:
    """How the ranks come about, where there is more than tensor parallelism, or where they do when it runs."""
    if job.options.backend == "trtllm" and job.options.target == "llmapi":
        return f" (for tp {job.options.tp} x pp {job.options.pp})"
    layout = job.layout
    degrees = f"tp {layout.ranks}" + (f" x pp {layout.pp}" if layout.pp > 1 else "")
    experts = f", experts over {layout.moe_ep}" if layout.moe_ep > 1 else ""
    return f" ({degrees}{experts})" if layout.pp > 1 or layout.moe_ep > 1 else ""


def _elements(job: Job) -> str:
    """The element type, and the quantization where there is one."""
    quantized = _quantized(job)
    return job.layout.dtype.name if quantized == "" else f"{job.layout.dtype.name} with {quantized}"


def _quantized(job: Job) -> str:
    """`quant_algo` as config.json or hf_quant_config.json has it, and the byte layout where there are two."""
    for name, text in job.layout.texts.items():
        if not name.endswith("config.json"):
            continue
        algorithm = jsonlib.loads(text).get("quantization", {}).get("quant_algo")
        if algorithm in ("W8A16", "W4A16"):
            plain = getattr(job.options, "wo_layout", "") == "deferred"
            return f"{algorithm} ({'laid out by the builder' if plain else 'in the sm80 layout'})"
        return "" if algorithm is None else str(algorithm)
    return ""


def _build_line(options: Options, toolchain: Toolchain | None) -> Iterator[str]:
    if options.backend != "trtllm":
        return
    if options.target == "llmapi":
        yield f"build  nothing: TensorRT-LLM {options.trtllm_version} serves it as it is"
    elif options.stop_after is not None:
        yield f"build  nothing, by --stop-after {options.stop_after}; for TensorRT-LLM {options.trtllm_version}"
    elif toolchain is None:
        yield f"build  engine/: no builder of TensorRT-LLM {options.trtllm_version} found"
    else:
        by = toolchain.executable if options.builder == "cli" else toolchain.python
        gpus = ", ".join(dict.fromkeys(gpu.name for gpu in toolchain.gpus))
        flags = " ".join(f"{name} {value}".strip() for name, value in options.engine)
        yield f"build  engine/ with TensorRT-LLM {toolchain.version} by {by} for {gpus}"
        if flags != "":
            yield f"flags  {flags}"


def _start_lines(start: Start) -> list[str]:
    config = start.config
    quantization = config.get("quantization")
    algorithm = quantization.get("quant_algo") if isinstance(quantization, dict) else None
    return [
        f"{start.label}: {config.get('architecture')} of TensorRT-LLM, {config.get('dtype')}"
        f"{'' if algorithm is None else f', {algorithm}'}",
        f"read   {start.checkpoint}: {start.ranks} rank{'' if start.ranks == 1 else 's'}",
        *_build_line(start.options, start.toolchain),
    ]


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
        "ranks": job.layout.ranks * job.layout.pp,
        "tp": job.layout.ranks,
        "pp": job.layout.pp,
        "moe_ep": job.layout.moe_ep,
        "quantization": _quantized(job),
        "calibration": None if job.calibration is None else asdict(job.calibration),
        "builder": _toolchain_json(job.toolchain),
        "tensors_read": len(job.plan.tensors_read),
        "ignored": dict(job.plan.ignored),
        "files": {job.layout.folder + file: size for file, size in job.plan.files.items()},
        "output_bytes": job.plan.output_bytes,
        "memory_bytes": needs.memory,
        "memory_validation_bytes": needs.memory_validation,
        "memory_calibration_bytes": needs.memory_calibration,
        "memory_available_bytes": needs.memory_available,
        "disk_bytes": needs.disk,
        "disk_available_bytes": needs.disk_available,
        "workers": needs.workers,
        "deviations": dict(job.layout.deviations),
        "notes": list(job.layout.notes),
        "problems": _problems_json(job.errors),
    }


def _start_json(start: Start) -> dict[str, Any]:
    return {
        "checkpoint": str(start.checkpoint),
        "config": dict(start.config),
        "ranks": start.ranks,
        "builder": _toolchain_json(start.toolchain),
        "problems": _problems_json(start.errors),
    }


def _toolchain_json(toolchain: Toolchain | None) -> dict[str, Any] | None:
    if toolchain is None:
        return None
    return {
        "tensorrt_llm": toolchain.version,
        "python": str(toolchain.python),
        "trtllm_build": None if toolchain.executable is None else str(toolchain.executable),
        "gpus": [gpu.name for gpu in toolchain.gpus],
    }


def _problems_json(errors: Sequence[LlmCompileError]) -> list[dict[str, str]]:
    return [{"category": error.category, **_fields(problem)} for error in errors for problem in error.problems]


def _validated_line(validation: Validation | None) -> str:
    """The worst error of each output against the model as stored, and how far that is from the model itself."""
    if validation is None:
        return "no (--no-validate)"
    inputs = " and ".join(dict.fromkeys(comparison.input for comparison in validation.comparisons))
    texts = []
    for output in dict.fromkeys(comparison.output for comparison in validation.comparisons):
        compared = [comparison for comparison in validation.comparisons if comparison.output == output]
        of_model = [c for c in compared if c.reference.startswith("the model") and _is_number(c.details.get("max_abs"))]
        if of_model == []:
            texts.append(f"{output} {'within its limits' if all(c.passed for c in compared) else 'beyond its limits'}")
            continue
        exact = [c for c in of_model if c.reference != "the model in float32"]
        decisive = max(exact if len(exact) > 0 else of_model, key=lambda c: c.details["max_abs"])
        texts.append(f"{output} max abs {decisive.details['max_abs']:.1e} (atol {decisive.details['atol']:.1e})")
        in_float32 = [c.details["max_abs"] for c in of_model if c.reference == "the model in float32"]
        if len(exact) > 0 and len(in_float32) > 0:
            texts[-1] += f", {max(in_float32):.1e} from float32"
    return f"{'; '.join(texts)}, on {inputs}" if texts != [] else "nothing was compared"


def _quality_line(validation: Validation | None) -> str:
    """What the quantization costs, where there is one."""
    if validation is None or validation.quality is None:
        return ""
    quality = validation.quality
    return (
        f"perplexity {quality.perplexity:.4g}, the model's {quality.perplexity_model:.4g}; "
        f"same top-1 token {quality.top1:.1%}; on {quality.tokens} tokens of {quality.text}"
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def _job_kind(job: Job) -> str:
    if job.options.backend == "trtllm":
        return f"ready for TensorRT-LLM {job.options.trtllm_version}"
    return "ready for FasterTransformer"


def _job_rows(job: Job, report: Report) -> list[tuple[str, str]]:
    """What became of a job: name and text of each line."""
    manifest = report.manifest
    assert manifest is not None
    write = report.stages.get("write", 0.0)
    rate = job.plan.output_bytes / max(write, 1e-9)
    held = any(record.path.startswith(job.layout.folder) for record in manifest.files)
    place = "engine/" if not held else "the folder" if job.layout.folder == "" else job.layout.folder
    mapping = _mapping(job).strip(" ()") if _mapping(job) != "" else f"tp {job.layout.ranks}"
    total = _size(sum(record.bytes for record in manifest.files))
    return [
        ("model", f"{job.located.label} · {_shape(job)}"),
        (
            "artifact",
            f"{place} · {mapping} · {_elements(job)} · {len(manifest.files) + 1} files, {total}",
        ),
        ("engine", _engine_line(manifest.engine)),
        ("validated", _validated_line(manifest.validation)),
        ("quality", _quality_line(manifest.validation)),
        ("differs", _deviation_line(len(manifest.deviations))),
        ("took", _took(report, f"writing {write:.1f} s at {_size(rate)}/s")),
        *_next_rows(job, manifest),
    ]


def _start_rows(start: Start, report: Report) -> list[tuple[str, str]]:
    manifest = report.manifest
    assert manifest is not None
    return [
        ("model", _start_lines(start)[0]),
        ("engine", _engine_line(manifest.engine)),
        ("validated", _validated_line(manifest.validation)),
        ("quality", _quality_line(manifest.validation)),
        ("took", _took(report)),
        ("next", f"llmcompile verify {shlex.quote(str(report.output))}"),
    ]


def _took(report: Report, *parts: str) -> str:
    from llmcompile import environment

    shown = {
        "calibrate": "calibrating",
        "lower": "lowering",
        "export": "exporting",
        "validate": "validating",
        "engine": "building",
        "run": "running the engine",
        "compile": "compiling",
        "build": "building",
    }
    of = [*parts, *(f"{words} {report.stages[name]:.1f} s" for name, words in shown.items() if name in report.stages)]
    spent = f"{sum(report.stages.values()):.1f} s" + (f" ({', '.join(of)})" if of != [] else "")
    return f"{spent}, peak memory {_size(environment.peak_memory())}"


def _engine_line(engine: Engine | None) -> str:
    if engine is None:
        return ""
    on = engine.gpu if engine.compute_capability is None else f"{engine.gpu} (SM {engine.compute_capability})"
    parts = [
        f"TensorRT-LLM {engine.tensorrt_llm}",
        None if engine.tensorrt is None else f"TensorRT {engine.tensorrt}",
        None if engine.gpu is None else f"{on}, and runs on no other kind",
        f"{engine.ranks} rank{'' if engine.ranks == 1 else 's'}, {_size(engine.bytes)}",
    ]
    return " · ".join(part for part in parts if part is not None)


def _next_rows(job: Job, manifest: Manifest) -> Iterator[tuple[str, str]]:
    """What to type next."""
    output = str(job.options.build.output)
    if job.options.backend == "trtllm" and job.options.target == "llmapi":
        flag = "--config" if job.options.release >= (1, 3) else "--extra_llm_api_options"
        folder = shlex.quote(output)
        yield "next", f"on the GPU host: trtllm-serve {folder} {flag} {shlex.quote(f'{output}/model.yaml')}"
        yield "or", _package_command(_foreseen(job.options), output.rstrip("/"))
        return
    if job.options.backend != "trtllm" or manifest.engine is not None:
        yield "next", f"llmcompile verify {shlex.quote(output)}"
        return
    given = "" if manifest.validation is not None else " --no-validate"
    if job.options.trtllm_version != type(job.options).trtllm_version:
        given += f" --trtllm-version {job.options.trtllm_version}"
    folder, engine = shlex.quote(output), shlex.quote(f"{output.rstrip('/')}-engine")
    yield "next", f"on the GPU host: llmcompile build trtllm{given} --from-checkpoint {folder} {engine}"
    if "config.json" in job.layout.texts:
        checkpoint = shlex.quote(str(job.options.build.output / job.layout.folder))
        yield "or", f"without llmcompile: trtllm-build --checkpoint_dir {checkpoint} --output_dir {engine}"


def _package_command(foreseen: Foreseen, output: str) -> str:
    """What makes a package of a folder for the LLM API: for LMI where its vLLM loads it, else for Triton."""
    from llmcompile.packaging.targets import TARGETS

    lmi = TARGETS["lmi"]
    try:
        lmi.foresee(foreseen, lmi.options())
    except LlmCompileError:
        package = shlex.quote(f"{output}-triton")
        return f"llmcompile package triton {shlex.quote(output)} {package} --model-py TensorRT-LLM"
    return f"llmcompile package lmi {shlex.quote(output)} {shlex.quote(f'{output}-lmi')}"


def _deviation_line(count: int) -> str:
    if count == 0:
        return ""
    return f"{count} file{'' if count == 1 else 's'} from the vendor's converter, with reasons in llmcompile.json"


def _source(manifest: Manifest) -> tuple[str, str | None]:
    """The model an artifact was made from, at the very commit."""
    source = manifest.source
    return source.model.partition("@")[0] if source.commit is not None else source.model, source.commit


def _shortcuts(build: BuildOptions) -> list[Shortcut]:
    """The packages that --package asks for, their options from the environment."""
    from llmcompile.cli.package import from_environment
    from llmcompile.pipeline.packaging import Shortcut

    return [Shortcut(*from_environment(text, os.environ)) for text in build.package]


def _foreseen(options: Options) -> Foreseen:
    """What a build without graphs makes."""
    from llmcompile.exporters.trtllm.llmapi.recipes import RECIPES

    if options.backend == "ft":
        return Foreseen("ft")
    assert options.backend == "trtllm"
    if options.target != "llmapi":
        return Foreseen(
            "trtllm-checkpoint" if options.stop_after == "checkpoint" else "trtllm-engine", options.trtllm_version
        )
    recipe = None if options.quantization is None else RECIPES.get(options.quantization)
    algorithm = None if recipe is None else recipe.algorithm
    quantized = recipe is not None or options.kv_cache is not None
    block = {"quant_algo": algorithm, "quant_method": "modelopt"} if quantized else {}
    return Foreseen("hf", options.trtllm_version, block)


def _layout(name: str) -> Kind:
    """The kind of a compiled Neuron export of this layout."""
    from llmcompile.packaging.target import KINDS

    return next(kind for kind in KINDS if kind == f"neuron-{name}")


def _artifact_line(manifest: Manifest) -> str:
    """What is inside, in a line."""
    options = manifest.options
    words = [
        {"ft": "FasterTransformer", "trtllm": "TensorRT-LLM", "neuron": "Neuron", "tensorrt-rtx": "TensorRT for RTX"}[
            manifest.backend
        ],
        f"{manifest.model.architecture} from {manifest.source.model}",
        *(f"{name} {options[name]}" for name in ("tp", "pp", "dtype", "quantization") if options.get(name) is not None),
    ]
    if manifest.neuron is not None:
        words.append(f"{manifest.neuron.task}, {neuron_lines.kind(manifest.neuron)}, layout {manifest.neuron.layout}")
    if manifest.rtx is not None:
        words.append(f"{manifest.rtx.task}, {rtx_lines.kind(manifest.rtx)}")
    if manifest.engine is not None:
        words.append(f"engine of TensorRT-LLM {manifest.engine.tensorrt_llm} for {manifest.engine.gpu}")
    return f"     {' · '.join(words)}"


def _bytes_line(manifest: Manifest | PackageManifest | ReportManifest, problems: Sequence[Problem]) -> str:
    total = sum(record.bytes for record in manifest.files)
    mark = "✓" if len(problems) == 0 else "x"
    return f" -[{mark}] {len(manifest.files)} files, {_size(total)}, against the manifest's sha256"
