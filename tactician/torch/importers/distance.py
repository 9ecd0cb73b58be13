"""Distances between rows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from ...ir.graph import Value
from ..context import Context
from ..table import AtenProblem, aten_op

aten = torch.ops.aten


def _norm(c: Context, d: Value, p: float) -> Value:
    """The p-norm along the last axis."""
    axis = [d.rank - 1]
    if p in (1, 2):
        return c.reduce(d, f"l{int(p)}", axis, keepdims=False)
    if p == 0:
        other = c.cast(c.binary("ne", d, c.like(0, d)), d.dtype)
        return c.reduce(other, "sum", axis, keepdims=False)
    size = c.unary("abs", d)
    if math.isinf(p):
        return c.reduce(size, "max", axis, keepdims=False)
    total = c.reduce(c.binary("pow", size, c.like(p, size)), "sum", axis, keepdims=False)
    return c.binary("pow", total, c.like(1 / p, total))


@aten_op(aten._cdist_forward.default)
def cdist(c: Context, a: Value, b: Value, p: float, mode: Any = None) -> Value:
    return _norm(c, c.sub(c.unsqueeze(a, [a.rank - 1]), c.unsqueeze(b, [b.rank - 2])), p)


@aten_op(aten._pdist_forward.default, note="a static number of rows")
def pdist(c: Context, x: Value, p: float = 2.0) -> Value:
    count = x.dims[0]
    if not isinstance(count, int):
        raise AtenProblem("distances between a dynamic number of rows")
    a, b = (c.op("gather", x, c.const(i.astype(np.int64)), axis=0, batch_dims=0)
            for i in np.triu_indices(count, 1))
    return _norm(c, c.sub(a, b), p)
