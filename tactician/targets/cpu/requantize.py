"""Rounding floats to 8-bit integers: a few instructions for the chain that quantization is.

``saturate(round(x) + zero)`` on vectors becomes a conversion that rounds, then packs that saturate
by themselves: no clamping in floats, no second rounding.
"""

from __future__ import annotations

from llvmlite import ir

from ...ir import dtypes as T
from ...ir import expr as E
from . import convert
from . import vecmath as V
from .vecmath import I16, I32

_HUGE = 1e6  # far beyond 16 bits, where conversions are still defined


def match(e: E.Cast) -> tuple[E.Expr, E.Expr | None] | None:
    """The unrounded number and the zero point (8 bits, or a literal), if ``e`` quantizes."""
    if not e.saturate or e.dtype not in (T.i8, T.u8) or e.x.dtype is not T.f32:
        return None
    x, zero = e.x, None
    if isinstance(x, E.Binary) and x.fn == "add":
        x, other = (x.a, x.b) if _rounds(x.a) else (x.b, x.a)
        zero = _integer(other)
        if zero is None:
            return None
    return (x.x, zero) if isinstance(x, E.Unary) and _rounds(x) else None


def _rounds(e: E.Expr) -> bool:
    return isinstance(e, E.Unary) and e.fn == "round"


def _integer(e: E.Expr) -> E.Expr | None:
    """A float that is certainly an 8-bit integer, as that integer."""
    if isinstance(e, E.Const) and float(e.value) == round(e.value) and abs(e.value) <= 255:
        return E.const(int(e.value), T.i16)
    if isinstance(e, E.Cast) and e.x.dtype in (T.i8, T.u8):
        return e.x
    return None


def emit(
    b: ir.IRBuilder, x: ir.Value, zero: ir.Value | None, signed: bool, to: T.DType
) -> ir.Value:
    """A vector of floats as quantized integers. ``signed`` tells how ``zero`` widens."""
    n = V.lanes(x.type)
    # a NaN stays one, becomes the least integer and saturates to the least result
    top = V.const(x.type, _HUGE)
    x = b.select(b.fcmp_ordered(">", x, top), top, x)
    wide, half = V.with_lanes(I32, n), V.with_lanes(I16, n)
    name = f"llvm.lrint.{V.type_suffix(wide)}.{V.type_suffix(x.type)}"
    whole = b.call(V.declare(b.module, name, wide, [x.type]), [x])
    short = b.trunc(_clamp(b, whole, -32768, 32767), half)
    if zero is not None:
        z = zero if V.element(zero.type) == I16 else (b.sext if signed else b.zext)(
            zero, V.like(zero.type, I16)
        )
        add = V.declare(b.module, f"llvm.sadd.sat.{V.type_suffix(half)}", half, [half, half])
        short = b.call(add, [short, V.splat(b, z, n)])
    low, high = convert.limits(to)
    return b.trunc(_clamp(b, short, low, high), V.with_lanes(V.I8, n))


def _clamp(b: ir.IRBuilder, x: ir.Value, low: int, high: int) -> ir.Value:
    for fn, limit in (("smax", low), ("smin", high)):
        name = f"llvm.{fn}.{V.type_suffix(x.type)}"
        x = b.call(V.declare(b.module, name, x.type, [x.type] * 2), [x, V.const(x.type, limit)])
    return x
