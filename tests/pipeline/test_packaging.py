"""A package appears whole, after its lint, with the artifact's bytes and a record of all of it."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import serving_artifacts
from llmcompile.errors import (
    CheckpointError,
    LlmCompileError,
    MismatchError,
    OptionsError,
    OutputError,
    UnsupportedError,
)
from llmcompile.packaging.artifact import Artifact
from llmcompile.packaging.target import Finding, Package, Request, Serving, Target, flag
from llmcompile.packaging.tree import Tree
from llmcompile.pipeline import packaging
from llmcompile.pipeline.job import View, begin

if TYPE_CHECKING:
    from conftest import Run

LARGE = 1 << 20
"""Bytes from which a file may be linked."""
OTHER_DISK = Path("/dev/shm")
"""A file system in memory, which is none of those that tmp_path is on."""


@dataclass(frozen=True, kw_only=True)
class ShelfOptions:
    """What a shelf can be asked."""

    label: str = flag("books", "--label", help="What is on it.")
    tar: bool = flag(False, "--tar", help="One archive.")


def plan(artifact: Artifact, options: ShelfOptions, request: Request) -> Package:
    """The artifact's files under data/, a label, an empty folder, and a mark to be written last."""
    return Package(
        texts={"label.txt": f"{options.label}\n", "done": request.version},
        links={f"data/{path}": path for path in artifact.tree.files},
        folders=("empty/1",),
        archive="shelf.tar.gz" if options.tar else None,
        last=("done",),
        runtime="1.0",
        notes=("it is heavy",),
        next=("carry {output}",),
    )


def lint(tree: Tree, serving: Serving) -> Iterator[Finding]:
    """A label may not be called "wrong"."""
    label = tree.text("label.txt").strip()
    status: Any = "failed" if label == "wrong" else "ok"
    yield Finding("label", status, "label.txt", label, "another label", "give --label")


SHELF: Target[ShelfOptions] = Target(
    name="shelf",
    title="Shelf",
    help="Put an artifact on a shelf.",
    options=ShelfOptions,
    releases=("2", "1"),
    version_flag=None,
    serves={"ft": ("2", "1"), "hf": ("2",)},
    refusals={},
    plan=plan,
    rules={"label": "It is not called wrong."},
    detect=lambda tree: "label.txt" in tree.files,
    lint=lint,
    converts={"--from-pile": lambda text, name, options, request: Package(texts={"label.txt": text, "name": name})},
)


