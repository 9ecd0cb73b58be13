"""Complex numbers, as pairs of real tensors, and Fourier transforms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ...ir import dtypes as T
from ...ir.dtypes import DType
from ...ir.graph import Value
from ..context import Complex, Context, axes_of, axis_of
from ..table import AtenProblem, aten_op, complex_op, table

aten = torch.ops.aten


# --- of each part -------------------------------------------------------------------------------

_MOVES = (
    aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.squeeze.default,
    aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default, aten.flatten.using_ints,
    aten.expand.default, aten.permute.default, aten.transpose.int, aten.t.default,
    aten.slice.Tensor, aten.select.int, aten.narrow.default, aten.split.Tensor,
    aten.split_with_sizes.default, aten.unbind.int, aten.repeat.default, aten.flip.default,
    aten.roll.default, aten.clone.default, aten.alias.default, aten.index_select.default,
    aten.index.Tensor, aten.gather.default, aten.tril.default, aten.triu.default,
    aten.diagonal.default, aten.unfold.default, aten.neg.default, aten.sum.default,
    aten.sum.dim_IntList, aten.mean.default, aten.mean.dim, aten.cumsum.default,
    aten.constant_pad_nd.default, aten.as_strided.default, aten.embedding.default,
    aten.slice_scatter.default, aten.select_scatter.default, aten.lift_fresh_copy.default,
)  # fmt: skip


def _of_parts(target: Any) -> None:
    row = table_row(target)

    @complex_op(target)
    def both(c: Context, *args: Any, **kwargs: Any) -> Any:
        re, im = (row(c, *_part(args, k), **_part(kwargs, k)) for k in ("re", "im"))
        if isinstance(re, list):
            return [Complex(a, b) for a, b in zip(re, im, strict=True)]
        return Complex(re, im)


def table_row(target: Any) -> Any:
    """The importer for real numbers, looked up when it is called."""
    def call(c: Context, *args: Any, **kwargs: Any) -> Any:
        return table()[target].fn(c, *args, **kwargs)

    return call


def _part(tree: Any, which: str) -> Any:
    """Arguments with one part of every complex one."""
    if isinstance(tree, (tuple, list)):
        return type(tree)(_part(x, which) for x in tree)
    if isinstance(tree, dict):
        return {k: _part(x, which) for k, x in tree.items()}
    if isinstance(tree, complex):
        return tree.real if which == "re" else tree.imag
    return getattr(tree, which) if isinstance(tree, Complex) else tree


for _target in _MOVES:
    _of_parts(_target)


@complex_op(aten.cat.default, aten.concat.default, aten.stack.default)
def cat(c: Context, tensors: Sequence[Any], dim: int = 0) -> Complex:
    parts = [c.parts(t, c.dtype) for t in tensors]
    join = table()[c.node.target].fn
    return Complex(join(c, [p.re for p in parts], dim), join(c, [p.im for p in parts], dim))


@complex_op(aten.where.self)
def where(c: Context, cond: Value, a: Any, b: Any) -> Complex:
    x, y = c.parts(a, c.dtype), c.parts(b, c.dtype)
    cond = c.flag(cond)
    return Complex(c.select(cond, x.re, y.re), c.select(cond, x.im, y.im))


# --- made and taken apart -----------------------------------------------------------------------


@complex_op(aten.view_as_real.default, aten.view_as_real_copy.default)
def view_as_real(c: Context, x: Complex) -> Value:
    return c.join_parts(x)


@complex_op(aten.view_as_complex.default, aten.view_as_complex_copy.default)
def view_as_complex(c: Context, x: Value) -> Complex:
    return c.split_parts(x)


@complex_op(aten.complex.default)
def from_parts(c: Context, re: Value, im: Value) -> Complex:
    return Complex(*(c.broadcast(c.value(x, c.dtype), c.shape_out) for x in (re, im)))


@complex_op(aten.polar.default)
def polar(c: Context, size: Value, angle: Value) -> Complex:
    return Complex(c.mul(size, c.unary("cos", angle)), c.mul(size, c.unary("sin", angle)))


@complex_op(aten._to_copy.default, torch.ops.prims.convert_element_type.default)
def to_copy(c: Context, x: Any, *args: Any, **kwargs: Any) -> Any:
    if not c.result.is_complex():
        return c.value(x.re, c.dtype)
    return c.parts(x, c.dtype)


@complex_op(aten.copy.default)
def copy(c: Context, x: Any, source: Any, non_blocking: bool = False) -> Complex:
    parts = c.parts(source, c.dtype)
    return Complex(*(c.broadcast(v, c.shape_out) for v in (parts.re, parts.im)))


@complex_op(aten.real.default)
def real(c: Context, x: Complex) -> Value:
    return x.re


@complex_op(aten.imag.default)
def imag(c: Context, x: Complex) -> Value:
    return x.im


def _filled(targets: list[Any], number: float) -> None:
    @complex_op(*targets)
    def filled(c: Context, *args: Any, **kwargs: Any) -> Complex:
        return Complex(*(c.full(c.shape_out, n, c.dtype) for n in (number, 0)))


_filled([aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default,
         aten.empty.memory_format], 0)
_filled([aten.ones.default, aten.ones_like.default, aten.new_ones.default], 1)


@complex_op(aten.full.default, aten.full_like.default)
def full(c: Context, like: Any, number: Any, **kwargs: Any) -> Complex:
    number = complex(number)
    return Complex(*(c.full(c.shape_out, n, c.dtype) for n in (number.real, number.imag)))


@complex_op(aten.scalar_tensor.default)
def scalar_tensor(c: Context, number: Any, **kwargs: Any) -> Complex:
    return c.parts(number, c.dtype)


# --- arithmetic ---------------------------------------------------------------------------------


def _sum(name: str, sign: str) -> None:
    overloads = getattr(aten, name)

    @complex_op(overloads.Tensor, overloads.Scalar)
    def total(c: Context, a: Any, b: Any, alpha: Any = 1) -> Complex:
        x, y = c.parts(a, c.dtype), c.parts(b, c.dtype)
        if alpha != 1:
            y = multiply(c, y, c.parts(alpha, c.dtype))
        shape = c.shape_out
        return Complex(*(c.broadcast(c.binary(sign, p, q), shape)
                         for p, q in ((x.re, y.re), (x.im, y.im))))


_sum("add", "add")
_sum("sub", "sub")


def multiply(c: Context, x: Complex, y: Complex) -> Complex:
    return Complex(c.sub(c.mul(x.re, y.re), c.mul(x.im, y.im)),
                   c.add(c.mul(x.re, y.im), c.mul(x.im, y.re)))


@complex_op(aten.mul.Tensor, aten.mul.Scalar)
def mul(c: Context, a: Any, b: Any) -> Complex:
    dt = c.dtype
    for x, y in ((a, b), (b, a)):
        if isinstance(x, Complex) and not isinstance(y, (Complex, complex)):
            y = c.value(y, dt)
            return Complex(c.mul(c.cast(x.re, dt), y), c.mul(c.cast(x.im, dt), y))
    return multiply(c, c.parts(a, dt), c.parts(b, dt))


@complex_op(aten.div.Tensor, aten.div.Scalar)
def div(c: Context, a: Any, b: Any) -> Complex:
    dt = c.dtype
    if not isinstance(b, (Complex, complex)):
        x, y = c.parts(a, dt), c.value(b, dt)
        return Complex(c.div(x.re, y), c.div(x.im, y))
    return multiply(c, c.parts(a, dt), inverse(c, c.parts(b, dt)))


def inverse(c: Context, x: Complex) -> Complex:
    """Scaled by the larger part, so that squares don't overflow."""
    top = c.binary("max", c.unary("abs", x.re), c.unary("abs", x.im))
    re, im = c.div(x.re, top), c.div(x.im, top)
    size = c.mul(c.add(c.mul(re, re), c.mul(im, im)), top)
    return Complex(c.div(re, size), c.unary("neg", c.div(im, size)))


