"""Attention in bf16 on tile registers: scores of a block of queries with all keys, softmax in
vectors, then the product with the values.

A work item is a block of up to 32 queries of one head. A thread packs the keys and values of the
head it works on once: items of a head follow each other, and so do heads that share keys.

    on the head's first item: keys as [tile of 16 keys][step of 32 elements][16 pairs][16 keys],
                              values as [tile of 16 columns][step of 32 keys][16 pairs][16 columns]
    scores = queries * keys                      (tiles, to scratch in f32)
    weights = exp(scores - maximum) as bf16      (vectors along the keys, where the scores were)
    y = weights * values / sum                   (tiles, then vectors)

Tiles of queries all have the same height: the last one begins early where it must. The products of
a block can go on beside the softmax of the next one, as vectors and tiles are different units.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from llvmlite import ir

from ...ir import dims as D
from ...ir.dtypes import b1, bf16
from ...ir.graph import Value
from ...regions.heads import Heads
from ...tactics.kernel import Kernel
from . import convert
from . import vecmath as V
from .attention_problem import LOG2E, Problem, mask_rows
from .codegen import Gen, Num
from .conv_ir import load_lanes
from .isa import Isa
from .packing import across, transpose
from .tile_ir import ROW_BYTES, ROWS, TileUnit
from .vecmath import F32, I1, I16, I32, I64

# 2**x for |x| <= 1/2, lowest order first; relative error 8e-5, far less than bf16's
_EXP2 = (0.999928074, 0.693260985, 0.242611122, 0.0551716689)
_MAGIC = 12582912.0  # adding it rounds to an integer, which is in the low bits then
STEP = 32  # bf16 elements of a tile's row
_TILE = ROWS * ROW_BYTES  # bytes of a tile
_SHARED = 6  # registers of sums and rows; the other two hold columns
_THREAD_FLOPS = 400_000  # some 2 µs of work
_ASSUMED = 128  # keys where only the run knows
_FLOATS = ir.VectorType(F32, ROWS)
_INTS = ir.VectorType(I32, ROWS)
_HALVES = ir.VectorType(I16, ROWS)
_ROW = ir.VectorType(I16, STEP)


@dataclass(frozen=True)
class Tiles:
    """How queries and keys are cut.

    Attributes:
        rows: Tiles of queries of a work item.
        columns: Tiles of keys whose scores are summed at a time.
        beside: Whether the product with the values is done beside the next item's softmax.
    """

    rows: int
    columns: int
    beside: bool = False

    def __str__(self) -> str:
        return f"{self.rows * ROWS}x{self.columns * ROWS}{' beside' if self.beside else ''}"


@dataclass(frozen=True)
class _Block:
    """A block of queries under way.

    Attributes:
        first, count: Its tiles.
        y: Address of its head's first row of results.
        pairs: Pairs of vectors of keys that it sees.
        half: Which half of the scratch memory for scores and factors it has.
    """

    first: Num
    count: Num
    y: ir.Value
    pairs: Num
    half: Num


def places(rows: int, columns: int, steps: int) -> bool:
    """Whether a block's queries stay in registers while the keys pass by."""
    return rows * (columns + steps) <= _SHARED


