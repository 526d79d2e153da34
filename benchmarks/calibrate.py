"""Measures calibrated builds stage by stage, their time and their peak of memory, and prints a Markdown table.

Usage: python benchmarks/calibrate.py [--folder DIR] [--layers N] [--calib-size N] [--calib-seq-len N]
       [--recipes NAME,...] [--calibrator llmcompile|modelopt] [--no-validate] [--json FILE]

The checkpoint has TinyLlama's shape: 1.1 B parameters in bfloat16, 22 layers. `cp -r` of it, the conversion without a
recipe, and each recipe, with an INT8 or an FP8 cache in turn, is a process of its own; the source is read once before
each, so that it is cached for all. Its resident memory and its processor time are looked at a hundred times a second,
and counted to the stage it is in by its messages and files. Ratios, of calibrating and writing together, are to
`cp -r` and to the plain conversion of the same run.

The bound of calibration's memory is twice the largest layer, the activations of a batch, and the interpreter: what a
process has that has imported torch and transformers' model; with modelopt, the layer in float32, as that is given it,
and its import too. The script ends with status 1 where a recipe is above it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from partition_ft import read, run

from llmcompile.exporters.trtllm import versions

HIDDEN, FFN, HEADS, KV_HEADS, VOCAB = 2048, 5632, 32, 4, 32000
BATCH_TOKENS = 2048
"""Tokens that go through a layer at once: pipeline/job.py."""
STAGES = ("calibrate", "write", "validate")
_IMPORTS = (
    "import torch\n"
    "from transformers import AutoTokenizer\n"
    "from transformers.models.llama.modeling_llama import LlamaForCausalLM\n"
)


@dataclass
class Build:
    """One command, stage by stage.

    Attributes:
        name: What was asked for.
        seconds: Of wall time, by the command's own report.
        cpu: Seconds of the processors, which other work on the machine moves less.
        peak: Resident memory in MiB, as it was seen.
    """

    name: str
    seconds: dict[str, float] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)
    peak: dict[str, float] = field(default_factory=dict)


def build(name: str, command: Sequence[str]) -> Build:
    """Run a build and look at its memory."""
    result = Build(name)
    stage, spent = [""], 0.0
    written = Path(f"{command[-1]}.partial") / "checkpoint"
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=_environment()
    ) as child:
        last: list[str] = []

        def follow() -> None:
            assert child.stderr is not None
            for line in child.stderr:
                last[:] = [*last[-20:], line]
                stage[0] = _stage(line, stage[0])

        reader = threading.Thread(target=follow)
        reader.start()
        answers: list[str] = []
        assert child.stdout is not None
        output = threading.Thread(target=lambda: answers.append(child.stdout.read()))  # type: ignore[union-attr]
        output.start()
        while child.poll() is None:
            if stage[0] in ("", "calibrate") and written.exists():
                stage[0] = "write"
            now, before, spent = stage[0], spent, max(spent, _cpu_seconds(child.pid))
            result.cpu[now] = result.cpu.get(now, 0.0) + spent - before
            result.peak[now] = max(result.peak.get(now, 0.0), _resident_mib(child.pid))
            time.sleep(0.01)
        reader.join()
        output.join()
    if child.returncode != 0:
        sys.exit(f"{' '.join(command)} ended with status {child.returncode}:\n{''.join(last)}")
    result.seconds = {one["name"]: one["seconds"] for one in json.loads(answers[0])["stages"]}
    return result


def _environment() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1"}


def _stage(line: str, now: str) -> str:
    """The stage a message begins; writing begins with the checkpoint's folder."""
    event = str(json.loads(line)["event"]) if line.startswith("{") else ""
    begins = event == "validate" or (event == "calibrate" and now != "write")
    return event if begins else now


