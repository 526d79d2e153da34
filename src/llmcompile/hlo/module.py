"""A program, as HloModuleProto holds it: its computations, its border and what is written over its parameters.

A view holds the message it was read from, so that what it does not know of survives; changes give another view.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from types import MappingProxyType

from llmcompile.hlo.fields import (
    ELEMENTS,
    AliasField,
    ComputationField,
    InstructionField,
    ModuleField,
    ProgramShapeField,
)
from llmcompile.hlo.instruction import Instruction
from llmcompile.hlo.shape import Shape
from llmcompile.hlo.wire import Message


@dataclass(frozen=True)
class Computation:
    """A function of the module.

    Attributes:
        message: HloComputationProto.
    """

    message: Message

    @cached_property
    def name(self) -> str:
        """Unique in the module."""
        return self.message.text(ComputationField.NAME)

    @cached_property
    def id(self) -> int:
        """Unique among the module's computations."""
        return self.message.integer(ComputationField.ID)

    @cached_property
    def root_id(self) -> int:
        """The instruction whose result is the computation's."""
        return self.message.integer(ComputationField.ROOT_ID)

    @cached_property
    def instructions(self) -> tuple[Instruction, ...]:
        """Operands before their users."""
        return tuple(Instruction(message) for message in self.message.messages(ComputationField.INSTRUCTIONS))

    @cached_property
    def by_id(self) -> Mapping[int, Instruction]:
        """The instructions."""
        return {instruction.id: instruction for instruction in self.instructions}

    @property
    def root(self) -> Instruction:
        """The instruction whose result is the computation's."""
        return self.by_id[self.root_id]

    @cached_property
    def parameters(self) -> tuple[Instruction, ...]:
        """In the order of their numbers."""
        found = [instruction for instruction in self.instructions if instruction.opcode == "parameter"]
        return tuple(sorted(found, key=lambda instruction: instruction.parameter_number))

    def with_instructions(self, instructions: Sequence[Instruction], *, root_id: int) -> Computation:
        """Itself of other instructions, with the program shape that follows from them."""
        messages = [instruction.message for instruction in instructions]
        message = self.message.with_messages(ComputationField.INSTRUCTIONS, messages)
        parameters = sorted(
            (one for one in instructions if one.opcode == "parameter"), key=lambda one: one.parameter_number
        )
        root = next(one for one in instructions if one.id == root_id)
        message = message.with_integer(ComputationField.ROOT_ID, root_id)
        made = Computation(message.with_message(ComputationField.PROGRAM_SHAPE, _program_shape(parameters, root)))
        # What the cached property would read back from the message, which is most of the time of a rewrite.
        vars(made)["instructions"] = tuple(instructions)
        return made

    def with_id(self, id: int) -> Computation:
        """Itself with another id."""
        return Computation(self.message.with_integer(ComputationField.ID, id))

    def with_name(self, name: str) -> Computation:
        """Itself under another name."""
        return Computation(self.message.with_text(ComputationField.NAME, name))


@dataclass(frozen=True)
class Alias:
    """A result that is written over a parameter.

    Attributes:
        output_index: Way into the result's tuple.
        parameter: Number of the parameter.
        parameter_index: Way into the parameter's tuple.
        kind: 1 where they may share memory, 2 where they must.
    """

    output_index: tuple[int, ...]
    parameter: int
    parameter_index: tuple[int, ...] = ()
    kind: int = 1


@dataclass(frozen=True)
class Module:
    """A program.

    Attributes:
        message: HloModuleProto.
    """

    message: Message

    @property
    def name(self) -> str:
        """Of the module."""
        return self.message.text(ModuleField.NAME)

    @cached_property
    def computations(self) -> tuple[Computation, ...]:
        """Callees before their callers."""
        return tuple(Computation(message) for message in self.message.messages(ModuleField.COMPUTATIONS))

    @cached_property
    def by_id(self) -> Mapping[int, Computation]:
        """The computations."""
        return {computation.id: computation for computation in self.computations}

    @property
    def entry(self) -> Computation:
        """The computation that is run."""
        return self.by_id[self.message.integer(ModuleField.ENTRY_COMPUTATION_ID)]

    @property
    def parameters(self) -> tuple[Instruction, ...]:
        """Of the entry, in the order of their numbers."""
        return self.entry.parameters

    @property
    def results(self) -> tuple[Shape, ...]:
        """Of the entry: the elements of its tuple, or its one result."""
        shape = self.entry.root.shape
        return shape.elements if shape.dtype == "tuple" else (shape,)

    @property
    def instructions(self) -> Iterator[Instruction]:
        """Of all computations."""
        return (instruction for computation in self.computations for instruction in computation.instructions)

    @property
    def aliases(self) -> tuple[Alias, ...]:
        """Results written over parameters."""
        return tuple(
            Alias(
                entry.integers(AliasField.OUTPUT_SHAPE_INDEX),
                entry.integer(AliasField.PARAMETER_NUMBER),
                entry.integers(AliasField.PARAMETER_SHAPE_INDEX),
                entry.integer(AliasField.KIND),
            )
            for entry in self.message.message(ModuleField.INPUT_OUTPUT_ALIAS).messages(ELEMENTS)
        )

    @property
    def opcodes(self) -> Counter[str]:
        """How often each opcode occurs, in all computations."""
        return Counter(instruction.opcode for instruction in self.instructions)

    def fresh_ids(self) -> Iterator[int]:
        """Ids that no instruction and no computation has, ascending."""
        taken = max((instruction.id for instruction in self.instructions), default=0)
        return count(max(taken, *(computation.id for computation in self.computations), 0) + 1)

    def with_computations(self, computations: Sequence[Computation], *, entry_id: int) -> Module:
        """Itself of other computations, with the program shape that follows from them."""
        messages = [computation.message for computation in computations]
        entry = next(computation for computation in computations if computation.id == entry_id)
        message = self.message.with_messages(ModuleField.COMPUTATIONS, messages)
        message = message.with_text(ModuleField.ENTRY_COMPUTATION_NAME, entry.name)
        message = message.with_integer(ModuleField.ENTRY_COMPUTATION_ID, entry_id)
        shape = _program_shape(entry.parameters, entry.root)
        made = Module(message.with_message(ModuleField.HOST_PROGRAM_SHAPE, shape))
        vars(made)["computations"] = tuple(computations)  # as above
        return made

    def with_computation(self, computation: Computation) -> Module:
        """Itself with one computation in the place of that of the same id."""
        changed = [computation if computation.id == other.id else other for other in self.computations]
        return self.with_computations(changed, entry_id=self.entry.id)

    def with_aliases(self, aliases: Sequence[Alias]) -> Module:
        """Itself with other results written over parameters."""
        if len(aliases) == 0:
            return Module(self.message.without(ModuleField.INPUT_OUTPUT_ALIAS))
        entries = [
            Message()
            .with_integers(AliasField.OUTPUT_SHAPE_INDEX, alias.output_index)
            .with_integer(AliasField.PARAMETER_NUMBER, alias.parameter)
            .with_integers(AliasField.PARAMETER_SHAPE_INDEX, alias.parameter_index)
            .with_integer(AliasField.KIND, alias.kind)
            for alias in aliases
        ]
        return Module(
            self.message.with_message(ModuleField.INPUT_OUTPUT_ALIAS, Message().with_messages(ELEMENTS, entries))
        )


