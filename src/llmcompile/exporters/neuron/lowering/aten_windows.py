"""ATen operators on windows of images and signals: convolutions, pooling and resizing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import NDArray

from llmcompile.exporters.neuron.lowering.aten_elementwise import Rule
from llmcompile.exporters.neuron.lowering.elements import lowest, wide


def _each(values: int | Sequence[int], axes: int) -> list[int]:
    """One value for each spatial axis."""
    given = [values] if isinstance(values, int) else list(values)
    return given * axes if len(given) == 1 else given


def _convolution(
    x: jax.Array,
    weight: jax.Array,
    bias: jax.Array | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> jax.Array:
    axes = weight.ndim - 2
    steps, sides, holes = _each(stride, axes), _each(padding, axes), _each(dilation, axes)
    letters = "DHW"[3 - axes :]
    if transposed:
        more = _each(output_padding, axes)
        reach = [hole * (size - 1) for hole, size in zip(holes, weight.shape[2:], strict=True)]
        window = [(far - side, far - side + extra) for far, side, extra in zip(reach, sides, more, strict=True)]
        flipped = lax.rev(weight, tuple(range(2, weight.ndim)))
        inputs, outputs = weight.shape[0] // groups, weight.shape[1]
        split = flipped.reshape(groups, inputs, outputs, *weight.shape[2:])
        kernel = jnp.swapaxes(split, 1, 2).reshape(groups * outputs, inputs, *weight.shape[2:])
        strides, dilated = [1] * axes, steps
    else:
        window, kernel, strides, dilated = [(side, side) for side in sides], weight, steps, [1] * axes
    y = lax.conv_general_dilated(
        x if x.ndim == weight.ndim else x[None],
        kernel,
        strides,
        window,
        lhs_dilation=dilated,
        rhs_dilation=holes,
        dimension_numbers=("NC" + letters, "OI" + letters, "NC" + letters),
        feature_group_count=groups,
        preferred_element_type=jnp.float32,
    )
    y = y if x.ndim == weight.ndim else y[0]
    return y if bias is None else y + wide(bias).reshape((-1,) + (1,) * axes)


def _window(
    x: jax.Array,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> tuple[tuple[int, ...], tuple[int, ...], list[tuple[int, int]], tuple[int, ...]]:
    """Window sizes, strides, padding and dilation over all axes of `x`; padding grows at the end for `ceil_mode`."""
    front = x.ndim - len(kernel)
    sides = [(0, 0)] * front
    for axis, (size, step, side, hole) in enumerate(zip(kernel, stride, padding, dilation, strict=True)):
        length, reach = x.shape[front + axis], hole * (size - 1) + 1
        count = (length + 2 * side - reach) // step + 1
        if ceil_mode and (length + 2 * side - reach) % step > 0 and count * step < length + side:
            count += 1
        sides.append((side, max(side, (count - 1) * step + reach - length - side)))
    ones = (1,) * front
    return ones + tuple(kernel), ones + tuple(stride), sides, ones + tuple(dilation)


def _max_pool(
    x: jax.Array,
    kernel: int | Sequence[int],
    stride: int | Sequence[int] = (),
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,
) -> tuple[jax.Array, None]:
    axes = 2
    sizes = _each(kernel, axes)
    steps = sizes if not isinstance(stride, int) and len(stride) == 0 else _each(stride, axes)
    window, strides, sides, holes = _window(x, sizes, steps, _each(padding, axes), _each(dilation, axes), ceil_mode)
    start = jnp.asarray(lowest(x.dtype), x.dtype)
    return lax.reduce_window(x, start, lax.max, window, strides, sides, window_dilation=holes), None


def _avg_pool(axes: int) -> Rule:
    def rule(
        x: jax.Array,
        kernel: int | Sequence[int],
        stride: int | Sequence[int] = (),
        padding: int | Sequence[int] = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> jax.Array:
        sizes, around = _each(kernel, axes), _each(padding, axes)
        steps = sizes if not isinstance(stride, int) and len(stride) == 0 else _each(stride, axes)
        window, strides, sides, _ = _window(x, sizes, steps, around, [1] * axes, ceil_mode)
        total: jax.Array = lax.reduce_window(wide(x), jnp.float32(0), lax.add, window, strides, sides)
        if divisor_override is not None:
            return total / divisor_override
        counts = [
            _window_counts(
                x.shape[x.ndim - axes + axis], sizes[axis], steps[axis], around[axis], length, count_include_pad
            )
            for axis, length in enumerate(total.shape[x.ndim - axes :])
        ]
        # The product of counts along each axis, of the shape of one pooled image.
        grid: NDArray[np.float32] = reduce(np.multiply, np.ix_(*counts))
        return total / jnp.asarray(grid)

    return rule


def _window_counts(length: int, size: int, step: int, side: int, windows: int, padded: bool) -> NDArray[np.float32]:
    """Elements that each window's sum is divided by: those it covers, with or without the padding given."""
    start = np.arange(windows) * step - side
    end = np.minimum(start + size, length + side)
    if not padded:
        start, end = np.maximum(start, 0), np.minimum(end, length)
    return (end - start).astype(np.float32)


