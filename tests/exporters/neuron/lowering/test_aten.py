"""Every operator of the table computes what torch computes, in torch's element type."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from llmcompile.exporters.neuron.lowering.aten import FACTORIES, TABLE, THEMES
from llmcompile.exporters.neuron.lowering.elements import to_numpy
from llmcompile.hlo.fields import InstructionField
from overloads import NARROWER, Array, Call, Computed, in_jax, in_torch

RELATIVE = {torch.float32: 2e-6, torch.bfloat16: 2**-7, torch.float16: 2**-9}
"""Of a result: some rounding steps of float32, and one of the narrow types, which round once."""


@dataclass(frozen=True)
class Case:
    """Arguments of an overload; tensors of floats are also tried in bfloat16 if `narrow`."""

    name: str
    arguments: tuple[Any, ...]
    named: dict[str, Any] = field(default_factory=dict)
    narrow: bool = True


def floats(*shape: int, low: float = -3.0, high: float = 3.0) -> Tensor:
    """Distinct numbers from `low` to `high` in no order, exact in bfloat16."""
    count = int(np.prod(shape))
    values = torch.linspace(low, high, count)[torch.randperm(count, generator=torch.Generator().manual_seed(count))]
    return values.reshape(shape).to(torch.bfloat16).float()


def integers(*shape: int, low: int = -5, high: int = 6, dtype: torch.dtype = torch.int32) -> Tensor:
    """Numbers from `low` to `high`, exclusive."""
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(low + high), dtype=dtype)


def flags(*shape: int) -> Tensor:
    """Some true, some false."""
    return integers(*shape, low=0, high=2).bool()


X, Y = floats(3, 5), floats(3, 5, low=0.5, high=2.0)
N, M = integers(3, 5), integers(3, 5, low=1, high=4)
P, Q = flags(3, 5), flags(5)
POSITIVE = floats(4, 6, low=0.1, high=4.0)
UNIT = floats(4, 6, low=-0.9, high=0.9)
SPECIAL = torch.tensor([0.0, -1.5, float("inf"), -float("inf"), float("nan")])
CUBE = floats(2, 3, 4)
IMAGE = floats(2, 4, 7, 6)


def unary(name: str, x: Tensor = X) -> Case:
    """A case of one tensor."""
    return Case(f"aten.{name}.default", (x,))


def both(name: str, other: Any, *tensors: Tensor) -> list[Case]:
    """Tensor with tensor of floats, of integers and of both, and with a number."""
    return [
        Case(f"aten.{name}.Tensor", (X, Y)),
        Case(f"aten.{name}.Tensor", (N, M)),
        Case(f"aten.{name}.Tensor", (N, Y[0])),
        Case(f"aten.{name}.Scalar", (X, other)),
        Case(f"aten.{name}.Scalar", (M, 2)),
    ]


ELEMENTWISE = [
    *(unary(name) for name in ("abs", "ceil", "cos", "cosh", "erf", "erfc", "exp", "exp2", "expm1", "floor", "gelu")),
    *(unary(name) for name in ("elu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "mish", "neg", "relu")),
    *(unary(name) for name in ("round", "sigmoid", "sign", "silu", "sin", "sinh", "softplus", "square", "tan", "tanh")),
    *(unary(name) for name in ("trunc", "atan", "alias", "clone", "detach", "lift_fresh_copy", "contiguous")),
    *(unary(name, UNIT) for name in ("acos", "asin")),
    *(unary(name, POSITIVE) for name in ("log", "log10", "log1p", "log2", "reciprocal", "rsqrt", "sqrt")),
    *(unary(name, N) for name in ("abs", "neg", "relu", "sign", "exp", "bitwise_not", "logical_not")),
    *(unary(name, P) for name in ("bitwise_not", "logical_not")),
    *(unary(name, SPECIAL) for name in ("isfinite", "isinf", "isnan")),
    *both("add", 0.3),
    *both("sub", 0.3),
    *both("mul", 0.3),
    *both("div", 0.3),
    *(case for name in ("eq", "ge", "gt", "le", "lt", "ne") for case in both(name, 0.5)),
    *both("remainder", 0.75),
    *both("fmod", 0.75),
    Case("aten.add.Tensor", (X, Y), {"alpha": 2}),
    Case("aten.add.Tensor", (P, flags(3, 5).roll(1))),
    Case("aten.mul.Tensor", (P, flags(3, 5).roll(1))),
    Case("aten.mul.Tensor", (X.half(), torch.tensor(0.3)), narrow=False),
    Case("aten.sub.Tensor", (N, M), {"alpha": 3}),
    Case("aten.rsub.Scalar", (X, 1)),
    Case("aten.rsub.Tensor", (X, Y), {"alpha": 2}),
    Case("aten.addcdiv.default", (X, X.roll(1), Y), {"value": 0.5}),
    Case("aten.addcmul.default", (X, X.roll(1), Y), {"value": 0.5}),
    Case("aten.atan2.default", (X, Y)),
    *(Case(f"aten.bitwise_{name}.Tensor", (N, M)) for name in ("and", "or", "xor")),
    *(Case(f"aten.bitwise_{name}.Tensor", (P, Q)) for name in ("and", "or", "xor")),
    *(Case(f"aten.bitwise_{name}.Scalar", (N, 3)) for name in ("and", "or", "xor")),
    Case("aten.bitwise_left_shift.Tensor_Scalar", (N, 2)),
    Case("aten.bitwise_right_shift.Tensor_Scalar", (N, 1)),
    *(Case(f"aten.logical_{name}.default", (N, P)) for name in ("and", "or", "xor")),
    Case("aten.clamp.default", (X, -1.0, 1.5)),
    Case("aten.clamp.default", (X, None, 1.5)),
    Case("aten.clamp.default", (N, -1, 0.5)),
    Case("aten.clamp.Tensor", (X, Y - 1.5, Y)),
    Case("aten.clamp_min.default", (X, 0.5)),
    Case("aten.clamp_max.default", (X, 0.5)),
    Case("aten.div.Tensor_mode", (X, Y), {"rounding_mode": "floor"}),
    Case("aten.div.Tensor_mode", (N, M), {"rounding_mode": "trunc"}),
    Case("aten.div.Tensor_mode", (X, Y), {"rounding_mode": None}),
    Case("aten.div.Scalar_mode", (N, 2), {"rounding_mode": "floor"}),
    Case("aten.div.Scalar_mode", (X, 0.75), {"rounding_mode": "trunc"}),
    Case("aten.floor_divide.default", (N, M)),
    Case("aten.elu.default", (X, 0.5, 1.5, 2.0)),
    Case("aten.gelu.default", (X,), {"approximate": "tanh"}),
    Case("aten.hardtanh.default", (X, 0.0, 2.0)),
    Case("aten.leaky_relu.default", (X, 0.2)),
    Case("aten.softplus.default", (X * 20, 2, 10)),
    Case("aten.log_sigmoid_forward.default", (X,)),
    Case("aten.masked_fill.Scalar", (X, P, -7.0)),
    Case("aten.masked_fill.Scalar", (N, P, 3)),
    Case("aten.masked_fill.Tensor", (X, Q, torch.tensor(0.3))),
    Case("aten.maximum.default", (X, Y)),
    Case("aten.minimum.default", (N, M)),
    *(Case("aten.pow.Tensor_Scalar", (POSITIVE, power)) for power in (0, 1, 2, 3, 0.5, -0.5, -1, 1.5, 2.0)),
    Case("aten.pow.Tensor_Scalar", (N, 2)),
    Case("aten.pow.Tensor_Scalar", (N, 5)),
    Case("aten.pow.Tensor_Scalar", (M, 0.5)),
    Case("aten.pow.Tensor_Tensor", (POSITIVE, UNIT)),
    Case("aten.pow.Scalar", (10000.0, UNIT)),
    Case("aten.pow.Scalar", (2, M)),
    Case("aten.prelu.default", (floats(2, 4, 3), floats(4, low=0.1, high=0.4))),
    Case("aten.prelu.default", (X, torch.tensor([0.25]))),
    Case("aten.where.self", (P, X, Y)),
    Case("aten.where.self", (P, N, Y)),
    Case("aten.where.self", (Q, X, torch.tensor(0.3))),
    Case("aten.where.ScalarOther", (P, X, 0.3)),
    Case("aten.where.ScalarSelf", (P, 0.3, X)),
    Case("aten.dropout.default", (X, 0.5, False)),
    Case("aten._to_copy.default", (X,), {"dtype": torch.int64}),
    Case("aten._to_copy.default", (X,), {"dtype": torch.float16}),
    Case("aten._to_copy.default", (N,), {"dtype": torch.bool}),
    Case("aten.to.dtype", (P, torch.float32)),
]
SHAPES = [
    Case("aten._reshape_alias.default", (CUBE, [4, 6], [6, 1])),
    Case("aten._unsafe_view.default", (CUBE, [6, -1])),
    Case("aten.reshape.default", (CUBE, [-1])),
    Case("aten.view.default", (CUBE, [4, -1, 2])),
    Case("aten.view_copy.default", (CUBE, [24])),
    Case("aten.cat.default", ([X, Y, X], 1)),
    Case("aten.cat.default", ([torch.zeros(0), X, Y], -2)),
    Case("aten.cat.default", ([N, X],), narrow=False),
    Case("aten.stack.default", ([X, Y], -1)),
    Case("aten.stack.default", ([X, Y],)),
    Case("aten.constant_pad_nd.default", (CUBE, [1, 2, -1, 0], 0.5)),
    Case("aten.copy.default", (X, Y[0])),
    Case("aten.copy.default", (N, Y)),
    Case("aten.diagonal.default", (CUBE, 1, 1, 2)),
    Case("aten.diagonal_copy.default", (CUBE, -1, 0, 2)),
    Case("aten.expand.default", (floats(3, 1), [2, -1, 4])),
    Case("aten.expand_copy.default", (floats(1), [2, 3])),
    Case("aten.flip.default", (CUBE, [0, -1])),
    Case("aten.flip.default", (CUBE, [])),
    Case("aten.permute.default", (CUBE, [2, 0, -2])),
    Case("aten.permute_copy.default", (CUBE, [1, 0, 2])),
    Case("aten.repeat.default", (X, [2, 1, 3])),
    Case("aten.roll.default", (CUBE, [1, -2], [0, 2])),
    Case("aten.roll.default", (CUBE, [5])),
    Case("aten.select.int", (CUBE, 1, -1)),
    Case("aten.select_copy.int", (CUBE, -1, 2)),
    Case("aten.slice.Tensor", (CUBE, 2, 1, 9223372036854775807, 2)),
    Case("aten.slice_copy.Tensor", (CUBE, 1, -2)),
    Case("aten.split.Tensor", (X, 2, 1)),
    Case("aten.split_with_sizes.default", (X, [1, 4], -1)),
    Case("aten.split_with_sizes_copy.default", (X, [2, 1])),
    Case("aten.squeeze.default", (floats(1, 3, 1),)),
    Case("aten.squeeze.dim", (floats(1, 3, 1), 1)),
    Case("aten.squeeze.dim", (floats(1, 3, 1), -1)),
    Case("aten.squeeze.dims", (floats(1, 3, 1), [0, 1])),
    Case("aten.squeeze_copy.dims", (floats(1, 3, 1), [0, 2])),
    Case("aten.t.default", (X,)),
    Case("aten.transpose.int", (CUBE, 0, -1)),
    Case("aten.tril.default", (CUBE, -1)),
    Case("aten.triu.default", (X, 1)),
    Case("aten.unbind.int", (CUBE, -1)),
    Case("aten.unfold.default", (CUBE, 2, 3, 1)),
    Case("aten.unsqueeze.default", (X, -2)),
    Case("aten.unsqueeze_copy.default", (X, 2)),
]
MADE = [
    Case("aten.arange.default", (5,)),
    Case("aten.arange.default", (5,), {"dtype": torch.float32}),
    Case("aten.arange.default", (20000,), {"dtype": torch.float32}),
    Case("aten.arange.start", (2, 7), {"dtype": torch.int32}),
    Case("aten.arange.start", (0.5, 3)),
    Case("aten.arange.start_step", (9, 0, -2)),
    Case("aten.arange.start_step", (0, 1, 0.1)),
    Case("aten.empty.memory_format", ([0, 3],)),
    Case("aten.empty_strided.default", ([3, 0], [1, 1])),
    Case("aten.empty_like.default", (torch.zeros(0, 2),)),
    Case("aten.new_empty.default", (X, [0])),
    Case("aten.eye.default", (3,)),
    Case("aten.eye.m", (2, 4), {"dtype": torch.int64}),
    Case("aten.fill.Scalar", (X, 2.5)),
    Case("aten.full.default", ([2, 3], True)),
    Case("aten.full.default", ([2, 3], 7)),
    Case("aten.full.default", ([], -0.3), {"dtype": torch.bfloat16}),
    Case("aten.full_like.default", (N, 3)),
    Case("aten.full_like.default", (X, 0.3), {"dtype": torch.float16}),
    Case("aten.linspace.default", (-1, 1, 7)),
    Case("aten.new_full.default", (X, [2], 0.3)),
    Case("aten.new_ones.default", (X, [2]), {"dtype": torch.int64}),
    Case("aten.new_zeros.default", (X, [2, 2])),
    Case("aten.ones.default", ([2, 2],)),
    Case("aten.ones_like.default", (P,)),
    Case("aten.scalar_tensor.default", (0.3,)),
    Case("aten.scalar_tensor.default", (3,), {"dtype": torch.int64}),
    Case("aten.tril_indices.default", (3, 4)),
    Case("aten.view.dtype", (X, torch.int32), narrow=False),
    Case("aten.zeros.default", ([2, 2],), {"dtype": torch.bool}),
    Case("aten.zeros_like.default", (X,)),
]
REDUCTIONS = [
    *(Case(f"aten.{name}.default", (X,)) for name in ("sum", "mean", "max", "min", "prod", "amax", "amin")),
    *(Case(f"aten.{name}.default", (N,)) for name in ("sum", "max", "min", "amax", "argmax", "argmin")),
    *(Case(f"aten.{name}.default", (P,)) for name in ("any", "all", "sum")),
    *(Case(f"aten.{name}.dim", (P, 1, True)) for name in ("any", "all")),
    *(Case(f"aten.{name}.dims", (flags(2, 3, 4), [0, 2])) for name in ("any", "all")),
    *(Case(f"aten.{name}.default", (CUBE, -1, True)) for name in ("argmax", "argmin")),
    *(Case(f"aten.{name}.default", (CUBE, 1)) for name in ("argmax", "argmin")),
    *(Case(f"aten.{name}.dim", (CUBE, 1)) for name in ("max", "min")),
    *(Case(f"aten.{name}.dim", (N, 0, True)) for name in ("max", "min")),
    *(Case(f"aten.{name}.default", (CUBE, [0, -1], True)) for name in ("amax", "amin")),
    Case("aten.sum.dim_IntList", (CUBE, [1], True)),
    Case("aten.sum.dim_IntList", (X, [0]), {"dtype": torch.float32}),
    Case("aten.sum.dim_IntList", (N, None)),
    Case("aten.mean.dim", (CUBE, [0, 2])),
    Case("aten.mean.dim", (CUBE, [], True)),
    Case("aten.prod.dim_int", (CUBE, 1)),
    Case("aten.var.correction", (CUBE, [1, 2]), {"correction": 0, "keepdim": True}),
    Case("aten.var.correction", (X,)),
    Case("aten.var_mean.correction", (CUBE, [-1])),
    Case("aten.cumsum.default", (N, 1)),
    Case("aten.cumsum.default", (floats(2, 9), -1)),
    Case("aten.cumprod.default", (floats(2, 5), 0)),
    Case("aten.topk.default", (floats(3, 9), 4)),
    Case("aten.topk.default", (floats(5, 3), 2, 0, False)),
    Case("aten.topk.default", (torch.tensor([-float("inf"), 1.0, -float("inf")]), 3)),
    Case("aten.topk.default", (torch.tensor([4, -(2**31), 9, 7], dtype=torch.int32), 4)),
    *(Case("aten.linalg_vector_norm.default", (CUBE, order, [-1], True)) for order in (1, 2, float("inf"))),
    Case("aten._softmax.default", (CUBE, 1, False)),
    Case("aten._log_softmax.default", (CUBE, -1, False)),
    Case("aten._safe_softmax.default", (torch.tensor([[0.0, -float("inf")], [-float("inf")] * 2]), -1)),
    Case("aten.logsumexp.default", (CUBE, [1])),
    Case("aten.logsumexp.default", (CUBE, [0, 2], True)),
    Case("aten.layer_norm.default", (CUBE, [4], floats(4), floats(4), 1e-5)),
    Case("aten.layer_norm.default", (CUBE, [3, 4])),
    Case("aten.native_layer_norm.default", (CUBE, [4], floats(4), None, 1e-5), narrow=False),
    Case("aten.rms_norm.default", (CUBE, [4], floats(4), 1e-6)),
    Case("aten.rms_norm.default", (CUBE, [4]), narrow=False),
    Case("aten._fused_rms_norm.default", (CUBE, [4], floats(4), 1e-6), narrow=False),
    Case("aten.native_group_norm.default", (IMAGE, floats(4), floats(4), 2, 4, 42, 2, 1e-5), narrow=False),
    Case(
        "aten._native_batch_norm_legit_no_training.default",
        (IMAGE, floats(4), floats(4), floats(4), floats(4, low=0.5, high=2), 0.1, 1e-5),
    ),
]
IDS = torch.tensor([[3, 0, 2], [1, 1, 3]])
INDEXING = [
    Case("aten.embedding.default", (floats(4, 5), IDS)),
    Case("aten.embedding.default", (floats(4, 5), IDS.int(), 1)),
    Case("aten.gather.default", (floats(5, 4), 1, IDS)),
    Case("aten.gather.default", (floats(4, 3, 2), 0, IDS[:, :, None])),
    Case("aten.index.Tensor", (floats(4, 5), [IDS])),
    Case("aten.index.Tensor", (floats(4, 5), [torch.tensor([-1, 0]), torch.tensor([2, -5])])),
    Case("aten.index.Tensor", (floats(4, 5, 6), [None, torch.tensor([[1], [4]]), torch.tensor([0, 5, 3])])),
    Case("aten.index.Tensor", (floats(4, 5, 6), [torch.tensor([1, 2]), None, torch.tensor([0, 5])])),
    Case("aten.index_select.default", (floats(4, 5), 1, torch.tensor([4, 0, 4]))),
    Case("aten.index_add.default", (floats(4, 5), 0, torch.tensor([2, 2]), floats(2, 5)), {"alpha": 2}),
    Case("aten.index_copy.default", (floats(2, 4, 3), 1, torch.tensor([2]), floats(2, 1, 3))),
    Case("aten.index_copy.default", (floats(2, 4, 3), 1, torch.tensor([3, 0]), floats(2, 2, 3))),
    Case("aten.index_put.default", (floats(4, 5), [torch.tensor([0, 3]), torch.tensor([-1, 2])], floats(2))),
    Case("aten.index_put.default", (floats(2, 3, 4, 5), [torch.arange(2), None, IDS[:, 0]], floats(2, 3, 5))),
    Case("aten.index_put.default", (floats(4, 5), [torch.tensor([1, 1])], floats(2, 5), True)),
    Case("aten.index_put.default", (X, [P], torch.tensor(7.0))),
    Case("aten.index_put.default", (X, [flags(3)], torch.tensor([7.0]), True)),
    Case("aten.scatter.src", (floats(4, 5), 1, IDS, floats(2, 4))),
    Case("aten.scatter.src", (floats(2, 3, 5, 4), 2, torch.full((2, 3, 1, 4), 3), floats(2, 3, 1, 4))),
    Case("aten.scatter.value", (floats(4, 5), 0, IDS, 0.5)),
    Case("aten.scatter_add.default", (floats(4, 5), 1, IDS, floats(2, 3))),
    Case("aten.scatter_reduce.two", (floats(4, 5), 1, IDS, floats(2, 3), "sum")),
    Case("aten.select_scatter.default", (CUBE, floats(2, 4), 1, -1)),
    Case("aten.slice_scatter.default", (CUBE, floats(2, 2, 4), 1, 1, 9223372036854775807)),
    Case("aten.slice_scatter.default", (CUBE, floats(2, 3, 2), -1, 0, 4, 2)),
    Case("aten.slice_scatter.default", (CUBE, floats(2, 0, 4), 1, 3)),
]
HEADS, KEYS = floats(2, 4, 3, 8), floats(2, 2, 5, 8)
MASK = torch.tensor([[True, True, False, True, False], [True] * 5, [False] * 5])
LINEAR = [
    Case("aten.mm.default", (X, floats(5, 4))),
    Case("aten.mv.default", (X, floats(5))),
    Case("aten.dot.default", (floats(5), floats(5))),
    Case("aten.bmm.default", (CUBE, floats(2, 4, 5))),
    Case("aten.matmul.default", (floats(4), floats(2, 4, 5))),
    Case("aten.matmul.default", (floats(3, 1, 2, 4), floats(2, 4, 5))),
    Case("aten.matmul.default", (CUBE, floats(4))),
    Case("aten.linear.default", (CUBE, floats(5, 4), floats(5))),
    Case("aten.linear.default", (floats(4), floats(5, 4))),
    Case("aten.addmm.default", (floats(4), X, floats(5, 4))),
    Case("aten.addmm.default", (floats(3, 4), X, floats(5, 4)), {"beta": 0.5, "alpha": 2}),
    Case("aten.baddbmm.default", (floats(2, 3, 5), CUBE, floats(2, 4, 5)), {"beta": 0, "alpha": 0.5}),
    Case("aten.scaled_dot_product_attention.default", (HEADS, HEADS, HEADS, None, 0.0, True)),
    Case("aten.scaled_dot_product_attention.default", (HEADS, floats(2, 4, 5, 8), floats(2, 4, 5, 6), MASK)),
    Case(
        "aten.scaled_dot_product_attention.default",
        (HEADS, KEYS, KEYS.flip(0), torch.where(MASK, 0.0, -1e4)),
        {"scale": 0.7, "enable_gqa": True},
    ),
    Case("aten.scaled_dot_product_attention.default", (HEADS[0], HEADS[0], HEADS[1])),
]
WINDOWS = [
    Case("aten.convolution.default", (floats(2, 4, 9), floats(6, 2, 3), floats(6), [2], [1], [2], False, [0], 2)),
    Case("aten.convolution.default", (IMAGE, floats(3, 4, 3, 2), None, [2, 1], [1], [1], False, [0], 1)),
    Case("aten.convolution.default", (IMAGE, floats(4, 3, 3, 2), floats(6), [2, 1], [1, 0], [1, 2], True, [1, 0], 2)),
    Case(
        "aten.convolution.default", (floats(1, 2, 3, 4, 4), floats(2, 2, 2, 2, 2), None, [1], [0], [1], False, [0], 1)
    ),
    Case("aten.avg_pool1d.default", (floats(2, 3, 9), [3], [2], [1])),
    Case("aten.avg_pool2d.default", (IMAGE, [3, 2], [2, 2], [1, 1], True, False)),
    Case("aten.avg_pool2d.default", (IMAGE, [3, 2], [2, 2], [1, 1], True, True)),
    Case("aten.avg_pool2d.default", (IMAGE, [2, 2], [], [0, 0], False, True, 3)),
    Case("aten.adaptive_avg_pool1d.default", (floats(2, 3, 9), [4])),
    Case("aten._adaptive_avg_pool2d.default", (IMAGE, [1, 3])),
    Case("aten._adaptive_avg_pool2d.default", (IMAGE, [5, 6])),
    Case("aten.im2col.default", (IMAGE, [3, 2], [2, 1], [1, 0], [2, 1])),
    *(
        Case(f"aten.upsample_{kind}2d.vec", (IMAGE, [5, 9], aligned, None))
        for kind in ("bilinear", "bicubic")
        for aligned in (True, False)
    ),
    *(Case(f"aten.upsample_{kind}2d.vec", (IMAGE, None, False, [2.0, 1.5])) for kind in ("bilinear", "bicubic")),
    *(Case(f"aten.upsample_{kind}2d.default", (IMAGE, [5, 9], False, 0.75, 1.6)) for kind in ("bilinear", "bicubic")),
    Case("aten.upsample_linear1d.vec", (floats(2, 3, 5), [8], False, None)),
    Case("aten.upsample_nearest1d.vec", (floats(2, 3, 5), None, [2.0])),
    Case("aten.upsample_nearest2d.vec", (IMAGE, [5, 13], None)),
]
UNUSED = [
    Case("aten.max_pool2d_with_indices.default", (IMAGE, [3, 2], [2, 2], [1, 1], [1, 2], True)),
    Case("aten._weight_norm_interface.default", (floats(3, 4), floats(1, 4), 1)),
    Case("aten._weight_norm_interface.default", (floats(3, 4), floats(3, 1)), narrow=False),
]
"""Torch also returns what only training needs, or what only another device does."""
WITHOUT_ALL_RESULTS = {
    "aten.log_sigmoid_forward.default",
    "aten._native_batch_norm_legit_no_training.default",
    *(case.name for case in UNUSED),
}
GROUPS = (ELEMENTWISE, SHAPES, MADE, REDUCTIONS, INDEXING, LINEAR, WINDOWS, UNUSED)
CASES = [(group, place) for group, cases in enumerate(GROUPS) for place in range(len(cases))]


def calls(case: Case) -> list[Call]:
    """The case as it stands and, if it has floats and torch has that on CPU, in bfloat16."""
    given = Call(case.name, case.arguments, case.named)
    if not case.narrow or not any(isinstance(x, Tensor) and x.dtype == torch.float32 for x in case.arguments):
        return [given]
    cast = [x.bfloat16() if isinstance(x, Tensor) and x.dtype == torch.float32 else x for x in case.arguments]
    return [given, Call(case.name, tuple(cast), case.named)]


@cache
def computed(group: int) -> Computed:
    """What the lowering makes of all calls of a group's cases, compiled together."""
    return in_jax([call for case in GROUPS[group] for call in calls(case)])


