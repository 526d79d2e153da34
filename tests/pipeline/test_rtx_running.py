"""Engines that are run where a GPU is: the whole way, with stand-ins for NVIDIA's driver and TensorRT for RTX."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import models
import rtx_artifacts
import rtx_gpu

if TYPE_CHECKING:
    from conftest import Result, Run

COMMAND = ("build", "tensorrt-rtx")


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the stand-in for NVIDIA's driver."""
    return rtx_gpu.driver(tmp_path_factory.mktemp("driver"))


@pytest.fixture(scope="module")
def machine(driver: Path) -> Iterator[pytest.MonkeyPatch]:
    """A machine with two GPUs: an H100 and an L4."""
    with pytest.MonkeyPatch.context() as patch:
        rtx_gpu.plug(patch, driver, "90,89")
        yield patch


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaMA with grouped-query attention."""
    folder = tmp_path_factory.mktemp("llama")
    models.save("llama_gqa", folder, config={**rtx_artifacts.SMALL, "num_hidden_layers": 2})
    models.add_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def attempts(
    llama: Path, machine: pytest.MonkeyPatch, run: Run, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Result]]:
    """An engine that does not load, the same with noise in what it computes, and one that works; of one ONNX model."""
    folder = tmp_path_factory.mktemp("attempts")
    command = (*COMMAND, "--model", llama, "--dtype", "fp16", "--sequence-length", "1,16,48", "--json")
    results = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RTX_STANDIN", "refuse")
        results.append(run(*command, folder / "out"))
        shutil.copytree(folder / "out.partial", folder / "noisy.partial")
        patch.setenv("RTX_STANDIN", "noise")
        results.append(run(*command, "--resume", folder / "noisy"))
        patch.delenv("RTX_STANDIN")
        results.append(run(*command, "--resume", folder / "out"))
    return folder, results


def test_an_engine_that_does_not_load_is_the_toolchains_failure(attempts: tuple[Path, list[Result]]) -> None:
    """Exit code 6, with what TensorRT said, what to do, and that the ONNX model is kept."""
    result = attempts[1][0]

    assert result.code == 6
    (problem,) = json.loads(result.out)["error"]["problems"]
    assert problem["subject"] == "tensorrt_rtx on Stand-in 1 (sm89)"
    assert "model.engine does not load on Stand-in 1 (sm89), whose driver is for CUDA 12.8" in problem["found"]
    assert "Error Code 6: not for sm89" in problem["found"]
    assert "CUDA_VISIBLE_DEVICES=" in problem["hint"]
    assert "--resume" in problem["hint"]


def test_an_engine_that_computes_something_else_is_rejected(attempts: tuple[Path, list[Result]]) -> None:
    """Exit code 7; what it was and how far off is in the manifest of the rejected artifact."""
    folder, (_, result, _) = attempts

    assert result.code == 7, result.err
    assert not (folder / "noisy").exists()
    manifest = rtx_artifacts.read(folder / "noisy.rejected")
    assert manifest.validation is not None
    assert manifest.rtx is not None
    assert manifest.rtx.executed == "built and executed"
    failed = [item for item in manifest.validation.comparisons if not item.passed]
    assert {item.reference for item in failed} == {"the ONNX model, by ONNX Runtime"}
    assert "logits" in {item.output for item in failed}


def test_a_decoder_is_run_on_the_gpu_it_is_for(attempts: tuple[Path, list[Result]]) -> None:
    """The second GPU, with the greedy tokens of the gate, prompts in one profile and tokens in the other."""
    folder, (_, _, result) = attempts

    assert result.code == 0, result.err
    manifest = rtx_artifacts.read(folder / "out")
    made = manifest.rtx
    assert made is not None
    assert manifest.validation is not None
    assert made.executed == "built and executed"
    assert made.execution is not None
    assert made.execution.model_dump() == {
        "gpu": "Stand-in 1",
        "compute_capability": 89,
        "cuda": "12.8",
        "reason": None,
    }
    ran = [item for item in manifest.validation.comparisons if item.reference == "the ONNX model, by ONNX Runtime"]
    assert all(item.passed for item in ran)
    assert [(item.input, item.output) for item in ran] == [
        ("1 token, then 4 one by one, on Stand-in 1 (sm89)", "logits"),
        (ran[1].input, "logits"),
        (ran[1].input, "tokens chosen"),
    ]
    assert ran[1].input.startswith("32 greedy tokens after prompts of 9 and 4 tokens")
    assert ran[1].details["shape_found"] == [2, 32, models.VOCAB]
    assert not any("not executed" in note for note in manifest.notes)
    assert "sm89), beside ONNX Runtime" in result.err
    assert list((folder / "out").glob(".running*")) == []


@pytest.mark.parametrize(
    ("wrong", "code", "words"),
    [
        ("", 0, "logits"),
        ("noise", 7, "the ONNX model, by ONNX Runtime"),
        ("nan", 7, "the ONNX model, by ONNX Runtime"),
        ("caches", 7, "32 greedy tokens"),
        ("border", 6, "takes and gives other tensors than its graph"),
        ("abort", 6, "killed by SIGABRT"),
    ],
)
def test_an_artifact_is_run_again_wherever_a_gpu_is(
    wrong: str, code: int, words: str, attempts: tuple[Path, list[Result]], llama: Path, run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """With verify --deep, on a machine that need not be the one that built it; nothing is left in the artifact."""
    monkeypatch.setenv("RTX_STANDIN", wrong)
    output = attempts[0] / "out"

    result = run("verify", output, "--deep", "--model", llama)

    assert result.code == code, result.err
    assert words in result.out + result.err
    assert run("verify", output).code == 0


@pytest.mark.parametrize(
    ("name", "value", "code", "words"),
    [
        ("CUDA_STANDIN_GPUS", "90", 0, "this machine's GPU is sm90, the engine is for sm86, sm89 and sm120"),
        ("CUDA_STANDIN_GPUS", "90,100", 0, "this machine's GPUs are sm90 and sm100, the engine is for"),
        ("CUDA_STANDIN_GPUS", "", 0, "there is no NVIDIA GPU here"),
        ("CUDA_VISIBLE_DEVICES", "", 0, "there is no NVIDIA GPU here"),
        ("CUDA_STANDIN_CRASH", "cuInit", 0, "NVIDIA's driver does not work: killed by SIGABRT"),
        ("CUDA_STANDIN_FAIL", "cuInit:803:1", 0, "cuInit: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"),
        ("CUDA_STANDIN_FAIL", "cuMemAlloc_v2:2:3", 6, "cuMemAlloc: CUDA_ERROR_OUT_OF_MEMORY (out of memory)"),
        ("CUDA_STANDIN_FAIL", "cuStreamSynchronize:999:2", 6, "cuStreamSynchronize: CUDA_ERROR_UNKNOWN"),
    ],
)
def test_what_the_driver_says_is_named(
    name: str, value: str, code: int, words: str, attempts: tuple[Path, list[Result]], llama: Path, run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Where no GPU can be used the engine is not run, and it is said why; where one fails, that is an error."""
    monkeypatch.setenv(name, value)

    result = run("verify", attempts[0] / "out", "--deep", "--model", llama)

    assert result.code == code, result.err
    assert words in result.out + result.err


