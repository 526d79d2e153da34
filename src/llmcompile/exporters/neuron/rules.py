"""What neuronx-cc rejects, one rule a function: an instruction goes in, what is wrong with it comes out.

Source of every code, and of what it stands for: aws-neuron/aws-neuron-sdk@81ce03ae:compiler/error-codes/<code>.rst. A
finding without a code is documented elsewhere, which its rule says, or is a limit of our own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from llmcompile.exporters.neuron.targets import TARGETS, gib
from llmcompile.hlo.fields import BITS, InstructionField, LiteralField, ScatterField
from llmcompile.hlo.instruction import Instruction
from llmcompile.hlo.module import Computation, Module

ERROR, WARNING = "error", "warning"
LARGEST_LITERAL = 1 << 20
"""Bytes of a constant above which weights were probably traced into the graph."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something the compiler, or the runtime after it, would object to.

    Attributes:
        level: "error" for what would fail, "warning" for what would not.
        code: The compiler's own documented code; empty where there is none.
        where: The instruction with its opcode and shape, or what else it is about.
        found: What is there.
        expected: What should be there.
        hint: What to do about it.
    """

    level: str
    code: str = ""
    where: str
    found: str
    expected: str = ""
    hint: str = ""

    def __str__(self) -> str:
        code = f"[{self.code}] " if self.code != "" else ""
        expected = f"; expected {self.expected}" if self.expected != "" else ""
        return f"{code}{self.where}: {self.found}{expected}"


@dataclass(frozen=True)
class Place:
    """An instruction where it stands.

    Attributes:
        instruction: It.
        computation: That holds it.
        module: That holds the computation.
        target: The instance family.
        ranks: Replicas that run the module together.
    """

    instruction: Instruction
    computation: Computation
    module: Module
    target: str
    ranks: int

    @property
    def operands(self) -> tuple[Instruction, ...]:
        """Of the instruction."""
        return tuple(self.computation.by_id[id] for id in self.instruction.operand_ids)

    @property
    def operand_types(self) -> tuple[str, ...]:
        """Element types of the operands."""
        return tuple(operand.shape.dtype for operand in self.operands)

    def error(self, code: str, found: str, expected: str = "", hint: str = "") -> Finding:
        """What would fail."""
        where = f"{self.instruction.name} ({self.instruction.opcode} {self.instruction.shape})"
        return Finding(level=ERROR, code=code, where=where, found=found, expected=expected, hint=hint)

    def warning(self, code: str, found: str, expected: str = "", hint: str = "") -> Finding:
        """What would not fail."""
        where = f"{self.instruction.name} ({self.instruction.opcode} {self.instruction.shape})"
        return Finding(level=WARNING, code=code, where=where, found=found, expected=expected, hint=hint)


def check_instruction(place: Place) -> Iterator[Finding]:
    """What is wrong with an instruction, by all rules."""
    for rule in _RULES:
        yield from rule(place)


_LONG = ("s64", "u64")
_INTEGERS = ("s32", "u32", *_LONG)
_NARROW = ("pred", "s8", "u8", "s16", "u16")
_FLOATS = "f32, bf16 or f16"
_REPEATS = ("tuple", "get-tuple-element")
"""Their shapes are those of other instructions."""
_WITHOUT_VALUE = ("tuple", "token", "opaque")
_DTYPE_HINT = "use --torch-dtype float32, bfloat16 or float16"
_TYPES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        **dict.fromkeys(("c64", "c128"), ("NCC_EVRF004", "real and imaginary parts apart")),
        **dict.fromkeys(("f8e4m3fnuz", "f8e4m3b11fnuz", "f8e5m2fnuz"), ("NCC_EVRF005", _FLOATS)),
        "f8e4m3fn": ("NCC_EVRF051", "f8e4m3"),
        "f8e8m0fnu": ("NCC_ESPP047", "f8e4m3 or f8e5m2"),
        **dict.fromkeys(("s1", "u1", "s2", "u2", "s4", "u4", "f4e2m1fn"), ("NCC_ESPP004", "8 bits or more")),
        "f64": ("NCC_ESPP004", "f32"),
    }
)
"""Element type that no core of inf2, trn1, trn1n or trn2 has -> code, what to use.

