"""Each example prints what its expected.txt says; only what must vary from run to run is left out of the comparison."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import models
import neuronx_cc_standin
import trtllm_standin as standin
from llmcompile.exporters.neuron import compiler
from llmcompile.exporters.trtllm import versions

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
CI = EXAMPLES / "05-trtllm-ci"
NEURON = EXAMPLES / "07-neuron-ci"
IMAGE = "llmcompile-trtllm"
RUNS = sorted(EXAMPLES.glob("[0-9]*/run.sh"))

_NUMBER = r"[-+]?\d+(?:\.\d+)?(?:e[-+]\d+)?"
_VARYING = (
    (rf"took +{_NUMBER} s .*", "took ..."),  # times, rates, memory
    (
        rf"memory {_NUMBER} \w+ to convert with \d+ workers, about {_NUMBER} \w+ to validate, of {_NUMBER} \w+",
        "memory ...",
    ),
    (rf"memory about {_NUMBER} \w+ to export, .*; disk", "memory ...; disk"),
    (rf"of {_NUMBER} \w+ free", "of ... free"),
    (r"\d+ (?:copied|linked|shared)(?:, \d+ (?:copied|linked|shared))*", "..."),  # by the file system
    (rf"(max abs|expected|found|difference|limit|divergence|as large as|atol|rtol) {_NUMBER}", r"\1 ..."),
    (r"worst at \([\d, ]+\)", "worst at ..."),
    (rf"error: logits\[.*?\], (.*): {_NUMBER} .*", r"error: logits[...], \1: ..."),
    (rf"same top-1 token {_NUMBER}%", "same top-1 token ..."),
    (rf"{_NUMBER} from float32", "... from float32"),
    (rf"{_NUMBER} \(limit {_NUMBER}\)", "... (limit ...)"),
    (rf"perplexity {_NUMBER}, the model's {_NUMBER}", "perplexity ..., the model's ..."),
    (rf"perplexity {_NUMBER} in float32", "perplexity ... in float32"),
    (rf"perplexity, {_NUMBER} with", "perplexity, ... with"),
    (rf"KL {_NUMBER} nats", "KL ... nats"),
    (rf"memory of {_NUMBER} \w+; disk", "memory of ...; disk"),
    (rf"about {_NUMBER} \w+\n", "about ...\n"),
    (rf"(\w+ +{_NUMBER} \w+ +\d+%) .* (any|SM\d+) +\S+\n", r"\1 ... \2 ...\n"),  # a row of quantize
    (r"of +perplex- .*|recipe +weights .*|─+", "..."),
)


def fixed(text: str) -> list[str]:
    """The lines of a run's output without what varies: times, memory, rates, free disk, sizes of errors."""
    for pattern, replacement in _VARYING:
        text = re.sub(pattern, replacement, text)
    return [line.rstrip() for line in text.splitlines()]


def environment_of(folder: Path) -> dict[str, str]:
    """Ours, without options of llmcompile or of XLA, with its commands first on the path, offline, in `folder`."""
    left_out = ("LLMCOMPILE_", "XLA_FLAGS")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
    return kept | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "WORK": str(folder),
        "HF_HUB_OFFLINE": "1",
        "NO_COLOR": "1",
        "COLUMNS": "100",
        "LC_ALL": "C.UTF-8",
    }


@pytest.mark.parametrize("run", RUNS, ids=[run.parent.name for run in RUNS])
def test_an_example_prints_what_it_says(run: Path, tmp_path: Path) -> None:
    """A newcomer's copy of run.sh works offline and prints expected.txt."""
    finished = subprocess.run([run], env=environment_of(tmp_path), capture_output=True, text=True, timeout=300)

    assert finished.returncode == 0, finished.stderr
    assert fixed(finished.stdout) == fixed((run.parent / "expected.txt").read_text())


def test_every_example_is_complete_and_listed() -> None:
    """Each folder holds run.sh and expected.txt, its scripts can be run, and examples/README.md names it."""
    readme = (EXAMPLES / "README.md").read_text()
    for folder in sorted(path for path in EXAMPLES.glob("[0-9]*") if path.is_dir()):
        assert {"run.sh", "expected.txt"} <= {path.name for path in folder.iterdir()}
        assert all(os.access(script, os.X_OK) for script in folder.glob("*.sh"))
        assert f"{folder.name}/run.sh" in readme


