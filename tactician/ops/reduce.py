"""Reductions along axes: reduce, argreduce, softmax, ragged_softmax, cumulative."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce as fold
from typing import Any

import numpy as np

from ..ir import dims as D
from ..ir import expr as E
from ..ir.dtypes import DType, b1, dtype, f64, i64
from ..ir.expr import Expr, Stage, Var
from ..ir.graph import Node, TensorType, Value
from . import _math as M
from ._numeric import (
    Array,
    accumulator,
    highest,
    lowest,
    mean_accumulator,
    shape_text,
    widen,
)  # fmt: skip
from ._shapes import operand
from .registry import Kind, Op, OpError, register, temp

REDUCE_FNS = (
    "sum", "prod", "max", "min", "mean", "l1", "l2", "log_sum", "log_sum_exp", "sum_square",
    "any", "all",
)


def check_axes(v: Value, axes: Sequence[int], what: str = "axes") -> tuple[int, ...]:
    """Validates distinct, in-range axes; negative ones count from the end.

    Raises:
        OpError: If one is out of range or repeated.
    """
    out = tuple(a + v.rank if a < 0 else a for a in axes)
    if any(not 0 <= a < v.rank for a in out):
        raise OpError(
            f"{what} {tuple(axes)} are out of range for {shape_text(v)}, which has {v.rank} "
            f"dimensions: use 0 to {v.rank - 1}"
        )
    if len(set(out)) != len(out):
        raise OpError(f"{what} {tuple(axes)} name a dimension twice")
    return tuple(sorted(out))


def reduced_shape(
    shape: Sequence[D.DimLike], axes: Sequence[int], keepdims: bool
) -> tuple[D.DimLike, ...]:
    if keepdims:
        return tuple(1 if i in axes else d for i, d in enumerate(shape))
    return tuple(d for i, d in enumerate(shape) if i not in axes)


def reduction_indices(
    shape: Sequence[D.DimLike], axes: Sequence[int], out_vars: Sequence[Var], keepdims: bool
) -> tuple[list[Expr], list[Var]]:
    """Index of the input at ``out_vars`` and the reduction variables it uses."""
    kept = iter(out_vars)
    index: list[Expr] = []
    over: list[Var] = []
    for i, d in enumerate(shape):
        if i in axes:
            over.append(Var(i64, f"r{i}", d))
            index.append(over[-1])
            if keepdims:
                next(kept)
        else:
            index.append(next(kept))
    return index, over


def size_as(d: D.DimLike, dt: DType) -> Expr:
    """A dimension as a scalar of type ``dt``."""
    return E.cast(E.idx(d), dt) if isinstance(d, D.Dim) else E.const(d, dt)


@dataclass(frozen=True)
class ReduceAttrs:
    """
    Attributes:
        fn: One of `REDUCE_FNS`.
        axes: Reduced dimensions; empty means all.
        keepdims: Keep reduced dimensions with extent 1.
    """

    fn: str = "sum"
    axes: tuple[int, ...] = ()
    keepdims: bool = True


@register
class Reduce(Op):
    """TensorRT's IReduceLayer and ONNX's Reduce* operators. Integers stay integers (a mean
    truncates); ``any`` and ``all`` give b1."""

    name = "reduce"
    kind = Kind.REDUCTION
    Attrs = ReduceAttrs
    symbolic = True

    def infer(self, node: Node) -> Sequence[TensorType]:
        x, a = operand(node, 0), node.attrs
        if a.fn not in REDUCE_FNS:
            raise OpError(f"fn {a.fn!r} is not one of {', '.join(REDUCE_FNS)}")
        if x.dtype.kind == "b" and a.fn not in ("any", "all", "max", "min"):
            raise OpError(f"fn {a.fn!r} does not take booleans: cast {x.name!r} first")
        axes = check_axes(x, a.axes) or tuple(range(x.rank))
        dt = b1 if a.fn in ("any", "all") else x.dtype
        return [TensorType(dt, reduced_shape(x.dims, axes, a.keepdims))]

    def reference(self, node: Node, *inputs: Any) -> Any:
        x, a = np.asarray(inputs[0]), node.attrs
        axes = tuple(a.axes) or tuple(range(x.ndim))
        if x.dtype == object:
            return _reduce_symbolic(a.fn, x, axes, a.keepdims)
        return reduce_array(a.fn, x, axes, a.keepdims)

    def stages(self, node: Node) -> list[Stage] | None:
        x, a, out = operand(node, 0), node.attrs, node.output
        axes = check_axes(x, a.axes) or tuple(range(x.rank))
        if x.dtype.kind == "c":
            return None
        return _REDUCE_STAGES[a.fn](node, x, axes, out) if a.fn in _REDUCE_STAGES else None


def _reduce_symbolic(fn: str, x: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
    pick = {"sum": lambda v: fold(lambda p, q: p + q, v, 0), "prod": D.product,
            "max": lambda v: D.dim_max(*v), "min": lambda v: D.dim_min(*v)}.get(fn)
    if pick is None:
        raise TypeError(f"{fn} is not symbolic")
    kept = tuple(i for i in range(x.ndim) if i not in axes)
    rows = x.transpose(kept + axes).reshape([*(x.shape[i] for i in kept), -1])
    out = np.empty(rows.shape[:-1], dtype=object)
    for i in np.ndindex(out.shape):
        out[i] = pick(list(rows[i]))
    return np.expand_dims(out, tuple(sorted(axes))) if keepdims else out


def reduce_array(fn: str, x: Array, axes: tuple[int, ...], keepdims: bool) -> Array:
    """The reduction on plain arrays, in the accumulator type; empty axes give the identity."""
    w: Any = widen(x)
    # floating point intermediates even for integers: roots, logarithms
    f = w if w.dtype.kind == "f" else w.astype(np.float64)
    k: dict[str, Any] = {"axis": axes, "keepdims": keepdims}
    if not axes:
        k["axis"] = ()
    dt = w.dtype
    table: dict[str, Callable[[], Any]] = {
        "sum": lambda: np.sum(w, dtype=dt, **k),
        "prod": lambda: np.prod(w, dtype=dt, **k),
        "max": lambda: np.max(w, initial=lowest(dtype(dt)), **k),
        "min": lambda: np.min(w, initial=highest(dtype(dt)), **k),
        "mean": lambda: _mean(w, k),
        "l1": lambda: np.sum(np.abs(w), dtype=dt, **k),
        "l2": lambda: np.sqrt(np.sum(f * f, **k)),
        "log_sum": lambda: np.log(np.sum(f, **k)),
        "log_sum_exp": lambda: _log_sum_exp(f, axes, keepdims),
        "sum_square": lambda: np.sum(w * w, dtype=dt, **k),
        "any": lambda: np.any(w != 0, **k),
        "all": lambda: np.all(w != 0, **k),
    }
    with np.errstate(all="ignore"):
        return np.asarray(table[fn]())


def _mean(w: Array, k: dict[str, Any]) -> Any:
    total = np.sum(w, dtype=mean_accumulator(dtype(w.dtype)).np, **k)
    count = int(np.prod([w.shape[i] for i in k["axis"]], dtype=np.int64))
    if w.dtype.kind in "iu":
        return M.truncdiv(total, np.asarray(max(count, 1), total.dtype))
    return total / np.asarray(count, dtype=w.dtype)


def _log_sum_exp(f: Array, axes: tuple[int, ...], keepdims: bool) -> Any:
    m = np.max(f, axis=axes, keepdims=True, initial=-np.inf)
    m = np.where(np.isfinite(m), m, np.zeros_like(m))
    out = np.log(np.sum(np.exp(f - m), axis=axes, keepdims=True)) + m
    return out if keepdims else np.squeeze(out, axis=axes)


# --- stages ---------------------------------------------------------------------------------


def _loaded(x: Value, index: Sequence[Expr], dt: DType) -> Expr:
    return E.cast(E.load(x, index), dt)


def _simple(
    fn: str,
    body: Callable[[Expr], Expr] = lambda v: v,
    finish: Callable[[Expr, D.DimLike], Expr] = lambda v, n: v,
    *,
    to_bool: bool = False,
    floats: bool = False,
    mean: bool = False,
) -> Callable[[Node, Value, tuple[int, ...], Value], list[Stage] | None]:
    """Stages of ``finish(fn over body(x))``; with ``floats``, integers are f64 in between."""

    def build(node: Node, x: Value, axes: tuple[int, ...], out: Value) -> list[Stage] | None:
        work = mean_accumulator(x.dtype) if mean else accumulator(x.dtype)
        if to_bool or (floats and not x.dtype.is_float):
            work = b1 if to_bool else f64
        ov = E.iter_vars(out.dims)
        index, over = reduction_indices(x.dims, axes, ov, node.attrs.keepdims)
        total = E.reduce_(fn, over, body(_loaded(x, index, work)))
        count = D.product(x.dims[i] for i in axes)
        return [Stage(out, ov, E.cast(finish(total, count), out.dtype))]

    return build


def _divide(total: Expr, count: D.DimLike) -> Expr:
    fn = "div" if total.dtype.is_float else "truncdiv"
    return E.binary(fn, total, size_as(count, total.dtype))


def _square(v: Expr) -> Expr:
    return E.mul(v, v)


def _log_sum_exp_stages(
    node: Node, x: Value, axes: tuple[int, ...], out: Value
) -> list[Stage]:
    work = accumulator(x.dtype) if x.dtype.is_float else f64
    ov = E.iter_vars(out.dims)
    index, over = reduction_indices(x.dims, axes, ov, node.attrs.keepdims)
    top = temp(node, "max", work, out.dims)
    first = Stage(top, ov, E.reduce_("max", over, _loaded(x, index, work)))
    ov = E.iter_vars(out.dims)
    index, over = reduction_indices(x.dims, axes, ov, node.attrs.keepdims)
    m = finite_or_zero(E.load(top, ov))
    total = E.reduce_("sum", over, E.unary("exp", E.sub(_loaded(x, index, work), m)))
    return [first, Stage(out, ov, E.cast(E.add(E.unary("log", total), m), out.dtype))]


def finite_or_zero(m: Expr) -> Expr:
    """``m`` unless it is infinite or NaN, so that ``x - m`` does not turn infinities to NaN."""
    zero = E.const(0.0, m.dtype)
    return E.select(E.compare("eq", E.sub(m, m), zero), m, zero)


_REDUCE_STAGES: dict[str, Any] = {
    "sum": _simple("sum"),
    "prod": _simple("prod"),
    "max": _simple("max"),
    "min": _simple("min"),
    "mean": _simple("sum", finish=_divide, mean=True),
    "l1": _simple("sum", lambda v: E.unary("abs", v)),
    "l2": _simple("sum", _square, lambda v, n: E.unary("sqrt", v), floats=True),
    "log_sum": _simple("sum", finish=lambda v, n: E.unary("log", v), floats=True),
    "log_sum_exp": _log_sum_exp_stages,
    "sum_square": _simple("sum", _square),
    "any": _simple("any", to_bool=True),
    "all": _simple("all", to_bool=True),
}


@dataclass(frozen=True)
class ArgReduceAttrs:
    """
    Attributes:
        fn: ``max`` or ``min``.
        axis: The searched dimension.
        keepdims: Keep it with extent 1.
        last: Give the last of equal extremes instead of the first.
    """

    fn: str = "max"
    axis: int = 0
    keepdims: bool = True
    last: bool = False


@register
class ArgReduce(Op):
    """Index of the largest or smallest element along an axis (i64): ONNX's ArgMax, ArgMin."""

    name = "argreduce"
    kind = Kind.REDUCTION
    Attrs = ArgReduceAttrs

    def infer(self, node: Node) -> Sequence[TensorType]:
        x, a = operand(node, 0), node.attrs
        if a.fn not in ("max", "min"):
            raise OpError(f"fn {a.fn!r} must be 'max' or 'min'")
        axes = check_axes(x, (a.axis,), "axis")
        if x.dims[axes[0]] == 0:
            raise OpError(f"dimension {axes[0]} of {shape_text(x)} is empty: it has no extreme")
        return [TensorType(i64, reduced_shape(x.dims, axes, a.keepdims))]

    def reference(self, node: Node, *inputs: Any) -> Any:
        x, a = widen(inputs[0]), node.attrs
        pick = np.argmax if a.fn == "max" else np.argmin
        if a.last:
            found = x.shape[a.axis] - 1 - pick(np.flip(x, a.axis), axis=a.axis)
        else:
            found = pick(x, axis=a.axis)
        return np.expand_dims(found, a.axis) if a.keepdims else found

    def stages(self, node: Node) -> list[Stage] | None:
        x, a, out = operand(node, 0), node.attrs, node.output
        ov = E.iter_vars(out.dims)
        axes = check_axes(x, (a.axis,), "axis")
        index, over = reduction_indices(x.dims, axes, ov, a.keepdims)
        fn = f"arg{a.fn}" + ("_last" if a.last else "")
        return [Stage(out, ov, E.reduce_(fn, over, _loaded(x, index, accumulator(x.dtype))))]


