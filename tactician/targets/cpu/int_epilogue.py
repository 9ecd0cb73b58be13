"""Epilogues of integer contractions: the usual chain of dequantization, bias, activation and
quantization made shorter, and its emission.

``quantize(relu(dequantize(acc, s) + bias), q)`` becomes ``acc * (s / q) + bias / q`` with constants
divided when the kernel is built; the activation goes where the result's limits do its work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...ir import expr as E
from ...ir.dtypes import f32
from ...ir.graph import Value
from . import convert, requantize
from . import vecmath as V
from .conv_common import Epilogue, own_or_by_channel
from .vecmath import F32, I32, I64

Array = np.ndarray[Any, Any]


class Finish:
    """What happens to the sums of a region.

    Attributes:
        stage: The region's stage, rewritten; None if there is none.
        source: What the stage loads the sums from.
        floats: Whether it takes the sums as f32.
        constants: Operands that the rewriting made.
        variant: What the code depends on beside the region's signature.
    """

    def __init__(self, stage: E.Stage | None, sums: Value):
        self.source, self.floats = sums, False
        self.constants: dict[Value, Array] = {}
        self._made: dict[tuple[Value, float], Value] = {}
        self.stage = stage
        if stage is None:
            self.variant = ""
            return
        e = self._requantized(stage.expr)
        e = _reciprocals(stage.expr) if e is None else e
        e = self._as_floats(e)
        self.stage = E.Stage(stage.out, stage.vars, e)
        self.variant = f"{len(self.constants)} {len(E.walk(e))}"

    def values(self) -> list[Value]:
        """What the stage reads from memory."""
        if self.stage is None:
            return []
        found = {ld.value: None for ld in E.loads(self.stage.expr)}
        return [v for v in found if v is not self.source]

    def _requantized(self, e: E.Expr) -> E.Expr | None:
        """The expression with the division by the result's scale moved into constants."""
        found = requantize.match(e) if isinstance(e, E.Cast) else None
        if found is None:
            return None
        x, zero = found
        if not isinstance(x, E.Binary) or x.fn != "div" or x.b.dtype is not f32:
            return None
        q = _known(x.b)
        if q is None or not (q > 0 and np.isfinite(1 / q)):
            return None
        y = self._scaled(x.a, 1 / q)
        if y is None:
            return None
        low = convert.limits(e.dtype)[0]
        least = 0 if zero is None else _known(zero)
        if least == low and isinstance(y, E.Binary) and y.fn == "max" and _is_zero(y.b):
            y = y.a  # saturation does it
        y = E.rewrite(y, _clipped)
        rounded: E.Expr = E.unary("round", y)
        assert isinstance(e, E.Cast)
        if isinstance(e.x, E.Binary):
            other = e.x.b if isinstance(e.x.a, E.Unary) and e.x.a.fn == "round" else e.x.a
            rounded = E.add(rounded, other)
        return E.cast(rounded, e.dtype, True)

    def _scaled(self, e: E.Expr, r: float) -> E.Expr | None:
        """``e * r`` with no more operations than ``e``; None where that can't be."""
        if isinstance(e, E.Const) and e.dtype is f32:
            return E.const(float(np.float32(float(e.value) * r)), f32)
        if isinstance(e, E.Load) and e.dtype is f32 and e.value.const is not None:
            if e.guard is not None or e.value.const.size > 1 << 16:
                return None
            return E.Load(e.dtype, self._constant(e.value, r), e.index, None, None)
        if not isinstance(e, E.Binary):
            return None
        if e.fn == "mul":
            for one, other in ((e.b, e.a), (e.a, e.b)):
                if isinstance(one, (E.Const, E.Load)):
                    y = self._scaled(one, r)
                    if y is not None:
                        return E.mul(other, y)
            return None
        if e.fn in ("add", "sub", "max", "min"):
            a = self._scaled(e.a, r)
            b = None if a is None else self._scaled(e.b, r)
            return None if a is None or b is None else E.binary(e.fn, a, b)
        return None

    def _constant(self, v: Value, r: float) -> Value:
        if (v, r) not in self._made:
            made = self._made[v, r] = Value(f"{v.name} scaled", v.dtype, v.dims)
            assert v.const is not None
            scaled = (np.asarray(v.const, np.float64) * r).astype(np.float32)
            self.constants[made] = np.ascontiguousarray(scaled)
        return self._made[v, r]

    def _as_floats(self, e: E.Expr) -> E.Expr:
        """Sums that are only read to become f32 can be f32 from the start."""
        source = self.source
        parents = [x for x in E.walk(e) if any(_loads(c, source) for c in E.children(x))]
        if not parents or not all(
            isinstance(x, E.Cast) and x.dtype is f32 for x in parents
        ):
            return e
        floats = Value(f"{source.name} as f32", f32, source.dims)

        def changed(x: E.Expr) -> E.Expr | None:
            if isinstance(x, E.Cast) and _loads(x.x, source):
                assert isinstance(x.x, E.Load)
                return E.Load(f32, floats, x.x.index, None, None)
            return None

        self.source, self.floats = floats, True
        return E.rewrite(e, changed)


