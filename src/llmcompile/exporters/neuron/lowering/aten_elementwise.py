"""ATen operators that work element by element."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from llmcompile.exporters.neuron.lowering.elements import Operand, Scalar, exact, floating, promoted, wide

Rule: TypeAlias = Callable[..., Any]
Unary: TypeAlias = Callable[[jax.Array], jax.Array]
Binary: TypeAlias = Callable[[jax.Array, jax.Array], jax.Array]


def operands(first: Operand, second: Operand) -> tuple[jax.Array, jax.Array]:
    """Both operands in the type torch computes in; float32 where a number would be rounded to a narrower one."""
    dtype = promoted(first, second)
    numbers = [item for item in (first, second) if not isinstance(item, jax.Array)]
    if floating(dtype) and not all(exact(number, dtype) for number in numbers):
        dtype = np.dtype(np.float32)
    return jnp.asarray(first, dtype), jnp.asarray(second, dtype)


def _arithmetic(operation: Binary) -> Rule:
    def rule(a: Operand, b: Operand, alpha: Scalar = 1) -> jax.Array:
        left, right = operands(a, b)
        return operation(left, right if alpha == 1 else right * jnp.asarray(alpha, right.dtype))

    return rule


def _binary(operation: Binary) -> Rule:
    def rule(a: Operand, b: Operand) -> jax.Array:
        return operation(*operands(a, b))

    return rule


def _logical(operation: Binary) -> Rule:
    return lambda a, b: operation(a.astype(jnp.bool_), b.astype(jnp.bool_))


def _unary(operation: Unary) -> Rule:
    """A function computed in float32, whatever the type of the tensor."""
    return lambda x: operation(wide(x))


def _add(a: jax.Array, b: jax.Array) -> jax.Array:
    return a | b if a.dtype == jnp.bool_ else a + b


def _mul(a: jax.Array, b: jax.Array) -> jax.Array:
    return a & b if a.dtype == jnp.bool_ else a * b


def _rsub(a: Operand, b: Operand, alpha: Scalar = 1) -> jax.Array:
    difference: jax.Array = _SUBTRACT(b, a, alpha)
    return difference


def _divide(a: Operand, b: Operand) -> jax.Array:
    left, right = operands(a, b)
    return left / right if floating(left.dtype) else wide(left) / wide(right)


def _divide_rounding(a: Operand, b: Operand, rounding_mode: str | None = None) -> jax.Array:
    if rounding_mode is None:
        return _divide(a, b)
    left, right = operands(a, b)
    if rounding_mode == "floor":
        return jnp.floor_divide(left, right)
    return jnp.trunc(left / right) if floating(left.dtype) else lax.div(*jnp.broadcast_arrays(left, right))


def _power(a: Operand, exponent: Operand) -> jax.Array:
    if isinstance(exponent, jax.Array) or not isinstance(a, jax.Array):
        left, right = operands(a, exponent)
        return jnp.power(left, right)
    if exponent in (1, 2, 3):
        x = a if promoted(a, exponent) == a.dtype else wide(a)
        return x * x if exponent == 2 else x if exponent == 1 else x * x * x
    if not floating(promoted(a, exponent)):
        return lax.integer_pow(a, int(exponent))
    special = {0.5: jnp.sqrt, -0.5: lax.rsqrt, -1.0: jnp.reciprocal}
    x = wide(a)
    return special[exponent](x) if exponent in special else jnp.power(x, jnp.float32(exponent))


def _clamp(x: jax.Array, low: Operand | None = None, high: Operand | None = None) -> jax.Array:
    if low is not None:
        x = jnp.maximum(*operands(x, low))
    return x if high is None else jnp.minimum(*operands(x, high))


def _where(condition: jax.Array, a: Operand, b: Operand) -> jax.Array:
    return jnp.where(condition, *operands(a, b))


def _masked_fill(x: jax.Array, mask: jax.Array, value: Operand) -> jax.Array:
    return jnp.where(mask, jnp.asarray(value).astype(x.dtype), x)


def _gelu(x: jax.Array, approximate: str = "none") -> jax.Array:
    y = wide(x)
    if approximate == "tanh":
        return 0.5 * y * (1 + jnp.tanh(np.float32(np.sqrt(2 / np.pi)) * (y + 0.044715 * y * y * y)))
    return 0.5 * y * (1 + lax.erf(y * np.float32(np.sqrt(0.5))))


def _softplus(x: jax.Array, beta: Scalar = 1, threshold: Scalar = 20) -> jax.Array:
    y = wide(x) * beta
    return jnp.where(y > threshold, y, jnp.log1p(jnp.exp(jnp.minimum(y, threshold)))) / beta


def _elu(x: jax.Array, alpha: Scalar = 1, scale: Scalar = 1, input_scale: Scalar = 1) -> jax.Array:
    y = wide(x)
    return jnp.where(y > 0, y * scale, jnp.expm1(jnp.minimum(y, 0) * input_scale) * (alpha * scale))


def _leaky_relu(x: jax.Array, slope: Scalar = 0.01) -> jax.Array:
    return jnp.where(x > 0, wide(x), wide(x) * slope)


def _hardtanh(x: jax.Array, low: Scalar = -1, high: Scalar = 1) -> jax.Array:
    return jnp.clip(x, jnp.asarray(low, x.dtype), jnp.asarray(high, x.dtype))


def _log_sigmoid(x: jax.Array) -> jax.Array:
    return jnp.minimum(x, 0) - jnp.log1p(jnp.exp(-jnp.abs(x)))


def _sigmoid(x: jax.Array) -> jax.Array:
    return lax.logistic(x)


def _relu6_part(x: jax.Array) -> jax.Array:
    return jnp.clip(x + 3, 0, 6) / 6


def _prelu(x: jax.Array, slope: jax.Array) -> jax.Array:
    axes = (1, -1, *(1 for _ in range(x.ndim - 2))) if x.ndim > 1 and slope.ndim == 1 else slope.shape
    return jnp.where(x > 0, x, x * slope.reshape(axes))


def _addc(join: Binary) -> Rule:
    def rule(x: jax.Array, a: jax.Array, b: jax.Array, value: Scalar = 1) -> jax.Array:
        joined = join(a, b)
        return x + (joined if value == 1 else joined * value)

    return rule


def _same(x: jax.Array) -> jax.Array:
    return x


_SUBTRACT = _arithmetic(jnp.subtract)
_ADD = _arithmetic(_add)
_LESS, _LESS_EQUAL = _binary(jnp.less), _binary(jnp.less_equal)
_GREATER, _GREATER_EQUAL = _binary(jnp.greater), _binary(jnp.greater_equal)
_EQUAL, _DIFFERENT = _binary(jnp.equal), _binary(jnp.not_equal)
_AND, _OR, _XOR = _binary(jnp.bitwise_and), _binary(jnp.bitwise_or), _binary(jnp.bitwise_xor)
_MULTIPLY, _REMAINDER, _FMOD = _binary(_mul), _binary(jnp.remainder), _binary(jnp.fmod)

ELEMENTWISE: Mapping[str, Rule] = MappingProxyType(
    {
        "aten.abs.default": jnp.abs,
        "aten.acos.default": _unary(jnp.arccos),
        "aten.add.Scalar": _ADD,
        "aten.add.Tensor": _ADD,
        "aten.addcdiv.default": _addc(jnp.divide),
        "aten.addcmul.default": _addc(jnp.multiply),
        "aten.asin.default": _unary(jnp.arcsin),
        "aten.atan.default": _unary(jnp.arctan),
        "aten.atan2.default": _binary(jnp.arctan2),
        "aten.bitwise_and.Scalar": _AND,
        "aten.bitwise_and.Tensor": _AND,
        "aten.bitwise_left_shift.Tensor_Scalar": _binary(jnp.left_shift),
        "aten.bitwise_not.default": jnp.invert,
        "aten.bitwise_or.Scalar": _OR,
        "aten.bitwise_or.Tensor": _OR,
        "aten.bitwise_right_shift.Tensor_Scalar": _binary(jnp.right_shift),
        "aten.bitwise_xor.Scalar": _XOR,
        "aten.bitwise_xor.Tensor": _XOR,
        "aten.ceil.default": jnp.ceil,
        "aten.clamp.Tensor": _clamp,
        "aten.clamp.default": _clamp,
        "aten.clamp_max.default": lambda x, high: _clamp(x, None, high),
        "aten.clamp_min.default": _clamp,
        "aten.cos.default": _unary(jnp.cos),
        "aten.cosh.default": _unary(jnp.cosh),
        "aten.div.Scalar": _divide,
        "aten.div.Scalar_mode": _divide_rounding,
        "aten.div.Tensor": _divide,
        "aten.div.Tensor_mode": _divide_rounding,
        "aten.elu.default": _elu,
        "aten.eq.Scalar": _EQUAL,
        "aten.eq.Tensor": _EQUAL,
        "aten.erf.default": _unary(lax.erf),
        "aten.erfc.default": _unary(lax.erfc),
        "aten.exp.default": _unary(jnp.exp),
        "aten.exp2.default": _unary(jnp.exp2),
        "aten.expm1.default": _unary(jnp.expm1),
        "aten.floor.default": jnp.floor,
        "aten.floor_divide.default": lambda a, b: _divide_rounding(a, b, "floor"),
        "aten.fmod.Scalar": _FMOD,
        "aten.fmod.Tensor": _FMOD,
        "aten.ge.Scalar": _GREATER_EQUAL,
        "aten.ge.Tensor": _GREATER_EQUAL,
        "aten.gelu.default": _gelu,
        "aten.gt.Scalar": _GREATER,
        "aten.gt.Tensor": _GREATER,
        "aten.hardsigmoid.default": _unary(_relu6_part),
        "aten.hardswish.default": _unary(lambda x: x * _relu6_part(x)),
        "aten.hardtanh.default": _hardtanh,
        "aten.isfinite.default": lambda x: jnp.abs(wide(x)) < jnp.inf,
        "aten.isinf.default": lambda x: jnp.abs(wide(x)) == jnp.inf,
        "aten.isnan.default": lambda x: x != x,
        "aten.le.Scalar": _LESS_EQUAL,
        "aten.le.Tensor": _LESS_EQUAL,
        "aten.leaky_relu.default": _leaky_relu,
        "aten.log.default": _unary(jnp.log),
        "aten.log10.default": _unary(jnp.log10),
        "aten.log1p.default": _unary(jnp.log1p),
        "aten.log2.default": _unary(jnp.log2),
        "aten.log_sigmoid_forward.default": lambda x: (_log_sigmoid(wide(x)), None),
        "aten.logical_and.default": _logical(jnp.logical_and),
        "aten.logical_not.default": lambda x: jnp.logical_not(x.astype(jnp.bool_)),
        "aten.logical_or.default": _logical(jnp.logical_or),
        "aten.logical_xor.default": _logical(jnp.logical_xor),
        "aten.lt.Scalar": _LESS,
        "aten.lt.Tensor": _LESS,
        "aten.masked_fill.Scalar": _masked_fill,
        "aten.masked_fill.Tensor": _masked_fill,
        "aten.maximum.default": _binary(jnp.maximum),
        "aten.minimum.default": _binary(jnp.minimum),
        "aten.mish.default": _unary(lambda x: x * jnp.tanh(_softplus(x))),
        "aten.mul.Scalar": _MULTIPLY,
        "aten.mul.Tensor": _MULTIPLY,
        "aten.ne.Scalar": _DIFFERENT,
        "aten.ne.Tensor": _DIFFERENT,
        "aten.neg.default": jnp.negative,
        "aten.pow.Scalar": _power,
        "aten.pow.Tensor_Scalar": _power,
        "aten.pow.Tensor_Tensor": _power,
        "aten.prelu.default": _prelu,
        "aten.reciprocal.default": _unary(jnp.reciprocal),
        "aten.relu.default": lambda x: jnp.maximum(x, jnp.zeros((), x.dtype)),
        "aten.remainder.Scalar": _REMAINDER,
        "aten.remainder.Tensor": _REMAINDER,
        "aten.round.default": jnp.round,
        "aten.rsqrt.default": _unary(lax.rsqrt),
        "aten.rsub.Scalar": _rsub,
        "aten.rsub.Tensor": _rsub,
        "aten.sigmoid.default": _unary(_sigmoid),
        "aten.sign.default": jnp.sign,
        "aten.silu.default": _unary(lambda x: x * _sigmoid(x)),
        "aten.sin.default": _unary(jnp.sin),
        "aten.sinh.default": _unary(jnp.sinh),
        "aten.softplus.default": _softplus,
        "aten.sqrt.default": _unary(jnp.sqrt),
        "aten.square.default": lambda x: x * x,
        "aten.sub.Scalar": _SUBTRACT,
        "aten.sub.Tensor": _SUBTRACT,
        "aten.tan.default": _unary(jnp.tan),
        "aten.tanh.default": _unary(jnp.tanh),
        "aten.trunc.default": jnp.trunc,
        "aten.where.self": _where,
        "aten.where.ScalarOther": _where,
        "aten.where.ScalarSelf": _where,
        "aten._to_copy.default": _same,
        "aten.alias.default": _same,
        "aten.clone.default": _same,
        "aten.contiguous.default": _same,
        "aten.detach.default": _same,
        "aten.dropout.default": lambda x, probability, train: _same(x),
        "aten.lift_fresh_copy.default": _same,
        "aten.to.dtype": lambda x, dtype, non_blocking=False, copy=False: x,
    }
)
"""ATen overload -> function of JAX arrays and numbers; the interpreter casts what it returns to torch's type."""
