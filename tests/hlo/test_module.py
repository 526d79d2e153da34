"""Views on HloModuleProto: what XLA wrote is read, what we write XLA reads."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import xla_oracle as xla
from llmcompile import hlo
from llmcompile.hlo.fields import BITS, ELEMENT_TYPES, InstructionField
from llmcompile.hlo.instruction import DotDimensions, Instruction
from llmcompile.hlo.shape import Shape, read_shape, write_shape
from llmcompile.hlo.wire import Message

LEFT = np.arange(12, dtype=np.float32).reshape(3, 4) / 7
RIGHT = np.arange(20, dtype=np.float32).reshape(4, 5) / 11 - 1


def product(left: Any, right: Any) -> Any:
    """A dot, an addition in place of the left operand, and a maximum by rows."""
    return left @ right, left + 1, jnp.max(left, axis=1)


@pytest.fixture(scope="module")
def written() -> bytes:
    """The function above as JAX writes it; the left operand is donated."""
    return xla.lowered(product, LEFT, RIGHT, donated=(0,))


def of(opcode: str, module: hlo.Module) -> Instruction:
    """The only instruction of an opcode."""
    (found,) = [instruction for instruction in module.instructions if instruction.opcode == opcode]
    return found


def test_an_unchanged_module_comes_back_byte_for_byte(written: bytes) -> None:
    """Fields we know nothing of are kept."""
    assert hlo.serialize(hlo.parse(written)) == written


def test_the_border_is_read(written: bytes) -> None:
    """Parameters in order, results, aliases, as HLO text has them."""
    module = hlo.parse(written)

    assert [str(parameter.shape) for parameter in module.parameters] == ["f32[3,4]", "f32[4,5]"]
    assert [str(shape) for shape in module.results] == ["f32[3,5]", "f32[3,4]", "f32[3]"]
    assert [(alias.output_index, alias.parameter) for alias in module.aliases] == [((1,), 0)]


def test_opcodes_are_counted(written: bytes) -> None:
    """In all computations: the reduction has its own."""
    opcodes = hlo.parse(written).opcodes

    assert (opcodes["dot"], opcodes["reduce"], opcodes["parameter"], opcodes["tuple"]) == (1, 1, 4, 1)


def test_a_dot_is_read(written: bytes) -> None:
    """Which dimensions are summed, and over which operands."""
    module = hlo.parse(written)
    dot = of("dot", module)

    assert dot.dot_dimensions == DotDimensions((1,), (0,), (), ())
    assert dot.operand_ids == tuple(parameter.id for parameter in module.parameters)


def test_a_reduction_names_what_it_applies(written: bytes) -> None:
    """The called computation's root is a maximum."""
    module = hlo.parse(written)
    reduce = of("reduce", module)

    assert reduce.dimensions == (1,)
    assert [module.by_id[id].root.opcode for id in reduce.called_computation_ids] == ["maximum"]


def test_every_element_type_has_the_name_and_the_width_of_xla() -> None:
    """XLA's text of a parameter of each type, for the types this jaxlib knows."""
    names = {name for name in BITS if hasattr(xla.xla_client.PrimitiveType, name.upper())}
    arrays = {
        name: xla.xla_client.Shape.array_shape(getattr(xla.xla_client.PrimitiveType, name.upper()), (3,))
        for name in names
    }

    assert {name: str(shape).split("[")[0] for name, shape in arrays.items()} == {name: name for name in names}
    assert {"pred", "s4", "s32", "u8", "bf16", "f16", "f32", "f64", "c64", "f8e4m3fn", "f8e5m2"} <= names
    for name, shape in arrays.items():
        assert read_shape(Message.parse(shape.to_serialized_proto())).dtype == name


@pytest.mark.parametrize("dtype", ["pred", "s8", "u8", "s32", "u32", "s64", "f16", "f32", "f64", "c64"])
def test_sizes_are_those_of_numpy(dtype: str) -> None:
    """Bytes of an array."""
    names = {"pred": "bool", "c64": "complex64"}
    kind = names.get(dtype, dtype.replace("s", "int").replace("u", "uint").replace("f", "float"))

    assert Shape(dtype, (3, 5)).size_bytes == np.zeros((3, 5), kind).nbytes


