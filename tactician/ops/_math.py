"""Scalar functions of the compute language in numpy, on every element type."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..ir import dtypes as T

Array = np.ndarray[Any, Any]

_WIDE: dict[T.DType, T.DType] = {
    T.f16: T.f32, T.bf16: T.f32, T.f8e4m3: T.f32, T.f8e5m2: T.f32, T.f8e8m0: T.f32,
    T.f4e2m1: T.f32, T.i4: T.i8, T.u4: T.u8,
}


def compute_dtype(dt: T.DType) -> T.DType:
    """The type arithmetic on ``dt`` is done in; results are rounded once, to ``dt``."""
    return _WIDE.get(dt, dt)


def widen(x: Array) -> Array:
    """``x`` in the type arithmetic is done in; object arrays (symbolic integers) pass."""
    x = np.asarray(x)
    if x.dtype == object:
        return x
    return x.astype(compute_dtype(T.dtype(x.dtype)).np, copy=False)


# --- error function -----------------------------------------------------------------------

# Rational minimax approximations by W. J. Cody (Math. Comp. 23, 1969), highest power first.
_SMALL_P = (1.85777706184603153e-1, 3.16112374387056560e0, 1.13864154151050156e2,
            3.77485237685302021e2, 3.20937758913846947e3)
_SMALL_Q = (1.0, 2.36012909523441209e1, 2.44024637934444173e2, 1.28261652607737228e3,
            2.84423683343917062e3)
_MID_P = (2.15311535474403846e-8, 5.64188496988670089e-1, 8.88314979438837594e0,
          6.61191906371416295e1, 2.98635138197400131e2, 8.81952221241769090e2,
          1.71204761263407058e3, 2.05107837782607147e3, 1.23033935479799725e3)
_MID_Q = (1.0, 1.57449261107098347e1, 1.17693950891312499e2, 5.37181101862009858e2,
          1.62138957456669019e3, 3.29079923573345963e3, 4.36261909014324716e3,
          3.43936767414372164e3, 1.23033935480374942e3)


def _poly(c: tuple[float, ...], x: Array) -> Array:
    y = np.full_like(x, c[0])
    for k in c[1:]:
        y = y * x + k
    return y


def erf(x: Any) -> Array:
    """The error function, to about 1e-15 relative; computed in f64, given in ``x``'s type."""
    x = np.asarray(x)
    y = x.astype(np.float64)
    a = np.abs(y)
    square = np.minimum(a, 1.0) ** 2
    small = y * _poly(_SMALL_P, square) / _poly(_SMALL_Q, square)
    mid = np.minimum(a, 6.0)  # erf(6) is 1 in f64
    tail = 1.0 - np.exp(-mid * mid) * _poly(_MID_P, mid) / _poly(_MID_Q, mid)
    return np.where(a <= 0.46875, small, np.copysign(tail, y)).astype(x.dtype)


def _lgamma_scalar(v: float) -> float:
    try:
        return math.lgamma(v)
    except (ValueError, OverflowError):
        return math.inf


def lgamma(x: Any) -> Array:
    """log |gamma(x)|; infinite at the poles."""
    x = np.asarray(x)
    flat = [_lgamma_scalar(float(v)) for v in x.reshape(-1)]
    return np.array(flat, dtype=np.float64).reshape(x.shape).astype(x.dtype)


def sigmoid(x: Any) -> Array:
    """1 / (1 + exp(-x)) without overflow."""
    x = np.asarray(x)
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e)).astype(x.dtype)


def softplus(x: Any) -> Array:
    """log(1 + exp(x)) without overflow."""
    x = np.asarray(x)
    return (np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))).astype(x.dtype)


# --- tables of functions ------------------------------------------------------------------


def _rounding(f: Callable[[Array], Array]) -> Callable[[Array], Array]:
    return lambda x: x if x.dtype.kind in "iub" else f(x)


UNARY: dict[str, Callable[[Any], Any]] = {
    "neg": np.negative, "abs": np.abs, "exp": np.exp, "log": np.log, "sqrt": np.sqrt,
    "rsqrt": lambda x: (1 / np.sqrt(x)).astype(x.dtype), "recip": lambda x: (1 / x).astype(x.dtype),
    "sin": np.sin, "cos": np.cos, "tan": np.tan, "asin": np.arcsin, "acos": np.arccos,
    "atan": np.arctan, "sinh": np.sinh, "cosh": np.cosh, "tanh": np.tanh, "asinh": np.arcsinh,
    "acosh": np.arccosh, "atanh": np.arctanh, "erf": erf, "sigmoid": sigmoid,
    "floor": _rounding(np.floor), "ceil": _rounding(np.ceil), "round": _rounding(np.rint),
    "trunc": _rounding(np.trunc), "sign": np.sign, "not": np.logical_not,
    "isinf": np.isinf, "isnan": np.isnan, "bitnot": np.invert, "lgamma": lgamma,
}
ANY_NUMBER = frozenset("neg abs floor ceil round trunc sign".split())  # other than floats too


