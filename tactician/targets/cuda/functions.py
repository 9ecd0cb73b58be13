"""Functions of the compute language as Triton text.

What Triton has on every backend and in its interpreter is used directly; everything else is a
helper function whose text goes in front of the kernel that needs it. Rarely used functions are
evaluated in f64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...ir import dtypes as T
from ...ir.dtypes import DType
from .types import is_narrow_float, register, tl_name

NAN_ALL = "propagate_nan=tl.PropagateNan.ALL"
_COMPARE = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_ARITHMETIC = {"add": "+", "sub": "-", "mul": "*"}
_BITS = {"bitand": "&", "bitor": "|", "bitxor": "^", "and": "&", "or": "|", "xor": "^"}


@dataclass(frozen=True)
class Text:
    """A Triton expression: the name of a variable or a literal.

    Attributes:
        dt: What the register holds. Integers that count elements are i32 where that is enough,
            although the compute language calls them i64.
        axes: The block axes it extends along; no axes: a scalar.
        number: Its value, if it is a literal.
    """

    text: str
    dt: DType
    axes: frozenset[int] = frozenset()
    number: float | int | None = None

    def __str__(self) -> str:
        return self.text


HELPERS: dict[str, tuple[str, tuple[str, ...]]] = {}
"""Name -> (source, helpers it calls)."""


def _helper(name: str, body: str, *needs: str, args: str = "x") -> None:
    lines = "\n".join("    " + line for line in body.strip().splitlines())
    HELPERS[name] = f"@triton.jit\ndef {name}({args}):\n{lines}\n", needs


def helper_text(names: set[str]) -> str:
    """The helpers' sources, each after those it calls."""
    done: dict[str, str] = {}

    def add(name: str) -> None:
        if name not in done:
            source, needs = HELPERS[name]
            for n in needs:
                add(n)
            done[name] = source

    for n in sorted(names):
        add(n)
    return "\n\n".join(done.values())


