"""A checkpoint folder as a whole: which files hold the weights, what is in them, and what else to carry along."""

from __future__ import annotations

import fnmatch
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

from llmcompile.checkpoint.headers import Stored, reject_lfs_pointer, safetensors_header, strict_json
from llmcompile.errors import CheckpointError, LlmCompileError, Problem, collected

WEIGHT_FILES: tuple[str, ...] = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Where weights are looked for, best first. Source: huggingface/transformers@v4.57.6:src/transformers/utils/__init__.py
(SAFE_WEIGHTS_NAME and its neighbours) and the order of `_get_resolved_checkpoint_files` in modeling_utils.py."""

AUXILIARY: tuple[str, ...] = ("*.json", "*.txt", "*.model", "*.py", "*.jinja", "*.tiktoken", "*.vocab", "*.bpe")
"""Configuration, tokenizer and custom code: what a server needs beside the weights."""
_MANIFEST = "llmcompile.json"
"""What every artifact of ours has; `writing`, which makes it, is a layer above."""
_NOT_AUXILIARY = ("*.index.json", _MANIFEST)
_MAX_CONFIG_BYTES = 16 << 20


@dataclass(frozen=True)
class WeightFile:
    """One file of weights: its name in the folder, where it is, and what tells that it was not exchanged."""

    name: str
    path: Path
    size_bytes: int
    modified_ns: int


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, known from its headers alone.

    Attributes:
        root: The folder.
        config: config.json, or what `meta.open_meta` makes of params.json.
        format: "safetensors" or "pickle".
        files: The files that hold weights, in name order.
        tensors: What is in them, by name.
        auxiliary: Names of configuration, tokenizer and code files to carry into an artifact.
    """

    root: Path
    config: Mapping[str, Any]
    format: str
    files: tuple[WeightFile, ...]
    tensors: Mapping[str, Stored]
    auxiliary: tuple[str, ...]


def open_checkpoint(root: Path) -> Checkpoint:
    """Read config.json, the index if there is one, and every header; no tensor data.

    Args:
        root: A local folder as `save_pretrained` writes it, or as Meta publishes LLaMA (params.json).

    Raises:
        CheckpointError: Files are absent, truncated, damaged, lie about each other, or lead out of the folder.
    """
    if not root.is_dir():
        raise CheckpointError(str(root), "no such folder", hint="pass a local folder or a hub id like org/name")
    if (root / "params.json").exists() and not (root / "config.json").exists():
        from llmcompile.checkpoint.meta import open_meta

        return open_meta(root)
    first = next((name for name in WEIGHT_FILES if (root / name).exists()), None)
    if first is None and (root / _MANIFEST).is_file():
        raise _artifact(root)
    config = read_object(root, "config.json")
    if first is None:
        others = sorted(path.name for path in root.iterdir())[:8]
        raise CheckpointError(
            str(root), f"no weights among {', '.join(others)}", f"one of {', '.join(WEIGHT_FILES)}", "check --model"
        )
    index = _read_index(root, first) if first.endswith(".index.json") else None
    names = [first] if index is None else sorted(set(index.values()))
    found = read_headers(root, names)
    tensors = _by_name(found)
    if index is not None:
        _check_index(first, index, tensors)
    return Checkpoint(
        root=root,
        config=MappingProxyType(config),
        format="safetensors" if ".safetensors" in first else "pickle",
        files=tuple(file for file, _ in found),
        tensors=MappingProxyType(tensors),
        auxiliary=auxiliary_files(sorted(path.name for path in root.iterdir() if path.is_file())),
    )


def _artifact(root: Path) -> CheckpointError:
    """Why what llmcompile made of a model is not one."""
    source = read_object(root, _MANIFEST).get("source")
    model = source.get("model") if isinstance(source, dict) else None
    hint = "the model it was made from" if not isinstance(model, str) else f"--model {shlex.quote(model)}"
    return CheckpointError(str(root), f"an artifact of llmcompile: {_MANIFEST} is there", "a model", f"give {hint}")


def auxiliary_files(names: list[str]) -> tuple[str, ...]:
    """Those of `names` that an artifact carries along."""
    return tuple(
        name
        for name in names
        if any(fnmatch.fnmatch(name, pattern) for pattern in AUXILIARY)
        and not any(fnmatch.fnmatch(name, pattern) for pattern in _NOT_AUXILIARY)
    )