def results_of(group: int, place: int) -> tuple[tuple[Array | None, ...], ...]:
    """Of each call of one case."""
    first = sum(len(calls(case)) for case in GROUPS[group][:place])
    return computed(group).results[first : first + len(calls(GROUPS[group][place]))]


def check(expected: Tensor, got: Array) -> None:
    """Compare values, shape and element type."""
    assert got.dtype == to_numpy(expected, "x").dtype
    assert got.shape == tuple(expected.shape)
    limit = RELATIVE.get(NARROWER.get(expected.dtype, expected.dtype), 0.0)
    largest = float(expected.double().abs().nan_to_num(0, 0, 0).max()) if expected.numel() > 0 else 0.0
    np.testing.assert_allclose(
        got.astype(np.float64), expected.double().numpy(), rtol=limit, atol=limit * min(1.0, largest)
    )


@pytest.mark.parametrize(
    ("group", "place"), CASES, ids=[f"{GROUPS[group][place].name}-{place}" for group, place in CASES]
)
def test_operator_computes_what_torch_computes(group: int, place: int) -> None:
    """In float32 or integers, and in bfloat16 where it has floats."""
    case = GROUPS[group][place]
    for call, results in zip(calls(case), results_of(group, place), strict=True):
        for expected, got in zip(in_torch(call), results, strict=True):
            if got is None:
                assert case.name in WITHOUT_ALL_RESULTS
            else:
                assert expected is not None
                check(expected, got)


