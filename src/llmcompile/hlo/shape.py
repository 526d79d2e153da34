"""The type of a value, as ShapeProto holds it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

from llmcompile.hlo.fields import BITS, ELEMENT_TYPES, NUMBERS, LayoutField, ShapeField
from llmcompile.hlo.wire import Message

_DEEPEST = 50
"""Tuples in tuples; XLA's own are two or three deep."""


@dataclass(frozen=True)
class Shape:
    """The type of a value.

    Attributes:
        dtype: Of the elements, as XLA spells it ("f32", "bf16", "s32", "pred"), or "tuple", "token", "opaque".
        dims: Sizes; none of a scalar or a tuple.
        elements: Shapes in a tuple.
        dynamic: For each size whether it is only an upper bound; empty where none is.
        minor_to_major: Dimensions from the fastest varying; None where the layout is not said.
    """

    dtype: str
    dims: tuple[int, ...] = ()
    elements: tuple[Shape, ...] = ()
    dynamic: tuple[bool, ...] = ()
    minor_to_major: tuple[int, ...] | None = None

    def __str__(self) -> str:
        if self.dtype == "tuple":
            return f"({', '.join(str(element) for element in self.elements)})"
        bounds = [f"<={size}" if self.is_dynamic_at(axis) else str(size) for axis, size in enumerate(self.dims)]
        return f"{self.dtype}[{','.join(bounds)}]"

    @property
    def count(self) -> int:
        """Elements of an array; 1 of a scalar."""
        return prod(self.dims)

    @property
    def size_bytes(self) -> int:
        """Bytes of the elements, of a tuple all of them; 0 of a token or an opaque value."""
        if self.dtype == "tuple":
            return sum(element.size_bytes for element in self.elements)
        return (self.count * BITS.get(self.dtype, 0) + 7) // 8

    @property
    def leaves(self) -> tuple[Shape, ...]:
        """Itself, or of a tuple the leaves of its elements."""
        if self.dtype != "tuple":
            return (self,)
        return tuple(leaf for element in self.elements for leaf in element.leaves)

    @property
    def is_row_major(self) -> bool:
        """Whether the last dimension varies fastest, or nothing is said of it; of a tuple, all its elements."""
        if self.dtype == "tuple":
            return all(element.is_row_major for element in self.elements)
        return self.minor_to_major in (None, tuple(reversed(range(len(self.dims)))))

    @property
    def row_major(self) -> Shape:
        """The same type, the last dimension varying fastest."""
        return replace(
            self,
            elements=tuple(element.row_major for element in self.elements),
            minor_to_major=None if self.dtype == "tuple" else tuple(reversed(range(len(self.dims)))),
        )

    def is_dynamic_at(self, axis: int) -> bool:
        """Whether a size is only an upper bound."""
        return axis < len(self.dynamic) and self.dynamic[axis]

    @property
    def is_dynamic(self) -> bool:
        """Whether any size, of a tuple any element's, is only an upper bound."""
        return any(self.dynamic) or any(element.is_dynamic for element in self.elements)


def read_shape(message: Message) -> Shape:
    """The shape in a ShapeProto.

    Raises:
        ValueError: It contradicts itself.
    """
    return _read_shape(message, 0)


def _read_shape(message: Message, depth: int) -> Shape:
    if depth > _DEEPEST:
        raise ValueError(f"a shape of tuples {depth} deep")
    number = message.integer(ShapeField.ELEMENT_TYPE)
    dims = message.integers(ShapeField.DIMENSIONS)
    if any(size < 0 for size in dims):
        raise ValueError(f"a shape of dimensions {list(dims)}")
    dynamic = tuple(flag != 0 for flag in message.integers(ShapeField.IS_DYNAMIC_DIMENSION))
    if len(dynamic) not in (0, len(dims)):
        raise ValueError(f"a shape of {len(dims)} dimensions with {len(dynamic)} flags")
    layout = message.message(ShapeField.LAYOUT) if message.has(ShapeField.LAYOUT) else None
    return Shape(
        dtype=ELEMENT_TYPES.get(number, f"type{number}"),
        dims=dims,
        elements=tuple(_read_shape(element, depth + 1) for element in message.messages(ShapeField.TUPLE_SHAPES)),
        dynamic=dynamic if any(dynamic) else (),
        minor_to_major=None if layout is None else layout.integers(LayoutField.MINOR_TO_MAJOR),
    )


def write_shape(shape: Shape) -> Message:
    """A ShapeProto as XLA writes it, row-major where no layout is said.

    Raises:
        ValueError: XLA has no such element type.
    """
    if shape.dtype not in NUMBERS:
        raise ValueError(f"element type {shape.dtype}; expected one of {', '.join(NUMBERS)}")
    message = Message().with_integer(ShapeField.ELEMENT_TYPE, NUMBERS[shape.dtype])
    if shape.dtype == "tuple":
        return message.with_messages(ShapeField.TUPLE_SHAPES, [write_shape(element) for element in shape.elements])
    order = shape.minor_to_major
    layout = Message().with_integers(
        LayoutField.MINOR_TO_MAJOR, tuple(reversed(range(len(shape.dims)))) if order is None else order
    )
    dynamic = [int(shape.is_dynamic_at(axis)) for axis in range(len(shape.dims))]
    message = message.with_integers(ShapeField.DIMENSIONS, shape.dims)
    message = message.with_message(
        ShapeField.LAYOUT, layout.with_integer(LayoutField.TAIL_PADDING_ALIGNMENT_IN_ELEMENTS, 1)
    )
    return message.with_integers(ShapeField.IS_DYNAMIC_DIMENSION, dynamic)
