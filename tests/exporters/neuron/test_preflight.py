"""What neuronx-cc would reject: each rule sees a graph that breaks it, and stays silent on one that does not."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

import xla_oracle as xla
from llmcompile import hlo
from llmcompile.errors import Problem
from llmcompile.exporters.neuron import preflight
from llmcompile.exporters.neuron.normalise import normalise
from llmcompile.exporters.neuron.rules import Finding
from llmcompile.exporters.neuron.targets import CODE_BYTES, GIB, TARGETS, core_bytes
from llmcompile.hlo.fields import InstructionField
from llmcompile.hlo.instruction import Instruction
from llmcompile.hlo.shape import Shape, write_shape

MATRIX = np.ones((4, 6), np.float32)
IMAGE = np.ones((1, 8, 8, 1), np.float32)
KERNEL = np.ones((3, 3, 1, 1), np.float32)
WHOLE_NUMBERS = np.arange(8, dtype=np.int32)

DOCUMENTED = set(
    re.findall(
        r"\w+",
        """EARG001 EBIR023 EBVF030 EHCA005 EMOD025 EOOM001 EOOM002 ESFH002 ESPP004 ESPP047 EUOC002 EVRF001 EVRF004
EVRF005 EVRF006 EVRF007 EVRF009 EVRF010 EVRF011 EVRF013 EVRF015 EVRF016 EVRF017 EVRF018 EVRF019 EVRF022 EVRF031 EVRF035
EVRF036 EVRF037 EVRF038 EVRF039 EVRF040 EVRF041 EVRF042 EVRF043 EVRF044 EVRF045 EVRF046 EVRF047 EVRF048 EVRF049 EVRF050
EVRF051 EVRF052 EVRF053 EVRF054 EVRF055 EVRF056 EVRF057 EVRF058 EVRF059 EVRF060 EVRF061 EVRF062 EVRF063 EVRF064 EVRF065
EXSP001 EXTP004""",
    )
)
"""The table of aws-neuron/aws-neuron-sdk@81ce03ae:compiler/error-codes/index.rst, without NCC_."""


def graph(function: Callable[..., Any], *arguments: Any, ranks: int = 1, donated: tuple[int, ...] = ()) -> hlo.Module:
    """A function lowered and normalised."""
    names = [f"p{place}" for place in range(len(arguments))]
    return hlo.parse(normalise(xla.lowered(function, *arguments, donated=donated), parameter_names=names, ranks=ranks))


def found(module: hlo.Module, target: str = "trn1", **given: Any) -> set[tuple[str, str]]:
    """Level and code of every finding."""
    return {(finding.level, finding.code) for finding in preflight.check(module, target=target, **given)}


def mutated(module: hlo.Module, opcode: str, change: Callable[[Instruction], Instruction]) -> hlo.Module:
    """The module with every instruction of an opcode changed."""
    computations = []
    for computation in module.computations:
        instructions = [change(one) if one.opcode == opcode else one for one in computation.instructions]
        computations.append(computation.with_instructions(instructions, root_id=computation.root_id))
    return module.with_computations(computations, entry_id=module.entry.id)


def of_shape(shape: Shape) -> Callable[[Instruction], Instruction]:
    """A change of an instruction's shape."""

    def change(one: Instruction) -> Instruction:
        return Instruction(one.message.with_message(InstructionField.SHAPE, write_shape(shape)))

    return change


def of_opcode(opcode: str) -> Callable[[Instruction], Instruction]:
    """A change of an instruction's opcode."""
    return lambda one: Instruction(one.message.with_text(InstructionField.OPCODE, opcode))


