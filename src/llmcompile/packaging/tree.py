"""A folder of files as a server will find it: on disk, in a tar archive, or only planned."""

from __future__ import annotations

import errno
import lzma
import os
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from llmcompile.checkpoint.folder import contained
from llmcompile.errors import CheckpointError

if TYPE_CHECKING:
    from typing_extensions import Self

_MOST_PATHS = 50_000
"""Files and folders of a package; links to one another could make any number of them."""
_ARCHIVE_BYTES = 4 << 40
"""The most that an archive's members may claim to hold: no package has weights of 4 TiB."""
_HEADER_BYTES = 1 << 20
"""The longest header that goes before a member's own, for a name that does not fit there."""
_NAME_CHARACTERS = 4096
"""The longest path that Linux takes; the folders of one with a million are another half a million names."""
READ_BYTES = 32 << 20
"""The largest file that is ever read whole: a tokenizer.json of a large vocabulary has about 20 MiB."""
_KEPT_BYTES = 1 << 20
"""Up to this, a member of an archive is kept when the archive is listed: what is compressed has no other beginning."""
_KEPT_FILES = 64


@dataclass(frozen=True)
class Tree:
    """Files by their paths, with forward slashes, relative to a root; contents are read only when asked for.

    Attributes:
        name: How the root is called in messages.
        files: Path -> bytes, in order of the paths.
        folders: Every folder below the root, empty ones included.
        load: Reads a file that is in `files`.
        odd: Names of an archive's members that lead out of the folder it is unpacked to.
        repeated: Names that more than one of an archive's files has.
        gzipped: Whether an archive is compressed by gzip; None for what is no archive.
    """

    name: str
    files: Mapping[str, int]
    folders: frozenset[str]
    load: Callable[[str], bytes]
    odd: tuple[str, ...] = ()
    repeated: tuple[str, ...] = ()
    gzipped: bool | None = None

    def read(self, path: str) -> bytes:
        """The bytes of a file.

        Raises:
            CheckpointError: It is not there, larger than `READ_BYTES`, or cannot be read.
        """
        size = self.files.get(path)
        if size is None:
            raise CheckpointError(f"{self.name}/{path}", "no such file", hint="check the path")
        if size > READ_BYTES:
            raise CheckpointError(f"{self.name}/{path}", f"{size} bytes", f"at most {READ_BYTES} for a text file")
        try:
            return self.load(path)
        except OSError as error:
            found = f"cannot be read: {error.strerror}"
            raise CheckpointError(f"{self.name}/{path}", found, "a file", "check its permissions") from error

    def text(self, path: str) -> str:
        """A file as UTF-8; bytes that are not become U+FFFD, so that a rule can name them.

        Raises:
            CheckpointError: As for `read`.
        """
        return self.read(path).decode("utf-8", errors="replace")

    def matching(self, pattern: str) -> tuple[str, ...]:
        """Paths that fit a shell pattern; "*" does not stop at a slash."""
        return tuple(path for path in self.files if fnmatchcase(path, pattern))

    def under(self, folder: str) -> Tree:
        """The same files seen from a folder of it."""
        inside = f"{folder}/"
        return Tree(
            f"{self.name}/{folder}",
            {path.removeprefix(inside): size for path, size in self.files.items() if path.startswith(inside)},
            frozenset(path.removeprefix(inside) for path in self.folders if path.startswith(inside)),
            lambda path: self.load(inside + path),
            self.odd,
            tuple(path.removeprefix(inside) for path in self.repeated if path.startswith(inside)),
            self.gzipped,
        )

    def parts(self) -> tuple[str, ...]:
        """Names of the folders directly below the root, sorted."""
        return tuple(sorted(path for path in self.folders if "/" not in path))


def from_folder(root: Path) -> Tree:
    """A folder on disk; links in it are followed, as a server would, and refused when read if they lead out of it.

    What is neither a file nor a folder is left out: to read a pipe is to wait for its writer.

    Raises:
        CheckpointError: There is no such folder, it has too many files, or it cannot be listed: a path in it is longer
            than the system takes.
    """
    if not root.is_dir():
        raise CheckpointError(str(root), "no such folder", hint="pass a folder")
    files: dict[str, int] = {}
    folders: set[str] = set()
    try:
        for count, path in enumerate(_walked(root)):
            if count == _MOST_PATHS:
                raise CheckpointError(str(root), f"more than {_MOST_PATHS} files", "a package", "check the path")
            relative = path.relative_to(root).as_posix()
            if path.is_dir():
                folders.add(relative)
            elif path.is_file():
                files[relative] = path.stat().st_size
    except OSError as error:
        found = f"cannot be listed: {error.strerror}"
        raise CheckpointError(str(root), found, "files that the system can open", "remove what is too deep") from error
    listed = dict(sorted(files.items()))
    return Tree(str(root), listed, frozenset(folders), lambda path: contained(root, path).read_bytes())


