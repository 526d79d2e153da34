"""`llmcompile build ...`: artifacts that end in a vendor's compiler."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, TypeVar

import typer

from llmcompile.cli import params
from llmcompile.errors import OptionsError
from llmcompile.exporters.options import BuildOptions
from llmcompile.exporters.trtllm import versions
from llmcompile.exporters.trtllm.options import DTYPES, OURS, Quantization, TrtllmOptions, from_upstream

app = typer.Typer(help="Convert, quantize, validate and compile a model.", no_args_is_help=True)

_Function = TypeVar("_Function", bound=Callable[..., None])

DTYPE_WORDS: Mapping[str, str | None] = MappingProxyType(
    {"auto": None, "fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}
)
"""Further words of --dtype: the converter's, and those of `partition ft`."""
_RECIPE_FLAGS = (
    "use_weight_only",
    "weight_only_precision",
    "use_fp8",
    "use_fp8_rowwise",
    "per_group",
    "smoothquant",
    "per_channel",
    "per_token",
)
_RECIPES: Mapping[str, str] = MappingProxyType(
    {
        "int8": "w8a16",
        "int4": "w4a16",
        "int4_gptq": "w4a16_gptq",
        **{recipe.algorithm.lower(): name for name, recipe in versions.RECIPES.items()},
        **{name: name for name in versions.RECIPES},
    }
)
"""Further words of --quantization: the converter's precisions, and config.json's quant_algo."""
_CACHE_FLAGS = ("int8_kv_cache", "fp8_kv_cache")
"""Flags of convert_checkpoint.py that say what --quantization and --kv-cache say."""


# trtllm-build's flags, from the table


_SHARED = (
    "--checkpoint_dir",
    "--output_dir",
    "--workers",
    "--dry_run",
    "--input_timing_cache",
    "--output_timing_cache",
    "--tp_size",
    "--pp_size",
    "--weight_only_precision",
)
"""Flags of trtllm-build whose name is an option of ours, or of convert_checkpoint.py, with its own meaning."""
_COMMON = (
    "--max_batch_size",
    "--max_input_len",
    "--max_seq_len",
    "--max_num_tokens",
    "--opt_num_tokens",
    "--max_beam_width",
    "--max_encoder_input_len",
    "--gemm_plugin",
    "--gpt_attention_plugin",
    "--kv_cache_type",
    "--context_fmha",
    "--remove_input_padding",
    "--use_paged_context_fmha",
    "--use_fused_mlp",
    "--multiple_profiles",
    "--gather_context_logits",
    "--weight_streaming",
    "--strip_plan",
    "--fast_build",
    "--log_level",
)
"""Flags that --help shows; all of them would be a wall of text, and take longer to draw than everything else."""
_METAVARS = MappingProxyType(
    {
        versions.INTEGER: "INTEGER",
        versions.TEXT: "TEXT",
        versions.CHOICE: "WORD",
        versions.WORDS: "TEXT",
    }
)


def _engine_parameters() -> Iterator[inspect.Parameter]:
    """One parameter for each flag that any release of trtllm-build has, in the table's order."""
    rows: dict[str, list[versions.Flag]] = {}
    for flag in versions.FLAGS:
        if flag.name not in _SHARED:
            rows.setdefault(flag.name, []).append(flag)
    for name, history in rows.items():
        switch = all(flag.kind == versions.SWITCH for flag in history)
        spellings = dict.fromkeys((name.replace("_", "-"), name))
        option = typer.Option(
            *spellings,
            envvar=f"LLMCOMPILE_{name[2:].upper()}",
            show_envvar=False,
            parser=None if switch else _parser(name, history),
            metavar=None if switch else _METAVARS[history[-1].kind],
            help=_help(history),
            hidden=name not in _COMMON,
            rich_help_panel=params.ENGINE,
        )
        yield inspect.Parameter(
            name[2:],
            inspect.Parameter.KEYWORD_ONLY,
            default=False if switch else None,
            annotation=Annotated[bool if switch else list[str] | None, option],
        )


