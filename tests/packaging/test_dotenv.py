"""`.env` files: what is written is read alike by docker and docker compose, and what is not is named."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcompile.errors import OptionsError
from llmcompile.packaging import dotenv

NAMES = st.from_regex(r"[A-Z_][A-Z0-9_]{0,20}", fullmatch=True)
PLAIN = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="'\"\\$#`"), max_size=40)


def problems(text: str) -> list[str]:
    """Every problem of a file."""
    return [problem for line in dotenv.read(text) for problem in line.problems]


@given(st.dictionaries(NAMES, PLAIN))
def test_what_is_written_is_read(pairs: dict[str, str]) -> None:
    """Names and values come back, and nothing is wrong with them."""
    text = dotenv.write(pairs)

    assert dotenv.pairs(dotenv.read(text)) == pairs
    assert problems(text) == []


@given(st.text())
def test_any_text_can_be_read(text: str) -> None:
    """A file of nonsense has problems, and raises nothing."""
    for line in dotenv.read(text):
        assert line.number >= 1


def test_a_long_file_is_read_in_one_pass() -> None:
    """A hundred thousand lines, which take half a minute where each counts all of them."""
    text = "".join(f"A{number}=1\n" for number in range(100_000))
    began = time.process_time()

    assert len(dotenv.read(text)) == 100_000
    assert time.process_time() - began < 10


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("export A=1\n", "export"),
        ('A="1"\n', '" in the value'),
        ("A='1'\n", "' in the value"),
        ("A=1\r\n", "a line end of CR LF"),
        ("A = 1\n", "a name like 'A '"),
        ("A=1 \n", "a blank at an end"),
        ("A= 1\n", "a blank at an end"),
        ("A=1 # one\n", "# in the value"),
        ("A=$HOME\n", "$ in the value"),
        ("A=1\\n\n", "\\ in the value"),
        ("A\n", "no ="),
        ("1A=1\n", "a name like '1A'"),
        ("\ufeffA=1\n", r"a name like '\ufeffA'"),
        ("A=1", "no line end"),
        ("A=1\nA=2\n", "the name has another value above"),
        ("A=\x07\n", "a character that is not printable"),
    ],
)
def test_what_docker_and_compose_read_differently_is_named(text: str, problem: str) -> None:
    """Each of the dialect's rules, broken alone."""
    assert problem in problems(text)


@pytest.mark.parametrize("text", ["", "\n", "# a comment\n", "A=\n", "A=a=b\n", "A=1\nA=1\n", "A=s3://b/p/?x&y\n"])
def test_what_both_read_alike_is_right(text: str) -> None:
    """Blank lines, comments, empty values, = in a value, and a line that is there twice."""
    assert problems(text) == []


@pytest.mark.parametrize("value", ["a\nb", "'a'", "a b ", "$x", "a\r", "#"])
def test_a_value_that_cannot_be_written_is_refused(value: str) -> None:
    """A newline would be a line of its own, a quote would be kept by one reader and dropped by the other."""
    with pytest.raises(OptionsError, match=r"A in \.env"):
        dotenv.write({"A": value})


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("A=1", "1"),
        ("export A=1", "1"),
        ("A='1 # $B'", "1 # $B"),
        ('A="1 # one" # two', "1 # one"),
        ("A = 1 # one", "1"),
        ("A=1#one", "1#one"),
        ("B=2\nA=${B}$B", "22"),
        ("A=1\r", "1"),
        ("A=", ""),
    ],
)
def test_compose_reads_more_than_docker(line: str, value: str) -> None:
    """As its dotenv package does."""
    assert dotenv.compose_pairs(f"{line}\n")["A"] == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("$A", "1"),
        ("${A}b", "1b"),
        ("${E:-x}", "x"),
        ("${E-x}", ""),
        ("${N-x}", "x"),
        ("${N:-}", ""),
        ("${A:+x}", "x"),
        ("${N+x}", ""),
        ("${A:?why}", "1"),
        ("$$A", "$A"),
        ("${N}", "${N}"),
        ("a$", "a$"),
    ],
)
def test_names_are_replaced_as_compose_does(text: str, value: str) -> None:
    """What is not set stays: a shell may set it."""
    assert dotenv.interpolate(text, {"A": "1", "E": ""}) == value


def test_values_of_values_do_not_grow_without_end() -> None:
    """Each line twice the one before would be a million million characters after forty."""
    text = "A0=xx\n" + "".join(f"A{number}=$A{number - 1}$A{number - 1}\n" for number in range(1, 40))
    many = f"A={'x' * 8000}\n" + "".join(f"B{number}=$A\n" for number in range(10_000))

    assert max(map(len, dotenv.compose_pairs(text).values())) < 10_000
    assert sum(map(len, dotenv.compose_pairs(many).values())) < 2 << 20


@given(st.text())
def test_any_text_has_pairs(text: str) -> None:
    """Nothing is raised for nonsense."""
    assert all(name.isidentifier() for name in dotenv.compose_pairs(text))
