"""Kernels whose result has as many elements as the data says: non-zero, compress, NMS.

The kernel writes its results, packed, to memory for the most there can be and says how many there
are (`Kernel.found`, `Kernel.finds`); the step after it tells the schedule (`Step.kind` ``learn``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llvmlite import ir

from ...ir import dims as D
from ...ir.dtypes import DType, f32, i64
from ...ir.graph import Node, Value
from ...ops._shapes import is_data_dependent
from ...regions.region import Region
from ...tactics.kernel import Kernel
from ...tactics.tactic import Tactic, register_tactic
from . import convert
from . import vecmath as V
from .codegen import Gen, Num
from .vecmath import F32, I1, I32, I64


@register_tactic
class SearchTactic(Tactic):
    """Non-zero, compress and non-maximum suppression."""

    name = "search"
    target = "cpu"

    def refuse(self, region: Region, device: Any) -> str | None:
        node = region.anchor
        if node is None or node.op not in _OPS:
            return "not a search"
        if region.stages:
            return f"{node.op} has no epilogue"
        if any(d == 0 for v in node.present_inputs() for d in v.dims):
            return "there is nothing to look at"
        for upper in node.meta.get("data_dims", {}).values():
            if upper is None or any(s.startswith("%") for s in D.symbols(upper)):
                return "how much there can be depends on data, too"
        return _OPS[node.op][0](node)

    def candidates(self, region: Region, device: Any) -> Sequence[str]:
        return ("",)

    def build(self, region: Region, candidate: Any, device: Any) -> Kernel:
        assert region.anchor is not None
        code = Code(region.anchor, device.isa)
        _OPS[region.anchor.op][1](code)
        return code.kernel()


class Variable:
    """A place on the stack that LLVM makes a register of."""

    def __init__(self, g: Gen, t: ir.Type, start: ir.Value):
        self.g, self.t, self.at = g, t, g.variable(t)
        self.set(start)

    def get(self) -> ir.Value:
        return self.g.b.load(self.at, typ=self.t)

    def set(self, x: ir.Value) -> None:
        self.g.b.store(x, self.at)

    def add(self, n: int) -> None:
        self.set(self.g.b.add(self.get(), ir.Constant(self.t, n)))


class Code:
    """What the ops below share: memory for results and their number, loops, branches."""

    def __init__(self, node: Node, isa: Any):
        self.node, self.isa = node, isa
        self.g = Gen("search", isa)
        self.values: list[Value] = []
        self.pointers: dict[Value, ir.Value] = {}
        self.found: dict[Value, Value] = {}
        self.counts: Value | None = None
        self.scratch: D.DimLike = 0

    def kernel(self) -> Kernel:
        source = self.g.finish()
        sizes = tuple(D.sym(name) for name in self.node.meta.get("data_dims", ()))
        symbol = "search_" + hashlib.sha256(source.encode()).hexdigest()[:10]
        return Kernel(
            symbol, source.replace('@"search"(', f'@"{symbol}"('), tuple(self.values),
            tuple(self.g.dims), scratch=self.scratch, found=self.found,
            finds=(self.counts, sizes) if self.counts is not None else None,
        )  # fmt: skip

    def pointer(self, v: Value) -> ir.Value:
        if v not in self.pointers:
            self.pointers[v] = self.g.arg(len(self.values))
            self.values.append(v)
        return self.pointers[v]

    def result(self) -> ir.Value:
        """Where the elements of the (only) result go."""
        out = self.node.outputs[0]
        if not is_data_dependent(self.node):
            return self.pointer(out)
        bounds = self.node.meta["data_dims"]
        most = [D.substitute(d, bounds) if isinstance(d, D.Dim) else d for d in out.dims]
        self.found[out] = Value(f"{out.name}.found", out.dtype, tuple(most))
        return self.pointer(self.found[out])

    def tell(self, count: ir.Value) -> None:
        """Says how many there are."""
        if self.found:
            self.counts = Value(f"{self.node.outputs[0].name}.count", i64, (1,))
            self.g.store(count, self.pointer(self.counts))

    def variable(self, t: ir.Type, start: Any = 0) -> Variable:
        start = start if isinstance(start, ir.Value) else ir.Constant(t, start)
        return Variable(self.g, t, start)

    def memory(self, n: D.DimLike, size: int) -> ir.Value:
        """Scratch memory for elements of ``size`` bytes, 64 bytes more than that."""
        at = self.g.at(self.g.scratch, self.g.size(self.scratch))
        self.scratch = self.scratch + D.ceil_div(n * size, 64) * 64 + 64
        return at

    @contextmanager
    def turns(self, going: Callable[[], ir.Value]) -> Iterator[None]:
        """``while going():``"""
        b = self.g.b
        head, body, after = (b.append_basic_block(n) for n in ("head", "body", "after"))
        b.branch(head)
        b.position_at_end(head)
        b.cbranch(going(), body, after)
        b.position_at_end(body)
        yield
        b.branch(head)
        b.position_at_end(after)

    def chunks(self, n: Num, lanes: int, body: Callable[[Num, int], None]) -> None:
        """``body(first, lanes)`` for whole vectors of ``n`` elements, then ``body(one, 1)``."""
        g = self.g
        whole = g.sub(n, g.mod(n, lanes))
        if g.test(">", whole, 0) is not False:
            with g.loop(0, whole, lanes) as i:
                body(i.index, lanes)
        if g.test("<", whole, n) is not False:
            with g.loop(whole, n) as i:
                body(i.index, 1)

    def each_set(self, mask: ir.Value, first: Num, body: Callable[[ir.Value], None]) -> None:
        """``body(first + k)`` for every bit k of a mask (at most 64 bits) that is set."""
        g, b = self.g, self.g.b
        left = self.variable(I64, mask if mask.type == I64 else b.zext(mask, I64))
        with self.turns(lambda: b.icmp_unsigned("!=", left.get(), I64(0))):
            bits = left.get()
            name = "llvm.cttz.i64"
            place = b.call(V.declare(b.module, name, I64, [I64, I1]), [bits, I1(1)])
            left.set(b.and_(bits, b.sub(bits, I64(1))))
            body(g.value(g.add(first, place)))

    def not_zero(self, at: ir.Value, dt: DType, lanes: int) -> ir.Value:
        """A bit per element: whether it is not 0 (-0.0 is, NaN is not)."""
        g = self.g
        t = V.with_lanes(ir.IntType(8 * dt.size), lanes if lanes > 1 else 0)
        x = g.load(t, at, dt.size)
        if dt.is_float:
            x = g.b.and_(x, V.const(t, (1 << (dt.bits - 1)) - 1))
        on = g.b.icmp_unsigned("!=", x, V.const(t, 0))
        return g.b.bitcast(on, ir.IntType(lanes)) if lanes > 1 else on

    def count(self, v: Value, n: Num) -> ir.Value:
        """How many of the first ``n`` elements are not 0."""
        g, b, base = self.g, self.g.b, self.pointer(v)
        total = self.variable(I64)

        def add(i: Num, lanes: int) -> None:
            bits = self.not_zero(g.at(base, i, v.dtype.size), v.dtype, lanes)
            if lanes > 1:
                bits = V.intrinsic(b, "ctpop", bits)
            wide = bits if bits.type == I64 else b.zext(bits, I64)
            total.set(b.add(total.get(), wide))

        self.chunks(n, self.lanes(v.dtype), add)
        return total.get()

    def lanes(self, dt: DType) -> int:
        return int(min(64, max(8, self.isa.vector_bits // 8 // dt.size)))


# --- non-zero -----------------------------------------------------------------------------


def _refuse_non_zero(node: Node) -> str | None:
    x = node.inputs[0]
    assert x is not None
    if not x.rank:
        return "scalars are left to the reference"
    return None if convert.supported(x.dtype) else f"element type {x.dtype} is not supported"


def _non_zero(k: Code) -> None:
    """Counts first, because each row of the result begins where the one before it ends."""
    x = k.node.inputs[0]
    assert x is not None
    g, base, out = k.g, k.pointer(x), k.result()
    n = g.size(x.numel)
    total = k.count(x, n)
    k.tell(total)
    place = k.variable(I64)

    def write(flat: ir.Value) -> None:
        rest: Num = flat
        for axis in reversed(range(x.rank)):
            size = g.size(x.dims[axis])
            index = g.mod(rest, size) if axis else rest
            rest = g.div(rest, size) if axis else rest
            at = g.at(out, g.add(g.mul(total, axis), place.get()), 8)
            g.store(g.value(index), at)
        place.add(1)

    def look(i: Num, lanes: int) -> None:
        bits = k.not_zero(g.at(base, i, x.dtype.size), x.dtype, lanes)
        k.each_set(bits, i, write)

    k.chunks(n, k.lanes(x.dtype), look)


# --- compress -----------------------------------------------------------------------------


def _refuse_compress(node: Node) -> str | None:
    x, cond = node.inputs[:2]
    assert x is not None and cond is not None
    length = x.numel if node.attrs.axis is None else x.dims[node.attrs.axis % x.rank]
    if not D.is_static(length, cond.dims[0]) or int(cond.dims[0]) > int(length):  # type: ignore
        return "whether the condition is longer than what it selects is known only at run time"
    return None


def _compress(k: Code) -> None:
    x, cond = k.node.inputs[:2]
    assert x is not None and cond is not None
    g, source, out, axis = k.g, k.pointer(x), k.result(), k.node.attrs.axis
    total = k.count(cond, g.size(cond.dims[0]))
    k.tell(total)
    outer, length, inner = D.product(()), x.numel, D.product(())
    if axis is not None:
        axis %= x.rank
        outer, inner = D.product(x.dims[:axis]), D.product(x.dims[axis + 1 :])
        length = x.dims[axis]
    row = g.mul(g.size(inner), x.dtype.size)
    place = k.variable(I64)
    name = "llvm.memcpy.p0.p0.i64"
    copy = V.declare(g.b.module, name, ir.VoidType(), [V.PTR, V.PTR, I64, I1])
    with g.loop(0, g.size(outer)) as o:
        first = g.mul(o.index, g.size(length))

        def write(j: ir.Value) -> None:
            there = g.at(source, g.mul(g.add(first, j), row))
            here = g.at(out, g.mul(place.get(), row))
            g.b.call(copy, [here, there, g.value(row), I1(0)])
            place.add(1)

        def look(i: Num, lanes: int) -> None:
            at = g.at(k.pointer(cond), i)
            k.each_set(k.not_zero(at, cond.dtype, lanes), i, write)

        k.chunks(g.size(cond.dims[0]), k.lanes(cond.dtype), look)


# --- heaps --------------------------------------------------------------------------------


def float_key(b: ir.IRBuilder, x: ir.Value, largest: bool, nan_first: bool = False) -> ir.Value:
    """A float as an unsigned integer, less for what comes first: the largest or the smallest.
    Both zeros are equal; NaN comes last, or first."""
    bits = b.bitcast(b.fadd(x, V.const(F32, 0.0)), I32)  # -0.0 becomes 0.0
    negative = b.icmp_signed("<", bits, I32(0))
    up = b.select(negative, b.not_(bits), b.or_(bits, I32(0x80000000)))
    end = I32(0 if nan_first else 0xFFFFFFFF)
    return b.select(b.fcmp_unordered("uno", x, x), end, b.not_(up) if largest else up)


class Heap:
    """A heap of unsigned 64-bit integers in scratch memory, the least on top."""

    def __init__(self, k: Code, size: D.DimLike):
        self.k, self.g, self.b = k, k.g, k.g.b
        self.at = k.memory(size, 8)

    def place(self, i: Num) -> ir.Value:
        """Address of element ``i``; fill these, then call `order`."""
        return self.g.at(self.at, i, 8)

    def order(self, n: ir.Value) -> None:
        """Makes a heap of ``n`` elements."""
        b = self.b
        at = self.k.variable(I64, b.lshr(n, I64(1)))
        with self.k.turns(lambda: b.icmp_signed(">", at.get(), I64(0))):
            at.add(-1)
            self._sift(at.get(), n)

    def pop(self, n: Variable) -> ir.Value:
        """Takes the least of ``n`` elements away."""
        g = self.g
        top = g.load(I64, self.at)
        n.add(-1)
        g.store(g.load(I64, self.place(n.get())), self.at)
        self._sift(I64(0), n.get())
        return top

    def _sift(self, start: ir.Value, n: ir.Value) -> None:
        """Moves the element at ``start`` down to its place."""
        g, b, k = self.g, self.b, self.k
        x = g.load(I64, self.place(start))
        at, going = k.variable(I64, start), k.variable(I1, 1)

        def left() -> ir.Value:
            return b.add(b.shl(at.get(), I64(1)), I64(1))

        with k.turns(lambda: b.and_(going.get(), b.icmp_signed("<", left(), n))):
            one = left()
            two = b.add(one, I64(1))
            two = b.select(b.icmp_signed("<", two, n), two, one)
            p, q = (g.load(I64, self.place(c)) for c in (one, two))
            right = b.icmp_unsigned("<", q, p)
            least = b.select(right, q, p)
            down = b.icmp_unsigned("<", least, x)
            with b.if_else(down) as (moves, stays):
                with moves:
                    g.store(least, self.place(at.get()))
                    at.set(b.select(right, two, one))
                with stays:
                    going.set(I1(0))
        g.store(x, self.place(at.get()))


# --- non-maximum suppression --------------------------------------------------------------


def _refuse_nms(node: Node) -> str | None:
    for v in node.inputs[:2]:
        if v is None or v.dtype is not f32:
            return f"boxes and scores must be f32, not {v}"
    for v in node.inputs[2:]:
        if v is not None and (not convert.supported(v.dtype) or isinstance(v.numel, D.Dim)):
            return f"limits of {v.dtype}"
    return None


class _Nms:
    """Per class: a heap of the candidates, the best on top; each that overlaps none of those kept
    (compared many at a time) is kept."""

    def __init__(self, k: Code):
        self.k, self.g, self.b = k, k.g, k.g.b
        boxes, scores, *limits = k.node.inputs
        assert boxes is not None and scores is not None
        self.boxes, self.scores = k.pointer(boxes), k.pointer(scores)
        self.batches, self.classes, self.count = (k.g.size(d) for d in scores.dims)
        self.out = k.result()
        self.lanes = k.isa.lanes(32)
        self.vec = V.with_lanes(F32, self.lanes)
        size = boxes.dims[1]
        self.corners = [k.memory(size, 4) for _ in range(5)]  # low and high corners, area
        self.kept_corners = [k.memory(size, 4) for _ in range(5)]
        self.heap = Heap(k, size)
        most, iou, least = (*limits, None, None, None)[:3]
        self.most = self._limit(most, I64)
        self.iou = self._limit(iou, F32)
        self.least = None if self._absent(least) else self._limit(least, F32)
        self.total = k.variable(I64)

    @staticmethod
    def _absent(v: Value | None) -> bool:
        return v is None or v.numel == 0

    def _limit(self, v: Value | None, t: ir.Type) -> ir.Value:
        if v is None or self._absent(v):
            return ir.Constant(t, 0)
        x = self.g.load(convert.memory_type(v.dtype), self.k.pointer(v), v.dtype.size)
        x = convert.from_memory(self.b, x, v.dtype)
        return convert.cast(self.b, x, v.dtype, i64 if t == I64 else f32)

    def emit(self) -> None:
        g = self.g
        with g.loop(0, self.batches) as batch:
            with g.loop(0, self.count) as i:
                self._prepare(g.add(g.mul(batch.index, self.count), i.index), i.index)
            with g.loop(0, self.classes) as c:
                n = self._collect(g.add(g.mul(batch.index, self.classes), c.index))
                self.heap.order(n.get())
                self._select(n, g.value(batch.index), g.value(c.index))
        self.k.tell(self.total.get())

    def _prepare(self, box: Num, i: Num) -> None:
        """Corners and area of a box."""
        g, b = self.g, self.b
        p, q, r, s = (g.load(F32, g.at(self.boxes, g.add(g.mul(box, 4), j), 4)) for j in range(4))
        if self.k.node.attrs.center_box:
            half = [b.fmul(x, V.const(F32, 0.5)) for x in (r, s)]
            low = [b.fsub(p, half[0]), b.fsub(q, half[1])]
            high = [b.fadd(p, half[0]), b.fadd(q, half[1])]
        else:
            low = [V.minimum(b, p, r), V.minimum(b, q, s)]
            high = [V.maximum(b, p, r), V.maximum(b, q, s)]
        area = b.fmul(b.fsub(high[0], low[0]), b.fsub(high[1], low[1]))
        for x, at in zip((*low, *high, area), self.corners, strict=True):
            g.store(x, g.at(at, i, 4))

    def _collect(self, row: Num) -> Variable:
        """Candidates of a class into the heap's memory; their number."""
        g, b, k = self.g, self.b, self.k
        n = k.variable(I64)
        base = g.at(self.scores, g.mul(row, self.count), 4)

        def put(i: ir.Value) -> None:
            key = b.zext(float_key(b, g.load(F32, g.at(base, i, 4)), True), I64)
            g.store(b.or_(b.shl(key, I64(32)), i), self.heap.place(n.get()))
            n.add(1)

        def look(i: Num, lanes: int) -> None:
            if self.least is None:
                bits = I64((1 << lanes) - 1)
            else:
                t = V.with_lanes(F32, lanes if lanes > 1 else 0)
                x = g.load(t, g.at(base, i, 4), 4)
                least = V.splat(b, self.least, V.lanes(t))
                bits = b.bitcast(b.fcmp_ordered(">", x, least), ir.IntType(lanes))
            k.each_set(bits, i, put)

        k.chunks(self.count, self.lanes, look)
        return n

    def _select(self, n: Variable, batch: ir.Value, klass: ir.Value) -> None:
        g, b, k = self.g, self.b, self.k
        kept = k.variable(I64)

        def going() -> ir.Value:
            some = b.icmp_signed(">", n.get(), I64(0))
            return b.and_(some, b.icmp_signed("<", kept.get(), self.most))

        with k.turns(going):
            box = b.and_(self.heap.pop(n), I64(0xFFFFFFFF))
            mine = [g.load(F32, g.at(at, box, 4)) for at in self.corners]
            with b.if_then(b.not_(self._overlaps(mine, kept.get()))):
                for x, at in zip(mine, self.kept_corners, strict=True):
                    g.store(x, g.at(at, kept.get(), 4))
                row = g.at(self.out, g.mul(self.total.get(), 3), 8)
                for j, x in enumerate((batch, klass, box)):
                    g.store(x, g.at(row, j, 8))
                kept.add(1)
                self.total.add(1)

    def _overlaps(self, mine: list[ir.Value], kept: ir.Value) -> ir.Value:
        """Whether a box overlaps one of those kept by more than allowed."""
        g, b, k, t = self.g, self.b, self.k, self.vec
        low0, low1, high0, high1, area = (V.splat(b, x, self.lanes) for x in mine)
        hit, at = k.variable(I1), k.variable(I64)
        zero, limit = V.const(t, 0.0), V.splat(b, self.iou, self.lanes)
        lane = ir.Constant(V.with_lanes(I64, self.lanes), [I64(i) for i in range(self.lanes)])

        def going() -> ir.Value:
            return b.and_(b.not_(hit.get()), b.icmp_signed("<", at.get(), kept))

        with k.turns(going):
            a0, a1, c0, c1, size = (
                g.load(t, g.at(x, at.get(), 4), 4) for x in self.kept_corners
            )
            width = b.fsub(V.minimum(b, c0, high0), V.maximum(b, a0, low0))
            height = b.fsub(V.minimum(b, c1, high1), V.maximum(b, a1, low1))
            both = b.fmul(V.maximum(b, width, zero), V.maximum(b, height, zero))
            union = b.fsub(b.fadd(size, area), both)
            share = b.select(b.fcmp_ordered(">", union, zero), b.fdiv(both, union), zero)
            index = b.add(V.splat(b, at.get(), self.lanes), lane)
            seen = b.icmp_signed("<", index, V.splat(b, kept, self.lanes))
            bad = b.and_(seen, b.fcmp_unordered(">", share, limit))
            word = b.bitcast(bad, ir.IntType(self.lanes))
            hit.set(b.icmp_unsigned("!=", word, ir.Constant(word.type, 0)))
            at.add(self.lanes)
        return hit.get()


def _nms(k: Code) -> None:
    _Nms(k).emit()


_OPS: dict[str, tuple[Callable[[Node], str | None], Callable[[Code], None]]] = {
    "non_zero": (_refuse_non_zero, _non_zero),
    "compress": (_refuse_compress, _compress),
    "nms": (_refuse_nms, _nms),
}

