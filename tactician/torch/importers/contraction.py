"""Matrix products, convolutions, attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ...ir import dtypes as T
from ...ir.graph import Value
from ..context import Context
from ..table import aten_op

aten = torch.ops.aten


def _flag(x: Value) -> str:
    return "vector" if x.rank == 1 else "none"


def _product(c: Context, a: Value, b: Value, ta: str = "none", tb: str = "none") -> Value:
    """A matrix product; integers and booleans by sums of products."""
    if a.dtype.is_float:
        return c.matmul(a, b, ta, tb)
    wide = T.f64  # exact up to 2**53, and products of bounded integers stay below that
    return c.cast(c.matmul(c.cast(a, wide), c.cast(b, wide), ta, tb), a.dtype, saturate=False)


def _unflattened(a: Value, b: Value) -> Value:
    """What the rows of ``a`` are a view of. Products of matrices are often products of more
    dimensions between views, which would keep them from what follows."""
    p = a.producer
    x = p.inputs[0] if p is not None and p.op == "reshape" else None
    fits = x is not None and a.rank == b.rank == 2 and x.rank > 2 and x.dims[-1] == a.dims[-1]
    return x if x is not None and fits else a


@aten_op(aten.mm.default)
def mm(c: Context, a: Value, b: Value) -> Value:
    return c.view(_product(c, _unflattened(a, b), b), c.shape_out)


@aten_op(aten.bmm.default, aten.matmul.default, aten.mv.default, aten.dot.default,
         aten.vdot.default)
def matmul(c: Context, a: Value, b: Value) -> Value:
    return _product(c, a, b, _flag(a), _flag(b))


@aten_op(aten.linear.default)
def linear(c: Context, x: Value, w: Value, bias: Value | None = None) -> Value:
    y = _product(c, x, w, _flag(x), "transpose" if w.rank == 2 else "vector")
    return y if bias is None else c.add(y, bias)


def _combine(c: Context, x: Value, product: Value, beta: Any, alpha: Any) -> Value:
    if alpha != 1:
        product = c.mul(product, c.like(alpha, product))
    if beta == 0:
        return c.broadcast(product, c.shape_out)
    if beta != 1:
        x = c.mul(x, c.like(beta, x))
    return c.add(product, x)


@aten_op(aten.addmm.default, aten.baddbmm.default, aten.addmv.default)
def addmm(c: Context, x: Value, a: Value, b: Value, *, beta: Any = 1, alpha: Any = 1) -> Value:
    if beta == 1 and x.rank == 1:
        a = _unflattened(a, b)
    y = _combine(c, x, _product(c, a, b, "none", _flag(b)), beta, alpha)
    return c.view(y, c.shape_out)


@aten_op(aten.addbmm.default)
def addbmm(c: Context, x: Value, a: Value, b: Value, *, beta: Any = 1, alpha: Any = 1) -> Value:
    total = c.reduce(_product(c, a, b), "sum", [0], keepdims=False)
    return _combine(c, x, total, beta, alpha)


@aten_op(aten.convolution.default)
def convolution(c: Context, x: Value, w: Value, bias: Value | None, stride: Sequence[int],
                padding: Sequence[int], dilation: Sequence[int], transposed: bool,
                output_padding: Sequence[int], groups: int) -> Value:
    n = w.rank - 2
    alone = x.rank == w.rank - 1
    if alone:
        x = c.unsqueeze(x, [0])
    attrs: dict[str, Any] = {
        "stride": _each(stride, n), "pre": _each(padding, n), "post": _each(padding, n),
        "dilation": _each(dilation, n), "groups": groups,
    }
    if transposed:
        y = c.op("deconvolution", x, w, bias, output_padding=_each(output_padding, n), **attrs)
    else:
        y = c.op("convolution", x, w, bias, **attrs)
    return c.squeeze(y, [0]) if alone else y


def _each(given: Sequence[int], n: int) -> tuple[int, ...]:
    return tuple(int(v) for v in (given if len(given) == n else [given[0]] * n))


def _convolve(c: Context, x: Value, w: Value, bias: Value | None = None,
              stride: Sequence[int] = (1,), padding: Sequence[int] = (0,),
              dilation: Sequence[int] = (1,), groups: int = 1) -> Value:
    return convolution(c, x, w, bias, stride, padding, dilation, False, (0,), groups)


aten_op(aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)(_convolve)


@aten_op(aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding)
def convolve_same(c: Context, x: Value, w: Value, bias: Value | None = None,
                  stride: Sequence[int] = (1,), padding: str = "valid",
                  dilation: Sequence[int] = (1,), groups: int = 1) -> Value:
    n = w.rank - 2
    steps = _each(dilation, n)
    total = [0] * n
    if padding == "same":
        total = [d * (int(k) - 1) for d, k in zip(steps, w.dims[2:], strict=True)]
    alone = x.rank == w.rank - 1
    y = c.op("convolution", c.unsqueeze(x, [0]) if alone else x, w, bias,
             stride=_each(stride, n), dilation=steps, groups=groups,
             pre=tuple(t // 2 for t in total), post=tuple(t - t // 2 for t in total))
    return c.squeeze(y, [0]) if alone else y


@aten_op(aten.conv_transpose1d.default, aten.conv_transpose2d.input,
         aten.conv_transpose3d.input)
def conv_transpose(c: Context, x: Value, w: Value, bias: Value | None = None,
                   stride: Sequence[int] = (1,), padding: Sequence[int] = (0,),
                   output_padding: Sequence[int] = (0,), groups: int = 1,
                   dilation: Sequence[int] = (1,)) -> Value:
    return convolution(c, x, w, bias, stride, padding, dilation, True, output_padding, groups)


@aten_op(aten.scaled_dot_product_attention.default,
         note="dropout only while training")
def attention(c: Context, q: Value, k: Value, v: Value, mask: Value | None = None,
              dropout_p: float = 0.0, is_causal: bool = False, *, scale: float | None = None,
              enable_gqa: bool = False) -> Value:
    if q.rank == k.rank == v.rank == 4:
        return _attention4(c, q, k, v, mask, is_causal, scale)
    size = q.dims[-1]
    factor = scale if scale is not None else 1 / math.sqrt(int(size))  # type: ignore[arg-type]
    scores = c.matmul(c.mul(q, c.like(factor, q)), k, tb="transpose")
    if is_causal:
        unseen = c.full(scores.dims[-2:], True, T.b1)
        seen = c.op("trilu", unseen, upper=False)
        scores = c.select(seen, scores, c.like(float("-inf"), scores))
    if mask is not None:
        scores = (c.select(mask, scores, c.like(float("-inf"), scores)) if mask.dtype is T.b1
                  else c.add(scores, mask))
    return c.matmul(c.op("softmax", scores, axes=(scores.rank - 1,)), v)


def _attention4(c: Context, q: Value, k: Value, v: Value, mask: Value | None, causal: bool,
                scale: float | None) -> Value:
    lead = c.shape_out[:1]
    q, k, v = (c.broadcast(x, [*lead, *x.dims[1:]]) for x in (q, k, v))
    return c.op("attention", q, k, v, mask, causal=causal,
                scale=None if scale is None else float(scale))


@aten_op(aten.einsum.default)
def einsum(c: Context, equation: str, operands: Sequence[Value], path: Any = None) -> Value:
    return c.op("einsum", *operands, equation=equation.replace(" ", ""))
