"""Tactic: convolutions to few channels together with the pooling behind them.

As `conv_rows`; but an item's results go to scratch, which the first cache holds mostly, and are
pooled from there. So the convolution's results are never written, one step less is run, and where
windows overlap a few rows are computed twice. Pooling may be any that the compute language says.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

from llvmlite import ir

from ...ir import dims as D
from ...ir import expr as E
from ...ir.graph import Value
from ...ops._windows import Axis
from ...ops.pooling import pool_axes
from ...regions.region import Region, is_slice
from ...tactics.kernel import Kernel
from ...tactics.tactic import Tactic, register_tactic
from .conv_common import Problem, argument, least
from .conv_ir import I64, Loop
from .conv_rows import RowConvolution, copy_cycles, kernel_of, pack, row_cycles, tiles
from .conv_rows_ir import Builder, Rows, source_of
from .emitter import Emitter

_PLAIN = RowConvolution()
_MOST_COPIED = 3  # see `conv_rows`
_WRITTEN_OUT = 16  # elements of a window that are written out at most
_MOST_AGAIN = 1.1  # times as many rows may be computed as there are
_MOST = 4  # candidates
_ALIGNED = 64


@register_tactic
class PooledRowConvolution(Tactic):
    """Convolution of f32 tensors to few channels, then pooling."""

    name = "conv_rows_pool"
    target = "cpu"
    priority = 45
    joins = True

    def takes_head(self, first: Region, rest: Region, device: Any) -> bool:
        return _refused(first, rest, device) is None

    def refuse(self, region: Region, device: Any) -> str | None:
        if len(region.parts) != 2:
            return "one layer"
        first, rest = region.parts
        return _refused(first, rest, device)

    def candidates(self, region: Region, device: Any) -> Sequence[Hashable]:
        first, rest = region.parts
        return _choices(first, rest, device)[:_MOST]

    def build(self, region: Region, candidate: Any, device: Any) -> Kernel:
        first, rest = region.parts
        p = Problem(first)
        builder = PooledBuilder(p, candidate, device.isa, pack(p, candidate), rest)
        return kernel_of(builder, region, device)


def _refused(first: Region, rest: Region, device: Any) -> str | None:
    why = _PLAIN.refuse(first, device) or _unsuited(first, rest)
    return why or (None if _choices(first, rest, device) else "few rows fit near, or too often")


def _unsuited(first: Region, rest: Region) -> str | None:
    """Why the second region is not pooling of what the first one, a convolution, computes."""
    node = rest.nodes[0]
    if rest.anchor is not None or node.op != "pooling" or len(rest.stages) != 1:
        return "no pooling behind it"
    (y,) = first.outputs
    loads = [ld for ld in E.loads(rest.stages[0].expr) if ld.value is y]
    if not loads or node.inputs[0] is not y.meta.get("logical", y):
        return "pooling of something else"
    if len(rest.outputs) != 1 or is_slice(y):
        return "results lie elsewhere"
    p = Problem(first)
    if len(p.axes) != 2 or p.order != [0, 1] or len(node.attrs.window) != 2:
        return "needs two spatial dimensions"
    sizes = (*first.outputs[0].dims, *rest.outputs[0].dims, *p.x.dims)
    if not all(isinstance(d, int) for d in sizes):
        return "sizes are known only at run time"
    return None


def _pooling(rest: Region) -> tuple[Axis, Axis]:
    """How windows lie along rows and columns."""
    node = rest.nodes[0]
    x = node.inputs[0]
    assert x is not None
    row, column = pool_axes(x.dims[2:], node.attrs)
    return row, column


def _needed(row: Axis, pooled: int) -> int:
    """Rows of the convolution that so many pooled rows read."""
    return (pooled - 1) * row.stride + row.span


def _choices(first: Region, rest: Region, device: Any) -> list[Rows]:
    """Candidates, most promising first."""
    p, (row, _) = Problem(first), _pooling(rest)
    found = []
    for t in tiles(p, device.isa):
        sized = _sized(p, row, t, device)
        if sized is not None:
            found.append(sized)
    found.sort(key=lambda f: f[0])
    return [t for _, t in found]


def _sized(p: Problem, row: Axis, t: Rows, device: Any) -> tuple[float, Rows] | None:
    """A tile with rows of an item so that the busiest thread is done first, and its cycles."""
    source, room = source_of(p, t), device.isa.l2 // _MOST_COPIED
    one = p.k * int(p.axes[1].out) * 4  # type: ignore[arg-type]
    compute, copy = row_cycles(p, t, device), copy_cycles(p, t)
    best: tuple[float, Rows] | None = None
    pooled_rows, images = int(row.out), int(p.images)  # type: ignore[arg-type]
    for pooled in range(1, pooled_rows + 1):
        rows = -(-_needed(row, pooled) // t.share)
        if source.rows(rows) * int(source.row_bytes) + _needed(row, pooled) * one > room:  # type: ignore[arg-type]
            break
        if _needed(row, pooled) > _MOST_AGAIN * pooled * row.stride and pooled < pooled_rows:
            continue
        busiest = -(-images * -(-pooled_rows // pooled) // device.threads)
        cycles = busiest * (rows * compute + source.rows(rows) * copy)
        if best is None or cycles <= best[0]:
            best = cycles, replace(t, rows=rows, pooled=pooled)
    return best


class PooledBuilder(Builder):
    """Builds the kernel of one candidate.

    Args:
        rest: The region of the pooling.
    """

    symbol = "conv_rows_pool"

    def __init__(self, problem: Problem, t: Rows, isa: Any, packed: Any, rest: Region):
        super().__init__(problem, t, isa, packed)
        self.made, self.stage = problem.out, rest.stages[0]
        self.window, self.window_across = _pooling(rest)
        extra = [v for v in rest.inputs if v is not self.made and v not in self.args[:-1]]
        self.args[-1:] = [*extra, self.stage.out]

    def _needed(self) -> int:
        return _needed(self.window, self.t.pooled)

    def _line_size(self) -> int:
        """Numbers of a row of the convolution's results."""
        return self.p.k * int(self.column.out)  # type: ignore[arg-type]

    def _copied(self) -> int:
        """Bytes of scratch before the results."""
        return -(-int(super().scratch()) // _ALIGNED) * _ALIGNED  # type: ignore[arg-type]

    def scratch(self) -> D.DimLike:
        return self._copied() + self._needed() * self._line_size() * 4

    def row_blocks(self) -> D.DimLike:
        return D.ceil_div(self.window.out, self.t.pooled)

    def bounds(self, number: Any) -> tuple[Any, Any]:
        b, pre = self.b, I64(int(self.window.pre))  # type: ignore[arg-type]
        first = b.sub(b.mul(number, I64(self.t.pooled * self.window.stride)), pre)
        end = least(b, b.add(first, I64(self._needed())), self.size(self.row.out))
        return b.select(b.icmp_signed(">", first, I64(0)), first, I64(0)), end

    def results(self, image: Any, top: Any) -> Any:
        """Where the results would begin if the image's rows before ``top`` were in scratch, too."""
        b = self.b
        rows = b.add(b.mul(image, self.size(self.row.out)), top)
        back = b.sub(I64(self._copied() // 4), b.mul(rows, I64(self._line_size())))
        return self._at(self.fn_scratch, back)

    def enter(self, fn: ir.Function) -> None:
        super().enter(fn)
        self.epilogue.place(self.made, fn.args[9])

    def finish(self, image: Any, number: Any, results: Any) -> None:
        b = self.b
        pointers = {
            v: argument(b, self.fn_args, i)
            for i, v in enumerate(self.args) if isinstance(v, Value)
        } | {self.made: results}  # fmt: skip
        first = b.mul(number, I64(self.t.pooled))
        last = least(b, b.add(first, I64(self.t.pooled)), self.size(self.window.out))
        expr = written_out(self.stage.expr)
        with Loop(b, first, last) as y, Loop(b, I64(0), self.size(self.window_across.out)) as x:
            for k, width in _pieces(self.p.k, self.t.lanes):
                em = Emitter(b, pointer=pointers.__getitem__, size=self.size)
                self._bind(em, [image, I64(k), y.index, x.index], width)
                em.store(self.stage, em.emit(expr))

    def _bind(self, em: Emitter, index: list[Any], width: int) -> None:
        """Gives the pooling's variables their values; the channel's goes along the lanes."""
        variables = list(self.stage.vars)
        if "logical" in self.stage.out.meta:  # image, row, column, channel
            index = [index[0], index[2], index[3], index[1]]
        channel = variables[-1 if "logical" in self.stage.out.meta else 1]
        for v, at in zip(variables, index, strict=True):
            em.bind(v, at, width=width if v is channel and width > 1 else 0)


def _pieces(count: int, lanes: int) -> list[tuple[int, int]]:
    """Runs of channels as first ones and lanes, powers of two."""
    found, at = [], 0
    while at < count:
        while lanes > count - at:
            lanes //= 2
        found.append((at, lanes))
        at += lanes
    return found


def written_out(e: E.Expr) -> E.Expr:
    """An expression whose small sums and extremes over windows are spelled out."""
    combine = {"sum": "add", "max": "max", "min": "min"}

    def visit(x: E.Expr) -> E.Expr | None:
        if not isinstance(x, E.Reduce) or x.fn not in combine:
            return None
        extents = [v.extent for v in x.vars if isinstance(v.extent, int)]
        if len(extents) < len(x.vars) or math.prod(extents) > _WRITTEN_OUT:
            return None
        places: list[dict[E.Var, E.Expr]] = [{}]
        for v, extent in zip(x.vars, extents, strict=True):
            places = [{**env, v: E.idx(n)} for env in places for n in range(extent)]
        total: E.Expr | None = None
        for env in places:
            term = E.substitute(x.body, env)
            total = term if total is None else E.binary(combine[x.fn], total, term)
        return total

    return E.rewrite(e, visit)
