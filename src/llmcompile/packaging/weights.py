"""Which weights are missing: of a Hugging Face checkpoint, and of FasterTransformer's files of ranks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from llmcompile.packaging.documents import json_object

if TYPE_CHECKING:
    from llmcompile.packaging.tree import Tree

_FORMS = (("model.safetensors.index.json", (".safetensors",)), ("pytorch_model.bin.index.json", (".bin", ".pt")))
"""Index -> endings of the files it is of, in the order in which servers look for them."""
_NO_WEIGHTS = ("training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt", "scaler.pt")
_SHARD = re.compile(r".*-([0-9]{5})-of-([0-9]{5})\.[a-z]+")
_RANKED = re.compile(r"(.+)\.([0-9]{1,6})\.bin")


def missing_weights(tree: Tree) -> str | None:
    """What a Hugging Face checkpoint at the root of a tree lacks, in words; None where all of its weights are there.

    Source: vllm-project/vllm@00b5ad07:vllm/model_executor/model_loader/default_loader.py (_prepare_weights) for the
    order, weight_utils.py beside it (filter_files_not_needed_for_inference) for what is no weights.
    """
    for index, endings in _FORMS:
        files = {
            path: size
            for path, size in tree.files.items()
            if "/" not in path and path.endswith(endings) and path not in _NO_WEIGHTS
        }
        if index in tree.files:
            content = json_object(tree, index)
            table = None if content is None else content.get("weight_map")
            if not isinstance(table, dict) or table == {}:
                return f"{index} without weight_map"
            return _lacking({str(name) for name in table.values()}, tree.files)
        if files != {}:
            numbered = [match for match in map(_SHARD.fullmatch, files) if match is not None]
            shards = max((int(match[2]) for match in numbered), default=0)
            if shards > len(numbered):
                return f"{len(numbered)} of {shards} shards, and no {index}"
            return _lacking(files, files)
    return "no *.safetensors or *.bin"


def _lacking(names: Iterable[str], files: Mapping[str, int]) -> str | None:
    bad = sorted(name for name in names if files.get(name, 0) == 0)
    return None if bad == [] else f"{len(bad)} files missing or empty, like {bad[0][:80]}"


def ranked_tensors(paths: Iterable[str]) -> Mapping[str, frozenset[int]]:
    """Tensor -> ranks that have a file of it, of those tensors of FasterTransformer's that are split over ranks."""
    ranks: dict[str, set[int]] = {}
    for path in paths:
        found = _RANKED.fullmatch(path)
        if found is not None:
            ranks.setdefault(found[1], set()).add(int(found[2]))
    return {name: frozenset(held) for name, held in ranks.items()}


def are_all(ranks: Iterable[int], count: int) -> bool:
    """Whether ranks are 0 to count - 1, each once; `count` may be any number that a file states."""
    held = sorted(ranks)
    return len(held) == count and held == list(range(len(held)))