@pytest.fixture
def wide() -> Iterator[None]:
    """Numbers of 64 bits are kept as they are."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def attention(states: Any, weights: Any, cache: Any) -> Any:
    """A dot, a cache written in place, a softmax: what every graph of ours has."""
    query = states @ weights
    cache = lax.dynamic_update_slice(cache, query, (2, 0))
    return jax.nn.softmax(query @ cache.T), cache


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_a_plain_graph_has_no_findings(target: str) -> None:
    """In float32 and bfloat16, on every target."""
    for dtype in (jnp.float32, jnp.bfloat16):
        module = graph(
            attention, jnp.ones((4, 6), dtype), jnp.ones((6, 6), dtype), jnp.ones((8, 6), dtype), donated=(2,)
        )

        assert preflight.check(module, target=target) == []


TYPES = [
    ("f64", "NCC_ESPP004"),
    ("c64", "NCC_EVRF004"),
    ("c128", "NCC_EVRF004"),
    ("f8e4m3fn", "NCC_EVRF051"),
    ("f8e4m3fnuz", "NCC_EVRF005"),
    ("f8e5m2fnuz", "NCC_EVRF005"),
    ("f8e4m3b11fnuz", "NCC_EVRF005"),
    ("f8e8m0fnu", "NCC_ESPP047"),
    ("s4", "NCC_ESPP004"),
    ("u2", "NCC_ESPP004"),
    ("f4e2m1fn", "NCC_ESPP004"),
]


@pytest.mark.parametrize(("dtype", "code"), TYPES)
@pytest.mark.parametrize("target", sorted(TARGETS))
def test_element_types_the_cores_have_not(dtype: str, code: str, target: str) -> None:
    """Each with the code the compiler documents for it."""
    module = mutated(graph(lambda value: value + 1, MATRIX), "add", of_shape(Shape(dtype, (4, 6))))

    assert found(module, target) == {("error", code)}


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16", "s32", "u32", "u8", "s8", "pred", "f8e4m3", "f8e5m2"])
def test_element_types_the_cores_have(dtype: str) -> None:
    """Those that data-types.rst lists, and 8-bit integers and predicates."""
    module = mutated(graph(lambda value: value + 1, MATRIX), "add", of_shape(Shape(dtype, (4, 6))))

    assert found(module) == set()


def test_an_element_type_of_the_future() -> None:
    """A number XLA had no name for when this was written."""

    def change(one: Instruction) -> Instruction:
        shape = one.message.message(InstructionField.SHAPE).with_integer(2, 99)
        return Instruction(one.message.with_message(InstructionField.SHAPE, shape))

    assert found(mutated(graph(lambda value: value + 1, MATRIX), "add", change)) == {("error", "NCC_ESPP004")}


@pytest.mark.usefixtures("wide")
def test_float64_and_complex_of_real_graphs() -> None:
    """As JAX traces them: a parameter, and what is computed from it, are one finding."""
    doubles = preflight.check(graph(lambda value: value * 2, MATRIX.astype(np.float64)), target="trn1")
    waves = preflight.check(graph(lambda value: value * 2, MATRIX.astype(np.complex64)), target="trn2")

    assert [(one.level, one.code) for one in doubles] == [("error", "NCC_ESPP004")]
    assert re.fullmatch(r"p0\.\d+ \(parameter f64\[4,6\]\)", doubles[0].where)
    assert re.fullmatch(r"f64, which trn1 has not \(and \d+ more\)", doubles[0].found)
    assert [(one.level, one.code) for one in waves] == [("error", "NCC_EVRF004")]


def test_dynamic_shapes() -> None:
    """A size that is only a bound."""
    shape = Shape("f32", (4, 6), dynamic=(True, False))
    module = mutated(graph(lambda value: value + 1, MATRIX), "add", of_shape(shape))

    assert found(module) == {("error", "NCC_EMOD025")}


@pytest.mark.usefixtures("wide")
def test_long_integers_are_a_warning() -> None:
    """They run in 32 bits, which is right for what fits."""
    findings = preflight.check(graph(lambda value: value + 1, WHOLE_NUMBERS.astype(np.int64)), target="trn1")

    assert [(one.level, one.code) for one in findings] == [("warning", "")]
    assert findings[0].found.startswith("s64, which runs in 32 bits (and")


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize(
    ("constant", "level"),
    [
        (np.int64(2**31 - 1), set()),
        (np.int64(-(2**31)), set()),
        (np.int64(2**31), {("error", "")}),
        (np.int64(-(2**31) - 1), {("error", "")}),
        (np.uint64(2**32 - 1), set()),
        (np.uint64(2**32), {("error", "NCC_ESFH002")}),
        (np.uint64(2**64 - 1), {("error", "NCC_ESFH002")}),
    ],
)
def test_long_constants_that_32_bits_do_not_hold(constant: Any, level: set[tuple[str, str]]) -> None:
    """One more than the largest of either sign is another number on the device."""
    module = graph(lambda value: value + constant, np.zeros(3, constant.dtype))

    assert found(module) == {("warning", ""), *level}


@pytest.mark.parametrize(
    "opcode", ["triangular-solve", "cholesky", "fft", "set-dimension-size", "dynamic-reshape", "infeed", "ragged-dot"]
)
def test_operators_the_compiler_has_not(opcode: str) -> None:
    """Whatever the target."""
    module = mutated(graph(lambda value: jnp.tanh(value), MATRIX), "tanh", of_opcode(opcode))

    assert found(module) == {("error", "NCC_EUOC002")}


@pytest.mark.parametrize(("target", "expected"), [("trn1", set()), ("inf2", set()), ("trn2", {("error", "")})])
def test_sort_is_for_the_older_cores(target: str, expected: set[tuple[str, str]]) -> None:
    """The compiler for trn2 refuses it, with a code that is not documented."""
    assert found(graph(lambda value: lax.sort(value, is_stable=False), MATRIX), target) == expected


def test_branches_and_loops() -> None:
    """A conditional is not supported, of loops only those of a fixed count."""
    chosen = graph(lambda value: lax.cond(value[0, 0] > 0, jnp.sin, jnp.cos, value), MATRIX)
    looped = graph(lambda value: lax.fori_loop(0, 3, lambda _, one: one * 2, value), MATRIX)

    assert found(chosen) == {("error", "")}
    assert found(looped) == {("warning", "")}


def test_reductions_of_two_values_at_once() -> None:
    """JAX's argmax is one; a maximum is none."""
    both = preflight.check(graph(lambda value: jnp.argmax(value, axis=1), MATRIX), target="trn1")

    assert [(one.level, one.code, one.found) for one in both] == [("error", "", "a reduction of 2 values at once")]
    assert found(graph(lambda value: jnp.max(value, axis=1), MATRIX)) == set()


