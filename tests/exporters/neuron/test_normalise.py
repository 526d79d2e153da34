"""What JAX lowers, rewritten for an older XLA: the same results, small ids, no calls, no traces of the source."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import xla_oracle as xla
from llmcompile import hlo
from llmcompile.exporters.neuron.normalise import normalise
from llmcompile.hlo.fields import ComputationField, InstructionField, ModuleField

GOLDEN = Path(__file__).parents[2] / "golden" / "neuron"
RELEASES = ("0.4.38", "0.6.2", "0.8.3", "0.10.2")
ROWS = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
COLUMNS = np.random.default_rng(1).normal(size=(6, 5)).astype(np.float32)


def marked(target: str, shape: tuple[int, ...], value: Any) -> Any:
    """A marker custom-call on a value, as the lowering writes it."""
    ffi = jax.ffi if hasattr(jax, "ffi") else import_module("jax.extend.ffi")
    return ffi.ffi_call(target, jax.ShapeDtypeStruct(shape, value.dtype))(value)


def branching(rows: Any, columns: Any) -> Any:
    """Calls in calls, in a branch and in a loop."""
    activated = jax.jit(lambda value: jax.nn.silu(jax.nn.relu(value)))(rows @ columns)
    chosen = jax.lax.cond(rows[0, 0] > 0, jax.jit(jax.nn.softmax), jax.nn.relu, activated)
    return chosen, jax.lax.fori_loop(0, 3, lambda _, value: jax.nn.silu(value), chosen), jnp.take(rows, 1, axis=0)


def rewritten(function: Callable[..., Any], *arguments: Any, ranks: int = 1, donated: tuple[int, ...] = ()) -> bytes:
    """A function lowered and normalised, its parameters named p0, p1 ..."""
    names = [f"p{place}" for place in range(len(arguments))]
    return normalise(xla.lowered(function, *arguments, donated=donated), parameter_names=names, ranks=ranks)


def fields(module: hlo.Module) -> set[int]:
    """Numbers of the fields of all instructions."""
    return {field.number for instruction in module.instructions for field in instruction.message.fields}


def test_the_results_are_the_same() -> None:
    """XLA executes both, and gives equal bits."""
    before = xla.run(xla.lowered(branching, ROWS, COLUMNS), [ROWS, COLUMNS])[0]
    after = xla.run(rewritten(branching, ROWS, COLUMNS), [ROWS, COLUMNS])[0]

    assert len(after) == 3
    for left, right in zip(before, after, strict=True):
        np.testing.assert_array_equal(left, right)


def test_ids_are_consecutive_from_one() -> None:
    """Of computations first, then of instructions; each once."""
    module = hlo.parse(rewritten(branching, ROWS, COLUMNS))

    computations = [computation.id for computation in module.computations]
    instructions = [instruction.id for instruction in module.instructions]
    assert computations + instructions == list(range(1, len(computations) + len(instructions) + 1))


def test_every_layout_is_row_major() -> None:
    """Also that of a transpose, which comes with a hint to leave the data where it is, and so of a result."""
    data = rewritten(lambda value: value.T, ROWS)

    raw = hlo.parse(xla.lowered(lambda value: value.T, ROWS))
    module = hlo.parse(data)
    assert not all(one.shape.is_row_major for one in raw.instructions)
    assert all(one.shape.is_row_major for one in module.instructions)
    assert np.array_equal(xla.run(data, [ROWS])[0][0], ROWS.T)


def test_calls_are_inlined_and_what_nothing_applies_is_dropped() -> None:
    """Inside branches and loops too; what is left is applied by something."""
    raw = hlo.parse(xla.lowered(branching, ROWS, COLUMNS))
    module = hlo.parse(rewritten(branching, ROWS, COLUMNS))

    applied = {id for instruction in module.instructions for id in instruction.called_computation_ids}
    assert (raw.opcodes["call"] > 3, module.opcodes["call"]) == (True, 0)
    assert {computation.id for computation in module.computations} == applied | {module.entry.id}


def test_names_are_base_and_id() -> None:
    """Each once, in XLA's characters."""
    module = hlo.parse(rewritten(branching, ROWS, COLUMNS))

    named = [*module.instructions, *module.computations]
    assert all(re.fullmatch(rf"[A-Za-z0-9_-]+\.{one.id}", one.name) for one in named)
    assert len({one.name for one in named}) == len(named)


def test_parameters_are_named_as_asked() -> None:
    """In the instructions and in the program shape; what XLA does not take becomes an underscore."""
    names = ["layers.0.self_attn.q_proj/weight", "k:cache 1"]
    data = normalise(xla.lowered(branching, ROWS, COLUMNS), parameter_names=names, ranks=1)
    module = hlo.parse(data)

    found = [parameter.name.rpartition(".")[0] for parameter in module.parameters]
    shape = module.message.message(ModuleField.HOST_PROGRAM_SHAPE)
    assert found == ["layers_0_self_attn_q_proj_weight", "k_cache_1"]
    assert list(shape.texts(3)) == [parameter.name for parameter in module.parameters]
    assert re.search(r"layers_0_self_attn_q_proj_weight\.\d+ = f32\[4,6\]\S* parameter\(0\)", xla.text(data))


