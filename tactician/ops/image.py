"""Resizing of images and volumes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from ..ir import dims as D
from ..ir import expr as E
from ..ir.dtypes import DType, f32, f64, i64
from ..ir.expr import Expr, Stage, Var
from ..ir.graph import Node, TensorType, Value
from ._numeric import Array, operands, shape_text
from ._shapes import data_dim, ints, operand
from .reduce import check_axes
from .registry import Kind, Op, OpError, register, temp

MODES = ("nearest", "linear", "cubic")
COORDINATES = (
    "half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric",
    "tf_half_pixel_for_nn", "tf_crop_and_resize",
)
NEAREST = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
POLICIES = ("stretch", "not_larger", "not_smaller")


@dataclass(frozen=True)
class ResizeAttrs:
    """
    Attributes:
        mode: ``nearest``, ``linear`` or ``cubic``.
        coordinate: How output positions map to input positions, one of `COORDINATES`.
        nearest: How ``nearest`` rounds positions, one of `NEAREST`.
        cubic_a: The cubic kernel's parameter.
        exclude_outside: Drop taps outside the input instead of repeating its edge.
        extrapolation: Value for positions outside the input (``tf_crop_and_resize``).
        antialias: Widen the kernel when an axis shrinks (linear, cubic).
        axes: Resized dimensions, which the entries of ``sizes`` and ``scales`` stand for; empty
            means all.
        keep_aspect: With ``sizes``: ``stretch`` to them, or scale all axes alike to be
            ``not_larger`` or ``not_smaller`` than them.
    """

    mode: str = "nearest"
    coordinate: str = "half_pixel"
    nearest: str = "round_prefer_floor"
    cubic_a: float = -0.75
    exclude_outside: bool = False
    extrapolation: float = 0.0
    antialias: bool = False
    axes: tuple[int, ...] = ()
    keep_aspect: str = "stretch"


@dataclass(frozen=True)
class Plan:
    """How one axis is resized.

    Attributes:
        size, out: Extents before and after.
        scale: Output over input, where it was given; else it is ``out / size``.
        begin, end: The cropped range, as fractions (``tf_crop_and_resize``).
    """

    axis: int
    size: D.DimLike
    out: D.DimLike
    scale: float | None
    begin: float = 0.0
    end: float = 1.0

    def is_identity(self, coordinate: str) -> bool:
        return (
            coordinate != "tf_crop_and_resize" and self.size == self.out and self.scale in (None, 1)
        )

    def shrink(self) -> float:
        """The factor that antialiasing widens the kernel by, inverted; 1 if it grows."""
        ratio = int(self.out) / int(self.size) if self.scale is None else self.scale
        return min(ratio, 1.0)


def _scaled(size: D.DimLike, scale: float) -> D.DimLike:
    """``floor(size * scale)``, in f32 for numbers; symbols use the simplest equal fraction."""
    if not isinstance(size, D.Dim):
        return int(np.floor(np.float32(size) * np.float32(scale)))
    ratio = Fraction(float(scale)).limit_denominator(4096)
    if np.float32(float(ratio)) != np.float32(scale):
        ratio = Fraction(float(scale))
    return D.floor_div(size * ratio.numerator, ratio.denominator)


def make_plans(
    shape: Sequence[D.DimLike], attrs: ResizeAttrs, sizes: Sequence[Any] | None,
    scales: Sequence[float] | None, roi: Sequence[float] | None,
) -> list[Plan]:
    """One plan per resized axis, from the contents of ``sizes`` or ``scales``."""
    axes = tuple(a % len(shape) for a in attrs.axes) or tuple(range(len(shape)))
    factors: list[float | None] = [None] * len(axes)
    if sizes is None:
        assert scales is not None
        factors = [float(s) for s in scales]
        sizes = [_scaled(shape[a], float(s)) for a, s in zip(axes, scales, strict=True)]
    elif attrs.keep_aspect != "stretch":
        ratios = [int(s) / int(shape[a]) for a, s in zip(axes, sizes, strict=True)]
        ratio = min(ratios) if attrs.keep_aspect == "not_larger" else max(ratios)
        factors = [ratio] * len(axes)
        sizes = [int(np.floor(ratio * int(shape[a]) + 0.5)) for a in axes]
    bounds = list(roi) if roi is not None and len(roi) else [0.0] * len(axes) + [1.0] * len(axes)
    return [
        Plan(a, shape[a], sizes[k], factors[k], float(bounds[k]), float(bounds[k + len(axes)]))
        for k, a in enumerate(axes)
    ]


@register
class Resize(Op):
    """TensorRT's IResizeLayer, ONNX's Resize and Upsample: inputs ``x, sizes?, scales?, roi?``,
    exactly one of ``sizes`` (integers) and ``scales`` (f32)."""

    name = "resize"
    kind = Kind.INDEX_MAP
    Attrs = ResizeAttrs

    def infer(self, node: Node) -> Sequence[TensorType]:
        x, sizes, scales, roi = operands(node, 1, 4)
        a = node.attrs
        for what, value, known in (("mode", a.mode, MODES), ("coordinate", a.coordinate,
                                   COORDINATES), ("nearest", a.nearest, NEAREST),
                                   ("keep_aspect", a.keep_aspect, POLICIES)):
            if value not in known:
                raise OpError(f"{what} {value!r} is not one of {', '.join(known)}")
        if (sizes is None) == (scales is None):
            raise OpError("give exactly one of sizes and scales")
        axes = tuple(i % max(x.rank, 1) for i in a.axes) or tuple(range(x.rank))
        check_axes(x, a.axes)
        given = sizes if sizes is not None else scales
        assert given is not None
        _check_vector("sizes" if sizes is not None else "scales", given, len(axes), x)
        if a.coordinate == "tf_crop_and_resize":
            if roi is None:
                raise OpError("coordinate tf_crop_and_resize needs the roi input")
            _check_vector("roi", roi, 2 * len(axes), x)
        shape = list(x.dims)
        plans = _known_plans(node)
        if plans is None:
            for k, i in enumerate(axes):
                shape[i] = data_dim(node, k)
        for p in plans or ():
            if not isinstance(p.out, D.Dim) and p.out < 1 and p.size != 0:
                raise OpError(f"dimension {p.axis} of {shape_text(x)} would become {p.out}: use "
                              f"sizes and scales above 0")
            shape[p.axis] = p.out
        return [TensorType(x.dtype, tuple(shape))]

    def reference(self, node: Node, *inputs: Any) -> Any:
        x, sizes, scales, roi = (*inputs, None, None, None)[:4]
        x = np.asarray(x)
        plans = make_plans(
            x.shape, node.attrs, None if sizes is None else [int(s) for s in np.ravel(sizes)],
            None if scales is None else [float(s) for s in np.ravel(scales)],
            None if roi is None else np.ravel(roi).tolist(),
        )
        return _resize_array(x, [p for p in plans if not p.is_identity(node.attrs.coordinate)],
                             node.attrs)

    def stages(self, node: Node) -> list[Stage] | None:
        plans = _known_plans(node)
        x, a = operand(node, 0), node.attrs
        if plans is None or x.dtype.kind not in "iuf":
            return None
        if a.coordinate == "tf_crop_and_resize" and _floats(node, 3) is None:
            return None
        plans = [p for p in plans if not p.is_identity(a.coordinate)]
        if not plans:
            ov = E.iter_vars(node.output.dims)
            return [Stage(node.output, ov, E.load(x, ov))]
        if a.mode == "nearest" or (a.mode == "linear" and not a.antialias and len(plans) <= 3):
            return [_direct_stage(node, plans)]
        if a.antialias and not all(D.is_static(p.size, p.out) for p in plans):
            return None  # the number of taps depends on sizes
        return _separable_stages(node, plans)


def _check_vector(what: str, v: Value, count: int, x: Value) -> None:
    if v.rank != 1 or (D.is_static(v.dims[0]) and v.dims[0] != count):
        raise OpError(f"{what} {shape_text(v)} must be a vector of {count}, for the resized "
                      f"dimensions of x {shape_text(x)}")


def _floats(node: Node, i: int) -> list[float] | None:
    v = node.inputs[i] if i < len(node.inputs) else None
    return None if v is None or v.const is None else [float(c) for c in v.const.ravel()]


def _known_plans(node: Node) -> list[Plan] | None:
    """Plans if sizes or scales are known while building."""
    x, sizes = operand(node, 0), node.inputs[1] if len(node.inputs) > 1 else None
    roi = _floats(node, 3)
    if sizes is None:
        scales = _floats(node, 2)
        return None if scales is None else make_plans(x.dims, node.attrs, None, scales, roi)
    known = ints(sizes)
    if known is None:
        return None
    if node.attrs.keep_aspect != "stretch":
        axes = tuple(a % x.rank for a in node.attrs.axes) or tuple(range(x.rank))
        if not D.is_static(*known, *(x.dims[a] for a in axes)):
            return None
    return make_plans(x.dims, node.attrs, known, None, roi)


# --- positions, once for numpy and for expressions ------------------------------------------


class _Numpy:
    """f32 arithmetic on arrays."""

    def num(self, v: Any) -> Any:
        return np.float32(v)

    def add(self, a: Any, b: Any) -> Any:
        return a + b

    def sub(self, a: Any, b: Any) -> Any:
        return a - b

    def mul(self, a: Any, b: Any) -> Any:
        return a * b

    def div(self, a: Any, b: Any) -> Any:
        with np.errstate(all="ignore"):
            return a / b

    def if_single(self, p: Plan, one: Any, many: Any) -> Any:
        return one if _single(p) else many


class _Exprs:
    """The same on expressions; sizes may be symbolic."""

    def num(self, v: Any) -> Any:
        return E.cast(E.idx(v), f32) if isinstance(v, D.Dim) else E.const(float(v), f32)

    add, sub = staticmethod(E.add), staticmethod(E.sub)
    mul, div = staticmethod(E.mul), staticmethod(E.div)

    def if_single(self, p: Plan, one: Any, many: Any) -> Any:
        single = _single(p)
        if single is None:
            return E.select(E.compare("eq", E.idx(p.out), E.idx(1)), one, many)
        return one if single else many


def _single(p: Plan) -> bool | None:
    """Whether the output has one element; None if that is symbolic."""
    if p.scale is not None and D.is_static(p.size):
        return bool(np.float32(p.scale) * np.float32(p.size) == 1)
    return None if isinstance(p.out, D.Dim) else p.out == 1


def position(p: Plan, at: Any, coordinate: str, m: Any) -> Any:
    """Input position (f32) of output positions ``at`` (f32), in the arithmetic ``m``."""
    last = m.sub(m.num(p.size), m.num(1))
    half = m.num(0.5)

    def unscaled(v: Any) -> Any:
        if p.scale is not None:
            return m.div(v, m.num(p.scale))
        return m.div(m.mul(v, m.num(p.size)), m.num(p.out))  # exact products, rounded once

    # the exact extent of the output, before rounding to whole elements
    length = m.num(p.out) if p.scale is None else m.mul(m.num(p.size), m.num(p.scale))
    centred = m.sub(unscaled(m.add(at, half)), half)
    start = m.mul(at, m.num(0))
    if coordinate == "asymmetric":
        return unscaled(at)
    if coordinate == "tf_half_pixel_for_nn":
        return unscaled(m.add(at, half))
    if coordinate == "pytorch_half_pixel":
        return m.if_single(p, start, centred)
    if coordinate == "half_pixel_symmetric":
        adjustment = m.div(m.num(p.out), length)
        offset = m.mul(m.mul(m.num(p.size), half), m.sub(m.num(1), adjustment))
        return m.add(offset, centred)
    if coordinate == "half_pixel":
        return centred
    begin, end = (0.0, 1.0) if coordinate == "align_corners" else (p.begin, p.end)
    middle = 0.0 if coordinate == "align_corners" else 0.5 * (begin + end)
    spread = m.mul(at, m.mul(m.num(end - begin), last))
    spread = m.add(m.div(spread, m.sub(length, m.num(1))), m.mul(m.num(begin), last))
    return m.if_single(p, m.add(start, m.mul(m.num(middle), last)), spread)


# --- numpy ----------------------------------------------------------------------------------


def _resize_array(x: Array, plans: Sequence[Plan], a: ResizeAttrs) -> Array:
    dt = x.dtype
    work: Any = np.float64 if dt == np.float64 else np.float32
    y = x if a.mode == "nearest" else x.astype(work)
    outside: Any = np.zeros((1,) * x.ndim, dtype=bool)
    for p in plans:
        at = position(p, np.arange(int(p.out), dtype=np.float32), a.coordinate, _Numpy())
        if a.coordinate == "tf_crop_and_resize":
            miss = (at < 0) | (at > int(p.size) - 1)
            outside = outside | miss.reshape([-1 if i == p.axis else 1 for i in range(x.ndim)])
        if a.mode == "nearest":
            y = np.take(y, np.clip(_round(at, a.nearest), 0, int(p.size) - 1), axis=p.axis)
        else:
            y = _filter_axis(y, p, at.astype(work), a)
    if a.mode != "nearest" and dt.kind in "iu":
        y = np.clip(np.trunc(y), np.iinfo(dt).min, np.iinfo(dt).max)
    if outside.any():
        y = np.where(outside, np.asarray(a.extrapolation, y.dtype), y)
    return y.astype(dt)


def _round(at: Array, how: str) -> Array:
    table: dict[str, Any] = {
        "floor": np.floor, "ceil": np.ceil,
        "round_prefer_floor": lambda v: np.ceil(v - np.float32(0.5)),
        "round_prefer_ceil": lambda v: np.floor(v + np.float32(0.5)),
    }
    return np.asarray(table[how](at)).astype(np.int64)


def taps_of(p: Plan, a: ResizeAttrs) -> tuple[int, int, float]:
    """First tap relative to the floor of the position, number of taps, kernel scale."""
    reach = 1 if a.mode == "linear" else 2
    scale = p.shrink() if a.antialias else 1.0
    start = int(np.floor(-reach / scale)) + 1
    return start, 2 - 2 * start, scale


def kernel_weights(d: Array, a: ResizeAttrs) -> Array:
    """Kernel weight at distance ``d``."""
    d = np.abs(d)
    if a.mode == "linear":
        return np.maximum(1 - d, 0)
    c = d.dtype.type(a.cubic_a)
    near = ((c + 2) * d - (c + 3)) * d * d + 1
    far = ((c * d - 5 * c) * d + 8 * c) * d - 4 * c
    return np.where(d <= 1, near, np.where(d < 2, far, 0))


def _filter_axis(y: Array, p: Plan, at: Array, a: ResizeAttrs) -> Array:
    start, count, scale = taps_of(p, a)
    places = np.floor(at)[:, None] + np.arange(start, start + count, dtype=at.dtype)
    weights = kernel_weights((places - at[:, None]) * at.dtype.type(scale), a)
    where = places.astype(np.int64)
    if a.exclude_outside:
        weights = np.where((where >= 0) & (where < int(p.size)), weights, 0)
    if a.exclude_outside or a.antialias:
        total = weights.sum(axis=1, keepdims=True)
        weights = weights / np.where(total == 0, 1, total)
    where = np.clip(where, 0, int(p.size) - 1)
    out: Any = 0
    for t in range(count):
        w = weights[:, t].reshape([-1 if i == p.axis else 1 for i in range(y.ndim)])
        out = out + np.take(y, where[:, t], axis=p.axis) * w.astype(y.dtype)
    return out


# --- stages ---------------------------------------------------------------------------------


def _integer_step(p: Plan, a: ResizeAttrs) -> int | None:
    """k if nearest output ``i`` reads input ``i // k``: whole-number enlargement."""
    if p.scale is not None:
        k = int(p.scale) if p.scale == int(p.scale) else 0
    else:
        ratio = D.floor_div(p.out, p.size) if p.size != 0 else 0
        k = ratio if isinstance(ratio, int) and ratio * p.size == p.out else 0
    if k < 1:
        return None
    if a.coordinate == "asymmetric" and a.nearest == "floor":
        return k
    rounds = a.nearest in ("round_prefer_floor", "round_prefer_ceil")
    exact = a.coordinate in ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric")
    return k if exact and rounds else None


