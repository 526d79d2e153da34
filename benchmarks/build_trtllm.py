"""Measures `llmcompile build trtllm --stop-after checkpoint` against `cp -r`, in turns, and prints a Markdown table.

Usage: python benchmarks/build_trtllm.py [--folder DIR] [--rounds N] [--cold] [--large]

The checkpoint has TinyLlama's shape: 1.1 B parameters in bfloat16, 2098 MiB (--large: 4.4 B). Each round reads the
source once before each command, so that it is cached for all, then runs `cp -r`, `cp -r` followed by a sync of the file
system, and the conversion at tp 4 without validation: plain, int8 and int4 weight-only in the sm80 layout, and int4
groupwise. Each is a process of its own. Ratios are formed within a round: conversions to `cp -r`, recipes to the plain
conversion.
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

from partition_ft import forget, read, run

RECIPES = {
    "plain": (),
    "int8 weight-only": ("--quantization", "w8a16", "--wo-layout", "sm80"),
    "int4 weight-only": ("--quantization", "w4a16", "--wo-layout", "sm80"),
    "int4 groupwise": ("--quantization", "w4a16_awq"),
}
Round = dict[str, tuple[float, float, float]]


def measure(source: Path, target: Path, *, cold: bool) -> Round:
    """Run every command once: wall seconds, processor seconds, peak memory in MiB."""
    program = str(Path(sys.executable).with_name("llmcompile"))
    convert = [program, "build", "trtllm", "--model", str(source), "--tp", "4", "--stop-after", "checkpoint"]
    commands = {
        "cp -r": ["cp", "-r", str(source), str(target)],
        "cp -r, sync": ["sh", "-c", 'cp -r "$0" "$1" && sync -f "$1"', str(source), str(target)],
        **{name: [*convert, *flags, "--no-validate", "--quiet", str(target)] for name, flags in RECIPES.items()},
    }
    results: Round = {}
    for name, command in commands.items():
        if cold:
            forget()
        read(source)
        results[name] = run(command)
        shutil.rmtree(target)
    return results


def spread(values: list[float]) -> str:
    """Median, smallest and largest."""
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def main() -> None:
    """Make the checkpoint, measure, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cold", action="store_true", help="with fresh memory before each run; needs root")
    parser.add_argument("--large", action="store_true", help="a model of 4.4 B parameters instead")
    parser.add_argument("--raw", type=Path, help="write every figure to this JSON file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        source = Path(scratch) / "model"
        sizes = ("40", "3072", "9216") if arguments.large else ("22", "2048", "5632")
        program = str(Path(__file__).with_name("checkpoints.py"))
        subprocess.run([sys.executable, program, "tinyllama", str(source), *sizes], check=True)
        print(f"source: {read(source) / 2**20:.0f} MiB\n")
        rounds = [measure(source, Path(scratch) / "out", cold=arguments.cold) for _ in range(arguments.rounds)]
    print("| command | wall | its CPU | / cp -r | / cp -r, sync | / plain | peak RSS |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in rounds[0]:
        wall, cpu = (statistics.median(one[name][index] for one in rounds) for index in (0, 1))
        cells = [name, f"{wall:.2f} s", f"{cpu:.1f} s"]
        for base in ("cp -r", "cp -r, sync", "plain"):
            is_recipe = name in RECIPES
            ratios = [one[name][0] / one[base][0] for one in rounds]
            cells.append(spread(ratios) if is_recipe and name != base else "")
        cells.append(f"{max(one[name][2] for one in rounds):.0f} MiB" if name in RECIPES else "")
        print("| " + " | ".join(cells) + " |")
    if arguments.raw is not None:
        arguments.raw.write_text(json.dumps(rounds, indent=1))


if __name__ == "__main__":
    main()
