"""Reading images at computed, fractional positions: grid_sample, affine_grid, deform_conv."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..ir import dims as D
from ..ir import expr as E
from ..ir.dtypes import DType, f32, f64, i64
from ..ir.expr import Expr, Stage, Var
from ..ir.graph import Node, TensorType, Value
from ._numeric import Array, operands, shape_text, widen
from ._shapes import data_dims, ints, operand
from .conv import ConvolutionAttrs, check_bias, check_groups, check_ranks, conv_axes, kernel_extents
from .image import ResizeAttrs, kernel_expr, kernel_weights
from .registry import Kind, Op, OpError, register

_CUBIC = ResizeAttrs(mode="cubic", cubic_a=-0.75)
MODES = ("linear", "nearest", "cubic")
PADDINGS = ("zeros", "border", "reflection")


@dataclass(frozen=True)
class GridSampleAttrs:
    """
    Attributes:
        mode: ``linear``, ``nearest`` (ties to even) or ``cubic``.
        padding: What lies outside the input: ``zeros``, ``border``, ``reflection``.
        align_corners: -1 and 1 are the centres of the corner elements, not their outer edges.
    """

    mode: str = "linear"
    padding: str = "zeros"
    align_corners: bool = False


@register
class GridSample(Op):
    """Samples ``x [N, C, *in]`` at ``grid [N, *out, r]``: TensorRT's IGridSampleLayer, ONNX's
    GridSample. The last grid dimension holds positions in [-1, 1], innermost dimension first."""

    name = "grid_sample"
    kind = Kind.INDEX_MAP
    Attrs = GridSampleAttrs

    def infer(self, node: Node) -> Sequence[TensorType]:
        x, grid, a = operand(node, 0), operand(node, 1), node.attrs
        if a.mode not in MODES or a.padding not in PADDINGS:
            raise OpError(f"mode {a.mode!r} must be one of {', '.join(MODES)}; padding "
                          f"{a.padding!r} one of {', '.join(PADDINGS)}")
        r = x.rank - 2
        if r < 1 or grid.rank != x.rank or (D.is_static(grid.dims[-1]) and grid.dims[-1] != r):
            raise OpError(
                f"grid {shape_text(grid)} must be [N, ..., {max(r, 1)}] with as many dimensions "
                f"as x {shape_text(x)}, which must be [N, C, ...]"
            )
        if x.dtype.kind not in "iuf" or not grid.dtype.is_float:
            raise OpError(f"x {shape_text(x)} must be numeric and grid {shape_text(grid)} "
                          f"floating-point")
        return [TensorType(x.dtype, (*x.dims[:2], *grid.dims[1:-1]))]

    def reference(self, node: Node, *inputs: Any) -> Any:
        x, grid = np.asarray(inputs[0]), widen(inputs[1])
        work = np.float64 if x.dtype == np.float64 else np.float32
        a, r = node.attrs, x.ndim - 2
        flat = grid.reshape(grid.shape[0], -1, r).astype(work)
        at = [
            _unnormalize(flat[..., r - 1 - k], x.shape[2 + k], a.align_corners)
            for k in range(r)
        ]
        y = interpolate(x.astype(work), at, a)
        if x.dtype.kind in "iu":
            y = np.clip(np.trunc(y), np.iinfo(x.dtype).min, np.iinfo(x.dtype).max)
        return y.reshape(*x.shape[:2], *grid.shape[1:-1]).astype(x.dtype)

    def stages(self, node: Node) -> list[Stage] | None:
        x, grid, a, out = operand(node, 0), operand(node, 1), node.attrs, node.output
        work = f64 if x.dtype is f64 else f32
        ov = E.iter_vars(out.dims)
        r = x.rank - 2
        at = []
        for k in range(r):
            p = E.cast(E.load(grid, [ov[0], *ov[2:], E.idx(r - 1 - k)]), work)
            at.append(_unnormalize_expr(p, x.dims[2 + k], a.align_corners))
        y = sample_expr(x, ov[:2], at, a, work)
        return [Stage(out, ov, E.cast(y, out.dtype, saturate=out.dtype.is_int))]


# --- numpy ----------------------------------------------------------------------------------


def _unnormalize(p: Array, size: int, align: bool) -> Array:
    n = p.dtype.type(size)
    half, one = p.dtype.type(0.5), p.dtype.type(1)
    return (p + one) * half * (n - one) if align else ((p + one) * n - one) * half


def _bounds(size: Any, align: bool) -> tuple[float, Any]:
    """The lower end and the span of the range that reflection stays in."""
    return (0.0, size - 1) if align else (-0.5, size)


def _pad_position(p: Array, size: int, a: Any) -> Array:
    """Moves positions into the input for border and reflection padding."""
    if a.padding == "zeros":
        return _clamp(p, -2, size + 1)  # everything further out is as far out
    if a.padding == "reflection":
        low, span = _bounds(size, a.align_corners)
        if span <= 0:
            return np.zeros_like(p)
        low, span = p.dtype.type(low), p.dtype.type(span)
        with np.errstate(all="ignore"):
            distance = np.abs(p - low)
            extra, flips = np.fmod(distance, span), np.floor(distance / span)
        p = np.where(np.mod(flips, 2) == 0, extra + low, span - extra + low)
    return _clamp(p, 0, size - 1)


def _clamp(p: Array, low: int, high: int) -> Array:
    """Limits positions; NaN becomes the lower limit."""
    p = np.where(p > low, p, p.dtype.type(low))
    return np.where(p < high, p, p.dtype.type(high))


def interpolate(x: Array, at: Sequence[Array], a: Any) -> Array:
    """``x [N, C, *S]`` at positions ``at[k] [N, P]`` along dimension ``2 + k``: ``[N, C, P]``."""
    corners: list[list[tuple[Array, Array | None]]] = []  # per dimension: (index, weight)
    for k, p in enumerate(at):
        size = x.shape[2 + k]
        if a.mode == "cubic":
            p = _pad_position(p, size, a) if a.padding == "zeros" else p
            base = np.floor(p)
            corners.append([
                (base + t if a.padding == "zeros" else _pad_position(base + t, size, a),
                 kernel_weights(base + t - p, _CUBIC))
                for t in (-1, 0, 1, 2)
            ])
            continue
        p = _pad_position(p, size, a)
        if a.mode == "nearest":
            corners.append([(np.rint(p), None)])
        else:
            low = np.floor(p)
            corners.append([(low, 1 - (p - low)), (low + 1, p - low)])
    out = np.zeros((*x.shape[:2], at[0].shape[1]), x.dtype)
    n = np.arange(x.shape[0])[:, None]
    for choice in np.ndindex(*(len(c) for c in corners)):
        inside: Any = True
        weight: Any = 1
        index = []
        for k, t in enumerate(choice):
            place, w = corners[k][t]
            size = x.shape[2 + k]
            inside = inside & (place >= 0) & (place <= size - 1)
            index.append(np.clip(np.nan_to_num(place), 0, size - 1).astype(np.int64))
            weight = weight if w is None else weight * w
        # advanced indices around a slice put their dimensions first: [N, P, C]
        values = x[(n, slice(None), *index)].transpose(0, 2, 1)
        out += np.where(inside, weight, 0)[:, None, :].astype(x.dtype) * values
    return out


# --- expressions ----------------------------------------------------------------------------


def _unnormalize_expr(p: Expr, size: D.DimLike, align: bool) -> Expr:
    n = E.cast(E.idx(size), p.dtype)
    half, one = E.const(0.5, p.dtype), E.const(1.0, p.dtype)
    if align:
        return E.mul(E.mul(E.add(p, one), half), E.sub(n, one))
    return E.mul(E.sub(E.mul(E.add(p, one), n), one), half)


def _pad_expr(p: Expr, size: D.DimLike, a: Any) -> Expr:
    dt = p.dtype
    if a.padding == "zeros":
        return _clamp_expr(p, -2, size + 1)
    if a.padding == "reflection":
        low_value, span_dim = _bounds(size, a.align_corners)
        low = E.const(low_value, dt)
        span = E.binary("max", E.cast(E.idx(span_dim), dt), E.const(1.0, dt))
        distance = E.unary("abs", E.sub(p, low))
        extra = E.binary("fmod", distance, span)
        flips = E.unary("floor", E.div(distance, span))
        even = E.compare("eq", E.binary("fmod", flips, E.const(2.0, dt)), E.const(0.0, dt))
        p = E.select(even, E.add(extra, low), E.add(E.sub(span, extra), low))
    return _clamp_expr(p, 0, size - 1)


def _clamp_expr(p: Expr, low: int, high: D.DimLike) -> Expr:
    bottom, top = E.const(float(low), p.dtype), E.cast(E.idx(high), p.dtype)
    p = E.select(E.compare("gt", p, bottom), p, bottom)
    return E.select(E.compare("lt", p, top), p, top)


def _load_inside(x: Value, lead: Sequence[Expr], places: Sequence[Expr], work: DType) -> Expr:
    """x at whole positions, 0 outside."""
    terms: list[Expr] = []
    for k, p in enumerate(places):
        terms += [E.compare("ge", p, E.idx(0)), E.compare("lt", p, E.idx(x.dims[2 + k]))]
    guard = E.logical_and(*terms)
    return E.cast(E.load(x, [*lead, *places], guard, E.const(0, x.dtype)), work)


def sample_expr(
    x: Value, lead: Sequence[Expr], at: Sequence[Expr], a: Any, work: DType
) -> Expr:
    """``x[lead]`` at fractional positions ``at``."""
    if a.mode == "cubic":
        return _cubic_expr(x, lead, at, a, work)
    at = [_pad_expr(p, x.dims[2 + k], a) for k, p in enumerate(at)]
    if a.mode == "nearest":
        places = [E.cast(E.unary("round", p), i64) for p in at]
        return _load_inside(x, lead, places, work)
    lows = [E.unary("floor", p) for p in at]
    firsts = [E.cast(low, i64) for low in lows]
    ws = [E.sub(p, low) for p, low in zip(at, lows, strict=True)]

    def blend(k: int, places: list[Expr]) -> Expr:
        if k == len(at):
            return _load_inside(x, lead, places, work)
        near = blend(k + 1, [*places, firsts[k]])
        far = blend(k + 1, [*places, E.add(firsts[k], E.idx(1))])
        left = E.mul(E.sub(E.const(1.0, work), ws[k]), near)
        return E.add(left, E.mul(ws[k], far))

    return blend(0, [])


def _cubic_expr(
    x: Value, lead: Sequence[Expr], at: Sequence[Expr], a: Any, work: DType
) -> Expr:
    taps = [Var(i64, f"t{k}", 4) for k in range(len(at))]
    places: list[Expr] = []
    weight: Expr | None = None
    for k, (p, t) in enumerate(zip(at, taps, strict=True)):
        p = _pad_expr(p, x.dims[2 + k], a) if a.padding == "zeros" else p
        offset = E.cast(E.sub(t, E.idx(1)), work)
        place = E.add(E.unary("floor", p), offset)
        w = kernel_expr(E.sub(place, p), _CUBIC)
        weight = w if weight is None else E.mul(weight, w)
        inner = place if a.padding == "zeros" else _pad_expr(place, x.dims[2 + k], a)
        places.append(E.cast(inner, i64))
    assert weight is not None
    return E.reduce_("sum", taps, E.mul(weight, _load_inside(x, lead, places, work)))


# --- affine grid ----------------------------------------------------------------------------


@dataclass(frozen=True)
class AffineGridAttrs:
    """
    Attributes:
        align_corners: -1 and 1 are the centres of the corner elements, not their outer edges.
    """

    align_corners: bool = False


@register
class AffineGrid(Op):
    """Positions for `GridSample` from matrices: ONNX's AffineGrid. ``theta [N, r, r + 1]``,
    ``size`` holds ``N, C, *out``; the result is ``[N, *out, r]``."""

    name = "affine_grid"
    kind = Kind.POINTWISE
    Attrs = AffineGridAttrs

    def infer(self, node: Node) -> Sequence[TensorType]:
        theta, size = operands(node, 2)
        r = theta.dims[1] if theta.rank == 3 else None
        if r not in (2, 3) or theta.dims[2] != r + 1 or not theta.dtype.is_float:  # type: ignore[operator]
            raise OpError(f"theta {shape_text(theta)} must be floating-point [N, 2, 3] or [N, 3, "
                          f"4]")
        assert isinstance(r, int)
        if size.rank != 1 or (D.is_static(size.dims[0]) and size.dims[0] != r + 2):
            raise OpError(f"size {shape_text(size)} must hold {r + 2} numbers: N, C and the "
                          f"spatial extents")
        known = ints(size)
        spatial = data_dims(node, r) if known is None else tuple(known[2:])
        return [TensorType(theta.dtype, (theta.dims[0], *spatial, r))]

    def reference(self, node: Node, *inputs: Any) -> Any:
        theta = widen(inputs[0])
        sizes = [int(s) for s in np.ravel(inputs[1])[2:]]
        axes = []
        for n in sizes:
            i = np.arange(n, dtype=theta.dtype)
            if node.attrs.align_corners:
                axes.append(i * theta.dtype.type(2) / max(n - 1, 1) - (1 if n > 1 else 0))
            else:
                axes.append((2 * i + 1) / theta.dtype.type(n) - 1)
        mesh = np.meshgrid(*axes, indexing="ij")
        points = np.stack([*mesh[::-1], np.ones_like(mesh[0])], axis=-1)
        y = np.einsum("...j,nij->n...i", points, theta)
        return y.astype(theta.dtype)

    def stages(self, node: Node) -> list[Stage] | None:
        theta, out = operand(node, 0), node.output
        if ints(node.inputs[1]) is None:
            return None
        work = f64 if theta.dtype is f64 else f32
        ov = E.iter_vars(out.dims)
        row, r = ov[-1], out.rank - 2
        y = E.cast(E.load(theta, [ov[0], row, E.idx(r)]), work)
        for k in range(r):
            d = r - 1 - k  # innermost dimension first
            p = _normalized(E.cast(ov[1 + d], work), out.dims[1 + d], node.attrs.align_corners)
            y = E.add(y, E.mul(E.cast(E.load(theta, [ov[0], row, E.idx(k)]), work), p))
        return [Stage(out, ov, E.cast(y, out.dtype))]


def _normalized(i: Expr, size: D.DimLike, align: bool) -> Expr:
    dt = i.dtype
    one, two = E.const(1.0, dt), E.const(2.0, dt)
    n = E.cast(E.idx(size), dt)
    if not align:
        return E.sub(E.div(E.add(E.mul(two, i), one), n), one)
    span = E.binary("max", E.sub(n, one), one)
    # a single element sits at 0
    origin = E.binary("min", E.sub(n, one), one)
    return E.sub(E.div(E.mul(i, two), span), origin)


# --- deformable convolution -----------------------------------------------------------------


@dataclass(frozen=True)
class DeformConvAttrs(ConvolutionAttrs):
    """As `ConvolutionAttrs`; channels split into ``offset_groups`` that share offsets."""

    offset_groups: int = 1


_PLAIN = GridSampleAttrs()


@register
class DeformConv(Op):
    """A convolution that reads at shifted positions: ONNX's DeformConv. Inputs ``x, w, offset,
    b?, mask?``: ``offset [N, offset_groups * taps * r, *out]``, ``mask [N, offset_groups * taps,
    *out]``."""

    name = "deform_conv"
    kind = Kind.CONTRACTION
    Attrs = DeformConvAttrs

    def infer(self, node: Node) -> Sequence[TensorType]:
        x, w, offset, b, mask = operands(node, 3, 5)
        a = node.attrs
        check_ranks(x, w)
        check_groups(x, w, a.groups)
        check_bias(b, w.dims[0], x)
        window = kernel_extents(w)
        axes = conv_axes(x.dims[2:], window, a)
        taps, r = int(np.prod(window)), len(window)
        if D.is_static(x.dims[1]) and int(x.dims[1]) % a.offset_groups:
            raise OpError(f"{x.dims[1]} channels of x {shape_text(x)} do not divide into "
                          f"{a.offset_groups} offset groups")
        out = tuple(p.out for p in axes)
        for what, v, rows in (("offset", offset, taps * r), ("mask", mask, taps)):
            want = (x.dims[0], a.offset_groups * rows, *out)
            if v is not None and (v.rank != x.rank or any(
                D.is_static(p, q) and p != q for p, q in zip(v.dims, want, strict=True)
            )):
                raise OpError(f"{what} must have shape [{', '.join(map(str, want))}], but is "
                              f"{shape_text(v)}")
        return [TensorType(x.dtype, (x.dims[0], w.dims[0], *out))]

    def reference(self, node: Node, *inputs: Any) -> Any:
        x, w, offset, b, mask = (*inputs, None, None)[:5]
        x, w, offset, a = widen(x), widen(w), widen(offset), node.attrs
        n, c, window, r = x.shape[0], x.shape[1], w.shape[2:], x.ndim - 2
        axes = conv_axes(x.shape[2:], window, a)
        taps, out, og = int(np.prod(window)), offset.shape[2:], a.offset_groups
        offset = offset.reshape(n, og, taps, r, *out)
        at = []
        for k, p in enumerate(axes):
            start = np.arange(int(p.out)) * p.stride - int(p.pre)
            start = start.reshape([-1 if i == k else 1 for i in range(r)])
            tap = np.unravel_index(np.arange(taps), window)[k] * p.dilation
            whole = tap.reshape(-1, *(1,) * r) + start
            at.append((offset[:, :, :, k] + whole.astype(x.dtype)).reshape(n * og, -1))
        cols = interpolate(x.reshape(n * og, c // og, *x.shape[2:]), at, _PLAIN)
        cols = cols.reshape(n, og, c // og, taps, *out)
        if mask is not None:
            cols = cols * widen(mask).reshape(n, og, 1, taps, *out)
        cols = cols.reshape(n, a.groups, c // a.groups * taps, -1)
        y = np.matmul(w.reshape(a.groups, w.shape[0] // a.groups, -1), cols)
        y = y.reshape(n, w.shape[0], *out)
        return y if b is None else y + widen(b).reshape(1, -1, *(1,) * r)

    def stages(self, node: Node) -> list[Stage] | None:
        return _deform_stages(node)


def _deform_stages(node: Node) -> list[Stage] | None:
    x, w, offset, b, mask = operands(node, 3, 5)
    a, out = node.attrs, node.output
    if not D.is_static(x.dims[1]):
        return None
    work = f64 if x.dtype is f64 else f32
    window, cg = kernel_extents(w), int(w.dims[1])  # type: ignore[arg-type]
    axes = conv_axes(x.dims[2:], window, a)
    ov, c = E.iter_vars(out.dims), Var(i64, "c", cg)
    over = [Var(i64, f"w{k}", p.window) for k, p in enumerate(axes)]
    group = E.binary("floordiv", ov[1], E.idx(D.floor_div(w.dims[0], a.groups)))
    channel = E.add(E.mul(group, E.idx(cg)), c)
    shared = E.binary("floordiv", channel, E.idx(int(x.dims[1]) // a.offset_groups))
    tap: Expr = E.idx(0)
    for v, p in zip(over, axes, strict=True):
        tap = E.add(E.mul(tap, E.idx(p.window)), v)
    taps, r = int(np.prod(window)), len(window)
    row = E.add(E.mul(shared, E.idx(taps)), tap)
    at: list[Expr] = []
    for k, p in enumerate(axes):
        whole = E.add(E.mul(ov[2 + k], E.idx(p.stride)), E.mul(over[k], E.idx(p.dilation)))
        whole = E.cast(E.sub(whole, E.idx(p.pre)), work)
        line = E.add(E.mul(row, E.idx(r)), E.idx(k))
        at.append(E.add(whole, E.cast(E.load(offset, [ov[0], line, *ov[2:]]), work)))
    term = sample_expr(x, [ov[0], channel], at, _PLAIN, work)
    if mask is not None:
        term = E.mul(term, E.cast(E.load(mask, [ov[0], row, *ov[2:]]), work))
    term = E.mul(term, E.cast(E.load(w, [ov[1], c, *over]), work))
    y: Expr = E.reduce_("sum", (c, *over), term)
    if b is not None:
        y = E.add(y, E.cast(E.load(b, [ov[1]]), work))
    return [Stage(out, ov, E.cast(y, out.dtype))]
