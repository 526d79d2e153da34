"""PyTorch files are listed without running what they hold, and read at the right place or refused."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import models
from llmcompile.checkpoint.folder import WeightFile, open_checkpoint
from llmcompile.checkpoint.pickles import pickle_header
from llmcompile.checkpoint.reader import Reader
from llmcompile.errors import CheckpointError

NAME = "pytorch_model.bin"


class Runs:
    """Unpickles as the call of a function."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def read(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """All tensors of a PyTorch file, as our reader sees them."""
    tensors = pickle_header(path, NAME)
    status = path.stat()
    with Reader([WeightFile(NAME, path, status.st_size, status.st_mtime_ns)]) as reader:
        return {tensor.name: reader.read(tensor) for tensor in tensors}


def saved(path: Path, state: object) -> Path:
    """`path`, with `state` saved to it by torch."""
    torch.save(state, path)
    return path


def refusal(path: Path) -> CheckpointError:
    """The error that listing `path` ends in."""
    with pytest.raises(CheckpointError) as caught:
        pickle_header(path, NAME)
    return caught.value


def rewritten(source: Path, target: Path, change: Callable[[str, bytes], bytes], compression: int = 0) -> Path:
    """`target`, a copy of the archive `source` with each record changed, and with valid checksums."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for info in old.infolist():
            new.writestr(info.filename, change(info.filename, old.read(info)))
    return target


def marked(path: Path) -> Path:
    """A path that a malicious pickle creates when it is run."""
    return path / "the-pickle-was-run"


@pytest.mark.parametrize("kind", ["zip", "legacy", "bare"])
@pytest.mark.parametrize("inside", ["alone", "beside tensors"])
def test_malicious_pickle_is_refused(tmp_path: Path, kind: str, inside: str) -> None:
    """A file whose unpickling would call os.system is refused."""
    path = malicious(tmp_path, kind, inside)

    error = refusal(path)

    assert NAME in str(error)


@pytest.mark.parametrize("kind", ["zip", "legacy", "bare"])
@pytest.mark.parametrize("inside", ["alone", "beside tensors"])
def test_malicious_pickle_is_not_run(tmp_path: Path, kind: str, inside: str) -> None:
    """Nothing that a malicious file would call is called."""
    path = malicious(tmp_path, kind, inside)

    refusal(path)

    assert not marked(tmp_path).exists()


def malicious(folder: Path, kind: str, inside: str) -> Path:
    """A PyTorch file, in one of torch's formats, that touches `marked(folder)` when it is unpickled."""
    call = Runs(os.system, f"touch {marked(folder)}")
    state = call if inside == "alone" else {"a": torch.ones(2), "b": call}
    path = folder / NAME
    if kind == "bare":
        path.write_bytes(pickle.dumps(call))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    return path


def test_the_malicious_pickle_works(tmp_path: Path) -> None:
    """The attack above is a real one: torch.load without `weights_only` runs it."""
    path = malicious(tmp_path, "zip", "beside tensors")

    torch.load(path, weights_only=False)

    assert marked(tmp_path).exists()


def test_refused_pickle_is_not_to_be_unpickled(tmp_path: Path) -> None:
    """The hint for a file that holds more than tensors is to get safetensors, not to load it some other way."""
    path = malicious(tmp_path, "zip", "alone")

    (problem,) = refusal(path).problems

    assert "holds more than tensors" in problem.found
    assert problem.hint == "do not unpickle it: ask its author for safetensors"


def test_checkpoint_with_a_malicious_shard_is_refused(tmp_path: Path) -> None:
    """A malicious pytorch_model.bin makes the whole folder one that is not opened, and is not run."""
    (tmp_path / "config.json").write_text("{}")
    malicious(tmp_path, "zip", "beside tensors")

    with pytest.raises(CheckpointError):
        open_checkpoint(tmp_path)

    assert not marked(tmp_path).exists()


def test_legacy_pickle_is_refused_with_what_to_type(tmp_path: Path) -> None:
    """A file from before torch 1.6 is refused with a command that converts it."""
    path = tmp_path / NAME
    torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=False)

    (problem,) = refusal(path).problems

    assert "older than 1.6" in problem.found
    assert f"torch.load('{NAME}', weights_only=True, map_location='cpu')" in problem.hint


def test_converted_legacy_pickle_is_read(tmp_path: Path) -> None:
    """What the conversion that a refusal recommends has written is read."""
    path = tmp_path / NAME
    torch.save({"a": torch.arange(6.0).view(2, 3)}, path, _use_new_zipfile_serialization=False)
    torch.save(torch.load(path, weights_only=True, map_location="cpu"), f"{path}.new")
    os.replace(f"{path}.new", path)

    values = read(path)

    np.testing.assert_array_equal(values["a"], [[0, 1, 2], [3, 4, 5]])


