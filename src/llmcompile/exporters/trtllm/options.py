"""What `llmcompile build trtllm` may be asked, and what convert_checkpoint.py's flags mean in these words."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from llmcompile.errors import OptionsError, Problem, UnsupportedError, collected
from llmcompile.exporters.options import BuildOptions
from llmcompile.exporters.trtllm import versions, without_engine

DTYPES = ("float16", "bfloat16", "float32")
WEIGHT_ONLY = ("w8a16", "w4a16")
GROUPWISE = ("w4a16_gptq", "w4a16_awq", "int4_awq", "w4a8_awq")
OURS = {
    "--checkpoint_dir": "OUTPUT/checkpoint, or --from-checkpoint",
    "--output_dir": "OUTPUT/engine",
    "--model_config": "OUTPUT/checkpoint/config.json",
    "--workers": "--build-workers",
    "--input_timing_cache": "--input-timing-cache",
    "--output_timing_cache": "--output-timing-cache",
    "--timing_cache": "--input-timing-cache and --output-timing-cache",
}
"""Flags of trtllm-build that we pass ourselves, and where the value comes from."""
CALIBRATION = {
    "calib_dataset": "--calib-dataset",
    "calib_column": "--calib-column",
    "calib_size": "--calib-size",
    "calib_seq_len": "--calib-seq-len",
    "calibrator": "--calibrator",
}
"""Fields of TrtllmOptions that do nothing where nothing is calibrated -> their flags."""
_API_FIRST: versions.Release = (0, 12)
_CLI_ONLY = ("--model_cls_file", "--lora_dir", "--lora_target_modules", "--build_config", "--log_level")


@dataclass(frozen=True, kw_only=True)
class TrtllmOptions:
    """Options of the TensorRT-LLM backend.

    Attributes:
        build: Those every build command has.
        target: "engine", or "llmapi" for a Hugging Face folder that the LLM API serves without one.
        tp: Tensor parallel degree: ranks each layer is split over.
        pp: Pipeline parallel degree: stages the layers are dealt to.
        dtype: float16, bfloat16 or float32; None for the checkpoint's own, with float32 taken as float16.
        quantization: A name of `versions.RECIPES`; None for none.
        wo_layout: "deferred": w8a16 and w4a16 weights are stored plain and laid out by the builder; "sm80": stored
            quantized in the byte layout of SM75 to SM89.
        group_size: Input channels that share a scale, in the groupwise recipes.
        kv_cache: "fp8" or "int8"; None for the dtype.
        calib_dataset: Text to calibrate on: a .jsonl, .parquet or .txt file, or a dataset's hub id; None for a built-in
            one.
        calib_column: Key or column of a record's text.
        calib_size: Samples that are taken from it, at most.
        calib_seq_len: Tokens of each.
        calibrator: Whose arithmetic measures: "llmcompile", or "modelopt" for nvidia-modelopt's.
        use_parallel_embedding: Split the embedding table over the ranks instead of repeating it.
        embedding_sharding_dim: 0 splits that table by vocabulary, 1 by hidden size.
        use_embedding_sharing: Leave lm_head out where it is the embedding table; for 0.15 and earlier.
        moe_tp: Ranks each expert is split over; None for tp / moe_ep.
        moe_ep: Ranks the experts are dealt to; None for tp / moe_tp, or 1.
        max_position_embeddings: Replaces the 2048 recorded for a Meta checkpoint.
        trtllm_version: TensorRT-LLM the artifact is for.
        stop_after: "checkpoint" ends before the build; None goes on to the engine.
        from_checkpoint: A finished checkpoint to start at.
        keep_checkpoint: Leave the checkpoint in OUTPUT beside the engine.
        builder: "cli" runs trtllm-build; "api" calls tensorrt_llm.build in the same interpreter.
        toolchain_python: Interpreter that has tensorrt_llm; None for ours.
        trtllm_build: The trtllm-build to run; None for the one beside the interpreter.
        build_timeout_seconds: Longest time for the build of all ranks; None for no limit.
        build_workers: Ranks built at the same time, one GPU each.
        input_timing_cache: Kernel timings to begin with; None for those of the last build in the work folder.
        output_timing_cache: Where timings are written; None for the work folder.
        eval_text: Text for perplexity and top-1 agreement; None for the built-in sample.
        shard_size: Largest file of weights in bytes, with target "llmapi".
        engine: Flags of trtllm-build in its spelling, with their values; "" for a switch.
    """

    backend: ClassVar[Literal["trtllm"]] = "trtllm"

    build: BuildOptions
    target: str = "engine"
    tp: int = 1
    pp: int = 1
    dtype: str | None = None
    quantization: str | None = None
    wo_layout: str = "deferred"
    group_size: int = 128
    kv_cache: str | None = None
    calib_dataset: str | None = None
    calib_column: str = "text"
    calib_size: int = 128
    calib_seq_len: int = 512
    calibrator: str = "llmcompile"
    use_parallel_embedding: bool = False
    embedding_sharding_dim: int = 0
    use_embedding_sharing: bool = False
    moe_tp: int | None = None
    moe_ep: int | None = None
    max_position_embeddings: int | None = None
    trtllm_version: str = versions.DEFAULT_VERSION
    stop_after: str | None = None
    from_checkpoint: Path | None = None
    keep_checkpoint: bool = False
    builder: str = "cli"
    toolchain_python: Path | None = None
    trtllm_build: Path | None = None
    build_timeout_seconds: float | None = None
    build_workers: int = 1
    input_timing_cache: Path | None = None
    output_timing_cache: Path | None = None
    eval_text: Path | None = None
    shard_size: int = 5 * 10**9
    engine: tuple[versions.Setting, ...] = ()

    def __post_init__(self) -> None:
        _raise(OptionsError, _single_values(self))
        if self.target == "llmapi":
            self._check_llmapi()
            return
        release = versions.check_version(self.trtllm_version)
        _raise(UnsupportedError, [] if release is None else [release])
        _raise(OptionsError, [*_contradictions(self), *_engine_problems(self)])
        recipe = versions.check_recipe(self.quantization, self.trtllm_version)
        _raise(UnsupportedError, [] if recipe is None else [recipe])
        if self.shard_size != type(self).shard_size:
            found = "given for --target engine, which has a file for each rank"
            raise OptionsError("--shard-size", found, "--target llmapi", "drop --shard-size")

    def _check_llmapi(self) -> None:
        release = versions.check_llmapi_version(self.trtllm_version)
        _raise(UnsupportedError, [] if release is None else [release])
        text = [*_mapping_contradictions(self), *_data_contradictions(self), *_text_contradictions(self)]
        _raise(OptionsError, [*without_engine.unfit(self), *text])
        recipe = without_engine.unserved(self)
        _raise(UnsupportedError, [] if recipe is None else [recipe])

    @property
    def release(self) -> versions.Release:
        """Major and minor of the TensorRT-LLM the artifact is for."""
        release = versions.release_of(self.trtllm_version)
        assert release is not None  # __post_init__ refused it
        return release

    @property
    def moe(self) -> tuple[int, int]:
        """Ranks each expert is split over, and ranks the experts are dealt to; their product is tp."""
        if self.moe_tp is not None:
            return self.moe_tp, self.tp // self.moe_tp if self.moe_ep is None else self.moe_ep
        return (self.tp, 1) if self.moe_ep is None else (self.tp // self.moe_ep, self.moe_ep)

    @property
    def algorithm(self) -> str | None:
        """`quant_algo` of the checkpoint's config.json."""
        return None if self.quantization is None else versions.RECIPES[self.quantization].algorithm


