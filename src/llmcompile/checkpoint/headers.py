"""What a checkpoint's files hold: names, types, shapes and byte ranges, read without touching tensor data."""

from __future__ import annotations

import json
import reprlib
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from llmcompile.dtypes import BY_CODE, DType, Shape, count
from llmcompile.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000
"""Largest header the safetensors library reads. Source: huggingface/safetensors@main:safetensors/src/tensor.rs."""
_MAX_COUNT = 2**63 - 1
_MAX_AXES = 32
"""Largest size and most axes of an array in the oldest NumPy we support."""
_LFS_MAGIC = b"version https://git-lfs.github.com/spec/"


@dataclass(frozen=True)
class Stored:
    """A tensor where it lies in a checkpoint.

    Attributes:
        name: As in the file.
        file: Name of the file inside the checkpoint folder.
        dtype: Element type.
        shape: As stored.
        offset: Bytes from the start of the file to the first element.
        strides: Elements between neighbours of each axis; None for C order, which all but odd pickles have.
        shards: Where the tensor is divided among files, its parts in order; `file` and `offset` are the first one's.
        axis: The axis they are joined along, 0 or 1.
    """

    name: str
    file: str
    dtype: DType
    shape: Shape
    offset: int
    strides: tuple[int, ...] | None = None
    shards: tuple[Stored, ...] = ()
    axis: int = 0

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensor's elements."""
        return count(self.shape) * self.dtype.size_bytes


def safetensors_header(path: Path, file: str) -> tuple[Stored, ...]:
    """Read the header of a safetensors file on disk.

    Args:
        path: The file.
        file: Its name in messages and in `Stored.file`.

    Raises:
        CheckpointError: The file is a git-lfs pointer, truncated, or its header lies.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:

        def read(offset: int, length: int) -> bytes:
            stream.seek(offset)
            return stream.read(length)

        return parse_safetensors(read, size, file)


def parse_safetensors(read: Callable[[int, int], bytes], size: int, file: str) -> tuple[Stored, ...]:
    """Parse a safetensors header through `read(offset, length)`, so that range requests do as well as files.

    Args:
        read: Returns up to `length` bytes from `offset`.
        size: Bytes in the file.
        file: Its name.

    Raises:
        CheckpointError: As for `safetensors_header`.

    Source: huggingface/safetensors@main:README.md (8-byte little-endian length, JSON, then the data).
    """
    prefix = read(0, 8)
    reject_lfs_pointer(prefix + read(8, len(_LFS_MAGIC)), file)
    if len(prefix) < 8:
        _refuse(file, f"{size} bytes", "at least 8, the length of a safetensors header")
    (length,) = struct.unpack("<Q", prefix)
    if length > MAX_HEADER_BYTES:
        _refuse(file, f"a header of {length} bytes", f"at most {MAX_HEADER_BYTES}; is it a safetensors file?")
    start = 8 + length
    if start > size:
        _refuse(file, f"{size} bytes", f"at least {start}: 8 + a header of {length} bytes", _TRUNCATED)
    header = _parse_json(read(8, length), file)
    tensors = tuple(
        _parse_entry(name, entry, start, size, file) for name, entry in header.items() if name != "__metadata__"
    )
    _reject_overlaps(tensors, start, size, file)
    return tensors


def reject_lfs_pointer(start: bytes, file: str) -> None:
    """Raise CheckpointError when `start`, a file's first bytes, are those of a git-lfs pointer."""
    if start.startswith(_LFS_MAGIC[: len(start)]) and len(start) >= 8:
        raise CheckpointError(
            file,
            "a git-lfs pointer, not the weights themselves",
            hint="run `git lfs install && git lfs pull` in the checkpoint folder",
        )


_TRUNCATED = "the file is truncated: download or copy it again"
_BROKEN = "the file is damaged, or written by something else: download it again"


def _refuse(subject: str, found: str, expected: str, hint: str = _BROKEN) -> NoReturn:
    raise CheckpointError(subject, found, expected, hint)


def strict_json(text: bytes, subject: str) -> Any:
    """Parse JSON, refusing what `json.loads` lets pass: NaN, infinities, repeated keys and encodings but UTF-8.

    Raises:
        CheckpointError: `text` is not such JSON; the message names `subject`.
    """

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        unique = dict(items)
        if len(unique) != len(items):
            twice, _ = Counter(name for name, _ in items).most_common(1)[0]
            raise ValueError(f"the key {twice!r} twice")
        return unique

    def constant(name: str) -> NoReturn:
        raise ValueError(f"the value {name}")

    try:
        return json.loads(text.decode(), object_pairs_hook=pairs, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(subject, f"not valid JSON ({error})", "UTF-8 JSON", _BROKEN) from error


def _parse_json(text: bytes, file: str) -> dict[str, Any]:
    header = strict_json(text, f"{file}: header")
    if not isinstance(header, dict):
        _refuse(f"{file}: header", f"a JSON {type(header).__name__}", "an object")
    return header


def _parse_entry(name: str, entry: Any, start: int, size: int, file: str) -> Stored:
    subject = f"{name} in {file}"
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        _refuse(subject, f"the header entry {reprlib.repr(entry)}", "dtype, shape and data_offsets")
    code = entry["dtype"]
    dtype = BY_CODE.get(code) if isinstance(code, str) else None
    if dtype is None:
        _refuse(subject, f"dtype {reprlib.repr(code)}", f"one of {', '.join(BY_CODE)}")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _counts(shape) or not _counts(offsets) or len(offsets) != 2:
        found = f"shape {reprlib.repr(shape)} at {reprlib.repr(offsets)}"
        _refuse(subject, found, f"lists of at most {_MAX_AXES} integers from 0 to {_MAX_COUNT}")
    begin, end = offsets
    stored = Stored(name, file, dtype, tuple(shape), start + begin)
    if end - begin != stored.size_bytes:
        product = " x ".join(str(side) for side in shape) if len(shape) > 0 else "1"
        _refuse(
            subject,
            f"{end - begin} bytes at {begin}..{end}",
            f"{product} x {dtype.size_bytes} bytes = {stored.size_bytes}",
        )
    if start + end > size:
        _refuse(subject, f"the file ends at byte {size}", f"at least {start + end} bytes", _TRUNCATED)
    return stored


def _counts(value: Any) -> bool:
    if not isinstance(value, list) or len(value) > _MAX_AXES:
        return False
    return all(type(item) is int and 0 <= item <= _MAX_COUNT for item in value)


def _reject_overlaps(tensors: tuple[Stored, ...], start: int, size: int, file: str) -> None:
    """The data section is covered exactly once, as the safetensors library itself demands."""
    end, previous = start, "the header"
    for tensor in sorted((t for t in tensors if t.size_bytes > 0), key=lambda t: t.offset):
        if tensor.offset != end:
            where = "inside or before" if tensor.offset < end else "after a hole behind"
            _refuse(f"{tensor.name} in {file}", f"its bytes start at {tensor.offset}, {where} {previous}", f"{end}")
        end, previous = tensor.offset + tensor.size_bytes, tensor.name
    if end != size:
        _refuse(file, f"{size} bytes", f"{end}, where the last tensor ends")
