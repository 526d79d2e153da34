"""The same graph in another arithmetic: rounded as neuronx-cc's --auto-cast rounds, or not rounded at all.

Both rewrite the module that was lowered, so that what is executed differs from the artifact in nothing else. Roundings
survive XLA's own simplifications: bfloat16 and TF32 are `reduce-precision`, which it keeps; float16 is a conversion and
back, since `reduce-precision` to its 5 exponent bits flushes to zero what float16 holds as subnormal numbers, and
conversions are kept where excess precision is forbidden (see `xla.py`).

Source: aws-neuron/aws-neuron-sdk@master, neuron-compiler-cli-reference-guide.rst: --auto-cast matmult casts the
operands of FP32 matrix products, all casts all FP32 operations.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Final, Literal, TypeAlias

from llmcompile.hlo import Instruction, Module, Shape, reduce_precision
from llmcompile.hlo.fields import InstructionField
from llmcompile.hlo.module import Computation
from llmcompile.hlo.shape import write_shape

Mode: TypeAlias = Literal["matmul", "all"]
Kind: TypeAlias = Literal["bf16", "fp16", "tf32"]

_MANTISSA_BITS: Final[dict[Kind, int]] = {"bf16": 7, "tf32": 10}
_PRODUCTS: Final = ("dot", "convolution")
_FOLDS: Final = (
    "reduce",
    "reduce-window",
    "reduce-scatter",
    "all-reduce",
    "scatter",
    "select-and-scatter",
    "sort",
    "map",
)
"""Operations that apply a computation to scalars."""
_EXACT: Final = frozenset(
    (
        *("bitcast", "broadcast", "concatenate", "copy", "reshape", "reverse", "slice", "transpose", "pad"),
        *("dynamic-slice", "dynamic-update-slice", "gather", "select", "all-gather", "optimization-barrier"),
        *("abs", "negate", "maximum", "minimum"),
    )
)
"""Operations whose results are rounded where their operands are."""
_NARROW: Final = ("bf16", "f16")


def rounded(module: Module, mode: Mode, kind: Kind) -> Module:
    """The graph as --auto-cast would compute it, element types and border unchanged.

    Args:
        module: The lowered graph.
        mode: "matmul" rounds the float32 operands of matrix products and convolutions; "all" rounds every float32
            value, parameters and constants too.
        kind: What to round to: bf16 has 7 bits of mantissa, fp16 5 of exponent and 10 of mantissa, tf32 10 of mantissa.

    Returns:
        `module` itself where there is nothing to round.
    """
    fresh = module.fresh_ids()
    scalar = _folding(module)
    computations = []
    for computation in module.computations:
        if computation.id in scalar:
            computations.append(computation)
        elif mode == "all":
            computations.append(_all_rounded(computation, kind, fresh))
        else:
            computations.append(_operands_rounded(computation, kind, fresh))
    if all(new is old for new, old in zip(computations, module.computations, strict=True)):
        return module
    return module.with_computations(computations, entry_id=module.entry.id)


def widened(module: Module, states: Collection[int]) -> Module:
    """The graph in float32: what it would compute if no operation rounded to 16 bits.

    Args:
        module: The lowered graph, of any float types.
        states: Parameters that become float32 as well; any other is taken as it is, and converted.

    Returns:
        A graph whose results and `states` are float32 wherever they were bf16 or f16.
    """
    fresh = module.fresh_ids()
    entry = module.entry.id
    computations = [
        _widened(computation, fresh, kept=_others(computation, states) if computation.id == entry else frozenset())
        for computation in module.computations
    ]
    return module.with_computations(computations, entry_id=entry)


def _others(computation: Computation, states: Collection[int]) -> frozenset[int]:
    return frozenset(one.id for one in computation.parameters if one.parameter_number not in states)


def _folding(module: Module) -> frozenset[int]:
    """Computations of scalars, which is where sums are accumulated."""
    return frozenset(id for one in module.instructions if one.opcode in _FOLDS for id in one.called_computation_ids)


def _operands_rounded(computation: Computation, kind: Kind, fresh: Iterator[int]) -> Computation:
    instructions: list[Instruction] = []
    stand_in: dict[int, int] = {}
    for instruction in computation.instructions:
        if instruction.opcode in _PRODUCTS:
            for id in instruction.operand_ids:
                operand = computation.by_id[id]
                if id not in stand_in and operand.shape.dtype == "f32":
                    rounding = _rounding(operand, kind, fresh)
                    instructions += rounding
                    stand_in[id] = rounding[-1].id
            instruction = instruction.with_operands([stand_in.get(id, id) for id in instruction.operand_ids])
        instructions.append(instruction)
    if len(stand_in) == 0:
        return computation
    return computation.with_instructions(instructions, root_id=computation.root_id)


def _all_rounded(computation: Computation, kind: Kind, fresh: Iterator[int]) -> Computation:
    instructions: list[Instruction] = []
    stand_in: dict[int, int] = {}
    for instruction in computation.instructions:
        moved = instruction.with_operands([stand_in.get(id, id) for id in instruction.operand_ids])
        instructions.append(moved)
        if moved.shape.dtype == "f32" and moved.opcode not in _EXACT:
            rounding = _rounding(moved, kind, fresh)
            instructions += rounding
            stand_in[moved.id] = rounding[-1].id
    if len(stand_in) == 0:
        return computation
    return computation.with_instructions(instructions, root_id=stand_in.get(computation.root_id, computation.root_id))


def _rounding(operand: Instruction, kind: Kind, fresh: Iterator[int]) -> list[Instruction]:
    """Instructions the last of which is `operand`, a float32 value, rounded."""
    if kind != "fp16":
        return [reduce_precision(operand, next(fresh), exponent_bits=8, mantissa_bits=_MANTISSA_BITS[kind])]
    there = _converted(operand, "f16", fresh)
    return [there, _converted(there, "f32", fresh)]


def _widened(computation: Computation, fresh: Iterator[int], kept: Collection[int]) -> Computation:
    """In float32; constants and the parameters in `kept` are converted after they are read."""
    instructions: list[Instruction] = []
    stand_in: dict[int, int] = {}
    for instruction in computation.instructions:
        if instruction.opcode == "constant" or instruction.id in kept:
            instructions.append(instruction)
            if instruction.shape.dtype in _NARROW:
                instructions.append(_converted(instruction, "f32", fresh))
                stand_in[instruction.id] = instructions[-1].id
            continue
        moved = instruction.with_operands([stand_in.get(id, id) for id in instruction.operand_ids])
        instructions.append(_of_shape(moved, _wide(moved.shape)))
    return computation.with_instructions(instructions, root_id=stand_in.get(computation.root_id, computation.root_id))


def _wide(shape: Shape) -> Shape:
    if shape.dtype == "tuple":
        return replace(shape, elements=tuple(_wide(element) for element in shape.elements))
    return replace(shape, dtype="f32") if shape.dtype in _NARROW else shape


def _converted(operand: Instruction, dtype: str, fresh: Iterator[int]) -> Instruction:
    shape = replace(operand.shape, dtype=dtype)
    return Instruction.make("convert", shape, id=next(fresh), operand_ids=(operand.id,))


def _of_shape(instruction: Instruction, shape: Shape) -> Instruction:
    if shape == instruction.shape:
        return instruction
    return Instruction(instruction.message.with_message(InstructionField.SHAPE, write_shape(shape)))
