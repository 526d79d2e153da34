"""The graph torch.onnx made as the artifact has it: names and axes a person knows, weights quantized, bytes hashed.

Nothing of the machine it was made on stays in it: torch.onnx notes the lines of code, with their files, for every node.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmcompile import __version__, onnx_model
from llmcompile.errors import PlanError, UnsupportedError
from llmcompile.exporters.rtx import quantize
from llmcompile.exporters.rtx.export import PREFIX
from llmcompile.exporters.rtx.networks import OF, SIZES, Network
from llmcompile.exporters.rtx.profiles import PAST, TOTAL
from llmcompile.onnx_model import Tensor, Value
from llmcompile.writing import WorkDirectory

FOLDER = "onnx"
_SCOPES = "pkg.torch.onnx.name_scopes"
"""Under which torch.onnx notes the modules of a node. Source: torch 2.13 (torch/onnx/_internal/exporter/_core.py)."""
_ROWS_BYTES = 64 << 20


@dataclass(frozen=True)
class Written:
    """A finished graph.

    Attributes:
        name: `networks.MODEL`, `ENCODER` or `DECODER`.
        file: Path of the graph in the artifact.
        quantized: Weights that were quantized, by the model's names.
    """

    name: str
    file: str
    quantized: tuple[str, ...]


def file_of(name: str) -> str:
    """Where the graph of that name is in the artifact."""
    return f"{FOLDER}/{name}.onnx"


def write(
    exported: Path,
    network: Network,
    linear: Mapping[str, bool],
    quantization: str | None,
    work: WorkDirectory,
) -> Written:
    """Rewrite an exported graph and put it, and its weights, into the artifact.

    Args:
        exported: What `export` wrote.
        network: What it was made of.
        linear: Linear layers whose weights may be quantized; as in `source.Source`.
        quantization: "int8", "int4", "fp8" or None.
        work: Where to.

    Raises:
        PlanError: A graph has two values of one name, or breaks another rule of ONNX.
        UnsupportedError: There is nothing to quantize.
        OutputError: The disk is full.
    """
    model = onnx_model.load(exported)
    constants = onnx_model.tensors(model, exported.parent)
    layers = _layers(model, constants, linear)
    model = _named(model, layers, network)
    constants = {layers.get(name, name): tensor for name, tensor in constants.items()}
    plain = _unwrapped(model, constants)
    chosen = _quantize(model, plain, set(layers.values()), quantization)
    if quantization is not None and len(chosen) == 0 and network.name != "encoder":
        found = f"{quantization}, but no linear layer has " + (
            f"a multiple of {quantize.BLOCK} inputs" if quantization == "int4" else "a constant weight"
        )
        raise UnsupportedError("--quantization", found, "a model with such layers", "--quantization int8, or none")
    file = file_of(network.name)
    _put(model, plain, chosen, work, file)
    _check(work.path / file)
    return Written(network.name, file, tuple(sorted(chosen)))


def _layers(model: Any, constants: Mapping[str, Tensor], linear: Mapping[str, bool]) -> dict[str, str]:
    """Constants that are weights of linear layers, which torch.onnx may have transposed and renamed -> their names.

    A constant that something else reads too, as a tied embedding, is none of them. A layer that runs several times may
    have a constant for each, which become one.
    """
    others = {
        name
        for node in model.graph.node
        for place, name in enumerate(node.input)
        if place != 1 or node.op_type not in ("MatMul", "Gemm")
    }
    found: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type not in ("MatMul", "Gemm") or node.input[1] not in constants:
            continue
        noted = onnx_model.metadata(node, _SCOPES)
        scopes = [] if noted is None else re.findall(r"'([^']*)'", noted)
        layer = next((scope for scope in reversed(scopes) if scope.removeprefix(f"{OF}.") in linear), None)
        if layer is not None and node.input[1] not in others:
            found[node.input[1]] = f"{layer}.weight"
    return found


def _named(model: Any, layers: Mapping[str, str], network: Network) -> Any:
    """The graph with the names and axes of the network's border, and weights by their names."""
    sizes: dict[str, int] = {}
    exported, given = onnx_model.inputs(model), []
    wanted = {each.name: each for each in network.inputs}
    for value in exported:
        name = value.name.removeprefix(PREFIX)
        axes = tuple(
            kept if (kept := wanted[name].axes[place]) is not None else int(wanted[name].example.shape[place])
            for place in range(len(value.shape))
        )
        for place, axis in enumerate(value.shape):
            if isinstance(axis, str):
                sizes[axis] = int(wanted[name].example.shape[place])
        given.append(Value(name, value.dtype, axes))
    known = {SIZES[axis]: axis for each in network.inputs for axis in each.axes if axis is not None}
    if PAST in known.values():
        known[SIZES[TOTAL]] = TOTAL  # of caches as they become; no input of an encoder-decoder is as long
    made = [
        Value(
            value.name.removeprefix(PREFIX),
            value.dtype,
            tuple(_axis(value, place, sizes, known) for place in range(len(value.shape))),
        )
        for value in onnx_model.outputs(model)
    ]
    border = [value.name for value in (*given, *made)]
    taken = set(onnx_model.names(model)) - {PREFIX + name for name in border}
    # What is inside makes way for what a person types.
    moved = {name: f"{name}::inner" for name in border if name in taken}
    onnx_model.strip(model)
    onnx_model.rename(model, {**moved, **layers, **{PREFIX + name: name for name in border}})
    onnx_model.set_border(model, given, made)
    model.producer_name, model.producer_version = "llmcompile", __version__
    model.graph.name = network.name
    return model


