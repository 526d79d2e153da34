"""The command tree, and the one place where an exception becomes an exit code."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from llmcompile import __version__
from llmcompile.cli import build, export, lint, package, partition, quantize, rtx, stopping, variables, verify
from llmcompile.errors import OptionsError, collected

app = typer.Typer(
    name="llmcompile",
    help="Compile Hugging Face checkpoints ahead of time, and prove the artifact right before it ships.",
    no_args_is_help=True,
    add_help_option=False,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _help(context: typer.Context, wanted: bool) -> None:
    if wanted:
        typer.echo(context.get_help())
        raise typer.Exit


HelpOpt = Annotated[bool, typer.Option("--help", callback=_help, is_eager=True, help="Show this message and exit.")]
"""A group's --help. Typer's own imports pydantic where it is not given, which costs `--help` of every command 60 ms."""


def _group(help: HelpOpt = False) -> None:
    pass


build.app.command("tensorrt-rtx")(rtx.tensorrt_rtx)
app.add_typer(export.app, name="export", callback=_group, add_help_option=False)
app.add_typer(build.app, name="build", callback=_group, add_help_option=False)
app.add_typer(partition.app, name="partition", callback=_group, add_help_option=False)
app.add_typer(package.app, name="package", callback=_group, add_help_option=False)
app.command("quantize")(quantize.quantize)
app.command("lint")(lint.lint)
app.command("verify")(verify.verify)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"llmcompile {__version__}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
    help: HelpOpt = False,
) -> None:
    """Compile Hugging Face checkpoints ahead of time, and prove the artifact right before it ships."""
    problems = variables.unknown(os.environ, context.command)
    if problems == []:
        return
    from llmcompile.cli.console import Console

    with Console(command="environment", json=False, quiet=False, log_format="text"):
        raise collected(OptionsError, problems)


def main() -> None:
    """Run the command line and end the process with its exit code."""
    stopping.install()
    try:
        sys.exit(app())
    except stopping.TerminatedError:
        sys.exit(stopping.SIGTERM_CODE)
    except KeyboardInterrupt:
        sys.exit(stopping.SIGINT_CODE)