def test_every_operator_has_a_case() -> None:
    """No entry of the table is untested."""
    assert {case.name for cases in GROUPS for case in cases} == TABLE.keys() | FACTORIES.keys()


def test_no_operator_is_in_two_themes() -> None:
    """So that no rule hides another."""
    assert len(TABLE) == sum(len(theme) for theme in THEMES)
    assert TABLE.keys().isdisjoint(FACTORIES)


@pytest.mark.parametrize("group", range(len(GROUPS)))
def test_operators_become_what_the_compiler_takes(group: int) -> None:
    """No sort, custom call, random number or loop, no type of 64 bits, one tensor to a reduction."""
    module = computed(group).module

    refused = {"sort", "topk", "custom-call", "rng", "rng-bit-generator", "fft", "while", "conditional"}
    assert module.opcodes.keys().isdisjoint(refused)
    dtypes = {instruction.shape.dtype for instruction in module.instructions}
    assert dtypes <= {"pred", "s8", "s16", "s32", "u8", "u32", "f16", "bf16", "f32", "tuple"}
    for instruction in module.instructions:
        assert instruction.opcode not in ("reduce", "reduce-window") or len(instruction.operand_ids) == 2


@pytest.mark.parametrize(
    "field", [InstructionField.GATHER_DIMENSION_NUMBERS, InstructionField.SCATTER_DIMENSION_NUMBERS]
)
def test_gathers_and_scatters_have_no_batching_dimensions(field: InstructionField) -> None:
    """Readers of 2024 and before would skip those fields, 5 and 6 of both messages, and compute something else."""
    numbers = [
        instruction.message.message(field)
        for group in range(len(GROUPS))
        for instruction in computed(group).module.instructions
        if instruction.message.has(field)
    ]

    assert len(numbers) > 0
    assert not any(message.has(5) or message.has(6) for message in numbers)
