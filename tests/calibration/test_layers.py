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


# Two stacks


@pytest.mark.parametrize(("family", "sizes"), [("t5", (2, 3)), ("t5_v11", (2, 3)), ("bart", (2, 3))])
def test_either_stack_is_taken_apart(family: str, sizes: tuple[int, int], tmp_path: Path) -> None:
    """Layer by layer an encoder gives what it does in one piece; and a decoder, whatever the encoder gave."""
    folder, model = models.save(family, tmp_path), models.build(family)
    weights = StoredWeights([folder / "model.safetensors"])
    tokens = torch.arange(3 * 9).reshape(3, 9) % models.VOCAB
    behind = torch.cat((torch.full((3, 1), 2), tokens[:, :-1]), 1)
    encoder = Layers(folder, weights, stack="encoder", layers=sizes[0])
    decoder = Layers(folder, weights, stack="decoder", layers=sizes[1])
    last: list[torch.Tensor] = []

    def look(module: object, given: object, output: object) -> None:
        last.append(output if isinstance(output, torch.Tensor) else output[0])  # type: ignore[index]

    with torch.inference_mode():
        encoded = model.get_encoder()(input_ids=tokens).last_hidden_state
        model.get_submodule(decoder.name(sizes[1] - 1, "")[:-1]).register_forward_hook(look)
        model.get_decoder()(input_ids=behind, encoder_hidden_states=encoded)
        model.get_decoder()(input_ids=behind, encoder_hidden_states=encoded / 2)

    hidden = encoder.embed(tokens)
    for layer in range(sizes[0]):
        hidden = encoder.run(layer, hidden)
    given = encoder.finish(tokens, hidden)

    assert torch.allclose(given, encoded, rtol=1e-4, atol=1e-5)
    first = decoder.embed(behind, given)
    for share, wanted in zip((1, 2), last, strict=True):
        states = first
        for layer in range(sizes[1]):
            states = decoder.run(layer, torch.cat((states, given / share), 1))
        assert torch.allclose(states, wanted, rtol=1e-4, atol=1e-4)