def test_nothing_says_where_it_came_from() -> None:
    """No metadata, stack frames, attributes, shardings; nor the new field of replica groups."""
    module = hlo.parse(rewritten(branching, ROWS, COLUMNS))

    gone = {
        InstructionField.METADATA,
        InstructionField.SHARDING,
        InstructionField.FRONTEND_ATTRIBUTES,
        InstructionField.STATISTICS_VIZ,
        InstructionField.COLLECTIVE_DEVICE_LIST,
        InstructionField.ORIGINAL_VALUE,
        InstructionField.IS_COMPOSITE,
        InstructionField.RESULT_ACCURACY,
    }
    kept = {ModuleField.NAME, ModuleField.ENTRY_COMPUTATION_NAME, ModuleField.COMPUTATIONS}
    kept |= {ModuleField.HOST_PROGRAM_SHAPE, ModuleField.ENTRY_COMPUTATION_ID}
    assert fields(module).isdisjoint(gone)
    assert {field.number for field in module.message.fields} == kept
    assert b".py" not in hlo.serialize(module)
    assert b"branching" not in hlo.serialize(module)


def test_equal_graphs_of_other_functions_are_equal_bytes() -> None:
    """Names of functions and lines of files do not matter."""

    def another(left: Any, right: Any) -> Any:
        doubled = jax.jit(lambda value: value * 2)(left @ right)
        return doubled, left + 1

    def one(rows: Any, columns: Any) -> Any:
        return jax.jit(lambda x: x * 2)(rows @ columns), rows + 1

    assert xla.lowered(one, ROWS, COLUMNS) != xla.lowered(another, ROWS, COLUMNS)
    assert rewritten(one, ROWS, COLUMNS) == rewritten(another, ROWS, COLUMNS)


def test_other_graphs_are_other_bytes() -> None:
    """A constant, a shape, a dtype."""
    graphs = [
        rewritten(lambda value: value * 2, ROWS),
        rewritten(lambda value: value * 3, ROWS),
        rewritten(lambda value: value * 2, COLUMNS),
        rewritten(lambda value: value * 2, ROWS.astype(np.float16)),
    ]

    assert len(set(graphs)) == 4


