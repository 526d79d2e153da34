"""Any range of rows is read as the bytes that stand in the file, and a file that changed is an error."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import save_file

from llmcompile.checkpoint.folder import WeightFile
from llmcompile.checkpoint.headers import Stored, safetensors_header
from llmcompile.checkpoint.reader import Reader
from llmcompile.dtypes import DTYPES, FP32, DType
from llmcompile.errors import CheckpointError

NAME = "model.safetensors"
TORCH = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def written(path: Path, tensors: dict[str, tuple[DType, NDArray[Any]]]) -> dict[str, Stored]:
    """What our header finds in a file that the safetensors library wrote from bits."""
    save_file(
        {name: torch.from_numpy(bits.copy()).view(TORCH[dtype.code]) for name, (dtype, bits) in tensors.items()}, path
    )
    return {stored.name: stored for stored in safetensors_header(path, NAME)}


def reader_of(path: Path) -> Reader:
    """A reader of one file."""
    return Reader([WeightFile(NAME, path, path.stat().st_size, path.stat().st_mtime_ns)])


def numbers(*shape: int) -> NDArray[Any]:
    """0, 1, 2, ... in float32."""
    return np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)


@st.composite
def tensor_and_rows(draw: st.DrawFn) -> tuple[DType, NDArray[Any], int, int]:
    """An element type, random bits of it, and a range of rows."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = tuple(draw(st.lists(st.integers(0, 5), min_size=1, max_size=4)))
    size = int(np.prod(shape, dtype=int)) * dtype.size_bytes
    bits = np.frombuffer(draw(st.binary(min_size=size, max_size=size)), dtype.bits).reshape(shape)
    first = draw(st.integers(0, shape[0]))
    return dtype, bits, first, draw(st.integers(first, shape[0]))


@settings(max_examples=300, deadline=None)
@given(tensor_and_rows())
def test_rows_come_back_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, drawn: tuple[DType, NDArray[Any], int, int]
) -> None:
    """Whatever the type, shape and range, the rows read are the rows the safetensors library wrote."""
    dtype, bits, first, last = drawn
    path = tmp_path_factory.mktemp("rows") / NAME
    stored = written(path, {"before": (FP32, numbers(3)), "a": (dtype, bits), "after": (FP32, numbers(5))})

    with reader_of(path) as reader:
        rows = reader.read_rows(stored["a"], first, last)

    assert (rows.shape, rows.dtype.str) == (bits[first:last].shape, dtype.bits)
    assert rows.tobytes() == bits[first:last].tobytes()


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_whole_tensor_comes_back_as_it_was_written(tmp_path: Path, dtype: DType) -> None:
    """A tensor of each type is read whole with the shape and bytes it was written with."""
    bits = np.arange(6 * dtype.size_bytes, dtype=np.uint8).view(dtype.bits).reshape(2, 3)
    stored = written(tmp_path / NAME, {"a": (dtype, bits)})

    with reader_of(tmp_path / NAME) as reader:
        values = reader.read(stored["a"])

    assert (values.shape, values.tobytes()) == ((2, 3), bits.tobytes())


def test_scalar_counts_as_one_row(tmp_path: Path) -> None:
    """A scalar is read as one row."""
    stored = written(tmp_path / NAME, {"a": (FP32, np.array(7, np.float32))})

    with reader_of(tmp_path / NAME) as reader:
        rows = reader.read_rows(stored["a"], 0, 1)

    assert rows.tolist() == [7]


def test_whole_scalar_has_no_axes(tmp_path: Path) -> None:
    """A scalar read whole keeps its shape of no axes."""
    stored = written(tmp_path / NAME, {"a": (FP32, np.array(7, np.float32))})

    with reader_of(tmp_path / NAME) as reader:
        value = reader.read(stored["a"])

    assert (value.shape, float(value)) == ((), 7.0)


def test_what_was_read_is_ours_to_change(tmp_path: Path) -> None:
    """Rows are memory of their own: writing to them changes neither the file nor the next read."""
    stored = written(tmp_path / NAME, {"a": (FP32, numbers(2, 3))})

    with reader_of(tmp_path / NAME) as reader:
        reader.read(stored["a"])[:] = -1
        again = reader.read(stored["a"])

    np.testing.assert_array_equal(again, numbers(2, 3))


def test_bytes_are_read_into_a_buffer(tmp_path: Path) -> None:
    """`read_into` fills a buffer with the file's bytes from an offset."""
    stored = written(tmp_path / NAME, {"a": (FP32, numbers(4))})
    buffer = bytearray(8)

    with reader_of(tmp_path / NAME) as reader:
        reader.read_into(NAME, stored["a"].offset + 4, memoryview(buffer))

    assert np.frombuffer(buffer, "<f4").tolist() == [1, 2]


