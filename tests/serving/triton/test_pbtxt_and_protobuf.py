"""Our reader of config.pbtxt beside protobuf's own, with the schema that tritonclient carries."""

from __future__ import annotations

import math
import re
import struct
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

pytest.importorskip("tritonclient.grpc", reason="tritonclient is installed for the serving tests alone")

from google.protobuf import text_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from tritonclient.grpc import model_config_pb2

from llmcompile.errors import CheckpointError
from llmcompile.packaging.triton.pbtxt import Message, parse, render
from llmcompile.packaging.triton.schema import ENUMS, INTEGERS, MESSAGES, ROOT, Field

PREFIX = "inference."
SCALARS = ("string", "bool", "float", "double", *INTEGERS)
SEED = """
name: "tensorrt_llm" backend: "tensorrtllm" max_batch_size: 8
model_transaction_policy { decoupled: true }
dynamic_batching { preferred_batch_size: [ 8, 4 ] max_queue_delay_microseconds: 100 default_queue_policy: { } }
input [ { name: "input_ids" data_type: TYPE_INT32 dims: [ -1 ] allow_ragged_batch: true },
  { name: 'stop' data_type: TYPE_BOOL dims: [ 1 ] reshape: { shape: [ ] } optional: true } ]
output { name: "out\\n" data_type: 11 dims: -1 dims: 0x10 }
instance_group [ < count: 1 kind: KIND_CPU gpus: [ 0 ] > ] ;
parameters: { key: "gpt_model_path" value: { string_value: "/models" "/1" } } # the engine
metric_tags { key: "a" value: "b" }
optimization { cuda { graph_spec { batch_size: 1 input { key: "x" value { dim: 1 } } } } }
model_warmup { count: 1 }
version_policy: { latest { num_versions: 1 } }
"""
_MORE = ("input", "name", "true", "99999999999", '"\\x41"', "-1", "{", "}", "ensemble_scheduling", "unknown")
WORDS = (*re.findall(r'"[^"]*"|[\w.+-]+|[^\s\w]', SEED), *_MORE)


def fields_of(descriptor: Descriptor) -> dict[str, Field]:
    """A message's fields as the descriptor declares them, in the words of our table."""
    made = {}
    for field in descriptor.fields:
        entry = (
            field.message_type if field.message_type is not None and field.message_type.GetOptions().map_entry else None
        )
        if entry is not None:
            key, value = entry.fields_by_name["key"], entry.fields_by_name["value"]
            made[field.name] = Field(type_of(value), key=type_of(key))
        else:
            oneof = None if field.containing_oneof is None else field.containing_oneof.name
            made[field.name] = Field(type_of(field), repeated=field.is_repeated, oneof=oneof)
    return made


def type_of(field: FieldDescriptor) -> str:
    """A field's type in the words of our table."""
    for named in (field.message_type, field.enum_type):
        if named is not None:
            return str(named.full_name).removeprefix(PREFIX)
    return next(n for n in SCALARS if getattr(FieldDescriptor, f"TYPE_{n.upper()}") == field.type)


def descriptors(under: Any) -> Iterator[Descriptor]:
    """Every message below a file or a message, entries of maps left out."""
    below = under.message_types_by_name if hasattr(under, "message_types_by_name") else under.nested_types_by_name
    for descriptor in below.values():
        if not descriptor.GetOptions().map_entry:
            yield descriptor
            yield from descriptors(descriptor)


def real(text: str) -> Message | None:
    """What protobuf reads, fields that have their default left out; None where it refuses."""
    with warnings.catch_warnings():
        # An escape that does not exist is a warning in Python and an error in C++, which Triton uses.
        warnings.simplefilter("error", DeprecationWarning)
        try:
            return plain(text_format.Parse(text, model_config_pb2.ModelConfig()))
        except (text_format.ParseError, ValueError, DeprecationWarning):
            return None


def ours(text: str) -> Message | None:
    """What we read, fields that have their default left out; None where we refuse."""
    try:
        return settled(parse(text), ROOT)
    except CheckpointError:
        return None