def _mean_matrix(inputs: int, outputs: int) -> NDArray[np.float32]:
    """Weights (outputs, inputs) of an adaptive average pooling along one axis."""
    weights = np.zeros((outputs, inputs), np.float32)
    for row in range(outputs):
        first, last = row * inputs // outputs, -((row + 1) * inputs // -outputs)
        weights[row, first:last] = 1 / (last - first)
    return weights


def _along(x: jax.Array, weights: NDArray[np.float32], axis: int) -> jax.Array:
    """Replace `axis` of x by weights (outputs, inputs) times it: a small product in place of a gather."""
    product = lax.dot_general(wide(x), jnp.asarray(weights), (((axis,), (1,)), ((), ())))
    return jnp.moveaxis(product, -1, axis)


def _adaptive_avg_pool(x: jax.Array, sizes: int | Sequence[int]) -> jax.Array:
    outputs = [sizes] if isinstance(sizes, int) else list(sizes)
    y = wide(x)
    for place, size in enumerate(outputs):
        axis = x.ndim - len(outputs) + place
        if size == 1:
            y = jnp.mean(y, axis, keepdims=True)
        elif size != x.shape[axis]:
            y = _along(y, _mean_matrix(x.shape[axis], size), axis)
    return y


def _source_positions(inputs: int, outputs: int, scale: float | None, aligned: bool) -> NDArray[np.float64]:
    steps = np.arange(outputs, dtype=np.float64)
    if aligned:
        return steps * ((inputs - 1) / (outputs - 1) if outputs > 1 else 0)
    return (steps + 0.5) * (1 / scale if scale is not None else inputs / outputs) - 0.5


def _nearest(inputs: int, outputs: int, scale: float | None, aligned: bool) -> NDArray[np.float32]:
    ratio = np.float32(1 / scale if scale is not None else inputs / outputs)
    source = np.minimum(np.floor(np.arange(outputs, dtype=np.float32) * ratio).astype(int), inputs - 1)
    weights: NDArray[np.float32] = (source[:, None] == np.arange(inputs)).astype(np.float32)
    return weights


def _linear(inputs: int, outputs: int, scale: float | None, aligned: bool) -> NDArray[np.float32]:
    source = np.maximum(_source_positions(inputs, outputs, scale, aligned), 0)
    left = np.minimum(np.floor(source), inputs - 1).astype(int)
    part, rows = source - left, np.arange(outputs)
    weights = np.zeros((outputs, inputs))
    np.add.at(weights, (rows, left), 1 - part)
    np.add.at(weights, (rows, np.minimum(left + 1, inputs - 1)), part)
    return weights.astype(np.float32)


def _cubic(inputs: int, outputs: int, scale: float | None, aligned: bool) -> NDArray[np.float32]:
    source = _source_positions(inputs, outputs, scale, aligned)
    left, sharp = np.floor(source), -0.75  # torch's coefficient of cubic convolution
    part = source - left
    weights = np.zeros((outputs, inputs))
    for offset in (-1, 0, 1, 2):
        far = np.abs(part - offset)
        near = ((sharp + 2) * far - (sharp + 3)) * far * far + 1
        outer = ((sharp * far - 5 * sharp) * far + 8 * sharp) * far - 4 * sharp
        columns = np.clip(left + offset, 0, inputs - 1).astype(int)
        np.add.at(weights, (np.arange(outputs), columns), np.where(far <= 1, near, outer))
    return weights.astype(np.float32)