@dataclass(frozen=True)
class SoftmaxAttrs:
    """
    Attributes:
        axes: Dimensions that sum to one together.
        log: Give the logarithm.
    """

    axes: tuple[int, ...] = (-1,)
    log: bool = False


@register
class Softmax(Op):
    """TensorRT's ISoftMaxLayer, ONNX's Softmax and LogSoftmax."""

    name = "softmax"
    kind = Kind.REDUCTION
    Attrs = SoftmaxAttrs

    def infer(self, node: Node) -> Sequence[TensorType]:
        x = operand(node, 0)
        if not x.dtype.is_float:
            raise OpError(f"softmax needs a floating-point input, not {shape_text(x)}: cast it")
        if not check_axes(x, node.attrs.axes) and x.rank:
            raise OpError("axes is empty: name at least one dimension")
        return [TensorType(x.dtype, x.dims)]

    def reference(self, node: Node, *inputs: Any) -> Any:
        x, axes = widen(inputs[0]), tuple(node.attrs.axes)
        with np.errstate(all="ignore"):
            shifted = x - np.max(x, axis=axes, keepdims=True, initial=-np.inf)
            e = np.exp(shifted)
            total = np.sum(e, axis=axes, keepdims=True)
            return shifted - np.log(total) if node.attrs.log else e / total

    def stages(self, node: Node) -> list[Stage] | None:
        x, out = operand(node, 0), node.output
        axes = check_axes(x, node.attrs.axes)
        work = accumulator(x.dtype)
        row_shape = reduced_shape(x.dims, axes, False)
        top, total = (temp(node, s, work, row_shape) for s in ("max", "sum"))

        rv = E.iter_vars(row_shape)
        index, over = reduction_indices(x.dims, axes, rv, False)
        s0 = Stage(top, rv, E.reduce_("max", over, _loaded(x, index, work)))
        rv = E.iter_vars(row_shape)
        index, over = reduction_indices(x.dims, axes, rv, False)
        e = E.unary("exp", E.sub(_loaded(x, index, work), E.load(top, rv)))
        s1 = Stage(total, rv, E.reduce_("sum", over, e))
        ov = E.iter_vars(out.dims)
        row = [v for i, v in enumerate(ov) if i not in axes]
        shifted = E.sub(_loaded(x, ov, work), E.load(top, row))
        if node.attrs.log:
            y = E.sub(shifted, E.unary("log", E.load(total, row)))
        else:
            y = E.div(E.unary("exp", shifted), E.load(total, row))
        return [s0, s1, Stage(out, ov, E.cast(y, out.dtype))]


