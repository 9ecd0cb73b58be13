"""Top-k of many elements, up to a whole sort: a heap of all, from which the first k are taken.

`sequential` keeps the best in order while it looks, which is quicker for few.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from ...ir import dims as D
from ...ir import dtypes as T
from ...regions.region import Region
from ...tactics.kernel import Kernel
from ...tactics.tactic import Tactic, register_tactic
from . import convert
from .codegen import Num
from .search import Code, Heap, float_key
from .vecmath import I32, I64

_FEW = 64
_TYPES = (T.f32, T.f16, T.bf16, T.i32, T.u32, T.i16, T.u16, T.i8, T.u8)


@register_tactic
class HeapTopK(Tactic):
    """The first k of a heap; lines along the axis are shared between threads."""

    name = "heap_topk"
    target = "cpu"
    priority = 10

    def refuse(self, region: Region, device: Any) -> str | None:
        node = region.anchor
        if node is None or node.op != "topk":
            return "not top-k"
        x, out = node.inputs[0], node.outputs[0]
        assert x is not None
        if region.stages:
            return "topk has no epilogue"
        if x.dtype not in _TYPES:
            return f"{x.dtype} and an index do not fit 64 bits"
        count, size = (v.dims[node.attrs.axis % x.rank] for v in (out, x))
        if any(s.startswith("%") for v in (x, out) for d in v.dims for s in D.symbols(d)):
            return "k, or a size, depends on data"
        if 0 in x.dims or count == 0:
            return "there is nothing to look at"
        if isinstance(count, int) and count <= _FEW:
            return "few are kept in order more quickly"
        if isinstance(size, int) and size >= 1 << 32:
            return "indices need more than 32 bits"
        return None

    def candidates(self, region: Region, device: Any) -> Sequence[str]:
        return ("",)

    def build(self, region: Region, candidate: Any, device: Any) -> Kernel:
        assert region.anchor is not None
        return _TopK(region, device.isa).kernel()


class _TopK:
    def __init__(self, region: Region, isa: Any):
        assert region.anchor is not None
        self.node, self.region = region.anchor, region
        self.k = Code(self.node, isa)
        self.x = self.node.inputs[0]
        self.axis = self.node.attrs.axis % self.node.outputs[0].rank

    def kernel(self) -> Kernel:
        k, g, x, axis = self.k, self.k.g, self.x, self.axis
        assert x is not None
        values, places = self.node.outputs
        wanted = [v for v in (values, places) if v in self.region.outputs]
        source = k.pointer(x)
        out = {v: k.pointer(v) for v in wanted}
        inner, size = D.product(x.dims[axis + 1 :]), x.dims[axis]
        count = values.dims[axis]
        heap = Heap(k, size)
        step = g.size(inner)
        with g.loop(g.begin, g.end) as line:
            o, i = g.div(line.index, step), g.mod(line.index, step)
            first = g.add(g.mul(g.mul(o, g.size(size)), step), i)
            base = g.at(source, first, x.dtype.size)
            self._fill(heap, base, step)
            n = k.variable(I64, g.value(g.size(size)))
            start = g.add(g.mul(g.mul(o, g.size(count)), step), i)
            some = k.variable(I64)
            with k.turns(lambda: g.b.icmp_signed("<", some.get(), g.value(g.size(count)))):
                place = g.b.and_(heap.pop(n), I64(0xFFFFFFFF))
                there = g.add(start, g.mul(some.get(), step))
                if values in out:
                    element = self._load(base, place, step)
                    g.store(element, g.at(out[values], there, x.dtype.size), x.dtype.size)
                if places in out:
                    g.store(place, g.at(out[places], there, 8), 8)
                some.add(1)
        kernel = k.kernel()
        kernel.work = D.product((*x.dims[:axis], inner))
        return kernel

    def _load(self, base: ir.Value, i: Num, step: Num) -> ir.Value:
        assert self.x is not None
        dt, g = self.x.dtype, self.k.g
        return g.load(convert.memory_type(dt), g.at(base, g.mul(i, step), dt.size), dt.size)

    def _fill(self, heap: Heap, base: ir.Value, step: Num) -> None:
        """All elements with their indices, then the heap's order."""
        g = self.k.g
        assert self.x is not None
        n = g.size(self.x.dims[self.axis])
        with g.loop(0, n) as i:
            key = g.b.zext(self._key(self._load(base, i.index, step)), I64)
            both = g.b.or_(g.b.shl(key, I64(32)), g.value(i.index))
            g.store(both, heap.place(i.index), 8)
        heap.order(g.value(n))

    def _key(self, element: ir.Value) -> ir.Value:
        """An integer that is less for what comes first; NaN counts as the greatest number."""
        assert self.x is not None
        b, dt, largest = self.k.g.b, self.x.dtype, self.node.attrs.largest
        x = convert.from_memory(b, element, dt)
        if dt.is_float:
            return float_key(b, x, largest, nan_first=largest)
        if dt.bits < 32:
            x = b.sext(x, I32) if dt.kind == "i" else b.zext(x, I32)
        up = b.xor(x, I32(0x80000000)) if dt.kind == "i" else x
        return b.not_(up) if largest else up
