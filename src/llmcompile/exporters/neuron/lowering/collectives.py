"""Sums and concatenations over tensor parallel ranks, as operators that torch.export keeps in the graph.

They exist in traced graphs only: one process holds one rank's share of the network, so outside a graph there is nobody
to exchange with and an answer would be wrong. `program.lower` turns them into markers that `normalise` expands into
all-reduce and all-gather over all ranks.
"""

import torch
from torch import Tensor

_ONLY_TRACED = "{} joins ranks and runs in a lowered graph only; a network of one rank leaves it out"


@torch.library.custom_op("llmcompile::all_reduce", mutates_args=())
def all_reduce(x: Tensor) -> Tensor:
    """Sum `x` over all ranks.

    Args:
        x: One rank's partial sum, any shape; the same shape on every rank.

    Returns:
        The sum, of the same shape and dtype, equal on every rank.

    Raises:
        RuntimeError: It was called outside a traced graph.
    """
    raise RuntimeError(_ONLY_TRACED.format("llmcompile::all_reduce"))


@all_reduce.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op("llmcompile::all_gather", mutates_args=())
def all_gather(x: Tensor, dim: int, ranks: int) -> Tensor:
    """Concatenate every rank's `x` along `dim`, in order of ranks.

    Args:
        x: One rank's share, at least one axis; the same shape on every rank.
        dim: Axis to concatenate along; negative from the end.
        ranks: How many ranks there are.

    Returns:
        `ranks` times as long along `dim`, equal on every rank.

    Raises:
        RuntimeError: It was called outside a traced graph.
    """
    raise RuntimeError(_ONLY_TRACED.format("llmcompile::all_gather"))


@all_gather.register_fake
def _(x: Tensor, dim: int, ranks: int) -> Tensor:
    shape = list(x.shape)
    shape[dim] *= ranks
    return x.new_empty(shape)
