"""`llmcompile export neuron`: every option by every spelling, the environment's twins, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import models

if TYPE_CHECKING:
    from conftest import Result, Run

SHAPES = ("--batch_size", "1", "--sequence_length", "16")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder."""
    return models.save("bert", tmp_path_factory.mktemp("bert") / "model")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny decoder."""
    return models.save("llama", tmp_path_factory.mktemp("llama") / "model")


def plan(result: Result) -> Mapping[str, Any]:
    """The plan in the report of a dry run."""
    found: Mapping[str, Any] = json.loads(result.out)["plan"]
    return found


def dry(run: Run, model: Path, output: Path, *words: object, env: Mapping[str, str] | None = None) -> Mapping[str, Any]:
    """The plan of an export by our own lowering that succeeds."""
    common = ("--model", model, "--via", "xla", "--stop-after", "lower", "--dry-run", "--json")
    result = run("export", "neuron", *common, *words, output, env=env)
    assert result.code == 0, result.err
    return plan(result)


OPTIONS: tuple[tuple[tuple[str, ...], str, object], ...] = (
    (("--task", "fill-mask"), "task", "fill-mask"),
    (("--task", "masked-lm"), "task", "fill-mask"),
    (("--task", "auto"), "task", "fill-mask"),
    (("--task", "default"), "task", "feature-extraction"),
    (("--auto_cast", "matmul"), "auto_cast", "matmul"),
    (("--auto-cast", "all"), "auto_cast", "all"),
    (("--auto_cast", "matmult"), "auto_cast", "matmul"),
    (("--auto_cast_type", "tf32"), "auto_cast_type", "tf32"),
    (("--auto-cast-type", "fp16"), "auto_cast_type", "fp16"),
    (("--dynamic-batch-size",), "dynamic_batch_size", True),
    (("--dynamic_batch_size",), "dynamic_batch_size", True),
    (("--output_hidden_states",), "output_hidden_states", True),
    (("--output-hidden-states",), "output_hidden_states", True),
    (("--output_attentions",), "output_attentions", True),
    (("--output-attentions",), "output_attentions", True),
    (("--torch_dtype", "bfloat16"), "torch_dtype", "bfloat16"),
    (("--torch-dtype", "fp16"), "torch_dtype", "float16"),
    (("-O1",), "optlevel", 1),
    (("-O2",), "optlevel", 2),
    (("-O3",), "optlevel", 3),
    (("--optlevel", "3"), "optlevel", 3),
    (("--instance_type", "trn2"), "target", "trn2"),
    (("--instance-type", "inf2"), "target", "inf2"),
    (("--layout", "lmi-split"), "layout", "lmi-split"),
    (("--disable-validation",), "validate", False),
    (("--disable_validation",), "validate", False),
    (("--no-validate",), "validate", False),
    (("--atol", "0.5"), "atol", 0.5),
    (("--trust-remote-code",), "trust_remote_code", True),
    (("--trust_remote_code",), "trust_remote_code", True),
    (("--num_beams", "3"), "num_beams", 3),
    (("--num-beams", "3"), "num_beams", 3),
    (("--num_choices", "3"), "num_choices", 3),
    (("--num_channels", "3"), "num_channels", 3),
    (("--width", "32"), "width", 32),
    (("--height", "32"), "height", 32),
    (("--num_images_per_prompt", "2"), "num_images_per_prompt", 2),
    (("--image_size", "32"), "image_size", 32),
    (("--patch_size", "8"), "patch_size", 8),
    (("--text_batch_size", "2"), "text_batch_size", 2),
    (("--image_batch_size", "2"), "image_batch_size", 2),
    (("--audio_sequence_length", "2000"), "audio_sequence_length", 2000),
    (("--batch-size", "2"), "batch_size", 2),
    (("--sequence-length", "8"), "sequence_length", 8),
)


@pytest.mark.parametrize(("words", "name", "value"), OPTIONS, ids=[" ".join(words) for words, _, _ in OPTIONS])
def test_an_option_is_taken(
    words: tuple[str, ...], name: str, value: object, run: Run, bert: Path, tmp_path: Path
) -> None:
    """Each spelling decides what the plan says it decides."""
    found = dry(run, bert, tmp_path / "out", *SHAPES, *words)

    assert found["options"][name] == value


@pytest.mark.parametrize("flag", ["--num_cores", "--num-cores", "--tensor_parallel_size", "--tensor-parallel-size"])
def test_the_cores_have_four_names(flag: str, run: Run, llama: Path, tmp_path: Path) -> None:
    """--num_cores became --tensor_parallel_size."""
    assert dry(run, llama, tmp_path / "out", *SHAPES, flag, 2)["ranks"] == 2


ENVIRONMENT = {
    "MAX_BATCH_SIZE": ("3", "batch_size", 3),
    "MAX_TOTAL_TOKENS": ("12", "sequence_length", 12),
    "HF_NUM_CORES": ("2", "num_cores", 2),
    "HF_AUTO_CAST_TYPE": ("bf16", "auto_cast_type", "bf16"),
}


@pytest.mark.parametrize("variable", ENVIRONMENT)
def test_a_variable_of_the_container_is_an_option(variable: str, run: Run, llama: Path, tmp_path: Path) -> None:
    """What TGI's container is started with says the same here."""
    text, name, value = ENVIRONMENT[variable]
    words = [
        word for flag, word in zip(SHAPES[::2], SHAPES[1::2], strict=True) if name != flag[2:] for word in (flag, word)
    ]

    found = dry(run, llama, tmp_path / "out", *words, env={variable: text})

    assert found["options"][name] == value


