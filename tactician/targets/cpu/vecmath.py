"""Elementary functions on LLVM vectors.

Every function takes and returns an LLVM value, a scalar or a vector with any number of lanes.
f32 functions are polynomials in straight-line code, within 3 ulp over the full range (erf and
tanh: 6), right at infinities and NaN; results that would be denormal may be 0. f64 functions, and
f32 ones that networks rarely use, call libm lane by lane.
"""

from __future__ import annotations

import math
from typing import Any

from llvmlite import ir


class BFloat(ir.Type):  # type: ignore[misc]
    """LLVM's bfloat, which llvmlite has no name for."""

    def __str__(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BFloat)

    def __hash__(self) -> int:
        return hash("bfloat")


BF16 = BFloat()
F32, F64, HALF = ir.FloatType(), ir.DoubleType(), ir.HalfType()
I1, I8, I16, I32, I64 = (ir.IntType(n) for n in (1, 8, 16, 32, 64))
PTR = ir.PointerType()

# Minimax coefficients, lowest order first, fitted in extended precision.
_EXP = (0.499992315, 0.166671147, 0.0418901579, 0.0083125205)
_LOG = (
    0.33333313, -0.25000009, 0.20002119, -0.16667997, 0.14219551, -0.12405591, 0.11888175,
    -0.11675641, 0.067466013,
)  # fmt: skip
# x * P(x*x) / Q(x*x), lowest order first
_TANH = (
    (0.999999979, 0.13380372, 0.0034948116, 2.05962832e-05, 1.33368608e-08),
    (1.0, 0.467136875, 0.0258740288, 0.000328436414, 7.76928826e-07),
)
_ERF = (
    (1.12837914, 0.191551179, 0.0528755674, 0.00380819994, 0.000284688752, 2.02590369e-06),
    (1.0, 0.503090488, 0.114559988, 0.0150551672, 0.00117073532, 3.78318093e-05),
)
_SIN = (-0.16666667, 0.0083333291, -0.00019839295, 2.7179399e-06)
_COS = (0.041666646, -0.0013887337, 2.4434845e-05)
_MAGIC = 12582912.0  # 1.5 * 2**23: adding it rounds to an integer in the low mantissa bits
_MAGIC_BITS = 0x4B400000


class Splat(ir.Constant):  # type: ignore[misc]
    """One constant in every lane. Its short form makes a fifth of a kernel's text."""

    def __init__(self, t: ir.VectorType, x: ir.Constant):
        super().__init__(t, [x] * t.count)

    def _get_reference(self) -> str:
        return f"splat ({self.constant[0]})"


class _Undefined(ir.Constant):  # type: ignore[misc]
    """llvmlite spells out the lanes of its own."""

    def _get_reference(self) -> str:
        return "undef"


def lanes(t: ir.Type) -> int:
    """Lanes of a vector type, 0 of a scalar."""
    return t.count if isinstance(t, ir.VectorType) else 0


def element(t: ir.Type) -> ir.Type:
    """Element type of a vector, or the scalar type itself."""
    return t.element if isinstance(t, ir.VectorType) else t


def with_lanes(t: ir.Type, n: int) -> ir.Type:
    """``t`` as a vector of ``n`` lanes, or as a scalar for ``n`` = 0."""
    return ir.VectorType(element(t), n) if n else element(t)


def like(t: ir.Type, e: ir.Type) -> ir.Type:
    """Element type ``e`` in as many lanes as ``t``."""
    return with_lanes(e, lanes(t))


def const(t: ir.Type, value: Any) -> ir.Constant:
    """A literal, the same in every lane. f32 literals are rounded to f32 first."""
    e = element(t)
    if e is F32 or e == F32:
        value = _to_f32(float(value))
    elif e == F64:
        value = float(value)
    else:
        value = int(value)
    n = lanes(t)
    return Splat(t, ir.Constant(e, value)) if n else ir.Constant(t, value)


def _to_f32(x: float) -> float:
    import struct

    if math.isinf(x) or math.isnan(x):
        return x
    try:
        return float(struct.unpack("f", struct.pack("f", x))[0])
    except OverflowError:
        return math.copysign(math.inf, x)