_helper("_max", f"return tl.maximum(a, b, {NAN_ALL})", args="a, b")
_helper("_min", f"return tl.minimum(a, b, {NAN_ALL})", args="a, b")
_helper("_imax", "return tl.maximum(a, b)", args="a, b")
_helper("_imin", "return tl.minimum(a, b)", args="a, b")
_helper("_prod", "return a * b", args="a, b")
_helper("_or", "return a | b", args="a, b")
_helper("_and", "return a & b", args="a, b")
_helper("_round32", "return tl.where(tl.abs(x) < 4194304.0, (x + 12582912.0) - 12582912.0, x)")
_helper("_round64", """
big = 6755399441055744.0
return tl.where(tl.abs(x) < 2251799813685248.0, (x + big) - big, x)
""")
_helper("_trunc", "return tl.where(x < 0, tl.ceil(x), tl.floor(x))")
_helper("_sign", "return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, x)).to(x.dtype)")
_helper("_tanh", """
a = tl.abs(x)
s = x * x
p = 2.1869489e-2 * s - 5.3968254e-2
p = (p * s + 1.3333333333333333e-1) * s - 3.3333333333333333e-1
small = x + x * s * p
large = 1.0 - 2.0 / (tl.exp(a + a) + 1.0)
large = tl.where(x < 0, -large, large)
return tl.where(a < 0.25, small, large)
""")
_helper("_tanh64", """
a = tl.abs(x)
s = x * x
small = x * (1.0 + s * (-1.0 / 3.0 + s * (2.0 / 15.0)))
e = tl.exp(-2.0 * a)
large = (1.0 - e) / (1.0 + e)
return tl.where(a < 1e-3, small, tl.where(x < 0, -large, large))
""")
_helper("_sinh", """
s = x * x
small = x * (1.0 + s / 6.0 * (1.0 + s / 20.0 * (1.0 + s / 42.0 * (1.0 + s / 72.0))))
return tl.where(tl.abs(x) < 0.1, small, 0.5 * tl.exp(x) - 0.5 * tl.exp(-x))
""")
_helper("_cosh", "return 0.5 * tl.exp(x) + 0.5 * tl.exp(-x)")
_helper("_asinh", """
a = tl.abs(x)
large = tl.where(a > 1e100, tl.log(a) + 0.6931471805599453,
                 tl.log(a + tl.sqrt(a * a + 1.0)))
s = x * x
small = x * (1.0 - s / 6.0 * (1.0 - s * 0.45))
return tl.where(a < 1e-3, small, tl.where(x < 0, -large, large))
""")
_helper("_acosh", """
large = tl.log(x) + 0.6931471805599453
return tl.where(x > 1e100, large, tl.log(x + tl.sqrt((x - 1.0) * (x + 1.0))))
""")
_helper("_atanh", """
s = x * x
small = x * (1.0 + s / 3.0 * (1.0 + s * 0.6))
return tl.where(tl.abs(x) < 1e-3, small, 0.5 * tl.log((1.0 + x) / (1.0 - x)))
""")
# atan(x) = 2 atan(x / (1 + sqrt(1 + x^2))), twice, then the series
_helper("_atan", """
a = tl.abs(x)
inverse = a > 1.0
t = tl.where(inverse, 1.0 / a, a)
t = t / (1.0 + tl.sqrt(1.0 + t * t))
t = t / (1.0 + tl.sqrt(1.0 + t * t))
s = t * t
p = 1.0 / 17.0 - s * (1.0 / 19.0 - s * (1.0 / 21.0))
p = 1.0 / 11.0 - s * (1.0 / 13.0 - s * (1.0 / 15.0 - s * p))
p = 1.0 / 5.0 - s * (1.0 / 7.0 - s * (1.0 / 9.0 - s * p))
r = 4.0 * t * (1.0 - s * (1.0 / 3.0 - s * p))
r = tl.where(inverse, 1.5707963267948966 - r, r)
return tl.where(x < 0, -r, r)
""")
_helper("_asin", """
a = tl.abs(x)
r = 2.0 * _atan(a / (1.0 + tl.sqrt((1.0 - a) * (1.0 + a))))
return tl.where(x < 0, -r, r)
""", "_atan")
_helper("_acos", """
r = 2.0 * _atan(tl.sqrt((1.0 - x) / (1.0 + x)))
return tl.where(x == -1.0, 3.141592653589793, r)
""", "_atan")
_helper("_atan2", """
ax = tl.abs(x)
ay = tl.abs(y)
same = (ax == ay) & (ax != 0.0)
r = _atan(tl.where(same, 1.0, ay / tl.where(ax == 0.0, 1.0, ax)))
r = tl.where((ax == 0.0) & (ay > 0.0), 1.5707963267948966, r)
r = tl.where(x < 0, 3.141592653589793 - r, r)
r = tl.where((x != x) | (y != y), x + y, r)
return tl.where(y < 0, -r, r)
""", "_atan", args="y, x")
# Stirling's series above 8, reached by the recurrence; below 0.5 by reflection
_helper("_lgamma", """
low = x < 0.5
z = tl.where(low, 1.0 - x, x)
p = z
p = p * 0.0 + 1.0
for k in tl.static_range(8):
    step = z < 8.0
    p = tl.where(step, p * z, p)
    z = tl.where(step, z + 1.0, z)
i = 1.0 / z
s = i * i
c = s * (1.0 / 1188.0 - s * (691.0 / 360360.0 - s * (1.0 / 156.0)))
c = i * (1.0 / 12.0 - s * (1.0 / 360.0 - s * (1.0 / 1260.0 - s * (1.0 / 1680.0 - c))))
r = (z - 0.5) * tl.log(z) - z + 0.9189385332046727 + c - tl.log(p)
r = tl.where(z > 1e300, z, r)
f = x - tl.floor(x)
sine = tl.abs(tl.sin(3.141592653589793 * tl.where(f > 0.5, 1.0 - f, f)))
reflected = 1.1447298858494002 - tl.log(sine) - r
r = tl.where(low, reflected, r)
return tl.where(tl.abs(x) == float("inf"), float("inf"), r)
""")
_helper("_fmod", """
q = x / y
r = x - tl.where(q < 0, tl.ceil(q), tl.floor(q)) * y
r = tl.where((r != 0.0) & ((r < 0) != (x < 0)), r + tl.where(x < 0, -tl.abs(y), tl.abs(y)), r)
finite = tl.abs(x) < float("inf")
return tl.where(finite & (tl.abs(y) == float("inf")), x, r)
""", args="x, y")
_helper("_mod", """
r = _fmod(x, y)
return tl.where((r != 0.0) & ((r < 0) != (y < 0)), r + y, r)
""", "_fmod", args="x, y")
_helper("_floordiv", """
q = _round64((x - _mod(x, y)) / y)
flat = (tl.abs(y) == float("inf")) & (tl.abs(x) < float("inf"))
q = tl.where(flat, tl.where((x != 0.0) & ((x < 0) != (y < 0)), -1.0, 0.0), q)
return tl.where(y == 0.0, x / y, q)
""", "_mod", "_round64", args="x, y")
# signs: a negative base has a power only for whole exponents
_helper("_pow", """
a = tl.abs(x)
r = tl.exp2(y * tl.log2(a))
whole = tl.floor(y) == y
n = tl.where(whole & (tl.abs(y) <= 63.0), tl.abs(y), 0.0).to(tl.int32)
exact = a * 0.0 + 1.0
b = a
for k in tl.static_range(6):
    exact = tl.where(((n >> k) & 1) != 0, exact * b, exact)
    b = b * b
exact = tl.where(y < 0, 1.0 / exact, exact)
r = tl.where(whole & (tl.abs(y) <= 63.0) & (a < float("inf")), exact, r)
odd = whole & (tl.floor(y * 0.5) != y * 0.5) & (tl.abs(y) < 9007199254740992.0)
r = tl.where((x < 0) & odd, -r, r)
r = tl.where((x < 0) & (a < float("inf")) & (whole == 0), float("nan"), r)
r = tl.where((x == -1.0) & (tl.abs(y) == float("inf")), 1.0, r)
return tl.where((y == 0.0) | (x == 1.0), 1.0, r)
""", args="x, y")
_helper("_ipow", """
r = x * 0 + 1
b = x
for k in tl.static_range(6):
    r = tl.where(((y >> k) & 1) != 0, r * b, r)
    b = b * b
return r
""", args="x, y")
_helper("_ipow_signed", """
r = _ipow(x, y)
unit = tl.where((y & 1) != 0, x, x * x)
unit = tl.where((x == 1) | (x == -1), unit, x * 0)
return tl.where(y < 0, unit, r)
""", "_ipow", args="x, y")
# Triton divides as C does; by zero gives 0
_helper("_idiv", "return tl.where(y == 0, 0, x // tl.where(y == 0, 1, y)).to(x.dtype)", args="x, y")
_helper("_irem", "return tl.where(y == 0, 0, x % tl.where(y == 0, 1, y)).to(x.dtype)", args="x, y")
_helper("_ifloordiv", """
d = tl.where(y == 0, 1, y)
q = x // d
r = x - q * d
return tl.where(y == 0, 0, q - ((r != 0) & ((r < 0) != (d < 0))).to(x.dtype)).to(x.dtype)
""", args="x, y")
_helper("_imod", """
d = tl.where(y == 0, 1, y)
r = x % d
return tl.where(y == 0, 0, tl.where((r != 0) & ((r < 0) != (d < 0)), r + d, r)).to(x.dtype)
""", args="x, y")

