"""Products of bf16 on vectors: two of them added to each f32 lane.

Where the CPU lacks the instruction both halves of a lane become f32, which they are the upper
half of, and are multiplied one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from llvmlite import ir

from . import vecmath as V
from .isa import Isa
from .vecmath import BF16, F32, I32

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Bf16Dot:
    """See `dots.Products`.

    Attributes:
        lanes: f32 lanes of a vector.
        isa: Says whether there is an instruction.
    """

    lanes: int
    isa: Isa
    group: ClassVar[int] = 2
    size: ClassVar[int] = 2
    acc: ClassVar[ir.Type] = F32
    weight_bytes: ClassVar[int] = 4
    guarded: ClassVar[bool] = False

    def pack(self, w: Array) -> Array:
        """Weights ``[..., columns, 2]``, as bf16, in bytes ``[..., columns * 4]``."""
        import ml_dtypes

        narrow = np.ascontiguousarray(w.astype(ml_dtypes.bfloat16))
        return narrow.view(np.uint8).reshape(*w.shape[:-2], -1)

    def spread(self, b: ir.IRBuilder, x: ir.Value) -> list[ir.Value]:
        """Two bf16 (an i32) in all lanes."""
        wide = V.splat(b, x, self.lanes)
        return [wide] if self._name else self._halves(b, wide)

    def weights(self, b: ir.IRBuilder, at: ir.Value) -> list[ir.Value]:
        """The weights of one vector of columns."""
        w = b.load(at, typ=ir.VectorType(I32, self.lanes), align=4)
        return [w] if self._name else self._halves(b, w)

    def products(
        self, b: ir.IRBuilder, acc: ir.Value, x: list[ir.Value], w: list[ir.Value]
    ) -> ir.Value:
        """``acc`` plus two products."""
        if self._name is None:
            for p, q in zip(x, w, strict=True):
                acc = V.intrinsic(b, "fma" if self.isa.fma else "fmuladd", p, q, acc)
            return acc
        t = ir.VectorType(BF16, 2 * self.lanes)
        fn = V.declare(b.module, self._name, acc.type, [acc.type, t, t])
        return b.call(fn, [acc, b.bitcast(x[0], t), b.bitcast(w[0], t)])

    @property
    def _name(self) -> str | None:
        return self.isa.intrinsic("dot_bf16")

    def _halves(self, b: ir.IRBuilder, x: ir.Value) -> list[ir.Value]:
        floats = V.like(x.type, F32)
        low = b.shl(x, V.const(x.type, 16))
        high = b.and_(x, V.const(x.type, -65536))
        return [b.bitcast(low, floats), b.bitcast(high, floats)]

