"""Which prompts a decoder's graphs are run on."""

from __future__ import annotations

from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st

from llmcompile import hlo
from llmcompile.hlo.wire import Message
from llmcompile.validation.neuron_artifact.decoder import GREEDY, batches, greedy_batch, lengths
from llmcompile.validation.neuron_artifact.graphs import CONTEXT, GENERATION, Graph, Value

sizes = st.integers(1, 70)


def graphs(buckets: list[int], sequence: int, batch: int) -> list[Graph]:
    """Graphs of a decoder with one layer, without programs."""
    states = tuple(Value(f"{kind}_cache_0", "f32", (batch, 1, sequence, 4)) for kind in "kv")

    def graph(name: str, kind: str, tokens: int) -> Graph:
        return Graph(
            path=Path(f"{name}.hlo.pb"),
            name=name,
            kind=kind,
            ranks=1,
            inputs=(Value("input_ids", "s32", (batch, tokens)), Value("position_ids", "s32", (batch, tokens))),
            states=states,
            weights=(),
            outputs=(Value("logits", "f32", (batch, 1, 9)),),
            module=hlo.Module(Message()),
        )

    contexts = [graph(f"{CONTEXT}_{bucket}", CONTEXT, bucket) for bucket in buckets]
    return [*contexts, graph(GENERATION, GENERATION, 1)]


def rows(batch: int, sequence: int) -> torch.Tensor:
    """Tokens that say where they are."""
    return torch.arange(batch * sequence).reshape(batch, sequence)


@given(bucket=sizes, more=st.integers(0, 9), batch=st.integers(1, 9))
def test_every_telling_length_is_run(bucket: int, more: int, batch: int) -> None:
    """The graph's own, one less, and 1; every row of every run has one that fits."""
    runs = lengths(bucket, bucket + more, batch)

    told = {length for run in runs for length in run}
    assert {bucket, max(1, bucket - 1), 1} <= told
    assert all(len(run) == batch and min(run) >= 1 and max(run) <= bucket for run in runs)


@given(bucket=st.integers(3, 70), more=st.integers(0, 9), batch=st.integers(1, 9))
def test_the_rows_of_a_run_differ_as_far_as_they_can(bucket: int, more: int, batch: int) -> None:
    """So that a row that looks at its neighbour's length is seen."""
    for run in lengths(bucket, bucket + more, batch):
        assert len(set(run)) >= min(batch, bucket - 1)


@given(bucket=st.integers(2, 70), more=st.integers(0, 9), batch=st.integers(1, 9))
def test_the_first_run_has_padding_and_room(bucket: int, more: int, batch: int) -> None:
    """It is the only one of a graph that is dear: some row is padded, and tokens can follow every row."""
    first = lengths(bucket, bucket + more, batch)[0]

    assert min(first) < bucket
    assert max(first) < bucket + more


@given(bucket=st.integers(2, 20), more=st.integers(0, 9), batch=st.integers(1, 4), switch=st.integers(1, 30))
def test_prompts_are_beginnings_of_their_rows_and_what_follows_is_next(
    bucket: int, more: int, batch: int, switch: int
) -> None:
    """No row grows past the caches, nor past where its rotary embedding would be another."""
    sequence = bucket + more
    made = list(batches(graphs([bucket], sequence, batch), rows(batch, sequence), lambda tokens: True, switch))

    for run in made:
        for row, (prompt, forced) in enumerate(zip(run.prompts, run.forced, strict=True)):
            text = (*prompt, *forced)
            assert text == tuple(range(row * sequence, row * sequence + len(text)))
            assert len(text) <= sequence
            assert len(prompt) > switch or len(text) <= switch


def test_the_longest_graph_comes_first_and_a_dear_one_runs_once() -> None:
    """Of three runs for one row, one is left."""
    made = list(batches(graphs([4, 8], 16, 1), rows(1, 16), lambda tokens: tokens < 8, None))

    assert [(run.graph.name, run.lengths) for run in made] == [
        ("context_encoding_8", (7,)),
        ("context_encoding_4", (3,)),
        ("context_encoding_4", (4,)),
        ("context_encoding_4", (1,)),
    ]


@given(
    bucket=st.integers(1, 70),
    more=st.integers(0, 70),
    batch=st.integers(1, 5),
    switch=st.none() | st.integers(1, 140),
    text=st.none() | st.integers(1, 90),
)
def test_greedy_tokens_fit_behind_their_prompts(
    bucket: int, more: int, batch: int, switch: int | None, text: int | None
) -> None:
    """As many as 32 where there is room; the last is not fed."""
    sequence = bucket + more
    prompt = None if text is None else torch.arange(text)[None]

    made = greedy_batch(graphs([bucket], sequence, batch), rows(batch, sequence), prompt, switch)

    longest = max(made.lengths)
    room = sequence if switch is None else min(switch, sequence)
    assert min(made.lengths) >= 1
    assert longest <= bucket
    assert 1 <= made.greedy <= GREEDY
    assert longest + made.greedy - 1 <= room
    assert made.greedy == GREEDY or longest + made.greedy - 1 == room
