"""Epilogues of integer contractions: the usual chain of dequantization, bias, activation and
quantization made shorter, and its emission.

``quantize(relu(dequantize(acc, s) + bias), q)`` becomes ``acc * (s / q) + bias / q`` with constants
divided when the kernel is built; the activation goes where the result's limits do its work. What
is quantized and dequantized on the way (before a residual is added) is rounded among floats.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...ir import expr as E
from ...ir.dtypes import f32, i8, i32, u8
from ...ir.graph import Value
from . import convert, requantize
from . import vecmath as V
from .conv_common import Epilogue, own_or_by_channel
from .emitter import Shifted
from .vecmath import F32, I32, I64

Array = np.ndarray[Any, Any]
_LINE = 64  # bytes of a cache line
_NO_FRACTION = 1.5 * 2.0**23


class Finish:
    """What happens to the sums of a region.

    Args:
        stage: The region's stage.
        sums: What it loads the sums from.
        most: What no sum exceeds in magnitude.

    Attributes:
        stage: The region's stage, rewritten; None if there is none.
        source: What the stage loads the sums from.
        floats: Whether it takes the sums as f32.
        constants: Operands that the rewriting made.
        variant: What the code depends on beside the region's signature.
    """

    def __init__(self, stage: E.Stage | None, sums: Value, most: float):
        self.source, self.floats, self.most = sums, False, most
        self.constants: dict[Value, Array] = {}
        self._made: dict[tuple[Value, float, float], Value] = {}
        self.stage = stage
        if stage is None:
            self.variant = ""
            return
        e = self._as_floats(stage.expr)
        e = E.rewrite(e, self._round_trip)
        done = self._requantized(e)
        e = _reciprocals(e) if done is None else done
        self.stage = E.Stage(stage.out, stage.vars, e)
        small = [requantize.small(x) for x in E.walk(e) if x.dtype is f32]
        self.variant = f"{len(self.constants)} {''.join('ny'[s] for s in small)}"

    def values(self) -> list[Value]:
        """What the stage reads from memory."""
        if self.stage is None:
            return []
        found = {ld.value: None for ld in E.loads(self.stage.expr)}
        return [v for v in found if v is not self.source]

    def _requantized(self, e: E.Expr) -> E.Expr | None:
        """The expression with the division by the result's scale moved into constants."""
        found = self._unrounded(e)
        if found is None:
            return None
        assert isinstance(e, E.Cast)
        y, least, most = found
        y = E.rewrite(_without_limits(y, least, most), _clipped)
        rounded: E.Expr = E.unary("round", y)
        if isinstance(e.x, E.Binary):
            other = e.x.b if isinstance(e.x.a, E.Unary) and e.x.a.fn == "round" else e.x.a
            rounded = E.add(rounded, other)
        return E.cast(rounded, e.dtype, True)

    def _unrounded(self, e: E.Expr) -> tuple[E.Expr, float, float] | None:
        """What a quantization rounds, divided by the scale, and the limits of the result; None
        where scale or zero point are not known yet."""
        found = requantize.match(e) if isinstance(e, E.Cast) else None
        if found is None:
            return None
        x, zero = found
        point = 0.0 if zero is None else _known(zero)
        if point is None or not isinstance(x, E.Binary) or x.fn != "div" or x.dtype is not f32:
            return None
        q = _known(x.b)
        if q is None or not (q > 0 and np.isfinite(1 / q)):
            return None
        low, high = convert.limits(e.dtype)
        return self._times(x.a, 1 / q), low - point, high - point

    def _round_trip(self, e: E.Expr) -> E.Expr | None:
        """Numbers that are quantized on the way and dequantized again, without leaving floats."""
        if not isinstance(e, E.Cast) or e.dtype is not f32 or e.x.dtype.is_float:
            return None
        x, offset = _shifted(e.x)
        found = self._unrounded(x)
        if found is None:
            return None
        y, least, most = found
        y = _without_limits(y, least, most)
        y = E.binary("min", E.binary("max", y, E.const(least, f32)), E.const(most, f32))
        # adding and subtracting this leaves no room for fractions
        room = E.const(_NO_FRACTION, f32)
        y = E.sub(E.add(E.rewrite(y, _clipped), room), room)
        offset += (convert.limits(x.dtype)[0] - least)
        return y if offset == 0 else E.add(y, E.const(offset, f32))

    def _times(self, e: E.Expr, r: float) -> E.Expr:
        """``e * r``, with few operations."""
        if isinstance(e, E.Const):
            return E.const(float(np.float32(float(e.value) * r)), f32)
        if _is_sum(e):
            return self._sum(e, r)
        if isinstance(e, E.Binary):
            if e.fn == "mul":
                for one, other in ((e.b, e.a), (e.a, e.b)):
                    if isinstance(one, E.Const):
                        return self._times(other, float(one.value) * r)
                for one, other in ((e.b, e.a), (e.a, e.b)):
                    if _is_table(one):
                        return E.mul(other, self._times(one, r))
            if e.fn in ("max", "min") and r > 0:
                return E.binary(e.fn, self._times(e.a, r), self._times(e.b, r))
        if _is_table(e):
            assert isinstance(e, E.Load)
            return E.Load(e.dtype, self._constant(e.value, r, 0.0), e.index, None, None)
        return e if r == 1 else E.mul(e, E.const(float(np.float32(r)), f32))

    def _sum(self, e: E.Expr, r: float) -> E.Expr:
        """A sum's terms times ``r``; the known ones first, so that each of the others is one
        multiply-add."""
        terms: list[tuple[E.Expr, float]] = []
        known = _terms(e, r, terms)
        table = next((t for t in terms if _is_table(t[0])), None)
        total: E.Expr | None = None
        if table is not None:
            terms.remove(table)
            load = table[0]
            assert isinstance(load, E.Load)
            made = self._constant(load.value, table[1], known)
            total = E.Load(f32, made, load.index, None, None)
        elif known:
            total = E.const(float(np.float32(known)), f32)
        for x, c in terms:
            y = self._times(x, c)
            total = y if total is None else E.add(y, total)
        return E.const(0.0, f32) if total is None else total

    def _constant(self, v: Value, r: float, plus: float) -> Value:
        if (v, r, plus) not in self._made:
            made = self._made[v, r, plus] = Value(f"{v.name} scaled", v.dtype, v.dims)
            assert v.const is not None
            scaled = (np.asarray(v.const, np.float64) * r + plus).astype(np.float32)
            self.constants[made] = np.ascontiguousarray(scaled)
            made.meta["limits"] = (float(scaled.min()), float(scaled.max()))
        return self._made[v, r, plus]

    def _as_floats(self, e: E.Expr) -> E.Expr:
        """Sums that are only read to become f32 can be f32 from the start."""
        source = self.source
        parents = [x for x in E.walk(e) if any(_loads(c, source) for c in E.children(x))]
        if not parents or not all(
            isinstance(x, E.Cast) and x.dtype is f32 for x in parents
        ):
            return e
        floats = Value(f"{source.name} as f32", f32, source.dims)
        floats.meta["limits"] = (-self.most, self.most)

        def changed(x: E.Expr) -> E.Expr | None:
            if isinstance(x, E.Cast) and _loads(x.x, source):
                assert isinstance(x.x, E.Load)
                return E.Load(f32, floats, x.x.index, None, None)
            return None

        self.source, self.floats = floats, True
        return E.rewrite(e, changed)


