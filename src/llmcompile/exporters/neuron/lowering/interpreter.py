"""Runs an exported graph on JAX arrays, one ATen operator at a time."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from torch import Tensor, fx

from llmcompile.errors import UnsupportedError
from llmcompile.exporters.neuron.lowering.aten import FACTORIES, IGNORED, REASONS, TABLE
from llmcompile.exporters.neuron.lowering.elements import ArrayType, element_type
from llmcompile.exporters.neuron.normalise import ALL_GATHER, ALL_REDUCE

_ELSEWHERE = ("dtype", "layout", "device", "pin_memory", "memory_format", "non_blocking")
"""Keywords that say what the graph's own record of the result says too, or nothing that matters here."""
_HINT = "add --via optimum, if optimum-neuron supports the model"


def evaluate(graph: fx.Graph, arguments: Sequence[Any], ranks: int, returned: Sequence[int] | None = None) -> list[Any]:
    """Compute a graph's outputs.

    Args:
        graph: Of static shapes, decomposed to operators of the table.
        arguments: A value for each placeholder, in order; None for one that nothing live uses.
        ranks: Ranks that collectives join; a collective of one rank is the identity.
        returned: Places of the outputs that are wanted, in the order they are wanted; None for all.

    Returns:
        What the graph's output node lists, None where it lists None.

    Raises:
        UnsupportedError: An operator, or an argument of it, has no lowering.
    """
    values: dict[fx.Node, Any] = {}
    placeholders = iter(arguments)
    outputs = outputs_of(graph)
    wanted = outputs if returned is None else [outputs[place] for place in returned]
    live = nodes_behind(wanted)
    for node in graph.nodes:
        if node.op == "placeholder":
            values[node] = next(placeholders)
        elif node in live:
            values[node] = _value(node, values, ranks)
    return [values[item] if isinstance(item, fx.Node) else item for item in wanted]


def outputs_of(graph: fx.Graph) -> list[Any]:
    """The nodes, or constants, that a graph returns."""
    output = next(node for node in graph.nodes if node.op == "output")
    returned: Any = output.args[0]
    return list(returned)


def nodes_behind(outputs: Sequence[Any]) -> set[fx.Node]:
    """The nodes among `outputs`, and those that they depend on."""
    behind: set[fx.Node] = set()
    pending = [item for item in outputs if isinstance(item, fx.Node)]
    while len(pending) > 0:
        node = pending.pop()
        if node not in behind:
            behind.add(node)
            pending += node.all_input_nodes
    return behind


def _value(node: fx.Node, values: Mapping[fx.Node, Any], ranks: int) -> Any:
    if node.op != "call_function":
        raise _refused(node, "a graph of its own, which control flow chooses")
    arguments: Any = fx.map_arg(node.args, lambda item: values[item])
    if node.target is operator.getitem:
        part = arguments[0][arguments[1]]
        if part is None:
            raise _refused(node.all_input_nodes[0], f"result {arguments[1]} has no lowering")
        return part
    named = {name: value for name, value in node.kwargs.items() if name not in _ELSEWHERE}
    rule = _rule(node, ranks)
    try:
        result = rule(*arguments, **fx.map_arg(named, lambda item: values[item]))
    except NotImplementedError as error:
        raise _refused(node, str(error)) from error
    except OverflowError as error:
        raise _refused(node, "an integer of more than 32 bits") from error
    return _typed(node, result, node.meta.get("val"))


def _rule(node: fx.Node, ranks: int) -> Callable[..., Any]:
    name = str(node.target)
    if name in TABLE:
        return TABLE[name]
    if name in FACTORIES:
        dtype = element_type(node.meta["val"].dtype, _subject(node))
        return lambda *arguments, **named: FACTORIES[name](*arguments, **named, dtype=dtype)
    if name in IGNORED:
        return lambda *arguments, **named: None
    if name == "llmcompile.all_reduce.default":
        return lambda x: _marker(ALL_REDUCE, x, x.shape) if ranks > 1 else x
    if name == "llmcompile.all_gather.default":
        return lambda x, dim, over: _all_gather(x, dim, over, ranks)
    packet = name.split(".")[1] if name.count(".") > 0 else name
    raise _refused(node, REASONS.get(packet, "no lowering to HLO"))


def _marker(target: str, x: jax.Array, shape: Sequence[int]) -> jax.Array:
    call: Callable[[jax.Array], jax.Array] = jax.ffi.ffi_call(target, ArrayType(tuple(shape), x.dtype))
    return call(x)


def _all_gather(x: jax.Array, dim: int, over: int, ranks: int) -> jax.Array:
    assert over == ranks, f"all_gather over {over} of {ranks} ranks"
    axis = dim % x.ndim
    shape = [size * ranks if place == axis else size for place, size in enumerate(x.shape)]
    return _marker(f"{ALL_GATHER}{axis}", x, shape) if ranks > 1 else x


def _typed(node: fx.Node, result: Any, expected: Any) -> Any:
    """`result` in the types that torch computed, whose shapes it must have."""
    if isinstance(expected, Tensor) and result is not None:
        dtype = element_type(expected.dtype, _subject(node))
        assert np.shape(result) == tuple(expected.shape), f"{node.target}: {np.shape(result)}, torch {expected.shape}"
        return result.astype(dtype) if result.dtype != dtype else result
    if isinstance(expected, list | tuple) and result is not None:
        return [_typed(node, part, wanted) for part, wanted in zip(result, expected, strict=True)]
    return result


def _subject(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack")
    path = list(stack.values())[-1][0] if stack is not None and len(stack) > 0 else ""
    return str(node.target) if path == "" else f"{node.target} in {path}"


def _refused(node: fx.Node, reason: str) -> UnsupportedError:
    return UnsupportedError(_subject(node), reason, hint=_HINT)
