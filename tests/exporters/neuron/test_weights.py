"""The file of an encoder's weights: what safetensors reads of it, and how tensors lie in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from llmcompile.exporters.neuron.signature import Value
from llmcompile.exporters.neuron.weights import rank_file, write_weights
from llmcompile.writing import WorkDirectory

TYPES = {
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "s32": torch.int32,
    "s8": torch.int8,
    "u8": torch.uint8,
    "pred": torch.bool,
}


def write(folder: Path, values: Sequence[Value], tensors: Mapping[str, Tensor]) -> Path:
    """The file of some weights."""
    with WorkDirectory(folder, job={}, resume=False, force=False) as work:
        write_weights(values, tensors.__getitem__, work)
        work.publish()
    return folder / rank_file(0)


@pytest.mark.parametrize("name", TYPES)
def test_a_tensor_of_each_type_is_read_as_it_was_given(name: str, tmp_path: Path) -> None:
    """With its shape and its element type, by safetensors."""
    given = (torch.arange(6) % 2).reshape(2, 3).to(TYPES[name])

    found = load_file(write(tmp_path / "out", [Value("a", name, (2, 3))], {"a": given}))

    assert found["a"].dtype == given.dtype
    assert torch.equal(found["a"], given)


def test_a_tensor_of_no_dimensions_is_written(tmp_path: Path) -> None:
    """As one number."""
    found = load_file(write(tmp_path / "out", [Value("a", "f32", ())], {"a": torch.tensor(2.5)}))

    assert found["a"].shape == ()
    assert found["a"].item() == 2.5


def test_a_tensor_is_cast_to_what_the_graph_takes(tmp_path: Path) -> None:
    """To nearest: 1 + 1/256 has no place in bfloat16, 1 + 3/256 is nearer to 1 + 4/256."""
    given = torch.tensor([1 + 1 / 256, 1 + 3 / 256])

    found = load_file(write(tmp_path / "out", [Value("a", "bf16", (2,))], {"a": given}))

    assert found["a"].tolist() == [1.0, 1 + 4 / 256]


@pytest.mark.parametrize("given", [torch.arange(6.0).reshape(3, 2).T, torch.arange(12.0)[::2]], ids=["turned", "apart"])
def test_a_tensor_is_written_as_it_is_read(given: Tensor, tmp_path: Path) -> None:
    """Element by element, not as its memory lies."""
    found = load_file(write(tmp_path / "out", [Value("a", "f32", tuple(given.shape))], {"a": given}))

    assert found["a"].tolist() == given.tolist()


def test_every_tensor_lies_on_a_multiple_of_its_element_size(tmp_path: Path) -> None:
    """Also behind one of three bytes, which comes first by its name."""
    shapes = {"a": ("s8", 3), "b": ("bf16", 3), "c": ("f32", 2), "d": ("pred", 5), "e": ("f16", 1), "f": ("s32", 1)}
    values = [Value(name, dtype, (count,)) for name, (dtype, count) in shapes.items()]
    given = {name: torch.zeros(count, dtype=TYPES[dtype]) for name, (dtype, count) in shapes.items()}

    path = write(tmp_path / "out", values, given)

    found = load_file(path)
    start = min(tensor.data_ptr() for tensor in found.values())
    assert found.keys() == shapes.keys()
    assert {name: (t.data_ptr() - start) % t.element_size() for name, t in found.items()} == dict.fromkeys(shapes, 0)


def test_a_finished_file_is_not_read_again(tmp_path: Path) -> None:
    """A resumed export has it."""
    value = Value("a", "f32", (2,))
    with WorkDirectory(tmp_path / "out", job={}, resume=False, force=False) as work:
        write_weights([value], {"a": torch.ones(2)}.__getitem__, work)

        write_weights([value], {}.__getitem__, work)

        work.publish()
    assert load_file(tmp_path / "out" / rank_file(0))["a"].tolist() == [1, 1]
