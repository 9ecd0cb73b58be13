"""Elements that satisfy a condition: non-zero and compress.

A first kernel counts in blocks, the host reads the total, and the last kernel knows from the counts
of the blocks before its own where its elements go. So order is kept without blocks waiting.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...ir import dims as D
from ...ir import dtypes as T
from ...ir.dims import DimLike
from ...ir.graph import Node, Value
from ...regions.region import Region
from ...tactics.kernel import Kernel, Launch
from ...tactics.tactic import Tactic, register_tactic
from .emit import Frame, is_wide
from .lines import Lines, named, refuse_types
from .product import Writer, unravel

BLOCK = 2048
_SUM = 1024


@register_tactic
class SelectTactic(Tactic):
    """``non_zero`` and ``compress``."""

    name = "selection"
    target = "cuda"
    timed = False

    def refuse(self, region: Region, device: Any) -> str | None:
        node = region.anchor
        if node is None or node.op not in ("non_zero", "compress"):
            return "not a selection"
        if region.stages:
            return f"{node.op} has no epilogue"
        x = node.inputs[0]
        assert x is not None
        if not x.rank:
            return "scalars are left to the reference"
        if any(d == 0 for v in node.present_inputs() for d in v.dims):
            return "there is nothing to compute"
        return refuse_types([v for v in node.present_inputs() if v is not None], device.arch)

    def build(self, region: Region, candidate: Any, device: Any) -> Kernel:
        node = region.anchor
        assert node is not None
        if node.op == "non_zero":
            return _non_zero(node)
        return _compress(node)


def counting(values: Value, found: tuple[D.Dim, ...]) -> tuple[Kernel, Value]:
    """The kernel that counts what is not 0, and where it leaves the counts of blocks."""
    blocks = D.ceil_div(values.numel, BLOCK)
    partial = Value("counts", T.i32, (blocks,))
    total = Value("total", T.i64, (1,))
    frame = Frame(is_wide([values]))
    frame.counters = True
    w = Writer()
    _flags(w, frame, values)
    w(f"tl.store({frame.pointer(partial)} + pid, tl.sum(flag, 0))")
    finish_count(w, frame, partial, total, blocks)
    kernel = named("count", frame, w.lines, Launch(grid=(blocks,), warps=4, counters=1))
    kernel.finds = total, found
    return kernel, partial


def finish_count(
    w: Writer, frame: Frame, partial: Value, total: Value, blocks: DimLike
) -> None:
    """The block that is done last adds the counts of all."""
    n = frame.size(blocks)
    p, t = frame.pointer(partial), frame.pointer(total)
    w("tl.debug_barrier()", "done = tl.atomic_add(counters, 1)")
    with w.block(f"if done == {n} - 1:"):
        w("tl.store(counters, 0)", "sums = tl.zeros((" f"{_SUM},), tl.int64)")
        with w.block(f"for c in range(0, {n}, {_SUM}):"):
            w(f"k = c + tl.arange(0, {_SUM})",
              f"sums += tl.load({p} + k, mask=k < {n}, other=0, cache_modifier=\".cg\")"
              ".to(tl.int64)")  # fmt: skip
        w(f"tl.store({t}, tl.sum(sums, 0))")


def sum_before(w: Writer, frame: Frame, partial: Value, kind: str = "tl.int32") -> None:
    """Sets ``start``: what the blocks before this one counted."""
    p = frame.pointer(partial)
    w(f"sums = tl.zeros(({_SUM},), {kind})")
    with w.block(f"for c in range(0, pid, {_SUM}):"):
        w(f"k = c + tl.arange(0, {_SUM})", f"sums += tl.load({p} + k, mask=k < pid, other=0)")
    w("start = tl.sum(sums, 0)")


def _flags(w: Writer, frame: Frame, values: Value) -> None:
    """Sets ``e``, the block's elements, and ``flag``, 1 for those that are not 0."""
    wide = ".to(tl.int64)" if frame.wide else ""
    n = frame.size(values.numel)
    w(f"pid = tl.program_id(0){wide}", f"e = pid * {BLOCK} + tl.arange(0, {BLOCK})",
      f"x = tl.load({frame.pointer(values)} + e, mask=e < {n}, other=0)",
      f"flag = ((x{'.to(tl.float32)' if values.dtype.bits == 8 and values.dtype.is_float else ''}"
      f" != 0) & (e < {n})).to(tl.int32)")  # fmt: skip


