"""Packages an artifact for a server: read it, plan the files, lint them, and only then write."""

from __future__ import annotations

import gzip
import hashlib
import io
import shlex
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from llmcompile import __version__, environment
from llmcompile.errors import (
    CheckpointError,
    LlmCompileError,
    MismatchError,
    OptionsError,
    OutputError,
    Problem,
    ResourceError,
    UnsupportedError,
    collected,
    combined,
)
from llmcompile.packaging import manifest as records
from llmcompile.packaging import tree as trees
from llmcompile.packaging.artifact import Artifact, open_artifact
from llmcompile.packaging.target import (
    Finding,
    Foreseen,
    Kind,
    Package,
    Request,
    Serving,
    Target,
    flags,
    release_of,
    runtime_of,
)
from llmcompile.packaging.targets import TARGETS
from llmcompile.packaging.tree import Tree
from llmcompile.pipeline.job import Report
from llmcompile.writing import MANIFEST, WorkDirectory, Written, check_replaceable, hash_file, output_errors

_ARCHIVE_BUFFER = 1 << 20
_LEVEL = 1
"""Of gzip: weights hardly shrink, and a higher level costs minutes for each GiB."""


@dataclass(frozen=True, kw_only=True)
class PackageOptions:
    """What is asked of every target, and what is asked of this one.

    Attributes:
        target: Its name.
        artifact: What to package; None where `convert` stands for it.
        output: Directory to create.
        settings: The target's own options.
        convert: (flag, file) of another system's description that is converted instead of an artifact.
        target_version: Release of the serving system; None for the one that fits best.
        runtime_version: Version of the vendor's runtime in the image that will serve.
        copy: Copy the weights, even where they could be shared.
        force: Replace an artifact or package at `output`.
        resume: Continue an interrupted run.
    """

    target: str
    artifact: Path | None
    output: Path
    settings: Any
    convert: tuple[str, Path] | None = None
    target_version: str | None = None
    runtime_version: str | None = None
    copy: bool = False
    force: bool = False
    resume: bool = False


@dataclass(frozen=True, kw_only=True)
class Packaging:
    """A package that is fully known and not yet written.

    Attributes:
        options: What was asked.
        target: The serving system.
        request: Release and runtime, as resolved.
        artifact: What is packaged; None for a conversion.
        package: The files.
        findings: What the lint says of them.
        errors: What stands in the way.
    """

    options: PackageOptions
    target: Target[Any]
    request: Request
    artifact: Artifact | None
    package: Package
    findings: tuple[Finding, ...]
    errors: tuple[LlmCompileError, ...]

    @property
    def taken_bytes(self) -> int:
        """Bytes that are taken over from the artifact."""
        if self.artifact is None:
            return 0
        return sum(self.artifact.tree.files[source] for source in self.package.links.values())


@dataclass
class Packed:
    """What was written.

    Attributes:
        manifest: Its record.
        taken: How many files are shared, linked and copied.
    """

    manifest: records.PackageManifest
    taken: Counter[str] = field(default_factory=Counter)


class Writing(Protocol):
    """Shows the progress of writing; the command line has one."""

    def writing(self, total_bytes: int, done_bytes: int) -> AbstractContextManager[Callable[[int, str], None]]:
        """As `View.writing`."""


def prepare_package(options: PackageOptions, report: Report) -> Packaging:
    """Read the artifact's small files, plan the package and lint it; writes nothing.

    Raises:
        CheckpointError: ARTIFACT is none, or not whole.
        UnsupportedError: The target, or this release of it, does not serve it.
        OptionsError: An option contradicts the artifact.
    """
    target = TARGETS[options.target]
    with report.stage("plan"):
        if options.convert is not None:
            artifact, tree = None, Tree("", {}, frozenset(), lambda path: b"")
            flag, path = options.convert
            request = Request(_converted_version(target, options), options.runtime_version)
            package = target.converts[flag](_text(path), path.name, options.settings, request)
        else:
            assert options.artifact is not None
            artifact = open_artifact(options.artifact)
            tree = artifact.tree
            version = target.choose(artifact.kind, options.target_version, artifact)
            request = Request(version, options.runtime_version)
            package = target.plan(artifact, options.settings, request)
    _refuse_names(package)
    with report.stage("lint"):
        record = records.to_bytes(_manifest(options, request, artifact, package, (), ())).decode()
        texts = {**package.texts, MANIFEST: record}
        planned = trees.planned(str(options.output), texts, package.links, package.folders, tree)
        findings = tuple(target.lint(planned, Serving(request.version, request.runtime_version)))
    return Packaging(
        options=options,
        target=target,
        request=request,
        artifact=artifact,
        package=package,
        findings=findings,
        errors=tuple(_obstacles(options, package, tree, findings)),
    )


