"""The split checkpoint of AWS's SDK 2.16 and of LMI: a folder called pytorch_model.bin with a file for each tensor.

key_to_filename.json says which tensor is where: p<number>.<its name, without what a file name cannot have>; each file
is what torch.save makes of one tensor. The loader goes by that table alone, so that the order of numbers is free.

Source: aws-neuron/transformers-neuronx@1ade6d7:src/transformers_neuronx/module.py (save_split, sanitize_file_name).
"""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from llmcompile.architectures import lookup
from llmcompile.architectures.spec import Architecture, Dims
from llmcompile.checkpoint.folder import Checkpoint
from llmcompile.checkpoint.headers import Stored
from llmcompile.checkpoint.reader import Reader
from llmcompile.dtypes import DType
from llmcompile.errors import CheckpointError, UnsupportedError
from llmcompile.exporters.neuron.rows import FAMILIES
from llmcompile.transforms import Array, cast, overflows
from llmcompile.writing import HashedFile, WorkDirectory

if TYPE_CHECKING:
    from torch import Tensor

FOLDER = "pytorch_model.bin/"
INDEX = "key_to_filename.json"
_LONGEST_NAME = 255
"""Bytes of a file name on Linux."""
_TORCH: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "fp64": ("float64", "<f8"),
        "fp32": ("float32", "<f4"),
        "fp16": ("float16", "<f2"),
        "bf16": ("bfloat16", "<i2"),
        "fp8_e4m3": ("float8_e4m3fn", "|u1"),
        "fp8_e5m2": ("float8_e5m2", "|u1"),
        "int64": ("int64", "<i8"),
        "int32": ("int32", "<i4"),
        "int16": ("int16", "<i2"),
        "int8": ("int8", "|i1"),
        "uint8": ("uint8", "|u1"),
        "bool": ("bool", "|u1"),
    }
)
"""Our name of an element type -> torch's, and the NumPy type that carries its bits there."""


def write_split(checkpoint: Checkpoint, work: WorkDirectory, folder: str, dtype: DType | None) -> None:
    """Write every tensor of a model that `work` does not have yet, one in memory at a time.

    Args:
        checkpoint: As transformers saves models, in safetensors or pickles.
        work: Where to write; every finished file is recorded in its journal.
        folder: Folder inside the artifact that pytorch_model.bin/ is made in, with a final slash; "" for the top.
        dtype: Element type of floats; None for that of each tensor.

    Raises:
        UnsupportedError: The checkpoint has Meta's names, or an element type that torch lacks.
        CheckpointError: A tensor cannot be read, or its name makes no file name.
        OutputError: The disk is full or failed.
    """
    keys = split_keys(checkpoint)
    files = {key: f"p{number}.{_file_name(key)}" for number, key in enumerate(keys)}
    _check_names(files)
    with Reader(checkpoint.files) as reader:
        for key, stored in keys.items():
            path = f"{folder}{FOLDER}{files[key]}"
            if path not in work.finished:
                _write_tensor(stored, reader, work, path, dtype)
    path = f"{folder}{FOLDER}{INDEX}"
    if path not in work.finished:
        work.write_bytes(path, json.dumps(files, indent=2).encode())


def split_keys(checkpoint: Checkpoint) -> Mapping[str, Stored]:
    """Names as in the state dict of transformers' model with a head -> the stored tensor, in the order of the files.

    A tied head is a key of its own, as in that state dict, and buffers which transformers recomputes are left out. Of
    a family that has no table here, names are as they are stored.

    Raises:
        UnsupportedError: The checkpoint has Meta's names.
    """
    ordered = sorted(checkpoint.tensors.values(), key=lambda stored: (stored.file, stored.offset))
    as_stored = {stored.name: stored for stored in ordered}
    try:
        architecture = lookup(checkpoint.config, checkpoint.tensors)
    except UnsupportedError:
        return as_stored
    if architecture.name == "meta_llama":
        hint = "convert it by transformers' convert_llama_weights_to_hf.py, or use --layout nxd"
        raise UnsupportedError("params.json", "a checkpoint of Meta's", "one of transformers'", hint)
    if architecture.name not in FAMILIES:
        return as_stored
    names = dict(_state_dict(architecture, architecture.dims(checkpoint.config), as_stored))
    claimed = {stored.name for stored in names.values()}
    others = {
        name: stored
        for name, stored in as_stored.items()
        if name not in claimed and name not in names and architecture.why_ignored(name) is None
    }
    place = {name: number for number, name in enumerate(as_stored)}
    ranked = sorted({**names, **others}.items(), key=lambda item: place[item[1].name])
    return dict(ranked)


