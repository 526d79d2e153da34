"""What neuronx-cc would reject an hour later, and what the runtime would reject after it, found in the graph.

Nothing here replaces the compiler: a graph without findings may still fail. Codes are those the compiler documents
(aws-neuron/aws-neuron-sdk@81ce03ae:compiler/error-codes/index.rst); a finding without one is a rule of another source,
or of our own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import ceil, prod

from llmcompile.errors import Problem
from llmcompile.exporters.neuron.flags import LNC
from llmcompile.exporters.neuron.memory import memory
from llmcompile.exporters.neuron.rules import ERROR, WARNING, Finding, Place, check_instruction
from llmcompile.exporters.neuron.targets import CODE_BYTES, TARGETS, core_bytes, gib
from llmcompile.hlo.instruction import Instruction
from llmcompile.hlo.module import Computation, Module, parse

OUT_OF_MEMORY = "NCC_EOOM001"
TOO_MANY_INSTRUCTIONS = "NCC_EXTP004"
MOST_INSTRUCTIONS = 5_000_000
"""Of a compiled graph: "[XTP003] Number of instructions (10046893) is over the threshold (5000000)".

Source: aws-neuron/aws-neuron-sdk#1003; the list of codes gives no number.
"""
_STATIONARY, _MOVING = 128, 512
"""Rows and columns that one instruction of the matrix engine multiplies at most.

Source: aws-neuron/aws-neuron-sdk@81ce03ae:nki/guides/architecture/trainium_inferentia2_arch.rst.
"""
_LARGEST_ID = (1 << 31) - 1


def check(
    module: Module | bytes, *, target: str, ranks: int = 1, lnc: int | None = None, divisible: bool = True
) -> list[Finding]:
    """Everything that is wrong with a graph, errors first; equal findings of several instructions are one.

    Args:
        module: A normalised graph, or its bytes.
        target: The instance family: one of `TARGETS`.
        ranks: Cores that run the graph together.
        lnc: Physical cores a logical core is made of; None for the family's default.
        divisible: Whether the model can be split over more cores.

    Raises:
        ValueError: The bytes are no module.
    """
    graph = module if isinstance(module, Module) else parse(module)
    found = [*_module_findings(graph, target, ranks, lnc, divisible)]
    for computation in graph.computations:
        for instruction in computation.instructions:
            found += check_instruction(Place(instruction, computation, graph, target, ranks))
    return sorted(_counted(found), key=lambda finding: finding.level != ERROR)


def problems(findings: Sequence[Finding], graph: str = "") -> list[Problem]:
    """The errors among findings, for a PlanError.

    Args:
        findings: What `check` returned.
        graph: Name of the graph, to begin each subject with.
    """
    return [
        Problem(
            finding.where if graph == "" else f"{graph}: {finding.where}",
            finding.found if finding.code == "" else f"[{finding.code}] {finding.found}",
            finding.expected,
            finding.hint,
        )
        for finding in findings
        if finding.level == ERROR
    ]


def warnings(findings: Sequence[Finding]) -> tuple[str, ...]:
    """The warnings among findings, a line each."""
    return tuple(str(finding) for finding in findings if finding.level == WARNING)


def positions(sequence_length: int, max_position_embeddings: int) -> Problem | None:
    """What is wrong with a sequence longer than the table of positions: a gather beyond its operand."""
    if sequence_length <= max_position_embeddings:
        return None
    return Problem(
        "--sequence-length",
        f"[NCC_EVRF056] {sequence_length} with max_position_embeddings {max_position_embeddings}",
        f"at most {max_position_embeddings}",
        f"use --sequence-length {max_position_embeddings}",
    )


def topology(num_cores: int, target: str) -> list[Problem]:
    """What is wrong with so many cores of an instance family running one model together; nothing for most numbers."""
    if TARGETS[target].takes(num_cores):
        return []
    degrees = TARGETS[target].degrees
    nearest = next((cores for cores in degrees if cores > num_cores), degrees[-1])
    others = [name for name in TARGETS if TARGETS[name].takes(num_cores)]
    other = f", or --instance-type {' or '.join(others)}" if len(others) > 0 else ""
    found = f"{num_cores} on {target}, whose cores are not connected so"
    return [Problem("--num-cores", found, TARGETS[target].allowed, f"use --num-cores {nearest}{other}")]


def memory_problem(needed_bytes: int, target: str, num_cores: int, *, lnc: int | None = None) -> Problem | None:
    """What is wrong with weights and caches that a core has no room for; None where they fit.

    Args:
        needed_bytes: Weights and caches of one core, as they are split over `num_cores`.
        target: The instance family.
        num_cores: Cores the model is split over.
        lnc: Physical cores a logical core is made of; None for the family's default.
    """
    available = _available(target, lnc)
    if needed_bytes <= available:
        return None
    return Problem(
        "--num-cores",
        f"[{OUT_OF_MEMORY}] {num_cores}: {gib(needed_bytes)} of weights and caches on each core",
        f"at most {_room(target, lnc)}",
        _more_cores(needed_bytes, target, num_cores, lnc),
    )


def _module_findings(module: Module, target: str, ranks: int, lnc: int | None, divisible: bool) -> Iterator[Finding]:
    """What is wrong with the graph as a whole."""
    lncs = TARGETS[target].lncs
    if lnc is not None and lnc not in lncs:
        expected = " or ".join(str(size) for size in lncs)
        yield Finding(level=ERROR, code="NCC_EARG001", where="--lnc", found=f"{lnc} on {target}", expected=expected)
        lnc = None
    largest = max(instruction.id for instruction in module.instructions)
    if largest > _LARGEST_ID:
        found = f"instruction {largest}, which readers before the middle of 2025 refuse (pytorch/xla#9685)"
        yield Finding(level=ERROR, where=module.name, found=found, expected=f"at most {_LARGEST_ID}")
    yield from _memory_findings(module, target, ranks, lnc, divisible)
    yield from _size_findings(module, target, lnc, divisible)


def _memory_findings(module: Module, target: str, ranks: int, lnc: int | None, divisible: bool) -> Iterator[Finding]:
    needed, available = memory(module), _available(target, lnc)
    arithmetic = (
        f"{gib(needed.total)} = {gib(needed.parameters)} of weights, caches and inputs + {gib(needed.results)} of "
        f"outputs + {gib(needed.constants)} of constants + {gib(needed.temporaries)} or more in between"
    )
    if needed.total > available * 9 // 10:
        smaller = "lower --batch-size or --sequence-length"
        yield Finding(
            level=ERROR if needed.total > available else WARNING,
            code=OUT_OF_MEMORY,
            where="memory of a core",
            found=arithmetic,
            expected=f"at most {_room(target, lnc)}",
            hint=_more_cores(needed.total, target, ranks, lnc) if divisible else smaller,
        )


def _size_findings(module: Module, target: str, lnc: int | None, divisible: bool) -> Iterator[Finding]:
    """More instructions of the matrix engine than a graph may have; there are others, which are not counted."""
    multiplications = sum(
        _multiplications(instruction, computation)
        for computation in module.computations
        for instruction in computation.instructions
        if instruction.opcode == "dot"
    )
    least = ceil(multiplications / (LNC[target] if lnc is None else lnc))
    if least > MOST_INSTRUCTIONS:
        smaller = "lower --batch-size or --sequence-length"
        yield Finding(
            level=WARNING,
            code=TOO_MANY_INSTRUCTIONS,
            where="size of the graph",
            found=f"{least:,} or more instructions to multiply matrices",
            expected=f"at most {MOST_INSTRUCTIONS:,} of all kinds",
            hint=f"raise --num-cores, or {smaller}" if divisible else smaller,
        )


def _multiplications(dot: Instruction, computation: Computation) -> int:
    """Tiles that a dot falls into, with whichever operand stands still that makes fewer."""
    left, right = (computation.by_id[id].shape.dims for id in dot.operand_ids[:2])
    dimensions = dot.dot_dimensions
    batch = prod(left[axis] for axis in dimensions.lhs_batch if 0 <= axis < len(left))
    depth = prod(left[axis] for axis in dimensions.lhs_contracting if 0 <= axis < len(left))
    rows = prod(left) // max(1, batch * depth)
    columns = prod(right) // max(1, batch * depth)
    tiles = min(
        ceil(rows / _STATIONARY) * ceil(columns / _MOVING),
        ceil(rows / _MOVING) * ceil(columns / _STATIONARY),
    )
    return batch * ceil(depth / _STATIONARY) * tiles


def _available(target: str, lnc: int | None) -> int:
    """Memory of a logical core without the runtime's own code, of which every physical core has one."""
    return core_bytes(target, lnc) - CODE_BYTES * (LNC[target] if lnc is None else lnc)