def _converted_version(target: Target[Any], options: PackageOptions) -> str:
    """The release a conversion is for: the newest that serves anything, unless another is asked for."""
    kinds: tuple[Kind, ...] = tuple(target.serves)
    return target.choose(kinds[0], options.target_version)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(str(path), f"cannot be read: {error}", "a text file", "check the path") from error


def _refuse_names(package: Package) -> None:
    """Stop a name, made of an option or of the model's, that would be written elsewhere than in the package, or twice.

    Raises:
        OptionsError: A path leaves the package.
        CheckpointError: A file of the artifact has the name of one that the package makes.
    """
    for path in (*package.texts, *package.links, *package.folders):
        parts = path.split("/")
        if path == MANIFEST or not path.isprintable() or any(part in ("", ".", "..") for part in parts):
            raise OptionsError("package", f"a file called {path!r}", "a path inside the package", "give another name")
    twice = sorted(package.texts.keys() & package.links.keys())
    if twice != []:
        raise collected(
            CheckpointError,
            [
                Problem(
                    path,
                    f"{package.links[path]} of the artifact would be it, and the package makes its own",
                    "one file of this name",
                    f"move {package.links[path]} out of the artifact",
                )
                for path in twice
            ],
        )
    assert {*package.last} <= {*package.texts, *package.links}


def _obstacles(
    options: PackageOptions, package: Package, tree: Tree, findings: Sequence[Finding]
) -> Iterator[LlmCompileError]:
    try:
        check_replaceable(options.output, force=options.force)
    except OutputError as error:
        yield error
    if options.artifact is not None and _inside(options.output, options.artifact):
        found = f"inside the artifact {options.artifact}"
        yield OptionsError("OUTPUT", found, "a place beside it", "choose another OUTPUT")
    failed = failures(findings)
    if len(failed) > 0:
        yield collected(MismatchError, failed)
    needed = sum(len(text.encode()) for text in package.texts.values())
    taken = sum(tree.files[source] for source in package.links.values())
    # What cannot be shared is there twice while it is packed.
    copied = not _on_one_disk(options) or (options.copy and package.archive is None)
    needed += taken * ((package.archive is not None) + copied)
    free = environment.free_disk(options.output.absolute().parent)
    if needed > free:
        yield ResourceError(
            "disk", f"{needed} bytes needed, {free} bytes free", "", "make room, or choose an OUTPUT on another disk"
        )


def _inside(output: Path, artifact: Path) -> bool:
    return output.resolve().is_relative_to(artifact.resolve())


def _on_one_disk(options: PackageOptions) -> bool:
    """Whether the package is on the artifact's file system, where hard links can be."""
    if options.artifact is None:
        return True
    place = options.output.absolute().parent
    while not place.exists():
        place = place.parent
    return place.stat().st_dev == options.artifact.stat().st_dev


def failures(findings: Sequence[Finding]) -> list[Problem]:
    """A problem for each finding that failed, named by its rule."""
    return [
        Problem(f"{finding.rule}: {finding.subject}", finding.found, finding.expected, finding.hint)
        for finding in findings
        if finding.status == "failed"
    ]


def refuse_package(planned: Packaging) -> None:
    """Raise what stands in the way, all of it.

    Raises:
        MismatchError: A rule failed.
        OutputError: OUTPUT exists.
        ResourceError: The disk will not do.
    """
    if planned.errors != ():
        raise combined(planned.errors)


def make_package(planned: Packaging, view: Writing, report: Report) -> Packed:
    """Write the package and publish it.

    Raises:
        OutputError: OUTPUT cannot be made.
        CheckpointError: A file of the artifact changed.
    """
    refuse_package(planned)
    options, package = planned.options, planned.package
    with WorkDirectory(options.output, job=_identity(planned), resume=options.resume, force=options.force) as work:
        taken: Counter[str] = Counter()
        with report.stage("write"):
            _write(planned, work, view, taken)
            manifest = _recorded(planned, _listed(work))
            if package.archive is not None:
                work.write_bytes(MANIFEST, records.to_bytes(manifest))
                written = _archived(work, package)
                manifest = _recorded(planned, records.file_records([(package.archive, written)]))
            work.write_bytes(MANIFEST, records.to_bytes(manifest))
        with report.stage("publish"):
            work.publish()
    report.output = options.output
    return Packed(manifest, taken)


def _listed(work: WorkDirectory) -> tuple[records.FileRecord, ...]:
    return records.file_records(item for item in sorted(work.finished.items()) if item[0] != MANIFEST)


