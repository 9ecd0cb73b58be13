"""Slices, TensorRT's and ONNX's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..ir import dims as D
from ..ir import expr as E
from ..ir.graph import Node, TensorType, Value
from . import _shapes as S
from .registry import Kind, Op, OpError, register

_ENDLESS = 10**9
SLICE_MODES = ("strict", "wrap", "clamp", "fill", "reflect")


@dataclass(frozen=True)
class SliceAttrs:
    """``mode``: what an index outside of the input reads: ``strict`` forbids it, ``wrap`` goes
    round, ``clamp`` the nearest element, ``fill`` the fill value, ``reflect`` mirrors without
    repeating the edge."""

    mode: str = "strict"


def mapped_index(at: E.Expr, size: D.DimLike, mode: str) -> E.Expr:
    """``at`` mapped into ``[0, size)`` by ``wrap``, ``clamp`` or ``reflect``."""
    n = E.idx(size)
    if mode == "wrap":
        return E.binary("mod", at, n)
    if mode in ("clamp", "edge"):
        return E.binary("max", E.binary("min", at, E.idx(size - 1)), E.idx(0))
    assert mode == "reflect"
    # period 2 * (size - 1): position p > size - 1 mirrors to period - p
    period = D.dim_max(2 * (size - 1), 1)
    p = E.binary("mod", at, E.idx(period))
    return E.binary("min", p, E.sub(E.idx(period), p)) if size != 1 else E.idx(0)


def mapped_indices(at: np.ndarray[Any, Any], size: int, mode: str) -> np.ndarray[Any, Any]:
    """`mapped_index` in numpy."""
    if size == 0:
        return at
    if mode == "wrap":
        return at % size
    if mode in ("clamp", "edge"):
        return np.clip(at, 0, size - 1)
    period = max(2 * (size - 1), 1)
    p = at % period
    return np.minimum(p, period - p) if size > 1 else np.zeros_like(at)


@register
class Slice(Op):
    """``out[i] = x[start + i * stride]`` on every axis, ``size`` being the result's shape.

    Inputs ``x, start, size, stride, fill?``.
    """

    name = "slice"
    kind = Kind.INDEX_MAP
    Attrs = SliceAttrs
    symbolic = True
    symbolic_floats = True

    def infer(self, node: Node) -> Sequence[TensorType]:
        x, size = S.operand(node, 0), S.operand(node, 2)
        if node.attrs.mode not in SLICE_MODES:
            raise OpError(f"unknown slice mode {node.attrs.mode!r}; use one of {SLICE_MODES}")
        for i, what in ((1, "start"), (2, "size"), (3, "stride")):
            if S.vector_length(S.operand(node, i), what) != x.rank:
                raise OpError(f"{what} {S.show(node.inputs[i])} needs one element for each of "
                              f"the {x.rank} dimensions of {S.show(x)}")
        fill = S.optional(node, 4)
        if fill is not None and fill.dtype is not x.dtype:
            raise OpError(f"fill {S.show(fill)} must have the type of {S.show(x)}")
        dims = S.ints(size)
        if dims is None:
            return [TensorType(x.dtype, S.data_dims(node, x.rank))]
        if any(not isinstance(d, D.Dim) and d < 0 for d in dims):
            raise OpError(f"negative size in {S.fmt(dims)}")
        self._check_bounds(node, x, dims)
        return [TensorType(x.dtype, tuple(dims))]

    def _check_bounds(self, node: Node, x: Value, dims: Sequence[D.DimLike]) -> None:
        start, stride = S.ints(node.inputs[1]), S.ints(node.inputs[3])
        if node.attrs.mode != "strict" or start is None or stride is None:
            return
        for axis, (n, b, s, d) in enumerate(zip(dims, start, stride, x.dims, strict=True)):
            if not D.is_static(n, b, s, d) or n == 0:
                continue
            last = int(b + (n - 1) * s)
            if not (0 <= int(b) < int(d) and 0 <= last < int(d)):
                raise OpError(f"axis {axis} of slice reads {b} to {last} of {d} elements of "
                              f"{S.show(x)}; change start, size or stride, or the sample mode")

    def reference(self, node: Node, *inputs: Any) -> Any:
        x, mode = inputs[0], node.attrs.mode
        fill = inputs[4] if len(inputs) > 4 else None
        start, size, stride = (S.to_ints(v) for v in inputs[1:4])
        inside: Any = np.ones((), dtype=bool)
        for axis, (b, n, s) in enumerate(zip(start, size, stride, strict=True)):
            at, d = b + np.arange(n) * s, x.shape[axis]
            if mode == "fill":
                ok = (at >= 0) & (at < d)
                inside = inside & ok.reshape([-1 if k == axis else 1 for k in range(x.ndim)])
                at = np.where(ok, at, 0)
                if d == 0:
                    x = np.zeros([1 if k == axis else e for k, e in enumerate(x.shape)], x.dtype)
            elif mode != "strict":
                at = mapped_indices(at, d, mode)
            x = np.take(x, at, axis=axis)
        if mode != "fill":
            return x
        value = np.zeros((), x.dtype) if fill is None else np.asarray(fill).reshape(())
        return np.where(inside, x, value)

    def stages(self, node: Node) -> list[E.Stage] | None:
        if S.is_data_dependent(node):
            return None
        x, out, mode = S.operand(node, 0), node.output, node.attrs.mode
        start, stride, fill = S.operand(node, 1), S.operand(node, 3), S.optional(node, 4)
        vs = E.iter_vars(out.dims)
        index, inside = [], []
        for k, v in enumerate(vs):
            at = E.add(S.element(start, k), E.mul(v, S.element(stride, k)))
            if mode == "fill":
                inside += [E.compare("ge", at, E.idx(0)), E.compare("lt", at, E.idx(x.dims[k]))]
            elif mode != "strict":
                at = mapped_index(at, x.dims[k], mode)
            index.append(at)
        if not inside:
            return [E.Stage(out, vs, E.load(x, index))]
        other: E.Expr = E.const(0, x.dtype)
        if fill is not None:
            other = E.load(fill, [E.idx(0)] * fill.rank)
        return [E.Stage(out, vs, E.load(x, index, E.logical_and(*inside), other))]


def slice_bounds(
    size: D.DimLike, start: D.DimLike, end: D.DimLike, step: int, node: Node | None = None
) -> tuple[D.DimLike, D.DimLike]:
    """First index and number of elements of ``start:end:step`` along an axis, as Python slices.

    A symbolic bound on an axis of known size is assumed not to exceed it.
    """
    if D.is_static(size, start, end):
        first, last, _ = slice(int(start), int(end), step).indices(int(size))
        return first, len(range(first, last, step))
    low: D.DimLike
    high: D.DimLike
    low, high = (0, size) if step > 0 else (-1, size - 1)
    b = _bound(start, size, low, high, node)
    e = _bound(end, size, low, high, node)
    if step < 0 and not isinstance(end, D.Dim) and end < 0 and S.at_least(-1 - size, end):
        e = -1
    span = e - b if step > 0 else b - e
    n = D.ceil_div(span, abs(step))
    return b, n if S.at_least(n, 0) else _non_negative(n, start, end, node)


def _bound(
    at: D.DimLike, size: D.DimLike, low: D.DimLike, high: D.DimLike, node: Node | None
) -> D.DimLike:
    if not isinstance(at, D.Dim):
        # Exporters write "to the end" as a number no axis reaches.
        if at >= _ENDLESS:
            return high
        if at <= -_ENDLESS:
            return low
        return S.clamped(at + size if at < 0 else at, low, high)
    sign = S.order(at, 0)
    if sign is not None and sign < 0:
        return S.clamped(at + size, low, high)
    if S.at_least(high, at):
        return at
    S.assume(node, "le", at, high)
    if isinstance(size, D.Dim) and S.order(at, high) == 1:
        return high
    return at if not isinstance(size, D.Dim) else D.dim_min(at, high)


def _non_negative(
    n: D.DimLike, start: D.DimLike, end: D.DimLike, node: Node | None
) -> D.DimLike:
    """A span between symbols is assumed not to be negative; others are cut off at 0."""
    if isinstance(start, D.Dim) or isinstance(end, D.Dim):
        S.assume(node, "le", 0, n)
        return n
    return D.dim_max(n, 0)


@register
class StridedSlice(Op):
    """``x[starts:ends:steps]`` on ``axes`` (default: the first ones), bounds as in Python.

    Inputs ``x, starts, ends, axes?, steps?``.
    """

    name = "strided_slice"
    kind = Kind.INDEX_MAP
    symbolic = True
    symbolic_floats = True

    def _axes_steps(self, node: Node) -> tuple[list[int], list[int]]:
        x, starts = S.operand(node, 0), S.operand(node, 1)
        n = S.vector_length(starts, "starts")
        if S.vector_length(S.operand(node, 2), "ends") != n:
            raise OpError(f"starts {S.show(starts)} and ends {S.show(node.inputs[2])} must have "
                          "one length")
        axes_v, steps_v = S.optional(node, 3), S.optional(node, 4)
        axes = list(range(n)) if axes_v is None else S.static_ints(axes_v, "axes")
        steps = [1] * n if steps_v is None else S.static_ints(steps_v, "steps")
        if len(axes) != n or len(steps) != n:
            raise OpError(f"{n} starts, {len(axes)} axes and {len(steps)} steps; give as many")
        if 0 in steps:
            raise OpError(f"a step of 0 in {steps}")
        return list(S.axes_of(axes, x.rank, "sliced axis")), steps

    def infer(self, node: Node) -> Sequence[TensorType]:
        x = S.operand(node, 0)
        axes, steps = self._axes_steps(node)
        starts, ends = S.ints(node.inputs[1]), S.ints(node.inputs[2])
        out = list(x.dims)
        for k, axis in enumerate(axes):
            if starts is None or ends is None:
                out[axis] = S.data_dim(node, axis, upper=x.dims[axis])
            else:
                out[axis] = slice_bounds(out[axis], starts[k], ends[k], steps[k], node)[1]
        return [TensorType(x.dtype, tuple(out))]

    def reference(self, node: Node, *inputs: Any) -> Any:
        x, starts, ends = inputs[:3]
        axes_in = inputs[3] if len(inputs) > 3 else None
        steps_in = inputs[4] if len(inputs) > 4 else None
        starts, ends = list(np.asarray(starts).reshape(-1)), list(np.asarray(ends).reshape(-1))
        axes = range(len(starts)) if axes_in is None else S.to_ints(axes_in)
        steps = [1] * len(starts) if steps_in is None else S.to_ints(steps_in)
        index = [slice(None)] * x.ndim
        for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
            first, count = slice_bounds(x.shape[axis], _int(start), _int(end), step)
            b, n = int(first), int(count)
            stop = b + n * step
            index[axis] = slice(b, None if stop < 0 else stop, step) if n else slice(0, 0)
        return x[tuple(index)]

    def stages(self, node: Node) -> list[E.Stage] | None:
        starts, ends = S.ints(node.inputs[1]), S.ints(node.inputs[2])
        if starts is None or ends is None:
            return None
        x, out = S.operand(node, 0), node.output
        axes, steps = self._axes_steps(node)
        vs = E.iter_vars(out.dims)
        index: list[E.Expr] = list(vs)
        for k, axis in enumerate(axes):
            b, _ = slice_bounds(x.dims[axis], starts[k], ends[k], steps[k])
            index[axis] = E.add(E.idx(b), E.mul(vs[axis], E.idx(steps[k])))
        return [E.Stage(out, vs, E.load(x, index))]


def _int(v: Any) -> D.DimLike:
    return v if isinstance(v, D.Dim) else int(v)


