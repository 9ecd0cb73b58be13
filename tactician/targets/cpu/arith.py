"""Functions of the compute language on LLVM values, scalars or vectors."""

from __future__ import annotations

from llvmlite import ir

from ...ir.dtypes import DType
from . import vecmath as V

_COMPARE = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_CONTRACT = ("contract",)


def unary(b: ir.IRBuilder, fn: str, x: ir.Value, dt: DType) -> ir.Value:
    """``fn(x)`` for a register value of type ``dt``.

    Raises:
        NotImplementedError: If the function is not defined for the type.
    """
    t = x.type
    if fn == "not":
        return b.xor(x, V.const(t, 1))
    if fn == "isnan":
        return b.fcmp_unordered("uno", x, x) if dt.is_float else _never(t)
    if fn == "isinf":
        if not dt.is_float:
            return _never(t)
        return b.fcmp_ordered("==", V.absolute(b, x), V.const(t, float("inf")))
    if dt.is_float:
        return V.unary(b, fn, x)
    return _int_unary(b, fn, x, dt)


def _never(t: ir.Type) -> ir.Constant:
    return V.const(V.like(t, V.I1), 0)


def _int_unary(b: ir.IRBuilder, fn: str, x: ir.Value, dt: DType) -> ir.Value:
    t = x.type
    zero = V.const(t, 0)
    if fn == "neg":
        return b.sub(zero, x)
    if fn == "bitnot":
        return b.xor(x, V.const(t, -1))
    if fn == "abs":
        return x if dt.kind != "i" else b.select(b.icmp_signed("<", x, zero), b.sub(zero, x), x)
    if fn == "sign":
        positive = b.zext(b.icmp_signed("!=", x, zero), t)
        if dt.kind != "i":
            return positive
        return b.or_(b.ashr(x, V.const(t, dt.bits - 1)), positive)
    if fn in ("floor", "ceil", "round", "trunc"):
        return x
    raise NotImplementedError(f"{fn} of {dt}")


def binary(b: ir.IRBuilder, fn: str, x: ir.Value, y: ir.Value, dt: DType) -> ir.Value:
    """``fn(x, y)`` for register values of type ``dt`` (booleans for ``dt`` b1)."""
    if fn in _COMPARE:
        return _compare(b, _COMPARE[fn], x, y, dt)
    if dt.is_float:
        return _float_binary(b, fn, x, y)
    if dt.kind == "b":
        return _bool_binary(b, fn, x, y)
    return _int_binary(b, fn, x, y, dt)


def _compare(b: ir.IRBuilder, op: str, x: ir.Value, y: ir.Value, dt: DType) -> ir.Value:
    if dt.is_float:
        return b.fcmp_unordered(op, x, y) if op == "!=" else b.fcmp_ordered(op, x, y)
    return b.icmp_signed(op, x, y) if dt.kind == "i" else b.icmp_unsigned(op, x, y)


def _float_binary(b: ir.IRBuilder, fn: str, x: ir.Value, y: ir.Value) -> ir.Value:
    if fn == "add":
        return b.fadd(x, y, flags=_CONTRACT)
    if fn == "sub":
        return b.fsub(x, y, flags=_CONTRACT)
    if fn == "mul":
        return b.fmul(x, y, flags=_CONTRACT)
    if fn == "div":
        return b.fdiv(x, y)
    if fn == "max":
        return V.maximum(b, x, y)
    if fn == "min":
        return V.minimum(b, x, y)
    if fn == "pow":
        return V.power(b, x, y, _splat_value(y))
    if fn == "atan2":
        return V.libm(b, "atan2", x, y)
    if fn == "fmod":
        return V.libm(b, "fmod", x, y)
    if fn == "truncdiv":
        return V.unary(b, "trunc", b.fdiv(x, y))
    if fn == "mod":
        return _float_mod(b, x, y)
    if fn == "floordiv":
        # from the exact remainder: x / y alone may round up to the next integer
        exact = b.fdiv(b.fsub(x, _float_mod(b, x, y)), y)
        near = V.unary(b, "round", exact)
        zero = b.fcmp_ordered("==", y, V.const(y.type, 0.0))
        return b.select(zero, b.fdiv(x, y), near)
    raise NotImplementedError(f"{fn} of floats")


