"""An exported program becomes a normalised HLO module whose weights, inputs and caches are its parameters."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jax
import jax.experimental
import jax.numpy as jnp
import torch
from numpy.typing import NDArray
from torch import Tensor, fx
from torch._subclasses import FakeTensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from llmcompile.errors import Problem, ToolchainError, UnsupportedError, collected
from llmcompile.exporters.neuron.lowering.elements import ArrayType, element_type, to_numpy, xla_name
from llmcompile.exporters.neuron.lowering.interpreter import evaluate, nodes_behind, outputs_of
from llmcompile.exporters.neuron.normalise import normalise
from llmcompile.exporters.neuron.signature import Signature, Value
from llmcompile.hlo.module import Alias, parse, serialize

MAX_LITERAL_BYTES = 64 * 1024
"""Largest constant written into the module; a larger one is a parameter, stored with the weights."""
_KEPT = (
    torch.ops.aten.adaptive_avg_pool1d.default,
    torch.ops.aten.layer_norm.default,
    torch.ops.aten.linear.default,
    torch.ops.aten.rms_norm.default,
    torch.ops.aten.scaled_dot_product_attention.default,
    torch.ops.aten.silu.default,
)
"""Operators with a rule of their own, which their decomposition would only make slower or less exact."""


@dataclass(frozen=True, kw_only=True)
class Lowered:
    """A graph in HLO.

    Attributes:
        module: Serialized HloModuleProto, normalised.
        signature: Its parameters and results.
        constants: Values of those weights that are no parameters of the model and that its checkpoint lacks: large
            tables it computes when it is built; by name in `signature.weights`.
    """

    module: bytes
    signature: Signature
    constants: Mapping[str, Tensor]


@dataclass(frozen=True)
class _Parameter:
    """A placeholder of the graph that is a parameter of the module."""

    index: int
    name: str
    tensor: Tensor


@dataclass(frozen=True)
class _Border:
    """What each placeholder of the graph is; literals are by the placeholder's index."""

    inputs: tuple[_Parameter, ...]
    states: tuple[_Parameter, ...]
    weights: tuple[_Parameter, ...]
    literals: Mapping[int, NDArray[Any]]
    constants: Mapping[str, Tensor]

    @property
    def parameters(self) -> tuple[_Parameter, ...]:
        return self.inputs + self.states + self.weights


