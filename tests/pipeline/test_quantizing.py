"""Recipes side by side: figures beside plain transformers, sizes beside the disk, resumption, failures, the plot."""

from __future__ import annotations

import itertools
import json
import math
import struct
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
import transformers

import models
from llmcompile.calibration.layers import Layers
from llmcompile.errors import ToolchainError
from llmcompile.exporters.trtllm import versions
from llmcompile.exporters.trtllm.llmapi import recipes as served
from llmcompile.packaging import recipe_report as reports
from llmcompile.packaging.manifest import Quality, Tool
from llmcompile.pipeline import making, plotting
from llmcompile.writing import WorkDirectory

if TYPE_CHECKING:
    from conftest import Run

RECIPES = ("w8a16", "fp8", "int4_awq")
FIGURES = ("quantize.json", "quantize.md", "quantize.svg", "quantize.png")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaMA wide enough for every recipe, in float16, with a tokenizer."""
    sizes = {"hidden_size": 128, "intermediate_size": 128, "head_dim": 32, "max_position_embeddings": 256}
    folder = models.save("llama_gqa", tmp_path_factory.mktemp("tiny"), dtype="float16", config=sizes)
    models.add_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of 100 words that the tokenizer knows."""
    path = tmp_path_factory.mktemp("text") / "letters.txt"
    letters = np.random.default_rng(1).choice(list("abcdefghijklmnopqrstuvwxyz0123456789"), 100)
    path.write_text(" ".join(letters))
    return path


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokens to calibrate on."""
    path = tmp_path_factory.mktemp("data") / "tokens.jsonl"
    numbers = np.random.default_rng(0).integers(0, models.VOCAB, (8, 33)).tolist()
    path.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in numbers))
    return path


@pytest.fixture(scope="session")
def command(model: Path, text: Path, data: Path) -> Callable[..., tuple[object, ...]]:
    """`command(*more)` is the command line without OUTPUT."""

    def words(*more: object, recipes: tuple[str, ...] = RECIPES) -> tuple[object, ...]:
        calibration = (
            () if recipes == ("w8a16",) else ("--calib-dataset", data, "--calib-size", 8, "--calib-seq-len", 16)
        )
        groups = ("--group-size", 64) if "int4_awq" in recipes else ()
        start = ("quantize", "-m", model, "--recipes", ",".join(recipes), "--eval-text", text)
        return (*start, *calibration, *groups, *more)

    return words


@pytest.fixture(scope="session")
def kept(command: Callable[..., tuple[object, ...]], run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a comparison leaves, with its checkpoints."""
    output = tmp_path_factory.mktemp("kept") / "out"
    result = run(*command("--keep"), output)
    assert result.code == 0, result.err
    return output


def outcome(output: Path, recipe: str | None) -> dict[str, Any]:
    """A recipe's record in quantize.json."""
    found = json.loads((output / "quantize.json").read_text())["outcomes"]
    return next(each for each in found if each["recipe"] == recipe)


def perplexity(logits: torch.Tensor, tokens: torch.Tensor) -> float:
    """E to the mean negative log-likelihood of what follows, in plain torch."""
    chosen = torch.log_softmax(logits[0, :-1].double(), -1).gather(1, tokens[0, 1:, None])
    return math.exp(-float(chosen.mean()))


def test_the_baseline_is_the_models_own_perplexity(model: Path, text: Path, kept: Path) -> None:
    """What transformers computes in float32 on the same tokens, and KL of nothing beside it."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    made = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    tokens = torch.tensor([tokenizer(text.read_text())["input_ids"]])
    with torch.no_grad():
        expected = perplexity(made(tokens).logits, tokens)

    found = json.loads((kept / "quantize.json").read_text())

    assert found["perplexity"] == pytest.approx(expected, rel=1e-4)
    assert found["tokens"] == tokens.shape[1] == 100
    baseline = outcome(kept, None)["quality"]
    assert baseline["perplexity"] == pytest.approx(expected, rel=1e-3)
    assert baseline["kl"] < 1e-5


def test_int8_weights_cost_what_plain_torch_says(model: Path, text: Path, kept: Path) -> None:
    """Each row of a matrix rounded to 128ths of its largest magnitude, 127 at most: perplexity, KL, top-1 are those."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    made = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    tokens = torch.tensor([tokenizer(text.read_text())["input_ids"]])
    with torch.no_grad():
        whole = made(tokens).logits
        for name, weight in made.named_parameters():
            if name.endswith("_proj.weight"):
                steps = weight.abs().amax(1, keepdim=True) / 128
                weight.copy_((weight / steps).round().clamp(-128, 127) * steps.half().float())
        rounded = made(tokens).logits
    wanted, seen = (torch.log_softmax(logits[0].double(), -1) for logits in (whole, rounded))

    found = outcome(kept, "w8a16")["quality"]

    assert found["perplexity"] == pytest.approx(perplexity(rounded, tokens), rel=5e-3)
    assert found["kl"] == pytest.approx(float((wanted.exp() * (wanted - seen)).sum(-1).mean()), rel=0.1)
    assert found["top1"] == pytest.approx(float((whole.argmax(-1) == rounded.argmax(-1)).float().mean()), abs=0.011)


