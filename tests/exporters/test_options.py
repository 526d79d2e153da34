"""Options that contradict each other are refused before anything is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmcompile.errors import OptionsError
from llmcompile.exporters.options import BuildOptions


def build(**options: Any) -> BuildOptions:
    """Options of some model and output."""
    return BuildOptions(model="org/name", output=Path("out"), **options)


@pytest.mark.parametrize("name", ["atol", "rtol"])
@pytest.mark.parametrize("value", [-1e-9, float("inf"), float("nan")])
def test_a_tolerance_that_is_no_finite_number_is_refused(name: str, value: float) -> None:
    """A negative, infinite or undefined tolerance is refused by its flag."""
    with pytest.raises(OptionsError, match=f"--{name}: .*a finite number, zero or more"):
        build(**{name: value})


@pytest.mark.parametrize("name", ["atol", "rtol"])
@pytest.mark.parametrize("value", [0.0, 1e-3])
def test_a_tolerance_of_zero_or_more_is_taken(name: str, value: float) -> None:
    """Zero, which asks for equal numbers, is a tolerance like any other."""
    assert getattr(build(**{name: value}), name) == value


@pytest.mark.parametrize("name", ["atol", "rtol"])
def test_a_tolerance_for_no_validation_is_refused(name: str) -> None:
    """A tolerance, zero included, makes no sense when nothing is compared."""
    with pytest.raises(OptionsError, match="--no-validate: with --atol or --rtol"):
        build(validate=False, **{name: 0.0})


def test_no_validation_without_tolerances_is_taken() -> None:
    """Leaving out validation alone is allowed."""
    assert build(validate=False).validate is False


def test_a_token_is_not_shown() -> None:
    """The text of the options, as a traceback or a log would show it, does not hold the token."""
    assert "hf_secret" not in repr(build(token="hf_secret"))


def test_validation_is_on_unless_told_otherwise() -> None:
    """The default proves the artifact."""
    assert build().validate is True
