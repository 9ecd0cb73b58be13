"""Scatter: each update finds the others of its place, so no two blocks write the same element.

The data is copied first. An update then looks along the updates that may share its place (those of
its line, or all index tuples): of equal ones the last writes, or the first writes what all of them
together make. So results do not depend on timing, and short floats are summed in f32.
"""

from __future__ import annotations

from typing import Any

from ...ir import dims as D
from ...ir import dtypes as T
from ...ir.dims import DimLike
from ...ir.graph import Node, Value
from ...regions.region import Region
from ...tactics.kernel import Kernel, Launch
from ...tactics.tactic import Tactic, register_tactic
from .emit import Frame, is_wide
from .lines import Lines, loaded, named, pow2, refuse_types, stored, working
from .product import Writer, unravel
from .reduce import identity
from .types import tl_name

_MOST = 1 << 38  # comparisons
_COPY = 1024


@register_tactic
class ScatterTactic(Tactic):
    """``scatter_elements`` and ``scatter_nd``."""

    name = "scatter"
    target = "cuda"
    timed = False

    def refuse(self, region: Region, device: Any) -> str | None:
        node = region.anchor
        if node is None or node.op not in ("scatter_elements", "scatter_nd"):
            return "not a scatter"
        if region.stages:
            return "scatter has no epilogue"
        x, idx = node.inputs[:2]
        assert x is not None and idx is not None
        if not x.rank:
            return "scalars are left to the reference"
        if x.dtype is T.b1 and node.attrs.reduction != "none":
            return "booleans are not combined"
        if node.op == "scatter_nd" and (isinstance(idx.dims[-1], D.Dim) or idx.dims[-1] == 0):
            return "index tuples have no fixed length"
        if any(d == 0 for d in x.dims):
            return "there is nothing to compute"
        work = _Scatter(node, device).comparisons
        if not isinstance(work, D.Dim) and work > _MOST:
            return f"{work} comparisons of updates are too many"
        return refuse_types([x, idx], device.arch)

    def build(self, region: Region, candidate: Any, device: Any) -> Kernel:
        node = region.anchor
        assert node is not None and node.inputs[0] is not None
        first = copy_kernel(node.inputs[0], node.output)
        scatter = _Scatter(node, device)
        if not isinstance(scatter.count, D.Dim) and scatter.count == 0:
            return first
        kernel = scatter.build()
        kernel.before = (first,)
        return kernel


def copy_kernel(x: Value, out: Value) -> Kernel:
    """Copies a tensor."""
    frame = Frame(is_wide([x]))
    wide = ".to(tl.int64)" if frame.wide else ""
    n = frame.size(x.numel)
    body = [
        f"o = tl.program_id(0){wide} * {_COPY} + tl.arange(0, {_COPY})",
        f"tl.store({frame.pointer(out)} + o, tl.load({frame.pointer(x)} + o, mask=o < {n}), "
        f"mask=o < {n})",
    ]
    return named("copy", frame, body, Launch(grid=(D.ceil_div(x.numel, _COPY),), warps=4))