Source: also about-neuron/arch/neuron-features/data-types.rst of the same commit.
"""


def _types(place: Place) -> Iterator[Finding]:
    if place.instruction.opcode in _REPEATS:
        return
    for dtype in dict.fromkeys(leaf.dtype for leaf in place.instruction.shape.leaves):
        if dtype in _TYPES:
            code, expected = _TYPES[dtype]
            yield place.error(code, f"{dtype}, which {place.target} has not", expected, _DTYPE_HINT)
        elif dtype not in BITS and dtype not in _WITHOUT_VALUE:
            yield place.error("NCC_ESPP004", f"{dtype}, which {place.target} has not", _FLOATS, _DTYPE_HINT)


def _dynamic_shapes(place: Place) -> Iterator[Finding]:
    if place.instruction.shape.is_dynamic:
        hint = "give every static size, such as --batch-size and --sequence-length"
        yield place.error("NCC_EMOD025", "a dynamic shape", "fixed sizes", hint)


def _long_integers(place: Place) -> Iterator[Finding]:
    """Integers of 64 bits run in 32: a warning, and an error for a constant that is then another number.

    Source: also data-types.rst ("Integer Type Conversion"): always on inf2 and trn1, and on trn2 by
    --native-int64=disabled, which is how our command line has it.
    """
    shape = place.instruction.shape
    if shape.dtype not in _LONG or place.instruction.opcode in _REPEATS:
        return
    yield place.warning("", f"{shape.dtype}, which runs in 32 bits", "s32")
    literal = place.instruction.message.message(InstructionField.LITERAL)
    signed = [value for value in literal.integers(LiteralField.S64S) if not -(1 << 31) <= value < 1 << 31]
    unsigned = [value % (1 << 64) for value in literal.integers(LiteralField.U64S) if not 0 <= value < 1 << 32]
    if len(signed) > 0:
        yield place.error("", f"{signed[0]} in 64 bits", "a number that 32 bits hold")
    if len(unsigned) > 0:
        yield place.error("NCC_ESFH002", f"{unsigned[0]} in 64 bits", "a number that 32 bits hold")


_UNSUPPORTED = frozenset(
    (
        *("cholesky", "fft", "triangular-solve"),
        *("dynamic-reshape", "get-dimension-size", "set-dimension-size"),
        *("infeed", "outfeed", "send", "send-done", "recv", "recv-done", "ragged-dot"),
    )
)
"""Sources beside the code: aws-neuron/aws-neuron-sdk#1144 (set-dimension-size)."""


def _operators(place: Place) -> Iterator[Finding]:
    """Source of what has no code: frameworks/jax/setup/jax-neuronx-known-issues.rst of the same commit.

    Sort compiles for inf2 and trn1 (aws-neuron/aws-neuron-sdk#868); for trn2 public logs have "[NCC_EVRF029] Operation
    sort is not supported on trn2", a code that the list of codes has not.
    """
    instruction, opcode = place.instruction, place.instruction.opcode
    if opcode in _UNSUPPORTED:
        yield place.error("NCC_EUOC002", f"operator {opcode}", "one of `neuronx-cc list-operators --framework XLA`")
    elif opcode == "sort" and place.target == "trn2":
        yield place.error("", "operator sort, which trn2 has not", "another way of choosing")
    elif opcode == "conditional":
        yield place.error("", "operator conditional, which is not supported", "both branches and a select")
    elif opcode == "while":
        yield place.warning("", "a loop, of which only those of a fixed count are supported", "unrolled steps")
    elif opcode == "reduce-precision":
        yield place.error("", "operator reduce-precision, which is not supported", "convert there and back")
    elif opcode == "reduce" and len(instruction.operand_ids) > 2:
        yield place.error("", f"a reduction of {len(instruction.operand_ids) // 2} values at once", "one value")
    elif opcode == "rng-bit-generator" and instruction.message.integer(InstructionField.RNG_ALGORITHM) != 0:
        yield place.error("NCC_EVRF006", "an algorithm of random numbers of its own", "RNG_DEFAULT")
    elif opcode == "topk" and place.operand_types[:1] in (("s32",), ("s64",)):
        yield place.error("NCC_EVRF013", f"the largest of {place.operand_types[0]}", "floating point")
    elif opcode == "shift-right-arithmetic" and place.operand_types[:1] not in (("s32",), ("u32",), ("f32",)):
        yield place.error("NCC_EVRF022", f"a shift of {place.operand_types[0]}", "s32, u32 or f32")


