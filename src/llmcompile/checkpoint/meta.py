"""LLaMA as Meta publishes it: params.json, and one pickle per model-parallel rank, each with a share of every matrix.

Source: meta-llama/llama@main:llama/model.py: ColumnParallelLinear divides the output axis, RowParallelLinear the input
axis, ParallelEmbedding the hidden axis; Llama 3 divides the embedding's vocabulary instead (VocabParallelEmbedding).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from llmcompile.checkpoint.folder import Checkpoint, auxiliary_files, read_headers, read_object
from llmcompile.checkpoint.headers import Stored
from llmcompile.errors import CheckpointError, Problem, collected

PARAMETERS = "params.json"
ARCHITECTURE = "MetaLlama"
"""What stands for the class name that params.json lacks."""
_ROWS = ("wq", "wk", "wv", "w1", "w3", "output")
_COLUMNS = ("wo", "w2")
_EMBEDDING = "tok_embeddings"
_HINT = "the files are not of one download: get the whole folder again"


def open_meta(root: Path) -> Checkpoint:
    """Read params.json and the headers of consolidated.00.pth and its neighbours as one checkpoint.

    Its config is params.json with `architectures`, and with `vocab_size` and `hidden_dim` from the tensors where
    params.json leaves them open; shares of a tensor become one `Stored` with `shards`.

    Raises:
        CheckpointError: Files are absent or damaged, or their shares do not fit each other.
    """
    parameters = read_object(root, PARAMETERS)
    names = sorted(path.name for path in root.glob("consolidated.*.pth"))
    wanted = [f"consolidated.{number:02d}.pth" for number in range(max(len(names), 1))]
    if names != wanted:
        found = "no consolidated.*.pth" if len(names) == 0 else ", ".join(names)
        raise CheckpointError(str(root), found, ", ".join(wanted), "get the files that are missing")
    found_in = read_headers(root, names)
    tensors = _joined([{stored.name: stored for stored in held} for _, held in found_in], parameters.get("dim"))
    return Checkpoint(
        root=root,
        config=MappingProxyType(_config(parameters, tensors)),
        format="pickle",
        files=tuple(file for file, _ in found_in),
        tensors=MappingProxyType(tensors),
        auxiliary=auxiliary_files(sorted(path.name for path in root.iterdir() if path.is_file())),
    )


def _joined(ranks: list[dict[str, Stored]], hidden: object) -> dict[str, Stored]:
    tensors: dict[str, Stored] = {}
    problems: list[Problem] = []
    for name, first in ranks[0].items():
        shards = tuple(held[name] for held in ranks if name in held)
        axis = _axis(first, hidden)
        shapes = {_others(shard, axis) for shard in shards}
        if len(shards) < len(ranks) or len(shapes) > 1 or len({shard.dtype for shard in shards}) > 1:
            found = ", ".join(f"{shard.dtype.name} {list(shard.shape)} in {shard.file}" for shard in shards)
            problems.append(Problem(name, found, f"shares that fit, in each of {len(ranks)} files", _HINT))
        elif axis is None or len(shards) == 1:
            tensors[name] = first
        else:
            tensors[name] = _whole(name, shards, axis)
    for held in ranks[1:]:
        for name in held.keys() - ranks[0].keys():
            problems.append(Problem(name, f"in {held[name].file}", "in the first file too", _HINT))
    if len(problems) > 0:
        raise collected(CheckpointError, problems)
    return tensors


def _axis(stored: Stored, hidden: object) -> int | None:
    """The axis a tensor is divided along among the files; None for one that each of them holds."""
    layer = stored.name.removesuffix(".weight").rpartition(".")[2]
    if len(stored.shape) != 2:
        return None
    if layer == _EMBEDDING:
        return 0 if stored.shape[1] == hidden else 1
    if layer in _ROWS:
        return 0
    return 1 if layer in _COLUMNS else None


def _others(stored: Stored, axis: int | None) -> tuple[int, ...]:
    """Sizes of the axes that all shares have in common."""
    return tuple(size for number, size in enumerate(stored.shape) if number != axis)


def _whole(name: str, shards: tuple[Stored, ...], axis: int) -> Stored:
    first = shards[0]
    joined = sum(shard.shape[axis] for shard in shards)
    shape = tuple(joined if number == axis else size for number, size in enumerate(first.shape))
    return Stored(name, first.file, first.dtype, shape, first.offset, shards=shards, axis=axis)


def _config(parameters: Mapping[str, Any], tensors: Mapping[str, Stored]) -> dict[str, Any]:
    config = {**parameters, "architectures": [ARCHITECTURE]}
    embedding, mlp = tensors.get(f"{_EMBEDDING}.weight"), tensors.get("layers.0.feed_forward.w1.weight")
    if parameters.get("vocab_size", -1) == -1 and embedding is not None and len(embedding.shape) == 2:
        config["vocab_size"] = embedding.shape[0]
    if "hidden_dim" not in parameters and mlp is not None and len(mlp.shape) == 2:
        config["hidden_dim"] = mlp.shape[0]
    return config