class _Scatter:
    """Writes the kernel.

    Attributes:
        count: Elements that are updated.
        length: Updates that may share an element's place.
    """

    def __init__(self, node: Node, device: Any):
        self.node = node
        x, idx, upd = node.inputs[:3]
        assert x is not None and idx is not None and upd is not None
        self.x, self.idx, self.upd, self.out = x, idx, upd, node.output
        self.fn = node.attrs.reduction
        self.count: DimLike = upd.numel
        if node.op == "scatter_nd":
            self.depth = int(idx.dims[-1])  # type: ignore[arg-type]
            self.length: DimLike = D.product(idx.dims[:-1])
            self.tail: DimLike = D.product(x.dims[self.depth :])
        else:
            self.axis = node.attrs.axis % x.rank
            self.lines = Lines.along(idx, self.axis)
            self.length = self.lines.length

    @property
    def comparisons(self) -> DimLike:
        return self.count * self.length

    def build(self) -> Kernel:
        self.frame = frame = Frame(is_wide([self.x, self.idx, self.upd]))
        w = Writer()
        height, width = pow2(self.count, 16, 64), pow2(self.length, 16, 128)
        wide = ".to(tl.int64)" if frame.wide else ""
        w(f"e = tl.program_id(0){wide} * {height} + tl.arange(0, {height})[:, None]",
          f"inside = e < {frame.size(self.count)}", f"length = {frame.size(self.length)}")
        self._place(w)
        self._key(w, "key", "p", "inside")
        work = working(self.x.dtype)
        neutral = "0" if self.fn == "none" else identity(_REDUCE[self.fn], work)
        w(f"drop = tl.zeros(({height}, 1), tl.int32)")
        if self.fn != "none":
            w(f"acc = tl.full(({height}, 1), {neutral}, {tl_name(work)})")
        with w.block(f"for v0 in range(0, length, {width}):"):
            w(f"v = v0 + tl.arange(0, {width})[None, :]", "there = (v < length) & inside")
            # index tuples are the same for every row of the block
            self._key(w, "other", "v", "there" if self.node.op == "scatter_elements" else
                      "(v < length)")
            w("same = (other == key) & there",
              f"drop = tl.maximum(drop, tl.max((same & (v {'>' if self.fn == 'none' else '<'} p))"
              ".to(tl.int32), 1, keep_dims=True))")  # fmt: skip
            if self.fn != "none":
                self._gather(w, neutral)
        self._write(w)
        launch = Launch(grid=(D.ceil_div(self.count, height),), warps=4, stages=2)
        return named("scatter", frame, w.lines, launch)

    # --- places ---------------------------------------------------------------------------

    def _place(self, w: Writer) -> None:
        """Sets the update's number ``p`` among those that may share its place."""
        size = self.frame.size
        if self.node.op == "scatter_nd":
            w(f"p = e // {size(self.tail)}", f"m = e % {size(self.tail)}")
            return
        inner = size(self.lines.inner)
        w(f"p = e // {inner} % length",
          f"line = e // ({inner} * length) * ({inner} * length) + e % {inner}")  # fmt: skip

    def _at(self, v: str) -> str:
        """Where update ``v`` lies."""
        if self.node.op == "scatter_nd":
            return f"{v} * {self.frame.size(self.tail)} + m"
        return f"line + {v} * {self.frame.size(self.lines.inner)}"

    def _key(self, w: Writer, name: str, v: str, mask: str) -> None:
        """Sets ``name`` to the place that update ``v`` names, -1 if there is none."""
        p, size = self.frame.pointer(self.idx), self.frame.size
        if self.node.op == "scatter_elements":
            self._index(w, name, f"{p} + {self._at(v)}", mask, self.x.dims[self.axis])
            w(f"{name} = tl.where({name}_ok, {name}, -1)")
            return
        terms = []
        for j in range(self.depth):
            part = f"{name}{j}"
            self._index(w, part, f"{p} + {v} * {self.depth} + {j}", mask, self.x.dims[j])
            terms.append(f"{part} * {size(D.product(self.x.dims[j + 1 : self.depth]))}")
        good = " & ".join(f"{name}{j}_ok" for j in range(self.depth))
        w(f"{name} = tl.where({good}, {' + '.join(terms)}, -1)")

    def _index(self, w: Writer, name: str, at: str, mask: str, extent: DimLike) -> None:
        n = self.frame.size(extent)
        kind = "tl.int64" if self.idx.dtype.bits == 64 or self.frame.wide else "tl.int32"
        w(f"{name} = tl.load({at}, mask={mask}, other=0).to({kind})",
          f"{name} = tl.where({name} < 0, {name} + {n}, {name})",
          f"{name}_ok = ({name} >= 0) & ({name} < {n})")  # fmt: skip

    def _target(self) -> str:
        """Where in the result the update goes."""
        size = self.frame.size
        if self.node.op == "scatter_nd":
            return f"key * {size(self.tail)} + m"
        terms = []
        for k, c in enumerate(unravel(self.frame, "e", self.idx.dims)):
            coordinate = "key" if k == self.axis else c
            if coordinate != "0":
                terms.append(f"{coordinate} * {size(D.product(self.x.dims[k + 1 :]))}")
        return " + ".join(terms)

    # --- values ---------------------------------------------------------------------------

    def _gather(self, w: Writer, neutral: str) -> None:
        """Joins the updates of the same place."""
        dt = self.upd.dtype
        w(f"u = tl.load({self.frame.pointer(self.upd)} + {self._at('v')}, mask=same, other=0)",
          f"u = tl.where(same, {loaded('u', dt)}, {neutral}).to({tl_name(working(dt))})")
        if self.fn == "add":
            w("u = tl.sum(u, 1, keep_dims=True)")
        else:
            helper = self._helper()
            w(f"u = tl.reduce(u, 1, {helper}, keep_dims=True)")
        self._join(w, "acc", "acc", "u")

    def _helper(self) -> str:
        is_float = working(self.x.dtype).is_float
        name = "_prod" if self.fn == "mul" else f"_{'' if is_float else 'i'}{self.fn}"
        self.frame.functions.helpers.add(name)
        return name

    def _join(self, w: Writer, to: str, a: str, b: str) -> None:
        text = f"{a} + {b}" if self.fn == "add" else f"{self._helper()}({a}, {b})"
        w(f"{to} = ({text}).to({tl_name(working(self.x.dtype))})")

    def _write(self, w: Writer) -> None:
        frame = self.frame
        w("keep = inside & (drop == 0) & (key >= 0)", f"to = {self._target()}")
        if self.fn == "none":
            w(f"new = tl.load({frame.pointer(self.upd)} + e, mask=keep)",
              f"tl.store({frame.pointer(self.out)} + to, new, mask=keep)")  # fmt: skip
            return
        w(f"old = tl.load({frame.pointer(self.x)} + to, mask=keep, other=0)",
          f"old = {loaded('old', self.x.dtype)}")  # fmt: skip
        self._join(w, "new", "old", "acc")
        w(f"tl.store({frame.pointer(self.out)} + to, {stored('new', self.out.dtype)}, mask=keep)")


_REDUCE = {"add": "sum", "mul": "prod", "min": "min", "max": "max"}
