"""Activation functions."""

from __future__ import annotations

from typing import Any

import torch

from ...ir.graph import Value
from ..context import Context
from ..table import aten_op

aten = torch.ops.aten


def _plain(target: Any, fn: str) -> None:
    @aten_op(target)
    def activation(c: Context, x: Value) -> Value:
        return c.activation(x, fn)


_plain(aten.relu.default, "relu")
_plain(aten.mish.default, "mish")
_plain(aten.hardswish.default, "hard_swish")


@aten_op(aten.silu.default)
def silu(c: Context, x: Value) -> Value:
    return c.activation(x, "swish", alpha=1.0)


@aten_op(aten.relu6.default)
def relu6(c: Context, x: Value) -> Value:
    return c.activation(x, "clip", alpha=0.0, beta=6.0)


@aten_op(aten.hardsigmoid.default)
def hardsigmoid(c: Context, x: Value) -> Value:
    return c.activation(x, "hard_sigmoid", alpha=1 / 6, beta=0.5)


@aten_op(aten.hardtanh.default)
def hardtanh(c: Context, x: Value, low: float = -1.0, high: float = 1.0) -> Value:
    return c.activation(x, "clip", alpha=float(low), beta=float(high))


@aten_op(aten.gelu.default)
def gelu(c: Context, x: Value, approximate: str = "none") -> Value:
    return c.activation(x, "gelu_tanh" if approximate == "tanh" else "gelu_erf")


@aten_op(aten.leaky_relu.default)
def leaky_relu(c: Context, x: Value, slope: float = 0.01) -> Value:
    return c.activation(x, "leaky_relu", alpha=float(slope))


@aten_op(aten.elu.default)
def elu(c: Context, x: Value, alpha: float = 1.0, scale: float = 1.0,
        input_scale: float = 1.0) -> Value:
    if input_scale == 1:
        y = c.activation(x, "elu", alpha=float(alpha))
    else:
        y = c.activation(c.mul(x, c.like(input_scale, x)), "elu", alpha=float(alpha))
        plain = c.binary("gt", x, c.like(0, x))
        y = c.select(plain, x, y)
    return y if scale == 1 else c.mul(y, c.like(scale, y))


@aten_op(aten.softplus.default)
def softplus(c: Context, x: Value, beta: float = 1, threshold: float = 20) -> Value:
    scaled = x if beta == 1 else c.mul(x, c.like(beta, x))
    y = c.activation(scaled, "softplus", alpha=1.0, beta=1.0)
    y = y if beta == 1 else c.div(y, c.like(beta, y))
    return c.select(c.binary("gt", scaled, c.like(threshold, x)), x, y)


@aten_op(aten.log_sigmoid.default, aten.log_sigmoid_forward.default)
def log_sigmoid(c: Context, x: Value) -> Any:
    y = c.unary("neg", c.activation(c.unary("neg", x), "softplus", alpha=1.0, beta=1.0))
    return y if isinstance(c.result, torch.Tensor) else [y, None]


@aten_op(aten.threshold.default)
def threshold(c: Context, x: Value, bound: float, value: float) -> Value:
    return c.select(c.binary("gt", x, c.value(bound, x.dtype)), x, c.value(value, x.dtype))


@aten_op(aten.prelu.default, aten._prelu_kernel.default)
def prelu(c: Context, x: Value, slope: Value) -> Value:
    if slope.rank == 1 and x.rank > 1:
        slope = c.broadcast_channel(slope, x.rank)
    elif slope.rank == 1 and x.rank <= 1:
        slope = c.reshape(slope, []) if x.rank == 0 else slope
    return c.op("prelu", x, slope)


@aten_op(aten.glu.default)
def glu(c: Context, x: Value, dim: int = -1) -> Value:
    axis = dim % x.rank
    half = x.dims[axis] // 2
    a, b = (c.slice_axis(x, axis, start, half) for start in (0, half))
    return c.mul(a, c.unary("sigmoid", b))


@aten_op(aten._softmax.default)
def softmax(c: Context, x: Value, dim: int, half_to_float: Any = False) -> Value:
    return _softmax(c, x, dim, False)


@aten_op(aten.softmax.int)
def softmax_int(c: Context, x: Value, dim: int, dtype: Any = None) -> Value:
    return _softmax(c, x, dim, False)


@aten_op(aten._log_softmax.default)
def log_softmax(c: Context, x: Value, dim: int, half_to_float: bool = False) -> Value:
    return _softmax(c, x, dim, True)


@aten_op(aten.log_softmax.int)
def log_softmax_int(c: Context, x: Value, dim: int, dtype: Any = None) -> Value:
    return _softmax(c, x, dim, True)


def _softmax(c: Context, x: Value, dim: int, log: bool) -> Value:
    x = c.value(x, c.dtype)
    if not x.rank:
        return c.reshape(_softmax(c, c.reshape(x, [1]), 0, log), [])
    return c.op("softmax", x, axes=(dim % x.rank,), log=log)
