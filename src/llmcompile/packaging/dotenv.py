"""`.env` files in the one dialect that `docker run --env-file` and docker compose read alike.

docker takes everything behind the first "=" as it stands, quotes and "#" included; compose strips quotes and comments
and replaces "$NAME". Where they differ is refused. Sources: docker/cli@28f7560:pkg/kvfile/kvfile.go;
compose-spec/compose-go@e70e961:dotenv/parser.go.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from llmcompile.errors import OptionsError
from llmcompile.packaging.target import Finding

_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_APART = ("'", '"', "\\", "$", "#", "`")
"""What the two readers take differently somewhere in a value."""
_MARK = re.compile(
    r"\$(?:\$|(?P<plain>[A-Za-z_]\w*)|\{(?P<name>[A-Za-z_]\w*)(?:(?P<mark>:?[-+?])(?P<other>[^{}]*))?\})", re.ASCII
)
_GROWTH, _GROWTH_ALL = 8 << 10, 1 << 20
"""Characters that names may add to one text, and to all of a file: each line may double the one before."""
_QUOTED = re.compile(r"""'([^']*)'|"((?:[^"\\]|\\.)*)\"""")


@dataclass(frozen=True)
class Line:
    """A line that is neither blank nor a comment.

    Attributes:
        number: From 1.
        name: Before the first "="; the whole line where there is none.
        value: Behind it.
        problems: Why the line is not of the dialect; empty where it is.
    """

    number: int
    name: str
    value: str
    problems: tuple[str, ...]


def write(pairs: Mapping[str, str]) -> str:
    """Text of a file, one line per pair, in their order.

    Raises:
        OptionsError: A name or a value cannot be written so that both readers take it as it is.
    """
    lines = []
    for name, value in pairs.items():
        line = f"{name}={value}"
        problems = (
            next(iter(read(f"{line}\n"))).problems if "\n" not in line and line.strip() != "" else ("a line end",)
        )
        if problems != ():
            raise OptionsError(
                f"{name} in .env", f"{value!r}: {', '.join(problems)}", "plain text", "choose a value without it"
            )
        lines.append(f"{line}\n")
    return "".join(lines)


def read(text: str) -> tuple[Line, ...]:
    """Every line that sets a variable, with what is wrong about it."""
    return tuple(_lines(text))


def pairs(lines: tuple[Line, ...]) -> Mapping[str, str]:
    """Variable -> value as docker passes it; the last line of a name counts."""
    return {line.name: line.value for line in lines}


def compose_pairs(text: str) -> Mapping[str, str]:
    """Variable -> value as docker compose takes it: without export, quotes and comments, and with "$NAME" replaced."""
    made: dict[str, str] = {}
    grown = 0
    for line in text.split("\n"):
        name, separator, value = line.strip().removeprefix("export ").partition("=")
        name, value = name.strip(), value.strip()
        if separator == "" or _KEY.fullmatch(name) is None:
            continue
        quoted, known = _QUOTED.match(value), made if grown < _GROWTH_ALL else {}
        if quoted is None:
            made[name] = interpolate(re.split(r"(?:^|\s)#", value, maxsplit=1)[0].rstrip(), known)
        else:
            made[name] = quoted[1] if quoted[2] is None else interpolate(quoted[2], known)
        grown += max(0, len(made[name]) - len(value))
    return made


def interpolate(text: str, variables: Mapping[str, str]) -> str:
    """A text with its "$NAME" and "${NAME:-other}" replaced; a name that is not known, which a shell may set, stays.

    Source: compose-spec/compose-go@e70e961:template/template.go.
    """
    left = _GROWTH

    def put(match: re.Match[str]) -> str:
        nonlocal left
        if match[0] == "$$":
            return "$"
        mark, other = match["mark"] or "", match["other"] or ""
        value = variables.get(match["plain"] or match["name"])
        there = value is not None and (value != "" or not mark.startswith(":"))
        if mark.endswith("+"):
            return other if there else ""
        if value is not None and there:
            left -= len(value)
            return value if left >= 0 else match[0]
        return other if mark.endswith("-") else match[0]

    return _MARK.sub(put, text)


def lint(lines: tuple[Line, ...], file: str) -> Iterator[Finding]:
    """Findings of the rule "dotenv"."""
    wrong = [line for line in lines if line.problems != ()]
    for line in wrong:
        yield Finding(
            "dotenv",
            "failed",
            f"{file}:{line.number}: {line.name[:40]}",
            ", ".join(line.problems),
            "NAME=value: no quotes, no export, no blanks at an end, LF",
            "write the line so",
        )
    if wrong == []:
        yield Finding("dotenv", "ok", file, f"{len(lines)} variables")


def _lines(text: str) -> Iterator[Line]:
    seen: dict[str, str] = {}
    lines = text.split("\n")
    for number, line in enumerate(lines, start=1):
        if line.strip() == "" or line.startswith("#"):
            continue
        found = _line(number, line, last=number == len(lines))
        if seen.get(found.name, found.value) != found.value:
            found = Line(number, found.name, found.value, (*found.problems, "the name has another value above"))
        seen[found.name] = found.value
        yield found


def _line(number: int, line: str, *, last: bool) -> Line:
    name, separator, value = line.partition("=")
    problems = [] if separator else ["no ="]
    if name.startswith("export "):
        problems.append("export")
    elif _KEY.fullmatch(name) is None:
        problems.append(f"a name like {name!r}"[:80])
    if value.endswith("\r"):
        problems.append("a line end of CR LF")
    elif value != value.strip() or (separator and name != name.strip()):
        problems.append("a blank at an end")
    elif not value.isprintable():
        problems.append("a character that is not printable")
    problems += [f"{mark} in the value" for mark in _APART if mark in value]
    if last:
        problems.append("no line end")
    return Line(number, name, value, tuple(problems))
