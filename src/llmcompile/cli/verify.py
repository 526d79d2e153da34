"""`llmcompile verify`: whether an artifact still is what its manifest says, and whether its numbers are right."""

from pathlib import Path
from typing import Annotated

import typer

from llmcompile.cli import params


def verify(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="An artifact's folder.")],
    deep: Annotated[
        bool,
        typer.Option(
            "--deep",
            envvar="LLMCOMPILE_DEEP",
            help="Also run the artifact against the model on CPU; with --model, any vendor's folder will do.",
        ),
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            envvar="LLMCOMPILE_MODEL",
            help="The model it was made from, for --deep; the manifest's source by default.",
        ),
    ] = None,
    revision: params.RevisionOpt = None,
    token: params.TokenOpt = None,
    atol: params.AtolOpt = None,
    rtol: params.RtolOpt = None,
    json: params.JsonOpt = False,
    quiet: params.QuietOpt = False,
    log_format: params.LogFormatOpt = params.LogFormat.text,
) -> None:
    """Check an artifact: every byte against its manifest, and with --deep its numbers against the model."""
    from llmcompile.cli.console import Console

    with Console(command="verify", json=json, quiet=quiet, log_format=log_format.value) as console:
        console.verify(artifact, deep=deep, model=model, revision=revision, token=token, atol=atol, rtol=rtol)
