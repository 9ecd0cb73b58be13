"""8- and 4-bit floats in loop kernels: decoded to f32 when loaded, rounded when stored."""

from __future__ import annotations

from dataclasses import dataclass

from llvmlite import ir

from ...ir import dtypes as T
from ...ir.dtypes import DType
from . import vecmath as V
from .vecmath import F32, HALF, I8, I16, I32


@dataclass(frozen=True)
class Format:
    """A sign, an exponent with ``bias`` and ``mantissa`` bits.

    Attributes:
        sign: The bit of the sign.
        largest: The largest finite value.
        beyond: The code (without sign) of what is larger: infinity, or NaN where there is none.
        nan: The code of NaN.
    """

    mantissa: int
    bias: int
    largest: float
    beyond: int
    nan: int
    sign: int = 0x80


FORMATS: dict[DType, Format] = {
    T.f8e4m3: Format(3, 7, 448.0, 0x7F, 0x7F),
    T.f8e5m2: Format(2, 15, 57344.0, 0x7C, 0x7E),
    T.f4e2m1: Format(1, 1, 6.0, 7, 8, 8),  # saturates; there is no NaN, so that it becomes -0
}


def decode(b: ir.IRBuilder, x: ir.Value, dt: DType) -> ir.Value:
    """Bytes as f32, through f16: its exponent has as many bits or more."""
    f, t, wide = FORMATS[dt], V.like(x.type, I16), V.like(x.type, F32)
    bits = b.zext(x, t)
    if dt is T.f8e5m2:
        half = b.shl(bits, V.const(t, 8))
        return b.fpext(b.bitcast(half, V.like(x.type, HALF)), wide)
    body = b.and_(bits, V.const(t, f.sign - 1))
    sign = b.shl(b.and_(bits, V.const(t, f.sign)), V.const(t, 16 - f.sign.bit_length()))
    half = b.or_(sign, b.shl(body, V.const(t, 10 - f.mantissa)))
    value = b.fmul(b.fpext(b.bitcast(half, V.like(x.type, HALF)), wide),
                   V.const(wide, 2.0 ** (15 - f.bias)))
    if f.nan > f.sign - 1:
        return value
    is_nan = b.icmp_unsigned("==", body, V.const(t, f.nan))
    return b.select(is_nan, V.const(wide, float("nan")), value)


def encode(b: ir.IRBuilder, x: ir.Value, dt: DType) -> ir.Value:
    """f32 as bytes, rounded to nearest even."""
    f, t = FORMATS[dt], V.like(x.type, I32)
    bits = b.bitcast(x, t)
    body = b.and_(bits, V.const(t, 0x7FFFFFFF))
    sign = b.and_(b.lshr(bits, V.const(t, 32 - f.sign.bit_length())), V.const(t, f.sign))
    cut = 23 - f.mantissa
    odd = b.and_(b.lshr(body, V.const(t, cut)), V.const(t, 1))
    rounded = b.add(body, b.add(odd, V.const(t, (1 << (cut - 1)) - 1)))
    normal = b.sub(b.lshr(rounded, V.const(t, cut)), V.const(t, (127 - f.bias) << f.mantissa))
    # below the normal numbers: adding a power of two rounds to its last bit
    magic = V.const(x.type, 2.0 ** (1 - f.bias - f.mantissa + 23))
    size = b.bitcast(body, x.type)
    small = b.sub(b.bitcast(b.fadd(size, magic), t), b.bitcast(magic, t))
    is_small = b.fcmp_ordered("<", size, V.const(x.type, 2.0 ** (1 - f.bias)))
    code = b.select(is_small, small, normal)
    code = b.select(
        b.icmp_signed(">=", code, V.const(t, f.beyond)), V.const(t, f.beyond), code)
    code = b.select(b.fcmp_unordered("uno", x, x), V.const(t, f.nan), code)
    return b.trunc(b.or_(code, sign), V.like(x.type, I8))


def clamp(b: ir.IRBuilder, x: ir.Value, dt: DType) -> ir.Value:
    """What is beyond the largest finite value of a small float becomes that; other types and NaN
    pass."""
    f = FORMATS.get(dt)
    if f is None:
        return x
    for sign, test in ((1.0, ">"), (-1.0, "<")):
        limit = V.const(x.type, sign * f.largest)
        x = b.select(b.fcmp_ordered(test, x, limit), limit, x)
    return x
