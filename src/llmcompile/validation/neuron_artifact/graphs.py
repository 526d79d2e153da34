"""The graphs of an artifact: graphs/<name>.hlo.pb, and what graphs/<name>.json says of its border.

Parameters are inputs, then states, then weights; results are outputs, then states; each state's result is written over
its parameter. One module serves all ranks, as replicas.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from llmcompile.errors import MismatchError, Problem, collected
from llmcompile.hlo import Module, parse

FOLDER: Final = "graphs"
CONTEXT, GENERATION, ENCODER = "context_encoding", "token_generation", "encoder"
_FORMAT: Final = 1
_HINT: Final = "export the model again"
_PREFIXES: Final = ("k_cache_", "v_cache_")


@dataclass(frozen=True)
class Value:
    """A tensor at a graph's border: its name, XLA's name of its element type, its shape on one rank."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}[{','.join(map(str, self.shape))}]"

    @property
    def kind(self) -> str:
        """Element type and shape, as HLO text has them."""
        return str(self).removeprefix(f"{self.name} ")


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A graph and its border.

    Attributes:
        path: Of the HloModuleProto.
        name: Of the graph.
        kind: "encoder", "context_encoding" or "token_generation".
        ranks: Ranks that run it together.
        inputs: What it is fed.
        states: What it replaces.
        weights: Tensors of the rank's file.
        outputs: What it gives.
        module: The program.
    """

    path: Path
    name: str
    kind: str
    ranks: int
    inputs: tuple[Value, ...]
    states: tuple[Value, ...]
    weights: tuple[Value, ...]
    outputs: tuple[Value, ...]
    module: Module

    def input(self, name: str) -> Value:
        """The input called so; every graph that was read has those of its kind."""
        return next(value for value in self.inputs if value.name == name)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tokens: (batch, sequence), with choices between them for multiple-choice."""
        return self.input("input_ids").shape


def read_graphs(folder: Path, *, decoder: bool) -> tuple[Graph, ...]:
    """Read and check every graph of an artifact: contexts by ascending length, then generation; or the encoder.

    Raises:
        MismatchError: A file is missing or unreadable, a program has another border than its file says, or graphs do
            not fit together.
    """
    problems: list[Problem] = []
    graphs: list[Graph] = []
    names = {path.name.removesuffix(end) for end in (".json", ".hlo.pb") for path in (folder / FOLDER).glob(f"*{end}")}
    if len(names) == 0:
        raise MismatchError(str(folder / FOLDER), "no graphs", "<name>.hlo.pb and <name>.json of each", _HINT)
    for name in sorted(names):
        try:
            graph = _read(folder / FOLDER, name)
        except MismatchError as error:
            problems += error.problems
            continue
        graphs.append(graph)
        problems += _border(graph)
    if len(problems) == 0:
        problems += _set(folder / FOLDER, graphs, decoder=decoder)
    if len(problems) > 0:
        raise collected(MismatchError, problems)
    return tuple(sorted(graphs, key=lambda graph: (graph.kind, graph.shape)))


def _read(folder: Path, name: str) -> Graph:
    path = folder / f"{name}.hlo.pb"
    described = _described(folder / f"{name}.json")
    try:
        module = parse(path.read_bytes())
    except OSError as error:
        raise MismatchError(
            str(path), f"unreadable ({error.strerror})", "a serialized HloModuleProto", _HINT
        ) from error
    except ValueError as error:
        raise MismatchError(str(path), str(error), "a serialized HloModuleProto", _HINT) from error
    try:
        if described["format"] != _FORMAT:
            raise ValueError(f"format {described['format']!r}")
        graph = Graph(
            path=path,
            name=_text(described["name"]),
            kind=_text(described["kind"]),
            ranks=_count(described["ranks"]),
            inputs=_values(described["inputs"]),
            states=_values(described["states"]),
            weights=_values(described["weights"]),
            outputs=_values(described["outputs"]),
            module=module,
        )
    except (KeyError, TypeError, ValueError) as error:
        found = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise MismatchError(f"{folder}/{name}.json", found, f"a graph's border, format {_FORMAT}", _HINT) from error
    if graph.name != name:
        raise MismatchError(f"{folder}/{name}.json", f"the border of {graph.name}", f"that of {name}", _HINT)
    return graph


