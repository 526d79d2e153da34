"""JSON and YAML that may be anybody's: within bounds, and without exceptions of the parsers' own."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from llmcompile.errors import CheckpointError

if TYPE_CHECKING:
    from llmcompile.packaging.tree import Tree

YAML_CHARACTERS = 1 << 20
"""The longest YAML text that is parsed."""
_VALUES = 100_000
"""The most values that a text may hold once its aliases are followed: nine lines can hold a billion."""


def json_value(content: bytes | str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: It is none, or is nested too deeply to be one of a model or a server.
    """
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def section(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """An object inside another; empty where there is none."""
    value = content.get(key)
    return value if isinstance(value, dict) else {}


def whole(value: object) -> int | None:
    """A whole number; None for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def count(value: object) -> int | None:
    """A whole number from 1; None for anything else."""
    found = whole(value)
    return found if found is not None and found > 0 else None


def packaged(tree: Tree) -> Mapping[str, Any]:
    """What llmcompile.json says that a package was made for; empty where it is none of ours, or says nothing."""
    from llmcompile.writing import MANIFEST  # not for --help, which imports this file

    record = json_object(tree, MANIFEST)
    return {} if record is None else section(record, "package")


def json_object(tree: Tree, path: str) -> Mapping[str, Any] | None:
    """The object in a JSON file; None where there is no such file, or nothing in it that is one."""
    if path not in tree.files:
        return None
    try:
        content = json_value(tree.read(path))
    except (CheckpointError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def yaml_value(text: str, loader: Callable[[str], Any] | None = None) -> Any:
    """The value of a YAML text.

    Args:
        text: What is parsed.
        loader: Parses it, and may raise what PyYAML does; a `BoundedLoader`, where there is none.

    Raises:
        ValueError: It cannot be parsed, is longer than `YAML_CHARACTERS`, or holds itself or too many values.
    """
    import yaml

    from llmcompile.packaging.yaml_loader import BoundedLoader

    if len(text) > YAML_CHARACTERS:
        raise ValueError(f"{len(text)} characters; at most {YAML_CHARACTERS} are read")
    try:
        content = yaml.load(text, BoundedLoader) if loader is None else loader(text)  # noqa: S506  # a safe loader
    # PyYAML's constructors of tagged scalars raise these as they are; RecursionError comes from deep nesting.
    except (
        yaml.YAMLError,
        ValueError,
        KeyError,
        IndexError,
        AttributeError,
        TypeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise ValueError(f"not YAML: {' '.join(str(error).split())[:200] or type(error).__name__}") from error
    if not _bounded(content):
        raise ValueError(f"more than {_VALUES} values, or a list within itself, once its aliases are followed")
    return content


def _bounded(content: object) -> bool:
    """Whether a value holds no more than `_VALUES` others, each counted as often as it is met."""
    left = [content]
    for _ in range(_VALUES):
        if len(left) == 0:
            return True
        value = left.pop()
        if isinstance(value, dict):
            left += [*value.keys(), *value.values()]
        elif isinstance(value, (list, tuple, set)):
            left += value
    return len(left) == 0