def _clamped(e: Expr, size: D.DimLike) -> Expr:
    low = E.binary("max", e, E.const(0, e.dtype))
    return E.binary("min", low, E.cast(E.idx(size - 1), e.dtype))


def _nearest_index(p: Plan, v: Expr, a: ResizeAttrs) -> tuple[Expr, Expr | None]:
    """Input index of output index ``v``, and the unrounded position if it was computed."""
    k = _integer_step(p, a)
    if k is not None:
        return E.binary("floordiv", v, E.idx(k)), None
    at = position(p, E.cast(v, f32), a.coordinate, _Exprs())
    half = E.const(0.5, f32)
    rounded = {
        "floor": lambda: E.unary("floor", at),
        "ceil": lambda: E.unary("ceil", at),
        "round_prefer_floor": lambda: E.unary("ceil", E.sub(at, half)),
        "round_prefer_ceil": lambda: E.unary("floor", E.add(at, half)),
    }[a.nearest]()
    return _clamped(E.cast(rounded, i64), p.size), at


def _outside(p: Plan, at: Expr) -> Expr:
    last = E.cast(E.idx(p.size - 1), f32)
    return E.binary("or", E.compare("lt", at, E.const(0.0, f32)), E.compare("gt", at, last))


def _work_type(x: Value) -> DType:
    return f64 if x.dtype is f64 else f32