def elsewhere(build: BuildOptions) -> str:
    """What to type for a model of a family that neither target has a network for."""
    rest = f"--model {shlex.quote(build.model)} {shlex.quote(str(build.output))}"
    return f"for RTX GPUs: llmcompile build tensorrt-rtx {rest}; for Inferentia and Trainium: llmcompile export neuron"


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """The fields of TrtllmOptions that convert_checkpoint.py's quantization flags decide."""

    quantization: str | None = None
    kv_cache: str | None = None
    group_size: int = TrtllmOptions.group_size


_PRECISIONS = {"int8": "w8a16", "int4": "w4a16", "int4_gptq": "w4a16_gptq", "int4_awq": "w4a16_awq"}
_SMOOTHED = "one of the converter's own SmoothQuant layouts, which are not written"
_SMOOTH = "use --quantization int8_sq, SmoothQuant as W8A8_SQ_PER_CHANNEL"


def from_upstream(
    *,
    use_weight_only: bool = False,
    weight_only_precision: str | None = None,
    use_fp8: bool = False,
    use_fp8_rowwise: bool = False,
    per_group: bool = False,
    group_size: int | None = None,
    int8_kv_cache: bool = False,
    fp8_kv_cache: bool = False,
    smoothquant: float | None = None,
    per_channel: bool = False,
    per_token: bool = False,
) -> Quantization:
    """Say convert_checkpoint.py's quantization flags in our words; each argument is the flag of that name.

    Raises:
        OptionsError: Two of them contradict each other, one has no effect, or one asks for what is not written.
    """
    calibrated = (
        ("--smoothquant", smoothquant is not None),
        ("--per_channel", per_channel),
        ("--per_token", per_token),
    )
    _raise(OptionsError, [Problem(flag, _SMOOTHED, "", _SMOOTH) for flag, given in calibrated if given])
    recipes = [
        flag
        for flag, given in (
            ("--use_weight_only", use_weight_only),
            ("--use_fp8", use_fp8),
            ("--use_fp8_rowwise", use_fp8_rowwise),
        )
        if given
    ]
    if len(recipes) > 1:
        raise OptionsError(recipes[0], f"with {' and '.join(recipes[1:])}", "one of them", f"drop {recipes[-1]}")
    if weight_only_precision is not None and not use_weight_only:
        raise OptionsError(
            "--weight_only_precision", "without --use_weight_only", "both", "add --use_weight_only, or drop it"
        )
    precision = "int8" if weight_only_precision is None else weight_only_precision
    if precision not in _PRECISIONS:
        raise OptionsError("--weight_only_precision", precision, " or ".join(_PRECISIONS))
    weight_only = _PRECISIONS[precision] if use_weight_only else None
    for flag, given in (("--per_group", per_group), ("--group_size", group_size is not None)):
        if given and weight_only not in GROUPWISE:
            raise OptionsError(
                flag, "without a groupwise precision", "--weight_only_precision int4_gptq or int4_awq", f"drop {flag}"
            )
    if group_size is not None and group_size < 1:
        raise OptionsError("--group_size", str(group_size), "1 or more", f"--group_size {TrtllmOptions.group_size}")
    if int8_kv_cache and fp8_kv_cache:
        raise OptionsError("--int8_kv_cache", "with --fp8_kv_cache", "one of them", "drop --int8_kv_cache")
    return Quantization(
        quantization="fp8" if use_fp8 else "fp8_rowwise" if use_fp8_rowwise else weight_only,
        kv_cache="fp8" if fp8_kv_cache else "int8" if int8_kv_cache else None,
        group_size=TrtllmOptions.group_size if group_size is None else group_size,
    )


