"""The tactic for regions without an anchor: pointwise chains, index maps, reductions.

`loopnest` plans the loops, `lanes` picks what is vectorized, `Emitter` writes the expressions;
here they become a kernel with work items that threads can share.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from ...ir import dims as D
from ...ir import dtypes as T
from ...ir import expr as E
from ...ir.expr import Var
from ...ir.graph import Value
from ...regions.region import Region
from ...tactics.kernel import Kernel
from ...tactics.tactic import Tactic, register_tactic
from . import affine as A
from . import convert, lanes, loopnest, nest
from . import vecmath as V
from .emitter import Emitter
from .printer import text_of
from .reduction import lanes_for
from .vecmath import I64, PTR

_CHUNK = 2048  # elements of a long vectorized loop that make a work item
_TILE = 16  # rows that are done together where lanes read across them
_MANY = 64  # work items that are enough for any number of threads
_GRAIN = 65536  # operations worth a thread: some 10 µs
_MAX_NODES = 4000  # larger expressions would compile for too long


@dataclass(frozen=True)
class LoopCandidate:
    """One way to write the loops: how many hardware vectors a step of the vector loop holds."""

    unroll: int = 2

    def __str__(self) -> str:
        return f"x{self.unroll}"


@register_tactic
class LoopTactic(Tactic):
    """Loop nests over expressions of the compute language."""

    name = "loops"
    target = "cpu"

    def refuse(self, region: Region, device: Any) -> str | None:
        if region.anchor is not None:
            return f"{region.anchor.op} is not a loop nest"
        if not region.stages:
            return "there is nothing to compute"
        return refusal(region.stages, device.isa.f16c)

    def candidates(self, region: Region, device: Any) -> Sequence[LoopCandidate]:
        return [LoopCandidate(n) for n in _unrolls(region.stages)]

    def build(self, region: Region, candidate: Any, device: Any) -> Kernel:
        return build_loops(region.stages, region.outputs, device.isa, candidate)


def _unrolls(stages: Sequence[E.Stage]) -> tuple[int, ...]:
    """Unrolling worth trying, best guess first: wide for reductions, which need independent
    accumulators; narrow where lanes are loaded under guards; plain copies don't care."""
    nodes = [x for s in stages for x in E.walk(s.expr)]
    if any(isinstance(x, E.Load) and x.guard is not None for x in nodes):
        return (1, 2)
    if any(isinstance(x, E.Reduce) for x in nodes):
        return (4, 2)
    return (2,)


def refusal(stages: Sequence[E.Stage], f16c: bool = True) -> str | None:
    """Why stages can't be loops on a CPU (with f16 conversions in hardware or not), or None."""
    size = 0
    for s in stages:
        nodes = E.walk(s.expr)
        size += len(nodes)
        for x in nodes:
            if x.dtype is T.f16 and not f16c:
                return "this CPU does not convert f16"
            if not convert.supported(x.dtype):
                return f"element type {x.dtype} is not supported in loops"
        if not convert.supported(s.out.dtype):
            return f"element type {s.out.dtype} is not supported in loops"
    return f"{size} expression nodes are too many" if size > _MAX_NODES else None


def build_loops(
    stages: Sequence[E.Stage], outputs: Sequence[Value], isa: Any, candidate: LoopCandidate
) -> Kernel:
    """The kernel that computes ``outputs``."""
    outputs = [v for v in outputs if all(d != 0 for d in v.dims)]
    if not outputs:
        return _nothing()
    planned = loopnest.plan(stages, outputs)
    frame = KernelFrame("loops", planned[0].lowerer)
    frame.module.isa = isa  # conversions of types ask it
    for v in outputs:
        frame.pointer(v)
    parts = [_Builder(p, frame, isa, candidate) for p in planned]
    work: D.DimLike = 0
    for part in parts:
        part.emit(work, alone=len(parts) == 1)
        work = work + part.work
    source = frame.finish()
    symbol = "loops_" + hashlib.sha256(source.encode()).hexdigest()[:10]
    cost = max(part.item_cost() for part in parts)
    return Kernel(
        symbol=symbol,
        source=source.replace('@"loops"(', f'@"{symbol}"('),
        args=tuple(frame.args),
        dims=tuple(frame.dims),
        work=work,
        grain=max(1, int(_GRAIN / max(cost, 1.0))),
        scratch=D.dim_max(*(part.scratch for part in parts)),
        notes={"lanes": [p.width for p in parts], "lane": [str(p) for p in parts]},
    )


def _nothing() -> Kernel:
    """For outputs without elements."""
    frame = KernelFrame("loops_nothing", A.Lowerer())
    return Kernel("loops_nothing", frame.finish(), (), work=0)


def element_bits(planned: loopnest.LoopNest) -> int:
    """Bits of the widest element that is moved in bulk; decides the number of lanes."""
    bits = 8
    for s in planned.steps:
        bits = max(bits, 32 if s.out.dtype.bits == 16 else s.out.dtype.bits)
        for x in A.walk([s.expr]):
            if isinstance(x, A.FlatLoad) and x.at.terms:
                bits = max(bits, 32 if x.dtype.bits == 16 else x.dtype.bits)
            elif x.dtype.is_float:
                bits = max(bits, 32)
    return bits


