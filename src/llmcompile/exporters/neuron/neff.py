"""NEFF, the executable that neuronx-cc writes: a header of 1024 bytes and a tar archive, which is never unpacked.

Source: aws-neuron/aws-neuron-sdk@81ce03ae:neuron-runtime/explore/work-with-neff-files.rst (neff_header_t). That page
gives the hash as "sha256 or md5 depending on the pkg_version"; which is which, and that it covers what follows the
header, is from public readings of the loader and was never held against a file of the vendor's.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import struct
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, Protocol

from llmcompile.errors import ToolchainError

HEADER_BYTES = 1024
_HEADER = struct.Struct("<QQQQQ128sI32s16s256sI64sQI468s")
"""The fields' natural alignment is that of the packed form, so `<` and the C struct agree."""
_HASHES: Mapping[int, Callable[[], Any]] = MappingProxyType(
    {1: hashlib.sha256, 2: partial(hashlib.md5, usedforsecurity=False)}
)
"""pkg_version -> hash of all that follows the header."""
_READ_BYTES = 1 << 20
_GZIP = b"\x1f\x8b"
_INFO = "info.json"
_MOST_INFO_BYTES = 1 << 20
_MOST_NAME_BYTES = 1 << 16
_MOST_MEMBERS = 100_000
_MOST_ARCHIVE_BYTES = 64 << 30
"""Of the archive when decompressed: above any core's memory, so that a small file cannot keep us busy for days."""
_BLOCK = 512
_FILES, _LONG_NAME, _PAX, _OF_ANOTHER = (b"0", b"\0", b"7"), b"L", b"x", (b"K", b"g")
"""Kinds of record: regular files; what the next member is called; what does not concern it."""


@dataclass(frozen=True, kw_only=True)
class Neff:
    """What a NEFF says of itself.

    Attributes:
        pkg_version: Of the container; decides the hash.
        size_bytes: Of the whole file.
        version: Of the format, major and minor.
        build: Of the packager.
        name: Of the executable.
        uuid: Of this very file.
        hash: Of all that follows the header, in hexadecimal.
        cores: NeuronCores it runs on.
        requested_cores: NeuronCores asked for when it was compiled.
        feature_bits: What a runtime must know to load it; one that lacks a bit refuses.
        lnc: Physical cores that a logical core is made of; 1 where the file is older than the field.
        compressed: Whether the archive is.
        compiler_version: Of the compiler that made it; None where info.json does not say.
        members: Files of the archive -> their size in bytes.
    """

    pkg_version: int
    size_bytes: int
    version: tuple[int, int]
    build: str
    name: str
    uuid: str
    hash: str
    cores: int
    requested_cores: int
    feature_bits: int
    lnc: int
    compressed: bool
    compiler_version: str | None
    members: Mapping[str, int]


def read_neff(path: Path) -> Neff:
    """Read a NEFF's header, verify its size and hash, and list its archive.

    Raises:
        ValueError: It is no NEFF, or damaged, or its archive is none that a compiler writes.
        OSError: It cannot be read.
    """
    with path.open("rb") as stream:
        head = stream.read(HEADER_BYTES)
        fields = _fields(head)
        size = stream.seek(0, 2)
        if size != HEADER_BYTES + fields["data_size"]:
            raise ValueError(f"{size} bytes; expected {HEADER_BYTES} + {fields['data_size']}, as its header says")
        found, expected = _hash(stream, fields["pkg_version"]), fields["hash"]
        if found != expected:
            raise ValueError(f"what follows the header has the hash {found}; expected {expected}, as its header says")
        stream.seek(HEADER_BYTES)
        compressed = stream.read(len(_GZIP)) == _GZIP
        stream.seek(HEADER_BYTES)
        members, info = _archive(stream, compressed)
    tool_version = info.get("tool_version")
    return Neff(
        pkg_version=fields["pkg_version"],
        size_bytes=size,
        version=(fields["major"], fields["minor"]),
        build=fields["build"],
        name=fields["name"],
        uuid=fields["uuid"],
        hash=expected,
        cores=fields["cores"],
        requested_cores=fields["requested_cores"],
        feature_bits=fields["feature_bits"],
        lnc=max(1, fields["lnc"]),
        compressed=compressed,
        compiler_version=None if not isinstance(tool_version, str) else tool_version,
        members=MappingProxyType(members),
    )