def _non_zero(node: Node) -> Kernel:
    x, out = node.inputs[0], node.output
    assert x is not None
    count = out.dims[1]
    assert isinstance(count, D.Dim)
    first, partial = counting(x, (count,))
    frame, w = Frame(is_wide([x])), Writer()
    _flags(w, frame, x)
    sum_before(w, frame, partial)
    w("to = start + tl.cumsum(flag, 0) - flag")
    for k, c in enumerate(unravel(frame, "e", x.dims)):
        text = c if c != "0" else "e * 0"
        w(f"tl.store({frame.pointer(out)} + {k} * {frame.size(count)} + to, "
          f"({text}).to(tl.int64), mask=flag != 0)")  # fmt: skip
    grid = (D.ceil_div(x.numel, BLOCK),)
    kernel = named("nonzero", frame, w.lines, Launch(grid=grid, warps=4))
    kernel.before = (first,)
    return kernel


def _compress(node: Node) -> Kernel:
    x, cond = node.inputs[:2]
    assert x is not None and cond is not None
    axis = node.attrs.axis
    before: tuple[Kernel, ...] = ()
    places: Value | np.ndarray[Any, Any]
    if cond.const is not None:
        places = np.flatnonzero(cond.const).astype(np.int32)
    else:
        size = node.output.dims[0 if axis is None else axis % x.rank]
        assert isinstance(size, D.Dim)
        first, partial = counting(cond, (size,))
        places = Value("places", T.i32, (cond.numel,))
        before = (first, _places(cond, partial, places))
    kernel = _take(node, places)
    kernel.before = before
    return kernel


def _places(cond: Value, partial: Value, places: Value) -> Kernel:
    """Writes the numbers of the elements that are not 0, in order."""
    frame, w = Frame(), Writer()
    _flags(w, frame, cond)
    sum_before(w, frame, partial)
    w("to = start + tl.cumsum(flag, 0) - flag",
      f"tl.store({frame.pointer(places)} + to, e.to(tl.int32), mask=flag != 0)")
    return named("places", frame, w.lines, Launch(grid=(D.ceil_div(cond.numel, BLOCK),), warps=4))


def _take(node: Node, places: Value | np.ndarray[Any, Any]) -> Kernel:
    """Gathers slices."""
    x, out, axis = node.inputs[0], node.output, node.attrs.axis
    assert x is not None
    frame, w = Frame(is_wide([x])), Writer()
    size = frame.size
    if axis is None:
        source = Lines(1, x.numel, 1)
        count = out.dims[0]
    else:
        source = Lines.along(x, axis % x.rank)
        count = out.dims[axis % x.rank]
    wide = ".to(tl.int64)" if frame.wide else ""
    p = frame.pointer(places) if isinstance(places, Value) else frame.array(places)
    n, inner = size(out.numel), size(source.inner)
    w(f"o = tl.program_id(0){wide} * {BLOCK} + tl.arange(0, {BLOCK})", f"m = o < {n}",
      f"s = tl.load({p} + o // {inner} % {size(count)}, mask=m, other=0)",
      f"row = o // ({inner} * {size(count)})",
      f"at = (row * {size(source.length)} + s) * {inner} + o % {inner}",
      f"tl.store({frame.pointer(out)} + o, tl.load({frame.pointer(x)} + at, mask=m), mask=m)")
    return named("compress", frame, w.lines, Launch(grid=(D.ceil_div(out.numel, BLOCK),), warps=4))
