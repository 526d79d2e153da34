"""`llmcompile verify`: every kind of tampering is found, by bytes alone and without torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Run

MODEL = Path(__file__).parents[1] / "golden" / "ft" / "gpt2-a" / "hf"
WEIGHT = "2-gpu/model.layers.0.mlp.dense_4h_to_h.weight.1.bin"


@pytest.fixture(scope="module")
def made(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact to copy."""
    output = tmp_path_factory.mktemp("made") / "out"
    assert run("partition", "ft", "--model", MODEL, "--tp", 2, "--no-validate", output).code == 0
    return output


@pytest.fixture
def artifact(made: Path, tmp_path: Path) -> Path:
    """An artifact to tamper with."""
    return Path(shutil.copytree(made, tmp_path / "artifact"))


def changed(artifact: Path) -> str:
    """One bit is another."""
    content = bytearray((artifact / WEIGHT).read_bytes())
    content[17] ^= 1
    (artifact / WEIGHT).write_bytes(content)
    return f"{WEIGHT}: sha256"


def missing(artifact: Path) -> str:
    """A file is gone."""
    (artifact / WEIGHT).unlink()
    return f"{WEIGHT}: missing"


def extra(artifact: Path) -> str:
    """A file came along."""
    (artifact / "2-gpu" / "model.extra.bin").write_bytes(b"x")
    return "2-gpu/model.extra.bin: not in the manifest"


def hidden(artifact: Path) -> str:
    """A hidden file came along."""
    (artifact / ".hidden").write_bytes(b"x")
    return ".hidden: not in the manifest"


def dangling(artifact: Path) -> str:
    """A symbolic link to nowhere came along."""
    (artifact / "2-gpu" / "link.bin").symlink_to("/nowhere")
    return "2-gpu/link.bin: not in the manifest"


def truncated(artifact: Path) -> str:
    """A file lacks its last byte."""
    (artifact / WEIGHT).write_bytes((artifact / WEIGHT).read_bytes()[:-1])
    return f"{WEIGHT}: 8191 bytes"


def grown(artifact: Path) -> str:
    """A file has a byte more."""
    (artifact / WEIGHT).write_bytes((artifact / WEIGHT).read_bytes() + b"x")
    return f"{WEIGHT}: 8193 bytes"


def config_edited(artifact: Path) -> str:
    """Somebody edited config.ini."""
    path = artifact / "2-gpu" / "config.ini"
    path.write_text(path.read_text().replace("head_num = 4", "head_num = 8"))
    return "2-gpu/config.ini: sha256"


def copy_edited(artifact: Path) -> str:
    """Somebody edited the copy of config.json."""
    path = artifact / "config.json"
    path.write_text(path.read_text().replace("gelu_new", "gelu_old"))
    return "config.json: sha256"


def became_a_folder(artifact: Path) -> str:
    """A folder lies where a file was."""
    (artifact / WEIGHT).unlink()
    (artifact / WEIGHT).mkdir()
    return f"{WEIGHT}: missing"


TAMPERINGS = (
    changed,
    missing,
    extra,
    hidden,
    dangling,
    truncated,
    grown,
    config_edited,
    copy_edited,
    became_a_folder,
)


def test_an_untouched_artifact_passes(artifact: Path, run: Run) -> None:
    """Exit code 0, and stdout says so."""
    result = run("verify", artifact)

    assert (result.code, "is what its manifest says" in result.out) == (0, True)


@pytest.mark.parametrize("tamper", TAMPERINGS, ids=[tamper.__name__ for tamper in TAMPERINGS])
def test_tampering_is_found(tamper: Callable[[Path], str], artifact: Path, run: Run) -> None:
    """Exit code 7; the file is named, with what was found and expected."""
    text = tamper(artifact)

    result = run("verify", artifact)

    assert (result.code, f"error: {text}" in result.err) == (7, True), result.err


def test_all_tampering_is_told_at_once(artifact: Path, run: Run) -> None:
    """Three changed files are three errors."""
    texts = [changed(artifact), extra(artifact), config_edited(artifact)]

    result = run("verify", artifact)

    assert [text for text in texts if f"error: {text}" not in result.err] == []


@pytest.mark.parametrize("content", ["", "{", '{"schema_version": 2}', "[]"])
def test_a_broken_manifest_is_refused(content: str, artifact: Path, run: Run) -> None:
    """Exit code 3, naming the manifest."""
    (artifact / "llmcompile.json").write_text(content)

    result = run("verify", artifact)

    assert (result.code, "llmcompile.json" in result.err) == (3, True)


