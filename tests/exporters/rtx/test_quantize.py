"""Weights of few bits, against values worked out by hand and what ONNX's own numbers are."""

from __future__ import annotations

import numpy as np
import pytest

from llmcompile import onnx_model
from llmcompile.exporters.rtx import quantize


def test_int8_has_a_scale_for_each_output() -> None:
    """The largest of each output becomes 127, and everything else the nearest multiple."""
    weight = np.array([[1.27, -4.0], [-0.5, 2.0]], dtype=np.float32)

    found = quantize.quantize(weight, "int8", 0)

    np.testing.assert_allclose(found.scales, [0.01, 4 / 127], rtol=1e-6)
    assert np.frombuffer(found.stored, np.int8).tolist() == [127, -127, -50, 64]  # 63.5 rounds to the even 64


def test_int4_has_a_scale_for_each_block_of_128_inputs() -> None:
    """The low half of a byte is the first element; a negative one is its two's complement."""
    weight = np.zeros((256, 2), dtype=np.float32)
    weight[0] = [7.0, -14.0]
    weight[1] = [-3.0, 4.0]
    weight[128] = [0.7, 0.0]

    found = quantize.quantize(weight, "int4", 0)

    np.testing.assert_allclose(found.scales, [[1.0, 2.0], [0.1, 1.0]], rtol=1e-6)
    assert found.stored[:2] == bytes([0x97, 0x2D])  # 7 and -7, then -3 and 2
    assert len(found.stored) == 256


@pytest.mark.parametrize("recipe", ["int8", "int4", "fp8"])
@pytest.mark.parametrize("axis", [0, 1])
def test_what_comes_back_is_within_half_a_step(recipe: str, axis: int) -> None:
    """For either order of axes, odd sizes and an output of zeros; fp8 has three bits of mantissa."""
    numbers = np.random.default_rng(0)
    weight = numbers.standard_normal((256, 5) if axis == 0 else (5, 256)).astype(np.float32)
    np.moveaxis(weight, axis, 0)[:, 3] = 0

    found = quantize.quantize(weight, recipe, axis)

    tensor = onnx_model.Tensor("w", recipe, weight.shape, None, 0, found.stored)
    units = onnx_model.elements(tensor).astype(np.float32)
    steps = np.repeat(found.scales, 128, axis) if recipe == "int4" else np.expand_dims(found.scales, axis)
    error = np.abs(units * steps - weight)
    limit = np.maximum(np.abs(weight) / 16, steps / 512) if recipe == "fp8" else 0.5001 * steps
    assert (error <= limit).all()
    assert found.scales.shape == quantize.scale_shape(weight.shape, recipe, axis)


def test_int4_takes_whole_blocks_alone() -> None:
    """A layer with 96 inputs stays as it is."""
    assert quantize.quantizable((256, 7), "int4", 0)
    assert not quantize.quantizable((96, 7), "int4", 0)
    assert quantize.quantizable((96, 7), "int8", 0)
