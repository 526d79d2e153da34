"""The documents say what is: generated pages are fresh, paths and links lead somewhere, every error is explained."""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import models
from llmcompile.architectures import ARCHITECTURES
from llmcompile.dtypes import FP16
from llmcompile.errors import ERRORS, LlmCompileError
from llmcompile.exporters.neuron import flags
from llmcompile.exporters.neuron import layout as neuron
from llmcompile.exporters.neuron.heads import Heads
from llmcompile.exporters.neuron.options import AUTO_CASTS, NeuronOptions, Shapes
from llmcompile.exporters.neuron.signature import GENERATION
from llmcompile.exporters.neuron.targets import TARGETS, core_bytes
from llmcompile.exporters.neuron.tasks import ENCODERS
from llmcompile.exporters.options import BuildOptions
from llmcompile.exporters.trtllm import versions
from llmcompile.exporters.trtllm.layout import NO_PIPELINE, make_layout, recipes
from llmcompile.exporters.trtllm.options import TrtllmOptions
from llmcompile.exporters.trtllm.rows import ENCODER_DECODER, FAMILIES
from llmcompile.packaging.target import KINDS
from llmcompile.packaging.targets import TARGETS as SERVERS

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


FACTORY = {"falcon": "falcon_7b", **{made.name: made.name for made in ARCHITECTURES if made.name in models.FAMILIES}}
_NEURON = 4
"""Column of `export neuron` in the support table."""
TRTLLM = [name for name in (*FAMILIES, *ENCODER_DECODER) if name in FACTORY]
"""Families of TensorRT-LLM that tests/models.py can make; Qwen 1 and Meta's files it cannot."""


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _tool() -> Any:
    """tools/docs.py as a module."""
    spec = importlib.util.spec_from_file_location("docs_tool", ROOT / "tools" / "docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _rows() -> list[tuple[str, ...]]:
    """The cells of each family in the support table."""
    lines = [line for line in _tool().support_table().splitlines() if line.startswith("|")][2:]
    return [tuple(cell.strip() for cell in line[1:-1].split("|")) for line in lines]


def _refused(family: str, **given: Any) -> str:
    """Why TensorRT-LLM's layout refuses a family's tiny model with those options; "" where it does not."""
    architecture = next(made for made in ARCHITECTURES if made.name == family)
    dims = architecture.dims(json.loads(models.build(FACTORY[family]).config.to_json_string(use_diff=False)))
    build = BuildOptions(model="model", output=Path("out"))
    options = TrtllmOptions(build=build, stop_after="checkpoint", **given)
    layout = make_layout(architecture, dims, options, source_dtype=FP16, model_label="model")
    return "; ".join(str(problem) for problem in layout.refusals)


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
    """docs/cli.md, docs/manifest.schema.json and the README's support table are what `make docs` would write."""
    finished = subprocess.run(
        [sys.executable, ROOT / "tools" / "docs.py", "--check"], capture_output=True, text=True, timeout=120
    )

    assert (finished.returncode, finished.stderr) == (0, "")


def test_a_stale_table_is_seen() -> None:
    """What is between the two comments is replaced, and nothing else."""
    tool = _tool()
    page = (ROOT / "README.md").read_text()
    table = tool.support_table()

    assert tool.with_table(page.replace("| gpt2 |", "| gpt3 |"), table, tool._SUPPORT) == page
    with pytest.raises(ValueError, match="once each"):
        tool.with_table("no comments", table, tool._SUPPORT)


def test_the_serving_table_has_every_kind() -> None:
    """One row for each kind of artifact, one column for each target; releases where it is served, and only there."""
    lines = [line for line in _tool().serving_table().splitlines() if line.startswith("|")][2:]
    rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]

    assert [row[0].split("`")[1] for row in rows] == list(KINDS)
    for kind, row in zip(KINDS, rows, strict=True):
        assert [cell != "" for cell in row[1:]] == [kind in target.serves for target in SERVERS.values()]


def test_the_recipe_table_says_what_the_code_does() -> None:
    """Every recipe with its oldest GPU, its first release, and whether it needs a text."""
    lines = [line for line in _tool().recipe_table().splitlines() if line.startswith("|")][2:]
    rows = {cells[0].strip(" `"): cells for line in lines for cells in [line[1:-1].split("|")]}

    assert list(rows) == list(versions.RECIPES)
    for name, recipe in versions.RECIPES.items():
        _, _, _, needs, gpu, release, *_ = (cell.strip() for cell in rows[name])
        assert (needs == "yes") == (name in versions.CALIBRATED)
        assert (gpu.split(":")[0], release) == (f"SM{recipe.sm}", versions.text_of(recipe.first))


