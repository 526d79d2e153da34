"""How much memory a graph needs on a core: what is certain, and a low estimate of what lives in between."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llmcompile.hlo.instruction import Instruction
from llmcompile.hlo.module import Computation, Module

_VIEWS = frozenset(
    ("bitcast", "broadcast", "constant", "get-tuple-element", "iota", "parameter", "reshape", "slice", "tuple")
)
"""Never memory of their own: read where they lie, or made where they are needed."""
_IN_PLACE = frozenset(("dynamic-update-slice", "scatter", "while"))
"""Written over their operand."""
_ELEMENTWISE = frozenset(
    (
        *("abs", "add", "and", "atan2", "bitcast-convert", "cbrt", "ceil", "clamp", "compare", "convert", "copy"),
        *("cosine", "divide", "dynamic-slice", "erf", "exponential", "exponential-minus-one", "floor", "is-finite"),
        *("log", "log-plus-one", "logistic", "maximum", "minimum", "multiply", "negate", "not", "or", "pad", "power"),
        *("remainder", "reverse", "round-nearest-afz", "round-nearest-even", "rsqrt", "select", "sign", "sine"),
        *("shift-left", "shift-right-arithmetic", "shift-right-logical", "sqrt", "subtract", "tan", "tanh"),
        *("transpose", "xor"),
    )
)
"""Computed with their user where they have only one; else written over an operand that nobody needs any more."""


@dataclass(frozen=True)
class Memory:
    """Bytes of a core.

    Attributes:
        parameters: Inputs, caches and weights.
        results: Those that are not written over a parameter.
        constants: Literals in the graph.
        temporaries: The most that lives at once in between; a low estimate.
    """

    parameters: int
    results: int
    constants: int
    temporaries: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.parameters + self.results + self.constants + self.temporaries


def memory(module: Module) -> Memory:
    """What a graph needs on a core besides the runtime's own.

    Temporaries are those of the instructions' order, with what a compiler can leave out left out: views, element-wise
    operations with one user, and updates in place. A real compiler tiles and reorders, and may need more or less.
    """
    aliased = {alias.output_index for alias in module.aliases}
    results = [shape for place, shape in enumerate(module.results) if (place,) not in aliased]
    constants = [one.shape for one in module.instructions if one.opcode == "constant"]
    return Memory(
        parameters=sum(parameter.shape.size_bytes for parameter in module.parameters),
        results=sum(shape.size_bytes for shape in results),
        constants=sum(shape.size_bytes for shape in constants),
        temporaries=_peaks(module)[module.entry.id],
    )


def _peaks(module: Module) -> Mapping[int, int]:
    """The most that lives at once in each computation, without what it takes and gives."""
    peaks: dict[int, int] = {}
    for computation in module.computations:
        peaks[computation.id] = _peak(computation, peaks)
    return peaks


def _peak(computation: Computation, peaks: Mapping[int, int]) -> int:
    last_uses = _last_uses(computation)
    dying: dict[int, list[int]] = {}
    for owner, place in last_uses.items():
        dying.setdefault(place, []).append(owner)
    sizes = {owner: computation.by_id[owner].shape.size_bytes for owner in last_uses}
    live = peak = 0
    for place, instruction in enumerate(computation.instructions):
        freed = sum(sizes[owner] for owner in dying.get(place, ()) if owner != instruction.id)
        if instruction.opcode in _ELEMENTWISE:
            live, freed = live - freed, 0
        live += sizes.get(instruction.id, 0)
        inside = max((peaks[id] for id in instruction.called_computation_ids), default=0)
        peak = max(peak, live + inside)
        live -= freed
        if last_uses.get(instruction.id) == place:
            live -= sizes[instruction.id]
    return peak


def _last_uses(computation: Computation) -> dict[int, int]:
    """Instructions with memory of their own that is no result -> the place of the last that reads it."""
    users = _users(computation)
    reads: dict[int, frozenset[int]] = {}
    last: dict[int, int] = {}
    for place, instruction in enumerate(computation.instructions):
        read = frozenset[int]().union(*(reads[id] for id in instruction.operand_ids))
        if _owns(instruction, users.get(instruction.id, 0)):
            last[instruction.id] = place
            last.update(dict.fromkeys(read, place))
            read = frozenset((instruction.id,))
        reads[instruction.id] = read
    for result in reads[computation.root_id]:
        del last[result]
    return last


def _owns(instruction: Instruction, users: int) -> bool:
    if instruction.opcode in _VIEWS or instruction.opcode in _IN_PLACE:
        return False
    return instruction.opcode not in _ELEMENTWISE or users != 1


def _users(computation: Computation) -> Mapping[int, int]:
    users: dict[int, int] = {}
    for instruction in computation.instructions:
        for id in set(instruction.operand_ids):
            users[id] = users.get(id, 0) + 1
    return users