def _state_dict(architecture: Architecture, dims: Dims, stored: Mapping[str, Stored]) -> Iterator[tuple[str, Stored]]:
    """Every tensor of the family's table by the name that transformers' model with a head has for it."""
    located = architecture.locate(stored)
    tokens: Stored | None = None
    for tensor, layer, expert in architecture.expected(dims):
        canonical = tensor.name_at(layer, expert)
        head = tensor.roles[0].startswith("head.")
        name = canonical if head or len(architecture.prefixes) == 0 else f"{architecture.prefixes[0]}{canonical}"
        found = stored.get(located.get(canonical, ""))
        if tensor.tied_to != "" and dims.facts["tied"] is True:
            found = tokens
        if tensor.roles == ("embed.tokens.weight",):
            tokens = found
        if found is not None:
            yield name, found


def _file_name(key: str) -> str:
    """Source: as the module, sanitize_file_name."""
    return re.sub(r"[^-\w.]", "", key.strip().replace(" ", "_"))


def _check_names(files: Mapping[str, str]) -> None:
    for key, file in files.items():
        if len(file.encode()) > _LONGEST_NAME or _file_name(key) in ("", ".", ".."):
            found = f"{len(file.encode())} bytes as a file name" if len(file) > _LONGEST_NAME else "no file name"
            raise CheckpointError(repr(key)[:120], found, f"letters, digits, '.', '_', '-': 1 to {_LONGEST_NAME} bytes")


class _Counted:
    """Counts what torch.save writes."""

    def __init__(self) -> None:
        self.size_bytes = 0

    def write(self, block: bytes | memoryview) -> int:
        self.size_bytes += memoryview(block).nbytes
        return memoryview(block).nbytes

    def flush(self) -> None:
        pass


class _Hashed(_Counted):
    """Passes on what torch.save writes."""

    def __init__(self, target: HashedFile) -> None:
        super().__init__()
        self._target = target

    def write(self, block: bytes | memoryview) -> int:
        self._target.write(memoryview(block).cast("B"))
        return super().write(block)


def _write_tensor(stored: Stored, reader: Reader, work: WorkDirectory, path: str, dtype: DType | None) -> None:
    import torch

    bits = reader.read(stored)
    target = stored.dtype if dtype is None or not stored.dtype.is_float else dtype
    converted = cast(bits, stored.dtype, target) if stored.dtype.is_float else bits
    elements = overflows(bits, stored.dtype, converted, target) if stored.dtype.is_float else 0
    del bits
    tensor = _tensor(stored, converted, target)
    counted = _Counted()
    torch.save(tensor, typing.cast("typing.IO[bytes]", counted))
    output = work.create(path, counted.size_bytes)
    try:
        torch.save(tensor, typing.cast("typing.IO[bytes]", _Hashed(output)))
        written = output.finish()
    finally:
        output.close()
    work.record(path, replace(written, overflowed={stored.name: elements}) if elements > 0 else written)


def _tensor(stored: Stored, bits: Array, dtype: DType) -> Tensor:
    import torch

    if dtype.name not in _TORCH:
        raise UnsupportedError(stored.name, f"element type {dtype.name}", f"one of {', '.join(_TORCH)}")
    name, carrier = _TORCH[dtype.name]
    plain = np.ascontiguousarray(bits).view(np.dtype(carrier))
    tensor = torch.from_numpy(plain).view(getattr(torch, name))
    return tensor.reshape(stored.shape)