class TileAttention:
    """Emits the kernel of one candidate."""

    def __init__(self, p: Problem, how: Tiles, isa: Isa, symbol: str):
        self.p, self.how, self.symbol = p, how, symbol
        g = self.g = Gen(symbol, isa)
        self.unit = TileUnit(isa, g.module)
        self.args: list[Value] = []
        q, k, v = p.node.inputs[:3]
        assert q is not None and k is not None and v is not None
        self.q_ptr, self.k_ptr, self.v_ptr = (self._take(x) for x in (q, k, v))
        self.mask_ptr = None if p.mask is None else self._take(p.mask)
        self.y_ptr = self._take(p.node.outputs[0])
        self.queries, self.keys = g.size(p.q.length), g.size(p.k.length)
        self.steps = -(-p.size // STEP)
        self.v_tiles = -(-p.v_size // ROWS)
        self.copies_q = p.size % STEP != 0
        a = p.node.attrs
        self.windowed = a.left >= 0 or a.right >= 0
        self.hides = p.mask is not None or a.causal or self.windowed
        self.changes = p.mask is not None or a.softcap > 0 or p.scale < 0
        self._cut_queries()
        self._layout_scratch()

    def _take(self, v: Value) -> ir.Value:
        if v not in self.args:
            self.args.append(v)
        return self.g.arg(self.args.index(v))

    def _cut_queries(self) -> None:
        """Tiles of queries, their height, and items of a head."""
        g = self.g
        self.tiles = g.ceil_div(self.queries, ROWS)
        self.height = g.div(g.add(self.queries, g.sub(self.tiles, 1)), self.tiles)
        self.blocks = g.ceil_div(self.tiles, self.how.rows)

    def _layout_scratch(self) -> None:
        """Byte offsets of what a thread keeps, the parts of known size first."""
        p, g, at = self.p, self.g, 0

        def room(size: int) -> int:
            nonlocal at
            at += size
            return at - size

        rows = self.how.rows
        self.state_at = room(-(-self.unit.state_bytes // ROW_BYTES) * ROW_BYTES)
        halves = 2 if self.how.beside else 1
        self.shift_at, self.factor_at = room(ROW_BYTES), room(halves * rows * ROW_BYTES)
        self.sums_at = room(_TILE)
        self.y_row = self.v_tiles * ROW_BYTES
        self.y_at = room(rows * ROWS * self.y_row)
        self.q_at = room(rows * self.steps * _TILE if self.copies_q else 0)
        # an odd number of lines from row to row, so that a column's rows lie in different sets
        steps = D.ceil_div(p.k.length, STEP)
        score_row = steps * (STEP * 4) + ROW_BYTES
        k_bytes = D.ceil_div(p.k.length, ROWS) * (self.steps * _TILE)
        self.key_steps = g.ceil_div(self.keys, STEP)
        self.score_row = g.add(g.mul(self.key_steps, STEP * 4), ROW_BYTES)
        self.s_at = at
        self.k_at = g.add(at, g.mul(self.score_row, halves * rows * ROWS))
        self.v_at = g.add(self.k_at, g.mul(g.ceil_div(self.keys, ROWS), self.steps * _TILE))
        self.scratch_bytes = (
            at + score_row * (halves * rows * ROWS) + k_bytes + steps * (self.v_tiles * _TILE)
        )

    def _spot(self, at: Num) -> ir.Value:
        return self.g.at(self.g.scratch, at)

    # --- work items ------------------------------------------------------------------------

    def kernel(self) -> Kernel:
        p, g = self.p, self.g
        self.state = self._spot(self.state_at)
        height = g.value(self.height)
        self.unit.configure(
            g.b, self.state,
            [(height, ROW_BYTES)] * _SHARED + [(I64(ROWS), ROW_BYTES)] * (8 - _SHARED),
        )  # fmt: skip
        if self.how.beside:
            self._items_beside()
        else:
            self._items()
        self.unit.release(g.b)
        rows = D.ceil_div(D.ceil_div(p.q.length, ROWS), self.how.rows)
        flops = 2 * p.q.batch * p.q.heads * p.q.length * p.k.length * (p.size + p.v_size)
        keys = self.keys if isinstance(self.keys, int) else _ASSUMED
        item_flops = 2 * keys * self.how.rows * ROWS * (p.size + p.v_size)
        return Kernel(
            self.symbol, g.finish(), tuple(self.args), tuple(g.dims),
            p.q.batch * p.q.heads * rows, max(1, _THREAD_FLOPS // item_flops),
            self.scratch_bytes, flops, notes={"tiles": str(self.how)},
        )  # fmt: skip

    def _items(self) -> None:
        """One item after the other."""
        g = self.g
        with g.loop(g.begin, g.end, carried=[I64(-1)]) as item:
            current = self._enter(item.index)
            with g.b.if_then(g.b.icmp_signed("!=", current, item.carried[0])):
                self._pack()
            block = self._block(item.index, 0)
            self._by_count(block, self._scores)
            self._softmax(block)
            self._by_count(block, self._products)
            self._store(block)
            item.next = [current]

    def _items_beside(self) -> None:
        """Items of which each leaves its products to the next one, and what is left to one more
        turn."""
        g, b = self.g, self.g.b
        none = [I64(-1), I64(0), I64(0), self.y_ptr, I64(0)]
        with g.loop(g.begin, g.add(g.end, 1), carried=none) as item:
            before, first, count, y, pairs = item.carried
            half = g.mod(item.index, 2)
            old = _Block(first, count, y, pairs, g.sub(1, half))
            real = b.icmp_signed("<", item.index, g.end)
            current = self._enter(g.min(item.index, g.sub(g.end, 1)))
            new = self._block(g.min(item.index, g.sub(g.end, 1)), half)
            most = I64(self.how.rows)
            full = b.and_(b.icmp_signed("==", g.value(new.count), most),
                          b.icmp_signed("==", count, most))  # fmt: skip
            same = b.icmp_signed("==", current, before)
            together = b.and_(real, b.and_(full, same))
            alone = b.and_(b.not_(together), b.icmp_signed(">", count, I64(0)))
            with b.if_then(alone):
                self._by_count(old, self._products)
                self._store(old)
            with b.if_then(real):
                with b.if_then(b.not_(same)):
                    self._pack()
                self._by_count(new, self._scores)
                with b.if_else(together) as (yes, no):
                    with yes:
                        self._softmax(new, old)
                        self._store(old)
                    with no:
                        self._softmax(new)
            item.next = [
                current, g.value(new.first), g.value(new.count), new.y, g.value(new.pairs)
            ]

    def _enter(self, index: Num) -> ir.Value:
        """Comes to an item's head; the number of its keys and values."""
        g, p = self.g, self.p
        heads, kv_heads = g.size(p.q.heads), g.size(p.k.heads)
        rest = g.div(index, self.blocks)
        self.head, self.batch = g.mod(rest, heads), g.div(rest, heads)
        self.kv_head = g.div(self.head, g.size(D.floor_div(p.q.heads, p.k.heads)))
        return g.value(g.add(g.mul(self.batch, kv_heads), self.kv_head))

    def _pack(self) -> None:
        self._pack_keys(self._base(self.k_ptr, self.p.k, self.kv_head))
        self._pack_values(self._base(self.v_ptr, self.p.v, self.kv_head))

    def _in_turn(self, block: Num) -> Num:
        """The block that a head's item is. Where late queries see more keys than early ones, both
        take turns, so that neighbouring items are as much work as others."""
        g = self.g
        if not self.p.node.attrs.causal:
            return block
        half = g.div(block, 2)
        odd = g.test("!=", g.mod(block, 2), 0)
        late = g.sub(g.sub(self.blocks, 1), half)
        if isinstance(odd, bool):
            return late if odd else half
        return g.b.select(odd, g.value(late), g.value(half))

    def _base(self, pointer: ir.Value, h: Heads, head: Num) -> ir.Value:
        """Address of a head's first row."""
        g = self.g
        first = g.linear([(self.batch, g.size(h.strides[0])), (head, g.size(h.strides[1]))])
        return g.at(pointer, first, 2)

    def _block(self, index: Num, half: Num) -> _Block:
        """An item's block."""
        g, p, most = self.g, self.p, self.how.rows
        first = g.mul(self._in_turn(g.mod(index, self.blocks)), most)
        self.q_base = self._base(self.q_ptr, p.q, self.head)
        if p.mask is not None:
            assert self.mask_ptr is not None
            self.mask_base = mask_rows(g, p.mask, self.mask_ptr, self.batch, self.head)
        count = g.min(g.sub(self.tiles, first), most)
        if isinstance(self.tiles, int) and self.tiles % most == 0:
            count = most
        self.end = self.keys  # of the keys that anything in the block sees
        if p.node.attrs.causal:
            last = self._start(g.sub(g.add(first, count), 1))
            self.end = g.min(self.keys, g.add(last, self.height))
        y = self._base(self.y_ptr, p.y, self.head)
        return _Block(first, count, y, g.ceil_div(self.end, STEP), half)

    def _start(self, tile: Num) -> Num:
        """First query of a tile."""
        g = self.g
        whole = isinstance(self.queries, int) and self.queries == g.mul(self.tiles, self.height)
        at = g.mul(tile, self.height)
        return at if whole else g.min(at, g.sub(self.queries, self.height))

    def _by_count(self, block: _Block, body: Callable[[_Block, int], None]) -> None:
        """``body(block, tiles)`` with the number of tiles as a literal."""
        g, count = self.g, block.count
        if isinstance(count, int):
            body(block, count)
            return
        for n in range(1, self.how.rows + 1):
            if isinstance(self.tiles, int) and n not in (
                self.how.rows, self.tiles % self.how.rows
            ):  # fmt: skip
                continue
            with g.b.if_then(g.b.icmp_signed("==", count, I64(n))):
                body(block, n)

    # --- packing ---------------------------------------------------------------------------

    def _pack_keys(self, base: ir.Value) -> None:
        """Pairs of a key's elements become columns; keys past the last repeat it."""
        g, p = self.g, self.p
        stride = g.size(p.k.strides[2])
        with g.loop(0, g.ceil_div(self.keys, ROWS)) as tile:
            first = g.mul(tile.index, ROWS)
            lines = [
                g.at(base, g.mul(g.min(g.add(first, r), g.sub(self.keys, 1)), stride), 2)
                for r in range(ROWS)
            ]
            for s in range(self.steps):
                rows = [self._elements(line, s) for line in lines]
                to = self._spot(g.add(self.k_at, g.mul(g.add(g.mul(tile.index, self.steps), s),
                                                       _TILE)))  # fmt: skip
                for n, x in enumerate(transpose(g.b, rows)):
                    g.store(x, g.at(to, n * ROW_BYTES), ROW_BYTES)

    def _elements(self, line: ir.Value, step: int) -> ir.Value:
        """A step of a row of queries or keys as 16 pairs; beyond its end are zeros."""
        g = self.g
        count = min(STEP, self.p.size - step * STEP)
        x = load_lanes(g.b, g.at(line, step * STEP, 2), _ROW, count)
        return g.b.bitcast(x, _INTS)

    def _pack_values(self, base: ir.Value) -> None:
        """Two keys' values side by side; beyond the last key are zeros."""
        g = self.g
        whole, odd = g.div(self.keys, 2), g.mod(self.keys, 2)
        stride = g.size(self.p.v.strides[2])

        def pair(index: Num, present: int) -> None:
            for c in range(self.v_tiles):
                x: ir.Value = ir.Constant(_INTS, None)
                for n in reversed(range(present)):
                    line = g.at(base, g.mul(g.add(g.mul(index, 2), n), stride), 2)
                    count = min(ROWS, self.p.v_size - c * ROWS)
                    part = load_lanes(g.b, g.at(line, c * ROWS, 2), _HALVES, count)
                    wide = g.b.zext(part, _INTS)
                    x = wide if n else g.b.or_(x, wide)
                    x = g.b.shl(x, V.const(_INTS, 16)) if n else x
                at = g.add(g.mul(self.key_steps, c * _TILE), g.mul(index, ROW_BYTES))
                g.store(x, self._spot(g.add(self.v_at, at)), ROW_BYTES)

        def run(start: Num, end: Num, present: int) -> None:
            if g.test("<", start, end) is not False:
                with g.loop(start, end) as i:
                    pair(i.index, present)

        run(0, whole, 2)
        run(whole, g.add(whole, odd), 1)
        run(g.add(whole, odd), g.mul(self.key_steps, STEP // 2), 0)

    # --- products --------------------------------------------------------------------------

    def _queries_at(self, block: _Block, count: int) -> tuple[list[ir.Value], ir.Value]:
        """Where each tile of queries is, and the bytes between its rows."""
        g, h = self.g, self.p.q
        stride = g.size(h.strides[2])
        starts = [self._start(g.add(block.first, i)) for i in range(count)]
        lines = [g.at(self.q_base, g.mul(start, stride), 2) for start in starts]
        if not self.copies_q:
            return lines, g.value(g.mul(stride, 2))
        row = self.steps * ROW_BYTES
        spots = [self._spot(self.q_at + i * ROWS * row) for i in range(count)]
        for line, spot in zip(lines, spots, strict=True):
            with g.loop(0, self.height) as r:
                source = g.at(line, g.mul(r.index, stride), 2)
                to = g.at(spot, g.mul(r.index, row))
                for s in range(self.steps):
                    g.store(self._elements(source, s), g.at(to, s * ROW_BYTES), ROW_BYTES)
        return spots, I64(row)

    def _score_spot(self, block: _Block, tile: Num, at: Num = 0) -> ir.Value:
        """An address within the first row of a tile's scores."""
        g = self.g
        row = g.mul(g.add(g.mul(block.half, self.how.rows), tile), ROWS)
        return self._spot(g.linear([(1, self.s_at), (self.score_row, row), (1, at)]))

    def _factor_spot(self, block: _Block, tile: Num) -> Num:
        """Where what a tile's results are multiplied with is in scratch."""
        g = self.g
        number = g.add(g.mul(block.half, self.how.rows), tile)
        return g.add(self.factor_at, g.mul(number, ROW_BYTES))

    def _scores(self, block: _Block, count: int) -> None:
        g, b, unit = self.g, self.g.b, self.unit
        queries, apart = self._queries_at(block, count)
        most = self.how.columns if count == self.how.rows else max(
            (c for c in (4, 3, 2, 1) if places(count, c, self.steps)), default=4
        )  # fmt: skip
        resident = places(count, most, self.steps)
        sums = count * most

        def load_rows(s: int) -> None:
            for i, at in enumerate(queries):
                register = sums + (i * self.steps + s if resident else i)
                unit.load(b, self.state, register, g.at(at, s * ROW_BYTES), apart)

        def tiles(first: Num, columns: int) -> None:
            for i in range(count * columns):
                unit.clear(b, self.state, i)
            for s in range(self.steps):
                if not resident:
                    load_rows(s)
                for j in range(columns):
                    column = _SHARED + (s * columns + j) % (8 - _SHARED)
                    at = g.add(g.mul(g.add(first, j), self.steps), s)
                    spot = self._spot(g.add(self.k_at, g.mul(at, _TILE)))
                    unit.load(b, self.state, column, spot, I64(ROW_BYTES))
                    for i in range(count):
                        row = sums + (i * self.steps + s if resident else i)
                        unit.multiply(b, self.state, "bf16", i * columns + j, row, column)
            for i in range(count):
                for j in range(columns):
                    spot = self._score_spot(block, i, g.mul(g.add(first, j), ROW_BYTES))
                    unit.store(b, self.state, i * columns + j, spot, g.value(self.score_row))

        if resident:
            for s in range(self.steps):
                load_rows(s)
        self._in_groups(g.ceil_div(self.end, ROWS), most, tiles)

    def _in_groups(self, end: Num, most: int, body: Callable[[Num, int], None]) -> None:
        """``body(first, count)`` for ``most`` things at a time, then one at a time."""
        g = self.g
        whole = g.sub(end, g.mod(end, most))
        for start, stop, n in ((0, whole, most), (whole, end, 1)):
            if g.test("<", start, stop) is not False:
                with g.loop(start, stop, n) as i:
                    body(i.index, n)

    def _products(self, block: _Block, count: int) -> None:
        """Weights times values, to scratch."""
        most = 2 if count > 1 else 4
        for first in range(0, self.v_tiles, most):
            columns = min(most, self.v_tiles - first)
            self._clear_sums(count * columns)
            with self.g.loop(0, block.pairs) as step:
                self._step(block, count, first, columns, step.index)
            self._store_sums(count, first, columns)

    def _clear_sums(self, count: int) -> None:
        for i in range(count):
            self.unit.clear(self.g.b, self.state, i)

    def _step(self, block: _Block, count: int, first: Num, columns: int, step: Num) -> None:
        """Weights of 32 keys times some columns of their values."""
        g, b, unit = self.g, self.g.b, self.unit
        rows = [4 + i for i in range(count)]
        for i, row in enumerate(rows):
            spot = self._score_spot(block, i, g.mul(step, ROW_BYTES))
            unit.load(b, self.state, row, spot, g.value(self.score_row))
        for j in range(columns):
            column = _SHARED + j % (8 - _SHARED)
            place = g.add(g.mul(self.key_steps, g.add(first, j)), step)
            spot = self._spot(g.add(self.v_at, g.mul(place, _TILE)))
            unit.load(b, self.state, column, spot, I64(ROW_BYTES))
            for i, row in enumerate(rows):
                unit.multiply(b, self.state, "bf16", i * columns + j, row, column)

    def _store_sums(self, count: int, first: Num, columns: int) -> None:
        g = self.g
        for i in range(count):
            for j in range(columns):
                at = g.add(self.y_at + i * ROWS * self.y_row, g.mul(g.add(first, j), ROW_BYTES))
                self.unit.store(g.b, self.state, i * columns + j, self._spot(at), I64(self.y_row))

    # --- softmax ---------------------------------------------------------------------------

    def _softmax(self, block: _Block, old: _Block | None = None) -> None:
        """Scores become weights, and the factors of the results are found. Beside it the products
        of an ``old`` block are summed, some columns with each tile."""
        g = self.g
        columns = self.v_tiles // self.how.rows
        with g.loop(0, block.count) as tile:
            first = g.mul(tile.index, columns)
            if old is not None:
                self._clear_sums(self.how.rows * columns)
            self._softmax_tile(block, tile.index, old)
            if old is not None:
                self._store_sums(self.how.rows, first, columns)

    def _softmax_tile(self, block: _Block, tile: Num, old: _Block | None) -> None:
        g, b = self.g, self.g.b
        base = self._score_spot(block, tile)
        start = self._start(g.add(block.first, tile))
        top = across(b, self._maxima(base, start, block.pairs), self._greater)
        if self.hides:
            never = b.fcmp_ordered("==", top, V.const(_FLOATS, -np.inf))
            top = b.select(never, V.const(_FLOATS, 0), top)
        # where there is a mask scores may be so low that products overflow
        shift = top if self.p.mask is not None else b.fneg(b.fmul(top, self._factor()))
        g.store(shift, self._spot(self.shift_at), ROW_BYTES)
        columns = self.v_tiles // self.how.rows
        with g.loop(0, self.height) as row:
            if old is not None:
                begin, end = (
                    g.div(g.mul(old.pairs, g.add(row.index, n)), self.height) for n in (0, 1)
                )
                with g.loop(begin, end) as step:
                    self._step(old, self.how.rows, g.mul(tile, columns), columns, step.index)
            total = self._weights(g.at(base, g.mul(row.index, self.score_row)), row.index,
                                  block.pairs)  # fmt: skip
            g.store(total, self._spot(g.add(self.sums_at, g.mul(row.index, ROW_BYTES))), ROW_BYTES)
        lines = [self._spot(self.sums_at + r * ROW_BYTES) for r in range(ROWS)]
        total = across(b, [g.load(_FLOATS, at, ROW_BYTES) for at in lines], b.fadd)
        one = V.const(_FLOATS, 1)
        none = b.fcmp_ordered("==", total, V.const(_FLOATS, 0))
        inverse = b.fdiv(one, b.select(none, one, total))
        g.store(inverse, self._spot(self._factor_spot(block, tile)), ROW_BYTES)

    def _factor(self) -> ir.Value:
        """What turns scores into exponents of 2."""
        return V.const(_FLOATS, LOG2E if self.changes else LOG2E * self.p.scale)

    def _weights(self, line: ir.Value, row: Num, pairs: Num) -> ir.Value:
        """A row of scores becomes weights, in place; their sums by lane."""
        g, b = self.g, self.g.b
        shift, factor = self._splat(self.shift_at, row), self._factor()
        with g.loop(0, pairs, carried=[V.const(_FLOATS, 0)] * 2) as pair:
            weights = []
            for n in range(2):
                at = g.add(g.mul(pair.index, 2 * ROW_BYTES), n * ROW_BYTES)
                x = g.load(_FLOATS, g.at(line, at), ROW_BYTES)
                weights.append(self._exp2(
                    V.intrinsic(b, "fma", x, factor, shift) if self.p.mask is None
                    else b.fmul(b.fsub(x, shift), factor)
                ))  # fmt: skip
            for n, e in enumerate(weights):
                to = g.at(line, g.add(g.mul(pair.index, ROW_BYTES), n * ROW_BYTES // 2))
                g.store(convert.to_memory(b, e, bf16), to, ROW_BYTES // 2)
            pair.next = [b.fadd(s, e) for s, e in zip(pair.carried, weights, strict=True)]
        return b.fadd(*pair.results)

    def _splat(self, at: Num, row: Num) -> ir.Value:
        g = self.g
        return V.splat(g.b, g.load(F32, self._spot(g.add(at, g.mul(row, 4)))), ROWS)

    def _maxima(self, base: ir.Value, start: Num, pairs: Num) -> list[ir.Value]:
        """For each row, vectors of its keys' greatest; scores are as they count afterwards, and
        -inf where nothing is seen."""
        g, p = self.g, self.p
        self.lines = [g.at(base, g.mul(r, self.score_row)) for r in range(ROWS)]
        self.rows = [g.add(start, g.min(r, g.sub(self.height, 1))) for r in range(ROWS)]
        seen = self.keys  # of every row of the tile
        if p.node.attrs.causal:
            seen = g.min(self.keys, g.add(start, 1))
        whole = 0 if self.windowed else g.div(seen, ROWS)
        top = [V.const(_FLOATS, -np.inf)] * ROWS
        for first, end, bounded in ((0, whole, False), (whole, g.mul(pairs, 2), True)):
            if g.test("<", first, end) is False:
                continue
            with g.loop(first, end, carried=top) as j:
                j.next = self._visit(j.index, bounded, j.carried)
            top = j.results
        return top

    def _visit(self, j: Num, bounded: bool, top: Sequence[ir.Value]) -> list[ir.Value]:
        """A vector of keys of all rows."""
        g, b, p = self.g, self.g.b, self.p
        lanes = ir.Constant(_INTS, [I32(n) for n in range(ROWS)])
        first = g.value(g.mul(j, ROWS))
        place = b.add(lanes, V.splat(b, b.trunc(first, I32), ROWS))
        there = None
        if bounded:
            there = b.icmp_signed("<", place, self._splat_number(self.keys))
        shared = None
        if p.mask is not None and not p.mask_moves:
            shared = self._mask(0, first, there)
        out = []
        for line, row, best in zip(self.lines, self.rows, top, strict=True):
            at = g.at(line, g.mul(j, ROW_BYTES))
            x = g.load(_FLOATS, at, ROW_BYTES)
            if self.changes:
                x = self._changed(x)
            if p.mask is not None:
                y = shared if shared is not None else self._mask(row, first, there)
                if p.mask.dtype is b1:
                    x = b.select(y, x, V.const(_FLOATS, -np.inf))
                else:
                    x = b.fadd(x, y)
            if there is not None:
                for seen in (there, *self._window(place, row)):
                    x = b.select(seen, x, V.const(_FLOATS, -np.inf))
            if self.changes or bounded:
                g.store(x, at, ROW_BYTES)
            out.append(self._greater(best, x))
        return out

    def _splat_number(self, x: Num) -> ir.Value:
        b = self.g.b
        return V.splat(b, I32(x) if isinstance(x, int) else b.trunc(x, I32), ROWS)

    def _greater(self, x: ir.Value, y: ir.Value) -> ir.Value:
        b = self.g.b
        return b.select(b.fcmp_ordered(">", x, y), x, y)

    def _changed(self, x: ir.Value) -> ir.Value:
        """Scores times the scale, and bounded softly."""
        b, a = self.g.b, self.p.node.attrs
        x = b.fmul(x, V.const(_FLOATS, self.p.scale))
        if a.softcap > 0:
            cap = V.const(_FLOATS, a.softcap)
            x = b.fmul(cap, V.unary(b, "tanh", b.fmul(x, V.const(_FLOATS, 1 / a.softcap))))
        return x

    def _mask(self, row: Num, first: Num, there: ir.Value | None) -> ir.Value:
        """The mask for a vector of keys of a row; lanes that are not ``there`` aren't read."""
        g, b, m = self.g, self.g.b, self.p.mask
        assert m is not None
        t = convert.memory_type(m.dtype, ROWS)
        if m.dtype.name == "f16":
            t = _HALVES
        at = g.at(self.mask_base, g.add(g.mul(row, g.size(m.dims[-1])), first), m.dtype.size)
        if there is None:
            x = g.load(t, at)
        else:
            name = f"llvm.masked.load.{V.type_suffix(t)}.p0"
            fn = V.declare(g.module, name, t, [V.PTR, I32, ir.VectorType(I1, ROWS), t])
            x = b.call(fn, [at, I32(m.dtype.size), there, ir.Constant(t, None)])
        if m.dtype.name == "f16":
            x = b.bitcast(x, convert.memory_type(m.dtype, ROWS))
        return convert.from_memory(b, x, m.dtype)

    def _window(self, place: ir.Value, row: Num) -> list[ir.Value]:
        """Which keys of a vector a query sees, as far as places decide."""
        g, b, a = self.g, self.g.b, self.p.node.attrs
        seen = []
        if a.causal:
            seen.append(b.icmp_signed("<=", place, self._splat_number(row)))
        if a.left >= 0:
            seen.append(b.icmp_signed(">=", place, self._splat_number(g.sub(row, a.left))))
        if a.right >= 0:
            seen.append(b.icmp_signed("<=", place, self._splat_number(g.add(row, a.right))))
        return seen

    def _exp2(self, x: ir.Value) -> ir.Value:
        """``2**x`` for x <= 0. Below the smallest normal number it is 0 where keys may be hidden,
        else that number."""
        b = self.g.b
        low = V.const(_FLOATS, -126.0)
        seen = b.fcmp_unordered(">", x, low)
        y = x if self.hides else b.select(b.fcmp_ordered(">", low, x), low, x)
        magic = V.const(_FLOATS, _MAGIC)
        shifted = b.fadd(y, magic)
        r = b.fsub(y, b.fsub(shifted, magic))
        p: ir.Value = V.const(_FLOATS, _EXP2[-1])
        for c in _EXP2[-2::-1]:
            p = V.intrinsic(b, "fma", p, r, V.const(_FLOATS, c))
        n = b.shl(b.bitcast(shifted, _INTS), V.const(_INTS, 23))
        e = b.bitcast(b.add(b.bitcast(p, _INTS), n), _FLOATS)
        return b.select(seen, e, V.const(_FLOATS, 0)) if self.hides else e

    # --- results ---------------------------------------------------------------------------

    def _store(self, block: _Block) -> None:
        with self.g.loop(0, block.count) as tile:
            self._store_tile(block, tile.index)

    def _store_tile(self, block: _Block, tile: Num) -> None:
        g, b, h = self.g, self.g.b, self.p.y
        start = self._start(g.add(block.first, tile))
        with g.loop(0, self.height) as row:
            factor = self._splat(self._factor_spot(block, tile), row.index)
            at = g.add(self.y_at, g.mul(g.add(g.mul(tile, ROWS), row.index), self.y_row))
            source = self._spot(at)
            to = g.at(block.y, g.mul(g.add(start, row.index), g.size(h.strides[2])), 2)
            for c in range(self.v_tiles):
                x = b.fmul(g.load(_FLOATS, g.at(source, c * ROW_BYTES), ROW_BYTES), factor)
                count = min(ROWS, self.p.v_size - c * ROWS)
                self._store_lanes(convert.to_memory(b, x, bf16), g.at(to, c * ROWS, 2), count)

    def _store_lanes(self, x: ir.Value, at: ir.Value, count: int) -> None:
        g = self.g
        if count == ROWS:
            g.store(x, at, 2)
            return
        kind = ir.VectorType(I1, ROWS)
        lanes = ir.Constant(kind, [I1(int(n < count)) for n in range(ROWS)])
        name = f"llvm.masked.store.{V.type_suffix(x.type)}.p0"
        fn = V.declare(g.module, name, ir.VoidType(), [x.type, V.PTR, I32, kind])
        g.b.call(fn, [x, at, I32(2), lanes])
