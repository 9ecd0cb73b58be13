"""Attention without scores in memory: queries by panels, keys by blocks, softmax on the way.

A work item is one panel of queries of one head. Queries lie along the lanes, so that maxima and
sums over keys need nothing across lanes. Keys and values are read where they are, or from copies
that a thread makes of each head it comes to: items of a head follow each other, and rows that lie
far apart fall into few sets of the cache.

    pack the panel's queries as [size][query], times the scale
    for each block of keys:
        scores[key][query] = sum over size of k[key][.] * q[.][query], masked     (in scratch)
        running maximum and sum; weights = exp(scores - maximum)
        y[query][.] = y[query][.] * correction + sum over keys of weights[key][query] * v[key][.]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir

from ...ir import dims as D
from ...ir.dtypes import b1, f32
from ...ir.graph import Value
from ...regions.heads import Heads
from ...regions.region import Region
from ...tactics.kernel import Kernel
from ...tactics.tactic import Tactic, register_tactic
from . import convert, packing
from . import vecmath as V
from .attention_blocking import Blocking, blockings, value_rows, value_vectors
from .attention_problem import LOG2E, Problem, mask_rows, unsuited
from .codegen import Gen, Num
from .contraction import Operand
from .isa import Isa
from .vecmath import F32, I32, I64

# 2**x for |x| <= 1/2, lowest order first; relative error 2e-7
_EXP2 = (1.0, 0.69314697, 0.2402212, 0.055507133, 0.0096755416, 0.001327647)
_MAGIC = 12582912.0  # adding it rounds to an integer, which is in the low bits then
_GRAIN_FLOPS = 60_000


def build(region: Region, how: Blocking, isa: Isa, symbol: str = "attention") -> Kernel:
    """The kernel of a region that is one attention node."""
    assert region.anchor is not None
    return _Attention(Problem.of(region.anchor), how, isa, symbol).kernel()


class _Attention:
    """Emits one attention kernel."""

    def __init__(self, p: Problem, how: Blocking, isa: Isa, symbol: str):
        self.p, self.how, self.symbol = p, how, symbol
        g = self.g = Gen(symbol, isa)
        self.lanes = isa.lanes(32)
        self.widest = how.vectors * self.lanes
        self._use(how.keys, how.vectors)
        self.args: list[Value] = []
        node = p.node
        q, k, v = node.inputs[:3]
        assert q is not None and k is not None and v is not None
        self.values = (q, k, v)
        self.dtype = q.dtype
        self.pointers = [self._take(x) for x in (q, k, v)]
        self.mask_ptr = None if p.mask is None else self._take(p.mask)
        self.out = node.outputs[0]
        self.y_ptr = self._take(self.out)
        self.queries, self.keys = g.size(p.q.length), g.size(p.k.length)
        self.vec = V.with_lanes(F32, self.lanes)
        self.v_vectors = -(-p.v_size // self.lanes)
        self.value_vectors = value_vectors(isa, self.widest, self.v_vectors)
        # of every block, where they have not been copied before
        self.copies_k = not how.copies and self.dtype is not f32
        self.copies_v = not how.copies and (self.dtype is not f32 or p.v_size % self.lanes != 0)
        whole = isinstance(self.keys, int) and self.keys <= how.block and not node.attrs.causal
        self.block = self.keys if whole and isinstance(self.keys, int) else how.block
        self.blocks_many = not (isinstance(self.keys, int) and self.keys <= how.block)
        self.hides = p.mask is not None or self._windowed()
        self._last_panel()
        self._layout_scratch()

    def _use(self, keys: int, vectors: int) -> None:
        """From here on panels are so wide, and tiles of scores so many keys high."""
        self.mr, self.vectors, self.width = keys, vectors, vectors * self.lanes

    def _last_panel(self) -> None:
        """Tile of a last panel that is so much narrower that it has code of its own."""
        self.narrow: tuple[int, int] | None = None
        if not isinstance(self.queries, int) or self.queries % self.widest == 0:
            return
        vectors = -(-(self.queries % self.widest) // self.lanes)
        if vectors < self.how.vectors:
            most = 12 if self.how.copies else 8  # rows of keys in place take a register each
            keys = self.how.keys * self.how.vectors // vectors
            self.narrow = min(keys, most), vectors

    def _take(self, v: Value) -> ir.Value:
        if v not in self.args:
            self.args.append(v)
        return self.g.arg(self.args.index(v))

    def _layout_scratch(self) -> None:
        """Float offsets: queries, scores, mask, running maximum, sum and correction, y, k, v."""
        p, g, at = self.p, self.g, 0
        tall = max(-(-self.block // m) * m for m in (self.mr, *(self.narrow or ())[:1]))

        def room(floats: int) -> int:
            nonlocal at
            start = at
            at += -(-floats // 16) * 16
            return start

        self.q_at = room(p.size * self.widest)
        self.s_at = room(tall * self.widest)
        self.mask_at = room(tall * self.widest) if self.p.mask_moves else 0
        self.state_at = [room(self.widest) for _ in range(3)]
        self.y_at = room(self.widest * self.v_vectors * self.lanes) if self.blocks_many else 0
        self.k_at = room(tall * p.size + self.lanes) if self.copies_k else 0
        self.v_at: Num = room(tall * self.v_vectors * self.lanes) if self.copies_v else 0
        self.scratch_bytes: D.DimLike = at * 4
        if self.how.copies:
            k_room = D.ceil_div(p.k.length * p.size + self.lanes, 16) * 16
            v_room = p.k.length * (self.v_vectors * self.lanes)
            self.scratch_bytes = (at + k_room + v_room) * 4
            self.k_at, floats = at, g.add(g.mul(self.keys, p.size), self.lanes)
            self.v_at = g.add(at, g.mul(g.ceil_div(floats, 16), 16))

    def _spot(self, at: Num, index: Num = 0) -> ir.Value:
        return self.g.at(self.g.scratch, self.g.add(index, at), 4)

    # --- work items ------------------------------------------------------------------------

    def kernel(self) -> Kernel:
        p, g = self.p, self.g
        panels = D.ceil_div(p.q.length, self.widest)
        none = [I64(-1)] if self.how.copies else []
        with g.loop(g.begin, g.end, carried=none) as item:
            count = g.size(panels)
            panel, rest = g.mod(item.index, count), g.div(item.index, count)
            heads, kv_heads = g.size(p.q.heads), g.size(p.k.heads)
            self.head, self.batch = g.mod(rest, heads), g.div(rest, heads)
            kv_head = g.div(self.head, g.size(D.floor_div(p.q.heads, p.k.heads)))
            self._find_operands(kv_head)
            if self.how.copies:
                current = g.value(g.add(g.mul(self.batch, kv_heads), kv_head))
                with g.b.if_then(g.b.icmp_signed("!=", current, item.carried[0])):
                    self._copy_head()
                item.next = [current]
            self.q0 = g.mul(panel, self.widest)
            self._item(g.test("==", panel, g.sub(count, 1)))
        work = p.q.batch * p.q.heads * panels
        flops = 2 * p.q.batch * p.q.heads * p.q.length * p.k.length * (p.size + p.v_size)
        return Kernel(
            self.symbol, g.finish(), tuple(self.args), tuple(g.dims), work, self._grain(),
            self.scratch_bytes, flops, notes={"blocking": str(self.how)},
        )  # fmt: skip

    def _grain(self) -> int:
        keys = self.keys if isinstance(self.keys, int) else 64
        return max(1, _GRAIN_FLOPS // (2 * keys * self.widest * (self.p.size + self.p.v_size)))

    def _base(self, pointer: ir.Value, h: Heads, head: Num, dtype: Any) -> ir.Value:
        """Address of a head's first row."""
        g = self.g
        first = g.linear([
            (self.batch, g.size(h.strides[0])), (head, g.size(h.strides[1]))
        ])
        return g.at(pointer, first, dtype.size)

    def _find_operands(self, kv_head: Num) -> None:
        p = self.p
        q, k, v = self.pointers
        self.q_base = self._base(q, p.q, self.head, self.dtype)
        self.k_base = self._base(k, p.k, kv_head, self.dtype)
        self.v_base = self._base(v, p.v, kv_head, self.dtype)
        self.y_base = self._base(self.y_ptr, p.y, self.head, self.dtype)

    def _copy_head(self) -> None:
        """Keys behind each other, and values by the columns that are summed at a time."""
        g, p, lanes = self.g, self.p, self.lanes
        k_stride, v_stride = g.size(p.k.strides[2]), g.size(p.v.strides[2])
        self._copy_rows(self.k_base, k_stride, self.keys, p.size, p.size, self.k_at)
        for c in range(0, self.v_vectors, self.value_vectors):
            width = min(self.value_vectors, self.v_vectors - c) * lanes
            columns = min(width, p.v_size - c * lanes)
            source = g.at(self.v_base, c * lanes, self.dtype.size)
            to = g.add(self.v_at, g.mul(self.keys, c * lanes))
            self._copy_rows(source, v_stride, self.keys, columns, width, to)

    def _item(self, last: bool | ir.Value) -> None:
        """A panel; ``last``: of a head's queries."""
        g, how = self.g, self.how
        self._use(how.keys, how.vectors)
        if self.narrow is None:
            whole = isinstance(self.queries, int) and self.queries % self.width == 0
            self.rows = self.width if whole else g.min(g.sub(self.queries, self.q0), self.width)
            self._all_keys()
            return

        def full() -> None:
            self.rows = self.width
            self._all_keys()

        def narrow() -> None:
            assert self.narrow is not None and isinstance(self.queries, int)
            self._use(*self.narrow)
            self.rows = self.queries % self.widest
            self._all_keys()

        if isinstance(last, bool):
            (narrow if last else full)()
            return
        with g.b.if_else(last) as (yes, no):
            with no:
                full()
            with yes:
                narrow()

    def _all_keys(self) -> None:
        g, p = self.g, self.p
        self._pack_queries()
        end: Num = self.keys
        if p.node.attrs.causal:
            end = g.min(self.keys, g.add(self.q0, self.width))
        if not self.blocks_many:
            self._block(0, end, True, True)
            return
        blocks = g.ceil_div(end, self.how.block)
        with g.loop(0, blocks) as b:
            k0 = g.mul(b.index, self.how.block)
            count = g.min(g.sub(end, k0), self.how.block)
            self._block(
                k0, count, g.test("==", b.index, 0), g.test("==", b.index, g.sub(blocks, 1))
            )

    def _panel(self, body: Callable[[Num], None]) -> None:
        """``body(queries)`` with the number as a literal where the panel is full."""
        g = self.g
        if isinstance(self.rows, int):
            body(self.rows)
            return
        with g.b.if_else(g.b.icmp_signed("==", self.rows, g.value(self.width))) as (full, part):
            with full:
                body(self.width)
            with part:
                body(self.rows)

    def _pack_queries(self) -> None:
        g, h = self.g, self.p.q
        operand = Operand(self.q_base, self.dtype, lambda _: 0, 1, g.size(h.strides[2]))

        def pack(count: Num) -> None:
            packing.emit_columns(
                g, self._spot(self.q_at), self.q_base, operand, f32, self.q0, count, self.width,
                0, self.p.size,
            )  # fmt: skip

        self._panel(pack)
        factor = V.const(self.vec, self.p.scale)
        with g.loop(0, self.p.size * self.width, self.lanes) as i:
            at = self._spot(self.q_at, i.index)
            g.store(g.b.fmul(g.load(self.vec, at, 4 * self.lanes), factor), at, 4 * self.lanes)

    # --- one block of keys -----------------------------------------------------------------

    def _block(self, k0: Num, count: Num, first: Any, last: Any) -> None:
        g, p = self.g, self.p
        self.k0 = k0
        if self.p.mask_moves:
            self._pack_mask(count)
        if self.how.copies:
            self.k_rows = self._spot(self.k_at, g.mul(k0, p.size))
            self.k_stride: Num = p.size
        else:
            self._rows_of_block(count)
        top = self._scores(count)
        self._weights(count, top, first)
        self._values(count, first, last)

    def _rows_of_block(self, count: Num) -> None:
        """The block's keys and values, where they are or copied from there."""
        g, p = self.g, self.p
        self.k_stride = g.size(p.k.strides[2])
        self.k_rows = g.at(self.k_base, g.mul(self.k0, self.k_stride), self.dtype.size)
        if self.copies_k:
            self._copy_rows(self.k_rows, self.k_stride, count, p.size, p.size, self.k_at)
            self.k_rows, self.k_stride = self._spot(self.k_at), p.size
        self.v_stride: Num = g.size(p.v.strides[2])
        self.v_rows = g.at(self.v_base, g.mul(self.k0, self.v_stride), self.dtype.size)
        if self.copies_v:
            width = self.v_vectors * self.lanes
            self._copy_rows(self.v_rows, self.v_stride, count, p.v_size, width, self.v_at)
            self.v_rows, self.v_stride = self._spot(self.v_at), width

    def _copy_rows(
        self, rows: ir.Value, stride: Num, count: Num, size: int, width: int, dest: Num
    ) -> None:
        """Rows as f32 in scratch; the last vector may spill into the next row's place."""
        g = self.g
        with g.loop(0, count) as i:
            line = self._spot(dest, g.mul(i.index, width))
            row = g.at(rows, g.mul(i.index, stride), self.dtype.size)
            packing.copy_line(g, line, row, self.dtype, f32, size, width, self.lanes)

    def _pack_mask(self, count: Num) -> None:
        g, m = self.g, self.p.mask
        assert m is not None
        base = self._mask_row()
        operand = Operand(base, m.dtype, lambda _: 0, 1, g.size(m.dims[-1]))

        def pack(queries: Num) -> None:
            packing.emit_columns(
                g, self._spot(self.mask_at), base, operand, f32, self.q0, queries, self.width,
                self.k0, count,
            )  # fmt: skip

        self._panel(pack)

    def _mask_row(self) -> ir.Value:
        assert self.p.mask is not None and self.mask_ptr is not None
        return mask_rows(self.g, self.p.mask, self.mask_ptr, self.batch, self.head)

    # --- scores ----------------------------------------------------------------------------

    def _scores(self, count: Num) -> list[ir.Value]:
        """Fills the block of scores; returns each query's greatest."""
        g, mr = self.g, self.mr
        top = [V.const(self.vec, -np.inf)] * self.vectors
        tail = g.mod(count, mr)
        whole = g.sub(count, tail)
        if g.test(">", whole, 0) is not False:
            with g.loop(0, whole, mr, carried=top) as i:
                i.next = self._score_tile(i.index, mr, None, i.carried)
            top = i.results
        if isinstance(tail, int):
            return self._score_tile(whole, tail, None, top) if tail else top
        with g.loop(whole, count, mr, carried=top) as i:
            i.next = self._score_tile(i.index, mr, g.sub(count, 1), i.carried)
        return i.results

    def _score_tile(
        self, i: Num, mr: int, last: Num | None, top: list[ir.Value]
    ) -> list[ir.Value]:
        """``mr`` keys from ``i``; beyond ``last`` they repeat it, which changes no maximum."""
        g, nv = self.g, self.vectors
        at = [g.add(i, r) for r in range(mr)]
        if last is not None:
            at = [g.min(x, last) for x in at]
        base = [g.at(self.k_rows, g.mul(x, self.k_stride), 4) for x in at]
        acc = [V.const(self.vec, 0)] * (mr * nv)
        with g.loop(0, self.p.size, self._unroll(self.p.size), carried=acc) as k:
            sums = k.carried
            for u in range(self._unroll(self.p.size)):
                step = g.add(k.index, u)
                line = self._spot(self.q_at, g.mul(step, self.width))
                cols = self._line(line)
                out = []
                for r in range(mr):
                    x = V.splat(g.b, g.load(F32, g.at(base[r], step, 4)), self.lanes)
                    out += [self._fma(x, cols[v], sums[r * nv + v]) for v in range(nv)]
                sums = out
            k.next = sums
        top = list(top)
        for r in range(mr):
            for v in range(nv):
                x = self._masked(k.results[r * nv + v], g.add(self.k0, at[r]), at[r], v)
                top[v] = self._greater(x, top[v])
                spot = self._spot(self.s_at, g.mul(g.add(i, r), self.width))
                g.store(x, g.at(spot, v * self.lanes, 4), 4 * self.lanes)
        return top

    @staticmethod
    def _unroll(size: int) -> int:
        return next(u for u in (4, 2, 1) if size % u == 0)

    def _line(self, at: ir.Value) -> list[ir.Value]:
        """The vectors of a panel's row."""
        g = self.g
        return [
            g.load(self.vec, g.at(at, v * self.lanes, 4), 4 * self.lanes)
            for v in range(self.vectors)
        ]

    def _fma(self, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
        return V.intrinsic(self.g.b, "fma" if self.g.isa.fma else "fmuladd", x, y, z)

    def _greater(self, x: ir.Value, y: ir.Value) -> ir.Value:
        return self.g.b.select(self.g.b.fcmp_ordered(">", x, y), x, y, flags=("nsz",))

    def _masked(self, x: ir.Value, key: Num, row: Num, v: int) -> ir.Value:
        """A vector of scores after softcap and masks; ``row`` is the key within the block."""
        g, a, m = self.g, self.p.node.attrs, self.p.mask
        if a.softcap > 0:
            cap = V.const(self.vec, a.softcap)
            x = g.b.fmul(cap, V.unary(g.b, "tanh", g.b.fdiv(x, cap)))
        never = V.const(self.vec, -np.inf)
        if m is not None and self.p.mask_moves:
            spot = self._spot(self.mask_at, g.add(g.mul(row, self.width), v * self.lanes))
            y = g.load(self.vec, spot, 4 * self.lanes)
            if m.dtype is b1:
                x = g.b.select(g.b.fcmp_ordered("!=", y, V.const(self.vec, 0)), x, never)
            else:
                x = g.b.fadd(x, y)
        elif m is not None:
            at = g.at(self._mask_row(), key, m.dtype.size)
            y = convert.from_memory(g.b, g.load(convert.memory_type(m.dtype), at), m.dtype)
            if m.dtype is b1:
                x = g.b.select(V.splat(g.b, y, self.lanes), x, never)
            else:
                x = g.b.fadd(x, V.splat(g.b, y, self.lanes))
        for seen in self._window(key, v):
            x = g.b.select(seen, x, never)
        return x

    def _windowed(self) -> bool:
        a = self.p.node.attrs
        return bool(a.causal or a.left >= 0 or a.right >= 0)

    def _window(self, key: Num, v: int) -> list[ir.Value]:
        """Which queries of a vector see a key, as far as places decide."""
        g, a = self.g, self.p.node.attrs
        if not self._windowed():
            return []
        it = V.with_lanes(I32, self.lanes)
        steps = ir.Constant(it, [I32(v * self.lanes + i) for i in range(self.lanes)])
        first = g.b.trunc(g.value(self.q0), I32)
        place = g.b.add(V.splat(g.b, first, self.lanes), steps)
        t = V.splat(g.b, g.b.trunc(g.value(key), I32), self.lanes)
        seen = []
        if a.causal:
            seen.append(g.b.icmp_signed("<=", t, place))
        if a.left >= 0:
            seen.append(g.b.icmp_signed("<=", g.b.sub(place, t), V.const(it, a.left)))
        if a.right >= 0:
            seen.append(g.b.icmp_signed("<=", g.b.sub(t, place), V.const(it, a.right)))
        return seen

    # --- softmax ---------------------------------------------------------------------------

    def _state(self, which: int, v: int) -> ir.Value:
        """Running maximum (0), sum (1) and correction (2) of a vector of queries."""
        return self._spot(self.state_at[which], v * self.lanes)

    def _weights(self, count: Num, top: list[ir.Value], first: Any) -> None:
        """Scores become weights; running maxima, sums and corrections are brought up to date."""
        g, nv, align = self.g, self.vectors, 4 * self.lanes
        never, zero = V.const(self.vec, -np.inf), V.const(self.vec, 0)
        shift, totals = [], []
        for v in range(nv):
            peak = top[v]
            total: ir.Value = zero
            if first is not True:
                old = g.b.select(first, never, g.load(self.vec, self._state(0, v), align))
                total = g.b.select(first, zero, g.load(self.vec, self._state(1, v), align))
                peak = self._greater(old, peak)
                g.store(peak, self._state(0, v), align)
            safe = g.b.select(g.b.fcmp_ordered("==", peak, never), zero, peak)
            if first is not True:
                factor = self._exp(old, safe)
                g.store(factor, self._state(2, v), align)
                total = g.b.fmul(total, factor)
            shift.append(safe if self.p.mask else g.b.fmul(safe, V.const(self.vec, -LOG2E)))
            totals.append(total)

        def step(row: Num, sums: list[ir.Value]) -> list[ir.Value]:
            spot = self._spot(self.s_at, g.mul(row, self.width))
            out = []
            for v, x in enumerate(self._line(spot)):
                if self.p.mask:  # scores may be so low that products overflow
                    e = self._exp(x, shift[v])
                else:
                    e = self._exp2(self._fma(x, V.const(self.vec, LOG2E), shift[v]), self.hides)
                g.store(e, g.at(spot, v * self.lanes, 4), align)
                out.append(g.b.fadd(sums[v], e))
            return out

        odd = g.mod(count, 2)
        even = g.sub(count, odd)
        if g.test(">", even, 0) is not False:
            with g.loop(0, even, 2, carried=totals) as i:
                i.next = step(g.add(i.index, 1), step(i.index, i.carried))
            totals = i.results
        if not (isinstance(odd, int) and odd == 0):
            with g.loop(even, count, 1, carried=totals) as i:
                i.next = step(i.index, i.carried)
            totals = i.results
        for v in range(nv):
            g.store(totals[v], self._state(1, v), align)

    def _exp(self, x: ir.Value, top: ir.Value) -> ir.Value:
        """``exp(x - top)`` for x <= top."""
        return self._exp2(self.g.b.fmul(self.g.b.fsub(x, top), V.const(x.type, LOG2E)), True)

    def _exp2(self, x: ir.Value, exact: bool) -> ir.Value:
        """``2**x`` for x <= 0. Below the smallest normal number it is 0 if ``exact``, else that
        number."""
        b, t = self.g.b, x.type
        it, low = V.like(t, I32), V.const(t, -126.0)
        seen = b.fcmp_unordered(">", x, low)
        if not exact:
            x = b.select(b.fcmp_ordered(">", low, x), low, x)
        magic = V.const(t, _MAGIC)
        shifted = b.fadd(x, magic)
        r = b.fsub(x, b.fsub(shifted, magic))
        p: ir.Value = V.const(t, _EXP2[-1])
        for c in _EXP2[-2::-1]:
            p = self._fma(p, r, V.const(t, c))
        n = b.shl(b.bitcast(shifted, it), V.const(it, 23))
        e = b.bitcast(b.add(b.bitcast(p, it), n), t)
        return b.select(seen, e, V.const(t, 0)) if exact else e

    # --- weights times values --------------------------------------------------------------

    def _values(self, count: Num, first: Any, last: Any) -> None:
        g = self.g
        if last is not False:
            self._invert_sums(last)
        for c in range(0, self.v_vectors, self.value_vectors):
            n = min(self.value_vectors, self.v_vectors - c)
            if self.how.copies:
                self.v_stride = n * self.lanes
                at = g.linear([(self.keys, c * self.lanes), (self.k0, self.v_stride)])
                self.v_rows = self._spot(self.v_at, g.sub(at, c * self.lanes))
            rt = value_rows(g.isa, self.width, n)
            with g.loop(0, self.rows, rt) as r:
                self._value_tile(r.index, rt, c * self.lanes, n, count, first, last)

    def _invert_sums(self, last: Any) -> None:
        """Sums become what the result is multiplied with; rows that see nothing give 0."""
        g = self.g

        def invert() -> None:
            for v in range(self.vectors):
                total = g.load(self.vec, self._state(1, v), 4 * self.lanes)
                none = g.b.fcmp_ordered("==", total, V.const(self.vec, 0))
                one = V.const(self.vec, 1)
                inverse = g.b.fdiv(one, g.b.select(none, one, total))
                g.store(inverse, self._state(1, v), 4 * self.lanes)

        if last is True:
            invert()
        else:
            with g.b.if_then(last):
                invert()

    def _value_tile(
        self, row: Num, rt: int, col: int, nv: int, count: Num, first: Any, last: Any
    ) -> None:
        g = self.g
        acc: list[ir.Value] = [V.const(self.vec, 0)] * (rt * nv)
        if first is not True:
            for r in range(rt):
                factor = self._of_query(2, g.add(row, r))
                for v in range(nv):
                    old = g.load(self.vec, self._y_slot(row, r, col + v * self.lanes))
                    y = g.b.select(first, V.const(self.vec, 0), g.b.fmul(old, factor))
                    acc[r * nv + v] = y
        spot = self._spot(self.s_at, row)

        def step(k: Num, sums: list[ir.Value]) -> list[ir.Value]:
            line = g.at(self.v_rows, g.add(g.mul(k, self.v_stride), col), 4)
            cols = [g.load(self.vec, g.at(line, v * self.lanes, 4)) for v in range(nv)]
            weights = g.at(spot, g.mul(k, self.width), 4)
            out = []
            for r in range(rt):
                x = V.splat(g.b, g.load(F32, g.at(weights, r, 4)), self.lanes)
                out += [self._fma(x, cols[v], sums[r * nv + v]) for v in range(nv)]
            return out

        odd = g.mod(count, 2)
        even = g.sub(count, odd)
        if g.test(">", even, 0) is not False:
            with g.loop(0, even, 2, carried=acc) as k:
                k.next = step(g.add(k.index, 1), step(k.index, k.carried))
            acc = k.results
        if not (isinstance(odd, int) and odd == 0):
            with g.loop(even, count, 1, carried=acc) as k:
                k.next = step(k.index, k.carried)
            acc = k.results
        if last is True:
            self._store(row, rt, col, nv, acc)
            return
        with g.b.if_else(last) as (done, more):
            with done:
                self._store(row, rt, col, nv, acc)
            with more:
                for r in range(rt):
                    for v in range(nv):
                        g.store(acc[r * nv + v], self._y_slot(row, r, col + v * self.lanes))

    def _of_query(self, which: int, query: Num) -> ir.Value:
        x = self.g.load(F32, self._spot(self.state_at[which], query))
        return V.splat(self.g.b, x, self.lanes)

    def _y_slot(self, row: Num, r: int, col: int) -> ir.Value:
        g = self.g
        line = self._spot(self.y_at, g.mul(g.add(row, r), self.v_vectors * self.lanes))
        return g.at(line, col, 4)

    def _store(self, row: Num, rt: int, col: int, nv: int, acc: list[ir.Value]) -> None:
        g, h = self.g, self.p.y
        for r in range(rt):
            query = g.add(row, r)
            factor = self._of_query(1, query)
            at = g.mul(g.add(self.q0, query), g.size(h.strides[2]))

            def put(r: int = r, factor: ir.Value = factor, at: Num = at) -> None:
                for v in range(nv):
                    x = g.b.fmul(acc[r * nv + v], factor)
                    self._store_vector(x, at, col + v * self.lanes)

            if isinstance(self.rows, int) and self.rows % rt == 0:
                put()
            else:
                with g.b.if_then(g.b.icmp_signed("<", g.value(query), g.value(self.rows))):
                    put()

    def _store_vector(self, x: ir.Value, at: Num, col: int) -> None:
        g, size = self.g, self.dtype.size
        spot = g.at(self.y_base, g.add(at, col), size)
        valid = min(self.lanes, self.p.v_size - col)
        if valid == self.lanes:
            g.store(convert.to_memory(g.b, x, self.dtype), spot, size)
            return
        for i in range(valid):
            y = convert.to_memory(g.b, g.b.extract_element(x, I32(i)), self.dtype)
            g.store(y, g.at(spot, i, size), size)


@register_tactic
class Attention(Tactic):
    """Blocked attention with a running softmax; heads by panels of queries are the work items."""

    name = "attention"
    target = "cpu"
    priority = 60

    def refuse(self, region: Region, device: Any) -> str | None:
        if device.isa.lanes(32) < 4:
            return "needs vectors"
        return unsuited(region, ("f32", "f16", "bf16"))

    def candidates(self, region: Region, device: Any) -> Sequence[Blocking]:
        assert region.anchor is not None
        return blockings(Problem.of(region.anchor), device.isa)

    def build(self, region: Region, candidate: Any, device: Any) -> Kernel:
        return build(region, candidate, device.isa)
