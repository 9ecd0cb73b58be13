"""Reductions, arg-reductions, running sums."""

from __future__ import annotations

from ....ir import dtypes as T
from ....ir.graph import Value
from ..context import Context, axes_of, axis_of, require_ints
from ..node import TfNode
from ..table import importer

_FNS = {"Sum": "sum", "Mean": "mean", "Max": "max", "Min": "min", "Prod": "prod", "All": "all",
        "Any": "any", "EuclideanNorm": "l2"}


@importer(*_FNS)
def reduce(c: Context, n: TfNode) -> Value:
    x = n[0]
    axes = axes_of(list(require_ints(n[1], "the axes").reshape(-1)), x.rank)
    if not axes:
        return c.op("identity", x)
    keep = bool(n.attr("keep_dims", n.attr("keepdims", False)))
    return c.reduce(x, _FNS[n.op], axes, keepdims=keep)


@importer("ArgMax", "ArgMin")
def arg(c: Context, n: TfNode) -> Value:
    x = n[0]
    axis = 0 if len(n) < 2 else axis_of(int(require_ints(n[1], "the axis").item()), x.rank)
    y = c.op("argreduce", x, fn="max" if n.op == "ArgMax" else "min", axis=axis, keepdims=False,
             last=False)
    return c.cast(y, n.dtype("output_type", T.i64))


@importer("Cumsum", "Cumprod")
def cumulative(c: Context, n: TfNode) -> Value:
    return c.op("cumulative", n[0], c.index(n[1]), fn="sum" if n.op == "Cumsum" else "prod",
                exclusive=n.attr("exclusive", False), reverse=n.attr("reverse", False))
