"""One operation of a computation, as HloInstructionProto holds it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod

from llmcompile.hlo.fields import (
    ELEMENTS,
    DeviceListField,
    DotField,
    GatherField,
    InstructionField,
    IotaField,
    MetadataField,
    WindowField,
)
from llmcompile.hlo.shape import Shape, read_shape, write_shape
from llmcompile.hlo.wire import Message

_MOST_REPLICAS = 1 << 20
"""Far above any machine, so that a broken file cannot fill the memory."""


@dataclass(frozen=True)
class DotDimensions:
    """Which dimensions of a dot's operands are summed over, and which go along."""

    lhs_contracting: tuple[int, ...]
    rhs_contracting: tuple[int, ...]
    lhs_batch: tuple[int, ...]
    rhs_batch: tuple[int, ...]


@dataclass(frozen=True)
class GatherDimensions:
    """How a gather finds its slices."""

    offset_dims: tuple[int, ...]
    collapsed_slice_dims: tuple[int, ...]
    start_index_map: tuple[int, ...]
    index_vector_dim: int
    slice_sizes: tuple[int, ...]


@dataclass(frozen=True)
class WindowDimension:
    """A window along one dimension, in elements."""

    size: int
    stride: int
    padding_low: int
    padding_high: int
    window_dilation: int
    base_dilation: int


@dataclass(frozen=True)
class Instruction:
    """One operation and its result.

    Attributes:
        message: HloInstructionProto.
    """

    message: Message

    @classmethod
    def make(
        cls, opcode: str, shape: Shape, *, id: int, operand_ids: Sequence[int] = (), name: str = ""
    ) -> Instruction:
        """An instruction, named "opcode.id" where no name is given.

        What more the opcode needs, `with_integer` and the like of its message add.
        """
        message = Message().with_text(InstructionField.NAME, name if name != "" else f"{opcode}.{id}")
        message = message.with_text(InstructionField.OPCODE, opcode)
        message = message.with_message(InstructionField.SHAPE, write_shape(shape))
        return cls(message).with_id(id).with_operands(operand_ids)

    @cached_property
    def name(self) -> str:
        """Unique in the module."""
        return self.message.text(InstructionField.NAME)

    @cached_property
    def opcode(self) -> str:
        """As HLO text spells it: "dot", "all-reduce"."""
        return self.message.text(InstructionField.OPCODE)

    @cached_property
    def id(self) -> int:
        """Unique in the module."""
        return self.message.integer(InstructionField.ID)

    @cached_property
    def shape(self) -> Shape:
        """Of the result."""
        return read_shape(self.message.message(InstructionField.SHAPE))

    @cached_property
    def operand_ids(self) -> tuple[int, ...]:
        """Instructions of the same computation."""
        return self.message.integers(InstructionField.OPERAND_IDS)

    @property
    def control_predecessor_ids(self) -> tuple[int, ...]:
        """Instructions of the same computation that must come before."""
        return self.message.integers(InstructionField.CONTROL_PREDECESSOR_IDS)

    @cached_property
    def called_computation_ids(self) -> tuple[int, ...]:
        """Computations it applies, calls or chooses from."""
        return self.message.integers(InstructionField.CALLED_COMPUTATION_IDS)

    @property
    def parameter_number(self) -> int:
        """Of a parameter, its place among the computation's."""
        return self.message.integer(InstructionField.PARAMETER_NUMBER)

    @property
    def tuple_index(self) -> int:
        """Of a get-tuple-element."""
        return self.message.integer(InstructionField.TUPLE_INDEX)

    @property
    def dimensions(self) -> tuple[int, ...]:
        """Of a reduce, broadcast, transpose, concatenate, iota, sort, all-gather and others."""
        return self.message.integers(InstructionField.DIMENSIONS)

    @property
    def custom_call_target(self) -> str:
        """Of a custom-call; empty of any other."""
        return self.message.text(InstructionField.CUSTOM_CALL_TARGET)

    @property
    def channel_id(self) -> int:
        """Of a collective across partitions or with global ids; 0 or less for none."""
        return self.message.integer(InstructionField.CHANNEL_ID)

    @property
    def uses_global_device_ids(self) -> bool:
        """Whether replica groups hold device ids."""
        return self.message.integer(InstructionField.USE_GLOBAL_DEVICE_IDS) != 0

    @property
    def replica_groups(self) -> tuple[tuple[int, ...], ...]:
        """Of a collective, from the old field or the new; none for all replicas together.

        Raises:
            ValueError: The new field contradicts itself.
        """
        if self.message.has(InstructionField.REPLICA_GROUPS):
            return _groups(self.message.messages(InstructionField.REPLICA_GROUPS))
        devices = self.message.message(InstructionField.COLLECTIVE_DEVICE_LIST)
        if devices.has(DeviceListField.REPLICA_GROUPS):
            return _groups(devices.messages(DeviceListField.REPLICA_GROUPS))
        if devices.has(DeviceListField.IOTA_REPLICA_GROUP_LIST):
            return _iota_groups(devices.message(DeviceListField.IOTA_REPLICA_GROUP_LIST))
        return ()

    @property
    def dot_dimensions(self) -> DotDimensions:
        """Of a dot."""
        numbers = self.message.message(InstructionField.DOT_DIMENSION_NUMBERS)
        return DotDimensions(
            numbers.integers(DotField.LHS_CONTRACTING),
            numbers.integers(DotField.RHS_CONTRACTING),
            numbers.integers(DotField.LHS_BATCH),
            numbers.integers(DotField.RHS_BATCH),
        )

    @property
    def gather_dimensions(self) -> GatherDimensions:
        """Of a gather."""
        numbers = self.message.message(InstructionField.GATHER_DIMENSION_NUMBERS)
        return GatherDimensions(
            numbers.integers(GatherField.OFFSET_DIMS),
            numbers.integers(GatherField.COLLAPSED_SLICE_DIMS),
            numbers.integers(GatherField.START_INDEX_MAP),
            numbers.integer(GatherField.INDEX_VECTOR_DIM),
            self.message.integers(InstructionField.GATHER_SLICE_SIZES),
        )

    @property
    def window(self) -> tuple[WindowDimension, ...]:
        """Of a convolution or reduce-window; dilations that are not said are 1."""
        return tuple(
            WindowDimension(
                dimension.integer(WindowField.SIZE),
                max(1, dimension.integer(WindowField.STRIDE)),
                dimension.integer(WindowField.PADDING_LOW),
                dimension.integer(WindowField.PADDING_HIGH),
                max(1, dimension.integer(WindowField.WINDOW_DILATION)),
                max(1, dimension.integer(WindowField.BASE_DILATION)),
            )
            for dimension in self.message.message(InstructionField.WINDOW).messages(ELEMENTS)
        )

    @property
    def literal_bytes(self) -> int:
        """Of a constant, the size of its value in the file; 0 of any other."""
        return len(self.message.blob(InstructionField.LITERAL))

    @property
    def op_name(self) -> str:
        """What the framework called it; empty where that is not known."""
        return self.message.message(InstructionField.METADATA).text(MetadataField.OP_NAME)

    def with_name(self, name: str) -> Instruction:
        """Itself under another name."""
        return Instruction(self.message.with_text(InstructionField.NAME, name))

    def with_id(self, id: int) -> Instruction:
        """Itself with another id."""
        return Instruction(self.message.with_integer(InstructionField.ID, id))

    def with_shape(self, shape: Shape) -> Instruction:
        """Itself with a result of another type."""
        return Instruction(self.message.with_message(InstructionField.SHAPE, write_shape(shape)))

    def with_operands(self, operand_ids: Sequence[int]) -> Instruction:
        """Itself of other operands."""
        return Instruction(self.message.with_integers(InstructionField.OPERAND_IDS, operand_ids))

    def with_control_predecessors(self, ids: Sequence[int]) -> Instruction:
        """Itself after other instructions."""
        return Instruction(self.message.with_integers(InstructionField.CONTROL_PREDECESSOR_IDS, ids))

    def with_called_computations(self, ids: Sequence[int]) -> Instruction:
        """Itself applying other computations."""
        return Instruction(self.message.with_integers(InstructionField.CALLED_COMPUTATION_IDS, ids))

    def with_replica_groups(self, groups: Sequence[Sequence[int]]) -> Instruction:
        """Itself over other groups, in the old field, which every XLA reads."""
        message = self.message.without(InstructionField.COLLECTIVE_DEVICE_LIST)
        lists = [Message().with_integers(ELEMENTS, group) for group in groups]
        return Instruction(message.with_messages(InstructionField.REPLICA_GROUPS, lists))


