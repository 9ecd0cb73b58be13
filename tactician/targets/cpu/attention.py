"""Attention without scores in memory: queries by panels, keys by blocks, softmax on the way.

A work item is one panel of queries of one head. Queries lie along the lanes, so that maxima and
sums over keys need nothing across lanes, and keys and values are read where they are:

    pack the panel's queries as [size][query], times the scale
    for each block of keys:
        scores[key][query] = sum over size of k[key][.] * q[.][query], masked     (in scratch)
        running maximum and sum; weights = exp(scores - maximum)
        y[query][.] = y[query][.] * correction + sum over keys of weights[key][query] * v[key][.]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import ir

from ...ir import dims as D
from ...ir.dims import DimLike
from ...ir.dtypes import b1, f32
from ...ir.graph import Node, Value
from ...regions.heads import Heads, attention_operands
from ...regions.region import Region
from ...tactics.kernel import Kernel
from ...tactics.tactic import Tactic, register_tactic
from . import convert, packing
from . import vecmath as V
from .codegen import Gen, Num
from .contraction import Operand
from .isa import Isa
from .vecmath import F32, I32

# 2**x for |x| <= 1/2, lowest order first; relative error 2e-7
_EXP2 = (1.0, 0.69314697, 0.2402212, 0.055507133, 0.0096755416, 0.001327647)
LOG2E = 1.44269504
_MAGIC, _MAGIC_BITS = 12582912.0, 0x4B400000  # adding it rounds to an integer
_GRAIN_FLOPS = 60_000
_LARGEST_HEAD = 512


@dataclass(frozen=True)
class Blocking:
    """How attention is blocked.

    Attributes:
        keys: Keys of a register tile of scores.
        vectors: Vectors of queries of a panel.
        block: Most keys between two corrections of the result.
    """

    keys: int
    vectors: int
    block: int

    def __str__(self) -> str:
        return f"{self.keys}x{self.vectors}, {self.block} keys"


@dataclass(frozen=True)
class Problem:
    """The numbers of an attention node without past keys."""

    node: Node
    q: Heads
    k: Heads
    v: Heads
    y: Heads
    mask: Value | None

    @staticmethod
    def of(node: Node) -> Problem:
        mask = node.inputs[3] if len(node.inputs) > 3 else None
        return Problem(node, *attention_operands(node), mask)

    @property
    def size(self) -> int:
        return int(self.q.size)  # type: ignore[arg-type]

    @property
    def v_size(self) -> int:
        return int(self.v.size)  # type: ignore[arg-type]

    @property
    def mask_moves(self) -> bool:
        """Whether the mask is different from query to query."""
        m = self.mask
        return m is not None and m.rank >= 2 and m.dims[-2] != 1

    @property
    def scale(self) -> float:
        scale = self.node.attrs.scale
        return float(1 / np.sqrt(self.size) if scale is None else scale)


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
        self.width = how.vectors * self.lanes
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
        self.copies_k = self.dtype is not f32
        self.copies_v = self.copies_k or p.v_size % self.lanes != 0
        whole = isinstance(self.keys, int) and self.keys <= how.block and not node.attrs.causal
        self.block = self.keys if whole and isinstance(self.keys, int) else how.block
        self.blocks_many = not (isinstance(self.keys, int) and self.keys <= how.block)
        self._layout_scratch()

    def _take(self, v: Value) -> ir.Value:
        if v in self.args:
            return self.g.arg(self.args.index(v))
        self.args.append(v)
        return self.g.arg(len(self.args) - 1)

    def _layout_scratch(self) -> None:
        """Float offsets: queries, scores, mask, running maximum, sum and correction, y, k, v."""
        p, at = self.p, 0
        tall = -(-self.block // self.how.keys) * self.how.keys

        def room(floats: int) -> int:
            nonlocal at
            start = at
            at += -(-floats // 16) * 16
            return start

        self.q_at = room(p.size * self.width)
        self.s_at = room(tall * self.width)
        self.mask_at = room(tall * self.width) if self._mask_moves() else 0
        self.state_at = [room(self.width) for _ in range(3)]
        self.y_at = room(self.width * self.v_vectors * self.lanes) if self.blocks_many else 0
        self.k_at = room(tall * p.size + self.lanes) if self.copies_k else 0
        self.v_at = room(tall * self.v_vectors * self.lanes) if self.copies_v else 0
        self.scratch_bytes = at * 4

    def _mask_moves(self) -> bool:
        """Whether the mask is different from query to query."""
        return self.p.mask_moves

    def _spot(self, at: int, index: Num = 0) -> ir.Value:
        return self.g.at(self.g.scratch, self.g.add(index, at), 4)

    # --- work items ------------------------------------------------------------------------

    def kernel(self) -> Kernel:
        p, g = self.p, self.g
        panels = D.ceil_div(p.q.length, self.width)
        with g.loop(g.begin, g.end) as item:
            count = g.size(panels)
            panel, rest = g.mod(item.index, count), g.div(item.index, count)
            heads = g.size(p.q.heads)
            self.head, self.batch = g.mod(rest, heads), g.div(rest, heads)
            group = D.floor_div(p.q.heads, p.k.heads)
            self.kv_head = g.div(self.head, g.size(group))
            self.q0 = g.mul(panel, self.width)
            self.rows = g.min(g.sub(self.queries, self.q0), self.width)
            if isinstance(self.queries, int) and self.queries % self.width == 0:
                self.rows = self.width
            self._item()
        work = p.q.batch * p.q.heads * panels
        flops = 2 * p.q.batch * p.q.heads * p.q.length * p.k.length * (p.size + p.v_size)
        return Kernel(
            self.symbol, g.finish(), tuple(self.args), tuple(g.dims), work, self._grain(),
            self.scratch_bytes, flops, notes={"blocking": str(self.how)},
        )  # fmt: skip

    def _grain(self) -> int:
        keys = self.keys if isinstance(self.keys, int) else 64
        return max(1, _GRAIN_FLOPS // (2 * keys * self.width * (self.p.size + self.p.v_size)))

    def _base(self, pointer: ir.Value, h: Heads, head: Num, dtype: Any) -> ir.Value:
        """Address of a head's first row."""
        g = self.g
        first = g.linear([
            (self.batch, g.size(h.strides[0])), (head, g.size(h.strides[1]))
        ])
        return g.at(pointer, first, dtype.size)

    def _item(self) -> None:
        g, p = self.g, self.p
        q, k, v = self.pointers
        self.q_base = self._base(q, p.q, self.head, self.dtype)
        self.k_base = self._base(k, p.k, self.kv_head, self.dtype)
        self.v_base = self._base(v, p.v, self.kv_head, self.dtype)
        self.y_base = self._base(self.y_ptr, p.y, self.head, self.dtype)
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
        if self._mask_moves():
            self._pack_mask(count)
        k_stride: Num = g.size(p.k.strides[2])
        self.k_rows = g.at(self.k_base, g.mul(k0, k_stride), self.dtype.size)
        self.k_stride = k_stride
        if self.copies_k:
            self._copy_rows(self.k_rows, k_stride, count, p.size, p.size, self.k_at)
            self.k_rows, self.k_stride = self._spot(self.k_at), p.size
        v_stride: Num = g.size(p.v.strides[2])
        self.v_rows = g.at(self.v_base, g.mul(k0, v_stride), self.dtype.size)
        self.v_stride = v_stride
        if self.copies_v:
            width = self.v_vectors * self.lanes
            self._copy_rows(self.v_rows, v_stride, count, p.v_size, width, self.v_at)
            self.v_rows, self.v_stride = self._spot(self.v_at), width
        top = self._scores(count)
        self._weights(count, top, first)
        self._values(count, first, last)

    def _copy_rows(
        self, rows: ir.Value, stride: Num, count: Num, size: int, width: int, dest: int
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
        g, mr = self.g, self.how.keys
        top = [V.const(self.vec, -np.inf)] * self.how.vectors
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
        g, nv = self.g, self.how.vectors
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
            for v in range(self.how.vectors)
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
        if m is not None and self._mask_moves():
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

    def _window(self, key: Num, v: int) -> list[ir.Value]:
        """Which queries of a vector see a key, as far as places decide."""
        g, a = self.g, self.p.node.attrs
        if not a.causal and a.left < 0 and a.right < 0:
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
        g, nv, align = self.g, self.how.vectors, 4 * self.lanes
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
                factor = self._exp(g.b.fsub(old, safe))
                g.store(factor, self._state(2, v), align)
                total = g.b.fmul(total, factor)
            shift.append(safe)
            totals.append(total)

        def step(row: Num, sums: list[ir.Value]) -> list[ir.Value]:
            spot = self._spot(self.s_at, g.mul(row, self.width))
            out = []
            for v, x in enumerate(self._line(spot)):
                e = self._exp(g.b.fsub(x, shift[v]))
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

    def _exp(self, x: ir.Value) -> ir.Value:
        """``exp(x)`` for x <= 0; exactly 0 where that is below the smallest normal number."""
        b, t = self.g.b, x.type
        it = V.like(t, I32)
        x = b.fmul(x, V.const(t, LOG2E))
        seen = b.fcmp_ordered(">", x, V.const(t, -126.0))
        shifted = b.fadd(x, V.const(t, _MAGIC))
        n = b.sub(b.bitcast(shifted, it), V.const(it, _MAGIC_BITS))
        r = b.fsub(x, b.fsub(shifted, V.const(t, _MAGIC)))
        p: ir.Value = V.const(t, _EXP2[-1])
        for c in _EXP2[-2::-1]:
            p = self._fma(p, r, V.const(t, c))
        e = b.bitcast(b.add(b.bitcast(p, it), b.shl(n, V.const(it, 23))), t)
        return b.select(seen, e, V.const(t, 0))

    # --- weights times values --------------------------------------------------------------

    def _values(self, count: Num, first: Any, last: Any) -> None:
        g = self.g
        nv, rt = _value_tile(g.isa, self.width, self.v_vectors)
        if last is not False:
            self._invert_sums(last)
        end = self.rows if isinstance(self.rows, int) else g.mul(g.ceil_div(self.rows, rt), rt)
        for c in range(0, self.v_vectors, nv):
            n = min(nv, self.v_vectors - c)
            with g.loop(0, end, rt) as r:
                self._value_tile(r.index, rt, c * self.lanes, n, count, first, last)

    def _invert_sums(self, last: Any) -> None:
        """Sums become what the result is multiplied with; rows that see nothing give 0."""
        g = self.g

        def invert() -> None:
            for v in range(self.how.vectors):
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


def mask_rows(g: Gen, m: Value, pointer: ir.Value, batch: Num, head: Num) -> ir.Value:
    """Address of a mask's rows for one batch entry and head."""
    stride: DimLike = m.dims[-1] * (m.dims[-2] if m.rank >= 2 else 1)
    terms: list[tuple[Num, Num]] = []
    for d, index in zip(reversed(m.dims[:-2]), (head, batch), strict=False):
        if d != 1:
            terms.append((index, g.size(stride)))
        stride = stride * d
    return g.at(pointer, g.linear(terms), m.dtype.size)


def _value_tile(isa: Isa, width: int, vectors: int) -> tuple[int, int]:
    """(vectors of values, queries) of the second product's register tile: the one with the fewest
    loads among those that fit."""
    room = isa.vector_registers - 1
    choices = [
        (nv, rt) for nv in range(1, min(4, vectors) + 1) for rt in (1, 2, 4, 6, 8)
        if width % rt == 0 and nv * rt + nv <= room
    ]

    def loads(choice: tuple[int, int]) -> float:
        nv, rt = choice
        return (vectors + -(-vectors // nv) * rt) / rt

    return min(choices, key=loads)


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


def unsuited(region: Region, dtypes: Sequence[str]) -> str | None:
    """Why a region is no attention that blocks of queries and keys can do, or None.

    Args:
        dtypes: Names of the element types that are taken.
    """
    node = region.anchor
    if node is None or node.op != "attention":
        return "not attention"
    if region.stages or len(node.outputs) != 1 or not node.attrs.normalize:
        return "only the plain result can be had"
    if any(v is not None for v in node.inputs[4:]):
        return "past keys and lengths are not taken in"
    p = Problem.of(node)
    q, out = node.inputs[0], node.outputs[0]
    assert q is not None
    if q.dtype.name not in dtypes or out.dtype is not q.dtype:
        return f"no attention of {q.dtype}"
    sizes = (p.q.size, p.v.size, p.q.heads, p.k.heads)
    if not D.is_static(*sizes) or max(p.size, p.v_size) > _LARGEST_HEAD or 0 in sizes:
        return f"heads of {p.q.size} and {p.v.size} elements"
    if D.is_static(p.q.length) and int(p.q.length) <= 2:  # type: ignore[arg-type]
        return "so few queries are products of matrices and vectors"
    if any(d == 0 for d in (p.q.batch, p.q.length, p.k.length)):
        return "an extent is zero"
    return _refuse_mask(p)


def _refuse_mask(p: Problem) -> str | None:
    m = p.mask
    if m is None:
        return None
    if m.rank > 4 or m.dtype.name not in ("b1", "f32", "f16", "bf16"):
        return f"a mask of {m.dtype} and rank {m.rank}"
    full = (p.q.batch, p.q.heads, p.q.length, p.k.length)[4 - m.rank :]
    if m.dims[-1] != full[-1]:
        return "the mask is shorter than the keys"
    if any(d not in (1, f) for d, f in zip(m.dims[:-1], full[:-1], strict=True)):
        return "the mask's broadcasting is known only at run time"
    return None


def blockings(p: Problem, isa: Isa) -> list[Blocking]:
    """Blockings worth timing, the likely best first."""
    lanes = isa.lanes(32)
    many = isa.vector_registers >= 32
    tiles = [(8, 2), (6, 4), (8, 3)] if many else [(6, 2), (4, 3)]
    if D.is_static(p.q.length):
        vectors = -(-int(p.q.length) // lanes)  # type: ignore[arg-type]
        tiles = [(mr if nv <= vectors else 8, min(nv, vectors)) for mr, nv in tiles]
    blocks = [512, 256]
    if D.is_static(p.k.length):
        keys = int(p.k.length)  # type: ignore[arg-type]
        blocks = [keys] if keys <= 256 else [512, 256] if keys > 512 else [keys, 256]
    out = [Blocking(mr, nv, block) for block in blocks for mr, nv in tiles]
    return list(dict.fromkeys(out))