def _resized(
    x: jax.Array,
    sizes: Sequence[int] | None,
    scales: Sequence[float | None] | None,
    aligned: bool,
    matrix: Callable[..., Any],
) -> jax.Array:
    y, front = wide(x), 2
    for place in range(x.ndim - front):
        axis = front + place
        scale = scales[place] if scales is not None else None
        if sizes is None:
            assert scale is not None
            outputs = int(np.floor(x.shape[axis] * scale))
        else:
            outputs = sizes[place]
        weights = matrix(x.shape[axis], outputs, scale, aligned)
        if not np.array_equal(weights, np.eye(x.shape[axis])):
            y = _along(y, weights, axis)
    return y


def _resize(matrix: Callable[..., Any]) -> Rule:
    """The `.vec` overloads: sizes or scales, whichever is given."""

    def rule(
        x: jax.Array, sizes: Sequence[int] | None, aligned: bool, scales: Sequence[float] | None = None
    ) -> jax.Array:
        return _resized(x, sizes, scales if sizes is None else None, aligned, matrix)

    return rule


def _resize_nearest(x: jax.Array, sizes: Sequence[int] | None, scales: Sequence[float] | None = None) -> jax.Array:
    return _resized(x, sizes, scales if sizes is None else None, False, _nearest)


def _resize_default(matrix: Callable[..., Any]) -> Rule:
    """The `.default` overloads: sizes, and scales that replace their ratio."""

    def rule(x: jax.Array, sizes: Sequence[int], aligned: bool, *scales: float | None) -> jax.Array:
        return _resized(x, sizes, scales if len(scales) > 0 else None, aligned, matrix)

    return rule


def _patches(
    x: jax.Array, kernel: Sequence[int], dilation: Sequence[int], padding: Sequence[int], stride: Sequence[int]
) -> jax.Array:
    """im2col: (batch, channels, height, width) -> (batch, channels * kernel elements, positions)."""
    batch, channels = x.shape[:2]
    padded = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (0, 0, 0), *((side, side, 0) for side in padding)])
    reach = [hole * (size - 1) for hole, size in zip(dilation, kernel, strict=True)]
    ends = [padded.shape[2 + axis] - reach[axis] for axis in range(2)]
    parts = [
        padded[
            :,
            :,
            row * dilation[0] : row * dilation[0] + ends[0] : stride[0],
            column * dilation[1] : column * dilation[1] + ends[1] : stride[1],
        ]
        for row in range(kernel[0])
        for column in range(kernel[1])
    ]
    return jnp.stack(parts, 2).reshape(batch, channels * len(parts), -1)


def _weight_norm(v: jax.Array, g: jax.Array, dim: int = 0) -> tuple[jax.Array, None]:
    others = tuple(axis for axis in range(v.ndim) if axis != dim % v.ndim)
    direction = wide(v)
    return direction * (wide(g) * lax.rsqrt(jnp.sum(direction * direction, others, keepdims=True))), None


WINDOWS: Mapping[str, Rule] = MappingProxyType(
    {
        "aten._adaptive_avg_pool2d.default": _adaptive_avg_pool,
        "aten._weight_norm_interface.default": _weight_norm,
        "aten.adaptive_avg_pool1d.default": _adaptive_avg_pool,
        "aten.avg_pool1d.default": _avg_pool(1),
        "aten.avg_pool2d.default": _avg_pool(2),
        "aten.convolution.default": _convolution,
        "aten.im2col.default": _patches,
        "aten.max_pool2d_with_indices.default": _max_pool,
        "aten.upsample_bicubic2d.default": _resize_default(_cubic),
        "aten.upsample_bicubic2d.vec": _resize(_cubic),
        "aten.upsample_bilinear2d.default": _resize_default(_linear),
        "aten.upsample_bilinear2d.vec": _resize(_linear),
        "aten.upsample_linear1d.vec": _resize(_linear),
        "aten.upsample_nearest1d.vec": _resize_nearest,
        "aten.upsample_nearest2d.vec": _resize_nearest,
    }
)
"""ATen overload -> function of JAX arrays and numbers; the interpreter casts what it returns to torch's type."""