def test_reduce_precision_is_for_predictions_only() -> None:
    """The instruction that rounds operands in a validation must not reach the compiler."""
    assert found(graph(lambda value: lax.reduce_precision(value, 8, 7), MATRIX)) == {("error", "")}


def test_random_numbers_of_an_algorithm_of_their_own() -> None:
    """Anything but RNG_DEFAULT."""
    key = np.zeros(4, np.uint32)
    algorithms = {
        lax.RandomAlgorithm.RNG_DEFAULT: set(),
        lax.RandomAlgorithm.RNG_PHILOX: {("error", "NCC_EVRF006")},
        lax.RandomAlgorithm.RNG_THREE_FRY: {("error", "NCC_EVRF006")},
    }

    for algorithm, expected in algorithms.items():
        module = graph(lambda key, which=algorithm: lax.rng_bit_generator(key, (8,), algorithm=which)[1], key)
        assert {one for one in found(module) if one[0] == "error" and one[1] != ""} == expected


@pytest.mark.parametrize(("dtype", "expected"), [("s32", {("error", "NCC_EVRF013")}), ("f32", set())])
def test_the_largest_of_integers(dtype: str, expected: set[tuple[str, str]]) -> None:
    """The operator topk, whose operand must be floating point."""
    module = mutated(graph(jnp.tanh, MATRIX), "parameter", of_shape(Shape(dtype, (4, 6))))

    assert found(mutated(module, "tanh", of_opcode("topk"))) == expected


@pytest.mark.parametrize(("dtype", "expected"), [(np.int16, {("error", "NCC_EVRF022")}), (np.int32, set())])
def test_shifts_of_short_integers(dtype: Any, expected: set[tuple[str, str]]) -> None:
    """Only 32 bits are shifted."""
    assert found(graph(lambda value: lax.shift_right_arithmetic(value, value), WHOLE_NUMBERS.astype(dtype))) == expected