@pytest.fixture(autouse=True)
def shelf(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one target there is."""
    monkeypatch.setattr(packaging, "TARGETS", {"shelf": SHELF})


@pytest.fixture(scope="module")
def built(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A FasterTransformer artifact; not to be changed."""
    return serving_artifacts.make("ft", tmp_path_factory.mktemp("ft"), run)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A Hugging Face folder whose weights are large enough to be linked."""
    root = tmp_path / "model"
    root.mkdir()
    (root / "config.json").write_text('{"model_type": "llama"}')
    (root / "model.safetensors").write_bytes(bytes(range(256)) * (LARGE // 256))
    return root


def options(artifact: Path, output: Path, *, label: str = "books", tar: bool = False, **given: Any) -> Any:
    """What the command would make of its flags."""
    settings = ShelfOptions(label=label, tar=tar)
    return packaging.PackageOptions(target="shelf", artifact=artifact, output=output, settings=settings, **given)


def pack(asked: packaging.PackageOptions) -> packaging.Packed:
    """Plan and write."""
    report = begin()
    return packaging.make_package(packaging.prepare_package(asked, report), Quiet(), report)


class Quiet(View):
    """Shows nothing."""


def names(folder: Path) -> set[str]:
    """Every file of a folder."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_package_has_the_planned_files_and_a_record(built: Path, tmp_path: Path) -> None:
    """Generated ones, the artifact's, folders that are empty, and llmcompile.json."""
    pack(options(built, tmp_path / "out"))

    taken = {f"data/{name}" for name in names(built) if name != "llmcompile.json"}
    assert names(tmp_path / "out") == taken | {"label.txt", "done", "llmcompile.json"}
    assert (tmp_path / "out" / "empty" / "1").is_dir()
    assert (tmp_path / "out" / "label.txt").read_text() == "books\n"


def test_the_record_holds_the_artifacts_own(built: Path, tmp_path: Path) -> None:
    """What was packaged, for which release, the artifact's manifest, and what the lint said."""
    pack(options(built, tmp_path / "out", target_version="1"))

    record = json.loads((tmp_path / "out" / "llmcompile.json").read_text())
    assert record["artifact"] == json.loads((built / "llmcompile.json").read_text())
    assert record["package"] == {
        "target": "shelf",
        "version": "1",
        "runtime": "1.0",
        "kind": "ft",
        "options": {"label": "books", "tar": False},
        "rules": {"label": "ok"},
    }
    assert record["notes"] == ["it is heavy"]


def test_verify_knows_a_package(built: Path, run: Run, tmp_path: Path) -> None:
    """Every byte against the record; a changed one ends with 7."""
    pack(options(built, tmp_path / "out"))
    whole = run("verify", tmp_path / "out")
    (tmp_path / "out" / "label.txt").write_text("bools\n")
    changed = run("verify", tmp_path / "out")

    assert (whole.code, changed.code) == (0, 7)
    assert "label.txt: sha256" in changed.err


def test_the_numbers_of_a_package_are_those_of_its_artifact(built: Path, run: Run, tmp_path: Path) -> None:
    """`verify --deep` wants the artifact, and says so."""
    pack(options(built, tmp_path / "out"))

    result = run("verify", "--deep", tmp_path / "out")

    assert result.code == 2
    assert "expected an artifact" in result.err


def test_large_files_share_their_bytes_with_the_artifact(large: Path, tmp_path: Path) -> None:
    """Weights are linked or share their blocks; a small file, which people edit, is copied."""
    packed = pack(options(large, tmp_path / "out"))

    assert packed.taken["copied"] == 1
    assert packed.taken["linked"] + packed.taken["shared"] == 1
    weights = tmp_path / "out" / "data" / "model.safetensors"
    if packed.taken["linked"] == 1:
        assert weights.samefile(large / "model.safetensors")
    assert weights.read_bytes() == (large / "model.safetensors").read_bytes()
    assert not (tmp_path / "out" / "data" / "config.json").samefile(large / "config.json")


def test_copies_are_made_when_asked(large: Path, tmp_path: Path) -> None:
    """No file of the package is one of the artifact's."""
    packed = pack(options(large, tmp_path / "out", copy=True))

    assert packed.taken == {"copied": 2}
    assert os.stat(large / "model.safetensors").st_nlink == 1


def test_a_copy_is_compared_with_the_record(built: Path, tmp_path: Path) -> None:
    """A file of the right size and other bytes is found while it is copied; nothing appears."""
    damaged = Path(shutil.copytree(built, tmp_path / "ft"))
    path = damaged / "2-gpu" / "model.wte.weight.bin"
    path.write_bytes(path.read_bytes()[::-1])

    with pytest.raises(LlmCompileError, match=r"model\.wte\.weight\.bin: sha256"):
        pack(options(damaged, tmp_path / "out"))

    assert not (tmp_path / "out").exists()


def test_a_resumed_run_takes_what_is_verified(large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that ended before it was published goes on, and takes no file twice."""
    monkeypatch.setattr("llmcompile.writing.WorkDirectory.publish", lambda self: _stop())
    with pytest.raises(KeyboardInterrupt):
        pack(options(large, tmp_path / "out"))
    monkeypatch.undo()
    monkeypatch.setattr(packaging, "TARGETS", {"shelf": SHELF})

    packed = pack(options(large, tmp_path / "out", resume=True))

    assert packed.taken == {}
    assert names(tmp_path / "out") >= {"data/model.safetensors", "done"}


def _stop() -> None:
    raise KeyboardInterrupt


def test_the_last_files_are_written_last(large: Path, tmp_path: Path) -> None:
    """A commit marker follows everything it vouches for."""
    pack(options(large, tmp_path / "out"))

    mark = (tmp_path / "out" / "done").stat().st_mtime_ns
    others = [path for path in (tmp_path / "out").rglob("*") if path.name not in ("done", "llmcompile.json")]
    assert all(path.stat().st_ctime_ns <= mark for path in others if path.is_file())


def test_the_lint_before_writing_sees_the_record(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """llmcompile.json is in the planned package, with what it is for, as it will be in the written one."""
    seen = []

    def look(tree: Tree, serving: Serving) -> Iterator[Finding]:
        seen.append(json.loads(tree.text("llmcompile.json")))
        return iter(())

    monkeypatch.setattr(packaging, "TARGETS", {"shelf": Target(**{**vars(SHELF), "lint": look})})
    packaging.prepare_package(options(built, tmp_path / "out"), begin())

    assert [(record["package"]["kind"], record["artifact"]["backend"]) for record in seen] == [("ft", "ft")]


def test_a_failed_rule_is_found_before_anything_is_written(built: Path, tmp_path: Path) -> None:
    """Exit code 7, by the rule's name; OUTPUT does not appear, nor a work directory."""
    planned = packaging.prepare_package(options(built, tmp_path / "out", label="wrong"), begin())

    with pytest.raises(MismatchError, match=r"label: label\.txt: wrong; expected another label"):
        packaging.refuse_package(planned)

    assert list(tmp_path.iterdir()) == []


def test_an_output_that_exists_is_not_replaced(built: Path, tmp_path: Path) -> None:
    """Only with --force, and only what is ours."""
    pack(options(built, tmp_path / "out"))

    with pytest.raises(OutputError, match="exists"):
        pack(options(built, tmp_path / "out", label="new"))
    pack(options(built, tmp_path / "out", label="new", force=True))

    assert (tmp_path / "out" / "label.txt").read_text() == "new\n"


def test_an_output_inside_the_artifact_is_refused(built: Path) -> None:
    """It would become part of what it was made from."""
    with pytest.raises(OptionsError, match="inside the artifact"):
        pack(options(built, built / "out"))


def test_a_kind_a_target_does_not_serve_is_refused(built: Path, tmp_path: Path) -> None:
    """A release that serves another kind only."""
    model = built.parent / "org--tiny-llama"

    with pytest.raises(UnsupportedError, match="1 does not serve a Hugging Face checkpoint"):
        pack(options(model, tmp_path / "out", target_version="1"))


def test_a_package_is_not_packaged_again(built: Path, tmp_path: Path) -> None:
    """It is no artifact; the message names what it is."""
    pack(options(built, tmp_path / "out"))

    with pytest.raises(LlmCompileError, match="a package already, for shelf"):
        pack(options(tmp_path / "out", tmp_path / "again"))


def test_an_archive_has_its_members_at_the_root(built: Path, tmp_path: Path) -> None:
    """All files of the package and its record, and the empty folder; beside it the record of the archive."""
    pack(options(built, tmp_path / "plain"))
    pack(options(built, tmp_path / "out", tar=True))

    assert names(tmp_path / "out") == {"shelf.tar.gz", "llmcompile.json"}
    with tarfile.open(tmp_path / "out" / "shelf.tar.gz") as archive:
        members = archive.getmembers()
    assert {member.name for member in members if member.isfile()} == names(tmp_path / "plain")
    assert "empty/1" in {member.name for member in members if member.isdir()}
    record = json.loads((tmp_path / "out" / "llmcompile.json").read_text())
    assert [file["path"] for file in record["files"]] == ["shelf.tar.gz"]


def test_an_archive_is_the_same_every_time(built: Path, tmp_path: Path) -> None:
    """No time, no owner, no order of the file system."""
    pack(options(built, tmp_path / "one", tar=True))
    os.utime(built / "config.json", (1, 1))
    pack(options(built, tmp_path / "two", tar=True))

    one, two = ((tmp_path / name / "shelf.tar.gz").read_bytes() for name in ("one", "two"))
    assert one == two
    assert gzip.decompress(one)[257:262] == b"ustar"


def test_two_runs_give_the_same_package(built: Path, tmp_path: Path) -> None:
    """Byte for byte, the record included."""
    for name in ("one", "two"):
        pack(options(built, tmp_path / name))

    files = names(tmp_path / "one")
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in files)


def test_another_systems_file_is_converted(tmp_path: Path) -> None:
    """Its text and name are all that is read; the record has no artifact."""
    (tmp_path / "pile.txt").write_text("old books")
    convert = ("--from-pile", tmp_path / "pile.txt")
    asked = packaging.PackageOptions(
        target="shelf", artifact=None, output=tmp_path / "out", settings=ShelfOptions(), convert=convert
    )

    manifest = pack(asked).manifest

    assert (tmp_path / "out" / "name").read_text() == "pile.txt"
    assert (manifest.artifact, manifest.package.kind) == (None, "conversion")


@pytest.mark.parametrize("name", ["../out", "/tmp/x", "a//b", "a/./b", "llmcompile.json", "a\nb", ""])
def test_no_file_is_written_elsewhere(name: str, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that leaves the package, or takes the record's place, is refused."""
    monkeypatch.setattr(
        packaging,
        "TARGETS",
        {
            "shelf": Target(
                **{
                    **vars(SHELF),
                    "plan": lambda artifact, options, request: Package(texts={"label.txt": "", name: "x"}),
                }
            )
        },
    )

    with pytest.raises(OptionsError, match="a file called"):
        pack(options(built, tmp_path / "out"))


def test_a_full_disk_is_met_before_the_work(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies are counted, links are not."""
    monkeypatch.setattr("llmcompile.environment.free_disk", lambda path: 100)

    shared = packaging.prepare_package(options(built, tmp_path / "out"), begin())
    copied = packaging.prepare_package(options(built, tmp_path / "out", copy=True), begin())

    assert [type(error).__name__ for error in shared.errors] == []
    assert [type(error).__name__ for error in copied.errors] == ["ResourceError"]


@pytest.mark.skipif(not OTHER_DISK.is_dir(), reason="there is no second file system")
def test_an_archive_of_copies_needs_room_for_both(large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of another disk are copied, and lie beside the archive they are packed into."""
    monkeypatch.setattr("llmcompile.environment.free_disk", lambda path: LARGE * 3 // 2)

    shared = packaging.prepare_package(options(large, tmp_path / "out", tar=True), begin())
    copied = packaging.prepare_package(options(large, OTHER_DISK / f"{tmp_path.name}-out", tar=True), begin())

    assert [type(error).__name__ for error in shared.errors] == []
    assert [type(error).__name__ for error in copied.errors] == ["ResourceError"]


def test_a_file_of_the_artifact_does_not_give_way_silently(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is called like a file of the package is named, with what to do."""
    made = Package(texts={"config.json": "{}"}, links={"config.json": "config.json"})
    target = Target(**{**vars(SHELF), "plan": lambda artifact, options, request: made})
    monkeypatch.setattr(packaging, "TARGETS", {"shelf": target})

    with pytest.raises(CheckpointError, match=r"config\.json: config\.json of the artifact"):
        pack(options(large, tmp_path / "out"))


def test_lint_refuses_a_release_that_there_is_not(built: Path, tmp_path: Path) -> None:
    """Its rules would be passed over; a patch release is its release."""
    pack(options(built, tmp_path / "out"))

    packaging.lint(tmp_path / "out", Serving("2.1"), None)
    with pytest.raises(UnsupportedError, match=r"--target-version: 3; expected 2, 1 of Shelf"):
        packaging.lint(tmp_path / "out", Serving("3"), None)


def test_lint_knows_the_target_by_its_files(built: Path, tmp_path: Path) -> None:
    """And says what it found, by rule; an archive, and a folder with one, are linted like the folder packed into it."""
    pack(options(built, tmp_path / "out"))
    pack(options(built, tmp_path / "tar", tar=True))

    for path in (tmp_path / "out", tmp_path / "tar", tmp_path / "tar" / "shelf.tar.gz"):
        known, findings = packaging.lint(path, Serving(), None)
        assert [found.name for found in known] == ["shelf"]
        assert [(finding.rule, finding.status) for finding in findings] == [("label", "ok")]


def test_lint_refuses_what_no_server_knows(tmp_path: Path) -> None:
    """With the names of the servers that can be asked for."""
    with pytest.raises(LlmCompileError) as raised:
        packaging.lint(tmp_path, Serving(), None)

    assert raised.value.problems[0].hint.endswith("llmcompile lint --target shelf " + str(tmp_path))
