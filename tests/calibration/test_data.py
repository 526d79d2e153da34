"""Any file of texts or tokens becomes samples of equal length, or an error that says what it lacks."""

from __future__ import annotations

import hashlib
import json
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

import models
from llmcompile.calibration.data import Samples, check_dataset, read_samples
from llmcompile.checkpoint.hub import Data
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


def read(dataset: Path | None, model: Path, *, size: int = 9, length: int = 3, column: str = "text") -> Samples:
    """`read_samples` of a local file."""
    data = None if dataset is None else Data(dataset.name, dataset)
    return read_samples(data, model, vocab=models.VOCAB, size=size, length=length, column=column)


def tokens(dataset: Path | None, model: Path, size: int = 9, length: int = 3) -> list[list[int]]:
    """The samples of a file."""
    return read(dataset, model, size=size, length=length).tokens.tolist()


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

    samples = read(data, model, size=1)

    assert samples.sha256 == hashlib.sha256(b"a b c").hexdigest()
    assert samples.name == "a.txt"


def test_there_is_a_text_built_in(model: Path) -> None:
    """Without a file."""
    samples = read(None, model, size=4, length=16)

    assert (samples.name, list(samples.tokens.shape)) == ("a built-in text", [4, 16])


@pytest.mark.parametrize(
    ("name", "content", "kind", "message"),
    [
        ("a.jsonl", '{"text": "a b"}\n[1]\n', OptionsError, "line 2: no JSON object"),
        ("a.jsonl", '{"text": "a b"}\n{"text"\n', OptionsError, "line 2: not JSON"),
        ("a.jsonl", '{"text": "a b"}\n{"body": "c"}\n', OptionsError, 'record 2: no "text"'),
        ("a.jsonl", '{"input_ids": [1, 2]}\n{"input_ids": [44]}\n', OptionsError, "whole numbers from 0 to 43"),
        ("a.jsonl", '{"input_ids": [1, true]}\n', OptionsError, "record 1"),
        ("a.txt", "a", OptionsError, "1 tokens"),
        ("a.jsonl", '{"text": ""}\n', OptionsError, "--calib-dataset: a.jsonl: the tokenizer gives no tokens"),
        ("a.jsonl", '{"text": "a \\ud800 b"}\n', OptionsError, "a.jsonl: the tokenizer does not take the text"),
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


def test_another_column_holds_the_text(model: Path, tmp_path: Path) -> None:
    """As most datasets of the hub have it."""
    data = write(tmp_path, "a.jsonl", '{"id": "1", "article": "a b c"}\n')

    assert read(data, model, column="article").tokens.tolist() == [[4, 5, 6]]


def test_a_column_that_is_asked_for_goes_before_tokens(model: Path, tmp_path: Path) -> None:
    """Records of both are read by the column that --calib-column names; without it, by their tokens."""
    data = write(tmp_path, "a.jsonl", '{"input_ids": [9, 9, 9], "article": "a b c", "text": "d e f"}\n')

    assert read(data, model, column="article").tokens.tolist() == [[4, 5, 6]]
    assert read(data, model).tokens.tolist() == read(data, model, column="input_ids").tokens.tolist() == [[9, 9, 9]]


def test_an_absent_column_is_answered_by_those_there_are(tmp_path: Path) -> None:
    """With the flag to type; only columns of texts are named."""
    data = write(tmp_path, "a.jsonl", '{"id": 1, "article": "a b c", "highlights": "d"}\n')

    with pytest.raises(OptionsError) as caught:
        check_dataset(data)

    assert 'no "text" that is a string, but article, highlights' in caught.value.problems[0].found
    assert caught.value.problems[0].hint == "--calib-column article"


@pytest.mark.parametrize(
    ("names", "hint"),
    [
        (("b.jsonl", "a.parquet", "a.md"), "--calib-dataset {}/a.parquet"),
        (("a.md",), "write the texts to a .txt file"),
    ],
)
def test_a_folder_is_not_data(tmp_path: Path, names: tuple[str, ...], hint: str) -> None:
    """It is called one, and a file of data in it is what to give."""
    for name in names:
        write(tmp_path, name, "a")

    with pytest.raises(OptionsError) as caught:
        check_dataset(tmp_path)

    assert caught.value.problems[0].found == f"{tmp_path}: a folder"
    assert caught.value.problems[0].hint == hint.format(tmp_path)


@pytest.mark.parametrize("line", ["a b é c d\n", "a b é c d "], ids=["lines", "one line"])
def test_a_text_without_blank_lines_is_not_read_whole(line: str, model: Path, tmp_path: Path) -> None:
    """Of 22 MB some pieces are read at a time, letters of several bytes in one piece; and one by the first look."""
    path = tmp_path / "a.txt"
    path.write_bytes(line.encode() * 2_000_000)
    tracemalloc.start()
    check_dataset(path)
    samples = read(path, model, size=4, length=10000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < 12 << 20
    assert samples.tokens.flatten()[:5].tolist() == [4, 5, 3, 6, 7]
    assert samples.tokens.flatten()[-5:].tolist() == [4, 5, 3, 6, 7]


def test_a_letter_cut_off_at_the_end_is_said(model: Path, tmp_path: Path) -> None:
    """Half of one is no UTF-8, wherever it stands."""
    (tmp_path / "a.txt").write_bytes(b"a b\n" + "é".encode()[:1])

    with pytest.raises(OptionsError, match="line 2: not UTF-8"):
        tokens(tmp_path / "a.txt", model)


def test_a_plain_text_has_no_columns(tmp_path: Path) -> None:
    """A column of one is refused by its own flag."""
    with pytest.raises(OptionsError, match=r"--calib-column: article with a\.txt, a text without columns"):
        check_dataset(write(tmp_path, "a.txt", "a b"), "article")


def parquet(folder: Path, name: str, **columns: list[Any]) -> Path:
    """A .parquet file in groups of two rows."""
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow has no wheel for this Python")
    from pyarrow import parquet as files

    files.write_table(pyarrow.table(columns), folder / name, row_group_size=2)
    return folder / name


def test_parquet_is_read_like_records(model: Path, tmp_path: Path) -> None:
    """Texts in rows, over several groups of rows."""
    data = parquet(tmp_path, "a.parquet", id=[1, 2, 3], text=["a b", "c", "d e f"])

    check_dataset(data)

    assert tokens(data, model) == [[4, 5, 6], [7, 8, 9]]


def test_parquet_may_hold_tokens(tmp_path: Path) -> None:
    """In a column of lists."""
    data = parquet(tmp_path, "a.parquet", input_ids=[[1, 2], [3, 4, 5, 6]])

    assert tokens(data, tmp_path) == [[1, 2, 3], [4, 5, 6]]


def test_the_columns_of_parquet_are_named(tmp_path: Path) -> None:
    """As those of records are."""
    with pytest.raises(OptionsError) as caught:
        check_dataset(parquet(tmp_path, "a.parquet", id=[1], article=["a"]))

    assert caught.value.problems[0].hint == "--calib-column article"


def test_parquet_that_is_none_is_said_so(tmp_path: Path) -> None:
    """Without a traceback of its reader's."""
    pytest.importorskip("pyarrow", reason="pyarrow has no wheel for this Python")

    with pytest.raises(OptionsError, match=r"a\.parquet: .*[Pp]arquet"):
        check_dataset(write(tmp_path, "a.parquet", "PAR1 and no more"))


def test_parquet_needs_its_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What to install is said."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)

    with pytest.raises(OptionsError) as caught:
        check_dataset(write(tmp_path, "a.parquet", "PAR1"))

    assert "pip install 'llmcompile[data]'" in caught.value.problems[0].hint