_CUSTOM_CALLS = frozenset(
    (
        *("AwsNeuronErf", "AwsNeuronGelu", "AwsNeuronGeluApprxTanh", "AwsNeuronGeluBackward", "AwsNeuronSilu"),
        *("AwsNeuronSiluBackward", "AwsNeuronRmsNorm", "AwsNeuronSoftmax", "AwsNeuronSoftmaxBackward"),
        *("AwsNeuronCollectiveMatmul", "AwsNeuronIntMatmult", "AwsNeuronArgMax", "AwsNeuronArgMin", "AwsNeuronTopK"),
        *("AwsNeuronDropoutMaskV1", "AwsNeuronCustomNativeKernel", "AwsNeuronCustomOp", "AwsNeuronDevicePrint"),
        *("ResizeNearest", "ResizeBilinear", "ResizeNearestGrad", "AwsNeuronLNCShardingConstraint"),
        *("AwsNeuronTransferWithStaticRing", "AwsNeuronModuleMarkerStart-Forward"),
        *("AwsNeuronModuleMarkerStart-Backward", "AwsNeuronModuleMarkerEnd-Forward"),
        *("AwsNeuronModuleMarkerEnd-Backward", "NeuronBoundaryMarker-Start", "NeuronBoundaryMarker-End"),
    )
)
"""Those that NCC_EHCA005 lists."""


def _custom_calls(place: Place) -> Iterator[Finding]:
    target = place.instruction.custom_call_target
    if place.instruction.opcode == "custom-call" and target not in _CUSTOM_CALLS:
        yield place.error("NCC_EHCA005", f"custom call of {target}", "a target that the compiler recognizes")


def _integer_arithmetic(place: Place) -> Iterator[Finding]:
    """What has no integer datapath runs in f32, exact up to 2^24: --implicit-integer-downcast=all, which we pass."""
    opcode, types = place.instruction.opcode, place.operand_types
    inexact = "in f32, which is exact only up to 2^24"
    if opcode == "dot" and not set(types).isdisjoint(_LONG):
        yield place.error("NCC_EVRF035", "a dot of 64-bit integers", _FLOATS)
    elif opcode == "dot" and not set(types).isdisjoint(_INTEGERS):
        yield place.warning("NCC_EVRF035", f"a dot of {types[0]} {inexact}", _FLOATS)
    elif opcode == "all-reduce" and not set(types).isdisjoint(_INTEGERS):
        yield place.warning("NCC_EVRF061", f"a sum of {types[0]} over the cores {inexact}", _FLOATS)
    elif opcode == "reduce-scatter" and not set(types).isdisjoint(_INTEGERS):
        yield place.warning("NCC_EVRF063", f"a sum of {types[0]} over the cores {inexact}", _FLOATS)
    elif opcode == "power" and not set(types).isdisjoint(_LONG):
        yield place.warning("NCC_EVRF062", f"a power of {types[0]} in 32 bits", "s32")
    elif opcode == "scatter" and _computes(place):
        if not set(types[:1]).isdisjoint(_INTEGERS):
            yield place.warning("NCC_EVRF060", f"a scatter that combines {types[0]} {inexact}", _FLOATS)
        elif types[0] in _NARROW:
            yield place.error("NCC_EVRF016", f"a scatter that combines {types[0]}", _FLOATS)


def _computes(place: Place) -> bool:
    """Whether a scatter combines what is there with what comes, rather than replacing it."""
    called = (place.module.by_id[id] for id in place.instruction.called_computation_ids)
    return any(computation.root.opcode != "parameter" for computation in called)


def _windows(place: Place) -> Iterator[Finding]:
    opcode = place.instruction.opcode
    if opcode not in ("convolution", "reduce-window"):
        return
    window = place.instruction.window
    stretched = any(dimension.base_dilation > 1 for dimension in window)
    dilated = any(dimension.window_dilation > 1 for dimension in window)
    if opcode == "convolution" and stretched and dilated:
        yield place.error("NCC_EVRF010", "input and kernel dilation together", "one of them")
    if opcode == "convolution" and stretched and any(dimension.stride > 1 for dimension in window):
        yield place.error("NCC_EVRF011", "a stride with input dilation", "one of them")
    if opcode != "reduce-window":
        return
    if stretched:
        yield place.error("NCC_EVRF017", "base dilation of a reduction by windows", "1")
    if dilated:
        yield place.error("NCC_EVRF018", "window dilation of a reduction by windows", "1")
    if len(place.instruction.operand_ids) != 2:
        yield place.error("NCC_EVRF019", f"{len(place.instruction.operand_ids)} operands", "2")