DIMS = st.lists(st.integers(0, 9), max_size=4).map(tuple)
ARRAYS = st.builds(
    lambda dtype, dims: Shape(dtype, dims, minor_to_major=tuple(reversed(range(len(dims))))),
    st.sampled_from(sorted(BITS)),
    DIMS,
)
SHAPES = st.recursive(
    ARRAYS, lambda inner: st.builds(lambda some: Shape("tuple", elements=tuple(some)), st.lists(inner, max_size=3))
)


@given(SHAPES)
def test_shapes_come_back(shape: Shape) -> None:
    """Nested tuples too."""
    assert read_shape(write_shape(shape)) == shape


@pytest.mark.parametrize("shape", [Shape("f32", (2, 3)), Shape("bf16"), Shape("s32", (0,)), Shape("pred", (1, 1, 4))])
def test_shapes_are_written_as_xla_writes_them(shape: Shape) -> None:
    """Byte for byte: the shape of a parameter in a module of JAX's."""
    dtype = {"pred": "bool", "bf16": "bfloat16", "s32": "int32", "f32": "float32"}[shape.dtype]
    module = hlo.parse(xla.lowered(lambda value: value, jnp.zeros(shape.dims, dtype)))

    assert module.parameters[0].message.message(InstructionField.SHAPE) == write_shape(shape)


def test_a_shape_says_what_it_is() -> None:
    """As HLO text does."""
    dynamic = Shape("f32", (4, 5), dynamic=(False, True))

    assert str(Shape("tuple", elements=(dynamic, Shape("s32")))) == "(f32[4,<=5], s32[])"
    assert (dynamic.is_dynamic, Shape("f32", (4, 5), minor_to_major=(0, 1)).is_row_major) == (True, False)


def test_an_unknown_element_type_survives() -> None:
    """A type XLA adds later has a name of its number and no size."""
    shape = read_shape(Message().with_integer(2, 99).with_integers(3, (7,)))

    assert (str(shape), shape.size_bytes) == ("type99[7]", 0)
    with pytest.raises(ValueError, match="type99"):
        write_shape(shape)


def test_an_instruction_can_be_put_between_two_others(written: bytes) -> None:
    """A reduce-precision to bf16's bits before a dot: XLA gives the product of the rounded values."""
    module = hlo.parse(written)
    fresh = module.fresh_ids()
    instructions: list[Instruction] = []
    for instruction in module.entry.instructions:
        if instruction.opcode == "dot":
            rounded = [
                hlo.reduce_precision(module.entry.by_id[id], next(fresh), exponent_bits=8, mantissa_bits=7)
                for id in instruction.operand_ids
            ]
            instructions += rounded
            instruction = instruction.with_operands([one.id for one in rounded])
        instructions.append(instruction)
    changed = module.with_computation(module.entry.with_instructions(instructions, root_id=module.entry.root_id))

    got = xla.run(hlo.serialize(changed), [LEFT, RIGHT])[0][0]

    left, right = (np.asarray(jnp.asarray(value, jnp.bfloat16).astype(jnp.float32)) for value in (LEFT, RIGHT))
    assert not np.array_equal(left, LEFT)
    np.testing.assert_allclose(got, left @ right, rtol=1e-6)


def test_fresh_ids_are_taken_by_nothing(written: bytes) -> None:
    """Neither by an instruction nor by a computation."""
    module = hlo.parse(written)
    taken = {instruction.id for instruction in module.instructions} | {one.id for one in module.computations}
    fresh = module.fresh_ids()

    assert taken.isdisjoint([next(fresh) for _ in range(5)])


def test_replica_groups_are_read_from_the_old_field() -> None:
    """Two groups of two."""
    made = Instruction.make("all-reduce", Shape("f32", (2,)), id=3).with_replica_groups(((0, 1), (2, 3)))

    assert made.replica_groups == ((0, 1), (2, 3))


IOTA = [
    ((2, 2), (), (), ((0, 1), (2, 3))),
    ((2, 2), (2, 2), (1, 0), ((0, 2), (1, 3))),
    ((4, 3), (2, 3, 2), (0, 2, 1), ((0, 2, 4), (1, 3, 5), (6, 8, 10), (7, 9, 11))),
]


