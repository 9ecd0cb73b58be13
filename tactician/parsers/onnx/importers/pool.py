"""Pooling."""

from __future__ import annotations

from typing import Any

from ....ir.graph import Value
from ..context import Context
from ..errors import NodeProblem
from ..node import OnnxNode
from ..table import importer
from .conv import spatial


def _window(n: OnnxNode) -> dict[str, Any]:
    window = n.ints("kernel_shape")
    if n[0].rank != len(window) + 2:
        raise NodeProblem(f"kernel_shape {list(window)} needs an input of rank {len(window) + 2}, "
                          f"not {n[0].rank}")
    return {"window": window, "ceil": n.flag("ceil_mode"), **spatial(n, len(window))}


@importer("MaxPool")
def max_pool(c: Context, n: OnnxNode) -> Value | list[Value]:
    x, attrs = n[0], _window(n)
    order = n.attr("storage_order", 0)
    if n.wants(1):
        return c.ops("max_pool_indices", x, column_major=bool(order), **attrs)
    return c.op("pooling", x, fn="max", **attrs)


@importer("AveragePool", since=7)
def average_pool(c: Context, n: OnnxNode) -> Value:
    include = n.flag("count_include_pad")
    return c.op("pooling", n[0], fn="average", count_include_pad=include, **_window(n))


@importer("LpPool", since=2)
def lp_pool(c: Context, n: OnnxNode) -> Value:
    return c.op("pooling", n[0], fn="lp", p=n.attr("p", 2), **_window(n))


@importer("GlobalAveragePool")
def global_average_pool(c: Context, n: OnnxNode) -> Value:
    return c.reduce(n[0], "mean", range(2, n[0].rank))


@importer("GlobalMaxPool")
def global_max_pool(c: Context, n: OnnxNode) -> Value:
    return c.reduce(n[0], "max", range(2, n[0].rank))


@importer("GlobalLpPool", since=2)
def global_lp_pool(c: Context, n: OnnxNode) -> Value:
    x, p = n[0], n.attr("p", 2)
    axes = range(2, x.rank)
    if p in (1, 2):
        return c.reduce(x, f"l{p}", axes)
    total = c.reduce(c.binary("pow", c.unary("abs", x), c.like(p, x)), "sum", axes)
    return c.binary("pow", total, c.like(1.0 / p, x))


@importer("MaxUnpool", since=9)
def max_unpool(c: Context, n: OnnxNode) -> Value:
    window = n.ints("kernel_shape")
    count = len(window)
    pads = n.ints("pads", (0,) * (2 * count))
    shape = n.get(2)
    return c.op("max_unpool", n[0], n[1], None if shape is None else c.index(shape),
                window=window, stride=n.ints("strides", (1,) * count), pre=pads[:count],
                post=pads[count:])


@importer("MaxRoiPool")
def max_roi_pool(c: Context, n: OnnxNode) -> Value:
    height, width = n.ints("pooled_shape")
    return c.op("max_roi_pool", n[0], n[1], output_height=height, output_width=width,
                spatial_scale=n.attr("spatial_scale", 1.0))