def _finish(y: Expr, out: Value, outside: Sequence[Expr], a: ResizeAttrs) -> Expr:
    y = E.cast(y, out.dtype, saturate=out.dtype.is_int)
    filler = int(a.extrapolation) if out.dtype.is_int else a.extrapolation
    for miss in outside:
        y = E.select(miss, E.const(filler, out.dtype), y)
    return y


def _direct_stage(node: Node, plans: Sequence[Plan]) -> Stage:
    """Nearest, and linear over up to three axes: one read per corner."""
    x, a, out = operand(node, 0), node.attrs, node.output
    ov = E.iter_vars(out.dims)
    work = _work_type(x)
    outside: list[Expr] = []
    corners: list[list[tuple[Expr, Expr | None]]] = []  # per plan: (index, weight)
    for p in plans:
        if a.mode == "nearest":
            index, at = _nearest_index(p, ov[p.axis], a)
            corners.append([(index, None)])
        else:
            at = position(p, E.cast(ov[p.axis], f32), a.coordinate, _Exprs())
            inner = _clamped(at, p.size)
            low = E.unary("floor", inner)
            w = E.cast(E.sub(inner, low), work)
            first = E.cast(low, i64)
            second = E.binary("min", E.add(first, E.idx(1)), E.idx(p.size - 1))
            corners.append([(first, E.sub(E.const(1.0, work), w)), (second, w)])
        if a.coordinate == "tf_crop_and_resize" and at is not None:
            outside.append(_outside(p, at))

    def blend(k: int, index: dict[int, Expr]) -> Expr:
        if k == len(plans):
            v: Expr = E.load(x, [index.get(i, ov[i]) for i in range(x.rank)])
            return v if a.mode == "nearest" else E.cast(v, work)
        total: Expr | None = None
        for place, weight in corners[k]:
            v = blend(k + 1, {**index, plans[k].axis: place})
            v = v if weight is None else E.mul(weight, v)
            total = v if total is None else E.add(total, v)
        assert total is not None
        return total

    return Stage(out, ov, _finish(blend(0, {}), out, outside, a))


