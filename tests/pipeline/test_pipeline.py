"""A build from end to end: overflow, rejection, interruption and resumption, shortages."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import models

if TYPE_CHECKING:
    from conftest import Run

MODEL = Path(__file__).parents[1] / "golden" / "ft" / "gpt2-a" / "hf"
SECRET = "hf_thisMustNeverBeSeen"


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Where the artifact goes."""
    return tmp_path / "out"


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Overflow


@pytest.fixture
def overflowing(tmp_path: Path) -> Path:
    """A model of which two tensors do not fit into fp16."""
    model = Path(shutil.copytree(MODEL, tmp_path / "model"))
    tensors = load_file(model / "model.safetensors")
    tensors["transformer.h.0.mlp.c_fc.weight"][3, 5] = 1e5
    tensors["transformer.h.1.ln_2.bias"][:2] = -7e4
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    return model


def test_an_overflow_is_an_error_that_names_the_tensors(overflowing: Path, run: Run, output: Path) -> None:
    """Exit code 7; both tensors with their counts, and what to do about it."""
    result = run("partition", "ft", "--model", overflowing, "--tp", 2, "--dtype", "fp16", output)

    assert result.code == 7
    assert "h.0.mlp.c_fc.weight: 1 finite elements overflow to infinity in fp16" in result.err
    assert "h.1.ln_2.bias: 2 finite elements overflow" in result.err
    assert "--resume --allow-overflow" in result.err
    assert not output.exists()


def test_an_accepted_overflow_resumes_and_finishes(overflowing: Path, run: Run, output: Path) -> None:
    """The work is kept, and the manifest counts what became infinite."""
    arguments = ("partition", "ft", "--model", overflowing, "--tp", 2, "--dtype", "fp16", "--no-validate")
    run(*arguments, output)

    result = run(*arguments, "--resume", "--allow-overflow", output)

    assert (result.code, "verified and kept" in result.err) == (0, True), result.err
    overflowed = json.loads((output / "llmcompile.json").read_text())["overflowed"]
    assert sorted(overflowed.values()) == [1, 2]


def test_an_accepted_overflow_is_the_same_as_one_run(overflowing: Path, run: Run, tmp_path: Path) -> None:
    """Resumed or at once, the artifact has the same bytes."""
    arguments = ("partition", "ft", "--model", overflowing, "--dtype", "fp16", "--no-validate")
    run(*arguments, tmp_path / "a")
    run(*arguments, "--resume", "--allow-overflow", tmp_path / "a")

    run(*arguments, "--allow-overflow", tmp_path / "b")

    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_wider_type_does_not_overflow(dtype: str, overflowing: Path, run: Run, output: Path) -> None:
    """What the hint says is true."""
    result = run("partition", "ft", "--model", overflowing, "--dtype", dtype, "--no-validate", output)

    assert result.code == 0


def test_an_infinity_of_the_source_is_no_overflow(run: Run, tmp_path: Path, output: Path) -> None:
    """Only finite elements can overflow."""
    model = Path(shutil.copytree(MODEL, tmp_path / "model"))
    tensors = load_file(model / "model.safetensors")
    tensors["transformer.h.0.mlp.c_fc.weight"][3, 5] = np.inf
    save_file(tensors, model / "model.safetensors", {"format": "pt"})

    result = run("partition", "ft", "--model", model, "--dtype", "fp16", "--no-validate", output)

    assert result.code == 0


# Rejection

TOO_TIGHT = ("--dtype", "fp16", "--atol", 0, "--rtol", 0)
"""A tolerance that rounding to fp16 cannot meet."""


def test_a_mismatch_is_kept_aside(run: Run, output: Path) -> None:
    """Exit code 7; OUTPUT.rejected is there, whole, and neither OUTPUT nor OUTPUT.partial."""
    result = run("partition", "ft", "--model", MODEL, "--tp", 2, *TOO_TIGHT, output)

    assert (result.code, "error: logits[" in result.err, "out.rejected" in result.err) == (7, True, True)
    assert [path.name for path in sorted(output.parent.iterdir())] == ["out.rejected"]
    assert json.loads((output.parent / "out.rejected" / "llmcompile.json").read_text())["validation"]["passed"] is False


def test_a_second_mismatch_keeps_the_first(run: Run, output: Path) -> None:
    """The next free name is taken."""
    run("partition", "ft", "--model", MODEL, *TOO_TIGHT, output)

    run("partition", "ft", "--model", MODEL, *TOO_TIGHT, output)

    assert [path.name for path in sorted(output.parent.iterdir())] == ["out.rejected", "out.rejected-2"]


