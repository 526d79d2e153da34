"""Builds whose scales nvidia-modelopt measured, from end to end; and what `--calibrator` refuses."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import models
from llmcompile.calibration import modelopt
from llmcompile.calibration.layers import Layers
from llmcompile.validation.reference import Weights

if TYPE_CHECKING:
    from conftest import Run

installed = pytest.mark.skipif(find_spec("modelopt") is None, reason="nvidia-modelopt is not installed")
WIDTHS = ("n_embd", "n_inner", "hidden_size", "intermediate_size", "ffn_dim", "ffn_hidden_size", "d_model")
RECIPES = ("fp8", "int8_sq", "int4_awq", "w4a8_awq", "nvfp4")
ODD = ("falcon_7b",)
"""Families whose queries, keys and values together are no multiple of 128, which NVFP4 needs."""


def save(family: str, folder: Path, **config: Any) -> Path:
    """A checkpoint that groups of 64 divide."""
    known = models.FAMILIES[family].config
    return models.save(
        family, folder, dtype="bfloat16", config={**{key: 128 for key in WIDTHS if key in known}, **config}
    )


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokens to calibrate on."""
    path = tmp_path_factory.mktemp("data") / "tokens.jsonl"
    numbers = np.random.default_rng(0).integers(0, models.VOCAB, (20, 33)).tolist()
    path.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in numbers))
    return path


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`model(family)` is a checkpoint, made once."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            made[family] = save(family, tmp_path_factory.mktemp("model"))
        return made[family]

    return make


def arguments(model: Path, data: Path, recipe: str, *more: object) -> tuple[object, ...]:
    """The command without OUTPUT."""
    groups = ("--group-size", 64) if "awq" in recipe else ()
    calibration = ("--calib-dataset", data, "--calib-size", 12, "--calib-seq-len", 16, "--calibrator", "modelopt")
    start = ("build", "trtllm", "--stop-after", "checkpoint", "-m", model)
    return (*start, "--quantization", recipe, *groups, *calibration, *more)


def tensors(output: Path) -> bytes:
    """The only rank's file."""
    return (output / "checkpoint" / "rank0.safetensors").read_bytes()


@installed
@pytest.mark.parametrize("family", ["llama_gqa", "gpt2", "falcon_7b", "bloom", "mpt", "phi3", "starcoder2"])
def test_every_recipe_is_calibrated_and_validated(
    family: str, model: Callable[[str], Path], data: Path, run: Run, tmp_path: Path
) -> None:
    """Outputs and scales are the model's by the same checks, and the manifest says who measured."""
    for number, recipe in enumerate(RECIPES[:-1] if family in ODD else RECIPES):
        cache = ("int8", "fp8")[number % 2]

        result = run(*arguments(model(family), data, recipe, "--kv-cache", cache), tmp_path / recipe)

        assert result.code == 0, f"{recipe}: {result.err}"
        manifest = json.loads((tmp_path / recipe / "llmcompile.json").read_text())
        found = manifest["calibration"]["calibrator"], manifest["calibration"]["calibrator_version"]
        assert found == ("modelopt", metadata.version("nvidia-modelopt"))
        assert manifest["versions"]["nvidia-modelopt"] == found[1]
        assert "by nvidia-modelopt" in result.err
        assert "quantizers" not in result.out


@installed
def test_scales_of_fp8_are_those_of_our_own_measuring(
    model: Callable[[str], Path], data: Path, run: Run, tmp_path: Path
) -> None:
    """Byte for byte, with an int8 cache; the same command with a cache alone needs no recipe."""
    command = arguments(model("llama_gqa"), data, "fp8", "--kv-cache", "int8", "--no-validate")
    run(*command, tmp_path / "theirs")
    run(*command, "--calibrator", "llmcompile", tmp_path / "ours")

    result = run(*command[:6], *command[8:], tmp_path / "cache")

    assert tensors(tmp_path / "theirs") == tensors(tmp_path / "ours")
    assert result.code == 0, result.err
    records = [
        json.loads((tmp_path / name / "llmcompile.json").read_text())["calibration"] for name in ("cache", "ours")
    ]
    assert records[0]["cache"] == pytest.approx(records[1]["cache"], rel=1e-6)
    assert (records[0]["inputs"], records[1]["calibrator"]) == ({}, "llmcompile")


