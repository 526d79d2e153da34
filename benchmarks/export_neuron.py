"""Measures `llmcompile export neuron --stop-after lower` against loading the model by transformers; prints a table.

Usage: python benchmarks/export_neuron.py [--folder DIR] [--rounds N] [--sequence N]

The checkpoint has TinyLlama's shape: 1.1 B parameters in bfloat16, 2098 MiB. Each round reads the source once before
each command, so that it is cached for all, then loads it by `AutoModelForCausalLM.from_pretrained` as it is and as
float32 and touches every weight, and exports it for two cores: lowered and written alone (--no-validate), and with all
ranks executed and compared. Each is a process of its own; the export's stages are its own report's. Memory is that of
the process at its peak, beside the bytes of the weights.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from partition_ft import read, run

_LOAD = (
    "import sys, torch, transformers; "
    "m = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=getattr(torch, sys.argv[2])); "
    "sum(float(p.detach().sum()) for p in m.parameters())"
)
Figures = dict[str, tuple[float, float, float]]


def measure(source: Path, scratch: Path, sequence: int) -> tuple[Figures, dict[str, dict[str, float]]]:
    """Run every command once.

    Returns:
        Wall seconds, processor seconds and peak memory in MiB of each; and seconds of each stage of the exports.
    """
    program = str(Path(sys.executable).with_name("llmcompile"))
    shapes = ["--batch_size", "1", "--sequence_length", str(sequence), "--buckets", str(sequence), "--num_cores", "2"]
    export = [program, "export", "neuron", "-m", str(source), *shapes, "--via", "xla", "--stop-after", "lower"]
    commands = {
        "transformers, bfloat16": [sys.executable, "-c", _LOAD, str(source), "bfloat16"],
        "transformers, float32": [sys.executable, "-c", _LOAD, str(source), "float32"],
        "export, not validated": [*export, "--no-validate", "--quiet", str(scratch / "plain")],
        "export, validated": [*export, "--quiet", str(scratch / "validated")],
    }
    figures: Figures = {}
    for name, command in commands.items():
        read(source)
        figures[name] = run(command)
    stages = {}
    for name in ("plain", "validated"):
        shutil.rmtree(scratch / name)
        words = [*export, *(["--no-validate"] if name == "plain" else []), "--json", str(scratch / name)]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        stages[name] = {stage["name"]: stage["seconds"] for stage in json.loads(done.stdout)["stages"]}
        shutil.rmtree(scratch / name)
    return figures, stages


def main() -> None:
    """Make the checkpoint, measure, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder by default")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sequence", type=int, default=256)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        source = Path(scratch) / "model"
        program = str(Path(__file__).with_name("checkpoints.py"))
        subprocess.run([sys.executable, program, "tinyllama", str(source), "22", "2048", "5632"], check=True)
        weights = read(source) / 2**20
        print(f"source: {weights:.0f} MiB\n")
        rounds = [measure(source, Path(scratch), arguments.sequence) for _ in range(arguments.rounds)]
    print("| command | wall | its CPU | / loading bfloat16 | peak RSS | / weights |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in rounds[0][0]:
        wall, cpu = (statistics.median(one[name][index] for one, _ in rounds) for index in (0, 1))
        ratios = [one[name][0] / one["transformers, bfloat16"][0] for one, _ in rounds]
        peak = max(one[name][2] for one, _ in rounds)
        ratio = f"{statistics.median(ratios):.1f} ({min(ratios):.1f}-{max(ratios):.1f})"
        print(f"| {name} | {wall:.1f} s | {cpu:.1f} s | {ratio} | {peak:.0f} MiB | {peak / weights:.2f} |")
    for name in ("plain", "validated"):
        medians = {stage: statistics.median(one[name][stage] for _, one in rounds) for stage in rounds[0][1][name]}
        print(f"\n{name}: " + ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in medians.items()))


if __name__ == "__main__":
    main()
