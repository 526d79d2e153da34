"""ONNX files: the graph is read whole, tensors stay where they are until they are asked for. A format, as `hlo` is.

The one file that imports onnx, which the extra `rtx` brings.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper, shape_inference

Array = npt.NDArray[Any]
PAGE = 4096
"""Bytes to whose multiple a large tensor is aligned, so that it can be mapped into memory. Source: onnx/onnx.proto
(TensorProto.external_data, "offset")."""
INLINE_BYTES = 1024
"""Tensors up to this size stay in the file of the graph."""
DTYPES: Mapping[int, str] = MappingProxyType(
    {
        TensorProto.FLOAT: "fp32",
        TensorProto.FLOAT16: "fp16",
        TensorProto.BFLOAT16: "bf16",
        TensorProto.DOUBLE: "fp64",
        TensorProto.INT64: "int64",
        TensorProto.INT32: "int32",
        TensorProto.INT8: "int8",
        TensorProto.UINT8: "uint8",
        TensorProto.INT4: "int4",
        TensorProto.FLOAT8E4M3FN: "fp8",
        TensorProto.BOOL: "bool",
    }
)
"""Element types by our names."""
_CODES: Mapping[str, int] = MappingProxyType({name: code for code, name in DTYPES.items()})
_BITS: Mapping[str, int] = MappingProxyType(
    {"fp64": 64, "int64": 64, "fp32": 32, "int32": 32, "fp16": 16, "bf16": 16, "int4": 4}
)


@dataclass(frozen=True)
class Value:
    """A tensor at the border of a graph: an axis is a number, or the name of a size that is known at run time."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Tensor:
    """A constant of a graph, whose bytes may lie in another file.

    Attributes:
        name: In the graph.
        dtype: One of `DTYPES`.
        shape: Its axes.
        file: Where its bytes are; None for one that the graph holds.
        offset: First byte in that file.
        raw: Its bytes, where the graph holds them.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path | None
    offset: int
    raw: bytes

    @property
    def size_bytes(self) -> int:
        """Bytes it takes."""
        return stored_bytes(self.dtype, self.shape)

    def values(self) -> Array:
        """Its elements; mapped into memory where they lie in a file. Types numpy lacks are those of ml_dtypes."""
        kind = helper.tensor_dtype_to_np_dtype(_CODES[self.dtype])
        if self.file is None:
            proto = TensorProto(name=self.name, data_type=_CODES[self.dtype], dims=self.shape, raw_data=self.raw)
            return np.asarray(numpy_helper.to_array(proto))
        assert self.dtype != "int4", "packed: read its bytes"
        flat: Array = np.memmap(self.file, dtype=np.uint8, mode="r", offset=self.offset, shape=(self.size_bytes,))
        return flat.view(kind).reshape(self.shape)


def elements(tensor: Tensor) -> Array:
    """The elements of a tensor, those of four bits as int8."""
    if tensor.dtype != "int4":
        return tensor.values()
    if tensor.file is None:
        packed = np.frombuffer(tensor.raw, dtype=np.uint8)
    else:
        size = (tensor.size_bytes,)
        packed = np.memmap(tensor.file, dtype=np.uint8, mode="r", offset=tensor.offset, shape=size)
    # The low half is the first of two; a shift left and an arithmetic one right extend the sign.
    low, high = (packed << 4).view(np.int8) >> 4, packed.view(np.int8) >> 4
    count = int(np.prod(tensor.shape))
    return np.stack([low, high], axis=1).reshape(-1)[:count].reshape(tensor.shape)


def stored_bytes(dtype: str, shape: Sequence[int]) -> int:
    """Bytes of a tensor; two of four bits share one."""
    return -(-int(np.prod(shape, dtype=np.int64)) * _BITS.get(dtype, 8) // 8)


def load(path: Path) -> ModelProto:
    """The graph of a file; tensors in other files stay there."""
    return onnx.load(str(path), load_external_data=False)


def tensors(model: ModelProto, folder: Path) -> dict[str, Tensor]:
    """The constants of a graph that was read from `folder`, by name.

    Raises:
        ValueError: One is kept in a form that no exporter of ours writes.
    """
    return {proto.name: _tensor(proto, folder) for proto in model.graph.initializer}


def _tensor(proto: TensorProto, folder: Path) -> Tensor:
    dtype, shape = DTYPES[proto.data_type], tuple(proto.dims)
    if proto.data_location == TensorProto.EXTERNAL:
        where = {entry.key: entry.value for entry in proto.external_data}
        location = Path(where["location"])
        if location.is_absolute() or ".." in location.parts:
            raise ValueError(f"{proto.name}: its data leads out of the folder")
        return Tensor(proto.name, dtype, shape, folder / location, int(where.get("offset", "0")), b"")
    raw = proto.raw_data if proto.HasField("raw_data") else numpy_helper.to_array(proto).tobytes()
    return Tensor(proto.name, dtype, shape, None, 0, raw)


def set_tensors(model: ModelProto, made: Iterable[Tensor]) -> None:
    """Replace the constants of a graph; those with a file are referred to by its name and their offset."""
    del model.graph.initializer[:]
    for tensor in made:
        proto = TensorProto(name=tensor.name, data_type=_CODES[tensor.dtype], dims=tensor.shape)
        if tensor.file is None:
            proto.raw_data = tensor.raw
        else:
            proto.data_location = TensorProto.EXTERNAL
            for key, value in (
                ("location", tensor.file.name),
                ("offset", tensor.offset),
                ("length", tensor.size_bytes),
            ):
                proto.external_data.add(key=key, value=str(value))
        model.graph.initializer.append(proto)


def placed(named: Sequence[tuple[str, str, tuple[int, ...]]], file: Path) -> tuple[dict[str, Tensor], int]:
    """Where large tensors go in one file, in the order given: aligned to pages, and the file's size in bytes.

    Args:
        named: Name, element type and shape of each; those of at most `INLINE_BYTES` get no place.
        file: The file.
    """
    places: dict[str, Tensor] = {}
    end = 0
    for name, dtype, shape in named:
        size = stored_bytes(dtype, shape)
        if size <= INLINE_BYTES:
            continue
        start = -(-end // PAGE) * PAGE
        places[name] = Tensor(name, dtype, shape, file, start, b"")
        end = start + size
    return places, end


def inputs(model: ModelProto) -> tuple[Value, ...]:
    """What a graph takes."""
    return tuple(_value(proto) for proto in model.graph.input)


def outputs(model: ModelProto) -> tuple[Value, ...]:
    """What a graph gives."""
    return tuple(_value(proto) for proto in model.graph.output)


def _value(proto: Any) -> Value:
    kind = proto.type.tensor_type
    axes = tuple(axis.dim_param if axis.dim_param != "" else int(axis.dim_value) for axis in kind.shape.dim)
    return Value(proto.name, DTYPES[kind.elem_type], axes)


def set_border(model: ModelProto, given: Sequence[Value], made: Sequence[Value]) -> None:
    """Say anew what a graph takes and gives: the names, as they are inside, and the axes."""
    for protos, values in ((model.graph.input, given), (model.graph.output, made)):
        del protos[:]
        protos.extend(
            helper.make_tensor_value_info(value.name, _CODES[value.dtype], list(value.shape)) for value in values
        )


def opset(model: ModelProto) -> int:
    """Version of ONNX's own operators that a graph is written in."""
    return next(int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


def metadata(node: NodeProto, key: str) -> str | None:
    """What an exporter noted of a node under `key`."""
    return next((entry.value for entry in node.metadata_props if entry.key == key), None)


def attribute(node: NodeProto, name: str, default: int) -> int:
    """A node's attribute that is a whole number."""
    return next((int(entry.i) for entry in node.attribute if entry.name == name), default)


def node(kind: str, given: Sequence[str], made: str, **attributes: Any) -> NodeProto:
    """A node of ONNX's own operators with one output, which is its name too."""
    return helper.make_node(kind, list(given), [made], name=f"node_{made}", **attributes)


def strip(model: ModelProto) -> None:
    """Remove what tells where and by which code a graph was made, and shapes of inner values that were guessed."""
    graph = model.graph
    for holder in (model, graph, *graph.node, *graph.input, *graph.output):
        if hasattr(holder, "metadata_props"):
            del holder.metadata_props[:]
        holder.doc_string = ""
    del graph.value_info[:]


def names(model: ModelProto) -> list[str]:
    """Every name a graph defines, as often as it defines it: a correct graph does so once."""
    graph = model.graph
    made = [name for one in graph.node for name in one.output if name != ""]
    return [*(value.name for value in graph.input), *(tensor.name for tensor in graph.initializer), *made]


def rename(model: ModelProto, wanted: Mapping[str, str]) -> None:
    """Give values other names, everywhere in a graph and the graphs inside it."""

    def graphs(graph: Any) -> Iterator[Any]:
        yield graph
        for one in graph.node:
            for entry in one.attribute:
                if entry.HasField("g"):
                    yield from graphs(entry.g)

    for graph in graphs(model.graph):
        for one in graph.node:
            for ends in (one.input, one.output):
                for place, name in enumerate(ends):
                    if name in wanted:
                        ends[place] = wanted[name]
        for holder in (*graph.initializer, *graph.input, *graph.output, *graph.value_info):
            holder.name = wanted.get(holder.name, holder.name)


def check(path: Path) -> None:
    """Hold a file against ONNX's own rules.

    Raises:
        ValueError: It breaks one.
    """
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        raise ValueError(str(error).strip().splitlines()[0]) from error


def types(model: ModelProto) -> dict[str, str]:
    """Element type of each inner value, as far as ONNX's own rules tell."""
    inferred = shape_inference.infer_shapes(model)
    values = (*inferred.graph.value_info, *inferred.graph.output)
    return {value.name: DTYPES.get(value.type.tensor_type.elem_type, "") for value in values}


def in_float32(model: ModelProto, *, rounding: Collection[str]) -> ModelProto:
    """The same graph with 32-bit arithmetic, for a runtime that lacks the graph's own, or to tell rounding from errors.

    Every value of 16 bits becomes one of 32; constants stay as they are stored and are cast; some values are rounded
    back.

    Args:
        model: Not modified.
        rounding: Names of values that are rounded to the 16 bits they have in `model` right after they are computed.
    """
    narrow = {TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
    known = types(model) if len(rounding) > 0 else {}
    wide = ModelProto()
    wide.CopyFrom(model)
    for value in (*wide.graph.input, *wide.graph.output, *wide.graph.value_info):
        if value.type.tensor_type.elem_type in narrow:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    stored = [tensor.name for tensor in wide.graph.initializer if tensor.data_type in narrow]
    made = [node("Cast", [f"{name}::stored"], name, to=TensorProto.FLOAT) for name in stored]
    for proto in wide.graph.initializer:
        if proto.data_type in narrow:
            proto.name = f"{proto.name}::stored"
    for one in wide.graph.node:
        for entry in one.attribute:
            if entry.name in ("to", "dtype", "output_dtype") and entry.i in narrow:
                entry.i = TensorProto.FLOAT
            if entry.HasField("t") and entry.t.data_type in narrow:
                entry.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(entry.t).astype(np.float32)))
        made.append(one)
        for place, name in enumerate(one.output):
            if name in rounding and known.get(name) in ("fp16", "bf16"):
                exact, short = f"{name}::exact", f"{name}::short"
                one.output[place] = exact
                made.append(node("Cast", [exact], short, to=_CODES[known[name]]))
                made.append(node("Cast", [short], name, to=TensorProto.FLOAT))
    kept = [NodeProto.FromString(one.SerializeToString()) for one in made]
    for number, one in enumerate(kept):
        one.name = f"node_{number}"
    del wide.graph.node[:]
    wide.graph.node.extend(kept)
    return wide