@complex_op(aten.reciprocal.default)
def reciprocal(c: Context, x: Complex) -> Complex:
    return inverse(c, x)


@complex_op(aten._conj.default, aten.conj_physical.default, aten._conj_physical.default)
def conj(c: Context, x: Complex) -> Complex:
    return Complex(x.re, c.unary("neg", x.im))


@complex_op(aten.abs.default)
def absolute(c: Context, x: Complex) -> Value:
    """Without overflow or underflow of squares, except where the number is 0."""
    top = c.binary("max", c.unary("abs", x.re), c.unary("abs", x.im))
    unit = c.select(c.binary("eq", top, c.like(0, top)), c.like(1, top), top)
    re, im = c.div(x.re, unit), c.div(x.im, unit)
    return c.mul(top, c.unary("sqrt", c.add(c.mul(re, re), c.mul(im, im))))


@complex_op(aten.angle.default)
def angle(c: Context, x: Complex) -> Value:
    return c.binary("atan2", x.im, x.re)


@complex_op(aten.exp.default)
def exp(c: Context, x: Complex) -> Complex:
    return polar(c, c.unary("exp", x.re), x.im)


@complex_op(aten.pow.Tensor_Scalar)
def power(c: Context, x: Any, exponent: Any) -> Complex:
    if not isinstance(exponent, int) or not 0 < exponent <= 8:
        raise AtenProblem(f"complex numbers to the power {exponent}: whole numbers from 1 to 8")
    base = out = c.parts(x, c.dtype)
    for _ in range(exponent - 1):
        out = multiply(c, out, base)
    return out


