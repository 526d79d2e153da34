"""Output that appears whole or not at all: a work directory beside the target, a journal in it, a rename at the end.

The work directory is `OUTPUT.partial`. Its journal names the job it belongs to and every finished file with its hash,
so that an interrupted run can be resumed and nothing is trusted that was not verified again.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import json
import mmap
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from llmcompile.errors import CheckpointError, OutputError

MANIFEST = "llmcompile.json"
_JOURNAL = ".journal"
_READ_BYTES = 1 << 20
_STAGING_BYTES = 4 << 20
_DISK_BLOCK = 4096
_DIRECT_FROM_BYTES = 1 << 20
"""Size from which a file is written past the page cache."""
_LINKED_FROM_BYTES = 1 << 20
"""Size from which a file that is taken over may be a hard link: smaller ones are configuration, which people edit."""
_FICLONE = 0x40049409
"""Source: linux/fs.h, FICLONE."""


@dataclass(frozen=True)
class Written:
    """A finished file.

    Attributes:
        size_bytes: Its bytes.
        sha256: Their hash, in hexadecimal.
        overflowed: Tensor -> finite elements that became infinite when this file was made.
    """

    size_bytes: int
    sha256: str
    overflowed: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Kept:
    """The verified beginning of a file that an interrupted run left.

    Attributes:
        size_bytes: Its bytes.
        digest: sha256 of them, to be continued.
        overflowed: As in `Written`, of what it holds.
    """

    size_bytes: int
    digest: Any
    overflowed: Mapping[str, int]


class HashedFile:
    """A file written once, front to back, and hashed on the way; renamed into place when it is complete.

    Large files bypass the page cache (O_DIRECT) where the file system allows: the pages a copy would dirty are not
    needed again soon, and touching them costs more than the write itself.
    """

    def __init__(
        self, path: Path, size_bytes: int, *, staging_bytes: int = _STAGING_BYTES, kept: Kept | None = None
    ) -> None:
        """Create `path` with the ending `.part`, or continue it.

        Args:
            path: Where the file will be.
            size_bytes: Bytes it will have; preallocated.
            staging_bytes: Bytes collected before each direct write, a multiple of 4096.
            kept: The beginning that is there already; what follows it is overwritten.

        Raises:
            OutputError: The disk is full, or the place cannot be written to.
        """
        self._path = path
        self._expected = size_bytes
        self._digest = hashlib.sha256() if kept is None else kept.digest.copy()
        self._size = 0 if kept is None else kept.size_bytes
        self._marks: list[tuple[int, str]] = []
        self._part = path.with_name(path.name + ".part")
        self._staging: mmap.mmap | None = None
        self._staged = 0
        with output_errors(self._part, size_bytes):
            path.parent.mkdir(parents=True, exist_ok=True)
            emptied = os.O_TRUNC if kept is None else 0
            self._descriptor = os.open(self._part, os.O_RDWR | os.O_CREAT | emptied | os.O_CLOEXEC, 0o666)
            try:
                if size_bytes >= _DIRECT_FROM_BYTES and self._go_direct():
                    self._staging = mmap.mmap(-1, staging_bytes)
                if size_bytes > 0:
                    _preallocate(self._descriptor, size_bytes)
                if self._size > 0:
                    self._go_on()
            except BaseException:
                self.close()
                raise

    def _go_direct(self) -> bool:
        flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
        try:
            fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags | os.O_DIRECT)
        except OSError:
            return False
        return True

    def _go_on(self) -> None:
        """Place the descriptor behind what is kept; a direct write begins on a disk block, so part of one is staged."""
        # Whatever lies behind the end was not written by us: the file would be longer than its record says.
        os.ftruncate(self._descriptor, self._expected)
        start = self._size if self._staging is None else self._size // _DISK_BLOCK * _DISK_BLOCK
        os.lseek(self._descriptor, start, os.SEEK_SET)
        if self._staging is not None and self._size > start:
            with self._part.open("rb") as stream:
                stream.seek(start)
                self._staging[: self._size - start] = stream.read(self._size - start)
            self._staged = self._size - start

    def mark(self) -> None:
        """Note that a unit of work ends here, for `durable` to report once it has left the staging buffer."""
        self._marks.append((self._size, self._digest.hexdigest()))

    def durable(self) -> list[tuple[int, str]]:
        """Marks that are written by now and were not reported before: size of the file up to there, and its sha256."""
        written = self._size - self._staged
        reported = [mark for mark in self._marks if mark[0] <= written]
        self._marks = self._marks[len(reported) :]
        return reported

    def write(self, block: memoryview) -> None:
        """Append the bytes of `block`, one-dimensional and of single bytes.

        Raises:
            OutputError: The disk is full or failed.
        """
        self._digest.update(block)
        self._size += len(block)
        with output_errors(self._part, self._expected):
            if self._staging is None:
                _write_all(self._descriptor, block)
                return
            done = 0
            while done < len(block):
                room = min(len(self._staging) - self._staged, len(block) - done)
                self._staging[self._staged : self._staged + room] = block[done : done + room]
                done, self._staged = done + room, self._staged + room
                if self._staged == len(self._staging):
                    self._flush(self._staged)

    def _flush(self, size_bytes: int) -> None:
        """Write the first `size_bytes` of the staging buffer."""
        assert self._staging is not None
        with memoryview(self._staging) as staged:
            _write_all(self._descriptor, staged[:size_bytes])
        self._staged = 0

    def close(self) -> None:
        """Give up: close without finishing, leaving the `.part` file behind."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        if self._staging is not None:
            self._staging.close()
            self._staging = None

    def finish(self) -> Written:
        """Write what is left, close, and move into place."""
        assert self._size == self._expected, f"{self._path}: wrote {self._size} of {self._expected} bytes"
        with output_errors(self._path, self._expected):
            if self._staging is not None and self._staged > 0:
                # The tail is not a whole number of disk blocks, which direct writes need.
                flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
                fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags & ~os.O_DIRECT)
                self._flush(self._staged)
            self.close()
            os.rename(self._part, self._path)
        return Written(self._size, self._digest.hexdigest())


