"""Environment variables that no option reads: a misspelt one must not change what a container builds."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from llmcompile.errors import Problem

_PREFIX = "LLMCOMPILE_"


def unknown(environment: Mapping[str, str], command: Any) -> list[Problem]:
    """A problem for each variable of our prefix that no option of any command reads, with the one that was meant.

    Args:
        environment: The process's.
        command: The root of the command tree, as `typer.Context.command` is.
    """
    given = sorted(name for name in environment if name.startswith(_PREFIX))
    if given == []:
        return []
    known = _by_spelling(command)
    problems = []
    for name in given:
        if name in known.values():
            continue
        near = known.get(name, _nearest(name, set(known.values())))
        hint = f"unset {name}; docs/cli.md lists the variables" if near is None else f"did you mean {near}?"
        problems.append(Problem(name, "an environment variable that no option reads", "one of docs/cli.md", hint))
    return problems


def _nearest(name: str, known: Collection[str]) -> str | None:
    endings = {variable.removeprefix(_PREFIX): variable for variable in known}
    near = difflib.get_close_matches(name.removeprefix(_PREFIX), endings, n=1, cutoff=0.7)
    return endings[near[0]] if len(near) > 0 else None


def _by_spelling(command: Any) -> dict[str, str]:
    """LLMCOMPILE_<SPELLING> -> the variable that is read, for every spelling of every option below a command."""
    found: dict[str, str] = {}
    for parameter in _parameters(command):
        named = parameter.envvar
        variables = [] if named is None else [named] if isinstance(named, str) else list(named)
        for variable in [name for name in variables if name.startswith(_PREFIX)]:
            found[variable] = variable
            for spelling in (*parameter.opts, *parameter.secondary_opts):
                found.setdefault(_PREFIX + spelling.lstrip("-").replace("-", "_").upper(), variable)
    return found


def _parameters(command: Any) -> Iterator[Any]:
    yield from command.params
    for child in getattr(command, "commands", {}).values():
        yield from _parameters(child)