def _is_sum(e: E.Expr) -> bool:
    if isinstance(e, E.Binary) and e.fn in ("add", "sub") and e.dtype is f32:
        return not _makes_whole(e)
    return isinstance(e, E.Cast) and e.dtype is f32 and e.x.dtype is i32 and _shifted(e.x)[1] != 0


def _makes_whole(e: E.Expr) -> bool:
    """Whether an expression is the subtraction that ends a rounding."""
    return isinstance(e, E.Binary) and isinstance(e.b, E.Const) and e.b.value == _NO_FRACTION


def _terms(e: E.Expr, r: float, out: list[tuple[E.Expr, float]]) -> float:
    """Takes a sum times ``r`` apart: appends the terms with their factors; the known part."""
    if isinstance(e, E.Const):
        return float(e.value) * r
    if isinstance(e, E.Cast) and _is_sum(e):
        x, offset = _shifted(e.x)
        out.append((E.cast(x, f32), r))
        return offset * r
    if isinstance(e, E.Binary) and _is_sum(e):
        left = _terms(e.a, r, out)
        return left + _terms(e.b, r if e.fn == "add" else -r, out)
    if isinstance(e, E.Binary) and e.fn == "mul":
        for one, other in ((e.b, e.a), (e.a, e.b)):
            if isinstance(one, E.Const):
                return _terms(other, float(one.value) * r, out)
    out.append((e, r))
    return 0.0


