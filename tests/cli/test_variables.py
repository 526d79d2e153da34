"""Environment variables: those that no option reads are refused, since a misspelt one would change what is built."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Run


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("LLMCOMPILE_TP_SIZE", "LLMCOMPILE_TP"),
        ("LLMCOMPILE_MODEL_DIR", "LLMCOMPILE_MODEL"),
        ("LLMCOMPILE_NO_VALIDATE", "LLMCOMPILE_VALIDATE"),
        ("LLMCOMPILE_DRYRUN", "LLMCOMPILE_DRY_RUN"),
    ],
)
def test_a_variable_no_option_reads_is_refused(name: str, meant: str, run: Run, tmp_path: Path) -> None:
    """Another spelling of a flag, or a slip: exit code 2, and the one that was meant."""
    result = run("partition", "ft", "--model", "x", tmp_path / "out", env={name: "1"})

    assert result.code == 2
    assert f"error: {name}" in result.err
    assert f"did you mean {meant}?" in result.err


def test_a_variable_like_no_other_is_refused(run: Run, tmp_path: Path) -> None:
    """With nothing near, the hint is to unset it."""
    result = run("verify", tmp_path, env={"LLMCOMPILE_XYZZY": "1"})

    assert (result.code, "unset LLMCOMPILE_XYZZY" in result.err) == (2, True)


@pytest.mark.parametrize("name", ["LLMCOMPILE_TP", "LLMCOMPILE_ENCODER_ONLY", "LLMCOMPILE_MAX_BATCH_SIZE"])
def test_a_variable_of_another_command_is_no_mistake(name: str, run: Run, tmp_path: Path) -> None:
    """One environment may serve several commands."""
    result = run("verify", tmp_path, env={name: "1"})

    assert name not in result.err