def _raise(kind: type[OptionsError | UnsupportedError], problems: list[Problem]) -> None:
    if problems != []:
        raise collected(kind, problems)


def _single_values(options: TrtllmOptions) -> list[Problem]:
    counts: tuple[tuple[str, float | None], ...] = (
        ("--tp", options.tp),
        ("--pp", options.pp),
        ("--moe-tp", options.moe_tp),
        ("--moe-ep", options.moe_ep),
        ("--group-size", options.group_size),
        ("--calib-size", options.calib_size),
        ("--build-workers", options.build_workers),
        ("--max-position-embeddings", options.max_position_embeddings),
    )
    problems = [Problem(flag, str(value), "1 or more") for flag, value in counts if value is not None and value < 1]
    timeout = options.build_timeout_seconds
    if timeout is not None and not 0 < timeout < float("inf"):
        problems.append(Problem("--build-timeout", str(timeout), "a finite number of seconds, more than zero"))
    recipes = tuple(versions.RECIPES)
    words: tuple[tuple[str, object, tuple[object, ...]], ...] = (
        ("--target", options.target, ("engine", "llmapi")),
        ("--dtype", options.dtype, (None, *DTYPES, "auto")),
        ("--quantization", options.quantization, (None, *recipes)),
        ("--wo-layout", options.wo_layout, ("deferred", "sm80")),
        ("--embedding-sharding-dim", options.embedding_sharding_dim, (0, 1)),
        ("--stop-after", options.stop_after, (None, "checkpoint")),
        ("--builder", options.builder, ("cli", "api")),
        ("--calibrator", options.calibrator, ("llmcompile", "modelopt")),
    )
    for flag, value, allowed in words:
        if value not in allowed:
            listed = [str(word) for word in allowed if word is not None]
            near = difflib.get_close_matches(str(value), listed, n=1)
            hint = f"{flag} {near[0]}" if len(near) > 0 else f"drop {flag}"
            problems.append(Problem(flag, str(value), " or ".join(listed), hint))
    if options.kv_cache not in (None, *versions.KV_CACHES):
        problems.append(
            Problem("--kv-cache", str(options.kv_cache), " or ".join(versions.KV_CACHES), "drop --kv-cache")
        )
    if options.calib_seq_len < 2:
        hint = f"--calib-seq-len {TrtllmOptions.calib_seq_len}"
        problems.append(Problem("--calib-seq-len", str(options.calib_seq_len), "2 or more", hint))
    return problems


