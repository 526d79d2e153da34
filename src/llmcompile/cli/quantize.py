"""`llmcompile quantize`: every recipe a model can have, built and run, side by side."""

from typing import Annotated

import typer

from llmcompile.cli import build, params
from llmcompile.exporters.options import BuildOptions
from llmcompile.exporters.trtllm import versions
from llmcompile.exporters.trtllm.comparison import QuantizeOptions, recipes_of
from llmcompile.exporters.trtllm.options import DTYPES


def quantize(
    output: params.OutputArg,
    model: params.ModelOpt,
    revision: params.RevisionOpt = BuildOptions.revision,
    cache_dir: params.CacheDirOpt = BuildOptions.cache_dir,
    token: params.TokenOpt = BuildOptions.token,
    trust_remote_code: params.TrustRemoteCodeOpt = BuildOptions.trust_remote_code,
    recipes: Annotated[
        str,
        typer.Option(
            "--recipes",
            envvar="LLMCOMPILE_RECIPES",
            metavar="NAMES",
            help=f"Some of {', '.join(versions.RECIPES)}, with commas between; or all that the model can have.",
            rich_help_panel=params.QUANTIZATION,
        ),
    ] = "all",
    kv_cache: params.KvCacheOpt = QuantizeOptions.kv_cache,
    group_size: Annotated[
        int,
        typer.Option(
            "--group-size",
            "--group_size",
            envvar="LLMCOMPILE_GROUP_SIZE",
            min=1,
            help="Input channels that share a scale in a groupwise recipe.",
            rich_help_panel=params.QUANTIZATION,
        ),
    ] = QuantizeOptions.group_size,
    calib_dataset: params.CalibDatasetOpt = QuantizeOptions.calib_dataset,
    calib_column: params.CalibColumnOpt = QuantizeOptions.calib_column,
    calib_size: params.CalibSizeOpt = QuantizeOptions.calib_size,
    calib_seq_len: params.CalibSeqLenOpt = QuantizeOptions.calib_seq_len,
    calibrator: params.CalibratorOpt = QuantizeOptions.calibrator,
    eval_text: params.EvalTextOpt = QuantizeOptions.eval_text,
    allow_overflow: params.AllowOverflowOpt = BuildOptions.allow_overflow,
    dtype: Annotated[
        str,
        typer.Option(
            "--dtype",
            envvar="LLMCOMPILE_DTYPE",
            metavar="WORD",
            help=f"Type of what is not quantized: {' or '.join(DTYPES[:2])}; auto for the checkpoint's own.",
            rich_help_panel=params.BUILD,
        ),
    ] = "auto",
    target: params.TargetOpt = QuantizeOptions.target,
    trtllm_version: Annotated[
        str | None,
        typer.Option(
            "--trtllm-version",
            "--trtllm_version",
            envvar="LLMCOMPILE_TRTLLM_VERSION",
            metavar="VERSION",
            help=f"TensorRT-LLM that will run it: {versions.text_of(versions.FIRST_SUPPORTED)} to "
            f"{versions.LAST_VERSION}, which is the default; {versions.LLMAPI_VERSION} with --target llmapi.",
            rich_help_panel=params.BUILD,
        ),
    ] = None,
    keep: Annotated[
        bool,
        typer.Option(
            "--keep",
            envvar="LLMCOMPILE_KEEP",
            help="Leave every checkpoint in OUTPUT/checkpoints, as build trtllm makes it.",
            rich_help_panel=params.SAFETY,
        ),
    ] = QuantizeOptions.keep,
    plot: Annotated[
        bool,
        typer.Option(
            "--plot/--no-plot",
            " /--no_plot",
            envvar="LLMCOMPILE_PLOT",
            help="Draw quantize.svg and quantize.png, which needs matplotlib.",
            rich_help_panel=params.SAFETY,
        ),
    ] = QuantizeOptions.plot,
    dry_run: params.DryRunOpt = BuildOptions.dry_run,
    resume: params.ResumeOpt = BuildOptions.resume,
    force: params.ForceOpt = BuildOptions.force,
    max_memory: params.MaxMemoryOpt = BuildOptions.max_memory,
    workers: params.WorkersOpt = BuildOptions.workers,
    json: params.JsonOpt = False,
    quiet: params.QuietOpt = False,
    log_format: params.LogFormatOpt = params.LogFormat.text,
) -> None:
    """Compare quantization recipes: perplexity, KL divergence, logits, size, as a table and a plot.

    Each is built as `build trtllm` builds it without an engine, and run on the CPU with activations quantized as
    the kernels do; then the checkpoint goes, unless --keep. OUTPUT holds quantize.json, quantize.md, quantize.svg and
    quantize.png. A recipe that does not compute what it should is FAILED in the table, and the exit code is 7.
    """
    from llmcompile.cli.console import Console

    with Console(command="quantize", json=json, quiet=quiet, log_format=log_format.value) as console:
        options = QuantizeOptions(
            build=BuildOptions(
                model=model,
                output=output,
                revision=revision,
                cache_dir=cache_dir,
                token=token,
                trust_remote_code=trust_remote_code,
                allow_overflow=allow_overflow,
                dry_run=dry_run,
                resume=resume,
                force=force,
                max_memory=max_memory,
                workers=workers,
            ),
            recipes=recipes_of(recipes),
            dtype=build.DTYPE_WORDS.get(dtype, dtype),
            kv_cache=kv_cache,
            group_size=group_size,
            calib_dataset=calib_dataset,
            calib_column=calib_column,
            calib_size=calib_size,
            calib_seq_len=calib_seq_len,
            calibrator=calibrator,
            eval_text=eval_text,
            target=target,
            trtllm_version=build.version_for(trtllm_version, target),
            keep=keep,
            plot=plot,
        )
        console.compare_recipes(options)
