"""Exported programs as HLO: their borders, their constants, their states and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from llmcompile.errors import UnsupportedError
from llmcompile.exporters.neuron.lowering.collectives import all_gather, all_reduce
from llmcompile.exporters.neuron.lowering.elements import to_numpy
from llmcompile.exporters.neuron.lowering.program import MAX_LITERAL_BYTES, Lowered, lower, weights_behind
from llmcompile.hlo.module import parse
from llmcompile.validation.xla import Buffers, Executable, place


class Forward(nn.Module):
    """A module whose forward is a function of itself and its inputs."""

    def __init__(self, function: Callable[..., Any], **tensors: Tensor) -> None:
        super().__init__()
        self.function = function
        for name, tensor in tensors.items():
            if name.startswith("weight"):
                self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
            else:
                self.register_buffer(name, tensor, persistent=name.startswith("kept"))

    def forward(self, *inputs: Tensor) -> Any:
        """What the function returns."""
        return self.function(self, *inputs)


def lowered(
    module: nn.Module,
    *inputs: Tensor,
    outputs: Sequence[str | None] = ("y",),
    states: Sequence[str] = (),
    ranks: int = 1,
    values: Mapping[str, Tensor] | None = None,
) -> Lowered:
    """Export and lower a module."""
    program = torch.export.export(module.eval(), inputs, strict=False)
    return lower(
        program,
        name="model",
        kind="encoder",
        ranks=ranks,
        input_names=[f"x{place}" for place in range(len(inputs))],
        output_names=outputs,
        states=states,
        values={} if values is None else values,
    )


def run(made: Lowered, *tensors: Tensor) -> list[np.ndarray[Any, Any]]:
    """Execute a module of one rank on its parameters, in order."""
    arguments = [place([np.ascontiguousarray(to_numpy(tensor, "x"))]) for tensor in tensors]
    return [result.fetch()[0] for result in Executable(made.module, 1).run(arguments)]


def test_border_is_inputs_then_states_then_weights() -> None:
    """Weights are those that the graph uses, by their names; results are outputs, then states."""

    def forward(self: Any, x: Tensor) -> Tensor:
        self.cache.copy_(self.cache + x)
        return functional.linear(x, self.weight_b) * self.kept_scale + self.weight_a

    module = Forward(
        forward,
        weight_a=torch.ones(3),
        weight_b=torch.ones(3, 4),
        weight_unused=torch.ones(9),
        kept_scale=torch.ones(3),
        cache=torch.zeros(2, 4),
    )

    made = lowered(module, torch.ones(2, 4), states=["cache"])

    signature, hlo = made.signature, parse(made.module)
    assert [value.name for value in signature.inputs] == ["x0"]
    assert [value.name for value in signature.states] == ["cache"]
    assert [value.name for value in signature.weights] == ["weight_a", "weight_b", "kept_scale"]
    shapes = [(parameter.shape.dtype, parameter.shape.dims) for parameter in hlo.parameters]
    assert shapes == [("f32", (2, 4)), ("f32", (2, 4)), ("f32", (3,)), ("f32", (3, 4)), ("f32", (3,))]
    assert [(shape.dtype, shape.dims) for shape in hlo.results] == [("f32", (2, 3)), ("f32", (2, 4))]
    assert [(alias.output_index, alias.parameter) for alias in hlo.aliases] == [((1,), 1)]


def test_unused_input_is_still_a_parameter() -> None:
    """So that a caller feeds what the signature says."""
    made = lowered(Forward(lambda self, x, y: x + 1), torch.ones(2), torch.ones(5))

    assert [value.shape for value in made.signature.inputs] == [(2,), (5,)]
    assert len(parse(made.module).parameters) == 2


def test_a_table_of_a_network_on_the_meta_device_is_a_literal() -> None:
    """No file has it, whatever its size: the one who made the network gives its values."""
    table = torch.arange(MAX_LITERAL_BYTES // 4 + 1.0)
    with torch.device("meta"):
        module = Forward(lambda self, x: x + self.table, table=torch.empty(table.shape))
        program = torch.export.export(module, (torch.ones(table.shape),))

    made = lower(
        program,
        name="model",
        kind="encoder",
        ranks=1,
        input_names=["x"],
        output_names=["y"],
        states=(),
        values={"table": table},
    )

    assert (made.signature.weights, made.constants) == ((), {})
    assert np.array_equal(run(made, torch.ones(table.shape))[0], table.numpy() + 1)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_weights_need_no_values(device: str) -> None:
    """A model on the meta device gives the bytes that a loaded one gives."""
    with torch.device(device):
        module = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3)).requires_grad_(False)
        made = lowered(module, torch.ones(2, 4))

    assert [value.name for value in made.signature.weights] == ["0.weight", "0.bias", "1.weight", "1.bias"]
    again = lowered(nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3)).requires_grad_(False), torch.ones(2, 4))
    assert made.module == again.module


def test_small_constants_are_literals_and_large_ones_weights() -> None:
    """The limit is in bytes of the type in HLO; values of large ones are reported for the file of weights."""
    elements = MAX_LITERAL_BYTES // 4
    small, large = torch.arange(elements), torch.arange(elements + 1.0)
    module = Forward(lambda self, x: (x + self.small, x.sum() + self.large), small=small, large=large)

    made = lowered(module, torch.ones(elements), outputs=["a", "b"])

    assert [value.name for value in made.signature.weights] == ["large"]
    assert made.constants.keys() == {"large"}
    assert made.constants["large"] is large
    results = run(made, torch.ones(elements), large)
    np.testing.assert_array_equal(results[0], 1 + np.arange(elements, dtype=np.float32))
    np.testing.assert_array_equal(results[1], elements + np.arange(elements + 1, dtype=np.float32))


def test_constant_tensor_of_the_code_is_a_literal() -> None:
    """One that forward makes, which torch.export lifts out of the graph."""
    made = lowered(Forward(lambda self, x: x * torch.tensor([1.0, 2.0, 4.0])), torch.ones(3))

    assert made.signature.weights == ()
    np.testing.assert_array_equal(run(made, torch.ones(3))[0], [1, 2, 4])


def test_buffer_without_values_takes_those_that_are_given() -> None:
    """A table that a network on the meta device needs, computed elsewhere."""
    module = Forward(lambda self, x: x * self.table, table=torch.empty(3, device="meta"))

    made = lowered(module, torch.ones(3, device="meta"), values={"table": torch.tensor([1.0, 2.0, 4.0])})

    np.testing.assert_array_equal(run(made, torch.ones(3))[0], [1, 2, 4])


def test_buffer_without_values_is_refused() -> None:
    """By name."""
    module = Forward(lambda self, x: x * self.table, table=torch.empty(3, device="meta"))

    with pytest.raises(UnsupportedError, match="table: a constant without values"):
        lowered(module, torch.ones(3, device="meta"))


def test_output_without_a_name_is_left_out_with_its_weights() -> None:
    """Nothing of it remains in the module."""
    module = Forward(
        lambda self, x: (x + self.weight_a, x * self.weight_b), weight_a=torch.ones(2), weight_b=torch.ones(2)
    )

    made = lowered(module, torch.ones(2), outputs=[None, "product"])

    assert [value.name for value in made.signature.outputs] == ["product"]
    assert [value.name for value in made.signature.weights] == ["weight_b"]
    assert "add" not in parse(made.module).opcodes


def test_outputs_are_told_the_weights_they_depend_on() -> None:
    """Those they depend on through other nodes too."""

    def forward(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = x + self.weight_a
        return y, y.tanh() * self.weight_b

    module = Forward(forward, weight_a=torch.ones(2), weight_b=torch.ones(2))

    behind = weights_behind(torch.export.export(module, (torch.ones(2),), strict=False))

    assert behind == [{"weight_a"}, {"weight_a", "weight_b"}]


def test_each_state_is_written_over_its_own_parameter() -> None:
    """Also where an output, or another state, has the same shape."""

    def forward(self: Any, x: Tensor) -> Tensor:
        self.first.copy_(self.first + x)
        self.second.copy_(self.second * x)
        return x - 1

    module = Forward(forward, first=torch.zeros(3), second=torch.zeros(3))

    made = lowered(module, torch.ones(3), states=["second", "first"])

    aliases = parse(made.module).aliases
    assert [(alias.output_index, alias.parameter) for alias in aliases] == [((1,), 1), ((2,), 2)]
    given = [torch.full((3,), value) for value in (2.0, 5.0, 7.0)]
    results = [result.tolist() for result in run(made, *given)]
    assert results == [[1.0] * 3, [10.0] * 3, [9.0] * 3]


HEADS, LENGTH, SIZE = 4, 512, 64
CACHE = torch.zeros(2, HEADS, LENGTH, SIZE)


def whole(self: Any, x: Tensor, positions: Tensor) -> Tensor:
    """A prompt as long as the cache."""
    self.cache.copy_(x)
    return self.cache.sum()


def prefix(self: Any, x: Tensor, positions: Tensor) -> Tensor:
    """A shorter prompt."""
    self.cache[:, :, : x.shape[2]] = x
    return self.cache.sum()


def scattered(self: Any, x: Tensor, positions: Tensor) -> Tensor:
    """A token of each row, as transformers and neuronx-distributed write it."""
    self.cache.scatter_(2, positions.long()[:, None, :, None].expand(-1, HEADS, -1, SIZE), x)
    return self.cache.sum()


def put(self: Any, x: Tensor, positions: Tensor) -> Tensor:
    """A token of each row, as a row of heads."""
    self.cache[torch.arange(2), :, positions[:, 0]] = x[:, :, 0]
    return self.cache.sum()


def copied(self: Any, x: Tensor, positions: Tensor) -> Tensor:
    """A token at the same position of every row."""
    self.cache.index_copy_(2, positions[0].long(), x)
    return self.cache.sum()


@pytest.mark.parametrize(
    ("forward", "tokens", "opcode"),
    [
        (whole, LENGTH, None),
        (prefix, 5, "dynamic-update-slice"),
        (scattered, 1, "scatter"),
        (put, 1, "scatter"),
        (copied, 1, "dynamic-update-slice"),
    ],
    ids=lambda item: getattr(item, "__name__", None),
)
def test_cache_is_written_in_place(forward: Callable[..., Tensor], tokens: int, opcode: str | None) -> None:
    """Of every way to write it: right, over the parameter that was given, and without a second cache in memory."""
    x, cache = torch.randn(2, HEADS, tokens, SIZE), torch.randn_like(CACHE)
    positions = torch.tensor([[7], [7 if forward is copied else 300]], dtype=torch.int32)

    made = lowered(Forward(forward, cache=CACHE.clone()), x, positions, states=["cache"])
    executable = Executable(made.module, 1)
    arguments = [place([to_numpy(tensor, "x").copy()]) for tensor in (x, positions, cache)]
    results = executable.run(arguments)

    expected = Forward(forward, cache=cache.clone())
    expected(x, positions)
    np.testing.assert_array_equal(results[1].fetch()[0], expected.cache.numpy())
    assert opcode is None or parse(made.module).opcodes[opcode] == 1
    assert arguments[2].donated
    assert executable.scratch_bytes < CACHE.numel() * 4 / 4


def on_ranks(made: Lowered, shares: Sequence[Tensor]) -> list[Buffers]:
    """Execute a module whose only parameter is an input, a share of it on each rank."""
    arguments = place([to_numpy(share, "x").copy() for share in shares])
    return Executable(made.module, len(shares)).run([arguments])


def test_collectives_join_ranks() -> None:
    """Executed on two: sums and concatenations along any axis, the same on both."""

    def forward(self: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return all_reduce(x), all_gather(x, 0, 2), all_gather(x, -1, 2)

    shares = [torch.arange(6.0).reshape(2, 3), torch.ones(2, 3)]

    made = lowered(Forward(forward), shares[0], outputs=["sum", "rows", "columns"], ranks=2)

    expected = [shares[0] + shares[1], torch.cat(shares, 0), torch.cat(shares, 1)]
    for result, tensor in zip(on_ranks(made, shares), expected, strict=True):
        for array in result.fetch():
            np.testing.assert_array_equal(array, tensor.numpy())
    assert made.signature.ranks == 2


def test_collective_of_one_rank_is_nothing() -> None:
    """The module has no custom call and no collective."""
    made = lowered(Forward(lambda self, x: all_gather(all_reduce(x), 0, 1)), torch.ones(3))

    assert parse(made.module).opcodes == {"parameter": 1, "tuple": 1}


@pytest.mark.parametrize("collective", [all_reduce, lambda x: all_gather(x, 0, 2)])
def test_collective_outside_a_graph_raises(collective: Callable[[Tensor], Tensor]) -> None:
    """There is nobody to exchange with."""
    with pytest.raises(RuntimeError, match="joins ranks and runs in a lowered graph only"):
        collective(torch.ones(2))


def test_blocks_under_no_grad_and_autocast_are_part_of_the_graph() -> None:
    """torch.export keeps them as graphs of their own where gradients are on."""

    def forward(self: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = x * 2
        with torch.autocast("cpu", enabled=False):
            return y.cos() + x

    made = lowered(Forward(forward), torch.tensor([0.5, 1.5]))

    np.testing.assert_allclose(run(made, torch.tensor([0.5, 1.5]))[0], np.cos([1, 3]) + np.array([0.5, 1.5]), rtol=1e-6)


def product(self: Any, x: Tensor) -> Tensor:
    """Something of several computations."""
    return (x @ x.T).softmax(-1).topk(2)[0].sum(0)


def test_bytes_depend_on_the_graph_alone() -> None:
    """Not on the process, its hash seed or its precision setting."""
    code = (
        f"import sys; sys.path[:0] = {[str(Path(__file__).parent)]!r}\n"
        "import test_program as here, torch\n"
        "sys.stdout.buffer.write(here.lowered(here.Forward(here.product), torch.ones(3, 4)).module)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "JAX_ENABLE_X64": "1"}

    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, check=True, env=environment
    )

    assert done.stdout == lowered(Forward(product), torch.ones(3, 4)).module


class Nested(nn.Module):
    """A module with a layer that does what is given."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Forward(function)])

    def forward(self, x: Tensor) -> Any:
        """What the layer does."""
        return self.layers[0](x)


