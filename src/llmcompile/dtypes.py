"""Element types: one table of name, width, safetensors code and the NumPy type that carries the bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class DType:
    """An element type.

    Attributes:
        name: The short name used by flags and FasterTransformer's config.ini where it has one (fp32, fp16, bf16).
        code: The name in a safetensors header. Source: huggingface/safetensors@main:safetensors/src/tensor.rs.
        size_bytes: Bytes per element.
        bits: NumPy type string of the carrier; bf16 and fp8 have no NumPy type and travel as unsigned integers.
        is_float: Whether `transforms.cast` converts it.
    """

    name: str
    code: str
    size_bytes: int
    bits: str
    is_float: bool


FP64 = DType("fp64", "F64", 8, "<f8", True)
FP32 = DType("fp32", "F32", 4, "<f4", True)
FP16 = DType("fp16", "F16", 2, "<f2", True)
BF16 = DType("bf16", "BF16", 2, "<u2", True)
INT8 = DType("int8", "I8", 1, "|i1", False)

DTYPES: tuple[DType, ...] = (
    FP64,
    FP32,
    FP16,
    BF16,
    INT8,
    DType("fp8_e4m3", "F8_E4M3", 1, "|u1", False),
    DType("fp8_e5m2", "F8_E5M2", 1, "|u1", False),
    DType("int64", "I64", 8, "<i8", False),
    DType("int32", "I32", 4, "<i4", False),
    DType("int16", "I16", 2, "<i2", False),
    DType("uint64", "U64", 8, "<u8", False),
    DType("uint32", "U32", 4, "<u4", False),
    DType("uint16", "U16", 2, "<u2", False),
    DType("uint8", "U8", 1, "|u1", False),
    DType("bool", "BOOL", 1, "|u1", False),
)
BY_CODE: Mapping[str, DType] = MappingProxyType({dtype.code: dtype for dtype in DTYPES})
BY_NAME: Mapping[str, DType] = MappingProxyType({dtype.name: dtype for dtype in DTYPES})


def count(shape: Shape) -> int:
    """Elements in `shape`; 1 for a scalar."""
    total = 1
    for size in shape:
        total *= size
    return total
