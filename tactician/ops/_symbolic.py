"""Functions of the compute language on object arrays that hold ints and `Dim`s."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from ..ir import dims as D
from ..ir.dtypes import DType
from . import _math as M
from ._shapes import order


def unary(fn: str, x: Any) -> Any:
    """``fn`` of every element.

    Raises:
        TypeError: If it is not known for symbolic operands.
    """
    if fn == "neg":
        return _each(lambda v: -v, x)
    if fn in _ROUND:
        return _each(lambda v: float(_ROUND[fn](v)) if isinstance(v, float) else v, x)
    if fn in ("sqrt", "recip"):
        return _each(lambda v: v**0.5 if fn == "sqrt" else 1 / v, _floats(x))
    if fn in ("abs", "sign"):
        signs = _each(lambda v: order(v, 0), x)
        if any(s is None for s in signs.reshape(-1)):
            raise TypeError(f"{fn} of a symbolic number of unknown sign")
        return signs if fn == "sign" else signs * x
    if fn == "not":
        return _each(lambda v: not _plain(v), x)
    raise TypeError(f"{fn} of symbolic numbers")


_ROUND: dict[str, Callable[[float], float]] = {
    "floor": math.floor, "ceil": math.ceil, "round": round, "trunc": math.trunc,
}


def _floats(x: Any) -> Any:
    return _each(lambda v: float(_plain(v)) if not isinstance(v, float) else v, x)


def _whole(v: Any) -> Any:
    """A float as the int it is, so that it combines with symbols.

    Raises:
        TypeError: If it has a fraction.
    """
    if isinstance(v, float):
        if not v.is_integer():
            raise TypeError(f"{v} times or plus a symbolic number")
        return int(v)
    return v


def _in_floats(fn: str, a: Any, b: Any) -> Any:
    """``fn`` of two floats, one of which may be a symbol that stands for a whole number."""
    if D.is_static(a, b):
        a, b = float(a), float(b)
        if fn in ("div", "pow", "fmod"):
            return {"div": operator.truediv, "pow": operator.pow, "fmod": math.fmod}[fn](a, b)
        return _BINARY[fn](a, b)
    a, b = _whole(a), _whole(b)
    if fn == "div" and (b == 0 or D.modulo(a, b) != 0):
        raise TypeError(f"{a} / {b} may have a fraction")
    if fn not in ("add", "sub", "mul", "div", "min", "max"):
        raise TypeError(f"{fn} of symbolic floats")
    return _BINARY[fn](a, b)


def binary(fn: str, a: Any, b: Any, floats: bool = False) -> Any:
    """``fn`` of every pair, broadcast; ``floats``: of floats, as far as they are known.

    Raises:
        TypeError: If it is not known for symbolic operands.
    """
    if fn not in _BINARY:
        raise TypeError(f"{fn} of symbolic numbers")
    a, b = np.broadcast_arrays(np.asarray(a, dtype=object), np.asarray(b, dtype=object))
    out = np.empty(a.shape, dtype=object)
    for i in np.ndindex(a.shape):
        compared = fn in ("eq", "ne", "lt", "le", "gt", "ge")
        if floats and compared:
            out[i] = _BINARY[fn](_whole(a[i]), _whole(b[i]))
        else:
            out[i] = _in_floats(fn, a[i], b[i]) if floats else _BINARY[fn](a[i], b[i])
    return out


def cast(x: Any, to: DType) -> Any:
    """Conversion between integers and floats; symbolic numbers are assumed to fit.

    Raises:
        TypeError: If it is not known for symbolic operands.
    """
    if to.kind == "b":
        return _each(lambda v: v != 0 if isinstance(v, float) else _known(order(v, 0)) != 0, x)
    if to.is_float and to.bits >= 16:
        return _each(lambda v: v if isinstance(v, D.Dim) else float(v), x)
    if not to.is_int:
        raise TypeError(f"cast of symbolic numbers to {to}")
    low, high = M.limits(to)

    def wrap(v: Any) -> Any:
        if isinstance(v, float) and not low <= v <= high:
            raise TypeError(f"{v} is out of range for {to}")
        return v if isinstance(v, D.Dim) else (int(v) - low) % (high - low + 1) + low

    return _each(wrap, x)


def _each(f: Callable[[Any], Any], x: Any) -> Any:
    out = np.empty(x.shape, dtype=object)
    for i in np.ndindex(x.shape):
        out[i] = f(x[i])
    return out


def _plain(v: Any) -> int:
    if isinstance(v, D.Dim):
        raise TypeError(f"the value of {v} is not known")
    return int(v)


def _known(o: int | None) -> int:
    if o is None:
        raise TypeError("comparison depends on run-time sizes")
    return o


def _truncdiv(a: Any, b: Any) -> Any:
    if D.is_static(a, b):
        a, b = int(a), int(b)
        return 0 if b == 0 else abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
    return D.floor_div(a, b)


def _fmod(a: Any, b: Any) -> Any:
    return a - _truncdiv(a, b) * b if D.is_static(a, b) and b else D.modulo(a, b)


def _mod(a: Any, b: Any) -> Any:
    return 0 if D.is_static(a, b) and b == 0 else D.modulo(a, b)


def _pow(a: Any, b: Any) -> Any:
    n = _plain(b)
    if n < 0:
        raise TypeError("negative power of an integer")
    return D.product([a] * n) if n < 64 else _plain(a) ** n


def _extreme(static: Any, symbolic: Any) -> Callable[[Any, Any], Any]:
    # 0 and 1 may be bools in mixed arithmetic; D's functions want ints
    return lambda a, b: static(a, b) if D.is_static(a, b) else symbolic(a, b)


def _bits(f: Callable[[int, int], int]) -> Callable[[Any, Any], Any]:
    return lambda a, b: f(_plain(a), _plain(b))


def _compare(test: Callable[[int], bool]) -> Callable[[Any, Any], Any]:
    return lambda a, b: test(_known(order(a, b)))


_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": _truncdiv,
    "truncdiv": _truncdiv,
    "floordiv": D.floor_div,
    "mod": _mod,
    "fmod": _fmod,
    "pow": _pow,
    "min": _extreme(min, D.dim_min),
    "max": _extreme(max, D.dim_max),
    "and": _bits(lambda a, b: bool(a) and bool(b)),
    "or": _bits(lambda a, b: bool(a) or bool(b)),
    "xor": _bits(lambda a, b: bool(a) != bool(b)),
    "bitand": _bits(lambda a, b: a & b),
    "bitor": _bits(lambda a, b: a | b),
    "bitxor": _bits(lambda a, b: a ^ b),
    "eq": _compare(lambda o: o == 0),
    "ne": _compare(lambda o: o != 0),
    "lt": _compare(lambda o: o < 0),
    "gt": _compare(lambda o: o > 0),
    "le": _compare(lambda o: o <= 0),
    "ge": _compare(lambda o: o >= 0),
}