@pytest.mark.parametrize(
    ("function", "subject", "found"),
    [
        (lambda self, x: x.sort()[0], "aten.sort.default in layers.0", "Neuron has no sort (NCC_EUOC002)"),
        (lambda self, x: x + torch.rand_like(x), "aten.rand_like.default in layers.0", "a random number"),
        (lambda self, x: torch.special.i0e(x), "aten.special_i0e.default in layers.0", "no lowering to HLO"),
        (
            lambda self, x: torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,)),
            "true_graph_0 in layers.0",
            "a graph of its own",
        ),
        (lambda self, x: x.long() + 2**40, "aten.add.Tensor in layers.0", "more than 32 bits"),
        (lambda self, x: x.long().masked_fill(x > 0, 2**31), "aten", "more than 32 bits"),
        (lambda self, x: x.long() @ x.long(), "aten.mm.default in layers.0", "a matrix product of int32"),
        (lambda self, x: x[x > 0].sum(), "aten.", "no static shape"),
        (lambda self, x: torch.fft.rfft(x).real, "aten._fft_r2c.default in layers.0", "no lowering to HLO"),
        (lambda self, x: x.repeat(100, 100).topk(300)[0], "aten.topk.default in layers.0", "k = 300; at most 256"),
        (
            lambda self, x: x.long().index_add(0, x[0].long(), x.long()),
            "aten.index_put.default in layers.0",
            "scattered sums of integers",
        ),
        (
            lambda self, x: functional.max_pool2d(x[None], 2, return_indices=True)[1],
            "aten.max_pool2d_with_indices.default in layers.0",
            "result 1 has no lowering",
        ),
    ],
)
def test_what_the_compiler_rejects_is_refused(function: Callable[..., Any], subject: str, found: str) -> None:
    """With the operator, the module it is in, the reason and what to do."""
    with pytest.raises(UnsupportedError) as caught:
        lowered(Nested(function), torch.ones(4, 4))

    (problem,) = caught.value.problems
    assert problem.subject.startswith(subject)
    assert found in problem.found
    assert problem.hint == "add --via optimum, if optimum-neuron supports the model"


