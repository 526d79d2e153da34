"""`llmcompile lint`: what kind of serving package a folder is, and whether it will load."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from llmcompile.cli import params
from llmcompile.packaging.targets import TARGETS

TargetName = Enum("TargetName", {name: name for name in TARGETS}, type=str)  # type: ignore[misc]


def lint(
    artifact: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="A package, of llmcompile or not: a folder, or model.tar.gz."),
    ],
    target: Annotated[
        TargetName | None,
        typer.Option(
            "--target", envvar="LLMCOMPILE_TARGET", help="The server it is for; by default, told from its files."
        ),
    ] = None,
    target_version: Annotated[
        str | None,
        typer.Option(
            "--target-version",
            "--target_version",
            envvar="LLMCOMPILE_TARGET_VERSION",
            metavar="VERSION",
            help="Release of the server; the one it was packaged for by default.",
        ),
    ] = None,
    runtime_version: Annotated[
        str | None,
        typer.Option(
            "--runtime-version",
            "--runtime_version",
            envvar="LLMCOMPILE_RUNTIME_VERSION",
            metavar="VERSION",
            help="Version of TensorRT-LLM, neuronx-cc or vLLM in your image, where it is not the release's own.",
        ),
    ] = None,
    mount_path: Annotated[
        str | None,
        typer.Option(
            "--mount-path",
            "--mount_path",
            envvar="LLMCOMPILE_MOUNT_PATH",
            metavar="PATH",
            help="Where the server will see DIR; the target's usual place by default.",
        ),
    ] = None,
    json: params.JsonOpt = False,
    quiet: params.QuietOpt = False,
    log_format: params.LogFormatOpt = params.LogFormat.text,
) -> None:
    """Say what kind of serving package a folder is, and what in it will keep it from loading, rule by rule."""
    from llmcompile.cli.console import Console

    with Console(command="lint", json=json, quiet=quiet, log_format=log_format.value) as console:
        console.lint(
            artifact,
            target=None if target is None else target.value,
            target_version=target_version,
            runtime_version=runtime_version,
            mount_path=mount_path,
        )