@register
class RaggedSoftmax(Op):
    """TensorRT's IRaggedSoftMaxLayer: softmax over the first ``bounds`` elements of every row
    of ``x [..., S]``, zero after them; ``bounds`` is integer, ``[..., 1]``."""

    name = "ragged_softmax"
    kind = Kind.REDUCTION

    def infer(self, node: Node) -> Sequence[TensorType]:
        x, bounds = operand(node, 0), operand(node, 1)
        if not x.dtype.is_float or x.rank < 1:
            raise OpError(f"x must be floating-point with at least one dimension, "
                          f"not {shape_text(x)}")
        want = (*x.dims[:-1], 1)
        if not bounds.dtype.is_int or bounds.rank != x.rank or any(
            D.is_static(p, q) and p != q for p, q in zip(bounds.dims, want, strict=True)
        ):
            raise OpError(
                f"bounds must be integers of shape [{', '.join(map(str, want))}], one per row of "
                f"x {shape_text(x)}, but are {shape_text(bounds)}"
            )
        return [TensorType(x.dtype, x.dims)]

    def reference(self, node: Node, *inputs: Any) -> Any:
        x, bounds = widen(inputs[0]), np.asarray(inputs[1])
        inside = np.arange(x.shape[-1]) < bounds
        with np.errstate(all="ignore"):
            masked = np.where(inside, x, -np.inf)
            e = np.exp(masked - np.max(masked, axis=-1, keepdims=True, initial=-np.inf))
            e = np.where(inside, e, 0)
            total = e.sum(axis=-1, keepdims=True)
            return np.where(inside, e / total, 0)

    def stages(self, node: Node) -> list[Stage] | None:
        x, bounds, out = operand(node, 0), operand(node, 1), node.output
        work = accumulator(x.dtype)
        rows, n = x.dims[:-1], x.dims[-1]
        top, total = (temp(node, s, work, rows) for s in ("max", "sum"))

        def inside(row: Sequence[Expr], j: Expr) -> Expr:
            bound = E.cast(E.load(bounds, [*row, E.idx(0)]), i64)
            return E.compare("lt", j, bound)

        rv, j = E.iter_vars(rows), Var(i64, "r", n)
        v = E.select(inside(rv, j), _loaded(x, [*rv, j], work), E.const(-float("inf"), work))
        s0 = Stage(top, rv, E.reduce_("max", (j,), v))
        rv, j = E.iter_vars(rows), Var(i64, "r", n)
        zero = E.const(0.0, work)
        e = E.unary("exp", E.sub(_loaded(x, [*rv, j], work), E.load(top, rv)))
        s1 = Stage(total, rv, E.reduce_("sum", (j,), E.select(inside(rv, j), e, zero)))
        ov = E.iter_vars(out.dims)
        e = E.unary("exp", E.sub(_loaded(x, ov, work), E.load(top, ov[:-1])))
        y = E.select(inside(ov[:-1], ov[-1]), E.div(e, E.load(total, ov[:-1])), zero)
        return [s0, s1, Stage(out, ov, E.cast(y, out.dtype))]


