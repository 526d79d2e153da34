"""Every architecture meets every backend: planned without a problem, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import pytest

import models
from llmcompile.architectures import ARCHITECTURES
from llmcompile.exporters.ft.layout import FAMILIES

if TYPE_CHECKING:
    from conftest import Run

_SHAPES = ("--batch-size", "1", "--sequence-length", "16", "--via", "xla", "--stop-after", "lower")
BACKENDS = {
    "ft": ("partition", "ft"),
    "trtllm": ("build", "trtllm", "--stop-after", "checkpoint"),
    "neuron": ("export", "neuron", "--task", "text-generation", *_SHAPES),
}
"""Backend -> what makes its artifact."""
PLANNED = {
    **{name: (*words, "--tp", "2") for name, words in BACKENDS.items()},
    "tensorrt-rtx": ("build", "tensorrt-rtx", "--stop-after", "onnx"),
}
"""The same for two ranks, and the backend whose artifacts take minutes to write for all families."""
FACTORY = {"gpt2": "gpt2", "opt": "opt", "bloom": "bloom", "gptj": "gptj", "gptneox": "gptneox", "llama": "llama"}
FACTORY |= {"bert": "bert", "t5": "t5", "falcon": "falcon_7b"}
FACTORY |= {
    architecture.name: architecture.name for architecture in ARCHITECTURES if architecture.name in models.FAMILIES
}
"""The factory of tests/models.py for each architecture."""
NO_FACTORY = {"qwen", "meta_llama"}
"""Transformers builds neither: the first runs the checkpoint's code, the second is not of its format."""
CLASSES = {name: made for made in ARCHITECTURES for name in made.classes if made.name not in NO_FACTORY}


def test_every_architecture_has_a_tiny_model() -> None:
    """A new family without a factory is not tested."""
    assert {architecture.name for architecture in ARCHITECTURES} - NO_FACTORY == FACTORY.keys()


def test_every_layout_is_of_an_architecture() -> None:
    """FasterTransformer knows no family that is not read."""
    assert FAMILIES.keys() <= {architecture.name for architecture in ARCHITECTURES}


@pytest.mark.parametrize("backend", PLANNED)
@pytest.mark.parametrize("family", models.FAMILIES)
def test_a_tiny_model_is_planned_or_refused_by_name(family: str, backend: str, run: Run, tmp_path: Path) -> None:
    """The plan has no problem, or the refusal says what the backend cannot represent."""
    model = models.save(family, tmp_path / "model")

    result = run(*PLANNED[backend], "--model", model, "--dry-run", "--json", tmp_path / "out")

    document = json.loads(result.out)
    error = document.get("error")
    assert result.code in (0, 4), result.err
    assert (result.code == 0) == (error is None)
    assert error is None or error["category"] == "unsupported"


@pytest.mark.parametrize("backend", [*BACKENDS, "tensorrt-rtx"])
@pytest.mark.parametrize("name", CLASSES)
def test_a_class_is_planned_or_refused_by_name(name: str, backend: str, run: Run, tmp_path: Path) -> None:
    """Every class name of the registry, on its family's tiny model, is planned or refused, never a traceback."""
    model = models.save(FACTORY[CLASSES[name].name], tmp_path / "model")
    config = json.loads((model / "config.json").read_text()) | {"architectures": [name]}
    (model / "config.json").write_text(json.dumps(config))

    words = {**PLANNED, **BACKENDS}[backend]
    result = run(*words, "--model", model, "--dry-run", tmp_path / "out")

    assert result.code in (0, 4), result.err
    assert result.code == 0 or name in result.err or "config.json" in result.err


REFUSED = {
    "ft": set(models.FAMILIES) - set(models.FT_FAMILIES),
    "trtllm": {"opt_350m", "gptneox_sequential", "bert"},
    "neuron": {"bert", "t5", "t5_v11", "mt5", "bart"},
}
"""Backend -> tiny models that it cannot represent."""
ONE_LAYER = MappingProxyType({"num_hidden_layers": 1, "n_layer": 1, "n_layers": 1})
"""What a graph is lowered of, which takes long; Gemma 2's second layer is another than its first."""


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", models.FAMILIES)
def test_a_tiny_model_is_written_and_validated_or_refused(family: str, backend: str, run: Run, tmp_path: Path) -> None:
    """What is planned is also right: no two of its axes are equal, so no wrong one can pass."""
    config = ONE_LAYER if backend == "neuron" and family != "gemma2" else {}
    model = models.save(family, tmp_path / "model", sharded=True, config=config)

    result = run(*BACKENDS[backend], "--model", model, "--tp", 2, tmp_path / "out")

    assert result.code == (4 if family in REFUSED[backend] else 0), result.err
