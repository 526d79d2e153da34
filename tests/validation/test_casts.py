"""The rounding of --auto-cast, against NumPy: what is rounded, how, and that XLA leaves it there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import xla_oracle
from llmcompile.exporters.neuron.normalise import normalise
from llmcompile.hlo import Module, parse, serialize
from llmcompile.validation.casts import Kind, rounded, widened
from llmcompile.validation.xla import Executable, place

Floats = npt.NDArray[np.float32]
jax = xla_oracle.jax
jnp = jax.numpy
BF16 = np.dtype(ml_dtypes.bfloat16)


def to_tf32(values: Floats) -> Floats:
    """To nearest, ties to even, at the 13th bit of 23."""
    bits = values.view(np.uint32).astype(np.uint64)
    kept = ((bits + 0xFFF + ((bits >> 13) & 1)) >> 13 << 13).astype(np.uint32).view(np.float32)
    return np.where(np.isfinite(values), kept, values).astype(np.float32)


def to_fp16(values: Floats) -> Floats:
    """With subnormal numbers, and infinities beyond 65504."""
    with np.errstate(over="ignore"):
        return values.astype(np.float16).astype(np.float32)


CASTS: Mapping[Kind, Callable[[Floats], Floats]] = {
    "bf16": lambda values: values.astype(BF16).astype(np.float32),
    "fp16": to_fp16,
    "tf32": to_tf32,
}
EDGES = [
    *(0.0, -0.0, 1.0, 1 / 3, 65504.0, 65519.99, 65520.0, 65536.0, 1e38, -3.4028235e38, np.inf, -np.inf, np.nan),
    *(6.1035156e-05, 6.0e-05, 5.9604645e-08, 2.9802322e-08, 2.98e-08, 1e-30, 1.00390625, 1.00097656, 1.00048828),
]
"""Where the types differ: overflow, the smallest normal and subnormal numbers, and ties."""
every_kind = pytest.mark.parametrize("kind", CASTS)


def lowered(function: Callable[..., Any], *arguments: Any, donated: tuple[int, ...] = ()) -> Module:
    """A graph as the exporter writes it, which is JAX's with small ids."""
    names = [f"x{number}" for number in range(len(arguments))]
    raw = xla_oracle.lowered(function, *arguments, donated=donated)
    return parse(normalise(raw, parameter_names=names, ranks=1))


def run(module: Module, *arguments: Any) -> list[Any]:
    """What XLA makes of it, on one rank."""
    results = Executable(serialize(module), 1).run([place([np.ascontiguousarray(one)]) for one in arguments])
    return [result.fetch()[0] for result in results]


