"""Reading and writing at indices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ...ir import dims as D
from ...ir import dtypes as T
from ...ir.graph import Value
from ..context import Context, Operand, axis_of
from ..table import AtenProblem, aten_op

aten = torch.ops.aten


@aten_op(aten.embedding.default)
def embedding(c: Context, weight: Value, at: Value, *args: Any, **kwargs: Any) -> Value:
    return c.op("gather", weight, c.indices(at), axis=0, batch_dims=0)


@aten_op(aten.index_select.default)
def index_select(c: Context, x: Value, dim: int, at: Value) -> Value:
    if not x.rank:
        return x
    if not at.rank:
        at = c.reshape(at, [1])
    return c.op("gather", x, c.indices(at), axis=axis_of(dim, x.rank), batch_dims=0)


@aten_op(aten.gather.default)
def gather(c: Context, x: Value, dim: int, at: Value, *, sparse_grad: bool = False) -> Value:
    if not x.rank or not at.rank:
        x = c.reshape(x, [1]) if not x.rank else x
        lone = not at.rank
        y = c.op("gather", x, c.indices(at), axis=0, batch_dims=0)
        return c.reshape(y, []) if lone else y
    axis = axis_of(dim, x.rank)
    for i, size in enumerate(at.dims):
        if i != axis and size != x.dims[i]:
            x = c.slice_axis(x, i, 0, size)
    return c.op("gather_elements", x, c.indices(at), axis=axis)


@aten_op(aten.index.Tensor, aten._unsafe_index.Tensor)
def index(c: Context, x: Value, indices: Sequence[Value | None]) -> Value:
    """Advanced indexing: adjacent index tensors take their own place, others go first."""
    indices = _without_masks(c, indices)
    axes = [i for i, v in enumerate(indices) if v is not None]
    tensors = [c.indices(v) for v in indices if v is not None]
    if len(axes) == 1:
        at = tensors[0]
        return c.op("gather", x, at, axis=axes[0], batch_dims=0)
    adjacent = axes == list(range(axes[0], axes[-1] + 1))
    perm = [*axes, *(i for i in range(x.rank) if i not in axes)]
    y = c.op("gather_nd", c.transpose(x, perm), _joined(c, x, axes, tensors), batch_dims=0)
    lead = max(t.rank for t in tensors)
    if not adjacent or axes[0] == 0:
        return y
    before = axes[0]
    order = [*range(lead, lead + before), *range(lead), *range(lead + before, y.rank)]
    return c.transpose(y, order)


def _without_masks(c: Context, indices: Sequence[Value | None]) -> list[Value | None]:
    """Index tensors with the places of a mask's true elements instead of the mask."""
    out: list[Value | None] = []
    for v in indices:
        if v is None or (v.dtype is not T.b1 and v.dtype is not T.u8):
            out.append(v)
            continue
        if not v.rank:
            raise AtenProblem("a boolean scalar as index; use torch.where")
        at = c.places(v)
        out += [c.squeeze(c.slice_axis(at, 0, i, 1), [0]) for i in range(v.rank)]
    return out


def _joined(c: Context, x: Value, axes: Sequence[int], tensors: Sequence[Value]) -> Value:
    """Index tensors broadcast against each other, as one with a last dimension for the axes."""
    rank = max(t.rank for t in tensors)
    shape = _common(tensors, rank)
    parts = [c.unsqueeze(c.broadcast(c.view(t, [*[1] * (rank - t.rank), *t.dims]), shape), [rank])
             for t in tensors]
    return c.concat(parts, rank)


def _common(tensors: Sequence[Value], rank: int) -> list[D.DimLike]:
    shape: list[D.DimLike] = [1] * rank
    for t in tensors:
        for i, d in enumerate(reversed(t.dims)):
            if d != 1:
                shape[rank - 1 - i] = d
    return shape


@aten_op(aten.index_put.default)
def index_put(c: Context, x: Value, indices: Sequence[Value | None], values: Value,
              accumulate: bool = False) -> Value:
    if len(indices) == 1 and indices[0] is not None and indices[0].dtype is T.b1:
        mask = indices[0]
        if mask.rank and not accumulate and (not values.rank or values.dims == (1,)):
            mask = c.view(mask, [*mask.dims, *[1] * (x.rank - mask.rank)])
            return c.select(mask, c.reshape(values, []), x)
    indices = _without_masks(c, indices)
    axes = [i for i, v in enumerate(indices) if v is not None]
    tensors = [c.indices(v) for v in indices if v is not None]
    if any(x.dtype is t for t in (T.b1,)) and accumulate:
        raise AtenProblem("sums of booleans")
    perm = [*axes, *(i for i in range(x.rank) if i not in axes)]
    at = _joined(c, x, axes, tensors)
    moved = c.transpose(x, perm)
    lead = at.rank - 1
    adjacent = axes == list(range(axes[0], axes[-1] + 1))
    rest = list(moved.dims[len(axes):])
    want = [*at.dims[:-1], *rest]
    if adjacent and axes[0] > 0:
        before = axes[0]
        shape = [*rest[:before], *at.dims[:-1], *rest[before:]]
        values = _spread(c, values, shape)
        order = [*range(before, before + lead), *range(before),
                 *range(before + lead, len(shape))]
        values = c.transpose(values, order)
    else:
        values = _spread(c, values, want)
    y = c.op("scatter_nd", moved, at, values, reduction="add" if accumulate else "none")
    back = [perm.index(i) for i in range(x.rank)]
    return c.transpose(y, back)


