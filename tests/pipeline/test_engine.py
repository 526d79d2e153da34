"""The engine stage from the command line on, with the stand-in for trtllm-build in the vendor's place."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import models
import trtllm_standin as standin

if TYPE_CHECKING:
    from conftest import Run

A100 = "0, NVIDIA A100-SXM4-80GB, 8.0, 580.65.06, 81920"
COMMAND = ("build", "trtllm", "--no-validate")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaMA."""
    return models.save("llama", tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaMA whose matrices the builder can lay out in integers, also on two ranks."""
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4}
    return models.save("llama", tmp_path_factory.mktemp("wide") / "model", config=sizes)


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An interpreter with tensorrt_llm 1.2.1, on a machine with one A100."""
    standin.nvidia_smi(tmp_path / "tools", A100)
    monkeypatch.setenv("PATH", f"{tmp_path / 'tools'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("TRTLLM_STANDIN_LOG", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return standin.install(tmp_path / "env", "1.2.1", "1.2")


def files(folder: Path) -> set[str]:
    """Every file of a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def manifest(output: Path) -> dict[str, object]:
    """The record of an artifact."""
    content: dict[str, object] = json.loads((output / "llmcompile.json").read_text())
    return content


def called(tmp_path: Path) -> list[str]:
    """How trtllm-build was called last."""
    return list(json.loads((tmp_path / "standin.json").read_text())["words"])


def test_an_engine_is_built_and_the_checkpoint_left_out(model: Path, python: Path, run: Run, tmp_path: Path) -> None:
    """OUTPUT holds the engine, the timing cache, the model's own files and the manifest; nothing else is left."""
    output = tmp_path / "out"

    result = run(*COMMAND, "--model", model, "--tp", 2, "--toolchain-python", python, output)

    assert result.code == 0, result.err
    assert {"engine/config.json", "engine/rank0.engine", "engine/rank1.engine", "model.cache"} <= files(output)
    assert {"config.json", "generation_config.json", "llmcompile.json"} <= files(output)
    assert not any(name.startswith((".", "checkpoint")) for name in files(output))
    assert [path.name for path in tmp_path.glob("out*")] == ["out"]


def test_the_checkpoint_is_kept_when_asked(model: Path, python: Path, run: Run, tmp_path: Path) -> None:
    """--keep-checkpoint leaves it beside the engine, and it is listed."""
    output = tmp_path / "out"

    result = run(*COMMAND, "--model", model, "--keep-checkpoint", "--toolchain-python", python, output)

    assert result.code == 0, result.err
    assert {"checkpoint/config.json", "checkpoint/rank0.safetensors", "engine/rank0.engine"} <= files(output)
    assert run("verify", output).code == 0


def test_the_manifest_says_what_built_the_engine(model: Path, python: Path, run: Run, tmp_path: Path) -> None:
    """Versions, GPU, driver and flags, since it runs on exactly these."""
    output = tmp_path / "out"

    run(*COMMAND, "--model", model, "--max_batch_size", 4, "--toolchain-python", python, output)

    engine = manifest(output)["engine"]
    assert isinstance(engine, dict)
    assert engine["tensorrt_llm"] == "1.2.1"
    assert engine["tensorrt"] == "10.13.3"
    assert (engine["gpu"], engine["compute_capability"], engine["driver"]) == (
        "NVIDIA A100-SXM4-80GB",
        "8.0",
        "580.65.06",
    )
    assert engine["flags"] == ["--max_batch_size 4"]
    assert engine["ranks"] == 1


def test_flags_reach_the_builder_in_its_spelling(model: Path, python: Path, run: Run, tmp_path: Path) -> None:
    """Kebab-case or not."""
    flags = ("--max-batch-size", 4, "--max_seq_len", 256, "--gemm-plugin", "float16")

    result = run(*COMMAND, "--model", model, *flags, "--toolchain-python", python, tmp_path / "out")

    assert result.code == 0, result.err
    words = called(tmp_path)
    assert words[words.index("--max_batch_size") + 1] == "4"
    assert words[words.index("--max_seq_len") + 1] == "256"
    assert words[words.index("--gemm_plugin") + 1] == "float16"


def test_a_failed_build_keeps_the_checkpoint_for_a_resume(
    model: Path, python: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 6 with the builder's last lines; --resume converts nothing again and builds."""
    output = tmp_path / "out"
    command = (*COMMAND, "--model", model, "--toolchain-python", python, output)
    monkeypatch.setenv("TRTLLM_STANDIN", "fail")

    failed = run(*command, "--quiet")

    assert failed.code == 6
    assert "line 39" in failed.err
    assert "line 19" not in failed.err
    assert "--resume" in failed.err
    assert not output.exists()
    before = (tmp_path / "out.partial" / "checkpoint" / "rank0.safetensors").stat().st_mtime_ns
    monkeypatch.delenv("TRTLLM_STANDIN")
    resumed = run(*command, "--resume", "--keep-checkpoint")
    assert resumed.code == 0, resumed.err
    assert (output / "checkpoint" / "rank0.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize(("how", "file"), [("half", "rank1.engine"), ("empty", "rank0.engine")])
def test_an_engine_that_is_not_whole_is_not_published(
    how: str, file: str, model: Path, python: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 6, the file by name, no OUTPUT."""
    monkeypatch.setenv("TRTLLM_STANDIN", how)

    result = run(*COMMAND, "--model", model, "--tp", 2, "--toolchain-python", python, tmp_path / "out")

    assert result.code == 6
    assert file in result.err
    assert not (tmp_path / "out").exists()


def test_what_stops_a_build_is_said_before_any_work(model: Path, python: Path, run: Run, tmp_path: Path) -> None:
    """Another TensorRT-LLM than the target's: exit code 6, and nothing is written."""
    result = run(*COMMAND, "--model", model, "--trtllm-version", "0.21.0", "--toolchain-python", python, tmp_path / "o")

    assert result.code == 6
    assert "1.2.1" in result.err
    assert list(tmp_path.glob("o*")) == []


def test_without_tensorrt_llm_nothing_is_written(model: Path, run: Run, tmp_path: Path) -> None:
    """Exit code 6 and three ways on."""
    result = run(*COMMAND, "--model", model, tmp_path / "out")

    assert result.code == 6
    assert "--stop-after checkpoint" in result.err
    assert "docker run" in result.err
    assert "pip install tensorrt_llm==1.2.1" in result.err
    assert list(tmp_path.iterdir()) == []


# From a finished checkpoint


@pytest.fixture
def finished(model: Path, run: Run, tmp_path: Path) -> Path:
    """An artifact that ended before the build, made without a GPU."""
    output = tmp_path / "finished"
    result = run("build", "trtllm", "--model", model, "--tp", 2, "--stop-after", "checkpoint", output)
    assert result.code == 0, result.err
    return output


def test_a_finished_checkpoint_is_built_elsewhere(finished: Path, python: Path, run: Run, tmp_path: Path) -> None:
    """The engine, the model's own files, and a manifest that still says where it came from and what was proved."""
    output = tmp_path / "engine"

    result = run("build", "trtllm", "--from-checkpoint", finished, "--toolchain-python", python, output)

    assert result.code == 0, result.err
    assert {"engine/rank0.engine", "engine/rank1.engine", "config.json", "generation_config.json"} <= files(output)
    before, after = manifest(finished), manifest(output)
    assert after["model"] == before["model"]
    assert after["validation"] == before["validation"]
    assert after["source"]["format"] == "trtllm"  # type: ignore[index]
    assert run("verify", output).code == 0


def test_the_checkpoint_folder_itself_will_do(finished: Path, python: Path, run: Run, tmp_path: Path) -> None:
    """DIR/checkpoint as well as DIR."""
    given = finished / "checkpoint"

    result = run("build", "trtllm", "--from-checkpoint", given, "--toolchain-python", python, tmp_path / "out")

    assert result.code == 0, result.err


def test_a_damaged_checkpoint_is_not_built(finished: Path, python: Path, run: Run, tmp_path: Path) -> None:
    """Its manifest knows every byte: exit code 7, and no OUTPUT."""
    with (finished / "checkpoint" / "rank1.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))

    result = run("build", "trtllm", "--from-checkpoint", finished, "--toolchain-python", python, tmp_path / "out")

    assert result.code == 7
    assert "rank1.safetensors" in result.err
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_unknown_origin_needs_a_model_or_a_word(
    finished: Path, python: Path, run: Run, tmp_path: Path
) -> None:
    """Without a manifest and without --model nothing is known of its numbers: exit code 2, and what to type."""
    (finished / "llmcompile.json").unlink()
    command = ("build", "trtllm", "--from-checkpoint", finished, "--toolchain-python", python, tmp_path / "out")

    assert run(*command).code == 2
    assert "--no-validate" in run(*command).err
    assert run(*command, "--no-validate").code == 0


def test_a_checkpoint_is_validated_against_a_model(
    finished: Path, model: Path, python: Path, run: Run, tmp_path: Path
) -> None:
    """With --model its numbers are checked here, manifest or not."""
    (finished / "llmcompile.json").unlink()
    output = tmp_path / "out"

    result = run(
        "build", "trtllm", "--from-checkpoint", finished, "--model", model, "--toolchain-python", python, output
    )

    assert result.code == 0, result.err
    validation = manifest(output)["validation"]
    assert isinstance(validation, dict)
    assert validation["passed"] is True


def test_an_sm80_layout_is_not_built_for_hopper(model: Path, run: Run, tmp_path: Path, python: Path) -> None:
    """What the checkpoint holds decides, though --from-checkpoint does not say it: exit code 6, nothing written."""
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4}
    wide = models.save("llama", tmp_path / "wide", config=sizes)
    given = ("--quantization", "w8a16", "--wo-layout", "sm80", "--stop-after", "checkpoint")
    made = run(*COMMAND, "--model", wide, *given, tmp_path / "made")
    assert made.code == 0, made.err
    standin.nvidia_smi(tmp_path / "tools", "0, NVIDIA H100, 9.0, 580.65.06, 81920")

    result = run(
        "build",
        "trtllm",
        "--no-validate",
        "--from-checkpoint",
        tmp_path / "made",
        "--toolchain-python",
        python,
        tmp_path / "o",
    )

    assert result.code == 6, result.err
    assert "sm80 layout" in result.err
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("place", ["finished", "finished/checkpoint/engine", "."])
def test_output_may_not_be_where_the_checkpoint_is(
    place: str, finished: Path, python: Path, run: Run, tmp_path: Path
) -> None:
    """Equal, inside or around it, with --force or without: exit code 2 or 8, and every byte stays."""
    before = {name: (finished / name).read_bytes() for name in files(finished)}
    command = ("build", "trtllm", "--from-checkpoint", finished, "--toolchain-python", python, "--force")

    result = run(*command, tmp_path / place)

    assert result.code in (2, 8), result.err
    assert {name: (finished / name).read_bytes() for name in files(finished)} == before


def test_a_rejected_checkpoint_is_not_built(finished: Path, python: Path, run: Run, tmp_path: Path) -> None:
    """A manifest that says the numbers are wrong: exit code 7."""
    record = manifest(finished)
    record["validation"]["passed"] = False  # type: ignore[index]
    (finished / "llmcompile.json").write_text(json.dumps(record))

    result = run("build", "trtllm", "--from-checkpoint", finished, "--toolchain-python", python, tmp_path / "out")

    assert result.code == 7
    assert "disagrees with the model" in result.err


def test_a_checkpoint_that_was_never_validated_needs_a_model(
    model: Path, python: Path, run: Run, tmp_path: Path
) -> None:
    """Its manifest proves bytes, not numbers: exit code 2, unless told --no-validate."""
    made = tmp_path / "made"
    assert run(*COMMAND, "--model", model, "--stop-after", "checkpoint", made).code == 0
    command = ("build", "trtllm", "--from-checkpoint", made, "--toolchain-python", python, tmp_path / "out")

    assert run(*command).code == 2
    assert run(*command, "--no-validate").code == 0


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--tp", 8), "--tp"),
        (("--pp", 4), "--pp"),
        (("--use_parallel_embedding",), "--use-parallel-embedding"),
        (("--moe_ep", 2, "--tp", 2), "--moe-tp, --moe-ep"),
        (("--atol", 5), "--atol"),
        (("--eval-text", "/nowhere"), "--eval-text"),
        (("--allow-overflow",), "--allow-overflow"),
    ],
)
def test_what_the_checkpoint_has_decided_cannot_be_asked(
    flags: tuple[object, ...], named: str, finished: Path, python: Path, run: Run, tmp_path: Path
) -> None:
    """Exit code 2, by the flag's name."""
    given = ("build", "trtllm", "--from-checkpoint", finished, "--toolchain-python", python)

    result = run(*given, *flags, tmp_path / "out")

    assert result.code == 2
    assert f"error: {named}" in result.err


def test_a_release_with_another_layout_is_refused(run: Run, python: Path, tmp_path: Path) -> None:
    """Qwen2-MoE made for 0.13 has its shared expert elsewhere: exit code 4, and how to make it again."""
    moe = models.save("qwen2_moe", tmp_path / "moe")
    made = tmp_path / "made"
    given = ("--trtllm-version", "0.13.0", "--stop-after", "checkpoint")
    assert run("build", "trtllm", "--model", moe, *given, made).code == 0

    result = run("build", "trtllm", "--from-checkpoint", made, "--toolchain-python", python, tmp_path / "out")

    assert result.code == 4, result.err
    assert "--trtllm-version 1.2.1" in result.err


def test_debris_of_a_failed_build_is_not_published(
    model: Path, python: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resumed with --stop-after checkpoint, OUTPUT has no trace of the engine that was begun."""
    output = tmp_path / "out"
    monkeypatch.setenv("TRTLLM_STANDIN", "half")
    command = (*COMMAND, "--model", model, "--tp", 2)
    assert run(*command, "--toolchain-python", python, output).code == 6

    result = run(*command, "--stop-after", "checkpoint", "--resume", output)

    assert result.code == 0, result.err
    assert not any(name.startswith((".building", "engine", "model.cache")) for name in files(output))
    assert run("verify", output).code == 0


def test_an_engine_of_an_earlier_run_is_forgotten(
    model: Path, python: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after the engine was noted: what the next build does not make again is not listed."""
    output = tmp_path / "out"
    monkeypatch.setenv("TRTLLM_STANDIN", "fail")
    command = (*COMMAND, "--model", model, "--toolchain-python", python, output)
    assert run(*command).code == 6
    work = tmp_path / "out.partial"
    stale = work / "engine" / "rank0_managed_weights.safetensors"
    stale.write_bytes(b"stale")
    with (work / ".journal").open("a") as journal:
        digest = hashlib.sha256(b"stale").hexdigest()
        journal.write(json.dumps({"file": str(stale.relative_to(work)), "bytes": 5, "sha256": digest}) + "\n")
    monkeypatch.delenv("TRTLLM_STANDIN")

    result = run(*command, "--resume")

    assert result.code == 0, result.err
    assert "engine/rank0_managed_weights.safetensors" not in files(output)
    assert run("verify", output).code == 0


@pytest.mark.parametrize(("content", "reason"), [(b"", "empty"), (b"\xff\xfe", "not UTF-8"), (None, "No such file")])
def test_a_text_that_cannot_be_scored_is_refused_before_any_work(
    content: bytes | None, reason: str, wide: Path, run: Run, tmp_path: Path
) -> None:
    """--eval-text is read first: exit code 2, nothing written."""
    text = tmp_path / "text.txt"
    if content is not None:
        text.write_bytes(content)
    given = ("--quantization", "w8a16", "--stop-after", "checkpoint", "--eval-text", text)

    result = run("build", "trtllm", "--model", wide, *given, tmp_path / "out")

    assert result.code == 2, result.err
    assert reason in result.err
    assert list(tmp_path.glob("out*")) == []


def test_a_text_is_of_no_use_without_a_recipe(model: Path, run: Run, tmp_path: Path) -> None:
    """Nothing is scored where nothing is quantized: exit code 2."""
    (tmp_path / "text.txt").write_text("some words")
    given = ("--stop-after", "checkpoint", "--eval-text", tmp_path / "text.txt")

    result = run("build", "trtllm", "--model", model, *given, tmp_path / "out")

    assert result.code == 2
    assert "not quantized" in result.err


def test_a_missing_rank_file_is_named(finished: Path, python: Path, run: Run, tmp_path: Path) -> None:
    """Exit code 3, before the builder is looked for."""
    (finished / "checkpoint" / "rank1.safetensors").unlink()

    result = run("build", "trtllm", "--from-checkpoint", finished, "--toolchain-python", python, tmp_path / "out")

    assert result.code == 3
    assert "rank1.safetensors" in result.err


def test_a_folder_that_is_no_checkpoint_is_refused(python: Path, run: Run, tmp_path: Path) -> None:
    """Exit code 3, and how to make one."""
    result = run("build", "trtllm", "--from-checkpoint", tmp_path, "--toolchain-python", python, tmp_path / "out")

    assert result.code == 3
    assert "--stop-after checkpoint" in result.err


def test_a_folder_for_the_llm_api_has_no_engine_to_build(model: Path, python: Path, run: Run, tmp_path: Path) -> None:
    """It is called what it is, with the command that serves it."""
    made = tmp_path / "made"
    assert run("build", "trtllm", "--target", "llmapi", "--no-validate", "--model", model, made).code == 0

    result = run("build", "trtllm", "--from-checkpoint", made, "--toolchain-python", python, tmp_path / "out")

    assert result.code == 3
    assert "a folder for the LLM API, which has no engine" in result.err
    assert f"trtllm-serve {made}" in result.err


# Running the engine


def test_an_engine_without_logits_is_not_run_and_that_is_said(
    model: Path, python: Path, run: Run, tmp_path: Path
) -> None:
    """The note is shown and recorded."""
    output = tmp_path / "out"

    result = run("build", "trtllm", "--model", model, "--toolchain-python", python, output)

    assert result.code == 0, result.err
    validation = manifest(output)["validation"]
    assert isinstance(validation, dict)
    assert any("--gather-context-logits" in note for note in validation["notes"])


def test_an_engine_whose_logits_differ_is_rejected(model: Path, python: Path, run: Run, tmp_path: Path) -> None:
    """The stand-in's runtime gives other shapes: exit code 7, and the artifact is kept aside."""
    output = tmp_path / "out"

    result = run("build", "trtllm", "--model", model, "--gather_context_logits", "--toolchain-python", python, output)

    assert result.code == 7, result.err
    assert not output.exists()
    assert (tmp_path / "out.rejected" / "engine" / "rank0.engine").exists()
