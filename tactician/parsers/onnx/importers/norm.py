"""Normalizations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ....ir import dtypes as T
from ....ir.graph import Value
from ..context import Context, axes_of, axis_of
from ..errors import NodeProblem
from ..node import OnnxNode
from ..table import importer
from ..types import dtype_of


@importer("BatchNormalization", since=7, until=8)
def batch_norm_spatial(c: Context, n: OnnxNode) -> Value:
    if not n.flag("spatial", True):
        raise NodeProblem("spatial=0 is not supported; re-export with opset 9 or newer",
                          "UNSUPPORTED_NODE_ATTR")
    n.ignore("momentum")
    return _batch_norm(c, n)


@importer("BatchNormalization", since=9, until=13)
def batch_norm_9(c: Context, n: OnnxNode) -> Value:
    n.ignore("momentum")
    return _batch_norm(c, n)


@importer("BatchNormalization", since=14)
def batch_norm(c: Context, n: OnnxNode) -> Value | list[Value]:
    if n.flag("training_mode"):
        return _batch_norm_training(c, n)
    n.ignore("momentum")
    return _batch_norm(c, n)


def _batch_norm(c: Context, n: OnnxNode) -> Value:
    x, epsilon = n[0], n.attr("epsilon", 1e-5)
    if x.rank < 2:
        raise NodeProblem(f"needs an input of rank 2 or more, not {x.rank}")
    arrays = [n.const(i) for i in range(1, 5)]
    if all(a is not None for a in arrays) and x.dtype.is_float:
        shift, factor = folded_batch_norm(arrays, epsilon)
        return c.op("scale", x, c.const(shift, x.dtype, f"{n.name}/shift"),
                    c.const(factor, x.dtype, f"{n.name}/factor"), axis=1)
    return _apply_statistics(c, x, [n[i] for i in range(1, 5)], epsilon)


def folded_batch_norm(arrays: Sequence[Any], epsilon: float) -> tuple[Any, Any]:
    """Shift and factor that scale, bias, mean and variance come to, in f64."""
    scale, bias, mean, var = (np.asarray(a, np.float64) for a in arrays)
    factor = scale / np.sqrt(var + epsilon)
    return bias - mean * factor, factor


def _apply_statistics(c: Context, x: Value, params: list[Value], epsilon: float) -> Value:
    scale, bias, mean, var = (
        c.cast(c.broadcast_channel(p, x.rank), x.dtype) for p in params)
    deviation = c.unary("sqrt", c.add(var, c.like(epsilon, var)))
    return c.add(c.mul(c.div(c.sub(x, mean), deviation), scale), bias)


def _batch_norm_training(c: Context, n: OnnxNode) -> list[Value]:
    """Normalizes by the batch's own statistics and updates the running ones."""
    x, momentum, epsilon = n[0], n.attr("momentum", 0.9), n.attr("epsilon", 1e-5)
    axes = [i for i in range(x.rank) if i != 1]
    mean = c.reduce(x, "mean", axes)
    off = c.sub(x, mean)
    var = c.reduce(c.mul(off, off), "mean", axes)
    flat = [c.squeeze(v, axes) for v in (mean, var)]
    out = [_apply_statistics(c, x, [n[1], n[2], *flat], epsilon)]
    for old, new in zip((n[3], n[4]), flat, strict=True):
        kept = c.mul(old, c.like(momentum, old))
        out.append(c.add(kept, c.mul(c.cast(new, old.dtype), c.like(1 - momentum, old))))
    return out


@importer("InstanceNormalization")
def instance_norm(c: Context, n: OnnxNode) -> Value:
    x = n[0]
    n.ignore("consumed_inputs")
    scale, bias = (c.broadcast_channel(n[i], x.rank) for i in (1, 2))
    return c.op("normalization", x, scale, bias, axes=tuple(range(2, x.rank)),
                epsilon=n.attr("epsilon", 1e-5))