def numbers(*shape: int, seed: int = 0) -> Floats:
    """From N(0, 1)."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module")
def rounders() -> Mapping[Kind, Executable]:
    """Graphs that only round: a product with nothing but the identity, whose other operand is rounded."""
    graph = lowered(lambda x: (jnp.negative(x),), np.zeros(64, np.float32))
    return {kind: Executable(serialize(rounded(graph, "all", kind)), 1) for kind in CASTS}


def assert_rounds(executable: Executable, kind: Kind, values: Floats) -> None:
    """Bit for bit as NumPy, NaN as NaN."""
    (result,) = executable.run([place([values.copy()])])
    found, expected = -result.fetch()[0], CASTS[kind](values)
    np.testing.assert_array_equal(
        found.view(np.uint32)[~np.isnan(expected)], expected.view(np.uint32)[~np.isnan(expected)]
    )
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))


@every_kind
def test_rounding_is_the_casts_at_every_edge(rounders: Mapping[Kind, Executable], kind: Kind) -> None:
    """Overflow, subnormal numbers, ties to even, infinities and NaN are those of a cast there and back."""
    values = np.resize(np.array(EDGES, np.float32), 64)

    assert_rounds(rounders[kind], kind, values)


@every_kind
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_rounding_is_the_casts_of_any_number(
    rounders: Mapping[Kind, Executable], kind: Kind, data: st.DataObject
) -> None:
    """Numbers that float32 itself holds as subnormal ones aside, which XLA flushes on CPU."""
    floats = st.floats(width=32, allow_subnormal=False)

    assert_rounds(rounders[kind], kind, data.draw(arrays.arrays(np.float32, 64, elements=floats)))


@every_kind
def test_matmul_rounds_the_operands_of_products_alone(kind: Kind) -> None:
    """Sums are float32, and what comes before and after is not rounded."""
    x, w = numbers(8, 64), numbers(64, 32, seed=1)
    graph = lowered(lambda x, w: (jnp.tanh(x) @ w + 1 / 3,), x, w)

    (found,) = run(rounded(graph, "matmul", kind), x, w)

    cast = CASTS[kind]
    wide = cast(np.tanh(x)).astype(np.float64) @ cast(w).astype(np.float64)
    np.testing.assert_allclose(found, wide + np.float32(1 / 3), rtol=2e-6, atol=4e-6)
    assert np.abs(found - (np.tanh(x) @ w + 1 / 3)).max() > 1e-3  # and it is not what float32 gives


@every_kind
def test_matmul_rounds_convolutions_too(kind: Kind) -> None:
    """A convolution is a matrix product to the compiler."""
    x, w = numbers(1, 3, 10), numbers(4, 3, 2, seed=1)
    graph = lowered(lambda x, w: (jax.lax.conv(x, w, (1,), "VALID"),), x, w)

    (found,) = run(rounded(graph, "matmul", kind), x, w)

    cast = CASTS[kind]
    windows = np.lib.stride_tricks.sliding_window_view(cast(x)[0], 2, axis=1)
    np.testing.assert_allclose(found[0], np.einsum("ctk,ock->ot", windows, cast(w)), rtol=1e-5, atol=1e-5)


@every_kind
def test_all_rounds_every_value(kind: Kind) -> None:
    """Parameters, constants, and the result of each operation."""
    x, w = numbers(8, 16), numbers(16, 4, seed=1)
    graph = lowered(lambda x, w: ((x * 0.3) @ w + 1 / 3,), x, w)

    (found,) = run(rounded(graph, "all", kind), x, w)

    cast = CASTS[kind]
    product = cast(cast(cast(x) * cast(np.array(0.3, np.float32))) @ cast(w))
    # A sum of another order may round to the neighbour.
    step = {"bf16": 2.0**-8, "fp16": 2.0**-11, "tf32": 2.0**-11}[kind]
    np.testing.assert_allclose(found, cast(product + cast(np.array(1 / 3, np.float32))), rtol=4 * step, atol=step / 8)


def test_all_leaves_the_sums_of_a_reduction_in_float32() -> None:
    """4096 times 0.01 is 41 even so; summed in bfloat16 it would stay at 4."""
    x = np.full((2, 4096), 0.01, np.float32)
    graph = lowered(lambda x: (x.sum(axis=1),), x)

    (found,) = run(rounded(graph, "all", "bf16"), x)

    np.testing.assert_allclose(found, 41.0, rtol=0.01)


def test_what_only_moves_values_is_not_rounded_again() -> None:
    """A number that was rounded stays so wherever it goes."""
    x = numbers(4, 6)
    graph = lowered(lambda x: (x.T.reshape(2, 12),), x)

    cast = rounded(graph, "all", "bf16")

    assert [one.opcode for one in cast.instructions].count("reduce-precision") == 1


def test_all_rounds_inside_loops() -> None:
    """Every turn of a loop rounds what it made, as unrolled code would."""
    x = np.array([1.0, 1.1, 1.7], np.float32)

    def looped(x: Any) -> tuple[Any, ...]:
        return (jax.lax.fori_loop(0, 5, lambda _, y: y * 1.1, x),)

    (found,) = run(rounded(lowered(looped, x), "all", "bf16"), x)

    cast = CASTS["bf16"]
    expected = cast(x)
    for _ in range(5):
        expected = cast(expected * cast(np.array(1.1, np.float32)))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("mode", ["matmul", "all"])
def test_the_border_of_a_rounded_graph_is_its_own(mode: Any) -> None:
    """Element types, shapes and what is written over what stay."""
    x = numbers(4, 4)
    graph = lowered(lambda s, x: (x @ x, s + x), x, x, donated=(0,))

    cast = rounded(graph, mode, "fp16")

    assert [one.shape for one in cast.parameters] == [one.shape for one in graph.parameters]
    assert cast.results == graph.results
    assert cast.aliases == graph.aliases


def test_a_graph_without_float32_products_stays_as_it_is() -> None:
    """Casting the operands of a bfloat16 product changes not a byte."""
    x = numbers(4, 4).astype(BF16)
    graph = lowered(lambda x: (x @ x,), x)

    assert serialize(rounded(graph, "matmul", "bf16")) == serialize(graph)


@pytest.mark.parametrize("dtype", [BF16, np.dtype(np.float16)])
def test_a_widened_graph_computes_in_float32_from_the_same_weights(dtype: np.dtype[Any]) -> None:
    """Products, sums, constants and casts in between round no more; inputs are taken as they are stored."""
    x, w, state = (numbers(8, 8, seed=seed).astype(dtype) for seed in range(3))

    def layer(x: Any, w: Any, s: Any) -> tuple[Any, ...]:
        scores = jax.nn.softmax((x @ w).astype(np.float32), axis=-1).astype(dtype)
        return (scores * jnp.asarray(0.3, dtype) + s).sum(axis=-1), s + x

    graph = lowered(layer, x, w, state, donated=(2,))

    found, after = run(widened(graph, {2}), x, w, state.astype(np.float32))

    wide_x, wide_w, wide_state = (array.astype(np.float64) for array in (x, w, state))
    scores = np.exp(wide_x @ wide_w)
    scores /= scores.sum(axis=-1, keepdims=True)
    expected = (scores * np.float64(dtype.type(0.3)) + wide_state).sum(axis=-1)
    assert found.dtype == after.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)
    np.testing.assert_array_equal(after, (state.astype(np.float32) + x.astype(np.float32)))


def test_a_widened_state_is_still_written_over() -> None:
    """Its parameter and its result are both float32; weights keep their type."""
    x = numbers(4, 4).astype(BF16)
    graph = lowered(lambda s, w: (s @ w, s + w), x, x, donated=(0,))

    wide = widened(graph, {0})

    assert wide.aliases == graph.aliases
    assert [one.shape.dtype for one in wide.parameters] == ["f32", "bf16"]
    assert [shape.dtype for shape in wide.results] == ["f32", "f32"]
