"""Each example prints what its expected.txt says; only what must vary from run to run is left out of the comparison."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
RUNS = sorted(EXAMPLES.glob("[0-9]*/run.sh"))

_NUMBER = r"[-+]?\d+(?:\.\d+)?(?:e[-+]\d+)?"
_VARYING = (
    (rf"took +{_NUMBER} s .*", "took ..."),  # times, rates, memory
    (
        rf"memory {_NUMBER} \w+ to convert with \d+ workers, about {_NUMBER} \w+ to validate, of {_NUMBER} \w+",
        "memory ...",
    ),
    (rf"of {_NUMBER} \w+ free", "of ... free"),
    (rf"(max abs|expected|found|difference|limit|divergence|as large as|atol|rtol) {_NUMBER}", r"\1 ..."),
    (r"worst at \([\d, ]+\)", "worst at ..."),
    (rf"error: logits\[.*?\], (.*): {_NUMBER} .*", r"error: logits[...], \1: ..."),
    (rf"same top-1 token {_NUMBER}%", "same top-1 token ..."),
)


def fixed(text: str) -> list[str]:
    """The lines of a run's output without what varies: times, memory, rates, free disk, sizes of errors."""
    for pattern, replacement in _VARYING:
        text = re.sub(pattern, replacement, text)
    return [line.rstrip() for line in text.splitlines()]


@pytest.mark.parametrize("run", RUNS, ids=[run.parent.name for run in RUNS])
def test_an_example_prints_what_it_says(run: Path, tmp_path: Path) -> None:
    """A newcomer's copy of run.sh works offline and prints expected.txt."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LLMCOMPILE_")}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "WORK": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
        "NO_COLOR": "1",
        "COLUMNS": "100",
        "LC_ALL": "C.UTF-8",
    }

    finished = subprocess.run([run], env=environment, capture_output=True, text=True, timeout=300)

    assert finished.returncode == 0, finished.stderr
    assert fixed(finished.stdout) == fixed((run.parent / "expected.txt").read_text())


def test_every_example_is_complete_and_listed() -> None:
    """Each folder holds run.sh and expected.txt, and examples/README.md names it."""
    readme = (EXAMPLES / "README.md").read_text()
    for folder in sorted(path for path in EXAMPLES.glob("[0-9]*") if path.is_dir()):
        assert {path.name for path in folder.iterdir()} == {"run.sh", "expected.txt"}
        assert os.access(folder / "run.sh", os.X_OK)
        assert f"{folder.name}/run.sh" in readme


def test_the_comparison_sees_a_changed_word_and_not_a_changed_time() -> None:
    """Times and error sizes are left out; names, counts and marks are not."""
    line = "took      3.7 s (writing 0.0 s at 121.9 MiB/s, validating 3.7 s), peak memory 430.9 MiB"
    close = "-[✓] all values close (max abs 3.1e-07, atol 1.1e-05, rtol 1.2e-07; allows for fp32 arithmetic)"

    assert fixed(line) == fixed(line.replace("3.7", "12.1"))
    assert fixed(close) == fixed(close.replace("3.1e-07", "2.0e-08"))
    assert fixed(close) != fixed(close.replace("[✓]", "[x]"))
    assert fixed("27 files, 902400 bytes") != fixed("27 files, 902401 bytes")
