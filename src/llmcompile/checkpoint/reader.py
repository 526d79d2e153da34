"""Reads ranges of tensors from a checkpoint's files with plain positioned reads into memory of our own."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmcompile.checkpoint.folder import WeightFile
from llmcompile.checkpoint.headers import Stored
from llmcompile.dtypes import count
from llmcompile.errors import CheckpointError


class Reader:
    """Opens each file once and reads from it; safe to share between threads.

    Reads are `pread`s, not a memory map: resident memory is what was asked for, and a file that shrinks or a disk that
    fails becomes an error instead of a SIGBUS.
    """

    def __init__(self, files: Iterable[WeightFile]) -> None:
        self._files = {file.name: file for file in files}
        self._descriptors: dict[str, int] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def read_rows(self, stored: Stored, first: int, last: int) -> NDArray[Any]:
        """Read rows `first` to `last` (exclusive) of a tensor's first axis.

        Args:
            stored: Shape (rows, ...); a scalar counts as one row.
            first: First row.
            last: One past the last row.

        Returns:
            Shape (last - first, ...), bits of `stored.dtype`.

        Raises:
            CheckpointError: The file ends early or cannot be read.
        """
        shape = stored.shape if len(stored.shape) > 0 else (1,)
        row_elements = count(shape[1:])
        if len(stored.shards) > 0:
            return self._read_shards(stored, first, last)
        if stored.strides is not None:
            return self._read_strided(stored)[first:last]
        row_bytes = row_elements * stored.dtype.size_bytes
        bits = np.empty((last - first) * row_elements, stored.dtype.bits)
        self.read_into(stored.file, stored.offset + first * row_bytes, bits.view(np.uint8).data)
        return bits.reshape((last - first, *shape[1:]))

    def read(self, stored: Stored) -> NDArray[Any]:
        """Read a whole tensor; same as `read_rows` over all rows, in `stored.shape`."""
        rows = stored.shape[0] if len(stored.shape) > 0 else 1
        return self.read_rows(stored, 0, rows).reshape(stored.shape)

    def read_into(self, file: str, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes of `file` from `offset`.

        Raises:
            CheckpointError: As for `read_rows`.
        """
        done = 0
        try:
            descriptor = self._descriptor(file)
            while done < len(buffer):
                got = os.preadv(descriptor, [buffer[done:]], offset + done)
                if got == 0:
                    break
                done += got
        except OSError as error:
            raise CheckpointError(
                str(self._files[file].path),
                f"{error.strerror} at byte {offset + done}",
                hint="check the disk, then --resume",
            ) from error
        if done < len(buffer):
            raise CheckpointError(
                file,
                f"the file ends at byte {offset + done}",
                f"at least {offset + len(buffer)} bytes, as when it was opened",
                "the file changed during the run: restore it, then --resume",
            )

    def _read_shards(self, stored: Stored, first: int, last: int) -> NDArray[Any]:
        if stored.axis > 0:
            return np.concatenate([self.read_rows(shard, first, last) for shard in stored.shards], axis=stored.axis)
        parts: list[NDArray[Any]] = []
        start = 0
        for shard in stored.shards:
            rows = shard.shape[0]
            begin, end = max(first - start, 0), min(last - start, rows)
            if begin < end:
                parts.append(self.read_rows(shard, begin, end))
            start += rows
        if len(parts) == 0:
            return np.empty((0, *stored.shape[1:]), stored.dtype.bits)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _read_strided(self, stored: Stored) -> NDArray[Any]:
        assert stored.strides is not None
        span = 1 + sum((size - 1) * stride for size, stride in zip(stored.shape, stored.strides, strict=True))
        bits = np.empty(span if count(stored.shape) > 0 else 0, stored.dtype.bits)
        self.read_into(stored.file, stored.offset, bits.view(np.uint8).data)
        strides = [stride * stored.dtype.size_bytes for stride in stored.strides]
        return np.ascontiguousarray(np.lib.stride_tricks.as_strided(bits, stored.shape, strides))

    def _descriptor(self, file: str) -> int:
        with self._lock:
            descriptor = self._descriptors.get(file)
            if descriptor is None:
                descriptor = os.open(self._files[file].path, os.O_RDONLY | os.O_CLOEXEC)
                self._descriptors[file] = descriptor
            return descriptor
