"""XLA's CPU client runs what lies on disk: every rank with its own tensors, in place, with real collectives."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import llmcompile.validation
import xla_oracle
from llmcompile.errors import MismatchError, ToolchainError
from llmcompile.exporters.neuron.normalise import ALL_GATHER, ALL_REDUCE, normalise
from llmcompile.validation import xla
from llmcompile.validation.xla import ALIGNMENT, Buffers, Executable, aligned, element_type, place

jax = xla_oracle.jax
BF16 = np.dtype(ml_dtypes.bfloat16)


@pytest.fixture
def fresh() -> Iterator[None]:
    """Whatever is remembered of JAX is forgotten before and after."""
    xla._library.cache_clear()
    yield
    xla._library.cache_clear()


def filled(*shape: int, dtype: Any = np.float32, start: float = 0.0) -> xla.Array:
    """Distinct small numbers, aligned as XLA wants them."""
    array = aligned(shape, np.dtype(dtype))
    array[...] = (start + np.arange(array.size) % 97 / 16).reshape(shape)
    return array


def module(function: Callable[..., Any], *arguments: Any, donated: tuple[int, ...] = ()) -> bytes:
    """JAX's own HLO of a function that returns a tuple."""
    return xla_oracle.lowered(function, *arguments, donated=donated)


def collective(target: str, shape: tuple[int, ...], result: tuple[int, ...], ranks: int) -> bytes:
    """A module of one collective over all ranks."""

    def marked(x: Any) -> tuple[Any, ...]:
        return (jax.ffi.ffi_call(target, jax.ShapeDtypeStruct(result, np.float32))(x),)

    return normalise(module(marked, np.zeros(shape, np.float32)), parameter_names=["x"], ranks=ranks)


def test_the_module_computes_what_numpy_computes() -> None:
    """A product and a sum, on one rank."""
    x, w = filled(3, 5), filled(5, 4, start=2)

    (result,) = Executable(module(lambda x, w: (x @ w + 1,), x, w), 1).run([place([x]), place([w])])

    np.testing.assert_allclose(result.fetch()[0], x @ w + 1, rtol=1e-6)


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_an_all_reduce_sums_what_every_rank_holds(ranks: int) -> None:
    """Each rank has a tensor of its own, also where there are more ranks than cores."""
    shares = [filled(4, 6, start=10.0 * rank) for rank in range(ranks)]

    (result,) = Executable(collective(ALL_REDUCE, (4, 6), (4, 6), ranks), ranks).run([place(shares)])

    for found in result.fetch():
        np.testing.assert_allclose(found, np.sum(shares, axis=0), rtol=1e-6)


def test_an_all_gather_keeps_the_order_of_ranks() -> None:
    """Rank 0's share comes first, on every rank."""
    shares = [filled(2, 3, start=10.0 * rank) for rank in range(2)]

    (result,) = Executable(collective(f"{ALL_GATHER}1", (2, 3), (2, 6), 2), 2).run([place(shares)])

    for found in result.fetch():
        np.testing.assert_array_equal(found, np.concatenate(shares, axis=1))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("f32", "float32"), ("f16", "float16"), ("bf16", "bfloat16"), ("s32", "int32"), ("pred", "bool"), ("u8", "uint8")],
)
def test_element_types_have_the_bits_of_xlas(name: str, dtype: str) -> None:
    """A tensor of each type goes through a module unchanged."""
    values = filled(2, 3, dtype=element_type(name))

    (result,) = Executable(module(lambda x: (x,), values), 1).run([place([values])])

    assert result.fetch()[0].dtype.name == dtype
    np.testing.assert_array_equal(result.fetch()[0], values)


def test_an_element_type_that_nothing_here_computes_is_refused() -> None:
    """The message names those that can be executed."""
    with pytest.raises(MismatchError, match=r"element type f8e4m3fn; expected bf16, .*f32"):
        element_type("f8e4m3fn")


def test_aligned_tensors_are_used_where_they_lie() -> None:
    """No rank's weights are copied, also when several modules take them, and a run leaves them as they are."""
    shares = [filled(8, 16, start=rank) for rank in range(2)]
    weights = place(shares)
    once, again = (Executable(module(lambda x, s=scale: (x * s,), shares[0]), 2) for scale in (2, 3))

    once.run([weights])
    again.run([weights])

    assert weights.pointers == tuple(share.ctypes.data for share in shares)
    assert not weights.donated
    np.testing.assert_array_equal(weights.fetch()[1], shares[1])


def test_read_only_memory_is_used_in_place(tmp_path: Path) -> None:
    """What a file is mapped to serves as a weight."""
    filled(4, 16).tofile(tmp_path / "weights")
    mapped = np.memmap(tmp_path / "weights", np.float32, "r", shape=(4, 16))

    placed = place([mapped])

    assert placed.pointers == (mapped.ctypes.data,)
    assert mapped.ctypes.data % ALIGNMENT == 0


def test_a_tensor_at_another_address_is_copied_whole() -> None:
    """Values do not depend on where they lie."""
    memory = filled(65)
    values = memory[1:]

    placed = place([values])

    assert placed.pointers != (values.ctypes.data,)
    np.testing.assert_array_equal(placed.fetch()[0], values)