def test_an_engine_of_another_release_is_not_run(
    attempts: tuple[Path, list[Result]], llama: Path, run: Run, tmp_path: Path
) -> None:
    """It would not load: the two releases are named."""
    output = tmp_path / "out"
    shutil.copytree(attempts[0] / "out", output)
    manifest = output / "llmcompile.json"
    manifest.write_text(manifest.read_text().replace(f'"tensorrt_rtx": "{rtx_gpu.VERSION}"', '"tensorrt_rtx": "1.6.0"'))

    result = run("verify", output, "--deep", "--model", llama)

    assert result.code == 0, result.err
    assert f"TensorRT for RTX {rtx_gpu.VERSION} is installed, and 1.6.0 alone runs it" in result.out + result.err


def test_a_plan_says_which_gpu_will_run_the_engine(
    llama: Path, machine: pytest.MonkeyPatch, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And, where none will, why not."""
    command = (*COMMAND, "--model", llama, "--dtype", "fp16", "--dry-run", tmp_path / "out")
    there = run(*command)
    monkeypatch.setenv("CUDA_STANDIN_GPUS", "90")
    elsewhere = run(*command, "--compute-capability", "89")

    assert "run    the engine on Stand-in 1 (sm89), beside ONNX Runtime" in there.out
    assert "built, not executed: this machine's GPU is sm90, the engine is for sm89" in elsewhere.out


def test_a_builder_without_a_capability_is_refused_before_any_work(
    llama: Path, machine: pytest.MonkeyPatch, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 6, with what this release has."""
    monkeypatch.setenv("RTX_STANDIN", "old")

    result = run(*COMMAND, "--model", llama, "--dtype", "fp16", tmp_path / "out")

    assert result.code == 6
    assert "does not build for sm120; expected one that does; it has sm75, sm80, sm86, sm89" in result.err
    assert list(tmp_path.iterdir()) == []


def test_an_encoder_decoder_hands_states_over_on_the_gpu(
    machine: pytest.MonkeyPatch, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two engines, bf16; keys and values in another order are seen."""
    model = models.save("t5", tmp_path / "model", config={"num_layers": 1, "num_decoder_layers": 1})
    output = tmp_path / "out"

    made = run(*COMMAND, "--model", model, "--dtype", "bf16", "--sequence-length", "48", "--quiet", output)
    monkeypatch.setenv("RTX_STANDIN", "caches")
    broken = run("verify", output, "--deep", "--model", model)

    assert made.code == 0, made.err
    manifest = rtx_artifacts.read(output)
    assert manifest.validation is not None
    ran = [item for item in manifest.validation.comparisons if "Stand-in" in item.input]
    assert {item.output for item in ran} == {"encoder_hidden_states", "logits", "tokens chosen"}
    assert broken.code == 7


def test_an_encoder_is_run_in_shapes_its_profile_has(machine: pytest.MonkeyPatch, run: Run, tmp_path: Path) -> None:
    """Where the gate's batches of 1 and 2 are none of them, with one that is."""
    model = models.save("bert", tmp_path / "model")
    shapes = ("--batch-size", "3,3,4", "--sequence-length", "17,18,20")
    output = tmp_path / "out"

    made = run(*COMMAND, "--model", model, "--task", "fill-mask", *shapes, output)

    assert made.code == 0, made.err
    assert "executed on Stand-in 1 (sm89)" in made.out
    manifest = rtx_artifacts.read(output)
    assert manifest.validation is not None
    (ran,) = [item for item in manifest.validation.comparisons if "Stand-in" in item.input]
    assert ran.details["shape_found"][:2] == [3, 17]
