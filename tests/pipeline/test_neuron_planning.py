"""The plan of an export of a model on the hub: from headers alone, which are read by range."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import models
from hub_server import Hub


@pytest.mark.parametrize(("family", "task"), [("llama", "text-generation"), ("bert", "fill-mask")])
def test_a_dry_run_reads_headers_of_the_hub_by_range(family: str, task: str, tmp_path: Path) -> None:
    """Of the weights no byte behind the header is asked for, and the plan is the one of the local folder."""
    folder = models.save(family, tmp_path / "model")
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    weights = files["model.safetensors"]
    header = 8 + int.from_bytes(weights[:8], "little")
    shapes = ["--batch-size", "1", "--sequence-length", "16"]
    words = ["export", "neuron", *shapes, "--via", "xla", "--stop-after", "lower", "--dry-run", "--json"]

    with Hub(files) as hub:
        plans = []
        for model in ("org/tiny", str(folder)):
            done = subprocess.run(
                [sys.executable, "-m", "llmcompile", *words, "--model", model, str(tmp_path / "out")],
                env=hub.environment(tmp_path / "home"),
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            plans.append(json.loads(done.stdout)["plan"])

    asked = [r.headers.get("range") for r in hub.requests if r.method == "GET" and r.path.endswith("model.safetensors")]
    ends = [int(span.rpartition("-")[2]) for span in asked if span is not None]
    assert len(ends) == len(asked) > 0
    assert max(ends) < header < len(weights)
    assert plans[0]["task"] == task
    for key in ("files", "output_bytes", "core_bytes", "graphs", "disk_bytes", "dtype"):
        assert plans[0][key] == plans[1][key]