def check_neff(path: Path, *, compiler_version: str | None = None, lnc: int | None = None) -> Neff:
    """Read a NEFF and hold it against what it should be.

    Args:
        path: The file.
        compiler_version: Of the compiler that should have made it; None for any. What follows a "+" does not count.
        lnc: Physical cores of a logical core; None for any.

    Raises:
        ToolchainError: It is absent, damaged, or another's.
    """
    try:
        neff = read_neff(path)
    except OSError as error:
        raise ToolchainError(str(path), str(error.strerror), "a NEFF") from error
    except ValueError as error:
        raise ToolchainError(str(path), str(error), "a whole NEFF", "compile the graph again") from error
    made_by = neff.compiler_version
    if compiler_version is not None and made_by is not None and _release(made_by) != _release(compiler_version):
        raise ToolchainError(
            str(path),
            f"made by neuronx-cc {made_by}",
            f"{compiler_version}, which was run",
            "a runtime loads only what it knows: compile the graph again",
        )
    if lnc is not None and neff.lnc != lnc:
        raise ToolchainError(
            str(path), f"{neff.lnc} physical cores to a logical core", f"{lnc}", "compile the graph again"
        )
    return neff


def _release(version: str) -> str:
    return version.partition("+")[0]


def _fields(head: bytes) -> dict[str, Any]:
    if len(head) < HEADER_BYTES:
        raise ValueError(f"{len(head)} bytes; expected a header of {HEADER_BYTES}")
    pkg_version, header_size, data_size, major, minor, build, *rest = _HEADER.unpack(head)
    cores, digest, unique, name, requested_cores, _, feature_bits, lnc, _ = rest
    if header_size != HEADER_BYTES or pkg_version not in _HASHES:
        raise ValueError(
            f"container version {pkg_version} with a header of {header_size} bytes; "
            f"expected 1 or 2, and {HEADER_BYTES}: no NEFF"
        )
    return {
        "pkg_version": pkg_version,
        "data_size": data_size,
        "major": major,
        "minor": minor,
        "build": _text(build),
        "cores": cores,
        "hash": digest[: _HASHES[pkg_version]().digest_size].hex(),
        "uuid": str(uuid.UUID(bytes=unique)),
        "name": _text(name),
        "requested_cores": requested_cores,
        "feature_bits": feature_bits,
        "lnc": lnc,
    }


def _text(padded: bytes) -> str:
    return padded.partition(b"\0")[0].decode(errors="replace")


def _hash(stream: IO[bytes], pkg_version: int) -> str:
    digest = _HASHES[pkg_version]()
    stream.seek(HEADER_BYTES)
    while (piece := stream.read(_READ_BYTES)) != b"":
        digest.update(piece)
    return str(digest.hexdigest())


def _archive(stream: IO[bytes], compressed: bool) -> tuple[dict[str, int], Mapping[str, Any]]:
    """The archive's files and their sizes, and what info.json holds."""
    members: dict[str, int] = {}
    info: Mapping[str, Any] = {}
    source: _Readable = gzip.GzipFile(fileobj=stream) if compressed else stream
    try:
        for name, size, content in _members(_Bounded(source)):
            members[name] = size
            if name == _INFO:
                info = _parsed(content(_MOST_INFO_BYTES))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"the archive cannot be decompressed: {error}") from error
    return members, info


