"""The ranks' files of weights: checked by their headers, then mapped, or read once where XLA cannot use them in place.

Source: the format, huggingface/safetensors@main:README.md; file and tensor names, neuronx-distributed
(trace/model_builder.py: shard_weights_with_cache).
"""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from llmcompile.errors import MismatchError, Problem, collected
from llmcompile.validation import xla
from llmcompile.validation.neuron_artifact.graphs import Graph, Value
from llmcompile.validation.xla import Array, Buffers

FOLDER: Final = "weights"
_NAME: Final = "tp{rank}_sharded_checkpoint.safetensors"
_CODES: Final[Mapping[str, str]] = MappingProxyType(
    {
        **{"F64": "f64", "F32": "f32", "F16": "f16", "BF16": "bf16", "BOOL": "pred"},
        **{f"I{bits}": f"s{bits}" for bits in (8, 16, 32, 64)},
        **{f"U{bits}": f"u{bits}" for bits in (8, 16, 32, 64)},
    }
)
_RANK: Final = re.compile(r"(^|\.)rank_util\.rank$")
"""Tensors that hold the number of the rank; the vendor's loader wants them, a graph may not."""
_HINT: Final = "export the model again"
_LARGEST_HEADER: Final = 100_000_000
"""Bytes; the library's own limit."""


@dataclass(frozen=True)
class _Stored:
    """Where a tensor lies in a file."""

    value: Value
    start: int
    size_bytes: int


@dataclass(frozen=True)
class RankFile:
    """One rank's file.

    Attributes:
        path: Of the file.
        tensors: What is in it, by name.
    """

    path: Path
    tensors: Mapping[str, _Stored]

    def read(self, name: str, mapped: mmap.mmap) -> Array:
        """A tensor, in place where it lies at an address that XLA can use."""
        stored = self.tensors[name]
        dtype = xla.element_type(stored.value.dtype)
        if stored.start % xla.ALIGNMENT == 0 and stored.size_bytes > 0:
            flat = np.frombuffer(mapped, dtype=dtype, count=stored.size_bytes // dtype.itemsize, offset=stored.start)
            return flat.reshape(stored.value.shape)
        array = xla.aligned(stored.value.shape, dtype)
        with self.path.open("rb") as file:
            file.seek(stored.start)
            if file.readinto(array.reshape(-1).view(np.uint8).data) != stored.size_bytes:
                raise MismatchError(
                    str(self.path), f"shrank while {name} was read", f"{stored.size_bytes} bytes", _HINT
                )
        return array


def open_weights(folder: Path, graphs: Sequence[Graph]) -> tuple[RankFile, ...]:
    """Check that every rank's file holds what the graphs take, and nothing else.

    Raises:
        MismatchError: A file or tensor is missing, surplus, truncated, or has another element type or shape.
    """
    ranks = graphs[0].ranks
    names = [_NAME.format(rank=rank) for rank in range(ranks)]
    problems = [
        Problem(str(path), "a file that no rank opens", f"{ranks} files", _HINT)
        for path in sorted((folder / FOLDER).glob("*"))
        if path.name not in names
    ]
    required: dict[str, Value] = {}
    for graph in graphs:
        for value in graph.weights:
            if required.setdefault(value.name, value) != value:
                expected = f"{required[value.name]}, as in {graphs[0].name}"
                problems.append(Problem(f"{graph.path}: weights", str(value), expected, _HINT))
    files = []
    for rank, name in enumerate(names):
        try:
            file = _header(folder / FOLDER / name)
        except MismatchError as error:
            problems += error.problems
            continue
        files.append(file)
        problems += _differences(file, rank, required)
    if len(problems) > 0:
        raise collected(MismatchError, problems)
    return tuple(files)


class Weights:
    """The ranks' weights on the devices; each tensor is placed when it is first asked for, and stays."""

    def __init__(self, files: Sequence[RankFile]) -> None:
        self._files = files
        self._mapped = [_map(file.path) for file in files]
        self._placed: dict[str, Buffers] = {}

    def of(self, graph: Graph) -> list[Buffers]:
        """What a graph takes, in the order of its parameters."""
        return [self.tensor(value.name) for value in graph.weights]

    def tensor(self, name: str) -> Buffers:
        """One tensor of every rank."""
        if name not in self._placed:
            self._placed[name] = xla.place(self.shares(name))
        return self._placed[name]

    def shares(self, name: str) -> list[Array]:
        """One tensor of every rank, on the host."""
        return [file.read(name, mapped) for file, mapped in zip(self._files, self._mapped, strict=True)]


def _map(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _header(path: Path) -> RankFile:
    """Read where the tensors lie.

    Raises:
        MismatchError: It is no safetensors file, or ends too early.
    """
    try:
        size_bytes = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size_bytes < 8 or not 2 <= length <= min(_LARGEST_HEADER, size_bytes - 8):
                raise ValueError(f"a header of {length} bytes in a file of {size_bytes}")
            content = json.loads(file.read(length))
        tensors = dict(_tensors(content, 8 + length))
    except OSError as error:
        raise MismatchError(str(path), f"unreadable ({error.strerror})", "a rank's weights", _HINT) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise MismatchError(str(path), f"no safetensors file ({error})", "a rank's weights", _HINT) from error
    ends = max((stored.start + stored.size_bytes for stored in tensors.values()), default=8 + length)
    if ends != size_bytes:
        raise MismatchError(str(path), f"{size_bytes} bytes", f"{ends}, by its header", _HINT)
    return RankFile(path, tensors)


def _tensors(content: Any, base: int) -> Iterator[tuple[str, _Stored]]:
    if not isinstance(content, dict):
        raise ValueError(f"a header that is a JSON {type(content).__name__}")
    for name, item in content.items():
        if name == "__metadata__":
            continue
        start, end = item["data_offsets"]
        shape = tuple(item["shape"])
        code = item["dtype"]
        if not all(isinstance(number, int) and number >= 0 for number in (start, end, *shape)):
            raise ValueError(f"{name}: numbers that are none")
        dtype = _CODES.get(code, str(code).lower())
        if code in _CODES and end - start != int(np.prod(shape, dtype=np.int64)) * xla.element_type(dtype).itemsize:
            raise ValueError(f"{name}: {end - start} bytes for {dtype}{list(shape)}")
        yield name, _Stored(Value(name, dtype, shape), base + start, end - start)


def _differences(file: RankFile, rank: int, required: Mapping[str, Value]) -> Iterator[Problem]:
    for name, value in required.items():
        stored = file.tensors.get(name)
        if stored is None:
            yield Problem(f"{file.path}: {name}", "missing", value.kind, _HINT)
        elif stored.value != value:
            yield Problem(f"{file.path}: {name}", stored.value.kind, f"{value.kind}, which the graphs take", _HINT)
    for name, stored in file.tensors.items():
        if _RANK.search(name) is not None:
            yield from _rank_differences(file, stored, rank)
        elif name not in required:
            yield Problem(f"{file.path}: {name}", "a tensor that no graph takes", f"{len(required)} tensors", _HINT)


def _rank_differences(file: RankFile, stored: _Stored, rank: int) -> Iterator[Problem]:
    with file.path.open("rb") as opened:
        opened.seek(stored.start)
        number = np.frombuffer(opened.read(stored.size_bytes), dtype=np.uint8)
    expected = np.array([rank], dtype=np.int32)
    if stored.value.dtype != "s32" or number.tobytes() != expected.tobytes():
        yield Problem(f"{file.path}: {stored.value.name}", stored.value.kind, f"s32[1], the rank {rank}", _HINT)
