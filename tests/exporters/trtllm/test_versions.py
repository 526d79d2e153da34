"""The flag history is what the vendor's parsers say, and what a release lacks is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmcompile.exporters.trtllm import versions
from llmcompile.exporters.trtllm.toolchain import parse_help

GOLDEN = Path(__file__).parents[2] / "golden" / "trtllm_build"
RECORDED = sorted(path.stem for path in GOLDEN.glob("*.txt"))


@pytest.mark.parametrize("release", RECORDED)
def test_a_release_has_exactly_the_recorded_flags(release: str) -> None:
    """The table's flags of a release are those its trtllm-build --help lists."""
    found = versions.release_of(release)
    assert found is not None

    assert versions.flags_of(found).keys() == parse_help((GOLDEN / f"{release}.txt").read_text())


@pytest.mark.parametrize("release", RECORDED)
def test_every_value_kind_is_the_recorded_one(release: str) -> None:
    """A flag is a switch, and has choices, exactly where the help says so."""
    found = versions.release_of(release)
    assert found is not None
    lines = (GOLDEN / f"{release}.txt").read_text().split("options:\n")[1].splitlines()

    for name, flag in versions.flags_of(found).items():
        line = next(line for line in lines if f"{name} " in f"{line} ".replace(",", " "))
        assert (flag.kind == versions.SWITCH) == (line.strip() == name), line
        if flag.kind == versions.CHOICE and "{" in line:
            assert set(flag.choices) == set(line[line.index("{") + 1 : line.index("}")].split(",")), line


def test_rows_of_a_flag_do_not_overlap() -> None:
    """Every release finds one row of a flag at most."""
    for release in versions.RELEASES:
        names = [flag.name for flag in versions.FLAGS if flag.has(release)]
        assert len(names) == len(set(names))


def test_every_release_has_a_source() -> None:
    """No release's flags are said without where they were read."""
    assert tuple(versions.SOURCES) == versions.RELEASES


def test_a_removed_flag_is_refused_with_the_versions_that_have_it() -> None:
    """The message names the flag, the chosen version, the range, and what took its place."""
    [problem] = versions.refuse_unknown(["--max_output_len"], "1.2.1")

    assert problem.subject == "--max_output_len"
    assert "1.2.1" in problem.found
    assert "0.8 to 0.11" in problem.expected
    assert "--max_seq_len" in problem.hint


def test_a_newer_flag_is_refused_with_its_first_version() -> None:
    """0.12 lacks --monitor_memory, which came with 0.15."""
    [problem] = versions.refuse_unknown(["--monitor_memory", "--max_batch_size"], "0.12.0")

    assert problem.subject == "--monitor_memory"
    assert "0.15 and later" in problem.expected


def test_a_typing_error_is_answered_with_the_nearest_flag() -> None:
    """No release has --max_batchsize; --max_batch_size is near."""
    [problem] = versions.refuse_unknown(["--max_batchsize"], "1.2.1")

    assert problem.hint == "did you mean --max_batch_size?"


def test_a_flag_given_twice_is_refused_once() -> None:
    """One problem for each flag."""
    assert len(versions.refuse_unknown(["--tp_size", "--tp_size"], "1.2.1")) == 1


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        (("--max_batch_size", "many"), "a whole number"),
        (("--gemm_plugin", "int4"), "auto or float16 or float32 or bfloat16 or int32 or fp8 or nvfp4 or disable"),
        (("--strip_plan", "7"), "no value: it is a switch"),
        (("--profiling_verbosity", ""), "layer_names_only or detailed or none"),
    ],
)
def test_a_value_its_flag_does_not_take_is_refused(setting: tuple[str, str], expected: str) -> None:
    """The message lists what the chosen version takes."""
    [problem] = versions.check_values([setting], "1.2.1")

    assert (problem.subject, problem.expected) == (setting[0], expected)


def test_automatic_types_came_with_0_11() -> None:
    """0.10 refuses `--gemm_plugin auto`, 0.11 takes it."""
    setting = [("--gemm_plugin", "auto")]

    assert len(versions.check_values(setting, "0.10.0")) == 1
    assert versions.check_values(setting, "0.11.0") == []