def contained(root: Path, name: str) -> Path:
    """The path of `name` in `root`.

    Raises:
        CheckpointError: `name` is absolute, climbs with "..", or is a symbolic link that leads out of the folder.
            The hub cache's own links (snapshots/<commit>/x -> ../../blobs/<etag>) are allowed.
    """
    relative = PurePosixPath(name)
    leaves = relative.is_absolute() or ".." in relative.parts or "\\" in name or not name.isprintable() or name == ""
    path = root / name
    if not leaves:
        real, home = Path(os.path.realpath(path)), Path(os.path.realpath(root))
        blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
        leaves = not (real.is_relative_to(home) or real.is_relative_to(blobs))
    if leaves:
        raise CheckpointError(
            f"{name!r} in {root}",
            "a path that leaves the checkpoint folder",
            "a file inside it",
            "copy the file into the folder, or do not use a checkpoint you do not trust",
        )
    return path


def read_object(root: Path, name: str) -> dict[str, Any]:
    """Read a JSON file of a checkpoint that must hold an object.

    Raises:
        CheckpointError: It is absent, too large, or not such JSON.
    """
    path = contained(root, name)
    try:
        _require_regular(path, name)
        size = path.stat().st_size
        text = path.read_bytes() if size <= _MAX_CONFIG_BYTES else b""
    except OSError as error:
        raise CheckpointError(str(path), _why(error), "a readable file", "check --model") from error
    if size > _MAX_CONFIG_BYTES:
        raise CheckpointError(str(path), f"{size} bytes", f"at most {_MAX_CONFIG_BYTES}", "this is not a JSON config")
    reject_lfs_pointer(text[:64], name)
    value = strict_json(text, str(path))
    if not isinstance(value, dict):
        raise CheckpointError(str(path), f"a JSON {type(value).__name__}", "an object", "check --model")
    return value


def _require_regular(path: Path, name: str) -> None:
    if path.exists() and not path.is_file():
        raise CheckpointError(name, "not a regular file", "a file", "check --model")


def _why(error: OSError) -> str:
    return error.strerror if error.strerror is not None else str(error)


def _read_index(root: Path, name: str) -> dict[str, str]:
    weight_map = read_object(root, name).get("weight_map")
    if not isinstance(weight_map, dict) or len(weight_map) == 0:
        raise CheckpointError(name, "no weight_map", "an object of tensor name -> file", "download it again")
    for tensor, file in weight_map.items():
        if not isinstance(file, str):
            raise CheckpointError(f"{tensor} in {name}", f"{file!r}", "a file name", "download it again")
        contained(root, file)
    return weight_map


def read_headers(root: Path, names: list[str]) -> list[tuple[WeightFile, tuple[Stored, ...]]]:
    """Read the headers of the weight files `names`, in their order.

    Raises:
        CheckpointError: Every file that is absent, damaged or out of the folder.
    """
    found: list[tuple[WeightFile, tuple[Stored, ...]]] = []
    problems: list[Problem] = []
    for name in names:
        try:
            path = contained(root, name)
            _require_regular(path, name)
            status = path.stat()
            found.append((WeightFile(name, path, status.st_size, status.st_mtime_ns), _header(path, name)))
        except OSError as error:
            problems.append(Problem(name, _why(error), "a readable file", "download or copy the missing shard"))
        except LlmCompileError as error:
            problems.extend(error.problems)
    if len(problems) > 0:
        raise collected(CheckpointError, problems)
    return found


def _by_name(found: list[tuple[WeightFile, tuple[Stored, ...]]]) -> dict[str, Stored]:
    tensors: dict[str, Stored] = {}
    problems: list[Problem] = []
    for file, held in found:
        for tensor in held:
            if tensor.name in tensors:
                first = tensors[tensor.name].file
                problems.append(Problem(tensor.name, f"in both {first} and {file.name}", "one of them"))
            tensors[tensor.name] = tensor
    if len(problems) > 0:
        raise collected(CheckpointError, problems)
    return tensors


def _header(path: Path, name: str) -> tuple[Stored, ...]:
    if name.endswith(".safetensors"):
        return safetensors_header(path, name)
    from llmcompile.checkpoint.pickles import pickle_header

    return pickle_header(path, name)


def _check_index(index_name: str, index: Mapping[str, str], tensors: Mapping[str, Stored]) -> None:
    hint = "the index does not belong to these shards: download both again"
    problems = [
        Problem(
            tensor,
            "in no shard" if tensor not in tensors else f"in {tensors[tensor].file}",
            f"{file}, by {index_name}",
            hint,
        )
        for tensor, file in index.items()
        if tensor not in tensors or tensors[tensor].file != file
    ]
    if len(problems) > 0:
        raise collected(CheckpointError, problems)
