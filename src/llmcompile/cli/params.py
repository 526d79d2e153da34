"""Command-line parameters that several commands share, each defined once: names, environment variable, help."""

import re
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

import typer


class LogFormat(str, Enum):
    """How messages on stderr are written."""

    text = "text"
    json = "json"


_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[kmgt]?)(?P<binary>i?)b?", re.IGNORECASE)
_POWERS = MappingProxyType({"": 0, "k": 1, "m": 2, "g": 3, "t": 4})


def size(text: str | int) -> int:
    """Bytes of "8GiB", "500MB", "4G" (binary) or "1048576".

    Raises:
        typer.BadParameter: It is none of these.
    """
    match = _SIZE.fullmatch(str(text).strip())
    if match is None:
        raise typer.BadParameter(f"{text!r} is not a size; write 8GiB, 500MB or a number of bytes")
    decimal = match["binary"] == "" and str(text).strip().lower().endswith("b") and match["unit"] != ""
    number = float(match["number"])
    if number > 1e18:
        raise typer.BadParameter(f"{str(text)[:40]!r} is more than any machine has")
    return int(number * (1000 if decimal else 1024) ** _POWERS[match["unit"].lower()])


BUILD = "Build"
QUANTIZATION = "Quantization"
TOOLCHAIN = "Toolchain"
ENGINE = "Engine (trtllm-build)"
PACKAGE = "Package"
SAFETY = "Output and resources"
CHECKS = "Validation"
SOURCE = "Source"
MESSAGES = "Messages"