def _room(target: str, lnc: int | None) -> str:
    whole, available = core_bytes(target, lnc), _available(target, lnc)
    return f"{gib(available)} = {gib(whole)} of a core of {target} - {gib(whole - available)} of code"


def _more_cores(needed_bytes: int, target: str, num_cores: int, lnc: int | None) -> str:
    """The first number of cores among which what one has now is small enough, as if everything could be split."""
    enough = [
        cores
        for cores in TARGETS[target].degrees
        if cores > num_cores and needed_bytes * num_cores <= cores * _available(target, lnc)
    ]
    smaller = "lower --batch-size or --sequence-length"
    return (
        f"use --num-cores {enough[0]}, or {smaller}" if len(enough) > 0 else f"{smaller}, or use --torch-dtype bfloat16"
    )


def _counted(findings: Sequence[Finding]) -> list[Finding]:
    """The first of each kind, with how many more there are."""

    def kind(finding: Finding) -> tuple[str, str, str]:
        return finding.level, finding.code, finding.found

    counts = Counter(kind(finding) for finding in findings)
    firsts: dict[tuple[str, str, str], Finding] = {}
    for finding in findings:
        firsts.setdefault(kind(finding), finding)
    return [
        finding if counts[key] == 1 else replace(finding, found=f"{finding.found} (and {counts[key] - 1} more)")
        for key, finding in firsts.items()
    ]
