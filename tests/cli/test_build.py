"""`llmcompile build trtllm` from the outside: every spelling, what is refused by name, the stages, what is said."""

from __future__ import annotations

import inspect
import json
import os
import shlex
from collections import Counter
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer

import models
import trtllm_standin as standin
from llmcompile.cli import app, build
from llmcompile.cli.console import Console
from llmcompile.exporters.options import BuildOptions
from llmcompile.exporters.trtllm import versions
from llmcompile.exporters.trtllm.options import OURS, TrtllmOptions

if TYPE_CHECKING:
    from conftest import Result, Run

CONVERTERS = {
    "use_weight_only",
    "weight_only_precision",
    "use_fp8",
    "use_fp8_rowwise",
    "per_group",
    "int8_kv_cache",
    "fp8_kv_cache",
    "smoothquant",
    "per_channel",
    "per_token",
    "load_by_shard",
    "load_model_on_cpu",
    "model_type",
    "output_dir",
    "world_size",
}
"""Flags of convert_checkpoint.py that other options say, or that have no effect."""
MESSAGES = {"json", "quiet", "log_format", "context"}
ENGINE = [name for name in dict.fromkeys(flag.name for flag in versions.FLAGS) if name not in build._SHARED]
TAKEN = [name for name in ENGINE if name not in OURS]
A100 = "0, NVIDIA A100-SXM4-80GB, 8.0, 580.65.06, 81920"