def _axis(value: Value, place: int, sizes: Mapping[str, int], known: Mapping[int, str]) -> int | str:
    """The name of an output's axis: that of the input's axis it is as long as, or a sum of some."""
    axis = value.shape[place]
    if isinstance(axis, int):
        return axis
    terms = axis.split(" + ")
    if all(term in sizes for term in terms):
        name = known.get(sum(sizes[term] for term in terms))
        if name is not None:
            return name
    return f"{value.name.removeprefix(PREFIX)}_{place}"


def _unwrapped(model: Any, constants: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Constants by the model's own names, without that of the module it was in while it was traced."""
    prefix = f"{OF}."
    short = {name: name.removeprefix(prefix) for name in constants if name.startswith(prefix)}
    others = set(onnx_model.names(model)) - set(short)
    short = {name: wanted for name, wanted in short.items() if wanted not in others}
    onnx_model.rename(model, short)
    return {short.get(name, name): tensor for name, tensor in constants.items()}


def _quantize(
    model: Any, constants: Mapping[str, Tensor], layers: set[str], recipe: str | None
) -> dict[str, tuple[Tensor, int]]:
    """Put DequantizeLinear between weights and what multiplies with them; weight -> (itself, axis of its inputs)."""
    if recipe is None:
        return {}
    wanted = {name.removeprefix(f"{OF}.") for name in layers}
    chosen: dict[str, tuple[Tensor, int]] = {}
    nodes = []
    for node in model.graph.node:
        weight = node.input[1] if node.op_type in ("MatMul", "Gemm") else ""
        if weight in wanted and constants[weight].dtype in ("fp32", "fp16", "bf16"):
            tensor = constants[weight]
            axis = 1 if onnx_model.attribute(node, "transB", 0) == 1 else 0
            if weight not in chosen and quantize.quantizable(tensor.shape, recipe, axis):
                chosen[weight] = (tensor, axis)
                settings = {"axis": axis, "block_size": quantize.BLOCK} if recipe == "int4" else {"axis": 1 - axis}
                values = [f"{weight}::{recipe}", f"{weight}::scale"]
                nodes.append(onnx_model.node("DequantizeLinear", values, weight, **settings))
        nodes.append(node)
    kept = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    if len(chosen) > 0:
        model.metadata_props.add(key="llmcompile.quantization", value=recipe)
    return chosen


def _put(
    model: Any,
    constants: Mapping[str, Tensor],
    chosen: Mapping[str, tuple[Tensor, int]],
    work: WorkDirectory,
    file: str,
) -> None:
    """Write weights, one after the other, and the graph that says where each is."""
    recipe = next((entry.value for entry in model.metadata_props if entry.key == "llmcompile.quantization"), "")
    listed: list[tuple[str, str, tuple[int, ...]]] = []
    for name, tensor in constants.items():
        if name in chosen:
            listed.append((f"{name}::{recipe}", recipe, tensor.shape))
            shape = quantize.scale_shape(tensor.shape, recipe, chosen[name][1])
            listed.append((f"{name}::scale", tensor.dtype, shape))
        else:
            listed.append((name, tensor.dtype, tensor.shape))
    data = f"{file}.data"
    places, size = onnx_model.placed(listed, Path(data))
    made: list[Tensor] = []
    target = None if size == 0 else work.create(data, size)
    end = 0
    for name, dtype, shape, content in _contents(constants, chosen, recipe):
        place = places.get(name)
        if place is None or target is None:
            made.append(Tensor(name, dtype, shape, None, 0, bytes(content)))
            continue
        target.write(memoryview(bytes(place.offset - end)))
        for start in range(0, len(content), _ROWS_BYTES):
            target.write(content[start : start + _ROWS_BYTES])
        end = place.offset + len(content)
        made.append(place)
    if target is not None:
        work.record(data, target.finish())
    onnx_model.set_tensors(model, made)
    work.write_bytes(file, model.SerializeToString(deterministic=True))


def _contents(
    constants: Mapping[str, Tensor], chosen: Mapping[str, tuple[Tensor, int]], recipe: str
) -> Iterator[tuple[str, str, tuple[int, ...], memoryview]]:
    """Name, element type, shape and bytes of every constant, in the order they are placed; one in memory at a time."""
    for name, tensor in constants.items():
        if name not in chosen:
            flat = np.ascontiguousarray(tensor.values()).reshape(-1).view(np.uint8)
            yield name, tensor.dtype, tensor.shape, memoryview(flat.data)
            continue
        axis = chosen[name][1]
        found = quantize.quantize(tensor.values(), recipe, axis)
        yield f"{name}::{recipe}", recipe, tensor.shape, memoryview(found.stored)
        scales = np.ascontiguousarray(found.scales)
        yield f"{name}::scale", tensor.dtype, scales.shape, memoryview(scales.reshape(-1).view(np.uint8).data)


def _check(path: Path) -> None:
    model = onnx_model.load(path)
    names = onnx_model.names(model)
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if len(twice) > 0:
        raise PlanError(str(path), f"defines {', '.join(twice)} twice", "each name once", "please report it")
    try:
        onnx_model.check(path)
    except ValueError as error:
        raise PlanError(str(path), str(error), "a graph that follows ONNX's rules", "please report it") from error
