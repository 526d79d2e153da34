"""The compile cache gives back what was compiled, and nothing that is damaged, half-written or another's."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import neuronx_cc_standin as standin
from llmcompile.errors import OptionsError
from llmcompile.exporters.neuron.cache import Cache, Entry, compiled_name, dump, module_name

VERSION = "2.21.33363.0+82129205"
HLO = b"a graph"
FLAGS = ("--framework=XLA", "--target=trn1")
FOLDER = "neuronxcc-2.21.33363.0+82129205"


@pytest.fixture
def neff(tmp_path: Path) -> Path:
    """An executable of `VERSION`."""
    path = tmp_path / "made.neff"
    path.write_bytes(standin.neff(HLO, {"--target": "trn1"}, VERSION))
    return path


@pytest.fixture
def entry(tmp_path: Path, neff: Path) -> Path:
    """The folder of a whole entry in tmp_path/cache."""
    assert Cache(tmp_path / "cache", VERSION).put(HLO, FLAGS, neff) is None
    [folder] = [path for path in (tmp_path / "cache" / FOLDER).iterdir() if not path.name.startswith(".")]
    return folder


def test_an_entry_lies_as_neurons_own_do(entry: Path, neff: Path) -> None:
    """Two hashes in the folder's name; four files, the last of them empty."""
    key = hashlib.sha256(HLO + b"--framework=XLA--target=trn1").hexdigest()[:20]
    flags = hashlib.md5(b'["--framework=XLA", "--target=trn1"]').hexdigest()[:8]

    assert entry.name == module_name(HLO, FLAGS) == f"MODULE_{key}+{flags}"
    assert sorted(path.name for path in entry.iterdir()) == [
        "compile_flags.json",
        "model.done",
        "model.hlo_module.pb",
        "model.neff",
    ]
    assert (entry / "model.hlo_module.pb").read_bytes() == HLO
    assert json.loads((entry / "compile_flags.json").read_text()) == list(FLAGS)
    assert (entry / "model.neff").read_bytes() == neff.read_bytes()
    assert (entry / "model.done").read_bytes() == b""


def test_flags_are_hashed_as_newer_releases_do() -> None:
    """MODULE_5318517502296525832+e30acd3a, whose only flag is the target, is from a public log of neuronx-cc 2.22."""
    assert module_name(HLO, ["--target=trn1"]).endswith("+e30acd3a")


def test_what_was_put_is_got(entry: Path, neff: Path, tmp_path: Path) -> None:
    """The same bytes, by another object, verified."""
    found = Cache(tmp_path / "cache", VERSION).get(HLO, FLAGS, tmp_path / "got.neff")

    assert found is not None
    assert found.compiler_version == "2.21.33363.0"
    assert (tmp_path / "got.neff").read_bytes() == neff.read_bytes()


@pytest.mark.parametrize(
    ("hlo", "flags", "version"),
    [
        (b"another", FLAGS, VERSION),
        (HLO, FLAGS[:1], VERSION),
        (HLO, FLAGS[::-1], VERSION),
        (HLO, FLAGS, "2.22.12471.0+b4a00d10"),
    ],
)
def test_another_graph_flag_or_version_is_not_found(
    hlo: bytes, flags: tuple[str, ...], version: str, entry: Path, tmp_path: Path
) -> None:
    """Each is part of the key."""
    assert Cache(tmp_path / "cache", version).get(hlo, flags, tmp_path / "got.neff") is None
    assert not (tmp_path / "got.neff").exists()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model.done", None),
        ("model.hlo_module.pb", None),
        ("model.hlo_module.pb", b"another graph of the same name"),
        ("compile_flags.json", b"[]"),
        ("compile_flags.json", None),
        ("model.neff", None),
        ("model.neff", b""),
        ("model.neff", b"no NEFF"),
        ("model.neff", standin.neff(HLO, {"--target": "trn1"}, VERSION)[:-1]),
        ("model.neff", standin.neff(HLO, {"--target": "trn1"}, VERSION)[:-1] + b"x"),
        ("model.neff", standin.neff(HLO, {"--target": "trn1"}, "2.15.128.0")),
    ],
)
def test_a_damaged_entry_is_none_and_is_replaced(
    file: str, content: bytes | None, entry: Path, neff: Path, tmp_path: Path
) -> None:
    """Absent, cut, changed or made by another compiler: compiled again, never used."""
    cache = Cache(tmp_path / "cache", VERSION)
    (entry / file).unlink()
    if content is not None:
        (entry / file).write_bytes(content)

    assert cache.get(HLO, FLAGS, tmp_path / "got.neff") is None
    assert list(tmp_path.glob("got*")) == []

    assert cache.put(HLO, FLAGS, neff) is None
    assert cache.get(HLO, FLAGS, tmp_path / "got.neff") is not None


def test_a_remembered_failure_is_not_replayed(entry: Path, tmp_path: Path) -> None:
    """The vendor's wrapper writes model.log and no model.done, and never tries again."""
    (entry / "model.done").unlink()
    (entry / "model.log").write_text("Got a cached failed neff")

    assert Cache(tmp_path / "cache", VERSION).get(HLO, FLAGS, tmp_path / "got.neff") is None


