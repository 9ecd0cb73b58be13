"""Unique: every element (or slice) is compared with all others.

The first kernel marks what has no equal before it and counts; in the second each finds its place:
the number of distinct ones that are smaller, or that occur earlier.
"""

from __future__ import annotations

from typing import Any

from ...ir import dims as D
from ...ir import dtypes as T
from ...ir.graph import Node, Value
from ...regions.region import Region
from ...tactics.kernel import Kernel, Launch
from ...tactics.tactic import Tactic, register_tactic
from .emit import Frame, is_wide
from .lines import Lines, loaded, named, pow2, refuse_types, working
from .product import Writer
from .selection import finish_count

_MOST = 1 << 36  # comparisons


@register_tactic
class UniqueTactic(Tactic):
    """Distinct elements, or slices along an axis."""

    name = "unique"
    target = "cuda"
    timed = False

    def refuse(self, region: Region, device: Any) -> str | None:
        node = region.anchor
        if node is None or node.op != "unique":
            return "not unique"
        if region.stages:
            return "unique has no epilogue"
        x = node.inputs[0]
        assert x is not None
        if not x.rank:
            return "scalars are left to the reference"
        if any(d == 0 for d in x.dims):
            return "there is nothing to compute"
        lines = _lines(node)
        work = lines.count * lines.length * lines.length
        if not isinstance(work, D.Dim) and work > _MOST:
            return f"{work} comparisons are too many"
        return refuse_types([x], device.arch)

    def build(self, region: Region, candidate: Any, device: Any) -> Kernel:
        node = region.anchor
        assert node is not None
        return _Unique(node, region.outputs).build()


def _lines(node: Node) -> Lines:
    """Slices: line ``c`` holds element ``c`` of each."""
    x, axis = node.inputs[0], node.attrs.axis
    assert x is not None
    return Lines(1, x.numel, 1) if axis is None else Lines.along(x, axis % x.rank)


