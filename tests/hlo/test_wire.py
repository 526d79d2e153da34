"""Protobuf's wire format: what a protobuf library writes, field by field."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcompile.hlo.wire import Field, Message, Wire

NUMBERS = st.integers(1, (1 << 29) - 1)
SIGNED = st.integers(-(1 << 63), (1 << 63) - 1)
FIELDS = st.lists(
    st.one_of(
        st.builds(Field, NUMBERS, st.just(Wire.VARINT), st.integers(0, (1 << 64) - 1)),
        st.builds(Field, NUMBERS, st.just(Wire.BYTES), st.binary(max_size=40)),
        st.builds(Field, NUMBERS, st.just(Wire.FIXED64), st.binary(min_size=8, max_size=8)),
        st.builds(Field, NUMBERS, st.just(Wire.FIXED32), st.binary(min_size=4, max_size=4)),
    ),
    max_size=8,
)


def test_a_number_is_written_seven_bits_at_a_time() -> None:
    """The encoding guide's example: field 1 with 150 is 08 96 01."""
    message = Message().with_integer(1, 150)

    assert message.serialize() == b"\x08\x96\x01"
    assert Message.parse(b"\x08\x96\x01").integer(1) == 150


def test_a_text_is_written_with_its_length() -> None:
    """The encoding guide's example: field 2 with "testing"."""
    assert Message().with_text(2, "testing").serialize() == b"\x12\x07testing"


def test_numbers_are_written_packed() -> None:
    """The encoding guide's example: field 4 with 3, 270 and 86942."""
    assert Message().with_integers(4, (3, 270, 86942)).serialize() == b"\x22\x06\x03\x8e\x02\x9e\xa7\x05"


def test_numbers_are_read_packed_or_not() -> None:
    """A reader must accept both, and one after the other."""
    assert Message.parse(b"\x20\x05\x22\x03\x03\x8e\x02").integers(4) == (5, 3, 270)


@given(FIELDS)
def test_any_fields_come_back_byte_for_byte(fields: list[Field]) -> None:
    """Unknown ones, repeated ones and those out of order too."""
    written = Message(tuple(fields)).serialize()

    assert Message.parse(written).fields == tuple(fields)
    assert Message.parse(written).serialize() == written


@given(st.lists(SIGNED, max_size=6))
def test_signed_numbers_come_back(values: list[int]) -> None:
    """Negative ones take ten bytes."""
    assert Message.parse(Message().with_integers(7, values).serialize()).integers(7) == tuple(values)


@given(SIGNED)
def test_a_signed_number_comes_back(value: int) -> None:
    """Zero is not written."""
    message = Message().with_integer(7, value)

    assert (Message.parse(message.serialize()).integer(7), message.has(7)) == (value, value != 0)


@given(FIELDS, st.data())
def test_a_cut_message_is_a_value_error_or_whole_fields(fields: list[Field], data: st.DataObject) -> None:
    """Nothing but ValueError comes of truncation, and what is read are the first fields."""
    written = Message(tuple(fields)).serialize()
    cut = written[: data.draw(st.integers(0, len(written)))]

    try:
        read = Message.parse(cut).fields
    except ValueError:
        return
    assert read == tuple(fields)[: len(read)]


@given(st.binary(max_size=60))
def test_any_bytes_are_a_message_or_a_value_error(data: bytes) -> None:
    """Garbage never gives another exception."""
    try:
        Message.parse(data)
    except ValueError:
        pass


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x08", "cut off"),
        (b"\x08" + b"\x80" * 10 + b"\x01", "more than 10 bytes"),
        (b"\x12\x05abc", "needs 5 bytes"),
        (b"\x0b", "wire type 3"),
        (b"\x00\x00", "field number 0"),
    ],
)
def test_what_is_wrong_is_said(data: bytes, words: str) -> None:
    """A message names the field or the byte."""
    with pytest.raises(ValueError, match=words):
        Message.parse(data)


def test_a_field_of_another_type_is_a_value_error() -> None:
    """A number where a message is expected, and the other way round."""
    message = Message((Field(1, Wire.VARINT, 3), Field(2, Wire.BYTES, b"\xff"), Field(3, Wire.FIXED32, b"abcd")))

    with pytest.raises(ValueError, match="field 1 has wire type 0"):
        message.message(1)
    with pytest.raises(ValueError, match="field 2 has wire type 2"):
        message.integer(2)
    with pytest.raises(ValueError, match="field 3 has wire type 5"):
        message.blob(3)
    with pytest.raises(ValueError, match="decode"):
        message.text(2)


def test_the_last_number_counts_and_messages_are_merged() -> None:
    """Two occurrences of a singular field: protobuf's rule."""
    halves = [Field(1, Wire.VARINT, 1), Field(1, Wire.VARINT, 2)]
    parts = [Field(3, Wire.BYTES, b"\x08\x01"), Field(3, Wire.BYTES, b"\x10\x02")]
    message = Message((*halves, *parts))

    assert message.integer(1) == 2
    assert (message.message(3).integer(1), message.message(3).integer(2)) == (1, 2)


def test_a_new_field_stands_in_the_order_of_numbers() -> None:
    """A changed one stays where it was."""
    message = Message().with_integer(5, 1).with_integer(2, 1).with_integer(9, 1).with_integer(5, 7)

    assert [(field.number, field.value) for field in message.fields] == [(2, 1), (5, 7), (9, 1)]
    assert message.without(5, 9) == Message().with_integer(2, 1)


def test_fixed_numbers_are_kept_as_bytes() -> None:
    """A float of XLA's, say epsilon (field 24), survives."""
    written = b"\xc5\x01" + struct.pack("<f", 1e-5)

    assert Message.parse(written).serialize() == written
