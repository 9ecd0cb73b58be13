"""Arithmetic, comparisons and other functions of single elements."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from ...ir import dtypes as T
from ...ir.graph import Value
from ..context import Context, Operand
from ..table import AtenProblem, aten_op
from ..types import dtype_of

aten = torch.ops.aten


def _unary(target: Any, fn: str) -> None:
    @aten_op(target)
    def unary(c: Context, x: Value) -> Value:
        return c.unary(fn, c.value(x, c.dtype))


for _name in ("exp log sqrt rsqrt sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh erf "
              "sigmoid lgamma").split():
    _unary(getattr(aten, _name).default, _name)
_unary(aten.reciprocal.default, "recip")


def _whole(target: Any, fn: str) -> None:
    @aten_op(target)
    def rounding(c: Context, x: Value) -> Value:
        return c.unary(fn, x) if x.dtype.is_float else x


for _name in ("floor", "ceil", "round", "trunc"):
    _whole(getattr(aten, _name).default, _name)


@aten_op(aten.abs.default)
def absolute(c: Context, x: Value) -> Value:
    return x if x.dtype is T.b1 else c.unary("abs", x)


@aten_op(aten.neg.default)
def neg(c: Context, x: Value) -> Value:
    return c.unary("neg", x)


@aten_op(aten.sign.default, aten.sgn.default)
def sign(c: Context, x: Value) -> Value:
    if x.dtype is T.b1:
        return x
    s = c.unary("sign", x)
    if not x.dtype.is_float:
        return s
    return c.select(c.unary("isnan", x), c.like(0, x), s)  # torch: the sign of NaN is 0


@aten_op(aten.logical_not.default)
def logical_not(c: Context, x: Value) -> Value:
    return c.unary("not", c.flag(x))


@aten_op(aten.bitwise_not.default)
def bitwise_not(c: Context, x: Value) -> Value:
    return c.unary("not" if x.dtype is T.b1 else "bitnot", x)


@aten_op(aten.isnan.default)
def isnan(c: Context, x: Value) -> Value:
    return c.unary("isnan", x) if x.dtype.is_float else c.full(x.dims, False, T.b1)


@aten_op(aten.isinf.default)
def isinf(c: Context, x: Value) -> Value:
    return c.unary("isinf", x) if x.dtype.is_float else c.full(x.dims, False, T.b1)


@aten_op(aten.expm1.default)
def expm1(c: Context, x: Value) -> Value:
    """tanh(x/2) * (exp(x) + 1), which keeps its digits near 0."""
    x = c.value(x, c.dtype)
    e = c.unary("exp", x)
    near = c.mul(c.unary("tanh", c.mul(x, c.like(0.5, x))), c.add(e, c.like(1, x)))
    small = c.binary("lt", c.unary("abs", x), c.like(0.5, x))
    return c.select(small, near, c.sub(e, c.like(1, x)))


@aten_op(aten.log1p.default)
def log1p(c: Context, x: Value) -> Value:
    """2 * atanh(x / (x + 2)) near 0, where log(1 + x) loses digits."""
    x = c.value(x, c.dtype)
    near = c.mul(c.unary("atanh", c.div(x, c.add(x, c.like(2, x)))), c.like(2, x))
    small = c.binary("lt", c.unary("abs", x), c.like(0.5, x))
    return c.select(small, near, c.unary("log", c.add(x, c.like(1, x))))


def _of_log(target: Any, factor: float) -> None:
    @aten_op(target)
    def logarithm(c: Context, x: Value) -> Value:
        y = c.unary("log", c.value(x, c.dtype))
        return c.mul(y, c.like(factor, y))


_of_log(aten.log2.default, 1 / math.log(2))
_of_log(aten.log10.default, 1 / math.log(10))


@aten_op(aten.exp2.default)
def exp2(c: Context, x: Value) -> Value:
    x = c.value(x, c.dtype)
    return c.binary("pow", c.like(2, x), x)


@aten_op(aten.erfc.default)
def erfc(c: Context, x: Value) -> Value:
    y = c.unary("erf", c.value(x, c.dtype))
    return c.sub(c.like(1, y), y)


@aten_op(aten.frac.default)
def frac(c: Context, x: Value) -> Value:
    return c.sub(x, c.unary("trunc", x))


# --- two operands -------------------------------------------------------------------------------


def _binary(targets: list[Any], fn: str) -> None:
    @aten_op(*targets)
    def binary(c: Context, a: Operand, b: Operand) -> Value:
        return c.binary(fn, c.value(a, c.dtype), c.value(b, c.dtype))


_binary([aten.maximum.default, aten.max.other], "max")
_binary([aten.minimum.default, aten.min.other], "min")
_binary([aten.atan2.default], "atan2")
_binary([aten.fmod.Tensor, aten.fmod.Scalar], "fmod")
_binary([aten.remainder.Tensor, aten.remainder.Scalar], "mod")
_binary([aten.floor_divide.default, aten.floor_divide.Scalar], "floordiv")
_binary([aten.bitwise_left_shift.Tensor, aten.bitwise_left_shift.Tensor_Scalar], "shl")
_binary([aten.bitwise_right_shift.Tensor, aten.bitwise_right_shift.Tensor_Scalar], "shr")


@aten_op(aten.mul.Tensor, aten.mul.Scalar)
def mul(c: Context, a: Operand, b: Operand) -> Value:
    fn = "and" if c.dtype is T.b1 else "mul"
    return c.binary(fn, c.value(a, c.dtype), c.value(b, c.dtype))


def _sum(c: Context, fn: str, a: Operand, b: Operand, alpha: Any) -> Value:
    x, y = c.value(a, c.dtype), c.value(b, c.dtype)
    if c.dtype is T.b1:
        return c.binary("or", x, y) if alpha else x
    if alpha != 1:
        y = c.mul(y, c.value(alpha, c.dtype))
    return c.binary(fn, x, y)


@aten_op(aten.add.Tensor, aten.add.Scalar)
def add(c: Context, a: Operand, b: Operand, scalar_alpha: Any = 1, alpha: Any = 1) -> Value:
    return _sum(c, "add", a, b, alpha if scalar_alpha == 1 else scalar_alpha)


@aten_op(aten.sub.Tensor, aten.sub.Scalar)
def sub(c: Context, a: Operand, b: Operand, scalar_alpha: Any = 1, alpha: Any = 1) -> Value:
    return _sum(c, "sub", a, b, alpha if scalar_alpha == 1 else scalar_alpha)


@aten_op(aten.rsub.Tensor, aten.rsub.Scalar)
def rsub(c: Context, a: Operand, b: Operand, scalar_alpha: Any = 1, alpha: Any = 1) -> Value:
    return sub(c, b, c.mul(c.value(a, c.dtype), c.value(alpha * scalar_alpha, c.dtype)))


@aten_op(aten.div.Tensor, aten.div.Scalar)
def div(c: Context, a: Operand, b: Operand) -> Value:
    return c.div(c.value(a, c.dtype), c.value(b, c.dtype))


@aten_op(aten.div.Tensor_mode, aten.div.Scalar_mode)
def div_mode(c: Context, a: Operand, b: Operand, rounding_mode: str | None = None) -> Value:
    x, y = c.value(a, c.dtype), c.value(b, c.dtype)
    if rounding_mode == "floor":
        return c.binary("floordiv", x, y)
    out = c.div(x, y)
    return c.unary("trunc", out) if rounding_mode == "trunc" and c.dtype.is_float else out


@aten_op(aten.pow.Tensor_Scalar, aten.pow.Tensor_Tensor, aten.pow.Scalar)
def power(c: Context, a: Operand, b: Operand) -> Value:
    if isinstance(a, Value) and a.dtype is c.dtype and c.dtype.is_float:
        if b == 2:
            return c.mul(a, a)
        if b == 0.5:
            return c.unary("sqrt", a)
    return c.binary("pow", c.value(a, c.dtype), c.value(b, c.dtype))


@aten_op(aten.fmax.default)
def fmax(c: Context, a: Value, b: Value) -> Value:
    return _ignoring_nan(c, "max", c.value(a, c.dtype), c.value(b, c.dtype))


@aten_op(aten.fmin.default)
def fmin(c: Context, a: Value, b: Value) -> Value:
    return _ignoring_nan(c, "min", c.value(a, c.dtype), c.value(b, c.dtype))


def _ignoring_nan(c: Context, fn: str, a: Value, b: Value) -> Value:
    out = c.binary(fn, a, b)
    if not out.dtype.is_float:
        return out
    return c.select(c.unary("isnan", a), b, c.select(c.unary("isnan", b), a, out))


def _compare(fn: str) -> None:
    overloads = getattr(aten, fn)

    @aten_op(overloads.Tensor, overloads.Scalar)
    def compare(c: Context, a: Operand, b: Operand) -> Value:
        dt = c.promoted(0, 1)
        return c.binary(fn, c.value(a, dt), c.value(b, dt))


for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    _compare(_name)


def _logical(fn: str) -> None:
    @aten_op(getattr(aten, f"logical_{fn}").default)
    def logical(c: Context, a: Value, b: Value) -> Value:
        return c.binary(fn, c.flag(a), c.flag(b))


def _bitwise(fn: str) -> None:
    overloads = getattr(aten, f"bitwise_{fn}")

    @aten_op(overloads.Tensor, overloads.Scalar)
    def bitwise(c: Context, a: Operand, b: Operand) -> Value:
        name = fn if c.dtype is T.b1 else f"bit{fn}"
        return c.binary(name, c.value(a, c.dtype), c.value(b, c.dtype))


for _name in ("and", "or", "xor"):
    _logical(_name)
    _bitwise(_name)


@aten_op(aten.signbit.default)
def signbit(c: Context, x: Value) -> Value:
    """True for -0.0 too, whose reciprocal is negative."""
    if x.dtype is T.b1:
        return c.full(x.dims, False, T.b1)
    zero = c.like(0, x)
    below = c.binary("lt", x, zero)
    if not x.dtype.is_float:
        return below
    minus = c.binary("lt", c.unary("recip", x), zero)
    return c.binary("or", below, c.binary("and", c.binary("eq", x, zero), minus))


@aten_op(aten.copysign.Tensor, aten.copysign.Scalar)
def copysign(c: Context, a: Value, b: Operand) -> Value:
    size = c.unary("abs", c.value(a, c.dtype))
    return c.select(signbit(c, c.value(b, c.dtype)), c.unary("neg", size), size)


@aten_op(aten.hypot.default)
def hypot(c: Context, a: Value, b: Value) -> Value:
    return c.unary("sqrt", c.add(c.mul(a, a), c.mul(b, b)))


# --- three operands and more --------------------------------------------------------------------


@aten_op(aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf, aten.where.Scalar)
def where(c: Context, cond: Value, a: Operand, b: Operand) -> Value:
    return c.select(c.flag(cond), c.value(a, c.dtype), c.value(b, c.dtype))


@aten_op(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def masked_fill(c: Context, x: Value, mask: Value, number: Operand) -> Value:
    return c.select(mask, c.value(number, c.dtype), x)


@aten_op(aten.clamp.default, aten.clamp.Tensor)
def clamp(c: Context, x: Value, low: Operand | None = None, high: Operand | None = None) -> Value:
    x = c.value(x, c.dtype)
    for fn, bound in (("max", low), ("min", high)):
        if bound is not None:
            x = c.binary(fn, x, c.value(bound, c.dtype))
    return x


@aten_op(aten.clamp_min.default, aten.clamp_min.Tensor)
def clamp_min(c: Context, x: Value, low: Operand) -> Value:
    return clamp(c, x, low)


@aten_op(aten.clamp_max.default, aten.clamp_max.Tensor)
def clamp_max(c: Context, x: Value, high: Operand) -> Value:
    return clamp(c, x, None, high)


@aten_op(aten.addcmul.default)
def addcmul(c: Context, x: Value, a: Value, b: Value, value: Any = 1) -> Value:
    return _addc(c, c.mul, x, a, b, value)


@aten_op(aten.addcdiv.default)
def addcdiv(c: Context, x: Value, a: Value, b: Value, value: Any = 1) -> Value:
    return _addc(c, c.div, x, a, b, value)


def _addc(c: Context, fn: Callable[[Value, Value], Value], x: Value, a: Value, b: Value,
          value: Any) -> Value:
    y = fn(c.value(a, c.dtype), c.value(b, c.dtype))
    return c.add(c.value(x, c.dtype), y if value == 1 else c.mul(y, c.like(value, y)))


@aten_op(aten.lerp.Scalar, aten.lerp.Tensor)
def lerp(c: Context, a: Value, b: Value, weight: Operand) -> Value:
    return c.add(a, c.mul(c.value(weight, c.dtype), c.sub(b, a)))


# --- types --------------------------------------------------------------------------------------


@aten_op(aten._to_copy.default, aten.to.dtype, aten.to.dtype_layout, aten.to.device,
         aten.type_as.default,
         note="results stay on the engine's device")
def to_copy(c: Context, x: Value, *args: Any, **kwargs: Any) -> Value:
    return c.value(x, c.dtype)


@aten_op(torch.ops.prims.convert_element_type.default)
def convert_element_type(c: Context, x: Value, dtype: Any) -> Value:
    return c.value(x, dtype_of(dtype))


@aten_op(aten.clone.default, aten.alias.default, aten.detach.default, aten.contiguous.default,
         aten.lift_fresh_copy.default, aten.dropout.default, aten.detach_.default,
         aten.lift_fresh.default)
def same(c: Context, x: Value, *args: Any, memory_format: Any = None) -> Value:
    if len(args) == 2 and args[1]:  # dropout(x, p, train)
        raise AtenProblem("dropout while training; call module.eval() first")
    return x


@aten_op(aten.copy.default)
def copy(c: Context, x: Value, source: Value, non_blocking: bool = False) -> Value:
    return c.broadcast(c.value(source, c.dtype), c.shape_out)
