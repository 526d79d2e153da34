"""serving.properties: our reader is Java's, and what we write is one thing to every reader."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import shutil
import time
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcompile.errors import CheckpointError, OptionsError
from llmcompile.packaging import properties

GOLDEN = Path(__file__).parents[1] / "golden" / "lmi"
RECORDED = json.loads((GOLDEN / "properties.json").read_text())
PIECES = (
    "a",
    "b",
    "=",
    ":",
    " ",
    "\t",
    "\f",
    "\n",
    "\r",
    "\r\n",
    "\\",
    "\\\n",
    "#",
    "!",
    "\\u0041",
    "\\u00g1",
    "\u00e9",
)
WORDS = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=12)


def read_by_us(content: bytes) -> dict[str, str] | None:
    """Entries, or None where Java would refuse the file."""
    try:
        return properties.java(content)
    except CheckpointError:
        return None


@pytest.mark.parametrize("case", RECORDED, ids=[repr(case["file"]) for case in RECORDED])
def test_files_are_read_as_java_was_seen_to_read_them(case: dict[str, object]) -> None:
    """Escapes, continuations, comments and line ends, as recorded from a JVM."""
    assert read_by_us(str(case["file"]).encode("latin-1")) == case["java"]


def test_a_line_of_many_continuations_is_read_in_one_pass() -> None:
    """Six hundred thousand, which take a minute where all that was read is copied for each."""
    parts = 600_000
    began = time.process_time()

    assert properties.java(b"a=" + b"0123456789\\\n" * parts) == {"a": "0123456789" * parts}
    assert time.process_time() - began < 10


def _asker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden_lmi_make", GOLDEN / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(shutil.which("java") is None, reason="no java on this machine; the recorded cases are checked")
def test_the_jvm_here_agrees_on_whatever_the_pieces_make() -> None:
    """Two thousand files of what is special in the format, the same on every run."""
    import random

    pick = random.Random(20)
    made = ("".join(pick.choice(PIECES) for _ in range(pick.randrange(14))) for _ in range(2000))
    contents = [text.encode() for text in made]

    java = _asker().asked(contents)

    assert [read_by_us(content) for content in contents] == java


@given(st.dictionaries(WORDS, WORDS, max_size=5))
def test_what_is_written_is_read_alike_by_both(entries: dict[str, str]) -> None:
    """Any dictionary is written so that both read it, in order, or refused."""
    try:
        written = properties.text(entries).encode()
    except OptionsError:
        assert any(properties.why_not(key, value) is not None for key, value in entries.items())
        return

    assert properties.java(written) == entries == properties.naive(written)
    assert list(properties.java(written)) == list(entries)


@given(st.text("ab=: \\#!'\"$%{}", max_size=8), st.text("ab=: \\#!'\"$%{}", max_size=8))
def test_an_entry_is_refused_only_where_a_reader_would_change_it(key: str, value: str) -> None:
    """Not one is lost, or refused for nothing, but for backslashes and a key that is empty."""
    line = f"{key}={value}\n".encode()
    try:
        same = properties.java(line) == {key: value} == properties.naive(line)
    except CheckpointError:
        same = False

    assert (properties.why_not(key, value) is None) == (same and "\\" not in value and key != "")


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    """With our own error, and nothing else."""
    for read in (properties.java, properties.naive):
        with contextlib.suppress(CheckpointError):
            read(content)


@pytest.mark.parametrize(
    ("content", "found"),
    [(b"a : b\n", "without an equals sign"), (b"a=\xe9\n", "not UTF-8"), (b"\n\nlone\n", "serving.properties:3")],
)
def test_what_stops_the_python_tools_is_named(content: bytes, found: str) -> None:
    """A line without an equals sign is a ValueError there."""
    with pytest.raises(CheckpointError, match=found):
        properties.naive(content)


@pytest.mark.parametrize(
    ("key", "value"),
    [("", "b"), ("a b", "c"), ("a", " b"), ("a", "b "), ("a", "b\nc"), ("a", "\u00e9"), ("a", "C:\\x"), ("#a", "b")],
)
def test_what_two_readers_would_not_share_is_not_written(key: str, value: str) -> None:
    """It is refused by its name."""
    with pytest.raises(OptionsError, match=r"serving\.properties"):
        properties.text({key: value})


def test_a_value_may_hold_signs() -> None:
    """Only the first equals sign of a line is one."""
    written = properties.text({"option.env": "NEURON_COMPILE_CACHE_URL=/opt/ml/model/compiled", "option.x": ":#"})

    assert written == "option.env=NEURON_COMPILE_CACHE_URL=/opt/ml/model/compiled\noption.x=:#\n"
    assert properties.java(written.encode()) == properties.naive(written.encode())
