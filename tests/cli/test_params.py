"""The command's parameters are the dataclasses' fields, and each has an environment variable."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import MISSING, fields
from enum import Enum
from typing import Any

import pytest
import typer

from llmcompile.cli import app, partition
from llmcompile.exporters.ft.options import FtOptions
from llmcompile.exporters.options import BuildOptions

MESSAGES = {"json", "quiet", "log_format"}
"""How the command talks; nothing a build depends on."""


def options() -> dict[str, Any]:
    """Every field of FtOptions and BuildOptions but the one that joins them, with its default."""
    joined = [*fields(BuildOptions), *(field for field in fields(FtOptions) if field.name != "build")]
    return {field.name: inspect.Parameter.empty if field.default is MISSING else field.default for field in joined}


def parameters() -> dict[str, Any]:
    """The parameters of `partition ft`, with their defaults."""
    signature = inspect.signature(partition.ft)
    return {name: parameter.default for name, parameter in signature.parameters.items() if name not in MESSAGES}


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command of the tree, by its path."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


COMMANDS = dict(commands(typer.main.get_command(app)))
PARAMETERS = [
    pytest.param(parameter, id=f"{' '.join(path)} {parameter.name}")
    for path, command in COMMANDS.items()
    for parameter in command.params
    if parameter.name != "help"
]


def test_the_commands_parameters_are_the_options_fields() -> None:
    """None is missing, and none goes nowhere."""
    assert parameters().keys() == options().keys()


def test_the_commands_defaults_are_the_options_defaults() -> None:
    """They are written once, on the dataclass."""
    assert parameters() == options()


def test_no_default_is_an_enum() -> None:
    """The dataclass stores plain values, so the manifest and the journal do too."""
    assert [name for name, default in options().items() if isinstance(default, Enum)] == []


@pytest.mark.parametrize("parameter", PARAMETERS)
def test_a_parameter_has_a_variable(parameter: Any) -> None:
    """LLMCOMPILE_ and its name; the artifact of `verify` is the command's object, not an option, and so are places."""
    if parameter.name in ("artifact", "places"):
        pytest.skip("an object, not an option")

    variables = [parameter.envvar] if isinstance(parameter.envvar, str) else list(parameter.envvar or [])

    assert f"LLMCOMPILE_{parameter.name.upper()}" in variables


@pytest.mark.parametrize("parameter", PARAMETERS)
def test_an_option_is_spelled_in_kebab_case_first(parameter: Any) -> None:
    """The first spelling has no underscore, and a spelling with hyphens has one with underscores beside it."""
    spellings = [spelling for spelling in parameter.opts if spelling.startswith("--")]

    assert [spelling for spelling in spellings[:1] if "_" in spelling] == []
    hyphens = [spelling for spelling in spellings if "-" in spelling[2:]]
    assert [spelling for spelling in hyphens if f"--{spelling[2:].replace('-', '_')}" not in spellings] == []


@pytest.mark.parametrize("parameter", PARAMETERS)
def test_an_option_has_a_help(parameter: Any) -> None:
    """One sentence, or nobody finds it."""
    if parameter.name == "artifact":
        pytest.skip("explained by the command")

    assert str(parameter.help).endswith(".")