ModelOpt = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        envvar="LLMCOMPILE_MODEL",
        help="Local folder, or hub id like org/name or org/name@revision.",
        rich_help_panel=SOURCE,
    ),
]
OutputArg = Annotated[Path, typer.Argument(metavar="OUTPUT", help="Directory to create.", envvar="LLMCOMPILE_OUTPUT")]
RevisionOpt = Annotated[
    str | None,
    typer.Option(
        "--revision",
        envvar="LLMCOMPILE_REVISION",
        help="Branch, tag or commit of a hub id.",
        rich_help_panel=SOURCE,
    ),
]
CacheDirOpt = Annotated[
    Path | None,
    typer.Option(
        "--cache-dir",
        "--cache_dir",
        envvar="LLMCOMPILE_CACHE_DIR",
        metavar="DIR",
        help="Where models of the hub are kept; huggingface_hub's own place by default.",
        rich_help_panel=SOURCE,
    ),
]
TokenOpt = Annotated[
    str | None,
    typer.Option(
        "--token",
        envvar=["LLMCOMPILE_TOKEN", "HF_TOKEN"],
        help="Hub token.",
        show_envvar=True,
        rich_help_panel=SOURCE,
    ),
]
TrustRemoteCodeOpt = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        "--trust_remote_code",
        envvar="LLMCOMPILE_TRUST_REMOTE_CODE",
        help="Let transformers run the checkpoint's own Python code during validation.",
        rich_help_panel=SOURCE,
    ),
]
ValidateOpt = Annotated[
    bool,
    typer.Option(
        "--validate/--no-validate",
        " /--disable-validation",
        " /--disable_validation",
        envvar="LLMCOMPILE_VALIDATE",
        help="Run the artifact against the model on CPU before it is released.",
        rich_help_panel=CHECKS,
    ),
]
AtolOpt = Annotated[
    float | None,
    typer.Option(
        "--atol",
        envvar="LLMCOMPILE_ATOL",
        help="Absolute tolerance against the float32 model; measured on the model itself by default.",
        rich_help_panel=CHECKS,
    ),
]
RtolOpt = Annotated[
    float | None,
    typer.Option("--rtol", envvar="LLMCOMPILE_RTOL", help="Relative tolerance likewise.", rich_help_panel=CHECKS),
]
AllowOverflowOpt = Annotated[
    bool,
    typer.Option(
        "--allow-overflow",
        "--allow_overflow",
        envvar="LLMCOMPILE_ALLOW_OVERFLOW",
        help="Accept values that become infinite in the cast.",
        rich_help_panel=CHECKS,
    ),
]
DryRunOpt = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        "--dry_run",
        envvar="LLMCOMPILE_DRY_RUN",
        help="Print the plan and every problem; write nothing.",
        rich_help_panel=SAFETY,
    ),
]
PackageOpt = Annotated[
    list[str],
    typer.Option(
        "--package",
        envvar="LLMCOMPILE_PACKAGE",
        metavar="NAME[@VERSION]",
        help="Package the artifact for a server too, at OUTPUT-NAME; repeatable. `llmcompile package` has the names.",
        rich_help_panel=SAFETY,
    ),
]
ResumeOpt = Annotated[
    bool,
    typer.Option("--resume", envvar="LLMCOMPILE_RESUME", help="Continue an interrupted run.", rich_help_panel=SAFETY),
]
ForceOpt = Annotated[
    bool,
    typer.Option(
        "--force",
        envvar="LLMCOMPILE_FORCE",
        help="Replace an artifact at OUTPUT, once the new one is finished.",
        rich_help_panel=SAFETY,
    ),
]
MaxMemoryOpt = Annotated[
    int | None,
    typer.Option(
        "--max-memory",
        "--max_memory",
        envvar="LLMCOMPILE_MAX_MEMORY",
        parser=size,
        metavar="SIZE",
        help="Memory the process may hold, like 2GiB.",
        rich_help_panel=SAFETY,
    ),
]
WorkersOpt = Annotated[
    int | None,
    typer.Option(
        "--workers",
        envvar="LLMCOMPILE_WORKERS",
        min=1,
        help="Threads that rearrange and write; one more than the cores, four at most, by default.",
        rich_help_panel=SAFETY,
    ),
]
JsonOpt = Annotated[
    bool,
    typer.Option(
        "--json",
        envvar="LLMCOMPILE_JSON",
        help="One JSON report on stdout, and nothing else there.",
        rich_help_panel=MESSAGES,
    ),
]
QuietOpt = Annotated[
    bool,
    typer.Option("--quiet", "-q", envvar="LLMCOMPILE_QUIET", help="Only errors.", rich_help_panel=MESSAGES),
]
LogFormatOpt = Annotated[
    LogFormat,
    typer.Option(
        "--log-format",
        "--log_format",
        envvar="LLMCOMPILE_LOG_FORMAT",
        help="How messages on stderr are written.",
        rich_help_panel=MESSAGES,
    ),
]
KvCacheOpt = Annotated[
    str | None,
    typer.Option(
        "--kv-cache",
        "--kv_cache",
        "--kv-cache-dtype",
        "--kv_cache_dtype",
        envvar="LLMCOMPILE_KV_CACHE",
        metavar="WORD",
        help="fp8 or int8 (calibrated) for a KV cache of 8 bits; that of --dtype by default.",
        rich_help_panel=QUANTIZATION,
    ),
]
CalibDatasetOpt = Annotated[
    str | None,
    typer.Option(
        "--calib-dataset",
        "--calib_dataset",
        envvar="LLMCOMPILE_CALIB_DATASET",
        metavar="FILE|HUB_ID",
        help="Text that a calibrated recipe measures activations on: .jsonl or .parquet with text or input_ids in "
        "each record, or .txt; or a dataset of the hub, ORG/NAME[@REVISION][:FILE]; a short built-in text by "
        "default.",
        rich_help_panel=QUANTIZATION,
    ),
]
CalibColumnOpt = Annotated[
    str,
    typer.Option(
        "--calib-column",
        "--calib_column",
        envvar="LLMCOMPILE_CALIB_COLUMN",
        metavar="NAME",
        help="Key or column of each record's text.",
        rich_help_panel=QUANTIZATION,
    ),
]
CalibSizeOpt = Annotated[
    int,
    typer.Option(
        "--calib-size",
        "--calib_size",
        envvar="LLMCOMPILE_CALIB_SIZE",
        min=1,
        help="Samples of it, at most.",
        rich_help_panel=QUANTIZATION,
    ),
]
CalibSeqLenOpt = Annotated[
    int,
    typer.Option(
        "--calib-seq-len",
        "--calib_seq_len",
        "--calib-max-seq-length",
        "--calib_max_seq_length",
        envvar="LLMCOMPILE_CALIB_SEQ_LEN",
        min=2,
        help="Tokens of a sample.",
        rich_help_panel=QUANTIZATION,
    ),
]
CalibratorOpt = Annotated[
    str,
    typer.Option(
        "--calibrator",
        envvar="LLMCOMPILE_CALIBRATOR",
        metavar="WORD",
        help="llmcompile, or modelopt: measure with nvidia-modelopt (extra trtllm), layer by layer as well.",
        rich_help_panel=QUANTIZATION,
    ),
]
EvalTextOpt = Annotated[
    Path | None,
    typer.Option(
        "--eval-text",
        "--eval_text",
        envvar="LLMCOMPILE_EVAL_TEXT",
        metavar="FILE",
        help="Text for perplexity, KL divergence, top-1 agreement, 2048 tokens at most; a built-in one by default.",
        rich_help_panel=CHECKS,
    ),
]
TargetOpt = Annotated[
    str,
    typer.Option(
        "--target",
        envvar="LLMCOMPILE_TARGET",
        metavar="WORD",
        help="engine; or llmapi: a Hugging Face folder, quantized or not, for the LLM API, which is what 1.3 and "
        "later serve instead of engines.",
        rich_help_panel=BUILD,
    ),
]