def call(target: str, value: Any) -> Any:
    """A custom call of JAX's."""
    ffi = jax.ffi if hasattr(jax, "ffi") else import_module("jax.extend.ffi")
    return ffi.ffi_call(target, jax.ShapeDtypeStruct(value.shape, value.dtype))(value)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("AwsNeuronGelu", set()),
        ("AwsNeuronModuleMarkerStart-Forward", set()),
        ("NeuronBoundaryMarker-End", set()),
        ("TopK", {("error", "NCC_EHCA005")}),
        ("UNRECOGNIZED_TARGET", {("error", "NCC_EHCA005")}),
        ("AwsNeuronModuleMarkerStart-Sideways", {("error", "NCC_EHCA005")}),
    ],
)
def test_custom_calls_that_are_not_on_the_list(target: str, expected: set[tuple[str, str]]) -> None:
    """By their exact names."""
    assert found(graph(lambda value: call(target, value), MATRIX)) == expected


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(np.int32, ("warning", "NCC_EVRF035")), (np.int64, ("error", "NCC_EVRF035")), (np.float32, None)],
)
def test_dots_of_integers(dtype: Any, expected: tuple[str, str] | None) -> None:
    """Of 64 bits nowhere, of 32 in float32."""
    numbers = MATRIX.astype(dtype)
    codes = {one for one in found(graph(lambda a: lax.dot(a, a.T), numbers), "trn2") if one[1] != ""}

    assert codes == ({expected} if expected is not None else set())


@pytest.mark.usefixtures("wide")
def test_powers_of_long_integers() -> None:
    """They are computed in 32 bits."""
    module = graph(lambda value: lax.pow(value, value), MATRIX)
    module = mutated(
        mutated(module, "parameter", of_shape(Shape("s64", (4, 6)))), "power", of_shape(Shape("s64", (4, 6)))
    )

    assert ("warning", "NCC_EVRF062") in found(module)


@pytest.mark.parametrize(
    ("dtype", "method", "expected"),
    [
        (np.float32, "add", set()),
        (np.int32, "add", {("warning", "NCC_EVRF060")}),
        (np.int8, "max", {("error", "NCC_EVRF016")}),
        (np.int32, "set", set()),
        (np.bool_, "set", set()),
    ],
)
def test_scatters_that_combine_integers(dtype: Any, method: str, expected: set[tuple[str, str]]) -> None:
    """Replacing is no computation."""

    def scattered(into: Any, rows: Any, what: Any) -> Any:
        return getattr(into.at[rows], method)(what, mode="promise_in_bounds")

    module = graph(scattered, np.zeros((9, 2), dtype), np.array([1, 2], np.int32), np.ones((2, 2), dtype))

    assert found(module) == expected


