"""Winograd's minimal filtering: transform matrices and their emission as instructions.

``F(m, r)`` computes ``m`` neighbouring outputs of a window of ``r`` taps from ``t = m + r - 1``
inputs with ``t`` instead of ``m * r`` multiplications: ``y = A (G g * B d)``, products taken
elementwise. It evaluates polynomials at ``t - 1`` points and infinity. Which points decides the
rounding error. Largest error relative to the range of the result, measured in f32 with normal
random inputs and weights and 512 input channels (for comparison, the usual points):

    F(2, 3)   0 ±1                 6e-7
    F(4, 3)   0 ±3/4 ±3/2          2.5e-6     (0 ±1 ±2: 9e-6)
    F(6, 3)   0 ±1/2 ±1 ±7/4       1.8e-5     (0 ±1/2 ±1 ±2: 2e-5)

The points are binary fractions, so that no coefficient is rounded. Those but zero come in pairs
±p, which share half of their sums; `rows_of_pairs` and `columns_of_pairs` use that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir

from . import vecmath as V

Matrix = tuple[tuple[Fraction, ...], ...]

_POINTS: dict[int, tuple[Fraction, ...]] = {
    2: (Fraction(1),),
    4: (Fraction(3, 4), Fraction(3, 2)),
    6: (Fraction(1, 2), Fraction(1), Fraction(7, 4)),
}

# Products of so many terms numpy's library computes with one thread. More threads would spin
# between the products of a build, on the cores that compile.
_ALONE = 1 << 18


@dataclass(frozen=True)
class Transforms:
    """The matrices of ``F(m, r)``.

    Attributes:
        a: ``[m, t]``, of outputs. Columns 2k+1 and 2k+2 belong to a pair of points.
        b: ``[t, t]``, of inputs. Rows 2k+1 and 2k+2 belong to a pair of points.
        g: ``[t, r]``, of weights.
    """

    a: Matrix
    b: Matrix
    g: Matrix

    @property
    def t(self) -> int:
        return len(self.b)

    def weights(self, w: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Transformed two-dimensional windows: ``[…, r, r]`` to ``[t * t, …]``, in f32 from sums
        in f64."""
        g = np.array([[float(x) for x in row] for row in self.g])
        r = g.shape[1]
        both, flat = np.kron(g, g), w.reshape(-1, r * r)
        out = np.empty((len(both), len(flat)), np.float32)
        step = _ALONE // both.size
        for k in range(0, len(flat), step):
            out[:, k : k + step] = both @ np.ascontiguousarray(flat[k : k + step].T, np.float64)
        return out.reshape(self.t * self.t, *w.shape[:-2])


@cache
def transforms(m: int, r: int = 3, pairs: tuple[Fraction, ...] | None = None) -> Transforms:
    """The matrices for ``m`` outputs of ``r`` taps.

    Args:
        pairs: One of each pair of points; None: those with the least error.

    Raises:
        KeyError: If ``m`` is not 2, 4 or 6.
    """
    points = [Fraction(0)]
    for p in _POINTS[m] if pairs is None else pairs:
        points += [p, -p]
    if len(points) != m + r - 2:
        raise KeyError(f"no points for F({m}, {r})")
    zero, one = Fraction(0), Fraction(1)
    a = tuple(
        (*(p**i for p in points), one if i == m - 1 else zero) for i in range(m)
    )
    g, b = [], []
    for p in points:
        others = [q for q in points if q != p]
        scale = one
        for q in others:
            scale *= p - q
        g.append(tuple(p**k / scale for k in range(r)))
        b.append((*_polynomial(others), zero))
    g.append((*[zero] * (r - 1), one))
    b.append(tuple(_polynomial(points)))
    return Transforms(a, tuple(b), tuple(g))


def _polynomial(roots: Sequence[Fraction]) -> list[Fraction]:
    """Coefficients, lowest first, of the monic polynomial with these roots."""
    out = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *out]
        out = [s - root * c for s, c in zip(shifted, [*out, Fraction(0)], strict=True)]
    return out


# --- as instructions --------------------------------------------------------------------------


def rows_of_pairs(b: ir.IRBuilder, matrix: Matrix, xs: Sequence[Any]) -> list[Any]:
    """Matrix times vector for a matrix whose rows 2k+1 and 2k+2 have equal even and opposite odd
    parts (`Transforms.b`)."""
    n = len(matrix)
    out: list[Any] = [None] * n
    out[0], out[n - 1] = _sum(b, matrix[0], xs), _sum(b, matrix[n - 1], xs)
    for i in range(1, n - 1, 2):
        plus, minus = matrix[i], matrix[i + 1]
        even = [(x + y) / 2 for x, y in zip(plus, minus, strict=True)]
        odd = [(x - y) / 2 for x, y in zip(plus, minus, strict=True)]
        lead = next(x for x in reversed(odd) if x)
        e, o = _sum(b, even, xs), _sum(b, [x / lead for x in odd], xs)
        out[i], out[i + 1] = _add_scaled(b, e, lead, o), _add_scaled(b, e, -lead, o)
    return out


def columns_of_pairs(b: ir.IRBuilder, matrix: Matrix, xs: Sequence[Any]) -> list[Any]:
    """Matrix times vector for a matrix whose columns 2k+1 and 2k+2 agree up to the sign
    (`Transforms.a`)."""
    n = len(xs)
    values = [xs[0]]
    for j in range(1, n - 1, 2):
        one = Fraction(1)
        values += [_add_scaled(b, xs[j], sign, xs[j + 1]) for sign in (one, -one)]
    values.append(xs[n - 1])
    out = []
    for row in matrix:
        folded = [row[0]]
        for j in range(1, n - 1, 2):
            folded += [(row[j] + row[j + 1]) / 2, (row[j] - row[j + 1]) / 2]
        out.append(_sum(b, [*folded, row[n - 1]], values))
    return out


def _sum(b: ir.IRBuilder, row: Sequence[Fraction], xs: Sequence[Any]) -> Any:
    """``sum of row[j] * xs[j]``, beginning with a term that needs no multiplication."""
    terms = [(c, x) for c, x in zip(row, xs, strict=True) if c]
    terms.sort(key=lambda t: t[0] != 1)
    (c, total), *rest = terms
    if c != 1:
        times = b.mul if _whole(total) else b.fmul
        total = times(_constant(total.type, c), total)
    for c, x in rest:
        total = _add_scaled(b, total, c, x)
    return total


def _add_scaled(b: ir.IRBuilder, total: Any, c: Fraction, x: Any) -> Any:
    if c in (1, -1):
        plus, minus = (b.add, b.sub) if _whole(x) else (b.fadd, b.fsub)
        return (plus if c == 1 else minus)(total, x)
    if _whole(x):
        scaled = b.mul(_constant(x.type, abs(c)), x)
        return (b.add if c > 0 else b.sub)(total, scaled)
    return V.intrinsic(b, "fma", _constant(x.type, c), x, total)


def _whole(x: Any) -> bool:
    return isinstance(V.element(x.type), ir.IntType)


@cache
def _constant(t: ir.Type, c: Fraction) -> ir.Constant:
    if isinstance(V.element(t), ir.IntType):
        if c.denominator != 1:
            raise ValueError(f"{c} is not whole")
        return V.const(t, int(c))
    return V.const(t, float(c))