def test_sizes_are_those_on_the_disk(kept: Path) -> None:
    """Of every checkpoint that is kept, and the share is that of the unquantized one."""
    whole = outcome(kept, None)["weights_bytes"]
    for recipe in (None, *RECIPES):
        found = outcome(kept, recipe)
        files = (kept / found["checkpoint"]).rglob("*.safetensors")

        assert found["checkpoint_bytes"] == sum(path.stat().st_size for path in files)
        assert found["share"] == pytest.approx(found["weights_bytes"] / whole, rel=1e-3)
        assert (found["checkpoint_bytes"] == found["weights_bytes"]) == (recipe != "w8a16")


def test_weights_that_the_builder_quantizes_have_their_quantized_size(
    model: Path, kept: Path, run: Run, tmp_path: Path
) -> None:
    """That of the same recipe stored quantized."""
    start = ("build", "trtllm", "--stop-after", "checkpoint", "-m", model, "--no-validate")
    run(*start, "--quantization", "w8a16", "--wo-layout", "sm80", tmp_path / "out")

    size = (tmp_path / "out" / "checkpoint" / "rank0.safetensors").stat().st_size
    assert outcome(kept, "w8a16")["weights_bytes"] == size


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_kept_checkpoint_is_that_of_build_trtllm(
    recipe: str, model: Path, data: Path, kept: Path, run: Run, tmp_path: Path
) -> None:
    """The same files, byte for byte, each a whole artifact."""
    start = ("build", "trtllm", "--stop-after", "checkpoint", "-m", model, "--no-validate", "--quantization", recipe)
    calibration = ("--calib-dataset", data, "--calib-size", 8, "--calib-seq-len", 16)
    groups = ("--group-size", 64) if "awq" in recipe else ()
    result = run(*start, *(calibration if recipe in versions.CALIBRATED else ()), *groups, tmp_path / "out")
    assert result.code == 0, result.err

    folder = kept / "checkpoints" / recipe
    for name in ("checkpoint/rank0.safetensors", "checkpoint/config.json"):
        assert (folder / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    assert run("verify", folder).code == 0


def test_what_is_recorded_of_a_recipe_is_the_table_of_releases(kept: Path) -> None:
    """The oldest GPU, the first release, whether it needs data."""
    for recipe in RECIPES:
        found, known = outcome(kept, recipe), versions.RECIPES[recipe]

        assert (found["oldest_gpu"], found["algorithm"]) == (known.sm, known.algorithm)
        assert found["first_release"] == versions.text_of(known.first)
        assert found["calibrated"] == (recipe in versions.CALIBRATED)


def test_the_report_is_verified_and_no_artifact(kept: Path, run: Run, tmp_path: Path) -> None:
    """Every file is in the manifest, kept checkpoints too; a server cannot be given it."""
    listed = {record["path"] for record in json.loads((kept / "llmcompile.json").read_text())["files"]}

    assert run("verify", kept).code == 0
    assert {*FIGURES, "checkpoints/fp8/llmcompile.json"} <= listed
    assert run("package", "triton", kept, tmp_path / "package").code == 3
    assert run("verify", "--deep", kept).code == 2


def test_without_keep_no_checkpoint_is_left_and_the_figures_are_the_same(
    command: Callable[..., tuple[object, ...]],
    kept: Path,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One checkpoint at a time is on the disk; the same model, data and options give the same report."""
    seen: list[int] = []
    original = making.build

    def watched(*given: Any, **named: Any) -> None:
        seen.append(len(list((tmp_path / "out.partial").rglob("rank0.safetensors"))))
        original(*given, **named)

    monkeypatch.setattr(making, "build", watched)

    result = run(*command(), tmp_path / "out")

    assert result.code == 0, result.err
    assert seen == [0] * 4
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*FIGURES, "llmcompile.json"}
    assert not (tmp_path / "out.partial").exists()
    mine, theirs = (json.loads((folder / "quantize.json").read_text()) for folder in (tmp_path / "out", kept))
    for record in theirs["outcomes"]:
        record["checkpoint"] = None
    assert mine == theirs
    assert "seconds" not in (tmp_path / "out" / "quantize.json").read_text()


def test_recipes_that_ask_for_the_same_are_measured_once(
    command: Callable[..., tuple[object, ...]],
    model: Path,
    data: Path,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second AWQ recipe runs no layer; its checkpoint and its record are those of a build of its own."""
    ran: list[int] = []
    original = Layers.run

    def watched(self: Layers, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        ran.append(layer)
        return original(self, layer, hidden)

    with monkeypatch.context() as patch:
        patch.setattr(Layers, "run", watched)
        result = run(*command("--keep", "--no-plot", recipes=("int4_awq", "w4a8_awq")), tmp_path / "out")
    assert result.code == 0, result.err
    start = ("build", "trtllm", "--stop-after", "checkpoint", "-m", model, "--no-validate", "--group-size", 64)
    calibration = ("--calib-dataset", data, "--calib-size", 8, "--calib-seq-len", 16)
    run(*start, "--quantization", "w4a8_awq", *calibration, tmp_path / "alone")

    assert result.err.count("Calibrating") == 1
    assert ran == [0, 1]
    mine, alone = tmp_path / "out" / "checkpoints" / "w4a8_awq", tmp_path / "alone"
    name = "checkpoint/rank0.safetensors"
    assert (mine / name).read_bytes() == (alone / name).read_bytes()
    records = [json.loads((folder / "llmcompile.json").read_text())["calibration"] for folder in (mine, alone)]
    assert records[0] == records[1]


def test_the_oldest_gpu_is_that_of_all_that_was_asked_for(model: Path, run: Run, tmp_path: Path) -> None:
    """An FP8 cache needs Ada, bfloat16 needs Ampere, whatever the recipe needs."""
    start = ("quantize", "-m", model, "--recipes", "w8a16", "--no-plot")
    run(*start, "--kv-cache", "fp8", tmp_path / "cache")
    run(*start, "--dtype", "bfloat16", tmp_path / "type")

    assert outcome(tmp_path / "cache", "w8a16")["oldest_gpu"] == 89
    assert outcome(tmp_path / "cache", None)["oldest_gpu"] == 75
    assert outcome(tmp_path / "type", "w8a16")["oldest_gpu"] == outcome(tmp_path / "type", None)["oldest_gpu"] == 80


def test_recipes_of_the_llm_api_are_compared_too(model: Path, text: Path, run: Run, tmp_path: Path) -> None:
    """Every recipe that it loads, the others with their reasons; sizes are those of the folders' weights."""
    command = ("quantize", "-m", model, "--target", "llmapi", "--eval-text", text, "--group-size", 64, "--keep")

    result = run(*command, "--no-plot", tmp_path / "out")

    assert result.code == 0, result.err
    found = json.loads((tmp_path / "out" / "quantize.json").read_text())
    made = {each["recipe"] for each in found["outcomes"]} - {None}
    assert made == set(served.RECIPES)
    assert {each["recipe"] for each in found["left_out"]} == set(versions.RECIPES) - made
    for each in found["outcomes"]:
        files = (tmp_path / "out" / each["checkpoint"]).glob("*.safetensors")
        assert each["weights_bytes"] == each["checkpoint_bytes"] == sum(path.stat().st_size for path in files)
        assert each["quality"]["tokens"] == 100
    assert outcome(tmp_path / "out", None)["quality"]["kl"] < 1e-5


class Stopped(Exception):
    """A run was killed here."""


def test_a_stopped_comparison_goes_on_at_its_recipe_and_layer(
    command: Callable[..., tuple[object, ...]], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was measured is not built again, nor a layer that was calibrated; the files are those of one run."""
    words = command(recipes=("fp8", "int4_awq"))
    assert run(*words, tmp_path / "whole").code == 0
    calls: list[int] = []
    original = Layers.run

    def stopped(self: Layers, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        calls.append(layer)
        if layer == 1 and calls.count(0) > 1 and 1 in calls[: calls.index(0, 1)]:
            raise Stopped
        return original(self, layer, hidden)

    with monkeypatch.context() as patch:
        patch.setattr(Layers, "run", stopped)
        with pytest.raises(Stopped):
            run(*words, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    again: list[int] = []
    monkeypatch.setattr(
        Layers, "run", lambda self, layer, hidden: (again.append(layer), original(self, layer, hidden))[1]
    )

    refused, result = run(*words, tmp_path / "out"), run(*words, "--resume", tmp_path / "out")

    assert refused.code == 8
    assert "--resume" in refused.err
    assert result.code == 0, result.err
    assert "fp8 (2 of 3), kept from the run before" in result.err
    assert "int4_awq (3 of 3)\n" in result.err
    assert set(again) == {1}
    for name in (*FIGURES, "llmcompile.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_another_release_of_the_calibrator_is_another_comparison(
    command: Callable[..., tuple[object, ...]], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recipes that one release measured are not set beside those of another."""
    words = command("--calibrator", "modelopt", recipes=("fp8",))
    original = metadata.version

    def release(number: str) -> Callable[[str], str]:
        return lambda name: number if name == "nvidia-modelopt" else original(name)

    def stopped(*arguments: object, **more: object) -> None:
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(metadata, "version", release("0.47.0"))
        patch.setattr(making, "build", stopped)
        with pytest.raises(Stopped):
            run(*words, tmp_path / "out")
    monkeypatch.setattr(metadata, "version", release("0.48.0"))

    result = run(*words, "--resume", tmp_path / "out")

    assert (result.code, 'calibrator_version was "0.47.0"' in result.err) == (8, True), result.err


def test_a_recipe_that_was_not_noted_is_built_again(
    command: Callable[..., tuple[object, ...]], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed when a checkpoint had appeared inside the work directory, and nothing said so yet."""
    words = command(recipes=("w8a16",))
    original = WorkDirectory.write_bytes

    def stopped(self: WorkDirectory, file: str, content: bytes) -> Any:
        if file == "outcomes/w8a16.json":
            raise KeyboardInterrupt
        return original(self, file, content)

    with monkeypatch.context() as patch:
        patch.setattr(WorkDirectory, "write_bytes", stopped)
        interrupted = run(*words, "--keep", tmp_path / "out")

    result = run(*words, "--keep", "--resume", tmp_path / "out")

    assert interrupted.code == 130
    assert "--resume" in interrupted.err
    assert result.code == 0, result.err
    assert run("verify", tmp_path / "out").code == 0


def test_other_options_are_another_comparison(
    command: Callable[..., tuple[object, ...]], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A work directory of another text is not gone on with."""
    with monkeypatch.context() as patch:
        patch.setattr(making, "build", lambda *given, **named: (_ for _ in ()).throw(Stopped))
        with pytest.raises(Stopped):
            run(*command(), tmp_path / "out")
    other = tmp_path / "other.txt"
    other.write_text("a b c d")

    result = run(*command("--resume", "--eval-text", other), tmp_path / "out")

    assert result.code == 8
    assert "eval_text was" in result.err


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every checkpoint of FP8 has a byte changed after it was written."""
    original = making.write_tensors

    def write(job: Any, work: Any, view: Any) -> Any:
        streamed = original(job, work, view)
        if job.options.quantization == "fp8":
            path = work.path / "checkpoint" / "rank0.safetensors"
            content = bytearray(path.read_bytes())
            size = struct.unpack("<Q", content[:8])[0]
            place = json.loads(content[8 : 8 + size])["transformer.layers.0.mlp.fc.weight"]["data_offsets"][0]
            content[8 + size + place : 8 + size + place + 64] = bytes(64)
            path.write_bytes(content)
        return streamed

    monkeypatch.setattr(making, "write_tensors", write)


def test_a_recipe_that_fails_does_not_lose_the_others(
    command: Callable[..., tuple[object, ...]], broken: None, run: Run, tmp_path: Path
) -> None:
    """The table says FAILED, OUTPUT is there, and the exit code is 7."""
    result = run(*command(), tmp_path / "out")

    assert result.code == 7
    assert outcome(tmp_path / "out", "fp8")["passed"] is False
    assert outcome(tmp_path / "out", "int4_awq")["passed"] is True
    assert "\nfp8      FAILED: " in result.out
    assert "| fp8 | FAILED |" in (tmp_path / "out" / "quantize.md").read_text()
    assert "error: fp8: validation: " in result.err
    assert "quantize.md" in result.err
    assert "fp8" not in json.loads((tmp_path / "out" / "quantize.json").read_text())["standing"]["unbeaten"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*FIGURES, "llmcompile.json"}


def test_a_failed_checkpoint_is_kept_where_all_are(
    command: Callable[..., tuple[object, ...]], broken: None, run: Run, tmp_path: Path
) -> None:
    """As it was rejected, for inspection."""
    result = run(*command("--keep", recipes=("fp8",)), tmp_path / "out")

    assert result.code == 7
    found = outcome(tmp_path / "out", "fp8")["checkpoint"]
    assert (tmp_path / "out" / found / "checkpoint" / "rank0.safetensors").is_file()
    assert f"kept at {tmp_path / 'out' / found}" in result.err


# What is drawn


def test_the_plot_is_an_image_with_every_recipe(kept: Path) -> None:
    """A PNG of its size, and an SVG whose text has each name and both axes' units."""
    head = (kept / "quantize.png").read_bytes()[:24]
    words = "".join(ElementTree.parse(kept / "quantize.svg").getroot().itertext())

    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", head[16:24]) == (1296, 777)
    for word in (*RECIPES, "float16, unquantized", "weights on the GPU, KiB", "nats per token"):
        assert word in words


def made_up(points: dict[str, tuple[int, float]], **given: Any) -> reports.RecipeReport:
    """A report of recipes with these bytes of weights and KL divergences, beside 1000 MiB."""
    whole = 1000 << 20

    def record(recipe: str | None, size: int, kl: float) -> reports.Outcome:
        quality = Quality(
            text="a text",
            recipe="ANY",
            tokens=1884,
            perplexity_model=12.345,
            perplexity=12.345 * (1 + kl),
            top1=0.987,
            largest_error=1.25,
            largest_logit=30.0,
            kl=kl,
        )
        return reports.Outcome(
            recipe=recipe,
            algorithm=None,
            passed=True,
            problems=(),
            checkpoint_bytes=size,
            weights_bytes=size,
            share=size / whole,
            calibrated=False,
            oldest_gpu=100,
            first_release="0.17",
            quality=quality,
            checkpoint=None,
            notes=(),
        )

    outcomes = [record(None, whole, 1e-8), *(record(name, size, kl) for name, (size, kl) in points.items())]
    fields: dict[str, Any] = {
        "tool": Tool(version="0"),
        "model": "a-model",
        "architecture": "llama",
        "dtype": "float16",
        "kv_cache": None,
        "group_size": 128,
        "target": "engine",
        "trtllm_version": "1.2.1",
        "vocabulary": 32000,
        "text": "a text",
        "tokens": 1884,
        "perplexity": 12.345,
        "calibration": None,
        "left_out": (),
        "remarks": (),
    }
    return reports.RecipeReport(
        **{**fields, "outcomes": tuple(outcomes), "standing": reports.standing(outcomes), **given}
    )


CROWD = {name: ((250 + 3 * number) << 20, 1e-3 * (1 + 0.05 * number)) for number, name in enumerate(versions.RECIPES)}
SPREAD = {name: ((200 + 80 * number) << 20, 10.0**-number) for number, name in enumerate(versions.RECIPES)}


@pytest.mark.parametrize("points", [CROWD, SPREAD], ids=["crowded", "spread"])
def test_labels_do_not_cover_each_other(points: dict[str, tuple[int, float]]) -> None:
    """Every recipe has a label; no two overlap, and none leaves the picture."""
    figure = plotting.figure_of(made_up(points))
    assert figure is not None
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer: Any = FigureCanvasAgg(figure)
    labels = [text for text in figure.axes[0].texts if text.get_text() != ""]
    boxes = [label.get_window_extent(renderer.get_renderer()) for label in labels]

    assert {label.get_text().split("\n")[0] for label in labels} >= set(points)
    for first, second in itertools.combinations(boxes, 2):
        width = min(first.x1, second.x1) - max(first.x0, second.x0)
        height = min(first.y1, second.y1) - max(first.y0, second.y0)
        assert min(width, height) <= 1
    assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= 900 and box.y1 <= 540 for box in boxes)


def test_a_plot_needs_matplotlib(
    model: Path, command: Callable[..., tuple[object, ...]], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it nothing begins, and the message says what to type; --no-plot does without."""
    monkeypatch.setattr(plotting, "find_spec", lambda name: None)

    result = run(*command(), tmp_path / "out")
    without = run(*command("--no-plot", recipes=("w8a16",)), tmp_path / "plain")

    assert result.code == ToolchainError.exit_code
    assert "pip install 'llmcompile[plot]'" in result.err
    assert "--no-plot" in result.err
    assert list(tmp_path.iterdir()) == [tmp_path / "plain"]
    assert without.code == 0
    assert {path.name for path in (tmp_path / "plain").iterdir()} == {*FIGURES[:2], "llmcompile.json"}


# What stands out


def test_what_is_as_small_and_closer_beats() -> None:
    """The smallest, the closest, and those in between that are a choice; 2 % of size are none."""
    points = {
        "w4a16": (250 << 20, 1e-1),
        "int4_awq": (255 << 20, 1e-2),
        "fp8": (500 << 20, 1e-3),
        "w8a16": (600 << 20, 1e-2),
    }

    found = reports.standing(made_up(points).outcomes)

    assert (found.smallest, found.closest, found.unbeaten) == ("w4a16", "fp8", ("int4_awq", "fp8"))


def test_what_is_hardly_better_does_not_stand_out() -> None:
    """Two percent of size, and ten of KL, are as good; a recipe 60 % larger and 5 % closer is no choice."""
    points = {"fp8": (500 << 20, 1.05e-3), "int8_sq": (505 << 20, 1e-3), "fp8_rowwise": (800 << 20, 0.98e-3)}

    found = reports.standing(made_up(points).outcomes)

    assert (found.closest, found.unbeaten) == ("fp8_rowwise", ("fp8", "int8_sq"))


def test_what_is_larger_and_further_does_not_stand_out() -> None:
    """However little: nobody would choose it by these figures."""
    points = {"w4a8_awq": (426 << 20, 5.6e-5), "int4_awq": (424 << 20, 5.3e-5)}

    assert reports.standing(made_up(points).outcomes).unbeaten == ("int4_awq",)


def test_what_saves_nothing_does_not_stand_out() -> None:
    """A recipe that leaves all as it is would be the closest."""
    found = reports.standing(made_up({"fp8_rowwise": (1000 << 20, 1e-9), "fp8": (500 << 20, 1e-3)}).outcomes)

    assert (found.closest, found.unbeaten) == ("fp8", ("fp8",))


def remarks(**given: Any) -> list[str]:
    """What is said of a report."""
    quality = made_up({}).outcomes[0].quality
    assert quality is not None
    fields: dict[str, Any] = {"vocabulary": 32000, "calibrated": False, "built_in": False, "dtype": "float16"}
    fields["kv_cache"] = None
    return list(reports.remarks(quality, **{**fields, "deferred": (), **given}))


def test_random_weights_are_told_from_trained_ones() -> None:
    """A model that guesses has a perplexity of about its vocabulary."""
    assert not any("random" in remark for remark in remarks())
    assert any("random" in remark for remark in remarks(vocabulary=14))


def test_the_report_says_how_to_read_it() -> None:
    """How many tokens; that data and text were one; who quantizes; that speed is not in it."""
    said = "\n".join(remarks(calibrated=True, built_in=True, deferred=("w8a16",)))

    for words in ("1884 tokens", "chance, not gain", "--calib-dataset", "w8a16: the checkpoint holds float16", "speed"):
        assert words in said


def test_the_report_reads_back(kept: Path) -> None:
    """quantize.json is what its schema says."""
    content = (kept / "quantize.json").read_bytes()

    assert reports.to_bytes(reports.RecipeReport.model_validate_json(content)) == content


def test_a_model_without_tokenizer_is_said_to_be_scored_on_no_text(data: Path, run: Run, tmp_path: Path) -> None:
    """The figures are those of a fixed sequence, and the report says why."""
    sizes = {"hidden_size": 128, "intermediate_size": 128, "head_dim": 32, "max_position_embeddings": 256}
    folder = models.save("llama_gqa", tmp_path / "model", dtype="float16", config=sizes)

    result = run("quantize", "-m", folder, "--recipes", "w8a16", "--no-plot", tmp_path / "out")

    assert result.code == 0, result.err
    assert "no text was scored: there are no tokenizer files" in result.out