def convolved(stride: int, stretch: int, dilation: int) -> hlo.Module:
    """A convolution of an image."""

    def function(image: Any, kernel: Any) -> Any:
        return lax.conv_general_dilated(
            image,
            kernel,
            (stride, stride),
            "SAME" if stretch == 1 else ((2, 2), (2, 2)),
            lhs_dilation=(stretch, stretch),
            rhs_dilation=(dilation, dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    return graph(function, IMAGE, KERNEL)


@pytest.mark.parametrize(
    ("stride", "stretch", "dilation", "expected"),
    [
        (1, 1, 1, set()),
        (2, 1, 2, set()),
        (1, 2, 1, set()),
        (1, 2, 2, {("error", "NCC_EVRF010")}),
        (2, 2, 1, {("error", "NCC_EVRF011")}),
    ],
)
def test_dilated_convolutions(stride: int, stretch: int, dilation: int, expected: set[tuple[str, str]]) -> None:
    """Input dilation goes with neither a stride nor kernel dilation."""
    assert found(convolved(stride, stretch, dilation)) == expected


@pytest.mark.parametrize(
    ("stretch", "dilation", "expected"),
    [(1, 1, set()), (2, 1, {("error", "NCC_EVRF017")}), (1, 2, {("error", "NCC_EVRF018")})],
)
def test_dilated_reductions_by_windows(stretch: int, dilation: int, expected: set[tuple[str, str]]) -> None:
    """Neither dilation is supported."""
    module = graph(
        lambda value: lax.reduce_window(
            value,
            np.float32(-np.inf),
            lax.max,
            (2, 2),
            (1, 1),
            "VALID",
            base_dilation=(stretch, 1),
            window_dilation=(1, dilation),
        ),
        MATRIX,
    )

    assert found(module) == expected


def test_reductions_by_windows_of_two_values() -> None:
    """One operand and its initial value, or NCC_EVRF019."""

    def both(left: Any, right: Any) -> Any:
        zeros = (np.float32(0), np.float32(0))
        return lax.reduce_window((left, right), zeros, lambda a, b: (a[0] + b[0], a[1] * b[1]), (2, 2), (1, 1), "VALID")

    assert found(graph(both, MATRIX, MATRIX)) == {("error", "NCC_EVRF019")}


def looked_up(rows: int, count: int) -> hlo.Module:
    """The documented example: the first `count` rows of a table."""
    numbers = lax.GatherDimensionNumbers(offset_dims=(1,), collapsed_slice_dims=(0,), start_index_map=(0,))

    def function(table: Any) -> Any:
        indices = lax.iota(jnp.int32, count).reshape(count, 1)
        return lax.gather(table, indices, numbers, (1, 4), mode=lax.GatherScatterMode.PROMISE_IN_BOUNDS)

    return graph(function, np.zeros((rows, 4), np.float32))


@pytest.mark.parametrize(("count", "expected"), [(3, set()), (4, {("error", "NCC_EVRF056")})])
def test_a_gather_beyond_the_table(count: int, expected: set[tuple[str, str]]) -> None:
    """A count of rows that a table of three has not."""
    assert found(looked_up(3, count)) == expected


def test_a_gather_of_known_rows_beyond_the_table() -> None:
    """The same by a constant, which no code is documented for; indices that are inputs are not known."""
    numbers = lax.GatherDimensionNumbers(offset_dims=(1,), collapsed_slice_dims=(0,), start_index_map=(0,))

    def rows(table: Any, indices: Any) -> Any:
        return lax.gather(table, indices, numbers, (1, 4), mode=lax.GatherScatterMode.PROMISE_IN_BOUNDS)

    table, beyond = np.zeros((3, 4), np.float32), np.array([[0], [3]], np.int32)

    assert found(graph(lambda table: rows(table, jnp.asarray(beyond)), table)) == {("error", "")}
    assert found(graph(lambda table: rows(table, jnp.asarray(beyond - 1).clip(0)), table)) == set()
    assert found(graph(rows, table, beyond)) == set()


def test_a_scatter_beyond_the_table() -> None:
    """The documented example: ten rows into three."""
    numbers = lax.ScatterDimensionNumbers((1,), (0,), (0,))

    def function(table: Any, updates: Any) -> Any:
        indices = lax.iota(jnp.int32, updates.shape[0]).reshape(-1, 1)
        return lax.scatter(table, indices, updates, numbers, mode=lax.GatherScatterMode.PROMISE_IN_BOUNDS)

    table = np.zeros((3, 4), np.float32)

    assert found(graph(function, table, np.ones((10, 4), np.float32))) == {("error", "NCC_EVRF031")}
    assert found(graph(function, table, np.ones((3, 4), np.float32))) == set()


@pytest.mark.parametrize(("length", "positions"), [(128, 512), (512, 512)])
def test_sequences_the_model_has_positions_for(length: int, positions: int) -> None:
    """Up to the last."""
    assert preflight.positions(length, positions) is None


def test_a_sequence_longer_than_the_positions() -> None:
    """Refused by the code of the gather it would be, with what to type."""
    assert preflight.positions(1024, 512) == Problem(
        "--sequence-length",
        "[NCC_EVRF056] 1024 with max_position_embeddings 512",
        "at most 512",
        "use --sequence-length 512",
    )


def summed(ranks: int) -> hlo.Module:
    """A sum over ranks."""
    return graph(lambda value: call("llmcompile_all_reduce", value), MATRIX, ranks=ranks)


@pytest.mark.parametrize(("ranks", "target"), [(2, "trn1"), (4, "inf2"), (8, "trn1n"), (64, "trn2"), (24, "inf2")])
def test_collectives_over_all_ranks(ranks: int, target: str) -> None:
    """As the normaliser makes them."""
    assert found(summed(ranks), target, ranks=ranks) == set()


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        (((0, 1),), r"groups of ranks \[\[0, 1\]\]"),
        (((0, 1), (2, 4)), r"\[2, 4\]"),
        (((0, 1), (1, 2, 3)), r"\[1, 2, 3\]"),
        (((0,), (1, 2, 3)), r"groups of \[1, 3\] ranks"),
    ],
)
def test_groups_that_do_not_have_every_rank_once(groups: tuple[tuple[int, ...], ...], words: str) -> None:
    """A rank left out, beyond, twice; groups of two sizes."""
    module = mutated(summed(4), "all-reduce", lambda one: one.with_replica_groups(groups))

    (finding,) = preflight.check(module, target="inf2", ranks=4)
    assert finding.level == "error"
    assert re.search(words, finding.found)


