"""Reductions, scans, sorting."""

from __future__ import annotations

from typing import Any

import torch

from ...ir import dims as D
from ...ir import dtypes as T
from ...ir.graph import Value
from ..context import Context, axes_of, axis_of
from ..table import AtenProblem, aten_op

aten = torch.ops.aten


def _reduce(c: Context, x: Value, fn: str, dims: Any, keepdim: bool) -> Value:
    if not x.rank:
        return x
    return c.reduce(x, fn, axes_of(dims, x.rank), keepdim)


@aten_op(aten.sum.default, aten.sum.dim_IntList)
def total(c: Context, x: Value, dim: Any = None, keepdim: bool = False, *,
          dtype: Any = None) -> Value:
    return _reduce(c, c.value(x, c.dtype), "sum", dim, keepdim)


@aten_op(aten.mean.default, aten.mean.dim)
def mean(c: Context, x: Value, dim: Any = None, keepdim: bool = False, *,
         dtype: Any = None) -> Value:
    return _reduce(c, c.value(x, c.dtype), "mean", dim, keepdim)


@aten_op(aten.prod.default, aten.prod.dim_int)
def prod(c: Context, x: Value, dim: Any = None, keepdim: bool = False, *,
         dtype: Any = None) -> Value:
    return _reduce(c, c.value(x, c.dtype), "prod", dim, keepdim)


@aten_op(aten.amax.default, aten.max.default)
def amax(c: Context, x: Value, dim: Any = (), keepdim: bool = False) -> Value:
    return _extreme(c, x, "max", dim, keepdim)


@aten_op(aten.amin.default, aten.min.default)
def amin(c: Context, x: Value, dim: Any = (), keepdim: bool = False) -> Value:
    return _extreme(c, x, "min", dim, keepdim)


def _extreme(c: Context, x: Value, fn: str, dim: Any, keepdim: bool) -> Value:
    if x.dtype is T.b1:
        return c.flag(_reduce(c, c.cast(x, T.u8), fn, dim, keepdim))
    return _reduce(c, x, fn, dim, keepdim)


def _with_index(fn: str) -> None:
    @aten_op(getattr(aten, fn).dim)
    def extreme(c: Context, x: Value, dim: int, keepdim: bool = False) -> list[Value]:
        if not x.rank:
            return [x, c.const(0, T.i64)]
        axis = axis_of(dim, x.rank)
        return [_extreme(c, x, fn, axis, keepdim), _arg(c, x, fn, axis, keepdim)]

    @aten_op(getattr(aten, f"arg{fn}").default)
    def arg(c: Context, x: Value, dim: int | None = None, keepdim: bool = False) -> Value:
        if not x.rank:
            return c.const(0, T.i64)
        if dim is None:
            at = _arg(c, c.view(x, [x.numel]), fn, 0, False)
            return c.view(at, c.shape_out)
        return _arg(c, x, fn, axis_of(dim, x.rank), keepdim)


def _arg(c: Context, x: Value, fn: str, axis: int, keepdim: bool) -> Value:
    x = c.cast(x, T.u8) if x.dtype is T.b1 else x
    return c.op("argreduce", x, fn=fn, axis=axis, keepdims=keepdim)


_with_index("max")
_with_index("min")


def _truth(fn: str) -> None:
    overloads = getattr(aten, fn)

    @aten_op(overloads.default, overloads.dim, overloads.dims)
    def truth(c: Context, x: Value, dim: Any = None, keepdim: bool = False) -> Value:
        return c.value(_reduce(c, c.flag(x), fn, dim, keepdim), c.dtype)


_truth("any")
_truth("all")


@aten_op(aten.logsumexp.default)
def logsumexp(c: Context, x: Value, dim: Any, keepdim: bool = False) -> Value:
    """With the maximum taken out first, so that nothing overflows."""
    x = c.value(x, c.dtype)
    axes = axes_of(dim, x.rank)
    if not x.rank:
        return x
    top = c.reduce(x, "max", axes)
    infinite = c.unary("isinf", top)
    top = c.select(infinite, c.like(0, top), top)
    y = c.add(c.unary("log", c.reduce(c.unary("exp", c.sub(x, top)), "sum", axes)), top)
    return y if keepdim else c.squeeze(y, axes)