def calibration_flags(options: object) -> list[str]:
    """Those of `CALIBRATION` that options with these fields give another value than their default."""
    return [flag for name, flag in CALIBRATION.items() if getattr(options, name) != getattr(TrtllmOptions, name)]


def _contradictions(options: TrtllmOptions) -> Iterator[Problem]:
    yield from _recipe_contradictions(options)
    yield from _data_contradictions(options)
    yield from _mapping_contradictions(options)
    yield from _embedding_contradictions(options)
    yield from _stage_contradictions(options)


def _recipe_contradictions(options: TrtllmOptions) -> Iterator[Problem]:
    recipe = options.quantization
    if options.wo_layout != "deferred" and recipe not in (*WEIGHT_ONLY, "w4a16_gptq"):
        found = f"{options.wo_layout} with --quantization {recipe}" if recipe is not None else "without --quantization"
        yield Problem("--wo-layout", found, f"--quantization {' or '.join(WEIGHT_ONLY)}", "drop --wo-layout")
    if options.group_size != TrtllmOptions.group_size and recipe not in GROUPWISE:
        found = f"{options.group_size} without groups: --quantization {recipe}"
        yield Problem("--group-size", found, f"--quantization {' or '.join(GROUPWISE)}", "drop --group-size")
    if recipe is not None and options.dtype == "float32":
        yield Problem("--dtype", f"float32 with --quantization {recipe}", "float16 or bfloat16", "--dtype float16")


def _data_contradictions(options: TrtllmOptions) -> Iterator[Problem]:
    start = options.from_checkpoint is not None
    if options.calib_column != TrtllmOptions.calib_column and options.calib_dataset is None and not start:
        found = f"{options.calib_column} without --calib-dataset"
        yield Problem("--calib-column", found, "both", "add --calib-dataset, or drop --calib-column")


def _mapping_contradictions(options: TrtllmOptions) -> Iterator[Problem]:
    for flag, value in (("--moe-tp", options.moe_tp), ("--moe-ep", options.moe_ep)):
        if value is not None and options.tp % value != 0:
            yield Problem(flag, f"tp {options.tp} / {value} = {options.tp / value:.2f}", "a whole number")
    if options.moe_tp is not None and options.moe_ep is not None and options.moe_tp * options.moe_ep != options.tp:
        product = f"{options.moe_tp} x {options.moe_ep} = {options.moe_tp * options.moe_ep}"
        yield Problem("--moe-tp, --moe-ep", product, f"tp, {options.tp}", "give one of them: the other follows")
    if options.moe[1] > 1 and options.release < (0, 11):
        found = f"{options.moe[1]} with TensorRT-LLM {options.trtllm_version}"
        yield Problem("--moe-ep", found, "0.11 or later", f"--trtllm-version {versions.DEFAULT_VERSION}")


def _embedding_contradictions(options: TrtllmOptions) -> Iterator[Problem]:
    parallel, by_hidden = options.use_parallel_embedding, options.embedding_sharding_dim == 1
    if by_hidden and not parallel:
        yield Problem(
            "--embedding-sharding-dim", "1 without --use-parallel-embedding", "both", "add --use-parallel-embedding"
        )
    if parallel and not by_hidden and options.tp > 1 and options.release < (0, 11):
        # A table split by vocabulary does not load there unless the builder is told: spec section 4.4.
        found = f"split by vocabulary with TensorRT-LLM {options.trtllm_version}"
        yield Problem("--use-parallel-embedding", found, "0.11 or later", "drop --use-parallel-embedding")
    if not options.use_embedding_sharing:
        return
    flag = "--use-embedding-sharing"
    if options.release >= (0, 16):
        found = f"with TensorRT-LLM {options.trtllm_version}, which shares equal tables by itself"
        yield Problem(flag, found, "0.9 to 0.15", f"drop {flag}")
    if options.tp > 1 and (not parallel or by_hidden):
        table = "whole on every rank" if not parallel else "split by hidden size"
        hint = "add --use-parallel-embedding --embedding-sharding-dim 0"
        yield Problem(flag, f"with tp {options.tp} and a table {table}", "tp 1, or a table split by vocabulary", hint)
    if options.pp > 1:
        yield Problem(flag, f"with pp {options.pp}: table and lm_head are on different stages", "pp 1", f"drop {flag}")