def test_groups_of_a_size_the_cores_are_not_connected_in() -> None:
    """Four ranks are no group on trn1."""
    (finding,) = preflight.check(summed(4), target="trn1", ranks=4)

    assert (finding.found, finding.expected) == (
        "groups of 4 ranks on trn1",
        "1, 2, 8, 16, 32 or a multiple of 32",
    )


def test_collectives_across_partitions() -> None:
    """A channel without global ids means partitions, of which there are none."""
    module = mutated(summed(2), "all-reduce", lambda one: Instruction(one.message.with_integer(26, 1)))

    assert [one.found for one in preflight.check(module, target="trn1", ranks=2)] == ["a collective across partitions"]


def test_sums_of_integers_over_cores() -> None:
    """They run in float32."""
    module = graph(lambda value: call("llmcompile_all_reduce", value), WHOLE_NUMBERS, ranks=2)

    assert found(module, ranks=2) == {("warning", "NCC_EVRF061")}
    assert found(mutated(module, "all-reduce", of_opcode("reduce-scatter")), ranks=2) == {("warning", "NCC_EVRF063")}


@pytest.mark.parametrize(("rows", "expected"), [(1 << 18, set()), ((1 << 18) + 1, {("warning", "")})])
def test_large_constants(rows: int, expected: set[tuple[str, str]]) -> None:
    """More than a MiB of numbers in the graph was meant to be a parameter."""
    constant = np.arange(rows, dtype=np.float32)

    assert found(graph(lambda value: value + constant, np.zeros(rows, np.float32))) == expected


def test_ids_of_more_than_32_bits() -> None:
    """What JAX writes since 2025 and the normaliser is there for."""
    raw = xla.lowered(lambda value: value + 1, MATRIX)
    module = hlo.parse(raw)
    large = mutated(module, "parameter", lambda one: one)
    entry = large.entry
    shifted = [
        one.with_id(one.id % (1 << 32) + (1 << 31)).with_operands(
            [id % (1 << 32) + (1 << 31) for id in one.operand_ids]
        )
        for one in entry.instructions
    ]
    large = large.with_computation(entry.with_instructions(shifted, root_id=entry.root_id % (1 << 32) + (1 << 31)))

    (finding,) = preflight.check(large, target="trn1")
    assert (finding.level, finding.code) == ("error", "")
    assert "pytorch/xla#9685" in finding.found


def test_parameters_in_another_order_of_dimensions() -> None:
    """Weights are handed over row by row."""
    module = mutated(
        graph(lambda value: value + 1, MATRIX), "parameter", of_shape(Shape("f32", (4, 6), minor_to_major=(0, 1)))
    )

    assert [one.found for one in preflight.check(module, target="trn1")] == ["layout [0, 1]"]


def test_results_in_another_order_of_dimensions() -> None:
    """So are results."""
    module = mutated(
        graph(lambda value: value + 1, MATRIX),
        "tuple",
        of_shape(Shape("tuple", elements=(Shape("f32", (4, 6), minor_to_major=(0, 1)),))),
    )

    assert "layout [0, 1]" in [one.found for one in preflight.check(module, target="trn1")]


def sized(parameter_gib: float, result_gib: float = 0) -> hlo.Module:
    """A graph that takes one large parameter and gives one result, of which nothing is ever made."""
    module = graph(lambda value: (value[:2, :2] + 1, value), MATRIX)
    rows, wanted = int(parameter_gib * GIB / 4 / 1024), int(result_gib * GIB / 4 / 1024)
    module = mutated(module, "parameter", of_shape(Shape("f32", (rows, 1024))))
    shape = Shape("tuple", elements=(Shape("f32", (2, 2)), Shape("f32", (wanted, 1024))))
    return mutated(module, "tuple", of_shape(shape))


@pytest.mark.parametrize(
    ("target", "parameter_gib", "level"),
    [
        ("trn1", 14.2, None),
        ("trn1", 15.0, "warning"),
        ("trn1", 16.0, "error"),
        ("inf2", 16.0, "error"),
        ("trn1n", 16.0, "error"),
        ("trn2", 16.0, None),
        ("trn2", 23.0, "warning"),
        ("trn2", 24.0, "error"),
    ],
)
def test_memory_of_a_core(target: str, parameter_gib: float, level: str | None) -> None:
    """16 GiB, or 24 of a logical core of trn2, less 96 MiB of code for each physical core."""
    findings = preflight.check(sized(parameter_gib), target=target)

    assert [(one.level, one.code) for one in findings] == ([] if level is None else [(level, "NCC_EOOM001")])


