"""Protocol buffers' wire format: a message as its fields in order, those unknown to us too.

Source: protocolbuffers/protobuf@main:docs/encoding (developers.google.com/protocol-buffers/docs/encoding).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

_LONGEST_VARINT = 10
"""Bytes of a 64-bit number, seven bits each."""
_ALL = (1 << 64) - 1
_LARGEST_NUMBER = (1 << 29) - 1
"""Of a field."""


class Wire(IntEnum):
    """How a field's value is written; groups (3 and 4) are not in any file of XLA's."""

    VARINT = 0
    FIXED64 = 1
    BYTES = 2
    FIXED32 = 5


class Field(NamedTuple):
    """A field as it stands in the bytes.

    Attributes:
        number: Of the field in its message.
        wire: How the value is written.
        value: Unsigned 64 bits of a varint; the bytes of any other, without their length.
    """

    number: int
    wire: int
    value: int | bytes


@dataclass(frozen=True)
class Message:
    """Fields in the order of the bytes; changes give another message.

    Zero numbers and empty texts are proto3's defaults: setting one removes its field.
    """

    fields: tuple[Field, ...] = ()

    @classmethod
    def parse(cls, data: bytes) -> Message:
        """Read a message.

        Raises:
            ValueError: The bytes are truncated or no message.
        """
        return cls(tuple(_fields(data)))

    def serialize(self) -> bytes:
        """The message's bytes; those it was parsed from, where a protobuf library wrote them."""
        out = bytearray()
        for number, wire, value in self.fields:
            _put_varint(out, number << 3 | wire)
            if isinstance(value, int):
                _put_varint(out, value)
            else:
                if wire == Wire.BYTES:
                    _put_varint(out, len(value))
                out += value
        return bytes(out)

    def has(self, number: int) -> bool:
        """Whether the field occurs."""
        return any(field.number == number for field in self.fields)

    def integer(self, number: int) -> int:
        """A signed number; 0 where the field is absent, the last where it occurs more than once.

        Raises:
            ValueError: The field is no varint.
        """
        found = 0
        for field in self.fields:
            if field.number == number:
                found = _signed(_varint_of(field))
        return found

    def integers(self, number: int) -> tuple[int, ...]:
        """Signed numbers of a repeated field, packed or not.

        Raises:
            ValueError: They are truncated or no varints.
        """
        found: list[int] = []
        for field in self.fields:
            if field.number != number:
                continue
            if field.wire == Wire.BYTES:
                data, at = _bytes_of(field), 0
                while at < len(data):
                    value, at = _varint(data, at)
                    found.append(_signed(value))
            else:
                found.append(_signed(_varint_of(field)))
        return tuple(found)

    def blob(self, number: int) -> bytes:
        """Bytes; empty where the field is absent, the last where it occurs more than once.

        Raises:
            ValueError: The field is a number.
        """
        found = b""
        for field in self.fields:
            if field.number == number:
                found = _bytes_of(field)
        return found

    def text(self, number: int) -> str:
        """A text; empty where the field is absent.

        Raises:
            ValueError: The field is a number, or not UTF-8.
        """
        return self.blob(number).decode()

    def texts(self, number: int) -> tuple[str, ...]:
        """The texts of a repeated field.

        Raises:
            ValueError: One is a number, or not UTF-8.
        """
        return tuple(_bytes_of(field).decode() for field in self.fields if field.number == number)

    def message(self, number: int) -> Message:
        """A message; an empty one where the field is absent, merged where it occurs more than once.

        Raises:
            ValueError: The field is a number, or its bytes are no message.
        """
        return Message.parse(b"".join(_bytes_of(field) for field in self.fields if field.number == number))

    def messages(self, number: int) -> tuple[Message, ...]:
        """The messages of a repeated field.

        Raises:
            ValueError: One is a number, or its bytes are no message.
        """
        return tuple(Message.parse(_bytes_of(field)) for field in self.fields if field.number == number)

    def without(self, *numbers: int) -> Message:
        """Itself less some fields."""
        return Message(tuple(field for field in self.fields if field.number not in numbers))

    def with_integer(self, number: int, value: int) -> Message:
        """Itself with a signed number."""
        return self._with(number, [Field(number, Wire.VARINT, value & _ALL)] if value != 0 else [])

    def with_integers(self, number: int, values: Sequence[int]) -> Message:
        """Itself with the numbers of a repeated field, packed."""
        out = bytearray()
        for value in values:
            _put_varint(out, value & _ALL)
        return self._with(number, [Field(number, Wire.BYTES, bytes(out))] if len(values) > 0 else [])

    def with_blob(self, number: int, value: bytes) -> Message:
        """Itself with some bytes."""
        return self._with(number, [Field(number, Wire.BYTES, value)] if len(value) > 0 else [])

    def with_text(self, number: int, value: str) -> Message:
        """Itself with a text."""
        return self.with_blob(number, value.encode())

    def with_texts(self, number: int, values: Iterable[str]) -> Message:
        """Itself with the texts of a repeated field."""
        return self._with(number, [Field(number, Wire.BYTES, value.encode()) for value in values])

    def with_message(self, number: int, value: Message) -> Message:
        """Itself with a message, which is written even if it is empty."""
        return self.with_messages(number, (value,))

    def with_messages(self, number: int, values: Iterable[Message]) -> Message:
        """Itself with the messages of a repeated field."""
        return self._with(number, [Field(number, Wire.BYTES, value.serialize()) for value in values])

    def in_order(self) -> Message:
        """Itself with the fields by number, as protobuf's own libraries write them."""
        return Message(tuple(sorted(self.fields, key=lambda field: field.number)))

    def _with(self, number: int, fields: Sequence[Field]) -> Message:
        """Where the field stood first; where it did not, before the first field of a larger number."""
        numbers = [field.number for field in self.fields]
        if number in numbers:
            at = numbers.index(number)
        else:
            at = next((index for index, other in enumerate(numbers) if other > number), len(numbers))
        rest = [field for field in self.fields[at:] if field.number != number]
        return Message((*self.fields[:at], *fields, *rest))


