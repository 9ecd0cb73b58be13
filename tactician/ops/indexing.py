"""Gather and scatter in all forms, one-hot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..ir import dims as D
from ..ir import dtypes as T
from ..ir import expr as E
from ..ir.graph import Node, TensorType, Value
from . import _math as M
from . import _shapes as S
from .registry import Kind, Op, OpError, register


def _index_operand(node: Node, i: int) -> Value:
    v = S.operand(node, i)
    if not v.dtype.is_int:
        raise OpError(f"indices {S.show(v)} must be integers; cast them first")
    return v


def wrapped_index(at: E.Expr, size: D.DimLike) -> E.Expr:
    """An index loaded from a tensor as a safe i64: negative ones count from the end, others
    outside of the axis read the nearest element."""
    at = E.cast(at, T.i64)
    n = E.idx(size)
    at = E.select(E.compare("lt", at, E.idx(0)), E.add(at, n), at)
    return E.binary("max", E.binary("min", at, E.idx(size - 1)), E.idx(0))


def index_of(idx: Value, at: Sequence[E.Expr], size: D.DimLike) -> E.Expr:
    """The index that ``idx[at]`` holds for an axis of ``size``: a constant if ``idx`` is one
    number, a bare load if its contents are known to be in range, else `wrapped_index`."""
    known = idx.const.reshape(-1) if idx.const is not None else None
    if known is not None and known.size and D.is_static(size):
        low, high = int(known.min()), int(known.max())
        if low >= 0 and high < int(size):
            return E.idx(low) if low == high else E.cast(E.load(idx, at), T.i64)
        if low == high and -int(size) <= low < 0:
            return E.idx(low + int(size))
    return wrapped_index(E.load(idx, at), size)


def wrapped_indices(at: Any, size: int) -> Any:
    """`wrapped_index` in numpy."""
    at = np.asarray(at).astype(np.int64)
    return np.clip(np.where(at < 0, at + size, at), 0, max(size - 1, 0))


@dataclass(frozen=True)
class GatherAttrs:
    """``axis``: what the indices select along; ``batch_dims``: leading axes shared by data and
    indices."""

    axis: int = 0
    batch_dims: int = 0


@register
class Gather(Op):
    """``x[..., idx, ...]`` along an axis. Negative indices count from the end; others out of
    range read the nearest element."""

    name = "gather"
    kind = Kind.INDEX_MAP
    Attrs = GatherAttrs
    symbolic = True
    symbolic_floats = True

    def infer(self, node: Node) -> Sequence[TensorType]:
        x, idx, batch = S.operand(node, 0), _index_operand(node, 1), node.attrs.batch_dims
        axis = S.axis_of(node.attrs.axis, x.rank)
        if not 0 <= batch <= min(axis, idx.rank):
            raise OpError(f"{batch} batch dimensions do not fit axis {axis} of {S.show(x)} and "
                          f"indices {S.show(idx)}")
        lead = tuple(
            S.unify(x.dims[k], idx.dims[k], node, f"batch sizes of {S.show(x)} and {S.show(idx)}")
            for k in range(batch)
        )
        shape = lead + x.dims[batch:axis] + idx.dims[batch:] + x.dims[axis + 1:]
        return [TensorType(x.dtype, shape)]

    def reference(self, node: Node, *inputs: Any) -> Any:
        (x, idx), batch = inputs, node.attrs.batch_dims
        axis = node.attrs.axis % x.ndim
        at = wrapped_indices(idx, x.shape[axis])
        if batch == 0:
            return np.take(x, at, axis=axis)
        lead = x.shape[:batch]
        flat_x = x.reshape(-1, *x.shape[batch:])
        flat_i = at.reshape(flat_x.shape[0], *at.shape[batch:])
        rows = [np.take(a, i, axis=axis - batch) for a, i in zip(flat_x, flat_i, strict=True)]
        shape = x.shape[batch:axis] + at.shape[batch:] + x.shape[axis + 1:]
        out = np.array(rows, dtype=x.dtype) if rows else np.zeros((0, *shape), x.dtype)
        return out.reshape(*lead, *shape)

    def stages(self, node: Node) -> list[E.Stage] | None:
        x, idx, batch = S.operand(node, 0), S.operand(node, 1), node.attrs.batch_dims
        axis = node.attrs.axis % x.rank
        vs = E.iter_vars(node.output.dims)
        inner = idx.rank - batch
        at = index_of(idx, (*vs[:batch], *vs[axis:axis + inner]), x.dims[axis])
        index = (*vs[:axis], at, *vs[axis + inner:])
        return [E.Stage(node.output, vs, E.load(x, index))]


@dataclass(frozen=True)
class GatherElementsAttrs:
    """``axis``: along which the indices select."""

    axis: int = 0


def _check_elements(node: Node, x: Value, idx: Value, axis: int) -> None:
    if idx.rank != x.rank:
        raise OpError(f"{S.show(x)} and indices {S.show(idx)} must have one rank")
    for k, (d, n) in enumerate(zip(x.dims, idx.dims, strict=True)):
        if k != axis and D.is_static(d, n) and int(n) > int(d):
            raise OpError(f"indices {S.show(idx)} reach beyond axis {k} of {S.show(x)}")


@register
class GatherElements(Op):
    """``out[i][j][k] = x[i][idx[i][j][k]][k]`` (axis 1)."""

    name = "gather_elements"
    kind = Kind.INDEX_MAP
    Attrs = GatherElementsAttrs

    def infer(self, node: Node) -> Sequence[TensorType]:
        x, idx = S.operand(node, 0), _index_operand(node, 1)
        _check_elements(node, x, idx, S.axis_of(node.attrs.axis, x.rank))
        return [TensorType(x.dtype, idx.dims)]

    def reference(self, node: Node, *inputs: Any) -> Any:
        x, idx = inputs
        axis = node.attrs.axis % x.ndim
        at = list(np.indices(idx.shape, sparse=True))
        at[axis] = wrapped_indices(idx, x.shape[axis])
        return x[tuple(at)]

    def stages(self, node: Node) -> list[E.Stage] | None:
        x, idx = S.operand(node, 0), S.operand(node, 1)
        axis = node.attrs.axis % x.rank
        vs = E.iter_vars(node.output.dims)
        at: list[E.Expr] = list(vs)
        at[axis] = index_of(idx, vs, x.dims[axis])
        return [E.Stage(node.output, vs, E.load(x, at))]


@dataclass(frozen=True)
class GatherNDAttrs:
    """``batch_dims``: leading axes shared by data and indices."""

    batch_dims: int = 0


def _tuple_length(idx: Value, x: Value, batch: int) -> int:
    if idx.rank < 1 or isinstance(idx.dims[-1], D.Dim):
        raise OpError(f"the last size of indices {S.show(idx)} must be known when building")
    k = int(idx.dims[-1])
    if not 0 <= batch < idx.rank or not 0 <= k <= x.rank - batch:
        raise OpError(f"index tuples of {k} with {batch} batch dimensions do not fit {S.show(x)}")
    return k


@register
class GatherND(Op):
    """Slices of ``x`` named by index tuples along the last axis of ``idx``."""

    name = "gather_nd"
    kind = Kind.INDEX_MAP
    Attrs = GatherNDAttrs

    def infer(self, node: Node) -> Sequence[TensorType]:
        x, idx, batch = S.operand(node, 0), _index_operand(node, 1), node.attrs.batch_dims
        k = _tuple_length(idx, x, batch)
        for i in range(batch):
            S.unify(x.dims[i], idx.dims[i], node, f"batch sizes of {S.show(x)} and {S.show(idx)}")
        return [TensorType(x.dtype, idx.dims[:-1] + x.dims[batch + k:])]

    def reference(self, node: Node, *inputs: Any) -> Any:
        (x, idx), batch = inputs, node.attrs.batch_dims
        k = idx.shape[-1]
        lead = idx.shape[:-1]
        at: list[Any] = [
            np.arange(lead[i]).reshape([-1 if j == i else 1 for j in range(len(lead))])
            for i in range(batch)
        ]
        at += [wrapped_indices(idx[..., j], x.shape[batch + j]) for j in range(k)]
        if not at:
            return np.broadcast_to(x, lead + x.shape)
        picked = x[tuple(at)]
        return np.broadcast_to(picked, lead + x.shape[batch + k:])

    def stages(self, node: Node) -> list[E.Stage] | None:
        x, idx, batch = S.operand(node, 0), S.operand(node, 1), node.attrs.batch_dims
        k, n = int(idx.dims[-1]), idx.rank - 1  # type: ignore[arg-type]
        vs = E.iter_vars(node.output.dims)
        at = [
            wrapped_index(E.load(idx, (*vs[:n], E.idx(j))), x.dims[batch + j]) for j in range(k)
        ]
        return [E.Stage(node.output, vs, E.load(x, (*vs[:batch], *at, *vs[n:])))]


# --- scatter ------------------------------------------------------------------------------

REDUCTIONS = ("none", "add", "mul", "min", "max")
_COMBINE: dict[str, np.ufunc] = {
    "add": np.add, "mul": np.multiply, "min": np.minimum, "max": np.maximum,
}


def _check_scatter(node: Node) -> tuple[Value, Value, Value]:
    x, idx, upd = S.operand(node, 0), _index_operand(node, 1), S.operand(node, 2)
    if x.dtype is not upd.dtype:
        raise OpError(f"{S.show(x)} and updates {S.show(upd)} must have one type")
    if node.attrs.reduction not in REDUCTIONS:
        raise OpError(f"unknown reduction {node.attrs.reduction!r}; use one of {REDUCTIONS}")
    return x, idx, upd


def _in_range(at: Any, size: int) -> Any:
    at = np.asarray(at).astype(np.int64)
    at = np.where(at < 0, at + size, at)
    if at.size and (at.min() < 0 or at.max() >= size):
        raise IndexError(f"an index is out of range for an axis of {size} elements")
    return at


def _scatter(x: Any, at: tuple[Any, ...], upd: Any, reduction: str) -> Any:
    """Updates in row-major order; sums of short floats accumulate in f32."""
    if reduction == "none":
        out = x.copy()
        out[at] = upd
        return out
    out = np.array(M.widen(x))
    _COMBINE[reduction].at(out, at, M.widen(upd))
    return out.astype(x.dtype)


@dataclass(frozen=True)
class ScatterElementsAttrs:
    """``axis``: along which the indices select; ``reduction``: how updates combine."""

    axis: int = 0
    reduction: str = "none"


@register
class ScatterElements(Op):
    """A copy of ``x`` with ``x[i][idx[i][j]] = upd[i][j]`` (axis 1), or combined with it."""

    name = "scatter_elements"
    kind = Kind.OPAQUE
    Attrs = ScatterElementsAttrs

    def infer(self, node: Node) -> Sequence[TensorType]:
        x, idx, upd = _check_scatter(node)
        _check_elements(node, x, idx, S.axis_of(node.attrs.axis, x.rank))
        if upd.rank != idx.rank:
            raise OpError(f"indices {S.show(idx)} and updates {S.show(upd)} must have one shape")
        for a, b in zip(idx.dims, upd.dims, strict=True):
            S.unify(a, b, node, f"sizes of indices {S.show(idx)} and updates {S.show(upd)}")
        return [TensorType(x.dtype, x.dims)]

    def reference(self, node: Node, *inputs: Any) -> Any:
        x, idx, upd = inputs
        if not x.ndim:
            return _scatter(x.reshape(1), (_in_range(idx, 1).reshape(1),), upd.reshape(1),
                            node.attrs.reduction).reshape(())
        axis = node.attrs.axis % x.ndim
        at = list(np.indices(idx.shape, sparse=True))
        at[axis] = _in_range(idx, x.shape[axis])
        return _scatter(x, tuple(at), upd, node.attrs.reduction)


@dataclass(frozen=True)
class ScatterNDAttrs:
    """``reduction``: how updates combine."""

    reduction: str = "none"


@register
class ScatterND(Op):
    """A copy of ``x`` with slices named by index tuples replaced by, or combined with, updates."""

    name = "scatter_nd"
    kind = Kind.OPAQUE
    Attrs = ScatterNDAttrs

    def infer(self, node: Node) -> Sequence[TensorType]:
        x, idx, upd = _check_scatter(node)
        k = _tuple_length(idx, x, 0)
        wanted = idx.dims[:-1] + x.dims[k:]
        if upd.rank != len(wanted):
            raise OpError(f"updates {S.show(upd)} must have shape {S.fmt(wanted)}")
        for a, b in zip(wanted, upd.dims, strict=True):
            S.unify(a, b, node, f"updates {S.show(upd)} must have shape {S.fmt(wanted)}; sizes")
        return [TensorType(x.dtype, x.dims)]

    def reference(self, node: Node, *inputs: Any) -> Any:
        x, idx, upd = inputs
        k = idx.shape[-1]
        at = tuple(_in_range(idx[..., j], x.shape[j]).reshape(-1) for j in range(k))
        tail = x.shape[k:]
        flat = upd.reshape(-1, *tail) if tail or k else upd.reshape(-1)
        if not k:
            out = x
            for u in upd.reshape(-1, *x.shape):
                out = _scatter(out, (Ellipsis,), u, node.attrs.reduction)
            return out
        return _scatter(x, at, flat, node.attrs.reduction)


@dataclass(frozen=True)
class OneHotAttrs:
    """``axis``: where the new axis goes in the result."""

    axis: int = -1


@register
class OneHot(Op):
    """``values[1]`` where the new axis' index equals ``idx`` (negative ones count from the end),
    ``values[0]`` elsewhere. Inputs ``idx, depth, values``."""

    name = "one_hot"
    kind = Kind.INDEX_MAP
    Attrs = OneHotAttrs

    def infer(self, node: Node) -> Sequence[TensorType]:
        idx, depth, values = (S.operand(node, i) for i in range(3))
        if values.rank != 1:
            raise OpError(f"values {S.show(values)} must be two: off and on")
        S.unify(values.dims[0], 2, node, f"number of values {S.show(values)} and 2")
        axis = S.axis_of(node.attrs.axis, idx.rank + 1)
        if S.vector_length(depth, "depth") != 1:
            raise OpError(f"depth {S.show(depth)} must be one number")
        n = self._depth(node)
        shape = (*idx.dims[:axis], n, *idx.dims[axis:])
        return [TensorType(values.dtype, shape)]

    def _depth(self, node: Node) -> D.DimLike:
        depth = S.operand(node, 1)
        known = S.scalar_int(depth)
        if known is None and depth.const is not None:
            known = int(depth.const.reshape(-1)[0])
        return S.data_dim(node, 0) if known is None else known

    def reference(self, node: Node, *inputs: Any) -> Any:
        idx, depth, values = inputs
        n = int(np.asarray(depth).reshape(-1)[0])
        axis = node.attrs.axis % (idx.ndim + 1)
        at = np.expand_dims(np.where(idx < 0, idx + n, idx), axis)
        steps = np.arange(n).reshape([-1 if k == axis else 1 for k in range(idx.ndim + 1)])
        return np.where(at == steps, values[1], values[0])

    def stages(self, node: Node) -> list[E.Stage] | None:
        if S.is_data_dependent(node):
            return None
        idx, values, out = S.operand(node, 0), S.operand(node, 2), node.output
        axis = node.attrs.axis % out.rank
        vs = E.iter_vars(out.dims)
        at: E.Expr = E.load(idx, vs[:axis] + vs[axis + 1:])
        if idx.dtype.is_float:  # compared as numbers: 1.5 is no class
            wide = M.compute_dtype(idx.dtype)
            at, step, n = E.cast(at, wide), E.cast(vs[axis], wide), E.cast(
                E.idx(out.dims[axis]), wide)
            zero: E.Expr = E.const(0.0, wide)
        else:
            at, step, n, zero = E.cast(at, T.i64), vs[axis], E.idx(out.dims[axis]), E.idx(0)
        at = E.select(E.compare("lt", at, zero), E.add(at, n), at)
        on, off = E.load(values, [1]), E.load(values, [0])
        return [E.Stage(out, vs, E.select(E.compare("eq", at, step), on, off))]
