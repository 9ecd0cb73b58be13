"""Tactic: convolutions with few output channels, whose sums run along vectors.

Where fewer channels than a vector has lanes come out, a vector of them wastes the rest. Here the
lanes hold neighbouring inputs of one row of the window, which channels-last memory has side by
side: ``window * C`` numbers in one run. Each pixel of a register tile has a vector of partial
sums for every channel, and these are added across at the end; with one output channel as many
pixels as there are lanes are, so that the epilogue works on pixels side by side.

Floor per layer: ``2 * pixels * K * C * taps`` operations at the core's FMA peak, or for K = 1 one
load of the input per multiply-add.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import ir

from ...ir import dims as D
from ...ir.dtypes import f32
from ...ir.graph import Value
from ...ops._windows import Axis
from ...ops.conv import conv_axes, kernel_extents
from ...regions.region import Region
from ...regions.signature import signature
from ...tactics.kernel import Kernel, SourceCache
from ...tactics.tactic import Tactic, register_tactic
from .conv_common import (
    Epilogue,
    Problem,
    RuntimeSizes,
    argument,
    least,
    single,
    stored_otherwise,
    unsuited,
)
from .conv_ir import F32, I64, PTR, Loop, fused_multiply_add, load_lanes
from .folding import FoldingBuilder
from .isa import Isa
from .printer import text_of

_THREAD_FLOPS = 100_000  # see `conv_direct`
_COLUMNS = 512  # output pixels of a row that are one work item at most
_ROWS = 8  # rows of a work item at most: padded rows of the input are copied for each
_UNROLL = 4  # vectors of a run that are written out
_SOURCES = SourceCache()


@dataclass(frozen=True)
class Dots:
    """A candidate: ``pixels`` at a time, in items of so many rows and columns."""

    pixels: int
    lanes: int
    rows: int
    columns: int

    def __str__(self) -> str:
        return f"{self.pixels}px{self.rows}x{self.columns}"


@register_tactic
class DotConvolution(Tactic):
    """Convolution of channels-last f32 tensors to fewer channels than half a vector."""

    name = "conv_dots"
    target = "cpu"
    priority = 55

    def wants_channels_last(self, region: Region, device: Any) -> bool:
        return _unsuited(region, device) is None

    def refuse(self, region: Region, device: Any) -> str | None:
        why = _unsuited(region, device) or stored_otherwise(region)
        if why is not None:
            return why
        p = Problem(region)
        if p.by_image or len(p.axes) > 2:
            return "needs one or two spatial dimensions"
        return None if p.pitch == p.channels else "pixels of the input are not side by side"

    def candidates(self, region: Region, device: Any) -> Sequence[Hashable]:
        p, lanes = Problem(region), device.isa.lanes(32)
        return [
            Dots(pixels, lanes, rows, _columns(p))
            for pixels in _pixels(p, device.isa)
            for rows in sorted({_rows(p, device.threads), 1}, reverse=True)
        ]

    def build(self, region: Region, candidate: Any, device: Any) -> Kernel:
        return _Builder(Problem(region), candidate, device.isa).build()


def _unsuited(region: Region, device: Any) -> str | None:
    """Why no kernel of this kind can do the region whatever its layouts, or None."""
    why = unsuited(region, device)
    if why is not None:
        return why
    node = region.anchor
    assert node is not None
    x, w = node.inputs[0], node.inputs[1]
    assert x is not None and w is not None
    lanes, (k, c) = device.isa.lanes(32), w.dims[:2]
    if x.dtype is not f32:
        return f"an input of {x.dtype}"
    if node.attrs.groups > 1:
        return "channels come in groups"
    if 2 * k > lanes:
        return f"{k} channels fill vectors of {lanes}"
    axes = [a for a in conv_axes(x.dims[2:], kernel_extents(w), node.attrs) if not single(a)]
    if len(axes) > 2:
        return "needs one or two spatial dimensions"
    if axes and axes[-1].dilation != 1:
        return "inputs of a row of the window are not side by side"
    run = int(c) * (axes[-1].window if axes else 1)
    if run / (-(-run // lanes) * lanes) < 1.5 * int(k) / lanes:
        return f"runs of {run} inputs fill vectors of {lanes} hardly better than channels do"
    return None


def _pixels(p: Problem, isa: Isa) -> list[int]:
    """Pixels of register tiles, the most promising number first."""
    lanes, width = isa.lanes(32), p.axes[-1].out
    if p.k == 1:  # powers of two, which the sum across makes one vector of
        fit = [n for n in (lanes, lanes // 2, 4) if not isinstance(width, int) or n <= width]
        return fit[:2] or [1]
    room = isa.vector_registers - 1
    most = max(n for n in (1, 2, 3, 4, 6) if n * p.k + min(n, p.k) < room)
    if isinstance(width, int):
        most = min(most, max(width, 1))
    return sorted({most, max(1, most - 1)}, reverse=True)


def _columns(p: Problem) -> int:
    """Output pixels of a row in a work item; 0: all of them."""
    width = p.axes[-1].out
    if isinstance(width, int) and width <= _COLUMNS:
        return 0
    return _COLUMNS


def _rows(p: Problem, threads: int) -> int:
    """Output rows of a work item: several if their windows overlap and all threads get some."""
    if len(p.axes) < 2 or p.axes[0].window == 1:
        return 1
    height = p.axes[0].out
    if not isinstance(height, int):
        return _ROWS
    return max(1, min(_ROWS, height // (2 * threads)))


class _Builder:
    """Builds the kernel of one candidate."""

    def __init__(self, problem: Problem, t: Dots, isa: Isa):
        self.p, self.t, self.isa = problem, t, isa
        self.lanes, self.vt = t.lanes, ir.VectorType(F32, t.lanes)
        self.module = ir.Module("conv_dots")
        self.module.isa = isa  # conversions of types ask it
        self.sizes = RuntimeSizes()
        self.row, self.column = _two(problem)
        self.run = self.column.window * problem.c
        self.vectors = -(-self.run // t.lanes)
        region = problem.region
        self.x = region.physical.get(problem.x, problem.x)
        extra = [v for v in region.inputs if v not in (problem.w, problem.bias)]
        self.args: list[Value | np.ndarray] = [self.x, _pack(problem, t.lanes)]
        self.args += [v for v in extra if v is not self.x]
        self.args.append(problem.out)
        self.epilogue = Epilogue(problem, self.args, self.sizes)
        axes = self.row, self.column
        self.copies = any(a.pre for a in axes) or _reaches_beyond(*axes)
        self.tiles: dict[int, ir.Function] = {}

    def build(self) -> Kernel:
        p = self.p
        key = f"{self.isa.fingerprint} {self.t!r} {signature(p.region)}"
        source, dims = _SOURCES.get(key, self._generate)
        flops = p.images * D.product(a.out for a in p.axes) * (2 * p.k * p.c * p.shape.taps)
        work = p.images * self._row_blocks() * self._column_blocks()
        item = D.floor_div(flops, work)
        size = item if isinstance(item, int) else 2 * self.t.rows * p.k * p.c * p.shape.taps * 64
        return Kernel(
            symbol="conv_dots", source=source, args=tuple(self.args), dims=dims, work=work,
            grain=max(1, _THREAD_FLOPS // max(size, 1)), flops=flops,
            scratch=self._copied_rows() * self._copied_row() * 4 if self.copies else 0,
        )  # fmt: skip

    # --- sizes -----------------------------------------------------------------------------

    def _row_blocks(self) -> D.DimLike:
        return D.ceil_div(self.row.out, self.t.rows)

    def _item_columns(self) -> D.DimLike:
        return self.t.columns or self.column.out

    def _column_blocks(self) -> D.DimLike:
        return D.ceil_div(self.column.out, self.t.columns) if self.t.columns else 1

    def _copied_rows(self) -> int:
        """Input rows that an item reads."""
        a = self.row
        return int((self.t.rows - 1) * a.stride + (a.window - 1) * a.dilation + 1)

    def _copied_row(self) -> D.DimLike:
        """Numbers of an input row that an item reads."""
        a = self.column
        return ((self._item_columns() - 1) * a.stride + a.window) * self.p.c

    # --- code ------------------------------------------------------------------------------

    def _generate(self) -> tuple[str, tuple[D.DimLike, ...]]:
        types = [PTR, PTR, I64, I64, PTR]
        fn = ir.Function(self.module, ir.FunctionType(ir.VoidType(), types), "conv_dots")
        args, dims, begin, end, scratch = fn.args
        self.b = b = FoldingBuilder(fn.append_basic_block("entry"))
        self.fn_args, self.fn_dims, self.scratch = args, dims, scratch
        size = lambda d: self.sizes.value(b, dims, d)  # noqa: E731
        self.size = size
        self.source, self.weights = argument(b, args, 0), argument(b, args, 1)
        row_blocks, column_blocks = size(self._row_blocks()), size(self._column_blocks())
        with Loop(b, begin, end) as item:
            cb = b.srem(item.index, column_blocks)
            rest = b.sdiv(item.index, column_blocks)
            rb, image = b.srem(rest, row_blocks), b.sdiv(rest, row_blocks)
            self._item(image, b.mul(rb, I64(self.t.rows)), b.mul(cb, size(self._item_columns())))
        b.ret_void()
        return text_of(self.module), tuple(self.sizes.dims)

    def _item(self, image: Any, top: Any, left: Any) -> None:
        """All tiles of an item, which begins at the output pixel (``top``, ``left``)."""
        b, size = self.b, self.size
        width = size(self.column.out)
        bottom = least(b, b.add(top, I64(self.t.rows)), size(self.row.out))
        right = least(b, b.add(left, size(self._item_columns())), width)
        in_row = b.mul(size(self.column.size), I64(self.p.c))
        x = self._at(self.source, b.mul(image, b.mul(size(self.row.size), in_row)))
        first_row = b.sub(b.mul(top, I64(self.row.stride)), I64(self.row.pre))
        first = b.sub(b.mul(left, I64(self.column.stride)), I64(self.column.pre))
        if self.copies:
            self._copy_rows(x, in_row, first_row, first)
            x, pitch = self.scratch, size(self._copied_row())
        else:
            at = b.add(b.mul(first_row, in_row), b.mul(first, I64(self.p.c)))
            x, pitch = self._at(x, at), in_row
        with Loop(b, top, bottom) as row:
            down = b.mul(b.sub(row.index, top), I64(self.row.stride))
            line = self._at(x, b.mul(down, pitch))
            self._line(line, pitch, image, row.index, left, right)

    def _line(
        self, line: Any, pitch: Any, image: Any, y: Any, left: Any, right: Any
    ) -> None:
        """Tiles of one row: as many large ones as fit, then smaller ones."""
        b, start = self.b, left
        for pixels in self._tile_sizes():
            count = b.sdiv(b.sub(right, start), I64(pixels))
            stop = b.add(start, b.mul(count, I64(pixels)))
            with Loop(b, start, stop, pixels) as tile:
                across = b.mul(b.sub(tile.index, left), I64(self.column.stride * self.p.c))
                values = [self._at(line, across), pitch, self.weights, self.fn_args,
                          self.fn_dims, image, y, tile.index]  # fmt: skip
                b.call(self._tile(pixels), values)
            start = stop

    def _tile_sizes(self) -> list[int]:
        if self.p.k > 1:
            return sorted({self.t.pixels, 1}, reverse=True)
        return [1 << n for n in range(self.t.pixels.bit_length() - 1, -1, -1)]

    def _at(self, base: Any, floats: Any) -> Any:
        return self.b.gep(base, [floats], source_etype=F32)

    # --- rows with what surrounds them -------------------------------------------------------

    def _copy_rows(self, x: Any, in_row: Any, first_row: Any, first: Any) -> None:
        """Copies the item's part of the input into scratch memory, zeros where there is none."""
        b, pitch, c = self.b, self.size(self._copied_row()), I64(self.p.c)
        begin = b.mul(first, c)  # of the part, in the input's row
        zero = I64(0)
        before = _clamped(b, b.sub(zero, begin), zero, pitch)
        inside = _clamped(b, b.sub(in_row, begin), before, pitch)
        with Loop(b, zero, I64(self._copied_rows())) as row:
            y = b.add(first_row, row.index)
            to = self._at(self.scratch, b.mul(row.index, pitch))
            exists = b.icmp_unsigned("<", y, self.size(self.row.size))
            with b.if_else(exists) as (yes, no):
                with yes:
                    self._move(to, None, zero, before)
                    source = self._at(x, b.add(b.mul(y, in_row), begin))
                    self._move(to, source, before, inside)
                    self._move(to, None, inside, pitch)
                with no:
                    self._move(to, None, zero, pitch)

    def _move(self, to: Any, source: Any, start: Any, stop: Any) -> None:
        """Copies numbers ``start`` to ``stop`` of a row; without a source they become zero."""
        b, lanes = self.b, self.lanes
        whole = b.sub(stop, b.srem(b.sub(stop, start), I64(lanes)))
        for kind, a, z, step in ((self.vt, start, whole, lanes), (F32, whole, stop, 1)):
            with Loop(b, a, z, step) as at:
                value = ir.Constant(kind, None if kind is self.vt else 0.0)
                if source is not None:
                    value = b.load(self._at(source, at.index), align=4, typ=kind)
                b.store(value, self._at(to, at.index), align=4)

    # --- a register tile ---------------------------------------------------------------------

    def _tile(self, pixels: int) -> ir.Function:
        if pixels not in self.tiles:
            types = [PTR, I64, PTR, PTR, PTR, I64, I64, I64]
            kind = ir.FunctionType(ir.VoidType(), types)
            fn = ir.Function(self.module, kind, f"dots_{pixels}")
            fn.linkage = "internal"
            fn.attributes.add("noinline")
            self.tiles[pixels] = fn
            outer, self.b = self.b, FoldingBuilder(fn.append_basic_block("entry"))
            self._tile_body(fn, pixels)
            self.b = outer
        return self.tiles[pixels]

    def _tile_body(self, fn: ir.Function, pixels: int) -> None:
        b, k = self.b, self.p.k
        x, pitch, weights, args, dims, image, y, column = fn.args
        self.epilogue.enter(b, args)
        w = b.gep(weights, [I64(self.lanes)], source_etype=F32)  # behind the initial sums
        zeros = [ir.Constant(self.vt, None)] * (pixels * k)
        with Loop(b, I64(0), I64(self.row.window), carried=zeros) as row:
            line = self._at(x, b.mul(b.mul(row.index, I64(self.row.dilation)), pitch))
            step = self.vectors * k * self.lanes
            row.next(self._run(line, self._at(w, b.mul(row.index, I64(step))), list(row.carried)))
        sums = list(row.results)
        bias = b.load(weights, align=4, typ=self.vt)
        outer = [y] if len(self.p.axes) > 1 else []
        em = self.epilogue.at(b, dims, image, outer)
        if k == 1:
            total = b.fadd(self._across(sums), bias)
            self.epilogue.store_pixels(em, column, total, pixels)
        for i in range(pixels if k > 1 else 0):
            total = b.fadd(self._across(sums[i * k : i * k + k]), bias)
            self.epilogue.store(em, b.add(column, I64(i)), I64(0), total, k)
        b.ret_void()

    def _run(self, x: Any, w: Any, sums: list[Any]) -> list[Any]:
        """Adds the products of one row of the window."""
        b, whole = self.b, self.run // self.lanes
        turns = whole // _UNROLL if whole > 2 * _UNROLL else 0
        if turns:
            with Loop(b, I64(0), I64(turns * _UNROLL), _UNROLL, carried=sums) as loop:
                at = self._at(x, b.mul(loop.index, I64(self.lanes)))
                weights = self._at(w, b.mul(loop.index, I64(self.lanes * self.p.k)))
                loop.next(self._vectors(at, weights, range(_UNROLL), list(loop.carried)))
            sums = list(loop.results)
        return self._vectors(x, w, range(turns * _UNROLL, self.vectors), sums)

    def _vectors(self, x: Any, w: Any, which: range, sums: list[Any]) -> list[Any]:
        """Adds the products of some vectors of a run; the last may be shorter."""
        b, k, lanes = self.b, self.p.k, self.lanes
        step = self.column.stride * self.p.c
        fma = fused_multiply_add(self.module, self.vt)
        for v in which:
            count = min(lanes, self.run - v * lanes) if which.stop == self.vectors else lanes
            weights = [
                b.load(self._at(w, I64((v * k + j) * lanes)), align=4, typ=self.vt)
                for j in range(k)
            ]
            for i in range(len(sums) // k):
                a = load_lanes(b, self._at(x, I64(i * step + v * lanes)), self.vt, count)
                for j in range(k):
                    sums[i * k + j] = b.call(fma, [a, weights[j], sums[i * k + j]])
        return sums

    def _across(self, vectors: Sequence[Any]) -> Any:
        """One vector whose lanes are the sums of the lanes of each of the vectors, in order."""
        b, lanes = self.b, self.lanes
        left = list(vectors)
        while len(left) & (len(left) - 1):
            left.append(ir.Constant(self.vt, None))
        index = ir.VectorType(ir.IntType(32), lanes)
        pick = [
            ir.Constant(index, [2 * n + odd for n in range(lanes)]) for odd in range(2)
        ]  # of two vectors side by side
        width = lanes
        while width > 1:
            pairs = zip(left[::2], left[1::2], strict=True) if len(left) > 1 else [(left[0],) * 2]
            left = [
                b.fadd(*(b.shuffle_vector(one, other, p) for p in pick)) for one, other in pairs
            ]
            width //= 2
        return left[0]


def _two(p: Problem) -> tuple[Axis, Axis]:
    """The axes of rows and of columns."""
    if len(p.axes) == 2:
        return p.axes[0], p.axes[1]
    return Axis(size=1, out=1, pre=0, post=0, window=1, stride=1, dilation=1), p.axes[0]


def _reaches_beyond(*axes: Axis) -> bool:
    """Whether windows may reach beyond the end of the input."""
    for a in axes:
        last = (a.out - 1) * a.stride + (a.window - 1) * a.dilation + 1
        if not isinstance(last, int) or not isinstance(a.size, int) or last > a.size:
            return True
    return False


def _clamped(b: ir.IRBuilder, x: Any, low: Any, high: Any) -> Any:
    x = b.select(b.icmp_signed("<", x, low), low, x)
    return least(b, x, high)


def _pack(p: Problem, lanes: int) -> np.ndarray[Any, Any]:
    """Weights as ``[bias: lanes][rows of the window][vectors of a run][K][lanes]``, zero-padded.
    With one output channel its bias stands in all lanes."""
    w = p.w.const
    assert w is not None
    window = p.axes[-1].window
    rows = np.asarray(w, np.float32).reshape(p.k, p.c, -1, window).transpose(2, 0, 3, 1)
    runs = rows.reshape(rows.shape[0], p.k, window * p.c)
    vectors = -(-runs.shape[2] // lanes)
    full = np.zeros((runs.shape[0], p.k, vectors * lanes), np.float32)
    full[:, :, : runs.shape[2]] = runs
    body = full.reshape(runs.shape[0], p.k, vectors, lanes).transpose(0, 2, 1, 3)
    head = np.zeros(lanes, np.float32)
    if p.bias is not None:
        assert p.bias.const is not None
        head[: lanes if p.k == 1 else p.k] = p.bias.const
    return np.concatenate([head, body.reshape(-1)])
