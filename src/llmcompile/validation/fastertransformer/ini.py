"""config.ini as FasterTransformer's own reader sees it: its line cutting, its number parsing, its defaults."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from llmcompile.errors import MismatchError

_SPACE = " \t\n\v\f\r"
_LINE_BYTES = 199
_SECTION_BYTES = 49
_NAME_BYTES = 49
_TRUE = frozenset({"true", "yes", "on", "1"})
_FALSE = frozenset({"false", "no", "off", "0"})
_INTEGER = re.compile(r"[+-]?(0[xX][0-9a-fA-F]+|[0-9]+)")
_REAL = re.compile(r"[+-]?((?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|inf|nan)", re.IGNORECASE)

T = TypeVar("T")


@dataclass(frozen=True)
class Ini:
    """One parsed config.ini.

    A getter without a default mirrors the reader's own: the vendor's process ends with exit(-1) when the value is
    absent or not of the kind asked for, and here a MismatchError is raised.

    Args:
        path: The file that was read, for messages.
        values: Lower-cased "section=key" to value; a repeated key holds both values joined by a line feed.

    Source: NVIDIA/FasterTransformer@df4a753:3rdparty/INIReader.h
    """

    path: Path
    values: Mapping[str, str]

    def has_section(self, section: str) -> bool:
        """Whether `section` holds at least one key; an empty section does not exist for the reader."""
        return any(key.startswith(f"{section.lower()}=") for key in self.values)

    def has(self, section: str, key: str) -> bool:
        """Whether the key is there."""
        return _lookup_key(section, key) in self.values

    def text(self, section: str, key: str) -> str:
        """A required string."""
        return self._required(section, key, self.values.get(_lookup_key(section, key)), "a value")

    def text_or(self, section: str, key: str, default: str) -> str:
        """An optional string."""
        return self.values.get(_lookup_key(section, key), default)

    def integer(self, section: str, key: str) -> int:
        """A required integer."""
        return self._required(section, key, _leading_integer(self.text_or(section, key, "")), "an integer")

    def integer_or(self, section: str, key: str, default: int) -> int:
        """An optional integer; what is not one counts as absent."""
        value = _leading_integer(self.text_or(section, key, ""))
        return default if value is None else value

    def size(self, section: str, key: str) -> int:
        """A required integer of at least 1."""
        value = self.integer(section, key)
        if value < 1:
            raise self.error(section, key, str(value), "at least 1")
        return value

    def rotary(self, section: str) -> int:
        """`rotary_embedding`: how many channels of a head are rotated; even, at most `size_per_head`."""
        value, limit = self.integer(section, "rotary_embedding"), self.size(section, "size_per_head")
        if value % 2 != 0 or not 0 <= value <= limit:
            raise self.error(section, "rotary_embedding", str(value), f"an even number up to size_per_head {limit}")
        return value

    def real(self, section: str, key: str) -> float:
        """A required number."""
        return self._required(section, key, _leading_real(self.text_or(section, key, "")), "a number")

    def real_or(self, section: str, key: str, default: float) -> float:
        """An optional number; what is not one counts as absent."""
        value = _leading_real(self.text_or(section, key, ""))
        return default if value is None else value

    def boolean_or(self, section: str, key: str, default: bool) -> bool:
        """An optional boolean; what is not one counts as absent."""
        word = self.text_or(section, key, "").lower()
        if word in _TRUE:
            return True
        return False if word in _FALSE else default

    def error(self, section: str, key: str, found: str, expected: str) -> MismatchError:
        """The error that names one key of this file."""
        return MismatchError(
            f"{self.path}: [{section}] {key}",
            found,
            expected,
            "the runtime reads this key; write config.ini again with the values the weight files were made from",
        )

    def _required(self, section: str, key: str, value: T | None, kind: str) -> T:
        if value is None:
            raise self.error(section, key, repr(self.values.get(_lookup_key(section, key), "absent")), kind)
        return value


def read_ini(path: Path) -> Ini:
    """Read config.ini.

    Raises:
        MismatchError: The file cannot be opened. The vendor's model constructor stops there too.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise MismatchError(
            str(path), error.strerror or str(error), "a readable config.ini", "partition the model again"
        ) from error
    return Ini(path, MappingProxyType(_parse(content)))


def _parse(content: bytes) -> dict[str, str]:
    """Lower-cased "section=key" to value; lines the reader cannot parse are dropped, as it drops them."""
    values: dict[str, str] = {}
    section, previous = "", ""
    for number, line in enumerate(_lines(content)):
        line = line.removeprefix("\xef\xbb\xbf") if number == 0 else line
        start = line.strip(_SPACE)
        if start == "" or start[0] in ";#":
            continue
        if previous != "" and line[0] in _SPACE:
            _append(values, section, previous, _before_comment(start, ""))
        elif start[0] == "[":
            name = _before_comment(start[1:], "]")
            if len(name) + 1 < len(start) and start[len(name) + 1] == "]":
                section, previous = name[:_SECTION_BYTES], ""
        else:
            name = _before_comment(start, "=:")
            if len(name) < len(start) and start[len(name)] in "=:":
                value = _before_comment(start[len(name) + 1 :].lstrip(_SPACE), "")
                previous = name.rstrip(_SPACE)[:_NAME_BYTES]
                _append(values, section, name.rstrip(_SPACE), value)
    return values


def _lines(content: bytes) -> Iterator[str]:
    """Lines as fgets with a 200-byte buffer returns them: a longer line arrives in pieces, each parsed alone."""
    for line in content.decode("latin-1").split("\n"):
        ended = line + "\n"
        for offset in range(0, len(ended), _LINE_BYTES):
            yield ended[offset : offset + _LINE_BYTES]


def _before_comment(text: str, stops: str) -> str:
    """The part of `text` before the first of `stops` or before a ";" that follows white space."""
    was_space = False
    for position, character in enumerate(text):
        if character in stops or (was_space and character == ";"):
            return text[:position] if stops != "" else text[:position].rstrip(_SPACE)
        was_space = character in _SPACE
    return text if stops != "" else text.rstrip(_SPACE)


def _append(values: dict[str, str], section: str, name: str, value: str) -> None:
    key = _lookup_key(section, name)
    held = values.get(key, "")
    values[key] = value if held == "" else f"{held}\n{value}"


def _lookup_key(section: str, name: str) -> str:
    """The reader's map key; only ASCII letters are lower-cased, as tolower does in the C locale."""
    return f"{section}={name}".encode("latin-1").lower().decode("latin-1")


def _leading_integer(text: str) -> int | None:
    """What strtol(text, &end, 0) reads, or None where it reads nothing: 0x10 is 16, 010 is 8, 1e-5 is 1."""
    match = _INTEGER.match(text.lstrip(_SPACE))
    if match is None:
        return None
    digits = match.group().lower()
    sign, digits = (-1, digits[1:]) if digits[0] == "-" else (1, digits.lstrip("+"))
    if digits.startswith("0x"):
        return sign * int(digits, 16)
    if digits.startswith("0"):
        octal = re.match(r"[0-7]+", digits)
        return sign * int(octal.group(), 8) if octal is not None else 0
    return sign * int(digits)


def _leading_real(text: str) -> float | None:
    """What strtof(text, &end) reads in decimal notation, or None where it reads nothing."""
    match = _REAL.match(text.lstrip(_SPACE))
    return None if match is None else float(match.group())