def _parsed(content: bytes) -> Mapping[str, Any]:
    try:
        info = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{_INFO} is not readable as JSON") from error
    if not isinstance(info, dict):
        raise ValueError(f"{_INFO} holds a JSON {type(info).__name__}; expected an object")
    return info


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Bounded:
    """Reads a stream front to back and refuses to be kept busy."""

    def __init__(self, source: _Readable) -> None:
        self._source = source
        self._left = _MOST_ARCHIVE_BYTES

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes, which fit in memory."""
        pieces = []
        while size > 0 and (piece := self._source.read(min(size, _READ_BYTES))) != b"":
            pieces.append(piece)
            size -= len(piece)
            self._count(len(piece))
        if size > 0:
            raise ValueError("the archive is cut off")
        return b"".join(pieces)

    def skip(self, size: int) -> None:
        """Go `size` bytes on, holding few of them."""
        while size > 0:
            piece = self._source.read(min(size, _READ_BYTES))
            if piece == b"":
                raise ValueError("the archive is cut off")
            size -= len(piece)
            self._count(len(piece))

    def _count(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise ValueError(f"the archive holds more than {_MOST_ARCHIVE_BYTES >> 30} GiB")


def _members(source: _Bounded) -> Iterator[tuple[str, int, Callable[[int], bytes]]]:
    """Name, size and a reader of the content of every regular file, without following what the archive says of others.

    Not `tarfile`: it holds the records before a member, which may be of any size, in memory.
    Source: POSIX.1-2017, pax: "ustar Interchange Format", "pax Header Block"; GNU tar 1.35: "Basic Tar Format".
    """
    given_name, given_size = "", -1
    for _ in range(_MOST_MEMBERS):
        block = source.read(_BLOCK)
        if block == bytes(_BLOCK):
            return
        _verify(block)
        kind, size = block[156:157], _number(block[124:136])
        left = -(-size // _BLOCK) * _BLOCK
        if kind in (_LONG_NAME, _PAX):
            if size > _MOST_NAME_BYTES:
                raise ValueError(f"a member's name has {size} bytes")
            content = source.read(left)[:size]
            if kind == _LONG_NAME:
                given_name = _text(content)
            else:
                given_name, given_size = _pax(content, given_name, given_size)
            continue
        if kind in _OF_ANOTHER:
            source.skip(left)
            continue
        name = given_name if given_name != "" else _name(block)
        size = given_size if given_size >= 0 else size
        left = -(-size // _BLOCK) * _BLOCK if kind in _FILES else left
        given_name, given_size = "", -1
        if kind not in _FILES:
            source.skip(left)
            continue
        taken = 0

        def content_of(most: int, size: int = size) -> bytes:
            nonlocal taken
            if size > most:
                raise ValueError(f"a member of {size} bytes; expected {most} at most")
            taken = size
            return source.read(size)

        yield _safe(name), size, content_of
        source.skip(left - taken)
    raise ValueError(f"the archive has more than {_MOST_MEMBERS} members")


def _safe(name: str) -> str:
    """A member's name without a leading "./"; one that leads out of the archive is no compiler's work."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or parts == []:
        raise ValueError(f"a member is called {name!r}; expected a path inside the archive")
    return "/".join(parts)


def _verify(block: bytes) -> None:
    plain = sum(block) - sum(block[148:156]) + 8 * ord(" ")
    if plain != _number(block[148:156]):
        raise ValueError("the archive's headers are damaged, or it is none")


def _name(block: bytes) -> str:
    prefix = _text(block[345:500]) if block[257:263] == b"ustar\0" else ""
    return f"{prefix}/{_text(block[:100])}" if prefix != "" else _text(block[:100])


def _number(field: bytes) -> int:
    """A number in octal digits, or where it is too large for those in base 256."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big") - (1 << (8 * len(field) - 1))
    else:
        digits = field.strip(b" \0")
        if any(digit not in b"01234567" for digit in digits):
            raise ValueError("the archive's headers are damaged, or it is none")
        value = int(digits, 8) if digits != b"" else 0
    if value > _MOST_ARCHIVE_BYTES:
        raise ValueError(f"a member of {value} bytes")
    return value


def _pax(content: bytes, name: str, size: int) -> tuple[str, int]:
    """Path and size among a header's records, each a LENGTH KEY=VALUE and a newline; as given where there is none."""
    while content != b"":
        length = content.split(b" ", 1)[0]
        if not length.isdigit() or not len(length) < int(length) <= len(content):
            raise ValueError("the archive's headers are damaged")
        key, _, value = content[len(length) + 1 : int(length) - 1].partition(b"=")
        if key == b"path":
            name = _text(value)
        elif key == b"size":
            if not value.isdigit() or int(value) > _MOST_ARCHIVE_BYTES:
                raise ValueError("the archive's headers are damaged")
            size = int(value)
        content = content[int(length) :]
    return name, size