def test_tensors_of_several_files_are_read(tmp_path: Path) -> None:
    """One reader serves all files of a checkpoint."""
    paths = [tmp_path / "one", tmp_path / "two"]
    stored = [written(path, {"a": (FP32, numbers(2) + place)})["a"] for place, path in enumerate(paths)]
    files = [WeightFile(path.name, path, path.stat().st_size, 0) for path in paths]

    with Reader(files) as reader:
        found = [
            reader.read(Stored("a", path.name, FP32, (2,), tensor.offset)).tolist()
            for path, tensor in zip(paths, stored, strict=True)
        ]

    assert found == [[0, 1], [1, 2]]


def test_file_truncated_after_it_was_opened_is_an_error(tmp_path: Path) -> None:
    """A file that lost its end between header and read is a CheckpointError, not garbage and not a crash."""
    path = tmp_path / NAME
    stored = written(path, {"a": (FP32, numbers(100))})
    size = path.stat().st_size

    with reader_of(path) as reader:
        os.truncate(path, size - 10)
        with pytest.raises(CheckpointError) as caught:
            reader.read(stored["a"])

    assert f"the file ends at byte {size - 10}; expected at least {size} bytes" in str(caught.value)


def test_file_truncated_between_two_reads_is_an_error(tmp_path: Path) -> None:
    """A file that shrinks while it is open is a CheckpointError at the next read beyond its end."""
    path = tmp_path / NAME
    stored = written(path, {"a": (FP32, numbers(10, 10))})

    with reader_of(path) as reader:
        reader.read_rows(stored["a"], 0, 5)
        os.truncate(path, path.stat().st_size - 200)
        with pytest.raises(CheckpointError):
            reader.read_rows(stored["a"], 5, 10)


def test_rows_before_the_cut_are_still_read(tmp_path: Path) -> None:
    """What a truncated file still holds is read right."""
    path = tmp_path / NAME
    stored = written(path, {"a": (FP32, numbers(10, 10))})
    os.truncate(path, path.stat().st_size - 200)

    with reader_of(path) as reader:
        rows = reader.read_rows(stored["a"], 0, 5)

    np.testing.assert_array_equal(rows, numbers(10, 10)[:5])


def test_truncation_hints_at_resuming(tmp_path: Path) -> None:
    """The error for a changed file says to restore it and go on."""
    path = tmp_path / NAME
    stored = written(path, {"a": (FP32, numbers(100))})
    os.truncate(path, 20)

    with reader_of(path) as reader, pytest.raises(CheckpointError) as caught:
        reader.read(stored["a"])

    assert "--resume" in caught.value.problems[0].hint


def test_file_that_vanished_is_an_error(tmp_path: Path) -> None:
    """A file that was removed between header and read is a CheckpointError that names its path."""
    path = tmp_path / NAME
    stored = written(path, {"a": (FP32, numbers(4))})
    reader = reader_of(path)
    path.unlink()

    with reader, pytest.raises(CheckpointError) as caught:
        reader.read(stored["a"])

    assert f"{path}: No such file or directory" in str(caught.value)


def test_descriptors_are_closed(tmp_path: Path) -> None:
    """Leaving the reader closes every file it opened."""
    stored = written(tmp_path / NAME, {"a": (FP32, numbers(4))})
    before = len(os.listdir("/proc/self/fd"))

    with reader_of(tmp_path / NAME) as reader:
        reader.read(stored["a"])

    assert len(os.listdir("/proc/self/fd")) == before


def test_file_is_opened_once(tmp_path: Path) -> None:
    """Two reads of one file use one descriptor."""
    stored = written(tmp_path / NAME, {"a": (FP32, numbers(4))})
    before = len(os.listdir("/proc/self/fd"))

    with reader_of(tmp_path / NAME) as reader:
        reader.read(stored["a"])
        reader.read(stored["a"])
        opened = len(os.listdir("/proc/self/fd")) - before

    assert opened == 1


def test_threads_share_a_reader(tmp_path: Path) -> None:
    """Eight threads that read different rows through one reader each get their own."""
    expected = numbers(64, 500)
    stored = written(tmp_path / NAME, {"a": (FP32, expected)})["a"]
    found: dict[int, NDArray[Any]] = {}

    def work(number: int) -> None:
        for row in range(number, 64, 8):
            found[row] = reader.read_rows(stored, row, row + 1)

    with reader_of(tmp_path / NAME) as reader:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    np.testing.assert_array_equal(np.concatenate([found[row] for row in range(64)]), expected)