def concat(b: ir.IRBuilder, parts: list[ir.Value]) -> ir.Value:
    """Vectors behind each other as one; their number is a power of two."""
    while len(parts) > 1:
        n = 2 * lanes(parts[0].type)
        index = ir.Constant(ir.VectorType(I32, n), [I32(k) for k in range(n)])
        parts = [
            b.shuffle_vector(x, y, index) for x, y in zip(parts[::2], parts[1::2], strict=True)
        ]
    return parts[0]


def fence(b: ir.IRBuilder) -> None:
    """Keeps the compiler from moving loads across; no instruction. Long blocks else begin with
    all their loads, and spill what they have no registers for."""
    t = ir.FunctionType(ir.VoidType(), [])
    b.call(ir.InlineAsm(t, "", "~{memory}", side_effect=True), [])


def part(b: ir.IRBuilder, x: ir.Value, first: int, count: int) -> ir.Value:
    """``count`` lanes of a vector from ``first`` on."""
    if count == x.type.count:
        return x
    index = ir.Constant(ir.VectorType(I32, count), [I32(first + k) for k in range(count)])
    return b.shuffle_vector(x, undefined(x.type), index)


def splat(b: ir.IRBuilder, x: ir.Value, n: int) -> ir.Value:
    """A scalar in ``n`` lanes (a vector, or ``n`` = 0, comes back as it is)."""
    if not n or lanes(x.type):
        return x
    t = ir.VectorType(x.type, n)
    if isinstance(x, ir.Constant):
        return Splat(t, x)
    undef = undefined(t)
    one = b.insert_element(undef, x, I32(0))
    return b.shuffle_vector(one, undef, Splat(ir.VectorType(I32, n), I32(0)))


def undefined(t: ir.Type) -> ir.Constant:
    """Any value of a type."""
    return _Undefined(t, ir.Undefined)


def type_suffix(t: ir.Type) -> str:
    """A type as intrinsic names spell it."""
    e = element(t)
    names = {F32: "f32", F64: "f64", HALF: "f16"}
    name = names.get(e) or f"i{e.width}"
    return f"v{lanes(t)}{name}" if lanes(t) else name


def declare(module: ir.Module, name: str, ret: ir.Type, args: list[ir.Type]) -> ir.Function:
    """The declaration of an external function or intrinsic, made once per module."""
    found = module.globals.get(name)
    if found is not None:
        return found
    return ir.Function(module, ir.FunctionType(ret, args), name)


def prefetch(b: ir.IRBuilder, at: Any, level: int, write: bool = False) -> None:
    """Asks for the line at an address, which need not be anybody's.

    Args:
        level: 3: into the first cache; 2: into the second.
    """
    hint = [I32(int(write)), I32(level), I32(1)]
    fn = declare(b.module, "llvm.prefetch.p0", ir.VoidType(), [PTR, I32, I32, I32])
    b.call(fn, [at, *hint])


def intrinsic(b: ir.IRBuilder, name: str, *args: ir.Value, overload: Any = None) -> ir.Value:
    """Calls ``llvm.<name>`` overloaded on the first argument's type; returns that type."""
    t = args[0].type
    full = f"llvm.{name}.{overload or type_suffix(t)}"
    return b.call(declare(b.module, full, t, [a.type for a in args]), args)


def entry_alloca(b: ir.IRBuilder, t: ir.Type) -> ir.Value:
    """Stack memory made once per call of the function, wherever the builder stands. The entry
    block must have its terminator, unless the builder is in it."""
    block = b.function.entry_basic_block
    eb = b
    if b.block is not block:
        eb = ir.IRBuilder(block)
        eb.position_before(block.instructions[0])
    slot = eb.alloca(t)
    slot.align = 64
    slot.type = PTR  # llvmlite gives it a typed pointer, which opaque ones do not mix with
    return slot


