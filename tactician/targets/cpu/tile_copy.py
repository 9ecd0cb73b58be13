"""The copy of a contraction's first operand that tiles are loaded from (see `tile_problem`)."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from . import vecmath as V
from .conv_common import argument, least
from .conv_ir import PTR, Loop
from .folding import FoldingBuilder
from .tile_ir import ROWS
from .tile_problem import row_of_tiles, tile_height, tile_rows
from .vecmath import I8, I64


class TileCopy:
    """Emits the function that makes the copy.

    Args:
        builder: Of the kernel.
    """

    def __init__(self, builder: Any):
        self.o = builder
        self.p, self.r, self.size = builder.p, builder.r, builder.size

    def function(self) -> ir.Function:
        """Copies a share of the rows: its parameters are the kernel's argument and size arrays, and
        the number of the share."""
        fn = ir.Function(self.o.module, ir.FunctionType(ir.VoidType(), [PTR, PTR, I64]), "copy")
        fn.linkage = "internal"
        fn.attributes.add("noinline")
        args, dims, index = fn.args
        b = FoldingBuilder(fn.append_basic_block("entry"))
        size = lambda d: self.o.sizes.value(b, dims, d)  # noqa: E731
        rows, row_bytes = size(self.o.copied_rows()), size(self.o.row_bytes())
        source, copy = argument(b, args, 0), argument(b, args, self.o.copy_arg)
        fill: Any = I8(self.p.x_zero & 255 if self.o.zero_arg < 0 else 0)
        if self.o.zero_arg >= 0:
            fill = b.load(argument(b, args, self.o.zero_arg), typ=I8)
        first, last = self.o.share(b, index, rows)
        with Loop(b, first, last) as row:
            to = b.gep(copy, [b.mul(row.index, row_bytes)], source_etype=I8)
            if self.r.tiled:
                self._copy_tile_row(b, source, copy, row.index, fill)
            elif self.p.gathered:
                pixels = I64(int(row_of_tiles(self.p)))  # type: ignore[arg-type]
                pixel, tap = b.srem(row.index, pixels), b.sdiv(row.index, pixels)
                self._met(
                    b, source, pixel, tap,
                    lambda x: self._copy_pixels(b, x, to, I64(1), fill),
                    lambda: _fill(b, to, fill, I64(self.r.pixel)),
                )
            elif self.p.flat:
                at = b.mul(row.index, I64(self.p.pitch * self.size))
                self._copy_pixels(b, b.gep(source, [at], source_etype=I8), to, I64(1), fill)
            else:
                self._copy_row(b, size, source, to, row.index, row_bytes, fill)
        b.ret_void()
        return fn

    def _copy_tile_row(self, b: Any, source: Any, copy: Any, row: Any, fill: Any) -> None:
        """A pixel's part of all steps' tiles; rows count pixels of a tile, tiles, taps."""
        p, height = self.p, tile_height(self.p)
        tiles, width = int(tile_rows(p)), int(row_of_tiles(p))  # type: ignore[arg-type]
        place, number = b.srem(row, I64(height)), b.sdiv(row, I64(height))
        tile, tap = b.srem(number, I64(tiles)), b.sdiv(number, I64(tiles))
        pixel = b.add(least(b, b.mul(tile, I64(height)), I64(width - height)), place)
        at = b.add(b.mul(number, I64(self.o.tile_bytes())), b.mul(place, I64(self.r.width)))
        to = b.gep(copy, [at], source_etype=I8)
        if p.gathered:
            self._met(
                b, source, pixel, tap, lambda x: self._spread(b, x, to, fill),
                lambda: self._spread(b, None, to, fill),
            )  # fmt: skip
            return
        at = b.mul(pixel, I64(p.pitch * self.size))
        self._spread(b, b.gep(source, [at], source_etype=I8), to, fill)

    def _spread(self, b: Any, x: Any, to: Any, fill: Any) -> None:
        """A pixel (nothing: one outside) over the tiles of all steps."""
        r, channels = self.r, self.p.c * self.size
        whole = channels // r.width if x is not None else 0
        with Loop(b, I64(0), I64(whole)) as step:
            here = b.gep(to, [b.mul(step.index, I64(ROWS * r.width))], source_etype=I8)
            there = b.gep(x, [b.mul(step.index, I64(r.width))], source_etype=I8) if whole else to
            _copy(b, here, there, I64(r.width))
        rest = channels - whole * r.width if x is not None else 0
        if rest:
            here = b.gep(to, [I64(whole * ROWS * r.width)], source_etype=I8)
            _copy(b, here, b.gep(x, [I64(whole * r.width)], source_etype=I8), I64(rest))
            _fill(b, b.gep(here, [I64(rest)], source_etype=I8), fill, I64(r.width - rest))
        with Loop(b, I64(whole + (rest > 0)), I64(r.steps)) as step:
            here = b.gep(to, [b.mul(step.index, I64(ROWS * r.width))], source_etype=I8)
            _fill(b, here, fill, I64(r.width))

    def _met(self, b: Any, source: Any, pixel: Any, tap: Any, copied: Any, outside: Any) -> None:
        """Calls ``copied`` with the address of the pixel that an output meets at a tap, or
        ``outside``."""
        p = self.p
        at, inside, stride = I64(0), None, p.pitch * self.size
        for axis, extent in zip(reversed(p.axes), reversed(p.x_dims), strict=True):
            x, t = b.srem(pixel, I64(axis.out)), b.srem(tap, I64(axis.window))
            pixel, tap = b.sdiv(pixel, I64(axis.out)), b.sdiv(tap, I64(axis.window))
            place = b.add(b.mul(x, I64(axis.stride)), b.mul(t, I64(axis.dilation)))
            place = b.sub(place, I64(axis.pre))
            here = b.icmp_unsigned("<", place, I64(extent))
            inside = here if inside is None else b.and_(inside, here)
            at = b.add(at, b.mul(place, I64(stride)))
            stride *= extent
        at = b.add(at, b.mul(pixel, I64(stride)))
        with b.if_else(inside) as (yes, no):
            with yes:
                copied(b.gep(source, [at], source_etype=I8))
            with no:
                outside()

    def _copy_row(
        self, b: Any, size: Any, source: Any, to: Any, row: Any, row_bytes: Any, fill: Any
    ) -> None:
        """A row of the image and what is beside it, or one that is outside."""
        p, pixel = self.p, self.r.pixel
        image_bytes, strides = self.o.geometry(size)
        extents = [size(e) for e in self.o.copied_extents()]
        at, inside = I64(0), None
        for d in reversed(range(self.o.rank - 1)):
            axis = p.axes[d]
            place = b.sub(b.srem(row, extents[d]), I64(axis.pre))
            row = b.sdiv(row, extents[d])
            here = b.icmp_unsigned("<", place, size(axis.size))
            inside = here if inside is None else b.and_(inside, here)
            at = b.add(at, b.mul(place, strides[d]))
        at = b.add(at, b.mul(row, image_bytes))
        last = p.axes[-1]
        left = I64(last.pre * pixel)
        count = least(b, size(last.size), b.sub(extents[-1], I64(last.pre)))
        end = b.add(left, b.mul(count, I64(pixel)))

        def copied() -> None:
            if last.pre:
                _fill(b, to, fill, left)
            self._copy_pixels(
                b, b.gep(source, [at], source_etype=I8), b.gep(to, [left], source_etype=I8),
                count, fill,
            )  # fmt: skip
            _fill(b, b.gep(to, [end], source_etype=I8), fill, b.sub(row_bytes, end))

        if inside is None:
            copied()
            return
        with b.if_else(inside) as (yes, no):
            with yes:
                copied()
            with no:
                _fill(b, to, fill, row_bytes)

    def _copy_pixels(self, b: Any, source: Any, to: Any, count: Any, fill: Any) -> None:
        p, r, size = self.p, self.r, self.size
        channels = p.c * size
        groups = p.groups
        if channels == r.group and p.pitch * size == r.pixel:
            _copy(b, to, source, b.mul(count, I64(r.pixel)))
            return
        with Loop(b, I64(0), count) as pixel:
            x = b.gep(source, [b.mul(pixel.index, I64(p.pitch * size))], source_etype=I8)
            y = b.gep(to, [b.mul(pixel.index, I64(r.pixel))], source_etype=I8)
            with Loop(b, I64(0), I64(groups)) as group:
                here = b.gep(x, [b.mul(group.index, I64(channels))], source_etype=I8)
                there = b.gep(y, [b.mul(group.index, I64(r.group))], source_etype=I8)
                _copy(b, there, here, I64(channels))
                if r.group > channels:
                    behind = b.gep(there, [I64(channels)], source_etype=I8)
                    _fill(b, behind, fill, I64(r.group - channels))


def _copy(b: Any, to: Any, source: Any, count: Any) -> None:
    fn = V.declare(b.module, "llvm.memcpy.p0.p0.i64", ir.VoidType(), [PTR, PTR, I64, V.I1])
    b.call(fn, [to, source, count, V.I1(0)])


def _fill(b: Any, to: Any, byte: Any, count: Any) -> None:
    fn = V.declare(b.module, "llvm.memset.p0.i64", ir.VoidType(), [PTR, I8, I64, V.I1])
    b.call(fn, [to, byte, count, V.I1(0)])
