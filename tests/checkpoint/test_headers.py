"""A safetensors header is believed only as far as it agrees with itself and with the file it stands in."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from llmcompile.checkpoint.headers import (
    MAX_HEADER_BYTES,
    Stored,
    parse_safetensors,
    reject_lfs_pointer,
    safetensors_header,
    strict_json,
)
from llmcompile.dtypes import BF16, FP32
from llmcompile.errors import CheckpointError

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 548118077\n"
F32_2X3 = '{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}'


def file_of(header: str | bytes, data: bytes = b"") -> bytes:
    """A safetensors file with any header text."""
    text = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(text)) + text + data


def parse(content: bytes) -> tuple[Stored, ...]:
    """The tensors of a file with `content`."""
    return parse_safetensors(
        lambda offset, length: content[offset : offset + length], len(content), "model.safetensors"
    )


def entry(dtype: object = "F32", shape: object = (2, 3), offsets: object = (0, 24)) -> str:
    """A header with one tensor, `a`."""
    return json.dumps({"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}})


def test_tensor_is_found_where_the_library_put_it(tmp_path: Path) -> None:
    """Name, type, shape and first byte of a tensor are those the safetensors library wrote."""
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    path = tmp_path / "model.safetensors"
    path.write_bytes(save({"a": values}))

    (stored,) = safetensors_header(path, "model.safetensors")

    start = path.stat().st_size - 24
    assert stored == Stored("a", "model.safetensors", FP32, (2, 3), start)


def test_size_is_elements_times_width() -> None:
    """A tensor of 2 x 3 bf16 elements has 12 bytes."""
    stored = Stored("a", "f", BF16, (2, 3), 0)

    assert stored.size_bytes == 12


def test_metadata_is_no_tensor() -> None:
    """The `__metadata__` entry is passed over."""
    content = save({"a": np.zeros(2, np.float32)}, metadata={"format": "pt"})

    tensors = parse(content)

    assert [tensor.name for tensor in tensors] == ["a"]


def test_file_without_tensors_is_empty() -> None:
    """A header of `{}` and nothing behind it is a file without tensors."""
    tensors = parse(file_of("{}"))

    assert tensors == ()


def test_header_padded_with_spaces_is_read() -> None:
    """Spaces behind the JSON, with which safetensors aligns the data, belong to the header."""
    header = entry() + " " * 13

    (stored,) = parse(file_of(header, bytes(24)))

    assert stored.offset == 8 + len(header)


def test_entries_in_any_order_are_read() -> None:
    """The order of names in the header need not be that of the data."""
    header = '{"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'

    tensors = parse(file_of(header, b"abb"))

    assert {tensor.name: tensor.offset - 8 - len(header) for tensor in tensors} == {"a": 0, "b": 1}


def test_empty_tensor_takes_no_room() -> None:
    """A tensor of no elements may lie between two others."""
    header = (
        '{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},'
        '"e":{"dtype":"F32","shape":[0,4],"data_offsets":[2,2]},'
        '"b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}}'
    )

    tensors = parse(file_of(header, b"aab"))

    assert [tensor.size_bytes for tensor in tensors] == [2, 0, 1]


ATTACKS: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "0 bytes"),
    "shorter than the length": (b"\x02\0\0", "3 bytes"),
    "nothing behind the length": (struct.pack("<Q", 2), "at least 10"),
    "header longer than the file": (struct.pack("<Q", 1000) + b"{}", "at least 1008"),
    "header longer than any": (struct.pack("<Q", 2**63) + b"{}", f"at most {MAX_HEADER_BYTES}"),
    "header one byte longer than the limit": (struct.pack("<Q", MAX_HEADER_BYTES + 1) + b"{}", "is it a safetensors"),
    "header of no bytes": (file_of(""), "not valid JSON"),
    "no JSON": (file_of("hello"), "not valid JSON"),
    "JSON cut short": (file_of('{"a":{"dtype"'), "not valid JSON"),
    "two values": (file_of("{}{}"), "not valid JSON"),
    "a list": (file_of("[]"), "a JSON list"),
    "a number": (file_of("7"), "a JSON int"),
    "null": (file_of("null"), "a JSON NoneType"),
    "Latin-1": (file_of(b'{"\xe9":{}}'), "not valid JSON"),
    "UTF-16": (file_of("{}".encode("utf-16")), "not valid JSON"),
    "byte order mark": (file_of(b"\xef\xbb\xbf{}"), "not valid JSON"),
    "encoded surrogate": (file_of(b'{"\xed\xa0\x80":{}}'), "not valid JSON"),
    "deep nesting": (file_of('{"a":' + "[" * 100_000), "not valid JSON"),
    "deep dictionaries": (file_of('{"a":' * 100_000), "not valid JSON"),
    "NaN": (file_of('{"a":NaN}'), "the value NaN"),
    "Infinity": (file_of('{"a":{"dtype":"F32","shape":[Infinity],"data_offsets":[0,0]}}'), "the value Infinity"),
    "-Infinity": (file_of('{"a":{"dtype":"F32","shape":[-Infinity],"data_offsets":[0,0]}}'), "the value -Infinity"),
    "a tensor twice": (file_of(f'{{"a":{F32_2X3},"a":{F32_2X3}}}', bytes(24)), "the key 'a' twice"),
    "a key of an entry twice": (
        file_of('{"a":{"dtype":"F32","shape":[2,3],"shape":[2,3],"data_offsets":[0,24]}}', bytes(24)),
        "the key 'shape' twice",
    ),
    "entry no object": (file_of('{"a":[1,2]}'), "the header entry [1, 2]"),
    "entry without shape": (file_of('{"a":{"dtype":"F32","data_offsets":[0,4]}}', bytes(4)), "the header entry"),
    "unknown dtype": (file_of(entry("F31"), bytes(24)), "dtype 'F31'"),
    "dtype in lower case": (file_of(entry("f32"), bytes(24)), "dtype 'f32'"),
    "dtype no string": (file_of(entry(["F32"]), bytes(24)), "dtype ['F32']"),
    "shape no list": (file_of(entry(shape=6), bytes(24)), "shape 6"),
    "negative side": (file_of(entry(shape=[-2, -3]), bytes(24)), "shape [-2, -3]"),
    "true as a side": (file_of(entry(shape=[True, 6]), bytes(24)), "shape [True, 6]"),
    "float side": (file_of(entry(shape=[2.0, 3]), bytes(24)), "shape [2.0, 3]"),
    "string side": (file_of(entry(shape=["2", 3]), bytes(24)), "shape ['2', 3]"),
    "side beyond 64 bits": (file_of(entry(shape=[2**64])), f"integers from 0 to {2**63 - 1}"),
    "sides of 4000 digits": (file_of(entry(shape=[10**4000] * 2)), "integers from 0"),
    "a side of 5000 digits": (file_of('{"a":' + "9" * 5000 + "}"), "not valid JSON"),
    "more axes than NumPy has": (file_of(entry(shape=[1] * 33, offsets=[0, 4]), bytes(4)), "at most 32"),
    "offsets no list": (file_of(entry(offsets="0,24"), bytes(24)), "at '0,24'"),
    "one offset": (file_of(entry(offsets=[24]), bytes(24)), "at [24]"),
    "three offsets": (file_of(entry(offsets=[0, 24, 24]), bytes(24)), "at [0, 24, 24]"),
    "negative offset": (file_of(entry(offsets=[-24, 0]), bytes(24)), "at [-24, 0]"),
    "false as an offset": (file_of(entry(offsets=[False, 24]), bytes(24)), "at [False, 24]"),
    "offsets backwards": (file_of(entry(offsets=[24, 0]), bytes(24)), "-24 bytes"),
    "huge offsets": (file_of(entry(offsets=[2**62, 2**62 + 24]), bytes(24)), "the file ends at byte"),
    "too few bytes for the shape": (file_of(entry(offsets=[0, 20]), bytes(20)), "2 x 3 x 4 bytes = 24"),
    "product that wraps around 64 bits": (file_of(entry(shape=[2**32, 2**32], offsets=[0, 0])), "0 bytes"),
    "truncated data": (file_of(entry(), bytes(23)), "the file ends at byte"),
    "trailing bytes": (file_of(entry(), bytes(25)), "where the last tensor ends"),
    "trailing bytes without tensors": (file_of("{}", b"x"), "where the last tensor ends"),
    "hole before the first": (file_of(entry(offsets=[4, 28]), bytes(28)), "after a hole behind the header"),
    "hole between": (
        file_of(f'{{"a":{F32_2X3},"b":{{"dtype":"U8","shape":[1],"data_offsets":[25,26]}}}}', bytes(26)),
        "after a hole behind a",
    ),
    "overlap": (
        file_of(f'{{"a":{F32_2X3},"b":{{"dtype":"U8","shape":[8],"data_offsets":[20,28]}}}}', bytes(28)),
        "inside or before a",
    ),
    "one tensor on top of another": (file_of(f'{{"a":{F32_2X3},"b":{F32_2X3}}}', bytes(24)), "inside or before"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_attack_is_refused(attack: str) -> None:
    """A file that lies, or is broken, is refused with what is wrong with it."""
    content, why = ATTACKS[attack]

    with pytest.raises(CheckpointError) as caught:
        parse(content)

    assert why in str(caught.value)


@pytest.mark.parametrize("attack", ATTACKS)
def test_refusal_names_the_file_and_a_way_out(attack: str) -> None:
    """The refusal of a broken file names the file and, but for absurd lengths, says what to do."""
    content, _ = ATTACKS[attack]

    with pytest.raises(CheckpointError) as caught:
        parse(content)

    (problem,) = caught.value.problems
    assert "model.safetensors" in problem.subject
    assert problem.hint != ""


@pytest.mark.parametrize("attack", ATTACKS)
def test_refusal_is_short(attack: str) -> None:
    """No refusal repeats a stranger's header at length."""
    content, _ = ATTACKS[attack]

    with pytest.raises(CheckpointError) as caught:
        parse(content)

    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("depth", [100, 300, 500, 900, 950, 985])