def _loads(e: E.Expr, v: Value) -> bool:
    return isinstance(e, E.Load) and e.value is v


def _known(e: E.Expr) -> float | None:
    """The value of an expression that is one known number."""
    if isinstance(e, E.Const):
        return float(e.value)
    if isinstance(e, E.Load) and e.value.const is not None and e.value.const.size == 1:
        return float(np.asarray(e.value.const).reshape(()))
    return None


def _clipped(e: E.Expr) -> E.Expr | None:
    """Limits as comparisons, which are one instruction: what they do to a NaN matters no more
    where integers follow."""
    if not isinstance(e, E.Binary) or e.fn not in ("max", "min") or not isinstance(e.b, E.Const):
        return None
    return E.select(E.compare("gt" if e.fn == "max" else "lt", e.a, e.b), e.a, e.b)


def _is_zero(e: E.Expr) -> bool:
    return isinstance(e, E.Const) and float(e.value) == 0.0


def _reciprocals(e: E.Expr) -> E.Expr:
    """Divisions by what is the same for all elements as products with its reciprocal, which is
    computed once a tile."""

    def changed(x: E.Expr) -> E.Expr | None:
        if not isinstance(x, E.Binary) or x.fn != "div" or x.dtype is not f32:
            return None
        if isinstance(x.a, E.Const) or any(isinstance(v, E.Var) for v in E.walk(x.b)):
            return None
        return E.mul(x.a, E.div(E.const(1.0, f32), x.b))

    return E.rewrite(e, changed)


# --- emission -------------------------------------------------------------------------------


class IntEpilogue(Epilogue):
    """The stage of a convolution, on sums in s32 or in f32."""

    def __init__(self, problem: Any, operands: Sequence[Any], sizes: Any):
        super().__init__(problem, operands, sizes)
        # sums of floats stay what they are
        self.floats = problem.finish.floats or problem.y.dtype.is_float
        self.source = problem.finish.source

    def store(self, em: Any, x: Any, k: Any, sums: Any, count: int) -> None:
        """See `Epilogue.store`."""
        b = em.builder
        is_float = V.element(sums.type) == F32
        if self.floats and not is_float:
            sums = b.sitofp(sums, V.like(sums.type, F32))
        elif is_float and not self.floats:
            sums = b.fptosi(V.unary(b, "round", sums), V.like(sums.type, I32))
        super().store(em, x, k, sums, count)


class RowEpilogue(IntEpilogue):
    """The stage of a matrix product: ``x`` counts the rows of all batches."""

    def __init__(self, problem: Any, operands: Sequence[Any], sizes: Any):
        super().__init__(problem, operands, sizes)
        self.rows = self.stage.vars[:-1] if problem.w.rank > 1 else self.stage.vars
        # where operands are read at their own place or by column, rows need no taking apart
        self.flat = bool(self.rows) and own_or_by_channel(problem.stage, problem.out, last=True)

    def at(self, b: Any, dims: Any, image: Any, outer: Sequence[Any]) -> Any:
        """See `Epilogue.at`."""
        return super().at(b, dims, None, ())

    def _bind_outer(self, em: Any, image: Any, outer: Sequence[Any]) -> None:
        if self.flat:
            for v in self.rows[:-1]:
                em.bind(v, I64(0))

    def _bind_pixel(self, em: Any, x: Any) -> None:
        if self.flat:
            em.bind(self.rows[-1], x)
            return
        for v in reversed(self.rows[1:]):
            size = em.dim(v.extent)
            em.bind(v, em.builder.srem(x, size))
            x = em.builder.sdiv(x, size)
        if self.rows:
            em.bind(self.rows[0], x)

    def _channel(self) -> E.Var | None:
        return self.stage.vars[-1] if self.p.w.rank > 1 else None