def _write_all(descriptor: int, block: memoryview) -> None:
    done = 0
    while done < len(block):
        done += os.write(descriptor, block[done:])


def _preallocate(descriptor: int, size_bytes: int) -> None:
    """Claim the file's blocks, so that a full disk is met before the work and not at 99 %."""
    try:
        os.posix_fallocate(descriptor, 0, size_bytes)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise


@contextmanager
def output_errors(path: Path, size_bytes: int) -> Iterator[None]:
    """Turn an OSError about `path` into an OutputError that says what is needed and what is free."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            free = shutil.disk_usage(_existing(path)).free
            raise OutputError(
                str(path),
                f"{error.strerror}: {size_bytes} bytes to write, {free} bytes free on the disk",
                hint="make room, then run the same command with --resume",
            ) from error
        raise OutputError(str(path), str(error.strerror), "a writable place", "check the path and its owner") from error


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def hash_file(path: Path) -> Written:
    """Size and sha256 of a file, read a piece at a time."""
    digest, size, buffer = hashlib.sha256(), 0, bytearray(_READ_BYTES)
    with path.open("rb", buffering=0) as stream:
        while (got := stream.readinto(buffer)) > 0:
            digest.update(memoryview(buffer)[:got])
            size += got
    return Written(size, digest.hexdigest())


class WorkDirectory:
    """The directory an artifact is built in; a context manager that keeps a lock on it.

    Leaving the context never removes it: a run that was stopped is resumed from it, and `publish`, `reject` and
    `discard` are how it goes.
    """

    def __init__(self, output: Path, *, job: Mapping[str, Any], resume: bool, force: bool) -> None:
        """Claim `output`.

        Args:
            output: Where the artifact shall appear.
            job: What identifies this job: equal jobs give equal bytes. JSON values.
            resume: Continue in a work directory left by the same job.
            force: Replace an existing artifact at the end.

        Raises:
            OutputError: `output` exists and may not be replaced, a work directory is left over and `resume` is false
                or belongs to another job, or another process is at work in it.
        """
        self.output = output
        self.path = work_path(output)
        self.force = force
        check_replaceable(output, force=force)
        self._job = json.loads(json.dumps(job))
        self._lock = threading.Lock()
        self._parents_made: list[Path] = []
        existed = self.path.exists()
        check_no_leftovers(output, resume=resume)
        self._make_directory()
        self._journal = self._open_journal()
        try:
            self.kept: dict[str, Kept] = {}
            self.finished: dict[str, Written] = self._verified() if existed else {}
            if os.fstat(self._journal).st_size == 0:
                self._append({"job": self._job})
        except BaseException:
            # The lock goes with the descriptor: a refusal must not keep the directory from a later attempt.
            os.close(self._journal)
            raise

    def __enter__(self) -> WorkDirectory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._journal >= 0:
            os.close(self._journal)
            self._journal = -1

    def _make_directory(self) -> None:
        missing = [parent for parent in (self.path, *self.path.parents) if not parent.exists()]
        with output_errors(self.path, 0):
            self.path.mkdir(parents=True, exist_ok=True)
        self._parents_made = missing[1:]

    def _open_journal(self) -> int:
        path = self.path / _JOURNAL
        with output_errors(path, 0):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise _busy(self.path) from error
        return descriptor

    def _verified(self) -> dict[str, Written]:
        """The journal's files whose bytes still are what it says."""
        content = (self.path / _JOURNAL).read_bytes()
        *lines, torn = content.split(b"\n")
        with output_errors(self.path / _JOURNAL, 0):
            # What is appended next must not become one line with the piece a killed run left.
            os.ftruncate(self._journal, len(content) - len(torn))
        entries = [json.loads(line) for line in lines if line.startswith(b"{") and line.endswith(b"}")]
        if len(entries) == 0:
            self._refuse_strangers()
            return {}
        self._refuse_other_job(entries[0].get("job", {}))
        finished: dict[str, Written] = {}
        marks: dict[str, list[Mapping[str, Any]]] = {}
        for entry in entries[1:]:
            if "upto" in entry:
                marks.setdefault(entry["file"], []).append(entry)
                continue
            written = Written(entry["bytes"], entry["sha256"], entry.get("overflowed", {}))
            path = self.path / entry["file"]
            if (
                path.is_file()
                and path.stat().st_size == written.size_bytes
                and hash_file(path).sha256 == written.sha256
            ):
                finished[entry["file"]] = written
        for file in marks.keys() - finished.keys():
            kept = _longest_kept(self._part(file), marks[file])
            if kept is not None:
                self.kept[file] = kept
        return finished

    def _part(self, file: str) -> Path:
        path = self.path / file
        return path.with_name(path.name + ".part")

    def _refuse_strangers(self) -> None:
        strangers = sorted(path.name for path in self.path.iterdir() if path.name != _JOURNAL)
        if len(strangers) > 0:
            raise OutputError(
                str(self.path),
                f"no journal beside {strangers[0]}: not a work directory of llmcompile",
                hint=f"move {self.path} away, or choose another OUTPUT",
            )

    def _refuse_other_job(self, before: Mapping[str, Any]) -> None:
        if before == self._job:
            return
        old, new = _flat(before), _flat(self._job)
        keys = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
        changes = "; ".join(f"{key} was {_short(old.get(key))}, now {_short(new.get(key))}" for key in keys)
        raise OutputError(
            str(self.path),
            f"belongs to another job: {changes}",
            "the same checkpoint and options",
            f"give the old options, or start over: rm -r {self.path}",
        )

    def _append(self, entry: Mapping[str, Any]) -> None:
        with self._lock, output_errors(self.path / _JOURNAL, 0):
            os.write(self._journal, json.dumps(entry).encode() + b"\n")

    def create(self, file: str, size_bytes: int, *, staging_bytes: int = _STAGING_BYTES) -> HashedFile:
        """Open `file` (a path inside the artifact) for writing, behind what is kept of it."""
        return HashedFile(self.path / file, size_bytes, staging_bytes=staging_bytes, kept=self.kept.get(file))

    def progress(self, file: str, size_bytes: int, sha256: str, overflowed: Mapping[str, int]) -> None:
        """Note in the journal that the first `size_bytes` of `file` are written and have this hash."""
        entry: dict[str, Any] = {"file": file, "upto": size_bytes, "sha256": sha256}
        if len(overflowed) > 0:
            entry["overflowed"] = dict(overflowed)
        self._append(entry)

    def record(self, file: str, written: Written) -> None:
        """Note in the journal that `file` is finished."""
        entry: dict[str, Any] = {"file": file, "bytes": written.size_bytes, "sha256": written.sha256}
        if len(written.overflowed) > 0:
            entry["overflowed"] = dict(written.overflowed)
        self._append(entry)
        with self._lock:
            self.finished[file] = written

    def forget(self, file: str) -> None:
        """Take a file that was removed from the work directory off the list of those finished."""
        with self._lock:
            self.finished.pop(file, None)

    def sweep(self) -> None:
        """Remove what lies in the work directory and is not finished: the debris of steps that failed."""
        kept = {self.path / file for file in self.finished} | {self.path / _JOURNAL}
        with output_errors(self.path, 0):
            for path in sorted(self.path.rglob("*"), reverse=True):
                if path.is_dir() and not path.is_symlink():
                    if not any(path.iterdir()):
                        path.rmdir()
                elif path not in kept:
                    path.unlink()

    def write_bytes(self, file: str, content: bytes) -> Written:
        """Write a small file at once and record it."""
        target = self.create(file, len(content))
        target.write(memoryview(content))
        written = target.finish()
        self.record(file, written)
        return written

    def take(
        self, file: str, source: Path, *, sha256: str | None, copy: bool, advance: Callable[[int, str], None]
    ) -> str:
        """Take over a finished file of somewhere else: shared blocks or a hard link where possible, a copy otherwise.

        Args:
            file: Path inside the artifact.
            source: The file; a symbolic link is followed.
            sha256: Hash it has by its own record, which a copy is compared with; None to read it and find out.
            copy: Copy in any case, so that nothing is shared.
            advance: Called with the bytes of each block that is read, and `file`.

        Returns:
            "shared", "linked" or "copied".

        Raises:
            CheckpointError: A copy has another hash than it should.
            OutputError: The disk is full, or the place cannot be written to.
        """
        target, size = self.path / file, source.stat().st_size
        how = None
        if not copy and size >= _LINKED_FROM_BYTES:
            with output_errors(target, size):
                target.parent.mkdir(parents=True, exist_ok=True)
                target.unlink(missing_ok=True)
            how = _shared(source.resolve(), target)
        if how is not None:
            written = hash_file(target) if sha256 is None else Written(size, sha256)
            advance(size, file)
        else:
            written = self._copied(file, source, size, advance)
        if sha256 is not None and written.sha256 != sha256:
            raise CheckpointError(str(source), f"sha256 {written.sha256}", sha256, "copy the artifact again")
        self.record(file, written)
        return "copied" if how is None else how

    def _copied(self, file: str, source: Path, size_bytes: int, advance: Callable[[int, str], None]) -> Written:
        """Copy, at once; what an interrupted run left of it is written again."""
        self.kept.pop(file, None)
        target = self.create(file, size_bytes)
        buffer = bytearray(_READ_BYTES)
        try:
            with source.open("rb", buffering=0) as stream:
                left = size_bytes
                while left > 0 and (got := stream.readinto(memoryview(buffer)[: min(left, _READ_BYTES)])) > 0:
                    target.write(memoryview(buffer)[:got])
                    advance(got, file)
                    left -= got
            if left > 0:
                raise CheckpointError(str(source), f"{left} bytes less than a moment ago", hint="is it being written?")
            return target.finish()
        except BaseException:
            target.close()
            raise

    def publish(self) -> None:
        """Rename the work directory to the output, exchanging it for an artifact that `force` replaces.

        Raises:
            OutputError: The output appeared meanwhile, or cannot be renamed.
        """
        check_replaceable(self.output, force=self.force)
        with output_errors(self.output, 0):
            _sync_file_system(self._journal)
            (self.path / _JOURNAL).unlink()
            if self.output.exists() and any(self.output.iterdir()):
                retired = free_name(self.output, "replaced")
                if _exchange(self.path, self.output):
                    os.rename(self.path, retired)
                else:
                    os.rename(self.output, retired)
                    os.rename(self.path, self.output)
                shutil.rmtree(retired)
            else:
                os.rename(self.path, self.output)
            _sync_directory(self.output.parent)

    def reject(self) -> Path:
        """Rename the work directory to `OUTPUT.rejected`, or the first free name after it, and return that."""
        rejected = free_name(self.output, "rejected")
        with output_errors(rejected, 0):
            (self.path / _JOURNAL).unlink()
            os.rename(self.path, rejected)
        return rejected

    def discard(self) -> None:
        """Remove the work directory and the parents made for it."""
        shutil.rmtree(self.path)
        for parent in self._parents_made:
            try:
                parent.rmdir()
            except OSError:
                return


