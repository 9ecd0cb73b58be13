"""LLVM IR of direct convolution on channels-last tensors.

One register tile is ``mr`` neighbouring output pixels of a row by ``nv`` vectors of output
channels. For every tap of the window whose input row exists, the tile multiplies the pixels'
input channels with packed weights ``[K / nr][taps][C][nr]``; no patch matrix is ever formed.
Taps that are inside the input for all pixels of the tile address them at constant distances;
at the borders each pixel has its own pointer, to zeros where it is outside.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from ...ir.dtypes import DType, f32
from . import convert
from .folding import FoldingBuilder
from .vecmath import prefetch, splat, type_suffix

F32, I64, I1, I32 = ir.FloatType(), ir.IntType(64), ir.IntType(1), ir.IntType(32)
PTR = ir.PointerType()

_WHOLE = 4  # up to here all channels of a tap are unrolled
_MOST_PRODUCTS = 400  # multiply-adds written out for a row of the window
_LINE = 16  # floats in a cache line
_POINTERS = 8  # pixels that can have registers of their own for their addresses
_MANY = 8  # turns of a loop per request, from which on all requests at once cost little
Store = Callable[["MicroKernel", ir.IRBuilder, list[Any]], None]
"""Writes a finished tile: accumulators by pixel, then by vector of channels."""
Enter = Callable[["MicroKernel", ir.IRBuilder], None]
Touch = Callable[["MicroKernel", ir.IRBuilder, Any, Any], None]
"""Asks for the memory that `Store` will read and write for a pixel of the tile and one of its
vectors of channels, given as numbers or LLVM values."""


@dataclass(frozen=True)
class ConvShape:
    """Everything the code is specialized for. Sizes of the input and output in space, and the
    batch, are run-time values; window, channels and geometry are not.

    Attributes:
        c, k: Input and output channels.
        window, stride, dilation, pre: Per spatial dimension.
        x_channel, x_pixel: Distance in elements between neighbouring channels, and between
            neighbouring positions along the last spatial dimension, of the input.
        depthwise: Each output channel sees the input channel of the same number only; ``c`` is
            1 then, and channels are neighbours in memory.
        dtype: Element type of the input; f16 and bf16 become f32 as they are read.
        past: Whether windows may reach past the end, per spatial dimension; (): they may.
    """

    c: int
    k: int
    window: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    pre: tuple[int, ...]
    x_channel: int
    x_pixel: int
    depthwise: bool = False
    dtype: DType = f32
    past: tuple[bool, ...] = ()

    @property
    def taps(self) -> int:
        return math.prod(self.window)

    def inside(self, d: int = -1) -> bool:
        """Whether every tap along a spatial dimension is inside the input."""
        return self.window[d] == 1 and self.pre[d] == 0 and bool(self.past) and not self.past[d]


@dataclass(frozen=True)
class Tile:
    """A candidate: ``mr`` pixels by ``nv`` vectors of ``lanes`` channels; a work item is
    ``rows`` output rows of one channel block. ``channels_first``: items of one channel block
    follow each other, so its weights stay in the cache; else all blocks of the same rows do."""

    mr: int
    nv: int
    lanes: int
    rows: int = 1
    channels_first: bool = False
    unroll: int = 2

    @property
    def nr(self) -> int:
        return self.nv * self.lanes

    def __str__(self) -> str:
        order = "k" if self.channels_first else "r"
        return f"{self.mr}x{self.nr}{order}{self.rows}"


@dataclass(frozen=True)
class Stream:
    """How weights that the cache does not keep come through it.

    Attributes:
        passes: Times that an item goes through its tiles, each time with as many rows of the
            window; sums wait in scratch.
        ahead: Lines of the weights needed next that each turn of the inner loop asks for; 0: none.
    """

    passes: int = 1
    ahead: int = 0


class Loop:
    """``for (i = start; i < stop; i += step)`` with carried values.

    Use as a context manager; inside, ``index`` and ``carried`` are the values of the iteration
    and `next` gives those of the next one. Afterwards ``results`` holds the final values.
    """

    def __init__(
        self, b: ir.IRBuilder, start: Any, stop: Any, step: int = 1, carried: Sequence[Any] = ()
    ):
        self.b, self.stop, self.step = b, stop, step
        self._init = [start, *carried]
        self._next: Sequence[Any] = ()

    def __enter__(self) -> Loop:
        b = self.b
        before = b.block
        self.head = b.append_basic_block("loop")
        self.body = b.append_basic_block("body")
        self.exit = b.append_basic_block("done")
        b.branch(self.head)
        b.position_at_end(self.head)
        self.phis = [b.phi(v.type) for v in self._init]
        for phi, v in zip(self.phis, self._init, strict=True):
            phi.add_incoming(v, before)
        self.index, self.carried = self.phis[0], self.phis[1:]
        b.cbranch(b.icmp_signed("<", self.index, self.stop), self.body, self.exit)
        b.position_at_end(self.body)
        return self

    def next(self, carried: Sequence[Any]) -> None:
        """Values carried into the next iteration."""
        self._next = list(carried)

    def __exit__(self, *exc: object) -> None:
        b = self.b
        following = [b.add(self.index, I64(self.step)), *self._next]
        for phi, v in zip(self.phis, following, strict=True):
            phi.add_incoming(v, b.block)
        b.branch(self.head)
        b.position_at_end(self.exit)
        self.results = self.carried


def joined(
    b: ir.IRBuilder, *ways: tuple[list[ir.Value], ir.Block]
) -> list[ir.Value]:
    """What several blocks computed alike, in the block that follows them."""
    out = []
    for values in zip(*(v for v, _ in ways), strict=True):
        phi = b.phi(values[0].type)
        for value, (_, block) in zip(values, ways, strict=True):
            phi.add_incoming(value, block)
        out.append(phi)
    return out


class MicroKernel:
    """Emits the internal function that computes one tile.

    Its parameters: pointers to the image, the packed weights of the channel block, zeros, the
    kernel's argument and size arrays; then per spatial dimension the input's stride, its size and
    the position of the tile's first tap; then the image's number, the first output pixel per
    spatial dimension, and the first output channel; last the pass, where sums wait between passes,
    and which of the weights needed next the tile asks for (see `Stream`).

    Attributes:
        mr, nv: Pixels and vectors of this tile (fewer at edges than in the full `Tile`).
        image, pixel, k: Coordinates of the tile's first element, as LLVM values.
        args, dims: The kernel's arrays.
    """

    def __init__(
        self, module: ir.Module, shape: ConvShape, tile: Tile, mr: int, channels: int, name: str,
        stream: Stream,
    ):  # fmt: skip
        self.shape, self.tile, self.mr, self.channels = shape, tile, mr, channels
        self.stream = stream
        self.spread: Touch | None = None
        self.nv = -(-channels // tile.lanes)
        self.rank = r = len(shape.window)
        self.vt = ir.VectorType(F32, tile.lanes)
        self.xt = convert.memory_type(shape.dtype)
        types = [PTR] * 5 + [I64] * (4 * r + 3) + [PTR] * 2
        self.fn = ir.Function(module, ir.FunctionType(ir.VoidType(), types), name)
        self.fn.linkage = "internal"
        self.fn.attributes.add("noinline")
        self.fma = fused_multiply_add(module, self.vt)
        a = self.fn.args
        self.x, self.w, self.zeros, self.args, self.dims = a[:5]
        self.strides, self.sizes, self.origins = (a[5 + i * r : 5 + (i + 1) * r] for i in range(3))
        self.image, self.pixel, self.k = a[5 + 3 * r], a[6 + 3 * r : 6 + 4 * r], a[6 + 4 * r]
        self.turn, self.sums, self.ahead = a[7 + 4 * r :]

    def build(
        self, bias: bool, enter: Enter, store: Store, touch: Touch | None
    ) -> None:
        """Emits the body.

        Args:
            bias: Whether the packed weights begin with a vector of initial sums.
            enter: What `store` and `touch` need in the first block.
            store: Writes the tile.
            touch: Asks for what `store` needs; None: that is near.
        """
        b = FoldingBuilder(self.fn.append_basic_block("entry"))
        enter(self, b)
        w, start = self.w, [ir.Constant(self.vt, None)] * self.nv
        if bias:
            start = [self._weights(b, w, I64(0), j) for j in range(self.nv)]
            w = b.gep(w, [I64(self.tile.nr)], source_etype=F32)
        if self.stream.passes > 1:
            self._pass(b, w, start * self.mr, store, touch)
            return
        if touch is not None and self._spreads():
            self.spread = touch
        else:
            self._touch_all(b, touch)
        self.begin = w
        acc = self._taps(b, 0, self.x, w, start * self.mr)
        store(self, b, acc)
        b.ret_void()

    def _turns(self) -> int:
        """Turns of the loop over channels."""
        return self.shape.c // max(1, self.tile.unroll)

    def _spreads(self) -> bool:
        """Whether requests for memory are spread over the loop over channels: so many at once
        that they are no small part of a short loop would hold up what is behind them."""
        c, vectors = self.shape.c, self.mr * self.nv
        if self.shape.taps > 1 or not self.shape.inside() or c % self.tile.unroll or c <= _WHOLE:
            return False
        return vectors <= 2 * self._turns() and self._turns() < _MANY * vectors

    def _touch_all(self, b: ir.IRBuilder, touch: Touch | None) -> None:
        if touch is not None:
            for i in range(self.mr):
                for j in range(self.nv):
                    touch(self, b, i, j)

    def _touch_some(self, b: ir.IRBuilder, touch: Touch, index: Any) -> None:
        """The part of the requests that belongs to a turn of the loop over channels."""
        vectors = self.mr * self.nv
        share = -(-vectors // self._turns())
        first = b.mul(b.udiv(index, I64(self.tile.unroll)), I64(share))
        for n in range(share):
            number = b.add(first, I64(n))
            number = b.select(b.icmp_unsigned("<", number, I64(vectors)), number, I64(0))
            touch(self, b, b.udiv(number, I64(self.nv)), b.urem(number, I64(self.nv)))

    def _pass(
        self, b: ir.IRBuilder, w: Any, start: list[Any], store: Store, touch: Touch | None
    ) -> None:
        """One row of the window; only the last one stores."""
        s, passes = self.shape, self.stream.passes
        slots = [
            b.gep(self.sums, [I64((i * self.tile.nv + j) * self.tile.lanes)], source_etype=F32)
            for i in range(self.mr) for j in range(self.nv)
        ]
        before = b.block
        later, go = b.append_basic_block("later"), b.append_basic_block("go")
        b.cbranch(b.icmp_signed("==", self.turn, I64(0)), go, later)
        b.position_at_end(later)
        kept = [b.load(at, align=4, typ=self.vt) for at in slots]
        acc = _join(b, before, start, kept, go)
        last = b.icmp_signed("==", self.turn, I64(passes - 1))
        with b.if_then(last):
            self._touch_all(b, touch)
        at = b.add(self.origins[0], b.mul(self.turn, I64(s.dilation[0])))
        step = s.taps // passes * s.c * self.tile.nr
        self.begin = b.gep(w, [b.mul(self.turn, I64(step))], source_etype=F32)
        acc = self._tap(b, 0, self.x, self.begin, acc, at)
        with b.if_else(last) as (done, more):
            with done:
                store(self, b, acc)
            with more:
                for at, x in zip(slots, acc, strict=True):
                    b.store(x, at, align=4)
        b.ret_void()

    def _weights(self, b: ir.IRBuilder, w: Any, base: Any, j: int) -> Any:
        return self._weights_at(b, b.gep(w, [base], source_etype=F32), j * self.tile.lanes)

    def _weights_at(self, b: ir.IRBuilder, w: Any, at: int) -> Any:
        return b.load(b.gep(w, [I64(at)], source_etype=F32), align=4, typ=self.vt)

    def _taps(self, b: ir.IRBuilder, d: int, x: Any, w: Any, acc: list[Any]) -> list[Any]:
        """Loops over the window along spatial dimension ``d`` and those inside it."""
        s = self.shape
        inner = 1
        for n in s.window[d + 1 :]:
            inner *= n
        step = inner * s.c * self.tile.nr
        if s.window[d] == 1:
            return self._tap(b, d, x, w, acc, self.origins[d])
        if d == self.rank - 1 and self._short_row():
            return self._whole_row(b, x, w, acc)
        return self._tap_loop(b, d, x, w, acc, step)

    def _tap_loop(
        self, b: ir.IRBuilder, d: int, x: Any, w: Any, acc: list[Any], step: int
    ) -> list[Any]:
        s = self.shape
        with Loop(b, I64(0), I64(s.window[d]), carried=acc) as loop:
            at = b.add(self.origins[d], b.mul(loop.index, I64(s.dilation[d])))
            weights = b.gep(w, [b.mul(loop.index, I64(step))], source_etype=F32)
            loop.next(self._tap(b, d, x, weights, list(loop.carried), at))
        return list(loop.results)

    def _tap(
        self, b: ir.IRBuilder, d: int, x: Any, w: Any, acc: list[Any], at: Any
    ) -> list[Any]:
        if d == self.rank - 1:
            return self._row_tap(b, x, w, acc, at)
        # a row outside the input contributes nothing
        inside = b.icmp_unsigned("<", at, self.sizes[d])
        before = b.block
        yes, join = b.append_basic_block("inside"), b.append_basic_block("join")
        b.cbranch(inside, yes, join)
        b.position_at_end(yes)
        row = b.gep(x, [b.mul(at, self.strides[d])], source_etype=self.xt)
        new = self._taps(b, d + 1, row, w, acc)
        return _join(b, before, acc, new, join)

    def _short_row(self) -> bool:
        """Whether a row of the window is done at once: because channels are few, so that asking
        for every tap what is inside would count, or lane by lane if its products are not too many
        to be written out."""
        s = self.shape
        if s.depthwise:
            return s.window[-1] * self.mr * self.nv <= _MOST_PRODUCTS
        return s.c <= _WHOLE

    def _whole_row(self, b: ir.IRBuilder, x: Any, w: Any, acc: list[Any]) -> list[Any]:
        """All taps of a row of the window: together in the interior, one by one at borders."""
        s = self.shape
        at = self.origins[-1]
        reach = (self.mr - 1) * s.stride[-1] + (s.window[-1] - 1) * s.dilation[-1]
        fits = b.and_(
            b.icmp_signed(">=", at, I64(0)),
            b.icmp_signed("<", b.add(at, I64(reach)), self.sizes[-1]),
        )
        yes, no = b.append_basic_block("row.interior"), b.append_basic_block("row.border")
        join = b.append_basic_block("row.join")
        b.cbranch(fits, yes, no)
        b.position_at_end(no)
        slow = self._tap_loop(b, self.rank - 1, x, w, acc, s.c * self.tile.nr)
        slow_end = b.block
        b.branch(join)
        b.position_at_end(yes)
        fast = self._interior_row(b, x, at, w, acc)
        fast_end = b.block
        b.branch(join)
        b.position_at_end(join)
        return _merge(b, fast, fast_end, slow, slow_end)

    def _interior_row(
        self, b: ir.IRBuilder, x: Any, at: Any, w: Any, acc: list[Any]
    ) -> list[Any]:
        """All taps of a row of the window, none of which is outside. The taps of few channels
        stay a loop: written out, inputs that several of them share would be kept in registers
        that the sums need."""
        s = self.shape
        if s.depthwise:
            return self._sliding(b, self._rows_apart(b, x, at, I64(s.x_pixel), 1)[0], w, acc)
        with Loop(b, I64(0), I64(s.window[-1]), carried=acc) as loop:
            place = b.add(at, b.mul(loop.index, I64(s.dilation[-1])))
            weights = b.gep(w, [b.mul(loop.index, I64(s.c * self.tile.nr))], source_etype=F32)
            rows = self._rows_apart(b, x, place, I64(s.x_pixel), s.stride[-1])
            loop.next(self._channels(b, rows, weights, list(loop.carried)))
        return list(loop.results)

    def _sliding(self, b: ir.IRBuilder, x: Any, w: Any, acc: list[Any]) -> list[Any]:
        """Products of a row of the window of a depthwise convolution with the pixels at ``x``.
        Every input is read once and multiplied at once for all the outputs that see it."""
        s, t, acc = self.shape, self.tile, list(acc)
        taps, step, apart = s.window[-1], s.stride[-1], s.dilation[-1]
        for j in range(self.nv):
            weights = [self._weights(b, w, I64(tap * t.nr), j) for tap in range(taps)]
            for place in range((self.mr - 1) * step + (taps - 1) * apart + 1):
                seen = [
                    ((place - tap * apart) // step, tap) for tap in range(taps)
                    if (place - tap * apart) % step == 0
                    and 0 <= (place - tap * apart) // step < self.mr
                ]
                if not seen:
                    continue
                y = self._input(b, x, place, j)
                for i, tap in seen:
                    n = i * self.nv + j
                    acc[n] = b.call(self.fma, [y, weights[tap], acc[n]])
        return acc

    def _input(self, b: ir.IRBuilder, x: Any, place: int, j: int) -> Any:
        """The ``j``-th vector of channels of a pixel of a depthwise convolution."""
        s, lanes = self.shape, self.tile.lanes
        at = b.gep(x, [I64(place * s.x_pixel + j * lanes)], source_etype=self.xt)
        y = load_lanes(b, at, ir.VectorType(self.xt, lanes), self.channels - j * lanes)
        return convert.from_memory(b, y, s.dtype)

    def _row_tap(self, b: ir.IRBuilder, x: Any, w: Any, acc: list[Any], at: Any) -> list[Any]:
        """One tap along the last dimension; ``at`` is the first pixel's position."""
        s = self.shape
        pixel, size = I64(s.x_pixel), self.sizes[-1]
        step = s.stride[-1]
        last = b.add(at, I64((self.mr - 1) * step))
        fits = b.and_(b.icmp_signed(">=", at, I64(0)), b.icmp_signed("<", last, size))
        if s.inside():
            rows = self._rows_apart(b, x, at, pixel, step)
            return self._channels(b, rows, w, acc)
        yes, no = b.append_basic_block("interior"), b.append_basic_block("border")
        join = b.append_basic_block("join")
        b.cbranch(fits, yes, no)
        if s.x_channel == 1 and not s.depthwise and self.mr <= _POINTERS:
            b.position_at_end(no)
            near, _ = self._at_border(b, x, at)  # one loop serves both
            b.branch(join)
            b.position_at_end(yes)
            rows = self._rows_apart(b, x, at, pixel, step)
            b.branch(join)
            b.position_at_end(join)
            return self._channels(b, _merge(b, rows, yes, near, no), w, acc)
        b.position_at_end(no)
        slow = self._border(b, x, w, acc, at)
        slow_end = b.block
        b.branch(join)
        b.position_at_end(yes)
        fast = self._channels(b, self._rows_apart(b, x, at, pixel, step), w, acc)
        fast_end = b.block
        b.branch(join)
        b.position_at_end(join)
        return _merge(b, fast, fast_end, slow, slow_end)

    def _border(self, b: ir.IRBuilder, x: Any, w: Any, acc: list[Any], at: Any) -> list[Any]:
        """A tap of which some pixels lie outside the input."""
        pointers, inside = self._at_border(b, x, at)
        return self._channels(b, pointers, w, acc, inside)

    def _at_border(self, b: ir.IRBuilder, x: Any, at: Any) -> tuple[list[Any], list[Any]]:
        """Where each pixel of a tap begins; which of them exist, unless pointers to zeros stand
        for the others."""
        s = self.shape
        pointers, inside = [], []
        for i in range(self.mr):
            pos = b.add(at, I64(i * s.stride[-1]))
            ok = b.icmp_unsigned("<", pos, self.sizes[-1])
            if s.x_channel == 1:  # then all channels of a pixel outside are a run of zeros
                real = b.gep(x, [b.mul(pos, I64(s.x_pixel))], source_etype=self.xt)
                pointers.append(b.select(ok, real, self.zeros))
            else:
                pos = b.select(ok, pos, I64(0))
                pointers.append(b.gep(x, [b.mul(pos, I64(s.x_pixel))], source_etype=self.xt))
                inside.append(ok)
        return pointers, inside

    def _rows_apart(self, b: ir.IRBuilder, x: Any, at: Any, pixel: Any, step: int) -> list[Any]:
        base = b.gep(x, [b.mul(at, pixel)], source_etype=self.xt)
        apart = b.mul(pixel, I64(step))
        return [
            base if i == 0 else b.gep(base, [b.mul(apart, I64(i))], source_etype=self.xt)
            for i in range(self.mr)
        ]

    def _channels(
        self, b: ir.IRBuilder, rows: list[Any], w: Any, acc: list[Any],
        inside: list[Any] | None = None,
    ) -> list[Any]:
        """Adds the products over all input channels of one tap.

        Args:
            rows: Where each pixel's channels begin.
            inside: None in the interior; at borders, flags of the pixels that exist, or none
                if pointers to zeros stand for the others.
        """
        if self.shape.depthwise:
            return self._multiply_lanes(b, rows, w, acc)
        c, most = self.shape.c, 1 if inside else self.tile.unroll
        unroll = c if c <= _WHOLE else next(u for u in range(most, 0, -1) if c % u == 0)
        if c == unroll:
            return self._multiply(b, rows, w, I64(0), unroll, acc, inside)
        ahead = None if inside else self._ahead(b, w, unroll)
        with Loop(b, I64(0), I64(c), unroll, carried=acc) as loop:
            sums = list(loop.carried)
            if self.spread is not None:
                self._touch_some(b, self.spread, loop.index)
            for n in range(self.stream.ahead if ahead is not None else 0):
                line = b.mul(loop.index, I64(_LINE * self.stream.ahead // unroll))
                at = b.gep(ahead, [b.add(line, I64(_LINE * n))], source_etype=F32)
                prefetch(b, at, level=2)
            loop.next(self._multiply(b, rows, w, loop.index, unroll, sums, inside))
        return list(loop.results)

    def _ahead(self, b: ir.IRBuilder, w: Any, unroll: int) -> Any:
        """Which of the weights needed next to ask for while those at ``w`` are used."""
        if not self.stream.ahead:
            return None
        used = b.sub(b.ptrtoint(w, I64), b.ptrtoint(self.begin, I64))
        far = b.mul(b.sdiv(used, I64(4 * self.tile.nr * unroll)), I64(self.stream.ahead * _LINE))
        return b.gep(self.ahead, [far], source_etype=F32)

    def _multiply(
        self, b: ir.IRBuilder, rows: list[Any], w: Any, c: Any, unroll: int, acc: list[Any],
        inside: list[Any] | None,
    ) -> list[Any]:
        t, apart = self.tile, self.shape.x_channel
        acc = list(acc)
        w = b.gep(w, [b.mul(c, I64(t.nr))], source_etype=F32)
        offset = b.mul(c, I64(apart))
        rows = [b.gep(row, [offset], source_etype=self.xt) for row in rows]
        for u in range(unroll):
            weights = [self._weights_at(b, w, u * t.nr + j * t.lanes) for j in range(self.nv)]
            for i in range(self.mr):
                at = b.gep(rows[i], [I64(u * apart)], source_etype=self.xt)
                x = b.load(at, align=self.shape.dtype.size, typ=self.xt)
                if inside:
                    x = b.select(inside[i], x, ir.Constant(self.xt, 0))
                x = convert.from_memory(b, x, self.shape.dtype)
                x = splat(b, x, t.lanes)
                for j in range(self.nv):
                    n = i * self.nv + j
                    acc[n] = b.call(self.fma, [x, weights[j], acc[n]])
        return acc


    def _multiply_lanes(
        self, b: ir.IRBuilder, rows: list[Any], w: Any, acc: list[Any]
    ) -> list[Any]:
        """One tap of a depthwise convolution: channels meet their own weights, lane by lane."""
        lanes, acc = self.tile.lanes, list(acc)
        weights = [self._weights(b, w, I64(0), j) for j in range(self.nv)]
        for i in range(self.mr):
            for j in range(self.nv):
                at = b.gep(rows[i], [I64(j * lanes)], source_etype=self.xt)
                vt = ir.VectorType(self.xt, lanes)
                x = load_lanes(b, at, vt, self.channels - j * lanes)
                x = convert.from_memory(b, x, self.shape.dtype)
                n = i * self.nv + j
                acc[n] = b.call(self.fma, [x, weights[j], acc[n]])
        return acc


def lane_mask(count: int, lanes: int) -> ir.Constant:
    """The first ``count`` of ``lanes`` lanes."""
    bits = [ir.Constant(I1, int(i < count)) for i in range(lanes)]
    return ir.Constant(ir.VectorType(I1, lanes), bits)


def load_lanes(b: ir.IRBuilder, at: Any, vt: ir.VectorType, count: int) -> Any:
    """A vector load that touches no more than ``count`` lanes; the others are zero."""
    size = 4 if vt.element == F32 else 2
    if count >= vt.count:
        return b.load(at, align=size, typ=vt)
    mask_type = ir.VectorType(I1, vt.count)
    name = f"llvm.masked.load.{type_suffix(vt)}.p0"
    fn = b.module.globals.get(name) or ir.Function(
        b.module, ir.FunctionType(vt, [PTR, I32, mask_type, vt]), name
    )
    return b.call(fn, [at, I32(size), lane_mask(count, vt.count), ir.Constant(vt, None)])


def _join(
    b: ir.IRBuilder, before: Any, old: list[Any], new: list[Any], join: Any
) -> list[Any]:
    end = b.block
    b.branch(join)
    b.position_at_end(join)
    return _merge(b, old, before, new, end)


def _merge(
    b: ir.IRBuilder, some: list[Any], from_some: Any, others: list[Any], from_others: Any
) -> list[Any]:
    """The values that come from either of two blocks."""
    out = []
    for x, y in zip(some, others, strict=True):
        phi = b.phi(x.type)
        phi.add_incoming(x, from_some)
        phi.add_incoming(y, from_others)
        out.append(phi)
    return out


def fused_multiply_add(module: ir.Module, vt: ir.VectorType) -> ir.Function:
    """LLVM's function of ``x * y + z`` on vectors of f32, declared once a module."""
    name = f"llvm.fma.v{vt.count}f32"
    known = module.globals.get(name)
    return known or ir.Function(module, ir.FunctionType(vt, [vt, vt, vt]), name)