def _fields(data: bytes) -> Iterator[Field]:
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if not 1 <= number <= _LARGEST_NUMBER:
            raise ValueError(f"field number {number} at byte {at}; expected 1 to {_LARGEST_NUMBER}")
        if wire == Wire.VARINT:
            value, at = _varint(data, at)
            yield Field(number, wire, value)
            continue
        if wire == Wire.BYTES:
            size, at = _varint(data, at)
        elif wire == Wire.FIXED64:
            size = 8
        elif wire == Wire.FIXED32:
            size = 4
        else:
            raise ValueError(f"wire type {wire} of field {number} at byte {at}; expected 0, 1, 2 or 5")
        if size > end - at:
            raise ValueError(f"field {number} needs {size} bytes at byte {at} of {end}")
        yield Field(number, wire, data[at : at + size])
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number and where the next begins."""
    if at < len(data) and data[at] < 0x80:  # nearly all are
        return data[at], at + 1
    value = shift = 0
    for count in range(_LONGEST_VARINT):
        if at + count >= len(data):
            raise ValueError(f"a number that begins at byte {at} is cut off at byte {len(data)}")
        byte = data[at + count]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & _ALL, at + count + 1
        shift += 7
    raise ValueError(f"a number of more than {_LONGEST_VARINT} bytes at byte {at}")


def _put_varint(out: bytearray, value: int) -> None:
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _varint_of(field: Field) -> int:
    if not isinstance(field.value, int):
        raise ValueError(f"field {field.number} has wire type {field.wire}; expected {int(Wire.VARINT)}")
    return field.value


def _bytes_of(field: Field) -> bytes:
    if isinstance(field.value, int) or field.wire != Wire.BYTES:
        raise ValueError(f"field {field.number} has wire type {field.wire}; expected {int(Wire.BYTES)}")
    return field.value
