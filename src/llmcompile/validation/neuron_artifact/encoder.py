"""Executes an encoder's graph: rows that are full, rows that are padded, and a text where there is a tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llmcompile.hlo import Module, serialize
from llmcompile.validation import xla
from llmcompile.validation.neuron_artifact.graphs import Graph
from llmcompile.validation.neuron_artifact.weights import Weights
from llmcompile.validation.reference import Facts, fixed_tokens
from llmcompile.validation.xla import Executable


@dataclass(frozen=True, kw_only=True)
class Feed:
    """What an encoder is fed.

    Attributes:
        name: For people.
        inputs: By name, int64, shape (rows, sequence) or (rows, choices, sequence); rows are a multiple of the batch.
    """

    name: str
    inputs: Mapping[str, Tensor]


def feeds(graph: Graph, facts: Facts, prompt: Tensor | None, *, times: int) -> Iterator[Feed]:
    """Inputs for a graph.

    Args:
        graph: Says which inputs, and of what shape.
        facts: Of the model.
        prompt: Shape (1, n): a text; None for none.
        times: Batches at once, for a graph of dynamic batch size.
    """
    *_, sequence = shape = (graph.shape[0] * times, *graph.shape[1:])
    rows = int(np.prod(shape[:-1]))
    whole = "rows" if times == 1 else f"{times} x {graph.shape[0]} rows"

    def feed(name: str, ids: Tensor, lengths: list[int]) -> Feed:
        mask = torch.arange(sequence)[None, :] < torch.tensor(lengths)[:, None]
        given = {
            "input_ids": torch.where(mask, ids, facts.pad),
            "attention_mask": mask.long(),
            "token_type_ids": _types(rows, sequence, facts.types),
        }
        return Feed(name=name, inputs={value.name: given[value.name].reshape(shape) for value in graph.inputs})

    yield feed(f"fixed tokens, full {whole}", _fixed(facts, rows, sequence, 0), [sequence] * rows)
    if sequence > 1:
        lengths = [max(1, sequence - 1 - row * (sequence - 1) // rows) for row in range(rows)]
        yield feed(f"fixed tokens, padded {whole}", _fixed(facts, rows, sequence, 1), lengths)
    if prompt is not None:
        given = prompt[0, :sequence]
        ids = torch.full((rows, sequence), facts.pad)
        ids[:, : len(given)] = given
        yield feed(f"a text, {whole}", ids, [max(1, len(given) - row) for row in range(rows)])


def _fixed(facts: Facts, rows: int, sequence: int, seed: int) -> Tensor:
    return fixed_tokens(facts.vocab, batch=rows, sequence=sequence, seed=seed)


def _types(rows: int, sequence: int, types: int) -> Tensor:
    """The second half of each row is of the second type, where the model has two."""
    second = (torch.arange(sequence) >= (sequence + 1) // 2).long()
    return (second if types > 1 else torch.zeros_like(second)).expand(rows, sequence)


class Encoder:
    """The graph, compiled, with its weights."""

    def __init__(self, graph: Graph, weights: Weights, module: Module | None = None) -> None:
        """Compile the graph, or a module of the same border in its place."""
        self._graph = graph
        self._weights = weights.of(graph)
        self._compiled = Executable(serialize(graph.module if module is None else module), 1, name=str(graph.path))

    def run(self, feed: Feed) -> dict[str, Tensor]:
        """Every output, float32, batch after batch."""
        batch = self._graph.shape[0]
        parts: list[list[Tensor]] = []
        for start in range(0, feed.inputs["input_ids"].shape[0], batch):
            given = [feed.inputs[value.name][start : start + batch].numpy() for value in self._graph.inputs]
            placed = [xla.place([values.astype(np.int32)]) for values in given]
            results = self._compiled.run([*placed, *self._weights])
            parts.append([torch.from_numpy(np.array(result.fetch()[0], dtype=np.float32)) for result in results])
        names = [value.name for value in self._graph.outputs]
        return {name: torch.cat(each) for name, each in zip(names, zip(*parts, strict=True), strict=True)}


def pooled(states: Tensor, mask: Tensor) -> Tensor:
    """The mean of a row's states where the mask is 1, of length 1: what sentence-transformers makes of them.

    Args:
        states: Shape (rows, sequence, hidden).
        mask: Shape (rows, sequence), 0 or 1.

    Source: UKPLab/sentence-transformers@master:sentence_transformers/models/Pooling.py, models/Normalize.py.
    """
    weight = mask[:, :, None].to(states.dtype)
    mean = (states * weight).sum(1) / weight.sum(1)
    return torch.nn.functional.normalize(mean, dim=-1)
