"""What a lowered graph takes and gives, in the order of its HLO parameters: the file beside each graph.

Parameters are numbered: inputs first, then states, then weights. The graph's results are its outputs, then its states.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmcompile.dtypes import Shape

FORMAT = 1
"""Version of the file."""
CONTEXT, GENERATION, ENCODER = "context_encoding", "token_generation", "encoder"
"""Kinds of graph."""


@dataclass(frozen=True)
class Value:
    """A tensor at the border of a graph.

    Attributes:
        name: Of an input or output, what transformers calls it; of a state, ours; of a weight, the tensor in the
            rank's file of weights.
        dtype: XLA's name of the element type: "s32", "f32", "bf16", "f16", "pred", ...
        shape: Of one rank's share.
    """

    name: str
    dtype: str
    shape: Shape


@dataclass(frozen=True, kw_only=True)
class Signature:
    """A graph's border.

    Attributes:
        name: File name of the graph without ending: "model", "context_encoding_128", "token_generation".
        kind: "encoder", "context_encoding" or "token_generation".
        ranks: Ranks that run the graph together.
        inputs: What a caller feeds.
        states: Key and value caches, donated: each is replaced by the result of its name.
        weights: Tensors of the rank's file of weights.
        outputs: What a caller gets.
    """

    name: str
    kind: str
    ranks: int
    inputs: tuple[Value, ...]
    states: tuple[Value, ...]
    weights: tuple[Value, ...]
    outputs: tuple[Value, ...]


def to_json(signature: Signature) -> str:
    """The file's text."""

    def values(items: tuple[Value, ...]) -> list[dict[str, Any]]:
        return [{"name": item.name, "dtype": item.dtype, "shape": list(item.shape)} for item in items]

    content = {
        "format": FORMAT,
        "name": signature.name,
        "kind": signature.kind,
        "ranks": signature.ranks,
        "inputs": values(signature.inputs),
        "states": values(signature.states),
        "weights": values(signature.weights),
        "outputs": values(signature.outputs),
    }
    return json.dumps(content, indent=1) + "\n"


def from_json(content: Mapping[str, Any]) -> Signature:
    """Read what `to_json` wrote, parsed.

    Raises:
        ValueError: It is another format.
    """
    if content.get("format") != FORMAT:
        raise ValueError(f"format {content.get('format')}, expected {FORMAT}")

    def values(key: str) -> tuple[Value, ...]:
        return tuple(Value(item["name"], item["dtype"], tuple(item["shape"])) for item in content[key])

    return Signature(
        name=content["name"],
        kind=content["kind"],
        ranks=content["ranks"],
        inputs=values("inputs"),
        states=values("states"),
        weights=values("weights"),
        outputs=values("outputs"),
    )
