"""YAML as it comes: the files of a package that hold a Serve config file or an LLMConfig."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from llmcompile.packaging.documents import YAML_CHARACTERS, yaml_value
from llmcompile.packaging.tree import Tree
from llmcompile.packaging.yaml_loader import BoundedLoader

SERVE = "serve.yaml"
"""How the Serve config file is usually called; Ray's documentation also has config.yaml."""


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


class _Loader(BoundedLoader):
    """The loader of all packages, which also notes keys that stand twice."""

    repeated: list[str]

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        self.repeated += sorted(name for name, times in Counter(names).items() if times > 1)
        return super().construct_mapping(node, deep)


def parse(text: str) -> Document:
    """A YAML file's content; never raises."""
    repeated: list[str] = []

    def load(text: str) -> Any:
        loader = _Loader(text)
        loader.repeated = repeated
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()

    try:
        return Document(yaml_value(text, load), "", tuple(repeated))
    except ValueError as error:
        return Document(None, str(error))


def read(tree: Tree, path: str) -> Document:
    """A file of a tree; never raises for one that is there."""
    if tree.files[path] > YAML_CHARACTERS:
        return Document(None, f"{tree.files[path]} bytes; at most {YAML_CHARACTERS} are read")
    return parse(tree.text(path))


def yaml_paths(tree: Tree) -> tuple[str, ...]:
    """YAML files at the root, serve.yaml first."""
    names = [path for path in tree.files if "/" not in path and path.endswith((".yaml", ".yml"))]
    return tuple(sorted(names, key=lambda name: (name != SERVE, name)))


def is_ours(tree: Tree) -> bool:
    """Whether a root file names ray.serve.llm's builders, or holds an LLMConfig."""
    for path in yaml_paths(tree):
        if tree.files[path] <= YAML_CHARACTERS:
            text = tree.text(path)
            if "ray.serve.llm" in text or "model_loading_config" in text:
                return True
    return False


def serve_path(documents: Mapping[str, Document]) -> str | None:
    """The Serve config file: known by what it holds, and by its name where it cannot be parsed; None for none."""
    held = [path for path, document in documents.items() if _is_serve_config(document.content)]
    if len(held) > 0:
        return held[0]
    unknown = SERVE in documents and not is_llm_config(documents[SERVE].content)
    return SERVE if unknown else None


def other_serve_paths(documents: Mapping[str, Document]) -> tuple[str, ...]:
    """Further Serve config files."""
    first = serve_path(documents)
    held = (path for path, document in documents.items() if _is_serve_config(document.content))
    return tuple(path for path in held if path != first)


def _is_serve_config(content: object) -> bool:
    return isinstance(content, dict) and ("applications" in content or "import_path" in content)


def is_llm_config(content: object) -> bool:
    """Whether a file holds an LLMConfig, as well as it can be told."""
    return isinstance(content, dict) and "model_loading_config" in content
