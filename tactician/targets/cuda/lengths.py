"""Ops whose lengths are computed from numbers in device memory: ranges and one-hot vectors whose
operands are known only at run time. A kernel of one thread finds the length, which the host reads.
"""

from __future__ import annotations

from typing import Any

from ...ir import dims as D
from ...ir import dtypes as T
from ...ir.graph import Node, Value
from ...regions.region import Region
from ...tactics.kernel import Kernel, Launch
from ...tactics.tactic import Tactic, register_tactic
from .emit import Frame
from .lines import Lines, loaded, named, refuse_types, stored, working
from .product import Writer
from .types import tl_name

_BLOCK = 1024


@register_tactic
class LengthTactic(Tactic):
    """``range`` and ``one_hot`` of a length that depends on data."""

    name = "lengths"
    target = "cuda"
    timed = False

    def refuse(self, region: Region, device: Any) -> str | None:
        node = region.anchor
        if node is None or node.op not in ("range", "one_hot"):
            return "its length does not depend on numbers in memory"
        if region.stages:
            return f"{node.op} has no epilogue here"
        size = _length(node)
        if not isinstance(size, D.Dim) or size != D.sym(str(size)):
            return "its length is known"
        if node.op == "one_hot" and any(d == 0 for d in node.inputs[0].dims):  # type: ignore[union-attr]
            return "there is nothing to compute"
        return refuse_types([v for v in node.present_inputs() if v is not None], device.arch)

    def build(self, region: Region, candidate: Any, device: Any) -> Kernel:
        node = region.anchor
        assert node is not None
        total = Value("total", T.i64, (1,))
        frame, w = Frame(), Writer()
        (_range_length if node.op == "range" else _depth)(node, frame, w)
        w(f"tl.store({frame.pointer(total)}, n.to(tl.int64))")
        first = named("length", frame, w.lines, Launch(grid=(1,), warps=1))
        size = _length(node)
        assert isinstance(size, D.Dim)
        first.finds = total, (size,)
        kernel = _range(node) if node.op == "range" else _one_hot(node)
        kernel.before = (first,)
        return kernel


def _length(node: Node) -> D.DimLike:
    out = node.output
    return out.dims[node.attrs.axis % out.rank if node.op == "one_hot" else 0]


def _scalars(node: Node, frame: Frame, w: Writer) -> None:
    for name, v in zip(("start", "limit", "delta"), node.inputs, strict=True):
        assert v is not None
        w(f"{name} = tl.load({frame.pointer(v)})", f"{name} = {loaded(name, v.dtype)}")


def _range_length(node: Node, frame: Frame, w: Writer) -> None:
    _scalars(node, frame, w)
    if node.output.dtype.is_float:
        w("n = tl.ceil((limit.to(tl.float64) - start.to(tl.float64)) / delta.to(tl.float64))")
    else:  # rounded up, whatever the signs
        w("up = delta > 0", "span = (limit - start).to(tl.int64)",
          "span = tl.where(up, span, -span)", "step = tl.where(up, delta, -delta).to(tl.int64)",
          "n = (span + step - 1) // step")  # fmt: skip
    w("n = tl.maximum(n, 0)")


def _range(node: Node) -> Kernel:
    out, frame, w = node.output, Frame(), Writer()
    _scalars(node, frame, w)
    w(f"i = tl.program_id(0) * {_BLOCK} + tl.arange(0, {_BLOCK})",
      f"x = start + i.to({tl_name(working(out.dtype))}) * delta",
      f"tl.store({frame.pointer(out)} + i, {stored('x', out.dtype)}, "
      f"mask=i < {frame.size(out.dims[0])})")  # fmt: skip
    return named("range", frame, w.lines, Launch(grid=(D.ceil_div(out.dims[0], _BLOCK),), warps=4))


def _depth(node: Node, frame: Frame, w: Writer) -> None:
    depth = node.inputs[1]
    assert depth is not None
    w(f"n = tl.maximum(tl.load({frame.pointer(depth)}).to(tl.int64), 0)")


def _one_hot(node: Node) -> Kernel:
    idx, _, values = node.inputs[:3]
    assert idx is not None and values is not None
    out, frame, w = node.output, Frame(), Writer()
    lines = Lines.along(out, node.attrs.axis % out.rank)
    size = frame.size
    n, inner, v = size(lines.length), size(lines.inner), frame.pointer(values)
    # depths are compared in the indices' own type: 1.5 is no class
    kind = tl_name(working(idx.dtype))
    w(f"o = tl.program_id(0) * {_BLOCK} + tl.arange(0, {_BLOCK})", f"m = o < {size(out.numel)}",
      f"at = o // ({inner} * {n}) * {inner} + o % {inner}",
      f"k = tl.load({frame.pointer(idx)} + at, mask=m, other=0)",
      f"k = {loaded('k', idx.dtype)}",
      f"k = tl.where(k < 0, k + {n}, k).to({kind})",
      f"hit = k == (o // {inner} % {n}).to({kind})",
      f"x = tl.load({v} + hit.to(tl.int32), mask=m)",
      f"tl.store({frame.pointer(out)} + o, x, mask=m)")  # fmt: skip
    return named("onehot", frame, w.lines, Launch(grid=(D.ceil_div(out.numel, _BLOCK),), warps=4))


@register_tactic
class BitsTactic(Tactic):
    """``bit_cast``: a copy."""

    name = "bits"
    target = "cuda"

    def refuse(self, region: Region, device: Any) -> str | None:
        node = region.anchor
        if node is None or node.op != "bit_cast":
            return "not a cast of bits"
        if region.stages:
            return "bit_cast has no epilogue"
        x = node.inputs[0]
        assert x is not None
        if any(d == 0 for d in x.dims):
            return "there is nothing to compute"
        return refuse_types([x, node.output], device.arch)

    def build(self, region: Region, candidate: Any, device: Any) -> Kernel:
        node = region.anchor
        assert node is not None and node.inputs[0] is not None
        x, out, frame = node.inputs[0], node.output, Frame()
        kind = f"tl.pointer_type(tl.int{8 * x.dtype.size})"
        n = frame.size(x.numel)
        body = [
            f"o = tl.program_id(0) * {_BLOCK} + tl.arange(0, {_BLOCK})",
            f"x = tl.load({frame.pointer(x)}.to({kind}) + o, mask=o < {n})",
            f"tl.store({frame.pointer(out)}.to({kind}) + o, x, mask=o < {n})",
        ]
        launch = Launch(grid=(D.ceil_div(x.numel, _BLOCK),), warps=4)
        return named("bits", frame, body, launch)
