"""PyTorch pickles: the same facts as a safetensors header, through `torch.load(weights_only=True, mmap=True)` alone."""

from __future__ import annotations

import pickle
import struct
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcompile.checkpoint.headers import Stored, reject_lfs_pointer
from llmcompile.dtypes import BY_CODE, DType
from llmcompile.errors import CheckpointError

if TYPE_CHECKING:
    import torch

_TORCH_NAMES: Mapping[str, str] = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}
_DAMAGED = (
    RuntimeError,
    EOFError,
    ValueError,
    OSError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    struct.error,
)
"""What torch's restricted unpickler raises over bytes that torch.save did not write, beside UnpicklingError."""
_CONVERT = (
    'convert it once, on a machine that holds it in memory: python -c "import torch; '
    "torch.save(torch.load('{0}', weights_only=True, map_location='cpu'), '{0}.new')\", then rename {0}.new to {0}"
)


def pickle_header(path: Path, file: str) -> tuple[Stored, ...]:
    """List the tensors of a zip-format PyTorch file with their byte ranges, reading no tensor data.

    Nothing is unpickled but by `torch.load(weights_only=True)`. It maps the file into memory, so a tensor's address
    minus the address of the mapping is its place in the file; the mapping's address is found by matching the
    addresses of all storages against the archive's own directory, which must agree for every one of them.

    Args:
        path: The file.
        file: Its name in messages and in `Stored.file`.

    Raises:
        CheckpointError: A git-lfs pointer, a truncated archive, a legacy (non-zip) pickle, an object that is not
            a plain tensor, or a file whose directory and pickle disagree.
    """
    with path.open("rb") as stream:
        reject_lfs_pointer(stream.read(64), file)
    if not zipfile.is_zipfile(path):
        raise CheckpointError(
            file,
            "not a zip archive: truncated, or saved by PyTorch older than 1.6",
            "a file of torch.save's zip format, which can be read piece by piece",
            _CONVERT.format(file),
        )
    state = _load(path, file)
    storages = _storages(state)
    base = _mapping_address(storages, _archive_entries(path, file), file)
    return tuple(_stored(name, tensor, file, base) for name, tensor in state.items())


def _load(path: Path, file: str) -> dict[str, torch.Tensor]:
    import torch

    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            file,
            f"holds more than tensors ({_first_line(error)})",
            "a state dict that torch.load(weights_only=True) accepts",
            "do not unpickle it: ask its author for safetensors",
        ) from error
    except _DAMAGED as error:
        raise CheckpointError(
            file, f"torch.load failed ({_first_line(error)})", "a whole file", "download it again"
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(file, f"a {type(state).__name__}", "a dict of tensors", "save model.state_dict()")
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor) or not _is_plain(tensor):
            raise CheckpointError(
                f"{name} in {file}", f"a {type(tensor).__name__}", "a dense tensor", "save model.state_dict()"
            )
    return state


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:160]


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether the bytes of the tensor's storage are its values: strided, and not to be negated when read."""
    import torch

    return (
        tensor.layout == torch.strided and not tensor.is_nested and tensor.device.type == "cpu" and not tensor.is_neg()
    )


def _storages(state: Mapping[str, torch.Tensor]) -> dict[int, int]:
    """Address -> bytes of every storage that holds something, even where the tensor is an empty view of it."""
    found = (tensor.untyped_storage() for tensor in state.values())
    return {storage.data_ptr(): storage.nbytes() for storage in found if storage.nbytes() > 0}


def _archive_entries(path: Path, file: str) -> dict[int, int]:
    """Offset -> bytes of every storage in the archive. Source: pytorch/pytorch@v2.13.0:torch/serialization.py."""
    entries: dict[int, int] = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as stream:
        for info in archive.infolist():
            if info.filename.endswith("/byteorder") and archive.read(info) != sys.byteorder.encode():
                raise CheckpointError(file, "saved on a machine of another byte order", hint=_CONVERT.format(file))
            if "/data/" not in info.filename:
                continue
            if info.compress_type != zipfile.ZIP_STORED:
                raise CheckpointError(file, f"{info.filename} is compressed", "stored as is", _CONVERT.format(file))
            stream.seek(info.header_offset + 26)
            name_bytes, extra_bytes = struct.unpack("<HH", stream.read(4))
            entries[info.header_offset + 30 + name_bytes + extra_bytes] = info.file_size
    return entries


def _mapping_address(storages: Mapping[int, int], entries: Mapping[int, int], file: str) -> int:
    if len(storages) == 0:
        return 0
    anchor = min(storages)
    for offset in sorted(entries):
        base = anchor - offset
        if all(entries.get(address - base) == size for address, size in storages.items()):
            return base
    raise CheckpointError(
        file, "its directory and its pickle disagree about where tensors lie", hint=_CONVERT.format(file)
    )


def _stored(name: str, tensor: torch.Tensor, file: str, base: int) -> Stored:
    dtype: DType | None = BY_CODE.get(_TORCH_NAMES.get(str(tensor.dtype).removeprefix("torch."), ""))
    if dtype is None:
        raise CheckpointError(f"{name} in {file}", f"dtype {tensor.dtype}", f"one of {', '.join(_TORCH_NAMES)}")
    strides = None if tensor.is_contiguous() else tuple(tensor.stride())
    offset = tensor.data_ptr() - base if tensor.numel() > 0 else 0
    return Stored(name, file, dtype, tuple(tensor.shape), offset, strides)