@pytest.mark.parametrize("kept", [0, 1, 10, 100, 700, 1100])
def test_truncated_archive_is_refused(tmp_path: Path, kept: int) -> None:
    """A file cut off anywhere is refused."""
    path = saved(tmp_path / NAME, {"a": torch.arange(100.0), "b": torch.ones(3)})
    path.write_bytes(path.read_bytes()[:kept])

    error = refusal(path)

    assert "truncated" in str(error)


def test_archive_without_its_last_byte_is_refused(tmp_path: Path) -> None:
    """A file that lacks one byte is refused."""
    path = saved(tmp_path / NAME, {"a": torch.arange(100.0)})
    path.write_bytes(path.read_bytes()[:-1])

    error = refusal(path)

    assert NAME in str(error)


def test_archive_that_lacks_its_middle_is_refused(tmp_path: Path) -> None:
    """A file with its start and its directory, but not all between, is refused."""
    path = saved(tmp_path / NAME, {"a": torch.arange(1000.0)})
    content = path.read_bytes()
    path.write_bytes(content[:2000] + content[3000:])

    error = refusal(path)

    assert NAME in str(error)


def test_other_archive_is_refused(tmp_path: Path) -> None:
    """A zip archive that torch did not write is refused."""
    path = tmp_path / NAME
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello.txt", "hello")

    error = refusal(path)

    assert "torch.load failed" in str(error)


def test_compressed_archive_is_refused(tmp_path: Path) -> None:
    """Tensors that somebody compressed cannot be read piece by piece, and are refused."""
    source = saved(tmp_path / "source.bin", {"a": torch.zeros(1000)})
    path = rewritten(source, tmp_path / NAME, lambda _, data: data, zipfile.ZIP_DEFLATED)

    error = refusal(path)

    assert NAME in str(error)


def test_other_byte_order_is_refused(tmp_path: Path) -> None:
    """A file saved on a big-endian machine is refused rather than read backwards."""
    source = saved(tmp_path / "source.bin", {"a": torch.ones(2)})
    path = rewritten(source, tmp_path / NAME, lambda name, data: b"big" if name.endswith("byteorder") else data)

    error = refusal(path)

    assert "byte order" in str(error)


@pytest.mark.parametrize(
    "state",
    [
        [torch.ones(2)],
        torch.ones(2),
        {"model": {"a": torch.ones(2)}},
        {"a": torch.ones(2), "epoch": 3},
        {1: torch.ones(2)},
        {"a": torch.ones(3, 3).to_sparse()},
        {"a": torch.ones(2, dtype=torch.complex64)},
        {"a": torch.ones(2, device="meta")},
        {"a": torch._neg_view(torch.ones(2))},
    ],
    ids=["list", "tensor", "nested", "number", "numbered", "sparse", "complex", "meta", "negated"],
)
def test_anything_but_plain_tensors_is_refused(tmp_path: Path, state: object) -> None:
    """A file that holds anything but a dict of names and plain tensors is refused."""
    path = saved(tmp_path / NAME, state)

    error = refusal(path)

    assert NAME in str(error)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning")
def test_compressed_sparse_tensor_is_refused(tmp_path: Path) -> None:
    """A tensor in CSR layout, whose storage cannot be asked for, is refused."""
    path = saved(tmp_path / NAME, {"a": torch.ones(3, 3).to_sparse_csr()})

    error = refusal(path)

    assert "expected a dense tensor" in str(error)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning")  # torch's own, of a torch storage
@settings(max_examples=200, deadline=None)
@given(position=st.integers(0), byte=st.integers(0, 255), cut=st.booleans())
def test_damaged_pickle_is_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, position: int, byte: int, cut: bool
) -> None:
    """One changed byte, or a cut, in the archive's pickle ends in CheckpointError or in a list of tensors."""
    folder = tmp_path_factory.mktemp("damaged")
    source = saved(folder / "source.bin", OrderedDict(a=torch.ones(3, 4), b=torch.ones(4, 2).t()))

    def damage(name: str, data: bytes) -> bytes:
        if not name.endswith("data.pkl"):
            return data
        place = position % len(data)
        return data[:place] if cut else data[:place] + bytes([byte]) + data[place + 1 :]

    path = rewritten(source, folder / NAME, damage)

    try:
        tensors = pickle_header(path, NAME)
    except CheckpointError:
        return

    assert len(tensors) <= 2


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"])
def test_tensor_of_each_type_is_read(tmp_path: Path, dtype: str) -> None:
    """The bytes read of a tensor are those torch saved, for each type NumPy has."""
    expected = np.arange(15).reshape(3, 5).astype(dtype)
    path = saved(tmp_path / NAME, {"a": torch.from_numpy(expected)})

    values = read(path)

    assert values["a"].tobytes() == expected.tobytes()


