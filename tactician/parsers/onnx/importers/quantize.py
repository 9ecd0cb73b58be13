"""Quantization."""

from __future__ import annotations

from typing import Any

from ....ir import dtypes as T
from ....ir.graph import Value
from ..context import Context, axis_of
from ..node import OnnxNode
from ..table import importer
from ..types import dtype_of
from .conv import check_kernel, spatial


def _placement(n: OnnxNode) -> dict[str, Any]:
    """Axis and block size; a scalar scale has no axis."""
    scale = n[1]
    axis, block = n.attr("axis", 1), n.attr("block_size", 0)
    if scale.rank == 0 or (scale.rank == 1 and scale.dims[0] == 1 and not block):
        return {"axis": 0, "block_size": 0}
    return {"axis": axis_of(axis, n[0].rank), "block_size": block}


def _scale_and_zero(c: Context, n: OnnxNode) -> tuple[Value, Value | None]:
    scale, zero = n[1], n.get(2)
    if n.attr("block_size", 0):
        return scale, zero
    return _scalar(c, scale), None if zero is None else _scalar(c, zero)


def _target(n: OnnxNode) -> T.DType:
    number = n.attr("output_dtype", 0)
    if number:
        return dtype_of(number)
    return n[2].dtype if n.has(2) else T.u8


@importer("QuantizeLinear", since=10)
def quantize_linear(c: Context, n: OnnxNode) -> Value:
    x = n[0]
    scale, zero = _scale_and_zero(c, n)
    precision = n.attr("precision", 0)
    if precision:
        x, scale = (c.cast(v, dtype_of(precision)) for v in (x, scale))
    elif not x.dtype.is_float or (
        x.dtype is not scale.dtype and scale.dtype is not T.f8e8m0
    ):
        x = c.cast(x, scale.dtype)
    to = _target(n)
    if not n.flag("saturate", True) and to.is_float:
        scaled = c.div(x, c.cast(scale, x.dtype))
        return c.op("cast", scaled, to=to, saturate=False)
    return c.op("quantize", x, scale, zero, to=to, **_placement(n))


@importer("DequantizeLinear", since=10)
def dequantize_linear(c: Context, n: OnnxNode) -> Value:
    scale, zero = _scale_and_zero(c, n)
    number = n.attr("output_dtype", 0)
    to = dtype_of(number) if number else (T.f32 if scale.dtype is T.f8e8m0 else scale.dtype)
    return c.op("dequantize", n[0], scale, zero, to=to, **_placement(n))


@importer("DynamicQuantizeLinear", since=11)
def dynamic_quantize_linear(c: Context, n: OnnxNode) -> list[Value]:
    return c.ops("dynamic_quantize_linear", n[0])


def _channels(c: Context, v: Value, axis: int, rank: int) -> Value:
    """A per-channel parameter, shaped to broadcast along ``axis``."""
    if v.rank == 0:
        return v
    return c.broadcast_channel(v, rank, axis) if v.rank == 1 else v


def requantize(
    c: Context, total: Value, scale: Value, y_scale: Value, y_zero: Value
) -> Value:
    """``total`` (i32, in units of ``scale``) quantized with ``y_scale`` and ``y_zero``."""
    real = c.mul(c.cast(total, T.f32), c.cast(scale, T.f32))
    return c.op("quantize", real, c.cast(_scalar(c, y_scale), T.f32), _scalar(c, y_zero),
                axis=0, to=y_zero.dtype)


def _scalar(c: Context, v: Value) -> Value:
    """A one-element vector as a scalar; anything else as it is."""
    return c.reshape(v, ()) if v.rank == 1 and v.dims[0] == 1 else v


@importer("QLinearMatMul", since=10)
def qlinear_matmul(c: Context, n: OnnxNode) -> Value:
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = (n[i] for i in range(8))
    rank = max(a.rank, b.rank)
    total = c.op("int_matmul", a, b, _scalar(c, a_zero), _scalar(c, b_zero))
    rows = c.unsqueeze(a_scale, [a_scale.rank]) if a_scale.rank == 1 and rank > 1 and \
        a_scale.dims[0] != 1 else a_scale
    return requantize(c, total, c.mul(_scalar(c, rows), _scalar(c, b_scale)), y_scale, y_zero)


@importer("QLinearConv", since=10)
def qlinear_conv(c: Context, n: OnnxNode) -> Value:
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero = (n[i] for i in range(8))
    total = c.op("int_conv", x, w, _scalar(c, x_zero), _scalar(c, w_zero),
                 groups=n.attr("group", 1), **spatial(n, check_kernel(n, w)))
    if n.has(8):
        total = c.add(total, c.broadcast_channel(n[8], x.rank))
    scale = c.mul(_scalar(c, x_scale), _channels(c, _scalar(c, w_scale), 1, x.rank))
    return requantize(c, total, scale, y_scale, y_zero)