@importer("GroupNormalization", since=21)
def group_norm(c: Context, n: OnnxNode) -> Value:
    x = n[0]
    n.ignore("stash_type")  # statistics are always computed in f32 or better
    scale, bias = (c.broadcast_channel(n[i], x.rank) for i in (1, 2))
    return c.op("normalization", x, scale, bias, axes=tuple(range(2, x.rank)),
                groups=n.attr("num_groups"), epsilon=n.attr("epsilon", 1e-5))


@importer("GroupNormalization", since=18, until=20)
def group_norm_per_group(c: Context, n: OnnxNode) -> Value:
    """Opset 18 gives scale and bias per group, not per channel."""
    x, groups = n[0], n.attr("num_groups")
    channels = x.dims[1]
    if not isinstance(channels, int) or channels % groups:
        raise NodeProblem(f"{channels} channels cannot be split into {groups} groups")
    repeat = c.ints([channels // groups])
    params = []
    for i in (1, 2):
        spread = c.op("tile", c.unsqueeze(n[i], [1]), c.concat([c.ints([1]), repeat]))
        params.append(c.broadcast_channel(c.reshape(spread, [channels]), x.rank))
    return c.op("normalization", x, *params, axes=tuple(range(2, x.rank)), groups=groups,
                epsilon=n.attr("epsilon", 1e-5))


def stash_type(n: OnnxNode) -> T.DType:
    return dtype_of(n.attr("stash_type", 1))


@importer("LayerNormalization", since=17)
def layer_norm(c: Context, n: OnnxNode) -> list[Value]:
    x, epsilon = n[0], n.attr("epsilon", 1e-5)
    stash = stash_type(n)
    axes = tuple(range(axis_of(n.attr("axis", -1), x.rank), x.rank))
    out = [c.op("normalization", x, n[1], n.get(2), axes=axes, epsilon=epsilon)]
    if n.wants(1) or n.wants(2):
        wide = c.cast(x, stash)
        mean = c.reduce(wide, "mean", axes)
        off = c.sub(wide, mean)
        var = c.reduce(c.mul(off, off), "mean", axes)
        inverse = c.unary("recip", c.unary("sqrt", c.add(var, c.like(epsilon, var))))
        out += [mean, inverse]
    return out


@importer("RMSNormalization", since=23)
def rms_norm(c: Context, n: OnnxNode) -> Value:
    x = n[0]
    n.ignore("stash_type")
    axes = tuple(range(axis_of(n.attr("axis", -1), x.rank), x.rank))
    return c.op("normalization", x, n[1], axes=axes, epsilon=n.attr("epsilon", 1e-5), rms=True)


@importer("LpNormalization")
def lp_norm(c: Context, n: OnnxNode) -> Value:
    x, p = n[0], n.attr("p", 2)
    if p not in (1, 2):
        raise NodeProblem(f"p is {p}; expected 1 or 2")
    length = c.reduce(x, f"l{p}", (axis_of(n.attr("axis", -1), x.rank),))
    zero = c.like(0, x)
    empty = c.binary("eq", length, zero)
    return c.select(empty, zero, c.div(x, c.select(empty, c.like(1, x), length)))


@importer("MeanVarianceNormalization", since=9)
def mvn(c: Context, n: OnnxNode) -> Value:
    x = n[0]
    axes = axes_of(n.ints("axes", (0, 2, 3)), x.rank)
    off = c.sub(x, c.reduce(x, "mean", axes))
    var = c.reduce(c.mul(off, off), "mean", axes)
    return c.div(off, c.add(c.unary("sqrt", var), c.like(1e-9, x)))


@importer("LRN")
def lrn(c: Context, n: OnnxNode) -> Value:
    return c.op("lrn", n[0], size=n.attr("size"), alpha=n.attr("alpha", 1e-4),
                beta=n.attr("beta", 0.75), k=n.attr("bias", 1.0))