def _write(planned: Packaging, work: WorkDirectory, view: Writing, taken: Counter[str]) -> None:
    package, artifact = planned.package, planned.artifact
    if package.archive is not None:
        # Not resumed: it is made of what is written here.
        work.forget(package.archive)
    every = [*package.texts, *package.links]
    order = [*sorted(path for path in every if path not in package.last), *package.last]
    for folder in package.folders:
        with output_errors(work.path / folder, 0):
            (work.path / folder).mkdir(parents=True, exist_ok=True)
    done = sum(work.finished[path].size_bytes for path in package.links if path in work.finished)
    with view.writing(planned.taken_bytes, done) as advance:
        for path in order:
            if path in package.texts:
                work.write_bytes(path, package.texts[path].encode())
            elif path not in work.finished:
                assert artifact is not None
                source = package.links[path]
                # Into an archive it is copied once, at the end.
                copy = planned.options.copy and package.archive is None
                sha256 = artifact.sha256.get(source)
                taken[work.take(path, artifact.path / source, sha256=sha256, copy=copy, advance=advance)] += 1


def _archived(work: WorkDirectory, package: Package) -> Written:
    """Put everything into one tar.gz with its members at the root, and take the files themselves away.

    Owner, time and order are the same every time.
    """
    assert package.archive is not None
    path = work.path / package.archive
    names = sorted({*work.finished, *package.folders, *_folders(work.finished)})
    total = sum(written.size_bytes for written in work.finished.values())
    with (
        output_errors(path, total),
        path.open("wb") as raw,
        io.BufferedWriter(raw, _ARCHIVE_BUFFER) as buffered,
        gzip.GzipFile(filename="", mode="wb", compresslevel=_LEVEL, fileobj=buffered, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for name in names:
            member = tarfile.TarInfo(name)
            if name not in work.finished:
                member.type, member.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(member)
                continue
            member.size, member.mode = work.finished[name].size_bytes, 0o644
            with (work.path / name).open("rb") as stream:
                archive.addfile(member, stream)
    for name in list(work.finished):
        work.forget(name)
    written = hash_file(path)
    work.record(package.archive, written)
    work.sweep()
    return written


def _folders(files: Mapping[str, Any]) -> set[str]:
    return {str(parent) for name in files for parent in Path(name).parents if str(parent) != "."}


def _identity(planned: Packaging) -> dict[str, Any]:
    artifact, options = planned.artifact, planned.options
    sources: Any = None
    if artifact is not None and artifact.manifest is not None:
        sources = hashlib.sha256(records.to_bytes(artifact.manifest)).hexdigest()
    elif artifact is not None:
        sources = [[name, size] for name, size in artifact.tree.files.items()]
    return {
        "llmcompile": __version__,
        "target": options.target,
        "version": planned.request.version,
        "settings": asdict(options.settings),
        "sources": sources,
        "links": dict(planned.package.links),
        "texts": {path: hashlib.sha256(text.encode()).hexdigest() for path, text in planned.package.texts.items()},
    }


def _recorded(planned: Packaging, files: tuple[records.FileRecord, ...]) -> records.PackageManifest:
    return _manifest(planned.options, planned.request, planned.artifact, planned.package, planned.findings, files)


def _manifest(
    options: PackageOptions,
    request: Request,
    artifact: Artifact | None,
    package: Package,
    findings: Sequence[Finding],
    files: tuple[records.FileRecord, ...],
) -> records.PackageManifest:
    worst: dict[str, str] = {}
    for finding in findings:
        order = ("ok", "skipped", "note", "failed")
        before = worst.get(finding.rule, "ok")
        worst[finding.rule] = max(before, finding.status, key=order.index)
    return records.PackageManifest(
        tool=records.Tool(version=__version__),
        package=records.Packaged(
            target=options.target,
            version=request.version,
            runtime=runtime_of(package, request),
            kind="conversion" if artifact is None else artifact.kind,
            options=asdict(options.settings),
            rules=worst,
        ),
        artifact=None if artifact is None else artifact.manifest,
        files=files,
        notes=package.notes,
    )


def lint(path: Path, serving: Serving, target: str | None) -> tuple[tuple[Target[Any], ...], list[Finding]]:
    """Every rule of every target that a folder or archive is a package of.

    Args:
        path: Folder, tar archive, or folder with nothing but an archive and its record.
        serving: What the user said of the place it is for.
        target: The one target to lint for; None for those that recognise it.

    Raises:
        CheckpointError: It cannot be read, or no target recognises it.
        UnsupportedError: `serving` names a release that there is not.
    """
    tree = trees.from_archive(path) if path.is_file() else trees.from_folder(path)
    archives = [name for name in tree.files if name.endswith(".tar.gz") and "/" not in name]
    if len(archives) == 1 and set(tree.files) <= {*archives, MANIFEST}:
        # What --tar wrote: the package is inside.
        tree = trees.from_archive(path / archives[0])
    if target is not None:
        known: tuple[Target[Any], ...] = (TARGETS[target],)
    else:
        known = tuple(candidate for candidate in TARGETS.values() if candidate.detect(tree))
    if known == ():
        raise CheckpointError(
            str(path),
            "nothing that a server would recognise",
            "serving.properties, folders with config.pbtxt, a registry entry, serve.yaml, .env or create_model.json",
            f"name the server, one of {', '.join(TARGETS)}: llmcompile lint --target {next(iter(TARGETS))} {path}",
        )
    _refuse_unknown(known, serving.version)
    return known, [finding for candidate in known for finding in candidate.lint(tree, serving)]


def _refuse_unknown(targets: Sequence[Target[Any]], version: str | None) -> None:
    """Stop a release that is none of any of these targets: their rules would pass over it."""
    if version is not None and all(release_of(version, target.releases) is None for target in targets):
        known = "; ".join(f"{', '.join(target.releases)} of {target.title}" for target in targets)
        raise UnsupportedError(
            "--target-version", version, known, "leave --target-version out to skip what depends on it"
        )


@dataclass(frozen=True)
class Shortcut:
    """A package that is asked for with a build.

    Attributes:
        target: Name of the server.
        version: Release of it; None for the one that fits best.
        settings: The target's options.
    """

    target: str
    version: str | None
    settings: Any


def shortcut_output(output: Path, name: str) -> Path:
    """Where --package NAME puts the package of the artifact at `output`: beside it."""
    return output.with_name(f"{output.name}-{name}")


def shortcut_errors(
    packages: Sequence[Shortcut], foreseen: Foreseen, output: Path, *, force: bool
) -> list[LlmCompileError]:
    """Why packages asked for with a build will not be made, as far as can be told before it."""
    errors: list[LlmCompileError] = []
    for name, count in Counter(asked.target for asked in packages).items():
        if count > 1:
            found = f"given {count} times, and {shortcut_output(output, name)} is one folder"
            again = f"llmcompile package {name} {output} OUTPUT --target-version V"
            hint = f"leave one, and make the others afterwards: {again}"
            errors.append(OptionsError(f"--package {name}", found, "once", hint))
    for asked in packages:
        target = TARGETS[asked.target]
        try:
            target.choose(foreseen.kind, asked.version)
            check_replaceable(shortcut_output(output, asked.target), force=force)
            target.foresee(foreseen, asked.settings)
        except LlmCompileError as error:
            errors.append(_by_variable(error, asked, output))
        for group in target.needs:
            if all(getattr(asked.settings, name) is None for name in group):
                names = " or ".join(f"LLMCOMPILE_{name.upper()}" for name in group)
                flags = " or ".join("--" + name.replace("_", "-") for name in group)
                again = f"llmcompile package {asked.target} {output} {shortcut_output(output, asked.target)} {flags}"
                hint = f"set {names}; or package it afterwards: {again}"
                errors.append(OptionsError(f"--package {asked.target}", f"{names} is not set", "", hint))
    return errors


def _by_variable(error: LlmCompileError, asked: Shortcut, output: Path) -> LlmCompileError:
    """The same of an option of the target's, with its variable: a build does not have its flag."""
    *others, last = error.problems
    names = {name for made in flags(type(asked.settings)).values() for name in made.names}
    if last.subject not in names:
        return error
    variable = "LLMCOMPILE_" + last.subject.removeprefix("--").replace("-", "_").upper()
    hint = (
        f"{last.hint}\n--package takes it from the variable {variable}; or package it afterwards: "
        f"{by_hand(asked, output)}"
    )
    return collected(type(error), [*others, replace(last, hint=hint)])


def by_hand(asked: Shortcut, output: Path) -> str:
    """The command of the same package; options that variables hold are not repeated."""
    release = () if asked.version is None else ("--target-version", asked.version)
    package = shortcut_output(output, asked.target)
    return shlex.join(["llmcompile", "package", asked.target, str(output), str(package), *release])


def shortcut_options(asked: Shortcut, output: Path, *, force: bool) -> PackageOptions:
    """The options of `llmcompile package NAME OUTPUT OUTPUT-NAME`."""
    return PackageOptions(
        target=asked.target,
        artifact=output,
        output=shortcut_output(output, asked.target),
        settings=asked.settings,
        target_version=asked.version,
        force=force,
    )
