"""Element types in registers and in memory, and conversions between them.

f16, bf16, f8 and f4 live in registers as f32; booleans as i1, in memory as bytes; 4-bit integers as
bytes, in memory with zeros in the upper half.
"""

from __future__ import annotations

import math

from llvmlite import ir

from ...ir import dtypes as T
from ...ir.dtypes import DType
from . import float8
from . import vecmath as V
from .vecmath import F32, F64, HALF, I1, I8, I16, I32, I64

_REGISTER: dict[DType, ir.Type] = {
    T.f64: F64, T.f32: F32, T.f16: F32, T.bf16: F32, T.i64: I64, T.i32: I32, T.i16: I16, T.i8: I8,
    T.u64: I64, T.u32: I32, T.u16: I16, T.u8: I8, T.b1: I1, T.i4: I8, T.u4: I8, T.f8e4m3: F32,
    T.f8e5m2: F32, T.f4e2m1: F32,
}  # fmt: skip
_MEMORY: dict[DType, ir.Type] = {
    **_REGISTER, T.f16: HALF, T.bf16: I16, T.b1: I8, T.f8e4m3: I8, T.f8e5m2: I8,
    T.f4e2m1: I8,
}  # fmt: skip
_NARROW = (T.f16, T.bf16, *float8.FORMATS)


def supported(dt: DType) -> bool:
    """Whether loop kernels can compute with this element type."""
    return dt in _REGISTER


def register_type(dt: DType, n: int = 0) -> ir.Type:
    """How an element is held in a register; ``n`` lanes or a scalar."""
    return V.with_lanes(_REGISTER[dt], n)


def memory_type(dt: DType, n: int = 0) -> ir.Type:
    return V.with_lanes(_MEMORY[dt], n)


def from_memory(b: ir.IRBuilder, x: ir.Value, dt: DType) -> ir.Value:
    """A loaded value as its register type."""
    if dt is T.f16:
        return b.fpext(x, V.like(x.type, F32))
    if dt is T.bf16:
        wide = b.zext(x, V.like(x.type, I32))
        return b.bitcast(b.shl(wide, V.const(wide.type, 16)), V.like(x.type, F32))
    if dt in float8.FORMATS:
        return float8.decode(b, x, dt)
    if dt in (T.i4, T.u4):
        return _wrapped(b, x, dt)
    if dt is T.b1:
        return b.icmp_unsigned("!=", x, V.const(x.type, 0))
    return x


def to_memory(b: ir.IRBuilder, x: ir.Value, dt: DType) -> ir.Value:
    """A register value as it is stored."""
    if dt is T.f16:
        return b.fptrunc(x, V.like(x.type, HALF))
    if dt is T.bf16:
        narrow = _widened(x)
        return _round_bf16(b, x) if narrow is None else narrow
    if dt in float8.FORMATS:
        return float8.encode(b, x, dt)
    if dt is T.i4:
        return b.and_(x, V.const(x.type, 15))
    if dt is T.b1:
        return b.zext(x, V.like(x.type, I8))
    return x


def _widened(x: ir.Value) -> ir.Value | None:
    """The bf16 that `from_memory` made ``x`` of: rounding it again would change nothing."""
    for operation in ("bitcast", "shl", "zext"):
        if not isinstance(x, ir.Instruction) or x.opname != operation:
            return None
        x = x.operands[0]
    return x if V.element(x.type) == I16 else None