def _walked(root: Path) -> Iterator[Path]:
    """Everything below a folder; a linked folder is entered where it is inside it, and once on the way to a path.

    Raises:
        OSError: A folder cannot be listed.
    """
    home = os.path.realpath(root)
    waiting: list[tuple[Path, frozenset[str]]] = [(root, frozenset({home}))]
    while len(waiting) > 0:
        folder, above = waiting.pop()
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            path = folder / entry.name
            yield path
            if not entry.is_dir():
                continue
            real = os.path.realpath(path)
            if real not in above and Path(real).is_relative_to(home):
                waiting.append((path, above | {real}))


def from_archive(path: Path) -> Tree:
    """A tar archive, compressed or not; members keep the names they have in it, but for a leading "./".

    Raises:
        CheckpointError: It cannot be read as a tar archive, or claims more than a package has.
    """
    members: list[tarfile.TarInfo] = []
    kept: dict[str, bytes] = {}
    claimed = 0
    try:
        with tarfile.open(path, tarinfo=_Header) as archive:
            for member in archive:
                members.append(member)
                claimed += member.size
                # A negative size, which Python before 3.11.14 takes, would lead back to the same member.
                if member.size < 0 or claimed > _ARCHIVE_BYTES:
                    found = f"members of {claimed} bytes"
                    raise CheckpointError(str(path), found, f"0 to {_ARCHIVE_BYTES} bytes", "make the archive again")
                if len(members) > _MOST_PATHS:
                    raise CheckpointError(str(path), f"more than {_MOST_PATHS} files", "a package", "check the path")
                if len(member.name) > _NAME_CHARACTERS:
                    found = f"a name of {len(member.name)} characters"
                    raise CheckpointError(str(path), found, f"at most {_NAME_CHARACTERS}", "make the archive again")
                # Of two members with one name the later counts, also where it is not kept.
                kept.pop(_plain(member.name), None)
                if member.isfile() and member.size <= _KEPT_BYTES and len(kept) < _KEPT_FILES:
                    kept[_plain(member.name)] = _content(archive, member)
    # tarfile raises some of these as they are: for headers that go before one another, and for lists of holes.
    except (
        OSError,
        EOFError,
        ValueError,
        OverflowError,
        RecursionError,
        zlib.error,
        lzma.LZMAError,
        tarfile.TarError,
    ) as error:
        found = f"not a tar archive: {error}"
        raise CheckpointError(str(path), found, "a folder or model.tar.gz", "check the path") from error
    named = {_plain(member.name): member for member in members if _plain(member.name) not in ("", ".")}
    files = {name: member.size for name, member in sorted(named.items()) if member.isfile()}
    above: set[str] = set()
    for name in named:
        for parent in _parents(name):
            if parent in above:
                break
            above.add(parent)
    folders = above.union(name for name, member in named.items() if member.isdir())
    times = Counter(_plain(member.name) for member in members if member.isfile())

    def load(name: str) -> bytes:
        if name in kept:
            return kept[name]
        with tarfile.open(path) as archive:
            return _content(archive, named[name])

    odd = tuple(member.name for member in members if member.name.startswith("/") or ".." in member.name.split("/"))
    repeated = tuple(sorted(name for name, count in times.items() if count > 1))
    return Tree(str(path), files, frozenset(folders), load, odd, repeated, _gzipped(path))


class _Header(tarfile.TarInfo):
    """A member's header; tarfile reads one for a long name whole, however long it says that it is."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """As `tarfile.TarInfo.frombuf`.

        Raises:
            tarfile.TarError: It is one for a long name, and longer than such headers are.
        """
        header = super().frombuf(buf, encoding, errors)
        if header.type in _LONG and not 0 <= header.size <= _HEADER_BYTES:
            raise tarfile.TarError(f"a header of {header.size} bytes")
        return header


_LONG = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)


def _gzipped(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = archive.extractfile(member)
    assert stream is not None
    try:
        return stream.read()
    except (EOFError, zlib.error, lzma.LZMAError, tarfile.TarError) as error:
        raise OSError(errno.EIO, f"damaged: {error}") from error


def _plain(name: str) -> str:
    return name.removeprefix("./").rstrip("/")


def _parents(path: str) -> Iterator[str]:
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path


def planned(name: str, texts: Mapping[str, str], links: Mapping[str, str], folders: tuple[str, ...], of: Tree) -> Tree:
    """What a package will hold before it is written.

    Args:
        name: Where it will be.
        texts: Path -> content of the files that are generated.
        links: Path -> path in `of` of the files that are taken over.
        folders: Folders that must exist, even when empty.
        of: The artifact.
    """
    sizes = {path: len(text.encode()) for path, text in texts.items()}
    sizes |= {path: of.files[source] for path, source in links.items()}
    every = {*folders, *(parent for path in (*sizes, *folders) for parent in _parents(path))}
    return Tree(
        name,
        dict(sorted(sizes.items())),
        frozenset(every),
        lambda path: texts[path].encode() if path in texts else of.load(links[path]),
    )
