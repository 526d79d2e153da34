"""A module that somebody else runs, beside the model: what it is fed, what is compared, and by which limit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray

import models
from llmcompile.validation.checks import Check
from llmcompile.validation.traced import Answers, Subject, validate

ROWS, TOKENS = 2, 6
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
Feed = Mapping[str, NDArray[Any]]
Change = Callable[[dict[str, NDArray[Any]]], dict[str, NDArray[Any]]]


class Module:
    """What transformers gives, changed, as a runtime would hand it over; notes what it was fed."""

    def __init__(self, folder: Path, change: Change = dict) -> None:
        self.model = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
        self.change = change
        self.fed: list[Feed] = []

    def __call__(self, inputs: Feed, names: tuple[str, ...]) -> tuple[Answers, str | None]:
        """Answer one set of inputs."""
        self.fed.append(inputs)
        with torch.no_grad():
            found = self.model(**{name: torch.from_numpy(array) for name, array in inputs.items()})
        return self.change({name: found[name].numpy() for name in ("last_hidden_state", "pooler_output")}), None


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder of one layer with its pooler."""
    return models.save("bert", tmp_path_factory.mktemp("bert") / "m", base=True, config={"num_hidden_layers": 1})


def subject(folder: Path, run: Any = None, **changed: Any) -> Subject:
    """The encoder, as somebody else compiled it."""
    made = Subject(
        checkpoint=folder,
        weight_files=(folder / "model.safetensors",),
        task="feature-extraction",
        shape=(ROWS, TOKENS),
        inputs=INPUTS,
        outputs=("last_hidden_state", "pooler_output"),
        dtype=torch.float32,
        arithmetic="fp32",
        layers=1,
        run=Module(folder) if run is None else run,
    )
    return replace(made, **changed)


def items(subject: Subject, atol: float | None = None, rtol: float | None = None) -> list[Check | str]:
    """All that a validation yields."""
    return list(validate(subject, atol=atol, rtol=rtol, trust_remote_code=False))


def verdicts(found: list[Check | str]) -> list[tuple[bool, bool]]:
    """Of each check: whether it decides, and whether it passed."""
    return [(item.decisive, item.comparison.passed) for item in found if isinstance(item, Check)]


def moved(by: float) -> Change:
    """Every state a little larger."""
    return lambda found: {**found, "last_hidden_state": found["last_hidden_state"] + np.float32(by)}


def test_the_model_itself_passes(bert: Path) -> None:
    """On full rows and on padded ones, every output."""
    found = items(subject(bert))

    assert [item.input for item in found if isinstance(item, Check)] == [
        "fixed tokens, full rows",
        "fixed tokens, padded rows",
    ]
    assert verdicts(found) == [(True, True), (True, True)]
    assert [item.comparison.names_expected for item in found if isinstance(item, Check)] == [
        ("last_hidden_state", "pooler_output")
    ] * 2


def test_padded_rows_are_shorter_and_shorter(bert: Path) -> None:
    """By one token and by two, filled up with the model's padding; full rows are whole."""
    module = Module(bert)

    items(subject(bert, module))

    full, padded = module.fed
    assert full["attention_mask"].sum(1).tolist() == [TOKENS, TOKENS]
    assert padded["attention_mask"].sum(1).tolist() == [TOKENS - 1, TOKENS - 2]
    assert set(padded["input_ids"][padded["attention_mask"] == 0].tolist()) == {module.model.config.pad_token_id}


def test_inputs_have_the_order_and_the_shape_of_the_module(bert: Path) -> None:
    """Those alone that it takes; of multiple choice, (batch, choices, sequence)."""
    fed: list[Feed] = []

    def run(inputs: Feed, names: tuple[str, ...]) -> tuple[Answers, str | None]:
        fed.append(inputs)
        return {}, "it was enough"

    items(subject(bert, run, shape=(2, 3, TOKENS), inputs=("attention_mask", "input_ids")))

    assert [(name, array.shape) for name, array in fed[0].items()] == [
        ("attention_mask", (2, 3, TOKENS)),
        ("input_ids", (2, 3, TOKENS)),
    ]


@pytest.mark.parametrize(("by", "passed"), [(0.9e-3, True), (1.2e-3, False)])
def test_the_limit_is_optimum_neurons(bert: Path, by: float, passed: bool) -> None:
    """A thousandth, and a hundred-thousandth of a value, which is at most 2 here."""
    assert verdicts(items(subject(bert, Module(bert, moved(by))))) == [(True, passed)] * 2


@pytest.mark.parametrize(("limits", "passed"), [((0.2, None), True), ((0.05, None), False), ((0.0, 1e6), True)])
def test_a_limit_that_was_given_is_taken(bert: Path, limits: tuple[float | None, float | None], passed: bool) -> None:
    """Absolute or relative, in the place of optimum-neuron's."""
    assert verdicts(items(subject(bert, Module(bert, moved(0.1))), *limits)) == [(True, passed)] * 2


def test_cast_arithmetic_has_a_limit_of_its_own(bert: Path) -> None:
    """What would be wrong in float32 is what bfloat16 costs."""
    module = Module(bert, moved(3e-3))

    assert verdicts(items(subject(bert, module, arithmetic="bf16"))) == [(True, True)] * 2


def test_weights_that_were_loaded_in_16_bits_are_expected_so(bert: Path) -> None:
    """The model is compared with its own weights rounded, in float32 arithmetic."""
    module = Module(bert)
    with torch.no_grad():
        for parameter in module.model.parameters():
            parameter.copy_(parameter.bfloat16().float())

    assert verdicts(items(subject(bert, module, dtype=torch.bfloat16))) == [(True, True)] * 2
    assert verdicts(items(subject(bert, module))) == [(True, False)] * 2


def test_a_module_that_cannot_run_here_is_said_once(bert: Path) -> None:
    """With the reason, and nothing is compared."""
    assert items(subject(bert, lambda inputs, names: ({}, "no NeuronCore"))) == [
        "the compiled model was not run: no NeuronCore"
    ]


def test_a_pooler_may_be_left_out(bert: Path) -> None:
    """As optimum-neuron does for some model types."""
    module = Module(bert, lambda found: {"last_hidden_state": found["last_hidden_state"]})

    assert verdicts(items(subject(bert, module))) == [(True, True)] * 2


def test_a_pooler_that_is_there_is_compared(bert: Path) -> None:
    """Zeros are not what it gives."""
    module = Module(bert, lambda found: {**found, "pooler_output": found["pooler_output"] * 0})

    assert verdicts(items(subject(bert, module))) == [(True, False)] * 2


def test_an_output_that_is_missing_fails(bert: Path) -> None:
    """The states are what the module is for."""
    module = Module(bert, lambda found: {"pooler_output": found["pooler_output"]})

    assert verdicts(items(subject(bert, module))) == [(True, False)] * 2


def test_token_embeddings_are_the_states(bert: Path) -> None:
    """By the name of sentence-transformers; their pooling, which transformers has not, is left out aloud."""
    module = Module(
        bert,
        lambda found: {
            "token_embeddings": found["last_hidden_state"],
            "sentence_embedding": found["last_hidden_state"].mean(1),
        },
    )

    found = items(subject(bert, module))

    assert verdicts(found) == [(True, True)] * 2
    assert [item for item in found if isinstance(item, str)] == [
        "sentence_embedding was not compared: it is the pooling of token_embeddings, which were"
    ] * 2