@pytest.mark.parametrize("key", ["dtype", "shape", "data_offsets"])
def test_nested_value_is_refused_at_any_depth(key: str, depth: int) -> None:
    """Lists within lists, where a type or a size belongs, are refused however deep they are."""
    values = {"dtype": '"F32"', "shape": "[]", "data_offsets": "[0,4]", key: "[" * depth + "]" * depth}
    header = ",".join(f'"{name}":{value}' for name, value in values.items())

    with pytest.raises(CheckpointError):
        parse(file_of(f'{{"a":{{{header}}}}}', bytes(4)))


@pytest.mark.parametrize("removed", [1, 24, 30, 60, 100])
def test_truncated_file_is_refused(tmp_path: Path, removed: int) -> None:
    """A file of the safetensors library that lost its last bytes is refused."""
    path = tmp_path / "model.safetensors"
    content = save({"a": np.ones((2, 3), np.float32), "b": np.ones(5, np.int8)})
    path.write_bytes(content[:-removed])

    with pytest.raises(CheckpointError):
        safetensors_header(path, "model.safetensors")


def test_truncation_says_how_many_bytes_are_missing() -> None:
    """A truncated file's message holds the bytes there are and the bytes there should be."""
    content = save({"a": np.ones((2, 3), np.float32)})

    with pytest.raises(CheckpointError) as caught:
        parse(content[:-5])

    assert f"the file ends at byte {len(content) - 5}; expected at least {len(content)} bytes" in str(caught.value)