def test_a_rejected_artifact_is_not_in_the_way(run: Run, output: Path) -> None:
    """The next build needs no flag."""
    run("partition", "ft", "--model", MODEL, *TOO_TIGHT, output)

    result = run("partition", "ft", "--model", MODEL, output)

    assert (result.code, output.is_dir()) == (0, True)


# Interruption

LAYERS, WIDTH, VOCAB = 6, 1024, 2048


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A GPT-2 of 150 MB in fp16, of random numbers below 1."""
    root = tmp_path_factory.mktemp("large")
    model = root / "model"
    model.mkdir()
    numbers = np.random.default_rng(0)

    def tensor(*shape: int) -> Any:
        bits = numbers.integers(0, 1 << 16, size=shape, dtype=np.uint16) & np.uint16(0xBBFF)
        return bits.view(np.float16)

    shapes = {"wte.weight": (VOCAB, WIDTH), "wpe.weight": (64, WIDTH), "ln_f.weight": (WIDTH,), "ln_f.bias": (WIDTH,)}
    for layer in range(LAYERS):
        for name, out in (("attn.c_attn", 3), ("mlp.c_fc", 4)):
            shapes |= {f"h.{layer}.{name}.weight": (WIDTH, out * WIDTH), f"h.{layer}.{name}.bias": (out * WIDTH,)}
        for name, inner in (("attn.c_proj", 1), ("mlp.c_proj", 4)):
            shapes |= {f"h.{layer}.{name}.weight": (inner * WIDTH, WIDTH), f"h.{layer}.{name}.bias": (WIDTH,)}
        for name in ("ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias"):
            shapes[f"h.{layer}.{name}"] = (WIDTH,)
    save_file({f"transformer.{name}": tensor(*shape) for name, shape in shapes.items()}, model / "model.safetensors")
    config = json.loads((MODEL / "config.json").read_text())
    config |= {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": 16, "n_inner": None, "n_positions": 64, "n_ctx": 64}
    config |= {"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": True}
    (model / "config.json").write_text(json.dumps(config))
    yield model
    shutil.rmtree(root)


@pytest.fixture(scope="module")
def uninterrupted(large: Path, run: Run, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The manifest of a run that nobody stopped: the hash of every file."""
    output = tmp_path_factory.mktemp("uninterrupted") / "out"
    result = run("partition", "ft", "--model", large, *OPTIONS, output)
    assert result.code == 0, result.err
    manifest = (output / "llmcompile.json").read_bytes()
    shutil.rmtree(output)
    return manifest


OPTIONS = ("--tp", "4", "--dtype", "fp32", "--no-validate", "--workers", "1")


