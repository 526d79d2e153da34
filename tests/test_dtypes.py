"""The table of element types agrees with NumPy, torch and the safetensors library."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import safetensors.torch
import torch

from llmcompile.dtypes import BY_CODE, BY_NAME, DTYPES, DType, count

TORCH = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_carrier_is_as_wide_as_the_element(dtype: DType) -> None:
    """The NumPy type that carries an element's bits has as many bytes as the element."""
    assert np.dtype(dtype.bits).itemsize == dtype.size_bytes


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_width_is_that_of_torch(dtype: DType) -> None:
    """An element has as many bytes as torch's type of that code."""
    assert torch.empty(0, dtype=TORCH[dtype.code]).element_size() == dtype.size_bytes


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_code_is_what_safetensors_writes(dtype: DType) -> None:
    """The code is the one the safetensors library writes for torch's type."""
    data = safetensors.torch.save({"x": torch.zeros(2, dtype=TORCH[dtype.code])})

    (length,) = struct.unpack("<Q", data[:8])

    assert json.loads(data[8 : 8 + length])["x"]["dtype"] == dtype.code


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_carrier_is_little_endian(dtype: DType) -> None:
    """Carriers are little-endian or one byte wide, as the safetensors format is, on every machine."""
    assert dtype.bits[0] == ("|" if dtype.size_bytes == 1 else "<")


def test_names_are_unique() -> None:
    """No two element types share a name."""
    assert len(BY_NAME) == len(DTYPES)


def test_codes_are_unique() -> None:
    """No two element types share a safetensors code."""
    assert len(BY_CODE) == len(DTYPES)


def test_castable_types_are_the_unscaled_floats() -> None:
    """What `cast` converts are the floats that need no scale: fp64, fp32, fp16 and bf16."""
    found = {dtype.name for dtype in DTYPES if dtype.is_float}

    assert found == {"fp64", "fp32", "fp16", "bf16"}


@pytest.mark.parametrize(("shape", "elements"), [((), 1), ((7,), 7), ((2, 3, 5), 30), ((4, 0), 0)])
def test_count_multiplies_the_sides(shape: tuple[int, ...], elements: int) -> None:
    """A shape holds the product of its sides; a scalar holds one element."""
    assert count(shape) == elements


def test_count_does_not_overflow() -> None:
    """A shape beyond 64 bits is counted exactly."""
    assert count((2**40, 2**40)) == 2**80