def lower(
    program: ExportedProgram,
    *,
    name: str,
    kind: str,
    ranks: int,
    input_names: Sequence[str],
    output_names: Sequence[str | None],
    states: Sequence[str],
    values: Mapping[str, Tensor] = MappingProxyType({}),
) -> Lowered:
    """Lower an exported program of static shapes to HLO.

    Parameters of the module are the inputs, then the states, donated, then the weights that the graph uses, in the
    order in which it names them; results are the outputs, then the states. Parameters and persistent buffers are
    weights, whether the program holds them really, on the meta device or as fake tensors. Other buffers and lifted
    constants are literals up to `MAX_LITERAL_BYTES`, and weights listed in `Lowered.constants` beyond.

    Args:
        program: What torch.export.export returned, of a module in eval mode.
        name: Of the graph, as its files are named.
        kind: "encoder", "context_encoding" or "token_generation".
        ranks: Ranks that run the graph together.
        input_names: What to call the program's inputs, in their order.
        output_names: What to call its outputs, in their order; None for one that the module leaves out.
        states: Names of the buffers that it changes, each of which becomes a donated parameter.
        values: Values of buffers that the program itself holds without values; literals, whatever their size.

    Returns:
        The same bytes for the same program.

    Raises:
        UnsupportedError: An operator or element type has no lowering, a shape is not static, an integer constant
            needs more than 32 bits, a constant has no values, or the program changes what is no state.
        ToolchainError: torch is older than 2.6.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch copies its own deprecated objects
        program = program.run_decompositions(_decompositions())
    results, returned = _results(program, output_names, states)
    outputs = outputs_of(program.graph)
    border = _border(program, nodes_behind([outputs[place] for place in returned]), input_names, states, values)
    count = len(program.graph_signature.input_specs)

    def traced(*arguments: jax.Array) -> list[jax.Array]:
        given: list[Any] = [None] * count
        for index, literal in border.literals.items():
            given[index] = jnp.asarray(literal)
        for parameter, argument in zip(border.parameters, arguments, strict=True):
            given[parameter.index] = argument
        return evaluate(program.graph, given, ranks, returned)

    arguments = [
        ArrayType(tuple(parameter.tensor.shape), element_type(parameter.tensor.dtype, parameter.name))
        for parameter in border.parameters
    ]
    names = [parameter.name for parameter in border.parameters]
    module = parse(normalise(_hlo(traced, arguments), parameter_names=names, ranks=ranks))
    aliases = [Alias((len(results) + place,), len(border.inputs) + place) for place in range(len(border.states))]
    signature = Signature(
        name=name,
        kind=kind,
        ranks=ranks,
        inputs=_values(border.inputs),
        states=_values(border.states),
        weights=_values(border.weights),
        outputs=results,
    )
    return Lowered(module=serialize(module.with_aliases(aliases)), signature=signature, constants=border.constants)


def _hlo(function: Callable[..., Any], arguments: Sequence[Any]) -> bytes:
    """A function of arrays as JAX lowers it: for a CPU, and in 32 bits, whatever machine and environment say."""
    # The former came with jax 0.8, which deprecated the latter.
    holder: Any = jax if hasattr(jax, "enable_x64") else jax.experimental
    with holder.enable_x64(False):
        lowered = jax.jit(function, keep_unused=True).trace(*arguments).lower(lowering_platforms=("cpu",))
    module: bytes = lowered.compiler_ir("hlo").as_serialized_hlo_module_proto()
    return module


def weights_behind(program: ExportedProgram) -> list[frozenset[str]]:
    """Names of the parameters and buffers that each output of a program depends on."""
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    named = {
        node: str(spec.target)
        for node, spec in zip(placeholders, program.graph_signature.input_specs, strict=True)
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER)
    }
    return [
        frozenset(named[node] for node in nodes_behind([output]) if node in named)
        for output in outputs_of(program.graph)
    ]


def _decompositions() -> Any:
    if not hasattr(torch.export, "default_decompositions"):
        raise ToolchainError("torch", torch.__version__, "2.6 or newer", "pip install -U torch")
    table: Any = torch.export.default_decompositions()
    for overload in _KEPT:
        table.pop(overload, None)
    return table


def _border(
    program: ExportedProgram,
    live: Collection[fx.Node],
    input_names: Sequence[str],
    states: Sequence[str],
    values: Mapping[str, Tensor],
) -> _Border:
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    inputs: list[_Parameter] = []
    changed: dict[str, _Parameter] = {}
    weights: list[_Parameter] = []
    literals: dict[int, NDArray[Any]] = {}
    constants: dict[str, Tensor] = {}
    problems: list[Problem] = []
    for index, (node, spec) in enumerate(zip(placeholders, program.graph_signature.input_specs, strict=True)):
        tensor = node.meta.get("val")
        problems += _shape_problems(node)
        if spec.kind is InputKind.USER_INPUT:
            inputs.append(_Parameter(index, input_names[len(inputs)], tensor))
            continue
        parameter = _Parameter(index, str(spec.target), tensor)
        if parameter.name in states:
            changed[parameter.name] = parameter
        elif node not in live:
            continue
        elif spec.kind is InputKind.PARAMETER or (spec.kind is InputKind.BUFFER and spec.persistent is not False):
            weights.append(parameter)
        else:
            value = values.get(parameter.name, program.constants.get(parameter.name))
            if not isinstance(value, Tensor) or isinstance(value, FakeTensor) or value.is_meta:
                problems.append(_without_values(parameter.name))
            elif parameter.name in values or value.numel() * element_type(value.dtype).itemsize <= MAX_LITERAL_BYTES:
                literals[index] = to_numpy(value, parameter.name)
            else:
                weights.append(parameter)
                constants[parameter.name] = value
    if len(problems) > 0:
        raise collected(UnsupportedError, problems)
    assert len(inputs) == len(input_names), f"{len(inputs)} inputs, {len(input_names)} names"
    return _Border(
        inputs=tuple(inputs),
        states=tuple(changed[state] for state in states),
        weights=tuple(weights),
        literals=MappingProxyType(literals),
        constants=MappingProxyType(constants),
    )


def _shape_problems(node: fx.Node) -> Iterator[Problem]:
    tensor = node.meta.get("val")
    if not isinstance(tensor, Tensor):
        yield Problem(node.name, f"a {type(tensor).__name__}", "a tensor", "add --via optimum")
    elif not all(isinstance(size, int) for size in tensor.shape):
        yield Problem(node.name, f"shape {tuple(tensor.shape)}", "static sizes", "give every static shape")


def _without_values(name: str) -> Problem:
    return Problem(
        name, "a constant without values", "values, or a parameter", "report it with the model's config.json"
    )


def _results(
    program: ExportedProgram, output_names: Sequence[str | None], states: Sequence[str]
) -> tuple[tuple[Value, ...], list[int]]:
    """The graph's outputs as the signature has them, and the places of outputs and states in what the graph returns."""
    own: list[int] = []
    carried: dict[str, int] = {}
    problems: list[Problem] = []
    for place, spec in enumerate(program.graph_signature.output_specs):
        if spec.kind is OutputKind.USER_OUTPUT:
            own.append(place)
        elif spec.kind is OutputKind.BUFFER_MUTATION and spec.target in states:
            carried[spec.target] = place
        else:
            subject = spec.kind.name.lower() if spec.target is None else spec.target
            problems.append(Problem(subject, "changed by the graph", "a key or value cache", "add --via optimum"))
    problems += [
        Problem(state, "not changed by the graph", "a cache that is written")
        for state in states
        if state not in carried
    ]
    if len(problems) > 0:
        raise collected(UnsupportedError, problems)
    named = [(name, place) for name, place in zip(output_names, own, strict=True) if name is not None]
    outputs = outputs_of(program.graph)
    results = tuple(_value(name, outputs[place].meta["val"]) for name, place in named)
    return results, [place for _, place in named] + [carried[state] for state in states]


def _values(parameters: Sequence[_Parameter]) -> tuple[Value, ...]:
    return tuple(_value(parameter.name, parameter.tensor) for parameter in parameters)


def _value(name: str, tensor: Tensor) -> Value:
    return Value(name, xla_name(element_type(tensor.dtype, name)), tuple(tensor.shape))