def test_a_flag_wins_over_its_variable(run: Run, llama: Path, tmp_path: Path) -> None:
    """Flag, then environment, then default."""
    found = dry(run, llama, tmp_path / "out", *SHAPES, env={"MAX_BATCH_SIZE": "7"})

    assert found["options"]["batch_size"] == 1


def test_missing_shapes_are_named_with_a_value(run: Run, bert: Path, tmp_path: Path) -> None:
    """Both at once, each with what to type."""
    result = run("export", "neuron", "-m", bert, "--via", "xla", "--stop-after", "lower", tmp_path / "out")

    assert result.code == 2
    assert "--batch-size" in result.err
    assert "--sequence-length" in result.err
    assert "--batch-size 1" in result.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--auto_cast", "fp8"), "--auto-cast"),
        (("--auto_cast_type", "int8"), "--auto-cast-type"),
        (("--instance_type", "inf1"), "neuron-cc"),
        (("--task", "poetry"), "--task"),
        (("--layout", "flat"), "--layout"),
        (("--via", "magic"), "--via"),
        (("-O1", "-O3"), "-O1 and -O3"),
        (("--buckets", "4,x"), "--buckets"),
        (("--buckets", "64"), "--buckets"),
        (("--num_cores", "2"), "--num-cores"),
        (("--unet", "/nowhere"), "--unet"),
        (("--inline-weights-neff",), "--inline-weights-neff"),
        (("--no-validate", "--atol", "1"), "--no-validate"),
        (("--via", "optimum"), "--stop-after"),
        (("--torch_dtype", "bfloat16", "--auto_cast_type", "fp16"), "fp16 with --torch-dtype bfloat16"),
        (("--compiler-workdir", "/dev/null/work"), "--compiler-workdir"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_makes_no_sense_is_refused(
    words: tuple[str, ...], said: str, run: Run, bert: Path, tmp_path: Path
) -> None:
    """Exit code 2, the flag by name, and nothing written."""
    result = run(
        "export", "neuron", "-m", bert, *SHAPES, "--via", "xla", "--stop-after", "lower", *words, tmp_path / "out"
    )

    assert (result.code, said in result.err) == (2, True), result.err
    assert list(tmp_path.iterdir()) == []


def test_no_compiler_is_said_before_any_work(run: Run, bert: Path, tmp_path: Path) -> None:
    """Exit code 6, with the ways on, when neuronx-cc is not there and --stop-after is not given."""
    result = run("export", "neuron", "-m", bert, *SHAPES, "--via", "xla", tmp_path / "out", env={"PATH": "/nowhere"})

    assert result.code == 6
    assert "--stop-after lower" in result.err
    assert "--from-lowered" in result.err
    assert list(tmp_path.iterdir()) == []


def test_the_optimum_layout_needs_optimum(run: Run, bert: Path, tmp_path: Path) -> None:
    """model.neuron is written by torch_neuronx alone; the reason is given."""
    words = ("--layout", "optimum", "--stop-after", "lower")
    result = run("export", "neuron", "-m", bert, *SHAPES, *words, tmp_path / "out")

    assert result.code == 6
    assert "torch_neuronx.trace" in result.err


def test_tasks_are_listed(run: Run, bert: Path) -> None:
    """What this model can be exported for, and by which way."""
    result = run("export", "neuron", "--list-tasks", bert)

    assert result.code == 0
    assert "feature-extraction" in result.out
    assert "our own lowering" in result.out


def test_a_head_that_was_not_saved_is_refused_before_any_work(run: Run, bert: Path, tmp_path: Path) -> None:
    """Exit code 3, with the task that the checkpoint was saved for."""
    words = ("--task", "text-classification", "--via", "xla", "--stop-after", "lower")
    result = run("export", "neuron", "-m", bert, *SHAPES, *words, tmp_path / "out")

    assert result.code == 3
    assert "saved for fill-mask" in result.err
    assert "--task fill-mask" in result.err
    assert list(tmp_path.iterdir()) == []


def test_tasks_without_their_head_are_not_listed(run: Run, bert: Path) -> None:
    """A masked language model has its states, and no classifier."""
    result = run("export", "neuron", "--list-tasks", bert)

    assert [line.split()[0] for line in result.out.splitlines()] == ["feature-extraction", "fill-mask"]


def test_a_dtype_said_twice_is_no_contradiction(run: Run, llama: Path, tmp_path: Path) -> None:
    """--auto_cast_type means the weights of a decoder that is not cast, and beside a cast what is cast to."""
    twice = dry(run, llama, tmp_path / "out", *SHAPES, "--torch_dtype", "bfloat16", "--auto_cast_type", "bf16")
    both = dry(
        run,
        llama,
        tmp_path / "out",
        *SHAPES,
        *("--torch_dtype", "bfloat16", "--auto_cast_type", "fp16", "--auto_cast", "matmul"),
    )

    assert (twice["dtype"], both["dtype"]) == ("bf16", "bf16")


def test_a_model_is_needed(run: Run, tmp_path: Path) -> None:
    """The message names both ways to give one."""
    result = run("export", "neuron", tmp_path / "out")

    assert result.code == 2
    assert "--from-lowered" in result.err


def test_environment_flags_are_refused_unless_allowed(run: Run, bert: Path, tmp_path: Path) -> None:
    """NEURON_CC_FLAGS changes what is compiled without a word, so it takes a word."""
    words = ("-m", bert, *SHAPES, "--via", "xla", "--stop-after", "lower", "--dry-run", tmp_path / "out")
    env = {"NEURON_CC_FLAGS": "--enable-fast-context-switch"}

    refused = run("export", "neuron", *words, env=env)
    allowed = run("export", "neuron", *words, "--allow-env-flags", env=env)

    assert (refused.code, allowed.code) == (2, 0), allowed.err
    assert "NEURON_CC_FLAGS" in refused.err


def test_a_sequence_beyond_the_positions_is_refused(run: Run, bert: Path, tmp_path: Path) -> None:
    """The gather would read beyond the table: the compiler's own code, before any work."""
    words = ("--batch_size", 1, "--sequence_length", 4096, "--via", "xla", "--stop-after", "lower")
    result = run("export", "neuron", "-m", bert, *words, tmp_path / "out")

    assert result.code == 5
    assert "NCC_EVRF056" in result.err
