"""Input that is wrong on purpose ends with an exit code and a sentence, never with a traceback or a hang."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

if TYPE_CHECKING:
    from conftest import Run

GOLDEN = Path(__file__).parents[1] / "golden" / "ft"


def copied(variant: str, folder: Path, **changes: Any) -> Path:
    """A copy of a golden checkpoint with some keys of config.json changed."""
    model = Path(shutil.copytree(GOLDEN / variant / "hf", folder / "model"))
    config = json.loads((model / "config.json").read_text()) | changes
    (model / "config.json").write_text(json.dumps(config))
    return model


@pytest.mark.parametrize("layers", [10**12, 0, -1])
def test_a_layer_count_no_checkpoint_can_hold_is_refused_at_once(layers: int, run: Run, tmp_path: Path) -> None:
    """More layers than tensors, or none, is exit code 3, and names the axis."""
    model = copied("llama-a", tmp_path, num_hidden_layers=layers)

    result = run("partition", "ft", "--model", model, "--dry-run", tmp_path / "out")

    assert result.code == 3
    assert f"config.json: layers: {layers}" in result.err


def test_a_lone_surrogate_in_a_name_is_shown_escaped(run: Run, tmp_path: Path) -> None:
    """A name that no encoding can print still gives one JSON document."""
    model = copied("llama-a", tmp_path, architectures=["\ud800"])

    result = run("partition", "ft", "--model", model, "--json", tmp_path / "out")

    assert result.code == 4
    assert json.loads(result.out)["error"]["problems"][0]["found"] == "\ud800"


def test_a_pipe_in_place_of_the_weights_is_refused(run: Run, tmp_path: Path) -> None:
    """A FIFO would block for ever when opened."""
    model = copied("llama-a", tmp_path)
    (model / "model.safetensors").unlink()
    os.mkfifo(model / "model.safetensors")

    result = run("partition", "ft", "--model", model, tmp_path / "out")

    assert result.code == 3
    assert "model.safetensors: not a regular file" in result.err


def test_a_name_that_is_no_hub_id_is_refused_without_asking_the_hub(run: Run, tmp_path: Path) -> None:
    """huggingface_hub itself would raise a ValueError."""
    result = run("partition", "ft", "--model", "a/..b--c", tmp_path / "out")

    assert result.code == 3
    assert "no such folder" in result.err


def test_an_output_name_too_long_for_its_companions_is_refused(run: Run, tmp_path: Path) -> None:
    """OUTPUT.partial and OUTPUT.rejected must be possible, too."""
    result = run("partition", "ft", "--model", GOLDEN / "llama-a" / "hf", tmp_path / ("o" * 250))

    assert result.code == 2
    assert "OUTPUT" in result.err


def test_an_absurd_size_is_a_usage_error(run: Run, tmp_path: Path) -> None:
    """400 digits do not become an OverflowError."""
    result = run("partition", "ft", "--model", GOLDEN / "llama-a" / "hf", "--max-memory", "9" * 400, tmp_path / "out")

    assert result.code == 2


def test_a_work_directory_in_use_is_not_offered_for_removal(run: Run, tmp_path: Path) -> None:
    """Another run's directory is called busy, without a hint to remove it."""
    work = tmp_path / "out.partial"
    work.mkdir()
    with (work / ".journal").open("w") as journal:
        fcntl.flock(journal, fcntl.LOCK_EX)

        result = run("partition", "ft", "--model", GOLDEN / "llama-a" / "hf", tmp_path / "out")

    assert result.code == 8
    assert "another llmcompile is at work in it" in result.err
    assert "rm -r" not in result.err


def test_an_encoder_without_its_flag_says_what_to_add(run: Run, tmp_path: Path) -> None:
    """T5EncoderModel needs --encoder-only, and is told so first."""
    model = copied("t5-a", tmp_path, architectures=["T5EncoderModel"])

    result = run("partition", "ft", "--model", model, tmp_path / "out")

    assert result.code == 4
    assert "add --encoder-only" in result.err


def test_nan_in_the_checkpoint_is_called_that(run: Run, tmp_path: Path) -> None:
    """Outputs of the model itself that are not finite are the reason given."""
    model = copied("llama-a", tmp_path)
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"][3] = np.nan
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})

    result = run("partition", "ft", "--model", model, tmp_path / "out")

    assert result.code == 7
    assert "of the model's own output are NaN or infinite" in result.err
