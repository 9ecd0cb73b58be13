"""Rounding to bytes behind integer sums, which otherwise costs more than the sums themselves.

``saturate(round(x / scale) + zero)`` is recognized as a whole. With the bounds taken off first,
adding 1.5 * 2**23 leaves the rounded number in the low bits: four instructions instead of twenty.
Scales are multiplied with as reciprocals, so a result at a half may be one step off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...ir import dtypes as T
from ...ir import expr as E
from .functions import _helper, limits

_helper("_low_bits", """
return (tl.minimum(tl.maximum(x, low), high) + 12582912.0).to(tl.int32, bitcast=True)
""", args="x, low, high")  # fmt: skip


@dataclass(frozen=True)
class Rounding:
    """The parts of ``saturate(round(x * factor) + zero)``.

    Attributes:
        x: A float of 32 bits.
        factor: What it is multiplied by.
        zero: Zero point.
        low, high: What ``round(…)`` is kept within.
    """

    x: E.Expr
    factor: float
    zero: int
    low: int
    high: int


def match(e: E.Expr) -> Rounding | None:
    """The parts, if an expression is such a rounding with constant scale and zero point."""
    if not isinstance(e, E.Cast) or not e.saturate or e.dtype not in (T.i8, T.u8):
        return None
    inner: E.Expr = e.x
    zero = 0
    if isinstance(inner, E.Binary) and inner.fn == "add" and isinstance(inner.b, E.Const):
        zero = int(inner.b.value)
        if zero != float(inner.b.value):
            return None
        inner = inner.a
    if not isinstance(inner, E.Unary) or inner.fn != "round" or inner.dtype is not T.f32:
        return None
    low, high = limits(e.dtype)
    x, factor = inner.x, 1.0
    if isinstance(x, E.Binary) and x.fn == "div" and isinstance(x.b, E.Const):
        scale = float(x.b.value)
        if not scale or not math.isfinite(scale) or not 1e-30 < abs(1 / scale) < 1e30:
            return None
        x, factor = x.a, 1 / scale
    return Rounding(x, factor, zero, low - zero, high - zero)
