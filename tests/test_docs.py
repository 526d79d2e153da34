"""The documents say what is: generated pages are fresh, paths and links lead somewhere, every error is explained."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmcompile.errors import ERRORS, LlmCompileError

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md", "benchmarks/**/*.md")
    for path in ROOT.glob(pattern)
)
NAMING_PATHS = [ROOT / "docs" / "architecture.md", ROOT / "README.md", ROOT / "CONTRIBUTING.md"]

_PATH = re.compile(r"(?<![\w/.:-])((?:src|docs|tests|tools|examples|benchmarks|\.ci)/[\w./*-]*)")
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)#\s]*)(?:#([\w-]+))?\)")
_TARGET = re.compile(r"(?:^|`)make ([a-z]+)", re.MULTILINE)


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _prose(path: Path) -> str:
    """A document without its code blocks and code spans."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL))


def _anchors(path: Path) -> set[str]:
    """The anchors GitHub gives a document's headings."""
    titles = re.findall(r"^#+ +(.*?)\s*$", path.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def _dead_links(path: Path) -> Iterator[str]:
    for target, anchor in _LINK.findall(_prose(path)):
        if re.match(r"[a-z]+:", target):
            continue
        found = path if target == "" else path.parent / target
        if not found.exists():
            yield target
        elif anchor != "" and found.suffix == ".md" and anchor not in _anchors(found):
            yield f"{target}#{anchor}"


def test_generated_pages_are_fresh() -> None:
    """docs/cli.md and docs/manifest.schema.json are what `make docs` would write."""
    finished = subprocess.run(
        [sys.executable, ROOT / "tools" / "docs.py", "--check"], capture_output=True, text=True, timeout=120
    )

    assert (finished.returncode, finished.stderr) == (0, "")


@pytest.mark.parametrize("document", NAMING_PATHS, ids=_name)
def test_every_path_named_exists(document: Path) -> None:
    """A path into the repository, wherever in the text, is that of a file or a folder."""
    named = {path.rstrip(".") for path in _PATH.findall(document.read_text())}

    missing = [path for path in sorted(named) if len(list(ROOT.glob(path))) == 0]

    assert missing == []


def test_the_map_names_every_part_of_the_source() -> None:
    """docs/architecture.md mentions each module and package of src/llmcompile by its path."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    package = ROOT / "src" / "llmcompile"
    parts = [path for path in package.iterdir() if path.suffix == ".py" and not path.name.startswith("__")]
    parts += [path for path in package.iterdir() if (path / "__init__.py").exists()]

    missing = [_name(path) for path in sorted(parts) if _name(path) not in text]

    assert missing == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_every_link_leads_somewhere(document: Path) -> None:
    """A relative link's file is there, and so is the heading after its #."""
    assert list(_dead_links(document)) == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_every_make_target_named_exists(document: Path) -> None:
    """`make x` in a document is a target of the Makefile."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))

    assert set(_TARGET.findall(document.read_text())) - targets == set()


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_every_error_is_explained(error: type[LlmCompileError]) -> None:
    """docs/errors.md has the error's row in its table, with the code it ends with, and a section for the code."""
    text = (ROOT / "docs" / "errors.md").read_text()

    assert f"| {error.exit_code} | `{error.__name__}` |" in text
    assert re.search(rf"^## {error.exit_code}\b", text, flags=re.MULTILINE)


def test_a_dead_link_is_seen(tmp_path: Path) -> None:
    """The link test fails on a missing file and on a missing heading, and not on code or the web."""
    page = tmp_path / "page.md"
    page.write_text("# A title\n[a](#a-title) [b](#b) [c](gone.md) [d](https://example.com) `[e](no.md)`\n")

    assert list(_dead_links(page)) == ["#b", "gone.md"]