def _stage_contradictions(options: TrtllmOptions) -> Iterator[Problem]:
    start = "--from-checkpoint"
    if options.from_checkpoint is not None:
        if options.stop_after is not None:
            found = f"checkpoint with {start}: nothing is left to do"
            yield Problem("--stop-after", found, "one of them", "drop --stop-after")
        if options.keep_checkpoint:
            found = f"with {start}, which stays where it is"
            yield Problem("--keep-checkpoint", found, "one of them", "drop --keep-checkpoint")
        if options.build.workers is not None:
            found = f"{options.build.workers} threads to convert with {start}, which is converted"
            hint = f"for ranks built side by side: --build-workers {options.build.workers}"
            yield Problem("--workers", found, "neither", hint)
        decided = (
            ("--max-position-embeddings", options.max_position_embeddings is not None),
            ("--group-size", options.group_size != TrtllmOptions.group_size),
            *((flag, True) for flag in calibration_flags(options)),
            ("--use-parallel-embedding", options.use_parallel_embedding),
            ("--embedding-sharding-dim", options.embedding_sharding_dim != TrtllmOptions.embedding_sharding_dim),
            ("--use-embedding-sharing", options.use_embedding_sharing),
            ("--moe-tp, --moe-ep", options.moe_tp is not None or options.moe_ep is not None),
            ("--allow-overflow", options.build.allow_overflow),
        )
        for flag, given in decided:
            if given:
                yield Problem(flag, f"with {start}, whose config.json decided it", "one of them", f"drop {flag}")
    yield from _text_contradictions(options)


def _text_contradictions(options: TrtllmOptions) -> Iterator[Problem]:
    if options.eval_text is not None and not options.build.validate:
        yield Problem("--eval-text", "with --no-validate", "one or the other", "drop --no-validate")


def _engine_problems(options: TrtllmOptions) -> list[Problem]:
    names = [name for name, _ in options.engine]
    problems = [Problem(name, "given as an engine flag", OURS[name]) for name in names if name in OURS]
    problems += versions.refuse_unknown(names, options.trtllm_version)
    problems += versions.check_values(options.engine, options.trtllm_version)
    return problems if problems != [] else [*_engine_contradictions(options)]


def _engine_contradictions(options: TrtllmOptions) -> Iterator[Problem]:
    value = {name: values[-1] for name, values in versions.grouped(options.engine).items()}

    def on(name: str) -> bool:
        return name in value and value[name] != "disable"

    if on("--weight_streaming") and on("--gemm_plugin"):
        found = f"with --gemm_plugin {value['--gemm_plugin']}"
        yield Problem("--weight_streaming", found, "--gemm_plugin disable", "--gemm_plugin disable")
    if on("--multiple_profiles") and "--opt_num_tokens" in value:
        yield Problem("--multiple_profiles", "with --opt_num_tokens", "one of them", "drop --opt_num_tokens")
    if on("--user_buffer") and not on("--reduce_fusion"):
        yield Problem("--user_buffer", "without --reduce_fusion enable", "both", "--reduce_fusion enable")
    context = on("--gather_context_logits") or on("--gather_all_token_logits")
    if context and int(value.get("--max_draft_len", "0")) > 0:
        yield Problem("--gather_context_logits", "with --max_draft_len", "one of them", "drop --max_draft_len")
    longest = value.get("--max_seq_len", value.get("--max_decoder_seq_len"))
    if longest is not None and int(value.get("--max_input_len", "0")) > int(longest):
        found = f"{value['--max_input_len']}, more than --max_seq_len {longest}, which counts input and output"
        yield Problem("--max_input_len", found, f"{longest} at most", f"--max_seq_len {value['--max_input_len']}")
    if "--kv_cache_type" in value and "--paged_kv_cache" in value:
        yield Problem("--paged_kv_cache", "with --kv_cache_type, its successor", "one of them", "drop --paged_kv_cache")
    if value.get("--kv_cache_type", "paged").lower() not in ("paged", "continuous", "disabled"):
        yield Problem("--kv_cache_type", value["--kv_cache_type"], "paged or continuous or disabled")
    if options.builder == "api":
        if options.release < _API_FIRST:
            found = f"api with TensorRT-LLM {options.trtllm_version}"
            yield Problem("--builder", found, f"{versions.text_of(_API_FIRST)} or later", "--builder cli")
        yield from (Problem(name, "with --builder api", "--builder cli") for name in _CLI_ONLY if name in value)
