"""Memory of a core: what is certain is exact, what lives in between is a low estimate of what XLA itself allots."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import xla_oracle as xla
from llmcompile import hlo
from llmcompile.exporters.neuron.memory import Memory, memory
from llmcompile.exporters.neuron.normalise import normalise
from llmcompile.exporters.neuron.targets import gib

KIB = 1 << 10
SQUARE = np.ones((32, 32), np.float32)
"""4 KiB."""


def of(function: Any, *arguments: Any, donated: tuple[int, ...] = ()) -> Memory:
    """What a lowered function needs."""
    raw = xla.lowered(function, *arguments, donated=donated)
    return memory(hlo.parse(normalise(raw, parameter_names=[f"p{i}" for i in range(len(arguments))], ranks=1)))


def test_parameters_results_and_constants_are_exact() -> None:
    """Three matrices in, one out, one in the graph."""
    constant = np.arange(1024, dtype=np.float32).reshape(32, 32)
    needed = of(lambda a, b, c: a + b + c + constant, SQUARE, SQUARE, SQUARE)

    assert (needed.parameters, needed.results, needed.constants, needed.temporaries) == (12 * KIB, 4 * KIB, 4 * KIB, 0)
    assert needed.total == 20 * KIB


def test_a_donated_parameter_is_its_result() -> None:
    """Its memory counts once."""
    assert of(lambda a, b: (a + b, a * 2), SQUARE, SQUARE, donated=(0,)).results == 4 * KIB


def test_products_in_a_chain_live_two_at_a_time() -> None:
    """Each is needed until the next is made, whatever their number; the last is the result."""

    def chain(a: Any) -> Any:
        for _ in range(6):
            a = a @ a
        return a

    assert of(chain, SQUARE).temporaries == 2 * 4 * KIB


def test_products_that_are_all_needed_live_together() -> None:
    """Five, until they are joined."""

    def joined(a: Any) -> Any:
        return lax.concatenate([a @ (a * float(factor)) for factor in range(2, 7)], 0)

    assert of(joined, SQUARE).temporaries == 5 * 4 * KIB


def test_element_wise_operations_with_one_user_are_free() -> None:
    """They are computed where they are used."""

    def activated(a: Any) -> Any:
        return jnp.tanh(jnp.exp((a @ a) * 2) + 1) @ a

    assert of(activated, SQUARE).temporaries == 4 * KIB


def test_an_update_in_place_is_free() -> None:
    """A cache that is written and donated takes no memory of its own."""

    def written(cache: Any, row: Any) -> Any:
        return lax.dynamic_update_slice(cache, row, (3, 0)), row * 2

    assert of(written, SQUARE, SQUARE[:1], donated=(0,)).temporaries == 0


def test_what_a_loop_needs_inside_counts() -> None:
    """The body's own products, beside what lives outside."""

    def looped(a: Any) -> Any:
        return lax.fori_loop(0, 3, lambda _, one: (one @ a) @ (one @ a + 1), a)

    assert of(looped, SQUARE).temporaries >= 2 * 4 * KIB


def test_layers_do_not_add_up() -> None:
    """Three and eight need the same in between, which is 40 % to all of what XLA allots on the CPU."""
    length, heads, width = 128, 4, 32

    def layer(states: Any, weights: Any) -> Any:
        query, key, value = (
            (states @ weights[:, place : place + width]).reshape(length, heads, -1).transpose(1, 0, 2)
            for place in (0, width, 2 * width)
        )
        scores = jnp.where(jnp.tril(jnp.ones((length, length), bool)), query @ key.transpose(0, 2, 1), -1e9)
        return states + (jax.nn.softmax(scores) @ value).transpose(1, 0, 2).reshape(length, width)

    def model(states: Any, *weights: Any) -> Any:
        for one in weights:
            states = layer(states, one)
        return states

    states, weights = np.ones((length, width), np.float32), np.ones((width, 3 * width), np.float32)
    compiled = jax.jit(model).lower(states, *[weights] * 8).compile().memory_analysis()

    three, eight = of(model, states, *[weights] * 3), of(model, states, *[weights] * 8)

    assert eight.temporaries == three.temporaries
    assert heads * length * length * 4 <= eight.temporaries <= compiled.temp_size_in_bytes <= 2.5 * eight.temporaries


def test_sizes_in_messages() -> None:
    """GiB with a decimal, MiB below a tenth of one."""
    assert [gib(size) for size in (16 << 30, 3 << 29, 200 << 20, 90 << 20)] == [
        "16.0 GiB",
        "1.5 GiB",
        "0.2 GiB",
        "90.0 MiB",
    ]