def _parser(name: str, history: list[versions.Flag]) -> Callable[[str], str]:
    """Take a value as it is, unless it must be a slip; what fits which release is the options' business."""
    optional = any(flag.kind == versions.SWITCH for flag in history)
    words = ("enable", "disable") if history[-1].kind == versions.CHOICE else ()

    def value(text: str) -> str:
        if name in OURS:
            raise typer.BadParameter(f"llmcompile gives it to trtllm-build; here it is {OURS[name]}.")
        if optional and (text.startswith("-") or (words != () and text not in words)):
            raise typer.BadParameter(f"{text!r} is not its value; write {name} enable, also where it is a switch.")
        if text.startswith("--"):
            raise typer.BadParameter(f"{text!r} is not its value; write {name} VALUE.")
        return text

    return value


def _help(history: list[versions.Flag]) -> str:
    """What a flag takes, and the releases that have it."""
    if history[0].name in OURS:
        return f"Given by llmcompile itself: {OURS[history[0].name]}."
    words = _kind(history[-1])
    before = [flag for flag in history if flag.kind == versions.SWITCH and flag is not history[-1]]
    if before != [] and before[-1].last is not None:
        words = f"{words}; a switch to {versions.text_of(before[-1].last)}"
    return f"{words}{_span(history[0].first, history[-1].last)}."


def _kind(flag: versions.Flag) -> str:
    if flag.kind == versions.CHOICE:
        return f"{', '.join(flag.choices[:-1])} or {flag.choices[-1]}"
    return {
        versions.SWITCH: "A switch",
        versions.INTEGER: "A number",
        versions.TEXT: "A text",
        versions.WORDS: "A text; repeat the flag for several",
    }[flag.kind]


def _span(first: versions.Release, last: versions.Release | None) -> str:
    since = first > versions.FIRST_SUPPORTED
    if last is None:
        return f" ({versions.text_of(first)} and later)" if since else ""
    return f" ({versions.text_of(first)} to {versions.text_of(last)})"


def _with_engine_flags(function: _Function) -> _Function:
    """Put trtllm-build's flags in the place of `**engine`, for Typer to see."""
    signature = inspect.signature(function, eval_str=True)
    kept = [made for made in signature.parameters.values() if made.kind is not inspect.Parameter.VAR_KEYWORD]
    made = [*kept, *_engine_parameters()]
    function.__signature__ = signature.replace(parameters=made)  # type: ignore[attr-defined]
    function.__annotations__ = {parameter.name: parameter.annotation for parameter in made} | {"return": None}
    return function


def _settings(typed: Mapping[str, Any], engine: Mapping[str, Any]) -> Iterator[versions.Setting]:
    """The engine flags that were given, in the order they were typed: that of the context's parameters."""
    for name in typed:
        value = engine.get(name)
        if value is True:
            yield f"--{name}", ""
        elif value:
            yield from ((f"--{name}", word) for word in value)


# The command


def _quantization(
    recipe: str | None, kv_cache: str | None, group_size: int | None, upstream: Mapping[str, Any]
) -> Quantization:
    """What --quantization, --kv-cache and --group-size decide, or convert_checkpoint.py's flags in their place.

    Raises:
        OptionsError: Both ways are used for one thing, or convert_checkpoint.py's flags contradict each other.
    """
    given = {name for name, value in upstream.items() if value not in (False, None)}
    for ours, decided, flags in (("--quantization", recipe, _RECIPE_FLAGS), ("--kv-cache", kv_cache, _CACHE_FLAGS)):
        theirs = [f"--{name}" for name in flags if name in given]
        if decided is not None and theirs != []:
            raise OptionsError(ours, f"with {' and '.join(theirs)}", "one of them", f"drop {' and '.join(theirs)}")
    if recipe is not None:
        recipe = _RECIPES.get(recipe.lower(), recipe)
    if recipe is None:
        said = from_upstream(group_size=group_size, **upstream)
    else:
        said = from_upstream(**{name: value for name, value in upstream.items() if name in _CACHE_FLAGS})
    return Quantization(
        quantization=said.quantization if recipe is None else recipe,
        kv_cache=said.kv_cache if kv_cache is None else kv_cache,
        group_size=said.group_size if group_size is None else group_size,
    )


def _model(model: str | None, from_checkpoint: Path | None) -> str:
    if model is not None:
        return model
    if from_checkpoint is not None:
        return str(from_checkpoint)
    raise OptionsError(
        "--model",
        "not given",
        "a local folder or a hub id",
        "add --model DIR|HUB_ID, or --from-checkpoint DIR to start at a finished checkpoint",
    )