_IN_F64 = {
    "sinh": "_sinh", "cosh": "_cosh", "asinh": "_asinh", "acosh": "_acosh", "atanh": "_atanh",
    "asin": "_asin", "acos": "_acos", "atan": "_atan", "lgamma": "_lgamma",
}  # fmt: skip
_PLAIN = {"exp": "tl.exp", "log": "tl.log", "sin": "tl.sin", "cos": "tl.cos", "erf": "tl.erf",
          "abs": "tl.abs", "floor": "tl.floor", "ceil": "tl.ceil", "rsqrt": "tl.rsqrt"}  # fmt: skip


class Functions:
    """Writes functions; notes the helpers they need in ``helpers``.

    Attributes:
        exact: Whether f32 quotients are correctly rounded (where rounding to integers follows).
        pairs: Whether two integers of 16 bits are compared at a time (compute capability 9.0 on).
    """

    def __init__(self) -> None:
        self.helpers: set[str] = set()
        self.exact = self.pairs = False

    def call(self, name: str, *args: str) -> str:
        self.helpers.add(name)
        return f"{name}({', '.join(args)})"

    def _in_f64(self, name: str, dt: DType, *args: Text) -> str:
        wide = [f"{a}.to(tl.float64)" if a.dt is not T.f64 else str(a) for a in args]
        out = self.call(name, *wide)
        return out if dt is T.f64 else f"{out}.to({tl_name(dt)})"

    # --- one operand ---------------------------------------------------------------------

    def unary(self, fn: str, x: Text) -> str:
        """``fn(x)`` for a register value.

        Raises:
            NotImplementedError: If the function is not defined for the type.
        """
        if fn == "not":
            return f"{x} == 0"
        if fn == "isnan":
            return f"{x} != {x}"
        if x.dt.is_float:
            return self._float_unary(fn, x)
        return self._int_unary(fn, x)

    def _float_unary(self, fn: str, x: Text) -> str:
        dt = x.dt
        if fn == "neg":
            return f"-{x}"
        if fn == "isinf":
            return f'tl.abs({x}) == float("inf")'
        if fn in _PLAIN:
            return f"{_PLAIN[fn]}({x})"
        if fn == "sqrt":
            return f"tl.sqrt({x})" if dt is T.f64 else f"tl.sqrt_rn({x})"
        if fn == "recip":
            return self._quotient("1.0", x)
        if fn == "tan":
            return f"tl.sin({x}) / tl.cos({x})"
        if fn == "sigmoid":
            return f"1.0 / (1.0 + tl.exp(-{x}))"
        if fn == "tanh":
            return self.call("_tanh64" if dt is T.f64 else "_tanh", x.text)
        if fn == "round":
            return self.call("_round64" if dt is T.f64 else "_round32", x.text)
        if fn in ("trunc", "sign"):
            return self.call("_" + fn, x.text)
        if fn in _IN_F64:
            return self._in_f64(_IN_F64[fn], dt, x)
        raise NotImplementedError(f"{fn} of {dt}")

    def _int_unary(self, fn: str, x: Text) -> str:
        dt = x.dt
        if fn == "isinf":
            return f"{x} != {x}"
        if fn == "neg":
            return f"(0 - {x}).to({tl_name(dt)})"
        if fn == "bitnot":
            return f"{x} == 0" if dt is T.b1 else f"~{x}"
        if fn == "abs":
            if dt.kind != "i":
                return x.text
            return f"tl.where({x} < 0, 0 - {x}, {x}).to({tl_name(dt)})"
        if fn == "sign":
            down = f" - ({x} < 0).to({tl_name(dt)})" if dt.kind == "i" else ""
            return f"(({x} > 0).to({tl_name(dt)}){down})"
        if fn in ("floor", "ceil", "round", "trunc"):
            return x.text
        raise NotImplementedError(f"{fn} of {dt}")

    # --- two operands --------------------------------------------------------------------

    def binary(self, fn: str, x: Text, y: Text, nonnegative: bool = False) -> str:
        """``fn(x, y)``; ``nonnegative``: integer operands are known to be, and ``y`` not 0."""
        dt = x.dt if y.number is not None else y.dt
        if fn in _COMPARE:
            if dt is T.b1:
                return f"{x}.to(tl.int8) {_COMPARE[fn]} {y}.to(tl.int8)"
            return f"{x} {_COMPARE[fn]} {y}"
        if dt.is_float:
            return self._float_binary(fn, x, y)
        if dt is T.b1:
            return self._bool_binary(fn, x, y)
        return self._int_binary(fn, x, y, dt, nonnegative)

    def _quotient(self, x: str, y: Text) -> str:
        if self.exact and y.dt is T.f32:
            return f"tl.div_rn({x}, {y})" if x != "1.0" else f"tl.div_rn({y} * 0.0 + 1.0, {y})"
        return f"{x} / {y}"

    def _float_binary(self, fn: str, x: Text, y: Text) -> str:
        if fn in _ARITHMETIC:
            return f"{x} {_ARITHMETIC[fn]} {y}"
        if fn == "div":
            if y.number and _power_of_two(y.number):
                return f"{x} * {1.0 / y.number!r}"
            if x.number is not None or y.number is not None or y.dt is not T.f32:
                if self.exact and y.number is not None and x.dt is T.f32:
                    return f"tl.div_rn({x}, tl.full((), {y}, tl.float32))"
                return f"{x} / {y}"
            return self._quotient(x.text, y)
        if fn in ("max", "min"):
            return f"tl.{fn}imum({x}, {y}, {NAN_ALL})"
        if fn == "pow":
            return self._power(x, y)
        if fn == "truncdiv":
            return self.call("_trunc", f"({x} / {y})")
        if fn in ("atan2", "fmod", "mod", "floordiv"):
            dt = y.dt if x.number is not None else x.dt
            return self._in_f64("_" + fn, dt, self._tensor(x), self._tensor(y))
        raise NotImplementedError(f"{fn} of {x.dt}")

    def _tensor(self, x: Text) -> Text:
        if x.number is None:
            return x
        return Text(f"tl.full((), {x}, {tl_name(x.dt)})", x.dt)

    def _power(self, x: Text, y: Text) -> str:
        c = y.number
        if c is not None and x.number is None:
            special = {1: f"{x}", 2: f"{x} * {x}", 3: f"{x} * {x} * {x}", 0: f"{x} * 0.0 + 1.0",
                       -1: f"1.0 / {x}", 0.5: f"tl.sqrt({x})", -0.5: f"1.0 / tl.sqrt({x})",
                       -2: f"1.0 / ({x} * {x})", 0.75: f"tl.sqrt({x}) * tl.sqrt(tl.sqrt({x}))",
                       -0.75: f"1.0 / (tl.sqrt({x}) * tl.sqrt(tl.sqrt({x})))"}  # fmt: skip
            if c in special:
                return special[c]
        dt = y.dt if x.number is not None else x.dt
        return self._in_f64("_pow", dt, self._tensor(x), self._tensor(y))

    def _bool_binary(self, fn: str, x: Text, y: Text) -> str:
        if fn in ("mul", "min"):
            fn = "and"
        if fn in ("add", "max"):
            fn = "or"
        if fn in _BITS:
            return f"{x} {_BITS[fn]} {y}"
        raise NotImplementedError(f"{fn} of booleans")

    def _int_binary(self, fn: str, x: Text, y: Text, dt: DType, nonnegative: bool) -> str:
        if fn in _ARITHMETIC:
            return f"({x} {_ARITHMETIC[fn]} {y}).to({tl_name(dt)})" if dt.bits < 32 else (
                f"{x} {_ARITHMETIC[fn]} {y}")
        if fn in _BITS:
            return f"{x} {_BITS[fn]} {y}"
        if fn in ("max", "min"):
            return f"tl.{fn}imum({x}, {y})"
        if fn in ("shl", "shr"):
            return self._shift(fn, x, y, dt)
        if fn in ("div", "truncdiv", "floordiv"):
            if nonnegative:
                return f"{x} // {y}"
            floor = fn == "floordiv" and dt.kind == "i"
            return self.call("_ifloordiv" if floor else "_idiv", *self._pair(x, y, dt))
        if fn in ("mod", "fmod"):
            if nonnegative:
                return f"{x} % {y}"
            floor = fn == "mod" and dt.kind == "i"
            return self.call("_imod" if floor else "_irem", *self._pair(x, y, dt))
        if fn == "pow":
            return self.call("_ipow_signed" if dt.kind == "i" else "_ipow", *self._pair(x, y, dt))
        raise NotImplementedError(f"{fn} of {dt}")

    def _pair(self, x: Text, y: Text, dt: DType) -> tuple[str, str]:
        def tensor(a: Text) -> str:
            if a.number is not None:
                return f"tl.full((), {a}, {tl_name(dt)})"
            return a.text if a.dt is dt else f"{a}.to({tl_name(dt)})"

        return tensor(x), tensor(y)

    def _shift(self, fn: str, x: Text, y: Text, dt: DType) -> str:
        """Shifting by the width or more gives what shifting bit by bit would."""
        a, b = self._pair(x, y, dt)
        op, t = ("<<" if fn == "shl" else ">>"), tl_name(dt)
        far = f"(({b} < 0) | ({b} >= {dt.bits}))" if dt.kind == "i" else f"({b} >= {dt.bits})"
        near = f"tl.where({far}, {dt.bits - 1}, {b}).to({t})"
        if fn == "shr" and dt.kind == "i":
            return f"{a} >> {near}"
        return f"tl.where({far}, 0, {a} {op} {near}).to({t})"

    # --- conversions ---------------------------------------------------------------------

    def cast(self, x: Text, src: DType, dst: DType, saturate: bool) -> str:
        """Value conversion between register types, as numpy's ``astype``."""
        to = f"{x}.to({tl_name(register(dst))})"
        if dst is T.b1:
            return f"{x} != 0"
        if src is T.b1:
            return to
        if src.is_float:
            if dst.is_float:
                return self._narrow(x, src, dst, saturate)
            return self._to_int(x, dst, saturate)
        if dst.is_float:
            wide = Text(to, register(dst), x.axes)
            return self._narrow(wide, T.f32, dst, saturate) if is_narrow_float(dst) else to
        if saturate:
            low, high = limits(dst)
            slow, shigh = limits(x.dt)
            y = x.text
            if high < shigh:
                y = f"tl.where({y} > {high}, {high}, {y})"
            if low > slow:
                y = f"tl.where({x} < {low}, {low}, {y})"
            return f"{y}.to({tl_name(dst)})"
        return to

    def _narrow(self, x: Text, src: DType, dst: DType, saturate: bool) -> str:
        """Rounds to the precision of ``dst``, in its register type."""
        if dst is T.f64:
            return f"{x}.to(tl.float64)"
        y = f"{x}.to(tl.float32)" if x.dt is not T.f32 else x.text
        if not is_narrow_float(dst):
            return y
        if is_narrow_float(src) and (src is dst):
            return y
        top = {T.f16: 65504.0, T.bf16: 3.3895313892515355e38, T.f8e4m3: 448.0, T.f8e5m2: 57344.0}
        if saturate:
            clamped = f"tl.where({y} > {top[dst]!r}, {top[dst]!r}, {y})"
            y = f"tl.where({y} < {-top[dst]!r}, {-top[dst]!r}, {clamped})"
        elif dst is T.f8e4m3:  # beyond the halfway point to the next value there is only NaN
            y = f'tl.where(tl.abs({y}) > 464.0, float("nan"), {y})'
        elif dst is T.f8e5m2:
            # the device's own conversion would make the largest number of infinities
            clipped = f'tl.where({y} < 0, -float("inf"), float("inf"))'
            rounded = f"({y}).to({tl_name(dst)}).to(tl.float32)"
            return f"tl.where(tl.abs({y}) >= 61440.0, {clipped}, {rounded})"
        return f"({y}).to({tl_name(dst)}).to(tl.float32)"

    def _to_int(self, x: Text, dst: DType, saturate: bool) -> str:
        t = tl_name(dst)
        if saturate:
            low, high = limits(dst)
            inside = f"({x} > {float(low) - 1.0!r}) & ({x} < {float(high) + 1.0!r})"
            if float(low) - 1.0 == float(low) or dst.bits >= 32:
                inside = f"({x} >= {float(low)!r}) & ({x} < {float(high) + 1.0!r})"
            via = "tl.int64" if dst.bits >= 32 else "tl.int32"
            safe = f"tl.where({inside}, {x}, 0.0).to({via}).to({t})"
            if dst is T.u64:
                safe = f"tl.where({inside}, {x}, 0.0).to({t})"
            top = f"tl.full((), {high}, {t})"
            bottom = f"tl.full((), {low}, {t})"
            beyond = f"tl.where({x} >= {float(high)!r}, {top}, {safe})"
            return f"tl.where({x} <= {float(low)!r}, {bottom}, {beyond})"
        if dst is T.u64:
            return f"tl.where({x} < 0, {x}.to(tl.int64).to({t}), {x}.to({t}))"
        if dst in (T.u32, T.i64):
            return f"{x}.to(tl.int64).to({t})"
        return f"{x}.to(tl.int32).to({t})" if dst.bits < 32 else f"{x}.to({t})"


def limits(dt: DType) -> tuple[int, int]:
    """Smallest and largest value of an integer type."""
    if dt.kind == "u":
        return 0, (1 << dt.bits) - 1
    return -(1 << (dt.bits - 1)), (1 << (dt.bits - 1)) - 1


def _power_of_two(x: float | int) -> bool:
    return x != 0 and math.isfinite(x) and abs(math.frexp(x)[0]) == 0.5


def memory_cast(x: Text, dt: DType) -> str:
    """A register value as it is stored."""
    if dt is T.b1:
        return f"{x}.to(tl.int8)" if x.number is None else str(int(bool(x.number)))
    if x.number is not None or x.dt is dt:
        return x.text
    if dt is T.f8e5m2:  # the device's own conversion knows no infinity
        bits = f"({x}).to({tl_name(dt)}).to(tl.uint8, bitcast=True)"
        infinite = f"tl.where({x} < 0, 252, 124).to(tl.uint8)"
        bits = f'tl.where(tl.abs({x}) == float("inf"), {infinite}, {bits})'
        return f"{bits}.to({tl_name(dt)}, bitcast=True)"
    return f"{x}.to({tl_name(dt)})"