class KernelFrame:
    """A kernel function under construction: its blocks, pointer and size arguments.

    Attributes:
        args: Values in the order of the pointer arguments.
        dims: Sizes in the order of the scalar arguments.
    """

    def __init__(self, name: str, lowerer: A.Lowerer):
        self.module = ir.Module(name)
        t = ir.FunctionType(ir.VoidType(), [PTR, PTR, I64, I64, PTR])
        self.fn = ir.Function(self.module, t, name)
        top = ir.IRBuilder(self.fn.append_basic_block("entry"))  # holds stack slots
        self.entry = ir.IRBuilder(self.fn.append_basic_block("args"))
        top.branch(self.entry.block)
        self._start = self.fn.append_basic_block("start")
        self.args: dict[Value, ir.Value] = {}
        self.dims: dict[D.Dim, ir.Value] = {}
        self.em = Emitter(self.entry, pointer=self.pointer, size=self.size, lowerer=lowerer)
        self.em.scopes[0].open = False
        self.em.push(ir.IRBuilder(self._start))

    def pointer(self, v: Value) -> ir.Value:
        if v not in self.args:
            slot = self.entry.gep(self.fn.args[0], [I64(len(self.args))], source_etype=PTR)
            self.args[v] = self.entry.load(slot, typ=PTR)
        return self.args[v]

    def size(self, d: D.Dim) -> ir.Value:
        if d not in self.dims:
            slot = self.entry.gep(self.fn.args[1], [I64(len(self.dims))], source_etype=I64)
            self.dims[d] = self.entry.load(slot, typ=I64)
        return self.dims[d]

    def finish(self) -> str:
        self.em.builder.ret_void()
        self.entry.branch(self._start)
        return text_of(self.module)


