"""One ATen overload in a graph of its own, run by torch and by the lowering."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import jax
import numpy as np
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from llmcompile.exporters.neuron.lowering.elements import to_numpy
from llmcompile.exporters.neuron.lowering.interpreter import evaluate
from llmcompile.hlo.module import Module, parse

NARROWER = {torch.int64: torch.int32, torch.float64: torch.float32}
"""What the lowering makes of types that Neuron does not have."""


_FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""Options of a compilation that is run once."""
Array: TypeAlias = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Call:
    """An overload and its arguments."""

    name: str
    arguments: tuple[Any, ...]
    named: Mapping[str, Any] = field(default_factory=dict)


def overload(name: str) -> Any:
    """The operator of a name such as "aten.add.Tensor"."""
    namespace, packet, kind = name.split(".")
    return getattr(getattr(getattr(torch.ops, namespace), packet), kind)


def parts_of(result: Any) -> list[Any]:
    """An operator's results: its one, or those of its tuple."""
    return list(result) if isinstance(result, list | tuple) else [result]


def in_torch(call: Call) -> list[Tensor | None]:
    """What torch computes."""
    return parts_of(overload(call.name)(*call.arguments, **call.named))


@dataclass(frozen=True)
class Computed:
    """What the lowering makes of some calls: the results of each, and the HLO module that computed them."""

    results: tuple[tuple[Array | None, ...], ...]
    module: Module


def in_jax(calls: Sequence[Call]) -> Computed:
    """Lower and run calls as one compiled function, whose arguments are all tensors of all calls."""
    graph = fx.Graph()
    leaves, structure = pytree.tree_flatten([(list(call.arguments), dict(call.named)) for call in calls])
    nodes = [graph.placeholder(f"x{place}") if isinstance(leaf, Tensor) else leaf for place, leaf in enumerate(leaves)]
    results = []
    for call, (positional, named) in zip(calls, pytree.tree_unflatten(nodes, structure), strict=True):
        results.append(graph.call_function(overload(call.name), tuple(positional), named))
        results[-1].meta["val"] = overload(call.name)(*call.arguments, **call.named)
    graph.output(results)
    tensors = [to_numpy(leaf, "x") for leaf in leaves if isinstance(leaf, Tensor)]
    lowered = jax.jit(lambda *given: evaluate(graph, given, 1)).lower(*tensors)
    computed = [
        tuple(None if part is None else np.asarray(part) for part in parts_of(result))
        for result in lowered.compile(_FAST)(*tensors)
    ]
    return Computed(tuple(computed), parse(lowered.compiler_ir("hlo").as_serialized_hlo_module_proto()))
