"""Element types on the way to HLO: nothing of 64 bits, and nothing cut."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmcompile.errors import UnsupportedError
from llmcompile.exporters.neuron.lowering.elements import element_type, exact, promoted, to_numpy, xla_name


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (torch.float64, "f32"),
        (torch.float32, "f32"),
        (torch.float16, "f16"),
        (torch.bfloat16, "bf16"),
        (torch.int64, "s32"),
        (torch.int32, "s32"),
        (torch.int16, "s16"),
        (torch.int8, "s8"),
        (torch.uint8, "u8"),
        (torch.bool, "pred"),
    ],
)
def test_types_have_at_most_32_bits(dtype: torch.dtype, name: str) -> None:
    """By XLA's names."""
    assert xla_name(element_type(dtype)) == name


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn, torch.uint16])
def test_other_types_are_refused(dtype: torch.dtype) -> None:
    """With what they are of."""
    with pytest.raises(UnsupportedError, match=f"x: element type {str(dtype).removeprefix('torch.')}"):
        element_type(dtype, "x")


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=4))
def test_integers_are_kept_or_refused(values: list[int]) -> None:
    """Never cut to 32 bits."""
    tensor = torch.tensor(values)

    if all(-(2**31) <= value < 2**31 for value in values):
        assert to_numpy(tensor, "ids").tolist() == values
        assert to_numpy(tensor, "ids").dtype == np.int32
    else:
        with pytest.raises(UnsupportedError, match="ids: integers from"):
            to_numpy(tensor, "ids")


def test_bfloat16_keeps_its_bits() -> None:
    """NumPy has no such type, ml_dtypes does."""
    tensor = torch.tensor([1.0, -0.3, 1e30], dtype=torch.bfloat16)

    array = to_numpy(tensor, "x")

    assert array.dtype == ml_dtypes.bfloat16
    assert array.view(np.int16).tolist() == tensor.view(torch.int16).tolist()


def test_strided_and_empty_tensors_are_converted() -> None:
    """A transposed one in its own order of elements."""
    np.testing.assert_array_equal(to_numpy(torch.arange(6).reshape(2, 3).T, "x"), [[0, 3], [1, 4], [2, 5]])
    assert to_numpy(torch.zeros(0, 2, dtype=torch.int64), "x").shape == (0, 2)


@given(st.floats(allow_nan=False), st.sampled_from(["float16", "bfloat16", "float32"]))
def test_exact_numbers_survive_a_round_trip(value: float, dtype: str) -> None:
    """As torch rounds."""
    there_and_back = torch.tensor(value, dtype=torch.float64).to(getattr(torch, dtype)).double().item()

    assert exact(value, element_type(getattr(torch, dtype))) == (there_and_back == value)


def test_numbers_give_way_to_tensors() -> None:
    """Torch's categories: a float makes integers float32, and leaves bfloat16 alone."""
    assert promoted(2, 1.5) == np.float32
    assert promoted(True, 3) == np.int32