_PASSES_ON = frozenset(("bitcast", "broadcast", "convert", "copy", "reshape", "transpose"))
_REPORTED = 1 << 16
"""Indices of a constant that are looked at; longer ones are no table of positions."""


def _bounds(place: Place) -> Iterator[Finding]:
    """Rows that a table has not, where the indices are known: a count, or a constant."""
    instruction = place.instruction
    if instruction.opcode == "gather":
        code, axes, which = "NCC_EVRF056", instruction.gather_dimensions.start_index_map, 1
    elif instruction.opcode == "scatter":
        numbers = instruction.message.message(InstructionField.SCATTER_DIMENSION_NUMBERS)
        axes = numbers.integers(ScatterField.SCATTER_DIMS_TO_OPERAND_DIMS)
        # As many updates as tables, with the indices between them.
        code, which = "NCC_EVRF031", (len(instruction.operand_ids) - 1) // 2
    else:
        return
    dims = place.operands[0].shape.dims
    if len(axes) != 1 or not 0 <= axes[0] < len(dims):
        return
    rows, source = dims[axes[0]], place.operands[which]
    while source.opcode in _PASSES_ON and len(source.operand_ids) == 1:
        source = place.computation.by_id[source.operand_ids[0]]
    last = -1
    if source.opcode == "iota" and len(source.dimensions) == 1 and source.dimensions[0] < len(source.shape.dims):
        last = source.shape.dims[source.dimensions[0]] - 1
    elif source.opcode == "constant" and source.shape.count <= _REPORTED:
        code = ""
        literal = source.message.message(InstructionField.LITERAL)
        last = max((*literal.integers(LiteralField.S32S), *literal.integers(LiteralField.S64S)), default=-1)
    if last >= rows:
        hint = "lower --sequence-length to the model's max_position_embeddings"
        yield place.error(code, f"row {last} of a table of {rows}", f"at most row {rows - 1}", hint)


_COLLECTIVES = frozenset(("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter"))


def _collectives(place: Place) -> Iterator[Finding]:
    """Groups must have every rank once, be of one size, and of a size the runtime connects."""
    instruction, ranks = place.instruction, place.ranks
    if instruction.opcode not in _COLLECTIVES:
        return
    if instruction.channel_id > 0 and not instruction.uses_global_device_ids:
        yield place.error("", "a collective across partitions", "one across replicas, without a channel")
    groups = instruction.replica_groups
    if len(groups) == 0 or instruction.opcode == "collective-permute":
        return
    listed = sorted(rank for group in groups for rank in group)
    sizes = {len(group) for group in groups}
    if listed != list(range(ranks)):
        yield place.error("", f"groups of ranks {[list(group) for group in groups]}", f"0 to {ranks - 1}, each once")
    elif len(sizes) > 1:
        yield place.error("", f"groups of {sorted(sizes)} ranks", "one size")
    elif not TARGETS[place.target].takes(min(sizes)):
        found = f"groups of {min(sizes)} ranks on {place.target}"
        yield place.error("", found, TARGETS[place.target].allowed, "choose another --num-cores")


def _literals(place: Place) -> Iterator[Finding]:
    size = place.instruction.shape.size_bytes
    if place.instruction.opcode == "constant" and size > LARGEST_LITERAL:
        yield place.warning("", f"a constant of {gib(size)} in the graph", "a parameter")


def _layouts(place: Place) -> Iterator[Finding]:
    """Weights, inputs and results are handed over row by row."""
    instruction = place.instruction
    result = instruction.id == place.module.entry.root_id
    if instruction.opcode == "parameter" or result:
        for shape in instruction.shape.leaves:
            if not shape.is_row_major:
                yield place.error("", f"layout {list(shape.minor_to_major or ())}", "the last dimension fastest")


_RULES: tuple[Callable[[Place], Iterator[Finding]], ...] = (
    _types,
    _dynamic_shapes,
    _long_integers,
    _operators,
    _custom_calls,
    _integer_arithmetic,
    _windows,
    _bounds,
    _collectives,
    _literals,
    _layouts,
)