def test_bf16_tensor_is_read_as_bits(tmp_path: Path) -> None:
    """A bf16 tensor is read as the upper halves of the float32 bits."""
    path = saved(tmp_path / NAME, {"a": torch.tensor([1.0, -2.0, 0.5], dtype=torch.bfloat16)})

    values = read(path)

    assert values["a"].tolist() == [0x3F80, 0xC000, 0x3F00]


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_fp8_tensor_is_read_as_bits(tmp_path: Path, dtype: str) -> None:
    """An fp8 tensor is read as the bytes torch saved."""
    expected = torch.arange(7.0).to(getattr(torch, dtype))
    path = saved(tmp_path / NAME, {"a": expected})

    values = read(path)

    assert values["a"].tobytes() == expected.view(torch.uint8).numpy().tobytes()


X = torch.arange(60.0).view(3, 4, 5)
VIEWS: dict[str, torch.Tensor] = {
    "transposed": X[0].t(),
    "permuted": X.permute(2, 0, 1),
    "sliced rows": X[1:],
    "sliced columns": X[:, :, 1:3],
    "stepped": X[:, ::2],
    "expanded": torch.arange(3.0).view(3, 1).expand(3, 4),
    "scalar": torch.tensor(7.0),
    "scalar inside": X[2, 3, 4],
    "empty": torch.ones(0, 4),
    "empty view": X[:0],
    "channels last": torch.arange(48.0).view(1, 3, 4, 4).contiguous(memory_format=torch.channels_last),
    "parameter": torch.nn.Parameter(torch.arange(4.0)),
}


@pytest.mark.parametrize("view", VIEWS)
def test_view_is_read_as_torch_sees_it(tmp_path: Path, view: str) -> None:
    """A tensor that is no plain block of its storage is read with torch's values in torch's shape."""
    path = saved(tmp_path / NAME, {"before": torch.ones(3), "a": VIEWS[view], "after": torch.ones(5)})

    values = read(path)

    np.testing.assert_array_equal(values["a"], VIEWS[view].detach().numpy())


@pytest.mark.parametrize(("first", "last"), [(0, 4), (1, 3), (3, 4), (2, 2)])
def test_rows_of_a_view_are_read(tmp_path: Path, first: int, last: int) -> None:
    """Rows of a transposed tensor are rows of what torch sees."""
    x = torch.arange(20.0).view(5, 4).t()
    path = saved(tmp_path / NAME, {"a": x})
    (stored,) = pickle_header(path, NAME)

    with Reader([WeightFile(NAME, path, path.stat().st_size, 0)]) as reader:
        rows = reader.read_rows(stored, first, last)

    np.testing.assert_array_equal(rows, x[first:last].numpy())


def test_views_of_one_storage_are_read_apart(tmp_path: Path) -> None:
    """Tensors that share a storage, as a fused weight and its thirds do, are each read right."""
    fused = torch.arange(30.0).view(6, 5)
    path = saved(tmp_path / NAME, {"fused": fused, "q": fused[:2], "k": fused[2:4], "v": fused[4:], "tied": fused})

    values = read(path)

    found = {name: value[0, 0] for name, value in values.items()}
    assert found == {"fused": 0, "q": 0, "k": 10, "v": 20, "tied": 0}


def test_empty_view_does_not_shift_the_others(tmp_path: Path) -> None:
    """An empty view of one storage leaves another storage of the same size where it is."""
    path = saved(tmp_path / NAME, {"empty": torch.zeros(4)[:0], "a": torch.tensor([1.0, 2.0, 3.0, 4.0])})

    values = read(path)

    assert values["a"].tolist() == [1.0, 2.0, 3.0, 4.0]


def test_equal_sizes_are_kept_apart(tmp_path: Path) -> None:
    """Fifty tensors of one size each come from their own place."""
    path = saved(tmp_path / NAME, {f"t{number}": torch.full((16,), float(number)) for number in range(50)})

    values = read(path)

    assert [value.tolist() for value in values.values()] == [[float(number)] * 16 for number in range(50)]


def test_file_without_tensors_is_empty(tmp_path: Path) -> None:
    """A saved empty dict is a file without tensors."""
    path = saved(tmp_path / NAME, {})

    assert pickle_header(path, NAME) == ()


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("family", models.FAMILIES)
def test_checkpoint_of_each_family_is_read(tmp_path: Path, family: str, sharded: bool) -> None:
    """Of every family, the pickles that transformers writes are read with the values that torch loads."""
    models.save(family, tmp_path, pickle=True, sharded=sharded)
    expected: dict[str, torch.Tensor] = {}
    for path in tmp_path.glob("*.bin"):
        expected.update(torch.load(path, weights_only=True))

    checkpoint = open_checkpoint(tmp_path)
    with Reader(checkpoint.files) as reader:
        values = {name: reader.read(stored) for name, stored in checkpoint.tensors.items()}

    assert {name: value.tobytes() for name, value in values.items()} == {
        name: tensor.contiguous().numpy().tobytes() for name, tensor in expected.items()
    }
