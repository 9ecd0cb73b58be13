"""Products of 8-bit integers on vectors: how four of them are added to each s32 lane.

All methods share one order of weights, ``[group of four k][column][k of the group]``, and read
four neighbouring bytes of the other operand, broadcast to all lanes:

- ``dot``: an instruction that does it all; u8 by s8 (VNNI) or s8 by s8 (NEON).
- ``maddubs``: pairs in s16, then s32. Only exact if no pair of weights can leave s16.
- ``guarded``: the same for any weights of 8 bits, where no operand of a tile is so large that a
  pair could leave s16; ``madd`` on the same weights where one is (`dot_guard`).
- ``madd``: even and odd bytes widened to s16; weights stored as s16, so any difference of two
  8-bit numbers can be one.
- ``widen``: the same with weights stored as s8, which halves what is read where weights are read
  once.

Where the CPU lacks an instruction the method is spelled out, which lets any machine run it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from llvmlite import ir

from . import vecmath as V
from .isa import Isa
from .vecmath import I8, I16, I32

GROUP = 4  # neighbouring k that meet in one lane
GUARDED = 16  # channels that are held against a limit at a time come in such numbers
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Dot:
    """One method on one CPU.

    Attributes:
        name: See the module's text.
        lanes: s32 lanes of a vector.
        x_signed: Whether the broadcast operand lies in memory as s8.
        isa: Says which instructions there are.
    """

    name: str
    lanes: int
    x_signed: bool
    isa: Isa
    group: ClassVar[int] = GROUP
    size: ClassVar[int] = 1
    acc: ClassVar[ir.Type] = I32

    @property
    def wants_signed(self) -> bool:
        """Whether the instruction takes the broadcast operand as s8 (``madd`` takes either)."""
        if self._wide:
            return self.x_signed
        return self.name == "dot" and self.isa.arch in ("aarch64", "arm64")

    @property
    def _wide(self) -> bool:
        return self.name in ("madd", "widen")

    @property
    def guarded(self) -> bool:
        """Whether pairs are only exact up to a limit that operands have to be held against."""
        return self.name == "guarded"

    @property
    def shift(self) -> int:
        """What is added to the broadcast operand on the way into registers."""
        return 128 * (int(self.x_signed) - int(self.wants_signed))

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights for one lane and group."""
        return GROUP * (2 if self.name == "madd" else 1)

    def pack(self, w: Array) -> Array:
        """Weights ``[..., columns, 4]`` of one group as bytes in the order of `products`:
        ``[..., bytes]``; columns are a multiple of the lanes."""
        lead = w.shape[:-2]
        if not self._wide:
            return np.ascontiguousarray(w.astype(np.int8)).view(np.uint8).reshape(*lead, -1)
        pairs = w.reshape(*lead, -1, self.lanes, 2, 2)  # [vector, lane, pair of k, even or odd]
        stored = np.int16 if self.name == "madd" else np.int8
        order = np.moveaxis(pairs, -1, -3).astype(stored)  # [vector, even or odd, lane, pair]
        return np.ascontiguousarray(order).view(np.uint8).reshape(*lead, -1)

    # --- code --------------------------------------------------------------------------------

    def spread(self, b: ir.IRBuilder, x: ir.Value) -> list[ir.Value]:
        """Four bytes (an i32) in all lanes, as `products` takes them."""
        wide = V.splat(b, x, self.lanes)
        if self._wide:
            pairs = b.bitcast(wide, self._vector(I16))
            eight = V.const(pairs.type, 8)
            if self.x_signed:
                return [b.ashr(b.shl(pairs, eight), eight), b.ashr(pairs, eight)]
            return [b.and_(pairs, V.const(pairs.type, 255)), b.lshr(pairs, eight)]
        flat = b.bitcast(wide, self._vector(I8))
        return [b.xor(flat, V.const(flat.type, -128)) if self.shift else flat]

    def weights(self, b: ir.IRBuilder, at: ir.Value) -> list[ir.Value]:
        """The weights of one vector of columns and one group."""
        if not self._wide:
            return [b.load(at, typ=self._vector(I8), align=4)]
        t = self._vector(I16)
        if self.name == "widen":
            half = b.gep(at, [I32(2 * self.lanes)], source_etype=I8)
            narrow = ir.VectorType(I8, 2 * self.lanes)
            return [b.sext(b.load(p, typ=narrow, align=4), t) for p in (at, half)]
        half = b.gep(at, [I32(4 * self.lanes)], source_etype=I8)
        return [b.load(at, typ=t, align=4), b.load(half, typ=t, align=4)]

    def products(
        self, b: ir.IRBuilder, acc: ir.Value, x: list[ir.Value], w: list[ir.Value]
    ) -> ir.Value:
        """``acc`` plus the group's products."""
        if self._wide:
            for part, weights in zip(x, w, strict=True):
                acc = b.add(acc, self.pairs(b, part, weights))
            return acc
        if self.name in ("maddubs", "guarded"):
            pairs = self._byte_pairs(b, x[0], w[0])
            return b.add(acc, self.pairs(b, pairs, V.const(pairs.type, 1)))
        operation = "dot_s8s8" if self.wants_signed else "dot_u8s8"
        name = self.isa.intrinsic(operation)
        if name is not None:
            t = self._vector(I8)
            fn = V.declare(b.module, name, acc.type, [acc.type, t, t])
            return b.call(fn, [acc, x[0], w[0]])
        t = V.with_lanes(I32, GROUP * self.lanes)
        wide = b.sext(x[0], t) if self.wants_signed else b.zext(x[0], t)
        full = b.mul(wide, b.sext(w[0], t))
        for k in range(GROUP):
            acc = b.add(acc, _every(b, full, k, GROUP))
        return acc

    # --- any operands, on the weights of ``guarded`` -------------------------------------------

    def spread_wide(self, b: ir.IRBuilder, x: ir.Value) -> list[ir.Value]:
        """Like `spread`: even and odd bytes as s16."""
        words = b.bitcast(self.spread(b, x)[0], self._vector(I16))
        return [b.and_(words, V.const(words.type, 255)), b.lshr(words, V.const(words.type, 8))]

    def weights_wide(self, b: ir.IRBuilder, at: ir.Value) -> list[ir.Value]:
        """Like `weights`: even and odd bytes as s16."""
        words = b.load(at, typ=self._vector(I16), align=4)
        eight = V.const(words.type, 8)
        return [b.ashr(b.shl(words, eight), eight), b.ashr(words, eight)]

    def products_wide(
        self, b: ir.IRBuilder, acc: ir.Value, x: list[ir.Value], w: list[ir.Value]
    ) -> ir.Value:
        """Like `products`, on even and odd bytes."""
        for part, weights in zip(x, w, strict=True):
            acc = b.add(acc, self.pairs(b, part, weights))
        return acc

    def pairs(self, b: ir.IRBuilder, x: ir.Value, w: ir.Value) -> ir.Value:
        """Neighbouring products of s16 added in s32."""
        name = self.isa.intrinsic("madd_s16")
        if name is not None:
            result = V.with_lanes(I32, self.lanes)
            return b.call(V.declare(b.module, name, result, [x.type, w.type]), [x, w])
        t = V.like(x.type, I32)
        full = b.mul(b.sext(x, t), b.sext(w, t))
        return b.add(_every(b, full, 0, 2), _every(b, full, 1, 2))

    def _byte_pairs(self, b: ir.IRBuilder, x: ir.Value, w: ir.Value) -> ir.Value:
        """Neighbouring products of u8 by s8 added in s16 (weights are such that they fit)."""
        name = self.isa.intrinsic("madd_u8s8")
        if name is not None:
            fn = V.declare(b.module, name, self._vector(I16), [x.type, w.type])
            return b.call(fn, [x, w])
        t = V.like(x.type, I16)
        full = b.mul(b.zext(x, t), b.sext(w, t))
        return b.add(_every(b, full, 0, 2), _every(b, full, 1, 2))

    def _vector(self, element: ir.Type) -> ir.VectorType:
        return ir.VectorType(element, self.lanes * 32 // element.width)


def methods(isa: Isa, x_signed: bool, weights: Array, once: bool = False) -> list[Dot]:
    """Methods that are exact for these weights (``[k, c, taps]``), the fastest first.

    Args:
        weights: Integers, zero points subtracted.
        once: Whether each weight is read just a few times.
    """
    lanes = isa.lanes(32)
    if lanes < 2:
        return []
    narrow = weights.size == 0 or (weights.min() >= -128 and weights.max() <= 127)
    names = []
    if narrow and isa.int8_dot:
        names.append("dot")
    elif narrow and isa.intrinsic("madd_u8s8") is not None:
        if pairs_fit(weights):
            names.append("maddubs")
        elif weights.shape[1] % GUARDED == 0:
            names.append("guarded")
    if "dot" not in names:
        names += ["widen"] if once and narrow else []
        names.append("madd")
    return [Dot(name, lanes, x_signed, isa) for name in names]


def pairs_fit(weights: Array) -> bool:
    """Whether u8 numbers times any two neighbouring weights of a group add up within s16."""
    return bool(weights.size == 0 or pair_limits(weights).min() == 255)


def pair_limits(weights: Array) -> Array:
    """Up to which u8 number (of both) every two neighbouring weights ``[k, c, taps]`` of a group
    add up within s16: ``[k]``, at most 255."""
    w = weights
    padded = np.pad(w, ((0, 0), (0, w.shape[1] % 2), (0, 0))).astype(np.int32)
    even, odd = padded[:, 0::2], padded[:, 1::2]
    top = np.maximum(even, 0) + np.maximum(odd, 0)
    bottom = np.minimum(even, 0) + np.minimum(odd, 0)
    most = 32767 // np.maximum(top.max(axis=(1, 2)), 1)
    least = 32768 // np.maximum(-bottom.min(axis=(1, 2)), 1)
    return np.minimum(np.minimum(most, least), 255).astype(np.uint8)


def _every(b: ir.IRBuilder, x: ir.Value, first: int, step: int) -> ir.Value:
    """Every ``step``-th lane from ``first`` on."""
    index = [I32(k) for k in range(first, x.type.count, step)]
    mask = ir.Constant(ir.VectorType(I32, len(index)), index)
    return b.shuffle_vector(x, V.undefined(x.type), mask)
