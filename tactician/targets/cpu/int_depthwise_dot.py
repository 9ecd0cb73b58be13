"""Tactic: depthwise convolution of bytes with dot products down the columns of windows.

Four rows of input are interleaved byte by byte, so that a lane holds one channel of four rows at
one place; the dot product of that with a column of weights serves a row of outputs, with the
weights one byte further on the row of outputs below. Interleaving works on 128 bits at a time and
leaves channels in an order that the packs of the epilogue undo; tables of the epilogue are stored
in that order. Channels come in blocks of which the last overlaps the one before it.

Floor for 3x3 windows of stride 1: 12 dot products and 8 shuffles for 128 outputs.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import ir

from ...ir import dims as D
from ...ir import expr as E
from ...ir.dtypes import f32
from ...ir.graph import Value
from ...regions.region import Region
from ...tactics.kernel import Kernel
from ...tactics.tactic import Tactic, register_tactic
from . import int_problem, requantize
from . import vecmath as V
from .conv_common import RuntimeSizes, argument, least, stored_last
from .conv_ir import PTR, Loop
from .emitter import Shifted
from .int_dot import Dot
from .int_epilogue import IntEpilogue
from .int_problem import IntProblem
from .isa import Isa
from .printer import text_of
from .vecmath import F32, I8, I32, I64

Array = np.ndarray[Any, Any]
_ROWS = 4  # of input in a lane
_PART = 16  # bytes that are interleaved at a time
_MOST_TAPS = 64  # all taps are unrolled
_SUMS = 28  # registers for them, of 32
_THREAD_PRODUCTS = 100_000


@dataclass(frozen=True)
class DepthwiseTile:
    """``rows`` by ``columns`` outputs of ``block`` channels."""

    rows: int
    columns: int
    block: int

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns}x{self.block}"


@register_tactic
class DepthwiseDot(Tactic):
    """Depthwise convolution of 8-bit channels-last images to bytes, with constant windows."""

    name = "int_depthwise"
    target = "cpu"
    priority = 52

    def wants_channels_last(self, region: Region, device: Any) -> bool:
        return _refused(region, device) is None

    def refuse(self, region: Region, device: Any) -> str | None:
        why = _refused(region, device)
        if why is not None:
            return why
        assert region.anchor is not None
        if not all(map(stored_last, region.outputs)):
            return "the result is not stored channels-last"
        if region.anchor.inputs[0] not in region.physical:
            return "the input is not stored channels-last"
        return None

    def candidates(self, region: Region, device: Any) -> Sequence[Hashable]:
        return _tiles(IntProblem(region), device)

    def build(self, region: Region, candidate: Any, device: Any) -> Kernel:
        return _Builder(IntProblem(region), candidate, device.isa).build()


def _refused(region: Region, device: Any) -> str | None:
    if device.isa.intrinsic("dot_u8s8") is None:
        return "the CPU has no dot products of u8 by s8"
    why = int_problem.unsuited(region, device)
    if why is not None:
        return why
    p = IntProblem(region)
    if not p.depthwise or len(p.axes) != 2 or p.order != [0, 1]:
        return "not a depthwise convolution of images"
    if p.channels < _PART or p.shape.taps > _MOST_TAPS or p.axes[0].dilation != 1:
        return "too few channels, too many taps, or rows that are not neighbours"
    if not isinstance(p.x_zero, int) or p.weights.min() < -128 or p.weights.max() > 127:
        return "zero points must be known, and weights fit 8 bits"
    e = None if p.stage is None else p.stage.expr
    if not isinstance(e, E.Cast) or requantize.match(e) is None or not p.finish.floats:
        return "the result is not quantized"
    if any(ld.value is not p.finish.source and not _by_channel(p, ld) for ld in E.loads(e)):
        return "the epilogue reads other things than constants by channel"
    return None


def _by_channel(p: IntProblem, ld: E.Load) -> bool:
    """Whether a load reads a constant for each channel."""
    v = ld.value
    known = v.const is not None or v in p.finish.constants
    assert p.stage is not None
    channel = p.stage.vars[-1] if "logical" in p.out.meta else p.stage.vars[1]
    spread = [d for d in v.dims if d != 1]
    return (
        known and v.dtype is f32 and ld.guard is None and spread == [p.k]
        and ld.index[v.dims.index(p.k)] is channel
    )


def _tiles(p: IntProblem, device: Any) -> list[DepthwiseTile]:
    """Tiles, most promising first."""
    high, wide = (a.out for a in p.axes)
    window, stride = p.axes[0].window, p.axes[0].stride
    widest = 4 * device.isa.lanes(32)
    sums = _SUMS if device.isa.vector_registers >= 32 else 12
    blocks = [n for n in (16, 32, 64) if n <= min(p.channels, widest)]
    found = []
    for rows in range(1, 5):
        if rows > 1 and not (isinstance(high, int) and high >= rows):
            break
        groups = -(-((rows - 1) * stride + window) // _ROWS)
        for columns in range(1, 15):
            if 2 * rows * columns > sums or (isinstance(wide, int) and columns > wide):
                break
            for block in blocks:
                tile = DepthwiseTile(rows, columns, block)
                found.append((_cost(p, tile, groups), tile))
    found.sort(key=lambda f: f[0])
    return [tile for _, tile in found[:6]]


def _cost(p: IntProblem, t: DepthwiseTile, groups: int) -> float:
    """Modelled cycles for a picture of one block of columns and rows."""
    (ya, xa), (window, reach) = p.axes, (p.axes[1].window, _reach(p, t.columns))
    high = ya.out if isinstance(ya.out, int) else 64
    wide = xa.out if isinstance(xa.out, int) else 64
    shuffles = 4 * groups * reach
    products = groups * window * t.rows * t.columns * 2
    finish = 8 * t.rows * t.columns
    each = max(shuffles, (shuffles + products) / 2, products * 0.6) + finish / 2 + 6
    narrow = {64: 1.0, 32: 0.75, 16: 0.7}[t.block]
    tiles = -(-high // t.rows) * -(-wide // t.columns) * -(-p.k // t.block)
    return tiles * each * narrow * 2


def _reach(p: IntProblem, columns: int) -> int:
    """Columns of input that a tile reads."""
    a = p.axes[1]
    return (columns - 1) * a.stride + (a.window - 1) * a.dilation + 1


class _Builder:
    """Builds the kernel of one candidate."""

    def __init__(self, p: IntProblem, t: DepthwiseTile, isa: Isa):
        from .int_conv import narrowed

        self.p, self.t = p, t
        self.lanes = t.block // 4
        self.dot = Dot("dot", self.lanes, p.x_signed, narrowed(isa, self.lanes))
        self.window = (p.axes[0].window, p.axes[1].window)
        self.stride = (p.axes[0].stride, p.axes[1].stride)
        self.groups = -(-((t.rows - 1) * self.stride[0] + self.window[0]) // _ROWS)
        self.starts = [min(k, p.k - t.block) for k in range(0, p.k, t.block)]
        self.module = ir.Module("int_depthwise")
        self.module.isa = narrowed(isa, self.lanes)
        self.sizes = RuntimeSizes()
        # as long as the columns that a tile reads: rows outside are read like others
        room = (_reach(p, t.columns) - 1) * p.pitch + t.block
        self.zeros = np.full(room, p.x_zero, p.stored.dtype.np)
        self.packed = self._packed()
        self.args: list[Value | Array] = [p.stored, self.packed, self.zeros]
        stage = self._stage()
        self.args.append(p.out)
        self.epilogue = IntEpilogue(p, list(self._values), self.sizes)
        self.epilogue.stage = stage
        self.tiles: dict[int, ir.Function] = {}

    # --- constants ---------------------------------------------------------------------------

    def _grouped(self, table: Array) -> Array:
        """``[..., channels]`` as ``[blocks, ..., vector, lane]`` in the order of lanes."""
        parts = np.stack([table[..., k : k + self.t.block] for k in self.starts])
        shape = (*parts.shape[:-1], -1, 4, 4)  # [part of 16][vector][lane of the part]
        moved = np.moveaxis(parts.reshape(shape), -2, -3)
        return np.ascontiguousarray(moved).reshape(*parts.shape[:-1], 4, self.lanes)

    def _packed(self) -> Array:
        """``[block][start of each sum | half, group, tap, row of outputs, vector of the half]``."""
        p, t = self.p, self.t
        assert isinstance(p.x_zero, int)
        w = p.weights.reshape(p.k, *self.window).astype(np.int64)
        start = -w.sum(axis=(1, 2)) * (p.x_zero + self.dot.shift)
        columns = np.zeros((self.groups * _ROWS, t.rows, self.window[1], p.k), np.int8)
        for r in range(t.rows):
            first = r * self.stride[0]
            columns[first : first + self.window[0], r] = w.transpose(1, 2, 0)
        columns = columns.reshape(self.groups, _ROWS, *columns.shape[1:])
        order = np.moveaxis(columns, 1, 3)
        body = self._grouped(order)  # [block][group][row][tap][4][vector][lane]
        body = body.reshape(*body.shape[:-2], 2, 2, self.lanes)
        body = body.transpose(0, 5, 1, 3, 2, 6, 7, 4)  # [block][half][group][tap][row][vector]
        head = self._grouped(start.astype(np.int32)).reshape(len(self.starts), -1).view(np.uint8)
        flat = np.ascontiguousarray(body).reshape(len(self.starts), -1).view(np.uint8)
        return np.ascontiguousarray(np.concatenate([head, flat], axis=1))

    def _stage(self) -> E.Stage:
        """The stage with tables in the order of lanes."""
        p = self.p
        assert p.stage is not None
        channel = p.stage.vars[-1] if "logical" in p.out.meta else p.stage.vars[1]
        made: dict[Value, Value] = {}
        self._values: list[Any] = [None, None, None]

        def moved(e: E.Expr) -> E.Expr | None:
            if not isinstance(e, E.Load) or e.value is p.finish.source:
                return None
            if e.value not in made:
                known = p.finish.constants.get(e.value, e.value.const)
                table = self._grouped(np.asarray(known, np.float32).reshape(-1)).reshape(-1)
                made[e.value] = v = Value(f"{e.value.name} in lanes", f32, table.shape)
                v.meta["limits"] = (float(table.min()), float(table.max()))
                self.args.append(table)
                self._values.append(v)
            return E.Load(f32, made[e.value], (channel,), None, None)

        expr = E.rewrite(p.stage.expr, moved)
        self._values.append(p.out)
        return E.Stage(p.stage.out, p.stage.vars, expr)

    # --- the iteration over tiles --------------------------------------------------------------

    def build(self) -> Kernel:
        p, t = self.p, self.t
        name = f"int_depthwise_{t}"
        fn = ir.Function(
            self.module, ir.FunctionType(ir.VoidType(), [PTR, PTR, I64, I64, PTR]), name
        )
        work = p.images * self._row_blocks() * len(self.starts)
        self._main(fn)
        products = 2 * p.shape.taps * t.rows * t.block
        wide = p.axes[1].out
        each = products * (wide if isinstance(wide, int) else 32)
        return Kernel(
            symbol=name,
            source=text_of(self.module),
            args=tuple(self.args),
            dims=tuple(self.sizes.dims),
            work=work,
            grain=max(1, _THREAD_PRODUCTS // each),
            flops=p.images * D.product(a.out for a in p.axes) * (2 * p.k * p.shape.taps),
        )

    def _row_blocks(self) -> D.DimLike:
        return D.ceil_div(self.p.axes[0].out, self.t.rows)

    def _main(self, fn: ir.Function) -> None:
        args, dims, begin, end, _ = fn.args
        b = ir.IRBuilder(fn.append_basic_block("entry"))
        self.b, self.fn_args, self.fn_dims = b, args, dims
        p, t = self.p, self.t
        size = lambda d: self.sizes.value(b, dims, d)  # noqa: E731
        x, w = (argument(b, args, i) for i in (0, 1))
        row_blocks, high = size(self._row_blocks()), size(p.axes[0].out)
        self.width = size(p.axes[1].out)
        image_bytes = size(D.product(p.x_dims) * p.pitch)
        self.rows, self.columns = (size(d) for d in p.x_dims)
        blocks = len(self.starts)
        with Loop(b, begin, end) as item:
            rb, kb = b.sdiv(item.index, I64(blocks)), b.srem(item.index, I64(blocks))
            image, yb = b.sdiv(rb, row_blocks), b.srem(rb, row_blocks)
            y = least(b, b.mul(yb, I64(t.rows)), b.sub(high, I64(t.rows)))
            k = least(b, b.mul(kb, I64(t.block)), I64(p.k - t.block))
            at = b.add(b.mul(image, image_bytes), k)
            place = [
                b.gep(x, [at], source_etype=I8),
                b.gep(w, [b.mul(kb, I64(self.packed.shape[1]))], source_etype=I8),
                argument(b, args, 2), args, dims, self.rows, self.columns, image, y, k,
                b.mul(kb, I64(t.block)),
            ]  # fmt: skip
            self._row(place)
        b.ret_void()

    def _row(self, place: list[Any]) -> None:
        """A row of tiles: the last overlaps the one before it, or is made of narrow ones."""
        b, n, wide = self.b, self.t.columns, self.p.axes[1].out
        if isinstance(wide, int):
            with Loop(b, I64(0), I64(wide), n) as col:
                self._call(n, [*place, least(b, col.index, I64(wide - n))])
            return
        whole = b.mul(b.sdiv(self.width, I64(n)), I64(n))
        with Loop(b, I64(0), whole, n) as col:
            self._call(n, [*place, col.index])
        with Loop(b, whole, self.width) as col:
            self._call(1, [*place, col.index])

    def _call(self, columns: int, values: list[Any]) -> None:
        if columns not in self.tiles:
            types = [PTR] * 5 + [I64] * 7
            name = f"tile_{self.t.rows}x{columns}"
            fn = ir.Function(self.module, ir.FunctionType(ir.VoidType(), types), name)
            fn.linkage = "internal"
            fn.attributes.add("noinline")
            self.tiles[columns] = fn
            _Tile(self, fn, columns).build()
        self.b.call(self.tiles[columns], values)


class _Tile:
    """Emits the function of one tile."""

    def __init__(self, owner: _Builder, fn: ir.Function, columns: int):
        self.o, self.columns = owner, columns
        self.x, self.w, self.zeros, self.args, self.dims = fn.args[:5]
        self.height, self.width, self.image, self.y, self.k, self.lane, self.col = fn.args[5:]
        self.b = ir.IRBuilder(fn.append_basic_block("entry"))
        self.lanes, self.rows = owner.lanes, owner.t.rows
        self.bytes = ir.VectorType(I8, owner.t.block)
        self.sums = ir.VectorType(I32, self.lanes)

    def build(self) -> None:
        b, o = self.b, self.o
        p, a = o.p, o.p.axes
        o.epilogue.enter(b, self.args)
        top = b.sub(b.mul(self.y, I64(o.stride[0])), I64(int(a[0].pre)))
        left = b.sub(b.mul(self.col, I64(o.stride[1])), I64(int(a[1].pre)))
        self.starts: list[tuple[Any, Any]] = []
        for r in range((self.rows - 1) * o.stride[0] + o.window[0]):
            at = b.add(top, I64(r))
            real = b.icmp_unsigned("<", at, self.height)
            first = b.add(b.mul(at, self.width), left)
            row = b.gep(self.x, [b.mul(first, I64(p.pitch))], source_etype=I8)
            self.starts.append((b.select(real, row, self.zeros), real))
        self.left = left
        self.sure = self._surely_inside()
        last = b.add(left, I64(_reach(p, self.columns) - 1))
        inside = b.and_(b.icmp_signed(">=", left, I64(0)), b.icmp_signed("<", last, self.width))
        with b.if_else(inside) as (interior, border):
            with interior:
                self._halves(False)
            with border:
                self._halves(True)
        b.ret_void()

    def _surely_inside(self) -> range:
        """Columns of input, counted from the tile's first, that lie in the image for all tiles."""
        a = self.o.p.axes[1]
        if not (isinstance(a.out, int) and isinstance(a.size, int)):
            return range(0)
        return range(int(a.pre), a.size - ((a.out - self.columns) * a.stride - int(a.pre)))

    def _halves(self, border: bool) -> None:
        for half in (0, 1):
            sums = self._products(half, border)
            for r in range(self.rows):
                for c in range(self.columns):
                    self._finish(half, r, c, sums[r, c])

    def _products(self, half: int, border: bool) -> dict[tuple[int, int], list[Any]]:
        b, o = self.b, self.o
        start = [self._weights(4 * (2 * half + j) * self.lanes, self.sums) for j in (0, 1)]
        outputs = [(r, c) for r in range(self.rows) for c in range(self.columns)]
        sums = {rc: list(start) for rc in outputs}
        head = 4 * o.t.block
        unit = 4 * self.lanes
        for g in range(o.groups):
            for pos in range(_reach(o.p, self.columns)):
                uses = list(self._uses(pos))
                if not uses:
                    continue
                x = self._interleaved(g, pos, half, border)
                for tap, c in uses:
                    for r in range(self.rows):
                        if not self._meets(g, r):
                            continue
                        number = ((half * o.groups + g) * o.window[1] + tap) * self.rows + r
                        for j in (0, 1):
                            w = self._weights(head + (2 * number + j) * unit, self.bytes)
                            sums[r, c][j] = o.dot.products(b, sums[r, c][j], [x[j]], [w])
        return sums

    def _meets(self, g: int, r: int) -> bool:
        """Whether rows of a group belong to the window of a row of outputs."""
        first = r * self.o.stride[0]
        return first < (g + 1) * _ROWS and g * _ROWS < first + self.o.window[0]

    def _uses(self, pos: int) -> Iterator[tuple[int, int]]:
        """Taps and columns of outputs that meet at a column of input."""
        a = self.o.p.axes[1]
        for tap in range(a.window):
            c, rest = divmod(pos - tap * a.dilation, a.stride)
            if rest == 0 and 0 <= c < self.columns:
                yield tap, c

    def _weights(self, offset: int, t: ir.Type) -> Any:
        at = self.b.gep(self.w, [I64(offset)], source_etype=I8)
        return self.b.load(at, typ=t, align=4)

    def _interleaved(self, g: int, pos: int, half: int, border: bool) -> list[Any]:
        """Half the channels of four rows at a column of input: two vectors."""
        b = self.b
        rows = [self._read(_ROWS * g + r, pos, border) for r in range(_ROWS)]
        pairs = [self._unpack(rows[r], rows[r + 1], half, I8) for r in (0, 2)]
        wide = [b.bitcast(x, ir.VectorType(V.I16, 2 * self.lanes)) for x in pairs]
        return [b.bitcast(self._unpack(wide[0], wide[1], j, V.I16), self.bytes) for j in (0, 1)]

    def _unpack(self, x: Any, y: Any, half: int, t: ir.IntType) -> Any:
        """Elements of the lower or upper half of every 128 bits of two vectors in turn."""
        part = 128 // t.width
        n = self.o.t.block * 8 // t.width
        index = []
        for k in range(0, n, part):
            for e in range(part // 2):
                index += [k + half * part // 2 + e, n + k + half * part // 2 + e]
        mask = ir.Constant(ir.VectorType(I32, n), [I32(i) for i in index])
        return self.b.shuffle_vector(x, y, mask)

    def _read(self, r: int, pos: int, border: bool) -> Any:
        if r >= len(self.starts):
            return ir.Constant(self.bytes, None)
        b, o = self.b, self.o
        start, real = self.starts[r]
        place = b.gep(start, [I64(pos * o.p.pitch)], source_etype=I8)
        if border and pos not in self.sure:
            at = b.add(self.left, I64(pos))
            real = b.and_(real, b.icmp_unsigned("<", at, self.width))
            place = b.select(real, place, self.zeros)
        x = b.load(place, typ=self.bytes, align=1)
        return b.xor(x, V.const(self.bytes, -128)) if o.dot.shift else x

    def _finish(self, half: int, r: int, c: int, sums: list[Any]) -> None:
        """The epilogue on half the channels of a pixel; they lie in pieces of eight."""
        b, o = self.b, self.o
        e = o.epilogue.stage.expr
        assert isinstance(e, E.Cast)
        found = requantize.match(e)
        assert found is not None
        em = o.epilogue.at(b, self.dims, self.image, [b.add(self.y, I64(r))])
        channel = o.epilogue._channel()
        assert channel is not None
        x = V.concat(b, sums)
        em.push(b)
        o.epilogue.bind_pixel(em, Shifted(self.col, c))
        first = Shifted(self.lane, 2 * half * self.lanes)
        em.bind(channel, first, width=2 * self.lanes)
        em.bind_result(o.epilogue.source, b.sitofp(x, V.like(x.type, F32)))
        y = V.splat(b, em.emit(found[0]), 2 * self.lanes)
        zero = None if found[1] is None else em.emit(found[1])
        signed = found[1] is not None and found[1].dtype.kind == "i"
        small = requantize.small(em.lowerer.lower(found[0]))
        packed = requantize.pair(b, y, zero, signed, e.dtype, small)
        em.pop()
        em.push(b)
        o.epilogue.bind_pixel(em, Shifted(self.col, c))
        em.bind(channel, self.k)
        index = [em.lowerer.lower(v) for v in o.epilogue.stage.vars]
        out = o.epilogue.stage.out
        target = em.place(out, em.lowerer.flat(out, index))
        em.pop()
        count = o.t.block // 8
        pieces = b.bitcast(packed, ir.VectorType(I64, count))
        mask = ir.Constant(
            ir.VectorType(V.I1, count), [V.I1(i % 2 == half) for i in range(count)]
        )
        name = f"llvm.masked.store.{V.type_suffix(pieces.type)}.p0"
        types = [pieces.type, PTR, I32, mask.type]
        b.call(V.declare(b.module, name, ir.VoidType(), types), [pieces, target, I32(1), mask])