def _spread(c: Context, values: Value, shape: Sequence[D.DimLike]) -> Value:
    """Values in the shape of where they go; of sizes that data decide torch says they agree."""
    if values.rank == len(shape) and all(
            d == s or (isinstance(d, D.Dim) and isinstance(s, D.Dim))
            for d, s in zip(values.dims, shape, strict=True)):
        return c.view(values, shape)
    return c.broadcast(values, shape)


def _scatter(c: Context, x: Value, dim: int, at: Value, updates: Operand,
             reduction: str) -> Value:
    if not isinstance(updates, Value):
        updates = c.full(at.dims, updates, x.dtype)
    lone = not x.rank
    if lone:
        x = c.reshape(x, [1])
    if not at.rank:
        at = c.reshape(at, [1])
    if not updates.rank:
        updates = c.reshape(updates, [1])
    for i, size in enumerate(at.dims):
        updates = c.slice_axis(updates, i, 0, size)
    y = c.op("scatter_elements", x, c.indices(at), updates, axis=axis_of(dim, x.rank),
             reduction=reduction)
    return c.reshape(y, []) if lone else y


@aten_op(aten.scatter.src, aten.scatter.value)
def scatter(c: Context, x: Value, dim: int, at: Value, source: Operand) -> Value:
    return _scatter(c, x, dim, at, source, "none")


@aten_op(aten.scatter_add.default)
def scatter_add(c: Context, x: Value, dim: int, at: Value, source: Value) -> Value:
    return _scatter(c, x, dim, at, source, "add")


@aten_op(aten.scatter.reduce, aten.scatter.value_reduce)
def scatter_with(c: Context, x: Value, dim: int, at: Value, source: Operand, *,
                 reduce: str) -> Value:
    return _scatter(c, x, dim, at, source, {"add": "add", "multiply": "mul"}[reduce])


_REDUCTIONS = {"sum": "add", "mean": "add", "prod": "mul", "amax": "max", "amin": "min"}


@aten_op(aten.scatter_reduce.two)
def scatter_reduce(c: Context, x: Value, dim: int, at: Value, source: Value, reduce: str, *,
                   include_self: bool = True) -> Value:
    base = x
    if not include_self:  # what is written to starts from the reduction's neutral element
        base = _scatter(c, x, dim, at, _neutral(reduce, x), "none")
    y = _scatter(c, base, dim, at, source, _REDUCTIONS[reduce])
    if reduce != "mean":
        return y
    count = c.full(x.dims, 1, x.dtype)
    if not include_self:
        count = _scatter(c, count, dim, at, 0, "none")
    count = _scatter(c, count, dim, at, 1, "add")
    return c.binary("div" if x.dtype.is_float else "floordiv", y, count)


def _neutral(reduce: str, x: Value) -> Any:
    if reduce not in ("amax", "amin"):
        return 1 if reduce == "prod" else 0
    if x.dtype.is_float:
        return -math.inf if reduce == "amax" else math.inf
    limits = np.iinfo(x.dtype.np)
    return int(limits.min if reduce == "amax" else limits.max)


@aten_op(aten.masked_scatter.default)
def masked_scatter(c: Context, x: Value, mask: Value, source: Value) -> Value:
    """The k-th true element of the mask takes the k-th element of the source."""
    shape = c.shape_out
    mask = c.broadcast(c.flag(mask), shape)
    if source.numel == 0:
        return c.broadcast(x, shape)
    flat = c.cast(c.view(mask, [D.product(shape)]), T.i64)
    place = c.sub(c.op("cumulative", flat, c.const(0, T.i64), fn="sum"), c.like(1, flat))
    place = c.binary("max", place, c.like(0, place))
    if isinstance(source.numel, int):
        place = c.binary("min", place, c.like(source.numel - 1, place))
    taken = c.op("gather", c.view(source, [source.numel]), place, axis=0, batch_dims=0)
    return c.select(mask, c.view(taken, shape), c.broadcast(x, shape))