def _round_bf16(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """The upper half of an f32, rounded to nearest even; NaN stays NaN."""
    name, width = _bf16_rounding(b)
    n = V.lanes(x.type)
    if n and n % (2 * width or 1) == 0:
        pair = b.module.isa.intrinsic("round_bf16_pair") if width else None
        if pair is not None:
            return _pairs_to_bf16(b, x, pair, width)
    if name is not None and n and n % width == 0:
        parts = [V.part(b, x, k, width) for k in range(0, n, width)]
        fn = V.declare(b.module, name, ir.VectorType(V.BF16, width), [parts[0].type])
        half = ir.VectorType(I16, width)
        return V.concat(b, [b.bitcast(b.call(fn, [p]), half) for p in parts])
    t = V.like(x.type, I32)
    bits = b.bitcast(x, t)
    odd = b.and_(b.lshr(bits, V.const(t, 16)), V.const(t, 1))
    rounded = b.add(bits, b.add(odd, V.const(t, 0x7FFF)))
    quiet = b.or_(bits, V.const(t, 0x400000))
    chosen = b.select(b.fcmp_unordered("uno", x, x), quiet, rounded)
    return b.trunc(b.lshr(chosen, V.const(t, 16)), V.like(x.type, I16))


def _pairs_to_bf16(b: ir.IRBuilder, x: ir.Value, name: str, width: int) -> ir.Value:
    """Two vectors at a time, by an instruction that takes the upper one first."""
    parts = []
    for k in range(0, V.lanes(x.type), 2 * width):
        low, high = V.part(b, x, k, width), V.part(b, x, k + width, width)
        both = ir.VectorType(V.BF16, 2 * width)
        fn = V.declare(b.module, name, both, [high.type, low.type])
        parts.append(b.bitcast(b.call(fn, [high, low]), ir.VectorType(I16, 2 * width)))
    return V.concat(b, parts)


def _bf16_rounding(b: ir.IRBuilder) -> tuple[str | None, int]:
    """The instruction that rounds a vector, if the kernel's module is for a CPU that has it."""
    isa = getattr(b.module, "isa", None)
    return (None, 0) if isa is None else (isa.intrinsic("round_bf16"), isa.lanes(32))


def limits(dt: DType) -> tuple[int, int]:
    """Smallest and largest value of an integer type."""
    if dt.kind == "u":
        return 0, (1 << dt.bits) - 1
    return -(1 << (dt.bits - 1)), (1 << (dt.bits - 1)) - 1


def cast(
    b: ir.IRBuilder, x: ir.Value, src: DType, dst: DType, saturate: bool = False
) -> ir.Value:
    """Value conversion between register types, as numpy's ``astype``."""
    if src is dst:
        return x
    if src is T.b1:
        return _from_bool(b, x, dst)
    if dst is T.b1:
        zero = V.const(x.type, 0)
        if src.is_float:
            return b.fcmp_unordered("!=", x, zero)
        return b.icmp_signed("!=", x, zero)
    if src.is_float:
        if dst.is_float:
            return _float_to_float(b, float8.clamp(b, x, dst) if saturate else x, dst)
        return _to_int(b, x, dst, saturate)
    if dst.is_float:
        t = V.like(x.type, _REGISTER[dst])
        y = b.sitofp(x, t) if src.kind == "i" else b.uitofp(x, t)
        return _narrow_float(b, y, dst)
    return _int_to_int(b, x, src, dst, saturate)


def _from_bool(b: ir.IRBuilder, x: ir.Value, dst: DType) -> ir.Value:
    t = V.like(x.type, _REGISTER[dst])
    if dst.is_float:
        return b.select(x, V.const(t, 1.0), V.const(t, 0.0))
    return b.zext(x, t)


def _narrow_float(b: ir.IRBuilder, x: ir.Value, dst: DType) -> ir.Value:
    """Rounds to the precision of a narrow type, staying in f32."""
    if dst in _NARROW:
        return from_memory(b, to_memory(b, x, dst), dst)
    return x


def _float_to_float(b: ir.IRBuilder, x: ir.Value, dst: DType) -> ir.Value:
    want = V.like(x.type, _REGISTER[dst])
    if want != x.type:
        x = b.fpext(x, want) if dst is T.f64 else b.fptrunc(x, want)
    return _narrow_float(b, x, dst)


def _to_int(b: ir.IRBuilder, x: ir.Value, dst: DType, saturate: bool) -> ir.Value:
    """Truncates; out of range (where C leaves it open) wraps through a wider integer, or clamps
    and turns NaN to 0."""
    t = V.like(x.type, _REGISTER[dst])
    if saturate and dst.bits <= 16:
        low, high = limits(dst)
        x = b.select(b.fcmp_ordered(">", x, V.const(x.type, low)), x, V.const(x.type, low))
        x = b.select(b.fcmp_ordered("<", x, V.const(x.type, high)), x, V.const(x.type, high))
        return _wrapped(b, b.trunc(b.fptosi(x, V.like(x.type, I32)), t), dst)
    if saturate:
        name = "fptosi" if dst.kind == "i" else "fptoui"
        full = f"llvm.{name}.sat.{V.type_suffix(t)}.{V.type_suffix(x.type)}"
        return b.call(V.declare(b.module, full, t, [x.type]), [x])
    if dst is T.u64:
        return b.select(
            b.fcmp_ordered("<", x, V.const(x.type, 0)), b.fptosi(x, t), b.fptoui(x, t)
        )
    if dst is T.u32 or dst is T.i64:
        y = b.fptosi(x, V.like(x.type, I64))
        return y if dst is T.i64 else b.trunc(y, t)
    y = b.fptosi(x, V.like(x.type, I32))
    return y if dst is T.i32 else _wrapped(b, b.trunc(y, t), dst)


def _wrapped(b: ir.IRBuilder, x: ir.Value, dst: DType) -> ir.Value:
    """The lower bits of a 4-bit integer in a byte, as its value."""
    if dst is T.u4:
        return b.and_(x, V.const(x.type, 15))
    if dst is T.i4:
        return b.ashr(b.shl(x, V.const(x.type, 4)), V.const(x.type, 4))
    return x


def _int_to_int(
    b: ir.IRBuilder, x: ir.Value, src: DType, dst: DType, saturate: bool
) -> ir.Value:
    if saturate:
        (lo, hi), (dlo, dhi) = limits(src), limits(dst)
        cmp = b.icmp_unsigned if src.kind == "u" else b.icmp_signed
        if dhi < hi:
            top = V.const(x.type, dhi)
            x = b.select(cmp(">", x, top), top, x)
        if dlo > lo:
            bottom = V.const(x.type, dlo)
            x = b.select(cmp("<", x, bottom), bottom, x)
    t = V.like(x.type, _REGISTER[dst])
    if dst.size < src.size:
        x = b.trunc(x, t)
    elif dst.size > src.size:
        x = b.zext(x, t) if src.kind == "u" else b.sext(x, t)
    return _wrapped(b, x, dst)


def literal(value: object, dt: DType, n: int = 0) -> ir.Constant:
    """A constant of type ``dt``, rounded and wrapped as the type demands."""
    import numpy as np

    t = register_type(dt, n)
    if dt is T.b1:
        return V.const(t, int(bool(value)))
    if dt.is_float:
        return V.const(t, float(np.asarray(value, dtype=np.float64).astype(dt.np)))
    if isinstance(value, (float, np.floating)):
        low, high = limits(dt)
        x = float(value)
        whole = 0 if math.isnan(x) else int(min(max(x, low), high))
    else:
        whole = int(value)  # type: ignore[call-overload]
    return V.const(t, whole)
