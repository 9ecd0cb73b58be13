"""Normalizations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ...ir import dims as D
from ...ir.graph import Value
from ..context import Context
from ..table import AtenProblem, aten_op

aten = torch.ops.aten


@aten_op(aten._native_batch_norm_legit_no_training.default)
def batch_norm_inference(c: Context, x: Value, weight: Value | None, bias: Value | None,
                         mean: Value, var: Value, momentum: float, eps: float) -> list[Any]:
    return [_batch_norm(c, x, weight, bias, mean, var, eps), None, None]


@aten_op(aten.batch_norm.default, note="not while training")
def batch_norm(c: Context, x: Value, weight: Value | None, bias: Value | None,
               mean: Value | None, var: Value | None, training: bool, momentum: float, eps: float,
               cudnn_enabled: bool = False) -> Value:
    if mean is None or var is None or training:
        axes = tuple(i for i in range(x.rank) if i != 1)
        if mean is not None:
            raise AtenProblem("batch norm that updates its statistics; call module.eval() first")
        params = _channels(c, x, weight, bias)
        return c.op("normalization", x, *params, axes=axes, epsilon=eps)
    return _batch_norm(c, x, weight, bias, mean, var, eps)


def _batch_norm(c: Context, x: Value, weight: Value | None, bias: Value | None, mean: Value,
                var: Value, eps: float) -> Value:
    values = [mean, var, *(v for v in (weight, bias) if v is not None)]
    if c.refit:
        return _batch_norm_apart(c, x, weight, bias, mean, var, eps)
    if all(v.const is not None for v in values):
        m, s = (np.asarray(v.const, np.float64) for v in (mean, var))
        factor = 1 / np.sqrt(s + eps)
        if weight is not None:
            factor = factor * np.asarray(weight.const, np.float64)
        shift = -m * factor
        if bias is not None:
            shift = shift + np.asarray(bias.const, np.float64)
        return c.op("scale", x, c.const(shift, x.dtype), c.const(factor, x.dtype), axis=1)
    center, spread = (c.cast(c.broadcast_channel(v, x.rank), x.dtype) for v in (mean, var))
    deviation = c.unary("sqrt", c.add(spread, c.like(eps, spread)))
    y = c.div(c.sub(x, center), deviation)
    if weight is not None:
        y = c.mul(y, c.cast(c.broadcast_channel(weight, x.rank), x.dtype))
    return y if bias is None else c.add(y, c.cast(c.broadcast_channel(bias, x.rank), x.dtype))


def _batch_norm_apart(c: Context, x: Value, weight: Value | None, bias: Value | None, mean: Value,
                      var: Value, eps: float) -> Value:
    """Factor and shift computed by the network, so that each weight can be replaced."""
    deviation = c.unary("sqrt", c.add(var, c.like(eps, var)))
    factor = c.div(c.like(1, var) if weight is None else weight, deviation)
    shift = c.unary("neg", c.mul(mean, factor))
    if bias is not None:
        shift = c.add(bias, shift)
    return c.op("scale", x, c.cast(shift, x.dtype), c.cast(factor, x.dtype), axis=1)


def _channels(c: Context, x: Value, *params: Value | None) -> list[Value | None]:
    """Per-channel parameters shaped to broadcast; scale of ones if only a bias is there."""
    scale, bias = params
    if scale is None and bias is not None:
        scale = c.full(bias.dims, 1, x.dtype)
    return [None if p is None else c.cast(c.broadcast_channel(p, x.rank), x.dtype)
            for p in (scale, bias)]


def _layer_norm(c: Context, x: Value, shape: Sequence[Any], weight: Value | None,
                bias: Value | None, eps: float) -> Value:
    axes = tuple(range(x.rank - len(shape), x.rank))
    if weight is None and bias is not None:
        weight = c.full(bias.dims, 1, x.dtype)
    params = [None if p is None else c.cast(p, x.dtype) for p in (weight, bias)]
    return c.op("normalization", x, *params, axes=axes, epsilon=eps)


@aten_op(aten.layer_norm.default)
def layer_norm(c: Context, x: Value, shape: Sequence[Any], weight: Value | None = None,
               bias: Value | None = None, eps: float = 1e-5, cudnn: bool = False) -> Value:
    return _layer_norm(c, x, shape, weight, bias, eps)


def _statistics(c: Context, x: Value, axes: Sequence[int], eps: float) -> list[Value | None]:
    """Mean and reciprocal deviation, where they are read."""
    if all(user.args[1] == 0 for user in c.node.users):
        return [None, None]
    mean = c.reduce(x, "mean", axes)
    apart = c.sub(x, mean)
    var = c.reduce(c.mul(apart, apart), "mean", axes)
    return [mean, c.unary("rsqrt", c.add(var, c.like(eps, var)))]


@aten_op(aten.native_layer_norm.default)
def native_layer_norm(c: Context, x: Value, shape: Sequence[Any], weight: Value | None,
                      bias: Value | None, eps: float) -> list[Any]:
    axes = range(x.rank - len(shape), x.rank)
    return [_layer_norm(c, x, shape, weight, bias, eps), *_statistics(c, x, axes, eps)]


@aten_op(aten.rms_norm.default)
def rms_norm(c: Context, x: Value, shape: Sequence[Any], weight: Value | None = None,
             eps: float | None = None) -> Value:
    axes = tuple(range(x.rank - len(shape), x.rank))
    epsilon = float(torch.finfo(c.result.dtype).eps) if eps is None else eps
    return c.op("normalization", x, weight, axes=axes, epsilon=epsilon, rms=True)


@aten_op(aten._fused_rms_norm.default, note="the first result")
def fused_rms_norm(c: Context, x: Value, shape: Sequence[Any], weight: Value | None = None,
                   eps: float | None = None) -> list[Any]:
    axes = tuple(range(x.rank - len(shape), x.rank))
    epsilon = float(torch.finfo(c.result[0].dtype).eps) if eps is None else eps
    return [c.op("normalization", x, weight, axes=axes, epsilon=epsilon, rms=True), None]


@aten_op(aten.group_norm.default)
def group_norm(c: Context, x: Value, groups: int, weight: Value | None = None,
               bias: Value | None = None, eps: float = 1e-5, cudnn: bool = False) -> Value:
    return c.op("normalization", x, *_channels(c, x, weight, bias),
                axes=tuple(range(2, x.rank)), groups=groups, epsilon=eps) if groups > 1 else c.op(
        "normalization", x, *_channels(c, x, weight, bias), axes=tuple(range(1, x.rank)),
        epsilon=eps)


@aten_op(aten.native_group_norm.default)
def native_group_norm(c: Context, x: Value, weight: Value | None, bias: Value | None, n: Any,
                      channels: Any, size: Any, groups: int, eps: float) -> list[Any]:
    rows = c.view(x, [n, groups, -1 if D.is_static(*x.dims) else D.product(x.dims[1:]) // groups])
    results = [None if v is None else c.squeeze(v, [2]) for v in _statistics(c, rows, [2], eps)]
    return [group_norm(c, x, groups, weight, bias, eps), *results]


@aten_op(aten.instance_norm.default, note="without running statistics")
def instance_norm(c: Context, x: Value, weight: Value | None, bias: Value | None,
                  mean: Value | None, var: Value | None, use_input: bool, momentum: float,
                  eps: float, cudnn: bool) -> Value:
    if not use_input and mean is not None and var is not None:
        return _batch_norm(c, x, weight, bias, mean, var, eps)
    return c.op("normalization", x, *_channels(c, x, weight, bias),
                axes=tuple(range(2, x.rank)), epsilon=eps)
