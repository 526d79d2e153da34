"""A dataset of the hub gives a file to calibrate on, or an error that says what to do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import models
from hub_server import COMMIT, NO_ENTRY, NO_REPOSITORY, NO_REVISION, UNAVAILABLE, Fault, Hub
from llmcompile.checkpoint.hub import locate_data
from llmcompile.errors import CheckpointError

SCRIPT = """
import json, sys
from llmcompile.checkpoint import hub
from llmcompile.errors import LlmCompileError

asked = json.load(sys.stdin)
try:
    found = hub.locate_data(asked["dataset"], token=None, download=asked["download"])
    answer = {"label": found.label, "content": None if found.path is None else found.path.read_text()}
except LlmCompileError as error:
    (problem,) = error.problems
    answer = {"error": type(error).__name__, "text": str(error), "hint": problem.hint}
print(json.dumps(answer))
"""


def dataset(*names: str) -> Hub:
    """A repository of data, each file of which holds its name."""
    return Hub({name: name.encode() for name in names}, repo="org/data", kind="datasets")


def ask(hub: Hub, home: Path, name: str = "org/data", *, download: bool = True, **environment: str) -> dict[str, Any]:
    """Call `locate_data` in a process that takes `hub` for the Hugging Face hub."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT],
        input=json.dumps({"dataset": name, "download": download}),
        env={**hub.environment(home), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


@pytest.mark.parametrize(
    ("names", "file"),
    [
        (("README.md", "data/a.txt", "data/b.jsonl"), "data/b.jsonl"),
        (("test-00.parquet", "train-00001.parquet", "train-00000.parquet"), "train-00000.parquet"),
        (("a.jsonl", "train.parquet"), "train.parquet"),
        (("LICENSE.txt", "x.parquet"), "x.parquet"),
    ],
)
def test_the_likeliest_file_is_taken(names: tuple[str, ...], file: str, tmp_path: Path) -> None:
    """One for training before others, then records before texts; one shard, and nothing else is downloaded."""
    with dataset(*names) as hub:
        answer = ask(hub, tmp_path / "home")

    assert answer == {"label": f"org/data@{COMMIT}:{file}", "content": file}
    assert hub.downloaded == [file]


def test_a_file_is_taken_by_its_name(tmp_path: Path) -> None:
    """Behind a colon, at a revision."""
    with dataset("train.jsonl", "sub/valid.jsonl") as hub:
        answer = ask(hub, tmp_path / "home", "org/data@main:sub/valid.jsonl")

    assert answer["content"] == "sub/valid.jsonl"


def test_a_look_downloads_nothing(tmp_path: Path) -> None:
    """The name of the file is known all the same."""
    with dataset("train.jsonl") as hub:
        answer = ask(hub, tmp_path / "home", download=False)

    assert (answer["label"], answer["content"], hub.downloaded) == (f"org/data@{COMMIT}:train.jsonl", None, [])


def test_what_is_cached_needs_no_hub(tmp_path: Path) -> None:
    """Once it was downloaded, HF_HUB_OFFLINE finds it."""
    with dataset("train.jsonl", "valid.jsonl") as hub:
        ask(hub, tmp_path / "home")
        asked = len(hub.requests)
        answer = ask(hub, tmp_path / "home", HF_HUB_OFFLINE="1")

    assert (answer["label"], len(hub.requests)) == (f"org/data@{COMMIT}:train.jsonl", asked)


@pytest.mark.parametrize(
    ("name", "fault", "error", "words"),
    [
        ("org/other", None, "CheckpointError", "no such repository"),
        ("org/data@v2", NO_REVISION, "CheckpointError", "no such revision"),
        ("org/data", NO_REPOSITORY, "CheckpointError", "--calib-dataset"),
        ("org/data", UNAVAILABLE, "NetworkError", "503"),
        ("org/data:valid.jsonl", None, "CheckpointError", "one of train.jsonl"),
        ("org/data:README.md", None, "CheckpointError", "no file of data"),
    ],
)
def test_what_fails_is_said(name: str, fault: Fault | None, error: str, words: str, tmp_path: Path) -> None:
    """In words about data, not about a model."""
    with dataset("train.jsonl", "README.md") as hub:
        hub.listing_fault = fault
        answer = ask(hub, tmp_path / "home", name)

    assert answer["error"] == error
    assert words in answer["text"] + answer["hint"]
    assert "--model" not in answer["text"] + answer["hint"]


def test_a_repository_without_data_is_refused(tmp_path: Path) -> None:
    """By the names of what it holds."""
    with dataset("README.md", "a.zip") as hub:
        answer = ask(hub, tmp_path / "home")

    assert answer["error"] == "CheckpointError"
    assert "README.md, a.zip" in answer["text"]


def test_a_file_that_is_gone_is_said(tmp_path: Path) -> None:
    """Listed and not served."""
    with dataset("train.jsonl") as hub:
        hub.file_faults["train.jsonl"] = NO_ENTRY
        answer = ask(hub, tmp_path / "home")

    assert answer["error"] in ("NetworkError", "CheckpointError")


@pytest.mark.parametrize("name", ["a.txt", "folder/a.jsonl", "/no/such/file"])
def test_a_files_name_is_no_hub_id(name: str) -> None:
    """A path that ends like data is one, whether it is there or not; `check_dataset` says that it is not."""
    found = locate_data(name, token=None)

    assert (found.label, found.path) == (Path(name).name, Path(name))


@pytest.mark.parametrize("name", ["../x/y", "org/na me", "a/b/c", f"{'b' * 300} c", "~no-such-user/x", "a\0"])
def test_what_is_neither_is_refused(name: str) -> None:
    """Before the hub is asked."""
    with pytest.raises(CheckpointError, match="no such file"):
        locate_data(name, token=None)


def test_a_model_is_calibrated_on_a_dataset_of_the_hub(tmp_path: Path) -> None:
    """From the command to the manifest, which names repository, commit and file."""
    model = models.save("llama", tmp_path / "model", dtype="bfloat16")
    rows = "".join(json.dumps({"input_ids": list(range(4, 24))}) + "\n" for _ in range(4))
    command = ["build", "trtllm", "--stop-after", "checkpoint", "-m", str(model), "--quantization", "fp8"]
    command += ["--calib-dataset", "org/data", "--calib-seq-len", "16", "--no-validate", str(tmp_path / "out")]

    with Hub({"train.jsonl": rows.encode()}, repo="org/data", kind="datasets") as hub:
        done = subprocess.run(
            [sys.executable, "-m", "llmcompile", *command],
            env=hub.environment(tmp_path / "home"),
            capture_output=True,
            text=True,
            timeout=120,
        )

    assert done.returncode == 0, done.stderr
    calibration = json.loads((tmp_path / "out" / "llmcompile.json").read_text())["calibration"]
    assert (calibration["data"], calibration["samples"]) == (f"org/data@{COMMIT}:train.jsonl", 5)
