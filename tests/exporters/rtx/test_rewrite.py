"""The graph torch.onnx made, as the artifact has it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from llmcompile import onnx_model
from llmcompile.errors import UnsupportedError
from llmcompile.exporters.rtx import export, rewrite
from llmcompile.exporters.rtx.networks import Given, Network
from llmcompile.validation import ort
from llmcompile.writing import WorkDirectory


class _Inside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 4)
        self.up = nn.Linear(4, 6)

    def forward(self, ids: Tensor) -> Tensor:
        found: Tensor = self.up(self.embed(ids))
        return found


class _Outside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.of = _Inside()

    def forward(self, ids: Tensor) -> tuple[Tensor, ...]:
        return (self.of(ids) * 2,)


def written(folder: Path, output: str, quantization: str | None) -> tuple[Path, nn.Module]:
    """A small graph whose only output is called `output`, rewritten."""
    torch.manual_seed(0)
    module = _Outside().eval()
    given = Given("input_ids", torch.ones((2, 3), dtype=torch.int64), ("batch", "sequence"))
    network = Network(name="model", module=module, inputs=(given,), outputs=(output,))
    export.export(network, folder / "exported.onnx", opset=21)
    with WorkDirectory(folder / "out", job={}, resume=False, force=False) as work:
        rewrite.write(folder / "exported.onnx", network, {"up": True}, quantization, work)
        return work.path / "onnx" / "model.onnx", module


def test_a_name_at_the_border_does_not_meet_one_inside(tmp_path: Path) -> None:
    """torch.onnx calls the result of an embedding "embedding", and lets an output have the same name."""
    path, module = written(tmp_path, "embedding", "int8")

    ids = torch.tensor([[1, 2], [3, 8]])
    found = ort.Session(path).run({"input_ids": ids})

    model = onnx_model.load(path)
    names = onnx_model.names(model)
    assert len(set(names)) == len(names)
    assert [value.name for value in onnx_model.outputs(model)] == ["embedding"]
    torch.testing.assert_close(found["embedding"], module(ids)[0], atol=0.05, rtol=0.0)


def test_axes_are_named_and_nothing_tells_where_it_was_made(tmp_path: Path) -> None:
    """Neither the folder, nor lines of code; a graph twice made is the same, byte for byte."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    path, _ = written(tmp_path / "a", "answer", None)
    again, _ = written(tmp_path / "b", "answer", None)

    content = path.read_bytes()

    (output,) = onnx_model.outputs(onnx_model.load(path))
    assert output.shape == ("batch", "sequence", 6)
    assert b"File" not in content
    assert str(tmp_path).encode() not in content
    assert content == again.read_bytes()


def test_nothing_to_quantize_is_refused(tmp_path: Path) -> None:
    """Four inputs are no block of 128."""
    with pytest.raises(UnsupportedError, match="128"):
        written(tmp_path, "answer", "int4")
