"""Executes a decoder's graphs: prompts through every context graph, then tokens one at a time, caches carried over.

Prompts are right-padded with token 0 at position 0. Before each, caches are full of what no model computed, as on a
device that has served other requests: a slot that is not written, or read though it is not part of the text, shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from llmcompile.hlo import Module, Shape, serialize
from llmcompile.validation import xla
from llmcompile.validation.neuron_artifact.graphs import CONTEXT, GENERATION, Graph
from llmcompile.validation.neuron_artifact.weights import Weights
from llmcompile.validation.xla import Array, Buffers, Executable

GREEDY: Final = 32
"""Tokens that are generated, the first of which the prompt's own run gives."""
_FORCED: Final = 2
"""Tokens fed after each prompt, so that the caches every context graph writes are read."""
_LONGEST_PROMPT: Final = 32
_STALE: Final = 1.0
"""What caches hold before a prompt."""

Row = tuple[int, ...]
Rewrite = Callable[[Graph], Module]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One prompt for each row of a context graph, and what is fed after them.

    Attributes:
        graph: The context graph.
        prompts: Token ids, at least one each, at most as many as the graph takes.
        forced: Tokens fed one at a time after each prompt, equally many for each; empty for greedy generation.
        greedy: Tokens to generate; the last is not fed.
        text: Whether the first prompt is a text.
    """

    graph: Graph
    prompts: tuple[Row, ...]
    forced: tuple[Row, ...] = ()
    greedy: int = 0
    text: bool = False

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each prompt."""
        return tuple(len(prompt) for prompt in self.prompts)


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What came of a batch.

    Attributes:
        sequences: Shape (batch, tokens), int64: prompts and what was fed after them, filled up with 0.
        positions: Shape (batch, kept), int64: where logits were given.
        logits: Shape (batch, kept, vocab), float32; of rank 0.
        disagreement: Largest difference of another rank's logits; NaN where only one of the two is a number.
    """

    sequences: Tensor
    positions: Tensor
    logits: Tensor
    disagreement: float


def batches(
    graphs: Sequence[Graph], rows: Tensor, affordable: Callable[[int], bool], switch: int | None
) -> Iterator[Batch]:
    """Prompts for every context graph, the longest graph first.

    Lengths are the graph's, one less, and 1; the rows of a batch differ. Every prompt is the beginning of its row, so
    that one run of the model tells all of them, and is followed by its row's next tokens.

    Args:
        graphs: Context graphs by ascending length, and the generation graph.
        rows: Shape (batch, sequence), the longest graph's.
        affordable: Whether more than one run of a graph of some length is.
        switch: Tokens beyond which a sequence's rotary embedding is another, so that none grows past it; None for
            never.
    """
    batch, longest = rows.shape
    for graph in reversed([graph for graph in graphs if graph.kind == CONTEXT]):
        runs = lengths(graph.shape[1], longest, batch)
        for run in runs if affordable(graph.shape[1]) else runs[:1]:
            ends = [longest if switch is None or length > switch else min(switch, longest) for length in run]
            fed = min(_FORCED, *(end - length for end, length in zip(ends, run, strict=True)))
            prompts = tuple(tuple(rows[row, :length].tolist()) for row, length in enumerate(run))
            forced = tuple(tuple(rows[row, length : length + fed].tolist()) for row, length in enumerate(run))
            yield Batch(graph=graph, prompts=prompts, forced=forced)


def lengths(bucket: int, sequence: int, batch: int) -> list[list[int]]:
    """How long the prompts of each run of a context graph are, the most telling run first.

    Args:
        bucket: Tokens of the graph.
        sequence: Tokens of the caches.
        batch: Rows of each run.

    Returns:
        Every list has `batch` lengths, in [1, bucket], different ones as far as there are.
    """
    told = {bucket - 1, bucket, 1} - {0}
    # A row that fills the caches leaves no room for what follows, so that run ends without.
    groups = [sorted(told, reverse=True)] if bucket < sequence else [sorted(told - {bucket}, reverse=True), [bucket]]
    runs = [group[at : at + batch] for group in groups for at in range(0, len(group), batch)]
    if bucket < sequence and len(runs) > 1 and batch == 1:
        runs = [runs[1], runs[0], *runs[2:]]
    most = [bucket - 1 if bucket == sequence and bucket not in run else bucket for run in runs]
    return [run + _spread(longest, batch - len(run), run) for run, longest in zip(runs, most, strict=True)]


def _spread(longest: int, count: int, avoided: Sequence[int]) -> list[int]:
    """Lengths up to the longest for some more rows."""
    free = [length for length in range(longest, 0, -1) if length not in avoided]
    free = free if len(free) > 0 else [longest]
    return [free[at * len(free) // count] if count <= len(free) else free[at % len(free)] for at in range(count)]


def greedy_batch(graphs: Sequence[Graph], rows: Tensor, prompt: Tensor | None, switch: int | None) -> Batch:
    """Prompts for the shortest context graph, and how many tokens follow.

    Args:
        graphs: Context graphs by ascending length, and the generation graph.
        rows: Shape (batch, n): tokens for prompts.
        prompt: Shape (1, n): a text for the first row; None for none.
        switch: Tokens beyond which a sequence's rotary embedding is another; None for never.
    """
    graph = next(graph for graph in graphs if graph.kind == CONTEXT)
    room = _sequence(graphs) if switch is None else min(switch, _sequence(graphs))
    batch = graph.shape[0]
    longest = max(1, min(graph.shape[1], _LONGEST_PROMPT, room - GREEDY + 1 if room > GREEDY else room // 2))
    prompts = [tuple(rows[row, : max(1, longest * (batch - row) // batch)].tolist()) for row in range(batch)]
    if prompt is not None:
        prompts[0] = tuple(prompt[0, :longest].tolist())
    most = max(len(row) for row in prompts)
    greedy = min(GREEDY, room - most + 1)
    return Batch(graph=graph, prompts=tuple(prompts), greedy=greedy, text=prompt is not None)


def _sequence(graphs: Sequence[Graph]) -> int:
    return graphs[-1].states[0].shape[2]


class Ranks:
    """All ranks with their weights and caches."""

    def __init__(self, graphs: Sequence[Graph], weights: Weights, rewrite: Rewrite | None = None) -> None:
        """Prepare to run some graphs.

        Args:
            graphs: Of one artifact; all share the weights and caches.
            weights: The ranks' tensors.
            rewrite: What is run in a graph's place; of the same inputs and weights, its states may be wider.
        """
        self._weights = weights
        self._rewrite = rewrite
        self._generation = next(graph for graph in graphs if graph.kind == GENERATION)
        self._compiled: dict[str, Executable] = {}
        self._states: list[Buffers] = []
        self._kinds: list[Shape] = []
        self._ranks = self._generation.ranks

    def answer(self, batch: Batch) -> Answers:
        """Run a batch."""
        self._states = []
        kept = [self._context(batch)]
        sequences = [list(prompt) for prompt in batch.prompts]
        positions = [np.array(batch.lengths, dtype=np.int64) - 1]
        for step in range(max(batch.greedy - 1, len(batch.forced[0]) if len(batch.forced) > 0 else 0)):
            if batch.greedy > 0:
                fed = [int(token) for token in kept[-1][0].argmax(axis=-1)]
            else:
                fed = [row[step] for row in batch.forced]
            for row, token in zip(sequences, fed, strict=True):
                row.append(token)
            positions.append(positions[-1] + 1)
            ids = np.array(fed, dtype=np.int32)[:, None]
            kept.append(self._run(self._generation, ids, positions[-1].astype(np.int32)[:, None]))
        longest = max(len(row) for row in sequences)
        return Answers(
            sequences=torch.tensor([row + [0] * (longest - len(row)) for row in sequences]),
            positions=torch.from_numpy(np.stack(positions, axis=1)),
            logits=torch.from_numpy(np.stack([logits[0] for logits in kept], axis=1)),
            disagreement=max(_disagreement(logits) for logits in kept),
        )

    def _context(self, batch: Batch) -> Array:
        ids = np.zeros(batch.graph.shape, dtype=np.int32)
        positions = np.zeros(batch.graph.shape, dtype=np.int32)
        for row, prompt in enumerate(batch.prompts):
            ids[row, : len(prompt)] = prompt
            positions[row, : len(prompt)] = np.arange(len(prompt))
        return self._run(batch.graph, ids, positions)

    def _run(self, graph: Graph, ids: Array, positions: Array) -> Array:
        """The logits of every rank and row, float32, shape (ranks, batch, vocab)."""
        if graph.name not in self._compiled:
            module = graph.module if self._rewrite is None else self._rewrite(graph)
            self._compiled[graph.name] = Executable(serialize(module), graph.ranks, name=str(graph.path))
            self._kinds = [one.shape for one in module.parameters[len(graph.inputs) :][: len(graph.states)]]
        if len(self._states) == 0:
            self._states = [_stale(shape, self._ranks) for shape in self._kinds]
        inputs = {"input_ids": ids, "position_ids": positions}
        placed = [xla.place([inputs[value.name]] * self._ranks) for value in graph.inputs]
        logits, *states = self._compiled[graph.name].run([*placed, *self._states, *self._weights.of(graph)])
        self._states = list(states)
        return np.stack([share[:, 0].astype(np.float32) for share in logits.fetch()])


def _stale(shape: Shape, ranks: int) -> Buffers:
    share = np.full(shape.dims, _STALE, dtype=xla.element_type(shape.dtype))
    return xla.place([share] * ranks, copied=True)


def _disagreement(logits: Array) -> float:
    """Largest difference of another rank's logits from rank 0's."""
    others = logits[1:]
    return (
        0.0
        if others.size == 0 or np.array_equal(others, np.broadcast_to(logits[0], others.shape))
        else _largest(logits)
    )


def _largest(logits: Array) -> float:
    return float(np.abs(logits[1:].astype(np.float64) - logits[0]).max())
