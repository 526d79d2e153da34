"""A checkpoint as one file for each tensor, which transformers-neuronx and LMI load part by part.

Source: aws-neuron/transformers-neuronx: src/transformers_neuronx/module.py (save_split, save_pretrained_split).
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Final, Protocol

import torch
from torch import Tensor

from llmcompile.errors import MismatchError, Problem

FOLDER: Final = "pytorch_model.bin"
_INDEX: Final = "key_to_filename.json"
_HINT: Final = "export the model again"


class _Weights(Protocol):
    def names(self) -> Collection[str]: ...

    def read(self, name: str) -> Tensor: ...


def differences(
    folder: Path, weights: _Weights, required: Mapping[str, str], dtype: torch.dtype | None
) -> Iterator[Problem]:
    """Where the files are not the checkpoint's tensors, cast, bit for bit.

    Args:
        folder: Holds key_to_filename.json and the files it names.
        weights: The checkpoint.
        required: Keys that must be there, and the tensor each is; another key must be a tensor's own name.
        dtype: What float tensors were cast to; None for nothing.
    """
    try:
        index = _index(folder / _INDEX)
    except MismatchError as error:
        yield from error.problems
        return
    sources = {**{name: name for name in weights.names()}, **required}
    files = set(index.values())
    for key in sorted(required.keys() - index.keys()):
        yield Problem(f"{folder / _INDEX}: {key}", "missing", "a file", _HINT)
    for key in sorted(index.keys() - sources.keys()):
        yield Problem(f"{folder / _INDEX}: {key}", "not in the checkpoint", "its tensors alone", _HINT)
    for path in sorted(folder.iterdir()):
        if path.name not in files and path.name != _INDEX:
            yield Problem(str(path), f"a file that {_INDEX} does not name", f"{len(files)} files", _HINT)
    for key in sorted(index.keys() & sources.keys()):
        yield from _difference(folder / index[key], sources[key], weights.read(sources[key]), dtype)


def _difference(path: Path, name: str, stored: Tensor, dtype: torch.dtype | None) -> Iterator[Problem]:
    expected = stored.to(dtype) if dtype is not None and stored.is_floating_point() else stored
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        lines = str(error).strip().splitlines()
        text = type(error).__name__ if lines == [] else lines[0]
        yield Problem(str(path), f"unreadable ({text})", f"{name}, saved by torch.save", _HINT)
        return
    if not isinstance(found, Tensor):
        yield Problem(str(path), f"a {type(found).__name__}", f"the tensor {name}", _HINT)
    elif (found.dtype, found.shape) != (expected.dtype, expected.shape):
        yield Problem(str(path), _kind(found), f"{_kind(expected)}, as {name} is, cast", _HINT)
    elif not torch.equal(_bits(found), _bits(expected)):
        at = int((_bits(found) != _bits(expected)).nonzero()[0, 0])
        yield Problem(str(path), f"another value at byte {at}", f"{name} of the checkpoint, cast", _HINT)


def _index(path: Path) -> Mapping[str, str]:
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MismatchError(str(path), f"unreadable ({error.strerror})", "a file for each tensor", _HINT) from error
    except (ValueError, RecursionError) as error:
        raise MismatchError(str(path), f"not JSON ({error})", "a file for each tensor", _HINT) from error
    plain = isinstance(index, dict) and all(isinstance(file, str) for file in index.values())
    if not plain or any(Path(file).name != file for file in index.values()):
        raise MismatchError(str(path), "no map of tensors to files", "tensor name -> file name", _HINT)
    if len(set(index.values())) < len(index):
        raise MismatchError(str(path), "two tensors in one file", "a file for each tensor", _HINT)
    return dict(index)


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