def kernel_expr(d: Expr, a: ResizeAttrs) -> Expr:
    dt = d.dtype

    def c(v: float) -> Expr:
        return E.const(v, dt)

    d = E.unary("abs", d)
    if a.mode == "linear":
        return E.binary("max", E.sub(c(1.0), d), c(0.0))
    k = a.cubic_a
    near = E.add(E.mul(E.mul(E.sub(E.mul(c(k + 2), d), c(k + 3)), d), d), c(1.0))
    far = E.sub(
        E.mul(E.add(E.mul(E.sub(E.mul(c(k), d), c(5 * k)), d), c(8 * k)), d), c(4 * k)
    )
    zero = E.select(E.compare("lt", d, c(2.0)), far, c(0.0))
    return E.select(E.compare("le", d, c(1.0)), near, zero)


def _separable_stages(node: Node, plans: Sequence[Plan]) -> list[Stage]:
    """One pass per axis, each a weighted sum of taps."""
    x, a, out = operand(node, 0), node.attrs, node.output
    work, source, stages = _work_type(x), x, []
    for k, p in enumerate(plans):
        last = k == len(plans) - 1
        shape = tuple(out.dims) if last else tuple(
            p.out if i == p.axis else d for i, d in enumerate(source.dims)
        )
        target = out if last else temp(node, f"axis{p.axis}", work, shape)
        ov = E.iter_vars(shape)
        y = _filtered(source, p, ov, a, work)
        outside: list[Expr] = []
        if last and a.coordinate == "tf_crop_and_resize":
            outside = [
                _outside(q, position(q, E.cast(ov[q.axis], f32), a.coordinate, _Exprs()))
                for q in plans
            ]
        stages.append(Stage(target, ov, _finish(y, target, outside, a) if last else y))
        source = target
    return stages