def test_every_rule_is_on_the_page() -> None:
    """docs/lint.md has a line for each rule of each target."""
    page = (ROOT / "docs" / "lint.md").read_text()

    assert all(f"| `{rule}` | " in page for target in SERVERS.values() for rule in target.rules)


def test_the_table_has_every_family() -> None:
    """One row for each architecture, and each is taken by a backend."""
    rows = _rows()

    assert [row[0] for row in rows] == sorted(made.name for made in ARCHITECTURES)
    assert all(row[-1] != "" for row in rows)


@pytest.mark.parametrize("row", [row for row in _rows() if row[0] in FACTORY], ids=lambda row: row[0])
def test_the_table_says_what_neuron_takes(row: tuple[str, ...]) -> None:
    """A decoder that is said to be divided over cores is not refused for its kind, and the others are."""
    made = next(made for made in ARCHITECTURES if made.name == row[0])
    dims = made.dims(json.loads(models.build(FACTORY[made.name]).config.to_json_string(use_diff=False)))
    build, shapes = BuildOptions(model="model", output=Path("out")), Shapes(batch_size=1, sequence_length=8)
    options = NeuronOptions(build=build, shapes=shapes, num_cores=2)
    layout = neuron.make_layout(made, dims, options, source_dtype=FP16, model_label="model")

    assert (row[_NEURON] == "tp") == (len(layout.refusals) == 0)
    assert ("neuron" in row[-1].split()) == (row[_NEURON] != "")


def test_every_encoder_is_named() -> None:
    """Below the table are the model types that our own lowering was tried on."""
    paragraph = _tool().support_table().rpartition("|\n")[2]

    assert set(re.findall(r"`([\w-]+)`", paragraph)) >= set(ENCODERS)
    assert all(len(line) <= 120 for line in paragraph.splitlines())


def test_the_page_on_neuron_has_the_numbers_of_the_code() -> None:
    """Memory and degrees of each instance, the flags of each kind of graph, and which heads a core has."""
    text = (ROOT / "docs" / "formats" / "neuron.md").read_text()
    for name, target in TARGETS.items():
        row = next(line for line in text.splitlines() if re.match(rf"\| ([\w, ]+, )?{name}\b", line))
        degrees = ", ".join(map(str, target.degrees)) + (f", multiples of {target.more}" if target.more > 0 else "")
        assert f"| {core_bytes(name) >> 30} GiB" in row
        assert f"| {degrees} |" in row
    build = BuildOptions(model="model", output=Path("out"))
    for target, auto_cast in itertools.product(TARGETS, AUTO_CASTS):
        options = NeuronOptions(build=build, auto_cast=auto_cast)
        for word in flags.arguments(options, GENERATION, target, release=(9, 0)):
            assert word.partition("=")[0] in text
    for queries, keys, cores in ((4, 2, 2), (4, 2, 4), (10, 2, 4), (9, 3, 2)):
        heads = Heads(queries, keys)
        cells = [_heads(heads.query_slots(cores)), _heads(heads.kv_slots(cores))]
        assert f"| {queries} heads, {keys} of keys | {cores} | {' | '.join(cells)} |\n" in text


def _heads(slots: tuple[tuple[int | None, ...], ...]) -> str:
    return ", ".join(" ".join("-" if head is None else str(head) for head in held) for held in slots)


@pytest.mark.parametrize("family", TRTLLM)
def test_the_table_says_what_is_refused(family: str) -> None:
    """Pipeline stages and recipes that it names are not refused for the family's tiny model, and the others are."""
    assert ("--pp" in _refused(family, pp=2)) == (family in NO_PIPELINE)
    for recipe in versions.RECIPES:
        taken = f"{recipe} with " not in _refused(family, quantization=recipe)
        assert taken == (recipe in recipes(family)), recipe


def test_the_page_on_tensorrt_llm_has_the_versions_of_the_code() -> None:
    """Its table of releases has each one's container and TensorRT, and how far it is supported."""
    text = (ROOT / "docs" / "formats" / "trtllm.md").read_text()
    for release in versions.RELEASES:
        if release < versions.FIRST_SUPPORTED:
            continue
        support = "best effort" if versions.best_effort(release) else "yes"
        cells = (versions.text_of(release), "yes", support, versions.CONTAINERS.get(release, ""))
        row = "".join(f"| {cell} " if cell != "" else "| " for cell in (*cells, versions.TENSORRT.get(release, "")))
        assert f"{row}|\n" in text
    assert f"| {len({flag.name for flag in versions.FLAGS})} flags," in text


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