def _output(argument: Path | None, option: Path | None) -> Path:
    """OUTPUT, or what the vendor's scripts call --output_dir.

    Raises:
        OptionsError: Both were given, or neither.
    """
    if argument is not None and option is not None:
        raise OptionsError("OUTPUT", f"{argument}, with --output-dir {option}", "one of them", "drop --output-dir")
    if argument is None and option is None:
        raise OptionsError("OUTPUT", "not given", "a directory to create", "add its name to the end of the command")
    return argument if argument is not None else Path(str(option))


def _tensor_parallel(tp: int | None, pp: int, world_size: int | None) -> int:
    """Ranks each layer is split over, said by --tp or by --world-size.

    Raises:
        OptionsError: Both were given and do not agree, or the stages do not divide the world.
    """
    if world_size is None:
        return TrtllmOptions.tp if tp is None else tp
    if world_size % pp != 0 or (tp is not None and tp * pp != world_size):
        product = f"tp {'?' if tp is None else tp} x pp {pp}"
        raise OptionsError("--world-size", f"{world_size}, with {product}", "their product", "drop --world-size")
    return world_size // pp


def version_for(given: str | None, target: str) -> str:
    """The release the artifact is for."""
    if given is not None:
        return given
    return versions.LLMAPI_VERSION if target == "llmapi" else TrtllmOptions.trtllm_version


def _refuse_words(output: Path, words: list[str]) -> None:
    """A second word without a flag: mostly a flag's second value, which would make its first neighbour OUTPUT."""
    if words == []:
        return
    raise OptionsError(
        "OUTPUT",
        f"{len(words) + 1} words without a flag: {' '.join([str(output), *words])}",
        "one, the directory to create",
        "a flag takes one value and a switch takes none; repeat a flag for each of its values: "
        "--lora_target_modules attn_q --lora_target_modules attn_v",
    )


