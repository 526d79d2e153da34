"""The text to calibrate on, as samples of equal length."""

from __future__ import annotations

import codecs
import hashlib
import json
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmcompile.checkpoint.hub import DATA_FILES, DATA_FLAG, Data
from llmcompile.errors import CheckpointError, OptionsError
from llmcompile.validation.reference import text_tokens
from llmcompile.validation.sample_text import SAMPLE

FLAG = DATA_FLAG
COLUMN_FLAG = "--calib-column"
COLUMN = "text"
"""Where a record's text is, unless it is said."""
_TOKENS = "input_ids"
"""Where a record's tokens are; a text beside them is not looked at, unless its column is said."""
_ROWS = 64
"""Records of a .parquet file that are held at once."""
_PARAGRAPH_BYTES = 64 << 10
"""A longer paragraph is cut, at a line's end where there is one: a file without blank lines is not read whole."""
_FORMATS = (
    'JSON objects with "text" or "input_ids", one a line, in a .jsonl file; a .parquet file with such columns; '
    "or a .txt file"
)


@dataclass(frozen=True, eq=False)
class Samples:
    """What the model is run on.

    Attributes:
        name: The data in words.
        sha256: Of the file's bytes, or of the built-in text.
        tokens: Shape (samples, length), int64.
    """

    name: str
    sha256: str
    tokens: Tensor