class _Unique:
    def __init__(self, node: Node, wanted: list[Value]):
        self.node, self.wanted = node, wanted
        x = node.inputs[0]
        assert x is not None
        self.x, self.lines = x, _lines(node)
        self.size = pow2(self.lines.length, 16, 64)
        self.blocks = D.ceil_div(self.lines.length, self.size)
        self.is_float = working(x.dtype).is_float
        self.first = Value("first", T.i32, (self.lines.length,))
        found = node.outputs[1].dims[0]
        assert isinstance(found, D.Dim)
        self.found = found

    def build(self) -> Kernel:
        kernel = self._order()
        kernel.before = (self._mark(),)
        return kernel

    def _begin(self) -> tuple[Frame, Writer]:
        frame, w = Frame(is_wide([self.x])), Writer()
        wide = ".to(tl.int64)" if frame.wide else ""
        w(f"pid = tl.program_id(0){wide}", f"n = {frame.size(self.lines.length)}",
          f"i = pid * {self.size} + tl.arange(0, {self.size})[:, None]")
        return frame, w

    def _compare(self, w: Writer, frame: Frame) -> None:
        """Sets ``equal`` and ``less`` (j before i) for a block of pairs."""
        shape = f"({self.size}, {self.size})"
        w(f"j = j0 + tl.arange(0, {self.size})[None, :]",
          f"equal = tl.full({shape}, 1, tl.int1)", f"less = tl.full({shape}, 0, tl.int1)")
        p = frame.pointer(self.x)
        with w.block(f"for c in range(0, {frame.size(self.lines.count)}):"):
            w(f"base = {self.lines.base(frame, 'c')}",
              f"a = tl.load({p} + base + {self.lines.step(frame, 'i')}, mask=i < n, other=0)",
              f"b = tl.load({p} + base + {self.lines.step(frame, 'j')}, mask=j < n, other=0)",
              f"a = {loaded('a', self.x.dtype)}", f"b = {loaded('b', self.x.dtype)}")  # fmt: skip
            ahead = "(b < a)"
            if self.is_float:  # NaN comes last
                ahead = "((b < a) | ((a != a) & ((b == b) | (j < i))))"
            w(f"less = less | (equal & {ahead})", "equal = equal & (a == b)")
        w("equal = (equal | (i == j)) & (j < n)", "less = less & (j < n) & (i != j)")

    def _mark(self) -> Kernel:
        frame, w = self._begin()
        frame.counters = True
        w(f"seen = tl.zeros(({self.size}, 1), tl.int32)")
        with w.block(f"for j0 in range(0, n, {self.size}):"):
            self._compare(w, frame)
            w("seen = tl.maximum(seen, tl.max((equal & (j < i)).to(tl.int32), 1, keep_dims=True))")
        partial = Value("counts", T.i32, (self.blocks,))
        total = Value("total", T.i64, (1,))
        w("fresh = ((seen == 0) & (i < n)).to(tl.int32)",
          f"tl.store({frame.pointer(self.first)} + i, fresh, mask=i < n)",
          f"tl.store({frame.pointer(partial)} + pid, tl.sum(tl.sum(fresh, 1), 0))")
        finish_count(w, frame, partial, total, self.blocks)
        launch = Launch(grid=(self.blocks,), warps=4, stages=1, counters=1)
        kernel = named("distinct", frame, w.lines, launch)
        kernel.finds = total, (self.found,)
        return kernel

    def _order(self) -> Kernel:
        frame, w = self._begin()
        first = frame.pointer(self.first)
        column = f"({self.size}, 1)"
        w(f"place = tl.zeros({column}, tl.int32)", f"count = tl.zeros({column}, tl.int32)",
          f"where = tl.full({column}, 2147483647, tl.int32)")
        with w.block(f"for j0 in range(0, n, {self.size}):"):
            self._compare(w, frame)
            w("count += tl.sum(equal.to(tl.int32), 1, keep_dims=True)",
              "at = tl.min(tl.where(equal, j, 2147483647).to(tl.int32), 1, keep_dims=True)",
              "where = tl.minimum(where, at)")  # fmt: skip
            if self.node.attrs.sorted:
                w(f"fresh = tl.load({first} + j, mask=j < n, other=0)",
                  "place += tl.sum(tl.where(less, fresh, 0), 1, keep_dims=True)")
        if not self.node.attrs.sorted:
            with w.block(f"for j0 in range(0, n, {self.size}):"):
                w(f"j = j0 + tl.arange(0, {self.size})[None, :]",
                  f"fresh = tl.load({first} + j, mask=j < n, other=0)",
                  "place += tl.sum(tl.where(j < where, fresh, 0), 1, keep_dims=True)")
        self._store(w, frame)
        launch = Launch(grid=(self.blocks,), warps=4, stages=1)
        return named("unique", frame, w.lines, launch)

    def _store(self, w: Writer, frame: Frame) -> None:
        values, index, inverse, counts = self.node.outputs
        w(f"keep = tl.load({frame.pointer(self.first)} + i, mask=i < n, other=0) != 0")
        for v, text, mask in ((index, "i", "keep"), (inverse, "place", "i < n"),
                              (counts, "count", "keep")):
            if v in self.wanted:
                at = "i" if v is inverse else "place"
                w(f"tl.store({frame.pointer(v)} + {at}, ({text}).to(tl.int64), mask={mask})")
        if values in self.wanted:
            kept = Lines(self.lines.count, self.found, self.lines.inner)
            x, y = frame.pointer(self.x), frame.pointer(values)
            with w.block(f"for c in range(0, {frame.size(self.lines.count)}):"):
                w(f"a = tl.load({x} + {self.lines.base(frame, 'c')} + "
                  f"{self.lines.step(frame, 'i')}, mask=keep)",
                  f"tl.store({y} + {kept.base(frame, 'c')} + {kept.step(frame, 'place')}, a, "
                  "mask=keep)")  # fmt: skip
