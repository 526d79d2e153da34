"""`llmcompile partition ...`: pre-sharded artifacts that need no compiler."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from llmcompile.cli import params
from llmcompile.exporters.ft.options import FtOptions
from llmcompile.exporters.options import BuildOptions

app = typer.Typer(help="Split a checkpoint into per-rank files.", no_args_is_help=True)


class FtDtype(str, Enum):
    """Element types FasterTransformer reads."""

    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"


@app.callback()
def group() -> None:
    """Split a checkpoint into per-rank files."""


@app.command()
def ft(
    output: params.OutputArg,
    model: params.ModelOpt,
    revision: params.RevisionOpt = BuildOptions.revision,
    cache_dir: params.CacheDirOpt = BuildOptions.cache_dir,
    token: params.TokenOpt = BuildOptions.token,
    trust_remote_code: params.TrustRemoteCodeOpt = BuildOptions.trust_remote_code,
    tp: Annotated[
        int,
        typer.Option(
            "--tp",
            "--tensor-parallel-degree",
            "--tensor_parallel_degree",
            "--tensor-para-size",
            "--tensor_para_size",
            envvar="LLMCOMPILE_TP",
            min=1,
            help="Ranks each layer is split over.",
            rich_help_panel=params.BUILD,
        ),
    ] = FtOptions.tp,
    pp: Annotated[
        int,
        typer.Option(
            "--pp",
            "--pipeline-parallel-degree",
            "--pipeline_parallel_degree",
            "--pipeline-para-size",
            "--pipeline_para_size",
            envvar="LLMCOMPILE_PP",
            min=1,
            help="Pipeline stages; recorded, the files do not depend on it.",
            rich_help_panel=params.BUILD,
        ),
    ] = FtOptions.pp,
    dtype: Annotated[
        FtDtype | None,
        typer.Option(
            "--dtype",
            "--weight-data-type",
            "--weight_data_type",
            envvar="LLMCOMPILE_DTYPE",
            help="Element type of the files; the checkpoint's own by default.",
            rich_help_panel=params.BUILD,
        ),
    ] = FtOptions.dtype,  # type: ignore[assignment]  # None, the dataclass's default, in both types
    encoder_only: Annotated[
        bool,
        typer.Option(
            "--encoder-only",
            "--encoder_only",
            envvar="LLMCOMPILE_ENCODER_ONLY",
            help="Only the encoder of a T5 model.",
            rich_help_panel=params.BUILD,
        ),
    ] = FtOptions.encoder_only,
    act_scales: Annotated[
        Path | None,
        typer.Option(
            "--act-scales",
            "--act_scales",
            "--act_scale",
            envvar="LLMCOMPILE_ACT_SCALES",
            help="Activation ranges of an OPT model (.pt or .json); adds the SmoothQuant int8 files.",
            rich_help_panel=params.BUILD,
        ),
    ] = FtOptions.act_scales,
    model_name: Annotated[
        str | None,
        typer.Option(
            "--model-name",
            "--model_name",
            envvar="LLMCOMPILE_MODEL_NAME",
            help="model_name in config.ini; what the vendor's converter writes by default.",
            rich_help_panel=params.BUILD,
        ),
    ] = FtOptions.model_name,
    validate: params.ValidateOpt = BuildOptions.validate,
    atol: params.AtolOpt = BuildOptions.atol,
    rtol: params.RtolOpt = BuildOptions.rtol,
    allow_overflow: params.AllowOverflowOpt = BuildOptions.allow_overflow,
    package: params.PackageOpt = BuildOptions.package,  # type: ignore[assignment]  # typer gives a list
    dry_run: params.DryRunOpt = BuildOptions.dry_run,
    resume: params.ResumeOpt = BuildOptions.resume,
    force: params.ForceOpt = BuildOptions.force,
    max_memory: params.MaxMemoryOpt = BuildOptions.max_memory,
    workers: params.WorkersOpt = BuildOptions.workers,
    json: params.JsonOpt = False,
    quiet: params.QuietOpt = False,
    log_format: params.LogFormatOpt = params.LogFormat.text,
) -> None:
    """Partition a model for FasterTransformer: OUTPUT/<tp>-gpu, the tokenizer and llmcompile.json."""
    from llmcompile.cli.console import Console

    with Console(command="partition ft", json=json, quiet=quiet, log_format=log_format.value) as console:
        options = FtOptions(
            build=BuildOptions(
                model=model,
                output=output,
                revision=revision,
                cache_dir=cache_dir,
                token=token,
                trust_remote_code=trust_remote_code,
                validate=validate,
                atol=atol,
                rtol=rtol,
                allow_overflow=allow_overflow,
                package=tuple(package),
                dry_run=dry_run,
                resume=resume,
                force=force,
                max_memory=max_memory,
                workers=workers,
            ),
            tp=tp,
            pp=pp,
            dtype=None if dtype is None else dtype.value,
            encoder_only=encoder_only,
            act_scales=act_scales,
            model_name=model_name,
        )
        console.run(options)
