"""Read and write config.pbtxt: protobuf's text format of Triton's `ModelConfig`, without protobuf.

A message is a dict: field -> bool, int, float, str (enums by name), a list, a dict of a map's entries, or a message.
Only fields that are written are in it.

What is read is what protobuf's C++ and Python readers both take, less three things that are always a mistake in a
hand-written file: a singular field that is given twice (they take it when the first value was its default), an enum by
a number that it does not have, and a number that runs into the next word.
Source: protocolbuffers/protobuf@v33.6:python/google/protobuf/text_format.py, and the text format's specification at
protobuf.dev/reference/protobuf/textformat-spec.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from llmcompile.errors import CheckpointError
from llmcompile.packaging.triton.schema import ENUMS, INTEGERS, MESSAGES, ROOT, Field

Message = dict[str, Any]
MOST_CHARACTERS = 1 << 19
"""The longest file that is read: the fullest of NVIDIA's templates has 30 thousand characters."""
_LINE = 116
_SHOWN = 60
_TOKEN = re.compile(
    r"""(?P<blank>[ \t\r\n\f\v]+|\#[^\n]*)
    |(?P<word>[A-Za-z_][A-Za-z0-9_]*)
    |(?P<number>-?(?:[0-9]|\.[0-9])[0-9A-Za-z_.]*(?:(?<=[eE])[+-][0-9]+[fF]?)?)
    |(?P<minus>-(?=[A-Za-z]))
    |(?P<string>"(?:[^"\\\n]|\\[^\n])*"|'(?:[^'\\\n]|\\[^\n])*')
    |(?P<template>\$\{[^}\n]*\})
    |(?P<mark>[][{}<>:,;])""",
    re.VERBOSE,
)
_PLACEHOLDER = re.compile(r"\$\{([A-Za-z0-9_]+)\}")
_INTEGER = re.compile(r"-?(?:0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)")
_FLOAT = re.compile(r"-?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?[fF]?")
_ESCAPE = re.compile(r"\\(?:([0-7]{1,3})|x([0-9a-fA-F]{1,2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)
_ESCAPES = MappingProxyType(
    {
        "a": "\a",
        "b": "\b",
        "f": "\f",
        "n": "\n",
        "r": "\r",
        "t": "\t",
        "v": "\v",
        "?": "?",
        "\\": "\\",
        "'": "'",
        '"': '"',
    }
)
_WRITTEN = MappingProxyType({"\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\", '"': '\\"'})
_TRUE = ("true", "True", "t", "1")
_FALSE = ("false", "False", "f", "0")


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    line: int


def parse(text: str, name: str = "config.pbtxt") -> Message:
    """Read a model configuration.

    Args:
        text: The file's content.
        name: How messages call the file.

    Raises:
        CheckpointError: It is not the text format, names a field or an enum's value that does not exist, gives a value
            of another type, a singular field twice, or two fields of one choice; with the line and the field. Or it is
            longer than `MOST_CHARACTERS`.
    """
    if len(text) > MOST_CHARACTERS:
        raise CheckpointError(name, f"{len(text)} characters", f"at most {MOST_CHARACTERS}", "check the file")
    return _Reader(name, text).message(ROOT, "", None)


def render(message: Mapping[str, Any]) -> str:
    """Write a model configuration: fields in the schema's order, maps by key, so that equal messages give equal text.

    Args:
        message: As `parse` gives it.

    Raises:
        ValueError: A field that the schema does not have.
    """
    return "".join(f"{line}\n" for line in _lines(message, ROOT))


class _Reader:
    """The tokens of a file, and where in them reading is."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.placeholders = list(dict.fromkeys(_PLACEHOLDER.findall(text))) or ["NAME"]
        self.tokens = list(self._tokens(text))
        self.at = 0

    def _tokens(self, text: str) -> Iterator[_Token]:
        position, line = 0, 1
        while position < len(text):
            found = _TOKEN.match(text, position)
            if found is None:
                raise self._wrong(line, "", f"{text[position : position + 12]!r}", "a field, a value or a comment")
            kind = str(found.lastgroup)
            if kind != "blank":
                yield _Token(kind, found.group(), line)
            line += found.group().count("\n")
            position = found.end()
        yield _Token("end", "the end of the file", line)

    def _wrong(self, line: int, path: str, found: str, expected: str, hint: str = "") -> CheckpointError:
        subject = f"{self.name}:{line}" if path == "" else f"{self.name}:{line}: {path}"
        return CheckpointError(subject, found, expected, hint if hint != "" else "correct the line")

    def _unexpected(self, path: str, expected: str) -> CheckpointError:
        token = self.tokens[self.at]
        if token.kind == "template":
            values = ",".join(f"{name}:VALUE" for name in self.placeholders)
            hint = f"fill the template: tools/fill_template.py -i {self.name} {values}"
            return self._wrong(token.line, path, f"{token.text}, a placeholder left over", expected, hint)
        shown = token.text if len(token.text) <= _SHOWN else f"{token.text[:_SHOWN]}..."
        return self._wrong(token.line, path, shown, expected)

    def _take(self, *marks: str) -> str | None:
        """The next token if it is one of these marks."""
        token = self.tokens[self.at]
        if token.kind == "mark" and token.text in marks:
            self.at += 1
            return token.text
        return None

    def message(self, kind: str, path: str, closing: str | None) -> Message:
        """Fields up to the closing mark, or to the end of the file where it is None."""
        message: Message = {}
        chosen: dict[str, str] = {}
        while True:
            token = self.tokens[self.at]
            if token.kind == "end" and closing is None:
                return message
            if closing is not None and self._take(closing) is not None:
                return message
            if token.kind != "word":
                raise self._unexpected(path, "a field" if closing is None else f"a field or {closing}")
            field = MESSAGES[kind].get(token.text)
            inner = token.text[:_SHOWN] if path == "" else f"{path}.{token.text[:_SHOWN]}"
            if field is None:
                near = difflib.get_close_matches(token.text[:_SHOWN], MESSAGES[kind], 3, 0.6)
                hint = f"did you mean {' or '.join(near)}?" if len(near) > 0 else f"fields: {', '.join(MESSAGES[kind])}"
                raise self._wrong(token.line, inner, "no such field", f"a field of {kind}", hint)
            self.at += 1
            self._once(token, field, inner, message, chosen)
            self._field(message, token.text, field, inner)
            self._take(",", ";")

    def _once(self, token: _Token, field: Field, path: str, message: Message, chosen: dict[str, str]) -> None:
        """Refuse a second value of a singular field, or of a choice; note the choice."""
        if field.oneof is not None:
            first = chosen.setdefault(field.oneof, token.text)
            if first != token.text:
                found = f"given beside {first}"
                raise self._wrong(token.line, path, found, f"one field of {field.oneof}", f"remove {first}, or this")
        if token.text in message and not field.repeated and field.key is None:
            raise self._wrong(token.line, path, "given twice", "one value", "remove one of the two")

    def _field(self, message: Message, name: str, field: Field, path: str) -> None:
        composite = field.type in MESSAGES or field.key is not None
        if self._take(":") is None and not composite:
            raise self._unexpected(path, f": and {_typed(field.type)}")
        if not field.repeated and field.key is None:
            message[name] = self._value(field.type, path)
            return
        listed = self._take("[") is not None
        if listed and self._take("]") is not None:
            message.setdefault(name, [] if field.key is None else {})
            return
        while True:
            self._add(message, name, field, path)
            if not listed or self._take("]") is not None:
                return
            if self._take(",") is None:
                raise self._unexpected(path, ", or ]")

    def _add(self, message: Message, name: str, field: Field, path: str) -> None:
        """One element of a list, or one entry of a map; of entries with one key the last counts, as in protobuf."""
        if field.key is None:
            held = message.setdefault(name, [])
            held.append(self._value(field.type, f"{path}[{len(held)}]"))
            return
        key, value = self._entry(field.key, field.type, path)
        message.setdefault(name, {})[key] = value

    def _entry(self, key_type: str, value_type: str, path: str) -> tuple[Any, Any]:
        types = {"key": key_type, "value": value_type}
        closing = self._opened(path)
        entry: Message = {}
        while self._take(closing) is None:
            token = self.tokens[self.at]
            if token.kind != "word" or token.text not in types:
                raise self._unexpected(path, f"key, value or {closing}")
            inner = f"{path}.{token.text}"
            if token.text in entry:
                raise self._wrong(token.line, inner, "given twice", "one value", "remove one of the two")
            self.at += 1
            if self._take(":") is None and types[token.text] not in MESSAGES:
                raise self._unexpected(inner, f": and {_typed(types[token.text])}")
            entry[token.text] = self._value(types[token.text], inner)
            self._take(",", ";")
        return entry.get("key", _default(key_type)), entry.get("value", _default(value_type))

    def _opened(self, path: str) -> str:
        opening = self._take("{", "<")
        if opening is None:
            raise self._unexpected(path, "{")
        return "}" if opening == "{" else ">"

    def _value(self, kind: str, path: str) -> Any:
        if kind in MESSAGES:
            return self.message(kind, path, self._opened(path))
        token = self.tokens[self.at]
        if kind == "string":
            return self._string(path)
        negative = token.kind == "minus"
        if negative:
            self.at += 1
            token = self.tokens[self.at]
        value = _scalar(kind, token) if not negative else _negative(kind, token)
        if value is None:
            raise self._unexpected(path, _typed(kind))
        self.at += 1
        return value

    def _string(self, path: str) -> str:
        parts = []
        while self.tokens[self.at].kind == "string":
            token = self.tokens[self.at]
            part = _unescaped(token.text[1:-1])
            if part is None:
                expected = "a string whose escapes are known and whose bytes are UTF-8"
                raise self._wrong(token.line, path, token.text[:_SHOWN], expected, "write the characters as they are")
            parts.append(part)
            self.at += 1
        if parts == []:
            raise self._unexpected(path, "a string in quotes")
        try:
            return b"".join(parts).decode()
        except UnicodeDecodeError:
            line = self.tokens[self.at - 1].line
            raise self._wrong(line, path, "bytes that are not UTF-8", "UTF-8", "write the characters") from None


def _typed(kind: str) -> str:
    """What a value of a type looks like, for a message."""
    if kind in ENUMS:
        return f"one of {', '.join(ENUMS[kind])}"
    if kind in INTEGERS:
        return f"an integer from {INTEGERS[kind][0]} to {INTEGERS[kind][1]}"
    return {"bool": "true or false", "string": "a string in quotes"}.get(kind, "a number")


def _default(kind: str) -> Any:
    if kind in MESSAGES:
        return {}
    return "" if kind == "string" else 0


def _scalar(kind: str, token: _Token) -> Any:
    """The value of a token; None where it is not of the type."""
    if kind == "bool":
        return True if token.text in _TRUE else False if token.text in _FALSE else None
    if kind in ENUMS:
        numbered = {str(number): name for number, name in enumerate(ENUMS[kind])}
        return token.text if token.text in ENUMS[kind] else numbered.get(token.text)
    if kind in INTEGERS:
        return _integer(kind, token)
    if token.kind == "word" and token.text.lower() in ("inf", "infinity", "nan"):
        return float(token.text)
    if token.kind == "number" and _FLOAT.fullmatch(token.text) is not None:
        return float(token.text.rstrip("fF"))
    return None


def _negative(kind: str, token: _Token) -> float | None:
    """The value of a word after a minus: -inf and -nan are floats."""
    value = _scalar(kind, token) if token.kind == "word" and kind in ("float", "double") else None
    return None if value is None else -float(value)


def _integer(kind: str, token: _Token) -> int | None:
    if token.kind != "number" or _INTEGER.fullmatch(token.text) is None:
        return None
    digits = token.text.removeprefix("-")
    base = 16 if digits[:2] in ("0x", "0X") else 8 if digits[0] == "0" else 10
    # A number of more digits than any type has is not converted: int() is slow on long ones, and refuses the longest.
    value = int(digits, base) if len(digits) <= 25 else 1 << 64
    value = -value if digits != token.text else value
    least, greatest = INTEGERS[kind]
    unsigned_minus = least == 0 and digits != token.text
    return value if least <= value <= greatest and not unsigned_minus else None


def _unescaped(text: str) -> bytes | None:
    """The bytes of a string without its quotes; None for an escape that does not exist."""
    made = bytearray()
    position = 0
    for found in _ESCAPE.finditer(text):
        made += text[position : found.start()].encode("utf-8", "surrogatepass")
        position = found.end()
        octal, hexadecimal, short, long, letter = found.groups()
        if octal is not None or hexadecimal is not None:
            byte = int(octal, 8) if octal is not None else int(hexadecimal, 16)
            if byte > 255:
                return None
            made.append(byte)
        elif short is not None or long is not None:
            point = int(short if short is not None else long, 16)
            if point > 0x10FFFF or 0xD800 <= point <= 0xDFFF:
                return None
            made += chr(point).encode()
        elif letter in _ESCAPES:
            made += _ESCAPES[letter].encode()
        else:
            return None
    return bytes(made + text[position:].encode("utf-8", "surrogatepass"))


def _lines(message: Mapping[str, Any], kind: str) -> Iterator[str]:
    """The fields of a message, each on a line of its own, or on several where it is long."""
    unknown = sorted(set(message) - set(MESSAGES[kind]))
    if len(unknown) > 0:
        raise ValueError(f"{kind} has no field {', '.join(unknown)}")
    for name, field in MESSAGES[kind].items():
        if name not in message:
            continue
        value = message[name]
        if field.key is not None:
            for key in sorted(value):
                entry = [f"key: {_written(field.key, key)}"]
                composite = field.type in MESSAGES
                inner = list(_lines(value[key], field.type)) if composite else []
                entry += _block("value", inner) if composite else [f"value: {_written(field.type, value[key])}"]
                yield from _block(name, entry)
        elif field.type in MESSAGES and field.repeated:
            yield from _listed(name, [list(_lines(item, field.type)) for item in value])
        elif field.type in MESSAGES:
            yield from _block(name, list(_lines(value, field.type)))
        elif field.repeated:
            yield f"{name}: [{', '.join(_written(field.type, item) for item in value)}]"
        else:
            yield f"{name}: {_written(field.type, value)}"


def _block(name: str, inner: list[str]) -> list[str]:
    """A message with its braces, on one line where it fits."""
    line = f"{name} {{ {' '.join(inner)} }}" if len(inner) > 0 else f"{name} {{ }}"
    if len(line) <= _LINE and not any(part.startswith(" ") or part == "}" for part in inner):
        return [line]
    return [f"{name} {{", *(f"  {part}" for part in inner), "}"]


def _listed(name: str, items: list[list[str]]) -> list[str]:
    """A list of messages, an element on each line where it fits."""
    if len(items) == 0:
        return [f"{name}: []"]
    lines = [f"{name} ["]
    for index, inner in enumerate(items):
        element = [part.lstrip() if position == 0 else part for position, part in enumerate(_block("", inner))]
        element[-1] += "," if index < len(items) - 1 else ""
        lines += [f"  {part}" for part in element]
    return [*lines, "]"]


def _written(kind: str, value: Any) -> str:
    if kind == "string":
        return '"' + "".join(_character(character) for character in value) + '"'
    if kind == "bool":
        return "true" if value else "false"
    return repr(float(value)) if kind in ("float", "double") else str(value)


def _character(character: str) -> str:
    if character in _WRITTEN:
        return _WRITTEN[character]
    return character if character >= " " and character != "\x7f" else f"\\{ord(character):03o}"