@aten_op(aten.linalg_vector_norm.default)
def vector_norm(c: Context, x: Value, ord: Any = 2, dim: Any = None, keepdim: bool = False, *,
                dtype: Any = None) -> Value:
    x = c.value(x, c.dtype)
    if not x.rank:
        if ord == 0:
            return c.value(c.binary("ne", x, c.like(0, x)), x.dtype)
        return c.unary("abs", x)
    if ord in (1, 2):
        return _reduce(c, x, f"l{int(ord)}", dim, keepdim)
    size = c.unary("abs", x)
    if ord == float("inf") or ord == float("-inf"):
        return _reduce(c, size, "max" if ord > 0 else "min", dim, keepdim)
    if ord == 0:
        some = c.value(c.binary("ne", x, c.like(0, x)), x.dtype)
        return _reduce(c, some, "sum", dim, keepdim)
    powers = _reduce(c, c.binary("pow", size, c.like(ord, x)), "sum", dim, keepdim)
    return c.binary("pow", powers, c.like(1 / ord, x))


@aten_op(aten.var.correction)
def var(c: Context, x: Value, dim: Any = None, *, correction: Any = None,
        keepdim: bool = False) -> Value:
    return _variance(c, x, dim, correction, keepdim)[0]


@aten_op(aten.std.correction)
def std(c: Context, x: Value, dim: Any = None, *, correction: Any = None,
        keepdim: bool = False) -> Value:
    return c.unary("sqrt", _variance(c, x, dim, correction, keepdim)[0])


@aten_op(aten.var_mean.correction)
def var_mean(c: Context, x: Value, dim: Any = None, *, correction: Any = None,
             keepdim: bool = False) -> list[Value]:
    return _variance(c, x, dim, correction, keepdim)


def _variance(c: Context, x: Value, dim: Any, correction: Any, keepdim: bool) -> list[Value]:
    lone = not x.rank
    if lone:
        x = c.reshape(x, [1])
    axes = axes_of(dim, x.rank)
    center = c.reduce(x, "mean", axes)
    off = c.sub(x, center)
    squares = c.reduce(c.mul(off, off), "sum", axes)
    count = D.product(x.dims[a] for a in axes)
    correction = 1 if correction is None else correction
    if isinstance(count, int):
        out = c.div(squares, c.like(max(count - correction, 0), x))
    else:
        less = c.value(count - int(correction), x.dtype)
        out = c.div(squares, c.binary("max", less, c.like(0, x)))
    if lone or not keepdim:
        return [c.squeeze(out, axes), c.squeeze(center, axes)]
    return [out, center]


# --- scans and order ----------------------------------------------------------------------------


def _scan(target: Any, fn: str) -> None:
    @aten_op(target)
    def scan(c: Context, x: Value, dim: int, *, dtype: Any = None) -> Value:
        x = c.value(x, c.dtype)
        if not x.rank:
            return x
        return c.op("cumulative", x, c.const(axis_of(dim, x.rank), T.i64), fn=fn)


_scan(aten.cumsum.default, "sum")
_scan(aten.cumprod.default, "prod")


@aten_op(aten.topk.default)
def topk(c: Context, x: Value, k: Any, dim: int = -1, largest: bool = True,
         sorted: bool = True) -> list[Value]:
    if not x.rank:
        return [x, c.const(0, T.i64)]
    return c.ops("topk", x, c.sizes([k]), axis=axis_of(dim, x.rank), largest=largest,
                 sorted=sorted)


def _sorted(c: Context, x: Value, dim: int, descending: bool) -> list[Value]:
    if not x.rank:
        return [x, c.const(0, T.i64)]
    axis = axis_of(dim, x.rank)
    narrow = x.dtype
    x = c.cast(x, T.u8) if narrow is T.b1 else x
    values, at = c.ops("topk", x, c.sizes([x.dims[axis]]), axis=axis, largest=descending)
    return [c.cast(values, narrow), at]


@aten_op(aten.sort.default)
def sort(c: Context, x: Value, dim: int = -1, descending: bool = False) -> list[Value]:
    return _sorted(c, x, dim, descending)


@aten_op(aten.sort.stable)
def sort_stable(c: Context, x: Value, *, stable: bool | None = None, dim: int = -1,
                descending: bool = False) -> list[Value]:
    return _sorted(c, x, dim, descending)


@aten_op(aten.argsort.default)
def argsort(c: Context, x: Value, dim: int = -1, descending: bool = False) -> Value:
    return _sorted(c, x, dim, descending)[1]


@aten_op(aten.median.dim)
def median(c: Context, x: Value, dim: int, keepdim: bool = False) -> list[Value]:
    if not x.rank:
        return [x, c.const(0, T.i64)]
    axis = axis_of(dim, x.rank)
    extent = x.dims[axis]
    if not isinstance(extent, int):
        raise AtenProblem("median along a dimension of dynamic size")
    out = [c.slice_axis(v, axis, (extent - 1) // 2, 1) for v in _sorted(c, x, dim, False)]
    return out if keepdim else [c.squeeze(v, [axis]) for v in out]



@aten_op(aten.median.default, note="static sizes")
def median_of_all(c: Context, x: Value) -> Value:
    return median(c, c.view(x, [x.numel]), 0)[0]
