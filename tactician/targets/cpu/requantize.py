"""Rounding floats to 8-bit integers: a few instructions for the chain that quantization is.

``saturate(round(x) + zero)`` on vectors becomes a conversion that rounds, then packs that saturate
by themselves: no clamping in floats, no second rounding. Where the numbers are known to be small
(`limits`) nothing guards the conversion either.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from ...ir import dtypes as T
from ...ir import expr as E
from . import convert
from . import vecmath as V
from .affine import FlatLoad
from .vecmath import I16, I32

_HUGE = 1e6  # far beyond 16 bits, where conversions are still defined
_FITS = 2.0**30  # numbers up to here are converted as they are

Range = tuple[float, float]


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


# --- how large numbers can be -----------------------------------------------------------------


def small(e: E.Expr) -> bool:
    """Whether a float is certainly no NaN and converts to an integer."""
    found = limits(e)
    return found is not None and found[0] >= -_FITS and found[1] <= _FITS


def limits(e: E.Expr) -> Range | None:
    """Least and greatest value an expression can have; None: nothing is known.

    What a value holds is taken from its constant, from ``meta["limits"]``, or from its type.
    """
    if isinstance(e, E.Const):
        return float(e.value), float(e.value)
    if isinstance(e, (E.Load, FlatLoad)):
        return None if e.guard is not None else _held(e)
    if isinstance(e, E.Cast):
        if e.saturate and e.dtype in (T.i8, T.u8):
            return _bytes(e.dtype)
        return limits(e.x) if e.dtype in (T.f32, T.i32) else None
    if isinstance(e, E.Unary) and e.fn == "round":
        return limits(e.x)
    if isinstance(e, E.Select):
        a, b = limits(e.a), limits(e.b)
        return None if a is None or b is None else _chosen(e, a, b)
    if isinstance(e, E.Binary) and e.fn in _RANGES:
        a, b = limits(e.a), limits(e.b)
        return None if a is None or b is None else _RANGES[e.fn](a, b)
    return None


def _held(e: E.Load | FlatLoad) -> Range | None:
    v = e.value
    if "limits" in v.meta:
        low, high = v.meta["limits"]
        return float(low), float(high)
    if v.const is not None and v.const.size and v.const.dtype.kind in "fiu":
        low, high = float(v.const.min()), float(v.const.max())
        return (low, high) if low <= high else None  # a NaN is neither
    return _bytes(v.dtype) if v.dtype in (T.i8, T.u8) else None


def _bytes(dt: T.DType) -> Range:
    low, high = convert.limits(dt)
    return float(low), float(high)


def _chosen(e: E.Select, a: Range, b: Range) -> Range:
    c = e.cond
    if isinstance(c, E.Binary) and c.a is e.a and c.b is e.b and c.fn in ("gt", "lt"):
        return _RANGES["max" if c.fn == "gt" else "min"](a, b)
    return min(a[0], b[0]), max(a[1], b[1])


def _product(a: Range, b: Range) -> Range:
    ends = [x * y for x in a for y in b]
    return min(ends), max(ends)


_RANGES: dict[str, Any] = {
    "add": lambda a, b: (a[0] + b[0], a[1] + b[1]),
    "sub": lambda a, b: (a[0] - b[1], a[1] - b[0]),
    "mul": _product,
    "max": lambda a, b: (max(a[0], b[0]), max(a[1], b[1])),
    "min": lambda a, b: (min(a[0], b[0]), min(a[1], b[1])),
}


# --- emission -----------------------------------------------------------------------------------


def emit(
    b: ir.IRBuilder, x: ir.Value, zero: ir.Value | None, signed: bool, to: T.DType,
    small: bool = False,
) -> ir.Value:
    """A vector of floats as quantized integers.

    Args:
        signed: How ``zero`` widens.
        small: Whether the floats certainly convert to s32.
    """
    n = V.lanes(x.type)
    half = V.with_lanes(I16, n)
    whole, zero = _whole(b, x, small), _wide(b, zero, signed)
    packed = _packed(b, whole, zero, to)
    if packed is not None:
        return packed
    short = b.trunc(_clamp(b, whole, -32768, 32767), half)
    if zero is not None:
        short = _plus(b, short, zero)
    low, high = convert.limits(to)
    return b.trunc(_clamp(b, short, low, high), V.with_lanes(V.I8, n))


def pair(
    b: ir.IRBuilder, x: ir.Value, zero: ir.Value | None, signed: bool, to: T.DType, small: bool
) -> ir.Value:
    """Two vectors of floats (as one, see `emit`) as one of bytes in the order of packs: every 128
    bits have four of the first, four of the second, and the same again."""
    n = V.lanes(x.type) // 2
    whole, zero = _whole(b, x, small), _wide(b, zero, signed)
    names = _packs(b, to)
    words = V.with_lanes(I16, 2 * n)
    if names is None:
        order = [4 * p + e + n * v for p in range(n // 4) for v in (0, 1) for e in range(4)]
        short = _shuffled(b, b.trunc(_clamp(b, whole, -32768, 32767), words), order)
        short = short if zero is None else _plus(b, short, zero)
        low = b.trunc(_clamp(b, short, *convert.limits(to)), V.with_lanes(V.I8, 2 * n))
        return _shuffled(b, low, [8 * p + e for p in range(n // 4) for _ in (0, 1)
                                  for e in range(8)])
    quads = V.with_lanes(I32, n)
    first = V.declare(b.module, names[0], words, [quads, quads])
    short = b.call(first, [V.part(b, whole, 0, n), V.part(b, whole, n, n)])
    short = short if zero is None else _plus(b, short, zero)
    second = V.declare(b.module, names[1], V.with_lanes(V.I8, 4 * n), [words, words])
    return b.call(second, [short, short])


def _whole(b: ir.IRBuilder, x: ir.Value, small: bool) -> ir.Value:
    """Floats rounded to s32."""
    if not small:
        # a NaN stays one, becomes the least integer and saturates to the least result
        top = V.const(x.type, _HUGE)
        x = b.select(b.fcmp_ordered(">", x, top), top, x)
    wide = V.like(x.type, I32)
    name = f"llvm.lrint.{V.type_suffix(wide)}.{V.type_suffix(x.type)}"
    return b.call(V.declare(b.module, name, wide, [x.type]), [x])


def _wide(b: ir.IRBuilder, zero: ir.Value | None, signed: bool) -> ir.Value | None:
    """A zero point as s16."""
    if zero is None or V.element(zero.type) == I16:
        return zero
    return (b.sext if signed else b.zext)(zero, V.like(zero.type, I16))


def _packs(b: ir.IRBuilder, to: T.DType) -> tuple[str, str] | None:
    """The CPU's packs from s32 to s16 and on to bytes, if it has them."""
    isa = getattr(b.module, "isa", None)
    if isa is None or isa.lanes(32) < 4:
        return None
    first = isa.intrinsic("pack_s32")
    second = isa.intrinsic("pack_s16_u8" if to is T.u8 else "pack_s16_s8")
    return None if first is None or second is None else (first, second)