@app.command(
    context_settings={"allow_extra_args": True},
    epilog="Every other flag of trtllm-build 0.8 to 1.2 is taken as well, or refused by name: docs/cli.md lists them.",
)
@_with_engine_flags
def trtllm(
    context: typer.Context,
    output: Annotated[
        Path | None,
        typer.Argument(metavar="OUTPUT", help="Directory to create.", envvar="LLMCOMPILE_OUTPUT", show_default=False),
    ] = None,
    output_dir: Annotated[
        Path | None,
        typer.Option(
            "--output-dir",
            "--output_dir",
            envvar="LLMCOMPILE_OUTPUT_DIR",
            help="OUTPUT, as the vendor's scripts spell it.",
            rich_help_panel=params.BUILD,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            "--model-dir",
            "--model_dir",
            "--meta-ckpt-dir",
            "--meta_ckpt_dir",
            envvar="LLMCOMPILE_MODEL",
            help="Local folder, or hub id like org/name or org/name@revision; optional with --from-checkpoint.",
            rich_help_panel=params.SOURCE,
        ),
    ] = None,
    revision: params.RevisionOpt = BuildOptions.revision,
    cache_dir: params.CacheDirOpt = BuildOptions.cache_dir,
    token: params.TokenOpt = BuildOptions.token,
    trust_remote_code: params.TrustRemoteCodeOpt = BuildOptions.trust_remote_code,
    from_checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--from-checkpoint",
            "--from_checkpoint",
            "--checkpoint-dir",
            "--checkpoint_dir",
            envvar="LLMCOMPILE_FROM_CHECKPOINT",
            metavar="DIR",
            help="Start at a finished checkpoint: an OUTPUT that holds one, or its folder.",
            rich_help_panel=params.SOURCE,
        ),
    ] = TrtllmOptions.from_checkpoint,
    tp: Annotated[
        int | None,
        typer.Option(
            "--tp",
            "--tp-size",
            "--tp_size",
            "--tensor-parallel-degree",
            "--tensor_parallel_degree",
            envvar="LLMCOMPILE_TP",
            min=1,
            help="Ranks each layer is split over; 1 by default.",
            rich_help_panel=params.BUILD,
        ),
    ] = None,
    world_size: Annotated[
        int | None,
        typer.Option(
            "--world-size",
            "--world_size",
            envvar="LLMCOMPILE_WORLD_SIZE",
            min=1,
            help="All ranks, as Gemma's converter counts: --tp times --pp, which it must agree with.",
            rich_help_panel=params.BUILD,
        ),
    ] = None,
    pp: Annotated[
        int,
        typer.Option(
            "--pp",
            "--pp-size",
            "--pp_size",
            "--pipeline-parallel-degree",
            "--pipeline_parallel_degree",
            envvar="LLMCOMPILE_PP",
            min=1,
            help="Pipeline stages the layers are dealt to.",
            rich_help_panel=params.BUILD,
        ),
    ] = TrtllmOptions.pp,
    moe_tp: Annotated[
        int | None,
        typer.Option(
            "--moe-tp",
            "--moe_tp",
            "--moe-tp-size",
            "--moe_tp_size",
            envvar="LLMCOMPILE_MOE_TP",
            help="Ranks each expert is split over; what is left of --tp by default, also for -1.",
            rich_help_panel=params.BUILD,
        ),
    ] = TrtllmOptions.moe_tp,
    moe_ep: Annotated[
        int | None,
        typer.Option(
            "--moe-ep",
            "--moe_ep",
            "--moe-ep-size",
            "--moe_ep_size",
            envvar="LLMCOMPILE_MOE_EP",
            help="Ranks the experts are dealt to; likewise, or 1.",
            rich_help_panel=params.BUILD,
        ),
    ] = TrtllmOptions.moe_ep,
    dtype: Annotated[
        str,
        typer.Option(
            "--dtype",
            envvar="LLMCOMPILE_DTYPE",
            metavar="WORD",
            help=f"Element type: {', '.join(DTYPES)}, or auto for the checkpoint's own, with float32 taken as float16.",
            rich_help_panel=params.BUILD,
        ),
    ] = "auto",
    use_parallel_embedding: Annotated[
        bool,
        typer.Option(
            "--use-parallel-embedding",
            "--use_parallel_embedding",
            envvar="LLMCOMPILE_USE_PARALLEL_EMBEDDING",
            help="Split the embedding table over the ranks instead of repeating it.",
            rich_help_panel=params.BUILD,
        ),
    ] = TrtllmOptions.use_parallel_embedding,
    embedding_sharding_dim: Annotated[
        int,
        typer.Option(
            "--embedding-sharding-dim",
            "--embedding_sharding_dim",
            envvar="LLMCOMPILE_EMBEDDING_SHARDING_DIM",
            help="0 splits that table by vocabulary, 1 by hidden size.",
            rich_help_panel=params.BUILD,
        ),
    ] = TrtllmOptions.embedding_sharding_dim,
    use_embedding_sharing: Annotated[
        bool,
        typer.Option(
            "--use-embedding-sharing",
            "--use_embedding_sharing",
            envvar="LLMCOMPILE_USE_EMBEDDING_SHARING",
            help="Leave lm_head out where it is the embedding table; for 0.15 and earlier.",
            rich_help_panel=params.BUILD,
        ),
    ] = TrtllmOptions.use_embedding_sharing,
    max_position_embeddings: Annotated[
        int | None,
        typer.Option(
            "--max-position-embeddings",
            "--max_position_embeddings",
            envvar="LLMCOMPILE_MAX_POSITION_EMBEDDINGS",
            help="Positions of a model in Meta's format, which does not say; 2048 by default.",
            rich_help_panel=params.BUILD,
        ),
    ] = TrtllmOptions.max_position_embeddings,
    model_type: Annotated[
        str | None,
        typer.Option(
            "--model-type",
            "--model_type",
            "--ckpt-type",
            "--ckpt_type",
            envvar="LLMCOMPILE_MODEL_TYPE",
            help="Without effect: config.json says what the model is.",
            rich_help_panel=params.BUILD,
        ),
    ] = None,
    load_by_shard: Annotated[
        bool,
        typer.Option(
            "--load-by-shard",
            "--load_by_shard",
            envvar="LLMCOMPILE_LOAD_BY_SHARD",
            help="Without effect: weights are always streamed.",
            rich_help_panel=params.BUILD,
        ),
    ] = False,
    load_model_on_cpu: Annotated[
        bool,
        typer.Option(
            "--load-model-on-cpu",
            "--load_model_on_cpu",
            envvar="LLMCOMPILE_LOAD_MODEL_ON_CPU",
            help="Without effect: no GPU is used to convert.",
            rich_help_panel=params.BUILD,
        ),
    ] = False,
    quantization: Annotated[
        str | None,
        typer.Option(
            "--quantization",
            envvar="LLMCOMPILE_QUANTIZATION",
            metavar="RECIPE",
            help=f"{', '.join(versions.RECIPES)}, or as quant_algo (W8A16) or precision (int8); by default none, or "
            "what the checkpoint comes as.",
            rich_help_panel=params.QUANTIZATION,
        ),
    ] = TrtllmOptions.quantization,
    kv_cache: params.KvCacheOpt = TrtllmOptions.kv_cache,
    calib_dataset: params.CalibDatasetOpt = TrtllmOptions.calib_dataset,
    calib_column: params.CalibColumnOpt = TrtllmOptions.calib_column,
    calib_size: params.CalibSizeOpt = TrtllmOptions.calib_size,
    calib_seq_len: params.CalibSeqLenOpt = TrtllmOptions.calib_seq_len,
    calibrator: params.CalibratorOpt = TrtllmOptions.calibrator,
    wo_layout: Annotated[
        str,
        typer.Option(
            "--wo-layout",
            "--wo_layout",
            envvar="LLMCOMPILE_WO_LAYOUT",
            metavar="WORD",
            help="deferred: the builder quantizes for its GPU; sm80: stored quantized, for SM75 to SM89.",
            rich_help_panel=params.QUANTIZATION,
        ),
    ] = TrtllmOptions.wo_layout,
    group_size: Annotated[
        int | None,
        typer.Option(
            "--group-size",
            "--group_size",
            envvar="LLMCOMPILE_GROUP_SIZE",
            help=f"Input channels that share a scale in a groupwise recipe; {TrtllmOptions.group_size} by default.",
            rich_help_panel=params.QUANTIZATION,
        ),
    ] = None,
    use_weight_only: Annotated[
        bool,
        typer.Option(
            "--use-weight-only",
            "--use_weight_only",
            envvar="LLMCOMPILE_USE_WEIGHT_ONLY",
            help="--quantization w8a16, or what --weight-only-precision says.",
            rich_help_panel=params.QUANTIZATION,
        ),
    ] = False,
    weight_only_precision: Annotated[
        str | None,
        typer.Option(
            "--weight-only-precision",
            "--weight_only_precision",
            envvar="LLMCOMPILE_WEIGHT_ONLY_PRECISION",
            metavar="WORD",
            help="int8, int4, int4_gptq or int4_awq, with --use-weight-only.",
            rich_help_panel=params.QUANTIZATION,
        ),
    ] = None,
    use_fp8: Annotated[
        bool,
        typer.Option(
            "--use-fp8",
            "--use_fp8",
            envvar="LLMCOMPILE_USE_FP8",
            help="--quantization fp8.",
            rich_help_panel=params.QUANTIZATION,
        ),
    ] = False,
    use_fp8_rowwise: Annotated[
        bool,
        typer.Option(
            "--use-fp8-rowwise",
            "--use_fp8_rowwise",
            envvar="LLMCOMPILE_USE_FP8_ROWWISE",
            help="--quantization fp8_rowwise.",
            rich_help_panel=params.QUANTIZATION,
        ),
    ] = False,
    per_group: Annotated[
        bool,
        typer.Option(
            "--per-group",
            "--per_group",
            envvar="LLMCOMPILE_PER_GROUP",
            help="Implied by int4_gptq and int4_awq.",
            rich_help_panel=params.QUANTIZATION,
        ),
    ] = False,
    fp8_kv_cache: Annotated[
        bool,
        typer.Option(
            "--fp8-kv-cache",
            "--fp8_kv_cache",
            envvar="LLMCOMPILE_FP8_KV_CACHE",
            help="--kv-cache fp8.",
            rich_help_panel=params.QUANTIZATION,
        ),
    ] = False,
    int8_kv_cache: Annotated[
        bool,
        typer.Option(
            "--int8-kv-cache",
            "--int8_kv_cache",
            envvar="LLMCOMPILE_INT8_KV_CACHE",
            help="--kv-cache int8.",
            rich_help_panel=params.QUANTIZATION,
        ),
    ] = False,
    smoothquant: Annotated[
        float | None,
        typer.Option(
            "--smoothquant",
            "-sq",
            envvar="LLMCOMPILE_SMOOTHQUANT",
            help="Refused: --quantization int8_sq is the SmoothQuant that is written.",
            rich_help_panel=params.QUANTIZATION,
        ),
    ] = None,
    per_channel: Annotated[
        bool,
        typer.Option(
            "--per-channel",
            "--per_channel",
            envvar="LLMCOMPILE_PER_CHANNEL",
            help="Refused likewise.",
            rich_help_panel=params.QUANTIZATION,
        ),
    ] = False,
    per_token: Annotated[
        bool,
        typer.Option(
            "--per-token",
            "--per_token",
            envvar="LLMCOMPILE_PER_TOKEN",
            help="Refused likewise.",
            rich_help_panel=params.QUANTIZATION,
        ),
    ] = False,
    target: params.TargetOpt = TrtllmOptions.target,
    shard_size: Annotated[
        int,
        typer.Option(
            "--shard-size",
            "--shard_size",
            "--max-shard-size",
            "--max_shard_size",
            envvar="LLMCOMPILE_SHARD_SIZE",
            parser=params.size,
            metavar="SIZE",
            help="Largest file of weights, with --target llmapi.",
            rich_help_panel=params.BUILD,
        ),
    ] = TrtllmOptions.shard_size,
    trtllm_version: Annotated[
        str | None,
        typer.Option(
            "--trtllm-version",
            "--trtllm_version",
            envvar="LLMCOMPILE_TRTLLM_VERSION",
            metavar="VERSION",
            help=f"TensorRT-LLM the artifact is for: {versions.text_of(versions.FIRST_SUPPORTED)} to "
            f"{versions.LAST_VERSION}, which is the default; with --target llmapi "
            f"{versions.text_of(versions.FIRST_LLMAPI)} or later, {versions.LLMAPI_VERSION} by default.",
            rich_help_panel=params.TOOLCHAIN,
        ),
    ] = None,
    stop_after: Annotated[
        str | None,
        typer.Option(
            "--stop-after",
            "--stop_after",
            envvar="LLMCOMPILE_STOP_AFTER",
            metavar="STAGE",
            help="checkpoint ends before the build, which alone needs TensorRT-LLM and a GPU.",
            rich_help_panel=params.TOOLCHAIN,
        ),
    ] = TrtllmOptions.stop_after,
    keep_checkpoint: Annotated[
        bool,
        typer.Option(
            "--keep-checkpoint",
            "--keep_checkpoint",
            envvar="LLMCOMPILE_KEEP_CHECKPOINT",
            help="Leave the checkpoint in OUTPUT beside the engine.",
            rich_help_panel=params.TOOLCHAIN,
        ),
    ] = TrtllmOptions.keep_checkpoint,
    builder: Annotated[
        str,
        typer.Option(
            "--builder",
            envvar="LLMCOMPILE_BUILDER",
            metavar="WORD",
            help="cli runs trtllm-build; api calls tensorrt_llm.build.",
            rich_help_panel=params.TOOLCHAIN,
        ),
    ] = TrtllmOptions.builder,
    toolchain_python: Annotated[
        Path | None,
        typer.Option(
            "--toolchain-python",
            "--toolchain_python",
            envvar="LLMCOMPILE_TOOLCHAIN_PYTHON",
            metavar="PATH",
            help="Interpreter that has tensorrt_llm; this one by default.",
            rich_help_panel=params.TOOLCHAIN,
        ),
    ] = TrtllmOptions.toolchain_python,
    trtllm_build: Annotated[
        Path | None,
        typer.Option(
            "--trtllm-build",
            "--trtllm_build",
            envvar="LLMCOMPILE_TRTLLM_BUILD",
            metavar="PATH",
            help="The trtllm-build to run; the one beside the interpreter by default.",
            rich_help_panel=params.TOOLCHAIN,
        ),
    ] = TrtllmOptions.trtllm_build,
    build_timeout: Annotated[
        float | None,
        typer.Option(
            "--build-timeout",
            "--build_timeout",
            envvar="LLMCOMPILE_BUILD_TIMEOUT",
            metavar="SECONDS",
            help="Longest time for the build of all ranks; no limit by default.",
            rich_help_panel=params.TOOLCHAIN,
        ),
    ] = TrtllmOptions.build_timeout_seconds,
    build_workers: Annotated[
        int,
        typer.Option(
            "--build-workers",
            "--build_workers",
            envvar="LLMCOMPILE_BUILD_WORKERS",
            min=1,
            help="Ranks built at the same time, one GPU each: trtllm-build's --workers.",
            rich_help_panel=params.TOOLCHAIN,
        ),
    ] = TrtllmOptions.build_workers,
    input_timing_cache: Annotated[
        Path | None,
        typer.Option(
            "--input-timing-cache",
            "--input_timing_cache",
            envvar="LLMCOMPILE_INPUT_TIMING_CACHE",
            metavar="FILE",
            help="Kernel timings to begin with.",
            rich_help_panel=params.TOOLCHAIN,
        ),
    ] = TrtllmOptions.input_timing_cache,
    output_timing_cache: Annotated[
        Path | None,
        typer.Option(
            "--output-timing-cache",
            "--output_timing_cache",
            envvar="LLMCOMPILE_OUTPUT_TIMING_CACHE",
            metavar="FILE",
            help="Where timings are written; into OUTPUT by default.",
            rich_help_panel=params.TOOLCHAIN,
        ),
    ] = TrtllmOptions.output_timing_cache,
    validate: params.ValidateOpt = BuildOptions.validate,
    eval_text: params.EvalTextOpt = TrtllmOptions.eval_text,
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
    **engine: Any,
) -> None:
    """Build a TensorRT-LLM engine: OUTPUT/engine, or OUTPUT/checkpoint with --stop-after checkpoint.

    With --target llmapi, OUTPUT is a Hugging Face folder that the LLM API serves, and nothing is compiled.

    Flags of convert_checkpoint.py and trtllm-build keep their spelling and meaning, but for --dry_run, and for
    --workers, which is --build-workers here.
    """
    from llmcompile.cli.console import Console

    with Console(command="build trtllm", json=json, quiet=quiet, log_format=log_format.value) as console:
        folder = _output(output, output_dir)
        _refuse_words(folder, context.args)
        upstream = {
            "use_weight_only": use_weight_only,
            "weight_only_precision": weight_only_precision,
            "use_fp8": use_fp8,
            "use_fp8_rowwise": use_fp8_rowwise,
            "per_group": per_group,
            "int8_kv_cache": int8_kv_cache,
            "fp8_kv_cache": fp8_kv_cache,
            "smoothquant": smoothquant,
            "per_channel": per_channel,
            "per_token": per_token,
        }
        quantized = _quantization(quantization, kv_cache, group_size, upstream)
        settings = tuple(_settings(context.params, engine))
        options = TrtllmOptions(
            build=BuildOptions(
                model=_model(model, from_checkpoint),
                output=folder,
                revision=revision,
                cache_dir=cache_dir,
                token=token,
                trust_remote_code=trust_remote_code,
                validate=validate,
                atol=atol,
                rtol=rtol,
                package=tuple(package),
                dry_run=dry_run,
                resume=resume,
                force=force,
                max_memory=max_memory,
                workers=workers,
                allow_overflow=allow_overflow,
            ),
            target=target,
            tp=_tensor_parallel(tp, pp, world_size),
            pp=pp,
            dtype=DTYPE_WORDS.get(dtype, dtype),
            quantization=quantized.quantization,
            wo_layout=wo_layout,
            group_size=quantized.group_size,
            kv_cache=quantized.kv_cache,
            calib_dataset=calib_dataset,
            calib_column=calib_column,
            calib_size=calib_size,
            calib_seq_len=calib_seq_len,
            calibrator=calibrator,
            use_parallel_embedding=use_parallel_embedding,
            embedding_sharding_dim=embedding_sharding_dim,
            use_embedding_sharing=use_embedding_sharing,
            moe_tp=None if moe_tp == -1 else moe_tp,
            moe_ep=None if moe_ep == -1 else moe_ep,
            max_position_embeddings=max_position_embeddings,
            trtllm_version=version_for(trtllm_version, target),
            stop_after=stop_after,
            from_checkpoint=from_checkpoint,
            keep_checkpoint=keep_checkpoint,
            builder=builder,
            toolchain_python=toolchain_python,
            trtllm_build=trtllm_build,
            build_timeout_seconds=build_timeout,
            build_workers=build_workers,
            input_timing_cache=input_timing_cache,
            output_timing_cache=output_timing_cache,
            eval_text=eval_text,
            shard_size=shard_size,
            engine=settings,
        )
        unused = dict.fromkeys(name for name, _ in settings)
        if build_workers != TrtllmOptions.build_workers:
            unused["--build-workers"] = None
        if stop_after is not None and len(unused) > 0:
            names = ", ".join(unused)
            count = f"{len(unused)} engine flag{'' if len(unused) == 1 else 's'}"
            console.say("unused", f"{count} without effect, given --stop-after {stop_after}: {names}")
        console.run(options)
