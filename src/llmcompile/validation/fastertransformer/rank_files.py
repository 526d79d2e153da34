"""The `<name>[.<rank>].bin` files of one artifact: what a runtime opens, of which size, and reading them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from llmcompile.errors import MismatchError, Problem
from llmcompile.validation.fastertransformer.ini import Ini

_CHUNK_ELEMENTS = 1 << 23


@dataclass(frozen=True)
class Dtype:
    """An element type on disk, little-endian."""

    name: str
    size_bytes: int


FP32 = Dtype("fp32", 4)
FP16 = Dtype("fp16", 2)
BF16 = Dtype("bf16", 2)
INT8 = Dtype("int8", 1)


def declared_dtype(ini: Ini, section: str) -> Dtype:
    """The element type `weight_data_type` of `section` stands for.

    The first of fp32, fp16, bf16 found anywhere in the value wins; any other value means fp32, as the vendor assumes
    after a warning. An absent key ends the vendor's process, and is an error here.

    Source: NVIDIA/FasterTransformer@df4a753:src/fastertransformer/utils/cuda_utils.cc:364-389
    """
    declared = ini.text(section, "weight_data_type")
    return next((dtype for dtype in (FP32, FP16, BF16) if dtype.name in declared), FP32)


class Stored(Enum):
    """How many files a tensor has: one that every rank reads whole, or one per rank."""

    ONCE = 0
    PER_RANK = 1


Entry = tuple[str, tuple[int, ...], Stored]


@dataclass(frozen=True)
class Row:
    """One line of a runtime's file table.

    Args:
        name: File name without rank and `.bin`; `{layer}` stands for the layer number.
        shape: Shape of one file, after the split over ranks.
        stored: One file, or one per rank.
        dtype: Element type on disk.
        layers: Layers that have this file; 1 for a tensor outside the layers.
    """

    name: str
    shape: tuple[int, ...]
    stored: Stored
    dtype: Dtype
    layers: int = 1

    @property
    def size_bytes(self) -> int:
        """Bytes of one file: the vendor reads exactly prod(shape) elements."""
        return math.prod(self.shape) * self.dtype.size_bytes

    def file(self, layer: int, rank: int) -> str:
        """File name that `rank` opens for `layer`."""
        suffix = f".{rank}.bin" if self.stored is Stored.PER_RANK else ".bin"
        return self.name.format(layer=layer) + suffix

    def files(self, ranks: int) -> Iterator[str]:
        """Every file of all layers and ranks."""
        for layer in range(self.layers):
            for rank in range(ranks if self.stored is Stored.PER_RANK else 1):
                yield self.file(layer, rank)


def table(prefix: str, dtype: Dtype, entries: Iterable[Entry], *, layers: int = 1) -> tuple[Row, ...]:
    """Rows for `entries`, all named under `prefix` and of one element type."""
    return tuple(Row(prefix + name, shape, stored, dtype, layers) for name, shape, stored in entries)


def sizes(rows: Iterable[Row], ranks: int) -> dict[str, int]:
    """Every file of `rows` -> exact bytes.

    Raises:
        MismatchError: Two rows want the same file in different sizes (config.ini contradicts itself).
    """
    expected: dict[str, int] = {}
    for row in rows:
        for name in row.files(ranks):
            if expected.setdefault(name, row.size_bytes) != row.size_bytes:
                raise MismatchError(
                    name,
                    f"read twice, as {expected[name]} and as {row.size_bytes} bytes",
                    "one size",
                    "the sections of config.ini disagree on vocab_size, d_model or weight_data_type",
                )
    return expected


def size_problem(folder: Path, name: str, expected_bytes: int) -> Problem | None:
    """What is wrong with the size of one file, if anything.

    The vendor's loader warns about a missing or short file and then computes with uninitialised memory; a longer file
    it accepts in silence. Both are problems here.

    Source: NVIDIA/FasterTransformer@df4a753:src/fastertransformer/utils/memory_utils.cu:300-342
    """
    path = folder / name
    if not path.is_file():
        return Problem(str(path), "missing", f"{expected_bytes} bytes", "partition the model again")
    found = path.stat().st_size
    if found == expected_bytes:
        return None
    hint = "check head_num, size_per_head, inter_size and vocab_size in config.ini, and the number of ranks"
    if found in (2 * expected_bytes, expected_bytes // 2):
        hint = "check weight_data_type in config.ini: the file looks written in another element type"
    return Problem(str(path), f"{found} bytes", f"{expected_bytes} bytes", hint)


def split_evenly(ini: Ini, section: str, key: str, size: int, ranks: int) -> int:
    """`size` / `ranks`, where a remainder is an error: the runtime would drop it and read the wrong byte counts."""
    if size % ranks != 0:
        raise ini.error(section, key, f"{size}, not divisible by {ranks} ranks", f"a multiple of {ranks}")
    return size // ranks


@dataclass(frozen=True)
class Artifact:
    """The rank files of one `<tp>-gpu` folder, already known to have the sizes `rows` ask for.

    Args:
        folder: Where the files are.
        ranks: Tensor-parallel ranks, at least 1.
        rows: File table by row name.
    """

    folder: Path
    ranks: int
    rows: Mapping[str, Row]

    def read(self, name: str, *, layer: int = 0, rank: int = 0) -> Tensor:
        """One whole file.

        Returns:
            Shape of the row; float32, or int8 where the row is int8.
        """
        return _decode(self._map(name, layer, rank), self.rows[name].dtype)

    def lookup(self, name: str, indices: Tensor) -> Tensor:
        """Rows `indices` of a matrix file, reading only those rows.

        Args:
            name: A row of shape (count, width), stored once.
            indices: Any shape, int64, each in 0..count-1.

        Returns:
            Shape (*indices.shape, width), float32.

        Raises:
            ValueError: An index is out of range.
        """
        count = self.rows[name].shape[0]
        unique, inverse = torch.unique(indices, return_inverse=True)
        if unique.numel() > 0 and (int(unique[0]) < 0 or int(unique[-1]) >= count):
            raise ValueError(f"indices must be in 0..{count - 1}, got {int(unique[0])}..{int(unique[-1])}")
        return _decode(self._map(name, 0, 0)[unique.numpy()], self.rows[name].dtype)[inverse]

    def row_blocks(self, name: str) -> Iterator[Tensor]:
        """A matrix file in consecutive blocks of rows, each at most 32 MiB in float32 (or one row)."""
        count, width = self.rows[name].shape
        step = max(1, _CHUNK_ELEMENTS // width)
        for start in range(0, count, step):
            yield _decode(self._map(name, 0, 0)[start : start + step], self.rows[name].dtype)

    def _map(self, name: str, layer: int, rank: int) -> np.ndarray:
        row = self.rows[name]
        return np.memmap(self.folder / row.file(layer, rank), _NUMPY[row.dtype], "r", shape=row.shape)


_NUMPY = {FP32: "<f4", FP16: "<f2", BF16: "<u2", INT8: "i1"}


def _decode(stored: np.ndarray, dtype: Dtype) -> Tensor:
    """Copy out of the file, widened to float32 (exact for fp16 and bf16); int8 stays int8."""
    if dtype == INT8:
        return torch.from_numpy(np.array(stored, np.int8))
    if dtype == BF16:
        return torch.from_numpy((stored.astype(np.uint32) << np.uint32(16)).view(np.float32))
    return torch.from_numpy(np.array(stored, np.float32))