Parse = Callable[..., TrtllmOptions]


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Where the artifact goes."""
    return tmp_path / "out"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaMA."""
    return models.save("llama", tmp_path_factory.mktemp("build") / "model")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaMA whose matrices the builder can lay out in integers, also on two ranks."""
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4}
    return models.save("llama", tmp_path_factory.mktemp("wide") / "model", config=sizes)


@pytest.fixture
def parse(run: Run, monkeypatch: pytest.MonkeyPatch) -> Parse:
    """The options that a command line makes."""
    made: list[Any] = []
    monkeypatch.setattr(Console, "run", lambda self, options: made.append(options))

    def parsed(*arguments: object, env: dict[str, str] | None = None) -> TrtllmOptions:
        result = run("build", "trtllm", "-m", "org/name", *arguments, "out", env=env)
        assert result.code == 0, result.err
        options: TrtllmOptions = made.pop()
        return options

    return parsed


@pytest.fixture
def refused(run: Run, output: Path) -> Callable[..., Result]:
    """How a command line that is refused ends; it leaves nothing behind."""

    def invoke(*arguments: object) -> Result:
        result = run("build", "trtllm", "-m", "org/name", *arguments, output)
        assert result.code == 2, (result.out, result.err)
        assert list(output.parent.iterdir()) == []
        return result

    return invoke


def value_of(flag: versions.Flag) -> str:
    """A value the flag takes in its releases; "" for a switch that never was anything else."""
    if flag.kind == versions.SWITCH:
        return "" if versions.history(flag.name)[-1].kind == versions.SWITCH else "enable"
    if flag.kind == versions.CHOICE:
        return flag.choices[-1]
    return {versions.INTEGER: "0", versions.TEXT: "paged", versions.WORDS: "word"}[flag.kind]


# Parameters


def test_the_commands_parameters_are_the_options_fields() -> None:
    """And the converter's words for some of them, and trtllm-build's flags; none goes nowhere."""
    parameters = set(inspect.signature(build.trtllm).parameters)
    joined = {field.name for field in [*fields(BuildOptions), *fields(TrtllmOptions)]} - {"build", "engine"}
    renamed = {"build_timeout_seconds": "build_timeout"}

    assert parameters - MESSAGES - CONVERTERS - {name[2:] for name in ENGINE} == {
        renamed.get(name, name) for name in joined
    }


def test_the_commands_defaults_are_the_options_defaults(parse: Parse) -> None:
    """What nobody types is what the dataclass says."""
    made = parse()

    wanted = {field.name: field.default for field in fields(TrtllmOptions) if field.default is not MISSING}
    assert {name: getattr(made, name) for name in wanted} == wanted


def test_no_spelling_is_taken_twice() -> None:
    """A flag of the converter, one of the builder and one of ours never share a name."""
    root: Any = typer.main.get_command(app)
    command = root.commands["build"].commands["trtllm"]

    counted = Counter(spelling for option in command.params for spelling in [*option.opts, *option.secondary_opts])

    assert [spelling for spelling, times in counted.items() if times > 1] == []


def test_every_engine_flag_is_in_its_panel() -> None:
    """With a help; those the default release lacks are parsed but not shown."""
    root: Any = typer.main.get_command(app)
    made = {option.name: option for option in root.commands["build"].commands["trtllm"].params}

    options = [made[name[2:]] for name in ENGINE]
    here = versions.flags_of(versions.LAST_SUPPORTED)
    assert {option.rich_help_panel for option in options} == {"Engine (trtllm-build)"}
    shown = {f"--{option.name}" for option in options if not option.hidden}
    assert shown <= here.keys() & set(TAKEN)
    assert {"--max_batch_size", "--gemm_plugin"} <= shown


def test_help_shows_the_engine_flags(run: Run) -> None:
    """Under a heading of their own."""
    result = run("build", "trtllm", "--help")

    assert result.code == 0
    for text in ("Engine (trtllm-build)", "--max-batch-size,--max_batch_size", "--gemm-plugin", "(0.11 and later)"):
        assert text in result.out


# Spellings


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        ("--tp 4", "tp", 4),
        ("--tp-size 4", "tp", 4),
        ("--tp_size 4", "tp", 4),
        ("--tensor-parallel-degree 4", "tp", 4),
        ("--tensor_parallel_degree 4", "tp", 4),
        ("--pp 2", "pp", 2),
        ("--pp-size 2", "pp", 2),
        ("--pp_size 2", "pp", 2),
        ("--pipeline-parallel-degree 2", "pp", 2),
        ("--pipeline_parallel_degree 2", "pp", 2),
        ("--dtype auto", "dtype", None),
        ("--dtype float16", "dtype", "float16"),
        ("--dtype bfloat16", "dtype", "bfloat16"),
        ("--dtype float32", "dtype", "float32"),
        ("--dtype fp16", "dtype", "float16"),
        ("--dtype bf16", "dtype", "bfloat16"),
        ("--dtype fp32", "dtype", "float32"),
        ("--quantization w4a16", "quantization", "w4a16"),
        ("--use-weight-only", "quantization", "w8a16"),
        ("--use_weight_only", "quantization", "w8a16"),
        ("--use_weight_only --weight_only_precision int4", "quantization", "w4a16"),
        ("--use-weight-only --weight-only-precision int4", "quantization", "w4a16"),
        ("--use_weight_only --weight_only_precision int4_gptq --per_group", "quantization", "w4a16_gptq"),
        ("--use_weight_only --weight_only_precision int4_awq --per-group --group_size 64", "group_size", 64),
        ("--quantization w4a16_awq --group-size 64", "group_size", 64),
        ("--quantization int8", "quantization", "w8a16"),
        ("--quantization int4_awq", "quantization", "int4_awq"),
        ("--quantization W4A16_AWQ", "quantization", "w4a16_awq"),
        ("--kv-cache-dtype int8", "kv_cache", "int8"),
        ("--int8_kv_cache", "kv_cache", "int8"),
        ("--calib_size 3", "calib_size", 3),
        ("--calib_max_seq_length 16", "calib_seq_len", 16),
        ("--quantization W4A16", "quantization", "w4a16"),
        ("--quantization FP8_PER_CHANNEL_PER_TOKEN", "quantization", "fp8_rowwise"),
        ("--use_fp8", "quantization", "fp8"),
        ("--use-fp8-rowwise", "quantization", "fp8_rowwise"),
        ("--use_fp8_rowwise", "quantization", "fp8_rowwise"),
        ("--kv-cache fp8", "kv_cache", "fp8"),
        ("--kv_cache fp8", "kv_cache", "fp8"),
        ("--fp8-kv-cache", "kv_cache", "fp8"),
        ("--fp8_kv_cache", "kv_cache", "fp8"),
        ("--quantization fp8 --fp8_kv_cache", "kv_cache", "fp8"),
        ("--use_fp8 --kv-cache fp8", "quantization", "fp8"),
        ("--use_weight_only --wo-layout sm80", "wo_layout", "sm80"),
        ("--use_weight_only --wo_layout sm80", "wo_layout", "sm80"),
        ("--use-parallel-embedding --embedding-sharding-dim 1", "embedding_sharding_dim", 1),
        ("--use_parallel_embedding --embedding_sharding_dim 1", "use_parallel_embedding", True),
        ("--use_embedding_sharing --trtllm_version 0.12.0", "use_embedding_sharing", True),
        ("--use-embedding-sharing --trtllm-version 0.12.0", "trtllm_version", "0.12.0"),
        ("--tp 4 --moe-tp 2", "moe_tp", 2),
        ("--tp 4 --moe_tp_size 2", "moe_tp", 2),
        ("--tp 4 --moe-tp-size 2", "moe_tp", 2),
        ("--moe_tp_size -1", "moe_tp", None),
        ("--tp 4 --moe-ep 2", "moe_ep", 2),
        ("--tp 4 --moe_ep_size 2", "moe_ep", 2),
        ("--tp 4 --moe-ep-size 2", "moe_ep", 2),
        ("--moe-ep-size -1", "moe_ep", None),
        ("--max-position-embeddings 4096", "max_position_embeddings", 4096),
        ("--max_position_embeddings 4096", "max_position_embeddings", 4096),
        ("--load_by_shard --load_model_on_cpu", "engine", ()),
        ("--load-by-shard --load-model-on-cpu", "engine", ()),
        ("--stop-after checkpoint", "stop_after", "checkpoint"),
        ("--stop_after checkpoint", "stop_after", "checkpoint"),
        ("--from-checkpoint made", "from_checkpoint", Path("made")),
        ("--from_checkpoint made", "from_checkpoint", Path("made")),
        ("--keep-checkpoint", "keep_checkpoint", True),
        ("--keep_checkpoint", "keep_checkpoint", True),
        ("--builder api", "builder", "api"),
        ("--toolchain_python bin/python", "toolchain_python", Path("bin/python")),
        ("--toolchain-python bin/python", "toolchain_python", Path("bin/python")),
        ("--trtllm-build bin/trtllm-build", "trtllm_build", Path("bin/trtllm-build")),
        ("--trtllm_build bin/trtllm-build", "trtllm_build", Path("bin/trtllm-build")),
        ("--build-timeout 600", "build_timeout_seconds", 600.0),
        ("--build_timeout 600", "build_timeout_seconds", 600.0),
        ("--build-workers 2", "build_workers", 2),
        ("--build_workers 2", "build_workers", 2),
        ("--input_timing_cache a", "input_timing_cache", Path("a")),
        ("--input-timing-cache a", "input_timing_cache", Path("a")),
        ("--output_timing_cache a", "output_timing_cache", Path("a")),
        ("--output-timing-cache a", "output_timing_cache", Path("a")),
        ("--eval-text text", "eval_text", Path("text")),
        ("--eval_text text", "eval_text", Path("text")),
    ],
)
def test_a_spelling_means_its_option(words: str, field: str, value: object, parse: Parse) -> None:
    """Ours, the converter's and the field's, with hyphens and with underscores."""
    assert getattr(parse(*words.split()), field) == value


@pytest.mark.parametrize("flag", ["--model", "-m", "--model-dir", "--model_dir"])
def test_the_model_has_the_converters_spelling_too(flag: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """convert_checkpoint.py calls it --model_dir."""
    made: list[Any] = []
    monkeypatch.setattr(Console, "run", lambda self, options: made.append(options))

    run("build", "trtllm", flag, "org/name", "out")

    assert made[0].build.model == "org/name"


def test_workers_and_dry_run_are_ours(parse: Parse) -> None:
    """They mean what they mean in every command; the builder's are --build-workers and none."""
    made = parse("--workers", 3, "--dry_run", "--build_workers", 2)

    assert (made.build.workers, made.build.dry_run, made.build_workers, made.engine) == (3, True, 2, ())


