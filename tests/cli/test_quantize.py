"""The command `llmcompile quantize`: what is refused, the plan, what a person and a program are told."""

from __future__ import annotations

import inspect
import json
import shlex
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import models
from llmcompile.cli import quantize_lines
from llmcompile.cli.quantize import quantize
from llmcompile.exporters.options import BuildOptions
from llmcompile.exporters.trtllm import versions
from llmcompile.exporters.trtllm.comparison import QuantizeOptions
from llmcompile.packaging import recipe_report as reports
from llmcompile.packaging.manifest import Quality, Tool
from llmcompile.pipeline.quantizing import Compared

if TYPE_CHECKING:
    from conftest import Run

NOT_HERE = {"validate", "atol", "rtol", "package"}
"""Options of a build that a comparison has not: it always validates, within limits of its own."""


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaMA wide enough for every recipe, with a tokenizer."""
    sizes = {"hidden_size": 128, "intermediate_size": 128, "head_dim": 32}
    folder = models.save("llama_gqa", tmp_path_factory.mktemp("tiny"), dtype="float16", config=sizes)
    models.add_tokenizer(folder)
    return folder


def test_the_commands_parameters_are_the_options_fields() -> None:
    """None is missing, none goes nowhere, and defaults are written once."""
    own = {field.name: field.default for field in fields(QuantizeOptions) if field.name != "build"}
    shared = {field.name: field.default for field in fields(BuildOptions) if field.name not in NOT_HERE}
    given = {name: parameter.default for name, parameter in inspect.signature(quantize).parameters.items()}

    del given["trtllm_version"], own["trtllm_version"]  # its default depends on the target
    assert given.keys() - {"json", "quiet", "log_format"} == own.keys() | shared.keys()
    words = {"recipes": "all", "dtype": "auto", "model": inspect.Parameter.empty, "output": inspect.Parameter.empty}
    assert {name: given[name] for name in own.keys() | shared.keys()} == {**shared, **own, **words}


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--recipes", "fp9"), 2, "did you mean fp8?"),
        (("--recipes", "fp8,fp8"), 2, "twice"),
        (("--recipes", ""), 2, "--recipes"),
        (("--recipes", "fp8", "--group-size", 64), 2, "none of which has groups"),
        (("--recipes", "w8a16", "--calib-dataset", "nowhere.jsonl"), 2, "--calib-dataset"),
        (("--recipes", "w8a16", "--calibrator", "modelopt"), 2, "--calibrator: given for recipes none of which"),
        (("--recipes", "w8a16", "--calib-size", 4), 2, "--calib-size: given for recipes none of which needs data"),
        (("--recipes", "w8a16", "--calib-seq-len", 4), 2, "--calib-seq-len: given for recipes none of which"),
        (("--recipes", "fp8", "--calib-column", "body"), 2, "--calib-column: body without --calib-dataset"),
        (("--kv-cache", "int4"), 2, "fp8 or int8"),
        (("--calibrator", "gptq"), 2, "llmcompile or modelopt"),
        (("--eval-text", "nowhere.txt"), 2, "nowhere.txt"),
        (("--calib-dataset", "nowhere.txt"), 2, "nowhere.txt"),
        (("--dtype", "float32"), 2, "float32 with --quantization"),
        (("--trtllm-version", "2.0"), 4, "1.2.1"),
        (("--recipes", "fp8_rowwise", "--trtllm-version", "0.9"), 4, "0.12 or later"),
        (("--recipes", "w8a16,w4a16_gptq"), 4, "a checkpoint quantized with GPTQ or AWQ"),
        (("--max-memory", "1MiB"), 10, "--max-memory"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_what_cannot_be_is_refused_before_any_work(
    words: tuple[object, ...], code: int, said: str, model: Path, run: Run, tmp_path: Path
) -> None:
    """With the way out in the message, once, and nothing on the disk."""
    result = run("quantize", "-m", model, *words, tmp_path / "out")

    assert result.code == code, result.err
    assert said in result.err
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_continues_no_text_is_refused(run: Run, tmp_path: Path) -> None:
    """Nothing could be scored; said once, not for each recipe."""
    models.save("bert", tmp_path / "model")

    result = run("quantize", "-m", tmp_path / "model", tmp_path / "out")

    assert result.code == 4
    assert result.err.count("error:") == 1
    assert "a bert model" in result.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_a_decoder_is_scored_on_what_its_encoder_reads(family: str, run: Run, tmp_path: Path) -> None:
    """Which it is to give back, token by token; the unquantized model is as the model."""
    models.save(family, tmp_path / "model", dtype="float16")
    data = tmp_path / "tokens.jsonl"
    data.write_text('{"input_ids": [5, 7, 11, 13, 17, 19, 23, 29]}')
    words = ("--recipes", "fp8,int8_sq", "--calib-dataset", data, "--no-plot")

    result = run("quantize", "-m", tmp_path / "model", *words, tmp_path / "out")

    assert result.code == 0, result.err
    assert "fp8" in result.out
    assert "int8_sq" in result.out


@pytest.mark.parametrize("words", [(), ("--force",)], ids=["", "--force"])
def test_a_folder_of_others_is_left_alone(words: tuple[str, ...], model: Path, run: Run, tmp_path: Path) -> None:
    """OUTPUT that is none of ours is not replaced, by force neither."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")

    result = run("quantize", "-m", model, *words, tmp_path / "out")

    assert result.code == 8
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"


