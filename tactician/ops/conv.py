"""Convolutions over any number of spatial dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..ir import dims as D
from ..ir import expr as E
from ..ir.dtypes import DType, i32, i64
from ..ir.expr import Expr, Stage, Var
from ..ir.graph import Node, TensorType, Value
from ._numeric import Array, accumulator, operands, shape_text, widen
from ._windows import Axis, per_axis, resolve, windows
from .contraction import exact_i32
from .pooling import inside_guard, window_positions
from .registry import Kind, Op, OpError, register


@dataclass(frozen=True)
class ConvolutionAttrs:
    """One entry per spatial dimension in every tuple; empty means 1 (padding: 0).

    Attributes:
        stride, pre, post, dilation: Geometry of the windows.
        groups: Channel groups that do not mix.
        padding_mode: See `tactician.ops._windows`.
    """

    stride: tuple[int, ...] = ()
    pre: tuple[int, ...] = ()
    post: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    padding_mode: str = "explicit_down"


def kernel_extents(w: Value) -> tuple[int, ...]:
    """Spatial extents of weights ``[., ., *window]``.

    Raises:
        OpError: If they are symbolic.
    """
    if not D.is_static(*w.dims[2:]):
        raise OpError(f"the window of weights {shape_text(w)} must have fixed extents")
    return tuple(int(d) for d in w.dims[2:])


def conv_axes(sizes: Sequence[D.DimLike], window: Sequence[int], a: Any) -> list[Axis]:
    return resolve(sizes, window, a.stride, a.pre, a.post, a.dilation, a.padding_mode)


def check_ranks(x: Value, w: Value, deconv: bool = False) -> None:
    layout = "[C, K/groups, ...]" if deconv else "[K, C/groups, ...]"
    if x.rank < 3 or w.rank != x.rank:
        raise OpError(
            f"x {shape_text(x)} must be [N, C, ...] with at least one spatial dimension, and "
            f"weights {shape_text(w)} {layout} with as many"
        )
    if x.dtype is not w.dtype:
        raise OpError(f"x is {x.dtype} but weights are {w.dtype}: cast one of them")


def check_bias(b: Value | None, channels: D.DimLike, x: Value) -> None:
    if b is None:
        return
    if b.dtype is not x.dtype or b.rank != 1 or (
        D.is_static(b.dims[0], channels) and b.dims[0] != channels
    ):
        raise OpError(f"bias must be {x.dtype}[{channels}], one per output channel, but is "
                      f"{shape_text(b)}")


def check_groups(x: Value, w: Value, groups: int) -> None:
    k, c = w.dims[:2]
    if groups < 1:
        raise OpError(f"groups is {groups}, but must be at least 1")
    if D.is_static(k) and int(k) % groups:
        raise OpError(f"{k} output channels of weights {shape_text(w)} do not divide into "
                      f"{groups} groups")
    if D.is_static(x.dims[1], c) and x.dims[1] != c * groups:
        raise OpError(
            f"x {shape_text(x)} has {x.dims[1]} channels, but weights {shape_text(w)} expect "
            f"{c} * {groups} groups = {c * groups}: transpose x to [N, C, ...] or set groups"
        )


def _bias_shaped(b: Any, spatial: int) -> Any:
    return widen(b).reshape(1, -1, *(1,) * spatial)


@register
class Convolution(Op):
    """TensorRT's IConvolutionLayer, ONNX's Conv: ``x [N, C, ...]``, ``w [K, C/groups, ...]``,
    ``b [K]``. A correlation: the window is not flipped."""

    name = "convolution"
    kind = Kind.CONTRACTION
    Attrs = ConvolutionAttrs

    def infer(self, node: Node) -> Sequence[TensorType]:
        x, w, b = operands(node, 2, 3)
        check_ranks(x, w)
        check_groups(x, w, node.attrs.groups)
        check_bias(b, w.dims[0], x)
        axes = conv_axes(x.dims[2:], kernel_extents(w), node.attrs)
        return [TensorType(x.dtype, (x.dims[0], w.dims[0], *(a.out for a in axes)))]

    def reference(self, node: Node, *inputs: Any) -> Any:
        x, w, b = (*inputs, None)[:3]
        x, w = widen(x), widen(w)
        y = correlate(x, w, conv_axes(x.shape[2:], w.shape[2:], node.attrs), node.attrs.groups)
        return y if b is None else y + _bias_shaped(b, x.ndim - 2)

    def stages(self, node: Node) -> list[Stage] | None:
        return convolution_stages(node)


_COLUMNS_LIMIT = 1 << 23  # elements of an im2col buffer worth making


def correlate(x: Array, w: Array, axes: Sequence[Axis], groups: int) -> Array:
    """Grouped correlation in the arrays' own type, through matrix products."""
    n, c = x.shape[:2]
    k, cg = w.shape[:2]
    spatial = len(axes)
    view = windows(x, axes, 0)  # [N, C, *out, *window]
    out = view.shape[2 : 2 + spatial]
    window = w.shape[2:]
    points, taps = int(np.prod(out)), int(np.prod(window))
    weights = w.reshape(groups, k // groups, cg, taps)
    if n * c * points * taps <= _COLUMNS_LIMIT:
        order = (0, 1, *range(2 + spatial, 2 + 2 * spatial), *range(2, 2 + spatial))
        cols = view.transpose(order).reshape(n, groups, cg * taps, points)
        y = np.matmul(weights.reshape(groups, k // groups, cg * taps), cols)
    else:
        y = np.zeros((n, groups, k // groups, points), dtype=x.dtype)
        for t, position in enumerate(np.ndindex(*window)):
            tap = view[(..., *position)].reshape(n, groups, cg, points)
            y += np.matmul(weights[..., t], tap)
    return y.reshape(n, k, *out)


def _channel_split(
    ov: Sequence[Expr], groups: int, per_out: Any, per_in: Any, r: Expr
) -> tuple[Expr, Expr]:
    """Group of output channel ``ov[1]`` and input channel for offset ``r`` in it."""
    if groups == 1:
        return E.idx(0), r
    group = E.binary("floordiv", ov[1], E.idx(per_out))
    return group, E.add(E.mul(group, E.idx(per_in)), r)


def _factors(
    node: Node, x: Value, w: Value, ov: tuple[Var, ...], work: DType
) -> tuple[tuple[Var, ...], Expr | None, Expr, Expr]:
    """What a convolution sums over at ``ov``, where its window lies inside the input (None:
    everywhere), and the two factors in type ``work``: the input, 0 outside, and the weight."""
    groups = node.attrs.groups
    axes = conv_axes(x.dims[2:], kernel_extents(w), node.attrs)
    r = Var(i64, "c", w.dims[1])
    _, channel = _channel_split(ov, groups, D.floor_div(w.dims[0], groups), w.dims[1], r)
    at, over = window_positions(2, ov, axes)
    guard = inside_guard(at, axes)
    filler = None if guard is None else E.const(0, x.dtype)
    v = E.cast(E.load(x, [ov[0], channel, *at], guard, filler), work)
    return (r, *over), guard, v, E.cast(E.load(w, [ov[1], r, *over]), work)


def convolution_stages(node: Node) -> list[Stage]:
    """The convolution as a naive sum over channels and window."""
    x, w, b = operands(node, 2, 3)
    out = node.output
    work = accumulator(out.dtype)
    ov = E.iter_vars(out.dims)
    over, _, v, f = _factors(node, x, w, ov, work)
    y: Expr = E.reduce_("sum", over, E.mul(v, f))
    if b is not None:
        y = E.add(y, E.cast(E.load(b, [ov[1]]), work))
    return [Stage(out, ov, E.cast(y, out.dtype))]


# --- deconvolution --------------------------------------------------------------------------


@dataclass(frozen=True)
class DeconvolutionAttrs:
    """As `ConvolutionAttrs`; ``output_padding`` adds extents at the end of the result."""

    stride: tuple[int, ...] = ()
    pre: tuple[int, ...] = ()
    post: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    padding_mode: str = "explicit_down"
    output_padding: tuple[int, ...] = ()


def deconv_axes(sizes: Sequence[D.DimLike], window: Sequence[int], a: Any) -> list[Axis]:
    """Geometry of a deconvolution; ``pre`` and ``post`` are cut from the full result.

    Raises:
        OpError: If attributes are wrong or nothing is left after cutting.
    """
    n = len(sizes)
    stride, dilation = per_axis("stride", a.stride, n, 1), per_axis("dilation", a.dilation, n, 1)
    pre, post = per_axis("pre", a.pre, n, 0), per_axis("post", a.post, n, 0)
    extra = per_axis("output_padding", a.output_padding, n, 0)
    if any(v < 1 for v in (*stride, *dilation)):
        raise OpError(f"stride {stride} and dilation {dilation} must be at least 1")
    axes = []
    for k, size in enumerate(sizes):
        full = (size - 1) * stride[k] + (window[k] - 1) * dilation[k] + 1 + extra[k]
        before: D.DimLike = pre[k]
        after: D.DimLike = post[k]
        if a.padding_mode.startswith("same"):
            total = full - size * stride[k]
            half = D.floor_div(total, 2)
            before, after = (
                (half, total - half) if a.padding_mode == "same_upper" else (total - half, half)
            )
        elif a.padding_mode not in ("explicit_down", "explicit_up"):
            raise OpError(f"padding_mode {a.padding_mode!r} is not known")
        out = full - before - after
        if not isinstance(out, D.Dim) and out < 1:
            raise OpError(
                f"spatial dimension {k}: padding {before} and {after} leaves {out} of {full} "
                f"elements: pad less"
            )
        axes.append(Axis(size, out, before, after, window[k], stride[k], dilation[k]))
    return axes


@register
class Deconvolution(Op):
    """TensorRT's IDeconvolutionLayer, ONNX's ConvTranspose: ``w [C, K/groups, ...]``."""

    name = "deconvolution"
    kind = Kind.CONTRACTION
    Attrs = DeconvolutionAttrs

    def infer(self, node: Node) -> Sequence[TensorType]:
        x, w, b = operands(node, 2, 3)
        groups = node.attrs.groups
        check_ranks(x, w, deconv=True)
        if groups < 1 or (D.is_static(w.dims[0]) and int(w.dims[0]) % groups):
            raise OpError(f"{w.dims[0]} input channels of weights {shape_text(w)} do not divide "
                          f"into {groups} groups")
        if D.is_static(x.dims[1], w.dims[0]) and x.dims[1] != w.dims[0]:
            raise OpError(f"x {shape_text(x)} has {x.dims[1]} channels, but weights "
                          f"{shape_text(w)} ([C, K/groups, ...]) expect {w.dims[0]}")
        channels = w.dims[1] * groups
        check_bias(b, channels, x)
        axes = deconv_axes(x.dims[2:], kernel_extents(w), node.attrs)
        return [TensorType(x.dtype, (x.dims[0], channels, *(a.out for a in axes)))]

    def reference(self, node: Node, *inputs: Any) -> Any:
        x, w, b = (*inputs, None)[:3]
        x, w = widen(x), widen(w)
        axes = deconv_axes(x.shape[2:], w.shape[2:], node.attrs)
        y = _spread(x, w, axes, node.attrs.groups)
        return y if b is None else y + _bias_shaped(b, x.ndim - 2)

    def stages(self, node: Node) -> list[Stage] | None:
        return deconvolution_stages(node)


def _spread(x: Array, w: Array, axes: Sequence[Axis], groups: int) -> Array:
    """Every input element adds its window to the full result; padding is then cut off."""
    n, c = x.shape[:2]
    kg, window, sizes = w.shape[1], w.shape[2:], x.shape[2:]
    taps = int(np.prod(window))
    weights = w.reshape(groups, c // groups, kg * taps).swapaxes(1, 2)
    cols = np.matmul(weights, x.reshape(n, groups, c // groups, -1))
    cols = cols.reshape(n, groups, kg, taps, *sizes)
    low = [max(-int(a.pre), 0) for a in axes]  # negative padding extends the result
    lengths = [
        lo + max((s - 1) * a.stride + a.span, int(a.pre) + int(a.out))
        for lo, s, a in zip(low, sizes, axes, strict=True)
    ]
    full = np.zeros((n, groups, kg, *lengths), dtype=x.dtype)
    for t, position in enumerate(np.ndindex(*window)):
        region = tuple(
            slice(lo + p * a.dilation, lo + p * a.dilation + (s - 1) * a.stride + 1, a.stride)
            for lo, p, s, a in zip(low, position, sizes, axes, strict=True)
        )
        full[(slice(None),) * 3 + region] += cols[:, :, :, t]
    starts = [lo + int(a.pre) for lo, a in zip(low, axes, strict=True)]
    cut = tuple(slice(s, s + int(a.out)) for s, a in zip(starts, axes, strict=True))
    y = full[(slice(None),) * 3 + cut]
    return y.reshape(n, groups * kg, *y.shape[3:])


def deconvolution_stages(node: Node) -> list[Stage]:
    """Gathers: every output element sums the window positions that reach it."""
    x, w, b = operands(node, 2, 3)
    out, groups = node.output, node.attrs.groups
    work = accumulator(out.dtype)
    axes = deconv_axes(x.dims[2:], kernel_extents(w), node.attrs)
    per_in = D.floor_div(w.dims[0], groups)
    ov, r = E.iter_vars(out.dims), Var(i64, "c", per_in)
    _, channel = _channel_split(ov, groups, w.dims[1], per_in, r)
    own = ov[1] if groups == 1 else E.binary("mod", ov[1], E.idx(w.dims[1]))
    over = [Var(i64, f"w{k}", a.window) for k, a in enumerate(axes)]
    at: list[Expr] = []
    terms: list[Expr] = []
    for k, a in enumerate(axes):
        t = E.sub(E.add(ov[2 + k], E.idx(a.pre)), E.mul(over[k], E.idx(a.dilation)))
        p = E.binary("floordiv", t, E.idx(a.stride))
        if a.stride != 1:
            terms.append(E.compare("eq", E.binary("mod", t, E.idx(a.stride)), E.idx(0)))
        terms += [E.compare("ge", t, E.idx(0)), E.compare("lt", p, E.idx(a.size))]
        at.append(p)
    guard = E.logical_and(*terms)
    v = E.cast(E.load(x, [ov[0], channel, *at], guard, E.const(0, x.dtype)), work)
    f = E.cast(E.load(w, [channel, own, *over]), work)
    y: Expr = E.reduce_("sum", (r, *over), E.mul(v, f))
    if b is not None:
        y = E.add(y, E.cast(E.load(b, [ov[1]]), work))
    return [Stage(out, ov, E.cast(y, out.dtype))]


# --- integer convolution --------------------------------------------------------------------


@register
class IntConv(Op):
    """``(x - x_zero)`` convolved with ``(w - w_zero)`` in i32: ONNX's ConvInteger. Padding is
    ``x_zero``; ``w_zero`` is a scalar or one per output channel."""

    name = "int_conv"
    kind = Kind.CONTRACTION
    Attrs = ConvolutionAttrs

    def infer(self, node: Node) -> Sequence[TensorType]:
        x, w = operands(node, 2)
        if x.dtype.kind not in "iu" or w.dtype.kind not in "iu":
            raise OpError(f"operands must be integers, not {shape_text(x)} and {shape_text(w)}")
        if x.rank < 3 or w.rank != x.rank:
            raise OpError(f"x {shape_text(x)} must be [N, C, ...] and weights {shape_text(w)} "
                          f"[K, C/groups, ...] with as many spatial dimensions")
        check_groups(x, w, node.attrs.groups)
        axes = conv_axes(x.dims[2:], kernel_extents(w), node.attrs)
        return [TensorType(i32, (x.dims[0], w.dims[0], *(a.out for a in axes)))]

    def reference(self, node: Node, *inputs: Any) -> Any:
        x, w, zx, zw = (*inputs, None, None)[:4]
        x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
        if zx is not None:
            x = x - np.asarray(zx, np.float64).reshape(())
        if zw is not None:
            w = w - np.asarray(zw, np.float64).reshape(-1, *(1,) * (w.ndim - 1))
        axes = conv_axes(x.shape[2:], w.shape[2:], node.attrs)
        return exact_i32(correlate(x, w, axes, node.attrs.groups))

    def stages(self, node: Node) -> list[Stage] | None:
        return _int_conv_stages(node)


def _int_conv_stages(node: Node) -> list[Stage]:
    x, w, zx, zw = operands(node, 2, 4)
    out = node.output
    ov = E.iter_vars(out.dims)
    over, guard, v, f = _factors(node, x, w, ov, i32)
    if zx is not None:
        v = E.sub(v, E.cast(E.load(zx, [E.idx(0)] * zx.rank), i32))
        if guard is not None:
            v = E.select(guard, v, E.const(0, i32))
    if zw is not None:
        f = E.sub(f, E.cast(E.load(zw, [E.idx(0) if d == 1 else ov[1] for d in zw.dims]), i32))
    return [Stage(out, ov, E.reduce_("sum", over, E.mul(v, f)))]