def test_a_variable_stands_for_an_option(parse: Parse) -> None:
    """LLMCOMPILE_ and its name, for the engine's flags too."""
    made = parse(env={"LLMCOMPILE_TP": "2", "LLMCOMPILE_MAX_BATCH_SIZE": "8", "LLMCOMPILE_STRIP_PLAN": "1"})

    assert (made.tp, made.engine) == (2, (("--max_batch_size", "8"), ("--strip_plan", "")))


# Engine flags


@pytest.mark.parametrize("kebab", [True, False], ids=["hyphens", "underscores"])
@pytest.mark.parametrize("release", versions.RELEASES[1:], ids=versions.text_of)
def test_every_flag_of_a_release_is_taken(release: versions.Release, kebab: bool, parse: Parse) -> None:
    """All in one line, in either spelling, and kept in order with their values."""
    here = versions.flags_of(release)
    names = [name for name in here if name in TAKEN and (name != "--paged_kv_cache" or "--kv_cache_type" not in here)]
    wanted = [(name, value_of(here[name])) for name in names]
    typed = [
        word for name, value in wanted for word in (name.replace("_", "-") if kebab else name, value) if word != ""
    ]

    assert list(parse("--trtllm-version", f"{versions.text_of(release)}.0", *typed).engine) == wanted


