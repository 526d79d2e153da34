"""Slices, gathers, broadcasts and views of any shape are torch's."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from overloads import Call, in_jax, in_torch

SETTINGS = settings(max_examples=8, deadline=None, derandomize=True)
SIZES = st.integers(1, 5)
SHAPES = st.lists(SIZES, min_size=1, max_size=4)


def numbered(shape: list[int]) -> Tensor:
    """Every element distinct."""
    return torch.arange(float(np.prod(shape))).reshape(shape)


def check(calls: list[Call]) -> None:
    """Compare what torch and the lowering make of some calls, compiled together."""
    for call, results in zip(calls, in_jax(calls).results, strict=True):
        for expected, got in zip(in_torch(call), results, strict=True):
            assert expected is not None
            assert got is not None
            np.testing.assert_array_equal(got, expected.numpy(), err_msg=str(call))


@st.composite
def slices(draw: st.DrawFn) -> Call:
    """Bounds inside, outside and from the end."""
    shape = draw(SHAPES)
    bound = st.one_of(st.none(), st.integers(-8, 8), st.just(2**63 - 1))
    dim = draw(st.integers(-len(shape), len(shape) - 1))
    return Call("aten.slice.Tensor", (numbered(shape), dim, draw(bound), draw(bound), draw(st.integers(1, 4))))


@st.composite
def slice_writes(draw: st.DrawFn) -> Call:
    """The same, written to."""
    found = draw(slices())
    x, bounds = found.arguments[0], found.arguments[1:]
    source = -1 - numbered(list(torch.ops.aten.slice.Tensor(x, *bounds).shape))
    return Call("aten.slice_scatter.default", (x, source, *bounds))


@st.composite
def gathers(draw: st.DrawFn) -> Call:
    """An index that is shorter than the tensor on other axes, and longer or shorter on its own."""
    shape = draw(SHAPES)
    dim = draw(st.integers(-len(shape), len(shape) - 1))
    size = [
        draw(SIZES) if axis == dim % len(shape) else draw(st.integers(1, length)) for axis, length in enumerate(shape)
    ]
    index = draw(st.lists(st.integers(0, shape[dim] - 1), min_size=int(np.prod(size)), max_size=int(np.prod(size))))
    return Call("aten.gather.default", (numbered(shape), dim, torch.tensor(index).reshape(size)))


@st.composite
def scatters(draw: st.DrawFn) -> Call:
    """Each element to a place of its own, since torch leaves open which of two is kept."""
    shape = draw(SHAPES)
    axis = draw(st.integers(0, len(shape) - 1))
    size = [draw(st.integers(1, length)) for length in shape]
    order = torch.tensor(draw(st.permutations(range(shape[axis])))[: size[axis]])
    index = order.reshape([-1 if place == axis else 1 for place in range(len(shape))]).expand(size).contiguous()
    return Call("aten.scatter.src", (numbered(shape), axis, index, -1 - numbered(size)))


@st.composite
def indexes(draw: st.DrawFn) -> Call:
    """Indices on some axes, of shapes that broadcast, counted from either end."""
    shape = draw(SHAPES)
    used = draw(st.lists(st.booleans(), min_size=len(shape), max_size=len(shape)).filter(any))
    common = draw(st.lists(SIZES, min_size=1, max_size=2))
    indices: list[Any] = []
    for length, wanted in zip(shape, used, strict=True):
        size = [draw(st.sampled_from([1, side])) for side in common]
        count = int(np.prod(size))
        values = draw(st.lists(st.integers(-length, length - 1), min_size=count, max_size=count))
        indices.append(torch.tensor(values).reshape(size) if wanted else None)
    return Call("aten.index.Tensor", (numbered(shape), indices))


@st.composite
def broadcasts(draw: st.DrawFn) -> Call:
    """Two shapes whose axes are equal, 1 or absent."""
    shape = draw(SHAPES)
    sides = []
    for _ in range(2):
        first = draw(st.integers(0, len(shape)))
        sides.append(numbered([draw(st.sampled_from([1, size])) for size in shape[first:]]) + 1)
    name = draw(st.sampled_from(["aten.add.Tensor", "aten.mul.Tensor", "aten.maximum.default", "aten.lt.Tensor"]))
    return Call(name, tuple(sides))


@st.composite
def views(draw: st.DrawFn) -> Call:
    """The same elements in another shape, one size of which may be left to torch."""
    shape = draw(SHAPES)
    target = draw(st.permutations(shape)) if draw(st.booleans()) else [int(np.prod(shape))]
    free = draw(st.integers(-1, len(target) - 1))
    return Call("aten.view.default", (numbered(shape), [-1 if place == free else n for place, n in enumerate(target)]))


@st.composite
def permutations(draw: st.DrawFn) -> Call:
    """Axes in any order, counted from either end."""
    shape = draw(SHAPES)
    order = draw(st.permutations(range(len(shape))))
    dims = [axis - len(shape) if draw(st.booleans()) else axis for axis in order]
    return Call("aten.permute.default", (numbered(shape), dims))


@st.composite
def expansions(draw: st.DrawFn) -> Call:
    """Axes of 1 widened, new ones in front."""
    shape = [draw(st.sampled_from([1, 3])) for _ in range(draw(st.integers(1, 3)))]
    kept = [draw(SIZES) if size == 1 else draw(st.sampled_from([-1, size])) for size in shape]
    new = draw(st.lists(SIZES, max_size=2))
    return Call("aten.expand.default", (numbered(shape), [*new, *kept]))


def several(call: st.SearchStrategy[Call]) -> st.SearchStrategy[list[Call]]:
    """Calls to compile together."""
    return st.lists(call, min_size=6, max_size=12)


@SETTINGS
@given(several(slices()))
def test_slices(calls: list[Call]) -> None:
    """Ends beyond the tensor are cut, and an empty slice is empty."""
    check(calls)


@SETTINGS
@given(several(slice_writes()))
def test_writes_to_slices(calls: list[Call]) -> None:
    """Of any step, none for an empty slice."""
    check(calls)


@SETTINGS
@given(several(st.one_of(gathers(), indexes())))
def test_gathers(calls: list[Call]) -> None:
    """By one index along an axis, and by indices of several axes."""
    check(calls)


@SETTINGS
@given(several(scatters()))
def test_scatters(calls: list[Call]) -> None:
    """Along any axis, of a part of the tensor."""
    check(calls)


@SETTINGS
@given(several(broadcasts()))
def test_broadcasts(calls: list[Call]) -> None:
    """Of two tensors."""
    check(calls)


@SETTINGS
@given(several(st.one_of(views(), permutations(), expansions())))
def test_views(calls: list[Call]) -> None:
    """Reshaped, permuted and expanded."""
    check(calls)
