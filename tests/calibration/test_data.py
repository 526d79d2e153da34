"""Any file of texts or tokens becomes samples of equal length, or an error that says what it lacks."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

import models
from llmcompile.calibration.data import check_dataset, read_samples
from llmcompile.errors import CheckpointError, LlmCompileError, OptionsError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of whole words: a is 4, b is 5, .."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(json.dumps({"vocab_size": models.VOCAB}))
    models.add_tokenizer(folder)
    return folder


def write(folder: Path, name: str, content: str) -> Path:
    """A file of data."""
    path = folder / name
    path.write_text(content)
    return path


def tokens(dataset: Path | None, model: Path, size: int = 9, length: int = 3) -> list[list[int]]:
    """The samples of a file."""
    return read_samples(dataset, model, vocab=models.VOCAB, size=size, length=length).tokens.tolist()


def test_texts_are_joined_and_cut(model: Path, tmp_path: Path) -> None:
    """Paragraphs and records follow each other, whatever their length; the rest that fills no sample is left out."""
    text = write(tmp_path, "a.txt", "a b\nc\n\n\nd e f g\n")
    records = write(tmp_path, "a.jsonl", '{"text": "a b c d"}\n\n{"text": "e f g", "id": 3}\n')

    assert tokens(text, model) == tokens(records, model) == [[4, 5, 6], [7, 8, 9]]


def test_no_more_samples_than_asked_for(model: Path, tmp_path: Path) -> None:
    """--calib-size is a limit, and what comes after it is not even read."""
    data = write(tmp_path, "a.jsonl", '{"text": "a b c d e f"}\n{"text": "g h i"}\n{"text"')

    assert tokens(data, model, size=2) == [[4, 5, 6], [7, 8, 9]]


def test_tokens_need_no_tokenizer(tmp_path: Path) -> None:
    """input_ids are taken as they are."""
    data = write(tmp_path, "a.jsonl", '{"input_ids": [1, 2, 3, 4]}\n{"input_ids": [5, 6]}\n')

    assert tokens(data, tmp_path) == [[1, 2, 3], [4, 5, 6]]


def test_a_short_text_is_one_short_sample(model: Path, tmp_path: Path) -> None:
    """Two tokens are enough."""
    assert tokens(write(tmp_path, "a.txt", "a b"), model) == [[4, 5]]


def test_the_hash_is_that_of_the_file(model: Path, tmp_path: Path) -> None:
    """The manifest's figure can be compared with sha256sum."""
    data = write(tmp_path, "a.txt", "a b c")

    samples = read_samples(data, model, vocab=models.VOCAB, size=1, length=3)

    assert samples.sha256 == hashlib.sha256(b"a b c").hexdigest()
    assert samples.name == "a.txt"


def test_there_is_a_text_built_in(model: Path) -> None:
    """Without a file."""
    samples = read_samples(None, model, vocab=models.VOCAB, size=4, length=16)

    assert (samples.name, list(samples.tokens.shape)) == ("a built-in text", [4, 16])


@pytest.mark.parametrize(
    ("name", "content", "kind", "message"),
    [
        ("a.jsonl", '{"text": "a b"}\n[1]\n', OptionsError, "line 2: no JSON object"),
        ("a.jsonl", '{"text": "a b"}\n{"text"\n', OptionsError, "line 2: not JSON"),
        ("a.jsonl", '{"text": "a b"}\n{"body": "c"}\n', OptionsError, 'line 2: no "text"'),
        ("a.jsonl", '{"input_ids": [1, 2]}\n{"input_ids": [44]}\n', OptionsError, "whole numbers from 0 to 43"),
        ("a.jsonl", '{"input_ids": [1, true]}\n', OptionsError, "line 1"),
        ("a.txt", "a", OptionsError, "1 tokens"),
    ],
)
def test_what_is_wrong_is_said(
    name: str, content: str, kind: type[LlmCompileError], message: str, model: Path, tmp_path: Path
) -> None:
    """The file, the line and what was expected there."""
    with pytest.raises(kind) as caught:
        tokens(write(tmp_path, name, content), model)

    assert message in str(caught.value)


def test_bytes_that_are_no_text_are_said_so(model: Path, tmp_path: Path) -> None:
    """A file of another encoding."""
    (tmp_path / "a.txt").write_bytes(b"a b \xff\n")

    with pytest.raises(OptionsError, match="line 1: not UTF-8"):
        tokens(tmp_path / "a.txt", model)


def test_a_text_needs_a_tokenizer(tmp_path: Path) -> None:
    """The ways out are a tokenizer, or tokens."""
    with pytest.raises(CheckpointError, match="no tokenizer files") as caught:
        tokens(None, tmp_path)

    assert "input_ids" in caught.value.problems[0].hint


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [("a.csv", "a,b", "a.csv"), ("a.txt", " \n", "is empty"), ("a.jsonl", "", "is empty"), ("b.txt", None, "No such")],
)
def test_a_file_is_looked_at_before_any_work(name: str, content: Any, message: str, tmp_path: Path) -> None:
    """Its ending, whether it is there, and whether it holds anything."""
    if content is not None:
        write(tmp_path, name, content)

    with pytest.raises(OptionsError, match=message):
        check_dataset(tmp_path / name)
