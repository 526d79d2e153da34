"""What JAX lowers, as an older XLA, the one inside neuronx-cc, reads it.

Since the middle of 2025 XLA numbers instructions (computation << 32 | place), which older readers refuse
(pytorch/xla#9685), and spells replica groups in a field that older readers skip. Debug information differs with every
file a graph is traced from, so it is dropped: equal graphs are equal bytes, which is what a compile cache hashes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from llmcompile.hlo.fields import ComputationField, InstructionField, ModuleField
from llmcompile.hlo.instruction import Instruction
from llmcompile.hlo.module import Alias, Computation, Module, parse, serialize
from llmcompile.hlo.shape import Shape
from llmcompile.hlo.wire import Message

ALL_REDUCE = "llmcompile_all_reduce"
"""Target of the custom-call that stands for the sum over all ranks."""
ALL_GATHER = "llmcompile_all_gather_"
"""Followed by a dimension: target of the custom-call that stands for all ranks' shares one after another."""
NAME = "main"
"""Of every module and of its entry, so that the bytes do not depend on what a function was called."""

_MODULE_FIELDS = (
    ModuleField.COMPUTATIONS,
    ModuleField.ENTRY_COMPUTATION_ID,
    ModuleField.INPUT_OUTPUT_ALIAS,
    ModuleField.IS_DYNAMIC,
)
_DEBUG_FIELDS = (
    InstructionField.METADATA,
    InstructionField.SHARDING,
    InstructionField.FRONTEND_ATTRIBUTES,
    InstructionField.STATISTICS_VIZ,
    InstructionField.ORIGINAL_VALUE,
    InstructionField.IS_COMPOSITE,
    InstructionField.RESULT_ACCURACY,
)
"""Of an instruction: where it comes from, and hints to passes that a single core does not run."""


def normalise(module: bytes, *, parameter_names: Sequence[str], ranks: int) -> bytes:
    """Rewrite a serialized HloModuleProto of any XLA since the end of 2024 for an older one.

    Ids become consecutive and small; calls are inlined; computations that nothing applies are dropped; marker
    custom-calls become collectives over all replicas; the result is a tuple; names are "base.id", and everything that
    only describes where the graph came from is dropped. Aliases of parameters stay.

    Args:
        module: What `lowered.compiler_ir("hlo").as_serialized_hlo_module_proto()` gives.
        parameter_names: Of the entry's parameters, in order; what is no letter or digit becomes an underscore.
        ranks: Replicas that run the module together.

    Raises:
        ValueError: The bytes are no module, the names are not as many as the parameters, a marker does not fit the
            number of ranks.
    """
    parsed = parse(module)
    if len(parsed.parameters) != len(parameter_names):
        raise ValueError(f"{len(parameter_names)} names for {len(parsed.parameters)} parameters")
    return serialize(_renumbered(_with_tuple(_with_collectives(_inlined(_bare(parsed)), ranks)), parameter_names))


def _bare(module: Module) -> Module:
    """Without debug information, and with replica groups in the old field."""
    fields = tuple(field for field in module.message.fields if field.number in _MODULE_FIELDS)
    computations = []
    for computation in module.computations:
        instructions = []
        for instruction in computation.instructions:
            bare = _row_major(Instruction(instruction.message.without(*_DEBUG_FIELDS)))
            listed = bare.message.has(InstructionField.COLLECTIVE_DEVICE_LIST)
            instructions.append(bare.with_replica_groups(instruction.replica_groups) if listed else bare)
        bare_computation = Computation(
            Message()
            .with_text(ComputationField.NAME, computation.name)
            .with_integer(ComputationField.ID, computation.id)
        )
        computations.append(bare_computation.with_instructions(instructions, root_id=computation.root_id))
    return Module(Message(fields)).with_computations(computations, entry_id=module.entry.id)


def _row_major(instruction: Instruction) -> Instruction:
    """Its result's last dimension varying fastest: a transpose comes with a hint to leave the data where it is."""
    if instruction.shape.is_row_major:
        return instruction
    return instruction.with_shape(instruction.shape.row_major)


def _inlined(module: Module) -> Module:
    """With what `call` calls in its place, and only what the entry needs, callees first."""
    fresh = module.fresh_ids()
    inlined: dict[int, Computation] = {}
    for computation in module.computations:
        inlined[computation.id] = _with_callees(computation, inlined, fresh)
    return module.with_computations(_reached(inlined, module.entry.id), entry_id=module.entry.id)


def _with_callees(computation: Computation, callees: Mapping[int, Computation], fresh: Iterator[int]) -> Computation:
    """Itself with a copy of the callee for each call; the call's users take the copy's root."""
    instructions: list[Instruction] = []
    results: dict[int, int] = {}
    for instruction in computation.instructions:
        if instruction.opcode != "call":
            instructions.append(_redirected(instruction, results))
            continue
        operands = [results.get(id, id) for id in instruction.operand_ids]
        callee = callees[instruction.called_computation_ids[0]]
        copies = {parameter.id: operand for parameter, operand in zip(callee.parameters, operands, strict=True)}
        for inner in callee.instructions:
            if inner.opcode != "parameter":
                copies[inner.id] = next(fresh)
                instructions.append(_redirected(inner, copies).with_id(copies[inner.id]))
        results[instruction.id] = copies[callee.root_id]
    return computation.with_instructions(instructions, root_id=results.get(computation.root_id, computation.root_id))


def _redirected(instruction: Instruction, ids: Mapping[int, int]) -> Instruction:
    """Itself of the operands that stand for its own."""
    moved = instruction.with_operands([ids.get(id, id) for id in instruction.operand_ids])
    return moved.with_control_predecessors([ids.get(id, id) for id in instruction.control_predecessor_ids])