def read_samples(
    dataset: Data | None,
    model: Path,
    *,
    vocab: int,
    size: int,
    length: int,
    column: str = COLUMN,
    trust_remote_code: bool = False,
) -> Samples:
    """Join the data's texts to one sequence, and cut it into samples; the rest that fills none is left out.

    Args:
        dataset: The file; None for a built-in text.
        model: Where the tokenizer is; not needed for data that are tokens already.
        vocab: Tokens are in [0, vocab).
        size: Samples that are wanted, at most.
        length: Tokens of a sample; fewer where the data have no more in all.
        column: Key or column of each record's text.
        trust_remote_code: Run the tokenizer's own code.

    Raises:
        OptionsError: The file cannot be read, or holds something else.
        CheckpointError: There is no tokenizer, or it does not load.
    """
    if dataset is None:
        name, digest = "a built-in text", hashlib.sha256(SAMPLE.encode()).hexdigest()
        tokens = _encoded(None, iter([SAMPLE]), model, size * length, trust_remote_code)
    else:
        assert dataset.path is not None
        name, path, digest = dataset.label, dataset.path, _sha256(dataset.path)
        given = _token_lists(path, vocab, size * length, column)
        texts = _texts(path, column)
        tokens = _encoded(name, texts, model, size * length, trust_remote_code) if given is None else given
    if len(tokens) < 2:
        raise OptionsError(FLAG, f"{name} has {len(tokens)} tokens", "2 or more", "choose a longer text")
    length = min(length, len(tokens))
    count = min(size, len(tokens) // length)
    return Samples(name, digest, torch.tensor(tokens[: count * length], dtype=torch.int64).reshape(count, length))


def check_dataset(dataset: Path, column: str = COLUMN) -> None:
    """Look at the file's name and its first record.

    Raises:
        OptionsError: It is not what `read_samples` takes.
    """
    if dataset.is_dir():
        file = min((path for path in dataset.iterdir() if path.suffix in DATA_FILES), default=None)
        hint = "write the texts to a .txt file" if file is None else f"{FLAG} {shlex.quote(str(file))}"
        raise OptionsError(FLAG, f"{dataset}: a folder", _FORMATS, hint)
    if dataset.suffix not in DATA_FILES:
        raise OptionsError(FLAG, f"{dataset}", _FORMATS, f"write the texts to {dataset.stem}.txt")
    if dataset.suffix == ".txt" and column != COLUMN:
        found = f"{column} with {dataset.name}, a text without columns"
        raise OptionsError(COLUMN_FLAG, found, "records", f"drop {COLUMN_FLAG}")
    tokens = _token_lists(dataset, sys.maxsize, 1, column)
    if len(list(islice(_texts(dataset, column), 1)) if tokens is None else tokens) == 0:
        raise OptionsError(FLAG, f"{dataset} is empty", "a text", "choose another file")


def _encoded(data: str | None, texts: Iterator[str], model: Path, most: int, trust_remote_code: bool) -> list[int]:
    prompt = text_tokens(model, texts, most, trust_remote_code=trust_remote_code)
    if prompt.of_text and data is not None:
        raise OptionsError(FLAG, f"{data}: {prompt.reason}", "a text of 2 tokens or more", "choose another file")
    if prompt.tokens is None:
        hint = f"put the tokenizer's files beside config.json, or give {FLAG} a .jsonl file of input_ids"
        raise CheckpointError(str(model), prompt.reason, "a tokenizer, to calibrate on a text", hint)
    return [int(token) for token in prompt.tokens[0]]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with _opened(path) as stream:
        while len(piece := stream.read(1 << 20)) > 0:
            digest.update(piece)
    return digest.hexdigest()


def _opened(path: Path) -> Any:
    try:
        return path.open("rb")
    except OSError as error:
        raise OptionsError(FLAG, f"{path}: {error.strerror}", _FORMATS, "check the path") from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of each line, from 1."""
    with _opened(path) as stream:
        for number, line in enumerate(stream, start=1):
            try:
                yield number, line.decode()
            except UnicodeDecodeError as error:
                raise OptionsError(FLAG, f"{path}, line {number}: not UTF-8", _FORMATS, "convert the file") from error


def _texts(path: Path, column: str) -> Iterator[str]:
    """The paragraphs of a .txt file; the texts of one of records."""
    if path.suffix != ".txt":
        for number, record in _records(path, (column,)):
            if not isinstance(record.get(column), str):
                texts = [name for name, value in record.items() if isinstance(value, str)]
                there = "choose another file" if texts == [] else f"{COLUMN_FLAG} {shlex.quote(texts[0])}"
                found = f'{path}, record {number}: no "{column}" that is a string'
                found += "" if texts == [] else f", but {', '.join(texts[:8])}"
                raise OptionsError(FLAG, found, _FORMATS, there)
            yield record[column]
        return
    paragraph = ""
    for line in _short_lines(path):
        if paragraph != "" and (line.strip() == "" or len(paragraph) + len(line) > _PARAGRAPH_BYTES):
            yield paragraph
            paragraph = ""
        if line.strip() != "":
            paragraph += line
    if paragraph != "":
        yield paragraph


def _short_lines(path: Path) -> Iterator[str]:
    """Lines of a text, those that are longer than a paragraph may be in pieces."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    number = 1
    with _opened(path) as stream:
        while True:
            piece = stream.readline(_PARAGRAPH_BYTES)
            try:
                yield decoder.decode(piece, final=piece == b"")
            except UnicodeDecodeError as error:
                raise OptionsError(FLAG, f"{path}, line {number}: not UTF-8", _FORMATS, "convert the file") from error
            if piece == b"":
                return
            number += piece.endswith(b"\n")


def _records(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and content of each record, from 1; of a .parquet file only `columns`, or all where it lacks them."""
    if path.suffix == ".parquet":
        yield from _rows(path, columns)
        return
    for number, line in _lines(path):
        if line.strip() == "":
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise OptionsError(FLAG, f"{path}, line {number}: not JSON", _FORMATS, "check the file") from error
        if not isinstance(record, dict):
            raise OptionsError(FLAG, f"{path}, line {number}: no JSON object", _FORMATS, "check the file")
        yield number, record


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Records of a .parquet file, some at a time."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        hint = "pip install 'llmcompile[data]', or write the texts to a .txt file"
        raise OptionsError(FLAG, f"{path}: pyarrow, which reads it, is not installed", _FORMATS, hint) from error
    try:
        with _opened(path) as stream:
            file = parquet.ParquetFile(stream)
            wanted = [name for name in columns if name in file.schema_arrow.names]
            number = 0
            for batch in file.iter_batches(_ROWS, columns=wanted if len(wanted) > 0 else None):
                for record in batch.to_pylist():
                    number += 1
                    yield number, record
    except (pyarrow.ArrowException, OSError) as error:
        raise OptionsError(FLAG, f"{path}: {error}", "a .parquet file", "check the file") from error


def _token_lists(path: Path, vocab: int, most: int, column: str) -> list[int] | None:
    """The tokens of records that have them; None for texts, as records are where another column is asked for."""
    if path.suffix == ".txt" or column not in (COLUMN, _TOKENS):
        return None
    tokens: list[int] = []
    for number, record in _records(path, (_TOKENS,)):
        ids = record.get(_TOKENS)
        if ids is None and len(tokens) == 0:
            return None
        whole = isinstance(ids, list) and all(type(token) is int and 0 <= token < vocab for token in ids)
        if not whole:
            found = f'{path}, record {number}: "input_ids" are not whole numbers from 0 to {vocab - 1}'
            raise OptionsError(FLAG, found, _FORMATS, "use the model's own tokenizer")
        assert isinstance(ids, list)
        tokens += ids
        if len(tokens) >= most:
            break
    return tokens[:most]
