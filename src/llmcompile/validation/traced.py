"""Compares what a traced encoder, run by whoever can run it, answers with the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import torch
from numpy.typing import NDArray
from torch import Tensor

from llmcompile.validation import reference
from llmcompile.validation.checks import Check, StoredWeights
from llmcompile.validation.compare import compare, scale
from llmcompile.validation.reference import fixed_tokens
from llmcompile.validation.tolerances import Dtype, Tolerance, tolerance

ARTIFACT: Final = "Neuron model"
EXECUTOR: Final = "model.neuron itself, by torch_neuronx"
ATOL: Final = 1e-3
"""optimum-neuron's own limit for nearly all encoders.

Source: optimum-neuron 0.4.5:optimum/exporters/neuron/model_configs.py (ATOL_FOR_VALIDATION) and base.py, its default.
"""
_RTOL: Final = 1e-5
"""That of torch.allclose, which optimum-neuron compares with."""
_SAME: Mapping[str, str] = MappingProxyType({"token_embeddings": "last_hidden_state"})
"""What sentence-transformers calls an output -> what transformers does."""
_POOLED = "sentence_embedding"
"""What sentence-transformers makes of those, which transformers has not."""

Answers = Mapping[str, NDArray[Any]]
Run = Callable[[Mapping[str, NDArray[Any]], tuple[str, ...]], tuple[Answers, str | None]]
"""(inputs by name in the module's order, names of results) -> results by name, or why it cannot run here."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is validated.

    Attributes:
        checkpoint: Folder of the model.
        weight_files: Its files of weights.
        task: One of `reference.TASKS`.
        shape: Of every input: (batch, sequence), or (batch, choices, sequence).
        inputs: Names of inputs, in the module's order.
        outputs: Names of results, in the module's order.
        dtype: What the weights were loaded as.
        arithmetic: What the compiler computes in: fp32, or what it was told to cast to.
        layers: Of the model.
        run: Runs the module.
    """

    checkpoint: Path
    weight_files: tuple[Path, ...]
    task: str
    shape: tuple[int, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dtype: torch.dtype
    arithmetic: Dtype
    layers: int
    run: Run


def validate(
    subject: Subject, *, atol: float | None, rtol: float | None, trust_remote_code: bool
) -> Iterator[Check | str]:
    """Run the module on full and on padded rows, and compare it with the model in float32.

    Args:
        subject: What to validate.
        atol: Absolute tolerance; None for optimum-neuron's.
        rtol: Relative tolerance likewise.
        trust_remote_code: Let transformers run the checkpoint's own code.

    Yields:
        A `Check` for each set of inputs, or a sentence that says why the module cannot run here.
    """
    weights = StoredWeights(subject.weight_files)
    for name, inputs in _feeds(subject, trust_remote_code):
        arrays = {key: value.numpy() for key, value in inputs.items()}
        answers, reason = subject.run(arrays, subject.outputs)
        if reason is not None:
            yield f"the compiled model was not run: {reason}"
            return
        if _POOLED in answers:
            yield f"{_POOLED} was not compared: it is the pooling of token_embeddings, which were"
        found = {_SAME.get(key, key): values for key, values in answers.items() if key != _POOLED}
        expected = reference.run_task(
            subject.checkpoint,
            weights,
            task=subject.task,
            inputs=inputs,
            rounded_to=None if subject.dtype == torch.float32 else subject.dtype,
            trust_remote_code=trust_remote_code,
        )
        wanted = {key: value for key, value in expected.items() if key in found or key not in _OPTIONAL}
        limits = {key: _limit(subject, values, atol, rtol) for key, values in wanted.items()}
        yield Check(
            input=name,
            reference="the model in float32",
            comparison=compare(wanted, found, limits),
            decisive=True,
        )


def _limit(subject: Subject, expected: Tensor, atol: float | None, rtol: float | None) -> Tolerance:
    """optimum-neuron's own limit, or, of what the compiler casts, that of arithmetic of so many bits."""
    if subject.arithmetic != "fp32":
        return tolerance(
            "fp32",
            layers=subject.layers,
            scale=scale(expected),
            approximate=False,
            arithmetic=subject.arithmetic,
            atol=atol,
            rtol=rtol,
        )
    reason = "optimum-neuron's own limit"
    return Tolerance(atol=ATOL if atol is None else atol, rtol=_RTOL if rtol is None else rtol, reason=reason)


_OPTIONAL = ("pooler_output",)
"""Outputs that optimum-neuron leaves out for some model types."""


def _feeds(subject: Subject, trust_remote_code: bool) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    facts = reference.describe(subject.checkpoint, trust_remote_code=trust_remote_code)
    *leading, sequence = subject.shape
    rows = int(torch.tensor(leading).prod())
    for name, lengths in (
        ("fixed tokens, full rows", [sequence] * rows),
        ("fixed tokens, padded rows", [max(1, sequence - 1 - row) for row in range(rows)]),
    ):
        mask = torch.arange(sequence)[None, :] < torch.tensor(lengths)[:, None]
        given = {
            "input_ids": torch.where(mask, fixed_tokens(facts.vocab, batch=rows, sequence=sequence), facts.pad),
            "attention_mask": mask.long(),
            "token_type_ids": torch.zeros((rows, sequence), dtype=torch.int64),
        }
        yield name, {key: given[key].reshape(subject.shape) for key in subject.inputs}
