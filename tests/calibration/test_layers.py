"""A model taken apart at its layers computes what it computes in one piece."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import models
from llmcompile.calibration.layers import Layers
from llmcompile.validation.checks import StoredWeights

FAMILIES = sorted(models.FAMILIES.keys() - {"bert", "t5", "t5_v11", "mt5", "bart", "opt_350m", "gptneox_sequential"})


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`saved(family)` is a checkpoint, made once."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            made[family] = models.save(family, tmp_path_factory.mktemp("model"))
        return made[family]

    return make


def taken_apart(folder: Path) -> Layers:
    """The layers of a checkpoint."""
    return Layers(folder, StoredWeights([folder / "model.safetensors"]))


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_one_by_one_are_the_model(family: str, saved: Callable[[str], Path]) -> None:
    """Hidden states before each layer are those transformers reports, for batches of either size."""
    # Eager Falcon adds its ALiBi twice in transformers 4.57; Gemma 2's caps are in eager attention alone.
    model = models.build(family, config={} if family == "falcon_rw" else {"attn_implementation": "eager"})
    tokens = torch.arange(3 * 11).reshape(3, 11) * 7 % models.VOCAB
    layers = taken_apart(saved(family))
    batches = [tokens[:2], tokens[2:]]

    hidden = [layers.embed(batch) for batch in batches]
    found = [torch.cat(hidden)]
    hidden = [layers.run(0, states) for states in hidden]
    found.append(torch.cat(hidden))

    with torch.inference_mode():
        expected = model(tokens, output_hidden_states=True).hidden_states
    for mine, theirs in zip(found, expected, strict=False):
        assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


def test_parameters_are_named_as_the_model_names_them(saved: Callable[[str], Path]) -> None:
    """So that a tensor of the checkpoint is found for each."""
    layers = taken_apart(saved("gpt2"))

    assert layers.stored[layers.name(1, "mlp.c_fc.weight")] == "transformer.h.1.mlp.c_fc.weight"