def test_memory_of_a_core_that_is_one_physical_core() -> None:
    """12 GiB on trn2."""
    assert found(sized(12.5), "trn2", lnc=1) == {("error", "NCC_EOOM001")}
    assert found(sized(10), "trn2", lnc=1) == set()
    assert [core_bytes("trn2", lnc) // GIB for lnc in (None, 1, 2)] == [24, 12, 24]


def test_the_arithmetic_of_memory_is_in_the_message() -> None:
    """With the number of cores that would be enough: the next of the family's."""
    (finding,) = preflight.check(sized(20, 10), target="trn1")

    assert finding.found.startswith("30.0 GiB = 20.0 GiB of weights, caches and inputs + 10.0 GiB of outputs + ")
    assert finding.expected == "at most 15.9 GiB = 16.0 GiB of a core of trn1 - 96.0 MiB of code"
    assert finding.hint == "use --num-cores 2, or lower --batch-size or --sequence-length"


@pytest.mark.parametrize(
    ("target", "ranks", "hint"),
    [
        ("trn1", 2, "use --num-cores 8"),
        ("inf2", 2, "use --num-cores 4"),
        ("trn1", 16, "use --num-cores 32"),
        ("inf2", 24, "lower"),
    ],
)
def test_more_cores_are_those_of_the_family(target: str, ranks: int, hint: str) -> None:
    """Numbers of cores that it connects; beyond the largest there is none to propose."""
    (finding,) = preflight.check(sized(20), target=target, ranks=ranks)

    assert finding.hint.startswith(hint)


def test_no_cores_are_proposed_for_what_cannot_be_split() -> None:
    """An encoder runs on one."""
    (finding,) = preflight.check(sized(20), target="trn1", divisible=False)

    assert finding.hint == "lower --batch-size or --sequence-length"


def test_results_that_are_written_over_parameters_count_once() -> None:
    """A cache of 9 GiB that is replaced fits in 16; one that is copied does not."""
    aliased = sized(9, 9).with_aliases([hlo.Alias((1,), 0)])

    assert found(aliased) == set()
    assert found(sized(9, 9)) == {("error", "NCC_EOOM001")}


def test_what_lives_in_between_counts() -> None:
    """A product of 20 GiB that is only summed up."""
    module = graph(lambda value: jnp.sum(value @ value.T), MATRIX)
    large = Shape("f32", (5 * 1024, 1024, 1024))

    (finding,) = preflight.check(mutated(module, "dot", of_shape(large)), target="trn1")

    assert finding.code == "NCC_EOOM001"
    assert finding.found.endswith("+ 20.0 GiB or more in between")


def test_weights_and_caches_are_judged_before_there_is_a_graph() -> None:
    """The same rule and the same code."""
    problem = preflight.memory_problem(30 * GIB, "trn1", 1)

    assert problem == Problem(
        "--num-cores",
        "[NCC_EOOM001] 1: 30.0 GiB of weights and caches on each core",
        "at most 15.9 GiB = 16.0 GiB of a core of trn1 - 96.0 MiB of code",
        "use --num-cores 2, or lower --batch-size or --sequence-length",
    )
    assert preflight.memory_problem(16 * GIB - CODE_BYTES, "trn1", 1) is None
    assert preflight.memory_problem(20 * GIB, "trn2", 1) is None
    assert preflight.memory_problem(20 * GIB, "trn2", 1, lnc=1) is not None


@pytest.mark.parametrize(
    ("columns", "cores", "expected"),
    [(1 << 20, 1, {("warning", "NCC_EXTP004")}), (1 << 20, 2, set()), (1 << 10, 1, set())],
)
def test_more_multiplications_than_a_graph_may_have(columns: int, cores: int, expected: set[tuple[str, str]]) -> None:
    """128 x 128 x 512 an instruction: 8192 x 8192 x 2^20 are 64 * 64 * 2048 = 8.4 million of them."""
    module = graph(lambda left, right: jnp.sum(left @ right), MATRIX, MATRIX.T)
    shapes = iter((Shape("bf16", (8192, 8192)), Shape("bf16", (8192, columns))))
    entry = module.entry
    instructions = [of_shape(next(shapes))(one) if one.opcode == "parameter" else one for one in entry.instructions]
    module = module.with_computation(entry.with_instructions(instructions, root_id=entry.root_id))

    codes = found(module, "trn2", lnc=cores)

    assert {one for one in codes if one[1] == "NCC_EXTP004"} == expected


def test_logical_cores_the_family_has_not() -> None:
    """Two physical cores make one only on trn2."""
    module = graph(lambda value: value + 1, MATRIX)

    assert found(module, "trn1", lnc=2) == {("error", "NCC_EARG001")}
    assert found(module, "trn2", lnc=3) == {("error", "NCC_EARG001")}
    assert found(module, "trn2", lnc=1) == found(module, "trn2", lnc=2) == set()


TOPOLOGIES = {
    "inf2": {1, 2, 4, 8, 12, 24},
    "trn1": {1, 2, 8, 16, 32, 64, 96, 128},
    "trn1n": {1, 2, 8, 16, 32, 64, 96, 128},
    "trn2": {1, 2, 4, 8, 16, 32, 64},
}


@pytest.mark.parametrize("target", sorted(TOPOLOGIES))
def test_numbers_of_cores(target: str) -> None:
    """Those that the runtime connects, of all up to 128."""
    assert {cores for cores in range(129) if preflight.topology(cores, target) == []} == TOPOLOGIES[target]


def test_what_to_type_instead_of_a_number_of_cores() -> None:
    """The next larger one, and the families that have it."""
    assert preflight.topology(4, "trn1") == [
        Problem(
            "--num-cores",
            "4 on trn1, whose cores are not connected so",
            "1, 2, 8, 16, 32 or a multiple of 32",
            "use --num-cores 8, or --instance-type inf2 or trn2",
        )
    ]
    assert preflight.topology(5, "inf2")[0].hint == "use --num-cores 8"
    assert preflight.topology(200, "trn2")[0].hint == "use --num-cores 64"


def test_findings_become_problems_and_warnings() -> None:
    """Errors for a PlanError, each with its graph; warnings a line each; errors come first."""
    findings = [
        Finding(
            level="error", code="NCC_EVRF004", where="add.3 (add c64[2])", found="c64", expected="f32", hint="cast"
        ),
        Finding(level="warning", where="c.1", found="a constant"),
    ]

    assert preflight.problems(findings, "token_generation") == [
        Problem("token_generation: add.3 (add c64[2])", "[NCC_EVRF004] c64", "f32", "cast")
    ]
    assert preflight.problems(findings) == [Problem("add.3 (add c64[2])", "[NCC_EVRF004] c64", "f32", "cast")]
    assert preflight.warnings(findings) == ("c.1: a constant",)
    assert str(findings[0]) == "[NCC_EVRF004] add.3 (add c64[2]): c64; expected f32"


@pytest.mark.usefixtures("wide")
def test_errors_come_first_and_bytes_are_taken_too() -> None:
    """A warning about the parameter, an error about the constant after it."""
    module = graph(lambda value: value + np.int64(1 << 40), WHOLE_NUMBERS.astype(np.int64))

    levels = [one.level for one in preflight.check(hlo.serialize(module), target="trn1")]
    assert levels == ["error", "warning"]


def test_bytes_that_are_no_module() -> None:
    """A ValueError, as of `hlo.parse`."""
    with pytest.raises(ValueError, match="HloModuleProto"):
        preflight.check(b"", target="trn1")


def test_only_documented_codes_are_printed() -> None:
    """Every code in the rules is on the vendor's list."""
    sources = [Path(preflight.__file__).with_name(name).read_text() for name in ("rules.py", "preflight.py")]
    printed = {code for source in sources for code in re.findall(r'"NCC_(\w+)"', source)}

    assert len(printed) > 20
    assert printed <= DOCUMENTED


PLAIN = hlo.serialize(graph(attention, MATRIX, np.ones((6, 6), np.float32), np.ones((8, 6), np.float32)))


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_damaged_graph_is_judged_or_a_value_error(data: st.DataObject) -> None:
    """Whatever bytes are replaced, nothing else is raised."""
    damaged = bytearray(PLAIN)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))

    try:
        findings = preflight.check(bytes(damaged), target="trn1")
    except ValueError:
        return
    assert all(finding.level in ("error", "warning") for finding in findings)
