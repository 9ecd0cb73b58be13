"""Rounding to bytes behind integer sums, which otherwise costs more than the sums themselves.

``saturate(round(x / scale) + zero)`` is recognized as a whole. With the bounds taken off first,
adding 1.5 * 2**23 leaves the rounded number in the low bits: four instructions instead of twenty.
Scales are multiplied with as reciprocals, so a result at a half may be one step off.

What is rounded is a sum of products as a rule. The scale goes into its factors, where these are
the same for whole rows or columns of a block; bounds such as a ReLU's join those of the bytes.
Bytes that are added (a residual) become floats by placing them into one's bits, as conversions
of bytes run at a quarter of the rate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ...ir import dtypes as T
from ...ir import expr as E
from .functions import Text, _helper, limits

if TYPE_CHECKING:
    from .emit import Emitter

_helper("_low_bits", """
return (tl.minimum(tl.maximum(x, low), high) + 12582912.0).to(tl.int32, bitcast=True)
""", args="x, low, high")  # fmt: skip
# 2**15 + x: one is 256 units in the last place there
_helper("_signed_byte", """
bits = ((x.to(tl.uint8, bitcast=True) ^ 128).to(tl.int32) << 8) | 0x47000000
return bits.to(tl.float32, bitcast=True)
""")
_helper("_byte", "return ((x.to(tl.int32) << 8) | 0x47000000).to(tl.float32, bitcast=True)")
_BYTE_AT = 32768.0


@dataclass(frozen=True)
class Rounding:
    """The parts of ``saturate(round(x * factor) + zero)``.

    Attributes:
        x: A float of 32 bits.
        factor: What it is multiplied by.
        zero: Zero point.
        low, high: What ``x * factor`` is kept within.
    """

    x: E.Expr
    factor: float
    zero: int
    low: float
    high: float


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
    return _bounded(x, factor, zero, float(low - zero), float(high - zero))


def _bounded(x: E.Expr, factor: float, zero: int, low: float, high: float) -> Rounding:
    """With bounds by constants around ``x`` joined to the others."""
    while factor > 0 and isinstance(x, E.Binary) and x.fn in ("max", "min"):
        if not isinstance(x.b, E.Const) or not math.isfinite(float(x.b.value)):
            break
        bound = float(x.b.value) * factor
        if x.fn == "max" and bound <= high:
            low = max(low, bound)
        elif x.fn == "min" and bound >= low:
            high = min(high, bound)
        else:
            break
        x = x.a
    return Rounding(x, factor, zero, low, high)


# --- sums of products ---------------------------------------------------------------------------


@dataclass
class _Sum:
    """``base + sum of a * b``: what is the same for whole rows or columns of a block (or all of
    it) is added up apart from the rest."""

    em: Emitter
    axes: frozenset[int]
    number: float = 0.0
    base: list[str] = field(default_factory=list)
    base_axes: frozenset[int] = frozenset()
    terms: list[tuple[Text, str]] = field(default_factory=list)

    def add(self, e: E.Expr, factor: float, lines: Text | None = None) -> None:
        """Adds ``e * factor * lines``."""
        if isinstance(e, E.Const) and lines is None:
            self.number += float(e.value) * factor
        elif isinstance(e, E.Binary) and e.fn in ("add", "sub"):
            self.add(e.a, factor, lines)
            self.add(e.b, -factor if e.fn == "sub" else factor, lines)
        elif isinstance(e, E.Binary) and e.fn == "mul" and isinstance(e.b, E.Const):
            self.add(e.a, factor * float(e.b.value), lines)
        elif isinstance(e, E.Binary) and e.fn == "mul" and isinstance(e.a, E.Const):
            self.add(e.b, factor * float(e.a.value), lines)
        elif isinstance(e, E.Binary) and e.fn == "mul" and lines is None and (
            self._thin(e.a) or self._thin(e.b)
        ):
            thin, thick = (e.b, e.a) if self._thin(e.b) else (e.a, e.b)
            self.add(thick, factor, self.em.emit(thin))
        else:
            self._leaf(e, factor, lines)

    def _thin(self, e: E.Expr) -> bool:
        return self.em.axes_of(e) < self.axes

    def _leaf(self, e: E.Expr, factor: float, lines: Text | None) -> None:
        by = repr(factor) if lines is None else f"({lines} * {factor!r})"
        byte = _byte_of(e)
        if byte is not None and not self._thin(e):
            load, zero = byte
            signed = load.dtype is T.i8
            x = self.em.emit(load)
            helper = "_signed_byte" if signed else "_byte"
            self.terms.append((Text(self.em.fn.call(helper, x.text), T.f32, x.axes), by))
            shift = -(_BYTE_AT + 128 * signed + zero)
            if lines is None:
                self.number += shift * factor
            else:
                self._thin_term(f"{by} * {shift!r}", lines.axes)
            return
        x = self.em.emit(e)
        if self._thin(e) and (lines is None or (x.axes | lines.axes) < self.axes):
            self._thin_term(f"{x} * {by}", x.axes | (lines.axes if lines else frozenset()))
        else:
            self.terms.append((x, by))

    def _thin_term(self, text: str, axes: frozenset[int]) -> None:
        if self.base and axes != self.base_axes and (axes | self.base_axes) == self.axes:
            self.terms.append((Text("1.0", T.f32, axes), text))  # a row and a column
            return
        self.base.append(text)
        self.base_axes |= axes

    def text(self) -> Text:
        """The whole sum; terms are added to the base one after the other."""
        em = self.em
        parts = [*self.base, *[repr(self.number)] * bool(self.number)]
        if not parts and not self.terms:
            parts = ["tl.full((), 0.0, tl.float32)"]
        total = " + ".join(parts)
        if self.base:
            total = em.assign(total, T.f32, self.base_axes).text
        for x, by in self.terms:
            own = f"{x} * {by}" + f" + {total}" * bool(total)
            total = em.assign(own, T.f32, self.axes).text
        return Text(total, T.f32, self.axes if self.terms else self.base_axes)


def _byte_of(e: E.Expr) -> tuple[E.Expr, float] | None:
    """The bytes ``x`` and the zero point ``z`` of ``float(x - z)``."""
    if not isinstance(e, E.Cast) or e.dtype is not T.f32:
        return None
    inner, zero = e.x, 0.0
    if isinstance(inner, E.Binary) and inner.fn == "sub":
        b = inner.b.x if isinstance(inner.b, E.Cast) else inner.b
        if not isinstance(b, E.Const):
            return None
        inner, zero = inner.a, float(b.value)
    if isinstance(inner, E.Cast) and inner.dtype is T.i32:
        inner = inner.x
    return (inner, zero) if inner.dtype in (T.i8, T.u8) else None


def scaled(em: Emitter, r: Rounding) -> Text:
    """``x * factor`` of a rounding."""
    total = _Sum(em, em.axes_of(r.x))
    total.add(r.x, r.factor)
    return total.text()


def joined(stages: list[E.Stage], kept: frozenset[object]) -> list[E.Stage]:
    """The stages as one, if they end in such a rounding and nothing on the way is ``kept``."""
    if len(stages) < 2 or len(stages) > 12 or match(stages[-1].expr) is None:
        return stages
    if any(s.out in kept or s.out.dtype is not T.f32 or s.expr.dtype is not T.f32
           for s in stages[:-1]):
        return stages
    last = stages[-1]
    expr = last.expr
    for s in reversed(stages[:-1]):
        expr = E.inline(expr, s)
    return [E.Stage(last.out, last.vars, expr)]
