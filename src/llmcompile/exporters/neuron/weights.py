"""The file of weights of a model that no table describes: the tensors its graph takes, as transformers loaded them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from llmcompile.dtypes import BY_CODE, count
from llmcompile.exporters.neuron.signature import Value
from llmcompile.plan import framed
from llmcompile.writing import WorkDirectory

_CODES: Mapping[str, str] = MappingProxyType(
    {"f32": "F32", "f16": "F16", "bf16": "BF16", "s32": "I32", "s8": "I8", "u8": "U8", "pred": "BOOL"}
)
"""XLA's names of element types -> safetensors'."""
_TORCH: Mapping[str, torch.dtype] = MappingProxyType(
    {
        "f32": torch.float32,
        "f16": torch.float16,
        "bf16": torch.bfloat16,
        "s32": torch.int32,
        "s8": torch.int8,
        "u8": torch.uint8,
        "pred": torch.bool,
    }
)


def rank_file(rank: int) -> str:
    """Path of a rank's weights in an artifact.

    Source: aws-neuron/neuronx-distributed: src/neuronx_distributed/trace/model_builder.py (shard_checkpoint).
    """
    return f"weights/tp{rank}_sharded_checkpoint.safetensors"


def write_weights(values: Iterable[Value], read: Callable[[str], Tensor], work: WorkDirectory) -> None:
    """Write the one rank's file, a tensor at a time.

    Args:
        values: The weights of a graph.
        read: Name -> the tensor, of the value's shape; cast to the value's element type here.
        work: Where the artifact is made.
    """
    file = rank_file(0)
    if file in work.finished:
        return
    # Tensors of whole words first, then of whole halves, so that each lies on a multiple of its element size.
    ordered = sorted(values, key=lambda value: (_bytes(value) % 4 != 0, _bytes(value) % 2 != 0, value.name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for value in ordered:
        start, end = end, end + _bytes(value)
        header[value.name] = {
            "dtype": _CODES[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [start, end],
        }
    frame = framed(header)
    target = work.create(file, len(frame) + end)
    target.write(memoryview(frame))
    for value in ordered:
        tensor = read(value.name).detach().to(_TORCH[value.dtype]).contiguous()
        assert tuple(tensor.shape) == value.shape
        target.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
    work.record(file, target.finish())


def _bytes(value: Value) -> int:
    return count(value.shape) * BY_CODE[_CODES[value.dtype]].size_bytes
