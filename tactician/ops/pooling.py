"""Pooling over sliding windows. Global pooling is `reduce`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..ir import expr as E
from ..ir.dtypes import DType, dtype, i64
from ..ir.expr import Expr, Stage, Var
from ..ir.graph import Node, TensorType, Value
from . import _math as M
from ._numeric import Array, accumulator, lowest, mean_accumulator, shape_text, widen
from ._shapes import operand
from ._windows import Axis, resolve, windows
from .registry import Kind, Op, OpError, register

POOL_FNS = ("max", "average", "lp", "max_average_blend")


@dataclass(frozen=True)
class PoolingAttrs:
    """One entry per spatial dimension in every tuple; empty ``stride`` and ``dilation`` mean 1,
    empty padding 0.

    Attributes:
        fn: ``max``, ``average``, ``lp`` or ``max_average_blend``.
        window, stride, pre, post, dilation: Geometry of the windows.
        count_include_pad: Averages divide by the elements of the window inside the input and its
            padding; otherwise by those inside the input.
        ceil: Round the number of windows up, but drop those that start in trailing padding
            (ONNX's ``ceil_mode``); ``padding_mode="explicit_up"`` rounds up and drops none.
        padding_mode: See `tactician.ops._windows`.
        blend: ``max_average_blend`` gives ``(1 - blend) * max + blend * average``.
        p: The exponent of ``lp``.
    """

    fn: str = "max"
    window: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    pre: tuple[int, ...] = ()
    post: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    count_include_pad: bool = False
    ceil: bool = False
    padding_mode: str = "explicit_down"
    blend: float = 0.0
    p: int = 2


def pool_axes(sizes: Sequence[Any], a: Any) -> list[Axis]:
    """Windows of a pooling op over input extents ``sizes``.

    Raises:
        OpError: If attributes are wrong.
    """
    return resolve(sizes, a.window, a.stride, a.pre, a.post, a.dilation, a.padding_mode,
                   clip_ceil=a.ceil)


def check_pool_input(x: Value, window: Sequence[int]) -> int:
    """The number of leading dimensions (batch, channel).

    Raises:
        OpError: If x has too few dimensions.
    """
    if not window:
        raise OpError("window is empty: give one extent for each spatial dimension")
    if x.rank < len(window) + 1:
        raise OpError(
            f"x {shape_text(x)} has too few dimensions for a {len(window)}-D window "
            f"{tuple(window)}: [N, C, ...] with {len(window)} spatial dimensions is expected"
        )
    return x.rank - len(window)


@register
class Pooling(Op):
    """TensorRT's IPoolingLayer; ONNX's MaxPool, AveragePool, LpPool. Padding never wins a
    maximum and counts as zero in sums."""

    name = "pooling"
    kind = Kind.REDUCTION
    Attrs = PoolingAttrs

    def infer(self, node: Node) -> Sequence[TensorType]:
        x, a = operand(node, 0), node.attrs
        if a.fn not in POOL_FNS:
            raise OpError(f"fn {a.fn!r} is not one of {', '.join(POOL_FNS)}")
        if x.dtype.kind not in ("iuf" if a.fn in ("max", "average") else "f"):
            raise OpError(f"{a.fn} pooling does not take {x.dtype}: cast {x.name!r} to f32")
        lead = check_pool_input(x, a.window)
        axes = pool_axes(x.dims[lead:], a)
        return [TensorType(x.dtype, (*x.dims[:lead], *(p.out for p in axes)))]

    def reference(self, node: Node, *inputs: Any) -> Any:
        x, a = widen(inputs[0]), node.attrs
        axes = pool_axes(x.shape[x.ndim - len(a.window) :], a)
        last = tuple(range(-len(axes), 0))
        out: Any = None
        if a.fn in ("max", "max_average_blend"):
            out = windows(x, axes, lowest(dtype(x.dtype))).max(axis=last)
        if a.fn in ("average", "max_average_blend"):
            average = _average(windows(x, axes, 0), axes, a.count_include_pad, last)
            out = average if out is None else (
                (1 - np.asarray(a.blend, x.dtype)) * out + np.asarray(a.blend, x.dtype) * average
            )
        if a.fn == "lp":
            powers = np.abs(windows(x, axes, 0)) ** a.p
            out = powers.sum(axis=last) ** np.asarray(1.0 / a.p, x.dtype)
        return out

    def stages(self, node: Node) -> list[Stage] | None:
        return _pooling_stages(node)


def _average(view: Array, axes: Sequence[Axis], include_pad: bool, last: tuple[int, ...]) -> Array:
    total = view.sum(axis=last, dtype=mean_accumulator(dtype(view.dtype)).np)
    count = np.ones((), dtype=np.int64)
    for a in axes:  # the count is a product over dimensions
        at = np.arange(int(a.out))[:, None] * a.stride + np.arange(a.window) * a.dilation
        at -= int(a.pre)
        low, high = (-int(a.pre), int(a.size + a.post)) if include_pad else (0, int(a.size))
        count = np.multiply.outer(count, ((at >= low) & (at < high)).sum(axis=1))
    count = np.maximum(count, 1)
    if total.dtype.kind in "iu":
        return M.truncdiv(total, count.astype(total.dtype))
    return total / count.astype(total.dtype)


def window_positions(
    lead: int, ov: Sequence[Expr], axes: Sequence[Axis]
) -> tuple[list[Expr], list[Var]]:
    """Input positions (maybe outside) of the windows' elements, and the window variables."""
    over = [Var(i64, f"w{k}", a.window) for k, a in enumerate(axes)]
    at = [
        E.sub(
            E.add(E.mul(ov[lead + k], E.idx(a.stride)), E.mul(over[k], E.idx(a.dilation))),
            E.idx(a.pre),
        )
        for k, a in enumerate(axes)
    ]
    return at, over


def inside_guard(at: Sequence[Expr], axes: Sequence[Axis], *, padded: bool = False) -> Expr | None:
    """True where every position lies inside the input (or also its padding); None if always."""
    terms: list[Expr] = []
    for p, a in zip(at, axes, strict=True):
        low: Any = -a.pre if padded else 0
        high: Any = a.size + a.post if padded else a.size
        if not padded and not (isinstance(a.pre, int) and a.pre <= 0):
            terms.append(E.compare("ge", p, E.idx(low)))
        reach = (a.out - 1) * a.stride + a.span - a.pre  # one past the last position touched
        slack = high - reach
        if not isinstance(slack, int) or slack < 0:
            terms.append(E.compare("lt", p, E.idx(high)))
    return E.logical_and(*terms) if terms else None


def _pooling_stages(node: Node) -> list[Stage]:
    x, a, out = operand(node, 0), node.attrs, node.output
    lead = check_pool_input(x, a.window)
    axes = pool_axes(x.dims[lead:], a)
    work = (mean_accumulator if a.fn == "average" else accumulator)(x.dtype)
    ov = E.iter_vars(out.dims)

    def loaded(other: Any) -> tuple[Expr, list[Var]]:
        at, over = window_positions(lead, ov, axes)
        guard = inside_guard(at, axes)
        filler = None if guard is None else E.const(other, x.dtype)
        return E.cast(E.load(x, [*ov[:lead], *at], guard, filler), work), over

    def largest() -> Expr:
        v, over = loaded(lowest(x.dtype))
        return E.reduce_("max", over, v)

    def average() -> Expr:
        v, over = loaded(0)
        fn = "div" if work.is_float else "truncdiv"
        count = _count(lead, ov, axes, a.count_include_pad, work)
        return E.binary(fn, E.reduce_("sum", over, v), count)

    if a.fn == "max":
        y = largest()
    elif a.fn == "average":
        y = average()
    elif a.fn == "max_average_blend":
        y = E.add(E.mul(E.const(1 - a.blend, work), largest()),
                  E.mul(E.const(a.blend, work), average()))
    else:
        y = _lp(*loaded(0), a.p, work)
    return [Stage(out, ov, E.cast(y, out.dtype))]


def _lp(v: Expr, over: list[Var], p: int, work: DType) -> Expr:
    if p == 1:
        return E.reduce_("sum", over, E.unary("abs", v))
    if p == 2:
        return E.unary("sqrt", E.reduce_("sum", over, E.mul(v, v)))
    powers = E.binary("pow", E.unary("abs", v), E.const(float(p), work))
    return E.binary("pow", E.reduce_("sum", over, powers), E.const(1.0 / p, work))


def _count(
    lead: int, ov: Sequence[Expr], axes: Sequence[Axis], include_pad: bool, work: DType
) -> Expr:
    """How many elements the average divides by: the product of closed forms per dimension."""
    count: Expr = E.idx(1)
    for k, a in enumerate(axes):
        start = E.sub(E.mul(ov[lead + k], E.idx(a.stride)), E.idx(a.pre))
        low: Any = -a.pre if include_pad else 0
        high: Any = a.size + a.post if include_pad else a.size
        reach = (a.out - 1) * a.stride + a.span - a.pre
        first_ok = include_pad or (isinstance(a.pre, int) and a.pre <= 0)
        slack = high - reach
        if first_ok and isinstance(slack, int) and slack >= 0:
            count = E.mul(count, E.idx(a.window))
            continue
        count = E.mul(count, _hits(start, low, high, a))
    if isinstance(count, E.Const):
        return E.const(int(count.value), work)
    return E.cast(E.binary("max", count, E.idx(1)), work)


def _hits(start: Expr, low: Any, high: Any, a: Axis) -> Expr:
    """#{ j in [0, window) : low <= start + j*dilation < high }"""
    step = E.idx(a.dilation)

    def ceil_steps(distance: Expr) -> Expr:
        return E.binary("floordiv", E.add(distance, E.idx(a.dilation - 1)), step)

    zero, n = E.idx(0), E.idx(a.window)
    begin = E.binary("max", ceil_steps(E.sub(E.idx(low), start)), zero)
    end = E.binary("min", ceil_steps(E.sub(E.idx(high), start)), n)
    return E.binary("max", E.sub(end, begin), zero)


@dataclass(frozen=True)
class MaxPoolIndicesAttrs:
    """As `PoolingAttrs`; ``column_major`` counts positions with the first spatial dimension
    fastest (ONNX's ``storage_order=1``)."""

    window: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    pre: tuple[int, ...] = ()
    post: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    ceil: bool = False
    padding_mode: str = "explicit_down"
    column_major: bool = False


@register
class MaxPoolIndices(Op):
    """Max pooling with a second output: the position of each maximum in the flattened input
    (i64; ONNX's MaxPool with Indices)."""

    name = "max_pool_indices"
    kind = Kind.REDUCTION
    Attrs = MaxPoolIndicesAttrs

    def num_outputs(self, node: Node) -> int:
        return 2

    def infer(self, node: Node) -> Sequence[TensorType]:
        x, a = operand(node, 0), node.attrs
        if x.dtype.kind not in "iuf":
            raise OpError(f"max pooling does not take {x.dtype}: cast {x.name!r} to f32")
        lead = check_pool_input(x, a.window)
        shape = (*x.dims[:lead], *(p.out for p in pool_axes(x.dims[lead:], a)))
        return [TensorType(x.dtype, shape), TensorType(i64, shape)]

    def reference(self, node: Node, *inputs: Any) -> Any:
        x, a = widen(inputs[0]), node.attrs
        n = len(a.window)
        lead, sizes = x.shape[: x.ndim - n], x.shape[x.ndim - n :]
        axes = pool_axes(sizes, a)
        view = windows(x, axes, lowest(dtype(x.dtype)))
        strides = np.cumprod([1, *(sizes if a.column_major else sizes[::-1])])[:-1]
        strides = strides if a.column_major else strides[::-1]
        flat = sum(
            np.arange(s).reshape([-1 if i == k else 1 for i in range(n)]) * strides[k]
            for k, s in enumerate(sizes)
        )
        places = windows(np.asarray(flat, dtype=np.int64), axes, -1)
        rows = view.reshape(*view.shape[:-n], -1)
        inside = places.reshape(*places.shape[:-n], -1) >= 0
        # padding must not win a tie against the lowest value
        pick = _first_max(rows, np.broadcast_to(inside, rows.shape))
        values = np.take_along_axis(rows, pick[..., None], -1)[..., 0]
        places = np.broadcast_to(places.reshape(*places.shape[:-n], -1), rows.shape)
        where = np.take_along_axis(places, pick[..., None], -1)[..., 0]
        plane = int(np.prod(sizes, dtype=np.int64))
        base = np.arange(int(np.prod(lead, dtype=np.int64))).reshape(lead) * plane
        return values, where + base.reshape(lead + (1,) * n)


def _first_max(rows: Array, inside: Array) -> Array:
    peak = rows.max(axis=-1, keepdims=True)
    hit = inside & ((rows == peak) | (rows != rows))
    return np.where(hit.any(axis=-1), hit.argmax(axis=-1), inside.argmax(axis=-1))