def _shared(source: Path, target: Path) -> str | None:
    """Make `target` the same content as `source` without copying; None where the file system cannot.

    Source: ioctl_ficlonerange(2), link(2).
    """
    try:
        with source.open("rb") as stream, target.open("xb") as made:
            fcntl.ioctl(made.fileno(), _FICLONE, stream.fileno())
        return "shared"
    except OSError:
        target.unlink(missing_ok=True)
    try:
        os.link(source, target)
        return "linked"
    except OSError:
        return None


def _longest_kept(part: Path, marks: list[Mapping[str, Any]]) -> Kept | None:
    """The longest beginning of an unfinished file that is what one of its marks says."""
    digest, at, kept = hashlib.sha256(), 0, None
    try:
        with part.open("rb", buffering=0) as stream:
            for mark in sorted(marks, key=lambda mark: int(mark["upto"])):
                while at < mark["upto"]:
                    piece = stream.read(min(_READ_BYTES, mark["upto"] - at))
                    if len(piece) == 0:
                        return kept
                    digest.update(piece)
                    at += len(piece)
                if digest.hexdigest() != mark["sha256"]:
                    return kept
                kept = Kept(at, digest.copy(), mark.get("overflowed", {}))
    except OSError:
        return None
    return kept


def _flat(job: Mapping[str, Any]) -> dict[str, Any]:
    """Nested objects as one, so that a difference can be named."""
    flat: dict[str, Any] = {}
    for key, value in job.items():
        if isinstance(value, Mapping):
            flat.update({f"{key}.{inner}": item for inner, item in value.items()})
        else:
            flat[key] = value
    return flat


