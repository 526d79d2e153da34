"""What `partition ft` refuses to be asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmcompile.errors import OptionsError
from llmcompile.exporters.ft.options import FtOptions
from llmcompile.exporters.options import BuildOptions


def ft(**options: Any) -> FtOptions:
    """FasterTransformer options of some model and output."""
    return FtOptions(build=BuildOptions(model="org/name", output=Path("out")), **options)


@pytest.mark.parametrize("name", ["tp", "pp"])
@pytest.mark.parametrize("value", [0, -2])
def test_a_degree_below_one_is_refused(name: str, value: int) -> None:
    """No ranks, or fewer, are refused by the flag."""
    with pytest.raises(OptionsError, match=f"--{name}: {value}; expected 1 or more"):
        ft(**{name: value})


def test_a_degree_that_is_no_power_of_two_is_taken() -> None:
    """Six ranks are fine where the model's axes divide."""
    assert ft(tp=6).tp == 6


@pytest.mark.parametrize("dtype", ["fp64", "int8", "float16", "FP16", ""])
def test_an_unknown_dtype_is_refused(dtype: str) -> None:
    """Only the three names FasterTransformer reads are taken."""
    with pytest.raises(OptionsError, match=r"--dtype: .*expected fp32, fp16 or bf16"):
        ft(dtype=dtype)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16", None])
def test_a_known_dtype_or_none_is_taken(dtype: str | None) -> None:
    """The three names, or the checkpoint's own type."""
    assert ft(dtype=dtype).dtype == dtype


@pytest.mark.parametrize("name", ["a\nb", "a\tb", "\x00", "\udcff"])
def test_a_model_name_that_is_not_printable_is_refused(name: str) -> None:
    """A line break would begin a line of config.ini of its own."""
    with pytest.raises(OptionsError, match="--model-name"):
        ft(model_name=name)


@pytest.mark.parametrize("name", ["x" * 151, "é" * 76])
def test_a_model_name_of_too_many_bytes_is_refused(name: str) -> None:
    """What counts is bytes, as FasterTransformer cuts lines at 200 of them."""
    with pytest.raises(OptionsError, match="at most 150 bytes"):
        ft(model_name=name)


@pytest.mark.parametrize("name", ["x" * 150, "é" * 75, "50% off", ""])
def test_a_model_name_that_fits_is_taken(name: str) -> None:
    """Up to 150 bytes of printable characters are recorded as they are."""
    assert ft(model_name=name).model_name == name
