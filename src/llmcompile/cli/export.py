"""`llmcompile export ...`: graphs for a vendor's compiler."""

from pathlib import Path
from types import MappingProxyType
from typing import Annotated

import typer

from llmcompile.cli import params
from llmcompile.errors import OptionsError
from llmcompile.exporters.neuron.options import (
    AUTO_CASTS,
    CAST_TYPES,
    DTYPES,
    INSTANCE_TYPES,
    LAYOUTS,
    SYNONYMS,
    TASKS,
    NeuronOptions,
    Shapes,
)
from llmcompile.exporters.options import BuildOptions

app = typer.Typer(help="Lower, check, validate and compile a model.", no_args_is_help=True)

SHAPES = "Static shapes"
COMPILER = "Compiler"

_CASTS = MappingProxyType({"matmult": "matmul", "None": "none"})
"""Further words of --auto_cast: the compiler's own."""
_DTYPES = MappingProxyType({"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"})


@app.callback()
def group() -> None:
    """Lower, check, validate and compile a model."""


_RARE = ("image_size", "patch_size", "text_batch_size", "image_batch_size", "audio_sequence_length")
"""Sizes that --help leaves out: those of models that optimum-neuron alone exports, and the guide does not name."""


def _size(name: str, *, help: str, envvar: str = "") -> typer.models.OptionInfo:
    """An option for one static size, in both spellings."""
    spellings = dict.fromkeys((f"--{name.replace('_', '-')}", f"--{name}"))
    variables = [f"LLMCOMPILE_{name.upper()}", *([envvar] if envvar != "" else [])]
    option: typer.models.OptionInfo = typer.Option(
        *spellings,
        envvar=variables,
        show_envvar=False,
        min=1,
        help=help,
        hidden=name in _RARE,
        rich_help_panel=SHAPES,
    )
    return option