def libm(b: ir.IRBuilder, name: str, *args: ir.Value) -> ir.Value:
    """Calls a libm function (named as for doubles) on every lane."""
    t = args[0].type
    e = element(t)
    if e == F32:
        name += "f"
    scalar = declare(b.module, name, e, [e] * len(args))
    if not lanes(t):
        return b.call(scalar, args)
    slots = [entry_alloca(b, t) for _ in args]
    for slot, a in zip(slots, args, strict=True):
        b.store(a, slot)
    b.call(_lane_loop(b.module, scalar, t, len(args)), slots)
    return b.load(slots[0], typ=t)


def _lane_loop(module: ir.Module, scalar: ir.Function, t: ir.Type, arity: int) -> ir.Function:
    """A function that applies ``scalar`` to ``arity`` arrays, lane by lane, into the first."""
    name = f"lanes_{scalar.name}_{type_suffix(t)}"
    if name in module.globals:
        return module.globals[name]
    fn = ir.Function(module, ir.FunctionType(ir.VoidType(), [PTR] * arity), name)
    fn.linkage = "internal"
    fn.attributes.add("noinline")
    entry, loop, done = (fn.append_basic_block(n) for n in ("entry", "loop", "done"))
    b = ir.IRBuilder(entry)
    b.branch(loop)
    b.position_at_end(loop)
    i = b.phi(I64)
    e = element(t)
    at = [b.gep(a, [i], source_etype=e) for a in fn.args]
    b.store(b.call(scalar, [b.load(p, typ=e) for p in at]), at[0])
    after = b.add(i, I64(1))
    i.add_incoming(I64(0), entry)
    i.add_incoming(after, loop)
    b.cbranch(b.icmp_signed("<", after, I64(lanes(t))), loop, done)
    b.position_at_end(done)
    b.ret_void()
    return fn


# --- building blocks ----------------------------------------------------------------------


