"""Tactic: direct convolution on channels-last tensors, with fused epilogue.

Floor per layer: ``2 * pixels * K * C * taps`` operations at the core's FMA peak. The tile function
does little else: per channel of a tap one vector load of weights per vector of outputs and one
broadcast load per pixel feed ``mr * nv`` fused multiply-adds.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from llvmlite import ir

from ...ir import dims as D
from ...ir.graph import Value
from ...regions.region import Region
from ...regions.signature import signature
from ...tactics.kernel import Kernel, SourceCache
from ...tactics.tactic import Tactic, register_tactic
from . import convert
from .conv_common import Epilogue, Problem, RuntimeSizes, argument, least, stored_last, unsuited
from .conv_ir import F32, I64, PTR, Loop, MicroKernel, Stream, Tile
from .emitter import Shifted
from .folding import FoldingBuilder
from .isa import Isa
from .packing import pack_windows
from .printer import text_of

_THREAD_FLOPS = 100_000  # some 3 µs of work: a spinning worker begins within half a µs
_FLAT_TILES = 16  # most tiles in a row of a flattened 1x1 convolution
_ROW_PIXELS = 64  # about as many pixels are a work item otherwise


_MOST_EXTRA = 0.02  # of the pixels, that may be computed twice
_SHARING = 4  # tiles that share a panel of weights, from which on they ask for the next one
_L2_RATE = 28  # bytes a cycle that were measured
_NEAR_BYTES = 256 << 10  # results so small are in the second cache still
_FAR_WEIGHTS = 4 << 20  # bytes of weights that come from memory all the time
_AGAIN = 0.1  # time that reading them once more takes, as a share
_SOURCES = SourceCache()


@register_tactic
class DirectConvolution(Tactic):
    """Convolution of channels-last tensors in f32, f16 or bf16 with constant weights."""

    name = "conv_direct"
    target = "cpu"
    priority = 50

    def wants_channels_last(self, region: Region, device: Any) -> bool:
        return unsuited(region, device) is None

    def refuse(self, region: Region, device: Any) -> str | None:
        why = unsuited(region, device)
        if why is None and not all(map(stored_last, region.outputs)):
            why = "the result is not stored channels-last"
        return why

    def candidates(self, region: Region, device: Any) -> Sequence[Hashable]:
        return _tiles(Problem(region), device)

    def build(self, region: Region, candidate: Any, device: Any) -> Kernel:
        return Builder(Problem(region), candidate, device.isa).build()


def _tiles(p: Problem, device: Any) -> list[Tile]:
    """Register tiles that fit the machine, most promising first."""
    lanes = device.isa.lanes(32)
    shapes = _shapes(p, device.isa)
    fit = [
        (mr, nv) for mr, nv in shapes if (p.k // p.groups) % (nv * lanes) in _tails(p, nv, lanes)
    ]
    fit.sort(
        key=lambda s: (1.0 if _few(p) else cycles_of(p, s[0], s[1], device.isa))
        * _idle(p, s[0], s[1] * lanes, device.threads)
    )
    late = _late(p)
    choices = [(fit[0], late), (fit[0], not late), *((s, late) for s in fit[1:4])]
    return [
        Tile(mr, nv, lanes, _rows_of(p, nv * lanes, device.threads, first), first)
        for (mr, nv), first in choices
    ]


def _shapes(p: Problem, isa: Isa) -> list[tuple[int, int]]:
    """Register tiles that leave room for the operands. Those that fill all 32 registers are not
    among them, as LLVM then spills sums in the inner loop."""
    few, room = _few(p), isa.vector_registers - 1
    if few:
        return [(few, nv) for nv in (4, 3, 6, 2, 8, 1) if (few + 1) * nv < room]
    if isa.vector_registers < 32:
        return [(6, 2), (4, 3), (4, 2), (12, 1), (6, 1), (4, 1)]
    if p.shape.depthwise:
        shapes = [
            (4, 6), (5, 5), (7, 4), (5, 4), (4, 4), (8, 3), (7, 3), (14, 2), (7, 2), (14, 1),
            (7, 1), (4, 1),
        ]
        return [(mr, nv) for mr, nv in shapes if (nv - 1) * isa.lanes(32) < p.k]
    return [
        (6, 4), (8, 3), (5, 5), (4, 6), (5, 4), (4, 4), (12, 2), (8, 2), (6, 2), (4, 3), (4, 2),
        (16, 1), (12, 1), (6, 1), (4, 1),
    ]


def _few(p: Problem) -> int:
    """Pixels, if they are so few that all there is to do is to read weights; else 0."""
    pixels = p.images * D.product(a.out for a in p.axes)
    return pixels if p.flat and isinstance(pixels, int) and pixels < 4 else 0


def cycles_of(p: Problem, mr: int, nv: int, isa: Isa) -> float:
    """Modelled cycles of a row of outputs, per input channel and tap."""
    width = p.axes[-1].out
    width = width if isinstance(width, int) and not p.flat else 1 << 12
    lanes = isa.lanes(32)

    blocks, rest = divmod(p.k, nv * lanes)

    def blocks_of(m: int) -> float:
        if p.shape.depthwise:
            return _lane_cycles(p, m, nv, isa) * -(-p.k // lanes) / nv
        whole = tile_cycles(m, nv, isa)
        return blocks * whole + (tile_cycles(m, -(-rest // lanes), isa) if rest else 0.0)

    tiles, low, more = even_split(width, mr)
    cycles = more * blocks_of(low + 1) + (tiles - more) * blocks_of(low)
    if p.shape.depthwise:  # a block of channels that is part of a pixel reads lines in pieces
        return cycles * (1 + 0.1 * min(4, blocks + bool(rest) - 1))
    return cycles


def _lane_cycles(p: Problem, m: int, nv: int, isa: Isa) -> float:
    """Modelled cycles of a depthwise register tile per tap: inputs are read once for all the taps
    of a row."""
    s = p.shape
    reads = ((m - 1) * s.stride[-1] + s.window[-1]) / s.window[-1] * nv
    return max(m * nv / 2, reads / (1 if isa.vector_bits >= 512 else 2), 4.0) + 0.5


def tile_cycles(m: int, nv: int, isa: Isa) -> float:
    """Modelled cycles of a register tile per element of the inner dimension: two multiply-adds a
    cycle, loads, weights from the second cache, or the latency of a sum, whichever is most. Loads
    of 512 bits, broadcasts among them, were measured to come one a cycle, shorter ones two."""
    loads = (m + nv) / (1 if isa.vector_bits >= 512 else 2)
    return max(m * nv / 2, loads, nv * isa.vector_bits / 8 / _L2_RATE, 4.0) + 0.5


def _idle(p: Problem, mr: int, nr: int, threads: int) -> float:
    """How many times as long as all the work's share the thread with most of it takes, where
    items are the blocks of channels of a few pixels."""
    width = p.images * D.product(a.out for a in p.axes)
    if not p.flat or not isinstance(width, int) or width > mr:
        return 1.0
    blocks = -(-p.k // nr)
    return -(-blocks // threads) * nr * threads / p.k


def even_split(width: int, mr: int) -> tuple[int, int, int]:
    """How a row is cut into tiles of at most ``mr`` pixels: their number, the pixels of the
    short ones, and how many (the first) have one pixel more."""
    tiles = max(1, -(-width // mr))
    low, more = divmod(width, tiles)
    return tiles, low, more


def _rows_of(p: Problem, nr: int, threads: int, channels_first: bool) -> int:
    """Rows of a work item: some 64 pixels, but so that all threads get about the same. Where
    weights come from far, it costs to read those of a block again for other rows."""
    rows, width = p.images * D.product(a.out for a in p.axes[:-1]), p.axes[-1].out
    if p.flat or not isinstance(width, int):
        return 1
    most = max(1, _ROW_PIXELS // max(width, 1))
    if isinstance(rows, int):
        most = min(most, rows)
    if not isinstance(rows, int) or threads == 1:
        return most
    blocks = -(-p.k // nr)
    again = _AGAIN if channels_first and p.w.const.nbytes > _FAR_WEIGHTS else 0  # type: ignore[union-attr]

    def busiest(n: int) -> float:
        """Rows times blocks of the thread that has most, longer if weights are read again."""
        runs = -(-rows // n)
        sizes = [min(n, rows - r * n) for r in range(runs)]
        items = sizes * blocks if channels_first else [s for s in sizes for _ in range(blocks)]
        ends = [len(items) * t // threads for t in range(threads + 1)]
        most = max(sum(items[a:b]) for a, b in pairwise(ends))
        return most * (1 + again * (runs - 1))

    return min(range(most, 0, -1), key=busiest)


def _tails(p: Problem, nv: int, lanes: int) -> range:
    """Channel remainders that a block may end in: any, but none if blocks lie in groups."""
    return range(nv * lanes) if p.groups == 1 or p.shape.depthwise else range(1)


def _late(p: Problem) -> bool:
    """Whether weights are larger than the image: then they should be read once."""
    pixels = D.product(p.x.dims[2:])
    image = int(pixels) * p.channels if isinstance(pixels, int) else 1 << 30
    return p.w.const.size > image  # type: ignore[union-attr]


class Builder:
    """Builds the kernel of one candidate.

    Attributes:
        symbol: Names the kernel.
        x_type, w_type: What the input and the packed weights are addressed by.
        variant: What else the code depends on, as text.
    """

    variant = ""
    symbol = "conv_direct"
    x_type: ir.Type = F32
    w_type: ir.Type = F32
    stream = Stream()

    def __init__(self, problem: Problem, tile: Tile, isa: Isa):
        self.p, self.t, self.isa = problem, tile, isa.fingerprint
        self.module = ir.Module(self.symbol)
        self.module.isa = isa  # conversions of types ask it
        self.sizes = RuntimeSizes()
        self.rank = len(problem.axes)
        self.packed = _pack(problem, tile)
        self.stream = self._stream(isa)
        self.variant = str(self.stream)
        self.x_type = convert.memory_type(problem.x.dtype)
        self.zeros = np.zeros(max(problem.c, tile.nr), problem.x.dtype.np)
        region = problem.region
        weights = {problem.w, problem.bias}
        extra = [v for v in region.inputs if v not in weights]
        self.x = region.physical.get(problem.x, problem.x)
        self.args: list[Value | np.ndarray] = [self.x, self.packed, self.zeros]
        self.args += [v for v in extra if v is not self.x]
        self.args.append(problem.out)
        self.epilogue = Epilogue(problem, self.args, self.sizes)
        self.tiles: dict[tuple[int, int], MicroKernel] = {}

    def _stream(self, isa: Isa) -> Stream:
        """A panel of weights that takes more than some of the second cache is used row by row of
        the window, lest it leaves the cache from one tile to the next. All weights together that
        take more of it are asked for early, unless too few tiles use a panel: then hardware that
        follows the reads does better."""
        p, t = self.p, self.t
        tiles, window = self._item_tiles(), p.shape.window
        if not tiles or p.shape.depthwise or p.shape.c % t.unroll:
            return Stream()
        panel = 4 * self.packed.shape[1] > isa.l2 // 3
        passes = window[0] if self.rank > 1 and panel and not p.flat else 1
        lines = t.unroll * t.nr // 16
        early = self.packed.nbytes > isa.l2 // 2 and tiles >= _SHARING
        return Stream(passes, -(-lines // tiles) if early else 0)

    def _item_tiles(self) -> int:
        """Register tiles of pixels that follow each other with the same weights; 0: not known."""
        width = self._width()
        if not isinstance(width, int):
            return 0
        tiles = even_split(width, self.t.mr)[0]
        if not self.p.flat:
            return self.t.rows * tiles
        return tiles if self.t.channels_first else self._run(tiles)

    def build(self) -> Kernel:
        p, t = self.p, self.t
        name = f"{self.symbol}_{t.mr}x{t.nr}"
        key = f"{self.isa} {t!r} {self.variant} {signature(p.region)}"
        source, dims = _SOURCES.get(key, lambda: self._generate(name))
        pixels = p.images * D.product(a.out for a in p.axes)
        blocks = -(-p.k // t.nr)
        flops = pixels * (2 * p.k * p.c * p.shape.taps)
        work = self._row_blocks() * blocks
        return Kernel(
            symbol=name,
            source=source,
            args=tuple(self.args),
            dims=dims,
            work=work,
            grain=self._grain(flops, work),
            flops=flops,
            scratch=self._sums_size(),
        )

    def _sums_size(self) -> int:
        """Bytes of sums that wait for the next pass."""
        width = self._width()
        if self.stream.passes == 1 or not isinstance(width, int):
            return 0
        return 4 * self.t.rows * width * self.t.nr

    def _generate(self, name: str) -> tuple[str, tuple[D.DimLike, ...]]:
        types = [PTR, PTR, I64, I64, PTR]
        fn = ir.Function(self.module, ir.FunctionType(ir.VoidType(), types), name)
        self._main(fn)
        return text_of(self.module), tuple(self.sizes.dims)

    def _grain(self, flops: D.DimLike, work: D.DimLike) -> int:
        """Items that make it worth waking another thread."""
        item = D.floor_div(flops, work)
        size = item if isinstance(item, int) else 2 * self.p.c * self.p.shape.taps * self.t.nr * 64
        return max(1, _THREAD_FLOPS // max(size, 1))

    # --- the iteration over tiles ----------------------------------------------------------

    def _row_count(self) -> D.DimLike:
        """Rows of pixels: of all images, or pieces of the one long row of a flat problem."""
        p = self.p
        if not p.flat:
            return p.images * D.product(a.out for a in p.axes[:-1])
        width = self._width()
        if not isinstance(width, int):
            return D.ceil_div(width, self.t.mr * _FLAT_TILES)
        tiles = even_split(width, self.t.mr)[0]
        return D.ceil_div(tiles, self._run(tiles))

    def _run(self, tiles: int) -> int:
        """Tiles in a piece of a flat problem's row of so many: about equal pieces, of a number
        that usual numbers of threads divide."""
        pieces = -(-tiles // _FLAT_TILES)
        pieces = -(-pieces // 4) * 4 if tiles >= 4 * _FLAT_TILES else -(-pieces // 2) * 2
        return -(-tiles // pieces)

    def _row_blocks(self) -> D.DimLike:
        return D.ceil_div(self._row_count(), self.t.rows)

    def _width(self) -> D.DimLike:
        p = self.p
        if p.flat:
            return p.images * D.product(a.out for a in p.axes)
        return p.axes[-1].out

    def _main(self, fn: ir.Function) -> None:
        args, dims, begin, end, scratch = fn.args
        b = FoldingBuilder(fn.append_basic_block("entry"))
        self.b, self.fn_args, self.fn_dims, self.scratch = b, args, dims, scratch
        size = lambda d: self.sizes.value(b, dims, d)  # noqa: E731
        self.pointers = [argument(b, args, i) for i in range(3)]
        self._prepare(b, scratch)
        blocks = -(-self.p.k // self.t.nr)
        row_blocks, rows = size(self._row_blocks()), size(self._row_count())
        self.row_sizes = [size(a.out) for a in self.p.axes]
        self.width = size(self._width())
        self.in_sizes, self.in_strides, self.image = self._input_geometry(size)
        with Loop(b, begin, end) as item:
            if self.t.channels_first:
                kb, rb = b.sdiv(item.index, row_blocks), b.srem(item.index, row_blocks)
            else:
                rb, kb = b.sdiv(item.index, I64(blocks)), b.srem(item.index, I64(blocks))
            first = b.mul(rb, I64(self.t.rows))
            last = least(b, b.add(first, I64(self.t.rows)), rows)
            self._block(kb, blocks, first, last)
        b.ret_void()

    def _prepare(self, b: ir.IRBuilder, scratch: Any) -> None:
        """Emitted once a call, before the loop over items."""

    def _input_geometry(self, size: Any) -> tuple[list[Any], list[Any], Any]:
        p = self.p
        dims = p.x_dims
        if p.flat:
            ones = [I64(1)] * (self.rank - 1)
            return [*ones, self.width], [I64(0)] * self.rank, I64(0)
        strides: list[D.DimLike] = []
        for d in range(self.rank):
            strides.append(D.product(dims[d + 1 :]) * p.x_pixel)
        image = D.product(dims) * p.pitch
        return [size(d) for d in dims], [size(s) for s in strides], size(image)

    def _block(self, kb: Any, blocks: int, first: Any, last: Any) -> None:
        """All rows of a work item for channel block ``kb``; the last block may be narrower."""
        b, t, p = self.b, self.t, self.p
        rest = p.k % t.nr
        stride = self.packed.shape[1]
        w = b.gep(self.pointers[1], [b.mul(kb, I64(stride))], source_etype=self.w_type)
        k = b.mul(kb, I64(t.nr))
        # the panel after the last one is the first
        more = b.icmp_signed("<", kb, I64(blocks - 1))
        after = b.gep(w, [I64(stride)], source_etype=self.w_type)
        self.after = b.select(more, after, self.pointers[1])
        self.first_row = first
        if not rest:
            self._rows(w, k, first, last, t.nr)
            return
        if blocks == 1:
            self._rows(w, k, first, last, rest)
            return
        with b.if_else(b.icmp_signed("<", kb, I64(blocks - 1))) as (full, partial):
            with full:
                self._rows(w, k, first, last, t.nr)
            with partial:
                self._rows(w, k, first, last, rest)

    def _rows(self, w: Any, k: Any, first: Any, last: Any, channels: int) -> None:
        b = self.b
        with Loop(b, I64(0), I64(self.stream.passes)) as turn, Loop(b, first, last) as row:
            self.turn = turn.index
            if not self.p.flat:
                image, outer = self._coordinates(row.index)
                self._row(w, k, channels, image, outer, row.index)
            else:
                self._row(w, k, channels, I64(0), [I64(0)] * (self.rank - 1), row.index)

    def _row(
        self, w: Any, k: Any, channels: int, image: Any, outer: list[Any], row: Any
    ) -> None:
        """The tiles of a row, or of a piece of a flat problem's row."""
        b, width, mr = self.b, self._width(), self.t.mr

        def call(pixels: int, x: Any, number: Any) -> None:
            self._call(pixels, channels, w, k, image, [*outer, x], number)

        if isinstance(width, int):
            tiles, low, more = even_split(width, mr)
            start, stop, before = I64(0), I64(tiles), b.sub(row, self.first_row)
            if self.p.flat:
                run = self._run(tiles)
                start = b.mul(row, I64(run))
                stop = least(b, b.add(start, I64(run)), I64(tiles))
                # with channels first, the items before used the same weights
                before = start if self.t.channels_first else b.mul(before, I64(run))
            else:
                before = b.mul(before, I64(tiles))
            self._even_tiles(call, start, stop, (tiles, low, more), b.sub(before, start))
            return
        start, stop = I64(0), self.width
        if self.p.flat:
            chunk = mr * _FLAT_TILES
            start = b.mul(row, I64(chunk))
            stop = least(b, b.add(start, I64(chunk)), self.width)
        whole = b.add(start, b.mul(b.sdiv(b.sub(stop, start), I64(mr)), I64(mr)))
        with Loop(b, start, whole, mr) as col:
            call(mr, col.index, I64(0))
        if mr > 1:
            with Loop(b, whole, stop) as col:
                call(1, col.index, I64(0))

    def _even_tiles(
        self, call: Any, start: Any, stop: Any, split: tuple[int, int, int], before: Any
    ) -> None:
        """Tiles ``start`` to ``stop`` of a row split by `even_split`; ``before`` more count as the
        tile's number in the item."""
        tiles, low, more = split
        b = self.b
        if self._overlap(tiles, low, more):
            end = tiles * low + more - low - 1
            with Loop(b, start, stop) as tile:
                x = least(b, b.mul(tile.index, I64(low + 1)), I64(end))
                call(low + 1, x, b.add(tile.index, before))
            return
        if more:
            with Loop(b, start, least(b, stop, I64(more))) as tile:
                number = b.add(tile.index, before)
                call(low + 1, b.mul(tile.index, I64(low + 1)), number)
            start = b.select(b.icmp_signed(">", start, I64(more)), start, I64(more))
        with Loop(b, start, stop) as tile:
            number = b.add(tile.index, before)
            call(low, b.add(b.mul(tile.index, I64(low)), I64(more)), number)

    def _overlap(self, tiles: int, low: int, more: int) -> bool:
        """Whether the last tiles of a row begin where a whole one fits and do a few pixels again,
        so that all are of one kind and half as much code is compiled."""
        extra = (tiles - more) / (tiles * low + more)
        return more > 0 and self.stream.passes == 1 and extra <= _MOST_EXTRA

    def _coordinates(self, row: Any) -> tuple[Any, list[Any]]:
        """Image number and outer output coordinates of a row."""
        b = self.b
        outer: list[Any] = []
        for n in reversed(self.row_sizes[:-1]):
            outer.insert(0, b.srem(row, n))
            row = b.sdiv(row, n)
        return row, outer

    def _call(
        self, mr: int, channels: int, w: Any, k: Any, image: Any, pixel: list[Any], number: Any
    ) -> None:
        b, p = self.b, self.p
        if (mr, channels) not in self.tiles:
            self.tiles[mr, channels] = self._tile(mr, channels)
        tile = self.tiles[mr, channels]
        x = b.gep(self.pointers[0], [b.mul(image, self.image)], source_etype=self.x_type)
        if p.shape.depthwise:
            x = b.gep(x, [k], source_etype=self.x_type)
        elif p.groups > 1:
            group = b.sdiv(k, I64(p.k // p.groups))
            x = b.gep(x, [b.mul(group, I64(p.c * p.x_channel))], source_etype=self.x_type)
        s = p.shape
        origins = [
            b.sub(b.mul(o, I64(s.stride[d])), I64(s.pre[d])) for d, o in enumerate(pixel)
        ]
        values = [x, w, self.pointers[2], self.fn_args, self.fn_dims]
        values += [*self.in_strides, *self.in_sizes, *origins, image, *pixel, k]
        values += self._streams(w, pixel[-1], number)
        b.call(tile.fn, values)

    def _streams(self, w: Any, column: Any, number: Any) -> list[Any]:
        """The pass, where the tile's sums wait, and the weights it asks for."""
        b, t, s, stream = self.b, self.t, self.p.shape, self.stream
        sums = self.scratch
        if stream.passes > 1:
            width = self._width()
            assert isinstance(width, int)
            row = b.sdiv(number, I64(even_split(width, t.mr)[0]))
            at = b.mul(b.add(b.mul(row, I64(width)), column), I64(t.nr))
            sums = b.gep(sums, [at], source_etype=F32)
        if not stream.ahead:
            return [self.turn, sums, w]
        steps = s.c * s.taps // stream.passes
        share = stream.ahead * steps // t.unroll * 16  # floats that a tile asks for
        number_of_shares = -(-steps * t.nr // share)
        again = b.gep(w, [b.mul(b.add(self.turn, I64(1)), I64(steps * t.nr))], source_etype=F32)
        last = b.icmp_signed("==", self.turn, I64(stream.passes - 1))
        following = b.select(last, self.after, again)
        # the last tiles ask: what the first ones asked for might have left the cache again
        number = b.sub(number, I64(max(0, self._item_tiles() - number_of_shares)))
        ahead = b.gep(following, [b.mul(number, I64(share))], source_etype=F32)
        useful = b.icmp_unsigned("<", number, I64(number_of_shares))
        return [self.turn, sums, b.select(useful, ahead, w)]

    # --- tiles -------------------------------------------------------------------------------

    def _tile(self, mr: int, channels: int) -> MicroKernel:
        mk = MicroKernel(
            self.module, self.p.shape, self.t, mr, channels, f"tile_{mr}x{channels}", self.stream
        )
        store = lambda m, b, acc: self._store(m, b, acc, channels)  # noqa: E731
        enter = lambda m, b: self.epilogue.enter(b, m.args)  # noqa: E731
        mk.build(self.p.bias is not None, enter, store, self._touch if self._far() else None)
        return mk

    def _far(self) -> bool:
        """Whether operands and results of the epilogue may lie far away."""
        size = self.p.out.dtype.size * D.product(self.p.out.dims)
        return not (isinstance(size, int) and size < _NEAR_BYTES) and not self.p.shape.depthwise

    def _touch(self, m: MicroKernel, b: ir.IRBuilder, pixel: Any, vector: Any) -> None:
        """Asks for operands and results of the epilogue."""
        em = self.epilogue.at(b, m.dims, m.image, m.pixel[:-1])
        if isinstance(pixel, int):
            x, k = Shifted(m.pixel[-1], pixel), Shifted(m.k, vector * self.t.lanes)
            self.epilogue.touch(em, x, k)
            return
        k = b.add(m.k, b.mul(vector, I64(self.t.lanes)))
        self.epilogue.touch(em, b.add(m.pixel[-1], pixel), k)

    def _store(self, m: MicroKernel, b: ir.IRBuilder, acc: list[Any], channels: int) -> None:
        """The epilogue: each accumulator through the stage's expression, then to memory."""
        lanes = self.t.lanes
        em = self.epilogue.at(b, m.dims, m.image, m.pixel[:-1])
        for i in range(m.mr):
            x = Shifted(m.pixel[-1], i)
            for j in range(m.nv):
                k = Shifted(m.k, j * lanes)
                self.epilogue.store(em, x, k, acc[i * m.nv + j], channels - j * lanes)


def _pack(p: Problem, t: Tile) -> np.ndarray[Any, Any]:
    """Weights as ``[K / nr][bias nr +] [taps][C][nr]``, zero-padded; 64-byte aligned rows."""
    w = p.w.const
    assert w is not None
    bias = None if p.bias is None else p.bias.const
    return pack_windows(w.reshape(p.k, p.c, p.shape.taps), bias, t.nr)
