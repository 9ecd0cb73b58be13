"""Epilogues: a region's stages on the registers that hold a contraction's sums.

A register holds consecutive elements of the result along its innermost dimension (for
convolutions: along all spatial dimensions run together). Operands of the stages are read as
vectors where they lie in the same order, as one broadcast element where they do not change along
the register, and lane by lane otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from llvmlite import ir

from ...ir import dims as D
from ...ir import expr as E
from ...ir.dtypes import DType, i64
from ...ir.graph import Value
from ...regions.region import Region
from . import affine, arith, convert
from . import vecmath as V
from .codegen import Gen, Num

_COSTLY = {"exp", "log", "tanh", "erf", "sigmoid", "pow", "sin", "cos", "atan", "div", "sqrt"}

Coordinates = Callable[[Gen, Num, Num, Num], list[Num]]
"""(batch, m, n) -> one index per dimension of the result."""


@dataclass
class _Point:
    """Where a register stands: its first element, and what was computed there already."""

    batch: Num
    m: Num
    n: Num
    flat: Num
    lanes: int
    values: dict[Value, ir.Value] = field(default_factory=dict)
    done: dict[E.Expr, ir.Value] = field(default_factory=dict)
    coords: list[Num] | None = None


class RegionEpilogue:
    """Emits the stages of a contraction region and stores its outputs.

    Args:
        g: The kernel; created before its arguments are taken.
        region: With an anchor of one output.
        inner: How many of the result's last dimensions a register runs along (1 for matrix
            products, the spatial ones for convolutions).
        sizes: Extents m and n of the contraction.
        coordinates: Turns (batch, m, n) into indices of the result.
        pointers: Address of every value that is read or written.
        prologue: Changes the sum first (adds a convolution's bias, say).
    """

    partial = False

    def __init__(
        self,
        g: Gen,
        region: Region,
        inner: int,
        sizes: tuple[Num, Num],
        coordinates: Coordinates,
        pointers: dict[Value, ir.Value],
        prologue: Callable[[Gen, ir.Value, Num, Num, Num], ir.Value] | None = None,
    ):
        assert region.anchor is not None
        self.region = region
        self.result = region.anchor.outputs[0]
        self.inner = inner
        self.m, self.n = sizes
        self.coordinates = coordinates
        self.pointers = pointers
        self.prologue = prologue
        self.cost = 2 + sum(cost(s.expr) for s in region.stages)
        self._lane_vars: set[E.Var] = set()

    def finish(
        self, g: Gen, acc: ir.Value, batch: Num, m: Num, n: Num, count: int = 0
    ) -> None:
        """See `contraction.Epilogue`."""
        assert not count
        flat = g.add(g.mul(g.add(g.mul(batch, self.m), m), self.n), n)
        p = _Point(batch, m, n, flat, V.lanes(acc.type))
        if self.prologue is not None:
            acc = self.prologue(g, acc, batch, m, n)
        p.values[self.result] = acc
        for stage in self.region.stages:
            self._lane_vars = set(stage.vars[len(stage.vars) - self.inner :])
            p.done.clear()
            p.values[stage.out] = self._whole(g, p, stage, stage.expr)
        for v in self.region.outputs:
            x = V.splat(g.b, p.values[v], p.lanes)
            at = g.at(self.pointers[v], p.flat, v.dtype.size)
            g.store(convert.to_memory(g.b, x, v.dtype), at, v.dtype.size)

    def touch(self, g: Gen, batch: Num, m: Num, n: Num) -> None:
        """See `contraction.Epilogue`."""
        flat = g.add(g.mul(g.add(g.mul(batch, self.m), m), self.n), n)
        for v in self.region.outputs:
            V.prefetch(g.b, g.at(self.pointers[v], flat, v.dtype.size), level=3, write=True)
        made = {self.result, *(s.out for s in self.region.stages)}
        own = {
            ld.value: None for s in self.region.stages for ld in E.loads(s.expr)
            if _own(ld, s) and ld.value.shape == s.out.shape and ld.value not in made
        }
        for v in own:
            V.prefetch(g.b, g.at(self.pointers[v], flat, v.dtype.size), level=3)

    def _whole(self, g: Gen, p: _Point, stage: E.Stage, e: E.Expr) -> ir.Value:
        return V.splat(g.b, self._value(g, p, stage, e), p.lanes)

    def _value(self, g: Gen, p: _Point, stage: E.Stage, e: E.Expr) -> ir.Value:
        """The expression in all lanes, or as one scalar if it is the same in all."""
        if e not in p.done:
            p.done[e] = self._compute(g, p, stage, e)
        return p.done[e]

    def _compute(self, g: Gen, p: _Point, stage: E.Stage, e: E.Expr) -> ir.Value:
        if isinstance(e, E.Const):
            return convert.literal(e.value, e.dtype)
        if isinstance(e, E.Load):
            return self._load(g, p, stage, e)
        if isinstance(e, (E.Var, E.Size)):
            return self._index_vector(g, p, stage, e)
        if isinstance(e, E.Cast):
            x = self._value(g, p, stage, e.x)
            return convert.cast(g.b, x, e.x.dtype, e.dtype, e.saturate)
        if isinstance(e, E.Unary):
            return arith.unary(g.b, e.fn, self._value(g, p, stage, e.x), e.x.dtype)
        if isinstance(e, E.Binary):
            x, y = self._together(g, *(self._value(g, p, stage, c) for c in (e.a, e.b)))
            return arith.binary(g.b, e.fn, x, y, e.a.dtype)
        if isinstance(e, E.Select):
            parts = (self._value(g, p, stage, c) for c in (e.cond, e.a, e.b))
            return g.b.select(*self._together(g, *parts))
        raise NotImplementedError(type(e).__name__)

    @staticmethod
    def _together(g: Gen, *values: ir.Value) -> list[ir.Value]:
        lanes = max(V.lanes(x.type) for x in values)
        return [V.splat(g.b, x, lanes) for x in values]

    # --- operands ------------------------------------------------------------------------

    def _load(self, g: Gen, p: _Point, stage: E.Stage, e: E.Load) -> ir.Value:
        own = e.guard is None and all(
            i is v for i, v in zip(e.index, stage.vars, strict=False)
        ) and e.value.shape == stage.out.shape  # fmt: skip
        if e.value in p.values:
            if not own:
                raise NotImplementedError("an epilogue that reads its result elsewhere")
            return p.values[e.value]
        if own:
            return self._read(g, e.value, p.flat, p.lanes)
        if e.guard is not None:
            return self._per_lane(g, p, stage, e)
        moving = [i for i, x in enumerate(e.index) if self._moves(x)]
        if not moving:
            return self._read(g, e.value, self._flat(g, p, stage, e), 0)
        if self._in_step(stage, e, moving):
            return self._read(g, e.value, self._flat(g, p, stage, e), p.lanes)
        return self._per_lane(g, p, stage, e)

    def _in_step(self, stage: E.Stage, e: E.Load, moving: list[int]) -> bool:
        """Whether consecutive lanes read consecutive elements."""
        k = self.inner
        if moving[0] < len(e.index) - k:
            return False
        tail = e.index[-k:]
        same = all(a is b for a, b in zip(tail, stage.vars[-k:], strict=True))
        return same and (k == 1 or e.value.dims[-k:] == stage.out.dims[-k:])

    def _moves(self, e: E.Expr) -> bool:
        return any(x in self._lane_vars for x in E.walk(e))

    def _flat(self, g: Gen, p: _Point, stage: E.Stage, e: E.Load) -> Num:
        strides = affine.contiguous(e.value.dims)
        return g.linear(
            [
                (self._index(g, p, stage, i), g.size(s))
                for i, s in zip(e.index, strides, strict=True)
            ]
        )

    def _read(self, g: Gen, v: Value, at: Num, lanes: int) -> ir.Value:
        ptr = g.at(self.pointers[v], at, v.dtype.size)
        x = g.load(convert.memory_type(v.dtype, lanes), ptr, v.dtype.size)
        return convert.from_memory(g.b, x, v.dtype)

    def _per_lane(self, g: Gen, p: _Point, stage: E.Stage, e: E.Load) -> ir.Value:
        out: ir.Value | None = None
        for lane in range(max(1, p.lanes)):
            here = _Point(p.batch, p.m, g.add(p.n, lane), g.add(p.flat, lane), 0)
            at = self._flat(g, here, stage, e)
            if e.guard is None:
                x = self._read(g, e.value, at, 0)
            else:
                inside = self._value(g, here, stage, e.guard)
                safe = g.b.select(inside, g.value(at), V.I64(0))
                x = self._read(g, e.value, safe, 0)
                assert e.other is not None
                x = g.b.select(inside, x, self._value(g, here, stage, e.other))
            if not p.lanes:
                return x
            if out is None:
                out = V.undefined(V.with_lanes(x.type, p.lanes))
            out = g.b.insert_element(out, x, V.I32(lane))
        assert out is not None
        return out

    # --- indices -------------------------------------------------------------------------

    def _index(self, g: Gen, p: _Point, stage: E.Stage, e: E.Expr) -> Num:
        """An index expression at the register's first element."""
        if isinstance(e, E.Const):
            return int(e.value)
        if isinstance(e, E.Size):
            return g.size(e.dim)
        if isinstance(e, E.Var):
            if p.coords is None:
                p.coords = self.coordinates(g, p.batch, p.m, p.n)
            return p.coords[stage.vars.index(e)]
        if isinstance(e, E.Binary):
            x, y = self._index(g, p, stage, e.a), self._index(g, p, stage, e.b)
            simple = {"add": g.add, "sub": g.sub, "mul": g.mul}.get(e.fn)
            if simple is not None:
                return simple(x, y)
            return arith.binary(g.b, e.fn, g.value(x), g.value(y), i64)
        first = _Point(p.batch, p.m, p.n, p.flat, 0, coords=p.coords)
        return self._value(g, first, stage, e)

    def _index_vector(self, g: Gen, p: _Point, stage: E.Stage, e: E.Expr) -> ir.Value:
        if not p.lanes or not self._moves(e):
            return g.value(self._index(g, p, stage, e))
        out: ir.Value = V.undefined(ir.VectorType(V.I64, p.lanes))
        for lane in range(p.lanes):
            here = _Point(p.batch, p.m, g.add(p.n, lane), g.add(p.flat, lane), 0)
            x = g.value(self._index(g, here, stage, e))
            out = g.b.insert_element(out, x, V.I32(lane))
        return out


def cost(e: E.Expr) -> int:
    """Roughly how many instructions an expression takes."""
    total = 0
    for x in E.walk(e):
        fn = getattr(x, "fn", "")
        total += 25 if fn in _COSTLY else 1
    return total


def refuse(region: Region) -> str | None:
    """Why the region's stages can't be an epilogue, or None."""
    anchor = region.anchor
    if anchor is None or len(anchor.outputs) != 1:
        return "the anchor has several outputs"
    result = anchor.outputs[0]
    made = {result} | {s.out for s in region.stages}
    for s in region.stages:
        if s.out.shape != result.shape:
            return f"a stage computes {s.out}, not the shape of the contraction's result"
        for e in E.walk(s.expr):
            if isinstance(e, E.Reduce):
                return "a stage reduces"
            if not convert.supported(e.dtype):
                return f"element type {e.dtype} is not supported"
            if isinstance(e, E.Load) and not convert.supported(e.value.dtype):
                return f"element type {e.value.dtype} is not supported"
            if isinstance(e, E.Load) and e.value in made and not _own(e, s):
                return "a stage reads the contraction's result at another index"
    return None


def _own(e: E.Load, s: E.Stage) -> bool:
    return e.guard is None and all(i is v for i, v in zip(e.index, s.vars, strict=True))


def stage_inputs(region: Region) -> list[Value]:
    """Values that the region's stages read from memory."""
    made: set[Value] = {s.out for s in region.stages}
    if region.anchor is not None:
        made |= set(region.anchor.outputs)
    found = {ld.value: None for s in region.stages for ld in E.loads(s.expr)}
    return [v for v in found if v not in made]


def unravel(g: Gen, flat: Num, dims: Sequence[D.DimLike]) -> list[Num]:
    """Row-major indices of a flat index; the first takes what is left."""
    out: list[Num] = []
    for d in reversed(dims[1:]):
        size = g.size(d)
        out.append(g.mod(flat, size))
        flat = g.div(flat, size)
    out.append(flat)
    return out[::-1] if dims else []


def supported_float(dtype: DType) -> bool:
    """Whether contractions take this element type."""
    return dtype.name in ("f32", "f64", "f16", "bf16")
