"""llmcompile.json: its schema, what it never holds, and that the same work gives the same bytes."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from llmcompile.errors import CheckpointError
from llmcompile.packaging import manifest as records

if TYPE_CHECKING:
    from conftest import Run

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "ft"
MODEL = GOLDEN / "gpt2-a" / "hf"
VARIANTS = ("gpt2-a", "opt-b", "bloom-b", "gptj-a", "gptneox-a", "llama-gqa-a", "bert-a", "t5-b", "mt5-a")


def manifest_of(output: Path) -> dict[str, Any]:
    """The manifest as a program reads it."""
    found: dict[str, Any] = json.loads((output / "llmcompile.json").read_text())
    return found


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Where the artifact goes."""
    return tmp_path / "out"


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_manifest_follows_the_schema(variant: str, run: Run, output: Path) -> None:
    """What is written can be read, unchanged to the byte."""
    run("partition", "ft", "--model", GOLDEN / variant / "hf", "--no-validate", output)

    content = (output / "llmcompile.json").read_bytes()

    assert records.to_bytes(records.Manifest.model_validate_json(content)) == content


def test_a_validated_manifest_follows_the_schema(run: Run, output: Path) -> None:
    """Verdicts included."""
    run("partition", "ft", "--model", MODEL, "--dtype", "fp16", output)

    manifest = records.read(output / "llmcompile.json")

    assert manifest.validation is not None
    assert manifest.validation.passed


def test_the_published_schema_is_the_codes() -> None:
    """docs/manifest.schema.json is what schema() gives."""
    published = json.loads((ROOT / "docs" / "manifest.schema.json").read_text())

    assert published == json.loads(json.dumps(records.schema()))


def test_the_schema_is_closed() -> None:
    """No object of it takes keys it does not name."""
    schema = records.schema()

    objects = [schema, *schema["$defs"].values()]
    assert [item["title"] for item in objects if item.get("additionalProperties") is not False] == []


def test_the_manifest_lists_every_file_with_its_hash(run: Run, output: Path) -> None:
    """All files of the artifact but itself, hashed as they are on disk."""
    run("partition", "ft", "--model", MODEL, "--tp", 2, "--no-validate", output)

    listed = {record["path"]: (record["bytes"], record["sha256"]) for record in manifest_of(output)["files"]}

    found = {str(path.relative_to(output)): path.read_bytes() for path in output.rglob("*") if path.is_file()}
    del found["llmcompile.json"]
    assert listed == {name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in found.items()}


@pytest.mark.parametrize("variant", ["gpt2-a", "gptj-a"])
def test_the_manifest_has_the_sources_hashes(variant: str, run: Run, output: Path) -> None:
    """Of each file that was read, whether safetensors or a pickle."""
    model = GOLDEN / variant / "hf"
    run("partition", "ft", "--model", model, "--no-validate", output)

    listed = {record["path"]: record["sha256"] for record in manifest_of(output)["source"]["files"]}

    assert listed == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in model.iterdir()}


def test_the_manifest_has_no_time_and_no_place(run: Run, output: Path) -> None:
    """Neither a time stamp nor OUTPUT nor the machine's name is in it."""
    run("partition", "ft", "--model", MODEL, output)

    text = (output / "llmcompile.json").read_text()

    assert re.findall(r"\d{4}-\d\d-\d\d|\d\d:\d\d:\d\d", text) == []
    assert str(output) not in text


@pytest.mark.parametrize(
    ("first", "second"),
    [([], []), (["--workers", "1"], ["--workers", "4"]), (["--max-memory", "20GiB"], []), (["--json"], ["--quiet"])],
)
def test_the_same_work_gives_the_same_bytes(first: list[str], second: list[str], run: Run, tmp_path: Path) -> None:
    """Two runs, wherever and however fast, give the same artifact, manifest included."""
    run("partition", "ft", "--model", MODEL, "--tp", 2, "--dtype", "fp16", *first, tmp_path / "a")
    run("partition", "ft", "--model", MODEL, "--tp", 2, "--dtype", "fp16", *second, tmp_path / "b" / "c")

    one, two = tmp_path / "a", tmp_path / "b" / "c"
    files = [{p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()} for root in (one, two)]
    assert len(files[0]) > 30
    assert files[0] == files[1]


def test_other_options_are_another_manifest(run: Run, tmp_path: Path) -> None:
    """--pp changes no rank file and is recorded all the same."""
    run("partition", "ft", "--model", MODEL, "--no-validate", tmp_path / "a")
    run("partition", "ft", "--model", MODEL, "--no-validate", "--pp", 2, tmp_path / "b")

    assert (manifest_of(tmp_path / "a")["options"]["pp"], manifest_of(tmp_path / "b")["options"]["pp"]) == (1, 2)


def test_what_was_not_read_is_listed_with_its_reason(run: Run, output: Path) -> None:
    """BERT's embeddings are not stored, and the manifest says why."""
    run("partition", "ft", "--model", GOLDEN / "bert-a" / "hf", "--no-validate", output)

    ignored = {item["reason"]: item["tensors"] for item in manifest_of(output)["ignored"]}

    assert any("starts from hidden states" in reason for reason in ignored)


def test_libraries_that_touched_numbers_are_listed(run: Run, output: Path) -> None:
    """Numpy always; torch and transformers where the artifact was validated."""
    run("partition", "ft", "--model", MODEL, output)

    assert {"python", "numpy", "torch", "transformers"} <= manifest_of(output)["versions"].keys()


def test_a_library_that_touched_nothing_is_not_listed(run: Run, output: Path) -> None:
    """Safetensors converted without validation never meet torch."""
    run("partition", "ft", "--model", MODEL, "--no-validate", output)

    assert manifest_of(output)["versions"].keys() == {"python", "numpy"}


def test_a_manifest_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    """It names the path."""
    with pytest.raises(CheckpointError, match=r"llmcompile\.json"):
        records.read(tmp_path / "llmcompile.json")


def test_every_field_that_is_wrong_is_named(run: Run, output: Path) -> None:
    """Two wrong fields are two problems."""
    run("partition", "ft", "--model", MODEL, "--no-validate", output)
    path = output / "llmcompile.json"
    content = manifest_of(output)
    content["files"][0]["sha256"] = "short"
    content["surprise"] = 1
    path.write_text(json.dumps(content))

    with pytest.raises(CheckpointError) as caught:
        records.read(path)

    assert {problem.subject.rsplit(": ", 1)[1] for problem in caught.value.problems} == {"files.0.sha256", "surprise"}


@pytest.mark.parametrize("content", ["", "[", "[]", "null", '{"package": 1}', "[" * 100_000])
def test_a_record_that_is_none_is_refused(content: str, tmp_path: Path) -> None:
    """Nothing, half a list, a list, null, a package without one, and one too deep to read."""
    path = tmp_path / "llmcompile.json"
    path.write_text(content)

    with pytest.raises(CheckpointError):
        records.read_any(path)


def test_a_package_is_known_however_its_record_is_spaced(tmp_path: Path) -> None:
    """By its key, as JSON has it."""
    packaged = records.Packaged(target="lmi", version="1", runtime=None, kind="hf", options={}, rules={})
    manifest = records.PackageManifest(
        tool=records.Tool(version="1"), package=packaged, artifact=None, files=(), notes=()
    )
    path = tmp_path / "llmcompile.json"
    path.write_text(json.dumps(manifest.model_dump(mode="json"), separators=(",", ":")))

    assert records.read_any(path) == manifest
    with pytest.raises(CheckpointError, match="the manifest of a package for lmi"):
        records.read(path)