def work_path(output: Path) -> Path:
    """Where an artifact is built."""
    return output.with_name(output.name + ".partial")


def _refuse_busy(path: Path) -> None:
    """Refuse a work directory whose journal another process has locked."""
    try:
        descriptor = os.open(path / _JOURNAL, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise _busy(path) from error
    finally:
        os.close(descriptor)


def _busy(path: Path) -> OutputError:
    return OutputError(str(path), "another llmcompile is at work in it", "one run at a time", "wait for it, or stop it")


def check_no_leftovers(output: Path, *, resume: bool) -> None:
    """Refuse a work directory that an earlier run left, unless it shall be continued.

    Raises:
        OutputError: It is there and `resume` is false.
    """
    path = work_path(output)
    if path.exists() and not resume:
        _refuse_busy(path)
        raise OutputError(
            str(path),
            "left over from a run that did not finish",
            "no such directory",
            f"continue it with --resume, or remove it: rm -r {path}",
        )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def free_name(output: Path, ending: str) -> Path:
    """`OUTPUT.<ending>`, or `OUTPUT.<ending>-2` and so on: the first that does not exist."""
    candidate, number = output.with_name(f"{output.name}.{ending}"), 2
    while candidate.exists() or candidate.is_symlink():
        candidate, number = output.with_name(f"{output.name}.{ending}-{number}"), number + 1
    return candidate


def _sync_file_system(descriptor: int) -> None:
    """Flush the file system of an open file, so that the rename cannot reach the disk before the data does."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syncfs(descriptor) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _exchange(first: Path, second: Path) -> bool:
    """Swap two directories in one step; False where the system cannot. Source: renameat2(2), RENAME_EXCHANGE."""
    libc = ctypes.CDLL(None, use_errno=True)
    here, exchange = -100, 2
    rename = getattr(libc, "renameat2", None)
    if rename is None:
        return False
    return bool(rename(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_replaceable(output: Path, *, force: bool) -> None:
    """Refuse an `output` that exists, unless it is an empty directory or `force` may replace an artifact of ours.

    Raises:
        OutputError: Something that is not ours is in the way, or `force` was not given.
    """
    if not output.exists() and not output.is_symlink():
        return
    if not output.is_dir() or output.is_symlink():
        raise OutputError(str(output), "exists and is not a directory", "a new directory", "choose another OUTPUT")
    present = {str(path.relative_to(output)) for path in output.rglob("*") if path.is_symlink() or not path.is_dir()}
    if len(present) == 0:
        return
    if MANIFEST not in present:
        raise OutputError(
            str(output), "exists and is not an artifact of llmcompile", "a new directory", "choose another OUTPUT"
        )
    if not force:
        raise OutputError(str(output), "exists", "a new directory", "replace it with --force, or choose another OUTPUT")
    strangers = sorted(present - _listed(output) - {MANIFEST})
    if len(strangers) > 0:
        raise OutputError(
            str(output),
            f"holds files its manifest does not list: {', '.join(strangers[:5])}",
            "only what llmcompile wrote",
            "move them away, then repeat the command",
        )


def _listed(output: Path) -> set[str]:
    try:
        manifest = json.loads((output / MANIFEST).read_bytes())
        return {entry["path"] for entry in manifest["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return set()
