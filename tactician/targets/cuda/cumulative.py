"""Running sums and products: lines go by in pieces, each scanned in registers."""

from __future__ import annotations

from typing import Any

from ...ir import dims as D
from ...ir.graph import Node
from ...regions.region import Region
from ...tactics.kernel import Kernel, Launch
from ...tactics.tactic import Tactic, register_tactic
from .emit import Frame, is_wide
from .lines import Lines, loaded, named, pow2, refuse_types, stored, working
from .product import Writer
from .types import tl_name


@register_tactic
class CumulativeTactic(Tactic):
    """Scans along an axis, which may be known only at run time."""

    name = "cumulative"
    target = "cuda"

    def refuse(self, region: Region, device: Any) -> str | None:
        node = region.nodes[0] if len(region.nodes) == 1 else None
        if node is None or node.op != "cumulative":
            return "not a running sum"
        x = node.inputs[0]
        assert x is not None
        if region.anchor is None and region.stages:
            return "short lines are loop nests"
        if any(d == 0 for d in x.dims):
            return "there is nothing to compute"
        if _axis(node) is None and not D.is_static(*x.dims):
            return "neither axis nor sizes are known"
        return refuse_types([x, node.output], device.arch)

    def build(self, region: Region, candidate: Any, device: Any) -> Kernel:
        node = region.nodes[0]
        return _Scan(node, device).build()


def _axis(node: Node) -> int | None:
    """The axis, if it is known while building."""
    x, axis = node.inputs[:2]
    assert x is not None
    known = None if axis is None else axis.known_ints()
    if known is None or isinstance(known.flat[0], D.Dim):
        return None
    return int(known.flat[0]) % x.rank


class _Scan:
    def __init__(self, node: Node, device: Any):
        self.node, self.device = node, device
        x = node.inputs[0]
        assert x is not None
        self.x, self.out = x, node.output
        self.frame = Frame(is_wide([x]))
        self.work = working(x.dtype)
        self.unit = "0" if node.attrs.fn == "sum" else "1"

    def build(self) -> Kernel:
        frame, w = self.frame, Writer()
        axis = _axis(self.node)
        if axis is not None:
            lines = Lines.along(self.x, axis)
            width = pow2(lines.length, 16, 1024)
            count = lines.count
            n, inner = frame.size(lines.length), frame.size(lines.inner)
            rows = pow2(count, 1, max(1, 2048 // width), 1)
            total = frame.size(count)
        else:
            rows, width = 4, 256
            count = D.product(self.x.dims)
            w(*self._choose_axis())
            n, inner, total = "n", "inner", "total"
        wide = ".to(tl.int64)" if frame.wide else ""
        w(f"row = tl.program_id(0){wide} * {rows} + tl.arange(0, {rows})[:, None]",
          f"base = row // {inner} * ({n} * {inner}) + row % {inner}" if inner != "1"
          else f"base = row * {n}")  # fmt: skip
        self._walk(w, n, inner, f"(row < {total})", rows, width)
        launch = Launch(grid=(D.ceil_div(count, rows),), warps=4, stages=2)
        return named("cumulative", frame, w.lines, launch)

    def _choose_axis(self) -> list[str]:
        """Length, step and number of lines of an axis that is read from memory."""
        axis = self.node.inputs[1]
        assert axis is not None
        dims = [int(d) for d in self.x.dims]  # type: ignore[arg-type]
        out = [f"at = tl.load({self.frame.pointer(axis)}).to(tl.int32)",
               f"at = tl.where(at < 0, at + {len(dims)}, at)",
               f"n = at * 0 + {dims[0]}", f"inner = at * 0 + {D.product(dims[1:])}"]  # fmt: skip
        for k in range(1, len(dims)):
            out += [f"n = tl.where(at == {k}, {dims[k]}, n)",
                    f"inner = tl.where(at == {k}, {D.product(dims[k + 1 :])}, inner)"]  # fmt: skip
        return [*out, f"total = {D.product(dims)} // n"]

    def _walk(self, w: Writer, n: str, inner: str, inside: str, rows: int, width: int) -> None:
        a, frame, work = self.node.attrs, self.frame, tl_name(self.work)
        x, y = frame.pointer(self.x), frame.pointer(self.out)
        step = "" if inner == "1" else f" * {inner}"

        def place(s: str) -> str:
            return f"({n} - 1 - ({s})){step}" if a.reverse else f"({s}){step}"

        if a.exclusive:
            first = stored(f"tl.full(({rows}, 1), {self.unit}, {work})", self.out.dtype)
            w(f"tl.store({y} + base + {place('0')}, {first}, mask={inside})")
        w(f"carry = tl.full(({rows}, 1), {self.unit}, {work})")
        with w.block(f"for c in range(0, {n}, {width}):"):
            value = loaded("v", self.x.dtype)
            w(f"s = c + tl.arange(0, {width})[None, :]", f"m = (s < {n}) & {inside}",
              f"v = tl.load({x} + base + {place('s')}, mask=m, other={self.unit})",
              f"v = {value}")  # fmt: skip
            scan, op = ("cumsum", "+") if a.fn == "sum" else ("cumprod", "*")
            w(f"run = (carry {op} tl.{scan}(v, 1)).to({work})",
              f"last = tl.where(s == c + {width - 1}, run, 0)",
              f"carry = tl.sum(last, 1, keep_dims=True).to({work})")  # fmt: skip
            result = stored("run", self.out.dtype)
            if a.exclusive:
                w(f"tl.store({y} + base + {place('s + 1')}, {result}, mask=m & (s + 1 < {n}))")
            else:
                w(f"tl.store({y} + base + {place('s')}, {result}, mask=m)")