@pytest.mark.parametrize("name", [name for name in TAKEN if name not in versions.flags_of(versions.LAST_SUPPORTED)])
def test_a_flag_of_an_older_release_is_refused_by_name(name: str, refused: Callable[..., Result]) -> None:
    """With the releases that have it."""
    result = refused(*(word for word in (name, value_of(versions.history(name)[-1])) if word != ""))

    assert f"{name}: trtllm-build of TensorRT-LLM 1.2.1 lacks it" in result.err


def test_engine_flags_keep_their_order(parse: Parse) -> None:
    """As typed, whatever the spelling, with ours in between."""
    line = (
        "--strip_plan --max-seq-len 2048 --tp 2 --gemm_plugin auto --max_batch_size 8 --use-paged-context-fmha enable"
    )

    assert parse(*line.split()).engine == (
        ("--strip_plan", ""),
        ("--max_seq_len", "2048"),
        ("--gemm_plugin", "auto"),
        ("--max_batch_size", "8"),
        ("--use_paged_context_fmha", "enable"),
    )


def test_a_repeated_flag_keeps_all_its_values(parse: Parse) -> None:
    """The builder takes several words for one flag; here the flag is repeated."""
    made = parse("--lora_target_modules", "attn_q", "--lora-target-modules", "attn_v")

    assert made.engine == (("--lora_target_modules", "attn_q"), ("--lora_target_modules", "attn_v"))


def test_a_value_may_be_joined(parse: Parse) -> None:
    """--gemm_plugin=auto, as argparse takes it."""
    assert parse("--gemm_plugin=auto", "--max-batch-size=8").engine == (
        ("--gemm_plugin", "auto"),
        ("--max_batch_size", "8"),
    )