@dataclass(frozen=True)
class CumulativeAttrs:
    """
    Attributes:
        fn: ``sum`` or ``prod``.
        exclusive: Leave out the element itself.
        reverse: Run from the end.
    """

    fn: str = "sum"
    exclusive: bool = False
    reverse: bool = False


@register
class Cumulative(Op):
    """Running sum or product along an axis: TensorRT's ICumulativeLayer, ONNX's CumSum and
    CumProd. The axis is the second input, an integer scalar or ``[1]``."""

    name = "cumulative"
    kind = Kind.REDUCTION
    Attrs = CumulativeAttrs

    def infer(self, node: Node) -> Sequence[TensorType]:
        x, axis, a = operand(node, 0), operand(node, 1), node.attrs
        if a.fn not in ("sum", "prod"):
            raise OpError(f"fn {a.fn!r} must be 'sum' or 'prod'")
        if x.dtype.kind not in "iuf" or x.rank < 1:
            raise OpError(f"x must be numeric with at least one dimension, not {shape_text(x)}")
        if not axis.dtype.is_int or axis.numel != 1:
            raise OpError(f"axis must be one integer, not {shape_text(axis)}")
        known = axis.known_ints()
        if known is not None and D.is_static(known.flat[0]):
            check_axes(x, (int(known.flat[0]),), "axis")
        return [TensorType(x.dtype, x.dims)]

    def reference(self, node: Node, *inputs: Any) -> Any:
        x, a = widen(inputs[0]), node.attrs
        axis = int(np.asarray(inputs[1]).reshape(()))
        if a.reverse:
            x = np.flip(x, axis)
        run = np.cumsum if a.fn == "sum" else np.cumprod
        y = run(x, axis=axis, dtype=x.dtype)
        if a.exclusive:
            first = np.full_like(np.take(y, [0] if y.shape[axis] else [], axis=axis),
                                 0 if a.fn == "sum" else 1)
            y = np.concatenate([first, np.take(y, range(y.shape[axis] - 1), axis=axis)], axis)
        return np.flip(y, axis) if a.reverse else y

    def stages(self, node: Node) -> list[Stage] | None:
        x, a, out = operand(node, 0), node.attrs, node.output
        known = None if node.inputs[1] is None else node.inputs[1].known_ints()
        if known is None or not D.is_static(known.flat[0]):
            return None
        (axis,) = check_axes(x, (int(known.flat[0]),), "axis")
        extent = x.dims[axis]
        if isinstance(extent, D.Dim) or extent > _MAX_NAIVE_SCAN:
            return None  # quadratic in the extent: a loop of its own does better
        work = accumulator(x.dtype)
        ov, r = E.iter_vars(out.dims), Var(i64, "r", x.dims[axis])
        fn = ("gt" if a.exclusive else "ge") if a.reverse else ("lt" if a.exclusive else "le")
        index = [r if i == axis else v for i, v in enumerate(ov)]
        unit = E.const(0 if a.fn == "sum" else 1, work)
        body = E.select(E.compare(fn, r, ov[axis]), _loaded(x, index, work), unit)
        return [Stage(out, ov, E.cast(E.reduce_(a.fn, (r,), body), out.dtype))]


_MAX_NAIVE_SCAN = 64
