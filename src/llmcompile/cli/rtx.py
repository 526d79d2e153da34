"""`llmcompile build tensorrt-rtx`: an ONNX model, and engines of it for GPUs that need not be here."""

import re
from collections.abc import Sequence
from types import MappingProxyType
from typing import Annotated

import typer

from llmcompile.cli import params
from llmcompile.errors import OptionsError
from llmcompile.exporters.options import BuildOptions
from llmcompile.exporters.rtx.options import (
    CAPABILITIES,
    DEFAULT_CAPABILITIES,
    DTYPES,
    QUANTIZATIONS,
    TASKS,
    RtxOptions,
    as_range,
)

_SHAPES = "Shapes"
_WORDS = MappingProxyType({"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "half": "fp16"})
"""Further words of --dtype: those of the other backends."""


def tensorrt_rtx(
    output: params.OutputArg,
    model: params.ModelOpt,
    revision: params.RevisionOpt = BuildOptions.revision,
    cache_dir: params.CacheDirOpt = BuildOptions.cache_dir,
    token: params.TokenOpt = BuildOptions.token,
    trust_remote_code: params.TrustRemoteCodeOpt = BuildOptions.trust_remote_code,
    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            envvar="LLMCOMPILE_TASK",
            metavar="TASK",
            help=f"{', '.join(TASKS)}; inferred from config.json by default.",
            rich_help_panel=params.BUILD,
        ),
    ] = RtxOptions.task,
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype",
            envvar="LLMCOMPILE_DTYPE",
            metavar="WORD",
            help=f"{', '.join(DTYPES)}, of weights and arithmetic; the checkpoint's own by default.",
            rich_help_panel=params.BUILD,
        ),
    ] = RtxOptions.dtype,
    compute_capability: Annotated[
        list[str] | None,
        typer.Option(
            "--compute-capability",
            "--compute_capability",
            envvar="LLMCOMPILE_COMPUTE_CAPABILITY",
            metavar="SM",
            help=f"GPUs the engine is for: {', '.join(map(str, CAPABILITIES))}; repeatable; by default "
            f"{', '.join(map(str, DEFAULT_CAPABILITIES))}, as far as they have the types.",
            rich_help_panel=params.BUILD,
        ),
    ] = None,
    all_logits: Annotated[
        bool,
        typer.Option(
            "--all-logits",
            "--all_logits",
            envvar="LLMCOMPILE_ALL_LOGITS",
            help="A decoder gives logits at every position, rather than at the last.",
            rich_help_panel=params.BUILD,
        ),
    ] = RtxOptions.all_logits,
    opset: Annotated[
        int,
        typer.Option(
            "--opset",
            envvar="LLMCOMPILE_OPSET",
            metavar="N",
            help="Version of ONNX's operators: 21, or 23, which has attention and RMS norm as operators.",
            rich_help_panel=params.BUILD,
        ),
    ] = RtxOptions.opset,
    quantization: Annotated[
        str | None,
        typer.Option(
            "--quantization",
            envvar="LLMCOMPILE_QUANTIZATION",
            metavar="WORD",
            help=f"{', '.join(QUANTIZATIONS)}, for the weights of linear layers; none by default.",
            rich_help_panel=params.QUANTIZATION,
        ),
    ] = RtxOptions.quantization,
    batch_size: Annotated[
        str,
        typer.Option(
            "--batch-size",
            "--batch_size",
            envvar="LLMCOMPILE_BATCH_SIZE",
            metavar="MIN,OPT,MAX",
            help="Sequences at once; one number is the most.",
            rich_help_panel=_SHAPES,
        ),
    ] = str(RtxOptions.batch_size),
    sequence_length: Annotated[
        str | None,
        typer.Option(
            "--sequence-length",
            "--sequence_length",
            envvar="LLMCOMPILE_SEQUENCE_LENGTH",
            metavar="MIN,OPT,MAX",
            help="Tokens; of a decoder, prompt and answer together. By default 1 to what the model has positions for, "
            "512 or, of a decoder, 2048 at most.",
            rich_help_panel=_SHAPES,
        ),
    ] = None,
    target_length: Annotated[
        str | None,
        typer.Option(
            "--target-length",
            "--target_length",
            envvar="LLMCOMPILE_TARGET_LENGTH",
            metavar="MIN,OPT,MAX",
            help="Tokens that an encoder-decoder answers; as --sequence-length by default.",
            rich_help_panel=_SHAPES,
        ),
    ] = None,
    num_choices: Annotated[
        int,
        typer.Option(
            "--num-choices",
            "--num_choices",
            envvar="LLMCOMPILE_NUM_CHOICES",
            min=1,
            help="Answers of multiple-choice.",
            rich_help_panel=_SHAPES,
        ),
    ] = RtxOptions.num_choices,
    stop_after: Annotated[
        str | None,
        typer.Option(
            "--stop-after",
            "--stop_after",
            envvar="LLMCOMPILE_STOP_AFTER",
            metavar="onnx",
            help="Stop before the engine: a validated ONNX model, which serves on any CPU; needs no TensorRT.",
            rich_help_panel=params.TOOLCHAIN,
        ),
    ] = RtxOptions.stop_after,
    keep_onnx: Annotated[
        bool,
        typer.Option(
            "--keep-onnx/--no-keep-onnx",
            "--keep_onnx/--no_keep_onnx",
            envvar="LLMCOMPILE_KEEP_ONNX",
            help="Leave the ONNX model beside the engine: what verify --deep runs, and what serves without a GPU.",
            rich_help_panel=params.TOOLCHAIN,
        ),
    ] = RtxOptions.keep_onnx,
    weight_streaming: Annotated[
        bool,
        typer.Option(
            "--weight-streaming",
            "--weight_streaming",
            envvar="LLMCOMPILE_WEIGHT_STREAMING",
            help="Let the runtime keep weights in host memory.",
            rich_help_panel=params.TOOLCHAIN,
        ),
    ] = RtxOptions.weight_streaming,
    build_timeout: Annotated[
        float | None,
        typer.Option(
            "--build-timeout",
            "--build_timeout",
            envvar="LLMCOMPILE_BUILD_TIMEOUT",
            metavar="SECONDS",
            help="Longest time for one engine; no limit by default.",
            rich_help_panel=params.TOOLCHAIN,
        ),
    ] = RtxOptions.build_timeout_seconds,
    atol: params.AtolOpt = BuildOptions.atol,
    rtol: params.RtolOpt = BuildOptions.rtol,
    allow_overflow: params.AllowOverflowOpt = BuildOptions.allow_overflow,
    dry_run: params.DryRunOpt = BuildOptions.dry_run,
    resume: params.ResumeOpt = BuildOptions.resume,
    force: params.ForceOpt = BuildOptions.force,
    max_memory: params.MaxMemoryOpt = BuildOptions.max_memory,
    json: params.JsonOpt = False,
    quiet: params.QuietOpt = False,
    log_format: params.LogFormatOpt = params.LogFormat.text,
) -> None:
    """Build an engine of TensorRT for RTX with no GPU present: OUTPUT/onnx, always validated, and OUTPUT/engine.

    The ONNX model is run against the model on CPU; the engine is run against the ONNX model where a GPU is for it.
    """
    from llmcompile.cli.console import Console

    with Console(command="build tensorrt-rtx", json=json, quiet=quiet, log_format=log_format.value) as console:
        options = RtxOptions(
            build=BuildOptions(
                model=model,
                output=output,
                revision=revision,
                cache_dir=cache_dir,
                token=token,
                trust_remote_code=trust_remote_code,
                atol=atol,
                rtol=rtol,
                dry_run=dry_run,
                resume=resume,
                force=force,
                max_memory=max_memory,
                allow_overflow=allow_overflow,
            ),
            task=task,
            dtype=None if dtype is None else _WORDS.get(dtype, dtype),
            quantization=quantization,
            batch_size=as_range("--batch-size", batch_size),
            sequence_length=None if sequence_length is None else as_range("--sequence-length", sequence_length),
            target_length=None if target_length is None else as_range("--target-length", target_length),
            num_choices=num_choices,
            compute_capabilities=_capabilities(compute_capability),
            all_logits=all_logits,
            opset=opset,
            stop_after=stop_after,
            keep_onnx=keep_onnx,
            weight_streaming=weight_streaming,
            build_timeout_seconds=build_timeout,
        )
        console.build_rtx(options)


def _capabilities(words: Sequence[str] | None) -> tuple[int, ...]:
    """The numbers of "86", "8.6", "sm86" and "sm_86"."""
    found = []
    for word in words if words is not None else ():
        match = re.fullmatch(r"(?:sm_?)?(\d+)(?:\.(\d))?", word.strip(), flags=re.IGNORECASE)
        if match is None:
            expected = f"one of {', '.join(map(str, CAPABILITIES))}"
            raise OptionsError("--compute-capability", word, expected, "--compute-capability 86")
        found.append(int(match[1] + (match[2] if match[2] is not None else "")))
    return tuple(found)
