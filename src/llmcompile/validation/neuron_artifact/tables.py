"""Embedding tables, row by row: a run sees the rows of its tokens alone.

Source of a decoder's names and of how they are divided: huggingface/optimum-neuron@v0.4.5:optimum/neuron/models/
inference (ParallelEmbedding with shard_across_embedding).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from llmcompile.errors import Problem
from llmcompile.validation.neuron_artifact.weights import RankFile, Weights
from llmcompile.validation.reference import EmbeddingTable

_DECODER: Final = {"tokens": "embed_tokens.weight", "positions": "embed_positions.weight"}
_BLOCK_BYTES: Final = 32 << 20
_HINT: Final = "export the model again"


def differences(
    files: Sequence[RankFile], table: EmbeddingTable, stored: Tensor, dtype: torch.dtype, *, decoder: bool
) -> Iterator[Problem]:
    """Where the ranks' table is not the checkpoint's, cast.

    Args:
        files: One for each rank.
        table: Which table.
        stored: The checkpoint's, shape (skip + rows, width).
        dtype: Element type of the artifact.
        decoder: Whether names are those of a decoder's files; otherwise they are the model's own.

    Yields:
        At most one problem.
    """
    names = (_DECODER[table.kind],) if decoder else table.names
    name = next((name for name in names if name in files[0].tensors), None)
    if name is None:
        yield Problem(f"{files[0].path}: {names[0]}", "missing", f"the table of {table.kind}", _HINT)
        return
    shares = Weights(files).shares(name)
    rows, width = stored.shape
    skip = rows - shares[0].shape[0]
    if skip not in (0, table.skip) or sum(share.shape[1] for share in shares) < width:
        found = " + ".join(str(tuple(share.shape)) for share in shares)
        yield Problem(f"{files[0].path}: {name}", found, f"{tuple(stored.shape)} of {table.stored}", _HINT)
        return
    replicated = len(shares) > 1 and shares[0].shape[1] == width
    height = max(1, _BLOCK_BYTES // (4 * width))
    for start in range(0, rows - skip, height):
        block = [torch.from_numpy(share[start : start + height].astype(np.float32)) for share in shares]
        wanted = stored[skip + start : skip + start + height].to(dtype).float()
        for found_rows in block if replicated else [torch.cat(block, 1)]:
            same = _same(found_rows[:, :width], wanted) & (found_rows[:, width:] == 0).all(1)
            if not bool(same.all()):
                row = start + int((~same).nonzero()[0])
                text = f"row {row} is not row {row + skip} of {table.stored}"
                yield Problem(f"{files[0].path}: {name}", text, "the checkpoint's, cast", _HINT)
                return


def _same(found: Tensor, wanted: Tensor) -> Tensor:
    return ((found == wanted) | (found.isnan() & wanted.isnan())).all(1)