def test_a_comparison_is_replaced_by_force_alone(model: Path, run: Run, tmp_path: Path) -> None:
    """A second run ends with 8; with --force it takes the first one's place."""
    command = ("quantize", "-m", model, "--recipes", "w8a16", "--no-plot")
    run(*command, tmp_path / "out")

    second = run(*command, tmp_path / "out")
    forced = run(*command, "--recipes", "w4a16", "--force", tmp_path / "out")

    assert second.code == 8
    assert "--force" in second.err
    assert forced.code == 0, forced.err
    found = json.loads((tmp_path / "out" / "quantize.json").read_text())
    assert [each["recipe"] for each in found["outcomes"]] == [None, "w4a16"]


def test_a_dry_run_shows_every_recipe_and_writes_nothing(model: Path, run: Run, tmp_path: Path) -> None:
    """Each is planned, with weights, data and memory, or listed with the reason why it is not made."""
    result = run("quantize", "-m", model, "--group-size", 64, "--dry-run", tmp_path / "out")

    assert result.code == 0, result.err
    lines = result.out.splitlines()
    for recipe in versions.RECIPES:
        planned = [line for line in lines if line.startswith(f"  {recipe} ")]
        assert len(planned) + sum(line.startswith(f"not made: {recipe}: ") for line in lines) == 1, recipe
        if len(planned) == 1:
            assert ("tokens" in planned[0]) == (recipe in versions.CALIBRATED)
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_for_programs_has_the_sizes(model: Path, run: Run, tmp_path: Path) -> None:
    """What a checkpoint holds, and what its weights are on the GPU, which are not one where the builder quantizes."""
    command = ("quantize", "-m", model, "--recipes", "w8a16,fp8", "--dry-run", "--json")

    plan = json.loads(run(*command, tmp_path / "out").out)["plan"]

    sizes = {each["recipe"]: (each["checkpoint_bytes"], each["weights_bytes"]) for each in plan["recipes"]}
    assert list(sizes) == [None, "w8a16", "fp8"]
    assert sizes["w8a16"][0] == pytest.approx(sizes[None][0], rel=0.01)
    assert sizes["w8a16"][1] < 0.8 * sizes["w8a16"][0]
    assert sizes["fp8"][0] == sizes["fp8"][1]


def test_a_program_gets_one_document(model: Path, run: Run, tmp_path: Path) -> None:
    """The report with the seconds of each recipe, which the files do not have, and nothing else on stdout."""
    command = ("quantize", "-m", model, "--recipes", "w8a16", "--no-plot", "--json")

    document = json.loads(run(*command, tmp_path / "out").out)

    assert document["exit_code"] == 0
    assert document["recipes"]["seconds"].keys() == {"unquantized", "w8a16"}
    stored = json.loads((tmp_path / "out" / "quantize.json").read_text())
    assert {**stored, "seconds": document["recipes"]["seconds"]} == document["recipes"]


def test_a_quantized_checkpoint_is_refused(run: Run, tmp_path: Path) -> None:
    """There is nothing to choose any more."""
    folder = models.save("llama_gqa", tmp_path / "model", dtype="float16")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 4, "desc_act": False}
    (folder / "config.json").write_text(json.dumps(config))

    result = run("quantize", "-m", folder, tmp_path / "out")

    assert result.code != 0
    assert not (tmp_path / "out").exists()


# What a person sees