def _resident_mib(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/statm").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20 if len(fields) > 1 else 0.0


def _cpu_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def layer_mib() -> float:
    """A layer as it is stored."""
    attention = 2 * HIDDEN * HIDDEN + 2 * HIDDEN * HIDDEN * KV_HEADS // HEADS
    return 2 * (attention + 3 * HIDDEN * FFN) / 2**20


def activations_mib(length: int) -> float:
    """Of a batch in float32: what goes in and out of the linear layers, and three matrices of attention's scores."""
    batch = max(1, BATCH_TOKENS // length) * length
    return 4 * (batch * (4 * HIDDEN + 4 * FFN) + 3 * batch * length * HEADS) / 2**20


def row(cells: Sequence[str]) -> str:
    """One line of the table."""
    return "| " + " | ".join(cells) + " |"


def figures(one: Build, copied: float, plain: Build) -> list[str]:
    """The cells of a build."""
    seconds = [
        f"{one.seconds[stage]:.1f} s ({one.cpu[stage]:.0f} s)" if stage in one.seconds else "" for stage in STAGES
    ]
    peaks = [f"{one.peak[stage]:.0f} MiB" if stage in one.seconds else "" for stage in STAGES]
    made = sum(one.seconds.get(stage, 0.0) for stage in ("calibrate", "write"))
    ratios = [f"{made / copied:.1f}", "" if one is plain else f"{made / plain.seconds['write']:.1f}"]
    return [one.name, *seconds, *ratios, *peaks]


def main() -> None:
    """Make the checkpoint, measure, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder by default")
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--calib-size", type=int, default=4)
    parser.add_argument("--calib-seq-len", type=int, default=512)
    parser.add_argument("--recipes", default=",".join(versions.CALIBRATED))
    parser.add_argument("--calibrator", default="llmcompile")
    parser.add_argument("--no-validate", action="store_true")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        source, target, data = Path(scratch) / "model", Path(scratch) / "out", Path(scratch) / "tokens.jsonl"
        program = str(Path(__file__).with_name("checkpoints.py"))
        shape = (str(arguments.layers), str(HIDDEN), str(FFN))
        subprocess.run([sys.executable, program, "tinyllama", str(source), *shape], check=True)
        numbers = random.Random(0)
        tokens = [
            [numbers.randrange(VOCAB) for _ in range(arguments.calib_seq_len)] for _ in range(arguments.calib_size)
        ]
        data.write_text("".join(json.dumps({"input_ids": sample}) + "\n" for sample in tokens))
        size = read(source)
        copied = run(["cp", "-r", str(source), str(target)])[0]
        shutil.rmtree(target)
        modelopt = arguments.calibrator == "modelopt"
        interpreter = run(
            [sys.executable, "-c", _IMPORTS + ("import modelopt.torch.quantization\n" if modelopt else "")]
        )[2]
        largest = layer_mib() * (2 if modelopt else 1)
        convert = [str(Path(sys.executable).with_name("llmcompile")), "build", "trtllm", "--model", str(source)]
        convert += ["--stop-after", "checkpoint", "--json", "--log-format", "json"]
        convert += ["--no-validate"] if arguments.no_validate else []
        calibration = ["--calib-dataset", str(data), "--calib-size", str(arguments.calib_size)]
        calibration += ["--calib-seq-len", str(arguments.calib_seq_len), "--calibrator", arguments.calibrator]
        activations = activations_mib(arguments.calib_seq_len)
        bound = 2 * largest + activations + interpreter
        print(
            f"source {size / 2**20:.0f} MiB, cp -r {copied:.2f} s; bound while calibrating: "
            f"2 x {largest:.0f} MiB of the largest layer + {activations:.0f} MiB of activations + "
            f"{interpreter:.0f} MiB of interpreter = {bound:.0f} MiB\n"
        )
        print(row(["command", *STAGES, "made / cp -r", "made / plain", *(f"peak, {stage}" for stage in STAGES)]))
        print(row(["---"] * 9), flush=True)
        builds: list[Build] = []
        for number, recipe in enumerate(["", *arguments.recipes.split(",")]):
            cache = ("fp8", "int8")[number % 2]
            words = [*calibration, "--quantization", recipe, "--kv-cache", cache] if recipe != "" else []
            read(source)
            one = build(f"{recipe}, {cache} cache" if recipe != "" else "plain", [*convert, *words, str(target)])
            builds.append(one)
            print(row(figures(one, copied, builds[0])), flush=True)
            shutil.rmtree(target)
    if arguments.json is not None:
        facts = {"source_mib": size / 2**20, "cp_seconds": copied, "interpreter_mib": interpreter, "bound_mib": bound}
        arguments.json.write_text(json.dumps({**facts, "builds": [asdict(one) for one in builds]}, indent=1))
    above = [one.name for one in builds[1:] if one.peak["calibrate"] > bound]
    if len(above) > 0:
        sys.exit(f"above the bound: {', '.join(above)}")


if __name__ == "__main__":
    main()
