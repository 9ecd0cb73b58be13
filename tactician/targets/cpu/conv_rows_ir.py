"""LLVM IR of convolutions whose vectors hold a few channels of several output rows.

An item is ``share * rows`` output rows: sharing row ``j`` stands for output rows
``top + j * rows`` and so many after it, so that few rows of the input are copied more than once.
Row ``i`` of the copy holds, number by number, row ``i`` of what each sharing row reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import ir

from ...ir import dims as D
from ...ir.graph import Value
from ...ops._windows import Axis
from .conv_common import Epilogue, Problem, RuntimeSizes, argument, least
from .conv_ir import F32, I32, I64, PTR, Loop, fused_multiply_add
from .emitter import Shifted
from .folding import FoldingBuilder
from .isa import Isa
from .vecmath import fence


@dataclass(frozen=True)
class Rows:
    """A candidate.

    Attributes:
        share: Output rows that share a vector.
        pixels: Columns of a register tile.
        vectors: Vectors of a register tile's pixel.
        taps: Taps of a row of the window that are done at once.
        lanes: Of a vector.
        rows: Rows of a work item for each that shares a vector.
        pooled: Rows of pooled results of an item, if results are pooled.
    """

    share: int
    pixels: int
    vectors: int
    taps: int
    lanes: int
    rows: int
    pooled: int = 0

    def __str__(self) -> str:
        text = f"{self.pixels}x{self.vectors} of {self.share} rows, {self.taps} taps, r{self.rows}"
        return f"{text}, {self.pooled} pooled" if self.pooled else text

    @property
    def each(self) -> int:
        """Channels of a vector."""
        return self.lanes // self.share

    @property
    def channels(self) -> int:
        """Channels of a block."""
        return self.vectors * self.each

    def groups(self, window: int) -> list[tuple[int, int]]:
        """First tap and number of taps of what is done at once."""
        return [(n, min(self.taps, window - n)) for n in range(0, window, self.taps)]

    def places(self, taps: int, column: Axis) -> dict[int, list[tuple[int, int]]]:
        """By input column, which pixels of a tile see it at which of so many taps."""
        found: dict[int, list[tuple[int, int]]] = {}
        for i in range(self.pixels):
            for tap in range(taps):
                place = i * column.stride + tap * column.dilation
                found.setdefault(place, []).append((i, tap))
        return dict(sorted(found.items()))


@dataclass(frozen=True)
class Source:
    """Where register tiles read the input: where it is, or in a copy. Distances in floats.

    Attributes:
        copies: Whether the input is copied.
        planes: Runs of numbers that a row of the copy consists of: one with all channels of its
            pixels, or one for each channel.
        length: Numbers of a plane for each sharing row.
        pitch: Between rows.
        column, channel: Between neighbouring columns and channels.
        window, stride, dilation: Of the rows.
    """

    copies: bool
    planes: int
    length: D.DimLike
    pitch: D.DimLike
    column: int
    channel: D.DimLike
    window: int
    stride: int
    dilation: int

    @staticmethod
    def axes(p: Problem) -> tuple[Axis, Axis]:
        """The axes of rows and of columns."""
        if len(p.axes) == 2:
            return p.axes[0], p.axes[1]
        return Axis(size=1, out=1, pre=0, post=0, window=1, stride=1, dilation=1), p.axes[0]

    def rows(self, n: int) -> int:
        """Rows that so many output rows read."""
        return (n - 1) * self.stride + (self.window - 1) * self.dilation + 1

    @property
    def row_bytes(self) -> D.DimLike:
        """Of a row of the copy."""
        return self.pitch * 4 if self.copies else 0


def source_of(p: Problem, t: Rows) -> Source:
    """Where a candidate reads the input."""
    row, column = Source.axes(p)
    last = p.x_channel == 1
    rest = (row.window, row.stride, row.dilation)
    padded = any(a.pre for a in (row, column)) or any(a.past_end for a in (row, column))
    if t.share == 1 and not padded:
        if last:
            return Source(False, 1, 0, column.size * p.c, p.c, 1, *rest)
        return Source(False, p.c, 0, column.size, 1, row.size * column.size, *rest)
    width = (column.out - 1) * column.stride + column.span
    q = t.share
    if last:
        return Source(True, 1, width * p.c, width * (p.c * q), p.c * q, q, *rest)
    return Source(True, p.c, width, width * (p.c * q), q, width * q, *rest)


class Builder:
    """Builds the kernel of one candidate.

    Attributes:
        symbol: Names the kernel.
        args: What its pointer arguments are.
    """

    symbol = "conv_rows"

    def __init__(self, problem: Problem, t: Rows, isa: Isa, packed: np.ndarray[Any, Any]):
        self.p, self.t = problem, t
        self.vt = ir.VectorType(F32, t.lanes)
        self.module = ir.Module(self.symbol)
        self.module.isa = isa  # conversions of types ask it
        self.sizes = RuntimeSizes()
        self.row, self.column = Source.axes(problem)
        self.source = source_of(problem, t)
        self.block_size = packed.shape[1]
        region = problem.region
        self.x = region.physical.get(problem.x, problem.x)
        extra = [v for v in region.inputs if v not in (problem.w, problem.bias)]
        self.args: list[Value | np.ndarray[Any, Any]] = [self.x, packed]
        self.args += [v for v in extra if v is not self.x]
        self.args.append(problem.out)
        self.epilogue = Epilogue(problem, self.args, self.sizes)
        self.tiles: dict[tuple[int, int], ir.Function] = {}

    def work(self) -> D.DimLike:
        """Number of items."""
        return self.p.images * self.row_blocks()

    def scratch(self) -> D.DimLike:
        """Bytes of scratch: the copy, and a row of zeros for what is above and below."""
        if not self.source.copies:
            return 0
        return self.source.row_bytes * self._copied_rows() + self._source_row() * 4

    def row_blocks(self) -> D.DimLike:
        """Number of items of an image."""
        return D.ceil_div(self.row.out, self.t.rows * self.t.share)

    def bounds(self, number: Any) -> tuple[Any, Any]:
        """First output row of an item, and the first behind it."""
        top = self.b.mul(number, I64(self.t.rows * self.t.share))
        return top, self.size(self.row.out)

    def results(self, image: Any, top: Any) -> Any:
        """What tiles are told of where results go, for an item."""
        return ir.Constant(PTR, None)

    def enter(self, fn: ir.Function) -> None:
        """Loads addresses in a tile's first block."""
        self.epilogue.enter(self.b, fn.args[2])

    def finish(self, image: Any, number: Any, results: Any) -> None:
        """What is left to do when all tiles of an item are done."""

    def _copied_rows(self) -> int:
        return self.source.rows(self.t.rows)

    def _source_row(self) -> D.DimLike:
        """Numbers of one plane of an input row."""
        return self.column.size * (self.p.c if self.source.planes == 1 else 1)

    # --- items -------------------------------------------------------------------------------

    def generate(self) -> tuple[str, tuple[D.DimLike, ...]]:
        """The kernel's text and what its scalar arguments are."""
        types = [PTR, PTR, I64, I64, PTR]
        fn = ir.Function(self.module, ir.FunctionType(ir.VoidType(), types), self.symbol)
        args, dims, begin, end, scratch = fn.args
        self.b = b = FoldingBuilder(fn.append_basic_block("entry"))
        self.fn_args, self.fn_dims, self.fn_scratch = args, dims, scratch
        self.size = lambda d: self.sizes.value(self.b, dims, d)
        self.x_at, self.weights = argument(b, args, 0), argument(b, args, 1)
        if self.source.copies:
            self.copy = scratch
            rows = I64(self._copied_rows())
            self.zeros = self._at(scratch, b.mul(rows, self.size(self.source.pitch)))
            self._fill(self.zeros, I64(0), self.size(self._source_row()))
        blocks = self.size(self.row_blocks())
        with Loop(b, begin, end) as item:
            self._item(b.sdiv(item.index, blocks), b.srem(item.index, blocks))
        b.ret_void()
        return str(self.module), tuple(self.sizes.dims)

    def _item(self, image: Any, number: Any) -> None:
        b, p, t, size = self.b, self.p, self.t, self.size
        top, end = self.bounds(number)
        results = self.results(image, top)
        in_row = b.mul(size(self.column.size), I64(p.c))
        x = self._at(self.x_at, b.mul(image, b.mul(size(self.row.size), in_row)))
        if self.source.copies:
            self._copy_rows(x, top)
            x = self.copy
        else:
            down = b.mul(top, I64(self.row.stride))
            x = self._at(x, b.mul(down, size(self.source.pitch)))
        rows = least(b, I64(t.rows), b.sub(end, top))
        whole, rest = divmod(p.k, t.channels)
        for count, first, last in ((t.channels, 0, whole), (rest, whole, whole + bool(rest))):
            if first == last:
                continue
            with Loop(b, I64(first), I64(last)) as block, Loop(b, I64(0), rows) as row:
                w = self._at(self.weights, b.mul(block.index, I64(self.block_size)))
                k = b.mul(block.index, I64(t.channels))
                down = b.mul(row.index, I64(self.row.stride))
                line = self._at(x, b.mul(down, size(self.source.pitch)))
                at = [image, b.add(top, row.index), end, results]
                self._line(line, w, k, count, at)
        self.finish(image, number, results)

    def _line(self, line: Any, w: Any, k: Any, channels: int, where: list[Any]) -> None:
        """Tiles of one row: the last begins where a whole one fits; where the width is known only
        at run time, single pixels follow the whole ones."""
        b, width, pixels = self.b, self.column.out, self.t.pixels
        step = self.column.stride * self.source.column

        def call(count: int, column: Any) -> None:
            at = self._at(line, b.mul(column, I64(step)))
            values = [at, w, self.fn_args, self.fn_dims, column, k, *where]
            b.call(self._tile(count, channels), values)

        if isinstance(width, int):
            with Loop(b, I64(0), I64(-(-width // pixels))) as tile:
                call(pixels, least(b, b.mul(tile.index, I64(pixels)), I64(width - pixels)))
            return
        end = self.size(width)
        whole = b.sub(end, b.srem(end, I64(pixels)))
        with Loop(b, I64(0), whole, pixels) as tile:
            call(pixels, tile.index)
        if pixels > 1:
            with Loop(b, whole, end) as tile:
                call(1, tile.index)

    def _at(self, base: Any, floats: Any) -> Any:
        return self.b.gep(base, [floats], source_etype=F32)

    # --- the copy ------------------------------------------------------------------------------

    def _copy_rows(self, x: Any, top: Any) -> None:
        """Copies what the item reads, zeros where there is nothing."""
        b, s, q = self.b, self.source, self.t.share
        length, plane = self.size(s.length), self.size(self._source_row())
        pre = self.column.pre * (self.p.c if s.planes == 1 else 1)
        before = least(b, I64(int(pre)), length)  # type: ignore[arg-type]
        inside = least(b, b.add(plane, before), length)
        step, first = self.row.stride, b.sub(b.mul(top, I64(self.row.stride)), I64(self.row.pre))
        apart = I64(self.t.rows * step)
        with Loop(b, I64(0), I64(self._copied_rows())) as row, \
                Loop(b, I64(0), I64(s.planes)) as plane_loop:  # fmt: skip
            rows = []
            for j in range(q):
                y = b.add(b.add(first, row.index), b.mul(apart, I64(j)))
                exists = b.icmp_unsigned("<", y, self.size(self.row.size))
                image = b.mul(plane_loop.index, self.size(self.row.size))
                real = self._at(x, b.mul(b.add(image, y), plane))
                rows.append(b.select(exists, real, self.zeros))
            to = b.add(b.mul(row.index, I64(s.planes)), plane_loop.index)
            to = self._at(self.copy, b.mul(to, b.mul(length, I64(q))))
            self._fill(to, I64(0), b.mul(before, I64(q)))
            self._interleave(self._at(to, b.mul(before, I64(q))), rows, b.sub(inside, before))
            self._fill(to, b.mul(inside, I64(q)), b.mul(length, I64(q)))

    def _fill(self, to: Any, start: Any, stop: Any) -> None:
        """Zeros from number ``start`` to ``stop``."""
        b, lanes = self.b, self.t.lanes
        whole = b.sub(stop, b.srem(b.sub(stop, start), I64(lanes)))
        for kind, a, z, step in ((self.vt, start, whole, lanes), (F32, whole, stop, 1)):
            with Loop(b, a, z, step) as at:
                zero = ir.Constant(kind, None if kind is self.vt else 0.0)
                b.store(zero, self._at(to, at.index), align=4)

    def _interleave(self, to: Any, rows: list[Any], count: Any) -> None:
        """Writes the rows number by number: vectors of them, then single ones."""
        b, lanes, q = self.b, self.t.lanes, self.t.share
        whole = b.sub(count, b.srem(count, I64(lanes)))
        with Loop(b, I64(0), whole, lanes) as at:
            loads = [b.load(self._at(r, at.index), align=4, typ=self.vt) for r in rows]
            place = self._at(to, b.mul(at.index, I64(q)))
            for n, v in enumerate(_interleaved(b, loads)):
                b.store(v, self._at(place, I64(n * lanes)), align=4)
        with Loop(b, whole, count) as at:
            place = self._at(to, b.mul(at.index, I64(q)))
            for j, r in enumerate(rows):
                b.store(b.load(self._at(r, at.index), typ=F32), self._at(place, I64(j)))

    # --- a register tile -----------------------------------------------------------------------

    def _tile(self, pixels: int, channels: int) -> ir.Function:
        if (pixels, channels) not in self.tiles:
            kind = ir.FunctionType(ir.VoidType(), [PTR] * 4 + [I64] * 5 + [PTR])
            fn = ir.Function(self.module, kind, f"rows_{pixels}x{channels}")
            fn.linkage = "internal"
            fn.attributes.add("noinline")
            self.tiles[pixels, channels] = fn
            outer = self.b, self.size
            self.b = FoldingBuilder(fn.append_basic_block("entry"))
            self.size = lambda d: self.sizes.value(self.b, fn.args[3], d)
            self._tile_body(fn, pixels, channels)
            self.b, self.size = outer
        return self.tiles[pixels, channels]

    def _tile_body(self, fn: ir.Function, pixels: int, channels: int) -> None:
        b, t, p = self.b, self.t, self.p
        x, w = fn.args[:2]
        nv = -(-channels // t.each)
        self.enter(fn)
        self.pitch, self.apart = self.size(self.source.pitch), self.size(self.source.channel)
        sums = [ir.Constant(self.vt, None)] * nv
        if p.bias is not None:
            sums = [self._vector(w, v * t.lanes) for v in range(nv)]
            w = self._at(w, I64(t.vectors * t.lanes))
        step = self.column.window * p.c * t.vectors * t.lanes
        first, last = self._window_rows(fn.args[7])
        with Loop(b, first, last, carried=sums * pixels) as row:
            line = self._at(x, b.mul(b.mul(row.index, I64(self.row.dilation)), self.pitch))
            weights = self._at(w, b.mul(row.index, I64(step)))
            row.next(self._row_of_taps(line, weights, list(row.carried), pixels, nv))
        self._store(list(row.results), fn, pixels, channels)
        b.ret_void()

    def _window_rows(self, y: Any) -> tuple[Any, Any]:
        """Which rows of the window to go through: with a single sharing row those outside the
        input can be left out."""
        b, a = self.b, self.row
        if self.t.share > 1 or a.dilation > 1 or a.window == 1:
            return I64(0), I64(a.window)
        above = b.sub(I64(int(a.pre)), b.mul(y, I64(a.stride)))  # type: ignore[arg-type]
        first = b.select(b.icmp_signed(">", above, I64(0)), above, I64(0))
        return first, least(b, I64(a.window), b.add(self.size(a.size), above))

    def _row_of_taps(
        self, x: Any, w: Any, sums: list[Any], pixels: int, nv: int
    ) -> list[Any]:
        """Adds the products of one row of the window."""
        b, t, c = self.b, self.t, self.p.c
        for first, count in t.groups(self.column.window):
            at = self._at(x, I64(first * self.column.dilation * self.source.column))
            vectors = count * t.vectors * t.lanes
            if c == 1:
                if first:  # else inputs that groups share would take the registers of sums
                    fence(b)
                sums = self._slide(at, w, sums, pixels, nv, count)
            else:
                with Loop(b, I64(0), I64(c), carried=sums) as loop:
                    here = self._at(at, b.mul(loop.index, self.apart))
                    weights = self._at(w, b.mul(loop.index, I64(vectors)))
                    carried = list(loop.carried)
                    loop.next(self._slide(here, weights, carried, pixels, nv, count))
                sums = list(loop.results)
            w = self._at(w, I64(vectors * c))
        return sums

    def _slide(
        self, x: Any, w: Any, sums: list[Any], pixels: int, nv: int, taps: int
    ) -> list[Any]:
        """Adds the products of a channel: every input is read once for all taps that see it."""
        b, t, sums = self.b, self.t, list(sums)
        fma = fused_multiply_add(self.module, self.vt)
        weights = [
            [self._vector(w, (tap * t.vectors + v) * t.lanes) for v in range(nv)]
            for tap in range(taps)
        ]
        for place, seen in t.places(taps, self.column).items():
            seen = [(i, tap) for i, tap in seen if i < pixels]
            if not seen:
                continue
            value = self._spread(self._at(x, I64(place * self.source.column)))
            for i, tap in seen:
                for v in range(nv):
                    n = i * nv + v
                    sums[n] = b.call(fma, [value, weights[tap][v], sums[n]])
        return sums

    def _vector(self, base: Any, at: int) -> Any:
        return self.b.load(self._at(base, I64(at)), align=4, typ=self.vt)

    def _spread(self, at: Any) -> Any:
        """What the sharing rows have side by side, again and again."""
        q = self.t.share
        few = ir.VectorType(F32, q)
        value = self.b.load(at, align=4, typ=few)
        return _picked(self.b, value, value, [lane % q for lane in range(self.t.lanes)])

    # --- results ---------------------------------------------------------------------------------

    def _store(self, sums: list[Any], fn: ir.Function, pixels: int, channels: int) -> None:
        """The epilogue, row by row of those that share vectors and exist."""
        b, t = self.b, self.t
        dims, column, k, image, y, end = fn.args[3:9]
        nv = len(sums) // pixels
        outer = len(self.p.axes) > 1
        for j in range(t.share):
            row = b.add(y, I64(j * t.rows))
            with b.if_then(b.icmp_signed("<", row, end)):
                em = self.epilogue.at(b, dims, image, [row] if outer else [])
                for i in range(pixels):
                    pieces = self._of_row(sums[i * nv : i * nv + nv], j)
                    for n, piece in enumerate(pieces):
                        first = n * piece.type.count
                        self.epilogue.store(
                            em, Shifted(column, i), Shifted(k, first), piece, channels - first
                        )

    def _of_row(self, vectors: Sequence[Any], j: int) -> list[Any]:
        """The channels of one of the sharing rows, as few vectors of equal size."""
        t, b = self.t, self.b
        if t.share == 1:
            return list(vectors)
        at_once = next(n for n in (8, 4, 2, 1) if len(vectors) % n == 0 and n <= t.share)
        own = [c * t.share + j for c in range(t.each)]
        pieces = []
        for n in range(0, len(vectors), at_once):
            group = [_picked(b, v, v, own) for v in vectors[n : n + at_once]]
            while len(group) > 1:
                size = 2 * group[0].type.count
                group = [
                    _picked(b, one, other, list(range(size)))
                    for one, other in zip(group[::2], group[1::2], strict=True)
                ]
            pieces += group
        return pieces


def _picked(b: ir.IRBuilder, x: Any, y: Any, lanes: list[int]) -> Any:
    index = ir.Constant(ir.VectorType(I32, len(lanes)), lanes)
    return b.shuffle_vector(x, y, index)


def _interleaved(b: ir.IRBuilder, rows: list[Any]) -> list[Any]:
    """Vectors that hold the first numbers of all rows, then the second ones, and so on."""
    if len(rows) == 1:
        return rows
    lanes, half = rows[0].type.count, len(rows) // 2
    out = []
    evens, odds = _interleaved(b, rows[0::2]), _interleaved(b, rows[1::2])
    for one, other in zip(evens, odds, strict=True):
        for start in (0, lanes // 2):
            pick = [start + n // 2 + (n % 2) * lanes for n in range(lanes)]
            out.append(_picked(b, one, other, pick))
    assert len(out) == 2 * half
    return out
