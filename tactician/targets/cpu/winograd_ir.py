"""LLVM IR of Winograd convolution on channels-last tensors.

A work item is a run of output tiles of ``m x m`` pixels and a group of output channels:

    for each tile:   its t x t input pixels, transformed    -> scratch V [t * t][tiles][C]
    for each of the t * t positions:   V x packed weights   -> scratch M [t * t][tiles][K]
    for each tile:   M transformed back, then the epilogue  -> scratch of m x m pixels, output

The products are plain matrix products, in register tiles of ``mr`` tiles by ``nv`` vectors of
output channels. Transforms work on vectors of channels. Each part is an internal function.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from llvmlite import ir

from . import vecmath as V
from .conv_common import Epilogue, least
from .conv_ir import F32, I64, PTR, Loop, load_lanes
from .winograd_math import columns_of_pairs, rows_of_pairs, transforms

_LINE = 16  # floats in a cache line
_CHUNK = 64  # channels that are transformed back before they are stored


@dataclass(frozen=True)
class Winograd:
    """A candidate: output tiles of ``m x m``; an item does ``tiles`` of them and one of
    ``groups`` groups of output channels; register tiles are ``mr`` by ``nv`` vectors."""

    m: int
    tiles: int
    mr: int
    nv: int
    lanes: int
    groups: int = 1
    most_unrolled: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if self.tiles % self.mr:
            raise ValueError(f"{self.tiles} tiles are no multiple of {self.mr}")

    @property
    def nr(self) -> int:
        return self.nv * self.lanes

    @property
    def t(self) -> int:
        return self.m + 2

    def __str__(self) -> str:
        groups = f" k/{self.groups}" if self.groups > 1 else ""
        return f"F{self.m} {self.tiles} tiles {self.mr}x{self.nr}{groups}"


def _odd_lines(floats: int) -> int:
    """At least so many floats, an odd number of cache lines: rows so far apart, or planes of
    such rows, don't compete for the same sets of the cache."""
    return (-(-floats // _LINE) | 1) * _LINE


@dataclass(frozen=True)
class Scratch:
    """Where things lie in a thread's scratch; distances in floats.

    Attributes:
        v_row, v_plane: Of V from tile to tile, and from position to position.
        m_row, m_plane: The same of M.
        m_at, y_at: Where M, and the pixels of one tile, begin. Before there are products, the
            place of M holds copies of input tiles at borders.
        size: Everything.
    """

    v_row: int
    v_plane: int
    m_row: int
    m_plane: int
    m_at: int
    y_at: int
    size: int


def scratch(w: Winograd, c: int, group: int, pitch: int) -> Scratch:
    """The layout for ``c`` input channels, pixels ``pitch`` apart, and groups of ``group`` output
    channels."""
    v_row, m_row = _odd_lines(c), _odd_lines(group)
    v_plane, m_plane = _odd_lines(w.tiles * v_row), _odd_lines(w.tiles * m_row)
    m_at = w.t * w.t * v_plane
    y_at = m_at + max(w.t * w.t * m_plane, _odd_lines(w.t * w.t * pitch))
    return Scratch(v_row, v_plane, m_row, m_plane, m_at, y_at, y_at + w.m * w.m * _CHUNK)


def unrolled(w: Winograd, c: int) -> int:
    """Elements of the inner dimension per turn of the products' loop."""
    return next(n for n in (w.most_unrolled, 1) if c % n == 0)


def ahead_lines(w: Winograd, c: int) -> int:
    """Lines of the next panel of weights that each turn of the products' loop asks for, so that
    all register tiles of a panel together ask for it."""
    return -(-(unrolled(w, c) * w.nr // _LINE) // (w.tiles // w.mr))


def ahead_share(w: Winograd, c: int) -> int:
    """Floats of the next panel that a register tile asks for."""
    return ahead_lines(w, c) * _LINE * (c // unrolled(w, c))


class Parts:
    """Emits the functions that an item consists of.

    Args:
        module: Where they go.
        w: The candidate.
        c, k: Input and output channels.
        pitch: Distance in floats between neighbouring input pixels.
        s: Layout of the scratch memory.
        x_type: Element type of the input.
        read: Reads some channels of a pixel as a vector of f32; None: they are f32.
    """

    sums: ir.Type = F32
    v_type: ir.Type = F32

    def __init__(
        self, module: ir.Module, w: Winograd, c: int, k: int, pitch: int, s: Scratch,
        x_type: ir.Type = F32, read: Callable[[ir.IRBuilder, Any, int], Any] | None = None,
    ):  # fmt: skip
        self.x_type, self.read = x_type, read
        self.module, self.w, self.c, self.k, self.pitch, self.s = module, w, c, k, pitch, s
        self.math = transforms(w.m)
        self.vt = ir.VectorType(self.sums, w.lanes)
        self.depth, self.wide = c, w.lanes  # of products; lanes of a vector of inputs

    def _function(self, name: str, types: list[Any]) -> tuple[ir.Function, ir.IRBuilder]:
        fn = ir.Function(self.module, ir.FunctionType(ir.VoidType(), types), name)
        fn.linkage = "internal"
        fn.attributes.add("noinline")
        return fn, ir.IRBuilder(fn.append_basic_block("entry"))

    # --- input -----------------------------------------------------------------------------

    def input(self) -> ir.Function:
        """``(first pixel, V row, stride of pixel rows)``: transforms a tile."""
        fn, b = self._function("input", [PTR, PTR, I64])
        x, v, stride = fn.args
        rows = [
            b.gep(x, [b.mul(stride, I64(i))], source_etype=self.x_type) for i in range(self.w.t)
        ]
        pixels = [
            [b.gep(row, [I64(j * self.pitch)], source_etype=self.x_type) for j in range(self.w.t)]
            for row in rows
        ]
        self._input(b, pixels, v)
        return fn

    def border(self) -> ir.Function:
        """``(image, copy, stride of input rows, zeros, y, x, height, width)``: copies the t x t
        pixels from (y, x) on, with zeros for those outside the image."""
        fn, b = self._function("border", [PTR, PTR, I64, PTR, I64, I64, I64, I64])
        image, copy, stride, zeros, y, x, height, width = fn.args
        t = I64(self.w.t)
        with Loop(b, I64(0), t) as i, Loop(b, I64(0), t) as j:
            row, column = b.add(y, i.index), b.add(x, j.index)
            inside = b.and_(
                b.icmp_unsigned("<", row, height), b.icmp_unsigned("<", column, width)
            )
            at = b.add(b.mul(row, stride), b.mul(column, I64(self.pitch)))
            source = b.select(inside, b.gep(image, [at], source_etype=self.x_type), zeros)
            number = b.add(b.mul(i.index, t), j.index)
            to = b.gep(copy, [b.mul(number, I64(self.pitch))], source_etype=self.x_type)
            self._copy(b, source, to)
        b.ret_void()
        return fn

    def _copy(self, b: ir.IRBuilder, source: Any, to: Any) -> None:
        """All channels of one pixel."""
        lanes = self.w.lanes
        whole = self.c - self.c % lanes
        vector, size = ir.VectorType(self.x_type, lanes), 4 if self.x_type is F32 else 1
        for start, stop, t in ((0, whole, vector), (whole, self.c, self.x_type)):
            with Loop(b, I64(start), I64(stop), lanes if t is vector else 1) as k:
                at = b.gep(source, [k.index], source_etype=self.x_type)
                value = b.load(at, align=size, typ=t)
                b.store(value, b.gep(to, [k.index], source_etype=self.x_type), align=size)

    def _input(self, b: ir.IRBuilder, pixels: list[list[Any]], v: Any) -> None:
        lanes, rest = self.wide, self.c % self.wide
        with Loop(b, I64(0), I64(self.c - rest), lanes) as loop:
            self._input_vector(b, pixels, v, loop.index, lanes)
        if rest:
            self._input_vector(b, pixels, v, I64(self.c - rest), rest)
        b.ret_void()

    def _input_vector(
        self, b: ir.IRBuilder, pixels: list[list[Any]], v: Any, c: Any, count: int
    ) -> None:
        t = self.w.t
        half = []
        for row in pixels:
            at = [b.gep(p, [c], source_etype=self.x_type) for p in row]
            read = self.read or (lambda b, p, n: load_lanes(b, p, self.vt, n))
            xs = [read(b, p, count) for p in at]
            half.append(rows_of_pairs(b, self.math.b, xs))
        out = b.gep(v, [c], source_etype=self.v_type)
        for j in range(t):
            column = rows_of_pairs(b, self.math.b, [half[i][j] for i in range(t)])
            for i, x in enumerate(column):
                at = I64((i * t + j) * self.s.v_plane)
                b.store(x, b.gep(out, [at], source_etype=F32), align=4)

    # --- products --------------------------------------------------------------------------

    def product(self, rows: int) -> ir.Function:
        """``(V, weights of a block of channels, M, weights to ask for)``: one register tile of
        ``rows`` rows."""
        fn, b = self._function(f"product_{rows}", [PTR, PTR, PTR, PTR])
        v, u, m, ahead = fn.args
        w, s = self.w, self.s
        acc = [ir.Constant(self.vt, None)] * (rows * w.nv)
        unroll, lines = unrolled(w, self.depth), ahead_lines(w, self.depth)
        with Loop(b, I64(0), I64(self.depth), unroll, carried=acc) as loop:
            a = b.gep(v, [loop.index], source_etype=F32)
            weights = b.gep(u, [b.mul(loop.index, I64(w.nr))], source_etype=F32)
            acc = list(loop.carried)
            for n in range(lines):
                line = b.mul(loop.index, I64(lines * _LINE // unroll))
                at = b.gep(ahead, [b.add(line, I64(n * _LINE))], source_etype=F32)
                V.prefetch(b, at, level=2)
            for n in range(unroll):
                bs = [self._load(b, weights, n * w.nr + j * w.lanes) for j in range(w.nv)]
                for i in range(rows):
                    at = b.gep(a, [I64(i * s.v_row + n)], source_etype=F32)
                    x = V.splat(b, b.load(at, align=4, typ=self.sums), w.lanes)
                    for j in range(w.nv):
                        q = i * w.nv + j
                        acc[q] = self._multiply_add(b, x, bs[j], acc[q])
            loop.next(acc)
        for i in range(rows):
            for j in range(w.nv):
                at = b.gep(m, [I64(i * s.m_row + j * w.lanes)], source_etype=F32)
                b.store(loop.results[i * w.nv + j], at, align=4)
        b.ret_void()
        return fn

    def _multiply_add(self, b: ir.IRBuilder, x: Any, y: Any, acc: Any) -> Any:
        return V.intrinsic(b, "fma", x, y, acc)

    def _finished(self, b: ir.IRBuilder, x: Any, i: int, j: int) -> Any:
        """A result that has been transformed back."""
        return x

    def _load(self, b: ir.IRBuilder, base: Any, at: int) -> Any:
        return b.load(b.gep(base, [I64(at)], source_etype=F32), align=4, typ=self.vt)

    # --- output ----------------------------------------------------------------------------

    def output(self, epilogue: Epilogue, bias: bool) -> ir.Function:
        """``(M row, pixels' scratch, bias, arguments, sizes, image, y, x, rows, columns, first
        channel, channels)``: a tile whose first pixel is at (y, x) and of which only some rows
        and columns may exist."""
        fn, b = self._function("output", [PTR] * 5 + [I64] * 7)
        m, pixels, biases, args, dims, image, y, x, rows, columns, first, count = fn.args
        epilogue.enter(b, args)
        lanes = self.w.lanes
        with Loop(b, I64(0), count, _CHUNK) as chunk:
            start = chunk.index
            stop = least(b, b.add(start, I64(_CHUNK)), count)
            with Loop(b, start, stop, lanes) as loop:
                at = b.sub(loop.index, start)
                self._output_vector(b, m, loop.index, first, biases if bias else None, pixels, at)
            with Loop(b, I64(0), rows) as row, Loop(b, I64(0), columns) as column:
                number = b.add(b.mul(row.index, I64(self.w.m)), column.index)
                source = b.gep(pixels, [b.mul(number, I64(_CHUNK))], source_etype=F32)
                at = b.add(y, row.index), b.add(x, column.index)

                def store(k: Any, sums: Any, lanes: int, at: Any = at) -> None:
                    em = epilogue.at(b, dims, image, at[:1])
                    epilogue.store(em, at[1], b.add(first, k), sums, lanes)

                self._pixel(b, store, source, start, stop)
        b.ret_void()
        return fn

    def _output_vector(
        self, b: ir.IRBuilder, m: Any, k: Any, first: Any, biases: Any, pixels: Any, at: Any
    ) -> None:
        w, t = self.w, self.w.t
        source = b.gep(m, [k], source_etype=F32)
        half = []
        for i in range(t):
            xs = [self._load(b, source, (i * t + j) * self.s.m_plane) for j in range(t)]
            half.append(columns_of_pairs(b, self.math.a, xs))
        out = b.gep(pixels, [at], source_etype=F32)
        bias = None
        if biases is not None:
            bias = self._load(b, b.gep(biases, [b.add(first, k)], source_etype=F32), 0)
        for j in range(w.m):
            column = columns_of_pairs(b, self.math.a, [half[i][j] for i in range(t)])
            for i, x in enumerate(column):
                x = self._finished(b, x, i, j)
                if bias is not None:
                    x = b.fadd(x, bias) if self.sums is F32 else b.add(x, bias)
                place = b.gep(out, [I64((i * w.m + j) * _CHUNK)], source_etype=F32)
                b.store(x, place, align=4)

    def _pixel(
        self, b: ir.IRBuilder, store: Callable[[Any, Any, int], None], source: Any, start: Any,
        stop: Any,
    ) -> None:
        """Channels ``start`` to ``stop`` of the group, of one pixel, through the epilogue."""
        rest = self.k % self.w.lanes
        lanes = self._stored_lanes()
        whole = b.sub(stop, b.srem(stop, I64(lanes))) if rest else stop

        def vector(k: Any, count: int) -> None:
            place = b.gep(source, [b.sub(k, start)], source_etype=F32)
            t = ir.VectorType(self.sums, lanes)
            store(k, b.load(place, align=4, typ=t), count)

        with Loop(b, start, whole, lanes) as loop:
            vector(loop.index, lanes)
        if rest:
            with b.if_then(b.icmp_signed("<", whole, stop)):
                vector(whole, rest)

    def _stored_lanes(self) -> int:
        """Channels that are stored at a time."""
        return self.w.lanes