def _shuffled(b: ir.IRBuilder, x: ir.Value, index: list[int]) -> ir.Value:
    mask = ir.Constant(ir.VectorType(I32, len(index)), [I32(i) for i in index])
    return b.shuffle_vector(x, V.undefined(x.type), mask)


def _plus(b: ir.IRBuilder, x: ir.Value, zero: ir.Value) -> ir.Value:
    """Saturated sum of s16."""
    name = f"llvm.sadd.sat.{V.type_suffix(x.type)}"
    add = V.declare(b.module, name, x.type, [x.type, x.type])
    return b.call(add, [x, V.splat(b, zero, V.lanes(x.type))])


def _packed(b: ir.IRBuilder, x: ir.Value, zero: ir.Value | None, to: T.DType) -> ir.Value | None:
    """One, two or four vectors of s32 narrowed by the CPU's packs, which take turns between the
    128-bit parts of their operands; one shuffle of 32-bit groups puts that right."""
    names, n = _packs(b, to), V.lanes(x.type)
    lanes = b.module.isa.lanes(32) if names else 0
    if names is None or lanes < 8 or n not in (lanes, 2 * lanes, 4 * lanes):
        return None
    if zero is not None and V.lanes(zero.type) > 1:
        return None
    quads, words, bytes_ = (V.with_lanes(t, k * lanes) for t, k in ((I32, 1), (I16, 2), (V.I8, 4)))
    parts = [V.part(b, x, k, lanes) for k in range(0, n, lanes)]
    first = V.declare(b.module, names[0], words, [quads, quads])
    pairs = [(parts[k], parts[min(k + 1, len(parts) - 1)]) for k in range(0, len(parts), 2)]
    halves = [b.call(first, pair) for pair in pairs]
    if zero is not None:
        halves = [_plus(b, h, zero) for h in halves]
    second = V.declare(b.module, names[1], bytes_, [words, words])
    flat = b.bitcast(b.call(second, [halves[0], halves[-1]]), quads)
    # the groups of 128 bits, vector by vector
    order = [4 * p + v for v in range(len(parts)) for p in range(lanes // 4)]
    return b.bitcast(_shuffled(b, flat, order), V.with_lanes(V.I8, n))


def _clamp(b: ir.IRBuilder, x: ir.Value, low: int, high: int) -> ir.Value:
    for fn, limit in (("smax", low), ("smin", high)):
        name = f"llvm.{fn}.{V.type_suffix(x.type)}"
        x = b.call(V.declare(b.module, name, x.type, [x.type] * 2), [x, V.const(x.type, limit)])
    return x