@pytest.fixture
def interrupted(large: Path, tmp_path: Path) -> Iterator[Callable[[signal.Signals], tuple[int, str, str]]]:
    """Start a build, send a signal as soon as a few files are finished; exit code, stdout and stderr."""

    def interrupt(number: signal.Signals) -> tuple[int, str, str]:
        command = [sys.executable, "-m", "llmcompile", "partition", "ft", "--model", str(large), *OPTIONS]
        journal = tmp_path / "out.partial" / ".journal"
        process = subprocess.Popen(
            [*command, "--token", SECRET, "--json", str(tmp_path / "out")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(20_000):
            if process.poll() is not None or (journal.exists() and journal.read_bytes().count(b"\n") >= 4):
                break
            time.sleep(0.001)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    yield interrupt
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    shutil.rmtree(tmp_path / "out.partial", ignore_errors=True)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_says_how_to_resume(
    number: signal.Signals, code: int, interrupted: Callable[..., tuple[int, str, str]], output: Path
) -> None:
    """The command is repeated with --resume and without the token, the work is kept, and OUTPUT is not there."""
    found, out, err = interrupted(number)

    assert (found, json.loads(out)["exit_code"]) == (code, code), err
    assert (SECRET in out + err, "--token" in out + err) == (False, False)
    assert "continue with: llmcompile partition ft --model" in err
    assert f"{output} --resume" in err
    assert (output.exists(), output.with_name("out.partial").exists()) == (False, True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_run_resumes_to_the_same_bytes(
    number: signal.Signals,
    interrupted: Callable[..., tuple[int, str, str]],
    large: Path,
    uninterrupted: bytes,
    run: Run,
    output: Path,
) -> None:
    """After any signal, kill -9 too, --resume keeps what is finished and ends with what one run gives."""
    interrupted(number)
    assert not output.exists()

    result = run("partition", "ft", "--model", large, *OPTIONS, "--resume", output)

    assert (result.code, "verified and kept" in result.err) == (0, True), result.err
    assert (output / "llmcompile.json").read_bytes() == uninterrupted
    assert run("verify", output).code == 0


def test_a_resumed_file_that_was_tampered_with_is_made_again(
    interrupted: Callable[..., tuple[int, str, str]], large: Path, uninterrupted: bytes, run: Run, output: Path
) -> None:
    """The journal is not believed: what it names is hashed again."""
    interrupted(signal.SIGKILL)
    journal = (output.with_name("out.partial") / ".journal").read_text().splitlines()
    finished = [json.loads(line)["file"] for line in journal[1:] if line.endswith("}")]
    path = output.with_name("out.partial") / finished[0]
    path.write_bytes(bytes(path.stat().st_size))

    run("partition", "ft", "--model", large, *OPTIONS, "--resume", output)

    assert (output / "llmcompile.json").read_bytes() == uninterrupted


def test_resuming_another_job_is_refused(
    interrupted: Callable[..., tuple[int, str, str]], large: Path, run: Run, output: Path
) -> None:
    """Exit code 8, saying which option was another."""
    interrupted(signal.SIGKILL)

    result = run("partition", "ft", "--model", large, *OPTIONS, "--tp", 2, "--resume", output)

    assert (result.code, "belongs to another job" in result.err) == (8, True), result.err


def test_resuming_nothing_is_a_fresh_start(run: Run, output: Path) -> None:
    """--resume does no harm where there is nothing to resume."""
    result = run("partition", "ft", "--model", MODEL, "--no-validate", "--resume", output)

    assert (result.code, output.is_dir()) == (0, True)


# Shortages


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a tmpfs needs root and mount")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a tmpfs: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_too_small_is_found_before_writing(tiny_disk: Path, run: Run) -> None:
    """Exit code 10 with the bytes needed and free; nothing is written."""
    result = run("partition", "ft", "--model", MODEL, "--no-validate", tiny_disk / "out")

    assert (result.code, "bytes needed" in result.err, "bytes free" in result.err) == (10, True, True)
    assert list(tiny_disk.iterdir()) == []


def test_a_disk_that_fills_up_leaves_no_output(tiny_disk: Path, run: Run) -> None:
    """What the plan did not foresee, since it counts bytes and not blocks, is still an error with a way out."""
    (tiny_disk / "filler").write_bytes(bytes(40 << 10))
    model = MODEL.parents[1] / "mt5-a" / "hf"

    result = run("partition", "ft", "--model", model, "--dtype", "fp16", "--no-validate", tiny_disk / "out")

    assert (result.code in (8, 10), "bytes free" in result.err) == (True, True), result.err
    assert not (tiny_disk / "out").exists()


def test_memory_that_is_too_small_is_found_before_writing(run: Run, output: Path) -> None:
    """Exit code 10, with the flag that lowers the need."""
    result = run("partition", "ft", "--model", MODEL, "--max-memory", "10MiB", output)

    assert (result.code, "--workers 1" in result.err) == (10, True)
    assert list(output.parent.iterdir()) == []


def test_memory_that_is_enough_to_convert_may_not_be_to_validate(output: Path) -> None:
    """The refusal says how to validate elsewhere; in a process of its own, since this one holds torch by now."""
    command = [sys.executable, "-m", "llmcompile", "partition", "ft", "--model", str(MODEL), str(output)]
    report = subprocess.run([*command, "--dry-run", "--json"], capture_output=True, text=True, check=True)
    needed = json.loads(report.stdout)["plan"]["memory_bytes"] + (64 << 20)

    result = subprocess.run([*command, "--max-memory", str(needed)], capture_output=True, text=True, check=False)

    assert (result.returncode, "llmcompile verify --deep there" in result.stderr) == (10, True), result.stderr


def test_a_folder_that_may_not_be_written_is_refused(run: Run, tmp_path: Path) -> None:
    """Exit code 8 before any work."""
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    parent = tmp_path / "closed"
    parent.mkdir(mode=0o555)

    result = run("partition", "ft", "--model", MODEL, "--no-validate", parent / "out")

    assert (result.code, "not writable" in result.err) == (8, True)


def test_more_experts_than_tensors_are_refused_at_once(run: Run, tmp_path: Path) -> None:
    """A billion experts in config.json: exit code 3, without looping over them."""
    model = models.save("mixtral", tmp_path / "model")
    config = json.loads((model / "config.json").read_text()) | {"num_local_experts": 10**9}
    (model / "config.json").write_text(json.dumps(config))

    result = run("build", "trtllm", "--model", model, "--stop-after", "checkpoint", tmp_path / "out")

    assert result.code == 3
    assert "experts: 1000000000" in result.err