@pytest.mark.parametrize(
    ("value", "version", "words"),
    [
        ("enable", "0.12.0", ("--use_fused_mlp",)),
        ("disable", "0.12.0", ()),
        ("", "0.13.0", ("--use_fused_mlp", "enable")),
        ("disable", "1.2.1", ("--use_fused_mlp", "disable")),
    ],
)
def test_a_switch_that_became_a_choice_is_written_as_the_release_wants_it(
    value: str, version: str, words: tuple[str, ...]
) -> None:
    """--use_fused_mlp is a switch until 0.12, and enable or disable from 0.13."""
    assert versions.arguments([("--use_fused_mlp", value)], version) == words


def test_values_of_one_flag_are_gathered_or_the_last_counts() -> None:
    """--lora_dir takes several folders; of two batch sizes the later counts, as in argparse."""
    settings = [("--lora_dir", "a"), ("--max_batch_size", "1"), ("--lora_dir", "b"), ("--max_batch_size", "2")]

    assert versions.arguments(settings, "1.2.1") == ("--lora_dir", "a", "b", "--max_batch_size", "2")


@pytest.mark.parametrize(
    ("version", "release"),
    [
        ("1.2.1", (1, 2)),
        ("v0.21.0", (0, 21)),
        ("1.3.0rc20", (1, 3)),
        ("0.12.0.dev2024073000", (0, 12)),
        ("0.17.0.post1", (0, 17)),
        ("latest", None),
        ("", None),
    ],
)
def test_a_version_is_its_release(version: str, release: versions.Release | None) -> None:
    """Major and minor of every form the vendor published; None of what is no version."""
    assert versions.release_of(version) == release


def test_1_3_is_refused_with_the_last_version_that_builds() -> None:
    """The message says that engines were removed, when, and what to use."""
    problem = versions.check_version("1.3.0")

    assert problem is not None
    assert "July 2026" in problem.found
    assert "1.2.1" in problem.expected
    assert "--target llmapi" in problem.hint


@pytest.mark.parametrize("version", ["0.8.0", "0.7.1", "soon"])
def test_what_is_too_old_or_no_version_is_refused(version: str) -> None:
    """0.9 is the first release whose checkpoint is ours."""
    assert versions.check_version(version) is not None


@pytest.mark.parametrize("version", ["0.9.0", "0.12.0", "1.2.1"])
def test_supported_versions_pass(version: str) -> None:
    """0.9 to 1.2."""
    assert versions.check_version(version) is None


def test_0_9_to_0_11_are_best_effort() -> None:
    """They are built without being advertised."""
    assert [release for release in versions.RELEASES if versions.best_effort(release)] == [(0, 9), (0, 10), (0, 11)]


@pytest.mark.parametrize(
    ("version", "image"),
    [
        ("0.12.0", "nvcr.io/nvidia/tritonserver:24.08-trtllm-python-py3"),
        ("0.21.0", "nvcr.io/nvidia/tritonserver:25.08-trtllm-python-py3"),
        ("1.2.1", "nvcr.io/nvidia/tensorrt-llm/release:1.2.1"),
    ],
)
def test_a_version_has_its_container(version: str, image: str) -> None:
    """Triton's image where the compatibility page has a row, the vendor's own release image from 1.0."""
    assert versions.image_of(version) == image


def test_rowwise_fp8_came_with_0_12() -> None:
    """0.11 is refused by the recipe and its algorithm."""
    problem = versions.check_recipe("fp8_rowwise", "0.11.0")

    assert problem is not None
    assert "FP8_PER_CHANNEL_PER_TOKEN" in problem.found
    assert versions.check_recipe("fp8_rowwise", "0.12.0") is None


def test_layers_that_do_not_divide_are_refused_before_1_0() -> None:
    """Older releases drop the remainder without a word."""
    problem = versions.check_layers(7, 2, "0.21.0")

    assert problem is not None
    assert "7 layers / 2 stages = 3.50" in problem.found
    assert versions.check_layers(7, 2, "1.0.0") is None
    assert versions.check_layers(8, 2, "0.21.0") is None
    assert versions.check_layers(2, 4, "1.2.1") is not None


