"""Rounding to bytes behind integer sums, which otherwise costs more than the sums themselves.

``saturate(round(x / scale) + zero)`` is recognized as a whole. It is scaled so that its bounds are
0 and 1, which the instruction that computes it can keep; stretched again, with 1.5 * 2**23 added,
the rounded number is in the low bits: two instructions, and three for four bytes to join, instead
of twenty. Scales are multiplied with as reciprocals, so a result at a half may be one step off.

What is rounded is a sum of products as a rule. The scale goes into its factors, where these are
the same for whole rows or columns of a block; bounds such as a ReLU's join those of the bytes.
Bytes that are added (a residual) become floats by placing them into one's bits, as conversions
of bytes run at a quarter of the rate.

Four bytes share a register, and compilers take them out one by one unless they are told: these
few lines are assembly, each with its meaning in numpy for the interpreter.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ...ir import dtypes as T
from ...ir import expr as E
from ..cpu.affine import FlatLoad
from .functions import Text, _helper, limits

if TYPE_CHECKING:
    from .emit import Emitter

_BYTE_AT = 32768.0  # one is 256 units in the last place there: 0x47000000
_MAGIC = 12582912.0

_SATURATE = "cvt.sat.f32.f32 $0, $1;"
_JOIN = (
    "{ .reg .b32 a, b; prmt.b32 a, $1, $2, 0x0040; prmt.b32 b, $3, $4, 0x0040; "
    "prmt.b32 $0, a, b, 0x5410; }"
)
_PLACE = " ".join(f"prmt.b32 ${k}, {{0}}, {{1}}, 0x74{k}4;" for k in range(4))
_BYTES = "{ .reg .b32 m; mov.b32 m, 0x47000000; " + _PLACE.format("$4", "m") + " }"
_SIGNED_BYTES = (
    "{ .reg .b32 t, m; xor.b32 t, $4, 0x80808080; mov.b32 m, 0x47000000; "
    + _PLACE.format("t", "m") + " }"
)


def _extreme(fn: str, kind: str) -> str:
    """Compares four bytes: as the high bytes of 16 bits, two of them where they are."""
    return (
        "{ .reg .b32 a, b, c; prmt.b32 a, $1, 0, 0x2404; prmt.b32 b, $2, 0, 0x2404; "
        f"{fn}.{kind}16x2 a, a, b; {fn}.{kind}16x2 c, $1, $2; prmt.b32 $0, a, c, 0x7351; }}"
    )


ASSEMBLY: dict[str, Callable[..., np.ndarray[Any, Any]]] = {
    _SATURATE: lambda x: np.clip(np.nan_to_num(x, nan=0.0), np.float32(0), np.float32(1)),
    _JOIN: lambda x: x & 255,
    _BYTES: lambda x: (x.view(np.uint8).astype(np.int32) << 8) | 0x47000000,
    _SIGNED_BYTES: lambda x: ((x.view(np.uint8) ^ 128).astype(np.int32) << 8) | 0x47000000,
}
"""What the assembly that kernels contain does to arrays, element by element."""
for _fn, _meaning in (("max", np.maximum), ("min", np.minimum)):
    for _kind in "su":
        ASSEMBLY[_extreme(_fn, _kind)] = _meaning


def _asm(text: str, constraints: str, x: str, dtype: str, pack: int) -> str:
    return (f"tl.inline_asm_elementwise({text!r}, {constraints!r}, [{x}], dtype={dtype}, "
            f"is_pure=True, pack={pack})")  # fmt: skip


_helper("_low_byte", f"""
bits = ({_asm(_SATURATE, "=f,f", "x", "tl.float32", 1)} * span + low).to(tl.int32, bitcast=True)
return {_asm(_JOIN, "=r,r,r,r,r", "bits", "tl.uint8", 4)}
""", args="x, span, low")  # fmt: skip
# Where a block of bytes goes to other threads first, Triton moves it behind what it can't see
# through, then four times as large.
_helper("_signed_byte", """
bits = ((x.to(tl.uint8, bitcast=True) ^ 128).to(tl.int32) << 8) | 0x47000000
return bits.to(tl.float32, bitcast=True)
""")
_helper("_byte", "return ((x.to(tl.int32) << 8) | 0x47000000).to(tl.float32, bitcast=True)")
for _name, _text in (("_bytes", _BYTES), ("_signed_bytes", _SIGNED_BYTES)):
    _helper(_name, f"""
