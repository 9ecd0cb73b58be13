"""Quantization to integers, float8 and float4, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..ir import dims as D
from ..ir import dtypes as T
from ..ir import expr as E
from ..ir.dtypes import DType
from ..ir.graph import Node, TensorType, Value
from . import _math as M
from . import _shapes as S
from .registry import Kind, Op, OpError, register, temp


@dataclass(frozen=True)
class QuantizeAttrs:
    """How scales lie over the data, and the result's type.

    Attributes:
        axis: Axis of 1-D scales, and of blocks; negative counts from the end.
        block_size: Elements of ``axis`` per scale; 0 for none. Scales of ``x``'s rank are
            blocked along every axis where they are shorter.
        to: Element type of the result. None: the zero point's, else i8 (quantize); the scale's
            (dequantize).
        saturate: Whether float8 results clamp to the largest finite value.
    """

    axis: int = 1
    block_size: int = 0
    to: DType | None = None
    saturate: bool = True


def _blocks(x: Value, scale: Value, attrs: QuantizeAttrs) -> tuple[D.DimLike, ...]:
    """For each axis, how many elements share a scale; 0 means all of them.

    Raises:
        OpError: If the scale's shape does not fit.
    """
    if scale.rank == 0 or (scale.rank == 1 and scale.dims[0] == 1 and not attrs.block_size):
        return (0,) * x.rank
    axis = S.axis_of(attrs.axis, x.rank)
    if scale.rank == 1 and (x.rank > 1 or not attrs.block_size):
        what = f"length of scale {S.show(scale)} and axis {axis} of {S.show(x)}"
        S.unify(scale.dims[0], x.dims[axis], None, what)
        return tuple(1 if k == axis else 0 for k in range(x.rank))
    if scale.rank != x.rank:
        raise OpError(f"scale {S.show(scale)} must be a scalar, a vector along axis {axis}, or "
                      f"have the rank of {S.show(x)}")
    out: list[D.DimLike] = []
    for k, (n, d) in enumerate(zip(scale.dims, x.dims, strict=True)):
        if attrs.block_size and k == axis:
            if D.ceil_div(d, attrs.block_size) != n and D.is_static(n, d):
                raise OpError(f"scale {S.show(scale)} does not have one element for each block "
                              f"of {attrs.block_size} along axis {axis} of {S.show(x)}")
            out.append(attrs.block_size)
        elif n == d:
            out.append(1)
        elif n == 1:
            out.append(0)
        elif D.is_static(n, d) and int(d) % int(n) == 0:
            out.append(int(d) // int(n))
        else:
            raise OpError(f"size {n} of scale {S.show(scale)} does not divide axis {k} of "
                          f"{S.show(x)}")
    return tuple(out)


def _block_sizes(x: tuple[int, ...], p: tuple[int, ...], a: QuantizeAttrs) -> list[int]:
    """`_blocks` for plain shapes already checked."""
    vx, vp = Value("x", T.f32, x), Value("scale", T.f32, p)
    return [int(b) for b in _blocks(vx, vp, a)]  # type: ignore[arg-type]


def _spread(p: Any, shape: tuple[int, ...], a: QuantizeAttrs) -> Any:
    """A parameter array broadcastable to ``shape``."""
    blocks = _block_sizes(shape, p.shape, a)
    if p.ndim < len(shape) or (p.ndim == 1 and p.shape[0] == 1):
        full = [shape[k] if b else 1 for k, b in enumerate(blocks)]
        return p.reshape(full)
    for k, b in enumerate(blocks):
        if b > 1:
            p = np.repeat(p, b, axis=k)
            p = np.take(p, np.arange(shape[k]), axis=k)
    return p


def _parameter(p: Value, x: Value, a: QuantizeAttrs, vs: Sequence[E.Expr]) -> E.Expr:
    """The element of a scale or zero point that belongs to ``x[vs]``."""
    blocks = _blocks(x, p, a)
    index: list[E.Expr] = [
        E.idx(0) if b == 0 else v if b == 1 else E.binary("floordiv", v, E.idx(b))
        for v, b in zip(vs, blocks, strict=True)
    ]
    if p.rank < x.rank or (p.rank == 1 and p.dims[0] == 1):
        index = [i for i, b in zip(index, blocks, strict=True) if b] or [E.idx(0)] * p.rank
    return E.load(p, index)


def _wide(*dts: DType) -> DType:
    return T.f64 if T.f64 in dts else T.f32


def _check(node: Node) -> tuple[Value, Value, Value | None]:
    x, scale, zero = S.operand(node, 0), S.operand(node, 1), S.optional(node, 2)
    if not scale.dtype.is_float:
        raise OpError(f"scale {S.show(scale)} must be a float")
    _blocks(x, scale, node.attrs)
    if zero is not None:
        _blocks(x, zero, node.attrs)
    return x, scale, zero


@register
class Quantize(Op):
    """``saturate(round(x / scale) + zero_point)``, rounding half to even; float8 and float4
    results round ``x / scale`` directly. Inputs ``x, scale, zero_point?``."""

    name = "quantize"
    kind = Kind.POINTWISE
    Attrs = QuantizeAttrs

    def _to(self, node: Node) -> DType:
        zero, to = S.optional(node, 2), node.attrs.to
        return to or (T.i8 if zero is None else zero.dtype)

    def infer(self, node: Node) -> Sequence[TensorType]:
        x, _, zero = _check(node)
        to = self._to(node)
        if not (to.is_int and to.bits <= 32) and not (to.is_float and to.bits <= 8):
            raise OpError(f"cannot quantize to {to}; use an integer, float8 or float4 type")
        if zero is not None and zero.dtype is not to:
            raise OpError(f"zero point {S.show(zero)} must be of the result's type {to}")
        if not x.dtype.is_float and not x.dtype.is_int:
            raise OpError(f"cannot quantize {S.show(x)}")
        return [TensorType(to, x.dims)]

    def reference(self, node: Node, *inputs: Any) -> Any:
        x, scale, a = inputs[0], inputs[1], node.attrs
        zero = inputs[2] if len(inputs) > 2 else None
        to = node.output.dtype
        wide = _wide(T.dtype(x.dtype), T.dtype(scale.dtype))
        scale = _spread(scale, x.shape, a).astype(wide.np)
        with np.errstate(all="ignore"):
            q = x.astype(wide.np) / scale
            if to.is_int:
                q = np.rint(q)
            if zero is not None:
                q = q + _spread(zero, x.shape, a).astype(wide.np)
            return M.convert(q, to, to.is_int or a.saturate)

    def stages(self, node: Node) -> list[E.Stage] | None:
        x, scale, zero = S.operand(node, 0), S.operand(node, 1), S.optional(node, 2)
        out, a = node.output, node.attrs
        vs = E.iter_vars(out.dims)
        wide = _wide(x.dtype, scale.dtype)
        q = E.div(E.cast(E.load(x, vs), wide), E.cast(_parameter(scale, x, a, vs), wide))
        if out.dtype.is_int:
            q = E.unary("round", q)
        if zero is not None:
            q = E.add(q, E.cast(_parameter(zero, x, a, vs), wide))
        return [E.Stage(out, vs, E.cast(q, out.dtype, out.dtype.is_int or a.saturate))]


@register
class Dequantize(Op):
    """``(x - zero_point) * scale``. Inputs ``x, scale, zero_point?``."""

    name = "dequantize"
    kind = Kind.POINTWISE
    Attrs = QuantizeAttrs

    def infer(self, node: Node) -> Sequence[TensorType]:
        x, scale, zero = _check(node)
        if zero is not None and zero.dtype is not x.dtype:
            raise OpError(f"zero point {S.show(zero)} must have the type of {S.show(x)}")
        to = node.attrs.to or (scale.dtype if scale.dtype.bits >= 16 else T.f32)
        if not to.is_float:
            raise OpError(f"cannot dequantize to {to}; use a float type")
        return [TensorType(to, x.dims)]

    def reference(self, node: Node, *inputs: Any) -> Any:
        x, scale, a = inputs[0], inputs[1], node.attrs
        zero = inputs[2] if len(inputs) > 2 else None
        wide = _wide(T.dtype(scale.dtype), node.output.dtype)
        y = self._difference(x, None if zero is None else _spread(zero, x.shape, a))
        with np.errstate(all="ignore"):
            return y.astype(wide.np) * _spread(scale, x.shape, a).astype(wide.np)

    def _difference(self, x: Any, zero: Any) -> Any:
        if zero is None:
            return x
        dt = np.int64 if T.dtype(x.dtype).is_int else np.float32
        return x.astype(dt) - zero.astype(dt)

    def stages(self, node: Node) -> list[E.Stage] | None:
        x, scale, zero = S.operand(node, 0), S.operand(node, 1), S.optional(node, 2)
        out, a = node.output, node.attrs
        vs = E.iter_vars(out.dims)
        wide = _wide(scale.dtype, out.dtype)
        y: E.Expr = E.load(x, vs)
        if zero is not None:
            dt = T.f32 if x.dtype.is_float else T.i32 if x.dtype.bits < 32 else T.i64
            y = E.sub(E.cast(y, dt), E.cast(_parameter(zero, x, a, vs), dt))
        e = E.mul(E.cast(y, wide), E.cast(_parameter(scale, x, a, vs), wide))
        return [E.Stage(out, vs, E.cast(e, out.dtype))]


@dataclass(frozen=True)
class DynamicQuantizeAttrs:
    """``axis``, ``block_size``: blocks that share a scale; ``to``, ``scale_to``: element types of
    data and scales."""

    axis: int = -1
    block_size: int = 16
    to: DType = T.f4e2m1
    scale_to: DType = T.f8e4m3


@register
class DynamicQuantize(Op):
    """Quantizes blocks by their own largest magnitude. Inputs ``x, double_scale?``; outputs data
    and scales.

    A block's scale is ``max|x| / largest(to)``, divided by ``double_scale`` if given, in
    ``scale_to`` (power-of-two scales round up, so nothing saturates). Blocks of zeros have data 0.
    """

    name = "dynamic_quantize"
    kind = Kind.REDUCTION
    Attrs = DynamicQuantizeAttrs

    def num_outputs(self, node: Node) -> int:
        return 2

    def infer(self, node: Node) -> Sequence[TensorType]:
        x, a = S.operand(node, 0), node.attrs
        if not x.dtype.is_float or not a.to.is_float or not a.scale_to.is_float:
            raise OpError(f"dynamic quantization goes from a float to float types, not from "
                          f"{S.show(x)} to {a.to} with scales {a.scale_to}")
        axis = S.axis_of(a.axis, x.rank)
        if a.block_size < 1:
            raise OpError(f"block size {a.block_size} must be positive")
        if D.is_static(x.dims[axis]) and int(x.dims[axis]) % a.block_size:
            raise OpError(f"axis {axis} of {S.show(x)} is not a multiple of the block size "
                          f"{a.block_size}")
        double = S.optional(node, 1)
        if double is not None and double.numel != 1:
            raise OpError(f"double-quantization scale {S.show(double)} must be one number")
        blocks = D.ceil_div(x.dims[axis], a.block_size)
        scales = (*x.dims[:axis], blocks, *x.dims[axis + 1:])
        return [TensorType(a.to, x.dims), TensorType(a.scale_to, scales)]

    def reference(self, node: Node, *inputs: Any) -> Any:
        a = node.attrs
        x = inputs[0].astype(np.float32)
        double = inputs[1] if len(inputs) > 1 else None
        global_scale = np.float32(1.0 if double is None else np.asarray(double).reshape(-1)[0])
        axis = a.axis % x.ndim
        n = x.shape[axis] // a.block_size
        blocked = x.reshape(*x.shape[:axis], n, a.block_size, *x.shape[axis + 1:])
        amax = np.max(np.abs(blocked), axis=axis + 1, initial=0.0)
        with np.errstate(all="ignore"):
            scale = amax / np.float32(M.limits(a.to)[1]) / global_scale
            if a.scale_to is T.f8e8m0:
                scale = np.exp2(np.clip(np.ceil(np.log2(scale)), -127, 127))
            scale = M.convert(scale, a.scale_to, True)
            spread = np.repeat(scale.astype(np.float32), a.block_size, axis=axis) * global_scale
            data = np.where(spread > 0, x / spread, np.float32(0))
        return M.convert(data, a.to, True), scale

    def stages(self, node: Node) -> list[E.Stage] | None:
        x, double, a, f = S.operand(node, 0), S.optional(node, 1), node.attrs, T.f32
        if a.scale_to is T.f8e8m0:
            return None  # powers of two, rounded up
        data, scales = node.outputs
        axis, size = S.axis_of(a.axis, x.rank), E.idx(a.block_size)
        factor: E.Expr = E.const(1.0, f)
        if double is not None:
            factor = E.cast(E.load(double, [E.idx(0)] * double.rank), f)
        vs, r = E.iter_vars(scales.dims), E.Var(T.i64, "r", a.block_size)
        at: list[E.Expr] = list(vs)
        at[axis] = E.add(E.mul(vs[axis], size), r)
        largest = E.reduce_("max", (r,), E.unary("abs", E.cast(E.load(x, at), f)))
        scale = E.div(E.div(largest, E.const(float(M.limits(a.to)[1]), f)), factor)
        dv = E.iter_vars(data.dims)
        own: list[E.Expr] = list(dv)
        own[axis] = E.binary("floordiv", dv[axis], size)
        spread = E.mul(E.cast(E.load(scales, own), f), factor)
        zero = E.const(0.0, f)
        q = E.select(E.compare("gt", spread, zero), E.div(E.cast(E.load(x, dv), f), spread), zero)
        return [
            E.Stage(scales, vs, E.cast(scale, scales.dtype, True)),
            E.Stage(data, dv, E.cast(q, data.dtype, True)),
        ]


@register
class DynamicQuantizeLinear(Op):
    """ONNX's: ``x`` as u8 with the scale and zero point that its own range asks for. Outputs
    data (u8), scale (f32), zero point (u8)."""

    name = "dynamic_quantize_linear"
    kind = Kind.REDUCTION

    def num_outputs(self, node: Node) -> int:
        return 3

    def infer(self, node: Node) -> Sequence[TensorType]:
        x = S.operand(node, 0)
        if not x.dtype.is_float:
            raise OpError(f"{S.show(x)} must be a float")
        return [TensorType(T.u8, x.dims), TensorType(T.f32, ()), TensorType(T.u8, ())]

    def reference(self, node: Node, *inputs: Any) -> Any:
        x = inputs[0].astype(np.float32)
        low = np.float32(np.min(x, initial=0.0))
        high = np.float32(np.max(x, initial=0.0))
        scale = np.float32((high - low) / np.float32(255))
        if scale == 0:
            return np.zeros(x.shape, np.uint8), scale, np.uint8(0)
        zero = np.rint(np.clip(np.float32(0) - low / scale, 0, 255)).astype(np.float32)
        y = np.clip(np.rint(x / scale) + zero, 0, 255)
        return y.astype(np.uint8), scale, zero.astype(np.uint8)

    def stages(self, node: Node) -> list[E.Stage] | None:
        x, f = S.operand(node, 0), T.f32
        y, scale, zero = node.outputs
        over = E.iter_vars(x.dims, "r")
        lo, hi = temp(node, "min", f, ()), temp(node, "max", f, ())
        zero_f = E.const(0.0, f)

        def extreme(fn: str) -> E.Expr:
            body = E.cast(E.load(x, over), f)
            return E.binary(fn, E.reduce_(fn, over, body) if over else body, zero_f)

        low, high, s = E.load(lo, ()), E.load(hi, ()), E.load(scale, ())
        flat = E.compare("eq", s, zero_f)
        safe = E.select(flat, E.const(1.0, f), s)
        top = E.const(255.0, f)
        point = E.sub(zero_f, E.div(low, safe))
        point = E.unary("round", E.binary("min", E.binary("max", point, zero_f), top))
        vs = E.iter_vars(x.dims)
        q = E.add(E.unary("round", E.div(E.cast(E.load(x, vs), f), safe)),
                  E.cast(E.load(zero, ()), f))
        return [
            E.Stage(lo, (), extreme("min")),
            E.Stage(hi, (), extreme("max")),
            E.Stage(scale, (), E.div(E.sub(high, low), top)),
            E.Stage(zero, (), E.cast(E.select(flat, zero_f, point), T.u8, True)),
            E.Stage(y, vs, E.cast(E.select(flat, zero_f, q), T.u8, True)),
        ]