def _reached(computations: Mapping[int, Computation], entry_id: int) -> list[Computation]:
    """The entry and what it applies, callees first, in the order they are needed."""
    reached: dict[int, Computation] = {}

    def visit(computation: Computation) -> None:
        for instruction in computation.instructions:
            for id in instruction.called_computation_ids:
                if id not in reached:
                    visit(computations[id])
        reached[computation.id] = computation

    visit(computations[entry_id])
    return list(reached.values())


def _with_collectives(module: Module, ranks: int) -> Module:
    """With an all-reduce or all-gather over all replicas for each marker."""
    fresh = module.fresh_ids()
    sums: dict[str, Computation] = {}
    computations = []
    for computation in module.computations:
        instructions = []
        for instruction in computation.instructions:
            target = instruction.custom_call_target
            if target == ALL_REDUCE:
                dtype = instruction.shape.dtype
                if dtype not in sums:
                    sums[dtype] = _sum(dtype, fresh)
                instructions.append(_all_reduce(instruction, sums[dtype], ranks))
            elif target.startswith(ALL_GATHER):
                operand = computation.by_id[instruction.operand_ids[0]].shape
                instructions.append(_all_gather(instruction, operand, ranks))
            else:
                instructions.append(instruction)
        computations.append(computation.with_instructions(instructions, root_id=computation.root_id))
    return module.with_computations([*sums.values(), *computations], entry_id=module.entry.id)


def _sum(dtype: str, fresh: Iterator[int]) -> Computation:
    """The sum of two scalars."""
    scalar = Shape(dtype)
    left = Instruction.make("parameter", scalar, id=next(fresh))
    right = Instruction.make("parameter", scalar, id=next(fresh))
    right = Instruction(right.message.with_integer(InstructionField.PARAMETER_NUMBER, 1))
    total = Instruction.make("add", scalar, id=next(fresh), operand_ids=(left.id, right.id))
    return Computation(Message()).with_id(next(fresh)).with_instructions((left, right, total), root_id=total.id)


def _all_reduce(marker: Instruction, total: Computation, ranks: int) -> Instruction:
    _check_ranks(marker, ranks)
    made = Instruction.make("all-reduce", marker.shape, id=marker.id, operand_ids=marker.operand_ids)
    return made.with_called_computations((total.id,)).with_replica_groups((range(ranks),))


def _all_gather(marker: Instruction, operand: Shape, ranks: int) -> Instruction:
    _check_ranks(marker, ranks)
    text = marker.custom_call_target.removeprefix(ALL_GATHER)
    axis = int(text) if text.isdecimal() else len(operand.dims)
    gathered = tuple(size * ranks if place == axis else size for place, size in enumerate(operand.dims))
    if axis >= len(operand.dims) or marker.shape.dims != gathered:
        raise ValueError(f"{marker.custom_call_target} of {operand} gives {marker.shape}; {ranks} ranks give another")
    made = Instruction.make("all-gather", marker.shape, id=marker.id, operand_ids=marker.operand_ids)
    made = Instruction(made.message.with_integers(InstructionField.DIMENSIONS, (axis,)))
    return made.with_replica_groups((range(ranks),))


def _check_ranks(marker: Instruction, ranks: int) -> None:
    if ranks < 2:
        raise ValueError(f"{marker.custom_call_target} in a module of {ranks} rank; expected no collective")


def _with_tuple(module: Module) -> Module:
    """With a tuple of one for a single result, which is how PyTorch/XLA's modules end."""
    entry = module.entry
    if entry.root.shape.dtype == "tuple":
        return module
    shape = Shape("tuple", elements=(entry.root.shape,))
    root = Instruction.make("tuple", shape, id=next(module.fresh_ids()), operand_ids=(entry.root_id,))
    tupled = module.with_computation(entry.with_instructions((*entry.instructions, root), root_id=root.id))
    aliases = [Alias((0,), alias.parameter, alias.parameter_index, alias.kind) for alias in module.aliases]
    return tupled.with_aliases(aliases)


def _renumbered(module: Module, parameter_names: Sequence[str]) -> Module:
    """With ids from 1, computations first, and the names that follow from them."""
    computation_ids = {computation.id: place for place, computation in enumerate(module.computations, start=1)}
    last = len(computation_ids)
    computations = []
    for computation in module.computations:
        is_entry = computation.id == module.entry.id
        ids = {instruction.id: last + place for place, instruction in enumerate(computation.instructions, start=1)}
        last += len(ids)
        instructions = []
        for instruction in computation.instructions:
            base = instruction.opcode
            if is_entry and base == "parameter":
                base = re.sub(r"[^A-Za-z0-9]", "_", parameter_names[instruction.parameter_number])
            moved = _redirected(instruction, ids).with_id(ids[instruction.id])
            called = [computation_ids[id] for id in instruction.called_computation_ids]
            moved = moved.with_called_computations(called).with_name(f"{base}.{ids[instruction.id]}")
            instructions.append(Instruction(moved.message.in_order()))
        id = computation_ids[computation.id]
        numbered = computation.with_id(id).with_name(f"{NAME if is_entry else 'region'}.{id}")
        numbered = numbered.with_instructions(instructions, root_id=ids[computation.root_id])
        computations.append(Computation(numbered.message.in_order()))
    renumbered = module.with_computations(computations, entry_id=computation_ids[module.entry.id])
    aliases = sorted(module.aliases, key=lambda alias: alias.output_index)
    renumbered = renumbered.with_aliases(aliases)
    return Module(renumbered.message.with_text(ModuleField.NAME, NAME).in_order())
