"""Functions of the compute language on object arrays that hold ints and `Dim`s."""

from __future__ import annotations

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
    if fn in ("floor", "ceil", "round", "trunc"):
        return x
    if fn in ("abs", "sign"):
        signs = _each(lambda v: order(v, 0), x)
        if any(s is None for s in signs.reshape(-1)):
            raise TypeError(f"{fn} of a symbolic number of unknown sign")
        return signs if fn == "sign" else signs * x
    if fn == "not":
        return _each(lambda v: not _plain(v), x)
    raise TypeError(f"{fn} of symbolic numbers")


def binary(fn: str, a: Any, b: Any) -> Any:
    """``fn`` of every pair, broadcast.

    Raises:
        TypeError: If it is not known for symbolic operands.
    """
    if fn not in _BINARY:
        raise TypeError(f"{fn} of symbolic numbers")
    a, b = np.broadcast_arrays(np.asarray(a, dtype=object), np.asarray(b, dtype=object))
    out = np.empty(a.shape, dtype=object)
    for i in np.ndindex(a.shape):
        out[i] = _BINARY[fn](a[i], b[i])
    return out


def cast(x: Any, to: DType) -> Any:
    """Integer conversion; symbolic numbers are assumed to fit.

    Raises:
        TypeError: For conversions to floats.
    """
    if to.kind == "b":
        return _each(lambda v: _known(order(v, 0)) != 0, x)
    if not to.is_int:
        raise TypeError(f"cast of symbolic numbers to {to}")
    low, high = M.limits(to)

    def wrap(v: Any) -> Any:
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