@app.command(
    epilog="Each option also comes from LLMCOMPILE_<NAME>, and some from the variables of Hugging Face's containers: "
    "docs/cli.md lists them, and the options for models that optimum-neuron alone exports."
)
def neuron(
    output: Annotated[
        Path | None,
        typer.Argument(metavar="OUTPUT", help="Directory to create.", envvar="LLMCOMPILE_OUTPUT", show_default=False),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            envvar="LLMCOMPILE_MODEL",
            show_envvar=False,
            help="Local folder, or hub id like org/name or org/name@revision.",
            rich_help_panel=params.SOURCE,
        ),
    ] = None,
    list_tasks: Annotated[
        str | None,
        typer.Option(
            "--list-tasks",
            "--list_tasks",
            envvar="LLMCOMPILE_LIST_TASKS",
            show_envvar=False,
            metavar="MODEL",
            help="Print the tasks a model can be exported for, and by which way; write nothing.",
            rich_help_panel=params.SOURCE,
        ),
    ] = None,
    revision: params.RevisionOpt = BuildOptions.revision,
    subfolder: Annotated[
        str,
        typer.Option(
            "--subfolder",
            envvar="LLMCOMPILE_SUBFOLDER",
            show_envvar=False,
            help="Folder of the model inside the checkpoint.",
            rich_help_panel=params.SOURCE,
        ),
    ] = NeuronOptions.subfolder,
    cache_dir: params.CacheDirOpt = BuildOptions.cache_dir,
    token: params.TokenOpt = BuildOptions.token,
    trust_remote_code: params.TrustRemoteCodeOpt = BuildOptions.trust_remote_code,
    unet: Annotated[
        Path | None,
        typer.Option(
            "--unet",
            envvar="LLMCOMPILE_UNET",
            show_envvar=False,
            metavar="DIR",
            help="Another UNet for a diffusion model.",
            rich_help_panel=params.SOURCE,
        ),
    ] = NeuronOptions.unet,
    task: Annotated[
        str,
        typer.Option(
            "--task",
            envvar="LLMCOMPILE_TASK",
            show_envvar=False,
            metavar="TASK",
            help=f"{', '.join(TASKS)}; inferred from config.json by default.",
            rich_help_panel=params.BUILD,
        ),
    ] = "auto",
    via: Annotated[
        str,
        typer.Option(
            "--via",
            envvar="LLMCOMPILE_VIA",
            show_envvar=False,
            metavar="WAY",
            help="xla: our own lowering. optimum: optimum-neuron. auto: optimum-neuron where its whole SDK is there.",
            rich_help_panel=params.BUILD,
        ),
    ] = NeuronOptions.via,
    layout: Annotated[
        str | None,
        typer.Option(
            "--layout",
            envvar="LLMCOMPILE_LAYOUT",
            show_envvar=False,
            metavar="NAME",
            help=f"{', '.join(LAYOUTS)}; what the newest runtime loads by default.",
            rich_help_panel=params.BUILD,
        ),
    ] = NeuronOptions.layout,
    num_cores: Annotated[
        int,
        typer.Option(
            "--num-cores",
            "--num_cores",
            "--tensor-parallel-size",
            "--tensor_parallel_size",
            "--tp",
            envvar=["LLMCOMPILE_NUM_CORES", "HF_NUM_CORES"],
            min=1,
            help="NeuronCores each layer is split over.",
            rich_help_panel=params.BUILD,
        ),
    ] = NeuronOptions.num_cores,
    torch_dtype: Annotated[
        str | None,
        typer.Option(
            "--torch-dtype",
            "--torch_dtype",
            "--dtype",
            envvar="LLMCOMPILE_TORCH_DTYPE",
            show_envvar=False,
            metavar="WORD",
            help=f"{', '.join(DTYPES)}, of weights and arithmetic; by default float32, of a decoder the checkpoint's.",
            rich_help_panel=params.BUILD,
        ),
    ] = NeuronOptions.torch_dtype,
    output_hidden_states: Annotated[
        bool,
        typer.Option(
            "--output-hidden-states",
            "--output_hidden_states",
            envvar="LLMCOMPILE_OUTPUT_HIDDEN_STATES",
            show_envvar=False,
            help="Every layer's states are outputs, too.",
            rich_help_panel=params.BUILD,
        ),
    ] = NeuronOptions.output_hidden_states,
    output_attentions: Annotated[
        bool,
        typer.Option(
            "--output-attentions",
            "--output_attentions",
            envvar="LLMCOMPILE_OUTPUT_ATTENTIONS",
            show_envvar=False,
            help="Attention weights are outputs, too.",
            rich_help_panel=params.BUILD,
        ),
    ] = NeuronOptions.output_attentions,
    dynamic_batch_size: Annotated[
        bool,
        typer.Option(
            "--dynamic-batch-size",
            "--dynamic_batch_size",
            envvar="LLMCOMPILE_DYNAMIC_BATCH_SIZE",
            show_envvar=False,
            help="An encoder takes any multiple of its batch, a batch at a time.",
            rich_help_panel=SHAPES,
        ),
    ] = NeuronOptions.dynamic_batch_size,
    batch_size: Annotated[
        int | None,
        _size("batch_size", help="Sequences, or images, at once; also MAX_BATCH_SIZE.", envvar="MAX_BATCH_SIZE"),
    ] = None,
    sequence_length: Annotated[
        int | None,
        _size(
            "sequence_length",
            help="Tokens; of a decoder, prompt and answer together; also MAX_TOTAL_TOKENS.",
            envvar="MAX_TOTAL_TOKENS",
        ),
    ] = None,
    buckets: Annotated[
        str | None,
        typer.Option(
            "--buckets",
            envvar="LLMCOMPILE_BUCKETS",
            show_envvar=False,
            metavar="N,N,...",
            help="Lengths of prompts a decoder has a graph for; powers of two from 128 by default.",
            rich_help_panel=SHAPES,
        ),
    ] = None,
    num_beams: Annotated[int | None, _size("num_beams", help="Beams of an encoder-decoder.")] = None,
    num_choices: Annotated[int | None, _size("num_choices", help="Answers of multiple-choice.")] = None,
    num_channels: Annotated[int | None, _size("num_channels", help="Channels of an image.")] = None,
    width: Annotated[int | None, _size("width", help="Width of an image, in pixels.")] = None,
    height: Annotated[int | None, _size("height", help="Height of an image, in pixels.")] = None,
    num_images_per_prompt: Annotated[
        int | None, _size("num_images_per_prompt", help="Images made at once for a prompt.")
    ] = None,
    image_size: Annotated[int | None, _size("image_size", help="Side of a square image, in pixels.")] = None,
    patch_size: Annotated[int | None, _size("patch_size", help="Side of a patch, in pixels.")] = None,
    text_batch_size: Annotated[
        int | None, _size("text_batch_size", help="Texts at once, of a model of texts and images.")
    ] = None,
    image_batch_size: Annotated[int | None, _size("image_batch_size", help="Images at once, of such a model.")] = None,
    audio_sequence_length: Annotated[int | None, _size("audio_sequence_length", help="Samples of audio.")] = None,
    auto_cast: Annotated[
        str,
        typer.Option(
            "--auto-cast",
            "--auto_cast",
            envvar="LLMCOMPILE_AUTO_CAST",
            show_envvar=False,
            metavar="WORD",
            help=f"What the compiler casts: {', '.join(AUTO_CASTS)}; what it costs in accuracy is measured before.",
            rich_help_panel=COMPILER,
        ),
    ] = NeuronOptions.auto_cast,
    auto_cast_type: Annotated[
        str | None,
        typer.Option(
            "--auto-cast-type",
            "--auto_cast_type",
            envvar=["LLMCOMPILE_AUTO_CAST_TYPE", "HF_AUTO_CAST_TYPE"],
            metavar="WORD",
            help=f"To what: {', '.join(CAST_TYPES)}; bf16 by default. Of a decoder that is not cast: its dtype.",
            rich_help_panel=COMPILER,
        ),
    ] = NeuronOptions.auto_cast_type,
    optlevel_1: Annotated[
        bool,
        typer.Option("-O1", envvar="LLMCOMPILE_OPTLEVEL_1", help="Compile fast.", rich_help_panel=COMPILER),
    ] = False,
    optlevel_2: Annotated[
        bool,
        typer.Option(
            "-O2", envvar="LLMCOMPILE_OPTLEVEL_2", help="Compile well: the default.", rich_help_panel=COMPILER
        ),
    ] = False,
    optlevel_3: Annotated[
        bool,
        typer.Option("-O3", envvar="LLMCOMPILE_OPTLEVEL_3", help="Compile at length.", rich_help_panel=COMPILER),
    ] = False,
    optlevel: Annotated[
        int | None,
        typer.Option(
            "--optlevel",
            envvar="LLMCOMPILE_OPTLEVEL",
            show_envvar=False,
            min=1,
            max=3,
            help="The same by number.",
            rich_help_panel=COMPILER,
        ),
    ] = None,
    instance_type: Annotated[
        str | None,
        typer.Option(
            "--instance-type",
            "--instance_type",
            envvar="LLMCOMPILE_INSTANCE_TYPE",
            show_envvar=False,
            metavar="NAME",
            help=f"{', '.join(INSTANCE_TYPES)}; this host's by default, or the first of these with so many cores.",
            rich_help_panel=COMPILER,
        ),
    ] = NeuronOptions.instance_type,
    stop_after: Annotated[
        str | None,
        typer.Option(
            "--stop-after",
            "--stop_after",
            envvar="LLMCOMPILE_STOP_AFTER",
            show_envvar=False,
            metavar="lower",
            help="Stop before compiling: validated graphs, weights and compile.sh; needs no Neuron SDK.",
            rich_help_panel=COMPILER,
        ),
    ] = NeuronOptions.stop_after,
    from_lowered: Annotated[
        Path | None,
        typer.Option(
            "--from-lowered",
            "--from_lowered",
            envvar="LLMCOMPILE_FROM_LOWERED",
            show_envvar=False,
            metavar="DIR",
            help="Compile what --stop-after lower made; needs neither torch nor the model.",
            rich_help_panel=COMPILER,
        ),
    ] = NeuronOptions.from_lowered,
    neuronx_cc: Annotated[
        Path | None,
        typer.Option(
            "--neuronx-cc",
            "--neuronx_cc",
            envvar="LLMCOMPILE_NEURONX_CC",
            show_envvar=False,
            metavar="FILE",
            help="The compiler; the one on PATH by default.",
            rich_help_panel=COMPILER,
        ),
    ] = NeuronOptions.compiler,
    compiler_workdir: Annotated[
        Path | None,
        typer.Option(
            "--compiler-workdir",
            "--compiler_workdir",
            envvar="LLMCOMPILE_COMPILER_WORKDIR",
            show_envvar=False,
            metavar="DIR",
            help="Keep the compiler's working files there.",
            rich_help_panel=COMPILER,
        ),
    ] = NeuronOptions.compiler_workdir,
    compile_cache: Annotated[
        str | None,
        typer.Option(
            "--compile-cache",
            "--compile_cache",
            envvar=["LLMCOMPILE_COMPILE_CACHE", "NEURON_COMPILE_CACHE_URL"],
            show_envvar=False,
            metavar="DIR",
            help="Folder of compiled graphs, shared by runs; none by default.",
            rich_help_panel=COMPILER,
        ),
    ] = NeuronOptions.compile_cache,  # type: ignore[assignment]  # None, the dataclass's default, in both types
    compile_workers: Annotated[
        int | None,
        typer.Option(
            "--compile-workers",
            "--compile_workers",
            envvar="LLMCOMPILE_COMPILE_WORKERS",
            show_envvar=False,
            min=1,
            help="Graphs compiled at once; as many as memory allows by default.",
            rich_help_panel=COMPILER,
        ),
    ] = NeuronOptions.compile_workers,
    allow_env_flags: Annotated[
        bool,
        typer.Option(
            "--allow-env-flags",
            "--allow_env_flags",
            envvar="LLMCOMPILE_ALLOW_ENV_FLAGS",
            show_envvar=False,
            help="Hand the flags in NEURON_CC_FLAGS to the compiler, too, and record them.",
            rich_help_panel=COMPILER,
        ),
    ] = NeuronOptions.allow_env_flags,
    toolchain_python: Annotated[
        Path | None,
        typer.Option(
            "--toolchain-python",
            "--toolchain_python",
            "--neuron-python",
            "--neuron_python",
            envvar=["LLMCOMPILE_TOOLCHAIN_PYTHON", "LLMCOMPILE_NEURON_PYTHON"],
            show_envvar=False,
            metavar="FILE",
            help="Interpreter that has optimum-neuron and the Neuron SDK.",
            rich_help_panel=params.TOOLCHAIN,
        ),
    ] = NeuronOptions.toolchain_python,
    inline_weights: Annotated[
        bool,
        typer.Option(
            "--inline-weights-neff",
            "--inline_weights_neff",
            envvar="LLMCOMPILE_INLINE_WEIGHTS",
            show_envvar=False,
            help="Weights inside the NEFF; optimum-neuron only.",
            rich_help_panel=params.TOOLCHAIN,
        ),
    ] = NeuronOptions.inline_weights,
    disable_neuron_cache: Annotated[
        bool,
        typer.Option(
            "--disable-neuron-cache/--enable-neuron-cache",
            "--disable_neuron_cache/--enable_neuron_cache",
            envvar="LLMCOMPILE_DISABLE_NEURON_CACHE",
            show_envvar=False,
            help="Leave the hub's cache of NEFFs alone; optimum-neuron only.",
            rich_help_panel=params.TOOLCHAIN,
        ),
    ] = NeuronOptions.disable_neuron_cache,
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
    """Export a model for AWS Inferentia and Trainium: graphs lowered, validated on CPU, compiled by neuronx-cc.

    Options of `optimum-cli export neuron` keep their spelling and meaning. Without the Neuron SDK: --stop-after lower
    here, --from-lowered where the compiler is.
    """
    from llmcompile.cli.console import Console

    with Console(command="export neuron", json=json, quiet=quiet, log_format=log_format.value) as console:
        if list_tasks is not None:
            console.list_tasks(list_tasks, revision=revision, token=token, cache_dir=cache_dir)
            return
        options = NeuronOptions(
            build=BuildOptions(
                model=_model(model, from_lowered),
                output=_output(output),
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
            task=None if task == "auto" else SYNONYMS.get(task, task),
            shapes=Shapes(
                batch_size=batch_size,
                sequence_length=sequence_length,
                num_beams=num_beams,
                num_choices=num_choices,
                num_channels=num_channels,
                width=width,
                height=height,
                num_images_per_prompt=num_images_per_prompt,
                image_size=image_size,
                patch_size=patch_size,
                text_batch_size=text_batch_size,
                image_batch_size=image_batch_size,
                audio_sequence_length=audio_sequence_length,
            ),
            via=via,
            layout=layout,
            auto_cast=_CASTS.get(auto_cast, auto_cast),
            auto_cast_type=auto_cast_type,
            torch_dtype=None if torch_dtype is None else _DTYPES.get(torch_dtype, torch_dtype),
            dynamic_batch_size=dynamic_batch_size,
            num_cores=num_cores,
            buckets=_buckets(buckets),
            optlevel=_optlevel(optlevel, optlevel_1, optlevel_2, optlevel_3),
            instance_type=instance_type,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            unet=unet,
            subfolder=subfolder,
            inline_weights=inline_weights,
            disable_neuron_cache=disable_neuron_cache,
            allow_env_flags=allow_env_flags,
            stop_after=stop_after,
            from_lowered=from_lowered,
            compiler=neuronx_cc,
            compiler_workdir=compiler_workdir,
            compile_cache=_folder(compile_cache),
            compile_workers=compile_workers,
            toolchain_python=toolchain_python,
        )
        console.export(options)


def _model(model: str | None, from_lowered: Path | None) -> str:
    if model is not None:
        if from_lowered is not None:
            raise OptionsError("--model", "with --from-lowered, which needs no model", "one of them", "drop --model")
        return model
    if from_lowered is not None:
        return str(from_lowered)
    hint = "add --model DIR|HUB_ID, or --from-lowered DIR to compile what is lowered"
    raise OptionsError("--model", "not given", "a local folder or a hub id", hint)


def _output(output: Path | None) -> Path:
    if output is None:
        raise OptionsError("OUTPUT", "not given", "a directory to create", "add its name to the end of the command")
    return output


def _optlevel(number: int | None, one: bool, two: bool, three: bool) -> int:
    levels = {level for level, on in ((1, one), (2, two), (3, three)) if on}
    given = sorted(levels if number is None else levels | {number})
    if len(given) > 1:
        names = " and ".join(f"-O{level}" for level in given)
        raise OptionsError(names, "together", "one of them", f"drop -O{given[0]}")
    return NeuronOptions.optlevel if given == [] else given[0]


def _folder(compile_cache: str | None) -> Path | None:
    """The cache's folder; NEURON_COMPILE_CACHE_URL may be a URL, which `Path` would make a folder of."""
    if compile_cache is None:
        return None
    if "://" in compile_cache:
        hint = "mount it, or copy it: aws s3 sync URL FOLDER"
        raise OptionsError("--compile-cache", f"{compile_cache}: a URL", "a folder", hint)
    return Path(compile_cache)


def _buckets(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    words = [word.strip() for word in text.split(",") if word.strip() != ""]
    if words == [] or not all(word.isdigit() for word in words):
        raise OptionsError("--buckets", repr(text), "numbers and commas", "--buckets 128,512,2048")
    return tuple(sorted({int(word) for word in words}))
