"""Every failure has a class and an exit code of its own, and says what, found, expected and what to type."""

from __future__ import annotations

import pickle
import re

import pytest

from llmcompile import errors
from llmcompile.errors import ERRORS, CheckpointError, LlmCompileError, PlanError, Problem, collected

# Style guide, section 5.3.
CODES = {
    "OptionsError": 2,
    "CheckpointError": 3,
    "UnsupportedError": 4,
    "PlanError": 5,
    "ToolchainError": 6,
    "MismatchError": 7,
    "OutputError": 8,
    "BatchError": 9,
    "ResourceError": 10,
    "NetworkError": 11,
}


def test_codes_are_the_published_ones() -> None:
    """Each class ends the process with the exit code that scripts rely on."""
    found = {kind.__name__: kind.exit_code for kind in ERRORS}

    assert found == CODES


def test_codes_are_unique() -> None:
    """No two classes share an exit code."""
    found = [kind.exit_code for kind in ERRORS]

    assert len(set(found)) == len(found)


def test_categories_are_unique() -> None:
    """No two classes share a category."""
    found = [kind.category for kind in ERRORS]

    assert len(set(found)) == len(found)


def test_codes_leave_room_for_the_reserved_ones() -> None:
    """Success, our own bugs, interrupts and SIGTERM keep their exit codes to themselves."""
    found = {kind.exit_code for kind in ERRORS}

    assert found.isdisjoint({0, 1, 130, 143})


def test_table_holds_every_class() -> None:
    """ERRORS lists every subclass of LlmCompileError, and nothing else."""
    found = set(LlmCompileError.__subclasses__())

    assert found == set(ERRORS)


def test_tree_in_the_docstring_is_the_table() -> None:
    """The tree drawn at the top of errors.py names every class with its exit code, in order."""
    assert errors.__doc__ is not None

    drawn = re.findall(r"(\w+Error) +(\d+) ", errors.__doc__)

    assert drawn == [(kind.__name__, str(kind.exit_code)) for kind in ERRORS]


def test_base_is_an_exception_that_bare_handlers_see() -> None:
    """LlmCompileError is an Exception directly, and so no ValueError or OSError that others would swallow."""
    assert LlmCompileError.__bases__ == (Exception,)


def test_text_holds_subject_found_and_expected() -> None:
    """The message reads subject, found, expected."""
    error = CheckpointError("a.bin", "3 bytes", "8 bytes", "download it again")

    assert str(error) == "a.bin: 3 bytes; expected 8 bytes"


def test_text_without_expectation_ends_after_found() -> None:
    """An error that expects nothing in particular says only what was found."""
    error = CheckpointError("a.bin", "3 bytes")

    assert str(error) == "a.bin: 3 bytes"


def test_hint_is_kept_apart_from_the_text() -> None:
    """The hint is a field, for the console to print on a line of its own."""
    error = CheckpointError("a.bin", "3 bytes", "8 bytes", "download it again")

    assert error.problems == (Problem("a.bin", "3 bytes", "8 bytes", "download it again"),)


def test_collected_keeps_all_problems_in_order() -> None:
    """Problems gathered into one error come out in the order they went in."""
    problems = [Problem("b", "absent"), Problem("a", "twice", "once"), Problem("c", "0 bytes")]

    error = collected(PlanError, problems)

    assert error.problems == tuple(problems)


def test_collected_prints_one_line_per_problem() -> None:
    """The message of several problems has a line for each."""
    error = collected(PlanError, [Problem("b", "absent"), Problem("a", "twice", "once")])

    assert str(error) == "b: absent\na: twice; expected once"


def test_collected_is_of_the_kind_asked_for() -> None:
    """Collecting problems makes an error of the class that was named."""
    error = collected(PlanError, [Problem("b", "absent")])

    assert type(error) is PlanError


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_error_survives_a_process_boundary(kind: type[LlmCompileError]) -> None:
    """An error pickled in a worker process is the same error in the parent."""
    error = kind("a", "b", "c", "d")

    again = pickle.loads(pickle.dumps(error))

    assert (type(again), again.problems) == (kind, error.problems)