@pytest.mark.parametrize(
    ("version", "line", "tp", "quantization", "engine"),
    [
        (
            "1.2.1",
            "--model_dir llama --dtype float16 --tp_size 2 --workers 2 --load_by_shard "
            "--gemm_plugin auto --max_batch_size 8 --max_input_len 1024 --max_seq_len 2048 --kv_cache_type paged",
            2,
            None,
            "--gemm_plugin auto --max_batch_size 8 --max_input_len 1024 --max_seq_len 2048 --kv_cache_type paged",
        ),
        (
            "0.12.0",
            "--model_dir llama --dtype float16 --tp_size 1 --pp_size 1 --use_weight_only --weight_only_precision int8 "
            "--gpt_attention_plugin float16 --gemm_plugin float16 --context_fmha enable --paged_kv_cache enable "
            "--remove_input_padding enable --max_beam_width 4 --multiple_profiles enable --log_level verbose",
            1,
            "w8a16",
            "--gpt_attention_plugin float16 --gemm_plugin float16 --context_fmha enable --paged_kv_cache enable "
            "--remove_input_padding enable --max_beam_width 4 --multiple_profiles enable --log_level verbose",
        ),
        (
            "0.10.0",
            "--model_dir mixtral --dtype float16 --tp_size 8 --use_weight_only --weight_only_precision int4 "
            "--max_batch_size 8 --max_input_len 924 --max_output_len 100 --moe_plugin float16 "
            "--use_custom_all_reduce disable --weight_streaming --gemm_plugin disable",
            8,
            "w4a16",
            "--max_batch_size 8 --max_input_len 924 --max_output_len 100 --moe_plugin float16 "
            "--use_custom_all_reduce disable --weight_streaming --gemm_plugin disable",
        ),
        (
            "0.16.0",
            "--model_dir falcon --dtype bfloat16 --tp_size 4 --pp_size 2 --use_parallel_embedding "
            "--embedding_sharding_dim 1 --use_fp8_rowwise --fast_build --reduce_fusion enable --user_buffer enable "
            "--use_fused_mlp=enable --max_num_tokens 4096",
            4,
            "fp8_rowwise",
            "--fast_build --reduce_fusion enable --user_buffer enable --use_fused_mlp enable --max_num_tokens 4096",
        ),
    ],
    ids=["1.2", "0.12", "0.10", "0.16"],
)
def test_a_script_moves_over(
    version: str, line: str, tp: int, quantization: str | None, engine: str, parse: Parse
) -> None:
    """The flags of convert_checkpoint.py and of trtllm-build in one line, without their folders."""
    made = parse("--trtllm-version", version, *line.split())

    words = [word for setting in made.engine for word in setting if word != ""]
    assert (made.tp, made.quantization, " ".join(words)) == (tp, quantization, engine)


# Refusals


@pytest.mark.parametrize(
    ("line", "texts"),
    [
        ("--max_output_len 100", ["--max_output_len", "1.2.1 lacks it", "0.8 to 0.11", "use --max_seq_len"]),
        ("--strongly-typed", ["--strongly_typed", "0.8 to 0.10"]),
        ("--auto_parallel 2", ["--auto_parallel", "0.9 to 0.21"]),
        ("--fast_build --trtllm-version 0.11.0", ["--fast_build", "0.12 and later"]),
        ("--max_batch_size many", ["--max_batch_size: 'many'", "a whole number"]),
        ("--gemm_plugin int3", ["--gemm_plugin", "auto or float16"]),
        ("--max_batch_size --strip_plan", ["--max_batch_size", "--strip_plan", "VALUE"]),
        ("--use_fused_mlp --strip_plan", ["write --use_fused_mlp enable"]),
        ("--output_dir made", ["OUTPUT", "with --output-dir made", "drop --output-dir"]),
        ("--tp 2 --world_size 8", ["--world-size: 8, with tp 2 x pp 1", "drop --world-size"]),
        ("--pp 2 --world_size 3", ["--world-size: 3, with tp ? x pp 2"]),
        ("--from-checkpoint made --workers 2", ["--workers", "--build-workers 2"]),
        ("--model_config made", ["--model_config", "OUTPUT/checkpoint/config.json"]),
        ("--timing_cache made", ["--timing_cache", "--input-timing-cache"]),
        ("--lora_target_modules attn_q attn_v", ["words without a flag: attn_v", "repeat a flag for each"]),
        ("--strip_plan enable", ["words without a flag: enable", "a switch takes none"]),
        ("--quantization w8a16 --use_weight_only", ["--quantization", "drop --use_weight_only"]),
        ("--quantization fp8 --use-fp8 --per_token", ["--quantization", "drop --use_fp8 and --per_token"]),
        ("--kv-cache fp8 --fp8_kv_cache", ["--kv-cache", "drop --fp8_kv_cache"]),
        ("--kv-cache fp8 --int8-kv-cache", ["--kv-cache", "drop --int8_kv_cache"]),
        ("--use_weight_only --use_fp8", ["--use_weight_only", "drop --use_fp8"]),
        ("--weight_only_precision int4", ["--weight_only_precision", "add --use_weight_only"]),
        ("--group_size 64", ["--group_size", "int4_gptq or int4_awq"]),
        ("--quantization w8a16 --group_size 64", ["--group-size", "w4a16_gptq or w4a16_awq"]),
        ("-sq 0.5 --per_channel --per_token", ["--smoothquant", "--per_channel", "--per_token", "int8_sq"]),
        ("--kv-cache int4", ["--kv-cache: int4", "fp8 or int8"]),
        ("--quantization int3", ["--quantization: int3", "w8a16 or w4a16"]),
        ("--dtype int4", ["--dtype: int4", "float16 or bfloat16 or float32"]),
        ("--stop-after engine", ["--stop-after: engine", "checkpoint"]),
        ("--builder make", ["--builder: make", "cli or api"]),
        ("--tp 0", ["--tp"]),
        ("--moe-ep 0", ["--moe-ep"]),
        ("--build-timeout 0", ["--build-timeout"]),
        ("--stop-after checkpoint --from-checkpoint made", ["--stop-after", "nothing is left to do"]),
        ("--nonsense", ["--nonsense"]),
    ],
)
def test_what_makes_no_sense_is_refused(line: str, texts: list[str], refused: Callable[..., Result]) -> None:
    """The exit code is 2, and the flag, what it should be and what to type are named."""
    result = refused(*line.split())

    assert [text for text in texts if text not in result.err] == []