def truncdiv(a: Any, b: Any) -> Any:
    """C's division: integers truncate towards zero."""
    if a.dtype.kind not in "iu":
        return np.trunc(a / b)
    q, r = np.floor_divide(a, b), np.remainder(a, b)
    # numpy floors; one more where the signs differ and the division was not exact
    return q + ((r != 0) & ((a < 0) != (b < 0)) & (b != 0)).astype(a.dtype)


def power(a: Any, b: Any) -> Any:
    """a ** b; an integer to a negative power truncates (1 / a), as C would."""
    if a.dtype.kind not in "iu":
        return np.power(a, b)
    whole = np.power(a, np.maximum(b, 0))
    if b.dtype.kind == "u":
        return whole
    one = np.asarray(1, a.dtype)
    odd = np.bitwise_and(b, 1) == 1
    inverse = np.where(a == 1, one, np.where(a == -1, np.where(odd, -one, one), 0 * one))
    return np.where(b < 0, inverse, whole).astype(a.dtype)


def divide(a: Any, b: Any) -> Any:
    return truncdiv(a, b) if a.dtype.kind in "iu" else np.divide(a, b)


def _shift(f: Any) -> Callable[[Any, Any], Any]:
    return lambda a, b: f(a, b).astype(a.dtype)


BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": divide,
    "floordiv": np.floor_divide, "mod": np.mod, "fmod": np.fmod, "truncdiv": truncdiv,
    "pow": power, "min": np.minimum, "max": np.maximum, "atan2": np.arctan2,
    "and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor,
    "bitand": np.bitwise_and, "bitor": np.bitwise_or, "bitxor": np.bitwise_xor,
    "shl": _shift(np.left_shift), "shr": _shift(np.right_shift),
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal,
    "gt": np.greater, "ge": np.greater_equal,
}


# --- conversion ---------------------------------------------------------------------------


def limits(dt: T.DType) -> tuple[Any, Any]:
    """Smallest and largest finite value."""
    import ml_dtypes

    if dt.kind == "b":
        return False, True
    info: Any = ml_dtypes.finfo(dt.np) if dt.is_float else ml_dtypes.iinfo(dt.np)
    return (float(info.min), float(info.max)) if dt.is_float else (int(info.min), int(info.max))


def convert(x: Array, to: T.DType, saturate: bool = False) -> Array:
    """``x`` as element type ``to``: floats truncate to integers, anything but 0 is true, integers
    wrap. With ``saturate``, values beyond the limits of ``to`` become the limits."""
    x = np.asarray(x)
    with np.errstate(all="ignore"):
        if to.kind == "b":
            return (x != 0).astype(np.bool_)
        if x.dtype.kind == "c" and to.kind != "c":
            x = x.real
        source = T.dtype(x.dtype)
        if saturate and to.kind != "c" and source.kind != "c":
            return _saturated(x, source, to)
        if to in (T.i4, T.u4) and source.is_float:
            x = np.trunc(widen(x)).astype(np.int64)
        if source.is_float and source.bits < 32:
            x = x.astype(np.float32)
        return x.astype(to.np)


def _saturated(x: Array, source: T.DType, to: T.DType) -> Array:
    low, high = limits(to)
    if source.is_float:
        exact = source.bits > 16 or to.is_int
        wide: Array = x.astype(np.float64 if exact else np.float32)
        if to.is_int:
            # 2**63 is not an f64 below the limit: clamp by comparison, not by value
            whole = np.trunc(np.nan_to_num(wide, nan=0.0, posinf=np.inf, neginf=np.inf * -1))
            inside = (whole >= float(low)) & (whole < float(high) + 1)
            safe = np.where(inside, whole, 0.0).astype(np.int64 if low < 0 else np.uint64)
            out = np.where(whole < float(low), low, np.where(inside, safe, high))
            return out.astype(np.int64 if low < 0 else np.uint64).astype(to.np)
        return np.clip(wide, low, high).astype(to.np)
    if source.is_int and to.is_int:
        slow, shigh = limits(source)
        whole = x.astype(np.uint64 if shigh > 2**63 else np.int64)
        return np.clip(whole, max(low, slow), min(high, shigh)).astype(to.np)
    if to.is_float:
        return np.clip(x.astype(np.float64), low, high).astype(to.np)
    return x.astype(to.np)
