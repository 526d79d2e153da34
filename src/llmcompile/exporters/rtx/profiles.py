"""Optimization profiles: for each way a graph is used, the least, best and most of every size at run time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llmcompile.exporters.rtx.options import Range

BATCH, SEQUENCE, CHOICES = "batch", "sequence", "choices"
PAST, TOTAL, SOURCE = "past", "total", "source"
"""Names of axes. total = past + sequence; source: tokens of the encoder, as its decoder meets them."""


@dataclass(frozen=True)
class Profile:
    """One way a graph is used.

    Attributes:
        name: "encode", "prefill" or "decode".
        sizes: Name of an axis -> its range.
    """

    name: str
    sizes: Mapping[str, Range]

    def shapes(self, axes: Sequence[int | str]) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """The least, best and most shape of a tensor with these axes."""

        def at(which: str) -> tuple[int, ...]:
            return tuple(axis if isinstance(axis, int) else int(getattr(self.sizes[axis], which)) for axis in axes)

        return at("least"), at("best"), at("most")


def of_encoder(batch: Range, sequence: Range, choices: int) -> tuple[Profile, ...]:
    """An encoder has one."""
    return (Profile("encode", {BATCH: batch, SEQUENCE: sequence, CHOICES: Range(choices, choices, choices)}),)


def of_decoder(batch: Range, tokens: Range, source: Range | None = None) -> tuple[Profile, ...]:
    """A decoder reads a whole prompt into empty caches, then a token at a time into caches that grow.

    Args:
        batch: Sequences at once.
        tokens: Prompt and answer together.
        source: Tokens of the encoder, for a decoder that has one.
    """
    more = {} if source is None else {SOURCE: source}
    one, none = Range(1, 1, 1), Range(0, 0, 0)
    prefill = Profile("prefill", {BATCH: batch, SEQUENCE: tokens, PAST: none, TOTAL: tokens, **more})
    most = max(tokens.most - 1, 1)
    past = Range(1, max(1, min(tokens.best, most)), most)
    total = Range(2, past.best + 1, past.most + 1)
    return (prefill, Profile("decode", {BATCH: batch, SEQUENCE: one, PAST: past, TOTAL: total, **more}))