def plain(message: Any) -> Message:
    """A protobuf message as our dict."""
    made: Message = {}
    for field, value in message.ListFields():
        entry = field.message_type is not None and field.message_type.GetOptions().map_entry
        if entry:
            inner = field.message_type.fields_by_name["value"]
            made[field.name] = {
                key: plain(item) if inner.message_type is not None else item for key, item in value.items()
            }
        elif field.is_repeated:
            made[field.name] = [element(field, item) for item in value]
        else:
            made[field.name] = element(field, value)
    return made


def element(field: FieldDescriptor, value: Any) -> Any:
    """One value of a field as our dict has it."""
    if field.message_type is not None:
        return plain(value)
    names = (
        {} if field.enum_type is None else {number: v.name for number, v in field.enum_type.values_by_number.items()}
    )
    return names.get(value, value)


def settled(message: Message, kind: str) -> Message:
    """Our dict without what protobuf does not keep: defaults outside a choice, empty lists; floats as 32 bits hold."""
    made: Message = {}
    for name, value in message.items():
        field = MESSAGES[kind][name]
        if field.key is not None:
            kept: Any = {key: one(field.type, item) for key, item in value.items()}
        elif field.repeated:
            kept = [one(field.type, item) for item in value]
        else:
            kept = one(field.type, value)
        if is_kept(field, kept):
            made[name] = kept
    return made


def is_kept(field: Field, value: Any) -> bool:
    """Whether protobuf tells a field with this value from an absent one."""
    if field.repeated or field.key is not None:
        return len(value) > 0
    if field.type in MESSAGES or field.oneof is not None:
        return True
    if field.type in ENUMS:
        return bool(value != ENUMS[field.type][0])
    return bool(value) or (isinstance(value, float) and math.copysign(1, value) < 0)


def one(kind: str, value: Any) -> Any:
    """One value as protobuf keeps it."""
    if kind in MESSAGES:
        return settled(value, kind)
    if kind != "float" or math.isinf(value) or math.isnan(value):
        return value
    try:
        return struct.unpack("f", struct.pack("f", value))[0]
    except OverflowError:
        return math.copysign(math.inf, value)


def test_the_table_is_the_schema() -> None:
    """Our table has every message, field, type and choice of the schema, and no other."""
    schema = {d.full_name.removeprefix(PREFIX): fields_of(d) for d in descriptors(model_config_pb2.DESCRIPTOR)}

    assert {kind: dict(fields) for kind, fields in MESSAGES.items()} == schema


def test_the_enums_are_the_schema() -> None:
    """Our table has every enum with its values, numbered from 0."""
    nested = [enum for d in descriptors(model_config_pb2.DESCRIPTOR) for enum in d.enum_types]
    enums = [*model_config_pb2.DESCRIPTOR.enum_types_by_name.values(), *nested]

    assert dict(ENUMS) == {
        enum.full_name.removeprefix(PREFIX): tuple(enum.values_by_number[n].name for n in range(len(enum.values)))
        for enum in enums
    }


def scalars(kind: str) -> st.SearchStrategy[Any]:
    """Values of a type that is no message."""
    if kind in ENUMS:
        return st.sampled_from(ENUMS[kind])
    if kind in INTEGERS:
        return st.integers(*INTEGERS[kind])
    if kind == "bool":
        return st.booleans()
    if kind == "string":
        return st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    return st.floats(allow_nan=False)


def messages(kind: str) -> st.SearchStrategy[Message]:
    """Messages of a type, one field of each choice at most."""

    def choose(message: Message) -> Message:
        last = {MESSAGES[kind][name].oneof: name for name in message}
        return {
            name: value
            for name, value in message.items()
            if MESSAGES[kind][name].oneof is None or last[MESSAGES[kind][name].oneof] == name
        }

    return st.fixed_dictionaries({}, optional={name: values(f) for name, f in MESSAGES[kind].items()}).map(choose)


