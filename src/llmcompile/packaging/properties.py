"""serving.properties: as java.util.Properties reads it, as LMI's Python tools do, and the one dialect both read alike.

Sources: the class comment and `load` of java.util.Properties (Java SE 17); deepjavalibrary/djl-serving@7e13b081:
serving/docker/partition/utils.py (load_properties) and wlm/src/main/java/ai/djl/serving/wlm/ModelInfo.java
(loadServingProperties, which hands bytes to Properties.load, so that they are Latin-1).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType

from llmcompile.errors import CheckpointError, OptionsError

_BLANK = " \t\f"
_ESCAPES = MappingProxyType({"t": "\t", "r": "\r", "n": "\n", "f": "\f"})
_KEY = re.compile(r"(?![#!])[!-~]+")
_VALUE = re.compile(r"(?:[!-~](?:[ -~]*[!-~])?)?")
_NATURAL = re.compile(r"([^\r\n]*)(\r\n|\r|\n|\Z)")
_SHOWN = 60


def java(content: bytes, name: str = "serving.properties") -> dict[str, str]:
    """Key -> value, as the model server's Java reads them; of two lines with one key the later counts.

    Args:
        content: The file's bytes.
        name: How messages call the file.

    Raises:
        CheckpointError: A backslash and u are not followed by four hexadecimal digits, which Java refuses.
    """
    entries = {}
    for line in _logical_lines(content.decode("latin-1")):
        key, value = _split(line)
        entries[_unescaped(key, name)] = _unescaped(value, name)
    return entries


def naive(content: bytes, name: str = "serving.properties") -> dict[str, str]:
    """Key -> value, as LMI's ahead-of-time tools read them: a line is split at its first equals sign, and stripped.

    Args:
        content: The file's bytes.
        name: How messages call the file.

    Raises:
        CheckpointError: A line has no equals sign, or the file is not UTF-8; the tools stop at both.
    """
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise CheckpointError(name, f"byte {error.start} is not UTF-8", "ASCII", "write the file in ASCII") from None
    entries = {}
    for number, line in enumerate(re.split("\r\n|\r|\n", text), start=1):
        if line.startswith("#") or line.strip() == "":
            continue
        key, sign, value = line.strip().partition("=")
        if sign == "":
            subject, found = f"{name}:{number}", f"{line[:_SHOWN]!r}, without an equals sign"
            raise CheckpointError(subject, found, "key=value", "write one key=value on a line")
        entries[key.strip()] = value.strip()
    return entries


def text(entries: Mapping[str, str]) -> str:
    """The file: one key=value on a line, in the order given, nothing escaped, printable ASCII.

    Args:
        entries: Key -> value.

    Raises:
        OptionsError: A key or a value that the two readers would not read alike.
    """
    for key, value in entries.items():
        wrong = why_not(key, value)
        if wrong is not None:
            raise OptionsError(f"serving.properties: {key[:_SHOWN]!r}", *wrong)
    return "".join(f"{key}={value}\n" for key, value in entries.items())


def why_not(key: str, value: str) -> tuple[str, str, str] | None:
    """Why an entry cannot be written: what was found, what is expected, what to do; None where it can."""
    if _KEY.fullmatch(key) is None or any(sign in key for sign in "=:\\"):
        expected = "printable ASCII without blanks, =, : and backslash, not beginning with # or !"
        return f"the key {key[:_SHOWN]!r}", expected, "spell the key as LMI does"
    if _VALUE.fullmatch(value) is None or "\\" in value:
        expected = "printable ASCII without backslash, and no blank at either end"
        return f"the value {value[:_SHOWN]!r}", expected, "write it without such characters"
    # Java takes one sign between key and value, and blanks around it: "a==b" is alike in both, "a= b" is not written.
    return None


def _logical_lines(content: str) -> Iterator[str]:
    """Lines with their continuations, without comments, blank lines and what is blank at their beginnings."""
    parts: list[str] = []
    continued = False
    for found in _NATURAL.finditer(content):
        part = found[1].lstrip(_BLANK)
        if parts == [] and part[:1] in ("#", "!"):
            # Also behind a line that was nothing but a backslash; a comment ends at its line's end, whatever it is.
            continued = False
            continue
        if part == "" and not continued:
            continue
        continued = (len(part) - len(part.rstrip("\\"))) % 2 == 1
        part = part[:-1] if continued else part
        if part != "":
            parts.append(part)
        # A lone backslash that ends the file is an entry without key and value.
        if continued and parts == [] and found.end() == len(content) and found[2] != "\r\n":
            yield ""
        elif not continued and parts != []:
            yield "".join(parts)
            parts = []
    if parts != []:
        yield "".join(parts)


def _split(line: str) -> tuple[str, str]:
    """Key and value, both still escaped."""
    position = 0
    while position < len(line) and line[position] not in "=:" + _BLANK:
        position += 2 if line[position] == "\\" else 1
    key, rest = line[:position], line[position:].lstrip(_BLANK)
    if rest[:1] in ("=", ":"):
        rest = rest[1:].lstrip(_BLANK)
    return key, rest


def _unescaped(escaped: str, name: str) -> str:
    made = []
    position = 0
    while position < len(escaped):
        character = escaped[position]
        position += 1
        if character != "\\" or position == len(escaped):
            made.append(character if character != "\\" else "")
            continue
        character = escaped[position]
        position += 1
        if character == "u":
            digits = escaped[position : position + 4]
            if re.fullmatch("[0-9a-fA-F]{4}", digits) is None:
                found = f"\\u{digits}, which Java refuses"
                raise CheckpointError(name, found, "\\u and four hexadecimal digits", "write no escapes")
            made.append(chr(int(digits, 16)))
            position += 4
        else:
            made.append(_ESCAPES.get(character, character))
    return "".join(made)
