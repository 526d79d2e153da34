"""`llmcompile package`, `llmcompile lint` and --package, as a person and as a program meet them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import serving_artifacts
from llmcompile.cli.package import from_environment

if TYPE_CHECKING:
    from conftest import Run


@pytest.fixture(scope="module")
def built(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A FasterTransformer artifact; not to be changed."""
    return serving_artifacts.make("ft", tmp_path_factory.mktemp("ft"), run)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaMA."""
    return serving_artifacts.source(tmp_path_factory.mktemp("model") / "tiny")


def test_a_package_is_made_and_said(built: Path, run: Run, tmp_path: Path) -> None:
    """The summary names the server and its release, what was written, taken and linted, and what to type next."""
    result = run("package", "lmi", built, tmp_path / "out")

    assert result.code == 0, result.err
    assert "is a package for LMI" in result.out
    assert "serving.properties" in result.out
    assert f"llmcompile lint {tmp_path / 'out'}" in result.out


def test_a_dry_run_shows_files_and_rules(built: Path, run: Run, tmp_path: Path) -> None:
    """Every generated file and every rule's finding; nothing is written."""
    result = run("package", "lmi", built, tmp_path / "out", "--dry-run")

    assert result.code == 0, result.err
    assert "write  serving.properties" in result.out
    assert "-[✓]" in result.out
    assert list(tmp_path.iterdir()) == []


def test_json_is_one_document(built: Path, run: Run, tmp_path: Path) -> None:
    """The package's record and every finding, on stdout."""
    result = run("package", "lmi", built, tmp_path / "out", "--json")

    document = json.loads(result.out)
    assert document["command"] == "package lmi"
    assert document["packages"] == [json.loads((tmp_path / "out" / "llmcompile.json").read_text())]
    assert {finding["status"] for finding in document["lint"]} <= {"ok", "note", "skipped"}


def test_quiet_says_nothing(built: Path, run: Run, tmp_path: Path) -> None:
    """Neither on stdout nor on stderr."""
    result = run("package", "lmi", built, tmp_path / "out", "--quiet")

    assert (result.code, result.out, result.err) == (0, "", "")


def test_an_older_release_is_named_by_either_flag(built: Path, run: Run, tmp_path: Path) -> None:
    """--lmi-version and --target-version are one flag."""
    records = []
    for number, flag in enumerate(("--lmi-version", "--target-version")):
        assert run("package", "lmi", built, tmp_path / str(number), flag, "0.24").code == 0
        records.append(json.loads((tmp_path / str(number) / "llmcompile.json").read_text())["package"]["version"])

    assert records == ["0.24", "0.24"]


def test_lint_says_what_it_found_by_rule(built: Path, run: Run, tmp_path: Path) -> None:
    """Also of what is right; the last line says that it will load."""
    run("package", "lmi", built, tmp_path / "out", "--quiet")

    result = run("lint", tmp_path / "out")

    assert result.code == 0, result.err
    assert "is a package for LMI" in result.out
    assert "-[✓] " in result.out
    assert "will load" in result.out


def test_lint_ends_with_7_and_the_rules_name(built: Path, run: Run, tmp_path: Path) -> None:
    """A rank's file that is missing; --json has the finding."""
    run("package", "lmi", built, tmp_path / "out", "--quiet")
    properties = tmp_path / "out" / "serving.properties"
    properties.write_text(properties.read_text().replace("tensor_parallel_degree=2", "tensor_parallel_degree=4"))

    said, document = run("lint", tmp_path / "out"), json.loads(run("lint", tmp_path / "out", "--json").out)

    assert said.code == 7
    failed = [finding["rule"] for finding in document["lint"] if finding["status"] == "failed"]
    assert len(failed) > 0
    assert all(f"error: {rule}: " in said.err for rule in failed)
    assert document["exit_code"] == 7


def test_lint_of_something_else_is_refused(run: Run, tmp_path: Path) -> None:
    """Exit code 3, with the names of the servers it knows."""
    result = run("lint", tmp_path)

    assert result.code == 3
    assert "one of lmi, triton, rayllm, ray-serve, sagemaker, tgi: llmcompile lint --target lmi" in result.err


