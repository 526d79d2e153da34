"""Renders chat templates for `prompt_format`, in a process of its own: a template is a stranger's program.

Run by its path, with the standard library and jinja2 alone. Requests and answers are lines of JSON: {"text", "values",
"today"} -> {"rendered"}, {"failed"} or {"missing"}. Memory is bounded by the system, time by whoever asks.
"""

from __future__ import annotations

import json
import resource
import sys
from functools import lru_cache
from typing import Any

MEMORY_BYTES = 1 << 30
"""Of address space; jinja2 and a chat take a tenth of it."""


class MissingError(Exception):
    """jinja2 is not installed."""


@lru_cache(maxsize=8)
def _compiled(text: str) -> Any:
    """A template in transformers' environment: the same filters, functions and tags, sandboxed."""
    try:
        import jinja2
        from jinja2 import nodes
        from jinja2.ext import Extension
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise MissingError from error

    class Generation(Extension):
        """{% generation %}, which marks what a model is trained on, and renders what is in it."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> list[nodes.Node]:
            next(parser.stream)
            made: list[nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return made

    def refuse(message: object) -> None:
        raise jinja2.TemplateError(str(message))

    class Sandbox(ImmutableSandboxedEnvironment):
        """Without powers: one of two numbers can take longer than anything that is counted in lines."""

        intercepted_binops = frozenset({"**"})

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            refuse(f"{operator} is not for chat templates")

    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = lambda value, **arguments: json.dumps(value, ensure_ascii=False, **arguments)
    environment.globals["raise_exception"] = refuse
    return environment.from_string(text)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Render one conversation."""
    today = request["today"]
    # It may raise anything, and use up what memory there is.
    try:
        compiled = _compiled(request["text"])
        return {"rendered": compiled.render(strftime_now=lambda pattern: f"{today} {pattern}", **request["values"])}
    except MissingError:
        return {"missing": True}
    except MemoryError:
        return {"failed": "it takes more than 1 GiB of memory"}
    except Exception as error:
        words = " ".join(str(error).split())[:1000]
        return {"failed": words if words != "" else type(error).__name__}


def main() -> None:
    """Answer until nobody asks."""
    # The folder of this file has modules that are none of jinja2's.
    del sys.path[0]
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    with open(0, "rb") as requests, open(1, "wb") as answers:
        for line in requests:
            answers.write(json.dumps(answer(json.loads(line))).encode() + b"\n")
            answers.flush()


if __name__ == "__main__":
    main()