def _equal(target: Any, fn: str, join: str) -> None:
    @complex_op(*target)
    def equal(c: Context, a: Any, b: Any) -> Value:
        dt = next(v.re.dtype for v in (a, b) if isinstance(v, Complex))
        x, y = c.parts(a, dt), c.parts(b, dt)
        return c.binary(join, c.binary(fn, x.re, y.re), c.binary(fn, x.im, y.im))


_equal([aten.eq.Tensor, aten.eq.Scalar], "eq", "and")
_equal([aten.ne.Tensor, aten.ne.Scalar], "ne", "or")


@complex_op(aten.mm.default, aten.bmm.default, aten.matmul.default)
def matmul(c: Context, a: Complex, b: Complex) -> Complex:
    return Complex(c.sub(c.matmul(a.re, b.re), c.matmul(a.im, b.im)),
                   c.add(c.matmul(a.re, b.im), c.matmul(a.im, b.re)))


# --- Fourier transforms -------------------------------------------------------------------------


def _transform(c: Context, pairs: Value, axis: int, length: Any, **attrs: bool) -> Value:
    return c.op("dft", pairs, None if length is None else c.reshape(c.sizes([length]), []),
                c.const(axis, T.i64), **attrs)


def _factor(normalization: int, count: Any, inverse: bool) -> float:
    """What results of `dft` are multiplied by; inverse ones are divided by the length already.

    Raises:
        AtenProblem: If sizes are dynamic where they matter.
    """
    wanted = {0: 0.0, 1: -0.5, 2: -1.0}[normalization]  # the power of the length
    power = wanted + (1.0 if inverse else 0.0)
    if power and not isinstance(count, int):
        raise AtenProblem("a scaled Fourier transform along a dimension of dynamic size")
    return float(count) ** power if power else 1.0


def _scaled(c: Context, x: Value, factor: float) -> Value:
    return x if factor == 1.0 else c.mul(x, c.like(factor, x))


def _through(c: Context, pairs: Value, axes: Sequence[int], inverse: bool) -> Value:
    for axis in axes:
        pairs = _transform(c, pairs, axis, None, inverse=inverse)
    return pairs


def _count(shape: Sequence[Any], axes: Sequence[int]) -> Any:
    sizes = [shape[a] for a in axes]
    return math.prod(sizes) if all(isinstance(s, int) for s in sizes) else None


@complex_op(aten._fft_c2c.default)
def fft_c2c(c: Context, x: Complex, dim: Sequence[int], normalization: int,
            forward: bool) -> Complex:
    axes = axes_of(dim, x.re.rank) if len(dim) else ()
    pairs = _through(c, c.join_parts(x), axes, not forward)
    factor = _factor(normalization, _count(x.re.dims, axes), not forward)
    return c.split_parts(_scaled(c, pairs, factor))


@complex_op(aten._fft_r2c.default)
def fft_r2c(c: Context, x: Value, dim: Sequence[int], normalization: int,
            onesided: bool) -> Complex:
    axes = [axis_of(d, x.rank) for d in dim]
    pairs = c.unsqueeze(c.value(x, _float(x.dtype)), [x.rank])
    pairs = _transform(c, pairs, axes[-1], None, onesided=onesided)
    pairs = _through(c, pairs, axes[:-1], False)
    return c.split_parts(_scaled(c, pairs, _factor(normalization, _count(x.dims, axes), False)))


def _float(dt: DType) -> DType:
    return dt if dt.is_float else T.f32


@complex_op(aten._fft_c2r.default)
def fft_c2r(c: Context, x: Complex, dim: Sequence[int], normalization: int,
            last_dim_size: Any) -> Value:
    axes = [axis_of(d, x.re.rank) for d in dim]
    pairs = _through(c, c.join_parts(x), axes[:-1], True)
    pairs = _transform(c, pairs, axes[-1], last_dim_size, inverse=True, onesided=True)
    y = c.squeeze(pairs, [pairs.rank - 1])
    return _scaled(c, y, _factor(normalization, _count(y.dims, axes), True))


@aten_op(aten.real.default, aten._conj.default, aten.conj_physical.default,
         aten._conj_physical.default, aten.resolve_conj.default)
def of_real(c: Context, x: Value) -> Value:
    return x


@aten_op(aten.angle.default)
def angle_of_real(c: Context, x: Value) -> Value:
    x = c.value(x, c.dtype)
    turned = c.select(c.binary("lt", x, c.like(0, x)), c.like(math.pi, x), c.like(0, x))
    return c.select(c.unary("isnan", x), x, turned)
