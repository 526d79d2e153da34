"""Query heads and the key and value heads they read are on the same rank, as neuronx-distributed places them."""

from __future__ import annotations

from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcompile.architectures.spec import Dims
from llmcompile.exporters.neuron.heads import Heads, heads_of

HEADS = st.builds(lambda kv, group: Heads(kv * group, kv), st.integers(1, 16), st.integers(1, 8))
RANKS = st.integers(1, 32)


@given(heads=HEADS, ranks=RANKS)
def test_every_query_head_is_on_one_rank(heads: Heads, ranks: int) -> None:
    """Beside them there are zeros alone, fewer than there are ranks for each key head."""
    held = list(chain.from_iterable(heads.query_slots(ranks)))

    assert sorted(head for head in held if head is not None) == list(range(heads.query))
    assert len(held) - heads.query < ranks


@given(heads=HEADS, ranks=RANKS)
def test_each_query_reads_its_own_key_head(heads: Heads, ranks: int) -> None:
    """A rank's queries are dealt to its key heads in equal runs, each run on the head its queries belong to."""
    for queries, keys in zip(heads.query_slots(ranks), heads.kv_slots(ranks), strict=True):
        assert len(queries) % len(keys) == 0
        run = len(queries) // len(keys)
        for place, query in enumerate(queries):
            if query is not None:
                assert keys[place // run] == query // (heads.query // heads.kv)


@given(heads=HEADS, ranks=RANKS)
def test_all_ranks_have_equally_many(heads: Heads, ranks: int) -> None:
    """One graph serves them all."""
    assert {len(held) for held in heads.query_slots(ranks)} == {heads.queries_per_rank(ranks)}
    assert {len(held) for held in heads.kv_slots(ranks)} == {heads.kv_per_rank(ranks)}


@given(heads=HEADS)
def test_one_rank_has_the_model_as_it_is(heads: Heads) -> None:
    """Nothing is repeated and nothing added."""
    assert heads.query_slots(1) == (tuple(range(heads.query)),)
    assert heads.kv_slots(1) == (tuple(range(heads.kv)),)


def test_queries_are_filled_up_inside_their_group() -> None:
    """The vendor's example: of 56 heads in 8 groups on 32 ranks, the fourth rank has the seventh and zeros."""
    heads = Heads(56, 8)

    assert heads.query_slots(32)[:5] == ((0, 1), (2, 3), (4, 5), (6, None), (7, 8))
    assert heads.kv_slots(32)[:5] == ((0,), (0,), (0,), (0,), (1,))


def test_key_heads_are_repeated_for_every_query_where_neither_number_divides() -> None:
    """Of 9 heads in 3 groups on 4 ranks, every query has a key head of its own, and the last rank has zeros alone."""
    heads = Heads(9, 3)

    assert heads.query_slots(4) == ((0, 1, 2), (3, 4, 5), (6, 7, 8), (None, None, None))
    assert heads.kv_slots(4) == ((0, 0, 0), (1, 1, 1), (2, 2, 2), (None, None, None))


@pytest.mark.parametrize(
    ("role", "first"), [("attn.q.bias", 0), ("attn.o.weight", 0), ("attn.k.weight", 0), ("attn.v.bias", 0)]
)
def test_roles_of_attention_have_their_own_slots(role: str, first: int) -> None:
    """Queries and outputs count query heads, keys and values key heads."""
    heads = Heads(8, 2)

    expected = heads.query_slots(4) if role[5] in "qo" else heads.kv_slots(4)
    assert heads.slots(role, 4) == expected
    assert heads.slots(role, 4)[0][0] == first


def test_a_family_without_key_heads_has_as_many_as_queries() -> None:
    """GPT-2's sizes do not name them."""
    assert heads_of(Dims({"heads": 6}, {})) == Heads(6, 6)
    assert heads_of(Dims({"heads": 6, "kv_heads": 3}, {})) == Heads(6, 3)