def test_lfs_pointer_is_recognised(tmp_path: Path) -> None:
    """A git-lfs pointer in place of a safetensors file is called one, and the command that fetches it is given."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(POINTER)

    with pytest.raises(CheckpointError) as caught:
        safetensors_header(path, "model.safetensors")

    (problem,) = caught.value.problems
    assert "git-lfs pointer" in problem.found
    assert "git lfs pull" in problem.hint


@pytest.mark.parametrize("start", [b"", b"version", b'{"version": 1}', b"PK\x03\x04", b"version 2 of my config"])
def test_other_starts_are_no_lfs_pointers(start: bytes) -> None:
    """Text that merely begins like a git-lfs pointer is not called one."""
    reject_lfs_pointer(start, "config.json")


@pytest.mark.parametrize("text", [b'{"a": 1, "a": 2}', b'{"x": {"b": null, "b": null}}', b"[NaN]", b"[1e", b"\xff{}"])
def test_loose_json_is_refused(text: bytes) -> None:
    """Repeated keys at any level, NaN, cut-off text and other encodings are no JSON to us."""
    with pytest.raises(CheckpointError, match=r"config\.json: not valid JSON"):
        strict_json(text, "config.json")


def test_many_repeated_keys_are_refused_at_once() -> None:
    """An object of 200 000 keys whose last one repeats is refused without comparing every pair."""
    text = ("{" + ",".join(f'"{number}":0' for number in range(200_000)) + ',"199999":0}').encode()

    with pytest.raises(CheckpointError, match="the key '199999' twice"):
        strict_json(text, "config.json")


@pytest.mark.parametrize("value", [{"a": [1, 2.5, None, True, "é"]}, [], "x", 3])
def test_plain_json_is_what_python_reads(value: Any) -> None:
    """JSON without tricks is parsed to the values it was written from."""
    text = json.dumps(value, ensure_ascii=False).encode()

    assert strict_json(text, "config.json") == value


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0), st.integers(0, 255)), min_size=1, max_size=3))
def test_accepted_files_are_those_of_the_library(changes: list[tuple[int, int]]) -> None:
    """A file of the library with up to three bytes changed is refused, or read just as the library reads it."""
    content = bytearray(save({"a": np.arange(6, dtype=np.int16).reshape(2, 3), "b": np.arange(5, dtype=np.uint8)}))
    for position, byte in changes:
        content[position % len(content)] = byte

    try:
        shapes = {tensor.name: tensor.shape for tensor in parse(bytes(content))}
    except CheckpointError:
        return

    assert shapes == {name: array.shape for name, array in load(bytes(content)).items()}


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_noise_is_refused_or_read_without_a_crash(noise: bytes) -> None:
    """Any bytes at all are refused with CheckpointError."""
    with pytest.raises(CheckpointError):
        parse(noise)