bits = {_asm(_text, "=r,=r,=r,=r,r", "x", "tl.int32", 4)}
return bits.to(tl.float32, bitcast=True)
""")
for _fn in ("max", "min"):
    for _kind, _name in (("s", "int8"), ("u", "uint8")):
        _text = _asm(_extreme(_fn, _kind), "=r,r,r", "a, b", f"tl.{_name}", 4)
        _helper(f"_{_fn}_{_name[0]}8", f"return {_text}", args="a, b")


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
    it) is added up apart from the rest; numbers go into constants when the kernel is built."""

    em: Emitter
    axes: frozenset[int]
    number: float = 0.0
    base: list[tuple[E.Expr, E.Expr | None, float]] = field(default_factory=list)
    base_axes: frozenset[int] = frozenset()
    terms: list[tuple[Text, str]] = field(default_factory=list)

    def add(self, e: E.Expr, factor: float, lines: E.Expr | None = None) -> None:
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
            self.add(thick, factor, thin)
        else:
            self._leaf(e, factor, lines)

    def _thin(self, e: E.Expr) -> bool:
        return self.em.axes_of(e) < self.axes

    def _axes(self, *parts: E.Expr | None) -> frozenset[int]:
        return frozenset().union(*(self.em.axes_of(x) for x in parts if x is not None))

    def _times(self, lines: E.Expr | None, factor: float, more: float = 0.0) -> str:
        """``lines * factor + more``, in the constant itself where there is one."""
        if lines is None:
            return repr(factor + more)
        if isinstance(lines, FlatLoad) and lines.value.const is not None and (
            lines.guard is None and lines.value.dtype is T.f32
        ):
            value = self.em.frame.changed(lines.value, factor, more)
            return self.em.emit(replace(lines, value=value)).text
        return f"({self.em.emit(lines)} * {factor!r}" + f" + {more!r}" * bool(more) + ")"

    def _leaf(self, e: E.Expr, factor: float, lines: E.Expr | None) -> None:
        byte = _byte_of(e)
        if byte is not None and not self._thin(e):
            load, zero = byte
            signed = load.dtype is T.i8
            x = self.em.emit(load)
            helper = "_signed_byte" if signed else "_byte"
            helper += "s" if self.em.in_place else ""
            bits = Text(self.em.fn.call(helper, x.text), T.f32, x.axes)
            self.terms.append((bits, self._times(lines, factor)))
            shift = -(_BYTE_AT + 128 * signed + zero) * factor
            if lines is None:
                self.number += shift
            else:
                self._thin_term(lines, None, shift)
        elif self._thin(e) and self._axes(e, lines) < self.axes:
            self._thin_term(e, lines, factor)
        else:
            self.terms.append((self.em.emit(e), self._times(lines, factor)))

    def _thin_term(self, e: E.Expr, lines: E.Expr | None, factor: float) -> None:
        axes = self._axes(e, lines)
        if self.base and axes != self.base_axes and (axes | self.base_axes) == self.axes:
            one = Text("1.0", T.f32, axes)  # a row and a column
            self.terms.append((one, self._product(e, lines, factor)))
            return
        self.base.append((e, lines, factor))
        self.base_axes |= axes

    def _product(self, e: E.Expr, lines: E.Expr | None, factor: float, more: float = 0.0) -> str:
        if lines is None:
            return self._times(e, factor, more)
        return f"{self.em.emit(e)} * {self._times(lines, factor)}" + f" + {more!r}" * bool(more)

    def text(self) -> Text:
        """The whole sum; terms are added to the base one after the other."""
        em = self.em
        parts = [self._product(*x, self.number * (k == 0)) for k, x in enumerate(self.base)]
        if self.number and not self.base:
            parts = [repr(self.number)]
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


def rounded(em: Emitter, r: Rounding) -> Text:
    """The byte of a rounding, as one of eight bits without a sign."""
    # rounding keeps order, so bounds may be rounded first
    low, high = round(r.low), round(r.high)
    span = max(high - low, 1)
    total = _Sum(em, em.axes_of(r.x))
    total.add(r.x, r.factor / span)
    total.number -= low / span
    x = total.text()
    stretch = repr(float(high - low)), repr(_MAGIC + low + r.zero)
    return Text(em.fn.call("_low_byte", x.text, *stretch), T.u8, x.axes)


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