def _filtered(source: Value, p: Plan, ov: Sequence[Var], a: ResizeAttrs, work: DType) -> Expr:
    start, count, scale = taps_of(p, a)
    at = position(p, E.cast(ov[p.axis], f32), a.coordinate, _Exprs())
    base = E.add(E.cast(E.unary("floor", at), i64), E.idx(start))

    def weight(t: Var) -> tuple[Expr, Expr]:
        place = E.add(base, t)
        d = E.sub(E.cast(place, work), E.cast(at, work))
        w = kernel_expr(E.mul(d, E.const(scale, work)), a)
        if a.exclude_outside:
            inside = E.logical_and(E.compare("ge", place, E.idx(0)),
                                   E.compare("lt", place, E.idx(p.size)))
            w = E.select(inside, w, E.const(0.0, work))
        return w, place

    t = Var(i64, "t", count)
    w, place = weight(t)
    index = [_clamped(place, p.size) if i == p.axis else v for i, v in enumerate(ov)]
    total = E.reduce_("sum", (t,), E.mul(E.cast(E.load(source, index), work), w))
    if not (a.exclude_outside or a.antialias):
        return total
    t = Var(i64, "t", count)
    norm = E.reduce_("sum", (t,), weight(t)[0])
    zero = E.compare("eq", norm, E.const(0.0, work))
    return E.div(total, E.select(zero, E.const(1.0, work), norm))
