"""Measures `llmcompile partition ft` against `cp -r` of the same checkpoint, in turns, and prints a Markdown table.

Usage: python benchmarks/partition_ft.py [--folder DIR] [--pairs N] [--large] [--cold] [--model gpt2|llama|both]

Each pair reads the source once, so that it is cached for both, then runs `cp -r`, `cp -r` followed by a sync of the
file system, and the conversion (which syncs before it publishes), each as a process of its own, with tp=4, fp16 and
without validation. Outputs are removed in between. Wall time is from start to exit of the process; memory is the
kernel's maximum resident set size of it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path


def make(folder: Path, kind: str, large: bool) -> None:
    """Write a checkpoint of 1.3 B parameters, or about four times as many.

    In a process of its own: a child starts with its parent's peak of memory, so this one must stay small.
    """
    layers, hidden, ffn = ("32", "3584", "9728") if large else ("24", "2048", "5504")
    program = str(Path(__file__).with_name("checkpoints.py"))
    subprocess.run([sys.executable, program, kind, str(folder), layers, hidden, ffn], check=True)


def run(command: Sequence[str]) -> tuple[float, float, float]:
    """Run a command.

    Returns:
        Wall seconds, processor seconds, and peak resident memory in MiB.
    """
    start = time.perf_counter()
    pid = os.posix_spawnp(command[0], command, os.environ | {"HF_HUB_OFFLINE": "1"})
    _, status, usage = os.wait4(pid, 0)
    wall = time.perf_counter() - start
    if status != 0:
        sys.exit(f"{' '.join(command)} ended with status {os.waitstatus_to_exitcode(status)}")
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def read(folder: Path) -> int:
    """Read all files of a folder once; returns their bytes."""
    total = 0
    for path in folder.iterdir():
        with path.open("rb", buffering=0) as file:
            while block := file.read(1 << 22):
                total += len(block)
    return total


def forget() -> None:
    """Drop the page cache and let a hypervisor take the memory back, as on a fresh machine; root only."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")
    time.sleep(10)


def measure(source: Path, scratch: Path, pairs: int, *, cold: bool) -> dict[str, list[tuple[float, float, float]]]:
    """Run all three commands `pairs` times in turn."""
    target = scratch / "out"
    program = str(Path(sys.executable).with_name("llmcompile"))
    convert = [program, "partition", "ft", "--model", str(source), "--tp", "4", "--dtype", "fp16", "--no-validate"]
    commands = {
        "cp": ["cp", "-r", str(source), str(target)],
        "cp+sync": ["sh", "-c", 'cp -r "$0" "$1" && sync -f "$1"', str(source), str(target)],
        "llmcompile": [*convert, "--quiet", str(target)],
    }
    results: dict[str, list[tuple[float, float, float]]] = {name: [] for name in commands}
    for _ in range(pairs):
        for name, command in commands.items():
            if cold:
                forget()
            read(source)
            results[name].append(run(command))
            shutil.rmtree(target)
    return results


def row(name: str, size: int, results: dict[str, list[tuple[float, float, float]]]) -> str:
    """One line of the table: medians, and the ratios pair by pair."""

    def median(kind: str, index: int) -> float:
        return statistics.median(run[index] for run in results[kind])

    def ratios(kind: str) -> str:
        pairs = sorted(ours[0] / theirs[0] for ours, theirs in zip(results["llmcompile"], results[kind], strict=True))
        return f"{statistics.median(pairs):.2f} ({pairs[0]:.2f}-{pairs[-1]:.2f})"

    cells = (
        name,
        f"{size / 2**20:.0f} MiB",
        f"{median('cp', 0):.2f} s",
        f"{median('cp+sync', 0):.2f} s",
        f"{median('llmcompile', 0):.2f} s",
        f"{median('llmcompile', 1):.1f} s",
        ratios("cp"),
        ratios("cp+sync"),
        f"{max(run[2] for run in results['llmcompile']):.0f} MiB",
    )
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Make the checkpoints, measure, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder by default")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--large", action="store_true", help="also a model four times larger")
    parser.add_argument("--cold", action="store_true", help="with fresh memory before each run; needs root")
    parser.add_argument("--model", choices=("gpt2", "llama", "both"), default="both")
    parser.add_argument("--raw", type=Path, help="write every figure to this JSON file")
    arguments = parser.parse_args()
    raw = {}
    print("| model | source | cp -r | cp -r, sync | llmcompile | its CPU | / cp | / cp, sync | peak RSS |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        for kind in ("gpt2", "llama") if arguments.model == "both" else (arguments.model,):
            for large in (False, True) if arguments.large else (False,):
                source = Path(scratch) / f"{kind}{'-large' if large else ''}"
                make(source, kind, large)
                size = read(source)
                results = measure(source, Path(scratch), arguments.pairs, cold=arguments.cold)
                raw[source.name] = results
                print(row(f"{kind}, {size / 2e9:.1f} B", size, results), flush=True)
                shutil.rmtree(source)
    if arguments.raw is not None:
        arguments.raw.write_text(json.dumps(raw, indent=1))


if __name__ == "__main__":
    main()
