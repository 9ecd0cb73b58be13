"""Top-k: each element's rank is the number of elements that come before it.

Blocks of elements compare themselves with their whole line, so every block works by itself and
equal elements keep their order. The work grows with the square of the line: at 10,000 elements it
still takes microseconds. Longer lines are first cut to the best of each piece (`passes`).
"""

from __future__ import annotations

from typing import Any

from ...ir import dims as D
from ...passes.split_topk import pieces_of
from ...regions.region import Region
from ...tactics.kernel import Kernel, Launch
from ...tactics.tactic import Tactic, register_tactic
from .emit import Frame, is_wide
from .lines import Lines, loaded, named, pow2, refuse_types, working
from .product import Writer


@register_tactic
class TopKTactic(Tactic):
    """The ``k`` first of a line in order, by ranks."""

    name = "topk"
    target = "cuda"

    def refuse(self, region: Region, device: Any) -> str | None:
        node = region.anchor
        if node is None or node.op != "topk":
            return "not top-k"
        if region.stages:
            return "top-k has no epilogue"
        x, out = node.inputs[0], node.outputs[0]
        assert x is not None
        if any(s.startswith("%") for s in D.symbols(out.dims[node.attrs.axis % x.rank])):
            return "k depends on data"
        if pieces_of(node):
            return "lines this long are cut first"
        if any(d == 0 for v in (x, out) for d in v.dims):
            return "there is nothing to compute"
        return refuse_types([x, out], device.arch)

    def build(self, region: Region, candidate: Any, device: Any) -> Kernel:
        node = region.anchor
        assert node is not None and node.inputs[0] is not None
        x, (values, places) = node.inputs[0], node.outputs
        frame = Frame(is_wide([x, values]))
        axis = node.attrs.axis % x.rank
        lines, kept = Lines.along(x, axis), Lines.along(values, axis)
        size = frame.size
        here, there = (pow2(lines.length, 16, n) for n in (64, 128))
        blocks = D.ceil_div(lines.length, here)
        wide = ".to(tl.int64)" if frame.wide else ""
        p = frame.pointer(x)
        w = Writer()
        w(f"pid = tl.program_id(0){wide}",
          f"row = pid // {size(blocks)}" if blocks != 1 else "row = pid",
          f"i = {f'pid % {size(blocks)}' if blocks != 1 else '0'} * {here} + "
          f"tl.arange(0, {here})",
          f"n = {size(lines.length)}",
          f"base = {lines.base(frame, 'row')}",
          f"raw = tl.load({p} + base + {lines.step(frame, 'i')}, mask=i < n, other=0)",
          f"a = {loaded('raw', x.dtype)}[:, None]",
          f"rank = tl.zeros(({here},), tl.int32)")  # fmt: skip
        with w.block(f"for j0 in range(0, n, {there}):"):
            w(f"j = j0 + tl.arange(0, {there})",
              f"b = tl.load({p} + base + {lines.step(frame, 'j')}, mask=j < n, other=0)",
              f"b = {loaded('b', x.dtype)}[None, :]",
              same(working(x.dtype).is_float),
              f"ahead = {before(node.attrs.largest, working(x.dtype).is_float)}",
              "ahead = (ahead | (same & (j[None, :] < i[:, None]))) & (j < n)[None, :]",
              "rank += tl.sum(ahead.to(tl.int32), 1)")  # fmt: skip
        w(f"keep = (i < n) & (rank < {size(kept.length)})",
          f"to = {kept.base(frame, 'row')} + {kept.step(frame, 'rank')}")  # fmt: skip
        if values in region.outputs:
            w(f"tl.store({frame.pointer(values)} + to, raw, mask=keep)")
        if places in region.outputs:
            w(f"tl.store({frame.pointer(places)} + to, i.to(tl.int64), mask=keep)")
        launch = Launch(grid=(lines.count * blocks,), warps=4, stages=2)
        return named("topk", frame, w.lines, launch)


def before(largest: bool, is_float: bool) -> str:
    """Whether ``b`` comes strictly before ``a``; NaN is the greatest number."""
    if not is_float:
        return "b > a" if largest else "b < a"
    if largest:
        return "(b > a) | ((b != b) & (a == a))"
    return "(b < a) | ((a != a) & (b == b))"


def same(is_float: bool) -> str:
    """Sets ``same``: whether neither comes before the other."""
    return "same = (b == a) | ((a != a) & (b != b))" if is_float else "same = b == a"
