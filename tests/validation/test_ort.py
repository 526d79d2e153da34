"""ONNX Runtime as an executor: what it lacks is made up for, and what fails in it is a mismatch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from llmcompile.errors import MismatchError
from llmcompile.validation import ort


def product(folder: Path, kind: int) -> Path:
    """A file of a graph: x times two constants, in the element type `kind`."""
    values = numpy_helper.from_array(
        np.array([1.0, 3.0], np.float32).astype(helper.tensor_dtype_to_np_dtype(kind)), "two"
    )
    given, made = (helper.make_tensor_value_info(name, kind, ["rows", 2]) for name in ("x", "y"))
    node = helper.make_node("Mul", ["x", "two"], ["y"])
    graph = helper.make_graph([node], "product", [given], [made], [values])
    path = folder / "product.onnx"
    path.write_bytes(
        helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)]).SerializeToString()
    )
    return path


def test_a_bf16_graph_runs_in_float32(tmp_path: Path) -> None:
    """Exactly, or with a value rounded to bf16 as it is made: 3 x 1.0078125 is 3.0234375, nearest to 3.03125."""
    path, x = product(tmp_path, TensorProto.BFLOAT16), torch.tensor([[2.0, 1.0078125]])

    exact = ort.Session(path, wide=True).run({"x": x})["y"]
    rounded = ort.Session(path, wide=True, rounding={"y"}).run({"x": x})["y"]

    assert exact.tolist() == [[2.0, 3.0234375]]
    assert rounded.tolist() == (x.bfloat16() * torch.tensor([1.0, 3.0]).bfloat16()).float().tolist() == [[2.0, 3.03125]]


def test_a_graph_that_fails_for_a_shape_is_a_mismatch(tmp_path: Path) -> None:
    """By its name, with the shapes it was fed."""
    session = ort.Session(product(tmp_path, TensorProto.FLOAT))

    with pytest.raises(MismatchError, match=r"product.onnx: does not run for x \(1, 3\)"):
        session.run({"x": torch.ones((1, 3))})


def test_what_is_no_graph_is_a_mismatch(tmp_path: Path) -> None:
    """An operator that ONNX Runtime has no code for, as bf16 has none on CPU."""
    with pytest.raises(MismatchError, match="ONNX Runtime does not take it"):
        ort.Session(product(tmp_path, TensorProto.BFLOAT16))