def test_the_vendors_scripts_name_output_and_checkpoint(model: Path, run: Run, tmp_path: Path) -> None:
    """--output_dir is OUTPUT, and --checkpoint_dir is --from-checkpoint."""
    first = ("--model_dir", model, "--output_dir", tmp_path / "made", "--world_size", 2, "--no-validate")

    made = run("build", "trtllm", *first, "--stop-after", "checkpoint")
    second = run("build", "trtllm", "--checkpoint_dir", tmp_path / "made", "--output_dir", tmp_path / "engine")

    assert made.code == 0, made.err
    assert (tmp_path / "made" / "checkpoint" / "rank1.safetensors").exists()
    assert second.code in (2, 6), second.err


def test_output_must_be_given(model: Path, run: Run) -> None:
    """By either name: exit code 2."""
    result = run("build", "trtllm", "--model", model)

    assert (result.code, "error: OUTPUT: not given" in result.err) == (2, True)


def test_a_version_without_engines_is_refused(run: Run, output: Path) -> None:
    """1.3 removed them: the last version that builds is named, with exit code 4."""
    result = run("build", "trtllm", "-m", "org/name", "--trtllm-version", "1.3.0", output)

    assert (result.code, "--trtllm-version 1.2.1" in result.err) == (4, True)


def test_a_model_is_required(run: Run, output: Path) -> None:
    """Without --model and without --from-checkpoint the exit code is 2, and both are named."""
    result = run("build", "trtllm", output)

    assert result.code == 2
    assert "--model: not given" in result.err
    assert "--from-checkpoint DIR" in result.err