def reduce_precision(operand: Instruction, id: int, *, exponent_bits: int, mantissa_bits: int) -> Instruction:
    """An instruction that rounds `operand` to fewer bits and keeps its element type: 8 and 7 is bf16, 8 and 10 tf32."""
    made = Instruction.make("reduce-precision", operand.shape, id=id, operand_ids=(operand.id,))
    message = made.message.with_integer(InstructionField.EXPONENT_BITS, exponent_bits)
    return Instruction(message.with_integer(InstructionField.MANTISSA_BITS, mantissa_bits))


def _groups(lists: Sequence[Message]) -> tuple[tuple[int, ...], ...]:
    return tuple(group.integers(ELEMENTS) for group in lists)


def _iota_groups(iota: Message) -> tuple[tuple[int, ...], ...]:
    """Replicas 0, 1, 2 ... arranged in `dims`, transposed, read row by row in groups of one size."""
    groups = iota.integer(IotaField.NUM_REPLICA_GROUPS)
    per_group = iota.integer(IotaField.NUM_DEVICES_PER_GROUP)
    if not (0 < groups <= _MOST_REPLICAS and 0 < per_group <= _MOST_REPLICAS):
        raise ValueError(f"{groups} replica groups of {per_group}")
    dims = iota.integers(IotaField.IOTA_RESHAPE_DIMS)
    dims = dims if len(dims) > 0 else (groups * per_group,)
    order = iota.integers(IotaField.IOTA_TRANSPOSE_PERM)
    order = order if len(order) > 0 else tuple(range(len(dims)))
    total = prod(dims)
    if (
        min(dims) < 1
        or total != groups * per_group
        or total > _MOST_REPLICAS
        or sorted(order) != list(range(len(dims)))
    ):
        raise ValueError(f"{groups} replica groups of {per_group} out of {list(dims)} transposed by {list(order)}")
    strides = [1] * len(dims)
    for axis in reversed(range(len(dims) - 1)):
        strides[axis] = strides[axis + 1] * dims[axis + 1]
    replicas = [
        sum(strides[axis] * place for axis, place in zip(order, places, strict=True))
        for places in product(*(range(dims[axis]) for axis in order))
    ]
    return tuple(tuple(replicas[start : start + per_group]) for start in range(0, total, per_group))
