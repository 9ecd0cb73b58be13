"""Winograd convolution in integers: exact, with products of s16 in pairs.

At the points 0, ±1 and ±2 inputs are transformed with small integers. Rows of transformed weights
are multiplied by what makes them whole, so that results come out ``factors`` times as large. Sums
may leave s32 on the way: they count modulo 2**32, in which an odd factor has an inverse, and what
is left is a power of two to shift by. So results are exact wherever they fit 32 bits less those
shifted out: 2 of F(2, 3), 6 of F(4, 3) (`refuse`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any, ClassVar

import numpy as np
from llvmlite import ir

from . import vecmath as V
from .int_depthwise import load_bytes
from .int_dot import Dot
from .vecmath import I8, I16, I32
from .winograd_ir import Parts, Scratch, Winograd
from .winograd_math import Matrix, Transforms, transforms

Array = np.ndarray[Any, Any]
_PAIRS = {2: (Fraction(1),), 4: (Fraction(1), Fraction(2))}
SIZES = tuple(_PAIRS)


@dataclass(frozen=True)
class WholeWinograd(Winograd):
    """A candidate that computes in integers."""

    # LLVM adds the products of two turns first, for which there are no registers
    most_unrolled: ClassVar[int] = 1

    def __str__(self) -> str:
        return f"{super().__str__()} s16"


@dataclass(frozen=True)
class Whole:
    """The matrices in integers.

    Attributes:
        b: ``[t, t]``, of inputs.
        g: ``[t, 3]``, of weights.
        a: ``[m, t]``, of outputs.
        factors: What row ``i`` and column ``j`` of the results have been multiplied by is
            ``factors[i] * factors[j]``, in which all odd factors are ``odd``.
        odd: See there.
    """

    b: Matrix
    g: Matrix
    a: Matrix
    factors: tuple[Fraction, ...]
    odd: int

    def shift(self, i: int, j: int) -> int:
        """The power of two in a result."""
        return int(self.factors[i] * self.factors[j] / self.odd).bit_length() - 1

    @property
    def inverse(self) -> int:
        """Of the odd factor, modulo 2**32, as s32."""
        x = pow(self.odd, -1, 1 << 32)
        return x - (1 << 32) if x >> 31 else x

    def weights(self, w: Array) -> Array:
        """Transformed windows: integers ``[…, 9]`` to ``[t * t, …]``."""
        g = np.array(self.g, np.int64)
        return np.moveaxis(w.astype(np.int64) @ np.kron(g, g).T, -1, 0)

    def inputs_within(self, low: int, high: int) -> int:
        """What no transformed input exceeds in magnitude."""
        b = np.array(self.b, np.int64)
        both = np.kron(b, b)
        plus, minus = np.maximum(both, 0).sum(1), np.maximum(-both, 0).sum(1)
        return int(max((plus * high - minus * low).max(), (minus * high - plus * low).max()))


@cache
def whole(m: int) -> Whole:
    """The matrices for ``m`` outputs of three taps."""
    t: Transforms = transforms(m, 3, _PAIRS[m])
    scales = [math.lcm(*(x.denominator for x in row)) for row in t.g]
    common = math.lcm(*scales)
    rows = [[x * common / s for x, s in zip(row, scales, strict=True)] for row in t.a]
    shared = [math.gcd(*(int(x) for x in row)) for row in rows]
    factors = tuple(Fraction(common, s) for s in shared)
    odd = int(factors[0] ** 2)
    while odd % 2 == 0:
        odd //= 2
    return Whole(
        t.b,
        tuple(tuple(x * s for x in row) for row, s in zip(t.g, scales, strict=True)),
        tuple(tuple(x / s for x in row) for row, s in zip(rows, shared, strict=True)),
        factors,
        odd,
    )


def refuse(m: int, weights: Array, signed: bool) -> str | None:
    """Why F(m, 3) is not exact for weights ``[k, c, 9]``, or None."""
    math_, (low, high) = whole(m), (-128, 127) if signed else (0, 255)
    transformed = math_.weights(weights)
    inputs, most = math_.inputs_within(low, high), int(np.abs(transformed).max(initial=0))
    if inputs > 32767 or most > 32767 or 2 * inputs * most >= 1 << 31:
        return "transformed weights or inputs do not fit 16 bits"
    plus = np.maximum(weights, 0).sum(axis=(1, 2), dtype=np.int64)
    minus = np.maximum(-weights, 0).sum(axis=(1, 2), dtype=np.int64)
    result = int(np.maximum(plus * high - minus * low, minus * high - plus * low).max(initial=0))
    if result << math_.shift(0, 0) >= 1 << 31:
        return "results may be too large"
    return None


def pack(weights: Array, w: Winograd) -> Array:
    """Weights ``[k, c, 9]`` transformed, as s16 ``[t * t][k / nr][c / 2][nr][2]``, zeros at the
    ends."""
    k, c = weights.shape[:2]
    blocks, pairs = -(-k // w.nr), -(-c // 2)
    full = np.zeros((w.t * w.t, blocks * w.nr, 2 * pairs), np.int16)
    full[:, :k, :c] = whole(w.m).weights(weights)
    order = full.reshape(w.t * w.t, blocks, w.nr, pairs, 2).transpose(0, 1, 3, 2, 4)
    return np.ascontiguousarray(order)


class WholeParts(Parts):
    """Emits the functions that an item consists of.

    Args:
        group: Output channels of a group of panels.
        dot: Multiplies pairs.
        signed: Whether inputs are s8.
    """

    sums = I32
    v_type = I16

    def __init__(
        self, module: ir.Module, w: Winograd, c: int, k: int, pitch: int, s: Scratch, group: int,
        dot: Dot, signed: bool,
    ):  # fmt: skip
        super().__init__(module, w, c, k, pitch, s, I8, self._bytes)
        self.whole = whole(w.m)
        self.math = Transforms(self.whole.a, self.whole.b, self.whole.g)
        self.depth, self.wide = -(-c // 2), 2 * w.lanes
        self.group, self.dot, self.signed = group, dot, signed

    def _bytes(self, b: ir.IRBuilder, at: Any, count: int) -> Any:
        x = load_bytes(b, at, self.wide, count)
        return (b.sext if self.signed else b.zext)(x, ir.VectorType(I16, self.wide))

    def _multiply_add(self, b: ir.IRBuilder, x: Any, y: Any, acc: Any) -> Any:
        pairs = ir.VectorType(I16, self.wide)
        return b.add(acc, self.dot.pairs(b, b.bitcast(x, pairs), b.bitcast(y, pairs)))

    def _finished(self, b: ir.IRBuilder, x: Any, i: int, j: int) -> Any:
        if self.whole.odd != 1:
            x = b.mul(x, V.const(x.type, self.whole.inverse))
        return b.ashr(x, V.const(x.type, self.whole.shift(i, j)))

    def _stored_lanes(self) -> int:
        fits: Sequence[int] = [
            n * self.w.lanes for n in (4, 2)
            if self.k % (n * self.w.lanes) == 0 == self.group % (n * self.w.lanes)
        ]
        return fits[0] if fits else self.w.lanes