@pytest.mark.parametrize(("sizes", "dims", "order", "groups"), IOTA)
def test_replica_groups_are_read_from_an_iota_list(
    sizes: tuple[int, int], dims: tuple[int, ...], order: tuple[int, ...], groups: tuple[tuple[int, ...], ...]
) -> None:
    """Replicas in a row, arranged, transposed and cut: numpy's reshape and transpose."""
    count = sizes[0] * sizes[1]
    expected = np.arange(count).reshape(dims if dims else (count,)).transpose(order if order else None).reshape(sizes)
    iota = Message().with_integer(1, sizes[0]).with_integer(2, sizes[1]).with_integers(3, dims).with_integers(4, order)
    devices = Message().with_message(InstructionField.COLLECTIVE_DEVICE_LIST, Message().with_message(2, iota))

    assert Instruction(devices).replica_groups == groups == tuple(map(tuple, expected.tolist()))


@pytest.mark.skipif(not hasattr(jax, "P"), reason="releases of JAX before 0.7 write the old field")
def test_replica_groups_are_read_from_the_new_field() -> None:
    """Those of a sum over four devices, as JAX writes it: all together."""
    mesh = jax.sharding.AbstractMesh((4,), ("x",))
    summed = jax.shard_map(
        lambda value: jax.lax.psum(value, "x"), mesh=mesh, in_specs=jax.P("x"), out_specs=jax.P(), check_vma=False
    )
    module = hlo.parse(xla.lowered(summed, np.zeros(8, np.float32)))

    assert of("all-reduce", module).replica_groups == ((0, 1, 2, 3),)


def broken(written: bytes) -> list[tuple[bytes, str]]:
    """Modules that refer to what is not in them, and what is said of each."""
    module = hlo.parse(written)
    entry = module.entry

    def changed(instructions: list[Instruction]) -> bytes:
        message = entry.message.with_messages(2, [instruction.message for instruction in instructions])
        return hlo.serialize(module.with_computation(hlo.Computation(message)))

    def each(opcode: str, change: Any) -> list[Instruction]:
        return [change(one) if one.opcode == opcode else one for one in entry.instructions]

    return [
        (b"", "no computation"),
        (changed(each("dot", lambda dot: dot.with_operands((99, 98)))), "operand 99"),
        (changed(each("dot", lambda dot: dot.with_operands(dot.operand_ids[:1]))), "dot of 1 operands"),
        (changed(list(reversed(entry.instructions))), "does not stand before it"),
        (changed(each("reduce", lambda one: one.with_called_computations((entry.id,)))), f"computation {entry.id}"),
        (changed(each("reduce", lambda one: one.with_id(module.parameters[0].id))), "twice"),
        (changed(each("dot", lambda one: Instruction(one.message.with_text(2, "")))), "opcode ''"),
        (changed(each("parameter", lambda one: Instruction(one.message.with_integer(9, 1)))), r"parameters \[1, 1\]"),
        (hlo.serialize(hlo.Module(module.message.with_integer(6, 77))), "no computation of id 77"),
        (hlo.serialize(module.with_aliases([hlo.Alias((1,), 9)])), "parameter 9 of 2"),
        (hlo.serialize(module.with_aliases([hlo.Alias((8,), 0)])), r"element \[8\]"),
    ]


def test_a_module_that_contradicts_itself_is_a_value_error(written: bytes) -> None:
    """Each way, with what is wrong."""
    for data, words in broken(written):
        with pytest.raises(ValueError, match=words):
            hlo.parse(data)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_damaged_module_is_read_or_a_value_error(written: bytes, data: st.DataObject) -> None:
    """Cut short, or some bytes replaced: never another exception."""
    damaged = bytearray(written[: data.draw(st.integers(0, len(written)))])
    for _ in range(data.draw(st.integers(0, 4))):
        if len(damaged) > 0:
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))

    try:
        module = hlo.parse(bytes(damaged))
        for instruction in module.instructions:
            assert instruction.shape.size_bytes >= 0
            _ = (instruction.window, instruction.replica_groups, instruction.dot_dimensions, instruction.op_name)
    except ValueError:
        pass


def test_a_shape_of_endless_tuples_is_a_value_error() -> None:
    """Rather than an exhausted stack."""
    message = Message().with_integer(2, 13)
    for _ in range(200):
        message = Message().with_integer(2, 13).with_message(4, message)

    with pytest.raises(ValueError, match="deep"):
        read_shape(message)


def test_every_number_of_an_element_type_is_used_once() -> None:
    """The table is PrimitiveType's, 1 to 34 without gaps."""
    assert sorted(ELEMENT_TYPES) == list(range(1, 35))
    assert len(set(ELEMENT_TYPES.values())) == 34
