"""Which attention heads each tensor parallel rank holds, as neuronx-distributed places them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from llmcompile.architectures.spec import Dims
from llmcompile.plan import Slots


@dataclass(frozen=True)
class Heads:
    """The attention heads of a model and their places on ranks.

    Every rank holds as many query heads, each beside the key and value head it reads. Where the heads do not divide,
    query heads of zeros fill up, and key and value heads are repeated: to one per rank where the ranks are a multiple
    of them, to one per query head otherwise.

    Attributes:
        query: Query heads of the model.
        kv: Key and value heads of the model; `query` is a multiple of it.

    Source: huggingface/optimum-neuron@v0.4.5:optimum/neuron/models/inference/backend/modules/attention/gqa.py
    (get_shardable_head_counts, maybe_pad_interleaved, maybe_pad_tail, replicate_kv). Where key and value heads neither
    divide the ranks nor are divided by them, 0.4.5 itself fails (split_with_sizes); this is the arithmetic it means.
    """

    query: int
    kv: int

    def query_slots(self, ranks: int) -> tuple[Slots, ...]:
        """Query heads of each rank; None for one of zeros."""
        return _query_slots(self.query, self.kv, ranks)

    def kv_slots(self, ranks: int) -> tuple[Slots, ...]:
        """Key and value heads of each rank; None for one of zeros."""
        return _kv_slots(self.query, self.kv, ranks)

    def slots(self, role: str, ranks: int) -> tuple[Slots, ...]:
        """What each rank holds of the heads of a role: attn.q and attn.o have query heads, attn.k and attn.v others."""
        return self.query_slots(ranks) if role.split(".")[1] in ("q", "o") else self.kv_slots(ranks)

    def queries_per_rank(self, ranks: int) -> int:
        """Query heads on every rank, those of zeros included."""
        return len(self.query_slots(ranks)[0])

    def kv_per_rank(self, ranks: int) -> int:
        """Key and value heads on every rank, those of zeros included."""
        return len(self.kv_slots(ranks)[0])


def heads_of(dims: Dims) -> Heads:
    """The heads of a model; as many for keys and values as for queries where its family does not say."""
    return Heads(dims.sizes["heads"], dims.sizes.get("kv_heads", dims.sizes["heads"]))


@lru_cache
def _query_slots(heads: int, kv_heads: int, ranks: int) -> tuple[Slots, ...]:
    total = -(-heads // ranks) * ranks
    order: list[int | None] = list(range(heads))
    if ranks % kv_heads == 0:
        group, padded = heads // kv_heads, total // kv_heads
        order = [kv * group + index if index < group else None for kv in range(kv_heads) for index in range(padded)]
    return _dealt(order, total, ranks)


@lru_cache
def _kv_slots(heads: int, kv_heads: int, ranks: int) -> tuple[Slots, ...]:
    order: list[int | None]
    if kv_heads % ranks == 0:
        order, total = list(range(kv_heads)), kv_heads
    elif ranks % kv_heads == 0:
        order, total = [kv for kv in range(kv_heads) for _ in range(ranks // kv_heads)], ranks
    else:
        total = -(-heads // ranks) * ranks
        order = [head // (heads // kv_heads) for head in range(heads)]
    return _dealt(order, total, ranks)


def _dealt(order: list[int | None], total: int, ranks: int) -> tuple[Slots, ...]:
    """`order`, filled up with None, in equal parts."""
    filled = order + [None] * (total - len(order))
    each = total // ranks
    return tuple(tuple(filled[rank * each : (rank + 1) * each]) for rank in range(ranks))