def test_lint_shows_no_control_characters(run: Run, tmp_path: Path) -> None:
    """What a stranger's file holds is spelt out, so that it cannot write on the terminal."""
    (tmp_path / "serving.properties").write_text("engine=Py\x1b[2Jthon\noption.dtype=\x07\n")

    result = run("lint", tmp_path)

    assert "\x1b" not in result.out + result.err
    assert "\x07" not in result.out + result.err


@pytest.mark.parametrize("names", [("lmi",), ("lmi@0.24", "triton")])
def test_a_build_packages_at_once(names: tuple[str, ...], model: Path, run: Run, tmp_path: Path) -> None:
    """OUT is the artifact, OUT-NAME the package; each is whole."""
    words = [word for name in names for word in ("--package", name)]
    result = run("partition", "ft", "--model", model, "--tp", 2, "--no-validate", *words, tmp_path / "out")

    assert result.code == 0, result.err
    folders = ["out", *(f"out-{name.partition('@')[0]}" for name in names)]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(folders)
    assert all(run("verify", tmp_path / folder).code == 0 for folder in folders)


def test_a_builds_report_has_its_packages(model: Path, run: Run, tmp_path: Path) -> None:
    """One document, whose output is the artifact."""
    words = ("--package", "lmi", "--no-validate", "--json")
    result = run("partition", "ft", "--model", model, *words, tmp_path / "out")

    document = json.loads(result.out)
    assert document["output"] == str(tmp_path / "out")
    assert [package["package"]["target"] for package in document["packages"]] == ["lmi"]


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("nothing", 2, "--package: nothing; expected NAME or NAME@VERSION"),
        ("lmi@0.33", 4, "0.33 does not serve FasterTransformer files"),
        ("tgi", 4, "does not serve FasterTransformer files"),
    ],
)
def test_a_package_that_cannot_be_is_refused_before_the_build(
    name: str, code: int, words: str, model: Path, run: Run, tmp_path: Path
) -> None:
    """Nothing is built for hours and then lost."""
    result = run("partition", "ft", "--model", model, "--package", name, tmp_path / "out")

    assert result.code == code, result.err
    assert words in result.err
    assert list(tmp_path.iterdir()) == []


def test_two_packages_in_one_place_are_refused_before_the_build(model: Path, run: Run, tmp_path: Path) -> None:
    """The second would find the first in its way, hours later."""
    words = ("--package", "lmi", "--package", "lmi@0.23", tmp_path / "out")
    result = run("partition", "ft", "--model", model, *words)

    assert result.code == 2
    assert f"--package lmi: given 2 times, and {tmp_path / 'out-lmi'} is one folder" in result.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("word", ["no", "F", "off"])
def test_a_switch_is_off_by_the_words_that_typer_takes(word: str) -> None:
    """A build with --package reads a variable as the command itself does."""
    _, _, settings = from_environment("lmi", {"LLMCOMPILE_TAR": word})

    assert settings.tar is False


def test_what_a_package_needs_comes_from_the_environment(model: Path, run: Run, tmp_path: Path) -> None:
    """An option of the target by its variable; without it, the build is not begun."""
    words = ("build", "trtllm", "--model", model, "--package", "rayllm@0.5.0", tmp_path / "out")
    missing = run(*words)
    bucket = run(*words, env={"LLMCOMPILE_BUCKET_URI": "s3://bucket/model/"})

    assert missing.code == 2
    assert "LLMCOMPILE_BUCKET_URI or LLMCOMPILE_MODEL_LOCAL_PATH is not set" in missing.err
    assert f"package rayllm {tmp_path / 'out'} {tmp_path / 'out-rayllm'} --bucket-uri" in missing.err
    assert "LLMCOMPILE_BUCKET_URI" not in bucket.err


