"""Attention in bf16 on tile registers: scores of a block of queries with all keys, softmax in
vectors, then the product with the values.

A work item is a block of up to 32 queries of one head. A thread packs the keys and values of the
head it works on once: items of a head follow each other, and so do heads that share keys.

    on the head's first item: keys as [tile of 16 keys][step of 32 elements][16 pairs][16 keys],
                              values as [tile of 16 columns][step of 32 keys][16 pairs][16 columns]
    scores = queries * keys                      (tiles, to scratch in f32)
    weights = exp(scores - maximum) as bf16      (vectors along the keys, where the scores were)
    y = weights * values / sum                   (tiles, then vectors)

Tiles of queries all have the same height: the last one begins early where it must.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import ir

from ...ir import dims as D
from ...ir.dtypes import b1, bf16
from ...ir.graph import Value
from ...regions.heads import Heads
from ...regions.region import Region
from ...tactics.kernel import Kernel
from ...tactics.tactic import Tactic, register_tactic
from . import convert
from . import vecmath as V
from .attention_problem import LOG2E, Problem, mask_rows, unsuited
from .codegen import Gen, Num
from .conv_ir import load_lanes
from .isa import Isa
from .packing import transpose
from .tile_ir import ROW_BYTES, ROWS, TileUnit
from .vecmath import F32, I1, I16, I32, I64

# 2**x for |x| <= 1/2, lowest order first; relative error 8e-5, far less than bf16's
_EXP2 = (0.999928074, 0.693260985, 0.242611122, 0.0551716689)
_MAGIC = 12582912.0  # adding it rounds to an integer, which is in the low bits then
_STEP = 32  # bf16 elements of a tile's row
_TILE = ROWS * ROW_BYTES  # bytes of a tile
_SHARED = 6  # registers of sums and rows; the other two hold columns
_MOST_KEYS = 8192  # whose scores with 32 queries are kept
_THREAD_FLOPS = 400_000  # some 2 µs of work
_ASSUMED = 128  # keys where only the run knows
_FLOATS = ir.VectorType(F32, ROWS)
_INTS = ir.VectorType(I32, ROWS)
_HALVES = ir.VectorType(I16, ROWS)
_ROW = ir.VectorType(I16, _STEP)


@dataclass(frozen=True)
class Tiles:
    """How queries and keys are cut.

    Attributes:
        rows: Tiles of queries of a work item.
        columns: Tiles of keys whose scores are summed at a time.
    """

    rows: int
    columns: int

    def __str__(self) -> str:
        return f"{self.rows * ROWS}x{self.columns * ROWS}"


def _places(rows: int, columns: int, steps: int) -> bool:
    """Whether a block's queries stay in registers while the keys pass by."""
    return rows * (columns + steps) <= _SHARED