@aten_op(aten.as_strided.default, aten.as_strided_copy.default,
         note="static sizes, of a contiguous tensor")
def as_strided(c: Context, x: Value, size: Sequence[Any], stride: Sequence[Any],
               offset: Any = None) -> Value:
    given = c.node.args[0].meta["val"]
    if not D.is_static(*x.dims, *size, *stride, offset or 0) or not given.is_contiguous() \
            or given.storage_offset():
        raise AtenProblem("as_strided with dynamic sizes or of a tensor that is not contiguous")
    at = np.full([int(n) for n in size], int(offset or 0), np.int64)
    for axis, (n, step) in enumerate(zip(size, stride, strict=True)):
        along = np.arange(int(n), dtype=np.int64) * int(step)
        at += along.reshape([-1 if i == axis else 1 for i in range(at.ndim)])
    if at.size and at.max() >= x.numel:
        raise AtenProblem("as_strided beyond the end of its tensor")
    return c.op("gather", c.view(x, [x.numel]), c.const(at), axis=0, batch_dims=0)


@aten_op(aten._embedding_bag.default, aten._embedding_bag_forward_only.default,
         note="the first result")
def embedding_bag(c: Context, weight: Value, at: Value, offsets: Value, scale_grad: bool = False,
                  mode: int = 0, sparse: bool = False, factors: Value | None = None,
                  last_offset: bool = False, padding: int = -1) -> list[Any]:
    """Sums (mode 0) and means (1) as products with the matrix of who is in which bag."""
    count = at.dims[0]
    begin = c.indices(offsets)
    bags = c.shape_out[0]
    end = c.sizes([count]) if not last_offset else None
    following = c.slice_axis(begin, 0, 1, begin.dims[0] - 1)
    end = following if end is None else c.concat([following, end])
    begin = c.slice_axis(begin, 0, 0, bags)
    place = c.op("range", c.const(0, T.i64), c.reshape(c.sizes([count]), []), c.const(1, T.i64))
    place = c.unsqueeze(place, [0])
    begin, end = c.unsqueeze(begin, [1]), c.unsqueeze(end, [1])
    inside = c.binary("and", c.binary("ge", place, begin), c.binary("lt", place, end))
    if padding >= 0:
        other = c.binary("ne", c.indices(at), c.like(padding, c.indices(at)))
        inside = c.binary("and", inside, c.unsqueeze(other, [0]))
    rows = c.op("gather", weight, c.indices(at), axis=0, batch_dims=0)
    if mode == 2:
        spread = c.select(c.unsqueeze(inside, [2]), c.unsqueeze(rows, [0]),
                          c.like(-math.inf, rows))
        top = c.reduce(spread, "max", [1], keepdims=False)
        filled = c.reduce(inside, "any", [1])
        return [c.select(filled, top, c.like(0, top)), None, None, None]
    member = c.cast(inside, weight.dtype)
    weighted = member if factors is None else c.mul(member, c.unsqueeze(factors, [0]))
    y = c.matmul(weighted, rows)
    if mode == 1:
        size = c.reduce(member, "sum", [1])
        y = c.div(y, c.binary("max", size, c.like(1, size)))
    return [y, None, None, None]


@aten_op(aten.slice_scatter.default, note="static sizes")
def slice_scatter(c: Context, x: Value, source: Value, dim: int = 0, start: Any = None,
                  end: Any = None, step: int = 1) -> Value:
    axis = axis_of(dim, x.rank)
    extent, count = x.dims[axis], source.dims[axis]
    source = c.value(source, x.dtype)
    if source.dims == x.dims and step == 1:
        return source
    if not isinstance(extent, int) or not isinstance(count, int):
        raise AtenProblem("slice_scatter along a dimension of dynamic size")
    first = slice(start, end, step).indices(extent)[0]
    if step == 1:
        parts = [c.slice_axis(x, axis, 0, first), source,
                 c.slice_axis(x, axis, first + count, extent - first - count)]
        return c.concat([p for p in parts if p.dims[axis] != 0], axis)
    shape = [1] * x.rank
    shape[axis] = count
    at = c.const((first + np.arange(count, dtype=np.int64) * step).reshape(shape))
    return _scatter(c, x, dim, c.broadcast(at, source.dims), source, "none")


@aten_op(aten.select_scatter.default, note="static sizes")
def select_scatter(c: Context, x: Value, source: Value, dim: int, index: int) -> Value:
    axis = axis_of(dim, x.rank)
    extent = x.dims[axis]
    if not isinstance(extent, int):
        raise AtenProblem("select_scatter along a dimension of dynamic size")
    index = index + extent if index < 0 else index
    return slice_scatter(c, x, c.unsqueeze(source, [axis]), axis, index, index + 1)