def test_a_checkpoint_needs_no_model(run: Run, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --from-checkpoint it stands in --model's place."""
    made: list[Any] = []
    monkeypatch.setattr(Console, "run", lambda self, options: made.append(options))

    run("build", "trtllm", "--from-checkpoint", "made", output)

    assert made[0].build.model == "made"


def test_refusals_of_options_are_in_the_json(run: Run, output: Path) -> None:
    """One document with each problem."""
    result = run("build", "trtllm", "-m", "org/name", "--max_output_len", 9, "--builder_opt", 3, "--json", output)

    problems = json.loads(result.out)["error"]["problems"]
    assert [problem["subject"] for problem in problems] == ["--max_output_len", "--builder_opt"]


# Stages


def test_a_checkpoint_is_written(wide: Path, run: Run, output: Path) -> None:
    """--stop-after checkpoint leaves checkpoint/ with a file for each rank, and no engine."""
    options = ("--tp", 2, "--pp", 2, "--use_weight_only", "--stop-after", "checkpoint", "--no-validate")

    result = run("build", "trtllm", "-m", wide, *options, output)

    assert result.code == 0, result.err
    held = {path.name for path in (output / "checkpoint").iterdir()}
    assert held == {"config.json", *(f"rank{rank}.safetensors" for rank in range(4))}
    assert not (output / "engine").exists()


def test_the_summary_of_a_checkpoint_says_what_to_type_next(wide: Path, run: Run, output: Path) -> None:
    """The same command on the GPU host, and the builder's own; ranks and quantization are named."""
    options = ("--tp", 2, "--pp", 2, "--use_weight_only", "--stop-after", "checkpoint", "--no-validate")

    result = run("build", "trtllm", "-m", wide, *options, output)

    for text in (
        "is ready for TensorRT-LLM 1.2.1",
        "tp 2 x pp 2",
        "W8A16 (laid out by the builder)",
        f"llmcompile build trtllm --no-validate --from-checkpoint {output} {output}-engine",
        f"trtllm-build --checkpoint_dir {output}/checkpoint --output_dir {output}-engine",
    ):
        assert text in result.out


def test_the_next_command_is_for_the_same_version(model: Path, run: Run, output: Path) -> None:
    """An engine runs only on the release that built it."""
    options = ("--trtllm-version", "0.16.0", "--stop-after", "checkpoint", "--no-validate")

    result = run("build", "trtllm", "-m", model, *options, output)

    assert f"llmcompile build trtllm --no-validate --trtllm-version 0.16.0 --from-checkpoint {output}" in result.out


def test_engine_flags_have_no_effect_on_a_checkpoint(model: Path, run: Run, output: Path) -> None:
    """That is said on stderr, by name; they are not refused, since a script has them for the build."""
    options = ("--max_batch_size", 8, "--strip-plan", "--stop-after", "checkpoint", "--no-validate")

    result = run("build", "trtllm", "-m", model, *options, output)

    assert result.code == 0, result.err
    assert "2 engine flags without effect, given --stop-after checkpoint: --max_batch_size, --strip_plan" in result.err


def test_a_dry_run_prints_the_plan(model: Path, run: Run, output: Path) -> None:
    """Ranks, element type and where it ends; nothing is written."""
    options = ("--tp", 2, "--pp", 2, "--stop-after", "checkpoint", "--dry-run")

    result = run("build", "trtllm", "-m", model, *options, output)

    assert result.code == 0, result.err
    for text in ("for 4 ranks (tp 2 x pp 2)", "checkpoint/", "--stop-after checkpoint", "hidden 32"):
        assert text in result.out
    assert not output.exists()


def test_a_dry_run_has_the_plan_in_its_json(model: Path, run: Run, output: Path) -> None:
    """Ranks are tp x pp."""
    options = ("--tp", 2, "--pp", 2, "--use_weight_only", "--stop-after", "checkpoint", "--dry-run", "--json")

    plan = json.loads(run("build", "trtllm", "-m", model, *options, output).out)["plan"]

    assert (plan["ranks"], plan["tp"], plan["pp"], plan["moe_ep"], plan["builder"]) == (4, 2, 2, 1, None)
    assert plan["quantization"] == "W8A16 (laid out by the builder)"


def test_without_the_builder_nothing_is_begun(model: Path, run: Run, output: Path) -> None:
    """The exit code is 6, the three ways on are named, and nothing is written."""
    result = run("build", "trtllm", "-m", model, "--tp", 2, output)

    assert result.code == 6, result.err
    for text in ("--stop-after checkpoint", "--from-checkpoint", "docker run", "pip install tensorrt_llm==1.2.1"):
        assert text in result.err
    assert [path.name for path in output.parent.iterdir() if path.name.startswith("out")] == []


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An interpreter with a stand-in for tensorrt_llm 1.2.1 and trtllm-build, and an A100."""
    standin.nvidia_smi(tmp_path / "tools", A100)
    monkeypatch.setenv("PATH", f"{tmp_path / 'tools'}:{os.environ['PATH']}")
    return standin.install(tmp_path / "env", "1.2.1", "1.2")


def test_an_engine_is_built(model: Path, run: Run, output: Path, python: Path) -> None:
    """OUTPUT holds engine/ and the manifest's record of it, and says what to type next."""
    options = ("--toolchain-python", python, "--no-validate", "--max_batch_size", 8, "--gemm-plugin", "auto")

    result = run("build", "trtllm", "-m", model, *options, output)

    assert result.code == 0, result.err
    assert {"config.json", "rank0.engine"} == {path.name for path in (output / "engine").iterdir()}
    assert not (output / "checkpoint").exists()
    record = json.loads((output / "llmcompile.json").read_text())["engine"]
    assert record["flags"] == ["--max_batch_size 8", "--gemm_plugin auto"]
    for text in (f"llmcompile verify {output}", "NVIDIA A100-SXM4-80GB (SM 8.0)", "TensorRT-LLM 1.2.1 · TensorRT"):
        assert text in result.out


def test_a_finished_checkpoint_is_where_a_build_starts(model: Path, run: Run, output: Path, python: Path) -> None:
    """The command that --stop-after checkpoint named last works."""
    first = run("build", "trtllm", "-m", model, "--stop-after", "checkpoint", "--no-validate", output)
    line = next(line for line in first.out.splitlines() if "--from-checkpoint" in line).partition("build trtllm ")[2]

    result = run("build", "trtllm", "--toolchain-python", python, *shlex.split(line))

    assert result.code == 0, result.err
    built = output.with_name("out-engine")
    assert (built / "engine" / "rank0.engine").exists()
    assert f"llmcompile verify {built}" in result.out


def test_a_dry_run_from_a_checkpoint_prints_the_plan(model: Path, run: Run, output: Path, python: Path) -> None:
    """The checkpoint, its ranks, the builder and the GPU; nothing is written."""
    run("build", "trtllm", "-m", model, "--tp", 2, "--stop-after", "checkpoint", "--no-validate", output)
    built = output.with_name("built")
    given = ("--from-checkpoint", output, "--no-validate", "--toolchain-python", python)
    options = (*given, "--max_batch_size", 8, "--dry-run")

    result = run("build", "trtllm", *options, built)

    assert result.code == 0, result.err
    for text in ("LlamaForCausalLM", "2 ranks", str(python.parent / "trtllm-build"), "A100", "--max_batch_size 8"):
        assert text in result.out
    assert not built.exists()


def test_the_builders_log_is_shown(model: Path, run: Run, output: Path, python: Path) -> None:
    """Where stderr is no terminal: its lines, and what they mean."""
    result = run("build", "trtllm", "-m", model, "--toolchain-python", python, "--no-validate", output)

    assert "[TRT-LLM] [I] Build TensorRT engine Unnamed Network 0" in result.err
    assert "build: building Unnamed Network 0" in result.err
    assert "build: all engines built in 00:01:59" in result.err


def test_the_builders_log_is_json(model: Path, run: Run, output: Path, python: Path) -> None:
    """Every line is an event `build`."""
    options = ("--toolchain-python", python, "--no-validate", "--log-format", "json")

    result = run("build", "trtllm", "-m", model, *options, output)

    records = [json.loads(line) for line in result.err.splitlines()]
    lines = [record for record in records if record["event"] == "build"]
    assert "building Unnamed Network 0" in {record["progress"] for record in lines}
    assert any("Set gemm_plugin" in record["message"] for record in lines)


def test_a_quiet_build_is_silent(model: Path, run: Run, output: Path, python: Path) -> None:
    """The builder's log included."""
    result = run("build", "trtllm", "-m", model, "--toolchain-python", python, "--no-validate", "--quiet", output)

    assert (result.code, result.out, result.err) == (0, "", "")


def test_a_failed_build_shows_the_builders_last_lines(
    model: Path, run: Run, output: Path, python: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With exit code 6."""
    monkeypatch.setenv("TRTLLM_STANDIN", "fail")

    result = run("build", "trtllm", "-m", model, "--toolchain-python", python, "--no-validate", "--quiet", output)

    assert (result.code, "its last 20 lines" in result.err, "line 39" in result.err) == (6, True, True)
