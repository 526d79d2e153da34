"""Exports through optimum-neuron, by a stand-in for it: what it makes is run, compared, recorded, refused if wrong."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
import transformers

import models
import optimum_standin as standin

if TYPE_CHECKING:
    from conftest import Result, Run

SHAPES = ("--batch_size", 1, "--sequence_length", 16)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder."""
    return models.save("bert", tmp_path_factory.mktemp("bert") / "model")


class Device(torch.nn.Module):
    """A module that runs nowhere here."""

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
        """Nothing."""
        if ids.dim() == 2:
            raise RuntimeError("no NeuronCore")
        return ids + mask + types


def traced(model: Path, path: Path, *, scale: float) -> Path:
    """What torch_neuronx.trace would give if it computed on the CPU; every weight times `scale`."""
    auto = transformers.AutoModelForMaskedLM.from_pretrained(model).eval()
    with torch.no_grad():
        for parameter in auto.parameters():
            parameter.mul_(scale)

    class Logits(torch.nn.Module):
        """Takes a tuple, gives a tuple."""

        def __init__(self) -> None:
            super().__init__()
            self.model = auto

        def forward(self, ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor) -> tuple[torch.Tensor]:
            """Logits."""
            return (self.model(input_ids=ids, attention_mask=mask, token_type_ids=types).logits,)

    ones = torch.ones((1, 16), dtype=torch.int64)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(Logits().eval(), (ones, ones, torch.zeros_like(ones))), path)
    return path


@pytest.fixture(scope="module")
def right(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model, traced."""
    return traced(bert, tmp_path_factory.mktemp("traced") / "model.neuron", scale=1)


@pytest.fixture(scope="module")
def wrong(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model, traced."""
    return traced(bert, tmp_path_factory.mktemp("traced") / "model.neuron", scale=0.5)


def export(run: Run, model: Path, python: Path, output: Path, *words: object) -> Result:
    """An export through an interpreter."""
    return run("export", "neuron", "-m", model, *SHAPES, "--toolchain-python", python, *words, output)


def test_what_it_made_is_run_and_recorded(run: Run, bert: Path, right: Path, tmp_path: Path) -> None:
    """The artifact is optimum-neuron's own layout, with our record beside it; the traced model agrees."""
    python = standin.install(tmp_path / "sdk", right, real_torch=True)
    result = export(run, bert, python, tmp_path / "out", "--auto_cast", "matmul")

    assert result.code == 0, result.err
    found = json.loads((tmp_path / "out" / "llmcompile.json").read_text())
    assert (found["neuron"]["via"], found["neuron"]["layout"], found["neuron"]["status"]) == (
        "optimum",
        "optimum",
        "compiled",
    )
    assert len(found["validation"]["comparisons"]) == 2
    assert found["validation"]["passed"] is True
    section = json.loads((tmp_path / "out" / "config.json").read_text())["neuron"]
    assert (section["auto_cast"], section["static_sequence_length"]) == ("matmul", 16)
    assert run("verify", tmp_path / "out").code == 0


def test_a_wrong_model_fails_the_build(run: Run, bert: Path, wrong: Path, tmp_path: Path) -> None:
    """optimum-neuron's own validation only warns; ours ends with 7, and the artifact does not appear."""
    python = standin.install(tmp_path / "sdk", wrong, real_torch=True)
    result = export(run, bert, python, tmp_path / "out")

    assert result.code == 7
    assert "logits" in result.err
    assert not (tmp_path / "out").exists()


def test_what_cannot_run_here_is_said(run: Run, bert: Path, tmp_path: Path) -> None:
    """A module that raises, as one does that needs a device: the record has a note in place of a verdict."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(Device()), tmp_path / "model.neuron")
    module = tmp_path / "model.neuron"
    python = standin.install(tmp_path / "sdk", module, real_torch=True)
    result = export(run, bert, python, tmp_path / "out")

    assert result.code == 0, result.err
    found = json.loads((tmp_path / "out" / "llmcompile.json").read_text())
    assert found["validation"]["comparisons"] == []
    assert any("was not run" in note for note in found["validation"]["notes"])


def test_auto_takes_optimum_where_it_is_whole(
    run: Run, bert: Path, right: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LLMCOMPILE_NEURON_PYTHON names the interpreter; --via xla still leads our own way."""
    python = standin.install(tmp_path / "sdk", right)
    monkeypatch.setenv("LLMCOMPILE_NEURON_PYTHON", str(python))
    words = ("-m", bert, *SHAPES, "--dry-run", "--json")
    auto = run("export", "neuron", *words, tmp_path / "out")
    own = run("export", "neuron", *words, "--via", "xla", "--stop-after", "lower", tmp_path / "out")

    assert [json.loads(result.out)["plan"]["via"] for result in (auto, own)] == ["optimum", "xla"]


def test_a_placeholder_is_no_sdk(run: Run, bert: Path, tmp_path: Path) -> None:
    """PyPI's packages of AWS's names are told by their versions, each by name, with the ways on."""
    python = standin.install(tmp_path / "sdk", packages=standin.PLACEHOLDERS)
    result = export(run, bert, python, tmp_path / "out", "--via", "optimum")

    assert result.code == 6
    assert "placeholder" in result.err
    assert "--via xla" in result.err


def test_a_task_of_its_own_goes_through_it(run: Run, bert: Path, right: Path, tmp_path: Path) -> None:
    """Image classification is nothing our own lowering has; without an SDK that is exit code 6."""
    config = json.loads((bert / "config.json").read_text())
    folder = tmp_path / "vit"
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({**config, "model_type": "vit", "architectures": ["ViTForImageClassification"]})
    )
    without = run("export", "neuron", "-m", folder, "--batch_size", 1, tmp_path / "out")
    ours = run("export", "neuron", "-m", folder, "--batch_size", 1, "--via", "xla", tmp_path / "out")
    python = standin.install(tmp_path / "sdk", right, real_torch=True)
    through = run("export", "neuron", "-m", folder, "--batch_size", 1, "--toolchain-python", python, tmp_path / "out")

    assert (without.code, ours.code, through.code) == (6, 4, 0), through.err


def test_a_decoder_goes_through_its_own_classes(run: Run, right: Path, tmp_path: Path) -> None:
    """neuronx-distributed's layout: the traced model, neuron_config.json and a file of weights for each rank."""
    llama = models.save("llama", tmp_path / "llama")
    python = standin.install(tmp_path / "sdk", right)
    result = export(run, llama, python, tmp_path / "out", "--num_cores", 2)

    assert result.code == 0, result.err
    files = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert files >= {
        "model.pt",
        "neuron_config.json",
        "checkpoint/weights/tp0_sharded_checkpoint.safetensors",
        "checkpoint/weights/tp1_sharded_checkpoint.safetensors",
    }