def _float_mod(b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
    """Remainder with the sign of ``y``."""
    zero = V.const(x.type, 0.0)
    r = V.libm(b, "fmod", x, y)
    opposite = b.xor(b.fcmp_ordered("<", r, zero), b.fcmp_ordered("<", y, zero))
    some = b.fcmp_unordered("!=", r, zero)
    return b.select(b.and_(opposite, some), b.fadd(r, y), b.select(some, r, V.copysign(b, r, y)))


def _splat_value(y: ir.Value) -> float | None:
    """The number a constant holds in every lane, or None."""
    if not isinstance(y, ir.Constant):
        return None
    c = y.constant
    if isinstance(c, (list, tuple)):
        first = c[0].constant
        return float(first) if all(k.constant == first for k in c) else None
    return float(c) if isinstance(c, (int, float)) else None


def _bool_binary(b: ir.IRBuilder, fn: str, x: ir.Value, y: ir.Value) -> ir.Value:
    if fn in ("and", "bitand", "mul", "min"):
        return b.and_(x, y)
    if fn in ("or", "bitor", "add", "max"):
        return b.or_(x, y)
    if fn in ("xor", "bitxor"):
        return b.xor(x, y)
    raise NotImplementedError(f"{fn} of booleans")


def _int_binary(b: ir.IRBuilder, fn: str, x: ir.Value, y: ir.Value, dt: DType) -> ir.Value:
    signed = dt.kind == "i"
    simple = {"add": b.add, "sub": b.sub, "mul": b.mul, "bitand": b.and_, "bitor": b.or_,
              "bitxor": b.xor, "and": b.and_, "or": b.or_, "xor": b.xor}  # fmt: skip
    if fn in simple:
        return simple[fn](x, y)
    if fn in ("max", "min"):
        op = ">" if fn == "max" else "<"
        cmp = b.icmp_signed if signed else b.icmp_unsigned
        return b.select(cmp(op, x, y), x, y)
    if fn in ("shl", "shr"):
        return _shift(b, fn, x, y, dt)
    if fn in ("div", "truncdiv", "floordiv", "mod", "fmod"):
        return _int_divide(b, fn, x, y, signed)
    if fn == "pow":
        return _int_power(b, x, y, dt)
    raise NotImplementedError(f"{fn} of {dt}")


def _shift(b: ir.IRBuilder, fn: str, x: ir.Value, y: ir.Value, dt: DType) -> ir.Value:
    """Shifting by the width or more gives what shifting bit by bit would."""
    t = x.type
    far = b.icmp_unsigned(">=", y, V.const(t, dt.bits))
    near = b.select(far, V.const(t, dt.bits - 1), y)
    if fn == "shl":
        return b.select(far, V.const(t, 0), b.shl(x, near))
    if dt.kind == "i":
        return b.ashr(x, near)
    return b.select(far, V.const(t, 0), b.lshr(x, near))


def _int_divide(
    b: ir.IRBuilder, fn: str, x: ir.Value, y: ir.Value, signed: bool
) -> ir.Value:
    """Division by zero gives 0, the smallest integer by -1 wraps; neither traps."""
    t = x.type
    zero, one = V.const(t, 0), V.const(t, 1)
    known = _splat_value(y)
    bad = b.icmp_signed("==", y, zero)
    if known is not None and known not in (0, -1):
        safe = y
    elif signed:
        minus = b.icmp_signed("==", y, V.const(t, -1))
        safe = b.select(b.or_(bad, minus), one, y)
    else:
        safe = b.select(bad, one, y)
    want_quotient = fn in ("div", "truncdiv", "floordiv")
    if not signed:
        result = b.udiv(x, safe) if want_quotient else b.urem(x, safe)
        return b.select(bad, zero, result)
    if want_quotient:
        q = b.sdiv(x, safe)
        if fn == "floordiv":
            r = b.sub(x, b.mul(q, safe))
            q = b.select(_signs_differ(b, r, safe), b.sub(q, one), q)
        if known is None or known == -1:
            q = b.select(b.icmp_signed("==", y, V.const(t, -1)), b.sub(zero, x), q)
    else:
        q = b.srem(x, safe)
        if fn == "mod":
            q = b.select(_signs_differ(b, q, safe), b.add(q, safe), q)
        if known is None or known == -1:
            q = b.select(b.icmp_signed("==", y, V.const(t, -1)), zero, q)
    return b.select(bad, zero, q) if known is None or known == 0 else q


def _signs_differ(b: ir.IRBuilder, r: ir.Value, y: ir.Value) -> ir.Value:
    """Whether a non-zero remainder has the other sign than the divisor."""
    zero = V.const(r.type, 0)
    return b.and_(b.icmp_signed("<", b.xor(r, y), zero), b.icmp_signed("!=", r, zero))


def _int_power(b: ir.IRBuilder, x: ir.Value, y: ir.Value, dt: DType) -> ir.Value:
    """By repeated squaring over all exponent bits; negative exponents give 0, 1 or -1."""
    t = x.type
    one, zero = V.const(t, 1), V.const(t, 0)
    result: ir.Value = one
    base = x
    for bit in range(dt.bits if dt.bits < 8 else 6):
        has = b.icmp_signed("!=", b.and_(y, V.const(t, 1 << bit)), zero)
        result = b.select(has, b.mul(result, base), result)
        base = b.mul(base, base)
    if dt.kind != "i":
        return result
    unit = b.select(b.icmp_signed("==", x, one), one, zero)
    odd = b.icmp_signed("!=", b.and_(y, one), zero)
    sign = b.select(odd, V.const(t, -1), one)
    unit = b.select(b.icmp_signed("==", x, V.const(t, -1)), sign, unit)
    return b.select(b.icmp_signed("<", y, zero), unit, result)