def fma(b: ir.IRBuilder, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
    """``x * y + z``, fused where the CPU can."""
    return intrinsic(b, "fmuladd", x, y, z)


def _poly(b: ir.IRBuilder, x: ir.Value, coefficients: tuple[float, ...]) -> ir.Value:
    acc: ir.Value = const(x.type, coefficients[-1])
    for c in coefficients[-2::-1]:
        acc = fma(b, acc, x, const(x.type, c))
    return acc


def _bits(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    return b.bitcast(x, like(x.type, I32))


def _floats(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    return b.bitcast(x, like(x.type, F32))


def absolute(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    return intrinsic(b, "fabs", x)


def copysign(b: ir.IRBuilder, x: ir.Value, sign: ir.Value) -> ir.Value:
    return intrinsic(b, "copysign", x, sign)


def _clamp(b: ir.IRBuilder, x: ir.Value, low: float, high: float) -> ir.Value:
    """Keeps NaN. Bounds come first in both comparisons, as in the instructions for it on x86."""
    hi, lo = const(x.type, high), const(x.type, low)
    x = b.select(b.fcmp_ordered("<", hi, x), hi, x)
    return b.select(b.fcmp_ordered(">", lo, x), lo, x)


def maximum(b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
    """The larger operand; NaN if either is."""
    return _extreme(b, x, y, ">")


def minimum(b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
    """The smaller operand; NaN if either is."""
    return _extreme(b, x, y, "<")


def _extreme(b: ir.IRBuilder, x: ir.Value, y: ir.Value, op: str) -> ir.Value:
    if isinstance(x, ir.Constant):
        x, y = y, x
    # unordered: a NaN in x is taken at once, one in y needs a look unless y is a literal
    best = b.select(b.fcmp_unordered(op, x, y), x, y, flags=("nsz",))
    if isinstance(y, ir.Constant) and "nan" not in str(y).lower():
        return best
    return b.select(b.fcmp_unordered("uno", y, y), y, best)


# --- f32 functions ------------------------------------------------------------------------


def _exp_normal(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """exp(x), where that is no less than the smallest normal number; else about that."""
    t, it = x.type, like(x.type, I32)
    x = _clamp(b, x, -87.0, 89.0)
    shifted = fma(b, x, const(t, 1.44269504), const(t, _MAGIC))
    nf = b.fsub(shifted, const(t, _MAGIC))
    r = fma(b, nf, const(t, -0.693359375), x)
    r = fma(b, nf, const(t, 2.12194440e-4), r)
    # twice exp(r), times half a power of two: its exponent is in range up to the overflow
    p: ir.Value = const(t, 2 * _EXP[-1])
    for c in (*_EXP[-2::-1], 1.0, 1.0):
        p = fma(b, p, r, const(t, 2 * c))
    biased = b.add(_bits(b, shifted), const(it, (126 - _MAGIC_BITS) & 0xFFFFFFFF))
    return b.fmul(p, _floats(b, b.shl(biased, const(it, 23))))


def _exp_f32(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    t = x.type
    low = b.fcmp_ordered("<", x, const(t, -87.0))  # what would be denormal is 0
    return b.select(low, const(t, 0.0), _exp_normal(b, x))


def _log_f32(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    t, it = x.type, like(x.type, I32)
    tiny = b.fcmp_ordered("<", x, const(t, 1.17549435e-38))
    scaled = b.select(tiny, b.fmul(x, const(t, 8388608.0)), x)
    bits = b.sub(_bits(b, scaled), const(it, 0x3F3504F3))  # sqrt(1/2)
    e = b.ashr(bits, const(it, 23))
    mantissa = b.add(b.and_(bits, const(it, 0x7FFFFF)), const(it, 0x3F3504F3))
    f = b.fsub(_floats(b, mantissa), const(t, 1.0))
    e = b.sub(e, b.select(tiny, const(it, 23), const(it, 0)))
    ef = b.sitofp(e, t)
    f2 = b.fmul(f, f)
    y = b.fmul(b.fmul(_poly(b, f, _LOG), f2), f)
    y = fma(b, ef, const(t, -2.12194440e-4), y)
    y = fma(b, f2, const(t, -0.5), y)
    y = fma(b, ef, const(t, 0.693359375), b.fadd(f, y))
    y = b.select(b.fcmp_ordered("==", x, const(t, math.inf)), x, y)
    y = b.select(b.fcmp_ordered("==", x, const(t, 0.0)), const(t, -math.inf), y)
    return b.select(b.fcmp_unordered("<", x, const(t, 0.0)), const(t, math.nan), y)


def _sigmoid_f32(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    one = const(x.type, 1.0)
    return b.fdiv(one, b.fadd(_exp_normal(b, b.fneg(x)), one))


def _odd_quotient(
    b: ir.IRBuilder, x: ir.Value, coefficients: tuple[tuple[float, ...], ...], end: float
) -> ir.Value:
    """An odd function that is within rounding of 1 from ``end`` on."""
    x = _clamp(b, x, -end, end)
    z = b.fmul(x, x)
    top, bottom = (_poly(b, z, c) for c in coefficients)
    return _clamp(b, b.fdiv(b.fmul(x, top), bottom), -1.0, 1.0)


def _tanh_f32(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    return _odd_quotient(b, x, _TANH, 9.01)


def _erf_f32(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    return _odd_quotient(b, x, _ERF, 3.95)


def _sincos_f32(b: ir.IRBuilder, x: ir.Value, quarter: int, name: str) -> ir.Value:
    """sin(x + quarter * pi/2); arguments too large for the range reduction go to libm."""
    t, it = x.type, like(x.type, I32)
    shifted = fma(b, x, const(t, 2 / math.pi), const(t, _MAGIC))
    n = b.add(_bits(b, shifted), const(it, (quarter - _MAGIC_BITS) & 0xFFFFFFFF))
    nf = b.fsub(shifted, const(t, _MAGIC))
    # pi/2 in pieces of 8, 11 and 11 bits (products with nf are exact), then the rest
    r = x
    for piece in (1.5703125, 0.0004837512969970703, 7.54953362047672e-08, 2.5625e-12):
        r = fma(b, nf, const(t, -piece), r)
    s = b.fmul(r, r)
    sine = fma(b, b.fmul(_poly(b, s, _SIN), s), r, r)
    cosine = fma(b, s, const(t, -0.5), const(t, 1.0))
    cosine = fma(b, b.fmul(_poly(b, s, _COS), s), s, cosine)
    odd = b.icmp_signed("!=", b.and_(n, const(it, 1)), const(it, 0))
    y = b.select(odd, cosine, sine)
    sign = b.shl(b.and_(n, const(it, 2)), const(it, 30))
    y = _floats(b, b.xor(_bits(b, y), sign))
    return _or_libm(b, y, b.fcmp_ordered("<", absolute(b, x), const(t, 8192.0)), name, x)


def _or_libm(
    b: ir.IRBuilder, y: ir.Value, good: ir.Value, name: str, x: ir.Value
) -> ir.Value:
    """``y`` if ``good`` holds in every lane, else libm's result for all."""
    n = lanes(x.type)
    if n:
        word = ir.IntType(n)
        good = b.icmp_unsigned("==", b.bitcast(good, word), ir.Constant(word, (1 << n) - 1))
    start = b.block
    slow = b.append_basic_block()
    after = b.append_basic_block()
    b.cbranch(good, after, slow)
    b.position_at_end(slow)
    exact = libm(b, name, x)
    end = b.block
    b.branch(after)
    b.position_at_end(after)
    out = b.phi(y.type)
    out.add_incoming(y, start)
    out.add_incoming(exact, end)
    return out


_F32 = {
    "exp": _exp_f32, "log": _log_f32, "tanh": _tanh_f32, "sigmoid": _sigmoid_f32,
    "erf": _erf_f32,
    "sin": lambda b, x: _sincos_f32(b, x, 0, "sin"),
    "cos": lambda b, x: _sincos_f32(b, x, 1, "cos"),
}  # fmt: skip
_INTRINSIC = {
    "abs": "fabs", "sqrt": "sqrt", "floor": "floor", "ceil": "ceil", "trunc": "trunc",
    "round": "roundeven",
}  # fmt: skip
_LIBM = frozenset(
    "exp log sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh erf lgamma".split()
)


def unary(b: ir.IRBuilder, fn: str, x: ir.Value) -> ir.Value:
    """A float function by its name in `ir.expr.UNARY`.

    Raises:
        NotImplementedError: For names that are not float-to-float functions.
    """
    t = x.type
    if fn == "neg":
        return b.fneg(x)
    if fn in _INTRINSIC:
        return intrinsic(b, _INTRINSIC[fn], x)
    if fn == "rsqrt":
        return b.fdiv(const(t, 1.0), intrinsic(b, "sqrt", x))
    if fn == "recip":
        return b.fdiv(const(t, 1.0), x)
    if fn == "sign":
        one = copysign(b, const(t, 1.0), x)
        return b.select(b.fcmp_ordered("!=", x, const(t, 0.0)), one, b.fmul(x, const(t, 0.0)))
    if element(t) == F32 and fn in _F32:
        return _F32[fn](b, x)
    if fn == "sigmoid":
        e = unary(b, "exp", b.fneg(absolute(b, x)))
        top = b.select(b.fcmp_ordered("<", x, const(t, 0.0)), e, const(t, 1.0))
        return b.fdiv(top, b.fadd(e, const(t, 1.0)))
    if fn in _LIBM:
        return libm(b, fn, x)
    raise NotImplementedError(f"no float function {fn!r}")


def power(b: ir.IRBuilder, x: ir.Value, y: ir.Value, exponent: float | None = None) -> ir.Value:
    """``x ** y``; ``exponent`` is y's value where it is known, common ones are special-cased."""
    t = x.type
    if exponent == 2.0:
        return b.fmul(x, x)
    if exponent == 1.0:
        return x
    if exponent == 3.0:
        return b.fmul(b.fmul(x, x), x)
    if exponent == -1.0:
        return b.fdiv(const(t, 1.0), x)
    if exponent == 4.0:
        square = b.fmul(x, x)
        return b.fmul(square, square)
    return libm(b, "pow", x, y)