def test_a_manifest_that_points_elsewhere_is_refused(artifact: Path, run: Run) -> None:
    """A path outside the artifact is no file of it."""
    path = artifact / "llmcompile.json"
    manifest = json.loads(path.read_text())
    manifest["files"][0]["path"] = "../../elsewhere"
    path.write_text(json.dumps(manifest))

    result = run("verify", artifact)

    assert result.code in (3, 7)
    assert "../../elsewhere" in result.err


def test_a_folder_without_a_manifest_is_refused(tmp_path: Path, run: Run) -> None:
    """Exit code 3, with what to pass."""
    result = run("verify", tmp_path)

    assert (result.code, "pass the artifact's folder" in result.err) == (3, True)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path, run: Run) -> None:
    """Exit code 3, naming the folder."""
    result = run("verify", tmp_path / "nowhere")

    assert (result.code, str(tmp_path / "nowhere") in result.err) == (3, True)


def test_deep_without_a_manifest_asks_for_the_model(artifact: Path, run: Run) -> None:
    """Exit code 2, naming --model."""
    (artifact / "llmcompile.json").unlink()

    result = run("verify", "--deep", artifact)

    assert (result.code, "--model" in result.err) == (2, True)


@pytest.mark.parametrize("flag", ["--model", "--atol", "--rtol"])
def test_what_only_deep_reads_is_refused_without_it(flag: str, artifact: Path, run: Run) -> None:
    """Exit code 2, and what to add."""
    result = run("verify", flag, "1", artifact)

    assert (result.code, f"error: {flag}: without --deep" in result.err) == (2, True)


def test_deep_says_when_the_model_is_not_here(artifact: Path, run: Run) -> None:
    """A folder the manifest names may be somewhere else: exit code 2, and what to add."""
    path = artifact / "llmcompile.json"
    manifest = json.loads(path.read_text())
    manifest["source"]["model"] = "gone/model"
    path.write_text(json.dumps(manifest))

    result = run("verify", "--deep", artifact)

    assert (result.code, "gone/model, a local folder that is not here" in result.err) == (2, True)


def test_what_is_inside_is_said(artifact: Path, run: Run) -> None:
    """Backend, family, source and degree, in a line."""
    result = run("verify", artifact)

    assert "FasterTransformer" in result.err
    assert "tp 2" in result.err


def test_deep_takes_the_model_from_the_manifest(artifact: Path, run: Run) -> None:
    """The manifest's source is what it is compared with."""
    result = run("verify", "--deep", artifact)

    assert (result.code, "all values close" in result.err) == (0, True)


def test_deep_on_a_folder_that_is_no_artifact_is_refused(tmp_path: Path, run: Run) -> None:
    """Exit code 3: neither kind of artifact."""
    result = run("verify", "--deep", "--model", MODEL, tmp_path)

    assert (result.code, "neither a <ranks>-gpu folder" in result.err) == (3, True)


@pytest.mark.parametrize(
    ("other", "text"),
    [
        ("bloom-a", "vocab_size: 101; expected 103"),
        ("gpt2-b", "vocab_size: 101; expected"),
        ("llama-a", "no section [llama]"),
        ("bert-a", "no section [bert]"),
        ("t5-a", "no section [encoder]"),
    ],
)
def test_deep_against_another_model_is_a_mismatch(other: str, text: str, artifact: Path, run: Run) -> None:
    """A model of another family or size is told from config.ini before anything is computed."""
    result = run("verify", "--deep", "--model", MODEL.parents[1] / other / "hf", artifact)

    assert (result.code, text in result.err) == (7, True), result.err


def test_a_given_tolerance_is_used(made: Path, run: Run) -> None:
    """--atol 0 --rtol 0 is met by no float arithmetic."""
    result = run("verify", "--deep", "--atol", 0, "--rtol", 0, made)

    assert (result.code, "given by --atol and --rtol" in result.err) == (7, True)


def test_bytes_are_verified_without_torch(made: Path) -> None:
    """A server that only verifies needs neither torch nor transformers."""
    code = (
        "import sys\nfrom llmcompile.cli import app\n"
        "try:\n    app(['verify', sys.argv[1]])\n"
        "finally:\n    print([m for m in ('torch', 'transformers') if m in sys.modules], file=sys.stderr)"
    )

    done = subprocess.run([sys.executable, "-c", code, str(made)], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr.splitlines()[-1]) == (0, "[]")


def test_verify_changes_nothing(artifact: Path, run: Run) -> None:
    """No file is added, and none is touched."""
    before = {path: path.stat().st_mtime_ns for path in artifact.rglob("*")}

    run("verify", "--deep", artifact)

    assert {path: path.stat().st_mtime_ns for path in artifact.rglob("*")} == before
