"""GELU of numbers that are rounded to half precision: one polynomial instead of erf or tanh.

    GELU(x) = x / 2 + x * t(x),  t(x) = x * P(x * x), limited to [-1/2, 1/2]

The polynomials are within 4e-5 of the function for all x (half a step of bf16 is 5e-4 at 1/4, of
f16 6e-5), exact for large ones, take no division, and pass NaN on. Beyond the range they were
fitted in, they leave the limits on the right side.
"""

from __future__ import annotations

import math

from ...ir import expr as E
from ...ir.dtypes import bf16, f16, f32

# Minimax of the error of GELU with t(c) >= 1/2 from c = 4.4 (4.25) on, lowest order first
_ERF = (
    0.39876184, -0.066076875, 0.0096433191, -0.00105508277, 8.4308318e-05, -4.72636475e-06,
    1.7416896e-07, -3.75658038e-09, 3.57257453e-11,
)  # fmt: skip
_TANH = (
    0.398787826, -0.066453144, 0.00990493968, -0.00112868706, 9.54792486e-05, -5.72293357e-06,
    2.26515098e-07, -5.25532462e-09, 5.37657661e-11,
)  # fmt: skip
_NEAR = 1e-3  # exporters round constants, to half precision at worst


def shorter(e: E.Expr) -> E.Expr:
    """An expression that becomes bf16 or f16 next, with GELUs as polynomials."""
    done: dict[E.Expr, E.Expr] = {}

    def go(x: E.Expr) -> E.Expr:
        if x not in done:
            done[x] = change(x)
        return done[x]

    def change(x: E.Expr) -> E.Expr:
        found = _matched(x)
        if found is not None:
            return _polynomial(*found)
        if isinstance(x, E.Binary) and x.fn in ("add", "sub", "mul") and x.dtype is f32:
            a, b = go(x.a), go(x.b)
            if a is not x.a or b is not x.b:
                return E.binary(x.fn, a, b)
        return x

    return go(e)


def rounds(e: E.Cast) -> bool:
    """Whether `shorter` may be applied to what ``e`` converts."""
    return e.dtype in (bf16, f16) and e.x.dtype is f32


def _matched(e: E.Expr) -> tuple[E.Expr, tuple[float, ...]] | None:
    """``x`` and the polynomial, of ``x / 2 * (1 + f(…))``."""
    for half, other in _sides(e, "mul"):
        x = _times(half, 0.5)
        f = None if x is None else _plus_one(other)
        if x is None or f is None:
            continue
        if f.fn == "erf" and _times(f.x, math.sqrt(0.5)) is x:
            return x, _ERF
        if f.fn == "tanh" and _is_cubic(_times(f.x, math.sqrt(2 / math.pi)), x):
            return x, _TANH
    return None


def _sides(e: E.Expr | None, fn: str) -> list[tuple[E.Expr, E.Expr]]:
    if not isinstance(e, E.Binary) or e.fn != fn or e.dtype is not f32:
        return []
    return [(e.a, e.b), (e.b, e.a)]


def _times(e: E.Expr | None, factor: float) -> E.Expr | None:
    """``x`` if ``e`` is ``x * factor``."""
    return next((x for x, c in _sides(e, "mul") if _is(c, factor)), None)


def _plus_one(e: E.Expr) -> E.Unary | None:
    return next(
        (f for f, c in _sides(e, "add") if isinstance(f, E.Unary) and _is(c, 1.0)), None
    )


def _is_cubic(e: E.Expr | None, x: E.Expr) -> bool:
    """Whether ``e`` is ``x + 0.044715 * x**3``, as the activation writes it."""
    return any(
        a is x and _times(right, 0.044715) is x and isinstance(square, E.Binary)
        and square.fn == "mul" and square.a is x and square.b is x
        for a, cube in _sides(e, "add") for square, right in _sides(cube, "mul")
    )


def _is(e: E.Expr, value: float) -> bool:
    return isinstance(e, E.Const) and abs(float(e.value) - value) <= _NEAR * value


def _polynomial(x: E.Expr, coefficients: tuple[float, ...]) -> E.Expr:
    z = E.mul(x, x)
    p: E.Expr = E.const(coefficients[-1], f32)
    for c in coefficients[-2::-1]:
        p = E.add(E.mul(p, z), E.const(c, f32))
    t = E.binary("min", E.binary("max", E.mul(p, x), E.const(-0.5, f32)), E.const(0.5, f32))
    return E.add(E.mul(x, t), E.mul(x, E.const(0.5, f32)))
