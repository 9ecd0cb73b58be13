"""Kernels of contractions on tile registers; see `tile_problem` for what tiles hold.

A function computes a block of ``ms`` by ``nt`` tiles of sums: they take up all steps of the inner
dimension, and go to scratch, from where the epilogue reads them pixel by pixel and adds what the
packed weights begin with. All tiles have the same number of pixels: the last one of a row
begins early where it must. Copies of the first operand are made in a phase before.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from llvmlite import ir

from ...ir import dims as D
from ...ir.dtypes import i8
from ...ir.graph import Value
from ...regions.signature import signature
from ...tactics.kernel import Kernel, SourceCache
from . import int_problem
from . import vecmath as V
from .conv_common import RuntimeSizes, argument, least
from .conv_ir import PTR, Loop
from .emitter import Shifted
from .folding import FoldingBuilder
from .isa import Isa
from .printer import text_of
from .tile_copy import TileCopy
from .tile_ir import ROW_BYTES, ROWS, TileUnit
from .tile_problem import (
    Blocks,
    gather,
    pack,
    reading,
    row_of_tiles,
    tile_height,
    tile_rows,
    writes_far,
)
from .vecmath import F32, I8, I32, I64

_THREAD_FLOPS = 2_000_000  # some 2 µs of work
_SHARES = 64  # items of a phase where sizes are not known
_NEAR = 1 << 14  # bytes that wait in the first cache until they are used
_UNROLLED = 4  # up to so many steps are written out
_SOURCES = SourceCache()
Array = np.ndarray[Any, Any]


class TileBuilder:
    """Builds the kernel of one candidate."""

    def __init__(self, problem: Any, blocks: Blocks, isa: Isa, symbol: str):
        if blocks.gathered:
            gather(problem)
        problem.tiled = blocks.tiled
        self.p, self.t, self.symbol = problem, blocks, symbol
        self.isa = isa
        self.r = reading(problem)
        self.lanes = min(isa.lanes(32), ROWS)
        self.size = problem.x.dtype.size
        self.acc = F32 if problem.y.dtype.is_float else I32
        self.module = ir.Module(symbol)
        self.module.isa = isa  # conversions of types ask it
        self.sizes = RuntimeSizes()
        self.rank = len(problem.axes)
        self.panels = -(-problem.k // blocks.nr)
        self.taps = problem.shape.taps if problem.gathered else 1  # that are copied
        self.packed = pack(problem, self.r, blocks.nt)
        self.starts = bool(np.any(problem.starts()))
        self._operands()
        self.epilogue = int_problem.epilogue(problem, self.operands, self.sizes)
        self.functions: dict[tuple[int, int], ir.Function] = {}

    def _operands(self) -> None:
        p = self.p
        self.operands: list[Value | Array] = [p.stored, self.packed]
        self.operands += [v for v in p.finish.values() if v is not p.stored]
        self.zero_arg = self.copy_arg = -1
        if isinstance(p.x_zero, Value):
            if p.x_zero not in self.operands[2:]:
                self.operands.append(p.x_zero)
            self.zero_arg = next(i for i, v in enumerate(self.operands) if v is p.x_zero)
        if self.r.copied:
            self.copy_arg = len(self.operands)
            size = self.copied_rows() * self.row_bytes()
            if self.r.tiled:
                size = self.taps * tile_rows(p) * self.tile_bytes()
            self.operands.append(Value("copy", i8, (size,)))
        self.operands.append(p.out)

    def build(self) -> Kernel:
        p, t = self.p, self.t
        name = f"{self.symbol}_{t.ms * ROWS}x{t.nr}"
        key = f"{self.isa.fingerprint} {self.isa.amx} {t!r} {p.finish.variant} {self.zero_arg} "
        key += f"{self.starts} "
        key += f"{p.kind} {signature(p.region)}"
        source, dims = _SOURCES.get(key, lambda: self._generate(name))
        flops = p.images * D.product(a.out for a in p.axes) * (2 * p.k * p.c * p.shape.taps)
        flops *= p.axes[-1].window if p.merged else 1
        work = self._items()
        item = D.floor_div(flops, work)
        size = item if isinstance(item, int) else 2 * p.c * p.shape.taps * t.nr * t.rows * ROWS
        shares = self._shares()
        unit = TileUnit(self.isa, self.module)
        return Kernel(
            symbol=name, source=source, args=tuple(int_problem.arguments(p, self.operands)),
            dims=dims, work=2 * shares if shares else work,
            grain=max(1, _THREAD_FLOPS // max(size, 1)),
            scratch=self._sums_bytes() + t.nt * ROW_BYTES + unit.state_bytes, flops=flops,
            phase=shares,
        )  # fmt: skip

    # --- sizes -------------------------------------------------------------------------------

    def _sums_bytes(self) -> int:
        return self.t.ms * self.t.nt * ROWS * ROW_BYTES

    def _row_blocks(self) -> D.DimLike:
        return D.ceil_div(tile_rows(self.p), self.t.rows)

    def _items(self) -> D.DimLike:
        return self._row_blocks() * self.panels

    def _shares(self) -> int:
        """Parts of the copy, and of all items where only the run knows how many those are: phases
        have as many. 0: there is no copy."""
        items = self._items()
        if not self.r.copied:
            return 0
        return items if isinstance(items, int) else _SHARES

    def copied_extents(self) -> list[D.DimLike]:
        """Positions of the copy along the spatial axes."""
        if self.p.flat:  # pixels are rows of their own, so that threads can share them
            return [*[1] * (self.rank - 1), row_of_tiles(self.p)]
        return [
            (a.out - 1) * a.stride + ((a.window - 1) * a.dilation + 1) for a in self.p.axes
        ]

    def copied_rows(self) -> D.DimLike:
        if self.r.tiled:
            return tile_rows(self.p) * tile_height(self.p) * self.taps
        if self.p.flat:
            return row_of_tiles(self.p) * self.taps
        return self.p.images * D.product(self.copied_extents()[:-1])

    def tile_bytes(self) -> int:
        """Of a row of tiles in a copy that has their form."""
        return self.r.steps * ROWS * self.r.width

    def row_bytes(self) -> D.DimLike:
        """Of a row of the copy: whole lines, unless pixels lie behind each other."""
        if self.p.flat:
            return self.r.pixel
        bytes_ = self.copied_extents()[-1] * self.r.pixel + self.r.beyond
        return D.ceil_div(bytes_, ROW_BYTES) * ROW_BYTES

    # --- the kernel's function -----------------------------------------------------------------

    def _generate(self, name: str) -> tuple[str, tuple[D.DimLike, ...]]:
        fn = ir.Function(
            self.module, ir.FunctionType(ir.VoidType(), [PTR, PTR, I64, I64, PTR]), name
        )
        self.unit = TileUnit(self.isa, self.module)
        b = FoldingBuilder(fn.append_basic_block("entry"))
        args, dims, begin, end, scratch = fn.args
        size = lambda d: self.sizes.value(b, dims, d)  # noqa: E731
        items = size(self._items())
        row_blocks, rows = size(self._row_blocks()), size(tile_rows(self.p))
        height = self._height(b, size)
        state = b.gep(scratch, [I64(self._sums_bytes() + self.t.nt * ROW_BYTES)], source_etype=I8)
        self.unit.configure(b, state, self._registers(height))
        memory, shares = (args, dims, scratch, state), I64(self._shares())
        with Loop(b, begin, end) as item:
            index = item.index
            if not self.r.copied:
                self._item(b, memory, index, row_blocks, rows)
            else:
                copy = TileCopy(self).function()
                with b.if_else(b.icmp_signed("<", index, shares)) as (first, second):
                    with first:
                        b.call(copy, [args, dims, index])
                    with second:
                        share = b.sub(index, shares)
                        if isinstance(self._items(), int):
                            self._item(b, memory, share, row_blocks, rows)
                        else:
                            low, high = self.share(b, share, items)
                            with Loop(b, low, high) as one:
                                self._item(b, memory, one.index, row_blocks, rows)
        self.unit.release(b)
        b.ret_void()
        return text_of(self.module), tuple(self.sizes.dims)

    def _height(self, b: Any, size: Any) -> Any:
        """Pixels of a tile: as even as can be."""
        row = row_of_tiles(self.p)
        if isinstance(row, int):
            return I64(tile_height(self.p))
        count = size(row)
        tiles = b.sdiv(b.add(count, I64(ROWS - 1)), I64(ROWS))
        return b.sdiv(b.add(count, b.sub(tiles, I64(1))), tiles)

    def _registers(self, height: Any) -> list[tuple[Any, int]]:
        """Shapes: sums first, then tiles of the first operand, then weights."""
        ms, nt, deep = self.t.ms, self.t.nt, self.r.width // 4
        rows, columns = self._factors()
        return [
            *[(height, ROW_BYTES)] * (ms * nt),
            *[(height, self.r.width)] * len(rows), *[(I64(deep), ROW_BYTES)] * len(columns),
        ]  # fmt: skip

    def _factors(self) -> tuple[list[int], list[int]]:
        """Registers that take turns for tiles of rows, and for those of columns."""
        ms, nt = self.t.ms, self.t.nt
        sums, left = ms * nt, 8 - ms * nt
        rows = min(ms, max(1, left - min(nt, left - 1)))
        columns = min(nt, left - rows)
        at = sums + rows
        return list(range(sums, at)), list(range(at, at + columns))

    def share(self, b: Any, index: Any, count: Any) -> tuple[Any, Any]:
        """First and last of ``count`` things that belong to a share."""
        shares = I64(self._shares())
        first = b.sdiv(b.mul(index, count), shares)
        return first, b.sdiv(b.mul(b.add(index, I64(1)), count), shares)

    def _item(self, b: Any, memory: Any, index: Any, row_blocks: Any, rows: Any) -> None:
        """All rows of tiles of a work item."""
        args, dims, scratch, state = memory
        if self.t.channels_first:
            panel, block = b.sdiv(index, row_blocks), b.srem(index, row_blocks)
        else:
            block, panel = b.sdiv(index, I64(self.panels)), b.srem(index, I64(self.panels))
        first = b.mul(block, I64(self.t.rows))
        last = least(b, b.add(first, I64(self.t.rows)), rows)
        base = argument(b, args, 1)
        w = b.gep(base, [b.mul(panel, I64(self.packed.shape[1]))], source_etype=I8)
        k = b.mul(panel, I64(self.t.nr))
        rest = self.p.k % self.t.nr

        def walk(channels: int) -> None:
            self._walk(b, (args, dims, scratch, state), w, k, first, last, channels)

        if not rest or self.panels == 1:
            walk(rest or self.t.nr)
            return
        with b.if_else(b.icmp_signed("<", panel, I64(self.panels - 1))) as (full, partial):
            with full:
                walk(self.t.nr)
            with partial:
                walk(rest)

    def _walk(self, b: Any, memory: Any, w: Any, k: Any, first: Any, last: Any,
              channels: int) -> None:  # fmt: skip
        """Blocks of ``ms`` rows of tiles, then what is left of them."""
        args, dims, scratch, state = memory
        ms = self.t.ms
        while True:
            whole = b.sub(last, b.srem(b.sub(last, first), I64(ms))) if ms > 1 else last
            with Loop(b, first, whole, ms) as row:
                fn = self._block_function(ms, channels)
                b.call(fn, [args, dims, scratch, state, w, k, row.index])
            if ms == 1:
                return
            first, ms = whole, ms // 2

    # --- a block of tiles ----------------------------------------------------------------------

    def _block_function(self, ms: int, channels: int) -> ir.Function:
        if (ms, channels) not in self.functions:
            types = [PTR] * 5 + [I64] * 2
            fn = ir.Function(
                self.module, ir.FunctionType(ir.VoidType(), types), f"block_{ms}x{channels}"
            )
            fn.linkage = "internal"
            fn.attributes.add("noinline")
            self.functions[ms, channels] = fn
            _Block(self, fn, ms, channels).emit()
        return self.functions[ms, channels]

    # --- addresses -----------------------------------------------------------------------------

    def geometry(self, size: Any) -> tuple[Any, list[Any]]:
        """Bytes of an image of the operand, and from one position to the next along each axis."""
        p = self.p
        if p.flat:
            return I64(0), [I64(0)] * (self.rank - 1) + [I64(p.pitch * self.size)]
        step = p.pitch * self.size
        strides = [size(D.product(p.x_dims[d + 1 :]) * step) for d in range(self.rank)]
        return size(D.product(p.x_dims) * step), strides

    def read_geometry(self, size: Any) -> tuple[Any, list[Any]]:
        """The same of what tiles are loaded from."""
        if not self.r.copied:
            return self.geometry(size)
        if self.p.flat:
            return I64(0), [I64(0)] * (self.rank - 1) + [I64(self.r.pixel)]
        extents, row = self.copied_extents(), self.row_bytes()
        strides = [size(D.product(extents[d + 1 : -1]) * row) for d in range(self.rank - 1)]
        image = size(D.product(extents[:-1]) * row)
        return image, [*strides, I64(self.r.pixel)]


class _Block:
    """The function that computes ``ms`` rows of tiles by the tiles of some channels.

    Its parameters: the kernel's argument and size arrays, scratch, what stands for registers, the
    panel of weights, its first channel, and the number of the first row of tiles.
    """

    def __init__(self, o: TileBuilder, fn: ir.Function, ms: int, channels: int):
        self.o, self.fn, self.ms, self.channels = o, fn, ms, channels
        self.nt = -(-channels // ROWS)
        self.args, self.dims, self.scratch, self.state, self.w, self.k, self.row = fn.args
        self.b = FoldingBuilder(fn.append_basic_block("entry"))

    def emit(self) -> None:
        o, b, unit = self.o, self.b, self.o.unit
        size = lambda d: o.sizes.value(b, self.dims, d)  # noqa: E731
        self.height = o._height(b, size)
        self.places = [self._place(size, b.add(self.row, I64(i))) for i in range(self.ms)]
        image, self.strides = o.read_geometry(size)
        source = argument(b, self.args, o.copy_arg if o.r.copied else 0)
        if o.p.groups > 1:
            group = b.sdiv(self.k, I64(o.p.k // o.p.groups))
            step = o.r.group if o.r.copied else o.p.c * o.size
            source = b.gep(source, [b.mul(group, I64(step))], source_etype=I8)
        tiles = [self._source(source, image, i) for i in range(self.ms)]
        self.apart = b.mul(self.strides[-1], I64(self._stride(-1)))
        self.step_bytes = o.r.width
        if o.r.tiled:
            self.apart, self.step_bytes = I64(o.r.width), ROWS * o.r.width
        self.starts = self._starts()
        for i in range(self.ms):
            for j in range(self.nt):
                unit.clear(b, self.state, self._sum(i, j))
        self._touch()
        weights = b.gep(self.w, [I64(o.t.nt * ROW_BYTES)], source_etype=I8)
        self._taps(0, tiles, weights, self._next_panel())
        for i in range(self.ms):
            for j in range(self.nt):
                unit.store(b, self.state, self._sum(i, j), self._sums_at(i, I64(0), j * ROWS),
                           I64(o.t.nt * ROW_BYTES))  # fmt: skip
        for i in range(self.ms):
            self._finish(i)
        b.ret_void()

    def _sum(self, i: int, j: int) -> int:
        """The register of sums of a row of tiles and a column."""
        return i * self.o.t.nt + j

    def _place(self, size: Any, number: Any) -> tuple[Any, list[Any]]:
        """Image and output position of the first pixel of a row of tiles."""
        o, b, p = self.o, self.b, self.o.p
        width = size(row_of_tiles(p))
        tiles = b.sdiv(b.add(width, I64(ROWS - 1)), I64(ROWS))
        if p.flat:
            image, outer, column = I64(0), [I64(0)] * (o.rank - 1), number
        else:
            column, rest = b.srem(number, tiles), b.sdiv(number, tiles)
            outer = []
            for d in reversed(range(o.rank - 1)):
                n = size(p.axes[d].out)
                outer.insert(0, b.srem(rest, n))
                rest = b.sdiv(rest, n)
            image = rest
        x = least(b, b.mul(column, self.height), b.sub(width, self.height))
        return image, [*outer, x]

    def _source(self, base: Any, image: Any, i: int) -> Any:
        """The address of a tile's first byte."""
        b, place = self.b, self.places[i]
        if self.o.r.tiled:
            number = b.add(self.row, I64(i))
            return b.gep(base, [b.mul(number, I64(self.o.tile_bytes()))], source_etype=I8)
        at = b.mul(place[0], image)
        for d, x in enumerate(place[1]):
            at = b.add(at, b.mul(b.mul(x, I64(self._stride(d))), self.strides[d]))
        return b.gep(base, [at], source_etype=I8)

    def _stride(self, d: int) -> int:
        """Positions from an output to the next; gathered pixels are one position each."""
        return 1 if self.o.p.gathered else self.o.p.axes[d].stride

    def _tap_bytes(self, d: int) -> Any:
        """From a tap along axis ``d`` to the next."""
        p, b = self.o.p, self.b
        if not p.gathered:
            return b.mul(self.strides[d], I64(p.axes[d].dilation))
        inner = 1
        for a in p.axes[d + 1 :]:
            inner *= a.window
        if self.o.r.tiled:
            return I64(inner * int(tile_rows(p)) * self.o.tile_bytes())  # type: ignore[arg-type]
        return I64(inner * int(row_of_tiles(p)) * self.o.r.pixel)  # type: ignore[arg-type]

    def _starts(self) -> Any:
        """What the epilogue adds to the sums, a number per column: times the zero point where only
        the run knows it. None: nothing. (To load a register with these takes as long as one of
        tiles, and blocks of few steps have not many of them.)"""
        o, b = self.o, self.b
        if o.zero_arg < 0:
            return self.w if o.starts else None
        byte = b.load(argument(b, self.args, o.zero_arg), typ=I8)
        zero = b.sext(byte, I32) if o.p.x_signed else b.zext(byte, I32)
        vt = ir.VectorType(I32, ROWS)
        scaled = b.gep(self.scratch, [I64(o._sums_bytes())], source_etype=I8)
        for j in range(self.nt):
            x = b.load(b.gep(self.w, [I64(j * ROW_BYTES)], source_etype=I8), typ=vt, align=4)
            to = b.gep(scaled, [I64(j * ROW_BYTES)], source_etype=I8)
            b.store(b.mul(x, V.splat(b, zero, ROWS)), to, align=4)
        return scaled

    # --- products ------------------------------------------------------------------------------

    def _taps(self, d: int, tiles: list[Any], w: Any, ahead: Any) -> None:
        """Loops over the window along axis ``d`` and those inside it."""
        o, b, p = self.o, self.b, self.o.p
        if d == o.rank or (o.r.merged and d == o.rank - 1):
            self._steps(tiles, w, ahead)
            return
        axis = p.axes[d]
        steps = o.r.steps
        for a in p.axes[d + 1 : o.rank - o.r.merged]:
            steps *= a.window
        if axis.window == 1:
            self._taps(d + 1, tiles, w, ahead)
            return
        with Loop(b, I64(0), I64(axis.window)) as tap:
            at = b.mul(tap.index, self._tap_bytes(d))
            here = [b.gep(x, [at], source_etype=I8) for x in tiles]
            inner = I64(steps * o.t.nt * o.r.width * ROWS)
            weights = b.gep(w, [b.mul(tap.index, inner)], source_etype=I8)
            self._taps(d + 1, here, weights, self._further(ahead, tap.index, steps))

    def _steps(self, tiles: list[Any], w: Any, ahead: Any) -> None:
        o, b = self.o, self.b
        if o.r.steps <= _UNROLLED:
            for n in range(o.r.steps):
                self._step(tiles, w, I64(n))
                self._ask(self._further(ahead, I64(n), 1))
            return
        with Loop(b, I64(0), I64(o.r.steps)) as step:
            self._step(tiles, w, step.index)
            self._ask(self._further(ahead, step.index, 1))

    def _next_panel(self) -> Any:
        """The part of the next panel that this block asks for: each of the rows of blocks
        asks for another one, so that weights are there when they are needed and nobody asks
        twice."""
        o, b = self.o, self.b
        if not o.t.ahead:
            return None
        parts = max(1, int(tile_rows(o.p)) // o.t.ms)  # type: ignore[arg-type]
        steps = o.r.steps
        for a in o.p.axes[: o.rank - o.r.merged]:
            steps *= a.window
        panel = int(o.packed.shape[1])
        self.lines = -(-panel // (ROW_BYTES * parts * steps))
        part = b.srem(b.sdiv(self.row, I64(o.t.ms)), I64(parts))
        first = b.add(I64(panel), b.mul(part, I64(self.lines * steps * ROW_BYTES)))
        return b.gep(self.w, [first], source_etype=I8)

    def _further(self, ahead: Any, index: Any, steps: int) -> Any:
        if ahead is None:
            return None
        by = self.b.mul(index, I64(steps * self.lines * ROW_BYTES))
        return self.b.gep(ahead, [by], source_etype=I8)

    def _ask(self, ahead: Any) -> None:
        if ahead is None:
            return
        for n in range(self.lines):
            at = self.b.gep(ahead, [I64(n * ROW_BYTES)], source_etype=I8)
            V.prefetch(self.b, at, level=2)

    def _step(self, tiles: list[Any], w: Any, number: Any) -> None:
        """One step: weights stay in registers while tiles of rows pass by, or the other way
        round where those are more."""
        o, b, unit = self.o, self.b, self.o.unit
        rows, columns = o._factors()
        panel = b.gep(w, [b.mul(number, I64(o.t.nt * o.r.width * ROWS))], source_etype=I8)
        at = b.mul(number, I64(self.step_bytes))

        def load_row(i: int) -> int:
            register = rows[i % len(rows)]
            unit.load(b, self.state, register, b.gep(tiles[i], [at], source_etype=I8), self.apart)
            return register

        def load_column(j: int) -> int:
            register = columns[j % len(columns)]
            here = b.gep(panel, [I64(j * o.r.width * ROWS)], source_etype=I8)
            unit.load(b, self.state, register, here, I64(ROW_BYTES))
            return register

        if len(columns) >= self.nt:
            loaded = [load_column(j) for j in range(self.nt)]
            for i in range(self.ms):
                row = load_row(i)
                for j, column in enumerate(loaded):
                    unit.multiply(b, self.state, o.p.kind, self._sum(i, j), row, column)
            return
        loaded = [load_row(i) for i in range(self.ms)]
        for j in range(self.nt):
            column = load_column(j)
            for i, row in enumerate(loaded):
                unit.multiply(b, self.state, o.p.kind, self._sum(i, j), row, column)

    # --- results -------------------------------------------------------------------------------

    def _sums_at(self, i: int, pixel: Any, column: int) -> Any:
        """Where a pixel's sums from a column on are."""
        b, nt = self.b, self.o.t.nt
        at = b.add(b.mul(pixel, I64(nt * ROW_BYTES)), I64(4 * column + i * ROWS * nt * ROW_BYTES))
        return b.gep(self.scratch, [at], source_etype=I8)

    def _touch(self) -> None:
        """What the epilogue will read beside the sums comes nearer while they are made."""
        o, b = self.o, self.b
        if o.t.rows == o.t.ms and not o.t.channels_first and o.p.flat:
            self._touch_next()
            return
        if not o.epilogue.own_loads():
            return
        for image, place in self.places:
            with self._pixels() as (before, pixel):
                o.epilogue.enter(before, self.args)
                em = o.epilogue.at(before, self.dims, image, place[:-1])
                em.push(b)
                o.epilogue.touch_pixel(em, b.add(place[-1], pixel), self.k, self.channels)
                em.pop()

    def _touch_next(self) -> None:
        """Where all panels of the same pixels follow each other, those of the next pixels are one
        run of memory, to be read or written: each panel asks for its share, line by line, which
        the CPU's own prefetching takes up."""
        o, b = self.o, self.b
        image, place = self.places[0]
        o.epilogue.enter(b, self.args)
        em = o.epilogue.at(b, self.dims, image, place[:-1])
        pixel = b.mul(b.add(self.row, I64(self.ms)), self.height)
        panel = b.sdiv(self.k, I64(o.t.nr))
        near = o.t.ms * ROWS * o.p.k * o.p.out.dtype.size <= _NEAR
        far = writes_far(o.p)
        o.epilogue.touch_run(em, pixel, panel, o.t.ms * ROWS * o.t.nr, 3 if near else 2, far)

    @contextmanager
    def _pixels(self) -> Iterator[tuple[Any, Any]]:
        """A loop over the pixels of a tile: a builder that stands before it, and the index."""
        b = self.b
        block = b.append_basic_block("before")
        b.branch(block)
        b.position_at_end(block)
        before = FoldingBuilder(block)
        with Loop(b, I64(0), self.height) as pixel:
            before.position_before(block.terminator)
            yield before, pixel.index

    def _finish(self, i: int) -> None:
        """The epilogue of a row of tiles: of several vectors at once where the result is bytes,
        and of two where it is of two bytes: narrowing takes fewer instructions then, and stores
        are whole lines."""
        o, b, lanes = self.o, self.b, self.o.lanes
        most = {1: max(1, o.t.nr // lanes), 2: 2}.get(o.p.out.dtype.size, 1)
        image, place = self.places[i]
        parts, done = [], 0
        with self._pixels() as (before, pixel):
            o.epilogue.enter(before, self.args)
            while done < self.channels:
                full = (self.channels - done) // lanes
                n = min(1 << max(0, full.bit_length() - 1), most)
                parts.append((done, n))
                done += n * lanes
            for first, n in parts:
                em = o.epilogue.at(before, self.dims, image, place[:-1])
                o.epilogue.bind_channels(em, Shifted(self.k, first), n * lanes)
                vt = ir.VectorType(o.acc, n * lanes)
                sums = b.load(self._sums_at(i, pixel, first), typ=vt, align=4)
                if self.starts is not None:
                    at = before.gep(self.starts, [I64(4 * first)], source_etype=I8)
                    start = before.load(at, typ=vt, align=4)
                    sums = b.fadd(sums, start) if o.acc == F32 else b.add(sums, start)
                em.push(b)
                o.epilogue.bind_pixel(em, b.add(place[-1], pixel))
                o.epilogue.finish(em, sums, self.channels - first)
                em.pop()