def values(field: Field) -> st.SearchStrategy[Any]:
    """Values of a field."""
    inner = st.deferred(lambda: messages(field.type)) if field.type in MESSAGES else scalars(field.type)
    if field.key is not None:
        return st.dictionaries(scalars(field.key), inner, max_size=2)
    return st.lists(inner, max_size=2) if field.repeated else inner


@settings(max_examples=150, deadline=None)
@given(messages(ROOT))
def test_what_we_write_protobuf_reads(message: Message) -> None:
    """Protobuf reads every text of ours, to the same values."""
    assert real(render(message)) == settled(message, ROOT)


@settings(max_examples=150, deadline=None)
@given(messages(ROOT))
def test_what_protobuf_writes_we_read(message: Message) -> None:
    """We read every text of protobuf's, to the same values, on many lines or on one."""
    theirs = text_format.Parse(render(message), model_config_pb2.ModelConfig())

    for one_line in (False, True):
        text = text_format.MessageToString(theirs, as_one_line=one_line)
        assert ours(text) == settled(message, ROOT)


def stricter(text: str) -> bool:
    """Whether our refusal is one of those that are meant: a field twice, a number that an enum does not have."""
    try:
        parse(text)
    except CheckpointError as error:
        return re.search(r"given twice|(data_type|kind): -?[0-9]\w*; expected one of", str(error)) is not None
    return False


def agree(text: str) -> None:
    """Both refuse a text, or both read the same.

    1_000 and 1.0ff are numbers to protobuf's reader in Python alone, not to the one in C++, which is Triton's; so is -0
    where no number may be negative.
    """
    assume(re.search(r"[0-9]_|[fF]{2}|-0+(?![.xX0-9a-fA-F])", text) is None)
    theirs, own = real(text), ours(text)

    # By repr: a NaN is not equal to itself.
    assert repr(own) == repr(theirs) or own == theirs or (own is None and stricter(text))


@settings(max_examples=500, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(WORDS) - 1), st.sampled_from(("drop", "double", *WORDS))), max_size=3))
def test_words_exchanged(changes: list[tuple[int, str]]) -> None:
    """A configuration with words dropped, doubled or exchanged is read alike, or refused by both."""
    words = list(WORDS)
    for place, change in changes:
        words[place] = "" if change == "drop" else f"{words[place]} {words[place]}" if change == "double" else change

    agree(" ".join(words))


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(WORDS), max_size=12))
def test_words_at_random(words: list[str]) -> None:
    """Words in any order are read alike, or refused by both."""
    agree(" ".join(words))


@settings(max_examples=500, deadline=None)
@given(st.integers(0, len(SEED) - 1), st.integers(0, 3), st.text("\"'{}[]<>:;,# \n\\x01aeT_-.", max_size=3))
def test_characters_exchanged(start: int, length: int, characters: str) -> None:
    """A configuration with characters exchanged is read alike, or refused by both."""
    agree(SEED[:start] + characters + SEED[start + length :])


@settings(max_examples=500, deadline=None)
@given(st.text("\"'\\\\01234567xXuUntravbfé \t89abdefADEF", max_size=12))
def test_strings(content: str) -> None:
    """The content of a string, its escapes among it, is read alike, or refused by both."""
    agree(f'name: "{content}"')


@settings(max_examples=500, deadline=None)
@given(
    st.sampled_from(
        (
            "max_batch_size: {}",
            "input {{ dims: [{}] }}",
            "sequence_batching {{ direct {{ minimum_slot_utilization: {} }} }}",
            "model_transaction_policy {{ decoupled: {} }}",
            "dynamic_batching {{ max_queue_delay_microseconds: {} }}",
        )
    ),
    st.one_of(
        st.text("0123456789.xXabcdefF-", min_size=1, max_size=6),
        st.integers(-(2**65), 2**65).map(str),
        st.floats().map(repr),
        st.sampled_from(("inf", "-inf", "nan", "infinity", "true", "t", "1.f", ".5", "1e400", "0777", "08", "00")),
    ),
)
def test_numbers(field: str, number: str) -> None:
    """Numbers are read alike, or refused by both."""
    agree(field.format(number))