def _described(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MismatchError(str(path), f"unreadable ({error.strerror})", "a graph's border", _HINT) from error
    except (ValueError, RecursionError) as error:
        raise MismatchError(str(path), f"not JSON ({error})", "a graph's border", _HINT) from error
    if not isinstance(content, dict):
        raise MismatchError(str(path), f"a JSON {type(content).__name__}", "an object", _HINT)
    return content


def _values(items: Any) -> tuple[Value, ...]:
    values = tuple(
        Value(_text(item["name"]), _text(item["dtype"]), tuple(_count(size, 0) for size in item["shape"]))
        for item in items
    )
    names = [value.name for value in values]
    if len(set(names)) < len(names):
        raise ValueError(f"a name twice in {', '.join(names)}")
    return values


def _text(value: Any) -> str:
    if not isinstance(value, str) or value == "":
        raise ValueError(f"{value!r} for a name")
    return value


def _count(value: Any, least: int = 1) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{value!r} for a size")
    return value


def _border(graph: Graph) -> Iterator[Problem]:
    """Where a program has another border than the file beside it says."""
    parameters = [(shape.dtype, shape.dims) for shape in (one.shape for one in graph.module.parameters)]
    results = [(shape.dtype, shape.dims) for shape in graph.module.results]
    border = (
        ("parameter", parameters, (*graph.inputs, *graph.states, *graph.weights)),
        ("result", results, (*graph.outputs, *graph.states)),
    )
    for word, found, expected in border:
        if len(found) != len(expected):
            yield Problem(str(graph.path), f"{len(found)} {word}s", f"{len(expected)}, by {graph.name}.json", _HINT)
            continue
        for number, ((dtype, dims), value) in enumerate(zip(found, expected, strict=True)):
            if (dtype, dims) != (value.dtype, value.shape):
                text = f"{dtype}[{','.join(map(str, dims))}]"
                yield Problem(f"{graph.path}: {word} {number}", text, f"{value}, by {graph.name}.json", _HINT)
    first, states = len(graph.outputs), range(len(graph.states))
    wanted: dict[tuple[int, ...], int] = {(first + at,): len(graph.inputs) + at for at in states}
    aliases = {alias.output_index: alias.parameter for alias in graph.module.aliases}
    if aliases != wanted:
        found_text = f"results written over parameters: {_pairs(aliases)}"
        yield Problem(str(graph.path), found_text, f"each state over its own: {_pairs(wanted)}", _HINT)


def _pairs(aliases: Mapping[tuple[int, ...], int]) -> str:
    pairs = [f"{'.'.join(map(str, index))} over {parameter}" for index, parameter in sorted(aliases.items())]
    return ", ".join(pairs[:4]) + (f" and {len(pairs) - 4} more" if len(pairs) > 4 else "") if pairs != [] else "none"


def _set(folder: Path, graphs: Sequence[Graph], *, decoder: bool) -> Iterator[Problem]:
    """Where graphs do not fit together."""
    kinds = [graph.kind for graph in graphs]
    if not decoder:
        if kinds != [ENCODER] or graphs[0].ranks != 1:
            found = ", ".join(f"{graph.name} ({graph.kind}, {graph.ranks} ranks)" for graph in graphs)
            yield Problem(str(folder), found, "one graph, an encoder of one rank", _HINT)
            return
        yield from _inputs(graphs[0], ("input_ids", "attention_mask"), ("token_type_ids",))
        return
    if kinds.count(GENERATION) != 1 or kinds.count(CONTEXT) == 0 or len(kinds) != 1 + kinds.count(CONTEXT):
        yield Problem(str(folder), ", ".join(kinds), f"one {GENERATION}, and {CONTEXT} for each bucket", _HINT)
        return
    generation = next(graph for graph in graphs if graph.kind == GENERATION)
    broken = [problem for graph in graphs for problem in _inputs(graph, ("input_ids", "position_ids"), ())]
    yield from broken
    if len(broken) > 0:
        return
    batch = generation.shape[0]
    for graph in graphs:
        length = graph.shape[1]
        name = GENERATION if graph is generation else f"{CONTEXT}_{length}"
        if graph.name != name or (graph is generation and length != 1) or graph.shape[0] != batch:
            expected = f"{name} of {batch} rows" if graph is not generation else f"{name} of 1 token"
            yield Problem(str(graph.path), f"input_ids {list(graph.shape)}", expected, _HINT)
        if (graph.ranks, graph.states) != (generation.ranks, generation.states):
            found = f"{graph.ranks} ranks, {_listed(graph.states)}"
            expected = f"those of {GENERATION}: {generation.ranks} ranks, {_listed(generation.states)}"
            yield Problem(f"{graph.path}: states", found, expected, _HINT)
        if [value.name for value in graph.outputs] != ["logits"] or graph.outputs[0].shape[:-1] != (batch, 1):
            found = ", ".join(map(str, graph.outputs))
            yield Problem(f"{graph.path}: outputs", found, f"logits [{batch},1,vocabulary]", _HINT)
    names = [value.name for value in generation.states]
    layers = len(names) // 2
    wanted = {f"{prefix}{layer}" for prefix in _PREFIXES for layer in range(layers)}
    axes = {(len(value.shape), value.shape[0]) for value in generation.states}
    if set(names) != wanted or layers == 0 or axes != {(4, batch)}:
        expected = f"k_cache_<layer> and v_cache_<layer>, [{batch},heads,sequence,size]"
        yield Problem(f"{generation.path}: states", _listed(generation.states), expected, _HINT)


def _inputs(graph: Graph, required: Sequence[str], allowed: Sequence[str]) -> Iterator[Problem]:
    names = [value.name for value in graph.inputs]
    shapes = {value.shape for value in graph.inputs}
    dtypes = {value.dtype for value in graph.inputs}
    known = set(required) <= set(names) <= {*required, *allowed}
    if not known or len(shapes) != 1 or dtypes != {"s32"} or len(next(iter(shapes))) not in (2, 3):
        expected = f"{', '.join(required)}, all s32 and of one shape"
        yield Problem(f"{graph.path}: inputs", ", ".join(map(str, graph.inputs)), expected, _HINT)


def _listed(values: Sequence[Value]) -> str:
    return ", ".join(map(str, values[:2])) + (f" and {len(values) - 2} more" if len(values) > 2 else "")