@pytest.mark.parametrize(
    ("sm", "version", "recipe", "dtype", "layout", "refused"),
    [
        (80, "1.2.1", None, "float16", "deferred", 0),
        (70, "0.15.0", None, "float16", "deferred", 1),
        (70, "0.14.0", None, "float16", "deferred", 0),
        (75, "1.2.1", None, "bfloat16", "deferred", 1),
        (86, "1.2.1", "fp8", "float16", "deferred", 1),
        (89, "1.2.1", "fp8", "float16", "deferred", 0),
        (89, "0.12.0", "fp8_rowwise", "float16", "deferred", 1),
        (89, "0.15.0", "fp8_rowwise", "float16", "deferred", 0),
        (90, "1.2.1", "w8a16", "float16", "deferred", 0),
        (90, "1.2.1", "w8a16", "float16", "sm80", 1),
        (89, "1.2.1", "w8a16", "float16", "sm80", 0),
        (90, "1.2.1", "w4a16_gptq", "float16", "deferred", 1),
        (100, "0.16.0", None, "float16", "deferred", 1),
        (100, "0.17.0", None, "float16", "deferred", 0),
        (90, "1.2.1", "nvfp4", "float16", "deferred", 1),
        (100, "0.17.0", "nvfp4", "float16", "deferred", 0),
        (120, "1.2.1", "nvfp4", "float16", "deferred", 0),
    ],
)
def test_a_gpu_is_held_against_version_recipe_and_layout(
    sm: int, version: str, recipe: str | None, dtype: str, layout: str, refused: int
) -> None:
    """Volta went with 0.15, Blackwell came with 0.17, FP8 needs SM89, NVFP4 SM100; the sm80 layout ends at SM89."""
    problems = versions.check_gpu(sm, version, recipe=recipe, dtype=dtype, wo_layout=layout, kv_cache=None)

    assert len(problems) == refused


def test_drivers_follow_cuda() -> None:
    """CUDA 12 runs with 525, CUDA 13, which came with 1.1, with 580."""
    assert (versions.driver_of((0, 9)), versions.driver_of((1, 0)), versions.driver_of((1, 2))) == (525, 525, 580)


def test_recipes_are_found_by_their_algorithm() -> None:
    """config.json's quant_algo leads back to the recipe."""
    same = {name: name for name in versions.RECIPES} | {"int4_awq": "w4a16_awq"}
    assert {name: versions.recipe_of(recipe.algorithm) for name, recipe in versions.RECIPES.items()} == same
    assert versions.recipe_of("FP8_BLOCK_SCALES") is None


@pytest.mark.parametrize(
    ("architecture", "algorithm", "made_for", "target", "moves"),
    [
        ("LlamaForCausalLM", None, "0.9.0", "1.2.1", False),
        ("Qwen2MoeForCausalLM", None, "0.15.0", "0.16.0", True),
        ("Qwen2MoeForCausalLM", None, "0.16.0", "1.2.1", False),
        ("Qwen2MoeForCausalLM", "W8A16", "1.2.1", "0.13.0", True),
        ("LlamaForCausalLM", "FP8_PER_CHANNEL_PER_TOKEN", "0.14.0", "0.15.0", True),
        ("LlamaForCausalLM", "FP8", "0.14.0", "0.15.0", False),
        ("LlamaForCausalLM", "NVFP4", "0.17.0", "1.2.1", False),
        ("LlamaForCausalLM", "NVFP4", "1.2.1", "1.0.0", True),
        ("MixtralForCausalLM", "NVFP4", "0.17.0", "0.20.0", False),
        ("MixtralForCausalLM", "NVFP4", "0.20.0", "1.2.1", True),
    ],
)
def test_a_checkpoint_of_another_release_loads_but_for_some_borders(
    architecture: str, algorithm: str | None, made_for: str, target: str, moves: bool
) -> None:
    """Where Qwen2-MoE keeps its shared expert, what rowwise FP8 is told by, and which matrices NVFP4 takes."""
    problem = versions.check_portable(architecture, algorithm, made_for, target)

    assert (problem is not None) is moves
    assert problem is None or target in problem.hint