def test_modules_of_all_releases_become_the_same_bytes() -> None:
    """Those of JAX 0.4.38 to 0.10.2, whose ids and debug information differ; the newest execute as numpy says."""
    raw = [(GOLDEN / f"lowered-{release}.pb").read_bytes() for release in RELEASES]
    made = [normalise(data, parameter_names=("left", "right", "rows", "cache"), ranks=2) for data in raw]
    shares = [[(rank + 1) * ROWS[:, :4].T @ np.ones((4, 8), np.float32)] for rank in range(2)]
    left = [share[0][:4] for share in shares]
    right, rows, cache = np.eye(8, 6, dtype=np.float32), np.array([2, 0], np.int32), np.zeros((5, 6), np.float32)

    results = xla.run(made[0], *([left[rank], right, rows, cache] for rank in range(2)))

    summed = (left[0] + left[1]) @ right
    silu = summed / (1 + np.exp(-summed))
    taken = (silu + 1 if summed[0, 0] > 0 else silu * 2)[rows]
    both = np.concatenate([taken, taken], axis=1)
    exponents = np.exp(both - both.max(axis=1, keepdims=True))
    assert len(set(raw)) > 2
    assert len(set(made)) == 1
    for softmax, updated in results:
        np.testing.assert_allclose(softmax, exponents / exponents.sum(axis=1, keepdims=True), rtol=1e-5)
        np.testing.assert_allclose(updated[2:4], taken, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_marked_sum_is_an_all_reduce_over_all_ranks(dtype: str) -> None:
    """Replica mode: all in one group, no channel; each rank has the sum of the shares, in whatever type."""
    data = rewritten(lambda value: marked("llmcompile_all_reduce", (4, 6), value), jnp.asarray(ROWS, dtype), ranks=4)
    shares = [np.asarray(jnp.round(jnp.asarray(ROWS) * 8 + rank).astype(dtype)) for rank in range(4)]

    results = xla.run(data, *([share] for share in shares))

    total = sum(share.astype(np.float32) for share in shares)
    (reduce,) = [one for one in hlo.parse(data).instructions if one.opcode == "all-reduce"]
    assert (reduce.replica_groups, reduce.channel_id, reduce.uses_global_device_ids) == (((0, 1, 2, 3),), 0, False)
    assert reduce.custom_call_target == ""
    for result in results:
        np.testing.assert_array_equal(result[0].astype(np.float32), total)


@pytest.mark.parametrize("axis", [0, 1])
def test_marked_shares_are_gathered_along_the_dimension(axis: int) -> None:
    """In the order of ranks, along the dimension in the target's name."""
    whole = (8, 6) if axis == 0 else (4, 12)
    data = rewritten(lambda value: marked(f"llmcompile_all_gather_{axis}", whole, value), ROWS, ranks=2)

    results = xla.run(data, [ROWS], [ROWS + 1])

    (gather,) = [one for one in hlo.parse(data).instructions if one.opcode == "all-gather"]
    assert (gather.dimensions, gather.replica_groups, gather.channel_id) == ((axis,), ((0, 1),), 0)
    for result in results:
        np.testing.assert_array_equal(result[0], np.concatenate([ROWS, ROWS + 1], axis=axis))


def test_a_marker_inside_a_call_is_a_collective() -> None:
    """Calls are inlined first, and a sum is written once however often it is applied."""

    def twice(value: Any) -> Any:
        layer = jax.jit(lambda inner: marked("llmcompile_all_reduce", (4, 6), inner * 2))
        return layer(layer(value))

    module = hlo.parse(rewritten(twice, ROWS, ranks=2))

    assert (module.opcodes["all-reduce"], module.opcodes["custom-call"], len(module.computations)) == (2, 0, 2)


WRONG = [
    ("llmcompile_all_reduce", (4, 6), 1, "1 rank"),
    ("llmcompile_all_gather_0", (8, 6), 1, "1 rank"),
    ("llmcompile_all_gather_0", (8, 6), 4, "4 ranks"),
    ("llmcompile_all_gather_2", (8, 6), 2, "llmcompile_all_gather_2"),
    ("llmcompile_all_gather_x", (8, 6), 2, "llmcompile_all_gather_x"),
]


@pytest.mark.parametrize(("target", "shape", "ranks", "words"), WRONG)
def test_a_marker_that_does_not_fit_is_a_value_error(
    target: str, shape: tuple[int, ...], ranks: int, words: str
) -> None:
    """The number of ranks, or the dimension."""
    with pytest.raises(ValueError, match=words):
        rewritten(lambda value: marked(target, shape, value), ROWS, ranks=ranks)


def test_another_custom_call_is_left_alone() -> None:
    """Its target and everything it needs; the preflight judges it."""
    module = hlo.parse(rewritten(lambda value: marked("AwsNeuronGelu", (4, 6), value), ROWS))

    (call,) = [instruction for instruction in module.instructions if instruction.opcode == "custom-call"]
    assert call.custom_call_target == "AwsNeuronGelu"


def test_donated_parameters_stay_aliased() -> None:
    """Each to its result; the result is written where the parameter stood."""
    data = rewritten(lambda rows, columns: (rows @ columns, rows + 1, columns * 2), ROWS, COLUMNS, donated=(0, 1))

    assert [(alias.output_index, alias.parameter) for alias in hlo.parse(data).aliases] == [((1,), 0), ((2,), 1)]
    assert re.search(r"input_output_alias=\{ \{1\}: \(0, \{\}, may-alias\), \{2\}: \(1,", xla.text(data))


def test_a_single_result_is_a_tuple_of_one() -> None:
    """And its alias leads into the tuple."""
    data = rewritten(lambda rows: rows + 1, ROWS)
    aliased = hlo.parse(rewritten(lambda rows: rows + 1, ROWS, donated=(0,)))

    root = hlo.parse(data).entry.root
    assert (root.opcode, str(root.shape)) == ("tuple", "(f32[4,6])")
    assert [(alias.output_index, alias.parameter) for alias in aliased.aliases] == [((0,), 0)]
    np.testing.assert_array_equal(xla.run(data, [ROWS])[0][0], ROWS + 1)


def test_a_parameter_that_is_a_result_and_the_root_of_a_call() -> None:
    """A call whose callee returns its parameter stands for the operand."""
    data = rewritten(lambda rows, columns: jax.jit(lambda value: value)(columns), ROWS, COLUMNS)

    np.testing.assert_array_equal(xla.run(data, [ROWS, COLUMNS])[0][0], COLUMNS)


def test_normalising_twice_changes_nothing() -> None:
    """Parameters take the names they have."""
    once = rewritten(branching, ROWS, COLUMNS)

    assert normalise(once, parameter_names=("p0", "p1"), ranks=1) == once


def test_fields_are_in_the_order_of_numbers() -> None:
    """As protobuf's own libraries write them."""
    module = hlo.parse(rewritten(lambda rows, columns: (rows @ columns, rows + 1), ROWS, COLUMNS, donated=(0,)))
    messages = [module.message, *(one.message for one in module.instructions)]
    messages += [computation.message for computation in module.computations]

    for message in messages:
        numbers = [field.number for field in message.fields]
        assert numbers == sorted(numbers)
    assert {field.number for one in module.computations for field in one.message.fields} <= set(ComputationField)


def test_the_names_must_be_as_many_as_the_parameters() -> None:
    """Else a weight would take another's name."""
    with pytest.raises(ValueError, match="1 names for 2 parameters"):
        normalise(xla.lowered(branching, ROWS, COLUMNS), parameter_names=("rows",), ranks=1)


def test_bytes_that_are_no_module_are_a_value_error() -> None:
    """As `hlo.parse` says it."""
    with pytest.raises(ValueError, match="HloModuleProto"):
        normalise(b"", parameter_names=(), ranks=1)