_LEAST_OPERANDS: Mapping[str, int] = MappingProxyType(
    {"all-gather": 1, "all-reduce": 1, "convolution": 2, "dot": 2, "gather": 2, "reduce": 2, "scatter": 3, "topk": 1}
)
"""Of those that are looked at more closely."""


def parse(data: bytes) -> Module:
    """Read a serialized HloModuleProto.

    Raises:
        ValueError: The bytes are truncated, no HloModuleProto, or refer to what is not in them.
    """
    module = Module(Message.parse(data))
    if len(module.computations) == 0:
        raise ValueError("no computation; expected a serialized HloModuleProto")
    entry_id = module.message.integer(ModuleField.ENTRY_COMPUTATION_ID)
    known: set[int] = set()
    for computation in module.computations:
        _check(computation, known)
        if computation.id in known:
            raise ValueError(f"computation {computation.name}: id {computation.id} twice")
        known.add(computation.id)
    if entry_id not in known:
        raise ValueError(f"no computation of id {entry_id}, which is the entry's")
    for alias in module.aliases:
        if not 0 <= alias.parameter < len(module.parameters):
            raise ValueError(f"an alias of parameter {alias.parameter} of {len(module.parameters)}")
        _check_index(module.entry.root.shape, alias.output_index)
        _check_index(module.parameters[alias.parameter].shape, alias.parameter_index)
    return module


def serialize(module: Module) -> bytes:
    """The module's bytes: of one that was parsed and not changed, those it was parsed from."""
    return module.message.serialize()


def _check(computation: Computation, callees: set[int]) -> None:
    """Raise ValueError unless everything an instruction refers to stands before it."""
    known: set[int] = set()
    for instruction in computation.instructions:
        where = f"{computation.name}: {instruction.name}"
        if instruction.opcode == "" or instruction.shape.dtype == "type0":
            raise ValueError(f"{where}: opcode {instruction.opcode!r} of {instruction.shape}")
        if len(instruction.operand_ids) < _LEAST_OPERANDS.get(instruction.opcode, 0):
            raise ValueError(f"{where}: {instruction.opcode} of {len(instruction.operand_ids)} operands")
        for id in (*instruction.operand_ids, *instruction.control_predecessor_ids):
            if id not in known:
                raise ValueError(f"{where}: operand {id}, which does not stand before it")
        for id in instruction.called_computation_ids:
            if id not in callees:
                raise ValueError(f"{where}: computation {id}, which does not stand before it")
        if instruction.id in known:
            raise ValueError(f"{where}: id {instruction.id} twice")
        known.add(instruction.id)
    if computation.root_id not in known:
        raise ValueError(f"{computation.name}: no instruction of id {computation.root_id}, which is the root's")
    numbers = [parameter.parameter_number for parameter in computation.parameters]
    if numbers != list(range(len(numbers))):
        raise ValueError(f"{computation.name}: parameters {numbers}; expected 0 to {len(numbers) - 1}, each once")


def _check_index(shape: Shape, index: Sequence[int]) -> None:
    for position in index:
        if not 0 <= position < len(shape.elements):
            raise ValueError(f"an alias of element {list(index)} of {shape}")
        shape = shape.elements[position]


def _program_shape(parameters: Sequence[Instruction], root: Instruction) -> Message:
    message = Message().with_messages(
        ProgramShapeField.PARAMETERS, [parameter.message.message(InstructionField.SHAPE) for parameter in parameters]
    )
    message = message.with_message(ProgramShapeField.RESULT, root.message.message(InstructionField.SHAPE))
    return message.with_texts(ProgramShapeField.PARAMETER_NAMES, [parameter.name for parameter in parameters])
