"""The `rank<r>.safetensors` files of one checkpoint: their headers, one tensor at a time, and what must be in them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llmcompile.errors import MismatchError, Problem

BLOCK_BYTES = 64 << 20
"""Bytes of a large table that are widened to float32 at a time."""

Required = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
"""Tensor name -> element type and shape the loader asks for."""

_REBUILD = "build the checkpoint again"
_RANK_FILE = re.compile(r"rank\d+\.safetensors")
_DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E5M2": torch.float8_e5m2,
        "I64": torch.int64,
        "I32": torch.int32,
        "I16": torch.int16,
        "I8": torch.int8,
        "U8": torch.uint8,
        "BOOL": torch.bool,
    }
)


class RankFile:
    """One rank's tensors, read lazily; the file is mapped only while something is read from it.

    Args:
        path: The `rank<r>.safetensors` file.

    Raises:
        MismatchError: The file is absent, is not a safetensors file, or holds an element type torch has no name for.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise MismatchError(str(path), "missing", "the weights of this rank", _REBUILD)
        try:
            with safe_open(path, framework="pt", device="cpu") as opened:
                self._infos = {name: self._header(opened, name) for name in opened.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise MismatchError(str(path), f"unreadable: {error}", "a safetensors file", _REBUILD) from error

    def _header(self, opened: Any, name: str) -> tuple[torch.dtype, tuple[int, ...]]:
        entry = opened.get_slice(name)
        code = str(entry.get_dtype())
        if code not in _DTYPES:
            raise MismatchError(f"{self.path}: {name}", f"element type {code}", " or ".join(_DTYPES), _REBUILD)
        return _DTYPES[code], tuple(entry.get_shape())

    @property
    def names(self) -> frozenset[str]:
        """Every tensor in the file."""
        return frozenset(self._infos)

    def has(self, name: str) -> bool:
        """Whether the file holds `name`."""
        return name in self._infos

    def info(self, name: str) -> tuple[torch.dtype, tuple[int, ...]]:
        """Element type and shape of `name`.

        Raises:
            MismatchError: There is no such tensor.
        """
        if name not in self._infos:
            raise MismatchError(f"{self.path}: {name}", "missing", "a tensor the network loads", _REBUILD)
        return self._infos[name]

    def read(self, name: str) -> Tensor:
        """One whole tensor, as stored.

        Raises:
            MismatchError: There is no such tensor, or it cannot be read.
        """
        self.info(name)
        try:
            with safe_open(self.path, framework="pt", device="cpu") as opened:
                tensor: Tensor = opened.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise MismatchError(f"{self.path}: {name}", f"unreadable: {error}", "a tensor", _REBUILD) from error
        return tensor

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of the first axis, as stored; `stop` may lie past the end.

        Raises:
            MismatchError: There is no such tensor.
        """
        self.info(name)
        with safe_open(self.path, framework="pt", device="cpu") as opened:
            tensor: Tensor = opened.get_slice(name)[start:stop]
        return tensor

    def single_rows(self, name: str, rows: Sequence[int]) -> Iterator[Tensor]:
        """Some rows of the first axis, each as stored; the file is opened once."""
        self.info(name)
        with safe_open(self.path, framework="pt", device="cpu") as opened:
            entry = opened.get_slice(name)
            for row in rows:
                yield entry[row : row + 1][0]

    def row_blocks(self, name: str) -> Iterator[Tensor]:
        """All rows in order, as stored, in blocks of about 64 MiB."""
        dtype, shape = self.info(name)
        step = max(1, BLOCK_BYTES // max(1, dtype.itemsize * (shape[1] if len(shape) > 1 else 1)))
        for start in range(0, shape[0], step):
            yield self.rows(name, start, start + step)


def joined_blocks(files: Sequence[RankFile], name: str, *, rows: int, axis: int | None) -> Iterator[Tensor]:
    """A table of `rows` rows in blocks, put together from the tensor-parallel ranks, float32, padding cut off.

    Args:
        files: One per rank, in order.
        name: The table.
        rows: Rows without padding.
        axis: The axis the ranks divide; None where each holds the whole table.

    Raises:
        MismatchError: Ranks that each hold the whole table do not hold the same.
    """
    if axis != 0:
        yield from _parallel_blocks(files, name, gathered=axis == 1)
        return
    for file in files:
        for block in file.row_blocks(name):
            kept = block[: max(0, rows)].float()
            rows -= block.shape[0]
            if kept.shape[0] > 0:
                yield kept


def _parallel_blocks(files: Sequence[RankFile], name: str, *, gathered: bool) -> Iterator[Tensor]:
    """Blocks of tables that all ranks hold rows 0 to the last of: whole, or some of the columns."""
    for blocks in zip(*(file.row_blocks(name) for file in files), strict=True):
        if gathered:
            yield torch.cat(blocks, -1).float()
            continue
        for file, block in zip(files, blocks, strict=True):
            if not torch.equal(block, blocks[0]):
                raise MismatchError(
                    f"{file.path}: {name}", f"differs from that in {files[0].path.name}", "the same whole table"
                )
        yield blocks[0].float()


def rank_path(folder: Path, rank: int) -> Path:
    """Where the weights of `rank` are.

    Source: NVIDIA/TensorRT-LLM@v0.13.0:tensorrt_llm/models/modeling_utils.py (PretrainedModel.from_checkpoint)
    """
    return folder / f"rank{rank}.safetensors"


def surplus_files(folder: Path, ranks: int) -> list[Problem]:
    """Rank files of ranks that config.json does not have."""
    wanted = {rank_path(folder, rank).name for rank in range(ranks)}
    found = sorted(path.name for path in folder.iterdir() if _RANK_FILE.fullmatch(path.name))
    return [
        Problem(str(folder / name), "a rank that is not in the mapping", f"{ranks} ranks", _REBUILD)
        for name in found
        if name not in wanted
    ]


def tensor_problems(file: RankFile, required: Required) -> list[Problem]:
    """Every tensor of one rank that is absent, misshapen, of another element type, or that the network has no use for.

    The vendor's loader stops at an absent tensor and warns about an unknown one; a buffer it would have computed itself
    (rotary tables, ALiBi slopes) is overridden by one in the file, so those are unknown here as well.

    Source: NVIDIA/TensorRT-LLM@v0.13.0:tensorrt_llm/models/modeling_utils.py (PretrainedModel.load)
    """
    problems = []
    for name, (dtype, shape) in required.items():
        subject = f"{file.path}: {name}"
        if not file.has(name):
            problems.append(Problem(subject, "missing", f"{_text(dtype)} {list(shape)}", _REBUILD))
        elif file.info(name) != (dtype, shape):
            stored_dtype, stored_shape = file.info(name)
            found, expected = f"{_text(stored_dtype)} {list(stored_shape)}", f"{_text(dtype)} {list(shape)}"
            problems.append(Problem(subject, found, expected, "check the sizes, dtype and mapping in config.json"))
    unknown = sorted(file.names - required.keys())
    return problems + [Problem(f"{file.path}: {name}", "not in the network", "", _REBUILD) for name in unknown]


def finite_problems(file: RankFile) -> Iterator[Problem]:
    """Every floating-point tensor that holds an infinity or a NaN; reads the whole file, about 64 MiB at a time."""
    for name in sorted(file.names):
        dtype, shape = file.info(name)
        if not dtype.is_floating_point or len(shape) == 0:
            continue
        # float8 has no isfinite; the widening is exact
        if not all(bool(torch.isfinite(block.to(torch.float32)).all()) for block in file.row_blocks(name)):
            yield Problem(f"{file.path}: {name}", "infinities or NaNs", "finite values", "build with another dtype")


def _text(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