class _Builder:
    """Emits one loop nest of a kernel.

    Attributes:
        work: Its number of work items.
        scratch: Bytes of scratch memory it needs.
    """

    def __init__(
        self, planned: loopnest.LoopNest, frame: KernelFrame, isa: Any, candidate: LoopCandidate
    ):
        self.plan = planned
        self.width = isa.lanes(element_bits(planned)) * candidate.unroll
        self.frame = frame
        self.em = frame.em
        self.lane = lanes.choose_row_lane(planned, self.width)
        if self.lane is not None:
            self.width = lanes_for(self.lane.extent, self.width)
        self.tiled = lanes.tile_var(planned, self.lane)
        self.chunk: int | None = None
        self.scratch: D.DimLike = 0
        self.outer = [v for v in self.plan.rows if v is not self.lane and v is not self.tiled]
        self.extents: list[D.DimLike] = [v.extent for v in self.outer]
        if self.tiled is not None:
            self.extents.append(D.ceil_div(self.tiled.extent, _TILE))
        self.work = D.product(self.extents)
        if self.lane is not None and self._chunked(self.work):
            pieces = D.ceil_div(self.lane.extent, self.chunk or 1)
            self.extents.append(pieces)
            self.work = self.work * pieces

    def __str__(self) -> str:
        return self.lane.name if self.lane else "own"

    def emit(self, base: D.DimLike, alone: bool) -> None:
        """Emits the loops. The nest's work items follow ``base`` items of others."""
        self.em.lowerer = self.plan.lowerer
        self.em.vector_lanes = self.width if self.lane is None else 1
        self._place_scratch()
        begin, end = self.frame.fn.args[2], self.frame.fn.args[3]
        if not alone:
            begin, end = self._own_items(begin, end, base)
        self._items(begin, end)

    def _own_items(
        self, begin: ir.Value, end: ir.Value, base: D.DimLike
    ) -> tuple[ir.Value, ir.Value]:
        b, first = self.em.builder, self.em.dim(base)
        begin, end = b.sub(begin, first), b.sub(end, first)
        count = self.em.dim(self.work)
        begin = b.select(b.icmp_signed("<", begin, I64(0)), I64(0), begin)
        return begin, b.select(b.icmp_signed(">", end, count), count, end)

    def item_cost(self) -> float:
        """Operations of one work item, roughly."""
        per_row = sum(
            len(A.walk([s.expr])) * lanes.trips(s.inner) * lanes.trips(_reduce_vars(s))
            for s in self.plan.steps
        )
        along = 1 if self.lane is None else lanes.extent(self.lane)
        return per_row * (min(along, self.chunk) if self.chunk else along) * (
            _TILE if self.tiled is not None else 1
        )

    def _chunked(self, outer: D.DimLike) -> bool:
        """Whether to cut the lane loop into work items."""
        assert self.lane is not None
        n = self.lane.extent
        per_element = sum(lanes.trips(_reduce_vars(s)) for s in self.plan.steps)
        chunk = max(self.width, int(_CHUNK / max(per_element, 1.0)))
        chunk = -(-chunk // self.width) * self.width
        many = not isinstance(outer, D.Dim) and outer >= _MANY
        if many or (not isinstance(n, D.Dim) and n <= chunk):
            return False
        self.chunk = chunk
        return True

    # --- scratch -------------------------------------------------------------------------

    def _place_scratch(self) -> None:
        packed = self.width if self.lane is not None else 1
        for v, elements in self.plan.scratch.items():
            at = self.frame.entry.gep(
                self.frame.fn.args[4], [self.em.dim(self.scratch)], source_etype=V.I8
            )
            self.em.bind_pointer(v, at)
            size = elements * (v.dtype.size * packed)
            self.scratch = self.scratch + D.ceil_div(size, 64) * 64

    # --- loops ---------------------------------------------------------------------------

    def _items(self, begin: ir.Value, end: ir.Value) -> None:
        em = self.em
        sizes = [em.dim(d) for d in self.extents]
        if not sizes:
            nest.loop(em, begin, end, 1, [], lambda i, now: self._row_block([]))
            return
        first = _first_indices(em, begin, sizes)

        def body(i: ir.Value, now: list[ir.Value]) -> list[ir.Value]:
            for v, x in zip(self.outer, now, strict=False):
                em.bind(v, x)
            self._row_block(now)
            return nest.advance(em.builder, now, sizes)

        nest.loop(em, begin, end, 1, first, body)

    def _row_block(self, now: list[ir.Value]) -> list[ir.Value]:
        em = self.em
        if self.lane is None:
            self._row()
            return []
        start: ir.Value = I64(0)
        stop = em.dim(self.lane.extent)
        if self.chunk:
            start = em.builder.mul(now[-1], I64(self.chunk))
            past = em.builder.add(start, I64(self.chunk))
            over = em.builder.icmp_signed("<", stop, past)
            stop = em.builder.select(over, stop, past)

        def body(width: int, carried: list[ir.Value]) -> list[ir.Value]:
            em.row_width = width
            self._tile(now)
            em.row_width = 0
            return []

        extent = em.dim(self.lane.extent)
        nest.vector_loop(em, self.lane, start, stop, self.width, ([], []), body, extent)
        return []

    def _tile(self, now: list[ir.Value]) -> None:
        """The rows of a tile: neighbours in the memory that lanes read from far apart."""
        tile, em = self.tiled, self.em
        if tile is None:
            self._row()
            return
        start = em.builder.mul(now[len(self.outer)], I64(_TILE))
        past = em.builder.add(start, I64(_TILE))
        stop = em.dim(tile.extent)
        over = em.builder.icmp_signed("<", stop, past)
        stop = em.builder.select(over, stop, past)

        def body(i: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
            em.bind(tile, i)
            self._row()
            return carried

        nest.loop(em, start, stop, 1, [], body)

    def _row(self) -> None:
        """All steps for one row, or one vector of rows."""
        for s in self.plan.steps:
            for x in A.walk([s.expr]):
                if isinstance(x, A.Keep) and isinstance(x.slot, A.FlatLoad):
                    packed = self.width if self.lane is not None else 0
                    self.em.bind_local(x.slot.value, packed)
            if s.inner:
                packed = self.width if self.lane is not None else 0
                in_scratch = s.out in self.plan.scratch
                self.em.bind_local(s.out, packed if in_scratch else 0)
                lane = lanes.inner_lane(s) if self.lane is None else None
                order = [v for v in s.inner if v is not lane] + ([lane] if lane else [])
                self._inner(s, order, lane)
                continue
            x = self.em._emit(s.expr)
            if s.at is not None:
                self.em.store_at(s.out, s.at, x)
            self.em.bind_result(s.out, x)

    def _inner(self, s: loopnest.Step, order: list[Var], lane: Var | None) -> None:
        em = self.em
        if not order:
            assert s.at is not None
            em.store_at(s.out, s.at, em._emit(s.expr))
            return
        var, rest = order[0], order[1:]
        if var is lane:
            def element(width: int, now: list[ir.Value]) -> list[ir.Value]:
                self._inner(s, rest, lane)
                return now

            width = lanes_for(var.extent, self.width)
            stop = em.dim(var.extent)
            nest.vector_loop(em, var, I64(0), stop, width, ([], []), element, stop)
            return

        def body(i: ir.Value, now: list[ir.Value]) -> list[ir.Value]:
            em.bind(var, i)
            self._inner(s, rest, lane)
            return now

        nest.loop(em, I64(0), em.dim(var.extent), 1, [], body)


def _reduce_vars(s: loopnest.Step) -> set[Var]:
    return {v for x in A.walk([s.expr]) if isinstance(x, E.Reduce) for v in x.vars}


def _first_indices(
    em: Emitter, begin: ir.Value, sizes: list[ir.Value]
) -> list[ir.Value]:
    """Indices of the first item. Sizes may be 0 when there is nothing to do, so divisors that
    are 0 count as 1."""
    b = em.builder
    safe = [
        n if nest.known(n) else b.select(b.icmp_signed("==", n, I64(0)), I64(1), n) for n in sizes
    ]
    return nest.counters(b, begin, safe)


__all__ = ["KernelFrame", "LoopCandidate", "LoopTactic", "build_loops", "refusal"]