def test_integer_constants_beyond_32_bits_are_refused() -> None:
    """Neuron would cut them."""
    with pytest.raises(UnsupportedError, match="table: integers from 1 to 1099511627776"):
        lowered(
            Forward(lambda self, x: x + self.table, table=torch.tensor([1, 2**40])), torch.ones(2, dtype=torch.int64)
        )


def test_dynamic_shapes_are_refused() -> None:
    """Every size must be given."""
    batch = torch.export.Dim("batch", min=2, max=9)
    program = torch.export.export(
        Forward(lambda self, x: x + 1), (torch.ones(3, 2),), dynamic_shapes={"inputs": ({0: batch},)}, strict=False
    )

    with pytest.raises(UnsupportedError, match="static sizes"):
        lower(program, name="m", kind="encoder", ranks=1, input_names=["x"], output_names=["y"], states=())


def test_buffer_that_changes_and_is_no_state_is_refused() -> None:
    """And a state that does not change."""

    def forward(self: Any, x: Tensor) -> Tensor:
        self.counter.add_(1)
        return x + self.cache

    module = Forward(forward, counter=torch.zeros(1), cache=torch.zeros(2))

    with pytest.raises(UnsupportedError) as caught:
        lowered(module, torch.ones(2), states=["cache"])

    assert [str(problem) for problem in caught.value.problems] == [
        "counter: changed by the graph; expected a key or value cache",
        "cache: not changed by the graph; expected a cache that is written",
    ]


def test_products_of_narrow_types_accumulate_in_float32() -> None:
    """A sum of 4096 ones in bfloat16, which by itself stops at 256."""
    made = lowered(Forward(lambda self, x: x @ x.T), torch.ones(1, 4096, dtype=torch.bfloat16))

    assert run(made, torch.ones(1, 4096, dtype=torch.bfloat16))[0].astype(np.float32).item() == 4096
    assert [value.dtype for value in made.signature.outputs] == ["bf16"]
