"""The ranks' weights: in place where they lie well, copied once where they do not."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from llmcompile import hlo
from llmcompile.hlo.wire import Message
from llmcompile.validation.neuron_artifact.graphs import GENERATION, Graph, Value
from llmcompile.validation.neuron_artifact.weights import Weights, open_weights
from llmcompile.validation.xla import ALIGNMENT

LARGE, ODD, NARROW = np.arange(64, dtype=np.float32), np.arange(3, dtype=np.int8), np.arange(32) / 8


def write(folder: Path, *, padding: int) -> Graph:
    """A rank's file of three tensors, whose header is `padding` bytes short of a multiple of 64, and its graph."""
    given = {
        "large": ("F32", LARGE.tobytes(), [8, 8]),
        "odd": ("I8", ODD.tobytes(), [3]),
        "narrow": ("BF16", NARROW.astype(ml_dtypes.bfloat16).tobytes(), [32]),
    }
    header: dict[str, object] = {}
    end = 0
    for name, (code, data, shape) in given.items():
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [end, end := end + len(data)]}
    text = json.dumps(header).encode()
    text += b" " * ((-len(text) - 8 - padding) % 64)
    (folder / "weights").mkdir()
    data = b"".join(data for _, data, _ in given.values())
    path = folder / "weights/tp0_sharded_checkpoint.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    values = (Value("large", "f32", (8, 8)), Value("odd", "s8", (3,)), Value("narrow", "bf16", (32,)))
    return Graph(
        path=folder / "x",
        name=GENERATION,
        kind=GENERATION,
        ranks=1,
        inputs=(),
        states=(),
        weights=values,
        outputs=(),
        module=hlo.Module(Message()),
    )


@pytest.mark.parametrize("padding", [0, 8])
def test_tensors_are_read_as_they_were_written(tmp_path: Path, padding: int) -> None:
    """Wherever they lie, and with the element types that NumPy lacks."""
    graph = write(tmp_path, padding=padding)

    large, odd, narrow = (buffers.fetch()[0] for buffers in Weights(open_weights(tmp_path, [graph])).of(graph))

    np.testing.assert_array_equal(large, LARGE.reshape(8, 8))
    np.testing.assert_array_equal(odd, ODD)
    np.testing.assert_array_equal(narrow.astype(np.float32), NARROW)


def test_what_lies_well_is_mapped(tmp_path: Path) -> None:
    """XLA is given the file's own pages; the tensor behind an odd one is copied."""
    weights = Weights(open_weights(tmp_path, [write(tmp_path, padding=0)]))

    (large,), (narrow,) = weights.shares("large"), weights.shares("narrow")

    assert weights.tensor("large").pointers[0] == large.ctypes.data
    assert not large.flags.writeable
    assert narrow.flags.writeable
    assert narrow.ctypes.data % ALIGNMENT == 0


def test_a_tensor_is_placed_once(tmp_path: Path) -> None:
    """Every graph that takes it gets the same memory."""
    graph = write(tmp_path, padding=8)
    weights = Weights(open_weights(tmp_path, [graph]))

    first, second = weights.of(graph), weights.of(graph)

    assert all(one is other for one, other in zip(first, second, strict=True))