def _shifted(e: E.Expr) -> tuple[E.Expr, float]:
    """An integer expression as a narrower one and what is added to that."""
    if isinstance(e, E.Cast) and e.dtype is i32 and e.x.dtype in (i8, u8):
        return e.x, 0.0
    if isinstance(e, E.Binary) and e.fn == "sub" and e.dtype is i32:
        point = _known(e.b)
        if point is not None:
            x, offset = _shifted(e.a)
            return x, offset - point
    return e, 0.0


def _is_table(e: E.Expr) -> bool:
    """Whether an expression reads constants that are few enough to be made anew."""
    return (
        isinstance(e, E.Load) and e.dtype is f32 and e.guard is None
        and e.value.const is not None and 0 < e.value.const.size <= 1 << 16
    )


def _without_limits(e: E.Expr, least: float, most: float) -> E.Expr:
    """Without the outer limits that saturation at ``least`` and ``most`` sets anyway."""
    while isinstance(e, E.Binary) and e.fn in ("max", "min") and isinstance(e.b, E.Const):
        limit = float(e.b.value)
        if not (limit <= least if e.fn == "max" else limit >= most):
            break
        e = e.a
    return e


def _loads(e: E.Expr, v: Value) -> bool:
    return isinstance(e, E.Load) and e.value is v


def _known(e: E.Expr) -> float | None:
    """The value of an expression that is one known number."""
    if isinstance(e, E.Cast) and e.x.dtype.is_int:
        return _known(e.x)
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

    def finish(self, em: Any, sums: Any, count: int) -> None:
        """See `Epilogue.finish`."""
        b = em.builder
        is_float = V.element(sums.type) == F32
        if self.floats and not is_float:
            sums = b.sitofp(sums, V.like(sums.type, F32))
        elif is_float and not self.floats:
            sums = b.fptosi(V.unary(b, "round", sums), V.like(sums.type, I32))
        super().finish(em, sums, count)

    def own_loads(self) -> list[E.Load]:
        """What the stage reads at its own place."""
        return [
            ld for ld in E.loads(self.stage.expr)
            if ld.value is not self.source and ld.guard is None and ld.value.const is None
            and len(ld.index) == len(self.stage.vars)
            and all(i is v for i, v in zip(ld.index, self.stage.vars, strict=True))
        ]

    def touch_pixel(self, em: Any, x: Any, k: Any, count: int) -> None:
        """Prefetches ``count`` channels of a pixel of what the stage reads at its own place."""
        own, channel = self.own_loads(), self._channel()
        if not own or channel is None:
            return
        b = em.builder
        em.push(b)
        self.bind_pixel(em, x)
        em.bind(channel, k)
        for load in own:
            flat = em.lowerer.lower(load)
            at = em.place(flat.value, flat.at)
            for byte in range(0, count * load.dtype.size, _LINE):
                V.prefetch(b, b.gep(at, [I64(byte)], source_etype=V.I8), level=3)
        em.pop()


    def touch_run(self, em: Any, x: Any, share: Any, count: int, level: int, out: bool) -> None:
        """Prefetches the ``share``-th ``count`` elements, from pixel ``x`` on, of what the stage
        reads at its own place, into a level of caches (see `vecmath.prefetch`).

        Args:
            out: Also of what it writes.
        """
        channel, b = self._channel(), em.builder
        if channel is None:
            return
        em.push(b)
        self.bind_pixel(em, x)
        em.bind(channel, I64(0))
        runs = [(ld.value, em.lowerer.lower(ld).at, False) for ld in self.own_loads()]
        if out:
            index = [em.lowerer.lower(v) for v in self.stage.vars]
            runs.append((self.stage.out, em.lowerer.flat(self.stage.out, index), True))
        for value, flat, write in runs:
            size = count * value.dtype.size
            at = b.gep(em.place(value, flat), [b.mul(share, I64(size))], source_etype=V.I8)
            for byte in range(0, size, _LINE):
                V.prefetch(b, b.gep(at, [I64(byte)], source_etype=V.I8), level, write)
        em.pop()


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

    def bind_pixel(self, em: Any, x: Any) -> None:
        """See `Epilogue.bind_pixel`."""
        if self.flat:
            em.bind(self.rows[-1], x)
            return
        x = x.value(em.builder) if isinstance(x, Shifted) else x
        for v in reversed(self.rows[1:]):
            size = em.dim(v.extent)
            em.bind(v, em.builder.srem(x, size))
            x = em.builder.sdiv(x, size)
        if self.rows:
            em.bind(self.rows[0], x)

    def _channel(self) -> E.Var | None:
        return self.stage.vars[-1] if self.p.w.rank > 1 else None