def compared(failed: bool = False) -> Compared:
    """A comparison of a large model, with every recipe and as wide as figures become."""

    def record(number: int, recipe: str | None) -> reports.Outcome:
        quality = Quality(
            text="a text",
            recipe="ANY",
            tokens=2048,
            perplexity_model=5.4321,
            perplexity=5.4321 + number,
            top1=0.9876,
            largest_error=12.345,
            largest_logit=30.0,
            kl=1.2e-3 * (number + 1),
        )
        passed = not (failed and number == 2)
        return reports.Outcome(
            recipe=recipe,
            algorithm=None,
            passed=passed,
            problems=() if passed else ("logits[0, 3, 5]: 1.0; expected 2.0",),
            checkpoint_bytes=132 << 30,
            weights_bytes=(132 - 11 * number) << 30,
            share=(132 - 11 * number) / 132,
            calibrated=number % 2 == 0,
            oldest_gpu=100,
            first_release="0.17",
            quality=quality if passed else None,
            checkpoint=None,
            notes=(),
        )

    outcomes = tuple(record(number, recipe) for number, recipe in enumerate((None, *versions.RECIPES)))
    report = reports.RecipeReport(
        tool=Tool(version="0"),
        model="org/model",
        architecture="llama",
        dtype="bfloat16",
        kv_cache=None,
        group_size=128,
        target="engine",
        trtllm_version="1.2.1",
        vocabulary=32000,
        text="a text",
        tokens=2048,
        perplexity=5.4321,
        calibration=None,
        outcomes=outcomes,
        left_out=(reports.LeftOut(recipe="w4a16_gptq", reason="for float weights"),),
        standing=reports.standing(outcomes),
        remarks=("read this",),
    )
    return Compared(report, {"unquantized": 12.3, **dict.fromkeys(versions.RECIPES, 5400.0)})


def test_the_table_fits_a_terminal() -> None:
    """Eighty columns hold every figure of a large model, with one line for each checkpoint and columns that align."""
    lines = quantize_lines.table_lines(compared())

    assert max(map(len, lines)) <= 80
    assert len(lines) == 3 + 1 + len(versions.RECIPES)
    assert len({len(line) for line in lines[3:]}) == 1


def test_a_failed_recipe_is_last_and_says_why() -> None:
    """FAILED, and the first thing that is wrong."""
    last = quantize_lines.table_lines(compared(failed=True))[-1]

    assert last.split(maxsplit=1) == [list(versions.RECIPES)[1], "FAILED: logits[0, 3, 5]: 1.0; expected 2.0"]


def test_what_is_best_is_said_in_words() -> None:
    """Not by a colour: the smallest, the closest, those to choose of, what was not made, how to read it."""
    options = QuantizeOptions(build=BuildOptions(model="org/model", output=Path("out")))

    rows = dict(quantize_lines.rows(compared().report, options))

    assert list(rows) == ["model", "smallest", "closest", "choose of", "not made", "note", "next", ""]
    assert rows["smallest"].startswith(f"{list(versions.RECIPES)[-1]}: ")
    assert rows["closest"].startswith(f"{next(iter(versions.RECIPES))}: KL 2.4e-03")
    assert rows["next"] == "read out/quantize.md; then, say:"


def test_what_was_measured_is_what_is_built_next(model: Path, run: Callable[..., Any], tmp_path: Path) -> None:
    """The command that is printed makes the checkpoint with the cache and the data of the comparison."""
    data = tmp_path / "tokens.jsonl"
    data.write_text("".join(json.dumps({"input_ids": list(range(start, start + 20))}) + "\n" for start in range(4)))
    options = (
        "--calib-dataset",
        data,
        "--calib-size",
        4,
        "--calib-seq-len",
        16,
        "--kv-cache",
        "fp8",
        "--dtype",
        "bfloat16",
    )
    result = run("quantize", "-m", model, "--recipes", "fp8", *options, "--no-plot", "--keep", tmp_path / "out")
    command = shlex.split(next(line for line in result.out.splitlines() if "llmcompile build" in line))

    built = run(*command[1:])

    assert built.code == 0, built.err
    kept = tmp_path / "out/checkpoints/fp8/checkpoint/rank0.safetensors"
    assert Path(command[-1], "checkpoint/rank0.safetensors").read_bytes() == kept.read_bytes()


def test_a_named_recipe_is_refused_by_the_flag_that_named_it(
    model: Path, run: Callable[..., Any], tmp_path: Path
) -> None:
    """`quantize` has no --quantization to follow a hint about."""
    result = run("quantize", "-m", model, "--recipes", "int8_sq", "--target", "llmapi", "--no-plot", tmp_path / "out")

    assert result.code == 4
    assert "--quantization" not in result.err


def test_without_colours_the_output_is_plain(
    model: Path, run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What goes to a pipe has no escape codes, and the table's lines are not broken at eighty columns."""
    monkeypatch.setenv("COLUMNS", "80")

    result = run("quantize", "-m", model, "--recipes", "w8a16,fp8", "--no-plot", tmp_path / "out")

    assert "\x1b" not in result.out
    table = result.out.split("\n\n")[0].splitlines()
    assert len([line for line in table if line.startswith(("float16", "w8a16", "fp8"))]) == 3
    assert all(len(line) <= 80 for line in table)