def test_the_ci_example_builds_on_a_gpu_host(tmp_path: Path) -> None:
    """Both halves of its entrypoint, the second with a stand-in for TensorRT-LLM and for the GPU."""
    models.save("llama", tmp_path / "tiny")
    standin.nvidia_smi(tmp_path / "tools", "0, NVIDIA A100-SXM4-80GB, 8.0, 580.65.06, 81920")
    python = standin.install(tmp_path / "env", "1.2.1", "1.2")
    environment = environment_of(tmp_path)
    environment["PATH"] = f"{tmp_path / 'tools'}{os.pathsep}{environment['PATH']}"
    first = {"LLMCOMPILE_MODEL": "tiny", "LLMCOMPILE_TP": "2", "LLMCOMPILE_QUANTIZATION": "w8a16"}
    halves = (
        (environment | first, ["checkpoint"]),
        (environment | {"LLMCOMPILE_TOOLCHAIN_PYTHON": str(python)}, _command("workflow.yml")),
    )

    for given, words in halves:
        finished = subprocess.run(
            [CI / "entrypoint.sh", *words], env=given, capture_output=True, text=True, timeout=300
        )
        assert finished.returncode == 0, finished.stderr

    assert {path.name for path in (tmp_path / "model-engine" / "engine").iterdir()} == {
        "config.json",
        "rank0.engine",
        "rank1.engine",
    }


def test_the_neuron_ci_example_compiles(tmp_path: Path) -> None:
    """Both halves of its entrypoint, the second with a stand-in for neuronx-cc on PATH."""
    models.save("llama", tmp_path / "tiny")
    neuronx_cc_standin.install(tmp_path / "tools")
    environment = environment_of(tmp_path)
    first = {"LLMCOMPILE_MODEL": "tiny", "MAX_BATCH_SIZE": "1", "MAX_TOTAL_TOKENS": "16", "HF_NUM_CORES": "2"}
    second = {"PATH": f"{tmp_path / 'tools'}{os.pathsep}{environment['PATH']}"}
    halves = ((first, ["lower"]), (second, _command("workflow.yml", NEURON)))

    for given, words in halves:
        finished = subprocess.run(
            [NEURON / "entrypoint.sh", *words], env=environment | given, capture_output=True, text=True, timeout=300
        )
        assert finished.returncode == 0, finished.stderr

    assert {path.name for path in (tmp_path / "model-neuron" / "graphs").glob("*.neff")} == {
        "context_encoding_16.neff",
        "token_generation.neff",
    }


def test_the_neuron_ci_image_has_what_it_copies() -> None:
    """Every file that the Dockerfile copies is in the repository, and its base is the image that messages name."""
    text = (NEURON / "Dockerfile").read_text()
    copied = re.findall(r"^COPY (\S+) ", text, flags=re.MULTILINE)

    assert all((EXAMPLES.parent / path).exists() for path in copied)
    assert f"FROM {compiler.IMAGE}\n" in text


def _command(workflow: str, folder: Path = CI) -> list[str]:
    """The words after the image's name in the workflow's docker run."""
    jobs = yaml.safe_load((folder / workflow).read_text())["jobs"]
    lines = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    line = next(line for line in lines if line.startswith("docker run"))
    return re.split(r" llmcompile-\w+ ", str(line))[1].split()


def test_the_ci_workflow_is_two_jobs() -> None:
    """It is YAML, the second job waits for the first, and what one uploads the other has where it builds."""
    jobs = yaml.safe_load((CI / "workflow.yml").read_text())["jobs"]
    used = {
        step["uses"].partition("@")[0]: step["with"] for job in jobs.values() for step in job["steps"] if "with" in step
    }
    lines = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]

    assert jobs["engine"]["needs"] == "checkpoint"
    assert used["actions/download-artifact"] == {"name": "checkpoint", "path": "work/model"}
    assert "examples/05-trtllm-ci/entrypoint.sh checkpoint" in lines
    assert f"docker build -f examples/05-trtllm-ci/Dockerfile -t {IMAGE} ." in lines


def test_the_ci_image_has_what_it_copies() -> None:
    """Every file that the Dockerfile copies is in the repository, and its base is the image of the default version."""
    text = (CI / "Dockerfile").read_text()
    copied = re.findall(r"^COPY (\S+) ", text, flags=re.MULTILINE)

    assert all((EXAMPLES.parent / path).exists() for path in copied)
    assert f"FROM {versions.image_of(versions.DEFAULT_VERSION)}\n" in text
    assert f"-t {IMAGE} ." in text


def test_the_comparison_sees_a_changed_word_and_not_a_changed_time() -> None:
    """Times and error sizes are left out; names, counts and marks are not."""
    line = "took      3.7 s (writing 0.0 s at 121.9 MiB/s, validating 3.7 s), peak memory 430.9 MiB"
    close = "-[✓] all values close (max abs 3.1e-07, atol 1.1e-05, rtol 1.2e-07; allows for fp32 arithmetic)"

    assert fixed(line) == fixed(line.replace("3.7", "12.1"))
    assert fixed(close) == fixed(close.replace("3.1e-07", "2.0e-08"))
    assert fixed(close) != fixed(close.replace("[✓]", "[x]"))
    assert fixed("27 files, 902400 bytes") != fixed("27 files, 902401 bytes")