@installed
@pytest.mark.parametrize("recipe", ["fp8", "int8_sq", "int4_awq", "w4a8_awq"])
def test_one_layer_is_in_memory_at_a_time(
    recipe: str, data: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a layer is given its parameters, those of the layers before it are gone."""
    folder = save("llama_gqa", tmp_path / "model", num_hidden_layers=4)
    live: list[list[weakref.ref[torch.Tensor]]] = []
    original = modelopt._fill

    def watched(layers: Layers, layer: int, weights: Weights) -> None:
        assert [name for before in live for name in before if name() is not None] == []
        original(layers, layer, weights)
        live.append([weakref.ref(parameter) for parameter in layers.modules[layer].parameters()])

    monkeypatch.setattr(modelopt, "_fill", watched)

    result = run(*arguments(folder, data, recipe, "--no-validate"), tmp_path / "out")

    assert result.code == 0, result.err
    assert [len(parameters) for parameters in live] == [9] * 4


class Stopped(BaseException):
    """What ends a run in the middle."""


@installed
def test_a_stopped_calibration_goes_on_at_its_layer(
    model: Callable[[str], Path], data: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same artifact in the end; another calibrator cannot go on with it."""
    command = arguments(model("llama_gqa"), data, "w4a8_awq", "--no-validate")
    run(*command, tmp_path / "whole")
    ran: list[int] = []
    original = Layers.run

    def watched(self: Layers, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        if layer == 1 and 1 not in ran:
            ran.append(1)
            raise Stopped
        ran.append(layer)
        return original(self, layer, hidden)

    monkeypatch.setattr(Layers, "run", watched)
    with pytest.raises(Stopped):
        run(*command, tmp_path / "out")
    ran[:] = [1]

    other = run(*command, "--calibrator", "llmcompile", "--resume", tmp_path / "out")
    result = run(*command, "--resume", tmp_path / "out")

    assert (other.code, 'calibration.calibrator was "modelopt"' in other.err) == (8, True), other.err
    assert result.code == 0, result.err
    assert set(ran) == {1}
    assert tensors(tmp_path / "out") == tensors(tmp_path / "whole")


@pytest.mark.parametrize(
    ("family", "more", "code", "words"),
    [
        ("gpt2", ("--quantization", "fp8", "--calibrator", "modelop"), 2, "--calibrator modelopt"),
        ("gpt2", ("--quantization", "w8a16", "--calibrator", "modelopt"), 4, "which needs no data"),
        ("mixtral", ("--quantization", "fp8", "--calibrator", "modelopt"), 4, "modelopt with experts"),
        ("t5", ("--quantization", "fp8", "--calibrator", "modelopt"), 4, "modelopt with t5"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(
    family: str, more: tuple[object, ...], code: int, words: str, model: Callable[[str], Path], run: Run, tmp_path: Path
) -> None:
    """Each with its exit code, and no work directory."""
    result = run("build", "trtllm", "--stop-after", "checkpoint", "-m", model(family), *more, tmp_path / "out")

    assert (result.code, words in result.err) == (code, True), result.err
    assert not (tmp_path / "out.partial").exists()


def test_modelopt_must_be_installed(
    model: Callable[[str], Path], data: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 6 before any work, with what to type; our own measuring does not ask for it."""
    original = metadata.version

    def absent(name: str) -> str:
        if name == "nvidia-modelopt":
            raise metadata.PackageNotFoundError(name)
        return original(name)

    monkeypatch.setattr(metadata, "version", absent)
    command = arguments(model("gpt2"), data, "fp8", "--dry-run")

    result = run(*command, tmp_path / "out")

    assert (result.code, "pip install 'llmcompile[trtllm]'" in result.err) == (6, True), result.err
    assert run(*command, "--calibrator", "llmcompile", tmp_path / "out").code == 0


def test_the_caches_type_has_two_spellings(model: Callable[[str], Path], data: Path, run: Run, tmp_path: Path) -> None:
    """`--kv-cache-dtype` is `--kv-cache`, and the help says so."""
    command = (
        "build",
        "trtllm",
        "--stop-after",
        "checkpoint",
        "-m",
        model("gpt2"),
        "--calib-dataset",
        data,
        "--dry-run",
    )

    result = run(*command, "--kv-cache-dtype", "int8", tmp_path / "out")

    assert (result.code, "calibrate on at most" in result.out + result.err) == (0, True), result.err
    assert "--kv-cache-dtype" in run("build", "trtllm", "--help").out