def test_what_a_killed_process_left_is_in_nobodys_way(entry: Path, neff: Path, tmp_path: Path) -> None:
    """Half an entry beside the entry, and its lock file."""
    (entry / "model.done").unlink()
    for word in ("new", "old"):
        half = entry.with_name(f".{entry.name}.{word}")
        half.mkdir()
        (half / "model.neff").write_bytes(b"half")
    (entry.with_name(f".{entry.name}.lock")).touch()
    cache = Cache(tmp_path / "cache", VERSION)

    claim = cache.claim(HLO, FLAGS)

    assert claim is not None
    assert cache.put(HLO, FLAGS, neff) is None
    claim.release()
    assert sorted(path.name for path in entry.parent.iterdir()) == [f".{entry.name}.lock", entry.name]


def test_one_process_at_a_time_has_a_claim(tmp_path: Path) -> None:
    """Another gets it when the first is done with it; other graphs are free."""
    cache = Cache(tmp_path, VERSION)
    first = cache.claim(HLO, FLAGS)
    assert first is not None

    assert cache.claim(HLO, FLAGS) is None
    assert cache.claim(b"another", FLAGS) is not None
    first.release()
    first.release()
    assert cache.claim(HLO, FLAGS) is not None


def test_a_dead_process_has_no_claim(tmp_path: Path) -> None:
    """The kernel lets go of what was killed; no lock has to be removed by hand."""
    call = (
        "import os, sys; from pathlib import Path; from llmcompile.exporters.neuron.cache import Cache; "
        f"claim = Cache(Path({str(tmp_path)!r}), {VERSION!r}).claim({HLO!r}, {FLAGS!r}); "
        "print(claim is not None, flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen([sys.executable, "-c", call], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == b"True\n"
    cache = Cache(tmp_path, VERSION)
    held = cache.claim(HLO, FLAGS)

    process.kill()
    process.wait()
    process.stdout.close()
    process.stdin.close()

    assert held is None
    assert cache.claim(HLO, FLAGS) is not None


def test_a_cache_that_cannot_be_written_to_can_be_read(entry: Path, neff: Path, tmp_path: Path) -> None:
    """A claim on it holds nothing, and what is put into it is let go, with the reason."""
    cache = Cache(tmp_path / "cache", VERSION)
    for blocked in (f".{module_name(b'new', FLAGS)}.lock", f".{entry.name}.lock"):
        # As root nothing is read-only; a folder in the place of a file cannot be opened for writing by anyone.
        (entry.parent / blocked).unlink(missing_ok=True)
        (entry.parent / blocked).mkdir()
    (entry.parent / f".{module_name(b'new', FLAGS)}.new").write_text("a file where a folder should be")

    assert cache.claim(HLO, FLAGS) is not None
    assert cache.get(HLO, FLAGS, tmp_path / "got.neff") is not None
    assert cache.claim(b"new", FLAGS) is not None
    reason = cache.put(b"new", FLAGS, neff)
    assert reason is not None
    assert reason.endswith(": Not a directory")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_read_only_cache_is_read(entry: Path, tmp_path: Path) -> None:
    """As the volumes of SageMaker are."""
    entry.parent.chmod(0o555)
    try:
        cache = Cache(tmp_path / "cache", VERSION)

        assert cache.claim(HLO, FLAGS) is not None
        assert cache.get(HLO, FLAGS, tmp_path / "got.neff") is not None
    finally:
        entry.parent.chmod(0o755)


@pytest.mark.parametrize("root", ["s3://bucket/cache", "https://host/cache"])
def test_a_url_is_refused(root: str) -> None:
    """NEURON_COMPILE_CACHE_URL may be one, and would be made as a folder called s3:."""
    with pytest.raises(OptionsError, match=r"--compile-cache: .*: a URL; expected a folder"):
        Cache(Path(root), VERSION)


def test_a_file_is_refused(tmp_path: Path) -> None:
    """In the place of a folder."""
    (tmp_path / "cache").touch()

    with pytest.raises(OptionsError, match="not a folder"):
        Cache(tmp_path / "cache", VERSION)


def test_a_dump_is_a_cache_of_its_entries(neff: Path, tmp_path: Path) -> None:
    """Without locks, and read back as any other."""
    entries = [Entry(HLO, FLAGS, neff), Entry(b"another", FLAGS, neff)]

    made = dump(tmp_path / "compiled", VERSION, entries)

    assert [path.relative_to(tmp_path / "compiled" / FOLDER).as_posix() for path in made] == [
        f"{module_name(HLO, FLAGS)}/model.neff",
        f"{module_name(b'another', FLAGS)}/model.neff",
    ]
    assert len(list((tmp_path / "compiled").rglob("*"))) == 1 + 2 * 5
    assert Cache(tmp_path / "compiled", VERSION).get(b"another", FLAGS, tmp_path / "got.neff") is not None


def test_the_older_layout_names_a_file_by_its_graph() -> None:
    """Twenty digits of sha256."""
    assert compiled_name(HLO) == hashlib.sha256(b"a graph").hexdigest()[:20] + ".neff"