class _TileAttention:
    """Emits one kernel."""

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
        self.steps = -(-p.size // _STEP)
        self.v_tiles = -(-p.v_size // ROWS)
        self.copies_q = p.size % _STEP != 0
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
        self.shift_at, self.factor_at = room(ROW_BYTES), room(rows * ROW_BYTES)
        self.sums_at = room(_TILE)
        self.y_row = self.v_tiles * ROW_BYTES
        self.y_at = room(rows * ROWS * self.y_row)
        self.q_at = room(rows * self.steps * _TILE if self.copies_q else 0)
        # an odd number of lines from row to row, so that a column's rows lie in different sets
        steps = D.ceil_div(p.k.length, _STEP)
        score_row = steps * (_STEP * 4) + ROW_BYTES
        k_bytes = D.ceil_div(p.k.length, ROWS) * (self.steps * _TILE)
        self.key_steps = g.ceil_div(self.keys, _STEP)
        self.score_row = g.add(g.mul(self.key_steps, _STEP * 4), ROW_BYTES)
        self.s_at: Num = at
        self.k_at = g.add(at, g.mul(self.score_row, rows * ROWS))
        self.v_at = g.add(self.k_at, g.mul(g.ceil_div(self.keys, ROWS), self.steps * _TILE))
        self.scratch_bytes = (
            at + score_row * (rows * ROWS) + k_bytes + steps * (self.v_tiles * _TILE)
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
        heads, kv_heads = g.size(p.q.heads), g.size(p.k.heads)
        group = g.size(D.floor_div(p.q.heads, p.k.heads))
        with g.loop(g.begin, g.end, carried=[I64(-1)]) as item:
            rest = g.div(item.index, self.blocks)
            self.head, self.batch = g.mod(rest, heads), g.div(rest, heads)
            kv_head = g.div(self.head, group)
            current = g.value(g.add(g.mul(self.batch, kv_heads), kv_head))
            with g.b.if_then(g.b.icmp_signed("!=", current, item.carried[0])):
                self._pack_keys(self._base(self.k_ptr, p.k, kv_head))
                self._pack_values(self._base(self.v_ptr, p.v, kv_head))
            self._item(self._in_turn(g.mod(item.index, self.blocks)))
            item.next = [current]
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

    def _item(self, block: Num) -> None:
        g, p, most = self.g, self.p, self.how.rows
        self.first = g.mul(block, most)
        self.q_base = self._base(self.q_ptr, p.q, self.head)
        self.y_base = self._base(self.y_ptr, p.y, self.head)
        if p.mask is not None:
            assert self.mask_ptr is not None
            self.mask_base = mask_rows(g, p.mask, self.mask_ptr, self.batch, self.head)
        count = g.min(g.sub(self.tiles, self.first), most)
        if isinstance(self.tiles, int) and self.tiles % most == 0:
            count = most
        self.end = self.keys  # of the keys that anything in the block sees
        if p.node.attrs.causal:
            last = self._start(g.sub(g.add(self.first, count), 1))
            self.end = g.min(self.keys, g.add(last, self.height))
        self.pairs = g.ceil_div(self.end, _STEP)
        self._by_count(count, self._scores)
        with g.loop(0, count) as tile:
            self._softmax(tile.index, self._start(g.add(self.first, tile.index)))
        self._by_count(count, self._products)
        with g.loop(0, count) as tile:
            self._store(tile.index, self._start(g.add(self.first, tile.index)))

    def _start(self, tile: Num) -> Num:
        """First query of a tile."""
        g = self.g
        whole = isinstance(self.queries, int) and self.queries == g.mul(self.tiles, self.height)
        at = g.mul(tile, self.height)
        return at if whole else g.min(at, g.sub(self.queries, self.height))

    def _by_count(self, count: Num, body: Callable[[int], None]) -> None:
        """``body(tiles)`` with their number as a literal."""
        g = self.g
        if isinstance(count, int):
            body(count)
            return
        for n in range(1, self.how.rows + 1):
            if isinstance(self.tiles, int) and n not in (
                self.how.rows, self.tiles % self.how.rows
            ):  # fmt: skip
                continue
            with g.b.if_then(g.b.icmp_signed("==", count, I64(n))):
                body(n)

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
        count = min(_STEP, self.p.size - step * _STEP)
        x = load_lanes(g.b, g.at(line, step * _STEP, 2), _ROW, count)
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
        run(g.add(whole, odd), g.mul(self.key_steps, _STEP // 2), 0)

    # --- products --------------------------------------------------------------------------

    def _queries_at(self, count: int) -> tuple[list[ir.Value], ir.Value]:
        """Where each tile of queries is, and the bytes between its rows."""
        g, h = self.g, self.p.q
        stride = g.size(h.strides[2])
        starts = [self._start(g.add(self.first, i)) for i in range(count)]
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

    def _score_spot(self, tile: Num, at: Num = 0) -> ir.Value:
        """An address within the first row of a tile's scores."""
        g = self.g
        return self._spot(g.linear([(1, self.s_at), (self.score_row, g.mul(tile, ROWS)), (1, at)]))

    def _scores(self, count: int) -> None:
        g, b, unit = self.g, self.g.b, self.unit
        queries, apart = self._queries_at(count)
        most = self.how.columns if count == self.how.rows else max(
            (c for c in (4, 3, 2, 1) if _places(count, c, self.steps)), default=4
        )  # fmt: skip
        resident = _places(count, most, self.steps)
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
                    spot = self._score_spot(i, g.mul(g.add(first, j), ROW_BYTES))
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

    def _products(self, count: int) -> None:
        """Weights times values, to scratch."""
        g, b, unit = self.g, self.g.b, self.unit
        most = 2 if count > 1 else 4
        for first in range(0, self.v_tiles, most):
            columns = min(most, self.v_tiles - first)
            for i in range(count * columns):
                unit.clear(b, self.state, i)
            with g.loop(0, self.pairs) as step:
                at = g.mul(step.index, ROW_BYTES)
                for i in range(count):
                    spot = self._score_spot(i, at)
                    unit.load(b, self.state, count * most + i, spot, g.value(self.score_row))
                for j in range(columns):
                    column = _SHARED + j % (8 - _SHARED)
                    place = g.add(g.mul(self.key_steps, first + j), step.index)
                    spot = self._spot(g.add(self.v_at, g.mul(place, _TILE)))
                    unit.load(b, self.state, column, spot, I64(ROW_BYTES))
                    for i in range(count):
                        row = count * most + i
                        unit.multiply(b, self.state, "bf16", i * columns + j, row, column)
            for i in range(count):
                for j in range(columns):
                    spot = self._spot(self.y_at + i * ROWS * self.y_row + (first + j) * ROW_BYTES)
                    unit.store(b, self.state, i * columns + j, spot, I64(self.y_row))

    # --- softmax ---------------------------------------------------------------------------

    def _softmax(self, tile: Num, start: Num) -> None:
        """A tile's scores become weights, and the factors of its results are found."""
        g, b = self.g, self.g.b
        base = self._score_spot(tile)
        top = _across(b, self._maxima(base, start), self._greater)
        if self.hides:
            never = b.fcmp_ordered("==", top, V.const(_FLOATS, -np.inf))
            top = b.select(never, V.const(_FLOATS, 0), top)
        factor = V.const(_FLOATS, LOG2E if self.changes else LOG2E * self.p.scale)
        masked = self.p.mask is not None  # then scores may be so low that products overflow
        g.store(top if masked else b.fneg(b.fmul(top, factor)), self._spot(self.shift_at),
                ROW_BYTES)
        with g.loop(0, self.height) as row:
            line = g.at(base, g.mul(row.index, self.score_row))
            shift = self._splat(self.shift_at, row.index)
            zero = V.const(_FLOATS, 0)
            with g.loop(0, self.pairs, carried=[zero, zero]) as pair:
                sums = []
                for n, total in enumerate(pair.carried):
                    at = g.add(g.mul(pair.index, 2 * ROW_BYTES), n * ROW_BYTES)
                    x = g.load(_FLOATS, g.at(line, at), ROW_BYTES)
                    e = self._exp2(
                        b.fmul(b.fsub(x, shift), factor) if masked
                        else V.intrinsic(b, "fma", x, factor, shift)
                    )  # fmt: skip
                    sums.append((b.fadd(total, e), e))
                for n, (_, e) in enumerate(sums):
                    to = g.at(line, g.add(g.mul(pair.index, ROW_BYTES), n * ROW_BYTES // 2))
                    g.store(convert.to_memory(b, e, bf16), to, ROW_BYTES // 2)
                pair.next = [total for total, _ in sums]
            total = b.fadd(*pair.results)
            g.store(total, self._spot(g.add(self.sums_at, g.mul(row.index, ROW_BYTES))), ROW_BYTES)
        lines = [self._spot(self.sums_at + r * ROW_BYTES) for r in range(ROWS)]
        total = _across(b, [g.load(_FLOATS, at, ROW_BYTES) for at in lines], b.fadd)
        one = V.const(_FLOATS, 1)
        none = b.fcmp_ordered("==", total, V.const(_FLOATS, 0))
        inverse = b.fdiv(one, b.select(none, one, total))
        # results are stored after the products of all tiles
        g.store(inverse, self._spot(g.add(self.factor_at, g.mul(tile, ROW_BYTES))), ROW_BYTES)

    def _splat(self, at: Num, row: Num) -> ir.Value:
        g = self.g
        return V.splat(g.b, g.load(F32, self._spot(g.add(at, g.mul(row, 4)))), ROWS)

    def _maxima(self, base: ir.Value, start: Num) -> list[ir.Value]:
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
        for first, end, bounded in ((0, whole, False), (whole, g.mul(self.pairs, 2), True)):
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

    def _store(self, tile: Num, start: Num) -> None:
        g, b, h = self.g, self.g.b, self.p.y
        with g.loop(0, self.height) as row:
            factor = self._splat(g.add(self.factor_at, g.mul(tile, ROW_BYTES)), row.index)
            at = g.add(self.y_at, g.mul(g.add(g.mul(tile, ROWS), row.index), self.y_row))
            source = self._spot(at)
            to = g.at(self.y_base, g.mul(g.add(start, row.index), g.size(h.strides[2])), 2)
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


def _across(b: ir.IRBuilder, rows: list[ir.Value], join: Callable[..., ir.Value]) -> ir.Value:
    """A vector whose lane ``n`` is what joins all lanes of row ``n``: the halves of two rows become
    one row, again and again."""
    n = len(rows)
    apart = n // 2
    while len(rows) > 1:
        low = [k for k in range(2 * n) if not k % n & apart]
        high = [k + apart for k in low]
        picks = [ir.Constant(_INTS, [I32(k) for k in which]) for which in (low, high)]
        rows = [
            join(*(b.shuffle_vector(x, y, pick) for pick in picks))
            for x, y in zip(rows[::2], rows[1::2], strict=True)
        ]
        apart //= 2
    return rows[0]


@register_tactic
class TiledAttention(Tactic):
    """Attention of bf16 on tile registers, with all scores of a block of queries at hand."""

    name = "amx_attention"
    target = "cpu"
    priority = 65

    def refuse(self, region: Region, device: Any) -> str | None:
        if not device.isa.amx:
            return "the CPU has no tiles, or does not let this process use them"
        why = unsuited(region, ("bf16",))
        if why is not None:
            return why
        assert region.anchor is not None
        keys = Problem.of(region.anchor).k.length
        if isinstance(keys, int) and keys > _MOST_KEYS:
            return f"scores with {keys} keys are more than the cache holds"
        return None

    def candidates(self, region: Region, device: Any) -> Sequence[Tiles]:
        assert region.anchor is not None
        return cuts(Problem.of(region.anchor))

    def build(self, region: Region, candidate: Any, device: Any) -> Kernel:
        assert region.anchor is not None
        return _TileAttention(Problem.of(region.anchor), candidate, device.isa, self.name).kernel()


def cuts(p: Problem) -> list[Tiles]:
    """Cuts worth timing, the likely best first."""
    steps = -(-p.size // _STEP)
    few = isinstance(p.q.length, int) and p.q.length <= ROWS
    wide = max((c for c in (4, 3, 2, 1) if _places(1, c, steps)), default=4)
    narrow = max((c for c in (2, 1) if _places(2, c, steps)), default=2)
    out = [Tiles(1, wide)] if few else [Tiles(2, narrow), Tiles(2, 2), Tiles(1, wide)]
    return list(dict.fromkeys(out))
