"""YAML as it comes: the files of a package that hold a Serve config file or an LLMConfig."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import yaml

from llmcompile.packaging.tree import Tree

FILE_BYTES = 1 << 20
"""The longest YAML file that is parsed."""
VALUES = 100_000
"""The most values that a file may hold once its aliases are followed."""
SERVE = "serve.yaml"
# PyYAML's constructors of tagged scalars raise these as they are; RecursionError comes from deep nesting.
_YAML_ERRORS = (yaml.YAMLError, ValueError, KeyError, IndexError, AttributeError, TypeError, RecursionError)


@dataclass(frozen=True)
class Document:
    """A parsed file.

    Attributes:
        content: What it holds; None where it cannot be parsed.
        problem: Why it cannot be; empty where it can.
        repeated: Keys that stand twice in one mapping; the last one counts.
    """

    content: Any
    problem: str = ""
    repeated: tuple[str, ...] = ()


class _Loader(yaml.SafeLoader):
    """The safe loader, which also notes keys that stand twice."""

    repeated: list[str]

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        self.repeated += sorted({name for name in names if names.count(name) > 1})
        return super().construct_mapping(node, deep)


def parse(text: str) -> Document:
    """A YAML file's content; never raises."""
    loader = None
    try:
        loader = _Loader(text)
        loader.repeated = []
        content = loader.get_single_data()
    except _YAML_ERRORS as error:
        return Document(None, f"not YAML: {' '.join(str(error).split())[:200] or type(error).__name__}")
    finally:
        if loader is not None:
            loader.dispose()
    if not _bounded(content):
        return Document(None, f"more than {VALUES} values, or a list within itself, once its aliases are followed")
    return Document(content, "", tuple(loader.repeated))


def _bounded(content: object) -> bool:
    left = [content]
    for _ in range(VALUES):
        if len(left) == 0:
            return True
        value = left.pop()
        if isinstance(value, dict):
            left += [*value.keys(), *value.values()]
        elif isinstance(value, (list, tuple, set)):
            left += value
    return len(left) == 0


def read(tree: Tree, path: str) -> Document:
    """A file of a tree; never raises for one that is there."""
    if tree.files[path] > FILE_BYTES:
        return Document(None, f"{tree.files[path]} bytes; at most {FILE_BYTES} are read")
    return parse(tree.text(path))


def yaml_paths(tree: Tree) -> tuple[str, ...]:
    """YAML files at the root, serve.yaml first."""
    names = [path for path in tree.files if "/" not in path and path.endswith((".yaml", ".yml"))]
    return tuple(sorted(names, key=lambda name: (name != SERVE, name)))


def is_ours(tree: Tree) -> bool:
    """Whether a root file names ray.serve.llm's builders, or holds an LLMConfig."""
    for path in yaml_paths(tree):
        if tree.files[path] <= FILE_BYTES:
            text = tree.text(path)
            if "ray.serve.llm" in text or "model_loading_config" in text:
                return True
    return False