@pytest.mark.parametrize(
    ("variable", "value"), [("TAR", "perhaps"), ("MAX_BATCH_SIZE", "many"), ("MAX_BATCH_SIZE", "0")]
)
def test_a_variable_that_is_no_value_is_refused(
    variable: str, value: str, model: Path, run: Run, tmp_path: Path
) -> None:
    """By its name, before the build."""
    name = f"LLMCOMPILE_{variable}"
    words = ("partition", "ft", "--model", model, "--package", "lmi", tmp_path / "out")

    result = run(*words, env={name: value})

    assert result.code == 2
    assert f"{name}: '{value}'" in result.err
    assert list(tmp_path.iterdir()) == []


def test_a_package_takes_its_options_from_the_environment(model: Path, run: Run, tmp_path: Path) -> None:
    """A switch, a number and a list."""
    environment = {
        "LLMCOMPILE_TAR": "yes",
        "LLMCOMPILE_MAX_BATCH_SIZE": "3",
        "LLMCOMPILE_OPTION": "job_queue_size=7 minWorkers=1",
    }
    words = ("partition", "ft", "--model", model, "--no-validate", "--package", "lmi", tmp_path / "out")

    result = run(*words, env=environment)

    assert result.code == 0, result.err
    assert (tmp_path / "out-lmi" / "model.tar.gz").is_file()
    record = json.loads((tmp_path / "out-lmi" / "llmcompile.json").read_text())
    assert record["package"]["options"]["option"] == ["job_queue_size=7", "minWorkers=1"]
    assert record["package"]["options"]["max_batch_size"] == 3


def test_a_package_in_the_way_is_met_before_the_build(model: Path, run: Run, tmp_path: Path) -> None:
    """OUT-NAME exists: exit code 8, and OUT is not built."""
    (tmp_path / "out-lmi").mkdir()
    (tmp_path / "out-lmi" / "mine").write_text("mine")

    result = run("partition", "ft", "--model", model, "--package", "lmi", tmp_path / "out")

    assert result.code == 8
    assert not (tmp_path / "out").exists()


def test_a_package_that_fails_leaves_the_artifact(
    model: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hint says that it is finished, and how to package it by hand."""
    monkeypatch.setattr(
        "llmcompile.environment.free_disk", lambda path: 1 << 40 if not (tmp_path / "out").exists() else 0
    )
    monkeypatch.setattr("llmcompile.pipeline.packaging._on_one_disk", lambda options: False)

    result = run("partition", "ft", "--model", model, "--no-validate", "--package", "lmi", tmp_path / "out")

    assert result.code == 10
    again = f"llmcompile package lmi {tmp_path / 'out'} {tmp_path / 'out-lmi'}"
    assert f"{tmp_path / 'out'} is finished; package it by hand: {again}" in result.err
    assert (tmp_path / "out" / "llmcompile.json").exists()
    assert not (tmp_path / "out-lmi").exists()


def test_a_lowered_export_is_not_packaged(model: Path, run: Run, tmp_path: Path) -> None:
    """What is not compiled cannot be served, which is known before it is lowered."""
    words = ("--batch_size", 1, "--sequence_length", 16, "--via", "xla", "--stop-after", "lower", "--package", "lmi")

    result = run("export", "neuron", "--model", model, *words, tmp_path / "out")

    assert result.code == 4, result.err
    assert "not compiled yet" in result.err
    assert list(tmp_path.iterdir()) == []


def test_an_engine_is_packaged_at_once(run: Run, tmp_path: Path) -> None:
    """Built by the stand-in, in Triton's layout."""
    built = serving_artifacts.make("trtllm-engine", tmp_path / "work", run, "--package", "triton")

    assert (built.with_name(f"{built.name}-triton") / "tensorrt_llm" / "config.pbtxt").is_file()


def test_a_damaged_artifact_is_not_packaged(built: Path, run: Run, tmp_path: Path) -> None:
    """Exit code 3, with the file's name, before anything is written."""
    damaged = Path(shutil.copytree(built, tmp_path / "ft"))
    (damaged / "2-gpu" / "config.ini").write_text("")

    result = run("package", "lmi", damaged, tmp_path / "out")

    assert result.code == 3
    assert "config.ini: 0 bytes" in result.err
    assert not (tmp_path / "out").exists()
