"""Folders that are in memory alone, for tests of what is read of one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from llmcompile.packaging.tree import Tree


def tree_of(files: Mapping[str, bytes], folders: tuple[str, ...] = (), name: str = "package") -> Tree:
    """A folder of these files, and of further, empty folders."""
    paths = (*files, *(f"{folder}/x" for folder in folders))
    parents = {str(parent) for path in paths for parent in Path(path).parents} - {"."}
    sizes = {path: len(content) for path, content in sorted(files.items())}
    return Tree(name, sizes, frozenset(parents), lambda path: files[path])


def encoded(content: object) -> bytes:
    """A value as JSON."""
    return json.dumps(content).encode()
