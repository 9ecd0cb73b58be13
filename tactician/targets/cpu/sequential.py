"""Kernels for ops whose elements depend on those before them: running sums, scatter, top-k."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

from ...ir import dims as D
from ...ir import dtypes as T
from ...ir import expr as E
from ...ir.dtypes import i64
from ...ir.expr import Expr, Var
from ...ir.graph import Node, Value
from ...regions.region import Region
from ...tactics.kernel import Kernel
from ...tactics.tactic import Tactic, register_tactic
from . import affine as A
from . import arith, convert, nest
from . import vecmath as V
from .loops import KernelFrame
from .reduction import lanes_for, neutral
from .vecmath import I1, I8, I64


@register_tactic
class SequentialTactic(Tactic):
    """Cumulative sums and products, scatter, top-k."""

    name = "sequential"
    target = "cpu"

    def refuse(self, region: Region, device: Any) -> str | None:
        node = region.anchor
        if node is None or node.op not in _OPS:
            return "not a sequential op"
        if region.stages:
            return f"{node.op} has no epilogue"
        for v in (*node.present_inputs(), *node.outputs):
            if not convert.supported(v.dtype):
                return f"element type {v.dtype} is not supported"
        if any(d == 0 for v in node.outputs for d in v.dims):
            return "there is nothing to compute"
        return _OPS[node.op][0](node)

    def candidates(self, region: Region, device: Any) -> Sequence[int]:
        return (2,)

    def build(self, region: Region, candidate: Any, device: Any) -> Kernel:
        assert region.anchor is not None
        kernel = _Kernel(region.anchor, region.outputs, device.isa, int(candidate))
        _OPS[region.anchor.op][1](kernel)
        return kernel.finish()


class _Kernel:
    """What the ops below share: the frame, its work items and scratch memory."""

    def __init__(self, node: Node, outputs: Sequence[Value], isa: Any, unroll: int):
        self.node, self.isa, self.unroll = node, isa, unroll
        self.wanted = set(outputs)
        self.frame = KernelFrame("sequential", A.Lowerer())
        self.em = self.frame.em
        self.work: D.DimLike = 1
        self.scratch: D.DimLike = 0
        for v in outputs:
            self.frame.pointer(v)

    def finish(self) -> Kernel:
        source = self.frame.finish()
        symbol = "sequential_" + hashlib.sha256(source.encode()).hexdigest()[:10]
        return Kernel(
            symbol, source.replace('@"sequential"(', f'@"{symbol}"('), tuple(self.frame.args),
            dims=tuple(self.frame.dims), work=self.work, scratch=self.scratch,
        )  # fmt: skip

    def items(self, over: Sequence[Var], body: Callable[[], None]) -> None:
        """Work items: the points of ``over``."""
        self.work = D.product(v.extent for v in over)
        em, b = self.em, self.em.builder
        begin, end = self.frame.fn.args[2], self.frame.fn.args[3]
        sizes = [em.dim(v.extent) for v in over]
        safe = [b.select(b.icmp_signed("==", n, I64(0)), I64(1), n) for n in sizes]

        def one(i: ir.Value, now: list[ir.Value]) -> list[ir.Value]:
            for v, x in zip(over, now, strict=True):
                em.bind(v, x)
            body()
            return nest.advance(em.builder, now, sizes)

        nest.loop(em, begin, end, 1, nest.counters(b, begin, safe), one)

    def memory(self, dt: T.DType, n: D.DimLike) -> Value:
        """Scratch memory as a vector."""
        v = Value("scratch", dt, (n,))
        where = self.em.dim(self.scratch)
        self.em.bind_pointer(
            v, self.frame.entry.gep(self.frame.fn.args[4], [where], source_etype=I8)
        )
        self.scratch = self.scratch + D.ceil_div(n * dt.size, 64) * 64
        return v

    def put(self, v: Value, index: Sequence[Any], x: ir.Value) -> None:
        low = self.em.lowerer
        self.em.store_at(v, low.flat(v, [low.lower(E.idx(i)) for i in index]), x)

    def get(self, v: Value, index: Sequence[Any]) -> ir.Value:
        """An element as it is now (in a scope of its own, so that nothing is remembered)."""
        self.em.push(self.em.builder)
        self.em.bind_local(v)
        x = self.em.emit(E.load(v, index))
        self.em.pop()
        return x

    def width(self, v: Value, extent: D.DimLike) -> int:
        bits = 32 if v.dtype.bits == 16 else v.dtype.bits
        return lanes_for(extent, self.isa.lanes(bits) * self.unroll)


# --- cumulative ---------------------------------------------------------------------------


def _refuse_cumulative(node: Node) -> str | None:
    axis = None if node.inputs[1] is None else node.inputs[1].known_ints()
    if axis is None or isinstance(axis.flat[0], D.Dim):
        return "the axis is not known"
    return None


def _cumulative(k: _Kernel) -> None:
    """Along the axis one by one; lanes are neighbours in the last dimension, if that is another."""
    x, axes, out, a = k.node.inputs[0], k.node.inputs[1], k.node.outputs[0], k.node.attrs
    assert x is not None and axes is not None
    known = axes.known_ints()
    assert known is not None
    axis = int(known.flat[0]) % x.rank
    work = T.f32 if x.dtype.is_float and x.dtype.bits < 32 else x.dtype
    index = list(E.iter_vars(out.dims))
    lane = index[-1] if axis != x.rank - 1 else None
    em, along = k.em, index[axis]
    element = E.cast(E.load(x, index), work)
    extent = em.dim(along.extent)

    def run(lanes: int, now: list[ir.Value]) -> list[ir.Value]:
        start = convert.literal(neutral(a.fn, work), work, lanes)

        def step(s: ir.Value, total: list[ir.Value]) -> list[ir.Value]:
            b = em.builder
            em.bind(along, b.sub(b.sub(extent, I64(1)), s) if a.reverse else s)
            value = V.splat(b, em.emit(element), lanes)
            after = arith.binary(b, "add" if a.fn == "sum" else "mul", total[0], value, work)
            kept = total[0] if a.exclusive else after
            k.put(out, index, convert.cast(b, kept, work, out.dtype))
            return [after]

        nest.loop(em, I64(0), extent, 1, [start], step)
        return now

    def row() -> None:
        if lane is None:
            run(0, [])
            return
        stop = em.dim(lane.extent)
        width = k.width(out, lane.extent)
        nest.vector_loop(em, lane, I64(0), stop, width, ([], []), run, stop)

    k.items([v for v in index if v is not along and v is not lane], row)


# --- scatter ------------------------------------------------------------------------------

_COMBINE = {"add": "add", "mul": "mul", "min": "min", "max": "max"}


def _refuse_scatter(node: Node) -> str | None:
    x = node.inputs[0]
    assert x is not None
    if not x.rank:
        return "scalars are left to the reference"
    if node.attrs.reduction != "none" and x.dtype in (T.f16, T.bf16):
        return "sums of short floats must be kept in f32"
    if node.attrs.reduction != "none" and x.dtype.kind == "b":
        return "booleans are not combined"
    return None


def _copy(k: _Kernel, x: Value, out: Value) -> None:
    flat = Var(i64, "i", x.numel)
    stop = k.em.dim(flat.extent)
    source, target = (Value(v.name, v.dtype, (v.numel,)) for v in (x, out))
    for v, base in ((source, x), (target, out)):
        k.em.bind_pointer(v, k.frame.pointer(base))

    def body(lanes: int, now: list[ir.Value]) -> list[ir.Value]:
        k.put(target, [flat], k.em.emit(E.load(source, [flat])))
        return now

    nest.vector_loop(k.em, flat, I64(0), stop, k.width(out, x.numel), ([], []), body, stop)


def _update(k: _Kernel, out: Value, index: Sequence[Any], update: Expr) -> None:
    """``out[index]`` takes, or is combined with, an update."""
    x = k.em.emit(update)
    fn = k.node.attrs.reduction
    if fn != "none":
        old = k.get(out, index)
        x = V.splat(k.em.builder, x, V.lanes(old.type))
        x = arith.binary(k.em.builder, _COMBINE[fn], old, x, out.dtype)
    k.put(out, index, x)


def _position(k: _Kernel, at: Expr, size: D.DimLike) -> tuple[ir.Value, ir.Value]:
    """An index with negative ones counted from the end, and whether it is in range."""
    em, b = k.em, k.em.builder
    raw, n = em.emit(E.cast(at, i64)), em.dim(size)
    at_ = b.select(b.icmp_signed("<", raw, I64(0)), b.add(raw, n), raw)
    return at_, b.icmp_unsigned("<", at_, n)


def _scatter_elements(k: _Kernel) -> None:
    """Updates in order, in one work item; those out of range are left out."""
    x, idx, upd = k.node.inputs[:3]
    out, em = k.node.outputs[0], k.em
    assert x is not None and idx is not None and upd is not None
    axis = k.node.attrs.axis % x.rank
    over = E.iter_vars(idx.dims)
    slot = Var(i64, "p", x.dims[axis])

    def everything() -> None:
        _copy(k, x, out)

        def element() -> None:
            p, inside = _position(k, E.load(idx, over), x.dims[axis])

            def write() -> None:
                em.bind(slot, p)
                index = [slot if i == axis else v for i, v in enumerate(over)]
                _update(k, out, index, E.load(upd, over))

            nest.when(em, inside, write)

        _loops(k, list(over), element)

    k.items([], everything)


def _scatter_nd(k: _Kernel) -> None:
    x, idx, upd = k.node.inputs[:3]
    out, em = k.node.outputs[0], k.em
    assert x is not None and idx is not None and upd is not None
    depth = int(idx.dims[-1])
    over = E.iter_vars(idx.dims[:-1])
    tail = E.iter_vars(x.dims[depth:], "t")
    slots = [Var(i64, f"p{i}", x.dims[i]) for i in range(depth)]

    def element() -> None:
        found = [_position(k, E.load(idx, [*over, j]), x.dims[j]) for j in range(depth)]
        inside: ir.Value = I1(1)
        for _, ok in found:
            inside = em.builder.and_(inside, ok)

        def write() -> None:
            for v, (p, _) in zip(slots, found, strict=True):
                em.bind(v, p)
            _loops(k, list(tail[:-1]), slices)

        nest.when(em, inside, write)

    def slices() -> None:
        index, update = [*slots, *tail], E.load(upd, [*over, *tail])
        if not tail:
            _update(k, out, index, update)
            return

        def body(lanes: int, now: list[ir.Value]) -> list[ir.Value]:
            _update(k, out, index, update)
            return now

        last = tail[-1]
        width = k.width(out, last.extent)
        nest.vector_loop(em, last, I64(0), em.dim(last.extent), width, ([], []), body)

    def everything() -> None:
        _copy(k, x, out)
        _loops(k, list(over), element)

    k.items([], everything)


def _refuse_scatter_nd(node: Node) -> str | None:
    idx = node.inputs[1]
    assert idx is not None
    if isinstance(idx.dims[-1], D.Dim) or idx.dims[-1] == 0:
        return "index tuples have no fixed length"
    return _refuse_scatter(node)


def _loops(k: _Kernel, over: list[Var], body: Callable[[], None]) -> None:
    if not over:
        body()
        return

    def one(i: ir.Value, now: list[ir.Value]) -> list[ir.Value]:
        k.em.bind(over[0], i)
        _loops(k, over[1:], body)
        return now

    nest.loop(k.em, I64(0), k.em.dim(over[0].extent), 1, [], one)


# --- top-k --------------------------------------------------------------------------------


def _refuse_topk(node: Node) -> str | None:
    x, out = node.inputs[0], node.outputs[0]
    assert x is not None
    size = out.dims[node.attrs.axis % x.rank]
    if any(s.startswith("%") for s in D.symbols(size)):
        return "k depends on data"
    return None


def _topk(k: _Kernel) -> None:
    """Keeps the best ``k`` of what has been seen in order; most elements fail against the last."""
    x, a = k.node.inputs[0], k.node.attrs
    assert x is not None
    values, places = k.node.outputs
    axis = a.axis % x.rank
    em, work = k.em, T.f32 if x.dtype in (T.f16, T.bf16) else x.dtype
    n, count = x.dims[axis], values.dims[axis]
    best, where = k.memory(work, count), k.memory(i64, count)
    index = list(E.iter_vars(x.dims))
    along, slot = index[axis], Var(i64, "s", count)

    def better(b: ir.IRBuilder, p: ir.Value, q: ir.Value) -> ir.Value:
        """Whether ``p`` comes strictly before ``q``; NaN is the greatest number."""
        if not work.is_float:
            return arith.binary(b, "gt" if a.largest else "lt", p, q, work)
        p_nan, q_nan = (b.fcmp_unordered("uno", v, v) for v in (p, q))
        if a.largest:
            return b.and_(b.fcmp_unordered(">", p, q), b.not_(q_nan))
        return b.and_(b.fcmp_unordered("<", p, q), b.not_(p_nan))

    def insert(i: ir.Value, now: list[ir.Value]) -> list[ir.Value]:
        em.bind(along, i)
        x_now = em.emit(E.cast(E.load(x, index), work))
        b, limit = em.builder, em.dim(count)
        full = b.icmp_signed(">=", i, limit)
        last = b.select(full, b.sub(limit, I64(1)), i)
        em.bind(slot, last)
        wins = b.or_(b.not_(full), better(b, x_now, k.get(best, [slot])))
        nest.when(em, wins, lambda: _shift_in(k, best, where, slot, last, x_now, i, better))
        return now

    def row() -> None:
        some = em.builder.icmp_signed(">", em.dim(count), I64(0))
        stop = em.builder.select(some, em.dim(n), I64(0))
        nest.loop(em, I64(0), stop, 1, [], insert)

        def copy_out(s: ir.Value, now: list[ir.Value]) -> list[ir.Value]:
            em.bind(slot, s)
            at = [slot if v is along else v for v in index]
            if values in k.wanted:
                v = k.get(best, [slot])
                k.put(values, at, convert.cast(em.builder, v, work, values.dtype))
            if places in k.wanted:
                k.put(places, at, k.get(where, [slot]))
            return now

        nest.loop(em, I64(0), em.dim(count), 1, [], copy_out)

    k.items([v for v in index if v is not along], row)


def _shift_in(
    k: _Kernel, best: Value, where: Value, slot: Var, last: ir.Value, x: ir.Value, i: ir.Value,
    better: Callable[[ir.IRBuilder, ir.Value, ir.Value], ir.Value],
) -> None:
    """Moves what ``x`` beats one place down, from ``last`` up, and puts ``x`` in the gap."""
    em = k.em
    fn, b = em.builder.function, em.builder
    head, move, done = (fn.append_basic_block() for _ in range(3))
    start = b.block
    b.branch(head)
    b.position_at_end(head)
    p = b.phi(I64)
    p.add_incoming(last, start)
    above = Var(i64, "u", best.dims[0])
    up = b.sub(p, I64(1))
    any_left = b.icmp_signed(">", p, I64(0))
    em.bind(above, b.select(any_left, up, I64(0)))
    other = k.get(best, [above])
    b.cbranch(b.and_(any_left, better(b, x, other)), move, done)
    b.position_at_end(move)
    em.bind(slot, p)
    k.put(best, [slot], other)
    k.put(where, [slot], k.get(where, [above]))
    p.add_incoming(up, b.block)
    b.branch(head)
    b.position_at_end(done)
    k.em.push(b)
    em.bind(slot, p)
    k.put(best, [slot], x)
    k.put(where, [slot], i)
    k.em.pop()


_OPS: dict[str, tuple[Callable[[Node], str | None], Callable[[_Kernel], None]]] = {
    "cumulative": (_refuse_cumulative, _cumulative),
    "scatter_elements": (_refuse_scatter, _scatter_elements),
    "scatter_nd": (_refuse_scatter_nd, _scatter_nd),
    "topk": (_refuse_topk, _topk),
}