def test_a_donated_state_is_written_over_in_place() -> None:
    """A result has the memory of the state before it, which cannot be used again; ours at the start stays ours."""
    state, step = filled(8, 16), filled(8, 16, start=3)
    executable = Executable(module(lambda s, x: (s + x,), state, step, donated=(0,)), 1)
    given, states = place([step]), [place([state])]
    addresses = []

    for _ in range(3):
        states += executable.run([states[-1], given])
        addresses.append(states[-1].pointers)

    assert addresses[0] == addresses[1] == addresses[2]
    assert [one.donated for one in (*states, given)] == [True, True, True, False, False]
    np.testing.assert_array_equal(states[-1].fetch()[0], state + 3 * step)
    np.testing.assert_array_equal(state, filled(8, 16))


def test_a_copied_state_is_written_over_from_the_first_run_on() -> None:
    """No second copy of it is made."""
    state = filled(8, 16)
    before = place([state], copied=True)
    address = before.pointers

    (after,) = Executable(module(lambda s: (s + 1,), state, donated=(0,)), 1).run([before])

    assert address != (state.ctypes.data,)
    assert after.pointers == address


def test_rounding_between_two_operations_is_kept() -> None:
    """XLA may not compute in float32 what the graph rounds to 16 bits on the way."""
    x = (np.arange(64, dtype=np.float32) / 7).reshape(8, 8)
    narrow = module(lambda x: ((x.astype(BF16) * np.asarray(1.1, BF16)).astype(np.float32) * 3,), x)

    (result,) = Executable(narrow, 1).run([place([x])])

    expected = (x.astype(BF16) * BF16.type(1.1)).astype(np.float32) * 3
    np.testing.assert_array_equal(result.fetch()[0], expected)


def test_16_bit_weights_are_widened_one_at_a_time() -> None:
    """What a run needs beside its arguments is one weight in float32, and not all of them."""
    size, count = 256, 6
    given = [filled(4, size, dtype=BF16), *(filled(size, size, dtype=BF16) for _ in range(count))]

    def chained(x: Any, *weights: Any) -> tuple[Any, ...]:
        for weight in weights:
            x = x @ weight
        return (x,)

    executable = Executable(module(chained, *given), 1)

    assert executable.scratch_bytes < 2 * 4 * size * size


@pytest.mark.parametrize("damage", [b"", b"no module", b"\x0a\x03abc"])
def test_bytes_that_are_no_module_are_refused(damage: bytes) -> None:
    """The message names the graph."""
    with pytest.raises(MismatchError, match=r"graphs/model\.hlo\.pb: XLA refuses it"):
        Executable(damage, 1, name="graphs/model.hlo.pb")


def test_arguments_that_the_module_does_not_take_are_our_mistake() -> None:
    """Too few, another shape, another type, or one array for two parameters: no rank starts, so none waits."""
    x = filled(2, 3)
    executable = Executable(module(lambda x, y: (x + y,), x, x), 2)
    good = place([x, x])

    wrong: list[list[Buffers]] = [
        [good],
        [good, place([filled(3, 2)] * 2)],
        [good, place([filled(2, 3, dtype=np.float16)] * 2)],
        [good, good],
    ]

    for arguments in wrong:
        with pytest.raises(ValueError, match="the graph takes"):
            executable.run(arguments)


def test_an_option_that_this_xla_does_not_know_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Older releases have fewer of them."""
    monkeypatch.setattr(xla, "_OPTIONS", (*xla._OPTIONS, ("xla_cpu_of_another_age", True)))
    x = filled(2, 3)

    (result,) = Executable(module(lambda x: (-x,), x), 1).run([place([x])])

    np.testing.assert_array_equal(result.fetch()[0], -x)


def test_without_jax_the_way_to_it_is_named(monkeypatch: pytest.MonkeyPatch, fresh: None) -> None:
    """Exit code 6, and what to type."""
    monkeypatch.setitem(sys.modules, "jax", None)

    with pytest.raises(ToolchainError, match="jax: not installed") as raised:
        xla.check_toolchain()

    assert raised.value.exit_code == 6
    assert raised.value.problems[0].hint == "pip install 'llmcompile[neuron]'"


def test_a_jax_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch, fresh: None) -> None:
    """Its CPU client has one device, whatever it is asked for."""
    old = SimpleNamespace(__version__="0.4.38", __version_info__=(0, 4, 38))
    monkeypatch.setitem(sys.modules, "jax", old)

    with pytest.raises(ToolchainError, match=r"jax: 0\.4\.38; expected 0\.5\.0 or newer"):
        xla.check_toolchain()


def test_a_jax_whose_private_api_changed_is_named(monkeypatch: pytest.MonkeyPatch, fresh: None) -> None:
    """The message says which versions are known, and what was missing."""
    monkeypatch.delattr("jax._src.core.ShapedArray")

    with pytest.raises(ToolchainError, match=r"another private API \(.*ShapedArray.*expected 0\.5\.0 to"):
        xla.check_toolchain()


def test_no_other_file_of_validation_knows_jax() -> None:
    """Its private API is used in one place."""
    folder = Path(llmcompile.validation.__file__).parent

    def imported(path: Path) -> set[str]:
        tree = ast.walk(ast.parse(path.read_text()))
        return {
            name.split(".")[0]
            for node in tree
            for name in (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [str(node.module)]
                if isinstance(node, ast.ImportFrom)
                else []
            )
        }

    assert {path.name for path in folder.rglob("*.py") if not imported(path).isdisjoint({"jax", "jaxlib"})} == {
        "xla.py"
    }
